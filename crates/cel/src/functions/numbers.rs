//! Operators, comparisons and conversions.

use std::cmp::Ordering;

use super::{Row, no_such};
use crate::value::{Fail, Key, Val, fail};

fn order<'a>(args: &[Val<'a>], holds: fn(Ordering) -> bool) -> Result<Val<'a>, Fail> {
    match args {
        [a, b] => match a.compare(b) {
            Some(order) => Ok(Val::Bool(holds(order))),
            None if matches!((a, b), (Val::Double(_), _) | (_, Val::Double(_))) => Ok(Val::Bool(false)),
            None => no_such(),
        },
        _ => no_such(),
    }
}

fn overflow<T>(number: Option<T>, what: &str) -> Result<T, Fail> {
    match number {
        Some(number) => Ok(number),
        None => fail(format!("{what} overflow")),
    }
}

fn int<'a>(number: Option<i64>) -> Result<Val<'a>, Fail> {
    overflow(number, "integer").map(Val::Int)
}

fn uint<'a>(number: Option<u64>) -> Result<Val<'a>, Fail> {
    overflow(number, "unsigned integer").map(Val::Uint)
}

fn zero<'a>(of: &Val<'_>, what: &str) -> Option<Result<Val<'a>, Fail>> {
    matches!(of, Val::Int(0) | Val::Uint(0)).then(|| fail(what))
}

fn contains<'a>(args: &[Val<'a>]) -> Result<Val<'a>, Fail> {
    match args {
        [item, Val::List(items)] => Ok(Val::Bool(items.iter().any(|other| item.equals(other)))),
        [key, Val::Map(map)] => Ok(Val::Bool(key.key().is_some_and(|key| map.contains_key(&key)))),
        [Val::Text(key), Val::Object(value, _)] => Ok(Val::Bool(value.get(key).is_some())),
        [Val::Text(key), map @ Val::Message(..)] => {
            Ok(Val::Bool(map.entries().is_some_and(|map| map.contains_key(&Key::Text(key.clone())))))
        }
        _ => no_such(),
    }
}

fn double_to_int(number: f64) -> Option<i64> {
    // The ends are not numbers of 64 bits themselves.
    (number.is_finite() && number > i64::MIN as f64 && number < i64::MAX as f64).then_some(number as i64)
}

fn show_double(number: f64) -> String {
    if number.is_nan() {
        return "NaN".to_owned();
    }
    if number.is_infinite() {
        return if number > 0.0 { "+Inf" } else { "-Inf" }.to_owned();
    }
    let exponent = if number == 0.0 { 0 } else { number.abs().log10().floor() as i32 };
    if (-4..21).contains(&exponent) {
        return format!("{number}");
    }
    let text = format!("{number:e}");
    let (mantissa, power) = text.split_once('e').unwrap_or((&text, "0"));
    let (sign, digits) = match power.strip_prefix('-') {
        Some(digits) => ('-', digits),
        None => ('+', power),
    };
    format!("{mantissa}e{sign}{digits:0>2}")
}

/// What `string()` makes of a value.
pub(super) fn to_text(value: &Val<'_>) -> Option<String> {
    Some(match value {
        Val::Text(text) => text.to_string(),
        Val::Bool(value) => value.to_string(),
        Val::Int(number) => number.to_string(),
        Val::Uint(number) => number.to_string(),
        Val::Double(number) => show_double(*number),
        Val::Bytes(bytes) => String::from_utf8(bytes.to_vec()).ok()?,
        Val::Timestamp(nanos) => super::times::show_timestamp(*nanos),
        Val::Duration(nanos) => super::times::show_duration(*nanos),
        Val::Ip(address) => address.to_string(),
        Val::Cidr(address, bits) => format!("{address}/{bits}"),
        _ => return None,
    })
}

