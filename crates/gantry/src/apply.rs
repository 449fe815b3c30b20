//! Applies manifests at start (`gantry up --apply`), by server-side apply through the one pipeline.

use std::path::Path;
use std::sync::Arc;

use client::Request;
use meta::Value;
use meta::decode::{Media, read};
use server::Server;
use server::bootstrap::split_version;
use server::local;

use crate::error::Error;

/// Applies all documents of a file, in order.
pub async fn file(server: &Arc<Server>, path: &Path) -> Result<(), Error> {
    let failed = |why: &dyn std::fmt::Display| Error::doing(format!("apply {}", path.display()), why);
    let text = std::fs::read_to_string(path).map_err(Error::file("read the manifest", path))?;
    for document in documents(&text) {
        let of = api::schema::meta_v1("Status");
        let value = read(document.as_bytes(), Media::Yaml, of, &mut Vec::new()).map_err(|error| failed(&error))?;
        let objects = match value["kind"].text() {
            "List" => value["items"].items().to_vec(),
            "" => continue,
            _ => vec![value],
        };
        for object in objects {
            one(server, object).await.map_err(|error| failed(&error))?;
        }
    }
    Ok(())
}

/// The documents of a YAML stream.
fn documents(text: &str) -> Vec<String> {
    let mut all = vec![String::new()];
    for line in text.lines() {
        if line.trim_end() == "---" {
            all.push(String::new());
        } else if let Some(last) = all.last_mut() {
            last.push_str(line);
            last.push('\n');
        }
    }
    all.retain(|document| document.lines().any(|line| !line.trim().is_empty() && !line.trim_start().starts_with('#')));
    all
}

async fn one(server: &Arc<Server>, mut object: Value) -> Result<(), String> {
    let (group, version) = split_version(object["apiVersion"].text());
    let registry = server.storage.registry();
    let kind = registry
        .by_kind(group, version, object["kind"].text())
        .ok_or_else(|| format!("no such kind: {} {}", object["apiVersion"].text(), object["kind"].text()))?;
    let name = object.at(&["metadata", "name"]).text().to_owned();
    if kind.names.namespaced && object.at(&["metadata", "namespace"]).text().is_empty() {
        object.set(&["metadata", "namespace"], "default");
    }
    let request = Request::apply(kind.resource, object, "gantry-up");
    local::call(server, &local::system(), request).await.map_err(|status| format!("{name}: {status}"))?;
    Ok(())
}
