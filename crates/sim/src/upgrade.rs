//! Rolling upgrades: servers and agents are replaced by newer programs, one after the other, and put back.
//!
//! An older server is the same program that knows fewer data versions ([`server::Options::knows`]): it reads, writes and
//! enters as the older one did. Agents have no data version: what they read comes through the API.

use base::Rng;
use drive::servers::LEASE_MS;
use server::pack;
use store::Format;

use crate::link::Cut;
use crate::servers::server_name;
use crate::world::World;

/// What a leader of a world waits for before it raises the version.
pub const SETTLE_MS: u64 = 3_000;

impl World {
    /// The data version that the store has now.
    pub fn format(&self) -> Format {
        let stored = self.cluster.hub.up().and_then(|(_, stepped)| stepped.value(Format::KEY));
        stored.map_or(Format::FIRST, |text| Format::parse(&text))
    }

    /// Puts another program in a server's place: mostly the newer one, sometimes the older one back, as one may while the
    /// version has not been raised; afterwards somebody tries it all the same now and then, and has to think again.
    pub fn replace_server(&mut self, rng: &mut Rng) {
        if self.cluster.away {
            return;
        }
        let old: Vec<usize> = (0..self.servers()).filter(|at| self.cluster.installed[*at] < pack::NEWEST).collect();
        let raised = self.format() >= pack::NEWEST;
        let back = rng.chance(if raised { 150 } else { 300 });
        let at = match old.get(rng.below(old.len().max(1) as u64) as usize) {
            Some(at) if !back => *at,
            _ => rng.below(self.servers() as u64) as usize,
        };
        if rng.chance(600) {
            self.stop_member(at);
        }
        self.install(at, if back { Format::FIRST } else { pack::NEWEST }, 100 + rng.below(1_200));
        if back && raised {
            self.install(at, pack::NEWEST, 2_000 + rng.below(4_000));
        }
    }

    /// An older server is not there while all others become newer ones, and comes back when nobody waits for it any more:
    /// what it is told then it must not read.
    pub fn leave_behind(&mut self, rng: &mut Rng) {
        let old: Vec<usize> = (0..self.servers()).filter(|at| self.cluster.installed[*at] < pack::NEWEST).collect();
        let Some(&at) = old.get(rng.below(old.len().max(1) as u64) as usize) else { return };
        let Some(process) = self.member(at) else { return };
        let ms = LEASE_MS + SETTLE_MS + 4_000 + rng.below(8_000);
        match rng.chance(500) {
            true => self.stand_still(server_name(at), process, ms),
            false => self.cut_from_store(at, Cut::BOTH, ms),
        }
        self.cluster.away = true;
        self.plan(ms + 2_000, |world| world.cluster.away = false);
        for other in (0..self.servers()).filter(|other| *other != at) {
            self.install(other, pack::NEWEST, 100 + rng.below(1_500));
        }
    }

    /// In `ms`, the server is one that knows `knows`.
    fn install(&mut self, at: usize, knows: Format, ms: u64) {
        self.plan(ms, move |world| {
            world.crash_member(at);
            world.exec.note(format!("{} is replaced by one that knows version {knows}", server_name(at)));
            world.cluster.installed[at] = knows;
            world.start_member(at);
        });
    }

    /// Puts another program in an agent's place; what runs on the machine goes on.
    pub fn replace_agent(&mut self, rng: &mut Rng) {
        let at = rng.below(self.machines.len() as u64) as usize;
        self.crash_agent(at);
        self.plan(50 + rng.below(900), move |world| world.start_agent(at));
    }

    /// Ends the upgrade: every server is the newest, and those that could not go on are started again.
    pub fn finish_upgrade(&mut self) {
        for at in 0..self.servers() {
            if self.cluster.installed[at] < pack::NEWEST {
                self.crash_member(at);
                self.cluster.installed[at] = pack::NEWEST;
            }
        }
    }

    /// What the upgrade still lacks.
    pub fn unraised(&self) -> Option<String> {
        let format = self.format();
        let told = || format!("all servers know version {}, and the data still has {format}", pack::NEWEST);
        (self.is_shared() && format < pack::NEWEST).then(told)
    }
}
