//! nf_tables: tables, chains, rules, sets and elements as netlink messages.

use super::{Messages, NLM_F_CREATE, NLM_F_DUMP, Socket, attribute, attributes};
use crate::error::{Error, NetlinkError};
use rustix::net::netlink::NETFILTER;
use std::cell::RefCell;

const SUBSYSTEM: u16 = 10 << 8;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NEWTABLE: u16 = SUBSYSTEM;
const DELTABLE: u16 = SUBSYSTEM | 2;
const NEWCHAIN: u16 = SUBSYSTEM | 3;
const NEWRULE: u16 = SUBSYSTEM | 6;
const NEWSET: u16 = SUBSYSTEM | 9;
const NEWSETELEM: u16 = SUBSYSTEM | 12;
const GETSETELEM: u16 = SUBSYSTEM | 13;
const DELSETELEM: u16 = SUBSYSTEM | 14;

/// Bytes of elements in one message: the length of an attribute has 16 bits.
const ELEMENT_BYTES: usize = 60_000;

pub(crate) const SET_MAP: u32 = 8;
pub(crate) const SET_TIMEOUT: u32 = 0x10;
pub(crate) const SET_EVAL: u32 = 0x20;
const DATA_VERDICT: u32 = 0xffff_ff00;

pub(crate) const VERDICT_DROP: i32 = 0;
pub(crate) const VERDICT_ACCEPT: i32 = 1;
pub(crate) const VERDICT_JUMP: i32 = -3;
pub(crate) const VERDICT_GOTO: i32 = -4;

/// Types as the program `nft` names them, so that it can print our sets.
pub(crate) const TYPE_IPV4: u32 = 7;
pub(crate) const TYPE_IPV6: u32 = 8;
pub(crate) const TYPE_PROTOCOL: u32 = 12;
pub(crate) const TYPE_PORT: u32 = 13;
pub(crate) const TYPE_MARK: u32 = 19;
pub(crate) const TYPE_PRIORITY: u32 = 22;

/// The type of several fields one behind the other.
pub(crate) fn concat(types: &[u32]) -> u32 {
    types.iter().fold(0, |all, kind| all << 6 | kind)
}

/// The register for verdicts; the others are 32 bits wide and begin at [`reg`]`(0)`.
pub(crate) const REG_VERDICT: u32 = 0;

pub(crate) fn reg(n: u32) -> u32 {
    8 + n
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Hook {
    Prerouting = 0,
    Forward = 2,
    Output = 3,
    Postrouting = 4,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ChainKind {
    Filter,
    Nat,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub(crate) enum Data {
    None,
    Verdict(i32, String),
    Value(Vec<u8>),
}

pub(crate) struct SetSpec<'a> {
    pub name: &'a str,
    pub flags: u32,
    pub key_type: u32,
    pub key_bytes: u32,
    /// Of the data; `None` for verdicts.
    pub data: Option<(u32, u32)>,
    pub timeout_ms: Option<u64>,
    pub size: Option<u32>,
}

/// One atomic change of the tables of one family.
pub(crate) struct Batch {
    m: Messages,
    family: u8,
    table: String,
    sets: u32,
}

impl Batch {
    pub fn new(family: u8, table: &str) -> Batch {
        let mut m = Messages::new();
        m.begin(BATCH_BEGIN, 0, &[0, 0, 0, SUBSYSTEM.to_be_bytes()[0]]);
        Batch { m, family, table: table.into(), sets: 0 }
    }

    fn begin(&mut self, kind: u16, flags: u16) {
        self.m.begin(kind, flags, &[self.family, 0, 0, 0]);
    }

    pub fn bytes(&self) -> usize {
        self.m.len()
    }

    pub fn add_table(&mut self) {
        self.begin(NEWTABLE, NLM_F_CREATE);
        self.m.text(1, &self.table);
    }

    pub fn delete_table(&mut self) {
        self.begin(DELTABLE, 0);
        self.m.text(1, &self.table);
    }

    pub fn add_chain(&mut self, name: &str) {
        self.begin(NEWCHAIN, NLM_F_CREATE);
        self.m.text(1, &self.table);
        self.m.text(3, name);
    }

    pub fn add_base_chain(&mut self, name: &str, kind: ChainKind, hook: Hook, priority: i32) {
        self.add_chain(name);
        self.m.nest(4, |m| {
            m.be32(1, hook as u32);
            m.be32(2, priority as u32);
        });
        self.m.be32(5, 1);
        self.m.text(7, if kind == ChainKind::Nat { "nat" } else { "filter" });
    }

    pub fn add_set(&mut self, set: &SetSpec<'_>) {
        self.sets += 1;
        self.begin(NEWSET, NLM_F_CREATE);
        let m = &mut self.m;
        m.text(1, &self.table);
        m.text(2, set.name);
        m.be32(3, set.flags);
        m.be32(4, set.key_type);
        m.be32(5, set.key_bytes);
        m.be32(10, self.sets);
        if set.flags & SET_MAP != 0 {
            let (kind, bytes) = set.data.unwrap_or((DATA_VERDICT, 0));
            m.be32(6, kind);
            if bytes > 0 {
                m.be32(7, bytes);
            }
        }
        if let Some(timeout) = set.timeout_ms {
            m.attr(11, &timeout.to_be_bytes());
        }
        if let Some(size) = set.size {
            m.nest(9, |m| m.be32(1, size));
        }
    }

    pub fn add_rule(&mut self, chain: &str, build: impl FnOnce(&mut Rule<'_>)) {
        self.begin(NEWRULE, NLM_F_CREATE | super::NLM_F_APPEND);
        self.m.text(1, &self.table);
        self.m.text(2, chain);
        self.m.nest(4, |m| build(&mut Rule { m }));
    }

    /// Elements are spread over as many messages as it takes.
    pub fn add_elements<'a>(&mut self, set: &str, elements: impl Iterator<Item = (&'a [u8], &'a Data)>) {
        self.elements(NEWSETELEM, NLM_F_CREATE, set, elements);
    }

    pub fn delete_elements<'a>(&mut self, set: &str, keys: impl Iterator<Item = &'a [u8]>) {
        self.elements(DELSETELEM, 0, set, keys.map(|key| (key, &Data::None)));
    }

    fn elements<'a>(&mut self, kind: u16, flags: u16, set: &str, elements: impl Iterator<Item = (&'a [u8], &'a Data)>) {
        let mut open: Option<usize> = None;
        for (key, data) in elements {
            if open.is_some_and(|start| self.m.len() - start > ELEMENT_BYTES)
                && let Some(start) = open.take()
            {
                self.m.close(start);
            }
            if open.is_none() {
                self.begin(kind, flags);
                self.m.text(1, &self.table);
                self.m.text(2, set);
                open = Some(self.m.open(3));
            }
            self.m.nest(1, |m| element(m, key, data));
        }
        if let Some(start) = open {
            self.m.close(start);
        }
    }
}

