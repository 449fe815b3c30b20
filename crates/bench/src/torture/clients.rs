//! The clients of a torture: writers and readers who note what they asked and were answered, watchers who note what they
//! were brought; and the judgement of what they noted.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base::{Revision, Rng};
use history::{Began, Heard, Judge, Outcome, Watched};
use http_body_util::BodyExt;
use meta::{Value, json};

use super::place_of;
use crate::cluster::{Lines, Task, lock};
use crate::door::{Ask, Door, Line};
use crate::error::Error;

const PATH: &str = "/api/v1/namespaces/torture/configmaps";
/// How long a client waits for an answer, and for the next piece of a watch.
const ANSWER: Duration = Duration::from_secs(4);
const SILENCE: Duration = Duration::from_secs(30);
/// How long a watch lasts: less than the judge waits for the last ones, which are noted when they end.
const STRETCH_SECONDS: u64 = 5;
const PAUSE: Duration = Duration::from_millis(5);
const RECONNECT: Duration = Duration::from_millis(100);
/// Objects that a writer has for itself, and that all share.
const OWN: u64 = 4;
const SHARED: u64 = 4;
/// Promises that are told when more are broken.
const TOLD_MAX: usize = 5;

enum Note {
    Begun { call: u64, key: String, does: Does },
    Ended { call: u64, outcome: Outcome, of: Asked },
}

/// What a call is about.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Does {
    Reads,
    Writes,
    Deletes,
}

/// Who asked which server when: for whoever reads what the judge says.
#[derive(Clone, Copy)]
struct Asked {
    writer: u64,
    server: usize,
    began: Duration,
    ended: Duration,
}

impl std::fmt::Display for Asked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Asked { writer, server, began, ended } = self;
        let (began, ended) = (began.as_secs_f64(), ended.as_secs_f64());
        write!(f, "writer {writer}, who asked server {server} at {began:.3} s and was answered at {ended:.3} s: ")
    }
}

/// Everything that was noted, in the order in which it happened.
#[derive(Default)]
struct Notes {
    calls: u64,
    notes: Vec<Note>,
    watched: Vec<Watched>,
    /// What watches showed.
    versions: BTreeSet<(Revision, String, bool)>,
    /// Everything there was, at a revision.
    lists: Vec<(Revision, BTreeMap<String, Revision>)>,
    acknowledged: u64,
    unknown: u64,
    relists: u64,
    /// Refusals by code.
    refusals: BTreeMap<u16, u64>,
}

/// The clients at work. They end with this.
pub struct Clients {
    notes: Arc<Mutex<Notes>>,
    tasks: Vec<Task>,
}

/// What the judge found.
#[derive(Debug, Default)]
pub struct Verdict {
    pub acknowledged: u64,
    pub unknown: u64,
    pub judged: u64,
    /// Changes that watches brought.
    pub heard: u64,
    pub relists: u64,
    pub refusals: BTreeMap<u16, u64>,
    /// How long judging took.
    pub took: Duration,
    pub broken: Vec<String>,
}

impl Clients {
    /// Starts as many writers and watchers, which spread over the servers behind `doors`.
    pub fn start(doors: &[Door], writers: u64, watchers: u64, seed: u64) -> Clients {
        let notes = Arc::<Mutex<Notes>>::default();
        let rng = Rng::new(seed);
        let write = |number| {
            let writer = Writer {
                doors: doors.to_vec(),
                at: number,
                began: Instant::now(),
                notes: notes.clone(),
                rng: rng.fork(&format!("writer {number}")),
                number,
                line: None,
            };
            Task::spawn(writer.run())
        };
        let watch = |number| Task::spawn(follow(doors.to_vec(), number, notes.clone()));
        let tasks = (0..writers).map(write).chain((0..watchers).map(watch)).collect();
        Clients { notes, tasks }
    }

