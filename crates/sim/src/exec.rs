//! The one heap of events: virtual time, tasks of processes that can be killed or paused, the clocks of their hosts, and
//! the trace with its digest.
//!
//! Not here: threads, the real clock, any meaning of what runs.
//!
//! Invariants: at one instant, tasks run in the order of their numbers, timers in the order in which they were set;
//! nothing else decides what comes next. What a killed process had under way never runs again; what a paused one has
//! runs when it goes on, and it finds that time has passed.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::fmt;
use std::future::Future;
use std::io::Write;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
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

/// A sum over a text, eight bytes at a time: one is taken of everything that is written, and of every line of the trace.
pub fn sum64(text: &[u8]) -> u64 {
    let mut sum = text.len() as u64;
    let mut take = |word: [u8; 8]| {
        sum = (sum ^ u64::from_le_bytes(word)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        sum ^= sum >> 32;
    };
    let (words, rest) = text.as_chunks();
    words.iter().for_each(|word| take(*word));
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    take(last);
    sum
}

/// On whose behalf something runs: who asked, and for what.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Author {
    /// The process, and within it the user: `controllers replicaset-controller`.
    pub who: Arc<str>,
    /// Verb and resource with its subresource: `create pods/eviction`.
    pub what: String,
    /// The number of the call that asked; zero when it was none over a link.
    pub call: u64,
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

/// A task, and the number that says when it has its turn among others.
struct Slot {
    number: u64,
    process: u64,
    author: Arc<Author>,
    /// Absent while it is polled.
    task: Option<Task>,
    waker: Waker,
    bell: Arc<Bell>,
}

/// A timer that somebody waits for, or will.
struct Timer {
    number: u64,
    waker: Option<Waker>,
}

/// Things that come and go, found by their places; a place is used again.
struct Slab<T> {
    places: Vec<Option<T>>,
    free: Vec<usize>,
}

impl<T> Default for Slab<T> {
    fn default() -> Slab<T> {
        Slab { places: Vec::new(), free: Vec::new() }
    }
}

impl<T> Slab<T> {
    /// Puts what `make` makes for the place that it will have.
    fn put<R>(&mut self, make: impl FnOnce(usize) -> (T, R)) -> R {
        let place = self.free.pop().unwrap_or_else(|| {
            self.places.push(None);
            self.places.len() - 1
        });
        let (thing, result) = make(place);
        self.places[place] = Some(thing);
        result
    }

    fn at(&mut self, place: usize) -> Option<&mut T> {
        self.places.get_mut(place)?.as_mut()
    }

    fn take(&mut self, place: usize) -> Option<T> {
        let taken = self.places.get_mut(place)?.take();
        if taken.is_some() {
            self.free.push(place);
        }
        taken
    }
}

/// Timers by their times. Most are given up before their time: such a one is passed over when its time comes, or taken
/// out with others when they are many.
#[derive(Default)]
struct Timers {
    heap: BinaryHeap<Reverse<(Time, u64, usize)>>,
    waiting: Slab<Timer>,
    given_up: usize,
}

impl Timers {
    /// Timers that may have been given up and still stand in the heap, beside as many as there are others.
    const GIVEN_UP_MAX: usize = 256;

    fn set(&mut self, at: Time, number: u64) -> usize {
        let place = self.waiting.put(|place| (Timer { number, waker: None }, place));
        self.heap.push(Reverse((at, number, place)));
        place
    }

    fn find(&mut self, place: usize, number: u64) -> Option<&mut Timer> {
        self.waiting.at(place).filter(|timer| timer.number == number)
    }

    /// Nobody waits for it any more; what it would have woken is given back, to be dropped elsewhere.
    fn give_up(&mut self, place: usize, number: u64) -> Option<Waker> {
        self.find(place, number)?;
        let timer = self.waiting.take(place);
        self.given_up += 1;
        if self.given_up > Timers::GIVEN_UP_MAX.max(self.heap.len() / 2) {
            let Timers { heap, waiting, .. } = self;
            heap.retain(|Reverse((_, number, place))| waiting.at(*place).is_some_and(|timer| timer.number == *number));
            self.given_up = 0;
        }
        timer?.waker
    }

    /// Takes the first timer out if its time is not after `end`.
    fn next(&mut self, end: Time) -> Option<(Time, Option<Waker>)> {
        loop {
            let Reverse((at, number, place)) = *self.heap.peek()?;
            if self.find(place, number).is_none() {
                self.heap.pop();
                self.given_up = self.given_up.saturating_sub(1);
                continue;
            }
            if at > end {
                return None;
            }
            self.heap.pop();
            return Some((at, self.waiting.take(place).and_then(|timer| timer.waker)));
        }
    }
}

#[derive(Default)]
struct Inner {
    now: Time,
    timers: Timers,
    tasks: Slab<Slot>,
    /// Processes that live.
    alive: BTreeSet<u64>,
    /// Processes that stand still, and what of them is ready.
    paused: BTreeMap<u64, BTreeMap<u64, Arc<Bell>>>,
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

#[derive(Default)]
struct Shared {
    inner: Mutex<Inner>,
    /// What is ready, by number, and where each is.
    ready: Mutex<BinaryHeap<Reverse<(u64, usize)>>>,
}

/// The heap and its tasks. Clones share it.
#[derive(Clone)]
pub struct Exec(Arc<Shared>);

struct Bell {
    number: u64,
    place: usize,
    /// It stands among what is ready.
    rung: AtomicBool,
    exec: Exec,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.rung.swap(true, Ordering::Relaxed) {
            lock(&self.exec.0.ready).push(Reverse((self.number, self.place)));
        }
    }
}

impl Exec {
    /// A heap that begins at `start`; with `print` every line of the trace is printed.
    pub fn new(start: Time, print: bool) -> Exec {
        let inner = Inner { now: start, print, ..Inner::default() };
        Exec(Arc::new(Shared { inner: Mutex::new(inner), ready: Mutex::default() }))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        lock(&self.0.inner)
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
        ready.values().for_each(Bell::wake_by_ref);
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
        ready.values().flat_map(BTreeMap::values).for_each(Bell::wake_by_ref);
    }

    /// Ends a process: nothing of it runs any more.
    pub fn kill(&self, process: &Process) {
        let mut inner = self.inner();
        inner.alive.remove(&process.number);
        inner.paused.remove(&process.number);
        let tasks = &mut inner.tasks;
        let own = |slot: &Option<Slot>| slot.as_ref().is_some_and(|slot| slot.process == process.number);
        let gone: Vec<usize> = (0..tasks.places.len()).filter(|place| own(&tasks.places[*place])).collect();
        let mut gone: Vec<Slot> = gone.into_iter().filter_map(|place| tasks.take(place)).collect();
        drop(inner);
        gone.sort_unstable_by_key(|slot| slot.number);
        // What they held may wake others or take its timers out, which needs the heap.
        drop(gone);
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
        let mixed = inner.digest ^ (inner.now.0 as u64).rotate_left(29) ^ sum64(line.as_bytes());
        inner.digest = hash64(&mixed.to_le_bytes());
        if inner.print && writeln!(std::io::stdout(), "{} {line}", inner.now.rfc3339_micro()).is_err() {
            inner.print = false;
            inner.failure.get_or_insert("nobody reads its steps any more".to_owned());
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
            let Some((at, waker)) = inner.timers.next(end) else {
                inner.now = inner.now.max(end);
                return;
            };
            inner.now = inner.now.max(at);
            drop(inner);
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }

    /// Polls what is ready at this instant; false when there is a finding.
    fn run_ready(&self) -> bool {
        let mut polls = 0;
        loop {
            let Some(Reverse((number, place))) = lock(&self.0.ready).pop() else {
                return self.inner().failure.is_none();
            };
            let mut inner = self.inner();
            if inner.failure.is_some() {
                return false;
            }
            let Inner { tasks, paused, author, .. } = &mut *inner;
            let Some(slot) = tasks.at(place).filter(|slot| slot.number == number) else { continue };
            // From here on a ring counts anew.
            slot.bell.rung.store(false, Ordering::Relaxed);
            if let Some(waiting) = paused.get_mut(&slot.process) {
                waiting.insert(number, slot.bell.clone());
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
            let over = match inner.tasks.at(place).filter(|slot| slot.number == number) {
                Some(slot) if !done => {
                    slot.task = Some(task);
                    None
                }
                Some(_) => Some((inner.tasks.take(place), task)),
                None => Some((None, task)),
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
    pub fn on_behalf_of(&self, author: &Arc<Author>) -> Process {
        Process { exec: self.exec.clone(), number: self.number, host: self.host.clone(), author: author.clone() }
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
        let number = inner.numbers;
        let (process, author, exec) = (self.number, self.author.clone(), self.exec.clone());
        let bell = |place| Arc::new(Bell { number, place, rung: AtomicBool::new(false), exec });
        let bell = inner.tasks.put(|place| {
            let bell = bell(place);
            let (waker, own) = (Waker::from(bell.clone()), bell.clone());
            (Slot { number, process, author, task: Some(task), waker, bell: own }, bell)
        });
        drop(inner);
        bell.wake_by_ref();
    }

    fn sleep(&self, ms: u64) -> Task {
        let mut inner = self.exec.inner();
        inner.numbers += 1;
        let (at, number) = (inner.now.plus_ms(ms), inner.numbers);
        let place = inner.timers.set(at, number);
        Box::pin(Sleep { exec: self.exec.clone(), place, number })
    }

    /// Wrong clocks are the kind that is set; this one is right.
    fn steady_ms(&self) -> u64 {
        self.exec.inner().now.ms_since(Time::ZERO)
    }
}

struct Sleep {
    exec: Exec,
    place: usize,
    number: u64,
}

impl Future for Sleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut inner = self.exec.inner();
        let Some(timer) = inner.timers.find(self.place, self.number) else { return Poll::Ready(()) };
        // The task holds the waker that is dropped here, so that nothing else goes with it.
        match &mut timer.waker {
            Some(known) => known.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        let waker = self.exec.inner().timers.give_up(self.place, self.number);
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
