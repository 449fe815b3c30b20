//! The node's endpoints with real containers and clients of the older protocols. Newer ones are tried with kubectl.

#![expect(clippy::unwrap_used, reason = "helpers of tests stop the test, as tests do")]

mod kubelet;

runtime::testing::shim_here!();
