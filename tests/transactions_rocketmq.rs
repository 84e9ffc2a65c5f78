//! Transactions of RocketMQ's, taken over; and what is written here, field by field beside what it wrote.

#[allow(dead_code, reason = "a manifest is all that is needed")]
#[path = "support/fixtures.rs"]
mod fixtures;
#[path = "support/temp.rs"]
mod temp;

use duralog::clock::ManualClock;
use duralog::delivery::{HalfMessageView, TransactionState, TransactionalProducer};
use duralog::message::format::{HALF_DONE_TOPIC, HALF_TOPIC};
use duralog::message::{Properties, SysFlag, Transaction, names};
use duralog::{Environment, Message, Next, Store, StoreConfig, StoreWorker, StoredMessage};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use temp::TempDir;

const GROUP: &str = "tx-group";
const CASES: [&str; 3] = ["4.9.8/transaction", "4.9.8/mixed", "5.3.3/transaction"];

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &target),
            false => drop(fs::copy(entry.path(), target).unwrap()),
        }
    }
}

/// A copy of what RocketMQ left, opened by us later.
struct Broker {
    store: Store,
    clock: Arc<ManualClock>,
    messages: Vec<Value>,
    _dir: TempDir,
}

impl Broker {
    fn new(case: &str) -> Self {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/rocketmq");
        let manifest = fixtures::manifest(&fixtures.join(case));
        let dir = TempDir::in_memory();
        copy(&fixtures.join(case).join("store"), dir.path());
        let mut config = StoreConfig::new(dir.path());
        config.log.segment_size = manifest["sizes"]["mappedFileSizeCommitLog"].as_u64().unwrap();
        config.consume_queue_file_size =
            manifest["sizes"]["mappedFileSizeConsumeQueue"].as_u64().unwrap();
        (config.index_slots, config.index_items) = (500, 2000);
        let clock = Arc::new(ManualClock::new(1_800_000_000_000));
        let environment = Environment::default().clock(clock.clone()).stepped();
        let store = Store::open_in(config, environment).unwrap();
        let messages = manifest["messages"].as_array().unwrap().clone();
        Self { store, clock, messages, _dir: dir }
    }

    fn of_topic(&self, topic: &str) -> impl Iterator<Item = &Value> {
        self.messages.iter().filter(move |message| message["topic"] == topic)
    }

    /// The half messages that RocketMQ has not put an entry for.
    fn open(&self) -> Vec<&Value> {
        let done: BTreeSet<u64> = self
            .of_topic(HALF_DONE_TOPIC)
            .flat_map(|entry| {
                let body = String::from_utf8(bytes(&entry["bodyHex"])).unwrap();
                body.split(',').filter_map(|n| n.parse().ok()).collect::<Vec<_>>()
            })
            .collect();
        self.of_topic(HALF_TOPIC)
            .filter(|half| !done.contains(&half["queueOffset"].as_u64().unwrap()))
            .collect()
    }

    fn producer(&self, answer: TransactionState) -> (TransactionalProducer, Arc<Mutex<Vec<u64>>>) {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let note = asked.clone();
        let check = move |half: &HalfMessageView| {
            note.lock().unwrap().push(half.view().queue_offset());
            answer
        };
        (self.store.transactional_producer(GROUP, check).open().unwrap(), asked)
    }

    fn work(&self) {
        use StoreWorker::{Delivery, Dispatch, Flush, Upkeep};
        for _ in 0..3 {
            for worker in [Upkeep, Flush, Dispatch, Delivery] {
                while self.store.step(worker) == Next::Now {}
            }
            self.clock.advance(Duration::from_secs(1));
        }
    }

    fn last(&self, topic: &str, queue_id: i32) -> StoredMessage {
        let end = self.store.max_offset(topic, queue_id).unwrap();
        self.store.get(topic, queue_id, end - 1, 1).unwrap().messages.pop().unwrap()
    }
}

