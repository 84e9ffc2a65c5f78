//! What a store does when its disk fails: an error that tells, no acknowledgement that lies, reads of
//! what is durable, and a way out by reopening.

#[path = "support/future.rs"]
mod future;
#[path = "support/sim.rs"]
mod sim;

use duralog::disk::{Cut, Fault, SimCall, SimDisk, SyncFailure};
use duralog::{
    Error, IoOp, Message, PutStatus, Reached, Store, StoreConfig, StoreWorker, WriteMode,
};
use future::block_on;
use sim::*;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// Whether a failed put says that the store takes no more.
fn is_latched(error: &Error) -> bool {
    matches!(error, Error::Latched { .. } | Error::Unknown { .. })
}

fn first(error: &Error) -> &Error {
    match error {
        Error::Latched { first } | Error::Unknown { first, .. } => first,
        other => other,
    }
}

/// Puts from `from` on until one fails; the ids that were acknowledged, and the error.
fn put_until_failure(store: &Store, from: u64) -> (Vec<u64>, Error) {
    let mut acknowledged = Vec::new();
    for id in from..from + 100 {
        match store.put(message(id)) {
            Ok(result) => {
                assert_eq!(result.status, PutStatus::PutOk);
                acknowledged.push(id);
            }
            Err(error) => return (acknowledged, error),
        }
    }
    panic!("no put failed");
}

/// A store that failed takes nothing more, and gives what is durable.
fn assert_latched(store: &Store, durable: &[u64]) {
    for id in 500..503 {
        let refused = store.put(message(id)).expect_err("a latched store takes nothing");
        assert!(matches!(refused, Error::Latched { .. }), "{refused}");
        let refused = store.submit(message(id)).expect_err("a latched store takes nothing");
        assert!(matches!(refused, Error::Latched { .. }), "{refused}");
    }
    assert!(store.health().latched.is_some() && !store.health().is_ok());
    assert!(matches!(store.flush(), Err(Error::Latched { .. })));
    let found = ids(store);
    assert_eq!(&found[..durable.len()], durable, "durable data must stay readable");
}

/// The n-th sync of the log fails in `failure`'s manner.
fn a_failing_sync(failure: SyncFailure, nth: u64, forever: bool, mode: WriteMode) {
    let disk = disk();
    let config = config().write_mode(mode);
    let store = open(&disk, config.clone());
    let mut durable: Vec<u64> = (0..5).map(|id| put(&store, id)).collect();
    let fault = on_log(Fault::sync(failure).nth(nth));
    disk.inject(if forever { fault.forever() } else { fault });
    let (acknowledged, error) = put_until_failure(&store, 5);
    assert!(is_latched(&error), "{error}");
    assert!(matches!(first(&error), Error::Io { op: IoOp::Sync, .. }), "{error}");
    let Error::Io { path, .. } = first(&error) else { panic!("{error}") };
    assert_eq!(path, Path::new(&segment(0)));
    if failure != SyncFailure::Late {
        assert_eq!(acknowledged.len() as u64, nth - 1, "one sync for each put of a lone producer");
        durable.extend(acknowledged);
    } else {
        // The sync that lied is believed by everyone; those before it were honest.
        durable.extend(acknowledged.into_iter().take(nth as usize - 1));
    }
    assert_latched(&store, &durable);
    let _ = store.close();
    assert!(store.put(message(600)).is_err(), "closing is no way out");
    let (_disk, store) = reopen_after_power_cut(&disk, store, config);
    let found = ids(&store);
    assert_eq!(&found[..durable.len()], durable, "{failure:?}, sync {nth}: a message is lost");
    assert!(store.verify().expect("the log can be read").is_ok());
    assert_eq!(put(&store, 700), found.len() as u64);
    store.close().expect("the store is sound again");
}

#[test]
fn a_sync_that_fails_once_latches_the_store() {
    for mode in [WriteMode::Pwrite, WriteMode::Mmap] {
        for failure in [SyncFailure::KeepNew, SyncFailure::Revert, SyncFailure::Late] {
            for nth in 1..=3 {
                a_failing_sync(failure, nth, false, mode);
            }
        }
    }
}

#[test]
fn a_sync_that_fails_for_ever_latches_the_store() {
    for failure in [SyncFailure::KeepNew, SyncFailure::Revert] {
        for nth in 1..=3 {
            a_failing_sync(failure, nth, true, WriteMode::Pwrite);
        }
    }
}

