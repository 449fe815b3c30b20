//! Strings and regular expressions.

use regex::Regex;

use super::numbers::to_text;
use super::{Row, no_such};
use crate::value::{Fail, Key, Val, fail};

/// Bytes of a compiled regular expression, at most.
const PATTERN_MAX_BYTES: usize = 1 << 20;

fn pattern(text: &str) -> Result<Regex, Fail> {
    match regex::RegexBuilder::new(text).size_limit(PATTERN_MAX_BYTES).build() {
        Ok(pattern) => Ok(pattern),
        Err(_) => fail(format!("error parsing regexp: {text:?}")),
    }
}

fn characters(text: &str) -> Vec<char> {
    text.chars().collect()
}

/// Where `part` stands in `text`, in characters, at or after `from`.
fn find(text: &str, part: &str, from: i64) -> Result<i64, Fail> {
    let (text, part) = (characters(text), characters(part));
    let from = match usize::try_from(from) {
        Ok(from) if from <= text.len() => from,
        _ => return fail(format!("index out of range: {from}")),
    };
    let found = (from..=text.len().saturating_sub(part.len())).find(|at| text[*at..].starts_with(&part));
    Ok(found.filter(|_| part.len() <= text.len()).map_or(-1, |at| at as i64))
}

/// The last place at or before `until`.
fn find_last(text: &str, part: &str, until: Option<i64>) -> Result<i64, Fail> {
    let (text, part) = (characters(text), characters(part));
    let until = match until.map(usize::try_from) {
        None => text.len(),
        Some(Ok(until)) if until <= text.len() => until,
        Some(_) => return fail("index out of range"),
    };
    if part.len() > text.len() {
        return Ok(-1);
    }
    let last = until.min(text.len() - part.len());
    Ok((0..=last).rev().find(|at| text[*at..].starts_with(&part)).map_or(-1, |at| at as i64))
}

fn slice<'a>(text: &str, from: i64, to: Option<i64>) -> Result<Val<'a>, Fail> {
    let text = characters(text);
    let to = to.unwrap_or(text.len() as i64);
    match (usize::try_from(from), usize::try_from(to)) {
        (Ok(first), Ok(last)) if first <= last && last <= text.len() => {
            Ok(Val::text(text[first..last].iter().collect::<String>()))
        }
        _ => fail(format!("invalid substring range. start: {from}, end: {to}")),
    }
}

fn split<'a>(text: &str, separator: &str, most: i64) -> Val<'a> {
    let parts: Vec<Val<'a>> = match usize::try_from(most) {
        Ok(0) => Vec::new(),
        Ok(most) if separator.is_empty() => {
            let all = characters(text);
            let cut = most.saturating_sub(1).min(all.len());
            let mut parts: Vec<Val<'a>> = all[..cut].iter().map(|c| Val::text(c.to_string())).collect();
            if cut < all.len() {
                parts.push(Val::text(all[cut..].iter().collect::<String>()));
            }
            parts
        }
        Ok(most) => text.splitn(most, separator).map(Val::text).collect(),
        Err(_) if separator.is_empty() => text.chars().map(|c| Val::text(c.to_string())).collect(),
        Err(_) => text.split(separator).map(Val::text).collect(),
    };
    Val::list(parts)
}

fn join<'a>(items: &[Val<'a>], separator: &str) -> Result<Val<'a>, Fail> {
    let mut texts = Vec::with_capacity(items.len());
    for item in items {
        let Val::Text(text) = item else { return no_such() };
        texts.push(&**text);
    }
    Ok(Val::text(texts.join(separator)))
}

fn quote(text: &str) -> String {
    let mut out = String::from('"');
    for c in text.chars() {
        match c {
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{b}' => out.push_str("\\v"),
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// A value inside a formatted text (`%s`).
fn show(value: &Val<'_>) -> Option<String> {
    Some(match value {
        Val::Null => "null".to_owned(),
        Val::List(items) => format!("[{}]", items.iter().map(show).collect::<Option<Vec<_>>>()?.join(", ")),
        Val::Map(_) | Val::Object(..) | Val::Message(..) => {
            let entries = value.entries()?.into_iter().map(|(key, value)| {
                let key = match key {
                    Key::Text(text) => text.to_string(),
                    Key::Int(number) => number.to_string(),
                    Key::Bool(value) => value.to_string(),
                };
                Some(format!("{key}: {}", show(&value)?))
            });
            format!("{{{}}}", entries.collect::<Option<Vec<_>>>()?.join(", "))
        }
        Val::Type(name) => name.to_string(),
        other => to_text(other)?,
    })
}

/// `%[.precision]verb` for each argument; `%%` is a percent sign.
fn format<'a>(text: &str, args: &[Val<'a>]) -> Result<Val<'a>, Fail> {
    let mut out = String::with_capacity(text.len());
    let mut args = args.iter();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut precision = None;
        if chars.peek() == Some(&'.') {
            chars.next();
            let mut digits = String::new();
            while let Some(digit) = chars.next_if(char::is_ascii_digit) {
                digits.push(digit);
            }
            precision = digits.parse::<usize>().ok().filter(|digits| *digits <= 1000);
            if precision.is_none() {
                return fail("error formatting string: precision is no number");
            }
        }
        let Some(verb) = chars.next() else { return fail("unexpected end of format string") };
        if verb == '%' {
            out.push('%');
            continue;
        }
        let Some(value) = args.next() else { return fail("index out of range: an argument is missing") };
        match one(verb, precision, value) {
            Some(text) => out.push_str(&text),
            None => return fail(format!("error during formatting: %{verb} does not take a {}", value.type_name())),
        }
    }
    Ok(Val::text(out))
}

