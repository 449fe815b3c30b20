//! CustomResourceDefinitions: their names, versions and schemas. What they define is made elsewhere.

use meta::schema::check_definition;
use meta::{At, Change, Errors, Path, Prepare, Rules, Status, Str, Value, names};

use crate::check;

pub struct CustomResourceDefinition;

impl Rules for CustomResourceDefinition {
    fn defaults(&self, object: &mut Value) {
        let spec = object.make(&["spec"]);
        let kind: Str = spec["names"]["kind"].text().into();
        for (key, value) in [("singular", kind.to_lowercase()), ("listKind", format!("{kind}List").into())] {
            if spec["names"][key].text().is_empty() && !kind.is_empty() {
                spec.set(&["names", key], value);
            }
        }
        if spec["conversion"].is_null() {
            spec.set(&["conversion"], meta::json!({"strategy": "None"}));
        }
        if let Some(webhook) = spec.at_mut(&["conversion", "webhook", "clientConfig", "service"]) {
            webhook.default("port", 443i64);
        }
    }

    fn prepare(&self, cx: &mut Prepare<'_>, object: &mut Value) -> Result<(), Status> {
        let storage = |object: &Value| -> Vec<Value> {
            let versions = object.at(&["spec", "versions"]).items();
            versions.iter().filter(|version| version["storage"].is_true()).map(|one| one["name"].clone()).collect()
        };
        match cx.change.old {
            None => {
                object.set(
                    &["status"],
                    meta::json!({"acceptedNames": {"kind": "", "plural": ""}, "conditions": (Value::Null)}),
                );
                object.set(&["status", "storedVersions"], storage(object));
            }
            Some(_) if cx.change.is_status() => {}
            Some(_) => {
                let now = storage(object);
                let stored = object.make(&["status", "storedVersions"]).make_list();
                for version in now {
                    if !stored.contains(&version) {
                        stored.push(version);
                    }
                }
            }
        }
        Ok(())
    }

    fn check(&self, change: &Change<'_>, at: &At<'_>, errors: &mut Errors) {
        let spec = at.field("spec");
        let meta = at.field("metadata");
        let name = meta.field("name");
        let (group, named) = (spec.field("group"), spec.field("names"));
        let full = format!("{}.{}", named.value["plural"].text(), group.text());
        if change.is_create() && !name.is_empty() && name.text() != full {
            errors.invalid(&name, format!("must be spec.names.plural+\".\"+spec.group, here {full:?}"));
        }
        match group.text() {
            "" => errors.required(&group.path, ""),
            text => {
                let wrong = names::dns_subdomain(text);
                if wrong.is_empty() && !text.contains('.') {
                    errors.invalid(&group, "should be a domain with at least one dot");
                }
                check::invalid(&group, wrong, errors);
            }
        }
        check::word(&spec.field("scope"), &["Cluster", "Namespaced"], errors);
        check_names(&named, errors);
        check_versions(&spec, errors);
        check_conversion(&spec.field("conversion"), errors);
        check_stored(at, errors);
        if let Some(old) = change.old {
            let before = &old["spec"];
            let established = old
                .at(&["status", "conditions"])
                .items()
                .iter()
                .any(|one| one["type"].text() == "Established" && one["status"].text() == "True");
            check::immutable(&group, &before["group"], errors);
            check::immutable(&named.field("plural"), &before["names"]["plural"], errors);
            if established {
                check::immutable(&spec.field("scope"), &before["scope"], errors);
                check::immutable(&named.field("kind"), &before["names"]["kind"], errors);
            }
        }
    }

    fn has_generation(&self) -> bool {
        true
    }
}

fn check_names(named: &At<'_>, errors: &mut Errors) {
    check::named(&named.field("plural"), names::dns1035_label, errors);
    check::named(&named.field("singular"), names::dns1035_label, errors);
    for key in ["kind", "listKind"] {
        let field = named.field(key);
        match field.text() {
            "" => errors.required(&field.path, ""),
            text => check::invalid(&field, names::dns1035_label(&text.to_lowercase()), errors),
        }
    }
    let (kind, list) = (named.field("kind"), named.field("listKind"));
    if !kind.is_empty() && kind.text() == list.text() {
        errors.invalid(&list, "kind and listKind may not be the same");
    }
    for key in ["shortNames", "categories"] {
        for name in named.field(key).items() {
            check::invalid(&name, names::dns1035_label(name.text()), errors);
        }
    }
}

/// Parts that stand once for all versions when all versions have the same; upstream then names them there.
fn is_shared(versions: &[Value], part: &str) -> bool {
    versions.windows(2).all(|pair| pair[0][part] == pair[1][part])
}

