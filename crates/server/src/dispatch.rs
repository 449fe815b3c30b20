//! From an HTTP request to its answer: who, may they, what.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use base::{Blob, Revision};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use client::Mirror;
use http::{HeaderMap, Method, Request, header};
use hyper::body::Incoming;
use meta::decode::Media;
use meta::proto::Encoder;
use meta::{Kind, Object, Reason, Status, Str, Value, Verb, json};

use crate::Server;
use crate::authn::Certified;
use crate::authz::{Attributes, Authorized, authorize, decide, refusal};
use crate::codec;
use crate::discovery;
use crate::flow;
use crate::http::negotiate::{Accept, Shape, accept, content, content_type, stream_type};
use crate::http::sending::{Cut, Sending};
use crate::http::{Body, Response, body};
use crate::identity::{AUTHENTICATED, User};
use crate::request::{Query, RequestInfo};
use crate::subresource;
use crate::table;
use crate::verbs::list::{Filter, Page, Wanted, page, too_new};
use crate::verbs::options::{DeleteOptions, WriteOptions};
use crate::verbs::patch::{Patch, patch, patch_type};
use crate::verbs::update::{Replace, change};
use crate::verbs::watch::{Wish, frames, json_frame};
use crate::verbs::{Call, delete};

/// Bytes of a request's body.
pub const BODY_MAX_BYTES: usize = 3 * 1024 * 1024;
/// How long a watch lasts when the client does not say.
const WATCH_SECONDS: u64 = 1800;
/// Bytes put together for one frame of a list.
const LIST_PART_BYTES: usize = 64 * 1024;

/// A request on its way through: what the handlers need of it.
pub struct Incomer {
    pub method: Method,
    pub uri: http::Uri,
    pub headers: HeaderMap,
    pub query: Query,
    /// Until it is taken for an upgrade.
    pub request: Option<Request<Incoming>>,
}

/// A body that nobody wanted is still heard out: a connection that is cut while the caller sends loses the answer.
impl Drop for Incomer {
    fn drop(&mut self) {
        if let Some(request) = self.request.take() {
            body::drain(request.into_body());
        }
    }
}

impl Incomer {
    pub fn header(&self, name: header::HeaderName) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// The whole body; at most once.
    pub async fn body(&mut self) -> Result<Bytes, Status> {
        match &mut self.request {
            Some(request) => body::read(request.body_mut(), BODY_MAX_BYTES).await,
            None => Ok(Bytes::new()),
        }
    }

    fn user_agent(&self) -> &str {
        self.header(header::USER_AGENT).unwrap_or("unknown")
    }
}

/// Answers one request. Panics of a handler end in a 500, not in a dead connection.
pub async fn answer(server: Arc<Server>, request: Request<Incoming>, certificate: Option<Certified>) -> Response {
    let cut = request.extensions().get::<Cut>().cloned();
    let query = Query::parse(request.uri().query().unwrap_or_default());
    let (method, uri, headers) = (request.method().clone(), request.uri().clone(), request.headers().clone());
    let info = RequestInfo::of(method.as_str(), uri.path(), &query);
    let incomer = Incomer { method, uri, headers, query, request: Some(request) };
    let uri = incomer.uri.to_string();
    let now = server.now();
    let serves = match rests_on_the_newest(&info, &incomer.query) {
        true => server.storage.fresh().await,
        false => server.storage.refusal().map_or(Ok(()), Err),
    };
    if let Err(status) = serves {
        server.audit.record(&User::anonymous(), &info, &uri, status.code(), "forbid", now);
        return body::refusal(&status);
    }
    let user = match authenticate(&server, &incomer, certificate.as_ref()) {
        Ok(user) => user,
        Err(status) => {
            server.audit.record(&User::anonymous(), &info, &uri, status.code(), "forbid", now);
            return body::refusal(&status);
        }
    };
    let view = server.storage.mirror().view();
    let limit = incomer.query.text("limit").parse().unwrap_or(0);
    let width = flow::width_of(&info, limit, &server.storage.registry(), &view);
    let admission = match server.flows.admit(&user, &info, width).await {
        Ok(admission) => admission,
        Err(status) => {
            server.audit.record(&user, &info, &uri, status.code(), "forbid", now);
            return body::refusal(&status);
        }
    };
    let auth = match authorize(user, info, &view) {
        Ok(auth) => auth,
        Err((user, status)) => {
            let info = RequestInfo::of(incomer.method.as_str(), incomer.uri.path(), &incomer.query);
            server.audit.record(&user, &info, &uri, status.code(), "forbid", now);
            let mut response = body::refusal(&status);
            classified(&mut response, admission, None);
            return response;
        }
    };
    drop(view);
    let mut response = match handle(&server, &auth, incomer).await {
        Ok(response) => response,
        Err(status) => body::refusal(&status),
    };
    // A list keeps its seat while it is sent.
    let keeps = (auth.info.verb == "list").then_some(cut);
    classified(&mut response, admission, keeps);
    server.audit.record(&auth.user, &auth.info, &uri, response.status().as_u16(), "allow", now);
    response
}

