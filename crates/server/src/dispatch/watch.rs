//! Watches: what is asked for, checked and put together; [`crate::verbs::watch`] runs them.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use base::Revision;
use bytes::Bytes;
use meta::decode::Media;
use meta::{Kind, Reason, Status, Value};

use crate::Server;
use crate::authz::Authorized;
use crate::codec;
use crate::conversion;
use crate::http::negotiate::{Accept, Shape, stream_type};
use crate::http::{Body, Response, body};
use crate::request::Query;
use crate::table;
use crate::verbs::list::Filter;
use crate::verbs::watch::{Convert, Wish, frames, json_frame};

use super::{Incomer, accept_of, show, wait_for};

/// How long a watch lasts when the client does not say.
const WATCH_SECONDS: u64 = 1800;

pub(super) async fn watch(
    server: &Arc<Server>,
    auth: &Authorized,
    kind: &Arc<Kind>,
    incomer: &Incomer,
) -> Result<Response, Status> {
    let accept = accept_of(incomer, true, true)?;
    let query = &incomer.query;
    let mut filter = Filter::of(query, kind)?;
    // The deprecated path of one object: /watch/namespaces/x/pods/NAME.
    if !auth.info.name.is_empty() {
        let term =
            meta::labels::FieldTerm { field: "metadata.name".into(), value: auth.info.name.clone(), equal: true };
        filter.fields.0.push(term);
    }
    let version = query.text("resourceVersion");
    let since = match version {
        "" | "0" => Revision::ZERO,
        text => Revision(text.parse().map_err(|_| {
            Status::new(Reason::Unknown, format!("resourceVersion: Invalid value: {text:?}: must be a number"))
        })?),
    };
    let sends_initial = query.is_true("sendInitialEvents");
    let bookmarks = query.is_true("allowWatchBookmarks");
    if query.get("sendInitialEvents").is_some() {
        check_initial(query, bookmarks)?;
    }
    let place = server.watches.take(&auth.user.name)?;
    let mirror = server.storage.mirror().clone();
    let view = mirror.view();
    let current = view.at();
    if since > current {
        wait_for(server, since).await;
    }
    let initial =
        (sends_initial || since == Revision::ZERO && query.get("sendInitialEvents").is_none()).then_some(view);
    if initial.is_none() && since > Revision::ZERO && since < current {
        // Known at once, so that the client gets an HTTP status and not a frame.
        if mirror.since(kind.resource, since, 1).is_err() {
            return Err(crate::verbs::watch::too_old(since));
        }
    }
    let seconds = query.number("timeoutSeconds")?.and_then(|seconds| u64::try_from(seconds).ok());
    let wish = Wish {
        since: if since == Revision::ZERO { current } else { since },
        namespace: if kind.names.namespaced { auth.info.namespace.to_string() } else { String::new() },
        marks_initial: sends_initial && bookmarks,
        timeout: Duration::from_secs(seconds.filter(|seconds| *seconds > 0).unwrap_or(WATCH_SECONDS)),
        over: server.storage.over(),
        show: shower(server, kind, accept),
        convert: converter(server, kind),
        frame: if accept.media == Media::Protobuf { crate::http::negotiate::protobuf_frame } else { json_frame },
        kind: kind.clone(),
        filter,
        bookmarks,
        initial,
    };
    let mut response = body::answer(200, stream_type(accept.media), Bytes::new());
    *response.body_mut() = Body::Stream(Box::pin(frames(wish, mirror))).holding(place);
    Ok(response)
}

fn check_initial(query: &Query, bookmarks: bool) -> Result<(), Status> {
    let mut errors = meta::Errors::default();
    let path = meta::Path::ROOT;
    if query.text("resourceVersionMatch") != "NotOlderThan" {
        let detail = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
        errors.forbidden(&path.field("resourceVersionMatch"), detail);
    }
    if query.is_true("sendInitialEvents") && !bookmarks {
        errors.forbidden(&path.field("sendInitialEvents"), "sendInitialEvents requires allowWatchBookmarks");
    }
    if errors.is_empty() { Ok(()) } else { Err(Status::invalid("meta.k8s.io", "ListOptions", "", &errors)) }
}

/// How a watch has its objects converted, where that takes somebody to ask.
fn converter(server: &Arc<Server>, kind: &Arc<Kind>) -> Option<Convert> {
    kind.rules.conversion()?;
    let (server, kind) = (server.clone(), kind.clone());
    Some(Arc::new(move |objects| {
        let (server, kind) = (server.clone(), kind.clone());
        Box::pin(async move { conversion::shown(&server, &kind, objects).await })
    }))
}

/// How a watch shows its objects.
fn shower(server: &Arc<Server>, kind: &Arc<Kind>, accept: Accept) -> crate::verbs::watch::Show {
    let (server, kind) = (server.clone(), kind.clone());
    let accept = Accept { pretty: false, ..accept };
    // Only the first frame of a table watch has the columns' definitions.
    let first = std::sync::atomic::AtomicBool::new(true);
    let as_stored = accept.shape == Shape::Object && accept.media == Media::Json;
    Arc::new(move |object, give| {
        if let Some(text) = as_stored.then(|| codec::stored_text(&kind, object)).flatten() {
            give(&text);
        } else if accept.shape == Shape::Table && !object.name().is_empty() {
            let mut value = object.value();
            kind.rules.present(&mut value);
            let columns = first.swap(false, Ordering::Relaxed);
            let table = table::table(&kind, std::iter::once(&value), server.now(), columns, &Value::map(), accept.form);
            give(&table.to_json());
        } else {
            give(&show(&server, &kind, accept, object));
        }
    })
}