fn one(verb: char, precision: Option<usize>, value: &Val<'_>) -> Option<String> {
    let number = |value: &Val<'_>| match value {
        Val::Int(number) => Some(i128::from(*number)),
        Val::Uint(number) => Some(i128::from(*number)),
        _ => None,
    };
    let signed = |number: i128, digits: String| if number < 0 { format!("-{digits}") } else { digits };
    Some(match (verb, value) {
        ('s', value) => show(value)?,
        ('d', Val::Int(_) | Val::Uint(_)) => number(value)?.to_string(),
        ('f', Val::Double(number)) => format!("{number:.*}", precision.unwrap_or(6)),
        ('f', value) => format!("{:.*}", precision.unwrap_or(6), number(value)? as f64),
        ('e', Val::Double(number)) => {
            let text = format!("{number:.*e}", precision.unwrap_or(6));
            let (mantissa, power) = text.split_once('e')?;
            let (sign, digits) = power.strip_prefix('-').map_or(('+', power), |digits| ('-', digits));
            format!("{mantissa}e{sign}{digits:0>2}")
        }
        ('b', Val::Bool(value)) => i32::from(*value).to_string(),
        ('b', value) => signed(number(value)?, format!("{:b}", number(value)?.unsigned_abs())),
        ('o', value) => signed(number(value)?, format!("{:o}", number(value)?.unsigned_abs())),
        ('x', Val::Text(text)) => text.bytes().map(|byte| format!("{byte:02x}")).collect(),
        ('X', Val::Text(text)) => text.bytes().map(|byte| format!("{byte:02X}")).collect(),
        ('x', Val::Bytes(bytes)) => bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
        ('X', Val::Bytes(bytes)) => bytes.iter().map(|byte| format!("{byte:02X}")).collect(),
        ('x', value) => signed(number(value)?, format!("{:x}", number(value)?.unsigned_abs())),
        ('X', value) => signed(number(value)?, format!("{:X}", number(value)?.unsigned_abs())),
        _ => return None,
    })
}

