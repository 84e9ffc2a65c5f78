//! Index files as RocketMQ leaves them: whatever it forgot, every message is found by its keys.

#[path = "support/sim.rs"]
mod sim;

use duralog::clock::ManualClock;
use duralog::disk::{Disk, SimDisk};
use duralog::{Environment, Message, Store, StoreConfig};
use sim::{DIR, TOPIC, config, disk};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

const NOW: i64 = 1_700_000_000_000;
/// Keys of a file.
const CAPACITY: u32 = 3;
/// Where the first item lies behind header and one slot.
const ITEM_1: usize = 40 + 4 + 20;

fn small_index() -> StoreConfig {
    let mut config = config();
    (config.index_slots, config.index_items) = (1, CAPACITY + 1);
    config
}

fn open(disk: &SimDisk, clock: &Arc<ManualClock>) -> Store {
    let environment = Environment::on(disk.shared()).clock(clock.clone());
    Store::open_in(small_index(), environment).expect("the store opens")
}

/// Writes so many messages, one a second, with the keys that `keys` gives them, and closes; where each
/// lies.
fn write(disk: &SimDisk, count: u64, keys: impl Fn(Message, u64) -> Message) -> Vec<u64> {
    let clock = Arc::new(ManualClock::new(NOW));
    let store = open(disk, &clock);
    let put = |n| {
        let put = store.put(keys(Message::new(TOPIC, "body"), n)).expect("stored");
        clock.advance(Duration::from_secs(1));
        put.ok().expect("durable").physical_offset
    };
    let offsets = (0..count).map(put).collect();
    store.close().expect("the store closes");
    offsets
}

fn index_files(disk: &SimDisk) -> Vec<PathBuf> {
    let mut files = disk.files();
    files.retain(|path| path.starts_with(format!("{DIR}/index")));
    files
}

/// Opens the store and expects each of the messages under its key.
fn assert_found(disk: &SimDisk, offsets: &[u64], key: impl Fn(usize) -> String) {
    let store = open(disk, &Arc::new(ManualClock::new(NOW + 60_000)));
    for (n, offset) in offsets.iter().enumerate() {
        let stored = NOW + 1000 * n as i64;
        let found = store.query(TOPIC, &key(n), 9, stored..=stored).expect("readable");
        let found: Vec<_> = found.iter().map(|view| view.physical_offset()).collect();
        assert_eq!(found, [*offset], "message {n}");
    }
    store.close().expect("the store closes");
}

#[test]
fn the_first_item_is_as_old_as_its_file_says() {
    let disk = disk();
    let offsets = write(&disk, 4, |message, n| message.key(format!("key-{n}")));
    let files = index_files(&disk);
    assert_eq!(files.len(), 2);
    // RocketMQ counts these seconds from the end of the file before.
    let mut second = disk.bytes(&files[1]).unwrap();
    second[ITEM_1 + 12..ITEM_1 + 16].copy_from_slice(&3600i32.to_be_bytes());
    disk.put_file(&files[1], &second).unwrap();
    assert_found(&disk, &offsets, |n| format!("key-{n}"));
}

#[test]
fn a_message_at_the_edge_of_a_file_keeps_all_its_keys() {
    let disk = disk();
    let offsets = write(&disk, 4, |message, n| {
        message.unique_key(format!("unique-{n}")).key(format!("key-{n}"))
    });
    let files = index_files(&disk);
    // The second message has its unique key in the first file and the other one in the second, which
    // a broker that was killed had not made durable.
    let first = disk.bytes(&files[0]).unwrap();
    files[1..].iter().for_each(|path| disk.drop_file(path).unwrap());
    disk.drop_file(format!("{DIR}/duralog/index")).unwrap();
    let mut times = disk.bytes(format!("{DIR}/checkpoint")).unwrap();
    times[16..24].copy_from_slice(&first[8..16]);
    disk.put_file(format!("{DIR}/checkpoint"), &times).unwrap();
    disk.put_file(format!("{DIR}/abort"), b"4711").unwrap();
    assert_found(&disk, &offsets, |n| format!("key-{n}"));
}

#[test]
fn what_a_broker_left_out_of_its_new_file_is_found() {
    let disk = disk();
    let offsets = write(&disk, 5, |message, n| message.key(format!("key-{n}")));
    let files = index_files(&disk);
    assert_eq!(files.len(), 2);
    // After a crash a broker drops the newest file, and indexes the end of the log alone.
    let second = disk.bytes(&files[1]).unwrap();
    disk.drop_file(&files[1]).unwrap();
    let mut made = vec![0; second.len()];
    let stored = (NOW + 4000).to_be_bytes();
    let offset = offsets[4].to_be_bytes();
    for (at, bytes) in [(0, stored), (8, stored), (16, offset), (24, offset)] {
        made[at..at + 8].copy_from_slice(&bytes);
    }
    made[32..44].copy_from_slice(&[0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 1]);
    made[ITEM_1..ITEM_1 + 12].copy_from_slice(&second[ITEM_1 + 20..ITEM_1 + 32]);
    disk.put_file(format!("{DIR}/index/20991231235959999"), &made).unwrap();
    assert_found(&disk, &offsets, |n| format!("key-{n}"));
}

#[test]
fn what_a_broker_dropped_under_an_open_store_is_found() {
    let disk = disk();
    let clock = Arc::new(ManualClock::new(NOW));
    let store = open(&disk, &clock);
    let put = |n| {
        let put = store.put(Message::new(TOPIC, "body").key(format!("key-{n}"))).expect("stored");
        clock.advance(Duration::from_secs(1));
        put.ok().expect("durable").physical_offset
    };
    let mut offsets: Vec<_> = (0..5).map(put).collect();
    assert_eq!(store.query(TOPIC, "key-4", 9, 0..=i64::MAX).expect("readable").len(), 1);
    for path in index_files(&disk) {
        disk.remove(&path).expect("it is there");
    }
    offsets.extend((5..10).map(put));
    store.close().expect("the store closes");
    assert_found(&disk, &offsets, |n| format!("key-{n}"));
}
