//! What a message may be: everything at its limit is stored, everything over it leaves no trace.

#[path = "support/sim.rs"]
mod sim;

use duralog::disk::SimDisk;
use duralog::{
    Compatibility, Error, FetchStatus, FlushMode, InvalidMessage, Message, PutStatus, Store,
    StoreConfig,
};
use sim::*;
use std::path::PathBuf;
use std::time::Duration;

fn small() -> StoreConfig {
    config().segment_size(4096)
}

/// Room for a body and properties at RocketMQ's limits.
fn large() -> StoreConfig {
    config().segment_size(8 << 20)
}

fn stored(store: &Store, message: &Message) {
    let result = store.put(message).expect("within the limits");
    assert_eq!(result.status, PutStatus::PutOk);
    let found = store
        .get(message.topic(), message.queue_id(), result.queue_offset, 1)
        .expect("the queue can be read");
    assert_eq!(found.messages.len(), 1);
    assert_eq!(found.messages[0].body, message.body());
    assert_eq!(found.messages[0].topic, message.topic());
    assert_eq!(found.messages[0].queue_id, message.queue_id());
    assert_eq!(found.messages[0].properties.as_bytes(), message.properties_ref().as_bytes());
}

/// Every way to put refuses it, and neither the store nor the disk has changed.
fn refused(disk: &SimDisk, store: &Store, message: &Message) -> Error {
    let (stats, files) = (store.stats(), message_files(disk));
    let error = store.put(message).expect_err("over the limits");
    let text = error.to_string();
    let others = [
        store.submit(message).expect_err("over the limits"),
        store.try_submit(message).expect_err("over the limits"),
        store.put_batch(&[message]).expect_err("over the limits"),
        store.submit_batch(&[message]).expect_err("over the limits"),
        store.try_submit_batch(&[message]).expect_err("over the limits"),
    ];
    for other in others {
        assert_eq!(other.to_string(), text);
    }
    assert!(!error.is_retryable() && !error.is_unknown());
    let after = store.stats();
    assert_eq!(after.watermarks, stats.watermarks, "{error}");
    assert_eq!(
        (after.messages, after.topics, after.queues),
        (stats.messages, stats.topics, stats.queues)
    );
    assert!(message_files(disk) == files, "a refused message left traces: {error}");
    error
}

/// The files of messages: the log and the queues.
fn message_files(disk: &SimDisk) -> Vec<(PathBuf, Vec<u8>)> {
    contents(disk).into_iter().filter(|(path, _)| !path.starts_with("/store/duralog")).collect()
}

/// A store whose background work is done, so that what changes is a put's doing.
fn settled(config: StoreConfig) -> (SimDisk, Store) {
    let disk = disk();
    drop(open(&disk, config.clone()));
    let store = open(&disk, config);
    put(&store, 0);
    assert!(store.wait_for(TOPIC, 0, 0, LONG).expect("the store is open"));
    (disk, store)
}

fn assert_too_large(error: &Error, part: &str, is: usize, limit: usize) {
    match error {
        Error::TooLarge { what, len, max } => assert_eq!((*what, *len, *max), (part, is, limit)),
        other => panic!("{other}"),
    }
}

#[test]
fn a_body_at_its_limit_is_stored_and_one_byte_more_is_not() {
    let mut config = config();
    config.log.max_message_size = 1000;
    let (disk, store) = settled(config);
    stored(&store, &Message::new(TOPIC, vec![7; 1000]));
    let error = refused(&disk, &store, &Message::new(TOPIC, vec![7; 1001]));
    assert_too_large(&error, "body", 1001, 1000);
    assert_eq!(put(&store, 2), 2, "no queue offset was used up");
}

#[test]
fn a_body_may_have_four_mebibytes_by_default() {
    let (disk, store) = settled(large());
    stored(&store, &Message::new(TOPIC, vec![7; 4 << 20]));
    let error = refused(&disk, &store, &Message::new(TOPIC, vec![7; (4 << 20) + 1]));
    assert_too_large(&error, "body", (4 << 20) + 1, 4 << 20);
}

#[test]
fn an_empty_body_is_a_message() {
    let (disk, store) = settled(small());
    stored(&store, &Message::new(TOPIC, ""));
    stored(&store, &Message::new(TOPIC, Vec::new()).tag("t"));
    store.close().expect("the store closes");
    drop(store);
    let store = open(&disk, small());
    let found = store.get(TOPIC, 0, 1, 2).expect("the queue can be read").messages;
    assert!(found.iter().all(|message| message.body.is_empty()));
    assert!(store.verify().expect("the log can be read").is_ok());
}