fn bytes(hex: &Value) -> Vec<u8> {
    let hex = hex.as_str().unwrap();
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

fn map<'a>(properties: impl Iterator<Item = (&'a str, &'a str)>) -> BTreeMap<String, String> {
    properties.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

fn properties(message: &Value) -> BTreeMap<String, String> {
    let properties = message["properties"].as_object().unwrap();
    map(properties.iter().map(|(name, value)| (name.as_str(), value.as_str().unwrap())))
}

/// The fields that a record here shares with one of RocketMQ's, in the manifest's words.
fn described(stored: &StoredMessage) -> BTreeMap<&'static str, Value> {
    BTreeMap::from([
        ("topic", stored.topic.clone().into()),
        ("queueId", stored.queue_id.into()),
        ("flag", stored.flag.into()),
        ("sysFlag", stored.sys_flag.0.into()),
        ("bornTimestamp", stored.born_timestamp.into()),
        ("bornHost", host(&stored.born_host.to_string())),
        ("storeHost", host(&stored.store_host.to_string())),
        ("reconsumeTimes", stored.reconsume_times.into()),
        ("preparedTransactionOffset", stored.prepared_transaction_offset.into()),
        ("bodyCRC", stored.body_crc.into()),
        ("bodyLength", stored.body.len().into()),
        ("tagsCode", stored.tags_code().into()),
    ])
}

fn host(text: &str) -> Value {
    text.into()
}

/// The message whose half message RocketMQ wrote, as an application would have made it.
fn message_of(half: &Value) -> Message {
    let mut ours = Properties::from_bytes(bytes(&half["propertiesHex"]));
    for name in [
        names::REAL_TOPIC,
        names::REAL_QUEUE_ID,
        names::TRANSACTION_PREPARED,
        names::PRODUCER_GROUP,
        names::TRANSACTION_ID,
    ] {
        ours.remove(name);
    }
    let theirs = properties(half);
    let parse = |host: &Value| {
        duralog::message::Host::from(
            host.as_str().unwrap().parse::<std::net::SocketAddr>().unwrap(),
        )
    };
    Message::new(theirs[names::REAL_TOPIC].clone(), bytes(&half["bodyHex"]))
        .queue(theirs[names::REAL_QUEUE_ID].parse().unwrap())
        .properties(ours)
        .flag(half["flag"].as_i64().unwrap() as i32)
        .sys_flag(SysFlag(half["sysFlag"].as_i64().unwrap() as i32).with(SysFlag::PREPARED))
        .born_at(half["bornTimestamp"].as_i64().unwrap())
        .born_host(parse(&half["bornHost"]))
        .store_host(parse(&half["storeHost"]))
        .reconsume_times(half["reconsumeTimes"].as_i64().unwrap() as i32)
}

#[test]
fn what_a_broker_left_open_is_asked_about_and_nothing_else() {
    for case in CASES {
        let broker = Broker::new(case);
        let open: Vec<u64> =
            broker.open().iter().map(|half| half["queueOffset"].as_u64().unwrap()).collect();
        assert!(!open.is_empty());
        let (_producer, asked) = broker.producer(TransactionState::Rollback);
        assert_eq!(broker.store.transactions().unwrap().stats().open, open.len(), "{case}");
        broker.work();
        assert_eq!(*asked.lock().unwrap(), open, "{case}");
        let stats = broker.store.transactions().unwrap().stats();
        assert_eq!((stats.open, stats.unreadable), (0, 0), "{case}");
        let end = broker.store.max_offset(HALF_TOPIC, 0);
        assert_eq!(
            broker.store.committed_offset("CID_RMQ_SYS_TRANS", HALF_TOPIC, 0),
            end,
            "{case}"
        );
    }
}

