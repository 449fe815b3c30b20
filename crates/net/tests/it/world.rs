//! A machine with nodes and pods, for one test: all of it in namespaces of its own.

use net::{
    Cidr, Dataplane, Endpoint, Lan, LanConfig, Netns, NodeLink, NodeNet, PodLink, PodLinks, Protocol, Vip, VipKey,
};
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

pub const PATIENCE: Duration = Duration::from_secs(3);

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub fn cidr(text: &str) -> Cidr {
    text.parse().unwrap()
}

pub struct Node {
    pub link: NodeLink,
    pub plane: Dataplane,
    pub links: PodLinks,
    pub net: NodeNet,
    pub number: u32,
    next_pod: u8,
}

pub struct Pod {
    pub link: PodLink,
    pub netns: Netns,
    pub address: IpAddr,
}

pub struct World {
    pub machine: Netns,
    pub lan: Lan,
    pub nodes: Vec<Node>,
    dir: tempfile::TempDir,
}

impl World {
    pub fn new(nodes: u32) -> World {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("lan")).unwrap();
        std::fs::create_dir(dir.path().join("pods")).unwrap();
        let machine = Netns::create(&dir.path().join("machine")).unwrap();
        let config =
            LanConfig { prefix: "gantry-t".into(), subnet: cidr("10.201.7.0/24"), netns_dir: dir.path().join("lan") };
        let lan = machine.run(|| Lan::create(config).unwrap()).unwrap();
        let nodes = (0..nodes).map(|number| World::node(&lan, number)).collect();
        World { machine, lan, nodes, dir }
    }

    fn node(lan: &Lan, number: u32) -> Node {
        let link = lan.add_node(&format!("node-{number}"), number).unwrap();
        let plane = link.netns.run(|| Dataplane::open().unwrap()).unwrap();
        let links = PodLinks::open(&link.netns).unwrap();
        let net = NodeNet {
            pod_cidrs: [cidr(&format!("10.244.{number}.0/24"))].into(),
            cluster_cidrs: [cidr("10.244.0.0/16")].into(),
            service_cidrs: [cidr("10.96.0.0/16")].into(),
            ..NodeNet::default()
        };
        Node { link, plane, links, net, number, next_pod: 2 }
    }

    pub fn pod(&mut self, node: usize) -> Pod {
        let pods = self.dir.path().join("pods");
        let node = &mut self.nodes[node];
        let name = format!("{}-{}", node.number, node.next_pod);
        let address = IpAddr::from([10, 244, node.number as u8, node.next_pod]);
        node.next_pod += 1;
        node.attach(pods.join(&name), &name, vec![address])
    }

    pub fn pods_dir(&self) -> PathBuf {
        self.dir.path().join("pods")
    }

    /// Applies every node's network; the second time must change nothing.
    pub fn apply(&mut self) {
        for node in &mut self.nodes {
            node.apply();
        }
    }
}

impl Node {
    pub fn attach(&mut self, netns: PathBuf, name: &str, addresses: Vec<IpAddr>) -> Pod {
        let link = PodLink { netns, name: PodLinks::name_of(name), addresses, mtu: None };
        let netns = self.links.attach(&link).unwrap();
        Pod { address: link.addresses[0], link, netns }
    }

    pub fn apply(&mut self) {
        self.plane.apply(&self.net).unwrap();
        assert!(self.plane.apply(&self.net).unwrap().nothing(), "applying twice changes nothing");
        assert_eq!(self.plane.read().unwrap(), Vec::<String>::new());
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let config = self.lan.config().clone();
        for node in &mut self.nodes {
            let _ = node.plane.remove();
        }
        for entry in std::fs::read_dir(self.dir.path().join("pods")).unwrap() {
            Netns::delete(&entry.unwrap().path()).unwrap();
        }
        self.machine.run(|| Lan::remove(&config).unwrap()).unwrap();
        Netns::delete(&self.dir.path().join("machine")).unwrap();
        if !std::thread::panicking() {
            let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
            let left = mounts.lines().filter(|line| line.contains(&*self.dir.path().to_string_lossy())).count();
            assert_eq!(left, 0, "mounts are left");
        }
    }
}

pub fn vip(endpoints: &[(&Pod, u16, bool)]) -> Vip {
    let endpoint =
        |(pod, port, local): &(&Pod, u16, bool)| Endpoint { address: pod.address, port: *port, local: *local };
    Vip { name: "default/test".into(), endpoints: endpoints.iter().map(endpoint).collect(), ..Vip::default() }
}

pub fn key(address: &str, protocol: Protocol, port: u16) -> VipKey {
    VipKey { address: ip(address), protocol, port }
}

pub fn put(net: &mut NodeNet, key: VipKey, vip: Vip) {
    net.vips.insert(key, Arc::new(vip));
}

/// A server that says its name and who asks, until it is dropped.
pub struct Server {
    socket: OwnedFd,
    udp: Option<(Netns, SocketAddr)>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub fn tcp(netns: &Netns, name: &str, port: u16) -> Server {
        Server::tcp_at(netns, name, SocketAddr::new(ip("0.0.0.0"), port))
    }

    pub fn tcp_at(netns: &Netns, name: &str, at: SocketAddr) -> Server {
        let listener = netns.run(|| TcpListener::bind(at).unwrap()).unwrap();
        let socket = OwnedFd::from(listener.try_clone().unwrap());
        let name = name.to_string();
        let thread = std::thread::spawn(move || {
            while let Ok((mut stream, peer)) = listener.accept() {
                let _ = stream.write_all(format!("{name} {}", peer.ip()).as_bytes());
            }
        });
        Server { socket, udp: None, thread: Some(thread) }
    }

    pub fn udp(netns: &Netns, name: &str, port: u16) -> Server {
        let socket = netns.run(|| UdpSocket::bind(("0.0.0.0", port)).unwrap()).unwrap();
        let fd = OwnedFd::from(socket.try_clone().unwrap());
        let name = name.to_string();
        let thread = std::thread::spawn(move || {
            let mut buffer = [0; 100];
            while let Ok((len, peer)) = socket.recv_from(&mut buffer) {
                if buffer[..len] == *b"end" {
                    return;
                }
                let _ = socket.send_to(format!("{name} {}", peer.ip()).as_bytes(), peer);
            }
        });
        let udp = Some((netns.again().unwrap(), SocketAddr::new(ip("127.0.0.1"), port)));
        Server { socket: fd, udp, thread: Some(thread) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        match &self.udp {
            Some((netns, at)) => {
                netns.run(|| UdpSocket::bind("127.0.0.1:0").unwrap().send_to(b"end", at).unwrap()).unwrap();
            }
            None => rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both).unwrap(),
        }
        self.thread.take().unwrap().join().unwrap();
    }
}

/// What the server at `to` answers: its name and the client's address as it sees it.
pub fn ask(from: &Netns, to: &str, port: u16) -> Result<(String, IpAddr), ErrorKind> {
    let to = SocketAddr::new(ip(to), port);
    let text = from.run(|| {
        let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        std::io::Result::Ok(text)
    });
    let text = text.unwrap().map_err(|error| error.kind())?;
    let (name, address) = text.split_once(' ').unwrap_or_else(|| panic!("no answer but {text:?}"));
    Ok((name.into(), ip(address)))
}

/// The names that answer in some tries, sorted, each once.
pub fn who(from: &Netns, to: &str, port: u16, tries: usize) -> Vec<String> {
    let mut names: Vec<String> = (0..tries).map(|_| ask(from, to, port).unwrap().0).collect();
    names.sort();
    names.dedup();
    names
}
