//! The store through its public boundary: against a model, through crashes, on real files.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod crash;
mod files;
mod model;
