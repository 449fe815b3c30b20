//! Data versions: the cluster's never goes back, goes up only to what all servers know that are there, nothing is written
//! in a form that it does not have yet, and nobody begins, or goes on, on data that it does not know.

use std::collections::BTreeMap;

use base::Revision;
use store::Format;

use super::{Checker, Seen};
use crate::truth::Past;

#[derive(Default)]
pub struct Formats {
    /// From when on the cluster has had which version; none before the first.
    raised: BTreeMap<Revision, Format>,
    /// The servers that are there, and what they know.
    servers: BTreeMap<String, Format>,
}

impl Formats {
    fn at(&self, revision: Revision) -> Format {
        self.raised.range(..=revision).next_back().map_or(Format::FIRST, |(_, format)| *format)
    }

    fn now(&self) -> Format {
        self.raised.values().next_back().copied().unwrap_or(Format::FIRST)
    }

    fn raise(&mut self, value: Option<&[u8]>, revision: Revision) -> Result<(), String> {
        let (before, after) = (self.now(), value.map_or(Format::FIRST, Format::parse));
        if after < before || value.is_none() {
            return Err(format!("r{revision}: the data version went from {before} back to {after}"));
        }
        if after == Format::UNREADABLE {
            return Err(format!("r{revision}: the data version is no number"));
        }
        if let Some((server, knows)) = self.servers.iter().find(|(_, knows)| **knows < after) {
            return Err(format!("r{revision}: the data version is {after} now, though {server} knows {knows} only"));
        }
        self.raised.insert(revision, after);
        Ok(())
    }

    fn server(&mut self, server: &str, value: Option<&[u8]>) -> Result<(), String> {
        let Some(value) = value else {
            self.servers.remove(server);
            return Ok(());
        };
        let (knows, format) = (Format::parse(value), self.now());
        if knows < format {
            return Err(format!("{server} entered, which knows version {knows} only, and the data has {format}"));
        }
        self.servers.insert(server.to_owned(), knows);
        Ok(())
    }
}

impl Checker for Formats {
    fn name(&self) -> &'static str {
        "formats"
    }

    fn see(&mut self, seen: &Seen<'_>, _: &Past<'_>) -> Result<(), String> {
        match seen {
            Seen::Side { key, revision, value, .. } if *key == Format::KEY => self.raise(*value, *revision),
            Seen::Side { key, value, .. } => {
                match std::str::from_utf8(key).ok().and_then(|key| key.strip_prefix(drive::servers::PLACE)) {
                    Some(server) => self.server(server, *value),
                    None => Ok(()),
                }
            }
            Seen::Stored { key, revision, form } => {
                let format = self.at(*revision);
                if *form <= format {
                    return Ok(());
                }
                let key = String::from_utf8_lossy(key);
                Err(format!("r{revision}: {key} was written in the form of version {form}, and the data has {format}"))
            }
            Seen::Served { who, knows, at } => {
                let format = self.at(*at);
                if format <= *knows {
                    return Ok(());
                }
                Err(format!("{who} knows version {knows}, and answers from r{at} of data of version {format}"))
            }
            _ => Ok(()),
        }
    }
}