/// Whether the answer must show what any server has answered before. Reads that name a revision wait for that one.
fn rests_on_the_newest(info: &RequestInfo, query: &Query) -> bool {
    let reads = matches!(info.verb, "get" | "list" | "watch");
    let named = !query.text("resourceVersion").is_empty() || !query.text("continue").is_empty();
    info.is_resource && !(reads && named)
}

/// Tells the client where its request belonged. With `keeps`, the seat is held while the answer is sent, and the
/// connection is cut when nobody takes it.
fn classified(response: &mut Response, admission: flow::Admission, keeps: Option<Option<Cut>>) {
    let uids = [
        ("x-kubernetes-pf-flowschema-uid", admission.schema_uid),
        ("x-kubernetes-pf-prioritylevel-uid", admission.level_uid),
    ];
    for (name, uid) in uids {
        if let Ok(value) = header::HeaderValue::try_from(uid)
            && !value.is_empty()
        {
            response.headers_mut().insert(name, value);
        }
    }
    if let Some(cut) = keeps
        && hyper::body::Body::size_hint(response.body()).exact().is_none_or(|bytes| bytes > LIST_PART_BYTES as u64)
    {
        let body = std::mem::replace(response.body_mut(), Body::Full(None));
        *response.body_mut() = body.holding(Sending::begin(admission.seat, cut));
    }
}

fn authenticate(server: &Server, incomer: &Incomer, certificate: Option<&Certified>) -> Result<User, Status> {
    let mirror = server.storage.mirror();
    // A header beats the certificate: whoever sends a token means it.
    let authorization = incomer.header(header::AUTHORIZATION);
    let certificate = if authorization.is_some() { None } else { certificate };
    let user = server.authn.authenticate(certificate, authorization, mirror, server.now())?;
    impersonated(user, incomer, mirror)
}

/// The user that the headers ask to act as, if the caller may.
fn impersonated(user: User, incomer: &Incomer, mirror: &Mirror) -> Result<User, Status> {
    let texts = |name: &str| -> Vec<Str> {
        incomer.headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).map(Into::into).collect()
    };
    let name = texts("impersonate-user").into_iter().next().unwrap_or_default();
    let groups = texts("impersonate-group");
    let uid = texts("impersonate-uid").into_iter().next().unwrap_or_default();
    let extra: Vec<(Str, Str)> = incomer
        .headers
        .iter()
        .filter_map(|(header, value)| {
            let key = header.as_str().strip_prefix("impersonate-extra-")?;
            Some((crate::request::decode(key, false).into(), value.to_str().ok()?.into()))
        })
        .collect();
    if name.is_empty() {
        if groups.is_empty() && extra.is_empty() && uid.is_empty() {
            return Ok(user);
        }
        return Err(Status::bad_request("requested impersonation without naming a user"));
    }
    let view = mirror.view();
    let everything = meta::FieldSelector::default();
    let may = |group: &str, resource: &str, subresource: &str, namespace: &str, name: &str| -> Result<(), Status> {
        let attributes = Attributes {
            user: &user,
            verb: "impersonate",
            is_resource: true,
            group,
            resource,
            subresource,
            namespace,
            name,
            path: "",
            fields: &everything,
        };
        if decide(&attributes, &view).is_allowed() { Ok(()) } else { Err(refusal(&attributes, "")) }
    };
    let mut target = User { name: name.clone(), uid: uid.clone(), groups: groups.clone(), extra: Vec::new() };
    match target.service_account() {
        Some((namespace, account)) => {
            may("", "serviceaccounts", "", namespace, account)?;
            if groups.is_empty() {
                let namespace = namespace.to_owned();
                target.groups =
                    vec!["system:serviceaccounts".into(), format!("system:serviceaccounts:{namespace}").into()];
            }
        }
        None => may("", "users", "", "", &name)?,
    }
    for group in &groups {
        may("", "groups", "", "", group)?;
    }
    if !uid.is_empty() {
        may("authentication.k8s.io", "uids", "", "", &uid)?;
    }
    for (key, value) in extra {
        may("authentication.k8s.io", "userextras", &key, "", &value)?;
        match target.extra.iter_mut().find(|(known, _)| *known == key) {
            Some((_, values)) => values.push(value),
            None => target.extra.push((key, vec![value])),
        }
    }
    if target.name != crate::identity::ANONYMOUS && !target.in_group(AUTHENTICATED) {
        target.groups.push(AUTHENTICATED.into());
    }
    Ok(target)
}

