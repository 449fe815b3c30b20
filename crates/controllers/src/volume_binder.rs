//! Binds claims to volumes, and says of both how they stand, as Kubernetes' persistent volume controller does.
//!
//! Claims of a class that waits for a pod are bound when the scheduler promised them a volume or told them a node. Volumes
//! are made and destroyed by whom the class names; here they are only asked for.
//!
//! A binding is written in steps, each of which rests on what the view shows of the last: the volume names the claim, the
//! volume is said to be bound, the claim names the volume, the claim is said to be bound.

use api::core::volume_binding::{
    self, BIND_COMPLETED, BOUND_BY_CONTROLLER, CLAIMS, CLASSES, Holder, PROVISIONERS, SELECTED_NODE, VOLUMES,
    annotation,
};
use api::default_class;
use cache::{Event, View};
use meta::{Object, Resource, Str, Value};
use reconcile::{Context, Effect, Outcome, Reconciler};

use crate::common::*;

const REPORTER: &str = "persistentvolume-controller";
const CLAIM: Gvk = Gvk { api_version: "v1", kind: "PersistentVolumeClaim" };
const VOLUME: Gvk = Gvk { api_version: "v1", kind: "PersistentVolume" };
/// On a volume: who made it, and is to destroy it.
const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
/// Names that no program outside of Kubernetes has.
const INTERNAL: &str = "kubernetes.io/";

/// Keys are those of claims (`namespace/name`) and volumes (`name`).
pub struct VolumeBinder;

impl Reconciler for VolumeBinder {
    fn name(&self) -> &'static str {
        "persistent-volume-binder"
    }

    fn watches(&self) -> &[Resource] {
        &[CLAIMS, VOLUMES, CLASSES]
    }

    fn keys(&self, resource: Resource, event: &Event, view: &View, out: &mut Vec<Str>) {
        if resource != CLASSES {
            out.extend(sides(event).map(key_of));
        }
        match resource {
            CLAIMS => {
                let names = sides(event).map(|claim| Str::from(claim.value().at(&["spec", "volumeName"]).text()));
                out.extend(names.filter(|name| !name.is_empty()));
            }
            VOLUMES => {
                let references = sides(event).map(|volume| volume.value().at(&["spec", "claimRef"]).clone());
                let named = references.filter(|reference| !reference.is_null());
                out.extend(named.map(|one| join(one["namespace"].text(), one["name"].text())));
                // Claims that name no volume may have one that nobody has, and those that name this one have waited for it.
                let free = event.new.as_ref().filter(|volume| volume.value().at(&["spec", "claimRef"]).is_null());
                let waits = |claim: &Value, volume: &Object| {
                    let wanted = claim.at(&["spec", "volumeName"]).text();
                    wanted == volume.name()
                        || wanted.is_empty()
                            && volume_binding::class_of(claim) == volume_binding::class_of(&volume.value())
                };
                if let Some(volume) = free {
                    out.extend(view.list(CLAIMS, "").filter(|claim| waits(&claim.value(), volume)).map(key_of));
                }
                // Its claim says so when it is lost.
                if let (None, Some(old)) = (&event.new, &event.old) {
                    let of = |claim: &Object| claim.value().at(&["spec", "volumeName"]).text() == old.name();
                    out.extend(view.list(CLAIMS, "").filter(|claim| of(claim)).map(key_of));
                }
            }
            _ => {
                let class = sides(event).next().map_or("", Object::name);
                let waits = |claim: &Value| {
                    claim.at(&["spec", "volumeName"]).text().is_empty()
                        && (volume_binding::class_of(claim) == class || volume_binding::asks_for_default(claim))
                };
                out.extend(view.list(CLAIMS, "").filter(|claim| waits(&claim.value())).map(key_of));
            }
        }
        out.sort();
        out.dedup();
    }

    fn reconcile(&self, key: &str, view: &View, cx: &mut Context) -> Outcome {
        match key.split_once('/') {
            Some((namespace, name)) => {
                if let Some(claim) = view.one(CLAIMS, namespace, name) {
                    look_at_claim(claim, &claim.value(), view, cx);
                }
            }
            None => {
                if let Some(volume) = view.one(VOLUMES, "", key) {
                    look_at_volume(volume, &volume.value(), view, cx);
                }
            }
        }
        Outcome::Settled
    }
}

