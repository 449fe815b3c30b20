//! What many controllers share: resources, references, claims of dependents, records, conditions, hashes.

use api::core::pod_facts::PodFacts;
use api::core::selecting::selects;
use api::core::selection;
use base::{Rng, Time, hash64};
use cache::{Event, View};
use meta::{Map, Object, Resource, Selector, Str, Value, json};
use reconcile::{Context, Effect, EventRecord, Lists, Outcome};

pub const PODS: Resource = Resource("pods");
pub const NODES: Resource = Resource("nodes");
pub const LEASES: Resource = Resource("leases.coordination.k8s.io");
/// Where nodes have their leases.
pub const LEASE_NAMESPACE: &str = "kube-node-lease";
pub const NAMESPACES: Resource = Resource("namespaces");
pub const SERVICES: Resource = Resource("services");
pub const ENDPOINTS: Resource = Resource("endpoints");
pub const SLICES: Resource = Resource("endpointslices.discovery.k8s.io");
pub const CONFIG_MAPS: Resource = Resource("configmaps");
pub const SERVICE_ACCOUNTS: Resource = Resource("serviceaccounts");
pub const REPLICATION_CONTROLLERS: Resource = Resource("replicationcontrollers");
pub const REPLICA_SETS: Resource = Resource("replicasets.apps");
pub const DEPLOYMENTS: Resource = Resource("deployments.apps");
pub const STATEFUL_SETS: Resource = Resource("statefulsets.apps");
pub const DAEMON_SETS: Resource = Resource("daemonsets.apps");
pub const REVISIONS: Resource = Resource("controllerrevisions.apps");
pub const JOBS: Resource = Resource("jobs.batch");
pub const CRON_JOBS: Resource = Resource("cronjobs.batch");
pub const BUDGETS: Resource = Resource("poddisruptionbudgets.policy");
pub const QUOTAS: Resource = Resource("resourcequotas");
pub const SIGNING_REQUESTS: Resource = Resource("certificatesigningrequests.certificates.k8s.io");
pub const TRUST_BUNDLES: Resource = Resource("clustertrustbundles.certificates.k8s.io");
pub const POD_CERTIFICATE_REQUESTS: Resource = Resource("podcertificaterequests.certificates.k8s.io");
pub const MIGRATIONS: Resource = Resource("storageversionmigrations.storagemigration.k8s.io");
pub const CLUSTER_ROLES: Resource = Resource("clusterroles.rbac.authorization.k8s.io");
pub const DEFINITIONS: Resource = Resource("customresourcedefinitions.apiextensions.k8s.io");

/// Objects created or deleted for one key in one pass; the rest follows in the next.
pub const BATCH_MAX: usize = 500;
/// The longest base of a generated name, so that its suffix still fits a label.
const GENERATED_BASE_MAX: usize = 58;
const SUFFIX_LETTERS: usize = 5;

/// A kind as references name it.
#[derive(Clone, Copy, Debug)]
pub struct Gvk {
    pub api_version: &'static str,
    pub kind: &'static str,
}

pub const POD: Gvk = Gvk { api_version: "v1", kind: "Pod" };

/// `namespace/name`, or `name` without a namespace.
pub fn key_of(object: &Object) -> Str {
    join(object.namespace(), object.name())
}

pub fn join(namespace: &str, name: &str) -> Str {
    if namespace.is_empty() { name.into() } else { format!("{namespace}/{name}").into() }
}

pub fn split(key: &str) -> (&str, &str) {
    key.split_once('/').unwrap_or(("", key))
}

/// Both sides of a change: the object before and after.
pub fn sides(event: &Event) -> impl Iterator<Item = &Object> {
    event.old.iter().chain(event.new.iter())
}

/// The keys of what an object is and was owned by, for owners of `kind`.
pub fn owner_keys(event: &Event, kind: &str, out: &mut Vec<Str>) {
    for object in sides(event) {
        if let Some(owner) = object.facts().controller()
            && owner.kind == kind
        {
            out.push(join(object.namespace(), &owner.name));
        }
    }
    out.dedup();
}

