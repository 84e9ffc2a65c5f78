//! A log that is taken over from another one, through the seam: byte for byte, in pieces of any size, cut
//! and begun anew by order.

#[path = "support/hooked.rs"]
mod hooked;
#[path = "support/passive.rs"]
mod passive;
#[path = "support/sim.rs"]
mod sim;

use duralog::clock::ManualClock;
use duralog::disk::{Cut, CutMoment, Fault, SimCall, SimDisk};
use duralog::message::{Frame, frame};
use duralog::replication::{
    Epoch, EpochStart, LogId, NodeId, QueueStart, Refusal, ReplicatedLog, StartPoint,
};
use duralog::{
    Corruption, Environment, Error, GroupOffset, Message, RecoveryMode, Retention, Store,
    StoreConfig, StoreWorker, WriteMode,
};
use hooked::{Hook, Hooked};
use passive::Passive;
use proptest::prelude::*;
use sim::*;
use std::fmt;
use std::io;
use std::num::NonZeroU64;
use std::sync::{Arc, Mutex};
use std::time::Duration;

const FIRST: EpochStart =
    EpochStart { epoch: Epoch(1), start: 0, node: NodeId(1), record_crc: true };

struct Copy {
    store: Store,
    log: Arc<dyn ReplicatedLog>,
    at: StartPoint,
}

fn open_copy_in(environment: Environment, config: StoreConfig) -> duralog::Result<Copy> {
    let replicator = Arc::new(Passive::default());
    let store = Store::open_replicated(config, environment.stepped(), replicator.clone())?;
    Ok(Copy { store, log: replicator.log(), at: replicator.start_point() })
}

fn open_copy(disk: &SimDisk, config: StoreConfig) -> duralog::Result<Copy> {
    open_copy_in(Environment::on(disk.shared()), config)
}

fn copy_of(disk: &SimDisk, config: StoreConfig) -> Copy {
    open_copy(disk, config).expect("the copy opens")
}

fn manual_clock() -> Arc<ManualClock> {
    Arc::new(ManualClock::new(1_700_000_000_000))
}

/// One for which no time passes but by `clock`.
fn timed_copy_of(disk: &SimDisk, config: StoreConfig, clock: &Arc<ManualClock>) -> Copy {
    let environment = Environment::on(disk.shared()).clock(clock.clone());
    open_copy_in(environment, config).expect("the copy opens")
}

/// A log of some segments, and what lies in it up to its end.
fn original(messages: u64) -> (Store, Vec<u8>) {
    let disk = disk();
    let store = open(&disk, unsynced());
    for id in 0..messages {
        store.put(message(id)).expect("stored").ok().expect("stored");
    }
    let end = store.stats().watermarks.written;
    let size = store.config().log.segment_size;
    let mut bytes = Vec::new();
    for base in (0..end).step_by(size as usize) {
        bytes.extend(disk.bytes(segment(base)).expect("it is there"));
    }
    bytes.truncate(end as usize);
    (store, bytes)
}

fn step(store: &Store) {
    for worker in [StoreWorker::Flush, StoreWorker::Upkeep, StoreWorker::Dispatch] {
        store.step(worker);
    }
}

/// Takes over all of `bytes` that lies behind the log's end, in pieces; what came of each rest.
fn take_over(copy: &Copy, bytes: &[u8], pieces: &[usize]) {
    let mut pieces = pieces.iter().cycle();
    let (mut end, mut there) = (copy.log.end(), copy.log.end() as usize);
    let mut idle = 0;
    while (end as usize) < bytes.len() {
        there = (there + pieces.next().expect("there are some")).min(bytes.len());
        step(&copy.store);
        let newest = copy.log.epochs().last().map_or(Epoch(0), |last| last.epoch);
        match copy.log.append(end, newest, &bytes[end as usize..there]) {
            Ok(taken) => {
                assert!(taken <= there as u64);
                idle = if taken == end && there == bytes.len() { idle + 1 } else { 0 };
                end = taken;
            }
            Err(Error::SegmentNotReady { .. } | Error::Full) => {}
            Err(other) => panic!("at {end}: {other:?}"),
        }
        assert!(idle < 10, "nothing is taken any more at {end} of {}", bytes.len());
    }
    step(&copy.store);
    step(&copy.store);
}

#[test]
fn a_copy_has_the_groups_of_the_original_and_those_of_its_own() {
    let (_, bytes) = original(8);
    let disk = disk();
    let copy = copy_of(&disk, config());
    copy.log.enter_epoch(FIRST).expect("it may");
    take_over(&copy, &bytes, &[4096]);
    let at = |group: &str, queue_id, next| GroupOffset::new(group, TOPIC, queue_id, next);
    let all = |store: &Store| store.committed_offsets();
    copy.log.take_group_offsets(true, &[at("audit", 0, 1), at("billing", 0, 3)]).expect("taken");
    assert_eq!(all(&copy.store), [at("audit", 0, 1), at("billing", 0, 3)]);
    copy.log.take_group_offsets(false, &[at("billing", 0, 2), at("mail", 0, 5)]).expect("taken");
    assert_eq!(all(&copy.store), [at("audit", 0, 1), at("billing", 0, 2), at("mail", 0, 5)]);
    // From here on it goes on by itself, in whatever queue.
    copy.log.confirm(copy.log.end(), FIRST.epoch).expect("that is the epoch");
    step(&copy.store);
    copy.store.commit_offset("audit", TOPIC, 0, 7).expect("it may");
    let of_the_original = [at("audit", 0, 2), at("audit", 1, 0), at("mail", 0, 6)];
    copy.log.take_group_offsets(true, &of_the_original).expect("taken");
    let expected = [at("audit", 0, 7), at("mail", 0, 6)];
    assert_eq!(all(&copy.store), expected, "billing is forgotten");
    copy.store.close().expect("it closes");
    let copy = copy_of(&disk, config());
    assert_eq!(all(&copy.store), expected);
    copy.log.take_group_offsets(true, &of_the_original).expect("taken");
    assert_eq!(all(&copy.store), expected, "that is known after a restart, too");
    let moves = copy.log.group_moves();
    copy.log.take_group_offsets(false, &[]).expect("taken");
    copy.log.take_group_offsets(false, &[at("mail", 0, 6)]).expect("taken");
    assert_eq!(copy.log.group_moves(), moves, "nothing has moved");
    let standings = copy.log.group_standings().expect("it is open");
    assert_eq!((&standings.offsets[..], standings.moves), (&expected[..], moves));
    assert_eq!(standings.end, copy.log.end());
}

