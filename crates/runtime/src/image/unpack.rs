//! One layer's archive unpacked onto a directory tree.
//!
//! The tree is what the lower layers give, mounted (or an empty directory for the first layer), so that links of lower
//! layers are followed inside it and removals become overlayfs' own whiteouts. Nothing in an archive can reach outside
//! the tree: every path is resolved by [`Rooted`]. Device nodes are left out; set-id bits, owners, times, hard links,
//! `security.capability` and `user.*` attributes are kept.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use ring::digest::{Context, SHA256};
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid};
use rustix::io::Errno;
use tar::{Archive, Entry, EntryType};

use crate::Error;
use crate::rooted::{Rooted, clean, names, remove_tree};

/// Most entries of one layer.
const ENTRIES_MAX: u64 = 2_000_000;
/// Most bytes of one layer, unpacked.
const UNPACKED_MAX_BYTES: u64 = 128 << 30;
const PATH_MAX_BYTES: usize = 4096;
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// What was unpacked.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Unpacked {
    pub bytes: u64,
    /// Digest of the plain archive.
    pub diff_id: String,
}

/// Opens a layer whatever its compression: gzip, zstd or none, told by its first bytes.
pub(crate) fn decompressed<'a>(mut raw: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut head = [0; 4];
    let mut have = 0;
    while have < head.len() {
        match raw.read(&mut head[have..])? {
            0 => break,
            n => have += n,
        }
    }
    let whole = io::Cursor::new(head[..have].to_vec()).chain(raw);
    Ok(match head {
        [0x1f, 0x8b, ..] => Box::new(flate2::read::MultiGzDecoder::new(io::BufReader::new(whole))),
        [0x28, 0xb5, 0x2f, 0xfd] => Box::new(zstd::stream::read::Decoder::new(whole)?),
        _ => Box::new(whole),
    })
}

/// Counts, limits and hashes what passes.
struct Meter<R> {
    inner: R,
    digest: Context,
    bytes: u64,
}

impl<R: Read> Read for Meter<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.digest.update(&buffer[..n]);
        self.bytes += n as u64;
        match self.bytes > UNPACKED_MAX_BYTES {
            true => Err(io::Error::other("the layer is larger than the limit")),
            false => Ok(n),
        }
    }
}

/// Unpacks `raw` onto `root`. `what` names the layer in errors.
pub(crate) fn unpack(what: &str, raw: impl Read, root: &Path) -> Result<Unpacked, Error> {
    let damaged = |e: io::Error| Error::ImageInvalid { what: what.to_owned(), why: e.to_string() };
    let meter = Meter { inner: decompressed(raw).map_err(damaged)?, digest: Context::new(&SHA256), bytes: 0 };
    let mut archive = Archive::new(meter);
    let mut layer = Layer {
        root: Rooted::open(root).map_err(Error::os(format!("open {}", root.display())))?,
        made: HashSet::new(),
        directories: Vec::new(),
        bytes: 0,
    };
    let mut count = 0;
    for entry in archive.entries().map_err(damaged)? {
        count += 1;
        if count > ENTRIES_MAX {
            return Err(Error::TooLarge { what: format!("the number of entries of {what}"), limit: ENTRIES_MAX });
        }
        let mut entry = entry.map_err(damaged)?;
        layer.take(&mut entry).map_err(|why| {
            let path = String::from_utf8_lossy(&entry.path_bytes()).chars().take(200).collect::<String>();
            match why {
                Refused::Errno(errno) => {
                    Error::Io { doing: format!("unpack {path:?} of {what}"), source: errno.into() }
                }
                Refused::Read(e) => damaged(e),
                Refused::Rule(why) => Error::ImageInvalid { what: format!("{path:?} in {what}"), why: why.to_owned() },
            }
        })?;
    }
    let mut meter = archive.into_inner();
    // What follows the archive's end belongs to the digest.
    io::copy(&mut meter, &mut io::sink()).map_err(damaged)?;
    layer.finish();
    let diff_id = format!("sha256:{}", hex::encode(meter.digest.finish()));
    Ok(Unpacked { bytes: layer.bytes, diff_id })
}

