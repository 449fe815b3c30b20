//! The pods that wait for a node: ready ones by priority and age, those in back-off, and those that nothing helps yet.

use std::collections::{BTreeMap, BTreeSet};

use base::{Backoff, Time};
use meta::Str;

use crate::volumes;

/// Pauses of a pod that was refused. The first is short: a node comes with a taint that is taken away some milliseconds
/// later, and whoever was refused in between is placed as soon as that is known. Six refusals later they are as long as
/// those of Kubernetes, so a pod that nothing helps is not looked at more often.
pub const BACKOFF: Backoff = Backoff::new(20, 10_000);
/// A refused pod is looked at again after this long, even if nothing seems to have changed.
pub const FORGOTTEN_MS: u64 = 5 * 60 * 1000;

/// Something that may let a refused pod pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// A node came, or its labels, taints or room changed.
    Node,
    /// A pod left a node, or ended.
    PodGone,
    /// A pod came to a node.
    PodCame,
    /// A claim, a volume or a storage class changed.
    Volume,
}

/// All of them, as numbers.
const WAKES: [Wake; 4] = [Wake::Node, Wake::PodGone, Wake::PodCame, Wake::Volume];

impl Wake {
    /// Whether it may help a pod that this plugin refused.
    fn helps(self, plugin: &str) -> bool {
        match self {
            Wake::Node => true,
            Wake::PodGone => !matches!(
                plugin,
                "NodeAffinity" | "TaintToleration" | "NodeUnschedulable" | "NodeName" | volumes::PLUGIN
            ),
            Wake::PodCame => matches!(plugin, "InterPodAffinity" | "PodTopologySpread"),
            Wake::Volume => plugin == volumes::PLUGIN,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    /// Highest priority first.
    priority: std::cmp::Reverse<i64>,
    created: Time,
    key: Str,
}

/// In which of the queue's sets a pod is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Ready,
    /// Until then.
    Pause(Time),
    /// Since then.
    Parked(Time),
    /// In none: somebody looks at it.
    Taken,
}

#[derive(Debug)]
struct Waiting {
    rank: Rank,
    place: Place,
    /// Refusals so far.
    attempts: u32,
}

#[derive(Default)]
pub struct Queue {
    waiting: BTreeMap<Str, Waiting>,
    ready: BTreeSet<Rank>,
    pauses: BTreeSet<(Time, Rank)>,
    /// Pods that nothing helps yet, those first that were refused first.
    parked: BTreeSet<(Time, Rank)>,
    /// Of those the ones that each sort of change may help.
    hopes: [BTreeSet<Rank>; WAKES.len()],
}

impl Queue {
    /// Adds a pod that waits; a pod already known keeps its place.
    pub fn add(&mut self, key: &Str, priority: i64, created: Time) {
        if self.waiting.contains_key(key) {
            return;
        }
        let rank = Rank { priority: std::cmp::Reverse(priority), created, key: key.clone() };
        self.ready.insert(rank.clone());
        self.waiting.insert(key.clone(), Waiting { rank, place: Place::Ready, attempts: 0 });
    }

    pub fn remove(&mut self, key: &str) {
        self.take(key);
        self.waiting.remove(key);
    }

    /// Takes a pod out of the set in which it is; it stays known.
    fn take(&mut self, key: &str) -> Option<&mut Waiting> {
        let waiting = self.waiting.get_mut(key)?;
        match std::mem::replace(&mut waiting.place, Place::Taken) {
            Place::Ready => {
                self.ready.remove(&waiting.rank);
            }
            Place::Pause(until) => {
                self.pauses.remove(&(until, waiting.rank.clone()));
            }
            Place::Parked(since) => {
                self.parked.remove(&(since, waiting.rank.clone()));
                for hopes in &mut self.hopes {
                    hopes.remove(&waiting.rank);
                }
            }
            Place::Taken => {}
        }
        Some(waiting)
    }

    /// The next pod to place. It stays known until it is removed or refused.
    pub fn pop(&mut self, now: Time) -> Option<Str> {
        while self.pauses.first().is_some_and(|(until, _)| *until <= now) {
            let Some((_, rank)) = self.pauses.pop_first() else { break };
            if let Some(waiting) = self.waiting.get_mut(&rank.key) {
                waiting.place = Place::Ready;
            }
            self.ready.insert(rank);
        }
        let rank = self.ready.pop_first()?;
        if let Some(waiting) = self.waiting.get_mut(&rank.key) {
            waiting.place = Place::Taken;
        }
        Some(rank.key)
    }

