//! Where the requests of a connection run: what is answered at the first look has no task of its own.
//!
//! A task costs more than reading one object does: its memory, its way to another thread and back, and a write to the socket
//! for each answer, because they end one by one. So every request is polled once where it was read. What waits then, for
//! its body, a seat, the disk, or because it said that it takes longer ([`longer`]), becomes a task; and so does what comes
//! after [`LOOKS_MAX`] others, so that other connections have their turn.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};

use hyper::rt::Executor;

/// Requests that are looked at where they were read in one turn of their connection.
const LOOKS_MAX: usize = 32;

/// Runs the requests of one HTTP/2 connection.
#[derive(Clone, Default)]
pub struct FirstLook(Arc<AtomicUsize>);

impl FirstLook {
    /// Another turn of the connection begins.
    pub fn begin(&self) {
        self.0.store(0, Ordering::Relaxed);
    }
}

impl<F> Executor<F> for FirstLook
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, future: F) {
        let mut future = Box::pin(future);
        if self.0.fetch_add(1, Ordering::Relaxed) >= LOOKS_MAX {
            tokio::spawn(future);
            return;
        }
        // Nothing is missed by waking nobody: a task polls anew whatever is not ready.
        let look = || future.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        // As with a task, a panic ends the request alone; it was told by the hook for panics.
        match catch_unwind(AssertUnwindSafe(look)) {
            Ok(Poll::Pending) => drop(tokio::spawn(future)),
            Ok(Poll::Ready(_)) | Err(_) => {}
        }
    }
}

/// Says that what follows takes longer than other requests of the connection should wait.
pub async fn longer() {
    let mut said = false;
    std::future::poll_fn(move |context| {
        if said {
            return Poll::Ready(());
        }
        said = true;
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_ready_is_done_at_once_and_the_rest_elsewhere() {
        let (looks, (sender, mut done)) = (FirstLook::default(), tokio::sync::mpsc::unbounded_channel());
        for lasts in [true, false] {
            let sender = sender.clone();
            looks.execute(async move {
                if lasts {
                    longer().await;
                }
                sender.send((lasts, tokio::task::try_id().is_some())).unwrap();
            });
        }
        looks.execute(async { panic!("a handler that fails") });
        assert_eq!(done.try_recv().unwrap(), (false, false));
        assert!(done.try_recv().is_err());
        assert_eq!(done.recv().await.unwrap(), (true, true));
    }

    #[tokio::test]
    async fn one_turn_looks_at_so_many() {
        let (looks, (sender, mut done)) = (FirstLook::default(), tokio::sync::mpsc::unbounded_channel());
        for turn in [LOOKS_MAX + 1, 1] {
            looks.begin();
            for _ in 0..turn {
                let sender = sender.clone();
                looks.execute(async move { sender.send(tokio::task::try_id().is_some()).unwrap() });
            }
        }
        let mut elsewhere = Vec::new();
        for _ in 0..LOOKS_MAX + 2 {
            elsewhere.push(done.recv().await.unwrap());
        }
        assert_eq!(elsewhere.iter().filter(|elsewhere| **elsewhere).count(), 1);
        assert!(elsewhere[LOOKS_MAX + 1]);
    }
}
