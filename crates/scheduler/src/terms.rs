//! Affinity terms and spread constraints: which pods they look for, and how many of those run on each node.
//!
//! A term is shared by all classes that say the same. Counts per node are kept as pods come and go; counts per topology
//! domain are summed when a pod is placed, over just the nodes that count for it.

use std::collections::BTreeMap;

use meta::{Labels, Selector, Str, Value};

use crate::class::{Class, TermUse};
use crate::nodes::{Nodes, Resident};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TermId(pub usize);

/// No domain: the node lacks the label.
pub const NOWHERE: u32 = u32::MAX;

pub struct Term {
    pub topology: usize,
    selector: Selector,
    /// `None`: all namespaces (narrowed by `namespace_selector`, if any).
    namespaces: Option<Vec<Str>>,
    namespace_selector: Option<Selector>,
    /// Pods on each node that the term looks for.
    pub matching: Vec<i32>,
    /// Those of them that are on their way out: they still keep others away, but are no part of a spread any more.
    pub leaving: Vec<i32>,
    /// Pods on each node whose class requires the term's absence.
    pub holders: Vec<i32>,
    /// Sum of the preferences of the pods on each node that name the term.
    pub leanings: Vec<i64>,
    pub holders_total: i64,
    pub leanings_total: i64,
}

/// The domains of one topology key.
pub struct Topology {
    pub key: Str,
    /// The domain of each node.
    pub domain: Vec<u32>,
    pub values: Vec<Str>,
    version: u64,
}

#[derive(Default)]
pub struct Terms {
    terms: Vec<Term>,
    known: BTreeMap<Str, TermId>,
    topologies: Vec<Topology>,
    /// Labels of the namespaces, for namespace selectors.
    pub namespaces: BTreeMap<Str, Labels>,
}

impl Terms {
    /// The number of a term; a term not seen before is counted over all residents.
    pub fn intern(&mut self, term: &Value, namespace: &Str, labels: &Labels, of: TermUse, nodes: &Nodes) -> TermId {
        let mut selector = Selector::of(&term["labelSelector"]);
        for (keys, equal) in [("matchLabelKeys", true), ("mismatchLabelKeys", false)] {
            for key in term[keys].items() {
                if let Some(value) = labels.get(key.text()) {
                    use meta::labels::{Op, Requirement};
                    let values = vec![Str::from(value)];
                    let op = if equal { Op::In(values) } else { Op::NotIn(values) };
                    selector.requirements.push(Requirement { key: key.text().into(), op });
                }
            }
        }
        let listed = term["namespaces"].items();
        let by_selector = (of == TermUse::Affinity).then(|| term.get("namespaceSelector")).flatten();
        let namespaces = match (listed, by_selector) {
            ([], None) => Some(vec![namespace.clone()]),
            (listed, None) => Some(listed.iter().map(|name| name.text().into()).collect()),
            (listed, Some(_)) => Some(listed.iter().map(|name| Str::from(name.text())).collect()),
        };
        let namespace_selector = by_selector.map(Selector::of);
        let key = term["topologyKey"].text();
        let identity: Str =
            format!("{key}\0{selector}\0{namespaces:?}\0{namespace_selector:?}\0{}", selector == Selector::NOTHING)
                .into();
        if let Some(id) = self.known.get(&identity) {
            return *id;
        }
        let topology = self.topology(key, nodes);
        let mut made = Term {
            topology,
            selector,
            namespaces,
            namespace_selector,
            matching: vec![0; nodes.len()],
            leaving: vec![0; nodes.len()],
            holders: vec![0; nodes.len()],
            leanings: vec![0; nodes.len()],
            holders_total: 0,
            leanings_total: 0,
        };
        for (at, residents) in nodes.residents.iter().enumerate() {
            for resident in residents {
                let matches = made.looks_for(&resident.class, &self.namespaces);
                made.matching[at] += i32::from(matches);
                made.leaving[at] += i32::from(matches && resident.leaving);
            }
        }
        let id = TermId(self.terms.len());
        self.terms.push(made);
        self.known.insert(identity, id);
        id
    }

    fn topology(&mut self, key: &str, nodes: &Nodes) -> usize {
        if let Some(at) = self.topologies.iter().position(|topology| topology.key == key) {
            return at;
        }
        let mut topology = Topology { key: key.into(), domain: Vec::new(), values: Vec::new(), version: u64::MAX };
        topology.refresh(nodes);
        self.topologies.push(topology);
        self.topologies.len() - 1
    }

