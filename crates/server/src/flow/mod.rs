//! Priority and fairness: who may run now, who waits, and who is sent away with 429.
//!
//! State: for every priority level the seats in use and the requests that wait, by flow. Who decides: [`Flows::admit`]
//! and the return of a seat. The levels and what belongs to them are objects of the API (`plan`), those of upstream from
//! the first moment on; a change of them holds at once.
//!
//! A level runs requests on its own seats, and on seats of others as long as these keep what they do not lend. Within a
//! level the flows take turns, however much one of them sends, and none has more than its share of the level's seats,
//! however long it keeps them. Seats are for the time until the answer is made, for lists until it is sent
//! ([`crate::http::sending`] says for how long at most); watches and streams give theirs back when they begin, and have
//! [`places`].

pub mod counts;
mod dangling;
pub mod places;
mod plan;

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use cache::{Part, View};
use client::Interest;
use http::HeaderValue;
use meta::{Reason, Status, Str};
use tokio::sync::oneshot;

use crate::Server;
use crate::identity::User;
use crate::request::RequestInfo;
use counts::{Counted, Why};
pub use plan::Plan;
use plan::{LEVELS, Level, SCHEMAS, SEATS};

/// How long a request waits for a seat (upstream: a quarter of the request's time).
const PATIENCE: Duration = Duration::from_secs(15);
/// When it is said again what could not be said of the schemas.
const TELL_AGAIN: Duration = Duration::from_secs(1);
/// Objects of a list that make one seat, and the most seats a list takes.
const OBJECTS_PER_SEAT: usize = 1_000;
const SEATS_OF_LIST_MAX: u32 = 10;
/// Of the seats that are a level's own, one flow has at most this share: three quarters.
const FLOW_SHARE: (u32, u32) = (3, 4);

/// Waiting for a seat.
struct Waiting {
    width: u32,
    tell: oneshot::Sender<Seat>,
}

#[derive(Default)]
struct LevelState {
    used: u32,
    waiting: usize,
    flows: HashMap<String, VecDeque<Waiting>>,
    /// Seats in use, by flow.
    used_by: HashMap<String, u32>,
    /// Flows with waiting requests, in the order of their turns.
    turns: VecDeque<String>,
}

#[derive(Default)]
struct State {
    levels: HashMap<Str, LevelState>,
    used: u32,
}

/// The gate that every request over the network passes.
#[derive(Default)]
pub struct Flows {
    plan: RwLock<Arc<Plan>>,
    state: Mutex<State>,
}

/// The right to run; given back when it is dropped.
pub struct Seat {
    flows: Arc<Flows>,
    level: Str,
    flow: String,
    width: u32,
    /// Set when whoever asked has it.
    counted: Option<Counted>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let plan = self.flows.plan();
        let mut state = self.flows.state();
        state.leave(&self.level, &self.flow, self.width);
        state.seat_waiting(&plan, &self.flows);
    }
}

/// How a request was let in.
pub struct Admission {
    /// None for what is exempt.
    pub seat: Option<Seat>,
    /// For what is exempt: others are counted by their seat.
    counted: Option<Counted>,
    /// For the answer's headers.
    pub schema_uid: HeaderValue,
    pub level_uid: HeaderValue,
}

