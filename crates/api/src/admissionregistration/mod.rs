//! The group `admissionregistration.k8s.io`.

pub mod webhook_configuration;
