//! OpenAPI documents, v3 per group and version and v2 for everything, from types and what is served.
//!
//! Not here: the words of descriptions (the caller has them), the possible values of enumerations, the deprecated paths
//! under `/watch/`.
//!
//! Invariants: every reference in a document has its target in it; equal inputs give equal documents.

pub mod gnostic;
mod operations;
mod types;

use std::collections::BTreeSet;

use crate::json;
use crate::kind::{Names, Subresource, Verb};
use crate::schema::{Schema, TypeRef};
use crate::value::{Map, Value};

/// The description of a type (field `""`) or of a field, by the type's full name.
pub type Describe<'a> = &'a dyn Fn(&str, &str) -> Option<String>;

/// One resource in one version.
#[derive(Clone, Copy)]
pub struct Served<'a> {
    pub names: &'a Names,
    pub verbs: &'a [Verb],
    pub subresources: &'a [Subresource],
    /// The `openAPIV3Schema` of a custom resource; `None` for built-in kinds.
    pub custom: Option<&'a Value>,
}

/// Which of the two document forms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    V2,
    V3,
}

impl Form {
    /// Where a type stands in the document.
    fn reference(self, name: &str) -> Value {
        match self {
            Form::V2 => json!({"$ref": (format!("#/definitions/{name}"))}),
            Form::V3 => json!({"$ref": (format!("#/components/schemas/{name}"))}),
        }
    }
}

/// The types that operations speak of besides their own.
const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";

/// The v3 document of one group and version. `served` are its resources, `builtin` the schema of built-in kinds.
pub fn v3(served: &[Served<'_>], builtin: &Schema, describe: Describe<'_>, version: &str) -> Value {
    let mut types = types::Types::new(Form::V3, builtin, describe);
    let mut paths = Map::new();
    for resource in served {
        operations::paths(resource, Form::V3, &mut types, &mut paths);
    }
    json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": version},
        "paths": paths,
        "components": {
            "schemas": (types.finish()),
            "securitySchemes": {"BearerToken": {"type": "apiKey", "in": "header", "name": "authorization",
                "description": "Bearer Token authentication"}},
        },
    })
}

