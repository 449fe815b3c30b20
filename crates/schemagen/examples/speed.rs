//! Times the generic steps on one object: `cargo run --release -p schemagen --example speed -- FILE`, where FILE
//! holds one JSON object of a built-in kind. Prints microseconds of CPU per operation.

use std::hint::black_box;
use std::time::Instant;

use meta::decode::{FieldValidation, Media, decode};
use meta::{Value, apply, proto};

fn main() {
    let Some(path) = std::env::args().nth(1) else {
        println!("usage: speed FILE");
        return;
    };
    let start = Instant::now();
    let structs = api::schema::builtin().structs().len();
    println!("{structs} types read in {:?}, {} bytes", start.elapsed(), api::schema::builtin().size_bytes());
    let Ok(text) = std::fs::read(&path) else { return println!("cannot read {path}") };
    let Ok(object) = Value::parse(&text) else { return println!("{path} holds no JSON") };
    let version = object["apiVersion"].text();
    let (group, version) = version.split_once('/').unwrap_or(("", version));
    let Some(of) = api::schema::kind(group, version, object["kind"].text()) else { return println!("no such kind") };
    let text = object.to_json();
    time("parse", || Value::parse(&text));
    time("decode", || decode(&text, Media::Json, of, FieldValidation::Strict));
    time("write JSON", || object.to_json());
    let bytes = proto::encode(&object, of).unwrap_or_default();
    time("write protobuf", || proto::encode(&object, of));
    time("read protobuf", || decode(&bytes, Media::Protobuf, of, FieldValidation::Strict));
    let reset = apply::Set::of_fields(&[&["status"]]);
    let api_version = object["apiVersion"].text();
    let writer =
        apply::Writer { manager: "m", api_version, subresource: "", now: base::Time::default(), reset: &reset };
    let mut bare = object.clone();
    bare.take(&["metadata", "managedFields"]);
    time("clone", || bare.clone());
    time("track a create", || {
        let mut new = bare.clone();
        apply::track_update(None, &mut new, of, &writer);
        new
    });
    time("track an update", || {
        let mut new = object.clone();
        new.set(&["metadata", "labels", "changed"], "yes");
        apply::track_update(Some(&object), &mut new, of, &writer);
        new
    });
}

fn time<T>(name: &str, mut run: impl FnMut() -> T) {
    const ROUNDS: u32 = 5_000;
    let start = Instant::now();
    for _ in 0..ROUNDS {
        black_box(run());
    }
    println!("{name:16} {:8.2} us", start.elapsed().as_secs_f64() * 1e6 / f64::from(ROUNDS));
}
