//! Why a command ends without having done its work, each as one sentence that says what to do.

use std::fmt;
use std::io;
use std::path::PathBuf;

#[derive(Debug)]
pub enum Error {
    /// Words that clap does not know, or its help.
    Words(clap::Error),
    /// A value that cannot be, and where it was said.
    Value {
        place: String,
        why: String,
    },
    /// A file or folder that cannot be used.
    File {
        doing: &'static str,
        path: PathBuf,
        error: io::Error,
    },
    /// This machine, or this user, cannot do what is needed; the text says what and what to do.
    Machine(String),
    /// A server that does not answer now; the text says which and why.
    Unreachable(String),
    /// Another process works in the folder.
    InUse {
        path: PathBuf,
        by: String,
    },
    /// What was done and why it failed, where the cause is told by another room.
    Doing {
        doing: String,
        why: String,
    },
    Server(server::Error),
    Store(store::OpenError),
    Runtime(runtime::Error),
    Net(net::Error),
    Status(meta::Status),
}

impl Error {
    pub fn doing(doing: impl Into<String>, why: impl fmt::Display) -> Error {
        Error::Doing { doing: doing.into(), why: why.to_string() }
    }

    pub fn file(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Error {
        let path = path.into();
        move |error| Error::File { doing, path, error }
    }

    /// Whether the same may succeed later without anybody doing something.
    pub fn is_passing(&self) -> bool {
        use meta::Reason::{ServiceUnavailable, Timeout, TooManyRequests};
        match self {
            Error::Unreachable(_) => true,
            Error::Status(status) => matches!(status.reason(), ServiceUnavailable | Timeout | TooManyRequests),
            _ => false,
        }
    }

    /// The code that the program ends with.
    pub fn code(&self) -> u8 {
        match self {
            Error::Words(words) => u8::try_from(words.exit_code()).unwrap_or(2),
            _ => 1,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Words(words) => write!(f, "{words}"),
            Error::Value { place, why } => write!(f, "{place}: {why}"),
            Error::File { doing, path, error } if error.kind() == io::ErrorKind::PermissionDenied => {
                write!(f, "cannot {doing} {}: this user may not; start gantry as root", path.display())
            }
            Error::File { doing, path, error } => write!(f, "cannot {doing} {}: {error}", path.display()),
            Error::Machine(why) | Error::Unreachable(why) => f.write_str(why),
            Error::InUse { path, by } => {
                write!(f, "{} is in use by {by}: stop it first, or give another folder", path.display())
            }
            Error::Doing { doing, why } => write!(f, "cannot {doing}: {why}"),
            Error::Server(error) => error.fmt(f),
            Error::Store(error) => error.fmt(f),
            Error::Runtime(error) => error.fmt(f),
            Error::Net(error) => error.fmt(f),
            Error::Status(status) => f.write_str(status.message()),
        }
    }
}

impl std::error::Error for Error {}

impl From<server::Error> for Error {
    fn from(error: server::Error) -> Error {
        Error::Server(error)
    }
}

impl From<store::OpenError> for Error {
    fn from(error: store::OpenError) -> Error {
        Error::Store(error)
    }
}

impl From<runtime::Error> for Error {
    fn from(error: runtime::Error) -> Error {
        Error::Runtime(error)
    }
}

impl From<net::Error> for Error {
    fn from(error: net::Error) -> Error {
        Error::Net(error)
    }
}

impl From<meta::Status> for Error {
    fn from(status: meta::Status) -> Error {
        Error::Status(status)
    }
}