#[test]
fn a_failed_sync_is_never_tried_again() {
    let disk = disk();
    let store = open(&disk, config());
    put(&store, 0);
    disk.inject(on_log(Fault::sync(SyncFailure::KeepNew)));
    let (_, _) = put_until_failure(&store, 1);
    let before = syncs_of_log(&disk);
    assert_latched(&store, &[0]);
    let _ = store.close();
    assert_eq!(syncs_of_log(&disk), before);
}

#[test]
fn every_waiter_hears_of_a_failed_sync() {
    let disk = disk();
    let store = open(&disk, config());
    put(&store, 0);
    disk.hang_syncs(true);
    disk.inject(on_log(Fault::sync(SyncFailure::KeepNew)).forever());
    let tickets: Vec<_> =
        (1..9).map(|id| store.submit(message(id)).expect("there is room")).collect();
    disk.hang_syncs(false);
    thread::scope(|scope| {
        for ticket in tickets {
            scope.spawn(move || {
                let offset = ticket.physical_offset();
                match ticket.wait() {
                    Err(Error::Unknown { physical_offset, first }) => {
                        assert_eq!(physical_offset, offset);
                        assert!(matches!(*first, Error::Io { op: IoOp::Sync, .. }));
                    }
                    other => panic!("a waiter was told {other:?}"),
                }
            });
        }
    });
    assert_latched(&store, &[0]);
}

#[test]
fn an_awaited_ticket_hears_of_a_failed_sync() {
    let disk = disk();
    let store = open(&disk, config());
    disk.inject(on_log(Fault::sync(SyncFailure::KeepNew)));
    let error = block_on(store.submit(message(0)).expect("there is room")).expect_err("it failed");
    assert!(matches!(error, Error::Unknown { .. }), "{error}");
}

#[test]
fn a_failing_sync_under_async_flush_latches_the_store() {
    let disk = disk();
    let store = open(&disk, unsynced());
    put(&store, 0);
    store.flush().expect("the disk is sound");
    put(&store, 1);
    disk.inject(on_log(Fault::sync(SyncFailure::KeepNew)));
    let error = store.flush().expect_err("the sync fails");
    assert!(matches!(error, Error::Latched { .. }), "{error}");
    assert_latched(&store, &[0]);
    let (_disk, store) = reopen_after_power_cut(&disk, store, unsynced());
    assert_eq!(ids(&store)[0], 0);
}

#[test]
fn a_failing_write_latches_the_store() {
    for bytes in [0, 1, 50, 100, 512] {
        let disk = disk();
        let store = open(&disk, config());
        put(&store, 0);
        disk.inject(on_log(Fault::short_write(bytes)));
        let (acknowledged, error) = put_until_failure(&store, 1);
        assert_eq!(acknowledged, [0u64; 0]);
        assert!(is_latched(&error), "{error}");
        assert!(matches!(first(&error), Error::Io { op: IoOp::Write, .. }), "{error}");
        assert_latched(&store, &[0]);
        let _ = store.close();
        drop(store);
        let store = open(&disk, config());
        let found = ids(&store);
        assert!(found == [0] || found == [0, 1], "{found:?}");
        put(&store, 2);
    }
}

#[test]
fn a_failing_write_under_async_flush_latches_the_store() {
    let disk = disk();
    let config = unsynced().write_mode(WriteMode::Pwrite);
    let store = open(&disk, config.clone());
    put(&store, 0);
    disk.inject(on_log(Fault::short_write(40)));
    let error = store.put(message(1)).expect_err("the write fails");
    assert!(is_latched(&error), "{error}");
    assert_latched(&store, &[0]);
    let next = disk.kill();
    drop(store);
    assert_eq!(ids(&open(&next, config))[0], 0);
}

#[test]
fn one_store_that_latches_leaves_another_alone() {
    let (broken, sound) = (disk(), disk());
    let (one, two) = (open(&broken, config()), open(&sound, config()));
    put(&one, 0);
    put(&two, 0);
    broken.inject(Fault::sync(SyncFailure::KeepNew).forever());
    let (_, error) = put_until_failure(&one, 1);
    assert!(is_latched(&error));
    for id in 1..20 {
        put(&two, id);
    }
    assert_latched(&one, &[0]);
    assert!(two.health().is_ok());
    two.close().expect("nothing is wrong with it");
}

