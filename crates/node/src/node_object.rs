//! What is told of the node itself: its object, its status, its lease.

use std::sync::Arc;
use std::time::Duration;

use api::core::node_facts::{HAD_NETWORK, NodeFacts};
use base::Time;
use cache::{Key, Part};
use client::{Interest, PatchType, Request};
use meta::{Object, Quantity, Reason, Resource, Status, Str, Value, json};
use tokio::time::Instant;

use crate::agent::{Agent, NODES};
use crate::pod::Standing;
use crate::pod::status::replacing;

const LEASES: Resource = Resource("leases.coordination.k8s.io");
const LEASE_NAMESPACE: &str = "kube-node-lease";
const LEASE_SECONDS: i64 = 40;
const RENEW: Duration = Duration::from_secs(10);
/// How often it is looked whether the status says something new.
pub const LOOK_MS: u64 = 60_000;
/// A status that says nothing new is told this often all the same, as in Kubernetes. That a node lives is told by its lease:
/// a status goes to everybody who watches nodes, which is every node.
pub const TELL_MS: u64 = 300_000;
const RETRY: Duration = Duration::from_secs(1);

/// Registers the node and keeps its status and lease fresh, for as long as the process lives. When somebody deletes the
/// node's object, its pods end, and then it is registered anew.
pub async fn keep(agent: Arc<Agent>) {
    loop {
        while let Err(status) = register(&agent).await {
            tracing::warn!("the node could not be registered: {status}");
            tokio::time::sleep(RETRY).await;
        }
        beat(&agent).await;
        tracing::warn!("the node's object was deleted; the node comes anew when nothing runs here any more");
    }
}

/// Keeps the node's status and lease fresh until its object is gone.
async fn beat(agent: &Agent) {
    let (mut told, mut looked): (Option<Instant>, Option<Instant>) = (None, None);
    let (mut known, mut owned) = (false, false);
    loop {
        let mut unknown = false;
        if looked.is_none_or(|looked| looked.elapsed() >= Duration::from_millis(LOOK_MS)) {
            let silent = told.map_or(Duration::MAX, |told| told.elapsed());
            match tell(agent, silent).await {
                Ok(true) => (told, looked) = (Some(Instant::now()), Some(Instant::now())),
                Ok(false) => looked = Some(Instant::now()),
                Err(status) => {
                    unknown = status.reason() == Reason::NotFound;
                    tracing::warn!("the node's status was not written: {status}");
                }
            }
        }
        let shows = own(agent).is_some();
        known |= shows;
        if !shows && (known || unknown) {
            return;
        }
        let began_ms = runtime::boot_ms();
        let owner = if owned { Str::default() } else { uid(agent).await };
        let pause = match renew(agent, &owner).await {
            Ok(()) => {
                owned |= !owner.is_empty();
                stand(agent, began_ms).await;
                RENEW
            }
            Err(status) => {
                tracing::warn!("the lease was not renewed: {status}");
                RETRY
            }
        };
        if tokio::time::timeout(pause, doubted(agent)).await.is_ok() {
            // Others think that the node is gone; it says at once that it is not.
            looked = None;
            tokio::time::sleep(RETRY).await;
        }
    }
}

/// The node's object as far as the agent was told.
fn own(agent: &Agent) -> Option<Object> {
    agent.mirror.one(NODES, "", &agent.options.node)
}

/// The uid of the node's object; empty where it is not known.
async fn uid(agent: &Agent) -> Str {
    match own(agent) {
        Some(node) => node.uid().into(),
        None => {
            let node = agent.fetch(NODES, "", &agent.options.node).await.ok().flatten().unwrap_or_default();
            node.at(&["metadata", "uid"]).text().into()
        }
    }
}

/// Notes that the lease was renewed. A lease of a node that is no more proves nothing: pods of such a node are given up.
async fn stand(agent: &Agent, began_ms: u64) {
    let is_known = own(agent).is_some() || matches!(agent.fetch(NODES, "", &agent.options.node).await, Ok(Some(_)));
    if is_known {
        agent.standing.send_replace(Standing::renewed(began_ms));
    }
}

