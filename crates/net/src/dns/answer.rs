//! From a question to a reply: pure. What is not ours is handed on.

use crate::dns::wire::{
    self, CLASS_ANY, CLASS_IN, HEADER_BYTES, Key, NAME_ERROR, NO_ERROR, Name, NoQuestion, Owner, Question, REFUSED,
    Reply, Section, TYPE_A, TYPE_AAAA, TYPE_ANY, TYPE_CNAME, TYPE_NS, TYPE_PTR, TYPE_SOA, TYPE_SRV, TYPE_TXT,
};
use crate::dns::zone::{Found, NEGATIVE_TTL_S, Records, Srv, TTL_S, Zone};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The most that we send in one UDP packet: it fits through every usual link in one piece.
pub const UDP_BYTES: u16 = 1232;
/// What a client takes that does not say.
const UDP_BYTES_CLASSIC: u16 = 512;
const TCP_BYTES: usize = 65_535;
/// Aliases followed within the zone.
const MAX_ALIASES: usize = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Udp,
    Tcp,
}

/// What to do with a query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The reply is written.
    Reply,
    /// The name is not ours: ask upstream.
    Forward,
    /// The name is an alias of one outside (in wire form), whose addresses belong to the answer. The reply is written with
    /// the alias alone.
    Alias(Vec<u8>),
    /// Not a query; say nothing.
    Ignore,
}

/// Answers `query` from `zone` into `out`. `turn` (any number, another each time) decides the order of addresses.
pub fn answer(zone: &Zone, query: &[u8], transport: Transport, turn: u32, out: &mut Vec<u8>) -> Outcome {
    let question = match wire::question(query) {
        Ok(question) => question,
        Err(NoQuestion::Ignore) => return Outcome::Ignore,
        Err(NoQuestion::Error(code)) => {
            wire::bare_reply(out, query, code);
            return Outcome::Reply;
        }
    };
    let limit = limit(&question, transport);
    if let Some((_, false)) = question.edns {
        // An EDNS version that nobody knows yet: extended code 16.
        Reply::begin(out, query, &question, limit).end(&question, 0, 1, UDP_BYTES);
        return Outcome::Reply;
    }
    if question.class != CLASS_IN && question.class != CLASS_ANY {
        Reply::begin(out, query, &question, limit).end(&question, REFUSED, 0, UDP_BYTES);
        return Outcome::Reply;
    }
    let name = question.name.lower();
    let key = name.key();
    let mut asked = Asked { zone, question: &question, reply: Reply::begin(out, query, &question, limit), turn };
    let outcome = if is_within(&key, zone) {
        asked.in_zone(name, key)
    } else {
        match reverse(&name).and_then(|address| zone.names_of(address)) {
            Some(names) => {
                let found = !names.is_empty();
                if question.kind == TYPE_PTR || question.kind == TYPE_ANY {
                    for (_, target) in names {
                        asked.reply.record(Section::Answer, Owner::At(HEADER_BYTES), TYPE_PTR, TTL_S, &[target]);
                    }
                    if found { Answer::Done } else { Answer::None(NAME_ERROR) }
                } else {
                    Answer::None(if found { NO_ERROR } else { NAME_ERROR })
                }
            }
            None if question.recursion_desired => return Outcome::Forward,
            None => {
                asked.reply.end(&question, REFUSED, 0, UDP_BYTES);
                return Outcome::Reply;
            }
        }
    };
    asked.finish(outcome)
}

/// The greatest reply that the client takes.
pub(crate) fn limit(question: &Question, transport: Transport) -> usize {
    match (transport, question.edns) {
        (Transport::Tcp, _) => TCP_BYTES,
        (Transport::Udp, Some((size, _))) => usize::from(size.clamp(UDP_BYTES_CLASSIC, UDP_BYTES)),
        (Transport::Udp, None) => usize::from(UDP_BYTES_CLASSIC),
    }
}

fn is_within(key: &Key, zone: &Zone) -> bool {
    key.as_bytes().starts_with(zone.domain_key.as_bytes())
}

enum Answer {
    Done,
    /// No such record, or (`NAME_ERROR`) no such name.
    None(u8),
    Outside(Vec<u8>),
}

struct Asked<'a> {
    zone: &'a Zone,
    question: &'a Question,
    reply: Reply<'a>,
    turn: u32,
}

