//! Histories: what clients asked and heard is what one store can have said that does one thing after the other; what
//! watches brought is ordered, complete and brought once.

use std::collections::BTreeMap;

use base::Revision;
use cache::{Change, View};
use history::{Began, Heard, Judge, Watched};
use meta::{Object, Resource};

use super::{Checker, Seen};
use crate::link::key_of;
use crate::truth::Past;

const SECRETS: Resource = Resource("secrets");

#[derive(Default)]
pub struct History {
    judge: Judge,
    /// Calls under way.
    open: BTreeMap<u64, Began>,
    /// From here on every change is known.
    since: Option<Revision>,
}

fn key(object: &Object) -> String {
    key_of(object.resource(), object.namespace(), object.name())
}

impl History {
    fn begin(&mut self, before: &View) -> Result<(), String> {
        for object in before.resources().flat_map(|resource| before.list(resource, "")) {
            self.judge.version(&key(object), object.revision(), true).map_err(|broken| broken.to_string())?;
        }
        self.since = Some(before.at());
        Ok(())
    }

    fn heard(
        &self,
        of: &[Resource],
        since: Revision,
        changes: &BTreeMap<Revision, Vec<Change>>,
        to: Revision,
    ) -> Result<(), String> {
        if self.since.is_none_or(|known| since < known) {
            return Ok(());
        }
        let mut heard = Vec::new();
        for (revision, changes) in changes {
            for change in changes {
                let Some(object) = change.new.as_ref().or(change.old.as_ref()) else { continue };
                if object.resource() != SECRETS {
                    let (key, present) = (key(object), change.new.is_some());
                    heard.push(Heard::Change { key, revision: *revision, present });
                }
            }
        }
        heard.push(Heard::Mark(to));
        let prefixes = of.iter().map(|resource| format!("{resource}/")).collect();
        let watched = Watched { prefixes, since, heard };
        self.judge.watched(&watched, true).map_err(|broken| broken.to_string())
    }
}

impl Checker for History {
    fn name(&self) -> &'static str {
        "history"
    }

    fn see(&mut self, seen: &Seen<'_>, _: &Past<'_>) -> Result<(), String> {
        match seen {
            Seen::Commit { revision, changes, before, .. } => {
                if self.since.is_none() {
                    self.begin(before)?;
                }
                for change in *changes {
                    let Some(object) = change.new.as_ref().or(change.old.as_ref()) else { continue };
                    let version = self.judge.version(&key(object), *revision, change.new.is_some());
                    version.map_err(|broken| broken.to_string())?;
                }
                Ok(())
            }
            Seen::Asked { call } => {
                self.open.insert(*call, self.judge.begin());
                Ok(())
            }
            Seen::Answered { call, client, key, outcome } => {
                let began = self.open.remove(call).unwrap_or_default();
                self.judge.end(key, began, *outcome).map_err(|broken| format!("{client}: {broken}"))
            }
            Seen::Heard { client, of, since, changes, to } => {
                self.heard(of, *since, changes, *to).map_err(|broken| format!("{client}: {broken}"))
            }
            _ => Ok(()),
        }
    }
}
