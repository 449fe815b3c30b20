//! Leases: no key goes with its lease before the lease's time to live has passed since it was granted or last renewed.

use std::collections::BTreeMap;

use base::Time;
use store::LeaseId;

use super::{Checker, Seen};
use crate::truth::Past;

#[derive(Default)]
pub struct Leases {
    /// Until when each lease lives at least.
    until: BTreeMap<LeaseId, Time>,
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
