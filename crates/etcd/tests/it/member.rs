//! Members of etcd as processes of a test: on loopback, in a temporary folder, ended with it.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use etcd::{Endpoint, Etcd, Options};

/// A port that was free a moment ago.
pub fn port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// One running member.
pub struct Member {
    pub client_port: u16,
    pub child: Child,
    args: Vec<String>,
    log: std::path::PathBuf,
}

impl Member {
    fn start(args: Vec<String>, client_port: u16, log: &Path) -> Member {
        let child = spawn(&args, log);
        Member { client_port, child, args, log: log.to_owned() }
    }

    pub fn endpoint(&self) -> Endpoint {
        Endpoint::parse(&format!("http://127.0.0.1:{}", self.client_port)).unwrap()
    }

    fn signal(&self, signal: &str) {
        let done = Command::new("kill").args([signal, &self.child.id().to_string()]).status().unwrap();
        assert!(done.success());
    }

    pub fn pause(&self) {
        self.signal("-STOP");
    }

    pub fn go_on(&self) {
        self.signal("-CONT");
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn restart(&mut self) {
        self.child = spawn(&self.args, &self.log);
    }
}

fn spawn(args: &[String], log: &Path) -> Child {
    let out = std::fs::File::options().create(true).append(true).open(log).unwrap();
    let err = out.try_clone().unwrap();
    Command::new("etcd").args(args).stdin(Stdio::null()).stdout(out).stderr(err).spawn().expect("etcd-server is there")
}

impl Drop for Member {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Members that form one etcd.
pub struct Cluster {
    pub members: Vec<Member>,
    _dir: tempfile::TempDir,
}

impl Cluster {
    pub fn start(count: usize) -> Cluster {
        Cluster::with(count, &[])
    }

    /// With further arguments for each member.
    pub fn with(count: usize, more: &[&str]) -> Cluster {
        let dir = tempfile::tempdir().unwrap();
        let ports: Vec<(u16, u16)> = (0..count).map(|_| (port(), port())).collect();
        let peers: Vec<String> =
            ports.iter().enumerate().map(|(at, (_, peer))| format!("m{at}=http://127.0.0.1:{peer}")).collect();
        let start = |(at, (client, peer)): (usize, &(u16, u16))| {
            let scheme = if more.iter().any(|word| word.starts_with("--cert-file")) { "https" } else { "http" };
            let (client_url, peer_url) = (format!("{scheme}://127.0.0.1:{client}"), format!("http://127.0.0.1:{peer}"));
            let mut args: Vec<String> = [
                ("--name", format!("m{at}")),
                ("--data-dir", dir.path().join(format!("m{at}")).display().to_string()),
                ("--listen-client-urls", client_url.clone()),
                ("--advertise-client-urls", client_url),
                ("--listen-peer-urls", peer_url.clone()),
                ("--initial-advertise-peer-urls", peer_url),
                ("--initial-cluster", peers.join(",")),
                ("--initial-cluster-token", format!("t{}", ports[0].1)),
            ]
            .into_iter()
            .flat_map(|(flag, value)| [flag.to_owned(), value])
            .collect();
            args.extend(more.iter().map(|word| (*word).to_owned()));
            Member::start(args, *client, &dir.path().join(format!("m{at}.log")))
        };
        let members = ports.iter().enumerate().map(start).collect();
        Cluster { members, _dir: dir }
    }

    pub fn options(&self, prefix: &str) -> Options {
        let endpoints = self.members.iter().map(Member::endpoint).collect();
        Options { prefix: prefix.to_owned(), ..Options::new(endpoints) }
    }

    /// Opens the backend, waiting for the cluster to come up.
    pub async fn open(&self, prefix: &str) -> Etcd {
        open(&self.options(prefix)).await
    }
}

pub async fn open(options: &Options) -> Etcd {
    let until = Instant::now() + Duration::from_secs(30);
    loop {
        match Etcd::open(options).await {
            Ok(etcd) => return etcd,
            // There is no event to await for a process that is coming up.
            Err(etcd::OpenError::Reach { .. }) if Instant::now() < until => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Err(error) => panic!("{error}"),
        }
    }
}