#[test]
fn two_stores_on_one_disk_do_not_disturb_each_other() {
    let disk = disk();
    let one = open(&disk, config());
    let mut other = config();
    other.log.dir = "/other".into();
    let two = open(&disk, other);
    put(&one, 0);
    put(&two, 0);
    disk.inject(Fault::sync(SyncFailure::KeepNew).path("/store/commitlog").forever());
    let (_, error) = put_until_failure(&one, 1);
    assert!(is_latched(&error));
    let acknowledged: Vec<u64> = (1..20).map(|id| put(&two, id)).collect();
    assert_eq!(acknowledged, (1..20).collect::<Vec<_>>());
    assert_latched(&one, &[0]);
    two.close().expect("nothing is wrong with it");
}

/// Everything a store does, with whatever goes wrong written down.
#[derive(Debug, Default)]
struct Run {
    acknowledged: BTreeMap<u64, u64>,
    errors: Vec<String>,
}

/// Opens, puts, reads and closes, and checks of every answer that it is not a lie.
fn run(disk: &SimDisk, config: StoreConfig) -> Run {
    let mut run = Run::default();
    let store = match try_open(disk, config) {
        Ok(store) => store,
        Err(error) => {
            run.errors.push(error.to_string());
            return run;
        }
    };
    let mut failed = false;
    for id in 0..60 {
        match store.put(message(id)) {
            Ok(result) => {
                assert!(!failed, "a put was accepted after a failure: {:?}", run.errors);
                assert_eq!(result.status, PutStatus::PutOk);
                run.acknowledged.insert(id, result.queue_offset);
            }
            Err(error) => {
                failed |= is_latched(&error);
                run.errors.push(error.to_string());
            }
        }
    }
    match store.get(TOPIC, 0, 0, usize::MAX) {
        Ok(fetched) => fetched.messages.iter().for_each(|stored| {
            id_of(&stored.body);
        }),
        Err(error) => run.errors.push(error.to_string()),
    }
    if let Err(error) = store.close() {
        run.errors.push(error.to_string());
    }
    run
}

fn sweep_config() -> StoreConfig {
    let mut config = config().segment_size(4096).consume_queue_file_size(200);
    config.queue_checkpoint_bytes = 4096;
    config.max_open_queue_files = 4;
    config.log.put_timeout = Duration::from_millis(100);
    config.log.close_timeout = Duration::from_secs(10);
    config
}

/// Lets each call of a kind fail in turn, until there are no more of them.
fn sweep(call: SimCall, make: impl Fn() -> Fault) {
    let mut nth = 0;
    loop {
        nth += 1;
        let disk = disk();
        disk.inject(make().nth(nth));
        let outcome = run(&disk, sweep_config());
        if disk.faults_fired() == 0 {
            break;
        }
        let next = disk.cut_power(Cut::losing_all());
        next.clear_faults();
        let store = match try_open(&next, sweep_config()) {
            Ok(store) => store,
            Err(error) => panic!("{call:?} {nth}: not reopened: {error}; {:?}", outcome.errors),
        };
        let found = all(&store);
        for (id, queue_offset) in &outcome.acknowledged {
            let stored = found.get(*queue_offset as usize).unwrap_or_else(|| {
                panic!("{call:?} {nth}: message {id} is lost; {:?}", outcome.errors)
            });
            assert_eq!(id_of(&stored.body), *id);
        }
        put(&store, 1000);
        store.close().expect("nothing fails any more");
    }
    assert!(nth > 1, "{call:?} is never called");
}

#[test]
fn any_sync_may_fail_once() {
    for failure in [SyncFailure::KeepNew, SyncFailure::Revert] {
        sweep(SimCall::Sync, || Fault::sync(failure));
    }
}

#[test]
fn any_directory_sync_may_fail_once() {
    sweep(SimCall::SyncDir, || Fault::on(SimCall::SyncDir));
}

#[test]
fn any_write_may_fail_once() {
    sweep(SimCall::Write, || Fault::short_write(30));
}

#[test]
fn any_control_call_may_fail_once() {
    for call in [
        SimCall::Create,
        SimCall::CreateDir,
        SimCall::Open,
        SimCall::Map,
        SimCall::Prewrite,
        SimCall::List,
        SimCall::Lock,
    ] {
        sweep(call, || Fault::on(call));
    }
}

