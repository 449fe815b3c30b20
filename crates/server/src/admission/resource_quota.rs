//! Resource quotas: what a write takes is added to the use of every quota it falls under, in the same commit.
//!
//! Two writers cannot both take the last of a quota: the quota's object is a companion with its revision as
//! precondition, and the loser looks again.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use meta::{Quantity, Resource, Status, Str, Value};

use super::{Admission, Review};
use crate::verbs::update::CompanionWrite;

const QUOTAS: Resource = Resource("resourcequotas");

type Amounts = BTreeMap<Str, Quantity>;

pub struct ResourceQuota;

impl Admission for ResourceQuota {
    fn name(&self) -> &'static str {
        "ResourceQuota"
    }

    fn validate(&self, review: &mut Review<'_>) -> Result<(), Status> {
        if review.operation == "DELETE" || review.namespace.is_empty() || !matches!(review.subresource, "" | "resize") {
            return Ok(());
        }
        let quotas: Vec<_> = review.view.list(QUOTAS, review.namespace).cloned().collect();
        if quotas.is_empty() || review.resource == QUOTAS {
            return Ok(());
        }
        let kind = review.resource;
        let (new, old) = (api::usage::of(kind, &review.object), review.old.map(|old| api::usage::of(kind, old)));
        for quota in quotas {
            let mut value = quota.value();
            // A change may lead into a quota's scope, or out of it.
            let counts = |object: &Value| api::usage::in_scope(kind, object, &value["spec"]);
            let (is_in, was_in) = (counts(&review.object), review.old.is_some_and(counts));
            let none = Amounts::new();
            let before = old.as_ref().filter(|_| was_in).unwrap_or(&none);
            let taken = changed(if is_in { &new } else { &none }, before);
            if taken.is_empty() {
                continue;
            }
            let hard = value.at(&["spec", "hard"]).clone();
            let asked: Amounts = taken
                .iter()
                .filter(|(name, _)| hard.get(name).is_some())
                .map(|(name, amount)| (name.clone(), amount.clone()))
                .collect();
            if review.operation == "CREATE" && kind.0 == "pods" {
                must_say(review, &quota_name(&value), &hard, &review.object)?;
            }
            if asked.is_empty() {
                continue;
            }
            let used = value.at(&["status", "used"]).clone();
            let (mut over, mut new_used) = (Vec::new(), used.clone());
            for (name, amount) in &asked {
                let limit = Quantity::of(&hard[name.as_str()]).unwrap_or_default();
                let before = Quantity::of(&used[name.as_str()]).unwrap_or_default();
                let after = before.plus(amount);
                if after.compare(&limit) == Ordering::Greater && amount.sign() > 0 {
                    over.push((name.clone(), amount.clone(), before, limit));
                }
                new_used.set(&[name], after);
            }
            if !over.is_empty() {
                return Err(review.forbidden(exceeded(&quota_name(&value), &over)));
            }
            if !review.dry_run {
                value.set(&["status", "used"], new_used);
                let expect = quota.revision();
                review.companions.push(CompanionWrite::Replace { resource: QUOTAS, object: value, expect });
            }
        }
        Ok(())
    }
}

fn quota_name(quota: &Value) -> String {
    quota.at(&["metadata", "name"]).text().to_owned()
}

/// What an update takes more than before, or gives back.
fn changed(new: &Amounts, old: &Amounts) -> Amounts {
    let names = new.keys().chain(old.keys()).cloned();
    names
        .map(|name| {
            let none = Quantity::default();
            let difference = new.get(&name).unwrap_or(&none).minus(old.get(&name).unwrap_or(&none));
            (name, difference)
        })
        .filter(|(_, difference)| !difference.is_zero())
        .collect()
}

/// `exceeded quota: q, requested: a=1, used: a=2, limited: a=2`.
fn exceeded(name: &str, over: &[(Str, Quantity, Quantity, Quantity)]) -> String {
    let list = |pick: fn(&(Str, Quantity, Quantity, Quantity)) -> &Quantity| {
        over.iter().map(|row| format!("{}={}", row.0, pick(row))).collect::<Vec<_>>().join(",")
    };
    format!(
        "exceeded quota: {name}, requested: {}, used: {}, limited: {}",
        list(|row| &row.1),
        list(|row| &row.2),
        list(|row| &row.3)
    )
}

/// A quota on compute resources demands that every container says what it takes.
fn must_say(review: &Review<'_>, quota: &str, hard: &Value, pod: &Value) -> Result<(), Status> {
    let mut missing: Vec<String> = Vec::new();
    for (name, _) in hard.entries().iter() {
        let (kind, resource) = match name {
            "cpu" | "memory" | "ephemeral-storage" => ("requests", name),
            _ => match name.split_once('.') {
                Some(("limits", resource)) => ("limits", resource),
                Some(("requests", resource @ ("cpu" | "memory" | "ephemeral-storage"))) => ("requests", resource),
                _ => continue,
            },
        };
        if pod.at(&["spec", "resources", kind]).get(resource).is_some() {
            continue;
        }
        let lists = ["containers", "initContainers"].iter().flat_map(|list| pod["spec"][*list].items());
        let silent: Vec<&str> = lists
            .filter(|container| container["resources"][kind].get(resource).is_none())
            .map(|container| container["name"].text())
            .collect();
        if !silent.is_empty() {
            missing.push(format!("{name} for: {}", silent.join(",")));
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    Err(review.forbidden(format!("failed quota: {quota}: must specify {}", missing.join("; "))))
}
