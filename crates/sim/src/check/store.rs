//! The store: revisions are unique and without holes, what was answered survives every crash, nothing comes back, and
//! nothing is served of files that rotted.

use std::collections::BTreeMap;

use base::Revision;

use super::{Checker, Seen};
use crate::truth::Past;

const SECRETS: &str = "/registry/secrets/";

#[derive(Default)]
pub struct Store {
    last: Revision,
    /// The revision of every key, by our own books.
    books: BTreeMap<String, Revision>,
    begun: bool,
    /// Revisions may be left out after the disk failed in a write.
    excused: bool,
}

fn key(resource: meta::Resource, namespace: &str, name: &str) -> String {
    let slash = if namespace.is_empty() { "" } else { "/" };
    format!("/registry/{resource}/{namespace}{slash}{name}")
}

impl Checker for Store {
    fn name(&self) -> &'static str {
        "store"
    }

    fn see(&mut self, seen: &Seen<'_>, _: &Past<'_>) -> Result<(), String> {
        match seen {
            Seen::Commit { revision, changes, before, .. } => {
                if !std::mem::replace(&mut self.begun, true) {
                    for resource in before.resources() {
                        for object in before.list(resource, "") {
                            let key = key(resource, object.namespace(), object.name());
                            self.books.insert(key, object.revision());
                        }
                    }
                    self.last = before.at();
                }
                if *revision <= self.last {
                    return Err(format!("revision {revision} was given after {}", self.last));
                }
                if *revision != self.last.next() && !std::mem::take(&mut self.excused) {
                    return Err(format!("revision {revision} follows {} with a hole between", self.last));
                }
                self.last = *revision;
                for change in *changes {
                    let Some(object) = change.new.as_ref().or(change.old.as_ref()) else { continue };
                    let key = key(object.resource(), object.namespace(), object.name());
                    match &change.new {
                        Some(_) => self.books.insert(key, *revision),
                        None => self.books.remove(&key),
                    };
                }
                Ok(())
            }
            Seen::DiskFails => {
                self.excused = true;
                Ok(())
            }
            Seen::Recovered { found, acknowledged, stored } => {
                if found < acknowledged {
                    return Err(format!(
                        "revision {acknowledged} was answered, and after a crash there is only {found}"
                    ));
                }
                let kept: BTreeMap<String, Revision> = stored
                    .iter()
                    .map(|(key, revision)| (String::from_utf8_lossy(key).into_owned(), *revision))
                    .filter(|(key, _)| !key.starts_with(SECRETS))
                    .collect();
                if let Some((key, revision)) =
                    self.books.iter().find(|(key, at)| self.begun && kept.get(*key) != Some(at))
                {
                    return Err(format!("{key} was at {revision}, after a crash it is at {:?}", kept.get(key)));
                }
                match kept.keys().find(|key| self.begun && !self.books.contains_key(*key)) {
                    Some(key) => Err(format!("{key} was deleted and came back in a crash")),
                    None => Ok(()),
                }
            }
            Seen::Rotten { place, stored, sound } if stored != sound => {
                Err(format!("{place}: a bit flipped, and the store serves other objects than before"))
            }
            _ => Ok(()),
        }
    }
}