fn hasty(mode: WriteMode) -> StoreConfig {
    let mut config = config().write_mode(mode);
    config.log.put_timeout = std::time::Duration::from_millis(1);
    config
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn a_log_is_taken_over_byte_for_byte(
        pieces in prop::collection::vec(1usize..6000, 1..6), mapped in any::<bool>()
    ) {
        let (_original, bytes) = original(200);
        let disk = disk();
        let mode = if mapped { WriteMode::Mmap } else { WriteMode::Pwrite };
        let copy = copy_of(&disk, hasty(mode));
        copy.log.enter_epoch(FIRST).expect("it is the first");
        take_over(&copy, &bytes, &pieces);
        prop_assert_eq!(copy.log.durable(), bytes.len() as u64);
        prop_assert!(ids(&copy.store).is_empty(), "nothing is confirmed");
        copy.log.confirm(u64::MAX, Epoch(1)).expect("the epoch is right");
        step(&copy.store);
        prop_assert_eq!(ids(&copy.store), (0..200).collect::<Vec<_>>());
        let size = copy.log.segment_size() as usize;
        for (number, segment_bytes) in bytes.chunks(size).enumerate() {
            let stored = disk.bytes(segment((number * size) as u64)).expect("it is there");
            prop_assert_eq!(&stored[..segment_bytes.len()], segment_bytes);
        }
        // A crash later it is the same, and still checked by the checksums of whole records.
        let disk = disk.cut_power(Cut::losing_all());
        drop(copy);
        let copy = copy_of(&disk, hasty(mode));
        prop_assert_eq!(copy.at.end, bytes.len() as u64);
        prop_assert_eq!(copy.at.epoch, Epoch(1));
        copy.log.confirm(u64::MAX, Epoch(1)).expect("the epoch is right");
        step(&copy.store);
        prop_assert_eq!(copy.store.verify().expect("readable").records, 200);
    }
}

#[test]
fn a_record_that_is_not_sound_is_not_taken_over() {
    let (_original, bytes) = original(10);
    let disk = disk();
    let copy = copy_of(&disk, config());
    copy.log.enter_epoch(FIRST).expect("it is the first");
    for (at, bit) in [(0, 7), (5, 0), (30, 1), (90, 3)] {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1 << bit;
        match copy.log.append(0, Epoch(1), &damaged) {
            Err(Error::Corrupt { offset: 0, .. }) => {}
            Ok(0) => assert!(at < 4, "it claims to be longer, and its rest is waited for"),
            other => panic!("byte {at}: {other:?}"),
        }
        assert_eq!(copy.log.end(), 0);
    }
    // Sound, but of another place.
    let second = records(&bytes)[1] as usize;
    assert!(matches!(
        copy.log.append(0, Epoch(1), &bytes[second..]),
        Err(Error::Corrupt { what: Corruption::Offset { .. }, .. })
    ));
    // What comes before the damage is taken.
    let mut damaged = bytes.clone();
    damaged[second + 90] ^= 1;
    let end = copy.log.append(0, Epoch(1), &damaged).expect("the first is sound");
    assert_eq!(end, second as u64);
    assert!(matches!(
        copy.log.append(end, Epoch(1), &damaged[second..]),
        Err(Error::Corrupt { .. })
    ));
}

#[test]
fn each_role_refuses_what_is_the_others() {
    let disk = disk();
    let copy = copy_of(&disk, config());
    let not_primary = |outcome: duralog::Result<()>| match outcome {
        Err(Error::Refused(Refusal::NotPrimary)) => {}
        other => panic!("{other:?}"),
    };
    not_primary(copy.store.put(message(1)).map(drop));
    not_primary(copy.log.begin_epoch(Epoch(9), NodeId(9)).map(drop));
    let (_original, bytes) = original(2);
    for (at, epoch) in [(100, Epoch(0)), (0, Epoch(5))] {
        assert!(matches!(copy.log.append(at, epoch, &bytes), Err(Error::Refused(_))));
    }
}

#[test]
fn epochs_rise_and_begin_where_the_log_ends() {
    let (_original, bytes) = original(4);
    let disk = disk();
    let copy = copy_of(&disk, config());
    copy.log.enter_epoch(FIRST).expect("it is the first");
    copy.log.enter_epoch(FIRST).expect("it is the same");
    let end = copy.log.append(0, Epoch(1), &bytes).expect("sound");
    step(&copy.store);
    let next = |epoch, start| EpochStart { epoch: Epoch(epoch), start, ..FIRST };
    for wrong in [next(2, end + 1), next(2, 0), next(1, end), next(0, end)] {
        assert!(matches!(copy.log.enter_epoch(wrong), Err(Error::Refused(_))), "{wrong:?}");
    }
    copy.log.enter_epoch(next(4, end)).expect("it is the next");
    assert_eq!(copy.log.epochs(), [FIRST, next(4, end)]);
    copy.log.promise(Epoch(6)).expect("it is newer");
    for older in [4, 5, 6] {
        match copy.log.promise(Epoch(older)) {
            Err(Error::Refused(Refusal::EpochFell { was: Epoch(6), .. })) => {}
            other => panic!("{other:?}"),
        }
    }
    // All of it survives a power cut.
    let disk = disk.cut_power(Cut::losing_all());
    drop(copy);
    let copy = copy_of(&disk, config());
    assert_eq!(copy.log.epochs(), [FIRST, next(4, end)]);
    assert_eq!((copy.at.epoch, copy.at.promised), (Epoch(4), Epoch(6)));
}

/// Who brings them reigns in an epoch that is newer than the promise; what it brings was written long
/// before.
#[test]
fn a_promise_does_not_keep_out_what_was_written_before_it() {
    let (_original, bytes) = original(4);
    let disk = disk();
    let copy = copy_of(&disk, config());
    copy.log.promise(Epoch(6)).expect("it is newer");
    let half = records(&bytes)[2] as usize;
    copy.log.enter_epoch(FIRST).expect("its records come first");
    let end = copy.log.append(0, Epoch(1), &bytes[..half]).expect("sound");
    let second = EpochStart { epoch: Epoch(3), start: end, ..FIRST };
    copy.log.enter_epoch(second).expect("its records come next");
    copy.log.append(end, Epoch(3), &bytes[half..]).expect("sound");
    assert_eq!((copy.log.epochs(), copy.log.promised()), (vec![FIRST, second], Epoch(6)));
}

/// A primary may be lost before it writes anything, and who takes over may never have heard of it.
#[test]
fn an_epoch_without_a_record_is_left_and_stays_promised() {
    let (_original, bytes) = original(4);
    let disk = disk();
    let copy = copy_of(&disk, config());
    copy.log.enter_epoch(FIRST).expect("it is the first");
    let end = copy.log.append(0, Epoch(1), &bytes).expect("sound");
    step(&copy.store);
    let next = |epoch| EpochStart { epoch: Epoch(epoch), start: end, ..FIRST };
    copy.log.enter_epoch(next(5)).expect("it is the next");
    copy.log.enter_epoch(next(3)).expect("nothing was written under the other one");
    assert_eq!((copy.log.epochs(), copy.log.promised()), (vec![FIRST, next(3)], Epoch(5)));
    copy.log.enter_epoch(FIRST).expect("it goes on where it was");
    let disk = disk.cut_power(Cut::losing_all());
    drop(copy);
    let copy = copy_of(&disk, config());
    assert_eq!((copy.log.epochs(), copy.log.promised()), (vec![FIRST], Epoch(5)));
}

