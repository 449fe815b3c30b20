//! `/openapi/v2` and `/openapi/v3`: the schema table as OpenAPI documents, made when first asked for.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use base::Tree;
use bytes::Bytes;
use http::header;
use meta::openapi::{Served, gnostic, v2, v3, v3_index};
use meta::{Kind, Status};

use crate::dispatch::Incomer;
use crate::http::{Response, body};
use crate::registry::{Entry, Registry};

/// Documents of one registry, by path; `""` is v2, and v2 in protobuf stands under its media type. They are made when
/// they are asked for, and another registry takes over those that are the same there.
#[derive(Default)]
pub struct Documents {
    made: Mutex<Tree<String, Document>>,
    /// What tells whether a document changed, by path: the index has all of these, and needs no document.
    tags: Mutex<Tree<String, String>>,
}

impl Clone for Documents {
    fn clone(&self) -> Documents {
        let made = self.made.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let tags = self.tags.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Documents { made: Mutex::new(made), tags: Mutex::new(tags) }
    }
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
fn path_of(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

/// The kinds behind a path.
fn kinds_at<'a>(registry: &'a Registry, path: &str) -> Vec<&'a Arc<Entry>> {
    let version = path.strip_prefix("apis/").and_then(|path| path.rsplit_once('/'));
    let of = version.or_else(|| path.strip_prefix("api/").map(|version| ("", version)));
    of.map(|(group, version)| registry.in_version(group, version)).unwrap_or_default()
}

impl Documents {
    /// Forgets what a change of a group's version makes untrue.
    pub fn forget(&mut self, group: &str, version: &str) {
        let path = path_of(group, version);
        let made = self.made.get_mut().unwrap_or_else(PoisonError::into_inner);
        for path in [path.as_str(), "", PROTOBUF] {
            made.remove(path);
        }
        self.tags.get_mut().unwrap_or_else(PoisonError::into_inner).remove(path.as_str());
    }

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

    /// What stands for the document at a path in the index: it is another one whenever the document is.
    fn tag(&self, registry: &Registry, path: &str) -> String {
        let mut tags = self.tags.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tag) = tags.get(path) {
            return tag.clone();
        }
        // The schema of what is built in changes with the version only.
        let mut said = VERSION.as_bytes().to_vec();
        for kind in kinds_at(registry, path).into_iter().map(|entry| entry.kind()) {
            said.extend_from_slice(format!("{:?}{:?}{:?}", kind.names, kind.verbs, kind.subresources).as_bytes());
            if let Some(schema) = kind.rules.openapi() {
                schema.write_json(&mut said);
            }
        }
        let tag = format!("{:016X}", base::hash64(&said));
        tags.insert(path.to_owned(), tag.clone());
        tag
    }

    fn group_version(&self, registry: &Registry, path: &str) -> Option<Document> {
        let kinds = kinds_at(registry, path);
        if kinds.is_empty() {
            return None;
        }
        let document = self.get(path, || {
            let served: Vec<Served<'_>> = kinds.iter().map(|entry| served(entry.kind())).collect();
            v3(&served, api::schema::builtin(), &api::descriptions::description, VERSION).to_json()
        });
        Some(Document { tag: self.tag(registry, path), ..document })
    }
}

const VERSION: &str = "v1.37.0";
/// The form of v2 that older clients ask for.
const PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// The v2 document of all that is served.
fn whole(registry: &Registry) -> meta::Value {
    let served: Vec<Served<'_>> = registry.entries().map(|entry| served(entry.kind())).collect();
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
            let own = registry.entries().map(|entry| (&entry.head.names.group, &entry.head.names.version));
            let own: BTreeSet<_> = own.filter(|(group, version)| registry.remote(group, version).is_none()).collect();
            let hashed = own.into_iter().map(|(group, version)| path_of(group, version));
            let hashed = hashed.map(|path| {
                let tag = documents.tag(registry, &path);
                (path, tag)
            });
            // Those of other servers are had from them.
            let others = registry.remotes.iter().filter_map(|(_, remote)| {
                let tag = remote.told().openapi.clone()?;
                Some((path_of(&remote.group, &remote.version), tag))
            });
            let hashed = hashed.chain(others);
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
