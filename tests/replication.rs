//! The four answers of a replicated put, and what readers see meanwhile.

#[path = "support/future.rs"]
mod future;
#[path = "support/sim.rs"]
mod sim;

use duralog::clock::ManualClock;
use duralog::disk::{Cut, CutMoment, Fault, SimCall, SimDisk};
use duralog::replication::{
    Admission, Confirmation, Epoch, NodeId, Refusal, ReplicaBehaviour, ReplicatedLog, Replicator,
    Role, ScriptedReplica, StartPoint,
};
use duralog::{
    Environment, Error, PutResult, PutStatus, Reached, Store, StoreConfig, StoreWorker, Ticket,
    WriteMode,
};
use future::block_on;
use sim::*;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

const AT_ONCE: ReplicaBehaviour = ReplicaBehaviour::Confirm { delay: Duration::ZERO };
const SHORT: Duration = Duration::from_millis(30);

fn replicated(
    config: StoreConfig,
    behaviour: ReplicaBehaviour,
) -> (SimDisk, Store, Arc<ScriptedReplica>) {
    let disk = disk();
    let replica = ScriptedReplica::new(behaviour);
    let store = open_replicated(&disk, config, &replica);
    (disk, store, replica)
}

fn open_replicated(disk: &SimDisk, config: StoreConfig, replica: &Arc<ScriptedReplica>) -> Store {
    Store::open_replicated(config, Environment::on(disk.shared()), replica.clone())
        .expect("the store opens")
}

/// Waits for replicas no longer than a moment.
fn impatient(config: StoreConfig) -> StoreConfig {
    let mut config = config;
    config.sync_replica_timeout = SHORT;
    config
}

#[test]
fn a_confirmed_put_is_ok() {
    for config in [config(), unsynced()] {
        let delay = Duration::from_millis(2);
        let (_disk, store, _replica) = replicated(config, ReplicaBehaviour::Confirm { delay });
        for id in 0..20 {
            let result = store.put(message(id)).expect("accepted");
            assert_eq!(result.status, PutStatus::PutOk);
            assert!(store.stats().watermarks.confirmed >= result.end_offset);
        }
        assert_eq!(ids(&store), (0..20).collect::<Vec<_>>());
        assert_eq!(store.stats().put_ok, 20);
        store.close().expect("the store closes");
    }
}

#[test]
fn a_put_that_is_durable_and_confirmed_has_reached_that() {
    let (_disk, store, _replica) = replicated(config(), AT_ONCE);
    let result = store.put(message(0)).expect("accepted");
    assert_eq!((result.status, result.reached), (PutStatus::PutOk, Reached::Confirmed));
}

#[test]
fn a_silent_replica_times_out() {
    let (_disk, store, _replica) = replicated(impatient(config()), ReplicaBehaviour::Silent);
    let result = store.put(message(0)).expect("stored");
    assert_eq!((result.status, result.reached), (PutStatus::FlushReplicaTimeout, Reached::Durable));
    assert!(matches!(result.ok(), Err(Error::NotOk(_))));
    let ticket = store.submit(message(1)).expect("stored");
    assert_eq!(ticket.wait().expect("stored").status, PutStatus::FlushReplicaTimeout);
    let ticket = store.submit(message(2)).expect("stored");
    assert_eq!(block_on(ticket).expect("stored").status, PutStatus::FlushReplicaTimeout);
    assert_eq!(store.stats().flush_replica_timeouts, 3);
    store.close().expect("the store closes");
}

#[test]
fn a_silent_replica_times_out_under_async_flush() {
    let (_disk, store, _replica) = replicated(impatient(unsynced()), ReplicaBehaviour::Silent);
    let result = store.put(message(0)).expect("stored");
    assert_eq!((result.status, result.reached), (PutStatus::FlushReplicaTimeout, Reached::Written));
}