/// Those of `resource` who select an orphan, and may want it.
pub fn neighbours(view: &View, resource: Resource, event: &Event, out: &mut Vec<Str>) {
    if let Some(object) = event.new.as_ref()
        && object.facts().controller().is_none()
        && object.facts().deleting.is_none()
    {
        for place in selection::places_of(object) {
            let all = view.by(resource, selection::SELECTOR, &place);
            let wanting = all.filter(|one| one.namespace() == object.namespace() && selects(one, object));
            out.extend(wanting.map(key_of));
        }
    }
}

/// The facts of a pod, read anew where its kind keeps none.
pub fn pod_facts(pod: &Object) -> PodFacts {
    pod.own::<PodFacts>().cloned().unwrap_or_else(|| PodFacts::of(&pod.value()))
}

/// Whether a namespace is on its way out, and takes nothing new.
pub fn is_ending(namespace: &str, view: &View) -> bool {
    view.one(NAMESPACES, "", namespace).is_some_and(is_deleting)
}

pub fn is_deleting(object: &Object) -> bool {
    object.facts().deleting.is_some()
}

/// A controller reference to `owner`.
pub fn reference(of: Gvk, owner: &Object) -> Value {
    json!({
        "apiVersion": (of.api_version), "kind": (of.kind), "name": (owner.name()), "uid": (owner.uid()),
        "controller": true, "blockOwnerDeletion": true,
    })
}

pub fn controlled_by(object: &Object, uid: &str) -> bool {
    object.facts().controller().is_some_and(|owner| owner.uid == uid)
}

/// Owners that leave orphans alone that have ended (`replica_set.go`, `syncReplicaSet`).
const COUNTING: [&str; 2] = ["ReplicaSet", "ReplicationController"];

/// What is the owner's: dependents of `resource` it controls that fit (its selector, mostly). Those that no longer fit are
/// let go, orphans that fit are taken; both show in a later view.
pub fn claim(
    view: &View,
    resource: Resource,
    owner: &Object,
    of: Gvk,
    fits: &dyn Fn(&Object) -> bool,
    cx: &mut Context,
) -> Vec<Object> {
    let mut mine = Vec::new();
    let owner_deleting = is_deleting(owner);
    for object in view.owned(resource, owner.uid()).filter(|object| controlled_by(object, owner.uid())) {
        if fits(object) {
            mine.push(object.clone());
        } else if !owner_deleting && !is_deleting(object) {
            let kept = object
                .value()
                .at(&["metadata", "ownerReferences"])
                .items()
                .iter()
                .filter(|reference| reference["uid"].text() != owner.uid())
                .cloned()
                .collect::<Vec<_>>();
            own(cx, object, if kept.is_empty() { Value::Null } else { Value::from(kept) });
        }
    }
    cx.reads = mine.len();
    if owner_deleting {
        return mine;
    }
    let orphans: Vec<Object> = if resource == PODS {
        view.by(PODS, "orphans", owner.namespace()).cloned().collect()
    } else {
        view.list(resource, owner.namespace()).filter(|object| object.facts().controller().is_none()).cloned().collect()
    };
    for object in orphans {
        if !fits(&object) || is_deleting(&object) || object.namespace() != owner.namespace() {
            continue;
        }
        // Those that count their pods have no use for one that ended; those that name them need the name.
        if resource == PODS && COUNTING.contains(&of.kind) && pod_facts(&object).phase.is_final() {
            continue;
        }
        let mut owners = object.value().at(&["metadata", "ownerReferences"]).items().to_vec();
        owners.push(reference(of, owner));
        own(cx, &object, Value::from(owners));
    }
    mine
}

fn own(cx: &mut Context, object: &Object, owners: Value) {
    cx.push(Effect::Patch {
        resource: object.resource(),
        subresource: "",
        namespace: object.namespace().into(),
        name: object.name().into(),
        uid: object.uid().into(),
        patch: json!({"metadata": {"ownerReferences": owners, "resourceVersion": (object.revision().to_string())}}),
        lists: Lists::Replaced,
    });
}

/// Changes a pod's status: single fields, and conditions by their type. What its node wrote beside stays.
pub fn amend_status(cx: &mut Context, pod: &Object, status: Value) {
    cx.push(Effect::Patch {
        resource: PODS,
        subresource: "status",
        namespace: pod.namespace().into(),
        name: pod.name().into(),
        uid: pod.uid().into(),
        patch: json!({"status": status}),
        lists: Lists::Merged,
    });
}