#[test]
fn a_topic_at_its_limit_is_stored_and_one_byte_more_is_not() {
    let (disk, store) = settled(small());
    stored(&store, &Message::new("t".repeat(127), "x"));
    let error = refused(&disk, &store, &Message::new("t".repeat(128), "x"));
    assert_too_large(&error, "topic", 128, 127);
}

#[test]
fn a_retry_topic_may_be_longer() {
    let (disk, store) = settled(small());
    stored(&store, &Message::new(format!("%RETRY%{}", "t".repeat(248)), "x"));
    let error = refused(&disk, &store, &Message::new(format!("%RETRY%{}", "t".repeat(249)), "x"));
    assert_too_large(&error, "topic", 256, 255);
}

#[test]
fn a_store_for_rocketmq_4_9_has_no_topics_that_break_it() {
    let (disk, store) = settled(small().compatibility(Compatibility::Rocketmq49));
    stored(&store, &Message::new(format!("%RETRY%{}", "t".repeat(120)), "x"));
    let error = refused(&disk, &store, &Message::new(format!("%RETRY%{}", "t".repeat(121)), "x"));
    assert_too_large(&error, "topic", 128, 127);
}

#[test]
fn long_topics_survive_a_reopen() {
    let disk = disk();
    let topics = ["t".repeat(127), format!("%RETRY%{}", "t".repeat(248))];
    let store = open(&disk, small());
    topics.iter().for_each(|topic| stored(&store, &Message::new(topic.as_str(), "x")));
    let (_disk, store) = reopen_after_power_cut(&disk, store, small());
    for topic in topics {
        let found = store.get(&topic, 0, 0, 10).expect("the queue can be read");
        assert_eq!(found.messages.len(), 1);
    }
}

/// A message whose properties take `len` bytes in the record, its checksum not counted.
fn with_properties(len: usize) -> Message {
    Message::new(TOPIC, "x").property("p", "v".repeat(len - "p\u{1}\u{2}".len()))
}

#[test]
fn properties_at_their_limit_are_stored_and_one_byte_more_is_not() {
    const LIMIT: usize = i16::MAX as usize;
    const CRC: usize = "__CRC32#\u{1}0123456789\u{2}".len();
    let mut without = large();
    without.log.record_crc = false;
    for (config, own) in [(large(), CRC), (without, 0)] {
        let (disk, store) = settled(config);
        stored(&store, &with_properties(LIMIT - own));
        let error = refused(&disk, &store, &with_properties(LIMIT - own + 1));
        assert_too_large(&error, "properties", LIMIT + 1, LIMIT);
    }
}

#[test]
fn properties_that_the_format_cannot_hold_are_refused() {
    let (disk, store) = settled(small());
    let message = || Message::new(TOPIC, "x");
    for (name, bad) in [
        ("", message().property("", "v")),
        ("p", message().property("p", "")),
        ("p\u{1}", message().property("p\u{1}", "v")),
        ("p", message().property("p", "a\u{2}b")),
        ("TAGS", message().tag("")),
        ("KEYS", message().key("")),
    ] {
        match refused(&disk, &store, &bad) {
            Error::InvalidMessage(InvalidMessage::Property { name: told }) => {
                assert_eq!(told, name);
            }
            other => panic!("{other}"),
        }
    }
}

#[test]
fn illegal_topics_are_refused() {
    let (disk, store) = settled(small());
    match refused(&disk, &store, &Message::new("", "x")) {
        Error::InvalidMessage(InvalidMessage::EmptyTopic) => {}
        other => panic!("{other}"),
    }
    for (topic, character) in [
        ("a b", ' '),
        ("a/b", '/'),
        ("..", '.'),
        ("a.b", '.'),
        ("a\0", '\0'),
        ("a\n", '\n'),
        ("größe", 'ö'),
        ("a*", '*'),
        ("a\\b", '\\'),
    ] {
        match refused(&disk, &store, &Message::new(topic, "x")) {
            Error::InvalidMessage(InvalidMessage::TopicCharacter { found }) => {
                assert_eq!(found, character, "{topic:?}");
            }
            other => panic!("{topic:?}: {other}"),
        }
    }
}

#[test]
fn every_legal_character_may_stand_in_a_topic() {
    let (_disk, store) = settled(small());
    stored(&store, &Message::new("%|_-azAZ09", "x"));
}

