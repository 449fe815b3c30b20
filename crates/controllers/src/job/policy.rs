//! What failed pods and finished indexes mean for a job: failure policy, limits per index, success policy.

use std::collections::BTreeSet;
use std::fmt;

use meta::Value;

use super::{JobPod, failures_of};

/// A set of indexes, written `1,3-5`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Indexes(BTreeSet<i64>);

/// No set of indexes is read beyond this many.
const INDEXES_MAX: i64 = 1_000_000;

impl Indexes {
    pub fn parse(text: &str) -> Indexes {
        let mut set = BTreeSet::new();
        for part in text.split(',') {
            let (from, to) = part.split_once('-').unwrap_or((part, part));
            if let (Ok(from), Ok(to)) = (from.parse::<i64>(), to.parse::<i64>())
                && to - from < INDEXES_MAX
            {
                set.extend(from..=to);
            }
        }
        Indexes(set)
    }

    pub fn add(&mut self, index: i64) {
        self.0.insert(index);
    }

    pub fn contains(&self, index: i64) -> bool {
        self.0.contains(&index)
    }

    pub fn len(&self) -> i64 {
        i64::try_from(self.0.len()).unwrap_or(i64::MAX)
    }
}

impl fmt::Display for Indexes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0.iter().copied().peekable();
        let mut first = true;
        while let Some(from) = rest.next() {
            let mut to = from;
            while rest.peek() == Some(&(to + 1)) {
                to += 1;
                rest.next();
            }
            if !first {
                f.write_str(",")?;
            }
            first = false;
            match to - from {
                0 => write!(f, "{from}")?,
                1 => write!(f, "{from},{to}")?,
                _ => write!(f, "{from}-{to}")?,
            }
        }
        Ok(())
    }
}

/// What the failed pods that are there mean.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    /// The job fails, for this reason.
    pub fail_job: Option<String>,
    /// Indexes that failed for good.
    pub failed_indexes: Indexes,
}

pub fn verdict(job: &Value, pods: &[JobPod]) -> Verdict {
    let mut verdict = Verdict::default();
    let limit = job["spec"]["backoffLimitPerIndex"].as_int();
    for pod in pods.iter().filter(|pod| pod.failed()) {
        let action = action_of(job, pod);
        if action == Some("FailJob") {
            verdict.fail_job.get_or_insert_with(|| {
                format!("Pod {}/{} failed in a way that fails the job", pod.object.namespace(), pod.object.name())
            });
        }
        if let Some(index) = pod.index
            && let Some(limit) = limit
            && (action == Some("FailIndex") || failures_of(pod) >= limit)
        {
            verdict.failed_indexes.add(index);
        }
    }
    verdict
}

/// Whether a failure does not count.
pub fn is_ignored(job: &Value, pod: &JobPod) -> bool {
    pod.failed() && action_of(job, pod) == Some("Ignore")
}

/// The action of the first rule of the pod failure policy that a failed pod meets.
fn action_of<'a>(job: &'a Value, pod: &JobPod) -> Option<&'a str> {
    let rules = job["spec"]["podFailurePolicy"]["rules"].items();
    rules.iter().find(|rule| meets(rule, &pod.value["status"])).map(|rule| rule["action"].text())
}

fn meets(rule: &Value, status: &Value) -> bool {
    let codes = &rule["onExitCodes"];
    if !codes.is_null() {
        let containers = status["initContainerStatuses"].items().iter().chain(status["containerStatuses"].items());
        return containers
            .filter(|one| codes["containerName"].is_null() || codes["containerName"] == one["name"])
            .filter_map(|one| one.at(&["state", "terminated", "exitCode"]).as_int())
            .filter(|code| *code != 0)
            .any(|code| {
                let listed = codes["values"].items().iter().any(|value| value.as_int() == Some(code));
                listed == (codes["operator"].text() == "In")
            });
    }
    rule["onPodConditions"].items().iter().any(|wanted| {
        status["conditions"].items().iter().any(|one| {
            let state = if wanted["status"].is_null() { "True" } else { wanted["status"].text() };
            one["type"] == wanted["type"] && one["status"].text() == state
        })
    })
}

/// Whether a rule of the success policy holds.
pub fn success(spec: &Value, done: &Indexes) -> bool {
    spec["successPolicy"]["rules"].items().iter().any(|rule| {
        let among = &rule["succeededIndexes"];
        let count = rule["succeededCount"].as_int();
        if among.is_null() {
            return count.is_some_and(|count| done.len() >= count);
        }
        let among = Indexes::parse(among.text());
        let reached = among.0.intersection(&done.0).count() as i64;
        reached >= count.unwrap_or(among.len())
    })
}

#[cfg(test)]
mod tests {
    use super::Indexes;

    #[test]
    fn indexes_are_written_in_ranges() {
        for text in ["", "0", "0,1", "0-2", "1,3-5,9", "1,2,4"] {
            assert_eq!(Indexes::parse(text).to_string(), text);
        }
        assert_eq!(Indexes::parse("1-3,x,7").len(), 4);
    }
}
