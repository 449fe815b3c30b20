//! The work queue of one reconciler, as a stepped machine.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use base::{Backoff, Revision, Rng, Time, hash64};
use cache::{Event, View};
use meta::{Resource, Str};

use crate::{Context, EVERYTHING, Effect, Mark, Outcome, Reconciler, Silent};

/// Pauses of a key whose effects fail, or that is blocked.
pub const RETRY: Backoff = Backoff::new(5, 60_000);

/// Looks that read fewer objects are not spaced.
const READS_MANY: usize = 100;
/// The space after a look, for each object that it read: however much changes around a thousand pods, their owner is looked
/// at five times a second, which costs a hundredth of the time.
const SPACE_US_PER_READ: usize = 200;
const SPACE_MAX_MS: u64 = 250;
/// An effect costs as much as this many reads: a look that has much to do is not held up.
const READS_PER_EFFECT: usize = 50;
/// Looks at a key that may follow each other at once after a rest.
const BURST: u64 = 3;
/// Keys whose space is remembered before those are looked for whose space is over.
const SPACES_MIN: usize = 64;

/// A decision about one key, to be carried out as a whole.
#[derive(Debug)]
pub struct Job {
    pub key: Str,
    pub effects: Vec<Effect>,
}

/// How a job went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    /// All effects are in; a view at this revision shows them ([`Revision::ZERO`] when there was nothing to write).
    Written(Revision),
    /// Some effect was refused or its fate is unknown; what was written is at most at this revision.
    Failed(Revision),
}

/// Why a write was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub why: String,
    /// Nothing is wrong with the write itself: the server is busy or has a fault, and takes it at another time.
    pub passes: bool,
}

#[derive(Default)]
struct KeyState {
    /// The view must be at least here before the key is looked at again.
    not_before: Revision,
    /// Looked at again at this time, whatever happens.
    wake_at: Option<Time>,
    failures: u32,
    running: bool,
    /// The lowest and the highest revision of what changed while it ran.
    dirty: Option<(Revision, Revision)>,
    /// What its running job writes is no reason for another look ([`Context::last`]).
    last: bool,
    /// What its last job wrote, where that is no reason for another look and has not been seen yet.
    echo: Option<Revision>,
    again: Option<Time>,
    /// The view that the generated names of its failed job came from. What failed may have happened, or may happen yet:
    /// the next decision takes the same names, so that a create is not made up for by a second one.
    named_at: Option<Revision>,
    /// Why writes of its last job were refused.
    refused: Vec<Refusal>,
    /// What its last look marked.
    marked: Option<Mark>,
}

/// The spaces of the looks at a key.
struct Space {
    /// Its looks so far, each with its space after it, would have ended here.
    until: Time,
    /// The space of the last of them.
    each_ms: u64,
}

impl Space {
    /// When the next look may be, if not now.
    fn next(&self, now: Time) -> Option<Time> {
        let ahead_ms = self.until.ms_since(now);
        let too_early_ms = ahead_ms.saturating_sub(BURST * self.each_ms);
        // No look leaves more than one space beyond a burst: then the clock went back.
        (1..=self.each_ms).contains(&too_early_ms).then(|| now.plus_ms(too_early_ms))
    }
}

/// The queue and the reconciler it serves.
pub struct Driver {
    reconciler: Box<dyn Reconciler>,
    ready: BTreeSet<Str>,
    timers: BTreeSet<(Time, Str)>,
    keys: BTreeMap<Str, KeyState>,
    blocked: BTreeMap<Str, String>,
    spaces: BTreeMap<Str, Space>,
    /// Of how many at most none is over that was when they were looked through last.
    spaces_max: usize,
    silent: Arc<Silent>,
}

impl Driver {
    pub fn new(reconciler: Box<dyn Reconciler>) -> Driver {
        let (ready, timers) = (BTreeSet::new(), BTreeSet::new());
        Driver {
            reconciler,
            ready,
            timers,
            keys: BTreeMap::new(),
            blocked: BTreeMap::new(),
            spaces: BTreeMap::new(),
            spaces_max: SPACES_MIN,
            silent: Arc::default(),
        }
    }

