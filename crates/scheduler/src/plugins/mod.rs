//! The checks a pod must pass on a node, one file each, and the table of them.
//!
//! A plugin looks at a whole column of nodes at once, or at a part of it: it marks the nodes that it refuses with its own
//! reason. What rests on the class, one node and the pods on it is kept in the class's [`crate::sight`] until that node
//! changes; what rests on pods elsewhere is asked for every pod that it concerns.

pub mod inter_pod;
pub mod node_affinity;
pub mod node_name;
pub mod ports;
pub mod resources;
pub mod spread;
pub mod taints;
pub mod unschedulable;

use crate::class::Class;
use crate::nodes::Nodes;
use crate::terms::Terms;

/// Why a node was refused: see [`row`]; 0 is "not refused".
pub type Reason = u8;
/// One reason per node.
pub type Mask = Vec<Reason>;

/// What a plugin looks at.
pub struct Snapshot<'a> {
    pub nodes: &'a Nodes,
    pub terms: &'a Terms,
}

/// Neighbouring nodes of which a plugin is asked, with a reason for each.
pub struct Window<'a> {
    /// The place of the first.
    pub from: usize,
    pub mask: &'a mut [Reason],
}

impl Window<'_> {
    /// The reasons of the nodes, each with what `column` (of all nodes) says of it.
    pub fn with<'c, T>(&mut self, column: &'c [T]) -> impl Iterator<Item = (&mut Reason, &'c T)> {
        self.mask.iter_mut().zip(&column[self.from.min(column.len())..])
    }

    /// The reasons of the nodes that nothing refuses yet, each with its place.
    pub fn free(&mut self) -> impl Iterator<Item = (usize, &mut Reason)> {
        let places = self.from..;
        places.zip(self.mask.iter_mut()).filter(|(_, reason)| **reason == 0)
    }
}

/// A check of nodes for pods of one class.
pub trait Plugin: Sync {
    fn name(&self) -> &'static str;

    /// Whether the answer for a node rests on pods of other nodes, too.
    fn looks_around(&self) -> bool {
        false
    }

    /// Whether it has anything to say of pods of this class now. Asked of plugins that look around.
    fn concerns(&self, _: &Class, _: &Snapshot<'_>) -> bool {
        true
    }

    /// Marks the nodes of the window that are not yet refused and that it refuses.
    fn filter(&self, class: &Class, snapshot: &Snapshot<'_>, window: &mut Window<'_>);
}

/// All plugins, in the order in which they are asked.
pub const PLUGINS: &[&dyn Plugin] = &[
    &unschedulable::NodeUnschedulable,
    &node_name::NodeName,
    &taints::TaintToleration,
    &node_affinity::NodeAffinity,
    &ports::NodePorts,
    &resources::NodeResourcesFit,
    &spread::PodTopologySpread,
    &inter_pod::InterPodAffinity,
];

/// Of the plugins that look around those that have anything to say of pods of `class` now.
pub fn around<'a>(class: &'a Class, snapshot: &'a Snapshot<'a>) -> impl Iterator<Item = &'static dyn Plugin> + 'a {
    PLUGINS.iter().copied().filter(|plugin| plugin.looks_around() && plugin.concerns(class, snapshot))
}

/// What each reason means to people, which plugin gives it, and whether taking pods away could help.
pub struct ReasonRow {
    pub plugin: &'static str,
    pub words: &'static str,
    pub preemptible: bool,
    /// What could make it pass, in words that tell what would help.
    pub help: &'static str,
}

pub const GONE: Reason = 255;
pub const UNSCHEDULABLE: Reason = 1;
pub const OTHER_NODE: Reason = 2;
pub const TAINTED: Reason = 3;
pub const NO_AFFINITY: Reason = 4;
pub const NO_PORT: Reason = 5;
pub const NO_CPU: Reason = 6;
pub const NO_MEMORY: Reason = 7;
pub const NO_EPHEMERAL: Reason = 8;
pub const TOO_MANY_PODS: Reason = 9;
pub const SPREAD: Reason = 10;
pub const SPREAD_LABEL: Reason = 11;
pub const AFFINITY: Reason = 12;
pub const ANTI_AFFINITY: Reason = 13;
pub const EXISTING_ANTI_AFFINITY: Reason = 14;
/// Given by [`crate::volumes`], which is about single pods, not classes.
pub const VOLUME_ELSEWHERE: Reason = 15;
pub const NO_VOLUME: Reason = 16;
/// Lack of the class's first other resource; of its second, third …: one more each, [`NO_EXTENDED_LAST`] at most.
pub const NO_EXTENDED: Reason = 17;
pub const NO_EXTENDED_LAST: Reason = 200;

macro_rules! rows {
    ($($plugin:literal $words:literal $preemptible:literal $help:literal;)*) => {
        &[$(ReasonRow { plugin: $plugin, words: $words, preemptible: $preemptible, help: $help }),*]
    };
}

pub const REASONS: &[ReasonRow] = rows! {
    "" "" false "";
    "NodeUnschedulable" "node(s) were unschedulable" false "uncordon a node";
    "NodeName" "node(s) didn't match the requested node name" false "add the node that the pod names";
    "TaintToleration" "node(s) had untolerated taint(s)" false "add a toleration, or remove the taint";
    "NodeAffinity" "node(s) didn't match Pod's node affinity/selector" false "label a node as the pod asks";
    "NodePorts" "node(s) didn't have free ports for the requested pod ports" true "free the host port";
    "NodeResourcesFit" "Insufficient cpu" true "lower the cpu request, or add a node";
    "NodeResourcesFit" "Insufficient memory" true "lower the memory request, or add a node";
    "NodeResourcesFit" "Insufficient ephemeral-storage" true "lower the ephemeral-storage request, or add a node";
    "NodeResourcesFit" "Too many pods" true "add a node";
    "PodTopologySpread" "node(s) didn't match pod topology spread constraints" true "add nodes in the emptier domains";
    "PodTopologySpread" "node(s) didn't match pod topology spread constraints (missing required label)" false "label the nodes with the topology key";
    "InterPodAffinity" "node(s) didn't match pod affinity rules" false "run a pod that the affinity looks for";
    "InterPodAffinity" "node(s) didn't match pod anti-affinity rules" true "add nodes in other domains";
    "InterPodAffinity" "node(s) didn't satisfy existing pods anti-affinity rules" true "add nodes in other domains";
    "VolumeBinding" "node(s) didn't match PersistentVolume's node affinity" false "add a node that the volume can be reached from";
    "VolumeBinding" "node(s) didn't find available persistent volumes to bind" false "add a volume that the claim can have";
    "NodeResourcesFit" "Insufficient" true "add a node that has the resource";
};

/// The row of a reason; all lacks of other resources share one.
pub fn row(reason: Reason) -> Option<&'static ReasonRow> {
    let shared = if (NO_EXTENDED..=NO_EXTENDED_LAST).contains(&reason) { NO_EXTENDED } else { reason };
    REASONS.get(usize::from(shared))
}

/// A reason in words, for pods of `class`.
pub fn words(reason: Reason, class: &Class) -> String {
    let words = row(reason).map_or("", |row| row.words);
    let other = reason.checked_sub(NO_EXTENDED).and_then(|index| class.requests.others.keys().nth(usize::from(index)));
    match other {
        Some(name) => format!("{words} {name}"),
        None => words.to_owned(),
    }
}
