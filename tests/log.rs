//! The log without a store: a plain write-ahead log, made durable by group or by interval.

#[path = "support/sim.rs"]
mod sim;

use duralog::disk::{Allocation, Disk, SimDisk};
use duralog::log::{CommitLog, GroupCommit, IntervalFlush, Patience};
use duralog::message::Draft;
use duralog::{
    Environment, Error, FlushMode, InvalidMessage, LogConfig, Message, PutStatus, Reached,
};
use sim::*;
use std::path::Path;
use std::time::{Duration, Instant};

fn open_log(disk: &SimDisk) -> CommitLog {
    let config = LogConfig::new(DIR).segment_size(4096);
    CommitLog::open_in(config, Environment::on(disk.shared())).expect("the log opens")
}

#[test]
fn a_log_and_a_group_commit_are_a_plain_log() {
    let disk = disk();
    let config = || LogConfig::new(DIR).segment_size(4096);
    let environment = || Environment::on(disk.shared());
    let log = CommitLog::open_in(config(), environment()).expect("the log opens");
    let commits = GroupCommit::start(&log, LONG).expect("a thread");
    let mut places = Vec::new();
    for id in 0..50 {
        let message = message(id);
        let draft = Draft::new(&message, log.layout()).expect("a message");
        let patience = Patience::For(LONG);
        let appended = log.append(&[draft], patience).expect("there is room");
        assert!(commits.wait(&appended).expect("no failure") >= Reached::Durable);
        places.push(appended.physical_offset);
    }
    assert!(matches!(GroupCommit::start(&log, LONG), Err(Error::Config { .. })));
    drop(commits);
    log.close().expect("the log closes");
    let log = CommitLog::open_in(config(), environment()).expect("the log opens");
    for (id, at) in places.iter().enumerate() {
        let view = log.read(*at).expect("readable").expect("there");
        assert_eq!(id_of(view.body()), id as u64);
    }
    assert_eq!(log.records(0).filter(|record| record.is_ok()).count(), 50);
}

#[test]
fn a_log_continues_its_queues_where_it_is_told() {
    let disk = disk();
    let environment = Environment::on(disk.shared());
    let log = CommitLog::open_in(LogConfig::new(DIR).segment_size(4096), environment)
        .expect("the log opens");
    let queue = |id: i32| Message::new(TOPIC, "").queue(id);
    log.continue_queue(TOPIC, 1, 40);
    let append = |messages: &[Message]| {
        let drafts = messages.iter().map(|message| Draft::new(message, log.layout()));
        let drafts: Vec<_> = drafts.collect::<Result<_, _>>().expect("messages");
        log.append(&drafts, Patience::None).expect("there is room").queue_offset
    };
    assert_eq!(append(&[queue(0), queue(1), queue(1), queue(0)]), 0);
    assert_eq!(append(&[queue(1)]), 42);
    log.continue_queue(TOPIC, 0, 7);
    assert_eq!(append(&[queue(0)]), 7);
    log.write().expect("written");
    let offsets: Vec<_> =
        log.records(0).map(|record| record.expect("valid").queue_offset()).collect();
    assert_eq!(offsets, [0, 40, 41, 1, 42, 7]);
}

#[test]
fn a_group_commit_that_hangs_says_how_far_it_came() {
    let disk = disk();
    let mut config = LogConfig::new(DIR).segment_size(4096);
    config.close_timeout = Duration::from_millis(50);
    let log = CommitLog::open_in(config, Environment::on(disk.shared())).expect("the log opens");
    let commits = GroupCommit::start(&log, Duration::from_millis(30)).expect("a thread");
    disk.hang_syncs(true);
    let message = message(0);
    let draft = Draft::new(&message, log.layout()).expect("a message");
    let appended = log.append(&[draft], Patience::None).expect("there is room");
    assert!(commits.wait(&appended).expect("no failure") < Reached::Durable);
    assert!(matches!(commits.stop(), Err(Error::CloseTimeout { .. })));
    assert!(disk.hanging_syncs() > 0, "the sync never ended");
    disk.hang_syncs(false);
}

#[test]
fn an_append_of_nothing_is_refused() {
    let log = open_log(&disk());
    let refused = log.append(&[], Patience::None);
    assert!(matches!(refused, Err(Error::InvalidMessage(InvalidMessage::EmptyBatch))));
    log.write().expect("there is nothing to write");
    log.close().expect("closed");
}

