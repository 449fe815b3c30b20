//! The torture of a cluster whose state lies in etcd: members, each in a network namespace of its own, and three servers that
//! share them. The leader of these is struck in its work by `lead`.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use base::Rng;
use rustix::process::Signal;

use super::clocks::Clocks;
use super::cluster::{LOOK, Mounted, Patience, answers, eventually, signal};
use super::disks::Full;
use super::limits::{descriptors, starve_of_files};
use super::switch::Switch;
use super::{Fault, Tortured};
use crate::child::{Child, Server};
use crate::door::{Ask, Door};
use crate::error::Error;
use crate::frame::Run;
use crate::real::free_port;
use meta::json;

pub const MEMBERS: usize = 3;
pub const SERVERS: usize = 3;
/// After how long members that hear no leader choose another.
const ELECTION_MS: u32 = 1_000;
const HEARTBEAT_MS: u32 = 100;
const CLIENT_PORT: u16 = 2379;
const PEER_PORT: u16 = 2380;
const SECRET_FILE: &str = "cluster-secret";
/// Of the file system that one of several members lies on.
const DISK: &str = "1g";
/// Descriptors of a server that come and go with what happens to be asked at the moment.
const FILES_SPARE: usize = 12;

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
    Fault { name: "the leader stands still in its work", gentle: true, strike: |ring, _| Box::pin(ring.stop_leader()) },
    Fault { name: "the leader is killed in its work", gentle: true, strike: |ring, _| Box::pin(ring.kill_leader()) },
    Fault { name: "a server's clock jumps", gentle: true, strike: |ring, rng| Box::pin(ring.jump_server(rng)) },
    Fault {
        name: "a server has no descriptors left",
        gentle: true,
        strike: |ring, rng| Box::pin(ring.starve_server_of_files(rng)),
    },
    Fault { name: "a member's disk is full", gentle: true, strike: |ring, _| Box::pin(ring.fill_member()) },
    Fault { name: "a server is killed", gentle: false, strike: |ring, rng| Box::pin(ring.kill_server(rng)) },
    Fault { name: "two members stand still", gentle: false, strike: |ring, rng| Box::pin(ring.stop_most(rng)) },
    Fault { name: "all members are killed", gentle: false, strike: |ring, _| Box::pin(ring.kill_all()) },
    Fault { name: "all servers are killed", gentle: false, strike: |ring, _| Box::pin(ring.kill_servers()) },
];

