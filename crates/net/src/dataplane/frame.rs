//! The part of a table that does not grow: chains, rules and the declarations of sets.
//!
//! The number of rules is constant; services are elements of maps. A new connection is looked up by (destination, protocol,
//! port); the class found there leads to the chain for its number of endpoints, which draws a number, looks up (destination,
//! protocol, port, number) and rewrites the destination. Registers, unlike marks, leave no trace on the packet.
//!
//! Invariant: nothing here touches a packet that is not about our services or our pods; the machine's other tables are
//! never looked at.

use super::fronts::{Family, PickChain, REFUSAL_DROP, REFUSAL_REJECT, SetId};
use crate::address::{Cidr, bytes_of};
use crate::netlink::nft::{
    Batch, ChainKind, Data, Hook, REG_VERDICT, Rule, SET_EVAL, SET_MAP, SET_TIMEOUT, SetSpec, TYPE_IPV4, TYPE_IPV6,
    TYPE_MARK, TYPE_PORT, TYPE_PRIORITY, TYPE_PROTOCOL, VERDICT_ACCEPT, VERDICT_DROP, VERDICT_GOTO, VERDICT_JUMP,
    concat, reg,
};
use crate::nodenet::Protocol;
use std::net::IpAddr;

pub(crate) const TABLE: &str = "gantry";
const STICKY_MAP: &str = "sticky";
/// From classes and refusals to chains.
const CLASSES: &str = "classes";
const REFUSALS: &str = "refusals";
const REJECT_CHAIN: &str = "refuse";
/// Clients that are remembered for session affinity, over all services.
const STICKY_CLIENTS: u32 = 262_144;
/// How long a client is remembered when a rule says nothing else; every rule says.
const STICKY_TIMEOUT_MS: u64 = 10_800_000;
/// Packets whose source is to be replaced carry this bit, unless they come from a pod.
const MASQUERADE_MARK: u32 = 0x4000;

const META_PRIORITY: u32 = 2;
const META_MARK: u32 = 3;
const META_INPUT_NAME: u32 = 6;
const META_OUTPUT_NAME: u32 = 7;
const META_L4PROTO: u32 = 16;
const CT_STATE: u32 = 0;
const CT_STATE_NEW: u32 = 8;
const CT_STATE_UNTRACKED: u32 = 64;
const FIB_LOCAL: u32 = 2;
const NETWORK: u32 = 1;
const TRANSPORT: u32 = 2;
/// Where data lie beside the longest key (two IPv6 addresses, protocol, port).
const DATA: u32 = 10;
/// The number of a client's endpoint, behind those.
const STICKY: u32 = 15;
const DNS_PORT: u16 = 53;
const LOOPBACK_NAME: &[u8; 16] = b"lo\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

/// What the rules themselves depend on; when it changes, the table is replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub family: Family,
    pub pod_cidrs: Vec<Cidr>,
    pub cluster_cidr: Option<Cidr>,
    pub service_cidrs: Vec<Cidr>,
    pub no_masquerade: Vec<Cidr>,
    pub name_server: Option<IpAddr>,
}

impl Frame {
    fn words(&self) -> u32 {
        self.family.address_bytes() / 4
    }

    fn source_at(&self) -> u32 {
        if self.family == Family::V4 { 12 } else { 8 }
    }

    fn destination_at(&self) -> u32 {
        if self.family == Family::V4 { 16 } else { 24 }
    }

    /// The whole table, without elements. What was there under its name is replaced.
    ///
    /// `sizes` says how many elements a set must have room for: sets of a fixed size are filled several times as fast as
    /// growing ones.
    pub fn build(&self, batch: &mut Batch, sizes: &dyn Fn(SetId) -> u32) {
        batch.add_table();
        batch.delete_table();
        batch.add_table();
        self.sets(batch, sizes);
        batch.add_chain(REJECT_CHAIN);
        let refusals = [
            (REFUSAL_DROP.to_ne_bytes(), Data::Verdict(VERDICT_DROP, String::new())),
            (REFUSAL_REJECT.to_ne_bytes(), Data::Verdict(VERDICT_GOTO, REJECT_CHAIN.into())),
        ];
        batch.add_elements(REFUSALS, refusals.iter().map(|(key, data)| (&key[..], data)));
        let code = if self.family == Family::V4 { 3 } else { 4 };
        batch.add_rule(REJECT_CHAIN, |rule| {
            rule.reject(code);
        });
        self.untracked(batch);
        self.filters(batch);
        self.translations(batch);
    }

