//! Our own certificate authority: one root, short certificates for servers, nodes and users, signed requests.
//!
//! Keys are P-256. The root lives in the data folder (mode 0600); nothing else is kept. What it signs holds for a while
//! only: a process keeps its certificate in a [`Current`], where it is replaced in time without an open connection
//! noticing.

use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use ring::hkdf::{HKDF_SHA256, Salt};
use rustls::RootCertStore;
use rustls::client::ResolvesClientCert;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

use crate::error::Error;

/// How long the root holds.
const ROOT_DAYS: u64 = 3650;
/// How far back a signed request holds, for clocks that are a little behind.
const SIGNED_BACK: Duration = Duration::from_secs(300);
/// How long what it signs for servers and users holds.
pub const LEAF_DAYS: i64 = 365;

/// What the key of the front proxy's authority is derived for.
const FRONT_PROXY_PURPOSE: &[u8] = b"gantry front proxy 1";
/// PKCS #8 of an Ed25519 key, up to its seed.
const ED25519_PKCS8: [u8; 16] = [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
const ED25519_SEED_BYTES: usize = 32;

pub struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// A certificate with its key, both as PEM.
#[derive(Clone, Debug)]
pub struct Identity {
    pub cert_pem: String,
    pub key_pem: String,
}

/// What a signed request may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usage {
    Client,
    Server,
    Both,
}

impl Usage {
    fn purposes(self) -> Vec<ExtendedKeyUsagePurpose> {
        match self {
            Usage::Client => vec![ExtendedKeyUsagePurpose::ClientAuth],
            Usage::Server => vec![ExtendedKeyUsagePurpose::ServerAuth],
            Usage::Both => vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
        }
    }
}

fn failed(what: &str) -> impl Fn(rcgen::Error) -> Error + '_ {
    move |error| Error::Certificate { what: what.to_owned(), why: error.to_string() }
}

/// What an authority of this name is.
fn authority(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    params
}

/// The length of some days.
pub const fn days(days: u64) -> Duration {
    Duration::from_secs(days * 86_400)
}

fn validity(params: &mut CertificateParams, lifetime: Duration) {
    let now = std::time::SystemTime::now();
    // An hour back, so that a clock that is a little behind still accepts it.
    params.not_before = (now - Duration::from_secs(3600)).into();
    params.not_after = (now + lifetime).into();
}

/// How long to wait before a certificate with this much time left is renewed: two thirds of it, which leaves time for
/// tries that fail.
pub fn renew_after(left: Duration) -> Duration {
    left * 2 / 3
}

/// The authorities that are trusted: all certificates of a PEM text.
pub fn roots(pem: &[u8]) -> Result<RootCertStore, Error> {
    let bad = |error: &dyn std::fmt::Display| Error::Tls { why: error.to_string() };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        roots.add(certificate.map_err(|error| bad(&error))?).map_err(|error| bad(&error))?;
    }
    Ok(roots)
}

impl Ca {
    /// Loads the root from `dir` (`ca.crt`, `ca.key`), or makes one there.
    pub fn open(dir: &Path) -> Result<Ca, Error> {
        let (cert_path, key_path) = (dir.join("ca.crt"), dir.join("ca.key"));
        if cert_path.exists() && key_path.exists() {
            let pem = read(&cert_path)?;
            let key = KeyPair::from_pem(&read(&key_path)?).map_err(failed("read the root key"))?;
            let issuer = Issuer::from_ca_cert_pem(&pem, key).map_err(failed("read the root certificate"))?;
            return Ok(Ca { issuer, pem });
        }
        let (ca, key_pem) = Ca::make()?;
        write_private(&key_path, key_pem.as_bytes())?;
        write_private(&cert_path, ca.pem.as_bytes())?;
        Ok(ca)
    }

    /// A new root and its key as PEM.
    pub(crate) fn make() -> Result<(Ca, String), Error> {
        let key = KeyPair::generate().map_err(failed("make a root key"))?;
        let mut params = authority("gantry-ca");
        validity(&mut params, days(ROOT_DAYS));
        let cert = params.self_signed(&key).map_err(failed("sign the root certificate"))?;
        let key_pem = key.serialize_pem();
        Ok((Ca { issuer: Issuer::new(params, key), pem: cert.pem() }, key_pem))
    }

