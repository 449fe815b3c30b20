//! The core group: one file per kind.

pub mod namespace;
pub mod pod;
pub mod pod_cells;
pub mod pod_facts;
pub mod pod_spec;
