//! Control groups, version 1 (also hybrid) and 2: make, limit, measure, empty and remove them.
//!
//! A cgroup is named by its path below the hierarchy's root, such as `/kubepods/pod1/c1`; on version 1 that path
//! exists in several hierarchies. Not here: which limits are right.
//!
//! Invariants: a new cpuset directory has its parent's sets before any process enters; removing is tried again while
//! the last processes leave; a path never contains `..`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::Error;
use crate::seam::{ContainerStats, Resources};

/// Hierarchies of version 1 that containers get a directory in.
const CONTROLLERS: [&str; 7] = ["memory", "cpu", "cpuacct", "cpuset", "pids", "devices", "blkio"];
/// Controllers asked for on version 2.
const CONTROLLERS_V2: [&str; 5] = ["cpu", "memory", "pids", "cpuset", "io"];
const DEFAULT_PERIOD_US: u64 = 100_000;
/// How long removal waits for processes that were killed to be gone.
const REMOVE_WAIT_MS: u64 = 2_000;
const REMOVE_RETRY_MS: u64 = 2;

/// The machine's cgroup file systems.
#[derive(Clone, Debug)]
pub struct Cgroups {
    layout: Layout,
}

#[derive(Clone, Debug)]
enum Layout {
    /// Controller to where its hierarchy is mounted; co-mounted controllers share a directory.
    V1(BTreeMap<String, PathBuf>),
    V2(PathBuf),
}

/// What a device rule lets through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DeviceRule {
    /// `b`, `c`, or `a` for everything.
    pub kind: char,
    /// `None` is any.
    pub major: Option<u32>,
    pub minor: Option<u32>,
    pub access: String,
}

impl Cgroups {
    /// Looks at this process' mounts. Fails when there is neither version.
    pub fn detect() -> Result<Cgroups, Error> {
        let text = std::fs::read_to_string("/proc/self/mounts").map_err(Error::io("read /proc/self/mounts"))?;
        Cgroups::from_mounts(&text)
    }

    fn from_mounts(mounts: &str) -> Result<Cgroups, Error> {
        let mut v1 = BTreeMap::new();
        let mut v2 = None;
        for line in mounts.lines() {
            let fields: Vec<&str> = line.split(' ').collect();
            let [_, target, kind, options, ..] = fields[..] else { continue };
            match kind {
                "cgroup" => {
                    for controller in options.split(',').filter(|o| CONTROLLERS.contains(o)) {
                        v1.entry(controller.to_owned()).or_insert_with(|| PathBuf::from(target));
                    }
                }
                "cgroup2" => v2 = v2.or(Some(PathBuf::from(target))),
                _ => {}
            }
        }
        // A machine with both has its controllers on version 1.
        match (v1.contains_key("memory") || v1.contains_key("cpu"), v2) {
            (true, _) => Ok(Cgroups { layout: Layout::V1(v1) }),
            (false, Some(root)) => Ok(Cgroups { layout: Layout::V2(root) }),
            (false, None) => Err(Error::Unsupported { what: "a system without mounted control groups".to_owned() }),
        }
    }

    /// Version 2 at a directory; for tests and unusual mounts.
    pub fn v2_at(root: impl Into<PathBuf>) -> Cgroups {
        Cgroups { layout: Layout::V2(root.into()) }
    }

    pub fn is_v2(&self) -> bool {
        matches!(self.layout, Layout::V2(_))
    }

    /// Every directory the cgroup has, each once.
    fn dirs(&self, path: &str) -> Vec<PathBuf> {
        let below = crate::rooted::clean(Path::new(path));
        let mut dirs: Vec<PathBuf> = match &self.layout {
            Layout::V1(mounts) => mounts.values().map(|m| m.join(&below)).collect(),
            Layout::V2(root) => vec![root.join(&below)],
        };
        dirs.dedup();
        dirs.sort();
        dirs.dedup();
        dirs
    }

    /// The directory with the files of a controller.
    fn dir(&self, controller: &str, path: &str) -> Option<PathBuf> {
        let below = crate::rooted::clean(Path::new(path));
        match &self.layout {
            Layout::V1(mounts) => mounts.get(controller).map(|m| m.join(below)),
            Layout::V2(root) => Some(root.join(below)),
        }
    }

