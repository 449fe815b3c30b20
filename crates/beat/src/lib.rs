//! Signs of life: datagrams that an agent sends several times a second, and the listener that notices when they stop.
//!
//! A node that dies says nothing, so what counts is silence, and silence is told apart soon only by whoever listens often.
//! A lease in the store is renewed every ten seconds since each renewal is a write; a datagram costs a hundredth of one.
//! Datagrams only shorten the wait: a node that cannot send them is judged by its lease, as it always was.
//!
//! * [`Packet`]: what is sent: a name, a number that grows, and a tag that only the node and the servers can make.
//! * [`Listener`]: who is silent, as a stepped machine without clock or sockets.
//! * [`hear`] and [`Sender`]: the two threads around them.
//!
//! Not here: what silence means for nodes and pods (the node lifecycle controller decides that).
//!
//! Invariants: a datagram that was not made with the node's key, or was seen before, changes nothing; a listener that was
//! held up itself calls nobody silent for it.

mod listener;
mod packet;
mod udp;

pub use listener::{EVERY_MS, LOOK_MS, Listener, PATIENCE_MS};
pub use packet::{KEY_BYTES, Keys, MAX_BYTES, Packet, Signer};
pub use udp::{Hearing, Sender, hear};
