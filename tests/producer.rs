//! Producers: what they choose, what they try again, and what they say of it.

#[path = "support/future.rs"]
mod future;
#[path = "support/hooked.rs"]
mod hooked;
#[path = "support/passive.rs"]
mod passive;
#[path = "support/rng.rs"]
mod rng;

use duralog::clock::ManualClock;
use duralog::delivery::{Producer, SendTicket, TransactionState};
use duralog::disk::{Cut, Fault, SimCall, SimDisk, SyncFailure};
use duralog::message::{Compression, SysFlag, UniqueKey, names};
use duralog::replication::{Refusal, ReplicaBehaviour, ScriptedReplica};
use duralog::tables::TopicConfig;
use duralog::{
    CodecError, Compatibility, Environment, Error, FlushMode, InvalidMessage, Message, Next,
    PutStatus, Store, StoreConfig, StoreWorker, StoredMessage, TagFilter,
};
use future::block_on;
use hooked::{Hook, Hooked};
use passive::Passive;
use rng::Rng;
use std::collections::{BTreeMap, HashSet};
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::Duration;

const DIR: &str = "/store";
const TOPIC: &str = "orders";
const SEGMENT: u64 = 64 << 10;
const MOMENT: Duration = Duration::from_millis(1);
/// Longer than any test may take, where something is bound to happen.
const LONG: Duration = Duration::from_secs(60);

fn config() -> StoreConfig {
    let mut config = StoreConfig::new(DIR).segment_size(SEGMENT).consume_queue_file_size(20 * 64);
    config.index_enable = false;
    config
}

fn open_with(disk: &SimDisk, config: StoreConfig) -> Store {
    Store::open_in(config, Environment::on(disk.shared())).expect("the store opens")
}

fn open(disk: &SimDisk) -> Store {
    open_with(disk, config())
}

fn producer(store: &Store) -> Producer {
    store.producer("orders-service").open().expect("a producer")
}

fn message(body: impl Into<Vec<u8>>) -> Message {
    Message::new(TOPIC, body)
}

/// A body of which a few fill a segment.
fn large() -> Message {
    message(vec![7; 10 << 10])
}

/// All messages of a topic, once all that was put is there to be read.
fn read(store: &Store, topic: &str) -> Vec<StoredMessage> {
    let queues = store.topic(topic).expect("a readable table").map_or(0, |it| it.read_queue_nums);
    let read = |id| {
        let messages = store.get(topic, id, 0, 100_000).expect("readable").messages;
        assert!(messages.iter().all(|message| message.queue_id == id));
        messages
    };
    (0..queues).flat_map(read).collect()
}

fn bodies(store: &Store) -> Vec<String> {
    let text = |message: StoredMessage| String::from_utf8(message.body).expect("text");
    read(store, TOPIC).into_iter().map(text).collect()
}

/// Attempts, and what it was about.
fn failure<T: std::fmt::Debug>(sent: Result<T, Error>) -> (u32, Error) {
    match sent {
        Err(Error::SendFailed { attempts, unique_key, error }) => {
            assert!(UniqueKey::parse(&unique_key).is_some(), "{unique_key}");
            (attempts, (*error).clone())
        }
        other => panic!("{other:?}"),
    }
}

// Which queue.

#[test]
fn messages_go_round_the_queues_of_their_topic_and_each_topic_has_its_turns() {
    let disk = SimDisk::new(1);
    let store = open(&disk);
    let producer = producer(&store);
    store.create_topic("payments", TopicConfig::new(3)).unwrap();
    let mut counts = BTreeMap::new();
    for _ in 0..12 {
        for topic in [TOPIC, "payments"] {
            let sent = producer.send(Message::new(topic, "x")).unwrap();
            *counts.entry((topic, sent.put.queue_id)).or_insert(0) += 1;
        }
    }
    let fair = (0..4).map(|queue| ((TOPIC, queue), 3));
    assert_eq!(counts, fair.chain((0..3).map(|queue| (("payments", queue), 4))).collect());
    assert_eq!(producer.queues(TOPIC).unwrap(), [0, 1, 2, 3]);
}

#[test]
fn four_threads_share_the_turns() {
    let disk = SimDisk::new(1);
    let store = open_with(&disk, config().flush_mode(FlushMode::async_default()));
    let producer = producer(&store);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..100).for_each(|_| drop(producer.send(message("x")).unwrap())));
        }
    });
    store.flush().unwrap();
    let mut counts = [0; 4];
    read(&store, TOPIC).iter().for_each(|found| counts[found.queue_id as usize] += 1);
    assert_eq!(counts, [100; 4]);
}

#[test]
fn what_has_the_same_sharding_key_stays_in_order_in_one_queue() {
    let disk = SimDisk::new(1);
    let store = open_with(&disk, config().flush_mode(FlushMode::async_default()));
    let producer = producer(&store);
    let mut rng = Rng(11);
    let mut sent: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for number in 0..300 {
        let key = format!("customer-{}", rng.below(9));
        let body = number.to_string();
        let message = message(body.as_str()).sharding_key(&key);
        match rng.below(3) {
            0 => drop(producer.send(message).unwrap()),
            1 => drop(producer.send_async(message).unwrap().wait().unwrap()),
            _ => producer.send_oneway(message).unwrap(),
        }
        sent.entry(key).or_default().push(body);
    }
    store.flush().unwrap();
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut queues: BTreeMap<String, HashSet<i32>> = BTreeMap::new();
    for message in read(&store, TOPIC) {
        let key = message.get(names::SHARDING_KEY).unwrap().to_owned();
        queues.entry(key.clone()).or_default().insert(message.queue_id);
        found.entry(key).or_default().push(String::from_utf8(message.body).unwrap());
    }
    assert_eq!(found, sent);
    assert!(queues.values().all(|queues| queues.len() == 1), "{queues:?}");
    assert!(queues.values().flatten().collect::<HashSet<_>>().len() > 1, "all in one queue");
}

