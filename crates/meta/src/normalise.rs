//! What a round trip through Kubernetes' Go types makes of a JSON value: unknown members go, wrong types are
//! refused, empty values go or are written as each field has it, and quantities, times, durations and bytes get
//! their one spelling.
//!
//! Custom resources keep their values as they were written, except for what their schema does not know; their types are
//! checked by `schema::check`, after defaults.
//!
//! Invariants: doing it twice changes nothing; nothing below a free-form type (`RawExtension` …) is touched.

use std::fmt;

use base64::engine::general_purpose::STANDARD;
use base64::{DecodeError, Engine};

use crate::quantity::Quantity;
use crate::schema::{Either, Field, Node, Scalar, Struct, TypeRef, Unknown};
use crate::value::{Map, Str, Value};

/// A value that its type does not take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TypeError(pub String);

impl fmt::Display for TypeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for TypeError {}

/// Normalises `value` as a `of`. The paths of members that were unknown, and are gone, are added to `unknown`.
///
/// # Errors
/// The first value that its type does not take; `value` is then partly changed.
pub fn normalise(value: &mut Value, of: TypeRef<'_>, unknown: &mut Vec<String>) -> Result<(), TypeError> {
    normalise_change(value, &Value::Null, of, unknown)
}

/// Like [`normalise`], where `value` was made of `old`, which is normalised: what it shares with it is.
///
/// # Errors
/// As [`normalise`].
pub fn normalise_change(
    value: &mut Value,
    old: &Value,
    of: TypeRef<'_>,
    unknown: &mut Vec<String>,
) -> Result<(), TypeError> {
    let mut walk = Walk { unknown };
    if value.is_null() && matches!(of.kind(), Node::Struct { .. }) {
        *value = Value::map();
    }
    walk.value(value, old, of, &Place { parent: None, step: Step::Root }, None)
}

/// Most unknown members that are reported.
const MAX_UNKNOWN: usize = 100;

struct Walk<'a> {
    unknown: &'a mut Vec<String>,
}

/// Where the walk is; on the stack, printed only for messages.
struct Place<'a> {
    parent: Option<&'a Place<'a>>,
    step: Step<'a>,
}

enum Step<'a> {
    Root,
    Key(&'a str),
    /// A member of a free-form map.
    Entry(&'a str),
    Item(usize),
}

impl Place<'_> {
    /// `spec.containers[0].name`, or without the places in lists and maps.
    fn print(&self, out: &mut String, places: bool) {
        if let Some(parent) = self.parent {
            parent.print(out, places);
        }
        match self.step {
            Step::Root => {}
            Step::Entry(_) | Step::Item(_) if !places => {}
            Step::Key(key) | Step::Entry(key) => {
                if !out.is_empty() {
                    out.push('.');
                }
                out.push_str(key);
            }
            Step::Item(at) => out.push_str(&format!("[{at}]")),
        }
    }
}

fn json_kind(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(_) => "bool".to_owned(),
        Value::Int(_) | Value::Float(_) => "number".to_owned(),
        Value::Str(_) => "string".to_owned(),
        Value::List(_) => "array".to_owned(),
        Value::Map(_) => "object".to_owned(),
    }
}

#[cold]
fn wrong(value: &Value, of: TypeRef<'_>, place: &Place<'_>, owner: Option<&Struct>) -> TypeError {
    let mut path = String::new();
    place.print(&mut path, false);
    let kind = match (value, of.kind()) {
        (Value::Int(_) | Value::Float(_), Node::Scalar(Scalar::Int32 | Scalar::Int64 | Scalar::IntOrString)) => {
            format!("number {}", String::from_utf8_lossy(&value.to_json()))
        }
        _ => json_kind(value),
    };
    TypeError(match path.as_str() {
        "" => format!("json: cannot unmarshal {kind} into Go value of type {}", of.describe()),
        path => {
            let (owner, of) = (owner.map_or("", Struct::short_name), of.describe());
            format!("json: cannot unmarshal {kind} into Go struct field {owner}.{path} of type {of}")
        }
    })
}

