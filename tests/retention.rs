//! What expires, what does not, and what readers see meanwhile.

#[path = "support/expiry.rs"]
mod expiry;
#[path = "support/sim.rs"]
mod sim;
#[path = "support/temp.rs"]
mod temp;

use duralog::clock::ManualClock;
use duralog::config::{Retention, Threshold};
use duralog::delivery::Consumer;
use duralog::disk::{Cut, CutMoment, SimDisk, Survival};
use duralog::replication::{
    Admission, Confirmation, Epoch, Refusal, ReplicatedLog, Replicator, StartPoint,
};
use duralog::tables::{ConsumerOffsets, Tables};
use duralog::{
    Environment, Error, FetchStatus, Message, Next, Pinned, Store, StoreConfig, StoreWorker,
    TagFilter,
};
use expiry::*;
use sim::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

const HOUR: Duration = Duration::from_secs(3600);
fn bounded(segments: u64) -> StoreConfig {
    keeping(Retention::max_total_bytes(segments * SEGMENT))
}

/// A store that is stepped, and its clock.
fn stepped(disk: &SimDisk, config: StoreConfig) -> (Store, Arc<ManualClock>) {
    let clock = Arc::new(ManualClock::new(MIDNIGHT));
    let environment = Environment::on(disk.shared()).clock(clock.clone()).stepped();
    (Store::open_in(config, environment).expect("the store opens"), clock)
}

fn segments(disk: &SimDisk) -> usize {
    disk.files().iter().filter(|path| path.starts_with(format!("{DIR}/commitlog"))).count()
}

#[test]
fn nothing_expires_unless_asked() {
    let disk = disk();
    let (store, clock) = stepped(&disk, config());
    fill(&store, 0, 20);
    clock.advance(1000 * HOUR);
    expire(&store);
    assert_eq!(store.min_offset(TOPIC, 0), Some(0));
    assert!(store.stats().retention.segments == 0 && segments(&disk) >= 21);
}

#[test]
fn a_log_keeps_to_its_size_and_queues_and_index_follow() {
    let disk = disk();
    let (store, _clock) = stepped(&disk, bounded(4));
    let next = fill(&store, 0, 20);
    let queue_files = |disk: &SimDisk| {
        disk.files().iter().filter(|path| path.starts_with(format!("{DIR}/consumequeue"))).count()
    };
    store.step(StoreWorker::Checkpoint);
    let before = queue_files(&disk);
    expire(&store);
    let stats = store.stats();
    assert_eq!(stats.segments, 4);
    assert_eq!((stats.retention.segments, stats.retention.bytes), (17, 17 * SEGMENT));
    assert_eq!(stats.min_offset, 17 * SEGMENT);
    // One more is prepared for what comes.
    assert!(segments(&disk) <= 5);
    assert!(queue_files(&disk) < before / 2, "{} of {before} queue files", queue_files(&disk));
    let min = store.min_offset(TOPIC, 0).expect("a queue");
    assert!(min > 0);
    let old = store.get(TOPIC, 0, 0, 10).expect("no damage");
    assert_eq!((old.status, old.next_offset), (FetchStatus::OffsetTooSmall, min));
    assert_eq!(all_from(&store, min), (min..next).collect::<Vec<_>>());
    assert!(store.query(TOPIC, "k0", 9, 0..=i64::MAX).expect("an index").is_empty());
    let newest = format!("k{}", next - 1);
    assert_eq!(store.query(TOPIC, &newest, 9, 0..=i64::MAX).expect("an index").len(), 1);
    store.close().expect("the store closes");
    drop(store);
    let store = open(&disk, bounded(4));
    assert_eq!(store.min_offset(TOPIC, 0), Some(min));
    assert_eq!(all_from(&store, min), (min..next).collect::<Vec<_>>());
    assert!(store.verify().expect("readable").is_ok());
}

fn all_from(store: &Store, from: u64) -> Vec<u64> {
    let fetched = store.get(TOPIC, 0, from, usize::MAX).expect("no damage");
    fetched.messages.iter().map(|message| id_of(&message.body)).collect()
}