    /// (controller, where it is mounted, this cgroup's directory) for showing version 1 inside a container.
    pub(crate) fn v1_views(&self, path: &str) -> Vec<(String, PathBuf)> {
        let Layout::V1(mounts) = &self.layout else { return Vec::new() };
        let below = crate::rooted::clean(Path::new(path));
        mounts.iter().map(|(controller, mount)| (controller.clone(), mount.join(&below))).collect()
    }

    /// Makes the cgroup and its parents. Existing ones are kept.
    pub fn create(&self, path: &str) -> Result<(), Error> {
        let below = crate::rooted::clean(Path::new(path));
        match &self.layout {
            Layout::V1(mounts) => {
                for (controller, mount) in mounts {
                    create_v1(controller, mount, &below)?;
                }
            }
            Layout::V2(root) => {
                let mut at = root.clone();
                for part in below.components() {
                    enable_v2(&at);
                    at.push(part);
                    make_dir(&at)?;
                }
            }
        }
        Ok(())
    }

    /// Sets what is given, leaves the rest.
    pub fn set(&self, path: &str, resources: &Resources) -> Result<(), Error> {
        match &self.layout {
            Layout::V1(_) => self.set_v1(path, resources),
            Layout::V2(root) => set_v2(&root.join(crate::rooted::clean(Path::new(path))), resources),
        }
    }

    fn set_v1(&self, path: &str, r: &Resources) -> Result<(), Error> {
        let put = |controller: &str, file: &str, value: String| match self.dir(controller, path) {
            Some(dir) => write(&dir.join(file), &value),
            None => Ok(()),
        };
        if let Some(shares) = r.cpu_shares {
            put("cpu", "cpu.shares", shares.clamp(2, 262_144).to_string())?;
        }
        if let Some(period) = r.cpu_period_us {
            put("cpu", "cpu.cfs_period_us", period.to_string())?;
        }
        if let Some(quota) = r.cpu_quota_us {
            put("cpu", "cpu.cfs_quota_us", if quota <= 0 { -1 } else { quota }.to_string())?;
        }
        if let Some(limit) = r.memory_limit_bytes {
            let limit = if limit <= 0 { -1 } else { limit };
            put("memory", "memory.limit_in_bytes", limit.to_string())?;
        }
        if let Some(pids) = r.pids_limit {
            put("pids", "pids.max", if pids <= 0 { "max".to_owned() } else { pids.to_string() })?;
        }
        if let Some(cpus) = &r.cpuset_cpus {
            put("cpuset", "cpuset.cpus", cpus.clone())?;
        }
        if let Some(mems) = &r.cpuset_mems {
            put("cpuset", "cpuset.mems", mems.clone())?;
        }
        Ok(())
    }

    /// Lets through what the rules say and nothing else.
    pub(crate) fn allow_devices(&self, path: &str, rules: &[DeviceRule]) -> Result<(), Error> {
        match &self.layout {
            Layout::V1(_) => {
                let Some(dir) = self.dir("devices", path) else { return Ok(()) };
                if rules.iter().any(|r| r.kind == 'a') {
                    return write(&dir.join("devices.allow"), "a *:* rwm");
                }
                write(&dir.join("devices.deny"), "a")?;
                let path = dir.join("devices.allow");
                let mut allow =
                    File::options().write(true).open(&path).map_err(Error::io(format!("open {}", path.display())))?;
                let number = |n: Option<u32>| n.map_or("*".to_owned(), |n| n.to_string());
                rules.iter().try_for_each(|r| {
                    let rule = format!("{} {}:{} {}", r.kind, number(r.major), number(r.minor), r.access);
                    // The kernel takes one rule at a time.
                    allow.write_all(rule.as_bytes()).map_err(Error::io(format!("write {rule:?} to {}", path.display())))
                })
            }
            Layout::V2(root) => {
                if rules.iter().any(|r| r.kind == 'a') {
                    return Ok(());
                }
                use std::os::fd::AsFd;
                let dir = root.join(crate::rooted::clean(Path::new(path)));
                let doing = || format!("limit the devices of {}", dir.display());
                let fd = File::open(&dir).map_err(Error::io(doing()))?;
                crate::sys::attach_device_filter(fd.as_fd(), &device_program(rules)).map_err(Error::io(doing()))
            }
        }
    }

