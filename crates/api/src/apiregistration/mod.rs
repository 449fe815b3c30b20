//! The aggregation group.

pub mod api_service;
