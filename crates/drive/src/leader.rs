//! Which of several servers leads: runs the controllers and the scheduler, and all else that must happen once.
//!
//! Two keys of the store say it. `/leader` is put by who takes the lead, and its modification revision is the epoch: all
//! that the leader's parts write carries the condition that it still is ([`Reign::fence`]), so the store refuses what a
//! leader of the past still sends, however late it wakes up. `/leader-beat` is put by the leader every [`BEAT_MS`]. A
//! server that has seen no change of the two for [`PATIENCE_MS`], by its own steady clock, takes the lead by putting both
//! on the condition that both are what it saw; so nobody's clock is compared with another's, and of several only one
//! succeeds. (A lease of etcd would do the same in two to three seconds: it lasts at least that long.)
//!
//! A server with a store of its own leads itself, by the same keys, at once and without beats.
//!
//! Not here: what a leader runs; how a condition gets into a write; clocks and tasks, which come through [`Shell`].

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::sync::Arc;

use base::{Clock, Revision, Time};
use bytes::Bytes;
use store::{Backend, Compare, Put, Txn, Version};
use tokio::sync::{mpsc, watch};

use crate::{Shell, Task};

/// Put by who takes the lead.
pub const LEADER: &[u8] = b"/leader";
/// Put by who leads, again and again.
pub const BEAT_KEY: &[u8] = b"/leader-beat";
/// How often the leader says that it lives.
pub const BEAT_MS: u64 = 80;
/// After this long without a sign the leader counts as dead.
pub const PATIENCE_MS: u64 = 320;
/// How long a leader that stops tries to say so.
const RESIGN_TIMEOUT_MS: u64 = 1_000;
/// How much history a shared backend keeps for watches that resume, and how often older history is dropped.
const HISTORY_MS: u64 = 300_000;
const COMPACT_EVERY_MS: u64 = 60_000;

/// Keys of the store as a server sees them, among them those about the lead.
pub type Side = Arc<BTreeMap<Bytes, Arc<Version>>>;

/// A time of leading. Its parts end with it.
#[derive(Clone)]
pub struct Reign {
    epoch: Revision,
    ended: watch::Receiver<bool>,
    shell: Arc<dyn Shell>,
}

impl Reign {
    /// The revision that began it; no two reigns have the same.
    pub fn epoch(&self) -> Revision {
        self.epoch
    }

    /// What must hold for a write of the leader's parts to take effect.
    pub fn fence(&self) -> Compare {
        Compare { key: LEADER.into(), mod_revision: self.epoch }
    }

    /// Is done when the reign is.
    pub async fn ended(&self) {
        // Also when whoever would tell is gone.
        let _ = self.ended.clone().wait_for(|ended| *ended).await;
    }

    /// Runs a task until it or the reign ends.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let reign = self.clone();
        self.shell.spawn(Box::pin(async move {
            tokio::select! {
                biased;
                () = reign.ended() => {}
                () = task => {}
            }
        }));
    }

    /// Time and tasks for parts that end with the reign.
    pub fn shell(&self) -> Arc<dyn Shell> {
        Arc::new(self.clone())
    }
}

impl Clock for Reign {
    fn now(&self) -> Time {
        self.shell.now()
    }
}

impl Shell for Reign {
    fn spawn(&self, task: Task) {
        Reign::spawn(self, task);
    }

    fn sleep(&self, ms: u64) -> Task {
        self.shell.sleep(ms)
    }

    fn steady_ms(&self) -> u64 {
        self.shell.steady_ms()
    }
}

/// Keys on which something stands that no server put there, and that none is shown: its revision, as a refusal told it.
type Hidden = BTreeMap<Bytes, Revision>;

/// Where this server stands: what it saw of the keys, and since when they are so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    leader: Revision,
    beat: Revision,
    since_ms: u64,
}

impl Seen {
    /// Takes in what the keys are now. What has not changed is as old as before.
    fn of(side: &Side, hidden: &Hidden, before: Option<Seen>, now_ms: u64) -> Seen {
        let at = |key: &[u8]| match revision_of(side, key) {
            Revision::ZERO => hidden.get(key).copied().unwrap_or(Revision::ZERO),
            shown => shown,
        };
        let (leader, beat) = (at(LEADER), at(BEAT_KEY));
        match before {
            Some(before) if (before.leader, before.beat) == (leader, beat) => before,
            _ => Seen { leader, beat, since_ms: now_ms },
        }
    }