impl Walk<'_> {
    /// `old` is what stood at this place in an object that is normalised.
    fn value(
        &mut self,
        value: &mut Value,
        old: &Value,
        of: TypeRef<'_>,
        place: &Place<'_>,
        owner: Option<&Struct>,
    ) -> Result<(), TypeError> {
        if value.is_shared_with(old) {
            return Ok(());
        }
        match of.kind() {
            Node::Scalar(scalar) => scalar_value(value, *scalar, of, place, owner),
            Node::Struct { of: at, .. } => {
                let found = of.schema.struct_at(*at);
                match value {
                    Value::Map(map) if found.is_loose() => self.loose(map, old, found, of, place),
                    Value::Map(map) => self.structure(map, old, found, of, place),
                    _ if found.is_loose() => Ok(()),
                    other => Err(wrong(other, of, place, owner)),
                }
            }
            Node::List { item, .. } => {
                let item = of.with(*item);
                let Value::List(items) = value else {
                    return if of.is_loose() { Ok(()) } else { Err(wrong(value, of, place, owner)) };
                };
                for (at, found) in items.make_mut().iter_mut().enumerate() {
                    let place = Place { parent: Some(place), step: Step::Item(at) };
                    self.element(found, &old[at], item, &place, owner)?;
                }
                Ok(())
            }
            Node::Map { value: inner, .. } => {
                let inner = of.with(*inner);
                let Value::Map(map) = value else {
                    return if of.is_loose() { Ok(()) } else { Err(wrong(value, of, place, owner)) };
                };
                for (key, found) in map.iter_mut() {
                    let place = Place { parent: Some(place), step: Step::Entry(key) };
                    self.element(found, &old[key], inner, &place, owner)?;
                }
                Ok(())
            }
            // What is unknown below these is not reported, as upstream does not.
            Node::Either(either, inner) => {
                Walk { unknown: &mut Vec::new() }.either(value, *either, of.with(*inner), place)
            }
        }
    }

    fn either(
        &mut self,
        value: &mut Value,
        either: Either,
        of: TypeRef<'_>,
        place: &Place<'_>,
    ) -> Result<(), TypeError> {
        match (either, &mut *value) {
            (Either::Bool, Value::Bool(_)) => Ok(()),
            (Either::Strings, Value::List(items)) if items.iter().all(|item| item.as_str().is_some()) => Ok(()),
            (Either::List, Value::List(items)) => {
                for (at, found) in items.make_mut().iter_mut().enumerate() {
                    let place = Place { parent: Some(place), step: Step::Item(at) };
                    self.value(found, &Value::Null, of, &place, None)?;
                }
                Ok(())
            }
            _ => self.value(value, &Value::Null, of, place, None),
        }
    }

    /// An item of a list or a value of a map: a null there is the type's zero.
    fn element(
        &mut self,
        value: &mut Value,
        old: &Value,
        of: TypeRef<'_>,
        place: &Place<'_>,
        owner: Option<&Struct>,
    ) -> Result<(), TypeError> {
        if value.is_null() {
            if !of.is_loose() {
                *value = zero(of).unwrap_or(Value::Null);
            }
            return Ok(());
        }
        self.value(value, old, of, place, owner)
    }

    fn structure(
        &mut self,
        map: &mut Map,
        old: &Value,
        found: &Struct,
        of: TypeRef<'_>,
        place: &Place<'_>,
    ) -> Result<(), TypeError> {
        let fields = found.fields();
        let mut next = 0;
        let mut gone = false;
        // Members and fields are both sorted: one pass over the two.
        for (key, value) in map.iter_mut() {
            let before = &old[key];
            // What stands as it stood is as its type has it. Most members do.
            if value.is_same_as(before) {
                continue;
            }
            while fields.get(next).is_some_and(|field| base::order(field.name.as_bytes(), key.as_bytes()).is_lt()) {
                next += 1;
            }
            let place = Place { parent: Some(place), step: Step::Key(key) };
            let Some(field) = fields.get(next).filter(|field| base::same(field.name.as_bytes(), key.as_bytes())) else {
                if found.unknown == Unknown::Drop {
                    gone = true;
                    self.report(&place);
                }
                continue;
            };
            let inner = of.with(field.of);
            if !value.is_null() {
                self.value(value, before, inner, &place, Some(found))?;
            }
            // Protobuf, in which Kubernetes stores, has no empty lists: they come back as absent ones.
            let is_many = matches!(inner.kind(), Node::List { .. } | Node::Map { .. });
            let is_void = (field.omit_empty || is_many) && !field.pointer && is_empty(value, inner);
            if value.is_null() || is_void && !is_reset(&place, value) {
                gone |= leave_null(value, field, inner);
            }
        }
        if gone {
            map.retain(|key, value| {
                found.field(key).map_or(found.unknown == Unknown::Keep, |field| {
                    !value.is_null() || writes_null(field, of.with(field.of))
                })
            });
        }
        for field in found.written() {
            if !map.contains(&field.name)
                && let Some(zero) = absent(field, of.with(field.of))
            {
                map.insert(field.name.clone(), zero);
            }
        }
        Ok(())
    }

    /// A struct of a custom resource: only what its schema does not know goes.
    fn loose(
        &mut self,
        map: &mut Map,
        old: &Value,
        found: &Struct,
        of: TypeRef<'_>,
        place: &Place<'_>,
    ) -> Result<(), TypeError> {
        let mut gone = false;
        for (key, value) in map.iter_mut() {
            let place = Place { parent: Some(place), step: Step::Key(key) };
            match found.field(key) {
                Some(field) if value.is_null() && !of.with(field.of).is_loose() => {
                    *value = zero(of.with(field.of)).unwrap_or(Value::Null);
                }
                Some(_) if value.is_null() => {}
                Some(field) => self.value(value, &old[key], of.with(field.of), &place, None)?,
                None if found.unknown == Unknown::Drop => {
                    gone = true;
                    self.report(&place);
                }
                None => {}
            }
        }
        if gone {
            map.retain(|key, _| found.field(key).is_some());
        }
        Ok(())
    }

    #[cold]
    fn report(&mut self, place: &Place<'_>) {
        if self.unknown.len() < MAX_UNKNOWN {
            let mut path = String::new();
            place.print(&mut path, true);
            self.unknown.push(path);
        }
    }
}

