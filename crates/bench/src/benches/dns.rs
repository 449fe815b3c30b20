//! The name server of a real node, fed by the watch of a real cluster: questions about services at full rate, and how
//! soon a new service is answered meanwhile. knot beside, with the same names and the same generator (dnsperf).
//!
//! Server and generator are on a processor each. The generator runs in the node's network namespace, so that both servers
//! are asked over loopback.

use std::fmt::Write as _;
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use meta::{Value, json};

use crate::asker;
use crate::child::Child;
use crate::door::Ask;
use crate::error::Error;
use crate::frame::{Bench, Run, Want, figure, option, runtime};
use crate::load::{self, Maker, Until};
use crate::machine::{self, Process, program};
use crate::numbers::percentile;
use crate::real::{Up, free_port};

const NAMESPACE: &str = "bench";
const OUTSTANDING: &str = "200";
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

pub const BENCH: Bench = Bench {
    name: "dns",
    about: "Questions about services to a real node's name server, and how soon changes are answered; knot beside",
    options: &[
        option("services", "10000", "50", "Services"),
        option("seconds", "5", "1", "How long each measurement lasts"),
        option("rounds", "3", "1", "How often; the median counts"),
        option("changes", "50", "3", "New services of which each is asked for"),
    ],
    figures: &[
        figure("queries_per_s", Want::TimesPeer(0.8, 1.15)),
        figure("cpu_us_per_query", Want::Nothing),
        figure("change_to_answer_p99_ms", Want::AtMost(100.0, 10.0)),
    ],
    peer: Some("knot"),
    needs_root: true,
    run,
};

fn run(run: &mut Run) -> Result<(), Error> {
    if program("dnsperf").is_none() {
        return Err(Error::Lacks("the generator dnsperf is not installed (Debian: dnsperf)".into()));
    }
    runtime()?.block_on(measure(run))
}

async fn measure(run: &mut Run) -> Result<(), Error> {
    let (services, seconds) = (run.count("services")?, run.number("seconds")?);
    let up = Up::start(run, "up").await?;
    up.ready().await?;
    let agent = up.agent()?;
    up.server.door.namespace(NAMESPACE).await?;
    run.say(format!("{services} services"));
    let make: Maker = Arc::new(|number| creation(&format!("service-{number}")));
    let began = Instant::now();
    load::piped(up.server.process(), &up.server.door, 64, make, Until::Requests(services)).await?;
    run.figure("services_made_per_s", services as f64 / began.elapsed().as_secs_f64());
    let server = server_of(&up).await?;
    let asking = Asking::inside(agent)?;
    asking.wait(server, &format!("service-{}", services - 1))?;
    let questions = questions(run.dir(), services)?;
    pin_all(agent, &[0]);
    let knot = if run.alone { None } else { Knot::start(run, services)? };
    for _ in 0..run.number("rounds")? {
        let cpu = agent.cpu_us();
        let done = dnsperf(Some(agent), server, &questions, seconds, None)?;
        run.figure("queries_per_s", done.per_s);
        run.figure("cpu_us_per_query", (agent.cpu_us() - cpu) as f64 / done.queries);
        run.figure("average_us", done.average_us);
        if let Some(knot) = &knot {
            let cpu = knot.child.process.cpu_us();
            let done = dnsperf(None, knot.address, &questions, seconds, None)?;
            run.peer_figure("knot", "queries_per_s", done.per_s);
            run.peer_figure("knot", "cpu_us_per_query", (knot.child.process.cpu_us() - cpu) as f64 / done.queries);
            run.peer_figure("knot", "average_us", done.average_us);
        }
    }
    changes(run, &up, agent, server, &questions).await
}

