//! Consumers: who gets which message, what becomes of it, and how far a group comes.

use duralog::clock::ManualClock;
use duralog::delivery::{ConsumeFrom, Consumer, DeadLetters, Handled, Settled};
use duralog::disk::{Cut, SimDisk};
use duralog::tables::{Tables, TopicTable};
use duralog::{Environment, Error, Message, Next, Store, StoreConfig, StoreWorker, TagFilter};
use std::collections::BTreeSet;
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const DIR: &str = "/store";
const NOW: Duration = Duration::ZERO;
const LONG: Duration = Duration::from_secs(60);
const LEASE: Duration = Duration::from_secs(15 * 60);

fn config() -> StoreConfig {
    let mut config = StoreConfig::new(DIR).segment_size(64 << 10);
    config.consume_queue_file_size = 20 * 64;
    config.index_enable = false;
    config
}

/// A store whose time stands still unless it is told to pass.
struct World {
    disk: SimDisk,
    clock: Arc<ManualClock>,
    store: Store,
}

impl World {
    fn new() -> Self {
        let (disk, clock) = (SimDisk::new(1), Arc::new(ManualClock::new(1_700_000_000_000)));
        let store = Self::open(&disk, &clock);
        Self { disk, clock, store }
    }

    fn open(disk: &SimDisk, clock: &Arc<ManualClock>) -> Store {
        let environment = Environment::on(disk.shared()).clock(clock.clone()).stepped();
        Store::open_in(config(), environment).unwrap()
    }

    fn kill(&mut self) {
        self.disk = self.disk.kill();
        self.store = Self::open(&self.disk, &self.clock);
    }

    fn put_to(&self, topic: &str, queue: i32, body: &str) -> u64 {
        self.put(Message::new(topic, body).queue(queue))
    }

    fn put(&self, message: Message) -> u64 {
        let ticket = self.store.submit(message).unwrap();
        for worker in [StoreWorker::Upkeep, StoreWorker::Flush] {
            while self.store.step(worker) == Next::Now {}
        }
        ticket.wait().unwrap().ok().unwrap().queue_offset
    }

    fn fill(&self, count: u64) {
        for n in 0..count {
            self.put_to("orders", 0, &n.to_string());
        }
    }

    fn consumer(&self) -> Consumer {
        self.store.consumer("billing").subscribe("orders", TagFilter::any()).open().unwrap()
    }

    fn ordered(&self) -> Consumer {
        let builder = self.store.consumer("billing").subscribe("orders", TagFilter::any());
        builder.ordered().open().unwrap()
    }

    fn committed(&self) -> Option<u64> {
        self.store.committed_offset("billing", "orders", 0)
    }
}

fn bodies(batch: &[duralog::delivery::Received]) -> Vec<String> {
    batch.iter().map(|one| String::from_utf8_lossy(one.body()).into_owned()).collect()
}

#[test]
fn a_message_is_given_out_once_and_committed_when_it_is_acknowledged() {
    let mut world = World::new();
    world.fill(3);
    let (ann, bob) = (world.consumer(), world.consumer());
    let batch = ann.poll_max(2, NOW).unwrap();
    assert_eq!(bodies(&batch), ["0", "1"]);
    assert_eq!(bodies(&bob.poll(NOW).unwrap()), ["2"]);
    assert_eq!(world.committed(), Some(0));
    assert_eq!(batch[1].ack().unwrap(), Settled::Done);
    assert_eq!(world.committed(), Some(0), "the first one is not handled");
    assert_eq!(batch[0].ack().unwrap(), Settled::Done);
    assert_eq!(world.committed(), Some(2));
    assert_eq!(batch[0].ack().unwrap(), Settled::LeaseLost);
    drop((batch, ann, bob));
    world.kill();
    assert_eq!(bodies(&world.consumer().poll(NOW).unwrap()), ["2"]);
}

#[test]
fn what_comes_again_goes_to_whoever_asks_and_to_nobody_else() {
    let world = World::new();
    world.fill(6);
    let (ann, bob) = (world.consumer(), world.consumer());
    for went_back in ["dropped", "not handled in time"] {
        let held = ann.poll(NOW).unwrap();
        assert_eq!(held.len(), 6, "{went_back}");
        if went_back == "not handled in time" {
            world.clock.advance(LEASE);
        }
        drop(held);
        // Those of one lease that failed come alone, the others as many as are asked for.
        for max in [1, 2, 3, 6] {
            let mut found = Vec::new();
            let mut leases = Vec::new();
            loop {
                let batch = bob.poll_max(max, NOW).unwrap();
                if batch.is_empty() {
                    break;
                }
                found.extend(bodies(&batch));
                leases.push(batch);
            }
            assert_eq!(found, ["0", "1", "2", "3", "4", "5"], "{went_back}, {max} at a time");
        }
    }
    assert_eq!(world.store.dead_letters("billing").count(), 0);
    while let [one, ..] = &bob.poll_max(1, NOW).unwrap()[..] {
        assert_eq!(one.ack().unwrap(), Settled::Done);
    }
    assert_eq!(world.committed(), Some(6));
}

