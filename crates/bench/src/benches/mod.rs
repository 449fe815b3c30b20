//! The benches, one file each, and their table.

mod all_at_once;
mod api;
mod churn;
mod detect;
mod dns;
mod flood;
mod growth;
mod idle;
mod latency;
mod list;
mod pack;
mod pods;
mod scale;
mod schedule;
mod services;
mod store;
mod takeover;
mod watch;

use crate::frame::Bench;

/// All benches.
pub const BENCHES: &[Bench] = &[
    store::BENCH,
    api::BENCH,
    schedule::BENCH,
    list::BENCH,
    watch::BENCH,
    latency::BENCH,
    scale::BENCH,
    pack::BENCH,
    churn::BENCH,
    detect::BENCH,
    growth::BENCH,
    idle::BENCH,
    pods::BENCH,
    dns::BENCH,
    services::BENCH,
    takeover::BENCH,
    crate::torture::BENCH,
    flood::BENCH,
    all_at_once::BENCH,
];
