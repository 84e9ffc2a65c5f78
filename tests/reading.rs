//! Reading: read-only stores, filters, times, views that outlive their store, awaited puts.

#[path = "support/future.rs"]
mod future;
#[path = "support/sim.rs"]
mod sim;
#[path = "support/temp.rs"]
mod temp;

use duralog::clock::{Clock, ManualClock, SystemClock};
use duralog::disk::SimDisk;
use duralog::message::{SysFlag, java_string_hash};
use duralog::{
    Corruption, Environment, Error, FetchStatus, FlushMode, Message, MessageView, PutStatus,
    RecoveryMode, Store, StoreConfig, StoreWorker, TagFilter, TimeBound, Visibility,
};
use future::block_on;
use sim::*;
use std::collections::BTreeMap;
use std::fs;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Context, Wake, Waker};
use std::time::{Duration, Instant};
use temp::TempDir;

/// Read-only, and shown what may not be durable, too.
fn looking(config: StoreConfig) -> StoreConfig {
    config.read_only(true).visibility(Visibility::Appended)
}

/// Uses a read-only store in every way that there is.
fn read_everything(store: &Store, count: u64) {
    assert_eq!(ids(store), (0..count).collect::<Vec<_>>());
    assert!(store.verify().expect("the log can be read").is_ok());
    let _ = (store.stats(), store.health(), store.topics());
    assert_eq!(store.max_offset(TOPIC, 0), Some(count));
    assert!(store.offset_by_time(TOPIC, 0, 0, TimeBound::Lower).expect("readable").is_some());
    assert!(matches!(store.put(message(0)), Err(Error::ReadOnly)));
    assert!(matches!(store.put_batch(&[message(0)]), Err(Error::ReadOnly)));
    assert!(matches!(store.submit(message(0)), Err(Error::ReadOnly)));
    assert!(matches!(store.try_submit(message(0)), Err(Error::ReadOnly)));
    store.flush().expect("there is nothing to flush");
}

fn read_only_changes_nothing(disk: &SimDisk, count: u64) {
    let (files, mutations) = (contents(disk), disk.mutations());
    let store = open(disk, looking(config()));
    read_everything(&store, count);
    store.close().expect("there is nothing to do");
    drop(store);
    assert!(contents(disk) == files, "a read-only store changed a file");
    assert_eq!(disk.mutations(), mutations, "a read-only store tried to change something");
}

#[test]
fn a_read_only_store_changes_nothing_after_a_clean_close() {
    read_only_changes_nothing(&filled(100).0, 100);
}

#[test]
fn a_read_only_store_changes_nothing_after_a_crash() {
    let (disk, _) = unsynced_tail(100);
    read_only_changes_nothing(&disk, 100);
}

#[test]
fn a_read_only_store_changes_nothing_where_a_tail_is_torn() {
    let (disk, puts) = unsynced_tail(5);
    let (from, to) = (puts[4].physical_offset as usize + 60, puts[4].end_offset as usize);
    disk.edit(segment(0), |bytes| bytes[from..to].fill(0)).expect("the log is there");
    let files = contents(&disk);
    let store = open(&disk, looking(config()));
    assert_eq!(ids(&store), [0, 1, 2, 3]);
    let cut = store.recovery().cut.as_ref().expect("it says what it left out");
    assert_eq!((cut.offset, cut.next_valid), (puts[4].physical_offset, None));
    drop(store);
    assert!(contents(&disk) == files, "a read-only store changed a file");
}

