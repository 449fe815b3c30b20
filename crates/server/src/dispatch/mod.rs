//! From an HTTP request to its answer: who, may they, what.

mod list;
mod plain;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use base::Revision;
use bytes::Bytes;
use client::Mirror;
use http::{Extensions, HeaderMap, Method, Request, header};
use hyper::body::Incoming;
use meta::{Kind, Object, Reason, Status, Str, Value, Verb, json};

use crate::Server;
use crate::aggregation::proxy;
use crate::audit::{Answered, Asked};
use crate::authn::Peer;
use crate::authz::{Attributes, Authorized, authorize, decide, refusal};
use crate::codec;
use crate::conversion;
use crate::flow;
use crate::http::first_look::longer;
use crate::http::negotiate::{Accept, Shape, accept, content, content_type};
use crate::http::sending::{Cut, Sending};
use crate::http::{Body, Response, body};
use crate::identity::{AUTHENTICATED, User};
use crate::request::{Query, RequestInfo};
use crate::subresource;
use crate::table;
use crate::verbs::list::{Filter, Page, Wanted, page, too_new};
use crate::verbs::options::{DeleteOptions, WriteOptions};
use crate::verbs::patch::{Patch, patch, patch_type};
use crate::verbs::update::{Replace, change, standing};
use crate::verbs::{Call, delete};

pub use list::is_built_in;
use list::list;
use plain::plain;
use watch::watch;

/// Bytes of a request's body.
pub const BODY_MAX_BYTES: usize = 3 * 1024 * 1024;

/// A request on its way through: what the handlers need of it.
pub struct Incomer {
    pub method: Method,
    pub uri: http::Uri,
    pub headers: HeaderMap,
    pub query: Query,
    /// With the way to an upgrade.
    pub extensions: Extensions,
    /// Until somebody reads it.
    body: Option<Incoming>,
}

/// A body that nobody wanted is still heard out: a connection that is cut while the caller sends loses the answer.
impl Drop for Incomer {
    fn drop(&mut self) {
        if let Some(body) = self.body.take() {
            body::drain(body);
        }
    }
}

impl Incomer {
    pub fn header(&self, name: header::HeaderName) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// The whole body; at most once.
    pub async fn body(&mut self) -> Result<Bytes, Status> {
        match &mut self.body {
            Some(body) => body::read(body, BODY_MAX_BYTES).await,
            None => Ok(Bytes::new()),
        }
    }

    pub fn user_agent(&self) -> &str {
        self.header(header::USER_AGENT).unwrap_or("unknown")
    }
}

/// The `timeout` of a request is a duration, unless the request lasts (upstream: `WithRequestDeadline`).
fn check_timeout(info: &RequestInfo, query: &Query) -> Result<(), Status> {
    let text = query.text("timeout");
    if text.is_empty() || info.lasts() || meta::normalise::duration_nanos(text).is_some() {
        return Ok(());
    }
    let why = format!("time: invalid duration {text:?}");
    Err(Status::bad_request(format!("invalid timeout specified in the request URL - {why}")))
}