#[test]
fn a_batch_is_acknowledged_at_once() {
    let world = World::new();
    world.fill(5);
    let consumer = world.consumer();
    let batch = consumer.poll(NOW).unwrap();
    assert_eq!(batch[1].ack().unwrap(), Settled::Done);
    assert_eq!(batch.ack().unwrap(), 4);
    assert_eq!(batch.ack().unwrap(), 0);
    assert_eq!(world.committed(), Some(5));
    assert!(consumer.poll(NOW).unwrap().is_empty());
    assert_eq!(consumer.poll(NOW).unwrap().ack().unwrap(), 0);
}

#[test]
fn what_is_held_too_long_comes_to_somebody_else() {
    let world = World::new();
    world.fill(2);
    let (ann, bob) = (world.consumer(), world.consumer());
    let held = ann.poll(NOW).unwrap();
    world.clock.advance(LEASE - Duration::from_millis(1));
    assert!(bob.poll(NOW).unwrap().is_empty());
    world.clock.advance(Duration::from_millis(1));
    let again = bob.poll(NOW).unwrap();
    assert_eq!(bodies(&again), ["0"], "what was not handled in time comes alone");
    assert_eq!(again[0].reconsume_times(), 1);
    assert_eq!(held[0].ack().unwrap(), Settled::LeaseLost);
    assert_eq!(held[0].reject().unwrap(), Settled::LeaseLost);
    assert_eq!(world.committed(), Some(0));
    assert_eq!(again[0].ack().unwrap(), Settled::Done);
    assert_eq!(world.committed(), Some(1));
    assert_eq!(world.store.dead_letters("billing").count(), 0);
}

#[test]
fn what_is_dropped_comes_again_at_once() {
    let world = World::new();
    world.fill(2);
    let consumer = world.consumer();
    for _ in 0..50 {
        let batch = consumer.poll(NOW).unwrap();
        assert_eq!(bodies(&batch), ["0", "1"]);
        assert_eq!(batch[0].reconsume_times(), 0, "nobody said that it cannot be handled");
    }
}

#[test]
fn a_consumer_that_closes_gives_back_what_it_holds() {
    let world = World::new();
    world.fill(2);
    let (ann, bob) = (world.consumer(), world.consumer());
    let held = ann.poll(NOW).unwrap();
    assert!(bob.poll(NOW).unwrap().is_empty());
    ann.close();
    assert_eq!(held[0].ack().unwrap(), Settled::LeaseLost);
    assert_eq!(bodies(&bob.poll(NOW).unwrap()), ["0", "1"]);
    assert!(matches!(ann.poll(NOW), Err(Error::Closed)));
}

#[test]
fn a_message_that_is_never_handled_in_time_becomes_a_dead_letter() {
    let world = World::new();
    world.put(Message::new("orders", "poison").key("k").tag("t"));
    let builder = world.store.consumer("billing").subscribe("orders", TagFilter::any());
    let consumer = builder.max_reconsume_times(16).open().unwrap();
    let mut given_out = 0;
    loop {
        let batch = consumer.poll(NOW).unwrap();
        if batch.is_empty() {
            break;
        }
        assert_eq!(batch[0].reconsume_times(), given_out);
        given_out += 1;
        std::mem::forget(batch);
        world.clock.advance(LEASE);
    }
    assert_eq!(given_out, 17, "once, and again sixteen times");
    assert_eq!(world.committed(), Some(1));
    let letters = world.store.dead_letters("billing");
    let list = letters.list(10).unwrap();
    let record = list[0].record();
    assert_eq!((record.topic(), record.body()), ("%DLQ%billing", &b"poison"[..]));
    assert_eq!((record.keys(), record.tags()), (Some("k"), Some("t")));
    assert_eq!(record.properties().get("DLQ_ORIGIN_TOPIC"), Some("orders"));
    assert_eq!(record.properties().get("RETRY_TOPIC"), Some("orders"));
    let origin = world.store.get_at(0).unwrap().unwrap().record().message_id().to_string();
    assert_eq!(record.properties().get("DLQ_ORIGIN_MESSAGE_ID"), Some(&*origin));
}

#[test]
fn a_broker_finds_the_topics_of_retries_and_dead_letters_in_its_table() {
    let world = World::new();
    world.fill(1);
    let tables = Tables::new_in(DIR, Environment::on(world.disk.shared()));
    let queues = || {
        let table = tables.load::<TopicTable>().unwrap().table;
        ["%RETRY%billing", "%DLQ%billing"]
            .map(|topic| table.get(topic).map(|topic| topic.write_queue_nums))
    };
    let _consumer = world.consumer();
    assert_eq!(queues(), [Some(1), Some(1)]);
}

/// Lets time pass, and what is due be delivered.
fn pass(world: &World, seconds: u64) {
    world.clock.advance(Duration::from_secs(seconds));
    for _ in 0..3 {
        for worker in [StoreWorker::Delivery, StoreWorker::Upkeep, StoreWorker::Flush] {
            while world.store.step(worker) == Next::Now {}
        }
    }
}

