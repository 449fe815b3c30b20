//! Container output as log lines in the CRI's format: `<RFC3339Nano> <stdout|stderr> <P|F> <text>`.
//!
//! A line longer than [`LINE_MAX_BYTES`] is written in parts, all but the last marked `P`. The writer holds at most
//! one such part per stream. Rotation happens between lines; the live file is always the configured path.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::plan::LogPlan;

/// Longest piece of text in one log line.
pub(super) const LINE_MAX_BYTES: usize = 16 << 10;
/// What a line has besides its text: time, stream, tag, spaces and newline.
const HEAD_BYTES: u64 = 41;

pub(super) struct LogWriter {
    plan: LogPlan,
    file: File,
    written: u64,
    /// The unfinished line of stdout and of stderr.
    rest: [Vec<u8>; 2],
    out: Vec<u8>,
    failed: bool,
}

impl LogWriter {
    pub fn open(plan: &LogPlan) -> std::io::Result<LogWriter> {
        let (file, written) = open(&plan.path)?;
        let rest = [Vec::new(), Vec::new()];
        Ok(LogWriter { plan: plan.clone(), file, written, rest, out: Vec::new(), failed: false })
    }

    /// Someone moved the file away: begin a new one.
    pub fn reopen(&mut self) -> std::io::Result<()> {
        (self.file, self.written) = open(&self.plan.path)?;
        self.failed = false;
        Ok(())
    }

    /// Takes output of stream 0 (stdout) or 1 (stderr).
    pub fn write(&mut self, stream: usize, mut bytes: &[u8]) {
        while let Some(at) = bytes.iter().position(|b| *b == b'\n') {
            self.take(stream, &bytes[..at], true);
            bytes = &bytes[at + 1..];
        }
        self.take(stream, bytes, false);
        self.flush();
    }

    /// Writes what waits for the end of its line, as a partial line.
    pub fn finish(&mut self) {
        for stream in 0..2 {
            if !self.rest[stream].is_empty() {
                let rest = std::mem::take(&mut self.rest[stream]);
                self.line(stream, b'P', &rest);
            }
        }
        self.flush();
    }

    fn take(&mut self, stream: usize, mut bytes: &[u8], whole: bool) {
        loop {
            let room = LINE_MAX_BYTES - self.rest[stream].len();
            if bytes.len() < room || (whole && bytes.len() == room) {
                break;
            }
            let mut part = std::mem::take(&mut self.rest[stream]);
            part.extend_from_slice(&bytes[..room]);
            self.line(stream, b'P', &part);
            bytes = &bytes[room..];
        }
        if !whole {
            self.rest[stream].extend_from_slice(bytes);
        } else if self.rest[stream].is_empty() {
            self.line(stream, b'F', bytes);
        } else {
            let mut line = std::mem::take(&mut self.rest[stream]);
            line.extend_from_slice(bytes);
            self.line(stream, b'F', &line);
        }
    }

    fn line(&mut self, stream: usize, tag: u8, text: &[u8]) {
        let limit = self.plan.max_bytes;
        let before = self.written + self.out.len() as u64;
        if limit > 0 && before > 0 && before + HEAD_BYTES + text.len() as u64 > limit {
            self.flush();
            self.rotate();
        }
        let (seconds, nanoseconds) = now();
        stamp(&mut self.out, seconds, nanoseconds);
        self.out.extend_from_slice(if stream == 0 { b" stdout " } else { b" stderr " });
        self.out.push(tag);
        self.out.push(b' ');
        self.out.extend_from_slice(text);
        self.out.push(b'\n');
        if self.out.len() >= 4 * LINE_MAX_BYTES {
            self.flush();
        }
    }

    fn flush(&mut self) {
        if self.out.is_empty() {
            return;
        }
        // A full disk must not stop the container; the lines are lost and the next reopen tries again.
        self.failed = self.file.write_all(&self.out).is_err();
        self.written += self.out.len() as u64;
        self.out.clear();
        if self.out.capacity() > 8 * LINE_MAX_BYTES {
            self.out = Vec::new();
        }
    }

