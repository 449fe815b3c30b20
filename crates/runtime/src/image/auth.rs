//! What a registry wants when it says 401, and the answer to it.

use serde::Deserialize;

/// Longest challenge that is read.
const CHALLENGE_MAX_BYTES: usize = 8 << 10;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

/// Reads the values of `WWW-Authenticate`. Bearer is preferred; unknown schemes are passed over.
pub(crate) fn challenge<'a>(headers: impl Iterator<Item = &'a str>) -> Option<Challenge> {
    let mut basic = None;
    for header in headers.filter(|h| h.len() <= CHALLENGE_MAX_BYTES) {
        let (scheme, rest) = header.trim().split_once(' ').unwrap_or((header.trim(), ""));
        if scheme.eq_ignore_ascii_case("basic") {
            basic = Some(Challenge::Basic);
        } else if scheme.eq_ignore_ascii_case("bearer") {
            let mut values = parameters(rest);
            if let Some(realm) = values.remove("realm") {
                return Some(Challenge::Bearer {
                    realm,
                    service: values.remove("service"),
                    scope: values.remove("scope"),
                });
            }
        }
    }
    basic
}

/// `name="value", name=value`; a value in quotes may hold commas and `\"`.
fn parameters(text: &str) -> std::collections::HashMap<String, String> {
    let mut values = std::collections::HashMap::new();
    let mut rest = text;
    while let Some((name, after)) = rest.split_once('=') {
        let name = name.trim_matches(|c: char| c == ',' || c.is_whitespace()).to_ascii_lowercase();
        let mut value = String::new();
        let mut chars = after.char_indices();
        let mut end = after.len();
        if let Some(quoted) = after.strip_prefix('"') {
            chars = quoted.char_indices();
            end = after.len();
            while let Some((at, c)) = chars.next() {
                match c {
                    '\\' => value.extend(chars.next().map(|(_, c)| c)),
                    '"' => {
                        end = at + 2;
                        break;
                    }
                    c => value.push(c),
                }
            }
        } else {
            for (at, c) in chars.by_ref() {
                if c == ',' {
                    end = at;
                    break;
                }
                value.push(c);
            }
            value = value.trim().to_owned();
        }
        values.insert(name, value);
        rest = after.get(end..).unwrap_or("");
    }
    values
}

/// What a token service answers.
#[derive(Deserialize)]
pub(crate) struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
}

impl TokenAnswer {
    pub fn token(self) -> Option<String> {
        self.token.or(self.access_token).filter(|t| !t.is_empty() && t.bytes().all(|b| b.is_ascii_graphic()))
    }
}

/// Percent-encodes a query value.
pub(crate) fn encode(text: &str) -> String {
    let mut out = String::new();
    for b in text.bytes() {
        match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(b)),
            _ => out.push_str(&format!("%{b:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read() {
        let text = r#"Bearer realm="https://auth.example/token",service="r,eg",scope="repository:a/b:pull,push""#;
        let expected = Challenge::Bearer {
            realm: "https://auth.example/token".into(),
            service: Some("r,eg".into()),
            scope: Some("repository:a/b:pull,push".into()),
        };
        assert_eq!(challenge(["Basic realm=\"x\"", text].into_iter()), Some(expected));
        assert_eq!(challenge(["Basic realm=x"].into_iter()), Some(Challenge::Basic));
        assert_eq!(challenge(["Negotiate", "Bearer service=x", "", "Bearer"].into_iter()), None);
        let found = challenge([r#"bearer realm="a\"b" , scope=c"#].into_iter());
        assert_eq!(found, Some(Challenge::Bearer { realm: "a\"b".into(), service: None, scope: Some("c".into()) }));
    }

    #[test]
    fn no_challenge_panics() {
        let mut rng = base::Rng::new(3);
        let alphabet: Vec<char> = "Bearer realm=\"\\,= x\u{fc}".chars().collect();
        for _ in 0..20_000 {
            let text: String =
                (0..rng.below(40)).map(|_| alphabet[rng.below(alphabet.len() as u64) as usize]).collect();
            let _ = challenge([text.as_str(), &format!("Bearer {text}")].into_iter());
        }
    }
}
