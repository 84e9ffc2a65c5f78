//! The offsets of consumer groups: what survives, and that no message is passed over.

#[path = "support/rng.rs"]
mod rng;

use duralog::clock::ManualClock;
use duralog::disk::{Cut, CutMoment, Fault, SimDisk, SyncFailure};
use duralog::tables::{ConsumerOffsets, Tables};
use duralog::{
    Environment, Error, FlushMode, Message, Next, Store, StoreConfig, StoreWorker, TagFilter,
};
use rng::Rng;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

const DIR: &str = "/store";
const OFFSETS: &str = "/store/duralog/offsets";
const GROUPS: [&str; 2] = ["billing", "shipping"];
const QUEUES: [(&str, i32); 3] = [("orders", 0), ("orders", 1), ("payments", 0)];

fn config(flush_mode: FlushMode) -> StoreConfig {
    let mut config = StoreConfig::new(DIR).segment_size(16 << 10).flush_mode(flush_mode);
    config.consume_queue_file_size = 20 * 64;
    config.index_enable = false;
    config
}

fn open_on(disk: &SimDisk, flush_mode: FlushMode) -> duralog::Result<Store> {
    Store::open_in(config(flush_mode), Environment::on(disk.shared()).stepped())
}

/// A store that is stepped, under sync flush.
fn open(disk: &SimDisk) -> Store {
    open_on(disk, FlushMode::sync()).unwrap()
}

fn work(store: &Store) {
    for worker in [StoreWorker::Upkeep, StoreWorker::Flush, StoreWorker::Dispatch] {
        while store.step(worker) == Next::Now {}
    }
}

fn put(store: &Store, (topic, queue_id): (&str, i32), body: &str) {
    let ticket = store.submit(Message::new(topic, body).queue(queue_id)).unwrap();
    work(store);
    ticket.wait().unwrap().ok().unwrap();
}

fn fill(store: &Store, count: usize) {
    (0..count).for_each(|n| put(store, QUEUES[0], &n.to_string()));
}

fn committed(store: &Store) -> Option<u64> {
    store.committed_offset("billing", "orders", 0)
}

#[test]
fn what_was_committed_survives_a_kill() {
    let disk = SimDisk::new(1);
    let store = open(&disk);
    fill(&store, 3);
    assert_eq!(committed(&store), None);
    store.commit_offset("billing", "orders", 0, 2).unwrap();
    let disk = disk.kill();
    let store = open(&disk);
    assert_eq!(committed(&store), Some(2));
    assert_eq!(store.committed_offset("shipping", "orders", 0), None);
}

#[test]
fn a_torn_header_takes_no_offset_with_it() {
    let disk = SimDisk::new(1);
    let store = open(&disk);
    fill(&store, 3);
    store.commit_offset("billing", "orders", 0, 2).unwrap();
    store.close().unwrap();
    for byte in [12, 17, 300, 511] {
        let torn = SimDisk::new(2);
        for path in disk.files() {
            torn.put_file(&path, &disk.bytes(&path).unwrap()).unwrap();
        }
        torn.flip_bit(OFFSETS, byte, 3).unwrap();
        let store = open(&torn);
        assert_eq!(committed(&store), Some(2), "byte {byte}");
        assert_eq!(store.recovery().damaged_offsets, 0);
        store.commit_offset("billing", "orders", 0, 3).unwrap();
        store.close().unwrap();
        assert_eq!(committed(&open(&torn)), Some(3), "byte {byte}");
    }
    disk.flip_bit(OFFSETS, 3, 3).unwrap();
    let refused = open_on(&disk, FlushMode::sync());
    assert!(matches!(refused, Err(Error::Corrupt { .. })), "that is no file of ours");
}

#[test]
fn what_was_flushed_survives_a_power_cut_and_so_does_what_was_closed() {
    let disk = SimDisk::new(1);
    let store = open(&disk);
    fill(&store, 3);
    store.commit_offset("billing", "orders", 0, 1).unwrap();
    store.flush_offsets().unwrap();
    let disk = disk.cut_power(Cut::losing_all());
    let store = open(&disk);
    assert_eq!(committed(&store), Some(1));
    store.commit_offset("billing", "orders", 0, 3).unwrap();
    store.close().unwrap();
    let disk = disk.cut_power(Cut::losing_all());
    assert_eq!(committed(&open(&disk)), Some(3));
}

