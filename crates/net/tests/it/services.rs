//! Services: who is reached from where, under which address, and what happens when there is nobody.

use crate::world::{PATIENCE, Server, World, ask, cidr, ip, key, put, vip, who};
use net::{Applied, HostPort, Netns, Protocol, Vip};
use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::UdpSocket;
use std::sync::Arc;

const REFUSED: ErrorKind = ErrorKind::ConnectionRefused;

#[test]
fn a_cluster_address_leads_to_its_pods() {
    let mut world = World::new(1);
    let (a, b, c) = (world.pod(0), world.pod(0), world.pod(0));
    let _servers = [Server::tcp(&a.netns, "a", 8080), Server::tcp(&b.netns, "b", 8081)];
    let service = Vip { node_port: Some(30080), ..vip(&[(&a, 8080, true), (&b, 8081, true)]) };
    put(&mut world.nodes[0].net, key("10.96.0.10", Protocol::Tcp, 80), service);
    world.apply();
    let node = &world.nodes[0].link;
    let node_address = node.address.to_string();
    // From a pod, both pods answer, and see the client as it is.
    assert_eq!(who(&c.netns, "10.96.0.10", 80, 20), ["a", "b"]);
    assert_eq!(ask(&c.netns, "10.96.0.10", 80).unwrap().1, c.address);
    // From the node itself, by cluster address, by node port on its address and on 127.0.0.1.
    assert_eq!(who(&node.netns, "10.96.0.10", 80, 20), ["a", "b"]);
    assert_eq!(who(&node.netns, &node_address, 30080, 20), ["a", "b"]);
    assert_eq!(who(&node.netns, "127.0.0.1", 30080, 20), ["a", "b"]);
    // From the machine, by node port; pods see the node.
    assert_eq!(who(&world.machine, &node_address, 30080, 20), ["a", "b"]);
    let seen = ask(&world.machine, &node_address, 30080).unwrap().1;
    assert!(seen != world.lan.machine_address(), "{seen}");
    // A pod reaches itself through the service.
    assert_eq!(who(&a.netns, "10.96.0.10", 80, 20), ["a", "b"]);
    // Pods reach each other directly, under their own addresses.
    assert_eq!(ask(&c.netns, &a.address.to_string(), 8080), Ok(("a".into(), c.address)));
    // Another port or another service is refused at once.
    assert_eq!(ask(&c.netns, "10.96.0.10", 81), Err(REFUSED));
    assert_eq!(ask(&node.netns, "10.96.0.99", 80), Err(REFUSED));
    // 127.0.0.1 of the node is not reachable from the outside.
    let machine_route = world.machine.run(|| std::fs::write("/proc/sys/net/ipv4/conf/all/route_localnet", "1"));
    assert!(machine_route.unwrap().is_ok());

    // Without endpoints everything is refused.
    put(&mut world.nodes[0].net, key("10.96.0.10", Protocol::Tcp, 80), Vip { node_port: Some(30080), ..vip(&[]) });
    world.apply();
    let node = &world.nodes[0].link;
    for (from, to, port) in [
        (&c.netns, "10.96.0.10", 80),
        (&node.netns, "10.96.0.10", 80),
        (&world.machine, node_address.as_str(), 30080),
        (&node.netns, "127.0.0.1", 30080),
    ] {
        assert_eq!(ask(from, to, port), Err(REFUSED), "{to}:{port}");
    }

    // After removal nothing is left: neither the service nor a set.
    world.nodes[0].plane.remove().unwrap();
    assert!(!world.nodes[0].plane.read().unwrap().is_empty());
    let tables = world.nodes[0].link.netns.run(|| std::process::Command::new("nft").args(["list", "tables"]).output());
    if let Ok(output) = tables.unwrap() {
        assert_eq!(String::from_utf8_lossy(&output.stdout), "");
    }
}

