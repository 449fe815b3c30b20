//! The cluster's DNS: names as data ([`Zone`]), answers as a pure function ([`answer`]), and the loop ([`Server`]).
//!
//! Not here: search paths (they stand in the pods' `resolv.conf`), caching of outside names (upstream servers do that).
//!
//! Invariants: reading a message never panics; an answer never depends on anything but zone, query and turn; a name
//! outside the zone is never answered from it.

mod answer;
mod batch;
mod server;
#[cfg(test)]
mod tests;
mod wire;
mod zone;

pub use answer::{Outcome, Transport, UDP_BYTES, answer};
pub use server::{
    Counts, IDLE_TIMEOUT, MAX_CONNECTIONS, MAX_FORWARDS, Server, Sockets, UPSTREAM_TIMEOUT, upstreams_of,
};
pub use zone::{EndpointName, NEGATIVE_TTL_S, NotAName, PortName, SPECIFICATION, ServiceNames, TTL_S, Zone};
