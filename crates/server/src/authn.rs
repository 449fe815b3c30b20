//! Who is calling: a client certificate, a bearer token, or nobody.

use base::Time;
use client::Mirror;
use meta::{Reason, Resource, Status, Str};

use crate::http::sending::Cut;
use crate::identity::{MASTERS, User, service_account_user};
use crate::tokens::{Claims, ISSUER, Tokens};

/// The administrator, whom the kubeconfig in the data folder is for.
pub const ADMIN: &str = "gantry-admin";
const SERVICE_ACCOUNTS: Resource = Resource("serviceaccounts");

/// Checks what a connection and its headers prove.
pub struct Authenticator {
    pub tokens: Tokens,
    /// The token with which a new node may ask for its certificates.
    pub join_token: String,
    /// The administrator's token.
    pub admin_token: String,
}

/// Whoever is at the other end of a connection.
pub struct Peer {
    pub address: std::net::IpAddr,
    /// The client certificate that it showed.
    pub certified: Option<Certified>,
    /// Ends the connection.
    pub cut: Cut,
}

/// A client certificate that was verified when its connection began: whose it is, and until when.
#[derive(Clone, Debug, PartialEq)]
pub struct Certified {
    pub user: User,
    pub until: Time,
}

/// The subject of a verified client certificate.
pub fn user_of_certificate(der: &[u8]) -> Option<Certified> {
    use x509_parser::prelude::{FromDer, X509Certificate};
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let subject = certificate.subject();
    let name = subject.iter_common_name().next()?.as_str().ok()?;
    let groups: Vec<&str> = subject.iter_organization().filter_map(|part| part.as_str().ok()).collect();
    let until = Time::from_seconds(certificate.validity().not_after.timestamp());
    Some(Certified { user: User::new(name, &groups), until })
}

impl Authenticator {
    /// The caller. A wrong token is an error, never anonymous; so is a certificate that ended while its connection lasts.
    pub fn authenticate(
        &self,
        certificate: Option<&Certified>,
        authorization: Option<&str>,
        mirror: &Mirror,
        now: Time,
    ) -> Result<User, Status> {
        if let Some(Certified { user, until }) = certificate {
            if *until < now {
                let why = format!("Unauthorized: the client certificate of {} ended at {}", user.name, until.rfc3339());
                return Err(Status::new(Reason::Unauthorized, why));
            }
            return Ok(user.clone());
        }
        let Some(header) = authorization else { return Ok(User::anonymous()) };
        let Some((scheme, token)) = header.split_once(' ') else { return Err(unauthorized()) };
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Err(unauthorized());
        }
        self.token(token.trim(), &[ISSUER.into()], mirror, now).map(|(user, _)| user).map_err(|_| unauthorized())
    }

    /// The user that a token proves for one of `audiences`, and which of them it is good for.
    pub fn token(
        &self,
        token: &str,
        audiences: &[Str],
        mirror: &Mirror,
        now: Time,
    ) -> Result<(User, Vec<Str>), &'static str> {
        let known: [(&str, &str, &[&str]); 2] = [
            (&self.join_token, "system:bootstrap:join", &["system:bootstrappers", "system:bootstrappers:gantry:join"]),
            (&self.admin_token, ADMIN, &[MASTERS]),
        ];
        for (secret, name, groups) in known {
            if !secret.is_empty() && same(token.as_bytes(), secret.as_bytes()) {
                return Ok((User::new(name, groups), audiences.to_vec()));
            }
        }
        let claims = self.tokens.verify(token, now)?;
        let good: Vec<Str> = audiences.iter().filter(|audience| claims.audiences.contains(audience)).cloned().collect();
        if good.is_empty() {
            return Err("for another audience");
        }
        check_bound(&claims, mirror)?;
        let mut user = service_account_user(&claims.namespace, &claims.account);
        user.uid = claims.account_uid.clone();
        let mut extra =
            vec![("authentication.kubernetes.io/credential-id".into(), vec![format!("JTI={}", claims.id).into()])];
        if let Some((resource, name, uid)) = &claims.bound
            && resource == "pods"
        {
            extra.push(("authentication.kubernetes.io/pod-name".into(), vec![name.clone()]));
            extra.push(("authentication.kubernetes.io/pod-uid".into(), vec![uid.clone()]));
        }
        if let Some((name, uid)) = &claims.node {
            extra.push(("authentication.kubernetes.io/node-name".into(), vec![name.clone()]));
            extra.push(("authentication.kubernetes.io/node-uid".into(), vec![uid.clone()]));
        }
        user.extra = extra;
        Ok((user, good))
    }
}

/// A token holds only as long as the account and the object it is bound to exist.
fn check_bound(claims: &Claims, mirror: &Mirror) -> Result<(), &'static str> {
    let cache = mirror.read();
    let account = cache.one(SERVICE_ACCOUNTS, &claims.namespace, &claims.account).ok_or("the account is gone")?;
    if account.uid() != claims.account_uid {
        return Err("the account was made anew");
    }
    if let Some((resource, name, uid)) = &claims.bound {
        let object =
            cache.one(Resource::intern(resource), &claims.namespace, name).ok_or("what it is bound to is gone")?;
        if object.uid() != uid {
            return Err("what it is bound to was made anew");
        }
    }
    Ok(())
}

fn unauthorized() -> Status {
    Status::new(Reason::Unauthorized, "Unauthorized")
}

/// Compares in a time that does not depend on where they differ.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |wrong, (a, b)| wrong | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_ends_while_its_connection_lasts() {
        let dir = tempfile::tempdir().unwrap();
        let keys = crate::Keys::open(dir.path()).unwrap();
        let lifetime = std::time::Duration::from_secs(100);
        let ca = crate::ca::Ca::open(dir.path()).unwrap();
        let identity = ca.issue_for("jane", &["devs"], &[], crate::ca::Usage::Client, lifetime).unwrap();
        let certified = user_of_certificate(&identity.rustls().unwrap().0[0]).unwrap();
        assert_eq!(certified.user, User::new("jane", &["devs"]));
        let mirror = Mirror::new(cache::Cache::new(Vec::new()));
        let at = |seconds: i64| {
            let now = Time::from_seconds(certified.until.seconds() + seconds);
            keys.authn.authenticate(Some(&certified), None, &mirror, now)
        };
        assert_eq!(at(-1).unwrap().name, "jane");
        let refused = at(1).unwrap_err();
        assert_eq!(refused.code(), 401);
        assert!(refused.message().contains("the client certificate of jane ended at"), "{}", refused.message());
    }
}
