//! The container's file system: overlay, mounts, devices, and the move into it.
//!
//! Runs in the forked process that becomes the container. Every mount is made detached and then moved onto a descriptor
//! that was resolved inside the new root, so no symbolic link of an image or a volume can turn a mount elsewhere.
//!
//! A container's mount namespace is a copy of one that has nothing in it ([`nothing`]), over which its root is mounted.
//! A copy of the machine's would have to be freed of all that is mounted there, for pods of the whole node, and the kernel
//! waits for all processors when mounts go.

use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags,
    UnmountFlags,
};

use crate::plan::{ContainerPlan, DevicePlan, MountPlan, RootPlan};
use crate::rooted::Rooted;
use crate::seam::Propagation;
use crate::sys;

/// The kernel takes mount options in one page.
const OPTIONS_MAX_BYTES: usize = 4095;
const READ_ONLY: u64 = libc::MOUNT_ATTR_RDONLY;

type Done<T = ()> = Result<T, String>;

fn why<E: std::fmt::Display>(doing: impl std::fmt::Display) -> impl FnOnce(E) -> String {
    move |error| format!("{doing}: {error}")
}

/// What [`enter`] leaves for [`restrict`].
pub(super) struct Entered {
    /// The file systems that were mounted for a container, by where.
    mounted: Vec<(PathBuf, OwnedFd)>,
    /// The empty directory below the root.
    empty: OwnedFd,
}

/// A mount namespace with an empty directory that nobody can write to, for containers to begin with. Made in a process that
/// is forked for it.
pub(super) fn nothing() -> Done<OwnedFd> {
    let doing = "make an empty mount namespace";
    let pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(why(doing));
    let ((report, reporter), (stay, go)) = (pipe()?, pipe()?);
    let pid = match sys::fork(sys::CLONE_NEWNS).map_err(why(doing))? {
        sys::Fork::Child => {
            drop((report, go));
            let said = empty_mounts().err().unwrap_or_default();
            let _ = rustix::io::write(&reporter, said.as_bytes());
            drop(reporter);
            // The namespace is there as long as this process, or who opens it meanwhile.
            let _ = rustix::io::read(&stay, &mut [0]);
            sys::leave(0)
        }
        sys::Fork::Parent { pid, .. } => pid,
    };
    drop((reporter, stay));
    let mut said = String::new();
    std::fs::File::from(report).read_to_string(&mut said).map_err(why(doing))?;
    if !said.is_empty() {
        return Err(said);
    }
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let namespace = rustix::fs::open(format!("/proc/{pid}/ns/mnt"), flags, Mode::empty()).map_err(why(doing));
    drop(go);
    // Where children are not waited for, this one is none either.
    let _ = rustix::process::waitpid(rustix::process::Pid::from_raw(pid), rustix::process::WaitOptions::empty());
    namespace
}

fn empty_mounts() -> Done {
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).map_err(why("part from the machine's mounts"))?;
    let flags = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let options = [("mode".into(), "555".into()), ("size".into(), "4k".into()), ("nr_inodes".into(), "1".into())];
    let empty = new_fs("tmpfs", &options, flags).map_err(why("make an empty file system"))?;
    let doing = "part from the machine's files";
    let root = rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(why(doing))?;
    attach(empty.as_fd(), root.as_fd()).map_err(why(doing))?;
    rustix::process::fchdir(&empty).map_err(why(doing))?;
    rustix::process::pivot_root(".", ".").map_err(why(doing))?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).map_err(why(doing))
}

/// Makes the whole root and moves this process into it. `nothing` is the namespace to begin with.
pub(super) fn enter(plan: &ContainerPlan, nothing: BorrowedFd<'_>) -> Done<Entered> {
    // Whatever is of the machine is taken before its mounts are out of sight. A bidirectional mount stays a peer of the host's.
    let sources = plan.mounts.iter().map(open_source).collect::<Done<Vec<_>>>()?;
    let overlay = overlay(&plan.root)?;
    sys::join_namespaces(nothing, libc::CLONE_NEWNS).map_err(why("leave the machine's mounts"))?;
    sys::unshare(libc::CLONE_NEWNS).map_err(why("make a mount namespace"))?;
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let empty = rustix::fs::open("/", flags, Mode::empty()).map_err(why("open the empty root"))?;
    // Over the namespace's own root, which is where whoever joins the namespace later comes out.
    attach(overlay.as_fd(), empty.as_fd()).map_err(why("mount the root file system"))?;
    rustix::process::fchdir(&overlay).map_err(why("enter the root file system"))?;
    rustix::process::chroot(".").map_err(why("enter the root file system"))?;
    let root = Rooted::open(Path::new("/")).map_err(why("open the root file system"))?;
    let mut mounted: Vec<(PathBuf, OwnedFd)> = Vec::new();
    for (mount, source) in plan.mounts.iter().zip(sources) {
        place(&root, mount, source, &mut mounted)?;
    }
    make_devices(&root, &plan.devices)?;
    Ok(Entered { mounted, empty })
}