async fn handle(server: &Arc<Server>, auth: &Authorized, incomer: Incomer) -> Result<Response, Status> {
    if !auth.info.is_resource {
        return Box::pin(plain(server, auth, incomer)).await;
    }
    let info = &auth.info;
    let registry = server.storage.registry();
    let Some(kind) = registry.find(&info.group, &info.version, &info.resource).cloned() else {
        return if registry.has(&info.group, &info.version) {
            Err(no_such_resource())
        } else {
            Ok(body::text(404, "404 page not found\n"))
        };
    };
    if kind.names.namespaced && info.namespace.is_empty() && !matches!(info.verb, "list" | "watch" | "deletecollection")
    {
        return match info.verb {
            "create" => Err(not_allowed()),
            _ => Err(no_such_resource()),
        };
    }
    if !kind.names.namespaced && !info.namespace.is_empty() {
        return Err(no_such_resource());
    }
    if !info.subresource.is_empty() {
        return Box::pin(subresource::handle(server, auth, &kind, incomer)).await;
    }
    let verb = match (info.verb, info.name.is_empty()) {
        ("create", true) => Verb::Create,
        ("get", false) => Verb::Get,
        ("list", true) => Verb::List,
        ("watch", _) => Verb::Watch,
        ("update", false) => Verb::Update,
        ("patch", false) => Verb::Patch,
        ("delete", false) => Verb::Delete,
        ("deletecollection", true) => Verb::DeleteCollection,
        _ => return Err(not_allowed()),
    };
    if !kind.serves(verb) {
        return Err(not_allowed());
    }
    if kind.names.group == crate::metrics::GROUP {
        return Box::pin(crate::metrics::answer(server, auth, &kind, verb, &incomer)).await;
    }
    // In boxes: the future of a request, which is moved into a task, stays as small as a read needs it.
    match verb {
        Verb::Get => get(server, auth, &kind, &incomer),
        Verb::List => Box::pin(list(server, auth, &kind, &incomer)).await,
        Verb::Watch => Box::pin(watch(server, auth, &kind, &incomer)).await,
        _ => Box::pin(write(server, auth, &kind, verb, incomer)).await,
    }
}

pub fn no_such_resource() -> Status {
    Status::new(Reason::NotFound, "the server could not find the requested resource")
}

pub fn not_allowed() -> Status {
    Status::new(Reason::MethodNotAllowed, "the server does not allow this method on the requested resource")
}

fn get(server: &Server, auth: &Authorized, kind: &Kind, incomer: &Incomer) -> Result<Response, Status> {
    let accept = accept_of(incomer, true, false)?;
    if let Wanted::AtLeast(revision) | Wanted::Exactly(revision) = Wanted::of(&incomer.query)? {
        let current = server.storage.mirror().revision();
        if revision > current {
            return Err(too_new(revision, current));
        }
    }
    let namespace = if kind.names.namespaced { auth.info.namespace.as_str() } else { "" };
    let object = server
        .one(kind.resource, namespace, &auth.info.name)
        .ok_or_else(|| Status::not_found(&kind.names.group, &kind.names.plural, &auth.info.name))?;
    Ok(body::answer(200, content_type(accept.media), show(server, kind, accept, &object)))
}

