//! What aggregated servers say of themselves: their part of discovery, and whether they have a document of OpenAPI.
//!
//! Of an answer only the entry of the group and version that was registered is used. Servers that do not know aggregated
//! discovery are asked for the plain one, which says the same in other words.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::{Method, header};
use meta::{Value, json};

use super::{PATIENCE, Remote, Told, own_user};
use crate::Server;

/// Bytes of one document of discovery, and of the index of OpenAPI.
const DOCUMENT_MAX_BYTES: usize = 8 << 20;
const AGGREGATED: &str = "application/json;v=v2;g=apidiscovery.k8s.io;as=APIGroupDiscoveryList";
const JSON: &str = "application/json";

/// Asks a server what it serves.
///
/// # Errors
/// One sentence: what was asked, and why no answer came, or what is wrong with it.
pub async fn ask(server: &Server, remote: &Arc<Remote>) -> Result<Told, String> {
    let get = async |path: &str, accept: &str| {
        remote.link.ask(server, (Method::GET, path, accept), &own_user(), DOCUMENT_MAX_BYTES, PATIENCE).await
    };
    let all = get("/apis", AGGREGATED).await?;
    let of_type = all.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let is_aggregated = all.code == 200 && of_type.contains("APIGroupDiscoveryList") && of_type.contains("v=v2");
    let parse = |body: &[u8]| Value::parse(body).map_err(|error| format!("{} says no JSON: {error}", remote.name));
    // A server that is asked for itself may serve the group without listing it.
    let listed = if is_aggregated { entry(&parse(&all.body)?, &remote.group, &remote.version) } else { None };
    let discovery = match listed {
        Some(entry) => entry,
        None => {
            let plain = get(&remote.path(), JSON).await?;
            if plain.code != 200 {
                return Err(format!("Get \"{}{}\": {}", remote.link.place(), remote.path(), plain.code));
            }
            of_plain(&parse(&plain.body)?, &remote.version)
        }
    };
    // One without it is as good a server: there is nothing to explain then.
    let openapi = match get("/openapi/v3", JSON).await {
        Ok(index) if index.code == 200 => {
            Value::parse(&index.body).ok().and_then(|index| tag_of(&index, &remote.path()))
        }
        _ => None,
    };
    Ok(Told { discovery: Some(discovery), is_current: true, openapi })
}

/// What tells whether the document of a path changed, as the index of OpenAPI has it.
pub fn tag_of(index: &Value, path: &str) -> Option<String> {
    let entry = &index["paths"][path.trim_start_matches('/')];
    let place = entry["serverRelativeURL"].text();
    if place.is_empty() {
        return None;
    }
    Some(match place.split_once("hash=") {
        Some((_, hash)) if hash.bytes().all(|byte| byte.is_ascii_alphanumeric()) => hash.to_owned(),
        _ => format!("{:016X}", base::hash64(place.as_bytes())),
    })
}

/// The entry of a group and version in a list of aggregated discovery.
pub fn entry(list: &Value, group: &str, version: &str) -> Option<Value> {
    let group = list["items"].items().iter().find(|item| item.at(&["metadata", "name"]).text() == group)?;
    let found = group["versions"].items().iter().find(|entry| entry["version"].text() == version)?;
    let mut resources = found["resources"].items().to_vec();
    for resource in &mut resources {
        answer_kind(resource);
        let mut subresources = resource["subresources"].items().to_vec();
        subresources.iter_mut().for_each(answer_kind);
        if !subresources.is_empty() {
            resource.set(&["subresources"], subresources);
        }
    }
    Some(json!({"version": version, "resources": resources}))
}

/// Some clients fall over an entry that does not say what kind it answers with.
fn answer_kind(entry: &mut Value) {
    if entry["responseKind"].is_null() {
        entry.set(&["responseKind"], json!({"group": "", "version": "", "kind": ""}));
    }
}