#[test]
fn any_creation_may_find_the_disk_full() {
    sweep(SimCall::Create, || Fault::on(SimCall::Create).errno(libc::ENOSPC));
    sweep(SimCall::Prewrite, || Fault::on(SimCall::Prewrite).errno(libc::ENOSPC));
    sweep(SimCall::Write, || Fault::on(SimCall::Write).errno(libc::ENOSPC).path("consumequeue"));
}

/// A store whose syncs hang, and who waits for that no longer than a moment.
fn hanging(timeout: Duration) -> (SimDisk, Store) {
    let disk = disk();
    let mut config = config().sync_flush_timeout(timeout);
    config.log.close_timeout = Duration::from_millis(100);
    let store = open(&disk, config);
    put(&store, 0);
    disk.hang_syncs(true);
    (disk, store)
}

#[test]
fn a_sync_that_hangs_for_ever_times_out_a_lone_producer() {
    let (disk, store) = hanging(Duration::from_millis(50));
    let result = store.put(message(1)).expect("stored, if not durable");
    assert_eq!(result.status, PutStatus::FlushDiskTimeout);
    assert!(result.reached < Reached::Durable);
    assert!(matches!(result.ok(), Err(Error::NotOk(_))));
    assert_eq!(ids(&store), [0], "what is not durable is not seen");
    // The deadline begins with the submit.
    let ticket = store.submit(message(2)).expect("there is room");
    let result = ticket.wait().expect("stored, if not durable");
    assert_eq!(result.status, PutStatus::FlushDiskTimeout);
    assert_eq!(store.stats().flush_disk_timeouts, 2);
    assert!(matches!(store.close(), Err(Error::CloseTimeout { .. })));
    assert!(disk.hanging_syncs() > 0, "the sync never ended");
}

#[test]
fn a_sync_that_hangs_for_ever_times_out_an_awaited_ticket() {
    let (disk, store) = hanging(Duration::from_millis(50));
    let ticket = store.submit(message(1)).expect("there is room");
    let result = block_on(ticket).expect("stored, if not durable");
    assert_eq!(result.status, PutStatus::FlushDiskTimeout);
    assert!(matches!(store.close(), Err(Error::CloseTimeout { .. })));
    assert!(disk.hanging_syncs() > 0, "the sync never ended");
}

#[test]
fn a_store_dropped_while_a_sync_hangs_is_let_go() {
    let (disk, store) = hanging(Duration::from_millis(50));
    let result = store.put(message(1)).expect("stored, if not durable");
    assert_eq!(result.status, PutStatus::FlushDiskTimeout);
    drop(store);
    assert!(disk.hanging_syncs() > 0, "the sync never ended");
}

#[test]
fn a_store_whose_thread_was_left_behind_keeps_its_lock() {
    let (disk, store) = hanging(Duration::from_millis(50));
    let _ = store.put(message(1)).expect("stored, if not durable");
    assert!(matches!(store.close(), Err(Error::CloseTimeout { .. })));
    drop(store);
    let second = try_open(&disk, config());
    assert!(matches!(second, Err(Error::Locked { .. })), "{second:?}");
}

#[test]
fn a_flush_that_hangs_gives_up() {
    let (disk, store) = hanging(Duration::from_millis(50));
    let _ = store.put(message(1)).expect("stored, if not durable");
    let error = store.flush().expect_err("it hangs");
    let Error::FlushTimeout { durable, wanted } = error else { panic!("{error}") };
    assert!(durable < wanted && error.is_retryable());
    assert!(store.health().syncing_for.is_some(), "nobody can see what is wrong");
    assert!(disk.hanging_syncs() > 0, "the sync never ended");
    disk.hang_syncs(false);
    eventually("the sync ends", || store.flush().is_ok());
    assert_eq!(store.health().syncing_for, None);
}

#[test]
fn a_store_with_more_queues_than_can_be_synced_in_time_closes_cleanly() {
    const QUEUES: i32 = 500;
    let disk = disk();
    let mut slow = config();
    slow.log.close_timeout = Duration::from_secs(4);
    let store = open(&disk, slow);
    for queue in 0..QUEUES {
        drop(store.submit(message(1).queue(queue)).expect("there is room"));
    }
    store.flush().expect("durable");
    disk.set_sync_latency(Duration::from_millis(20));
    store.close().expect("queues can wait");
    drop(store);
    disk.set_sync_latency(Duration::ZERO);
    let store = open(&disk, config());
    assert!(!store.recovery().unclean, "{:?}", store.recovery());
    for queue in 0..QUEUES {
        assert_eq!(store.get(TOPIC, queue, 0, 9).expect("readable").messages.len(), 1);
    }
}