    /// Ends the writers, lets the watchers come to the end, and judges.
    ///
    /// # Errors
    /// The last list cannot be had.
    pub async fn judge(mut self, door: &Door, writers: usize) -> Result<Verdict, Error> {
        self.tasks.drain(..writers.min(self.tasks.len()));
        tokio::time::sleep(ANSWER).await;
        let list = Value::parse(&door.await_good(PATH).await?).map_err(Error::while_doing("read the last list"))?;
        tokio::time::sleep(ANSWER).await;
        self.tasks.clear();
        let mut notes = std::mem::take(&mut *lock(&self.notes));
        notes.lists.extend(listed(&list));
        let began = Instant::now();
        let verdict = judge(notes);
        Ok(Verdict { took: began.elapsed(), ..verdict })
    }
}

fn revision_of(object: &Value) -> Option<Revision> {
    object.at(&["metadata", "resourceVersion"]).text().parse().ok().map(Revision)
}

/// A list of the API: its revision, and those of its objects; without what the cluster makes itself in every namespace.
fn listed(list: &Value) -> Option<(Revision, BTreeMap<String, Revision>)> {
    let items = list["items"].items().iter().filter(|item| item["data"]["by"].text() != "");
    let object = |item: &Value| Some((item.at(&["metadata", "name"]).text().to_owned(), revision_of(item)?));
    Some((revision_of(list)?, items.filter_map(object).collect()))
}

/// What calls asked for of which no revision tells: when it may have happened, by what was known then.
fn fates(judge: &mut Judge, notes: &[Note]) {
    let mut known = Revision::ZERO;
    let mut open: BTreeMap<u64, (usize, Revision, &str, Does)> = BTreeMap::new();
    // Writes by the order in which they began, and deletions that happened before whatever began after them.
    let (mut writes, mut deletions) = (BTreeMap::new(), Vec::new());
    for (number, note) in notes.iter().enumerate() {
        match note {
            Note::Begun { call, key, does } => drop(open.insert(*call, (number, known, key, *does))),
            Note::Ended { call, outcome, .. } => {
                let Some((began, after, key, does)) = open.remove(call) else { continue };
                match (does, outcome) {
                    (_, Outcome::Wrote(revision)) => {
                        known = known.max(*revision);
                        writes.insert(began, *revision);
                    }
                    (_, Outcome::Saw(Some(revision))) => known = known.max(*revision),
                    (Does::Deletes, Outcome::Deleted) => deletions.push((number, after, key)),
                    (Does::Deletes, Outcome::Unknown) => judge.may_delete(key, after, None),
                    (Does::Writes, Outcome::Unknown) => judge.may_write(key, after),
                    _ => {}
                }
            }
        }
    }
    // From the last one on, so that the least revision of what began later is at hand.
    let (mut later, mut least) = (writes.into_iter().rev().peekable(), None::<Revision>);
    for (number, after, key) in deletions.into_iter().rev() {
        while let Some((_, revision)) = later.next_if(|(began, _)| *began >= number) {
            least = Some(least.map_or(revision, |least| least.min(revision)));
        }
        judge.may_delete(key, after, least);
    }
    for (_, after, key, does) in open.into_values() {
        match does {
            Does::Deletes => judge.may_delete(key, after, None),
            Does::Writes => judge.may_write(key, after),
            Does::Reads => {}
        }
    }
}

