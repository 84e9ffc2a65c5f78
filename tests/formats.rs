//! Stores written by every release so far must open, for ever. `0.1.0-alpha` is from before there was an
//! index.

use duralog::{Message, RecoveryMode, Store, StoreConfig};
use std::fs;
use std::path::{Path, PathBuf};

const RELEASE: &str = "0.1.0";

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/duralog")
}

fn message(n: u64) -> Message {
    let topic = ["orders", "payments", "%RETRY%billing"][n as usize % 3];
    let body: Vec<u8> = (0..n * 7 % 500).map(|i| (i * n) as u8).collect();
    let message =
        Message::new(topic, body).queue((n % 2) as i32).key(format!("key-{n}")).flag(n as i32);
    let message = if n.is_multiple_of(5) { message.tag("fifth") } else { message };
    message.born_at(1_700_000_000_000 + n as i64).property("colour", "grün")
}

fn config(dir: &Path) -> StoreConfig {
    let mut config = StoreConfig::new(dir).segment_size(16 << 10).consume_queue_file_size(400);
    // Two files for as many keys.
    (config.index_slots, config.index_items) = (50, 120);
    config
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// All messages of `store`, in the order in which they were put.
fn check(store: &Store, count: u64) {
    let mut found = 0;
    for (topic, queues) in store.topics() {
        for queue in queues {
            for stored in store.get(&topic, queue, 0, usize::MAX).unwrap().messages {
                let expected = message(stored.flag as u64);
                assert_eq!((expected.topic(), expected.queue_id()), (topic.as_str(), queue));
                assert_eq!(stored.body, expected.body());
                assert_eq!(stored.properties.as_bytes(), expected.properties_ref().as_bytes());
                assert_eq!(stored.born_timestamp, expected.born_timestamp);
                found += 1;
            }
        }
    }
    assert_eq!(found, count);
    for n in 0..count {
        let found = store.query(message(n).topic(), &format!("key-{n}"), 9, 0..=i64::MAX).unwrap();
        assert!(matches!(&found[..], [view] if view.body() == message(n).body()), "key-{n}");
    }
    assert!(store.verify().unwrap().is_ok());
}

#[test]
fn stores_of_every_release_open() {
    let mut cases = 0;
    for release in fs::read_dir(fixtures()).unwrap() {
        for case in fs::read_dir(release.unwrap().path()).unwrap() {
            let case = case.unwrap().path();
            let name = case.file_name().unwrap().to_string_lossy().into_owned();
            let dir = std::env::temp_dir()
                .join(format!("duralog-formats-{}-{cases}", std::process::id()));
            copy(&case, &dir);
            let store = Store::open(config(&dir).recovery_mode(RecoveryMode::Strict)).unwrap();
            assert_eq!(store.recovery().unclean, name == "killed", "{}", case.display());
            assert!(!store.recovery().foreign && store.recovery().queues_rebuilt.is_none());
            check(&store, 200);
            let next = store.max_offset("orders", 0).unwrap();
            let put = store.put(message(0)).unwrap().ok().unwrap();
            assert_eq!(put.queue_offset, next);
            store.close().unwrap();
            fs::remove_dir_all(&dir).unwrap();
            cases += 1;
        }
    }
    assert!(cases >= 4, "no fixtures found");
}

#[test]
#[ignore = "writes the fixtures of a new release; run once, before it"]
fn write_fixtures() {
    let release = fixtures().join(RELEASE);
    for case in ["closed", "killed"] {
        let dir =
            std::env::temp_dir().join(format!("duralog-fixture-{case}-{}", std::process::id()));
        let store = Store::open(config(&dir)).unwrap();
        for n in 0..200 {
            store.put(message(n)).unwrap().ok().unwrap();
        }
        if case == "closed" {
            store.close().unwrap();
        }
        // Copied while it is open, a store is what a kill leaves.
        let target = release.join(case);
        let _ = fs::remove_dir_all(&target);
        copy(&dir, &target);
        drop(store);
        fs::remove_dir_all(&dir).unwrap();
    }
}
