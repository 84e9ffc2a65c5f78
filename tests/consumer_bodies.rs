//! What consumers get of bodies that a producer compressed.

use duralog::clock::ManualClock;
use duralog::delivery::{Consumer, ConsumerBuilder, Event, Handled, Received, Watch};
use duralog::disk::SimDisk;
use duralog::message::{Compression, SysFlag};
use duralog::{
    CodecError, Environment, Error, Message, Next, Store, StoreConfig, StoreWorker, TagFilter,
};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

const NOW: Duration = Duration::ZERO;
const LONG: Duration = Duration::from_secs(60);
const CODECS: [Compression; 3] = [Compression::Zlib, Compression::Lz4, Compression::Zstd];
/// The longest body that a consumer makes of a compressed one.
const MAX: usize = 4 << 20;

/// A store whose time stands still unless it is told to pass.
struct World {
    clock: Arc<ManualClock>,
    store: Store,
}

impl World {
    fn new() -> Self {
        let (disk, clock) = (SimDisk::new(1), Arc::new(ManualClock::new(1_700_000_000_000)));
        let environment = Environment::on(disk.shared()).clock(clock.clone()).stepped();
        Self { store: Store::open_in(config(), environment).unwrap(), clock }
    }

    fn put(&self, message: Message) {
        let ticket = self.store.submit(message).unwrap();
        for worker in [StoreWorker::Upkeep, StoreWorker::Flush] {
            while self.store.step(worker) == Next::Now {}
        }
        ticket.wait().unwrap().ok().unwrap();
    }

    fn pass(&self, time: Duration) {
        self.clock.advance(time);
        for _ in 0..3 {
            for worker in [StoreWorker::Delivery, StoreWorker::Upkeep, StoreWorker::Flush] {
                while self.store.step(worker) == Next::Now {}
            }
        }
    }
}

fn config() -> StoreConfig {
    let mut config = StoreConfig::new("/store").segment_size(1 << 20);
    (config.consume_queue_file_size, config.index_enable) = (20 * 64, false);
    config
}

fn text() -> Vec<u8> {
    b"order 42 was paid; ".repeat(500)
}

/// As a producer makes it.
fn compressed(compression: Compression, body: &[u8]) -> Message {
    Message::new("orders", compression.compress(body).unwrap()).sys_flag(compression.sys_flag())
}

/// What nobody can read: cut short, too long, of a codec to come.
fn undecodable() -> [Message; 3] {
    let mut short = Compression::Zstd.compress(&text()).unwrap();
    short.truncate(short.len() - 4);
    [
        Message::new("orders", short).sys_flag(Compression::Zstd.sys_flag()),
        compressed(Compression::Zlib, &vec![7; MAX + 1]),
        Message::new("orders", text()).sys_flag(Compression::Unknown(6).sys_flag()),
    ]
}

fn consumer(store: &Store) -> ConsumerBuilder {
    store.consumer("billing").subscribe("orders", TagFilter::any())
}

/// The body of the only message there is.
#[track_caller]
fn only(consumer: &Consumer) -> Received {
    let mut batch = consumer.poll(NOW).unwrap().into_iter();
    let only = batch.next().expect("a message");
    assert!(batch.next().is_none());
    only
}

fn bodies(consumer: &Consumer) -> Vec<String> {
    let batch = consumer.poll(NOW).unwrap();
    batch.ack().unwrap();
    batch.iter().map(|one| String::from_utf8_lossy(one.body()).into_owned()).collect()
}

/// What is told of messages that have no body.
fn observe(store: &Store) -> Arc<Mutex<Vec<CodecError>>> {
    let told = Arc::<Mutex<Vec<CodecError>>>::default();
    let noted = told.clone();
    let watch = Watch::new(move |event| {
        if let Event::Undecodable { group, message, error } = event {
            assert_eq!(
                (*group, message.record().sys_flag().compression().is_some()),
                ("billing", true)
            );
            let Error::Codec { what, .. } = error else { panic!("{error}") };
            noted.lock().unwrap().push(what.clone());
        }
    });
    store.observe(watch).unwrap();
    told
}

