//! The audit log: one JSON line for every request that was answered, written behind the answer.
//!
//! Requests append their lines to one buffer; a thread writes what has gathered. Waking it for every line would cost more
//! than the line. A file that is full goes on as `….1`, and so on; the oldest goes.

use std::cell::RefCell;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base::Time;
use http::HeaderValue;
use http::uri::PathAndQuery;
use meta::value::write_str;

use crate::error::Error;
use crate::identity::User;
use crate::request::RequestInfo;

/// Bytes that wait for the disk; when it falls behind further, requests wait, so that none goes unrecorded.
const WAITING_MAX_BYTES: usize = 8 << 20;
/// Bytes of one file of the log, and how many full ones are kept.
const FILE_MAX_BYTES: u64 = 100 << 20;
const FILES_KEPT: usize = 3;
/// How long lines are gathered before they are written.
const GATHER: Duration = Duration::from_millis(10);

/// Bytes of a line's draft that are kept for the next one.
const DRAFT_MAX_BYTES: usize = 64 << 10;

thread_local! {
    /// Where a line is written before it is appended: nobody waits for the others meanwhile.
    static DRAFT: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

#[derive(Default)]
struct Waiting {
    lines: Vec<u8>,
    ended: bool,
}

#[derive(Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    /// There is something to write, or the end has come.
    filled: Condvar,
    /// There is room again.
    room: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn append(&self, line: &[u8]) {
        let mut waiting = self.lock();
        while waiting.lines.len() > WAITING_MAX_BYTES && !waiting.ended {
            waiting = self.room.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
        let first = waiting.lines.is_empty();
        waiting.lines.extend_from_slice(line);
        drop(waiting);
        if first {
            self.filled.notify_one();
        }
    }
}

/// What a request says of itself.
pub struct Asked {
    pub received: Time,
    pub target: Option<PathAndQuery>,
    pub agent: Option<HeaderValue>,
    pub from: IpAddr,
}

/// What became of it.
pub struct Answered<'a> {
    /// In whose name it was made.
    pub user: &'a User,
    /// Who acted in that name.
    pub by: Option<&'a User>,
    pub info: &'a RequestInfo,
    pub code: u16,
    /// `allow` or `forbid`.
    pub decision: &'static str,
    pub at: Time,
}

pub struct Audit {
    log: Option<(Arc<Shared>, std::thread::JoinHandle<()>)>,
}

impl Audit {
    /// Appends to `path`; without one nothing is recorded.
    pub fn open(path: Option<&Path>) -> Result<Audit, Error> {
        let Some(path) = path else { return Ok(Audit { log: None }) };
        let log = Log::open(path, FILE_MAX_BYTES);
        let log = log.map_err(|error| Error::File { what: "open", path: path.to_owned(), error })?;
        let shared = Arc::new(Shared::default());
        let own = shared.clone();
        let thread = std::thread::Builder::new()
            .name("audit".into())
            .spawn(move || write(&own, log))
            .map_err(|error| Error::File { what: "start the writer of", path: path.to_owned(), error })?;
        Ok(Audit { log: Some((shared, thread)) })
    }

    /// Records one answered request.
    pub fn record(&self, asked: &Asked, answered: &Answered<'_>) {
        let Some((shared, _)) = &self.log else { return };
        DRAFT.with_borrow_mut(|line| {
            line.clear();
            write_line(line, asked, answered);
            shared.append(line);
            line.shrink_to(DRAFT_MAX_BYTES);
        });
    }
}

impl Drop for Audit {
    fn drop(&mut self) {
        if let Some((shared, thread)) = self.log.take() {
            shared.lock().ended = true;
            shared.filled.notify_one();
            // A writer that panicked has ended, too.
            let _ = thread.join();
        }
    }
}

