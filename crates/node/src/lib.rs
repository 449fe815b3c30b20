//! The node agent: it makes the pods that are bound to its node run, and tells how they fare.
//!
//! - [`pod`]: the pod machine, pure: pod + what is observed + what is remembered -> commands and status.
//! - [`agent`]: the shell: one task per pod, so that one stuck pod never holds up another.
//! - [`carry`]: carries commands out on the runtime; [`spec`], [`env`], [`volumes`] say with what.
//! - [`probe`]: asks containers; [`network`]: services, routes and names; [`node_object`]: what is told of the node.
//! - [`numbers`]: CPU, memory, network and disk, sampled.
//! - [`health_ports`]: whether this node has pods of a service, for balancers that ask.
//! - [`local_storage`]: limits on what a pod has on the disk.
//! - [`kubelet`]: logs, exec, attach, port-forward, numbers, over HTTPS.
//!
//! Not here: anything of the server; any decision about other nodes.
//!
//! Invariants: a node reads and writes only what concerns its own pods; killing the agent stops no container; what the
//! agent did not start it adopts by its pod's uid, or removes when no such pod is bound here.

pub mod agent;
pub mod carry;
pub mod certificates;
pub mod endpoints;
pub mod env;
pub mod fuzzing;
pub mod health_ports;
pub mod kubelet;
pub mod local_storage;
pub mod network;
pub mod node_object;
pub mod numbers;
pub mod pod;
pub mod probe;
pub mod spdy;
pub mod spec;
pub mod termination;
pub mod volumes;
