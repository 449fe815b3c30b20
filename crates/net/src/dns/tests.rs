//! Questions in, replies out, as text.

use super::wire::{
    self, HEADER_BYTES, Name, Record, TYPE_A, TYPE_AAAA, TYPE_CNAME, TYPE_PTR, TYPE_SRV, TYPE_TXT, u16_at,
};
use super::*;
use crate::nodenet::Protocol;
use base::Rng;
use std::net::IpAddr;

const TYPES: [(&str, u16); 8] = [
    ("A", TYPE_A),
    ("AAAA", TYPE_AAAA),
    ("CNAME", TYPE_CNAME),
    ("PTR", TYPE_PTR),
    ("SRV", TYPE_SRV),
    ("TXT", TYPE_TXT),
    ("SOA", wire::TYPE_SOA),
    ("NS", wire::TYPE_NS),
];

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn port(name: &str, port: u16) -> PortName {
    PortName { name: name.into(), protocol: Protocol::Tcp, port }
}

fn zone() -> Zone {
    let networks = ["10.96.0.0/12".parse().unwrap(), "10.244.0.0/16".parse().unwrap()];
    let mut zone = Zone::new("cluster.local", &[ip("10.96.0.10")], &networks).unwrap();
    zone.set_namespace("default", true);
    zone.set_namespace("empty", true);
    let web = ServiceNames {
        addresses: vec![ip("10.96.1.1"), ip("fd00:96::1")],
        ports: vec![port("http", 80), port("", 81)],
        ..ServiceNames::default()
    };
    zone.set_service("default", "web", Some(web));
    let pod = |n: u8, hostname: Option<&str>| EndpointName {
        address: IpAddr::from([10, 244, 1, n]),
        hostname: hostname.map(str::to_string),
        ports: vec![port("db", 5432)],
    };
    let db = ServiceNames {
        endpoints: vec![pod(1, Some("db-0")), pod(2, Some("db-1")), pod(3, None)],
        ..ServiceNames::default()
    };
    zone.set_service("default", "db", Some(db));
    let external = |target: &str| ServiceNames { external: Some(target.into()), ..ServiceNames::default() };
    zone.set_service("default", "outside", Some(external("www.example.com")));
    zone.set_service("default", "alias", Some(external("web.default.svc.cluster.local")));
    zone.set_service("default", "loop", Some(external("loop.default.svc.cluster.local")));
    zone
}

/// A message as text: code and flags, then the records by section.
fn text(message: &[u8]) -> String {
    let code = ["NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED"][usize::from(message[3] & 15)];
    let mut out = code.to_string();
    for (bit, flag) in [(4, " aa"), (2, " tc")] {
        out += if message[2] & bit != 0 { flag } else { "" };
    }
    let (_, at) = Name::read(message, HEADER_BYTES).unwrap();
    let mut at = at + 4;
    for (section, name) in ["answer", "authority", "additional"].into_iter().enumerate() {
        for _ in 0..u16_at(message, 6 + section * 2).unwrap() {
            let record = Record::read(message, at).unwrap();
            at = record.end;
            if record.kind == wire::TYPE_OPT {
                continue;
            }
            let kind = TYPES.iter().find(|(_, kind)| *kind == record.kind).unwrap().0;
            let target = |skip: usize| Name::read(message, record.data_at + skip).unwrap().0.to_string();
            let data = match kind {
                "A" => IpAddr::from(<[u8; 4]>::try_from(record.data).unwrap()).to_string(),
                "AAAA" => IpAddr::from(<[u8; 16]>::try_from(record.data).unwrap()).to_string(),
                "SRV" => format!("{} {}", u16_at(record.data, 4).unwrap(), target(6)),
                "TXT" => String::from_utf8_lossy(&record.data[1..]).into_owned(),
                _ => target(0),
            };
            out += &format!("\n{name} {} {kind} {data}", record.name);
        }
    }
    assert_eq!(at, message.len(), "nothing follows");
    out
}

fn query(name: &str, kind: &str, edns: Option<u16>) -> Vec<u8> {
    let kind = TYPES.iter().find(|(name, _)| *name == kind).unwrap().1;
    let mut query = wire::query(0x1234, Name::parse(name).unwrap().as_bytes(), kind, edns.unwrap_or(0));
    if edns.is_none() {
        query.truncate(query.len() - 11);
        query[11] = 0;
    }
    query
}

fn check(name: &str, kind: &str, want: &[&str]) {
    let mut out = Vec::new();
    assert_eq!(answer(&zone(), &query(name, kind, Some(1232)), Transport::Udp, 0, &mut out), Outcome::Reply, "{name}");
    assert_eq!(out[..2], [0x12, 0x34]);
    assert_eq!(text(&out), want.join("\n"), "{name} {kind}");
}