/// Takes rights away from the root after everything that needed to write to it.
pub(super) fn restrict(plan: &ContainerPlan, entered: &Entered) -> Done {
    let root = Rooted::open(Path::new("/")).map_err(why("open the new root"))?;
    if plan.root.read_only {
        sys::mount_attributes(root.as_fd(), READ_ONLY, 0, 0, false).map_err(why("make the root read-only"))?;
    }
    for path in &plan.read_only_paths {
        let done = match entered.mounted.iter().find(|(target, _)| target == path) {
            // A whole file system of ours: nothing needs to lie over it.
            Some((_, mount)) => sys::mount_attributes(mount.as_fd(), READ_ONLY, 0, 0, true),
            None => make_read_only(&root, path),
        };
        done.map_err(why(format_args!("make {} read-only", path.display())))?;
    }
    let mut covers = Covers { directory: &entered.empty, file: None };
    for path in &plan.masked {
        covers.mask(&root, path).map_err(why(format_args!("mask {}", path.display())))?;
    }
    Ok(())
}

/// The console of a container with a terminal: `/dev/console` shows the terminal's other end.
pub(super) fn bind_console(number: u32) -> Done {
    let doing = "set up /dev/console";
    let root = Rooted::open(Path::new("/")).map_err(why(doing))?;
    let target = root.make_target(Path::new("dev/console"), false).map_err(why(doing))?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = rustix::mount::open_tree(CWD, format!("/dev/pts/{number}"), flags).map_err(why(doing))?;
    attach(tree.as_fd(), target.as_fd()).map_err(why(doing))
}

/// The root file system, mounted nowhere yet.
fn overlay(plan: &RootPlan) -> Done<OwnedFd> {
    let doing = "mount the root file system";
    rustix::process::chdir(&plan.layers).map_err(why("enter the layers"))?;
    let option = |name: &str, value: String| (name.to_owned(), value);
    let options = [
        option("lowerdir", plan.lower.join(":")),
        option("upperdir", plan.upper.display().to_string()),
        option("workdir", plan.work.display().to_string()),
        // What a container wrote does not outlive it, so the kernel need not sync it.
        option("volatile", String::new()),
    ];
    if let Ok(overlay) = new_fs("overlay", &options, MountAttrFlags::empty()) {
        return Ok(overlay);
    }
    // So the kernel takes no option of more than 255 bytes; the old way it takes a page of all. It mounts somewhere, which
    // only a namespace of our own may see.
    let text = |of: &[(String, String)]| {
        let words = of.iter().map(|(key, value)| if value.is_empty() { key.clone() } else { format!("{key}={value}") });
        words.collect::<Vec<_>>().join(",")
    };
    if text(&options).len() > OPTIONS_MAX_BYTES {
        return Err(format!("the image has too many layers ({}) for this kernel", plan.lower.len()));
    }
    sys::unshare(libc::CLONE_NEWNS).map_err(why(doing))?;
    let slave = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", slave).map_err(why(doing))?;
    let mount = |options: &[(String, String)]| {
        let data = std::ffi::CString::new(text(options)).map_err(|_| Errno::INVAL)?;
        rustix::mount::mount("overlay", &plan.target, "overlay", MountFlags::empty(), Some(&*data))
    };
    match mount(&options) {
        // Kernels before 5.10 do not know the last option.
        Err(Errno::INVAL) => mount(&options[..options.len() - 1]),
        other => other,
    }
    .map_err(why(doing))?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    rustix::mount::open_tree(CWD, &plan.target, flags).map_err(why(doing))
}