#[test]
fn a_copy_keeps_what_was_promised_and_is_not_the_node_that_was_fenced() {
    let (_original, bytes) = original(4);
    let disk = disk();
    let copy = copy_of(&disk, config());
    copy.log.follow(log_id(1), Epoch(1)).expect("it is empty");
    copy.log.enter_epoch(FIRST).expect("it is the first");
    copy.log.append(0, Epoch(1), &bytes).expect("sound");
    step(&copy.store);
    copy.log.promise(Epoch(6)).expect("it is newer");
    copy.store.snapshot("/snapshot").expect("it is durable");
    let disk = disk.cut_power(Cut::losing_all());
    drop(copy);
    let mut elsewhere = config();
    elsewhere.log.dir = "/snapshot".into();
    let [here, there] = [config(), elsewhere].map(|config| copy_of(&disk, config));
    for copy in [&here, &there] {
        assert_eq!((copy.log.log_id(), copy.log.promised()), (log_id(1), Epoch(6)));
    }
    assert!(here.log.is_fenced() && !there.log.is_fenced());
}

fn log_id(number: u64) -> Option<LogId> {
    NonZeroU64::new(number).map(LogId)
}

#[test]
fn a_log_that_holds_records_is_never_taken_for_another_one() {
    let (_original, bytes) = original(4);
    let disk = disk();
    let copy = copy_of(&disk, config());
    assert_eq!(copy.log.log_id(), None);
    copy.log.follow(log_id(1), Epoch(1)).expect("it is empty");
    copy.log.enter_epoch(FIRST).expect("it is the first");
    copy.log.follow(log_id(1), Epoch(1)).expect("it is the same");
    assert_eq!((copy.log.log_id(), copy.log.epochs()), (log_id(1), vec![FIRST]));
    copy.log.follow(log_id(2), Epoch(1)).expect("it is still empty");
    assert_eq!((copy.log.log_id(), copy.log.epochs()), (log_id(2), Vec::new()));
    copy.log.enter_epoch(FIRST).expect("it is the first of that log");
    copy.log.append(0, Epoch(1), &bytes).expect("sound");
    step(&copy.store);
    for other in [log_id(1), None] {
        let refused = copy.log.follow(other, Epoch(1));
        assert!(
            matches!(refused, Err(Error::Refused(Refusal::AnotherLog))),
            "{other:?}: {refused:?}"
        );
    }
    copy.log.follow(log_id(2), Epoch(1)).expect("it is the same");
    let disk = disk.cut_power(Cut::losing_all());
    drop(copy);
    let copy = copy_of(&disk, config());
    assert_eq!((copy.log.log_id(), copy.log.epochs()), (log_id(2), vec![FIRST]));
}

#[test]
fn a_log_that_begins_anew_stays_the_same_and_may_then_become_another_one() {
    let (_original, bytes) = original(150);
    let disk = disk();
    let copy = copy_of(&disk, config());
    copy.log.follow(log_id(1), Epoch(1)).expect("it is empty");
    copy.log.enter_epoch(FIRST).expect("it is the first");
    take_over(&copy, &bytes, &[7000]);
    copy.log.restart(4 * copy.log.segment_size()).expect("nothing is confirmed");
    drop(copy);
    let copy = copy_of(&disk, config());
    assert_eq!((copy.log.log_id(), copy.log.epochs()), (log_id(1), Vec::new()));
    copy.log.follow(log_id(2), Epoch(1)).expect("it is empty");
    assert_eq!(copy.log.log_id(), log_id(2));
}

#[test]
fn records_of_no_log_become_those_of_the_log_that_goes_on_with_them() {
    let (_original, bytes) = original(4);
    let disk = disk();
    let copy = copy_of(&disk, config());
    copy.log.append(0, Epoch(0), &bytes).expect("sound");
    step(&copy.store);
    copy.log.follow(log_id(1), Epoch(1)).expect("whoever brings more has compared them");
    let disk = disk.cut_power(Cut::losing_all());
    drop(copy);
    let copy = copy_of(&disk, config());
    assert_eq!((copy.log.log_id(), copy.log.end()), (log_id(1), bytes.len() as u64));
}

#[test]
fn a_cut_is_ordered_and_carried_out_by_the_next_open() {
    let (_original, bytes) = original(100);
    let disk = disk();
    let copy = copy_of(&disk, config());
    copy.log.enter_epoch(FIRST).expect("it is the first");
    take_over(&copy, &bytes, &[5000]);
    let (before, cut) = (records(&bytes)[30], records(&bytes)[40]);
    copy.log.confirm(cut, Epoch(1)).expect("the epoch is right");
    assert!(matches!(copy.log.truncate(before), Err(Error::Refused(Refusal::Confirmed { .. }))));
    step(&copy.store);
    let seen = ids(&copy.store);
    let view = copy.log.read(cut, 1 << 20).expect("readable");
    let (kept, seen_bytes) = (view.bytes().to_vec(), view.bytes().len());
    let end = bytes.len() as u64;
    let behind = EpochStart { epoch: Epoch(3), start: end, ..FIRST };
    copy.log.enter_epoch(behind).expect("it begins at the end");
    copy.log.truncate(cut).expect("it is inside");
    assert!(matches!(
        copy.log.append(bytes.len() as u64, Epoch(3), &bytes),
        Err(Error::Latched { .. })
    ));
    let Copy { store, log, .. } = copy;
    let _ = store.close();
    let copy = copy_of(&disk, config());
    assert_eq!(copy.at.end, cut);
    assert_eq!(copy.store.recovery().finished_cut, Some(cut));
    assert_eq!(copy.log.promised(), Epoch(3), "the epoch that was cut does not count for nothing");
    assert_eq!(ids(&copy.store), seen, "what was read stays");
    // Another history, in the same place.
    let other = EpochStart { epoch: Epoch(4), start: cut, node: NodeId(2), record_crc: true };
    copy.log.enter_epoch(other).expect("it begins here");
    assert_eq!(copy.log.append(cut, Epoch(4), &[]).expect("nothing"), cut);
    assert_eq!(view.bytes().len(), seen_bytes);
    assert_eq!(view.bytes(), kept, "a slice of what was cut stays what it is");
    drop((log, store, view));
    let stored = disk.bytes(segment(copy_segment(cut))).expect("it is there");
    let inside = (cut - copy_segment(cut)) as usize;
    assert!(stored[inside..].iter().all(|byte| *byte == 0), "nothing stale lies behind the cut");
}

/// Where records begin in a log.
fn records(bytes: &[u8]) -> Vec<u64> {
    let size = config().log.segment_size;
    let (mut at, mut found) = (0, Vec::new());
    while at < bytes.len() as u64 {
        let left = size - at % size;
        at += match frame(&bytes[at as usize..], at, left).expect("a log") {
            Frame::Record(record) => {
                found.push(at);
                record.size() as u64
            }
            Frame::Blank { .. } => left,
        };
    }
    found
}

