//! `gantry backup create|verify|restore`, and `gantry store migrate`: a whole cluster's state, taken from one place and
//! put into another.
//!
//! A backup is one file, packed with zstd, one JSON value a line: what it is (format, revision, the cluster's keys sealed
//! with its secret), the keys as [`crate::stores`] writes them, and a last line with the leases, the number of keys and a
//! SHA-256 of all lines before. It is of one revision. A cluster with a store of its own is read from its files, running
//! or not; one in etcd through etcd.
//!
//! What belongs to running servers (who leads, who is there) is left out; values stand as they are, and the data version
//! beside them. Revisions after a restore are above all that the lost cluster may have given since: whoever resumes from
//! one of those is told to list again.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use base::Revision;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use etcd::Etcd;
use meta::{Value, json};
use ring::digest::{Context, SHA256};
use store::{Backend, Dump, Dumped, Format, LeaseId, Put, Range, Txn};

use crate::backend::{self, KEYS, Secret};
use crate::error::Error;
use crate::flags::Settings;
use crate::folder::Folder;
use crate::stores::{can_be_read, dumped, leases_of, line_of, list_of, new_id, number, unsigned};

const FORMAT: &str = "gantry-backup/1";
/// The longest line that is read.
const LINE_MAX_BYTES: usize = 64 << 20;
/// Keys read from etcd at once.
const PAGE_KEYS: usize = 2_000;
/// How far revisions are lifted by a restore: more than a cluster gives between two backups.
const LIFT: u64 = 10_000_000;
const PACKING: i32 = 3;

/// Keys that are about running servers, or lie beside the state. The data version is of the state.
fn is_passing(key: &[u8]) -> bool {
    key != Format::KEY && [&b"/leader"[..], b"/servers/", b"/cluster/"].iter().any(|prefix| key.starts_with(prefix))
}

/// A state that is read, at one revision.
enum Source {
    Files(Dump),
    Etcd { runtime: tokio::runtime::Runtime, etcd: Etcd, at: Revision },
}

fn runtime() -> Result<tokio::runtime::Runtime, Error> {
    let built = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    built.map_err(|error| Error::doing("start the threads", error))
}

fn failed(doing: &'static str) -> impl Fn(store::Error) -> Error {
    move |error| Error::doing(doing, error)
}

impl Source {
    fn etcd(settings: &Settings) -> Result<Source, Error> {
        let runtime = runtime()?;
        let etcd = runtime.block_on(backend::open_etcd(settings))?;
        let at = etcd.revision();
        Ok(Source::Etcd { runtime, etcd, at })
    }

    fn revision(&self) -> Revision {
        match self {
            Source::Files(dump) => dump.revision,
            Source::Etcd { at, .. } => *at,
        }
    }

    /// Hands every key over, ascending; tells the leases that they use.
    fn each(&self, take: &mut dyn FnMut(Dumped) -> Result<(), Error>) -> Result<Vec<(LeaseId, u64)>, Error> {
        match self {
            Source::Files(dump) => {
                dump.iter().filter(|key| !is_passing(&key.key)).try_for_each(take)?;
                Ok(dump.leases.clone())
            }
            Source::Etcd { runtime, etcd, at } => {
                let mut leases = BTreeMap::new();
                let mut after: Option<Bytes> = None;
                loop {
                    let page = runtime.block_on(etcd.range(Range::all(), Some(*at), after, PAGE_KEYS));
                    let page = page.map_err(failed("read the keys in etcd"))?;
                    for (key, version) in page.items.iter().filter(|(key, _)| !is_passing(key)) {
                        if let Some(id) = version.lease
                            && !leases.contains_key(&id)
                        {
                            let ms = runtime.block_on(etcd.lease_ms(id)).map_err(failed("ask after a lease"))?;
                            leases.insert(id, ms);
                        }
                        take(Dumped {
                            key: key.clone(),
                            value: version.value.bytes(),
                            create_revision: version.create_revision,
                            mod_revision: version.mod_revision,
                            lease: version.lease,
                        })?;
                    }
                    match page.items.last() {
                        Some((key, _)) if page.more => after = Some(key.clone()),
                        _ => return Ok(leases.into_iter().filter_map(|(id, ms)| Some((id, ms?))).collect()),
                    }
                }
            }
        }
    }

