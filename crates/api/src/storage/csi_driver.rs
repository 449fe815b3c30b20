//! CSIDriver: what a storage driver of the cluster wants from it.

use std::collections::BTreeSet;

use base::Time;
use meta::{At, Change, Column, Errors, Rules, Str, Value, json, names};

use crate::check;
use crate::columns::{age, columns};

/// A token that a driver asks for holds at least this long.
const TOKEN_SECONDS_MIN: i64 = 600;
const TOKEN_SECONDS_MAX: i64 = 1 << 32;
const UPDATE_PERIOD_SECONDS_MIN: i64 = 10;

pub struct CsiDriver {
    columns: Vec<Column>,
}

impl CsiDriver {
    pub fn new() -> CsiDriver {
        let shown = [
            ("AttachRequired", "boolean", 0),
            ("PodInfoOnMount", "boolean", 0),
            ("StorageCapacity", "boolean", 0),
            ("TokenRequests", "string", 0),
            ("RequiresRepublish", "boolean", 0),
            ("Modes", "string", 0),
            ("Age", "string", 0),
        ];
        CsiDriver { columns: columns(&shown) }
    }
}

impl Default for CsiDriver {
    fn default() -> CsiDriver {
        CsiDriver::new()
    }
}

/// A driver's name: a domain of at most 63 letters, in either case.
pub fn check_driver_name(at: &At<'_>, errors: &mut Errors) {
    if at.is_empty() {
        errors.required(&at.path, "");
        return;
    }
    if at.text().len() > names::LABEL_MAX {
        errors.too_long(&at.path, names::LABEL_MAX);
    }
    check::invalid(at, names::dns_subdomain(&at.text().to_lowercase()), errors);
}

impl Rules for CsiDriver {
    fn defaults(&self, object: &mut Value) {
        let spec = object.make(&["spec"]);
        spec.default("attachRequired", true);
        spec.default("fsGroupPolicy", "ReadWriteOnceWithFSType");
        for key in ["podInfoOnMount", "requiresRepublish", "seLinuxMount", "storageCapacity"] {
            spec.default(key, false);
        }
        if spec["volumeLifecycleModes"].items().is_empty() {
            spec.set(&["volumeLifecycleModes"], json!(["Persistent"]));
        }
    }

    fn check(&self, change: &Change<'_>, at: &At<'_>, errors: &mut Errors) {
        let spec = at.field("spec");
        for mode in spec.field("volumeLifecycleModes").items() {
            let modes = spec.path.field("volumeLifecycleModes");
            check::supported(&At { value: mode.value, path: modes }, &["Ephemeral", "Persistent"], errors);
        }
        let policies = ["File", "None", "ReadWriteOnceWithFSType"];
        check::supported(&spec.field("fsGroupPolicy"), &policies, errors);
        let mut audiences: BTreeSet<Str> = BTreeSet::new();
        for request in spec.field("tokenRequests").items() {
            let (audience, seconds) = (request.field("audience"), request.field("expirationSeconds"));
            if !audiences.insert(audience.text().into()) {
                errors.duplicate(&audience);
            }
            check::within(&seconds, TOKEN_SECONDS_MIN, TOKEN_SECONDS_MAX, errors);
        }
        let period = spec.field("nodeAllocatableUpdatePeriodSeconds");
        if period.int().is_some_and(|seconds| seconds < UPDATE_PERIOD_SECONDS_MIN) {
            errors.invalid(&period, format!("must be greater than or equal to {UPDATE_PERIOD_SECONDS_MIN} seconds"));
        }
        if let Some(old) = change.old {
            // The path has this name upstream, so clients see it so.
            let attach = At { value: spec.field("attachRequired").value, path: spec.path.field("attachedRequired") };
            check::immutable(&attach, &old["spec"]["attachRequired"], errors);
            check::immutable(&spec.field("volumeLifecycleModes"), &old["spec"]["volumeLifecycleModes"], errors);
        }
    }

    fn columns(&self) -> &[Column] {
        &self.columns
    }

    fn cells(&self, object: &Value, now: Time) -> Vec<Value> {
        let spec = &object["spec"];
        let flag = |key: &str, otherwise: bool| Value::Bool(spec[key].as_bool().unwrap_or(otherwise));
        let join = |texts: Vec<&str>, none: &str| -> Value {
            if texts.is_empty() { none.into() } else { texts.join(",").into() }
        };
        vec![
            flag("attachRequired", true),
            flag("podInfoOnMount", false),
            flag("storageCapacity", false),
            join(spec["tokenRequests"].items().iter().map(|request| request["audience"].text()).collect(), "<unset>"),
            flag("requiresRepublish", false),
            join(spec["volumeLifecycleModes"].items().iter().map(Value::text).collect(), "<none>"),
            age(object, now),
        ]
    }

    fn has_generation(&self) -> bool {
        true
    }

    /// Its generation counts changes only.
    fn first_generation(&self) -> Option<i64> {
        None
    }
}
