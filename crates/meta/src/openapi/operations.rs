//! The paths of a document.

use super::types::Types;
use super::{Form, Served};
use crate::json;
use crate::kind::{Subresource, Verb};
use crate::value::{Map, Value};

const JSON: [&str; 3] = ["application/json", "application/vnd.kubernetes.protobuf", "application/yaml"];
const WATCH: [&str; 2] = ["application/json;stream=watch", "application/vnd.kubernetes.protobuf;stream=watch"];
const PATCHES: [&str; 4] = [
    "application/apply-patch+yaml",
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
];

/// Adds the paths of a resource.
pub(super) fn paths(served: &Served<'_>, form: Form, types: &mut Types<'_>, paths: &mut Map) {
    let names = served.names;
    let (object, list) = types.resource(served);
    let root = match names.group.as_str() {
        "" => format!("/api/{}", names.version),
        group => format!("/apis/{group}/{}", names.version),
    };
    let (scope, plural) = (if names.namespaced { "/namespaces/{namespace}" } else { "" }, &names.plural);
    let mut writer = Writer { served, form, types, object, list };
    let collection: [(&str, Verb, &str); 3] =
        [("get", Verb::List, "list"), ("post", Verb::Create, "create"), ("delete", Verb::DeleteCollection, "delete")];
    writer.path(&format!("{root}{scope}/{plural}"), &collection, "", None, paths);
    let item: [(&str, Verb, &str); 4] = [
        ("get", Verb::Get, "read"),
        ("put", Verb::Update, "replace"),
        ("patch", Verb::Patch, "patch"),
        ("delete", Verb::Delete, "delete"),
    ];
    writer.path(&format!("{root}{scope}/{plural}/{{name}}"), &item, "", None, paths);
    if names.namespaced {
        let all = [("get", Verb::List, "list")];
        writer.path(&format!("{root}/{plural}"), &all, "ForAllNamespaces", None, paths);
    }
    for subresource in served.subresources {
        let path = format!("{root}{scope}/{plural}/{{name}}/{}", subresource.name);
        let verbs: [(&str, Verb, &str); 4] = [
            ("get", Verb::Get, "read"),
            ("put", Verb::Update, "replace"),
            ("patch", Verb::Patch, "patch"),
            ("post", Verb::Create, "create"),
        ];
        writer.path(&path, &verbs, &title(subresource.name), Some(subresource), paths);
    }
}

fn title(name: &str) -> String {
    let mut chars = name.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

struct Writer<'a, 'b, 'c> {
    served: &'a Served<'a>,
    form: Form,
    types: &'c mut Types<'b>,
    /// References to the type of the objects and of their lists.
    object: Value,
    list: Value,
}