    /// The cluster's keys, sealed.
    fn sealed_keys(&self, settings: &Settings) -> Result<Bytes, Error> {
        match self {
            Source::Files(_) => {
                let packed = backend::pack(&settings.data().join("keys"))?;
                Secret::read_or_make(settings)?.seal(&packed)
            }
            Source::Etcd { runtime, etcd, at } => {
                let page = runtime.block_on(etcd.range(Range::key(KEYS), Some(*at), None, 0));
                let page = page.map_err(failed("read the cluster's keys in etcd"))?;
                let found = page.items.first().map(|(_, version)| version.value.bytes());
                found.ok_or_else(|| Error::Machine("there is no cluster in this etcd under this prefix".to_owned()))
            }
        }
    }

    /// Number and digest of all keys: the proof that two places hold the same.
    fn digest(&self) -> Result<(u64, String), Error> {
        let (mut context, mut count) = (Context::new(&SHA256), 0);
        self.each(&mut |key| {
            count += 1;
            for part in [&key.key, &key.value] {
                context.update(&(part.len() as u64).to_le_bytes());
                context.update(part);
            }
            context.update(&key.create_revision.0.to_le_bytes());
            context.update(&key.mod_revision.0.to_le_bytes());
            Ok(())
        })?;
        Ok((count, hex(context.finish().as_ref())))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn store_of(settings: &Settings) -> PathBuf {
    settings.data().join("store")
}

/// Lines behind one another, with their digest.
struct Lines<W: Write> {
    out: W,
    digest: Context,
    keys: u64,
}

impl<W: Write> Lines<W> {
    fn put(&mut self, value: &Value, path: &Path) -> Result<(), Error> {
        let mut line = value.to_json();
        line.push(b'\n');
        self.digest.update(&line);
        self.out.write_all(&line).map_err(Error::file("write the backup", path))
    }
}

pub fn create(settings: &Settings) -> Result<(), Error> {
    let source = match settings.text("backend") {
        Some("etcd") => Source::etcd(settings)?,
        _ => Source::Files(store::look(&store_of(settings))?),
    };
    let sealed = source.sealed_keys(settings)?;
    let path = PathBuf::from(settings.argument());
    // Under its name only when it is whole.
    let part = path.with_added_extension("part");
    if path.exists() {
        return Err(Error::Machine(format!("{} is there already; give another name", path.display())));
    }
    let made = std::fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(&part);
    let file = made.map_err(Error::file("create", &part))?;
    let writing = || Error::file("write the backup", &part);
    let mut packer = zstd::Encoder::new(BufWriter::new(file), PACKING).map_err(writing())?;
    packer.include_checksum(true).map_err(writing())?;
    let mut lines = Lines { out: packer, digest: Context::new(&SHA256), keys: 0 };
    let revision = source.revision();
    let head = json!({"format": FORMAT, "revision": (number(revision.0)), "keys": (STANDARD.encode(sealed))});
    lines.put(&head, &part)?;
    let leases = source.each(&mut |key| {
        lines.keys += 1;
        lines.put(&line_of(&key), &part)
    })?;
    let Lines { mut out, digest, keys } = lines;
    let sum = hex(digest.finish().as_ref());
    let last = json!({"leases": (list_of(&leases)), "count": (number(keys)), "sha256": (&sum)});
    out.write_all(&last.to_json()).and_then(|()| out.write_all(b"\n")).map_err(writing())?;
    let file = out.finish().and_then(|out| out.into_inner().map_err(|error| error.into_error())).map_err(writing())?;
    file.sync_all().map_err(writing())?;
    std::fs::rename(&part, &path).map_err(Error::file("name the backup", &path))?;
    say!("{}: {keys} keys at revision {revision}, sha256 {sum}", path.display());
    say!("Restoring it needs the cluster's secret; keep a copy of that file elsewhere.");
    Ok(())
}

/// What a backup that was read to its end says.
struct Verified {
    revision: Revision,
    sealed: Bytes,
    leases: Vec<(LeaseId, u64)>,
    count: u64,
    sum: String,
}

/// Reads the lines of a backup: the first, then every key; the last line is checked and returned with the first.
fn read(path: &Path, take: &mut dyn FnMut(Dumped) -> Result<(), Error>) -> Result<Verified, Error> {
    let file = std::fs::File::open(path).map_err(Error::file("open the backup", path))?;
    read_from(file, path, take)
}

/// The same from bytes that came from `path`.
fn read_from(
    file: impl std::io::Read,
    path: &Path,
    take: &mut dyn FnMut(Dumped) -> Result<(), Error>,
) -> Result<Verified, Error> {
    let bad =
        |line: u64, why: &str| Error::Value { place: format!("{}, line {line}", path.display()), why: why.to_owned() };
    let opened = zstd::Decoder::new(file).map_err(|_| bad(1, "the file is no backup of gantry backup create"))?;
    let (mut lines, mut digest) = (BufReader::new(opened), Context::new(&SHA256));
    let (mut head, mut count, mut at, mut line) = (None::<(Revision, Bytes)>, 0u64, 0u64, Vec::new());
    loop {
        at += 1;
        line.clear();
        let mut limited = std::io::Read::take(&mut lines, LINE_MAX_BYTES as u64);
        let read = limited.read_until(b'\n', &mut line);
        read.map_err(|error| bad(at, &format!("the backup is damaged here: {error}")))?;
        if line.last() != Some(&b'\n') {
            return Err(bad(at, "the backup ends before its last line"));
        }
        let value = Value::parse(&line).map_err(|error| bad(at, &format!("not JSON: {error}")))?;
        let Some((revision, sealed)) = &head else {
            let first = || {
                let sealed = STANDARD.decode(value["keys"].text()).ok()?;
                (value["format"].text() == FORMAT).then_some((Revision(unsigned(&value["revision"])?), sealed.into()))
            };
            head = Some(first().ok_or_else(|| bad(at, "the file is no backup of gantry backup create"))?);
            digest.update(&line);
            continue;
        };
        if value.get("sha256").is_none() {
            digest.update(&line);
            count += 1;
            take(dumped(&value).ok_or_else(|| bad(at, "no key with its revisions and its value"))?)?;
            continue;
        }
        let sum = hex(digest.finish().as_ref());
        if value["sha256"].text() != sum || unsigned(&value["count"]) != Some(count) {
            return Err(bad(at, "the backup is not what was written: its digest does not fit"));
        }
        // To the end of the packing, too, whose own sum stands there.
        match std::io::Read::read(&mut lines, &mut [0u8; 1]) {
            Ok(0) => {}
            Ok(_) => return Err(bad(at, "something follows the last line")),
            Err(error) => return Err(bad(at, &format!("the backup is damaged behind its last line: {error}"))),
        }
        let leases = leases_of(&value["leases"]);
        return Ok(Verified { revision: *revision, sealed: sealed.clone(), leases, count, sum });
    }
}

pub fn verify(settings: &Settings) -> Result<(), Error> {
    let path = PathBuf::from(settings.argument());
    let found = read(&path, &mut |_| Ok(()))?;
    say!("{}: {} keys at revision {}, sha256 {}", path.display(), found.count, found.revision, found.sum);
    say!("sound");
    Ok(())
}

pub fn restore(settings: &Settings) -> Result<(), Error> {
    let path = PathBuf::from(settings.argument());
    // All of it is looked at before anything is written.
    let mut keys = Vec::new();
    let found = read(&path, &mut |key| {
        keys.push(key);
        Ok(())
    })?;
    can_be_read(&keys)?;
    let secret = Secret::read(settings)?.ok_or_else(|| {
        let why = "is needed; give the file cluster-secret of the cluster that the backup is of";
        settings.complain("cluster-secret-file", why)
    })?;
    let packed = secret.open(&found.sealed)?;
    let revision = Revision(found.revision.0 + LIFT);
    let place = match settings.text("backend") {
        Some("etcd") => {
            put_into_etcd(settings, revision, &found.leases, keys, &found.sealed)?;
            "etcd".to_owned()
        }
        _ => {
            let _folder = Folder::take(&settings.data(), "gantry backup restore")?;
            put_into_files(settings, revision, &found.leases, keys, &packed)?;
            settings.data().display().to_string()
        }
    };
    say!("{place}: {} keys as of revision {}; revisions go on after {revision}", found.count, found.revision);
    Ok(())
}

fn put_into_files(
    settings: &Settings,
    revision: Revision,
    leases: &[(LeaseId, u64)],
    keys: Vec<Dumped>,
    packed: &[u8],
) -> Result<(), Error> {
    store::restore(&store_of(settings), revision, leases, keys, new_id()?)?;
    backend::unpack(packed, &settings.data().join("keys"))
}

fn put_into_etcd(
    settings: &Settings,
    revision: Revision,
    leases: &[(LeaseId, u64)],
    keys: Vec<Dumped>,
    sealed: &Bytes,
) -> Result<(), Error> {
    runtime()?.block_on(async {
        let options = backend::etcd_options(settings)?;
        let told = |error: etcd::OpenError| Error::Machine(error.to_string());
        Etcd::import(&options, revision, leases, keys).await.map_err(told)?;
        let etcd = Etcd::open(&options).await.map_err(told)?;
        let put = etcd.txn(Txn::new().when(KEYS, Revision::ZERO).put(Put::new(KEYS, sealed.clone())));
        put.await.map(|_| ()).map_err(failed("put the cluster's keys into etcd"))
    })
}

/// Moves a cluster that nobody runs.
pub fn migrate(settings: &Settings) -> Result<(), Error> {
    let (from, to) = (settings.must::<String>("from"), settings.must::<String>("to"));
    if from == to {
        return Err(settings.complain("to", format!("is {to}, where the cluster is already")));
    }
    let _folder = Folder::take(&settings.data(), "gantry store migrate")?;
    let read = |place: &str| match place {
        "etcd" => Source::etcd(settings),
        _ => Ok(Source::Files(store::dump(&store_of(settings), None, false)?)),
    };
    let source = read(&from)?;
    if let Source::Etcd { runtime, etcd, at } = &source {
        let servers = runtime.block_on(etcd.count(Range::prefix("/servers/"), Some(*at)));
        let servers = servers.map_err(failed("look for running servers"))?;
        if servers > 0 {
            let why = "servers still run on this etcd, or did some seconds ago; stop them all, and try again";
            return Err(Error::Machine(why.to_owned()));
        }
    }
    let sealed = source.sealed_keys(settings)?;
    let mut keys = Vec::new();
    let leases = source.each(&mut |key| {
        keys.push(key);
        Ok(())
    })?;
    can_be_read(&keys)?;
    let (count, digest) = source.digest()?;
    if to == "etcd" {
        put_into_etcd(settings, source.revision(), &leases, keys, &sealed)?;
    } else {
        let missing = || settings.complain("cluster-secret-file", "is needed; give the secret of the cluster in etcd");
        let packed = Secret::read(settings)?.ok_or_else(missing)?.open(&sealed)?;
        put_into_files(settings, source.revision(), &leases, keys, &packed)?;
    }
    let target = read(&to)?;
    let (there, same) = target.digest()?;
    say!("{from}: {count} keys at revision {}, sha256 {digest}", source.revision());
    say!("{to}: {there} keys at revision {}, sha256 {same}", target.revision());
    if (there, &same) != (count, &digest) || target.revision() < source.revision() {
        return Err(Error::Machine(format!("what arrived in {to} is not what was in {from}; use {from} as before")));
    }
    say!("All arrived. From now on start servers with --backend {to} only; what is in {from} may be deleted.");
    Ok(())
}

#[cfg(test)]
mod tests;
