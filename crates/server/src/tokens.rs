//! Service-account tokens: JSON web tokens signed with our P-256 key (ES256), bound to an account and, mostly, a pod.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use base::Time;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use meta::{Str, Value, json};
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair, UnparsedPublicKey,
};
use std::path::Path;

use crate::ca::write_private;
use crate::error::Error;

/// The default audience, and the issuer that tokens name.
pub const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

/// Signs and checks tokens.
pub struct Tokens {
    key: EcdsaKeyPair,
    key_id: String,
    /// Good tokens that were seen lately.
    known: Mutex<HashMap<Box<str>, Arc<Claims>>>,
}

/// Tokens remembered; with more all are forgotten and checked anew.
const KNOWN_MAX: usize = 20_000;

/// What a token that holds says.
#[derive(Clone, Debug, PartialEq)]
pub struct Claims {
    pub namespace: Str,
    pub account: Str,
    pub account_uid: Str,
    /// `("pods", name, uid)`, `("nodes", …)` or `("secrets", …)`.
    pub bound: Option<(Str, Str, Str)>,
    /// The node of the bound pod.
    pub node: Option<(Str, Str)>,
    pub audiences: Vec<Str>,
    pub expires: Time,
    pub id: Str,
}

/// What a token shall say.
pub struct Grant<'a> {
    pub namespace: &'a str,
    pub account: &'a str,
    pub account_uid: &'a str,
    pub bound: Option<(&'a str, &'a str, &'a str)>,
    pub node: Option<(&'a str, &'a str)>,
    pub audiences: &'a [Str],
    pub seconds: i64,
}

fn bad_key(why: String) -> Error {
    Error::Certificate { what: "read the key of the tokens".to_owned(), why }
}

impl Tokens {
    /// Loads the signing key from `dir/tokens.key`, or makes one there.
    pub fn open(dir: &Path) -> Result<Tokens, Error> {
        let path = dir.join("tokens.key");
        if path.exists() {
            let pkcs8 = std::fs::read(&path).map_err(|error| Error::File { what: "read", path, error })?;
            return Tokens::of(&pkcs8);
        }
        let (tokens, pkcs8) = Tokens::make()?;
        write_private(&path, &pkcs8)?;
        Ok(tokens)
    }