fn judge(notes: Notes) -> Verdict {
    let mut verdict = Verdict {
        acknowledged: notes.acknowledged,
        unknown: notes.unknown,
        relists: notes.relists,
        heard: notes.watched.iter().map(|watched| watched.heard.len() as u64).sum(),
        refusals: notes.refusals,
        ..Verdict::default()
    };
    let mut broken = Vec::new();
    let (mut judge, mut versions) = (Judge::default(), notes.versions);
    let mut keys: BTreeMap<u64, &str> = BTreeMap::new();
    for note in &notes.notes {
        match note {
            Note::Begun { call, key, .. } => drop(keys.insert(*call, key)),
            Note::Ended { call, outcome: Outcome::Wrote(revision), .. } => {
                versions.insert((*revision, keys.get(call).copied().unwrap_or_default().to_owned(), true));
            }
            Note::Ended { .. } => {}
        }
    }
    for (revision, key, present) in &versions {
        broken.extend(judge.version(key, *revision, *present).err().map(|why| why.to_string()));
    }
    for (after, up_to) in gaps(&notes.watched) {
        judge.gap(after, up_to);
    }
    fates(&mut judge, &notes.notes);
    let mut lists = notes.lists;
    lists.sort_unstable();
    for (at, found) in &lists {
        broken.extend(judge.listed(*at, found).iter().map(ToString::to_string));
    }
    let mut open: BTreeMap<u64, Began> = BTreeMap::new();
    for note in &notes.notes {
        match note {
            Note::Begun { call, .. } => {
                open.insert(*call, judge.begin());
            }
            Note::Ended { call, outcome, of } => {
                let (began, key) = (open.remove(call).unwrap_or_default(), keys.get(call).copied().unwrap_or_default());
                broken.extend(judge.end(key, began, *outcome).err().map(|why| format!("{of}{why}")));
            }
        }
    }
    for watched in &notes.watched {
        broken.extend(judge.watched(watched, false).err().map(|why| why.to_string()));
    }
    verdict.judged = judge.judged();
    let more = broken.len().saturating_sub(TOLD_MAX);
    broken.truncate(TOLD_MAX);
    if more > 0 {
        broken.push(format!("and {more} more"));
    }
    verdict.broken = broken;
    verdict
}

/// The stretches of history that no watch covers: before the first, after the last, and where all of them began anew.
fn gaps(watched: &[Watched]) -> Vec<(Revision, Revision)> {
    let mut covered: Vec<(Revision, Revision)> = watched.iter().map(|one| (one.since, one.reached())).collect();
    covered.sort_unstable();
    let (mut gaps, mut at) = (Vec::new(), Revision::ZERO);
    for (since, reached) in covered {
        if since > at {
            gaps.push((at, since));
        }
        at = at.max(reached);
    }
    gaps.push((at, Revision(u64::MAX)));
    gaps
}

struct Writer {
    doors: Vec<Door>,
    /// Which of them is in use.
    at: u64,
    began: Instant,
    notes: Arc<Mutex<Notes>>,
    rng: Rng,
    number: u64,
    line: Option<Line>,
}

impl Writer {
    async fn run(mut self) {
        let mut count = 0i64;
        loop {
            tokio::time::sleep(PAUSE).await;
            count += 1;
            let name = match self.rng.chance(700) {
                true => format!("own-{}-{}", self.number, self.rng.below(OWN)),
                false => format!("shared-{}", self.rng.below(SHARED)),
            };
            let path = format!("{PATH}/{name}");
            let data = json!({"by": (self.number.to_string()), "count": (count.to_string())});
            let make = |data: Value| json!({"metadata": {"name": (name.as_str())}, "data": data});
            let (ask, does) = match self.rng.below(100) {
                0..20 => (Ask::post(PATH, &make(data)), Does::Writes),
                20..65 => (Ask::patch(&path, "application/merge-patch+json", &json!({"data": data})), Does::Writes),
                65..73 => (Ask::delete(&path), Does::Deletes),
                _ => (Ask::get(&path), Does::Reads),
            };
            self.once(name, &ask, does).await;
        }
    }

    async fn once(&mut self, key: String, ask: &Ask, does: Does) {
        let call = {
            let mut notes = lock(&self.notes);
            notes.calls += 1;
            let call = notes.calls;
            notes.notes.push(Note::Begun { call, key, does });
            call
        };
        let (server, began) = (place_of(&self.doors, self.at), self.began.elapsed());
        let answer = tokio::time::timeout(ANSWER, self.exchange(ask)).await;
        let of = Asked { writer: self.number, server, began, ended: self.began.elapsed() };
        let creates = ask.method == http::Method::POST;
        let mut notes = lock(&self.notes);
        let outcome = match answer {
            Ok(Ok(Ok(_))) if does == Does::Deletes => Outcome::Deleted,
            Ok(Ok(Ok(body))) => match Value::parse(&body).ok().as_ref().and_then(revision_of) {
                Some(revision) if does == Does::Reads => Outcome::Saw(Some(revision)),
                Some(revision) => Outcome::Wrote(revision),
                None => Outcome::Unknown,
            },
            Ok(Ok(Err(status))) => {
                *notes.refusals.entry(status.code()).or_default() += 1;
                if status.code() == 404 && !creates { Outcome::Saw(None) } else { Outcome::Unknown }
            }
            Ok(Err(_)) | Err(_) => {
                (self.line, self.at) = (None, self.at + 1);
                notes.unknown += 1;
                Outcome::Unknown
            }
        };
        notes.acknowledged += u64::from(matches!(outcome, Outcome::Wrote(_) | Outcome::Deleted));
        notes.notes.push(Note::Ended { call, outcome, of });
    }

