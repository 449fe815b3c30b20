//! Volumes of pods as directories of the node: made before containers start, updated while they run, removed after.
//!
//! Files of config maps, secrets, the downward API and tokens are laid out as upstream does it: a dated directory with
//! the files, a `..data` link to it, and one link per file through `..data`, so that an update is one rename.
//!
//! Secrets, tokens and what stands beside them lie in a tmpfs of the node ([`mount_memory`]): no disk ever sees them, and
//! they end with the machine.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use api::core::volume_binding::{self, BIND_COMPLETED, CLAIMS, Holder, VOLUMES};
use meta::{Resource, Str, Value};
use rustix::mount::{MountFlags, UnmountFlags};

use crate::certificates::{Credentials, Found};
use crate::env::{CONFIG_MAPS, Fetch, Place, SECRETS, bytes_of, field_value, resource_value};
use crate::spec::PodDirs;

/// What a volume needs besides the pod.
pub struct Sources<'a> {
    pub fetch: Fetch<'a>,
    /// A service-account token for an audience: `(audience, seconds)`.
    pub token: &'a dyn Fn(&str, i64) -> Result<String, String>,
    /// The anchors of a source of trust, and the credentials of a source of certificates: by volume and place.
    pub anchors: &'a Found<String>,
    pub credentials: &'a Found<Credentials>,
    pub place: Place<'a>,
}

const DATA: &str = "..data";
/// Sorts of volumes that lie in memory, as the kubelet has it.
const IN_MEMORY: [&str; 3] = ["secret", "projected", "downwardAPI"];

/// Most that a tmpfs of ours may hold. A secret has at most 1 MiB, what is kept of a pod some KiB.
const MEMORY_MAX_BYTES: u64 = 1 << 30;
const TMPFS_MAGIC: i64 = 0x0102_1994;

/// Mounts the node's tmpfs for secrets, unless an earlier agent did. It is not swapped out where the kernel can promise
/// that (6.4 and later).
///
/// # Errors
/// Those of the kernel.
pub fn mount_memory(dir: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(dir)?;
    let device = |path: &Path| std::fs::metadata(path).map(|found| std::os::unix::fs::MetadataExt::dev(&found));
    let mounted = device(dir)? != device(dir.parent().unwrap_or(dir))?;
    if mounted && rustix::fs::statfs(dir)?.f_type == TMPFS_MAGIC {
        return Ok(());
    }
    mount_tmpfs(dir, ",noswap").or_else(|_| mount_tmpfs(dir, ""))
}

/// Has what need not outlive the machine in memory, if it does not lie there anyway: on a disk each small file costs a trip
/// when it goes. What is on a disk already stays there.
///
/// # Errors
/// Those of the kernel.
pub fn off_the_disk(dir: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(dir)?;
    let in_memory = rustix::fs::statfs(dir)?.f_type == TMPFS_MAGIC;
    if in_memory || std::fs::read_dir(dir)?.next().is_some() { Ok(()) } else { mount_tmpfs(dir, "") }
}

fn mount_tmpfs(dir: &Path, more: &str) -> std::io::Result<()> {
    let data = std::ffi::CString::new(format!("mode=0700,size={MEMORY_MAX_BYTES}{more}"))?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    rustix::mount::mount("tmpfs", dir, "tmpfs", flags, data.as_c_str()).map_err(std::io::Error::from)
}

/// Makes or updates all volumes of `pod`. The error is a sentence for an event and the pod's condition.
pub fn make(pod: &Value, dirs: &PodDirs, sources: &Sources<'_>) -> Result<(), String> {
    let group = pod.at(&["spec", "securityContext", "fsGroup"]).as_int().and_then(|group| u32::try_from(group).ok());
    for volume in pod.at(&["spec", "volumes"]).items() {
        let name = volume["name"].text();
        let made = match is_claim(volume) {
            true => claimed(pod, volume, &dirs.volumes(), group, sources),
            false => make_one(pod, volume, &path_of(volume, dirs), group, sources),
        };
        made.map_err(|why| format!("MountVolume.SetUp failed for volume {name:?} : {why}"))?;
    }
    Ok(())
}