#[test]
fn a_message_that_has_chosen_its_queue_goes_there_and_to_no_queue_that_is_none() {
    let disk = SimDisk::new(1);
    let store = open(&disk);
    let producer = producer(&store);
    for queue in [0, 0, 3, 0] {
        let chosen = message("x").queue(queue).sharding_key("customer-7");
        assert_eq!(producer.send(chosen).unwrap().put.queue_id, queue);
    }
    let refused = producer.send(message("x").queue(4));
    let invalid = InvalidMessage::QueueId { queue_id: 4, limit: 4 };
    assert!(matches!(refused, Err(Error::InvalidMessage(found)) if found == invalid));
    // Someone else's may reach further.
    store.put(message("x").queue(6)).unwrap().ok().unwrap();
    assert_eq!(producer.send(message("x").queue(6)).unwrap().put.queue_id, 6);
}

#[test]
fn an_application_chooses_queues_of_its_own_but_only_those_there_are() {
    let disk = SimDisk::new(1);
    let store = open(&disk);
    let producer = store.producer("orders-service").queue_selector(|message, queues| {
        assert_eq!(queues, [0, 1, 2, 3]);
        message.body()[0].into()
    });
    let producer = producer.open().unwrap();
    let sent = producer.send(message([2]).sharding_key("customer-7")).unwrap();
    assert_eq!(sent.put.queue_id, 2);
    assert_eq!(producer.send(message([2]).queue(1)).unwrap().put.queue_id, 1);
    let refused = producer.send(message([9]));
    assert!(matches!(refused, Err(Error::InvalidMessage(InvalidMessage::QueueId { .. }))));
}

#[test]
fn a_topic_that_gets_more_queues_is_spread_over_all_of_them() {
    let disk = SimDisk::new(1);
    let store = open(&disk);
    let producer = producer(&store);
    let queue = || producer.send(message("x")).unwrap().put.queue_id;
    assert_eq!((0..8).map(|_| queue()).max(), Some(3));
    store.create_topic(TOPIC, TopicConfig::new(6)).unwrap();
    assert_eq!((0..12).map(|_| queue()).collect::<HashSet<_>>().len(), 6);
    let mut closed = TopicConfig::new(6);
    closed.perm = TopicConfig::READ;
    store.create_topic(TOPIC, closed).unwrap();
    assert!(matches!(producer.send(message("x")), Err(Error::TopicNotWritable { .. })));
}

#[test]
fn topics_of_rocketmq_itself_and_unknown_ones_take_nothing() {
    let disk = SimDisk::new(1);
    let mut config = config();
    config.auto_create_topic = false;
    let store = open_with(&disk, config);
    let producer = producer(&store);
    for topic in ["SCHEDULE_TOPIC_XXXX", "RMQ_SYS_TRANS_HALF_TOPIC", "rmq_sys_wheel_timer"] {
        let refused = producer.send(Message::new(topic, "x"));
        assert!(
            matches!(&refused, Err(Error::TopicNotWritable { topic: found }) if found == topic)
        );
        assert_eq!(store.topic(topic).unwrap(), None);
    }
    assert!(matches!(producer.send(message("x")), Err(Error::UnknownTopic { .. })));
    assert_eq!(store.stats().watermarks.appended, 0);
}

#[test]
fn a_batch_lies_together_in_the_queue_on_which_its_messages_agree() {
    let disk = SimDisk::new(1);
    let store = open(&disk);
    let producer = producer(&store);
    let sent = producer.send_batch(["a", "b", "c"].map(message)).unwrap();
    let found = store.get(TOPIC, sent.put.queue_id, 0, 9).unwrap().messages;
    assert_eq!(found.iter().map(|it| &it.body[..]).collect::<Vec<_>>(), [b"a", b"b", b"c"]);
    assert_eq!(found[0].unique_key(), Some(sent.unique_key()));
    let keys: HashSet<_> = found.iter().map(|it| it.unique_key().unwrap()).collect();
    assert_eq!(keys.len(), 3);
    let sent = producer.send_batch([message("a"), message("b").queue(3)]).unwrap();
    assert_eq!(sent.put.queue_id, 3);
    let queue = producer.send(message("x").sharding_key("k1")).unwrap().put.queue_id;
    let batch = ["a", "b"].map(|body| message(body).sharding_key("k1"));
    assert_eq!(producer.send_batch(batch).unwrap().put.queue_id, queue);
    let mixed = |batch: [Message; 2]| {
        let refused = producer.send_batch(batch);
        assert!(matches!(refused, Err(Error::InvalidMessage(InvalidMessage::MixedBatch))));
    };
    mixed([message("a").queue(1), message("b").queue(2)]);
    mixed([message("a"), Message::new("payments", "b")]);
    mixed([message("a").queue((queue + 1) % 4), message("b").sharding_key("k1")]);
    let nameless = producer.send(Message::new("", "x"));
    assert!(matches!(nameless, Err(Error::InvalidMessage(InvalidMessage::EmptyTopic))));
    let none = producer.send_batch([]);
    assert!(matches!(none, Err(Error::InvalidMessage(InvalidMessage::EmptyBatch))));
}

