//! The API group `metrics.k8s.io`: what nodes and pods use now, as their nodes tell it. `kubectl top` and autoscalers
//! ask.
//!
//! A part that is started or not: without [`start`] the group is not served. Nothing is stored: a request asks the
//! kubelets of the nodes concerned, some at a time, and answers of a few seconds ago are good enough. The rate of CPU
//! is over a window that the node chose. A node that does not answer has no metrics, and neither have its pods.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use base::Time;
use meta::decode::Media;
use meta::{Column, Kind, Object, Resource, Rules, Status, Str, Value, Verb, json};
use tokio::sync::Semaphore;

use crate::Server;
use crate::authz::Authorized;
use crate::codec;
use crate::dispatch::{Incomer, accept_of};
use crate::http::negotiate::content_type;
use crate::http::{Response, body};
use crate::subresource::node::read;
use crate::verbs::list::Filter;

pub const GROUP: &str = "metrics.k8s.io";
const VERSION: &str = "v1beta1";
const NODES: Resource = Resource("nodes");
const PODS: Resource = Resource("pods");
/// Where a node tells its numbers.
const SUMMARY: &str = "/stats/summary?only_cpu_and_memory=true";
/// A node's answer: room for some thousand containers.
const SUMMARY_MAX_BYTES: usize = 16 << 20;
/// Nodes that are asked at the same time.
const ASKED_MAX: usize = 64;
/// How long an answer, or that there was none, is good for.
const FRESH: Duration = Duration::from_secs(3);
/// How long a node may take.
const NODE_TIMEOUT: Duration = Duration::from_secs(5);

/// What one node told last. The lock is held while it is asked, so that it is asked once.
type Told = Arc<tokio::sync::Mutex<Option<(Instant, Option<Arc<Value>>)>>>;

/// The state of the part.
pub struct Metrics {
    told: Mutex<BTreeMap<Str, Told>>,
    asking: Semaphore,
}

impl Default for Metrics {
    fn default() -> Metrics {
        Metrics { told: Mutex::default(), asking: Semaphore::new(ASKED_MAX) }
    }
}

/// Serves the group from now on.
pub async fn start(server: &Arc<Server>) -> Result<(), Status> {
    server.storage.change_registry(|registry| {
        let made: Vec<_> = registry.of("").map(|entry| entry.kind().clone()).collect();
        registry.serve_made(made.into_iter().chain(kinds().into_iter().map(Arc::new)));
    });
    let said = objects().into_iter().map(async |(resource, object)| {
        let name = object.at(&["metadata", "name"]).text().to_owned();
        let request = client::Request::patch(resource, "", &name, client::PatchType::Apply, object);
        let request = request.with(|options| {
            options.manager = "gantry-metrics".into();
            options.force = true;
        });
        crate::local::call(server, &crate::local::system(), request).await.map(drop)
    });
    futures_util::future::try_join_all(said).await.map(drop)
}

/// The role that gives readers of other resources the metrics, too, and the entry of the group.
fn objects() -> Vec<(Resource, Value)> {
    let role = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
        "metadata": {
            "name": "system:aggregated-metrics-reader",
            "labels": {
                "rbac.authorization.k8s.io/aggregate-to-admin": "true",
                "rbac.authorization.k8s.io/aggregate-to-edit": "true",
                "rbac.authorization.k8s.io/aggregate-to-view": "true",
            },
        },
        "rules": [{"apiGroups": [GROUP], "resources": ["pods", "nodes"], "verbs": ["get", "list", "watch"]}],
    });
    let service = json!({
        "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
        "metadata": {"name": (format!("{VERSION}.{GROUP}"))},
        "spec": {"group": GROUP, "version": VERSION, "groupPriorityMinimum": 100i64, "versionPriority": 100i64},
    });
    vec![
        (Resource("clusterroles.rbac.authorization.k8s.io"), role),
        (Resource("apiservices.apiregistration.k8s.io"), service),
    ]
}

/// The table of both kinds: the sum over the containers.
struct Shown {
    columns: Vec<Column>,
    schema: Value,
}

impl Rules for Shown {
    fn columns(&self) -> &[Column] {
        &self.columns
    }

    fn cells(&self, object: &Value, _: Time) -> Vec<Value> {
        let parts = object["containers"].items();
        let parts: Vec<&Value> = if parts.is_empty() { vec![object] } else { parts.iter().collect() };
        let sum = |name: &str| -> i128 {
            let amounts = parts.iter().filter_map(|part| meta::Quantity::of(&part["usage"][name]).ok());
            amounts.map(|amount| i128::from(if name == "cpu" { amount.milli() } else { amount.value() / 1024 })).sum()
        };
        vec![format!("{}m", sum("cpu")).into(), format!("{}Ki", sum("memory")).into(), object["window"].clone()]
    }

    fn openapi(&self) -> Option<&Value> {
        Some(&self.schema)
    }
}