const SOA: &str = "authority cluster.local. SOA ns.dns.cluster.local.";

#[test]
fn services_are_answered() {
    let web = "web.default.svc.cluster.local";
    check(web, "A", &["NOERROR aa", "answer web.default.svc.cluster.local. A 10.96.1.1"]);
    check(web, "AAAA", &["NOERROR aa", "answer web.default.svc.cluster.local. AAAA fd00:96::1"]);
    check(web, "TXT", &["NOERROR aa", SOA]);
    check("WEB.default.SVC.cluster.LOCAL", "A", &["NOERROR aa", "answer WEB.default.SVC.cluster.LOCAL. A 10.96.1.1"]);
    check(
        "_http._tcp.web.default.svc.cluster.local",
        "SRV",
        &[
            "NOERROR aa",
            "answer _http._tcp.web.default.svc.cluster.local. SRV 80 web.default.svc.cluster.local.",
            "additional web.default.svc.cluster.local. A 10.96.1.1",
            "additional web.default.svc.cluster.local. AAAA fd00:96::1",
        ],
    );
    check("10.1.96.10.in-addr.arpa", "PTR", &["NXDOMAIN aa", "authority in-addr.arpa. SOA ns.dns.cluster.local."]);
    let reverse = "answer 1.1.96.10.in-addr.arpa. PTR web.default.svc.cluster.local.";
    check("1.1.96.10.in-addr.arpa", "PTR", &["NOERROR aa", reverse]);
    check("dns-version.cluster.local", "TXT", &["NOERROR aa", "answer dns-version.cluster.local. TXT 1.1.0"]);
    check("cluster.local", "NS", &["NOERROR aa", "answer cluster.local. NS ns.dns.cluster.local."]);
    check("ns.dns.cluster.local", "A", &["NOERROR aa", "answer ns.dns.cluster.local. A 10.96.0.10"]);
}

#[test]
fn pods_are_answered() {
    let db = "db.default.svc.cluster.local";
    check(
        db,
        "A",
        &[
            "NOERROR aa",
            "answer db.default.svc.cluster.local. A 10.244.1.1",
            "answer db.default.svc.cluster.local. A 10.244.1.2",
            "answer db.default.svc.cluster.local. A 10.244.1.3",
        ],
    );
    check(
        "db-1.db.default.svc.cluster.local",
        "A",
        &["NOERROR aa", "answer db-1.db.default.svc.cluster.local. A 10.244.1.2"],
    );
    check(
        "10-244-1-3.db.default.svc.cluster.local",
        "A",
        &["NOERROR aa", "answer 10-244-1-3.db.default.svc.cluster.local. A 10.244.1.3"],
    );
    check(
        "2.1.244.10.in-addr.arpa",
        "PTR",
        &["NOERROR aa", "answer 2.1.244.10.in-addr.arpa. PTR db-1.db.default.svc.cluster.local."],
    );
    check(
        "10-244-9-9.default.pod.cluster.local",
        "A",
        &["NOERROR aa", "answer 10-244-9-9.default.pod.cluster.local. A 10.244.9.9"],
    );
    check(
        "fd00--7.default.pod.cluster.local",
        "AAAA",
        &["NOERROR aa", "answer fd00--7.default.pod.cluster.local. AAAA fd00::7"],
    );
    check("10-244-9-9.default.pod.cluster.local", "AAAA", &["NOERROR aa", SOA]);
    for nobody in
        ["10-244-9-9.nowhere.pod.cluster.local", "x.default.pod.cluster.local", "a.10-0-0-1.default.pod.cluster.local"]
    {
        check(nobody, "A", &["NXDOMAIN aa", SOA]);
    }
    let mut out = Vec::new();
    let srv = query("_db._tcp.db.default.svc.cluster.local", "SRV", Some(1232));
    answer(&zone(), &srv, Transport::Udp, 1, &mut out);
    assert_eq!(text(&out).lines().filter(|line| line.starts_with("answer")).count(), 3);
    assert!(text(&out).contains("additional db-0.db.default.svc.cluster.local. A 10.244.1.1"));
}