    /// A new key, also as PKCS#8.
    ///
    /// # Errors
    /// When there is no randomness.
    pub fn make() -> Result<(Tokens, Vec<u8>), Error> {
        let made = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new());
        let made = made.map_err(|_| bad_key("no randomness".to_owned()))?;
        Ok((Tokens::of(made.as_ref())?, made.as_ref().to_vec()))
    }

    fn of(pkcs8: &[u8]) -> Result<Tokens, Error> {
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8, &SystemRandom::new())
            .map_err(|error| bad_key(error.to_string()))?;
        let digest = ring::digest::digest(&ring::digest::SHA256, key.public_key().as_ref());
        Ok(Tokens { key_id: URL_SAFE_NO_PAD.encode(digest), key, known: Mutex::default() })
    }

    /// A signed token and when it ends.
    pub fn sign(&self, grant: &Grant<'_>, now: Time) -> Result<(String, Time), Error> {
        let expires = Time(now.0 + grant.seconds * 1_000_000);
        let mut kubernetes = json!({
            "namespace": (grant.namespace),
            "serviceaccount": {"name": (grant.account), "uid": (grant.account_uid)},
        });
        if let Some((resource, name, uid)) = grant.bound {
            let key = resource.trim_end_matches('s');
            kubernetes.set(&[key], json!({"name": name, "uid": uid}));
        }
        if let Some((name, uid)) = grant.node {
            kubernetes.set(&["node"], json!({"name": name, "uid": uid}));
        }
        let audiences: Vec<Value> = grant.audiences.iter().map(Value::from).collect();
        let mut id = [0u8; 16];
        rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty())
            .map_err(|error| Error::Certificate { what: "sign a token".to_owned(), why: error.to_string() })?;
        let claims = json!({
            "aud": audiences, "exp": (expires.seconds()), "iat": (now.seconds()), "nbf": (now.seconds()),
            "iss": ISSUER, "jti": (crate::uid::format(id)), "kubernetes.io": kubernetes,
            "sub": (format!("system:serviceaccount:{}:{}", grant.namespace, grant.account)),
        });
        let header = json!({"alg": "ES256", "kid": (&self.key_id)});
        let signed =
            format!("{}.{}", URL_SAFE_NO_PAD.encode(header.to_json()), URL_SAFE_NO_PAD.encode(claims.to_json()));
        let signature = self
            .key
            .sign(&SystemRandom::new(), signed.as_bytes())
            .map_err(|_| Error::Certificate { what: "sign a token".to_owned(), why: "no randomness".to_owned() })?;
        Ok((format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)), expires))
    }

    /// What the token says if we signed it and it is valid at `now`; the error is a sentence for the log. Checking a
    /// signature costs more than most requests, so good tokens are remembered until they expire.
    pub fn verify(&self, token: &str, now: Time) -> Result<Arc<Claims>, &'static str> {
        if let Some(claims) = self.known().get(token) {
            return if claims.expires > now { Ok(claims.clone()) } else { Err("expired") };
        }
        let claims = Arc::new(self.check(token, now)?);
        let mut known = self.known();
        if known.len() >= KNOWN_MAX {
            known.clear();
        }
        known.insert(token.into(), claims.clone());
        Ok(claims)
    }

    fn known(&self) -> MutexGuard<'_, HashMap<Box<str>, Arc<Claims>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check(&self, token: &str, now: Time) -> Result<Claims, &'static str> {
        let (signed, signature) = token.rsplit_once('.').ok_or("not a token")?;
        let (header, claims) = signed.split_once('.').ok_or("not a token")?;
        let read = |part: &str| -> Result<Value, &'static str> {
            let bytes = URL_SAFE_NO_PAD.decode(part).map_err(|_| "not base64")?;
            Value::parse(&bytes).map_err(|_| "not JSON")
        };
        if read(header)?["alg"].text() != "ES256" {
            return Err("another algorithm than ES256");
        }
        let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| "not base64")?;
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, self.key.public_key().as_ref())
            .verify(signed.as_bytes(), &signature)
            .map_err(|_| "the signature is not ours")?;
        let claims = read(claims)?;
        let seconds = now.seconds();
        if claims["exp"].as_int().is_none_or(|exp| exp <= seconds) {
            return Err("expired");
        }
        if claims["nbf"].as_int().is_some_and(|nbf| nbf > seconds + 60) {
            return Err("not valid yet");
        }
        if claims["iss"].text() != ISSUER {
            return Err("another issuer");
        }
        let kubernetes = &claims["kubernetes.io"];
        let named = |key: &str| -> Option<(Str, Str)> {
            let object = kubernetes.get(key)?;
            Some((object["name"].text().into(), object["uid"].text().into()))
        };
        let bound = ["pods", "secrets"].into_iter().find_map(|resource| {
            let (name, uid) = named(resource.trim_end_matches('s'))?;
            Some((resource.into(), name, uid))
        });
        let (account, account_uid) = named("serviceaccount").ok_or("no service account")?;
        Ok(Claims {
            namespace: kubernetes["namespace"].text().into(),
            account,
            account_uid,
            bound,
            node: named("node"),
            audiences: claims["aud"].items().iter().map(|audience| audience.text().into()).collect(),
            expires: Time::from_seconds(claims["exp"].as_int().unwrap_or(0)),
            id: claims["jti"].text().into(),
        })
    }

    /// The public key as a JSON web key set, for `/openid/v1/jwks`.
    pub fn key_set(&self) -> Value {
        let point = self.key.public_key().as_ref();
        let (x, y) = (URL_SAFE_NO_PAD.encode(&point[1..33]), URL_SAFE_NO_PAD.encode(&point[33..65]));
        json!({"keys": [{"use": "sig", "kty": "EC", "kid": (&self.key_id), "crv": "P-256", "alg": "ES256", "x": x, "y": y}]})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_says_what_was_granted_until_it_expires() {
        let dir = tempfile::tempdir().unwrap();
        let tokens = Tokens::open(dir.path()).unwrap();
        let now = Time::from_seconds(1_800_000_000);
        let grant = Grant {
            namespace: "ns",
            account: "sa",
            account_uid: "u1",
            bound: Some(("pods", "p", "u2")),
            node: None,
            audiences: &["a".into()],
            seconds: 600,
        };
        let (token, expires) = tokens.sign(&grant, now).unwrap();
        let claims = Tokens::open(dir.path()).unwrap().verify(&token, now).unwrap();
        assert_eq!((claims.account.as_str(), claims.expires), ("sa", expires));
        assert_eq!(claims.bound, Some(("pods".into(), "p".into(), "u2".into())));
        assert_eq!(tokens.verify(&token, expires), Err("expired"));
        let other = Tokens::open(tempfile::tempdir().unwrap().path()).unwrap();
        assert!(other.verify(&token, now).is_err());
        for bad in ["", ".", "a.b.c", &token[..token.len() - 2], &format!("{token}x")] {
            assert!(tokens.verify(bad, now).is_err());
        }
    }
}