#[test]
fn clients_stick_to_their_endpoint() {
    let mut world = World::new(1);
    let pods: Vec<_> = (0..4).map(|_| world.pod(0)).collect();
    let clients: Vec<_> = (0..6).map(|_| world.pod(0)).collect();
    let _servers: Vec<_> =
        pods.iter().enumerate().map(|(n, pod)| Server::tcp(&pod.netns, &n.to_string(), 80)).collect();
    let place = key("10.96.0.20", Protocol::Tcp, 80);
    let endpoints: Vec<_> = pods.iter().map(|pod| (pod, 80, true)).collect();
    let sticky = |endpoints: &[_]| Vip { affinity_s: Some(600), node_port: Some(30020), ..vip(endpoints) };
    put(&mut world.nodes[0].net, place, sticky(&endpoints));
    world.apply();
    let chosen: Vec<String> = clients
        .iter()
        .map(|client| {
            let names = who(&client.netns, "10.96.0.20", 80, 8);
            assert_eq!(names.len(), 1, "a client keeps its endpoint");
            names[0].clone()
        })
        .collect();
    assert!(chosen.iter().collect::<BTreeSet<_>>().len() > 1, "clients are spread: {chosen:?}");
    assert_eq!(who(&world.machine, &world.nodes[0].link.address.to_string(), 30020, 6).len(), 1);
    // When an endpoint goes, its clients move, and the others stay.
    let gone: usize = chosen[0].parse().unwrap();
    let rest: Vec<_> = endpoints.iter().enumerate().filter(|(n, _)| *n != gone).map(|(_, e)| *e).collect();
    put(&mut world.nodes[0].net, place, sticky(&rest));
    world.apply();
    for (client, before) in clients.iter().zip(&chosen) {
        let names = who(&client.netns, "10.96.0.20", 80, 4);
        assert_eq!(names.len(), 1);
        assert!(names[0] == *before || *before == chosen[0], "{names:?} {before}");
        assert_ne!(names[0], chosen[0]);
    }
}

#[test]
fn local_policies_keep_the_clients_address() {
    let mut world = World::new(2);
    let (a, b) = (world.pod(0), world.pod(1));
    let client = world.pod(1);
    let _servers = [Server::tcp(&a.netns, "a", 80), Server::tcp(&b.netns, "b", 80)];
    for node in 0..2 {
        let service = Vip {
            node_port: Some(30031),
            external: [ip("192.0.2.1")].into(),
            external_local: true,
            ..vip(&[(&a, 80, node == 0)])
        };
        put(&mut world.nodes[node].net, key("10.96.0.31", Protocol::Tcp, 80), service);
        let internal = Vip { internal_local: true, ..vip(&[(&a, 80, node == 0), (&b, 80, node == 1)]) };
        put(&mut world.nodes[node].net, key("10.96.0.32", Protocol::Tcp, 80), internal);
        let other = world.nodes[1 - node].link.address;
        world.nodes[node].net.routes.insert(cidr(&format!("10.244.{}.0/24", 1 - node)), net::Via::Node(other));
    }
    world.apply();
    let nodes: Vec<String> = world.nodes.iter().map(|node| node.link.address.to_string()).collect();
    // Where the pod is, the outside client is seen as it is; elsewhere it is dropped.
    assert_eq!(ask(&world.machine, &nodes[0], 30031), Ok(("a".into(), world.lan.machine_address())));
    assert!(matches!(ask(&world.machine, &nodes[1], 30031), Err(ErrorKind::TimedOut | ErrorKind::WouldBlock)));
    // From inside, the external address and the node port lead to all endpoints.
    assert_eq!(ask(&client.netns, "192.0.2.1", 80), Ok(("a".into(), client.address)));
    assert_eq!(ask(&client.netns, &nodes[1], 30031), Ok(("a".into(), client.address)));
    assert_eq!(ask(&world.nodes[1].link.netns, "10.96.0.31", 80).unwrap().0, "a");
    // Internal policy: only this node's.
    assert_eq!(who(&client.netns, "10.96.0.32", 80, 10), ["b"]);
}

#[test]
fn host_ports_lead_to_their_pod() {
    let mut world = World::new(1);
    let (a, b) = (world.pod(0), world.pod(0));
    let _server = Server::tcp(&a.netns, "a", 80);
    let node = world.nodes[0].link.address;
    let port = |address, port| HostPort { address, protocol: Protocol::Tcp, port, pod: a.address, pod_port: 80 };
    world.nodes[0].net.host_ports = [port(None, 8000), port(Some(node), 8001)].into();
    world.apply();
    let node = node.to_string();
    for number in [8000, 8001] {
        assert_eq!(ask(&world.machine, &node, number), Ok(("a".into(), world.lan.machine_address())));
        assert_eq!(ask(&b.netns, &node, number), Ok(("a".into(), b.address)));
        assert_eq!(ask(&a.netns, &node, number).unwrap().0, "a");
    }
    assert_eq!(ask(&world.nodes[0].link.netns, "127.0.0.1", 8000).unwrap().0, "a");
    world.nodes[0].net.host_ports.clear();
    world.apply();
    assert_eq!(ask(&world.machine, &node, 8000), Err(REFUSED));
}

