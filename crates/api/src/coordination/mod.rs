//! The group of `coordination`: one file per kind.

pub mod lease;
