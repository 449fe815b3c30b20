//! Which volumes would do for a claim, and what the two say of each other once they are bound.
//!
//! The controller that binds, the scheduler that chooses for claims that wait for a pod, and nodes go by the same words.

use meta::{Quantity, Resource, Selector, Str, Value};

pub const CLAIMS: Resource = Resource("persistentvolumeclaims");
pub const VOLUMES: Resource = Resource("persistentvolumes");
pub const CLASSES: Resource = Resource("storageclasses.storage.k8s.io");

/// On a claim: all that its binding takes was written.
pub const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
/// On a claim or a volume: no user chose the other.
pub const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
/// On a claim: the node of the pod that it waited for.
pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// On a claim: who is to make a volume for it; the second is the older name.
pub const PROVISIONERS: [&str; 2] =
    ["volume.kubernetes.io/storage-provisioner", "volume.beta.kubernetes.io/storage-provisioner"];
/// On claims and volumes: what `storageClassName` says, as it was said before that field.
pub const OLD_CLASS: &str = "volume.beta.kubernetes.io/storage-class";

pub fn annotation<'a>(object: &'a Value, name: &str) -> &'a str {
    object.at(&["metadata", "annotations"])[name].text()
}

/// The claims of a pod with this name, those of its own (ephemeral) volumes among them.
pub fn claims_of(name: &str, pod: &Value) -> Vec<Str> {
    pod.at(&["spec", "volumes"]).items().iter().filter_map(|volume| claim_of(name, volume)).collect()
}

/// The claim that a volume of a pod stands for.
pub fn claim_of(pod_name: &str, volume: &Value) -> Option<Str> {
    match volume.at(&["persistentVolumeClaim", "claimName"]).text() {
        "" if volume.get("ephemeral").is_some() => Some(format!("{pod_name}-{}", volume["name"].text()).into()),
        "" => None,
        claim => Some(claim.into()),
    }
}

/// The storage class of a claim or a volume; `""` is none.
pub fn class_of(object: &Value) -> &str {
    match annotation(object, OLD_CLASS) {
        "" => object.at(&["spec", "storageClassName"]).text(),
        class => class,
    }
}

/// Whether a claim leaves it to others which class it gets. Who wants none says `""`.
pub fn asks_for_default(claim: &Value) -> bool {
    claim.at(&["spec", "storageClassName"]).is_null() && annotation(claim, OLD_CLASS).is_empty()
}

/// Whether claims of this class are bound only once a pod that mounts them has a node.
pub fn waits_for_pod(class: &Value) -> bool {
    class["volumeBindingMode"].text() == "WaitForFirstConsumer"
}

/// To whom a volume belongs, as a claim sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    Nobody,
    /// This claim, by its name and, where one is given, its uid.
    This,
    Another,
}

/// Whose a volume is.
pub fn holder(volume: &Value, claim: &Value) -> Holder {
    let reference = volume.at(&["spec", "claimRef"]);
    if reference.is_null() {
        return Holder::Nobody;
    }
    let meta = &claim["metadata"];
    let uid = reference["uid"].text();
    let this = reference["name"] == meta["name"]
        && reference["namespace"] == meta["namespace"]
        && (uid.is_empty() || uid == meta["uid"].text());
    if this { Holder::This } else { Holder::Another }
}

/// The storage that a claim asks for.
pub fn asked(claim: &Value) -> Quantity {
    size(claim.at(&["spec", "resources", "requests", "storage"]))
}

/// The storage that a volume has.
pub fn capacity(volume: &Value) -> Quantity {
    size(volume.at(&["spec", "capacity", "storage"]))
}

fn size(value: &Value) -> Quantity {
    Quantity::given(value).unwrap_or_default()
}

/// Why a volume could not serve a claim, whoever chose it for it.
///
/// # Errors
/// A sentence about the two.
pub fn check(claim: &Value, volume: &Value) -> Result<(), String> {
    if capacity(volume).compare(&asked(claim)).is_lt() {
        return Err("requested PV is too small".to_owned());
    }
    if class_of(volume) != class_of(claim) {
        return Err("storageClassName does not match".to_owned());
    }
    let mode = |object: &Value| match object.at(&["spec", "volumeMode"]).text() {
        "" => Str::from("Filesystem"),
        mode => mode.into(),
    };
    if mode(volume) != mode(claim) {
        return Err("incompatible volumeMode".to_owned());
    }
    let attributes = |object: &Value| Str::from(object.at(&["spec", "volumeAttributesClassName"]).text());
    if attributes(volume) != attributes(claim) {
        return Err("volumeAttributesClassName does not match".to_owned());
    }
    let offered = volume.at(&["spec", "accessModes"]).items();
    if !claim.at(&["spec", "accessModes"]).items().iter().all(|mode| offered.contains(mode)) {
        return Err("incompatible accessMode".to_owned());
    }
    Ok(())
}

/// Whether a volume is free and what the claim asks for.
pub fn would_do(claim: &Value, volume: &Value) -> bool {
    let selector = claim.at(&["spec", "selector"]);
    volume.at(&["metadata", "deletionTimestamp"]).is_null()
        && volume.at(&["status", "phase"]).text() == "Available"
        && holder(volume, claim) == Holder::Nobody
        && (selector.is_null() || Selector::of(selector).matches_value(volume.at(&["metadata", "labels"])))
        && check(claim, volume).is_ok()
}

/// What a volume says of the claim that it is for.
pub fn reference(claim: &Value) -> Value {
    let meta = &claim["metadata"];
    meta::json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": (meta["namespace"].clone()),
        "name": (meta["name"].clone()), "uid": (meta["uid"].clone()),
        "resourceVersion": (meta["resourceVersion"].clone()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use meta::json;

    #[test]
    fn a_volume_does_for_a_claim_that_asks_for_no_more() {
        let volume = json!({
            "metadata": {"name": "v", "labels": {"disk": "fast"}}, "status": {"phase": "Available"},
            "spec": {"capacity": {"storage": "2Gi"}, "accessModes": ["ReadWriteOnce"], "storageClassName": "c"},
        });
        let claim = json!({
            "metadata": {"name": "a", "namespace": "ns", "uid": "u"},
            "spec": {
                "resources": {"requests": {"storage": "1Gi"}}, "accessModes": ["ReadWriteOnce"], "storageClassName": "c",
            },
        });
        let with = |object: &Value, path: &[&str], value: Value| {
            let mut changed = object.clone();
            changed.set(path, value);
            changed
        };
        assert!(would_do(&claim, &volume));
        for (path, value) in [
            (&["spec", "resources", "requests", "storage"][..], json!("3Gi")),
            (&["spec", "accessModes"], json!(["ReadWriteMany"])),
            (&["spec", "storageClassName"], json!("d")),
            (&["spec", "volumeMode"], json!("Block")),
            (&["spec", "selector"], json!({"matchLabels": {"disk": "slow"}})),
        ] {
            assert!(!would_do(&with(&claim, path, value), &volume), "{path:?}");
        }
        let held = |uid: &str| {
            let reference = json!({"namespace": "ns", "name": "a", "uid": uid});
            with(&volume, &["spec", "claimRef"], reference)
        };
        assert_eq!(holder(&volume, &claim), Holder::Nobody);
        assert_eq!(holder(&held(""), &claim), Holder::This);
        assert_eq!(holder(&held("u"), &claim), Holder::This);
        assert_eq!(holder(&held("of another's life"), &claim), Holder::Another);
        assert!(!would_do(&claim, &held("")), "it is not free any more");
    }
}
