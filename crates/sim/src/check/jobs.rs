//! Jobs: every success counts once, none is lost, and a job is complete when it has them all.

use std::collections::{BTreeMap, BTreeSet};

use api::core::pod_facts::Phase;
use base::Revision;
use meta::{Object, Str, Value};

use super::{Checker, Seen};
use crate::desired::facts;
use crate::exec::Author;
use crate::truth::Past;
use crate::user::{JOBS, PODS};

const INDEX: &str = "batch.kubernetes.io/job-completion-index";

/// A pod that succeeded.
struct Success {
    /// What it counts as: its index, or itself in a job without indexes.
    of: Str,
    /// Since when that could be known.
    at: Revision,
    /// It was being deleted by then: such a one counts as failed from there on.
    going: bool,
}

#[derive(Default)]
pub struct Jobs {
    /// By the job's uid and the pod's.
    succeeded: BTreeMap<Str, BTreeMap<Str, Success>>,
    counted: BTreeMap<Str, i64>,
}

fn is(job: &Value, of_type: &str) -> bool {
    let conditions = job.at(&["status", "conditions"]).items();
    conditions.iter().any(|one| one["type"].text() == of_type && one["status"].text() == "True")
}

fn has_ended(job: &Value) -> bool {
    is(job, "Complete") || is(job, "Failed")
}

impl Jobs {
    fn pod(&mut self, pod: &Object, revision: Revision) {
        let Some(owner) = pod.facts().controller().filter(|owner| owner.kind == "Job") else { return };
        let all = self.succeeded.entry(owner.uid.clone()).or_default();
        all.entry(pod.uid().into()).or_insert_with(|| {
            let index = pod.labels().get(INDEX);
            Success { of: index.unwrap_or(pod.uid()).into(), at: revision, going: pod.facts().deleting.is_some() }
        });
    }

    /// How many successes of a job these are.
    fn count(&self, job: &Object, which: impl Fn(&Success) -> bool) -> i64 {
        let all = self.succeeded.get(job.uid()).into_iter().flat_map(BTreeMap::values);
        all.filter(|success| which(success)).map(|success| &success.of).collect::<BTreeSet<_>>().len() as i64
    }

    fn job(&mut self, job: &Object, old: Option<&Object>, author: &Author) -> Result<(), String> {
        let value = job.value();
        let counted = value.at(&["status", "succeeded"]).as_int().unwrap_or(0);
        let happened = self.count(job, |_| true);
        let name = format!("job {}/{}", job.namespace(), job.name());
        if counted > happened {
            return Err(format!("{name} counts {counted} successes, {happened} happened"));
        }
        let before = self.counted.insert(job.uid().into(), counted).unwrap_or(0);
        if counted < before {
            return Err(format!("{name} counted {before} successes, now {counted}"));
        }
        let wanted = value.at(&["spec", "completions"]).as_int().unwrap_or(0);
        if is(&value, "Complete") && counted < wanted {
            return Err(format!("{name} is complete with {counted} of {wanted} successes"));
        }
        if has_ended(&value) && old.is_some_and(|old| !has_ended(&old.value())) {
            let known = self.count(job, |success| !success.going && success.at <= author.decided_on);
            if counted < known {
                return Err(format!(
                    "{name} ended with {counted} successes, though {known} were known to its controller"
                ));
            }
        }
        Ok(())
    }
}

impl Checker for Jobs {
    fn name(&self) -> &'static str {
        "jobs"
    }

    fn see(&mut self, seen: &Seen<'_>, _: &Past<'_>) -> Result<(), String> {
        let Seen::Commit { revision, changes, author, .. } = seen else { return Ok(()) };
        for change in *changes {
            let Some(new) = &change.new else { continue };
            if new.resource() == PODS && facts(new).phase == Phase::Succeeded {
                self.pod(new, *revision);
            }
            if new.resource() == JOBS {
                self.job(new, change.old.as_ref(), author)?;
            }
        }
        Ok(())
    }
}
