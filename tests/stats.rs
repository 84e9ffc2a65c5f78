//! What a store says of itself: each figure beside one that was got another way.

#[path = "support/hooked.rs"]
mod hooked;
#[path = "support/sim.rs"]
mod sim;

use duralog::clock::ManualClock;
use duralog::disk::{SimCall, SimDisk};
use duralog::message::{Draft, RecordLayout, Stamp};
use duralog::{Environment, Message, Next, Store, StoreConfig, StoreWorker};
use hooked::{Hook, Hooked};
use sim::*;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

const SEGMENT: u64 = 16 << 10;

/// A disk on which a sync of records takes as long as it is told to, on a clock that no other thing
/// moves.
#[derive(Debug)]
struct Slow {
    clock: Arc<ManualClock>,
    millis: AtomicU64,
}

impl Hook for Slow {
    fn before(&self, call: SimCall) -> io::Result<()> {
        if call == SimCall::Sync && thread::current().name() == Some("duralog-sync") {
            self.clock.advance(Duration::from_millis(self.millis.load(Ordering::SeqCst)));
        }
        Ok(())
    }
}

#[test]
fn latencies_are_those_of_puts_and_syncs() {
    const USUAL: u64 = 3;
    const LONGEST: u64 = 64;
    let clock = Arc::new(ManualClock::new(1_700_000_000_000));
    let slow = Arc::new(Slow { clock: clock.clone(), millis: AtomicU64::new(USUAL) });
    let disk = Hooked::over(disk().shared(), slow.clone());
    // No roll: its sync would be one more. And no deadline: the clock runs ahead of the threads.
    let config = config().segment_size(4 << 20).sync_flush_timeout(LONG * 60);
    let store = Store::open_in(config, Environment::on(disk).clock(clock)).expect("it opens");
    let fresh = store.stats();
    assert_eq!((fresh.put_latency.samples, fresh.put_latency.max), (0, Duration::ZERO));
    assert_eq!((fresh.syncs, fresh.sync_mean, fresh.sync_max), (0, Duration::ZERO, Duration::ZERO));

    let usual = Duration::from_millis(USUAL);
    (0..900).for_each(|id| _ = put(&store, id));
    let stats = store.stats();
    assert_eq!(stats.syncs, 900, "one for each put of a lone producer");
    assert_eq!((stats.sync_mean, stats.sync_max), (usual, usual));
    let latency = stats.put_latency;
    assert!((900 / 32..=900 / 8).contains(&latency.samples), "one in 16: {latency:?}");
    assert_eq!([latency.p50, latency.p99, latency.max], [usual; 3]);

    slow.millis.store(LONGEST, Ordering::SeqCst);
    (900..1000).for_each(|id| _ = put(&store, id));
    let longest = Duration::from_millis(LONGEST);
    let stats = store.stats();
    assert_eq!(stats.sync_max, longest);
    let mean = Duration::from_millis(900 * USUAL + 100 * LONGEST) / 1000;
    assert_eq!(stats.sync_mean, mean);
    let after = stats.put_latency;
    assert!(after.samples > latency.samples);
    // Half of the puts are usual ones still, and one of ten is not; within a factor of two.
    assert!((usual..=2 * usual).contains(&after.p50), "{after:?}");
    assert_eq!([after.p99, after.max], [longest; 2]);
}

/// A store whose threads the test runs.
fn stepped(disk: &SimDisk, config: StoreConfig) -> Store {
    open_stepped(disk, config).expect("the store opens")
}

fn run(store: &Store, worker: StoreWorker) {
    while store.step(worker) == Next::Now {}
}