    /// The pod was refused by these plugins. Where there was nobody to refuse it, as there is no node at all, it makes no
    /// pause once there is one.
    pub fn park(&mut self, key: &str, plugins: &BTreeSet<&'static str>, now: Time) {
        let Some(waiting) = self.take(key) else { return };
        waiting.attempts += u32::from(!plugins.is_empty());
        waiting.place = Place::Parked(now);
        let rank = waiting.rank.clone();
        for (hopes, wake) in self.hopes.iter_mut().zip(WAKES) {
            if plugins.is_empty() || plugins.iter().any(|plugin| wake.helps(plugin)) {
                hopes.insert(rank.clone());
            }
        }
        self.parked.insert((now, rank));
    }

    /// The pod could not be bound for a passing reason; it is tried again after its pause.
    pub fn delay(&mut self, key: &str, now: Time) {
        let Some(waiting) = self.take(key) else { return };
        waiting.attempts += 1;
        let until = now.plus_ms(BACKOFF.delay_ms(waiting.attempts));
        waiting.place = Place::Pause(until);
        let rank = waiting.rank.clone();
        self.pauses.insert((until, rank));
    }

    /// Something changed: whoever it may help comes back, after its pause.
    pub fn wake(&mut self, wake: Wake, now: Time) {
        for rank in std::mem::take(&mut self.hopes[wake as usize]) {
            self.unpark(&rank.key, now);
        }
    }

    fn unpark(&mut self, key: &str, now: Time) {
        let Some(Place::Parked(since)) = self.waiting.get(key).map(|waiting| waiting.place) else { return };
        let Some(waiting) = self.take(key) else { return };
        let until = since.plus_ms(BACKOFF.delay_ms(waiting.attempts));
        let rank = waiting.rank.clone();
        if until <= now {
            waiting.place = Place::Ready;
            self.ready.insert(rank);
        } else {
            waiting.place = Place::Pause(until);
            self.pauses.insert((until, rank));
        }
    }

    /// Brings back pods that have been refused for long.
    pub fn flush(&mut self, now: Time) {
        while let Some((since, rank)) = self.parked.first()
            && now.ms_since(*since) >= FORGOTTEN_MS
        {
            let key = rank.key.clone();
            self.unpark(&key, now);
        }
    }

    /// When [`Queue::pop`] may have something though nothing changed.
    pub fn wake_at(&self) -> Option<Time> {
        let parked = self.parked.first().map(|(since, _)| since.plus_ms(FORGOTTEN_MS));
        let pause = self.pauses.first().map(|(until, _)| *until);
        parked.into_iter().chain(pause).min()
    }

    pub fn is_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Pods that wait, of whatever sort.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn priority_then_age_then_back_off() {
        let mut queue = Queue::default();
        let at = Time::from_seconds;
        queue.add(&"old".into(), 0, at(1));
        queue.add(&"new".into(), 0, at(2));
        queue.add(&"high".into(), 9, at(3));
        let order: Vec<_> = std::iter::from_fn(|| queue.pop(at(10))).collect();
        assert_eq!(order, ["high", "old", "new"]);
        queue.park("old", &["NodeResourcesFit"].into(), at(10));
        queue.park("new", &["NodeAffinity"].into(), at(10));
        queue.wake(Wake::PodGone, at(10));
        assert_eq!(queue.pop(at(10)), None, "it waits out its pause");
        assert_eq!(queue.pop(at(11)).as_deref(), Some("old"));
        assert_eq!(queue.pop(at(99)), None, "a pod that left does not change labels");
        queue.flush(at(10 + 301));
        assert_eq!(queue.pop(at(10 + 301)).as_deref(), Some("new"));
        queue.park("high", &BTreeSet::new(), at(400));
        assert_eq!(queue.pop(at(400)), None);
        queue.wake(Wake::Node, at(400));
        assert_eq!(queue.pop(at(400)).as_deref(), Some("high"), "the first node came");
        queue.park("high", &["TaintToleration"].into(), at(400));
        queue.wake(Wake::Node, at(400).plus_ms(3));
        assert_eq!(queue.pop(at(400).plus_ms(19)), None);
        assert_eq!(
            queue.pop(at(400).plus_ms(20)).as_deref(),
            Some("high"),
            "the node lost the taint that it came with"
        );
    }
}
