//! Packs the descriptions of all fields, read from the sources of `k8s-openapi`, into one file. They are not committed:
//! they are the words of that crate's authors.

use std::collections::BTreeMap;
use std::error::Error;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=Cargo.toml");
    let folder = locate("k8s-openapi")?.join("src/v1_37");
    let mut words = BTreeMap::new();
    read_folder(&folder, &mut words)?;
    let mut text = String::new();
    for ((name, field), description) in &words {
        text.push_str(&format!("{name}\t{field}\t{}\n", description.replace('\\', "\\\\").replace('\n', "\\n")));
    }
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    let file = std::fs::File::create(out.join("descriptions.z"))?;
    let mut packer = flate2::write::ZlibEncoder::new(file, flate2::Compression::best());
    packer.write_all(text.as_bytes())?;
    packer.finish()?;
    Ok(())
}

/// The folder of a crate's sources.
fn locate(name: &str) -> Result<PathBuf, Box<dyn Error>> {
    let cargo = std::env::var("CARGO")?;
    let manifest = Path::new(&std::env::var("CARGO_MANIFEST_DIR")?).join("Cargo.toml");
    let output =
        Command::new(cargo).args(["metadata", "--format-version", "1", "--manifest-path"]).arg(manifest).output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into());
    }
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let packages = metadata["packages"].as_array().ok_or("cargo metadata without packages")?;
    let package = packages.iter().find(|package| package["name"] == name).ok_or("no such dependency")?;
    let manifest = Path::new(package["manifest_path"].as_str().ok_or("package without manifest")?);
    Ok(manifest.parent().ok_or("manifest without folder")?.to_owned())
}

type Words = BTreeMap<(String, String), String>;

fn read_folder(folder: &Path, words: &mut Words) -> Result<(), Box<dyn Error>> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            read_folder(&path, words)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            read_file(&std::fs::read_to_string(&path)?, words);
        }
    }
    Ok(())
}

/// Reads the JSON schema that each type's source holds: a property's name stands at 16 blanks, its description below.
fn read_file(text: &str, words: &mut Words) {
    let Some(name) = text.lines().find_map(|line| line.strip_prefix("// Generated from definition ")) else { return };
    let Some((_, schema)) = text.split_once("json_schema!({") else { return };
    let mut field = String::new();
    for line in schema.lines() {
        let inside = line.trim_start_matches(' ');
        let depth = line.len() - inside.len();
        if depth == 16 && inside.starts_with('"') {
            field = inside[1..].split('"').next().unwrap_or_default().to_owned();
            continue;
        }
        let start = match depth {
            12 => "\"description\": ",
            20 if inside.starts_with("schema_obj") => "schema_obj.ensure_object().insert(\"description\".into(), ",
            20 => "\"description\": ",
            _ => continue,
        };
        let Some(literal) = inside.strip_prefix(start).and_then(|rest| rest.strip_prefix('"')) else { continue };
        let key = (name.trim().to_owned(), if depth == 12 { String::new() } else { field.clone() });
        words.entry(key).or_insert_with(|| unescape(literal));
    }
}

/// A Rust string literal's text, up to its closing quote.
fn unescape(literal: &str) -> String {
    let mut text = String::new();
    let mut chars = literal.chars();
    while let Some(char) = chars.next() {
        match char {
            '"' => break,
            '\\' => match chars.next() {
                Some('n') => text.push('\n'),
                Some('t') => text.push('\t'),
                Some(other) => text.push(other),
                None => break,
            },
            char => text.push(char),
        }
    }
    text
}