/// Where the volume lies on the node.
pub fn path_of(volume: &Value, dirs: &PodDirs) -> PathBuf {
    let (name, has) = (volume["name"].text(), |key: &&str| volume.get(key).is_some());
    match volume.get("hostPath") {
        Some(host) => PathBuf::from(host["path"].text()),
        // What a claim stands for lies elsewhere; a link tells where.
        None if is_claim(volume) => {
            let link = dirs.volumes().join(name);
            std::fs::read_link(&link).unwrap_or(link)
        }
        None if IN_MEMORY.iter().any(has) => dirs.memory.join(name),
        None => dirs.volumes().join(name),
    }
}

/// Whether a volume is what a claim is bound to.
fn is_claim(volume: &Value) -> bool {
    ["persistentVolumeClaim", "ephemeral"].iter().any(|key| volume.get(key).is_some())
}

fn text(error: &std::io::Error) -> String {
    error.to_string()
}

fn make_one(pod: &Value, volume: &Value, path: &Path, group: Option<u32>, sources: &Sources<'_>) -> Result<(), String> {
    if let Some(host) = volume.get("hostPath") {
        return host_path(Path::new(host["path"].text()), host["type"].text());
    }
    if let Some(empty) = volume.get("emptyDir") {
        return empty_dir(empty, path, group);
    }
    let files = if let Some(source) = volume.get("configMap") {
        keyed(CONFIG_MAPS, source, "name", sources)?
    } else if let Some(source) = volume.get("secret") {
        keyed(SECRETS, source, "secretName", sources)?
    } else if let Some(source) = volume.get("downwardAPI") {
        downward(pod, source, sources)?
    } else if let Some(source) = volume.get("projected") {
        let mut files = Vec::new();
        for (at, source) in source["sources"].items().iter().enumerate() {
            files.extend(projected(pod, (volume["name"].text().into(), at), source, sources)?);
        }
        files
    } else {
        let kind = volume.entries().keys().find(|key| *key != "name").unwrap_or("no source");
        return Err(format!("volumes of this sort are not served here: {kind}"));
    };
    let source = ["configMap", "secret", "downwardAPI", "projected"].iter().find_map(|key| volume.get(key));
    let mode = source.and_then(|source| source["defaultMode"].as_int()).unwrap_or(0o644);
    write_files(path, &files, mode as u32, group).map_err(|error| text(&error))
}

/// Lays a link to what the volume's claim is bound to.
fn claimed(
    pod: &Value,
    volume: &Value,
    volumes: &Path,
    group: Option<u32>,
    sources: &Sources<'_>,
) -> Result<(), String> {
    let meta = &pod["metadata"];
    let name = volume_binding::claim_of(meta["name"].text(), volume).unwrap_or_default();
    let found = (sources.fetch)(CLAIMS, &name)?;
    let claim = found.ok_or_else(|| format!("persistentvolumeclaim {name:?} not found"))?;
    let owned = || claim["metadata"]["ownerReferences"].items().iter().any(|owner| owner["uid"] == meta["uid"]);
    if volume.get("ephemeral").is_some() && !owned() {
        return Err(format!("PVC {name} was not created for this pod (pod is not owner)"));
    }
    let bound_to = claim["spec"]["volumeName"].text();
    if bound_to.is_empty() || volume_binding::annotation(&claim, BIND_COMPLETED).is_empty() {
        return Err(format!("PVC {name} is not bound"));
    }
    let found = (sources.fetch)(VOLUMES, bound_to)?;
    let bound = found.ok_or_else(|| format!("persistentvolume {bound_to:?} not found"))?;
    if volume_binding::holder(&bound, &claim) != Holder::This {
        return Err(format!("PV {bound_to} is bound to another claim than {name}"));
    }
    let spec = &bound["spec"];
    if spec["volumeMode"].text() == "Block" {
        return Err("block volumes are not served here".to_owned());
    }
    let target = match (spec.get("local"), spec.get("hostPath")) {
        (Some(local), _) => {
            let target = PathBuf::from(local["path"].text());
            // Nobody makes the directory of a disk that is not there.
            if !target.is_dir() {
                return Err(format!("path {:?} does not exist", target.display()));
            }
            let policy = pod.at(&["spec", "securityContext", "fsGroupChangePolicy"]).text();
            if let Some(group) = group.filter(|group| policy != "OnRootMismatch" || !is_shared(&target, *group)) {
                share(&target, group).map_err(|error| text(&error))?;
            }
            target
        }
        (None, Some(host)) => {
            let target = PathBuf::from(host["path"].text());
            host_path(&target, host["type"].text())?;
            target
        }
        _ => return Err(format!("volumes of this sort are not served here: persistentvolume {bound_to:?}")),
    };
    let link = volumes.join(volume["name"].text());
    if std::fs::read_link(&link).is_ok_and(|known| known == target) {
        return Ok(());
    }
    std::fs::create_dir_all(volumes).and_then(|()| symlink(target, link)).map_err(|error| text(&error))
}