/// Until somebody else has written that it is unknown how the node fares, or has deleted its object.
async fn doubted(agent: &Agent) {
    let part = Part::Named(Key::of("", &agent.options.node));
    let changed = agent.mirror.listen(Interest::Parts(vec![(NODES, part)]));
    let was_known = own(agent).is_some();
    loop {
        let node = own(agent);
        if node.as_ref().map_or(was_known, |node| NodeFacts::read(node).ready == "Unknown") {
            return;
        }
        changed.changed().await;
    }
}

fn arch() -> &'static str {
    if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }
}

async fn register(agent: &Agent) -> Result<(), Status> {
    let name = &agent.options.node;
    let mut labels = json!({
        "kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": (arch()),
        "beta.kubernetes.io/os": "linux", "beta.kubernetes.io/arch": (arch()),
    });
    for (key, value) in &agent.options.labels {
        labels.set(&[key], value);
    }
    let mut node = json!({"metadata": {"name": name, "labels": labels}, "status": (status(agent).await)});
    if let Some(network) = agent.last_network() {
        node.set(&["metadata", "annotations", HAD_NETWORK], network);
    }
    while runs_pods(agent).await && !matches!(agent.fetch(NODES, "", name).await, Ok(Some(_))) {
        // As far as is known they belong to an object of the node that is gone. Whoever asks them to end waits for as long as
        // something is heard from here.
        if let Err(status) = renew(agent, "").await {
            tracing::warn!("the lease was not renewed: {status}");
        }
        tokio::time::sleep(RETRY).await;
    }
    match agent.api.call(Request::create(NODES, node)).await {
        Err(status) if status.reason() == Reason::AlreadyExists => Ok(()),
        other => other.map(|_| ()),
    }
}

/// Whether anything may run here.
async fn runs_pods(agent: &Agent) -> bool {
    // The sender lives as long as the agent.
    let _ = agent.adopted.subscribe().wait_for(|adopted| *adopted).await;
    !agent.runtime.sandboxes().await.is_ok_and(|sandboxes| sandboxes.is_empty())
}

/// Tells the node's status where it is due after such a silence; says whether it was.
async fn tell(agent: &Agent, silent: Duration) -> Result<bool, Status> {
    let old = own(agent).map(|node| node.value()).unwrap_or_default();
    let status = status(agent).await;
    if !is_due(&status, &old, u64::try_from(silent.as_millis()).unwrap_or(u64::MAX)) {
        return Ok(false);
    }
    let request = telling(&agent.options.node, status, &old, agent.now());
    agent.api.call(request).await.map(|_| true)
}

/// Whether a status is to be told that was told last so long ago: it says something else than what the node's object shows,
/// times aside, or it has been long.
pub fn is_due(status: &Value, old: &Value, silent_ms: u64) -> bool {
    let known = &old["status"];
    let shows = |(key, value): (&str, &Value)| match key {
        "conditions" => value.items().iter().all(|one| {
            let same =
                |other: &&Value| ["type", "status", "reason", "message"].iter().all(|key| one[*key] == other[*key]);
            known[key].items().iter().any(|other| same(&other))
        }),
        // The server shows an amount in its shortest form.
        "capacity" | "allocatable" => value.entries().iter().all(|(name, amount)| {
            let read = |amount: &Value| amount.text().parse::<Quantity>().ok();
            read(amount) == read(&known[key][name])
        }),
        _ => known[key] == *value,
    };
    silent_ms >= TELL_MS || !status.entries().iter().all(shows)
}

/// The request that writes a node's status; conditions that stay what they were keep their times, and those of others are
/// not spoken of.
pub fn telling(node: &str, mut status: Value, old: &Value, now: Time) -> Request {
    let known = old.at(&["status", "conditions"]).items();
    if let Some(conditions) = status.get_mut("conditions") {
        for condition in conditions.items_mut() {
            let before =
                known.iter().find(|one| one["type"] == condition["type"] && one["status"] == condition["status"]);
            let since = before.map_or(Value::from(now.rfc3339()), |before| before["lastTransitionTime"].clone());
            condition.set(&["lastTransitionTime"], since);
        }
    }
    // Merged by their types, of several addresses of one type the last would stand for all.
    let addresses = replacing(&status["addresses"]);
    status.set(&["addresses"], addresses);
    let request = Request::patch(NODES, "", node, PatchType::Strategic, json!({"status": status}));
    request.on("status").with(|options| options.manager = "kubelet".into())
}

