//! What to do next for a pod.

use api::core::pod::GRACE_SECONDS;
use base::Time;
use meta::{Str, Value};

use super::probes::ProbeState;
use super::{
    Command, Memory, Observed, PULL, ProbeKind, RESTART, RESTART_RESET_MS, RETRY, Seen, SeenState, is_sidecar,
};

/// Pause before the object of a pod that has ended is let go once more.
const FAREWELL_MS: u64 = 5_000;

/// The commands that bring the pod closer to what it shall be. `memory.wake` says when to ask again.
pub fn decide(pod: &Value, observed: &Observed, memory: &mut Memory, now: Time) -> Vec<Command> {
    memory.wake = None;
    let mut commands = Vec::new();
    memory.started.get_or_insert(now);
    count_ends(pod, observed, memory);
    deadline(pod, memory, now);
    let deleting = Time::parse(pod.at(&["metadata", "deletionTimestamp"]).text());
    if deleting.is_some() || memory.doom.is_some() {
        wind_down(pod, observed, memory, deleting.is_some(), now, &mut commands);
        // Whether it still serves is worth knowing until it does not run any more.
        probe(pod, observed, memory, &[ProbeKind::Readiness], now, &mut commands);
    } else if is_over(pod, observed) || is_final(pod) {
        finish(observed, memory, &mut commands);
    } else if !observed.sandbox_ready {
        prepare(memory, now, &mut commands);
    } else {
        run(pod, observed, memory, now, &mut commands);
        probe(pod, observed, memory, &ProbeKind::ALL, now, &mut commands);
    }
    pause(memory, now, &mut commands);
    commands.retain(|command| !memory.busy.contains(&command.part()));
    let mut taken = std::collections::BTreeSet::new();
    commands.retain(|command| taken.insert(command.part()));
    commands
}

/// What could not be stopped or removed is tried again after a while, not over and over.
fn pause(memory: &mut Memory, now: Time, commands: &mut Vec<Command>) {
    let clears = |command: &Command| matches!(command, Command::Stop { .. } | Command::Remove | Command::End);
    let next = memory.clearing_failed_at.plus_ms(RETRY.delay_ms(memory.clearing_failures));
    if memory.clearing_failures > 0 && now < next && commands.iter().any(clears) {
        commands.retain(|command| !clears(command));
        memory.wake_by(next);
    }
}

/// The end of a container counts once for the pause before its next start.
fn count_ends(pod: &Value, observed: &Observed, memory: &mut Memory) {
    for container in all_containers(pod) {
        let name = container["name"].text();
        let Some(seen) = observed.containers.get(name) else { continue };
        if seen.state != SeenState::Exited {
            continue;
        }
        let memory = memory.container(name);
        if memory.counted != seen.id {
            memory.counted = seen.id.clone();
            let ran = match (seen.started, seen.finished) {
                (Some(started), Some(finished)) => finished.ms_since(started),
                _ => 0,
            };
            memory.restarts = if ran >= RESTART_RESET_MS { 0 } else { memory.restarts.saturating_add(1) };
        }
    }
}

fn deadline(pod: &Value, memory: &mut Memory, now: Time) {
    let Some(seconds) = pod.at(&["spec", "activeDeadlineSeconds"]).as_int() else { return };
    let start = Time::parse(pod.at(&["status", "startTime"]).text()).or(memory.started).unwrap_or(now);
    let end = start.plus_ms(u64::try_from(seconds).unwrap_or(0).saturating_mul(1000));
    if now >= end {
        let message = "Pod was active on the node longer than the specified deadline".to_owned();
        memory.doom.get_or_insert(("DeadlineExceeded".into(), message));
    } else {
        memory.wake_by(end);
    }
}

pub fn all_containers(pod: &Value) -> impl Iterator<Item = &Value> {
    let spec = &pod["spec"];
    spec["initContainers"].items().iter().chain(spec["containers"].items()).chain(spec["ephemeralContainers"].items())
}

fn is_running(seen: Option<&Seen>) -> bool {
    seen.is_some_and(|seen| seen.state != SeenState::Exited)
}

