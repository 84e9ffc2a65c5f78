//! A process that is killed leaves directory entries that nobody has made durable, and a power cut may
//! take them from its successor.

#[path = "support/sim.rs"]
mod sim;

use duralog::disk::{Cut, CutMoment, Disk, Fault, SimCall, SimDisk};
use duralog::message::{Draft, Host, RecordLayout, Stamp};
use duralog::{Acknowledged, Error, Store, StoreConfig, StoreWorker};
use sim::*;

fn put_stepped(store: &Store, id: u64) -> Acknowledged {
    let ticket = loop {
        match store.try_submit(message(id)) {
            Ok(ticket) => break ticket,
            Err(Error::SegmentNotReady { .. }) => drop(store.step(StoreWorker::Upkeep)),
            Err(other) => panic!("{other}"),
        }
    };
    store.step(StoreWorker::Flush);
    ticket.try_get().expect("no failure").expect("answered").ok().expect("acknowledged")
}

/// The disk after a kill that was planned, or after one now if the calls were too few for that.
fn killed(disk: &SimDisk) -> (bool, SimDisk) {
    let reached = disk.is_down();
    (reached, if reached { disk.reboot(Cut::losing_all()) } else { disk.kill() })
}

#[test]
fn what_is_put_after_a_kill_in_the_first_open_survives_a_power_cut() {
    for call in 1.. {
        let disk = SimDisk::new(7);
        disk.kill_at(call, CutMoment::Middle);
        drop(open_stepped(&disk, config()));
        let (reached, disk) = killed(&disk);
        let store = open_stepped(&disk, config()).expect("the store opens");
        put_stepped(&store, 1);
        let next = disk.cut_power(Cut::losing_all());
        drop(store);
        let store = open_stepped(&next, config()).expect("the store opens");
        assert_eq!(ids(&store), [1], "killed at call {call}: {:?}", disk.cuts());
        if !reached {
            assert!(call > 20, "only {call} calls");
            break;
        }
    }
}

/// Opens, puts and rolls, until the disk goes down or there is enough; what was acknowledged.
fn work(disk: &SimDisk, config: StoreConfig) -> Vec<u64> {
    let mut acknowledged = Vec::new();
    let Ok(store) = open_stepped(disk, config) else { return acknowledged };
    for id in 5..40 {
        if let Ok(ticket) = store.try_submit(message(id)) {
            store.step(StoreWorker::Flush);
            let answer = ticket.try_get().ok().flatten();
            // Not what the dead say.
            if answer.is_some_and(|put| put.ok().is_ok()) && !disk.is_down() {
                acknowledged.push(id);
            }
        }
        for worker in [StoreWorker::Upkeep, StoreWorker::Dispatch, StoreWorker::Checkpoint] {
            store.step(worker);
        }
    }
    acknowledged
}

#[test]
fn what_is_put_after_a_kill_anywhere_survives_a_power_cut() {
    let config = config().segment_size(4096);
    for call in 1.. {
        let disk = SimDisk::new(call);
        let store = open_stepped(&disk, config.clone()).expect("the store opens");
        for id in 0..5 {
            put_stepped(&store, id);
        }
        let disk = {
            let next = disk.kill();
            drop(store);
            next
        };
        disk.kill_at(call, CutMoment::Middle);
        let acknowledged = work(&disk, config.clone());
        let (reached, disk) = killed(&disk);
        let store = open_stepped(&disk, config.clone()).expect("the store opens");
        let mut expected = ids(&store);
        assert!(acknowledged.iter().all(|id| expected.contains(id)), "killed at call {call}");
        for id in 100..103 {
            put_stepped(&store, id);
            expected.push(id);
        }
        let next = disk.cut_power(Cut::losing_all());
        drop(store);
        let store = open_stepped(&next, config.clone()).expect("the store opens");
        assert_eq!(ids(&store), expected, "killed at call {call}: {:?}", disk.cuts());
        assert!(store.verify().expect("the log can be read").is_ok());
        if !reached {
            assert!(call > 100, "only {call} calls");
            break;
        }
    }
}

/// Three messages, of which a kill has torn the last: of its own checksum, which comes last, a part is
/// missing, and its body is whole.
fn torn() -> SimDisk {
    let disk = SimDisk::new(3);
    let store = open_stepped(&disk, config()).expect("the store opens");
    let [.., last] = [0, 1, 2].map(|id| put_stepped(&store, id));
    let killed = disk.kill();
    let mut log = killed.bytes(segment(0)).expect("it is there");
    log[last.end_offset as usize - 3..][..3].fill(0);
    killed.put_file(segment(0), &log).expect("there is room");
    killed
}