/// Whether a directory is already a group's.
fn is_shared(path: &Path, group: u32) -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).is_ok_and(|found| found.gid() == group && found.mode() & 0o2070 == 0o2070)
}

/// Gives all that lies at `path` to a group, which may do what the owner may; what comes to it is the group's, too. The
/// root comes last: it tells that the rest is done.
fn share(path: &Path, group: u32) -> std::io::Result<()> {
    let found = path.symlink_metadata()?;
    if found.is_dir() {
        for entry in std::fs::read_dir(path)? {
            share(&entry?.path(), group)?;
        }
    }
    own(path, Some(group))?;
    if found.is_symlink() {
        return Ok(());
    }
    let mode = found.permissions().mode();
    set_mode(path, if found.is_dir() { mode | 0o2070 } else { mode | 0o060 })
}

fn host_path(path: &Path, of_type: &str) -> Result<(), String> {
    let found = std::fs::metadata(path).ok();
    let is = |check: fn(&std::fs::Metadata) -> bool| found.as_ref().is_some_and(check);
    use std::os::unix::fs::FileTypeExt;
    let good = match of_type {
        // What nobody made is a directory then, as with other runtimes.
        "" if found.is_none() => return std::fs::create_dir_all(path).map_err(|error| text(&error)),
        "" => true,
        "DirectoryOrCreate" if found.is_none() => return std::fs::create_dir_all(path).map_err(|error| text(&error)),
        "FileOrCreate" if found.is_none() => return std::fs::write(path, b"").map_err(|error| text(&error)),
        "Directory" | "DirectoryOrCreate" => is(std::fs::Metadata::is_dir),
        "File" | "FileOrCreate" => is(std::fs::Metadata::is_file),
        "Socket" => is(|found| found.file_type().is_socket()),
        "CharDevice" => is(|found| found.file_type().is_char_device()),
        "BlockDevice" => is(|found| found.file_type().is_block_device()),
        other => return Err(format!("unknown hostPath type {other}")),
    };
    if good { Ok(()) } else { Err(format!("hostPath type check failed: {} is not a {of_type}", path.display())) }
}

fn empty_dir(source: &Value, path: &Path, group: Option<u32>) -> Result<(), String> {
    if path.exists() {
        return Ok(());
    }
    std::fs::create_dir_all(path).map_err(|error| text(&error))?;
    let in_memory = source["medium"].text() == "Memory";
    if in_memory {
        let size = meta::Quantity::of(&source["sizeLimit"]).map(|size| size.value()).unwrap_or(0);
        let data = if size > 0 { format!("size={size},mode=0777") } else { "mode=0777".to_owned() };
        let data = std::ffi::CString::new(data).map_err(|error| error.to_string())?;
        rustix::mount::mount("tmpfs", path, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, data.as_c_str())
            .map_err(|error| error.to_string())?;
    }
    // A file system in memory is one for all users, each with files of their own (the kernel's default for it).
    let mode = if group.is_some() { 0o2777 } else { 0o777 } | if in_memory { 0o1000 } else { 0 };
    own(path, group).and_then(|()| set_mode(path, mode)).map_err(|error| text(&error))
}

