//! What the server serves, told to clients: plain and aggregated discovery.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use meta::{Head, Str, Value, Verb, json};

use crate::aggregation::registration;
use crate::registry::Registry;

/// `/api`.
pub fn core_versions(address: &str) -> Value {
    json!({
        "kind": "APIVersions", "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": address}],
    })
}

fn group(name: &str, versions: &[Str]) -> Value {
    let versions: Vec<Value> = versions
        .iter()
        .map(|version| json!({"groupVersion": (format!("{name}/{version}")), "version": version}))
        .collect();
    let preferred = versions.first().cloned().unwrap_or_default();
    json!({"name": name, "preferredVersion": preferred, "versions": versions})
}

/// Of groups and versions that are built in. Core comes first anyway, under a path of its own.
pub const GROUP_PRIORITY: i64 = 16_700;
pub const VERSION_PRIORITY: i64 = 15;

/// The groups with their versions, those of other servers among them: by priority, and else in the order in which they
/// are served.
fn served(registry: &Registry) -> Vec<(Str, Vec<Str>)> {
    let mut groups = registry.groups();
    if registry.remotes.is_empty() {
        return groups;
    }
    let built_in: BTreeSet<Str> = registry.of("").map(|entry| entry.head.names.group.clone()).collect();
    for (_, remote) in registry.remotes.iter() {
        let at = groups.iter().position(|(group, _)| *group == remote.group).unwrap_or_else(|| {
            groups.push((remote.group.clone(), Vec::new()));
            groups.len() - 1
        });
        if !groups[at].1.contains(&remote.version) {
            groups[at].1.push(remote.version.clone());
        }
    }
    let priority = |group: &Str, version: &Str| match registry.remote(group, version) {
        Some(remote) => (remote.group_priority, remote.version_priority),
        None if built_in.contains(group) => (GROUP_PRIORITY, VERSION_PRIORITY),
        None => (registration::GROUP_PRIORITY, registration::VERSION_PRIORITY),
    };
    for (group, versions) in &mut groups {
        versions.sort_by_key(|version| Reverse(priority(group, version).1));
    }
    groups.sort_by_key(|(group, versions)| {
        Reverse(versions.iter().map(|version| priority(group, version).0).max().unwrap_or(0))
    });
    groups
}

