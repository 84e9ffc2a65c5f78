//! How long is waited before an answer that is no success: as long as was asked, counted from the call.
//! That it is no longer cannot be told on a busy machine, but where the clock moves only when told to.

#[path = "support/future.rs"]
mod future;
#[path = "support/sim.rs"]
mod sim;

use duralog::clock::ManualClock;
use duralog::log::{CommitLog, GroupCommit, Patience};
use duralog::message::Draft;
use duralog::replication::{ReplicaBehaviour, ScriptedReplica};
use duralog::{
    Environment, Error, LogConfig, PutResult, PutStatus, Reached, Store, StoreConfig, StoreWorker,
    Ticket,
};
use future::block_on;
use sim::*;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

/// Long enough that a tenth of it would show, and what else a put does would not hide that.
const TIMEOUT: Duration = Duration::from_millis(300);
/// The shortest time that can be asked for.
const MOMENT: Duration = Duration::from_millis(1);
const TICK: Duration = Duration::from_micros(1);

/// What `call` answers, which takes at least `TIMEOUT`.
fn in_no_less<T>(call: impl FnOnce() -> T) -> T {
    let started = Instant::now();
    let answer = call();
    let took = started.elapsed();
    assert!(took >= TIMEOUT, "answered after {took:?}");
    answer
}

fn waiting(flush: Duration, replica: Duration) -> StoreConfig {
    let mut config = config().sync_flush_timeout(flush);
    config.sync_replica_timeout = replica;
    // Syncs that hang are left behind.
    config.log.close_timeout = Duration::from_millis(20);
    config
}

/// Replicated to where no answer comes from.
fn silent(config: StoreConfig, environment: Environment) -> Store {
    let replica = ScriptedReplica::new(ReplicaBehaviour::Silent);
    Store::open_replicated(config, environment, replica).expect("the store opens")
}

#[test]
fn a_put_waits_for_the_disk_as_long_as_it_was_asked_to() {
    let disk = disk();
    let store = open(&disk, waiting(TIMEOUT, LONG));
    disk.hang_syncs(true);
    let result = in_no_less(|| store.put(message(0)).expect("stored"));
    assert_eq!(result.status, PutStatus::FlushDiskTimeout);
    let result = in_no_less(|| store.put_batch(&[message(1), message(2)]).expect("stored"));
    assert_eq!(result.status, PutStatus::FlushDiskTimeout);
    for wait in WAYS {
        let result =
            in_no_less(|| wait(store.submit(message(3)).expect("stored")).expect("stored"));
        assert_eq!(result.status, PutStatus::FlushDiskTimeout);
    }
}

#[test]
fn a_put_waits_for_replicas_as_long_as_it_was_asked_to() {
    for config in [waiting(LONG, TIMEOUT), waiting(MOMENT, TIMEOUT)] {
        let disk = disk();
        let store = silent(config, Environment::on(disk.shared()));
        let result = in_no_less(|| store.put(message(0)).expect("stored"));
        assert_eq!(result.status, PutStatus::FlushReplicaTimeout);
        for wait in WAYS {
            let result =
                in_no_less(|| wait(store.submit(message(1)).expect("stored")).expect("stored"));
            assert_eq!(result.status, PutStatus::FlushReplicaTimeout);
        }
    }
}

#[test]
fn a_group_commit_waits_as_long_as_it_was_asked_to() {
    let disk = disk();
    let mut config = LogConfig::new(DIR).segment_size(4096);
    config.close_timeout = Duration::from_millis(20);
    let log = CommitLog::open_in(config, Environment::on(disk.shared())).expect("the log opens");
    let commits = GroupCommit::start(&log, TIMEOUT).expect("a thread");
    disk.hang_syncs(true);
    let message = message(0);
    let draft = Draft::new(&message, log.layout()).expect("a message");
    let appended = log.append(&[draft], Patience::None).expect("there is room");
    let reached = in_no_less(|| commits.wait(&appended).expect("no failure"));
    assert!(reached < Reached::Durable);
}

#[test]
fn a_flush_waits_as_long_as_closing_may() {
    let disk = disk();
    let mut config = waiting(MOMENT, LONG);
    config.log.close_timeout = TIMEOUT;
    let store = open(&disk, config);
    disk.hang_syncs(true);
    let _ = store.put(message(0)).expect("stored");
    let error = in_no_less(|| store.flush().expect_err("it hangs"));
    assert!(matches!(error, Error::FlushTimeout { .. }), "{error}");
}

