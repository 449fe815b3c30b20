//! The group `autoscaling`: one resource in two versions, kept in the newer.

pub mod horizontal_pod_autoscaler;
mod old_form;
