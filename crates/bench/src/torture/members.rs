//! The torture of a cluster whose state lies in etcd: three members, each in a network namespace of its own, and two
//! servers that share them.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use base::Rng;
use rustix::process::Signal;

use super::cluster::{answers, command, eventually, signal};
use super::{Fault, Tortured};
use crate::child::{Child, Server};
use crate::door::{Ask, Door};
use crate::error::Error;
use crate::frame::Run;
use crate::machine::Process;
use crate::real::free_port;
use meta::json;

const MEMBERS: usize = 3;
const SERVERS: usize = 2;
/// After how long members that hear no leader choose another.
const ELECTION_MS: u32 = 1_000;
const HEARTBEAT_MS: u32 = 100;
const CLIENT_PORT: u16 = 2379;
const PEER_PORT: u16 = 2380;
const SECRET_FILE: &str = "cluster-secret";
/// What namespaces and links are called, with the process' id behind it.
const PREFIX: &str = "gb";

pub const FAULTS: &[Fault<Ring>] = &[
    Fault { name: "a member is killed", gentle: true, strike: |ring, rng| Box::pin(ring.kill_member(rng)) },
    Fault { name: "a member stands still", gentle: true, strike: |ring, rng| Box::pin(ring.stop_member(rng)) },
    Fault { name: "a member is cut off", gentle: true, strike: |ring, rng| Box::pin(ring.cut_member(rng, true)) },
    Fault {
        name: "a member is cut off from its peers",
        gentle: true,
        strike: |ring, rng| Box::pin(ring.cut_member(rng, false)),
    },
    Fault { name: "a server stands still", gentle: true, strike: |ring, rng| Box::pin(ring.stop_server(rng)) },
    Fault { name: "a server is killed", gentle: false, strike: |ring, rng| Box::pin(ring.kill_server(rng)) },
    Fault { name: "two members stand still", gentle: false, strike: |ring, rng| Box::pin(ring.stop_most(rng)) },
    Fault { name: "all members are killed", gentle: false, strike: |ring, _| Box::pin(ring.kill_all()) },
    Fault { name: "both servers are killed", gentle: false, strike: |ring, _| Box::pin(ring.kill_servers()) },
];

/// Namespaces with one switch between them; go with this.
struct Switch {
    name: String,
    base: Ipv4Addr,
}

impl Switch {
    fn make(base: Ipv4Addr) -> Result<Switch, Error> {
        sweep();
        // Short, since it is part of the names of links.
        let switch = Switch { name: format!("{PREFIX}{}", std::process::id()), base };
        let hub = switch.hub();
        ip(&["netns", "add", &hub])?;
        ip(&["-n", &hub, "link", "add", "br0", "type", "bridge"])?;
        ip(&["-n", &hub, "link", "set", "br0", "up"])?;
        let own = &switch.name;
        ip(&["link", "add", own, "type", "veth", "peer", "name", "own", "netns", &hub])?;
        ip(&["-n", &hub, "link", "set", "own", "master", "br0", "up"])?;
        ip(&["address", "add", &format!("{}/24", switch.address(MEMBERS)), "dev", own])?;
        ip(&["link", "set", own, "up"])?;
        for member in 0..MEMBERS {
            let (space, port) = (switch.space(member), format!("port{member}"));
            ip(&["netns", "add", &space])?;
            ip(&["-n", &hub, "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &space])?;
            ip(&["-n", &hub, "link", "set", &port, "master", "br0", "up"])?;
            ip(&["-n", &space, "address", "add", &format!("{}/24", switch.address(member)), "dev", "eth0"])?;
            ip(&["-n", &space, "link", "set", "eth0", "up"])?;
            ip(&["-n", &space, "link", "set", "lo", "up"])?;
        }
        Ok(switch)
    }

    fn hub(&self) -> String {
        format!("{}-hub", self.name)
    }

    fn space(&self, member: usize) -> String {
        format!("{}-{member}", self.name)
    }

    fn address(&self, of: usize) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.base.to_bits() + u32::try_from(of).unwrap_or(0) + 1)
    }

    /// Nothing goes between a member and its peers, and with `all` nor between it and anybody.
    fn cut(&self, member: usize, all: bool) -> Result<(), Error> {
        let mut rules =
            "add table bridge cut; add chain bridge cut f { type filter hook forward priority 0; };".to_owned();
        let peers = (0..MEMBERS).filter(|peer| *peer != member).map(|peer| format!("port{peer}"));
        let others: Vec<String> = if all { peers.chain(["own".to_owned()]).collect() } else { peers.collect() };
        for other in others {
            for (from, to) in [(format!("port{member}"), other.clone()), (other, format!("port{member}"))] {
                rules.push_str(&format!("add rule bridge cut f iifname {from} oifname {to} drop;"));
            }
        }
        ip(&["netns", "exec", &self.hub(), "nft", &rules])
    }