#[test]
fn a_read_only_store_says_that_messages_follow_the_damage() {
    let (disk, puts) = unsynced_tail(6);
    disk.flip_bit(segment(0), puts[2].end_offset - 40, 3).expect("the log is there");
    let files = contents(&disk);
    let read_only = |mode| try_open(&disk, looking(config()).recovery_mode(mode));

    let error = read_only(RecoveryMode::Strict).expect_err("damaged");
    let what = Corruption::SuspectedRot { next_valid: puts[3].physical_offset };
    assert!(matches!(&error, Error::Corrupt { what: found, .. } if *found == what), "{error}");

    let store = read_only(RecoveryMode::TolerateTail).expect("readable up to there");
    assert_eq!(ids(&store), [0, 1]);
    let cut = store.recovery().cut.clone().expect("it says what it left out");
    assert_eq!(cut.next_valid, Some(puts[3].physical_offset));
    assert_eq!((cut.offset, cut.bytes), (puts[2].physical_offset, puts[5].end_offset - cut.offset));

    let store = read_only(RecoveryMode::Salvage).expect("readable");
    assert_eq!(ids(&store), [0, 1, 3, 4, 5]);
    let salvaged = &store.recovery().salvaged;
    assert!(matches!(&salvaged[..], [hole] if hole.offset == puts[2].physical_offset));
    drop(store);
    assert!(contents(&disk) == files, "a read-only store changed a file");
}

#[test]
fn a_read_only_store_needs_no_queue_files() {
    let (disk, _) = filled(50);
    for path in disk.files().iter().filter(|path| path.starts_with("/store/consumequeue")) {
        disk.drop_file(path).expect("it is there");
    }
    let files = contents(&disk);
    let store = open(&disk, config().read_only(true));
    assert_eq!(ids(&store), (0..50).collect::<Vec<_>>());
    drop(store);
    assert!(contents(&disk) == files, "a read-only store changed a file");
}

#[test]
fn a_read_only_store_creates_nothing() {
    let disk = disk();
    let error = try_open(&disk, config().read_only(true)).expect_err("there is no store");
    assert!(error.to_string().contains("/store/commitlog"), "{error}");
    assert!(disk.files().is_empty() && disk.mutations() == 0);
}

fn files_below(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).expect("a directory").flatten() {
        if entry.path().is_dir() {
            found.extend(files_below(&entry.path()));
        } else {
            found.insert(entry.path(), fs::read(entry.path()).expect("a file"));
        }
    }
    found
}

fn on_host(dir: &TempDir) -> StoreConfig {
    StoreConfig::new(dir.path()).segment_size(64 << 10)
}

#[test]
fn a_read_only_store_changes_no_real_file() {
    let dir = TempDir::new();
    let store = Store::open(on_host(&dir)).expect("the store opens");
    (0..500).for_each(|id| assert_eq!(put(&store, id), id));
    store.close().expect("the store closes");
    let before = files_below(dir.path());
    let store = Store::open(on_host(&dir).read_only(true)).expect("the store opens");
    read_everything(&store, 500);
    store.close().expect("there is nothing to do");
    drop(store);
    assert!(files_below(dir.path()) == before, "a read-only store changed a file");
}

#[test]
fn a_read_only_store_works_beside_a_live_writer() {
    let dir = TempDir::new();
    let writer = Store::open(on_host(&dir)).expect("the store opens");
    for round in 0..20u64 {
        for id in round * 30..(round + 1) * 30 {
            assert_eq!(put(&writer, id), id);
        }
        let reader = Store::open(looking(on_host(&dir))).expect("reading disturbs nobody");
        let found = ids(&reader);
        assert_eq!(found, (0..(round + 1) * 30).collect::<Vec<_>>());
        let verified = reader.verify().expect("the log can be read");
        assert!(verified.is_ok(), "{:?}", verified.damage);
    }
    writer.close().expect("the writer was not disturbed");
}

#[test]
fn a_read_only_store_meets_a_writer_in_full_flight() {
    for (flush, count) in [(FlushMode::sync(), 3000), (FlushMode::async_default(), 60_000)] {
        let dir = TempDir::new();
        let config = on_host(&dir).segment_size(1 << 20).flush_mode(flush);
        let writer = Store::open(config.clone()).expect("the store opens");
        put(&writer, 0);
        std::thread::scope(|scope| {
            let busy = scope.spawn(|| (1..count).for_each(|id| assert_eq!(put(&writer, id), id)));
            for mode in modes().into_iter().cycle() {
                let config = looking(config.clone()).recovery_mode(mode);
                let reader = Store::open(config).expect("no damage, and it disturbs nobody");
                let found = ids(&reader);
                assert!(!found.is_empty());
                assert_eq!(found, (0..found.len() as u64).collect::<Vec<_>>());
                let report = reader.recovery();
                assert!(report.salvaged.is_empty(), "{report:?}");
                let cut = report.cut.as_ref();
                assert!(cut.is_none_or(|cut| cut.next_valid.is_none()), "{cut:?}");
                if busy.is_finished() {
                    break;
                }
            }
        });
        writer.close().expect("the writer was not disturbed");
    }
}