impl Flows {
    fn plan(&self) -> Arc<Plan> {
        self.plan.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the levels and schemas anew.
    pub fn replace(&self, plan: Plan) {
        let plan = Arc::new(plan.counting_on(&self.plan()));
        *self.plan.write().unwrap_or_else(PoisonError::into_inner) = plan;
    }

    /// What was counted, as Prometheus reads it.
    pub fn text(&self) -> String {
        counts::text(&self.plan())
    }

    /// Waits for a seat.
    ///
    /// # Errors
    /// 429 when the request's queue is full, its level does not queue, or its time is over.
    pub async fn admit(self: &Arc<Self>, user: &User, info: &RequestInfo, width: u32) -> Result<Admission, Status> {
        let plan = self.plan();
        // Before the first objects are there nobody is told apart.
        let Some(class) = plan.classify(user, info) else {
            let none = HeaderValue::from_static("");
            return Ok(Admission { seat: None, counted: None, schema_uid: none.clone(), level_uid: none });
        };
        let level = &plan.levels[class.level];
        let mut admission =
            Admission { seat: None, counted: None, schema_uid: class.schema_uid.clone(), level_uid: level.uid.clone() };
        let counts = class.counts();
        if level.exempt {
            admission.counted = Some(counts.run(width, Duration::ZERO));
            return Ok(admission);
        }
        let flow = class.flow(user, info);
        let told = {
            let mut state = self.state();
            let free = state.is_idle(level) && state.has_share(level, &flow, width);
            if free && state.has_room(level, &plan, width) {
                state.take(&level.name, &flow, width);
                let counted = Some(counts.run(width, Duration::ZERO));
                admission.seat = Some(Seat { flows: self.clone(), level: level.name.clone(), flow, width, counted });
                return Ok(admission);
            }
            let (tell, told) = oneshot::channel();
            state.queue(level, flow, Waiting { width, tell }).inspect_err(|_| {
                let why = if level.queueing.is_some() { Why::QueueFull } else { Why::ConcurrencyLimit };
                counts.reject(why, Duration::ZERO);
            })?;
            told
        };
        let (waiting, since) = (counts.wait(width), tokio::time::Instant::now());
        let told = tokio::time::timeout(PATIENCE, told).await;
        drop(waiting);
        match told {
            Ok(Ok(mut seat)) => {
                seat.counted = Some(counts.run(width, since.elapsed()));
                admission.seat = Some(seat);
                Ok(admission)
            }
            // What gave up is passed over when its turn comes.
            _ => {
                counts.reject(Why::TimeOut, since.elapsed());
                Err(too_many())
            }
        }
    }
}

impl State {
    /// Whether nobody waits for a seat of the level but those whose flows have their share.
    fn is_idle(&self, level: &Level) -> bool {
        let Some(state) = self.levels.get(&level.name) else { return true };
        let waits = |flow: &String| {
            let first = state.flows.get(flow).and_then(|queue| queue.iter().find(|one| !one.tell.is_closed()));
            first.is_some_and(|first| self.has_share(level, flow, first.width))
        };
        state.waiting == 0 || !state.turns.iter().any(waits)
    }

    fn used(&self, level: &Str) -> u32 {
        self.levels.get(level).map_or(0, |state| state.used)
    }

    /// Whether a flow may have `width` seats more of its level, as far as it is about the level's other flows. One that
    /// has none always may, however wide its request is.
    fn has_share(&self, level: &Level, flow: &str, width: u32) -> bool {
        let used = self.levels.get(&level.name).and_then(|state| state.used_by.get(flow)).copied().unwrap_or(0);
        used == 0 || used + width <= (level.nominal * FLOW_SHARE.0).div_ceil(FLOW_SHARE.1)
    }

    /// Whether a level may seat `width` more: on its own seats, or on what the others do not keep for themselves. One
    /// request of a level without seats in use always may, however wide.
    fn has_room(&self, level: &Level, plan: &Plan, width: u32) -> bool {
        let used = self.used(&level.name);
        if used == 0 || used + width <= level.nominal {
            return true;
        }
        let others = plan.levels.iter().filter(|other| other.name != level.name && !other.exempt);
        let kept: u32 = others.map(|other| other.kept.saturating_sub(self.used(&other.name))).sum();
        self.used + width + kept <= SEATS
    }

    fn take(&mut self, level: &Str, flow: &str, width: u32) {
        let state = self.levels.entry(level.clone()).or_default();
        state.used += width;
        *state.used_by.entry(flow.to_owned()).or_default() += width;
        self.used += width;
    }

    fn leave(&mut self, level: &Str, flow: &str, width: u32) {
        if let Some(state) = self.levels.get_mut(level) {
            state.used = state.used.saturating_sub(width);
            match state.used_by.get_mut(flow) {
                Some(used) if *used > width => *used -= width,
                _ => drop(state.used_by.remove(flow)),
            }
        }
        self.used = self.used.saturating_sub(width);
    }