fn element(m: &mut Messages, key: &[u8], data: &Data) {
    m.nest(1, |m| m.attr(1, key));
    match data {
        Data::None => {}
        Data::Value(value) => m.nest(2, |m| m.attr(1, value)),
        Data::Verdict(code, chain) => m.nest(2, |m| verdict(m, *code, chain)),
    }
}

fn verdict(m: &mut Messages, code: i32, chain: &str) {
    m.nest(2, |m| {
        m.be32(1, code as u32);
        if !chain.is_empty() {
            m.text(2, chain);
        }
    });
}

/// The expressions of one rule, in order.
pub(crate) struct Rule<'a> {
    m: &'a mut Messages,
}

impl Rule<'_> {
    fn expression(&mut self, name: &str, data: impl FnOnce(&mut Messages)) -> &mut Self {
        self.m.nest(1, |m| {
            m.text(1, name);
            m.nest(2, data);
        });
        self
    }

    /// Loads packet bytes; `base` 1 is the network header, 2 the transport header.
    pub fn payload(&mut self, into: u32, base: u32, offset: u32, bytes: u32) -> &mut Self {
        self.expression("payload", |m| {
            m.be32(1, into);
            m.be32(2, base);
            m.be32(3, offset);
            m.be32(4, bytes);
        })
    }

    pub fn meta(&mut self, into: u32, key: u32) -> &mut Self {
        self.expression("meta", |m| {
            m.be32(1, into);
            m.be32(2, key);
        })
    }

    pub fn set_meta(&mut self, key: u32, from: u32) -> &mut Self {
        self.expression("meta", |m| {
            m.be32(2, key);
            m.be32(3, from);
        })
    }

    pub fn conntrack(&mut self, into: u32, key: u32) -> &mut Self {
        self.expression("ct", |m| {
            m.be32(1, into);
            m.be32(2, key);
        })
    }

    /// The packet belongs to no connection.
    pub fn untracked(&mut self) -> &mut Self {
        self.expression("notrack", |_| {})
    }

    /// The rule goes on only if the register equals (`true`) or does not equal the value.
    pub fn compare(&mut self, from: u32, equal: bool, value: &[u8]) -> &mut Self {
        self.expression("cmp", |m| {
            m.be32(1, from);
            m.be32(2, u32::from(!equal));
            m.nest(3, |m| m.attr(1, value));
        })
    }

    /// `register = (register & mask) ^ xor`.
    pub fn bitwise(&mut self, register: u32, mask: &[u8], xor: &[u8]) -> &mut Self {
        self.expression("bitwise", |m| {
            m.be32(1, register);
            m.be32(2, register);
            m.be32(3, mask.len() as u32);
            m.nest(4, |m| m.attr(1, mask));
            m.nest(5, |m| m.attr(1, xor));
        })
    }

    pub fn immediate(&mut self, into: u32, value: &[u8]) -> &mut Self {
        self.expression("immediate", |m| {
            m.be32(1, into);
            m.nest(2, |m| m.attr(1, value));
        })
    }

    pub fn verdict(&mut self, code: i32, chain: &str) -> &mut Self {
        self.expression("immediate", |m| {
            m.be32(1, REG_VERDICT);
            m.nest(2, |m| verdict(m, code, chain));
        })
    }

    /// Looks the registers from `from` on up; the rule ends when there is nothing.
    pub fn lookup(&mut self, set: &str, from: u32, into: Option<u32>) -> &mut Self {
        self.expression("lookup", |m| {
            m.text(1, set);
            m.be32(2, from);
            if let Some(into) = into {
                m.be32(3, into);
            }
        })
    }

    /// A random number in `offset .. offset + below`.
    pub fn random(&mut self, into: u32, below: u32, offset: u32) -> &mut Self {
        self.expression("numgen", |m| {
            m.be32(1, into);
            m.be32(2, below);
            m.be32(3, 1);
            m.be32(4, offset);
        })
    }

    /// Whether the destination is an address of this machine: 2 if so.
    pub fn destination_type(&mut self, into: u32) -> &mut Self {
        self.expression("fib", |m| {
            m.be32(1, into);
            m.be32(2, 3);
            m.be32(3, 2);
        })
    }

    pub fn dnat(&mut self, family: u8, address: u32, port: u32) -> &mut Self {
        self.expression("nat", |m| {
            m.be32(1, 1);
            m.be32(2, u32::from(family));
            m.be32(3, address);
            m.be32(5, port);
        })
    }

    pub fn masquerade(&mut self) -> &mut Self {
        // Ports wholly at random: two connections at once never fight for one.
        self.expression("masq", |m| m.be32(1, 1 << 4))
    }

    /// Refuses with "port unreachable".
    pub fn reject(&mut self, code: u8) -> &mut Self {
        self.expression("reject", |m| {
            m.be32(1, 0);
            m.attr(2, &[code]);
        })
    }

    /// Writes `key -> data` into a map, or renews it there.
    pub fn remember(&mut self, map: &str, key: u32, data: u32, timeout_ms: u64) -> &mut Self {
        self.expression("dynset", |m| {
            m.text(1, map);
            m.be32(3, 1);
            m.be32(4, key);
            m.be32(5, data);
            m.attr(6, &timeout_ms.to_be_bytes());
        })
    }
}

