//! The group of `scheduling`: one file per kind.

pub mod priority_class;
