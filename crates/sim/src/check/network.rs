//! The network while things move. A slice says of pods what its controller saw. Where a machine's planner leads each place of
//! a service is what its own watches have brought, at every step, and its routes are those of the nodes it sees; its kernel
//! has both soon after. No address leads to two nodes, none is two pods' at once, and one that was a pod's rests before it is
//! another's: whoever has not heard yet finds nobody there, and not a stranger.
//!
//! All of it is worked out of slices, services and nodes here, without the planner. What changed is looked at, and no more.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, LazyLock};

use api::core::{node_facts::PLACE, pod_facts};
use base::{Revision, Time};
use cache::{Change, Key, View};
use meta::{Object, Selector, Str, Value};
use net::plan::{Changed, SLICES, address_of, cidrs_of};
use net::{Cidr, NodeNet, Protocol, Via, Vip, VipKey};

use super::{Checker, Seen, Sees, pairs};
use crate::exec::Author;
use crate::gist::has_same;
use crate::truth::Past;
use crate::user::{NODES, PODS, SERVICES};

/// The kernel of a machine has what its agent was brought after so long at most, as long as the agent goes on.
const LAG_MS: u64 = 1_000;
/// So long an address rests between two pods at least.
const REST_MS: u64 = 60_000;
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Where it stands in a node's object where it and its pods are.
const PLACES: &[[&str; 2]] = &[["spec", "podCIDR"], ["spec", "podCIDRs"], ["status", "addresses"]];
/// Changes of services and slices that are kept, to judge agents that are late.
const MOVES_KEPT: usize = 20_000;
const VERSIONS_KEPT: usize = 2_000;
/// States of one service that are kept joined: machines are at most so far apart, mostly.
const JOINED_KEPT: usize = 8;

/// What something was after each of its changes.
struct Versions<T> {
    all: VecDeque<(Revision, T)>,
    forgot: bool,
}

impl<T> Default for Versions<T> {
    fn default() -> Versions<T> {
        Versions { all: VecDeque::new(), forgot: false }
    }
}

impl<T> Versions<T> {
    fn put(&mut self, revision: Revision, version: T) {
        if self.all.len() == VERSIONS_KEPT {
            self.all.pop_front();
            self.forgot = true;
        }
        self.all.push_back((revision, version));
    }

    /// What it was at `revision`: nothing before it was first, `None` when that is too long ago to be known.
    fn at(&self, revision: Revision) -> Option<Option<(Revision, &T)>> {
        let after = self.all.partition_point(|(at, _)| *at <= revision);
        let found = after.checked_sub(1).map(|at| (self.all[at].0, &self.all[at].1));
        (found.is_some() || !self.forgot).then_some(found)
    }
}

/// The places of a service: each of its addresses with each of its ports, and the name of that.
#[derive(Default)]
struct Front(Vec<(VipKey, Str)>);

/// An end that a slice tells of: port, family, address and node, and whether it is ready, or serves while it goes.
struct End {
    port: Str,
    protocol: Protocol,
    number: u16,
    address: IpAddr,
    node: Str,
    ready: bool,
    going: bool,
}

/// Where the places of a service lead: address, port and node.
type Said = BTreeMap<VipKey, BTreeSet<(IpAddr, u16, Str)>>;

/// One service, as it and its slices were. `joined` are what both say together, by the revisions of the two.
#[derive(Default)]
struct Service {
    front: Versions<Front>,
    back: Versions<Vec<End>>,
    joined: VecDeque<(Revision, Revision, Arc<Said>)>,
}

/// A node's own address and those of its pods.
type Place = (Option<IpAddr>, Vec<Cidr>);

/// Of every node where it is.
type Nodes = BTreeMap<Str, Place>;

static NOWHERE: LazyLock<Nodes> = LazyLock::new(Nodes::new);

/// A machine.
#[derive(Default)]
struct Book {
    /// Its agent lives, and goes on.
    goes_on: bool,
    /// Its planner has begun, and has a network to speak of.
    planned: bool,
    ready: bool,
    /// Up to where its planner saw each source, and up to where that was brought.
    saw: Sees,
    brought: Sees,
    said: BTreeMap<Key, Arc<Said>>,
    /// Where its planner leads each place.
    vips: BTreeMap<VipKey, Arc<Vip>>,
    /// What of it the kernel has not been told.
    waiting: BTreeSet<VipKey>,
    rest: bool,
    due: Option<Time>,
}

