//! What a container says at its end: the file of its `terminationMessagePath`, or the end of its log where the pod asks
//! for that and the container failed.
//!
//! Limits: [`FILE_MAX_BYTES`] of the file, [`LOG_MAX_BYTES`] and [`LOG_MAX_LINES`] of the log; the last ones count, as in
//! the kubelet (`kuberuntime_container.go`).

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use runtime::ContainerStatus;

/// The annotation of a container whose policy is `FallbackToLogsOnError`.
pub const FALLBACK: &str = "gantry.dev/termination-message-from-log";
pub const FILE_MAX_BYTES: u64 = 4096;
pub const LOG_MAX_BYTES: usize = 2048;
pub const LOG_MAX_LINES: usize = 80;
/// So much of a log is read for its last words: every line begins with its time and stream.
const LOG_READ_BYTES: u64 = 16 * 1024;

/// The message of a container that ended: the runtime's, then its own.
pub fn message(container: &ContainerStatus, file: &Path) -> String {
    let mut own = end_of(file, FILE_MAX_BYTES);
    let failed = container.exit_code != 0 || container.reason == "OOMKilled";
    if own.is_empty()
        && failed
        && container.annotations.contains_key(FALLBACK)
        && let Some(log) = &container.log_path
    {
        own = last_words(&end_of(log, LOG_READ_BYTES));
    }
    let own = String::from_utf8_lossy(&own);
    match (container.message.is_empty(), own.is_empty()) {
        (true, _) => own.into_owned(),
        (false, true) => container.message.clone(),
        (false, false) => format!("{}: {own}", container.message),
    }
}

/// The last bytes of a file; nothing of one that cannot be read.
fn end_of(path: &Path, max_bytes: u64) -> Vec<u8> {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(max_bytes)))?;
        let mut bytes = Vec::new();
        file.take(max_bytes).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    read().unwrap_or_default()
}

/// The last texts of a log's records (`TIME STREAM P|F TEXT`).
fn last_words(log: &[u8]) -> Vec<u8> {
    let mut lines: Vec<Vec<u8>> = vec![Vec::new()];
    for record in log.split(|byte| *byte == b'\n') {
        let mut parts = record.splitn(4, |byte| *byte == b' ');
        // The first record may be a part of one.
        let (Some(_), Some(_), Some(tag), Some(text)) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
            continue;
        };
        let whole = match tag {
            b"F" => true,
            b"P" => false,
            _ => continue,
        };
        if let Some(line) = lines.last_mut() {
            line.extend_from_slice(text);
            line.extend(whole.then_some(b'\n'));
        }
        if whole {
            lines.push(Vec::new());
        }
    }
    lines.retain(|line| !line.is_empty());
    let text = lines[lines.len().saturating_sub(LOG_MAX_LINES)..].concat();
    text[text.len().saturating_sub(LOG_MAX_BYTES)..].to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_log_is_put_together() {
        let log = b"ut F half\n2026-01-01T00:00:00Z stdout F one\n2026-01-01T00:00:00Z stderr P t\n\
            2026-01-01T00:00:00Z stderr F wo\n2026-01-01T00:00:00Z stdout P DONE\n";
        assert_eq!(String::from_utf8_lossy(&last_words(log)), "one\ntwo\nDONE");
        let many = "2026-01-01T00:00:00Z stdout F x\n".repeat(200);
        assert_eq!(last_words(many.as_bytes()).len(), 2 * LOG_MAX_LINES);
        let long = format!("2026-01-01T00:00:00Z stdout F {}y\n", "x".repeat(5_000));
        let found = last_words(long.as_bytes());
        assert_eq!((found.len(), found.ends_with(b"xy\n")), (LOG_MAX_BYTES, true));
    }
}
