//! From what a caller asks for and what the image says to a complete plan for the shim.
//!
//! Everything a container may do is decided here, in one place: command, environment, mounts, devices, rights.

use std::collections::HashSet;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::Host;
use crate::cgroup::DeviceRule;
use crate::plan::{Capabilities, ContainerPlan, DevicePlan, LogPlan, MountPlan, ProcessPlan, RootPlan};
use crate::seam::{ContainerSpec, Device, ImageConfig, Mount, NetworkNamespace, Propagation, SandboxSpec, Seccomp};
use crate::{Cgroups, Error, capability, seccomp};

/// Hidden from containers unless they ask for an unmasked `/proc`.
const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];
/// (name, major, minor) of the devices every container has.
const DEVICES: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];
/// Most device nodes of the host given to a privileged container.
const HOST_DEVICES_MAX: usize = 4096;
/// Size of the container's own /dev.
const DEV_SIZE: &str = "65536k";

/// Everything the plan is made from.
pub(super) struct Sources<'a> {
    pub host: &'a Host,
    pub cgroups: &'a Cgroups,
    pub id: &'a str,
    pub spec: &'a ContainerSpec,
    pub image: &'a ImageConfig,
    /// The container's cgroup.
    pub cgroup: &'a str,
    pub root: RootPlan,
    /// The pod's shared memory on the host, when it has its own.
    pub shm: Option<PathBuf>,
}

pub(super) fn container(s: Sources<'_>) -> Result<(ContainerPlan, Vec<DeviceRule>), Error> {
    let spec = s.spec;
    let argv = command(spec, s.image)?;
    let (devices, rules) = devices(spec)?;
    let masked = |list: &[&str]| match spec.security.privileged || spec.security.unmasked_proc {
        true => Vec::new(),
        false => list.iter().map(PathBuf::from).collect(),
    };
    let process = process(s.host, s.cgroups, s.cgroup, spec, s.image, argv)?;
    let mounts = mounts(&s)?;
    let mut read_only_paths: Vec<PathBuf> = masked(&READ_ONLY);
    if !s.cgroups.is_v2() && !spec.security.privileged {
        // It had to be writable until the hierarchies were mounted in it.
        read_only_paths.push(PathBuf::from("/sys/fs/cgroup"));
    }
    let plan = ContainerPlan {
        id: s.id.to_owned(),
        process,
        root: RootPlan { read_only: spec.security.read_only_root, ..s.root },
        mounts,
        devices,
        masked: masked(&MASKED),
        read_only_paths,
        pid: spec.pid.clone(),
        stdin_once: spec.stdin_once,
        log: spec.log.as_ref().map(|l| LogPlan {
            path: l.path.clone(),
            max_bytes: l.max_bytes,
            max_files: l.max_files,
        }),
        oom_file: s.cgroups.oom_file(s.cgroup),
        cgroup_procs: s.cgroups.procs_files(s.cgroup),
    };
    Ok((plan, rules))
}

/// The process of an exec: the container's rights, another command.
pub(super) fn exec(
    host: &Host,
    cgroups: &Cgroups,
    cgroup: &str,
    spec: &ContainerSpec,
    image: &ImageConfig,
    argv: Vec<String>,
) -> Result<ProcessPlan, Error> {
    if argv.is_empty() {
        return Err(Error::Start { container: spec.name.clone(), why: "no command is given".to_owned() });
    }
    process(host, cgroups, cgroup, spec, image, argv)
}

fn process(
    host: &Host,
    cgroups: &Cgroups,
    cgroup: &str,
    spec: &ContainerSpec,
    image: &ImageConfig,
    argv: Vec<String>,
) -> Result<ProcessPlan, Error> {
    let security = &spec.security;
    let capabilities = capability::choose(security, host.bounding)?;
    let user = match (&security.user, security.group) {
        (Some(user), _) => user.clone(),
        // A group alone replaces the image's.
        (None, Some(_)) => image.user.split(':').next().unwrap_or("").to_owned(),
        (None, None) => image.user.clone(),
    };
    Ok(ProcessPlan {
        argv,
        env: environment(spec, image),
        cwd: match &spec.working_dir {
            Some(dir) if !dir.is_empty() => dir.clone(),
            _ => image.working_dir.clone(),
        },
        user,
        group: security.group,
        groups: security.supplemental_groups.clone(),
        ignore_image_groups: security.ignore_image_groups,
        seccomp: filter(spec, &capabilities)?,
        capabilities,
        no_new_privileges: security.no_new_privileges,
        oom_score_adj: security.oom_score_adj.map(|score| score.clamp(host.oom_score_min, 1000)),
        tty: spec.tty,
        stdin: spec.stdin,
        cgroup_procs: cgroups.join_files(cgroup),
        cgroup_last: cgroups.last_files(cgroup),
        size: None,
    })
}

