//! What the expressions of a policy get wrong of the types that the policy is about. A policy with such mistakes is taken all
//! the same; its status tells of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cel::types::ANY;
use cel::{Bound, Env, FieldType, ObjectType, Program, Type};
use meta::schema::{Node, Scalar, Unknown};
use meta::{At, Errors, Kind, Str, TypeRef, Value, json};

use crate::{custom, expressions, kinds, schema};

/// Types that a policy is held against, at most, as in Kubernetes.
const TYPES_MAX: usize = 10;

/// A definition of custom resources, by its name.
pub type Definition<'a> = &'a dyn Fn(&str) -> Option<Value>;

/// The type of objects of a kind, as expressions see them; `None` where it is not known.
fn type_of_kind(found: &Found, definition: Definition<'_>) -> Option<Type> {
    if let Some(of) = schema::kind(&found.group, &found.version, &found.kind) {
        return Some(type_of(of, &mut Vec::new()));
    }
    let custom = custom_kind(&found.group, &found.version, &found.plural, definition)?;
    Some(type_of(custom.of(), &mut Vec::new()))
}

fn custom_kind(group: &str, version: &str, plural: &str, definition: Definition<'_>) -> Option<Kind> {
    custom::kind_of(&definition(&format!("{plural}.{group}"))?, version)
}

/// `above`: the structs that hold this one. Of one that holds itself nothing more is known.
fn type_of(of: TypeRef<'_>, above: &mut Vec<*const meta::schema::Struct>) -> Type {
    match of.kind() {
        Node::Scalar(scalar) => match scalar {
            Scalar::Bool => Type::Bool,
            Scalar::Int32 | Scalar::Int64 => Type::Int,
            Scalar::Double => Type::Double,
            Scalar::String | Scalar::Duration | Scalar::Quantity => Type::STRING,
            Scalar::Bytes => Type::Bytes(Bound::NONE),
            Scalar::Time | Scalar::MicroTime => Type::Timestamp,
            Scalar::Raw | Scalar::FieldsV1 => Type::Object(ANY.clone()),
            Scalar::IntOrString | Scalar::Json | Scalar::Any => Type::Dyn,
        },
        Node::List { item, .. } => Type::list(type_of(of.with(*item), above)),
        Node::Map { value, .. } => Type::map(Type::STRING, type_of(of.with(*value), above)),
        Node::Either(..) => Type::Dyn,
        Node::Struct { .. } => match of.as_struct() {
            Some(found) if !above.contains(&std::ptr::from_ref(found)) => {
                above.push(std::ptr::from_ref(found));
                let field = |field: &meta::schema::Field| {
                    let of = type_of(of.with(field.of), above);
                    let escaped = cel::escape(&field.name)?;
                    Some((Str::from(escaped), FieldType { name: field.name.clone(), of }))
                };
                let fields: BTreeMap<Str, FieldType> = found.fields().iter().filter_map(field).collect();
                above.pop();
                let open = found.unknown == Unknown::Keep;
                Type::Object(Arc::new(ObjectType { name: found.name.to_string(), fields, open }))
            }
            _ => Type::Object(ANY.clone()),
        },
    }
}

/// A kind that a policy names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Found {
    group: Str,
    version: Str,
    kind: Str,
    plural: Str,
}

impl std::fmt::Display for Found {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.group.as_str() {
            "" => write!(f, "/{}, Kind={}", self.version, self.kind),
            group => write!(f, "{group}/{}, Kind={}", self.version, self.kind),
        }
    }
}

/// The kinds that a policy names outright. What its wildcards stand for changes by the hour, and is not looked at.
fn named(policy: &Value, definition: Definition<'_>) -> BTreeSet<Found> {
    let words =
        |rule: &Value, key: &str| -> Vec<Str> { rule[key].items().iter().map(|word| word.text().into()).collect() };
    let mut all = BTreeSet::new();
    for rule in policy.at(&["spec", "matchConstraints", "resourceRules"]).items() {
        let (groups, versions) = (words(rule, "apiGroups"), words(rule, "apiVersions"));
        let resources = words(rule, "resources");
        if groups.iter().chain(&versions).any(|word| word == "*")
            || resources.iter().any(|word| word.contains(['*', '/']))
        {
            continue;
        }
        for group in &groups {
            for version in &versions {
                for plural in &resources {
                    let known = kinds::names().find(|(_, names)| {
                        names.group == *group && names.version == *version && names.plural == *plural
                    });
                    let kind = known.map(|(_, names)| names.kind).or_else(|| {
                        custom_kind(group, version, plural, definition).map(|kind| kind.names.kind.clone())
                    });
                    let (group, version, plural) = (group.clone(), version.clone(), plural.clone());
                    all.extend(kind.map(|kind| Found { group, version, kind, plural }));
                }
            }
        }
    }
    all
}

