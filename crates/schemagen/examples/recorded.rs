//! Compares what the generic parts make of objects with recordings of a real API server, where there are any:
//! `GANTRY_RECORDINGS=FOLDER cargo run -p schemagen --example recorded`.

use std::collections::BTreeMap;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use meta::decode::{FieldValidation, Media, conform, decode};
use meta::{Quantity, TypeRef, Value, proto};

fn main() {
    let Some(folder) = std::env::var_os("GANTRY_RECORDINGS") else {
        println!("GANTRY_RECORDINGS is not set: nothing to compare with");
        return;
    };
    let folder = Path::new(&folder);
    let mut score = Score::default();
    let objects = lines(&folder.join("objects.jsonl"));
    for row in &objects {
        object(row, &mut score);
        owners(row, &mut score);
    }
    for row in lines(&folder.join("sequences.jsonl")) {
        patches(&row, &mut score);
    }
    documents(folder, &mut score);
    definitions(folder, &objects, &mut score);
    damaged(folder, &objects, &mut score);
    for row in lines(&folder.join("quantities.jsonl")) {
        quantity(&row, &mut score);
    }
    for (part, (good, all)) in &score.0 {
        println!("{part:24} {good:6} of {all:6}");
    }
}

/// How many of each part agree.
#[derive(Default)]
struct Score(BTreeMap<&'static str, (usize, usize)>);

impl Score {
    fn add(&mut self, part: &'static str, agrees: bool, say: impl FnOnce() -> String) {
        const SHOWN: usize = 12;
        let (good, all) = self.0.entry(part).or_default();
        *all += 1;
        *good += usize::from(agrees);
        if !agrees && *all - *good <= SHOWN {
            println!("{part}: {}", say());
        }
    }
}

fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    // Marks for what differs from run to run stand where times should.
    let time = "2026-01-01T00:00:00Z";
    let text = ["<creationTimestamp>", "<deletionTimestamp>", "<time>"]
        .iter()
        .fold(text, |text, mark| text.replace(mark, time));
    text.lines().filter_map(|line| Value::parse(line.as_bytes()).ok()).collect()
}

fn type_of(object: &Value) -> Option<TypeRef<'static>> {
    let version = object["apiVersion"].text();
    let (group, version) = version.split_once('/').unwrap_or(("", version));
    api::schema::kind(group, version, object["kind"].text())
}

fn json(value: &Value) -> String {
    String::from_utf8_lossy(&value.to_json()).into_owned()
}

/// The first place where two values differ.
fn difference(a: &Value, b: &Value, path: String) -> Option<String> {
    match (a, b) {
        (Value::Map(x), Value::Map(y)) => {
            let keys: std::collections::BTreeSet<&str> = x.keys().chain(y.keys()).collect();
            keys.into_iter().find_map(|key| difference(&a[key], &b[key], format!("{path}.{key}")))
        }
        (Value::List(x), Value::List(y)) if x.len() == y.len() => {
            (0..x.len()).find_map(|at| difference(&x[at], &y[at], format!("{path}[{at}]")))
        }
        _ if a == b => None,
        _ => Some(format!("{path}: recorded {}, ours {}", json(a), json(b))),
    }
}

fn object(row: &Value, score: &mut Score) {
    let (id, stored) = (row["id"].text(), &row["stored"]);
    let Some(of) = type_of(stored) else { return };
    let mut ours = stored.clone();
    let conformed = conform(&mut ours, of, FieldValidation::Strict, &[]);
    let differs = difference(stored, &ours, String::new());
    score.add("normalised", conformed.is_ok() && differs.is_none() && ours == *stored, || {
        format!("{id} {conformed:?} {differs:?}")
    });
    let body = row["request"].to_json();
    let decoded = decode(&body, Media::Json, of, FieldValidation::Strict);
    score.add("request decoded", decoded.is_ok(), || format!("{id} {decoded:?}"));
    let yaml = decode(&body, Media::Yaml, of, FieldValidation::Strict);
    score.add("request decoded as YAML", yaml == decoded, || format!("{id} {yaml:?}"));
    let Ok(bytes) = STANDARD.decode(row["protobuf"].text()) else { return };
    let encoded = proto::encode(stored, of).unwrap_or_default();
    score.add("protobuf bytes", encoded == bytes, || {
        let at = encoded.iter().zip(&bytes).take_while(|(a, b)| a == b).count();
        let near = |bytes: &[u8]| {
            String::from_utf8_lossy(&bytes[at.saturating_sub(60)..(at + 40).min(bytes.len())]).into_owned()
        };
        format!("{id} at {at} of {}: recorded {:?} ours {:?}", bytes.len(), near(&bytes), near(&encoded))
    });
    let read = decode(&bytes, Media::Protobuf, of, FieldValidation::Strict);
    let differs = read.as_ref().map(|(value, _)| difference(stored, value, String::new()));
    score.add("protobuf decoded", matches!(differs, Ok(None)), || format!("{id} {differs:?}"));
}

