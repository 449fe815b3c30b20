//! Who is silent: a machine that is told what was heard and asked from time to time.

use std::collections::{BTreeMap, BTreeSet};

use crate::packet::{Keys, Packet, Signer};

/// How often a node sends.
pub const EVERY_MS: u64 = 250;
/// A node that was not heard for so long is silent. Three datagrams may get lost, and one be late.
pub const PATIENCE_MS: u64 = 900;
/// How often the listener should be asked while somebody is late, or when there are many.
pub const LOOK_MS: u64 = 50;
/// A look that comes this much later than it should means that the listener was held up.
const HELD_UP_MS: u64 = LOOK_MS;
/// Up to so many nodes each datagram is worth a look of its own.
const FEW: usize = 4;
/// When nobody is expected, it is looked this often all the same.
const REST_MS: u64 = 60_000;
/// When so many nodes, in percent of all, would fall silent within the patience, the way to them is more likely at fault
/// than they are, and they get [`CROWD_PATIENCE_MS`].
const CROWD_PERCENT: usize = 40;
/// Fewer nodes are no crowd.
const CROWD_MIN: usize = 10;
const CROWD_PATIENCE_MS: u64 = 4 * PATIENCE_MS;

struct Node {
    signer: Signer,
    sequence: u64,
    heard_ms: u64,
    silent: bool,
}

/// All nodes that were ever heard. Times are milliseconds of any clock that does not jump.
pub struct Listener {
    keys: Keys,
    nodes: BTreeMap<Box<str>, Node>,
    /// When the next look should be.
    due_ms: Option<u64>,
    /// Datagrams of any sort since a time that is at most [`LOOK_MS`] ago.
    came: (u64, usize),
}

/// Until when, or what, a listener may rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// This long, whatever comes.
    For(u64),
    /// This long, or until a datagram comes.
    UntilHeard(u64),
}

impl Listener {
    pub fn new(keys: Keys) -> Listener {
        Listener { keys, nodes: BTreeMap::new(), due_ms: None, came: (0, 0) }
    }

    /// Takes a datagram. Returns whether it was a sign of life: proven, and newer than the last one.
    pub fn hear(&mut self, bytes: &[u8], now_ms: u64) -> bool {
        let (since_ms, came) = self.came;
        self.came = if now_ms.saturating_sub(since_ms) < LOOK_MS { (since_ms, came + 1) } else { (now_ms, 1) };
        let Some(packet) = Packet::read(bytes) else { return false };
        if let Some(node) = self.nodes.get_mut(packet.node) {
            let good = packet.sequence > node.sequence && node.signer.proves(&packet);
            if good {
                (node.sequence, node.heard_ms) = (packet.sequence, now_ms);
            }
            return good;
        }
        let signer = Signer::new(&self.keys.of(packet.node));
        if !signer.proves(&packet) {
            return false;
        }
        let node = Node { signer, sequence: packet.sequence, heard_ms: now_ms, silent: false };
        self.nodes.insert(packet.node.into(), node);
        true
    }

    /// Looks who is silent by now; whatever came before `now_ms` must have been heard. Returns whether anything changed.
    pub fn look(&mut self, now_ms: u64) -> bool {
        let late = self.due_ms.map_or(0, |due| now_ms.saturating_sub(due));
        if late > HELD_UP_MS {
            // What was sent to one who could not listen may be lost.
            for node in self.nodes.values_mut() {
                node.heard_ms = now_ms.min(node.heard_ms + late);
            }
        }
        let quiet_ms = |node: &Node| now_ms.saturating_sub(node.heard_ms);
        let due = self.nodes.values().filter(|node| !node.silent && quiet_ms(node) >= PATIENCE_MS / 2).count();
        let well = self.nodes.values().filter(|node| !node.silent).count();
        let crowd = due >= CROWD_MIN && due * 100 >= well * CROWD_PERCENT;
        let patience_ms = if crowd { CROWD_PATIENCE_MS } else { PATIENCE_MS };
        let mut changed = false;
        for node in self.nodes.values_mut() {
            let silent = match node.silent {
                false => quiet_ms(node) >= patience_ms,
                // It was heard again, or not.
                true => quiet_ms(node) >= PATIENCE_MS,
            };
            changed |= silent != node.silent;
            node.silent = silent;
        }
        let (Rest::For(rest_ms) | Rest::UntilHeard(rest_ms)) = self.rest(now_ms);
        self.due_ms = Some(now_ms + rest_ms);
        changed
    }

    /// How long the listener may rest after a look. Who is heard as often as he should be wakes it himself; it looks by the
    /// clock for those who are late, so that one who was held up meanwhile notices it.
    pub fn rest(&self, now_ms: u64) -> Rest {
        // Strangers, too, must not wake it all the time.
        let crowded = now_ms.saturating_sub(self.came.0) < LOOK_MS && self.came.1 > FEW;
        if crowded || self.nodes.len() > FEW {
            return Rest::For(LOOK_MS);
        }
        let expected = self.nodes.values().filter(|node| !node.silent).map(|node| node.heard_ms + EVERY_MS + LOOK_MS);
        let rest_ms = expected.min().map_or(REST_MS, |first| first.saturating_sub(now_ms));
        Rest::UntilHeard(rest_ms.clamp(LOOK_MS, REST_MS))
    }