#[derive(Default)]
pub struct Network {
    begun: bool,
    services: BTreeMap<Key, Service>,
    /// Which service was touched at each revision, and whether by a slice.
    moves: VecDeque<(Revision, bool, Key)>,
    moves_forgot: Revision,
    nodes: Versions<Arc<Nodes>>,
    /// Whose each address of a service is.
    owners: BTreeMap<IpAddr, Key>,
    books: BTreeMap<Str, Book>,
    /// When which machine's kernel must have been told.
    dues: BTreeSet<(Time, Str)>,
    /// The pod of each address, and since when it is none's.
    holders: BTreeMap<IpAddr, (Str, Option<Time>)>,
}

fn protocol(text: &str) -> Protocol {
    match text {
        "UDP" => Protocol::Udp,
        "SCTP" => Protocol::Sctp,
        _ => Protocol::Tcp,
    }
}

fn number(value: &Value) -> Option<u16> {
    value.as_int().and_then(|number| u16::try_from(number).ok())
}

impl Front {
    fn of(service: &Object) -> Front {
        let value = service.value();
        let spec = &value["spec"];
        let addresses = spec["clusterIPs"].items().iter().filter_map(|one| one.text().parse::<IpAddr>().ok());
        let places = addresses.flat_map(|address| {
            spec["ports"].items().iter().filter_map(move |port| {
                let key = VipKey { address, protocol: protocol(port["protocol"].text()), port: number(&port["port"])? };
                Some((key, port["name"].text().into()))
            })
        });
        Front(places.collect())
    }
}

/// What the slices of a service say.
fn ends<'a>(slices: impl Iterator<Item = &'a Object>) -> Vec<End> {
    let mut all = Vec::new();
    for slice in slices {
        let value = slice.value();
        for port in value["ports"].items() {
            let Some(number) = number(&port["port"]) else { continue };
            for endpoint in value["endpoints"].items() {
                let Ok(address) = endpoint["addresses"][0].text().parse() else { continue };
                let is = |condition: &str| endpoint["conditions"][condition].is_true();
                all.push(End {
                    port: port["name"].text().into(),
                    protocol: protocol(port["protocol"].text()),
                    number,
                    address,
                    node: endpoint["nodeName"].text().into(),
                    ready: endpoint["conditions"]["ready"].as_bool() != Some(false),
                    going: is("serving") && is("terminating"),
                });
            }
        }
    }
    all
}

fn join(front: &Front, back: &[End]) -> Said {
    let of_place = |(key, name): &(VipKey, Str)| {
        let own = |end: &&End| {
            end.port == *name && end.protocol == key.protocol && end.address.is_ipv6() == key.address.is_ipv6()
        };
        let those = |which: fn(&End) -> bool| -> BTreeSet<(IpAddr, u16, Str)> {
            let found = back.iter().filter(own).filter(|end| which(end));
            found.map(|end| (end.address, end.number, end.node.clone())).collect()
        };
        let ready = those(|end| end.ready);
        (*key, if ready.is_empty() { those(|end| !end.ready && end.going) } else { ready })
    };
    front.0.iter().map(of_place).collect()
}

impl Service {
    /// Where it leads by its own word of one revision and its slices' of another; `None` when that is too long ago.
    fn said(&mut self, own: Revision, slices: Revision) -> Option<Arc<Said>> {
        let (front, back) = (self.front.at(own)?, self.back.at(slices)?);
        let of = |at: Option<Revision>| at.unwrap_or_default();
        let at = (of(front.map(|(at, _)| at)), of(back.map(|(at, _)| at)));
        if let Some((_, _, said)) = self.joined.iter().find(|known| (known.0, known.1) == at) {
            return Some(said.clone());
        }
        let front = front.map(|(_, front)| front);
        let said = Arc::new(front.map(|front| join(front, back.map_or(&[], |(_, back)| back))).unwrap_or_default());
        if self.joined.len() == JOINED_KEPT {
            self.joined.pop_front();
        }
        self.joined.push_back((at.0, at.1, said.clone()));
        Some(said)
    }
}

fn service_of(slice: &Object) -> Option<Key> {
    slice.labels().get(SERVICE_NAME).map(|name| Key::of(slice.namespace(), name))
}

