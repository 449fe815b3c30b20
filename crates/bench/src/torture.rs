//! Torture: a whole cluster of real nodes and containers, under load, while everything that can be killed is killed.
//!
//! Writers and watchers note what was acknowledged and what they saw; the judge of histories, the same as the simulator's,
//! says afterwards whether a promise was broken. Pods that nobody aims at must run the same containers as before, as
//! long as only agents, links, clocks, limits, shims of others and the server's patience were struck. What the cluster has
//! on the machine is counted before and after, and when it is gone.
//!
//! One row of [`FAULTS`] strikes, waits, and heals; the group that it belongs to is a file of this folder. The first half
//! of the time strikes what running containers survive; then the server, and everything at once, dies, too, and the disk
//! fills up. With `backend=etcd` it is the members of an etcd and the servers that share it (`members`).

mod certificates;
mod clients;
mod clocks;
mod cluster;
mod damage;
mod disks;
pub mod hands;
mod lead;
mod left;
mod limits;
pub mod members;
mod processes;
mod registry;
mod switch;

use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::{Duration, Instant};

use base::Rng;
use runtime::testing::{Compression, TestImage};

use crate::door::Door;
use crate::error::Error;
use crate::frame::{Bench, Run, Want, figure, option, runtime};
use crate::machine::Process;
use crate::real::{IMAGE, free_port};
use clients::{Clients, Verdict};
use clocks::Clocks;
use cluster::{Mounted, Torture};
use hands::Hands;
use members::{MEMBERS, Ring};
use registry::Registry;

pub const NAMESPACE: &str = "torture";
/// Of the file systems that the store, logs of a node, and images of a node lie on.
const DISK: &str = "768m";
const LOGS_DISK: &str = "16m";
const IMAGES_DISK: &str = "96m";
const WATCHERS: u64 = 3;
/// Where the addresses of nodes and members are taken from, a /24 for each run on the machine.
const ADDRESSES: Ipv4Addr = Ipv4Addr::new(10, 232, 0, 0);
const ADDRESSES_RUNS: u32 = 1 << 10;
const PAUSE: Duration = Duration::from_secs(1);
/// How the folders are named in which logs of failed runs are kept.
const KEPT_PREFIX: &str = "torture-logs-";

pub const BENCH: Bench = Bench {
    name: "torture",
    about: "A real cluster under load while its parts are killed, stopped, cut off and filled up; histories are judged",
    options: &[
        option("minutes", "10", "1", "How long faults strike; each strikes once, however short that is"),
        option("writers", "8", "4", "Clients that write and read"),
        option("stand_s", "45", "3", "How long what is stopped stands still"),
        option("seed", "1", "1", "Which faults, in which order"),
        option(
            "backend",
            "embedded",
            "embedded",
            "What is tortured: embedded, a cluster of nodes; etcd, servers that share one",
        ),
        option("only", "all", "all", "Only faults whose name has this word"),
    ],
    figures: &[
        figure("broken_per_run", Want::AtMost(0.0, 0.0)),
        figure("faults_per_run", Want::Nothing),
        figure("acknowledged_per_run", Want::Nothing),
        figure("judged_per_run", Want::Nothing),
        figure("heard_per_run", Want::Nothing),
    ],
    peer: None,
    needs_root: true,
    run,
};

pub type Struck<'a> = Pin<Box<dyn Future<Output = Result<(), Error>> + 'a>>;

/// What goes wrong with a `T`, and how it is mended.
pub struct Fault<T: 'static> {
    name: &'static str,
    /// Running containers that it does not aim at go on.
    gentle: bool,
    strike: for<'a> fn(&'a mut T, &'a mut Rng) -> Struck<'a>,
}

/// What faults strike.
trait Tortured {
    /// Waits until it serves again.
    async fn answers(&self) -> Result<(), Error>;
}