/// An object in the form that was asked for.
pub fn show(server: &Server, kind: &Kind, accept: Accept, object: &Object) -> Bytes {
    if let Some(bytes) = codec::as_stored(kind, accept, object) {
        return bytes;
    }
    let mut value = object.value();
    kind.rules.present(&mut value);
    codec::encode(kind, accept, &value, server.now())
}

pub fn accept_of(incomer: &Incomer, shapes: bool, watch: bool) -> Result<Accept, Status> {
    let mut accept = accept(incomer.header(header::ACCEPT), shapes, watch)?;
    accept.pretty |= incomer.query.is_true("pretty");
    if accept.shape == Shape::Table {
        accept.include = table::Include::parse(incomer.query.text("includeObject"))?;
    }
    Ok(accept)
}

async fn list(server: &Server, auth: &Authorized, kind: &Arc<Kind>, incomer: &Incomer) -> Result<Response, Status> {
    let accept = accept_of(incomer, true, false)?;
    let query = &incomer.query;
    let filter = Filter::of(query, kind)?;
    if let Wanted::AtLeast(revision) = Wanted::of(query)? {
        wait_for(server, revision).await;
    }
    let view = server.storage.mirror().view();
    if let Some(revision) = server.snapshots.missing(kind.resource, query, view.at())
        && let Some(past) = server.storage.past(kind.resource, revision).await
    {
        server.snapshots.keep(Some(kind.resource), &past);
    }
    let Page { revision, objects, next, remaining } =
        page(kind, &auth.info.namespace, &filter, query, &view, &server.snapshots)?;
    let mut metadata = json!({"resourceVersion": (revision.to_string())});
    if !next.is_empty() {
        metadata.set(&["continue"], next);
    }
    if let Some(remaining) = remaining {
        metadata.set(&["remainingItemCount"], remaining);
    }
    let presented = |object: &Object| {
        let mut value = object.value();
        kind.rules.present(&mut value);
        value
    };
    let names = &kind.names;
    match (accept.shape, accept.media) {
        (Shape::Object, Media::Json) if !accept.pretty => {
            let head = format!("{{\"apiVersion\":\"{}\",\"items\":[", names.api_version());
            let tail = format!(
                "],\"kind\":\"{}\",\"metadata\":{}}}",
                names.list_kind,
                String::from_utf8_lossy(&metadata.to_json())
            );
            Ok(parts("application/json", json_parts(kind.clone(), head, objects, tail)))
        }
        (Shape::Table, _) => {
            let values: Vec<Value> = objects.iter().map(presented).collect();
            let table = table::table(kind, values.iter(), server.now(), true, &metadata, accept.include);
            Ok(body::answer(200, content_type(accept.media), codec::write(accept, &table, None)))
        }
        (Shape::PartialMetadata, _) => {
            let items: Vec<Value> = objects.iter().map(|object| table::partial(&presented(object))).collect();
            let list = json!({
                "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadataList", "metadata": metadata, "items": items,
            });
            let of = api::schema::builtin().named("io.k8s.apimachinery.pkg.apis.meta.v1.PartialObjectMetadataList");
            Ok(body::answer(200, content_type(accept.media), codec::write(accept, &list, of)))
        }
        (Shape::Object, Media::Protobuf) if meta::proto::has_form(kind.of()) => {
            protobuf_list(kind.clone(), objects, metadata).await
        }
        (Shape::Object, _) => {
            let mut items: Vec<Value> = objects.iter().map(presented).collect();
            if is_built_in(kind) {
                for item in &mut items {
                    item.take(&["apiVersion"]);
                    item.take(&["kind"]);
                }
            }
            let list = json!({
                "apiVersion": (names.api_version()), "kind": (&names.list_kind), "metadata": metadata, "items": items,
            });
            let of = kind.schema.kind(&names.group, &names.version, &names.list_kind);
            Ok(body::answer(200, content_type(accept.media), codec::write(accept, &list, of)))
        }
    }
}

