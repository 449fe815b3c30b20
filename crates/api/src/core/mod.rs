//! The core group: one file per kind.

pub mod claim;
pub mod config_map;
pub mod endpoints;
pub mod event;
pub mod host_ports;
pub mod limit_range;
pub mod namespace;
pub mod node;
pub mod node_facts;
pub mod node_fit;
pub mod persistent_volume;
pub mod persistent_volume_claim;
pub mod pod;
pub mod pod_cells;
pub mod pod_facts;
pub mod pod_spec;
pub mod pod_template;
pub mod pod_update;
pub mod resource_quota;
pub mod secret;
pub mod selecting;
pub mod selection;
pub mod service;
pub mod service_account;
pub mod service_alloc;
pub mod sysctls;
