//! Services in the kernel of a network namespace made for it: all of them from nothing, and one change, at three sizes;
//! the programs nft and iptables beside, with the layout that suits each best.
//!
//! Ours speaks netlink from this process; the others are programs, as those who use them start them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use net::{Dataplane, Endpoint, Netns, NodeNet, Protocol, Vip, VipKey};

use crate::error::Error;
use crate::frame::{Bench, Run, Want, figure, option};
use crate::machine::program;
use crate::numbers::median;

/// Endpoints of each service.
const ENDPOINTS: usize = 3;
/// Changes of which the median is told.
const CHANGES: usize = 20;

pub const BENCH: Bench = Bench {
    name: "services",
    about: "Services in the kernel: cold load and one change, at three sizes; nft and iptables beside",
    options: &[
        option("small", "1000", "50", "The first size"),
        option("medium", "10000", "100", "The second"),
        option("large", "50000", "200", "The third"),
        option("rounds", "3", "1", "How often; the median counts"),
    ],
    figures: &[figure("cold_s", Want::AtMost(1.38, 0.4)), figure("update_ms", Want::AtMost(5.0, 0.2))],
    peer: Some("nft"),
    needs_root: true,
    run,
};

fn run(run: &mut Run) -> Result<(), Error> {
    for round in 0..run.number("rounds")? {
        for size in ["small", "medium", "large"] {
            let count = run.count(size)?;
            run.say(format!("{count} services"));
            let path = run.dir().join(format!("netns-{round}-{size}"));
            let netns = Netns::create(&path).map_err(Error::while_doing("make a network namespace"))?;
            let done = netns.run(|| own(count));
            let peers = (!run.alone).then(|| others(&netns, count));
            drop(netns);
            Netns::delete(&path).map_err(Error::while_doing("remove a network namespace"))?;
            let done = done.map_err(Error::while_doing("enter a network namespace"))??;
            let tells: &[&str] =
                if size == "large" { &["_large", ""] } else { &[if size == "small" { "_small" } else { "_medium" }] };
            for tell in tells {
                run.figure(&key("cold", tell, "s"), done.cold_s);
                run.figure(&key("update", tell, "ms"), done.update_ms);
            }
            run.figure(&key("whole_update", tells[0], "ms"), done.whole_ms);
            for (peer, found) in peers.transpose()?.unwrap_or_default() {
                for tell in tells {
                    let prefix = if peer == "nft" { String::new() } else { format!("{peer}_") };
                    run.peer_figure("nft", &format!("{prefix}{}", key("cold", tell, "s")), found.cold_s);
                    run.peer_figure("nft", &format!("{prefix}{}", key("update", tell, "ms")), found.update_ms);
                }
            }
        }
    }
    Ok(())
}

fn key(what: &str, size: &str, unit: &str) -> String {
    format!("{what}{size}_{unit}")
}

struct Done {
    cold_s: f64,
    /// One service told to have changed.
    update_ms: f64,
    /// One service changed, and the whole value given anew.
    whole_ms: f64,
}

fn address(base: [u8; 2], number: usize) -> Ipv4Addr {
    Ipv4Addr::new(base[0], base[1] + (number / 65_536) as u8, (number / 256) as u8, number as u8)
}

fn vip(number: usize, turn: usize) -> (VipKey, Arc<Vip>) {
    let key = VipKey { address: IpAddr::V4(address([10, 96], number)), protocol: Protocol::Tcp, port: 80 };
    let endpoint = |at: usize| Endpoint {
        address: IpAddr::V4(address([10, 200], number * ENDPOINTS + at)),
        port: 8080 + turn as u16,
        local: false,
    };
    let endpoints = (0..ENDPOINTS).map(endpoint).collect();
    (key, Arc::new(Vip { name: format!("bench/service-{number}:http"), endpoints, ..Vip::default() }))
}

fn own(count: usize) -> Result<Done, Error> {
    let failed = || Error::while_doing::<net::Error>("set services");
    let cidr = |text: &str| text.parse::<net::Cidr>().map_err(Error::while_doing("read a range"));
    let mut wanted = NodeNet {
        pod_cidrs: [cidr("10.244.1.0/24")?].into(),
        cluster_cidrs: [cidr("10.244.0.0/16")?].into(),
        service_cidrs: [cidr("10.96.0.0/12")?].into(),
        vips: (0..count).map(|number| vip(number, 0)).collect::<BTreeMap<_, _>>(),
        ..NodeNet::default()
    };
    let mut plane = Dataplane::open().map_err(failed())?;
    let began = Instant::now();
    plane.apply(&wanted).map_err(failed())?;
    let cold_s = began.elapsed().as_secs_f64();
    let (mut updates, mut wholes) = (Vec::new(), Vec::new());
    for turn in 1..=CHANGES {
        let (key, changed) = vip(turn * 37 % count, turn);
        let began = Instant::now();
        plane.apply_vips(&[(key, Some(changed))]).map_err(failed())?;
        updates.push(began.elapsed().as_secs_f64() * 1e3);
    }
    for turn in 1..=CHANGES / 4 {
        let (key, changed) = vip(turn * 37 % count, CHANGES + turn);
        wanted = plane.applied().cloned().unwrap_or_default();
        wanted.vips.insert(key, changed);
        let began = Instant::now();
        plane.apply(&wanted).map_err(failed())?;
        wholes.push(began.elapsed().as_secs_f64() * 1e3);
    }
    Ok(Done { cold_s, update_ms: median(&updates), whole_ms: median(&wholes) })
}

