//! Container logs: the files that the runtime writes (`TIME STREAM P|F TEXT`), read back as text.
//!
//! Rotated files lie beside the live one as `NAME.TIME` and sort by their names. A follower stays on its open file
//! until that is read to the end, and only then goes on to the next, so rotation loses and repeats nothing.

use std::io::SeekFrom;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base::Time;
use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use meta::Status;
use runtime::{Runtime, State};
use rustix::fs::inotify;
use tokio::fs::File;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio::sync::mpsc;

use super::{Body, Pods, Query, bare};

const BUFFER_BYTES: usize = 64 << 10;
/// Pieces that wait for a slow client.
const PIECES_MAX: usize = 4;
/// An unfinished line longer than this is passed on in parts.
const LINE_MAX_BYTES: usize = 1 << 20;
/// The first part of a file that is looked at for its last lines; doubled until there are enough.
const TAIL_BYTES: u64 = 64 << 10;

/// What the client wants to see.
#[derive(Clone, Debug, Default, PartialEq)]
struct Wanted {
    follow: bool,
    previous: bool,
    timestamps: bool,
    tail: Option<u64>,
    since: Option<Time>,
    limit_bytes: Option<u64>,
    stdout: bool,
    stderr: bool,
}

impl Wanted {
    fn read(query: &Query, now: Time) -> Result<Wanted, Status> {
        let number = |name: &str, least: u64| match query.one(name) {
            None | Some("") => Ok(None),
            Some(text) => match text.parse::<u64>() {
                Ok(number) if number >= least => Ok(Some(number)),
                _ => Err(Status::bad_request(format!("{name}: {text:?} is not a number of at least {least}"))),
            },
        };
        let since_seconds = number("sinceSeconds", 1)?;
        let since_time = match query.one("sinceTime") {
            None | Some("") => None,
            Some(text) => {
                let time = Time::parse(text);
                Some(time.ok_or_else(|| Status::bad_request(format!("sinceTime: {text:?} is not a time")))?)
            }
        };
        let since_seconds = since_seconds.and_then(|seconds| i64::try_from(seconds).ok());
        let since =
            since_time.or(since_seconds.map(|seconds| Time(now.0.saturating_sub(seconds.saturating_mul(1_000_000)))));
        let stream = query.one("stream").unwrap_or("All");
        Ok(Wanted {
            follow: query.flag(&["follow"]),
            previous: query.flag(&["previous"]),
            timestamps: query.flag(&["timestamps"]),
            tail: number("tailLines", 0)?,
            since,
            limit_bytes: number("limitBytes", 1)?,
            stdout: stream != "Stderr",
            stderr: stream != "Stdout",
        })
    }
}

pub(super) async fn answer(
    pods: &dyn Pods,
    query: &Query,
    namespace: &str,
    pod: &str,
    container: &str,
) -> Result<Response<Body>, Status> {
    let (seconds, nanoseconds) = {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
        (now.tv_sec, now.tv_nsec)
    };
    let wanted = Wanted::read(query, Time(seconds.saturating_mul(1_000_000) + nanoseconds / 1000))?;
    let target = pods.container(namespace, pod, container)?;
    let path = if wanted.previous {
        target.previous_log_path.ok_or_else(|| {
            Status::bad_request(format!("previous terminated container {container:?} in pod {pod:?} not found"))
        })?
    } else {
        target.log_path
    };
    let (out, pieces) = mpsc::channel(PIECES_MAX);
    let reader = Reader {
        text: Text::new(&wanted),
        follows: (wanted.follow && !wanted.previous).then(|| (pods.runtime(), target.id)),
        wanted,
        path,
        out,
    };
    tokio::spawn(reader.run());
    let stream = futures_util::stream::unfold(pieces, |mut pieces: mpsc::Receiver<Bytes>| async move {
        let piece = pieces.recv().await?;
        Some((Ok(Frame::data(piece)), pieces))
    });
    let mut response = bare(StatusCode::OK);
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("text/plain"));
    *response.body_mut() = StreamBody::new(stream).boxed_unsync();
    Ok(response)
}

