//! Watches: whatever a client's mirror shows at a revision is what the store had at that revision, no more, no less.

use std::collections::BTreeMap;

use cache::{Cache, View};
use meta::Resource;

use super::{Checker, Seen};
use crate::desired::facts;
use crate::truth::Past;

const PODS: Resource = Resource("pods");
/// Not told to the truth.
const SECRETS: Resource = Resource("secrets");
/// Every so often all objects are compared, otherwise their number.
const FULL_EVERY: u64 = 16;

#[derive(Default)]
pub struct Watch {
    looks: BTreeMap<String, u64>,
}

impl Checker for Watch {
    fn name(&self) -> &'static str {
        "watch"
    }

    fn see(&mut self, seen: &Seen<'_>, past: &Past<'_>) -> Result<(), String> {
        let Seen::Mirror { client, cache, whole } = seen else { return Ok(()) };
        let looks = self.looks.entry((*client).to_owned()).or_default();
        *looks += 1;
        let full = looks.is_multiple_of(FULL_EVERY);
        if *whole { check_whole(client, cache, past, full) } else { check_pods(client, cache, past) }
    }
}

fn check_whole(client: &str, cache: &Cache, past: &Past<'_>, full: bool) -> Result<(), String> {
    let Some(truth) = past.at(cache.revision()) else { return Ok(()) };
    let view = cache.view();
    for resource in truth.resources().chain(view.resources()).filter(|resource| *resource != SECRETS) {
        if truth.count(resource) != view.count(resource) || full && !same(truth, &view, resource) {
            return Err(format!(
                "{client} has {} {resource} at revision {}, the store has {}, or others",
                view.count(resource),
                cache.revision(),
                truth.count(resource)
            ));
        }
    }
    Ok(())
}

fn same(one: &View, two: &View, resource: Resource) -> bool {
    let object = |object: &meta::Object| (object.uid().to_owned(), object.revision());
    one.list(resource, "").map(object).eq(two.list(resource, "").map(object))
}

/// An agent's pods are those of its node, as of where its watch is.
fn check_pods(client: &str, cache: &Cache, past: &Past<'_>) -> Result<(), String> {
    let Some(node) = client.strip_prefix("agent ") else { return Ok(()) };
    let Some(truth) = past.at(cache.known(PODS)) else { return Ok(()) };
    let view = cache.view();
    let object = |object: &meta::Object| (object.uid().to_owned(), object.revision());
    let wanted: Vec<_> = truth.list(PODS, "").filter(|pod| facts(pod).node == node).map(object).collect();
    let found: Vec<_> = view.list(PODS, "").map(object).collect();
    if wanted == found {
        return Ok(());
    }
    Err(format!("{client} has pods {found:?} at revision {}, the store has {wanted:?}", cache.known(PODS)))
}
