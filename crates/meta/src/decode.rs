//! From the bytes of a request to a normalised value.
//!
//! Invariants: any bytes give a value or a [`DecodeError`]; what a request may hold is limited in size and depth before
//! it is held.

use std::fmt;

use serde_saphyr::DuplicateKeyPolicy;

use crate::normalise::{TypeError, normalise_change};
use crate::proto;
use crate::schema::TypeRef;
use crate::status::Status;
use crate::value::Value;

/// Most YAML nodes in a document; aliases count each time they are used.
const MAX_YAML_NODES: usize = 500_000;
/// Deepest nesting of YAML; the JSON reader has the same limit of its own.
const MAX_YAML_DEPTH: usize = 120;

/// How a body is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Media {
    Json,
    Yaml,
    Protobuf,
}

/// What happens to unknown and repeated members.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FieldValidation {
    /// They are an error.
    Strict,
    /// They become warnings.
    #[default]
    Warn,
    Ignore,
}

impl FieldValidation {
    /// The query parameter's value; empty is the default. `None` when it is none.
    pub fn of(text: &str) -> Option<FieldValidation> {
        match text {
            "Strict" => Some(FieldValidation::Strict),
            "" | "Warn" => Some(FieldValidation::Warn),
            "Ignore" => Some(FieldValidation::Ignore),
            _ => None,
        }
    }
}

/// Why bytes are no such object.
#[derive(Clone, Debug, PartialEq)]
pub enum DecodeError {
    /// No JSON, YAML or protobuf at all.
    Syntax(String),
    /// A value that its type does not take.
    Type(TypeError),
    /// Unknown or repeated members, each as `unknown field "a.b"`.
    Strict(Vec<String>),
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DecodeError::Syntax(what) => f.write_str(what),
            DecodeError::Type(error) => error.fmt(f),
            DecodeError::Strict(what) => write!(f, "strict decoding error: {}", what.join(", ")),
        }
    }
}

impl std::error::Error for DecodeError {}

impl From<TypeError> for DecodeError {
    fn from(error: TypeError) -> DecodeError {
        DecodeError::Type(error)
    }
}

impl DecodeError {
    /// The refusal of a body that should have been a `kind` of `version` (the version without its group).
    pub fn status(&self, version: &str, kind: &str) -> Status {
        match self {
            DecodeError::Syntax(what) => {
                Status::bad_request(format!("the object provided is unrecognized (must be of type {kind}): {what}"))
            }
            _ => Status::bad_request(format!("{kind} in version {version:?} cannot be handled as a {kind}: {self}")),
        }
    }
}

/// Decodes and normalises `bytes` as `expected`. Returns the value and the warnings.
///
/// # Errors
/// When the bytes are no such object, or, with [`FieldValidation::Strict`], when they hold more than it has.
pub fn decode(
    bytes: &[u8],
    media: Media,
    expected: TypeRef<'_>,
    validation: FieldValidation,
) -> Result<(Value, Vec<String>), DecodeError> {
    let mut duplicates = Vec::new();
    let mut value = read(bytes, media, expected, &mut duplicates)?;
    let warnings = conform(&mut value, expected, validation, &duplicates)?;
    Ok((value, warnings))
}

/// Reads bytes as they are, without a look at the members' types (protobuf cannot be read without). The paths of
/// members that stood twice are added to `duplicates`.
///
/// # Errors
/// [`DecodeError::Syntax`] when they are not of that media type.
pub fn read(
    bytes: &[u8],
    media: Media,
    expected: TypeRef<'_>,
    duplicates: &mut Vec<String>,
) -> Result<Value, DecodeError> {
    read_like(bytes, media, expected, &Value::Null, duplicates)
}

/// Like [`read`], where `like` is at hand, which the value is likely to equal in much: of JSON it is not read again.
///
/// # Errors
/// As [`read`].
pub fn read_like(
    bytes: &[u8],
    media: Media,
    expected: TypeRef<'_>,
    like: &Value,
    duplicates: &mut Vec<String>,
) -> Result<Value, DecodeError> {
    match media {
        Media::Json => {
            let error = |error| DecodeError::Syntax(format!("couldn't get version/kind; json parse error: {error}"));
            Value::parse_like(bytes, like, duplicates).map_err(error)
        }
        Media::Yaml => yaml(bytes, duplicates),
        Media::Protobuf => proto::decode(bytes, expected).map_err(|error| DecodeError::Syntax(error.to_string())),
    }
}

/// Normalises a value that came in and judges what it had too much; `duplicates` are the paths of repeated members.
/// Returns the warnings.
///
/// # Errors
/// As [`decode`].
pub fn conform(
    value: &mut Value,
    expected: TypeRef<'_>,
    validation: FieldValidation,
    duplicates: &[String],
) -> Result<Vec<String>, DecodeError> {
    conform_change(value, &Value::Null, expected, validation, duplicates)
}

/// Like [`conform`], where `value` was made of `old`, which conforms: what it shares with it does.
///
/// # Errors
/// As [`decode`].
pub fn conform_change(
    value: &mut Value,
    old: &Value,
    expected: TypeRef<'_>,
    validation: FieldValidation,
    duplicates: &[String],
) -> Result<Vec<String>, DecodeError> {
    let mut unknown = Vec::new();
    normalise_change(value, old, expected, &mut unknown)?;
    if validation == FieldValidation::Ignore || (unknown.is_empty() && duplicates.is_empty()) {
        return Ok(Vec::new());
    }
    let mut all: Vec<String> = unknown.iter().map(|path| format!("unknown field {path:?}")).collect();
    all.extend(duplicates.iter().map(|path| format!("duplicate field {path:?}")));
    match validation {
        FieldValidation::Strict => Err(DecodeError::Strict(all)),
        _ => Ok(all),
    }
}

