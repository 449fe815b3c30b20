//! The `scale` subresource: one form for everything that has replicas.
//!
//! Where the replicas, their count and the selector stand is the same for all built-in kinds; a custom resource says it
//! in its definition.

use std::sync::Arc;

use http::header;
use meta::{Errors, Kind, Labels, Object, Selector, Status, Str, Value, Verb, json};

use crate::Server;
use crate::authz::Authorized;
use crate::codec;
use crate::conversion;
use crate::dispatch::{Incomer, accept_of, no_such_resource};
use crate::http::negotiate::{content, content_type};
use crate::http::{Response, body};
use crate::verbs::Call;
use crate::verbs::options::WriteOptions;
use crate::verbs::patch::patch_type;
use crate::verbs::update::{Edit, Edited, change};

/// Where in an object its scale stands; paths as lists of members.
pub struct Places {
    pub spec: Vec<Str>,
    pub status: Vec<Str>,
    pub selector: Option<Vec<Str>>,
}

fn places(kind: &Kind) -> Places {
    let path = |text: &str| text.split('.').map(Str::from).collect::<Vec<_>>();
    match kind.rules.scale_paths() {
        Some((spec, status, selector)) => {
            Places { spec: path(spec), status: path(status), selector: selector.map(path) }
        }
        None => Places {
            spec: path("spec.replicas"),
            status: path("status.replicas"),
            selector: Some(path("spec.selector")),
        },
    }
}

fn at<'a>(value: &'a Value, path: &[Str]) -> &'a Value {
    path.iter().fold(value, |value, key| &value[key.as_str()])
}

/// The scale of an object.
pub fn scale_of(kind: &Kind, object: &Value) -> Value {
    let places = places(kind);
    let meta = &object["metadata"];
    let mut metadata = json!({});
    for key in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = meta.get(key) {
            metadata.set(&[key], value.clone());
        }
    }
    let mut spec = json!({});
    match at(object, &places.spec).as_int() {
        Some(replicas) if replicas != 0 => spec.set(&["replicas"], replicas),
        _ => {}
    }
    let mut status = json!({"replicas": (at(object, &places.status).as_int().unwrap_or(0))});
    if let Some(path) = &places.selector {
        let selector = at(object, path);
        let text = match selector {
            Value::Str(text) => text.to_string(),
            Value::Map(map) if map.contains("matchLabels") || map.contains("matchExpressions") => {
                Selector::of(selector).to_string()
            }
            Value::Map(_) => {
                let labels = Labels::of(selector);
                labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
            }
            _ => String::new(),
        };
        if !text.is_empty() {
            status.set(&["selector"], text);
        }
    }
    json!({"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": metadata, "spec": spec, "status": status})
}

enum Body {
    Whole(Value),
    Patch(client::PatchType, Value),
}

struct Rescale {
    body: Body,
}

impl Edit for Rescale {
    fn apply(&self, _: &Server, call: &Call<'_>, old: &Value) -> Result<Edited, Status> {
        let scale = match &self.body {
            Body::Whole(scale) => scale.clone(),
            Body::Patch(kind, patch) => {
                let of = api::schema::builtin().kind("autoscaling", "v1", "Scale").ok_or_else(no_such_resource)?;
                let old_scale = scale_of(call.kind, old);
                let mut patched = codec::patched_as(of, *kind, &old_scale, patch)?;
                let unknown = meta::decode::conform(&mut patched, of, call.options.validation, &[]);
                unknown.map_err(|error| error.status("v1", "Scale"))?;
                patched
            }
        };
        let replicas = scale.at(&["spec", "replicas"]).as_int().unwrap_or(0);
        if replicas < 0 {
            let mut errors = Errors::default();
            let path = meta::Path::ROOT;
            let path = path.field("spec");
            errors.invalid_value(&path.field("replicas"), replicas, "must be greater than or equal to 0");
            return Err(Status::invalid("autoscaling", "Scale", &call.auth.info.name, &errors));
        }
        let mut value = old.clone();
        let path = places(call.kind).spec;
        let path: Vec<&str> = path.iter().map(Str::as_str).collect();
        value.set(&path, replicas);
        for key in ["resourceVersion", "uid"] {
            match scale.at(&["metadata", key]).text() {
                "" => {}
                text => value.set(&["metadata", key], text),
            }
        }
        Ok(Edited { value, warnings: Vec::new(), owned: false })
    }

    fn is_exact(&self) -> bool {
        matches!(&self.body, Body::Whole(scale) if !scale.at(&["metadata", "resourceVersion"]).text().is_empty())
    }
}

pub async fn handle(
    server: &Arc<Server>,
    auth: &Authorized,
    kind: &Arc<Kind>,
    verb: Verb,
    mut incomer: Incomer,
) -> Result<Response, Status> {
    let accept = accept_of(&incomer, false, false)?;
    let of = api::schema::builtin().kind("autoscaling", "v1", "Scale").ok_or_else(no_such_resource)?;
    let respond = |value: &Value| body::answer(200, content_type(accept.media), codec::write(accept, value, Some(of)));
    if verb == Verb::Get {
        let object: Object = server
            .one(kind.resource, &auth.info.namespace, &auth.info.name)
            .ok_or_else(|| Status::not_found(&kind.names.group, &kind.names.plural, &auth.info.name))?;
        let object = conversion::shown_one(server, kind, &object).await?;
        return Ok(respond(&scale_of(kind, &object.value())));
    }
    let (body, options) = if verb == Verb::Patch {
        let patch_kind = patch_type(incomer.header(header::CONTENT_TYPE), kind)?;
        let is_apply = patch_kind == client::PatchType::Apply;
        let options = WriteOptions::of(&incomer.query, "PatchOptions", incomer.user_agent(), is_apply)?;
        let bytes = incomer.body().await?;
        let patch = codec::read_patch(&bytes, is_apply, options.validation)?;
        // Applying a scale is merging it: it has no lists.
        let patch_kind = if is_apply { client::PatchType::Merge } else { patch_kind };
        (Body::Patch(patch_kind, patch), options)
    } else {
        let options = WriteOptions::of(&incomer.query, "UpdateOptions", incomer.user_agent(), false)?;
        let media = content(incomer.header(header::CONTENT_TYPE))?;
        let bytes = incomer.body().await?;
        let (scale, _) = codec::decode_as(of, "autoscaling/v1", "Scale", media, &bytes, options.validation)?;
        let name = scale.at(&["metadata", "name"]).text();
        if name != auth.info.name {
            return Err(Status::bad_request(format!(
                "the name of the object ({name}) does not match the name on the URL ({})",
                auth.info.name
            )));
        }
        (Body::Whole(scale), options)
    };
    let call = Call { auth, kind, options: &options, now: server.now() };
    let outcome = change(server, &call, &Rescale { body }).await?;
    Ok(respond(&scale_of(kind, &outcome.value)))
}