/// How soon after the server took a new service it is answered, while others ask.
async fn changes(run: &mut Run, up: &Up, agent: Process, server: SocketAddr, questions: &Path) -> Result<(), Error> {
    /// Questions a second meanwhile.
    const MEANWHILE: &str = "50000";
    let count = run.count("changes")?;
    let mut command = generator(Some(agent), server, questions, 60, Some(MEANWHILE));
    command.stdout(Stdio::null());
    let busy = Child::start(command, &[], &run.dir().join("dnsperf.log"))?;
    let asking = Asking::inside(agent)?;
    let mut line = up.server.door.two().await?;
    let mut waits = Vec::new();
    for number in 0..count {
        let name = format!("new-{number}");
        line.ask(&creation(&name)).await?;
        let taken = Instant::now();
        asking.wait(server, &name)?;
        waits.push(load::micros(taken.elapsed()));
    }
    drop(busy);
    run.figure("change_to_answer_p50_ms", percentile(&mut waits, 0.5) / 1e3);
    run.figure("change_to_answer_p99_ms", percentile(&mut waits, 0.99) / 1e3);
    Ok(())
}

pub fn creation(name: &str) -> Ask {
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"selector": {"app": name}, "ports": [{"name": "http", "port": 80}]},
    });
    Ask::post(&format!("/api/v1/namespaces/{NAMESPACE}/services"), &service)
}

/// The name server of the real node: it is on the node's own address.
///
/// # Errors
/// The node has none.
pub async fn server_of(up: &Up) -> Result<SocketAddr, Error> {
    let node = up.server.door.get("/api/v1/nodes/node-1").await?;
    let node = Value::parse(&node).map_err(Error::while_doing("read the node"))?;
    let addresses = node["status"]["addresses"].items();
    let found = addresses.iter().find(|one| one["type"].text() == "InternalIP");
    let text = found.map(|one| one["address"].text()).unwrap_or_default();
    let address = text.parse().map_err(|_| Error::doing("find the node's address", format!("{text:?} is none")))?;
    Ok(SocketAddr::new(address, 53))
}

/// All threads of a process.
fn pin_all(process: Process, cores: &[usize]) {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{}/task", process.0)) else { return };
    for task in tasks.flatten() {
        if let Some(id) = task.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) {
            machine::pin_thread(id, cores);
        }
    }
}

fn questions(folder: &Path, services: usize) -> Result<PathBuf, Error> {
    let path = folder.join("questions");
    let mut text = String::new();
    for number in 0..services {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "service-{}.{NAMESPACE}.svc.cluster.local A", number * 7919 % services);
    }
    std::fs::write(&path, text).map_err(Error::while_doing("write the questions"))?;
    Ok(path)
}

struct Done {
    per_s: f64,
    queries: f64,
    average_us: f64,
}

fn generator(
    inside: Option<Process>,
    server: SocketAddr,
    questions: &Path,
    seconds: u64,
    rate: Option<&str>,
) -> Command {
    let mut command = match inside {
        Some(process) => {
            let mut command = Command::new("nsenter");
            command.arg(format!("--net=/proc/{}/ns/net", process.0)).args(["taskset", "-c", "1", "dnsperf"]);
            command
        }
        None => {
            let mut command = Command::new("taskset");
            command.args(["-c", "1", "dnsperf"]);
            command
        }
    };
    command.args(["-s", &server.ip().to_string(), "-p", &server.port().to_string(), "-d"]).arg(questions);
    command.args(["-l", &seconds.to_string(), "-q", OUTSTANDING, "-c", "8"]);
    if let Some(rate) = rate {
        command.args(["-Q", rate]);
    }
    command
}

fn dnsperf(
    inside: Option<Process>,
    server: SocketAddr,
    questions: &Path,
    seconds: u64,
    rate: Option<&str>,
) -> Result<Done, Error> {
    let mut command = generator(inside, server, questions, seconds, rate);
    let output = command.stdin(Stdio::null()).output().map_err(Error::while_doing("run dnsperf"))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let field = |key: &str| {
        let line = said.lines().find_map(|line| line.trim().strip_prefix(key))?;
        line.split_whitespace().next()?.parse::<f64>().ok()
    };
    let lost = field("Queries lost:").unwrap_or(0.0);
    match (field("Queries per second:"), field("Queries completed:"), field("Average Latency (s):")) {
        (Some(per_s), Some(queries), Some(latency)) if queries > 0.0 && lost < queries / 100.0 => {
            Ok(Done { per_s, queries, average_us: latency * 1e6 })
        }
        _ => Err(Error::doing("run dnsperf", format!("{said} {}", String::from_utf8_lossy(&output.stderr)))),
    }
}

