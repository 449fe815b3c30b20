//! What a cluster of `gantry up`, or a node of `gantry agent`, has on the machine besides its data folder, under which
//! names, and how it goes away.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use net::{Dataplane, Lan, LanConfig, Netns, PodLinks};
use rustix::process::{Pid, Signal};

use crate::error::Error;

/// How long killed processes may take to be gone.
const GONE_WAIT: Duration = Duration::from_secs(10);
const GONE_POLL: Duration = Duration::from_millis(5);
/// How long containers have to end by themselves when a cluster is stopped.
const END_WAIT: Duration = Duration::from_secs(3);
const HIERARCHIES: &str = "/sys/fs/cgroup";

/// What a data folder's cluster is called on the machine.
#[derive(Clone, Debug)]
pub struct Names {
    /// Of links and tables.
    pub prefix: String,
    /// Sockets, namespaces: what need not outlive the machine.
    pub state: PathBuf,
    /// Below each hierarchy's root.
    pub cgroup: String,
    pub seed: u64,
    /// What all names have in common.
    short: String,
}

/// Where the common part of the names is told, in the data folder, for whoever looks what is left.
const NAME_FILE: &str = "name";

impl Names {
    /// `data` is absolute.
    pub fn of(data: &Path) -> Names {
        let seed = base::hash64(data.as_os_str().as_encoded_bytes());
        let short = format!("{:07x}", seed & 0xfff_ffff);
        Names {
            prefix: format!("gt{short}"),
            state: PathBuf::from(format!("/run/gantry-{short}")),
            cgroup: format!("/gantry-{short}"),
            seed,
            short,
        }
    }

    pub fn tell(&self, data: &Path) -> Result<(), Error> {
        let file = data.join(NAME_FILE);
        std::fs::write(&file, format!("{}\n", self.short)).map_err(Error::file("write", file))
    }

    pub fn lan(&self, subnet: net::Cidr) -> LanConfig {
        LanConfig { prefix: self.prefix.clone(), subnet, netns_dir: self.state.join("nodes") }
    }
}

/// What a node of `gantry agent` has on the machine: where its state lies, and its cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub state: PathBuf,
    pub cgroup: String,
}

/// Where an agent tells its place, in its data folder, for whoever takes it away.
const PLACE_FILE: &str = "place";

impl Place {
    pub fn tell(&self, data: &Path) -> Result<(), Error> {
        let file = data.join(PLACE_FILE);
        let text = format!("{}\n{}\n", self.state.display(), self.cgroup);
        std::fs::write(&file, text).map_err(Error::file("write", file))
    }

    /// The place of the agent that worked in a folder; `None` when none did.
    pub fn of(data: &Path) -> Option<Place> {
        let text = std::fs::read_to_string(data.join(PLACE_FILE)).ok()?;
        let (state, cgroup) = text.trim_end().split_once('\n')?;
        let good = state.starts_with('/') && !cgroup.trim_matches('/').is_empty();
        good.then(|| Place { state: PathBuf::from(state), cgroup: cgroup.to_owned() })
    }

    /// Ends and removes everything of the node: processes, cgroups, links, tables, routes, mounts, sockets. To be run in
    /// the network namespace of the node.
    pub fn sweep(&self) -> Result<(), Error> {
        kill(&self.state, &self.cgroup)?;
        remove_cgroups(&self.cgroup)?;
        let mut links = PodLinks::open(&Netns::current()?)?;
        for name in links.list()? {
            links.remove_link(&name)?;
        }
        Dataplane::open()?.remove()?;
        remove_state(&self.state)
    }
}

/// Ends and removes everything: processes, links, tables, namespaces, cgroups, sockets. Nothing there is no error.
pub fn sweep(names: &Names) -> Result<(), Error> {
    kill(&names.state, &names.cgroup)?;
    remove_cgroups(&names.cgroup)?;
    // The subnet has no part in what things are called.
    let any = net::Cidr { address: std::net::Ipv4Addr::new(10, 192, 0, 0).into(), prefix: 24 };
    Lan::remove(&names.lan(any))?;
    remove_state(&names.state)
}

fn remove_state(state: &Path) -> Result<(), Error> {
    unmount_below(state);
    match std::fs::remove_dir_all(state) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::File { doing: "remove", path: state.to_owned(), error })
        }
        _ => Ok(()),
    }
}

