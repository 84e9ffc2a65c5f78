//! What was delayed or sent in a transaction, on a node that was primary and becomes it again: what it had
//! delivered may be in the part of its log that was cut meanwhile.

#[path = "support/passive.rs"]
mod passive;

use duralog::clock::ManualClock;
use duralog::delivery::TransactionState;
use duralog::disk::SimDisk;
use duralog::message::format::{DELAY_GROUP, SCHEDULE_TOPIC};
use duralog::replication::{Refusal, ReplicatedLog};
use duralog::tables::{ConsumerOffsets, DelayOffsets, Tables};
use duralog::{Environment, Error, Message, Next, Store, StoreConfig, StoreWorker};
use passive::Passive;
use std::sync::Arc;
use std::time::Duration;

const TRANSACTION_GROUP: &str = "CID_RMQ_SYS_TRANS";

struct World {
    disk: SimDisk,
    clock: Arc<ManualClock>,
}

impl World {
    fn new() -> Self {
        Self { disk: SimDisk::new(1), clock: Arc::new(ManualClock::new(1_700_000_000_000)) }
    }

    fn config() -> StoreConfig {
        let mut config = StoreConfig::new("/store").segment_size(64 << 10);
        config.index_enable = false;
        config
    }

    fn environment(&self) -> Environment {
        Environment::on(self.disk.shared()).clock(self.clock.clone()).stepped()
    }

    fn open(&self) -> Store {
        let store = Store::open_in(Self::config(), self.environment()).unwrap();
        store.deliver_delayed().unwrap();
        store
    }

    fn pass(&self, store: &Store, time: Duration) {
        self.clock.advance(time);
        work(store);
    }

    /// The log as another primary's replica, and what that is told to do.
    fn follow(&self, order: impl FnOnce(&dyn ReplicatedLog)) {
        let replicator = Arc::new(Passive::default());
        let store =
            Store::open_replicated(Self::config(), self.environment(), replicator.clone()).unwrap();
        let log = replicator.log();
        order(&*log);
        drop(store.close());
        drop(store);
        // Which carries it out.
        let store =
            Store::open_replicated(Self::config(), self.environment(), replicator.clone()).unwrap();
        store.close().unwrap();
    }

    fn tables(&self) -> Tables {
        Tables::new_in("/store", self.environment())
    }
}

fn work(store: &Store) {
    use StoreWorker::{Delivery, Dispatch, Flush, Offsets, Upkeep};
    for _ in 0..4 {
        for worker in [Upkeep, Flush, Dispatch, Delivery, Offsets] {
            while store.step(worker) == Next::Now {}
        }
    }
}

fn bodies(store: &Store) -> Vec<String> {
    let found = store.get("orders", 0, 0, 100).unwrap().messages;
    found.into_iter().map(|message| String::from_utf8(message.body).unwrap()).collect()
}

fn end(store: &Store) -> u64 {
    store.flush().unwrap();
    store.stats().watermarks.durable
}

#[test]
fn what_was_delivered_in_the_part_that_is_cut_is_delivered_again() {
    let world = World::new();
    let store = world.open();
    for n in 0..3 {
        let level = Message::new("orders", format!("level {n}")).delay_level(1);
        drop(store.submit_delayed(level).unwrap());
        let timer = Message::new("orders", format!("timer {n}")).delay(Duration::from_secs(2));
        drop(store.submit_delayed(timer).unwrap());
    }
    work(&store);
    let before = end(&store);
    (0..20).for_each(|_| world.pass(&store, Duration::from_secs(1)));
    let all = ["level 0", "level 1", "level 2", "timer 0", "timer 1", "timer 2"];
    assert_eq!(bodies(&store), all);
    store.close().unwrap();
    drop(store);

    world.follow(|log| log.truncate(before).unwrap());
    let told = world.tables().load::<DelayOffsets>().unwrap().table;
    assert_eq!(told.get(1).unwrap_or(0), 0, "a broker would pass over them, too");
    let store = world.open();
    assert_eq!(store.max_offset("orders", 0).unwrap_or(0), 0);
    (0..3).for_each(|_| world.pass(&store, Duration::from_secs(1)));
    let mut found = bodies(&store);
    found.sort();
    assert_eq!(found, all);
}

#[test]
fn a_half_message_that_was_decided_in_the_part_that_is_cut_is_asked_about() {
    let world = World::new();
    let store = world.open();
    let open = |store: &Store| {
        store.transactional_producer("service", |_| TransactionState::Rollback).open().unwrap()
    };
    let producer = open(&store);
    let half = producer.begin(Message::new("orders", "paid")).unwrap();
    work(&store);
    let before = end(&store);
    half.rollback().unwrap();
    (0..20).for_each(|_| world.pass(&store, Duration::from_secs(1)));
    assert_eq!(store.committed_offset(TRANSACTION_GROUP, "RMQ_SYS_TRANS_HALF_TOPIC", 0), Some(1));
    drop((half, producer));
    store.close().unwrap();
    drop(store);

    world.follow(|log| log.truncate(before).unwrap());
    let told = world.tables().load::<ConsumerOffsets>().unwrap().table;
    let of = |told: duralog::tables::QueueProgress<'_>| told.group == TRANSACTION_GROUP;
    assert!(!told.iter().any(of), "a broker would pass over it, too");
    let store = world.open();
    let producer = open(&store);
    assert_eq!(store.transactions().unwrap().stats().open, 1);
    (0..20).for_each(|_| world.pass(&store, Duration::from_secs(1)));
    assert_eq!(store.transactions().unwrap().stats().rolled_back, 1);
    drop(producer);
}

#[test]
fn a_cut_that_is_refused_has_nothing_delivered_again_and_a_restart_forgets_what_was() {
    let world = World::new();
    let store = world.open();
    drop(store.submit_delayed(Message::new("orders", "level").delay_level(1)).unwrap());
    work(&store);
    (0..20).for_each(|_| world.pass(&store, Duration::from_secs(1)));
    assert_eq!(bodies(&store), ["level"]);
    store.close().unwrap();
    drop(store);
    world.follow(|log| {
        let refused = log.truncate(log.end() + 1).unwrap_err();
        assert!(matches!(refused, Error::Refused(Refusal::OutOfPlace { .. })), "{refused}");
        assert!(matches!(log.restart(1), Err(Error::Refused(Refusal::OutOfPlace { .. }))));
    });
    let store = world.open();
    assert_eq!(store.committed_offset(DELAY_GROUP, SCHEDULE_TOPIC, 0), Some(1));
    store.close().unwrap();
    drop(store);
    world.follow(|log| log.restart(64 << 10).unwrap());
    let store = world.open();
    assert_eq!(store.committed_offset(DELAY_GROUP, SCHEDULE_TOPIC, 0), None);
}
