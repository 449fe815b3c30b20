//! Programs that the server asks over HTTPS, each named by a `clientConfig`: a service of the cluster, or an address.
//!
//! Not here: what they are asked; connections to nodes (`subresource::node`).
//!
//! Invariant: an answer comes from somebody who proved, to the authorities of the same `clientConfig`, to be who was asked.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Request, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use meta::{Str, Value};

use crate::Server;
use crate::ca::roots;
use crate::subresource::node;

/// Bytes of one answer.
const ANSWER_MAX_BYTES: usize = 8 << 20;
const HTTPS_PORT: u16 = 443;

/// Where a program is, by what name it is known, and who vouches for it.
pub struct Callee {
    place: Place,
    /// Its name in its certificate.
    name: String,
    port: u16,
    path: String,
    authorities: Str,
}

enum Place {
    Address(String),
    Service { namespace: Str, name: Str },
}

impl Callee {
    /// # Errors
    /// What of the `clientConfig` cannot be followed.
    pub fn of(config: &Value) -> Result<Callee, String> {
        let authorities: Str = config["caBundle"].text().into();
        let service = &config["service"];
        if !service.is_null() {
            let (namespace, name): (Str, Str) = (service["namespace"].text().into(), service["name"].text().into());
            let port = service["port"].as_int().and_then(|port| u16::try_from(port).ok()).unwrap_or(HTTPS_PORT);
            let path = format!("/{}", service["path"].text().trim_start_matches('/'));
            let known = format!("{name}.{namespace}.svc");
            return Ok(Callee { place: Place::Service { namespace, name }, name: known, port, path, authorities });
        }
        let url: Uri = config["url"].text().parse().map_err(|error| format!("{:?}: {error}", config["url"].text()))?;
        let host = url.host().ok_or_else(|| format!("{url} names no host"))?.trim_matches(['[', ']']).to_owned();
        let port = url.port_u16().unwrap_or(HTTPS_PORT);
        let path = url.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        Ok(Callee { place: Place::Address(host.clone()), name: host, port, path, authorities })
    }

    /// Asks, and waits for the answer as long as is given.
    ///
    /// # Errors
    /// One sentence: what was asked, and why no answer came.
    pub async fn post(&self, server: &Server, body: Bytes, patience: Duration) -> Result<Bytes, String> {
        let joint = if self.path.contains('?') { '&' } else { '?' };
        let path = format!("{}{joint}timeout={}s", self.path, patience.as_secs());
        let asked = |why: &dyn std::fmt::Display| format!("Post \"https://{}:{}{path}\": {why}", self.name, self.port);
        match tokio::time::timeout(patience, self.answer(server, &path, body)).await {
            Ok(answer) => answer.map_err(|why| asked(&why)),
            Err(_) => Err(asked(&"context deadline exceeded")),
        }
    }

    async fn answer(&self, server: &Server, path: &str, body: Bytes) -> Result<Bytes, String> {
        let tls = self.tls()?;
        let wire = match &self.place {
            Place::Address(host) => node::dial_address(host, self.port).await,
            Place::Service { namespace, name } => node::dial_service(server, namespace, name, self.port).await,
        };
        let wire = wire.map_err(|status| status.message().to_owned())?;
        let wire = node::secure(&tls, wire, &self.name).await.map_err(|status| status.message().to_owned())?;
        let failed = |error: &dyn std::fmt::Display| error.to_string();
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(wire)).await;
        let (mut sender, connection) = handshake.map_err(|error| failed(&error))?;
        let connection = tokio::spawn(connection);
        let request = Request::post(path)
            .header(header::HOST, format!("{}:{}", self.name, self.port))
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, "application/json")
            .body(Full::new(body))
            .map_err(|error| failed(&error))?;
        let answer = sender.send_request(request).await.map_err(|error| failed(&error))?;
        let code = answer.status();
        let body = Limited::new(answer.into_body(), ANSWER_MAX_BYTES).collect().await;
        connection.abort();
        let bytes = body.map_err(|error| failed(&error))?.to_bytes();
        match code.is_success() {
            true => Ok(bytes),
            false => Err(format!("the server answers {code}: {}", String::from_utf8_lossy(&bytes).trim())),
        }
    }

    /// Trusts the authorities that are named, and nobody else.
    fn tls(&self) -> Result<Arc<rustls::ClientConfig>, String> {
        let pem = STANDARD.decode(self.authorities.as_bytes()).map_err(|error| format!("caBundle: {error}"))?;
        let roots = roots(&pem).map_err(|error| format!("caBundle: {error}"))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = config.map_err(|error| error.to_string())?;
        Ok(Arc::new(config.with_root_certificates(roots).with_no_client_auth()))
    }
}
