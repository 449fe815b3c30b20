//! How the node stands with those who count it among the living, and what follows for a pod that is not to run where it
//! cannot be asked ([`Leash`]). Times are milliseconds of a clock that nobody sets.
//!
//! Others may take such a pod for gone once its time has passed, however late they write that down. So it never runs again
//! by this uid: not when an agent goes on that stood still, not when a new one begins.

use api::core::leash::Leash;
use meta::Value;

/// When the node last renewed its lease, counted from when it began to: whoever heard of it heard later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    pub since_ms: u64,
    /// `false` until this agent has renewed the lease: it does not know what an earlier one did.
    pub renewed: bool,
}

impl Standing {
    /// That of an agent that begins.
    pub fn unknown(now_ms: u64) -> Standing {
        Standing { since_ms: now_ms, renewed: false }
    }

    pub fn renewed(began_ms: u64) -> Standing {
        Standing { since_ms: began_ms, renewed: true }
    }

    /// Until when the sandbox of a pod may run that is begun now; nothing for one without a leash.
    ///
    /// # Errors
    /// As for [`Standing::holds_until_ms`].
    pub fn holds(&self, pod: &Value) -> Result<Option<u64>, String> {
        Leash::of(pod).map(|leash| self.holds_until_ms(&leash)).transpose()
    }

    /// Until when the pod's sandbox may run.
    ///
    /// # Errors
    /// Nobody can say yet; a sentence about it.
    pub fn holds_until_ms(&self, leash: &Leash) -> Result<u64, String> {
        match self.renewed {
            true => Ok(self.since_ms.saturating_add(leash.end_ms())),
            false => Err("the node has not renewed its lease yet, which the pod asks for".to_owned()),
        }
    }

    /// When the node begins to end the pod, if it does not renew its lease before.
    pub fn ends_ms(&self, leash: &Leash) -> u64 {
        self.since_ms.saturating_add(leash.stop_ms)
    }
}
