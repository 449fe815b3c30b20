//! The network of a machine: what the agent's planner makes of what it sees, as the kernel has it, and what it must be at
//! rest.
//!
//! The planner is the real one ([`net::plan::Planner`]), told of changes as a real agent tells it
//! ([`node::network::Cursor`]). The kernel outlives the agent; the power takes it.
//!
//! Not here: packets. What is wanted is worked out of nodes, services and pods, without slices and without the planner.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use api::core::node_facts::PLACE;
use base::Revision;
use cache::{Cache, Index, Source, View};
use client::Mirror;
use drive::Shell;
use meta::{Selector, Str, Value};
use net::plan::{Changed, PlanOptions, Planner, SLICES, address_of, cidrs_of};
use net::{Cidr, NodeNet, Via, VipKey};
use node::network::{Cursor, PLAN, interest};

use crate::check::Seen;
use crate::desired::facts;
use crate::exec::Process;
use crate::machine::Machine;
use crate::mutation::Mutation;
use crate::user::{NODES, PODS, SERVICES};

/// How long the kernel takes to be told something.
const APPLY_MS: u64 = 5;

/// An address, and a port of it.
type Place = (IpAddr, u16);

/// What a machine's network is made of, as its agent watches it: services, slices, where all nodes are, and its own node.
pub fn sources(node: &str) -> [Source; 4] {
    let of = |resource, part: Str| Source { resource, part };
    let (places, own) = (format!("?{PLACE}").into(), format!("?metadata.name={node}").into());
    [of(SERVICES, "?".into()), of(SLICES, "?".into()), of(NODES, places), of(NODES, own)]
}

/// The cache of an agent.
pub fn cache() -> Cache {
    let own = net::plan::INDEXES.iter().map(|(resource, name, of)| Index { resource: *resource, name, of: *of });
    Cache::new(server::indexes().into_iter().chain(own).collect::<Vec<_>>())
}

/// The address of a machine on the network that all share.
pub fn address(number: u64) -> IpAddr {
    let [.., high, low] = number.saturating_add(1).to_be_bytes();
    Ipv4Addr::new(192, 168, high, low).into()
}

fn options() -> PlanOptions {
    let cidrs = |text| Cidr::parse(text).into_iter().collect();
    PlanOptions {
        cluster_cidrs: cidrs("10.244.0.0/16"),
        service_cidrs: cidrs("10.96.0.0/12"),
        same_link: true,
        name_server: None,
    }
}

/// The same where a defect is planted that takes its time.
const SLEEPY_APPLY_MS: u64 = 5_000;

/// Keeps the kernel of a machine as its agent's plan says, for as long as the agent lives. One that `trusts`, which is a
/// planted defect, takes the routes that it finds for those that are wanted.
pub async fn follow(machine: Arc<Machine>, mirror: Arc<Mirror>, shell: Process, mut trusts: bool) {
    for resource in PLAN {
        mirror.knows(*resource, Revision(1)).await;
    }
    let listener = mirror.listen(interest(PLAN));
    let (mut cursor, mut planner) = (Cursor::new(PLAN), Planner::new(&machine.name, options()));
    let sources = sources(&machine.name);
    let lazy = machine.has(Mutation::LazyKernels);
    let apply_ms = if machine.has(Mutation::SleepyPlanners) { SLEEPY_APPLY_MS } else { APPLY_MS };
    let mut waiting = Changed { rest: true, ..Changed::default() };
    loop {
        let (view, touched) = cursor.touched(&mirror);
        let changed = planner.update(&view, &touched);
        let (truth, node, ready) = (machine.truth(), machine.name.as_str(), planner.is_ready());
        let sees = sources.each_ref().map(|source| mirror.read().resume(source));
        truth.show(&Seen::Planned { node, sees: &sees, changed: &changed, ready });
        drop(view);
        waiting.vips.extend(changed.vips);
        waiting.rest |= changed.rest;
        if ready && !waiting.nothing() {
            shell.sleep(apply_ms).await;
            let Changed { vips, rest } = std::mem::take(&mut waiting);
            machine.set_network(|net| {
                if rest {
                    let found = std::mem::replace(net, planner.net());
                    if std::mem::take(&mut trusts) {
                        net.routes = found.routes;
                    }
                } else {
                    for (key, vip) in vips {
                        match vip {
                            Some(vip) => drop(net.vips.insert(key, vip)),
                            None if lazy => {}
                            None => drop(net.vips.remove(&key)),
                        }
                    }
                }
                truth.show(&Seen::Routed { node, net });
            });
        }
        listener.changed().await;
    }
}