fn own(path: &Path, group: Option<u32>) -> std::io::Result<()> {
    match group {
        Some(group) => std::os::unix::fs::lchown(path, None, Some(group)),
        None => Ok(()),
    }
}

fn set_mode(path: &Path, mode: u32) -> std::io::Result<()> {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
}

/// A file to be.
struct File {
    /// Inside the volume.
    path: String,
    bytes: Vec<u8>,
    /// Where it is not that of the volume.
    mode: Option<u32>,
    /// Where it is not root.
    owner: Option<u32>,
}

impl File {
    fn new(path: &str, bytes: impl Into<Vec<u8>>, mode: Option<u32>) -> File {
        File { path: path.to_owned(), bytes: bytes.into(), mode, owner: None }
    }

    /// What only the pod may read: its own where all its containers run as one user.
    fn private(pod: &Value, path: &str, bytes: impl Into<Vec<u8>>) -> File {
        let owner = only_user(pod);
        let shared = pod.at(&["spec", "securityContext", "fsGroup"]).as_int().is_some();
        File { owner, ..File::new(path, bytes, (owner.is_some() || shared).then_some(0o600)) }
    }
}

/// The user as whom all containers of the pod run, if it says one.
fn only_user(pod: &Value) -> Option<u32> {
    let spec = &pod["spec"];
    let of_pod = spec.at(&["securityContext", "runAsUser"]).as_int();
    let lists = ["initContainers", "containers", "ephemeralContainers"];
    let mut users = lists.iter().flat_map(|list| spec[*list].items()).map(|container| {
        let own = container.at(&["securityContext", "runAsUser"]).as_int();
        own.or(of_pod)
    });
    let first = users.next()??;
    users.all(|user| user == Some(first)).then(|| u32::try_from(first).ok()).flatten()
}

fn keyed(resource: Resource, source: &Value, name_key: &str, sources: &Sources<'_>) -> Result<Vec<File>, String> {
    let name = source[name_key].text();
    let what = if resource == SECRETS { "secret" } else { "configmap" };
    let optional = source["optional"].is_true();
    let object = match (sources.fetch)(resource, name)? {
        Some(object) => object,
        None if optional => return Ok(Vec::new()),
        None => return Err(format!("{what} {name:?} not found")),
    };
    let items = source["items"].items();
    if items.is_empty() {
        let keys = object["data"].entries().keys().chain(object["binaryData"].entries().keys()).map(Str::from);
        let keys: Vec<Str> = keys.collect();
        return Ok(keys
            .into_iter()
            .filter_map(|key| Some(File::new(&key, bytes_of(resource, &object, &key)?, None)))
            .collect());
    }
    let mut files = Vec::new();
    for item in items {
        let key = item["key"].text();
        match bytes_of(resource, &object, key) {
            Some(bytes) => files.push(File::new(item["path"].text(), bytes, mode_of(item))),
            None if optional => {}
            None => return Err(format!("references non-existent {what} key: {key}")),
        }
    }
    Ok(files)
}

fn mode_of(item: &Value) -> Option<u32> {
    item["mode"].as_int().and_then(|mode| u32::try_from(mode).ok())
}

fn downward(pod: &Value, source: &Value, sources: &Sources<'_>) -> Result<Vec<File>, String> {
    let mut files = Vec::new();
    for item in source["items"].items() {
        let text = match item.get("resourceFieldRef") {
            Some(reference) => resource_value(pod, &Value::Null, reference, &sources.place)?,
            None => field_value(pod, item.at(&["fieldRef", "fieldPath"]).text(), &sources.place)?,
        };
        files.push(File::new(item["path"].text(), text, mode_of(item)));
    }
    Ok(files)
}