#[test]
fn an_absent_replica_is_not_waited_for() {
    let mut config = config();
    config.sync_replica_timeout = Duration::from_secs(3600);
    let (_disk, store, _replica) = replicated(config, ReplicaBehaviour::Absent);
    let result = store.put(message(0)).expect("stored");
    assert_eq!((result.status, result.reached), (PutStatus::ReplicaNotAvailable, Reached::Durable));
    assert!(matches!(result.ok(), Err(Error::NotOk(_))));
    assert_eq!(store.stats().replica_not_available, 1);
}

#[test]
fn a_refused_put_stores_nothing() {
    let (disk, store, replica) = replicated(config(), AT_ONCE);
    put(&store, 0);
    replica.behave(ReplicaBehaviour::Refuse);
    let (before, bytes) = (store.stats().watermarks.appended, disk.bytes(segment(0)));
    for id in 1..4 {
        match store.put(message(id)) {
            Err(error @ Error::Refused(_)) => {
                assert!(error.is_retryable());
                let refusal = Refusal::NotEnoughReplicas { available: 0, required: 1 };
                assert!(matches!(error, Error::Refused(why) if why == refusal));
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(matches!(store.put(message(4).wait(false)), Err(Error::Refused(_))));
    assert_eq!(store.stats().watermarks.appended, before);
    assert_eq!(disk.bytes(segment(0)).expect("there"), bytes.expect("there"));
    replica.behave(AT_ONCE);
    assert_eq!(put(&store, 1), 1, "no queue offset was used up");
}

#[test]
fn when_disk_and_replica_both_fall_short_the_replica_is_told() {
    for (behaviour, status) in [
        (ReplicaBehaviour::Silent, PutStatus::FlushReplicaTimeout),
        (ReplicaBehaviour::Absent, PutStatus::ReplicaNotAvailable),
    ] {
        let mut config = impatient(config().sync_flush_timeout(SHORT));
        config.log.close_timeout = SHORT;
        let (disk, store, _replica) = replicated(config, behaviour);
        disk.hang_syncs(true);
        let result = store.put(message(0)).expect("stored");
        assert_eq!(result.status, status);
        assert!(result.reached < Reached::Durable);
        let result = block_on(store.submit(message(1)).expect("stored")).expect("stored");
        assert_eq!(result.status, status);
        disk.hang_syncs(false);
    }
}

#[test]
fn a_confirmed_put_that_is_not_durable_is_a_disk_timeout() {
    let mut config = config().sync_flush_timeout(SHORT);
    config.log.close_timeout = SHORT;
    let (disk, store, _replica) = replicated(config, AT_ONCE);
    disk.hang_syncs(true);
    let result = store.put(message(0)).expect("stored");
    assert_eq!(result.status, PutStatus::FlushDiskTimeout);
    assert!(result.reached < Reached::Durable, "{:?}", result.reached);
    disk.hang_syncs(false);
}

#[test]
fn readers_wait_for_confirmation() {
    for config in [config(), unsynced()] {
        let (_disk, store, replica) = replicated(impatient(config), AT_ONCE);
        put(&store, 0);
        replica.behave(ReplicaBehaviour::Silent);
        let result = store.put(message(1)).expect("stored");
        assert_eq!(result.status, PutStatus::FlushReplicaTimeout);
        assert_eq!(ids(&store), [0]);
        assert_eq!(store.max_offset(TOPIC, 0), Some(1));
        assert!(!store.wait_for(TOPIC, 0, 1, SHORT).expect("the store is open"));
        assert!(store.get_at(result.physical_offset).expect("not corrupt").is_none());
        replica.behave(AT_ONCE);
        assert!(store.wait_for(TOPIC, 0, 1, LONG).expect("the store is open"));
        assert_eq!(ids(&store), [0, 1]);
    }
}

#[test]
fn a_late_confirmation_answers_a_waiting_put() {
    let mut config = config();
    config.sync_replica_timeout = LONG;
    let (_disk, store, replica) = replicated(config, ReplicaBehaviour::Silent);
    let ticket = store.submit(message(0)).expect("stored");
    assert_eq!(ticket.wait_timeout(SHORT).expect("no failure"), None);
    replica.behave(AT_ONCE);
    let result = ticket.wait_timeout(LONG).expect("no failure").expect("it was confirmed");
    assert_eq!((result.status, result.reached), (PutStatus::PutOk, Reached::Confirmed));
}

#[test]
fn an_awaited_put_is_woken_by_its_confirmation() {
    let mut config = config();
    config.sync_replica_timeout = LONG;
    let (_disk, store, replica) = replicated(config, ReplicaBehaviour::Silent);
    let ticket = store.submit(message(0)).expect("stored");
    std::thread::scope(|scope| {
        let awaited = scope.spawn(|| block_on(ticket));
        replica.behave(AT_ONCE);
        let result = awaited.join().expect("no panic").expect("no failure");
        assert_eq!(result.status, PutStatus::PutOk);
    });
}

#[test]
fn a_put_that_does_not_wait_does_not_wait_for_replicas() {
    let mut config = config();
    config.sync_replica_timeout = Duration::from_secs(3600);
    for behaviour in [ReplicaBehaviour::Silent, ReplicaBehaviour::Absent] {
        let (_disk, store, _replica) = replicated(config.clone(), behaviour);
        let result = store.put(message(0).wait(false)).expect("written");
        assert_eq!(result.status, PutStatus::PutOk);
        assert!(result.reached >= Reached::Written);
        assert!(ids(&store).is_empty(), "readers still do not see it");
    }
}

/// The answer to `ticket`, got by `wait` on another thread, in a fraction of the longer of the two
/// timeouts.
fn answer(ticket: Ticket, wait: fn(Ticket) -> duralog::Result<PutResult>) -> PutResult {
    let (sender, answer) = mpsc::channel();
    thread::spawn(move || sender.send(wait(ticket)));
    let answer = answer.recv_timeout(LONG / 4).expect("answered when the shorter timeout passed");
    answer.expect("stored")
}

fn wait_with_patience(ticket: Ticket) -> duralog::Result<PutResult> {
    Ok(ticket.wait_timeout(Duration::MAX)?.expect("an answer"))
}

const WAYS: [fn(Ticket) -> duralog::Result<PutResult>; 3] =
    [Ticket::wait, wait_with_patience, block_on];

#[test]
fn replicas_are_waited_for_no_longer_than_asked_however_patient_the_flush() {
    let config = impatient(config().sync_flush_timeout(LONG * 2));
    let (_disk, store, _replica) = replicated(config, ReplicaBehaviour::Silent);
    for (id, wait) in WAYS.into_iter().enumerate() {
        let ticket = store.submit(message(id as u64)).expect("stored");
        assert_eq!(answer(ticket, wait).status, PutStatus::FlushReplicaTimeout);
    }
}

#[test]
fn the_disk_is_waited_for_no_longer_than_asked_however_patient_the_replication() {
    let mut config = config().sync_flush_timeout(SHORT);
    config.sync_replica_timeout = LONG * 2;
    config.log.close_timeout = SHORT;
    for wait in WAYS {
        // A store each: behind a sync that hangs nothing more is written, and so nothing confirmed.
        let (disk, store, _replica) = replicated(config.clone(), AT_ONCE);
        disk.hang_syncs(true);
        let ticket = store.submit(message(0)).expect("stored");
        assert_eq!(answer(ticket, wait).status, PutStatus::FlushDiskTimeout);
        disk.hang_syncs(false);
    }
}

/// Closes a store while `wait` waits for a replica that will never answer.
fn close_while_waiting(wait: fn(Ticket) -> duralog::Result<PutResult>) {
    let mut config = config();
    config.sync_replica_timeout = LONG * 2;
    let (_disk, store, _replica) = replicated(config, ReplicaBehaviour::Silent);
    let ticket = store.submit(message(0)).expect("stored");
    assert_eq!(ticket.wait_timeout(SHORT).expect("no failure"), None);
    let (sender, answer) = mpsc::channel();
    thread::spawn(move || sender.send(wait(ticket)));
    store.close().expect("the store closes");
    let result = answer.recv_timeout(LONG / 4).expect("answered though no replica ever did");
    assert_eq!(result.expect("stored").status, PutStatus::FlushReplicaTimeout);
}

#[test]
fn closing_answers_an_awaited_put_that_waits_for_replicas() {
    close_while_waiting(block_on);
}

#[test]
fn closing_answers_a_blocked_put_that_waits_for_replicas() {
    close_while_waiting(Ticket::wait);
}

#[test]
fn what_was_there_before_stays_visible_to_a_silent_replica() {
    let (disk, _) = filled(5);
    let replica = ScriptedReplica::new(ReplicaBehaviour::Silent);
    let store = open_replicated(&disk, impatient(config()), &replica);
    assert_eq!(ids(&store), [0, 1, 2, 3, 4]);
    let result = store.put(message(5)).expect("stored");
    assert_eq!(result.status, PutStatus::FlushReplicaTimeout);
    assert_eq!(ids(&store), [0, 1, 2, 3, 4]);
}

#[test]
fn a_replica_that_comes_and_goes_loses_nothing() {
    let (_disk, store, replica) = replicated(impatient(config()), AT_ONCE);
    let behaviours = [AT_ONCE, ReplicaBehaviour::Absent, ReplicaBehaviour::Silent];
    for id in 0..30 {
        replica.behave(behaviours[id as usize % 3]);
        let result = store.put(message(id)).expect("stored");
        assert_eq!(result.queue_offset, id);
    }
    replica.behave(AT_ONCE);
    assert!(store.wait_for(TOPIC, 0, 29, LONG).expect("the store is open"));
    assert_eq!(ids(&store), (0..30).collect::<Vec<_>>());
}

/// Leaves everything to the test.
#[derive(Debug, Default)]
struct Manual {
    log: Mutex<Option<Arc<dyn ReplicatedLog>>>,
    /// Where the log stood when it was started.
    at: Mutex<Option<StartPoint>>,
    epoch: u64,
    follows: bool,
    stopped: AtomicBool,
}

impl Manual {
    fn in_epoch(epoch: u64) -> Arc<Self> {
        Arc::new(Self { epoch, ..Self::default() })
    }

    fn start_point(&self) -> StartPoint {
        self.at.lock().expect("nobody panics").expect("it was started")
    }

    fn log(&self) -> Arc<dyn ReplicatedLog> {
        self.log.lock().expect("nobody panics").clone().expect("it was started")
    }
}

impl Replicator for Manual {
    fn role(&self) -> Role {
        if self.follows { Role::Replica } else { Role::Primary }
    }

    fn start(&self, log: Arc<dyn ReplicatedLog>, at: StartPoint) -> duralog::Result<u64> {
        *self.at.lock().expect("nobody panics") = Some(at);
        let mut confirmed = at.end;
        if self.follows {
            confirmed = log.confirmed();
        } else {
            log.begin_epoch(Epoch(self.epoch), NodeId(1))?;
        }
        *self.log.lock().expect("nobody panics") = Some(log);
        Ok(confirmed)
    }

    fn admit(&self) -> Result<Admission, Refusal> {
        Ok(Admission { epoch: Epoch(self.epoch), confirmation: Confirmation::Awaited })
    }

    fn on_written(&self, _: u64) {}

    fn on_durable(&self, _: u64) {}

    fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
    }
}

fn open_manual(
    disk: &SimDisk,
    config: StoreConfig,
    replica: &Arc<Manual>,
) -> duralog::Result<Store> {
    Store::open_replicated(config, Environment::on(disk.shared()), replica.clone())
}

#[test]
fn an_epoch_whose_records_are_all_lost_is_not_begun_again() {
    let mut disk = disk();
    let mut last = 0;
    for epoch in [1, 2] {
        let store = open_manual(&disk, unsynced(), &Manual::in_epoch(epoch)).expect("it opens");
        last = store.put(message(epoch)).expect("accepted").physical_offset as usize;
        let killed = disk.kill();
        drop(store);
        disk = killed;
    }
    // A replica may have got what is torn here.
    let mut log = disk.bytes(segment(0)).expect("it is there");
    log[last + 8..][..8].fill(0xA5);
    disk.put_file(segment(0), &log).expect("there is room");
    let again = Manual::in_epoch(2);
    let error = open_manual(&disk, unsynced(), &again).map(drop).unwrap_err();
    assert!(matches!(error, Error::Refused(Refusal::EpochFell { .. })), "{error}");
    assert_eq!(again.start_point().begun, Epoch(2));
    let store = open_manual(&disk, unsynced(), &Manual::in_epoch(3)).expect("it opens");
    store.close().expect("it closes");
    let follow = || {
        let follower = Arc::new(Manual { follows: true, ..Manual::default() });
        (open_manual(&disk, unsynced(), &follower).expect("it opens"), follower)
    };
    let (store, follower) = follow();
    assert_eq!(follower.start_point().begun, Epoch(3));
    let log = follower.log();
    log.follow(log.log_id(), Epoch(4)).expect("it is that log");
    store.close().expect("it closes");
    let (store, follower) = follow();
    assert_eq!(follower.start_point().begun, Epoch(0), "another node has reigned");
    store.close().expect("it closes");
}

#[test]
fn a_message_that_is_half_confirmed_is_not_seen() {
    let (disk, replica) = (disk(), Arc::new(Manual::default()));
    let environment = Environment::on(disk.shared());
    let store = Store::open_replicated(impatient(config()), environment, replica.clone())
        .expect("the store opens");
    let put = store.put(message(1)).expect("accepted");
    assert_eq!(put.status, PutStatus::FlushReplicaTimeout);
    let log = replica.log();
    let half = (put.physical_offset + put.end_offset) / 2;
    log.confirm(half, Epoch(0)).expect("the epoch is right");
    assert!(ids(&store).is_empty());
    assert!(store.get_at(put.physical_offset).expect("no damage").is_none());
    assert!(store.stats().watermarks.dispatched <= half);
    log.confirm(put.end_offset, Epoch(0)).expect("the epoch is right");
    assert_eq!(ids(&store), [1]);
    assert!(store.get_at(put.physical_offset).expect("no damage").is_some());
}

#[test]
fn a_replicator_reads_nothing_behind_the_end_of_the_log() {
    let (disk, replica) = (disk(), Arc::new(Manual::default()));
    let config = config().write_mode(WriteMode::Pwrite);
    let environment = Environment::on(disk.shared()).stepped();
    let store = Store::open_replicated(config, environment, replica.clone()).expect("it opens");
    let log = replica.log();
    // A group that goes over to the next segment, where its second write fails.
    let mut at = 0;
    while at < 16 << 10 {
        match store.try_submit(message(at)) {
            Ok(ticket) => at = ticket.physical_offset(),
            Err(_) => drop(store.step(StoreWorker::Upkeep)),
        }
    }
    disk.inject(on_log(Fault::on(SimCall::Write)).nth(2));
    store.step(StoreWorker::Flush);
    assert!(store.health().latched.is_some());
    let slice = log.read(0, u64::MAX).expect("it can be read");
    assert!(slice.offset() + slice.bytes().len() as u64 <= log.end());
}

#[test]
fn an_epoch_does_not_fall_and_does_not_begin_twice() {
    let disk = disk();
    let open = |epoch| open_manual(&disk, config(), &Manual::in_epoch(epoch));
    open(7).expect("the first epoch").close().expect("the store closes");
    for older in [3, 7] {
        match open(older) {
            Err(Error::Refused(Refusal::EpochFell { was: Epoch(7), is })) => {
                assert_eq!(is, Epoch(older));
            }
            other => panic!("{other:?}"),
        }
    }
    open(8).expect("the next epoch").close().expect("the store closes");
}

#[test]
fn an_epoch_is_durable_before_anything_is_written_under_it() {
    let disk = disk();
    let replica = Manual::in_epoch(7);
    let store = open_manual(&disk, config(), &replica).expect("the store opens");
    // Not so much as a put, and no close in order.
    let disk = disk.cut_power(Cut::losing_all());
    drop(store);
    let older = Manual::in_epoch(6);
    match open_manual(&disk, config(), &older) {
        Err(Error::Refused(Refusal::EpochFell { was: Epoch(7), is: Epoch(6) })) => {}
        other => panic!("{other:?}"),
    }
    assert!(!older.stopped.load(Ordering::SeqCst), "it never started");
    let next = Manual::in_epoch(8);
    let store = open_manual(&disk, config(), &next).expect("the store opens");
    assert_eq!(next.start_point().epoch, Epoch(7));
    store.close().expect("the store closes");
    assert!(next.stopped.load(Ordering::SeqCst));
}

#[test]
fn a_log_gets_an_id_with_its_first_epoch_that_no_other_one_has() {
    let begin = |disk: &SimDisk, epoch| {
        let replica = Manual::in_epoch(epoch);
        let store = open_manual(disk, config(), &replica).expect("the store opens");
        (replica.log().log_id().expect("an epoch has begun"), store)
    };
    let (one, other) = (disk(), disk());
    let (first, store) = begin(&one, 7);
    let one = one.cut_power(Cut::losing_all());
    drop(store);
    assert_eq!(begin(&one, 8).0, first);
    assert_ne!(begin(&other, 7).0, first);
}

#[test]
fn an_epoch_that_cannot_be_made_durable_does_not_begin() {
    let disk = disk();
    disk.inject(Fault::on(SimCall::Sync).path("duralog/epochs.tmp"));
    let opened = open_manual(&disk, config(), &Manual::in_epoch(7));
    assert!(matches!(opened, Err(Error::Io { .. })), "{opened:?}");
    let replica = Manual::in_epoch(7);
    let store = open_manual(&disk, config(), &replica).expect("the disk is sound again");
    assert_eq!(replica.start_point().epoch, Epoch(0));
    drop(store);
}

#[test]
fn a_confirmation_from_another_epoch_is_refused() {
    let (disk, replica) = (disk(), Manual::in_epoch(7));
    let store = open_manual(&disk, impatient(config()), &replica).expect("the store opens");
    let log = replica.log();
    let put = store.put(message(1)).expect("stored");
    let before = store.stats().watermarks.confirmed;
    for other in [0, 6, 8, u64::MAX] {
        match log.confirm(put.end_offset, Epoch(other)) {
            Err(Error::Refused(Refusal::EpochFell { was: Epoch(7), .. })) => {}
            outcome => panic!("epoch {other}: {outcome:?}"),
        }
        assert_eq!(store.stats().watermarks.confirmed, before);
        assert!(ids(&store).is_empty());
    }
    log.confirm(put.end_offset, Epoch(7)).expect("the epoch is right");
    assert_eq!(store.stats().watermarks.confirmed, put.end_offset);
    assert_eq!(ids(&store), [1]);
}

#[test]
fn a_confirmation_neither_falls_nor_runs_ahead_of_the_log() {
    let (disk, replica) = (disk(), Manual::in_epoch(1));
    let store = open_manual(&disk, impatient(config()), &replica).expect("the store opens");
    let log = replica.log();
    let first = store.put(message(1)).expect("stored");
    log.confirm(u64::MAX, Epoch(1)).expect("the epoch is right");
    assert_eq!(store.stats().watermarks.confirmed, first.end_offset);
    log.confirm(0, Epoch(1)).expect("the epoch is right");
    assert_eq!(store.stats().watermarks.confirmed, first.end_offset);
    // What comes later was not meant.
    let second = store.put(message(2)).expect("stored");
    assert_eq!(second.status, PutStatus::FlushReplicaTimeout);
    assert_eq!(ids(&store), [1]);
}

#[test]
fn a_replicator_is_told_where_the_log_stands() {
    let (disk, replica) = (disk(), Manual::in_epoch(3));
    let store = open_manual(&disk, impatient(config()), &replica).expect("the store opens");
    let StartPoint { min_offset, end, epoch, .. } = replica.start_point();
    assert_eq!((min_offset, end, epoch), (0, 0, Epoch(0)));
    let mut last = 0;
    // Into the third segment.
    while last < 40 << 10 {
        last = store.put(message(last).wait(false)).expect("stored").end_offset;
    }
    store.close().expect("the store closes");
    // Someone expires what is old.
    disk.drop_file(segment(0)).expect("it is there");
    let replica = Manual::in_epoch(5);
    let store = open_manual(&disk, config(), &replica).expect("the store opens");
    let StartPoint { min_offset, end, epoch, .. } = replica.start_point();
    assert_eq!((min_offset, end, epoch), (16 << 10, last, Epoch(3)));
    let log = replica.log();
    assert_eq!((log.end(), log.durable()), (end, end), "all of it is durable");
    assert_eq!(store.stats().watermarks.confirmed, end);
}

#[test]
fn a_log_that_begins_anew_in_the_middle_shows_what_it_then_takes_over() {
    let (source, puts) = filled(300);
    let begin = 16 << 10;
    let bytes = source.bytes(segment(begin)).expect("there are two segments");
    let (disk, follows) = (disk(), || Arc::new(Manual { follows: true, ..Manual::default() }));
    let replica = follows();
    let store = open_manual(&disk, config(), &replica).expect("the store opens");
    replica.log().restart(begin).expect("it is empty");
    drop(store);
    let replica = follows();
    let store = open_manual(&disk, config(), &replica).expect("the store opens");
    let log = replica.log();
    let end = log.append(begin, Epoch(0), &bytes).expect("the records are sound");
    assert_eq!(end, 2 * begin);
    log.confirm(end, Epoch(0)).expect("the epoch is right");
    let first = puts.iter().position(|put| put.physical_offset >= begin).expect("one") as u64;
    let last = puts.iter().rposition(|put| put.end_offset <= end).expect("one") as u64;
    eventually("all of it is in the queue", || store.max_offset(TOPIC, 0) == Some(last + 1));
    let found = store.get(TOPIC, 0, first, usize::MAX).expect("it can be read").messages;
    assert_eq!(id_of(&found[0].body), first);
}

#[test]
fn an_epoch_survives_a_torn_save_of_what_is_durable() {
    for seed in 0..400 {
        let disk = SimDisk::new(seed);
        let clock = Arc::new(ManualClock::new(1_700_000_000_000));
        let open = |disk: &SimDisk, epoch| {
            let environment = Environment::on(disk.shared()).clock(clock.clone()).stepped();
            let replica = Arc::new(Manual { epoch, ..Manual::default() });
            Store::open_replicated(config(), environment, replica)
        };
        let store = open(&disk, 7).expect("the first epoch");
        for id in 0..2 {
            drop(store.try_submit(message(id)).expect("there is room"));
            store.step(StoreWorker::Flush);
            clock.advance(Duration::from_millis(200));
            if id == 1 {
                disk.cut_at(1, CutMoment::Middle);
            }
            store.step(StoreWorker::Upkeep);
        }
        assert!(disk.is_down(), "nothing was saved");
        let disk = disk.reboot(Cut::seeded(seed));
        drop(store);
        let older = open(&disk, 6);
        assert!(
            matches!(older, Err(Error::Refused(Refusal::EpochFell { .. }))),
            "epoch 7 was forgotten, seed {seed}"
        );
    }
}