#[test]
fn segments_expire_by_age_at_the_hour_that_was_chosen() {
    let disk = disk();
    let retention =
        Retention::max_total_bytes(u64::MAX).file_reserved_time(10 * HOUR).delete_when([4]);
    let (store, clock) = stepped(&disk, keeping(retention));
    fill(&store, 0, 3);
    clock.advance(9 * HOUR);
    fill(&store, 1000, 3);
    // Three segments are ten hours old, but it is not four o'clock.
    clock.advance(2 * HOUR);
    expire(&store);
    assert_eq!(store.stats().retention.segments, 0);
    clock.advance(17 * HOUR);
    expire(&store);
    // All but the last, which would take the newest messages with it.
    assert_eq!(store.stats().retention.segments, 6);
    assert_eq!(store.stats().segments, 1);
}

#[test]
fn a_segment_is_as_old_as_its_newest_message() {
    let disk = disk();
    let retention = Retention::max_total_bytes(u64::MAX).file_reserved_time(10 * HOUR);
    let (store, clock) = stepped(&disk, keeping(retention));
    let next = fill(&store, 0, 3);
    // The fourth one is begun now and ended in eight hours.
    clock.advance(8 * HOUR);
    let next = fill(&store, next, 1);
    clock.advance(3 * HOUR);
    fill(&store, next, 1);
    expire(&store);
    assert_eq!(store.stats().retention.segments, 3);
    clock.advance(8 * HOUR);
    expire(&store);
    assert_eq!(store.stats().retention.segments, 4);
}

#[test]
fn a_full_disk_makes_old_segments_go_at_any_hour_and_all_of_them_when_it_is_fuller() {
    let disk = disk();
    let retention = Retention::max_total_bytes(u64::MAX)
        .file_reserved_time(HOUR)
        .delete_when([4])
        .disk_max_used(Threshold::UsedBytes(16 * SEGMENT))
        .disk_clean_forcibly(Threshold::UsedBytes(28 * SEGMENT));
    let (store, clock) = stepped(&disk, keeping(retention));
    let next = fill(&store, 0, 7);
    clock.advance(2 * HOUR);
    expire(&store);
    assert_eq!(store.stats().retention.segments, 0, "there is room");
    let next = fill(&store, next, 10);
    clock.advance(Duration::from_secs(11));
    expire(&store);
    let old = store.stats().retention.segments;
    assert!((1..=7).contains(&old), "{old}");
    fill(&store, next, 25);
    clock.advance(Duration::from_secs(11));
    expire(&store);
    assert!(store.stats().retention.segments > old + 3, "{:?}", store.stats().retention);
    assert!(disk.used() <= 28 * SEGMENT);
}

#[test]
fn puts_are_refused_beyond_the_warning_level_and_accepted_again() {
    let disk = disk();
    let mut retention = Retention::max_total_bytes(u64::MAX)
        .disk_warning(Threshold::UsedBytes(12 * SEGMENT))
        .disk_clean_forcibly(Threshold::UsedBytes(8 * SEGMENT));
    // So that one look is not enough.
    retention.delete_batch_max = 2;
    let (store, clock) = stepped(&disk, keeping(retention));
    let next = fill(&store, 0, 14);
    store.step(StoreWorker::Retention);
    let refused = store.try_submit(message(next));
    assert!(matches!(refused, Err(Error::DiskFull { .. })));
    assert!(!all_from(&store, store.min_offset(TOPIC, 0).expect("a queue")).is_empty());
    expire(&store);
    clock.advance(Duration::from_secs(11));
    expire(&store);
    drop(store.try_submit(message(next)).expect("there is room again"));
    store.step(StoreWorker::Flush);
}

#[test]
fn deleting_what_a_group_has_not_consumed_is_counted_or_refused() {
    for pins in [false, true] {
        let disk = disk();
        let retention = Retention::max_total_bytes(4 * SEGMENT).pin_by_groups(pins);
        let (store, _clock) = stepped(&disk, keeping(retention));
        let next = fill(&store, 0, 10);
        let tables = Tables::new_in(DIR, Environment::on(disk.shared()));
        let mut offsets = tables.load::<ConsumerOffsets>().expect("readable").table;
        offsets.set(TOPIC, "slow", 0, 7).expect("a valid group");
        offsets.set(TOPIC, "quick", 0, next.cast_signed()).expect("a valid group");
        offsets.set("gone", "slow", 0, 7).expect("a valid group");
        tables.save(&mut offsets).expect("there is room");
        expire(&store);
        let (stats, min) = (store.stats().retention, store.min_offset(TOPIC, 0).expect("a queue"));
        if pins {
            assert_eq!((stats.segments, stats.unconsumed, min), (0, 0, 0));
            let slow = Pinned::Group {
                group: "slow".to_owned(),
                topic: TOPIC.to_owned(),
                queue_id: 0,
                offset: 7,
            };
            assert_eq!(stats.pinned_by, [slow]);
        } else {
            assert_eq!((stats.segments, stats.unconsumed), (7, min - 7));
            assert!(stats.pinned_by.is_empty());
        }
    }
}

