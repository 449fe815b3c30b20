//! A runtime in a directory of its own, and what tests ask of it over and over.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use runtime::testing::{Compression, TestImage};
use runtime::{
    Config, ContainerSpec, ContainerStatus, Embedded, LogSpec, Output, Runtime, SandboxSpec, SandboxStatus, Session,
    State,
};

pub const IMAGE: &str = "registry.test/busybox:1";
const PATIENCE: Duration = Duration::from_secs(30);

/// One runtime with a busybox image. Dropping it checks that nothing is left on the machine.
pub struct Lab {
    pub dir: tempfile::TempDir,
    pub runtime: Arc<dyn Runtime>,
    pub embedded: Embedded,
    /// Below which cgroup all pods of this lab are.
    pub cgroup: String,
}

impl Lab {
    pub async fn new() -> Lab {
        let lab = Lab::empty().await;
        let archive = lab.dir.path().join("busybox.tar");
        // Packing is slow in test builds; the tests of registries do it.
        let image = TestImage { compression: Compression::None, ..TestImage::busybox() };
        image.write_oci(&archive, IMAGE).unwrap();
        lab.runtime.load(archive).await.unwrap();
        lab
    }

    pub async fn empty() -> Lab {
        let dir = tempfile::Builder::new().prefix("gantry-rt-").tempdir().unwrap();
        let embedded = Embedded::open(Lab::config(dir.path())).unwrap();
        embedded.found().await.unwrap();
        let cgroup = format!("/{}", dir.path().file_name().unwrap().to_string_lossy());
        Lab { runtime: Arc::new(embedded.clone()), embedded, dir, cgroup }
    }

    pub fn config(dir: &Path) -> Config {
        Config::new(dir.join("root"), dir.join("state"))
    }

    /// Opens the same directories with other settings.
    pub fn replace(&mut self, change: impl FnOnce(&mut Config)) {
        let mut config = Lab::config(self.dir.path());
        change(&mut config);
        self.embedded = Embedded::open(config).unwrap();
        self.runtime = Arc::new(self.embedded.clone());
    }

    pub fn sandbox_spec(&self, name: &str) -> SandboxSpec {
        let mut spec = SandboxSpec::new("default", name, &format!("uid-{name}"));
        spec.cgroup_parent = format!("{}/pod-{name}", self.cgroup);
        spec
    }

    pub async fn sandbox(&self, name: &str) -> SandboxStatus {
        self.runtime.run_sandbox(self.sandbox_spec(name)).await.unwrap()
    }

    /// A container spec that runs a shell script and logs.
    pub fn shell(&self, sandbox: &str, script: &str) -> ContainerSpec {
        let mut spec = ContainerSpec::new(sandbox, "main", IMAGE);
        spec.command = vec!["sh".into(), "-c".into(), script.into()];
        spec.log = Some(LogSpec { path: self.log_path(), max_bytes: 0, max_files: 0 });
        spec
    }

    pub fn log_path(&self) -> PathBuf {
        self.dir.path().join("logs/0.log")
    }

    /// Creates and starts.
    pub async fn run(&self, spec: ContainerSpec) -> String {
        let id = self.runtime.create(spec).await.unwrap();
        self.runtime.start(&id).await.unwrap();
        id
    }

    /// Runs a script to its end in a container of its own and returns (status, its log without times).
    pub async fn script(
        &self,
        change: impl FnOnce(&mut ContainerSpec),
        script: &str,
    ) -> (ContainerStatus, Vec<String>) {
        let name = format!("s{}", self.runtime.sandboxes().await.unwrap().len());
        let sandbox = self.sandbox(&name).await;
        let mut spec = self.shell(&sandbox.id, script);
        change(&mut spec);
        let log = spec.log.as_ref().unwrap().path.clone();
        let _ = std::fs::remove_file(&log);
        let id = self.run(spec).await;
        let status = self.ended(&id).await;
        let lines = log_lines(&log);
        self.runtime.remove_sandbox(&sandbox.id).await.unwrap();
        (status, lines)
    }