// What is said of it.

#[test]
fn a_message_gets_an_id_of_its_own_unless_it_brings_one() {
    let disk = SimDisk::new(1);
    let store = open(&disk);
    let producers = [producer(&store), producer(&store)];
    let mut ids = HashSet::new();
    for turn in 0..100 {
        let sent = producers[turn % 2].send(message("x")).unwrap();
        assert_eq!((sent.put.status, sent.attempts, sent.fell_back), (PutStatus::PutOk, 1, false));
        assert!(UniqueKey::parse(sent.unique_key()).is_some());
        let queue = sent.put.queue_id;
        let found = &store.get(TOPIC, queue, sent.put.queue_offset, 1).unwrap().messages[0];
        assert_eq!(found.unique_key(), Some(sent.unique_key()));
        assert_eq!(found.get(names::PRODUCER_GROUP), None);
        assert!(ids.insert(sent.unique_key().to_owned()));
    }
    let sent = producers[0].send(message("x").unique_key("mine")).unwrap();
    assert_eq!(sent.unique_key(), "mine");
    let queue = sent.put.queue_id;
    let found = &store.get(TOPIC, queue, sent.put.queue_offset, 1).unwrap().messages[0];
    assert_eq!(found.properties.as_bytes(), b"UNIQ_KEY\x01mine\x02");
}

#[test]
fn what_a_send_acknowledged_survives_a_power_cut_and_a_oneway_a_kill() {
    let disk = SimDisk::new(1);
    let store = open(&disk);
    let producer = producer(&store);
    producer.send(message("sent")).unwrap();
    let ticket = producer.send_async(message("async")).unwrap();
    ticket.wait().unwrap();
    disk.hang_syncs(true);
    producer.send_oneway(message("oneway")).unwrap();
    let killed = disk.kill();
    killed.hang_syncs(false);
    let killed = open(&killed);
    let found = bodies(&killed);
    assert_eq!(found.iter().collect::<HashSet<_>>().len(), 3, "{found:?}");
    let oneway = &read(&killed, TOPIC)[found.iter().position(|body| body == "oneway").unwrap()];
    assert_eq!(oneway.get(names::WAIT), None);
    let cut = disk.cut_power(Cut::losing_all());
    cut.hang_syncs(false);
    let found = bodies(&open(&cut));
    assert!(found.contains(&"sent".to_owned()) && found.contains(&"async".to_owned()));
    disk.hang_syncs(false);
}

#[test]
fn a_producer_is_not_made_where_nothing_can_be_sent() {
    let disk = SimDisk::new(1);
    let store = open(&disk);
    let field = |builder: duralog::delivery::ProducerBuilder| match builder.open() {
        Err(Error::Config { field, .. }) => field,
        other => panic!("{other:?}"),
    };
    assert_eq!(field(store.producer("")), "group");
    assert_eq!(field(store.producer("a@b")), "group");
    assert_eq!(field(store.producer("g").send_timeout(Duration::ZERO)), "send_timeout");
    assert_eq!(field(store.producer("g").retry_pause(Duration::ZERO)), "retry_pause");
    let same = store.producer("g").retry_another_when_not_ok(store.clone());
    assert_eq!(field(same), "retry_another_when_not_ok");
    let long = store.producer("g".repeat(256)).open();
    assert!(matches!(long, Err(Error::TooLarge { what: "group", .. })));
    let unknown = store.producer("g").compress(Compression::Unknown(6)).open();
    assert!(matches!(unknown, Err(Error::Codec { what: CodecError::Unknown, .. })));
    store.close().unwrap();
    assert!(matches!(store.producer("g").open(), Err(Error::Closed)));
    let store = open_with(&disk, config().read_only(true));
    assert!(matches!(store.producer("g").open(), Err(Error::ReadOnly)));
}

// What is tried again.

/// Fills what the store has reserved, so that the next send needs a segment that there is no room for.
fn fill(disk: &SimDisk, store: &Store) {
    // All tables that there will be are there.
    producer(store).queues(TOPIC).unwrap();
    disk.set_capacity(disk.used());
    let refused = (0..100).map(|_| store.put(large())).find_map(Result::err);
    assert!(matches!(refused, Some(Error::DiskFull { .. })), "{refused:?}");
}

/// Makes room when a segment was asked for so often.
#[derive(Debug)]
struct Room {
    disk: SimDisk,
    after: AtomicUsize,
}

impl Hook for Room {
    fn before(&self, call: SimCall) -> io::Result<()> {
        if call == SimCall::Create && self.disk.used() > 0 {
            let before = self
                .after
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
            if before == Ok(1) {
                self.disk.set_capacity(u64::MAX);
            }
        }
        Ok(())
    }
}