#[test]
fn a_fetch_finds_what_was_put_before_it() {
    let disk = disk();
    let store = open_stepped(&disk, config()).expect("the store opens");
    for id in 0..10 {
        let ticket = store.try_submit(message(id)).expect("there is room");
        store.step(StoreWorker::Flush);
        assert!(ticket.try_get().expect("no failure").is_some());
        let fetched = store.get(TOPIC, 0, 0, 100).expect("the queue can be read");
        assert_eq!(fetched.messages.len() as u64, id + 1, "an acknowledged message is missing");
        assert_eq!(fetched.max_offset, id + 1);
    }
}

#[test]
fn many_tickets_are_awaited_by_one_thread() {
    let disk = disk();
    disk.set_sync_latency(Duration::from_micros(200));
    let store = open(&disk, config());
    let tickets: Vec<_> =
        (0..500).map(|id| store.submit(message(id)).expect("there is room")).collect();
    for (id, ticket) in tickets.into_iter().enumerate() {
        assert_eq!(ticket.queue_offset(), id as u64);
        let result = block_on(ticket).expect("no failure");
        assert_eq!((result.status, result.queue_offset), (PutStatus::PutOk, id as u64));
    }
}

#[test]
fn a_dropped_ticket_cancels_nothing() {
    let disk = disk();
    let store = open(&disk, config());
    for id in 0..10 {
        drop(store.submit(message(id)).expect("there is room"));
    }
    store.flush().expect("the disk is sound");
    let (_disk, store) = reopen_after_power_cut(&disk, store, config());
    assert_eq!(ids(&store), (0..10).collect::<Vec<_>>());
}

#[test]
fn a_ticket_outlives_its_store() {
    let disk = disk();
    let store = open(&disk, config());
    let ticket = store.submit(message(0)).expect("there is room");
    store.close().expect("the store closes");
    drop(store);
    assert_eq!(block_on(ticket).expect("no failure").status, PutStatus::PutOk);
}

/// A queue whose messages were stored at the given times.
fn stored_at(times: &[i64]) -> Store {
    let disk = disk();
    let clock = Arc::new(ManualClock::new(times[0]));
    let environment = Environment::on(disk.shared()).clock(clock.clone()).stepped();
    let config = config().segment_size(4096).consume_queue_file_size(100);
    let store = Store::open_in(config, environment).expect("the store opens");
    let mut now = times[0];
    for (id, time) in times.iter().enumerate() {
        clock.advance(Duration::from_millis((time - now) as u64));
        now = *time;
        let ticket = loop {
            match store.try_submit(message(id as u64)) {
                Ok(ticket) => break ticket,
                Err(Error::SegmentNotReady { .. }) => store.step(StoreWorker::Upkeep),
                Err(other) => panic!("{other}"),
            };
        };
        store.step(StoreWorker::Flush);
        let result = ticket.try_get().expect("no failure").expect("it was synced");
        assert_eq!(result.store_timestamp, *time);
        store.step(StoreWorker::Dispatch);
    }
    store
}

#[test]
fn the_offset_of_a_time_is_the_first_or_the_last_of_its_messages() {
    let times: Vec<i64> = (0..60).map(|n| 1_700_000_000_000 + n / 3 * 10).collect();
    let store = stored_at(&times);
    let at = |time, bound| {
        store.offset_by_time(TOPIC, 0, time, bound).expect("readable").expect("there is a queue")
    };
    for time in times[0]..=times[59] {
        let lower = times.iter().position(|stored| *stored >= time).expect("not past the end");
        let upper = times.iter().rposition(|stored| *stored <= time).expect("not before it");
        assert_eq!(at(time, TimeBound::Lower), lower as u64, "at {time}");
        assert_eq!(at(time, TimeBound::Upper), upper as u64, "at {time}");
    }
    for bound in [TimeBound::Lower, TimeBound::Upper] {
        assert_eq!(at(times[0] - 1, bound), 0);
        assert!((59..=60).contains(&at(times[59] + 1, bound)));
        assert!(at(i64::MIN, bound) == 0 && at(i64::MAX, bound) >= 59);
    }
    assert_eq!(store.offset_by_time("nothing", 0, 0, TimeBound::Lower).expect("no error"), None);
}