#[test]
fn what_a_group_has_committed_counts_before_brokers_are_told_of_it() {
    let disk = disk();
    let retention = Retention::max_total_bytes(4 * SEGMENT).pin_by_groups(true);
    let (store, _clock) = stepped(&disk, keeping(retention));
    let next = fill(&store, 0, 10);
    store.commit_offset("new", TOPIC, 0, 7).expect("there is room");
    expire(&store);
    assert_eq!(store.min_offset(TOPIC, 0), Some(0), "a group that is new needs it");
    store.commit_offset("new", TOPIC, 0, next).expect("there is room");
    while store.step(StoreWorker::Offsets) == Next::Now {}
    // In the file it is done with everything.
    store.close().expect("the store closes");
    let (store, _clock) = stepped(&disk, store.config().clone());
    store.commit_offset("new", TOPIC, 0, 7).expect("it may go back");
    expire(&store);
    assert_eq!(store.min_offset(TOPIC, 0), Some(0), "a group that went back needs it");
}

/// Confirms nothing by itself, and needs what is not confirmed.
#[derive(Debug, Default)]
struct Lagging(AtomicU64);

impl Replicator for Lagging {
    fn start(&self, _: Arc<dyn ReplicatedLog>, at: StartPoint) -> duralog::Result<u64> {
        Ok(at.end)
    }

    fn admit(&self) -> Result<Admission, Refusal> {
        Ok(Admission { epoch: Epoch(0), confirmation: Confirmation::OutOfReach })
    }

    fn on_written(&self, _: u64) {}

    fn on_durable(&self, _: u64) {}

    fn retention_floor(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }

    fn stop(&self) {}
}

#[test]
fn nothing_goes_that_is_not_confirmed_nor_what_a_replica_lacks() {
    let disk = disk();
    let filled = stepped(&disk, config()).0;
    fill(&filled, 0, 10);
    filled.close().expect("the store closes");
    drop(filled);
    let replica = Arc::new(Lagging::default());
    let retention = Retention::max_total_bytes(4 * SEGMENT).pin_by_replicas(true);
    let environment = Environment::on(disk.shared()).stepped();
    let store = Store::open_replicated(keeping(retention), environment, replica.clone());
    let store = store.expect("the store opens");
    replica.0.store(2 * SEGMENT + 1, Ordering::SeqCst);
    expire(&store);
    let stats = store.stats().retention;
    assert_eq!(stats.segments, 2);
    assert_eq!(stats.pinned_by, [Pinned::Replica { floor: 2 * SEGMENT + 1 }]);
    // What comes now is confirmed by nobody.
    fill(&store, 5000, 20);
    replica.0.store(u64::MAX, Ordering::SeqCst);
    store.close().expect("the store closes");
}

#[test]
fn a_crash_while_segments_are_deleted_leaves_no_gap() {
    let mut deleted = 0;
    for call in 1.. {
        let mut down = false;
        for seed in 0..8 {
            let disk = SimDisk::new(seed);
            disk.set_label_root(DIR);
            let config = || keeping(Retention::max_total_bytes(3 * 4096)).segment_size(4096);
            let (store, _clock) = stepped(&disk, config());
            let next = fill(&store, 0, 7);
            disk.cut_at(call, CutMoment::Middle);
            expire(&store);
            down |= disk.is_down();
            let disk = if disk.is_down() {
                disk.reboot(Cut::seeded(seed).entries(Survival::Coin))
            } else {
                disk.cut_power(Cut::seeded(seed).entries(Survival::Coin))
            };
            drop(store);
            let store = open_stepped(&disk, config()).expect("no segment is missing in between");
            let min = store.min_offset(TOPIC, 0).expect("a queue");
            deleted += u64::from(min > 0);
            assert_eq!(all_from(&store, min), (min..next).collect::<Vec<_>>());
        }
        if !down {
            break;
        }
    }
    assert!(deleted > 0, "nothing was deleted");
}

