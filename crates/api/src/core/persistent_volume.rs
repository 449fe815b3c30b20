//! PersistentVolumes: storage that outlives pods.

use base::Time;
use meta::{At, Change, Column, Errors, Prepare, Quantity, Rules, Status, Value, names};

use super::claim::{ACCESS_MODES, modes_text};
use super::pod_spec::{defaults, disks};
use super::pod_update::same;
use crate::check;
use crate::columns::{age, columns};

pub struct PersistentVolume {
    columns: Vec<Column>,
}

impl PersistentVolume {
    pub fn new() -> PersistentVolume {
        let names = [
            "Capacity",
            "Access Modes",
            "Reclaim Policy",
            "Status",
            "Claim",
            "StorageClass",
            "VolumeAttributesClass",
            "Reason",
            "Age",
        ];
        let mut all = columns(&names.map(|name| (name, "string", 0)));
        all.extend(columns(&[("VolumeMode", "string", 1)]));
        PersistentVolume { columns: all }
    }
}

impl Default for PersistentVolume {
    fn default() -> PersistentVolume {
        PersistentVolume::new()
    }
}

/// Members of the spec that are no source.
const PLAIN: [&str; 9] = [
    "accessModes",
    "capacity",
    "claimRef",
    "mountOptions",
    "nodeAffinity",
    "persistentVolumeReclaimPolicy",
    "storageClassName",
    "volumeMode",
    "volumeAttributesClassName",
];

/// The source that a spec names, if any.
fn sources(spec: &Value) -> Vec<(&str, &Value)> {
    spec.entries().iter().filter(|(key, value)| !PLAIN.contains(key) && !value.is_null()).collect()
}

impl Rules for PersistentVolume {
    fn defaults(&self, object: &mut Value) {
        let spec = object.make(&["spec"]);
        if spec["persistentVolumeReclaimPolicy"].text().is_empty() {
            spec.set(&["persistentVolumeReclaimPolicy"], "Retain");
        }
        spec.default("volumeMode", "Filesystem");
        defaults::volume_source(spec);
    }

    fn prepare(&self, cx: &mut Prepare<'_>, object: &mut Value) -> Result<(), Status> {
        match cx.change.old {
            None => {
                let now = cx.change.now.rfc3339();
                object.set(&["status"], meta::json!({"phase": "Pending", "lastPhaseTransitionTime": (now)}));
            }
            Some(old) if cx.change.is_status() => {
                let changed = old.at(&["status", "phase"]) != object.at(&["status", "phase"]);
                let untouched =
                    old.at(&["status", "lastPhaseTransitionTime"]) == object.at(&["status", "lastPhaseTransitionTime"]);
                if changed && untouched {
                    object.set(&["status", "lastPhaseTransitionTime"], cx.change.now.rfc3339());
                }
            }
            Some(_) => {}
        }
        Ok(())
    }

    fn check(&self, change: &Change<'_>, at: &At<'_>, errors: &mut Errors) {
        if change.is_status() {
            return;
        }
        let spec = at.field("spec");
        let modes = spec.field("accessModes");
        check::required(&modes, errors);
        for mode in modes.value.items() {
            if !ACCESS_MODES.contains(&mode.text()) {
                errors.not_supported(&At { value: mode, path: modes.path }, ACCESS_MODES);
            }
        }
        check_capacity(&spec.field("capacity"), errors);
        check_affinity(&spec.field("nodeAffinity"), errors);
        check_source(&spec, errors);
        check::set_word(&spec.field("persistentVolumeReclaimPolicy"), &["Delete", "Recycle", "Retain"], errors);
        check::optional(&spec.field("storageClassName"), names::dns_subdomain, errors);
        check::set_word(&spec.field("volumeMode"), &["Block", "Filesystem"], errors);
        if let Some(old) = change.old {
            check_update(at, &spec, &old["spec"], errors);
        }
    }

    fn columns(&self) -> &[Column] {
        &self.columns
    }

    fn cells(&self, object: &Value, now: Time) -> Vec<Value> {
        let (spec, status) = (&object["spec"], &object["status"]);
        let claim = &spec["claimRef"];
        let claim = match claim["name"].text() {
            "" if claim.is_null() => String::new(),
            name => format!("{}/{name}", claim["namespace"].text()),
        };
        let class = match spec["volumeAttributesClassName"].text() {
            "" => "<unset>",
            class => class,
        };
        let phase = match object.at(&["metadata", "deletionTimestamp"]) {
            Value::Null => status["phase"].text(),
            _ => "Terminating",
        };
        vec![
            spec["capacity"]["storage"].text().into(),
            modes_text(&spec["accessModes"]),
            spec["persistentVolumeReclaimPolicy"].text().into(),
            phase.into(),
            claim.into(),
            spec["storageClassName"].text().into(),
            class.into(),
            status["reason"].text().into(),
            age(object, now),
            spec["volumeMode"].text().into(),
        ]
    }
}

