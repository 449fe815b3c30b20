//! The few system calls that no safe library offers, each behind one small function.
//!
//! Not here: any decision. Invariant: every function either succeeds or returns the kernel's error.

use std::ffi::CString;
use std::io::{Error, Result};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Flags of `clone3` and `setns`, as the kernel numbers them.
pub(crate) const CLONE_NEWNS: u64 = libc::CLONE_NEWNS as u64;
pub(crate) const CLONE_NEWPID: u64 = libc::CLONE_NEWPID as u64;

fn check(result: libc::c_long) -> Result<libc::c_long> {
    if result < 0 { Err(Error::last_os_error()) } else { Ok(result) }
}

/// Which side of a [`fork`] we are on.
pub(crate) enum Fork {
    Child,
    Parent { pid: i32, pidfd: OwnedFd },
}

/// Forks with new namespaces (`CLONE_NEW*`), giving the parent a process descriptor.
///
/// Only for a process with one thread: the child may then use the allocator and everything else.
pub(crate) fn fork(flags: u64) -> Result<Fork> {
    let mut pidfd: libc::c_int = -1;
    // SAFETY: `clone_args` is plain numbers, for which all zeroes is a value.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = flags | libc::CLONE_PIDFD as u64;
    args.pidfd = &raw mut pidfd as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    // SAFETY: without CLONE_VM the child has its own copy of memory and of this stack, as after fork(2); the process
    // has one thread (the caller's promise), so no lock is held by a thread that is missing in the child.
    let pid = check(unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>()) })?;
    if pid == 0 {
        return Ok(Fork::Child);
    }
    // SAFETY: the kernel has just given us this descriptor through CLONE_PIDFD; nobody else owns it.
    Ok(Fork::Parent { pid: pid as i32, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } })
}

/// Ends a forked child at once, without running destructors that belong to the parent.
pub(crate) fn leave(code: i32) -> ! {
    // SAFETY: _exit has no preconditions.
    unsafe { libc::_exit(code) }
}

/// Joins the namespaces `flags` (`CLONE_NEW*`) of a process descriptor or a namespace file.
pub(crate) fn join_namespaces(fd: BorrowedFd<'_>, flags: libc::c_int) -> Result<()> {
    // SAFETY: setns takes a descriptor and a number; it changes this thread only.
    check(unsafe { libc::setns(fd.as_raw_fd(), flags) }.into()).map(drop)
}

/// The mount namespace of a process. Kernels before 6.11 do not give it.
pub(crate) fn mounts_of(pidfd: BorrowedFd<'_>) -> Result<OwnedFd> {
    const PIDFD_GET_MNT_NAMESPACE: libc::Ioctl = 0xff03;
    // SAFETY: the request takes a number, and gives a descriptor that nobody else owns.
    unsafe {
        let fd = check(libc::ioctl(pidfd.as_raw_fd(), PIDFD_GET_MNT_NAMESPACE, 0).into())?;
        Ok(OwnedFd::from_raw_fd(fd as i32))
    }
}

pub(crate) fn unshare(flags: libc::c_int) -> Result<()> {
    // SAFETY: unshare takes a number; memory is not touched (never called with CLONE_VM).
    check(unsafe { libc::unshare(flags) }.into()).map(drop)
}

/// Changes attributes of a mount (tree) given as a descriptor.
pub(crate) fn mount_attributes(
    mount: BorrowedFd<'_>,
    set: u64,
    clear: u64,
    propagation: u64,
    recursive: bool,
) -> Result<()> {
    let attributes = libc::mount_attr { attr_set: set, attr_clr: clear, propagation, userns_fd: 0 };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is an empty C string, and the attributes outlive the call with their true size.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    })
    .map(drop)
}

/// Forgets the pages of a mapping that has a file behind it and was never written to: they come from the file again.
pub(crate) fn forget_pages(start: usize, bytes: usize) {
    // SAFETY: the caller found the range in this process' mappings, private to it and without the right to write; what is
    // read or run there next is mapped anew with the same bytes. A range that is gone by now is refused, or was
    // mapped anew by the loader in the same way.
    let _ = unsafe { libc::madvise(std::ptr::without_provenance_mut(start), bytes, libc::MADV_DONTNEED) };
}

/// Numbers of the kernel's interface to watchers of faults (`linux/userfaultfd.h`).
const UFFDIO_API: libc::Ioctl = 0xc018_aa3f_u32 as libc::Ioctl;
const UFFDIO_REGISTER: libc::Ioctl = 0xc020_aa00_u32 as libc::Ioctl;
const UFFD_API: u64 = 0xaa;
const UFFD_FEATURE_WP_ASYNC: u64 = 1 << 15;
const UFFDIO_REGISTER_MODE_WP: u64 = 2;

