//! Layers, leftovers, forbidden words in cores, sizes of files. Each message says what to do instead.

#![allow(clippy::unwrap_used, reason = "a test's helpers may fail loudly")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Lines of one source file.
const FILE_LINES_MAX: usize = 1000;
/// Rooms that decide: no clock, no randomness, no IO, no threads, no environment, no unordered maps.
const CORES: &[&str] = &["meta", "api", "store", "cache", "reconcile", "controllers", "scheduler"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn sources() -> Vec<(PathBuf, String)> {
    fn walk(dir: &Path, found: &mut Vec<(PathBuf, String)>) {
        for entry in std::fs::read_dir(dir).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                found.push((path, text));
            }
        }
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir(root().join("crates")).unwrap().flatten() {
        let src = entry.path().join("src");
        if src.is_dir() {
            walk(&src, &mut found);
        }
    }
    found
}

/// The code before the tests of a file.
fn product(text: &str) -> &str {
    text.split("#[cfg(test)]").next().unwrap_or(text)
}

#[test]
fn the_layers_are_those_of_the_table() {
    let table = std::fs::read_to_string(root().join("crates/layers.toml")).unwrap();
    let mut allowed: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for line in table.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty()) {
        let (name, list) = line.split_once(" = ").unwrap();
        let words = list.trim_matches(['[', ']']).split(", ").filter(|word| !word.is_empty());
        allowed.insert(name.to_owned(), words.map(|word| word.trim_matches('"').to_owned()).collect());
    }
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline"])
        .current_dir(root())
        .output()
        .unwrap();
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let names: BTreeSet<&str> = packages.iter().map(|package| package["name"].as_str().unwrap()).collect();
    for package in packages {
        let name = package["name"].as_str().unwrap();
        let allowed = allowed.get(name).unwrap_or_else(|| panic!("{name} has no line in crates/layers.toml"));
        for dependency in package["dependencies"].as_array().unwrap() {
            let other = dependency["name"].as_str().unwrap();
            let ours = names.contains(other) && dependency["path"].is_string() && dependency["kind"].is_null();
            assert!(!ours || allowed.contains(other), "{name} may not use {other}: argue it in crates/layers.toml");
        }
    }
}

#[test]
fn no_leftovers() {
    for (path, text) in sources() {
        if path.ends_with("tidy/tests/house.rs") {
            continue;
        }
        for word in ["todo!(", "unimplemented!(", "dbg!(", "FIXME", "XXX"] {
            assert!(!text.contains(word), "{}: {word} is a leftover; finish it or file it", path.display());
        }
        assert!(
            !text.contains("#[ignore"),
            "{}: an ignored test tests nothing; delete it or make it run",
            path.display()
        );
    }
}

#[test]
fn files_are_a_sitting() {
    for (path, text) in sources() {
        let lines = text.lines().count();
        assert!(lines <= FILE_LINES_MAX, "{} has {lines} lines: divide it", path.display());
        assert!(
            text.starts_with("//!") || lines < 5 || path.ends_with("tests.rs"),
            "{}: say what it is (`//!`)",
            path.display()
        );
    }
}

#[test]
fn cores_decide_and_do_nothing_else() {
    let forbidden = ["SystemTime::now", "Instant::now", "thread_rng", "tokio::", "std::env::", "std::net::Tcp"];
    for (path, text) in sources() {
        let text_path = path.to_string_lossy();
        let Some(core) = CORES.iter().find(|core| text_path.contains(&format!("crates/{core}/src"))) else { continue };
        // The embedded store is a shell around its core, in one crate with it.
        if *core == "store" && ["embedded.rs", "disk.rs", "snapshot.rs"].iter().any(|name| path.ends_with(name)) {
            continue;
        }
        for word in forbidden {
            assert!(!product(&text).contains(word), "{}: {word} has no place in a core; pass it in", path.display());
        }
    }
}
