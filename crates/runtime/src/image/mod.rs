//! Images on this machine: the index of what is there, layers shared by content, archives and registries as sources.
//!
//! Below one directory: `index.json` (what is true), `layers/N` (one unpacked layer each, named by a short number so
//! that an overlay of many layers fits into the kernel's option page) and `ingest` (downloads, kept for resuming).
//! A layer is known by its chain id, the digest of itself and all below it.
//!
//! Several processes may work on one directory: the agent, and a command of its user beside it. Whoever changes
//! something holds the file `lock`, and whoever reads looks first whether the index was replaced.
//!
//! Invariants: the index names only layers that are complete and synced; everything else below `layers` is left over
//! from an interruption and removed at the next start; bytes are unpacked only after their digest was verified; a layer
//! that a container's root is made of stays.

mod archive;
pub(crate) mod auth;
pub(crate) mod manifest;
mod pull;
mod registry;
pub(crate) mod unpack;
mod visit;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use ring::digest::{Context, SHA256, digest};
use rustix::mount::{MountFlags, UnmountFlags};
use serde::{Deserialize, Serialize};

pub use registry::RegistryConfig;
pub use visit::ImageStore;

use crate::seam::{DiskUsage, ImageStatus};
use crate::{Error, ImageName, lock};

const INDEX_FILE: &str = "index.json";
/// Held, for long, by whoever unpacks or removes.
const LOCK_FILE: &str = "lock";
/// Held, for moments, by whoever takes an image for a container, and by removal: never for as long as unpacking takes.
const CLAIMS_FILE: &str = "claims";
const INGEST: &str = "ingest";
/// Where a visiting process keeps its downloads, below `ingest`: this and its number.
const VISITOR_PREFIX: &str = "visitor-";
/// Where a layer that is being unpacked is kept until it is whole.
const NEW_PREFIX: &str = "new-";
const MOUNT_SUFFIX: &str = ".mount";

/// The images below one directory.
pub(crate) struct Images {
    root: PathBuf,
    registries: RegistryConfig,
    index: Mutex<Shelf>,
    /// Where downloads are kept: the agent's, to be resumed after a restart, or a visitor's own.
    ingest: PathBuf,
    /// One unpacking at a time: two pulls that share layers would do the same work.
    unpacking: tokio::sync::Mutex<()>,
    /// One download at a time per layer.
    fetching: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

/// The index in memory, and which file it was read from.
#[derive(Default)]
struct Shelf {
    index: Index,
    file: Option<FileId>,
}

/// Tells one state of a file that is only ever replaced from another: device, inode, size, time of change.
type FileId = (u64, u64, u64, i64, i64);

/// The right to change the directory, for as long as it lives.
struct Exclusive(#[allow(dead_code, reason = "held for its lock")] File);

/// Who opens the directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// The agent, one at a time.
    Owner,
    /// A command beside it.
    Visitor,
}

#[derive(Default, Serialize, Deserialize)]
struct Index {
    images: Vec<Image>,
    /// Chain id to layer.
    layers: BTreeMap<String, Layer>,
    next_layer: u64,
}

/// An image that can be run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Image {
    pub status: ImageStatus,
    /// Directory names below `layers`, lowest first.
    pub layers: Vec<String>,
}

#[derive(Clone, Serialize, Deserialize)]
struct Layer {
    dir: String,
    bytes: u64,
}

/// A layer as its source offers it.
pub(crate) struct LayerSource<'a> {
    pub digest: String,
    pub diff_id: String,
    /// Opens the (compressed) bytes, whose digest was verified.
    pub open: Box<dyn FnOnce() -> Result<Box<dyn std::io::Read>, Error> + Send + 'a>,
}