#[test]
fn queues_are_durable_as_far_as_the_next_open_need_not_dispatch() {
    let disk = disk();
    let mut config = config();
    config.queue_checkpoint_bytes = 4096;
    let store = stepped(&disk, config.clone());
    let mut ends = Vec::new();
    while ends.last().is_none_or(|end| *end < 6000) {
        drop(store.try_submit(message(ends.len() as u64)).expect("there is room"));
        ends.push(store.stats().watermarks.appended);
    }
    run(&store, StoreWorker::Flush);
    run(&store, StoreWorker::Dispatch);
    assert_eq!(store.stats().queues_durable, 0, "the queues are in memory alone");
    run(&store, StoreWorker::Checkpoint);
    let durable = store.stats().queues_durable;
    assert_eq!(Some(&durable), ends.last());
    // What comes then is dispatched, but no checkpoint is due.
    for id in 0..5 {
        drop(store.try_submit(message(id)).expect("there is room"));
    }
    run(&store, StoreWorker::Flush);
    run(&store, StoreWorker::Dispatch);
    run(&store, StoreWorker::Checkpoint);
    assert_eq!(store.stats().queues_durable, durable);
    let killed = disk.kill();
    drop(store);
    let store = stepped(&killed, config.clone());
    assert_eq!(store.recovery().redispatched_records, 5);
    assert_eq!(store.stats().queues_durable, durable);
    let end = store.stats().watermarks.appended;
    store.close().expect("the store closes");
    drop(store);
    let store = stepped(&killed, config);
    assert_eq!(store.stats().queues_durable, end, "closing makes the queues durable");
    assert_eq!(store.recovery().redispatched_records, 0);
}

#[test]
fn segments_and_the_first_byte_kept_are_those_on_disk() {
    let disk = disk();
    let store = open(&disk, config());
    assert_eq!((store.stats().min_offset, store.stats().segments), (0, 1));
    let mut id = 0;
    while store.stats().rolls < 3 {
        put(&store, id);
        id += 1;
    }
    assert_eq!((store.stats().min_offset, store.stats().segments), (0, 4));
    store.close().expect("the store closes");
    drop(store);
    let segments = || {
        let files = disk.files().into_iter();
        files.filter(|path| path.parent().is_some_and(|dir| dir.ends_with("commitlog"))).count()
    };
    disk.drop_file(segment(0)).expect("it is there");
    let left = segments();
    let store = stepped(&disk, config());
    assert_eq!((store.stats().min_offset, store.stats().segments), (SEGMENT, left));
    assert!(left >= 3);
}

#[test]
fn records_that_no_queue_can_take_are_counted() {
    let disk = disk();
    let store = stepped(&disk, unsynced());
    drop(store.try_submit(message(0)).expect("there is room"));
    assert_eq!(store.stats().undispatchable, 0);
    let end = store.stats().watermarks.appended;
    store.close().expect("the store closes");
    drop(store);
    // As another program would: two records that no queue can take, then one that has its place.
    let host = config().log.store_host.into();
    let layout = RecordLayout {
        long_topics: true,
        store_host: host,
        born_host: host,
        record_crc: false,
        max_message_size: 1 << 10,
        max_record_size: 1 << 14,
    };
    let mut bytes = Vec::new();
    for (topic, queue_offset) in [("no_topic", 0), (TOPIC, 1 << 40), (TOPIC, 1)] {
        let physical_offset = end + bytes.len() as u64;
        let stamp = Stamp { physical_offset, queue_offset, store_timestamp: 1 };
        let start = bytes.len();
        let message = Message::new(topic, body(1));
        Draft::new(&message, &layout).expect("valid").encode(&stamp, &mut bytes);
        // A name that no directory can have; the checksum is that of the body alone.
        let record = &mut bytes[start..];
        let found = record.windows(8).position(|name| name == b"no_topic");
        if let Some(at) = found {
            record[at..at + 8].copy_from_slice(b"../topic");
        }
    }
    let at = end as usize;
    disk.edit(segment(0), |log| log[at..at + bytes.len()].copy_from_slice(&bytes))
        .expect("it is there");
    let store = stepped(&disk, unsynced());
    assert_eq!(store.stats().watermarks.appended, end + bytes.len() as u64);
    assert_eq!(store.stats().undispatchable, 2);
    assert_eq!(ids(&store), [0, 1]);
}

#[test]
fn health_tells_how_much_room_is_left() {
    let disk = disk();
    let store = stepped(&disk, config());
    disk.set_capacity(disk.used() + 12_345);
    assert_eq!(store.health().available_bytes, Some(12_345));
    disk.set_capacity(disk.used());
    assert_eq!(store.health().available_bytes, Some(0));
}
