//! Of several servers on one etcd the one that leads is killed: how soon the next has placed a pod.
//!
//! Each time a pod is made right after the kill, through another server, whose watch says when it is placed. What died
//! begins anew before the next kill. Beside it stands how long placing takes when nobody dies.

use std::time::Duration;

use base::Rng;

use crate::error::Error;
use crate::frame::{Bench, Run, Want, figure, option, runtime};
use crate::numbers::percentile;
use crate::torture::NAMESPACE;
use crate::torture::hands::Hands;
use crate::torture::members::Ring;

/// The longest pause before a kill: it comes at any time between two signs of life.
const PAUSE_MAX_MS: u64 = 500;

pub const BENCH: Bench = Bench {
    name: "takeover",
    about: "The leader of three servers on one etcd is killed, again and again: until the next has placed a pod",
    options: &[
        option("kills", "24", "2", "How often a leader is killed"),
        option("members", "3", "1", "Members of the etcd"),
        option("seed", "1", "1", "When, between two signs of life"),
    ],
    figures: &[
        figure("takeover_p50_ms", Want::AtMost(3_000.0, 500.0)),
        figure("takeover_max_ms", Want::AtMost(3_000.0, 500.0)),
        figure("usual_p50_ms", Want::Nothing),
    ],
    peer: None,
    needs_root: true,
    run,
};

fn run(run: &mut Run) -> Result<(), Error> {
    runtime()?.block_on(measure(run))
}

async fn measure(run: &mut Run) -> Result<(), Error> {
    let mut ring = Ring::start(run, run.count("members")?, Duration::ZERO).await?;
    let doors = ring.doors();
    doors[0].namespace(NAMESPACE).await?;
    let _hands = Hands::start(&doors);
    let (mut rng, mut usual_us, mut took_us) = (Rng::new(run.number("seed")?), Vec::new(), Vec::new());
    // The first waits for the nodes.
    ring.time_placing("first", false).await?;
    for kill in 0..run.number("kills")? {
        usual_us.push(crate::load::micros(ring.time_placing(&format!("usual-{kill}"), false).await?));
        tokio::time::sleep(Duration::from_millis(rng.below(PAUSE_MAX_MS))).await;
        let took = ring.time_placing(&format!("after-{kill}"), true).await?;
        run.say(format!("placed {:.0} ms after the kill", took.as_secs_f64() * 1e3));
        took_us.push(crate::load::micros(took));
    }
    run.figure("takeover_p50_ms", percentile(&mut took_us, 0.5) / 1e3);
    run.figure("takeover_max_ms", percentile(&mut took_us, 1.0) / 1e3);
    run.figure("usual_p50_ms", percentile(&mut usual_us, 0.5) / 1e3);
    Ok(())
}