/// Answers one request. Panics of a handler end in a 500, not in a dead connection.
pub async fn answer(server: Arc<Server>, request: Request<Incoming>, peer: Arc<Peer>) -> Response {
    let (http::request::Parts { method, uri, headers, extensions, .. }, body) = request.into_parts();
    let query = Query::parse(uri.query().unwrap_or_default());
    let info = RequestInfo::of(method.as_str(), uri.path(), &query);
    let asked = Asked {
        received: server.now(),
        target: uri.path_and_query().cloned(),
        agent: headers.get(header::USER_AGENT).cloned(),
        from: peer.address,
    };
    let incomer = Incomer { method, uri, headers, query, extensions, body: Some(body) };
    let refuse = |who: &Caller, info: &RequestInfo, status: &Status| {
        let (user, by) = (&who.user, who.by.as_ref());
        let answered = Answered { user, by, info, code: status.code(), decision: "forbid", at: server.now() };
        server.audit.record(&asked, &answered);
        body::refusal(status)
    };
    let nobody = || Caller { user: User::anonymous(), by: None };
    if let Err(status) = check_timeout(&info, &incomer.query) {
        return refuse(&nobody(), &info, &status);
    }
    let serves = match rests_on_the_newest(&info, &incomer.query) {
        true => server.storage.fresh().await,
        false => server.storage.refusal().map_or(Ok(()), Err),
    };
    if let Err(status) = serves {
        return refuse(&nobody(), &info, &status);
    }
    let who = match authenticate(&server, &incomer, &peer) {
        Ok(who) => who,
        Err(status) => return refuse(&nobody(), &info, &status),
    };
    let view = server.storage.mirror().view();
    let limit = incomer.query.text("limit").parse().unwrap_or(0);
    let width = flow::width_of(&info, limit, &server.storage.registry(), &view);
    let mut admission = match server.flows.admit(&who.user, &info, width).await {
        Ok(admission) => admission,
        Err(status) => return refuse(&who, &info, &status),
    };
    let Caller { user, by } = who;
    let auth = match authorize(user, info, &view) {
        Ok(auth) => auth,
        Err((user, status)) => {
            let info = RequestInfo::of(incomer.method.as_str(), incomer.uri.path(), &incomer.query);
            let mut response = refuse(&Caller { user, by }, &info, &status);
            classified(&mut response, admission, None);
            return response;
        }
    };
    drop(view);
    if auth.info.verb == "watch" && server.storage.registry().remote(&auth.info.group, &auth.info.version).is_some() {
        // When it begins is another server's affair; it has a place until it ends.
        admission.seat = None;
    }
    let mut response = match handle(&server, &auth, incomer).await {
        Ok(response) => response,
        Err(status) => body::refusal(&status),
    };
    // A list keeps its seat while it is sent.
    let keeps = (auth.info.verb == "list").then(|| peer.cut.clone());
    classified(&mut response, admission, keeps);
    let (user, by, code) = (&auth.user, by.as_ref(), response.status().as_u16());
    let answered = Answered { user, by, info: &auth.info, code, decision: "allow", at: server.now() };
    server.audit.record(&asked, &answered);
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
fn classified(response: &mut Response, admission: flow::Admission, keeps: Option<Cut>) {
    let uids = [
        (header::HeaderName::from_static("x-kubernetes-pf-flowschema-uid"), admission.schema_uid),
        (header::HeaderName::from_static("x-kubernetes-pf-prioritylevel-uid"), admission.level_uid),
    ];
    for (name, uid) in uids.into_iter().filter(|(_, uid)| !uid.is_empty()) {
        response.headers_mut().insert(name, uid);
    }
    if let Some(cut) = keeps
        && hyper::body::Body::size_hint(response.body())
            .exact()
            .is_none_or(|bytes| bytes > list::LIST_PART_BYTES as u64)
    {
        let body = std::mem::replace(response.body_mut(), Body::Full(None));
        *response.body_mut() = body.holding(Sending::begin(admission.seat, cut));
    }
}

/// Whose request it is.
struct Caller {
    user: User,
    /// Who acts as that user.
    by: Option<User>,
}

fn authenticate(server: &Server, incomer: &Incomer, peer: &Peer) -> Result<Caller, Status> {
    let mirror = server.storage.mirror();
    // A header beats the certificate: whoever sends a token means it.
    let authorization = incomer.header(header::AUTHORIZATION);
    let certificate = if authorization.is_some() { None } else { peer.certified.as_ref() };
    let user = server.authn.authenticate(certificate, authorization, mirror, server.now())?;
    let acts = incomer.headers.keys().any(|name| name.as_str().starts_with("impersonate-"));
    if !acts {
        return Ok(Caller { user, by: None });
    }
    Ok(match impersonated(&user, incomer, mirror)? {
        Some(target) => Caller { user: target, by: Some(user) },
        None => Caller { user, by: None },
    })
}

/// The user that the headers ask to act as, if the caller may; `None` when they name nobody.
fn impersonated(user: &User, incomer: &Incomer, mirror: &Mirror) -> Result<Option<User>, Status> {
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
            return Ok(None);
        }
        return Err(Status::bad_request("requested impersonation without naming a user"));
    }
    let view = mirror.view();
    let everything = meta::FieldSelector::default();
    let may = |group: &str, resource: &str, subresource: &str, namespace: &str, name: &str| -> Result<(), Status> {
        let attributes = Attributes {
            user,
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
    Ok(Some(target))
}

async fn handle(server: &Arc<Server>, auth: &Authorized, incomer: Incomer) -> Result<Response, Status> {
    let reads_one = auth.info.verb == "get" && auth.info.is_resource && auth.info.subresource.is_empty();
    if !reads_one {
        longer().await;
    }
    if !auth.info.is_resource {
        return Box::pin(plain(server, auth, incomer)).await;
    }
    let info = &auth.info;
    let registry = server.storage.registry();
    if let Some(remote) = registry.remote(&info.group, &info.version) {
        return Box::pin(proxy::pass(server, remote, auth, incomer)).await;
    }
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
    if kind.resource == crate::components::RESOURCE {
        return Box::pin(crate::components::answer(server, auth, &kind, verb, &incomer)).await;
    }
    // In boxes: the future of a request, which is moved into a task, stays as small as a read needs it.
    match verb {
        Verb::Get => get(server, auth, &kind, &incomer).await,
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

async fn get(server: &Server, auth: &Authorized, kind: &Kind, incomer: &Incomer) -> Result<Response, Status> {
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
    let object = conversion::shown_one(server, kind, &object).await?;
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
        accept.form.include = table::Include::parse(incomer.query.text("includeObject"))?;
    }
    Ok(accept)
}

/// Waits a little for a revision that another server or a fast client has already seen.
async fn wait_for(server: &Server, revision: Revision) {
    const PATIENCE: Duration = Duration::from_secs(3);
    // Whether it came in time is seen by the caller in the view it then takes.
    let _ = tokio::time::timeout(PATIENCE, server.storage.mirror().reached(revision)).await;
}

async fn write(
    server: &Arc<Server>,
    auth: &Authorized,
    kind: &Arc<Kind>,
    verb: Verb,
    mut incomer: Incomer,
) -> Result<Response, Status> {
    // Reviews are no objects that a table could list.
    let shapes = !matches!(verb, Verb::DeleteCollection) && kind.verbs != [Verb::Create];
    let accept = accept_of(&incomer, shapes, false)?;
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
            let value = codec::read_patch(&bytes, is_apply, options.validation)?;
            patch(server, &call, Patch { kind: patch_kind, patch: value }).await?
        }
        None => {
            let media = content(incomer.header(header::CONTENT_TYPE))?;
            let bytes = incomer.body().await?;
            let creates = verb == Verb::Create;
            let standing = if creates { Value::Null } else { standing(server, &call) };
            let (value, warnings) = codec::decode(kind, media, &bytes, &standing, options.validation)?;
            if creates {
                let mut outcome = subresource::create_or_review(server, &call, value).await?;
                outcome.warnings.splice(0..0, warnings);
                outcome
            } else {
                change(server, &call, &Replace { value, warnings }).await?
            }
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
    let rough = filter.before_conversion(kind);
    let wanted = rough.as_ref().unwrap_or(&filter);
    let Page { revision, mut objects, .. } =
        page(kind, &auth.info.namespace, wanted, &incomer.query, (&view, server.now()), &server.snapshots)?;
    drop(view);
    if rough.is_some() {
        objects = conversion::shown(server, kind, objects).await?;
        objects.retain(|object| filter.matches(kind, object));
    }
    let mut items = Vec::new();
    for object in &objects {
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
        "metadata": {"resourceVersion": (revision.to_string())},
    });
    let of = kind.schema.kind(&names.group, &names.version, &names.list_kind);
    Ok(body::answer(200, content_type(accept.media), codec::write(accept, &list, of)))
}