    fn heal(&self) -> Result<(), Error> {
        ip(&["netns", "exec", &self.hub(), "nft", "delete table bridge cut"])
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        // Of one that was half made, some are missing.
        let _ = ip(&["link", "delete", &self.name]);
        for space in (0..MEMBERS).map(|member| self.space(member)).chain([self.hub()]) {
            let _ = ip(&["netns", "delete", &space]);
        }
    }
}

/// Takes away the namespaces of runs that were killed; their links go with them.
fn sweep() {
    let all = std::fs::read_dir("/run/netns").into_iter().flatten().flatten();
    for name in all.filter_map(|entry| entry.file_name().into_string().ok()) {
        let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split_once('-')).and_then(|(id, _)| id.parse().ok());
        if owner.is_some_and(|id| !Process(id).exists()) {
            // Another run may be doing the same.
            let _ = ip(&["netns", "delete", &name]);
        }
    }
}

fn ip(words: &[&str]) -> Result<(), Error> {
    command(Command::new("ip").args(words)).map(|_| ())
}

/// The members and the servers.
pub struct Ring {
    binary: PathBuf,
    dir: PathBuf,
    stand: Duration,
    servers: Vec<Option<Server>>,
    ports: Vec<u16>,
    members: Vec<Child>,
    lives: u32,
    switch: Switch,
}

impl Tortured for Ring {
    /// All servers serve, and a write is taken by each.
    async fn answers(&self) -> Result<(), Error> {
        let ask = Ask::post("/api/v1/namespaces/default/configmaps", &json!({"metadata": {"generateName": "after-"}}));
        for door in self.doors() {
            answers(&door).await?;
            eventually("see a write taken", async || Ok(door.two().await?.ask(&ask).await.ok())).await?;
        }
        Ok(())
    }
}

impl Ring {
    /// Starts everything; `base` is the address before the first member's.
    pub async fn start(run: &Run, base: Ipv4Addr) -> Result<Ring, Error> {
        let mut ring = Ring {
            binary: run.binary.clone(),
            dir: run.dir().to_owned(),
            stand: Duration::from_secs(run.number("stand_s")?),
            servers: Vec::new(),
            ports: (0..SERVERS).map(|_| free_port()).collect::<Result<_, _>>()?,
            members: Vec::new(),
            lives: 0,
            switch: Switch::make(base)?,
        };
        for member in 0..MEMBERS {
            let child = ring.member(member, true)?;
            ring.members.push(child);
        }
        for server in 0..SERVERS {
            let started = ring.server(server).await?;
            ring.servers.push(Some(started));
            let secret = ring.data(0).join(SECRET_FILE);
            for other in 1..SERVERS {
                std::fs::create_dir_all(ring.data(other)).map_err(Error::while_doing("make a folder"))?;
                std::fs::copy(&secret, ring.data(other).join(SECRET_FILE))
                    .map_err(Error::while_doing("give a server the secret"))?;
            }
        }
        Ok(ring)
    }

    pub fn doors(&self) -> Vec<Door> {
        self.servers.iter().flatten().map(|server| server.door.clone()).collect()
    }

    fn data(&self, server: usize) -> PathBuf {
        self.dir.join(format!("server-{server}"))
    }

    fn url(&self, member: usize, port: u16) -> String {
        format!("http://{}:{port}", self.switch.address(member))
    }

    fn member(&mut self, member: usize, new: bool) -> Result<Child, Error> {
        self.lives += 1;
        let name = |member: usize| format!("member-{member}");
        let all: Vec<String> =
            (0..MEMBERS).map(|member| format!("{}={}", name(member), self.url(member, PEER_PORT))).collect();
        let mut etcd = Command::new("ip");
        etcd.args(["netns", "exec", &self.switch.space(member), "etcd", "--name", &name(member)]);
        etcd.arg("--data-dir").arg(self.dir.join(name(member)));
        let (peers, clients) = (self.url(member, PEER_PORT), self.url(member, CLIENT_PORT));
        etcd.args(["--listen-peer-urls", &peers, "--initial-advertise-peer-urls", &peers]);
        etcd.args(["--listen-client-urls", &clients, "--advertise-client-urls", &clients]);
        etcd.args(["--initial-cluster", &all.join(","), "--logger", "zap", "--log-level", "error"]);
        etcd.args(["--initial-cluster-state", if new { "new" } else { "existing" }]);
        etcd.args(["--heartbeat-interval", &HEARTBEAT_MS.to_string(), "--election-timeout", &ELECTION_MS.to_string()]);
        Child::start(etcd, &[], &self.dir.join(format!("{}-{}.log", name(member), self.lives)))
    }

