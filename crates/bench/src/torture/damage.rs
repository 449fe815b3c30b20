//! Bytes of the store's files that are not what was written: an end that was being written when the power failed, and
//! flipped bits. How the files are made is told in the store's `FORMAT.md`.

use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use base::Rng;

use super::cluster::Torture;
use crate::error::Error;

const LOG_PREFIX: &str = "log-";
const LOG_HEAD_BYTES: usize = 64;
const RECORD: &[u8] = b"GRc1";
const RECORD_HEAD_BYTES: usize = 24;
/// Bytes of a batch of which only the first came to the disk.
const BATCH_BYTES: u32 = 4096;

/// A piece of the log, and where its records stand.
struct Log {
    path: PathBuf,
    bytes: Vec<u8>,
    records: Vec<Range<usize>>,
}

/// The newest piece of the log.
fn newest_log(store: &Path) -> Result<Log, Error> {
    let files = std::fs::read_dir(store).map_err(Error::while_doing("look at the store"))?.flatten();
    let logs = files.filter(|file| file.file_name().to_string_lossy().starts_with(LOG_PREFIX)).map(|file| file.path());
    let path = logs.max().ok_or_else(|| Error::doing("look at the store", "it has no log"))?;
    let bytes = std::fs::read(&path).map_err(Error::while_doing("read the log"))?;
    let (mut records, mut at) = (Vec::new(), LOG_HEAD_BYTES);
    while let Some(head) = bytes.get(at..at + RECORD_HEAD_BYTES).filter(|head| head.starts_with(RECORD)) {
        let length = head[4..8].try_into().map_or(0, u32::from_le_bytes);
        let end = at + RECORD_HEAD_BYTES + usize::try_from(length).unwrap_or(usize::MAX);
        records.push(at..end);
        at = end;
    }
    Ok(Log { path, bytes, records })
}

fn put(path: &Path, at: usize, bytes: &[u8]) -> Result<(), Error> {
    let file = std::fs::File::options().write(true).open(path).map_err(Error::while_doing("open the log"))?;
    file.write_all_at(bytes, at as u64).map_err(Error::while_doing("damage the log"))
}

impl Torture {
    /// The server dies while it writes a batch, of which a part is there when it begins again: nobody was told of it.
    pub async fn tear_log(&mut self, rng: &mut Rng) -> Result<(), Error> {
        self.end(false)?;
        let Log { path, bytes, records } = newest_log(&self.data.join("store"))?;
        let at = records.last().map_or(LOG_HEAD_BYTES, |record| record.end);
        let mut torn = [RECORD, &BATCH_BYTES.to_le_bytes()].concat();
        let written = 16 + rng.below(u64::from(BATCH_BYTES));
        torn.extend((0..written).map(|_| u8::try_from(1 + rng.below(255)).unwrap_or(1)));
        torn.truncate(bytes.len().saturating_sub(at));
        put(&path, at, &torn)?;
        self.start().await
    }

    /// A bit of the log flips while nobody runs: the server does not begin, says where, and changes nothing; with the bit as
    /// it was, all is well.
    pub async fn flip_bit(&mut self, rng: &mut Rng) -> Result<(), Error> {
        self.end(false)?;
        let Log { path, bytes, records } = newest_log(&self.data.join("store"))?;
        // The last record may be torn for all that anyone can tell.
        if let [first, .., last] = &records[..] {
            let at = first.start + usize::try_from(rng.below((last.start - first.start) as u64)).unwrap_or(0);
            put(&path, at, &[bytes[at] ^ (1 << rng.below(8))])?;
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let said = match self.start().await {
                Ok(()) => {
                    return Err(Error::doing(
                        "refuse a damaged store",
                        format!("byte {at} of {name} was taken for sound"),
                    ));
                }
                Err(error) => error.to_string(),
            };
            if !said.contains(&name) || said.contains("panicked") {
                return Err(Error::doing("say where a store is damaged", said));
            }
            put(&path, at, &bytes[at..=at])?;
        }
        self.start().await
    }
}

/// Flips a byte in a copy of each of the store's files: the check must refuse in one sentence, or find all that was there.
pub fn rot(binary: &Path, store: &Path, copies: &Path, rng: &mut Rng) -> Result<u32, Error> {
    let check = |data: &Path| Command::new(binary).args(["store", "check", "--data"]).arg(data).output();
    let (mut refused, wrong) = (0, Error::while_doing::<std::io::Error>("copy the store"));
    let files: Vec<PathBuf> = std::fs::read_dir(store).map_err(wrong)?.flatten().map(|entry| entry.path()).collect();
    for (number, file) in files.iter().enumerate() {
        let name = file.file_name().unwrap_or_default();
        let bytes = std::fs::read(file).map_err(Error::while_doing("read the store"))?;
        let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        if !name.to_string_lossy().ends_with(".gantry") || used < 1024 {
            continue;
        }
        let copy = copies.join(number.to_string()).join("store");
        std::fs::create_dir_all(&copy).map_err(Error::while_doing("copy the store"))?;
        for other in &files {
            let to = copy.join(other.file_name().unwrap_or_default());
            std::fs::copy(other, to).map_err(Error::while_doing("copy the store"))?;
        }
        let mut rotten = bytes;
        // The last record may be the torn end of the log for all that anyone can tell.
        let at = usize::try_from(rng.below(used as u64 / 2)).unwrap_or(0);
        rotten[at] ^= 1 << rng.below(8);
        std::fs::write(copy.join(name), rotten).map_err(Error::while_doing("flip a byte"))?;
        let data = copies.join(number.to_string());
        let output = check(&data).map_err(Error::while_doing("check a store"))?;
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        if output.status.success() {
            return Err(Error::doing("refuse a damaged store", format!("byte {at} of {name:?} was taken for sound")));
        }
        if said.is_empty() || said.contains("panicked") {
            return Err(Error::doing("refuse a damaged store in a sentence", said));
        }
        refused += 1;
    }
    Ok(refused)
}
