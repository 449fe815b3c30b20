//! The DNS server in a node's namespace, asked by pods, with an upstream server elsewhere.

use crate::world::{PATIENCE, World, ip};
use net::Netns;
use net::dns::{EndpointName, Server, ServiceNames, Sockets, Zone};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::{Arc, RwLock};

fn query(id: u16, name: &str, kind: u8) -> Vec<u8> {
    let mut bytes = [&id.to_be_bytes()[..], &[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]].concat();
    for label in name.split('.') {
        bytes.push(label.len() as u8);
        bytes.extend_from_slice(label.as_bytes());
    }
    bytes.extend_from_slice(&[0, 0, kind, 0, 1]);
    bytes
}

fn udp(from: &Netns, to: SocketAddr, query: &[u8]) -> std::io::Result<Vec<u8>> {
    from.run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.set_read_timeout(Some(PATIENCE * 3))?;
        socket.connect(to)?;
        socket.send(query)?;
        let mut buffer = vec![0; 65_535];
        let len = socket.recv(&mut buffer)?;
        buffer.truncate(len);
        Ok(buffer)
    })
    .unwrap()
}

fn tcp_message(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut len = [0; 2];
    stream.read_exact(&mut len)?;
    let mut message = vec![0; usize::from(u16::from_be_bytes(len))];
    stream.read_exact(&mut message)?;
    Ok(message)
}

fn tcp(from: &Netns, to: SocketAddr, queries: &[Vec<u8>]) -> std::io::Result<Vec<Vec<u8>>> {
    from.run(|| {
        let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE * 3))?;
        for query in queries {
            stream.write_all(&[&(query.len() as u16).to_be_bytes(), &query[..]].concat())?;
        }
        queries.iter().map(|_| tcp_message(&mut stream)).collect()
    })
    .unwrap()
}

/// Code, whether cut, and how many answers.
fn summary(reply: &[u8]) -> (u8, bool, u8) {
    (reply[3] & 15, reply[2] & 2 != 0, reply[7])
}

