//! What a request asks, read from its method and URL alone: the grammar of Kubernetes' paths.

use std::borrow::Cow;

use meta::{FieldSelector, Status, Str};

/// Segments below the group-version that begin a namespaced path.
const NAMESPACES: &str = "namespaces";

/// Segments that nearly all paths have at most.
const SEGMENTS: usize = 8;

/// What is asked, before anything was looked up. Authorization and audit speak of this.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RequestInfo {
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`; for other paths the method.
    pub verb: &'static str,
    /// False for `/healthz`, `/version`, discovery and the like.
    pub is_resource: bool,
    /// The path, where it names no resource; else it is empty, and the members below say it all.
    pub path: String,
    pub group: Str,
    pub version: Str,
    pub resource: Str,
    pub subresource: Str,
    /// What follows the subresource: `pods/x/proxy/a/b` has `a/b`.
    pub tail: String,
    pub namespace: Str,
    pub name: Str,
    /// The `fieldSelector` of a list, watch or deletion of many, where it is one.
    pub fields: FieldSelector,
}

/// The query of a URL, decoded, in order.
#[derive(Clone, Debug, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    pub fn parse(query: &str) -> Query {
        let pairs = query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(key, true).into_owned(), decode(value, true).into_owned())
        });
        Query(pairs.collect())
    }

    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(k, _)| k == key).map(|(_, value)| value.as_str())
    }

    pub fn text(&self, key: &str) -> &str {
        self.get(key).unwrap_or_default()
    }

    pub fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(k, _)| k == key).map(|(_, value)| value.as_str())
    }

    /// As Go's `strconv.ParseBool` reads it in options: present and not `0`/`false` is true.
    pub fn is_true(&self, key: &str) -> bool {
        self.get(key).is_some_and(|value| !matches!(value, "false" | "0" | "False" | "FALSE" | "f" | "F"))
    }

    pub fn number(&self, key: &str) -> Result<Option<i64>, Status> {
        match self.get(key) {
            None | Some("") => Ok(None),
            Some(text) => text.parse().map(Some).map_err(|_| {
                Status::bad_request(format!("unable to convert the query parameter {key}={text:?} to a number"))
            }),
        }
    }
}

/// Percent-decodes; `+` is a space in queries. Bytes that are no UTF-8 become U+FFFD.
pub fn decode(text: &str, plus_is_space: bool) -> Cow<'_, str> {
    let bytes = text.as_bytes();
    if !bytes.iter().any(|byte| *byte == b'%' || *byte == b'+' && plus_is_space) {
        return Cow::Borrowed(text);
    }
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    let hex = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    while at < bytes.len() {
        let pair = || Some(hex(*bytes.get(at + 1)?)? << 4 | hex(*bytes.get(at + 2)?)?);
        match bytes[at] {
            b'%' => match pair() {
                Some(byte) => {
                    out.push(byte);
                    at += 2;
                }
                None => out.push(b'%'),
            },
            b'+' if plus_is_space => out.push(b' '),
            byte => out.push(byte),
        }
        at += 1;
    }
    Cow::Owned(String::from_utf8(out).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
}

impl RequestInfo {
    /// Whether the answer may go on for as long as both sides like.
    pub fn lasts(&self) -> bool {
        self.verb == "watch" || matches!(self.subresource.as_str(), "proxy" | "exec" | "attach" | "portforward" | "log")
    }

    /// Reads method and path (still percent-encoded); `query` decides between list and watch.
    pub fn of(method: &str, path: &str, query: &Query) -> RequestInfo {
        let segments = || path.split('/').filter(|part| !part.is_empty());
        let decoded: Vec<Cow<str>>;
        let mut parts: Vec<&str> = Vec::with_capacity(SEGMENTS);
        if path.contains('%') {
            decoded = segments().map(|part| decode(part, false)).collect();
            parts.extend(decoded.iter().map(AsRef::as_ref));
        } else {
            parts.extend(segments());
        }
        let (group, version, rest) = match parts.as_slice() {
            ["api", version, rest @ ..] if !rest.is_empty() => ("", *version, rest),
            ["apis", group, version, rest @ ..] if !rest.is_empty() => (*group, *version, rest),
            _ => return RequestInfo { verb: method_word(method), path: path.to_owned(), ..RequestInfo::default() },
        };
        // The deprecated /watch/ prefix, which old clients still use.
        let (prefix_watch, rest) = match rest {
            ["watch", rest @ ..] if !rest.is_empty() => (true, rest),
            rest => (false, rest),
        };
        let mut info =
            RequestInfo { is_resource: true, group: group.into(), version: version.into(), ..RequestInfo::default() };
        let rest = match rest {
            // `namespaces/x` is the namespace object; `namespaces/x/status` and `/finalize` are its subresources.
            [NAMESPACES, namespace, rest @ ..] if !matches!(rest, [] | ["status" | "finalize"]) => {
                info.namespace = (*namespace).into();
                rest
            }
            [NAMESPACES, namespace, ..] => {
                info.namespace = (*namespace).into();
                rest
            }
            rest => rest,
        };
        if let [resource, rest @ ..] = rest {
            info.resource = (*resource).into();
            if let [name, rest @ ..] = rest {
                info.name = (*name).into();
                if let [subresource, tail @ ..] = rest {
                    info.subresource = (*subresource).into();
                    info.tail = tail.join("/");
                    if !tail.is_empty() && path.ends_with('/') {
                        info.tail.push('/');
                    }
                }
            }
        }
        if info.resource == NAMESPACES {
            info.namespace = Str::default();
        }
        let watch = prefix_watch || query.is_true("watch");
        info.verb = match method {
            "POST" => "create",
            "PUT" => "update",
            "PATCH" => "patch",
            "DELETE" if info.name.is_empty() => "deletecollection",
            "DELETE" => "delete",
            "GET" | "HEAD" if prefix_watch || (info.name.is_empty() && watch) => "watch",
            "GET" | "HEAD" if info.name.is_empty() => "list",
            "GET" | "HEAD" => "get",
            _ => "",
        };
        if matches!(info.verb, "list" | "watch" | "deletecollection") {
            // What is no selector is refused where the list is made; here it narrows nothing.
            info.fields = FieldSelector::parse(query.text("fieldSelector")).unwrap_or_default();
        }
        info
    }
}

fn method_word(method: &str) -> &'static str {
    match method {
        "GET" => "get",
        "HEAD" => "head",
        "POST" => "post",
        "PUT" => "put",
        "PATCH" => "patch",
        "DELETE" => "delete",
        "OPTIONS" => "options",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(method: &str, url: &str, expected: &str) {
        let (path, query) = url.split_once('?').unwrap_or((url, ""));
        let info = RequestInfo::of(method, path, &Query::parse(query));
        let text = format!(
            "{} {}/{} {} {} {} {} {}",
            info.verb, info.group, info.version, info.namespace, info.resource, info.name, info.subresource, info.tail
        );
        assert_eq!(text.trim_end(), expected);
    }

    #[test]
    fn paths() {
        check("GET", "/api/v1/namespaces/a/pods/b", "get /v1 a pods b");
        check("GET", "/api/v1/pods?watch=1", "watch /v1  pods");
        check("GET", "/api/v1/namespaces", "list /v1  namespaces");
        check("GET", "/api/v1/namespaces/a", "get /v1  namespaces a");
        check("PUT", "/api/v1/namespaces/a/finalize", "update /v1  namespaces a finalize");
        check("DELETE", "/apis/apps/v1/namespaces/a/deployments", "deletecollection apps/v1 a deployments");
        check("GET", "/api/v1/namespaces/a/pods/b/proxy/x/y%20z", "get /v1 a pods b proxy x/y z");
        check("GET", "/api/v1/watch/namespaces/a/pods", "watch /v1 a pods");
        check(
            "GET",
            "/apis/rbac.authorization.k8s.io/v1/clusterroles/system%3Anode",
            "get rbac.authorization.k8s.io/v1  clusterroles system:node",
        );
        check("GET", "/healthz", "get /");
    }
}
