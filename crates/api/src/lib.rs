//! The vocabulary: the schema of the built-in kinds, and one file per kind.
//!
//! Not here: IO, storage, async.

pub mod schema;

pub mod kinds;

pub mod rbac;