/// Single questions from within a network namespace.
pub struct Asking(UdpSocket);

impl Asking {
    pub fn inside(process: Process) -> Result<Asking, Error> {
        let failed = || Error::while_doing::<net::Error>("enter the node's network");
        let netns = net::Netns::open(Path::new(&format!("/proc/{}/ns/net", process.0))).map_err(failed())?;
        let socket = netns.run(|| UdpSocket::bind("0.0.0.0:0")).map_err(failed())?;
        let socket = socket.map_err(Error::while_doing("ask"))?;
        socket.set_read_timeout(Some(Duration::from_millis(50))).map_err(Error::while_doing("ask"))?;
        Ok(Asking(socket))
    }

    /// Asks for a service until it is answered.
    pub fn wait(&self, server: SocketAddr, service: &str) -> Result<(), Error> {
        let question = asker::question(&format!("{service}.{NAMESPACE}.svc.cluster.local"));
        let (began, mut answer) = (Instant::now(), [0; 512]);
        while began.elapsed() < ANSWER_TIMEOUT {
            self.0.send_to(&question, server).map_err(Error::while_doing("ask"))?;
            // One that got lost is asked again.
            if self.0.recv(&mut answer).is_ok_and(|bytes| asker::answers(&answer[..bytes])) {
                return Ok(());
            }
            std::thread::sleep(Duration::from_micros(300));
        }
        Err(Error::doing("see a service answered", format!("{service} is not within {} s", ANSWER_TIMEOUT.as_secs())))
    }
}

struct Knot {
    child: Child,
    address: SocketAddr,
}

impl Knot {
    /// knot with the same names, or `None` where it is not installed.
    fn start(run: &Run, services: usize) -> Result<Option<Knot>, Error> {
        let Some(path) = program("knotd") else { return Ok(None) };
        let (folder, port) = (run.dir().join("knot"), free_port()?);
        let failed = || Error::while_doing::<std::io::Error>("set knot up");
        std::fs::create_dir_all(folder.join("run")).map_err(failed())?;
        let mut zone = String::from(
            "$ORIGIN cluster.local.\n$TTL 30\n@ SOA ns.dns hostmaster 1 7200 1800 86400 5\n@ NS ns.dns\nns.dns A 10.96.0.10\n",
        );
        for number in 0..services {
            // Writing to a String cannot fail.
            let _ = writeln!(
                zone,
                "service-{number}.{NAMESPACE}.svc A 10.{}.{}.{}",
                96 + number / 65_536,
                number / 256 % 256,
                number % 256
            );
        }
        std::fs::write(folder.join("zone"), zone).map_err(failed())?;
        let at = folder.display();
        let config = format!(
            "server:\n    rundir: \"{at}/run\"\n    listen: 127.0.0.1@{port}\n    udp-workers: 1\n    tcp-workers: 1\n    \
             background-workers: 1\ndatabase:\n    storage: \"{at}\"\nlog:\n  - target: stderr\n    any: error\n\
             zone:\n  - domain: cluster.local\n    file: \"{at}/zone\"\n"
        );
        std::fs::write(folder.join("knot.conf"), config).map_err(failed())?;
        let mut command = Command::new(path);
        command.arg("-c").arg(folder.join("knot.conf"));
        let mut child = Child::start(command, &[0], &run.dir().join("knot.log"))?;
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let asking = Asking::inside(Process::own())?;
        let waited = asking.wait(address, "service-0");
        child.check()?;
        waited?;
        Ok(Some(Knot { child, address }))
    }
}
