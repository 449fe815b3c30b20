//! The nodes as columns: one place per node in every column, so that a check is a loop over plain numbers.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::core::host_ports::HostPort;
use meta::{Labels, Object, Str};

use crate::class::{Amounts, Class, Taint};

/// A pod on a node.
#[derive(Clone, Debug)]
pub struct Resident {
    pub key: Str,
    pub uid: Str,
    pub class: Arc<Class>,
    /// Its deletion was asked for already.
    pub leaving: bool,
    /// Microseconds since 1970; younger pods are preempted first.
    pub started: i64,
}

impl Resident {
    /// One that shall come here; it has no uid of its own yet that anybody could mistake it for.
    pub fn to_come(key: &Str, class: &Arc<Class>) -> Resident {
        Resident { key: key.clone(), uid: key.clone(), class: class.clone(), leaving: false, started: i64::MAX }
    }
}

#[derive(Default)]
pub struct Nodes {
    pub names: Vec<Str>,
    places: BTreeMap<Str, usize>,
    /// False for places whose node is gone.
    pub present: Vec<bool>,
    pub labels: Vec<Labels>,
    pub taints: Vec<Vec<Taint>>,
    pub unschedulable: Vec<bool>,
    pub cpu: Vec<i64>,
    pub cpu_used: Vec<i64>,
    pub memory: Vec<i64>,
    pub memory_used: Vec<i64>,
    pub ephemeral: Vec<i64>,
    pub ephemeral_used: Vec<i64>,
    pub pods: Vec<i64>,
    pub pods_used: Vec<i64>,
    pub scored_cpu: Vec<i64>,
    pub scored_memory: Vec<i64>,
    pub others: Vec<BTreeMap<Str, i64>>,
    pub others_used: Vec<BTreeMap<Str, i64>>,
    pub ports: Vec<Vec<HostPort>>,
    pub residents: Vec<Vec<Resident>>,
    /// Image name to bytes.
    pub images: Vec<BTreeMap<Str, i64>>,
    /// On how many nodes each image is.
    pub having: BTreeMap<Str, usize>,
    /// Nodes with a taint that pods had rather avoid.
    pub softly_tainted: usize,
    /// Grows with every change that is not a pod coming or going.
    pub version: u64,
    free: Vec<usize>,
    touched: Touched,
}

/// Which places changed, in the order in which they did; the oldest are forgotten.
#[derive(Default)]
struct Touched {
    places: Vec<usize>,
    /// Changes forgotten.
    forgotten: u64,
}

impl Nodes {
    pub fn len(&self) -> usize {
        self.names.len()
    }

    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// Nodes that exist.
    pub fn count(&self) -> usize {
        self.places.len()
    }

    pub fn place(&self, name: &str) -> Option<usize> {
        self.places.get(name).copied()
    }

    /// How often places changed: where [`Nodes::touched_since`] goes on from.
    pub fn changes(&self) -> u64 {
        self.touched.forgotten + self.touched.places.len() as u64
    }

    /// The places that changed after `changes`, some of them twice. `None` where that is not known any more, or is as much
    /// as looking at all.
    pub fn touched_since(&self, changes: u64) -> Option<&[usize]> {
        let from = usize::try_from(changes.checked_sub(self.touched.forgotten)?).ok()?;
        let places = self.touched.places.get(from..)?;
        (places.len() < self.len() / 2).then_some(places)
    }

    fn touch(&mut self, at: usize) {
        let Touched { places, forgotten } = &mut self.touched;
        if places.last() == Some(&at) {
            // The entry stands for both changes: whoever saw it as the last one is shown it once more.
            *forgotten += 1;
            return;
        }
        if places.len() > self.names.len() {
            *forgotten += places.len() as u64;
            places.clear();
        }
        places.push(at);
    }

    /// All columns of plain numbers.
    fn amounts(&mut self) -> [&mut Vec<i64>; 10] {
        [
            &mut self.cpu,
            &mut self.cpu_used,
            &mut self.memory,
            &mut self.memory_used,
            &mut self.ephemeral,
            &mut self.ephemeral_used,
            &mut self.pods,
            &mut self.pods_used,
            &mut self.scored_cpu,
            &mut self.scored_memory,
        ]
    }

    fn new_place(&mut self, name: &Str) -> usize {
        let at = self.free.pop().unwrap_or_else(|| {
            self.names.push(Str::default());
            self.present.push(false);
            self.labels.push(Labels::default());
            self.taints.push(Vec::new());
            self.unschedulable.push(false);
            for column in self.amounts() {
                column.push(0);
            }
            self.others.push(BTreeMap::new());
            self.others_used.push(BTreeMap::new());
            self.ports.push(Vec::new());
            self.residents.push(Vec::new());
            self.images.push(BTreeMap::new());
            self.names.len() - 1
        });
        self.names[at] = name.clone();
        self.places.insert(name.clone(), at);
        at
    }