#[test]
fn what_is_not_there_is_told_apart() {
    // No such name.
    for name in [
        "nope.default.svc.cluster.local",
        "web.nowhere.svc.cluster.local",
        "x.web.default.svc.cluster.local",
        "foo.cluster.local",
    ] {
        check(name, "A", &["NXDOMAIN aa", SOA]);
    }
    // The name is there, but not this type; also names that exist only because of others below them.
    for name in [
        "cluster.local",
        "svc.cluster.local",
        "default.svc.cluster.local",
        "empty.svc.cluster.local",
        "_tcp.web.default.svc.cluster.local",
        "default.pod.cluster.local",
        "dns.cluster.local",
    ] {
        check(name, "A", &["NOERROR aa", SOA]);
    }
    check("xcluster.local.cluster.local", "A", &["NXDOMAIN aa", SOA]);
}

#[test]
fn aliases_are_followed() {
    check(
        "alias.default.svc.cluster.local",
        "A",
        &[
            "NOERROR aa",
            "answer alias.default.svc.cluster.local. CNAME web.default.svc.cluster.local.",
            "answer web.default.svc.cluster.local. A 10.96.1.1",
        ],
    );
    check(
        "alias.default.svc.cluster.local",
        "CNAME",
        &["NOERROR aa", "answer alias.default.svc.cluster.local. CNAME web.default.svc.cluster.local."],
    );
    let mut out = Vec::new();
    let outcome = answer(&zone(), &query("outside.default.svc.cluster.local", "A", None), Transport::Udp, 0, &mut out);
    assert_eq!(outcome, Outcome::Alias(Name::parse("www.example.com").unwrap().as_bytes().to_vec()));
    assert!(text(&out).ends_with("CNAME www.example.com."));
    // A circle ends.
    answer(&zone(), &query("loop.default.svc.cluster.local", "A", None), Transport::Udp, 0, &mut out);
    assert_eq!(text(&out).lines().count(), 9);
}

#[test]
fn other_names_are_handed_on() {
    let mut out = Vec::new();
    let zone = zone();
    for name in [
        "example.com",
        "local",
        "1.0.0.8.in-addr.arpa",
        "10.in-addr.arpa",
        "cluster.local.example.com",
        "xcluster.local",
    ] {
        assert_eq!(answer(&zone, &query(name, "A", None), Transport::Udp, 0, &mut out), Outcome::Forward, "{name}");
    }
    let mut no_recursion = query("example.com", "A", None);
    no_recursion[2] = 0;
    assert_eq!(answer(&zone, &no_recursion, Transport::Udp, 0, &mut out), Outcome::Reply);
    assert_eq!(text(&out), "REFUSED");
}

#[test]
fn long_answers_are_cut_and_whole_over_tcp() {
    let mut zone = zone();
    let endpoints = (0..200u32).map(|n| EndpointName {
        address: IpAddr::from((0x0af4_0000 + n).to_be_bytes()),
        hostname: None,
        ports: vec![port("db", 1)],
    });
    let many = ServiceNames { endpoints: endpoints.collect(), ..ServiceNames::default() };
    zone.set_service("default", "many", Some(many));
    let mut out = Vec::new();
    for (edns, limit) in [(None, 512), (Some(400), 512), (Some(900), 900), (Some(4096), 1232)] {
        answer(&zone, &query("many.default.svc.cluster.local", "A", edns), Transport::Udp, 0, &mut out);
        assert!(out.len() <= limit && out.len() > limit - 30, "{} of {limit}", out.len());
        assert!(text(&out).starts_with("NOERROR aa tc\n"));
    }
    for (name, kind) in [("many.default.svc.cluster.local", "A"), ("_db._tcp.many.default.svc.cluster.local", "SRV")] {
        answer(&zone, &query(name, kind, None), Transport::Tcp, 7, &mut out);
        assert_eq!(text(&out).lines().filter(|line| line.starts_with("answer")).count(), 200);
        assert!(text(&out).starts_with("NOERROR aa\n"));
    }
    // The order turns.
    let first = |turn| {
        let mut out = Vec::new();
        answer(&zone, &query("many.default.svc.cluster.local", "A", None), Transport::Tcp, turn, &mut out);
        text(&out).lines().nth(1).map(str::to_string)
    };
    assert_ne!(first(0), first(1));
}