    /// The authority whose certificate proves to aggregated servers that the user in the headers of a request was
    /// authenticated here. It is another one than the root, so that nobody whom the root signed for may say who he is; it
    /// follows from the root alone, so that all servers of a cluster have the same and nothing more is kept.
    ///
    /// # Errors
    /// When the root cannot be read.
    pub fn front_proxy(&self) -> Result<Ca, Error> {
        let failed_to =
            |what: &str| Error::Certificate { what: "derive an authority".to_owned(), why: what.to_owned() };
        let mut seed = [0u8; ED25519_SEED_BYTES];
        let derived = Salt::new(HKDF_SHA256, FRONT_PROXY_PURPOSE).extract(self.issuer.key().serialized_der());
        let expanded = derived.expand(&[b"key"], HKDF_SHA256).and_then(|expanded| expanded.fill(&mut seed));
        expanded.map_err(|_| failed_to("the key has the wrong length"))?;
        let key = KeyPair::try_from([&ED25519_PKCS8[..], &seed].concat()).map_err(failed("derive a key"))?;
        let der = CertificateDer::from_pem_slice(self.pem.as_bytes()).map_err(|error| failed_to(&error.to_string()))?;
        let (_, root) = x509_parser::parse_x509_certificate(&der).map_err(|error| failed_to(&error.to_string()))?;
        let at = |time: x509_parser::time::ASN1Time| {
            let seconds = u64::try_from(time.timestamp()).unwrap_or(0);
            std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
        };
        let mut params = authority("gantry-front-proxy-ca");
        // All of it is the same each time it is made.
        params.serial_number = Some(1u64.into());
        params.not_before = at(root.validity().not_before).into();
        params.not_after = at(root.validity().not_after).into();
        let cert = params.self_signed(&key).map_err(failed("sign an authority"))?;
        Ok(Ca { issuer: Issuer::new(params, key), pem: cert.pem() })
    }

    /// The root certificate.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// A new certificate and key. `names` are DNS names or addresses that it is good for as a server.
    pub fn issue(
        &self,
        user: &str,
        groups: &[&str],
        names: &[String],
        usage: Usage,
        days: i64,
    ) -> Result<Identity, Error> {
        self.issue_for(user, groups, names, usage, self::days(u64::try_from(days).unwrap_or(1).max(1)))
    }

    /// The same, for any length of time.
    pub fn issue_for(
        &self,
        user: &str,
        groups: &[&str],
        names: &[String],
        usage: Usage,
        lifetime: Duration,
    ) -> Result<Identity, Error> {
        let key = KeyPair::generate().map_err(failed("make a key"))?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, user);
        for group in groups {
            params.distinguished_name.push(DnType::OrganizationName, *group);
        }
        params.subject_alt_names = names
            .iter()
            .map(|name| match name.parse::<IpAddr>() {
                Ok(address) => Ok(SanType::IpAddress(address)),
                Err(_) => name.as_str().try_into().map(SanType::DnsName),
            })
            .collect::<Result<_, _>>()
            .map_err(failed("read the names of a certificate"))?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = usage.purposes();
        validity(&mut params, lifetime);
        let cert = params.signed_by(&key, &self.issuer).map_err(failed("sign a certificate"))?;
        Ok(Identity { cert_pem: cert.pem(), key_pem: key.serialize_pem() })
    }

    /// Signs a PEM certificate request as it stands, for `usage`, for `seconds`.
    pub fn sign(&self, request_pem: &str, usage: Usage, seconds: i64) -> Result<String, Error> {
        let mut request =
            CertificateSigningRequestParams::from_pem(request_pem).map_err(failed("read a certificate request"))?;
        request.params.is_ca = IsCa::NoCa;
        request.params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        request.params.extended_key_usages = usage.purposes();
        let life = Duration::from_secs(u64::try_from(seconds).unwrap_or(0).max(1));
        validity(&mut request.params, life);
        // Who asks says for how long: little more is given.
        request.params.not_before = (std::time::SystemTime::now() - SIGNED_BACK).into();
        Ok(request.signed_by(&self.issuer).map_err(failed("sign a certificate request"))?.pem())
    }
}

