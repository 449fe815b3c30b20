//! What of a pod matters for placing it. Pods of one template share one [`Class`], and with it all checks of what does
//! not depend on which pods run where.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::core::host_ports::{self, HostPort};
use meta::{Labels, Quantity, Selector, Str, Value};

use crate::terms::TermId;

/// Requests when a container names none, for scoring only (upstream's non-zero defaults).
const DEFAULT_CPU_MILLI: i64 = 100;
const DEFAULT_MEMORY_BYTES: i64 = 200 * 1024 * 1024;

/// Amounts of resources; cpu in millicores, the others in their base unit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Amounts {
    pub cpu: i64,
    pub memory: i64,
    pub ephemeral: i64,
    /// Extended resources, sorted by name.
    pub others: BTreeMap<Str, i64>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Toleration {
    pub key: Str,
    pub exists: bool,
    pub value: Str,
    /// `""`: every effect.
    pub effect: Str,
}

/// A topology spread constraint.
#[derive(Clone, Debug)]
pub struct Spread {
    pub term: TermId,
    pub max_skew: i64,
    pub hard: bool,
    pub min_domains: i64,
    /// Only nodes that the pod's node affinity allows are counted.
    pub honors_affinity: bool,
    pub honors_taints: bool,
    /// Whether the pod counts towards its own constraint.
    pub counts_itself: bool,
}

/// An affinity term with its weight; required terms have weight 0.
#[derive(Clone, Copy, Debug)]
pub struct Weighted {
    pub term: TermId,
    pub weight: i32,
}

/// One group of node selector requirements; all must hold.
#[derive(Clone, Debug, Default)]
pub struct NodeTerm {
    pub labels: Vec<meta::labels::Requirement>,
    /// `metadata.name` requirements.
    pub names: Vec<meta::labels::Requirement>,
}

#[derive(Debug, Default)]
pub struct Class {
    pub namespace: Str,
    pub labels: Labels,
    pub requests: Amounts,
    /// Requests as scoring sees them.
    pub scored_cpu: i64,
    pub scored_memory: i64,
    pub priority: i64,
    pub preempts: bool,
    pub node_name: Str,
    pub node_selector: Vec<meta::labels::Requirement>,
    /// Any of them must hold; `None` without required node affinity.
    pub node_required: Option<Vec<NodeTerm>>,
    /// The only nodes that `node_required` can hold for, where it names them: what daemon sets ask for.
    pub named: Option<Vec<Str>>,
    pub node_preferred: Vec<(i64, NodeTerm)>,
    pub tolerations: Vec<Toleration>,
    pub ports: Vec<HostPort>,
    pub affinity: Vec<TermId>,
    pub anti_affinity: Vec<TermId>,
    pub preferred: Vec<Weighted>,
    pub spread: Vec<Spread>,
    pub images: Vec<Str>,
}

fn amount(resources: &Value, name: &str) -> i64 {
    match (&resources[name], name) {
        (Value::Null, _) => 0,
        (value, "cpu") => Quantity::of(value).map_or(0, |quantity| quantity.milli()),
        (value, _) => Quantity::of(value).map_or(0, |quantity| quantity.value()),
    }
}

impl Amounts {
    /// Reads a resource list; what it does not name is 0.
    pub fn of(resources: &Value) -> Amounts {
        let known = ["cpu", "memory", "ephemeral-storage", "pods"];
        let others = resources.entries().iter().filter(|(name, _)| !known.contains(name));
        Amounts {
            cpu: amount(resources, "cpu"),
            memory: amount(resources, "memory"),
            ephemeral: amount(resources, "ephemeral-storage"),
            others: others.map(|(name, _)| (name.into(), amount(resources, name))).filter(|(_, n)| *n != 0).collect(),
        }
    }

    pub fn add(&mut self, other: &Amounts, sign: i64) {
        self.cpu += sign * other.cpu;
        self.memory += sign * other.memory;
        self.ephemeral += sign * other.ephemeral;
        for (name, amount) in &other.others {
            *self.others.entry(name.clone()).or_default() += sign * amount;
        }
    }

    fn raise_to(&mut self, other: &Amounts) {
        self.cpu = self.cpu.max(other.cpu);
        self.memory = self.memory.max(other.memory);
        self.ephemeral = self.ephemeral.max(other.ephemeral);
        for (name, amount) in &other.others {
            let mine = self.others.entry(name.clone()).or_default();
            *mine = (*mine).max(*amount);
        }
    }
}