/// The detached copy of a bind mount's source, and whether it is a directory.
fn open_source(mount: &MountPlan) -> Done<Option<(OwnedFd, bool)>> {
    let MountPlan::Bind { source, recursive, propagation, read_only, recursive_read_only, no_links, .. } = mount else {
        return Ok(None);
    };
    let doing = || format!("mount {}", source.display());
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if *recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    let tree = match no_links {
        false => rustix::mount::open_tree(CWD, source, flags),
        true => rustix::fs::openat2(
            CWD,
            source,
            OFlags::PATH | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS,
        )
        .and_then(|found| rustix::mount::open_tree(&found, "", flags | OpenTreeFlags::AT_EMPTY_PATH)),
    };
    let tree = tree.map_err(why(doing()))?;
    let stat = rustix::fs::fstat(&tree).map_err(why(doing()))?;
    let propagation = match propagation {
        Propagation::Private => libc::MS_PRIVATE,
        Propagation::HostToContainer => libc::MS_SLAVE,
        Propagation::Bidirectional => libc::MS_SHARED,
    };
    let alike = read_only == recursive_read_only || !recursive;
    let attributes = if *read_only && alike { READ_ONLY } else { 0 };
    sys::mount_attributes(tree.as_fd(), attributes, 0, propagation, true).map_err(why(doing()))?;
    if *read_only && !alike {
        sys::mount_attributes(tree.as_fd(), READ_ONLY, 0, 0, false).map_err(why(doing()))?;
    }
    Ok(Some((tree, FileType::from_raw_mode(stat.st_mode) == FileType::Directory)))
}

fn place(
    root: &Rooted,
    mount: &MountPlan,
    source: Option<(OwnedFd, bool)>,
    mounted: &mut Vec<(PathBuf, OwnedFd)>,
) -> Done {
    match (mount, source) {
        (MountPlan::Bind { target, fixed, .. }, Some((tree, directory))) => {
            let doing = || format!("mount on {}", target.display());
            let target = find_target(root, target, directory, *fixed, mounted).map_err(why(doing()))?;
            attach(tree.as_fd(), target.as_fd()).map_err(why(doing()))
        }
        (MountPlan::Fs { kind, target, options, read_only, no_exec, devices }, _) => {
            let doing = || format!("mount {kind} on {}", target.display());
            let mut flags = MountAttrFlags::MOUNT_ATTR_NOSUID;
            flags.set(MountAttrFlags::MOUNT_ATTR_RDONLY, *read_only);
            flags.set(MountAttrFlags::MOUNT_ATTR_NOEXEC, *no_exec);
            flags.set(MountAttrFlags::MOUNT_ATTR_NODEV, !*devices);
            let fs = new_fs(kind, options, flags).map_err(why(doing()))?;
            let place = find_target(root, target, true, true, mounted).map_err(why(doing()))?;
            attach(fs.as_fd(), place.as_fd()).map_err(why(doing()))?;
            mounted.push((target.clone(), fs));
            Ok(())
        }
        (MountPlan::Bind { target, .. }, None) => Err(format!("mount on {}: no source", target.display())),
    }
}

/// `fixed` targets are the runtime's own (`/proc`, `/dev`): an image that has a link there is refused.
fn find_target(
    root: &Rooted,
    target: &Path,
    directory: bool,
    fixed: bool,
    mounted: &[(PathBuf, OwnedFd)],
) -> rustix::io::Result<OwnedFd> {
    if !fixed {
        return root.make_target(target, directory);
    }
    // A directory right below the top of a file system of ours, in which nobody else can have made anything yet.
    let above = mounted.iter().rev().find(|(path, _)| target.parent() == Some(path));
    if let (true, Some((_, above)), Some(name)) = (directory, above, target.file_name())
        && rustix::fs::mkdirat(above, name, Mode::from_raw_mode(0o755)).is_ok()
    {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        return rustix::fs::openat(above, name, flags, Mode::empty());
    }
    match root.get_with(target, OFlags::PATH, ResolveFlags::NO_SYMLINKS) {
        Err(Errno::NOENT) => {
            root.make_target(target, directory)?;
            root.get_with(target, OFlags::PATH, ResolveFlags::NO_SYMLINKS)
        }
        other => other,
    }
}

fn new_fs(kind: &str, options: &[(String, String)], flags: MountAttrFlags) -> rustix::io::Result<OwnedFd> {
    let context = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in options {
        if value.is_empty() {
            rustix::mount::fsconfig_set_flag(context.as_fd(), key.as_str())?;
        } else {
            rustix::mount::fsconfig_set_string(context.as_fd(), key.as_str(), value.as_str())?;
        }
    }
    rustix::mount::fsconfig_create(context.as_fd())?;
    rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, flags)
}