/// The change as a JSON merge patch.
fn merged(base: &Value, change: &Value) -> Value {
    let Value::Map(change) = change else { return change.clone() };
    let mut result = if base.as_map().is_some() { base.clone() } else { Value::map() };
    for (key, value) in change.iter() {
        if value.is_null() {
            result.make_map().remove(key);
        } else {
            let inner = merged(&base[key], value);
            result.make_map().insert(key, inner);
        }
    }
    result
}

fn damaged(folder: &Path, objects: &[Value], score: &mut Score) {
    let mut files: Vec<_> = std::fs::read_dir(folder.join("damaged")).into_iter().flatten().flatten().collect();
    files.sort_by_key(std::fs::DirEntry::path);
    for row in files.iter().flat_map(|file| lines(&file.path())) {
        let id = row["id"].text();
        let base = id.split(':').next().unwrap_or_default();
        let Some(request) = objects.iter().find(|row| row["id"].text() == base) else { continue };
        let Some(of) = type_of(&request["request"]) else { continue };
        let body = merged(&request["request"], &row["change"]);
        let decoded = decode(&body.to_json(), Media::Json, of, FieldValidation::Strict);
        let refused = row["code"].as_int() == Some(400);
        score.add("damaged decoded", decoded.is_err() == refused || row["code"].as_int() == Some(0), || {
            format!("{id} {} {} ours {:?}", json(&row["code"]), row["status"]["message"].text(), decoded.as_ref().err())
        });
        if let (true, Err(error)) = (refused, decoded) {
            let version = body["apiVersion"].text().rsplit('/').next().unwrap_or_default();
            let ours = error.status(version, body["kind"].text()).message().to_owned();
            let recorded = row["status"]["message"].text();
            score.add("damaged wording", ours == recorded, || format!("{id}\n   {recorded}\n   {ours}"));
        }
    }
}

fn quantity(row: &Value, score: &mut Score) {
    let text = row["in"].text();
    let ours = Quantity::parse(text);
    let agrees = match (&ours, row["code"].as_int()) {
        (Ok(ours), Some(201)) => ours.to_string() == row["out"].text(),
        (Err(_), Some(400)) => true,
        // Refused for its value, which the message tells.
        (Ok(ours), Some(422)) => {
            let causes = row["status"]["details"]["causes"].items();
            let said = causes.iter().find_map(|cause| cause["message"].text().split('"').nth(1));
            // The answer is rounded to thousandths.
            said.is_none_or(|said| said == ours.to_string() || Quantity::from_milli(ours.milli()).to_string() == said)
        }
        _ => false,
    };
    score.add("quantities", agrees, || format!("{text:?} {} ours {ours:?}", json(row)));
}

/// Replays the patches of each sequence on the objects that were answered before, without defaults: only the patched
/// members are compared.
fn patches(row: &Value, score: &mut Score) {
    let mut live: BTreeMap<String, Value> = BTreeMap::new();
    for step in row["steps"].items() {
        let path = step["path"].text().split('?').next().unwrap_or_default().to_owned();
        let answer = &step["answer"];
        let succeeded = step["code"].as_int().is_some_and(|code| code < 300);
        if step["method"].text() == "PATCH"
            && let (Some(old), Some(of)) = (live.get(&path), live.get(&path).and_then(type_of))
        {
            patch(row["id"].text(), step, old, of, succeeded, score);
        }
        if succeeded && !answer["metadata"]["name"].is_null() {
            let name = answer["metadata"]["name"].text();
            let path = if step["method"].text() == "POST" { format!("{path}/{name}") } else { path };
            live.insert(path, answer.clone());
        }
    }
}