enum Refused {
    Errno(Errno),
    Read(io::Error),
    Rule(&'static str),
}

impl From<Errno> for Refused {
    fn from(errno: Errno) -> Refused {
        Refused::Errno(errno)
    }
}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Refused {
        Refused::Read(error)
    }
}

struct Layer {
    root: Rooted,
    /// Paths that this layer has, for opaque directories.
    made: HashSet<PathBuf>,
    /// Times of directories, set last because filling a directory changes them.
    directories: Vec<(PathBuf, i64)>,
    bytes: u64,
}

impl Layer {
    fn take<R: Read>(&mut self, entry: &mut Entry<'_, R>) -> Result<(), Refused> {
        let raw = entry.path_bytes().into_owned();
        if raw.len() > PATH_MAX_BYTES || raw.contains(&0) {
            return Err(Refused::Rule("its name is too long or has a NUL byte"));
        }
        let path = clean(Path::new(OsStr::from_bytes(&raw)));
        let Some(name) = path.file_name().map(ToOwned::to_owned) else {
            return self.take_root(entry);
        };
        let parent_path = path.parent().unwrap_or(Path::new(".")).to_owned();
        if let Some(hidden) = name.as_bytes().strip_prefix(WHITEOUT) {
            return self.whiteout(&parent_path, name.as_bytes(), hidden);
        }
        let kind = entry.header().entry_type();
        if matches!(kind, EntryType::Char | EntryType::Block) {
            return Ok(());
        }
        let parent = self.root.make_dir(&parent_path)?;
        let directory = kind.is_dir();
        if !(directory && self.is_dir(&parent, &name)?) {
            remove_tree(parent.as_fd(), &name)?;
        }
        match kind {
            EntryType::Directory => self.directory(entry, &parent, &name, &path)?,
            EntryType::Symlink => {
                let target = link_name(entry)?;
                rustix::fs::symlinkat(OsStr::from_bytes(&target), &parent, &name)?;
                own(&parent, &name, entry)?;
                set_time(&parent, &name, mtime(entry)?)?;
            }
            EntryType::Link => self.hard_link(entry, &parent, &name)?,
            EntryType::Fifo => {
                let mode = Mode::from_raw_mode(mode(entry)? & 0o7777);
                rustix::fs::mknodat(&parent, &name, FileType::Fifo, mode, 0)?;
                own(&parent, &name, entry)?;
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => self.file(entry, &parent, &name)?,
            // Global headers and what newer archivers may add carry no file.
            _ => return Ok(()),
        }
        let mut at = path.as_path();
        while self.made.insert(at.to_owned()) {
            match at.parent() {
                Some(up) if !up.as_os_str().is_empty() => at = up,
                _ => break,
            }
        }
        Ok(())
    }

    fn take_root<R: Read>(&mut self, entry: &mut Entry<'_, R>) -> Result<(), Refused> {
        if entry.header().entry_type().is_dir() {
            let root = self.root.get(Path::new("."), OFlags::RDONLY | OFlags::DIRECTORY)?;
            owner_and_mode(&root, entry)?;
        }
        Ok(())
    }

    fn is_dir(&self, parent: &OwnedFd, name: &OsStr) -> Result<bool, Refused> {
        match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(FileType::from_raw_mode(stat.st_mode) == FileType::Directory),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    fn directory<R: Read>(
        &mut self,
        entry: &mut Entry<'_, R>,
        parent: &OwnedFd,
        name: &OsStr,
        path: &Path,
    ) -> Result<(), Refused> {
        match rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o700)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno.into()),
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = rustix::fs::openat(parent, name, flags, Mode::empty())?;
        attributes(entry, parent, name)?;
        owner_and_mode(&dir, entry)?;
        self.directories.push((path.to_owned(), seconds(entry)?));
        Ok(())
    }