#[test]
fn a_queue_goes_on_where_it_was_though_all_its_messages_expired_before_a_power_cut() {
    let disk = disk();
    let (store, _clock) = stepped(&disk, bounded(2));
    for id in 0..3 {
        drop(store.try_submit(message(id).queue(1)).expect("there is room"));
    }
    fill(&store, 3, 4);
    store.step(StoreWorker::Retention);
    assert!(store.stats().min_offset > 0, "nothing was deleted");
    let disk = disk.cut_power(Cut::losing_all());
    drop(store);
    let (store, _clock) = stepped(&disk, bounded(2));
    let ticket = store.try_submit(message(99).queue(1)).expect("there is room");
    assert_eq!(ticket.queue_offset(), 3);
}

#[test]
fn readers_get_their_messages_or_none_while_segments_expire() {
    let dir = temp::TempDir::new();
    let retention = Retention::max_total_bytes(8 << 16)
        .check_interval(Duration::from_millis(1))
        .delete_batch_max(2);
    let mut config = StoreConfig::new(dir.path())
        .segment_size(1 << 16)
        .consume_queue_file_size(20 * 100)
        .flush_mode(duralog::FlushMode::async_default())
        .retention(retention);
    config.queue_checkpoint_bytes = 1 << 16;
    let store = Store::open(config).expect("the store opens");
    let (stop, read) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        for slow in [false, true] {
            let (store, stop, read) = (&store, &stop, &read);
            scope.spawn(move || {
                let (mut at, mut kept) = (0, Vec::new());
                while !stop.load(Ordering::SeqCst) {
                    let any = TagFilter::any();
                    let found = store.get_view(TOPIC, 0, at, 50, &any).expect("no damage");
                    for view in &found.messages {
                        assert_eq!(id_of(view.body()), view.queue_offset());
                    }
                    read.fetch_add(found.messages.len() as u64, Ordering::SeqCst);
                    at = found.next_offset;
                    if slow {
                        // Held long after they have expired.
                        kept.extend(found.messages.into_iter().take(1));
                        at = at.min(store.min_offset(TOPIC, 0).unwrap_or(0) + 1);
                        for view in &kept {
                            assert_eq!(id_of(view.body()), view.queue_offset());
                        }
                        kept.truncate(200);
                    }
                }
            });
        }
        let mut id = 0;
        while store.stats().retention.segments < 200 || read.load(Ordering::SeqCst) < 1000 {
            let put = store.put(Message::new(TOPIC, body(id))).expect("accepted");
            assert_eq!(put.queue_offset, id);
            id += 1;
        }
        stop.store(true, Ordering::SeqCst);
    });
    eventually("the log is as large as it may be", || store.stats().segments <= 8);
    eventually("the index and the queues have followed", || {
        let queue = dir.path().join("consumequeue").join(TOPIC).join("0");
        std::fs::read_dir(queue).is_ok_and(|files| files.count() <= 100)
    });
    let log = std::fs::read_dir(dir.path().join("commitlog")).expect("a directory").count();
    assert!(log <= 9, "{log} segments");
    store.close().expect("the store closes");
}

#[test]
fn a_snapshot_holds_segments_while_others_are_put_and_expire() {
    let (dir, copies) = (temp::TempDir::new(), temp::TempDir::new());
    let retention = Retention::max_total_bytes(6 << 16).check_interval(Duration::from_millis(1));
    let config = StoreConfig::new(dir.path())
        .segment_size(1 << 16)
        .flush_mode(duralog::FlushMode::async_default())
        .retention(retention);
    let store = Store::open(config.clone()).expect("the store opens");
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            for id in 0.. {
                if stop.load(Ordering::SeqCst) {
                    break;
                }
                let put = store.put(Message::new(TOPIC, body(id))).expect("accepted");
                assert_eq!(put.queue_offset, id);
            }
        });
        for n in 0..10 {
            let before = store.stats().retention.segments;
            eventually("something expires", || store.stats().retention.segments > before);
            let copy = copies.path().join(n.to_string());
            store.snapshot(&copy).expect("nothing is missing");
            let mut kept = config.clone();
            kept.log.dir = copy;
            let copy = Store::open(kept.read_only(true)).expect("the copy opens");
            assert!(copy.verify().expect("readable").is_ok());
            assert!(copy.max_offset(TOPIC, 0) > copy.min_offset(TOPIC, 0));
        }
        stop.store(true, Ordering::SeqCst);
    });
    store.close().expect("the store closes");
}

