//! Accepting connections: TLS with optional client certificates, HTTP/1.1 and HTTP/2 on one port.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::Future;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustls::ServerConfig;
use rustls::server::WebPkiClientVerifier;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::Response;
use super::first_look::FirstLook;
use super::gather::{Gathered, gather};
use super::sending::Cut;
use crate::authn::{Peer, user_of_certificate};
use crate::ca::{Current, Identity, roots};
use crate::error::Error;

/// Connections served at once, fewer where the process may not have as many descriptors; more wait in the kernel's queue.
pub const CONNECTIONS_MAX: usize = 15_000;
/// Descriptors that are not for connections: the store, streams to nodes, whatever is opened for a moment.
const FILES_KEPT: usize = 512;
/// One address has at most this part of the connections: whoever opens as many as there are leaves some to others.
const ADDRESS_SHARE: usize = 2;
/// Streams at once on one HTTP/2 connection.
const STREAMS_MAX: u32 = 1_000;
/// Bytes of one request's headers, and with HTTP/1.1 how many there may be.
const HEADERS_MAX_BYTES: u32 = 64 * 1024;
const HEADERS_MAX: usize = 128;
/// Bytes that may come on a stream, and on a connection, before somebody reads them.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 512 << 10;
/// Bytes of an answer that wait on a stream for their reader.
const UNREAD_MAX_BYTES: usize = 128 << 10;
/// Bytes of one frame: it is read as a whole.
const FRAME_MAX_BYTES: u32 = 64 << 10;
/// Streams that a client resets before they were looked at, and that we reset for its mistakes; then it is sent away.
const RESET_MAX: usize = 32;
const MISTAKES_MAX: usize = 256;
/// Between tries to accept when there are no descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How often it is looked whether a client is gone.
const LOOK_EVERY: Duration = Duration::from_secs(20);
/// How often it is told that connections cannot be accepted.
const TELL_EVERY: Duration = Duration::from_secs(10);
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// How long answers that are under way may take to end when the server stops.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// TLS for a server whose clients may show a certificate of our authority.
pub fn tls(identity: &Identity, ca_pem: &str) -> Result<Arc<ServerConfig>, Error> {
    tls_with(Arc::new(Current::new(identity)?), ca_pem)
}

/// The same, with a certificate that may be replaced.
pub fn tls_with(certificate: Arc<Current>, ca_pem: &str) -> Result<Arc<ServerConfig>, Error> {
    let bad = |error: &dyn std::fmt::Display| Error::Tls { why: error.to_string() };
    let roots = Arc::new(roots(ca_pem.as_bytes())?);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider.clone())
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

/// How many connections there may be at once.
fn connections_max() -> usize {
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let files = files.and_then(|files| usize::try_from(files).ok()).unwrap_or(usize::MAX);
    CONNECTIONS_MAX.min(files.saturating_sub(FILES_KEPT).max(files / 2))
}

/// Who is connected, by address.
#[derive(Default)]
struct Connected(Mutex<BTreeMap<IpAddr, usize>>);

/// One connection of an address; gone when this is dropped.
struct Of(Arc<Connected>, IpAddr);

impl Connected {
    /// `None` when the address has as many as one may have.
    fn enter(self: &Arc<Self>, address: IpAddr, max: usize) -> Option<Of> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = all.entry(address).or_default();
        if *count >= max {
            return None;
        }
        *count += 1;
        drop(all);
        Some(Of(self.clone(), address))
    }
}

impl Drop for Of {
    fn drop(&mut self) {
        let mut all = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        match all.get_mut(&self.1) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(all.remove(&self.1)),
        }
    }
}