    pub fn reconciler(&self) -> &dyn Reconciler {
        &*self.reconciler
    }

    /// Queues everything that exists: on start, and when a watch was lost.
    pub fn start(&mut self, view: &View) {
        let (watches, lives) = (self.reconciler.watches(), self.reconciler.lives());
        let watched: Vec<Resource> = match lives.contains(&EVERYTHING) {
            true => view.resources().collect(),
            false => watches.iter().chain(lives).copied().collect(),
        };
        for resource in watched {
            for object in view.list(resource, "") {
                let event = Event { revision: view.at(), old: None, new: Some(object.clone()) };
                let mut keys = Vec::new();
                self.reconciler.keys(resource, &event, view, &mut keys);
                keys.into_iter().for_each(|key| self.queue(key, None));
            }
        }
    }

    /// Queues the keys that an event touches.
    pub fn observe(&mut self, resource: Resource, event: &Event, view: &View) {
        let mut keys = Vec::new();
        self.reconciler.keys(resource, event, view, &mut keys);
        keys.into_iter().for_each(|key| self.queue(key, Some(event.revision)));
    }

    /// Takes in which nodes are silent now, and queues the keys of those for which that is new.
    pub fn hear(&mut self, silent: &BTreeSet<String>, view: &View) {
        let mut keys = Vec::new();
        for node in self.silent.keys().filter(|node| !silent.contains(node.as_str())) {
            self.reconciler.keys_of_silence(node, &mut keys);
        }
        let mut known = Silent::new();
        for node in silent {
            let at = self.silent.get(node.as_str()).copied().unwrap_or_else(|| {
                self.reconciler.keys_of_silence(node, &mut keys);
                view.at()
            });
            known.insert(node.into(), at);
        }
        self.silent = Arc::new(known);
        keys.into_iter().for_each(|key| self.queue(key, None));
    }

    /// Queues a key for a change at this revision, or whatever there is to see of it.
    fn queue(&mut self, key: Str, change: Option<Revision>) {
        let state = self.keys.entry(key.clone()).or_default();
        if state.running {
            let (low, high) = change.map_or((Revision::ZERO, Revision(u64::MAX)), |at| (at, at));
            let dirty = state.dirty.get_or_insert((low, high));
            *dirty = (dirty.0.min(low), dirty.1.max(high));
        } else if change.is_some() && state.echo == change {
            state.echo = None;
        } else {
            self.ready.insert(key);
        }
    }

    /// The next job with something to do, or `None` when nothing is ready at this view and time. Keys that turn out to
    /// need nothing are settled on the way. A key whose looks read many objects is looked at again only after a space that
    /// grows with their number; what changes meanwhile is seen by one look.
    pub fn next(&mut self, view: &View, now: Time) -> Option<Job> {
        while let Some((at, _)) = self.timers.first() {
            if *at > now {
                break;
            }
            if let Some((_, key)) = self.timers.pop_first() {
                if let Some(state) = self.keys.get_mut(&key) {
                    state.wake_at = None;
                }
                self.queue(key, None);
            }
        }
        let mut waiting = Vec::new();
        let mut job = None;
        while let Some(key) = self.ready.pop_first() {
            let state = self.keys.entry(key.clone()).or_default();
            if state.not_before > view.at() {
                waiting.push(key);
                continue;
            }
            if let Some(next) = self.spaces.get(&key).and_then(|space| space.next(now)) {
                self.wait(key, next);
                continue;
            }
            let state = self.keys.entry(key.clone()).or_default();
            state.not_before = Revision::ZERO;
            let named_at = *state.named_at.get_or_insert(view.at());
            let seed = hash64(self.reconciler.name().as_bytes()) ^ hash64(key.as_bytes()).rotate_left(17) ^ named_at.0;
            let mut cx = Context::new(now, Rng::new(seed));
            cx.silent = self.silent.clone();
            cx.refused = state.refused.clone();
            cx.known = state.marked.take();
            let outcome = self.reconciler.reconcile(&key, view, &mut cx);
            self.space(&key, cx.reads.saturating_sub(READS_PER_EFFECT * cx.effects.len()), now);
            self.blocked.remove(&key);
            let state = self.keys.entry(key.clone()).or_default();
            state.marked = cx.marked;
            state.again = match outcome {
                Outcome::Settled => None,
                Outcome::Again(at) => Some(at),
                Outcome::Blocked(why) => {
                    self.blocked.insert(key.clone(), why);
                    state.failures = state.failures.saturating_add(1);
                    Some(now.plus_ms(RETRY.delay_ms(state.failures)))
                }
            };
            if cx.effects.is_empty() {
                state.named_at = None;
                if state.again.is_none() {
                    state.failures = 0;
                }
                self.rest(key);
                continue;
            }
            (state.running, state.last, state.echo) = (true, cx.last, None);
            job = Some(Job { key, effects: cx.effects });
            break;
        }
        self.ready.extend(waiting);
        job
    }