/// A server that answers every name with one address; names that begin with `big` are cut over UDP, `lost` ones are not
/// answered, `wrong` ones first get the reply to another number.
fn upstream() -> SocketAddr {
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = udp.local_addr().unwrap();
    let tcp = TcpListener::bind(address).unwrap();
    let reply = |query: &[u8], addresses: u8| {
        let mut out = query.to_vec();
        out[2] |= 0x80;
        out[3] = 0x80;
        out[7] = addresses;
        out[11] = 0;
        let end = 12 + query[12..].iter().position(|byte| *byte == 0).unwrap() + 5;
        out.truncate(end);
        for n in 0..addresses {
            out.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, n]);
        }
        out
    };
    std::thread::spawn(move || {
        let mut buffer = [0; 2000];
        while let Ok((len, client)) = udp.recv_from(&mut buffer) {
            let query = &buffer[..len];
            if query[13..].starts_with(b"lost") {
                continue;
            }
            let mut out = reply(query, 1);
            if query[13..].starts_with(b"big") {
                out = reply(query, 0);
                out[2] |= 2;
            }
            if query[13..].starts_with(b"wrong") {
                let mut other = out.clone();
                other[0] ^= 1;
                other[out.len() - 1] = 99;
                let _ = udp.send_to(&other, client);
            }
            let _ = udp.send_to(&out, client);
        }
    });
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = tcp.accept() {
            if let Ok(query) = tcp_message(&mut stream) {
                let out = reply(&query, 40);
                let _ = stream.write_all(&[&(out.len() as u16).to_be_bytes(), &out[..]].concat());
            }
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_ask_their_node() {
    let mut world = World::new(1);
    let pod = world.pod(0);
    let address = SocketAddr::new(world.nodes[0].link.address, 53);
    world.nodes[0].net.name_server = Some(address.ip());
    world.apply();
    let sockets = world.nodes[0].link.netns.run(|| Sockets::bind(address).unwrap()).unwrap();
    let mut zone = Zone::new("cluster.local", &[address.ip()], &[]).unwrap();
    let web = ServiceNames { addresses: vec![ip("10.96.0.7")], ..ServiceNames::default() };
    zone.set_service("default", "web", Some(web.clone()));
    let endpoint = |n: u8| EndpointName { address: IpAddr::from([10, 244, 9, n]), hostname: None, ports: vec![] };
    let many = ServiceNames { endpoints: (0..100).map(endpoint).collect(), ..ServiceNames::default() };
    zone.set_service("default", "many", Some(many));
    let external = ServiceNames { external: Some("www.example.com".into()), ..ServiceNames::default() };
    zone.set_service("default", "outside", Some(external));
    let zone = Arc::new(RwLock::new(zone));
    let upstream = upstream();
    // Our own address among the upstream servers is left out.
    let server = Server::start(vec![sockets], zone.clone(), &[address, upstream]).unwrap();

    let web_query = query(1, "web.default.svc.cluster.local", 1);
    let connections = || {
        let read = || std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count").unwrap();
        world.nodes[0].link.netns.run(read).unwrap()
    };
    let before = connections();
    let reply = udp(&pod.netns, address, &web_query).unwrap();
    assert_eq!((summary(&reply), &reply[reply.len() - 4..]), ((0, false, 1), &[10, 96, 0, 7][..]));
    assert_eq!(connections(), before, "questions are on no connection");
    let many_query = query(2, "many.default.svc.cluster.local", 1);
    let reply = udp(&pod.netns, address, &many_query).unwrap();
    assert!(reply.len() <= 512 && summary(&reply).1);
    // Several questions on one connection, answered in order.
    let replies =
        tcp(&pod.netns, address, &[web_query.clone(), many_query, query(3, "nope.cluster.local", 1)]).unwrap();
    let summaries: Vec<_> = replies.iter().map(|reply| summary(reply)).collect();
    assert_eq!(summaries, [(0, false, 1), (0, false, 100), (3, false, 0)]);

    // Names of others, over UDP, by TCP when cut, with a false answer in between, and as the target of an alias.
    let other = |name: &str| udp(&pod.netns, address, &query(9, name, 1)).unwrap();
    assert_eq!(summary(&other("example.com")), (0, false, 1));
    assert_eq!(other("example.com")[..2], [0, 9]);
    let wrong = other("wrong.example.com");
    assert_eq!((summary(&wrong), wrong[wrong.len() - 1]), ((0, false, 1), 0));
    assert_eq!(summary(&other("big.example.com")), (0, true, 0));
    let whole = tcp(&pod.netns, address, &[query(4, "big.example.com", 1)]).unwrap();
    assert_eq!(summary(&whole[0]), (0, false, 40));
    let alias = other("outside.default.svc.cluster.local");
    assert_eq!((summary(&alias), &alias[alias.len() - 4..]), ((0, false, 2), &[192, 0, 2, 0][..]));
    assert_eq!(summary(&other("lost.example.com")), (2, false, 0));

    // A change is seen by the next question.
    zone.write().unwrap().set_service("default", "web", Some(ServiceNames { addresses: vec![ip("10.96.0.8")], ..web }));
    let reply = udp(&pod.netns, address, &web_query).unwrap();
    assert_eq!(reply[reply.len() - 4..], [10, 96, 0, 8]);
    let counts = server.counts();
    assert!(counts.queries >= 12 && counts.forwarded >= 6 && counts.failed == 1, "{counts:?}");

    // Without upstream servers other names fail at once, and a stopped server gives its address free.
    drop(server);
    let again = world.nodes[0].link.netns.run(|| Sockets::bind(address)).unwrap();
    let sockets = match again {
        Ok(sockets) => sockets,
        // The tasks end when the runtime gets to it.
        Err(_) => loop {
            tokio::task::yield_now().await;
            if let Ok(sockets) = world.nodes[0].link.netns.run(|| Sockets::bind(address)).unwrap() {
                break sockets;
            }
        },
    };
    let _server = Server::start(vec![sockets], zone, &[address]).unwrap();
    assert_eq!(summary(&udp(&pod.netns, address, &query(5, "example.com", 1)).unwrap()), (2, false, 0));
}
