//! The node's endpoints with real containers and clients of the older protocols. Newer ones are tried with kubectl.

#![allow(clippy::unwrap_used)] // In tests a panic is the report.

mod kubelet;

runtime::testing::shim_here!();