    /// Moves a process into it.
    pub fn join(&self, path: &str, pid: u32) -> Result<(), Error> {
        self.procs_files(path).iter().try_for_each(|file| write(file, &pid.to_string()))
    }

    /// The files that list its processes.
    pub(crate) fn procs_files(&self, path: &str) -> Vec<PathBuf> {
        self.dirs(path).into_iter().map(|d| d.join("cgroup.procs")).collect()
    }

    /// The files a process with one thread writes `0` to in order to join. On version 1 it joins as a thread: to move a
    /// whole process the kernel holds up every fork and exit of the machine, and waits for that up to 40 ms.
    pub(crate) fn join_files(&self, path: &str) -> Vec<PathBuf> {
        let file = if self.is_v2() { "cgroup.procs" } else { "tasks" };
        self.dirs(path).into_iter().map(|d| d.join(file)).collect()
    }

    /// Those of the files to join that a process joins last, when it is about to become the container's. What it does before
    /// should not wait for the little processor time that the container may have, so the group of that is the very last; and
    /// should not be counted as the container's memory: the parts of the disk's tables that are read for its folders stay
    /// in memory when it is gone, and a group that something is counted to stays for as long, unseen, and the kernel looks
    /// through all of them. On version 2 there is one file for everything.
    pub(crate) fn last_files(&self, path: &str) -> Vec<PathBuf> {
        let Layout::V1(_) = &self.layout else { return Vec::new() };
        let share = self.dir("cpu", path).map(|dir| dir.join("tasks"));
        let mut files = self.join_files(path);
        files.sort_by_key(|file| Some(file) == share.as_ref());
        files
    }

    /// The file that counts kills for memory.
    pub(crate) fn oom_file(&self, path: &str) -> Option<PathBuf> {
        let file = if self.is_v2() { "memory.events" } else { "memory.oom_control" };
        self.dir("memory", path).map(|d| d.join(file))
    }

    /// The processes in this cgroup itself.
    pub fn processes(&self, path: &str) -> Vec<i32> {
        let mut pids: Vec<i32> = self
            .dirs(path)
            .iter()
            .flat_map(|d| {
                let text = std::fs::read_to_string(d.join("cgroup.procs")).unwrap_or_default();
                text.lines().filter_map(|l| l.parse().ok()).collect::<Vec<_>>()
            })
            .collect();
        pids.sort_unstable();
        pids.dedup();
        pids
    }

    /// Kills every process in it and in the cgroups below.
    pub fn kill(&self, path: &str) {
        if let Layout::V2(root) = &self.layout
            && std::fs::write(root.join(crate::rooted::clean(Path::new(path))).join("cgroup.kill"), "1").is_ok()
        {
            return;
        }
        for below in self.children(path) {
            self.kill(&format!("{path}/{below}"));
        }
        for pid in self.processes(path) {
            if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
    }

    fn children(&self, path: &str) -> Vec<String> {
        let mut names: Vec<String> = self
            .dirs(path)
            .iter()
            .filter_map(|d| std::fs::read_dir(d).ok())
            .flat_map(|entries| entries.flatten())
            .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()))
            .map(|e| e.file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names.dedup();
        names
    }

    /// Kills what is in it and removes it with everything below. Blocks until the last process has left, a while at
    /// most. A missing one is no error.
    pub fn remove(&self, path: &str) -> Result<(), Error> {
        let until = Instant::now() + Duration::from_millis(REMOVE_WAIT_MS);
        loop {
            let mut left = None;
            for dir in self.dirs(path) {
                match std::fs::remove_dir(&dir) {
                    Ok(()) => {}
                    Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                    Err(e) => left = Some((dir, e)),
                }
            }
            let Some((dir, error)) = left else { return Ok(()) };
            if Instant::now() >= until {
                return Err(Error::Io { doing: format!("remove {}", dir.display()), source: error });
            }
            let children = self.children(path);
            for child in &children {
                self.remove(&format!("{path}/{child}"))?;
            }
            if children.is_empty() {
                self.kill(path);
                std::thread::sleep(Duration::from_millis(REMOVE_RETRY_MS));
            }
        }
    }

    /// Whether it exists.
    pub fn exists(&self, path: &str) -> bool {
        self.dirs(path).iter().any(|d| d.is_dir())
    }

