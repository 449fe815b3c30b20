//! Turns a fork of the shim into a container's process: namespaces, root, user, rights, filter, program.
//!
//! The child reports what failed through a pipe that `execve` closes; an empty pipe means the program runs. The order
//! of the steps is the security of the container: everything that needs rights comes before they are dropped, and
//! nothing of the container runs or is trusted before the last step.
//!
//! Invariants: no descriptor of the host survives `execve` except the three standard ones; paths of the container are
//! resolved without magic links; every process of a container, also one started later by exec, gets the same
//! capabilities, `no_new_privs` and seccomp filter as its plan says.

use std::ffi::CString;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use base64::Engine;
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::pipe::PipeFlags;

use super::{root, user};
use crate::plan::{Capabilities, ContainerPlan, ProcessPlan};
use crate::rooted::Rooted;
use crate::sys::{self, Instruction};

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// What a child may say about its failure.
const FAILURE_MAX_BYTES: u64 = 8 << 10;
/// As many as the masks can hold, so that one a newer kernel adds is dropped too.
const LAST_CAPABILITY: u64 = 63;

type Done<T = ()> = Result<T, String>;

fn why<E: std::fmt::Display>(doing: impl std::fmt::Display) -> impl FnOnce(E) -> String {
    move |error| format!("{doing}: {error}")
}

/// A process that runs its program.
pub(super) struct Spawned {
    pub pid: i32,
    pub pidfd: OwnedFd,
    pub stdin: Option<OwnedFd>,
    pub stdout: Option<OwnedFd>,
    pub stderr: Option<OwnedFd>,
    /// Our end of its terminal, instead of the three pipes.
    pub terminal: Option<OwnedFd>,
}

/// Starts a container's first process. `processes` is the process namespace to join instead of a new one.
/// `nothing` is the mount namespace that it begins with.
pub(super) fn start(
    plan: &ContainerPlan,
    nothing: BorrowedFd<'_>,
    processes: Option<BorrowedFd<'_>>,
    own_processes: bool,
) -> Done<Spawned> {
    let flags = if own_processes { sys::CLONE_NEWPID } else { 0 };
    launch(&plan.process, flags, processes, |console, joined| {
        if plan.process.cgroup_last.is_empty() {
            // Control groups of version 2 are mounted as the new namespace shows them.
            own_cgroups()?;
        }
        let mounted = root::enter(plan, nothing)?;
        if let Some(console) = console {
            let number = open_terminal(console, plan.process.size)?;
            root::bind_console(number)?;
        }
        root::restrict(plan, &mounted)?;
        if !plan.process.cgroup_last.is_empty() {
            // The namespace begins at the groups that the process is in.
            joined()?;
            own_cgroups()?;
        }
        Ok(())
    })
}

fn own_cgroups() -> Done {
    sys::unshare(libc::CLONE_NEWCGROUP).map_err(why("make a cgroup namespace"))
}

/// Starts one more process beside the container's first.
pub(super) fn exec(process: &ProcessPlan, first: BorrowedFd<'_>) -> Done<Spawned> {
    launch(process, 0, Some(first), |console, joined| {
        joined()?;
        sys::join_namespaces(first, libc::CLONE_NEWNS | libc::CLONE_NEWCGROUP).map_err(why("join the container"))?;
        match console {
            Some(console) => open_terminal(console, process.size).map(drop),
            None => Ok(()),
        }
    })
}

/// The child's ends of its standard streams.
struct ChildStreams {
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
    console: Option<OwnedFd>,
}

/// Our ends; `console` is where the terminal's descriptor arrives.
#[derive(Default)]
struct OurStreams {
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
    console: Option<OwnedFd>,
}

fn streams(plan: &ProcessPlan) -> rustix::io::Result<(ChildStreams, OurStreams)> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    let mut child = ChildStreams { stdin: None, stdout: None, stderr: None, console: None };
    let mut ours = OurStreams::default();
    if plan.tty {
        let (a, b) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        (child.console, ours.console) = (Some(a), Some(b));
        return Ok((child, ours));
    }
    let pipe = || rustix::pipe::pipe_with(PipeFlags::CLOEXEC);
    if plan.stdin {
        let (read, write) = pipe()?;
        (child.stdin, ours.stdin) = (Some(read), Some(write));
    } else {
        child.stdin = Some(rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?);
    }
    let (read, write) = pipe()?;
    (ours.stdout, child.stdout) = (Some(read), Some(write));
    let (read, write) = pipe()?;
    (ours.stderr, child.stderr) = (Some(read), Some(write));
    Ok((child, ours))
}