    fn rotate(&mut self) {
        let (seconds, nanoseconds) = now();
        let mut name = self.plan.path.clone().into_os_string();
        let mut suffix = Vec::new();
        stamp(&mut suffix, seconds, nanoseconds);
        let digits: String = suffix.iter().filter(|b| b.is_ascii_digit()).map(|b| char::from(*b)).collect();
        name.push(format!(".{}-{}", &digits[..8], &digits[8..]));
        if std::fs::rename(&self.plan.path, PathBuf::from(name)).is_ok() && self.reopen().is_ok() {
            self.drop_old();
        }
    }

    /// Keeps the newest rotated files.
    fn drop_old(&self) {
        let (Some(dir), Some(name)) = (self.plan.path.parent(), self.plan.path.file_name()) else { return };
        let prefix = format!("{}.", name.to_string_lossy());
        let Ok(entries) = std::fs::read_dir(dir) else { return };
        let mut old: Vec<PathBuf> = entries
            .flatten()
            .filter(|e| e.file_name().to_string_lossy().starts_with(&prefix))
            .map(|e| e.path())
            .collect();
        old.sort();
        let keep = self.plan.max_files as usize;
        for path in &old[..old.len().saturating_sub(keep)] {
            let _ = std::fs::remove_file(path);
        }
    }
}

fn open(path: &Path) -> std::io::Result<(File, u64)> {
    use std::os::unix::fs::OpenOptionsExt;
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    let file = File::options().create(true).append(true).mode(0o640).open(path)?;
    let length = file.metadata()?.len();
    Ok((file, length))
}

/// Seconds and nanoseconds since 1970.
pub(super) fn now() -> (i64, u32) {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    (now.tv_sec, now.tv_nsec as u32)
}

/// `2026-11-22T19:34:48.000000001Z`
fn stamp(out: &mut Vec<u8>, seconds: i64, nanoseconds: u32) {
    let text = base::Time::from_seconds(seconds).rfc3339();
    out.extend_from_slice(&text.as_bytes()[..text.len() - 1]);
    let _ = write!(out, ".{nanoseconds:09}Z");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(path: &Path) -> Vec<String> {
        let text = std::fs::read_to_string(path).unwrap();
        text.lines().map(|l| l.split_once(' ').unwrap().1.to_owned()).collect()
    }

    #[test]
    fn lines_are_whole_or_marked_partial() {
        let dir = tempfile::tempdir().unwrap();
        let plan = LogPlan { path: dir.path().join("pod/0.log"), max_bytes: 0, max_files: 2 };
        let mut log = LogWriter::open(&plan).unwrap();
        log.write(0, b"one\ntw");
        log.write(1, b"error\n");
        log.write(0, b"o\n\nthree");
        log.write(1, &[b'x'; 2 * LINE_MAX_BYTES + 3]);
        log.write(1, b"\n");
        log.finish();
        let lines = texts(&plan.path);
        let long = "x".repeat(LINE_MAX_BYTES);
        let expected = [
            "stdout F one",
            "stderr F error",
            "stdout F two",
            "stdout F ",
            &format!("stderr P {long}"),
            &format!("stderr P {long}"),
            "stderr F xxx",
            "stdout P three",
        ];
        assert_eq!(lines, expected);
        let first = std::fs::read_to_string(&plan.path).unwrap();
        assert!(base::Time::parse(first.split(' ').next().unwrap()).is_some(), "{first}");
    }

    #[test]
    fn a_line_of_exactly_the_limit_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let plan = LogPlan { path: dir.path().join("0.log"), max_bytes: 0, max_files: 2 };
        let mut log = LogWriter::open(&plan).unwrap();
        let mut line = vec![b'y'; LINE_MAX_BYTES];
        line.push(b'\n');
        log.write(0, &line);
        assert_eq!(texts(&plan.path), [format!("stdout F {}", "y".repeat(LINE_MAX_BYTES))]);
    }

    #[test]
    fn the_file_rotates_and_old_ones_go() {
        let dir = tempfile::tempdir().unwrap();
        let plan = LogPlan { path: dir.path().join("0.log"), max_bytes: 1_000, max_files: 2 };
        let mut log = LogWriter::open(&plan).unwrap();
        for n in 0..100 {
            log.write(0, format!("line {n} of a hundred that do not fit\n").as_bytes());
        }
        let files = std::fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(files, 3);
        assert!(std::fs::metadata(&plan.path).unwrap().len() <= 1_000);
        assert_eq!(texts(&plan.path).last().unwrap(), "stdout F line 99 of a hundred that do not fit");
    }
}