#[test]
fn a_queue_error_that_has_passed_is_forgotten() {
    let disk = disk();
    let mut config = config();
    config.queue_checkpoint_bytes = 4096;
    let store = open(&disk, config);
    let full = Fault::on(SimCall::Create).path("consumequeue").errno(libc::ENOSPC).forever();
    disk.inject(full);
    (0..100).for_each(|id| assert_eq!(put(&store, id), id));
    eventually("the queues cannot be written", || store.health().queue_error.is_some());
    assert!(!store.health().is_ok());
    disk.clear_faults();
    eventually("they are written again", || {
        put(&store, 100);
        store.health().queue_error.is_none()
    });
    assert!(store.health().is_ok());
}

#[test]
fn an_open_ticket_is_answered_by_close() {
    let (disk, store) = hanging(LONG);
    let ticket = store.submit(message(1)).expect("there is room");
    let (sender, answer) = mpsc::channel();
    thread::spawn(move || sender.send(block_on(ticket)));
    assert!(matches!(store.close(), Err(Error::CloseTimeout { .. })));
    let answer = answer.recv_timeout(LONG / 2).expect("answered though the sync never ended");
    match answer {
        Ok(result) => assert_eq!(result.status, PutStatus::FlushDiskTimeout),
        Err(error) => assert!(error.is_unknown(), "{error}"),
    }
    assert!(disk.hanging_syncs() > 0);
}

#[test]
fn a_sync_that_hangs_for_a_while_only_delays() {
    let (disk, store) = hanging(LONG);
    let ticket = store.submit(message(1)).expect("there is room");
    assert_eq!(ticket.wait_timeout(Duration::from_millis(20)).expect("no failure"), None);
    assert_eq!(ticket.try_get().expect("no failure"), None);
    disk.hang_syncs(false);
    let result = ticket.wait_timeout(LONG).expect("no failure").expect("it was only slow");
    assert_eq!(result.status, PutStatus::PutOk);
    assert_eq!(ticket.try_get().expect("no failure"), Some(result));
    assert_eq!(ids(&store), [0, 1]);
    store.close().expect("nothing is wrong with the store");
}

#[test]
fn what_timed_out_may_become_durable_later() {
    let (disk, store) = hanging(Duration::from_millis(20));
    let result = store.put(message(1)).expect("stored, if not durable");
    assert_eq!(result.status, PutStatus::FlushDiskTimeout);
    disk.hang_syncs(false);
    assert!(store.wait_for(TOPIC, 0, result.queue_offset, LONG).expect("the store is open"));
    assert!(store.stats().watermarks.durable >= result.end_offset);
    let (_disk, store) = reopen_after_power_cut(&disk, store, config());
    assert_eq!(ids(&store), [0, 1]);
}

/// Puts until the disk is full; the ids that were acknowledged.
fn fill(store: &Store, from: u64) -> (Vec<u64>, Error) {
    let (acknowledged, error) = put_until_failure(store, from);
    assert!(!is_latched(&error), "a full disk is no failure: {error}");
    (acknowledged, error)
}

#[test]
fn a_full_disk_stops_puts_and_nothing_else() {
    let disk = disk();
    let config = config().segment_size(4096).consume_queue_file_size(6_000_000);
    let store = open(&disk, config.clone());
    let mut stored = vec![put(&store, 0)];
    disk.set_capacity(disk.used());
    let (acknowledged, error) = fill(&store, 1);
    stored.extend(&acknowledged);
    let Error::DiskFull { path, needed, .. } = &error else { panic!("{error}") };
    assert!(path.starts_with("/store/commitlog"), "{error}");
    assert_eq!(*needed, 4096);
    assert!(error.is_retryable());
    for _ in 0..5 {
        // As long as the one that was refused.
        let refused = store.put(message(1 + acknowledged.len() as u64));
        assert!(matches!(refused, Err(Error::DiskFull { .. })));
    }
    assert_eq!(ids(&store), stored);
    assert_eq!(store.max_offset(TOPIC, 0), Some(stored.len() as u64), "nothing was stored");
    disk.set_capacity(1 << 40);
    let next = stored.len() as u64;
    assert_eq!(put(&store, next), next, "no queue offset was used up");
    stored.push(next);
    store.close().expect("nothing is wrong with the store");
    drop(store);
    assert_eq!(ids(&open(&disk, config)), stored);
}

