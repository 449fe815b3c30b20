//! The parts of a control plane that act, on the real clock and the tasks of tokio.

use std::time::Duration;

use base::{Clock, Time};
use drive::{Shell, Task};

pub use drive::{controllers, events, ipam, scheduler};

/// This process's time and tasks.
pub struct Tokio;

impl Clock for Tokio {
    fn now(&self) -> Time {
        server::SystemClock.now()
    }
}

impl Shell for Tokio {
    fn spawn(&self, task: Task) {
        tokio::spawn(task);
    }

    fn sleep(&self, ms: u64) -> Task {
        Box::pin(tokio::time::sleep(Duration::from_millis(ms)))
    }
}
