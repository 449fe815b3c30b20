//! Names: no two pods of one name live at the same time, whatever became of the first one's node.

use std::collections::{BTreeMap, BTreeSet};

use meta::Str;

use super::{Checker, Seen};
use crate::truth::Past;

#[derive(Default)]
pub struct Identity {
    /// By pod name, its uids and what of each runs where.
    running: BTreeMap<Str, BTreeMap<Str, BTreeSet<(Str, Str)>>>,
}

impl Checker for Identity {
    fn name(&self) -> &'static str {
        "identity"
    }

    fn see(&mut self, seen: &Seen<'_>, _: &Past<'_>) -> Result<(), String> {
        let Seen::Container { node, pod, uid, container, runs } = seen else { return Ok(()) };
        let uids = self.running.entry((*pod).into()).or_default();
        let place = (Str::from(*node), Str::from(*container));
        if *runs {
            uids.entry((*uid).into()).or_default().insert(place);
        } else if let Some(places) = uids.get_mut(*uid) {
            places.remove(&place);
        }
        uids.retain(|_, places| !places.is_empty());
        if uids.len() < 2 {
            return Ok(());
        }
        Err(format!("two pods run by the name {pod}: {:?}", uids))
    }
}