pub const ROWS: &[Row] = &[
    Row("_==_(A,A) bool", |args| match args {
        [a, b] => Ok(Val::Bool(a.equals(b))),
        _ => no_such(),
    }),
    Row("_!=_(A,A) bool", |args| match args {
        [a, b] => Ok(Val::Bool(!a.equals(b))),
        _ => no_such(),
    }),
    Row("_<_(A,A) bool", |args| order(args, Ordering::is_lt)),
    Row("_<=_(A,A) bool", |args| order(args, Ordering::is_le)),
    Row("_>_(A,A) bool", |args| order(args, Ordering::is_gt)),
    Row("_>=_(A,A) bool", |args| order(args, Ordering::is_ge)),
    Row("!_(bool) bool", |args| match args {
        [Val::Bool(value)] => Ok(Val::Bool(!value)),
        _ => no_such(),
    }),
    Row("-_(int) int", |args| match args {
        [Val::Int(number)] => int(number.checked_neg()),
        _ => no_such(),
    }),
    Row("-_(double) double", |args| match args {
        [Val::Double(number)] => Ok(Val::Double(-number)),
        _ => no_such(),
    }),
    Row("_+_(int,int) int", |args| match args {
        [Val::Int(a), Val::Int(b)] => int(a.checked_add(*b)),
        _ => no_such(),
    }),
    Row("_+_(uint,uint) uint", |args| match args {
        [Val::Uint(a), Val::Uint(b)] => uint(a.checked_add(*b)),
        _ => no_such(),
    }),
    Row("_+_(double,double) double", |args| match args {
        [Val::Double(a), Val::Double(b)] => Ok(Val::Double(a + b)),
        _ => no_such(),
    }),
    Row("_-_(int,int) int", |args| match args {
        [Val::Int(a), Val::Int(b)] => int(a.checked_sub(*b)),
        _ => no_such(),
    }),
    Row("_-_(uint,uint) uint", |args| match args {
        [Val::Uint(a), Val::Uint(b)] => uint(a.checked_sub(*b)),
        _ => no_such(),
    }),
    Row("_-_(double,double) double", |args| match args {
        [Val::Double(a), Val::Double(b)] => Ok(Val::Double(a - b)),
        _ => no_such(),
    }),
    Row("_*_(int,int) int", |args| match args {
        [Val::Int(a), Val::Int(b)] => int(a.checked_mul(*b)),
        _ => no_such(),
    }),
    Row("_*_(uint,uint) uint", |args| match args {
        [Val::Uint(a), Val::Uint(b)] => uint(a.checked_mul(*b)),
        _ => no_such(),
    }),
    Row("_*_(double,double) double", |args| match args {
        [Val::Double(a), Val::Double(b)] => Ok(Val::Double(a * b)),
        _ => no_such(),
    }),
    Row("_/_(int,int) int", |args| match args {
        [Val::Int(a), Val::Int(b)] => zero(&args[1], "division by zero").unwrap_or_else(|| int(a.checked_div(*b))),
        _ => no_such(),
    }),
    Row("_/_(uint,uint) uint", |args| match args {
        [Val::Uint(a), Val::Uint(b)] => zero(&args[1], "division by zero").unwrap_or_else(|| uint(a.checked_div(*b))),
        _ => no_such(),
    }),
    Row("_/_(double,double) double", |args| match args {
        [Val::Double(a), Val::Double(b)] => Ok(Val::Double(a / b)),
        _ => no_such(),
    }),
    Row("_%_(int,int) int", |args| match args {
        [Val::Int(a), Val::Int(b)] => zero(&args[1], "modulus by zero").unwrap_or_else(|| int(a.checked_rem(*b))),
        _ => no_such(),
    }),
    Row("_%_(uint,uint) uint", |args| match args {
        [Val::Uint(a), Val::Uint(b)] => zero(&args[1], "modulus by zero").unwrap_or_else(|| uint(a.checked_rem(*b))),
        _ => no_such(),
    }),
    Row("_in_(A,list<A>) bool", contains),
    Row("_in_(A,map<A,B>) bool", contains),
    Row("int(int) int", |args| Ok(args[0].clone())),
    Row("int(uint) int", |args| match args {
        [Val::Uint(number)] => int(i64::try_from(*number).ok()),
        _ => no_such(),
    }),
    Row("int(double) int", |args| match args {
        [Val::Double(number)] => int(double_to_int(*number)),
        _ => no_such(),
    }),
    Row("int(string) int", |args| match args {
        [Val::Text(text)] => match text.parse() {
            Ok(number) => Ok(Val::Int(number)),
            Err(_) => fail(format!("type conversion error from 'string' to 'int': {text:?}")),
        },
        _ => no_such(),
    }),
    Row("int(timestamp) int", |args| match args {
        [Val::Timestamp(nanos)] => int(i64::try_from(nanos.div_euclid(crate::value::NANOS)).ok()),
        _ => no_such(),
    }),
    Row("int(duration) int", |args| match args {
        [Val::Duration(nanos)] => Ok(Val::Int(*nanos)),
        _ => no_such(),
    }),
    Row("uint(uint) uint", |args| Ok(args[0].clone())),
    Row("uint(int) uint", |args| match args {
        [Val::Int(number)] => uint(u64::try_from(*number).ok()),
        _ => no_such(),
    }),
    Row("uint(double) uint", |args| match args {
        [Val::Double(number)] if (0.0..u64::MAX as f64).contains(number) => Ok(Val::Uint(*number as u64)),
        [Val::Double(_)] => uint(None),
        _ => no_such(),
    }),
    Row("uint(string) uint", |args| match args {
        [Val::Text(text)] => match text.parse() {
            Ok(number) => Ok(Val::Uint(number)),
            Err(_) => fail(format!("type conversion error from 'string' to 'uint': {text:?}")),
        },
        _ => no_such(),
    }),
    Row("double(double) double", |args| Ok(args[0].clone())),
    Row("double(int) double", |args| match args {
        [Val::Int(number)] => Ok(Val::Double(*number as f64)),
        _ => no_such(),
    }),
    Row("double(uint) double", |args| match args {
        [Val::Uint(number)] => Ok(Val::Double(*number as f64)),
        _ => no_such(),
    }),
    Row("double(string) double", |args| match args {
        [Val::Text(text)] => match text.parse() {
            Ok(number) => Ok(Val::Double(number)),
            Err(_) => fail(format!("type conversion error from 'string' to 'double': {text:?}")),
        },
        _ => no_such(),
    }),
    Row("bool(bool) bool", |args| Ok(args[0].clone())),
    Row("bool(string) bool", |args| match args {
        [Val::Text(text)] => match &**text {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(Val::Bool(true)),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(Val::Bool(false)),
            _ => fail(format!("type conversion error from 'string' to 'bool': {text:?}")),
        },
        _ => no_such(),
    }),
    Row("string(string) string", |args| Ok(args[0].clone())),
    Row("string(bool) string", text),
    Row("string(int) string", text),
    Row("string(uint) string", text),
    Row("string(double) string", text),
    Row("string(bytes) string", text),
    Row("string(timestamp) string", text),
    Row("string(duration) string", text),
    Row("string(ip) string", text),
    Row("string(cidr) string", text),
    Row("bytes(bytes) bytes", |args| Ok(args[0].clone())),
    Row("bytes(string) bytes", |args| match args {
        [Val::Text(text)] => Ok(Val::Bytes(text.as_bytes().into())),
        _ => no_such(),
    }),
    Row("dyn(A) dyn", |args| Ok(args[0].clone())),
    Row("type(A) type", |args| Ok(Val::Type(args[0].type_name().into()))),
];

fn text<'a>(args: &[Val<'a>]) -> Result<Val<'a>, Fail> {
    match args.first().and_then(to_text) {
        Some(text) => Ok(Val::text(text)),
        None => fail("type conversion error to 'string'"),
    }
}
