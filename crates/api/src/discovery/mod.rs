//! The group of `discovery`: one file per kind.

pub mod endpoint_slice;
