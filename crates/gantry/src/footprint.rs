//! Staying small while there is little to do.
//!
//! Three things make an idle process large: huge pages, of which the allocator touches a little each, code that ran once,
//! and trees of objects that nobody uses any more. None is given up where it is of use: who has much in memory gets huge
//! pages, and who works keeps its code.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// How often it is looked whether code can go.
const PERIOD: Duration = Duration::from_secs(10);
/// Processor time in a period up to which a process counts as idle.
const IDLE: Duration = Duration::from_millis(100);
/// How often it is looked whether huge pages are worth it.
const LOOK: Duration = Duration::from_secs(1);
/// A process with this much in memory gets huge pages.
const LARGE_BYTES: usize = 96 << 20;

/// No huge pages from here on, also for processes that this one starts. To be called first: what the allocator has touched
/// by then is large already.
pub fn small_pages() {
    // A kernel without huge pages has none to refuse.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
}

/// Allows huge pages again as soon as this process is large.
pub async fn huge_pages_when_large() {
    while resident_bytes() < LARGE_BYTES {
        tokio::time::sleep(LOOK).await;
    }
    let _ = rustix::thread::disable_transparent_huge_pages(false);
}

/// Gives back code that does not run, for as long as the future is polled.
pub async fn keep_small() {
    let mut before = cpu();
    loop {
        tokio::time::sleep(PERIOD).await;
        let now = cpu();
        if now.saturating_sub(before) < IDLE
            && let Err(error) = runtime::memory::release_code()
        {
            tracing::debug!("memory is kept: {error}");
        }
        before = cpu();
    }
}

/// Gives up the trees of objects that nobody has used for a while, for as long as the future is polled.
pub async fn cool_trees() {
    loop {
        tokio::time::sleep(PERIOD).await;
        // Thousands of trees take a tenth of a second, for which no request should wait.
        let _ = tokio::task::spawn_blocking(meta::Object::cool).await;
    }
}

/// Processor time that this process has used.
fn cpu() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

fn resident_bytes() -> usize {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<usize>().ok()).unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_knows_what_it_uses() {
        assert!(cpu() > Duration::ZERO);
        assert!(resident_bytes() > 100_000);
    }
}