#[test]
fn a_commit_is_durable_within_the_interval_and_threads_that_flush_share_a_sync() {
    let disk = SimDisk::new(1);
    let environment = Environment::on(disk.shared());
    let store = Store::open_in(config(FlushMode::sync()), environment).unwrap();
    store.put(Message::new("orders", "paid")).unwrap().ok().unwrap();
    assert!(store.wait_for("orders", 0, 0, Duration::from_secs(60)).unwrap());
    std::thread::scope(|scope| {
        for group in GROUPS {
            let store = &store;
            scope.spawn(move || {
                store.commit_offset(group, "orders", 0, 1).unwrap();
                store.flush_offsets().unwrap();
            });
        }
    });
    let disk = disk.cut_power(Cut::losing_all());
    let store = open(&disk);
    for group in GROUPS {
        assert_eq!(store.committed_offset(group, "orders", 0), Some(1));
    }
}

#[test]
fn what_lies_behind_the_end_of_a_queue_cannot_be_committed() {
    let disk = SimDisk::new(1);
    let store = open(&disk);
    fill(&store, 2);
    let refused = store.commit_offset("billing", "orders", 0, 3);
    assert!(matches!(refused, Err(Error::OffsetOutOfRange { offset: 3, end: 2 })));
    let refused = store.commit_offset("billing", "orders", 1, 1);
    assert!(matches!(refused, Err(Error::OffsetOutOfRange { offset: 1, end: 0 })));
    assert_eq!(committed(&store), None);
}

/// A store of 5 messages, of which 2 are durable, as it is that a group has handled all of them.
fn ahead_of_the_log(disk: &SimDisk) -> Store {
    let store = open_on(disk, FlushMode::async_default()).unwrap();
    fill(&store, 2);
    store.flush().unwrap();
    fill(&store, 3);
    store.commit_offset("billing", "orders", 0, 5).unwrap();
    store.flush_offsets().unwrap();
    store
}

#[test]
fn a_group_is_taken_back_to_the_end_that_a_power_cut_left_and_stays_there() {
    let disk = SimDisk::new(1);
    let _store = ahead_of_the_log(&disk);
    let disk = disk.cut_power(Cut::losing_all());
    let store = open(&disk);
    let clamped = &store.recovery().clamped_offsets;
    assert_eq!((clamped[0].committed, clamped[0].now.next), (5, 2));
    assert_eq!((clamped[0].now.group.as_str(), clamped.len()), ("billing", 1));
    // The messages that take the place of those that were lost.
    fill(&store, 4);
    let disk = disk.cut_power(Cut::losing_all());
    assert_eq!(committed(&open(&disk)), Some(2));
}

fn eventually_told(disk: &SimDisk, next: Option<i64>) {
    let patience = Instant::now() + Duration::from_secs(60);
    while exported(disk).get("orders", "billing", 0) != next {
        assert!(Instant::now() < patience, "it is not told");
        std::thread::yield_now();
    }
}

#[test]
fn brokers_are_told_where_a_group_was_taken_back_to_though_nobody_commits() {
    let disk = SimDisk::new(1);
    let store = ahead_of_the_log(&disk);
    while store.step(StoreWorker::Offsets) == Next::Now {}
    eventually_told(&disk, Some(5));
    let disk = disk.cut_power(Cut::losing_all());
    eventually_told(&disk, Some(5));
    let store = Store::open_in(config(FlushMode::sync()), Environment::on(disk.shared())).unwrap();
    eventually_told(&disk, Some(2));
    store.close().unwrap();
}