#[test]
fn a_disk_may_be_full_at_every_allocation() {
    // From an empty disk to one that holds it all, one page more each time.
    let mut seen_full = 0;
    for pages in 0..40 {
        let disk = disk();
        disk.set_capacity(pages * 4096);
        let mut config = sweep_config();
        config.log.put_timeout = Duration::from_secs(5);
        let store = match try_open(&disk, config.clone()) {
            Ok(store) => store,
            Err(error) => {
                let full = matches!(&error, Error::DiskFull { .. })
                    || matches!(&error, Error::Io { source, .. }
                        if source.kind() == std::io::ErrorKind::StorageFull);
                assert!(full, "{pages} pages: {error}");
                disk.set_capacity(1 << 40);
                let store = open(&disk, config);
                put(&store, 0);
                seen_full += 1;
                continue;
            }
        };
        let mut stored = Vec::new();
        for id in 0..60 {
            match store.put(message(id)) {
                Ok(result) => stored.push((id, result.ok().expect("the put is safe"))),
                Err(Error::DiskFull { .. }) => seen_full += 1,
                Err(error) => panic!("{pages} pages: {error}"),
            }
        }
        let expected: Vec<u64> = stored.iter().map(|put| put.0).collect();
        let offsets: Vec<u64> = stored.iter().map(|put| put.1.queue_offset).collect();
        assert_eq!(offsets, (0..offsets.len() as u64).collect::<Vec<_>>());
        assert_eq!(ids(&store), expected, "{pages} pages");
        disk.set_capacity(1 << 40);
        put(&store, 1000);
        store.close().unwrap_or_else(|error| panic!("{pages} pages: {error}"));
        drop(store);
        let store = open(&disk, config);
        assert_eq!(ids(&store), [expected, vec![1000]].concat());
        assert!(store.verify().expect("the log can be read").is_ok());
    }
    assert!(seen_full > 40, "the disk was hardly ever full");
}

#[test]
fn a_full_disk_at_close_loses_nothing() {
    for pages in 0..6 {
        let disk = disk();
        let store = open(&disk, sweep_config());
        let stored: Vec<u64> = (0..30).map(|id| put(&store, id)).collect();
        disk.set_capacity(disk.used() + pages * 4096);
        let _ = store.close();
        drop(store);
        disk.set_capacity(1 << 40);
        assert_eq!(ids(&open(&disk, sweep_config())), stored);
    }
}

#[test]
fn a_full_disk_for_queue_files_holds_up_no_put() {
    let disk = disk();
    let mut config = config().segment_size(64 << 10).consume_queue_file_size(40);
    config.queue_checkpoint_bytes = 4096;
    let store = open(&disk, config.clone());
    disk.inject(Fault::on(SimCall::Write).path("consumequeue").errno(libc::ENOSPC).forever());
    disk.inject(Fault::on(SimCall::Create).path("consumequeue").errno(libc::ENOSPC).forever());
    let stored: Vec<u64> = (0..100).map(|id| put(&store, id)).collect();
    eventually("the queues are written", || disk.faults_fired() > 0);
    assert!(store.wait_for(TOPIC, 0, 99, LONG).expect("the store is open"));
    assert_eq!(ids(&store), stored, "queue entries are read from memory");
    assert!(store.health().latched.is_none());
    disk.clear_faults();
    put(&store, 100);
    let (_disk, store) = reopen_after_power_cut(&disk, store, config);
    assert_eq!(ids(&store), (0..=100).collect::<Vec<_>>());
    assert!(store.verify().expect("the log can be read").is_ok());
}

#[test]
fn a_read_only_disk_opens_only_read_only() {
    let (disk, _) = filled(5);
    disk.set_read_only(true);
    let refused = try_open(&disk, config());
    assert!(matches!(refused, Err(Error::Io { .. })), "{refused:?}");
    let store = open(&disk, config().read_only(true));
    assert_eq!(ids(&store), [0, 1, 2, 3, 4]);
    assert!(matches!(store.put(message(5)), Err(Error::ReadOnly)));
    assert!(store.verify().expect("the log can be read").is_ok());
    store.close().expect("there is nothing to write");
    disk.set_read_only(false);
    put(&open(&disk, config()), 5);
}

#[test]
fn an_empty_read_only_disk_is_a_typed_error() {
    let disk = disk();
    disk.set_read_only(true);
    let refused = try_open(&disk, config());
    assert!(matches!(refused, Err(Error::Io { .. })), "{refused:?}");
    disk.set_read_only(false);
    put(&open(&disk, config()), 0);
}

