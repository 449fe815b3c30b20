//! Paths inside a foreign directory tree, resolved by the kernel so that nothing in the tree leads out of it.
//!
//! Invariant: every path given to [`Rooted`] is resolved with `RESOLVE_IN_ROOT`: `..` and absolute symbolic links
//! stay below the root, and magic links of `/proc` are refused.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::{Errno, Result};

/// Longest chain of attempts when the kernel says that the tree was changed meanwhile.
const RACE_RETRIES: usize = 32;

/// Links to nothing that are followed while directories are made.
const LINKS_MAX: usize = 16;

/// A directory that paths cannot leave.
#[derive(Debug)]
pub struct Rooted {
    fd: OwnedFd,
}

impl Rooted {
    pub fn open(path: &Path) -> Result<Rooted> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Rooted { fd: rustix::fs::open(path, flags, Mode::empty())? })
    }

    /// Opens an existing path.
    pub fn get(&self, path: &Path, flags: OFlags) -> Result<OwnedFd> {
        self.get_with(path, flags, ResolveFlags::empty())
    }

    /// Opens an existing path with stricter resolution.
    pub fn get_with(&self, path: &Path, flags: OFlags, resolve: ResolveFlags) -> Result<OwnedFd> {
        let path = clean(path);
        let resolve = resolve | ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        for _ in 0..RACE_RETRIES {
            match rustix::fs::openat2(&self.fd, &path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                other => return other,
            }
        }
        Err(Errno::AGAIN)
    }

    /// Opens the directory, making it and its parents (mode 0755) where missing, also where a link points to nothing.
    pub fn make_dir(&self, path: &Path) -> Result<OwnedFd> {
        self.make_dir_through(path, LINKS_MAX)
    }

    fn make_dir_through(&self, path: &Path, links: usize) -> Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        match self.get(path, flags) {
            Err(Errno::NOENT) => {}
            other => return other,
        }
        let path = clean(path);
        // Mostly only the last part is missing.
        if let (Some(above), Some(name)) = (path.parent(), path.file_name())
            && let Ok(parent) = self.get(above, flags)
            && rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755)).is_ok()
        {
            return self.get(&path, flags);
        }
        let mut done = PathBuf::new();
        let mut parent = self.get(Path::new("."), flags)?;
        for part in path.components() {
            let above = done.clone();
            done.push(part);
            match self.get(&done, flags) {
                Ok(dir) => parent = dir,
                Err(Errno::NOENT) => {
                    parent = match rustix::fs::mkdirat(&parent, part.as_os_str(), Mode::from_raw_mode(0o755)) {
                        Ok(()) => self.get(&done, flags)?,
                        Err(Errno::EXIST) if links > 0 => {
                            let target = rustix::fs::readlinkat(&parent, part.as_os_str(), Vec::new())?;
                            // An absolute target replaces what is before it.
                            let target = above.join(OsStr::from_bytes(target.as_bytes()));
                            self.make_dir_through(&target, links - 1)?
                        }
                        Err(errno) => return Err(errno),
                    };
                }
                Err(errno) => return Err(errno),
            }
        }
        Ok(parent)
    }

    /// Opens the path for use as a mount point; makes an empty file, or a directory, where nothing is.
    pub fn make_target(&self, path: &Path, directory: bool) -> Result<OwnedFd> {
        if directory {
            return self.make_dir(path);
        }
        match self.get(path, OFlags::PATH) {
            Err(Errno::NOENT) => {}
            other => return other,
        }
        let path = clean(path);
        let name = path.file_name().ok_or(Errno::INVAL)?;
        let parent = self.make_dir(path.parent().unwrap_or(Path::new(".")))?;
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat(&parent, name, flags, Mode::from_raw_mode(0o644)) {
            Ok(_) | Err(Errno::EXIST) => self.get(&path, OFlags::PATH),
            Err(errno) => Err(errno),
        }
    }

    /// The whole text of a small file; `None` when it is missing, no plain file, or over `max_bytes`.
    pub fn read(&self, path: &Path, max_bytes: u64) -> Option<Vec<u8>> {
        use std::io::Read;
        let fd = self.get(path, OFlags::RDONLY | OFlags::NONBLOCK).ok()?;
        let stat = rustix::fs::fstat(&fd).ok()?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return None;
        }
        // One more than there is, so that the end is seen at once.
        let mut text = Vec::with_capacity(stat.st_size.clamp(0, max_bytes as i64) as usize + 1);
        std::fs::File::from(fd).take(max_bytes + 1).read_to_end(&mut text).ok()?;
        (text.len() as u64 <= max_bytes).then_some(text)
    }
}