#[test]
fn a_full_disk_is_tried_again_until_there_is_room() {
    let disk = SimDisk::new(1);
    let room = Arc::new(Room { disk: disk.clone(), after: AtomicUsize::new(0) });
    let environment = Environment::on(Hooked::over(disk.shared(), room.clone()));
    let store = Store::open_in(config(), environment).unwrap();
    fill(&disk, &store);
    let producer = store.producer("g").retry_pause(MOMENT).open().unwrap();
    let before = store.stats().messages;
    let (attempts, error) = failure(producer.send(large()));
    assert_eq!(attempts, 3);
    assert!(matches!(error, Error::DiskFull { .. }), "{error}");
    assert!(error.is_retryable() && !error.is_unknown());
    assert_eq!(store.stats().messages, before);
    // Each attempt asks once; upkeep may be at one from before.
    room.after.store(3, Ordering::SeqCst);
    let sent = producer.send(large()).unwrap();
    assert!((2..=3).contains(&sent.attempts), "{}", sent.attempts);
    assert_eq!(store.stats().messages, before + 1);
}

#[test]
fn attempts_are_counted_as_they_were_asked_for() {
    let disk = SimDisk::new(1);
    let store = open(&disk);
    fill(&disk, &store);
    for retries in [0, 1, 4] {
        let producer = store
            .producer("g")
            .retry_pause(MOMENT)
            .retry_times_when_send_failed(retries)
            .retry_times_when_send_async_failed(retries)
            .open()
            .unwrap();
        assert_eq!(failure(producer.send(large())).0, retries + 1);
        assert_eq!(failure(producer.send_batch([large()])).0, retries + 1);
        assert_eq!(failure(producer.send_async(large()).and_then(SendTicket::wait)).0, retries + 1);
        assert_eq!(failure(producer.send_oneway(large())).0, 1);
    }
    // No attempt begins that would begin too late.
    let hasty = store.producer("g").send_timeout(20 * MOMENT).retry_pause(20 * MOMENT).open();
    assert_eq!(failure(hasty.unwrap().send(large())).0, 1);
}

#[test]
fn a_disk_that_hangs_is_told_when_the_time_is_up_and_where_the_message_lies() {
    let disk = SimDisk::new(1);
    // The store itself would wait for an hour.
    let store = open_with(&disk, config().sync_flush_timeout(Duration::from_secs(3600)));
    let producer = store.producer("g").send_timeout(50 * MOMENT).open().unwrap();
    producer.queues(TOPIC).unwrap();
    disk.hang_syncs(true);
    let late = [
        producer.send(message("0")).map(drop),
        producer.send_batch(["1", "2"].map(message)).map(drop),
        producer.send_async(message("3")).and_then(SendTicket::wait).map(drop),
        producer.send_async(message("4")).and_then(block_on).map(drop),
    ];
    let mut ends = Vec::new();
    for late in late {
        assert!(late.as_ref().is_err_and(Error::is_unknown));
        let (attempts, error) = failure(late);
        let Error::NotOk(put) = error else { panic!("{error}") };
        assert_eq!((attempts, put.status), (1, PutStatus::FlushDiskTimeout));
        ends.push(put.end_offset);
    }
    assert_eq!(store.stats().messages, 5, "no second copy");
    disk.hang_syncs(false);
    store.flush().unwrap();
    assert!(store.stats().watermarks.durable >= ends[3]);
    assert_eq!(bodies(&store).len(), 5);
}

#[test]
fn a_status_that_the_application_accepts_is_success() {
    let disk = SimDisk::new(1);
    let store = open_with(&disk, config().sync_flush_timeout(MOMENT));
    let accepting = store.producer("g").accept(PutStatus::FlushDiskTimeout).open().unwrap();
    let strict = producer(&store);
    strict.queues(TOPIC).unwrap();
    disk.hang_syncs(true);
    let sent = accepting.send(message("x")).unwrap();
    assert_eq!((sent.put.status, sent.attempts), (PutStatus::FlushDiskTimeout, 1));
    let sent = accepting.send_async(message("x")).unwrap().wait().unwrap();
    assert_eq!(sent.put.status, PutStatus::FlushDiskTimeout);
    assert!(matches!(failure(strict.send(message("x"))), (1, Error::NotOk(_))));
    disk.hang_syncs(false);
}

#[test]
fn a_latched_store_is_not_tried_again_and_what_may_be_stored_is_told_apart() {
    let disk = SimDisk::new(1);
    let store = open(&disk);
    let producer = producer(&store);
    producer.queues(TOPIC).unwrap();
    disk.inject(Fault::sync(SyncFailure::KeepNew).path("commitlog"));
    let (attempts, error) = failure(producer.send(message("x")));
    assert!(matches!((attempts, &error), (1, Error::Unknown { .. })), "{error}");
    assert!(error.is_unknown());
    let (attempts, error) = failure(producer.send(message("x")));
    assert!(matches!((attempts, &error), (1, Error::Latched { .. })), "{error}");
    assert!(!error.is_unknown() && !error.is_retryable());
}

// The second store.

struct Two {
    disks: [SimDisk; 2],
    stores: [Store; 2],
    producer: Producer,
}

fn two(config: StoreConfig, timeout: Duration) -> Two {
    let disks = [SimDisk::new(1), SimDisk::new(2)];
    let stores = [open_with(&disks[0], config), open(&disks[1])];
    let producer = stores[0]
        .producer("g")
        .send_timeout(timeout)
        .retry_pause(MOMENT)
        .retry_another_when_not_ok(stores[1].clone())
        .open()
        .unwrap();
    stores.iter().for_each(|store| store.create_topic(TOPIC, TopicConfig::new(4)).unwrap());
    Two { disks, stores, producer }
}

