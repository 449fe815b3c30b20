//! `gantry store check|dump|restore`: a store's files, while nobody serves from them.
//!
//! A dump is text, one JSON value a line: first what it is of, then the keys. Values that are text stand as text, others
//! (encrypted Secrets) as base64, so that nothing is lost and people can read it. Packed objects stand unpacked, which all
//! versions read.

use std::io::{BufRead, Write};
use std::os::unix::fs::OpenOptionsExt;

use base::Revision;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use meta::{Value, json};
use server::pack;
use store::{self as tools, Dump, Dumped};
use store::{Format, LeaseId};

use crate::error::Error;
use crate::flags::Settings;

/// What the first line of a dump says it is.
const FORMAT: &str = "gantry-store-dump/1";
/// The longest line that is read: the largest object, as base64, with its names.
const LINE_MAX_BYTES: usize = 64 << 20;

pub fn check(settings: &Settings) -> Result<(), Error> {
    let dir = settings.data().join("store");
    let report = tools::check(&dir)?;
    say!("{}: revision {}, {} keys, {} leases", dir.display(), report.revision, report.keys, report.leases);
    say!(
        "snapshot {}, {} log files, {} records behind it",
        report.snapshot.as_deref().unwrap_or("none"),
        report.segments,
        report.records
    );
    if let Some(torn) = &report.torn {
        say!(
            "{} ends in an unfinished batch at byte {} ({} bytes), which was answered to nobody; the next start cuts it \
             off",
            torn.file,
            torn.offset,
            torn.bytes
        );
    }
    let [first, more @ ..] = report.damages.as_slice() else {
        say!("sound");
        return Ok(());
    };
    for damage in more {
        say!("{} is damaged at byte {}: {}", damage.file, damage.offset, damage.what);
    }
    Err(Error::Store(store::OpenError::Damaged(first.clone())))
}

pub fn dump(settings: &Settings) -> Result<(), Error> {
    let dir = settings.data().join("store");
    let revision = settings.read::<u64>("revision").map(Revision);
    let dump = tools::dump(&dir, revision, settings.flag("salvage"))?;
    for damage in &dump.damages {
        eprintln!("left out: {} from byte {}: {}; {}", damage.file, damage.offset, damage.what, damage.saved);
    }
    let failed = |error: std::io::Error| Error::doing("write the dump", error);
    match settings.path("output") {
        None => {
            crate::printed(write(&dump, &mut std::io::stdout().lock()));
            Ok(())
        }
        Some(path) => {
            let made = std::fs::File::options().write(true).create_new(true).mode(0o600).open(&path);
            let mut file = std::io::BufWriter::new(made.map_err(Error::file("create", &path))?);
            write(&dump, &mut file).map_err(failed)?;
            let file = file.into_inner().map_err(|error| failed(error.into_error()))?;
            file.sync_all().map_err(failed)
        }
    }
}

pub fn number(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn write(dump: &Dump, out: &mut dyn Write) -> std::io::Result<()> {
    let leases = list_of(&dump.leases);
    let head = json!({"format": FORMAT, "revision": (number(dump.revision.0)), "leases": leases});
    out.write_all(&head.to_json())?;
    out.write_all(b"\n")?;
    for mut key in dump.iter() {
        if let Ok(plain) = pack::unpack(&key.value, pack::NEWEST) {
            key.value = plain;
        }
        out.write_all(&line_of(&key).to_json())?;
        out.write_all(b"\n")?;
    }
    out.flush()
}

/// Whether this program can read a state before it is put somewhere.
///
/// # Errors
/// A sentence that names its data version.
pub fn can_be_read(keys: &[Dumped]) -> Result<(), Error> {
    let format = keys.iter().find(|key| key.key == Format::KEY).map_or(Format::FIRST, |key| Format::parse(&key.value));
    if format <= pack::NEWEST {
        return Ok(());
    }
    Err(server::Error::Format { found: format, knows: pack::NEWEST }.into())
}

/// Leases as a list; [`leases_of`] reads it.
pub fn list_of(leases: &[(LeaseId, u64)]) -> Vec<Value> {
    leases.iter().map(|(id, ttl_ms)| json!({"id": (number(id.0)), "ttlMs": (number(*ttl_ms))})).collect()
}

/// A key as a line; [`dumped`] reads it.
pub fn line_of(key: &Dumped) -> Value {
    let mut line = json!({
        "created": (number(key.create_revision.0)), "modified": (number(key.mod_revision.0)),
    });
    put_bytes(&mut line, "key", &key.key);
    put_bytes(&mut line, "value", &key.value);
    if let Some(lease) = key.lease {
        line.set(&["lease"], number(lease.0));
    }
    line
}

fn put_bytes(line: &mut Value, name: &str, bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(text) => line.set(&[name], text),
        Err(_) => line.set(&[&format!("{name}Base64")], STANDARD.encode(bytes)),
    }
}

fn take_bytes(line: &Value, name: &str) -> Option<Bytes> {
    match line.get(name).and_then(Value::as_str) {
        Some(text) => Some(Bytes::copy_from_slice(text.as_bytes())),
        None => Some(STANDARD.decode(line.get(&format!("{name}Base64"))?.as_str()?).ok()?.into()),
    }
}

