//! What goes wrong: one row per fault in [`FAULTS`], and how much of it a world gets, one row per profile in
//! [`PROFILES`].

use base::{Clock, Rng};

use crate::backend::DiskPace;
use crate::check::Seen;
use crate::exec::Skew;
use crate::link::{Cut, Weather};
use crate::machine::Ills;
use crate::servers::server_name;
use crate::user::Wants;
use crate::world::{Settings, World};

/// Something that strikes a world now and ends by itself.
pub struct Fault {
    pub name: &'static str,
    pub strike: fn(&mut World, &mut Rng),
}

pub const FAULTS: &[Fault] = &[
    Fault {
        name: "server crash",
        strike: |world, rng| {
            world.crash_server(rng);
            world.plan(300 + rng.below(5_000), World::start_server);
        },
    },
    Fault {
        name: "controllers crash",
        strike: |world, rng| {
            world.crash_controllers();
            world.plan(200 + rng.below(3_000), World::start_controllers);
        },
    },
    Fault {
        name: "scheduler crash",
        strike: |world, rng| {
            world.crash_scheduler();
            world.plan(200 + rng.below(3_000), World::start_scheduler);
        },
    },
    Fault {
        name: "agent crash",
        strike: |world, rng| {
            let at = rng.below(world.machines.len() as u64) as usize;
            world.crash_agent(at);
            world.plan(200 + rng.below(6_000), move |world| world.start_agent(at));
        },
    },
    Fault {
        name: "machine loses power",
        strike: |world, rng| {
            let at = rng.below(world.machines.len() as u64) as usize;
            world.crash_agent(at);
            world.machines[at].lose_power();
            world.plan(2_000 + rng.below(60_000), move |world| world.start_agent(at));
        },
    },
    Fault { name: "cut off", strike: |world, rng| cut(world, rng, Cut::BOTH) },
    Fault { name: "not heard", strike: |world, rng| cut(world, rng, Cut { up: true, down: false }) },
    Fault { name: "hears nothing", strike: |world, rng| cut(world, rng, Cut { up: false, down: true }) },
    Fault {
        name: "someone stands still",
        strike: |world, rng| {
            let all = world.processes();
            let Some((name, process)) = all.get(rng.below(all.len() as u64) as usize).cloned() else { return };
            world.stand_still(name, process, 500 + rng.below(70_000));
        },
    },
    Fault {
        name: "clock jumps",
        strike: |world, rng| {
            let offset_ms = 1_000 + rng.below(300_000) as i64;
            let offset_ms = if rng.chance(500) { offset_ms } else { -offset_ms };
            let skew = Skew { offset_ms, drift_ppm: 0, since: world.exec.now() };
            clock(world, rng, skew);
        },
    },
    Fault {
        name: "clock drifts",
        strike: |world, rng| {
            let drift_ppm = rng.below(40_000) as i64 - 20_000;
            let skew = Skew { offset_ms: 0, drift_ppm, since: world.exec.now() };
            clock(world, rng, skew);
        },
    },
    Fault { name: "flipped bit", strike: |world, rng| world.rot(rng) },
    Fault {
        name: "slow disk",
        strike: |world, rng| {
            let before = *crate::exec::lock(&world.pace);
            *crate::exec::lock(&world.pace) = DiskPace { sync_ms: 20, jitter_ms: 50 + rng.below(1_500) };
            world.trouble_disk("slow", true);
            world.plan(500 + rng.below(5_000), move |world| {
                *crate::exec::lock(&world.pace) = before;
                world.trouble_disk("slow", false);
            });
        },
    },
    Fault {
        name: "failed sync",
        strike: |world, rng| {
            world.truth.show(&Seen::DiskFails);
            world.disk.fail_syncs(1 + rng.below(2) as u32);
        },
    },
    Fault {
        name: "full disk",
        strike: |world, rng| {
            world.truth.show(&Seen::DiskFails);
            world.disk.set_capacity(Some(world.disk.used_bytes()));
            world.trouble_disk("full", true);
            world.plan(500 + rng.below(4_000), |world| {
                world.disk.set_capacity(None);
                world.trouble_disk("full", false);
            });
        },
    },
    Fault { name: "history forgotten", strike: |world, _| world.forget_history() },
    Fault {
        name: "store crash",
        strike: |world, rng| {
            world.crash_store(rng);
            world.plan(300 + rng.below(5_000), World::start_store);
        },
    },
    Fault {
        name: "leader crash",
        strike: |world, rng| {
            let at = world.leader().unwrap_or(0);
            world.crash_member(at);
            world.plan(300 + rng.below(9_000), move |world| world.start_member(at));
        },
    },
    Fault {
        name: "leader stands still",
        strike: |world, rng| {
            let Some(at) = world.leader() else { return };
            let Some(process) = world.member(at) else { return };
            world.stand_still(server_name(at), process, 100 + rng.below(6_000));
        },
    },
    Fault {
        name: "server restarts",
        strike: |world, rng| {
            let at = rng.below(world.servers() as u64) as usize;
            world.stop_member(at);
            world.plan(100 + rng.below(1_500), move |world| {
                world.crash_member(at);
                world.start_member(at);
            });
        },
    },
    Fault {
        name: "server cut off",
        strike: |world, rng| {
            let at = rng.below(world.servers() as u64) as usize;
            let how = [Cut::BOTH, Cut { up: true, down: false }, Cut { up: false, down: true }];
            let how = how[rng.below(3) as usize];
            world.cut_from_store(at, how, 200 + rng.below(20_000));
        },
    },
    Fault { name: "server replaced", strike: World::replace_server },
    Fault { name: "old server left behind", strike: World::leave_behind },
    Fault { name: "agent replaced", strike: World::replace_agent },
    Fault {
        name: "node lost for long",
        strike: |world, rng| {
            let at = rng.below(world.machines.len() as u64) as usize;
            let ms = 60_000 + rng.below(120_000);
            match rng.below(3) {
                0 => cut_for(world, format!("agent {}", world.machines[at].name), Cut::BOTH, ms),
                1 => {
                    world.crash_agent(at);
                    world.plan(ms, move |world| world.start_agent(at));
                }
                _ => {
                    let name = world.machines[at].name.clone();
                    let found = world.processes().into_iter().find(|(known, _)| *known == name);
                    found.into_iter().for_each(|(name, process)| world.stand_still(name, process, ms));
                }
            }
        },
    },
];