#[test]
fn udp_clients_follow_their_service() {
    let mut world = World::new(1);
    let (a, b, client) = (world.pod(0), world.pod(0), world.pod(0));
    let _servers = [Server::udp(&a.netns, "a", 53), Server::udp(&b.netns, "b", 53)];
    let place = key("10.96.0.40", Protocol::Udp, 53);
    put(&mut world.nodes[0].net, place, vip(&[(&a, 53, true)]));
    world.apply();
    let socket = client.netns.run(|| UdpSocket::bind("0.0.0.0:0").unwrap()).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut buffer = [0; 100];
    let mut ask = || {
        socket.send_to(b"who", "10.96.0.40:53")?;
        let (len, from) = socket.recv_from(&mut buffer)?;
        assert_eq!(from.ip(), ip("10.96.0.40"), "answers come from the service");
        std::io::Result::Ok(String::from_utf8_lossy(&buffer[..1.min(len)]).into_owned())
    };
    assert_eq!(ask().unwrap(), "a");
    // The same socket, so the same connection for the kernel.
    put(&mut world.nodes[0].net, place, vip(&[(&b, 53, true)]));
    let node = &mut world.nodes[0];
    let applied = node.plane.apply(&node.net).unwrap();
    assert_eq!((applied.connections, applied.replaced), (1, false));
    assert_eq!(ask().unwrap(), "b");
    put(&mut world.nodes[0].net, place, vip(&[]));
    world.apply();
    assert!(ask().is_err());
    put(&mut world.nodes[0].net, place, vip(&[(&a, 53, true)]));
    world.apply();
    assert_eq!(ask().or_else(|_| ask()).unwrap(), "a");
}

#[test]
fn ipv6_services_work_on_a_node() {
    let mut world = World::new(1);
    let dir = world.pods_dir();
    let node = &mut world.nodes[0];
    let a = node.attach(dir.join("six-a"), "six-a", vec![ip("fd00:10:244::a"), ip("10.244.0.100")]);
    let b = node.attach(dir.join("six-b"), "six-b", vec![ip("fd00:10:244::b")]);
    let _server = Server::tcp_at(&a.netns, "a", "[::]:80".parse().unwrap());
    node.net.pod_cidrs.insert(cidr("fd00:10:244::/64"));
    node.net.cluster_cidrs.insert(cidr("fd00:10:244::/56"));
    node.net.service_cidrs.insert(cidr("fd00:10:96::/112"));
    let service = Vip { affinity_s: Some(60), node_port: Some(30060), ..vip(&[(&a, 80, true)]) };
    put(&mut node.net, key("fd00:10:96::1", Protocol::Tcp, 80), service);
    put(&mut node.net, key("fd00:10:96::2", Protocol::Tcp, 80), vip(&[]));
    node.apply();
    assert_eq!(ask(&b.netns, "fd00:10:244::a", 80), Ok(("a".into(), b.address)));
    assert_eq!(ask(&b.netns, "fd00:10:96::1", 80), Ok(("a".into(), b.address)));
    assert_eq!(ask(&b.netns, "fd00:10:96::1", 80), Ok(("a".into(), b.address)));
    assert_eq!(ask(&b.netns, "fd00:10:96::2", 80), Err(REFUSED));
    // To reach itself, a pod's source is replaced by the node's address, so there must be one in IPv6.
    let add = ["-6", "addr", "add", "fd00:1::1/64", "dev", "eth0", "nodad"];
    let added = node.link.netns.run(|| std::process::Command::new("ip").args(add).status());
    if added.unwrap().is_ok_and(|status| status.success()) {
        assert_eq!(ask(&a.netns, "fd00:10:96::1", 80).unwrap().0, "a");
    }
    assert_eq!(ask(&b.netns, "10.244.0.100", 80).map_err(|_| ()), Err(()), "b has no IPv4 address");
}