fn parts(content_type: &'static str, parts: impl Iterator<Item = Bytes> + Send + 'static) -> Response {
    let mut response = body::answer(200, content_type, Bytes::new());
    *response.body_mut() = Body::Parts(Box::new(parts));
    response
}

/// In lists of built-in kinds the items do not say what they are: the list does.
pub fn is_built_in(kind: &Kind) -> bool {
    Arc::ptr_eq(&kind.schema, api::schema::builtin())
}

/// A list's text, some objects at a time.
fn json_parts(kind: Arc<Kind>, head: String, objects: Vec<Object>, tail: String) -> impl Iterator<Item = Bytes> {
    let mut objects = objects.into_iter();
    let (mut head, mut tail) = (Some(head), Some(tail));
    let mut first = true;
    let built_in = is_built_in(&kind);
    std::iter::from_fn(move || {
        tail.as_ref()?;
        let mut part = Vec::with_capacity(LIST_PART_BYTES + 16 * 1024);
        if let Some(head) = head.take() {
            part.extend_from_slice(head.as_bytes());
        }
        for object in objects.by_ref() {
            if !std::mem::take(&mut first) {
                part.push(b',');
            }
            if let Some(bytes) = codec::stored_text(&kind, &object) {
                match built_in.then(|| codec::without_type(&bytes)).flatten() {
                    Some(pieces) => pieces.iter().for_each(|piece| part.extend_from_slice(piece)),
                    None => part.extend_from_slice(&bytes),
                }
            } else {
                let mut value = object.value();
                kind.rules.present(&mut value);
                if built_in {
                    value.take(&["apiVersion"]);
                    value.take(&["kind"]);
                }
                value.write_json(&mut part);
            }
            if part.len() >= LIST_PART_BYTES {
                return Some(part.into());
            }
        }
        part.extend_from_slice(tail.take()?.as_bytes());
        Some(part.into())
    })
}

/// The text of an object in `kind`'s version.
fn text_of(kind: &Kind, object: &Object) -> Bytes {
    if let Some(text) = codec::stored_text(kind, object) {
        return text;
    }
    let mut value = object.value();
    kind.rules.present(&mut value);
    value.to_json().into()
}

/// A list in protobuf, some objects at a time. The envelope says first how long all of it is, so the messages are made
/// (and kept with the objects) before the first part.
async fn protobuf_list(kind: Arc<Kind>, objects: Vec<Object>, metadata: Value) -> Result<Response, Status> {
    let make = move || -> Result<_, meta::proto::ProtoError> {
        let messages = protobuf_messages(&kind, &objects)?;
        let meta_of = api::schema::meta_v1("ListMeta");
        let names = &kind.names;
        let lengths = messages.iter().map(Blob::len);
        let head = meta::proto::list_head(&names.api_version(), &names.list_kind, &metadata, meta_of, lengths)?;
        Ok((messages, head))
    };
    // Long lists take their time: other requests must not wait for it.
    let made = tokio::task::spawn_blocking(make).await.map_err(Status::internal)?;
    let (messages, head) = made.map_err(Status::internal)?;
    let (mut messages, mut head, mut ended) = (messages.into_iter(), Some(head), false);
    let made = std::iter::from_fn(move || {
        if ended {
            return None;
        }
        let mut part = Vec::with_capacity(LIST_PART_BYTES + 16 * 1024);
        part.extend_from_slice(&head.take().unwrap_or_default());
        for message in messages.by_ref() {
            let (head, length) = meta::proto::item_head(message.len());
            part.extend_from_slice(&head[..length]);
            part.extend_from_slice(&message.bytes());
            if part.len() >= LIST_PART_BYTES {
                return Some(part.into());
            }
        }
        ended = true;
        part.extend_from_slice(meta::proto::LIST_END);
        Some(part.into())
    });
    Ok(parts(content_type(Media::Protobuf), made))
}