    /// Questions to the node's name server and its answers are on no connection: an entry for each would cost more than
    /// the answer, and a node that asks much would fill the table.
    fn untracked(&self, batch: &mut Batch) {
        let Some(server) = self.name_server else { return };
        for (chain, hook) in [("untracked-in", Hook::Prerouting), ("untracked-out", Hook::Output)] {
            batch.add_base_chain(chain, ChainKind::Filter, hook, -300);
            for (address_at, port_at) in [(self.source_at(), 0), (self.destination_at(), 2)] {
                batch.add_rule(chain, |rule| {
                    rule.meta(reg(0), META_L4PROTO).compare(reg(0), true, &[Protocol::Udp.number()]);
                    rule.payload(reg(0), TRANSPORT, port_at, 2).compare(reg(0), true, &DNS_PORT.to_be_bytes());
                    rule.payload(reg(0), NETWORK, address_at, self.family.address_bytes());
                    rule.compare(reg(0), true, &bytes_of(server)).untracked();
                });
            }
        }
    }

    fn sets(&self, batch: &mut Batch, sizes: &dyn Fn(SetId) -> u32) {
        let bytes = self.family.address_bytes();
        let address = if self.family == Family::V4 { TYPE_IPV4 } else { TYPE_IPV6 };
        let none = SetSpec { name: "", flags: 0, key_type: 0, key_bytes: 0, data: None, timeout_ms: None, size: None };
        let (front, front_bytes) = (concat(&[address, TYPE_PROTOCOL, TYPE_PORT]), bytes + 8);
        let endpoint = Some((concat(&[address, TYPE_PORT]), bytes + 4));
        let number = Some((TYPE_PRIORITY, 4));
        let slot = SetSpec {
            flags: SET_MAP,
            key_type: concat(&[address, TYPE_PROTOCOL, TYPE_PORT, TYPE_MARK]),
            key_bytes: front_bytes + 4,
            ..none
        };
        for set in SetId::ALL {
            let (name, size) = (set.name(), Some(sizes(set)));
            let spec = match set {
                SetId::Endpoints => SetSpec { data: endpoint, ..slot },
                SetId::StickySlots => SetSpec { data: number, ..slot },
                SetId::StickyEndpoints => {
                    SetSpec { flags: SET_MAP, key_type: TYPE_PRIORITY, key_bytes: 4, data: endpoint, ..none }
                }
                SetId::Hairpin => SetSpec { key_type: concat(&[address, address]), key_bytes: 2 * bytes, ..none },
                set if set.is_ports() => SetSpec {
                    flags: SET_MAP,
                    key_type: concat(&[TYPE_PROTOCOL, TYPE_PORT]),
                    key_bytes: 8,
                    data: number,
                    ..none
                },
                _ => SetSpec { flags: SET_MAP, key_type: front, key_bytes: front_bytes, data: number, ..none },
            };
            batch.add_set(&SetSpec { name, size, ..spec });
        }
        for name in [CLASSES, REFUSALS] {
            batch.add_set(&SetSpec { name, flags: SET_MAP, key_type: TYPE_PRIORITY, key_bytes: 4, ..none });
        }
        batch.add_set(&SetSpec {
            name: STICKY_MAP,
            flags: SET_MAP | SET_TIMEOUT | SET_EVAL,
            key_type: concat(&[address, address, TYPE_PROTOCOL, TYPE_PORT]),
            key_bytes: 2 * bytes + 8,
            data: number,
            timeout_ms: Some(STICKY_TIMEOUT_MS),
            size: Some(STICKY_CLIENTS),
        });
    }

