//! Custom resources: the kinds that a CustomResourceDefinition makes, served by the same code as all others.

use std::sync::Arc;

use base::Time;
use meta::field::Fault;
use meta::kind::{Change, Conversion, Prepare};
use meta::schema::{self, Clause, NodeId, Schema, TypeRef};
use meta::{At, Column, Errors, Head, Kind, Names, Path, Resource, Rules, Status, Str, Subresource, Value, Verb};

use crate::apiextensions::validations;
use crate::columns::{age, since};
use crate::schema::meta_v1;

const STATUS: Subresource =
    Subresource { name: "status", body: ("", "", ""), verbs: &[Verb::Get, Verb::Patch, Verb::Update] };
const SCALE: Subresource =
    Subresource { name: "scale", body: ("autoscaling", "v1", "Scale"), verbs: &[Verb::Get, Verb::Patch, Verb::Update] };

/// A path of members and conditions into an object: `.status.conditions[?(@.type=="Ready")].status`.
#[derive(Clone, Debug, PartialEq)]
enum Step {
    Member(Str),
    Index(i64),
    All,
    Where { path: Vec<Step>, value: Str },
}

struct Shown {
    path: Vec<Step>,
    is_date: bool,
}

/// The behaviour of one version of a custom resource.
pub struct Custom {
    schema: Arc<Schema>,
    node: NodeId,
    clause: Clause,
    columns: Vec<Column>,
    shown: Vec<Shown>,
    selectable: Vec<(Str, Vec<Step>)>,
    scale: Option<(String, String, Option<String>)>,
    has_status: bool,
    /// `group/version` of this version and of the stored one.
    api_version: String,
    stored_version: String,
    /// Who converts between versions; null where they differ in their name only.
    webhook: Value,
    openapi: Value,
    validations: Option<validations::Node>,
    /// Its definition is not the first: what is stored may come from an older schema.
    changed: bool,
}

/// The name of the stored version, and the served versions, the stored one first.
fn served(definition: &Value) -> (&str, Vec<&Value>) {
    let versions = definition["spec"]["versions"].items();
    let stored = versions.iter().find(|version| version["storage"].is_true());
    let stored_name = stored.map(|version| version["name"].text()).unwrap_or_default();
    let mut served: Vec<&Value> = versions.iter().filter(|version| version["served"].is_true()).collect();
    served.sort_by_key(|version| version["name"].text() != stored_name);
    (stored_name, served)
}

/// The kinds of a definition's served versions, the stored one first.
pub fn kinds(definition: &Value) -> Vec<Kind> {
    let (stored_name, served) = served(definition);
    served.into_iter().map(|version| kind(definition, version, stored_name)).collect()
}

/// The kind of one served version; `None` when it is not served.
pub fn kind_of(definition: &Value, version: &str) -> Option<Kind> {
    let (stored_name, served) = served(definition);
    let found = served.into_iter().find(|served| served["name"].text() == version)?;
    Some(kind(definition, found, stored_name))
}

/// What discovery tells of a definition's served versions, the stored one first.
pub fn heads(definition: &Value) -> Vec<Head> {
    let (_, served) = served(definition);
    served.into_iter().map(|version| head(definition, version)).collect()
}

fn head(definition: &Value, version: &Value) -> Head {
    let spec = &definition["spec"];
    // What was accepted counts; before that, what was asked for.
    let accepted = definition.at(&["status", "acceptedNames"]);
    let names = if accepted["plural"].text().is_empty() { &spec["names"] } else { accepted };
    let words = |key: &str| -> Vec<Str> { names[key].items().iter().map(|word| word.text().into()).collect() };
    let or = |key: &str, otherwise: String| -> Str {
        match names[key].text() {
            "" => otherwise.into(),
            text => text.into(),
        }
    };
    let (group, plural, kind_name) = (spec["group"].text(), names["plural"].text(), names["kind"].text());
    let mut subresources = Vec::new();
    if version["subresources"].get("status").is_some() {
        subresources.push(STATUS);
    }
    if version["subresources"].get("scale").is_some() {
        subresources.push(SCALE);
    }
    Head {
        names: Names {
            group: group.into(),
            version: version["name"].text().into(),
            kind: kind_name.into(),
            list_kind: or("listKind", format!("{kind_name}List")),
            plural: plural.into(),
            singular: or("singular", kind_name.to_lowercase()),
            short: words("shortNames"),
            categories: words("categories"),
            namespaced: spec["scope"].text() == "Namespaced",
        },
        resource: Resource::intern(&format!("{plural}.{group}")),
        verbs: Verb::ALL.to_vec(),
        subresources,
    }
}