    fn file<R: Read>(&mut self, entry: &mut Entry<'_, R>, parent: &OwnedFd, name: &OsStr) -> Result<(), Refused> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(parent, name, flags, Mode::from_raw_mode(0o600))?;
        let mut file = std::fs::File::from(fd);
        self.bytes += io::copy(entry, &mut file)?;
        let fd = OwnedFd::from(file);
        owner_and_mode(&fd, entry)?;
        // After the owner: changing it takes capabilities away.
        attributes(entry, parent, name)?;
        set_time(parent, name, mtime(entry)?)?;
        Ok(())
    }

    fn hard_link<R: Read>(&mut self, entry: &mut Entry<'_, R>, parent: &OwnedFd, name: &OsStr) -> Result<(), Refused> {
        let target = link_name(entry)?;
        let target = clean(Path::new(OsStr::from_bytes(&target)));
        let file = target.file_name().ok_or(Refused::Rule("it links to no file"))?;
        let dir = self.root.get(target.parent().unwrap_or(Path::new(".")), OFlags::PATH | OFlags::DIRECTORY)?;
        rustix::fs::linkat(&dir, file, parent, name, AtFlags::empty())?;
        Ok(())
    }

    fn whiteout(&mut self, parent: &Path, name: &[u8], hidden: &[u8]) -> Result<(), Refused> {
        let dir = match self.root.get(parent, OFlags::RDONLY | OFlags::DIRECTORY) {
            Ok(dir) => dir,
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        };
        if name == OPAQUE {
            return self.make_opaque(parent, &dir);
        }
        // Other names of this family are bookkeeping of an older file system.
        if hidden.starts_with(WHITEOUT) || hidden.is_empty() || hidden == b"." || hidden == b".." {
            return Ok(());
        }
        let hidden = OsStr::from_bytes(hidden);
        // A whiteout speaks of lower layers, whatever its place in the archive.
        if !self.made.contains(&clean(&parent.join(hidden))) {
            remove_tree(dir.as_fd(), hidden)?;
        }
        Ok(())
    }