    /// New connections that lead nowhere are refused before their destination is rewritten.
    fn filters(&self, batch: &mut Batch) {
        batch.add_base_chain("filter-in", ChainKind::Filter, Hook::Prerouting, -110);
        batch.add_base_chain("filter-out", ChainKind::Filter, Hook::Output, -110);
        if self.name_server.is_some() {
            for chain in ["filter-in", "filter-out"] {
                // None of the rules that follow is about them.
                batch.add_rule(chain, |rule| {
                    in_state(rule, CT_STATE_UNTRACKED);
                    rule.verdict(VERDICT_ACCEPT, "");
                });
            }
        }
        if self.family == Family::V4 {
            // Node ports answer on 127.0.0.1, for which the kernel must let such packets through; not from elsewhere.
            batch.add_rule("filter-in", |rule| {
                rule.meta(reg(0), META_INPUT_NAME).compare(reg(0), false, LOOPBACK_NAME);
                self.destination_in(rule, &loopback());
                rule.verdict(VERDICT_DROP, "");
            });
        }
        for chain in ["filter-in", "filter-out"] {
            batch.add_rule(chain, |rule| {
                new_connections(rule);
                self.front(rule, 0);
                verdict_of(rule, SetId::RefusedServices);
            });
            batch.add_rule(chain, |rule| {
                new_connections(rule);
                local_destination(rule);
                port_front(rule, 0);
                verdict_of(rule, SetId::RefusedPorts);
            });
        }
        batch.add_rule("filter-in", |rule| {
            new_connections(rule);
            self.unless_from_pod(rule);
            self.front(rule, 0);
            verdict_of(rule, SetId::RefusedOutsideServices);
        });
        batch.add_rule("filter-in", |rule| {
            new_connections(rule);
            self.unless_from_pod(rule);
            local_destination(rule);
            port_front(rule, 0);
            verdict_of(rule, SetId::RefusedOutsidePorts);
        });
        batch.add_base_chain("filter-forward", ChainKind::Filter, Hook::Forward, 0);
        batch.add_base_chain("filter-late", ChainKind::Filter, Hook::Output, 0);
        for chain in ["filter-forward", "filter-late"] {
            for cidr in &self.service_cidrs {
                // Still addressed to a service: there is none.
                batch.add_rule(chain, |rule| {
                    self.destination_in(rule, cidr);
                    rule.verdict(VERDICT_GOTO, REJECT_CHAIN);
                });
            }
        }
    }

    fn translations(&self, batch: &mut Batch) {
        batch.add_chain("translate");
        batch.add_rule("translate", |rule| {
            self.front(rule, 0);
            verdict_of(rule, SetId::Services);
        });
        batch.add_rule("translate", |rule| {
            local_destination(rule);
            port_front(rule, 0);
            verdict_of(rule, SetId::Ports);
        });
        batch.add_base_chain("translate-in", ChainKind::Nat, Hook::Prerouting, -100);
        batch.add_rule("translate-in", |rule| {
            self.unless_from_pod(rule);
            self.front(rule, 0);
            verdict_of(rule, SetId::OutsideServices);
        });
        batch.add_rule("translate-in", |rule| {
            self.unless_from_pod(rule);
            local_destination(rule);
            port_front(rule, 0);
            verdict_of(rule, SetId::OutsidePorts);
        });
        batch.add_rule("translate-in", |rule| {
            rule.verdict(VERDICT_JUMP, "translate");
        });
        batch.add_base_chain("translate-out", ChainKind::Nat, Hook::Output, -100);
        batch.add_rule("translate-out", |rule| {
            rule.verdict(VERDICT_JUMP, "translate");
        });
        self.sources(batch);
    }