/// Turns log lines into what the client sees.
struct Text {
    timestamps: bool,
    since: Option<Time>,
    shown: [bool; 2],
    /// Whole lines that are left out first.
    skip: u64,
    left: u64,
    /// The unfinished line of each stream.
    partial: [Vec<u8>; 2],
    out: Vec<u8>,
}

impl Text {
    fn new(wanted: &Wanted) -> Text {
        Text {
            timestamps: wanted.timestamps,
            since: wanted.since,
            shown: [wanted.stdout, wanted.stderr],
            skip: 0,
            left: wanted.limit_bytes.unwrap_or(u64::MAX),
            partial: [Vec::new(), Vec::new()],
            out: Vec::new(),
        }
    }

    /// Takes one line of a file, without its newline. What has not the form of a log line is left out.
    fn line(&mut self, line: &[u8]) {
        let Some((time, stream, whole, text)) = split(line) else { return };
        if self.skip > 0 {
            self.skip -= u64::from(whole);
            return;
        }
        if !self.shown[stream] {
            return;
        }
        if let Some(since) = self.since {
            let at = std::str::from_utf8(time).ok().and_then(Time::parse);
            if at.is_none_or(|at| at < since) {
                return;
            }
            // Times only grow.
            self.since = None;
        }
        let partial = &mut self.partial[stream];
        if self.timestamps && partial.is_empty() {
            partial.extend_from_slice(time);
            partial.push(b' ');
        }
        partial.extend_from_slice(text);
        if whole {
            partial.push(b'\n');
        }
        if whole || partial.len() > LINE_MAX_BYTES {
            self.flush(stream);
        }
    }

    fn flush(&mut self, stream: usize) {
        let room = usize::try_from(self.left).unwrap_or(usize::MAX);
        let partial = &mut self.partial[stream];
        let taken = partial.len().min(room);
        self.out.extend_from_slice(&partial[..taken]);
        self.left -= taken as u64;
        partial.clear();
    }

    /// No more lines will come: what is unfinished is shown as it is.
    fn finish(&mut self) {
        self.flush(0);
        self.flush(1);
    }

    fn full(&self) -> bool {
        self.left == 0
    }
}

/// Time, stream (0 stdout, 1 stderr), whether the line ends here, text.
fn split(line: &[u8]) -> Option<(&[u8], usize, bool, &[u8])> {
    let mut parts = line.splitn(4, |byte| *byte == b' ');
    let time = parts.next()?;
    let stream = match parts.next()? {
        b"stdout" => 0,
        b"stderr" => 1,
        _ => return None,
    };
    // Further tags may follow the first, after a colon.
    let whole = match parts.next()?.first()? {
        b'F' => true,
        b'P' => false,
        _ => return None,
    };
    Some((time, stream, whole, parts.next().unwrap_or_default()))
}

/// Looks at a log's folder again when the files moved meanwhile.
const LOOKS_MAX: u32 = 100;

/// The files of one log with their inodes, oldest first, the live one last: as they were at one moment. While a file is
/// moved away and the next is not there yet, what is there is told.
fn files(live: &Path) -> Vec<(PathBuf, u64)> {
    let (Some(dir), Some(name)) = (live.parent(), live.file_name()) else { return Vec::new() };
    let prefix = format!("{}.", name.to_string_lossy());
    let inode = |path: &Path| std::fs::metadata(path).ok().map(|found| found.ino());
    let mut all: Vec<(PathBuf, u64)> = Vec::new();
    for _ in 0..LOOKS_MAX {
        let before = inode(live);
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        let rotated = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix));
        all = rotated.filter_map(|entry| Some((entry.path(), inode(&entry.path())?))).collect();
        all.sort();
        all.extend(before.map(|inode| (live.to_owned(), inode)));
        if before.is_some() && inode(live) == before {
            break;
        }
    }
    all
}

