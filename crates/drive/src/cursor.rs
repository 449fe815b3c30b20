//! A reader of several resources' histories, in the order of their revisions.

use base::Revision;
use cache::{Compacted, Event, Part, View};
use client::{Interest, Mirror};
use meta::Resource;
use reconcile::EVERYTHING;

/// What a reader of `resources` listens to.
pub fn interest(resources: &[Resource]) -> Interest {
    if resources.contains(&EVERYTHING) {
        return Interest::Everything;
    }
    Interest::Parts(resources.iter().map(|resource| (*resource, Part::All)).collect())
}

pub struct Cursor {
    resources: Vec<Resource>,
    at: Revision,
}

impl Cursor {
    pub fn new(resources: &[Resource], at: Revision) -> Cursor {
        Cursor { resources: resources.to_vec(), at }
    }

    /// What happened since the last pull, ordered, and a view that is at least as new. `None` when history was lost and
    /// the reader must start anew from the view.
    pub fn pull(&mut self, mirror: &Mirror) -> (Option<Vec<(Resource, Event)>>, View) {
        let cache = mirror.read();
        let view = cache.view();
        let part = |resource: &Resource| -> Result<Vec<(Resource, Event)>, Compacted> {
            let events = cache.since(*resource, self.at, usize::MAX)?;
            Ok(events.into_iter().map(|event| (*resource, event)).collect())
        };
        let all = match self.resources.contains(&EVERYTHING) {
            true => cache.all_since(self.at),
            false => self.resources.iter().map(part).collect::<Result<Vec<_>, _>>().map(|parts| parts.concat()),
        };
        drop(cache);
        let Ok(mut all) = all else {
            self.at = view.at();
            return (None, view);
        };
        all.sort_by_key(|(_, event)| event.revision);
        self.at = view.at();
        (Some(all), view)
    }
}