#[test]
fn a_message_that_is_retried_comes_again_later_and_later_until_it_is_a_dead_letter() {
    let mut world = World::new();
    world.put(Message::new("orders", "poison").queue(2).key("k").tag("t").wait(false));
    let delays = [10, 30, 60, 120, 180, 240, 300, 360, 420, 480, 540, 600, 1200, 1800, 3600, 7200];
    let mut consumer = world.consumer();
    for (times, delay) in delays.into_iter().enumerate() {
        let batch = consumer.poll(NOW).unwrap();
        assert_eq!(bodies(&batch), ["poison"], "{times}");
        let message = &batch[0];
        assert_eq!((message.topic(), message.reconsume_times()), ("orders", times as u32));
        assert_eq!((message.keys(), message.tags()), (Some("k"), Some("t")));
        if times == 3 {
            let origin = message.get("ORIGIN_MESSAGE_ID").unwrap();
            assert_eq!(
                origin,
                world.store.get_at(0).unwrap().unwrap().record().message_id().to_string()
            );
        }
        assert_eq!(message.retry_later().unwrap(), Settled::Done);
        assert_eq!(message.ack().unwrap(), Settled::LeaseLost);
        drop(batch);
        if times % 5 == 1 {
            drop(consumer);
            world.kill();
            consumer = world.consumer();
        }
        pass(&world, delay - 1);
        assert!(consumer.poll(NOW).unwrap().is_empty(), "{delay} s are not over");
        pass(&world, 1);
    }
    let batch = consumer.poll(NOW).unwrap();
    assert_eq!(batch[0].reconsume_times(), 16);
    assert_eq!(world.store.dead_letters("billing").count(), 0);
    assert_eq!(batch[0].retry_later().unwrap(), Settled::Done);
    pass(&world, 7200);
    assert!(consumer.poll(NOW).unwrap().is_empty());
    let letters = world.store.dead_letters("billing");
    assert_eq!(letters.list(2).unwrap()[0].record().reconsume_times(), 17);
    assert_eq!(letters.count(), 1);

    // Sent back, it has all its retries again.
    assert_eq!(letters.redrive(1).unwrap(), 1);
    let batch = consumer.poll(NOW).unwrap();
    assert_eq!((batch[0].topic(), batch[0].reconsume_times()), ("orders", 0));
    batch[0].retry_later().unwrap();
    pass(&world, 10);
    assert_eq!(consumer.poll(NOW).unwrap()[0].reconsume_times(), 1);
}

#[test]
fn a_consumer_chooses_when_a_message_comes_again() {
    let world = World::new();
    world.fill(2);
    let consumer = world.consumer();
    let batch = consumer.poll(NOW).unwrap();
    batch[0].retry_after(Duration::from_secs(5)).unwrap();
    batch[1].retry_after(Duration::from_millis(7500)).unwrap();
    assert_eq!(world.committed(), Some(2));
    pass(&world, 4);
    assert!(consumer.poll(NOW).unwrap().is_empty());
    pass(&world, 1);
    assert_eq!(bodies(&consumer.poll(NOW).unwrap()), ["0"]);
    pass(&world, 2);
    let again = consumer.poll(NOW).unwrap();
    assert_eq!(bodies(&again), ["0"], "it was dropped");
    again.ack().unwrap();
    assert!(consumer.poll(NOW).unwrap().is_empty());
    pass(&world, 1);
    assert_eq!(bodies(&consumer.poll(NOW).unwrap()), ["1"]);
    world.fill(1);
    let message =
        consumer.poll(NOW).unwrap().into_iter().find(|one| one.view().topic() == "orders");
    let far = message.unwrap().retry_after(Duration::from_secs(365 * 24 * 3600));
    assert!(matches!(far, Err(Error::InvalidMessage(_))), "{far:?}");
}

#[test]
fn letters_with_a_sharding_key_go_back_to_the_queue_of_that_key() {
    let world = World::new();
    for body in ["0", "1", "2"] {
        // Where a producer puts them, of 4 queues.
        world.put(Message::new("orders", body).sharding_key("customer-6").queue(1));
    }
    let consumer = world.consumer();
    for message in consumer.poll(NOW).unwrap() {
        assert_eq!(message.reject().unwrap(), Settled::Done);
    }
    assert_eq!(world.store.topic("orders").unwrap().unwrap().write_queue_nums, 4);
    assert_eq!(world.store.dead_letters("billing").redrive_to_topic(10).unwrap(), 3);
    let again = consumer.poll(NOW).unwrap();
    assert!(again.iter().all(|one| one.queue_id() == 1));
    assert_eq!(bodies(&again), ["0", "1", "2"], "in order");
}

