//! The store as the server uses it: in this process, with its own thread and a file on this disk; every put is synced
//! before it is answered. etcd beside, as API servers use it: over gRPC on loopback.
//!
//! The processor time of our puts includes the caller's; that of etcd's is the process etcd alone.

use std::process::Command;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Method;
use store::{Backend, Embedded, Put, Txn};

use crate::child::Child;
use crate::door::{Ask, Line};
use crate::error::Error;
use crate::frame::{Bench, Run, Want, figure, option, runtime};
use crate::load::{self, Until};
use crate::machine::{Process, program};
use crate::numbers::median;

/// Keys that are written in turn.
const KEYS: usize = 10_000;
const OUTSTANDING: [usize; 3] = [1, 16, 256];
const PEER: &str = "etcd";

pub const BENCH: Bench = Bench {
    name: "store",
    about: "Puts of 1 KB, each synced before its answer, and gets, on the server's store; etcd beside",
    options: &[
        option("seconds", "3", "1", "How long each measurement lasts"),
        option("rounds", "3", "1", "How often; the median counts"),
        option("bytes", "1024", "1024", "Bytes of a value"),
    ],
    figures: &[
        figure("puts_per_s", Want::TimesPeer(2.0, 4.0)),
        figure("puts_16_per_s", Want::TimesPeer(2.0, 4.0)),
        figure("serial_put_us", Want::OfPeer(0.7, 0.5)),
        figure("cpu_us_per_put", Want::OfPeer(0.5, 0.25)),
        figure("cpu_us_per_get", Want::OfPeer(0.5, 0.167)),
        figure("gets_per_s", Want::TimesPeer(1.0, 6.0)),
    ],
    peer: Some(PEER),
    needs_root: false,
    run,
};

fn run(run: &mut Run) -> Result<(), Error> {
    run.note("own store in process with its own thread, etcd over gRPC on loopback; both on the same disk");
    let tokio = runtime()?;
    let (backend, _) = Embedded::open(&run.dir().join("own"), store::Options::default())
        .map_err(Error::while_doing("open the store"))?;
    let mut etcd = match program(PEER) {
        Some(path) if !run.alone => Some(tokio.block_on(Etcd::start(run, &path))?),
        _ => None,
    };
    let (seconds, rounds, bytes) = (run.number("seconds")? as f64, run.number("rounds")?, run.count("bytes")?);
    for round in 1..=rounds {
        run.say(format!("round {round} of {rounds}"));
        for outstanding in OUTSTANDING {
            let done = puts(&backend, outstanding, seconds, bytes)?;
            tell_puts(outstanding, &done, |key, value| run.figure(key, value));
            if let Some(etcd) = &mut etcd {
                let done = tokio.block_on(etcd.puts(outstanding, seconds, bytes))?;
                tell_puts(outstanding, &done, |key, value| run.peer_figure(PEER, key, value));
            }
        }
        let done = gets(&backend, seconds)?;
        run.figure("gets_per_s", done.per_s);
        run.figure("cpu_us_per_get", done.cpu_us);
        if let Some(etcd) = &mut etcd {
            let done = tokio.block_on(etcd.gets(seconds))?;
            run.peer_figure(PEER, "gets_per_s", done.per_s);
            run.peer_figure(PEER, "cpu_us_per_get", done.cpu_us);
        }
    }
    Ok(())
}

/// What a measurement brought.
struct Done {
    per_s: f64,
    /// The median of one after the other; 0 with several outstanding.
    serial_us: f64,
    cpu_us: f64,
}

fn tell_puts(outstanding: usize, done: &Done, mut tell: impl FnMut(&str, f64)) {
    match outstanding {
        1 => {
            tell("serial_put_us", done.serial_us);
            tell("cpu_us_per_serial_put", done.cpu_us);
        }
        16 => tell("puts_16_per_s", done.per_s),
        _ => {
            tell("puts_per_s", done.per_s);
            tell("cpu_us_per_put", done.cpu_us);
        }
    }
}

fn key(number: usize) -> Bytes {
    format!("/registry/pods/bench/pod-{:06}", number % KEYS).into()
}

/// Keeps `outstanding` puts on their way.
fn puts(backend: &Embedded, outstanding: usize, seconds: f64, bytes: usize) -> Result<Done, Error> {
    let value = Bytes::from(vec![b'x'; bytes]);
    let (sender, answers) = mpsc::channel();
    let submit = |number: usize| {
        let sender = sender.clone();
        let put = Put::new(key(number), value.clone());
        // The receiver waits for every answer.
        backend.submit(Txn::new().put(put), Box::new(move |outcome| drop(sender.send(outcome.map(|_| ())))));
    };
    let (before, began) = (Process::own().cpu_us(), Instant::now());
    let limit = Duration::from_secs_f64(seconds);
    let (mut sent, mut done, mut times) = (0, 0_usize, Vec::new());
    while sent < outstanding {
        submit(sent);
        sent += 1;
    }
    let mut asked = began;
    while done < sent {
        let answer = answers.recv().map_err(Error::while_doing("put"))?;
        answer.map_err(Error::while_doing("put"))?;
        done += 1;
        if outstanding == 1 {
            times.push(asked.elapsed().as_secs_f64() * 1e6);
        }
        if began.elapsed() < limit {
            asked = Instant::now();
            submit(sent);
            sent += 1;
        }
    }
    let cpu = Process::own().cpu_us() - before;
    let count = done as f64;
    Ok(Done { per_s: count / began.elapsed().as_secs_f64(), serial_us: median(&times), cpu_us: cpu as f64 / count })
}