type Way = fn(&Producer, Message) -> Result<duralog::delivery::Sent, Error>;

const WAYS: [Way; 4] = [
    |producer, message| producer.send(message),
    |producer, message| producer.send_batch([message]),
    |producer, message| producer.send_async(message)?.wait(),
    |producer, message| block_on(producer.send_async(message)?),
];

#[test]
fn a_second_store_takes_what_the_first_one_cannot() {
    type Harm = fn(&Two);
    let harms: [Harm; 3] = [
        |two| fill(&two.disks[0], &two.stores[0]),
        |two| drop(two.stores[0].close()),
        |two| {
            two.disks[0].inject(Fault::sync(SyncFailure::KeepNew).path("commitlog"));
            two.stores[0].put(message("latches")).unwrap_err();
        },
    ];
    for harm in harms {
        for way in WAYS {
            let two = two(config(), LONG);
            harm(&two);
            let before = two.stores[0].stats().messages;
            let sent = way(&two.producer, large()).unwrap();
            assert!(sent.fell_back);
            assert_eq!((sent.attempts, sent.put.status), (2, PutStatus::PutOk));
            assert_eq!(two.stores[0].stats().messages, before);
            let found = read(&two.stores[1], TOPIC);
            assert_eq!(found[0].unique_key(), Some(sent.unique_key()));
        }
    }
}

#[test]
fn a_second_store_takes_what_the_first_one_has_not_safely_and_both_copies_have_one_id() {
    let check = |way: Way, flush, timeout| {
        let two = two(config().sync_flush_timeout(flush), timeout);
        two.disks[0].hang_syncs(true);
        let sent = way(&two.producer, message("x").sharding_key("customer-7"));
        two.disks[0].hang_syncs(false);
        let sent = sent.unwrap();
        assert!(sent.fell_back);
        assert_eq!(sent.attempts, 2);
        two.stores[0].flush().unwrap();
        for store in &two.stores {
            let found = read(store, TOPIC);
            assert_eq!(found.len(), 1);
            assert_eq!(found[0].unique_key(), Some(sent.unique_key()));
        }
    };
    thread::scope(|scope| {
        for way in WAYS {
            // Given up after its own timeout, and after half of the time that all may take.
            for (flush, timeout) in [(MOMENT, LONG), (LONG, 4000 * MOMENT)] {
                scope.spawn(move || check(way, flush, timeout));
            }
        }
    });
}

#[test]
fn that_the_first_store_may_have_it_is_told_although_the_second_one_failed_later() {
    for way in WAYS {
        let two = two(config().sync_flush_timeout(MOMENT), LONG);
        two.disks[0].hang_syncs(true);
        two.stores[1].close().unwrap();
        let (attempts, error) = failure(way(&two.producer, message("x")));
        assert_eq!(attempts, 2);
        assert!(matches!(error, Error::NotOk(put) if put.status == PutStatus::FlushDiskTimeout));
        two.disks[0].hang_syncs(false);
    }
}

#[test]
fn the_second_store_chooses_among_its_own_queues() {
    let two = two(config(), LONG);
    two.stores[1].create_topic(TOPIC, TopicConfig::new(1)).unwrap();
    // From now on the first one knows where to.
    two.producer.send(message("x")).unwrap();
    two.stores[0].close().unwrap();
    for _ in 0..3 {
        assert_eq!(two.producer.send(message("x")).unwrap().put.queue_id, 0);
    }
    // What it holds against a message is not the last word while the first one may be opened again.
    let (attempts, error) = failure(two.producer.send(message("x").queue(3)).map(|sent| sent.put));
    assert!(attempts == 2 && matches!(error, Error::Closed), "{error}");
}

#[test]
fn a_replicator_that_refuses_is_tried_again() {
    let disk = SimDisk::new(1);
    let replica = ScriptedReplica::new(ReplicaBehaviour::Refuse);
    let environment = Environment::on(disk.shared());
    let store = Store::open_replicated(config(), environment, replica.clone()).unwrap();
    let producer = store.producer("g").retry_pause(MOMENT).open().unwrap();
    let (attempts, error) = failure(producer.send(message("x")));
    assert!(matches!((attempts, &error), (3, Error::Refused(_))), "{error}");
    assert_eq!(store.stats().messages, 0);
}

#[test]
fn a_replica_has_no_producer() {
    let disk = SimDisk::new(1);
    let environment = Environment::on(disk.shared());
    let replica =
        Store::open_replicated(config(), environment, Arc::new(Passive::default())).unwrap();
    let refused = replica.producer("g").open();
    assert!(matches!(refused, Err(Error::Refused(Refusal::NotPrimary))));
    let refused = replica.transactional_producer("g", |_| TransactionState::Unknown).open();
    assert!(matches!(refused, Err(Error::Refused(Refusal::NotPrimary))));
    assert_eq!(replica.topic(TOPIC).unwrap(), None);
}

// Tickets that nobody has woken.

#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

fn step(store: &Store) {
    for worker in [StoreWorker::Upkeep, StoreWorker::Flush, StoreWorker::Dispatch] {
        while store.step(worker) == Next::Now {}
    }
}