/// Breaks one client's link for a while.
fn cut(world: &mut World, rng: &mut Rng, how: Cut) {
    let clients = world.clients();
    let client = clients[rng.below(clients.len() as u64) as usize].clone();
    cut_for(world, client, how, 500 + rng.below(50_000));
}

fn cut_for(world: &mut World, client: String, how: Cut, ms: u64) {
    world.exec.note(format!("{client} is cut off: {how:?}"));
    world.net.cut(&client, how);
    world.plan(ms, move |world| world.net.cut(&client, Cut::NONE));
}

/// Sets one host's clock wrong for a while.
fn clock(world: &mut World, rng: &mut Rng, skew: Skew) {
    let hosts = world.hosts();
    let host = hosts[rng.below(hosts.len() as u64) as usize].clone();
    world.exec.note(format!("the clock of {host}: {} ms, {} ppm", skew.offset_ms, skew.drift_ppm));
    world.exec.set_clock(&host, skew);
    world.plan(1_000 + rng.below(60_000), move |world| world.exec.set_clock(&host, Skew::default()));
}

/// How many faults a world plans.
pub fn planned_faults(settings: &Settings) -> u64 {
    crate::world::fault_plan(settings).len() as u64
}

/// Faults of the table, and the mean time between two of a sort.
type Rows = &'static [(&'static str, u64)];