/// The v2 document of everything that is served.
pub fn v2(served: &[Served<'_>], builtin: &Schema, describe: Describe<'_>, version: &str) -> Value {
    let mut types = types::Types::new(Form::V2, builtin, describe);
    let mut paths = Map::new();
    for resource in served {
        operations::paths(resource, Form::V2, &mut types, &mut paths);
    }
    json!({
        "swagger": "2.0",
        "info": {"title": "Kubernetes", "version": version},
        "paths": paths,
        "definitions": (types.finish()),
        "securityDefinitions": {"BearerToken": {"type": "apiKey", "in": "header", "name": "authorization",
            "description": "Bearer Token authentication"}},
        "security": [{"BearerToken": []}],
    })
}

/// The list of v3 documents: `(apis/apps/v1, a hash of its text)` each.
pub fn v3_index(documents: &[(String, String)]) -> Value {
    let entry = |(path, hash): &(String, String)| {
        (path.clone(), json!({"serverRelativeURL": (format!("/openapi/v3/{path}?hash={hash}"))}))
    };
    json!({"paths": (documents.iter().map(entry).collect::<Map>())})
}

/// The names of all struct types that a type refers to, itself included.
fn reachable(of: TypeRef<'_>, found: &mut BTreeSet<String>) {
    use crate::schema::Node;
    match of.kind() {
        Node::Struct { .. } => {
            let Some(at) = of.as_struct() else { return };
            if found.insert(at.name.to_string()) {
                for field in at.fields() {
                    reachable(of.with(field.of), found);
                }
            }
        }
        Node::List { item, .. } => reachable(of.with(*item), found),
        Node::Map { value, .. } => reachable(of.with(*value), found),
        Node::Either(_, inner) => reachable(of.with(*inner), found),
        Node::Scalar(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "package io.k8s.api.apps.v1
Deployment apps/v1
 apiVersion - str o
 kind - str o
 metadata 1 meta.v1.ObjectMeta o
 spec 2 DeploymentSpec o
DeploymentList apps/v1
 apiVersion - str o
 items 2 []Deployment r
 kind - str o
 metadata 1 meta.v1.ObjectMeta o
DeploymentSpec
 mode 1 str r
 ports 2 []Port o k=port l=map:port s=merge
 surge 3 *intstr o
 selector 4 {}str o a
Port
 port 1 i32 r
 name 2 *str o d=\"x\"
package io.k8s.apimachinery.pkg.apis.meta.v1
DeleteOptions
 dryRun 1 []str o
ListMeta
 continue 1 str o
ObjectMeta
 creationTimestamp 1 time oz
Status
 code 1 i32 o
";

    fn names(group: &str, kind: &str, plural: &str) -> Names {
        Names {
            group: group.into(),
            version: "v1".into(),
            kind: kind.into(),
            list_kind: compact_str::format_compact!("{kind}List"),
            plural: plural.into(),
            singular: kind.to_lowercase().into(),
            short: Vec::new(),
            categories: Vec::new(),
            namespaced: true,
        }
    }

    /// Every `$ref` below a value.
    fn references(value: &Value, out: &mut Vec<String>) {
        match value {
            Value::Map(map) => {
                for (key, inner) in map.iter() {
                    if key == "$ref" {
                        out.push(inner.text().to_owned());
                    }
                    references(inner, out);
                }
            }
            Value::List(items) => items.iter().for_each(|item| references(item, out)),
            _ => {}
        }
    }

    #[test]
    fn documents_are_complete() {
        let schema = Schema::parse(TABLE).unwrap();
        let (deployment, widget) = (names("apps", "Deployment", "deployments"), names("x.io", "Widget", "widgets"));
        let custom = json!({"type": "object", "properties": {"spec": {"type": "object"}}});
        let status =
            [Subresource { name: "status", body: ("", "", ""), verbs: &[Verb::Get, Verb::Update, Verb::Patch] }];
        let served = [
            Served { names: &deployment, verbs: &Verb::ALL, subresources: &status, custom: None },
            Served { names: &widget, verbs: &Verb::ALL, subresources: &[], custom: Some(&custom) },
        ];
        let describe = |of: &str, field: &str| (field == "mode").then(|| format!("words of {of}"));
        for (document, form, root) in [
            (v3(&served, &schema, &describe, "1.37"), Form::V3, &["components", "schemas"][..]),
            (v2(&served, &schema, &describe, "1.37"), Form::V2, &["definitions"][..]),
        ] {
            let mut all = Vec::new();
            references(&document, &mut all);
            assert!(!all.is_empty());
            for name in all {
                let short = name.rsplit('/').next().unwrap();
                assert_eq!(form.reference(short)["$ref"].text(), name);
                assert!(!document.at(root)[short].is_null(), "{form:?} {name}");
            }
            let spec = &document.at(root)["io.k8s.api.apps.v1.DeploymentSpec"];
            assert_eq!(spec["required"], json!(["mode"]));
            assert_eq!(spec["properties"]["mode"]["description"].text(), "words of io.k8s.api.apps.v1.DeploymentSpec");
            assert_eq!(spec["properties"]["ports"]["x-kubernetes-list-map-keys"], json!(["port"]));
            assert_eq!(spec["properties"]["ports"]["x-kubernetes-patch-merge-key"].text(), "port");
            let item = &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"];
            assert_eq!(item["patch"]["operationId"].text(), "patchAppsV1NamespacedDeployment");
            assert_eq!(item["get"]["x-kubernetes-group-version-kind"]["kind"].text(), "Deployment");
            assert!(!document.at(root)["io.x.v1.Widget"]["properties"]["metadata"].is_null());
        }
    }
}