/// A watcher of faults that is told of none: the kernel settles writes to what it watches by itself.
pub(crate) fn fault_watch() -> Result<OwnedFd> {
    // SAFETY: the call takes a number, and gives a descriptor that nobody else owns.
    let watch = unsafe {
        let fd = check(libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | libc::O_NONBLOCK))?;
        OwnedFd::from_raw_fd(fd as i32)
    };
    let mut wanted: [u64; 3] = [UFFD_API, UFFD_FEATURE_WP_ASYNC, 0];
    // SAFETY: the pointer is to the three numbers that this request reads and writes.
    check(unsafe { libc::ioctl(watch.as_raw_fd(), UFFDIO_API, wanted.as_mut_ptr()) }.into())?;
    Ok(watch)
}

/// Has the kernel map single pages of a mapping, which is what it does for what is watched. Nothing is write-protected.
pub(crate) fn watch_faults(watch: &OwnedFd, start: usize, bytes: usize) -> Result<()> {
    let mut range: [u64; 4] = [start as u64, bytes as u64, UFFDIO_REGISTER_MODE_WP, 0];
    // SAFETY: the pointer is to the four numbers that this request reads and writes. Mappings keep their bytes and rights.
    check(unsafe { libc::ioctl(watch.as_raw_fd(), UFFDIO_REGISTER, range.as_mut_ptr()) }.into()).map(drop)
}

pub(crate) fn prctl(option: libc::c_int, a: libc::c_ulong, b: libc::c_ulong) -> Result<()> {
    // SAFETY: callers pass options whose arguments are numbers (never pointers).
    check(unsafe { libc::prctl(option, a, b, 0, 0) }.into()).map(drop)
}

pub(crate) fn set_groups(groups: &[u32]) -> Result<()> {
    // SAFETY: pointer and length describe one live slice. The raw call changes this thread, and there is only one.
    check(unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) }).map(drop)
}

pub(crate) fn set_ids(uid: u32, gid: u32) -> Result<()> {
    // SAFETY: numbers only.
    check(unsafe { libc::syscall(libc::SYS_setresgid, gid, gid, gid) })?;
    // SAFETY: numbers only.
    check(unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) }).map(drop)
}

#[repr(C)]
struct CapHeader {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct CapData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

const LINUX_CAPABILITY_VERSION_3: u32 = 0x2008_0522;

/// Sets this thread's capability sets, as bit masks.
pub(crate) fn set_capabilities(effective: u64, permitted: u64, inheritable: u64) -> Result<()> {
    let header = CapHeader { version: LINUX_CAPABILITY_VERSION_3, pid: 0 };
    let half = |shift: u32| CapData {
        effective: (effective >> shift) as u32,
        permitted: (permitted >> shift) as u32,
        inheritable: (inheritable >> shift) as u32,
    };
    let data = [half(0), half(32)];
    // SAFETY: version 3 reads one header and two data records, which both outlive the call.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) }).map(drop)
}

/// One instruction of a classic BPF program.
pub(crate) type Instruction = libc::sock_filter;

/// Puts a seccomp filter on this thread.
pub(crate) fn install_filter(program: &[Instruction]) -> Result<()> {
    let length = u16::try_from(program.len()).map_err(|_| Error::from_raw_os_error(libc::E2BIG))?;
    let program = libc::sock_fprog { len: length, filter: program.as_ptr().cast_mut() };
    const SECCOMP_SET_MODE_FILTER: libc::c_long = 1;
    // SAFETY: the kernel copies `len` instructions from a live slice and never writes to it.
    check(unsafe { libc::syscall(libc::SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &raw const program) }).map(drop)
}

/// Marks every descriptor from 3 on to be closed by `execve`.
pub(crate) fn close_on_exec_from_3() -> Result<()> {
    // SAFETY: only sets flags on descriptors.
    check(unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) }).map(drop)
}

/// Closes every descriptor of a forked child that will never execute anything.
pub(crate) fn close_everything() {
    // SAFETY: the caller is a forked child that goes on without any descriptor; nothing in it is dropped later.
    unsafe { libc::syscall(libc::SYS_close_range, 0, u32::MAX, 0) };
}

/// Gives back the default action for every signal, and unblocks all.
pub(crate) fn reset_signals() {
    for signal in 1..=64 {
        if signal != libc::SIGKILL && signal != libc::SIGSTOP {
            // SAFETY: SIG_DFL is a valid action; numbers that glibc keeps to itself are refused with an error.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
    }
    unblock_signals();
}

fn unblock_signals() {
    // SAFETY: an empty set is made before it is read.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut());
    }
}