#[test]
fn brokers_are_told_that_a_group_was_forgotten_though_nobody_commits() {
    let disk = SimDisk::new(1);
    let store = open(&disk);
    fill(&store, 1);
    store.commit_offset("billing", "orders", 0, 1).unwrap();
    store.close().unwrap();
    let store = Store::open_in(config(FlushMode::sync()), Environment::on(disk.shared())).unwrap();
    eventually_told(&disk, Some(1));
    assert!(store.forget_offsets("billing", "orders").unwrap());
    eventually_told(&disk, None);
    store.close().unwrap();
}

#[test]
fn a_full_disk_stops_no_group_that_has_come_before() {
    let disk = SimDisk::new(1);
    let store = open(&disk);
    fill(&store, 3);
    store.commit_offset("billing", "orders", 0, 1).unwrap();
    disk.set_capacity(disk.used());
    store.commit_offset("billing", "orders", 0, 2).unwrap();
    store.flush_offsets().unwrap();
    // There is room in what was reserved, up to a point.
    let newcomers = (0..).map(|n| store.commit_offset(&format!("group-{n}"), "orders", 0, 3));
    let refused = newcomers.take(1000).find_map(Result::err).expect("the disk is full");
    assert!(matches!(refused, Error::DiskFull { .. }), "{refused}");
    store.commit_offset("billing", "orders", 0, 3).unwrap();
    disk.set_capacity(u64::MAX);
    store.commit_offset("late", "orders", 0, 3).unwrap();
    let count = store.committed_offsets().len();
    let store = open(&disk.kill());
    assert_eq!((committed(&store), store.committed_offsets().len()), (Some(3), count));
}

#[test]
fn a_group_that_is_forgotten_begins_anew_and_its_place_is_used_again() {
    let disk = SimDisk::new(1);
    let store = open(&disk);
    fill(&store, 2);
    store.commit_offset("billing", "orders", 0, 2).unwrap();
    let len = disk.bytes(OFFSETS).unwrap().len();
    for _ in 0..1000 {
        assert!(store.forget_offsets("billing", "orders").unwrap());
        assert_eq!(committed(&store), None);
        store.commit_offset("billing", "orders", 0, 1).unwrap();
    }
    assert!(!store.forget_offsets("billing", "payments").unwrap());
    assert_eq!(disk.bytes(OFFSETS).unwrap().len(), len);
    assert!(store.forget_offsets("billing", "orders").unwrap());
    let disk = disk.cut_power(Cut::losing_all());
    assert_eq!(committed(&open(&disk)), None);
}

#[test]
fn after_a_failed_sync_nothing_is_committed_any_more_and_puts_go_on() {
    let disk = SimDisk::new(1);
    let store = open(&disk);
    fill(&store, 2);
    store.commit_offset("billing", "orders", 0, 1).unwrap();
    disk.inject(Fault::sync(SyncFailure::KeepNew).path("offsets"));
    assert!(matches!(store.flush_offsets(), Err(Error::Io { .. })));
    let latched = store.commit_offset("billing", "orders", 0, 2);
    assert!(matches!(latched, Err(Error::Latched { .. })));
    assert!(matches!(store.flush_offsets(), Err(Error::Latched { .. })));
    assert_eq!(committed(&store), Some(1));
    fill(&store, 1);
}

#[test]
fn a_row_that_rots_is_counted_and_the_others_stay() {
    let disk = SimDisk::new(1);
    let store = open(&disk);
    fill(&store, 2);
    for group in GROUPS {
        store.commit_offset(group, "orders", 0, 1).unwrap();
    }
    store.close().unwrap();
    // The first row, in one of its names.
    disk.flip_bit(OFFSETS, 512 + 25, 0).unwrap();
    let store = open(&disk);
    assert_eq!(store.recovery().damaged_offsets, 1);
    assert_eq!(store.committed_offsets().len(), 1);
    // It is not written over: someone may want to look at it.
    store.commit_offset("billing", "orders", 0, 2).unwrap();
    store.close().unwrap();
    assert_eq!(open(&disk).recovery().damaged_offsets, 1);
    disk.flip_bit(OFFSETS, 3, 0).unwrap();
    assert!(matches!(open_on(&disk, FlushMode::sync()), Err(Error::Corrupt { .. })));
}

