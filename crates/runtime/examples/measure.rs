//! Measures containers of one sandbox and whole sandboxes, one after another (needs root):
//! `cargo run --release -p runtime --example measure [COUNT]`.

use runtime::testing::{Compression, TestImage};
use runtime::{Config, ContainerSpec, Embedded, NetworkNamespace, Runtime, SandboxSpec, State};
use std::time::Instant;

const IMAGE: &str = "measure.example/busybox:1";
const COUNT: usize = 40;
const PHASES: [&str; 6] = ["sandbox", "create", "start", "end", "remove", "sandbox's removal"];

/// Milliseconds since the last call.
struct Laps(Instant);

impl Laps {
    fn lap(&mut self) -> f64 {
        let ms = self.0.elapsed().as_secs_f64() * 1e3;
        self.0 = Instant::now();
        ms
    }
}

async fn container(runtime: &Embedded, sandbox: &str, number: usize, laps: &mut Laps) -> [f64; 4] {
    let mut spec = ContainerSpec::new(sandbox, &format!("c{number}"), IMAGE);
    spec.command = vec!["true".into()];
    let id = runtime.create(spec).await.expect("a container");
    let created = laps.lap();
    runtime.start(&id).await.expect("it starts");
    let started = laps.lap();
    let mut version = 0;
    while matches!(runtime.container(&id).await.expect("it is known").state, State::Created | State::Running) {
        version = runtime.changed(version).await.version;
    }
    let ended = laps.lap();
    runtime.remove(&id).await.expect("it goes");
    [created, started, ended, laps.lap()]
}

fn tell(title: &str, rounds: &mut [Vec<f64>]) {
    println!("{title}");
    let mut totals: Vec<f64> = (0..rounds[0].len()).map(|at| rounds.iter().map(|phase| phase[at]).sum()).collect();
    for (name, times) in PHASES.iter().zip(rounds).chain([(&"all", &mut totals)]) {
        times.sort_by(f64::total_cmp);
        if times.last().is_some_and(|most| *most > 0.0) {
            println!("  {name}: least {:.2} ms, median {:.2} ms", times[0], times[times.len() / 2]);
        }
    }
}

async fn measure(count: usize) {
    let dir = std::env::temp_dir().join(format!("runtime-measure-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("a folder");
    let archive = dir.join("busybox.tar");
    let image = TestImage { compression: Compression::None, ..TestImage::busybox() };
    image.write_oci(&archive, IMAGE).expect("an image");
    let runtime = Embedded::open(Config::new(dir.join("rt"), dir.join("state"))).expect("a runtime");
    runtime.found().await.expect("a runtime");
    runtime.load(archive).await.expect("the image loads");
    let group = format!("/runtime-measure-{}", std::process::id());
    let spec = |number: usize, network: NetworkNamespace| {
        let mut spec = SandboxSpec::new("measure", &format!("s{number}"), &format!("uid-{number}"));
        spec.cgroup_parent = format!("{group}/pod-{number}");
        (spec.network, spec.hostname) = (network, None);
        spec
    };
    let one = runtime.run_sandbox(spec(0, NetworkNamespace::Host)).await.expect("a sandbox");
    let mut rounds = vec![Vec::new(); PHASES.len()];
    for number in 0..count {
        let phases = container(&runtime, &one.id, number, &mut Laps(Instant::now())).await;
        for (at, ms) in [0.0].into_iter().chain(phases).chain([0.0]).enumerate() {
            rounds[at].push(ms);
        }
    }
    tell("containers in a sandbox that is there", &mut rounds);
    runtime.remove_sandbox(&one.id).await.expect("it goes");
    let mut rounds = vec![Vec::new(); PHASES.len()];
    for number in 1..=count {
        let mut laps = Laps(Instant::now());
        let made = runtime.run_sandbox(spec(number, NetworkNamespace::New)).await.expect("a sandbox");
        let first = laps.lap();
        let phases = container(&runtime, &made.id, number, &mut laps).await;
        runtime.remove_sandbox(&made.id).await.expect("it goes");
        for (at, ms) in [first].into_iter().chain(phases).chain([laps.lap()]).enumerate() {
            rounds[at].push(ms);
        }
    }
    tell("sandboxes with one container", &mut rounds);
    runtime.cgroups().remove(&group).expect("nothing stays");
    std::fs::remove_dir_all(&dir).expect("nothing stays");
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    runtime::shim::main_if_meant(&words);
    let count = words.first().and_then(|word| word.parse().ok()).unwrap_or(COUNT);
    let tokio = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    tokio.expect("a runtime of tasks").block_on(measure(count));
}
