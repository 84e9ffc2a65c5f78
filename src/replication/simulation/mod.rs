//! Three nodes that are killed, cut off and switched off at any moment, drawn from seeds.
//!
//! A schedule is one thread that steps the stores and carries bytes between the sessions in an order of
//! its own. `DURALOG_SCHEDULES` sets how many there are to be, `DURALOG_SEED` runs one alone and tells
//! its story.

mod authority;
mod checker;
mod network;
mod node;
#[path = "../../../tests/support/rng.rs"]
mod rng;
mod schedule;
mod stranger;

use super::options::{Ack, NodeOptions};
use super::{AckLevel, NodeId, Secret};
use crate::clock::ManualClock;
use crate::config::{FlushMode, Retention, StoreConfig, WriteMode};
use crate::disk::SimDisk;
use authority::Authority;
use checker::{Checker, QUEUES};
use network::{NODES, Network};
use node::Node;
use rng::Rng;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Schedules that failed once, run first for ever.
const SEEDS: &str = include_str!("../../../tests/seeds/replication");

/// What all nodes of a schedule have in common.
#[derive(Debug, Clone)]
struct Settings {
    ack: Ack,
    /// Some primaries wait for nobody.
    mixed: bool,
    level: AckLevel,
    needed: usize,
    strict: bool,
    max_lag: u64,
    segment_size: u64,
    retention: bool,
    queues: usize,
    /// Most bytes of a body.
    largest: u64,
    events: u64,
}

impl Settings {
    fn draw(rng: &mut Rng) -> Self {
        let ack = if rng.one_in(6) { Ack::Async } else { Ack::Sync };
        let level = if rng.one_in(4) { AckLevel::InMemory } else { AckLevel::Durable };
        let segment_size = rng.pick(&[4096, 4096, 8192]);
        // An async primary may delete what no replica has.
        let mixed = rng.one_in(4);
        let retention = ack == Ack::Sync && !mixed && rng.one_in(3);
        Self {
            ack,
            mixed,
            level,
            needed: 1 + rng.index(2),
            strict: rng.one_in(6),
            max_lag: rng.pick(&[2048, 1 << 20, 1 << 20]),
            segment_size,
            retention,
            queues: QUEUES,
            largest: if retention { rng.pick(&[400, 3600]) } else { rng.pick(&[100, 400, 3600]) },
            events: if rng.one_in(4) { 400 + rng.below(600) } else { 100 + rng.below(300) },
        }
    }

    fn in_memory(&self) -> bool {
        self.level == AckLevel::InMemory
    }

    fn options(&self, node: NodeId) -> NodeOptions {
        NodeOptions::new(node).cluster(7).secret(Secret::new("all"))
    }

    /// Small files, so that little is enough to fill them.
    fn config(&self, rng: &mut Rng) -> StoreConfig {
        let mode = if rng.one_in(3) {
            let interval = Duration::from_millis(10);
            FlushMode::Async { interval, least_pages: 1, thorough_interval: interval }
        } else {
            FlushMode::sync()
        };
        let mut config = StoreConfig::new("/store")
            .segment_size(self.segment_size)
            .flush_mode(mode)
            .write_mode(rng.pick(&[WriteMode::Pwrite, WriteMode::Pwrite, WriteMode::Mmap]))
            .consume_queue_file_size(400);
        config.index_enable = false;
        config.queue_checkpoint_bytes = 4096;
        config.log.max_in_flight_bytes = 64 << 10;
        config.sync_replica_timeout = Duration::from_millis(300);
        if self.retention {
            let most = self.segment_size * rng.pick(&[2, 2, 4]);
            let retention =
                Retention::max_total_bytes(most).check_interval(Duration::from_millis(1));
            config.retention = Some(retention.pin_by_replicas(rng.one_in(3)));
        }
        config
    }
}