    /// Notes why writes of the key's running job were refused, for its next look. Call it before [`Driver::done`].
    pub fn refused(&mut self, key: &Str, why: Vec<Refusal>) {
        self.keys.entry(key.clone()).or_default().refused = why;
    }

    /// Takes the result of a job.
    pub fn done(&mut self, key: Str, result: Done, now: Time) {
        let state = self.keys.entry(key.clone()).or_default();
        state.running = false;
        let (mut dirty, last) = (state.dirty.take(), std::mem::take(&mut state.last));
        match result {
            Done::Written(revision) => {
                state.failures = 0;
                state.named_at = None;
                state.refused.clear();
                state.not_before = state.not_before.max(revision);
                if last && dirty == Some((revision, revision)) {
                    dirty = None;
                } else if last && dirty.is_none() {
                    state.echo = Some(revision);
                }
            }
            Done::Failed(revision) => {
                state.failures = state.failures.saturating_add(1);
                state.not_before = state.not_before.max(revision);
                // Not when the look said: one that wants to see what it did would fail again and again at once. The next
                // look says anew.
                state.again = Some(now.plus_ms(RETRY.delay_ms(state.failures)));
            }
        }
        self.rest(key.clone());
        if dirty.is_some() {
            self.queue(key, None);
        }
    }

    /// Notes that a look at `key` read so many objects for nothing.
    fn space(&mut self, key: &Str, reads: usize, now: Time) {
        if reads < READS_MANY {
            return;
        }
        let each_ms = u64::try_from(reads * SPACE_US_PER_READ / 1_000).map_or(SPACE_MAX_MS, |ms| ms.min(SPACE_MAX_MS));
        if self.spaces.len() >= self.spaces_max {
            self.spaces.retain(|_, space| space.until > now);
            self.spaces_max = SPACES_MIN.max(2 * self.spaces.len());
        }
        let before = self.spaces.get(key).map_or(now, |space| space.until);
        let begin = before.max(now).min(now.plus_ms(BURST * each_ms));
        self.spaces.insert(key.clone(), Space { until: begin.plus_ms(each_ms), each_ms });
    }

    /// Looks at `key` at this time instead of at any that was set before.
    fn wait(&mut self, key: Str, at: Time) {
        let state = self.keys.entry(key.clone()).or_default();
        if let Some(at) = state.wake_at.replace(at) {
            self.timers.remove(&(at, key.clone()));
        }
        self.timers.insert((at, key));
    }

    /// Sets the key's timer, or forgets the key when nothing is left to remember.
    fn rest(&mut self, key: Str) {
        let Some(state) = self.keys.get_mut(&key) else { return };
        if let Some(at) = state.again.take() {
            return self.wait(key, at);
        }
        if let Some(at) = state.wake_at.take() {
            self.timers.remove(&(at, key.clone()));
        }
        if state.not_before == Revision::ZERO && state.failures == 0 && state.marked.is_none() {
            self.keys.remove(&key);
        }
    }