fn kind(definition: &Value, version: &Value, stored_name: &str) -> Kind {
    let Head { names, resource, verbs, subresources: served } = head(definition, version);
    let (spec, group) = (&definition["spec"], names.group.as_str());
    let openapi = version.at(&["schema", "openAPIV3Schema"]);
    let preserves = spec["preserveUnknownFields"].is_true();
    let custom = match openapi.is_null() || preserves {
        true => schema::untyped(meta_v1("ObjectMeta")),
        false => schema::from_openapi(openapi, meta_v1("ObjectMeta")),
    };
    let node = custom.of().node;
    let clause = custom.clause.clone();
    let schema = Arc::new(custom.schema);
    let subresources = &version["subresources"];
    let mut scale = None;
    if let Some(places) = subresources.get("scale") {
        let path = |key: &str| places[key].text().trim_start_matches('.').to_owned();
        let selector = path("labelSelectorPath");
        scale =
            Some((path("specReplicasPath"), path("statusReplicasPath"), (!selector.is_empty()).then_some(selector)));
    }
    let (columns, shown) = columns(version);
    let behaviour = Custom {
        changed: definition.at(&["metadata", "generation"]).as_int() > Some(1),
        schema: schema.clone(),
        node,
        clause,
        columns,
        shown,
        selectable: version["selectableFields"]
            .items()
            .iter()
            .map(|field| {
                let path = field["jsonPath"].text();
                (path.trim_start_matches('.').into(), parse(path))
            })
            .collect(),
        scale,
        has_status: subresources.get("status").is_some(),
        api_version: format!("{group}/{}", version["name"].text()),
        stored_version: format!("{group}/{stored_name}"),
        webhook: match definition.at(&["spec", "conversion", "strategy"]).text() {
            "Webhook" => definition.at(&["spec", "conversion", "webhook"]).clone(),
            _ => Value::Null,
        },
        openapi: openapi.clone(),
        validations: if preserves { None } else { validations::compile(openapi) },
    };
    Kind { names, resource, verbs, subresources: served, schema, node, rules: Arc::new(behaviour) }
}

fn columns(version: &Value) -> (Vec<Column>, Vec<Shown>) {
    let listed = version["additionalPrinterColumns"].items();
    if listed.is_empty() {
        let age = Column {
            name: "Age".into(),
            of_type: "date".into(),
            format: "".into(),
            description: "When the object was created.".into(),
            priority: 0,
        };
        return (vec![age], vec![Shown { path: parse(".metadata.creationTimestamp"), is_date: true }]);
    }
    listed
        .iter()
        .map(|column| {
            let definition = Column {
                name: column["name"].text().into(),
                of_type: column["type"].text().into(),
                format: column["format"].text().into(),
                description: column["description"].text().into(),
                priority: column["priority"].as_int().unwrap_or(0),
            };
            (definition, Shown { path: parse(column["jsonPath"].text()), is_date: column["type"].text() == "date" })
        })
        .unzip()
}

