//! The core group: one file per kind.

pub mod namespace;
pub mod pod_facts;
