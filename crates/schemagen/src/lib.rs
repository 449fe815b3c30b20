//! Makes the schema table of the built-in kinds, `crates/api/schema/table.txt`, from the sources of two crates (names
//! and types from `k8s-openapi`, protobuf numbers and markers from `k8s-pb`) and a file of facts that neither holds.
//!
//! Not here: descriptions. `api`'s build script reads those; they are not committed.
//!
//! Invariants: the table is a pure function of the three inputs; nothing is written but by the binary.

pub mod facts;
pub mod names;
pub mod numbers;
pub mod table;

use std::path::{Path, PathBuf};
use std::process::Command;

/// What went wrong while making the table.
#[derive(Debug)]
pub enum Error {
    /// `cargo metadata` did not tell where a crate's sources are.
    Locate(String),
    Read(PathBuf, std::io::Error),
    /// A line of the facts that does not apply to anything.
    Fact(String),
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Error::Locate(what) => write!(f, "locating the sources of a dependency: {what}"),
            Error::Read(path, error) => write!(f, "reading {}: {error}", path.display()),
            Error::Fact(line) => write!(f, "this fact applies to nothing: {line}"),
        }
    }
}

impl std::error::Error for Error {}

/// The table's text, made anew.
pub fn generate() -> Result<String, Error> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR"));
    let sources = locate(workspace, &["k8s-openapi", "k8s-pb"])?;
    let mut types = names::read(&sources[0].join("src/v1_37"))?;
    let messages = numbers::read(&sources[1].join("src"))?;
    numbers::apply(&mut types, &messages);
    let path = workspace.join("facts.txt");
    let facts = std::fs::read_to_string(&path).map_err(|error| Error::Read(path, error))?;
    facts::apply(&mut types, &facts)?;
    Ok(table::write(&types))
}

/// Where the table is kept.
pub fn table_path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../api/schema/table.txt")
}

/// The folders of the sources of `crates`, as `cargo metadata` tells them.
fn locate(workspace: &Path, crates: &[&str]) -> Result<Vec<PathBuf>, Error> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--manifest-path"])
        .arg(workspace.join("Cargo.toml"))
        .output()
        .map_err(|error| Error::Locate(error.to_string()))?;
    if !output.status.success() {
        return Err(Error::Locate(String::from_utf8_lossy(&output.stderr).into_owned()));
    }
    let metadata: serde_json::Value =
        serde_json::from_slice(&output.stdout).map_err(|error| Error::Locate(error.to_string()))?;
    let folder = |name: &&str| {
        let packages = metadata["packages"].as_array().map_or(&[][..], Vec::as_slice);
        packages
            .iter()
            .find(|package| package["name"] == **name)
            .and_then(|package| Some(Path::new(package["manifest_path"].as_str()?).parent()?.to_owned()))
            .ok_or_else(|| Error::Locate(format!("{name} is no dependency")))
    };
    crates.iter().map(folder).collect()
}

/// All `.rs` files below `folder`, in a fixed order.
fn rust_files(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries = std::fs::read_dir(&folder).map_err(|error| Error::Read(folder.clone(), error))?;
        for entry in entries {
            let path = entry.map_err(|error| Error::Read(folder.clone(), error))?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}