    async fn exchange(&mut self, ask: &Ask) -> Result<Result<bytes::Bytes, meta::Status>, Error> {
        if self.line.is_none() {
            self.line = Some(self.doors[place_of(&self.doors, self.at)].two().await?);
        }
        let Some(line) = &mut self.line else { return Err(Error::doing("speak to the server", "there is no line")) };
        line.exchange(ask).await
    }
}

/// Lists and watches, over and over, going on where it broke off.
async fn follow(doors: Vec<Door>, number: u64, notes: Arc<Mutex<Notes>>) {
    let mut cursor: Option<Revision> = None;
    for turn in number.. {
        // Each stretch at the next server: what one has told, another goes on with.
        let door = &doors[place_of(&doors, turn)];
        let since = match cursor {
            Some(since) => since,
            None => match list(door, &notes).await {
                Some(at) => at,
                None => {
                    tokio::time::sleep(RECONNECT).await;
                    continue;
                }
            },
        };
        let mut watched = Watched { prefixes: Vec::new(), since, heard: Vec::new() };
        let expired = stretch(door, since, &mut watched).await.is_none();
        cursor = (!expired).then(|| watched.reached());
        keep(&mut lock(&notes), watched, expired);
        tokio::time::sleep(RECONNECT).await;
    }
}

fn keep(notes: &mut Notes, watched: Watched, expired: bool) {
    notes.relists += u64::from(expired);
    for heard in &watched.heard {
        if let Heard::Change { key, revision, present } = heard {
            notes.versions.insert((*revision, key.clone(), *present));
        }
    }
    notes.watched.push(watched);
}

async fn list(door: &Door, notes: &Mutex<Notes>) -> Option<Revision> {
    let body = tokio::time::timeout(ANSWER, door.get(PATH)).await.ok()?.ok()?;
    let (at, found) = listed(&Value::parse(&body).ok()?)?;
    lock(notes).lists.push((at, found));
    Some(at)
}

