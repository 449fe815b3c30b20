//! The pods that wait for a node: ready ones by priority and age, those in back-off, and those that nothing helps yet.

use std::collections::{BTreeMap, BTreeSet};

use base::{Backoff, Time};
use meta::Str;

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
}

/// What a refused pod waits for, as a set of plugins' names.
#[derive(Clone, Debug, Default)]
struct Parked {
    plugins: BTreeSet<&'static str>,
    since: Time,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    /// Highest priority first.
    priority: std::cmp::Reverse<i64>,
    created: Time,
    key: Str,
}

#[derive(Default)]
pub struct Queue {
    ready: BTreeSet<Rank>,
    backoff: BTreeSet<(Time, Rank)>,
    parked: BTreeMap<Rank, Parked>,
    ranks: BTreeMap<Str, Rank>,
    attempts: BTreeMap<Str, u32>,
}

impl Queue {
    /// Adds a pod that waits; a pod already known keeps its place.
    pub fn add(&mut self, key: &Str, priority: i64, created: Time) {
        if self.ranks.contains_key(key) {
            return;
        }
        let rank = Rank { priority: std::cmp::Reverse(priority), created, key: key.clone() };
        self.ranks.insert(key.clone(), rank.clone());
        self.ready.insert(rank);
    }

    pub fn remove(&mut self, key: &str) {
        self.attempts.remove(key);
        if let Some(rank) = self.ranks.remove(key) {
            self.ready.remove(&rank);
            self.parked.remove(&rank);
            self.backoff.retain(|(_, waiting)| *waiting != rank);
        }
    }

    /// The next pod to place. It stays known until it is removed or refused.
    pub fn pop(&mut self, now: Time) -> Option<Str> {
        while self.backoff.first().is_some_and(|(at, _)| *at <= now) {
            if let Some((_, rank)) = self.backoff.pop_first() {
                self.ready.insert(rank);
            }
        }
        self.ready.pop_first().map(|rank| rank.key)
    }

    /// The pod was refused by these plugins. Where there was nobody to refuse it, as there is no node at all, it makes no
    /// pause once there is one.
    pub fn park(&mut self, key: &str, plugins: BTreeSet<&'static str>, now: Time) {
        if let Some(rank) = self.ranks.get(key) {
            if !plugins.is_empty() {
                *self.attempts.entry(key.into()).or_default() += 1;
            }
            self.parked.insert(rank.clone(), Parked { plugins, since: now });
        }
    }

    /// The pod could not be bound for a passing reason; it is tried again after its pause.
    pub fn delay(&mut self, key: &str, now: Time) {
        let Some(rank) = self.ranks.get(key) else { return };
        self.ready.remove(rank);
        let attempts = self.attempts.entry(key.into()).or_default();
        *attempts += 1;
        self.backoff.insert((now.plus_ms(BACKOFF.delay_ms(*attempts)), rank.clone()));
    }

    /// Something changed: whoever it may help comes back, after its pause.
    pub fn wake(&mut self, wake: Wake, now: Time) {
        let helps = |plugin: &str| match wake {
            Wake::Node => true,
            Wake::PodGone => !matches!(plugin, "NodeAffinity" | "TaintToleration" | "NodeUnschedulable" | "NodeName"),
            Wake::PodCame => matches!(plugin, "InterPodAffinity" | "PodTopologySpread"),
        };
        let woken: Vec<Rank> = self
            .parked
            .iter()
            .filter(|(_, parked)| parked.plugins.is_empty() || parked.plugins.iter().any(|plugin| helps(plugin)))
            .map(|(rank, _)| rank.clone())
            .collect();
        for rank in woken {
            self.unpark(rank, now);
        }
    }

    fn unpark(&mut self, rank: Rank, now: Time) {
        let Some(parked) = self.parked.remove(&rank) else { return };
        let attempts = self.attempts.get(&rank.key).copied().unwrap_or(0);
        let until = parked.since.plus_ms(BACKOFF.delay_ms(attempts));
        if until <= now {
            self.ready.insert(rank);
        } else {
            self.backoff.insert((until, rank));
        }
    }

    /// Brings back pods that have been refused for long.
    pub fn flush(&mut self, now: Time) {
        let old: Vec<Rank> = self
            .parked
            .iter()
            .filter(|(_, parked)| now.ms_since(parked.since) >= FORGOTTEN_MS)
            .map(|(rank, _)| rank.clone())
            .collect();
        for rank in old {
            self.unpark(rank, now);
        }
    }

    /// When [`Queue::pop`] may have something though nothing changed.
    pub fn wake_at(&self) -> Option<Time> {
        let parked = self.parked.values().map(|parked| parked.since.plus_ms(FORGOTTEN_MS)).min();
        let backoff = self.backoff.first().map(|(at, _)| *at);
        parked.into_iter().chain(backoff).min()
    }

    pub fn is_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Pods that wait, of whatever sort.
    pub fn len(&self) -> usize {
        self.ranks.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ranks.is_empty()
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
        queue.park("old", ["NodeResourcesFit"].into(), at(10));
        queue.park("new", ["NodeAffinity"].into(), at(10));
        queue.wake(Wake::PodGone, at(10));
        assert_eq!(queue.pop(at(10)), None, "it waits out its pause");
        assert_eq!(queue.pop(at(11)).as_deref(), Some("old"));
        assert_eq!(queue.pop(at(99)), None, "a pod that left does not change labels");
        queue.flush(at(10 + 301));
        assert_eq!(queue.pop(at(10 + 301)).as_deref(), Some("new"));
        queue.park("high", BTreeSet::new(), at(400));
        assert_eq!(queue.pop(at(400)), None);
        queue.wake(Wake::Node, at(400));
        assert_eq!(queue.pop(at(400)).as_deref(), Some("high"), "the first node came");
        queue.park("high", ["TaintToleration"].into(), at(400));
        queue.wake(Wake::Node, at(400).plus_ms(3));
        assert_eq!(queue.pop(at(400).plus_ms(19)), None);
        assert_eq!(
            queue.pop(at(400).plus_ms(20)).as_deref(),
            Some("high"),
            "the node lost the taint that it came with"
        );
    }
}