    /// Whose source address is replaced.
    fn sources(&self, batch: &mut Batch) {
        let chain = "sources";
        let bytes = self.family.address_bytes();
        batch.add_base_chain(chain, ChainKind::Nat, Hook::Postrouting, 100);
        batch.add_rule(chain, |rule| {
            // A pod that reaches itself through a service must not be answered by itself directly.
            rule.payload(reg(0), NETWORK, self.source_at(), bytes);
            rule.payload(reg(self.words()), NETWORK, self.destination_at(), bytes);
            rule.lookup(SetId::Hairpin.name(), reg(0), None).masquerade();
        });
        if self.family == Family::V4 {
            batch.add_rule(chain, |rule| {
                self.source_in(rule, &loopback(), true);
                rule.meta(reg(0), META_OUTPUT_NAME).compare(reg(0), false, LOOPBACK_NAME).masquerade();
            });
        }
        batch.add_rule(chain, |rule| {
            rule.meta(reg(0), META_MARK).bitwise(reg(0), &MASQUERADE_MARK.to_ne_bytes(), &[0; 4]);
            rule.compare(reg(0), false, &[0; 4]);
            self.unless_from_pod(rule);
            rule.masquerade();
        });
        for pods in &self.pod_cidrs {
            batch.add_rule(chain, |rule| {
                self.source_in(rule, pods, true);
                for kept in self.cluster_cidr.iter().chain([pods]).chain(&self.no_masquerade) {
                    self.destination_not_in(rule, kept);
                }
                rule.masquerade();
            });
        }
    }

    /// The chain that picks an endpoint.
    pub fn pick_chain(&self, batch: &mut Batch, chain: &PickChain) {
        let name = chain.name();
        batch.add_chain(&name);
        let (data, port) = (reg(DATA), reg(DATA + self.words()));
        let family = self.family.number();
        let sticky = |rule: &mut Rule<'_>, seconds: u32| {
            through_priority(rule, reg(STICKY));
            rule.lookup(SetId::StickyEndpoints.name(), reg(STICKY), Some(data));
            self.client(rule, chain);
            rule.remember(STICKY_MAP, reg(0), reg(STICKY), u64::from(seconds) * 1000);
        };
        if let Some(seconds) = chain.affinity_s {
            batch.add_rule(&name, |rule| {
                self.client(rule, chain);
                rule.lookup(STICKY_MAP, reg(0), Some(data));
                sticky(rule, seconds);
                mark(rule, chain);
                rule.dnat(family, data, port);
            });
        }
        batch.add_rule(&name, |rule| {
            let next = self.place(rule, chain, 0);
            rule.random(reg(next), chain.count, chain.first_slot());
            match chain.affinity_s {
                None => {
                    rule.lookup(SetId::Endpoints.name(), reg(0), Some(data));
                }
                Some(seconds) => {
                    rule.lookup(SetId::StickySlots.name(), reg(0), Some(data));
                    sticky(rule, seconds);
                }
            }
            mark(rule, chain);
            rule.dnat(family, data, port);
        });
        let verdict = Data::Verdict(VERDICT_GOTO, name);
        batch.add_elements(CLASSES, [(&chain.class()[..], &verdict)].into_iter());
    }

    /// Loads destination, protocol and port from register `at` on; returns the next free register.
    fn front(&self, rule: &mut Rule<'_>, at: u32) -> u32 {
        rule.payload(reg(at), NETWORK, self.destination_at(), self.family.address_bytes());
        port_front(rule, at + self.words())
    }

    /// The same with zeros for the destination where the front is every address of the node.
    fn place(&self, rule: &mut Rule<'_>, chain: &PickChain, at: u32) -> u32 {
        if !chain.ports {
            return self.front(rule, at);
        }
        rule.immediate(reg(at), &vec![0; self.family.address_bytes() as usize]);
        port_front(rule, at + self.words())
    }

    /// Loads who asks for what.
    fn client(&self, rule: &mut Rule<'_>, chain: &PickChain) {
        rule.payload(reg(0), NETWORK, self.source_at(), self.family.address_bytes());
        self.place(rule, chain, self.words());
    }

    fn source_in(&self, rule: &mut Rule<'_>, cidr: &Cidr, inside: bool) {
        rule.payload(reg(0), NETWORK, self.source_at(), self.family.address_bytes());
        masked(rule, cidr, inside);
    }

    fn destination_in(&self, rule: &mut Rule<'_>, cidr: &Cidr) {
        rule.payload(reg(0), NETWORK, self.destination_at(), self.family.address_bytes());
        masked(rule, cidr, true);
    }

    fn destination_not_in(&self, rule: &mut Rule<'_>, cidr: &Cidr) {
        rule.payload(reg(0), NETWORK, self.destination_at(), self.family.address_bytes());
        masked(rule, cidr, false);
    }

    /// The rule goes on only for packets that do not come from a pod of the cluster.
    fn unless_from_pod(&self, rule: &mut Rule<'_>) {
        if let Some(cidr) = &self.cluster_cidr {
            self.source_in(rule, cidr, false);
        }
    }
}