fn filter(spec: &ContainerSpec, capabilities: &Capabilities) -> Result<String, Error> {
    match &spec.security.seccomp {
        _ if spec.security.privileged => Ok(String::new()),
        Seccomp::Unconfined => Ok(String::new()),
        Seccomp::RuntimeDefault => seccomp::default_filter(capabilities.bounding),
        Seccomp::Localhost(path) => seccomp::file_filter(path, capabilities.bounding),
    }
}

fn command(spec: &ContainerSpec, image: &ImageConfig) -> Result<Vec<String>, Error> {
    let mut argv = if spec.command.is_empty() { image.entrypoint.clone() } else { spec.command.clone() };
    match (spec.args.is_empty(), spec.command.is_empty()) {
        (false, _) => argv.extend_from_slice(&spec.args),
        (true, true) => argv.extend_from_slice(&image.cmd),
        (true, false) => {}
    }
    match argv.is_empty() {
        true => Err(Error::Start {
            container: spec.name.clone(),
            why: "neither the image nor the container names a command".to_owned(),
        }),
        false => Ok(argv),
    }
}

fn environment(spec: &ContainerSpec, image: &ImageConfig) -> Vec<String> {
    let given: HashSet<&str> = spec.env.iter().map(|(name, _)| name.as_str()).collect();
    let kept = |entry: &&String| !given.contains(entry.split('=').next().unwrap_or(""));
    let mut env: Vec<String> = image.env.iter().filter(kept).cloned().collect();
    env.extend(spec.env.iter().map(|(name, value)| format!("{name}={value}")));
    env
}

fn fs(kind: &str, target: &str, options: &[(&str, &str)]) -> MountPlan {
    MountPlan::Fs {
        kind: kind.to_owned(),
        target: PathBuf::from(target),
        options: options.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        read_only: false,
        no_exec: true,
        devices: false,
    }
}

fn bind(source: &Path, target: &str) -> MountPlan {
    MountPlan::Bind {
        source: source.to_owned(),
        target: PathBuf::from(target),
        read_only: false,
        recursive_read_only: false,
        recursive: false,
        propagation: Propagation::Private,
        no_links: false,
        fixed: true,
    }
}

fn mounts(s: &Sources<'_>) -> Result<Vec<MountPlan>, Error> {
    let privileged = s.spec.security.privileged;
    let given: HashSet<PathBuf> = s.spec.mounts.iter().map(|m| normal(&m.container_path)).collect();
    let mut mounts = vec![fs("proc", "/proc", &[])];
    let mut dev = fs("tmpfs", "/dev", &[("mode", "755"), ("size", DEV_SIZE)]);
    let mut pts =
        fs("devpts", "/dev/pts", &[("newinstance", ""), ("ptmxmode", "0666"), ("mode", "0620"), ("gid", "5")]);
    for mount in [&mut dev, &mut pts] {
        if let MountPlan::Fs { devices, .. } = mount {
            *devices = true;
        }
    }
    mounts.extend([dev, pts, fs("mqueue", "/dev/mqueue", &[])]);
    // A host network without privileges must not see the host's devices writable; it never can: /sys is read-only.
    let mut sys = fs("sysfs", "/sys", &[]);
    if let MountPlan::Fs { read_only, .. } = &mut sys {
        *read_only = !privileged;
    }
    mounts.push(sys);
    mounts.extend(cgroup_mounts(s, privileged));
    if !given.contains(Path::new("/dev/shm")) {
        mounts.push(match &s.shm {
            Some(path) => bind(path, "/dev/shm"),
            None => bind(Path::new("/dev/shm"), "/dev/shm"),
        });
    }
    let mut user: Vec<&Mount> = s.spec.mounts.iter().collect();
    // Parents before what is mounted below them.
    user.sort_by_key(|m| normal(&m.container_path).components().count());
    for mount in user {
        mounts.push(user_mount(s, mount)?);
    }
    Ok(mounts)
}