#[test]
fn queue_ids_out_of_range_are_refused() {
    let mut config = small();
    config.max_queues_per_topic = 8;
    let (disk, store) = settled(config);
    stored(&store, &Message::new(TOPIC, "x").queue(7));
    for id in [-1, i32::MIN, 8, i32::MAX] {
        match refused(&disk, &store, &Message::new(TOPIC, "x").queue(id)) {
            Error::InvalidMessage(InvalidMessage::QueueId { queue_id, limit }) => {
                assert_eq!(queue_id, id);
                assert!(id < 0 || limit == 8, "{limit}");
            }
            other => panic!("{other}"),
        }
    }
}

/// How long a body makes a record of `size` bytes.
fn body_for(store: &Store, size: u64) -> usize {
    let probe = store.put(Message::new(TOPIC, "")).expect("an empty body fits");
    (size - (probe.end_offset - probe.physical_offset)) as usize
}

#[test]
fn a_record_that_fills_a_segment_is_stored_and_one_byte_more_is_not() {
    let (disk, store) = settled(small());
    // Every record leaves room for the blank behind it.
    let body = body_for(&store, 4096 - 8);
    assert!(store.wait_for(TOPIC, 0, 1, LONG).expect("the store is open"));
    let error = refused(&disk, &store, &Message::new(TOPIC, vec![7; body + 1]));
    assert_too_large(&error, "record", 4096 - 8 + 1, 4096 - 8);
    let before = store.stats().rolls;
    let result = store.put(Message::new(TOPIC, vec![7; body])).expect("it fits");
    assert_eq!((result.queue_offset, result.physical_offset), (2, 4096));
    assert_eq!(store.stats().rolls, before + 1);
    stored(&store, &Message::new(TOPIC, vec![7; body]));
    assert_eq!(store.get_at(4096).expect("readable").expect("there").body(), vec![7; body]);
}

#[test]
fn a_batch_takes_consecutive_offsets() {
    let (_disk, store) = settled(small());
    let batch: Vec<Message> = (1..6).map(message).collect();
    let result = store.put_batch(&batch).expect("it fits").ok().expect("it is safe");
    assert_eq!(result.queue_offset, 1);
    assert_eq!(ids(&store), [0, 1, 2, 3, 4, 5]);
    let found = all(&store);
    assert_eq!(found[1].physical_offset as u64, result.physical_offset);
    let mut expected = result.physical_offset as i64;
    for message in &found[1..] {
        assert_eq!(message.physical_offset, expected, "next to each other");
        expected += message.size() as i64;
    }
    assert_eq!(expected as u64, result.end_offset);
    assert_eq!(put(&store, 6), 6);
}

#[test]
fn batches_of_several_producers_are_not_mixed() {
    let (_disk, store) = settled(config());
    std::thread::scope(|scope| {
        for producer in 0..4u64 {
            let store = &store;
            scope.spawn(move || {
                for round in 0..20 {
                    let first = 1000 * (producer + 1) + round * 5;
                    let batch: Vec<Message> = (first..first + 5).map(message).collect();
                    let ticket = store.submit_batch(&batch).expect("it fits");
                    assert_eq!(ticket.wait().expect("no failure").status, PutStatus::PutOk);
                }
            });
        }
    });
    let found = ids(&store);
    assert_eq!(found.len(), 1 + 4 * 20 * 5);
    for batch in found[1..].chunks(5) {
        assert_eq!(batch, (batch[0]..batch[0] + 5).collect::<Vec<_>>());
    }
}

#[test]
fn a_batch_is_never_split_over_segments() {
    let (_disk, store) = settled(small());
    for round in 0..20u64 {
        let first = 1 + round * 7;
        let batch: Vec<Message> = (first..first + 7).map(message).collect();
        let result = store.put_batch(&batch).expect("it fits").ok().expect("it is safe");
        assert_eq!(result.physical_offset / 4096, (result.end_offset - 1) / 4096);
        assert_eq!(result.queue_offset, first);
    }
    assert!(store.stats().rolls > 3);
    assert_eq!(ids(&store), (0..=140).collect::<Vec<_>>());
}

/// A batch that is refused, and has left no trace.
fn refused_batch(messages: &[Message]) -> Error {
    let (disk, store) = settled(small());
    let (before, files) = (store.stats().watermarks, message_files(&disk));
    let error = store.put_batch(messages).expect_err("refused");
    assert!(store.submit_batch(messages).is_err());
    assert!(store.try_submit_batch(messages).is_err());
    assert_eq!(store.stats().watermarks, before);
    assert!(message_files(&disk) == files, "a refused batch left traces: {error}");
    assert_eq!(put(&store, 1), 1, "no queue offset was used up");
    error
}

#[test]
fn an_empty_batch_is_refused() {
    let error = refused_batch(&[]);
    assert!(matches!(error, Error::InvalidMessage(InvalidMessage::EmptyBatch)), "{error}");
}