/// Runs a program in the calling thread's network namespace; milliseconds.
fn feed(words: &[&str], input: &Path) -> Result<f64, Error> {
    let failed = |error: std::io::Error| Error::doing(format!("run {}", words[0]), error);
    let file = std::fs::File::open(input).map_err(failed)?;
    let began = Instant::now();
    let output = Command::new(words[0])
        .args(&words[1..])
        .stdin(Stdio::from(file))
        .stdout(Stdio::null())
        .output()
        .map_err(failed)?;
    let ms = began.elapsed().as_secs_f64() * 1e3;
    if !output.status.success() {
        return Err(Error::doing(format!("run {}", words[0]), String::from_utf8_lossy(&output.stderr)));
    }
    Ok(ms)
}

fn others(netns: &Netns, count: usize) -> Result<Vec<(&'static str, Done)>, Error> {
    let folder = tempfile::tempdir().map_err(Error::while_doing("make a folder"))?;
    let mut found = Vec::new();
    let ran = netns.run(|| -> Result<(), Error> {
        if program("nft").is_some() {
            found.push(("nft", nft(folder.path(), count)?));
        }
        if program("iptables-legacy-restore").is_some() {
            found.push(("iptables", iptables(folder.path(), count)?));
        }
        Ok(())
    });
    ran.map_err(Error::while_doing("enter a network namespace"))??;
    Ok(found)
}

/// The layout of maps: one rule, and all services as elements.
fn nft(folder: &Path, count: usize) -> Result<Done, Error> {
    let mut text = String::from(
        "table ip peer {\n map ep { type ipv4_addr . inet_service . mark : ipv4_addr . inet_service; }\n \
         set n3 { type ipv4_addr . inet_service; }\n chain out { type nat hook output priority -100; \
         ip daddr . tcp dport @n3 meta mark set numgen random mod 3 \
         dnat ip to ip daddr . tcp dport . meta mark map @ep; }\n}\n",
    );
    // Writing to a String cannot fail.
    let _ = text.write_str("add element ip peer n3 {");
    for number in 0..count {
        let _ = write!(text, "{} . 80,", address([10, 96], number));
    }
    let _ = text.write_str("}\nadd element ip peer ep {");
    for number in 0..count {
        for at in 0..ENDPOINTS {
            let (service, endpoint) = (address([10, 96], number), address([10, 200], number * ENDPOINTS + at));
            let _ = write!(text, "{service} . 80 . {at} : {endpoint} . 8080,");
        }
    }
    let _ = text.write_str("}\n");
    let (all, one) = (folder.join("all.nft"), folder.join("one.nft"));
    let failed = || Error::while_doing::<std::io::Error>("write for nft");
    std::fs::write(&all, text).map_err(failed())?;
    let cold_s = feed(&["nft", "-f", "-"], &all)? / 1e3;
    let mut updates = Vec::new();
    for turn in 0..5 {
        let (service, number) = (address([10, 96], turn * 37 % count), turn * 37 % count);
        let (was, is) = (8080, 9000 + turn);
        let endpoint = address([10, 200], number * ENDPOINTS);
        let text = format!(
            "delete element ip peer ep {{ {service} . 80 . 0 : {endpoint} . {was} }}\n\
             add element ip peer ep {{ {service} . 80 . 0 : {endpoint} . {is} }}\n"
        );
        std::fs::write(&one, text).map_err(failed())?;
        updates.push(feed(&["nft", "-f", "-"], &one)?);
    }
    feed(&["nft", "delete", "table", "ip", "peer"], &one)?;
    Ok(Done { cold_s, update_ms: median(&updates), whole_ms: 0.0 })
}

/// A chain for each service, as kube-proxy has it with one endpoint rule each.
fn iptables(folder: &Path, count: usize) -> Result<Done, Error> {
    let mut text = String::from("*nat\n:SERVICES - [0:0]\n");
    for number in 0..count {
        let _ = writeln!(text, ":SVC-{number} - [0:0]");
    }
    for number in 0..count {
        let service = address([10, 96], number);
        let _ = writeln!(text, "-A SERVICES -d {service}/32 -p tcp --dport 80 -j SVC-{number}");
        let _ = writeln!(text, "{}", jump(number, 8080));
    }
    text.push_str("COMMIT\n");
    let (all, one) = (folder.join("all.ipt"), folder.join("one.ipt"));
    let failed = || Error::while_doing::<std::io::Error>("write for iptables");
    std::fs::write(&all, text).map_err(failed())?;
    let cold_s = feed(&["iptables-legacy-restore", "--noflush"], &all)? / 1e3;
    let mut updates = Vec::new();
    for turn in 0..3 {
        let number = turn * 37 % count;
        let text = format!("*nat\n:SVC-{number} - [0:0]\n{}\nCOMMIT\n", jump(number, 9000 + turn));
        std::fs::write(&one, text).map_err(failed())?;
        updates.push(feed(&["iptables-legacy-restore", "--noflush"], &one)?);
    }
    Ok(Done { cold_s, update_ms: median(&updates), whole_ms: 0.0 })
}

fn jump(number: usize, port: usize) -> String {
    let endpoint = address([10, 200], number * ENDPOINTS);
    format!("-A SVC-{number} -p tcp -j DNAT --to-destination {endpoint}:{port}")
}