    /// Takes in a node as it is now. Returns its place, and whether anything that matters for placing changed.
    pub fn put(&mut self, node: &Object) -> (usize, bool) {
        let name: Str = node.name().into();
        let at = match self.place(&name) {
            Some(at) => at,
            None => self.new_place(&name),
        };
        let value = node.value();
        let (spec, status) = (&value["spec"], &value["status"]);
        let allocatable = match status["allocatable"].is_null() {
            true => &status["capacity"],
            false => &status["allocatable"],
        };
        let amounts = Amounts::of(allocatable);
        let pods = meta::Quantity::of(&allocatable["pods"]).map_or(0, |quantity| quantity.value());
        let taints: Vec<Taint> = spec["taints"]
            .items()
            .iter()
            .map(|taint| Taint {
                key: taint["key"].text().into(),
                value: taint["value"].text().into(),
                effect: taint["effect"].text().into(),
            })
            .collect();
        let unschedulable = spec["unschedulable"].is_true();
        let images = image_sizes(status);
        self.count_traits(at, false);
        let shape_changed = !self.present[at]
            || self.labels[at] != *node.labels()
            || self.taints[at] != taints
            || self.unschedulable[at] != unschedulable;
        let changed = shape_changed
            || self.cpu[at] != amounts.cpu
            || self.memory[at] != amounts.memory
            || self.ephemeral[at] != amounts.ephemeral
            || self.pods[at] != pods
            || self.others[at] != amounts.others;
        self.present[at] = true;
        self.labels[at] = node.labels().clone();
        self.taints[at] = taints;
        self.unschedulable[at] = unschedulable;
        (self.cpu[at], self.memory[at], self.ephemeral[at]) = (amounts.cpu, amounts.memory, amounts.ephemeral);
        self.pods[at] = pods;
        self.others[at] = amounts.others;
        self.images[at] = images;
        self.count_traits(at, true);
        self.version += u64::from(shape_changed);
        if changed {
            self.touch(at);
        }
        (at, changed)
    }

    /// The node is gone. Its residents are returned; they no longer count.
    pub fn remove(&mut self, name: &str) -> Vec<Resident> {
        let Some(at) = self.places.remove(name) else { return Vec::new() };
        self.count_traits(at, false);
        self.taints[at].clear();
        self.present[at] = false;
        self.version += 1;
        self.touch(at);
        let residents = std::mem::take(&mut self.residents[at]);
        for column in self.amounts() {
            column[at] = 0;
        }
        self.others[at].clear();
        self.others_used[at].clear();
        self.ports[at].clear();
        self.images[at].clear();
        self.free.push(at);
        residents
    }

    /// Counts in, or out again, what scoring asks of all nodes together.
    fn count_traits(&mut self, at: usize, comes: bool) {
        let softly = self.taints[at].iter().any(|taint| taint.effect == "PreferNoSchedule");
        match comes {
            true => self.softly_tainted += usize::from(softly),
            false => self.softly_tainted -= usize::from(softly),
        }
        for image in self.images[at].keys() {
            let count = self.having.entry(image.clone()).or_default();
            *count = if comes { *count + 1 } else { count.saturating_sub(1) };
            if *count == 0 {
                self.having.remove(image);
            }
        }
    }

    /// Puts a pod on a node, in the numbers only.
    pub fn admit(&mut self, at: usize, resident: Resident) {
        self.count_in(at, &resident.class, 1);
        self.ports[at].extend(resident.class.ports.iter().cloned());
        self.residents[at].push(resident);
    }

    /// Takes a pod off a node. Returns it if it was there.
    pub fn dismiss(&mut self, at: usize, uid: &str) -> Option<Resident> {
        let place = self.residents[at].iter().position(|resident| resident.uid == uid)?;
        let resident = self.residents[at].swap_remove(place);
        self.count_in(at, &resident.class, -1);
        for port in &resident.class.ports {
            if let Some(found) = self.ports[at].iter().position(|known| known == port) {
                self.ports[at].swap_remove(found);
            }
        }
        Some(resident)
    }

    fn count_in(&mut self, at: usize, class: &Class, sign: i64) {
        self.touch(at);
        self.cpu_used[at] += sign * class.requests.cpu;
        self.memory_used[at] += sign * class.requests.memory;
        self.ephemeral_used[at] += sign * class.requests.ephemeral;
        self.pods_used[at] += sign;
        self.scored_cpu[at] += sign * class.scored_cpu;
        self.scored_memory[at] += sign * class.scored_memory;
        for (name, amount) in &class.requests.others {
            *self.others_used[at].entry(name.clone()).or_default() += sign * amount;
        }
    }
}

fn image_sizes(status: &meta::Value) -> BTreeMap<Str, i64> {
    let mut sizes = BTreeMap::new();
    for image in status["images"].items() {
        let bytes = image["sizeBytes"].as_int().unwrap_or(0);
        for name in image["names"].items() {
            sizes.insert(name.text().into(), bytes);
        }
    }
    sizes
}
