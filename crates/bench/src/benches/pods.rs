//! One real node: from a pod's creation through the API to the watch that shows it ready, one after another and many at
//! once; and single containers on the runtime, crun and runc beside with the same root file system.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, mpsc};
use std::time::Instant;

use meta::json;
use runtime::testing::{Compression, TestImage};
use runtime::{Config, ContainerSpec, Embedded, NetworkNamespace, Runtime, SandboxSpec, State};

use crate::error::Error;
use crate::frame::{Bench, Run, Want, figure, option, runtime};
use crate::load::{self, Maker, Until};
use crate::machine::{Process, program};
use crate::numbers::{median, percentile};
use crate::real::{IMAGE, Readiness, Up, creation, deletion};

const NAMESPACE: &str = "bench";

pub const BENCH: Bench = Bench {
    name: "pods",
    about: "Pods on a real node, from creation to ready; containers on the runtime, crun and runc beside",
    options: &[
        option("serial", "30", "2", "Pods one after another"),
        option("pods", "90", "4", "Pods at once"),
        option("containers", "40", "2", "Containers one after another, for each runtime"),
    ],
    figures: &[
        figure("p50_ms", Want::AtMost(500.0, 50.0)),
        figure("p99_ms", Want::AtMost(500.0, 50.0)),
        figure("pods_per_s", Want::AtLeast(30.0, 150.0)),
        figure("container_ms", Want::OfPeer(1.0, 0.5)),
    ],
    peer: Some("crun"),
    needs_root: true,
    run,
};

fn run(run: &mut Run) -> Result<(), Error> {
    runtime()?.block_on(through_the_api(run))?;
    containers(run)
}

async fn through_the_api(run: &mut Run) -> Result<(), Error> {
    let up = Up::start(run, "up").await?;
    up.ready().await?;
    up.server.door.namespace(NAMESPACE).await?;
    let agent = up.agent()?;
    let (pods, _watch) = Readiness::watch(&up.server, NAMESPACE).await?;
    let mut line = up.server.door.two().await?;
    let (mut waits, mut ends) = (Vec::new(), Vec::new());
    for number in 0..run.count("serial")? {
        let names = [format!("serial-{number}")];
        let sent = Instant::now();
        line.ask(&creation(NAMESPACE, &names[0])).await?;
        pods.wait(&names, "ready", |seen| seen.ready.is_some()).await?;
        let ready = pods.of(&names[0]).ready.unwrap_or(sent);
        waits.push(load::micros(ready.duration_since(sent)));
        let sent = Instant::now();
        line.ask(&deletion(NAMESPACE, &names[0])).await?;
        pods.wait(&names, "gone", |seen| seen.gone).await?;
        ends.push(load::micros(sent.elapsed()));
    }
    run.figure("p50_ms", percentile(&mut waits, 0.5) / 1e3);
    run.figure("p99_ms", percentile(&mut waits, 0.99) / 1e3);
    run.figure("end_p50_ms", percentile(&mut ends, 0.5) / 1e3);

    let count = run.count("pods")?;
    let names: Vec<String> = (0..count).map(|number| format!("burst-{number}")).collect();
    let make: Maker = Arc::new(|number| creation(NAMESPACE, &format!("burst-{number}")));
    let cpu = (up.server.process().cpu_us(), agent.cpu_us());
    let began = Instant::now();
    load::piped(up.server.process(), &up.server.door, 16, make, Until::Requests(count)).await?;
    pods.wait(&names, "ready", |seen| seen.ready.is_some()).await?;
    let mut waits: Vec<u32> = names
        .iter()
        .filter_map(|name| pods.of(name).ready.map(|ready| load::micros(ready.duration_since(began))))
        .collect();
    run.figure("pods_per_s", count as f64 / (percentile(&mut waits, 1.0) / 1e6));
    run.figure("burst_p99_ms", percentile(&mut waits, 0.99) / 1e3);
    run.figure("server_cpu_ms_per_pod", (up.server.process().cpu_us() - cpu.0) as f64 / 1e3 / count as f64);
    run.figure("agent_cpu_ms_per_pod", (agent.cpu_us() - cpu.1) as f64 / 1e3 / count as f64);
    run.figure("agent_rss_mb", agent.rss_mb());
    let shims: Vec<f64> = Process::all_of(&["gantry", "shim"]).iter().map(|shim| shim.rss_mb()).collect();
    run.figure("shim_rss_mb", median(&shims));
    let began = Instant::now();
    let make: Maker = Arc::new(|number| deletion(NAMESPACE, &format!("burst-{number}")));
    load::piped(up.server.process(), &up.server.door, 16, make, Until::Requests(count)).await?;
    pods.wait(&names, "gone", |seen| seen.gone).await?;
    run.figure("ends_per_s", count as f64 / began.elapsed().as_secs_f64());
    Ok(())
}