#[test]
fn services_change_without_trace() {
    let empty = Zone::new("cluster.local", &[], &[]).unwrap();
    let mut zone = empty.clone();
    let mut rng = Rng::new(3);
    let names = ["a", "b", "c"];
    let mut model = std::collections::BTreeMap::new();
    for _ in 0..500 {
        let name = names[rng.below(3) as usize];
        let address = |rng: &mut Rng| IpAddr::from([10, 0, 0, rng.below(5) as u8]);
        let service = rng.chance(700).then(|| match rng.below(3) {
            0 => ServiceNames { external: Some("x.y".into()), ..ServiceNames::default() },
            1 => ServiceNames {
                addresses: vec![address(&mut rng)],
                ports: vec![port("p", 1)],
                ..ServiceNames::default()
            },
            _ => {
                let endpoint = |rng: &mut Rng| EndpointName {
                    address: address(rng),
                    hostname: rng.chance(500).then(|| format!("h{}", rng.below(3))),
                    ports: vec![port("q", 2)],
                };
                ServiceNames {
                    endpoints: (0..rng.below(4)).map(|_| endpoint(&mut rng)).collect(),
                    ..ServiceNames::default()
                }
            }
        });
        zone.set_service("n", name, service.clone());
        match service {
            Some(service) => model.insert(name, service),
            None => model.remove(name),
        };
        let mut fresh = empty.clone();
        for (name, service) in model.iter().rev() {
            fresh.set_service("n", name, Some(service.clone()));
        }
        for question in ["a.n.svc", "_p._tcp.b.n.svc", "_q._tcp.c.n.svc", "h1.a.n.svc", "10-0-0-2.b.n.svc", "n.svc"] {
            for kind in ["A", "SRV", "CNAME"] {
                let question = query(&format!("{question}.cluster.local"), kind, None);
                let (mut one, mut other) = (Vec::new(), Vec::new());
                answer(&zone, &question, Transport::Tcp, 0, &mut one);
                answer(&fresh, &question, Transport::Tcp, 0, &mut other);
                // The serial number tells the two zones apart.
                assert_eq!(text(&one), text(&other));
            }
        }
        for n in 0..5 {
            let address = IpAddr::from([10, 0, 0, n]);
            assert_eq!(zone.names_of(address), fresh.names_of(address));
        }
    }
    assert_eq!(zone.services(), model.len());
}

#[test]
fn any_bytes_get_a_reply_or_silence() {
    let zone = zone();
    let mut rng = Rng::new(2);
    let names = [
        "web.default.svc.cluster.local",
        "_http._tcp.web.default.svc.cluster.local",
        "1.1.96.10.in-addr.arpa",
        "outside.default.svc.cluster.local",
        "10-0-0-1.default.pod.cluster.local",
        "loop.default.svc.cluster.local",
    ];
    let mut out = Vec::new();
    for _ in 0..60_000 {
        let name = names[rng.below(names.len() as u64) as usize];
        let mut bytes = query(name, TYPES[rng.below(8) as usize].0, Some(rng.next_u64() as u16));
        for _ in 0..rng.below(5) {
            let at = rng.below(bytes.len() as u64) as usize;
            bytes[at] = rng.next_u64() as u8;
        }
        if rng.chance(200) {
            bytes.truncate(rng.below(bytes.len() as u64) as usize);
        }
        match answer(&zone, &bytes, Transport::Udp, rng.next_u64() as u32, &mut out) {
            Outcome::Reply => {
                assert!(out.len() >= HEADER_BYTES && out.len() <= usize::from(UDP_BYTES) && out[2] & 0x80 != 0);
                assert_eq!(out[..2], bytes[..2]);
            }
            Outcome::Ignore => assert!(bytes.len() < HEADER_BYTES || bytes[2] & 0x80 != 0),
            Outcome::Forward | Outcome::Alias(_) => {}
        }
    }
}

#[test]
fn versions_and_classes_of_others_are_refused() {
    let mut out = Vec::new();
    let mut bytes = query("web.default.svc.cluster.local", "A", Some(1232));
    let version = bytes.len() - 5;
    bytes[version] = 1;
    answer(&zone(), &bytes, Transport::Udp, 0, &mut out);
    assert_eq!((text(&out).as_str(), out[out.len() - 6]), ("NOERROR", 1));
    let mut bytes = query("web.default.svc.cluster.local", "A", None);
    let class = bytes.len() - 1;
    bytes[class] = 3;
    answer(&zone(), &bytes, Transport::Udp, 0, &mut out);
    assert_eq!(text(&out), "REFUSED");
    bytes[2] = 0x28;
    answer(&zone(), &bytes, Transport::Udp, 0, &mut out);
    assert_eq!(out[3] & 15, 4);
}

#[test]
fn upstreams_are_read_from_resolv_conf() {
    let text = "# comment\nsearch x\nnameserver 10.0.0.2\nnameserver fd00::2\nnameserver x\noptions edns0\n";
    let found: Vec<String> = upstreams_of(text).iter().map(ToString::to_string).collect();
    assert_eq!(found, ["10.0.0.2:53", "[fd00::2]:53"]);
}