fn check_versions(spec: &At<'_>, errors: &mut Errors) {
    let versions = spec.field("versions");
    let list = versions.value.items();
    let stored = list.iter().filter(|version| version["storage"].is_true()).count();
    if stored != 1 {
        errors.invalid(&versions, "must have exactly one version marked as storage version");
    }
    for (index, version) in versions.items().enumerate() {
        let name = version.field("name");
        let wrong = names::dns1035_label(name.text());
        if index == 0 && !name.is_empty() {
            // The first version's name is also the definition's own.
            for why in &wrong {
                errors.invalid_value(&spec.path.field("version"), name.text(), why.clone());
            }
        }
        check::invalid(&name, wrong, errors);
        if list[..index].iter().any(|other| other["name"] == *name.value) {
            errors.invalid(&versions, "must contain unique version names");
        }
    }
    for (index, version) in versions.items().enumerate() {
        let place = |part: &str| is_shared(list, part);
        let at = |part: &'static str| (place(part), part);
        for (shared, part) in [at("schema"), at("subresources"), at("additionalPrinterColumns"), at("selectableFields")]
        {
            if shared && index > 0 {
                continue;
            }
            let parent = if shared { spec.path } else { version.path };
            let value = version.field(part).value;
            match part {
                "schema" => {
                    let path = parent.field(if shared { "validation" } else { "schema" });
                    if value["openAPIV3Schema"].is_null() {
                        let own = version.path.field("schema");
                        errors.required(&own.field("openAPIV3Schema"), "schemas are required");
                    } else {
                        check_schema(value, &path, errors);
                    }
                }
                "subresources" => check_subresources(&At { value, path: parent.field(part) }, errors),
                "additionalPrinterColumns" => check_columns(&At { value, path: parent.field(part) }, errors),
                _ => {
                    let schema = &version.value["schema"]["openAPIV3Schema"];
                    check_selectable(&At { value, path: parent.field(part) }, schema, errors);
                }
            }
        }
    }
}

fn check_schema(schema: &Value, path: &Path<'_>, errors: &mut Errors) {
    let at = At { value: &schema["openAPIV3Schema"], path: path.field("openAPIV3Schema") };
    let known = errors.0.len();
    check_definition(&at, crate::schema::meta_v1("ObjectMeta"), errors);
    // Rules speak of a schema that makes sense.
    if errors.0.len() == known {
        super::validations::check_definition(&at, errors);
    }
}

fn check_subresources(at: &At<'_>, errors: &mut Errors) {
    let scale = at.field("scale");
    if !scale.is_set() {
        return;
    }
    for (key, roots) in [
        ("specReplicasPath", &[".spec."][..]),
        ("statusReplicasPath", &[".status."][..]),
        ("labelSelectorPath", &[".spec.", ".status."][..]),
    ] {
        let path = scale.field(key);
        if path.is_empty() {
            if key != "labelSelectorPath" {
                errors.required(&path.path, "");
            }
        } else if !is_simple_path(path.text()) {
            errors.invalid(&path, "must be a json path of plain fields");
        } else if !roots.iter().any(|root| path.text().starts_with(root)) {
            errors.invalid(&path, format!("should be a json path under {roots:?}"));
        }
    }
}

/// `.a.b`: plain fields only.
fn is_simple_path(path: &str) -> bool {
    let word = |part: &str| {
        !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
    };
    path.strip_prefix('.').is_some_and(|rest| rest.split('.').all(word))
}

fn check_columns(columns: &At<'_>, errors: &mut Errors) {
    const TYPES: [&str; 5] = ["integer", "number", "string", "boolean", "date"];
    const FORMATS: [&str; 9] = ["int32", "int64", "float", "double", "byte", "date", "date-time", "password", "name"];
    for column in columns.items() {
        check::required(&column.field("name"), errors);
        let of_type = column.field("type");
        match of_type.text() {
            "" => errors.required(&of_type.path, ""),
            text if !TYPES.contains(&text) => errors.invalid(&of_type, format!("must be one of {TYPES:?}")),
            _ => {}
        }
        let format = column.field("format");
        if !format.is_empty() && !FORMATS.contains(&format.text()) {
            errors.invalid(&format, format!("must be one of {FORMATS:?}"));
        }
        let path = At { value: column.field("jsonPath").value, path: column.path.field("JSONPath") };
        match path.text() {
            "" => errors.required(&path.path, ""),
            text if !text.starts_with('.') || text.contains(char::is_whitespace) => {
                errors.invalid(&path, "is an invalid path");
            }
            _ => {}
        }
    }
}

fn check_selectable(fields: &At<'_>, schema: &Value, errors: &mut Errors) {
    for (index, field) in fields.items().enumerate() {
        let path = field.field("jsonPath");
        match path.text() {
            "" => errors.required(&path.path, ""),
            text if !is_simple_path(text) => errors.invalid(&path, "is an invalid path"),
            text => {
                let field = text[1..].split('.').fold(schema, |schema, name| &schema["properties"][name]);
                if !matches!(field["type"].text(), "string" | "boolean" | "integer") {
                    errors.invalid(&path, "must point to a field of type string, boolean or integer");
                }
            }
        }
        if fields.value.items()[..index].iter().any(|other| other["jsonPath"] == *path.value) {
            errors.duplicate(&path);
        }
    }
}

/// Every version that objects may be stored in must still be there.
fn check_stored(at: &At<'_>, errors: &mut Errors) {
    let status = at.field("status");
    let stored = status.field("storedVersions");
    if stored.is_empty() {
        errors.invalid(&stored, "must have at least one stored version");
    }
    let versions = at.value.at(&["spec", "versions"]).items();
    for version in stored.items() {
        if !versions.iter().any(|known| known["name"] == *version.value) {
            errors.invalid(&version, "must appear in spec.versions");
        }
    }
}

fn check_conversion(conversion: &At<'_>, errors: &mut Errors) {
    check::word(&conversion.field("strategy"), &["None", "Webhook"], errors);
    let webhook = conversion.field("webhook");
    if conversion.field("strategy").text() == "Webhook" {
        if !webhook.field("clientConfig").is_set() {
            errors.required(&conversion.path.field("webhookClientConfig"), "required when strategy is set to Webhook");
        }
    } else if webhook.is_set() {
        errors.forbidden(
            &conversion.path.field("webhookClientConfig"),
            "should not be set when strategy is not set to Webhook",
        );
    }
}