#[test]
fn a_put_waits_for_room_as_long_as_it_was_asked_to() {
    let disk = disk();
    let mut config = waiting(LONG, LONG);
    config.log.max_in_flight_bytes = 4096;
    config.log.put_timeout = TIMEOUT;
    let store = open(&disk, config);
    disk.hang_syncs(true);
    // The write that goes before the sync that hangs may make room once more.
    let error = loop {
        let started = Instant::now();
        if let Err(error) = store.submit(message(0)) {
            assert!(started.elapsed() >= TIMEOUT, "refused after {:?}", started.elapsed());
            break error;
        }
    };
    assert!(matches!(error, Error::Full), "{error}");
}

fn wait_with_patience(ticket: Ticket) -> duralog::Result<PutResult> {
    Ok(ticket.wait_timeout(Duration::MAX)?.expect("an answer"))
}

const WAYS: [fn(Ticket) -> duralog::Result<PutResult>; 3] =
    [Ticket::wait, wait_with_patience, block_on];

/// A store without threads on a clock that stands still.
fn stepped(config: StoreConfig, replicated: bool) -> (Store, Arc<ManualClock>) {
    let clock = Arc::new(ManualClock::new(1_700_000_000_000));
    let disk = disk();
    let environment = Environment::on(disk.shared()).clock(clock.clone()).stepped();
    let store = if replicated {
        silent(config, environment)
    } else {
        Store::open_in(config, environment).expect("the store opens")
    };
    (store, clock)
}

/// `ticket` is answered when so much time has passed, and not a tick before.
fn assert_answered_in(
    time: Duration,
    clock: &ManualClock,
    ticket: &Ticket,
    expected: (PutStatus, Reached),
) {
    clock.advance(time - TICK);
    assert_eq!(ticket.try_get().expect("no failure"), None, "a tick early");
    clock.advance(TICK);
    let result = ticket.try_get().expect("no failure").expect("the time is up");
    assert_eq!((result.status, result.reached), expected);
}

#[test]
fn the_time_for_the_disk_counts_from_the_submit() {
    let (store, clock) = stepped(waiting(TIMEOUT, LONG), false);
    let ticket = store.submit(message(0)).expect("stored");
    clock.advance(TIMEOUT / 3);
    // As if two waited: neither takes the other's deadline.
    let second = store.submit_batch(&[message(1), message(2)]).expect("stored");
    let expected = (PutStatus::FlushDiskTimeout, Reached::Appended);
    assert_answered_in(TIMEOUT - TIMEOUT / 3, &clock, &ticket, expected);
    assert_answered_in(TIMEOUT / 3, &clock, &second, expected);
}

#[test]
fn the_time_for_replicas_counts_from_the_submit() {
    let (store, clock) = stepped(waiting(LONG, TIMEOUT), true);
    let ticket = store.submit(message(0)).expect("stored");
    clock.advance(TIMEOUT / 2);
    // The disk's share of the time is the replicas' as well.
    store.step(StoreWorker::Flush);
    let expected = (PutStatus::FlushReplicaTimeout, Reached::Durable);
    assert_answered_in(TIMEOUT - TIMEOUT / 2, &clock, &ticket, expected);
}

#[test]
fn the_later_of_two_deadlines_is_waited_for() {
    for (flush, replica) in [(TIMEOUT, TIMEOUT * 3), (TIMEOUT * 3, TIMEOUT)] {
        let (store, clock) = stepped(waiting(flush, replica), true);
        let ticket = store.submit(message(0)).expect("stored");
        let expected = (PutStatus::FlushReplicaTimeout, Reached::Appended);
        assert_answered_in(TIMEOUT * 3, &clock, &ticket, expected);
    }
}

/// The answer to `ticket`, got on another thread by `wait`, which would take an hour if its time began
/// with it.
fn assert_answered_at_once(
    ticket: Ticket,
    wait: fn(Ticket) -> duralog::Result<PutResult>,
    expected: PutStatus,
) {
    let (sender, answer) = mpsc::channel();
    thread::spawn(move || sender.send(wait(ticket)));
    let answer = answer.recv_timeout(LONG / 4).expect("answered though its time was up before");
    assert_eq!(answer.expect("stored").status, expected);
}

#[test]
fn a_ticket_whose_time_is_up_is_answered_at_once() {
    for wait in WAYS {
        for replicated in [false, true] {
            let (store, clock) = stepped(waiting(TIMEOUT, TIMEOUT), replicated);
            let ticket = store.submit(message(0)).expect("stored");
            clock.advance(Duration::from_secs(3600));
            let mut expected = PutStatus::FlushDiskTimeout;
            if replicated {
                store.step(StoreWorker::Flush);
                expected = PutStatus::FlushReplicaTimeout;
            }
            assert_answered_at_once(ticket, wait, expected);
        }
    }
}