    /// What it uses now. Missing files count as nothing.
    pub fn usage(&self, path: &str) -> ContainerStats {
        let read = |controller: &str, file: &str| {
            self.dir(controller, path).and_then(|d| std::fs::read_to_string(d.join(file)).ok()).unwrap_or_default()
        };
        let number = |controller: &str, file: &str| read(controller, file).trim().parse::<u64>().unwrap_or(0);
        let stat = read("memory", "memory.stat");
        let field = |text: &str, name: &str| -> u64 {
            let line = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(' '));
            line.and_then(|v| v.trim().parse().ok()).unwrap_or(0)
        };
        match &self.layout {
            Layout::V1(_) => {
                let used = number("memory", "memory.usage_in_bytes");
                let limit = number("memory", "memory.limit_in_bytes");
                ContainerStats {
                    cpu_ns: number("cpuacct", "cpuacct.usage"),
                    memory_working_set_bytes: used.saturating_sub(field(&stat, "total_inactive_file")),
                    memory_usage_bytes: used,
                    memory_rss_bytes: field(&stat, "total_rss"),
                    // "Unlimited" is a number near the top of what the kernel can count.
                    memory_limit_bytes: if limit > i64::MAX as u64 / 2 { 0 } else { limit },
                    page_faults: field(&stat, "total_pgfault"),
                    major_page_faults: field(&stat, "total_pgmajfault"),
                    pids: number("pids", "pids.current"),
                    oom_kills: field(&read("memory", "memory.oom_control"), "oom_kill"),
                    writable_bytes: 0,
                    writable_inodes: 0,
                }
            }
            Layout::V2(_) => {
                let used = number("memory", "memory.current");
                ContainerStats {
                    cpu_ns: field(&read("cpu", "cpu.stat"), "usage_usec") * 1000,
                    memory_working_set_bytes: used.saturating_sub(field(&stat, "inactive_file")),
                    memory_usage_bytes: used,
                    memory_rss_bytes: field(&stat, "anon"),
                    memory_limit_bytes: number("memory", "memory.max"),
                    page_faults: field(&stat, "pgfault"),
                    major_page_faults: field(&stat, "pgmajfault"),
                    pids: number("pids", "pids.current"),
                    oom_kills: field(&read("memory", "memory.events"), "oom_kill"),
                    writable_bytes: 0,
                    writable_inodes: 0,
                }
            }
        }
    }
}

/// The directory itself first: mostly its parents are there.
fn create_v1(controller: &str, mount: &Path, below: &Path) -> Result<(), Error> {
    let at = mount.join(below);
    let made = match (make_dir(&at), below.parent()) {
        (Err(Error::Io { source, .. }), Some(parent)) if source.kind() == std::io::ErrorKind::NotFound => {
            create_v1(controller, mount, parent)?;
            make_dir(&at)?
        }
        (other, _) => other?,
    };
    if !made || controller != "cpuset" {
        return Ok(());
    }
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let from = at.parent().unwrap_or(mount).join(file);
        let value = std::fs::read_to_string(&from).map_err(Error::io(format!("read {}", from.display())))?;
        write(&at.join(file), value.trim())?;
    }
    Ok(())
}

/// Whether it was made now.
fn make_dir(path: &Path) -> Result<bool, Error> {
    match std::fs::create_dir(path) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(false),
        Err(source) => Err(Error::Io { doing: format!("make the cgroup {}", path.display()), source }),
    }
}

/// Hands the controllers down. One the kernel does not have, or that is already on, is no error.
fn enable_v2(dir: &Path) {
    let available = std::fs::read_to_string(dir.join("cgroup.controllers")).unwrap_or_default();
    let on = std::fs::read_to_string(dir.join("cgroup.subtree_control")).unwrap_or_default();
    for controller in CONTROLLERS_V2 {
        let listed = |text: &str| text.split_whitespace().any(|c| c == controller);
        if listed(&available) && !listed(&on) {
            let _ = std::fs::write(dir.join("cgroup.subtree_control"), format!("+{controller}"));
        }
    }
}