#[test]
fn rejected_messages_are_dead_letters_until_they_are_sent_back_or_given_up() {
    let mut world = World::new();
    world.fill(3);
    let consumer = world.consumer();
    for message in consumer.poll(NOW).unwrap() {
        assert_eq!(message.reject().unwrap(), Settled::Done);
        assert_eq!(message.reject().unwrap(), Settled::LeaseLost);
    }
    assert_eq!(world.committed(), Some(3));
    drop(consumer);
    world.kill();
    let letters = world.store.dead_letters("billing");
    assert_eq!(letters.count(), 3);
    assert_eq!(letters.redrive(1).unwrap(), 1);
    assert_eq!(letters.redrive_to_topic(1).unwrap(), 1);
    assert_eq!(letters.discard(10).unwrap(), 1);
    assert_eq!(letters.redrive(10).unwrap(), 0);
    assert_eq!(letters.count(), 0);
    let other = world.store.consumer("shipping").subscribe("orders", TagFilter::any());
    let other = other.from(ConsumeFrom::First).open().unwrap();
    let mut found = [NOW; 2].map(|now| bodies(&other.poll(now).unwrap()));
    found.sort();
    assert_eq!(found, [vec!["0", "1", "2"], vec!["1"]], "one of them in another queue");
    let consumer = world.consumer();
    let mut seen = Vec::new();
    for _ in 0..2 {
        for message in consumer.poll(NOW).unwrap() {
            assert_eq!(message.topic(), "orders");
            assert_eq!(message.reconsume_times(), 0);
            seen.push(String::from_utf8(message.body().to_vec()).unwrap());
            message.ack().unwrap();
        }
    }
    seen.sort();
    assert_eq!(seen, ["0", "1"]);
    drop((consumer, other));
    world.kill();
    assert_eq!(world.store.dead_letters("billing").count(), 0);
}

#[test]
fn letters_that_were_sent_back_or_given_up_do_not_come_again_when_the_power_fails() {
    type Act = fn(&DeadLetters) -> duralog::Result<usize>;
    let acts: [Act; 4] = [
        |letters| letters.discard(2),
        |letters| letters.redrive(2),
        |letters| letters.redrive_to_topic(2),
        |letters| letters.discard(0),
    ];
    for (act, settled) in acts.into_iter().zip([2, 2, 2, 0]) {
        let mut world = World::new();
        world.fill(3);
        let consumer = world.consumer();
        for message in consumer.poll(NOW).unwrap() {
            message.reject().unwrap();
        }
        world.store.flush_offsets().unwrap();
        let letters = world.store.dead_letters("billing");
        assert_eq!(act(&letters).unwrap(), settled);
        drop((letters, consumer));
        world.disk = world.disk.cut_power(Cut::losing_all());
        world.store = World::open(&world.disk, &world.clock);
        assert_eq!(world.store.dead_letters("billing").count(), 3 - settled as u64);
    }
}

#[test]
fn a_filter_passes_over_what_it_does_not_want() {
    let world = World::new();
    for n in 0..1000 {
        let tag = if n % 500 == 3 { "paid" } else { "placed" };
        world.put(Message::new("orders", n.to_string()).tag(tag));
    }
    let filter = TagFilter::of(["paid"]);
    let builder = world.store.consumer("billing").subscribe("orders", filter);
    let consumer = builder.max_span(10).open().unwrap();
    let batch = consumer.poll(NOW).unwrap();
    assert_eq!(bodies(&batch), ["3", "503"], "nothing between them is in the way");
    assert_eq!(world.committed(), Some(3));
    assert_eq!(batch[0].ack().unwrap(), Settled::Done);
    assert_eq!(world.committed(), Some(503));
    assert!(consumer.poll(NOW).unwrap().is_empty());
    batch.ack().unwrap();
    assert!(consumer.poll(NOW).unwrap().is_empty());
    assert_eq!(world.committed(), Some(1000));
}

#[test]
fn a_message_that_hangs_holds_up_its_queue_at_the_span_and_no_sooner() {
    let world = World::new();
    world.fill(10);
    world.put_to("orders", 1, "other");
    let builder = world.store.consumer("billing").subscribe("orders", TagFilter::any());
    let consumer = builder.max_span(4).batch_max(1).open().unwrap();
    let mut held = Vec::new();
    let mut got = Vec::new();
    for _ in 0..8 {
        let batch = consumer.poll(NOW).unwrap();
        got.extend(bodies(&batch));
        held.extend(batch);
    }
    got.sort();
    assert_eq!(got, ["0", "1", "2", "3", "other"]);
    let first = held.iter().position(|one| one.body() == b"0").unwrap();
    held.swap_remove(first).ack().unwrap();
    assert_eq!(bodies(&consumer.poll(NOW).unwrap()), ["4"]);
}