fn patch(id: &str, step: &Value, old: &Value, of: TypeRef<'_>, succeeded: bool, score: &mut Score) {
    let body = match step["body"].as_str() {
        Some(text) => Value::parse(text.as_bytes()).unwrap_or_default(),
        None => step["body"].clone(),
    };
    let query = step["path"].text().split('?').nth(1).unwrap_or_default();
    let manager = query.split('&').find_map(|part| part.strip_prefix("fieldManager=")).unwrap_or("recorder");
    let reset = meta::apply::Set::of_fields(&[&["status"]]);
    let writer = meta::apply::Writer {
        manager,
        api_version: old["apiVersion"].text(),
        subresource: "",
        now: base::Time::default(),
        reset: &reset,
    };
    let patched = match step["ctype"].text() {
        "application/json-patch+json" => meta::patch::json_patch(old, &body).map_err(|error| error.status()),
        "application/merge-patch+json" => {
            let mut patched = old.clone();
            meta::patch::merge_patch(&mut patched, &body);
            Ok(patched)
        }
        "application/strategic-merge-patch+json" => {
            meta::patch::strategic(old, &body, of).map_err(|error| error.status())
        }
        _ => {
            let force = query.contains("force=true");
            meta::apply::apply(Some(old), &body, of, &writer, force).map_err(|error| error.status())
        }
    };
    let applies = step["ctype"].text().contains("apply");
    let result = patched.and_then(|mut value| {
        meta::normalise::normalise(&mut value, of, &mut Vec::new())
            .map_err(|error| meta::patch::unfit(&value, &error))?;
        if !applies {
            meta::apply::track_update(Some(old), &mut value, of, &writer);
        }
        Ok(value)
    });
    match (result, succeeded) {
        (Ok(ours), true) => {
            let part = |value: &Value| {
                let mut value = value.clone();
                for path in [
                    &["metadata", "managedFields"][..],
                    &["metadata", "generation"],
                    &["metadata", "resourceVersion"],
                    &["status"],
                ] {
                    value.take(path);
                }
                value
            };
            let differs = difference(&part(&step["answer"]), &part(&ours), String::new());
            score.add("patched", differs.is_none(), || format!("{id} {} {differs:?}", json(&body)));
            let owners = |value: &Value| -> Vec<String> {
                let entries = value["metadata"]["managedFields"].items().iter();
                let mut all: Vec<String> = entries
                    .map(|entry| {
                        format!(
                            "{} {} {}",
                            entry["manager"].text(),
                            entry["operation"].text(),
                            json(&entry["fieldsV1"])
                        )
                    })
                    .collect();
                all.sort();
                all
            };
            let (recorded, found) = (owners(&step["answer"]), owners(&ours));
            score.add("owners", recorded == found, || format!("{id} {}\n  {recorded:?}\n  {found:?}", json(&body)));
        }
        (Err(status), false) => {
            let recorded = step["code"].as_int();
            score.add("patch refused", recorded == Some(i64::from(status.code())), || {
                format!("{id} {recorded:?} {status}")
            });
        }
        (Err(status), true) => score.add("patched", false, || format!("{id} refused: {status}")),
        (Ok(_), false) => {}
    }
}

/// The owners of a new object, as far as they follow without defaults and allocations.
fn owners(row: &Value, score: &mut Score) {
    let stored = &row["stored"];
    let Some(of) = type_of(stored) else { return };
    let mut new = stored.clone();
    let recorded = new.take(&["metadata", "managedFields"]).unwrap_or_default();
    let api_version = stored["apiVersion"].text();
    let reset = meta::apply::Set::of_fields(&[&["status"]]);
    let now = base::Time::default();
    let writer = meta::apply::Writer { manager: "recorder", api_version, subresource: "", now, reset: &reset };
    meta::apply::track_update(None, &mut new, of, &writer);
    let set = |entries: &Value| {
        let own = entries.items().iter().find(|entry| entry["manager"].text() == "recorder");
        own.and_then(|entry| meta::apply::Set::from_fields(&entry["fieldsV1"]).ok()).unwrap_or_default()
    };
    let (recorded, ours) = (set(&recorded), set(&new["metadata"]["managedFields"]));
    let (missing, more) = (recorded.clone().difference(&ours), ours.difference(&recorded));
    score.add("owners of new objects", missing.is_empty() && more.is_empty(), || {
        format!("{} missing {:?} more {:?}", row["id"].text(), missing.paths(), more.paths())
    });
}