const FAULTS: &[Fault<Torture>] = &[
    Fault { name: "an agent is killed", gentle: true, strike: |torture, rng| Box::pin(torture.kill_agent(rng)) },
    Fault { name: "an agent stands still", gentle: true, strike: |torture, rng| Box::pin(torture.stop_agent(rng)) },
    Fault { name: "the server stands still", gentle: true, strike: |torture, _| Box::pin(torture.stop_server()) },
    Fault { name: "a node is cut off", gentle: true, strike: |torture, rng| Box::pin(torture.cut_node(rng)) },
    Fault { name: "a container is killed", gentle: true, strike: |torture, rng| Box::pin(torture.kill_container(rng)) },
    Fault { name: "a shim is killed", gentle: true, strike: |torture, rng| Box::pin(torture.kill_shim(rng)) },
    Fault { name: "the server's clock jumps", gentle: true, strike: |torture, rng| Box::pin(torture.jump_server(rng)) },
    Fault { name: "an agent's clock jumps", gentle: true, strike: |torture, rng| Box::pin(torture.jump_agent(rng)) },
    Fault {
        name: "the server has no descriptors left",
        gentle: true,
        strike: |torture, _| Box::pin(torture.starve_server_of_files()),
    },
    Fault {
        name: "an agent has no descriptors left",
        gentle: true,
        strike: |torture, rng| Box::pin(torture.starve_agent_of_files(rng)),
    },
    Fault {
        name: "a container has no memory left",
        gentle: true,
        strike: |torture, _| Box::pin(torture.starve_container_of_memory()),
    },
    Fault {
        name: "an agent has no memory left",
        gentle: true,
        strike: |torture, rng| Box::pin(torture.starve_agent_of_memory(rng)),
    },
    Fault { name: "the disk of logs is full", gentle: true, strike: |torture, _| Box::pin(torture.fill_logs()) },
    Fault { name: "the disk of images is full", gentle: true, strike: |torture, _| Box::pin(torture.fill_images()) },
    Fault { name: "the registry is gone", gentle: true, strike: |torture, _| Box::pin(torture.lose_registry()) },
    Fault { name: "the server is killed", gentle: false, strike: |torture, _| Box::pin(torture.kill_server(false)) },
    Fault { name: "everything is killed", gentle: false, strike: |torture, _| Box::pin(torture.kill_server(true)) },
    Fault { name: "the disk is full", gentle: false, strike: |torture, _| Box::pin(torture.fill_disk()) },
    Fault { name: "the log's end is torn", gentle: false, strike: |torture, rng| Box::pin(torture.tear_log(rng)) },
    Fault { name: "a bit of the log flips", gentle: false, strike: |torture, rng| Box::pin(torture.flip_bit(rng)) },
    Fault { name: "certificates end", gentle: false, strike: |torture, _| Box::pin(torture.rotate_certificates()) },
];

fn run(run: &mut Run) -> Result<(), Error> {
    let tokio = runtime()?;
    match run.word("backend") {
        "embedded" => tokio.block_on(nodes(run)),
        "etcd" => tokio.block_on(ring(run)),
        other => Err(Error::Option { name: "backend".into(), why: format!("{other:?} is neither embedded nor etcd") }),
    }
}

/// The /24 that this run takes its addresses from.
fn addresses() -> Ipv4Addr {
    Ipv4Addr::from_bits(ADDRESSES.to_bits() + ((Process::own().0 % ADDRESSES_RUNS) << 8))
}

