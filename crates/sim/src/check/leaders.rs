//! The lead: at most one leader's writes take effect, nobody takes the lead from a leader that shows itself, a new leader
//! decides on all that its predecessors wrote, and while a server can lead there is one that does.

use std::collections::{BTreeMap, BTreeSet};

use base::{Revision, Time};
use drive::leader::{BEAT_KEY, LEADER, PATIENCE_MS};

use super::{Checker, Seen};
use crate::truth::Past;

/// While some server can lead, a leader shows itself at least this often.
pub const TAKEOVER_MS: u64 = 3_000;

/// How a server, or the store, stands.
#[derive(Default)]
struct Standing {
    runs: bool,
    /// Why it can do nothing now.
    halts: BTreeSet<&'static str>,
    /// Since when it stands so, undisturbed.
    since: Time,
}

impl Standing {
    fn is_able(&self) -> bool {
        self.runs && self.halts.is_empty()
    }
}

#[derive(Default)]
pub struct Leaders {
    standings: BTreeMap<String, Standing>,
    /// The revision that made the present leader one; zero when none leads.
    epoch: Revision,
    /// When the leader showed itself last, and by which revision.
    shown: Time,
    /// The newest revision of an object that a leader's parts wrote, and in which epoch.
    wrote: (Revision, Revision),
    /// The same of all leaders before that one.
    inherited: Revision,
}

/// What both servers' names and this one stand in one book.
pub const STORE: &str = "the store";

impl Leaders {
    fn standing(&mut self, who: &str, now: Time, change: impl FnOnce(&mut Standing)) {
        let standing = self.standings.entry(who.to_owned()).or_default();
        change(standing);
        standing.since = now;
    }

    /// Since when there was somebody who could have led at every moment.
    fn able_since(&self) -> Option<Time> {
        let store = self.standings.get(STORE).filter(|store| store.is_able())?;
        let servers = self.standings.iter().filter(|(who, server)| *who != STORE && server.is_able());
        servers.map(|(_, server)| server.since.max(store.since)).min()
    }

    fn is_led(&self, now: Time) -> Result<(), String> {
        let Some(since) = self.able_since() else { return Ok(()) };
        let silent_ms = now.ms_since(since.max(self.shown));
        if silent_ms <= TAKEOVER_MS {
            return Ok(());
        }
        Err(format!("nobody has led for {silent_ms} ms, though a server could have"))
    }

    fn key(&mut self, key: &[u8], revision: Revision, present: bool, now: Time) -> Result<(), String> {
        if key == BEAT_KEY {
            self.shown = now;
        }
        if key != LEADER {
            return Ok(());
        }
        let (before, silent_ms) = (self.epoch, now.ms_since(self.shown));
        self.epoch = if present { revision } else { Revision::ZERO };
        if present && before != Revision::ZERO && silent_ms < PATIENCE_MS {
            return Err(format!("the lead was taken {silent_ms} ms after the leader of r{before} showed itself"));
        }
        Ok(())
    }
}

impl Checker for Leaders {
    fn name(&self) -> &'static str {
        "leaders"
    }

    fn see(&mut self, seen: &Seen<'_>, past: &Past<'_>) -> Result<(), String> {
        self.is_led(past.now)?;
        match seen {
            Seen::Runs { who, runs } => {
                self.standing(who, past.now, |standing| standing.runs = *runs);
                Ok(())
            }
            Seen::Halted { who, why, halted } => {
                self.standing(who, past.now, |standing| {
                    if *halted {
                        standing.halts.insert(why)
                    } else {
                        standing.halts.remove(why)
                    };
                });
                Ok(())
            }
            Seen::Hindered { who } => {
                self.standing(who, past.now, |_| {});
                Ok(())
            }
            Seen::Side { key, revision, value, .. } => self.key(key, *revision, value.is_some(), past.now),
            Seen::Commit { revision, author, .. } if author.epoch != Revision::ZERO => {
                if author.epoch != self.epoch {
                    return Err(format!(
                        "{author}: it led from r{} on, and wrote r{revision} when r{} led",
                        author.epoch, self.epoch
                    ));
                }
                if self.wrote.1 != author.epoch {
                    self.inherited = self.wrote.0;
                }
                self.wrote = (*revision, author.epoch);
                if author.decided_on != Revision::ZERO && author.decided_on < self.inherited {
                    return Err(format!(
                        "{author}: decided on r{}, which lacks r{} of the leader before",
                        author.decided_on, self.inherited
                    ));
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}
