//! What is written to a connection while it is polled once goes out together: one record of TLS and one call of the kernel
//! for the answers of many requests, instead of two for each.
//!
//! HTTP writes and flushes each larger body by itself. Here a flush only takes note; whoever polls the connection sends
//! what has gathered when that is done ([`Gathered::send`]). Bodies that are large go straight through.
//!
//! Promises: bytes keep their order; nobody but the poller of a connection is needed for them to be sent; a client that
//! takes nothing holds [`WAITING_MAX_BYTES`] here.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes that wait to be sent; more are not taken.
const WAITING_MAX_BYTES: usize = 32 << 10;
/// Bytes of one write that are worth a record of their own: they are not copied.
const STRAIGHT_BYTES: usize = 8 << 10;
/// Room that an idle connection keeps.
const KEPT_BYTES: usize = 1 << 10;

struct Inner<S> {
    stream: S,
    waiting: Vec<u8>,
    sent: usize,
    /// Nobody sends what has gathered any more: a flush does.
    is_released: bool,
}

impl<S: AsyncWrite + Unpin> Inner<S> {
    /// Gives what has gathered to the stream.
    fn pass(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.waiting.len() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(context, &self.waiting[self.sent..]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.sent += written;
        }
        self.sent = 0;
        self.waiting.clear();
        self.waiting.shrink_to(KEPT_BYTES);
        Poll::Ready(Ok(()))
    }

    fn send(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.pass(context))?;
        Pin::new(&mut self.stream).poll_flush(context)
    }

    /// Takes some of `parts`.
    fn write(&mut self, context: &mut Context<'_>, parts: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let all: usize = parts.iter().map(|part| part.len()).sum();
        if all >= STRAIGHT_BYTES || self.waiting.len() >= WAITING_MAX_BYTES {
            ready!(self.pass(context))?;
        }
        if all >= STRAIGHT_BYTES {
            return Pin::new(&mut self.stream).poll_write_vectored(context, parts);
        }
        for part in parts {
            self.waiting.extend_from_slice(part);
        }
        Poll::Ready(Ok(all))
    }
}

/// The stream of a connection, as HTTP sees it.
pub struct Gathering<S>(Arc<Mutex<Inner<S>>>);

/// The same stream, as the poller of the connection sees it.
pub struct Gathered<S>(Arc<Mutex<Inner<S>>>);

pub fn gather<S>(stream: S) -> (Gathering<S>, Gathered<S>) {
    let inner = Inner { stream, waiting: Vec::new(), sent: 0, is_released: false };
    let inner = Arc::new(Mutex::new(inner));
    (Gathering(inner.clone()), Gathered(inner))
}

fn lock<S>(inner: &Mutex<Inner<S>>) -> MutexGuard<'_, Inner<S>> {
    inner.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<S: AsyncWrite + Unpin> Gathered<S> {
    /// Sends what has gathered.
    pub fn send(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        lock(&self.0).send(context)
    }

    /// Sends it for the last time: whoever has the stream now, as after an upgrade, flushes it himself.
    pub async fn release(self) -> io::Result<()> {
        lock(&self.0).is_released = true;
        std::future::poll_fn(|context| self.send(context)).await
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gathering<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut lock(&self.0).stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gathering<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        lock(&self.0).write(context, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        lock(&self.0).write(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = lock(&self.0);
        if inner.is_released { inner.send(context) } else { Poll::Ready(Ok(())) }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = lock(&self.0);
        ready!(inner.send(context))?;
        Pin::new(&mut inner.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// Counts the writes that come to it, and takes them all.
    #[derive(Default)]
    struct Counting(Vec<Vec<u8>>);

    impl AsyncWrite for Counting {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            self.0.push(bytes.to_vec());
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn what_is_flushed_in_one_turn_is_one_write() {
        let (mut gathering, gathered) = gather(Counting::default());
        for part in ["a", "bc", "d"] {
            gathering.write_all(part.as_bytes()).await.unwrap();
            gathering.flush().await.unwrap();
        }
        assert!(lock(&gathered.0).stream.0.is_empty());
        std::future::poll_fn(|context| gathered.send(context)).await.unwrap();
        gathering.write_all(b"e").await.unwrap();
        // What is large goes by itself, behind what came before it.
        gathering.write_all(&[b'f'; STRAIGHT_BYTES]).await.unwrap();
        let written = std::mem::take(&mut lock(&gathered.0).stream.0);
        assert_eq!(written, [b"abcd".to_vec(), b"e".to_vec(), vec![b'f'; STRAIGHT_BYTES]]);
        gathering.write_all(b"g").await.unwrap();
        gathered.release().await.unwrap();
        gathering.write_all(b"h").await.unwrap();
        gathering.flush().await.unwrap();
        assert_eq!(lock(&gathering.0).stream.0, [b"g", b"h"]);
    }

    #[tokio::test]
    async fn a_client_that_takes_nothing_holds_little() {
        let (ours, mut theirs) = tokio::io::duplex(10);
        let (mut gathering, gathered) = gather(ours);
        let all: Vec<u8> = (0..=255).cycle().take(3 * WAITING_MAX_BYTES).collect();
        let mut taken = 0;
        std::future::poll_fn(|context| {
            while let Poll::Ready(written) = Pin::new(&mut gathering).poll_write(context, &all[taken..taken + 100]) {
                taken += written.unwrap();
            }
            Poll::Ready(())
        })
        .await;
        assert!((WAITING_MAX_BYTES..WAITING_MAX_BYTES + 200).contains(&taken), "{taken}");
        let mut seen = Vec::new();
        let writes = async {
            gathering.write_all(&all[taken..]).await.unwrap();
            gathered.release().await.unwrap();
            gathering.shutdown().await.unwrap();
        };
        let (_, read) = tokio::join!(writes, theirs.read_to_end(&mut seen));
        assert_eq!((read.unwrap(), seen), (all.len(), all));
    }
}
