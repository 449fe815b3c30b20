//! The way to one aggregated server: TLS with our certificate of the front proxy, and connections that are used again.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use meta::{Str, Value};

use super::front_proxy::{FrontProxy, name_user};
use crate::Server;
use crate::ca::roots;
use crate::identity::User;
use crate::subresource::node;
use crate::unjudged::Unjudged;

/// Connections that wait for their next request, and for how long after they were made they are used again: what is
/// behind a service changes.
const IDLE_MAX: usize = 16;
const IDLE_AGE: Duration = Duration::from_secs(30);
/// How long connecting may take, with TLS.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

type Sender = SendRequest<Full<Bytes>>;

/// Where an aggregated server is, and who vouches for it.
pub struct Link {
    pub namespace: Str,
    pub service: Str,
    pub port: u16,
    /// Its name in its certificate.
    host: String,
    /// Or what is wrong with the authorities that are named.
    tls: Result<Arc<rustls::ClientConfig>, String>,
    idle: Mutex<Vec<(Instant, Sender)>>,
}

/// An answer that was read as a whole.
pub struct Got {
    pub code: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Link {
    /// The way that the `spec` of an `APIService` describes; it names a service.
    pub fn of(spec: &Value, proxy: &FrontProxy) -> Link {
        /// Where services listen that name no port.
        const HTTPS_PORT: u16 = 443;
        let service = &spec["service"];
        let (namespace, name): (Str, Str) = (service["namespace"].text().into(), service["name"].text().into());
        let port = service["port"].as_int().and_then(|port| u16::try_from(port).ok()).unwrap_or(HTTPS_PORT);
        let host = format!("{name}.{namespace}.svc");
        Link { namespace, service: name, port, host, tls: tls(spec, proxy), idle: Mutex::default() }
    }

    /// Where it is, for messages.
    pub fn place(&self) -> String {
        format!("https://{}:{}", self.host, self.port)
    }

    async fn connect(&self, server: &Server, upgrades: bool) -> Result<Sender, String> {
        let tls = self.tls.as_ref().map_err(Clone::clone)?;
        let connecting = async {
            let wire = node::dial_service(server, &self.namespace, &self.service, self.port).await;
            let wire = wire.map_err(|status| status.message().to_owned())?;
            let wire = node::secure(tls, wire, &self.host).await.map_err(|status| status.message().to_owned())?;
            let shaken = hyper::client::conn::http1::handshake(TokioIo::new(wire)).await;
            let (sender, connection) = shaken.map_err(|error| error.to_string())?;
            // Either ends when it is closed, by whoever is first.
            match upgrades {
                true => drop(tokio::spawn(connection.with_upgrades())),
                false => drop(tokio::spawn(connection)),
            }
            Ok(sender)
        };
        let late = |_| format!("no connection within {} s", CONNECT_TIMEOUT.as_secs());
        tokio::time::timeout(CONNECT_TIMEOUT, connecting).await.map_err(late)?
    }

    fn take_idle(&self) -> Option<(Instant, Sender)> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|(since, sender)| since.elapsed() < IDLE_AGE && !sender.is_closed());
        idle.pop()
    }

    fn keep_idle(&self, since: Instant, sender: Sender) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if since.elapsed() < IDLE_AGE && idle.len() < IDLE_MAX {
            idle.push((since, sender));
        }
    }

    /// Sends a request and gives the answer as soon as it begins. One that `upgrades` has a connection of its own.
    ///
    /// # Errors
    /// Why no answer came.
    pub async fn send(
        self: &Arc<Self>,
        server: &Server,
        mut request: Request<Full<Bytes>>,
        upgrades: bool,
    ) -> Result<Response<Incoming>, String> {
        let host = format!("{}:{}", self.host, self.port);
        request.headers_mut().insert(header::HOST, host.parse().map_err(|_| format!("{host:?} is no host"))?);
        while let Some((since, mut sender)) = self.take_idle().filter(|_| !upgrades) {
            match sender.try_send_request(request).await {
                Ok(answer) => {
                    self.use_again(since, sender);
                    return Ok(answer);
                }
                // It was closed meanwhile, and nothing was sent.
                Err(mut error) => match error.take_message() {
                    Some(unsent) => request = unsent,
                    None => return Err(error.into_error().to_string()),
                },
            }
        }
        let mut sender = self.connect(server, upgrades).await?;
        let answer = sender.send_request(request).await.map_err(|error| error.to_string())?;
        if !upgrades {
            self.use_again(Instant::now(), sender);
        }
        Ok(answer)
    }

    /// Keeps a connection once its answer was read.
    fn use_again(self: &Arc<Self>, since: Instant, mut sender: Sender) {
        let link = self.clone();
        tokio::spawn(async move {
            if sender.ready().await.is_ok() {
                link.keep_idle(since, sender);
            }
        });
    }

    /// Asks with a method, a path and the form that is wanted, as `user`; the answer has at most `max_bytes` and is there
    /// within `patience`.
    ///
    /// # Errors
    /// What was asked, and why no answer came.
    pub async fn ask(
        self: &Arc<Self>,
        server: &Server,
        (method, path, accept): (Method, &str, &str),
        user: &User,
        max_bytes: usize,
        patience: Duration,
    ) -> Result<Got, String> {
        let asking = async {
            let request = Request::builder().method(method.clone()).uri(path);
            let request = request.header(header::ACCEPT, accept).header(header::USER_AGENT, "gantry");
            let mut request = request.body(Full::new(Bytes::new())).map_err(|error| error.to_string())?;
            name_user(request.headers_mut(), user)?;
            let (parts, body) = self.send(server, request, false).await?.into_parts();
            let body = Limited::new(body, max_bytes).collect().await.map_err(|error| error.to_string())?;
            Ok(Got { code: parts.status.as_u16(), headers: parts.headers, body: body.to_bytes() })
        };
        let answer = tokio::time::timeout(patience, asking).await;
        let answer = answer.unwrap_or_else(|_| Err(format!("no answer within {} s", patience.as_secs())));
        answer.map_err(|why: String| format!("{method} \"{}{path}\": {why}", self.place()))
    }
}

/// Trusts the authorities that are named, nobody, or everybody, as the `spec` says.
fn tls(spec: &Value, proxy: &FrontProxy) -> Result<Arc<rustls::ClientConfig>, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.map_err(|error| error.to_string())?;
    let config = if spec["insecureSkipTLSVerify"].is_true() {
        config.dangerous().with_custom_certificate_verifier(Arc::new(Unjudged))
    } else {
        let pem = STANDARD.decode(spec["caBundle"].text()).map_err(|error| format!("caBundle: {error}"))?;
        config.with_root_certificates(roots(&pem).map_err(|error| format!("caBundle: {error}"))?)
    };
    Ok(Arc::new(config.with_client_cert_resolver(proxy.certificate.clone())))
}
