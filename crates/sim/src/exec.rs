//! The one heap of events: virtual time, tasks of processes that can be killed or paused, the clocks of their hosts, and
//! the trace with its digest.
//!
//! Not here: threads, the real clock, any meaning of what runs.
//!
//! Invariants: at one instant, tasks run in the order of their numbers, timers in the order in which they were set;
//! nothing else decides what comes next. What a killed process had under way never runs again; what a paused one has
//! runs when it goes on, and it finds that time has passed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use base::{Clock, Revision, Time, hash64};
use drive::{Shell, Task};

/// Lines of the trace that are kept for the report of a failure.
const LINES_KEPT: usize = 60;
/// Polls at one instant; more means that something turns on the spot.
const POLLS_MAX: u64 = 2_000_000;

pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// On whose behalf something runs: who asked, and for what.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Author {
    /// The process, and within it the user: `controllers replicaset-controller`.
    pub who: String,
    /// Verb and resource with its subresource: `create pods/eviction`.
    pub what: String,
    /// Which life of the process it was.
    pub life: u64,
    /// The epoch of the leader whose part it was; zero when it was none.
    pub epoch: Revision,
    /// The revision of the view that the decision rests on; zero when it rests on none.
    pub decided_on: Revision,
}

impl fmt::Display for Author {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.who, self.what)
    }
}

/// How the clock of a host goes wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Skew {
    /// Ahead of the true time, or behind it.
    pub offset_ms: i64,
    /// Microseconds gained, or lost, in every second since `since`.
    pub drift_ppm: i64,
    pub since: Time,
}

impl Skew {
    fn shown(&self, now: Time) -> Time {
        let passed_us = i64::try_from(now.ms_since(self.since)).unwrap_or(0).saturating_mul(1000);
        Time(now.0 + self.offset_ms * 1000 + passed_us / 1_000_000 * self.drift_ppm)
    }
}

struct Slot {
    process: u64,
    author: Arc<Author>,
    task: Option<Task>,
    waker: Waker,
}

struct Inner {
    now: Time,
    timers: BTreeMap<(Time, u64), Option<Waker>>,
    tasks: BTreeMap<u64, Slot>,
    /// Processes that live.
    alive: BTreeSet<u64>,
    /// Processes that stand still, and what of them is ready.
    paused: BTreeMap<u64, BTreeSet<u64>>,
    /// Clocks that are wrong, by host.
    skews: BTreeMap<Arc<str>, Skew>,
    numbers: u64,
    author: Arc<Author>,
    nobody: Arc<Author>,
    digest: u64,
    events: u64,
    lines: VecDeque<(Time, String)>,
    print: bool,
    failure: Option<String>,
}

/// The heap and its tasks. Clones share it.
#[derive(Clone)]
pub struct Exec {
    inner: Arc<Mutex<Inner>>,
    ready: Arc<Mutex<BTreeSet<u64>>>,
}

struct Bell {
    task: u64,
    ready: Arc<Mutex<BTreeSet<u64>>>,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        lock(&self.ready).insert(self.task);
    }
}

impl Exec {
    /// A heap that begins at `start`; with `print` every line of the trace is printed.
    pub fn new(start: Time, print: bool) -> Exec {
        let inner = Inner {
            now: start,
            timers: BTreeMap::new(),
            tasks: BTreeMap::new(),
            alive: BTreeSet::new(),
            paused: BTreeMap::new(),
            skews: BTreeMap::new(),
            numbers: 0,
            author: Arc::default(),
            nobody: Arc::default(),
            digest: 0,
            events: 0,
            lines: VecDeque::new(),
            print,
            failure: None,
        };
        Exec { inner: Arc::new(Mutex::new(inner)), ready: Arc::default() }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        lock(&self.inner)
    }

    /// A new process on `host`: its tasks live until it is killed.
    pub fn process(&self, host: &str) -> Process {
        let mut inner = self.inner();
        inner.numbers += 1;
        let number = inner.numbers;
        inner.alive.insert(number);
        Process { exec: self.clone(), number, host: host.into(), author: Arc::default() }
    }

    /// Whether a process has not been killed.
    pub fn lives(&self, process: &Process) -> bool {
        self.inner().alive.contains(&process.number)
    }

    /// Lets a process stand still: nothing of it runs until [`Exec::go_on`].
    pub fn pause(&self, process: &Process) {
        self.inner().paused.entry(process.number).or_default();
    }

