//! What a cluster has on the machine, counted: before it is tortured, after, and when it is gone.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use super::cluster::{LOOK, Patience, Torture, command};
use super::limits::descriptors;
use crate::error::Error;
use crate::machine::Process;

/// Descriptors that come and go with what happens to be asked at the moment.
const FILES_SPARE: usize = 12;
const HIERARCHIES: &str = "/sys/fs/cgroup";
/// How long what a stopped cluster leaves to others may take to go.
const GOING: Duration = Duration::from_secs(10);

/// How many there are of each sort.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counted(BTreeMap<String, usize>);

impl Counted {
    fn add(&mut self, sort: &str, count: usize) {
        *self.0.entry(sort.to_owned()).or_default() += count;
    }

    /// What there is more of than before, one line each.
    fn beyond(&self, before: &Counted) -> Vec<String> {
        let more = self.0.iter().filter_map(|(sort, count)| {
            let was = before.0.get(sort).copied().unwrap_or(0);
            let spare = if sort.starts_with("files") { FILES_SPARE } else { 0 };
            (*count > was + spare).then(|| format!("{count} {sort}, {was} before"))
        });
        more.collect()
    }

    pub fn told(&self) -> String {
        self.0.iter().map(|(sort, count)| format!("{count} {sort}")).collect::<Vec<_>>().join(", ")
    }
}

/// Folders below `folder`, itself among them; 0 when there is none.
fn folders(folder: &Path) -> usize {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    let below = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|of_type| of_type.is_dir()));
    1 + below.map(|entry| folders(&entry.path())).sum::<usize>()
}

fn hierarchies() -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(HIERARCHIES).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).chain([HIERARCHIES.into()]).collect()
}

fn lines(text: &str) -> usize {
    text.lines().filter(|line| !line.trim().is_empty()).count()
}

fn mounts(process: Process) -> usize {
    lines(&std::fs::read_to_string(format!("/proc/{}/mounts", process.0)).unwrap_or_default())
}

/// Processes of the cluster that is named so.
fn processes(name: &str) -> Vec<Process> {
    let state = format!("/run/gantry-{name}");
    let ours = |process: &Process| process.words().iter().any(|word| word.starts_with(&state));
    Process::all().into_iter().filter(ours).collect()
}

impl Torture {
    pub fn count(&self) -> Result<Counted, Error> {
        let (name, mut counted) = (self.name()?, Counted::default());
        let (server, agents) = (self.server()?.process(), self.agents()?);
        for process in processes(&name) {
            let is = |what: &str| process.words().iter().any(|word| word == what);
            let shim = is("shim");
            counted.add(
                if shim {
                    "shims"
                } else if is("seed") {
                    "seeds"
                } else {
                    "agents"
                },
                1,
            );
            if shim {
                counted.add("processes in containers", process.children().len());
            }
        }
        for process in agents.iter().chain([&server]) {
            counted.add("mounts", mounts(*process));
            let sort = if *process == server { "files of the server" } else { "files of agents" };
            counted.add(sort, descriptors(*process).len());
            let net = format!("--net=/proc/{}/ns/net", process.0);
            for (sort, what) in [("links", "link"), ("addresses", "address"), ("routes", "route")] {
                let text = command(Command::new("nsenter").args([&net, "ip", "-o", what]))?;
                // Others make links on this machine, too; in the nodes' namespaces all are ours.
                let ours = |line: &&str| *process != server || line.contains(&format!("gt{name}"));
                counted.add(sort, text.lines().filter(ours).count());
            }
        }
        let groups = hierarchies().iter().map(|top| folders(&top.join(format!("gantry-{name}")))).sum();
        counted.add("control groups", groups);
        Ok(counted)
    }

    /// Waits until there is no more of anything than before.
    pub async fn no_more_than(&self, before: &Counted) -> Result<Counted, Error> {
        let patience = Patience::begin();
        loop {
            let now = self.count()?;
            let more = now.beyond(before);
            if more.is_empty() {
                return Ok(now);
            }
            if patience.is_over() {
                return Err(Error::doing("leave nothing behind", more.join("; ")));
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// Waits until nothing is left of the cluster that is named so.
pub async fn nothing_of(name: &str) -> Result<(), Error> {
    let began = Instant::now();
    loop {
        let left = left_of(name)?;
        if left.is_empty() {
            return Ok(());
        }
        if began.elapsed() > GOING {
            return Err(Error::doing("stop without a trace", left.join("; ")));
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn left_of(name: &str) -> Result<Vec<String>, Error> {
    let state = format!("/run/gantry-{name}");
    let mut left: Vec<String> =
        processes(name).iter().map(|one| format!("process {}", one.words().join(" "))).collect();
    let mounted = |process: &Process| {
        let text = std::fs::read_to_string(format!("/proc/{}/mounts", process.0)).unwrap_or_default();
        text.lines().any(|line| line.split(' ').nth(1).is_some_and(|at| at.starts_with(&state)))
    };
    left.extend(
        Process::all().iter().filter(|one| mounted(one)).map(|one| format!("a mount that process {} sees", one.0)),
    );
    let links = command(Command::new("ip").args(["-o", "link"]))?;
    let links = links.lines().filter(|line| line.contains(&format!("gt{name}")));
    left.extend(links.map(|line| format!("link {}", line.split(' ').nth(1).unwrap_or_default())));
    let tables = command(Command::new("nft").args(["list", "tables"]))?;
    left.extend(tables.lines().filter(|line| line.contains(&format!("gt{name}"))).map(str::to_owned));
    let groups = hierarchies().into_iter().map(|top| top.join(format!("gantry-{name}"))).filter(|path| path.exists());
    left.extend(groups.map(|path| format!("control group {}", path.display())));
    if Path::new(&state).exists() {
        left.push(format!("folder {state}"));
    }
    Ok(left)
}