#[test]
fn a_call_that_fails_while_a_torn_record_is_looked_at_does_not_make_it_whole() {
    for call in [SimCall::Open, SimCall::Read] {
        for nth in 1.. {
            let disk = torn();
            disk.inject(Fault::on(call).nth(nth));
            let opened = open_stepped(&disk, config());
            disk.clear_faults();
            if let Ok(store) = &opened {
                assert!(store.recovery().cut.is_some());
                assert_eq!(ids(store), [0, 1], "call {nth} of {call:?} failed");
            }
            let failed = opened.is_err();
            drop(opened);
            let store = open_stepped(&disk, config()).expect("the store opens");
            assert_eq!(ids(&store), [0, 1], "after call {nth} of {call:?} failed");
            if !failed && nth > 40 {
                break;
            }
        }
    }
}

/// What RocketMQ 4.9 does between its start and a kill: it says `lock` in the lock file, leaves an
/// `abort` that it finds as it is, and writes records that have no checksum of the whole.
fn java_writes(disk: &SimDisk, id: u64, after: &Acknowledged) {
    let mut lock = disk.bytes("/store/lock").expect("the store was open");
    lock[..4].copy_from_slice(b"lock");
    disk.put_file("/store/lock", &lock).expect("there is room");
    let layout = RecordLayout {
        long_topics: true,
        store_host: Host::new([127, 0, 0, 1], 10911),
        born_host: Host::new([127, 0, 0, 1], 50000),
        record_crc: false,
        max_message_size: 4096,
        max_record_size: 8192,
    };
    let stamp = Stamp {
        physical_offset: after.end_offset,
        queue_offset: after.queue_offset + 1,
        store_timestamp: after.store_timestamp,
    };
    let message = message(id);
    let mut record = Vec::new();
    Draft::new(&message, &layout).expect("a message").encode(&stamp, &mut record);
    let mut log = disk.bytes(segment(0)).expect("the log is there");
    let at = after.end_offset as usize;
    log[at..at + record.len()].copy_from_slice(&record);
    disk.put_file(segment(0), &log).expect("there is room");
}

#[test]
fn what_a_java_broker_wrote_between_two_kills_is_kept() {
    for mode in modes() {
        let disk = SimDisk::new(7);
        let store = open_stepped(&disk, config()).expect("the store opens");
        put_stepped(&store, 1);
        let last = put_stepped(&store, 2);
        let disk = disk.kill();
        drop(store);
        java_writes(&disk, 3, &last);
        let store = open_stepped(&disk, config().recovery_mode(mode)).expect("the store opens");
        assert_eq!(ids(&store), [1, 2, 3], "{mode:?}: {:?}", store.recovery());
        // From here on the records are ours again, after a power cut, too.
        let lock = disk.durable_bytes("/store/lock").expect("the store is open");
        assert_ne!(&lock[..4], b"lock");
    }
}

#[test]
fn what_a_java_broker_wrote_between_a_close_and_its_own_kill_is_kept() {
    for mode in modes() {
        let disk = SimDisk::new(7);
        let store = open_stepped(&disk, config()).expect("the store opens");
        put_stepped(&store, 1);
        let last = put_stepped(&store, 2);
        store.close().expect("the store closes");
        java_writes(&disk, 3, &last);
        disk.put_file("/store/abort", b"4711").expect("there is room");
        let store = open_stepped(&disk, config().recovery_mode(mode)).expect("the store opens");
        assert_eq!(ids(&store), [1, 2, 3], "{mode:?}: {:?}", store.recovery());
    }
}

/// A Java broker recovers before it sees the lock, and deletes segments in which there is nothing yet.
#[test]
fn a_segment_that_vanishes_before_its_first_record_is_made_again() {
    let disk = SimDisk::new(7);
    let store = open_stepped(&disk, config()).expect("the store opens");
    let (mut id, next) = (0, segment(16 << 10));
    while disk.bytes(&next).is_err() {
        put_stepped(&store, id);
        store.step(StoreWorker::Upkeep);
        id += 1;
    }
    disk.remove(next.as_ref()).expect("it is there");
    let mut end = 0;
    while end < 40 << 10 {
        end = put_stepped(&store, id).end_offset;
        id += 1;
    }
    let next = disk.cut_power(Cut::losing_all());
    drop(store);
    let store = open_stepped(&next, config()).expect("the store opens");
    assert_eq!(ids(&store), (0..id).collect::<Vec<_>>());
}