#[test]
fn a_batch_of_two_topics_or_queues_is_refused() {
    for other in [Message::new("payments", "x"), message(2).queue(1)] {
        let error = refused_batch(&[message(1), other]);
        assert!(matches!(error, Error::InvalidMessage(InvalidMessage::MixedBatch)), "{error}");
    }
}

#[test]
fn a_batch_that_no_segment_can_hold_is_refused() {
    let batch: Vec<Message> = (1..5).map(|_| Message::new(TOPIC, vec![7; 1000])).collect();
    match refused_batch(&batch) {
        Error::TooLarge { what: "batch", len, max } => assert!(len > max && max <= 4096),
        other => panic!("{other}"),
    }
}

#[test]
fn a_batch_with_one_invalid_message_is_refused() {
    for bad in [message(2).tag(""), Message::new(TOPIC, vec![7; 5000]), message(2).queue(-1)] {
        refused_batch(&[message(1), bad]);
    }
}

#[test]
fn a_batch_that_fills_a_segment_is_stored() {
    let (_disk, store) = settled(small());
    let half = body_for(&store, (4096 - 8) / 2);
    let batch = [Message::new(TOPIC, vec![7; half]), Message::new(TOPIC, vec![8; half])];
    let result = store.put_batch(&batch).expect("it fits").ok().expect("it is safe");
    assert_eq!((result.physical_offset, result.end_offset), (4096, 2 * 4096 - 8));
}

#[test]
fn reading_outside_of_a_queue_says_where_to_go_on() {
    let (_disk, store) = settled(small());
    (1..5).for_each(|id| assert_eq!(put(&store, id), id));
    assert!(store.wait_for(TOPIC, 0, 4, LONG).expect("the store is open"));
    let status = |topic: &str, queue: i32, offset: u64| {
        let fetched = store.get(topic, queue, offset, 10).expect("the queue can be read");
        (fetched.status, fetched.messages.len(), fetched.next_offset)
    };
    assert_eq!(status(TOPIC, 0, 2), (FetchStatus::Found, 3, 5));
    assert_eq!(status(TOPIC, 0, 5), (FetchStatus::AtEnd, 0, 5));
    assert_eq!(status(TOPIC, 0, 6), (FetchStatus::OffsetTooLarge, 0, 5));
    assert_eq!(status(TOPIC, 0, u64::MAX), (FetchStatus::OffsetTooLarge, 0, 5));
    for (topic, queue) in [(TOPIC, 1), ("nothing", 0), (TOPIC, -1), ("../..", 0), ("", 0)] {
        assert_eq!(status(topic, queue, 0).0, FetchStatus::NoSuchQueue, "{topic:?} {queue}");
    }
    assert_eq!(store.get(TOPIC, 0, 0, 0).expect("nothing was asked for").messages.len(), 0);
    assert!(store.get_at(u64::MAX).expect("out of range is no error").is_none());
}

#[test]
fn settings_out_of_range_are_named() {
    type Change = fn(&mut StoreConfig);
    let cases: [(&str, Change); 12] = [
        ("segment_size", |config| config.log.segment_size = 4095),
        ("segment_size", |config| config.log.segment_size = 4096 + 1),
        ("segment_size", |config| config.log.segment_size = (1 << 30) + 4096),
        ("max_message_size", |config| config.log.max_message_size = 0),
        ("max_in_flight_bytes", |config| config.log.max_in_flight_bytes = 4095),
        ("put_timeout", |config| config.log.put_timeout = Duration::ZERO),
        ("close_timeout", |config| config.log.close_timeout = Duration::from_secs(3601)),
        ("sync_flush_timeout", |config| {
            config.flush_mode = FlushMode::Sync { timeout: Duration::ZERO };
        }),
        ("sync_replica_timeout", |config| config.sync_replica_timeout = Duration::from_micros(999)),
        ("consume_queue_file_size", |config| config.consume_queue_file_size = 19),
        ("max_open_queue_files", |config| config.max_open_queue_files = 3),
        ("max_queues_per_topic", |config| config.max_queues_per_topic = 0),
    ];
    for (name, change) in cases {
        let disk = disk();
        let mut config = config();
        change(&mut config);
        match try_open(&disk, config) {
            Err(error @ Error::Config { .. }) => {
                let Error::Config { field, value, allowed } = &error else { unreachable!() };
                assert_eq!(*field, name);
                let text = error.to_string();
                assert!(text.contains(name) && text.contains(value) && text.contains(allowed));
            }
            other => panic!("{name}: {other:?}"),
        }
        assert!(disk.files().is_empty(), "a refused setting left files");
    }
}