fn tagged() -> (SimDisk, Store) {
    let disk = disk();
    let store = open(&disk, config());
    let tags = [Some("Aa"), Some("BB"), Some("Aa"), None, Some("C"), Some("BB")];
    for (n, tag) in tags.into_iter().enumerate() {
        let message = Message::new(TOPIC, body(n as u64));
        let message = match tag {
            Some(tag) => message.tag(tag),
            None => message,
        };
        assert_eq!(store.put(message).expect("accepted").status, PutStatus::PutOk);
    }
    assert!(store.wait_for(TOPIC, 0, 5, LONG).expect("the store is open"));
    (disk, store)
}

fn offsets(store: &Store, filter: &TagFilter) -> Vec<u64> {
    let fetched = store.get_view(TOPIC, 0, 0, 100, filter).expect("the queue can be read");
    assert_eq!(fetched.next_offset, 6, "what does not pass is passed over");
    fetched.messages.iter().map(MessageView::queue_offset).collect()
}

#[test]
fn tags_of_the_same_hash_are_told_apart() {
    assert_eq!(java_string_hash("Aa"), java_string_hash("BB"));
    let (_disk, store) = tagged();
    assert_eq!(offsets(&store, &TagFilter::of(["Aa"])), [0, 2]);
    assert_eq!(offsets(&store, &TagFilter::of(["BB"])), [1, 5]);
    assert_eq!(offsets(&store, &TagFilter::parse("BB")), [1, 5]);
}

#[test]
fn several_tags_are_one_filter() {
    let (_disk, store) = tagged();
    assert_eq!(offsets(&store, &TagFilter::of(["Aa", "C"])), [0, 2, 4]);
    assert_eq!(offsets(&store, &TagFilter::parse("Aa||C")), [0, 2, 4]);
    assert_eq!(offsets(&store, &TagFilter::parse(" Aa || C ")), [0, 2, 4]);
}

#[test]
fn no_filter_passes_everything() {
    let (_disk, store) = tagged();
    for filter in [TagFilter::any(), TagFilter::parse("*"), TagFilter::of([])] {
        assert_eq!(offsets(&store, &filter), [0, 1, 2, 3, 4, 5]);
    }
}

#[test]
fn a_filter_that_passes_nothing_moves_on() {
    let (_disk, store) = tagged();
    let fetched = store
        .get_view(TOPIC, 0, 0, 100, &TagFilter::of(["nobody"]))
        .expect("the queue can be read");
    assert_eq!((fetched.status, fetched.messages.len()), (FetchStatus::NoMatch, 0));
    assert_eq!(fetched.next_offset, 6);
}

#[test]
fn a_filtered_fetch_stops_at_its_maximum() {
    let (_disk, store) = tagged();
    let filter = TagFilter::of(["BB"]);
    let first = store.get_view(TOPIC, 0, 0, 1, &filter).expect("the queue can be read");
    assert_eq!((first.messages.len(), first.next_offset), (1, 2));
    let second =
        store.get_view(TOPIC, 0, first.next_offset, 1, &filter).expect("the queue can be read");
    assert_eq!(second.messages[0].queue_offset(), 5);
}

#[test]
fn a_view_outlives_its_store_and_its_file() {
    let dir = TempDir::new();
    let store = Store::open(on_host(&dir)).expect("the store opens");
    (0..50).for_each(|id| assert_eq!(put(&store, id), id));
    assert!(store.wait_for(TOPIC, 0, 49, LONG).expect("the store is open"));
    let fetched = store.get_view(TOPIC, 0, 0, 50, &TagFilter::any()).expect("readable");
    store.close().expect("the store closes");
    drop(store);
    drop(dir);
    assert_eq!(fetched.messages.len(), 50);
    for (id, view) in fetched.messages.iter().enumerate() {
        assert_eq!(id_of(view.body()), id as u64);
        assert_eq!((view.topic(), view.queue_offset()), (TOPIC, id as u64));
        assert_eq!(view.to_stored().encode(), view.bytes());
    }
}