/// The entry of aggregated discovery that says what a plain list of resources does.
pub fn of_plain(list: &Value, version: &str) -> Value {
    let mut by_name: BTreeMap<&str, Value> = BTreeMap::new();
    let kind = |told: &Value| json!({"group": (told["group"].text()), "version": (told["version"].text()), "kind": (told["kind"].text())});
    let scope = |told: &Value| if told["namespaced"].is_true() { "Namespaced" } else { "Cluster" };
    let all = list["resources"].items();
    let is_sub = |told: &&Value| told["name"].text().contains('/');
    for told in all.iter().filter(|told| !is_sub(told)) {
        let mut entry = json!({
            "resource": (told["name"].text()), "singularResource": (told["singularName"].text()),
            "scope": (scope(told)), "responseKind": (kind(told)), "verbs": (told["verbs"].items().to_vec()),
        });
        for words in ["shortNames", "categories"] {
            if !told[words].items().is_empty() {
                entry.set(&[words], told[words].items().to_vec());
            }
        }
        by_name.insert(told["name"].text(), entry);
    }
    for told in all.iter().filter(is_sub) {
        let Some((of, name)) = told["name"].text().split_once('/') else { continue };
        // A subresource may stand without what it is of.
        let parent = by_name.entry(of).or_insert_with(|| {
            let none: Vec<Value> = Vec::new();
            json!({
                "resource": of, "singularResource": "", "scope": (scope(told)), "verbs": none,
                "responseKind": {"group": "", "version": "", "kind": ""},
            })
        });
        let entry =
            json!({"subresource": name, "responseKind": (kind(told)), "verbs": (told["verbs"].items().to_vec())});
        parent.make(&["subresources"]).make_list().push(entry);
    }
    json!({"version": version, "resources": (by_name.into_values().collect::<Vec<_>>())})
}

/// The resources of a remote that stand in namespaces and of which `verb` is served, by plural.
pub fn namespaced(told: &Told, verb: &str) -> Vec<String> {
    let resources = told.discovery.as_ref().map(|entry| entry["resources"].items()).unwrap_or_default().iter();
    let fits = resources.filter(|entry| {
        entry["scope"].text() == "Namespaced" && entry["verbs"].items().iter().any(|word| word.text() == verb)
    });
    fits.map(|entry| entry["resource"].text().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_and_aggregated_discovery_say_the_same() {
        let plain = json!({"groupVersion": "a.b/v1", "resources": [
            {"name": "cats/status", "singularName": "", "namespaced": true, "kind": "Cat", "verbs": ["get"]},
            {"name": "cats", "singularName": "cat", "namespaced": true, "kind": "Cat", "verbs": ["get", "delete"], "shortNames": ["c"]},
            {"name": "dogs/bark", "namespaced": false, "kind": "Bark", "group": "a.c", "version": "v2", "verbs": ["create"]},
        ]});
        let made = of_plain(&plain, "v1");
        let cats = &made["resources"][0];
        assert_eq!((cats["resource"].text(), cats["scope"].text()), ("cats", "Namespaced"));
        assert_eq!(cats["responseKind"], json!({"group": "", "version": "", "kind": "Cat"}));
        assert_eq!(cats["shortNames"], json!(["c"]));
        assert_eq!(cats["subresources"][0]["subresource"].text(), "status");
        let dogs = &made["resources"][1];
        assert_eq!((dogs["resource"].text(), dogs["verbs"].items().len()), ("dogs", 0));
        assert_eq!(dogs["subresources"][0]["responseKind"], json!({"group": "a.c", "version": "v2", "kind": "Bark"}));
        let list = json!({"items": [
            {"metadata": {"name": "x.y"}, "versions": [{"version": "v1", "resources": [{"resource": "secrets"}]}]},
            {"metadata": {"name": "a.b"}, "versions": [made]},
        ]});
        assert_eq!(entry(&list, "a.b", "v1").unwrap(), list["items"][1]["versions"][0]);
        assert!(entry(&list, "a.b", "v2").is_none());
        let told = Told { discovery: entry(&list, "a.b", "v1"), ..Told::default() };
        assert_eq!((namespaced(&told, "delete"), namespaced(&told, "watch")), (vec!["cats".to_owned()], Vec::new()));
        // What is said is not trusted to have a form.
        for odd in
            [json!({}), json!({"items": 1i64}), json!({"items": [{"metadata": {"name": "a.b"}, "versions": "v1"}]})]
        {
            assert!(entry(&odd, "a.b", "v1").is_none());
        }
        assert_eq!(of_plain(&json!([]), "v1"), json!({"version": "v1", "resources": []}));
    }
}