/// What a pod takes of a node: the sum of its containers and sidecars, or the most that an init container takes while
/// the sidecars before it run, whichever is more; pod-level requests win; overhead is added.
pub fn requests_of(spec: &Value) -> (Amounts, i64, i64) {
    let mut running = Amounts::default();
    let (mut scored_cpu, mut scored_memory) = (0, 0);
    let mut score = |amounts: &Amounts| {
        scored_cpu += if amounts.cpu == 0 { DEFAULT_CPU_MILLI } else { amounts.cpu };
        scored_memory += if amounts.memory == 0 { DEFAULT_MEMORY_BYTES } else { amounts.memory };
    };
    for container in spec["containers"].items() {
        let amounts = Amounts::of(&container["resources"]["requests"]);
        score(&amounts);
        running.add(&amounts, 1);
    }
    let mut sidecars = Amounts::default();
    let mut peak = Amounts::default();
    for container in spec["initContainers"].items() {
        let amounts = Amounts::of(&container["resources"]["requests"]);
        if container["restartPolicy"].text() == "Always" {
            score(&amounts);
            sidecars.add(&amounts, 1);
            peak.raise_to(&sidecars);
        } else {
            let mut at_once = sidecars.clone();
            at_once.add(&amounts, 1);
            peak.raise_to(&at_once);
        }
    }
    running.add(&sidecars, 1);
    running.raise_to(&peak);
    let whole = &spec["resources"]["requests"];
    if let Some(map) = whole.as_map() {
        let set = Amounts::of(whole);
        if map.contains("cpu") {
            (running.cpu, scored_cpu) = (set.cpu, set.cpu);
        }
        if map.contains("memory") {
            (running.memory, scored_memory) = (set.memory, set.memory);
        }
    }
    let overhead = Amounts::of(&spec["overhead"]);
    running.add(&overhead, 1);
    (running, scored_cpu + overhead.cpu, scored_memory + overhead.memory)
}

impl Class {
    /// Reads the class of a pod; `term` gives the number of an affinity term.
    pub fn of(pod: &Value, term: &mut dyn FnMut(&Value, &Str, &Labels, TermUse) -> TermId) -> Class {
        let spec = &pod["spec"];
        let namespace: Str = pod.at(&["metadata", "namespace"]).text().into();
        let labels = Labels::of(pod.at(&["metadata", "labels"]));
        let (requests, scored_cpu, scored_memory) = requests_of(spec);
        let affinity = &spec["affinity"];
        let (pods, anti) = (&affinity["podAffinity"], &affinity["podAntiAffinity"]);
        let mut required = |list: &Value| -> Vec<TermId> {
            let terms = list["requiredDuringSchedulingIgnoredDuringExecution"].items();
            terms.iter().map(|one| term(one, &namespace, &labels, TermUse::Affinity)).collect()
        };
        let (affinity_terms, anti_terms) = (required(pods), required(anti));
        let mut preferred = Vec::new();
        for (list, sign) in [(pods, 1), (anti, -1)] {
            for one in list["preferredDuringSchedulingIgnoredDuringExecution"].items() {
                let weight = one["weight"].as_int().and_then(|weight| i32::try_from(weight).ok());
                let weight = sign * weight.unwrap_or(0);
                preferred.push(Weighted {
                    term: term(&one["podAffinityTerm"], &namespace, &labels, TermUse::Affinity),
                    weight,
                });
            }
        }
        let spread = spec["topologySpreadConstraints"].items().iter().map(|constraint| Spread {
            term: term(constraint, &namespace, &labels, TermUse::Spread),
            max_skew: constraint["maxSkew"].as_int().unwrap_or(1),
            hard: constraint["whenUnsatisfiable"].text() != "ScheduleAnyway",
            min_domains: constraint["minDomains"].as_int().unwrap_or(1),
            honors_affinity: constraint["nodeAffinityPolicy"].text() != "Ignore",
            honors_taints: constraint["nodeTaintsPolicy"].text() == "Honor",
            counts_itself: Selector::of(&constraint["labelSelector"]).matches(&labels),
        });
        let spread = spread.collect();
        let node = &affinity["nodeAffinity"];
        let required_nodes = &node["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"];
        let node_required: Option<Vec<NodeTerm>> =
            (!required_nodes.is_null()).then(|| required_nodes.items().iter().map(node_term).collect());
        let preferred_nodes = node["preferredDuringSchedulingIgnoredDuringExecution"].items().iter();
        Class {
            requests,
            scored_cpu,
            scored_memory,
            priority: spec["priority"].as_int().unwrap_or(0),
            preempts: spec["preemptionPolicy"].text() != "Never",
            node_name: spec["nodeName"].text().into(),
            node_selector: Selector::of(&meta::json!({"matchLabels": (spec["nodeSelector"].clone())})).requirements,
            named: node_required.as_deref().and_then(named),
            node_required,
            node_preferred: preferred_nodes
                .map(|one| (one["weight"].as_int().unwrap_or(0), node_term(&one["preference"])))
                .collect(),
            tolerations: spec["tolerations"].items().iter().map(toleration).collect(),
            ports: host_ports::of(spec),
            affinity: affinity_terms,
            anti_affinity: anti_terms,
            preferred,
            spread,
            images: spec["containers"].items().iter().map(|container| container["image"].text().into()).collect(),
            namespace,
            labels,
        }
    }

