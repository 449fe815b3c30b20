//! Named formats of texts: `format.dns1123Label().validate(x)`.

use std::net::IpAddr;
use std::sync::Arc;

use meta::names;

use super::{Row, no_such};
use crate::value::{Fail, Val};

/// A format and what is wrong with a text that does not have it.
#[derive(Debug)]
pub struct Format {
    pub name: &'static str,
    check: fn(&str) -> Vec<String>,
}

fn prefix(text: &str, check: fn(&str) -> Vec<String>) -> Vec<String> {
    check(&format!("{}a", text.trim_end_matches('-')))
}

fn unless(good: bool, why: &str) -> Vec<String> {
    if good { Vec::new() } else { vec![why.to_owned()] }
}

fn is_uuid(text: &str) -> bool {
    let parts: Vec<&str> = text.split('-').collect();
    parts.iter().map(|part| part.len()).eq([8, 4, 4, 4, 12])
        && parts.iter().all(|part| part.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

fn is_base64(text: &str) -> bool {
    let plain = text.trim_end_matches('=');
    text.len().is_multiple_of(4)
        && text.len() - plain.len() <= 2
        && plain.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/'))
}

pub static FORMATS: &[Format] = &[
    Format { name: "dns1123Label", check: names::dns_label },
    Format { name: "dns1123Subdomain", check: names::dns_subdomain },
    Format { name: "dns1035Label", check: names::dns1035_label },
    Format { name: "qualifiedName", check: names::qualified_name },
    Format { name: "dns1123LabelPrefix", check: |text| prefix(text, names::dns_label) },
    Format { name: "dns1123SubdomainPrefix", check: |text| prefix(text, names::dns_subdomain) },
    Format { name: "dns1035LabelPrefix", check: |text| prefix(text, names::dns1035_label) },
    Format { name: "labelValue", check: names::label_value },
    Format {
        name: "uri",
        check: |text| unless(super::url::Url::parse(text).is_some(), "does not match the URI format"),
    },
    Format { name: "uuid", check: |text| unless(is_uuid(text), "does not match the UUID format") },
    Format { name: "byte", check: |text| unless(is_base64(text), "invalid base64") },
    Format {
        name: "date",
        check: |text| {
            let good = text.len() == 10 && base::Time::parse(&format!("{text}T00:00:00Z")).is_some();
            unless(good, "invalid date")
        },
    },
    Format { name: "datetime", check: |text| unless(base::Time::parse(text).is_some(), "invalid datetime") },
    Format { name: "ip", check: |text| unless(text.parse::<IpAddr>().is_ok(), "invalid IP address") },
];

fn named<'a>(name: &str) -> Result<Val<'a>, Fail> {
    match FORMATS.iter().find(|format| format.name == name) {
        Some(format) => Ok(Val::Format(format)),
        None => no_such(),
    }
}

pub const ROWS: &[Row] = &[
    Row("format.named(string) optional<format>", |args| match args {
        [Val::Text(name)] => Ok(match named(name) {
            Ok(format) => Val::some(format),
            Err(_) => Val::Optional(None),
        }),
        _ => no_such(),
    }),
    Row("format.dns1123Label() format", |_| named("dns1123Label")),
    Row("format.dns1123Subdomain() format", |_| named("dns1123Subdomain")),
    Row("format.dns1035Label() format", |_| named("dns1035Label")),
    Row("format.qualifiedName() format", |_| named("qualifiedName")),
    Row("format.dns1123LabelPrefix() format", |_| named("dns1123LabelPrefix")),
    Row("format.dns1123SubdomainPrefix() format", |_| named("dns1123SubdomainPrefix")),
    Row("format.dns1035LabelPrefix() format", |_| named("dns1035LabelPrefix")),
    Row("format.labelValue() format", |_| named("labelValue")),
    Row("format.uri() format", |_| named("uri")),
    Row("format.uuid() format", |_| named("uuid")),
    Row("format.byte() format", |_| named("byte")),
    Row("format.date() format", |_| named("date")),
    Row("format.datetime() format", |_| named("datetime")),
    Row("format#validate(string) optional<list<string>>", |args| match args {
        [Val::Format(format), Val::Text(text)] => {
            let wrong = (format.check)(text);
            let list = || Arc::new(Val::list(wrong.iter().map(Val::text).collect()));
            Ok(Val::Optional((!wrong.is_empty()).then(list)))
        }
        _ => no_such(),
    }),
];
