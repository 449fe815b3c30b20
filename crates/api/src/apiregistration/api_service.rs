//! APIService: which server answers a group and version.

use base::Time;
use meta::{At, Change, Column, Errors, Object, Prepare, Rules, Status, Str, Value, json, names};

use crate::check;
use crate::columns::{age, column};

/// The index of those that name a service, all under [`REMOTE`] again.
pub const REMOTE: &str = "remote";

/// Files an `APIService` whose group and version another server answers.
pub fn remote_of(service: &Object, keys: &mut Vec<Str>) {
    if !service.value().at(&["spec", "service"]).is_null() {
        keys.push(REMOTE.into());
    }
}

/// The condition of those that this server itself answers: they are there as soon as they are registered.
pub fn local_condition(now: Time) -> Value {
    json!({
        "type": "Available", "status": "True", "reason": "Local",
        "message": "Local APIServices are always available", "lastTransitionTime": (now.rfc3339()),
    })
}

pub struct ApiService {
    columns: Vec<Column>,
}

impl ApiService {
    pub fn new() -> ApiService {
        ApiService {
            columns: vec![column("Service", "string", 0), column("Available", "string", 0), column("Age", "string", 0)],
        }
    }
}

impl Default for ApiService {
    fn default() -> ApiService {
        ApiService::new()
    }
}

impl Rules for ApiService {
    fn check_name(&self, name: &str) -> Vec<String> {
        names::path_segment(name)
    }

    fn defaults(&self, object: &mut Value) {
        if let Some(service) = object.at_mut(&["spec", "service"]).filter(|service| !service.is_null()) {
            service.default("port", 443i64);
        }
    }

    fn prepare(&self, cx: &mut Prepare<'_>, object: &mut Value) -> Result<(), Status> {
        if cx.change.is_create() {
            object.set(&["status"], Value::map());
            if object.at(&["spec", "service"]).is_null() {
                object.set(&["status", "conditions"], vec![local_condition(cx.change.now)]);
            }
        }
        Ok(())
    }

    fn check(&self, _: &Change<'_>, at: &At<'_>, errors: &mut Errors) {
        let spec = at.field("spec");
        let (group, version) = (spec.field("group"), spec.field("version"));
        let expected = format!("{}.{}", version.text(), group.text());
        let name = at.field("metadata");
        if !name.field("name").is_empty() && name.field("name").text() != expected {
            errors.invalid(&name.field("name"), format!("must be `spec.version+\".\"+spec.group`: {expected:?}"));
        }
        match (group.text(), version.text()) {
            ("", "v1") => {}
            ("", _) => errors.required(&group.path, "only v1 may have no group"),
            (text, _) => check::invalid(&group, names::dns_subdomain(text), errors),
        }
        check::invalid(&version, names::dns1035_label(version.text()), errors);
        for (key, max) in [("groupPriorityMinimum", 20_000), ("versionPriority", 1_000)] {
            let priority = spec.field(key);
            if !(1..=max).contains(&priority.int().unwrap_or(0)) {
                errors.invalid(&priority, format!("must be positive and less than {max}"));
            }
        }
        let service = spec.field("service");
        if !service.is_set() {
            if !spec.field("caBundle").is_empty() {
                errors.invalid(&spec.field("caBundle"), "local APIServices may not have a caBundle");
            }
            if spec.field("insecureSkipTLSVerify").value.is_true() {
                errors.invalid(
                    &spec.field("insecureSkipTLSVerify"),
                    "local APIServices may not have insecureSkipTLSVerify",
                );
            }
            return;
        }
        for key in ["namespace", "name"] {
            if service.field(key).is_empty() {
                errors.required(&service.field(key).path, "");
            }
        }
        check::port(&service.field("port"), errors);
        if spec.field("insecureSkipTLSVerify").value.is_true() && !spec.field("caBundle").is_empty() {
            errors.invalid(&spec.field("insecureSkipTLSVerify"), "may not be true if caBundle is present");
        }
    }

    fn columns(&self) -> &[Column] {
        &self.columns
    }

    fn cells(&self, object: &Value, now: Time) -> Vec<Value> {
        let service = object.at(&["spec", "service"]);
        let shown = match service.is_null() {
            true => "Local".to_owned(),
            false => format!("{}/{}", service["namespace"].text(), service["name"].text()),
        };
        let conditions = object.at(&["status", "conditions"]).items();
        let available = conditions.iter().find(|condition| condition["type"].text() == "Available");
        let state = match available {
            Some(condition) if condition["status"].text() != "True" => {
                format!("{} ({})", condition["status"].text(), condition["reason"].text())
            }
            Some(condition) => condition["status"].text().to_owned(),
            None => "Unknown".to_owned(),
        };
        vec![shown.into(), state.into(), age(object, now)]
    }
}
