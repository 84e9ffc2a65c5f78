//! Snapshots: whole or not there, equal to what was put before them, and apart from their store ever
//! after.

#[allow(dead_code, reason = "a store is opened, whatever its manifest says")]
#[path = "support/fixtures.rs"]
mod fixtures;
#[path = "support/hooked.rs"]
mod hooked;
#[path = "support/nodes.rs"]
mod nodes;
#[path = "support/sim.rs"]
mod sim;
#[path = "support/temp.rs"]
mod temp;

use duralog::disk::{Cut, CutMoment, Fault, SimCall, SimDisk};
use duralog::replication::{NodeId, NodeOptions, Refusal};
use duralog::tables::{ConsumerOffsets, Tables};
use duralog::{
    Acknowledged, Environment, Error, FlushMode, Message, PutStatus, RecoveryMode, SnapshotReport,
    Store, StoreConfig, StoreWorker, WriteMode,
};
use hooked::{Hook, Hooked};
use nodes::{Line, node, primary_with, replica_with, status_of_put, try_primary};
use sim::{DIR, LONG, TOPIC, body, eventually, id_of, ids, put};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;
use temp::TempDir;

const COPY: &str = "/backup/copy";
const TOPICS: [&str; 2] = ["orders", "payments"];

/// Small files: several segments, queue files and index files for little.
fn small(dir: impl Into<PathBuf>) -> StoreConfig {
    let mut config = StoreConfig::new(dir).segment_size(4096).consume_queue_file_size(200);
    (config.index_slots, config.index_items) = (7, 24);
    config
}

fn numbered(id: u64) -> Message {
    let topic = TOPICS[id as usize % 2];
    Message::new(topic, body(id)).queue((id / 2 % 2) as i32).key(format!("k{}", id % 5))
}

/// What lies at each physical offset: topic, queue, queue offset, body.
type Found = BTreeMap<u64, (String, i32, i64, Vec<u8>)>;

fn everything(store: &Store) -> Found {
    let mut found = BTreeMap::new();
    for (topic, queues) in store.topics() {
        for queue in queues {
            let mut at = store.min_offset(&topic, queue).expect("a queue");
            loop {
                let fetched = store.get(&topic, queue, at, usize::MAX).expect("readable");
                if fetched.messages.is_empty() {
                    break;
                }
                at = fetched.next_offset;
                for message in fetched.messages {
                    let place = (topic.clone(), queue, message.queue_offset, message.body);
                    found.insert(message.physical_offset.cast_unsigned(), place);
                }
            }
        }
    }
    found
}

/// Opens a copy and makes sure that there was nothing to do.
fn open_clean(config: StoreConfig, environment: Environment) -> Store {
    let store = Store::open_in(config, environment).expect("the copy opens");
    let report = store.recovery();
    assert!(!report.unclean && !report.foreign, "{report:?}");
    assert_eq!((report.scanned_records, report.redispatched_records), (0, 0), "{report:?}");
    assert_eq!((&report.cut, &report.queues_rebuilt), (&None, &None));
    let verified = store.verify().expect("readable");
    assert!(verified.is_ok(), "{verified:?}");
    store
}

fn assert_keys(store: &Store, found: &Found) {
    for topic in TOPICS {
        for key in 0..5 {
            let views = store.query(topic, &format!("k{key}"), usize::MAX, 0..=i64::MAX);
            let got: Vec<u64> =
                views.expect("the index").iter().map(|view| view.physical_offset()).collect();
            let has = |(of, _, _, body): &(String, i32, i64, Vec<u8>)| {
                of == topic && id_of(body) % 5 == key
            };
            let expected: Vec<u64> =
                found.iter().filter(|(_, place)| has(place)).map(|(at, _)| *at).collect();
            assert_eq!(got, expected, "key k{key} of {topic}");
        }
    }
}

fn stepped(disk: &SimDisk) -> Environment {
    Environment::on(disk.shared()).stepped()
}

fn put_stepped(store: &Store, message: &Message) -> Acknowledged {
    loop {
        match store.try_submit(message) {
            Ok(ticket) => {
                store.step(StoreWorker::Flush);
                return ticket.wait().expect("synced").ok().expect("durable");
            }
            Err(Error::SegmentNotReady { .. }) => drop(store.step(StoreWorker::Upkeep)),
            Err(other) => panic!("{other}"),
        }
    }
}