/// Stops what runs, then removes everything, then lets the object go.
fn wind_down(
    pod: &Value,
    observed: &Observed,
    memory: &mut Memory,
    deleting: bool,
    now: Time,
    commands: &mut Vec<Command>,
) {
    let grace_seconds = pod.at(&["metadata", "deletionGracePeriodSeconds"]).as_int().filter(|_| deleting);
    let grace_seconds = grace_seconds
        .or_else(|| pod.at(&["spec", "terminationGracePeriodSeconds"]).as_int())
        .unwrap_or(GRACE_SECONDS)
        .max(0);
    // The deletion's timestamp is when the grace ends.
    let grace_ms = match Time::parse(pod.at(&["metadata", "deletionTimestamp"]).text()) {
        Some(until) if deleting => until.ms_since(now).min(grace_seconds.unsigned_abs().saturating_mul(1000)),
        _ => memory.doom_grace_ms.unwrap_or(grace_seconds.unsigned_abs().saturating_mul(1000)),
    };
    let running: Vec<(&Str, &Seen)> = observed.containers.iter().filter(|(_, seen)| is_running(Some(seen))).collect();
    // Sidecars go after the main containers, the last started first.
    let sidecars: Vec<&str> =
        pod.at(&["spec", "initContainers"]).items().iter().map(|one| one["name"].text()).collect();
    let main = running.iter().any(|(name, _)| !sidecars.contains(&name.as_str()));
    let last_sidecar = sidecars.iter().rev().find(|name| running.iter().any(|(running, _)| running == *name));
    for (name, seen) in &running {
        let its_turn = if main { !sidecars.contains(&name.as_str()) } else { last_sidecar == Some(&name.as_str()) };
        if its_turn {
            commands.push(Command::Stop { container: (*name).clone(), id: seen.id.clone(), grace_ms: grace_ms.max(1) });
        }
    }
    if !running.is_empty() || memory.busy.iter().any(|part| part.starts_with("container/")) {
        return;
    }
    if deleting {
        if !memory.removed {
            commands.push(Command::Remove);
        } else {
            // Finalizers may hold the object; then it is asked for again now and then.
            match memory.farewell.map(|at| at.plus_ms(FAREWELL_MS)).filter(|next| *next > now) {
                Some(next) => memory.wake_by(next),
                None => commands.push(Command::Delete),
            }
        }
    } else if observed.sandbox_ready && !memory.ended {
        commands.push(Command::End);
    }
}

/// Whether it was told that the pod has ended: it does not begin again, whatever its policy says and whoever told.
fn is_final(pod: &Value) -> bool {
    matches!(pod.at(&["status", "phase"]).text(), "Succeeded" | "Failed")
}

/// Whether all containers ended and none will be started again.
pub fn is_over(pod: &Value, observed: &Observed) -> bool {
    let policy = policy_of(pod);
    if init_failed(pod, observed) {
        return true;
    }
    let containers = pod.at(&["spec", "containers"]).items();
    containers.iter().all(|container| {
        let seen = observed.containers.get(container["name"].text());
        seen.is_some_and(|seen| seen.state == SeenState::Exited && !restarts(container, policy, seen.exit_code))
    })
}

/// Whether an init container failed and is not tried again.
pub fn init_failed(pod: &Value, observed: &Observed) -> bool {
    let policy = init_policy(pod);
    let init = pod.at(&["spec", "initContainers"]).items().iter().filter(|container| !is_sidecar(container));
    init.into_iter().any(|container| {
        let seen = observed.containers.get(container["name"].text());
        let failed = seen.filter(|seen| seen.state == SeenState::Exited && seen.exit_code != 0);
        failed.is_some_and(|seen| !restarts(container, policy, seen.exit_code))
    })
}

/// What a pod's policy says of the containers that have none of their own.
pub fn policy_of(pod: &Value) -> &str {
    pod.at(&["spec", "restartPolicy"]).text()
}

/// A failed init container is tried again under both Always and OnFailure.
fn init_policy(pod: &Value) -> &'static str {
    if policy_of(pod) == "Never" { "Never" } else { "Always" }
}

