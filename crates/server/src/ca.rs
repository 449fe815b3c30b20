//! Our own certificate authority: one root, short certificates for servers, nodes and users, signed requests.
//!
//! Keys are P-256. The root lives in the data folder (mode 0600); nothing else is kept.

use std::net::IpAddr;
use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

use crate::error::Error;

/// How long the root holds.
const ROOT_DAYS: i64 = 3650;
/// How long what it signs for servers and users holds.
pub const LEAF_DAYS: i64 = 365;

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

fn validity(params: &mut CertificateParams, days: i64) {
    let now = std::time::SystemTime::now();
    // An hour back, so that a clock that is a little behind still accepts it.
    params.not_before = (now - std::time::Duration::from_secs(3600)).into();
    params.not_after = (now + std::time::Duration::from_secs(days.max(1) as u64 * 86_400)).into();
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
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "gantry-ca");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        validity(&mut params, ROOT_DAYS);
        let cert = params.self_signed(&key).map_err(failed("sign the root certificate"))?;
        let key_pem = key.serialize_pem();
        Ok((Ca { issuer: Issuer::new(params, key), pem: cert.pem() }, key_pem))
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
        validity(&mut params, days);
        let cert = params.signed_by(&key, &self.issuer).map_err(failed("sign a certificate"))?;
        Ok(Identity { cert_pem: cert.pem(), key_pem: key.serialize_pem() })
    }

    /// Signs a PEM certificate request as it stands, for `usage`, for `days`.
    pub fn sign(&self, request_pem: &str, usage: Usage, seconds: i64) -> Result<String, Error> {
        let mut request =
            CertificateSigningRequestParams::from_pem(request_pem).map_err(failed("read a certificate request"))?;
        request.params.is_ca = IsCa::NoCa;
        request.params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        request.params.extended_key_usages = usage.purposes();
        validity(&mut request.params, 1);
        let now = std::time::SystemTime::now();
        request.params.not_after = (now + std::time::Duration::from_secs(seconds.max(600) as u64)).into();
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