fn copy_segment(offset: u64) -> u64 {
    let size = config().log.segment_size;
    offset / size * size
}

#[test]
fn an_ordered_cut_survives_a_power_cut_at_every_step() {
    let (_original, bytes) = original(60);
    let cut = records(&bytes)[30];
    for moment in [CutMoment::Before, CutMoment::Middle] {
        for call in 1.. {
            let disk = SimDisk::new(call);
            let copy = copy_of(&disk, config());
            copy.log.enter_epoch(FIRST).expect("it is the first");
            take_over(&copy, &bytes, &[7000]);
            disk.cut_at(call, moment);
            let ordered = copy.log.truncate(cut).is_ok();
            drop(copy);
            let opened = open_copy(&disk, config());
            let finished = !disk.is_down();
            let disk = disk.reboot(Cut::seeded(call));
            drop(opened);
            let copy = copy_of(&disk, config());
            if ordered {
                assert_eq!(copy.at.end, cut, "power lost at call {call}");
            } else {
                assert!([cut, bytes.len() as u64].contains(&copy.at.end), "at call {call}");
            }
            assert_eq!(copy.log.epochs(), [FIRST]);
            copy.log.confirm(u64::MAX, Epoch(1)).expect("the epoch is right");
            step(&copy.store);
            let all = if copy.at.end == cut { 30 } else { 60 };
            assert_eq!(ids(&copy.store), (0..all).collect::<Vec<_>>());
            if finished {
                break;
            }
        }
    }
}

#[test]
fn a_log_that_begins_anew_holds_nothing_of_before() {
    let (_original, bytes) = original(60);
    for moment in [CutMoment::Before, CutMoment::Middle] {
        for call in 1.. {
            let disk = SimDisk::new(call);
            let copy = copy_of(&disk, config());
            copy.log.enter_epoch(FIRST).expect("it is the first");
            take_over(&copy, &bytes, &[7000]);
            copy.log.confirm(1000, Epoch(1)).expect("the epoch is right");
            step(&copy.store);
            let at = 10 * copy.log.segment_size();
            disk.cut_at(call, moment);
            let ordered = copy.log.restart(at).is_ok();
            drop(copy);
            let opened = open_copy(&disk, config());
            let finished = !disk.is_down();
            let disk = disk.reboot(Cut::seeded(call));
            drop(opened);
            let copy = copy_of(&disk, config());
            if ordered {
                assert_eq!((copy.at.min_offset, copy.at.end), (at, at), "at call {call}");
                assert!(copy.log.epochs().is_empty() && ids(&copy.store).is_empty());
                // It goes on in the middle of an epoch.
                let running = EpochStart { epoch: Epoch(3), start: at - 5, ..FIRST };
                copy.log.enter_epoch(running).expect("an empty log may");
            } else {
                assert!([at, bytes.len() as u64].contains(&copy.at.end), "at call {call}");
            }
            if finished {
                break;
            }
        }
    }
}

fn start(topic: &str, offset: u64) -> QueueStart {
    QueueStart { topic: topic.to_owned(), queue_id: 0, offset }
}

fn next_offsets(store: &Store) -> [Option<u64>; 3] {
    ["idle", TOPIC, "gone"].map(|topic| store.max_offset(topic, 0))
}

#[test]
fn queues_go_on_where_they_were_said_to_in_a_log_that_begins_anew() {
    let (_original, bytes) = original(60);
    for moment in [CutMoment::Before, CutMoment::Middle] {
        for call in 1.. {
            let disk = SimDisk::new(call);
            let copy = copy_of(&disk, config());
            copy.log.enter_epoch(FIRST).expect("it is the first");
            take_over(&copy, &bytes, &[7000]);
            copy.log.confirm(u64::MAX, Epoch(1)).expect("the epoch is right");
            step(&copy.store);
            assert_eq!(next_offsets(&copy.store), [None, Some(60), None]);
            let at = 10 * copy.log.segment_size();
            disk.cut_at(call, moment);
            // Fewer than are here: some of these were another primary's.
            let starts = [start("idle", 10), start(TOPIC, 40)];
            let prepared = copy.log.prepare_restart(at, &starts).is_ok();
            let ordered = prepared && copy.log.restart(at).is_ok();
            drop(copy);
            let opened = open_copy(&disk, config());
            let finished = !disk.is_down();
            let disk = disk.reboot(Cut::seeded(call));
            drop(opened);
            let copy = copy_of(&disk, config());
            if copy.at.end == at {
                assert_eq!(next_offsets(&copy.store), [Some(10), Some(40), None], "at call {call}");
            } else {
                assert!(!ordered, "at call {call}");
                copy.log.confirm(u64::MAX, Epoch(1)).expect("the epoch is right");
                step(&copy.store);
                assert_eq!(next_offsets(&copy.store), [None, Some(60), None], "at call {call}");
            }
            if finished {
                break;
            }
        }
    }
}

#[test]
fn no_queue_of_before_stays_where_a_call_fails_while_a_log_begins_anew() {
    let (_original, bytes) = original(60);
    let told = disk();
    let mut config = config();
    config.index_enable = false;
    let copy = copy_of(&told, config.clone());
    copy.log.enter_epoch(FIRST).expect("it is the first");
    take_over(&copy, &bytes, &[7000]);
    copy.log.confirm(u64::MAX, Epoch(1)).expect("the epoch is right");
    step(&copy.store);
    copy.store.close().expect("it closes");
    let copy = copy_of(&told, config.clone());
    let at = 10 * copy.log.segment_size();
    let starts = [start("idle", 10), start(TOPIC, 40)];
    copy.log.prepare_restart(at, &starts).expect("there is room");
    copy.log.restart(at).expect("it is told");
    drop(copy);
    assert!(told.bytes(format!("{DIR}/duralog/queues")).is_ok(), "it has no table to lose");
    let files = contents(&told);
    for call in [SimCall::Open, SimCall::Read] {
        for nth in 1.. {
            let disk = disk_with(&files);
            disk.inject(Fault::on(call).nth(nth));
            let opened = open_copy(&disk, config.clone());
            let failed = disk.faults_fired() > 0;
            disk.clear_faults();
            drop(opened);
            let copy = copy_of(&disk, config.clone());
            let starts = next_offsets(&copy.store);
            assert_eq!(starts, [Some(10), Some(40), None], "call {nth} of {call:?} failed");
            if !failed {
                assert!(nth > 5, "only {nth} calls");
                break;
            }
        }
    }
}