impl Images {
    /// Opens or makes the store; the owner throws away what an interruption left.
    pub fn open(root: &Path, registries: RegistryConfig, role: Role) -> Result<Images, Error> {
        let ingest = match role {
            Role::Owner => root.join(INGEST),
            Role::Visitor => root.join(INGEST).join(format!("{VISITOR_PREFIX}{}", std::process::id())),
        };
        for path in [&root.join("layers"), &ingest] {
            std::fs::create_dir_all(path).map_err(Error::io(format!("make {}", path.display())))?;
        }
        crate::spread(&root.join("layers"));
        let images = Images {
            root: root.to_owned(),
            registries,
            index: Mutex::default(),
            ingest,
            unpacking: tokio::sync::Mutex::new(()),
            fetching: Mutex::default(),
        };
        images.refresh(&mut lock(&images.index))?;
        // Another process that holds the lock is unpacking: what it makes is not left over.
        if role == Role::Owner
            && let Some(_alone) = images.try_exclusive()?
        {
            images.sweep()?;
        }
        Ok(images)
    }

    /// The index as it is on the disk now. One that cannot be read is told, and the last known one stands.
    fn index(&self) -> MutexGuard<'_, Shelf> {
        let mut shelf = lock(&self.index);
        if let Err(error) = self.refresh(&mut shelf) {
            tracing::warn!(%error, "the image index cannot be read");
        }
        shelf
    }

    /// Reads the index again if another process replaced it.
    fn refresh(&self, shelf: &mut Shelf) -> Result<(), Error> {
        let path = self.root.join(INDEX_FILE);
        let doing = || format!("read {}", path.display());
        // Opened before it is looked at: both are then of the same file.
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(Error::io(doing())(e)),
        };
        let found = file_id(&file).map_err(Error::io(doing()))?;
        if shelf.file == Some(found) {
            return Ok(());
        }
        shelf.index = serde_json::from_reader(std::io::BufReader::new(file)).map_err(|e| Error::ImageInvalid {
            what: format!("the image index {}", path.display()),
            why: e.to_string(),
        })?;
        shelf.file = Some(found);
        Ok(())
    }

    /// Waits for the right to change the directory. Blocks; not for async threads.
    fn exclusive(&self, name: &str) -> Result<Exclusive, Error> {
        let (file, doing) = self.lock_file(name)?;
        file.lock().map_err(Error::io(doing))?;
        Ok(Exclusive(file))
    }

    /// The same, when nobody else has it.
    fn try_exclusive(&self) -> Result<Option<Exclusive>, Error> {
        let (file, doing) = self.lock_file(LOCK_FILE)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Exclusive(file))),
            Err(std::fs::TryLockError::WouldBlock) => Ok(None),
            Err(std::fs::TryLockError::Error(error)) => Err(Error::io(doing)(error)),
        }
    }

    /// Each opening is a lock of its own, so it holds between threads of one process, too.
    fn lock_file(&self, name: &str) -> Result<(File, String), Error> {
        let path = self.root.join(name);
        let doing = format!("lock {}", path.display());
        let file = File::options().create(true).truncate(false).write(true).open(&path);
        Ok((file.map_err(Error::io(doing.clone()))?, doing))
    }

    /// Runs `work`, which takes an image for a container, while nobody removes one. Blocks.
    pub fn while_kept<T>(&self, work: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
        let _kept = self.exclusive(CLAIMS_FILE)?;
        work()
    }

    pub fn layers_dir(&self) -> PathBuf {
        self.root.join("layers")
    }

    pub fn list(&self) -> Vec<ImageStatus> {
        self.index().index.images.iter().map(|i| i.status.clone()).collect()
    }

    /// By name (normalised), id, or a unique beginning of an id of 12 digits or more.
    pub fn find(&self, text: &str) -> Option<Image> {
        let shelf = self.index();
        let index = &shelf.index;
        let mut fits = index.images.iter().filter(|i| is_id(text, &i.status.id));
        if let (Some(image), None) = (fits.next(), fits.next()) {
            return Some(image.clone());
        }
        let name = ImageName::parse(text).ok()?;
        let found = index.images.iter().find(|i| match &name.digest {
            Some(digest) => {
                let wanted = name.with_digest(digest);
                i.status.digests.contains(&wanted) || i.status.id == *digest
            }
            None => i.status.tags.contains(&name.to_string()),
        });
        found.cloned()
    }

    /// Takes a name away, or the whole image when `text` is its id or its last name. Layers that `in_use` names stay
    /// on the disk until a later removal.
    pub fn remove(&self, text: &str, in_use: impl FnOnce() -> Result<HashSet<String>, Error>) -> Result<(), Error> {
        let _alone = self.exclusive(LOCK_FILE)?;
        let _unclaimed = self.exclusive(CLAIMS_FILE)?;
        let Some(image) = self.find(text) else { return Ok(()) };
        let in_use = in_use()?;
        let mut shelf = self.index();
        let Shelf { index, file } = &mut *shelf;
        let Some(at) = index.images.iter().position(|i| i.status.id == image.status.id) else { return Ok(()) };
        if !is_id(text, &image.status.id) {
            let name = ImageName::parse(text)?;
            let full = name.to_string();
            let status = &mut index.images[at].status;
            status.tags.retain(|t| *t != full);
            match &name.digest {
                Some(digest) => {
                    let gone = name.with_digest(digest);
                    status.digests.retain(|d| *d != gone);
                }
                // The digest name was made with the tag; it goes with the repository's last tag.
                None if !status.tags.iter().any(|t| t.starts_with(&format!("{}:", name.path()))) => {
                    status.digests.retain(|d| !d.starts_with(&format!("{}@", name.path())));
                }
                None => {}
            }
            if !status.tags.is_empty() || !status.digests.is_empty() {
                return self.save(index, file);
            }
        }
        index.images.remove(at);
        let kept: HashSet<&String> = index.images.iter().flat_map(|i| &i.layers).chain(&in_use).collect();
        let kept: HashSet<String> = kept.into_iter().cloned().collect();
        index.layers.retain(|_, layer| kept.contains(&layer.dir));
        self.save(index, file)?;
        for dir in image.layers.iter().filter(|d| !kept.contains(*d)) {
            let path = self.layers_dir().join(dir);
            crate::rooted::remove_path(&path).map_err(Error::os(format!("remove {}", path.display())))?;
        }
        Ok(())
    }

    pub fn usage(&self) -> DiskUsage {
        let shelf = self.index();
        DiskUsage { bytes: shelf.index.layers.values().map(|l| l.bytes).sum(), inodes: 0 }
    }

    /// Replaces the index on the disk. Under the lock of the directory.
    fn save(&self, index: &Index, file: &mut Option<FileId>) -> Result<(), Error> {
        let text = serde_json::to_vec(index)
            .map_err(|e| Error::ImageInvalid { what: "the image index".to_owned(), why: e.to_string() })?;
        let path = self.root.join(INDEX_FILE);
        write_durably(&path, &text)?;
        let made = File::open(&path).and_then(|made| file_id(&made));
        *file = Some(made.map_err(Error::io(format!("read {}", path.display())))?);
        Ok(())
    }

    /// Removes layers the index does not know, with mounts an interrupted unpacking left.
    fn sweep(&self) -> Result<(), Error> {
        let known: HashSet<String> = self.index().index.layers.values().map(|l| l.dir.clone()).collect();
        let dir = self.layers_dir();
        let entries = std::fs::read_dir(&dir).map_err(Error::io(format!("read {}", dir.display())))?;
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if known.contains(&name) {
                continue;
            }
            if name.ends_with(MOUNT_SUFFIX) {
                let _ = rustix::mount::unmount(entry.path(), UnmountFlags::DETACH);
            }
            let doing = format!("remove {}", entry.path().display());
            crate::rooted::remove_path(&entry.path()).map_err(Error::os(doing))?;
        }
        self.sweep_visitors()
    }

    /// Removes the downloads of visitors that have ended.
    fn sweep_visitors(&self) -> Result<(), Error> {
        for entry in std::fs::read_dir(&self.ingest).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let Some(pid) = name.strip_prefix(VISITOR_PREFIX) else { continue };
            if !Path::new("/proc").join(pid).exists() {
                let doing = format!("remove {}", entry.path().display());
                crate::rooted::remove_path(&entry.path()).map_err(Error::os(doing))?;
            }
        }
        Ok(())
    }

    /// Chain ids of the first layers that are already here.
    fn known_layers(&self, diff_ids: &[String]) -> usize {
        let shelf = self.index();
        chain_ids(diff_ids).iter().take_while(|c| shelf.index.layers.contains_key(*c)).count()
    }

    /// Unpacks what is missing and enters the image under its names. Blocks.
    fn add(
        &self,
        mut status: ImageStatus,
        diff_ids: &[String],
        layers: Vec<LayerSource<'_>>,
    ) -> Result<ImageStatus, Error> {
        let _alone = self.exclusive(LOCK_FILE)?;
        let chains = chain_ids(diff_ids);
        let mut dirs: Vec<String> = Vec::new();
        let mut size = 0;
        let mut made: Vec<(String, Layer)> = Vec::new();
        for (chain, layer) in chains.iter().zip(layers) {
            let known = self.index().index.layers.get(chain).cloned();
            let layer = match known {
                Some(known) => known,
                None => {
                    let layer = self.unpack_layer(&dirs, layer).inspect_err(|_| self.discard(&made))?;
                    made.push((chain.clone(), layer.clone()));
                    layer
                }
            };
            size += layer.bytes;
            dirs.push(layer.dir);
        }
        if !made.is_empty() {
            unpack::sync(&self.layers_dir()).inspect_err(|_| self.discard(&made))?;
        }
        status.size_bytes = size;
        let mut shelf = self.index();
        let Shelf { index, file } = &mut *shelf;
        index.layers.extend(made);
        // A tag points to one image.
        for other in &mut index.images {
            other.status.tags.retain(|t| !status.tags.contains(t) || other.status.id == status.id);
        }
        match index.images.iter_mut().find(|i| i.status.id == status.id) {
            Some(image) => {
                for (have, new) in
                    [(&mut image.status.tags, &status.tags), (&mut image.status.digests, &status.digests)]
                {
                    have.extend(new.iter().cloned());
                    have.sort();
                    have.dedup();
                }
                image.layers = dirs;
                status = image.status.clone();
            }
            None => index.images.push(Image { status: status.clone(), layers: dirs }),
        }
        self.save(index, file)?;
        Ok(status)
    }

    /// Takes away layers that no index names yet.
    fn discard(&self, made: &[(String, Layer)]) {
        for (_, layer) in made {
            // What stays is removed at the next start.
            let _ = crate::rooted::remove_path(&self.layers_dir().join(&layer.dir));
        }
    }

    fn unpack_layer(&self, lower: &[String], layer: LayerSource<'_>) -> Result<Layer, Error> {
        let number = {
            let mut shelf = self.index();
            shelf.index.next_layer += 1;
            shelf.index.next_layer
        };
        let layers = self.layers_dir();
        let new = layers.join(format!("{NEW_PREFIX}{number}"));
        let mount = layers.join(format!("{NEW_PREFIX}{number}{MOUNT_SUFFIX}"));
        let result = self.unpack_into(lower, layer, &new, &mount);
        let _ = rustix::mount::unmount(&mount, UnmountFlags::DETACH);
        let _ = crate::rooted::remove_path(&mount);
        let _ = crate::rooted::remove_path(&new.join("work"));
        match result {
            Ok(bytes) => {
                let dir = number.to_string();
                let from = new.join("fs");
                std::fs::rename(&from, layers.join(&dir)).map_err(Error::io(format!("keep {}", from.display())))?;
                let _ = crate::rooted::remove_path(&new);
                Ok(Layer { dir, bytes })
            }
            Err(error) => {
                let _ = crate::rooted::remove_path(&new);
                Err(error)
            }
        }
    }

    fn unpack_into(&self, lower: &[String], layer: LayerSource<'_>, new: &Path, mount: &Path) -> Result<u64, Error> {
        let fs = new.join("fs");
        for dir in [&fs, &new.join("work"), mount] {
            std::fs::create_dir_all(dir).map_err(Error::io(format!("make {}", dir.display())))?;
        }
        let onto = if lower.is_empty() {
            &fs
        } else {
            let lower: Vec<String> = lower.iter().rev().cloned().collect();
            mount_overlay(&self.layers_dir(), &lower, &fs, &new.join("work"), mount)?;
            mount
        };
        let what = format!("layer {}", layer.digest);
        let unpacked = unpack::unpack(&what, (layer.open)()?, onto)?;
        match unpacked.diff_id == layer.diff_id {
            true => Ok(unpacked.bytes),
            false => Err(Error::ImageDigest { what, expected: layer.diff_id, found: unpacked.diff_id }),
        }
    }
}