/// Replaces an empty value by what an absent one is written as; `true` when that is nothing (then it is null).
fn leave_null(value: &mut Value, field: &Field, of: TypeRef<'_>) -> bool {
    match absent(field, of) {
        Some(zero) => {
            *value = zero;
            false
        }
        None => {
            *value = Value::Null;
            true
        }
    }
}

/// An empty list of managers is no absent one: it asks to forget all owners (`crate::apply` takes it out).
fn is_reset(place: &Place<'_>, value: &Value) -> bool {
    let is_at = |place: &Place<'_>, key: &str| matches!(place.step, Step::Key(found) if found == key);
    matches!(value, Value::List(_))
        && is_at(place, "managedFields")
        && place.parent.is_some_and(|parent| {
            is_at(parent, "metadata") && parent.parent.is_some_and(|root| matches!(root.step, Step::Root))
        })
}

fn writes_null(field: &Field, of: TypeRef<'_>) -> bool {
    absent(field, of) == Some(Value::Null)
}

/// What Go writes for the field when it is absent; `None` when it writes nothing.
pub(crate) fn absent(field: &Field, of: TypeRef<'_>) -> Option<Value> {
    if field.pointer {
        return if field.omit_empty { None } else { Some(Value::Null) };
    }
    let plain = |value: Value| if field.omit_empty { None } else { Some(value) };
    match of.kind() {
        Node::List { .. } | Node::Map { .. } => plain(Value::Null),
        Node::Scalar(Scalar::Bool | Scalar::Int32 | Scalar::Int64 | Scalar::Double | Scalar::String) => {
            plain(zero(of).unwrap_or_default())
        }
        Node::Scalar(Scalar::Bytes | Scalar::Any) => plain(Value::Null),
        _ if field.omit_zero => None,
        _ => zero(of),
    }
}

