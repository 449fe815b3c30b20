//! What lasts: watches, and streams to nodes. They hold no seat, so each user has so many places for them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use meta::{Reason, Status, Str};

/// Watches at once, of all users and of one. A server of 5,000 nodes has about 20,000.
pub const WATCHES_MAX: usize = 100_000;
pub const WATCHES_OF_USER_MAX: usize = 30_000;
/// Streams to nodes at once (logs that are followed, exec, attach, forwarded ports, proxies): each has two connections.
pub const STREAMS_MAX: usize = 4_000;
pub const STREAMS_OF_USER_MAX: usize = 1_000;
/// Requests at once that aggregated servers answer, until their answers were sent.
pub const PASSED_MAX: usize = 4_000;
pub const PASSED_OF_USER_MAX: usize = 1_000;
/// What is told to those who come too often.
const RETRY_SECONDS: u32 = 5;

/// Places of one sort.
pub struct Places {
    /// Of what, in the words of a refusal.
    what: &'static str,
    all_max: usize,
    user_max: usize,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    all: usize,
    of_users: BTreeMap<Str, usize>,
}

/// A place that is taken; free again when this is dropped.
pub struct Place {
    places: Arc<Places>,
    user: Str,
}

impl Places {
    pub fn new(what: &'static str, all_max: usize, user_max: usize) -> Arc<Places> {
        Arc::new(Places { what, all_max, user_max, taken: Mutex::default() })
    }

    /// # Errors
    /// 429 when the user, or all together, have as many as there may be.
    pub fn take(self: &Arc<Self>, user: &Str) -> Result<Place, Status> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let own = taken.of_users.get(user).copied().unwrap_or(0);
        let refused = |limit: usize, whose: &str| {
            let why = format!("too many {} at once: {limit} {whose}, please try again later", self.what);
            Err(Status::new(Reason::TooManyRequests, why).retry_after(RETRY_SECONDS))
        };
        if own >= self.user_max {
            return refused(self.user_max, "of one user");
        }
        if taken.all >= self.all_max {
            return refused(self.all_max, "in all");
        }
        taken.all += 1;
        taken.of_users.insert(user.clone(), own + 1);
        drop(taken);
        Ok(Place { places: self.clone(), user: user.clone() })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.all = taken.all.saturating_sub(1);
        match taken.of_users.get_mut(&self.user) {
            Some(own) if *own > 1 => *own -= 1,
            _ => drop(taken.of_users.remove(&self.user)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_have_their_places_and_give_them_back() {
        let places = Places::new("watches", 3, 2);
        let (jane, joe) = (Str::from("jane"), Str::from("joe"));
        let first = [places.take(&jane).unwrap(), places.take(&jane).unwrap()];
        let refused = places.take(&jane).err().unwrap();
        assert_eq!((refused.code(), refused.0.retry_after_seconds), (429, 5));
        assert!(refused.message().contains("too many watches at once: 2 of one user"), "{}", refused.message());
        let third = places.take(&joe).unwrap();
        assert!(places.take(&joe).err().unwrap().message().contains("3 in all"));
        drop(first);
        places.take(&jane).unwrap();
        drop(third);
        let taken = places.taken.lock().unwrap();
        assert_eq!((taken.all, taken.of_users.len()), (0, 0));
    }
}