#[test]
fn in_order_a_queue_has_one_batch_out_and_what_fails_holds_it_up() {
    let world = World::new();
    world.fill(5);
    world.put_to("orders", 1, "other");
    let (ann, bob) = (world.ordered(), world.ordered());
    let mut first = ann.poll_max(3, NOW).unwrap();
    if bodies(&first) == ["other"] {
        first = ann.poll_max(3, NOW).unwrap();
    }
    assert_eq!(bodies(&first), ["0", "1", "2"]);
    assert!(!bodies(&bob.poll(NOW).unwrap()).contains(&"3".to_owned()));
    assert_eq!(first[0].ack().unwrap(), Settled::Done);
    assert_eq!(first[1].retry_later().unwrap(), Settled::Done);
    assert_eq!(first[2].ack().unwrap(), Settled::LeaseLost, "it is to come behind 1");
    drop(first);
    let of_queue_0 = |consumer: &Consumer| {
        let batch = consumer.poll(NOW).unwrap();
        (batch.first().is_some_and(|one| one.queue_id() == 0)).then_some(batch)
    };
    assert!((0..4).all(|_| of_queue_0(&bob).is_none()), "it waits for a second");
    world.clock.advance(Duration::from_secs(1));
    let again = (0..4).find_map(|_| of_queue_0(&bob)).unwrap();
    assert_eq!(bodies(&again), ["1"]);
    assert_eq!(again[0].reconsume_times(), 1);
    again.ack().unwrap();
    let rest = (0..4).find_map(|_| of_queue_0(&ann)).unwrap();
    assert_eq!(bodies(&rest), ["2"]);
    rest.ack().unwrap();
    let rest = (0..4).find_map(|_| of_queue_0(&ann)).unwrap();
    assert_eq!(bodies(&rest), ["3", "4"]);
}

#[test]
fn where_all_get_everything_each_has_its_own_offsets() {
    let mut world = World::new();
    world.fill(2);
    let open = |world: &World, instance: &str| {
        let builder = world.store.consumer("billing").subscribe("orders", TagFilter::any());
        builder.broadcast(instance).max_reconsume_times(1).open().unwrap()
    };
    let (ann, bob) = (open(&world, "ann"), open(&world, "bob"));
    assert_eq!(ann.poll(NOW).unwrap().ack().unwrap(), 2);
    let batch = bob.poll(NOW).unwrap();
    assert_eq!(bodies(&batch), ["0", "1"]);
    assert_eq!(batch[0].retry_later().unwrap(), Settled::Done);
    assert_eq!(batch[1].ack().unwrap(), Settled::Done);
    drop((batch, ann, bob));
    world.kill();
    let (ann, bob) = (open(&world, "ann"), open(&world, "bob"));
    assert!(ann.poll(NOW).unwrap().is_empty());
    let batch = bob.poll(NOW).unwrap();
    assert_eq!(bodies(&batch), ["0", "1"], "1 lies behind one that is not handled");
    batch[1].ack().unwrap();
    batch[0].retry_after(Duration::from_secs(5)).unwrap();
    drop(batch);
    assert!(bob.poll(NOW).unwrap().is_empty());
    world.clock.advance(Duration::from_secs(5));
    assert_eq!(bob.poll(NOW).unwrap()[0].retry_later().unwrap(), Settled::Done);
    world.clock.advance(LONG);
    assert!(bob.poll(NOW).unwrap().is_empty());
    assert_eq!(world.store.dead_letters("billing").count(), 1);
}

#[test]
fn a_new_group_begins_where_it_says_and_remembers_that() {
    let mut world = World::new();
    world.fill(3);
    world.clock.advance(LONG);
    let then = 1_700_000_000_000 + 60_000;
    world.put_to("orders", 0, "3");
    let open = |world: &World, group: &str, from| {
        let builder = world.store.consumer(group).subscribe("orders", TagFilter::any());
        builder.from(from).open().unwrap()
    };
    for (group, from, expected) in [
        ("first", ConsumeFrom::First, &["0", "1", "2", "3"][..]),
        ("timed", ConsumeFrom::Timestamp(then), &["3"][..]),
        ("between", ConsumeFrom::Timestamp(then - 1), &["3"][..]),
        ("ahead", ConsumeFrom::Timestamp(then + 1), &[][..]),
        ("last", ConsumeFrom::Last, &[][..]),
    ] {
        let consumer = open(&world, group, from);
        assert_eq!(bodies(&consumer.poll(NOW).unwrap()), expected, "{group}");
    }
    // A power cut right after it began: what comes now is not passed over.
    world.disk = world.disk.cut_power(Cut::losing_all());
    world.store = World::open(&world.disk, &world.clock);
    world.put_to("orders", 0, "4");
    world.put_to("orders", 7, "5");
    let consumer = open(&world, "last", ConsumeFrom::Last);
    let mut got = bodies(&consumer.poll(NOW).unwrap());
    got.extend(bodies(&consumer.poll(NOW).unwrap()));
    got.sort();
    assert_eq!(got, ["4", "5"], "a new queue begins with its first message");
}

#[test]
fn an_instance_that_wants_another_topic_keeps_its_place_in_what_was_sent_back() {
    for (handled, rest) in [(0, &["0", "1"][..]), (1, &["1"])] {
        let world = World::new();
        let open = |topic: &str| {
            let builder = world.store.consumer("billing").subscribe(topic, TagFilter::any());
            builder.broadcast("one").from(ConsumeFrom::Last).open().unwrap()
        };
        let one = open("orders");
        world.fill(2);
        for message in one.poll(NOW).unwrap() {
            message.reject().unwrap();
        }
        let letters = world.store.dead_letters("billing");
        assert_eq!(letters.redrive(handled).unwrap(), handled);
        assert_eq!(one.poll(NOW).unwrap().ack().unwrap(), handled);
        drop(one);
        letters.redrive(2).unwrap();
        assert_eq!(bodies(&open("refunds").poll(NOW).unwrap()), rest);
    }
}

