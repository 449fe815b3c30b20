//! Probes: when to ask again, and what answers in a row mean.

use base::Time;
use meta::{Str, Value};

use super::ProbeKind;

/// One probe's history for one container id.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ProbeState {
    /// The container that the answers are about; another one begins anew.
    pub id: Str,
    pub successes: u32,
    pub failures: u32,
    /// Crossed its threshold, one way or the other; `None` until then.
    pub verdict: Option<bool>,
    pub next: Time,
    pub message: String,
}

impl ProbeKind {
    pub fn key(self) -> &'static str {
        match self {
            ProbeKind::Startup => "startupProbe",
            ProbeKind::Liveness => "livenessProbe",
            ProbeKind::Readiness => "readinessProbe",
        }
    }

    pub const ALL: [ProbeKind; 3] = [ProbeKind::Startup, ProbeKind::Liveness, ProbeKind::Readiness];
}

fn count(probe: &Value, key: &str, otherwise: u32) -> u32 {
    probe[key].as_int().and_then(|count| u32::try_from(count).ok()).filter(|count| *count > 0).unwrap_or(otherwise)
}

pub fn period_ms(probe: &Value) -> u64 {
    u64::from(count(probe, "periodSeconds", 10)) * 1000
}

pub fn timeout_ms(probe: &Value) -> u64 {
    u64::from(count(probe, "timeoutSeconds", 1)) * 1000
}

impl ProbeState {
    /// The first question comes after the initial delay.
    pub fn new(id: &str, probe: &Value, started: Time) -> ProbeState {
        let delay = probe["initialDelaySeconds"].as_int().and_then(|delay| u64::try_from(delay).ok()).unwrap_or(0);
        ProbeState { id: id.into(), next: started.plus_ms(delay * 1000), ..ProbeState::default() }
    }

    /// Takes an answer.
    pub fn answer(&mut self, probe: &Value, good: bool, message: String, now: Time) {
        self.next = now.plus_ms(period_ms(probe));
        self.message = message;
        if good {
            (self.successes, self.failures) = (self.successes.saturating_add(1), 0);
            if self.successes >= count(probe, "successThreshold", 1) {
                self.verdict = Some(true);
            }
        } else {
            (self.successes, self.failures) = (0, self.failures.saturating_add(1));
            if self.failures >= count(probe, "failureThreshold", 3) {
                self.verdict = Some(false);
            }
        }
    }
}
