//! Options of writes, from the query and (for deletes) the body.

use base::Revision;
use client::Propagation;
use meta::decode::FieldValidation;
use meta::{Errors, Path, Status, Str, Value};

use crate::request::Query;

#[derive(Clone, Debug, Default)]
pub struct WriteOptions {
    pub dry_run: bool,
    pub manager: Str,
    pub force: bool,
    pub validation: FieldValidation,
}

/// Longest name of a field manager, in bytes.
const MANAGER_MAX: usize = 128;

impl WriteOptions {
    /// Reads the query. `kind` is the options' kind for errors: `CreateOptions`, `UpdateOptions`, `PatchOptions`.
    pub fn of(query: &Query, kind: &str, user_agent: &str, is_apply: bool) -> Result<WriteOptions, Status> {
        let mut errors = Errors::default();
        let dry_run: Vec<&str> = query.all("dryRun").filter(|value| !value.is_empty()).collect();
        for value in &dry_run {
            if *value != "All" {
                let list = Value::from(vec![Value::from(*value)]);
                errors.not_supported(&meta::At { value: &list, path: Path::ROOT.field("dryRun") }, &["All"]);
            }
        }
        let manager = query.text("fieldManager");
        let path = Path::ROOT;
        let path = path.field("fieldManager");
        if manager.len() > MANAGER_MAX {
            errors.too_long(&path, MANAGER_MAX);
        }
        if manager.chars().any(|c| !c.is_ascii_graphic() && c != ' ') {
            errors.invalid_value(&path, manager, "should only contain printable characters");
        }
        if is_apply && manager.is_empty() {
            errors.required(&path, "is required for apply patch");
        }
        if !is_apply && query.get("force").is_some_and(|_| query.is_true("force")) && kind == "PatchOptions" {
            errors.forbidden(&Path::ROOT.field("force"), "may not be specified for non-apply patch");
        }
        let validation = FieldValidation::of(query.text("fieldValidation")).unwrap_or_else(|| {
            let value = Value::from(query.text("fieldValidation"));
            let at = meta::At { value: &value, path: Path::ROOT.field("fieldValidation") };
            errors.not_supported(&at, &["", "Ignore", "Strict", "Warn"]);
            FieldValidation::Warn
        });
        if !errors.is_empty() {
            return Err(Status::invalid("meta.k8s.io", kind, "", &errors));
        }
        // Without a manager, the first word of the client's name is it, as upstream does.
        let manager = match manager {
            "" => user_agent.split('/').next().unwrap_or("unknown"),
            manager => manager,
        };
        Ok(WriteOptions {
            dry_run: !dry_run.is_empty(),
            manager: manager.chars().take(MANAGER_MAX).collect::<String>().into(),
            force: query.is_true("force"),
            validation,
        })
    }
}

#[derive(Clone, Debug, Default)]
pub struct DeleteOptions {
    pub dry_run: bool,
    pub grace_seconds: Option<i64>,
    pub uid: Option<Str>,
    pub revision: Option<Revision>,
    pub propagation: Option<Propagation>,
    /// `orphanDependents`, the deprecated form.
    pub orphan_dependents: Option<bool>,
    /// Go on although the object cannot be decoded.
    pub ignore_read_error: bool,
}

impl DeleteOptions {
    /// Reads the body if there is one, else the query.
    pub fn of(query: &Query, body: Option<&Value>) -> Result<DeleteOptions, Status> {
        let mut options = DeleteOptions::default();
        let mut errors = Errors::default();
        let mut dry_run: Vec<Str> = query.all("dryRun").map(Into::into).collect();
        let mut propagation: Str = query.text("propagationPolicy").into();
        options.grace_seconds = query.number("gracePeriodSeconds")?;
        options.orphan_dependents = query.get("orphanDependents").map(|_| query.is_true("orphanDependents"));
        if let Some(body) = body {
            if !matches!(body["kind"].text(), "" | "DeleteOptions") {
                return Err(Status::bad_request(format!("expected DeleteOptions, got {:?}", body["kind"].text())));
            }
            if body.get("dryRun").is_some() {
                dry_run = body["dryRun"].items().iter().map(|value| value.text().into()).collect();
            }
            if let Some(policy) = body.get("propagationPolicy") {
                propagation = policy.text().into();
            }
            if let Some(seconds) = body["gracePeriodSeconds"].as_int() {
                options.grace_seconds = Some(seconds);
            }
            if let Some(orphan) = body["orphanDependents"].as_bool() {
                options.orphan_dependents = Some(orphan);
            }
            let preconditions = &body["preconditions"];
            options.uid = preconditions["uid"].as_str().filter(|uid| !uid.is_empty()).map(Into::into);
            if let Some(version) = preconditions["resourceVersion"].as_str().filter(|version| !version.is_empty()) {
                // A version that is no number matches nothing.
                options.revision = Some(Revision(version.parse().unwrap_or(u64::MAX)));
            }
        }
        for value in dry_run.iter().filter(|value| !value.is_empty()) {
            if value != "All" {
                let list = Value::from(vec![Value::from(value)]);
                errors.not_supported(&meta::At { value: &list, path: Path::ROOT.field("dryRun") }, &["All"]);
            }
            options.dry_run = true;
        }
        options.propagation = match propagation.as_str() {
            "" => None,
            "Background" => Some(Propagation::Background),
            "Foreground" => Some(Propagation::Foreground),
            "Orphan" => Some(Propagation::Orphan),
            _ => {
                let value = Value::from(&propagation);
                errors.not_supported(
                    &meta::At { value: &value, path: Path::ROOT.field("propagationPolicy") },
                    &["Background", "Foreground", "Orphan", ""],
                );
                None
            }
        };
        if options.propagation.is_some() && options.orphan_dependents.is_some() {
            let detail = "orphanDependents and deletionPropagation cannot be both set";
            errors.invalid_value(&Path::ROOT.field("propagationPolicy"), &propagation, detail);
        }
        if !errors.is_empty() {
            return Err(Status::invalid("meta.k8s.io", "DeleteOptions", "", &errors));
        }
        Ok(options)
    }
}
