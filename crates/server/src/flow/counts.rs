//! What priority and fairness count, under the names of upstream (`apiserver_flowcontrol_*`).
//!
//! Counts are of one flow schema with its priority level, and are kept while the plan has both. Counting is a few atomic
//! additions; nothing is put together before somebody asks. Not here: what upstream derives by its model of virtual time.

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::Plan;
use super::plan::SEATS;

/// Upper ends of the intervals in which waits are counted.
const WAITS_MS: [u64; 13] = [0, 5, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 15_000, 30_000];

/// Why a request was sent away.
#[derive(Clone, Copy, Debug)]
pub enum Why {
    QueueFull,
    ConcurrencyLimit,
    TimeOut,
}

const REASONS: [(Why, &str); 3] =
    [(Why::QueueFull, "queue-full"), (Why::ConcurrencyLimit, "concurrency-limit"), (Why::TimeOut, "time-out")];

#[derive(Debug, Default)]
struct Waits {
    /// By interval; the last one has no end.
    counts: [AtomicU64; WAITS_MS.len() + 1],
    sum_us: AtomicU64,
}

impl Waits {
    fn add(&self, wait: Duration) {
        let at = WAITS_MS.iter().position(|end_ms| wait <= Duration::from_millis(*end_ms));
        self.counts[at.unwrap_or(WAITS_MS.len())].fetch_add(1, Relaxed);
        self.sum_us.fetch_add(u64::try_from(wait.as_micros()).unwrap_or(u64::MAX), Relaxed);
    }
}

/// What was counted of the requests of one schema.
#[derive(Debug, Default)]
pub struct Counts {
    dispatched: AtomicU64,
    rejected: [AtomicU64; REASONS.len()],
    executing: AtomicU64,
    executing_seats: AtomicU64,
    waiting: AtomicU64,
    waiting_seats: AtomicU64,
    /// Of those that ran then, and of those that did not.
    waits: [Waits; 2],
}

/// One request that runs or waits; it does no more when this is dropped.
#[derive(Debug)]
pub struct Counted {
    counts: Arc<Counts>,
    waits: bool,
    seats: u64,
}

impl Drop for Counted {
    fn drop(&mut self) {
        let (requests, seats) = self.counts.gauges(self.waits);
        requests.fetch_sub(1, Relaxed);
        seats.fetch_sub(self.seats, Relaxed);
    }
}

impl Counts {
    fn gauges(&self, waits: bool) -> (&AtomicU64, &AtomicU64) {
        if waits { (&self.waiting, &self.waiting_seats) } else { (&self.executing, &self.executing_seats) }
    }

    fn counted(self: &Arc<Self>, waits: bool, width: u32) -> Counted {
        let (requests, seats) = self.gauges(waits);
        requests.fetch_add(1, Relaxed);
        seats.fetch_add(width.into(), Relaxed);
        Counted { counts: self.clone(), waits, seats: width.into() }
    }

    /// A request begins to run after a wait.
    pub fn run(self: &Arc<Self>, width: u32, wait: Duration) -> Counted {
        self.dispatched.fetch_add(1, Relaxed);
        self.waits[0].add(wait);
        self.counted(false, width)
    }

    pub fn wait(self: &Arc<Self>, width: u32) -> Counted {
        self.counted(true, width)
    }

    pub fn reject(&self, why: Why, wait: Duration) {
        self.rejected[why as usize].fetch_add(1, Relaxed);
        self.waits[1].add(wait);
    }
}

/// A number of a schema.
type Measure = fn(&Counts) -> &AtomicU64;

/// Everything that was counted, as Prometheus reads it.
pub fn text(plan: &Plan) -> String {
    let mut text = String::new();
    let gauges: [(&str, &str, &str, Measure); 5] = [
        ("dispatched_requests_total", "counter", "Requests that were let run", |counts| &counts.dispatched),
        ("current_executing_requests", "gauge", "Requests that run", |counts| &counts.executing),
        ("current_executing_seats", "gauge", "Seats of the requests that run", |counts| &counts.executing_seats),
        ("current_inqueue_requests", "gauge", "Requests that wait", |counts| &counts.waiting),
        ("current_inqueue_seats", "gauge", "Seats that waiting requests need", |counts| &counts.waiting_seats),
    ];
    for (name, of_type, help, measure) in gauges {
        head(&mut text, name, of_type, help);
        for (labels, counts) in plan.counts() {
            row(&mut text, name, &labels, measure(counts).load(Relaxed));
        }
    }
    let name = "rejected_requests_total";
    head(&mut text, name, "counter", "Requests that were sent away");
    for (labels, counts) in plan.counts() {
        for (why, reason) in REASONS {
            let labels = format!("{labels},reason=\"{reason}\"");
            row(&mut text, name, &labels, counts.rejected[why as usize].load(Relaxed));
        }
    }
    waits(&mut text, plan);
    let kept: u32 = plan.levels.iter().filter(|level| !level.exempt).map(|level| level.kept).sum();
    for (name, help, of) in [
        ("nominal_limit_seats", "Seats that are a level's own", 0),
        ("lower_limit_seats", "Seats that a level does not lend", 1),
        ("upper_limit_seats", "Seats that a level has when the others need none", 2),
    ] {
        head(&mut text, name, "gauge", help);
        for level in &plan.levels {
            let others_keep = if level.exempt { 0 } else { kept - level.kept };
            let limits = [level.nominal, level.kept, SEATS.saturating_sub(others_keep)];
            row(&mut text, name, &format!("priority_level=\"{}\"", level.name), limits[of].into());
        }
    }
    text
}

fn waits(text: &mut String, plan: &Plan) {
    let name = "request_wait_duration_seconds";
    head(text, name, "histogram", "How long requests waited for a seat");
    for (labels, counts) in plan.counts() {
        for (waits, execute) in counts.waits.iter().zip(["true", "false"]) {
            let labels = format!("{labels},execute=\"{execute}\"");
            let ends = WAITS_MS.iter().map(|end_ms| (*end_ms as f64 / 1e3).to_string());
            let mut all = 0;
            for (count, end) in waits.counts.iter().zip(ends.chain(["+Inf".to_owned()])) {
                all += count.load(Relaxed);
                row(text, &format!("{name}_bucket"), &format!("{labels},le=\"{end}\""), all);
            }
            let sum = waits.sum_us.load(Relaxed) as f64 / 1e6;
            let _ = writeln!(text, "apiserver_flowcontrol_{name}_sum{{{labels}}} {sum}");
            row(text, &format!("{name}_count"), &labels, all);
        }
    }
}

// Writing to a string cannot fail.
fn head(text: &mut String, name: &str, of_type: &str, help: &str) {
    let name = format!("apiserver_flowcontrol_{name}");
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {of_type}");
}

fn row(text: &mut String, name: &str, labels: &str, number: u64) {
    let _ = writeln!(text, "apiserver_flowcontrol_{name}{{{labels}}} {number}");
}
