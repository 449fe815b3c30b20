//! Lists, some objects at a time.

use std::sync::Arc;

use base::Blob;
use bytes::Bytes;
use meta::decode::Media;
use meta::proto::Encoder;
use meta::{Kind, Object, Status, Value, json};

use crate::Server;
use crate::authz::Authorized;
use crate::codec;
use crate::conversion;
use crate::http::negotiate::{Shape, content_type};
use crate::http::{Body, Response, body};
use crate::table;
use crate::verbs::list::{Filter, Page, Wanted, page};

use super::{Incomer, accept_of, wait_for};

/// Bytes put together for one frame of a list.
pub(super) const LIST_PART_BYTES: usize = 64 * 1024;

pub(super) async fn list(
    server: &Server,
    auth: &Authorized,
    kind: &Arc<Kind>,
    incomer: &Incomer,
) -> Result<Response, Status> {
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
        server.snapshots.keep(Some(kind.resource), &past, server.now());
    }
    // A page of what is chosen among converted objects may have fewer than were asked for: the next one goes on.
    let rough = filter.before_conversion(kind);
    let Page { revision, objects, next, remaining } = page(
        kind,
        &auth.info.namespace,
        rough.as_ref().unwrap_or(&filter),
        query,
        (&view, server.now()),
        &server.snapshots,
    )?;
    // Whoever holds a view while it waits makes the next commit copy what it changes.
    drop(view);
    let mut objects = conversion::shown(server, kind, objects).await?;
    let remaining = remaining.filter(|_| rough.is_none());
    if rough.is_some() {
        objects.retain(|object| filter.matches(kind, object));
    }
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
            let table = table::table(kind, values.iter(), server.now(), true, &metadata, accept.form);
            Ok(body::answer(200, content_type(accept.media), codec::write(accept, &table, None)))
        }
        (Shape::PartialMetadata, _) => {
            let items: Vec<Value> =
                objects.iter().map(|object| table::partial(&presented(object), accept.form)).collect();
            let list = json!({
                "apiVersion": (accept.form.api_version), "kind": "PartialObjectMetadataList", "metadata": metadata, "items": items,
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