/// What every machine must be able to reach.
struct Wanted {
    /// The places of services and where they lead; `None` where somebody else says it.
    fronts: BTreeMap<Place, Option<BTreeSet<Place>>>,
    /// Of each node its own address and those of its pods.
    nodes: BTreeMap<String, (Option<IpAddr>, Vec<Cidr>)>,
}

fn number(value: &Value) -> Option<u16> {
    value.as_int().and_then(|number| u16::try_from(number).ok())
}

impl Wanted {
    fn of(view: &View) -> Wanted {
        let mut fronts = BTreeMap::new();
        for service in view.list(SERVICES, "") {
            let value = service.value();
            let spec = &value["spec"];
            let selector = (!spec["selector"].entries().is_empty()).then(|| Selector::of_map(&spec["selector"]));
            let pods: Option<Vec<IpAddr>> = selector.map(|selector| {
                let pods = view.list(PODS, service.namespace());
                let ready = pods.filter(|pod| facts(pod).ready && selector.matches(pod.labels()));
                ready.filter_map(|pod| pod.value().at(&["status", "podIP"]).text().parse().ok()).collect()
            });
            let addresses = spec["clusterIPs"].items().iter().filter_map(|one| one.text().parse::<IpAddr>().ok());
            for address in addresses {
                for port in spec["ports"].items() {
                    let Some(own) = number(&port["port"]) else { continue };
                    let target = number(&port["targetPort"]).unwrap_or(own);
                    let leads = pods.as_ref().map(|pods| pods.iter().map(|pod| (*pod, target)).collect());
                    fronts.insert((address, own), leads);
                }
            }
        }
        let nodes = view.list(NODES, "").map(|node| {
            let value = node.value();
            (node.name().to_owned(), (address_of(&value), cidrs_of(&value)))
        });
        Wanted { fronts, nodes: nodes.collect() }
    }

    /// What is wrong with the network of a machine.
    fn misses(&self, machine: &str, net: &NodeNet) -> Option<String> {
        let place = |key: &VipKey| (key.address, key.port);
        let odd = net.vips.keys().map(place).find(|place| !self.fronts.contains_key(place));
        if let Some((address, port)) = odd {
            return Some(format!("{machine} leads {address}:{port} on, which is no service"));
        }
        let found: BTreeMap<Place, BTreeSet<Place>> = net
            .vips
            .iter()
            .map(|(key, vip)| (place(key), vip.endpoints.iter().map(|one| (one.address, one.port)).collect()))
            .collect();
        for ((address, port), leads) in &self.fronts {
            let Some(found) = found.get(&(*address, *port)) else {
                return Some(format!("{machine} knows no service at {address}:{port}"));
            };
            if leads.as_ref().is_some_and(|leads| leads != found) {
                return Some(format!("{machine} leads {address}:{port} to {found:?}, where {leads:?} are ready"));
            }
            let reaches = |pod: &IpAddr| net.pod_cidrs.iter().chain(net.routes.keys()).any(|cidr| cidr.contains(*pod));
            if let Some((pod, _)) = found.iter().find(|(pod, _)| leads.is_some() && !reaches(pod)) {
                return Some(format!("{machine} has no way to {pod}"));
            }
        }
        let others = self.nodes.iter().filter(|(name, _)| *name != machine);
        let routes: BTreeMap<Cidr, Via> = others
            .filter_map(|(_, (address, cidrs))| Some((Via::Node((*address)?), cidrs)))
            .flat_map(|(via, cidrs)| cidrs.iter().map(move |cidr| (*cidr, via)))
            .collect();
        let own: BTreeSet<Cidr> = self.nodes.get(machine).into_iter().flat_map(|(_, cidrs)| cidrs).copied().collect();
        if routes != net.routes || own != net.pod_cidrs {
            let (has, wants) = (net.routes.len(), routes.len());
            return Some(format!("{machine} has {has} routes and is {:?}, not {wants} and {own:?}", net.pod_cidrs));
        }
        None
    }
}

/// Whose network is not yet what it must be: every machine leads what services there are to their ready pods and to nothing
/// else, and has a way to the pods of each node there is.
pub fn missing(view: &View, machines: &[Arc<Machine>]) -> Option<String> {
    let wanted = Wanted::of(view);
    machines.iter().find_map(|machine| machine.set_network(|net| wanted.misses(&machine.name, net)))
}
