//! The group of `policy`: one file per kind.

pub mod pod_disruption_budget;
