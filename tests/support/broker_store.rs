//! A store that RocketMQ wrote, as a copy to work on, and what RocketMQ itself finds in it.

use crate::dump;
use crate::temp::TempDir;
use duralog::{Error, MessageView, Store, StoreConfig, TagFilter};
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex};

/// Topic, queue and offset.
pub type Place = (String, i64, i64);
pub type Messages = BTreeMap<Place, Value>;

/// What RocketMQ answers when it is asked for a key. Other keys of the same hash are among it.
pub struct Query {
    pub topic: String,
    pub key: String,
    pub max: usize,
    pub offsets: Vec<u64>,
}

/// A case, with what RocketMQ finds when it opens the store.
pub struct Case {
    /// Version and name, as in `4.9.8/basic`.
    pub name: String,
    pub dir: PathBuf,
    /// Closed in order: the manifest is what was put, not what a recovery found.
    pub clean: bool,
    /// In the order in which they lie in the log, also those that are in no queue.
    pub messages: Vec<Value>,
    pub queries: Vec<Query>,
    /// Where the log ends.
    pub end: u64,
    found: Value,
}

impl Case {
    pub fn new(name: &str) -> Self {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/rocketmq");
        let dir = fixtures.join(name);
        let manifest = json(&dir.join("manifest.json"));
        let clean = manifest["messages"].is_array();
        let found = if clean { manifest } else { json(&dir.join("recovered.json")) };
        let messages = match &found["messages"] {
            Value::Array(messages) => messages.clone(),
            // "the first N of CASE/FILE"
            reference => {
                let words: Vec<&str> = reference.as_str().unwrap().split(' ').collect();
                let [.., count, "of", file] = *words else { panic!("{reference}") };
                let whole = json(&dir.with_file_name(file));
                whole["messages"].as_array().unwrap()[..count.parse().unwrap()].to_vec()
            }
        };
        let queries = found["indexQueries"].as_array().unwrap().iter().map(|query| {
            let text = |name: &str| query[name].as_str().unwrap().to_owned();
            let offsets = query["physicalOffsets"].as_array().unwrap();
            Query {
                topic: text("topic"),
                key: text("key"),
                max: query["maxNum"].as_u64().unwrap() as usize,
                offsets: offsets.iter().map(|offset| offset.as_u64().unwrap()).collect(),
            }
        });
        Self {
            name: name.to_owned(),
            clean,
            messages,
            queries: queries.collect(),
            end: found["commitLog"]["maxOffset"].as_u64().unwrap(),
            found,
            dir,
        }
    }

    pub fn size(&self, property: &str) -> u64 {
        self.found["sizes"][property].as_u64().unwrap()
    }

    /// The SHA-256 of each file after RocketMQ has recovered the store and closed it.
    pub fn digests_after_recovery(&self) -> BTreeMap<String, String> {
        let recovered = json(&self.dir.join("recovered.json"));
        let text = |file: &Value, name: &str| file[name].as_str().unwrap().to_owned();
        let files = recovered["files"].as_array().unwrap().iter();
        files.map(|file| (text(file, "path"), text(file, "sha256"))).collect()
    }

    /// A copy to work on.
    pub fn copy(&self) -> TempDir {
        let copy = TempDir::in_memory();
        copy_all(&self.dir.join("store"), copy.path());
        copy
    }

    /// With the sizes of the case that are not to be seen in its files.
    pub fn config(&self, dir: &Path) -> StoreConfig {
        let mut config =
            StoreConfig::new(dir).consume_queue_file_size(self.size("mappedFileSizeConsumeQueue"));
        config.index_slots = self.size("maxHashSlotNum") as u32;
        config.index_items = self.size("maxIndexNum") as u32;
        config
    }
}

pub fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn copy_all(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_all(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Every file below `dir` with its bytes, by path relative to it.
pub fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    fn collect(dir: &Path, root: &Path, into: &mut BTreeMap<PathBuf, Vec<u8>>) {
        let Ok(entries) = fs::read_dir(dir) else { return };
        for path in entries.map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                collect(&path, root, into);
            } else {
                let name = path.strip_prefix(root).unwrap().to_owned();
                into.insert(name, fs::read(path).unwrap());
            }
        }
    }
    let mut files = BTreeMap::new();
    collect(dir, dir, &mut files);
    files
}

/// Messages by their place in a queue; those that are in none are left out.
pub fn queued<'a>(messages: impl IntoIterator<Item = &'a Value>) -> Messages {
    let mut placed = Messages::new();
    for message in messages.into_iter().filter(|message| !message["tagsCode"].is_null()) {
        let number = |name: &str| message[name].as_i64().unwrap();
        let topic = message["topic"].as_str().unwrap().to_owned();
        let place = (topic, number("queueId"), number("queueOffset"));
        assert_eq!(placed.insert(place, message.clone()), None, "two messages in one place");
    }
    placed
}

/// What the manifest should say of a message. The same records are met over and over.
pub fn described(view: &MessageView) -> Value {
    type Known = HashMap<(u64, Vec<u8>), Value>;
    static KNOWN: LazyLock<Mutex<Known>> = LazyLock::new(Mutex::default);
    let key = (view.physical_offset(), view.bytes().to_vec());
    if let Some(known) = KNOWN.lock().unwrap().get(&key) {
        return known.clone();
    }
    let described: Value = serde_json::from_str(&dump::json(view)).unwrap();
    KNOWN.lock().unwrap().insert(key, described.clone());
    described
}

/// Reads every queue from its first offset to its last.
pub fn read_queues(store: &Store) -> Result<Messages, Error> {
    let mut messages = Vec::new();
    for (topic, queue_ids) in store.topics() {
        for queue_id in queue_ids {
            let end = store.max_offset(&topic, queue_id).unwrap();
            let mut next = store.min_offset(&topic, queue_id).unwrap();
            while next < end {
                let fetched = store.get_view(&topic, queue_id, next, 256, &TagFilter::any())?;
                assert!(fetched.next_offset > next, "no way on at {next} of {topic}/{queue_id}");
                messages.extend(fetched.messages.iter().map(described));
                next = fetched.next_offset;
            }
        }
    }
    Ok(queued(&messages))
}

/// Both have the same messages in the same places, equal in every field.
pub fn assert_same(found: &Messages, expected: &Messages, when: &str) {
    for (place, message) in expected {
        assert_eq!(found.get(place), Some(message), "{place:?}, {when}");
    }
    for (place, message) in found {
        assert!(expected.contains_key(place), "{place:?}, {when}: {message}");
    }
}