#[test]
fn a_ticket_tries_again_when_it_is_polled_after_its_pause_and_is_woken_for_that() {
    let (disk, clock) = (SimDisk::new(1), Arc::new(ManualClock::new(1_700_000_000_000)));
    let environment = Environment::on(disk.shared()).clock(clock.clone()).stepped();
    let mut config = config();
    // No put waits for its place here.
    config.log.put_timeout = MOMENT;
    let store = Store::open_in(config, environment).unwrap();
    store.create_topic(TOPIC, TopicConfig::new(4)).unwrap();
    step(&store);
    disk.set_capacity(disk.used());
    // Fills the segment, and whatever was made ahead.
    while store.try_submit(large()).map(drop).is_ok() {
        step(&store);
    }
    step(&store);
    let producer = producer(&store);
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(woken.clone());
    let mut context = Context::from_waker(&waker);
    let mut ticket = producer.send_async(large()).unwrap();
    let mut poll = |ticket: &mut SendTicket| Pin::new(ticket).poll(&mut context);
    assert!(poll(&mut ticket).is_pending());
    // The first pause.
    clock.advance(Duration::from_millis(99));
    store.step(StoreWorker::Deadline);
    assert_eq!(woken.0.load(Ordering::SeqCst), 0);
    clock.advance(Duration::from_millis(20));
    store.step(StoreWorker::Deadline);
    assert_eq!(woken.0.load(Ordering::SeqCst), 1);
    // A segment was asked for in vain once more, which is not to count as another attempt.
    step(&store);
    disk.set_capacity(u64::MAX);
    let mut rounds = 0;
    let sent = loop {
        if let Poll::Ready(sent) = poll(&mut ticket) {
            break sent.unwrap();
        }
        rounds += 1;
        assert!(rounds < 20, "it was never sent");
        step(&store);
        clock.advance(Duration::from_millis(20));
        store.step(StoreWorker::Deadline);
    };
    assert_eq!((sent.put.status, sent.attempts), (PutStatus::PutOk, 2));
    assert!(matches!(poll(&mut ticket), Poll::Pending), "it was answered");
}

#[test]
fn a_ticket_that_is_left_alone_for_too_long_fails_with_what_its_attempt_met() {
    let (disk, clock) = (SimDisk::new(1), Arc::new(ManualClock::new(1_700_000_000_000)));
    let environment = Environment::on(disk.shared()).clock(clock.clone());
    let replica = ScriptedReplica::new(ReplicaBehaviour::Refuse);
    let store = Store::open_replicated(config(), environment, replica).unwrap();
    let producer = producer(&store);
    let tickets = [0; 2].map(|_| producer.send_async(message("x")).unwrap());
    clock.advance(Duration::from_secs(4));
    let [waited, polled] = tickets;
    for sent in [waited.wait(), block_on(polled)] {
        let (attempts, error) = failure(sent);
        assert!(matches!((attempts, &error), (1, Error::Refused(_))), "{error}");
    }
    assert_eq!(store.stats().messages, 0);
}

#[test]
fn a_task_is_answered_when_the_store_closes_while_it_pauses() {
    let disk = SimDisk::new(1);
    let store = open(&disk);
    fill(&disk, &store);
    let producer = store
        .producer("g")
        .send_timeout(Duration::from_secs(3600))
        .retry_pause(Duration::from_secs(1800))
        .open()
        .unwrap();
    let ticket = producer.send_async(large()).unwrap();
    let (answers, answered) = mpsc::channel();
    let task = thread::spawn(move || answers.send(failure(block_on(ticket)).0));
    let _ = store.close();
    assert_eq!(answered.recv_timeout(LONG).expect("an answer"), 2);
    task.join().unwrap().unwrap();
}

// Compression.

fn text(len: usize) -> Vec<u8> {
    b"order 42 was paid; ".iter().copied().cycle().take(len).collect()
}

#[test]
fn large_bodies_are_compressed_as_rocketmq_does_and_come_back_as_they_were() {
    let kinds = [(Compression::Zlib, 0x301), (Compression::Lz4, 0x101), (Compression::Zstd, 0x201)];
    for (compression, flags) in kinds {
        let disk = SimDisk::new(1);
        let mut config = config();
        config.log.max_message_size = 100_000;
        let store = open_with(&disk, config);
        let producer = store.producer("g").compress(compression).open().unwrap();
        let noise: Vec<u8> = {
            let mut rng = Rng(5);
            (0..5000).map(|_| rng.next() as u8).collect()
        };
        for (body, is_compressed) in
            [(text(4095), false), (text(4096), true), (text(100_000), true), (noise, false)]
        {
            let put = producer.send(message(body.clone()).queue(0)).unwrap().put;
            let found = &store.get(TOPIC, 0, put.queue_offset, 1).unwrap().messages[0];
            assert_eq!(found.sys_flag, SysFlag(if is_compressed { flags } else { 0 }));
            assert_eq!(found.body.len() < body.len(), is_compressed);
            assert_eq!(found.decoded_body(100_000).unwrap(), body);
            let view =
                &store.get_view(TOPIC, 0, put.queue_offset, 1, &TagFilter::any()).unwrap().messages
                    [0];
            assert_eq!(view.decoded_body(100_000).unwrap(), body);
            if is_compressed {
                let max = body.len() - 1;
                let refused = found.decoded_body(max).unwrap_err();
                let what = CodecError::TooLong { max };
                assert!(matches!(refused, Error::Codec { what: found, .. } if found == what));
            }
        }
        // One that no consumer could be asked to decompress.
        let refused = producer.send(message(text(100_001)));
        assert!(matches!(refused, Err(Error::TooLarge { what: "body", max: 100_000, .. })));
        // What is compressed already is left alone.
        let mut body = compression.compress(&text(50_000)).unwrap();
        body.resize(body.len().max(5000), 0);
        let given = message(body.clone()).queue(1).sys_flag(compression.sys_flag());
        let put = producer.send(given).unwrap().put;
        assert_eq!(store.get(TOPIC, 1, put.queue_offset, 1).unwrap().messages[0].body, body);
    }
}

