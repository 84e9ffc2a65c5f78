//! What a store holds, as RocketMQ reads it and as this crate does.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use crate::dump;
use crate::java::{INDEX_ITEMS, INDEX_SLOTS, Java, QUEUE_FILE_SIZE, SEGMENT_SIZE};
use crate::temp::TempDir;
use duralog::{FlushMode, RecoveryReport, Store, StoreConfig, TagFilter};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

impl Java {
    /// Every message; each is found by each of its keys.
    pub fn list(self, dir: &Path) -> Messages {
        let (messages, keys) = self.list_with_keys(dir, &[]);
        assert_eq!(assert_found(&keys, &messages, |_| true), 0);
        messages
    }

    /// Every message, and where a query by key finds it.
    pub fn list_with_keys(self, dir: &Path, options: &[&str]) -> (Messages, Keys) {
        let said = self.run("list", dir, &[&["--keys"], options].concat());
        let (keys, messages) = said.into_iter().partition(|line| line.get("offsets").is_some());
        let messages = by_place(messages);
        let keys = real_keys(keys, &messages);
        (messages, keys)
    }
}

/// Messages by topic, queue and offset.
pub type Messages = BTreeMap<(String, i64, i64), Value>;

pub fn by_place(messages: Vec<Value>) -> Messages {
    let mut placed = Messages::new();
    for message in messages {
        let topic = message["topic"].as_str().expect("a topic").to_owned();
        let number = |name: &str| message[name].as_i64().expect("a number");
        let place = (topic, number("queueId"), number("queueOffset"));
        let twice = placed.insert(place, message);
        assert_eq!(twice, None, "two messages in one place");
    }
    placed
}

/// Physical offsets, rising, of the messages of a topic that have a key.
pub type Keys = BTreeMap<(String, String), Vec<i64>>;

/// What there is to be found.
pub fn keys_of(messages: &Messages) -> Keys {
    let mut keys = Keys::new();
    for ((topic, ..), message) in messages {
        let words = message["keys"].as_str().into_iter().flat_map(|keys| keys.split(' '));
        for key in words.chain(message["properties"]["UNIQ_KEY"].as_str()) {
            let offset = message["physicalOffset"].as_i64().expect("a number");
            keys.entry((topic.clone(), key.to_owned())).or_default().push(offset);
        }
    }
    for offsets in keys.values_mut() {
        offsets.sort_unstable();
        offsets.dedup();
    }
    keys
}

/// What RocketMQ found, without the messages whose key has the same hash, and each message once: after
/// a crash RocketMQ may have a key twice.
pub fn real_keys(answers: Vec<Value>, messages: &Messages) -> Keys {
    let real = keys_of(messages);
    let mut found = Keys::new();
    for answer in answers {
        let word = |name: &str| answer[name].as_str().expect("a word").to_owned();
        let place = (word("topic"), word("key"));
        let real = real.get(&place).map_or(&[][..], Vec::as_slice);
        let offsets = answer["offsets"].as_array().expect("an array").iter();
        let offsets = offsets.map(|offset| offset.as_i64().expect("a number"));
        let mut offsets: Vec<_> = offsets.filter(|o| real.binary_search(o).is_ok()).collect();
        offsets.dedup();
        assert!(offsets.is_sorted(), "{answer}");
        found.insert(place, offsets);
    }
    found
}

/// Each message is found by each of its keys, if it must be; how many answers were missing that may.
pub fn assert_found(found: &Keys, messages: &Messages, must: impl Fn(i64) -> bool) -> usize {
    let real = keys_of(messages);
    assert!(found.keys().eq(real.keys()), "other keys were asked for");
    let mut missing = 0;
    for (place, offsets) in real {
        let found = &found[&place];
        for offset in offsets.iter().filter(|offset| found.binary_search(offset).is_err()) {
            assert!(!must(*offset), "{place:?} is not found at {offset}, but at {found:?}");
            missing += 1;
        }
    }
    missing
}

/// Both read the same, in every field.
pub fn assert_same(rust: &Messages, java: &Messages) {
    for (place, message) in java {
        assert_eq!(
            rust.get(place),
            Some(message),
            "{place:?}: Rust reads the left, Java the right"
        );
    }
    for (place, message) in rust {
        assert!(java.contains_key(place), "Java does not read {place:?}: {message}");
    }
}

pub fn config(dir: &Path, flush: FlushMode) -> StoreConfig {
    let mut config = StoreConfig::new(dir)
        .flush_mode(flush)
        .segment_size(SEGMENT_SIZE)
        .consume_queue_file_size(QUEUE_FILE_SIZE);
    (config.index_slots, config.index_items) = (INDEX_SLOTS, INDEX_ITEMS);
    config
}

pub fn open(dir: &Path) -> Store {
    Store::open(config(dir, FlushMode::sync())).expect("the store opens")
}

/// Opens the store, reads every message through its queue and by each of its keys, and closes it.
pub fn read(dir: &Path) -> (Messages, RecoveryReport) {
    let store = open(dir);
    let mut messages = Vec::new();
    for (topic, queue_ids) in store.topics() {
        for queue_id in queue_ids {
            let end = store.max_offset(&topic, queue_id).expect("a queue");
            let mut next = store.min_offset(&topic, queue_id).expect("a queue");
            while next < end {
                let fetched = store.get_view(&topic, queue_id, next, 256, &TagFilter::any());
                for message in fetched.expect("readable").messages {
                    assert_eq!(message.queue_offset(), next, "{topic}/{queue_id}");
                    let line = dump::json(&message);
                    messages.push(serde_json::from_str(&line).expect("JSON"));
                    next += 1;
                }
            }
        }
    }
    let verified = store.verify().expect("readable");
    assert!(verified.is_ok(), "{verified:?}");
    let messages = by_place(messages);
    assert_finds_all(&store, &messages);
    let report = store.recovery().clone();
    store.close().expect("the store closes");
    (messages, report)
}

/// Every key finds exactly the messages that have it, also of those stored in some times.
pub fn assert_finds_all(store: &Store, messages: &Messages) {
    let found = |topic: &str, key: &str, times| {
        let views = store.query(topic, key, usize::MAX, times).expect("readable");
        views.iter().map(|view| view.physical_offset() as i64).collect::<Vec<_>>()
    };
    let times = messages.values().map(|message| {
        let number = |name: &str| message[name].as_i64().expect("a number");
        (number("physicalOffset"), number("storeTimestamp"))
    });
    let times: BTreeMap<_, _> = times.collect();
    for ((topic, key), offsets) in keys_of(messages) {
        assert_eq!(found(&topic, &key, 0..=i64::MAX), offsets, "{topic} {key}");
        // Of one message, and of the older half of many.
        let middle = times[&offsets[offsets.len() / 2]];
        for range in [middle..=middle, 0..=middle] {
            let stored_then = |offset: &i64| range.contains(&times[offset]);
            let expected: Vec<_> = offsets.iter().copied().filter(stored_then).collect();
            assert_eq!(found(&topic, &key, range.clone()), expected, "{topic} {key} {range:?}");
        }
    }
}

/// A directory for a store, and room beside it.
pub fn place() -> (TempDir, PathBuf) {
    let temp = TempDir::new();
    let dir = temp.path().join("store");
    (temp, dir)
}

pub fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a directory");
    for entry in fs::read_dir(from).expect("a directory") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            match fs::copy(entry.path(), target) {
                // What a store that is open was about to give another name.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                copied => drop(copied.expect("copied")),
            }
        }
    }
}
