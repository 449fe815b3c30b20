//! The functions that expressions may call: rows of a signature and what it does.
//!
//! A signature is `name(types) result`, or `type#name(types) result` for what is called on a value. `A` and `B` stand for
//! any type.

pub mod authorizer;
pub mod format;
pub mod lists;
mod net;
mod numbers;
mod quantities;
pub mod semver;
mod text;
pub mod times;
pub mod url;

use std::collections::HashMap;
use std::sync::LazyLock;

use crate::types::Type;
use crate::value::{Fail, Val, fail};

pub type Run = for<'a> fn(&[Val<'a>]) -> Result<Val<'a>, Fail>;

/// A signature and what it does.
pub struct Row(pub &'static str, pub Run);

/// A row, taken apart.
#[derive(Debug)]
pub struct Overload {
    pub name: &'static str,
    pub member: bool,
    /// The target of a member is the first.
    pub params: Vec<Type>,
    pub result: Type,
    pub run: Run,
}

const TABLES: &[&[Row]] = &[
    numbers::ROWS,
    text::ROWS,
    lists::ROWS,
    times::ROWS,
    quantities::ROWS,
    url::ROWS,
    net::ROWS,
    semver::ROWS,
    format::ROWS,
    authorizer::ROWS,
];

/// The overloads of a name: plain ones, and those of members.
#[derive(Default)]
struct Named {
    plain: Vec<Overload>,
    members: Vec<Overload>,
}

static ALL: LazyLock<HashMap<&'static str, Named>> = LazyLock::new(|| {
    let mut all: HashMap<&'static str, Named> = HashMap::new();
    for Row(signature, run) in TABLES.iter().flat_map(|rows| rows.iter()) {
        let overload = read(signature, *run).expect("every signature is of the form, as a test shows");
        let named = all.entry(overload.name).or_default();
        if overload.member { named.members.push(overload) } else { named.plain.push(overload) }
    }
    all
});

fn read(signature: &'static str, run: Run) -> Option<Overload> {
    let (head, rest) = signature.split_once('(')?;
    let (params, result) = rest.split_once(')')?;
    let (target, name) = match head.split_once('#') {
        Some((target, name)) => (Some(target), name),
        None => (None, head),
    };
    let mut types: Vec<Type> = target.into_iter().map(Type::parse).collect();
    types.extend(split(params).into_iter().map(Type::parse));
    Some(Overload { name, member: target.is_some(), params: types, result: Type::parse(result), run })
}

/// Parts between the commas that do not stand in angles.
fn split(text: &str) -> Vec<&str> {
    let (mut parts, mut start, mut depth) = (Vec::new(), 0, 0);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'<' => depth += 1,
            b'>' => depth -= 1,
            b',' if depth == 0 => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    if !text.is_empty() {
        parts.push(&text[start..]);
    }
    parts
}

/// All overloads of a name.
pub fn overloads(name: &str, member: bool) -> &'static [Overload] {
    match (ALL.get(name), member) {
        (Some(named), true) => &named.members,
        (Some(named), false) => &named.plain,
        (None, _) => &[],
    }
}

/// The value is not what the checker promised; only where its type was unknown.
pub(crate) fn no_such<'a>() -> Result<Val<'a>, Fail> {
    fail("no such overload")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_signature_is_read() {
        assert!(TABLES.iter().flat_map(|rows| rows.iter()).all(|Row(signature, run)| read(signature, *run).is_some()));
        assert_eq!(overloads("indexOf", true).len(), 3);
        assert!(overloads("nothing", false).is_empty());
    }
}
