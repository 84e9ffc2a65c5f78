//! A store on a simulated disk, and messages that can be told apart.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use duralog::disk::{Cut, Fault, SimDisk};
use duralog::message::RecordLayout;
use duralog::{
    Acknowledged, Environment, Error, FlushMode, Message, RecoveryMode, Store, StoreConfig,
    StoredMessage,
};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

pub const DIR: &str = "/store";
pub const TOPIC: &str = "orders";
/// Longer than any test may take, where something is bound to happen.
pub const LONG: Duration = Duration::from_secs(60);

/// The commit log's segment that begins at `base`.
pub fn segment(base: u64) -> String {
    format!("{DIR}/commitlog/{base:020}")
}

/// How a store lays out its records, for what is written past it.
pub fn layout() -> RecordLayout {
    let host = config().log.store_host.into();
    RecordLayout {
        store_host: host,
        born_host: host,
        record_crc: true,
        long_topics: true,
        max_message_size: 1 << 20,
        max_record_size: 1 << 14,
    }
}

/// The fault, for files of the commit log alone.
pub fn on_log(fault: Fault) -> Fault {
    fault.path("commitlog")
}

/// Bytes written to files of the commit log.
pub fn written_to_log(disk: &SimDisk) -> u64 {
    disk.written_to("commitlog")
}

/// Syncs of files of the commit log.
pub fn syncs_of_log(disk: &SimDisk) -> u64 {
    disk.syncs_of("commitlog")
}

/// Waits for what other threads are bound to do.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !holds() {
        assert!(Instant::now() < deadline, "it never came about that {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

pub fn disk() -> SimDisk {
    let disk = SimDisk::new(7);
    disk.set_label_root(DIR);
    disk
}

/// Small files, so that little is enough to fill them.
pub fn config() -> StoreConfig {
    let mut config = StoreConfig::new(DIR).segment_size(16 << 10).consume_queue_file_size(400);
    (config.index_slots, config.index_items) = (500, 2000);
    config
}

/// Async flush that never syncs of its own accord.
pub fn unsynced() -> StoreConfig {
    let interval = Duration::from_secs(3600);
    let mode = FlushMode::Async { interval, least_pages: 0, thorough_interval: interval };
    config().flush_mode(mode)
}

pub fn open(disk: &SimDisk, config: StoreConfig) -> Store {
    try_open(disk, config).expect("the store opens")
}

pub fn try_open(disk: &SimDisk, config: StoreConfig) -> Result<Store, Error> {
    Store::open_in(config, Environment::on(disk.shared()))
}

/// Without threads: reading needs none.
pub fn open_stepped(disk: &SimDisk, config: StoreConfig) -> Result<Store, Error> {
    Store::open_in(config, Environment::on(disk.shared()).stepped())
}

pub fn body(id: u64) -> Vec<u8> {
    let len = 20 + (id * 37 % 200) as usize;
    id.to_be_bytes().into_iter().chain((8..len).map(|i| (i as u64 * (id + 3)) as u8)).collect()
}

pub fn message(id: u64) -> Message {
    Message::new(TOPIC, body(id)).tag("t").key(format!("k{id}"))
}

/// Puts what must be safe then; its queue offset.
pub fn put(store: &Store, id: u64) -> u64 {
    put_result(store, id).queue_offset
}

pub fn put_result(store: &Store, id: u64) -> Acknowledged {
    store.put(message(id)).expect("the put is accepted").ok().expect("the put is safe")
}

/// What the queue holds, by the ids in the bodies; every body is compared.
pub fn ids(store: &Store) -> Vec<u64> {
    all(store).iter().map(|stored| id_of(&stored.body)).collect()
}

/// Reads what is kept of the queue to its end, as a consumer would: a fetch may give less than there is.
pub fn all(store: &Store) -> Vec<StoredMessage> {
    let (mut found, mut at) = (Vec::new(), store.min_offset(TOPIC, 0).unwrap_or(0));
    loop {
        let fetched = store.get(TOPIC, 0, at, usize::MAX).expect("the queue can be read");
        if fetched.messages.is_empty() {
            return found;
        }
        found.extend(fetched.messages);
        at = fetched.next_offset;
    }
}

pub fn id_of(found: &[u8]) -> u64 {
    let id = u64::from_be_bytes(found[..8].try_into().expect("a body begins with its id"));
    assert_eq!(found, body(id), "message {id} was altered");
    id
}

/// Closes what can be closed and opens again after a power cut that takes all it can.
pub fn reopen_after_power_cut(
    disk: &SimDisk,
    store: Store,
    config: StoreConfig,
) -> (SimDisk, Store) {
    let next = disk.cut_power(Cut::losing_all());
    // Its machine is off: nothing it does now reaches the disk.
    drop(store);
    next.clear_faults();
    next.hang_syncs(false);
    let store = open(&next, config);
    (next, store)
}

pub fn modes() -> [RecoveryMode; 3] {
    [RecoveryMode::Strict, RecoveryMode::TolerateTail, RecoveryMode::Salvage]
}

/// A disk with `count` messages from 0 on, closed cleanly.
pub fn filled(count: u64) -> (SimDisk, Vec<Acknowledged>) {
    let disk = disk();
    let store = open(&disk, config());
    let puts = (0..count).map(|id| put_result(&store, id)).collect();
    store.close().expect("the store closes");
    (disk, puts)
}

/// A disk with `count` messages that are in the page cache but were never synced, after a kill.
pub fn unsynced_tail(count: u64) -> (SimDisk, Vec<Acknowledged>) {
    let disk = disk();
    let store = open(&disk, unsynced());
    let puts = (0..count).map(|id| put_result(&store, id)).collect();
    let next = disk.kill();
    drop(store);
    (next, puts)
}

/// Every file and its bytes.
pub fn contents(disk: &SimDisk) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let bytes = |path: &Path| disk.bytes(path).expect("a file has bytes");
    let mut all: Vec<_> =
        disk.files().into_iter().map(|path| (path.clone(), bytes(&path))).collect();
    all.sort();
    all
}

/// A disk that has these files, all of them durable.
pub fn disk_with(files: &[(std::path::PathBuf, Vec<u8>)]) -> SimDisk {
    let disk = disk();
    for (path, bytes) in files {
        disk.put_file(path, bytes).expect("there is room");
    }
    disk
}