/// What Go writes for the type's zero.
fn zero(of: TypeRef<'_>) -> Option<Value> {
    Some(match of.kind() {
        Node::Scalar(scalar) => match scalar {
            Scalar::Bool => Value::Bool(false),
            Scalar::Int32 | Scalar::Int64 | Scalar::Double | Scalar::IntOrString => Value::Int(0),
            Scalar::String => Value::Str(Str::default()),
            Scalar::Duration => "0s".into(),
            Scalar::Quantity => "0".into(),
            Scalar::Bytes | Scalar::Time | Scalar::MicroTime => Value::Null,
            Scalar::Raw | Scalar::Json | Scalar::FieldsV1 | Scalar::Any => Value::Null,
        },
        Node::Struct { .. } => {
            let mut map = Value::map();
            normalise(&mut map, of, &mut Vec::new()).ok()?;
            map
        }
        Node::List { .. } | Node::Map { .. } | Node::Either(..) => Value::Null,
    })
}

/// Whether `omitempty` leaves the value out.
fn is_empty(value: &Value, of: TypeRef<'_>) -> bool {
    match value {
        Value::Bool(bool) => !bool,
        Value::Int(number) => *number == 0 && !matches!(of.kind(), Node::Scalar(Scalar::IntOrString | Scalar::Any)),
        Value::Float(number) => *number == 0.0 && matches!(of.kind(), Node::Scalar(Scalar::Double)),
        Value::Str(text) => text.is_empty() && matches!(of.kind(), Node::Scalar(Scalar::String | Scalar::Bytes)),
        Value::List(items) => items.is_empty() && matches!(of.kind(), Node::List { .. }),
        Value::Map(map) => map.is_empty() && matches!(of.kind(), Node::Map { .. }),
        Value::Null => true,
    }
}

fn scalar_value(
    value: &mut Value,
    scalar: Scalar,
    of: TypeRef<'_>,
    place: &Place<'_>,
    owner: Option<&Struct>,
) -> Result<(), TypeError> {
    if of.is_loose() {
        return Ok(());
    }
    let fits = match (scalar, &*value) {
        (Scalar::Bool, Value::Bool(_)) | (Scalar::String, Value::Str(_)) | (Scalar::Int64, Value::Int(_)) => true,
        (Scalar::Int32 | Scalar::IntOrString, Value::Int(number)) => i32::try_from(*number).is_ok(),
        (Scalar::IntOrString, Value::Str(_)) => true,
        (Scalar::Double, Value::Int(_)) => true,
        (Scalar::Double, Value::Float(number)) => {
            const EXACT: f64 = 9_007_199_254_740_992.0;
            if number.fract() == 0.0 && number.abs() < EXACT {
                *value = Value::Int(*number as i64);
            }
            true
        }
        (Scalar::Quantity, Value::Str(_) | Value::Int(_) | Value::Float(_)) => return quantity(value),
        (Scalar::Time, Value::Str(text)) => return time(text.clone(), value, base::Time::rfc3339),
        (Scalar::MicroTime, Value::Str(text)) => return time(text.clone(), value, base::Time::rfc3339_micro),
        (Scalar::Duration, Value::Str(text)) => {
            let Some(nanos) = duration_nanos(text) else {
                return Err(TypeError(format!("time: invalid duration {text:?}")));
            };
            *value = duration_text(nanos).into();
            true
        }
        (Scalar::Bytes, Value::Str(text)) => return bytes(text.clone(), value),
        (Scalar::Raw | Scalar::Json | Scalar::FieldsV1 | Scalar::Any, _) => true,
        _ => false,
    };
    if fits { Ok(()) } else { Err(wrong(value, of, place, owner)) }
}

fn quantity(value: &mut Value) -> Result<(), TypeError> {
    let quantity = Quantity::of(value).map_err(|error| TypeError(error.to_string()))?;
    let is_same = matches!(&*value, Value::Str(text) if quantity.kept_text() == Some(text));
    if !is_same {
        *value = quantity.into();
    }
    Ok(())
}