/// The messages of objects in `kind`'s version, made by all processors when there are many.
fn protobuf_messages(kind: &Kind, objects: &[Object]) -> Result<Vec<Blob>, meta::proto::ProtoError> {
    /// Fewer are not worth a thread.
    const SHARE_MIN: usize = 1_000;
    let messages = |objects: &[Object]| -> Result<Vec<Blob>, meta::proto::ProtoError> {
        let mut encoder = Encoder::default();
        let message = |object: &Object| match codec::stored_text(kind, object) {
            Some(_) => object.protobuf(&mut encoder, kind.of()),
            None => Ok(Blob::from(encoder.message(&text_of(kind, object), kind.of())?.to_vec())),
        };
        objects.iter().map(message).collect()
    };
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let share = objects.len().div_ceil(processors).max(SHARE_MIN);
    if objects.len() <= share {
        return messages(objects);
    }
    std::thread::scope(|scope| {
        let shares: Vec<_> = objects.chunks(share).map(|share| scope.spawn(|| messages(share))).collect();
        let mut all = Vec::with_capacity(objects.len());
        for share in shares {
            all.extend(share.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
        }
        Ok(all)
    })
}

/// Waits a little for a revision that another server or a fast client has already seen.
async fn wait_for(server: &Server, revision: Revision) {
    const PATIENCE: Duration = Duration::from_secs(3);
    // Whether it came in time is seen by the caller in the view it then takes.
    let _ = tokio::time::timeout(PATIENCE, server.storage.mirror().reached(revision)).await;
}

async fn watch(
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
        show: shower(server, kind, accept),
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
            let table =
                table::table(&kind, std::iter::once(&value), server.now(), columns, &Value::map(), accept.include);
            give(&table.to_json());
        } else {
            give(&show(&server, &kind, accept, object));
        }
    })
}

async fn write(
    server: &Arc<Server>,
    auth: &Authorized,
    kind: &Arc<Kind>,
    verb: Verb,
    mut incomer: Incomer,
) -> Result<Response, Status> {
    let accept = accept_of(&incomer, !matches!(verb, Verb::DeleteCollection), false)?;
    let now = server.now();
    if matches!(verb, Verb::Delete | Verb::DeleteCollection) {
        return remove(server, auth, kind, verb, accept, incomer).await;
    }
    let patch_kind = match verb {
        Verb::Patch => Some(patch_type(incomer.header(header::CONTENT_TYPE), kind)?),
        _ => None,
    };
    let options_kind = match verb {
        Verb::Create => "CreateOptions",
        Verb::Update => "UpdateOptions",
        _ => "PatchOptions",
    };
    let is_apply = patch_kind == Some(client::PatchType::Apply);
    let options = WriteOptions::of(&incomer.query, options_kind, incomer.user_agent(), is_apply)?;
    let call = Call { auth, kind, options: &options, now };
    let outcome = match patch_kind {
        Some(patch_kind) => {
            let bytes = incomer.body().await?;
            let value = codec::read_patch(&bytes, is_apply)?;
            patch(server, &call, Patch { kind: patch_kind, patch: value }).await?
        }
        None => {
            let media = content(incomer.header(header::CONTENT_TYPE))?;
            let bytes = incomer.body().await?;
            let (value, warnings) = codec::decode(kind, media, &bytes, options.validation)?;
            let mut outcome = match verb {
                Verb::Create => subresource::create_or_review(server, &call, value).await?,
                _ => change(server, &call, &Replace { value, warnings: Vec::new() }).await?,
            };
            outcome.warnings.splice(0..0, warnings);
            outcome
        }
    };
    Ok(codec::respond(kind, accept, &outcome, now))
}