    /// A paused process goes on, with everything that woke meanwhile.
    pub fn go_on(&self, process: &Process) {
        let ready = self.inner().paused.remove(&process.number).unwrap_or_default();
        lock(&self.ready).extend(ready);
    }

    /// Sets the clock of a host wrong, or right again with the default.
    pub fn set_clock(&self, host: &str, skew: Skew) {
        self.inner().skews.insert(host.into(), skew);
    }

    /// All clocks are right again, and whoever stood still goes on.
    pub fn heal(&self) {
        let mut inner = self.inner();
        inner.skews.clear();
        let ready = std::mem::take(&mut inner.paused);
        drop(inner);
        lock(&self.ready).extend(ready.into_values().flatten());
    }

    /// Ends a process: nothing of it runs any more.
    pub fn kill(&self, process: &Process) {
        let mut inner = self.inner();
        inner.alive.remove(&process.number);
        inner.paused.remove(&process.number);
        let gone: Vec<u64> =
            inner.tasks.iter().filter(|(_, slot)| slot.process == process.number).map(|(id, _)| *id).collect();
        let tasks: Vec<Slot> = gone.iter().filter_map(|id| inner.tasks.remove(id)).collect();
        drop(inner);
        // What they held may wake others or take its timers out, which needs the heap.
        drop(tasks);
    }

    /// On whose behalf the task of this moment runs.
    pub fn author(&self) -> Arc<Author> {
        self.inner().author.clone()
    }

    /// Writes a line into the trace; the digest is over all lines and their times.
    pub fn note(&self, line: impl Into<String>) {
        let line = line.into();
        let mut inner = self.inner();
        inner.events += 1;
        let mixed = inner.digest ^ (inner.now.0 as u64).rotate_left(29) ^ hash64(line.as_bytes());
        inner.digest = hash64(&mixed.to_le_bytes());
        if inner.print {
            println!("{} {line}", inner.now.rfc3339_micro());
        }
        if inner.lines.len() == LINES_KEPT {
            inner.lines.pop_front();
        }
        let now = inner.now;
        inner.lines.push_back((now, line));
    }

    /// Ends the run with a finding; the first one counts.
    pub fn fail(&self, why: impl Into<String>) {
        self.inner().failure.get_or_insert(why.into());
    }

    pub fn failure(&self) -> Option<String> {
        self.inner().failure.clone()
    }

    /// The digest over everything that happened, and how much that was.
    pub fn digest(&self) -> (u64, u64) {
        let inner = self.inner();
        (inner.digest, inner.events)
    }

    /// The last lines of the trace.
    pub fn lines(&self) -> Vec<String> {
        self.inner().lines.iter().map(|(at, line)| format!("{} {line}", at.rfc3339_micro())).collect()
    }

    /// Runs everything up to `end`, or up to the first finding.
    pub fn run_until(&self, end: Time) {
        loop {
            if !self.run_ready() {
                return;
            }
            let mut inner = self.inner();
            match inner.timers.first_key_value() {
                Some((&(at, number), _)) if at <= end => {
                    inner.now = inner.now.max(at);
                    let waker = inner.timers.remove(&(at, number)).flatten();
                    drop(inner);
                    if let Some(waker) = waker {
                        waker.wake();
                    }
                }
                _ => {
                    inner.now = inner.now.max(end);
                    return;
                }
            }
        }
    }

    /// Polls what is ready at this instant; false when there is a finding.
    fn run_ready(&self) -> bool {
        let mut polls = 0;
        loop {
            let Some(id) = lock(&self.ready).pop_first() else { return self.inner().failure.is_none() };
            let mut inner = self.inner();
            if inner.failure.is_some() {
                return false;
            }
            let Inner { tasks, paused, author, .. } = &mut *inner;
            let Some(slot) = tasks.get_mut(&id) else { continue };
            if let Some(waiting) = paused.get_mut(&slot.process) {
                waiting.insert(id);
                continue;
            }
            let Some(mut task) = slot.task.take() else { continue };
            *author = slot.author.clone();
            let waker = slot.waker.clone();
            drop(inner);
            let done = task.as_mut().poll(&mut Context::from_waker(&waker)).is_ready();
            let mut inner = self.inner();
            inner.author = inner.nobody.clone();
            // What a task held may wake others or take its timers out, which needs the heap: it is dropped without it.
            let over = match inner.tasks.get_mut(&id) {
                Some(slot) if !done => {
                    slot.task = Some(task);
                    None
                }
                _ => Some((inner.tasks.remove(&id), task)),
            };
            drop(inner);
            drop(over);
            polls += 1;
            if polls > POLLS_MAX {
                self.fail("liveness: something turns on the spot without letting time pass");
            }
        }
    }
}