/// A store of some segments, closed and opened once, with tables, and what is in it.
fn sim_store(seed: u64, mode: WriteMode) -> (SimDisk, StoreConfig, Store, Found) {
    let disk = SimDisk::new(seed);
    let config = small(DIR).write_mode(mode);
    let open = || Store::open_in(config.clone(), stepped(&disk)).expect("the store opens");
    let store = open();
    (0..20).for_each(|id| {
        put_stepped(&store, &numbered(id));
    });
    store.close().expect("the store closes");
    drop(store);
    let tables = Tables::new_in(DIR, Environment::on(disk.shared()));
    let mut offsets = ConsumerOffsets::default();
    for offset in [1, 2] {
        offsets.set(TOPIC, "billing", 0, offset).expect("an offset");
        tables.save(&mut offsets).expect("saved");
    }
    let store = open();
    (20..70).for_each(|id| {
        put_stepped(&store, &numbered(id));
    });
    let found = everything(&store);
    assert_eq!(found.len(), 70);
    (disk, config, store, found)
}

fn left_of_it(disk: &SimDisk) -> Vec<PathBuf> {
    disk.files().into_iter().filter(|path| path.starts_with("/backup")).collect()
}

fn check_copy(disk: &SimDisk, config: &StoreConfig, found: &Found) {
    let mut config = config.clone();
    config.log.dir = COPY.into();
    let copy = open_clean(config, stepped(disk));
    assert!(everything(&copy) == *found, "the copy differs");
    assert_keys(&copy, found);
    let tables = Tables::new_in(COPY, Environment::on(disk.shared()));
    let offsets = tables.load::<ConsumerOffsets>().expect("copied").table;
    assert_eq!(offsets.get(TOPIC, "billing", 0), Some(2));
    copy.close().expect("the copy closes");
}

#[test]
fn a_power_cut_at_any_call_leaves_a_whole_snapshot_or_none() {
    let (mut whole, mut none) = (0, 0);
    let cases = [
        (WriteMode::Pwrite, CutMoment::Before, Some(Cut::losing_all())),
        (WriteMode::Mmap, CutMoment::Middle, Some(Cut::losing_all())),
        (WriteMode::Pwrite, CutMoment::Middle, Some(Cut::losing_nothing())),
        (WriteMode::Mmap, CutMoment::Middle, None),
    ];
    for (mode, moment, cut) in cases {
        for call in 1.. {
            let cut = cut.unwrap_or(Cut::seeded(call));
            let (disk, config, store, found) = sim_store(call, mode);
            disk.cut_at(call, moment);
            let made = store.snapshot(COPY);
            let finished = !disk.is_down();
            assert_eq!(made.is_ok(), finished, "{made:?}");
            let disk = disk.reboot(cut);
            drop(store);
            let at = format!("call {call}, {moment:?}, {cut:?}");
            let there = disk.bytes(format!("{COPY}/duralog/format")).is_ok();
            assert!(there || !finished, "{at}: a snapshot that was reported is gone");
            if there {
                check_copy(&disk, &config, &found);
                whole += 1;
            } else {
                let any = left_of_it(&disk).into_iter().find(|path| path.starts_with(COPY));
                assert_eq!(any, None, "{at}");
                none += 1;
            }
            let store = Store::open_in(config.clone(), stepped(&disk)).expect("it opens");
            assert!(everything(&store) == found, "{at}: the store was harmed");
            assert!(store.verify().expect("readable").is_ok());
            if !there {
                store.snapshot(COPY).expect("what a crash left is no hindrance");
                check_copy(&disk, &config, &found);
                let others = left_of_it(&disk);
                assert!(others.iter().all(|path| path.starts_with(COPY)), "{others:?}");
            }
            if finished {
                break;
            }
        }
    }
    println!("snapshot: {whole} power cuts left it whole, {none} left none");
    assert!(whole > 4 && none > 200, "{whole} {none}");
}