/// Whether a planner leads a place where it shall.
fn leads(vip: Option<&Arc<Vip>>, wanted: &BTreeSet<(IpAddr, u16, Str)>, machine: &str) -> bool {
    vip.is_some_and(|vip| {
        vip.endpoints.len() == wanted.len()
            && vip.endpoints.iter().all(|end| {
                let mut there = wanted.iter().filter(|one| (one.0, one.1) == (end.address, end.port));
                there.next().is_some_and(|(_, _, node)| (node == machine) == end.local)
            })
    })
}

/// The routes to the pods of a node that is there.
fn routes_to((address, cidrs): &Place) -> impl Iterator<Item = (Cidr, Via)> {
    let via = address.map(Via::Node);
    cidrs.iter().filter_map(move |cidr| Some((*cidr, via?)))
}

/// Whether the routes to the nodes other than a machine are not the same on two days: those of most nodes are.
fn routes_differ(machine: &str, before: &Nodes, after: &Nodes) -> bool {
    let (mut gone, mut made) = (Vec::new(), Vec::new());
    for (_, was, is) in pairs(before, after).filter(|(name, was, is)| *name != machine && was != is) {
        gone.extend(was.into_iter().flat_map(routes_to));
        made.extend(is.into_iter().flat_map(routes_to));
    }
    gone.sort_unstable();
    made.sort_unstable();
    gone != made
}

impl Network {
    fn begin(&mut self, before: &View) -> Result<(), String> {
        let at = before.at();
        for service in before.list(SERVICES, "") {
            self.service(at, service, Some(service), before)?;
        }
        for slice in before.list(SLICES, "") {
            self.slice(at, slice, before);
        }
        let nodes: Vec<&Object> = before.list(NODES, "").collect();
        nodes.into_iter().try_for_each(|node| self.node(at, node, Some(node)))
    }

    fn moved(&mut self, revision: Revision, by_slice: bool, key: Key) {
        if self.moves.len() == MOVES_KEPT
            && let Some((forgot, ..)) = self.moves.pop_front()
        {
            self.moves_forgot = forgot;
        }
        self.moves.push_back((revision, by_slice, key));
    }

    fn service(&mut self, at: Revision, object: &Object, new: Option<&Object>, after: &View) -> Result<(), String> {
        let key = Key::of(object.namespace(), object.name());
        let front = new.map(Front::of).unwrap_or_default();
        self.owners.retain(|_, owner| *owner != key);
        for address in front.0.iter().map(|(place, _)| place.address).collect::<BTreeSet<_>>() {
            let other = self.owners.insert(address, key.clone());
            if let Some(other) = other.filter(|other| after.one(SERVICES, "", &other.0).is_some()) {
                return Err(format!("services {} and {} have one address {address}", other.0, key.0));
            }
        }
        self.services.entry(key.clone()).or_default().front.put(at, front);
        self.moved(at, false, key);
        Ok(())
    }

    fn slice(&mut self, at: Revision, slice: &Object, after: &View) {
        let Some(key) = service_of(slice) else { return };
        let own = after.list(SLICES, slice.namespace()).filter(|other| service_of(other).as_ref() == Some(&key));
        self.services.entry(key.clone()).or_default().back.put(at, ends(own));
        self.moved(at, true, key);
    }

    /// Notes where a node is, when it is elsewhere than before.
    fn node(&mut self, at: Revision, object: &Object, new: Option<&Object>) -> Result<(), String> {
        let place = new.map(|node| {
            let value = node.value();
            (address_of(&value), cidrs_of(&value))
        });
        let known = self.nodes.all.back().map(|(_, nodes)| nodes.clone()).unwrap_or_default();
        if known.get(object.name()) == place.as_ref() {
            return Ok(());
        }
        for cidr in place.iter().flat_map(|(_, cidrs)| cidrs) {
            let meets = |other: &Cidr| cidr.overlaps(other);
            let others = known.iter().filter(|(name, _)| *name != object.name());
            if let Some((other, _)) = others.into_iter().find(|(_, (_, cidrs))| cidrs.iter().any(meets)) {
                return Err(format!("nodes {other} and {} both have addresses of {cidr}", object.name()));
            }
        }
        let mut nodes = Nodes::clone(&known);
        match place {
            Some(place) => nodes.insert(object.name().into(), place),
            None => nodes.remove(object.name()),
        };
        self.nodes.put(at, Arc::new(nodes));
        Ok(())
    }