/// A sort of world.
#[derive(Debug)]
pub struct Profile {
    pub name: &'static str,
    pub nodes: u64,
    /// Servers that share a store; 0 for one server with a store of its own.
    pub servers: usize,
    /// The servers begin as older programs, and somebody writes what a newer data version stores in another form.
    pub upgrade: bool,
    /// How long the user works and faults strike.
    pub work_ms: u64,
    /// Steps of the user in that time.
    pub steps: u64,
    /// How often the user's pods are asked whether they are ready.
    pub probe_seconds: i64,
    /// Pods of stateful sets ask to be ended where their node is cut off.
    pub leashed: bool,
    pub wants: Wants,
    /// Somebody deletes nodes that run, which come again.
    pub removes: bool,
    /// Workloads have budgets, and somebody empties nodes as those allow.
    pub guards: bool,
    /// There is no room for all, or may be none: some pods may wait for ever.
    pub crowded: bool,
    pub weather: Weather,
    pub ills: Ills,
    /// What each machine has.
    pub cpu_milli: i64,
    pub faults: &'static [Rows],
}

impl Profile {
    /// The mean time between two steps of the user.
    pub fn pace_ms(&self) -> u64 {
        self.work_ms / self.steps.max(1)
    }
}

const FINE: Weather = Weather { lost: 0, doubled: 0, late: 0, answer_lost: 0, watch_cut: 0, latency_ms: 3 };
const ROUGH: Weather = Weather { lost: 15, doubled: 20, late: 20, answer_lost: 15, watch_cut: 15, latency_ms: 40 };
const HEALTHY: Ills = Ills { crash: 0, hang: 0, pull: 0, stall: 0, stubborn: 0, undead: 0 };
const SICKLY: Ills = Ills { crash: 60, hang: 60, pull: 60, stall: 20, stubborn: 60, undead: 30 };

const CRASHES: Rows = &[
    ("server crash", 12_000),
    ("controllers crash", 15_000),
    ("scheduler crash", 20_000),
    ("agent crash", 15_000),
    ("history forgotten", 25_000),
];
const DISKS: Rows = &[
    ("slow disk", 12_000),
    ("failed sync", 10_000),
    ("full disk", 20_000),
    ("flipped bit", 8_000),
    ("server crash", 15_000),
];
const NODES: Rows = &[("machine loses power", 25_000), ("agent crash", 12_000), ("cut off", 15_000)];
const LINKS: Rows = &[("cut off", 15_000), ("not heard", 12_000), ("hears nothing", 12_000)];
const PAUSES: Rows = &[("someone stands still", 8_000), ("server crash", 25_000), ("cut off", 25_000)];
const CLOCKS: Rows = &[("clock jumps", 8_000), ("clock drifts", 15_000), ("server crash", 30_000)];
/// What any world may suffer, seldom.
const ANY: Rows = &[
    ("agent crash", 30_000),
    ("machine loses power", 50_000),
    ("cut off", 40_000),
    ("not heard", 40_000),
    ("hears nothing", 40_000),
    ("someone stands still", 30_000),
    ("clock jumps", 40_000),
    ("clock drifts", 50_000),
    ("slow disk", 30_000),
    ("failed sync", 30_000),
    ("full disk", 50_000),
    ("flipped bit", 30_000),
    ("history forgotten", 50_000),
];
const ALL: &[Rows] = &[&[("server crash", 25_000), ("controllers crash", 30_000), ("scheduler crash", 30_000)], ANY];

/// What a cluster of an hour may suffer: everything, at the pace of machines that are mostly well.
const SELDOM: &[Rows] = &[&[
    ("server crash", 600_000),
    ("controllers crash", 600_000),
    ("scheduler crash", 600_000),
    ("agent crash", 300_000),
    ("machine loses power", 300_000),
    ("cut off", 300_000),
    ("not heard", 600_000),
    ("hears nothing", 600_000),
    ("someone stands still", 300_000),
    ("clock jumps", 600_000),
    ("clock drifts", 600_000),
    ("slow disk", 300_000),
    ("failed sync", 600_000),
    ("full disk", 600_000),
    ("flipped bit", 600_000),
    ("history forgotten", 600_000),
]];

const SERVERS: Rows = &[
    ("leader crash", 12_000),
    ("leader stands still", 15_000),
    ("server cut off", 15_000),
    ("server restarts", 20_000),
    ("store crash", 30_000),
    ("cut off", 40_000),
    ("history forgotten", 40_000),
];
const SHARED: &[Rows] = &[
    &[
        ("leader crash", 25_000),
        ("leader stands still", 30_000),
        ("server cut off", 25_000),
        ("server restarts", 40_000),
        ("store crash", 40_000),
    ],
    ANY,
];