#[test]
fn where_rocketmq_4_9_reads_producers_compress_with_zlib_alone() {
    let refused = |error: &Error| {
        let what = CodecError::NotZlib;
        matches!(error, Error::Codec { what: found, .. } if *found == what)
    };
    let (disk, second) = (SimDisk::new(1), SimDisk::new(2));
    let store = open_with(&disk, config().compatibility(Compatibility::Rocketmq49));
    let open_to_all = open(&second);
    for compression in [Compression::Lz4, Compression::Zstd] {
        let producer = store.producer("g").compress(compression).open();
        assert!(refused(&producer.unwrap_err()));
        let producer = open_to_all.producer("g").compress(compression);
        let producer = producer.retry_another_when_not_ok(store.clone()).open();
        assert!(refused(&producer.unwrap_err()));
    }
    let producer = store.producer("g").compress(Compression::Zlib).open().unwrap();
    producer.send(message(text(5000))).unwrap();
    // What an application has compressed itself.
    let lz4 = || message("x").sys_flag(Compression::Lz4.sys_flag());
    assert!(refused(&producer.send(lz4()).unwrap_err()));
    assert!(refused(&producer.send_async(lz4()).unwrap_err()));
    assert!(refused(&producer.send_batch([message("y"), lz4()]).unwrap_err()));
    let transactions = store.transactional_producer("g", |_| TransactionState::Unknown);
    assert!(refused(&transactions.open().unwrap().begin(lz4()).unwrap_err()));
    assert_eq!(read(&store, TOPIC).len(), 1);
    open_to_all.producer("g").open().unwrap().send(lz4()).unwrap();
}

#[test]
fn bodies_are_compressed_from_the_size_that_was_asked_for_also_in_batches() {
    let disk = SimDisk::new(1);
    let store = open(&disk);
    let producer =
        store.producer("g").compress(Compression::Zlib).compress_over(100).open().unwrap();
    producer.send_batch([message(text(99)), message(text(100))]).unwrap();
    let found = read(&store, TOPIC);
    let flags: Vec<_> = found.iter().map(|found| found.sys_flag.compression()).collect();
    assert_eq!(flags, [None, Some(Compression::Zlib)]);
}

#[test]
fn each_of_two_stores_goes_by_its_own_limit_whether_or_not_bodies_are_compressed() {
    let open = |disk: &SimDisk, max| {
        let mut config = config();
        config.log.max_message_size = max;
        open_with(disk, config)
    };
    for compresses in [false, true] {
        for way in WAYS {
            let stores = [open(&SimDisk::new(1), 20_000), open(&SimDisk::new(2), 40_000)];
            let producer = |first: usize| {
                let producer = stores[first].producer("g").compress_over(5000);
                let producer = producer.retry_another_when_not_ok(stores[1 - first].clone());
                let compressed = producer.clone().compress(Compression::Zlib);
                (if compresses { compressed } else { producer }).open().unwrap()
            };
            let sent = way(&producer(0), message(text(30_000))).unwrap();
            assert_eq!((sent.fell_back, sent.attempts), (true, 2));
            let found = read(&stores[1], TOPIC);
            assert_eq!(found[0].sys_flag.compression().is_some(), compresses);
            let (first, last) = (producer(0), producer(1));
            let refused = way(&first, message(text(40_001)));
            assert!(matches!(refused, Err(Error::TooLarge { what: "body", max: 40_000, .. })));
            stores[1].close().unwrap();
            assert_eq!(way(&last, message(text(20_000))).unwrap().attempts, 2);
            let (attempts, error) = failure(way(&last, message(text(30_000))));
            assert!(attempts == 2 && matches!(error, Error::Closed), "{error}");
            assert_eq!(read(&stores[0], TOPIC).len(), 1);
        }
    }
}

#[test]
fn bodies_that_clients_of_rocketmq_compressed_are_read() {
    let mut found = 0;
    for case in ["4.9.8/basic", "4.9.8/restarted", "5.3.3/basic"] {
        let path = format!("{}/tests/fixtures/rocketmq/{case}", env!("CARGO_MANIFEST_DIR"));
        let manifest = std::fs::read(format!("{path}/manifest.json")).unwrap();
        let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
        let config = StoreConfig::new(format!("{path}/store")).read_only(true);
        let size = manifest["sizes"]["mappedFileSizeConsumeQueue"].as_u64();
        let config = config.consume_queue_file_size(size.unwrap_or(6_000_000));
        let store = Store::open(config).unwrap();
        for message in manifest["messages"].as_array().unwrap() {
            let offset = message["physicalOffset"].as_u64().unwrap();
            let stored = store.get_at(offset).unwrap().expect("it is there").to_stored();
            if !stored.sys_flag.contains(SysFlag::COMPRESSED) {
                assert_eq!(stored.decoded_body(0).unwrap(), stored.body);
                continue;
            }
            let body = stored.decoded_body(10_000).unwrap();
            // Seven of each letter, over and over.
            assert!(body.len() > 5000);
            let letters = body.iter().enumerate();
            assert!(letters.clone().all(|(at, &letter)| letter == b'a' + (at / 7 % 26) as u8));
            found += 1;
        }
    }
    assert_eq!(found, 9);
}

