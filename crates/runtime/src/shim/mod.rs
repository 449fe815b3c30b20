//! The shim: one small process per pod that holds the pod's namespaces and the first processes of its containers.
//!
//! It is started by the agent through the own binary (`shim DIR`), or forked of one that was (`seed`, see there), leaves
//! the agent's session, and lives until it is told to quit; an agent that is restarted, killed or replaced finds it through the socket in DIR. It starts
//! processes, writes their logs, passes their streams, and remembers how they ended (in memory, and in a file for the
//! case that it dies itself).
//!
//! Not here: any choice. The agent sends complete plans. No tokio, no threads: containers are made by forking, which
//! is only sound in a process with one thread.
//!
//! Why no outside container library: the one at hand (libcontainer 0.7) was measured and read first. Its exec leaves
//! out the container's seccomp filter, it sets the OOM score of the calling process instead of the container's, does
//! not say why a program could not be executed, ignores seccomp silently when built without a C library, and needs
//! three to four times the time per container. What remains to be done is in `spawn.rs` and `root.rs`.

mod log;
mod root;
pub(crate) mod seed;
mod serve;
mod spawn;
mod user;

use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::Path;

use rustix::mount::{MountFlags, mount_bind};

use crate::plan::SandboxPlan;
use crate::seam::NetworkNamespace;
use crate::sys;

/// Names in a pod's directory.
pub(crate) const PLAN_FILE: &str = "sandbox.plan";
pub(crate) const SOCKET_FILE: &str = "shim.sock";
pub(crate) const NETWORK_FILE: &str = "netns";
pub(crate) const SHM_DIR: &str = "shm";
/// Signals that a shim does not heed.
pub(crate) const IGNORED: &[i32] = &[libc::SIGPIPE, libc::SIGHUP];
/// What the shim writes to its standard output when it is ready; anything else is why it is not.
pub(crate) const READY: &str = "ready\n";

pub(crate) use serve::exit_file;

/// The hidden subcommands.
pub(crate) const SHIM_WORD: &str = "shim";
pub(crate) const SEED_WORD: &str = "seed";

/// Entry point of the hidden subcommands: does not return when `words`, those behind the program's name, are one.
///
/// Must be called before any thread is started.
pub fn main_if_meant(words: &[String]) {
    let done = match words {
        [word, dir] if word == SHIM_WORD => begin(Path::new(dir)),
        [word, place] if word == SEED_WORD => seed::serve(Path::new(place)),
        [word, ..] if word == SHIM_WORD || word == SEED_WORD => sys::leave(2),
        _ => return,
    };
    if let Err(why) = &done {
        let _ = std::io::stdout().write_all(why.as_bytes());
    }
    sys::leave(i32::from(done.is_err()))
}

/// The pod as the shim holds it.
struct Pod {
    /// First process of the shared process namespace, when there is one.
    reaper: Option<OwnedFd>,
    /// The mount namespace that containers begin with; see [`root::nothing`].
    nothing: OwnedFd,
    /// From when on, by [`crate::boot_ms`], nothing runs; `None`: for as long as it likes.
    held_until_ms: Option<u64>,
}

fn begin(dir: &Path) -> Result<(), String> {
    // The fork makes the shim an orphan at once, so it belongs to init and not to the agent.
    match sys::fork(0).map_err(|e| format!("fork: {e}"))? {
        sys::Fork::Parent { .. } => Ok(()),
        sys::Fork::Child => hold(dir, root::nothing()?),
    }
}

/// Becomes the shim of the pod in `dir`. Returns when it has ended, or could not begin.
fn hold(dir: &Path, nothing: OwnedFd) -> Result<(), String> {
    let failed = |doing: &'static str| move |error: std::io::Error| format!("{doing}: {error}");
    rustix::process::setsid().map_err(|e| format!("leave the session: {e}"))?;
    // Once for all containers; what is ignored later, each of them heeds again.
    sys::reset_signals();
    IGNORED.iter().for_each(|signal| sys::ignore_signal(*signal));
    let _ = rustix::thread::set_name(c"gantry-shim");
    rustix::process::chdir(dir).map_err(|e| format!("enter {}: {e}", dir.display()))?;
    let plan = std::fs::read(PLAN_FILE).map_err(failed("read the plan"))?;
    let plan: SandboxPlan = serde_json::from_slice(&plan).map_err(|e| format!("read the plan: {e}"))?;
    let pod = set_up(&plan, nothing)?;
    let _ = std::fs::remove_file(SOCKET_FILE);
    let listener = UnixListener::bind(SOCKET_FILE).map_err(failed("listen"))?;
    let mut stdout = std::io::stdout();
    stdout.write_all(READY.as_bytes()).and_then(|()| stdout.flush()).map_err(failed("report"))?;
    let null = std::fs::File::options().read(true).write(true).open("/dev/null").map_err(failed("open /dev/null"))?;
    for standard in 0..3 {
        use std::os::fd::AsFd;
        sys::dup_to(null.as_fd(), standard).map_err(failed("detach from the agent"))?;
    }
    serve::run(pod, listener);
    Ok(())
}

/// Makes or joins the pod's namespaces. The shim lives in them; its containers inherit them.
fn set_up(plan: &SandboxPlan, nothing: OwnedFd) -> Result<Pod, String> {
    let failed = |doing: &'static str| move |error: std::io::Error| format!("{doing}: {error}");
    let os = |doing: &'static str| move |errno: rustix::io::Errno| format!("{doing}: {errno}");
    match &plan.network {
        NetworkNamespace::Host => {}
        NetworkNamespace::New => {
            sys::unshare(libc::CLONE_NEWNET).map_err(failed("make a network namespace"))?;
            sys::loopback_up().map_err(failed("bring up the loopback link"))?;
            std::fs::write(NETWORK_FILE, "").map_err(failed("make the network namespace's file"))?;
            mount_bind("/proc/self/ns/net", NETWORK_FILE).map_err(os("keep the network namespace"))?;
        }
        NetworkNamespace::Path(path) => {
            use std::os::fd::AsFd;
            let file = std::fs::File::open(path).map_err(failed("open the network namespace"))?;
            sys::join_namespaces(file.as_fd(), libc::CLONE_NEWNET).map_err(failed("join the network namespace"))?;
        }
    }
    if let Some(hostname) = &plan.hostname {
        sys::unshare(libc::CLONE_NEWUTS).map_err(failed("make a UTS namespace"))?;
        rustix::system::sethostname(hostname.as_bytes()).map_err(os("set the host name"))?;
    }
    if !plan.host_ipc {
        sys::unshare(libc::CLONE_NEWIPC).map_err(failed("make an IPC namespace"))?;
        std::fs::create_dir_all(SHM_DIR).map_err(failed("make /dev/shm"))?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        let options = std::ffi::CString::new(format!("mode=1777,size={}", plan.shm_bytes)).unwrap_or_default();
        rustix::mount::mount("shm", SHM_DIR, "tmpfs", flags, Some(&*options)).map_err(os("mount /dev/shm"))?;
    }
    for (name, value) in &plan.sysctls {
        let path = Path::new("/proc/sys").join(name.replace('.', "/"));
        std::fs::write(&path, value).map_err(|e| format!("set sysctl {name} to {value:?}: {e}"))?;
    }
    let reaper = match plan.share_processes {
        true => Some(spawn::reaper().map_err(failed("start the pod's first process"))?.1),
        false => None,
    };
    Ok(Pod { reaper, nothing, held_until_ms: plan.held_until_ms })
}
