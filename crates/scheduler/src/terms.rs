//! Affinity terms and spread constraints: which pods they look for, and how many of those run on each node.
//!
//! A term is shared by all classes that say the same. Counts per node and per topology domain are kept as pods come and go.
//! Where not every node of a domain counts, as for some spread constraints, domains are summed when a pod is placed.

use std::collections::BTreeMap;

use meta::{Labels, Selector, Str, Value};

use crate::class::{Class, TermUse};
use crate::nodes::{Nodes, Resident};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TermId(pub usize);

/// No domain: the node lacks the label.
pub const NOWHERE: u32 = u32::MAX;
/// No version of the nodes.
const UNSUMMED: u64 = u64::MAX;

pub struct Term {
    pub topology: usize,
    selector: Selector,
    /// `None`: all namespaces (narrowed by `namespace_selector`, if any).
    namespaces: Option<Vec<Str>>,
    namespace_selector: Option<Selector>,
    /// Pods that the term looks for.
    pub matching: Tally,
    /// Those of them that are on their way out: they still keep others away, but are no part of a spread any more.
    pub leaving: Tally,
    /// Pods whose class requires the term's absence.
    pub holders: Tally,
    /// The preferences of the pods that name the term.
    pub leanings: Tally,
    /// The preferences without their signs: 0 when nobody leans.
    pub leanings_total: i64,
    /// The version of the nodes for which domains are summed.
    summed: u64,
}

/// A number per node, with its sums.
#[derive(Default)]
pub struct Tally {
    pub of_node: Vec<i32>,
    pub of_domain: Vec<i64>,
    pub total: i64,
}

impl Tally {
    fn add(&mut self, at: usize, domain: Option<u32>, number: i32) {
        self.of_node[at] += number;
        self.total += i64::from(number);
        if let Some(sum) = domain.and_then(|domain| self.of_domain.get_mut(domain as usize)) {
            *sum += i64::from(number);
        }
    }
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
            matching: Tally::default(),
            leaving: Tally::default(),
            holders: Tally::default(),
            leanings: Tally::default(),
            leanings_total: 0,
            summed: UNSUMMED,
        };
        made.grow(nodes.len());
        for (at, residents) in nodes.residents.iter().enumerate() {
            for resident in residents {
                let matches = made.looks_for(&resident.class, &self.namespaces);
                made.matching.add(at, None, i32::from(matches));
                made.leaving.add(at, None, i32::from(matches && resident.leaving));
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
        let mut topology = Topology { key: key.into(), domain: Vec::new(), values: Vec::new(), version: UNSUMMED };
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
            term.grow(nodes.len());
        }
    }

    /// Brings the sums of domains up to date, which counts rest on from here until a node changes.
    pub fn sum_up(&mut self) {
        for term in &mut self.terms {
            let topology = &self.topologies[term.topology];
            if term.summed == topology.version {
                continue;
            }
            term.summed = topology.version;
            for tally in [&mut term.matching, &mut term.leaving, &mut term.holders, &mut term.leanings] {
                tally.of_domain = topology.sums(&tally.of_node, |_| true);
            }
        }
    }

    /// Counts a pod in (`sign` 1) or out (-1) on the node at `at`.
    pub fn count(&mut self, at: usize, resident: &Resident, sign: i32) {
        let class: &Class = &resident.class;
        let topologies = &self.topologies;
        let domain_of = |term: &Term| {
            let topology = &topologies[term.topology];
            let current = (term.summed == topology.version).then(|| topology.domain.get(at).copied());
            current.flatten().filter(|domain| *domain != NOWHERE)
        };
        for term in &mut self.terms {
            if term.matching.of_node.len() <= at {
                term.grow(at + 1);
            }
            if term.looks_for(class, &self.namespaces) {
                let domain = domain_of(term);
                term.matching.add(at, domain, sign);
                term.leaving.add(at, domain, sign * i32::from(resident.leaving));
            }
        }
        for id in &class.anti_affinity {
            let term = &mut self.terms[id.0];
            let domain = domain_of(term);
            term.holders.add(at, domain, sign);
        }
        let preferred = class.preferred.iter().map(|preferred| (preferred.term, preferred.weight));
        // A pod that requires company draws such pods a little, as upstream's hard affinity weight of 1 does.
        for (id, weight) in preferred.chain(class.affinity.iter().map(|id| (*id, 1))) {
            let term = &mut self.terms[id.0];
            let domain = domain_of(term);
            term.leanings.add(at, domain, sign * weight);
            term.leanings_total += i64::from(sign * weight.abs());
        }
    }

    /// Whether a term looks for pods of this class.
    pub fn looks_for(&self, id: TermId, class: &Class) -> bool {
        self.terms[id.0].looks_for(class, &self.namespaces)
    }
}

impl Term {
    /// Makes room for so many nodes.
    fn grow(&mut self, nodes: usize) {
        for tally in [&mut self.matching, &mut self.leaving, &mut self.holders, &mut self.leanings] {
            tally.of_node.resize(nodes, 0);
        }
    }

    /// The pods per domain that the term looks for and that stay.
    pub fn staying(&self) -> Vec<i64> {
        self.matching.of_domain.iter().zip(&self.leaving.of_domain).map(|(all, leaving)| all - leaving).collect()
    }

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
        let mut sums = self.sums(&term.matching.of_node, &counts);
        for (sum, leaving) in sums.iter_mut().zip(self.sums(&term.leaving.of_node, &counts)) {
            *sum -= leaving;
        }
        sums
    }
}
