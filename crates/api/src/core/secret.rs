//! Secrets: bytes by key, of a type that says which keys there must be.

use base::Time;
use meta::{At, Change, Column, Errors, Rules, Str, Value, names};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::columns::{age, columns};

pub struct Secret {
    columns: Vec<Column>,
}

impl Secret {
    pub fn new() -> Secret {
        Secret { columns: columns(&[("Type", "string", 0), ("Data", "string", 0), ("Age", "string", 0)]) }
    }
}

impl Default for Secret {
    fn default() -> Secret {
        Secret::new()
    }
}

impl Rules for Secret {
    fn defaults(&self, object: &mut Value) {
        if object["type"].text().is_empty() {
            object.set(&["type"], "Opaque");
        }
        // Plain texts are for writing only; they end up among the bytes.
        if let Some(texts) = object.take(&["stringData"]) {
            for (key, text) in texts.entries().iter() {
                object.set(&["data", key], STANDARD.encode(text.text()));
            }
        }
    }

    fn check(&self, change: &Change<'_>, at: &At<'_>, errors: &mut Errors) {
        let (data, of_type) = (at.field("data"), at.field("type"));
        let mut bytes = 0;
        for (key, value) in data.members() {
            check_key(&data, key, errors);
            bytes += value.text().len() / 4 * 3;
        }
        if bytes > DATA_MAX_BYTES {
            errors.too_long(&data.path, DATA_MAX_BYTES);
        }
        check_type(at, of_type.text(), errors);
        if let Some(old) = change.old {
            if of_type.value != &old["type"] {
                errors.invalid(&of_type, "field is immutable");
            }
            check_immutable(at, old, &["data"], errors);
        }
    }

    fn columns(&self) -> &[Column] {
        &self.columns
    }

    fn cells(&self, object: &Value, now: Time) -> Vec<Value> {
        vec![object["type"].clone(), Value::Int(object["data"].entries().len() as i64), age(object, now)]
    }

    fn selectable(&self, object: &Value, field: &str) -> Option<Str> {
        (field == "type").then(|| object["type"].text().into())
    }
}

/// Most bytes of all values together.
pub const DATA_MAX_BYTES: usize = 1024 * 1024;

/// A key is also a file's name.
pub fn check_key(at: &At<'_>, key: &str, errors: &mut Errors) {
    for why in names::config_key(key) {
        errors.invalid_value(&at.path.key(key), key, why);
    }
}

/// What may not change of an object that says so.
pub fn check_immutable(at: &At<'_>, old: &Value, parts: &[&str], errors: &mut Errors) {
    if !old["immutable"].is_true() {
        return;
    }
    let flag = at.field("immutable");
    if !flag.value.is_true() {
        errors.forbidden(&flag.path, "field is immutable when `immutable` is set");
    }
    for part in parts {
        let now = at.field(part);
        if !super::pod_update::same(now.value, &old[*part]) {
            errors.forbidden(&now.path, "field is immutable when `immutable` is set");
        }
    }
}

fn check_type(at: &At<'_>, of_type: &str, errors: &mut Errors) {
    let data = at.field("data");
    let missing = |key: &str| data.value.get(key).is_none();
    match of_type {
        "kubernetes.io/service-account-token" => {
            let key = "kubernetes.io/service-account.name";
            if at.value.at(&["metadata", "annotations", key]).text().is_empty() {
                let meta = at.path.field("metadata");
                errors.required(&meta.field("annotations").key(key), "");
            }
        }
        "kubernetes.io/dockercfg" | "kubernetes.io/dockerconfigjson" => {
            let key = if of_type.ends_with("json") { ".dockerconfigjson" } else { ".dockercfg" };
            if missing(key) {
                errors.required(&data.path.key(key), "");
                return;
            }
            let bytes = STANDARD.decode(data.value[key].text()).unwrap_or_default();
            if Value::parse(&bytes).is_err() {
                errors.invalid_value(&data.path.key(key), "<secret contents redacted>", "is no JSON");
            }
        }
        "kubernetes.io/basic-auth" if missing("username") && missing("password") => {
            errors.required(&data.path.key("username"), "");
            errors.required(&data.path.key("password"), "");
        }
        "kubernetes.io/ssh-auth" if data.value["ssh-privatekey"].text().is_empty() => {
            errors.required(&data.path.key("ssh-privatekey"), "");
        }
        "kubernetes.io/tls" => {
            for key in ["tls.crt", "tls.key"] {
                if missing(key) {
                    errors.required(&data.path.key(key), "");
                }
            }
        }
        _ => {}
    }
}