#[test]
fn where_queues_go_on_outlasts_the_queue_table_and_what_comes_in_them_counts_on() {
    let disk = disk();
    let copy = copy_of(&disk, config());
    let at = copy.log.segment_size();
    let starts = [start("idle", 10), start("gone", 20), start(TOPIC, 40)];
    copy.log.prepare_restart(at, &starts).expect("there is room");
    copy.log.restart(at).expect("it is empty");
    drop(copy);
    let mut config = config();
    let retention = Retention::max_total_bytes(3 * at).check_interval(Duration::from_millis(1));
    config.retention = Some(retention);
    let put = |store: &Store, topic: &str| {
        let put = store.put(Message::new(topic, vec![1; 1000])).expect("stored");
        put.ok().expect("durable").queue_offset
    };
    let store = open(&disk, config.clone());
    (10..15).for_each(|next| assert_eq!(put(&store, "idle"), next));
    let mut expected = 40..;
    while store.min_offset("idle", 0) != Some(15) {
        assert_eq!(Some(put(&store, TOPIC)), expected.next());
    }
    let wanted = [Some(15), expected.next(), Some(20)];
    store.close().expect("it closes");
    for table_is_lost in [false, true] {
        if table_is_lost {
            disk.drop_file(format!("{DIR}/duralog/queues")).expect("it is there");
        }
        let store = open(&disk, config.clone());
        assert_eq!(next_offsets(&store), wanted, "the table is lost: {table_is_lost}");
        store.snapshot(format!("{DIR}-{table_is_lost}")).expect("there is room");
        store.close().expect("it closes");
    }
    let root = format!("{DIR}-true");
    disk.drop_file(format!("{root}/duralog/queues")).expect("it is there");
    let environment = Environment::on(disk.shared());
    config.log.dir = root.into();
    let copy = Store::open_in(config, environment);
    assert_eq!(next_offsets(&copy.expect("it opens")), wanted);
}

#[test]
fn a_store_that_cannot_tell_where_its_queues_go_on_is_opened_to_salvage_it_alone() {
    let disk = disk();
    let copy = copy_of(&disk, config());
    let at = copy.log.segment_size();
    copy.log.prepare_restart(at, &[start("idle", 10)]).expect("there is room");
    copy.log.restart(at).expect("it is empty");
    drop(copy);
    copy_of(&disk, config()).store.close().expect("it closes");
    disk.flip_bit(format!("{DIR}/duralog/queue-starts"), 20, 0).expect("it is there");
    let refused = try_open(&disk, config()).map(drop);
    assert!(
        matches!(refused, Err(Error::Corrupt { what: Corruption::StateFile { .. }, .. })),
        "{refused:?}"
    );
    open(&disk, config().recovery_mode(RecoveryMode::Salvage));
}

#[test]
fn a_log_may_begin_anew_before_its_end_but_not_before_what_is_confirmed() {
    let (_original, bytes) = original(150);
    let disk = disk();
    let copy = copy_of(&disk, config());
    copy.log.enter_epoch(FIRST).expect("it is the first");
    take_over(&copy, &bytes, &[7000]);
    let at = copy.log.segment_size();
    assert!(copy.log.end() > at, "it has one segment alone");
    copy.log.confirm(at + 1000, Epoch(1)).expect("the epoch is right");
    for refused in [copy.log.restart(at), copy.log.truncate(at)] {
        assert!(matches!(refused, Err(Error::Refused(Refusal::Confirmed { .. }))), "{refused:?}");
    }
    let disk = SimDisk::new(1);
    let copy = copy_of(&disk, config());
    copy.log.enter_epoch(FIRST).expect("it is the first");
    take_over(&copy, &bytes, &[7000]);
    copy.log.confirm(at, Epoch(1)).expect("the epoch is right");
    copy.log.restart(at).expect("nothing confirmed lies behind");
    drop(copy);
    let copy = copy_of(&disk, config());
    assert_eq!((copy.at.min_offset, copy.at.end), (at, at));
}

#[test]
fn records_are_judged_by_their_epoch_though_the_checkpoint_does_not_know_it() {
    let (_original, bytes) = original(4);
    let disk = disk();
    let copy = copy_of(&disk, config());
    disk.inject(Fault::on(SimCall::Sync).path("duralog/checkpoint"));
    let entered = copy.log.enter_epoch(FIRST);
    assert!(matches!(entered, Err(Error::Io { .. })), "{entered:?}");
    let end = copy.log.append(0, Epoch(1), &bytes).expect("the epoch has begun all the same");
    let next = disk.kill();
    drop(copy);
    // The body is sound, and its checksum.
    next.flip_bit(segment(0), end - 1, 0).expect("it is there");
    let copy = copy_of(&next, config());
    assert_eq!(copy.at.end, *records(&bytes).last().expect("there are some"));
}

#[test]
fn a_log_that_is_cut_to_nothing_has_come_to_the_epoch_it_had_come_to() {
    let (_original, bytes) = original(20);
    let disk = disk();
    let copy = copy_of(&disk, config());
    copy.log.enter_epoch(FIRST).expect("it is the first");
    take_over(&copy, &bytes, &[7000]);
    copy.log.truncate(0).expect("nothing is confirmed");
    drop(copy);
    let copy = copy_of(&disk, config());
    assert_eq!((copy.at.end, copy.log.epochs()), (0, vec![FIRST]));
}

/// A log that ends where the second of its epochs begins, and the two.
fn copy_in_an_epoch_without_records() -> (SimDisk, Copy, [EpochStart; 2]) {
    let (_original, bytes) = original(5);
    let disk = disk();
    let copy = copy_of(&disk, config());
    copy.log.enter_epoch(FIRST).expect("it is the first");
    take_over(&copy, &bytes, &[7000]);
    let start = copy.log.end();
    let newer = EpochStart { epoch: Epoch::term(3), start, node: NodeId(2), record_crc: true };
    copy.log.enter_epoch(newer).expect("it begins here");
    (disk, copy, [FIRST, newer])
}

/// The node has come to that epoch, and has vouched by that for all that comes before.
#[test]
fn a_cut_leaves_an_epoch_that_begins_there() {
    let (disk, copy, epochs) = copy_in_an_epoch_without_records();
    let start = epochs[1].start;
    let (_original, longer) = original(8);
    take_over(&copy, &longer, &[7000]);
    assert!(copy.log.end() > start);
    copy.log.truncate(start).expect("nothing is confirmed");
    drop(copy);
    let copy = copy_of(&disk, config());
    assert_eq!((copy.at.end, copy.log.epochs()), (start, epochs.to_vec()));
}

#[test]
fn a_look_leaves_an_epoch_without_records() {
    let (disk, copy, epochs) = copy_in_an_epoch_without_records();
    copy.store.close().expect("it closes");
    // Without replication, by whoever only has a look.
    open(&disk, config()).close().expect("it closes");
    assert_eq!(copy_of(&disk, config()).log.epochs(), epochs);
}

#[test]
fn an_epoch_that_none_could_follow_is_refused() {
    let disk = disk();
    let copy = copy_of(&disk, config());
    let last = EpochStart { epoch: Epoch(u64::MAX), ..FIRST };
    match copy.log.enter_epoch(last) {
        Err(Error::Refused(Refusal::EpochFell { is: Epoch(u64::MAX), .. })) => {}
        other => panic!("{other:?}"),
    }
    assert!(copy.log.epochs().is_empty());
    copy.log.enter_epoch(FIRST).expect("it is the first");
}

