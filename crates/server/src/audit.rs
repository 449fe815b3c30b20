//! The audit log: one JSON line for every request that was answered, written behind the answer.

use std::io::Write;
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use base::Time;
use meta::json;

use crate::error::Error;
use crate::identity::User;
use crate::request::RequestInfo;

/// Lines that wait for the disk; when it falls behind further, requests wait, so that none goes unrecorded.
const QUEUE_MAX: usize = 16_384;

pub struct Audit {
    lines: Option<SyncSender<Vec<u8>>>,
}

impl Audit {
    /// Appends to `path`; without one nothing is recorded.
    pub fn open(path: Option<&Path>) -> Result<Audit, Error> {
        use std::os::unix::fs::OpenOptionsExt;
        let Some(path) = path else { return Ok(Audit { lines: None }) };
        let file = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(path)
            .map_err(|error| Error::File { what: "open", path: path.to_owned(), error })?;
        let (sender, receiver) = sync_channel(QUEUE_MAX);
        std::thread::Builder::new()
            .name("audit".into())
            .spawn(move || write(receiver, file))
            .map_err(|error| Error::File { what: "start the writer of", path: path.to_owned(), error })?;
        Ok(Audit { lines: Some(sender) })
    }

    /// Records one answered request.
    pub fn record(&self, user: &User, info: &RequestInfo, uri: &str, code: u16, decision: &str, now: Time) {
        let Some(lines) = &self.lines else { return };
        let mut line = json!({
            "kind": "Event", "apiVersion": "audit.k8s.io/v1", "level": "Metadata", "stage": "ResponseComplete",
            "auditID": (crate::uid::new()), "requestURI": uri, "verb": (info.verb),
            "user": {"username": (&user.name), "groups": (user.groups.iter().map(meta::Value::from).collect::<Vec<_>>())},
            "responseStatus": {"code": (i64::from(code))}, "stageTimestamp": (now.rfc3339_micro()),
            "annotations": {"authorization.k8s.io/decision": decision},
        });
        if info.is_resource {
            line.set(
                &["objectRef"],
                json!({
                    "resource": (&info.resource), "namespace": (&info.namespace), "name": (&info.name),
                    "apiGroup": (&info.group), "apiVersion": (&info.version), "subresource": (&info.subresource),
                }),
            );
        }
        let mut text = line.to_json();
        text.push(b'\n');
        // The writer lives as long as the process; a closed channel means that it is ending.
        let _ = lines.send(text);
    }
}

fn write(lines: Receiver<Vec<u8>>, file: std::fs::File) {
    let mut file = std::io::BufWriter::with_capacity(64 * 1024, file);
    let mut failing = false;
    while let Ok(line) = lines.recv() {
        let mut wrote = file.write_all(&line);
        for line in lines.try_iter().take(QUEUE_MAX) {
            wrote = wrote.and_then(|()| file.write_all(&line));
        }
        wrote = wrote.and_then(|()| file.flush());
        match wrote {
            Err(error) if !failing => {
                tracing::error!("the audit log cannot be written: {error}");
                failing = true;
            }
            Err(_) => {}
            Ok(()) => failing = false,
        }
    }
}
