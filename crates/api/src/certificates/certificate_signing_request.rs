//! CertificateSigningRequests: what somebody wants to be signed, and what was said of it.

use base::Time;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use meta::{At, Change, Column, Errors, Prepare, Rules, Status, Str, Value};

use crate::columns::{age, columns, human};

pub struct CertificateSigningRequest {
    columns: Vec<Column>,
}

impl CertificateSigningRequest {
    pub fn new() -> CertificateSigningRequest {
        CertificateSigningRequest {
            columns: columns(&[
                ("Age", "string", 0),
                ("SignerName", "string", 0),
                ("Requestor", "string", 0),
                ("RequestedDuration", "string", 0),
                ("Condition", "string", 0),
            ]),
        }
    }
}

impl Default for CertificateSigningRequest {
    fn default() -> CertificateSigningRequest {
        CertificateSigningRequest::new()
    }
}

const LIFE_SECONDS_MIN: i64 = 600;
const USAGES: &[&str] = &[
    "any",
    "cert sign",
    "client auth",
    "code signing",
    "content commitment",
    "crl sign",
    "data encipherment",
    "decipher only",
    "digital signature",
    "email protection",
    "encipher only",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "key agreement",
    "key encipherment",
    "microsoft sgc",
    "netscape sgc",
    "ocsp signing",
    "s/mime",
    "server auth",
    "signing",
    "timestamping",
];

impl Rules for CertificateSigningRequest {
    fn check_name(&self, _: &str) -> Vec<String> {
        Vec::new()
    }

    fn prepare(&self, cx: &mut Prepare<'_>, object: &mut Value) -> Result<(), Status> {
        match (cx.change.old, cx.change.subresource) {
            (None, _) => {
                object.set(&["status"], Value::map());
                let spec = object.make(&["spec"]);
                for key in ["uid", "extra"] {
                    spec.take(&[key]);
                }
                spec.set(&["username"], cx.change.user);
                let groups: Vec<Value> = cx.change.groups.iter().map(Value::from).collect();
                spec.set(&["groups"], groups);
                if !cx.change.uid.is_empty() {
                    spec.set(&["uid"], cx.change.uid);
                }
                for (key, values) in cx.change.extra {
                    let values: Vec<Value> = values.iter().map(Value::from).collect();
                    spec.set(&["extra", key], values);
                }
            }
            (Some(old), subresource) => {
                // The request itself never changes, and each subresource writes its part of the status.
                object.set(&["spec"], old["spec"].clone());
                let given = object["status"].clone();
                object.set(&["status"], old["status"].clone());
                let part = |object: &mut Value, key: &str| match given.get(key) {
                    Some(value) => object.set(&["status", key], value.clone()),
                    None => {
                        object.take(&["status", key]);
                    }
                };
                if matches!(subresource, "approval" | "status") {
                    part(object, "conditions");
                    stamp(object, cx.change.now);
                }
                if subresource == "status" {
                    part(object, "certificate");
                }
            }
        }
        Ok(())
    }

    fn check(&self, change: &Change<'_>, at: &At<'_>, errors: &mut Errors) {
        if !change.is_create() {
            return check_conditions(at, errors);
        }
        let spec = at.field("spec");
        let request = spec.field("request");
        let bytes = STANDARD.decode(request.text()).unwrap_or_default();
        if !String::from_utf8_lossy(&bytes).contains("-----BEGIN CERTIFICATE REQUEST-----") {
            errors.invalid(&request, "PEM block type must be CERTIFICATE REQUEST");
        }
        let usages = spec.field("usages");
        if usages.is_empty() {
            errors.required(&usages.path, "usages field is required");
        }
        for (index, usage) in usages.items().enumerate() {
            if !USAGES.contains(&usage.text()) {
                errors.not_supported(&usage, USAGES);
            } else if usages.value.items()[..index].contains(usage.value) {
                errors.duplicate(&usage);
            }
        }
        let signer = spec.field("signerName");
        super::check_signer_name(&signer, errors);
        let life = spec.field("expirationSeconds");
        if life.int().is_some_and(|seconds| seconds < LIFE_SECONDS_MIN) {
            errors.invalid(
                &life,
                format!("may not specify a duration less than {LIFE_SECONDS_MIN} seconds (10 minutes)"),
            );
        }
    }

    fn columns(&self) -> &[Column] {
        &self.columns
    }

    fn cells(&self, object: &Value, now: Time) -> Vec<Value> {
        let (spec, status) = (&object["spec"], &object["status"]);
        let life = spec["expirationSeconds"].as_int().map_or_else(|| "<none>".to_owned(), human);
        let mut words: Vec<&str> = Vec::new();
        for condition in status["conditions"].items() {
            match condition["type"].text() {
                of_type @ ("Approved" | "Denied" | "Failed") if !words.contains(&of_type) => words.push(of_type),
                _ => {}
            }
        }
        if words.is_empty() {
            words.push("Pending");
        }
        words.sort_by_key(|word| ["Pending", "Approved", "Denied", "Failed"].iter().position(|other| other == word));
        if !status["certificate"].text().is_empty() {
            words.push("Issued");
        }
        vec![
            age(object, now),
            spec["signerName"].text().into(),
            spec["username"].text().into(),
            life.into(),
            words.join(",").into(),
        ]
    }

    fn selectable(&self, object: &Value, field: &str) -> Option<Str> {
        (field == "spec.signerName").then(|| object.at(&["spec", "signerName"]).text().into())
    }
}

fn stamp(object: &mut Value, now: Time) {
    if let Some(conditions) = object.at_mut(&["status", "conditions"]) {
        for condition in conditions.items_mut() {
            for key in ["lastUpdateTime", "lastTransitionTime"] {
                condition.default(key, now.rfc3339());
            }
            if condition["status"].text().is_empty() {
                condition.set(&["status"], "True");
            }
        }
    }
}

fn check_conditions(at: &At<'_>, errors: &mut Errors) {
    let status = at.field("status");
    let conditions = status.field("conditions");
    let has = |of_type: &str| conditions.value.items().iter().any(|one| one["type"].text() == of_type);
    for (index, condition) in conditions.items().enumerate() {
        let of_type = condition.field("type");
        if of_type.is_empty() {
            errors.required(&of_type.path, "");
        }
        let is_final = matches!(of_type.text(), "Approved" | "Denied" | "Failed");
        if is_final && condition.field("status").text() != "True" {
            errors.not_supported(&condition.field("status"), &["True"]);
        }
        if conditions.value.items()[..index].iter().any(|other| other["type"] == *of_type.value) {
            errors.duplicate(&of_type);
        }
    }
    if has("Approved") && has("Denied") {
        errors.invalid(&conditions, "Approved and Denied conditions are mutually exclusive");
    }
}
