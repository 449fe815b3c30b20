//! What can go wrong, said as the operation that failed and what it was done to.

use std::io;
use std::path::PathBuf;

/// Everything the runtime answers instead of a result. The texts are sentences for a user.
#[derive(Debug)]
pub enum Error {
    /// The text is no image name.
    ImageName { name: String, why: &'static str },
    /// The registry (or the local store) has no such image.
    ImageMissing { name: String },
    /// The registry wants other credentials.
    ImageUnauthorized { name: String, why: String },
    /// The registry did not answer, or answered with a fault of its own.
    RegistryUnreachable { registry: String, why: String },
    /// Bytes did not have the digest they were promised under.
    ImageDigest { what: String, expected: String, found: String },
    /// The index lists no image for this machine.
    ImagePlatform { name: String, wanted: String, offered: String },
    /// The image breaks the format, or tries something that is not allowed.
    ImageInvalid { what: String, why: String },
    /// A named limit was reached.
    TooLarge { what: String, limit: u64 },
    /// No such sandbox, container or process.
    NotFound { what: &'static str, id: String },
    /// The thing is not in the state the operation needs.
    Conflict { what: &'static str, id: String, why: String },
    /// The container's process could not be started.
    Start { container: String, why: String },
    /// The pod's shim did not do what it was asked.
    Shim { doing: String, why: String },
    /// A system call failed.
    Io { doing: String, source: io::Error },
    /// It took too long.
    Timeout { doing: String, after_ms: u64 },
    /// This machine or this runtime cannot do it.
    Unsupported { what: String },
    /// What an agent left here cannot be read by this one.
    Record { path: PathBuf, why: String },
}

impl Error {
    pub(crate) fn io(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
        let doing = doing.into();
        move |source| Error::Io { doing, source }
    }

    /// The same for rustix' errors.
    pub(crate) fn os(doing: impl Into<String>) -> impl FnOnce(rustix::io::Errno) -> Error {
        let doing = doing.into();
        move |errno| Error::Io { doing, source: errno.into() }
    }

    /// The reason Kubernetes shows for a container that waits for its image.
    pub fn image_reason(&self) -> &'static str {
        match self {
            Error::ImageName { .. } => "InvalidImageName",
            _ => "ErrImagePull",
        }
    }

    /// Whether asking again later, unchanged, may succeed.
    pub fn transient(&self) -> bool {
        matches!(self, Error::RegistryUnreachable { .. } | Error::Timeout { .. } | Error::Io { .. })
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Error::ImageName { name, why } => write!(f, "invalid image name {name:?}: {why}"),
            Error::ImageMissing { name } => write!(f, "image {name:?} not found"),
            Error::ImageUnauthorized { name, why } => write!(f, "pull of {name:?} refused: {why}"),
            Error::RegistryUnreachable { registry, why } => write!(f, "registry {registry} is not reachable: {why}"),
            Error::ImageDigest { what, expected, found } => {
                write!(f, "{what} should have digest {expected} but has {found}")
            }
            Error::ImagePlatform { name, wanted, offered } => {
                write!(f, "image {name:?} has no variant for {wanted}; it offers {offered}")
            }
            Error::ImageInvalid { what, why } => write!(f, "{what} is not valid: {why}"),
            Error::TooLarge { what, limit } => write!(f, "{what} is over the limit of {limit}"),
            Error::NotFound { what, id } => write!(f, "no {what} {id:?}"),
            Error::Conflict { what, id, why } => write!(f, "{what} {id:?} {why}"),
            Error::Start { container, why } => write!(f, "failed to start container {container:?}: {why}"),
            Error::Shim { doing, why } => write!(f, "{doing}: {why}"),
            Error::Io { doing, source } => write!(f, "{doing}: {source}"),
            Error::Timeout { doing, after_ms } => write!(f, "{doing} took longer than {after_ms} ms"),
            Error::Unsupported { what } => write!(f, "{what} is not supported here"),
            Error::Record { path, why } => write!(
                f,
                "{} cannot be read ({why}); run the gantry that wrote it, or a newer one, or end what it left with \
                 gantry down",
                path.display()
            ),
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
