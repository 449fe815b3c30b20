//! The core group: one file per kind.

pub mod claim;
pub mod namespace;
pub mod pod;
pub mod pod_cells;
pub mod pod_facts;
pub mod pod_spec;
pub mod pod_template;
pub mod pod_update;
