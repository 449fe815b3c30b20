//! URLs, as Go's `url.ParseRequestURI` reads them.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Row, no_such};
use crate::value::{Fail, Key, Val, fail};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Url {
    scheme: String,
    /// With its port.
    host: String,
    path: String,
    query: String,
}

impl Url {
    /// An absolute URL, or an absolute path.
    pub fn parse(text: &str) -> Option<Url> {
        if text.is_empty() || text.bytes().any(|byte| byte <= b' ' || byte == 0x7f) {
            return None;
        }
        let (scheme, rest) = if text.starts_with('/') {
            ("", text)
        } else {
            let (scheme, rest) = text.split_once(':')?;
            let good = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
            if !scheme.starts_with(|c: char| c.is_ascii_alphabetic()) || !scheme.bytes().all(good) {
                return None;
            }
            (scheme, rest)
        };
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (host, path) = match rest.strip_prefix("//") {
            Some(rest) if !scheme.is_empty() => match rest.find('/') {
                Some(at) => (&rest[..at], &rest[at..]),
                None => (rest, ""),
            },
            _ if !scheme.is_empty() && !rest.starts_with('/') => return None,
            _ => ("", rest),
        };
        let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
        let port = after_host(host)?;
        if !port.is_empty() && !port[1..].bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        unescape(path)?;
        let (host, path, query) = (host.to_owned(), path.to_owned(), query.to_owned());
        Some(Url { scheme: scheme.to_lowercase(), host, path, query })
    }

    fn hostname(&self) -> &str {
        let port = after_host(&self.host).unwrap_or_default();
        self.host[..self.host.len() - port.len()].trim_start_matches('[').trim_end_matches(']')
    }

    fn port(&self) -> &str {
        after_host(&self.host).unwrap_or_default().trim_start_matches(':')
    }
}

/// What follows the name or address: nothing, or a colon and the port.
fn after_host(host: &str) -> Option<&str> {
    let rest = match host.strip_prefix('[') {
        Some(inner) => &inner[inner.find(']')? + 1..],
        None => host.find(':').map_or("", |at| &host[at..]),
    };
    (rest.is_empty() || rest.starts_with(':')).then_some(rest)
}

/// Percent-decodes; `None` when an escape is none.
fn unescape(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let mut digit = || char::from(bytes.next()?).to_digit(16);
        out.push((digit()? * 16 + digit()?) as u8);
    }
    Some(String::from_utf8_lossy(&out).into_owned())
}

fn escape_path(path: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~$&+,/:;=@%!'()*".contains(&byte);
    path.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

fn part<'a>(args: &[Val<'a>], of: fn(&Url) -> String) -> Result<Val<'a>, Fail> {
    match args {
        [Val::Url(url)] => Ok(Val::text(of(url))),
        _ => no_such(),
    }
}

pub const ROWS: &[Row] = &[
    Row("isURL(string) bool", |args| match args {
        [Val::Text(text)] => Ok(Val::Bool(Url::parse(text).is_some())),
        _ => no_such(),
    }),
    Row("url(string) url", |args| match args {
        [Val::Text(text)] => match Url::parse(text) {
            Some(url) => Ok(Val::Url(Arc::new(url))),
            None => fail(format!("URL parse error during conversion from string: {text:?}")),
        },
        _ => no_such(),
    }),
    Row("url#getScheme() string", |args| part(args, |url| url.scheme.clone())),
    Row("url#getHost() string", |args| part(args, |url| url.host.clone())),
    Row("url#getHostname() string", |args| part(args, |url| url.hostname().to_owned())),
    Row("url#getPort() string", |args| part(args, |url| url.port().to_owned())),
    Row("url#getEscapedPath() string", |args| part(args, |url| escape_path(&url.path))),
    Row("url#getQuery() map<string,list<string>>", |args| match args {
        [Val::Url(url)] => {
            let mut found: BTreeMap<Key, Vec<Val<'_>>> = BTreeMap::new();
            for pair in url.query.split('&').filter(|pair| !pair.is_empty()) {
                let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                let (Some(key), Some(value)) = (unescape(&key.replace('+', " ")), unescape(&value.replace('+', " ")))
                else {
                    continue;
                };
                found.entry(Key::Text(key.into())).or_default().push(Val::text(value));
            }
            Ok(Val::Map(Arc::new(found.into_iter().map(|(key, values)| (key, Val::list(values))).collect())))
        }
        _ => no_such(),
    }),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        let url = Url::parse("https://u:p@[::1]:80/a b".replace(' ', "%20").as_str()).unwrap();
        assert_eq!((url.hostname(), url.port(), url.path.as_str()), ("::1", "80", "/a%20b"));
        assert_eq!(Url::parse("/a?b=c").map(|url| url.query).as_deref(), Some("b=c"));
        for bad in ["", "nothing", "http://a b", "1http://a", "http://a:x/", "mailto:a@b", "http://a/%zz"] {
            assert_eq!(Url::parse(bad), None, "{bad}");
        }
    }
}