/// Key and data.
pub(crate) type Element = (Vec<u8>, Data);

/// A socket of one network namespace.
pub(crate) struct Nft(Socket);

impl Nft {
    /// In the calling thread's namespace.
    pub fn open() -> Result<Nft, Error> {
        Socket::open(Some(NETFILTER)).map(Nft).map_err(Error::io("open a netfilter socket"))
    }

    /// Carries a batch out, all of it or nothing.
    pub fn commit(&mut self, batch: Batch) -> Result<(), NetlinkError> {
        let mut m = batch.m;
        m.acknowledge_last();
        m.begin(BATCH_END, 0, &[0, 0, 0, SUBSYSTEM.to_be_bytes()[0]]);
        self.0.batch(&mut m)
    }

    /// All elements of a set. `None` when there is no such table or set.
    pub fn elements(&mut self, family: u8, table: &str, set: &str) -> Result<Option<Vec<Element>>, Error> {
        let found = RefCell::new(Vec::new());
        let make = |m: &mut Messages| {
            m.begin(GETSETELEM, NLM_F_DUMP, &[family, 0, 0, 0]);
            m.text(1, table);
            m.text(2, set);
        };
        let visit = |_, payload: &[u8]| found.borrow_mut().extend(elements_of(payload));
        match self.0.dump(&make, visit, || found.borrow_mut().clear()) {
            Ok(()) => Ok(Some(found.into_inner())),
            Err(error) if error.errno == libc::ENOENT => Ok(None),
            Err(error) => Err(Error::netlink(format!("read the set {set}"))(error)),
        }
    }
}

fn elements_of(payload: &[u8]) -> impl Iterator<Item = Element> {
    let list = payload.get(4..).and_then(|attrs| attribute(attrs, 3)).unwrap_or(&[]);
    attributes(list).filter_map(|(_, element)| element_of(element))
}

/// Reads one answer as elements of a set.
pub(crate) fn read(payload: &[u8]) {
    elements_of(payload).for_each(drop);
}

fn element_of(bytes: &[u8]) -> Option<(Vec<u8>, Data)> {
    let key = attribute(bytes, 1).and_then(|key| attribute(key, 1))?.to_vec();
    let Some(data) = attribute(bytes, 2) else { return Some((key, Data::None)) };
    if let Some(value) = attribute(data, 1) {
        return Some((key, Data::Value(value.to_vec())));
    }
    let verdict = attribute(data, 2)?;
    let code = attribute(verdict, 1)?.try_into().ok().map(i32::from_be_bytes)?;
    Some((key, Data::Verdict(code, attribute(verdict, 2).map(super::text_of).unwrap_or_default())))
}