impl AsFd for Rooted {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The path relative to a root: without leading `/`, `.` and (lexically) without what `..` takes back.
pub(crate) fn clean(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => out.push(name),
            Component::ParentDir => {
                out.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    if out.as_os_str().is_empty() {
        out.push(".");
    }
    out
}

/// Directories this far below the top are moved up before they are emptied, so that a hostile tree of any depth
/// costs neither stack nor descriptors.
const REMOVE_DEPTH_MAX: usize = 64;

/// Removes `name` in `parent`, whatever it is, without following links. Missing is no error.
pub(crate) fn remove_tree(parent: BorrowedFd<'_>, name: &OsStr) -> Result<()> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM | Errno::NOTEMPTY) => {}
        Err(errno) => return Err(errno),
    }
    empty_dir(parent, name)?;
    match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}

/// Removes everything in the directory `name` of `parent`.
pub(crate) fn empty_dir(parent: BorrowedFd<'_>, name: &OsStr) -> Result<()> {
    let top = open_dir(parent, name)?;
    let mut moved = 0;
    loop {
        let before = moved;
        empty_below(top.as_fd(), top.as_fd(), 0, &mut moved)?;
        if moved == before {
            return Ok(());
        }
    }
}

fn open_dir(parent: BorrowedFd<'_>, name: &OsStr) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::empty())
}

fn empty_below(top: BorrowedFd<'_>, dir: BorrowedFd<'_>, depth: usize, moved: &mut u64) -> Result<()> {
    for name in names(dir)? {
        match rustix::fs::unlinkat(dir, &name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => continue,
            Err(Errno::ISDIR | Errno::PERM | Errno::NOTEMPTY) => {}
            Err(errno) => return Err(errno),
        }
        if depth == REMOVE_DEPTH_MAX {
            *moved += 1;
            rustix::fs::renameat(dir, &name, top, format!(".removed-{}-{moved}", std::process::id()))?;
            continue;
        }
        empty_below(top, open_dir(dir, &name)?.as_fd(), depth + 1, moved)?;
        match rustix::fs::unlinkat(dir, &name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// The names in an open directory.
pub(crate) fn names(dir: BorrowedFd<'_>) -> Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if !matches!(name, b"." | b"..") {
            names.push(OsStr::from_bytes(name).to_owned());
        }
    }
    Ok(names)
}

/// Removes the tree at `path` without following links. Missing is no error.
pub(crate) fn remove_path(path: &Path) -> Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Err(Errno::INVAL) };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match rustix::fs::openat(CWD, parent, flags, Mode::empty()) {
        Ok(dir) => remove_tree(dir.as_fd(), name),
        Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_stay_inside() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("root/etc")).unwrap();
        std::fs::write(dir.path().join("secret"), "outside").unwrap();
        std::fs::write(dir.path().join("root/etc/passwd"), "inside").unwrap();
        std::os::unix::fs::symlink("/etc", dir.path().join("root/abs")).unwrap();
        std::os::unix::fs::symlink("../../../secret", dir.path().join("root/up")).unwrap();
        let root = Rooted::open(&dir.path().join("root")).unwrap();
        assert_eq!(root.read(Path::new("/abs/passwd"), 100).unwrap(), b"inside");
        assert_eq!(root.read(Path::new("../../etc/passwd"), 100).unwrap(), b"inside");
        assert!(root.read(Path::new("up"), 100).is_none());
        assert!(root.read(Path::new("etc"), 100).is_none());
        root.make_target(Path::new("/abs/new/deep/file"), false).unwrap();
        assert!(dir.path().join("root/etc/new/deep/file").is_file());
        root.make_dir(Path::new("a/../../b")).unwrap();
        assert!(dir.path().join("root/b").is_dir());
        remove_path(&dir.path().join("root")).unwrap();
        assert!(dir.path().join("secret").is_file() && !dir.path().join("root").exists());
    }

    #[test]
    fn the_deepest_tree_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let mut at = rustix::fs::open(dir.path(), OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
        for _ in 0..5_000 {
            rustix::fs::mkdirat(&at, "d", Mode::from_raw_mode(0o755)).unwrap();
            at = rustix::fs::openat(&at, "d", OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
        }
        remove_path(&dir.path().join("d")).unwrap();
        assert!(!dir.path().join("d").exists());
    }
}