pub const ROWS: &[Row] = &[
    Row("_+_(string,string) string", |args| match args {
        [Val::Text(a), Val::Text(b)] => Ok(Val::text(format!("{a}{b}"))),
        _ => no_such(),
    }),
    Row("_+_(bytes,bytes) bytes", |args| match args {
        [Val::Bytes(a), Val::Bytes(b)] => Ok(Val::Bytes([&**a, &**b].concat().into())),
        _ => no_such(),
    }),
    Row("size(string) int", |args| match args {
        [Val::Text(text)] => Ok(Val::Int(text.chars().count() as i64)),
        _ => no_such(),
    }),
    Row("string#size() int", |args| match args {
        [Val::Text(text)] => Ok(Val::Int(text.chars().count() as i64)),
        _ => no_such(),
    }),
    Row("size(bytes) int", |args| match args {
        [Val::Bytes(bytes)] => Ok(Val::Int(bytes.len() as i64)),
        _ => no_such(),
    }),
    Row("bytes#size() int", |args| match args {
        [Val::Bytes(bytes)] => Ok(Val::Int(bytes.len() as i64)),
        _ => no_such(),
    }),
    Row("string#contains(string) bool", |args| match args {
        [Val::Text(a), Val::Text(b)] => Ok(Val::Bool(a.contains(&**b))),
        _ => no_such(),
    }),
    Row("string#startsWith(string) bool", |args| match args {
        [Val::Text(a), Val::Text(b)] => Ok(Val::Bool(a.starts_with(&**b))),
        _ => no_such(),
    }),
    Row("string#endsWith(string) bool", |args| match args {
        [Val::Text(a), Val::Text(b)] => Ok(Val::Bool(a.ends_with(&**b))),
        _ => no_such(),
    }),
    Row("string#matches(string) bool", matches),
    Row("matches(string,string) bool", matches),
    Row("string#find(string) string", |args| match args {
        [Val::Text(text), Val::Text(what)] => {
            Ok(Val::text(pattern(what)?.find(text).map_or("", |found| found.as_str())))
        }
        _ => no_such(),
    }),
    Row("string#findAll(string) list<string>", |args| match args {
        [Val::Text(text), Val::Text(what)] => {
            Ok(Val::list(pattern(what)?.find_iter(text).map(|found| Val::text(found.as_str())).collect()))
        }
        _ => no_such(),
    }),
    Row("string#findAll(string,int) list<string>", |args| match args {
        [Val::Text(text), Val::Text(what), Val::Int(most)] => {
            let most = usize::try_from(*most).unwrap_or(usize::MAX);
            let what = pattern(what)?;
            Ok(Val::list(what.find_iter(text).take(most).map(|found| Val::text(found.as_str())).collect()))
        }
        _ => no_such(),
    }),
    Row("string#charAt(int) string", |args| match args {
        [Val::Text(text), Val::Int(at)] => {
            let all = characters(text);
            match usize::try_from(*at) {
                Ok(at) if at < all.len() => Ok(Val::text(all[at].to_string())),
                Ok(at) if at == all.len() => Ok(Val::text("")),
                _ => fail(format!("index out of range: {at}")),
            }
        }
        _ => no_such(),
    }),
    Row("string#indexOf(string) int", |args| match args {
        [Val::Text(text), Val::Text(part)] => find(text, part, 0).map(Val::Int),
        _ => no_such(),
    }),
    Row("string#indexOf(string,int) int", |args| match args {
        [Val::Text(text), Val::Text(part), Val::Int(from)] => find(text, part, *from).map(Val::Int),
        _ => no_such(),
    }),
    Row("string#lastIndexOf(string) int", |args| match args {
        [Val::Text(text), Val::Text(part)] => find_last(text, part, None).map(Val::Int),
        _ => no_such(),
    }),
    Row("string#lastIndexOf(string,int) int", |args| match args {
        [Val::Text(text), Val::Text(part), Val::Int(until)] => find_last(text, part, Some(*until)).map(Val::Int),
        _ => no_such(),
    }),
    Row("string#lowerAscii() string", |args| match args {
        [Val::Text(text)] => Ok(Val::text(text.to_ascii_lowercase())),
        _ => no_such(),
    }),
    Row("string#upperAscii() string", |args| match args {
        [Val::Text(text)] => Ok(Val::text(text.to_ascii_uppercase())),
        _ => no_such(),
    }),
    Row("string#replace(string,string) string", |args| match args {
        [Val::Text(text), Val::Text(old), Val::Text(new)] => Ok(Val::text(text.replace(&**old, new))),
        _ => no_such(),
    }),
    Row("string#replace(string,string,int) string", |args| match args {
        [Val::Text(text), Val::Text(old), Val::Text(new), Val::Int(most)] => Ok(match usize::try_from(*most) {
            Ok(most) => Val::text(text.replacen(&**old, new, most)),
            Err(_) => Val::text(text.replace(&**old, new)),
        }),
        _ => no_such(),
    }),
    Row("string#reverse() string", |args| match args {
        [Val::Text(text)] => Ok(Val::text(text.chars().rev().collect::<String>())),
        _ => no_such(),
    }),
    Row("string#split(string) list<string>", |args| match args {
        [Val::Text(text), Val::Text(separator)] => Ok(split(text, separator, -1)),
        _ => no_such(),
    }),
    Row("string#split(string,int) list<string>", |args| match args {
        [Val::Text(text), Val::Text(separator), Val::Int(most)] => Ok(split(text, separator, *most)),
        _ => no_such(),
    }),
    Row("string#substring(int) string", |args| match args {
        [Val::Text(text), Val::Int(from)] => slice(text, *from, None),
        _ => no_such(),
    }),
    Row("string#substring(int,int) string", |args| match args {
        [Val::Text(text), Val::Int(from), Val::Int(to)] => slice(text, *from, Some(*to)),
        _ => no_such(),
    }),
    Row("string#trim() string", |args| match args {
        [Val::Text(text)] => Ok(Val::text(text.trim())),
        _ => no_such(),
    }),
    Row("list<string>#join() string", |args| match args {
        [Val::List(items)] => join(items, ""),
        _ => no_such(),
    }),
    Row("list<string>#join(string) string", |args| match args {
        [Val::List(items), Val::Text(separator)] => join(items, separator),
        _ => no_such(),
    }),
    Row("string#format(list<dyn>) string", |args| match args {
        [Val::Text(text), Val::List(items)] => format(text, items),
        _ => no_such(),
    }),
    Row("strings.quote(string) string", |args| match args {
        [Val::Text(text)] => Ok(Val::text(quote(text))),
        _ => no_such(),
    }),
];

fn matches<'a>(args: &[Val<'a>]) -> Result<Val<'a>, Fail> {
    match args {
        [Val::Text(text), Val::Text(what)] => Ok(Val::Bool(pattern(what)?.is_match(text))),
        _ => no_such(),
    }
}
