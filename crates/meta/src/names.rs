//! What names, labels and the like may look like. Each check returns the sentences of what is wrong; none means right.
//!
//! The rules are those of apimachinery's `util/validation`; the sentences are ours.

pub const LABEL_MAX: usize = 63;
pub const SUBDOMAIN_MAX: usize = 253;
pub const PORT_NAME_MAX: usize = 15;

fn alnum(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
}

fn lower(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit()
}

fn too_long(max: usize) -> String {
    format!("must be no more than {max} bytes")
}

fn is_label(name: &str) -> bool {
    let bytes = name.as_bytes();
    match (bytes.first(), bytes.last()) {
        (Some(first), Some(last)) => {
            lower(*first) && lower(*last) && bytes.iter().all(|byte| lower(*byte) || *byte == b'-')
        }
        _ => false,
    }
}

/// An RFC 1123 label: lower-case letters, digits and `-`, at most 63 bytes.
pub fn dns_label(name: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if name.len() > LABEL_MAX {
        wrong.push(too_long(LABEL_MAX));
    }
    if !is_label(name) {
        wrong.push("a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character".to_owned());
    }
    wrong
}

/// An RFC 1123 subdomain: labels joined by dots, at most 253 bytes.
pub fn dns_subdomain(name: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if name.len() > SUBDOMAIN_MAX {
        wrong.push(too_long(SUBDOMAIN_MAX));
    }
    if !name.split('.').all(is_label) {
        wrong.push("a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character".to_owned());
    }
    wrong
}

/// An RFC 1035 label: a DNS label that starts with a letter.
pub fn dns1035_label(name: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if name.len() > LABEL_MAX {
        wrong.push(too_long(LABEL_MAX));
    }
    if !is_label(name) || !name.as_bytes()[0].is_ascii_lowercase() {
        wrong.push("a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character".to_owned());
    }
    wrong
}

/// A wildcard subdomain: `*.` and a subdomain.
pub fn wildcard_subdomain(name: &str) -> Vec<String> {
    match name.strip_prefix("*.") {
        Some(rest) if name.len() <= SUBDOMAIN_MAX && dns_subdomain(rest).is_empty() => Vec::new(),
        _ => vec!["a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain".to_owned()],
    }
}

/// The part of a qualified name after the slash: letters, digits, `-`, `_`, `.`, at most 63 bytes.
fn name_part(name: &str, wrong: &mut Vec<String>) {
    if name.is_empty() {
        wrong.push("name part must be non-empty".to_owned());
    } else if name.len() > LABEL_MAX {
        wrong.push(format!("name part {}", too_long(LABEL_MAX)));
    }
    if !is_name_part(name) {
        wrong.push("name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character".to_owned());
    }
}

fn is_name_part(name: &str) -> bool {
    let bytes = name.as_bytes();
    match (bytes.first(), bytes.last()) {
        (Some(first), Some(last)) => {
            alnum(*first) && alnum(*last) && bytes.iter().all(|byte| alnum(*byte) || b"-_.".contains(byte))
        }
        _ => false,
    }
}

/// A label key, annotation key, resource name …: `name` or `prefix/name`.
pub fn qualified_name(name: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    let parts: Vec<&str> = name.split('/').collect();
    match parts.as_slice() {
        [name] => name_part(name, &mut wrong),
        [prefix, name] => {
            if prefix.is_empty() {
                wrong.push("prefix part must be non-empty".to_owned());
            } else {
                wrong.extend(dns_subdomain(prefix).into_iter().map(|why| format!("prefix part {why}")));
            }
            name_part(name, &mut wrong);
        }
        _ => wrong.push("a qualified name must consist of alphanumeric characters, '-', '_' or '.', with an optional DNS subdomain prefix and '/'".to_owned()),
    }
    wrong
}