fn user_mount(s: &Sources<'_>, mount: &Mount) -> Result<MountPlan, Error> {
    let target = normal(&mount.container_path);
    let refused = |why: &str| Error::Start {
        container: s.spec.name.clone(),
        why: format!("the mount on {} {why}", mount.container_path.display()),
    };
    if !mount.container_path.is_absolute() || target == Path::new("/") {
        return Err(refused("needs an absolute path below /"));
    }
    if target.starts_with("/proc") {
        return Err(refused("would change /proc"));
    }
    if mount.recursive_read_only && mount.propagation != Propagation::Private {
        return Err(refused("cannot be recursively read-only and propagate"));
    }
    Ok(MountPlan::Bind {
        source: mount.host_path.clone(),
        target,
        read_only: mount.read_only,
        recursive_read_only: mount.read_only && mount.recursive_read_only,
        recursive: mount.recursive,
        propagation: mount.propagation,
        no_links: mount.no_links,
        fixed: false,
    })
}

fn cgroup_mounts(s: &Sources<'_>, writable: bool) -> Vec<MountPlan> {
    if s.cgroups.is_v2() {
        let mut mount = fs("cgroup2", "/sys/fs/cgroup", &[]);
        if let MountPlan::Fs { read_only, .. } = &mut mount {
            *read_only = !writable;
        }
        return vec![mount];
    }
    let mut mounts = vec![fs("tmpfs", "/sys/fs/cgroup", &[("mode", "755"), ("size", "64k")])];
    for (controller, dir) in s.cgroups.v1_views(s.cgroup) {
        let mut mount = bind(&dir, &format!("/sys/fs/cgroup/{controller}"));
        if let MountPlan::Bind { read_only, .. } = &mut mount {
            *read_only = !writable;
        }
        mounts.push(mount);
    }
    mounts
}

/// Without `.` and `..`, absolute.
fn normal(path: &Path) -> PathBuf {
    let clean = crate::rooted::clean(path);
    if clean == Path::new(".") { PathBuf::from("/") } else { Path::new("/").join(clean) }
}

fn devices(spec: &ContainerSpec) -> Result<(Vec<DevicePlan>, Vec<DeviceRule>), Error> {
    let node = |name: &str, major, minor| DevicePlan {
        path: PathBuf::from("/dev").join(name),
        block: false,
        major,
        minor,
        mode: 0o666,
        uid: 0,
        gid: 0,
    };
    let mut nodes: Vec<DevicePlan> = DEVICES.iter().map(|(n, major, minor)| node(n, *major, *minor)).collect();
    let rule = |kind, major, minor, access: &str| DeviceRule { kind, major, minor, access: access.to_owned() };
    if spec.security.privileged {
        host_devices(Path::new("/dev"), &mut nodes);
        return Ok((nodes, vec![rule('a', None, None, "rwm")]));
    }
    let mut rules: Vec<DeviceRule> =
        DEVICES.iter().map(|(_, major, minor)| rule('c', Some(*major), Some(*minor), "rwm")).collect();
    // Making a node is harmless where opening it is not allowed; terminals and /dev/console are the container's own.
    rules.extend([rule('c', None, None, "m"), rule('b', None, None, "m")]);
    rules.extend([rule('c', Some(136), None, "rwm"), rule('c', Some(5), Some(2), "rwm")]);
    rules.push(rule('c', Some(5), Some(1), "rwm"));
    for device in &spec.devices {
        let (plan, access) = host_device(device)?;
        rules.push(rule(if plan.block { 'b' } else { 'c' }, Some(plan.major), Some(plan.minor), &access));
        nodes.push(plan);
    }
    Ok((nodes, rules))
}

fn host_device(device: &Device) -> Result<(DevicePlan, String), Error> {
    let doing = format!("look at the device {}", device.host_path.display());
    let stat = std::fs::metadata(&device.host_path).map_err(Error::io(doing))?;
    let mut plan = device_plan(&stat, normal(&device.container_path)).ok_or_else(|| Error::Unsupported {
        what: format!("the device {}, which is no device,", device.host_path.display()),
    })?;
    plan.mode |= 0o600;
    let access = if device.permissions.is_empty() { "rwm" } else { &device.permissions };
    match access.chars().all(|c| "rwm".contains(c)) {
        true => Ok((plan, access.to_owned())),
        false => Err(Error::Unsupported { what: format!("the device permission {access:?}") }),
    }
}