    /// When [`Driver::next`] may have something even if nothing changes.
    pub fn wake_at(&self) -> Option<Time> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// The lowest revision that a waiting key waits for, if any key waits.
    pub fn waits_for(&self) -> Option<Revision> {
        self.ready.iter().filter_map(|key| self.keys.get(key)).map(|state| state.not_before).min()
    }

    /// The keys that are blocked, and why.
    pub fn blocked(&self) -> impl Iterator<Item = (&str, &str)> {
        self.blocked.iter().map(|(key, why)| (key.as_str(), why.as_str()))
    }

    /// Keys that are queued now.
    pub fn depth(&self) -> usize {
        self.ready.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use cache::{Cache, Change};
    use meta::{Facts, Object, Value, json};

    const THINGS: Resource = Resource("things");

    /// Looks at everything as one key, and does what its function says.
    struct Acting<F>(F);

    impl<F: Fn(&View, &mut Context) -> Outcome + Send + Sync> Reconciler for Acting<F> {
        fn name(&self) -> &'static str {
            "acting"
        }

        fn watches(&self) -> &[Resource] {
            &[THINGS]
        }

        fn keys(&self, _: Resource, _: &Event, _: &View, out: &mut Vec<Str>) {
            out.push("all".into());
        }

        fn reconcile(&self, _: &str, view: &View, cx: &mut Context) -> Outcome {
            (self.0)(view, cx)
        }
    }

    /// Wants a `b` for every `a`, and counts on the driver not to make two.
    fn pairs(view: &View, cx: &mut Context) -> Outcome {
        if view.list(THINGS, "").count() % 2 == 1 {
            let name = format!("b-{}", cx.rng.suffix(5));
            cx.push(Effect::Create { resource: THINGS, object: json!({"metadata": {"name": name}}) });
        }
        Outcome::Settled
    }

    /// Has something to do, and wants to look again at once.
    fn eager(_: &View, cx: &mut Context) -> Outcome {
        cx.push(Effect::Create { resource: THINGS, object: json!({"metadata": {"name": "b"}}) });
        Outcome::Again(cx.now)
    }

    /// Tells the status of everything at every look; with `last`, nothing is to come of what it wrote.
    fn telling(last: bool) -> impl Fn(&View, &mut Context) -> Outcome {
        move |_, cx| {
            cx.last = last;
            cx.push(Effect::UpdateSub { resource: THINGS, subresource: "status", object: json!({}) });
            Outcome::Settled
        }
    }

    fn put(cache: &mut Cache, driver: &mut Driver, object: &Value, revision: u64) {
        let mut object = object.clone();
        object.set(&["metadata", "resourceVersion"], revision.to_string());
        let object = Object::new(Facts::of(THINGS, &object), object.to_json());
        let change = Change { revision: Revision(revision), old: None, new: Some(object) };
        cache.apply(Revision(revision), [change]);
        for event in cache.since(THINGS, Revision(revision - 1), 9).unwrap() {
            driver.observe(THINGS, &event, &cache.view());
        }
    }

    #[test]
    fn a_key_waits_for_its_own_write_and_repeats_its_names() {
        let (mut cache, mut driver) = (Cache::new([]), Driver::new(Box::new(Acting(pairs))));
        put(&mut cache, &mut driver, &json!({"metadata": {"name": "a"}}), 1);
        let job = driver.next(&cache.view(), Time::ZERO).unwrap();
        let Effect::Create { object, .. } = &job.effects[0] else { panic!("a create") };
        // While it runs, nothing else is decided; its answer is ahead of the view, so it waits.
        assert!(driver.next(&cache.view(), Time::ZERO).is_none());
        driver.done(job.key.clone(), Done::Written(Revision(3)), Time::ZERO);
        put(&mut cache, &mut driver, &json!({"metadata": {"name": "c"}}), 2);
        put(&mut cache, &mut driver, object, 3);
        assert!(driver.next(&cache.view(), Time::ZERO).is_some(), "three things need a fourth");

        let mut other = Driver::new(Box::new(Acting(pairs)));
        let mut cache = Cache::new([]);
        put(&mut cache, &mut other, &json!({"metadata": {"name": "a"}}), 1);
        assert_eq!(other.next(&cache.view(), Time::ZERO).unwrap().effects, job.effects);
    }