fn set_v2(dir: &Path, r: &Resources) -> Result<(), Error> {
    let put = |file: &str, value: String| match dir.join(file) {
        // A controller the kernel did not give us has no files.
        path if !path.exists() => Ok(()),
        path => write(&path, &value),
    };
    if let Some(shares) = r.cpu_shares {
        put("cpu.weight", weight(shares).to_string())?;
    }
    if r.cpu_quota_us.is_some() || r.cpu_period_us.is_some() {
        let now = std::fs::read_to_string(dir.join("cpu.max")).unwrap_or_default();
        let (quota_now, period_now) = now.trim().split_once(' ').unwrap_or(("max", "100000"));
        let quota = match r.cpu_quota_us {
            Some(q) if q > 0 => q.to_string(),
            Some(_) => "max".to_owned(),
            None => quota_now.to_owned(),
        };
        let period = r.cpu_period_us.or_else(|| period_now.parse().ok()).unwrap_or(DEFAULT_PERIOD_US);
        put("cpu.max", format!("{quota} {period}"))?;
    }
    let or_max = |n: i64| if n <= 0 { "max".to_owned() } else { n.to_string() };
    if let Some(limit) = r.memory_limit_bytes {
        put("memory.max", or_max(limit))?;
        // As with version 1 in Kubernetes: no swap beyond the limit.
        put("memory.swap.max", if limit <= 0 { "max".to_owned() } else { "0".to_owned() })?;
    }
    if let Some(pids) = r.pids_limit {
        put("pids.max", or_max(pids))?;
    }
    if let Some(cpus) = &r.cpuset_cpus {
        put("cpuset.cpus", cpus.clone())?;
    }
    if let Some(mems) = &r.cpuset_mems {
        put("cpuset.mems", mems.clone())?;
    }
    for (file, value) in &r.unified {
        if file.contains('/') || file.starts_with("cgroup.") {
            return Err(Error::Unsupported { what: format!("setting the cgroup file {file:?}") });
        }
        put(file, value.clone())?;
    }
    Ok(())
}

/// Shares of version 1 (2..=262144) as weight of version 2 (1..=10000).
fn weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9_999 / 262_142
}

fn write(path: &Path, value: &str) -> Result<(), Error> {
    std::fs::write(path, value).map_err(Error::io(format!("write {value:?} to {}", path.display())))
}

