//! A reader of several resources' histories, in the order of their revisions.

use base::Revision;
use cache::{Compacted, Event, Part, View};
use client::{Interest, Mirror};
use meta::Resource;
use reconcile::EVERYTHING;

/// What a reader of `resources` listens to.
pub fn interest(resources: &[Resource]) -> Interest {
    interest_in(resources, &[])
}

/// What a reader listens to who reads all of `resources`, and of `lives` what comes and goes.
pub fn interest_in(resources: &[Resource], lives: &[Resource]) -> Interest {
    let all = resources.iter().map(|resource| (*resource, Part::All));
    if lives.contains(&EVERYTHING) {
        return Interest::LivesAnd(all.collect());
    }
    Interest::Parts(all.chain(lives.iter().map(|resource| (*resource, Part::Lives))).collect())
}

pub struct Cursor {
    resources: Vec<Resource>,
    /// Of these only what comes and goes.
    lives: Vec<Resource>,
    at: Revision,
}

impl Cursor {
    pub fn new(resources: &[Resource], lives: &[Resource], at: Revision) -> Cursor {
        Cursor { resources: resources.to_vec(), lives: lives.to_vec(), at }
    }

    /// What happened since the last pull, ordered, and a view that is at least as new. `None` when history was lost and
    /// the reader must start anew from the view.
    pub fn pull(&mut self, mirror: &Mirror) -> (Option<Vec<(Resource, Event)>>, View) {
        let cache = mirror.read();
        let view = cache.view();
        let mut all: Vec<(Resource, Event)> = Vec::new();
        let mut read = || -> Result<(), Compacted> {
            for resource in &self.resources {
                all.extend(cache.since(*resource, self.at, usize::MAX)?.into_iter().map(|event| (*resource, event)));
            }
            for resource in &self.lives {
                if *resource == EVERYTHING {
                    let lives = cache.all_lives_since(self.at)?;
                    all.extend(lives.into_iter().filter(|(resource, _)| !self.resources.contains(resource)));
                    continue;
                }
                let lives = cache.since_in(*resource, &Part::Lives, self.at, usize::MAX)?;
                all.extend(lives.into_iter().map(|event| (*resource, event)));
            }
            Ok(())
        };
        let whole = read().is_ok();
        drop(cache);
        self.at = view.at();
        all.sort_by_key(|(_, event)| event.revision);
        (whole.then_some(all), view)
    }
}