/// Serves until `stop` resolves. Open connections are then told that nothing more is taken (GOAWAY, or the end of a
/// connection between two requests) and get [`LAST_WORDS`] to finish what is under way; watches end by themselves when
/// their storage is closed ([`crate::storage::Storage::close`]).
pub async fn run<H, F>(listener: TcpListener, tls: Arc<ServerConfig>, handler: H, stop: impl Future<Output = ()>)
where
    H: Fn(http::Request<Incoming>, Arc<Peer>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response> + Send + 'static,
{
    let acceptor = TlsAcceptor::from(tls);
    let all_max = connections_max();
    let places = Arc::new(tokio::sync::Semaphore::new(all_max));
    let connected = Arc::new(Connected::default());
    let mut told: Option<Instant> = None;
    let mut stop = std::pin::pin!(stop);
    let (closing, _) = tokio::sync::watch::channel(false);
    loop {
        let place = tokio::select! {
            () = &mut stop => break,
            place = places.clone().acquire_owned() => place,
        };
        let Ok(place) = place else { return };
        let (socket, address) = tokio::select! {
            () = &mut stop => break,
            accepted = listener.accept() => match accepted {
                Ok((socket, from)) => (socket, from.ip()),
                Err(error) => {
                    if told.is_none_or(|told| told.elapsed() >= TELL_EVERY) {
                        tracing::warn!("cannot accept a connection: {error}");
                        told = Some(Instant::now());
                    }
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            },
        };
        // One too many is closed at once; a client takes that as a server that has no time for it.
        let Some(of) = connected.enter(address, all_max / ADDRESS_SHARE) else { continue };
        let (acceptor, handler, mut closing) = (acceptor.clone(), handler.clone(), closing.subscribe());
        tokio::spawn(async move {
            let _held = (place, of);
            // Small answers go at once; the kernel must not wait for more.
            let _ = socket.set_nodelay(true);
            let gone = gone(socket.as_raw_fd(), LOOK_EVERY);
            let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(socket)).await else { return };
            let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
            let certified = certificate.and_then(|der| user_of_certificate(der));
            // Whoever listens may be gone before it has told anybody to close: then the connection lasts as long as it does.
            let closing = async move {
                if closing.wait_for(|closing| *closing).await.is_err() {
                    std::future::pending::<()>().await;
                }
            };
            let peer = Arc::new(Peer { address, certified, cut: Cut::default() });
            connection(stream, peer, handler, gone, closing).await;
        });
    }
    // Whoever comes now is refused, and looks for another server.
    drop(listener);
    closing.send_replace(true);
    let all = u32::try_from(all_max).unwrap_or(u32::MAX);
    if tokio::time::timeout(LAST_WORDS, places.acquire_many(all)).await.is_err() {
        tracing::debug!("connections are cut that had not ended {} s after they were told to", LAST_WORDS.as_secs());
    }
}

/// Resolves some time after the client of a socket has closed it. Whoever sends something behind a request and goes would
/// not be missed otherwise: nothing more is read while an answer lasts, and an idle watch is an answer that lasts long.
async fn gone(socket: RawFd, look_every: Duration) {
    loop {
        tokio::time::sleep(look_every).await;
        // SAFETY: the socket is open: the connection that owns it is served beside this, and ends with this.
        #[allow(unsafe_code)]
        let socket = unsafe { BorrowedFd::borrow_raw(socket) };
        let mut asked = [PollFd::from_borrowed_fd(socket, PollFlags::RDHUP)];
        let closed = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
        if rustix::event::poll(&mut asked, Some(&Timespec::default())).is_ok() && asked[0].revents().intersects(closed)
        {
            return;
        }
    }
}

/// Polls `served` after whatever else is ready by then, while several requests of the connection are `running`: answers that
/// are made meanwhile go with one write to the socket, which costs more than many an answer. Then sends what has `gathered`.
async fn after_others<F: Future, S: AsyncWrite + Unpin>(
    mut served: std::pin::Pin<&mut F>,
    running: &AtomicUsize,
    looks: &FirstLook,
    gathered: &Gathered<S>,
) -> F::Output {
    let mut waited = false;
    std::future::poll_fn(move |context| {
        waited = !waited && running.load(Ordering::Relaxed) > 1;
        if waited {
            context.waker().wake_by_ref();
            return std::task::Poll::Pending;
        }
        looks.begin();
        let ended = served.as_mut().poll(context);
        // A socket that fails does so for whoever reads from it, too.
        let _ = gathered.send(context);
        ended
    })
    .await
}

/// One of the requests that run; none any more when this is dropped.
struct Runs(Arc<AtomicUsize>);

impl Runs {
    fn begin(running: &Arc<AtomicUsize>) -> Runs {
        running.fetch_add(1, Ordering::Relaxed);
        Runs(running.clone())
    }
}

impl Drop for Runs {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Serves one connection, of `peer`, to its end, or until its client is `gone`. Once `closing` resolves it
/// takes no further request and ends with the last answer.
pub async fn connection<S, H, F>(
    stream: S,
    peer: Arc<Peer>,
    handler: H,
    gone: impl Future<Output = ()> + Send,
    closing: impl Future<Output = ()> + Send,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    H: Fn(http::Request<Incoming>, Arc<Peer>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response> + Send + 'static,
{
    let cut = peer.cut.clone();
    let running = Arc::new(AtomicUsize::new(0));
    let service = service_fn({
        let running = running.clone();
        move |request: http::Request<Incoming>| {
            // In a box: what handles requests moves an answer to come several times, until it has a task of its own.
            let (runs, answer) = (Runs::begin(&running), Box::pin(handler(request, peer.clone())));
            async move {
                let _runs = runs;
                Ok::<_, Infallible>(answer.await)
            }
        }
    });
    let looks = FirstLook::default();
    let mut server = auto::Builder::new(looks.clone());
    server
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(HEADERS_MAX_BYTES as usize)
        .max_headers(HEADERS_MAX);
    server
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEADERS_MAX_BYTES)
        .max_pending_accept_reset_streams(RESET_MAX)
        .max_local_error_reset_streams(MISTAKES_MAX)
        .max_send_buf_size(UNREAD_MAX_BYTES)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME_MAX_BYTES)
        .keep_alive_interval(Some(Duration::from_secs(30)));
    let (stream, gathered) = gather(stream);
    let mut served = std::pin::pin!(server.serve_connection_with_upgrades(TokioIo::new(stream), service));
    let (mut gone, mut closing, mut closes) = (std::pin::pin!(gone), std::pin::pin!(closing), false);
    loop {
        let serves = after_others(served.as_mut(), &running, &looks, &gathered);
        tokio::select! {
            ended = serves => {
                if let Err(error) = ended {
                    tracing::debug!("a connection ended: {error}");
                }
                break;
            }
            () = &mut closing, if !closes => {
                closes = true;
                served.as_mut().graceful_shutdown();
            }
            () = cut.asked() => return,
            () = &mut gone => return,
        }
    }
    // After an upgrade the connection goes on elsewhere, once its client knows of it. Who takes nothing any more is left.
    let _ = tokio::time::timeout(LAST_WORDS, gathered.release()).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_client_that_went_is_missed_though_it_left_something_unread() {
        use tokio::io::AsyncWriteExt;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (socket, _) = listener.accept().await.unwrap();
        client.write_all(b"more").await.unwrap();
        let mut missed = std::pin::pin!(gone(socket.as_raw_fd(), Duration::from_millis(2)));
        assert!(tokio::time::timeout(Duration::from_millis(50), &mut missed).await.is_err());
        drop(client);
        missed.await;
    }

    #[test]
    fn one_address_leaves_connections_to_others() {
        let connected = Arc::new(Connected::default());
        let (one, other) = (IpAddr::from([127, 0, 0, 1]), IpAddr::from([127, 0, 0, 2]));
        let held = [connected.enter(one, 2), connected.enter(one, 2)];
        assert!(held.iter().all(Option::is_some) && connected.enter(one, 2).is_none());
        assert!(connected.enter(other, 2).is_some());
        drop(held);
        assert!(connected.enter(one, 2).is_some());
        assert!(connected.0.lock().unwrap().is_empty());
        assert!(connections_max() > 0 && connections_max() <= CONNECTIONS_MAX);
    }
}