fn look_at_claim(claim: &Object, value: &Value, view: &View, cx: &mut Context) {
    let name = value.at(&["spec", "volumeName"]).text();
    let volume = view.one(VOLUMES, "", name);
    if !annotation(value, BIND_COMPLETED).is_empty() {
        let why = match volume.map(|volume| volume_binding::holder(&volume.value(), value)) {
            _ if name.is_empty() => "Bound claim has lost reference to PersistentVolume. Data on the volume is lost!",
            None => "Bound claim has lost its PersistentVolume. Data on the volume is lost!",
            Some(Holder::Another) => "Two claims are bound to the same volume, this one is bound incorrectly",
            Some(_) => "",
        };
        match volume.filter(|_| why.is_empty()) {
            Some(volume) => bind(claim, value, volume, &volume.value(), cx),
            None => lose(claim, value, why, cx),
        }
        return;
    }
    if is_deleting(claim) {
        return;
    }
    if name.is_empty() {
        find(claim, value, view, cx);
        return;
    }
    let Some(volume) = volume else { return };
    let found = volume.value();
    match volume_binding::holder(&found, value) {
        Holder::Another => {
            let message = format!("volume {name:?} already bound to a different claim.");
            record(cx, REPORTER, CLAIM, claim, "Warning", "FailedBinding", message);
        }
        _ => match volume_binding::check(value, &found) {
            Ok(()) => bind(claim, value, volume, &found, cx),
            Err(why) => {
                let message = format!("Cannot bind to requested volume {name:?}: {why}");
                record(cx, REPORTER, CLAIM, claim, "Warning", "VolumeMismatch", message);
            }
        },
    }
}

/// Finds a volume for a claim that names none, or has one made.
fn find(claim: &Object, value: &Value, view: &View, cx: &mut Context) {
    let class_name = volume_binding::class_of(value);
    let class = view.one(CLASSES, "", class_name).map(Object::value);
    let waits_for_pod = class.as_ref().is_some_and(volume_binding::waits_for_pod);
    let told = !annotation(value, SELECTED_NODE).is_empty();
    let own = |(_, volume): &(&Object, Value)| {
        volume_binding::holder(volume, value) == Holder::This && volume_binding::check(value, volume).is_ok()
    };
    let volumes: Vec<(&Object, Value)> = view.list(VOLUMES, "").map(|volume| (volume, volume.value())).collect();
    cx.reads = volumes.len();
    // Which of them a pod can reach is the scheduler's to say.
    let free = || {
        let free = volumes.iter().filter(|(_, volume)| !waits_for_pod && volume_binding::would_do(value, volume));
        free.min_by(|(_, a), (_, b)| volume_binding::capacity(a).compare(&volume_binding::capacity(b)))
    };
    if let Some((volume, found)) = volumes.iter().find(|one| own(one)).or_else(free) {
        bind(claim, value, volume, found, cx);
        return;
    }
    if waits_for_pod && !told {
        let message = "waiting for first consumer to be created before binding".to_owned();
        record(cx, REPORTER, CLAIM, claim, "Normal", "WaitForFirstConsumer", message);
        return;
    }
    if volume_binding::asks_for_default(value)
        && let Some(class) = default_class::of(view.list(CLASSES, ""), default_class::STORAGE)
    {
        // There was none when the claim was made.
        let mut object = value.clone();
        object.set(&["spec", "storageClassName"], class.name());
        cx.push(Effect::Update { resource: CLAIMS, object });
        return;
    }
    if class_name.is_empty() {
        let message = "no persistent volumes available for this claim and no storage class is set".to_owned();
        record(cx, REPORTER, CLAIM, claim, "Normal", "FailedBinding", message);
        return;
    }
    let Some(class) = class else {
        let message = format!("storageclass.storage.k8s.io {class_name:?} not found");
        record(cx, REPORTER, CLAIM, claim, "Warning", "ProvisioningFailed", message);
        return;
    };
    let provisioner = class["provisioner"].text();
    if provisioner.starts_with(INTERNAL) {
        let message = format!("no volume plugin matched name: {provisioner}");
        record(cx, REPORTER, CLAIM, claim, "Warning", "ProvisioningFailed", message);
        return;
    }
    if PROVISIONERS.iter().any(|key| annotation(value, key) != provisioner) {
        let mut object = value.clone();
        for key in PROVISIONERS {
            object.set(&["metadata", "annotations", key], provisioner);
        }
        cx.push(Effect::Update { resource: CLAIMS, object });
    }
    let message = format!(
        "Waiting for a volume to be created either by the external provisioner '{provisioner}' or manually by the \
         system administrator. If volume creation is delayed, please verify that the provisioner is running and \
         correctly registered."
    );
    record(cx, REPORTER, CLAIM, claim, "Normal", "ExternalProvisioning", message);
}