/// The condition of a pod that does not serve, as its node is not there.
pub fn unready(now: Time) -> Value {
    json!({"type": "Ready", "status": "False", "lastTransitionTime": (now.rfc3339())})
}

/// Whether a pod is to its owners, and to those who might want it, what it was before.
pub fn counts_as_before(event: &Event) -> bool {
    let (Some(old), Some(new)) = (&event.old, &event.new) else { return false };
    let counted = |pod: &Object| {
        let facts = pod_facts(pod);
        (facts.phase, facts.ready, facts.ready_since, is_deleting(pod))
    };
    counted(old) == counted(new) && old.labels() == new.labels() && old.facts().owners == new.facts().owners
}

/// A record about an object. Directly after a write it tells of that write, and is stored only if the write went well.
pub fn record(
    cx: &mut Context,
    reporter: &str,
    of: Gvk,
    object: &Object,
    of_type: &'static str,
    reason: &str,
    message: String,
) {
    cx.push(Effect::Record(EventRecord {
        about: json!({
            "apiVersion": (of.api_version), "kind": (of.kind), "namespace": (object.namespace()),
            "name": (object.name()), "uid": (object.uid()), "resourceVersion": (object.revision().to_string()),
        }),
        related: Value::Null,
        of_type,
        reason: reason.into(),
        action: Str::default(),
        message,
        reporter: reporter.into(),
        host: Str::default(),
    }));
}

/// Deletes exactly this object.
pub fn delete(cx: &mut Context, object: &Object, propagation: &'static str) {
    cx.push(Effect::Delete {
        resource: object.resource(),
        namespace: object.namespace().into(),
        name: object.name().into(),
        uid: object.uid().into(),
        revision: None,
        propagation,
        grace_seconds: None,
    });
}

/// Writes `status` if it is not what stands there.
pub fn write_status(cx: &mut Context, object: &Object, value: &Value, status: Value) -> bool {
    if value["status"] == status {
        return false;
    }
    let mut value = value.clone();
    value.set(&["status"], status);
    cx.push(Effect::UpdateSub { resource: object.resource(), subresource: "status", object: value });
    true
}

/// A pod of `template`, owned by `owner`; its name is `prefix` and a suffix, the first of those in `rng` that is not taken.
///
/// A decision that follows a failure has the same `rng`. By then some of its pods are there: their names are passed over, so
/// that those that were refused are asked for by the names that they were refused by. A refused creation may happen yet, when
/// somebody on the way has sent it twice, and another name would make up for it by a pod too many. For the same reason a pod
/// that is for one place alone has an `rng` of that place's own.
pub fn pod_of(
    template: &Value,
    of: Gvk,
    owner: &Object,
    prefix: &str,
    taken: impl Fn(&str) -> bool,
    rng: &mut Rng,
) -> Value {
    let mut metadata = Map::new();
    for field in ["labels", "annotations", "finalizers"] {
        if let Some(value) = template["metadata"].get(field).filter(|value| !value.is_null()) {
            metadata.insert(field, value.clone());
        }
    }
    metadata.insert("namespace", owner.namespace());
    metadata.insert("generateName", prefix);
    let mut name = generated(prefix, rng);
    while taken(&name) {
        name = generated(prefix, rng);
    }
    metadata.insert("name", name);
    metadata.insert("ownerReferences", Value::from(vec![reference(of, owner)]));
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": (template["spec"].clone())})
}

pub fn generated(prefix: &str, rng: &mut Rng) -> String {
    let mut end = prefix.len().min(GENERATED_BASE_MAX);
    while !prefix.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{}", &prefix[..end], rng.suffix(SUFFIX_LETTERS))
}

const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// A short stable name for a template: the same for equal trees and `salt` everywhere and always.
pub fn hash_of(template: &Value, salt: i64) -> String {
    let mut text = template.to_json();
    if salt != 0 {
        text.extend_from_slice(salt.to_string().as_bytes());
    }
    let mut rest = hash64(&text);
    (0..10)
        .map(|_| {
            let letter = LETTERS[(rest % 27) as usize];
            rest /= 27;
            char::from(letter)
        })
        .collect()
}

