//! CronJobs: jobs at the times of a schedule.

use std::str::FromStr;

use base::Time;
use cache::{Event, View};
use croner::Cron;
use meta::{Object, Resource, Str, Value, json};
use reconcile::{Context, Effect, Outcome, Reconciler};

use crate::common::*;

const NAME: &str = "cronjob-controller";
const CRON_JOB: Gvk = Gvk { api_version: "batch/v1", kind: "CronJob" };
const SCHEDULED_AT: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";
/// Missed times that are looked through before the schedule counts as stuck.
const MISSED_MAX: usize = 100;

pub struct CronJobs;

impl Reconciler for CronJobs {
    fn name(&self) -> &'static str {
        NAME
    }

    fn watches(&self) -> &[Resource] {
        &[CRON_JOBS, JOBS]
    }

    fn keys(&self, resource: Resource, event: &Event, _: &View, out: &mut Vec<Str>) {
        if resource == CRON_JOBS {
            out.extend(event.new.iter().map(key_of));
        } else {
            owner_keys(event, "CronJob", out);
        }
    }

    fn reconcile(&self, key: &str, view: &View, cx: &mut Context) -> Outcome {
        let (namespace, name) = split(key);
        let Some(object) = view.one(CRON_JOBS, namespace, name) else { return Outcome::Settled };
        let value = object.value();
        let jobs: Vec<Object> =
            view.owned(JOBS, object.uid()).filter(|job| controlled_by(job, object.uid())).cloned().collect();
        let mut status = value["status"].clone();
        status.make_map();
        look_after(object, &value, &jobs, &mut status, cx);
        let next = if is_deleting(object) || value["spec"]["suspend"].is_true() {
            None
        } else {
            schedule(object, &value, &jobs, &mut status, cx)
        };
        write_status(cx, object, &value, status);
        next.map_or(Outcome::Settled, Outcome::Again)
    }
}

/// How a job ended, if it did.
fn ended(job: &Value) -> Option<&str> {
    ["Complete", "Failed"].into_iter().find(|of_type| condition(&job["status"], of_type)["status"].text() == "True")
}

/// Keeps the list of active jobs, and removes finished ones beyond the limits.
fn look_after(object: &Object, value: &Value, jobs: &[Object], status: &mut Value, cx: &mut Context) {
    let (mut active, mut good, mut bad) = (Vec::new(), Vec::new(), Vec::new());
    let known: Vec<&str> = value["status"]["active"].items().iter().map(|one| one["uid"].text()).collect();
    for job in jobs {
        let job_value = job.value();
        let Some(how) = ended(&job_value) else {
            active.push(json!({
                "apiVersion": "batch/v1", "kind": "Job", "name": (job.name()), "namespace": (job.namespace()),
                "uid": (job.uid()), "resourceVersion": (job.revision().to_string()),
            }));
            continue;
        };
        if known.contains(&job.uid()) {
            let message = format!("Saw completed job: {}, condition: {how}", job.name());
            record(cx, NAME, CRON_JOB, object, "Normal", "SawCompletedJob", message);
            if how == "Complete" && !job_value["status"]["completionTime"].is_null() {
                status.set(&["lastSuccessfulTime"], job_value["status"]["completionTime"].clone());
            }
        }
        let started = Time::parse(job_value["status"]["startTime"].text()).unwrap_or(job.facts().created);
        if how == "Complete" { &mut good } else { &mut bad }.push((started, job));
    }
    for (mut list, field, default) in [(good, "successfulJobsHistoryLimit", 3), (bad, "failedJobsHistoryLimit", 1)] {
        let limit = usize::try_from(value["spec"][field].as_int().unwrap_or(default)).unwrap_or(0);
        list.sort_by(|(a, job_a), (b, job_b)| (a, job_a.name()).cmp(&(b, job_b.name())));
        let excess = list.len().saturating_sub(limit);
        for (_, job) in list.into_iter().take(excess).filter(|(_, job)| !is_deleting(job)) {
            delete(cx, job, "Background");
            record(cx, NAME, CRON_JOB, object, "Normal", "SuccessfulDelete", format!("Deleted job {}", job.name()));
        }
    }
    let is_there = |uid: &str| jobs.iter().any(|job| job.uid() == uid);
    for missing in value["status"]["active"].items().iter().filter(|one| !is_there(one["uid"].text())) {
        let message = format!("Active job went missing: {}", missing["name"].text());
        record(cx, NAME, CRON_JOB, object, "Normal", "MissingJob", message);
    }
    // References keep the revision they were first seen at, so that a job's progress writes nothing here.
    for reference in &mut active {
        let same = value["status"]["active"].items().iter().find(|one| one["uid"] == reference["uid"]);
        if let Some(same) = same {
            *reference = same.clone();
        }
    }
    if active.is_empty() {
        status.take(&["active"]);
    } else {
        status.set(&["active"], Value::from(active));
    }
}

