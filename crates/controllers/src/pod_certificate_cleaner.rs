//! Requests for certificates of pods are forgotten some minutes after they were made: who waits for one has it by then, or
//! asks anew.

use cache::{Event, View};
use meta::{Resource, Str};
use reconcile::{Context, Outcome, Reconciler};

use crate::common::*;

/// As long as upstream keeps them.
const KEPT_MS: u64 = 15 * 60_000;

pub struct PodCertificateCleaner;

impl Reconciler for PodCertificateCleaner {
    fn name(&self) -> &'static str {
        "podcertificaterequestcleaner"
    }

    fn watches(&self) -> &[Resource] {
        &[]
    }

    fn lives(&self) -> &[Resource] {
        &[POD_CERTIFICATE_REQUESTS]
    }

    fn keys(&self, _: Resource, event: &Event, _: &View, out: &mut Vec<Str>) {
        out.extend(event.new.iter().map(key_of));
    }

    fn reconcile(&self, key: &str, view: &View, cx: &mut Context) -> Outcome {
        let (namespace, name) = split(key);
        let found = view.one(POD_CERTIFICATE_REQUESTS, namespace, name);
        let Some(request) = found.filter(|request| !is_deleting(request)) else { return Outcome::Settled };
        let until = request.facts().created.plus_ms(KEPT_MS);
        if cx.now < until {
            return Outcome::Again(until);
        }
        delete(cx, request, "");
        Outcome::Settled
    }
}