async fn remove(
    server: &Arc<Server>,
    auth: &Authorized,
    kind: &Arc<Kind>,
    verb: Verb,
    accept: Accept,
    mut incomer: Incomer,
) -> Result<Response, Status> {
    let bytes = incomer.body().await?;
    let body = if bytes.is_empty() {
        None
    } else {
        let media = content(incomer.header(header::CONTENT_TYPE))?;
        let of = api::schema::builtin()
            .named("io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions")
            .ok_or_else(|| Status::internal("the schema has no DeleteOptions"))?;
        let read = meta::decode::decode(&bytes, media, of, meta::decode::FieldValidation::Ignore);
        Some(read.map_err(|error| error.status("v1", "DeleteOptions"))?.0)
    };
    let options = DeleteOptions::of(&incomer.query, body.as_ref())?;
    let write_options = WriteOptions { dry_run: options.dry_run, ..WriteOptions::default() };
    let now = server.now();
    let call = Call { auth, kind, options: &write_options, now };
    if verb == Verb::Delete {
        let outcome = delete::delete(server, &call, &options).await?;
        return Ok(codec::respond(kind, accept, &outcome, now));
    }
    let filter = Filter::of(&incomer.query, kind)?;
    let view = server.storage.mirror().view();
    let page = page(kind, &auth.info.namespace, &filter, &incomer.query, &view, &server.snapshots)?;
    let mut items = Vec::new();
    for object in &page.objects {
        let mut info = auth.info.clone();
        (info.name, info.namespace) = (object.facts().name.clone(), object.facts().namespace.clone());
        let one = auth.narrowed(info);
        let call = Call { auth: &one, kind, options: &write_options, now };
        match delete::delete_one(server, &call, object.name(), &options).await {
            Ok(delete::Deleted::Gone(value) | delete::Deleted::Waits(value)) => items.push(value),
            // Somebody else was faster.
            Err(status) if status.reason() == Reason::NotFound => {}
            Err(status) => return Err(status),
        }
    }
    let names = &kind.names;
    let list = json!({
        "apiVersion": (names.api_version()), "kind": (&names.list_kind), "items": items,
        "metadata": {"resourceVersion": (page.revision.to_string())},
    });
    let of = kind.schema.kind(&names.group, &names.version, &names.list_kind);
    Ok(body::answer(200, content_type(accept.media), codec::write(accept, &list, of)))
}

/// Paths that are no resources.
async fn plain(server: &Arc<Server>, auth: &Authorized, incomer: Incomer) -> Result<Response, Status> {
    let path = auth.info.path.trim_end_matches('/');
    let parts: Vec<&str> = path.split('/').skip(1).collect();
    if !matches!(incomer.method, Method::GET | Method::HEAD) {
        return Err(not_allowed());
    }
    let registry = server.storage.registry();
    match parts.as_slice() {
        ["healthz" | "livez", ..] => Ok(health(server, &incomer, &parts, true)),
        ["readyz", ..] => {
            let ready = server.ready.load(Ordering::Acquire);
            Ok(health(server, &incomer, &parts, ready))
        }
        ["version"] => Ok(body::json(200, &version())),
        ["api"] | ["apis"] => {
            let core = parts[0] == "api";
            let aggregated =
                incomer.header(header::ACCEPT).is_some_and(|accept| accept.contains("APIGroupDiscoveryList"));
            if aggregated {
                return Ok(aggregated_discovery(&registry, core, &incomer));
            }
            let plain =
                if core { discovery::core_versions(&server.options.advertise) } else { discovery::groups(&registry) };
            discovery_answer(&incomer, &plain)
        }
        ["api", version] => {
            let resources = discovery::resources(&registry, "", version).ok_or_else(no_such_resource)?;
            discovery_answer(&incomer, &resources)
        }
        ["apis", group] => match discovery::one_group(&registry, group) {
            Some(group) => discovery_answer(&incomer, &group),
            None => Ok(body::text(404, "404 page not found\n")),
        },
        ["apis", group, version] => match discovery::resources(&registry, group, version) {
            Some(resources) => discovery_answer(&incomer, &resources),
            None => Ok(body::text(404, "404 page not found\n")),
        },
        ["openapi", ..] => crate::subresource::openapi::answer(&registry, &parts, &incomer),
        ["openid", "v1", "jwks"] => {
            Ok(body::answer(200, "application/jwk-set+json", server.authn.tokens.key_set().to_json()))
        }
        [".well-known", "openid-configuration"] => Ok(body::json(
            200,
            &json!({
                "issuer": (crate::tokens::ISSUER),
                "jwks_uri": (format!("https://{}/openid/v1/jwks", server.options.advertise)),
                "response_types_supported": ["id_token"], "subject_types_supported": ["public"],
                "id_token_signing_alg_values_supported": ["ES256"],
            }),
        )),
        ["metrics"] => Ok(body::text(200, metrics(server))),
        ["beat", node] => {
            let key = STANDARD.encode(server.beats().of(node));
            Ok(body::json(200, &json!({"key": key})))
        }
        ["join", "ca"] => Ok(body::text(200, server.ca.pem().to_owned())),
        [""] | [] => {
            let paths: Vec<Value> = [
                "/api",
                "/apis",
                "/healthz",
                "/livez",
                "/metrics",
                "/openapi/v2",
                "/openapi/v3",
                "/readyz",
                "/version",
            ]
            .into_iter()
            .map(Value::from)
            .collect();
            Ok(body::json(200, &json!({"paths": paths})))
        }
        _ => Ok(body::text(404, "404 page not found\n")),
    }
}

