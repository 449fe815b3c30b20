//! `/openapi/v2` and `/openapi/v3`: the schema table as OpenAPI documents, made when first asked for.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http::header;
use meta::openapi::{Served, gnostic, v2, v3, v3_index};
use meta::{Kind, Status};

use crate::dispatch::Incomer;
use crate::http::{Response, body};
use crate::registry::Registry;

/// Documents of one registry, by path; `""` is v2, and v2 in protobuf stands under its media type.
#[derive(Default)]
pub struct Documents {
    made: Mutex<BTreeMap<String, Document>>,
}

#[derive(Clone)]
struct Document {
    text: Bytes,
    tag: String,
}

fn served(kind: &Kind) -> Served<'_> {
    Served { names: &kind.names, verbs: &kind.verbs, subresources: &kind.subresources, custom: kind.rules.openapi() }
}

/// The path of a group and version: `api/v1`, `apis/apps/v1`.
fn path_of(kind: &Kind) -> String {
    match kind.names.group.as_str() {
        "" => format!("api/{}", kind.names.version),
        group => format!("apis/{group}/{}", kind.names.version),
    }
}

impl Documents {
    fn get(&self, path: &str, make: impl FnOnce() -> Vec<u8>) -> Document {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(document) = made.get(path) {
            return document.clone();
        }
        let text: Bytes = make().into();
        let document = Document { tag: format!("{:016X}", base::hash64(&text)), text };
        made.insert(path.to_owned(), document.clone());
        document
    }

    fn group_version(&self, registry: &Registry, path: &str) -> Option<Document> {
        let kinds: Vec<&Arc<Kind>> = registry.kinds().iter().filter(|kind| path_of(kind) == path).collect();
        if kinds.is_empty() {
            return None;
        }
        Some(self.get(path, || {
            let served: Vec<Served<'_>> = kinds.iter().map(|kind| served(kind)).collect();
            v3(&served, api::schema::builtin(), &api::descriptions::description, VERSION).to_json()
        }))
    }
}

const VERSION: &str = "v1.37.0";
/// The form of v2 that older clients ask for.
const PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// The v2 document of all that is served.
fn whole(registry: &Registry) -> meta::Value {
    let served: Vec<Served<'_>> = registry.kinds().iter().map(|kind| served(kind)).collect();
    v2(&served, api::schema::builtin(), &api::descriptions::description, VERSION)
}

/// Answers a path below `/openapi`.
pub fn answer(registry: &Registry, parts: &[&str], incomer: &Incomer) -> Result<Response, Status> {
    let documents = &registry.documents;
    let as_protobuf = matches!(parts, ["openapi", "v2"])
        && incomer.header(header::ACCEPT).is_some_and(|accept| accept.contains("proto-openapi.spec.v2"));
    let content_type = if as_protobuf { PROTOBUF } else { "application/json" };
    let document = match parts {
        ["openapi", "v2"] if as_protobuf => documents.get(PROTOBUF, || gnostic::encode(&whole(registry))),
        ["openapi", "v2"] => documents.get("", || whole(registry).to_json()),
        ["openapi", "v3"] => {
            let mut paths: Vec<String> = registry.kinds().iter().map(|kind| path_of(kind)).collect();
            paths.sort();
            paths.dedup();
            let hashed = paths.into_iter().filter_map(|path| {
                let tag = documents.group_version(registry, &path)?.tag;
                Some((path, tag))
            });
            return Ok(body::json(200, &v3_index(&hashed.collect::<Vec<_>>())));
        }
        ["openapi", "v3", path @ ..] => match documents.group_version(registry, &path.join("/")) {
            Some(document) => document,
            None => return Ok(body::text(404, "404 page not found\n")),
        },
        _ => return Ok(body::text(404, "404 page not found\n")),
    };
    let tag = format!("\"{}\"", document.tag);
    if incomer.header(header::IF_NONE_MATCH) == Some(tag.as_str()) {
        return Ok(body::answer(304, content_type, Bytes::new()));
    }
    let mut response = body::answer(200, content_type, document.text);
    if let Ok(tag) = header::HeaderValue::from_str(&tag) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    Ok(response)
}