/// A label's value: empty, or like the name part of a qualified name.
pub fn label_value(value: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if value.len() > LABEL_MAX {
        wrong.push(too_long(LABEL_MAX));
    }
    if !value.is_empty() && !is_name_part(value) {
        wrong.push("a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character".to_owned());
    }
    wrong
}

/// A port's name (IANA service name): at most 15 of lower-case letters, digits, `-`; one letter at least; no `--`.
pub fn port_name(name: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if name.len() > PORT_NAME_MAX {
        wrong.push(too_long(PORT_NAME_MAX));
    }
    if !name.bytes().all(|byte| lower(byte) || byte == b'-') {
        wrong.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".to_owned());
    }
    if !name.bytes().any(|byte| byte.is_ascii_lowercase()) {
        wrong.push("must contain at least one letter (a-z)".to_owned());
    }
    if name.contains("--") {
        wrong.push("must not contain consecutive hyphens".to_owned());
    }
    if !name.is_empty() && (name.starts_with('-') || name.ends_with('-')) {
        wrong.push("must not begin or end with a hyphen".to_owned());
    }
    wrong
}

pub fn port_number(port: i64) -> Vec<String> {
    if (1..=65_535).contains(&port) { Vec::new() } else { vec!["must be between 1 and 65535, inclusive".to_owned()] }
}

/// A key of a ConfigMap or Secret: also a file name.
pub fn config_key(key: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if key.len() > SUBDOMAIN_MAX {
        wrong.push(too_long(SUBDOMAIN_MAX));
    }
    if key.is_empty() || !key.bytes().all(|byte| alnum(byte) || b"-_.".contains(&byte)) {
        wrong.push("a valid config key must consist of alphanumeric characters, '-', '_' or '.'".to_owned());
    }
    match key {
        "." => wrong.push("must not be '.'".to_owned()),
        ".." => wrong.push("must not be '..'".to_owned()),
        _ if key.starts_with("..") => wrong.push("must not start with '..'".to_owned()),
        _ => {}
    }
    wrong
}

/// A name that becomes a path segment in a URL: roles, bindings and the like.
pub fn path_segment(name: &str) -> Vec<String> {
    match name {
        "." => vec!["may not be '.'".to_owned()],
        ".." => vec!["may not be '..'".to_owned()],
        _ => {
            let found = ["/", "%"].into_iter().filter(|part| name.contains(part));
            found.map(|part| format!("may not contain '{part}'")).collect()
        }
    }
}

/// The name of an environment variable: any printable ASCII but `=`.
pub fn env_var(name: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if name.is_empty() || !name.bytes().all(|byte| (b' '..=b'~').contains(&byte) && byte != b'=') {
        wrong.push(
            "a valid environment variable name must consist only of printable ASCII characters other than '='"
                .to_owned(),
        );
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let long = "a".repeat(64);
        for (check, right, wrong) in [
            (dns_label as fn(&str) -> Vec<String>, vec!["a", "a-1", "1"], vec!["", "A", "-a", "a-", "a.b", &long]),
            (dns_subdomain, vec!["a", "a.b-c"], vec!["", "a..b", ".a", "a.", "A"]),
            (dns1035_label, vec!["a1"], vec!["1a", "", "a_"]),
            (qualified_name, vec!["a", "A.b_c", "x.y/z"], vec!["", "/a", "a/", "a/b/c", "-a", "X/a"]),
            (label_value, vec!["", "a", "A.b"], vec!["-", "a b", &long]),
            (port_name, vec!["http", "a-1"], vec!["", "1", "a--b", "-a", "Http", "abcdefghijklmnop"]),
            (config_key, vec!["a", "A_b.c"], vec!["", ".", "..", "..a", "a/b"]),
            (env_var, vec!["A", "a b"], vec!["", "a=b", "\u{e9}"]),
        ] {
            assert!(right.iter().all(|name| check(name).is_empty()), "{right:?}");
            assert!(wrong.iter().all(|name| !check(name).is_empty()), "{wrong:?}");
        }
    }
}