pub fn restore(settings: &Settings) -> Result<(), Error> {
    let path = std::path::PathBuf::from(settings.argument());
    let file = std::fs::File::open(&path).map_err(Error::file("open the dump", &path))?;
    let mut keys = Vec::new();
    let mut head = None;
    for (at, line) in std::io::BufReader::new(file).split(b'\n').enumerate() {
        let bad =
            |why: &str| Error::Value { place: format!("{}, line {}", path.display(), at + 1), why: why.to_owned() };
        let line = line.map_err(Error::file("read the dump", &path))?;
        if line.len() > LINE_MAX_BYTES {
            return Err(bad("the line is too long for a key"));
        }
        if line.is_empty() {
            continue;
        }
        let value = Value::parse(&line).map_err(|error| bad(&format!("not JSON: {error}")))?;
        match &head {
            None if value["format"].text() == FORMAT => head = Some(value),
            None => return Err(bad("the file is no dump of gantry store dump")),
            Some(_) => keys.push(dumped(&value).ok_or_else(|| bad("no key with its revisions and its value"))?),
        }
    }
    let wrong = |why: &str| Error::Value { place: path.display().to_string(), why: why.to_owned() };
    let head = head.ok_or_else(|| wrong("the file is empty"))?;
    let revision = unsigned(&head["revision"]).map(Revision).ok_or_else(|| wrong("the dump has no revision"))?;
    let leases = leases_of(&head["leases"]);
    let dir = settings.data().join("store");
    let count = keys.len();
    can_be_read(&keys)?;
    tools::restore(&dir, revision, &leases, keys, new_id()?)?;
    say!("{}: {count} keys at revision {revision}", dir.display());
    Ok(())
}

pub fn leases_of(list: &Value) -> Vec<(LeaseId, u64)> {
    let read = |lease: &Value| Some((LeaseId(unsigned(&lease["id"])?), unsigned(&lease["ttlMs"])?));
    list.items().iter().filter_map(read).collect()
}

/// A number that keeps the files of stores apart.
pub fn new_id() -> Result<u64, Error> {
    let mut id = [0u8; 8];
    rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty())
        .map_err(|error| Error::doing("give the store an id", error))?;
    Ok(u64::from_le_bytes(id))
}

pub fn unsigned(value: &Value) -> Option<u64> {
    value.as_int().and_then(|number| u64::try_from(number).ok())
}

/// Reads what [`line_of`] made.
pub fn dumped(line: &Value) -> Option<Dumped> {
    Some(Dumped {
        key: take_bytes(line, "key")?,
        value: take_bytes(line, "value")?,
        create_revision: Revision(unsigned(&line["created"])?),
        mod_revision: Revision(unsigned(&line["modified"])?),
        lease: unsigned(&line["lease"]).map(LeaseId),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dump_is_what_restore_reads() {
        let dir = tempfile::tempdir().unwrap();
        let keys = vec![
            Dumped {
                key: Bytes::from_static(b"/registry/pods/a"),
                value: Bytes::from_static(b"{\"a\":\"\xc3\xbc\"}"),
                create_revision: Revision(3),
                mod_revision: Revision(7),
                lease: Some(LeaseId(2)),
            },
            Dumped {
                key: Bytes::from_static(b"/registry/secrets/s"),
                value: Bytes::from_static(b"\x00\xff\x01"),
                create_revision: Revision(4),
                mod_revision: Revision(4),
                lease: None,
            },
        ];
        let (first, second) = (dir.path().join("first"), dir.path().join("second"));
        tools::restore(&first.join("store"), Revision(9), &[(LeaseId(2), 5000)], keys.clone(), 1).unwrap();
        let text = dir.path().join("dump");
        dump(&Settings::of(
            "store dump",
            &[("data", first.display().to_string()), ("output", text.display().to_string())],
        ))
        .unwrap();
        let words = ["gantry", "store", "restore", text.to_str().unwrap(), "--data", second.to_str().unwrap()];
        let settings = crate::flags::read(words.map(std::ffi::OsString::from), &|_| None).unwrap();
        restore(&settings).unwrap();
        let again = tools::dump(&second.join("store"), None, false).unwrap();
        assert_eq!(again.iter().collect::<Vec<_>>(), keys);
        assert_eq!((again.revision, again.leases), (Revision(9), vec![(LeaseId(2), 5000)]));
        assert!(restore(&settings).unwrap_err().to_string().contains("already holds a store"));
        std::fs::write(&text, "{}\n").unwrap();
        assert!(
            restore(&settings).unwrap_err().to_string().ends_with("line 1: the file is no dump of gantry store dump")
        );
    }

    #[test]
    fn a_dump_shows_packed_objects_and_newer_data_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let plain = format!("{{\"data\":\"{}\"}}", "0123456789".repeat(4_000));
        let key = |key: &'static str, value: Bytes| Dumped {
            key: Bytes::from_static(key.as_bytes()),
            value,
            create_revision: Revision(3),
            mod_revision: Revision(7),
            lease: None,
        };
        let format = |format: Format| key("/cluster/format", format.text());
        let keys = |first: Dumped| vec![first, key("/registry/configmaps/a", pack::pack(plain.as_bytes()).unwrap())];
        let store = dir.path().join("store");
        tools::restore(&store, Revision(9), &[], keys(format(pack::NEWEST)), 1).unwrap();
        let mut text = Vec::new();
        write(&tools::dump(&store, None, false).unwrap(), &mut text).unwrap();
        let lines: Vec<Value> = text.split(|byte| *byte == b'\n').filter_map(|line| Value::parse(line).ok()).collect();
        assert_eq!((lines.len(), lines[2]["value"].text()), (3, plain.as_str()));
        can_be_read(&keys(format(pack::NEWEST))).unwrap();
        let refused = can_be_read(&keys(format(Format(9)))).unwrap_err().to_string();
        assert!(refused.contains("has version 9, and this gantry reads up to 2"), "{refused}");
    }
}