/// The name that Kubernetes gives a revision with this `data` (`HashControllerRevision`): FNV-1 with 32 bits of the JSON that
/// Go writes and the count of `collisions`, its decimal digits as letters that spell no words (`SafeEncodeString`).
pub fn revision_hash(data: &Value, collisions: i64) -> String {
    let mut hash = 0x811c_9dc5_u32;
    let mut add = |bytes: &[u8]| {
        for byte in bytes {
            hash = hash.wrapping_mul(0x0100_0193) ^ u32::from(*byte);
        }
    };
    for byte in data.to_json() {
        // Go escapes what has a meaning in HTML; outside of texts JSON has none of it.
        match byte {
            b'<' | b'>' | b'&' => add(format!("\\u{byte:04x}").as_bytes()),
            byte => add(&[byte]),
        }
    }
    add(collisions.to_string().as_bytes());
    hash.to_string().bytes().map(|digit| char::from(LETTERS[usize::from(digit) % LETTERS.len()])).collect()
}

/// The same tree without nulls and empty maps, so that trees written by different hands compare.
pub fn essence(value: &Value) -> Value {
    match value {
        Value::Map(map) => Value::Map(
            map.iter()
                .map(|(key, value)| (key, essence(value)))
                .filter(|(_, value)| !value.is_null() && value.as_map().is_none_or(|map| !map.is_empty()))
                .collect(),
        ),
        Value::List(items) => Value::List(items.iter().map(essence).collect()),
        other => other.clone(),
    }
}

/// The pods of a namespace that a selector selects, by name.
pub fn selected<'a>(
    view: &'a View,
    namespace: &'a str,
    selector: &'a Selector,
) -> Box<dyn Iterator<Item = &'a Object> + 'a> {
    let pods: Box<dyn Iterator<Item = &'a Object>> = match selection::place_of_all(namespace, selector) {
        Some(place) => Box::new(view.by(PODS, selection::LABELS, &place)),
        None => Box::new(view.list(PODS, namespace)),
    };
    Box::new(pods.filter(move |pod| pod.namespace() == namespace && selector.matches(pod.labels())))
}

/// The condition of a type, or null.
pub fn condition<'a>(status: &'a Value, of_type: &str) -> &'a Value {
    static NONE: Value = Value::Null;
    status["conditions"].items().iter().find(|one| one["type"].text() == of_type).unwrap_or(&NONE)
}

/// Adds to `map` what is not zero, as optional numbers are written.
pub fn put_count(status: &mut Value, field: &str, count: i64) {
    if count != 0 {
        status.set(&[field], count);
    }
}

/// The earliest of what was known and `at`.
pub fn sooner(again: &mut Option<Time>, at: Time) {
    *again = Some(again.map_or(at, |known| known.min(at)));
}

pub fn outcome(again: Option<Time>) -> Outcome {
    again.map_or(Outcome::Settled, Outcome::Again)
}

pub fn seconds_ms(seconds: i64) -> u64 {
    u64::try_from(seconds).unwrap_or(0).saturating_mul(1000)
}

/// Whether a ready pod has been so for `min_ready` seconds; if not yet, `again` says when.
pub fn is_available(facts: &PodFacts, min_ready: i64, now: Time, again: &mut Option<Time>) -> bool {
    if !facts.ready {
        return false;
    }
    if min_ready <= 0 {
        return true;
    }
    let at = facts.ready_since.plus_ms(seconds_ms(min_ready));
    if at <= now {
        return true;
    }
    sooner(again, at);
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn revisions_are_named_as_kubernetes_names_them() {
        let container = json!({
            "name": "c", "image": "i:1", "imagePullPolicy": "IfNotPresent", "resources": {"requests": {"cpu": "10m"}},
            "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
        });
        let empty = Value::map();
        let template = json!({
            "metadata": {"labels": {"app": "x"}}, "$patch": "replace",
            "spec": {
                "containers": [(container)], "dnsPolicy": "ClusterFirst", "restartPolicy": "Always",
                "schedulerName": "default-scheduler", "securityContext": (empty), "terminationGracePeriodSeconds": 1,
            },
        });
        // As a cluster of Kubernetes 1.36 named it.
        assert_eq!(revision_hash(&json!({"spec": {"template": (template)}}), 0), "f97fcb86b");
    }

    #[test]
    fn what_go_escapes_is_escaped() {
        assert_eq!(revision_hash(&json!({"a": "<&>"}), 0), "869cb9b6b5");
    }
}