/// Create, start, wait for the end, delete: ours in a pod's sandbox that is there, with the machine's network; the others
/// with the same namespaces.
fn containers(run: &mut Run) -> Result<(), Error> {
    let peers = ["crun", "runc"].into_iter().filter(|name| !run.alone && program(name).is_some()).collect();
    let race = Race { dir: run.dir().to_owned(), peers, count: run.count("containers")? };
    run.note("crun and runc run with their handling of control groups as on this machine: crun without, runc with");
    run.note("what runtimes note of containers lies in memory, as it does on a node");
    // In a thread whose mounts are its own.
    let measured = std::thread::scope(|scope| scope.spawn(|| race.run()).join());
    let mut times = measured.map_err(|_| Error::doing("run containers", "the thread that does it is gone"))??;
    run.figure("container_ms", median(&times.own));
    for (peer, times) in race.peers.iter().zip(&mut times.peers) {
        match *peer {
            "crun" => run.peer_figure("crun", "container_ms", median(times)),
            peer => run.peer_figure("crun", &format!("{peer}_container_ms"), median(times)),
        }
    }
    run.figure("sandbox_and_container_ms", median(&times.whole));
    Ok(())
}

/// Runtimes that take turns.
struct Race {
    dir: PathBuf,
    peers: Vec<&'static str>,
    count: usize,
}

/// Milliseconds of each container.
#[derive(Default)]
struct Times {
    own: Vec<f64>,
    peers: Vec<Vec<f64>>,
    /// With a sandbox of its own each.
    whole: Vec<f64>,
}

impl Race {
    fn run(&self) -> Result<Times, Error> {
        own_mounts().map_err(Error::while_doing("have mounts of its own"))?;
        let state = self.dir.join("state");
        node::volumes::off_the_disk(&state).map_err(Error::while_doing("have the state in memory"))?;
        let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build();
        tokio.map_err(Error::while_doing("start the runtime"))?.block_on(self.run_in(state))
    }

    async fn run_in(&self, state: PathBuf) -> Result<Times, Error> {
        let image = TestImage { compression: Compression::None, ..TestImage::busybox() };
        let archive = self.dir.join("busybox.tar");
        image.write_oci(&archive, IMAGE).map_err(Error::while_doing("make an image"))?;
        let runtime = Embedded::open(Config::new(self.dir.join("rt"), state.join("rt")));
        let runtime = runtime.map_err(Error::while_doing("open the runtime"))?;
        runtime.found().await.map_err(Error::while_doing("open the runtime"))?;
        runtime.load(archive).await.map_err(Error::while_doing("load the image"))?;
        let others = Others::start(Bundle::make(&self.dir, &state, &image)?)?;
        let outcome = self.compare(&runtime, &others).await;
        // Whatever happened, nothing stays.
        for sandbox in runtime.sandboxes().await.map_err(Error::while_doing("list the sandboxes"))? {
            runtime.remove_sandbox(&sandbox.id).await.map_err(Error::while_doing("remove a sandbox"))?;
        }
        clean(&group());
        outcome
    }

