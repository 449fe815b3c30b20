//! What can go wrong while a server starts or runs, outside of answering requests (those get a `Status`).

use std::fmt;
use std::io;
use std::path::PathBuf;

use store::Format;

#[derive(Debug)]
pub enum Error {
    Certificate {
        what: String,
        why: String,
    },
    File {
        what: &'static str,
        path: PathBuf,
        error: io::Error,
    },
    /// The address cannot be listened on.
    Listen {
        address: String,
        error: io::Error,
    },
    Store {
        what: &'static str,
        why: String,
    },
    /// What stands under a key cannot be read.
    Object {
        key: String,
        why: String,
    },
    /// The store is of a data version that this program does not know.
    Format {
        found: Format,
        knows: Format,
    },
    /// Objects that every cluster has could not be written.
    Bootstrap {
        what: String,
        why: String,
    },
    Tls {
        why: String,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Certificate { what, why } => write!(f, "cannot {what}: {why}"),
            Error::File { what, path, error } => write!(f, "cannot {what} {}: {error}", path.display()),
            Error::Listen { address, error } if error.kind() == io::ErrorKind::AddrInUse => {
                write!(f, "{address} is in use by another program; give another address with --listen")
            }
            Error::Listen { address, error } => write!(f, "cannot listen on {address}: {error}"),
            Error::Store { what, why } => write!(f, "cannot {what}: {why}"),
            Error::Object { key, why } => {
                write!(f, "{key} in the store cannot be read ({why}); run a gantry that can, or put back a backup")
            }
            Error::Format { found, knows } => write!(
                f,
                "the cluster's data has version {found}, and this gantry reads up to {knows}; run a gantry as new as \
                 that of the cluster's other servers"
            ),
            Error::Bootstrap { what, why } => write!(f, "cannot write {what}: {why}"),
            Error::Tls { why } => write!(f, "cannot set up TLS: {why}"),
        }
    }
}

impl std::error::Error for Error {}