/// Before year 1 and after 9999 there is no text.
pub(crate) const FIRST_SECOND: i64 = -62_135_596_800;
pub(crate) const LAST_SECOND: i64 = 253_402_300_799;

fn time(text: Str, value: &mut Value, write: impl Fn(base::Time) -> String) -> Result<(), TypeError> {
    let is_upper = text.as_bytes().get(10) == Some(&b'T') && !text.ends_with('z');
    let time = base::Time::parse(&text)
        .filter(|_| is_upper)
        .filter(|time| (FIRST_SECOND..=LAST_SECOND).contains(&time.seconds()))
        .ok_or_else(|| TypeError(format!("parsing time {text:?} as \"2006-01-02T15:04:05Z07:00\": cannot parse it")))?;
    // The zero time is written as null.
    *value = if time.0 == FIRST_SECOND * 1_000_000 { Value::Null } else { write(time).into() };
    Ok(())
}

fn bytes(text: Str, value: &mut Value) -> Result<(), TypeError> {
    let plain: String = text.chars().filter(|char| !matches!(char, '\r' | '\n')).collect();
    let decoded = STANDARD.decode(plain).map_err(|error| {
        let at = match error {
            DecodeError::InvalidByte(at, _) | DecodeError::InvalidLastSymbol(at, _) => at,
            DecodeError::InvalidLength(length) => length,
            DecodeError::InvalidPadding => text.len(),
        };
        TypeError(format!("illegal base64 data at input byte {at}"))
    })?;
    *value = STANDARD.encode(decoded).into();
    Ok(())
}

/// Nanoseconds of a Go duration: `1h30m`, `-1.5s`, `0`.
pub fn duration_nanos(text: &str) -> Option<i64> {
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(0);
    }
    if rest.is_empty() {
        return None;
    }
    let mut total: i128 = 0;
    while !rest.is_empty() {
        let digits = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
        let (whole, after) = rest.split_at(digits(rest));
        let (fraction, after) = match after.strip_prefix('.') {
            Some(after) => after.split_at(digits(after)),
            None => ("", after),
        };
        if whole.is_empty() && fraction.is_empty() {
            return None;
        }
        const UNITS: [(&str, i128); 8] = [
            ("ns", 1),
            ("us", 1_000),
            ("µs", 1_000),
            ("μs", 1_000),
            ("ms", 1_000_000),
            ("s", 1_000_000_000),
            ("m", 60_000_000_000),
            ("h", 3_600_000_000_000),
        ];
        let (name, unit) = UNITS.into_iter().find(|(name, _)| after.starts_with(name))?;
        let whole: i128 = if whole.is_empty() { 0 } else { whole.parse::<u64>().ok()?.into() };
        let fraction = &fraction[..fraction.len().min(18)];
        let part: i128 = if fraction.is_empty() { 0 } else { fraction.parse::<u64>().ok()?.into() };
        total += whole * unit + part * unit / 10_i128.pow(fraction.len() as u32);
        rest = &after[name.len()..];
        if total > i128::from(i64::MAX) {
            return None;
        }
    }
    i64::try_from(if negative { -total } else { total }).ok()
}

