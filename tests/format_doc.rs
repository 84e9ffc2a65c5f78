//! docs/format.md shows what the files hold, byte for byte. Everything it shows is made here, by the
//! store itself, and compared.
//!
//! In the document, a block fenced as `hex NAME` holds bytes in hex, `00*40` for forty of them, `??` for
//! any one; what follows `#` explains. A block fenced as `json NAME` is text.

#[path = "support/sim.rs"]
mod sim;
#[path = "support/temp.rs"]
mod temp;

use duralog::clock::ManualClock;
use duralog::disk::SimDisk;
use duralog::message::{Draft, Host, RecordLayout, Stamp};
use duralog::replication::{
    Admission, QueueStart, Refusal, ReplicaBehaviour, ReplicatedLog, Replicator, Role,
    ScriptedReplica, StartPoint,
};
use duralog::tables::{
    ConsumerOffsets, DelayOffsets, SubscriptionGroup, SubscriptionGroups, Tables, TopicConfig,
    TopicTable,
};
use duralog::{Environment, Message, RecoveryMode, Store, StoreConfig};
use sim::{DIR, disk, segment, unsynced};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use temp::TempDir;

const BORN: i64 = 1_700_000_000_000;
const STORED: i64 = 1_700_000_000_123;
const SEGMENT_SIZE: u64 = 4096;

/// A byte that is shown, or any.
type Pattern = Vec<Option<u8>>;

struct Document {
    hex: BTreeMap<String, Pattern>,
    text: BTreeMap<String, String>,
}

fn document() -> Document {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/format.md");
    let text = std::fs::read_to_string(path).expect("the document");
    let mut document = Document { hex: BTreeMap::new(), text: BTreeMap::new() };
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let Some(fence) = line.strip_prefix("```").filter(|fence| !fence.is_empty()) else {
            continue;
        };
        let block: Vec<_> = lines.by_ref().take_while(|line| *line != "```").collect();
        let twice = match fence.split_once(' ') {
            Some(("hex", name)) => document.hex.insert(name.to_owned(), pattern(&block)).is_some(),
            Some(("json", name)) => {
                document.text.insert(name.to_owned(), block.join("\n")).is_some()
            }
            _ => false,
        };
        assert!(!twice, "{fence} is there twice");
    }
    document
}

fn pattern(lines: &[&str]) -> Pattern {
    let shown = lines.iter().map(|line| line.split('#').next().unwrap_or_default());
    let mut pattern = Pattern::new();
    for word in shown.flat_map(str::split_whitespace) {
        let (byte, times) = word.split_once('*').unwrap_or((word, "1"));
        let times = times.parse().unwrap_or_else(|_| panic!("{word}"));
        let byte = (byte != "??").then(|| u8::from_str_radix(byte, 16).expect(word));
        pattern.extend(std::iter::repeat_n(byte, times));
    }
    pattern
}

/// How the document would show the bytes.
fn shown(bytes: &[u8]) -> String {
    let mut words = Vec::new();
    for run in bytes.chunk_by(|a, b| a == b) {
        if run.len() > 4 {
            words.push(format!("{:02x}*{}", run[0], run.len()));
        } else {
            words.extend(run.iter().map(|byte| format!("{byte:02x}")));
        }
    }
    words.chunks(16).map(|line| line.join(" ") + "\n").collect()
}

fn layout(record_crc: bool) -> RecordLayout {
    RecordLayout {
        store_host: Host::new([127, 0, 0, 1], 10911),
        born_host: Host::new([127, 0, 0, 1], 50000),
        record_crc,
        long_topics: true,
        max_message_size: 4096,
        max_record_size: 4088,
    }
}

fn config() -> StoreConfig {
    let mut config = StoreConfig::new(DIR).segment_size(SEGMENT_SIZE).consume_queue_file_size(100);
    (config.index_slots, config.index_items) = (2, 4);
    config
}

fn without_record_crc() -> StoreConfig {
    let mut config = config();
    config.log.record_crc = false;
    config
}