#[test]
fn a_compressed_body_comes_as_it_was_sent_however_often_it_comes() {
    for codec in CODECS {
        let world = World::new();
        let consumer = consumer(&world.store).open().unwrap();
        world.put(compressed(codec, &text()));
        let first = only(&consumer);
        assert_eq!(first.body(), text());
        assert_eq!(first.raw_body(), codec.compress(&text()).unwrap());
        first.retry_later().unwrap();
        world.pass(Duration::from_secs(10));
        let again = only(&consumer);
        assert_eq!((again.topic(), again.reconsume_times()), ("orders", 1));
        assert_eq!(again.body(), text());
        // One of its own making, not one of RocketMQ's levels.
        again.retry_after(Duration::from_millis(1500)).unwrap();
        world.pass(Duration::from_millis(1600));
        let again = only(&consumer);
        assert_eq!(again.body(), text());
        again.reject().unwrap();
        let letters = world.store.dead_letters("billing");
        let letter = &letters.list(10).unwrap()[0];
        assert_eq!(letter.decoded_body(MAX).unwrap(), text());
        assert_eq!(letters.redrive(10).unwrap(), 1);
        assert_eq!(only(&consumer).body(), text());
    }
}

#[test]
fn whoever_consumes_gets_plain_bodies_in_order_and_everyone_for_himself_too() {
    for codec in CODECS {
        let world = World::new();
        let everyone = consumer(&world.store).broadcast("here").open().unwrap();
        let ordered = world.store.consumer("audit").subscribe("orders", TagFilter::any());
        let ordered = ordered.ordered().open().unwrap();
        world.put(Message::new("orders", "plain"));
        world.put(compressed(codec, &text()));
        for consumer in [&everyone, &ordered] {
            let batch = consumer.poll(NOW).unwrap();
            let found: Vec<_> = batch.iter().map(Received::body).collect();
            assert_eq!(found, [b"plain", &text()[..]]);
            batch[1].retry_later().unwrap();
            batch[0].ack().unwrap();
            world.pass(Duration::from_secs(10));
            assert_eq!(only(consumer).body(), text());
        }
    }
}

#[test]
fn what_a_producer_compresses_a_handler_reads() {
    for codec in CODECS {
        let disk = SimDisk::new(1);
        let store = Store::open_in(config(), Environment::on(disk.shared())).unwrap();
        let (done, heard) = mpsc::channel();
        let listener = consumer(&store).open().unwrap().listen(2, move |message| {
            done.send((message.body().to_vec(), message.raw_body().len()))?;
            Ok(Handled::Done)
        });
        let producer = store.producer("g").compress(codec).open().unwrap();
        producer.send(Message::new("orders", text())).unwrap();
        let (body, stored) = heard.recv_timeout(LONG).unwrap();
        assert_eq!(body, text());
        assert!(stored < text().len() / 10, "it was compressed");
        listener.unwrap().close().unwrap();
    }
}

#[test]
fn a_body_that_is_not_compressed_is_read_where_it_lies() {
    let world = World::new();
    let consumer = consumer(&world.store).open().unwrap();
    world.put(Message::new("orders", text()));
    let message = only(&consumer);
    assert_eq!(message.body().as_ptr(), message.view().body().as_ptr());
    message.ack().unwrap();
    // RocketMQ decompresses nothing where there is nothing.
    world.put(Message::new("orders", "").sys_flag(SysFlag::COMPRESSED));
    assert_eq!(only(&consumer).body(), b"");
}

#[test]
fn a_body_that_nobody_can_read_holds_nothing_up_and_is_a_dead_letter_in_the_end() {
    for (number, bad) in undecodable().into_iter().enumerate() {
        let world = World::new();
        let told = observe(&world.store);
        let consumer = consumer(&world.store).max_reconsume_times(2).open().unwrap();
        world.put(Message::new("orders", "before"));
        world.put(bad.clone());
        world.put(Message::new("orders", "behind"));
        assert_eq!(bodies(&consumer), ["before", "behind"]);
        // It comes alone, three times in all.
        for _ in 0..2 {
            assert_eq!(world.store.dead_letters("billing").count(), 0);
            world.pass(Duration::from_secs(60));
            assert!(bodies(&consumer).is_empty());
        }
        let told = told.lock().unwrap();
        assert_eq!(told.len(), 3);
        assert!(match (&told[0], number) {
            (CodecError::Malformed { .. }, 0) | (CodecError::Unknown, 2) => true,
            (CodecError::TooLong { max }, 1) => *max == MAX,
            _ => false,
        });
        let letters = world.store.dead_letters("billing").list(10).unwrap();
        assert_eq!((letters.len(), letters[0].body()), (1, bad.body()));
        assert!(letters[0].decoded_body(MAX).is_err());
        assert!(
            world
                .store
                .lag("billing")
                .iter()
                .all(|queue| { queue.messages() == 0 || queue.topic.starts_with("%DLQ%") })
        );
    }
}