#[test]
fn a_store_that_leaves_replication_begins_an_epoch_of_its_own() {
    let (_original, bytes) = original(5);
    let disk = disk();
    let copy = copy_of(&disk, config());
    copy.log.enter_epoch(FIRST).expect("it is the first");
    take_over(&copy, &bytes, &[7000]);
    copy.store.close().expect("it closes");
    let alone = open(&disk, config());
    alone.put(Message::new(TOPIC, "alone")).expect("stored").ok().expect("durable");
    alone.close().expect("it closes");
    let copy = copy_of(&disk, config());
    assert_eq!(copy.log.epochs(), [FIRST, alone_behind(&copy, bytes.len() as u64, true)]);
}

/// The epoch of what was put without replication behind the first one. Its number is drawn.
fn alone_behind(copy: &Copy, start: u64, record_crc: bool) -> EpochStart {
    let epoch = copy.log.epochs().last().expect("there is one").epoch;
    assert!(epoch > FIRST.epoch && epoch < Epoch::term(1), "{epoch:?}");
    EpochStart { epoch, start, node: NodeId(0), record_crc }
}

/// Five messages that were taken over, and one that was put without replication, are sound.
fn shows_six(copy: &Copy) {
    let epoch = copy.log.epochs().last().expect("there is one").epoch;
    copy.log.confirm(copy.log.end(), epoch).expect("the epoch is right");
    step(&copy.store);
    assert_eq!(ids(&copy.store), [0, 1, 2, 3, 4, 5]);
    assert!(copy.store.verify().expect("it can be read").is_ok());
}

#[test]
fn puts_without_replication_are_judged_by_what_they_were_to_carry() {
    let (_original, bytes) = original(5);
    for record_crc in [false, true] {
        let disk = disk();
        let copy = copy_of(&disk, config());
        copy.log.enter_epoch(FIRST).expect("it is the first");
        take_over(&copy, &bytes, &[7000]);
        copy.store.close().expect("it closes");
        let of_other = |record_crc| {
            let mut config = config();
            config.log.record_crc = record_crc;
            open(&disk, config)
        };
        // Whoever only has a look says nothing of what another one puts.
        of_other(!record_crc).close().expect("it closes");
        let alone = of_other(record_crc);
        put(&alone, 5);
        alone.close().expect("it closes");
        let copy = copy_of(&disk, config());
        assert_eq!(copy.log.epochs().last().map(|last| last.record_crc), Some(record_crc));
        shows_six(&copy);
    }
}

/// Changes the tag of the first record that is whole in `bytes`: only a checksum of all of it tells.
fn change_tag(bytes: &mut [u8]) {
    let name = bytes.windows(4).position(|name| name == b"TAGS").expect("it has a tag");
    bytes[name + 5] ^= 2;
}

#[test]
fn a_look_changes_nothing_of_what_the_records_of_a_copy_are_checked_for() {
    let (_original, bytes) = original(8);
    let half = records(&bytes)[4];
    for looks in [false, true] {
        let disk = disk();
        let copy = copy_of(&disk, config());
        copy.log.enter_epoch(FIRST).expect("it is the first");
        take_over(&copy, &bytes[..half as usize], &[4096]);
        copy.store.close().expect("it closes");
        drop(copy);
        if looks {
            let mut config = config();
            config.log.record_crc = false;
            open(&disk, config).close().expect("it closes");
        }
        // Damaged on its way here.
        let copy = copy_of(&disk, unsynced());
        assert_eq!((copy.log.epochs(), copy.log.end()), (vec![FIRST], half));
        let mut changed = bytes[half as usize..].to_vec();
        change_tag(&mut changed);
        let taken = copy.log.append(half, Epoch(1), &changed);
        assert!(matches!(taken, Err(Error::Corrupt { .. })), "looked: {looks}: {taken:?}");
        // And in a page that did not get to the disk.
        take_over(&copy, &bytes, &[4096]);
        let disk = disk.kill();
        drop(copy);
        let mut on_disk = disk.bytes(segment(0)).expect("it is there");
        change_tag(&mut on_disk[half as usize..]);
        disk.put_file(segment(0), &on_disk).expect("there is room");
        let copy = copy_of(&disk, unsynced());
        assert_eq!(copy.log.end(), half, "looked: {looks}");
    }
}

#[test]
fn what_a_broker_wrote_behind_a_log_is_of_no_epoch_of_a_primary() {
    let (_original, bytes) = original(5);
    for closes in [true, false] {
        let disk = disk();
        let copy = copy_of(&disk, config());
        copy.log.enter_epoch(FIRST).expect("it is the first");
        take_over(&copy, &bytes, &[7000]);
        if closes {
            copy.store.close().expect("it closes");
        }
        let disk = disk.kill();
        drop(copy);
        // It knows nothing of this crate's files, and its records have no checksum of their own.
        let is_its = |path: &std::path::Path| !path.starts_with(format!("{DIR}/duralog"));
        let files: Vec<_> = contents(&disk).into_iter().filter(|(path, _)| is_its(path)).collect();
        let broker = disk_with(&files);
        let mut config_of_broker = config();
        config_of_broker.log.record_crc = false;
        let store = open(&broker, config_of_broker);
        put(&store, 5);
        store.close().expect("it closes");
        disk.put_file(segment(0), &broker.bytes(segment(0)).expect("it is there")).expect("room");
        disk.put_file(format!("{DIR}/lock"), b"lock").expect("there is room");

        let copy = copy_of(&disk, config());
        let start = bytes.len() as u64;
        assert_eq!(copy.log.epochs(), [FIRST, alone_behind(&copy, start, false)], "{closes}");
        shows_six(&copy);
    }
}

#[test]
fn no_two_epochs_begin_at_one_offset_for_others_however_often_a_store_was_looked_at() {
    let (disk, copy, epochs) = copy_in_an_epoch_without_records();
    copy.store.close().expect("it closes");
    let alone = open(&disk, config());
    put(&alone, 8);
    alone.close().expect("it closes");
    open(&disk, config()).close().expect("it closes");
    for _ in 0..2 {
        let copy = copy_of(&disk, config());
        let told = copy.log.epochs();
        assert!(told.is_sorted_by(|a, b| a.start < b.start), "{told:?}");
        // Not the one without a record: what was put lies in its place.
        assert_eq!(told[..told.len() - 1], epochs[..epochs.len() - 1]);
        assert_eq!(told.last().map(|last| last.node), Some(NodeId(0)));
        copy.store.close().expect("it closes");
    }
}