/// Starts what is due; returns when to look again.
fn schedule(object: &Object, value: &Value, jobs: &[Object], status: &mut Value, cx: &mut Context) -> Option<Time> {
    let spec = &value["spec"];
    let plan = match Plan::of(spec) {
        Ok(plan) => plan,
        Err(why) => {
            record(cx, NAME, CRON_JOB, object, "Warning", "UnparseableSchedule", why);
            return None;
        }
    };
    let deadline = spec["startingDeadlineSeconds"].as_int();
    let mut since = Time::parse(status["lastScheduleTime"].text()).unwrap_or(object.facts().created);
    if let Some(seconds) = deadline {
        since = since.max(Time(cx.now.0 - seconds.saturating_mul(1_000_000)));
    }
    let next = plan.next(cx.now);
    let Some((due, missed)) = plan.latest(since, cx.now) else { return next };
    if missed > MISSED_MAX {
        let message = format!("More than {MISSED_MAX} start times were missed; check the clock or set a deadline");
        record(cx, NAME, CRON_JOB, object, "Warning", "TooManyMissedTimes", message);
    }
    if deadline.is_some_and(|seconds| due.plus_ms(seconds_ms(seconds)) < cx.now) {
        let message = format!("Missed scheduled time to start a job: {due}");
        record(cx, NAME, CRON_JOB, object, "Warning", "MissSchedule", message);
        return next;
    }
    let name = format!("{}-{}", object.name(), due.seconds() / 60);
    let running: Vec<&Object> = jobs.iter().filter(|job| ended(&job.value()).is_none()).collect();
    if jobs.iter().any(|job| job.name() == name) {
        status.set(&["lastScheduleTime"], due.rfc3339());
        return next;
    }
    match spec["concurrencyPolicy"].text() {
        "Forbid" if !running.is_empty() => {
            let message = "Not starting job because prior execution is running and concurrency policy is Forbid";
            record(cx, NAME, CRON_JOB, object, "Normal", "JobAlreadyActive", message.to_owned());
            return next;
        }
        "Replace" => {
            for job in running.iter().filter(|job| !is_deleting(job)) {
                delete(cx, job, "Background");
                let message = format!("Deleted job {}", job.name());
                record(cx, NAME, CRON_JOB, object, "Normal", "SuccessfulDelete", message);
            }
        }
        _ => {}
    }
    cx.push(Effect::Create { resource: JOBS, object: job_of(object, spec, &name, due) });
    record(cx, NAME, CRON_JOB, object, "Normal", "SuccessfulCreate", format!("Created job {name}"));
    next
}

fn job_of(object: &Object, spec: &Value, name: &str, due: Time) -> Value {
    let template = &spec["jobTemplate"];
    let mut job = json!({
        "apiVersion": "batch/v1", "kind": "Job",
        "metadata": {
            "name": name, "namespace": (object.namespace()), "ownerReferences": [(reference(CRON_JOB, object))],
        },
        "spec": (template["spec"].clone()),
    });
    for field in ["labels", "annotations"] {
        if let Some(known) = template["metadata"].get(field) {
            job.set(&["metadata", field], known.clone());
        }
    }
    job.set(&["metadata", "annotations", SCHEDULED_AT], due.rfc3339());
    job
}

