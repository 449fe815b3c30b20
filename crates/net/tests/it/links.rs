//! Pods on several nodes: routes, overlay, the way to the outside, and what is left afterwards.

use crate::world::{Server, World, ask, cidr, ip};
use net::{Lan, Netns, Outside, Via, Vxlan, pick_subnet};
use std::io::ErrorKind;

fn connect(world: &mut World, overlay: bool) {
    let addresses: Vec<_> = world.nodes.iter().map(|node| node.link.address).collect();
    for (n, node) in world.nodes.iter_mut().enumerate() {
        for (other, address) in addresses.iter().enumerate().filter(|(other, _)| *other != n) {
            let via = if overlay { Via::Vxlan { node: *address } } else { Via::Node(*address) };
            node.net.routes.insert(cidr(&format!("10.244.{other}.0/24")), via);
        }
        node.net.vxlan = overlay.then(|| Vxlan {
            id: 7,
            port: 8472,
            local: addresses[n],
            address: cidr(&format!("10.244.{n}.0/24")).nth(0),
        });
    }
    world.apply();
}

#[test]
fn pods_of_all_nodes_reach_each_other() {
    let mut world = World::new(3);
    let pods: Vec<_> = (0..3).map(|node| world.pod(node)).collect();
    let _servers: Vec<_> = pods.iter().map(|pod| Server::tcp(&pod.netns, "pod", 80)).collect();
    let machine = Server::tcp(&world.machine, "machine", 8080);
    for overlay in [false, true, false] {
        connect(&mut world, overlay);
        for from in &pods {
            for to in &pods {
                let seen = ask(&from.netns, &to.address.to_string(), 80);
                assert_eq!(seen, Ok(("pod".into(), from.address)), "overlay {overlay}");
            }
        }
        // The outside sees the node, not the pod; nodes reach pods of other nodes.
        let outside = world.lan.machine_address().to_string();
        assert_eq!(ask(&pods[1].netns, &outside, 8080), Ok(("machine".into(), world.nodes[1].link.address)));
        assert_eq!(ask(&world.nodes[0].link.netns, &pods[2].address.to_string(), 80).unwrap().0, "pod");
    }
    // Towards what is excepted, pods keep their address; without a way back there is no answer.
    world.nodes[1].net.no_masquerade.insert(cidr("10.201.7.0/24"));
    world.apply();
    let outside = world.lan.machine_address().to_string();
    let answer = ask(&pods[1].netns, &outside, 8080);
    assert!(matches!(answer, Err(ErrorKind::TimedOut | ErrorKind::WouldBlock)), "{answer:?}");
    drop(machine);

    // A node that lost its memory finds its routes again and takes old ones away.
    let node = &mut world.nodes[0];
    node.plane.distrust();
    node.net.routes.remove(&cidr("10.244.2.0/24"));
    node.plane.apply(&node.net).unwrap();
    assert_eq!(ask(&pods[0].netns, &pods[1].address.to_string(), 80).unwrap().0, "pod");
    assert!(ask(&pods[0].netns, &pods[2].address.to_string(), 80).is_err());
}

#[test]
fn a_node_is_cut_off_and_comes_back() {
    let mut world = World::new(2);
    let pods: Vec<_> = (0..2).map(|node| world.pod(node)).collect();
    let _server = Server::tcp(&pods[1].netns, "b", 80);
    connect(&mut world, false);
    let to = pods[1].address.to_string();
    assert_eq!(ask(&pods[0].netns, &to, 80).unwrap().0, "b");
    world.lan.set_connected(1, false).unwrap();
    assert!(ask(&pods[0].netns, &to, 80).is_err());
    world.lan.set_connected(1, true).unwrap();
    assert_eq!(ask(&pods[0].netns, &to, 80).unwrap().0, "b");
    assert!(world.lan.set_connected(9, false).is_err());
}