/// A duration as Go prints it: `1h30m0s`, `1.5ms`.
pub fn duration_text(nanos: i64) -> String {
    let size = nanos.unsigned_abs();
    let sign = if nanos < 0 { "-" } else { "" };
    let with_fraction = |unit: u64, name: &str| {
        let (whole, part) = (size / unit, size % unit);
        let width = unit.ilog10() as usize;
        let part = format!("{part:0width$}");
        match part.trim_end_matches('0') {
            "" => format!("{sign}{whole}{name}"),
            part => format!("{sign}{whole}.{part}{name}"),
        }
    };
    match size {
        0 => "0s".to_owned(),
        1..1_000 => format!("{sign}{size}ns"),
        1_000..1_000_000 => with_fraction(1_000, "µs"),
        1_000_000..1_000_000_000 => with_fraction(1_000_000, "ms"),
        _ => {
            let (minutes, rest) = (size / 60_000_000_000, size % 60_000_000_000);
            let fraction = format!("{:09}", rest % 1_000_000_000);
            let fraction = fraction.trim_end_matches('0');
            let point = if fraction.is_empty() { "" } else { "." };
            let seconds = format!("{}{point}{fraction}s", rest / 1_000_000_000);
            match (minutes / 60, minutes % 60) {
                (0, 0) => format!("{sign}{seconds}"),
                (0, minutes) => format!("{sign}{minutes}m{seconds}"),
                (hours, minutes) => format!("{sign}{hours}h{minutes}m{seconds}"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::Schema;

    const TABLE: &str = "package io.k8s.api.core.v1
Pod /v1
 apiVersion - str o
 kind - str o
 spec 2 Spec o
Spec
 always 1 i32 r
 bytes 2 bytes o
 divisor 3 quantity o
 items 4 []Spec r
 limits 5 {}quantity o
 name 6 *str o
 network 7 bool o
 port 8 intstr o
 probe 9 time o
 wait 10 *duration o
 window 11 *Spec o
";

    fn check(input: &str, output: &str, unknown: &[&str]) {
        let schema = Schema::parse(TABLE).unwrap();
        let of = schema.named("io.k8s.api.core.v1.Spec").unwrap();
        let mut value = Value::parse(input.as_bytes()).unwrap();
        let mut found = Vec::new();
        let text = match normalise(&mut value, of, &mut found) {
            Ok(()) => String::from_utf8(value.to_json()).unwrap(),
            Err(error) => error.0,
        };
        assert_eq!(text, output);
        assert_eq!(found, unknown);
    }

    #[test]
    fn zeros_are_written_as_go_writes_them() {
        let zeros = r#""always":0,"divisor":"0","items":null,"#;
        let tail = r#""port":0,"probe":null"#;
        check("{}", &format!("{{{zeros}{tail}}}"), &[]);
        check(
            r#"{"network":false,"name":"","limits":{},"bytes":"","x":1,"window":null}"#,
            &format!(r#"{{{zeros}"name":"",{tail}}}"#),
            &["x"],
        );
        check(
            r#"{"items":[{"y":1},null],"limits":{"cpu":0.5,"a":null},"wait":"90m","port":"x","divisor":1000}"#,
            &format!(
                r#"{{"always":0,"divisor":"1k","items":[{{{zeros}{tail}}},{{{zeros}{tail}}}],"limits":{{"a":"0","cpu":"500m"}},"port":"x","probe":null,"wait":"1h30m0s"}}"#
            ),
            &["items[0].y"],
        );
    }

    #[test]
    fn wrong_types_are_told_as_upstream_tells_them() {
        let of = "json: cannot unmarshal";
        check(r#"{"always":"1"}"#, &format!("{of} string into Go struct field Spec.always of type int32"), &[]);
        check(r#"{"always":1.5}"#, &format!("{of} number 1.5 into Go struct field Spec.always of type int32"), &[]);
        check(
            r#"{"items":[{"window":[]}]}"#,
            &format!("{of} array into Go struct field Spec.items.window of type v1.Spec"),
            &[],
        );
        check("[]", &format!("{of} array into Go value of type v1.Spec"), &[]);
        check(r#"{"bytes":"!"}"#, "illegal base64 data at input byte 0", &[]);
    }

    #[test]
    fn durations_are_gos() {
        for (text, canonical) in [
            ("1.5h", "1h30m0s"),
            ("0", "0s"),
            ("-90s", "-1m30s"),
            ("1500us", "1.5ms"),
            ("2h", "2h0m0s"),
            ("10ns", "10ns"),
        ] {
            assert_eq!(duration_text(duration_nanos(text).unwrap()), canonical);
        }
        for text in ["", "1", "h", "1x", "9999999h", "-"] {
            assert_eq!(duration_nanos(text), None, "{text}");
        }
    }
}