    fn queue(&mut self, level: &Level, flow: String, waiting: Waiting) -> Result<(), Status> {
        let Some(queueing) = level.queueing else { return Err(too_many()) };
        let state = self.levels.entry(level.name.clone()).or_default();
        if state.waiting >= queueing.all_max {
            return Err(too_many());
        }
        let queue = state.flows.entry(flow.clone()).or_default();
        if queue.len() >= queueing.flow_max {
            // Those that gave up make room.
            let before = queue.len();
            queue.retain(|waiting| !waiting.tell.is_closed());
            state.waiting -= before - queue.len();
            if queue.len() >= queueing.flow_max {
                return Err(too_many());
            }
        }
        if queue.is_empty() {
            state.turns.push_back(flow);
        }
        queue.push_back(waiting);
        state.waiting += 1;
        Ok(())
    }

    /// Seats whoever can be seated now.
    fn seat_waiting(&mut self, plan: &Plan, flows: &Arc<Flows>) {
        for level in &plan.levels {
            while let Some((flow, width)) = self.next(level) {
                if !self.has_room(level, plan, width) {
                    break;
                }
                let Some(waiting) = self.pop(&level.name, &flow) else { break };
                self.take(&level.name, &flow, width);
                let seat = Seat { flows: flows.clone(), level: level.name.clone(), flow, width, counted: None };
                if let Err(seat) = waiting.tell.send(seat) {
                    self.leave(&level.name, &seat.flow, width);
                    // Gave up at this very moment. Its drop would wait for the lock that is held here.
                    std::mem::forget(seat);
                }
            }
        }
    }

    /// The flow whose turn it is, and the width of its next request. Flows that have their share are passed over.
    fn next(&mut self, level: &Level) -> Option<(String, u32)> {
        let mut at = 0;
        loop {
            let state = self.levels.get_mut(&level.name)?;
            let flow = state.turns.get(at)?.clone();
            let queue = state.flows.get_mut(&flow)?;
            while queue.front().is_some_and(|waiting| waiting.tell.is_closed()) {
                queue.pop_front();
                state.waiting -= 1;
            }
            let Some(width) = queue.front().map(|waiting| waiting.width) else {
                state.flows.remove(&flow);
                state.turns.remove(at);
                continue;
            };
            if self.has_share(level, &flow, width) {
                return Some((flow, width));
            }
            at += 1;
        }
    }

    /// Takes the next request of a flow, which goes to the end of the row.
    fn pop(&mut self, level: &Str, flow: &str) -> Option<Waiting> {
        let state = self.levels.get_mut(level)?;
        let at = state.turns.iter().position(|other| other == flow)?;
        let flow = state.turns.remove(at)?;
        let queue = state.flows.get_mut(&flow)?;
        let waiting = queue.pop_front()?;
        state.waiting -= 1;
        if queue.is_empty() {
            state.flows.remove(&flow);
        } else {
            state.turns.push_back(flow);
        }
        Some(waiting)
    }
}

fn too_many() -> Status {
    Status::new(Reason::TooManyRequests, "too many requests, please try again later").retry_after(1)
}

/// How many seats a request takes: lists by what they may read.
pub fn width_of(info: &RequestInfo, limit: usize, registry: &crate::registry::Registry, view: &View) -> u32 {
    if info.verb != "list" || !info.is_resource {
        return 1;
    }
    let Some(kind) = registry.find(&info.group, &info.version, &info.resource) else { return 1 };
    let all = view.count(kind.resource);
    let objects = if limit > 0 { limit.min(all) } else { all };
    u32::try_from(1 + objects / OBJECTS_PER_SEAT).unwrap_or(SEATS_OF_LIST_MAX).min(SEATS_OF_LIST_MAX)
}

/// Keeps the plan as the objects say, until the future is dropped.
pub async fn follow(server: Arc<Server>) {
    let mirror = server.storage.mirror().clone();
    let changed = mirror.listen(Interest::Parts(vec![(SCHEMAS, Part::All), (LEVELS, Part::All)]));
    loop {
        let view = mirror.view();
        server.flows.replace(Plan::of(&view));
        let told = dangling::tell(&server, &view).await;
        tokio::select! {
            () = changed.changed() => {}
            () = tokio::time::sleep(TELL_AGAIN), if !told => {}
        }
    }
}

#[cfg(test)]
mod tests;