    async fn server(&mut self, server: usize) -> Result<Server, Error> {
        self.lives += 1;
        let endpoints: Vec<String> = (0..MEMBERS).map(|member| self.url(member, CLIENT_PORT)).collect();
        let (data, mut command) = (self.data(server), Command::new(&self.binary));
        std::fs::create_dir_all(&data).map_err(Error::while_doing("make a folder"))?;
        command.args(["server", "--backend", "etcd", "--etcd-endpoints", &endpoints.join(","), "--log", "warn"]);
        command.args(["--listen", &format!("127.0.0.1:{}", self.ports[server]), "--data"]).arg(&data);
        let log = self.dir.join(format!("server-{server}-{}.log", self.lives));
        Server::of(command, data, &[], &log).await
    }

    fn some(rng: &mut Rng, of: usize) -> usize {
        usize::try_from(rng.below(of as u64)).unwrap_or(0)
    }

    async fn kill_member(&mut self, rng: &mut Rng) -> Result<(), Error> {
        let at = Ring::some(rng, MEMBERS);
        signal(self.members[at].process, Signal::KILL);
        tokio::time::sleep(self.stand).await;
        self.members[at] = self.member(at, false)?;
        Ok(())
    }

    async fn stop_member(&mut self, rng: &mut Rng) -> Result<(), Error> {
        let member = self.members[Ring::some(rng, MEMBERS)].process;
        signal(member, Signal::STOP);
        tokio::time::sleep(self.stand).await;
        signal(member, Signal::CONT);
        Ok(())
    }

    async fn cut_member(&mut self, rng: &mut Rng, all: bool) -> Result<(), Error> {
        self.switch.cut(Ring::some(rng, MEMBERS), all)?;
        tokio::time::sleep(self.stand).await;
        self.switch.heal()
    }

    async fn stop_most(&mut self, rng: &mut Rng) -> Result<(), Error> {
        let spared = Ring::some(rng, MEMBERS);
        let stopped = (0..MEMBERS).filter(|member| *member != spared).map(|member| self.members[member].process);
        let stopped: Vec<_> = stopped.collect();
        stopped.iter().for_each(|member| signal(*member, Signal::STOP));
        tokio::time::sleep(self.stand).await;
        stopped.iter().for_each(|member| signal(*member, Signal::CONT));
        Ok(())
    }

    async fn kill_all(&mut self) -> Result<(), Error> {
        self.members.iter().for_each(|member| signal(member.process, Signal::KILL));
        for at in 0..MEMBERS {
            self.members[at] = self.member(at, false)?;
        }
        Ok(())
    }

    async fn stop_server(&mut self, rng: &mut Rng) -> Result<(), Error> {
        let at = Ring::some(rng, SERVERS);
        let Some(server) = self.servers[at].as_ref().map(Server::process) else { return Ok(()) };
        signal(server, Signal::STOP);
        tokio::time::sleep(self.stand).await;
        signal(server, Signal::CONT);
        Ok(())
    }

    async fn kill_server(&mut self, rng: &mut Rng) -> Result<(), Error> {
        let at = Ring::some(rng, SERVERS);
        self.kill_these(&[at]).await
    }

    async fn kill_servers(&mut self) -> Result<(), Error> {
        self.kill_these(&(0..SERVERS).collect::<Vec<_>>()).await
    }

    async fn kill_these(&mut self, servers: &[usize]) -> Result<(), Error> {
        for at in servers {
            if let Some(server) = self.servers[*at].take() {
                signal(server.process(), Signal::KILL);
            }
        }
        for at in servers {
            let started = self.server(*at).await?;
            self.servers[*at] = Some(started);
        }
        Ok(())
    }
}

/// A `Child` that was stopped by a signal does not end when it is asked to: nothing is left standing.
impl Drop for Ring {
    fn drop(&mut self) {
        self.members.iter().for_each(|member| signal(member.process, Signal::CONT));
    }
}
