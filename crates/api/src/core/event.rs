//! Events of both groups: one resource under two names, kept in the older form.

use base::Time;
use meta::{At, Change, Column, Errors, Rules, Str, Value, names};

use crate::check;
use crate::columns::{columns, since};

pub struct Event {
    /// Served as `events.k8s.io/v1`.
    new: bool,
    columns: Vec<Column>,
}

/// Seconds that an event is kept.
const KEPT_SECONDS: u64 = 3600;
const TEXT_MAX: usize = 128;
const NOTE_MAX: usize = 1024;

/// What a field is called in the older and in the newer form.
const NAMES: [(&str, &str); 7] = [
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("reportingComponent", "reportingController"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
];

impl Event {
    pub fn new(new: bool) -> Event {
        Event {
            new,
            columns: with_name(columns(&[
                ("Last Seen", "string", 0),
                ("Type", "string", 0),
                ("Reason", "string", 0),
                ("Object", "string", 0),
                ("Subobject", "string", 1),
                ("Source", "string", 1),
                ("Message", "string", 0),
                ("First Seen", "string", 1),
                ("Count", "string", 1),
                ("Name", "string", 1),
            ])),
        }
    }
}

/// The name stands last here, in its usual format.
fn with_name(mut columns: Vec<Column>) -> Vec<Column> {
    if let Some(name) = columns.last_mut() {
        name.format = "name".into();
    }
    columns
}

fn rename(object: &mut Value, from_old: bool) {
    let map = object.make_map();
    for (old, new) in NAMES {
        let (from, to) = if from_old { (old, new) } else { (new, old) };
        if let Some(value) = map.remove(from) {
            map.insert(to, value);
        }
    }
}

impl Rules for Event {
    fn check_name(&self, name: &str) -> Vec<String> {
        // The older form takes any name.
        if self.new { names::dns_subdomain(name) } else { Vec::new() }
    }

    fn check(&self, change: &Change<'_>, at: &At<'_>, errors: &mut Errors) {
        let mut old_form = at.value.clone();
        if self.new {
            rename(&mut old_form, false);
        }
        let event = At::root(&old_form);
        check_place(&event, errors);
        if self.new {
            check_new(&event, errors);
            if let Some(old) = change.old {
                let mut before = old.clone();
                rename(&mut before, false);
                check_update(&event, &before, errors);
            }
        }
    }

    fn ttl_seconds(&self) -> Option<u64> {
        Some(KEPT_SECONDS)
    }

    fn to_stored(&self, object: &mut Value) {
        if self.new {
            rename(object, false);
            object.set(&["apiVersion"], "v1");
        }
    }

    fn present(&self, object: &mut Value) {
        if self.new {
            rename(object, true);
            object.set(&["apiVersion"], "events.k8s.io/v1");
            for key in ["deprecatedFirstTimestamp", "deprecatedLastTimestamp", "eventTime"] {
                object.make(&[key]);
            }
            object.default("deprecatedSource", Value::map());
            if object["reportingController"].text().is_empty() {
                object.take(&["reportingController"]);
            }
        } else {
            for key in ["eventTime", "firstTimestamp", "lastTimestamp"] {
                object.make(&[key]);
            }
            object.default("source", Value::map());
            object.default("reportingComponent", "");
            object.default("reportingInstance", "");
        }
    }

    fn columns(&self) -> &[Column] {
        &self.columns
    }

    fn cells(&self, object: &Value, now: Time) -> Vec<Value> {
        let mut event = object.clone();
        rename(&mut event, false);
        let either = |time: &Value| match time {
            Value::Null => since(&event["eventTime"], now),
            time => since(time, now),
        };
        let series = &event["series"];
        let (last, count) = match series {
            Value::Null => (either(&event["lastTimestamp"]), event["count"].as_int().filter(|count| *count != 0)),
            series => (since(&series["lastObservedTime"], now), series["count"].as_int()),
        };
        let about = &event["involvedObject"];
        let target = match about["name"].text() {
            "" => about["kind"].text().to_lowercase(),
            name => format!("{}/{name}", about["kind"].text().to_lowercase()),
        };
        let pair = |a: &str, b: &str| if b.is_empty() { a.to_owned() } else { format!("{a}, {b}") };
        let source = match event["source"]["component"].text() {
            "" => pair(event["reportingComponent"].text(), event["reportingInstance"].text()),
            component => pair(component, event["source"]["host"].text()),
        };
        vec![
            last,
            event["type"].text().into(),
            event["reason"].text().into(),
            target.into(),
            about["fieldPath"].text().into(),
            source.into(),
            event["message"].text().trim().into(),
            either(&event["firstTimestamp"]),
            Value::Int(count.unwrap_or(1)),
            event.at(&["metadata", "name"]).clone(),
        ]
    }

    fn selectable(&self, object: &Value, field: &str) -> Option<Str> {
        let about = if object["involvedObject"].is_null() { &object["regarding"] } else { &object["involvedObject"] };
        if let Some(part) = field.strip_prefix("involvedObject.").or_else(|| field.strip_prefix("regarding.")) {
            let known = ["kind", "namespace", "name", "uid", "apiVersion", "resourceVersion", "fieldPath"];
            return known.contains(&part).then(|| about[part].text().into());
        }
        let reporter = match object["reportingComponent"].text() {
            "" => object["reportingController"].text(),
            reporter => reporter,
        };
        match field {
            "reason" | "type" => Some(object[field].text().into()),
            "reportingComponent" | "reportingController" => Some(reporter.into()),
            "source" => Some(match object["source"]["component"].text() {
                "" => reporter.into(),
                component => component.into(),
            }),
            _ => None,
        }
    }
}

/// An event stands beside what it is about; those about the whole cluster stand in `default`.
fn check_place(event: &At<'_>, errors: &mut Errors) {
    let own = event.value.at(&["metadata", "namespace"]).text();
    let about = event.field("involvedObject");
    let namespace = about.field("namespace");
    let timed = !event.value["eventTime"].is_null();
    let fits = match namespace.text() {
        "" => matches!(own, "" | "default") || (timed && own == "kube-system"),
        _ if timed => true,
        other => other == own,
    };
    if !fits {
        errors.invalid(&namespace, "does not match event.namespace");
    }
}

fn check_new(event: &At<'_>, errors: &mut Errors) {
    let time = event.field("eventTime");
    if !time.is_set() {
        errors.required(&time.path, "");
    }
    let series = event.field("series");
    if series.is_set() && series.field("count").int().unwrap_or(0) < 2 {
        errors.invalid(&series.field("count"), "should be greater than 1");
    }
    let reporter = At { value: event.field("reportingComponent").value, path: event.path.field("reportingController") };
    if reporter.is_empty() {
        errors.required(&reporter.path, "");
    }
    check::invalid(&reporter, names::qualified_name(reporter.text()), errors);
    for key in ["reportingInstance", "action", "reason"] {
        let text = event.field(key);
        if text.is_empty() {
            errors.required(&text.path, "");
        } else if text.text().len() > TEXT_MAX {
            errors.invalid(&text, format!("can have at most {TEXT_MAX} characters"));
        }
    }
    let note = event.field("message");
    if note.text().len() > NOTE_MAX {
        errors.invalid(&note, format!("can have at most {NOTE_MAX} characters"));
    }
    let of_type = event.field("type");
    if !matches!(of_type.text(), "Normal" | "Warning") {
        errors.invalid(&of_type, format!("has invalid value: {}", of_type.text()));
    }
}

fn check_update(event: &At<'_>, old: &Value, errors: &mut Errors) {
    const FIXED: [&str; 11] = [
        "involvedObject",
        "reason",
        "message",
        "source",
        "firstTimestamp",
        "lastTimestamp",
        "count",
        "type",
        "eventTime",
        "action",
        "related",
    ];
    for key in FIXED {
        check::immutable(&event.field(key), &old[key], errors);
    }
    for (key, name) in [("reportingComponent", "reportingController"), ("reportingInstance", "reportingInstance")] {
        let now = event.field(key);
        let named = At { value: now.value, path: event.path.field(name) };
        check::immutable(&named, &old[key], errors);
    }
}