/// Mounts an overlay whose lower directories are relative to `layers`. A thread with a working directory of its own
/// keeps the names short enough for the kernel's option page.
fn mount_overlay(layers: &Path, lower: &[String], upper: &Path, work: &Path, target: &Path) -> Result<(), Error> {
    let options = format!("lowerdir={},upperdir={},workdir={}", lower.join(":"), upper.display(), work.display());
    let options = std::ffi::CString::new(options)
        .map_err(|_| Error::ImageInvalid { what: "a layer".to_owned(), why: "a NUL byte in a path".to_owned() })?;
    let doing = format!("mount the layers on {}", target.display());
    let result = std::thread::scope(|scope| {
        let thread = scope.spawn(|| -> std::io::Result<()> {
            crate::sys::unshare(libc::CLONE_FS)?;
            rustix::process::chdir(layers)?;
            Ok(rustix::mount::mount("overlay", target, "overlay", MountFlags::empty(), Some(&*options))?)
        });
        thread.join().unwrap_or_else(|_| Err(std::io::Error::other("the mounting thread panicked")))
    });
    result.map_err(Error::io(doing))
}

/// Whether the text is the id, or a beginning of it that is long enough.
fn is_id(text: &str, id: &str) -> bool {
    const SHORTEST: usize = 12;
    let bare = text.strip_prefix("sha256:").unwrap_or(text);
    bare.len() >= SHORTEST && id.strip_prefix("sha256:").is_some_and(|i| i.starts_with(bare))
}