/// Compares the schemas of the v3 documents with the recorded ones, without words and enumerations.
fn documents(folder: &Path, score: &mut Score) {
    let mut files: Vec<_> = std::fs::read_dir(folder.join("openapi")).into_iter().flatten().flatten().collect();
    files.sort_by_key(std::fs::DirEntry::path);
    for file in files {
        let Ok(text) = std::fs::read(file.path()) else { continue };
        let Ok(document) = Value::parse(&text) else { continue };
        let mut served: Vec<meta::Names> = Vec::new();
        for (path, item) in document["paths"].entries().iter() {
            let gvk = &item["get"]["x-kubernetes-group-version-kind"];
            let last = path.rsplit('/').next().unwrap_or_default();
            if item["get"]["x-kubernetes-action"].text() == "list" && !path.contains("/watch/") {
                served.push(meta::Names {
                    group: gvk["group"].text().into(),
                    version: gvk["version"].text().into(),
                    kind: gvk["kind"].text().into(),
                    list_kind: format!("{}List", gvk["kind"].text()).into(),
                    plural: last.into(),
                    singular: gvk["kind"].text().to_lowercase().into(),
                    short: Vec::new(),
                    categories: Vec::new(),
                    namespaced: path.contains("{namespace}"),
                });
            }
        }
        let resources: Vec<meta::openapi::Served<'_>> = served
            .iter()
            .map(|names| meta::openapi::Served { names, verbs: &meta::Verb::ALL, subresources: &[], custom: None })
            .collect();
        let ours = meta::openapi::v3(&resources, api::schema::builtin(), &api::descriptions::description, "1.37");
        for (name, recorded) in document.at(&["components", "schemas"]).entries().iter() {
            let found = &ours.at(&["components", "schemas"])[name];
            if !found.is_null() {
                let differs = difference(&bare(recorded), &bare(found), String::new());
                score.add("documents", differs.is_none(), || format!("{name} {differs:?}"));
            }
        }
        for (path, recorded) in document["paths"].entries().iter() {
            let found = &ours["paths"][path];
            for method in ["get", "post", "put", "patch", "delete"] {
                if !found[method].is_null() {
                    let id = |item: &Value| json(&item[method]["operationId"]);
                    score.add("operations", id(recorded) == id(found), || format!("{} {}", id(recorded), id(found)));
                }
            }
        }
    }
}

/// A schema without what differs by intent.
fn bare(schema: &Value) -> Value {
    match schema {
        Value::Map(map) => {
            let kept = map.iter().filter(|(key, value)| {
                !(*key == "description" && value.as_str().is_some()
                    || *key == "enum"
                    || *key == "x-kubernetes-unions"
                    || *key == "x-kubernetes-group-version-kind")
            });
            Value::Map(kept.map(|(key, value)| (key, bare(value))).collect())
        }
        Value::List(items) => {
            let mut items: Vec<Value> = items.iter().map(bare).collect();
            items.sort_by_key(Value::to_json);
            Value::from(items)
        }
        other => other.clone(),
    }
}

/// Checks the schemas of damaged definitions: the same fields must be found wrong.
fn definitions(folder: &Path, objects: &[Value], score: &mut Score) {
    const AT: &str = "spec.validation.openAPIV3Schema";
    let base = objects.iter().find(|row| row["id"].text().starts_with("CustomResourceDefinition/"));
    let Some(base) = base else { return };
    for row in lines(&folder.join("damaged/customresourcedefinition.jsonl")) {
        let body = merged(&base["request"], &row["change"]);
        let code = row["code"].as_int().unwrap_or(0);
        if !matches!(code, 201 | 422) {
            continue;
        }
        let Some(of) = type_of(&body) else { continue };
        let Ok((body, _)) = decode(&body.to_json(), Media::Json, of, FieldValidation::Ignore) else { continue };
        let schema = &body["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        if schema.is_null() {
            continue;
        }
        let (spec, root) = (meta::Path::ROOT.field("spec"), meta::Path::ROOT);
        let _ = root;
        let validation = spec.field("validation");
        let at = meta::At { value: schema, path: validation.field("openAPIV3Schema") };
        let mut errors = meta::Errors::default();
        meta::schema::check_definition(&at, api::schema::meta_v1("ObjectMeta"), &mut errors);
        let mut ours: Vec<(String, String)> =
            errors.0.iter().map(|error| (error.field.clone(), error.fault.reason().to_owned())).collect();
        let causes = row["status"]["details"]["causes"].items().iter();
        // What CEL finds is not looked at here.
        let is_cel = |cause: &Value| {
            let field = cause["field"].text();
            field.ends_with("fieldPath")
                || field.contains("x-kubernetes-validations") && cause["reason"].text().ends_with("Invalid")
        };
        let mut recorded: Vec<(String, String)> = causes
            .filter(|cause| cause["field"].text().starts_with(AT) && !is_cel(cause))
            .map(|cause| (cause["field"].text().to_owned(), cause["reason"].text().to_owned()))
            .collect();
        for list in [&mut ours, &mut recorded] {
            list.sort();
            list.dedup();
        }
        score.add("definitions", ours == recorded, || format!("{}\n  {recorded:?}\n  {ours:?}", row["id"].text()));
    }
}
