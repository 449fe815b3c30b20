//! The audit log: one JSON line for every request that was answered, written behind the answer.
//!
//! Requests append their lines to one buffer; a thread writes what has gathered. Waking it for every line would cost more
//! than the line.

use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base::Time;
use meta::value::write_str;

use crate::error::Error;
use crate::identity::User;
use crate::request::RequestInfo;

/// Bytes that wait for the disk; when it falls behind further, requests wait, so that none goes unrecorded.
const WAITING_MAX_BYTES: usize = 8 << 20;
/// How long lines are gathered before they are written.
const GATHER: Duration = Duration::from_millis(10);

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
}

pub struct Audit {
    log: Option<(Arc<Shared>, std::thread::JoinHandle<()>)>,
}

impl Audit {
    /// Appends to `path`; without one nothing is recorded.
    pub fn open(path: Option<&Path>) -> Result<Audit, Error> {
        use std::os::unix::fs::OpenOptionsExt;
        let Some(path) = path else { return Ok(Audit { log: None }) };
        let file = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(path)
            .map_err(|error| Error::File { what: "open", path: path.to_owned(), error })?;
        let shared = Arc::new(Shared::default());
        let own = shared.clone();
        let thread = std::thread::Builder::new()
            .name("audit".into())
            .spawn(move || write(&own, file))
            .map_err(|error| Error::File { what: "start the writer of", path: path.to_owned(), error })?;
        Ok(Audit { log: Some((shared, thread)) })
    }

    /// Records one answered request.
    pub fn record(&self, user: &User, info: &RequestInfo, uri: &str, code: u16, decision: &str, now: Time) {
        let Some((shared, _)) = &self.log else { return };
        let mut line = Vec::with_capacity(768);
        write_line(&mut line, user, info, uri, code, decision, now);
        let mut waiting = shared.lock();
        while waiting.lines.len() > WAITING_MAX_BYTES && !waiting.ended {
            waiting = shared.room.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
        let first = waiting.lines.is_empty();
        waiting.lines.extend_from_slice(&line);
        drop(waiting);
        if first {
            shared.filled.notify_one();
        }
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
fn write_line(line: &mut Vec<u8>, user: &User, info: &RequestInfo, uri: &str, code: u16, decision: &str, now: Time) {
    let member = |line: &mut Vec<u8>, name: &str, text: &str| {
        line.extend_from_slice(name.as_bytes());
        write_str(line, text);
    };
    line.extend_from_slice(b"{\"kind\":\"Event\",\"apiVersion\":\"audit.k8s.io/v1\",\"level\":\"Metadata\"");
    member(line, ",\"auditID\":", &crate::uid::new());
    member(line, ",\"stage\":\"ResponseComplete\",\"requestURI\":", uri);
    member(line, ",\"verb\":", info.verb);
    member(line, ",\"user\":{\"username\":", &user.name);
    for (at, group) in user.groups.iter().enumerate() {
        member(line, if at == 0 { ",\"groups\":[" } else { "," }, group);
    }
    line.extend_from_slice(if user.groups.is_empty() { b"}" } else { b"]}" });
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
    line.extend_from_slice(format!(",\"responseStatus\":{{\"code\":{code}}}").as_bytes());
    member(line, ",\"stageTimestamp\":", &now.rfc3339_micro());
    member(line, ",\"annotations\":{\"authorization.k8s.io/decision\":", decision);
    line.extend_from_slice(b"}}\n");
}

fn write(shared: &Shared, mut file: std::fs::File) {
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
        match file.write_all(&lines) {
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
        for code in [200, 404] {
            audit.record(
                &User::new("u", &["g"]),
                &info,
                "/a?b=\"c\"",
                code,
                "allow",
                Time::from_seconds(1_800_000_000),
            );
        }
        audit.record(&User::default(), &RequestInfo::default(), "/", 401, "forbid", Time::ZERO);
        drop(audit);
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<Value> = text.lines().map(|line| Value::parse(line.as_bytes()).unwrap()).collect();
        assert_eq!(lines.len(), 3);
        assert_eq!(lines[1].at(&["responseStatus", "code"]).as_int(), Some(404));
        assert_eq!(lines[1].at(&["objectRef", "namespace"]).text(), "n\"s");
        assert_eq!(lines[1]["requestURI"].text(), "/a?b=\"c\"");
        assert_eq!(lines[1].at(&["user", "groups"]).items().len(), 2);
    }
}