#[test]
fn a_call_that_fails_leaves_no_snapshot_and_the_store_as_it_was() {
    let mut failed = 0;
    let calls = SimCall::ALL.into_iter().filter(|call| *call != SimCall::Map);
    for call in calls {
        for nth in 1.. {
            let (disk, config, store, found) = sim_store(nth, WriteMode::Pwrite);
            let fault = Fault::on(call).nth(nth).errno(errno_of(nth));
            disk.inject(fault.path_where(|path| !path.starts_with(DIR)));
            let made = store.snapshot(COPY);
            let fired = disk.faults_fired() > 0;
            disk.clear_faults();
            match &made {
                // What can be done without is.
                Ok(_) => {
                    let needed = call.is_mutating() && call != SimCall::HardLink;
                    assert!(!needed || !fired, "{call:?} {nth}");
                    check_copy(&disk, &config, &found);
                }
                Err(Error::DiskFull { .. } | Error::Io { .. } | Error::Corrupt { .. }) => {
                    assert!(fired);
                    assert_eq!(left_of_it(&disk), Vec::<PathBuf>::new(), "{call:?} {nth}");
                    failed += 1;
                }
                Err(other) => panic!("{call:?} {nth}: {other:?}"),
            }
            assert!(everything(&store) == found);
            assert!(store.health().is_ok(), "{:?}", store.health());
            put_stepped(&store, &numbered(100));
            if made.is_err() {
                store.snapshot(COPY).expect("nothing is in the way");
            }
            if !fired {
                break;
            }
        }
    }
    assert!(failed > 60, "{failed}");
}

/// Half of the failures are a full disk.
fn errno_of(nth: u64) -> i32 {
    let (eio, enospc) = (5, 28);
    if nth.is_multiple_of(2) { enospc } else { eio }
}

#[test]
fn a_full_disk_is_told_and_what_was_begun_is_removed() {
    let (disk, _, store, _) = sim_store(1, WriteMode::Pwrite);
    let mut full = 0;
    for room in (0..).map(|n| n * 4096) {
        let used = disk.used();
        disk.set_capacity(used + room);
        match store.snapshot(COPY) {
            Ok(_) => break,
            Err(Error::DiskFull { available, .. }) => assert!(available.is_some()),
            Err(other) => panic!("{other:?}"),
        }
        assert_eq!((left_of_it(&disk), disk.used()), (Vec::new(), used));
        disk.set_capacity(1 << 40);
        put_stepped(&store, &numbered(full));
        full += 1;
        assert!(full < 1000, "it never fits");
    }
    assert!(full > 5, "{full}");
}

/// The files of a directory below `root`, with their bytes.
fn files(root: &Path, dir: &str) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut dirs = vec![root.join(dir)];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten() {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                dirs.push(path);
            } else {
                let name = path.strip_prefix(root).expect("below it").to_owned();
                found.insert(name, fs::read(&path).expect("readable"));
            }
        }
    }
    found
}

/// Room for a store and its copies.
fn place() -> (TempDir, PathBuf, PathBuf) {
    let temp = TempDir::in_memory();
    let (dir, copy) = (temp.path().join("data"), temp.path().join("copies/first"));
    (temp, dir, copy)
}

fn fill(store: &Store, ids: std::ops::Range<u64>) {
    for id in ids {
        store.put(numbered(id)).expect("accepted").ok().expect("durable");
    }
}

#[test]
fn the_files_of_a_snapshot_are_those_of_a_closed_store() {
    let (_temp, dir, copy) = place();
    let store = Store::open(small(&dir)).expect("the store opens");
    fill(&store, 0..300);
    let report = store.snapshot(&copy).expect("made");
    store.close().expect("the store closes");
    assert_eq!((report.messages, report.segments), (300, files(&dir, "commitlog").len()));
    assert!(report.linked == report.segments - 1 && report.copied_bytes < 4096, "{report:?}");
    for part in ["commitlog", "consumequeue", "index", "checkpoint"] {
        let (ours, theirs) = (files(&dir, part), files(&copy, part));
        assert!(ours == theirs, "{part}: {:?} {:?}", ours.keys(), theirs.keys());
    }
    assert!(files(&dir, "index").len() > 5 && files(&dir, "consumequeue").len() > 20);
    assert_eq!(
        fs::read(dir.join("checkpoint")).expect("one"),
        fs::read(copy.join("checkpoint")).expect("one")
    );
    assert!(!copy.join("abort").exists());
    assert_ne!(fs::read(copy.join("lock")).expect("one").get(..4), Some(&b"lock"[..]));
}

