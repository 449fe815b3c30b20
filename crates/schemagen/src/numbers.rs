//! Reads `k8s-pb`: protobuf numbers, and the markers that upstream keeps in comments. Fields that JSON shows in the
//! parent are a message of their own there, so a number may be a path: `2.5`.

use std::collections::BTreeMap;
use std::path::Path;

use crate::table::Types;
use crate::{Error, rust_files};

/// Messages by package and name, all in [`plain`] spelling.
pub type Messages = BTreeMap<String, Message>;

/// One message.
#[derive(Debug, Default)]
pub struct Message {
    markers: Vec<String>,
    fields: Vec<Member>,
}

#[derive(Debug)]
struct Member {
    /// In [`plain`] spelling.
    name: String,
    number: String,
    markers: Vec<String>,
    /// The message it holds, if it holds one: its path in `k8s-pb`, without the leading `super::`s.
    of: String,
    /// How many modules up `of` starts.
    up: usize,
}

/// Letters and digits only, in lower case: the spelling in which both crates agree.
fn plain(name: &str) -> String {
    name.chars().filter(char::is_ascii_alphanumeric).map(|char| char.to_ascii_lowercase()).collect()
}

/// The messages below `folder`.
pub fn read(folder: &Path) -> Result<Messages, Error> {
    let mut messages = Messages::new();
    for path in rust_files(folder)? {
        let text = std::fs::read_to_string(&path).map_err(|error| Error::Read(path.clone(), error))?;
        let inside = path.parent().and_then(|parent| parent.strip_prefix(folder).ok()).unwrap_or(Path::new(""));
        let package: Vec<String> = inside.iter().map(|part| plain(&part.to_string_lossy())).collect();
        read_file(&text, &package.join("."), &mut messages);
    }
    Ok(messages)
}

fn read_file(text: &str, package: &str, messages: &mut Messages) {
    let mut markers: Vec<String> = Vec::new();
    let mut number = String::new();
    let mut current: Option<(String, Message)> = None;
    // Long lines are broken after the colon.
    let text = text.replace(":\n        ::core", ": ::core");
    for line in text.lines() {
        let line = line.trim();
        if let Some(comment) = line.strip_prefix("///") {
            if comment.trim().starts_with('+') {
                markers.push(comment.trim().to_owned());
            }
        } else if let Some((_, tag)) = line.split_once("tag = \"").filter(|_| line.starts_with("#[prost(")) {
            number = tag.split('"').next().unwrap_or_default().to_owned();
        } else if let Some(name) = line.strip_prefix("pub struct ") {
            let name = name.split([' ', '{']).next().unwrap_or_default();
            let message = Message { markers: std::mem::take(&mut markers), fields: Vec::new() };
            current = Some((format!("{package}.{}", plain(name)), message));
        } else if line == "}" {
            messages.extend(current.take());
            markers.clear();
        } else if let Some((name, of)) = line.strip_prefix("pub ").and_then(|line| line.split_once(": ")) {
            let of = of.trim_end_matches([',', '>']).rsplit('<').next().unwrap_or_default();
            let up = of.matches("super::").count();
            let member = Member {
                name: plain(name.trim_start_matches("r#")),
                number: std::mem::take(&mut number),
                markers: std::mem::take(&mut markers),
                of: of.replace("super::", ""),
                up,
            };
            if let Some((_, message)) = &mut current {
                message.fields.push(member);
            }
        }
    }
}

/// Puts numbers and markers into `types`.
pub fn apply(types: &mut Types, messages: &Messages) {
    for (name, found) in &mut types.0 {
        let Some((package, short)) = name.rsplit_once('.') else { continue };
        let package = package_of(package);
        let Some(message) = messages.get(&format!("{package}.{}", plain(short))) else { continue };
        found.atomic |= message.markers.iter().any(|marker| marker == "+structType=atomic");
        let names: Vec<String> = found.fields.iter().map(|field| plain(&field.name)).collect();
        let mut flat = Vec::new();
        flatten(message, &package, "", &names, messages, &mut flat);
        for (field, name) in found.fields.iter_mut().zip(&names) {
            if let Some((number, member)) = flat.iter().find(|(_, member)| member.name == *name) {
                field.number.clone_from(number);
                field.mark(&member.markers);
            }
        }
    }
}

/// The folder of a package in `k8s-pb`.
fn package_of(package: &str) -> String {
    let parts = package.trim_start_matches("io.k8s.").split('.');
    parts.map(plain).collect::<Vec<_>>().join(".")
}

fn flatten<'a>(
    message: &'a Message,
    package: &str,
    prefix: &str,
    names: &[String],
    messages: &'a Messages,
    flat: &mut Vec<(String, &'a Member)>,
) {
    for member in &message.fields {
        let number = format!("{prefix}{}", member.number);
        if names.contains(&member.name) {
            flat.push((number, member));
            continue;
        }
        let mut home: Vec<&str> = package.split('.').collect();
        home.truncate(home.len().saturating_sub(member.up));
        let mut path: Vec<String> = home.into_iter().map(str::to_owned).collect();
        path.extend(member.of.split("::").map(plain));
        if let Some(inner) = messages.get(&path.join(".")) {
            flatten(inner, &path[..path.len() - 1].join("."), &format!("{number}."), names, messages, flat);
        }
    }
}