fn tables(disk: &SimDisk) -> Tables {
    Tables::new_in(DIR, Environment::on(disk.shared()))
}

fn exported(disk: &SimDisk) -> ConsumerOffsets {
    tables(disk).load().unwrap().table
}

/// What a broker does that runs between two lives of the store.
fn run_a_broker(disk: &SimDisk, group: &str, next: i64) {
    let mut offsets = exported(disk);
    offsets.set("orders", group, 0, next).unwrap();
    tables(disk).save(&mut offsets).unwrap();
}

#[test]
fn a_broker_finds_where_groups_were_and_its_own_offsets_are_taken_over() {
    let disk = SimDisk::new(1);
    let store = open(&disk);
    fill(&store, 4);
    store.commit_offset("billing", "orders", 0, 1).unwrap();
    store.commit_offset("shipping", "orders", 0, 4).unwrap();
    store.close().unwrap();
    assert_eq!(exported(&disk).get("orders", "billing", 0), Some(1));
    run_a_broker(&disk, "shipping", 2);
    let store = open(&disk);
    let taken_back = store.committed_offset("shipping", "orders", 0);
    assert_eq!(taken_back, Some(2), "somebody has reset it there");
    store.commit_offset("shipping", "orders", 0, 4).unwrap();
    store.close().unwrap();
    run_a_broker(&disk, "billing", 3);
    run_a_broker(&disk, "late", 2);
    let store = open(&disk);
    assert_eq!(store.recovery().imported_offsets, 3);
    assert_eq!(committed(&store), Some(3));
    assert_eq!(store.committed_offset("shipping", "orders", 0), Some(4));
    assert_eq!(store.committed_offset("late", "orders", 0), Some(2));
    // Once is enough: what is committed from now on is newer.
    store.commit_offset("billing", "orders", 0, 4).unwrap();
    let disk = disk.kill();
    let store = open(&disk);
    assert_eq!((store.recovery().imported_offsets, committed(&store)), (0, Some(4)));
    store.close().unwrap();
    assert_eq!(exported(&disk).get("orders", "billing", 0), Some(4));
    let store = open(&disk);
    assert_eq!((store.recovery().imported_offsets, committed(&store)), (0, Some(4)));
}

#[test]
fn what_a_broker_left_is_taken_over_where_there_was_nothing_but_never_behind_the_end() {
    let disk = SimDisk::new(1);
    let store = open(&disk);
    fill(&store, 2);
    store.close().unwrap();
    run_a_broker(&disk, "billing", 5);
    run_a_broker(&disk, "odd", -1);
    let config = config(FlushMode::sync()).read_only(true);
    let store = Store::open_in(config, Environment::on(disk.shared()).stepped()).unwrap();
    assert_eq!(committed(&store), Some(2));
    drop(store);
    let store = open(&disk);
    assert_eq!(store.recovery().imported_offsets, 1);
    assert_eq!(store.recovery().clamped_offsets.len(), 1);
    assert_eq!(committed(&store), Some(2));
    assert_eq!(store.committed_offset("odd", "orders", 0), None);
    // Durably, before anything is put.
    fill(&store, 4);
    let store = open(&disk.cut_power(Cut::losing_all()));
    assert_eq!((committed(&store), store.recovery().imported_offsets), (Some(2), 0));
}

#[test]
fn what_a_broker_left_needs_little_room() {
    for has_file in [false, true] {
        let disk = SimDisk::new(1);
        let store = open(&disk);
        fill(&store, 4);
        // All that was reserved is taken.
        let known = if has_file { 127 } else { 0 };
        for n in 0..known {
            store.commit_offset(&format!("group-{n}"), "orders", 0, 1).unwrap();
        }
        store.close().unwrap();
        run_a_broker(&disk, "late", 2);
        run_a_broker(&disk, "group-0", 3);
        // An open needs some for itself.
        disk.set_capacity(disk.used() + (16 << 10));
        let store = open(&disk);
        let at = |store: &Store| {
            ["late", "group-0"].map(|group| store.committed_offset(group, "orders", 0))
        };
        assert_eq!(at(&store), [Some(2), Some(3)]);
        store.commit_offset("late", "orders", 0, 3).unwrap();
        let newcomers = (0..).map(|n| store.commit_offset(&format!("new-{n}"), "orders", 0, 3));
        let refused = newcomers.take(1000).find_map(Result::err).expect("the disk is full");
        assert!(matches!(refused, Error::DiskFull { .. }), "{refused}");
        disk.set_capacity(u64::MAX);
        store.commit_offset("newest", "orders", 0, 3).unwrap();
        let count = store.committed_offsets().len();
        let store = open(&disk.kill());
        assert_eq!(store.recovery().imported_offsets, 0);
        assert_eq!(store.recovery().damaged_offsets, 0);
        assert_eq!((at(&store), store.committed_offsets().len()), ([Some(3), Some(3)], count));
    }
}