#[test]
fn what_an_epoch_without_a_record_says_of_checksums_counts_for_no_other() {
    for record_crc in [false, true] {
        let original = disk();
        let mut config = unsynced();
        config.log.record_crc = record_crc;
        let store = open(&original, config);
        for id in 0..8 {
            store.put(message(id)).expect("stored").ok().expect("stored");
        }
        let end = store.stats().watermarks.written as usize;
        let bytes = original.bytes(segment(0)).expect("it is there")[..end].to_vec();
        let copy = copy_of(&disk(), self::config());
        let first = EpochStart { record_crc, ..FIRST };
        copy.log.enter_epoch(first).expect("it is the first");
        let half = copy.log.append(0, Epoch(1), &bytes[..end / 2]).expect("records");
        step(&copy.store);
        let (epoch, record_crc) = (Epoch(2), !record_crc);
        let idle = EpochStart { epoch, start: half, node: NodeId(2), record_crc };
        copy.log.enter_epoch(idle).expect("it begins here");
        // Another primary brings what the first one had written.
        copy.log.enter_epoch(first).expect("nothing was written since");
        let mut taken = half;
        if first.record_crc {
            let mut damaged = bytes[half as usize..].to_vec();
            let at = damaged.len() - 1;
            damaged[at] ^= 1;
            taken = copy.log.append(half, Epoch(1), &damaged).expect("the records before it");
            assert!(taken < end as u64, "the checksum of the last one does not match");
        }
        let rest = &bytes[taken as usize..];
        assert_eq!(copy.log.append(taken, Epoch(1), rest).expect("records"), end as u64);
    }
}

#[test]
fn a_record_whose_size_was_changed_on_its_way_is_not_waited_for() {
    let (_original, bytes) = original(3);
    let disk = disk();
    let copy = copy_of(&disk, config());
    copy.log.enter_epoch(FIRST).expect("it is the first");
    let second = records(&bytes)[1] as usize;
    let end = copy.log.append(0, Epoch(1), &bytes[..second]).expect("sound");
    let third = records(&bytes)[2] as usize;
    for bit in 0..16 {
        let mut changed = bytes[second..third].to_vec();
        changed[3 - bit / 8] ^= 1 << (bit % 8);
        let answer = copy.log.append(end, Epoch(1), &changed);
        assert!(matches!(answer, Err(Error::Corrupt { .. })), "bit {bit}: {answer:?}");
    }
    assert_eq!(
        copy.log.append(end, Epoch(1), &bytes[second..]).expect("sound"),
        bytes.len() as u64
    );
}

#[test]
fn a_read_only_store_is_empty_where_the_log_is_to_begin_anew() {
    let (_original, bytes) = original(8);
    let disk = disk();
    let copy = copy_of(&disk, config());
    copy.log.enter_epoch(FIRST).expect("it is the first");
    take_over(&copy, &bytes, &[4096]);
    copy.log.restart(4 * copy.log.segment_size()).expect("nothing is confirmed");
    drop(copy);
    let store = open_stepped(&disk, config().read_only(true)).expect("it opens");
    assert!(ids(&store).is_empty());
}

#[test]
fn a_read_only_store_ends_where_a_cut_was_ordered_and_says_of_none_that_it_is_finished() {
    for mode in [RecoveryMode::default(), RecoveryMode::Strict, RecoveryMode::Salvage] {
        let disk = disk();
        let store = open(&disk, unsynced());
        for id in 0..8 {
            store.put(message(id)).expect("stored").ok().expect("stored");
        }
        eventually("all can be read", || ids(&store).len() == 8);
        let end = store.stats().watermarks.written as usize;
        let cut = records(&disk.bytes(segment(0)).expect("it is there")[..end])[3];
        store.close().expect("it closes");
        drop(store);
        let copy = copy_of(&disk, unsynced());
        copy.log.truncate(cut).expect("nothing is confirmed");
        drop(copy);
        let only_read = unsynced().read_only(true).recovery_mode(mode);
        let store = open_stepped(&disk, only_read).expect("it opens");
        assert_eq!(ids(&store), [0, 1, 2], "{mode:?}");
        assert_eq!(store.recovery().finished_cut, None);
        drop(store);
        copy_of(&disk, unsynced());
        let store = open_stepped(&disk, unsynced().read_only(true)).expect("it opens");
        assert_eq!(ids(&store), [0, 1, 2]);
    }
}

#[test]
fn a_read_only_store_shows_of_a_copy_what_is_confirmed() {
    let (_original, bytes) = original(8);
    let disk = disk();
    let copy = copy_of(&disk, config());
    copy.log.enter_epoch(FIRST).expect("it is the first");
    take_over(&copy, &bytes, &[4096]);
    copy.log.confirm(records(&bytes)[5], Epoch(1)).expect("the epoch is right");
    copy.store.close().expect("it closes");
    let store = open_stepped(&disk, config().read_only(true)).expect("it opens");
    assert_eq!(ids(&store), [0, 1, 2, 3, 4]);
}

#[test]
fn a_closed_log_changes_nothing_for_whoever_has_the_directory_now() {
    let disk = disk();
    let copy = copy_of(&disk, config());
    copy.log.enter_epoch(FIRST).expect("it is the first");
    copy.store.close().expect("it closes");
    let other = copy_of(&disk, config());
    let second = EpochStart { epoch: Epoch(2), node: NodeId(2), ..FIRST };
    other.log.enter_epoch(second).expect("it begins here");
    let before = contents(&disk);
    let third = EpochStart { epoch: Epoch(3), ..second };
    let segment_size = copy.log.segment_size();
    for (what, answer) in [
        ("promise", copy.log.promise(Epoch(9))),
        ("enter_epoch", copy.log.enter_epoch(third)),
        ("follow", copy.log.follow(log_id(7), Epoch(9))),
        ("truncate", copy.log.truncate(0)),
        ("restart", copy.log.restart(segment_size)),
        ("prepare_restart", copy.log.prepare_restart(segment_size, &[start("idle", 10)])),
    ] {
        assert!(matches!(answer, Err(Error::Closed)), "{what}: {answer:?}");
    }
    assert_eq!(contents(&disk), before);
}

#[test]
fn a_closed_log_does_not_enter_the_epoch_of_before_replication_either() {
    let disk = disk();
    let copy = copy_of(&disk, config());
    copy.store.close().expect("it closes");
    let _other = copy_of(&disk, config());
    let before = contents(&disk);
    let none = EpochStart { epoch: Epoch(0), start: 0, node: NodeId(0), record_crc: false };
    let answer = copy.log.enter_epoch(none);
    assert!(matches!(answer, Err(Error::Closed)), "{answer:?}");
    assert_eq!(contents(&disk), before);
}

/// Does something before the so many-th call of a kind, on the thread that makes it.
struct Before {
    call: SimCall,
    left: Mutex<usize>,
    does: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl fmt::Debug for Before {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Before").field("call", &self.call).finish_non_exhaustive()
    }
}

impl Hook for Before {
    fn before(&self, call: SimCall) -> io::Result<()> {
        if call != self.call || self.does.lock().expect("no panic").is_none() {
            return Ok(());
        }
        let mut left = self.left.lock().expect("no panic");
        *left = left.saturating_sub(1);
        let is_now = *left == 0;
        drop(left);
        let does = is_now.then(|| self.does.lock().expect("no panic").take()).flatten();
        does.into_iter().for_each(|does| does());
        Ok(())
    }
}

