//! Leases: no key goes with its lease before the lease's time to live has passed since it was granted or last renewed, and
//! none stays for long after that.

use std::collections::BTreeMap;

use base::Time;
use store::LeaseId;

use super::{Checker, Seen};
use crate::truth::Past;

/// A store that began anew gives every lease its time once more, and has nothing to do but to let it go then.
const LATE_MS: u64 = 30_000;

#[derive(Default)]
pub struct Leases {
    /// Until when each lease lives at least.
    until: BTreeMap<LeaseId, Time>,
    /// The lease of each key that has one.
    keys: BTreeMap<Vec<u8>, LeaseId>,
}

impl Leases {
    /// At rest no key is there whose lease ended long ago.
    fn none_stays(&self, now: Time) -> Result<(), String> {
        let over_ms = |lease: &LeaseId| self.until.get(lease).map_or(0, |until| now.ms_since(*until));
        match self.keys.iter().find(|(_, lease)| over_ms(lease) > LATE_MS) {
            Some((key, lease)) => {
                let (key, late_ms) = (String::from_utf8_lossy(key), over_ms(lease));
                Err(format!("{key} is there {late_ms} ms after its lease {} ended", lease.0))
            }
            None => Ok(()),
        }
    }
}

impl Checker for Leases {
    fn name(&self) -> &'static str {
        "leases"
    }

    fn see(&mut self, seen: &Seen<'_>, past: &Past<'_>) -> Result<(), String> {
        match seen {
            Seen::Leased { lease, until } => {
                let known = self.until.entry(*lease).or_insert(*until);
                *known = (*known).max(*until);
                Ok(())
            }
            Seen::Side { key, lease, .. } => {
                match lease {
                    Some(lease) => self.keys.insert(key.to_vec(), *lease),
                    None => self.keys.remove(*key),
                };
                Ok(())
            }
            Seen::Quiet { .. } => self.none_stays(past.now),
            Seen::Expired { lease, key } => match self.until.get(lease) {
                Some(until) if *until > past.now => {
                    let early_ms = until.ms_since(past.now);
                    Err(format!(
                        "{} went {early_ms} ms before its lease {} ends",
                        String::from_utf8_lossy(key),
                        lease.0
                    ))
                }
                _ => Ok(()),
            },
            _ => Ok(()),
        }
    }
}
