//! A client of several endpoints: one connection in use, the next endpoint when it fails.
//!
//! Invariants: what may have been carried out is sent again only when it changes nothing; a link on which an answer was
//! lost is never used again.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use prost::Message;

use crate::message::{AuthenticateRequest, AuthenticateResponse};
use crate::rpc::{Endpoint, Failure, Link, code};

/// How long one try may take: an endpoint that is silent for longer counts as lost.
pub const TRY_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a call is tried in all, when it can be tried again.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(8);
/// Between rounds over all endpoints.
const ROUND_PAUSE: Duration = Duration::from_millis(100);

/// Whether a request may be sent twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeat {
    /// It changes nothing, or the same the second time.
    Harmless,
    /// Sent again only when it certainly did nothing.
    Never,
}

pub struct Client {
    endpoints: Vec<Endpoint>,
    tls: Option<Arc<rustls::ClientConfig>>,
    /// Name and password.
    user: Option<(String, String)>,
    /// Where the next connection goes.
    next: AtomicUsize,
    link: Mutex<Option<Arc<Link>>>,
    /// One connects, the others wait for it.
    connecting: tokio::sync::Mutex<()>,
}

impl Client {
    pub fn new(
        endpoints: Vec<Endpoint>,
        tls: Option<Arc<rustls::ClientConfig>>,
        user: Option<(String, String)>,
    ) -> Client {
        let (link, connecting) = (Mutex::new(None), tokio::sync::Mutex::new(()));
        Client { endpoints, tls, user, next: AtomicUsize::new(0), link, connecting }
    }

    /// The same endpoints with a connection of its own, beginning at another one than the last that failed.
    pub fn beside(&self) -> Client {
        let made = Client::new(self.endpoints.clone(), self.tls.clone(), self.user.clone());
        made.next.store(self.next.load(Ordering::Relaxed), Ordering::Relaxed);
        made
    }

    fn current(&self) -> Option<Arc<Link>> {
        let link = self.link.lock().unwrap_or_else(PoisonError::into_inner);
        link.as_ref().filter(|link| link.is_usable()).cloned()
    }

    /// The connection in use, or a new one to the first endpoint that takes it.
    pub async fn link(&self) -> Result<Arc<Link>, String> {
        if let Some(link) = self.current() {
            return Ok(link);
        }
        let _turn = self.connecting.lock().await;
        if let Some(link) = self.current() {
            return Ok(link);
        }
        let mut why = Vec::new();
        for _ in 0..self.endpoints.len() {
            let at = self.next.load(Ordering::Relaxed) % self.endpoints.len();
            match self.open(&self.endpoints[at]).await {
                Ok(link) => {
                    let link = Arc::new(link);
                    *self.link.lock().unwrap_or_else(PoisonError::into_inner) = Some(link.clone());
                    return Ok(link);
                }
                Err(error) => {
                    why.push(error);
                    self.next.store(at + 1, Ordering::Relaxed);
                }
            }
        }
        Err(why.join("; "))
    }

    async fn open(&self, endpoint: &Endpoint) -> Result<Link, String> {
        let link = Link::open(endpoint, self.tls.as_ref(), None).await?;
        let Some((name, password)) = &self.user else { return Ok(link) };
        let request = AuthenticateRequest { name: name.clone(), password: password.clone() };
        let answer = link.call::<_, AuthenticateResponse>("/etcdserverpb.Auth/Authenticate", &request, TRY_TIMEOUT);
        let answer = answer.await.map_err(|failure| format!("{endpoint}: log in as {name}: {failure}"))?;
        Link::open(endpoint, self.tls.as_ref(), Some(answer.token)).await
    }

    /// Uses `link` no more and goes on with the next endpoint.
    pub fn give_up(&self, link: &Link) {
        if link.is_usable() {
            self.next.fetch_add(1, Ordering::Relaxed);
        }
        link.give_up();
    }

    /// One message there, one back, by whichever endpoint answers.
    pub async fn call<A: Message, B: Message + Default>(
        &self,
        path: &str,
        message: &A,
        repeat: Repeat,
    ) -> Result<B, Failure> {
        let until = Instant::now() + CALL_TIMEOUT;
        loop {
            let failure = match self.link().await {
                Err(why) => Failure::NotSent(why),
                Ok(link) => match link.call(path, message, TRY_TIMEOUT).await {
                    Ok(answer) => return Ok(answer),
                    Err(failure) => {
                        if !matches!(&failure, Failure::Said { code, .. } if !is_endpoints(*code)) {
                            self.give_up(&link);
                        }
                        failure
                    }
                },
            };
            let again = match &failure {
                Failure::NotSent(_) => true,
                Failure::Lost(_) => repeat == Repeat::Harmless,
                // The member sees no leader, or does not know our login any more: refused before anything was done.
                Failure::Said { code: code::UNAVAILABLE, message } if message.contains("no leader") => true,
                Failure::Said { code: code::UNAUTHENTICATED, message } if message.contains("invalid auth token") => {
                    true
                }
                Failure::Said { code: code::UNAVAILABLE, .. } => repeat == Repeat::Harmless,
                Failure::Said { .. } => false,
            };
            if !again || Instant::now() >= until {
                return Err(failure);
            }
            tokio::time::sleep(ROUND_PAUSE / 4).await;
        }
    }
}

/// Whether a code says something about the endpoint rather than about the request.
fn is_endpoints(of: u32) -> bool {
    matches!(of, code::UNAVAILABLE | code::UNAUTHENTICATED)
}