    /// Takes away what lower layers have in a directory.
    fn make_opaque(&self, path: &Path, dir: &OwnedFd) -> Result<(), Refused> {
        for name in names(dir.as_fd())? {
            let below = clean(&path.join(&name));
            if !self.made.contains(&below) {
                remove_tree(dir.as_fd(), &name)?;
                continue;
            }
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            match rustix::fs::openat(dir, &name, flags, Mode::empty()) {
                Ok(sub) => self.make_opaque(&below, &sub)?,
                Err(Errno::NOTDIR | Errno::LOOP) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    fn finish(&mut self) {
        for (path, seconds) in self.directories.drain(..).rev() {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY;
            if let Ok(dir) = self.root.get(&path, flags) {
                let _ = rustix::fs::futimens(&dir, &times(seconds));
            }
        }
    }
}

fn link_name<R: Read>(entry: &Entry<'_, R>) -> Result<Vec<u8>, Refused> {
    let target = entry.link_name_bytes().ok_or(Refused::Rule("it is a link to nothing"))?.into_owned();
    match target.is_empty() || target.len() > PATH_MAX_BYTES || target.contains(&0) {
        true => Err(Refused::Rule("its link target is empty, too long or has a NUL byte")),
        false => Ok(target),
    }
}

/// A field that is left empty counts as zero, as archivers write it.
fn number<T: Default>(field: &[u8], value: io::Result<T>) -> io::Result<T> {
    if field.iter().all(|b| matches!(b, 0 | b' ')) { Ok(T::default()) } else { value }
}

fn mode<R: Read>(entry: &Entry<'_, R>) -> io::Result<u32> {
    number(&entry.header().as_old().mode, entry.header().mode())
}

fn mtime<R: Read>(entry: &Entry<'_, R>) -> io::Result<u64> {
    number(&entry.header().as_old().mtime, entry.header().mtime())
}

fn ids<R: Read>(entry: &Entry<'_, R>) -> Result<(Uid, Gid), Refused> {
    // All ones means "leave it" to the kernel.
    let id = |n: u64| u32::try_from(n).ok().filter(|n| *n != u32::MAX);
    let old = entry.header().as_old();
    let (uid, gid) = (number(&old.uid, entry.header().uid())?, number(&old.gid, entry.header().gid())?);
    match (id(uid), id(gid)) {
        (Some(uid), Some(gid)) => Ok((Uid::from_raw(uid), Gid::from_raw(gid))),
        _ => Err(Refused::Rule("its owner is out of range")),
    }
}

fn own<R: Read>(parent: &OwnedFd, name: &OsStr, entry: &Entry<'_, R>) -> Result<(), Refused> {
    let (uid, gid) = ids(entry)?;
    Ok(rustix::fs::chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?)
}

fn owner_and_mode<R: Read>(fd: &OwnedFd, entry: &Entry<'_, R>) -> Result<(), Refused> {
    let (uid, gid) = ids(entry)?;
    rustix::fs::fchown(fd, Some(uid), Some(gid))?;
    Ok(rustix::fs::fchmod(fd, Mode::from_raw_mode(mode(entry)? & 0o7777))?)
}

fn seconds<R: Read>(entry: &Entry<'_, R>) -> Result<i64, Refused> {
    Ok(i64::try_from(mtime(entry)?).unwrap_or(0))
}

fn times(seconds: i64) -> Timestamps {
    let time = Timespec { tv_sec: seconds, tv_nsec: 0 };
    Timestamps { last_access: time, last_modification: time }
}

fn set_time(parent: &OwnedFd, name: &OsStr, seconds: u64) -> Result<(), Refused> {
    let seconds = i64::try_from(seconds).unwrap_or(0);
    Ok(rustix::fs::utimensat(parent, name, &times(seconds), AtFlags::SYMLINK_NOFOLLOW)?)
}

/// Extended attributes from the archive's extended header.
fn attributes<R: Read>(entry: &mut Entry<'_, R>, parent: &OwnedFd, name: &OsStr) -> Result<(), Refused> {
    let Some(extensions) = entry.pax_extensions()? else { return Ok(()) };
    let mut path = PathBuf::from(format!("/proc/self/fd/{}", parent.as_raw_fd()));
    path.push(name);
    for extension in extensions {
        let extension = extension?;
        let Some(key) = extension.key().ok().and_then(|k| k.strip_prefix("SCHILY.xattr.")) else { continue };
        if key != "security.capability" && !key.starts_with("user.") {
            continue;
        }
        match rustix::fs::lsetxattr(&path, key, extension.value_bytes(), rustix::fs::XattrFlags::empty()) {
            // Not every file system keeps them, and a broken value is the image's own loss.
            Ok(()) | Err(Errno::NOTSUP | Errno::PERM | Errno::INVAL) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// Writes everything below the path to the disk.
pub(crate) fn sync(path: &Path) -> Result<(), Error> {
    let doing = || format!("sync {}", path.display());
    let fd =
        rustix::fs::openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(Error::os(doing()))?;
    rustix::fs::syncfs(fd).map_err(Error::os(doing()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;

    fn archive(build: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        build(&mut builder);
        builder.into_inner().unwrap()
    }

    fn add(builder: &mut tar::Builder<Vec<u8>>, kind: EntryType, path: &str, link: &str, data: &[u8], mode: u32) {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(data.len() as u64);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000);
        // The library refuses what we want to test, so names are written as bytes.
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        builder.append(&header, data).unwrap();
    }

    #[test]
    fn nothing_leaves_the_root() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir(&root).unwrap();
        std::fs::write(dir.path().join("victim"), "safe").unwrap();
        std::fs::write(dir.path().join("secret"), "not in the image").unwrap();
        let outside = dir.path().display().to_string();
        let bytes = archive(|b| {
            add(b, EntryType::Regular, "../../victim", "", b"evil", 0o644);
            add(b, EntryType::Symlink, "out", &outside, b"", 0o777);
            add(b, EntryType::Regular, "out/victim", "", b"evil", 0o644);
            add(b, EntryType::Symlink, "up", "../../../../../../", b"", 0o777);
            add(b, EntryType::Regular, "up/tmp/made", "", b"evil", 0o644);
            add(b, EntryType::Char, "dev/sda", "", b"", 0o666);
            add(b, EntryType::Regular, ".wh.out", "", b"", 0o644);
            add(b, EntryType::Regular, ".wh...", "", b"", 0o644);
        });
        unpack("layer", &bytes[..], &root).unwrap();
        assert_eq!(std::fs::read_to_string(dir.path().join("victim")).unwrap(), "safe");
        assert!(root.join("tmp/made").is_file() && root.join("victim").is_file());
        let inside = root.join(outside.trim_start_matches('/')).join("victim");
        assert_eq!(std::fs::read_to_string(inside).unwrap(), "evil", "an absolute link is followed inside");
        assert!(!root.join("dev/sda").exists());
        let escape = archive(|b| add(b, EntryType::Link, "h", &format!("{outside}/secret"), b"", 0o644));
        assert!(unpack("layer", &escape[..], &root).is_err());
    }

    #[test]
    fn files_keep_what_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let bytes = archive(|b| {
            add(b, EntryType::Directory, "d/", "", b"", 0o1777);
            add(b, EntryType::Regular, "d/suid", "", b"abc", 0o4755);
            add(b, EntryType::Link, "hard", "d/suid", b"", 0o644);
            add(b, EntryType::Regular, "d/suid", "", b"second", 0o600);
            add(b, EntryType::Fifo, "pipe", "", b"", 0o644);
        });
        let gz = {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            io::Write::write_all(&mut encoder, &bytes).unwrap();
            encoder.finish().unwrap()
        };
        let zst = zstd::encode_all(&bytes[..], 1).unwrap();
        for form in [&bytes, &gz, &zst] {
            let root = tempfile::tempdir_in(dir.path()).unwrap();
            let unpacked = unpack("layer", &form[..], root.path()).unwrap();
            let digest = ring::digest::digest(&SHA256, &bytes);
            assert_eq!(unpacked.diff_id, format!("sha256:{}", hex::encode(digest)));
            let meta = |p: &str| std::fs::symlink_metadata(root.path().join(p)).unwrap();
            assert_eq!(meta("d").permissions().mode() & 0o7777, 0o1777);
            assert_eq!((meta("hard").mode() & 0o7777, meta("hard").len()), (0o4755, 3));
            assert_eq!((meta("d/suid").mode() & 0o7777, meta("d/suid").len()), (0o600, 6));
            assert_eq!((meta("d").mtime(), meta("hard").mtime()), (1_000_000, 1_000_000));
        }
    }

    #[test]
    fn damaged_archives_neither_panic_nor_escape() {
        let good = archive(|b| {
            add(b, EntryType::Directory, "d/", "", b"", 0o755);
            add(b, EntryType::Regular, "d/file", "", &[7; 700], 0o644);
            add(b, EntryType::Symlink, "link", "../d", b"", 0o777);
            add(b, EntryType::Regular, "link/.wh.file", "", b"", 0o644);
        });
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("root")).unwrap();
        let mut rng = base::Rng::new(5);
        for _ in 0..1_500 {
            let mut bytes = good.clone();
            for _ in 0..1 + rng.below(6) {
                let at = rng.below(bytes.len() as u64) as usize;
                bytes[at] = rng.below(256) as u8;
            }
            // Make most checksums right again, so that the damage gets further than the first check.
            for block in bytes.chunks_mut(512).filter(|b| b.len() == 512 && b[0] != 7) {
                block[148..156].fill(b' ');
                let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
                block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            }
            let _ = unpack("layer", &bytes[..], &dir.path().join("root"));
        }
        let names: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["root"]);
    }
}