    #[test]
    fn a_job_that_failed_pauses_though_its_look_wants_another_at_once() {
        let (mut cache, mut driver) = (Cache::new([]), Driver::new(Box::new(Acting(eager))));
        put(&mut cache, &mut driver, &json!({"metadata": {"name": "a"}}), 1);
        let mut now = Time::ZERO;
        for failures in 1..10 {
            let job = driver.next(&cache.view(), now).unwrap();
            driver.done(job.key, Done::Failed(Revision::ZERO), now);
            assert!(driver.next(&cache.view(), now).is_none());
            let wake = driver.wake_at().unwrap();
            assert_eq!(wake, now.plus_ms(RETRY.delay_ms(failures)));
            now = wake;
        }
    }

    #[test]
    fn what_was_only_told_brings_no_look_and_all_else_does() {
        for last in [true, false] {
            let (mut cache, mut driver) = (Cache::new([]), Driver::new(Box::new(Acting(telling(last)))));
            let thing = json!({"metadata": {"name": "a"}});
            let mut step = |own: Revision, revisions: &[u64], first: bool| {
                let key: Str = "all".into();
                if first {
                    driver.done(key.clone(), Done::Written(own), Time::ZERO);
                }
                revisions.iter().for_each(|revision| put(&mut cache, &mut driver, &thing, *revision));
                if !first {
                    driver.done(key, Done::Written(own), Time::ZERO);
                }
                driver.next(&cache.view(), Time::ZERO).is_some()
            };
            // Of nothing that runs; then each way in which a change and an answer can come.
            assert!(step(Revision::ZERO, &[1], true));
            assert_eq!(step(Revision(2), &[2], true), !last);
            if last {
                assert!(step(Revision(2), &[3], true), "of somebody else");
            }
            assert_eq!(step(Revision(4), &[4], false), !last);
            if last {
                assert!(step(Revision(4), &[5], true));
            }
            assert!(step(Revision(7), &[6, 7], false) && step(Revision(9), &[8, 9], true));
        }
    }

    /// Is blocked once there have been as many things as now for a while, by its own clock.
    fn watching(view: &View, cx: &mut Context) -> Outcome {
        let since = cx.since(view.list(THINGS, "").count() as u64, 30);
        if since.plus_ms(40) <= cx.now {
            Outcome::Blocked("nothing moves".to_owned())
        } else {
            Outcome::Again(since.plus_ms(40))
        }
    }

    #[test]
    fn what_stays_as_it_is_is_counted_by_ones_own_clock() {
        let (mut cache, mut driver) = (Cache::new([]), Driver::new(Box::new(Acting(watching))));
        let at = |ms: u64| Time::ZERO.plus_ms(ms);
        let look = |driver: &mut Driver, cache: &mut Cache, name: &str, revision: u64, ms: u64| {
            put(cache, driver, &json!({"metadata": {"name": name}}), revision);
            assert!(driver.next(&cache.view(), at(ms)).is_none());
            (driver.wake_at(), driver.blocked().count())
        };
        assert_eq!(look(&mut driver, &mut cache, "a", 1, 100), (Some(at(140)), 0));
        assert_eq!(look(&mut driver, &mut cache, "b", 2, 130), (Some(at(170)), 0), "there is one more");
        assert_eq!(look(&mut driver, &mut cache, "b", 3, 150), (Some(at(170)), 0));
        assert_eq!(look(&mut driver, &mut cache, "b", 4, 170).1, 1, "nothing moved");
        assert_eq!(look(&mut driver, &mut cache, "b", 5, 201), (Some(at(241)), 0), "nobody looked for so long");
        assert_eq!(look(&mut driver, &mut cache, "b", 6, 190), (Some(at(230)), 0), "the clock went back");
    }