fn check_capacity(capacity: &At<'_>, errors: &mut Errors) {
    check::required(capacity, errors);
    if capacity.value.get("storage").is_none() || capacity.map().len() > 1 {
        errors.not_supported(capacity, &["storage"]);
    }
    for (_, amount) in capacity.members() {
        if Quantity::of(amount.value).is_ok_and(|amount| amount.sign() <= 0) {
            errors.invalid(&amount, "must be greater than zero");
        }
    }
}

fn check_affinity(affinity: &At<'_>, errors: &mut Errors) {
    if !affinity.is_set() {
        return;
    }
    let required = affinity.field("required");
    if required.is_set() {
        check::node_selector(&required, errors);
    } else {
        errors.required(&required.path, "must specify required node constraints");
    }
}

fn check_source(spec: &At<'_>, errors: &mut Errors) {
    let all = sources(spec.value);
    if all.is_empty() {
        errors.required(&spec.path, "must specify a volume type");
    }
    for (index, (kind, _)) in all.into_iter().enumerate() {
        let source = spec.field(kind);
        if index > 0 {
            errors.forbidden(&source.path, "may not specify more than 1 volume type");
            continue;
        }
        match kind {
            "local" => {
                let path = source.field("path");
                check::required(&path, errors);
                check::no_backsteps(&path, errors);
                if !spec.field("nodeAffinity").is_set() {
                    errors.required(&spec.field("nodeAffinity").path, "Local volume requires node affinity");
                }
            }
            "csi" => {
                let driver = source.field("driver");
                check::named(&driver, |name| names::dns_subdomain(&name.to_lowercase()), errors);
                if driver.text().len() > names::LABEL_MAX {
                    errors.too_long(&driver.path, names::LABEL_MAX);
                }
                check::required(&source.field("volumeHandle"), errors);
            }
            kind => {
                disks::check(kind, &source, errors);
            }
        }
    }
}

fn check_update(at: &At<'_>, spec: &At<'_>, old: &Value, errors: &mut Errors) {
    let (now, before) = (sources(spec.value), sources(old));
    let equal = now.len() == before.len()
        && now.iter().zip(&before).all(|(now, before)| now.0 == before.0 && same(now.1, before.1));
    if !equal {
        errors.forbidden(&spec.path.field("persistentvolumesource"), "is immutable after creation");
    }
    // These two are named without their spec.
    check::immutable(
        &At { value: spec.field("volumeMode").value, path: at.path.field("volumeMode") },
        &old["volumeMode"],
        errors,
    );
    if !old["nodeAffinity"].is_null() {
        let value = translated(spec.field("nodeAffinity").value, &old["nodeAffinity"]);
        let affinity = At { value: &value, path: at.path.field("nodeAffinity") };
        check::immutable(&affinity, &old["nodeAffinity"], errors);
    }
}

/// Labels of nodes that were renamed, and their new names.
const RENAMED: &[(&str, &str)] = &[
    ("failure-domain.beta.kubernetes.io/zone", "topology.kubernetes.io/zone"),
    ("failure-domain.beta.kubernetes.io/region", "topology.kubernetes.io/region"),
    ("beta.kubernetes.io/instance-type", "node.kubernetes.io/instance-type"),
    ("beta.kubernetes.io/os", "kubernetes.io/os"),
    ("beta.kubernetes.io/arch", "kubernetes.io/arch"),
];

/// An affinity in which the new name of a renamed label counts as the old one. (A key that is missing counts as any:
/// that it is missing is said elsewhere.)
fn translated(affinity: &Value, old: &Value) -> Value {
    let mut affinity = affinity.clone();
    let before = old.at(&["required", "nodeSelectorTerms"]);
    let Some(terms) = affinity.at_mut(&["required", "nodeSelectorTerms"]) else { return affinity };
    for (index, term) in terms.items_mut().iter_mut().enumerate() {
        let Some(expressions) = term.get_mut("matchExpressions") else { continue };
        for (at, expression) in expressions.items_mut().iter_mut().enumerate() {
            let was = &before[index]["matchExpressions"][at]["key"];
            let renamed = RENAMED.iter().any(|(from, to)| was.text() == *from && expression["key"].text() == *to);
            if renamed || expression["key"].text().is_empty() {
                expression.set(&["key"], was.clone());
            }
        }
    }
    affinity
}