/// How often what happened.
#[derive(Debug, Default)]
struct Counts(BTreeMap<&'static str, u64>);

impl Counts {
    fn add(&mut self, what: &'static str) {
        *self.0.entry(what).or_default() += 1;
    }

    fn add_if(&mut self, happened: bool, what: &'static str) {
        if happened {
            self.add(what);
        }
    }

    fn join(&mut self, other: Self) {
        other.0.into_iter().for_each(|(what, n)| *self.0.entry(what).or_default() += n);
    }
}

/// One schedule.
struct Simulation {
    rng: Rng,
    clock: Arc<ManualClock>,
    settings: Settings,
    nodes: Vec<Node>,
    /// The primary of another cluster, once someone has met it, and what befalls it: whatever that is, the
    /// rest of the schedule stays the same.
    stranger: Option<Node>,
    stranger_rng: Rng,
    /// For what was thought of later: the rest of a schedule stays the same.
    later_rng: Rng,
    network: Network,
    authority: Authority,
    checker: Checker,
    counts: Counts,
    sessions: u64,
    tells: bool,
}

impl Simulation {
    fn new(seed: u64, tells: bool) -> Self {
        let mut rng = Rng(seed);
        let clock = Arc::new(ManualClock::new(1_700_000_000_000));
        let settings = Settings::draw(&mut rng);
        let node = |number| {
            let disk = SimDisk::new(rng.next());
            Node::new(number, disk, settings.config(&mut rng), clock.clone())
        };
        let nodes = (0..NODES).map(node).collect();
        Self {
            rng,
            nodes,
            stranger: None,
            stranger_rng: Rng(seed),
            later_rng: Rng(!seed),
            network: Network::default(),
            authority: Authority::default(),
            checker: Checker::new(settings.segment_size),
            counts: Counts::default(),
            sessions: 0,
            settings,
            clock,
            tells,
        }
    }

    /// Tells the story when one schedule runs alone.
    fn trace(&self, line: impl FnOnce(&Self) -> String) {
        if self.tells {
            println!("{}", line(self));
        }
    }
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is not a number: {text}")))
}

fn run(seed: u64) -> Counts {
    std::panic::catch_unwind(|| Simulation::new(seed, false).run()).unwrap_or_else(|_| {
        panic!("schedule {seed} failed; replay it with DURALOG_SEED={seed}");
    })
}

/// What has to happen often for a run to mean anything.
const FAULTS: [&str; 23] = [
    "connections broken",
    "connections half open",
    "crashed in the middle of a call",
    "crashed while it opened",
    "cuts carried out",
    "delays",
    "disks full",
    "disks replaced by empty ones",
    "failing calls",
    "failing syncs",
    "failovers",
    "inquiries",
    "kills",
    "one-way partitions",
    "power cuts",
    "restarts of a replica far behind",
    "sessions taken over by another",
    "slow disks",
    "strangers met",
    "truncations",
    "views of an earlier opening read again",
    "two-way partitions",
    "visits without replication",
];

fn report(counts: &Counts, schedules: u64) {
    println!("{schedules} schedules");
    for (what, n) in &counts.0 {
        println!("{n:>12}  {what}");
    }
    let often = |what: &&str| counts.0.get(*what).copied().unwrap_or(0) >= schedules / 200;
    let rare: Vec<_> = FAULTS.into_iter().filter(|what| !often(what)).collect();
    assert!(rare.is_empty(), "hardly ever: {rare:?}");
}

#[test]
fn what_is_confirmed_outlasts_every_failure_and_is_the_same_on_all_nodes() {
    if let Some(seed) = number("DURALOG_SEED") {
        report(&Simulation::new(seed, true).run(), 1);
        return;
    }
    let mut counts = Counts::default();
    for seed in SEEDS.split_whitespace() {
        counts.join(run(seed.parse().expect("a seed")));
    }
    let default = if cfg!(debug_assertions) { 300 } else { 20_000 };
    let wanted = number("DURALOG_SCHEDULES").unwrap_or(default);
    let (next, failed) = (AtomicU64::new(1), AtomicBool::new(false));
    let work = || {
        let mut mine = Counts::default();
        while !failed.load(Ordering::Relaxed) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed > wanted {
                break;
            }
            let done = std::panic::catch_unwind(|| run(seed));
            mine.join(done.unwrap_or_else(|panic| {
                failed.store(true, Ordering::Relaxed);
                std::panic::resume_unwind(panic)
            }));
        }
        mine
    };
    std::thread::scope(|scope| {
        let workers = std::thread::available_parallelism().map_or(1, |n| n.get());
        let handles: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        for handle in handles {
            counts.join(handle.join().expect("a schedule failed, see above"));
        }
    });
    report(&counts, wanted);
}
