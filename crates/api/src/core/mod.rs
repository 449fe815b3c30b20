//! The core group: one file per kind.

pub mod pod_facts;
