//! The parts of a control plane that act, on the real clock and the tasks of tokio.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use base::{Clock, Time};
use drive::{Shell, Task};

pub use drive::{controllers, events, ipam, leader, scheduler, servers};

/// Every so many tasks a thread looks after those that others have woken. A batch that is durable wakes all its writers at
/// once, and their answers should not wait behind every request that came meanwhile.
const LOOKS_ASIDE: u32 = 3;
/// Every so many tasks it looks for what has come over the network.
const LOOKS_OUTSIDE: u32 = 31;

/// The threads of a server.
///
/// # Errors
/// When the system has no more of them.
pub fn threads() -> std::io::Result<tokio::runtime::Runtime> {
    let mut threads = tokio::runtime::Builder::new_multi_thread();
    threads.enable_all().global_queue_interval(LOOKS_ASIDE).event_interval(LOOKS_OUTSIDE).build()
}

/// When this process began to count.
static BEGUN: LazyLock<Instant> = LazyLock::new(Instant::now);

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

    fn steady_ms(&self) -> u64 {
        u64::try_from(BEGUN.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests;