impl Clock for Exec {
    fn now(&self) -> Time {
        self.inner().now
    }
}

/// A process as its tasks know it: the shell that they run on.
#[derive(Clone)]
pub struct Process {
    exec: Exec,
    number: u64,
    host: Arc<str>,
    author: Arc<Author>,
}

impl Process {
    /// The same process, acting on behalf of `author`.
    pub fn on_behalf_of(&self, author: Author) -> Process {
        Process { author: Arc::new(author), ..self.clone() }
    }

    /// Which process this is; no two have the same number.
    pub fn number(&self) -> u64 {
        self.number
    }
}

/// The time as the clock of the process's host shows it.
impl Clock for Process {
    fn now(&self) -> Time {
        let inner = self.exec.inner();
        inner.skews.get(&self.host).map_or(inner.now, |skew| skew.shown(inner.now))
    }
}

impl Shell for Process {
    fn spawn(&self, task: Task) {
        let mut inner = self.exec.inner();
        if !inner.alive.contains(&self.number) {
            drop(inner);
            drop(task);
            return;
        }
        inner.numbers += 1;
        let id = inner.numbers;
        let waker = Waker::from(Arc::new(Bell { task: id, ready: self.exec.ready.clone() }));
        inner.tasks.insert(id, Slot { process: self.number, author: self.author.clone(), task: Some(task), waker });
        drop(inner);
        lock(&self.exec.ready).insert(id);
    }

    fn sleep(&self, ms: u64) -> Task {
        let mut inner = self.exec.inner();
        inner.numbers += 1;
        let key = (inner.now.plus_ms(ms), inner.numbers);
        inner.timers.insert(key, None);
        Box::pin(Sleep { exec: self.exec.clone(), key })
    }

    /// Wrong clocks are the kind that is set; this one is right.
    fn steady_ms(&self) -> u64 {
        self.exec.inner().now.ms_since(Time::ZERO)
    }
}

struct Sleep {
    exec: Exec,
    key: (Time, u64),
}

impl Future for Sleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        match self.exec.inner().timers.get_mut(&self.key) {
            Some(waker) => {
                *waker = Some(cx.waker().clone());
                Poll::Pending
            }
            None => Poll::Ready(()),
        }
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        let waker = self.exec.inner().timers.remove(&self.key);
        drop(waker);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_passes_in_order_and_the_dead_stay_dead() {
        let exec = Exec::new(Time::ZERO, false);
        let (one, two) = (exec.process("one"), exec.process("two"));
        for (process, name, ms) in [(&one, "a", 30), (&two, "b", 10), (&one, "c", 20)] {
            let (shell, exec) = (process.clone(), exec.clone());
            process.spawn(Box::pin(async move {
                shell.sleep(ms).await;
                exec.note(name);
                shell.sleep(ms).await;
                exec.note(name);
            }));
        }
        exec.run_until(Time::ZERO.plus_ms(25));
        exec.kill(&one);
        exec.run_until(Time::ZERO.plus_ms(1000));
        let order: String = exec.lines().iter().filter_map(|line| line.chars().last()).collect();
        assert_eq!(order, "bcb");
        assert_eq!(exec.now(), Time::ZERO.plus_ms(1000));
    }

    #[test]
    fn the_paused_go_on_later_and_clocks_are_their_hosts_own() {
        let exec = Exec::new(Time::ZERO, false);
        let process = exec.process("one");
        let (shell, heap) = (process.clone(), exec.clone());
        process.spawn(Box::pin(async move {
            shell.sleep(10).await;
            heap.note(format!("{}", shell.now().0 / 1000));
        }));
        exec.run_until(Time::ZERO.plus_ms(1));
        exec.pause(&process);
        exec.run_until(Time::ZERO.plus_ms(50));
        assert!(exec.lines().is_empty());
        exec.set_clock("one", Skew { offset_ms: 5, drift_ppm: 0, since: Time::ZERO });
        exec.go_on(&process);
        exec.run_until(Time::ZERO.plus_ms(60));
        assert!(exec.lines()[0].ends_with(" 55"), "{:?}", exec.lines());
    }
}