    /// How long until the lead may be taken.
    fn wait_ms(&self, patience_ms: u64, now_ms: u64) -> u64 {
        if self.leader == Revision::ZERO {
            return 0;
        }
        patience_ms.saturating_sub(now_ms.saturating_sub(self.since_ms))
    }
}

fn revision_of(side: &Side, key: &[u8]) -> Revision {
    side.get(key).map_or(Revision::ZERO, |version| version.mod_revision)
}

/// A server that leads whenever nobody else does.
pub struct Candidate {
    pub backend: Arc<dyn Backend>,
    /// The keys as this server sees them; wakes when one changes.
    pub side: watch::Receiver<Side>,
    pub shell: Arc<dyn Shell>,
    /// How others see who leads; any text that tells the servers apart.
    pub name: String,
    /// Others may lead, too.
    pub shared: bool,
}

impl Candidate {
    /// Stands for election until `stop` says so. `begin` starts the parts of each reign.
    pub async fn run(mut self, mut stop: watch::Receiver<bool>, begin: impl Fn(&Reign)) {
        let stop = &mut stop;
        let (mut seen, mut hidden): (Option<Seen>, Hidden) = Default::default();
        let patience_ms = if self.shared { PATIENCE_MS } else { 0 };
        loop {
            let now = Seen::of(&self.side.borrow_and_update(), &hidden, seen, self.shell.steady_ms());
            seen = Some(now);
            let wait_ms = now.wait_ms(patience_ms, self.shell.steady_ms());
            if wait_ms > 0 {
                tokio::select! {
                    biased;
                    () = stopped(stop) => return,
                    _ = self.side.changed() => {}
                    () = self.shell.sleep(wait_ms) => {}
                }
                continue;
            }
            match self.take(now, &mut hidden).await {
                Some(epoch) => {
                    hidden.clear();
                    self.reign(epoch, stop, &begin).await;
                    if *stop.borrow() {
                        return;
                    }
                    seen = None;
                }
                // Whoever was faster, or the backend, is given the time again.
                None => {
                    seen = Some(Seen { since_ms: self.shell.steady_ms(), ..now });
                    tokio::select! {
                        () = stopped(stop) => return,
                        () = self.shell.sleep(BEAT_MS) => {}
                    }
                }
            }
        }
    }

    /// Tries to become the leader after the one that was seen, or in the place of what is `hidden`.
    async fn take(&self, seen: Seen, hidden: &mut Hidden) -> Option<Revision> {
        let txn = Txn::new()
            .when(LEADER, seen.leader)
            .when(BEAT_KEY, seen.beat)
            .put(Put::new(LEADER, self.name.clone().into_bytes()))
            .put(Put::new(BEAT_KEY, ""));
        match self.backend.txn(txn).await {
            Ok(commit) => {
                tracing::info!("{} leads from revision {} on", self.name, commit.revision);
                Some(commit.revision)
            }
            Err(store::Error::Refused(refused)) => {
                let store::Refused { key, found, value, .. } = *refused;
                // A revision without a value: others can write below our prefix, too, but they cannot lead.
                match value {
                    None if found > Revision::ZERO => drop(hidden.insert(key, found)),
                    _ => drop(hidden.remove(&key)),
                }
                None
            }
            Err(error) => {
                tracing::warn!("{} cannot take the lead yet: {error}", self.name);
                None
            }
        }
    }

    async fn reign(&mut self, epoch: Revision, stop: &mut watch::Receiver<bool>, begin: &impl Fn(&Reign)) {
        let (end, ended) = watch::channel(false);
        let reign = Reign { epoch, ended, shell: self.shell.clone() };
        begin(&reign);
        let (lost, mut heard) = mpsc::channel::<()>(1);
        if self.shared {
            reign.spawn(beat(self.backend.clone(), self.shell.clone(), reign.fence(), lost.clone()));
            reign.spawn(compact(self.backend.clone(), self.shell.clone()));
        }
        // What is shown may lag behind the answer; from when it shows this epoch on, anything else ends it.
        let mut shown = false;
        loop {
            let at = revision_of(&self.side.borrow_and_update(), LEADER);
            if at > epoch || shown && at != epoch {
                break;
            }
            shown |= at == epoch;
            tokio::select! {
                biased;
                () = stopped(stop) => {
                    end.send_replace(true);
                    self.resign(epoch).await;
                    return;
                }
                _ = heard.recv() => break,
                _ = self.side.changed() => {}
            }
        }
        end.send_replace(true);
        drop(lost);
        tracing::warn!("{} leads no more", self.name);
    }