    pub fn get(&self, id: TermId) -> &Term {
        &self.terms[id.0]
    }

    pub fn iter(&self) -> impl Iterator<Item = (TermId, &Term)> {
        self.terms.iter().enumerate().map(|(at, term)| (TermId(at), term))
    }

    pub fn topology_of(&self, id: TermId) -> &Topology {
        &self.topologies[self.terms[id.0].topology]
    }

    /// Brings the domains and the length of all columns up to date with the nodes.
    pub fn refresh(&mut self, nodes: &Nodes) {
        for topology in &mut self.topologies {
            topology.refresh(nodes);
        }
        for term in &mut self.terms {
            term.matching.resize(nodes.len(), 0);
            term.leaving.resize(nodes.len(), 0);
            term.holders.resize(nodes.len(), 0);
            term.leanings.resize(nodes.len(), 0);
        }
    }

    /// Counts a pod in (`sign` 1) or out (-1) on the node at `at`.
    pub fn count(&mut self, at: usize, resident: &Resident, sign: i32) {
        let class: &Class = &resident.class;
        for term in &mut self.terms {
            if term.matching.len() <= at {
                term.matching.resize(at + 1, 0);
                term.leaving.resize(at + 1, 0);
                term.holders.resize(at + 1, 0);
                term.leanings.resize(at + 1, 0);
            }
            if term.looks_for(class, &self.namespaces) {
                term.matching[at] += sign;
                term.leaving[at] += sign * i32::from(resident.leaving);
            }
        }
        for id in &class.anti_affinity {
            let term = &mut self.terms[id.0];
            term.holders[at] += sign;
            term.holders_total += i64::from(sign);
        }
        for preferred in &class.preferred {
            let term = &mut self.terms[preferred.term.0];
            term.leanings[at] += i64::from(sign) * preferred.weight;
            term.leanings_total += i64::from(sign) * preferred.weight.abs();
        }
        // A pod that requires company draws such pods a little, as upstream's hard affinity weight of 1 does.
        for id in &class.affinity {
            let term = &mut self.terms[id.0];
            term.leanings[at] += i64::from(sign);
            term.leanings_total += i64::from(sign);
        }
    }

    /// Whether a term looks for pods of this class.
    pub fn looks_for(&self, id: TermId, class: &Class) -> bool {
        self.terms[id.0].looks_for(class, &self.namespaces)
    }
}

impl Term {
    fn looks_for(&self, class: &Class, namespaces: &BTreeMap<Str, Labels>) -> bool {
        let listed = self.namespaces.as_ref().is_none_or(|listed| listed.contains(&class.namespace));
        let selected = || {
            let Some(selector) = &self.namespace_selector else { return false };
            selector.is_everything() || namespaces.get(&class.namespace).is_some_and(|labels| selector.matches(labels))
        };
        (listed || selected()) && self.selector.matches(&class.labels)
    }
}

impl Topology {
    fn refresh(&mut self, nodes: &Nodes) {
        if self.version == nodes.version && self.domain.len() == nodes.len() {
            return;
        }
        self.version = nodes.version;
        self.domain.clear();
        self.values.clear();
        let mut numbers: BTreeMap<Str, u32> = BTreeMap::new();
        for at in 0..nodes.len() {
            let value = if nodes.present[at] { nodes.labels[at].get(&self.key) } else { None };
            let number = match value {
                None => NOWHERE,
                Some(value) => *numbers.entry(value.into()).or_insert_with(|| {
                    self.values.push(value.into());
                    u32::try_from(self.values.len() - 1).unwrap_or(NOWHERE - 1)
                }),
            };
            self.domain.push(number);
        }
    }

    /// Sums a column per domain, over the nodes for which `counts` says so.
    pub fn sums(&self, column: &[i32], counts: impl Fn(usize) -> bool) -> Vec<i64> {
        let mut sums = vec![0i64; self.values.len()];
        for (at, domain) in self.domain.iter().enumerate() {
            if *domain != NOWHERE && counts(at) {
                sums[*domain as usize] += i64::from(column[at]);
            }
        }
        sums
    }

    /// The pods per domain that a term looks for and that stay, over the nodes for which `counts` says so.
    pub fn staying(&self, term: &Term, counts: impl Fn(usize) -> bool) -> Vec<i64> {
        let mut sums = self.sums(&term.matching, &counts);
        for (sum, leaving) in sums.iter_mut().zip(self.sums(&term.leaving, &counts)) {
            *sum -= leaving;
        }
        sums
    }
}
