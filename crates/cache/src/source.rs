//! Feeding a cache from several watches at once, each ordered in itself, none ordered with another.
//!
//! A server's cache has one feed in the order of revisions. An agent's has one watch per [`Source`], and what they
//! bring is interleaved: the pods' watch may show revision 10 before the services' watch shows revision 8. So here
//!
//! - every source has its own revision, and an older event of the same source changes nothing;
//! - an object never goes back: a source that lags does not overwrite what another has shown already;
//! - an object goes when no source holds it any more;
//! - the view's revision is a *place in the order of arrival*: at least the greatest revision seen, and one more with
//!   each batch that came late. Every event is filed under a place that no view had before, so a reader whose cursor
//!   is one number loses nothing. The smallest revision of all sources would be exact, but a source in which nothing
//!   happens would hold it back until its next bookmark, a minute later;
//! - what a view shows of one resource is exact: [`View::knows`](crate::View::knows). Whoever waits for a write of his
//!   own waits for that.

use std::collections::BTreeSet;

use base::Revision;
use meta::{Object, Resource, Str};

use crate::{Cache, Change, Key};

/// One ordered feed: a resource, and which part of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Source {
    pub resource: Resource,
    /// Tells the feeds of one resource apart: a namespace, a selector.
    pub part: Str,
}

#[derive(Default)]
pub(crate) struct Feed {
    /// The newest revision that came.
    latest: Revision,
    /// Everything up to here has come. Behind `latest`, because one commit can be several events.
    complete: Revision,
    keys: BTreeSet<Key>,
}

impl Cache {
    /// Makes a source known before anything came from it: until then its resource is known up to nothing.
    pub fn register(&mut self, source: &Source) {
        self.sources.entry(source.clone()).or_default();
        self.note_known(source.resource);
    }

    /// Applies events of one source, in their order, as one batch.
    pub fn apply_from(&mut self, source: &Source, changes: impl IntoIterator<Item = Change>) {
        let mut batch = Vec::new();
        for change in changes {
            let feed = self.sources.entry(source.clone()).or_default();
            if change.revision < feed.latest {
                continue;
            }
            if change.revision > feed.latest {
                (feed.complete, feed.latest) = (feed.latest, change.revision);
            }
            let Some(object) = change.new.as_ref().or(change.old.as_ref()) else { continue };
            let key = Key::of(object.namespace(), object.name());
            if change.new.is_some() {
                feed.keys.insert(key);
            } else {
                feed.keys.remove(&key);
            }
            batch.push(change);
        }
        self.put_batch(source, batch);
    }

    /// Replaces what a source brought so far by what a fresh list showed at `revision`. Differences become events.
    pub fn replace_from(&mut self, source: &Source, revision: Revision, objects: Vec<Object>) {
        let feed = self.sources.entry(source.clone()).or_default();
        // A server that was restored from a copy begins lower; then its word counts.
        (feed.latest, feed.complete) = (revision, revision);
        let keys: BTreeSet<Key> = objects.iter().map(|object| Key::of(object.namespace(), object.name())).collect();
        let gone: Vec<Key> = feed.keys.difference(&keys).cloned().collect();
        feed.keys = keys;
        let mut batch: Vec<Change> =
            objects.into_iter().map(|object| Change { revision, old: None, new: Some(object) }).collect();
        batch.extend(self.gone(source.resource, revision, &gone));
        self.put_batch(source, batch);
    }

    /// Notes that nothing changed in a source up to `revision` (a bookmark).
    pub fn advance_from(&mut self, source: &Source, revision: Revision) {
        let feed = self.sources.entry(source.clone()).or_default();
        feed.latest = feed.latest.max(revision);
        feed.complete = feed.complete.max(revision);
        self.put_batch(source, Vec::new());
    }

    /// Forgets a source with what it alone held.
    pub fn forget(&mut self, source: &Source) {
        let Some(feed) = self.sources.remove(source) else { return };
        let keys: Vec<Key> = feed.keys.into_iter().collect();
        let batch = self.gone(source.resource, feed.latest, &keys);
        self.put_batch(source, batch);
    }

    /// Where a watch of `source` goes on without a gap; zero when there was no list yet. Events can come twice.
    pub fn resume(&self, source: &Source) -> Revision {
        self.sources.get(source).map_or(Revision::ZERO, |feed| feed.complete)
    }