#[test]
fn what_is_written_to_the_one_is_not_in_the_other() {
    let (_temp, dir, copy) = place();
    let store = Store::open(small(&dir)).expect("the store opens");
    fill(&store, 0..100);
    let report = store.snapshot(&copy).expect("made");
    let (found, copied) = (everything(&store), files(&copy, "."));
    let last = |dir: &Path| {
        let names = files(dir, "commitlog");
        fs::metadata(dir.join(names.keys().next_back().expect("segments"))).expect("a file")
    };
    assert_eq!(last(&copy).nlink(), 1, "the next record of the copy goes into a file of its own");
    assert!(last(&copy).blocks() * 512 <= report.copied_bytes.next_multiple_of(4096));

    fill(&store, 1000..1100);
    store.close().expect("the store closes");
    drop(store);
    assert!(files(&copy, ".") == copied, "the store wrote to its copy");
    let ours = files(&dir, ".");

    let second = open_clean(small(&copy), Environment::default());
    assert!(everything(&second) == found);
    assert_keys(&second, &found);
    fill(&second, 2000..2100);
    second.close().expect("the copy closes");
    drop(second);
    assert!(files(&dir, ".") == ours, "the copy wrote to the store");

    let (first, second) = (Store::open(small(&dir)), Store::open(small(&copy)));
    let (first, second) = (first.expect("opens"), second.expect("opens"));
    for store in [&first, &second] {
        let all = everything(store);
        assert!(all.len() == 200 && found.iter().all(|(at, place)| all.get(at) == Some(place)));
        assert!(store.verify().expect("readable").is_ok());
        assert_keys(store, &all);
    }
}

#[test]
fn producers_go_on_and_the_copies_hold_what_was_put_before() {
    for mode in [FlushMode::sync(), FlushMode::async_default()] {
        let (temp, dir, _) = place();
        let mut config = small(&dir).segment_size(16 << 10).flush_mode(mode);
        (config.index_slots, config.index_items) = (100, 1000);
        let store = Store::open(config.clone()).expect("the store opens");
        let (stop, acked) = (AtomicBool::new(false), Mutex::new(BTreeMap::new()));
        let next = AtomicU64::new(0);
        let mut reports: Vec<(SnapshotReport, PathBuf, BTreeMap<u64, u64>)> = Vec::new();
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        let id = next.fetch_add(1, Ordering::Relaxed);
                        let put = store.put(numbered(id)).expect("accepted").ok().expect("safe");
                        acked.lock().expect("no panic").insert(put.physical_offset, id);
                    }
                });
            }
            for n in 0..5 {
                eventually("enough is put", || next.load(Ordering::Relaxed) > 300 * (n + 1));
                let before = acked.lock().expect("no panic").clone();
                let copy = temp.path().join(format!("copy-{n}"));
                let report = store.snapshot(&copy).expect("made");
                reports.push((report, copy, before));
            }
            stop.store(true, Ordering::Relaxed);
        });
        let all = everything(&store);
        assert_eq!(all.len() as u64, next.load(Ordering::Relaxed));
        for (report, copy, before) in reports {
            let mut config = config.clone();
            config.log.dir = copy.clone();
            let opened = open_clean(config, Environment::default());
            let found = everything(&opened);
            assert!(found.iter().eq(all.range(..report.end)), "{copy:?} is no prefix");
            assert_eq!(found.len() as u64, report.messages);
            for (at, id) in before {
                assert!(found.get(&at).is_some_and(|place| id_of(&place.3) == id), "{id} at {at}");
            }
            assert_keys(&opened, &found);
            assert!(report.linked + 1 == report.segments, "{report:?}");
        }
    }
}

/// Makes every call of one thread wait until another has put something.
#[derive(Debug)]
struct Paced {
    calls: Mutex<mpsc::Sender<mpsc::Sender<()>>>,
}