    async fn compare(&self, runtime: &Embedded, others: &Others) -> Result<Times, Error> {
        let mut times = Times { peers: vec![Vec::new(); self.peers.len()], ..Times::default() };
        let mut sandbox = SandboxSpec::new(NAMESPACE, "one", "uid-one");
        sandbox.cgroup_parent = format!("/{}/pod-one", group());
        sandbox.network = NetworkNamespace::Host;
        sandbox.hostname = None;
        let status = runtime.run_sandbox(sandbox.clone()).await.map_err(Error::while_doing("make a sandbox"))?;
        for number in 0..self.count {
            times.own.push(one(runtime, &status.id, number).await?);
            for (peer, times) in self.peers.iter().zip(&mut times.peers) {
                times.push(others.once(peer, number)?);
            }
        }
        let removed = runtime.remove_sandbox(&status.id).await;
        removed.map_err(Error::while_doing("remove the sandbox"))?;
        for number in 0..self.count {
            let mut spec = sandbox.clone();
            (spec.name, spec.uid) = (format!("s{number}"), format!("uid-s{number}"));
            spec.cgroup_parent = format!("/{}/pod-{number}", group());
            spec.network = NetworkNamespace::New;
            let began = Instant::now();
            let status = runtime.run_sandbox(spec).await.map_err(Error::while_doing("make a sandbox"))?;
            one(runtime, &status.id, number).await?;
            runtime.remove_sandbox(&status.id).await.map_err(Error::while_doing("remove a sandbox"))?;
            times.whole.push(began.elapsed().as_secs_f64() * 1e3);
        }
        Ok(times)
    }
}

/// The control group of this run.
fn group() -> String {
    format!("gantry-bench-{}", std::process::id())
}

/// One container from nothing to nothing, in milliseconds.
async fn one(runtime: &Embedded, sandbox: &str, number: usize) -> Result<f64, Error> {
    let mut spec = ContainerSpec::new(sandbox, &format!("c{number}"), IMAGE);
    spec.command = vec!["true".into()];
    let began = Instant::now();
    let failed = || Error::while_doing::<runtime::Error>("run a container");
    let id = runtime.create(spec).await.map_err(failed())?;
    runtime.start(&id).await.map_err(failed())?;
    let mut version = 0;
    loop {
        let status = runtime.container(&id).await.map_err(failed())?;
        if !matches!(status.state, State::Created | State::Running) {
            break;
        }
        version = runtime.changed(version).await.version;
    }
    runtime.remove(&id).await.map_err(failed())?;
    Ok(began.elapsed().as_secs_f64() * 1e3)
}

/// Control groups that are empty now.
fn clean(name: &str) {
    let Ok(hierarchies) = std::fs::read_dir("/sys/fs/cgroup") else { return };
    for hierarchy in hierarchies.flatten().map(|entry| entry.path()).chain(["/sys/fs/cgroup".into()]) {
        let root = hierarchy.join(name);
        if let Ok(pods) = std::fs::read_dir(&root) {
            for pod in pods.flatten() {
                // What is no folder, or not ours, stays.
                let _ = std::fs::remove_dir(pod.path());
            }
            let _ = std::fs::remove_dir(&root);
        }
    }
}

/// An OCI bundle for the others.
struct Bundle {
    folder: PathBuf,
    state: PathBuf,
}

impl Bundle {
    fn make(dir: &Path, state: &Path, image: &TestImage) -> Result<Bundle, Error> {
        let (folder, state) = (dir.join("bundle"), state.join("others"));
        let root = folder.join("rootfs");
        let failed = || Error::while_doing::<std::io::Error>("make a bundle");
        std::fs::create_dir_all(&root).map_err(failed())?;
        std::fs::create_dir_all(&state).map_err(failed())?;
        for (number, layer) in image.layers.iter().enumerate() {
            let archive = dir.join(format!("layer-{number}.tar"));
            std::fs::write(&archive, layer).map_err(failed())?;
            let status = Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(&root).status().map_err(failed())?;
            if !status.success() {
                return Err(Error::doing("make a bundle", "tar failed"));
            }
        }
        std::fs::write(folder.join("config.json"), config().to_json()).map_err(failed())?;
        Ok(Bundle { folder, state })
    }