/// Whether a container that ended with this code is started again: by the first of its rules that fits, by its own policy,
/// or by that of its pod.
pub fn restarts(container: &Value, policy: &str, exit_code: i32) -> bool {
    let fits = |rule: &&Value| {
        let codes = &rule["exitCodes"];
        let named = codes["values"].items().iter().any(|code| code.as_int() == Some(exit_code.into()));
        named == (codes["operator"].text() == "In")
    };
    if container["restartPolicyRules"].items().iter().find(fits).is_some_and(|rule| rule["action"].text() == "Restart")
    {
        return true;
    }
    match container["restartPolicy"].as_str().unwrap_or(policy) {
        "Never" => false,
        "OnFailure" => exit_code != 0,
        _ => true,
    }
}

/// All work is done: sidecars are stopped, the sandbox ends, the records stay for logs and status.
fn finish(observed: &Observed, memory: &mut Memory, commands: &mut Vec<Command>) {
    let mut running = false;
    for (name, seen) in observed.containers.iter().filter(|(_, seen)| is_running(Some(seen))) {
        running = true;
        commands.push(Command::Stop { container: name.clone(), id: seen.id.clone(), grace_ms: 30_000 });
    }
    if !running && observed.sandbox_ready && !memory.ended {
        commands.push(Command::End);
    }
}

fn prepare(memory: &mut Memory, now: Time, commands: &mut Vec<Command>) {
    let next = memory.prepare_failed_at.plus_ms(RETRY.delay_ms(memory.prepare_failures));
    if memory.prepare_failures > 0 && now < next {
        memory.wake_by(next);
        return;
    }
    commands.push(Command::Prepare);
}

/// Whether a container has come up: it runs, and its startup probe, if any, has said yes.
fn is_started(container: &Value, observed: &Observed, memory: &Memory) -> bool {
    let name = container["name"].text();
    let Some(seen) = observed.containers.get(name).filter(|seen| seen.state == SeenState::Running) else {
        return false;
    };
    if container.get("startupProbe").is_none() {
        return true;
    }
    let state = memory.containers.get(name).and_then(|memory| memory.probes.get(&ProbeKind::Startup));
    state.is_some_and(|state| state.id == seen.id && state.verdict == Some(true))
}

/// Init containers one after the other, then all others at once.
fn run(pod: &Value, observed: &Observed, memory: &mut Memory, now: Time, commands: &mut Vec<Command>) {
    let policy = policy_of(pod);
    let main = pod.at(&["spec", "containers"]).items();
    // Once a main container was started, init containers are done, whatever became of their records.
    let main_started = main.iter().any(|container| observed.containers.contains_key(container["name"].text()));
    for container in pod.at(&["spec", "initContainers"]).items() {
        let name = container["name"].text();
        let seen = observed.containers.get(name);
        if is_sidecar(container) {
            keep(container, seen, "Always", memory, now, commands);
            if !main_started && !is_started(container, observed, memory) {
                return;
            }
            continue;
        }
        if main_started {
            continue;
        }
        match seen {
            Some(seen) if seen.state == SeenState::Exited && seen.exit_code == 0 => continue,
            _ => keep(container, seen, init_policy(pod), memory, now, commands),
        }
        return;
    }
    for container in main {
        keep(container, observed.containers.get(container["name"].text()), policy, memory, now, commands);
    }
    for container in pod.at(&["spec", "ephemeralContainers"]).items() {
        keep(container, observed.containers.get(container["name"].text()), "Never", memory, now, commands);
    }
}

/// Starts a container that should run and does not, after its pause; stops one that a probe condemned.
fn keep(
    container: &Value,
    seen: Option<&Seen>,
    policy: &str,
    memory: &mut Memory,
    now: Time,
    commands: &mut Vec<Command>,
) {
    let name = Str::from(container["name"].text());
    let own = memory.container(&name);
    let attempt = match seen {
        Some(seen) if seen.state == SeenState::Running => {
            if own.condemned == seen.id {
                let grace_ms = probe_grace_ms(container);
                commands.push(Command::Stop { container: name, id: seen.id.clone(), grace_ms });
            } else if let Some(resize) = resize(container, seen) {
                let next = own.resize_failed_at.plus_ms(RETRY.delay_ms(own.resize_failures));
                match own.resize_failures > 0 && now < next {
                    true => memory.wake_by(next),
                    false => commands.push(resize),
                }
            }
            return;
        }
        Some(seen) if seen.state == SeenState::Created => return,
        Some(seen) => {
            if !restarts(container, policy, seen.exit_code) {
                return;
            }
            let pause = RESTART.delay_ms(own.restarts.saturating_sub(1));
            let next = seen.finished.unwrap_or(now).plus_ms(pause);
            if now < next {
                memory.wake_by(next);
                return;
            }
            seen.attempt + 1
        }
        None => 0,
    };
    if let Some(failure) = &own.failure {
        let pauses = if failure.reason.contains("Image") { PULL } else { RETRY };
        let next = own.failed_at.plus_ms(pauses.delay_ms(own.failures));
        if now < next {
            memory.wake_by(next);
            return;
        }
    }
    commands.push(Command::Start { container: name, attempt });
}