#[test]
fn a_snapshot_that_outlasts_its_store_changes_nothing_for_whoever_has_the_directory_now() {
    let (_original, bytes) = original(8);
    let of_the_store = |disk: &SimDisk| {
        let all = contents(disk).into_iter();
        all.filter(|(path, _)| path.starts_with(DIR)).collect::<Vec<_>>()
    };
    let mut outlasted = 0;
    for nth in 1.. {
        let disk = disk();
        let hook = Arc::new(Before {
            call: SimCall::Rename,
            left: Mutex::new(nth),
            does: Mutex::default(),
        });
        let environment = Environment::on(Hooked::over(disk.shared(), hook.clone()));
        let copy = open_copy_in(environment, config()).expect("the copy opens");
        copy.log.enter_epoch(FIRST).expect("it is the first");
        take_over(&copy, &bytes, &[4096]);
        copy.log.confirm(copy.log.end(), FIRST.epoch).expect("that is the epoch");
        step(&copy.store);
        let next = Arc::new(Mutex::new(None));
        let (store, on, found) = (copy.store.clone(), disk.clone(), next.clone());
        *hook.does.lock().expect("no panic") = Some(Box::new(move || {
            // Where it waits for the snapshot, nobody else has the directory.
            if store.close().is_ok() {
                let other = copy_of(&on, config());
                *found.lock().expect("no panic") = Some((other, of_the_store(&on)));
            }
        }));
        // It may be whole, where it was as good as done.
        let _ = copy.store.snapshot("/backup");
        if hook.does.lock().expect("no panic").is_some() {
            break;
        }
        if let Some((_other, before)) = next.lock().expect("no panic").take() {
            assert!(of_the_store(&disk) == before, "{nth}: it writes there");
            outlasted += 1;
        }
    }
    assert!(outlasted > 0);
}

#[test]
fn that_something_is_confirmed_is_known_at_once_and_how_far_soon_after_whatever_else_happens() {
    let (_, bytes) = original(12);
    let (disk, clock) = (disk(), manual_clock());
    let open = |disk: &SimDisk| timed_copy_of(disk, config(), &clock);
    let copy = open(&disk);
    copy.log.enter_epoch(FIRST).expect("it may");
    take_over(&copy, &bytes, &[4096]);
    let second = records(&bytes)[1];
    copy.log.confirm(second, FIRST.epoch).expect("that is the epoch");
    let copy_disk = disk.cut_power(Cut::losing_all());
    drop(copy);
    let copy = open(&copy_disk);
    assert_eq!(copy.at.confirmed, second, "it knows that it is none that nobody has followed");
    // Word of the rest comes when nothing else does.
    let end = copy.log.end();
    copy.log.confirm(end, FIRST.epoch).expect("that is the epoch");
    copy.store.commit_offset("billing", TOPIC, 0, 12).expect("it may");
    for _ in 0..2 {
        clock.advance(Duration::from_millis(200));
        step(&copy.store);
    }
    let next = copy_disk.kill();
    drop(copy);
    let copy = open(&next);
    assert_eq!(copy.at.confirmed, end);
    assert_eq!(copy.store.get(TOPIC, 0, 0, 99).expect("readable").messages.len(), 12);
}

/// Otherwise it passes for a log that nobody has ever followed, and is given up for another one.
#[test]
fn that_something_is_confirmed_is_durable_though_the_disk_was_behind_at_first() {
    let (_, bytes) = original(40);
    // At once, and after all that comes later.
    for later in [false, true] {
        let (disk, clock) = (disk(), manual_clock());
        let copy = timed_copy_of(&disk, config(), &clock);
        copy.log.enter_epoch(FIRST).expect("it may");
        let end = copy.log.append(0, FIRST.epoch, &bytes).expect("records");
        assert_eq!(copy.log.durable(), 0);
        // Other replicas were faster.
        copy.log.confirm(end / 2, FIRST.epoch).expect("that is the epoch");
        copy.store.step(StoreWorker::Flush);
        assert_eq!(copy.log.durable(), end);
        let confirmed_later = (end / 2..=end).step_by(100).filter(|_| later);
        for at in confirmed_later {
            // What upkeep saves is not durable at once.
            clock.advance(Duration::from_millis(250));
            copy.store.step(StoreWorker::Upkeep);
            copy.log.confirm(at, FIRST.epoch).expect("that is the epoch");
        }
        let next = disk.cut_power(Cut::losing_all());
        drop(copy);
        let copy = timed_copy_of(&next, config(), &clock);
        assert_eq!(copy.at.end, end);
        assert!(copy.at.confirmed > 0, "later: {later}");
    }
}

#[test]
fn the_queue_table_is_never_ahead_of_what_is_known_to_be_confirmed() {
    let (_, bytes) = original(40);
    let (disk, clock) = (disk(), manual_clock());
    let mut config = config();
    config.queue_checkpoint_bytes = 4096;
    let copy = timed_copy_of(&disk, config.clone(), &clock);
    copy.log.enter_epoch(FIRST).expect("it may");
    let end = copy.log.append(0, FIRST.epoch, &bytes).expect("records");
    copy.store.step(StoreWorker::Flush);
    for confirmed in [end / 2, end] {
        copy.log.confirm(confirmed, FIRST.epoch).expect("that is the epoch");
    }
    // Upkeep gets to it first, as it does where the table is saved later.
    for _ in 0..2 {
        clock.advance(Duration::from_millis(250));
        copy.store.step(StoreWorker::Upkeep);
    }
    copy.store.step(StoreWorker::Dispatch);
    copy.store.step(StoreWorker::Checkpoint);
    let next = disk.cut_power(Cut::losing_all());
    drop(copy);
    let copy = timed_copy_of(&next, config, &clock);
    assert_eq!(copy.store.recovery().queues_rebuilt, None);
}

#[test]
fn a_group_is_not_taken_back_to_what_is_known_to_be_confirmed() {
    let (_, bytes) = original(12);
    let disk = disk();
    let copy = copy_of(&disk, config());
    copy.log.enter_epoch(FIRST).expect("it may");
    take_over(&copy, &bytes, &[4096]);
    for end in [records(&bytes)[1], copy.log.end()] {
        copy.log.confirm(end, FIRST.epoch).expect("that is the epoch");
    }
    // Upkeep does not get to saving how far that is.
    copy.store.step(StoreWorker::Dispatch);
    assert_eq!(copy.store.get(TOPIC, 0, 0, 99).expect("readable").messages.len(), 12);
    copy.store.commit_offset("billing", TOPIC, 0, 12).expect("it may");
    let next = disk.kill();
    drop(copy);
    let copy = copy_of(&next, config());
    assert!(copy.store.max_offset(TOPIC, 0) < Some(12), "the rest is to be confirmed anew");
    assert_eq!(copy.store.committed_offset("billing", TOPIC, 0), Some(12));
    assert!(copy.store.recovery().clamped_offsets.is_empty());
    copy.log.confirm(copy.log.end(), FIRST.epoch).expect("that is the epoch");
    step(&copy.store);
    assert_eq!(copy.store.max_offset(TOPIC, 0), Some(12));
}
