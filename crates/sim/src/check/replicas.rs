//! Replicas: a controller never makes more pods than are asked for and the stated surge, and never takes a deployment
//! below its stated minimum by its own doing.

use std::collections::BTreeMap;

use base::Time;
use cache::View;
use meta::quantity::int_or_percent;
use meta::{Object, Resource, Str};

use super::{Checker, Seen};
use crate::desired::facts;
use crate::truth::Past;
use crate::user::{DEPLOYMENTS, PODS, REPLICA_SETS};

/// A write may rest on what was asked for this long ago.
const LATE_MS: u64 = 120_000;

/// Least and most that were asked for, over time.
type Asked = Vec<(Time, i64, i64)>;

#[derive(Default)]
pub struct Replicas {
    asked: BTreeMap<Str, Asked>,
}

/// The fewest and the most pods that an object states.
fn limits(object: &Object) -> (i64, i64) {
    let value = object.value();
    let spec = &value["spec"];
    let replicas = spec["replicas"].as_int().unwrap_or(1);
    if object.resource() == REPLICA_SETS {
        return (replicas, replicas);
    }
    let strategy = &spec["strategy"];
    if strategy["type"].text() == "Recreate" {
        return (0, replicas);
    }
    let of = |field: &str, up| int_or_percent(&strategy["rollingUpdate"][field], replicas, up).unwrap_or(0);
    let (surge, unavailable) = (of("maxSurge", true), of("maxUnavailable", false));
    let unavailable = if surge == 0 && unavailable == 0 { 1 } else { unavailable };
    ((replicas - unavailable).max(0), replicas + surge)
}

/// The sets of a deployment: pods asked for, and those that serve.
fn sets(view: &View, owner: &meta::Owner) -> String {
    let one = |set: &Object| {
        let available = set.value().at(&["status", "availableReplicas"]).as_int().unwrap_or(0);
        format!("{} {} of which {available} serve", set.name(), limits(set).1)
    };
    view.owned(REPLICA_SETS, &owner.uid).map(one).collect::<Vec<_>>().join(", ")
}

impl Replicas {
    fn note(&mut self, object: &Object, now: Time) {
        let (least, most) = limits(object);
        self.asked.entry(object.uid().into()).or_default().push((now, least, most));
    }

    /// The least and the most that may have been read lately.
    fn lately(&self, uid: &str, now: Time) -> Option<(i64, i64)> {
        let asked = self.asked.get(uid)?;
        let from = asked.partition_point(|(at, _, _)| now.ms_since(*at) > LATE_MS).saturating_sub(1);
        let recent = &asked[from..];
        Some((recent.iter().map(|row| row.1).min()?, recent.iter().map(|row| row.2).max()?))
    }

    /// A pod was made for a set.
    fn check_pod(&self, pod: &Object, after: &View, now: Time) -> Result<(), String> {
        let Some(owner) = pod.facts().controller().filter(|owner| owner.kind == "ReplicaSet") else { return Ok(()) };
        let active = after.owned(PODS, &owner.uid).filter(|pod| {
            pod.facts().controller().is_some_and(|one| one.uid == owner.uid)
                && pod.facts().deleting.is_none()
                && !facts(pod).phase.is_final()
        });
        let active = active.count() as i64;
        match self.lately(&owner.uid, now) {
            Some((_, most)) if active > most => Err(format!(
                "replica set {}/{} has {active} pods by its controller's doing, {most} were asked for",
                pod.namespace(),
                owner.name
            )),
            _ => Ok(()),
        }
    }

    /// A deployment's set was made or resized.
    fn check_set(
        &self,
        set: &Object,
        old: Option<&Object>,
        before: &View,
        after: &View,
        now: Time,
    ) -> Result<(), String> {
        let Some(owner) = set.facts().controller().filter(|owner| owner.kind == "Deployment") else { return Ok(()) };
        let sum = |view: &View| -> i64 { view.owned(REPLICA_SETS, &owner.uid).map(|set| limits(set).1).sum() };
        let (was, is) = (sum(before), sum(after));
        // What was merely taken over is no doing of the controller's.
        let (had, has) = (old.map_or(0, |old| limits(old).1), limits(set).1);
        let Some((least, most)) = self.lately(&owner.uid, now) else { return Ok(()) };
        let name = format!("deployment {}/{}", set.namespace(), owner.name);
        if has > had && is > was && is > most {
            return Err(format!("{name} asks for {is} pods, its limit with surge is {most}: {}", sets(before, owner)));
        }
        if has < had && is < was && is < least {
            return Err(format!("{name} asks for {is} pods only, its least is {least}: {}", sets(before, owner)));
        }
        Ok(())
    }
}

impl Checker for Replicas {
    fn name(&self) -> &'static str {
        "replicas"
    }

    fn see(&mut self, seen: &Seen<'_>, past: &Past<'_>) -> Result<(), String> {
        let Seen::Commit { changes, author, before, after, .. } = seen else { return Ok(()) };
        for change in *changes {
            let Some(new) = &change.new else { continue };
            let resource: Resource = new.resource();
            if resource == REPLICA_SETS || resource == DEPLOYMENTS {
                self.note(new, past.now);
            }
            if resource == PODS && change.old.is_none() && author.who.ends_with(":replicaset-controller") {
                self.check_pod(new, after, past.now)?;
            }
            if resource == REPLICA_SETS && author.who.ends_with(":deployment-controller") {
                self.check_set(new, change.old.as_ref(), before, after, past.now)?;
            }
        }
        Ok(())
    }
}