    fn gone(&self, resource: Resource, revision: Revision, keys: &[Key]) -> Vec<Change> {
        let known = keys.iter().filter_map(|key| {
            let (namespace, name) = key.0.split_once('/').unwrap_or(("", &key.0));
            self.view.one(resource, namespace, name)
        });
        known.map(|object| Change { revision, old: Some(object.clone()), new: None }).collect()
    }

    /// Puts what is news into the view, all at one place.
    fn put_batch(&mut self, source: &Source, batch: Vec<Change>) {
        let resource = source.resource;
        let newest = self.sources.get(source).map_or(Revision::ZERO, |feed| feed.latest);
        let news: Vec<Change> = batch.into_iter().filter(|change| self.is_news(resource, change)).collect();
        let at = self.view.at();
        if news.is_empty() {
            self.view.advance(at.max(newest));
        } else {
            self.apply(at.next().max(newest), news);
        }
        self.note_known(resource);
    }

    fn is_news(&self, resource: Resource, change: &Change) -> bool {
        let Some(object) = change.new.as_ref().or(change.old.as_ref()) else { return false };
        let known = self.view.one(resource, object.namespace(), object.name());
        match (&change.new, known) {
            // Another uid is another object, whatever the revisions say.
            (Some(new), Some(known)) => new.revision() > known.revision() || new.uid() != known.uid(),
            (Some(_), None) => true,
            (None, _) => {
                let key = Key::of(object.namespace(), object.name());
                let mut feeds = self.sources.iter().filter(|(source, _)| source.resource == resource);
                !feeds.any(|(_, feed)| feed.keys.contains(&key))
            }
        }
    }