    /// One container from nothing to nothing, in milliseconds.
    fn once(&self, peer: &str, number: usize) -> Result<f64, Error> {
        let mut command = Command::new(peer);
        command.arg("--root").arg(self.state.join(peer));
        if peer == "crun" {
            command.arg("--cgroup-manager=disabled");
        }
        command.args(["run", "--bundle"]).arg(&self.folder).arg(format!("bench-{number}"));
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let began = Instant::now();
        let output = command.output().map_err(|error| Error::doing(format!("run {peer}"), error))?;
        let ms = began.elapsed().as_secs_f64() * 1e3;
        if !output.status.success() {
            return Err(Error::doing(format!("run {peer}"), String::from_utf8_lossy(&output.stderr)));
        }
        Ok(ms)
    }
}

/// A thread from which the others are started. Its mounts are its own, and the empty tree of version 2 that stands among
/// control groups of version 1 on some machines is not there: crun refuses to start beside it.
struct Others {
    asks: mpsc::Sender<(&'static str, usize)>,
    answers: mpsc::Receiver<Result<f64, Error>>,
}

impl Others {
    fn start(bundle: Bundle) -> Result<Others, Error> {
        let (asks, asked) = mpsc::channel::<(&'static str, usize)>();
        let (answer, answers) = mpsc::channel();
        let work = move || {
            let own = own_mounts().map(|()| {
                // Where there is no such tree nothing needs to go.
                let _ = rustix::mount::unmount("/sys/fs/cgroup/unified", rustix::mount::UnmountFlags::DETACH);
            });
            for (peer, number) in asked {
                let outcome = match &own {
                    Ok(()) => bundle.once(peer, number),
                    Err(error) => Err(Error::doing("have mounts of its own", error)),
                };
                if answer.send(outcome).is_err() {
                    return;
                }
            }
        };
        let started = std::thread::Builder::new().name("others".into()).spawn(work);
        started.map_err(Error::while_doing("start a thread"))?;
        Ok(Others { asks, answers })
    }

    fn once(&self, peer: &'static str, number: usize) -> Result<f64, Error> {
        self.asks.send((peer, number)).map_err(Error::while_doing("ask the thread of others"))?;
        self.answers.recv().map_err(Error::while_doing("ask the thread of others"))?
    }
}

/// Parts the calling thread's mounts from everybody else's.
fn own_mounts() -> std::io::Result<()> {
    use rustix::mount::{MountPropagationFlags, mount_change};
    use rustix::thread::UnshareFlags;
    // SAFETY: the thread keeps no descriptor or path that others rely on; it only starts processes.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::FS) }?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    Ok(())
}

/// What the others run: the same process in the same namespaces.
fn config() -> meta::Value {
    let mount = |destination: &str, of_type: &str, options: &[&str]| {
        let options: Vec<meta::Value> = options.iter().map(|option| meta::Value::from(*option)).collect();
        json!({"destination": destination, "type": of_type, "source": of_type, "options": options})
    };
    let capabilities: Vec<meta::Value> =
        ["CAP_CHOWN", "CAP_KILL", "CAP_SETUID", "CAP_SETGID"].map(meta::Value::from).into();
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false, "user": {"uid": 0, "gid": 0}, "args": ["true"], "env": ["PATH=/bin:/usr/bin"], "cwd": "/",
            "capabilities": {"bounding": (capabilities.clone()), "effective": (capabilities.clone()), "permitted": capabilities},
        },
        "root": {"path": "rootfs", "readonly": false},
        "mounts": [
            (mount("/proc", "proc", &["nosuid", "noexec", "nodev"])),
            (mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"])),
        ],
        "linux": {"namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}]},
    })
}