#[test]
fn offsets_are_exported_while_they_move() {
    let (disk, clock) = (SimDisk::new(1), Arc::new(ManualClock::new(1_700_000_000_000)));
    let environment = Environment::on(disk.shared()).clock(clock.clone()).stepped();
    let store = Store::open_in(config(FlushMode::sync()), environment).unwrap();
    fill(&store, 3);
    let work = || {
        clock.advance(Duration::from_secs(1));
        while store.step(StoreWorker::Offsets) == Next::Now {}
    };
    store.commit_offset("billing", "orders", 0, 1).unwrap();
    (0..3).for_each(|_| work());
    assert_eq!(exported(&disk).get("orders", "billing", 0), Some(1));
    store.commit_offset("billing", "orders", 0, 2).unwrap();
    work();
    assert_eq!(exported(&disk).get("orders", "billing", 0), Some(1), "not with every commit");
    (0..6).for_each(|_| work());
    assert_eq!(exported(&disk).get("orders", "billing", 0), Some(2));
    let syncs = disk.syncs_of("consumerOffset");
    (0..20).for_each(|_| work());
    assert_eq!(disk.syncs_of("consumerOffset"), syncs, "nothing has moved");
    store.forget_offsets("billing", "orders").unwrap();
    store.close().unwrap();
    assert_eq!(exported(&disk).get("orders", "billing", 0), None);
}

#[test]
fn a_store_opens_though_the_file_of_a_broker_is_damaged_and_says_so() {
    let disk = SimDisk::new(1);
    let store = open(&disk);
    fill(&store, 2);
    store.commit_offset("billing", "orders", 0, 1).unwrap();
    store.close().unwrap();
    disk.put_file("/store/config/consumerOffset.json", b"{\"offsetTable\":{").unwrap();
    let _ = disk.drop_file("/store/config/consumerOffset.json.bak");
    let store = open(&disk);
    assert!(store.recovery().offsets_not_imported.is_some());
    assert_eq!(committed(&store), Some(1));
    store.commit_offset("billing", "orders", 0, 2).unwrap();
    store.close().unwrap();
    assert_eq!(exported(&disk).get("orders", "billing", 0), Some(2));
}

#[test]
fn a_snapshot_takes_the_groups_along() {
    let disk = SimDisk::new(1);
    let store = open(&disk);
    fill(&store, 3);
    store.commit_offset("billing", "orders", 0, 2).unwrap();
    store.snapshot("/copy").unwrap();
    store.commit_offset("billing", "orders", 0, 3).unwrap();
    let disk = disk.cut_power(Cut::losing_all());
    let mut config = config(FlushMode::sync());
    config.log.dir = "/copy".into();
    let copy = Store::open_in(config, Environment::on(disk.shared()).stepped()).unwrap();
    assert_eq!(committed(&copy), Some(2));
    assert!(copy.recovery().clamped_offsets.is_empty());
}

#[test]
fn names_that_cannot_be_kept_are_refused() {
    let disk = SimDisk::new(1);
    let store = open(&disk);
    fill(&store, 1);
    for name in ["", "a@b", "a/b", "a\nb"] {
        let refused = store.commit_offset(name, "orders", 0, 1);
        assert!(matches!(refused, Err(Error::Config { field: "group", .. })), "{name:?}");
    }
    let refused = store.commit_offset(&"g".repeat(256), "orders", 0, 1);
    assert!(matches!(refused, Err(Error::TooLarge { what: "group", len: 256, .. })));
    store.commit_offset(&"g".repeat(255), "orders", 0, 1).unwrap();
    assert!(store.committed_offsets().iter().any(|one| one.group.len() == 255));
}