/// `/apis`.
pub fn groups(registry: &Registry) -> Value {
    let named = served(registry).into_iter().filter(|(name, _)| !name.is_empty());
    let groups: Vec<Value> = named.map(|(name, versions)| group(&name, &versions)).collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

/// `/apis/GROUP`.
pub fn one_group(registry: &Registry, name: &str) -> Option<Value> {
    let (name, versions) = served(registry).into_iter().find(|(group, _)| group == name && !name.is_empty())?;
    let mut group = group(&name, &versions);
    group.set(&["kind"], "APIGroup");
    group.set(&["apiVersion"], "v1");
    Some(group)
}

/// `/api/v1`, `/apis/GROUP/VERSION`.
pub fn resources(registry: &Registry, group: &str, version: &str) -> Option<Value> {
    let kinds = registry.in_version(group, version);
    let first = &kinds.first()?.head;
    let mut resources = Vec::new();
    for kind in kinds.iter().map(|entry| &entry.head) {
        let names = &kind.names;
        let mut entry = json!({
            "name": (&names.plural), "singularName": (&names.singular), "namespaced": (names.namespaced),
            "kind": (&names.kind), "verbs": (verbs(&kind.verbs)),
        });
        if !names.short.is_empty() {
            entry.set(&["shortNames"], words(&names.short));
        }
        if !names.categories.is_empty() {
            entry.set(&["categories"], words(&names.categories));
        }
        if kind.verbs.contains(&Verb::Create) && kind.verbs.len() > 1 {
            entry.set(&["storageVersionHash"], storage_hash(registry, kind));
        }
        resources.push(entry);
        for subresource in &kind.subresources {
            let (group, version, of) = subresource.body;
            let mut entry = json!({
                "name": (format!("{}/{}", names.plural, subresource.name)), "singularName": "",
                "namespaced": (names.namespaced), "kind": (if of.is_empty() { &names.kind } else { of }),
                "verbs": (verbs(subresource.verbs)),
            });
            if !version.is_empty() {
                entry.set(&["group"], group);
                entry.set(&["version"], version);
            }
            resources.push(entry);
        }
    }
    resources.sort_by(|a, b| a["name"].text().cmp(b["name"].text()));
    Some(json!({
        "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": (first.names.api_version()),
        "resources": resources,
    }))
}

fn words(words: &[Str]) -> Value {
    words.iter().map(Value::from).collect::<Vec<_>>().into()
}

fn verbs(verbs: &[Verb]) -> Value {
    let mut words: Vec<&str> = verbs.iter().map(|verb| verb.word()).collect();
    words.sort_unstable();
    words.into_iter().map(Value::from).collect::<Vec<_>>().into()
}

/// Tells clients when the stored form changes.
fn storage_hash(registry: &Registry, kind: &Head) -> String {
    use base64::Engine;
    /// As many bytes as upstream takes.
    const BYTES: usize = 8;
    let stored = registry.stored(kind.resource);
    let names = stored.map_or(&kind.names, |stored| &stored.names);
    let text = format!("{}/{}/{}", names.group, names.version, names.kind);
    let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
    base64::engine::general_purpose::STANDARD.encode(&digest.as_ref()[..BYTES])
}

/// The aggregated form of `/api` (`core`) or `/apis`.
pub fn aggregated(registry: &Registry, core: bool) -> Value {
    let groups = served(registry).into_iter().filter(|(name, _)| name.is_empty() == core);
    let items: Vec<Value> = groups
        .map(|(name, versions)| {
            let versions: Vec<Value> =
                versions.iter().map(|version| aggregated_version(registry, &name, version)).collect();
            let metadata = if name.is_empty() { Value::map() } else { json!({"name": (&name)}) };
            json!({"metadata": metadata, "versions": versions})
        })
        .collect();
    json!({"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items})
}

fn aggregated_version(registry: &Registry, group: &str, version: &str) -> Value {
    if let Some(remote) = registry.remote(group, version) {
        let told = remote.told();
        let mut entry = told.discovery.clone().unwrap_or_else(|| json!({"version": version}));
        entry.set(&["freshness"], if told.is_current { "Current" } else { "Stale" });
        return entry;
    }
    let kinds = registry.in_version(group, version).into_iter();
    let mut resources: Vec<Value> = kinds.map(|entry| aggregated_kind(&entry.head)).collect();
    resources.sort_by(|a, b| a["resource"].text().cmp(b["resource"].text()));
    json!({"version": version, "freshness": "Current", "resources": resources})
}

fn aggregated_kind(kind: &Head) -> Value {
    let names = &kind.names;
    let mut entry = json!({
        "resource": (&names.plural), "singularResource": (&names.singular), "verbs": (verbs(&kind.verbs)),
        "scope": (if names.namespaced { "Namespaced" } else { "Cluster" }),
        "responseKind": {"group": "", "version": "", "kind": (&names.kind)},
    });
    if !names.short.is_empty() {
        entry.set(&["shortNames"], words(&names.short));
    }
    if !names.categories.is_empty() {
        entry.set(&["categories"], words(&names.categories));
    }
    let mut subresources: Vec<Value> = kind
        .subresources
        .iter()
        .map(|subresource| {
            let (group, version, of) = subresource.body;
            let of = if of.is_empty() { names.kind.as_str() } else { of };
            json!({
                "subresource": (subresource.name), "verbs": (verbs(subresource.verbs)),
                "responseKind": {"group": group, "version": version, "kind": of},
            })
        })
        .collect();
    if !subresources.is_empty() {
        subresources.sort_by(|a, b| a["subresource"].text().cmp(b["subresource"].text()));
        entry.set(&["subresources"], subresources);
    }
    entry
}
