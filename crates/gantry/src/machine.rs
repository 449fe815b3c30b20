//! Whether this machine and this user can do what nodes need: each need is tried out, in namespaces that end with the
//! trial, so that what is missing is told at start and not by the first pod.

use std::path::Path;

use net::{Dataplane, NodeNet};
use runtime::Cgroups;
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use rustix::process::{Resource, Rlimit};
use rustix::thread::UnshareFlags;

use crate::error::Error;

/// Namespaces that nodes and containers live in, as `/proc/self/ns` names them.
const NAMESPACES: [&str; 6] = ["net", "mnt", "pid", "uts", "ipc", "cgroup"];

/// Takes as many descriptors as the process may have: what it starts with is often 1,024, which is less than a server has
/// clients. Where that is refused, fewer connections are served.
pub fn all_files() {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let most = Rlimit { current: limit.maximum, ..limit };
    if let Err(error) = rustix::process::setrlimit(Resource::Nofile, most) {
        tracing::warn!("the process stays with {:?} descriptors: {error}", limit.current);
    }
}

/// Only root may make nodes.
pub fn need_root(command: &str) -> Result<(), Error> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let why = "needs namespaces, mounts and control groups, which only root may make; start it as root";
    Err(Error::Machine(format!("gantry {command} {why}")))
}

/// Tries all that nodes need. `data` is where containers will write.
pub fn check(data: &Path) -> Result<(), Error> {
    for name in NAMESPACES {
        if !Path::new("/proc/self/ns").join(name).exists() {
            let why = "has no namespaces of this kind; use a kernel with namespaces (CONFIG_NAMESPACES)";
            return Err(Error::Machine(format!("the kernel {why}: {name}")));
        }
    }
    // A thread of its own: its namespaces end with it.
    let tried = std::thread::scope(|scope| scope.spawn(|| network().and_then(|()| overlay(data))).join());
    tried.unwrap_or_else(|_| Err(Error::Machine("the trial of the kernel's features broke off".to_owned())))?;
    cgroups()
}

/// Parts the calling thread from the machine's namespace of this kind.
fn part(flags: UnshareFlags, what: &str) -> Result<(), Error> {
    // SAFETY: only this thread's namespace changes; no descriptors and no memory are parted.
    #[allow(unsafe_code)]
    let parted = unsafe { rustix::thread::unshare_unsafe(flags) };
    parted.map_err(|error| {
        Error::Machine(match error {
            Errno::PERM => format!(
                "this user may not make {what}; start gantry as root, in a container with all rights (--privileged)"
            ),
            Errno::NOSPC | Errno::USERS => {
                format!("the kernel's limit of {what} is reached; raise it below /proc/sys/user")
            }
            error => format!("the kernel does not make {what} ({error}); use one with CONFIG_NAMESPACES"),
        })
    })
}

fn network() -> Result<(), Error> {
    part(UnshareFlags::NEWNET, "network namespaces")?;
    let mut net = NodeNet::default();
    net.service_cidrs.extend("10.96.0.0/16".parse::<net::Cidr>());
    let tried = Dataplane::open().and_then(|mut plane| plane.apply(&net).map(|_| ()));
    tried.map_err(|error| {
        let help = "use a kernel with nftables (CONFIG_NF_TABLES, CONFIG_NFT_NAT, CONFIG_NFT_MASQ), \
                    or load its module (modprobe nf_tables)";
        Error::Machine(format!("the kernel does not do what services need ({error}); {help}"))
    })
}

fn overlay(data: &Path) -> Result<(), Error> {
    part(UnshareFlags::NEWNS, "mount namespaces")?;
    let private = MountPropagationFlags::REC | MountPropagationFlags::PRIVATE;
    rustix::mount::mount_change("/", private).map_err(|error| Error::doing("part the mounts", error))?;
    let trial = data.join(format!(".trial-{}", std::process::id()));
    let dirs = ["lower", "upper", "work", "merged"].map(|name| trial.join(name));
    for dir in &dirs {
        std::fs::create_dir_all(dir).map_err(Error::file("create the folder", dir))?;
    }
    let [lower, upper, work, merged] = dirs;
    let options = format!("lowerdir={},upperdir={},workdir={}", lower.display(), upper.display(), work.display());
    let mount = |options: String| {
        let options = std::ffi::CString::new(options).map_err(|_| Errno::INVAL)?;
        rustix::mount::mount("overlay", &merged, "overlay", MountFlags::empty(), Some(&*options))?;
        rustix::mount::unmount(&merged, UnmountFlags::DETACH)
    };
    // As containers mount it: otherwise the end of the trial waits until all that anybody has written to the file system is
    // on the disk. Kernels before 5.10 know no other.
    let mounted = match mount(format!("{options},volatile")) {
        Err(Errno::INVAL) => mount(options),
        other => other,
    };
    // The trial's result counts; a folder that stays is told by whoever lists it.
    let _ = std::fs::remove_dir_all(&trial);
    mounted.map_err(|error| {
        let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
        Error::Machine(if known.lines().any(|line| line.split_whitespace().last() == Some("overlay")) {
            let place = data.display();
            format!(
                "overlayfs cannot write to the file system of {place} ({error}); give a --data on ext4, xfs or btrfs"
            )
        } else {
            format!(
                "the kernel has no overlayfs ({error}); load it (modprobe overlay) or use one with CONFIG_OVERLAY_FS"
            )
        })
    })
}

fn cgroups() -> Result<(), Error> {
    let help = "mount control groups at /sys/fs/cgroup, writable (a privileged container has them)";
    let cgroups = Cgroups::detect()
        .map_err(|error| Error::Machine(format!("the kernel's control groups cannot be used: {error}; {help}")))?;
    let trial = format!("/gantry-trial-{}", std::process::id());
    let tried = cgroups.create(&trial).and_then(|()| cgroups.remove(&trial));
    tried.map_err(|error| Error::Machine(format!("control groups cannot be made: {error}; {help}")))
}

/// Gives this process mounts of its own: what it mounts is nobody else's, and ends with it. Before any thread starts.
pub fn own_mounts() -> Result<(), Error> {
    part(UnshareFlags::NEWNS, "mount namespaces")?;
    // Private first, so that nothing gets out; then shared among ourselves, for mounts that pods pass on.
    for kind in [MountPropagationFlags::PRIVATE, MountPropagationFlags::SHARED] {
        rustix::mount::mount_change("/", MountPropagationFlags::REC | kind)
            .map_err(|error| Error::doing("part the mounts from the machine's", error))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Needs root, as all of `./test` does.
    #[test]
    fn a_machine_that_runs_the_tests_can_run_nodes() {
        let dir = tempfile::tempdir().unwrap();
        check(dir.path()).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_file_system_without_upper_layers_is_told() {
        let refused = check(Path::new("/proc/self")).unwrap_err().to_string();
        assert!(refused.contains("/proc/self"), "{refused}");
    }
}