impl Identity {
    /// The chain and key in rustls' form.
    pub fn rustls(&self) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), Error> {
        let bad = |error: rustls_pki_types::pem::Error| Error::Certificate {
            what: "read a certificate".to_owned(),
            why: error.to_string(),
        };
        let chain = CertificateDer::pem_slice_iter(self.cert_pem.as_bytes()).collect::<Result<_, _>>().map_err(bad)?;
        let key = PrivateKeyDer::from_pem_slice(self.key_pem.as_bytes()).map_err(bad)?;
        Ok((chain, key))
    }

    fn certified(&self) -> Result<Arc<CertifiedKey>, Error> {
        let (chain, key) = self.rustls()?;
        let certified = CertifiedKey::from_der(chain, key, &rustls::crypto::ring::default_provider());
        certified.map(Arc::new).map_err(|error| Error::Tls { why: error.to_string() })
    }
}

/// A certificate that is replaced while it is in use: new connections show the newest one.
#[derive(Debug)]
pub struct Current(RwLock<Arc<CertifiedKey>>);

impl Current {
    pub fn new(identity: &Identity) -> Result<Current, Error> {
        Ok(Current(RwLock::new(identity.certified()?)))
    }

    pub fn replace(&self, identity: &Identity) -> Result<(), Error> {
        let certified = identity.certified()?;
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = certified;
        Ok(())
    }

    fn get(&self) -> Arc<CertifiedKey> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.get())
    }
}

impl ResolvesClientCert for Current {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.get())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// How long a certificate (PEM) still holds; zero when it does not.
pub fn time_left(cert_pem: &str) -> Result<Duration, Error> {
    let bad = |why: String| Error::Certificate { what: "read a certificate".to_owned(), why };
    let der = CertificateDer::from_pem_slice(cert_pem.as_bytes()).map_err(|error| bad(error.to_string()))?;
    let (_, certificate) = x509_parser::parse_x509_certificate(&der).map_err(|error| bad(error.to_string()))?;
    let end = u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or(0);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Ok(Duration::from_secs(end).saturating_sub(now))
}

fn read(path: &Path) -> Result<String, Error> {
    std::fs::read_to_string(path).map_err(|error| Error::File { what: "read", path: path.to_owned(), error })
}

/// Writes a file that only its owner may read, whole or not at all.
pub fn write_private(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let failed = |error| Error::File { what: "write", path: path.to_owned(), error };
    let temporary = path.with_extension("new");
    // A file of an earlier, interrupted write may be there.
    let _ = std::fs::remove_file(&temporary);
    let mut file =
        std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary).map_err(failed)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(failed)?;
    std::fs::rename(&temporary, path).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_front_proxy_follows_from_the_root() {
        let dir = tempfile::tempdir().unwrap();
        let first = Ca::open(dir.path()).unwrap().front_proxy().unwrap();
        let root = Ca::open(dir.path()).unwrap();
        let again = root.front_proxy().unwrap();
        assert_eq!(again.pem(), first.pem(), "all servers have the same");
        assert_ne!(again.pem(), Ca::make().unwrap().0.front_proxy().unwrap().pem());
        let identity = again.issue_for("front-proxy-client", &[], &[], Usage::Client, Duration::from_secs(90)).unwrap();
        let (chain, _) = identity.rustls().unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let trusts = |pem: &str| {
            let roots = Arc::new(roots(pem.as_bytes()).unwrap());
            let made = rustls::server::WebPkiClientVerifier::builder_with_provider(roots, provider.clone());
            let now = rustls_pki_types::UnixTime::now();
            made.build().unwrap().verify_client_cert(&chain[0], &[], now).is_ok()
        };
        assert!(trusts(first.pem()) && !trusts(root.pem()));
    }

    #[test]
    fn certificates_are_renewed_before_they_end() {
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::open(dir.path()).unwrap();
        let short = ca.issue_for("a", &[], &[], Usage::Server, Duration::from_secs(90)).unwrap();
        let left = time_left(&short.cert_pem).unwrap();
        assert!(left <= Duration::from_secs(90) && left > Duration::from_secs(80), "{left:?}");
        assert!(renew_after(left) < left);
        let current = Current::new(&short).unwrap();
        let first = current.get().cert[0].clone();
        let next = ca.issue_for("a", &[], &[], Usage::Server, Duration::from_secs(90)).unwrap();
        current.replace(&next).unwrap();
        assert_ne!(current.get().cert[0], first);
        // A key that does not fit is refused, and the old certificate stays.
        let second = current.get();
        assert!(current.replace(&Identity { cert_pem: next.cert_pem, key_pem: short.key_pem }).is_err());
        assert_eq!(current.get().cert, second.cert);
    }
}