/// The next step of a binding.
fn bind(claim: &Object, value: &Value, volume: &Object, found: &Value, cx: &mut Context) {
    let reference = found.at(&["spec", "claimRef"]);
    if reference["uid"].text() != claim.uid() {
        let mut object = found.clone();
        if reference.is_null() {
            object.set(&["metadata", "annotations", BOUND_BY_CONTROLLER], "yes");
        }
        object.set(&["spec", "claimRef"], volume_binding::reference(value));
        cx.push(Effect::Update { resource: VOLUMES, object });
        return;
    }
    if say(volume, found, "Bound", "", cx) {
        return;
    }
    let is_named = !value.at(&["spec", "volumeName"]).text().is_empty();
    if !is_named || annotation(value, BIND_COMPLETED).is_empty() {
        let mut object = value.clone();
        if !is_named {
            object.set(&["spec", "volumeName"], volume.name());
            object.set(&["metadata", "annotations", BOUND_BY_CONTROLLER], "yes");
        }
        object.set(&["metadata", "annotations", BIND_COMPLETED], "yes");
        cx.push(Effect::Update { resource: CLAIMS, object });
        return;
    }
    // What it was given once only grows by those who make it grow.
    if value.at(&["status", "phase"]).text() != "Bound" {
        let mut status = value["status"].clone();
        status.set(&["phase"], "Bound");
        status.set(&["accessModes"], found.at(&["spec", "accessModes"]).clone());
        status.set(&["capacity"], found.at(&["spec", "capacity"]).clone());
        write_status(cx, claim, value, status);
    }
}

fn lose(claim: &Object, value: &Value, why: &str, cx: &mut Context) {
    let mut status = value["status"].clone();
    status.set(&["phase"], "Lost");
    status.take(&["accessModes"]);
    status.take(&["capacity"]);
    if write_status(cx, claim, value, status) {
        let reason = if why.starts_with("Two") { "ClaimMisbound" } else { "ClaimLost" };
        record(cx, REPORTER, CLAIM, claim, "Warning", reason, why.to_owned());
    }
}

/// Says how a volume stands; whether that is news.
fn say(volume: &Object, found: &Value, phase: &str, message: &str, cx: &mut Context) -> bool {
    let mut status = found["status"].clone();
    if status["phase"].text() == phase {
        return false;
    }
    status.set(&["phase"], phase);
    status.take(&["message"]);
    if !message.is_empty() {
        status.set(&["message"], message);
    }
    write_status(cx, volume, found, status)
}

fn look_at_volume(volume: &Object, value: &Value, view: &View, cx: &mut Context) {
    let reference = value.at(&["spec", "claimRef"]);
    if reference["uid"].text().is_empty() {
        // Nobody's, or that of a claim which is still to come.
        say(volume, value, "Available", "", cx);
        return;
    }
    let claim = view.one(CLAIMS, reference["namespace"].text(), reference["name"].text()).map(Object::value);
    let claim = claim.filter(|claim| volume_binding::holder(value, claim) == Holder::This);
    let Some(claim) = claim else {
        release(volume, value, cx);
        return;
    };
    match claim.at(&["spec", "volumeName"]).text() {
        // The claim's own steps.
        "" => {}
        name if name == volume.name() => {
            say(volume, value, "Bound", "", cx);
        }
        _ => unbind(value, cx),
    }
}

