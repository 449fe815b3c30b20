//! Answers that are long: how long their seat is held, and how long their reader may take.
//!
//! A reader that takes nothing would keep its seat, and all that its answer holds, for as long as it likes. So the seat
//! goes back after [`SEAT_TIME`], and a connection on which an answer is not taken within [`ANSWER_TIME`] is cut.
//! Watches and streams are none of these answers: they have no end, and a slow one holds nothing but its place.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

use crate::flow::Seat;

/// How long an answer that is being sent keeps its seat.
pub const SEAT_TIME: Duration = Duration::from_secs(5);
/// How long sending one answer may take (upstream: the time of a request).
pub const ANSWER_TIME: Duration = Duration::from_secs(60);

/// Ends a connection.
#[derive(Clone, Default)]
pub struct Cut(Arc<Notify>);

impl Cut {
    pub fn now(&self) {
        self.0.notify_one();
    }

    /// Resolves when the connection is to end.
    pub async fn asked(&self) {
        self.0.notified().await;
    }
}

/// An answer that is being sent; dropped when it was, or when nobody wants it any more.
pub struct Sending(tokio::task::JoinHandle<()>);

impl Sending {
    pub fn begin(seat: Option<Seat>, cut: Cut) -> Sending {
        Sending(tokio::spawn(async move {
            tokio::time::sleep(SEAT_TIME).await;
            drop(seat);
            tokio::time::sleep(ANSWER_TIME - SEAT_TIME).await;
            tracing::debug!("an answer was not taken within {} s: its connection is cut", ANSWER_TIME.as_secs());
            cut.now();
        }))
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        // With the task goes the seat, if it is held still.
        self.0.abort();
    }
}