/// The torture of a cluster with nodes.
async fn nodes(run: &mut Run) -> Result<(), Error> {
    let data = run.dir().join("data");
    let mut disks = vec![Mounted::over(&data, DISK)?];
    let image = TestImage { compression: Compression::None, ..TestImage::busybox() };
    let base = addresses();
    let machine = SocketAddr::new(Ipv4Addr::from_bits(base.to_bits() + 1).into(), free_port()?);
    let mut torture = Torture {
        binary: run.binary.clone(),
        log: run.dir().to_owned(),
        port: free_port()?,
        subnet: format!("{base}/24"),
        data: data.clone(),
        server: None,
        stand: Duration::from_secs(run.number("stand_s")?),
        lives: 0,
        words: Vec::new(),
        clocks: Clocks::make(run.dir())?,
        registry: Registry::at(machine),
    };
    for (name, size) in [("logs", LOGS_DISK), ("runtime", IMAGES_DISK)] {
        for folder in torture.node_folders(name) {
            disks.push(Mounted::over(&folder, size)?);
        }
    }
    // Those that lie on others go first.
    disks.reverse();
    let images = data.join("images");
    std::fs::create_dir_all(&images).map_err(Error::while_doing("make a folder"))?;
    image.write_oci(&images.join("busybox.tar"), IMAGE).map_err(Error::while_doing("make an image"))?;
    let done = torture_nodes(run, &mut torture).await;
    done.map_err(|error| told_with_logs(run, error))
}

async fn torture_nodes(run: &mut Run, torture: &mut Torture) -> Result<(), Error> {
    torture.start().await?;
    torture.nodes_ready().await?;
    let door = torture.server()?.door.clone();
    door.namespace(NAMESPACE).await?;
    torture.make_pods().await?;
    let counted = torture.count()?;
    let (writers, seed) = (run.number("writers")?, run.number("seed")?);
    let clients = Clients::start(std::slice::from_ref(&door), writers, WATCHERS, seed);
    let before = torture.containers().await?;
    let (mut rng, half) = (Rng::new(seed), Duration::from_secs(run.number("minutes")? * 30));
    let mut struck = strike_for(torture, FAULTS, run, &mut rng, half, true).await?;
    torture.pods_ready().await?;
    let after = torture.containers().await?;
    let restarted: Vec<&String> =
        before.iter().filter(|(name, id)| after.get(*name) != Some(id)).map(|row| row.0).collect();
    run.figure("restarted_per_run", restarted.len() as f64);
    struck += strike_for(torture, FAULTS, run, &mut rng, half, false).await?;
    torture.nodes_ready().await?;
    torture.pods_ready().await?;
    let verdict = clients.judge(&door, usize::try_from(writers).unwrap_or(usize::MAX)).await?;
    run.note(format!("before: {}", counted.told()));
    let end = torture.no_more_than(&counted).await?;
    run.note(format!("after: {}", end.told()));
    let (store, name) = (torture.data.join("store"), torture.name()?);
    torture.server = None;
    left::nothing_of(&name).await?;
    let rotten = damage::rot(&torture.binary, &store, &run.dir().join("rotten"), &mut rng)?;
    run.figure("rotten_files_per_run", f64::from(rotten));
    tell(run, struck, verdict)?;
    if !restarted.is_empty() {
        return Err(Error::doing("let containers run", format!("{restarted:?} are others than before")));
    }
    Ok(())
}

/// The torture of etcd's members and the servers that share them.
async fn ring(run: &mut Run) -> Result<(), Error> {
    let stand = Duration::from_secs(run.number("stand_s")?);
    let mut ring = Ring::start(run, MEMBERS, stand).await?;
    let done = torture_ring(run, &mut ring).await;
    done.map_err(|error| told_with_logs(run, error))
}

async fn torture_ring(run: &mut Run, ring: &mut Ring) -> Result<(), Error> {
    let doors = ring.doors();
    doors[0].namespace(NAMESPACE).await?;
    let (hands, files) = (Hands::start(&doors), ring.files());
    let (writers, seed) = (run.number("writers")?, run.number("seed")?);
    let clients = Clients::start(&doors, writers, WATCHERS, seed);
    let (mut rng, half) = (Rng::new(seed), Duration::from_secs(run.number("minutes")? * 30));
    let mut struck = strike_for(ring, members::FAULTS, run, &mut rng, half, true).await?;
    struck += strike_for(ring, members::FAULTS, run, &mut rng, half, false).await?;
    drop(hands);
    let verdict = clients.judge(&doors[0], usize::try_from(writers).unwrap_or(usize::MAX)).await?;
    let left = ring.no_more_files_than(files).await?;
    run.note(format!("before: at most {files} files of a server; after: {left}"));
    if ring.works > 0 {
        let slowest = ring.slowest.as_secs_f64();
        run.figure("fenced_per_run", ring.fenced as f64);
        run.note(format!("while the leader was struck, servers beside it answered within {slowest:.2} s"));
    }
    tell(run, struck, verdict)
}