impl Asked<'_> {
    fn in_zone(&mut self, mut name: Name, mut key: Key) -> Answer {
        let mut owner = HEADER_BYTES;
        for _ in 0..MAX_ALIASES {
            match self.zone.find(key.as_bytes()) {
                Found::Records(records) => match &records.cname {
                    Some(target) => {
                        let at = self.reply.at();
                        let pointer = Owner::At(owner);
                        if !self.reply.record(Section::Answer, pointer, TYPE_CNAME, TTL_S, &[target]) {
                            return Answer::Done;
                        }
                        if self.question.kind == TYPE_CNAME {
                            return Answer::Done;
                        }
                        let Some((next, _)) = Name::read(target, 0) else { return Answer::Done };
                        let next = next.lower();
                        (name, key) = (next, next.key());
                        if !is_within(&key, self.zone) {
                            return Answer::Outside(next.as_bytes().to_vec());
                        }
                        // The target stands behind pointer, type, class, time to live and length.
                        owner = at + 12;
                    }
                    None => return self.records(records, &name, owner),
                },
                Found::Empty => return self.none(NO_ERROR, owner),
                Found::Nothing => return self.pod(&name, owner),
            }
        }
        Answer::Done
    }

    /// After an alias there is an answer already, even when its target has none.
    fn none(&self, code: u8, owner: usize) -> Answer {
        if owner == HEADER_BYTES { Answer::None(code) } else { Answer::Done }
    }

    fn records(&mut self, records: &Records, name: &Name, owner: usize) -> Answer {
        let kind = self.question.kind;
        let before = self.reply.at();
        let owner_at = Owner::At(owner);
        let asks = |wanted| kind == wanted || kind == TYPE_ANY;
        if asks(TYPE_A) {
            let (first, last) = records.v4.split_at(self.split(records.v4.len()));
            for address in last.iter().chain(first) {
                self.reply.address(Section::Answer, owner_at, IpAddr::V4(*address), TTL_S);
            }
        }
        if asks(TYPE_AAAA) {
            let (first, last) = records.v6.split_at(self.split(records.v6.len()));
            for address in last.iter().chain(first) {
                self.reply.address(Section::Answer, owner_at, IpAddr::V6(*address), TTL_S);
            }
        }
        if asks(TYPE_SRV) {
            self.srv(&records.srv, owner_at);
        }
        if asks(TYPE_TXT)
            && let Some(text) = &records.txt
        {
            self.reply.record(Section::Answer, owner_at, TYPE_TXT, TTL_S, &[text]);
        }
        if asks(TYPE_NS)
            && let Some(server) = &records.ns
        {
            self.reply.record(Section::Answer, owner_at, TYPE_NS, TTL_S, &[server]);
        }
        if asks(TYPE_SOA) && name.as_bytes() == self.zone.domain.as_bytes() {
            self.soa(Section::Answer, owner);
        }
        if self.reply.at() == before && !self.has(records) { self.none(NO_ERROR, owner) } else { Answer::Done }
    }

    /// There are records of the kind asked for, though perhaps no room.
    fn has(&self, records: &Records) -> bool {
        match self.question.kind {
            TYPE_A => !records.v4.is_empty(),
            TYPE_AAAA => !records.v6.is_empty(),
            TYPE_SRV => !records.srv.is_empty(),
            _ => false,
        }
    }

    /// Where a list begins this time: another place each time, so that clients that take the first are spread.
    fn split(&self, len: usize) -> usize {
        if len == 0 { 0 } else { self.turn as usize % len }
    }

    fn srv(&mut self, list: &[Srv], owner: Owner<'_>) {
        let (first, last) = list.split_at(self.split(list.len()));
        // Weights share 100 evenly; priorities are all 0.
        let weight = (100 / list.len().max(1)).max(1) as u16;
        let mut targets = Vec::with_capacity(list.len());
        for srv in last.iter().chain(first) {
            let at = self.reply.at();
            let numbers = [[0, 0], weight.to_be_bytes(), srv.port.to_be_bytes()].concat();
            if self.reply.record(Section::Answer, owner, TYPE_SRV, TTL_S, &[&numbers, &srv.target]) {
                targets.push((at + 12 + numbers.len(), srv));
            }
        }
        let mut told: Vec<&[u8]> = Vec::new();
        for (at, srv) in targets {
            if !told.contains(&&*srv.target) {
                told.push(&srv.target);
                // Pointers reach the first 16 KiB only.
                let owner = if at < 0x4000 { Owner::At(at) } else { Owner::Name(&srv.target) };
                for address in &srv.addresses {
                    self.reply.address(Section::Additional, owner, *address, TTL_S);
                }
            }
        }
    }

    /// `10-244-1-7.default.pod`: the address is in the name.
    fn pod(&mut self, name: &Name, owner: usize) -> Answer {
        let mut labels = name.labels();
        let (Some(first), Some(namespace), Some(kind)) = (labels.next(), labels.next(), labels.next()) else {
            return self.none(NAME_ERROR, owner);
        };
        let depth = self.zone.domain.labels().count();
        if kind != b"pod" || labels.count() != depth || !self.zone.has_namespace(namespace) {
            return self.none(NAME_ERROR, owner);
        }
        match (dashed(first), self.question.kind) {
            (None, _) => self.none(NAME_ERROR, owner),
            (Some(address @ IpAddr::V4(_)), TYPE_A | TYPE_ANY)
            | (Some(address @ IpAddr::V6(_)), TYPE_AAAA | TYPE_ANY) => {
                self.reply.address(Section::Answer, Owner::At(owner), address, TTL_S);
                Answer::Done
            }
            (Some(_), _) => self.none(NO_ERROR, owner),
        }
    }

    fn soa(&mut self, section: Section, owner: usize) {
        let domain = self.zone.domain;
        let names = [b"\x02ns\x03dns".as_slice(), domain.as_bytes(), b"\x0ahostmaster", domain.as_bytes()];
        let mut numbers = [0; 20];
        for (at, number) in [self.zone.serial(), 7200, 1800, 86_400, NEGATIVE_TTL_S].into_iter().enumerate() {
            numbers[at * 4..at * 4 + 4].copy_from_slice(&number.to_be_bytes());
        }
        let data = [names[0], names[1], names[2], names[3], &numbers];
        let ttl = if section == Section::Answer { TTL_S } else { NEGATIVE_TTL_S };
        self.reply.record(section, Owner::At(owner), TYPE_SOA, ttl, &data);
    }

    fn finish(mut self, answer: Answer) -> Outcome {
        self.reply.authoritative();
        match answer {
            Answer::Done => {
                self.reply.end(self.question, NO_ERROR, 0, UDP_BYTES);
                Outcome::Reply
            }
            Answer::None(code) => {
                // The zone's own name is the end of the question's; in reverse zones the last two labels are.
                let len = self.question.name.as_bytes().len();
                let apex = match reverse(&self.question.name.lower()) {
                    Some(address) => if address.is_ipv4() { "in-addr.arpa" } else { "ip6.arpa" }.len() + 2,
                    None => self.zone.domain.as_bytes().len(),
                };
                self.soa(Section::Authority, HEADER_BYTES + len - apex);
                self.reply.end(self.question, code, 0, UDP_BYTES);
                Outcome::Reply
            }
            Answer::Outside(target) => {
                self.reply.end(self.question, NO_ERROR, 0, UDP_BYTES);
                if self.question.recursion_desired { Outcome::Alias(target) } else { Outcome::Reply }
            }
        }
    }
}