/// The id of each layer with all below it.
fn chain_ids(diff_ids: &[String]) -> Vec<String> {
    let mut chains: Vec<String> = Vec::new();
    for id in diff_ids {
        chains.push(match chains.last() {
            None => id.clone(),
            Some(below) => sha256(format!("{below} {id}").as_bytes()),
        });
    }
    chains
}

/// `sha256:...` of bytes.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(digest(&SHA256, bytes)))
}

/// A digest that grows with what is written.
pub(crate) struct Hasher(Context);

impl Hasher {
    pub fn new() -> Hasher {
        Hasher(Context::new(&SHA256))
    }

    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub fn finish(self) -> String {
        format!("sha256:{}", hex::encode(self.0.finish()))
    }
}

/// In a container's directory: the layers of its root, as a JSON list.
pub(crate) const LAYERS_FILE: &str = "layers.json";

/// Names (below `layers`) that the roots of the containers below the runtime's `root` are made of.
pub(crate) fn layers_in_use(root: &Path) -> Result<HashSet<String>, Error> {
    let dir = root.join("containers");
    let entries = match std::fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(HashSet::new()),
        Err(e) => return Err(Error::io(format!("read {}", dir.display()))(e)),
    };
    let mut used = HashSet::new();
    for entry in entries.flatten() {
        let path = entry.path().join(LAYERS_FILE);
        match std::fs::read(&path) {
            Ok(text) => used.extend(serde_json::from_slice::<Vec<String>>(&text).map_err(|e| Error::ImageInvalid {
                what: format!("the list of layers {}", path.display()),
                why: e.to_string(),
            })?),
            // A container that is just being made or removed uses none.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(Error::io(format!("read {}", path.display()))(e)),
        }
    }
    Ok(used)
}

fn file_id(file: &File) -> std::io::Result<FileId> {
    use std::os::unix::fs::MetadataExt;
    let found = file.metadata()?;
    Ok((found.dev(), found.ino(), found.size(), found.ctime(), found.ctime_nsec()))
}

/// Replaces a file so that after a crash it is either the old or the new one.
fn write_durably(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let doing = || format!("write {}", path.display());
    let new = path.with_extension("new");
    let mut file = File::create(&new).map_err(Error::io(doing()))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(Error::io(doing()))?;
    std::fs::rename(&new, path).map_err(Error::io(doing()))?;
    let dir = path.parent().unwrap_or(Path::new("/"));
    File::open(dir).and_then(|d| d.sync_all()).map_err(Error::io(doing()))
}