/// Kills and power cuts while producers send: nothing that was acknowledged is missing.
#[test]
fn whatever_crashes_what_was_sent_is_there_once() {
    let seeds = std::env::var("DURALOG_SEEDS").ok().and_then(|seeds| seeds.parse().ok());
    for seed in 0..seeds.unwrap_or(20) {
        let mut rng = Rng(seed);
        let disk = SimDisk::new(seed);
        let store = open(&disk);
        let acknowledged = Mutex::new(Vec::new());
        let producer = producer(&store);
        let crash = 1 + rng.below(60);
        thread::scope(|scope| {
            for thread in 0..3 {
                let (producer, acknowledged) = (&producer, &acknowledged);
                scope.spawn(move || {
                    for number in 0..crash {
                        let message = message(format!("{thread}-{number}"));
                        let sent = match number % 3 {
                            0 => producer.send(message),
                            1 => producer.send_batch([message]),
                            _ => producer.send_async(message).and_then(SendTicket::wait),
                        };
                        let sent = sent.expect("nothing is wrong");
                        acknowledged.lock().unwrap().push(sent.unique_key().to_owned());
                    }
                });
            }
        });
        let disk = disk.cut_power(Cut::losing_all());
        let found = read(&open(&disk), TOPIC);
        let mut keys: Vec<_> =
            found.iter().map(|found| found.unique_key().unwrap().to_owned()).collect();
        let mut sent = acknowledged.into_inner().unwrap();
        keys.sort();
        sent.sort();
        assert_eq!(keys, sent, "seed {seed}");
    }
}

#[test]
fn a_message_that_is_to_come_later_waits_in_its_topic_and_comes() {
    let disk = SimDisk::new(77);
    let mut config = StoreConfig::new("/store").segment_size(64 << 10);
    config.index_enable = false;
    let store = Store::open_in(config, Environment::on(disk.shared())).unwrap();
    let producer = store.producer("shop").open().unwrap();
    let later = Message::new("orders", "later").delay(Duration::from_millis(1)).queue(3);
    let sent = producer.send(later).unwrap();
    assert_eq!(sent.put.queue_id, 0);
    let waiting = store.get_at(sent.put.physical_offset).unwrap().unwrap();
    assert_eq!(waiting.topic(), "rmq_sys_wheel_timer");
    assert!(store.wait_for("orders", 3, 0, Duration::from_secs(60)).unwrap());
    let came = store.get("orders", 3, 0, 1).unwrap().messages;
    assert_eq!(came[0].unique_key(), Some(sent.unique_key()));
    let level = producer.send(Message::new("orders", "level").delay_level(1)).unwrap();
    let waiting = store.get_at(level.put.physical_offset).unwrap().unwrap();
    assert_eq!(waiting.topic(), "SCHEDULE_TOPIC_XXXX");
    let far = producer.send(Message::new("orders", "far").delay(Duration::from_secs(1 << 30)));
    assert!(matches!(far, Err(Error::InvalidMessage(_))), "{far:?}");
}

#[test]
fn a_second_store_takes_what_the_first_one_refuses() {
    let (disk, other) = (SimDisk::new(1), SimDisk::new(2));
    let mut strict = config();
    strict.auto_create_topic = false;
    let (first, second) = (open_with(&disk, strict.clone()), open(&other));
    let producer = first.producer("g").retry_another_when_not_ok(second.clone()).open().unwrap();
    let sent = producer.send(message("x")).unwrap();
    assert_eq!((sent.attempts, read(&second, TOPIC).len()), (2, 1));
    // What neither takes is told as it is.
    let producer =
        first.producer("g").retry_another_when_not_ok(open_with(&SimDisk::new(3), strict));
    let refused = producer.open().unwrap().send(message("x"));
    assert!(matches!(refused, Err(Error::UnknownTopic { .. })), "{refused:?}");
}

#[test]
fn an_attempt_that_has_begun_counts_though_nobody_comes_back_to_it_in_time() {
    let (disk, clock) = (SimDisk::new(1), Arc::new(ManualClock::new(1_700_000_000_000)));
    let environment = Environment::on(disk.shared()).clock(clock.clone()).stepped();
    let store = Store::open_in(config(), environment).unwrap();
    let producer = producer(&store);
    disk.set_capacity(disk.used());
    while store.try_submit(large()).is_ok() {
        store.flush().unwrap();
        while store.step(StoreWorker::Upkeep) == Next::Now {}
    }
    let mut ticket = producer.send_async(large()).unwrap();
    clock.advance(Duration::from_millis(200));
    let mut context = Context::from_waker(Waker::noop());
    assert!(Pin::new(&mut ticket).poll(&mut context).is_pending());
    let begun = format!("{ticket:?}");
    clock.advance(LONG);
    let Err(Error::SendFailed { attempts, .. }) = ticket.wait() else { panic!("it is sent") };
    assert!(
        begun.contains(&format!("attempts: {attempts}")) && attempts == 2,
        "{begun}, not {attempts}"
    );
}