/// One watch until it breaks off; `None` when the server says that it must begin anew.
async fn stretch(door: &Door, since: Revision, watched: &mut Watched) -> Option<()> {
    let path =
        format!("{PATH}?watch=true&allowWatchBookmarks=true&timeoutSeconds={STRETCH_SECONDS}&resourceVersion={since}");
    let Ok(Ok(mut line)) = tokio::time::timeout(ANSWER, door.two()).await else { return Some(()) };
    let Ok(Ok(response)) = tokio::time::timeout(ANSWER, line.open(&Ask::get(&path))).await else { return Some(()) };
    if response.status() == http::StatusCode::GONE {
        return None;
    }
    if !response.status().is_success() {
        return Some(());
    }
    let (mut body, mut lines, mut expired) = (response.into_body(), Lines::default(), false);
    while let Ok(Some(Ok(frame))) = tokio::time::timeout(SILENCE, body.frame()).await {
        let Some(bytes) = frame.data_ref() else { continue };
        lines.feed(bytes, |line| {
            let Ok(event) = Value::parse(line) else { return };
            let object = &event["object"];
            let Some(revision) = revision_of(object) else {
                expired |= object["code"].as_int() == Some(410);
                return;
            };
            let key = object.at(&["metadata", "name"]).text().to_owned();
            match event["type"].text() {
                "BOOKMARK" => watched.heard.push(Heard::Mark(revision)),
                // Made by the cluster itself, in every namespace.
                _ if object["data"]["by"].text().is_empty() => {}
                of_type => watched.heard.push(Heard::Change { key, revision, present: of_type != "DELETED" }),
            }
        });
    }
    (!expired).then_some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A history in words: `+a3` a write of `a` answered with revision 3, `+a?` one without an answer, `-a` a deletion,
    /// `-a?` one without an answer, `=a3` a read; `w2..5` a watch, with `a3` and `-a4` in it; `[9 a3` a list at 9.
    fn check(words: &str) -> Vec<String> {
        let mut notes = Notes::default();
        let number = |text: &str| Revision(text.parse().unwrap());
        let of = Asked { writer: 0, server: 0, began: Duration::ZERO, ended: Duration::ZERO };
        for (call, word) in (0u64..).zip(words.split(", ")) {
            let (sign, rest) = word.split_at(1);
            let mut parts = rest.split(' ');
            let first = parts.next().unwrap();
            let change = |text: &str| match text.strip_prefix('-') {
                Some(text) => Heard::Change { key: text[..1].to_owned(), revision: number(&text[1..]), present: false },
                None => Heard::Change { key: text[..1].to_owned(), revision: number(&text[1..]), present: true },
            };
            if sign == "w" {
                let (since, to) = first.split_once("..").unwrap();
                let heard = parts.map(change).chain([Heard::Mark(number(to))]).collect();
                keep(&mut notes, Watched { prefixes: Vec::new(), since: number(since), heard }, false);
                continue;
            }
            if sign == "[" {
                let found = parts.map(|text| (text[..1].to_owned(), number(&text[1..]))).collect();
                notes.lists.push((number(first), found));
                continue;
            }
            let (key, answer) = first.split_at(1);
            let (does, outcome) = match (sign, answer) {
                ("+", "?") => (Does::Writes, Outcome::Unknown),
                ("+", answer) => (Does::Writes, Outcome::Wrote(number(answer))),
                ("-", "?") => (Does::Deletes, Outcome::Unknown),
                ("-", _) => (Does::Deletes, Outcome::Deleted),
                (_, "") => (Does::Reads, Outcome::Saw(None)),
                (_, answer) => (Does::Reads, Outcome::Saw(Some(number(answer)))),
            };
            notes.notes.push(Note::Begun { call, key: key.to_owned(), does });
            notes.notes.push(Note::Ended { call, outcome, of });
        }
        judge(notes).broken
    }

    #[test]
    fn what_a_store_can_have_done_is_not_held_against_it() {
        for fine in [
            "w0..9 a3 -a5, +a3, -a, =a, [9",
            // Nobody watched; the deletion came after the write.
            "+a3, -a, [9",
            "+a3, -a?, =a, [9",
            // A write without an answer happened, is read, and listed.
            "+a3, +a?, =a5, [9 a5",
            "+a3, +a?, [9 a3",
            "w0..4 a3, +a3, w8..9, -a, [9",
        ] {
            assert_eq!(check(fine), Vec::<String>::new(), "{fine}");
        }
    }

    #[test]
    fn a_loss_is_found_though_nobody_watched() {
        for (lost, told) in [
            ("+a3, [9", "a at revision 3 is missing in a list at 9"),
            ("+a3, =a, [9 a3", "a was shown as absent"),
            // The deletion is older than the write.
            ("+a2, -a, +a5, [9", "a at revision 5 is missing in a list at 9"),
            ("+a2, -a, +a5, =a, [9 a5", "a was shown as absent"),
            ("+a2, +a5, [9 a2", "a is at revision 2 in a list at 9, though it came to 5"),
            ("+a3, [9 a6", "a was shown at revision 6, which never was"),
            ("+a3, =a6, [9 a3", "a was shown at revision 6, which never was"),
            // In the middle of a run, and made good again before its end.
            ("w0..4 a3, +a3, [8, w8..12 a9, +a9, [12 a9", "a at revision 3 is missing in a list at 8"),
            // Where somebody watched, nothing is excused.
            ("w0..9 a3, +a3, -a?, [9", "a at revision 3 is missing in a list at 9"),
        ] {
            let broken = check(lost);
            assert!(broken.iter().any(|why| why.contains(told)), "{lost}: {broken:?}");
        }
    }
}