/// Reads keys one after the other.
fn gets(backend: &Embedded, seconds: f64) -> Result<Done, Error> {
    /// Reads between two looks at the clock.
    const BETWEEN: usize = 256;
    let (before, began) = (Process::own().cpu_us(), Instant::now());
    let (mut count, mut bytes) = (0, 0);
    while began.elapsed().as_secs_f64() < seconds {
        for _ in 0..BETWEEN {
            let found = backend.get(&key(count)).ok_or_else(|| Error::doing("get", "a key is missing"))?;
            bytes += std::hint::black_box(found.value.len());
            count += 1;
        }
    }
    let cpu = Process::own().cpu_us() - before;
    let count = count as f64;
    Ok(Done {
        per_s: count / began.elapsed().as_secs_f64(),
        serial_us: 0.0,
        cpu_us: if bytes == 0 { 0.0 } else { cpu as f64 / count },
    })
}

/// etcd, as one server.
struct Etcd {
    child: Child,
    address: String,
}

/// A field of a protobuf message whose type is bytes.
fn field(number: u8, bytes: &[u8], out: &mut Vec<u8>) {
    out.push(number << 3 | 2);
    let mut rest = bytes.len();
    while rest >= 0x80 {
        out.push(0x80 | (rest & 0x7f) as u8);
        rest >>= 7;
    }
    out.push(rest as u8);
    out.extend(bytes);
}

/// The path and body of a gRPC call.
fn call(path: &str, fields: &[(u8, &[u8])]) -> Ask {
    let mut message = Vec::new();
    for (number, bytes) in fields {
        field(*number, bytes, &mut message);
    }
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes();
    let body = [&[0][..], &length, &message].concat();
    Ask { content_type: "application/grpc", ..Ask::new(Method::POST, path, body) }
}

fn put_call(key: &[u8], value: &[u8]) -> Ask {
    call("/etcdserverpb.KV/Put", &[(1, key), (2, value)])
}

fn get_call(key: &[u8]) -> Ask {
    call("/etcdserverpb.KV/Range", &[(1, key)])
}

impl Etcd {
    async fn start(run: &Run, path: &std::path::Path) -> Result<Etcd, Error> {
        let port = || -> std::io::Result<u16> {
            let socket = std::net::TcpListener::bind("127.0.0.1:0")?;
            Ok(socket.local_addr()?.port())
        };
        let ports = (port(), port());
        let (Ok(client), Ok(peer)) = ports else { return Err(Error::doing("find a port", "none is free")) };
        let (client_url, peer_url) = (format!("http://127.0.0.1:{client}"), format!("http://127.0.0.1:{peer}"));
        let mut command = Command::new(path);
        command.arg("--data-dir").arg(run.dir().join("etcd")).args([
            "--listen-client-urls",
            &client_url,
            "--advertise-client-urls",
            &client_url,
            "--listen-peer-urls",
            &peer_url,
            "--initial-advertise-peer-urls",
            &peer_url,
            "--initial-cluster",
            &format!("default={peer_url}"),
            "--log-level",
            "error",
        ]);
        let mut child = Child::start(command, &[], &run.dir().join("etcd.log"))?;
        let address = format!("127.0.0.1:{client}");
        let began = Instant::now();
        loop {
            child.check()?;
            let tried = async { Line::plain(&address).await?.pass(&put_call(b"a", b"b")).await };
            match tried.await {
                Ok(_) => return Ok(Etcd { child, address }),
                Err(error) if began.elapsed() > Duration::from_secs(20) => return Err(error),
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    async fn lines(&self, outstanding: usize) -> Result<Vec<Line>, Error> {
        /// Calls that share a connection.
        const SHARED: usize = 64;
        let mut lines = Vec::new();
        while lines.len() < outstanding {
            let first = Line::plain(&self.address).await?;
            let more = SHARED.min(outstanding - lines.len()) - 1;
            lines.extend((0..more).filter_map(|_| first.share()));
            lines.push(first);
        }
        Ok(lines)
    }

    async fn load(&self, outstanding: usize, seconds: f64, make: load::Maker) -> Result<Done, Error> {
        let lines = self.lines(outstanding).await?;
        let mut load = load::closed(self.child.process, lines, make, Until::Seconds(seconds)).await?;
        let serial_us = if outstanding == 1 { load.ms(0.5) * 1e3 } else { 0.0 };
        Ok(Done { per_s: load.per_s(), serial_us, cpu_us: load.cpu_us() })
    }

    async fn puts(&mut self, outstanding: usize, seconds: f64, bytes: usize) -> Result<Done, Error> {
        let value = vec![b'x'; bytes];
        self.load(outstanding, seconds, Arc::new(move |number| put_call(&key(number), &value))).await
    }

    async fn gets(&mut self, seconds: f64) -> Result<Done, Error> {
        self.load(256, seconds, Arc::new(|number| get_call(&key(number)))).await
    }
}