#[test]
fn pods_come_and_go_without_trace() {
    let mut world = World::new(1);
    let started = std::time::Instant::now();
    let pods: Vec<_> = (0..50).map(|_| world.pod(0)).collect();
    println!("50 pods attached in {:?}", started.elapsed());
    assert_eq!(world.nodes[0].links.list().unwrap().len(), 50);
    // The same name again is refused and harms nobody.
    let again = world.nodes[0].links.attach(&pods[0].link);
    assert!(again.is_err());
    assert_eq!(world.nodes[0].links.list().unwrap().len(), 50);
    let _server = Server::tcp(&pods[0].netns, "a", 80);
    assert_eq!(ask(&pods[1].netns, &pods[0].address.to_string(), 80).unwrap().1, pods[1].address);
    let started = std::time::Instant::now();
    for pod in &pods {
        world.nodes[0].links.detach(&pod.link).unwrap();
        world.nodes[0].links.detach(&pod.link).unwrap();
        assert!(!pod.link.netns.exists());
    }
    println!("50 pods detached in {:?}", started.elapsed());
    // The same pod again, while its old link is perhaps still going.
    let again = world.nodes[0].links.attach(&pods[0].link).unwrap();
    world.nodes[0].links.detach(&pods[0].link).unwrap();
    drop((again, _server, pods));
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while !world.nodes[0].links.list().unwrap().is_empty() {
        assert!(std::time::Instant::now() < deadline, "links are left: {:?}", world.nodes[0].links.list());
        std::thread::yield_now();
    }
    // The addresses are free again.
    let netns = world.pods_dir().join("again");
    let pod = world.nodes[0].attach(netns, "again", vec![ip("10.244.0.2")]);
    assert_eq!(pod.address, ip("10.244.0.2"));
}

#[test]
fn the_machine_gets_one_link_and_loses_it() {
    let world = World::new(2);
    let links = || -> Vec<String> {
        let list = || std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
        let text = world.machine.run(list).unwrap();
        text.lines().skip(2).filter_map(|line| line.split(':').next()).map(|name| name.trim().to_string()).collect()
    };
    let with = links();
    assert!(with.contains(&"gantry-t0".to_string()));
    let used = world.machine.run(|| Lan::used_networks().unwrap()).unwrap();
    assert!(used.contains(&cidr("10.201.7.0/24")));
    assert!(!pick_subnet(&used, 9 * 256 + 7).unwrap().overlaps(&cidr("10.201.7.0/24")));
    // Without forwarding nodes stay inside unless it is asked for.
    world.machine.run(|| std::fs::write("/proc/sys/net/ipv4/ip_forward", "0").unwrap()).unwrap();
    assert_eq!(world.machine.run(|| world.lan.allow_outside(false).unwrap()).unwrap(), Outside::ForwardingOff);
    assert_eq!(world.machine.run(|| world.lan.allow_outside(true).unwrap()).unwrap(), Outside::Open);
    assert_eq!(world.machine.run(|| world.lan.allow_outside(false).unwrap()).unwrap(), Outside::Open);
    let config = world.lan.config().clone();
    for _ in 0..2 {
        world.machine.run(|| Lan::remove(&config).unwrap()).unwrap();
        assert_eq!(links(), with.iter().filter(|name| *name != "gantry-t0").cloned().collect::<Vec<_>>());
    }
}

/// Outside packets leave with the machine's address, through the machine, to a network beyond it.
#[test]
fn nodes_reach_the_outside_through_the_machine() {
    let mut world = World::new(1);
    let pod = world.pod(0);
    world.apply();
    let beyond_path = world.pods_dir().join("beyond");
    let beyond = Netns::create(&beyond_path).unwrap();
    // The machine's own uplink: a second LAN of the test, with the machine as a node would be.
    let add = |netns: &Netns, args: &[&str]| {
        let output = netns.run(|| std::process::Command::new("ip").args(args).output()).unwrap();
        output.is_ok_and(|output| output.status.success())
    };
    let target = beyond_path.display().to_string();
    if !add(&world.machine, &["link", "add", "up0", "type", "veth", "peer", "name", "up1", "netns", &target]) {
        return;
    }
    assert!(add(&world.machine, &["addr", "add", "198.51.100.2/24", "dev", "up0"]));
    assert!(add(&world.machine, &["link", "set", "up0", "up"]));
    assert!(add(&beyond, &["addr", "add", "198.51.100.1/24", "dev", "up1"]));
    assert!(add(&beyond, &["link", "set", "up1", "up"]));
    let _server = Server::tcp(&beyond, "beyond", 80);
    assert!(ask(&pod.netns, "198.51.100.1", 80).is_err());
    world.machine.run(|| world.lan.allow_outside(true).unwrap()).unwrap();
    assert_eq!(ask(&pod.netns, "198.51.100.1", 80), Ok(("beyond".into(), ip("198.51.100.2"))));
}