#[test]
fn a_group_that_came_before_its_topic_gets_everything() {
    let mut world = World::new();
    let builder = world.store.consumer("billing").subscribe("orders", TagFilter::any());
    drop(builder.from(ConsumeFrom::Last).open().unwrap());
    world.fill(1);
    world.put_to("orders", 3, "other");
    world.kill();
    let builder = world.store.consumer("billing").subscribe("orders", TagFilter::any());
    let consumer = builder.from(ConsumeFrom::Last).open().unwrap();
    let mut got = bodies(&consumer.poll(NOW).unwrap());
    got.extend(bodies(&consumer.poll(NOW).unwrap()));
    got.sort();
    assert_eq!(got, ["0", "other"]);
}

#[test]
fn consumers_of_a_group_agree_on_what_it_wants() {
    let world = World::new();
    let subscribe = |topic: &str, filter| world.store.consumer("billing").subscribe(topic, filter);
    let first = subscribe("orders", TagFilter::any()).open().unwrap();
    let others = [
        ("subscription", subscribe("payments", TagFilter::any())),
        ("subscription", subscribe("orders", TagFilter::of(["paid"]))),
        ("mode", subscribe("orders", TagFilter::any()).ordered()),
        ("mode", subscribe("orders", TagFilter::any()).broadcast("ann")),
        ("max_span", subscribe("orders", TagFilter::any()).max_span(7)),
    ];
    for (wanted, other) in others {
        let refused = other.open();
        let names_it = matches!(&refused, Err(Error::Config { field, .. }) if *field == wanted);
        assert!(names_it, "not {wanted}: {refused:?}");
    }
    subscribe("orders", TagFilter::any()).batch_max(1).open().unwrap();
    drop(first);
    let tags = |tags: [&str; 2]| TagFilter::of(tags);
    let first = subscribe("orders", tags(["paid", "sent"])).subscribe("bills", TagFilter::any());
    let first = first.open().unwrap();
    // The same, said in another order.
    let other = subscribe("bills", TagFilter::any()).subscribe("orders", tags(["sent", "paid"]));
    other.open().unwrap();
    drop(first);
    subscribe("orders", TagFilter::of(["paid"])).open().unwrap();
}

#[test]
fn what_no_consumer_can_want_is_refused_by_name() {
    let world = World::new();
    let builder = || world.store.consumer("billing").subscribe("orders", TagFilter::any());
    let refused = |opened: duralog::Result<Consumer>| match opened {
        Err(Error::Config { field, .. }) => field,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(world.store.consumer("billing").open()), "subscription");
    assert_eq!(refused(builder().batch_max(0).open()), "batch_max");
    assert_eq!(refused(builder().max_span(0).open()), "max_span");
    assert_eq!(refused(builder().consume_timeout(Duration::ZERO).open()), "consume_timeout");
    assert!(matches!(
        world.store.consumer("no/group").subscribe("orders", TagFilter::any()).open(),
        Err(Error::InvalidMessage(_) | Error::Config { .. })
    ));
    let mut config = config();
    config.auto_create_topic = false;
    let store = Store::open_in(config, Environment::on(SimDisk::new(2).shared())).unwrap();
    assert!(matches!(
        store.consumer("billing").subscribe("orders", TagFilter::any()).open(),
        Err(Error::UnknownTopic { .. })
    ));
}

#[test]
fn on_a_full_disk_a_message_cannot_be_rejected_and_stays_on_lease() {
    let mut config = config();
    config.log.segment_size = 16 << 10;
    let disk = SimDisk::new(3);
    let store = Store::open_in(config, Environment::on(disk.shared())).unwrap();
    store.put(Message::new("orders", vec![7; 2000])).unwrap().ok().unwrap();
    let consumer = store.consumer("billing").subscribe("orders", TagFilter::any()).open().unwrap();
    let batch = consumer.poll(LONG).unwrap();
    disk.set_capacity(disk.used());
    // Until the log has no room left.
    let full = loop {
        if let Err(error) = store.put(Message::new("filler", vec![7; 2000])) {
            break error;
        }
    };
    assert!(full.is_retryable(), "{full}");
    let refused = batch[0].reject().unwrap_err();
    assert!(refused.is_retryable(), "{refused}");
    assert!(consumer.poll(NOW).unwrap().is_empty(), "it is still on lease");
    disk.set_capacity(u64::MAX);
    let rejected = loop {
        match batch[0].reject() {
            Ok(settled) => break settled,
            Err(error) => assert!(error.is_retryable(), "{error}"),
        }
    };
    assert_eq!(rejected, Settled::Done);
    assert_eq!(store.dead_letters("billing").count(), 1);
}