fn launch(
    plan: &ProcessPlan,
    flags: u64,
    processes: Option<BorrowedFd<'_>>,
    enter: impl FnOnce(Option<BorrowedFd<'_>>, &dyn Fn() -> Done) -> Done,
) -> Done<Spawned> {
    let (theirs, ours) = streams(plan).map_err(why("make the standard streams"))?;
    let (report, reporter) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(why("make a pipe"))?;
    let fork = match processes {
        None => sys::fork(flags),
        Some(other) => fork_into(other, flags),
    }
    .map_err(why("fork"))?;
    let (pid, pidfd) = match fork {
        sys::Fork::Child => {
            drop((report, ours));
            let failure = become_container(plan, &theirs, enter);
            let _ = rustix::io::write(&reporter, failure.as_bytes());
            sys::leave(1)
        }
        sys::Fork::Parent { pid, pidfd } => (pid, pidfd),
    };
    drop((theirs, reporter));
    let mut failure = Vec::new();
    let _ = std::fs::File::from(report).take(FAILURE_MAX_BYTES).read_to_end(&mut failure);
    if !failure.is_empty() {
        let _ = rustix::process::waitid(
            rustix::process::WaitId::PidFd(pidfd.as_fd()),
            rustix::process::WaitIdOptions::EXITED,
        );
        return Err(String::from_utf8_lossy(&failure).into_owned());
    }
    let terminal = ours.console.as_ref().map(receive_descriptor).transpose()?;
    Ok(Spawned { pid, pidfd, stdin: ours.stdin, stdout: ours.stdout, stderr: ours.stderr, terminal })
}

/// Forks so that the child is in another process' process namespace. The shim itself stays where it is.
fn fork_into(other: BorrowedFd<'_>, flags: u64) -> std::io::Result<sys::Fork> {
    let own = std::fs::File::open("/proc/self/ns/pid")?;
    sys::join_namespaces(other, libc::CLONE_NEWPID)?;
    let fork = sys::fork(flags);
    if !matches!(fork, Ok(sys::Fork::Child)) {
        sys::join_namespaces(own.as_fd(), libc::CLONE_NEWPID)?;
    }
    fork
}

/// In the child. Returns only when something failed, with what.
fn become_container(
    plan: &ProcessPlan,
    streams: &ChildStreams,
    enter: impl FnOnce(Option<BorrowedFd<'_>>, &dyn Fn() -> Done) -> Done,
) -> String {
    match prepare(plan, streams, enter) {
        Ok((path, argv, env)) => {
            let error = sys::exec(&path, &argv, &env);
            format!("exec {:?}: {error}", argv[0].to_string_lossy())
        }
        Err(failure) => failure,
    }
}

fn prepare(
    plan: &ProcessPlan,
    streams: &ChildStreams,
    enter: impl FnOnce(Option<BorrowedFd<'_>>, &dyn Fn() -> Done) -> Done,
) -> Done<(CString, Vec<CString>, Vec<CString>)> {
    // The agent's small pages are not the container's.
    rustix::thread::disable_transparent_huge_pages(false).map_err(why("allow huge pages"))?;
    // Until execve nobody in the container may look into this process, which still holds the host's files.
    sys::prctl(libc::PR_SET_DUMPABLE, 0, 0).map_err(why("hide the new process"))?;
    rustix::process::setsid().map_err(why("make a session"))?;
    rustix::process::umask(Mode::empty());
    sys::heed_signals(super::IGNORED);
    for (fd, number) in [(&streams.stdin, 0), (&streams.stdout, 1), (&streams.stderr, 2)] {
        if let Some(fd) = fd {
            sys::dup_to(fd.as_fd(), number).map_err(why("set up the standard streams"))?;
        }
    }
    for file in plan.cgroup_procs.iter().filter(|file| !plan.cgroup_last.contains(file)) {
        std::fs::write(file, "0").map_err(why(format_args!("join {}", file.display())))?;
    }
    // Opened now: the host's files are out of sight soon.
    let open = |file: &PathBuf| {
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        rustix::fs::open(file, flags, Mode::empty()).map_err(why(format_args!("open {}", file.display())))
    };
    let last = plan.cgroup_last.iter().map(open).collect::<Done<Vec<_>>>()?;
    let join_last = || -> Done {
        last.iter().try_for_each(|file| rustix::io::write(file, b"0").map(drop)).map_err(why("join the last cgroup"))
    };
    if let Some(score) = plan.oom_score_adj {
        std::fs::write("/proc/self/oom_score_adj", score.to_string()).map_err(why("set the OOM score"))?;
    }
    enter(streams.console.as_ref().map(AsFd::as_fd), &join_last)?;
    let root = Rooted::open(Path::new("/")).map_err(why("open the root"))?;
    let who = user::identity(&root, plan)?;
    let env = environment(plan, &who.home);
    let cwd = root::working_dir(&plan.cwd)?;
    give_up_rights(plan, &who, &cwd)?;
    let (path, argv, env) = program(&root, plan, env)?;
    sys::close_on_exec_from_3().map_err(why("close descriptors"))?;
    if plan.no_new_privileges {
        install_filter(plan)?;
    }
    Ok((path, argv, env))
}

/// User, groups and capabilities. Without `no_new_privs` the filter needs rights, so it comes before the last step.
fn give_up_rights(plan: &ProcessPlan, who: &user::Identity, cwd: &OwnedFd) -> Done {
    let Capabilities { bounding, permitted, effective, inheritable, ambient } = plan.capabilities;
    for capability in (0..=LAST_CAPABILITY).filter(|c| bounding & (1 << c) == 0) {
        match sys::prctl(libc::PR_CAPBSET_DROP, capability, 0) {
            Ok(()) => {}
            // Past the last one that this kernel knows.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => break,
            Err(error) => return Err(why("drop a capability")(error)),
        }
    }
    if plan.tty {
        // A user other than root must be able to open its own terminal again.
        let _ = rustix::fs::fchown(std::io::stdin(), Some(rustix::fs::Uid::from_raw(who.uid)), None);
    }
    let before = sys::permitted_capabilities().map_err(why("read capabilities"))?;
    sys::set_groups(&who.groups).map_err(why("set supplementary groups"))?;
    sys::prctl(libc::PR_SET_KEEPCAPS, 1, 0).map_err(why("keep capabilities"))?;
    let entered = rustix::process::fchdir(cwd);
    sys::set_ids(who.uid, who.gid).map_err(why(format_args!("become user {}", who.uid)))?;
    if let Err(errno) = entered.or_else(|_| rustix::process::fchdir(cwd)) {
        return Err(why(format_args!("enter the working directory {}", plan.cwd))(errno));
    }
    rustix::process::umask(Mode::from_raw_mode(0o022));
    if plan.no_new_privileges {
        sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0).map_err(why("set no_new_privs"))?;
    } else {
        sys::set_capabilities(before, before, inheritable & before).map_err(why("keep capabilities"))?;
        install_filter(plan)?;
    }
    sys::prctl(libc::PR_SET_KEEPCAPS, 0, 0).map_err(why("drop capabilities"))?;
    sys::set_capabilities(effective, permitted, inheritable).map_err(why("set capabilities"))?;
    for capability in (0..=LAST_CAPABILITY).filter(|c| ambient & (1 << c) != 0) {
        sys::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE as u64, capability)
            .map_err(why("raise a capability"))?;
    }
    Ok(())
}

fn install_filter(plan: &ProcessPlan) -> Done {
    if plan.seccomp.is_empty() {
        return Ok(());
    }
    let doing = "install the seccomp filter";
    let bytes = base64::engine::general_purpose::STANDARD.decode(&plan.seccomp).map_err(why(doing))?;
    let program: Vec<Instruction> = bytes
        .chunks_exact(8)
        .map(|c| Instruction {
            code: u16::from_le_bytes([c[0], c[1]]),
            jt: c[2],
            jf: c[3],
            k: u32::from_le_bytes([c[4], c[5], c[6], c[7]]),
        })
        .collect();
    sys::install_filter(&program).map_err(why(doing))
}

fn environment(plan: &ProcessPlan, home: &str) -> Vec<String> {
    let mut env = plan.env.clone();
    let has = |env: &[String], name: &str| env.iter().any(|e| e.starts_with(name));
    if !has(&env, "PATH=") {
        env.push(format!("PATH={DEFAULT_PATH}"));
    }
    if !has(&env, "HOME=") {
        env.push(format!("HOME={home}"));
    }
    if plan.tty && !has(&env, "TERM=") {
        env.push("TERM=xterm".to_owned());
    }
    env
}

/// Finds the program as `execvp` would, for the user it will run as.
fn program(root: &Rooted, plan: &ProcessPlan, env: Vec<String>) -> Done<(CString, Vec<CString>, Vec<CString>)> {
    let name = plan.argv.first().filter(|n| !n.is_empty()).ok_or("no command is given")?;
    let path = match name.contains('/') {
        true => PathBuf::from(name),
        false => env
            .iter()
            .find_map(|e| e.strip_prefix("PATH="))
            .unwrap_or(DEFAULT_PATH)
            .split(':')
            .map(|dir| Path::new(if dir.is_empty() { "." } else { dir }).join(name))
            .find(|path| rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok() && path.is_file())
            .ok_or_else(|| format!("exec: {name:?}: executable file not found in $PATH"))?,
    };
    // `/proc/self/exe` and the like would run the host's program in the container.
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let base = match path.is_absolute() {
        true => rustix::fs::openat2(root, ".", flags, Mode::empty(), ResolveFlags::empty()),
        false => rustix::fs::open(".", flags, Mode::empty()),
    };
    let relative = if path.is_absolute() { crate::rooted::clean(&path) } else { path.clone() };
    base.and_then(|base| rustix::fs::openat2(&base, &relative, flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS))
        .map_err(|errno| format!("exec: {name:?}: {errno}"))?;
    let c = |text: &str| CString::new(text).map_err(|_| "a NUL byte in the command or environment".to_owned());
    let strings = |list: &[String]| list.iter().map(|s| c(s)).collect::<Done<Vec<_>>>();
    let path = CString::new(path.as_os_str().as_bytes()).map_err(|_| "a NUL byte in the command".to_owned())?;
    Ok((path, strings(&plan.argv)?, strings(&env)?))
}

/// Opens a new terminal in the container's own devpts, makes it ours, and sends its other end home.
fn open_terminal(console: BorrowedFd<'_>, size: Option<(u16, u16)>) -> Done<u32> {
    const DEVPTS_MAGIC: u64 = 0x1cd1;
    let doing = "open a terminal";
    let root = Rooted::open(Path::new("/")).map_err(why(doing))?;
    let flags = OFlags::RDWR | OFlags::NOCTTY;
    // Only a true devpts will do: a container might have put something else there for an exec to find.
    let master = root.get_with(Path::new("dev/pts/ptmx"), flags, ResolveFlags::NO_SYMLINKS).map_err(why(doing))?;
    let fs = rustix::fs::fstatfs(&master).map_err(why(doing))?;
    if fs.f_type as u64 != DEVPTS_MAGIC {
        return Err("open a terminal: /dev/pts is no devpts".to_owned());
    }
    rustix::pty::unlockpt(&master).map_err(why(doing))?;
    if let Some((columns, rows)) = size {
        set_window(master.as_fd(), columns, rows);
    }
    let slave =
        rustix::pty::ioctl_tiocgptpeer(&master, rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY)
            .map_err(why(doing))?;
    let name = rustix::pty::ptsname(&master, Vec::new()).map_err(why(doing))?;
    let number = name.to_string_lossy().rsplit('/').next().and_then(|n| n.parse().ok()).ok_or(doing)?;
    for standard in 0..3 {
        sys::dup_to(slave.as_fd(), standard).map_err(why(doing))?;
    }
    sys::take_terminal(slave.as_fd()).map_err(why(doing))?;
    send_descriptor(console, master.as_fd()).map_err(why(doing))?;
    Ok(number)
}

pub(super) fn set_window(terminal: BorrowedFd<'_>, columns: u16, rows: u16) {
    let size = rustix::termios::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    let _ = rustix::termios::tcsetwinsize(terminal, size);
}

fn send_descriptor(socket: BorrowedFd<'_>, fd: BorrowedFd<'_>) -> rustix::io::Result<()> {
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [fd];
    if !control.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(rustix::io::Errno::NOBUFS);
    }
    sendmsg(socket, &[std::io::IoSlice::new(b"t")], &mut control, SendFlags::NOSIGNAL).map(drop)
}

fn receive_descriptor(socket: &OwnedFd) -> Done<OwnedFd> {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    recvmsg(socket, &mut [std::io::IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC)
        .map_err(why("receive the terminal"))?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(mut fds) = message
            && let Some(fd) = fds.next()
        {
            return Ok(fd);
        }
    }
    Err(format!("receive the terminal from descriptor {}: none came", socket.as_raw_fd()))
}

/// The first process of a pod's shared process namespace: reaps what nobody waits for, and does nothing else.
pub(super) fn reaper() -> std::io::Result<(i32, OwnedFd)> {
    match sys::fork(sys::CLONE_NEWPID)? {
        sys::Fork::Parent { pid, pidfd } => Ok((pid, pidfd)),
        sys::Fork::Child => {
            let _ = sys::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong, 0);
            // An ignored SIGCHLD makes the kernel reap.
            sys::ignore_signal(libc::SIGCHLD);
            let _ = rustix::process::setsid();
            // Above all the pipe on which the agent waits for the shim.
            sys::close_everything();
            loop {
                let _ = rustix::thread::nanosleep(&rustix::time::Timespec { tv_sec: i64::MAX / 4, tv_nsec: 0 });
            }
        }
    }
}