    /// Those who are silent.
    pub fn silent(&self) -> BTreeSet<String> {
        self.nodes.iter().filter(|(_, node)| node.silent).map(|(name, _)| name.to_string()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct World {
        listener: Listener,
        keys: Keys,
        now_ms: u64,
        sequence: u64,
    }

    impl World {
        fn new() -> World {
            World { listener: Listener::new(Keys::new(b"s")), keys: Keys::new(b"s"), now_ms: 1_000, sequence: 0 }
        }

        fn packet(&self, node: &str) -> Vec<u8> {
            let mut bytes = Vec::new();
            Signer::new(&self.keys.of(node)).write(node, self.sequence, &mut bytes);
            bytes
        }

        /// Lets time go by in steps of a look; `nodes` send as often as they should.
        fn pass(&mut self, ms: u64, nodes: &[String]) -> BTreeSet<String> {
            for _ in 0..ms / LOOK_MS {
                self.now_ms += LOOK_MS;
                if self.now_ms.is_multiple_of(EVERY_MS) {
                    self.sequence += 1;
                    for node in nodes {
                        let packet = self.packet(node);
                        assert!(self.listener.hear(&packet, self.now_ms));
                    }
                }
                self.listener.look(self.now_ms);
            }
            self.listener.silent()
        }
    }

    fn names(range: std::ops::Range<usize>) -> Vec<String> {
        range.map(|number| format!("node-{number}")).collect()
    }

    #[test]
    fn a_node_that_stops_is_noticed_and_taken_back() {
        let mut world = World::new();
        let all = names(0..3);
        assert!(world.pass(5_000, &all).is_empty());
        assert!(world.pass(PATIENCE_MS - EVERY_MS, &all[1..]).is_empty());
        assert_eq!(world.pass(2 * EVERY_MS, &all[1..]), BTreeSet::from(["node-0".to_owned()]));
        assert!(world.pass(EVERY_MS, &all).is_empty());
    }

    #[test]
    fn a_listener_that_was_held_up_blames_nobody() {
        let mut world = World::new();
        let all = names(0..3);
        world.pass(2_000, &all);
        // Nothing of what came meanwhile was kept.
        world.now_ms += 5_000;
        world.listener.look(world.now_ms);
        assert!(world.listener.silent().is_empty());
        assert!(world.pass(2_000, &all).is_empty());
        assert_eq!(world.pass(2_000, &all[..2]).len(), 1, "it still listens");
    }

    #[test]
    fn few_nodes_wake_the_listener_and_many_do_not() {
        let mut world = World::new();
        let all = names(0..FEW + 1);
        assert_eq!(world.listener.rest(world.now_ms), Rest::UntilHeard(REST_MS));
        world.pass(EVERY_MS, &all[..1]);
        assert_eq!(world.listener.rest(world.now_ms), Rest::UntilHeard(EVERY_MS + LOOK_MS));
        world.pass(2 * EVERY_MS, &[]);
        assert_eq!(world.listener.rest(world.now_ms), Rest::UntilHeard(LOOK_MS), "it is late");
        world.pass(4 * EVERY_MS, &[]);
        assert_eq!(world.listener.rest(world.now_ms), Rest::UntilHeard(REST_MS), "it is silent");
        for _ in 0..=FEW {
            world.listener.hear(b"of a stranger", world.now_ms);
        }
        assert_eq!(world.listener.rest(world.now_ms), Rest::For(LOOK_MS));
        assert_eq!(world.listener.rest(world.now_ms + LOOK_MS), Rest::UntilHeard(REST_MS));
        world.pass(EVERY_MS, &all);
        assert_eq!(world.listener.rest(world.now_ms), Rest::For(LOOK_MS));
    }

    #[test]
    fn a_crowd_gets_more_time() {
        let mut world = World::new();
        let all = names(0..100);
        world.pass(2_000, &all);
        assert!(world.pass(2_000, &all[..50]).is_empty());
        assert!(world.pass(1_000, &all).is_empty(), "the way is there again");
        assert_eq!(world.pass(PATIENCE_MS + EVERY_MS, &all[..90]).len(), 10, "a tenth is no crowd");
        assert_eq!(world.pass(CROWD_PATIENCE_MS + EVERY_MS, &all[..20]).len(), 80);
    }

    #[test]
    fn neither_forged_nor_repeated_datagrams_are_signs_of_life() {
        let mut world = World::new();
        world.sequence = 5;
        let mut forged = world.packet("a");
        let packet = forged.clone();
        *forged.last_mut().unwrap() ^= 1;
        assert!(!world.listener.hear(&forged, 1_000));
        assert!(world.listener.nodes.is_empty(), "nothing is kept of what is not proven");
        assert!(world.listener.hear(&packet, 1_000));
        assert!(!world.listener.hear(&packet, 1_001));
        world.sequence = 4;
        assert!(!world.listener.hear(&world.packet("a"), 1_002));
    }
}