/// The group's kinds, made as those of custom resources are.
fn kinds() -> Vec<Kind> {
    let quantities = json!({"type": "object", "additionalProperties": {"x-kubernetes-int-or-string": true}});
    let time = json!({"type": "string", "format": "date-time"});
    let node = json!({"timestamp": (time.clone()), "window": {"type": "string"}, "usage": (quantities.clone())});
    let container = json!({"type": "object", "properties": {"name": {"type": "string"}, "usage": quantities}});
    let pod = json!({
        "timestamp": time, "window": {"type": "string"}, "containers": {"type": "array", "items": container},
    });
    let make = |plural: &str, kind: &str, scope: &str, properties: Value| -> Vec<Kind> {
        let schema = json!({"type": "object", "properties": properties});
        let definition = json!({
            "spec": {
                "group": GROUP, "scope": scope,
                "names": {"plural": plural, "kind": kind, "listKind": (format!("{kind}List")), "singular": ""},
                "versions": [{
                    "name": VERSION, "served": true, "storage": true,
                    "schema": {"openAPIV3Schema": (schema.clone())},
                }],
            },
        });
        let made = api::custom::kinds(&definition).into_iter();
        made.map(|mut made| {
            made.verbs = vec![Verb::Get, Verb::List];
            made.names.singular = Str::default();
            made.rules = Arc::new(Shown { columns: columns(), schema: schema.clone() });
            made
        })
        .collect()
    };
    let mut kinds = make("nodes", "NodeMetrics", "Cluster", node);
    kinds.extend(make("pods", "PodMetrics", "Namespaced", pod));
    kinds
}

fn columns() -> Vec<Column> {
    let column = |name: &str, description: &str| Column {
        name: name.into(),
        of_type: "string".into(),
        format: "".into(),
        description: description.into(),
        priority: 0,
    };
    vec![
        column("cpu", "CPU in use, in thousandths of one."),
        column("memory", "Memory in use."),
        column("window", "The time that the use of CPU is the mean of."),
    ]
}

/// Answers a request to the group.
pub async fn answer(
    server: &Arc<Server>,
    auth: &Authorized,
    kind: &Arc<Kind>,
    verb: Verb,
    incomer: &Incomer,
) -> Result<Response, Status> {
    let mut accept = accept_of(incomer, true, false)?;
    // Made of a schema without protobuf's numbers.
    if accept.media == Media::Protobuf {
        accept.media = Media::Json;
    }
    let (now, info) = (server.now(), &auth.info);
    let of_nodes = !kind.names.namespaced;
    let source = if of_nodes { NODES } else { PODS };
    if verb == Verb::Get {
        let namespace = if of_nodes { "" } else { info.namespace.as_str() };
        let missing = || Status::not_found(GROUP, &kind.names.plural, &info.name);
        let object = server.one(source, namespace, &info.name).ok_or_else(missing)?;
        let found = gather(server, kind, vec![object], now).await.pop().ok_or_else(missing)?;
        return Ok(body::answer(200, content_type(accept.media), codec::encode(kind, accept, &found, now)));
    }
    let filter = Filter::of(&incomer.query, kind)?;
    let view = server.storage.mirror().view();
    let listed = view.list(source, if of_nodes { "" } else { &info.namespace });
    let objects: Vec<Object> = listed.filter(|object| filter.matches(kind, object)).cloned().collect();
    drop(view);
    let items = gather(server, kind, objects, now).await;
    Ok(codec::respond_listed(kind, accept, items, now))
}

/// The metrics of nodes or pods, for those that have some.
async fn gather(server: &Arc<Server>, kind: &Kind, objects: Vec<Object>, now: Time) -> Vec<Value> {
    let of_nodes = !kind.names.namespaced;
    let node_of = |object: &Object| -> Str {
        if of_nodes { object.name().into() } else { object.value().at(&["spec", "nodeName"]).text().into() }
    };
    let mut tasks = tokio::task::JoinSet::new();
    let wanted: std::collections::BTreeSet<Str> = objects.iter().map(node_of).filter(|node| !node.is_empty()).collect();
    for node in wanted {
        let server = server.clone();
        tasks.spawn(async move {
            let told = ask(&server, &node).await;
            (node, told)
        });
    }
    let mut told: BTreeMap<Str, Index> = BTreeMap::new();
    while let Some(done) = tasks.join_next().await {
        match done {
            Ok((node, Some(summary))) => {
                told.insert(node, Index::of(summary));
            }
            Ok((_, None)) => {}
            Err(error) => tracing::error!("asking a node for its metrics broke off: {error}"),
        }
    }
    objects
        .iter()
        .filter_map(|object| {
            let index = told.get(&node_of(object))?;
            if of_nodes {
                node_metrics(kind, object, &index.summary, now)
            } else {
                pod_metrics(kind, object, index, now)
            }
        })
        .collect()
}

/// A node's answer, with its pods by uid.
struct Index {
    summary: Arc<Value>,
    pods: BTreeMap<Str, usize>,
}

impl Index {
    fn of(summary: Arc<Value>) -> Index {
        let pods = summary["pods"].items().iter().enumerate();
        let pods = pods.map(|(at, pod)| (pod.at(&["podRef", "uid"]).text().into(), at)).collect();
        Index { summary, pods }
    }
}