/// `expressionWarnings` of a policy: where, and for which types what is wrong.
pub fn warnings(policy: &Value, definition: Definition<'_>) -> Vec<Value> {
    let spec = &policy["spec"];
    let base = expressions::admission(!spec["paramKind"].is_null());
    let env_of = |found: Found| {
        let of = type_of_kind(&found, definition)?;
        let env = base.clone().with("object", of.clone()).with("oldObject", of);
        let env = expressions::with_variables(&At::root(&spec["variables"]), &env, &mut Errors::default());
        Some((found, env))
    };
    let envs: Vec<(Found, Env)> = named(policy, definition).into_iter().take(TYPES_MAX).filter_map(env_of).collect();
    let mut warnings = Vec::new();
    for (at, validation) in spec["validations"].items().iter().enumerate() {
        for key in ["expression", "messageExpression"] {
            let text = validation[key].text();
            if text.is_empty() {
                continue;
            }
            let mistakes = envs.iter().filter_map(|(found, env)| {
                let mistake = Program::compile(text, env).err()?;
                Some(format!("{found}: {mistake}"))
            });
            let mistakes: Vec<String> = mistakes.collect();
            if !mistakes.is_empty() {
                let place = format!("spec.validations[{at}].{key}");
                warnings.push(json!({"fieldRef": place, "warning": (mistakes.join("\n"))}));
            }
        }
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_that_no_type_has_are_told_of() {
        let policy = |group: &str, plural: &str, expressions: &[&str]| {
            let validation = |text: &&str| json!({"expression": (*text)});
            json!({"spec": {
                "matchConstraints": {"resourceRules": [
                    {"apiGroups": [group], "apiVersions": ["v1"], "resources": [plural]},
                ]},
                "variables": [{"name": "spec", "expression": "object.spec"}],
                "validations": (expressions.iter().map(validation).collect::<Vec<_>>()),
            }})
        };
        let none = |_: &str| None;
        let told = |group: &str, plural: &str, text: &str| {
            let mut warnings = warnings(&policy(group, plural, &[text]), &none);
            warnings.pop().map(|warning| warning["warning"].text().to_owned())
        };
        for good in [
            "object.spec.replicas > 1",
            "variables.spec.replicas > 1",
            "object.spec.template.spec.containers.all(c, c.image.startsWith('x'))",
            "object.metadata.labels['a'] == 'b' && object.metadata.creationTimestamp < timestamp('2030-01-01T00:00:00Z')",
            "has(object.spec.strategy.rollingUpdate) && string(object.spec.strategy.rollingUpdate.maxSurge) == '1'",
        ] {
            assert_eq!(told("apps", "deployments", good), None, "{good}");
        }
        let bad = told("apps", "deployments", "object.spec.replicass > 1").unwrap();
        assert!(bad.starts_with("apps/v1, Kind=Deployment: ERROR: <input>:1:12: "), "{bad}");
        assert!(told("apps", "deployments", "variables.spec.replicas > '1'").is_some(), "an int is no string");
        assert_eq!(told("apps", "*", "object.nothing"), None, "nobody knows what that will be");
        assert!(told("", "pods", "object.spec.replicas > 1").unwrap().starts_with("/v1, Kind=Pod: "));

        let definition = json!({
            "metadata": {"name": "things.example.com"},
            "spec": {
                "group": "example.com", "names": {"plural": "things", "kind": "Thing"},
                "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {
                    "type": "object", "properties": {"spec": {"type": "object", "properties": {"n": {"type": "integer"}}}},
                }}}],
            },
        });
        let known = |name: &str| (name == "things.example.com").then(|| definition.clone());
        let found = warnings(&policy("example.com", "things", &["object.spec.n > 1", "object.spec.m > 1"]), &known);
        let places: Vec<&str> = found.iter().map(|warning| warning["fieldRef"].text()).collect();
        assert_eq!(places, ["spec.validations[1].expression"]);
    }
}