fn loopback() -> Cidr {
    Cidr { address: IpAddr::from([127, 0, 0, 0]), prefix: 8 }
}

fn masked(rule: &mut Rule<'_>, cidr: &Cidr, inside: bool) {
    let mask = cidr.mask();
    rule.bitwise(reg(0), &mask, &vec![0; mask.len()]);
    rule.compare(reg(0), inside, &bytes_of(cidr.network().address));
}

/// Looks the front up that the registers from 0 on name, and takes the verdict of what it holds.
fn verdict_of(rule: &mut Rule<'_>, set: SetId) {
    rule.lookup(set.name(), reg(0), Some(reg(DATA)));
    through_priority(rule, reg(0));
    rule.lookup(if set.is_refused() { REFUSALS } else { CLASSES }, reg(0), Some(REG_VERDICT));
}

/// Takes a number just looked up through the packet's priority into a register.
///
/// The kernel needs no such detour, but the program `nft` cannot print a lookup of what a lookup gave, and ends at once,
/// together with everything else that was to be printed. The priority is free for that: it is set anew on forwarding,
/// and [`Frame::pick_chain`] puts it back to the usual 0.
fn through_priority(rule: &mut Rule<'_>, into: u32) {
    rule.set_meta(META_PRIORITY, reg(DATA)).meta(into, META_PRIORITY);
}

fn new_connections(rule: &mut Rule<'_>) {
    in_state(rule, CT_STATE_NEW);
}

/// The rule goes on only for packets whose connection is in this state.
fn in_state(rule: &mut Rule<'_>, state: u32) {
    rule.conntrack(reg(0), CT_STATE).bitwise(reg(0), &state.to_ne_bytes(), &[0; 4]);
    rule.compare(reg(0), false, &[0; 4]);
}

fn local_destination(rule: &mut Rule<'_>) {
    rule.destination_type(reg(0)).compare(reg(0), true, &FIB_LOCAL.to_ne_bytes());
}

/// Loads protocol and port from register `at` on; returns the next free register.
fn port_front(rule: &mut Rule<'_>, at: u32) -> u32 {
    rule.meta(reg(at), META_L4PROTO).payload(reg(at + 1), TRANSPORT, 2, 2);
    at + 2
}

/// Notes that the source shall be replaced unless the client is a pod, and takes the traces of lookups away.
fn mark(rule: &mut Rule<'_>, chain: &PickChain) {
    rule.immediate(reg(0), &[0; 4]).set_meta(META_PRIORITY, reg(0));
    if !chain.keep {
        rule.meta(reg(0), META_MARK);
        rule.bitwise(reg(0), &(!MASQUERADE_MARK).to_ne_bytes(), &MASQUERADE_MARK.to_ne_bytes());
        rule.set_meta(META_MARK, reg(0));
    }
}

/// The map of remembered clients, for the removal of those whose endpoint is gone.
pub(crate) fn sticky_map() -> &'static str {
    STICKY_MAP
}