const UPGRADE: Rows = &[
    ("server replaced", 4_000),
    ("old server left behind", 20_000),
    ("agent replaced", 8_000),
    ("leader crash", 25_000),
    ("leader stands still", 25_000),
    ("server cut off", 20_000),
    ("store crash", 40_000),
    ("cut off", 40_000),
    ("history forgotten", 25_000),
    ("someone stands still", 25_000),
];

/// Nodes that others have to do without for as long as it takes to give their pods up, while clocks are wrong. Whoever counts
/// that time must live as long: other faults are seldom there.
const LOST: Rows = &[
    ("node lost for long", 40_000),
    ("someone stands still", 60_000),
    ("clock jumps", 60_000),
    ("clock drifts", 60_000),
];

const BASE: Profile = Profile {
    name: "calm",
    nodes: 3,
    servers: 0,
    upgrade: false,
    work_ms: 40_000,
    steps: 22,
    probe_seconds: 2,
    leashed: false,
    wants: Wants::Room,
    removes: false,
    guards: false,
    crowded: false,
    weather: FINE,
    ills: HEALTHY,
    cpu_milli: 2_600,
    faults: &[],
};

/// An hour in which somebody changes something once a minute, and pods are probed as often as Kubernetes does by default.
/// It has 41,000 to 47,000 writes, of which 37,000 are renewals of the nodes' leases.
const HOUR: Profile =
    Profile { name: "hundred-hour", nodes: 100, work_ms: 3_600_000, steps: 60, probe_seconds: 10, ..BASE };

/// The same with a change every ten seconds. It has about 65,000 writes: 37,000 renewals of the nodes' leases, 10,000 of pods'
/// status, 7,000 that make, bind and end pods, 5,500 of workloads' status, 3,500 events, 1,100 of nodes' status; and 1,200
/// reads of the user.
const BUSY_HOUR: Profile = Profile { name: "hundred-hour-busy", steps: 360, ..HOUR };

const RANKED: Profile =
    Profile { name: "ranked", steps: 60, work_ms: 80_000, wants: Wants::Rank, cpu_milli: 1_200, crowded: true, ..BASE };