fn device_plan(stat: &std::fs::Metadata, path: PathBuf) -> Option<DevicePlan> {
    let kind = stat.file_type();
    if !kind.is_block_device() && !kind.is_char_device() {
        return None;
    }
    let number = stat.rdev();
    Some(DevicePlan {
        path,
        block: kind.is_block_device(),
        major: rustix::fs::major(number),
        minor: rustix::fs::minor(number),
        mode: stat.mode() & 0o777,
        uid: stat.uid(),
        gid: stat.gid(),
    })
}

/// Every device node of the host, except terminals and what containers have of their own.
fn host_devices(dir: &Path, out: &mut Vec<DevicePlan>) {
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        let name = entry.file_name();
        if ["pts", "shm", "mqueue", "fd", "console", "ptmx", ".udev", ".lxc"].iter().any(|n| name == *n) {
            continue;
        }
        let Ok(stat) = std::fs::symlink_metadata(&path) else { continue };
        if stat.is_dir() {
            host_devices(&path, out);
        } else if out.len() < HOST_DEVICES_MAX
            && !out.iter().any(|d| d.path == path)
            && let Some(plan) = device_plan(&stat, path)
        {
            out.push(plan);
        }
    }
}

/// Sysctls a pod may set: those of its own namespaces.
pub(super) fn check_sysctls(spec: &SandboxSpec) -> Result<(), Error> {
    for name in spec.sysctls.keys() {
        let refused = |why: &str| Err(Error::Unsupported { what: format!("the sysctl {name:?}, {why},") });
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-/".contains(&b)) {
            return refused("which is no name");
        }
        let name = name.replace('/', ".");
        let ipc = name.starts_with("kernel.shm") || name.starts_with("kernel.msg") || name.starts_with("fs.mqueue.");
        let ipc = ipc || name == "kernel.sem";
        let net = name.starts_with("net.");
        if !ipc && !net {
            return refused("which belongs to the whole machine");
        }
        if ipc && spec.host_ipc || net && spec.network == NetworkNamespace::Host {
            return refused("whose namespace the pod shares with the host");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_and_environment_follow_kubernetes() {
        let image = ImageConfig {
            entrypoint: vec!["/entry".into()],
            cmd: vec!["a".into()],
            env: vec!["PATH=/bin".into(), "X=1".into()],
            ..ImageConfig::default()
        };
        let with = |command: &[&str], args: &[&str]| {
            let mut spec = ContainerSpec::new("s", "c", "i");
            spec.command = command.iter().map(|s| (*s).to_owned()).collect();
            spec.args = args.iter().map(|s| (*s).to_owned()).collect();
            super::command(&spec, &image).unwrap().join(" ")
        };
        assert_eq!(with(&[], &[]), "/entry a");
        assert_eq!(with(&[], &["b"]), "/entry b");
        assert_eq!(with(&["/x"], &[]), "/x");
        assert_eq!(with(&["/x"], &["b"]), "/x b");
        let mut spec = ContainerSpec::new("s", "c", "i");
        spec.env = vec![("X".into(), "2".into()), ("Y".into(), "3".into())];
        assert_eq!(environment(&spec, &image), ["PATH=/bin", "X=2", "Y=3"]);
        assert!(super::command(&spec, &ImageConfig::default()).is_err());
    }

    #[test]
    fn only_the_pods_own_sysctls_are_taken() {
        let check = |name: &str, host: bool| {
            let mut spec = SandboxSpec::new("n", "p", "u");
            spec.sysctls.insert(name.to_owned(), "1".into());
            if host {
                spec.network = NetworkNamespace::Host;
            }
            check_sysctls(&spec).is_ok()
        };
        assert!(check("net.ipv4.ip_forward", false) && !check("net.ipv4.ip_forward", true));
        assert!(check("kernel.shmmax", true) && check("net/ipv4/ping_group_range", false));
        for bad in ["kernel.panic", "vm.swappiness", "", "net.ipv4/../../x\n", "../kernel"] {
            assert!(!check(bad, false), "{bad}");
        }
    }
}