    /// Waits, without polling, until the container has ended.
    pub async fn ended(&self, id: &str) -> ContainerStatus {
        let wait = async {
            let mut version = 0;
            loop {
                let status = self.runtime.container(id).await.unwrap();
                if !matches!(status.state, State::Created | State::Running) {
                    return status;
                }
                version = self.runtime.changed(version).await.version;
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.expect("the container ends")
    }

    /// Ends everything and counts what is left.
    pub async fn close(self) {
        self.clear().await;
    }

    async fn clear(&self) {
        for sandbox in self.runtime.sandboxes().await.unwrap() {
            self.runtime.remove_sandbox(&sandbox.id).await.unwrap();
        }
        let _ = self.embedded.cgroups().remove(&self.cgroup);
        let path = self.dir.path().display().to_string();
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        let mounts: Vec<&str> = mounts.lines().filter(|l| l.contains(&path)).collect();
        assert!(mounts.is_empty(), "mounts are left: {mounts:?}");
        assert!(!self.embedded.cgroups().exists(&self.cgroup), "cgroups are left");
        let shims = shims(&path);
        assert!(shims.is_empty(), "shims are left: {shims:?}");
        for dir in ["root/containers", "state/pods"] {
            let left: Vec<_> = std::fs::read_dir(self.dir.path().join(dir)).unwrap().collect();
            assert!(left.is_empty(), "{dir} is not empty: {left:?}");
        }
    }
}

impl Drop for Lab {
    /// A test that failed must not leave its containers to the next one; one that did not has closed what it opened.
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert!(!self.embedded.cgroups().exists(&self.cgroup), "a lab with pods is to be closed");
            return;
        }
        let (config, cgroup) = (Lab::config(self.dir.path()), self.cgroup.clone());
        let clearing = std::thread::spawn(move || {
            tokio::runtime::Runtime::new().unwrap().block_on(async {
                let runtime = Embedded::open(config).unwrap();
                for sandbox in runtime.found().await.unwrap().sandboxes {
                    let _ = runtime.remove_sandbox(&sandbox.id).await;
                }
                let _ = runtime.cgroups().remove(&cgroup);
            });
        });
        let _ = clearing.join();
    }
}

/// Processes whose command line names the directory, when they have not ended within a while.
pub fn shims(dir: &str) -> Vec<String> {
    for attempt in 0.. {
        let found: Vec<String> = processes("shim", dir).into_iter().map(|(_, words)| words).collect();
        if found.is_empty() || attempt == 200 {
            return found;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Vec::new()
}

/// Id and command line of the processes of this sort whose command line names the directory.
pub fn processes(word: &str, dir: &str) -> Vec<(i32, String)> {
    std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|e| Some((e.file_name().to_str()?.parse().ok()?, e.path())))
        .filter_map(|(pid, path)| Some((pid, std::fs::read_to_string(path.join("cmdline")).ok()?)))
        .filter(|(_, words)| words.contains(dir) && words.split('\0').any(|one| one == word))
        .collect()
}

/// `stdout F text` per line, without the time.
pub fn log_lines(path: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.split_terminator('\n').map(|l| l.split_once(' ').unwrap().1.to_owned()).collect()
}

/// Only the text of complete stdout lines.
pub fn texts(lines: &[String]) -> Vec<&str> {
    lines.iter().filter_map(|l| l.strip_prefix("stdout F ")).collect()
}

/// Reads a session to its end: stdout, stderr, exit code.
pub async fn drain(session: &mut Session) -> (String, String, i32) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let reading = async {
        while let Some(output) = session.output.recv().await {
            match output {
                Output::Stdout(bytes) => out.extend_from_slice(&bytes),
                Output::Stderr(bytes) => err.extend_from_slice(&bytes),
                Output::Exit { code } => return code,
            }
        }
        panic!("the session ended without an exit code")
    };
    let code = tokio::time::timeout(PATIENCE, reading).await.expect("the process ends");
    (String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap(), code)
}

/// Reads a session until its output holds `text`.
pub async fn read_until(session: &mut Session, text: &str) -> String {
    let mut all = String::new();
    let reading = async {
        while !all.contains(text) {
            match session.output.recv().await {
                Some(Output::Stdout(bytes) | Output::Stderr(bytes)) => all.push_str(&String::from_utf8_lossy(&bytes)),
                other => panic!("ended with {other:?} before {text:?} came; got {all:?}"),
            }
        }
    };
    if tokio::time::timeout(PATIENCE, reading).await.is_err() {
        panic!("{text:?} did not come");
    }
    all
}
