//! How many replicas each set gets.

use meta::Value;
use meta::quantity::int_or_percent;

use super::{DESIRED, Look, MAX, Set};

/// `maxSurge` and `maxUnavailable` as numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub surge: i64,
    pub unavailable: i64,
}

impl Limits {
    /// Both zero would never move, so then one may be unavailable.
    pub fn of(strategy: &Value, replicas: i64) -> Limits {
        if strategy["type"].text() == "Recreate" {
            return Limits { surge: 0, unavailable: 0 };
        }
        let rolling = &strategy["rollingUpdate"];
        let surge = int_or_percent(&rolling["maxSurge"], replicas, true).unwrap_or(0).max(0);
        let unavailable = int_or_percent(&rolling["maxUnavailable"], replicas, false).unwrap_or(0).max(0);
        match (surge, unavailable) {
            (0, 0) => Limits { surge: 0, unavailable: 1 },
            (surge, unavailable) => Limits { surge, unavailable: unavailable.min(replicas) },
        }
    }
}

/// How many replicas the new set, which has `now`, may have at this moment.
pub fn new_replicas(look: &Look, now: i64) -> i64 {
    if now >= look.replicas {
        return look.replicas;
    }
    let room = look.replicas + look.limits.surge - look.total();
    if room <= 0 { now } else { now + room.min(look.replicas - now) }
}

/// The old sets that may shrink, and to what: pods that do not serve go first.
pub fn old_replicas(look: &Look) -> Vec<(usize, i64)> {
    let Some(new) = &look.new else { return Vec::new() };
    let old: i64 = look.old.iter().map(|set| set.replicas).sum();
    if old == 0 {
        return Vec::new();
    }
    let min_available = look.replicas - look.limits.unavailable;
    let max_down = look.total() - min_available - (new.replicas - new.available());
    if max_down <= 0 {
        return Vec::new();
    }
    let mut targets: Vec<i64> = look.old.iter().map(|set| set.replicas).collect();
    let mut down = 0;
    for (at, set) in look.old.iter().enumerate() {
        let useless = (set.replicas - set.available()).max(0).min(max_down - down);
        targets[at] -= useless;
        down += useless;
    }
    let available: i64 = look.all().map(Set::available).sum();
    let mut spare = (available - min_available).max(0);
    for target in &mut targets {
        let part = spare.min(*target);
        *target -= part;
        spare -= part;
    }
    targets.into_iter().enumerate().filter(|(at, target)| look.old[*at].replicas != *target).collect()
}

/// What each set gets when only `replicas` changed; the new set has the index after the last old one.
pub fn shares(look: &Look) -> Vec<(usize, i64)> {
    let mut sets: Vec<(usize, &Set)> = look.all().enumerate().collect();
    let active: Vec<(usize, &Set)> = sets.iter().copied().filter(|(_, set)| set.replicas > 0).collect();
    let only = match active.as_slice() {
        [] => look.new.as_ref().map(|set| (look.old.len(), set)).or_else(|| sets.pop()),
        [one] => Some(*one),
        _ => None,
    };
    if let Some((at, _)) = only {
        return vec![(at, look.replicas)];
    }
    if let Some(new) = &look.new
        && new.replicas == look.replicas
        && new.available() == look.replicas
        && new.number(DESIRED) == Some(look.replicas)
    {
        return active.iter().filter(|(at, _)| *at != look.old.len()).map(|(at, _)| (*at, 0)).collect();
    }
    if look.is_recreate() {
        return Vec::new();
    }
    proportional(look, active)
}

fn proportional(look: &Look, mut active: Vec<(usize, &Set)>) -> Vec<(usize, i64)> {
    let allowed = if look.replicas > 0 { look.replicas + look.limits.surge } else { 0 };
    let to_add = allowed - active.iter().map(|(_, set)| set.replicas).sum::<i64>();
    let age = |set: &Set| set.object.facts().created;
    active.sort_by(|(_, a), (_, b)| {
        let by_age = if to_add > 0 { age(b).cmp(&age(a)) } else { age(a).cmp(&age(b)) };
        b.replicas.cmp(&a.replicas).then(by_age)
    });
    let mut added = 0;
    let mut targets: Vec<(usize, i64)> = Vec::new();
    for (at, set) in &active {
        let share = if to_add == 0 || set.replicas == 0 { 0 } else { share(look, set, to_add, added) };
        added += share;
        targets.push((*at, set.replicas + share));
    }
    if to_add != 0
        && let Some(first) = targets.first_mut()
    {
        first.1 = (first.1 + to_add - added).max(0);
    }
    targets
}

/// A set's part of what is added (or, negative, removed).
fn share(look: &Look, set: &Set, to_add: i64, added: i64) -> i64 {
    let fraction = if look.replicas == 0 {
        -set.replicas
    } else {
        let before = match set.number(MAX) {
            Some(max) if max > 0 => max,
            _ => look.value["status"]["replicas"].as_int().unwrap_or(0),
        };
        if before == 0 {
            return 0;
        }
        let max = look.replicas + look.limits.surge;
        (set.replicas as f64 * max as f64 / before as f64).round() as i64 - set.replicas
    };
    let left = to_add - added;
    if to_add > 0 { fraction.min(left) } else { fraction.max(left) }
}