#[test]
fn a_store_that_is_only_read_shows_them_and_takes_none() {
    let disk = SimDisk::new(1);
    let store = open(&disk);
    fill(&store, 2);
    store.commit_offset("billing", "orders", 0, 1).unwrap();
    store.close().unwrap();
    let config = config(FlushMode::sync()).read_only(true);
    let store = Store::open_in(config, Environment::on(disk.shared()).stepped()).unwrap();
    assert_eq!(committed(&store), Some(1));
    assert!(matches!(store.commit_offset("billing", "orders", 0, 2), Err(Error::ReadOnly)));
}

/// What a group may be found to have committed in a queue: the last value that is durable, and those
/// after it. `None` stands for nothing.
type Possible = Vec<Option<u64>>;

/// What a scenario knows.
#[derive(Default)]
struct Model {
    /// By group and queue.
    possible: BTreeMap<(usize, usize), Possible>,
    /// The bodies that a group is done with.
    handled: BTreeMap<usize, BTreeSet<String>>,
    bodies: u64,
}

#[derive(Default)]
struct Totals {
    cuts: u64,
    clamps: usize,
    commits: u64,
    gone_back: u64,
}

fn bodies(store: &Store, (topic, queue_id): (&str, i32)) -> Vec<String> {
    let end = store.max_offset(topic, queue_id).unwrap_or(0);
    let mut bodies = Vec::new();
    while (bodies.len() as u64) < end {
        let from = bodies.len() as u64;
        let found = store.get_view(topic, queue_id, from, 64, &TagFilter::any()).unwrap();
        assert!(!found.messages.is_empty(), "{topic} {queue_id} ends at {from}, not at {end}");
        bodies.extend(found.messages.iter().map(|m| String::from_utf8(m.body().to_vec()).unwrap()));
    }
    bodies
}

/// Whatever lies before a group's offset, the group has handled.
fn check_nothing_is_passed_over(store: &Store, model: &Model) {
    for (queue, &(topic, queue_id)) in QUEUES.iter().enumerate() {
        let bodies = bodies(store, (topic, queue_id));
        for (group, name) in GROUPS.iter().enumerate() {
            let next = store.committed_offset(name, topic, queue_id).unwrap_or(0) as usize;
            assert!(next <= bodies.len(), "{name} is behind the end of queue {queue}");
            let handled = model.handled.get(&group);
            for body in &bodies[..next] {
                let is_handled = handled.is_some_and(|handled| handled.contains(body));
                assert!(is_handled, "{name} passes over {body} of queue {queue}");
            }
        }
    }
}

/// After a crash, each group is where it was at some time since the last sync, or at the queue's end.
fn check_what_survived(store: &Store, model: &mut Model, is_kill: bool) {
    for (&(group, queue), possible) in &mut model.possible {
        let (topic, queue_id) = QUEUES[queue];
        let found = store.committed_offset(GROUPS[group], topic, queue_id);
        let end = store.max_offset(topic, queue_id).unwrap_or(0);
        let allowed = if is_kill { &possible[possible.len() - 1..] } else { &possible[..] };
        let allowed: Vec<_> = allowed.iter().map(|next| next.map(|next| next.min(end))).collect();
        assert!(allowed.contains(&found), "{} at {found:?}, not {allowed:?}", GROUPS[group]);
        *possible = if is_kill { possible.clone() } else { vec![found] };
        possible.push(found);
    }
}

