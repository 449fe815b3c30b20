//! How aggregated servers know who asks: the certificate that this server shows them, the headers in which it names the
//! user, and what it publishes so that both are believed.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use meta::{Value, json};

use crate::ca::{Ca, Current, Identity, Usage};
use crate::error::Error;
use crate::identity::User;

/// The name in the certificate. Whoever trusts the headers asks for it.
const NAME: &str = "front-proxy-client";
const USER: &str = "x-remote-user";
const GROUP: &str = "x-remote-group";
const UID: &str = "x-remote-uid";
const EXTRA: &str = "x-remote-extra-";

/// The certificate with which this server speaks for others.
pub struct FrontProxy {
    authority: Ca,
    pub certificate: Arc<Current>,
}

impl FrontProxy {
    pub fn new(root: &Ca) -> Result<FrontProxy, Error> {
        let authority = root.front_proxy()?;
        let lifetime = crate::ca::days(u64::try_from(crate::ca::LEAF_DAYS).unwrap_or(1));
        let certificate = Arc::new(Current::new(&issue(&authority, lifetime)?)?);
        Ok(FrontProxy { authority, certificate })
    }

    /// Takes a new certificate, which holds for `lifetime`.
    pub fn renew(&self, lifetime: Duration) -> Result<(), Error> {
        self.certificate.replace(&issue(&self.authority, lifetime)?)
    }

    /// The `data` of the config map that tells aggregated servers whom to believe: `root` vouches for clients that come
    /// to them directly.
    pub fn published(&self, root: &Ca) -> Value {
        let list = |word: &str| format!("[{word:?}]");
        json!({
            "client-ca-file": (root.pem()),
            "requestheader-allowed-names": (list(NAME)),
            "requestheader-client-ca-file": (self.authority.pem()),
            "requestheader-extra-headers-prefix": (list("X-Remote-Extra-")),
            "requestheader-group-headers": (list("X-Remote-Group")),
            "requestheader-uid-headers": (list("X-Remote-Uid")),
            "requestheader-username-headers": (list("X-Remote-User")),
        })
    }
}

fn issue(authority: &Ca, lifetime: Duration) -> Result<Identity, Error> {
    authority.issue_for(NAME, &[], &[], Usage::Client, lifetime)
}

/// Whether a header says who somebody is, or proves it to us: none of a caller's own goes on. Some programs read `_` as
/// `-`.
pub fn is_of_identity(name: &str) -> bool {
    let name = name.replace('_', "-");
    matches!(name.as_str(), USER | GROUP | UID | "authorization")
        || name.starts_with(EXTRA)
        || name.starts_with("impersonate-")
}

/// Names the user.
///
/// # Errors
/// What of the user is no text that a header may have.
pub fn name_user(headers: &mut HeaderMap, user: &User) -> Result<(), String> {
    let value = |text: &str| {
        HeaderValue::from_bytes(text.as_bytes()).map_err(|_| format!("{text:?} of the user cannot stand in a header"))
    };
    headers.insert(USER, value(&user.name)?);
    if !user.uid.is_empty() {
        headers.insert(UID, value(&user.uid)?);
    }
    for group in &user.groups {
        headers.append(GROUP, value(group)?);
    }
    for (key, values) in &user.extra {
        let name = format!("{EXTRA}{}", escaped(key));
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|error| format!("{key:?} of the user: {error}"))?;
        for text in values {
            headers.append(name.clone(), value(text)?);
        }
    }
    Ok(())
}

/// A key as part of a header's name: what may not stand there is percent-encoded, and so is what would be read as that.
fn escaped(key: &str) -> String {
    let mut out = String::with_capacity(key.len());
    for byte in key.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => out.push(char::from(byte)),
            b'!' | b'#' | b'$' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~' => {
                out.push(char::from(byte));
            }
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_named_in_headers() {
        let mut user = User::new("jané", &["devs"]);
        user.uid = "7".into();
        user.extra = vec![("example.org/a%b".into(), vec!["x".into(), "y".into()])];
        let mut headers = HeaderMap::new();
        name_user(&mut headers, &user).unwrap();
        let all = |name: &str| -> Vec<String> {
            let values = headers.get_all(name).iter();
            values.map(|value| String::from_utf8(value.as_bytes().to_vec()).unwrap()).collect()
        };
        assert_eq!(all("X-Remote-User"), ["jané"]);
        assert_eq!(all("X-Remote-Group"), ["devs", "system:authenticated"]);
        assert_eq!(all("X-Remote-Uid"), ["7"]);
        assert_eq!(all("X-Remote-Extra-example.org%2fa%25b"), ["x", "y"]);
        assert!(headers.keys().all(|name| is_of_identity(name.as_str())));
        user.name = "a\nb".into();
        assert!(name_user(&mut headers, &user).unwrap_err().contains("cannot stand in a header"));
    }
}