/// Asks containers to end, and waits a little.
pub async fn ask_to_end(names: &Names) {
    let pods = |pids: BTreeSet<i32>| -> BTreeSet<i32> {
        pids.into_iter().filter(|pid| !is_ours(*pid, &names.state)).collect()
    };
    let asked = pods(in_cgroups(&names.cgroup));
    signal(&asked, Signal::TERM);
    let until = Instant::now() + END_WAIT;
    while Instant::now() < until && !pods(in_cgroups(&names.cgroup)).is_empty() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Kills agents, shims and containers, until none is left.
fn kill(state: &Path, cgroup: &str) -> Result<(), Error> {
    let until = Instant::now() + GONE_WAIT;
    loop {
        let mut pids = in_cgroups(cgroup);
        pids.extend(processes().filter(|pid| is_ours(*pid, state)));
        // Dead ones that nobody has waited for yet hold nothing any more.
        pids.retain(|pid| is_alive(*pid));
        if pids.is_empty() {
            return Ok(());
        }
        if Instant::now() > until {
            return Err(Error::Machine(format!("processes cannot be ended: {pids:?}; see what holds them in /proc")));
        }
        signal(&pids, Signal::KILL);
        std::thread::sleep(GONE_POLL);
    }
}

fn signal(pids: &BTreeSet<i32>, signal: Signal) {
    for pid in pids.iter().filter_map(|pid| Pid::from_raw(*pid)) {
        // One that has ended meanwhile is what we want.
        let _ = rustix::process::kill_process(pid, signal);
    }
}

fn processes() -> impl Iterator<Item = i32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn is_alive(pid: i32) -> bool {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The state is the first word behind the name, which is in parentheses.
    text.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

/// Whether a process is an agent, a shim, or what shims are forked of, in this state: its words name a place below it.
fn is_ours(pid: i32, state: &Path) -> bool {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
    let is_part = words.get(1).is_some_and(|word| matches!(*word, b"agent" | b"seed" | b"shim"));
    let state = state.as_os_str().as_encoded_bytes();
    let below =
        |word: &&[u8]| word.strip_prefix(state).is_some_and(|rest| rest.first().is_none_or(|byte| *byte == b'/'));
    is_part && words.iter().any(below)
}

/// The directories of the cluster's cgroup: version 1 has one per hierarchy, version 2 one in all.
fn cgroup_dirs(cgroup: &str) -> Vec<PathBuf> {
    let own = cgroup.trim_start_matches('/');
    let nested = std::fs::read_dir(HIERARCHIES).into_iter().flatten().flatten().map(|entry| entry.path().join(own));
    std::iter::once(Path::new(HIERARCHIES).join(own)).chain(nested).filter(|dir| dir.is_dir()).collect()
}

fn in_cgroups(cgroup: &str) -> BTreeSet<i32> {
    fn below(dir: &Path, pids: &mut BTreeSet<i32>) {
        let text = std::fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
        pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                below(&entry.path(), pids);
            }
        }
    }
    let mut pids = BTreeSet::new();
    cgroup_dirs(cgroup).iter().for_each(|dir| below(dir, &mut pids));
    pids
}

fn remove_cgroups(cgroup: &str) -> Result<(), Error> {
    fn remove(dir: &Path, until: Instant) -> std::io::Result<()> {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                remove(&entry.path(), until)?;
            }
        }
        loop {
            match std::fs::remove_dir(dir) {
                // Processes that were just killed may hold it for a moment.
                Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy && Instant::now() < until => {
                    std::thread::sleep(GONE_POLL);
                }
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
                _ => return Ok(()),
            }
        }
    }
    let until = Instant::now() + GONE_WAIT;
    for dir in cgroup_dirs(cgroup) {
        remove(&dir, until).map_err(Error::file("remove the control group", &dir))?;
    }
    Ok(())
}

/// Unmounts what is mounted below `dir` in this process' mount namespace, the innermost first.
fn unmount_below(dir: &Path) {
    let text = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let points = text.lines().filter_map(|line| line.split(' ').nth(1)).map(Path::new);
    let mut ours: Vec<&Path> = points.filter(|point| point.starts_with(dir) && *point != dir).collect();
    ours.reverse();
    for point in ours {
        // What cannot be unmounted shows itself when the folder is removed.
        let _ = rustix::mount::unmount(point, rustix::mount::UnmountFlags::DETACH);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_have_names_of_their_own() {
        let (a, b) = (Names::of(Path::new("/a")), Names::of(Path::new("/b")));
        assert!(a.prefix != b.prefix && a.state != b.state && a.cgroup != b.cgroup);
        assert_eq!(a.prefix.len(), 9);
        assert_eq!(Names::of(Path::new("/a")).prefix, a.prefix);
    }

    #[test]
    fn an_agent_tells_its_place() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Place::of(dir.path()), None);
        let place = Place { state: PathBuf::from("/run/a"), cgroup: "/b".to_owned() };
        place.tell(dir.path()).unwrap();
        assert_eq!(Place::of(dir.path()), Some(place));
        // Never the whole machine.
        std::fs::write(dir.path().join(PLACE_FILE), "/run/a\n/\n").unwrap();
        assert_eq!(Place::of(dir.path()), None);
    }

    #[test]
    fn nothing_left_is_no_error() {
        sweep(&Names::of(Path::new("/no/cluster/was/ever/here"))).unwrap();
    }
}