#[test]
fn a_disk_that_becomes_read_only_stops_puts_and_no_reads() {
    let disk = disk();
    let mut config = config().segment_size(4096);
    config.log.put_timeout = Duration::from_millis(200);
    let store = open(&disk, config.clone());
    let mut stored = vec![put(&store, 0)];
    disk.set_read_only(true);
    let (acknowledged, error) = put_until_failure(&store, 1);
    stored.extend(acknowledged);
    assert!(!matches!(error, Error::DiskFull { .. }), "{error}");
    assert_eq!(ids(&store)[..stored.len()], stored);
    let _ = store.close();
    drop(store);
    disk.set_read_only(false);
    let store = open(&disk, config);
    assert_eq!(ids(&store)[..stored.len()], stored);
    put(&store, 900);
}

#[test]
fn a_put_to_a_closed_store_is_refused() {
    let disk = disk();
    let store = open(&disk, config());
    let clone = store.clone();
    store.close().expect("the store closes");
    assert!(matches!(clone.put(message(0)), Err(Error::Closed)));
    assert!(matches!(clone.put_batch(&[message(0)]), Err(Error::Closed)));
    assert!(matches!(clone.submit(message(0)), Err(Error::Closed)));
    assert!(matches!(clone.wait_for(TOPIC, 0, 0, LONG), Err(Error::Closed)));
    clone.close().expect("closing twice is allowed");
}

#[test]
fn in_flight_bytes_are_bounded() {
    let disk = disk();
    let mut config = config().sync_flush_timeout(LONG);
    config.log.max_in_flight_bytes = 4096;
    config.log.put_timeout = Duration::from_millis(50);
    let store = open(&disk, config);
    put(&store, 0);
    disk.hang_syncs(true);
    let mut tickets = Vec::new();
    let message = Message::new(TOPIC, vec![1; 500]);
    let waited = loop {
        match store.submit(&message) {
            Ok(ticket) => tickets.push(ticket),
            Err(error) => break error,
        }
        assert!(tickets.len() < 1000, "nothing holds the producer back");
    };
    assert!(matches!(waited, Error::Full), "{waited}");
    assert!(matches!(store.try_submit(&message), Err(Error::Full)));
    assert!(waited.is_retryable());
    disk.hang_syncs(false);
    for ticket in tickets {
        assert_eq!(ticket.wait().expect("no failure").status, PutStatus::PutOk);
    }
    let ticket = store.submit(Message::new(TOPIC, "more")).expect("there is room again");
    assert_eq!(ticket.wait().expect("no failure").status, PutStatus::PutOk);
}

#[test]
fn a_failing_read_is_an_error_of_that_read_alone() {
    let (disk, _) = filled(5);
    let store = open(&disk, config());
    disk.inject(on_log(Fault::on(SimCall::Map)));
    disk.inject(on_log(Fault::on(SimCall::Open)));
    disk.inject(Fault::on(SimCall::Read).path("consumequeue"));
    for _ in 0..4 {
        match store.get(TOPIC, 0, 0, 10) {
            Ok(fetched) => assert_eq!(fetched.messages.len(), 5),
            Err(error) => assert!(matches!(error, Error::Io { .. }), "{error}"),
        }
    }
    assert_eq!(ids(&store), [0, 1, 2, 3, 4]);
    assert!(store.health().is_ok());
    put(&store, 5);
}

#[test]
fn a_failing_checkpoint_is_told_and_loses_nothing() {
    let disk = disk();
    let config = sweep_config();
    let store = open(&disk, config.clone());
    put(&store, 0);
    // Not the segments to come: they are made in the same directory.
    disk.inject(Fault::sync(SyncFailure::KeepNew).path("duralog/checkpoint").forever());
    disk.inject(Fault::on(SimCall::Write).path("duralog/checkpoint").forever());
    let mut acknowledged = vec![0];
    for id in 1..60 {
        match store.put(message(id)) {
            Ok(result) => {
                assert_eq!(result.status, PutStatus::PutOk);
                acknowledged.push(id);
            }
            Err(error) => {
                assert!(is_latched(&error), "{error}");
                break;
            }
        }
    }
    let closed = store.close();
    assert!(closed.is_err(), "a store that could not be marked clean closed without an error");
    let (_disk, store) = reopen_after_power_cut(&disk, store, config);
    assert_eq!(ids(&store)[..acknowledged.len()], acknowledged);
}