/// What a node that is well says of itself.
pub fn conditions(now: Time) -> Value {
    let now = now.rfc3339();
    let condition = |of_type: &str, status: &str, reason: &str, message: &str| {
        json!({
            "type": of_type, "status": status, "reason": reason, "message": message,
            "lastHeartbeatTime": (now.as_str()), "lastTransitionTime": (now.as_str()),
        })
    };
    json!([
        (condition("MemoryPressure", "False", "KubeletHasSufficientMemory", "the node has enough memory")),
        (condition("DiskPressure", "False", "KubeletHasNoDiskPressure", "the node has enough disk")),
        (condition("PIDPressure", "False", "KubeletHasSufficientPID", "the node has enough process ids")),
        (condition("Ready", "True", "KubeletReady", "the node takes pods"))
    ])
}

async fn status(agent: &Agent) -> Value {
    let options = &agent.options;
    let mut addresses: Vec<Value> = options
        .addresses
        .iter()
        .map(|address| json!({"type": "InternalIP", "address": (address.to_string())}))
        .collect();
    addresses.push(json!({"type": "Hostname", "address": (&options.node)}));
    let amounts = json!({
        "cpu": (meta::Quantity::from_milli(options.cpu_milli)), "memory": (format!("{}Ki", options.memory_bytes / 1024)),
        "pods": (options.pods.to_string()), "ephemeral-storage": (format!("{}Ki", disk_kib(&options.data))),
    });
    let images: Vec<Value> = agent
        .runtime
        .images()
        .await
        .unwrap_or_default()
        .into_iter()
        .take(50)
        .map(|image| {
            let names: Vec<Value> = image.digests.iter().chain(&image.tags).map(Value::from).collect();
            json!({"names": names, "sizeBytes": (i64::try_from(image.size_bytes).unwrap_or(i64::MAX))})
        })
        .collect();
    json!({
        "addresses": addresses, "capacity": (amounts.clone()), "allocatable": amounts,
        "conditions": (conditions(agent.now())),
        "daemonEndpoints": {"kubeletEndpoint": {"Port": (i64::from(options.port))}},
        "images": images, "nodeInfo": (node_info(&options.node)),
    })
}

fn disk_kib(path: &std::path::Path) -> u64 {
    rustix::fs::statvfs(path).map(|found| found.f_blocks * found.f_frsize / 1024).unwrap_or(0)
}

fn node_info(node: &str) -> Value {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let release = read("/etc/os-release");
    let pretty = release
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="))
        .unwrap_or("Linux")
        .trim_matches('"')
        .to_owned();
    let id = format!("{:016x}{:016x}", base::hash64(node.as_bytes()), base::hash64(read("/etc/machine-id").as_bytes()));
    let version = format!("v1.37.0+gantry.{}", env!("CARGO_PKG_VERSION"));
    json!({
        "machineID": (&id), "systemUUID": (&id), "bootID": (read("/proc/sys/kernel/random/boot_id")),
        "kernelVersion": (read("/proc/sys/kernel/osrelease")), "osImage": pretty, "operatingSystem": "linux",
        "architecture": (arch()), "containerRuntimeVersion": (format!("gantry://{}", env!("CARGO_PKG_VERSION"))),
        "kubeletVersion": (&version), "kubeProxyVersion": "",
    })
}

/// Renews the lease, or makes it; it goes with the `owner`.
async fn renew(agent: &Agent, owner: &str) -> Result<(), Status> {
    let node = &agent.options.node;
    match agent.api.call(renewal(node, owner, agent.now())).await {
        Err(status) if status.reason() == Reason::NotFound => {
            let owner = if owner.is_empty() { uid(agent).await } else { owner.into() };
            agent.api.call(first_lease(node, &owner, agent.now())).await.map(|_| ())
        }
        other => other.map(|_| ()),
    }
}

