//! The group of `node`: one file per kind.

pub mod runtime_class;