/// Reads one YAML document.
fn yaml(bytes: &[u8], duplicates: &mut Vec<String>) -> Result<Value, DecodeError> {
    yaml_with(bytes, DuplicateKeyPolicy::PassThrough, duplicates)
        .map_err(|error| DecodeError::Syntax(format!("couldn't get version/kind; yaml parse error: {error}")))
}

/// Where YAML says a member again: `line 9: key "foo" already set in map`.
pub fn yaml_repeats(bytes: &[u8]) -> Option<String> {
    match yaml_with(bytes, DuplicateKeyPolicy::Error, &mut Vec::new()) {
        Err(serde_saphyr::Error::DuplicateMappingKey { key, location }) => {
            Some(format!("line {}: key {:?} already set in map", location.line(), key.unwrap_or_default()))
        }
        _ => None,
    }
}

fn yaml_with(
    bytes: &[u8],
    repeated: DuplicateKeyPolicy,
    duplicates: &mut Vec<String>,
) -> Result<Value, serde_saphyr::Error> {
    let mut budget = serde_saphyr::Budget::default();
    budget.max_nodes = MAX_YAML_NODES;
    budget.max_events = 3 * MAX_YAML_NODES;
    budget.max_depth = MAX_YAML_DEPTH;
    budget.max_documents = 1;
    budget.max_total_scalar_bytes = bytes.len().saturating_mul(4).max(1 << 20);
    let mut options = serde_saphyr::Options::default();
    options.budget = Some(budget);
    options.duplicate_keys = repeated;
    options.with_snippet = false;
    serde_saphyr::with_deserializer_from_slice_with_options(bytes, options, |reader| Value::read(reader, duplicates))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::Schema;

    const TABLE: &str = "package io.k8s.api.core.v1
A /v1
 apiVersion - str o
 kind - str o
 list 1 []A o
 name 2 str o
 when 3 *time o
 count 4 *i32 o
 cpu 5 {}quantity o
";

    fn check(body: &str, media: Media, validation: FieldValidation) -> String {
        let schema = Schema::parse(TABLE).unwrap();
        match decode(body.as_bytes(), media, schema.kind("", "v1", "A").unwrap(), validation) {
            Ok((value, warnings)) => format!("{} {warnings:?}", String::from_utf8(value.to_json()).unwrap()),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn what_is_too_much_is_told_as_asked() {
        use FieldValidation::{Ignore, Strict, Warn};
        let body = r#"{"Name":"x","list":[{"z":1}],"name":"a","name":"b"}"#;
        let told = r#"unknown field "Name", unknown field "list[0].z", duplicate field "name""#;
        assert_eq!(check(body, Media::Json, Strict), format!("strict decoding error: {told}"));
        let warned = r#"["unknown field \"Name\"", "unknown field \"list[0].z\"", "duplicate field \"name\""]"#;
        assert_eq!(check(body, Media::Json, Warn), format!(r#"{{"list":[{{}}],"name":"b"}} {warned}"#));
        assert_eq!(check(body, Media::Json, Ignore), r#"{"list":[{}],"name":"b"} []"#);
        assert_eq!(
            check("name: a\ncount: 3\nname: b\n", Media::Yaml, Strict),
            "strict decoding error: duplicate field \"name\""
        );
    }

    #[test]
    fn what_yaml_repeats_is_told_by_its_line() {
        let repeats = |text: &str| yaml_repeats(text.as_bytes());
        assert_eq!(repeats("\na: 1\nb:\n  c: 1\n  c: 2\n").as_deref(), Some("line 5: key \"c\" already set in map"));
        assert_eq!(repeats("a: 1\nb: [1, 1]\n"), None);
    }

    #[test]
    fn yaml_is_limited() {
        assert_eq!(
            check("name: \"yes\"\ncount: 3\n", Media::Yaml, FieldValidation::Strict),
            r#"{"count":3,"name":"yes"} []"#
        );
        let bomb: String = (1..40).fold("a0: &a0 [x,x,x,x,x,x,x,x,x]\n".to_owned(), |text, at| {
            let last = at - 1;
            let many = format!("*a{last},").repeat(9);
            format!("{text}a{at}: &a{at} [{many}]\n")
        });
        assert!(check(&bomb, Media::Yaml, FieldValidation::Ignore).contains("yaml parse error"));
        assert!(check("a: 1\n---\nb: 2\n", Media::Yaml, FieldValidation::Ignore).contains("yaml parse error"));
        assert!(check(&"[".repeat(5_000), Media::Yaml, FieldValidation::Ignore).contains("yaml parse error"));
    }

    #[test]
    fn any_bytes_are_read_or_refused() {
        let schema = Schema::parse(TABLE).unwrap();
        let of = schema.kind("", "v1", "A").unwrap();
        let start =
            br#"{"list":[{"name":"x","when":"2026-01-01T00:00:00Z","cpu":{"a":"1Gi"}}],"count":3,"name":"\u00e9"}"#;
        let mut rng = base::Rng::new(9);
        for _ in 0..20_000 {
            let mut bytes = start.to_vec();
            for _ in 0..1 + rng.below(5) {
                let at = rng.below(bytes.len() as u64) as usize;
                match rng.below(4) {
                    0 => bytes[at] = rng.next_u64() as u8,
                    1 => bytes[at] = b"[]{},:\"0-&*!|>%#"[rng.below(16) as usize],
                    2 => bytes.truncate(at.max(1)),
                    _ => bytes.insert(at, b'\n'),
                }
            }
            let _ = decode(&bytes, Media::Json, of, FieldValidation::Strict);
            let _ = decode(&bytes, Media::Yaml, of, FieldValidation::Warn);
        }
    }
}