fn lease_spec(node: &str, now: Time) -> Value {
    json!({"renewTime": (now.rfc3339_micro()), "holderIdentity": node, "leaseDurationSeconds": LEASE_SECONDS})
}

/// What makes a lease go with the node's object of this uid.
fn owners(node: &str, uid: &str) -> Value {
    json!([{"apiVersion": "v1", "kind": "Node", "name": node, "uid": uid}])
}

/// The renewal of a node's lease. It goes with the node's object from then on, if a `uid` is given: one that was made while
/// there was none goes with nothing.
pub fn renewal(node: &str, uid: &str, now: Time) -> Request {
    let mut patch = json!({"spec": (lease_spec(node, now))});
    if !uid.is_empty() {
        patch.set(&["metadata", "ownerReferences"], owners(node, uid));
    }
    let renew = Request::patch(LEASES, LEASE_NAMESPACE, node, PatchType::Merge, patch);
    renew.with(|options| options.manager = "kubelet".into())
}

/// What makes a node's lease where there is none yet. It goes with the node's object, if that is known by its `uid`.
pub fn first_lease(node: &str, uid: &str, now: Time) -> Request {
    let mut metadata = json!({"name": node, "namespace": LEASE_NAMESPACE});
    if !uid.is_empty() {
        metadata.set(&["ownerReferences"], owners(node, uid));
    }
    Request::create(LEASES, json!({"metadata": metadata, "spec": (lease_spec(node, now))}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_tell_of_a_node_meanwhile_stays() {
        let at = |seconds: i64| Time::from_seconds(1_800_000_000 + seconds);
        let addresses = |last: &str| {
            let list = [("InternalIP", "192.0.2.1"), ("InternalIP", "2001:db8::1"), ("Hostname", last)];
            Value::from(list.map(|(of_type, address)| json!({"type": of_type, "address": address})).to_vec())
        };
        let status = |now, last: &str| json!({"conditions": (conditions(now)), "addresses": (addresses(last))});
        let old = json!({"metadata": {"name": "n"}, "status": (status(at(0), "one"))});
        let request = telling("n", status(at(60), "two"), &old, at(60));
        let client::Action::Patch(PatchType::Strategic, patch) = request.action else { panic!("{:?}", request.action) };
        // Somebody was faster.
        let mut stored = old.clone();
        let theirs = json!({"type": "NetworkUnavailable", "status": "False", "reason": "RouteCreated"});
        stored.make(&["status", "conditions"]).make_list().push(theirs.clone());
        let kind = api::kinds::kinds().into_iter().find(|kind| kind.resource == NODES).unwrap();
        let merged = meta::patch::strategic(&stored, &patch, kind.of()).unwrap();
        let told = merged["status"]["conditions"].items();
        assert!(told.len() == 5 && told.contains(&theirs), "{told:?}");
        assert_eq!(merged["status"]["addresses"], addresses("two"));
    }

    #[test]
    fn a_status_is_told_when_it_says_something_new_or_has_not_been_told_for_long() {
        let at = |seconds: i64| Time::from_seconds(1_800_000_000 + seconds);
        let status =
            |now, cpu: &str| json!({"conditions": (conditions(now)), "capacity": {"cpu": cpu, "memory": "2048Ki"}});
        let mut node = json!({"status": (status(at(0), "2000m"))});
        node.set(&["status", "capacity"], json!({"cpu": "2", "memory": "2Mi"}));
        assert!(!is_due(&status(at(60), "2"), &node, TELL_MS - 1), "only its times are others");
        assert!(is_due(&status(at(60), "2"), &node, TELL_MS));
        assert!(is_due(&status(at(60), "4"), &node, 0));
        assert!(is_due(&status(at(60), "2"), &Value::Null, 0), "there is no such node yet");
        let mut doubted = node.clone();
        for condition in doubted.make(&["status", "conditions"]).items_mut() {
            condition.set(&["status"], "Unknown");
        }
        assert!(is_due(&status(at(60), "2"), &doubted, 0), "somebody else says otherwise");
    }
}
