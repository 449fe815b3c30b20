//! The group of `networking`: one file per kind.

pub mod ip_address;
