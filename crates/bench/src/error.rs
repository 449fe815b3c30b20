//! Why a bench gave no figures, each as one sentence.

use std::fmt;

#[derive(Debug)]
pub enum Error {
    /// What was done, and why it failed.
    Doing { doing: String, why: String },
    /// An option that cannot be.
    Option { name: String, why: String },
    /// What this machine lacks for the bench.
    Lacks(String),
}

impl Error {
    pub fn doing(doing: impl Into<String>, why: impl fmt::Display) -> Error {
        Error::Doing { doing: doing.into(), why: why.to_string() }
    }

    /// For `map_err`.
    pub fn while_doing<W: fmt::Display>(doing: &'static str) -> impl FnOnce(W) -> Error {
        move |why| Error::doing(doing, why)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Doing { doing, why } => write!(f, "cannot {doing}: {why}"),
            Error::Option { name, why } => write!(f, "--{name}: {why}"),
            Error::Lacks(what) => f.write_str(what),
        }
    }
}

impl std::error::Error for Error {}