    /// Whether the pod tolerates a taint.
    pub fn tolerates(&self, taint: &Taint) -> bool {
        self.tolerations.iter().any(|toleration| {
            (toleration.effect.is_empty() || toleration.effect == taint.effect)
                && (toleration.key.is_empty() && toleration.exists || toleration.key == taint.key)
                && (toleration.exists || toleration.value == taint.value)
        })
    }
}

/// What a term is used for; spread constraints look only at pods of the same namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TermUse {
    Affinity,
    Spread,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taint {
    pub key: Str,
    pub value: Str,
    pub effect: Str,
}

fn toleration(value: &Value) -> Toleration {
    Toleration {
        key: value["key"].text().into(),
        exists: value["operator"].text() == "Exists",
        value: value["value"].text().into(),
        effect: value["effect"].text().into(),
    }
}

/// A term of a node selector.
pub fn node_term(term: &Value) -> NodeTerm {
    let read = |list: &Value| -> Vec<meta::labels::Requirement> {
        list.items()
            .iter()
            .map(|requirement| {
                use meta::labels::Op;
                let values: Vec<Str> = requirement["values"].items().iter().map(|value| value.text().into()).collect();
                let number = || values.first().and_then(|value| value.parse().ok());
                let op = match requirement["operator"].text() {
                    "NotIn" => Op::NotIn(values),
                    "Exists" => Op::Exists,
                    "DoesNotExist" => Op::DoesNotExist,
                    "Gt" => Op::GreaterThan(number().unwrap_or(i64::MAX)),
                    "Lt" => Op::LessThan(number().unwrap_or(i64::MIN)),
                    _ => Op::In(values),
                };
                meta::labels::Requirement { key: requirement["key"].text().into(), op }
            })
            .collect()
    };
    NodeTerm { labels: read(&term["matchExpressions"]), names: read(&term["matchFields"]) }
}

/// The names of all nodes that terms can hold for, if each term lists some.
fn named(terms: &[NodeTerm]) -> Option<Vec<Str>> {
    let mut all = Vec::new();
    for term in terms {
        let listed = term.names.iter().find_map(|requirement| match &requirement.op {
            meta::labels::Op::In(names) => Some(names),
            _ => None,
        });
        all.extend_from_slice(listed?);
    }
    Some(all)
}

impl NodeTerm {
    pub fn holds(&self, name: &str, labels: &Labels) -> bool {
        if self.labels.is_empty() && self.names.is_empty() {
            return false;
        }
        self.labels.iter().all(|requirement| requirement.holds(labels.get(&requirement.key)))
            && self.names.iter().all(|requirement| requirement.holds(Some(name)))
    }
}

/// Classes by what they were read from, so that siblings share one.
#[derive(Default)]
pub struct Classes {
    known: BTreeMap<(u64, u64), std::sync::Weak<Class>>,
    /// Lookups since forgotten classes were last dropped.
    lookups: usize,
}

impl Classes {
    /// The class of `pod`, made if no sibling has one.
    pub fn of(&mut self, pod: &Value, make: impl FnOnce() -> Class) -> Arc<Class> {
        const SWEEP_EVERY: usize = 50_000;
        self.lookups += 1;
        if self.lookups.is_multiple_of(SWEEP_EVERY) {
            self.known.retain(|_, class| class.strong_count() > 0);
        }
        let mut text = Vec::with_capacity(1024);
        pod.at(&["metadata", "namespace"]).write_json(&mut text);
        pod.at(&["metadata", "labels"]).write_json(&mut text);
        for (key, value) in pod["spec"].entries().iter() {
            let matters = matches!(
                key,
                "affinity"
                    | "tolerations"
                    | "topologySpreadConstraints"
                    | "nodeSelector"
                    | "nodeName"
                    | "priority"
                    | "preemptionPolicy"
                    | "overhead"
                    | "resources"
            );
            if matters {
                text.extend_from_slice(key.as_bytes());
                value.write_json(&mut text);
            }
        }
        for list in ["containers", "initContainers"] {
            for container in pod["spec"][list].items() {
                for key in ["image", "ports", "resources", "restartPolicy"] {
                    container[key].write_json(&mut text);
                }
            }
        }
        // Two independent hashes of the text stand for the text: 128 bits, no adversary gains by a clash.
        let first = base::hash64(&text);
        text.reverse();
        let key = (first, base::hash64(&text));
        if let Some(class) = self.known.get(&key).and_then(std::sync::Weak::upgrade) {
            return class;
        }
        let class = Arc::new(make());
        self.known.insert(key, Arc::downgrade(&class));
        class
    }
}