/// What brings a container the resources that its spec has now: new limits, or a new start where its policy asks for one.
pub fn resize(container: &Value, seen: &Seen) -> Option<Command> {
    let (has, wants) = (seen.limits.as_ref()?, crate::spec::resized(&container["resources"]));
    // No pod can give its limit up: one that is in force all the same was a mistake, and is no reason for a new start.
    let freed = wants.cpu_quota_us == Some(-1) && has.cpu_quota_us.is_some_and(|quota| quota != -1);
    let cpu =
        wants.cpu_shares != has.cpu_shares || !freed && wants.cpu_quota_us != Some(has.cpu_quota_us.unwrap_or(-1));
    let memory = wants.memory_limit_bytes.is_some() && wants.memory_limit_bytes != has.memory_limit_bytes;
    if !cpu && !memory && !freed {
        return None;
    }
    let restarts = container["resizePolicy"].items().iter().any(|policy| {
        let changed = match policy["resourceName"].text() {
            "cpu" => cpu,
            "memory" => memory,
            _ => false,
        };
        changed && policy["restartPolicy"].text() == "RestartContainer"
    });
    let (name, id) = (Str::from(container["name"].text()), seen.id.clone());
    Some(match restarts {
        true => Command::Stop { container: name, id, grace_ms: GRACE_SECONDS.unsigned_abs() * 1000 },
        false => Command::Resize { container: name, id },
    })
}

/// What a container has to end after a failed liveness or startup probe.
fn probe_grace_ms(container: &Value) -> u64 {
    let own = ["livenessProbe", "startupProbe"]
        .iter()
        .find_map(|key| container[*key]["terminationGracePeriodSeconds"].as_int());
    u64::try_from(own.unwrap_or(GRACE_SECONDS)).unwrap_or(0).saturating_mul(1000)
}

/// Asks the probes of these kinds whose time has come.
fn probe(
    pod: &Value,
    observed: &Observed,
    memory: &mut Memory,
    kinds: &[ProbeKind],
    now: Time,
    commands: &mut Vec<Command>,
) {
    for container in all_containers(pod) {
        let name = Str::from(container["name"].text());
        let Some(seen) = observed.containers.get(&name).filter(|seen| seen.state == SeenState::Running) else {
            continue;
        };
        let has_startup = container.get("startupProbe").is_some();
        let mut wakes = Vec::new();
        let own = memory.container(&name);
        for kind in kinds.iter().copied() {
            let Some(probe) = container.get(kind.key()) else { continue };
            let started = own
                .probes
                .get(&ProbeKind::Startup)
                .is_some_and(|state| state.id == seen.id && state.verdict == Some(true));
            // The others wait for the startup probe, which in turn is over once it said yes.
            if kind != ProbeKind::Startup && has_startup && !started {
                continue;
            }
            let fresh = || ProbeState::new(&seen.id, probe, seen.started.unwrap_or(now));
            let state = own.probes.entry(kind).or_insert_with(fresh);
            if state.id != seen.id {
                *state = fresh();
            }
            if kind == ProbeKind::Startup && state.verdict == Some(true) {
                continue;
            }
            if kind != ProbeKind::Readiness && state.verdict == Some(false) {
                own.condemned = seen.id.clone();
                wakes.push(now);
                continue;
            }
            if state.next <= now {
                commands.push(Command::Probe { container: name.clone(), id: seen.id.clone(), kind });
            } else {
                wakes.push(state.next);
            }
        }
        for at in wakes {
            memory.wake_by(at);
        }
    }
}
