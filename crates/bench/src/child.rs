//! The system under test: a process of its own, ended with the bench, whatever happens.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child as Started, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::door::Door;
use crate::error::Error;
use crate::frame::Run;
use crate::machine::{self, Process};

/// How long a server may take until it answers.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a child may take to end when asked to.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_millis(2);

/// A process that ends with its owner.
pub struct Child {
    started: Started,
    pub process: Process,
    log: PathBuf,
}

impl Child {
    /// Starts `command` on the processors `cores` (all when empty); what it says goes into `log`.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(mut command: Command, cores: &[usize], log: &Path) -> Result<Child, Error> {
        let program = command.get_program().to_string_lossy().into_owned();
        let file = File::create(log).map_err(|error| Error::doing("write a log", error))?;
        let again = file.try_clone().map_err(|error| Error::doing("write a log", error))?;
        command.stdin(Stdio::null()).stdout(file).stderr(again);
        // SAFETY: between fork and exec only one system call is made; it takes no lock and no memory.
        unsafe {
            command.pre_exec(|| {
                rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))?;
                Ok(())
            });
        }
        if !cores.is_empty() {
            machine::pin(cores);
        }
        let started = command.spawn();
        if !cores.is_empty() {
            machine::unpin();
        }
        let started = started.map_err(|error| Error::doing(format!("start {program}"), error))?;
        let process = Process(started.id());
        Ok(Child { started, process, log: log.to_owned() })
    }

    /// All that it said.
    pub fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Whether it still runs; an error tells its last words.
    ///
    /// # Errors
    /// It ended.
    pub fn check(&mut self) -> Result<(), Error> {
        match self.started.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => {
                let said = self.said();
                let tail: Vec<&str> = said.lines().rev().take(5).collect();
                let tail: Vec<&str> = tail.into_iter().rev().collect();
                Err(Error::doing("keep the process running", format!("{status}: {}", tail.join(" / "))))
            }
            Err(error) => Err(Error::doing("look at the process", error)),
        }
    }

    fn signal(&self, signal: rustix::process::Signal) {
        if let Some(pid) = rustix::process::Pid::from_raw(i32::try_from(self.process.0).unwrap_or(0)) {
            // One that is gone already needs no signal.
            let _ = rustix::process::kill_process(pid, signal);
        }
    }

    /// Ends it and waits for it.
    pub fn stop(&mut self) {
        self.signal(rustix::process::Signal::TERM);
        let asked = Instant::now();
        loop {
            match self.started.try_wait() {
                Ok(None) if asked.elapsed() < STOP_TIMEOUT => std::thread::sleep(LOOK),
                Ok(None) => {
                    self.signal(rustix::process::Signal::KILL);
                    let _ = self.started.wait();
                    return;
                }
                _ => return,
            }
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A control plane under test.
pub struct Server {
    pub child: Child,
    pub data: PathBuf,
    pub door: Door,
    /// From the start of the process to its first good answer.
    pub ready_ms: f64,
}

impl Server {
    /// Starts `gantry server` in a new folder on a free port, on the processors `cores` (all when empty).
    ///
    /// # Errors
    /// It does not come up.
    pub async fn start(run: &Run, name: &str, cores: &[usize]) -> Result<Server, Error> {
        let data = run.dir().join(name);
        std::fs::create_dir_all(&data).map_err(Error::while_doing("make a folder"))?;
        let mut command = Command::new(&run.binary);
        command.args(["server", "--listen", "127.0.0.1:0", "--log", "warn", "--data"]).arg(&data);
        Server::of(command, data, cores, &run.dir().join(format!("{name}.log"))).await
    }

    /// Starts `command`, which leaves a kubeconfig in `data`, and waits until it answers.
    ///
    /// # Errors
    /// It does not come up.
    pub async fn of(command: Command, data: PathBuf, cores: &[usize], log: &Path) -> Result<Server, Error> {
        let began = Instant::now();
        let mut child = Child::start(command, cores, log)?;
        loop {
            child.check()?;
            if began.elapsed() > START_TIMEOUT {
                return Err(Error::doing("start the server", format!("no answer in {} s", START_TIMEOUT.as_secs())));
            }
            let kubeconfig = std::fs::read_to_string(data.join("kubeconfig")).unwrap_or_default();
            if let Some(door) = door_of(&kubeconfig)
                && door.get("/readyz").await.is_ok()
            {
                let ready_ms = began.elapsed().as_secs_f64() * 1e3;
                return Ok(Server { child, data, door, ready_ms });
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    pub fn process(&self) -> Process {
        self.child.process
    }
}

/// The door of a kubeconfig that gantry wrote; `None` while it is not whole.
pub fn door_of(kubeconfig: &str) -> Option<Door> {
    let field = |key: &str| kubeconfig.lines().find_map(|line| line.trim().strip_prefix(key)).map(str::trim);
    let ca = STANDARD.decode(field("certificate-authority-data:")?).ok()?;
    Door::new(field("server:")?, &ca, field("token:")?).ok()
}