#[test]
fn a_message_that_waits_for_no_disk_is_set_aside_by_one_that_does() {
    let disk = SimDisk::new(4);
    let config = config().sync_flush_timeout(Duration::from_millis(50));
    let store = Store::open_in(config, Environment::on(disk.shared())).unwrap();
    store.put(Message::new("orders", "x").wait(false)).unwrap().ok().unwrap();
    store.flush().unwrap();
    let consumer = store.consumer("billing").subscribe("orders", TagFilter::any()).open().unwrap();
    let batch = consumer.poll(LONG).unwrap();
    disk.hang_syncs(true);
    assert!(matches!(batch[0].retry_later(), Err(Error::NotOk(_))));
    assert!(matches!(batch[0].reject(), Err(Error::NotOk(_))));
    assert_eq!(store.committed_offset("billing", "orders", 0), Some(0), "it is still here");
    disk.hang_syncs(false);
    assert_eq!(batch[0].retry_later().unwrap(), Settled::Done);
    assert_eq!(store.committed_offset("billing", "orders", 0), Some(1));
}

#[test]
fn lag_says_how_far_a_group_is_behind() {
    let world = World::new();
    world.fill(5);
    let consumer = world.consumer();
    let batch = consumer.poll_max(2, NOW).unwrap();
    batch.ack().unwrap();
    let lag = world.store.lag("billing");
    assert_eq!(lag.len(), 1);
    assert_eq!((&*lag[0].topic, lag[0].queue_id, lag[0].next, lag[0].end), ("orders", 0, 2, 5));
    assert_eq!(lag[0].messages(), 3);
    assert!(world.store.lag("shipping").is_empty());
}

#[test]
fn what_is_sent_back_to_everyone_is_in_the_lag_of_each_and_the_dead_letters_in_that_of_the_group() {
    let world = World::new();
    world.fill(1);
    let builder = world.store.consumer("billing").subscribe("orders", TagFilter::any());
    let one = builder.broadcast("one").open().unwrap();
    let lag = |group: &str| -> Vec<_> {
        let lag = world.store.lag(group).into_iter().filter(|queue| queue.messages() > 0);
        lag.map(|queue| queue.topic).collect()
    };
    let lags = || (lag("billing"), lag("billing%BROADCAST%one"));
    one.poll(NOW).unwrap()[0].reject().unwrap();
    assert_eq!(lags(), (vec!["%DLQ%billing".to_owned()], vec![]));
    world.store.dead_letters("billing").redrive(1).unwrap();
    assert_eq!(lags(), (vec![], vec!["%RETRY%billing".to_owned()]));
    assert_eq!(one.poll(NOW).unwrap().ack().unwrap(), 1);
    assert_eq!(lags(), (vec![], vec![]));
}

/// A store with threads and a clock that runs.
fn running() -> (SimDisk, Store) {
    let disk = SimDisk::new(1);
    let store = Store::open_in(config(), Environment::on(disk.shared())).unwrap();
    (disk, store)
}

fn put(store: &Store, queue: i32, body: &str) {
    store.put(Message::new("orders", body).queue(queue)).unwrap().ok().unwrap();
}

#[test]
fn what_was_not_durable_in_time_is_so_when_the_next_call_returns() {
    type Act<'a> = &'a dyn Fn() -> duralog::Result<()>;
    let disk = SimDisk::new(1);
    let mut config = config();
    config.log.close_timeout = Duration::from_millis(200);
    let store = Store::open_in(config, Environment::on(disk.shared())).unwrap();
    put(&store, 0, "x");
    let builder = |group| store.consumer(group).subscribe("orders", TagFilter::any());
    let consumer = builder("billing").open().unwrap();
    consumer.poll(LONG).unwrap()[0].reject().unwrap();
    let letters = store.dead_letters("billing");
    let discard = || letters.discard(1).map(drop);
    let begin = || builder("other").from(ConsumeFrom::Last).open().map(drop);
    // Its topics are noted from now on.
    while begin().is_err() {}
    store.forget_offsets("other", "orders").unwrap();
    for act in [&discard as Act<'_>, &begin] {
        while store.flush_offsets().is_err() {}
        disk.hang_syncs(true);
        for _ in 0..2 {
            assert!(matches!(act(), Err(Error::OffsetsNotDurable)));
        }
        disk.hang_syncs(false);
        while act().is_err() {}
    }
    let clock = Arc::new(ManualClock::new(1_700_000_000_000));
    let store = World::open(&disk.cut_power(Cut::losing_all()), &clock);
    assert_eq!(store.dead_letters("billing").count(), 0);
    assert_eq!(store.committed_offset("other", "orders", 0), Some(1));
}

#[test]
fn a_waiting_consumer_is_woken_by_new_messages_new_queues_and_what_goes_back() {
    let (_disk, store) = running();
    let open = || store.consumer("billing").subscribe("orders", TagFilter::any()).open().unwrap();
    let (ann, bob) = (open(), open());
    let (told, heard) = mpsc::channel();
    let waiter = std::thread::spawn(move || {
        loop {
            match bob.poll(LONG) {
                Ok(batch) => told.send(batch).unwrap(),
                Err(error) => break error,
            }
        }
    });
    put(&store, 0, "first");
    let first = heard.recv().unwrap();
    assert_eq!(bodies(&first), ["first"]);
    put(&store, 5, "second");
    let second = heard.recv().unwrap();
    assert_eq!(bodies(&second), ["second"]);
    drop(first);
    let first = heard.recv().unwrap();
    assert_eq!(bodies(&first), ["first"]);
    drop(second);
    let second = heard.recv().unwrap();
    assert_eq!(bodies(&second), ["second"]);
    drop((ann, first, second));
    store.close().unwrap();
    assert!(matches!(waiter.join().unwrap(), Error::Closed));
}