/// The claim is gone; what lies there is not anybody else's.
fn release(volume: &Object, value: &Value, cx: &mut Context) {
    let phase = value.at(&["status", "phase"]).text();
    if phase == "Failed" || phase != "Released" && say(volume, value, "Released", "", cx) {
        return;
    }
    // Whoever made it destroys it; nobody does that for what people made.
    let is_for_us = annotation(value, PROVISIONED_BY).is_empty() && !is_deleting(volume);
    let policy = value.at(&["spec", "persistentVolumeReclaimPolicy"]).text();
    if is_for_us && policy != "Retain" {
        let (reason, doing) = if policy == "Delete" {
            ("VolumeFailedDelete", "deletable")
        } else {
            ("VolumeFailedRecycle", "recyclable")
        };
        let message = format!("no {doing} volume plugin matched");
        if say(volume, value, "Failed", &message, cx) {
            record(cx, REPORTER, VOLUME, volume, "Warning", reason, message);
        }
    }
}

/// Its claim has another volume: it is free again, for whom it was before.
fn unbind(value: &Value, cx: &mut Context) {
    let mut object = value.clone();
    if annotation(value, BOUND_BY_CONTROLLER).is_empty() {
        object.take(&["spec", "claimRef", "uid"]);
        object.take(&["spec", "claimRef", "resourceVersion"]);
    } else {
        object.take(&["spec", "claimRef"]);
        object.take(&["metadata", "annotations", BOUND_BY_CONTROLLER]);
    }
    cx.push(Effect::Update { resource: VOLUMES, object });
}

#[cfg(test)]
mod tests {
    use meta::json;

    use super::*;
    use crate::testing::World;

    fn volume(name: &str, size: &str, class: &str) -> Value {
        json!({
            "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name},
            "spec": {
                "capacity": {"storage": size}, "accessModes": ["ReadWriteOnce"], "storageClassName": class,
                "persistentVolumeReclaimPolicy": "Retain", "hostPath": {"path": "/data"},
            },
        })
    }

    fn claim(name: &str, size: &str, class: Value) -> Value {
        json!({
            "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name, "namespace": "ns"},
            "spec": {
                "resources": {"requests": {"storage": size}}, "accessModes": ["ReadWriteOnce"],
                "storageClassName": class,
            },
            "status": {"phase": "Pending"},
        })
    }

    /// `phase name-of-the-other` of a claim or a volume.
    fn state(world: &World, resource: Resource, namespace: &str, name: &str) -> String {
        let object = world.get(resource, namespace, name);
        let other = match resource {
            CLAIMS => &object["spec"]["volumeName"],
            _ => &object["spec"]["claimRef"]["name"],
        };
        format!("{} {}", object["status"]["phase"].text(), other.text())
    }

    #[test]
    fn the_smallest_that_does_is_bound_and_kept_for_nobody_else() {
        let mut world = World::new();
        world.create(VOLUMES, volume("large", "9Gi", "c"));
        world.create(VOLUMES, volume("small", "2Gi", "c"));
        world.create(VOLUMES, volume("other", "1Gi", "d"));
        world.settle();
        world.create(CLAIMS, claim("a", "1Gi", json!("c")));
        world.settle();
        assert_eq!(state(&world, CLAIMS, "ns", "a"), "Bound small");
        assert_eq!(state(&world, VOLUMES, "", "small"), "Bound a");
        assert_eq!(state(&world, VOLUMES, "", "large"), "Available ");
        let bound = world.get(CLAIMS, "ns", "a");
        assert_eq!(bound["status"]["capacity"]["storage"].text(), "2Gi");
        assert_eq!(annotation(&bound, BIND_COMPLETED), "yes");

        world.delete(CLAIMS, "ns", "a", "Background");
        world.create(CLAIMS, claim("a", "1Gi", json!("c")));
        world.settle();
        assert_eq!(state(&world, VOLUMES, "", "small"), "Released a", "it holds what the first of this name wrote");
        assert_eq!(state(&world, CLAIMS, "ns", "a"), "Bound large");

        world.delete(VOLUMES, "", "large", "Background");
        world.settle();
        assert_eq!(state(&world, CLAIMS, "ns", "a"), "Lost large");
        assert!(world.reasons().contains(&"ClaimLost"));
    }