/// `10-244-1-7` or `fd00--1` as an address.
fn dashed(label: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(label).ok()?;
    let v4 = text.replace('-', ".").parse::<Ipv4Addr>().ok().map(IpAddr::V4);
    v4.or_else(|| text.replace('-', ":").parse::<Ipv6Addr>().ok().map(IpAddr::V6))
}

/// The address that a whole reverse name stands for.
fn reverse(name: &Name) -> Option<IpAddr> {
    let bytes = name.as_bytes();
    if bytes.ends_with(b"\x07in-addr\x04arpa\x00") {
        let mut octets = [0; 4];
        let mut labels = name.labels();
        for octet in octets.iter_mut().rev() {
            *octet = std::str::from_utf8(labels.next()?).ok()?.parse().ok()?;
        }
        return (labels.count() == 2).then(|| IpAddr::from(octets));
    }
    if bytes.ends_with(b"\x03ip6\x04arpa\x00") {
        let mut number = 0u128;
        let mut labels = name.labels();
        for nibble in 0..32 {
            let [digit] = labels.next()? else { return None };
            number |= u128::from(char::from(*digit).to_digit(16)?) << (nibble * 4);
        }
        return (labels.count() == 2).then(|| IpAddr::from(number.to_be_bytes()));
    }
    None
}