impl Writer<'_, '_, '_> {
    fn path(
        &mut self,
        path: &str,
        operations: &[(&str, Verb, &str)],
        suffix: &str,
        subresource: Option<&Subresource>,
        paths: &mut Map,
    ) {
        let verbs = subresource.map_or(self.served.verbs, |subresource| subresource.verbs);
        let mut item = Map::new();
        for (method, verb, word) in operations.iter().filter(|(_, verb, _)| verbs.contains(verb)) {
            item.insert(*method, self.operation(path, *verb, word, suffix, subresource));
        }
        if item.is_empty() {
            return;
        }
        let mut parameters = Vec::new();
        for name in ["name", "namespace"] {
            if path.contains(&format!("{{{name}}}")) {
                parameters.push(self.parameter(name, "path", "string"));
            }
        }
        parameters.push(self.parameter("pretty", "query", "string"));
        item.insert("parameters", parameters);
        paths.insert(path, item);
    }

    fn operation(
        &mut self,
        path: &str,
        verb: Verb,
        word: &str,
        suffix: &str,
        subresource: Option<&Subresource>,
    ) -> Value {
        let names = self.served.names;
        let group = group_title(&names.group);
        let scope = if path.contains("{namespace}") { "Namespaced" } else { "" };
        let collection = if verb == Verb::DeleteCollection { "Collection" } else { "" };
        let (version, kind) = (title(&names.version), &names.kind);
        let tag = format!("{}{}_{}", group[..1].to_lowercase(), &group[1..], names.version);
        let own = (names.group.as_str(), names.version.as_str(), names.kind.as_str());
        // What a subresource leaves empty is its parent's.
        let (gvk_group, gvk_version, gvk_kind) = match subresource.map(|subresource| subresource.body) {
            None | Some((_, _, "")) => own,
            Some(("", "", kind)) => (own.0, own.1, kind),
            Some(body) => body,
        };
        let answer = match verb {
            Verb::List => self.list.clone(),
            Verb::Delete | Verb::DeleteCollection => self.types.meta("Status"),
            _ if gvk_kind == own.2 => self.object.clone(),
            // Streams (`exec` …) have no type.
            _ => self.types.kind(gvk_group, gvk_version, gvk_kind).unwrap_or_else(|| json!({"type": "string"})),
        };
        let mut operation = json!({
            "operationId": (format!("{word}{group}{version}{collection}{scope}{kind}{suffix}")),
            "tags": [tag],
            "x-kubernetes-action": (action(verb)),
            "x-kubernetes-group-version-kind": {"group": gvk_group, "version": gvk_version, "kind": gvk_kind},
        });
        let mut parameters: Vec<Value> =
            query(verb).iter().map(|(name, of)| self.parameter(name, "query", of)).collect();
        self.body(verb, &answer, &mut operation, &mut parameters);
        self.answers(verb, answer, &mut operation);
        if !parameters.is_empty() {
            operation.set(&["parameters"], parameters);
        }
        operation
    }

    fn body(&mut self, verb: Verb, answer: &Value, operation: &mut Value, parameters: &mut Vec<Value>) {
        let (schema, media): (Value, &[&str]) = match verb {
            Verb::Create | Verb::Update => (answer.clone(), &["*/*"]),
            Verb::Patch => (self.types.patch(), &PATCHES),
            Verb::Delete | Verb::DeleteCollection => (self.types.meta("DeleteOptions"), &["*/*"]),
            _ => return,
        };
        let required = !matches!(verb, Verb::Delete | Verb::DeleteCollection);
        match self.form {
            Form::V2 => {
                let mut body = json!({"in": "body", "name": "body", "schema": schema});
                if required {
                    body.set(&["required"], true);
                }
                parameters.push(body);
                operation.set(&["consumes"], media.iter().map(|media| Value::from(*media)).collect::<Vec<_>>());
            }
            Form::V3 => {
                let content: Map = media.iter().map(|media| (*media, json!({"schema": (schema.clone())}))).collect();
                operation.set(&["requestBody", "content"], content);
                if required {
                    operation.set(&["requestBody", "required"], true);
                }
            }
        }
    }

    fn answers(&self, verb: Verb, schema: Value, operation: &mut Value) {
        let mut media = JSON.to_vec();
        if matches!(verb, Verb::List) {
            media.extend(WATCH);
        }
        let codes: &[&str] = match verb {
            Verb::Create => &["200", "201", "202"],
            Verb::Update | Verb::Patch => &["200", "201"],
            Verb::Delete => &["200", "202"],
            _ => &["200"],
        };
        let mut responses = Map::new();
        for code in codes {
            let words = if *code == "200" {
                "OK"
            } else if *code == "201" {
                "Created"
            } else {
                "Accepted"
            };
            let mut response = json!({"description": words});
            match self.form {
                Form::V2 => response.set(&["schema"], schema.clone()),
                Form::V3 => {
                    let content: Map =
                        media.iter().map(|media| (*media, json!({"schema": (schema.clone())}))).collect();
                    response.set(&["content"], content);
                }
            }
            responses.insert(*code, response);
        }
        responses.insert("401", json!({"description": "Unauthorized"}));
        operation.set(&["responses"], responses);
        if self.form == Form::V2 {
            operation.set(&["produces"], media.iter().map(|media| Value::from(*media)).collect::<Vec<_>>());
            operation.set(&["schemes"], json!(["https"]));
        }
    }

    fn parameter(&self, name: &str, place: &str, of: &str) -> Value {
        let mut parameter = json!({"in": place, "name": name});
        if place == "path" {
            parameter.set(&["required"], true);
        }
        match self.form {
            Form::V2 => {
                parameter.set(&["type"], of);
                parameter.set(&["uniqueItems"], true);
            }
            Form::V3 => parameter.set(&["schema"], json!({"type": of, "uniqueItems": true})),
        }
        parameter
    }
}

/// `RbacAuthorization` for `rbac.authorization.k8s.io`.
fn group_title(group: &str) -> String {
    match group {
        "" => "Core".to_owned(),
        group => group.trim_end_matches(".k8s.io").split('.').map(title).collect(),
    }
}

fn action(verb: Verb) -> &'static str {
    match verb {
        Verb::Get => "get",
        Verb::List => "list",
        Verb::Watch => "watch",
        Verb::Create => "post",
        Verb::Update => "put",
        Verb::Patch => "patch",
        Verb::Delete => "delete",
        Verb::DeleteCollection => "deletecollection",
    }
}

/// The query parameters of a verb.
fn query(verb: Verb) -> &'static [(&'static str, &'static str)] {
    match verb {
        Verb::List => &[
            ("allowWatchBookmarks", "boolean"),
            ("continue", "string"),
            ("fieldSelector", "string"),
            ("labelSelector", "string"),
            ("limit", "integer"),
            ("resourceVersion", "string"),
            ("resourceVersionMatch", "string"),
            ("sendInitialEvents", "boolean"),
            ("timeoutSeconds", "integer"),
            ("watch", "boolean"),
        ],
        Verb::Create | Verb::Update => {
            &[("dryRun", "string"), ("fieldManager", "string"), ("fieldValidation", "string")]
        }
        Verb::Patch => {
            &[("dryRun", "string"), ("fieldManager", "string"), ("fieldValidation", "string"), ("force", "boolean")]
        }
        Verb::Delete => &[
            ("dryRun", "string"),
            ("gracePeriodSeconds", "integer"),
            ("ignoreStoreReadErrorWithClusterBreakingPotential", "boolean"),
            ("orphanDependents", "boolean"),
            ("propagationPolicy", "string"),
        ],
        Verb::DeleteCollection => &[
            ("continue", "string"),
            ("dryRun", "string"),
            ("fieldSelector", "string"),
            ("gracePeriodSeconds", "integer"),
            ("labelSelector", "string"),
            ("limit", "integer"),
            ("orphanDependents", "boolean"),
            ("propagationPolicy", "string"),
            ("resourceVersion", "string"),
            ("timeoutSeconds", "integer"),
        ],
        _ => &[],
    }
}