/// All profiles; the first is the one of a world without faults.
pub const PROFILES: &[Profile] = &[
    BASE,
    Profile { name: "lossy", weather: ROUGH, ..BASE },
    Profile { name: "crashes", faults: &[CRASHES], ..BASE },
    Profile { name: "disks", faults: &[DISKS], ..BASE },
    Profile { name: "nodes", ills: SICKLY, faults: &[NODES], ..BASE },
    Profile { name: "links", faults: &[LINKS], ..BASE },
    Profile { name: "pauses", faults: &[PAUSES], ..BASE },
    Profile { name: "clocks", faults: &[CLOCKS], ..BASE },
    Profile { name: "all", weather: ROUGH, ills: SICKLY, faults: ALL, ..BASE },
    // Three servers that share a store; the second sort with everything else that can go wrong.
    Profile { name: "servers", servers: 3, faults: &[SERVERS], ..BASE },
    Profile { name: "shared", servers: 3, weather: ROUGH, ills: SICKLY, faults: SHARED, ..BASE },
    // Servers and agents are replaced by newer ones and put back, while everything else may go wrong, too.
    Profile { name: "upgrade", servers: 3, upgrade: true, faults: &[UPGRADE], ..BASE },
    // One small node that is always full.
    Profile { name: "tight", nodes: 1, steps: 60, cpu_milli: 600, crowded: true, ..BASE },
    Profile { name: "busy", work_ms: 120_000, steps: 150, ..BASE },
    // Pods and nodes that do not go with each other.
    Profile { name: "picky", nodes: 4, steps: 60, work_ms: 80_000, wants: Wants::Places, ..BASE },
    Profile {
        name: "picky-all",
        nodes: 4,
        steps: 60,
        work_ms: 80_000,
        wants: Wants::Places,
        weather: ROUGH,
        ills: SICKLY,
        faults: ALL,
        ..BASE
    },
    // Pods that want to be spread over zones, which nodes move between.
    Profile { name: "spread", nodes: 6, steps: 60, work_ms: 80_000, wants: Wants::Spread, ..BASE },
    Profile {
        name: "spread-all",
        nodes: 6,
        steps: 60,
        work_ms: 80_000,
        wants: Wants::Spread,
        weather: ROUGH,
        ills: SICKLY,
        faults: ALL,
        ..BASE
    },
    // More pods than there is room for, of which some matter more than others.
    RANKED,
    Profile { name: "ranked-all", weather: ROUGH, ills: SICKLY, faults: ALL, ..RANKED },
    // The same with budgets that say how many of a workload may be missing.
    Profile { name: "guarded", nodes: 4, guards: true, ..RANKED },
    Profile { name: "guarded-all", nodes: 4, guards: true, weather: ROUGH, ills: SICKLY, faults: ALL, ..RANKED },
    // Nodes are lost for so long that others start what ran there.
    Profile {
        name: "lost",
        nodes: 4,
        steps: 60,
        work_ms: 300_000,
        leashed: true,
        ills: SICKLY,
        faults: &[LOST, &[("server crash", 150_000), ("controllers crash", 150_000)]],
        ..BASE
    },
    Profile {
        name: "lost-servers",
        nodes: 4,
        servers: 3,
        steps: 60,
        work_ms: 300_000,
        leashed: true,
        weather: ROUGH,
        faults: &[LOST, &[("leader crash", 150_000), ("leader stands still", 150_000), ("server cut off", 60_000)]],
        ..BASE
    },
    // Nodes that are deleted and come again. Nobody is cut off or stands still for long here: who hears nothing does not end
    // what others may begin.
    Profile { name: "removals", nodes: 4, steps: 60, work_ms: 160_000, removes: true, ..BASE },
    Profile {
        name: "removals-all",
        nodes: 4,
        steps: 60,
        work_ms: 160_000,
        removes: true,
        // What comes twice or late may make a node anew of which somebody has said meanwhile that it is gone.
        weather: Weather { doubled: 0, late: 0, ..ROUGH },
        ills: Ills { undead: 0, ..SICKLY },
        faults: &[CRASHES, &[("machine loses power", 40_000), ("slow disk", 40_000), ("failed sync", 40_000)]],
        ..BASE
    },
    // Hundreds of machines, which are what most of such a world is busy with.
    Profile { name: "hundred", nodes: 100, steps: 100, work_ms: 120_000, ..BASE },
    Profile { name: "hundred-all", nodes: 100, steps: 100, work_ms: 120_000, weather: ROUGH, faults: ALL, ..BASE },
    // The same at the pace of a real cluster.
    HOUR,
    BUSY_HOUR,
    Profile {
        name: "hundred-hour-all",
        weather: Weather { lost: 1, doubled: 1, late: 1, answer_lost: 1, watch_cut: 1, latency_ms: 10 },
        ills: Ills { crash: 6, hang: 6, pull: 6, stall: 2, stubborn: 6, undead: 3 },
        faults: SELDOM,
        ..BUSY_HOUR
    },
    Profile { name: "large", nodes: 300, steps: 200, work_ms: 120_000, weather: ROUGH, faults: ALL, ..BASE },
    Profile { name: "long", work_ms: 600_000, steps: 300, weather: ROUGH, ills: SICKLY, faults: ALL, ..BASE },
];

/// The names of [`PROFILES`], for whoever offers a choice of them.
pub const PROFILE_NAMES: [&str; PROFILES.len()] = {
    let (mut names, mut at) = ([""; PROFILES.len()], 0);
    while at < PROFILES.len() {
        names[at] = PROFILES[at].name;
        at += 1;
    }
    names
};

/// The profile of this name.
pub fn profile(name: &str) -> Option<&'static Profile> {
    PROFILES.iter().find(|profile| profile.name == name)
}
