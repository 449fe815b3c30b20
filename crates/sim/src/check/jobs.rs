//! Jobs: every success counts once, none is lost, and a job is complete when it has them all.

use std::collections::{BTreeMap, BTreeSet};

use api::core::pod_facts::Phase;
use meta::{Object, Str};

use super::{Checker, Seen};
use crate::desired::facts;
use crate::truth::Past;
use crate::user::{JOBS, PODS};

#[derive(Default)]
pub struct Jobs {
    /// By the job's uid, its pods that succeeded.
    succeeded: BTreeMap<Str, BTreeSet<Str>>,
    counted: BTreeMap<Str, i64>,
}

impl Jobs {
    fn job(&mut self, job: &Object) -> Result<(), String> {
        let value = job.value();
        let counted = value.at(&["status", "succeeded"]).as_int().unwrap_or(0);
        let happened = self.succeeded.get(job.uid()).map_or(0, |pods| pods.len() as i64);
        let name = format!("job {}/{}", job.namespace(), job.name());
        if counted > happened {
            return Err(format!("{name} counts {counted} successes, {happened} pods succeeded"));
        }
        let before = self.counted.insert(job.uid().into(), counted).unwrap_or(0);
        if counted < before {
            return Err(format!("{name} counted {before} successes, now {counted}"));
        }
        let conditions = value.at(&["status", "conditions"]).items();
        let complete = conditions.iter().any(|one| one["type"].text() == "Complete" && one["status"].text() == "True");
        let wanted = value.at(&["spec", "completions"]).as_int().unwrap_or(0);
        if complete && counted < wanted {
            return Err(format!("{name} is complete with {counted} of {wanted} successes"));
        }
        Ok(())
    }
}

impl Checker for Jobs {
    fn name(&self) -> &'static str {
        "jobs"
    }

    fn see(&mut self, seen: &Seen<'_>, _: &Past<'_>) -> Result<(), String> {
        let Seen::Commit { changes, .. } = seen else { return Ok(()) };
        for new in changes.iter().filter_map(|change| change.new.as_ref()) {
            if new.resource() == PODS
                && facts(new).phase == Phase::Succeeded
                && let Some(owner) = new.facts().controller().filter(|owner| owner.kind == "Job")
            {
                self.succeeded.entry(owner.uid.clone()).or_default().insert(new.uid().into());
            }
            if new.resource() == JOBS {
                self.job(new)?;
            }
        }
        Ok(())
    }
}