#[test]
fn in_order_nothing_passes_a_body_that_cannot_be_read_until_it_is_given_up() {
    let world = World::new();
    let consumer = consumer(&world.store).ordered().max_reconsume_times(2).open().unwrap();
    let [bad, ..] = undecodable();
    for message in [Message::new("orders", "before"), bad, Message::new("orders", "behind")] {
        world.put(message);
    }
    assert_eq!(bodies(&consumer), ["before"]);
    for _ in 0..2 {
        assert!(bodies(&consumer).is_empty());
        assert_eq!(world.store.committed_offset("billing", "orders", 0), Some(1));
        world.pass(Duration::from_secs(1));
        assert!(bodies(&consumer).is_empty());
    }
    world.pass(Duration::from_secs(1));
    assert!(bodies(&consumer).is_empty(), "it became a dead letter just now");
    assert_eq!(bodies(&consumer), ["behind"]);
    assert_eq!(world.store.dead_letters("billing").count(), 1);
}

#[test]
fn a_handler_is_not_given_a_body_that_cannot_be_read_and_gets_what_is_behind_it() {
    let disk = SimDisk::new(1);
    let store = Store::open_in(config(), Environment::on(disk.shared())).unwrap();
    let (done, heard) = mpsc::channel();
    let group = consumer(&store).max_reconsume_times(0).open().unwrap();
    for bad in undecodable() {
        store.put(bad).unwrap().ok().unwrap();
    }
    store.put(Message::new("orders", "behind")).unwrap().ok().unwrap();
    let listener = group.listen(1, move |message| {
        done.send(message.body().to_vec())?;
        Ok(Handled::Done)
    });
    assert_eq!(heard.recv_timeout(LONG).unwrap(), b"behind");
    assert_eq!(store.dead_letters("billing").count(), 3);
    listener.unwrap().close().unwrap();
    assert!(heard.recv().is_err());
}

#[test]
fn a_batch_of_bodies_that_are_large_when_decompressed_ends_early_and_loses_none() {
    let world = World::new();
    let consumer = consumer(&world.store).open().unwrap();
    for number in 0..20 {
        world.put(compressed(Compression::Lz4, &vec![number; MAX]));
    }
    let mut seen = Vec::new();
    loop {
        let batch = consumer.poll(NOW).unwrap();
        if batch.is_empty() {
            break;
        }
        assert!(batch.len() <= 9, "{} bodies of 4 MiB", batch.len());
        seen.extend(batch.iter().map(|message| (message.body()[0], message.reconsume_times())));
        batch.ack().unwrap();
    }
    assert_eq!(seen, (0..20).map(|number| (number, 0)).collect::<Vec<_>>());
}

#[test]
fn on_a_full_disk_a_body_that_cannot_be_read_stays_on_lease_and_holds_nothing_up() {
    let mut config = config();
    config.log.segment_size = 16 << 10;
    let (disk, clock) = (SimDisk::new(3), Arc::new(ManualClock::new(1_700_000_000_000)));
    let environment = Environment::on(disk.shared()).clock(clock.clone()).stepped();
    let world = World { store: Store::open_in(config, environment).unwrap(), clock };
    let consumer = consumer(&world.store).max_reconsume_times(1).open().unwrap();
    let [bad, ..] = undecodable();
    world.put(bad.clone());
    world.put(Message::new("orders", "behind"));
    world.put(bad);
    disk.set_capacity(disk.used());
    while world.store.try_submit(Message::new("filler", vec![7; 100])).is_ok() {
        world.store.flush().unwrap();
    }
    let lease = Duration::from_secs(15 * 60);
    assert_eq!(bodies(&consumer), ["behind"]);
    assert_eq!(world.store.committed_offset("billing", "orders", 0), Some(0));
    assert!(bodies(&consumer).is_empty(), "what cannot be set aside is not tried all the time");
    world.pass(lease);
    let refused = consumer.poll(NOW).unwrap_err();
    assert!(refused.is_retryable(), "{refused}");
    disk.set_capacity(u64::MAX);
    world.pass(lease);
    for _ in 0..4 {
        assert!(bodies(&consumer).is_empty());
        world.pass(lease);
    }
    assert_eq!(world.store.committed_offset("billing", "orders", 0), Some(3));
    assert_eq!(world.store.dead_letters("billing").count(), 2);
}