/// The rules as an eBPF program: r0 = 1 when one matches, else 0.
fn device_program(rules: &[DeviceRule]) -> Vec<u64> {
    let op = |code: u64, dst: u64, src: u64, off: i16, imm: i32| {
        code | dst << 8 | src << 12 | (off as u16 as u64) << 16 | (imm as u32 as u64) << 32
    };
    // Context: u32 access_type (access << 16 | type), u32 major, u32 minor. r2 type, r3 access, r4 major, r5 minor.
    let mut program = vec![
        op(0x61, 2, 1, 0, 0),
        op(0x54, 2, 0, 0, 0xffff),
        op(0x61, 3, 1, 0, 0),
        op(0x74, 3, 0, 0, 16),
        op(0x61, 4, 1, 4, 0),
        op(0x61, 5, 1, 8, 0),
    ];
    for rule in rules {
        let mut checks = Vec::new();
        let kind = if rule.kind == 'b' { 1 } else { 2 };
        checks.push((2, kind));
        checks.extend(rule.major.map(|n| (4, n as i32)));
        checks.extend(rule.minor.map(|n| (5, n as i32)));
        let bits = [('m', 1), ('r', 2), ('w', 4)];
        let allowed: i32 = bits.iter().filter(|(c, _)| rule.access.contains(*c)).map(|(_, bit)| bit).sum();
        // Behind each check: the rest of the checks, three for access, two for "allow".
        let total = checks.len() as i16 + 3 + 2;
        for (n, (register, value)) in checks.iter().enumerate() {
            program.push(op(0x55, *register, 0, total - 1 - n as i16, *value));
        }
        program.push(op(0xbc, 1, 3, 0, 0));
        program.push(op(0x54, 1, 0, 0, !allowed & 7));
        program.push(op(0x55, 1, 0, 2, 0));
        program.push(op(0xb7, 0, 0, 0, 1));
        program.push(op(0x95, 0, 0, 0, 0));
    }
    program.push(op(0xb7, 0, 0, 0, 0));
    program.push(op(0x95, 0, 0, 0, 0));
    program
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_say_the_version() {
        let hybrid = "cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,cpu,cpuacct 0 0\n\
            cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        let cgroups = Cgroups::from_mounts(hybrid).unwrap();
        assert!(!cgroups.is_v2());
        assert_eq!(cgroups.dirs("/a/../b").len(), 2);
        // The share of processor time is joined after everything else, and nothing before the container is made.
        let files = ["/sys/fs/cgroup/memory/a/tasks", "/sys/fs/cgroup/cpu,cpuacct/a/tasks"].map(PathBuf::from);
        assert_eq!(cgroups.last_files("/a"), files);
        assert!(Cgroups::from_mounts("cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n").unwrap().is_v2());
        assert!(Cgroups::from_mounts("proc /proc proc rw 0 0\n").is_err());
    }

    /// Needs root and a mounted cgroup2 tree, with or without controllers.
    #[test]
    fn version_2_devices_are_limited_by_the_kernel() {
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        let root = mounts.lines().find_map(|l| {
            let mut fields = l.split(' ').skip(1);
            let target = fields.next()?;
            (fields.next() == Some("cgroup2")).then_some(target)
        });
        let cgroups = Cgroups::v2_at(root.expect("a mounted cgroup2 tree"));
        let path = format!("/gantry-devices-{}", std::process::id());
        cgroups.create(&path).unwrap();
        let rule = |major, minor, access: &str| DeviceRule {
            kind: 'c',
            major: Some(major),
            minor: Some(minor),
            access: access.to_owned(),
        };
        // null whole, zero for reading, full not at all.
        let rules = [rule(1, 3, "rwm"), rule(1, 5, "r")];
        cgroups.allow_devices(&path, &rules).unwrap();
        let script = "echo 0 > \"$1\"; for d in null zero full; do \
            (: < /dev/$d) 2>/dev/null && echo r $d; (: > /dev/$d) 2>/dev/null && echo w $d; done; true";
        let procs = cgroups.procs_files(&path).remove(0);
        let output = std::process::Command::new("sh").args(["-c", script, "sh"]).arg(procs).output().unwrap();
        cgroups.remove(&path).unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "r null\nw null\nr zero\n");
    }

    #[test]
    fn version_2_files_hold_the_limits() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("cgroup.controllers"), "cpu memory\n").unwrap();
        std::fs::write(dir.path().join("cgroup.subtree_control"), "cpu\n").unwrap();
        let cgroups = Cgroups::v2_at(dir.path());
        cgroups.create("/pod/c").unwrap();
        let at = |file: &str| dir.path().join("pod/c").join(file);
        for file in ["cpu.weight", "cpu.max", "memory.max", "pids.max", "memory.high"] {
            std::fs::write(at(file), "").unwrap();
        }
        let mut resources = Resources {
            cpu_shares: Some(1024),
            cpu_quota_us: Some(50_000),
            memory_limit_bytes: Some(1 << 20),
            pids_limit: Some(0),
            ..Resources::default()
        };
        resources.unified.insert("memory.high".into(), "900000".into());
        cgroups.set("/pod/c", &resources).unwrap();
        let text = |file: &str| std::fs::read_to_string(at(file)).unwrap();
        assert_eq!(text("cpu.weight"), "39");
        assert_eq!(text("cpu.max"), "50000 100000");
        assert_eq!((text("memory.max"), text("pids.max")), ("1048576".into(), "max".into()));
        assert_eq!(text("memory.high"), "900000");
        assert_eq!(std::fs::read_to_string(dir.path().join("cgroup.subtree_control")).unwrap(), "+memory");
        std::fs::write(at("memory.current"), "5000\n").unwrap();
        std::fs::write(at("memory.stat"), "anon 3000\ninactive_file 1000\n").unwrap();
        std::fs::write(at("cpu.stat"), "usage_usec 7\n").unwrap();
        std::fs::write(at("memory.events"), "low 0\noom 1\noom_kill 2\n").unwrap();
        let usage = cgroups.usage("/pod/c");
        assert_eq!((usage.memory_working_set_bytes, usage.memory_rss_bytes), (4000, 3000));
        assert_eq!((usage.cpu_ns, usage.oom_kills), (7000, 2));
        resources.unified.insert("../x".into(), "1".into());
        assert!(cgroups.set("/pod/c", &resources).is_err());
    }
}