#[test]
fn a_message_that_is_in_no_queue_is_read_where_it_lies() {
    let disk = disk();
    let store = open(&disk, config());
    for flag in [SysFlag::PREPARED, SysFlag::ROLLBACK] {
        put(&store, 1);
        let half = Message::new(TOPIC, "half").sys_flag(flag);
        let half = store.put(half).expect("accepted").ok().expect("safe");
        for found_while in ["it is the last one", "others follow"] {
            let found = store.get_at(half.physical_offset).expect(found_while);
            assert_eq!(found.expect("visible").body(), b"half");
            put(&store, 2);
        }
    }
}

#[test]
fn stats_tell_who_pins_which_segment() {
    let disk = disk();
    let store = open(&disk, config().segment_size(4096));
    let puts: Vec<_> = (0..60).map(|id| put_result(&store, id)).collect();
    let later = puts.iter().find(|put| put.physical_offset >= 8192).expect("a third segment");
    let views: Vec<_> = [&puts[0], &puts[1], later]
        .map(|put| store.get_at(put.physical_offset).expect("readable").expect("visible"))
        .into();
    let pins = || -> Vec<(u64, usize)> {
        let pins = store.stats().pins;
        pins.iter().filter(|pin| pin.views > 0).map(|pin| (pin.segment, pin.views)).collect()
    };
    // The thread that dispatches holds the segment it is in, too, until it has caught up.
    eventually("only views pin", || pins() == [(0, 2), (8192, 1)]);
    drop(views);
    eventually("nothing pins", || pins().is_empty());
}

#[test]
fn stats_count_what_was_done() {
    let disk = disk();
    let store = open(&disk, config().segment_size(4096));
    let puts: Vec<_> = (0..60).map(|id| put_result(&store, id)).collect();
    let result = store.put(Message::new("payments", "x").queue(3)).expect("accepted");
    assert!(store.wait_for("payments", 3, 0, LONG).expect("the store is open"));
    let stats = store.stats();
    let bytes: u64 = puts.iter().map(|put| put.end_offset - put.physical_offset).sum();
    assert_eq!(stats.messages, 61);
    assert_eq!(stats.message_bytes, bytes + result.end_offset - result.physical_offset);
    assert_eq!((stats.put_ok, stats.topics, stats.queues), (61, 2, 2));
    assert_eq!(stats.rolls, result.physical_offset / 4096);
    assert_eq!(stats.watermarks.appended, result.end_offset);
    assert_eq!(stats.watermarks.durable, result.end_offset);
    assert_eq!(stats.watermarks.dispatched, result.end_offset);
    assert_eq!(stats.watermarks.confirmed, u64::MAX);
    assert!(stats.syncs >= 61 && stats.writes >= 61);
}

#[test]
fn verify_counts_every_record() {
    let (disk, puts) = filled(100);
    let store = open(&disk, config());
    let report = store.verify().expect("the log can be read");
    assert!(report.is_ok(), "{:?}", report.damage);
    assert_eq!(report.records, 100);
    assert_eq!(
        report.bytes,
        puts.iter().map(|put| put.end_offset - put.physical_offset).sum::<u64>()
    );
}

#[test]
fn verify_finds_all_damage_and_goes_on_behind_it() {
    let (disk, puts) = filled(100);
    for id in [3, 40, 97] {
        let at = puts[id].physical_offset;
        let base = at / (16 << 10) * (16 << 10);
        disk.flip_bit(segment(base), at - base + 100, 2).expect("the log is there");
    }
    let store = open(&disk, config());
    let report = store.verify().expect("damage is not an error");
    assert_eq!((report.records, report.damage.len()), (97, 3), "{:?}", report.damage);
    assert!(report.damage.iter().all(|error| matches!(error, Error::Corrupt { .. })));
}