/// The file after the one with inode `own`, opened; `None` when that is the last. When it is gone, the oldest one.
async fn next(live: &Path, own: u64) -> std::io::Result<Option<Open>> {
    for _ in 0..LOOKS_MAX {
        let all = files(live);
        let at = all.iter().position(|(_, inode)| *inode == own).map_or(0, |own| own + 1);
        let Some((path, inode)) = all.get(at) else { return Ok(None) };
        match Open::at(path).await {
            Ok(open) if open.inode == *inode => return Ok(Some(open)),
            // It was moved between the look and the opening.
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Err(std::io::Error::other("the files move too fast"))
}

struct Reader {
    wanted: Wanted,
    path: PathBuf,
    /// The container whose end ends the log.
    follows: Option<(Arc<dyn Runtime>, String)>,
    text: Text,
    out: mpsc::Sender<Bytes>,
}

/// An open file, and what was read of its last line.
struct Open {
    file: File,
    inode: u64,
    rest: Vec<u8>,
    /// The first line is cut: reading began in its middle.
    cut: bool,
}

impl Open {
    async fn at(path: &Path) -> std::io::Result<Open> {
        let file = File::open(path).await?;
        let inode = file.metadata().await?.ino();
        Ok(Open { file, inode, rest: Vec::new(), cut: false })
    }

    /// Goes on reading at `offset`.
    async fn seek(&mut self, offset: u64) -> std::io::Result<()> {
        // One byte before, so that a line that begins at the offset is not taken for a cut one.
        self.file.seek(SeekFrom::Start(offset.saturating_sub(1))).await?;
        self.rest.clear();
        self.cut = offset > 0;
        Ok(())
    }

    /// Passes the lines that are there; ends at the end of the file.
    async fn lines(&mut self, mut each: impl FnMut(&[u8])) -> std::io::Result<bool> {
        let had = self.rest.len();
        self.rest.resize(had + BUFFER_BYTES, 0);
        let read = self.file.read(&mut self.rest[had..]).await?;
        self.rest.truncate(had + read);
        let mut start = 0;
        while let Some(end) = self.rest[start..].iter().position(|byte| *byte == b'\n') {
            if !std::mem::take(&mut self.cut) {
                each(&self.rest[start..start + end]);
            }
            start += end + 1;
        }
        self.rest.drain(..start);
        if self.rest.len() > LINE_MAX_BYTES {
            // Nothing that writes logs writes such a line.
            self.rest.clear();
            self.cut = true;
        }
        Ok(read > 0)
    }
}

impl Reader {
    async fn run(mut self) {
        if let Err(error) = self.read().await {
            tracing::debug!("{}: the log cannot be read: {error}", self.path.display());
        }
        self.text.finish();
        let _ = self.send().await;
    }

    /// Passes on what waits; false when the client is gone or has enough.
    async fn send(&mut self) -> bool {
        if !self.text.out.is_empty() {
            let piece = Bytes::from(std::mem::take(&mut self.text.out));
            if self.out.send(piece).await.is_err() {
                return false;
            }
        }
        !self.text.full()
    }

    /// Reads an open file to its present end.
    async fn drain(&mut self, open: &mut Open) -> std::io::Result<bool> {
        loop {
            let more = open.lines(|line| self.text.line(line)).await?;
            if !self.send().await {
                return Ok(false);
            }
            if !more {
                return Ok(true);
            }
        }
    }

    async fn read(&mut self) -> std::io::Result<()> {
        // Watched before the first look, so that nothing falls between.
        let mut changes = match self.follows {
            Some(_) => Changes::of(&self.path).ok(),
            None => None,
        };
        let mut open = loop {
            let version = self.running().await;
            if let Some(open) = self.start().await? {
                break open;
            }
            // A container that was made but not yet started has no log.
            let (Some(version), Some((runtime, _))) = (version, &self.follows) else { return Ok(()) };
            tokio::select! {
                () = wait(changes.as_mut()) => {}
                _ = runtime.changed(version) => {}
                () = self.out.closed() => return Ok(()),
            }
        };
        loop {
            // Asked before the last read: what a container wrote until its end is then in the file.
            let version = self.running().await;
            if !self.drain(&mut open).await? {
                return Ok(());
            }
            if let Some(next) = next(&self.path, open.inode).await? {
                // Now that it was moved away, nothing more is written to it.
                if !self.drain(&mut open).await? {
                    return Ok(());
                }
                open = next;
                continue;
            }
            let (Some(version), Some((runtime, _))) = (version, &self.follows) else { return Ok(()) };
            tokio::select! {
                () = wait(changes.as_mut()) => {}
                _ = runtime.changed(version) => {}
                () = self.out.closed() => return Ok(()),
            }
        }
    }

    /// The runtime's version while the followed container runs; `None` when there is nothing to wait for.
    async fn running(&self) -> Option<u64> {
        let (runtime, id) = self.follows.as_ref()?;
        let version = runtime.changed(0).await.version;
        let status = runtime.container(id).await.ok()?;
        matches!(status.state, State::Created | State::Running).then_some(version)
    }

    /// The open file where the wanted lines begin; lines before them in that file are to be skipped. `None` when there
    /// is no file.
    async fn start(&mut self) -> std::io::Result<Option<Open>> {
        let Some(tail) = self.wanted.tail else { return next(&self.path, 0).await };
        'looks: for _ in 0..LOOKS_MAX {
            let mut wanted = tail;
            let mut oldest = None;
            for (path, inode) in files(&self.path).into_iter().rev() {
                let mut open = match Open::at(&path).await {
                    Ok(open) if open.inode == inode => open,
                    _ => continue 'looks,
                };
                let length = open.file.metadata().await?.len();
                if wanted == 0 {
                    open.seek(length).await?;
                    // What follows begins with a line of its own, unless one is just being written.
                    return Ok(Some(open));
                }
                let mut region = TAIL_BYTES.max(wanted.saturating_mul(128));
                loop {
                    let offset = length.saturating_sub(region);
                    let count = count(&mut open, offset).await?;
                    open.seek(offset).await?;
                    if count >= wanted {
                        self.text.skip = count - wanted;
                        return Ok(Some(open));
                    }
                    if offset == 0 {
                        wanted -= count;
                        break;
                    }
                    region = region.saturating_mul(4);
                }
                oldest = Some(open);
            }
            return Ok(oldest);
        }
        Err(std::io::Error::other("the files move too fast"))
    }
}

/// How many lines end between the offset and the end of a file.
async fn count(open: &mut Open, offset: u64) -> std::io::Result<u64> {
    open.seek(offset).await?;
    let mut count = 0;
    while open.lines(|line| count += u64::from(split(line).is_some_and(|(_, _, whole, _)| whole))).await? {}
    Ok(count)
}

/// Wakes when something in a log's folder changes.
struct Changes(AsyncFd<OwnedFd>);

impl Changes {
    fn of(log: &Path) -> std::io::Result<Changes> {
        let fd = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC)?;
        let dir = log.parent().unwrap_or(Path::new("/"));
        let what = inotify::WatchFlags::MODIFY | inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVE;
        inotify::add_watch(&fd, dir, what)?;
        // SAFETY: the descriptor is owned, always gives the same number, and is closed only when the `AsyncFd` that
        // owns it has deregistered it.
        Ok(Changes(unsafe { AsyncFd::register(fd) }?))
    }
}