/// A log of four segments that keeps what groups have yet to consume, and a group of it.
fn pinned_by_groups() -> (Store, Arc<ManualClock>, Consumer) {
    let retention = Retention::max_total_bytes(4 * SEGMENT).pin_by_groups(true);
    let (store, clock) = stepped(&disk(), keeping(retention));
    let consumer = store.consumer("billing").subscribe("payments", TagFilter::any()).open();
    (store, clock, consumer.expect("it opens"))
}

fn order(store: &Store, queue: i32, body: &str) {
    let ticket = store.submit(Message::new("payments", body).queue(queue)).expect("there is room");
    store.flush().expect("a sound disk");
    ticket.wait().expect("an answer").ok().expect("stored");
}

/// The bodies of what comes to a group when the log has outgrown its size, and what was lost to it.
fn kept(store: &Store, consumer: &Consumer) -> (Vec<Vec<u8>>, u64) {
    fill(store, 0, 12);
    expire(store);
    let batch = consumer.poll(Duration::ZERO).expect("readable");
    (batch.iter().map(|one| one.body().to_vec()).collect(), store.stats().retention.unconsumed)
}

#[test]
fn what_lies_in_a_queue_that_a_group_has_yet_to_begin_with_stays_for_it() {
    let (store, _clock, consumer) = pinned_by_groups();
    order(&store, 0, "first");
    consumer.poll(Duration::ZERO).expect("readable").ack().expect("committed");
    drop(consumer);
    order(&store, 1, "mine");
    fill(&store, 0, 12);
    expire(&store);
    let pins = store.stats().retention.pinned_by;
    assert!(matches!(&pins[..], [Pinned::Group { queue_id: 1, offset: 0, .. }]), "{pins:?}");
    let builder = store.consumer("billing").subscribe("payments", TagFilter::any());
    assert_eq!(kept(&store, &builder.open().expect("it opens")), (vec![b"mine".to_vec()], 0));
}

#[test]
fn what_is_lost_to_a_group_that_has_yet_to_begin_with_a_queue_is_counted() {
    let (store, _clock) = stepped(&disk(), bounded(4));
    let builder = store.consumer("billing").subscribe("payments", TagFilter::any());
    let consumer = builder.open().expect("it opens");
    order(&store, 0, "first");
    consumer.poll(Duration::ZERO).expect("readable").ack().expect("committed");
    order(&store, 1, "lost");
    assert_eq!(kept(&store, &consumer), (Vec::new(), 1));
}

#[test]
fn retries_stay_for_their_group_and_so_do_dead_letters() {
    let (store, clock, consumer) = pinned_by_groups();
    for body in ["later", "never"] {
        order(&store, 0, body);
    }
    let batch = consumer.poll(Duration::ZERO).expect("readable");
    batch[0].retry_later().expect("stored");
    batch[1].reject().expect("stored");
    for _ in 0..20 {
        clock.advance(Duration::from_secs(1));
        for worker in [StoreWorker::Delivery, StoreWorker::Flush, StoreWorker::Dispatch] {
            while store.step(worker) == Next::Now {}
        }
    }
    assert_eq!(store.max_offset("%RETRY%billing", 0), Some(1), "it was delivered");
    assert_eq!(kept(&store, &consumer), (vec![b"later".to_vec()], 0));
    assert_eq!(store.dead_letters("billing").count(), 1);
    // Given up, they hold up nothing.
    store.dead_letters("billing").discard(1).expect("committed");
    consumer.poll(Duration::ZERO).expect("readable").ack().expect("committed");
}

#[test]
fn what_was_sent_back_to_everyone_pins_nothing_once_everyone_has_it() {
    let retention = Retention::max_total_bytes(4 * SEGMENT).pin_by_groups(true);
    let (store, clock) = stepped(&disk(), keeping(retention));
    let builder = store.consumer("billing").subscribe("payments", TagFilter::any());
    let consumer = builder.broadcast("one").open().expect("it opens");
    order(&store, 0, "x");
    consumer.poll(Duration::ZERO).expect("readable")[0].reject().expect("stored");
    assert_eq!(store.dead_letters("billing").redrive(1).expect("sent back"), 1);
    assert_eq!(kept(&store, &consumer), (vec![b"x".to_vec()], 0), "it stays until then");
    assert_eq!(consumer.poll(Duration::ZERO).expect("readable").ack().expect("committed"), 1);
    clock.advance(HOUR);
    expire(&store);
    let stats = store.stats().retention;
    assert_eq!((stats.pinned_by, stats.segments > 0), (Vec::new(), true));
}