fn discovery_answer(incomer: &Incomer, value: &Value) -> Result<Response, Status> {
    let accept = accept_of(incomer, false, false)?;
    let name = format!("io.k8s.apimachinery.pkg.apis.meta.v1.{}", value["kind"].text());
    let of = api::schema::builtin().named(&name);
    Ok(body::answer(200, content_type(accept.media), codec::write(accept, value, of)))
}

fn aggregated_discovery(registry: &crate::registry::Registry, core: bool, incomer: &Incomer) -> Response {
    let text = discovery::aggregated(registry, core).to_json();
    let tag = format!("\"{:016X}\"", base::hash64(&text));
    // Caches take over the headers of a 304, so it names the same type as the answer that it stands for.
    let form = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    let known = incomer.header(header::IF_NONE_MATCH) == Some(tag.as_str());
    let mut response = if known { body::answer(304, form, Bytes::new()) } else { body::answer(200, form, text) };
    if let Ok(tag) = header::HeaderValue::from_str(&tag) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    response.headers_mut().insert(header::VARY, header::HeaderValue::from_static("Accept"));
    response
}

fn version() -> Value {
    json!({
        "major": "1", "minor": "37", "gitVersion": (format!("v1.37.0+gantry.{}", env!("CARGO_PKG_VERSION"))),
        "gitCommit": "", "gitTreeState": "clean", "buildDate": "1970-01-01T00:00:00Z", "goVersion": "",
        "compiler": "rustc", "platform": (format!("linux/{}", if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" })),
        "emulationMajor": "1", "emulationMinor": "37", "minCompatibilityMajor": "1", "minCompatibilityMinor": "36",
    })
}

fn health(server: &Server, incomer: &Incomer, parts: &[&str], good: bool) -> Response {
    let checks: &[(&str, bool)] = &[
        ("ping", true),
        ("etcd", true),
        ("cache", server.storage.mirror().revision() > Revision::ZERO),
        ("bootstrap", server.ready.load(Ordering::Acquire)),
    ];
    if let Some(name) = parts.get(1) {
        return match checks.iter().find(|(check, _)| check == name) {
            Some((_, true)) => body::text(200, "ok"),
            Some((_, false)) => body::text(500, "internal server error: not ready\n"),
            None => body::text(404, "404 page not found\n"),
        };
    }
    if incomer.query.get("verbose").is_none() && good {
        return body::text(200, "ok");
    }
    let mut text = String::new();
    for (check, passed) in checks {
        text.push_str(if *passed { "[+]" } else { "[-]" });
        text.push_str(check);
        text.push_str(if *passed { " ok\n" } else { " failed\n" });
    }
    let name = parts[0];
    text.push_str(&format!("{name} check {}\n", if good { "passed" } else { "failed" }));
    body::text(if good { 200 } else { 500 }, text)
}

fn metrics(server: &Server) -> String {
    let view = server.storage.mirror().view();
    let mut text = String::from("# TYPE apiserver_storage_objects gauge\n");
    for resource in view.resources() {
        text.push_str(&format!("apiserver_storage_objects{{resource=\"{resource}\"}} {}\n", view.count(resource)));
    }
    text.push_str(&format!("# TYPE gantry_revision counter\ngantry_revision {}\n", view.at()));
    text
}