fn projected(pod: &Value, place: (Str, usize), source: &Value, sources: &Sources<'_>) -> Result<Vec<File>, String> {
    if let Some(source) = source.get("configMap") {
        return keyed(CONFIG_MAPS, source, "name", sources);
    }
    if let Some(source) = source.get("secret") {
        return keyed(SECRETS, source, "name", sources);
    }
    if let Some(source) = source.get("downwardAPI") {
        return downward(pod, source, sources);
    }
    if let Some(source) = source.get("serviceAccountToken") {
        let seconds = source["expirationSeconds"].as_int().unwrap_or(3600);
        let token = (sources.token)(source["audience"].text(), seconds)?;
        return Ok(vec![File::private(pod, source["path"].text(), token)]);
    }
    if let Some(source) = source.get("clusterTrustBundle") {
        let anchors = sources.anchors.get(&place).cloned().unwrap_or_else(|| Err("no bundle".to_owned()))?;
        return Ok(vec![File::private(pod, source["path"].text(), anchors)]);
    }
    if let Some(source) = source.get("podCertificate") {
        let held = sources.credentials.get(&place).cloned().unwrap_or_else(|| Err("no credentials".to_owned()))?;
        let Credentials { key_pem, chain_pem } = held;
        let bundle = format!("{key_pem}{chain_pem}");
        let parts = [("credentialBundlePath", bundle), ("keyPath", key_pem), ("certificateChainPath", chain_pem)];
        let files = parts.into_iter().map(|(key, text)| File::private(pod, source[key].text(), text));
        return Ok(files.filter(|file| !file.path.is_empty()).collect());
    }
    Err("a projected source that is not served here".to_owned())
}

/// Whether a path stays inside its volume.
fn is_inside(path: &str) -> bool {
    !path.is_empty() && Path::new(path).components().all(|part| matches!(part, std::path::Component::Normal(_)))
}

/// Writes the files in a directory of their own and moves `..data` to it, unless they are there already.
fn write_files(dir: &Path, files: &[File], mode: u32, group: Option<u32>) -> std::io::Result<()> {
    std::fs::create_dir_all(dir)?;
    set_mode(dir, if group.is_some() { 0o2777 } else { 0o777 })?;
    own(dir, group)?;
    let data = dir.join(DATA);
    let current = std::fs::read_link(&data).ok().map(|link| dir.join(link));
    if current.as_ref().is_some_and(|current| is_same(current, files)) {
        return Ok(());
    }
    let stamp = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_nanos();
    let fresh_name = format!("..{stamp}");
    let fresh = dir.join(&fresh_name);
    std::fs::create_dir(&fresh)?;
    set_mode(&fresh, 0o755)?;
    own(&fresh, group)?;
    for file in files.iter().filter(|file| is_inside(&file.path)) {
        let path = fresh.join(&file.path);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::write(&path, &file.bytes)?;
        // A group that shares the volume can read what its owner can.
        let mode = file.mode.unwrap_or(mode);
        set_mode(&path, if group.is_some() { mode | (mode & 0o400) >> 3 } else { mode })?;
        std::os::unix::fs::lchown(&path, file.owner, group)?;
    }
    let link = dir.join("..data_tmp");
    // One may be left of an interrupted update.
    let _ = std::fs::remove_file(&link);
    symlink(&fresh_name, &link)?;
    std::fs::rename(&link, &data)?;
    let tops: std::collections::BTreeSet<&str> =
        files.iter().filter(|file| is_inside(&file.path)).filter_map(|file| file.path.split('/').next()).collect();
    for top in &tops {
        let place = dir.join(top);
        if place.symlink_metadata().is_err() {
            symlink(Path::new(DATA).join(top), place)?;
        }
    }
    for entry in std::fs::read_dir(dir)?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with("..") && !tops.contains(name.as_str()) {
            std::fs::remove_file(entry.path())?;
        }
    }
    if let Some(old) = current {
        std::fs::remove_dir_all(old)?;
    }
    Ok(())
}

