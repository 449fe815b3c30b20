//! Measures the dataplane in a namespace of its own (needs root): `cargo run --release -p net --example measure`.

use net::{Cidr, Dataplane, Endpoint, Netns, NodeNet, PodLink, PodLinks, Protocol, Vip, VipKey};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

fn service(services: Cidr, pods: Cidr, n: u32) -> (VipKey, Arc<Vip>) {
    let key = VipKey { address: services.nth(u128::from(n) + 1), protocol: Protocol::Tcp, port: 80 };
    let endpoint = |slot: u32| Endpoint { address: pods.nth(u128::from(n * 3 + slot)), port: 8080, local: slot == 0 };
    let vip = Vip {
        name: format!("default/service-{n}"),
        endpoints: (0..3).map(endpoint).collect(),
        node_port: n.is_multiple_of(10).then_some(30_000 + (n / 10) as u16),
        ..Vip::default()
    };
    (key, Arc::new(vip))
}

fn measure_services(count: u32) {
    let (services, pods): (Cidr, Cidr) =
        ("10.96.0.0/12".parse().expect("a network"), "10.128.0.0/9".parse().expect("a network"));
    let mut net = NodeNet {
        pod_cidrs: [Cidr { address: pods.address, prefix: 24 }].into(),
        cluster_cidrs: [pods].into(),
        service_cidrs: [services].into(),
        vips: (0..count).map(|n| service(services, pods, n)).collect(),
        ..NodeNet::default()
    };
    let mut plane = Dataplane::open().expect("a dataplane");
    let start = Instant::now();
    let applied = plane.apply(&net).expect("the kernel takes it");
    println!("{count} services: loaded in {:?} ({applied:?})", start.elapsed());
    let mut times = [Vec::new(), Vec::new()];
    for round in 0..200u32 {
        let (key, mut vip) = service(services, pods, round * 7 % count);
        Arc::make_mut(&mut vip).endpoints.truncate(1 + (round as usize % 2));
        net.vips.insert(key, vip.clone());
        let start = Instant::now();
        if round % 2 == 0 {
            plane.apply(&net).expect("the kernel takes it");
        } else {
            plane.apply_vips(&[(key, Some(vip))]).expect("the kernel takes it");
        }
        times[round as usize % 2].push(start.elapsed());
    }
    for (times, name) in times.iter_mut().zip(["one change by the whole value", "one change by itself"]) {
        times.sort();
        println!("  {name}: p50 {:?}, p99 {:?}", times[times.len() / 2], times[times.len() * 99 / 100]);
    }
    let start = Instant::now();
    assert!(plane.apply(&net).expect("the kernel takes it").nothing());
    println!("  no change: {:?}", start.elapsed());
    let start = Instant::now();
    plane.remove().expect("the kernel takes it");
    println!("  removed in {:?}", start.elapsed());
}

fn measure_names(count: u32) {
    use net::dns::{ServiceNames, Transport, Zone, answer};
    let mut zone = Zone::new("cluster.local", &[], &[]).expect("a zone");
    let start = Instant::now();
    for n in 0..count {
        let service =
            ServiceNames { addresses: vec![IpAddr::from((0x0a60_0000 + n).to_be_bytes())], ..Default::default() };
        zone.set_service("default", &format!("service-{n}"), Some(service));
    }
    println!("{count} services named in {:?}", start.elapsed());
    let queries: Vec<Vec<u8>> = (0..1000)
        .map(|n| {
            let name = format!("service-{}.default.svc.cluster.local", n * 7919 % count);
            let labels = name.split('.').flat_map(|label| [&[label.len() as u8], label.as_bytes()].concat());
            [0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0].into_iter().chain(labels).chain([0, 0, 1, 0, 1]).collect()
        })
        .collect();
    let (start, mut out) = (Instant::now(), Vec::new());
    for round in 0..1000u32 {
        for query in &queries {
            answer(&zone, query, Transport::Udp, round, &mut out);
        }
    }
    println!("  {:?} per answer of {} bytes", start.elapsed() / 1_000_000, out.len());
}

fn main() {
    measure_names(10_000);
    let dir = std::env::temp_dir().join(format!("net-measure-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("a folder");
    let node = Netns::create(&dir.join("node")).expect("a namespace");
    for count in [1_000, 10_000, 50_000] {
        node.run(|| measure_services(count)).expect("a thread");
    }
    let mut links = PodLinks::open(&node).expect("links");
    let pod = |n: u8| PodLink {
        netns: dir.join(format!("pod{n}")),
        name: PodLinks::name_of(&n.to_string()),
        addresses: vec![IpAddr::from([10, 244, 0, n])],
        mtu: None,
    };
    let start = Instant::now();
    (0..200).for_each(|n| drop(links.attach(&pod(n)).expect("a pod")));
    println!("200 pods attached, one after the other: {:?} each", start.elapsed() / 200);
    let start = Instant::now();
    (0..200).for_each(|n| links.detach(&pod(n)).expect("a pod"));
    println!("200 pods detached: {:?} each", start.elapsed() / 200);
    Netns::delete(&dir.join("node")).expect("deleted");
    std::fs::remove_dir(&dir).expect("an empty folder");
}