impl Hook for Paced {
    fn before(&self, _call: SimCall) -> io::Result<()> {
        if thread::current().name() == Some("snapshot") {
            let (go_on, told) = mpsc::channel();
            let calls = self.calls.lock().expect("no panic").clone();
            if calls.send(go_on).is_ok() {
                told.recv_timeout(LONG).expect("a put ends while a snapshot is at work");
            }
        }
        Ok(())
    }
}

#[test]
fn puts_end_during_every_call_of_a_snapshot() {
    let disk = sim::disk();
    let (calls, called) = mpsc::channel();
    let hooked = Hooked::over(disk.shared(), Arc::new(Paced { calls: Mutex::new(calls) }));
    let store = Store::open_in(sim::config(), Environment::on(hooked)).expect("the store opens");
    // To the beginning of a segment: nothing has to roll while it cannot.
    let mut count = 0;
    while store.stats().rolls < 3 {
        put(&store, count);
        count += 1;
    }
    let snapshot = store.clone();
    let made = thread::Builder::new().name("snapshot".to_owned());
    let made = made.spawn(move || snapshot.snapshot(COPY)).expect("a thread");
    let mut during = 0;
    while !made.is_finished() {
        let Ok(go_on) = called.recv_timeout(Duration::from_millis(20)) else { continue };
        if during < 60 {
            put(&store, count + during);
            during += 1;
        }
        go_on.send(()).expect("it waits");
    }
    let report = made.join().expect("no panic").expect("made");
    assert!(during >= 40 && report.messages >= count, "{during} {report:?}");
    assert_eq!(report.linked, 3);
    let mut config = sim::config();
    config.log.dir = COPY.into();
    let copy = open_clean(config, Environment::on(disk.shared()));
    assert_eq!(ids(&copy), (0..report.messages).collect::<Vec<_>>());
    assert_eq!(ids(&store), (0..count + during).collect::<Vec<_>>());
}

#[test]
fn where_there_are_no_hard_links_everything_is_copied() {
    let (disk, config, store, found) = sim_store(1, WriteMode::Pwrite);
    let kind = io::ErrorKind::CrossesDevices;
    disk.inject(Fault::on(SimCall::HardLink).kind(kind).forever());
    let report = store.snapshot(COPY).expect("made");
    assert!(report.linked == 0 && report.segments > 4, "{report:?}");
    assert_eq!(report.copied_bytes, report.end);
    check_copy(&disk, &config, &found);
}

#[test]
fn a_damaged_segment_that_rocketmq_would_cut_is_no_link() {
    for from_end in 1..4 {
        let (disk, config, store, _) = sim_store(1, WriteMode::Pwrite);
        let segments = store.stats().segments as u64;
        store.close().expect("the store closes");
        drop(store);
        let base = 4096 * (segments - 1 - from_end);
        disk.flip_bit(sim::segment(base), 100, 1).expect("a segment");
        let store = Store::open_in(config.clone(), stepped(&disk)).expect("it opens");
        let report = store.snapshot(COPY).expect("made");
        let whole = report.segments - 1;
        assert_eq!(report.linked, if from_end < 3 { whole - 1 } else { whole });
        let (path, copy) = (sim::segment(base), format!("{COPY}/commitlog/{base:020}"));
        assert_eq!(disk.bytes(path).expect("one"), disk.bytes(copy).expect("one"));
    }
}