#[test]
fn an_error_names_its_file() {
    let disk = disk();
    // A segment gets its own name once it is whole.
    let temporary = format!("{DIR}/duralog/{:020}.tmp", 0);
    disk.inject(Fault::on(SimCall::Create).path(&temporary));
    match try_open(&disk, config()) {
        Err(Error::Io { op: IoOp::Create | IoOp::Allocate, path, .. }) => {
            assert_eq!(path, Path::new(&temporary));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_store_on_a_full_disk_opens_or_says_that_it_is_full() {
    let disk = disk();
    let store = open(&disk, config());
    (0..20).for_each(|id| assert_eq!(put(&store, id), id));
    let next = disk.kill();
    drop(store);
    next.set_capacity(next.used());
    match try_open(&next, config()) {
        Ok(store) => assert_eq!(ids(&store), (0..20).collect::<Vec<_>>()),
        Err(error) => assert!(matches!(error, Error::DiskFull { .. }), "{error}"),
    }
    next.set_capacity(1 << 40);
    assert_eq!(ids(&open(&next, config())), (0..20).collect::<Vec<_>>());
}

#[test]
fn a_reader_that_meets_a_bad_entry_does_not_wait_for_a_checkpoint() {
    let disk = disk();
    let mut config = config();
    config.queue_checkpoint_bytes = 4096;
    let store = open(&disk, config.clone());
    put(&store, 0);
    store.close().expect("closed");
    drop(store);
    disk.flip_bit(format!("{DIR}/consumequeue/{TOPIC}/0/{:020}", 0), 11, 1).expect("it is there");
    let store = open_stepped(&disk, config).expect("the store opens");
    for id in 0..20 {
        let _ticket = store.try_submit(Message::new("many", body(id))).expect("there is room");
        store.step(StoreWorker::Flush);
    }
    store.step(StoreWorker::Dispatch);
    disk.hang_syncs(true);
    thread::scope(|scope| {
        let (sender, answer) = mpsc::channel();
        let store = &store;
        scope.spawn(|| store.step(StoreWorker::Checkpoint));
        eventually("the checkpoint hangs", || disk.hanging_syncs() > 0);
        scope.spawn(move || sender.send(store.get(TOPIC, 0, 0, 1)));
        let answered = answer.recv_timeout(LONG);
        disk.hang_syncs(false);
        let error = answered.expect("an answer").expect_err("a bad entry");
        assert!(matches!(error, Error::Corrupt { .. }), "{error}");
    });
    assert!(!disk.files().contains(&Path::new(DIR).join("duralog/queues")), "the table is there");
}

#[test]
fn a_queue_file_whose_sync_failed_is_whole_after_a_reopen_and_a_power_cut() {
    let disk = disk();
    let config = config().consume_queue_file_size(200);
    let store = open(&disk, config.clone());
    (0..25).for_each(|id| assert_eq!(put(&store, id), id));
    let second = format!("consumequeue/{TOPIC}/0/{:020}", 200);
    disk.inject(Fault::sync(SyncFailure::KeepNew).path(second));
    assert!(store.close().is_err());
    drop(store);
    let store = open(&disk, config.clone());
    assert_eq!(ids(&store), (0..25).collect::<Vec<_>>());
    store.close().expect("closed");
    drop(store);
    let next = disk.cut_power(Cut::losing_all());
    assert_eq!(ids(&open(&next, config)), (0..25).collect::<Vec<_>>());
}

#[test]
fn a_store_opens_without_an_index_that_cannot_be_read() {
    let (disk, _) = filled(5);
    disk.inject(Fault::on(SimCall::Open).path("/store/index/"));
    let store = open(&disk, config());
    put(&store, 5);
    assert_eq!(ids(&store), [0, 1, 2, 3, 4, 5]);
    let refused = store.query(TOPIC, "k1", 9, 0..=i64::MAX);
    assert!(matches!(refused, Err(Error::Io { .. })));
    assert!(store.health().queue_error.is_some());
    store.close().expect("the rest is sound");
    drop(store);
    disk.clear_faults();
    let store = open(&disk, config());
    for id in [1, 5] {
        let found = store.query(TOPIC, &format!("k{id}"), 9, 0..=i64::MAX).expect("an index");
        assert_eq!(found.len(), 1, "message {id}");
    }
    assert!(store.health().queue_error.is_none());
}