    /// Lets the others go on at once.
    async fn resign(&self, epoch: Revision) {
        let txn = Txn::new().when(LEADER, epoch).delete(LEADER);
        tokio::select! {
            biased;
            // If it fails, the others wait a little longer.
            _ = self.backend.txn(txn) => {}
            () = self.shell.sleep(RESIGN_TIMEOUT_MS) => {}
        }
    }
}

/// Until somebody says stop, or is gone.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Says that the leader lives, until the store says that it leads no more.
async fn beat(backend: Arc<dyn Backend>, shell: Arc<dyn Shell>, fence: Compare, lost: mpsc::Sender<()>) {
    loop {
        let begun_ms = shell.steady_ms();
        let mut txn = Txn::new().put(Put::new(BEAT_KEY, ""));
        txn.compares.push(fence.clone());
        match backend.txn(txn).await {
            Ok(_) => {}
            Err(store::Error::Refused(_)) => {
                // The receiver lives as long as the reign.
                let _ = lost.send(()).await;
                return;
            }
            Err(error) => tracing::warn!("a sign of life got lost: {error}"),
        }
        let rest_ms = BEAT_MS.saturating_sub(shell.steady_ms().saturating_sub(begun_ms));
        shell.sleep(rest_ms.max(1)).await;
    }
}

/// Drops history that nobody resumes from any more.
async fn compact(backend: Arc<dyn Backend>, shell: Arc<dyn Shell>) {
    let mut marks: VecDeque<(u64, Revision)> = VecDeque::new();
    loop {
        let now_ms = shell.steady_ms();
        marks.push_back((now_ms, backend.revision()));
        let mut at = None;
        while marks.front().is_some_and(|(since_ms, _)| now_ms.saturating_sub(*since_ms) >= HISTORY_MS) {
            at = marks.pop_front().map(|(_, revision)| revision);
        }
        if let Some(at) = at
            && let Err(error) = backend.compact(at).await
        {
            tracing::warn!("the history up to revision {at} is not dropped yet: {error}");
        }
        shell.sleep(COMPACT_EVERY_MS).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_begins_anew_with_every_sign() {
        let version = |revision: u64| Version {
            value: "".into(),
            create_revision: Revision(1),
            mod_revision: Revision(revision),
            lease: None,
            ephemeral: false,
            attachment: None,
        };
        let side = |leader: u64, beat: u64| -> Side {
            let all = [(LEADER, leader), (BEAT_KEY, beat)].into_iter().filter(|(_, revision)| *revision > 0);
            Arc::new(all.map(|(key, at)| (key.into(), Arc::new(version(at)))).collect::<BTreeMap<_, _>>())
        };
        let mut hidden = Hidden::new();
        let first = Seen::of(&side(5, 6), &hidden, None, 0);
        assert_eq!(first.wait_ms(PATIENCE_MS, 100), PATIENCE_MS - 100);
        let same = Seen::of(&side(5, 6), &hidden, Some(first), 200);
        assert_eq!(same, first);
        assert_eq!(same.wait_ms(PATIENCE_MS, 400), 0);
        let beaten = Seen::of(&side(5, 7), &hidden, Some(same), 300);
        assert_eq!(beaten.wait_ms(PATIENCE_MS, 300), PATIENCE_MS);
        // Who resigned is not waited for.
        assert_eq!(Seen::of(&side(0, 7), &hidden, Some(beaten), 301).wait_ms(PATIENCE_MS, 301), 0);
        // What somebody else put in the leader's place is taken for a leader who says nothing.
        hidden.insert(LEADER.into(), Revision(9));
        let hides = Seen::of(&side(0, 7), &hidden, Some(beaten), 400);
        assert_eq!((hides.leader, hides.wait_ms(PATIENCE_MS, 500)), (Revision(9), PATIENCE_MS - 100));
        assert_eq!(Seen::of(&side(10, 7), &hidden, Some(hides), 500).leader, Revision(10));
    }
}
