//! A plan that is kept current: what a whole plan of the view would be, at the cost of what changed.
//!
//! Invariant: after an update that was told everything that changed, [`Planner::net`] is what [`super::node_net`] says of
//! the same view, whatever came before.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cache::{Key, View};
use meta::{Object, Resource, Value};

use super::claims::{Claims, Owner};
use super::{
    Here, NODES, OF_SERVICE, PODS, PlanOptions, SERVICES, SLICES, cidrs_of, host_ports, overlay, routes, service_key,
    vips, zone_of,
};
use crate::address::Cidr;
use crate::nodenet::{HostPort, NodeNet, Via, Vip, VipKey, Vxlan};

/// Services with this label are another program's, whatever its value.
const OTHER_PROXY: &str = "service.kubernetes.io/service-proxy-name";
/// Slices with this label lead nobody to their endpoints; they are for the names.
const HEADLESS: &str = "service.kubernetes.io/headless";

/// What of the cluster may have changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Touched {
    /// Anything: nobody knows.
    All,
    /// These objects.
    Some {
        /// Services, also those of which only a slice changed.
        services: BTreeSet<Key>,
        nodes: BTreeSet<Key>,
        pods: BTreeSet<Key>,
    },
}

impl Touched {
    pub fn nothing() -> Touched {
        Touched::Some { services: BTreeSet::new(), nodes: BTreeSet::new(), pods: BTreeSet::new() }
    }

    /// Notes that an object is, was or became another one.
    pub fn note(&mut self, resource: Resource, object: &Object) {
        let Touched::Some { services, nodes, pods } = self else { return };
        let key = Key::of(object.namespace(), object.name());
        match resource {
            SERVICES => _ = services.insert(key),
            SLICES => {
                let mut keys = Vec::new();
                service_key(object, &mut keys);
                services.extend(keys.iter().map(|key| Key(key.as_str().into())));
            }
            NODES => _ = nodes.insert(key),
            PODS => _ = pods.insert(key),
            _ => {}
        }
    }
}

/// What an update changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// Services as they are now; `None`: gone.
    pub vips: BTreeMap<VipKey, Option<Arc<Vip>>>,
    /// Something else than services changed, too.
    pub rest: bool,
}

impl Changed {
    pub fn nothing(&self) -> bool {
        self.vips.is_empty() && !self.rest
    }
}

pub struct Planner {
    node: String,
    /// Of the node: near endpoints are preferred by it.
    zone: String,
    options: PlanOptions,
    vips: Claims<VipKey, Arc<Vip>>,
    routes: Claims<Cidr, Via>,
    host_ports: Claims<HostPort, ()>,
    pod_cidrs: Vec<Cidr>,
    vxlan: Option<Vxlan>,
}

impl Planner {
    /// For a node of a cluster in which there is nothing yet.
    pub fn new(node: &str, options: PlanOptions) -> Planner {
        Planner {
            node: node.to_owned(),
            zone: String::new(),
            options,
            vips: Claims::new(),
            routes: Claims::new(),
            host_ports: Claims::new(),
            pod_cidrs: Vec::new(),
            vxlan: None,
        }
    }

    /// Takes in what is in `view` of what was touched since the last view.
    pub fn update(&mut self, view: &View, touched: &Touched) -> Changed {
        let own = Key::of("", &self.node);
        let (mut services, nodes, pods) = match touched {
            Touched::All => {
                let mut nodes = everything(view, NODES, self.routes.owners());
                nodes.insert(own.clone());
                let services = everything(view, SERVICES, self.vips.owners());
                (services, nodes, everything(view, PODS, self.host_ports.owners()))
            }
            Touched::Some { services, nodes, pods } => (services.clone(), nodes.clone(), pods.clone()),
        };
        if nodes.contains(&own) {
            let zone = one(view, NODES, &own).map(zone_of).unwrap_or_default();
            if zone != self.zone {
                self.zone = zone.to_owned();
                services = everything(view, SERVICES, self.vips.owners());
            }
        }
        let mut vips = BTreeSet::new();
        for key in &services {
            self.service(view, key, &mut vips);
        }
        let (mut routes, mut ports) = (BTreeSet::new(), BTreeSet::new());
        let mut rest = false;
        for key in &nodes {
            rest |= self.node(view, key, &mut routes);
        }
        for key in &pods {
            let pod = one(view, PODS, key).filter(|pod| api::core::pod_facts::of(pod).node == self.node);
            let said = pod.map(host_ports).unwrap_or_default();
            self.host_ports.say(key, said.into_iter().map(|port| (port, ())).collect(), &mut ports);
        }
        let vips = vips.into_iter().map(|key| (key, self.vips.heard(&key).cloned())).collect();
        Changed { vips, rest: rest || !routes.is_empty() || !ports.is_empty() }
    }

    fn service(&mut self, view: &View, key: &Key, changed: &mut BTreeSet<VipKey>) {
        let said = match one(view, SERVICES, key).filter(|service| service.labels().get(OTHER_PROXY).is_none()) {
            Some(service) => {
                let slices = view.by(SLICES, OF_SERVICE, &key.0).filter(|slice| slice.labels().get(HEADLESS).is_none());
                let slices: Vec<Value> = slices.map(Object::value).collect();
                vips(service, &slices, Here { node: &self.node, zone: &self.zone })
            }
            None => Vec::new(),
        };
        self.vips.say(key, said, changed);
    }

    /// Whether something changed that is about this node itself.
    fn node(&mut self, view: &View, key: &Key, changed: &mut BTreeSet<Cidr>) -> bool {
        let value = one(view, NODES, key).map(Object::value);
        if key.0 != self.node {
            let said = value.map(|value| routes(&value, &self.options)).unwrap_or_default();
            self.routes.say(key, said, changed);
            return false;
        }
        let pod_cidrs = value.as_ref().map(cidrs_of).unwrap_or_default();
        let vxlan = value.and_then(|value| overlay(&value, &self.options));
        let changed = (&self.pod_cidrs, &self.vxlan) != (&pod_cidrs, &vxlan);
        (self.pod_cidrs, self.vxlan) = (pod_cidrs, vxlan);
        changed
    }

    /// The node's network, whole.
    pub fn net(&self) -> NodeNet {
        NodeNet {
            pod_cidrs: self.pod_cidrs.iter().copied().collect(),
            cluster_cidrs: self.options.cluster_cidrs.iter().copied().collect(),
            service_cidrs: self.options.service_cidrs.iter().copied().collect(),
            no_masquerade: BTreeSet::new(),
            vips: self.vips.all().map(|(key, vip)| (*key, vip.clone())).collect(),
            host_ports: self.host_ports.all().map(|(port, ())| *port).collect(),
            routes: self.routes.all().map(|(cidr, via)| (*cidr, *via)).collect(),
            vxlan: self.vxlan,
            name_server: self.options.name_server,
        }
    }

    /// Whether the node has pods' addresses yet; without any it has no network to speak of.
    pub fn is_ready(&self) -> bool {
        !self.pod_cidrs.is_empty()
    }
}

fn one<'a>(view: &'a View, resource: Resource, key: &Key) -> Option<&'a Object> {
    let (namespace, name) = key.0.split_once('/').unwrap_or(("", &key.0));
    view.one(resource, namespace, name)
}

/// What is there, and what was.
fn everything<'a>(view: &View, resource: Resource, known: impl Iterator<Item = &'a Owner>) -> BTreeSet<Key> {
    let there = view.list(resource, "").map(|object| Key::of(object.namespace(), object.name()));
    there.chain(known.cloned()).collect()
}