fn metadata(object: &Object, now: Time) -> Value {
    let mut metadata = json!({"name": (object.name()), "creationTimestamp": (now.rfc3339())});
    if !object.namespace().is_empty() {
        metadata.set(&["namespace"], object.namespace());
    }
    let labels = object.value().at(&["metadata", "labels"]).clone();
    if !labels.is_null() {
        metadata.set(&["labels"], labels);
    }
    metadata
}

/// CPU and memory as quantities; `None` without a rate.
fn usage(entry: &Value) -> Option<Value> {
    let (cpu, memory) =
        (entry.at(&["cpu", "usageNanoCores"]).as_int()?, entry.at(&["memory", "workingSetBytes"]).as_int()?);
    Some(json!({"cpu": (format!("{cpu}n")), "memory": (format!("{}Ki", memory / 1024))}))
}

/// As Go writes a length of time below a minute.
fn window(entry: &Value) -> String {
    let milliseconds = entry.at(&["cpu", "windowMilliseconds"]).as_int().unwrap_or(0);
    format!("{}s", milliseconds as f64 / 1000.0)
}

fn node_metrics(kind: &Kind, object: &Object, summary: &Value, now: Time) -> Option<Value> {
    let node = &summary["node"];
    Some(json!({
        "apiVersion": (kind.names.api_version()), "kind": (&kind.names.kind), "metadata": (metadata(object, now)),
        "timestamp": (node.at(&["cpu", "time"]).clone()), "window": (window(node)), "usage": (usage(node)?),
    }))
}

fn pod_metrics(kind: &Kind, object: &Object, index: &Index, now: Time) -> Option<Value> {
    let pod = &index.summary["pods"][*index.pods.get(object.uid())?];
    let containers: Option<Vec<Value>> = pod["containers"]
        .items()
        .iter()
        .map(|container| Some(json!({"name": (container["name"].clone()), "usage": (usage(container)?)})))
        .collect();
    // A pod of which only a part is known would look smaller than it is.
    let containers = containers.filter(|containers| !containers.is_empty())?;
    Some(json!({
        "apiVersion": (kind.names.api_version()), "kind": (&kind.names.kind), "metadata": (metadata(object, now)),
        "timestamp": (pod.at(&["cpu", "time"]).clone()), "window": (window(pod)), "containers": containers,
    }))
}

/// What a node tells, now or a moment ago.
async fn ask(server: &Server, node: &str) -> Option<Arc<Value>> {
    let told = {
        let mut all = server.metrics.told.lock().unwrap_or_else(PoisonError::into_inner);
        // Nodes that are gone go with their answers.
        if !all.contains_key(node) {
            all.retain(|name, _| server.one(NODES, "", name).is_some());
        }
        all.entry(node.into()).or_default().clone()
    };
    let mut told = told.lock().await;
    if let Some((at, known)) = &*told
        && at.elapsed() < FRESH
    {
        return known.clone();
    }
    // The semaphore is never closed.
    let _turn = server.metrics.asking.acquire().await.ok()?;
    let asked = tokio::time::timeout(NODE_TIMEOUT, read(server, node, SUMMARY, SUMMARY_MAX_BYTES)).await;
    let answer = match asked {
        Ok(Ok(bytes)) => match Value::parse(&bytes) {
            Ok(summary) => Some(Arc::new(summary)),
            Err(error) => {
                tracing::debug!("the metrics of node {node} are not JSON: {error}");
                None
            }
        },
        Ok(Err(status)) => {
            tracing::debug!("node {node} tells no metrics: {status}");
            None
        }
        Err(_) => {
            tracing::debug!("node {node} tells no metrics in time");
            None
        }
    };
    *told = Some((Instant::now(), answer.clone()));
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kinds_are_read_only() {
        let kinds = kinds();
        let names: Vec<(&str, &str, bool)> = kinds
            .iter()
            .map(|kind| (kind.names.plural.as_str(), kind.names.kind.as_str(), kind.names.namespaced))
            .collect();
        assert_eq!(names, [("nodes", "NodeMetrics", false), ("pods", "PodMetrics", true)]);
        assert!(kinds.iter().all(|kind| kind.verbs == [Verb::Get, Verb::List] && kind.subresources.is_empty()));
    }

    #[test]
    fn amounts_are_quantities() {
        let entry = json!({
            "cpu": {"usageNanoCores": 1_500_000i64, "windowMilliseconds": 10_065i64},
            "memory": {"workingSetBytes": 3_000_000i64},
        });
        assert_eq!(usage(&entry), Some(json!({"cpu": "1500000n", "memory": "2929Ki"})));
        assert_eq!(window(&entry), "10.065s");
        assert_eq!(usage(&json!({"cpu": {}, "memory": {"workingSetBytes": 1i64}})), None);
        let pod = json!({
            "window": "15s",
            "containers": [
                {"usage": {"cpu": "1500000n", "memory": "10Ki"}}, {"usage": {"cpu": "500000n", "memory": "2Mi"}},
            ],
        });
        let shown = kinds()[1].rules.cells(&pod, Time::default());
        assert_eq!(shown, [Value::from("3m"), "2058Ki".into(), "15s".into()]);
    }
}