/// Gives back the default action for these signals, and unblocks all.
pub(crate) fn heed_signals(signals: &[libc::c_int]) {
    for signal in signals {
        // SAFETY: SIG_DFL is a valid action.
        unsafe { libc::signal(*signal, libc::SIG_DFL) };
    }
    unblock_signals();
}

pub(crate) fn ignore_signal(signal: libc::c_int) {
    // SAFETY: SIG_IGN is a valid action.
    unsafe { libc::signal(signal, libc::SIG_IGN) };
}

/// Replaces the program. Returns only with an error.
pub(crate) fn exec(path: &CString, argv: &[CString], env: &[CString]) -> Error {
    let pointers = |strings: &[CString]| -> Vec<*const libc::c_char> {
        strings.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (argv, env) = (pointers(argv), pointers(env));
    // SAFETY: both arrays end with a null pointer, and the strings they point to are alive.
    unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), env.as_ptr()) };
    Error::last_os_error()
}

/// Makes the terminal on `fd` the controlling one of this session.
pub(crate) fn take_terminal(fd: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: TIOCSCTTY takes a number.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCSCTTY, 0) }.into()).map(drop)
}

/// Puts other words of the same length in the place where the kernel shows this process' words from.
pub(crate) fn overwrite_words(start: usize, text: &[u8]) {
    let place = std::ptr::with_exposed_provenance_mut::<u8>(start);
    // SAFETY: the caller has the address and the length from the kernel, which put the words onto this process' stack, for
    // the process to change; it has one thread, and nothing in it keeps a reference to them.
    unsafe { std::ptr::copy_nonoverlapping(text.as_ptr(), place, text.len()) };
}

/// Brings the loopback link of this network namespace up.
pub(crate) fn loopback_up() -> Result<()> {
    use rustix::net::{AddressFamily, SocketType, socket};
    let socket = socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    // SAFETY: `ifreq` is plain data, for which all zeroes is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads one ifreq, which is alive and whole.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) }.into()).map(drop)
}

/// Copies of the standard descriptors 0, 1 and 2 are replaced by `fd`.
pub(crate) fn dup_to(fd: BorrowedFd<'_>, number: i32) -> Result<()> {
    // SAFETY: dup2 onto a standard descriptor, which nobody in this process owns as an OwnedFd.
    check(unsafe { libc::dup2(fd.as_raw_fd(), number) }.into()).map(drop)
}

/// Loads an eBPF program for devices and attaches it to a v2 cgroup directory.
pub(crate) fn attach_device_filter(cgroup: BorrowedFd<'_>, program: &[u64]) -> Result<()> {
    const BPF_PROG_LOAD: libc::c_long = 5;
    const BPF_PROG_ATTACH: libc::c_long = 8;
    const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
    const BPF_CGROUP_DEVICE: u32 = 6;
    #[repr(C)]
    #[derive(Default)]
    struct Load {
        kind: u32,
        count: u32,
        instructions: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log: u64,
        kernel_version: u32,
        flags: u32,
    }
    #[repr(C)]
    struct Attach {
        target: i32,
        program: i32,
        kind: u32,
        flags: u32,
    }
    let load = Load {
        kind: BPF_PROG_TYPE_CGROUP_DEVICE,
        count: program.len() as u32,
        instructions: program.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        ..Load::default()
    };
    // SAFETY: the attribute, the instructions and the licence outlive the call, with their true sizes.
    let fd = check(unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const load, size_of::<Load>()) })?;
    // SAFETY: the kernel has just given us this descriptor.
    let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    let attach =
        Attach { target: cgroup.as_raw_fd(), program: fd.as_fd().as_raw_fd(), kind: BPF_CGROUP_DEVICE, flags: 0 };
    // SAFETY: the attribute outlives the call with its true size; both descriptors are open.
    check(unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_ATTACH, &raw const attach, size_of::<Attach>()) }).map(drop)
}

/// This thread's permitted capabilities as a bit mask.
pub(crate) fn permitted_capabilities() -> Result<u64> {
    let header = CapHeader { version: LINUX_CAPABILITY_VERSION_3, pid: 0 };
    let mut data = [CapData { effective: 0, permitted: 0, inheritable: 0 }; 2];
    // SAFETY: version 3 reads one header and writes two data records, which are alive.
    check(unsafe { libc::syscall(libc::SYS_capget, &raw const header, data.as_mut_ptr()) })?;
    Ok(u64::from(data[0].permitted) | u64::from(data[1].permitted) << 32)
}