/// Waits for the next change; without a watch, only the container's own changes wake.
async fn wait(changes: Option<&mut Changes>) {
    let Some(changes) = changes else { return std::future::pending().await };
    let Ok(mut ready) = changes.0.readable_mut().await else { return std::future::pending().await };
    let mut events = [0u8; 4096];
    while rustix::io::read(ready.get_inner(), &mut events).is_ok_and(|length| length > 0) {}
    ready.clear_ready();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(query: &str) -> Wanted {
        Wanted::read(&Query::parse(query), Time::from_seconds(1_800_000_100)).unwrap()
    }

    async fn shown(path: &Path, query: &str) -> String {
        let wanted = wanted(query);
        let (out, mut pieces) = mpsc::channel(PIECES_MAX);
        let reader = Reader { text: Text::new(&wanted), follows: None, wanted, path: path.to_owned(), out };
        let reading = tokio::spawn(reader.run());
        let mut all = Vec::new();
        while let Some(piece) = pieces.recv().await {
            all.extend_from_slice(&piece);
        }
        reading.await.unwrap();
        String::from_utf8(all).unwrap()
    }

    fn line(second: i64, rest: &str) -> String {
        let time = Time::from_seconds(1_800_000_000 + second).rfc3339();
        format!("{}.000000001Z {rest}\n", &time[..time.len() - 1])
    }

    /// Two files: a rotated one with lines 0 to 2, the live one with lines 3 to 5.
    fn log() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let old = [line(0, "stdout F zero"), line(1, "stderr F one"), line(2, "stdout P tw")].concat();
        std::fs::write(dir.path().join("0.log.20270115-080000000000001"), old).unwrap();
        let live = [
            line(3, "stdout F o"),
            line(3, "stderr F "),
            "not a log line\n".to_owned(),
            line(50, "stdout F four four"),
            line(60, "stdout P end"),
        ];
        std::fs::write(&path, live.concat()).unwrap();
        (dir, path)
    }

    #[tokio::test]
    async fn files_and_parts_are_joined() {
        let (_dir, path) = log();
        assert_eq!(shown(&path, "").await, "zero\none\ntwo\n\nfour four\nend");
        assert_eq!(shown(&path, "stream=Stderr").await, "one\n\n");
        assert_eq!(shown(&path, "limitBytes=7").await, "zero\non");
        assert_eq!(shown(&path, "sinceSeconds=60").await, "four four\nend");
        assert_eq!(shown(&path, "sinceTime=2027-01-15T08:00:55Z").await, "end");
        let times = shown(&path, "timestamps=true&stream=Stdout").await;
        assert!(times.contains("\n2027-01-15T08:00:02.000000001Z two\n"), "{times}");
    }

    #[tokio::test]
    async fn tails_count_lines_over_files() {
        let (_dir, path) = log();
        assert_eq!(shown(&path, "tailLines=0").await, "");
        assert_eq!(shown(&path, "tailLines=1").await, "four four\nend");
        assert_eq!(shown(&path, "tailLines=3").await, "o\n\nfour four\nend");
        assert_eq!(shown(&path, "tailLines=4").await, "one\ntwo\n\nfour four\nend");
        assert_eq!(shown(&path, "tailLines=900").await, "zero\none\ntwo\n\nfour four\nend");
    }

    #[tokio::test]
    async fn tails_of_long_files_are_exact() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let lines: Vec<String> = (0..9000).map(|n| line(1, &format!("stdout F {n} {}", "x".repeat(n % 97)))).collect();
        std::fs::write(&path, lines.concat()).unwrap();
        for tail in [1, 2, 500, 3000, 8999, 9000, 9001] {
            let all = shown(&path, &format!("tailLines={tail}")).await;
            assert_eq!(all.lines().count(), tail.min(9000));
            assert!(all.starts_with(&format!("{} ", 9000 - tail.min(9000))), "tail {tail}");
        }
    }

    #[test]
    fn bad_questions_are_refused() {
        for query in ["tailLines=-1", "tailLines=x", "sinceSeconds=0", "sinceTime=yesterday", "limitBytes=0"] {
            assert!(Wanted::read(&Query::parse(query), Time::ZERO).is_err(), "{query}");
        }
        for line in ["", "x", "t stdout", "t stdout ", "t stdin F x", "t stdout X y"] {
            assert_eq!(split(line.as_bytes()), None, "{line}");
        }
        assert!(split(b"t stdout F").is_some());
    }
}