#[test]
fn what_a_broker_left_open_is_committed_as_a_broker_does_it() {
    for case in CASES {
        let broker = Broker::new(case);
        let (_producer, _) = broker.producer(TransactionState::Commit);
        let before: BTreeMap<(String, i32), u64> = broker
            .store
            .topics()
            .into_iter()
            .flat_map(|(topic, queues)| queues.into_iter().map(move |id| (topic.clone(), id)))
            .map(|(topic, id)| ((topic.clone(), id), broker.store.max_offset(&topic, id).unwrap()))
            .collect();
        broker.work();
        for half in broker.open() {
            let theirs = properties(half);
            let (topic, queue_id) =
                (&theirs[names::REAL_TOPIC], theirs[names::REAL_QUEUE_ID].parse().unwrap());
            let from = before.get(&(topic.clone(), queue_id)).copied().unwrap_or(0);
            let new = broker.store.get(topic, queue_id, from, 100).unwrap().messages;
            let at = half["physicalOffset"].as_i64().unwrap();
            let [ours] = &new
                .iter()
                .filter(|message| message.prepared_transaction_offset == at)
                .collect::<Vec<_>>()[..]
            else {
                panic!("{case}: not once");
            };
            let is_commit = ours.sys_flag.transaction() == Transaction::Commit;
            assert!(is_commit, "{case}");
            for (field, value) in described(ours) {
                let expected = match field {
                    "topic" => topic.clone().into(),
                    "queueId" => queue_id.into(),
                    "sysFlag" => (half["sysFlag"].as_i64().unwrap() | 8).into(),
                    "preparedTransactionOffset" => at.into(),
                    _ => half[field].clone(),
                };
                assert_eq!(value, expected, "{case}: {field}");
            }
            // As a broker leaves them: the property string is made before it takes some away.
            let mut expected = bytes(&half["propertiesHex"]);
            // Our record has a checksum behind them.
            expected.extend((expected.last() != Some(&2)).then_some(2));
            assert_eq!(ours.properties.as_bytes(), expected, "{case}");
        }
    }
}

#[test]
fn half_messages_entries_and_commits_are_like_those_of_rocketmq() {
    for case in CASES {
        let broker = Broker::new(case);
        let (producer, _) = broker.producer(TransactionState::Unknown);
        let entry = broker.of_topic(HALF_DONE_TOPIC).next().unwrap().clone();
        let halves: Vec<Value> = broker.of_topic(HALF_TOPIC).cloned().collect();
        for theirs in &halves {
            let half = producer.begin(message_of(theirs)).unwrap();
            let ours = broker.last(HALF_TOPIC, 0);
            for (field, value) in described(&ours) {
                assert_eq!(value, theirs[field], "{case}: {field}");
            }
            let mut written = map(ours.properties.iter());
            // RocketMQ 5 writes this one, where the client has given the message a key.
            assert_eq!(written.remove(names::TRANSACTION_ID).as_deref(), ours.unique_key());
            let mut expected = properties(theirs);
            expected.remove(names::TRANSACTION_ID);
            if !expected.contains_key(names::UNIQ_KEY) {
                assert!(written.remove(names::UNIQ_KEY).is_some());
            }
            assert_eq!(written, expected, "{case}");

            let done = half.commit().unwrap();
            broker.store.flush().unwrap();
            let (topic, queue_id) = (&expected[names::REAL_TOPIC], done.queue_id);
            let committed = broker.last(topic, queue_id);
            assert_eq!(committed.queue_offset as u64, done.queue_offset);
            // What RocketMQ committed itself of that half message.
            let at = &theirs["physicalOffset"];
            let is_committed = |message: &&Value| {
                message["sysFlag"].as_i64().unwrap() & 12 == 8
                    && message["preparedTransactionOffset"] == *at
            };
            if let Some(theirs) = broker.messages.iter().find(is_committed) {
                let described = described(&committed);
                for field in ["topic", "queueId", "bodyCRC", "bodyLength", "tagsCode"] {
                    assert_eq!(described[field], theirs[field], "{case}: {field}");
                }
                assert_eq!(committed.sys_flag.transaction(), Transaction::Commit);
                assert_eq!(committed.prepared_transaction_offset, ours.physical_offset);
                for (name, value) in properties(theirs) {
                    assert_eq!(committed.get(&name), Some(value.as_str()), "{case}: {name}");
                }
            }

            let ours_done = broker.last(HALF_DONE_TOPIC, 0);
            let described = described(&ours_done);
            for field in ["topic", "queueId", "sysFlag", "preparedTransactionOffset", "tagsCode"] {
                assert_eq!(described[field], entry[field], "{case}: {field}");
            }
            assert_eq!(map(ours_done.properties.iter()), properties(&entry), "{case}");
            assert_eq!(ours_done.body, format!("{},", ours.queue_offset).into_bytes());
        }
    }
}