#[test]
fn verify_finds_a_queue_entry_that_points_elsewhere() {
    let (disk, _) = filled(100);
    let queue = "/store/consumequeue/orders/0/00000000000000000000";
    // The third entry: physical offset, size, tag code.
    for byte in [7, 11, 19] {
        let (disk, clean) = (disk.clone(), disk.bytes(queue).expect("the queue is there"));
        disk.flip_bit(queue, 2 * 20 + byte, 1).expect("the queue is there");
        let store = open_stepped(&disk, config()).expect("the store opens");
        let report = store.verify().expect("damage is not an error");
        assert!(!report.is_ok(), "byte {byte} of an entry");
        drop(store);
        disk.put_file(queue, &clean).expect("there is room");
    }
}

/// The system's clock, but the thread called `awaiting` is held up right after it has read it for the
/// second time.
#[derive(Debug, Default)]
struct Preempting {
    reads: AtomicUsize,
}

impl Clock for Preempting {
    fn now(&self) -> Instant {
        let now = Instant::now();
        let awaiting = std::thread::current().name() == Some("awaiting");
        if awaiting && self.reads.fetch_add(1, Ordering::SeqCst) == 1 {
            std::thread::sleep(Duration::from_millis(60));
        }
        now
    }

    fn unix_millis(&self) -> i64 {
        SystemClock.unix_millis()
    }
}

#[test]
fn an_awaited_ticket_whose_task_is_held_up_at_the_deadline_is_answered() {
    let disk = disk();
    let config = config().sync_flush_timeout(Duration::from_millis(20));
    let clock = Arc::new(Preempting::default());
    let store = Store::open_in(config, Environment::on(disk.shared()).clock(clock)).expect("opens");
    disk.hang_syncs(true);
    let ticket = store.submit(message(1)).expect("there is room");
    let (sender, answer) = mpsc::channel();
    let awaiting = std::thread::Builder::new().name("awaiting".to_owned());
    awaiting.spawn(move || sender.send(block_on(ticket))).expect("a thread");
    let answer = answer.recv_timeout(LONG).expect("an answer").expect("no failure");
    assert_eq!(answer.status, PutStatus::FlushDiskTimeout);
    disk.hang_syncs(false);
}

/// Lets go of a store when it is woken.
struct LastHandle(Mutex<Option<Store>>, AtomicBool);

impl Wake for LastHandle {
    fn wake(self: Arc<Self>) {
        drop(self.0.lock().expect("not poisoned").take());
        self.1.store(true, Ordering::SeqCst);
    }
}

#[test]
fn the_last_handle_can_be_dropped_by_a_waker() {
    let disk = disk();
    let mut patient = config();
    patient.log.close_timeout = 10 * LONG;
    let store = open(&disk, patient);
    disk.hang_syncs(true);
    let mut ticket = Box::pin(store.submit(message(0)).expect("there is room"));
    let task = Arc::new(LastHandle(Mutex::default(), AtomicBool::new(false)));
    let waker = Waker::from(task.clone());
    assert!(ticket.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    *task.0.lock().expect("not poisoned") = Some(store);
    disk.hang_syncs(false);
    eventually("the thread goes on", || task.1.load(Ordering::SeqCst));
    drop(ticket);
    eventually("the store is closed", || try_open(&disk, config()).is_ok());
    let store = open(&disk, config());
    assert!(!store.recovery().unclean);
    assert_eq!(ids(&store), [0]);
}

#[test]
fn store_times_do_not_fall_when_the_clock_does() {
    const NOW: i64 = 1_700_000_000_000;
    let disk = disk();
    let at = |millis| {
        let clock = Arc::new(ManualClock::new(millis));
        Store::open_in(config(), Environment::on(disk.shared()).clock(clock)).expect("opens")
    };
    let store = at(NOW);
    (0..5).for_each(|id| assert_eq!(put(&store, id), id));
    store.close().expect("closed");
    let store = at(NOW - 60_000);
    (5..10).for_each(|id| assert_eq!(put(&store, id), id));
    let found = store.offset_by_time(TOPIC, 0, NOW - 30_000, TimeBound::Lower).expect("readable");
    assert_eq!(found, Some(0));
    assert!(all(&store).iter().all(|message| message.store_timestamp >= NOW));
}