/// The members and the servers.
pub struct Ring {
    binary: PathBuf,
    dir: PathBuf,
    pub stand: Duration,
    servers: Vec<Option<Server>>,
    ports: Vec<u16>,
    members: Vec<Child>,
    count: usize,
    lives: u32,
    /// How much work was begun that the leader was struck in.
    pub works: u32,
    /// Writes that the store refused of leaders of the past.
    pub fenced: u64,
    /// The slowest answer of a server that was not struck while the leader was.
    pub slowest: Duration,
    clocks: Clocks,
    /// Where the last of several members lies.
    disk: Option<Mounted>,
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
    /// Starts as many members, and the servers. `stand` is how long what is stopped stands still.
    pub async fn start(run: &Run, members: usize, stand: Duration) -> Result<Ring, Error> {
        let mut ring = Ring {
            binary: run.binary.clone(),
            dir: run.dir().to_owned(),
            stand,
            servers: Vec::new(),
            ports: (0..SERVERS).map(|_| free_port()).collect::<Result<_, _>>()?,
            members: Vec::new(),
            count: members,
            lives: 0,
            works: 0,
            fenced: 0,
            slowest: Duration::ZERO,
            clocks: Clocks::make(run.dir())?,
            disk: None,
            switch: Switch::make(super::addresses(), members)?,
        };
        if members > 1 {
            ring.disk = Some(Mounted::over(&ring.member_data(members - 1), DISK)?);
        }
        for member in 0..members {
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

    /// The server with this number, while it runs.
    pub fn server_at(&self, server: usize) -> Result<&Server, Error> {
        let found = self.servers.get(server).and_then(Option::as_ref);
        found.ok_or_else(|| Error::doing("find a server", "it does not run"))
    }

    /// Which server is at this port.
    pub fn at_port(&self, port: u16) -> Option<usize> {
        self.ports.iter().position(|own| *own == port)
    }

    /// How many descriptors the server has open that has most.
    pub fn files(&self) -> usize {
        self.servers.iter().flatten().map(|server| descriptors(server.process()).len()).max().unwrap_or(0)
    }

    /// Waits until no server has more descriptors open than that.
    pub async fn no_more_files_than(&self, before: usize) -> Result<usize, Error> {
        let patience = Patience::begin();
        loop {
            let now = self.files();
            if now <= before + FILES_SPARE {
                return Ok(now);
            }
            if patience.is_over() {
                return Err(Error::doing("leave no descriptor behind", format!("{now} of a server, {before} before")));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    fn member_data(&self, member: usize) -> PathBuf {
        self.dir.join(format!("member-{member}"))
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
            (0..self.count).map(|member| format!("{}={}", name(member), self.url(member, PEER_PORT))).collect();
        let mut etcd = Command::new("ip");
        etcd.args(["netns", "exec", &self.switch.space(member), "etcd", "--name", &name(member)]);
        etcd.arg("--data-dir").arg(self.member_data(member));
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
        let endpoints: Vec<String> = (0..self.count).map(|member| self.url(member, CLIENT_PORT)).collect();
        let (data, mut command) = (self.data(server), Command::new(&self.binary));
        std::fs::create_dir_all(&data).map_err(Error::while_doing("make a folder"))?;
        command.args(["server", "--backend", "etcd", "--etcd-endpoints", &endpoints.join(","), "--log", "warn"]);
        command.args(["--listen", &format!("127.0.0.1:{}", self.ports[server]), "--data"]).arg(&data);
        self.clocks.wind(&mut command);
        let log = self.dir.join(format!("server-{server}-{}.log", self.lives));
        Server::of(command, data, &[], &log).await
    }

    fn some(rng: &mut Rng, of: usize) -> usize {
        usize::try_from(rng.below(of as u64)).unwrap_or(0)
    }

    async fn kill_member(&mut self, rng: &mut Rng) -> Result<(), Error> {
        let at = Ring::some(rng, self.count);
        signal(self.members[at].process, Signal::KILL);
        tokio::time::sleep(self.stand).await;
        self.members[at] = self.member(at, false)?;
        Ok(())
    }

    async fn stop_member(&mut self, rng: &mut Rng) -> Result<(), Error> {
        let member = self.members[Ring::some(rng, self.count)].process;
        signal(member, Signal::STOP);
        tokio::time::sleep(self.stand).await;
        signal(member, Signal::CONT);
        Ok(())
    }

    async fn cut_member(&mut self, rng: &mut Rng, all: bool) -> Result<(), Error> {
        self.switch.cut(Ring::some(rng, self.count), all)?;
        tokio::time::sleep(self.stand).await;
        self.switch.heal()
    }

    async fn stop_most(&mut self, rng: &mut Rng) -> Result<(), Error> {
        let spared = Ring::some(rng, self.count);
        let stopped = (0..self.count).filter(|member| *member != spared).map(|member| self.members[member].process);
        let stopped: Vec<_> = stopped.collect();
        stopped.iter().for_each(|member| signal(*member, Signal::STOP));
        tokio::time::sleep(self.stand).await;
        stopped.iter().for_each(|member| signal(*member, Signal::CONT));
        Ok(())
    }

    async fn kill_all(&mut self) -> Result<(), Error> {
        self.members.iter().for_each(|member| signal(member.process, Signal::KILL));
        for at in 0..self.count {
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

    async fn jump_server(&mut self, rng: &mut Rng) -> Result<(), Error> {
        let server = self.server_at(Ring::some(rng, SERVERS))?.process();
        for off in [Clocks::some(rng), 0] {
            self.clocks.jump(server, off)?;
            tokio::time::sleep(super::clocks::SHOWN).await;
            self.answers().await?;
        }
        Ok(())
    }

    async fn starve_server_of_files(&mut self, rng: &mut Rng) -> Result<(), Error> {
        let server = self.server_at(Ring::some(rng, SERVERS))?.process();
        starve_of_files(server, self.stand).await
    }

    /// One member's disk is full for a while: it may end, and begins again when there is room.
    async fn fill_member(&mut self) -> Result<(), Error> {
        let at = self.count - 1;
        let full = Full::fill(&self.member_data(at));
        tokio::time::sleep(self.stand).await;
        self.answers().await?;
        drop(full);
        if self.members[at].check().is_err() {
            self.members[at] = self.member(at, false)?;
        }
        Ok(())
    }

    /// Kills these servers, and starts them again.
    pub async fn kill_these(&mut self, servers: &[usize]) -> Result<(), Error> {
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