fn environment(disk: &SimDisk) -> Environment {
    Environment::on(disk.shared()).clock(Arc::new(ManualClock::new(STORED)))
}

fn open(disk: &SimDisk, config: StoreConfig) -> Store {
    Store::open_in(config, environment(disk)).expect("the store opens")
}

/// The message of the document.
fn hello(topic: &str) -> Message {
    let message = Message::new(topic, "hello").tag("A").born_at(BORN);
    message.born_host(Host::new([127, 0, 0, 1], 50000))
}

/// A store in which these messages were put, closed.
fn stored(config: StoreConfig, messages: &[Message]) -> SimDisk {
    let disk = disk();
    let store = open(&disk, config);
    for message in messages {
        store.put(message).expect("stored").ok().expect("durable");
    }
    store.close().expect("the store closes");
    disk
}

fn bytes(disk: &SimDisk, path: impl AsRef<str>) -> Vec<u8> {
    let path = path.as_ref();
    let path = if path.starts_with('/') { path.to_owned() } else { format!("{DIR}/{path}") };
    disk.bytes(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The record at the front of the log.
fn first_record(disk: &SimDisk) -> Vec<u8> {
    let log = bytes(disk, segment(0));
    let size = u32::from_be_bytes(*log.first_chunk().expect("a record")) as usize;
    log[..size].to_vec()
}

#[test]
fn the_vectors_are_what_the_store_writes() {
    let mut actual = BTreeMap::new();
    records(&mut actual);
    blank(&mut actual);
    filler(&mut actual);
    queues(&mut actual);
    index(&mut actual);
    state(&mut actual);
    lock(&mut actual);
    let shown_in = document().hex;
    let names: Vec<_> = shown_in.keys().map(String::as_str).collect();
    let checked: Vec<_> = actual.keys().copied().collect();
    assert_eq!(names, checked, "every block is checked, and nothing else");
    for (name, bytes) in &actual {
        let pattern = &shown_in[*name];
        let same = pattern.iter().zip(bytes).all(|(shown, byte)| shown.is_none_or(|b| b == *byte));
        assert!(same && pattern.len() == bytes.len(), "{name} is now\n{}", shown(bytes));
    }
}

type Actual = BTreeMap<&'static str, Vec<u8>>;

fn records(actual: &mut Actual) {
    let plain = stored(without_record_crc(), &[hello("T")]);
    actual.insert("record-v1", first_record(&plain));
    actual.insert("record-crc", first_record(&stored(config(), &[hello("T")])));
    let topic = format!("%RETRY%{}", "g".repeat(121));
    let long = stored(without_record_crc(), &[hello(&topic)]);
    actual.insert("record-v2", first_record(&long));
    let v6 = [0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    let host = |port| Host::new(v6, port);
    let message = hello("T").born_host(host(50000)).store_host(host(10911));
    actual.insert("record-ipv6", first_record(&stored(without_record_crc(), &[message])));
}

/// The end of a segment with 1000 bytes left and no room for the next message.
fn blank(actual: &mut Actual) {
    let empty = Draft::new(&Message::new("T", ""), &layout(true)).expect("a message").size();
    let first = Message::new("T", vec![1; 3096 - empty]);
    let disk = stored(config(), &[first, Message::new("T", vec![2; 1000])]);
    let log = bytes(&disk, segment(0));
    assert!(log[3104..].iter().all(|byte| *byte == 0));
    actual.insert("blank", log[3096..3104].to_vec());
    let next = bytes(&disk, segment(SEGMENT_SIZE));
    assert_eq!(next[28..36], SEGMENT_SIZE.to_be_bytes());
}

/// What `Salvage` puts in the place of a damaged record, and where the damaged one is kept.
fn filler(actual: &mut Actual) {
    let disk = disk();
    let store = open(&disk, unsynced());
    for topic in ["T", "U", "V"] {
        store.put(hello(topic)).expect("stored").ok().expect("stored");
    }
    let disk = disk.kill();
    drop(store);
    let size = first_record(&disk).len();
    let at = size..2 * size;
    disk.flip_bit(segment(0), at.start as u64 + 90, 0).expect("it is there");
    let damaged = bytes(&disk, segment(0))[at.clone()].to_vec();
    let store = open(&disk, unsynced().recovery_mode(RecoveryMode::Salvage));
    assert_eq!(bytes(&disk, format!("duralog/cut-{}", at.start)), damaged);
    let topics: Vec<_> = store.topics().into_iter().map(|(topic, _)| topic).collect();
    assert_eq!(topics, ["T", "V"]);
    actual.insert("filler", bytes(&disk, segment(0))[at].to_vec());
}

fn queues(actual: &mut Actual) {
    let disk = stored(without_record_crc(), &[hello("T")]);
    let file = bytes(&disk, "consumequeue/T/0/00000000000000000000");
    assert!(file.len() == 100 && file[20..].iter().all(|byte| *byte == 0));
    actual.insert("queue-entry", file[..20].to_vec());
    actual.insert("duralog-queues", bytes(&disk, "duralog/queues"));

    // A log that begins in the middle of a queue.
    let mut log = Vec::new();
    let stamp = Stamp { physical_offset: SEGMENT_SIZE, queue_offset: 2, store_timestamp: STORED };
    Draft::new(&hello("T"), &layout(true)).expect("a message").encode(&stamp, &mut log);
    log.resize(SEGMENT_SIZE as usize, 0);
    let disk = sim::disk();
    disk.put_file(segment(SEGMENT_SIZE), &log).expect("there is room");
    open(&disk, config()).close().expect("the store closes");
    let file = bytes(&disk, "consumequeue/T/0/00000000000000000000");
    assert_eq!(file[..20], file[20..40]);
    assert_eq!(file[40..52], [0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 0x7c]);
    actual.insert("queue-blank", file[..20].to_vec());
}

fn index(actual: &mut Actual) {
    let disk = stored(without_record_crc(), &[hello("T").key("k1").unique_key("Aa")]);
    let path = disk.files().into_iter().find(|path| path.starts_with(format!("{DIR}/index")));
    let path = path.expect("an index file");
    // The local time of the clock, which is in Greenwich.
    assert_eq!(path.file_name().expect("a name"), "20231114221320123");
    actual.insert("index-file", disk.bytes(&path).expect("it is there"));
    actual.insert("duralog-index", bytes(&disk, "duralog/index"));
}

fn state(actual: &mut Actual) {
    let disk = disk();
    let store = open(&disk, config());
    store.put(hello("T")).expect("stored").ok().expect("durable");
    // The process and the token of this opening, which the checkpoint knows, too.
    let abort = String::from_utf8(bytes(&disk, "abort")).expect("text");
    let (pid, token) = abort.split_once(' ').expect("two words");
    assert_eq!(pid, std::process::id().to_string());
    assert_eq!(token.len(), 20);
    disk.put_file(format!("{DIR}/duralog/any.tmp"), b"half").expect("there is room");
    assert!(store.wait_for("T", 0, 0, Duration::from_secs(60)).expect("the store is open"));
    store.commit_offset("G", "T", 0, 1).expect("there is room");
    store.close().expect("the store closes");
    assert!(disk.bytes(format!("{DIR}/abort")).is_err());

    actual.insert("checkpoint", bytes(&disk, "checkpoint"));
    actual.insert("duralog-format", bytes(&disk, "duralog/format"));
    let slots = bytes(&disk, "duralog/checkpoint");
    assert_eq!(slots.len(), 1024);
    let sequence =
        |slot: &&[u8]| u64::from_be_bytes(*slot[8..].first_chunk().expect("long enough"));
    let newest = slots.chunks(512).max_by_key(sequence).expect("two slots");
    assert_eq!(newest[56..64], token.parse::<u64>().expect("a number").to_be_bytes());
    actual.insert("duralog-checkpoint", newest.to_vec());
    let offsets = bytes(&disk, "duralog/offsets");
    assert_eq!(offsets.len(), 64 << 10);
    actual.insert("duralog-offsets", offsets[..512].to_vec());
    actual.insert("offsets-row", offsets[512..512 + 22].to_vec());

    let replicated = sim::disk();
    let replicator = ScriptedReplica::new(ReplicaBehaviour::Absent);
    let opened = Store::open_replicated(config(), environment(&replicated), replicator);
    opened.expect("the store opens").close().expect("the store closes");
    actual.insert("duralog-epochs", bytes(&replicated, "duralog/epochs"));

    let begun_anew = sim::disk();
    for _ in 0..2 {
        let replicator = Arc::new(BeginsAnew);
        let opened = Store::open_replicated(config(), environment(&begun_anew), replicator);
        drop(opened.expect("the store opens"));
    }
    actual.insert("duralog-queue-starts", bytes(&begun_anew, "duralog/queue-starts"));

    for (name, bytes) in actual.iter().filter(|(name, _)| name.starts_with("duralog-")) {
        if *name != "duralog-format" {
            let (before, crc) = bytes.split_last_chunk().expect("a checksum");
            assert_eq!(crc32fast::hash(before), u32::from_be_bytes(*crc), "{name}");
        }
    }
    open(&disk, config()).close().expect("the store closes");
    assert!(disk.bytes(format!("{DIR}/duralog/any.tmp")).is_err());
}

/// A replica whose primary keeps nothing of the first segment.
#[derive(Debug)]
struct BeginsAnew;

impl Replicator for BeginsAnew {
    fn role(&self) -> Role {
        Role::Replica
    }

    fn start(&self, log: Arc<dyn ReplicatedLog>, at: StartPoint) -> duralog::Result<u64> {
        if at.end == 0 {
            let start = QueueStart { topic: "T".to_owned(), queue_id: 0, offset: 7 };
            log.prepare_restart(SEGMENT_SIZE, &[start])?;
            log.restart(SEGMENT_SIZE)?;
        }
        Ok(at.end)
    }

    fn admit(&self) -> Result<Admission, Refusal> {
        Err(Refusal::NotPrimary)
    }

    fn on_written(&self, _: u64) {}

    fn on_durable(&self, _: u64) {}

    fn stop(&self) {}
}

fn lock(actual: &mut Actual) {
    let temp = TempDir::new();
    let store = Store::open(StoreConfig::new(temp.path()).segment_size(SEGMENT_SIZE));
    store.expect("the store opens").close().expect("the store closes");
    let lock = std::fs::read(temp.path().join("lock")).expect("it is there");
    assert_eq!(lock[4..], format!(" {:010}\n", std::process::id()).into_bytes());
    actual.insert("lock", lock);
}

#[test]
fn the_tables_are_what_is_saved() {
    let disk = disk();
    let tables = Tables::new_in(DIR, environment(&disk));
    let mut topics = TopicTable::default();
    topics.set("T", TopicConfig::new(4));
    tables.save(&mut topics).expect("saved");
    let mut groups = SubscriptionGroups::default();
    groups.set("G", SubscriptionGroup::default());
    tables.save(&mut groups).expect("saved");
    let mut offsets = ConsumerOffsets::default();
    offsets.set("T", "G", 0, 12).expect("a name");
    tables.save(&mut offsets).expect("saved");
    let mut delays = DelayOffsets::default();
    delays.set(1, 100);
    tables.save(&mut delays).expect("saved");
    let shown_in = document().text;
    let names =
        ["consumerOffset.json", "delayOffset.json", "subscriptionGroup.json", "topics.json"];
    assert!(shown_in.keys().eq(names.iter()), "{:?}", shown_in.keys());
    for name in names {
        let saved = String::from_utf8(bytes(&disk, format!("config/{name}"))).expect("UTF-8");
        assert_eq!(shown_in[name].trim_end(), saved.trim_end(), "{name} is now\n{saved}");
    }
}