    fn commit(
        &mut self,
        revision: Revision,
        changes: &[Change],
        author: &Author,
        after: &View,
        past: &Past<'_>,
    ) -> Result<(), String> {
        for change in changes {
            let Some(object) = change.new.as_ref().or(change.old.as_ref()) else { continue };
            match object.resource() {
                SERVICES => self.service(revision, object, change.new.as_ref(), after)?,
                SLICES => {
                    self.slice(revision, object, after);
                    if let Some(new) = change.new.as_ref().filter(|_| author.who.ends_with(":endpointslice-controller"))
                        && let Some(view) = past.at(author.decided_on)
                    {
                        tells_what_is(new, view)?;
                    }
                }
                NODES => {
                    // Most changes tell that a node lives.
                    let both = change.old.as_ref().zip(change.new.as_ref());
                    if both.is_none_or(|(old, new)| !has_same(old, new, PLACES)) {
                        self.node(revision, object, change.new.as_ref())?;
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The services that were touched between what a machine's planner saw before and what it sees now.
    fn touched(&self, before: &Book, now: &Sees) -> BTreeSet<Key> {
        let [services, slices, ..] = before.saw;
        if !before.planned || services.min(slices) < self.moves_forgot {
            return self.services.keys().cloned().collect();
        }
        let from = self.moves.partition_point(|(at, ..)| *at <= services.min(slices));
        let news = self.moves.range(from..).filter(|(at, by_slice, _)| match by_slice {
            true => *at > slices && *at <= now[1],
            false => *at > services && *at <= now[0],
        });
        news.map(|(_, _, key)| key.clone()).collect()
    }

    /// Where the nodes were at a revision; `None` when that is too long ago.
    fn placed(&self, at: Revision) -> Option<&Nodes> {
        self.nodes.at(at).map(|found| found.map_or(&*NOWHERE, |(_, nodes)| &**nodes))
    }

    /// The addresses of a machine's own pods, where it sees so far; `None` when that is too long ago.
    fn own(&self, machine: &str, sees: &Sees) -> Option<&[Cidr]> {
        let [_, _, places, own] = *sees;
        // The node itself is brought by both, and stays for as long as one of them shows it.
        let of = |revision: Revision| Some(self.placed(revision)?.get(machine).map(|(_, cidrs)| &cidrs[..]));
        let own = match (of(places)?, of(own)?) {
            (Some(_), Some(_)) => of(places.max(own))?,
            (one, other) => one.or(other),
        };
        Some(own.unwrap_or_default())
    }

    /// The routes of a machine to the pods of the others, and the addresses of its own, where it sees so far; `None` when that
    /// is too long ago.
    fn others(&self, machine: &str, sees: &Sees) -> Option<(BTreeMap<Cidr, Via>, &[Cidr])> {
        let others = self.placed(sees[2])?.iter().filter(|(name, _)| *name != machine);
        Some((others.flat_map(|(_, place)| routes_to(place)).collect(), self.own(machine, sees)?))
    }

    /// A planner has taken in what is new.
    fn planned(&mut self, machine: &str, sees: &Sees, changed: &Changed, ready: bool, now: Time) -> Result<(), String> {
        let mut book = self.books.remove(machine).unwrap_or_default();
        let touched = self.touched(&book, sees);
        for (key, vip) in &changed.vips {
            match vip {
                Some(vip) => drop(book.vips.insert(*key, vip.clone())),
                None => drop(book.vips.remove(key)),
            }
        }
        let (mut gone, mut places) = (BTreeSet::new(), BTreeSet::new());
        for key in touched {
            let Some(said) = self.services.get_mut(&key).and_then(|service| service.said(sees[0], sees[1])) else {
                continue;
            };
            for (place, wanted) in &*said {
                places.insert(*place);
                if !leads(book.vips.get(place), wanted, machine) {
                    let found = book.vips.get(place).map(|vip| &vip.endpoints);
                    let (of, by) = (key.0, sees[1]);
                    return Err(format!(
                        "{machine} leads {of} at {place} to {found:?}, its slices at r{by} to {wanted:?}"
                    ));
                }
            }
            let before = book.said.insert(key, said.clone()).unwrap_or_default();
            gone.extend(before.keys().filter(|place| !said.contains_key(*place)).copied());
        }
        if let Some(place) = gone.iter().find(|place| !places.contains(*place) && book.vips.contains_key(*place)) {
            return Err(format!("{machine} still leads {place} on, which is no service's at r{}", sees[0]));
        }
        if let Some(place) = changed.vips.keys().find(|place| !places.contains(*place) && !gone.contains(*place)) {
            return Err(format!("{machine} leads {place} elsewhere, of which nothing was brought"));
        }
        if book.planned && !changed.rest && self.lie_elsewhere(machine, &book.saw, sees) {
            return Err(format!("{machine} takes no notice of where the nodes are at r{}", sees[2]));
        }
        (book.saw, book.planned, book.ready) = (*sees, true, ready);
        book.waiting.extend(changed.vips.keys().copied());
        book.rest |= changed.rest;
        self.settle(machine, book, now);
        Ok(())
    }

    /// Whether a service leads elsewhere by what was brought than by what the planner saw. What came and went between the two
    /// wakes nobody.
    fn leads_elsewhere(&mut self, book: &Book) -> bool {
        let now: Sees = std::array::from_fn(|at| book.brought[at].max(book.saw[at]));
        if book.saw[..2] == now[..2] {
            return false;
        }
        self.touched(book, &now).into_iter().any(|key| {
            let Some(service) = self.services.get_mut(&key) else { return false };
            service.said(book.saw[0], book.saw[1]) != service.said(now[0], now[1])
        })
    }

    /// Whether the nodes lie elsewhere for a machine when it sees so far.
    fn lie_elsewhere(&self, machine: &str, then: &Sees, now: &Sees) -> bool {
        let now: Sees = std::array::from_fn(|at| now[at].max(then[at]));
        let of = |at| self.nodes.at(at).flatten().map(|(at, _)| at);
        if (2..now.len()).all(|at| then[at] == now[at] || of(then[at]) == of(now[at])) {
            return false;
        }
        let sides = [then, &now].map(|sees| Some((self.placed(sees[2])?, self.own(machine, sees)?)));
        let [Some((before, own_before)), Some((after, own_after))] = sides else {
            return sides[0].is_some() != sides[1].is_some();
        };
        own_before != own_after || routes_differ(machine, before, after)
    }

    /// Notes until when the kernel must be told, if it must.
    fn settle(&mut self, machine: &str, mut book: Book, now: Time) {
        // Nothing may be asked of one that stands still, or has no network yet.
        let lacks = book.ready
            && book.goes_on
            && (!book.waiting.is_empty()
                || book.rest
                || self.leads_elsewhere(&book)
                || self.lie_elsewhere(machine, &book.saw, &book.brought));
        let due = lacks.then(|| book.due.unwrap_or(now.plus_ms(LAG_MS)));
        if due != book.due {
            self.dues.extend(due.map(|due| (due, machine.into())));
            if let Some(due) = book.due {
                self.dues.remove(&(due, machine.into()));
            }
            book.due = due;
        }
        self.books.insert(machine.into(), book);
    }

    /// The kernel was told.
    fn routed(&mut self, machine: &str, net: &NodeNet, now: Time) -> Result<(), String> {
        let Some(mut book) = self.books.remove(machine) else { return Ok(()) };
        let odd = std::mem::take(&mut book.waiting).into_iter().find(|key| net.vips.get(key) != book.vips.get(key));
        if let Some(place) = odd {
            return Err(format!("the kernel of {machine} leads {place} elsewhere than its planner"));
        }
        if std::mem::take(&mut book.rest) {
            if net.vips != book.vips {
                return Err(format!("the kernel of {machine} leads on otherwise than its planner"));
            }
            if let Some((routes, own)) = self.others(machine, &book.saw)
                && (net.routes != routes || !net.pod_cidrs.iter().eq(own))
            {
                let (has, wants, at) = (net.routes.len(), routes.len(), book.saw[2]);
                let is = &net.pod_cidrs;
                return Err(format!("{machine} has {has} routes and is {is:?}, not {wants} and {own:?}, at r{at}"));
            }
        }
        self.settle(machine, book, now);
        Ok(())
    }

    fn address(&mut self, machine: &str, uid: &str, address: IpAddr, given: bool, now: Time) -> Result<(), String> {
        if !given {
            self.holders.insert(address, (uid.into(), Some(now)));
            return Ok(());
        }
        match self.holders.insert(address, (uid.into(), None)) {
            Some((other, None)) if other != uid => {
                Err(format!("{machine} gives {address} to {uid}, and {other} has it"))
            }
            Some((other, Some(since))) if other != uid && now.ms_since(since) < REST_MS => {
                let rested_ms = now.ms_since(since);
                Err(format!("{machine} gives {address} to {uid} {rested_ms} ms after it was {other}'s"))
            }
            _ => Ok(()),
        }
    }
}

/// What a slice says is what its service and the pods are in the view that it was made from.
fn tells_what_is(slice: &Object, view: &View) -> Result<(), String> {
    let Some(key) = service_of(slice) else { return Ok(()) };
    let named = |why: String| format!("slice {}/{} of service {}: {why}", slice.namespace(), slice.name(), key.0);
    let Some(service) = view.one(SERVICES, "", &key.0) else {
        return Err(named("there is no such service in the view that was decided on".to_owned()));
    };
    let selector = Selector::of_map(&service.value()["spec"]["selector"]);
    let value = slice.value();
    let mut told = BTreeSet::new();
    for endpoint in value["endpoints"].items() {
        let (name, uid) = (endpoint["targetRef"]["name"].text(), endpoint["targetRef"]["uid"].text());
        told.insert(Str::from(uid));
        let pod = view.one(PODS, slice.namespace(), name).filter(|pod| pod.uid() == uid);
        let Some(pod) = pod.filter(|pod| selector.matches(pod.labels())) else {
            return Err(named(format!("pod {name} is not behind it")));
        };
        let ready = pod_facts::of(pod).ready && pod.facts().deleting.is_none();
        if endpoint["conditions"]["ready"].is_true() && !ready {
            return Err(named(format!("pod {name} is not ready")));
        }
        let pod = pod.value();
        if endpoint["addresses"][0] != pod["status"]["podIP"] {
            return Err(named(format!("{} is not the address of pod {name}", endpoint["addresses"][0].text())));
        }
    }
    let others = view.owned(SLICES, service.uid()).any(|other| other.name() != slice.name());
    let serves =
        |pod: &&Object| selector.matches(pod.labels()) && pod_facts::of(pod).ready && pod.facts().deleting.is_none();
    let left_out = view.list(PODS, slice.namespace()).filter(serves).find(|pod| !told.contains(pod.uid()));
    match left_out.filter(|_| !others && service.facts().deleting.is_none()) {
        Some(pod) => Err(named(format!("pod {} is left out", pod.name()))),
        None => Ok(()),
    }
}

impl Checker for Network {
    fn name(&self) -> &'static str {
        "network"
    }

    fn see(&mut self, seen: &Seen<'_>, past: &Past<'_>) -> Result<(), String> {
        if let Some((due, machine)) = self.dues.first().filter(|(due, _)| *due < past.now) {
            let late_ms = past.now.ms_since(*due) + LAG_MS;
            return Err(format!("{machine} does not lead as it was told {late_ms} ms ago"));
        }
        let first = match seen {
            Seen::Commit { before, .. } => Some(*before),
            Seen::Planned { .. } => past.at(Revision(u64::MAX)),
            _ => None,
        };
        if let Some(first) = first.filter(|_| !self.begun) {
            self.begun = true;
            self.begin(first)?;
        }
        match seen {
            Seen::Commit { revision, changes, author, after, .. } => {
                self.commit(*revision, changes, author, after, past)
            }
            Seen::Agent { node, runs } => {
                // Whoever begins knows nothing.
                let due = self.books.get(*node).and_then(|book| book.due);
                self.settle(node, Book { goes_on: *runs, due, ..Book::default() }, past.now);
                Ok(())
            }
            Seen::Halted { who, halted, .. } => {
                if let Some(book) = self.books.remove(*who) {
                    self.settle(who, Book { goes_on: !halted, ..book }, past.now);
                }
                Ok(())
            }
            Seen::Brought { node, source, known } => {
                let at = match source.resource {
                    SERVICES => 0,
                    SLICES => 1,
                    _ if source.part.ends_with(PLACE) => 2,
                    _ => 3,
                };
                if let Some(mut book) = self.books.remove(*node) {
                    book.brought[at] = *known;
                    self.settle(node, book, past.now);
                }
                Ok(())
            }
            Seen::Planned { node, sees, changed, ready } => self.planned(node, sees, changed, *ready, past.now),
            Seen::Routed { node, net } => self.routed(node, net, past.now),
            Seen::Address { node, uid, address, given } => self.address(node, uid, *address, *given, past.now),
            _ => Ok(()),
        }
    }
}