/// An event of `audit.k8s.io/v1` at level `Metadata`, and a line feed.
fn write_line(line: &mut Vec<u8>, asked: &Asked, answered: &Answered<'_>) {
    let Answered { user, by, info, code, decision, at } = answered;
    line.extend_from_slice(b"{\"kind\":\"Event\",\"apiVersion\":\"audit.k8s.io/v1\",\"level\":\"Metadata\"");
    member(line, ",\"auditID\":", &crate::uid::new());
    // Of what lasts, the answer has only begun.
    member(line, ",\"stage\":", if info.lasts() { "ResponseStarted" } else { "ResponseComplete" });
    member(line, ",\"requestURI\":", asked.target.as_ref().map_or("/", |target| target.as_str()));
    member(line, ",\"verb\":", info.verb);
    write_user(line, b",\"user\":", by.unwrap_or(user));
    if by.is_some() {
        write_user(line, b",\"impersonatedUser\":", user);
    }
    // Writing into memory does not fail.
    let _ = write!(line, ",\"sourceIPs\":[\"{}\"]", asked.from);
    if let Some(agent) = asked.agent.as_ref().and_then(|agent| agent.to_str().ok()) {
        member(line, ",\"userAgent\":", agent);
    }
    if info.is_resource {
        member(line, ",\"objectRef\":{\"resource\":", &info.resource);
        let more = [
            (",\"namespace\":", &info.namespace),
            (",\"name\":", &info.name),
            (",\"apiGroup\":", &info.group),
            (",\"apiVersion\":", &info.version),
            (",\"subresource\":", &info.subresource),
        ];
        for (name, text) in more.into_iter().filter(|(_, text)| !text.is_empty()) {
            member(line, name, text);
        }
        line.push(b'}');
    }
    let _ = write!(line, ",\"responseStatus\":{{\"metadata\":{{}},\"code\":{code}}}");
    member(line, ",\"requestReceivedTimestamp\":", &asked.received.rfc3339_micro());
    member(line, ",\"stageTimestamp\":", &at.rfc3339_micro());
    member(line, ",\"annotations\":{\"authorization.k8s.io/decision\":", decision);
    line.extend_from_slice(b"}}\n");
}

/// The name of a member as it stands in JSON, with what comes before it, and its text.
fn member(line: &mut Vec<u8>, name: &str, text: &str) {
    line.extend_from_slice(name.as_bytes());
    write_str(line, text);
}

fn write_user(line: &mut Vec<u8>, name: &[u8], user: &User) {
    line.extend_from_slice(name);
    member(line, "{\"username\":", &user.name);
    if !user.uid.is_empty() {
        member(line, ",\"uid\":", &user.uid);
    }
    for (at, group) in user.groups.iter().enumerate() {
        member(line, if at == 0 { ",\"groups\":[" } else { "," }, group);
    }
    if !user.groups.is_empty() {
        line.push(b']');
    }
    for (at, (key, values)) in user.extra.iter().enumerate() {
        member(line, if at == 0 { ",\"extra\":{" } else { "," }, key);
        for (at, value) in values.iter().enumerate() {
            member(line, if at == 0 { ":[" } else { "," }, value);
        }
        line.extend_from_slice(if values.is_empty() { b":[]" } else { b"]" });
    }
    line.extend_from_slice(if user.extra.is_empty() { b"}" } else { b"}}" });
}

/// The files of the log.
struct Log {
    path: PathBuf,
    file: File,
    bytes: u64,
    max_bytes: u64,
}

impl Log {
    fn open(path: &Path, max_bytes: u64) -> io::Result<Log> {
        let file = Log::append_to(path)?;
        let bytes = file.metadata()?.len();
        Ok(Log { path: path.to_owned(), file, bytes, max_bytes })
    }

    fn append_to(path: &Path) -> io::Result<File> {
        OpenOptions::new().create(true).append(true).mode(0o600).open(path)
    }

    fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        if self.bytes >= self.max_bytes {
            self.turn()?;
        }
        self.bytes += lines.len() as u64;
        self.file.write_all(lines)
    }

    /// Begins a new file.
    fn turn(&mut self) -> io::Result<()> {
        let name = |number: usize| {
            let mut name = self.path.clone().into_os_string();
            name.push(format!(".{number}"));
            PathBuf::from(name)
        };
        for number in (1..FILES_KEPT).rev() {
            match std::fs::rename(name(number), name(number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        std::fs::rename(&self.path, name(1))?;
        (self.file, self.bytes) = (Log::append_to(&self.path)?, 0);
        Ok(())
    }
}

fn write(shared: &Shared, mut log: Log) {
    let (mut lines, mut failing) = (Vec::new(), false);
    loop {
        let mut waiting = shared.lock();
        while waiting.lines.is_empty() && !waiting.ended {
            waiting = shared.filled.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
        if !waiting.ended {
            drop(waiting);
            std::thread::sleep(GATHER);
            waiting = shared.lock();
        }
        std::mem::swap(&mut waiting.lines, &mut lines);
        let ended = waiting.ended;
        drop(waiting);
        shared.room.notify_all();
        match log.append(&lines) {
            Err(error) if !failing => {
                tracing::error!("the audit log cannot be written: {error}");
                failing = true;
            }
            Err(_) => {}
            Ok(()) => failing = false,
        }
        lines.clear();
        if ended {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use meta::Value;

    #[test]
    fn every_request_is_a_line_when_the_log_ends() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        let audit = Audit::open(Some(&path)).unwrap();
        let info = RequestInfo {
            verb: "get",
            is_resource: true,
            resource: "pods".into(),
            namespace: "n\"s".into(),
            ..RequestInfo::default()
        };
        let asked = Asked {
            received: Time::from_seconds(1_800_000_000),
            target: Some(PathAndQuery::from_static("/a?b=%22c%22")),
            agent: Some(HeaderValue::from_static("kubectl/\"v1\"")),
            from: IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1]),
        };
        let (mut user, by) = (User::new("u", &["g"]), User::new("root", &[]));
        user.extra = vec![("k".into(), vec!["1".into(), "2".into()]), ("none".into(), Vec::new())];
        let answered =
            Answered { user: &user, by: None, info: &info, code: 200, decision: "allow", at: Time::from_seconds(1) };
        audit.record(&asked, &answered);
        audit.record(&asked, &Answered { code: 404, by: Some(&by), ..answered });
        let watch = RequestInfo { verb: "watch", ..RequestInfo::default() };
        let nobody = User::default();
        let refused = Answered { user: &nobody, by: None, info: &watch, code: 401, decision: "forbid", at: Time::ZERO };
        audit.record(&asked, &refused);
        drop(audit);
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<Value> = text.lines().map(|line| Value::parse(line.as_bytes()).unwrap()).collect();
        assert_eq!(lines.len(), 3);
        assert_eq!(lines[1].at(&["responseStatus", "code"]).as_int(), Some(404));
        assert_eq!(lines[1].at(&["objectRef", "namespace"]).text(), "n\"s");
        assert_eq!(lines[1]["requestURI"].text(), "/a?b=%22c%22");
        assert_eq!(lines[0].at(&["user", "groups"]).items().len(), 2);
        assert_eq!(lines[0].at(&["user", "extra", "k"]).items().len(), 2);
        let named = [&["user", "username"], &["impersonatedUser", "username"]].map(|path| lines[1].at(path).text());
        assert_eq!(named, ["root", "u"]);
        assert_eq!(lines[1]["userAgent"].text(), "kubectl/\"v1\"");
        assert_eq!(lines[1]["sourceIPs"].items()[0].text(), "::1");
        assert_eq!(lines[1]["requestReceivedTimestamp"].text(), "2027-01-15T08:00:00.000000Z");
        assert_eq!([&lines[1], &lines[2]].map(|line| line["stage"].text()), ["ResponseComplete", "ResponseStarted"]);
    }

    #[test]
    fn a_full_file_makes_room_and_the_oldest_goes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        for number in 0..6 {
            // A log that is opened again goes on where it was.
            Log::open(&path, 2).unwrap().append(format!("{number}\n").as_bytes()).unwrap();
        }
        let text = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
        assert_eq!(["audit.log", "audit.log.1", "audit.log.3"].map(text), ["5\n", "4\n", "2\n"]);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1 + FILES_KEPT);
    }
}