fn is_same(dir: &Path, files: &[File]) -> bool {
    fn count(dir: &Path) -> usize {
        let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
        entries.flatten().map(|entry| if entry.path().is_dir() { count(&entry.path()) } else { 1 }).sum()
    }
    let inside: Vec<_> = files.iter().filter(|file| is_inside(&file.path)).collect();
    count(dir) == inside.len()
        && inside.iter().all(|file| std::fs::read(dir.join(&file.path)).is_ok_and(|found| found == file.bytes))
}

/// Unmounts and removes everything below `dir`.
pub fn remove(dir: &Path) -> std::io::Result<()> {
    if let Ok(entries) = std::fs::read_dir(dir) {
        for entry in entries.flatten() {
            // Most are no mount points, which is no error here. A link leads to a disk that outlives the pod.
            let _ = rustix::mount::unmount(entry.path(), UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
        }
    }
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(dir: &Path, name: &str) -> Option<String> {
        std::fs::read_to_string(dir.join(name)).ok()
    }

    #[test]
    fn secrets_lie_where_no_disk_is() {
        let data = tempfile::tempdir().unwrap();
        let at = |name: &str| data.path().join(name);
        mount_memory(&at("memory")).unwrap();
        std::fs::write(at("memory/kept"), "").unwrap();
        // Once more, as the next agent does.
        mount_memory(&at("memory")).unwrap();
        assert!(at("memory/kept").exists());
        let dirs = PodDirs { root: at("pods/u"), logs: at("logs/u"), memory: at("memory/u") };
        let pod = meta::json!({"spec": {"volumes": [
            {"name": "s", "secret": {"secretName": "s"}},
            {"name": "c", "configMap": {"name": "c"}},
            {"name": "t", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}},
        ]}});
        let fetch = |_, _: &str| Ok(Some(meta::json!({"data": {"key": "dmFsdWU="}})));
        let place = Place { host_addresses: &[], addresses: &[], allocatable: (0, 0) };
        std::fs::create_dir(at("disk")).unwrap();
        std::fs::write(at("disk/kept"), "").unwrap();
        off_the_disk(&at("disk")).unwrap();
        off_the_disk(&at("memory/more")).unwrap();
        let more = [at("disk/kept").exists(), std::fs::remove_dir(at("memory/more")).is_ok()];
        let (anchors, credentials) = (Found::new(), Found::new());
        let token = |_: &str, _| Ok("secret".to_owned());
        let sources = Sources { fetch: &fetch, token: &token, anchors: &anchors, credentials: &credentials, place };
        make(&pod, &dirs, &sources).unwrap();
        let written = ["memory/u/s/key", "memory/u/t/token", "pods/u/volumes/c/key"].map(|name| at(name).exists());
        let flat = std::fs::metadata(at("memory")).unwrap();
        rustix::mount::unmount(at("memory"), rustix::mount::UnmountFlags::DETACH).unwrap();
        assert_eq!((written, more), ([true; 3], [true; 2]));
        assert_eq!(std::os::unix::fs::MetadataExt::mode(&flat) & 0o777, 0o700);
        assert!(!at("memory/u").exists(), "it was the tmpfs that had it");
    }

    #[test]
    fn what_is_private_belongs_to_the_only_user() {
        let check = |pod: Value, expected: (Option<u32>, Option<u32>)| {
            let file = File::private(&pod, "token", "");
            assert_eq!((file.owner, file.mode), expected, "{pod:?}");
        };
        check(meta::json!({"spec": {"containers": [{}]}}), (None, None));
        let spec = |one: i64, group: Value| {
            let containers = meta::json!([{"securityContext": {"runAsUser": one}}, {}]);
            meta::json!({"spec": {"containers": containers, "securityContext": {"runAsUser": 7, "fsGroup": group}}})
        };
        check(spec(7, Value::Null), (Some(7), Some(0o600)));
        check(spec(8, Value::Null), (None, None));
        check(spec(8, 5i64.into()), (None, Some(0o600)));
    }

    #[test]
    fn files_change_by_one_rename_and_stay_inside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v");
        let file = |name: &str, text: &str| File::new(name, text, None);
        write_files(&path, &[file("a", "1"), file("d/b", "2"), file("../x", "3"), file("/y", "4")], 0o644, None)
            .unwrap();
        assert_eq!((read(&path, "a").as_deref(), read(&path, "d/b").as_deref()), (Some("1"), Some("2")));
        assert!(!dir.path().join("x").exists());
        let before = std::fs::read_link(path.join(DATA)).unwrap();
        write_files(&path, &[file("a", "1"), file("d/b", "2")], 0o644, None).unwrap();
        assert_eq!(std::fs::read_link(path.join(DATA)).unwrap(), before, "nothing changed, nothing moves");
        write_files(&path, &[file("a", "9")], 0o600, None).unwrap();
        assert_eq!((read(&path, "a").as_deref(), read(&path, "d/b")), (Some("9"), None));
        assert!(!path.join(before).exists());
        remove(&path).unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn an_empty_folder_is_for_all_users_and_one_in_memory_keeps_them_apart() {
        let dir = tempfile::tempdir().unwrap();
        for (at, (medium, group, expected)) in
            [("", None, 0o777), ("", Some(123), 0o2777), ("Memory", None, 0o1777), ("Memory", Some(123), 0o3777)]
                .into_iter()
                .enumerate()
        {
            let path = dir.path().join(at.to_string());
            empty_dir(&meta::json!({"medium": medium}), &path, group).unwrap();
            let mode = std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777;
            if medium == "Memory" {
                rustix::mount::unmount(&path, rustix::mount::UnmountFlags::DETACH).unwrap();
            }
            assert_eq!(mode, expected, "{medium:?} {group:?}");
        }
    }

    #[test]
    fn a_claim_is_a_link_to_its_volume_that_outlives_the_pod() {
        let data = tempfile::tempdir().unwrap();
        let disk = data.path().join("disk");
        std::fs::create_dir(&disk).unwrap();
        std::fs::write(disk.join("kept"), "x").unwrap();
        let dirs =
            PodDirs { root: data.path().join("u"), logs: data.path().join("logs"), memory: data.path().join("memory") };
        let mut claim = meta::json!({
            "metadata": {"name": "c", "namespace": "ns", "uid": "uc"}, "spec": {"volumeName": "v"},
        });
        let bound = meta::json!({
            "metadata": {"name": "v"},
            "spec": {"local": {"path": (disk.display().to_string())}, "claimRef": {"namespace": "ns", "name": "c", "uid": "uc"}},
        });
        let pod = meta::json!({
            "metadata": {"name": "p", "namespace": "ns", "uid": "u"},
            "spec": {"volumes": [{"name": "d", "persistentVolumeClaim": {"claimName": "c"}}]},
        });
        let volume = &pod["spec"]["volumes"].items()[0];
        let mounted = |claim: &Value| {
            let fetch =
                |resource: Resource, _: &str| Ok(Some(if resource == CLAIMS { claim.clone() } else { bound.clone() }));
            let sources = Sources {
                fetch: &fetch,
                token: &|_, _| Err(String::new()),
                anchors: &Found::default(),
                credentials: &Found::default(),
                place: Place { host_addresses: &[], addresses: &[], allocatable: (0, 0) },
            };
            make(&pod, &dirs, &sources)
        };
        assert!(mounted(&claim).unwrap_err().ends_with("PVC c is not bound"));
        claim.set(&["metadata", "annotations", BIND_COMPLETED], "yes");
        mounted(&claim).unwrap();
        mounted(&claim).unwrap();
        assert_eq!(path_of(volume, &dirs), disk);
        claim.set(&["metadata", "uid"], "of another life");
        assert!(mounted(&claim).unwrap_err().contains("another claim"));
        remove(&dirs.volumes()).unwrap();
        assert_eq!(read(&disk, "kept").as_deref(), Some("x"));

        share(&disk, 7).unwrap();
        assert!(is_shared(&disk, 7));
        assert_eq!(std::fs::metadata(disk.join("kept")).unwrap().permissions().mode() & 0o060, 0o060);
    }
}