#[test]
fn a_log_that_is_only_read_refuses_records() {
    let disk = disk();
    open_log(&disk).close().expect("closed");
    let mut config = LogConfig::new(DIR).segment_size(4096);
    config.read_only = true;
    let log = CommitLog::open_in(config, Environment::on(disk.shared())).expect("the log opens");
    let message = message(0);
    let draft = Draft::new(&message, log.layout()).expect("a message");
    assert!(matches!(log.append(&[draft], Patience::None), Err(Error::ReadOnly)));
}

#[test]
fn a_queue_ends_before_its_offsets_overflow() {
    let log = open_log(&disk());
    let message = message(0);
    let draft = Draft::new(&message, log.layout()).expect("a message");
    let end = 1 << 56;
    log.continue_queue(TOPIC, 0, end - 2);
    let appended = log.append(&[draft], Patience::None).expect("one is left, and another");
    assert_eq!(appended.queue_offset, end - 2);
    let full = |result| {
        matches!(result, Err(Error::InvalidMessage(InvalidMessage::QueueFull { queue_id: 0 })))
    };
    assert!(full(log.append(&[draft, draft], Patience::None)));
    assert_eq!(log.append(&[draft], Patience::None).expect("the last").queue_offset, end - 1);
    assert!(full(log.append(&[draft], Patience::None)));
    log.continue_queue(TOPIC, 0, u64::MAX);
    assert!(full(log.append(&[draft], Patience::None)));
    let elsewhere = message.queue(1);
    let draft = Draft::new(&elsewhere, log.layout()).expect("a message");
    log.append(&[draft], Patience::None).expect("other queues go on");
}

#[test]
fn an_interval_flush_needs_no_store() {
    let log = open_log(&disk());
    let interval = Duration::from_millis(5);
    let _flush = IntervalFlush::start(&log, interval, 0, interval).expect("a thread");
    let message = message(0);
    let draft = Draft::new(&message, log.layout()).expect("a message");
    let appended = log.append(&[draft], Patience::None).expect("there is room");
    let give_up = Instant::now() + LONG;
    while log.watermarks().durable < appended.end {
        assert!(Instant::now() < give_up, "nobody synced it");
        std::thread::yield_now();
    }
}

/// What a broker leaves that makes its files sparse.
#[test]
fn a_sparse_segment_is_reserved_before_anything_is_stored_to_it() {
    let disk = disk();
    let config = config().flush_mode(FlushMode::async_default());
    let store = open(&disk, config.clone());
    store.close().expect("closed");
    let segment = Path::new(DIR).join("commitlog/00000000000000000000");
    disk.remove(&segment).expect("removed");
    drop(disk.create(&segment, 16 << 10, Allocation::Sparse).expect("made"));
    let store = open(&disk, config);
    assert_eq!(store.put(message(0)).expect("stored").status, PutStatus::PutOk);
    assert_eq!(ids(&store), [0]);
}

#[test]
fn waiting_without_end_is_no_overflow() {
    let disk = SimDisk::new(1);
    let mut config = LogConfig::new(DIR).segment_size(64 << 10);
    config.max_in_flight_bytes = 4096;
    let log = CommitLog::open_in(config, Environment::on(disk.shared())).expect("the log opens");
    let message = Message::new("t", vec![0; 3000]);
    let draft = Draft::new(&message, log.layout()).expect("valid");
    log.append(&[draft], Patience::None).expect("there is room");
    let flush = IntervalFlush::start(&log, Duration::ZERO, 0, Duration::MAX).expect("the first");
    std::thread::scope(|scope| {
        let second = scope.spawn(|| log.append(&[draft], Patience::For(Duration::MAX)));
        while !second.is_finished() {
            log.write().expect("no failure");
        }
        second.join().expect("no panic").expect("there is room again");
    });
    flush.stop().expect("no panic");
    log.write().expect("no failure");
    log.append(&[draft], Patience::None).expect("nothing was latched");
    log.close().expect("nothing was latched");
}

#[test]
fn a_draft_made_for_another_log_is_refused() {
    let disk = disk();
    let mut plain = LogConfig::new("/plain").segment_size(4096);
    plain.record_crc = false;
    let plain = CommitLog::open_in(plain, Environment::on(disk.shared())).expect("it opens");
    let log = open_log(&disk);
    let message = message(1);
    let draft = Draft::new(&message, plain.layout()).expect("a valid message");
    let refused = log.append(&[draft], Patience::None);
    assert!(matches!(refused, Err(Error::InvalidMessage(InvalidMessage::ForeignDraft))));
}
