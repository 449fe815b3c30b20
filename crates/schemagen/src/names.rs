//! Reads `k8s-openapi`: which types there are, their fields' JSON names and types, and which of them are kinds.

use std::path::Path;

use crate::table::{Field, Struct, Types};
use crate::{Error, rust_files};

/// What generally available types refer to, and the gangs of the scheduler.
const MORE: [&str; 2] = ["io.k8s.api.scheduling.v1alpha3", "io.k8s.api.scheduling.v1beta1"];

/// The packages of the table: everything generally available, and what the server speaks besides.
fn is_wanted(package: &str) -> bool {
    let version = package.rsplit('.').next().unwrap_or_default();
    version.strip_prefix('v').is_some_and(|number| number.bytes().all(|byte| byte.is_ascii_digit()))
        || MORE.contains(&package)
}

/// The types below `folder`, the sources of one version.
pub fn read(folder: &Path) -> Result<Types, Error> {
    let mut types = Types::default();
    for path in rust_files(folder)? {
        let text = std::fs::read_to_string(&path).map_err(|error| Error::Read(path.clone(), error))?;
        let Some(name) = text.lines().find_map(|line| line.strip_prefix("// Generated from definition ")) else {
            continue;
        };
        let Some((package, short)) = name.trim().rsplit_once('.') else { continue };
        if is_wanted(package) && scalar(short).is_none() {
            read_struct(&text, package, short, &mut types);
        }
    }
    Ok(types)
}

fn read_struct(text: &str, package: &str, short: &str, types: &mut Types) {
    let Some((_, body)) = text.split_once(&format!("pub struct {short} {{\n")) else { return };
    let body = body.split_once("\n}").map_or(body, |(body, _)| body);
    let constant = |name: &str| {
        let start = format!("    const {name}: &'static str = \"");
        text.lines().find_map(|line| line.strip_prefix(&start)?.strip_suffix("\";"))
    };
    let mut found = Struct::default();
    if let (Some(group), Some(version), Some(kind)) = (constant("GROUP"), constant("VERSION"), constant("KIND")) {
        found.kinds.push(format!("{group}/{version}/{kind}"));
        found.push(Field::new("apiVersion", "str", "o"));
        found.push(Field::new("kind", "str", "o"));
        if let Some(list_kind) = constant("LIST_KIND") {
            types.0.insert(format!("{package}.{list_kind}"), list_of(package, short, group, version, list_kind));
        }
    }
    for line in body.lines() {
        let Some((ident, of)) = line.strip_prefix("    pub ").and_then(|line| line.split_once(": ")) else { continue };
        let of = of.trim_end_matches(',');
        let key = format!(" => Field::Key_{ident},");
        let json = text.lines().find_map(|line| line.trim().strip_suffix(&key)).unwrap_or(ident).trim_matches('"');
        let optional = of.strip_prefix("Option<").and_then(|of| of.strip_suffix('>'));
        let metadata = json == "metadata" && !found.kinds.is_empty();
        let mut field = Field::new(json, "", if optional.is_some() || metadata { "o" } else { "r" });
        field.of = shape(optional.unwrap_or(of));
        if optional.is_some() && field.of.contains('.') && !field.of.starts_with(['[', '{']) {
            field.of.insert(0, '*');
        }
        found.push(field);
    }
    types.0.insert(format!("{package}.{short}"), found);
}

fn list_of(package: &str, short: &str, group: &str, version: &str, list_kind: &str) -> Struct {
    let mut list = Struct { kinds: vec![format!("{group}/{version}/{list_kind}")], ..Struct::default() };
    list.push(Field::new("apiVersion", "str", "o"));
    list.push(Field::new("kind", "str", "o"));
    let mut metadata = Field::new("metadata", "io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta", "o");
    metadata.number = "1".to_owned();
    let mut items = Field::new("items", &format!("[]{package}.{short}"), "r");
    items.number = "2".to_owned();
    list.push(metadata);
    list.push(items);
    list
}

/// Types that are no structs in JSON.
fn scalar(short: &str) -> Option<&'static str> {
    Some(match short {
        "Time" => "time",
        "MicroTime" => "microtime",
        "Duration" => "duration",
        "FieldsV1" => "fieldsv1",
        "Quantity" => "quantity",
        "IntOrString" => "intstr",
        "RawExtension" => "raw",
        "JSON" => "json",
        "JSONSchemaPropsOrBool" => "orbool",
        "JSONSchemaPropsOrArray" => "orarray",
        "JSONSchemaPropsOrStringArray" => "orstrings",
        "Patch" | "WatchEvent" => "any",
        _ => return None,
    })
}

/// The table's word for a Rust type.
fn shape(of: &str) -> String {
    let inner = |start: &str| of.strip_prefix(start).and_then(|of| of.strip_suffix('>'));
    if let Some(item) = inner("std::vec::Vec<") {
        return format!("[]{}", shape(item));
    }
    if let Some(value) = inner("std::collections::BTreeMap<std::string::String, ") {
        return format!("{{}}{}", shape(value));
    }
    if let Some(boxed) = inner("std::boxed::Box<") {
        return shape(boxed);
    }
    match of {
        "bool" => return "bool".to_owned(),
        "i32" => return "i32".to_owned(),
        "i64" => return "i64".to_owned(),
        "f64" => return "f64".to_owned(),
        "std::string::String" => return "str".to_owned(),
        "crate::ByteString" => return "bytes".to_owned(),
        _ => {}
    }
    let path = of.trim_start_matches("crate::");
    let short = path.rsplit("::").next().unwrap_or_default();
    match scalar(short) {
        Some(word) => word.to_owned(),
        None => format!("io.k8s.{}", path.replace("::", ".").replace('_', "-")),
    }
}