/// Replicas must be a number of 32 bits that is not negative. Upstream shows the path as the definition writes it.
fn check_replicas(object: &Value, path: &str, errors: &mut Errors) {
    let shown = format!(".{path}");
    let mut value = object;
    for step in path.split('.') {
        match value {
            Value::Null => return,
            Value::Map(_) => value = &value[step],
            other => {
                let detail =
                    format!("{shown} accessor error: {} is no object", String::from_utf8_lossy(&other.to_json()));
                return errors.invalid_value(&Path::ROOT.field(&shown), 0i64, detail);
            }
        }
    }
    let at = Path::ROOT;
    let at = at.field(&shown);
    match value {
        Value::Null => {}
        Value::Int(number) if *number < 0 => errors.invalid_value(&at, *number, "should be a non-negative integer"),
        Value::Int(number) if *number > i64::from(i32::MAX) => {
            errors.invalid_value(&at, *number, "should be less than or equal to 2147483647");
        }
        Value::Int(_) => {}
        _ => errors.invalid_value(&at, 0i64, format!("{shown} accessor error: is no integer")),
    }
}

impl Custom {
    fn of(&self) -> TypeRef<'_> {
        TypeRef { schema: &self.schema, node: self.node }
    }
}

impl Rules for Custom {
    fn defaults(&self, object: &mut Value) {
        schema::defaults(object, self.of());
    }

    fn prepare(&self, cx: &mut Prepare<'_>, object: &mut Value) -> Result<(), Status> {
        if cx.change.is_create() && self.has_status {
            object.take(&["status"]);
        }
        Ok(())
    }

    fn check(&self, change: &Change<'_>, at: &At<'_>, errors: &mut Errors) {
        schema::check(at, change.old, self.of(), &self.clause, errors);
        if let Some((spec, status, _)) = &self.scale {
            for path in [spec, status] {
                check_replicas(at.value, path, errors);
            }
        }
        let Some(validations) = &self.validations else { return };
        let blocks = |error: &meta::field::FieldError| {
            matches!(
                error.fault,
                Fault::NotSupported | Fault::Required | Fault::TooLong | Fault::TooMany | Fault::TypeInvalid
            )
        };
        if errors.0.iter().any(blocks) {
            let detail = "some validation rules were not checked because the object was invalid; correct the existing \
                          errors to complete validation";
            errors.invalid_value(&Path::ROOT, Value::Null, detail);
            return;
        }
        validations.check(at, change.old, errors);
    }

    fn columns(&self) -> &[Column] {
        &self.columns
    }

    fn cells(&self, object: &Value, now: Time) -> Vec<Value> {
        let cell = |(shown, column): (&Shown, &Column)| {
            let found = find(&shown.path, object);
            match found.first() {
                None => Value::Null,
                Some(_) if shown.path == parse(".metadata.creationTimestamp") => age(object, now),
                Some(value) if shown.is_date => since(value, now),
                Some(Value::Map(_) | Value::List(_)) => {
                    String::from_utf8_lossy(&found[0].to_json()).into_owned().into()
                }
                Some(Value::Int(number)) if column.of_type == "string" => number.to_string().into(),
                Some(value) => (*value).clone(),
            }
        };
        self.shown.iter().zip(&self.columns).map(cell).collect()
    }

    fn selectable(&self, object: &Value, field: &str) -> Option<Str> {
        let (_, path) = self.selectable.iter().find(|(name, _)| name == field)?;
        Some(match find(path, object).first() {
            Some(Value::Str(text)) => text.clone(),
            Some(Value::Null) | None => Str::default(),
            Some(other) => String::from_utf8_lossy(&other.to_json()).into_owned().into(),
        })
    }

    fn to_stored(&self, object: &mut Value) {
        object.set(&["apiVersion"], self.stored_version.as_str());
    }

    fn present(&self, object: &mut Value) {
        object.set(&["apiVersion"], self.api_version.as_str());
        if self.changed {
            // What cannot be brought into the form of the schema is shown as it is.
            let _ = meta::normalise::normalise(object, self.of(), &mut Vec::new());
            schema::defaults(object, self.of());
        }
    }

