//! The node's endpoints with real containers and clients of the older protocols. Newer ones are tried with kubectl.

mod kubelet;

runtime::testing::shim_here!();
