//! The TLS that etcd is spoken to with.

use std::sync::Arc;

use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

use crate::OpenError;

/// Trusts the authorities of `ca_pem`; with `identity` (certificate and key, PEM) shows who we are.
///
/// # Errors
/// [`OpenError::Tls`], when one of them is not readable or they do not fit together.
pub fn tls(ca_pem: &str, identity: Option<(&str, &str)>) -> Result<Arc<rustls::ClientConfig>, OpenError> {
    let bad = |what: &'static str| move |why: String| OpenError::Tls { what, why };
    let mut roots = rustls::RootCertStore::empty();
    for der in CertificateDer::pem_slice_iter(ca_pem.as_bytes()) {
        let der = der.map_err(|error| bad("the authorities")(error.to_string()))?;
        roots.add(der).map_err(|error| bad("the authorities")(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(bad("the authorities")("there is no certificate in the file".to_owned()));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| bad("TLS")(error.to_string()))?
        .with_root_certificates(roots);
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some((cert_pem, key_pem)) => {
            let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(cert_pem.as_bytes()).collect();
            let chain = chain.map_err(|error| bad("the client certificate")(error.to_string()))?;
            let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes());
            let key = key.map_err(|error| bad("the client certificate's key")(error.to_string()))?;
            let fitting = builder.with_client_auth_cert(chain, key);
            fitting.map_err(|error| bad("the client certificate")(error.to_string()))?
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}