    fn conversion(&self) -> Option<Conversion<'_>> {
        (!self.webhook.is_null()).then_some(Conversion { webhook: &self.webhook, stored: &self.stored_version })
    }

    fn shows_as_stored(&self) -> bool {
        !self.changed
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn raises_generation(&self, old: &Value, new: &Value) -> bool {
        let differs = |key: &str| old[key] != new[key];
        let keys = old.entries().keys().chain(new.entries().keys());
        keys.filter(|key| !matches!(*key, "metadata" | "apiVersion" | "kind"))
            .any(|key| !(self.has_status && key == "status") && differs(key))
    }

    fn scale_paths(&self) -> Option<(&str, &str, Option<&str>)> {
        self.scale.as_ref().map(|(spec, status, selector)| (spec.as_str(), status.as_str(), selector.as_deref()))
    }

    fn openapi(&self) -> Option<&Value> {
        Some(&self.openapi)
    }
}

/// Reads the JSONPath dialect of printer columns; what it does not understand selects nothing.
fn parse(path: &str) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut rest = path.trim().trim_start_matches('{').trim_end_matches('}').trim_start_matches('$');
    while !rest.is_empty() {
        if let Some(inner) = rest.strip_prefix('[') {
            let Some(end) = inner.find(']') else { return vec![Step::Index(i64::MAX)] };
            let (content, after) = (&inner[..end], &inner[end + 1..]);
            rest = after;
            steps.push(bracket(content));
            continue;
        }
        rest = rest.trim_start_matches('.');
        let mut name = Str::default();
        let mut chars = rest.char_indices();
        let mut end = rest.len();
        while let Some((at, c)) = chars.next() {
            match c {
                '\\' => name.extend(chars.next().map(|(_, c)| c)),
                '.' | '[' => {
                    end = at;
                    break;
                }
                c => name.push(c),
            }
        }
        rest = &rest[end..];
        if !name.is_empty() {
            steps.push(if name == "*" { Step::All } else { Step::Member(name) });
        }
    }
    steps
}

fn bracket(content: &str) -> Step {
    let content = content.trim();
    if content == "*" {
        return Step::All;
    }
    if let Some(filter) = content.strip_prefix("?(").and_then(|rest| rest.strip_suffix(')')) {
        let (path, value) = filter.split_once("==").unwrap_or((filter, ""));
        let value = value.trim().trim_matches(|c| c == '"' || c == '\'');
        return Step::Where { path: parse(path.trim().trim_start_matches('@')), value: value.into() };
    }
    match content.parse() {
        Ok(index) => Step::Index(index),
        Err(_) => Step::Member(content.trim_matches(|c| c == '"' || c == '\'').into()),
    }
}

fn find<'a>(path: &[Step], value: &'a Value) -> Vec<&'a Value> {
    let mut found = vec![value];
    for step in path {
        let next = found.into_iter().flat_map(|value| -> Vec<&'a Value> {
            match step {
                Step::Member(name) => value.get(name).into_iter().collect(),
                Step::Index(index) => {
                    let items = value.items();
                    let at = if *index < 0 { items.len() as i64 + index } else { *index };
                    usize::try_from(at).ok().and_then(|at| items.get(at)).into_iter().collect()
                }
                Step::All => match value {
                    Value::Map(map) => map.iter().map(|(_, value)| value).collect(),
                    other => other.items().iter().collect(),
                },
                Step::Where { path, value: wanted } => {
                    let holds = |item: &&Value| find(path, item).iter().any(|found| found.text() == wanted);
                    value.items().iter().filter(holds).collect()
                }
            }
        });
        found = next.collect();
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use meta::json;

    #[track_caller]
    fn check(path: &str, expected: &[&str]) {
        let object = json!({"a": {"b.c": "dotted", "l": [{"t": "x", "v": "1"}, {"t": "y", "v": "2"}]}});
        let found: Vec<&str> = find(&parse(path), &object).into_iter().map(Value::text).collect();
        assert_eq!(found, expected, "{path}");
    }

    #[test]
    fn paths_of_columns() {
        check(".a.l[0].v", &["1"]);
        check("{.a.l[-1].v}", &["2"]);
        check(r#".a.l[?(@.t=="y")].v"#, &["2"]);
        check(".a.l[*].v", &["1", "2"]);
        check(r".a.b\.c", &["dotted"]);
        check(".a['b.c']", &["dotted"]);
        check(".a.none.x", &[]);
        check(".a.l[", &[]);
    }
}