fn attach(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> rustix::io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(mount, "", target, "", flags)
}

fn make_devices(root: &Rooted, devices: &[DevicePlan]) -> Done {
    let mut last: Option<(&Path, OwnedFd)> = None;
    for device in devices {
        let doing = || format!("make the device {}", device.path.display());
        let (Some(above), Some(name)) = (device.path.parent(), device.path.file_name()) else { continue };
        let (_, parent) = match last.take().filter(|(known, _)| *known == above) {
            Some(known) => last.insert(known),
            None => last.insert((above, root.make_dir(above).map_err(why(doing()))?)),
        };
        let kind = if device.block { FileType::BlockDevice } else { FileType::CharacterDevice };
        let number = rustix::fs::makedev(device.major, device.minor);
        match rustix::fs::mknodat(&*parent, name, kind, Mode::from_raw_mode(device.mode), number) {
            Ok(()) => {}
            Err(Errno::EXIST) => continue,
            Err(errno) => return Err(why(doing())(errno)),
        }
        if device.uid != 0 || device.gid != 0 {
            let (uid, gid) = (rustix::fs::Uid::from_raw(device.uid), rustix::fs::Gid::from_raw(device.gid));
            let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
            rustix::fs::chownat(&*parent, name, Some(uid), Some(gid), flags).map_err(why(doing()))?;
        }
    }
    let dev = root.get(Path::new("dev"), OFlags::PATH).map_err(why("open /dev"))?;
    let links = [
        ("/proc/self/fd", "fd"),
        ("/proc/self/fd/0", "stdin"),
        ("/proc/self/fd/1", "stdout"),
        ("/proc/self/fd/2", "stderr"),
        ("pts/ptmx", "ptmx"),
    ];
    for (target, name) in links {
        match rustix::fs::symlinkat(target, &dev, name) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(why(format_args!("link /dev/{name}"))(errno)),
        }
    }
    Ok(())
}

fn make_read_only(root: &Rooted, path: &Path) -> std::io::Result<()> {
    let Some(target) = existing(root, path)? else { return Ok(()) };
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH
        | OpenTreeFlags::AT_RECURSIVE;
    let tree = rustix::mount::open_tree(&target, "", flags)?;
    sys::mount_attributes(tree.as_fd(), READ_ONLY, 0, 0, true)?;
    Ok(attach(tree.as_fd(), target.as_fd())?)
}

/// What lies over masked paths: the empty directory, which nobody can write to, and one device for all of them.
struct Covers<'a> {
    directory: &'a OwnedFd,
    file: Option<OwnedFd>,
}

impl Covers<'_> {
    fn mask(&mut self, root: &Rooted, path: &Path) -> std::io::Result<()> {
        let Some(target) = existing(root, path)? else { return Ok(()) };
        let stat = rustix::fs::fstat(&target)?;
        let cover = match (FileType::from_raw_mode(stat.st_mode), &mut self.file) {
            (FileType::Directory, _) => self.directory,
            (_, Some(null)) => &*null,
            // The node in our own fresh /dev: an image cannot have put something else there.
            (_, none) => none.insert(root.get_with(Path::new("dev/null"), OFlags::PATH, ResolveFlags::NO_SYMLINKS)?),
        };
        let clone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
        let cover = rustix::mount::open_tree(cover, "", clone)?;
        Ok(attach(cover.as_fd(), target.as_fd())?)
    }
}

fn existing(root: &Rooted, path: &Path) -> std::io::Result<Option<OwnedFd>> {
    match root.get(path, OFlags::PATH) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::ACCESS) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// The directory of the process, made when missing. Magic links are refused, so it cannot lead outside.
pub(super) fn working_dir(cwd: &str) -> Done<OwnedFd> {
    let root = Rooted::open(Path::new("/")).map_err(why("open the root"))?;
    let cwd = if cwd.is_empty() { PathBuf::from("/") } else { PathBuf::from(cwd) };
    if !cwd.is_absolute() {
        return Err(format!("the working directory {cwd:?} is not absolute"));
    }
    root.make_dir(&cwd).map_err(why(format_args!("enter the working directory {}", cwd.display())))
}
