//! Removes finished jobs whose time to live is over.

use base::Time;
use cache::{Event, View};
use meta::{Resource, Str};
use reconcile::{Context, Outcome, Reconciler};

use crate::common::*;

pub struct TtlAfterFinished;

impl Reconciler for TtlAfterFinished {
    fn name(&self) -> &'static str {
        "ttl-after-finished-controller"
    }

    fn watches(&self) -> &[Resource] {
        &[JOBS]
    }

    fn keys(&self, _: Resource, event: &Event, _: &View, out: &mut Vec<Str>) {
        out.extend(event.new.iter().map(key_of));
    }

    fn reconcile(&self, key: &str, view: &View, cx: &mut Context) -> Outcome {
        let (namespace, name) = split(key);
        let Some(job) = view.one(JOBS, namespace, name).filter(|job| !is_deleting(job)) else {
            return Outcome::Settled;
        };
        let value = job.value();
        let Some(seconds) = value["spec"]["ttlSecondsAfterFinished"].as_int() else { return Outcome::Settled };
        let ended = ["Complete", "Failed"].into_iter().map(|of_type| condition(&value["status"], of_type));
        let ended = ended.filter(|one| one["status"].text() == "True");
        let Some(at) = ended.filter_map(|one| Time::parse(one["lastTransitionTime"].text())).max() else {
            return Outcome::Settled;
        };
        let until = at.plus_ms(seconds_ms(seconds));
        if until > cx.now {
            return Outcome::Again(until);
        }
        delete(cx, job, "Foreground");
        Outcome::Settled
    }
}
