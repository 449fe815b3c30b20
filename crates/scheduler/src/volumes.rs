//! What the claims of a pod ask of its node: the volumes that they have must be in reach, and for claims that wait for a pod
//! there must be a volume, or somebody who makes one there.
//!
//! Not here: which volume a claim gets that waits for nobody, and the making of volumes. Controllers do both.
//!
//! A pod whose claims still wait is not placed: its node is told to the claims, and its room there is promised to it; once
//! the claims are bound, they leave it that node.

use api::core::volume_binding::{
    self, BIND_COMPLETED, BOUND_BY_CONTROLLER, CLAIMS, CLASSES, Holder, SELECTED_NODE, VOLUMES, annotation,
};
use cache::View;
use meta::labels::{Op, Requirement};
use meta::{Labels, Object, Resource, Str, Value, json};

use crate::class::{NodeTerm, node_term};
use crate::nodes::Nodes;
use crate::plugins::{Mask, NO_VOLUME, Reason, VOLUME_ELSEWHERE, row};

/// The plugin that answers for all of this, as upstream calls it.
pub const PLUGIN: &str = "VolumeBinding";
/// The provisioner of classes whose volumes people make.
const NOBODY: &str = "kubernetes.io/no-provisioner";

/// Something that must be written before a pod can have the node that was chosen for it: a merge patch, with the revision
/// that it rests on.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    pub resource: Resource,
    pub namespace: Str,
    pub name: Str,
    pub patch: Value,
}

/// Where something is: one of the terms must hold; `None` is everywhere.
type Reach = Option<Vec<NodeTerm>>;

fn is_in_reach(reach: &Reach, name: &str, labels: &Labels) -> bool {
    reach.as_ref().is_none_or(|terms| terms.iter().any(|term| term.holds(name, labels)))
}

/// What the claims of one pod ask.
#[derive(Default)]
pub struct Needs {
    /// Of the volumes that its claims have.
    bound: Vec<Reach>,
    /// Its claims that have none, those first that ask for least.
    open: Vec<Open>,
}

/// A claim that waits for the node of its pod.
struct Open {
    claim: Value,
    /// The node that was told to it before, or `""`.
    told: Str,
    /// What would do for it, the smallest first; or the one that is already its own.
    candidates: Vec<Candidate>,
    /// Where its class makes volumes, if it does.
    made: Option<Reach>,
}

struct Candidate {
    volume: Value,
    reach: Reach,
    is_own: bool,
}

impl Needs {
    /// What the pod's claims ask of a node.
    ///
    /// # Errors
    /// Why no node would do now, as upstream says it.
    pub fn of(pod: &Object, claims: &[Str], view: &View) -> Result<Needs, String> {
        let mut needs = Needs::default();
        for name in claims {
            let found = view.one(CLAIMS, pod.namespace(), name);
            let claim = found.ok_or_else(|| format!("persistentvolumeclaim {name:?} not found"))?;
            if claim.facts().deleting.is_some() {
                return Err(format!("persistentvolumeclaim {name:?} is being deleted"));
            }
            needs.add(claim.value(), name, view)?;
        }
        needs.open.sort_by(|a, b| volume_binding::asked(&a.claim).compare(&volume_binding::asked(&b.claim)));
        Ok(needs)
    }

    fn add(&mut self, claim: Value, name: &str, view: &View) -> Result<(), String> {
        let volume = claim.at(&["spec", "volumeName"]).text();
        if claim.at(&["status", "phase"]).text() == "Lost" {
            return Err(format!("persistentvolumeclaim {name:?} bound to non-existent persistentvolume {volume:?}"));
        }
        if !volume.is_empty() && !annotation(&claim, BIND_COMPLETED).is_empty() {
            let found = view.one(VOLUMES, "", volume);
            let found = found.ok_or_else(|| format!("persistentvolume {volume:?} not found"))?;
            self.bound.push(reach_of(&found.value()));
            return Ok(());
        }
        let class = view.one(CLASSES, "", volume_binding::class_of(&claim)).map(Object::value);
        let Some(class) = class.filter(|class| volume.is_empty() && volume_binding::waits_for_pod(class)) else {
            return Err("pod has unbound immediate PersistentVolumeClaims".to_owned());
        };
        let volumes = view.list(VOLUMES, "").map(Object::value);
        let mut candidates: Vec<Candidate> = volumes
            .filter_map(|volume| {
                let is_own = volume_binding::holder(&volume, &claim) == Holder::This;
                let reach = reach_of(&volume);
                (is_own || volume_binding::would_do(&claim, &volume)).then_some(Candidate { volume, reach, is_own })
            })
            .collect();
        if candidates.iter().any(|candidate| candidate.is_own) {
            candidates.retain(|candidate| candidate.is_own);
        }
        let size = |candidate: &Candidate| volume_binding::capacity(&candidate.volume);
        candidates.sort_by(|a, b| size(a).compare(&size(b)));
        let makes = !matches!(class["provisioner"].text(), "" | NOBODY);
        let told = annotation(&claim, SELECTED_NODE).into();
        self.open.push(Open { claim, told, candidates, made: makes.then(|| topologies(&class)) });
        Ok(())
    }