    fn note_known(&mut self, resource: Resource) {
        let feeds = self.sources.iter().filter(|(source, _)| source.resource == resource);
        let known = feeds.map(|(_, feed)| feed.latest).min();
        self.view.note_known(resource, known);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::Rng;
    use meta::{Facts, json};

    const PODS: Resource = Resource("pods");
    const SERVICES: Resource = Resource("services");

    fn source(resource: Resource, part: &str) -> Source {
        Source { resource, part: part.into() }
    }

    fn object(resource: Resource, name: &str, revision: u64) -> Object {
        let value = json!({"metadata": {"name": name, "namespace": "ns", "uid": name,
            "resourceVersion": (revision.to_string())}});
        Object::new(Facts::of(resource, &value), value.to_json())
    }

    fn put(object: Object) -> Change {
        Change { revision: object.revision(), old: None, new: Some(object) }
    }

    fn gone(object: Object) -> Change {
        Change { revision: object.revision(), old: Some(object), new: None }
    }

    fn names(cache: &Cache, resource: Resource) -> Vec<String> {
        let view = cache.view();
        view.list(resource, "").map(|object| format!("{}@{}", object.name(), object.revision())).collect()
    }

    #[test]
    fn a_late_source_is_seen_by_every_cursor() {
        let mut cache = Cache::new([]);
        let (pods, services) = (source(PODS, ""), source(SERVICES, ""));
        cache.replace_from(&pods, Revision(5), vec![]);
        cache.replace_from(&services, Revision(4), vec![]);
        cache.apply_from(&pods, [put(object(PODS, "a", 10))]);
        let cursor = cache.revision();
        cache.apply_from(&services, [put(object(SERVICES, "s", 8))]);
        let events = cache.since(SERVICES, cursor, 9).unwrap();
        assert_eq!(events.len(), 1);
        assert_eq!(events[0].new.as_ref().unwrap().revision(), Revision(8));
        assert_eq!((cache.view().knows(PODS), cache.view().knows(SERVICES)), (Revision(10), Revision(8)));
        assert!(cache.revision() > cursor);
    }

    #[test]
    fn what_comes_twice_or_late_changes_nothing() {
        let mut cache = Cache::new([]);
        let pods = source(PODS, "");
        cache.apply_from(&pods, [put(object(PODS, "a", 3)), put(object(PODS, "a", 5)), put(object(PODS, "b", 5))]);
        let at = cache.revision();
        cache.apply_from(&pods, [put(object(PODS, "a", 3)), put(object(PODS, "a", 5))]);
        assert_eq!(cache.revision(), at);
        assert_eq!(names(&cache, PODS), ["a@5", "b@5"]);
        // Revision 5 might not have come as a whole.
        assert_eq!(cache.resume(&pods), Revision(3));
        cache.advance_from(&pods, Revision(7));
        assert_eq!((cache.resume(&pods), cache.view().knows(PODS)), (Revision(7), Revision(7)));
    }

    #[test]
    fn sources_of_one_resource_share_objects() {
        let mut cache = Cache::new([]);
        let (one, two) = (source(PODS, "one"), source(PODS, "two"));
        cache.register(&two);
        cache.apply_from(&one, [put(object(PODS, "a", 3)), put(object(PODS, "b", 4))]);
        assert_eq!(cache.view().knows(PODS), Revision::ZERO);
        cache.apply_from(&two, [put(object(PODS, "a", 6))]);
        cache.apply_from(&one, [put(object(PODS, "a", 5))]);
        assert_eq!(names(&cache, PODS), ["a@6", "b@4"]);
        cache.apply_from(&one, [gone(object(PODS, "a", 7))]);
        assert_eq!(names(&cache, PODS), ["a@6", "b@4"]);
        cache.replace_from(&two, Revision(8), vec![]);
        assert_eq!(names(&cache, PODS), ["b@4"]);
        cache.forget(&one);
        assert!(names(&cache, PODS).is_empty());
        assert_eq!(cache.view().knows(PODS), Revision(8));
    }

    /// Two histories interleaved in every way end in the same objects, and a reader that replays the events has them
    /// too.
    #[test]
    fn any_interleaving_ends_the_same() {
        for seed in 0..200 {
            let mut rng = Rng::new(seed);
            let mut feeds: Vec<Vec<(u64, String, bool)>> = vec![Vec::new(), Vec::new()];
            let mut expected = [BTreeSet::new(), BTreeSet::new()];
            for revision in 1..40u64 {
                let which = rng.below(2) as usize;
                let (name, goes) = (format!("o{}", rng.below(4)), rng.chance(300));
                expected[which].retain(|known: &String| !known.starts_with(&format!("{name}@")));
                if !goes {
                    expected[which].insert(format!("{name}@{revision}"));
                }
                feeds[which].push((revision, name, goes));
            }
            let resources = [PODS, SERVICES];
            let sources = resources.map(|resource| source(resource, ""));
            let mut cache = Cache::new([]);
            let (mut done, mut cursor) = ([0, 0], Revision::ZERO);
            let mut replayed: BTreeSet<(Resource, String)> = BTreeSet::new();
            while done[0] < feeds[0].len() || done[1] < feeds[1].len() {
                let which = rng.below(2) as usize;
                // Sometimes what came last comes again, as after a reconnect.
                let from = done[which] - (rng.below(3) as usize).min(done[which]);
                let to = (done[which] + rng.below(4) as usize).min(feeds[which].len());
                let changes = feeds[which][from..to].iter().map(|(revision, name, goes)| {
                    let object = object(resources[which], name, *revision);
                    if *goes { gone(object) } else { put(object) }
                });
                cache.apply_from(&sources[which], changes.collect::<Vec<_>>());
                done[which] = to.max(done[which]);
                if rng.chance(500) {
                    let view = cache.view();
                    for resource in resources {
                        for event in cache.since(resource, cursor, usize::MAX).unwrap() {
                            let object = event.new.as_ref().or(event.old.as_ref()).unwrap();
                            replayed.remove(&(resource, object.name().to_owned()));
                            if let Some(new) = event.new {
                                replayed.insert((resource, new.name().to_owned()));
                            }
                        }
                        let held = view.list(resource, "").map(|object| (resource, object.name().to_owned()));
                        let replayed: Vec<_> = replayed.iter().filter(|(of, _)| *of == resource).cloned().collect();
                        assert_eq!(held.collect::<Vec<_>>(), replayed, "seed {seed}");
                    }
                    cursor = view.at();
                }
            }
            for (which, resource) in resources.into_iter().enumerate() {
                let held: BTreeSet<String> = names(&cache, resource).into_iter().collect();
                assert_eq!(held, expected[which], "seed {seed}");
            }
        }
    }
}