fn scenario(seed: u64, totals: &mut Totals) {
    let mut rng = Rng(seed);
    let mut disk = SimDisk::new(seed);
    let flush_mode = if rng.one_in(3) { FlushMode::sync() } else { FlushMode::async_default() };
    let mut model = Model::default();
    let mut store = open_on(&disk, flush_mode).unwrap();
    for _ in 0..rng.below(200) + 20 {
        let (group, queue) = (rng.below(2) as usize, rng.below(3) as usize);
        let (name, (topic, queue_id)) = (GROUPS[group], QUEUES[queue]);
        // None of it fails, but for the lights.
        let outcome = match rng.below(100) {
            0..35 => {
                model.bodies += 1;
                let message = Message::new(topic, model.bodies.to_string()).queue(queue_id);
                store.submit(message).map(drop)
            }
            35..55 => {
                work(&store);
                Ok(())
            }
            55..80 => {
                let bodies = bodies(&store, (topic, queue_id));
                let next = rng.below(bodies.len() as u64 + 1);
                let handled = model.handled.entry(group).or_default();
                handled.extend(bodies[..next as usize].iter().cloned());
                let before = store.committed_offset(name, topic, queue_id);
                totals.gone_back += u64::from(before.is_some_and(|before| next < before));
                totals.commits += 1;
                let possible = model.possible.entry((group, queue)).or_insert(vec![None]);
                possible.push(Some(next));
                store.commit_offset(name, topic, queue_id, next)
            }
            80..85 => {
                let flushed = store.flush_offsets();
                if flushed.is_ok() {
                    model.possible.values_mut().for_each(|all| drop(all.drain(..all.len() - 1)));
                }
                flushed
            }
            85..87 => store.flush(),
            87..89 => {
                let forgotten = store.forget_offsets(name, topic);
                let of_topic = |&(g, q): &(usize, usize)| g == group && QUEUES[q].0 == topic;
                for (_, possible) in model.possible.iter_mut().filter(|(key, _)| of_topic(key)) {
                    possible.push(None);
                    if forgotten.is_ok() {
                        possible.drain(..possible.len() - 1);
                    }
                }
                forgotten.map(drop)
            }
            89..92 => {
                disk.cut_at(1 + rng.below(12), CutMoment::Before);
                Ok(())
            }
            92..95 => Ok(()),
            _ => Err(Error::Closed),
        };
        if outcome.is_ok() && !disk.is_down() {
            continue;
        }
        // A crash, perhaps another one in the middle of the recovery.
        let mut is_kill = !disk.is_down() && rng.one_in(2);
        loop {
            let cut = Cut::seeded(rng.below(u64::MAX));
            let rebooted = if is_kill { disk.kill() } else { disk.cut_power(cut) };
            disk = rebooted;
            totals.cuts += 1;
            if rng.one_in(4) {
                disk.cut_at(1 + rng.below(40), CutMoment::Before);
            }
            match open_on(&disk, flush_mode) {
                Ok(opened) if !disk.is_down() => {
                    disk.disarm();
                    store = opened;
                    break;
                }
                Ok(_) => {}
                Err(error) => assert!(disk.is_down(), "{error}"),
            }
            is_kill = false;
        }
        totals.clamps += store.recovery().clamped_offsets.len();
        check_what_survived(&store, &mut model, is_kill);
        check_nothing_is_passed_over(&store, &model);
    }
    disk.disarm();
    work(&store);
    check_nothing_is_passed_over(&store, &model);
}

#[test]
fn no_group_passes_over_a_message_whatever_crashes() {
    let mut totals = Totals::default();
    let only = std::env::var("DURALOG_SEED").ok().and_then(|seed| seed.parse().ok());
    let seeds = only.map_or(0..400, |seed: u64| seed..seed + 1);
    for seed in seeds {
        let run = std::panic::AssertUnwindSafe(|| scenario(seed, &mut totals));
        if let Err(panic) = std::panic::catch_unwind(run) {
            eprintln!("DURALOG_SEED={seed}");
            std::panic::resume_unwind(panic);
        }
    }
    let Totals { cuts, clamps, commits, gone_back } = totals;
    println!("{cuts} crashes, {commits} commits, {gone_back} back, {clamps} taken back");
    if only.is_none() {
        assert!(cuts > 400 && clamps > 50 && commits > 1000 && gone_back > 100);
    }
}