    pub fn is_empty(&self) -> bool {
        self.bound.is_empty() && self.open.is_empty()
    }

    /// Whether claims still wait.
    pub fn is_open(&self) -> bool {
        !self.open.is_empty()
    }

    /// Why a node does not do; 0 if it does.
    pub fn refusal(&self, name: &str, labels: &Labels) -> Reason {
        if !self.bound.iter().all(|reach| is_in_reach(reach, name, labels)) {
            VOLUME_ELSEWHERE
        } else if self.choices(name, labels).is_none() {
            NO_VOLUME
        } else {
            0
        }
    }

    /// Marks the nodes that do not do; those, too, that others could be taken from, as that would not help.
    pub fn filter(&self, nodes: &Nodes, mask: &mut Mask) {
        if self.is_empty() {
            return;
        }
        for (at, reason) in mask.iter_mut().enumerate() {
            if *reason == 0 || row(*reason).is_some_and(|row| row.preemptible) {
                let refusal = self.refusal(&nodes.names[at], &nodes.labels[at]);
                *reason = if refusal == 0 { *reason } else { refusal };
            }
        }
    }

    /// What must be written so that the claims that wait can be bound for this node; `None` if that cannot be.
    pub fn choices(&self, name: &str, labels: &Labels) -> Option<Vec<Choice>> {
        let mut taken: Vec<&Value> = Vec::new();
        let mut choices = Vec::new();
        for open in &self.open {
            let own = |candidate: &&Candidate| {
                is_in_reach(&candidate.reach, name, labels) && !taken.contains(&&candidate.volume["metadata"]["name"])
            };
            match open.candidates.iter().find(own) {
                Some(candidate) => {
                    taken.push(&candidate.volume["metadata"]["name"]);
                    choices.extend((!candidate.is_own).then(|| give(&candidate.volume, &open.claim)));
                }
                None => {
                    // What is already the claim's lies elsewhere, or somebody makes a volume for another node.
                    let elsewhere = open.candidates.iter().any(|candidate| candidate.is_own);
                    let told = open.told.is_empty() || open.told == name;
                    let made = open.made.as_ref().is_some_and(|reach| is_in_reach(reach, name, labels));
                    if elsewhere || !told || !made {
                        return None;
                    }
                    choices.extend(open.told.is_empty().then(|| tell(&open.claim, name)));
                }
            }
        }
        Some(choices)
    }
}

fn reach_of(volume: &Value) -> Reach {
    let required = volume.at(&["spec", "nodeAffinity", "required"]);
    (!required.is_null()).then(|| required["nodeSelectorTerms"].items().iter().map(node_term).collect())
}

/// Where a class makes volumes.
fn topologies(class: &Value) -> Reach {
    let allowed = class["allowedTopologies"].items();
    let requirement = |expression: &Value| Requirement {
        key: expression["key"].text().into(),
        op: Op::In(expression["values"].items().iter().map(|value| value.text().into()).collect()),
    };
    let term = |term: &Value| NodeTerm {
        labels: term["matchLabelExpressions"].items().iter().map(requirement).collect(),
        names: Vec::new(),
    };
    (!allowed.is_empty()).then(|| allowed.iter().map(term).collect())
}

/// Promises a volume to a claim.
fn give(volume: &Value, claim: &Value) -> Choice {
    let mut patch = json!({"spec": {"claimRef": (volume_binding::reference(claim))}});
    patch.set(&["metadata", "annotations", BOUND_BY_CONTROLLER], "yes");
    choice(VOLUMES, volume, patch)
}

/// Tells a claim for which node a volume is to be made.
fn tell(claim: &Value, node: &str) -> Choice {
    let mut patch = Value::map();
    patch.set(&["metadata", "annotations", SELECTED_NODE], node);
    choice(CLAIMS, claim, patch)
}

fn choice(resource: Resource, object: &Value, mut patch: Value) -> Choice {
    let meta = &object["metadata"];
    patch.set(&["metadata", "resourceVersion"], meta["resourceVersion"].clone());
    Choice { resource, namespace: meta["namespace"].text().into(), name: meta["name"].text().into(), patch }
}