    #[test]
    fn a_failed_create_keeps_its_name_whatever_changes_meanwhile() {
        let (mut cache, mut driver) = (Cache::new([]), Driver::new(Box::new(Acting(pairs))));
        put(&mut cache, &mut driver, &json!({"metadata": {"name": "a"}}), 1);
        let failed = driver.next(&cache.view(), Time::ZERO).unwrap();
        driver.done(failed.key, Done::Failed(Revision::ZERO), Time::ZERO);
        put(&mut cache, &mut driver, &json!({"metadata": {"name": "c"}}), 2);
        put(&mut cache, &mut driver, &json!({"metadata": {"name": "d"}}), 3);
        let again = driver.next(&cache.view(), Time::ZERO).unwrap();
        assert_eq!(again.effects, failed.effects);
        driver.done(again.key, Done::Written(Revision(4)), Time::ZERO);
        put(&mut cache, &mut driver, &json!({"metadata": {"name": "e"}}), 4);
        put(&mut cache, &mut driver, &json!({"metadata": {"name": "f"}}), 5);
        assert_ne!(driver.next(&cache.view(), Time::ZERO).unwrap().effects, failed.effects);
    }

    /// Reads as many objects as there are things, and counts its looks.
    fn reading(looks: Arc<AtomicUsize>) -> impl Fn(&View, &mut Context) -> Outcome {
        move |view, cx| {
            cx.reads = view.list(THINGS, "").count();
            looks.fetch_add(1, Ordering::Relaxed);
            Outcome::Settled
        }
    }

    #[test]
    fn looks_that_read_much_are_spaced() {
        let looks = Arc::<AtomicUsize>::default();
        let (mut cache, mut driver) = (Cache::new([]), Driver::new(Box::new(Acting(reading(looks.clone())))));
        let mut revision = 0;
        let mut change = |driver: &mut Driver, name: usize, ms: u64| {
            revision += 1;
            put(&mut cache, driver, &json!({"metadata": {"name": (format!("n{name}"))}}), revision);
            assert!(driver.next(&cache.view(), Time::ZERO.plus_ms(ms)).is_none());
            looks.load(Ordering::Relaxed)
        };
        for number in 0..500usize {
            let ms = 1_000 * number.saturating_sub(READS_MANY);
            assert_eq!(change(&mut driver, number, ms as u64), number + 1, "few are read, or seldom");
        }
        let begun = 1_000_000;
        let before = change(&mut driver, 0, begun);
        let mut last = before;
        for ms in 1..1_000 {
            last = change(&mut driver, 0, begun + ms);
        }
        // 100 ms for 500 objects, and a burst.
        assert_eq!(last - before, 9 + 3);
        assert_eq!(driver.wake_at(), Some(Time::ZERO.plus_ms(begun + 1_000)), "what came since is not forgotten");
        assert_eq!(change(&mut driver, 0, begun - 500_000), last + 1, "the clock went back");
        assert_eq!(change(&mut driver, 0, begun + 900_000), last + 2);
        for key in 0..1_000 {
            driver.space(&format!("k{key}").into(), 10_000, Time::ZERO.plus_ms(2_000_000 + 1_000 * key));
        }
        assert!(driver.spaces.len() <= SPACES_MIN + 1, "those that are over are forgotten");
    }

    #[test]
    fn failures_back_off_and_come_again() {
        let (mut cache, mut driver) = (Cache::new([]), Driver::new(Box::new(Acting(pairs))));
        put(&mut cache, &mut driver, &json!({"metadata": {"name": "a"}}), 1);
        let mut now = Time::ZERO;
        for _ in 0..5 {
            let job = driver.next(&cache.view(), now).unwrap();
            driver.done(job.key, Done::Failed(Revision::ZERO), now);
            assert!(driver.next(&cache.view(), now).is_none());
            let wake = driver.wake_at().unwrap();
            assert!(wake > now);
            now = wake;
        }
    }
}