#[test]
fn a_directory_that_will_not_do_is_refused() {
    let (temp, dir, copy) = place();
    let store = Store::open(small(&dir)).expect("the store opens");
    fill(&store, 0..10);
    fs::create_dir_all(&copy).expect("a directory");
    fs::write(copy.join("precious"), "1").expect("a file");
    let refused = store.snapshot(&copy);
    assert!(matches!(&refused, Err(Error::NotEmpty { path }) if *path == copy), "{refused:?}");
    assert_eq!(fs::read(copy.join("precious")).expect("it is there"), b"1");
    fs::remove_file(copy.join("precious")).expect("removed");
    assert_eq!(store.snapshot(&copy).expect("it is empty now").messages, 10);
    assert!(matches!(store.snapshot(&copy), Err(Error::NotEmpty { .. })));
    for nowhere in
        [dir.join("commitlog/copy"), dir.clone(), PathBuf::from("/"), temp.path().join("..")]
    {
        let refused = store.snapshot(&nowhere);
        assert!(matches!(refused, Err(Error::Config { field: "dir", .. })), "{refused:?}");
    }
    let file = temp.path().join("file");
    fs::write(&file, "1").expect("a file");
    assert!(matches!(store.snapshot(&file), Err(Error::Io { .. })));
    let names = fs::read_dir(temp.path()).expect("readable").count();
    assert_eq!(names, 3, "the store, the file and the copies");
    store.close().expect("the store closes");
    assert!(matches!(store.snapshot(temp.path().join("late")), Err(Error::Closed)));
}

#[test]
fn a_snapshot_under_way_is_left_alone_and_one_that_a_crash_left_is_not() {
    let (temp, dir, _) = place();
    let store = Store::open(small(&dir)).expect("the store opens");
    fill(&store, 0..50);
    let left = temp.path().join("copy.duralog-tmp");
    let other = Store::open(small(&left)).expect("a store by that name");
    let refused = store.snapshot(temp.path().join("copy"));
    assert!(matches!(refused, Err(Error::Locked { .. })), "{refused:?}");
    fill(&other, 0..50);
    drop(other);
    assert_eq!(store.snapshot(temp.path().join("copy")).expect("made").messages, 50);
    assert!(!left.exists());
}

#[test]
fn a_store_that_is_only_read_can_be_copied() {
    let disk = sim::disk();
    let writer = sim::open(&disk, sim::config());
    for id in 0..150 {
        put(&writer, id);
    }
    let copy_of = |n: u32| format!("{COPY}-{n}");
    let reopen = |disk: &SimDisk, n: u32| {
        let mut config = sim::config();
        config.log.dir = copy_of(n).into();
        open_clean(config, stepped(disk))
    };
    // Beside the writer, which has saved what is durable some time ago.
    let reader = sim::open(&disk, sim::config().read_only(true));
    let shown = ids(&reader);
    let report = reader.snapshot(copy_of(1)).expect("made");
    assert_eq!(ids(&reopen(&disk, 1)), shown);
    assert!(report.messages == shown.len() as u64 && report.linked > 0, "{report:?}");
    drop((reader, writer));
    // After a kill, with a tail that nobody synced.
    let (disk, _) = sim::unsynced_tail(100);
    let reader = sim::open(&disk, sim::config().read_only(true));
    let report = reader.snapshot(copy_of(2)).expect("made");
    assert_eq!(report.messages, ids(&reader).len() as u64);
    let disk = disk.cut_power(Cut::losing_all());
    assert_eq!(ids(&reopen(&disk, 2)).len() as u64, report.messages);
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a directory");
    for entry in fs::read_dir(from).expect("a directory") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("copied");
        }
    }
}

#[test]
fn stores_that_rocketmq_wrote_are_copied_whole() {
    let mut copied = 0;
    for case in fixtures::cases() {
        for read_only in [false, true] {
            let (_temp, dir, copy) = place();
            copy_dir(&case.join("store"), &dir);
            let config = StoreConfig::new(&dir).recovery_mode(RecoveryMode::TolerateTail);
            let store = Store::open(config.clone().read_only(read_only)).expect("it opens");
            let found = everything(&store);
            let report = store.snapshot(&copy).expect("made");
            assert_eq!(report.messages, found.len() as u64, "{}", case.display());
            drop(store);
            let mut config = config;
            config.log.dir = copy.clone();
            let opened = open_clean(config, Environment::default());
            assert!(everything(&opened) == found, "{}", case.display());
            drop(opened);
            // A broker takes no other size than it had.
            let sizes = |dir: &Path| -> BTreeMap<PathBuf, usize> {
                let queues = files(dir, "consumequeue").into_iter();
                queues.map(|(name, bytes)| (name, bytes.len())).collect()
            };
            let (ours, theirs) = (sizes(&dir), sizes(&copy));
            for (name, len) in &theirs {
                assert!(
                    ours.get(name).is_none_or(|has| has == len),
                    "{}: {name:?}",
                    case.display()
                );
            }
            if !read_only {
                assert_eq!(ours.len(), theirs.len(), "{}", case.display());
            }
            copied += 1;
        }
    }
    assert!(copied > 40, "{copied}");
}