fn tell(run: &mut Run, struck: u32, verdict: Verdict) -> Result<(), Error> {
    run.figure("faults_per_run", f64::from(struck));
    run.figure("acknowledged_per_run", verdict.acknowledged as f64);
    run.figure("judged_per_run", verdict.judged as f64);
    run.figure("heard_per_run", verdict.heard as f64);
    run.figure("broken_per_run", verdict.broken.len() as f64);
    run.note(format!("judged in {:.1} s", verdict.took.as_secs_f64()));
    run.note(format!(
        "{} answers did not come, {} watches began anew, refusals by code: {:?}",
        verdict.unknown, verdict.relists, verdict.refusals
    ));
    match verdict.broken.is_empty() {
        true => Ok(()),
        false => Err(Error::doing("keep every promise", verdict.broken.join("; "))),
    }
}

/// Strikes again and again; each fault once before any comes again, and once at least.
async fn strike_for<T: Tortured>(
    tortured: &mut T,
    faults: &'static [Fault<T>],
    run: &Run,
    rng: &mut Rng,
    time: Duration,
    gentle: bool,
) -> Result<u32, Error> {
    let word = run.word("only");
    let wanted = |fault: &&Fault<T>| fault.gentle == gentle && (word == "all" || fault.name.contains(word));
    let all: Vec<&Fault<T>> = faults.iter().filter(wanted).collect();
    let (until, mut struck, mut left) = (Instant::now() + time, 0, all.clone());
    while !all.is_empty() && (Instant::now() < until || !left.is_empty()) {
        if left.is_empty() {
            left.clone_from(&all);
        }
        let fault = left.swap_remove(usize::try_from(rng.below(left.len() as u64)).unwrap_or(0));
        let began = Instant::now();
        let done = (fault.strike)(tortured, rng).await;
        done.map_err(|error| Error::doing(format!("live when {}", fault.name), error))?;
        tortured.answers().await?;
        run.say(format!("{}: served again after {:.1} s", fault.name, began.elapsed().as_secs_f64()));
        struck += 1;
        tokio::time::sleep(PAUSE).await;
    }
    Ok(struck)
}

/// The server that a client goes to, and the next one when it fails.
fn place_of(doors: &[Door], number: u64) -> usize {
    usize::try_from(number).unwrap_or(0) % doors.len()
}

fn told_with_logs(run: &Run, error: Error) -> Error {
    let kept = keep_logs(run.dir());
    Error::doing(format!("end the torture well (logs are kept in {})", kept.display()), error)
}

/// Keeps what everybody logged, for whoever has to find out what happened; where.
fn keep_logs(dir: &Path) -> PathBuf {
    let kept = std::env::temp_dir().join(format!("{KEPT_PREFIX}{}", Process::own().0));
    let all = [dir.to_owned()]
        .into_iter()
        .chain((1..=cluster::NODES).map(|number| dir.join(format!("data/nodes/node-{number}"))));
    // What cannot be kept is missing; the failure that it is about is told all the same.
    let _ = std::fs::create_dir_all(&kept);
    for (number, folder) in all.enumerate() {
        let files = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
        for file in files.filter(|file| file.extension().is_some_and(|end| end == "log")) {
            let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let _ = std::fs::copy(&file, kept.join(format!("{number}-{name}")));
        }
    }
    kept
}
