//! CronJobs: jobs by the clock.

use base::Time;
use meta::{At, Change, Column, Errors, Rules, Value};

use super::{job, schedule};
use crate::apps::{selector_text, template_defaults};
use crate::check;
use crate::columns::{age, column, since};
use crate::core::pod_cells::containers_and_images;

/// Longest name, so that the names of its jobs fit.
const NAME_MAX: usize = 52;

pub struct CronJob {
    columns: Vec<Column>,
}

impl CronJob {
    pub fn new() -> CronJob {
        CronJob {
            columns: vec![
                column("Schedule", "string", 0),
                column("Timezone", "string", 0),
                column("Suspend", "boolean", 0),
                column("Active", "integer", 0),
                column("Last Schedule", "string", 0),
                column("Age", "string", 0),
                column("Containers", "string", 1),
                column("Images", "string", 1),
                column("Selector", "string", 1),
            ],
        }
    }
}

impl Default for CronJob {
    fn default() -> CronJob {
        CronJob::new()
    }
}

impl Rules for CronJob {
    fn defaults(&self, object: &mut Value) {
        let spec = object.make(&["spec"]);
        if spec["concurrencyPolicy"].text().is_empty() {
            spec.set(&["concurrencyPolicy"], "Allow");
        }
        spec.default("suspend", false);
        spec.default("successfulJobsHistoryLimit", 3i64);
        spec.default("failedJobsHistoryLimit", 1i64);
        template_defaults(spec.make(&["jobTemplate", "spec", "template"]));
    }

    fn first_status(&self) -> Option<Value> {
        Some(Value::map())
    }

    fn check(&self, change: &Change<'_>, at: &At<'_>, errors: &mut Errors) {
        if change.is_status() {
            return;
        }
        let meta = at.field("metadata");
        let name = meta.field("name");
        if change.is_create() && name.text().len() > NAME_MAX {
            errors.invalid(&name, format!("must be no more than {NAME_MAX} characters"));
        }
        let spec = at.field("spec");
        let when = spec.field("schedule");
        match when.text() {
            "" => errors.required(&when.path, ""),
            text => {
                if let Some(why) = schedule::wrong(text) {
                    errors.invalid(&when, why);
                }
                if text.contains("TZ") {
                    errors.invalid(&when, "cannot use TZ or CRON_TZ in schedule, use timeZone field instead");
                }
            }
        }
        check::non_negative(&spec.field("startingDeadlineSeconds"), errors);
        check::word(&spec.field("concurrencyPolicy"), &["Allow", "Forbid", "Replace"], errors);
        for key in ["successfulJobsHistoryLimit", "failedJobsHistoryLimit"] {
            check::non_negative(&spec.field(key), errors);
        }
        check_zone(&spec.field("timeZone"), errors);
        let template = spec.field("jobTemplate");
        let jobs = template.field("spec");
        job::check_spec(&jobs, errors);
        if jobs.field("manualSelector").value.is_true() {
            errors.not_supported(&jobs.field("manualSelector"), &["nil", "false"]);
        }
        if jobs.field("selector").is_set() {
            errors.invalid(&jobs.field("selector"), "`selector` will be auto-generated");
        }
    }

    fn columns(&self) -> &[Column] {
        &self.columns
    }

    fn cells(&self, object: &Value, now: Time) -> Vec<Value> {
        let (spec, status) = (&object["spec"], &object["status"]);
        let jobs = &spec["jobTemplate"]["spec"];
        let [names, images] = containers_and_images(&jobs["template"]["spec"]);
        let zone = match spec["timeZone"].text() {
            "" => "<none>",
            zone => zone,
        };
        let last = match &status["lastScheduleTime"] {
            Value::Null => "<none>".into(),
            time => since(time, now),
        };
        vec![
            spec["schedule"].clone(),
            zone.into(),
            if spec["suspend"].is_true() { "True" } else { "False" }.into(),
            Value::Int(status["active"].items().len() as i64),
            last,
            age(object, now),
            names,
            images,
            selector_text(&jobs["selector"]),
        ]
    }

    fn has_generation(&self) -> bool {
        true
    }
}

fn check_zone(zone: &At<'_>, errors: &mut Errors) {
    if !zone.is_set() {
        return;
    }
    match zone.text() {
        "" => errors.invalid(zone, "timeZone must be nil or non-empty string"),
        text if text.eq_ignore_ascii_case("local") => {
            errors.invalid(zone, "timeZone must be an explicit time zone as defined in the IANA zone data base");
        }
        text => {
            let found = jiff::tz::TimeZone::get(text);
            if !found.is_ok_and(|zone| zone.iana_name() == Some(text)) {
                errors.invalid(zone, format!("unknown time zone {text}"));
            }
        }
    }
}