#[test]
fn a_listener_settles_each_message_as_its_handler_says() {
    let (_disk, store) = running();
    for body in ["good", "bad", "dead", "panics"] {
        put(&store, 0, body);
    }
    let builder = store.consumer("billing").subscribe("orders", TagFilter::any());
    let consumer = builder.ordered().max_reconsume_times(1).open().unwrap();
    let (seen, heard) = mpsc::channel();
    let listener = consumer
        .listen(3, move |message| {
            let body = String::from_utf8(message.body().to_vec())?;
            let again = message.reconsume_times() > 0;
            seen.send((body.clone(), again))?;
            match (&*body, again) {
                ("good", _) => Ok(Handled::Done),
                ("bad", false) => Ok(Handled::RetryAfter(Duration::from_millis(1))),
                ("bad", true) => Ok(Handled::Done),
                ("dead", _) => Ok(Handled::Reject),
                _ => panic!("as it is meant to"),
            }
        })
        .unwrap();
    let expected =
        [("good", false), ("bad", false), ("bad", true), ("dead", false), ("panics", false)];
    for (body, again) in expected {
        assert_eq!(heard.recv().unwrap(), (body.to_owned(), again));
    }
    assert_eq!(heard.recv_timeout(LONG).unwrap(), ("panics".to_owned(), true));
    // The second panic is the last: the poison goes to the dead letters, a second later.
    while store.dead_letters("billing").count() < 2 {
        std::thread::yield_now();
    }
    assert!(listener.trouble().is_none());
    listener.close().unwrap();
    assert_eq!(store.committed_offset("billing", "orders", 0), Some(4));
}

#[test]
fn side_by_side_every_message_is_handled_once() {
    let (_disk, store) = running();
    let count = 2000;
    for n in 0..count {
        drop(store.submit(Message::new("orders", n.to_string()).queue(n % 4)).unwrap());
    }
    store.flush().unwrap();
    let consumers: Vec<_> = (0..3)
        .map(|_| store.consumer("billing").subscribe("orders", TagFilter::any()).open().unwrap())
        .collect();
    let handled = Arc::new(Mutex::new(Vec::new()));
    let (told, heard) = mpsc::channel();
    let listeners: Vec<_> = consumers
        .iter()
        .map(|consumer| {
            let (handled, told) = (handled.clone(), told.clone());
            let handle = move |message: &duralog::delivery::Received| {
                handled.lock().unwrap().push(String::from_utf8(message.body().to_vec())?);
                told.send(())?;
                Ok(Handled::Done)
            };
            consumer.listen(4, handle).unwrap()
        })
        .collect();
    (0..count).for_each(|_| heard.recv_timeout(LONG).unwrap());
    listeners.into_iter().for_each(|listener| listener.close().unwrap());
    let handled = handled.lock().unwrap();
    assert_eq!(handled.len(), count as usize);
    assert_eq!(handled.iter().collect::<BTreeSet<_>>().len(), count as usize);
    let lag: u64 = store.lag("billing").iter().map(|queue| queue.messages()).sum();
    assert_eq!(lag, 0);
}

#[test]
fn a_handler_that_hangs_past_its_lease_does_not_keep_the_message() {
    let (_disk, store) = running();
    put(&store, 0, "hangs");
    let builder = store.consumer("billing").subscribe("orders", TagFilter::any());
    let consumer = builder.consume_timeout(Duration::from_millis(20)).open().unwrap();
    let (release, hold) = mpsc::channel::<()>();
    let hold = Mutex::new(hold);
    let (seen, heard) = mpsc::channel();
    let listener = consumer
        .listen(2, move |message| {
            seen.send(message.reconsume_times())?;
            if message.reconsume_times() == 0 {
                let _ = hold.lock().unwrap().recv();
            }
            Ok(Handled::Done)
        })
        .unwrap();
    assert_eq!(heard.recv_timeout(LONG).unwrap(), 0);
    assert_eq!(heard.recv_timeout(LONG).unwrap(), 1);
    while store.committed_offset("billing", "orders", 0) != Some(1) {
        std::thread::yield_now();
    }
    drop(release);
    listener.close().unwrap();
}

#[test]
fn a_listener_ends_while_nothing_comes() {
    let (_disk, store) = running();
    let consumer = store.consumer("billing").subscribe("orders", TagFilter::any()).open().unwrap();
    let listener = consumer.listen(4, |_| Ok(Handled::Done)).unwrap();
    let started = Instant::now();
    listener.close().unwrap();
    assert!(started.elapsed() < LONG, "it was stopped, not waited for");
    let listener = consumer.listen(1, |_| Ok(Handled::Done)).unwrap();
    store.close().unwrap();
    drop(listener);
}
