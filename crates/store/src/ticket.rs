//! Answers that come later: a callback on one side, a future on the other. No runtime needed.

use crate::types::Error;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

/// Called once with the outcome, on the store's thread: it must be quick and must not wait for the store.
pub type Done<T> = Box<dyn FnOnce(Result<T, Error>) + Send>;

/// The outcome of an operation: `.await` it, or [`Ticket::wait`] for it. If the store goes away, it is [`Error::Closed`].
pub struct Ticket<T>(Arc<Shared<T>>);

struct Shared<T> {
    state: Mutex<State<T>>,
    arrived: Condvar,
}

struct State<T> {
    outcome: Option<Result<T, Error>>,
    waker: Option<Waker>,
}

struct Promise<T>(Option<Arc<Shared<T>>>);

impl<T> Promise<T> {
    fn fulfil(&mut self, outcome: Result<T, Error>) {
        if let Some(shared) = self.0.take() {
            let mut state = shared.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.outcome = Some(outcome);
            let waker = state.waker.take();
            drop(state);
            shared.arrived.notify_all();
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }
}

impl<T> Drop for Promise<T> {
    fn drop(&mut self) {
        self.fulfil(Err(Error::Closed));
    }
}

impl<T: Send + 'static> Ticket<T> {
    /// A callback and the ticket that it fulfils.
    pub fn new() -> (Done<T>, Ticket<T>) {
        let state = Mutex::new(State { outcome: None, waker: None });
        let shared = Arc::new(Shared { state, arrived: Condvar::new() });
        let mut promise = Promise(Some(shared.clone()));
        (Box::new(move |outcome| promise.fulfil(outcome)), Ticket(shared))
    }

    /// A ticket whose outcome is known already.
    pub fn ready(outcome: Result<T, Error>) -> Ticket<T> {
        let state = Mutex::new(State { outcome: Some(outcome), waker: None });
        Ticket(Arc::new(Shared { state, arrived: Condvar::new() }))
    }

    /// Blocks the thread until the outcome is there.
    ///
    /// # Errors
    /// Whatever the operation failed with.
    pub fn wait(self) -> Result<T, Error> {
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match state.outcome.take() {
                Some(outcome) => return outcome,
                None => state = self.0.arrived.wait(state).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }
}

impl<T> Future for Ticket<T> {
    type Output = Result<T, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        match state.outcome.take() {
            Some(outcome) => Poll::Ready(outcome),
            None => {
                state.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_arrive_and_lost_promises_say_closed() {
        let (done, ticket) = Ticket::new();
        let waiter = std::thread::spawn(move || ticket.wait());
        done(Ok(7));
        assert_eq!(waiter.join().unwrap(), Ok(7));
        let (done, ticket) = Ticket::<u8>::new();
        drop(done);
        assert_eq!(ticket.wait(), Err(Error::Closed));
    }
}
