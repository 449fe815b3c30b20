//! The group `admissionregistration.k8s.io`.

pub mod match_resources;
pub mod mutating_admission_policy;
pub mod policy_binding;
pub mod type_check;
pub mod validating_admission_policy;
pub mod webhook_configuration;
