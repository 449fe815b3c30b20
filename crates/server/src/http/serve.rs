//! Accepting connections: TLS with optional client certificates, HTTP/1.1 and HTTP/2 on one port.

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::Response;
use crate::authn::user_of_certificate;
use crate::ca::{Current, Identity};
use crate::error::Error;
use crate::identity::User;

/// Connections served at once; more wait in the kernel's queue.
pub const CONNECTIONS_MAX: usize = 15_000;
/// Streams at once on one HTTP/2 connection.
const STREAMS_MAX: u32 = 1_000;
/// Bytes of one request's headers.
const HEADERS_MAX_BYTES: u32 = 64 * 1024;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);

/// TLS for a server whose clients may show a certificate of our authority.
pub fn tls(identity: &Identity, ca_pem: &str) -> Result<Arc<ServerConfig>, Error> {
    tls_with(Arc::new(Current::new(identity)?), ca_pem)
}

/// The same, with a certificate that may be replaced.
pub fn tls_with(certificate: Arc<Current>, ca_pem: &str) -> Result<Arc<ServerConfig>, Error> {
    let bad = |error: &dyn std::fmt::Display| Error::Tls { why: error.to_string() };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca_pem.as_bytes()) {
        roots.add(certificate.map_err(|error| bad(&error))?).map_err(|error| bad(&error))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(|error| bad(&error))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| bad(&error))?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(certificate);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.max_early_data_size = 0;
    Ok(Arc::new(config))
}

/// Serves until `stop` resolves; open connections then get a moment to end.
pub async fn run<H, F>(listener: TcpListener, tls: Arc<ServerConfig>, handler: H, stop: impl Future<Output = ()>)
where
    H: Fn(http::Request<Incoming>, Option<User>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response> + Send + 'static,
{
    let acceptor = TlsAcceptor::from(tls);
    let places = Arc::new(tokio::sync::Semaphore::new(CONNECTIONS_MAX));
    let mut stop = std::pin::pin!(stop);
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let socket = tokio::select! {
            () = &mut stop => return,
            accepted = listener.accept() => match accepted {
                Ok((socket, _)) => socket,
                Err(error) => {
                    tracing::warn!("cannot accept a connection: {error}");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
        };
        let (acceptor, handler) = (acceptor.clone(), handler.clone());
        tokio::spawn(async move {
            let _place = place;
            // Small answers go at once; the kernel must not wait for more.
            let _ = socket.set_nodelay(true);
            let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(socket)).await else { return };
            let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
            let user = certificate.and_then(|der| user_of_certificate(der));
            let service = service_fn(move |request| {
                let answer = handler(request, user.clone());
                async move { Ok::<_, Infallible>(answer.await) }
            });
            let mut server = auto::Builder::new(TokioExecutor::new());
            server.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
            server
                .http2()
                .timer(TokioTimer::new())
                .max_concurrent_streams(STREAMS_MAX)
                .max_header_list_size(HEADERS_MAX_BYTES)
                .initial_stream_window_size(1 << 20)
                .initial_connection_window_size(1 << 22)
                .max_frame_size(1 << 18)
                .keep_alive_interval(Some(Duration::from_secs(30)));
            if let Err(error) = server.serve_connection_with_upgrades(TokioIo::new(stream), service).await {
                tracing::debug!("a connection ended: {error}");
            }
        });
    }
}