    #[test]
    fn what_nothing_does_for_waits_until_something_does() {
        let mut world = World::new();
        world.create(CLAIMS, claim("a", "1Gi", json!("")));
        world.settle();
        assert_eq!(world.reasons(), ["FailedBinding"]);
        world.create(VOLUMES, volume("v", "1Gi", ""));
        world.settle();
        assert_eq!(state(&world, CLAIMS, "ns", "a"), "Bound v");
    }

    #[test]
    fn a_claim_without_a_class_gets_the_default_that_comes_later() {
        let mut world = World::new();
        world.create(CLAIMS, claim("a", "1Gi", Value::Null));
        world.create(CLAIMS, claim("none", "1Gi", json!("")));
        world.settle();
        let mut class = json!({
            "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": "c"},
            "provisioner": "example.com/disks", "volumeBindingMode": "Immediate",
        });
        class.set(&["metadata", "annotations", default_class::STORAGE[0]], "true");
        world.create(CLASSES, class);
        world.settle();
        let asked = world.get(CLAIMS, "ns", "a");
        assert_eq!(asked["spec"]["storageClassName"].text(), "c");
        assert!(PROVISIONERS.iter().all(|key| annotation(&asked, key) == "example.com/disks"));
        assert_eq!(world.reasons().last(), Some(&"ExternalProvisioning"));
        assert_eq!(world.get(CLAIMS, "ns", "none")["spec"]["storageClassName"].text(), "");
    }

    #[test]
    fn a_claim_that_waits_for_a_pod_gets_what_the_scheduler_chose() {
        let mut world = World::new();
        world.create(
            CLASSES,
            json!({
                "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": "c"},
                "provisioner": "kubernetes.io/no-provisioner", "volumeBindingMode": "WaitForFirstConsumer",
            }),
        );
        world.create(VOLUMES, volume("v", "1Gi", "c"));
        world.create(CLAIMS, claim("a", "1Gi", json!("c")));
        world.settle();
        assert_eq!(state(&world, CLAIMS, "ns", "a"), "Pending ");
        assert!(world.reasons().iter().all(|reason| *reason == "WaitForFirstConsumer"));
        let reference = volume_binding::reference(&world.get(CLAIMS, "ns", "a"));
        world.change(VOLUMES, "", "v", |volume| volume.set(&["spec", "claimRef"], reference));
        world.settle();
        assert_eq!(state(&world, CLAIMS, "ns", "a"), "Bound v");
    }

    #[test]
    fn claims_and_volumes_that_name_each_other() {
        let mut world = World::new();
        let mut kept = volume("kept", "1Gi", "c");
        kept.set(&["spec", "claimRef"], json!({"namespace": "ns", "name": "b"}));
        world.create(VOLUMES, kept);
        let mut asks = claim("a", "1Gi", json!("c"));
        asks.set(&["spec", "volumeName"], "kept");
        world.create(CLAIMS, asks);
        world.settle();
        assert_eq!(state(&world, CLAIMS, "ns", "a"), "Pending kept", "it is another's");
        world.create(CLAIMS, claim("b", "1Gi", json!("c")));
        world.settle();
        assert_eq!(state(&world, CLAIMS, "ns", "b"), "Bound kept");
        assert_eq!(annotation(&world.get(VOLUMES, "", "kept"), BOUND_BY_CONTROLLER), "");
    }
}
