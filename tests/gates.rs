//! What a put may cost, told in numbers that do not depend on how busy the machine is.

#[path = "support/sim.rs"]
mod sim;

use duralog::disk::SimDisk;
use duralog::{Message, PutStatus, Store, StoreConfig, StoreWorker, SyncMethod, WriteMode};
use sim::*;
use std::thread;
use std::time::Duration;

const THREADS: u64 = 16;
const EACH: u64 = 100;

/// What some puts made the disk do to the log.
#[derive(Debug)]
struct Cost {
    puts: u64,
    record_bytes: u64,
    syncs: u64,
    written: u64,
}

/// Puts from `threads` threads at once, each waiting for its answer.
fn cost(threads: u64, each: u64, config: StoreConfig) -> (SimDisk, Store, Cost) {
    let disk = disk();
    let store = open(&disk, config);
    put(&store, 0);
    disk.set_sync_latency(Duration::from_millis(1));
    let (syncs, written, end) =
        (syncs_of_log(&disk), written_to_log(&disk), store.stats().watermarks.appended);
    thread::scope(|scope| {
        for thread in 0..threads {
            let store = &store;
            scope.spawn(move || {
                for n in 0..each {
                    put(store, 1 + thread * each + n);
                }
            });
        }
    });
    let cost = Cost {
        puts: threads * each,
        record_bytes: store.stats().watermarks.appended - end,
        syncs: syncs_of_log(&disk) - syncs,
        written: written_to_log(&disk) - written,
    };
    (disk, store, cost)
}

fn roomy() -> StoreConfig {
    config().segment_size(4 << 20)
}

#[test]
fn sixteen_producers_share_their_syncs() {
    for mode in [WriteMode::Pwrite, WriteMode::Mmap] {
        let (_disk, store, cost) = cost(THREADS, EACH, roomy().write_mode(mode));
        assert!(cost.syncs * 4 <= cost.puts, "{cost:?}");
        assert!(cost.syncs > 0);
        let group = store.stats().group_size;
        assert!(group >= 4.0, "groups of {group}");
    }
}

#[test]
fn a_lone_producer_gets_one_sync_for_each_put() {
    let (_disk, _store, cost) = cost(1, 50, roomy());
    assert_eq!(cost.syncs, cost.puts, "{cost:?}");
}

#[test]
fn pipelined_puts_of_one_thread_share_their_syncs() {
    let disk = disk();
    let store = open(&disk, roomy());
    put(&store, 0);
    disk.set_sync_latency(Duration::from_millis(1));
    let syncs = syncs_of_log(&disk);
    let tickets: Vec<_> =
        (1..1000).map(|id| store.submit(message(id)).expect("there is room")).collect();
    for ticket in tickets {
        assert_eq!(ticket.wait().expect("no failure").status, PutStatus::PutOk);
    }
    let syncs = syncs_of_log(&disk) - syncs;
    assert!(syncs * 4 <= 1000, "{syncs} syncs");
}

#[test]
fn little_more_is_written_than_the_records() {
    for (threads, each) in [(1, 100), (THREADS, EACH)] {
        let (_disk, _store, cost) = cost(threads, each, roomy());
        let limit = cost.record_bytes * 11 / 10 + cost.syncs * 4096;
        assert!(cost.written >= cost.record_bytes, "{cost:?}");
        assert!(cost.written <= limit, "{cost:?}: more than {limit}");
    }
}

#[test]
fn little_more_is_written_than_large_records() {
    let disk = disk();
    let store = open(&disk, roomy());
    put(&store, 0);
    let before = (written_to_log(&disk), store.stats().watermarks.appended, syncs_of_log(&disk));
    for n in 0..50 {
        let result = store.put(Message::new(TOPIC, vec![n; 16 << 10])).expect("it fits");
        assert_eq!(result.status, PutStatus::PutOk);
    }
    let written = written_to_log(&disk) - before.0;
    let records = store.stats().watermarks.appended - before.1;
    let limit = records * 11 / 10 + (syncs_of_log(&disk) - before.2) * 4096;
    assert!((records..=limit).contains(&written), "{written} for {records}");
}

/// Puts without background work, so that every call on the disk is one that a put needs.
fn calls_of(write: WriteMode, method: SyncMethod, config: StoreConfig) {
    let disk = disk();
    let config = config.write_mode(write).sync_method(method);
    let store = open_stepped(&disk, config.clone()).expect("the store opens");
    let before = disk.stats();
    for id in 0..10 {
        let ticket = store.try_submit(message(id)).expect("there is room");
        store.step(StoreWorker::Flush);
        store.flush().expect("the disk is sound");
        let result = ticket.try_get().expect("no failure").expect("it was synced");
        assert_eq!(result.status, PutStatus::PutOk);
    }
    let after = disk.stats();
    let writes = (after.writes - before.writes, after.stores - before.stores);
    match write {
        WriteMode::Pwrite => assert_eq!(writes, (10, 0), "{write:?} {method:?}"),
        WriteMode::Mmap => {
            assert_eq!((writes.0, writes.1 >= 10), (0, true), "{write:?} {method:?}")
        }
    }
    let syncs = [
        after.fdatasyncs - before.fdatasyncs,
        after.fsyncs - before.fsyncs,
        after.msyncs - before.msyncs,
    ];
    let expected = match method {
        SyncMethod::Fdatasync => [10, 0, 0],
        SyncMethod::Fsync => [0, 10, 0],
        SyncMethod::Msync => [0, 0, 10],
    };
    assert_eq!(syncs, expected, "{write:?} {method:?}");
    let (_disk, store) = reopen_after_power_cut(&disk, store, config);
    assert_eq!(ids(&store), (0..10).collect::<Vec<_>>());
}

const PAIRS: [(WriteMode, SyncMethod); 6] = [
    (WriteMode::Pwrite, SyncMethod::Fdatasync),
    (WriteMode::Pwrite, SyncMethod::Fsync),
    (WriteMode::Pwrite, SyncMethod::Msync),
    (WriteMode::Mmap, SyncMethod::Fdatasync),
    (WriteMode::Mmap, SyncMethod::Fsync),
    (WriteMode::Mmap, SyncMethod::Msync),
];

#[test]
fn every_mode_writes_and_syncs_as_it_says_under_sync_flush() {
    for (write, method) in PAIRS {
        calls_of(write, method, config());
    }
}

#[test]
fn every_mode_writes_and_syncs_as_it_says_under_async_flush() {
    for (write, method) in PAIRS {
        calls_of(write, method, unsynced());
    }
}

#[test]
fn every_mode_keeps_its_messages_over_many_segments() {
    for (write, method) in PAIRS {
        let disk = disk();
        let config = config().segment_size(4096).write_mode(write).sync_method(method);
        let store = open(&disk, config.clone());
        (0..100).for_each(|id| assert_eq!(put(&store, id), id));
        let (_disk, store) = reopen_after_power_cut(&disk, store, config);
        assert_eq!(ids(&store), (0..100).collect::<Vec<_>>(), "{write:?} {method:?}");
    }
}
