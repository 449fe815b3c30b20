//! What runs out: file descriptors of the server and of an agent, memory of a container and of an agent.

use std::path::PathBuf;
use std::time::Duration;

use base::Rng;
use meta::json;
use rustix::process::{Pid, Resource, Rlimit, prlimit};

use super::cluster::{LOOK, Torture, eventually};
use crate::error::Error;
use crate::machine::Process;

const CGROUPS: &str = "/sys/fs/cgroup/memory";
/// What an agent's group may use more than it does: the next work does not fit.
const SPARE_BYTES: u64 = 64 * 1024;
/// By so much the limit is lowered at a time, until the kernel finds nothing more to free.
const STEP_BYTES: u64 = 1 << 20;
/// Questions to an agent at once, each over a connection of its own.
const ASKED: usize = 40;
const HUNGRY: &str = "hungry";

impl Torture {
    pub async fn starve_server_of_files(&mut self) -> Result<(), Error> {
        let server = self.server()?.process();
        starve_of_files(server, self.stand).await?;
        self.nodes_ready().await?;
        self.writes().await
    }

    pub async fn starve_agent_of_files(&mut self, rng: &mut Rng) -> Result<(), Error> {
        let agent = self.agent(rng)?;
        starve_of_files(agent, self.stand).await?;
        self.nodes_ready().await
    }

    /// A container takes more than it may: the kernel ends it, the cluster says why, and starts it again.
    pub async fn starve_container_of_memory(&mut self) -> Result<(), Error> {
        let hungry = json!(["sh", "-c", "sleep 1; tail /dev/zero"]);
        self.make_pod(HUNGRY, hungry, |container| container.set(&["resources", "limits", "memory"], "16Mi")).await?;
        let told = async || {
            let pod = self.pod(HUNGRY).await?;
            let status = pod.at(&["status", "containerStatuses"]).items().first().cloned().unwrap_or_default();
            let ended = &status["lastState"]["terminated"];
            let so = ended["reason"].text() == "OOMKilled" && ended["exitCode"].as_int() == Some(137);
            match status["restartCount"].as_int().unwrap_or(0) {
                0 => Ok(None),
                _ if so => Ok(Some(())),
                _ => Err(Error::doing("read why it ended", String::from_utf8_lossy(&ended.to_json()))),
            }
        };
        eventually("see a container ended for want of memory, and started again", told).await?;
        self.remove_pod(HUNGRY).await
    }

    /// An agent's own group has no memory left: whatever becomes of the agent, its containers stay.
    pub async fn starve_agent_of_memory(&mut self, rng: &mut Rng) -> Result<(), Error> {
        let agent = self.agent(rng)?;
        let group = memory_group(agent)?;
        let (limit, usage) = (group.join("memory.limit_in_bytes"), group.join("memory.usage_in_bytes"));
        let hits = group.join("memory.failcnt");
        let words = agent.words();
        let node = words.iter().skip_while(|word| *word != "--node").nth(1).cloned().unwrap_or_default();
        let path = format!("/api/v1/nodes/{node}/proxy/pods");
        let number = |path: &PathBuf| -> Result<u64, Error> {
            let text = std::fs::read_to_string(path).map_err(Error::while_doing("read what a group uses"))?;
            text.trim().parse().map_err(Error::while_doing("read what a group uses"))
        };
        let mut next = number(&usage)? + SPARE_BYTES;
        // What can be given up is; the last limit that was taken is one that there is no way below.
        while std::fs::write(&limit, next.to_string()).is_ok() && next > STEP_BYTES {
            next -= STEP_BYTES;
        }
        let (began, before) = (std::time::Instant::now(), number(&hits)?);
        while began.elapsed() < self.stand && agent.exists() {
            // Work for the agent: its node's own endpoints, through the server. What becomes of an answer is all the same.
            let door = self.server()?.door.clone();
            let mut asked = tokio::task::JoinSet::new();
            for _ in 0..ASKED {
                let (door, path) = (door.clone(), path.clone());
                asked.spawn(async move { door.get(&path).await.is_ok() });
            }
            tokio::time::sleep(LOOK).await;
        }
        let struck = number(&hits).is_ok_and(|hits| hits > before) || !agent.exists();
        std::fs::write(&limit, "-1").map_err(Error::while_doing("free an agent's group"))?;
        if !struck {
            return Err(Error::doing("take an agent's memory", "it never asked for more than it had"));
        }
        self.nodes_ready().await
    }
}

/// The process has the descriptors that it has, and gets no more, for a while.
pub async fn starve_of_files(process: Process, stand: Duration) -> Result<(), Error> {
    let pid = Pid::from_raw(i32::try_from(process.0).unwrap_or(0));
    let top = descriptors(process).into_iter().max().unwrap_or(0) + 1;
    let limit = |current| {
        let before = prlimit(pid, Resource::Nofile, current);
        before.map_err(Error::while_doing("limit a process"))
    };
    let all = rustix::process::getrlimit(Resource::Nofile);
    let before = limit(Rlimit { current: Some(top), maximum: all.maximum })?;
    tokio::time::sleep(stand).await;
    limit(before).map(|_| ())
}

/// The open descriptors of a process.
pub fn descriptors(process: Process) -> Vec<u64> {
    let Ok(all) = std::fs::read_dir(format!("/proc/{}/fd", process.0)) else { return Vec::new() };
    all.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// Where the limits of a process' memory stand.
fn memory_group(process: Process) -> Result<PathBuf, Error> {
    let text = std::fs::read_to_string(format!("/proc/{}/cgroup", process.0)).unwrap_or_default();
    let path = text.lines().find_map(|line| line.split_once(":memory:"));
    let (_, path) = path.ok_or_else(|| Error::doing("find an agent's group", "it is in none for memory"))?;
    Ok(PathBuf::from(format!("{CGROUPS}{path}")))
}
