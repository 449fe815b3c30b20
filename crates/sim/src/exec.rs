//! The one heap of events: virtual time, tasks of processes that can be killed, and the trace with its digest.
//!
//! Not here: threads, the real clock, any meaning of what runs.
//!
//! Invariants: at one instant, tasks run in the order of their numbers, timers in the order in which they were set;
//! nothing else decides what comes next. What a killed process had under way never runs again.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use base::{Clock, Time, hash64};
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
}

impl fmt::Display for Author {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.who, self.what)
    }
}

struct Slot {
    process: u64,
    author: Arc<Author>,
    task: Option<Task>,
}

struct Inner {
    now: Time,
    timers: BTreeMap<(Time, u64), Option<Waker>>,
    tasks: BTreeMap<u64, Slot>,
    /// Processes that live.
    alive: BTreeSet<u64>,
    numbers: u64,
    author: Arc<Author>,
    digest: u64,
    events: u64,
    lines: VecDeque<String>,
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
            numbers: 0,
            author: Arc::default(),
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

    /// A new process: its tasks live until it is killed.
    pub fn process(&self) -> Process {
        let mut inner = self.inner();
        inner.numbers += 1;
        let number = inner.numbers;
        inner.alive.insert(number);
        Process { exec: self.clone(), number, author: Arc::default() }
    }

    /// Ends a process: nothing of it runs any more.
    pub fn kill(&self, process: &Process) {
        let mut inner = self.inner();
        inner.alive.remove(&process.number);
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
        let line = format!("{} {line}", inner.now.rfc3339_micro());
        if inner.print {
            println!("{line}");
        }
        if inner.lines.len() == LINES_KEPT {
            inner.lines.pop_front();
        }
        inner.lines.push_back(line);
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
        self.inner().lines.iter().cloned().collect()
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
            let Some(slot) = inner.tasks.get_mut(&id) else { continue };
            let Some(mut task) = slot.task.take() else { continue };
            inner.author = slot.author.clone();
            drop(inner);
            let waker = Waker::from(Arc::new(Bell { task: id, ready: self.ready.clone() }));
            let done = task.as_mut().poll(&mut Context::from_waker(&waker)).is_ready();
            let mut inner = self.inner();
            inner.author = Arc::default();
            if done {
                inner.tasks.remove(&id);
            } else if let Some(slot) = inner.tasks.get_mut(&id) {
                slot.task = Some(task);
                task = Box::pin(async {});
            }
            drop(inner);
            drop(task);
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
    author: Arc<Author>,
}

impl Process {
    /// The same process, acting on behalf of `author`.
    pub fn on_behalf_of(&self, author: Author) -> Process {
        Process { author: Arc::new(author), ..self.clone() }
    }
}

impl Clock for Process {
    fn now(&self) -> Time {
        self.exec.now()
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
        inner.tasks.insert(id, Slot { process: self.number, author: self.author.clone(), task: Some(task) });
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
        let (one, two) = (exec.process(), exec.process());
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
}