/// Changes are small, whatever the number of services; what others did to our table is found and mended.
#[test]
fn changes_touch_only_what_changes() {
    let mut world = World::new(1);
    let (a, client) = (world.pod(0), world.pod(0));
    let _server = Server::tcp(&a.netns, "a", 80);
    let node = &mut world.nodes[0];
    let place =
        |n: u32| net::VipKey { address: cidr("10.96.0.0/16").nth(u128::from(n)), protocol: Protocol::Tcp, port: 80 };
    for n in 1..2000u32 {
        let mut service = vip(&[]);
        for endpoint in 0..1 + n % 5 {
            let address = cidr("10.244.128.0/17").nth(u128::from(n * 8 + endpoint));
            service.endpoints.push(net::Endpoint { address, port: 80, local: false });
        }
        put(&mut node.net, place(n), service);
    }
    node.apply();
    put(&mut node.net, place(77), vip(&[(&a, 80, true)]));
    let applied = node.plane.apply(&node.net).unwrap();
    assert!(!applied.replaced && applied.elements <= 6 && applied.bytes < 4000, "{applied:?}");
    assert_eq!(node.plane.read().unwrap(), Vec::<String>::new());
    assert_eq!(ask(&client.netns, "10.96.0.77", 80), Ok(("a".into(), client.address)));
    // The same by the short way: one service goes, one comes.
    let changes = [(place(78), None), (place(2000), Some(Arc::new(vip(&[(&a, 80, true)]))))];
    let applied = node.plane.apply_vips(&changes).unwrap();
    assert!(!applied.replaced && applied.elements <= 8, "{applied:?}");
    node.net.vips.remove(&place(78));
    put(&mut node.net, place(2000), vip(&[(&a, 80, true)]));
    assert_eq!(node.plane.apply(&node.net).unwrap(), Applied::default());
    assert_eq!(node.plane.applied(), Some(&node.net));
    assert_eq!(ask(&client.netns, "10.96.0.78", 80), Err(REFUSED));

    // A second dataplane in the same namespace takes our table away behind our back.
    let mut other = node.link.netns.run(|| net::Dataplane::open().unwrap()).unwrap();
    other.remove().unwrap();
    assert!(!node.plane.read().unwrap().is_empty());
    put(&mut node.net, place(78), vip(&[(&a, 80, true)]));
    assert!(node.plane.apply(&node.net).is_err(), "the kernel refuses, and nothing is half done");
    assert!(node.plane.apply(&node.net).unwrap().replaced);
    assert_eq!(node.plane.read().unwrap(), Vec::<String>::new());
    assert_eq!(ask(&client.netns, "10.96.0.78", 80).unwrap().0, "a");
}

/// Tables of others in the same namespace stay as they are.
#[test]
fn other_tables_stay() {
    let mut world = World::new(1);
    let nft = |netns: &Netns, args: &'static [&str]| {
        netns.run(|| std::process::Command::new("nft").args(args).output()).unwrap()
    };
    let netns = world.nodes[0].link.netns.again().unwrap();
    let Ok(made) = nft(&netns, &["add", "table", "ip", "theirs"]) else { return };
    assert!(made.status.success());
    let pod = world.pod(0);
    let net = &mut world.nodes[0].net;
    net.service_cidrs.insert(cidr("fd00::/112"));
    net.no_masquerade.insert(cidr("192.0.2.0/24"));
    for (n, address) in ["10.96.0.1", "10.96.0.2", "10.96.0.3", "fd00::1"].into_iter().enumerate() {
        let service = Vip {
            affinity_s: (n == 1).then_some(60),
            node_port: Some(30000 + n as u16),
            external_local: n == 2,
            ..vip(&[(&pod, 80, true)])
        };
        put(net, key(address, Protocol::Tcp, 80), service);
    }
    world.apply();
    // `nft` must be able to print what stands there: it ends at once when it meets what it does not know.
    let listed = nft(&netns, &["list", "ruleset"]).unwrap();
    let text = String::from_utf8_lossy(&listed.stdout).into_owned();
    assert!(
        listed.status.success() && text.contains("table ip gantry") && text.contains("table ip theirs"),
        "{text}{}",
        String::from_utf8_lossy(&listed.stderr)
    );
    world.nodes[0].plane.remove().unwrap();
    let left = nft(&netns, &["list", "tables"]).unwrap();
    assert_eq!(String::from_utf8_lossy(&left.stdout).trim(), "table ip theirs");
}