#[test]
fn recovery_never_again_looks_at_what_a_snapshot_shares() {
    let (disk, config, store, found) = sim_store(1, WriteMode::Pwrite);
    let end = store.snapshot(COPY).expect("made").end;
    let disk = disk.cut_power(Cut::losing_all());
    drop(store);
    let store = Store::open_in(config, stepped(&disk)).expect("it opens");
    assert!(store.recovery().unclean && store.recovery().scanned_from >= end);
    assert!(everything(&store) == found);
}

#[test]
fn a_log_that_ends_with_a_full_segment_goes_on_in_a_file_of_its_own() {
    for read_only in [true, false] {
        let (disk, config, store, _) = sim_store(1, WriteMode::Pwrite);
        let segments = store.stats().segments as u64;
        store.close().expect("the store closes");
        drop(store);
        // As another program would leave it, which makes segments when it needs them.
        for path in
            disk.files().iter().filter(|path| !path.starts_with(sim::DIR.to_owned() + "/commitlog"))
        {
            disk.drop_file(path).expect("a file");
        }
        let end = 4096 * (segments - 1);
        disk.drop_file(sim::segment(end)).expect("the last segment");
        let store = Store::open_in(config.clone().read_only(read_only), stepped(&disk));
        let store = store.expect("it opens");
        let found = everything(&store);
        let report = store.snapshot(COPY).expect("made");
        assert_eq!((report.end, report.copied_bytes), (end, 0));
        assert_eq!((report.segments as u64, report.linked as u64), (segments, segments - 1));
        let before = sim::contents(&disk);
        let mut config = config;
        config.log.dir = COPY.into();
        let copy = open_clean(config, stepped(&disk));
        assert!(everything(&copy) == found);
        put_stepped(&copy, &numbered(7));
        copy.close().expect("the copy closes");
        let ours = before.iter().filter(|(path, _)| path.starts_with(DIR));
        for (path, bytes) in ours {
            assert!(disk.bytes(path).expect("it is there") == *bytes, "{path:?} was written to");
        }
    }
}

#[test]
fn a_snapshot_of_a_primary_takes_no_puts_by_the_epoch_of_the_primary() {
    let disks = [sim::disk(), sim::disk()];
    let a = primary_with(&disks[0], small(DIR), node(1));
    let line = Line::to(&a);
    let follow =
        |disk, dir: &str, id| replica_with(disk, small(dir), NodeOptions::new(NodeId(id)), &line);
    let b = follow(&disks[1], DIR, 2);
    a.wait_for_replicas(1, LONG).expect("it connects");
    assert_eq!(status_of_put(&a, 0), PutStatus::PutOk);
    a.store().snapshot(COPY).expect("it is copied");
    // What comes where this lies would pass for it.
    assert_eq!(status_of_put(&a, 1), PutStatus::PutOk);
    let term = a.epoch().next_term();
    drop(a);
    match try_primary(&disks[0], small(COPY), node(1)) {
        Err(Error::Refused(Refusal::NotFenced)) => {}
        other => panic!("{other:?}"),
    }
    // Whoever gives it one knows that what came later is lost.
    let elsewhere = sim::disk_with(&sim::contents(&disks[0]));
    let restored = try_primary(&elsewhere, small(COPY), node(1).epoch(term));
    assert_eq!(ids(restored.expect("it has an epoch of its own").store()), [0]);
    // As a replica it gets what it lacks.
    b.fence(term).expect("it is newer");
    let b = b.promote(node(2)).expect("it takes over");
    line.lead_to(&b);
    let copy = follow(&disks[0], COPY, 1);
    b.wait_for_replicas(1, LONG).expect("it follows");
    assert_eq!(status_of_put(&b, 2), PutStatus::PutOk);
    eventually("it shows all", || ids(&copy.store()) == [0, 1, 2]);
}
