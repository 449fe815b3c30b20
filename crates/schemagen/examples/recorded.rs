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
    }
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
