//! What subresources mean. Status is a change like any other; the rest has a file each.

pub mod binding;
pub mod eviction;
mod links;
pub mod node;
pub mod openapi;
pub mod review;
pub mod scale;
pub mod token;

use std::borrow::Cow;
use std::sync::Arc;

use http::header;
use meta::{Kind, Status, Value, Verb};

use crate::Server;
use crate::authz::Authorized;
use crate::codec;
use crate::dispatch::{Incomer, accept_of, no_such_resource, not_allowed};
use crate::http::negotiate::{content, content_type};
use crate::http::{Response, body};
use crate::verbs::options::WriteOptions;
use crate::verbs::patch::{Patch, patch_type};
use crate::verbs::update::{Replace, change, standing};
use crate::verbs::{Call, Outcome, create};

/// Answers a request to a subresource.
pub async fn handle(
    server: &Arc<Server>,
    auth: &Authorized,
    kind: &Arc<Kind>,
    incomer: Incomer,
) -> Result<Response, Status> {
    let info = &auth.info;
    let Some(subresource) = kind.subresource(&info.subresource) else { return Err(no_such_resource()) };
    if subresource.name == "proxy" {
        // Every method is the business of who is behind it.
        return node::connect(server, auth, kind, incomer).await;
    }
    let verb = match info.verb {
        "get" => Verb::Get,
        "create" => Verb::Create,
        "update" => Verb::Update,
        "patch" => Verb::Patch,
        "delete" => Verb::Delete,
        _ => return Err(not_allowed()),
    };
    if !subresource.verbs.contains(&verb) {
        return Err(not_allowed());
    }
    match subresource.name {
        "log" | "exec" | "attach" | "portforward" => node::connect(server, auth, kind, incomer).await,
        "scale" => scale::handle(server, auth, kind, verb, incomer).await,
        "binding" | "eviction" | "token" => post(server, auth, kind, incomer).await,
        _ => part(server, auth, kind, verb, incomer).await,
    }
}

/// Subresources whose body is the object itself: status, finalize, approval, resize, ephemeralcontainers.
async fn part(
    server: &Arc<Server>,
    auth: &Authorized,
    kind: &Arc<Kind>,
    verb: Verb,
    mut incomer: Incomer,
) -> Result<Response, Status> {
    let accept = accept_of(&incomer, true, false)?;
    let now = server.now();
    if verb == Verb::Get {
        let namespace = if kind.names.namespaced { auth.info.namespace.as_str() } else { "" };
        let object = server
            .one(kind.resource, namespace, &auth.info.name)
            .ok_or_else(|| Status::not_found(&kind.names.group, &kind.names.plural, &auth.info.name))?;
        let bytes = crate::dispatch::show(server, kind, accept, &object);
        return Ok(body::answer(200, content_type(accept.media), bytes));
    }
    let outcome = if verb == Verb::Patch {
        let patch_kind = patch_type(incomer.header(header::CONTENT_TYPE), kind)?;
        let is_apply = patch_kind == client::PatchType::Apply;
        let options = WriteOptions::of(&incomer.query, "PatchOptions", incomer.user_agent(), is_apply)?;
        let call = Call { auth, kind, options: &options, now };
        let bytes = incomer.body().await?;
        let value = codec::read_patch(&bytes, is_apply, options.validation)?;
        change(server, &call, &Patch { kind: patch_kind, patch: value }).await?
    } else {
        let options = WriteOptions::of(&incomer.query, "UpdateOptions", incomer.user_agent(), false)?;
        let call = Call { auth, kind, options: &options, now };
        let media = content(incomer.header(header::CONTENT_TYPE))?;
        let bytes = incomer.body().await?;
        let standing = standing(server, &call);
        let (value, warnings) = codec::decode(kind, media, &bytes, &standing, options.validation)?;
        change(server, &call, &Replace { value, warnings }).await?
    };
    Ok(codec::respond(kind, accept, &outcome, now))
}

/// Subresources that take a body of their own and do something.
async fn post(
    server: &Arc<Server>,
    auth: &Authorized,
    kind: &Arc<Kind>,
    mut incomer: Incomer,
) -> Result<Response, Status> {
    let accept = accept_of(&incomer, false, false)?;
    let options = WriteOptions::of(&incomer.query, "CreateOptions", incomer.user_agent(), false)?;
    let call = Call { auth, kind, options: &options, now: server.now() };
    let media = content(incomer.header(header::CONTENT_TYPE))?;
    let bytes = incomer.body().await?;
    let (group, version, of_kind) = body_type(kind, &auth.info.subresource);
    let of = api::schema::builtin().kind(group, &version, of_kind).ok_or_else(no_such_resource)?;
    let api_version = if group.is_empty() { version.clone() } else { format!("{group}/{version}") };
    // An older version of the same kind (policy/v1beta1) has the same members.
    let bytes = accept_versions(&bytes, media, group, &api_version);
    let (value, warnings) = codec::decode_as(of, &api_version, of_kind, media, &bytes, options.validation)?;
    let mut outcome = post_value(server, &call, value).await?;
    outcome.warnings.splice(0..0, warnings);
    let status = outcome.value["kind"].text() == "Status";
    let of =
        if status { api::schema::builtin().named("io.k8s.apimachinery.pkg.apis.meta.v1.Status") } else { Some(of) };
    let mut response = body::answer(outcome.code, content_type(accept.media), codec::write(accept, &outcome.value, of));
    codec::add_warnings(&mut response, &outcome.warnings);
    Ok(response)
}

/// The type of a subresource's body.
fn body_type<'a>(kind: &'a Kind, subresource: &str) -> (&'a str, String, &'a str) {
    match kind.subresource(subresource).map(|subresource| subresource.body) {
        Some((group, version, of)) if !version.is_empty() => (group, version.to_owned(), of),
        Some((_, _, of)) if !of.is_empty() => (&kind.names.group, kind.names.version.to_string(), of),
        _ => (&kind.names.group, kind.names.version.to_string(), &kind.names.kind),
    }
}

fn accept_versions<'a>(bytes: &'a [u8], media: meta::decode::Media, group: &str, api_version: &str) -> Cow<'a, [u8]> {
    const OLDER: &[u8] = b"/v1beta";
    if media == meta::decode::Media::Json
        && bytes.windows(OLDER.len()).any(|found| found == OLDER)
        && let Ok(mut value) = Value::parse(bytes)
        && value["apiVersion"].text().strip_prefix(group).is_some_and(|rest| rest.as_bytes().starts_with(OLDER))
    {
        value.set(&["apiVersion"], api_version);
        return value.to_json().into();
    }
    bytes.into()
}

/// What posting `value` to the call's subresource does.
pub async fn post_value(server: &Arc<Server>, call: &Call<'_>, value: Value) -> Result<Outcome, Status> {
    match call.auth.info.subresource.as_str() {
        "binding" => binding::bind(server, call, value).await,
        "eviction" => eviction::evict(server, call, value).await,
        "token" => token::request(server, call, value),
        _ => Err(not_allowed()),
    }
}

/// Creates an object, or answers a review, which is "created" but never stored.
pub async fn create_or_review(server: &Arc<Server>, call: &Call<'_>, value: Value) -> Result<Outcome, Status> {
    if call.kind.verbs == [Verb::Create] {
        if call.kind.names.kind == "Binding" {
            return binding::create(server, call, value).await;
        }
        return review::answer(server, call, value);
    }
    create::create(server, call, value).await
}
