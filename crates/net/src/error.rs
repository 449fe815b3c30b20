//! Why something about the network could not be done.

use std::fmt;
use std::io;

/// An answer of the kernel to a netlink message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetlinkError {
    /// The error number of the kernel.
    pub errno: i32,
    /// What the kernel says beyond the number.
    pub message: Option<String>,
    /// Which message of the request it was, from 0.
    pub index: usize,
}

impl fmt::Display for NetlinkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", io::Error::from_raw_os_error(self.errno))?;
        match &self.message {
            Some(message) => write!(f, ": {message} (message {})", self.index),
            None => write!(f, " (message {})", self.index),
        }
    }
}

#[derive(Debug)]
pub enum Error {
    /// The kernel refused. The variants of `operation` read like "add the link eth0".
    Netlink { operation: String, source: NetlinkError },
    /// A socket, file or mount.
    Io { operation: String, source: io::Error },
    /// There is no link of this name.
    NoSuchLink(String),
    /// Too many of something; says which limit.
    Limit(&'static str),
}

impl Error {
    pub(crate) fn io(operation: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
        let operation = operation.into();
        move |source| Error::Io { operation, source }
    }

    pub(crate) fn netlink(operation: impl Into<String>) -> impl FnOnce(NetlinkError) -> Error {
        let operation = operation.into();
        move |source| Error::Netlink { operation, source }
    }

    /// The kernel's error number, if it was the kernel that refused.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Error::Netlink { source, .. } => Some(source.errno),
            Error::Io { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Netlink { operation, source } => write!(f, "cannot {operation}: {source}"),
            Error::Io { operation, source } => write!(f, "cannot {operation}: {source}"),
            Error::NoSuchLink(name) => write!(f, "there is no link {name}"),
            Error::Limit(limit) => write!(f, "limit reached: {limit}"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}