/// A schedule in its time zone.
struct Plan {
    cron: Cron,
    zone: jiff::tz::TimeZone,
    /// For `@every`, microseconds.
    every: Option<i64>,
}

impl Plan {
    fn of(spec: &Value) -> Result<Plan, String> {
        let mut schedule = spec["schedule"].text().trim();
        let mut zone = spec["timeZone"].text();
        if let Some((prefix, rest)) = schedule.split_once(' ')
            && let Some(named) = prefix.strip_prefix("TZ=").or_else(|| prefix.strip_prefix("CRON_TZ="))
        {
            (zone, schedule) = (named, rest.trim());
        }
        let zone = match zone {
            "" => jiff::tz::TimeZone::UTC,
            zone => jiff::tz::TimeZone::get(zone).map_err(|error| format!("time zone {zone}: {error}"))?,
        };
        let every = match schedule.strip_prefix("@every ") {
            Some(text) => Some(
                text.parse::<jiff::SignedDuration>()
                    .ok()
                    .and_then(|every| i64::try_from(every.as_micros()).ok())
                    .filter(|every| *every > 0)
                    .ok_or_else(|| format!("schedule {schedule} has no duration"))?,
            ),
            None => None,
        };
        let text = if every.is_some() { "* * * * *" } else { schedule };
        let cron = Cron::from_str(text).map_err(|error| format!("schedule {schedule}: {error}"))?;
        Ok(Plan { cron, zone, every })
    }

    /// The first time after `after`.
    fn next(&self, after: Time) -> Option<Time> {
        if let Some(every) = self.every {
            return Some(Time((after.0 / every + 1) * every));
        }
        let zoned = jiff::Timestamp::from_microsecond(after.0).ok()?.to_zoned(self.zone.clone());
        let next = self.cron.find_next_occurrence(&zoned, false).ok()?;
        Some(Time(next.timestamp().as_microsecond()))
    }

    /// The last time after `since` and not after `now`, and how many there were (at most one more than the limit).
    fn latest(&self, since: Time, now: Time) -> Option<(Time, usize)> {
        let (mut latest, mut missed, mut at) = (None, 0, since);
        while let Some(next) = self.next(at).filter(|next| *next <= now) {
            latest = Some(next);
            missed += 1;
            at = next;
            if missed > MISSED_MAX {
                // So many were missed that only the last minutes matter.
                at = at.max(Time(now.0 - 3_600_000_000));
            }
            if missed > 10 * MISSED_MAX {
                break;
            }
        }
        latest.map(|latest| (latest, missed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_follow_the_zone() {
        for (schedule, zone, after, next) in [
            ("*/5 * * * *", "", "2026-01-01T00:01:00Z", "2026-01-01T00:05:00Z"),
            ("0 9 * * *", "Europe/Berlin", "2026-06-30T23:00:00Z", "2026-07-01T07:00:00Z"),
            ("@daily", "", "2026-06-30T23:00:00Z", "2026-07-01T00:00:00Z"),
            ("30 3 * * 1", "", "2026-11-22T00:00:00Z", "2026-11-23T03:30:00Z"),
        ] {
            let plan = Plan::of(&json!({"schedule": schedule, "timeZone": zone})).unwrap();
            let after = Time::parse(after).unwrap();
            assert_eq!(plan.next(after).map(Time::rfc3339).as_deref(), Some(next), "{schedule}");
        }
        assert!(Plan::of(&json!({"schedule": "x"})).is_err());
        assert!(Plan::of(&json!({"schedule": "* * * * *", "timeZone": "No/Where"})).is_err());
    }
}
