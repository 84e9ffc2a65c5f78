//! Consumers among messages and names that are meant to hurt, and faults where they hurt most.

use duralog::clock::ManualClock;
use duralog::delivery::dedup::Once;
use duralog::delivery::{ConsumeFrom, Consumer, ConsumerBuilder, Event, Handled, Settled, Watch};
use duralog::disk::{Cut, SimDisk};
use duralog::message::names;
use duralog::replication::{ReplicaBehaviour, ScriptedReplica};
use duralog::{
    Environment, Error, FlushMode, InvalidMessage, Message, Next, Store, StoreConfig, StoreWorker,
    TagFilter,
};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

const NOW: Duration = Duration::ZERO;
const LONG: Duration = Duration::from_secs(60);

fn config() -> StoreConfig {
    let mut config = StoreConfig::new("/store").segment_size(256 << 10);
    config.index_enable = false;
    config
}

fn stepped(disk: &SimDisk, clock: &Arc<ManualClock>) -> Store {
    let environment = Environment::on(disk.shared()).clock(clock.clone()).stepped();
    Store::open_in(config(), environment).unwrap()
}

fn world() -> (SimDisk, Arc<ManualClock>, Store) {
    let (disk, clock) = (SimDisk::new(1), Arc::new(ManualClock::new(1_700_000_000_000)));
    let store = stepped(&disk, &clock);
    (disk, clock, store)
}

fn put(store: &Store, message: Message) {
    while store.step(StoreWorker::Upkeep) == Next::Now {}
    let ticket = store.try_submit(message).unwrap();
    store.flush().unwrap();
    ticket.wait().unwrap().ok().unwrap();
}

fn deliver(store: &Store) {
    for _ in 0..3 {
        for worker in [StoreWorker::Delivery, StoreWorker::Upkeep, StoreWorker::Flush] {
            while store.step(worker) == Next::Now {}
        }
    }
}

fn builder(store: &Store) -> ConsumerBuilder {
    store.consumer("billing").subscribe("orders", TagFilter::any())
}

/// Of each of the three kinds of groups.
fn of_kind(kind: u32, store: &Store) -> ConsumerBuilder {
    match kind {
        0 => builder(store),
        1 => builder(store).ordered(),
        _ => builder(store).broadcast("ann"),
    }
}

fn body(consumer: &Consumer) -> Option<String> {
    let batch = consumer.poll(NOW).unwrap();
    let body = batch.first().map(|one| String::from_utf8_lossy(one.body()).into_owned());
    batch.ack().unwrap();
    body
}

#[test]
fn dead_letters_that_are_sent_back_come_to_every_kind_of_group() {
    for kind in 0..3 {
        let (_disk, _clock, store) = world();
        put(&store, Message::new("orders", "x"));
        let consumer = of_kind(kind, &store).open().unwrap();
        assert_eq!(consumer.poll(NOW).unwrap()[0].reject().unwrap(), Settled::Done);
        assert_eq!(store.dead_letters("billing").redrive(10).unwrap(), 1);
        assert_eq!(body(&consumer).as_deref(), Some("x"), "{kind}");
    }
}

#[test]
fn a_group_that_begins_with_what_comes_next_keeps_its_retries() {
    let (disk, clock, store) = world();
    put(&store, Message::new("orders", "x"));
    let consumer = builder(&store).open().unwrap();
    assert_eq!(consumer.poll(NOW).unwrap()[0].retry_later().unwrap(), Settled::Done);
    clock.advance(Duration::from_secs(10));
    deliver(&store);
    drop((consumer, store));
    let store = stepped(&disk.kill(), &clock);
    let consumer = builder(&store).from(ConsumeFrom::Last).open().unwrap();
    assert_eq!(body(&consumer).as_deref(), Some("x"));
}

#[test]
fn under_async_flush_what_takes_a_messages_place_is_durable_before_it_is_passed_over() {
    for what in 0..3 {
        let disk = SimDisk::new(what);
        let mut config = config();
        let hour = Duration::from_secs(3600);
        config = config.flush_mode(FlushMode::Async {
            interval: hour,
            least_pages: 1 << 20,
            thorough_interval: hour,
        });
        let open = |disk: &SimDisk| {
            Store::open_in(config.clone(), Environment::on(disk.shared())).unwrap()
        };
        let store = open(&disk);
        store.put(Message::new("orders", "x")).unwrap().ok().unwrap();
        store.flush().unwrap();
        let consumer = builder(&store).open().unwrap();
        let batch = consumer.poll(LONG).unwrap();
        match what {
            0 => batch[0].reject().unwrap(),
            1 => batch[0].retry_later().unwrap(),
            _ => {
                batch[0].reject().unwrap();
                assert_eq!(store.dead_letters("billing").redrive(1).unwrap(), 1);
                Settled::Done
            }
        };
        store.flush_offsets().unwrap();
        let cut = disk.cut_power(Cut::losing_all());
        drop((batch, consumer, store));
        let store = open(&cut);
        assert_eq!(store.committed_offset("billing", "orders", 0), Some(1));
        let kept = [
            store.dead_letters("billing").count(),
            store.max_offset("SCHEDULE_TOPIC_XXXX", 2).unwrap_or(0),
            store.max_offset("%RETRY%billing", 0).unwrap_or(0),
        ];
        assert_eq!(kept.iter().sum::<u64>(), 1, "{what}: {kept:?}");
    }
}

#[test]
fn in_order_nothing_is_handled_behind_a_message_that_could_not_be_set_aside() {
    let disk = SimDisk::new(4);
    let config = config().sync_flush_timeout(Duration::from_millis(50));
    let store = Store::open_in(config, Environment::on(disk.shared())).unwrap();
    for n in 0..3 {
        // On a busy machine not in time, perhaps.
        let _ = store.put(Message::new("orders", n.to_string())).unwrap().status;
    }
    store.flush().unwrap();
    let consumer = builder(&store).ordered().open().unwrap();
    disk.hang_syncs(true);
    let (seen, heard) = mpsc::channel();
    let listener = consumer
        .listen(1, move |message| {
            seen.send(message.queue_offset())?;
            Ok(Handled::Reject)
        })
        .unwrap();
    assert_eq!(heard.recv_timeout(LONG).unwrap(), 0);
    while listener.trouble().is_none() {
        std::thread::yield_now();
    }
    disk.hang_syncs(false);
    listener.close().unwrap();
    assert!(heard.try_recv().is_err(), "1 and 2 come behind 0");
    assert_eq!(store.committed_offset("billing", "orders", 0), Some(0));
}

#[test]
fn whatever_a_handler_does_but_say_that_it_is_done_is_a_failure() {
    /// Panics again when it is dropped.
    struct Grenade;

    impl Drop for Grenade {
        fn drop(&mut self) {
            panic!("dropped");
        }
    }

    let store = Store::open_in(config(), Environment::on(SimDisk::new(6).shared())).unwrap();
    let (tell, told) = mpsc::channel();
    let tell = std::sync::Mutex::new(tell);
    let watch = Watch::new(move |event| {
        if let Event::HandlerFailed { group, message, reason } = event {
            let body = String::from_utf8_lossy(message.body()).into_owned();
            tell.lock().unwrap().send((group.to_string(), body, reason.to_string())).unwrap();
        }
    });
    store.observe(watch).unwrap();
    let (settle, settled) = mpsc::channel();
    let consumer = builder(&store).max_reconsume_times(0).open().unwrap();
    let listener = consumer
        .listen(1, move |message| {
            let body = String::from_utf8(message.body().to_vec())?;
            settle.send(body.clone())?;
            match body.as_str() {
                "error" => Err("no such order")?,
                "panic" => panic!("no such {}", "customer"),
                "grenade" => std::panic::panic_any(Grenade),
                "later" => Ok(Handled::RetryLater),
                _ => Ok(Handled::Done),
            }
        })
        .unwrap();
    let bodies = ["error", "panic", "grenade", "later", "done"];
    for body in bodies {
        store.put(Message::new("orders", body)).unwrap().ok().unwrap();
        assert_eq!(settled.recv_timeout(LONG).unwrap(), body);
    }
    listener.close().unwrap();
    let expected =
        [("error", "no such order"), ("panic", "no such customer"), ("grenade", "a panic")];
    for (body, reason) in expected {
        let heard = told.recv_timeout(LONG).unwrap();
        assert_eq!(heard, ("billing".to_owned(), body.to_owned(), reason.to_owned()));
    }
    assert!(told.try_recv().is_err());
    // They may not be retried, and none of them was taken for handled.
    let letters = store.dead_letters("billing");
    let letters = letters.list(10).unwrap();
    let letters: Vec<_> = letters.iter().map(|one| one.body().to_vec()).collect();
    assert_eq!(letters, bodies[..4].iter().map(|body| body.as_bytes()).collect::<Vec<_>>());
}

#[test]
fn a_waiting_consumer_gets_what_another_one_holds_too_long() {
    let store = Store::open_in(config(), Environment::on(SimDisk::new(5).shared())).unwrap();
    let open = || builder(&store).consume_timeout(Duration::from_millis(100)).open().unwrap();
    for round in 0..5 {
        let (ann, bob) = (open(), open());
        let waiter = std::thread::spawn(move || ann.poll(LONG).unwrap());
        store.put(Message::new("orders", round.to_string())).unwrap().ok().unwrap();
        let first = bob.poll(NOW).unwrap();
        // Whoever has it hangs.
        std::mem::forget(first);
        let got = waiter.join().unwrap();
        assert!(!got.is_empty(), "round {round}");
        got.ack().unwrap();
    }
}

#[test]
fn a_dead_letter_that_is_not_safe_in_time_is_not_made_again_and_again() {
    let disk = SimDisk::new(6);
    let config = config().sync_flush_timeout(Duration::from_millis(20));
    let store = Store::open_in(config, Environment::on(disk.shared())).unwrap();
    store.put(Message::new("orders", "x")).unwrap().ok().unwrap();
    let lease = Duration::from_millis(1);
    let hangs = builder(&store).max_reconsume_times(0).consume_timeout(lease).open().unwrap();
    std::mem::forget(hangs.poll(LONG).unwrap());
    let consumer = builder(&store).max_reconsume_times(0).open().unwrap();
    disk.hang_syncs(true);
    let refused = loop {
        match consumer.poll(Duration::from_millis(10)) {
            Ok(batch) => assert!(batch.is_empty()),
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, Error::NotOk(_)), "{refused}");
    assert!(consumer.poll(Duration::from_millis(50)).unwrap().is_empty());
    disk.hang_syncs(false);
    store.flush().unwrap();
    assert_eq!(store.dead_letters("billing").count(), 1);
}

/// A store with threads, a message in it, and a disk that is about to hang.
fn about_to_hang(seed: u64) -> (SimDisk, Store) {
    let disk = SimDisk::new(seed);
    let config = config().sync_flush_timeout(Duration::from_millis(20));
    let store = Store::open_in(config, Environment::on(disk.shared())).unwrap();
    store.put(Message::new("orders", "x")).unwrap().ok().unwrap();
    (disk, store)
}

/// How many messages were set aside: to come again later, in a second, or never.
fn set_aside(store: &Store) -> [u64; 3] {
    let of = |topic, queue| store.max_offset(topic, queue).unwrap_or(0);
    let later = (2..18).map(|queue| of("SCHEDULE_TOPIC_XXXX", queue)).sum();
    [later, of("SCHEDULE_TOPIC_XXXX", 0), of("%DLQ%billing", 0)]
}

#[test]
fn a_copy_that_is_not_safe_in_time_is_waited_for_and_not_made_again() {
    let (disk, store) = about_to_hang(7);
    let consumer = builder(&store).open().unwrap();
    let batch = consumer.poll(LONG).unwrap();
    let second = Duration::from_secs(1);
    disk.hang_syncs(true);
    for _ in 0..3 {
        assert!(matches!(batch[0].retry_later(), Err(Error::NotOk(_))));
        assert!(matches!(batch[0].retry_after(second), Err(Error::NotOk(_))));
        assert!(matches!(batch[0].reject(), Err(Error::NotOk(_))));
    }
    disk.hang_syncs(false);
    assert_eq!(batch[0].retry_later().unwrap(), Settled::Done);
    assert_eq!(batch[0].reject().unwrap(), Settled::LeaseLost);
    store.flush().unwrap();
    assert_eq!(set_aside(&store), [1, 1, 1]);
    assert_eq!(store.committed_offset("billing", "orders", 0), Some(1));
    // The next message begins anew.
    store.put(Message::new("orders", "y")).unwrap().ok().unwrap();
    let batch = consumer.poll(LONG).unwrap();
    assert_eq!(batch[0].retry_later().unwrap(), Settled::Done);
    assert_eq!(set_aside(&store), [2, 1, 1]);
}

#[test]
fn a_copy_is_waited_for_also_under_the_next_lease() {
    let (disk, store) = about_to_hang(8);
    let lease = Duration::from_millis(50);
    let consumer = builder(&store).consume_timeout(lease).open().unwrap();
    let first = consumer.poll(LONG).unwrap();
    disk.hang_syncs(true);
    assert!(matches!(first[0].retry_later(), Err(Error::NotOk(_))));
    let second = consumer.poll(LONG).unwrap();
    assert_eq!(first[0].retry_later().unwrap(), Settled::LeaseLost);
    disk.hang_syncs(false);
    // Ever again, should this thread not come to it in time.
    let mut again = second;
    while again[0].retry_later().unwrap() != Settled::Done {
        again = consumer.poll(LONG).unwrap();
    }
    assert_eq!(set_aside(&store), [1, 0, 0]);
}

#[test]
fn a_dead_letter_is_waited_for_where_it_is_made_by_the_group() {
    let (disk, store) = about_to_hang(9);
    let lease = Duration::from_millis(1);
    let open = || builder(&store).max_reconsume_times(0).consume_timeout(lease).open().unwrap();
    let consumer = open();
    std::mem::forget(consumer.poll(LONG).unwrap());
    disk.hang_syncs(true);
    let mut refused = 0;
    while refused < 2 {
        match consumer.poll(LONG) {
            Ok(batch) => assert!(batch.is_empty()),
            Err(error) => {
                assert!(matches!(error, Error::NotOk(_)), "{error}");
                refused += 1;
            }
        }
    }
    disk.hang_syncs(false);
    while store.committed_offset("billing", "orders", 0) != Some(1) {
        // It may have become safe in the meantime, or not.
        let _ = consumer.poll(Duration::from_millis(10));
    }
    assert_eq!(set_aside(&store), [0, 0, 1]);
}

#[test]
fn a_copy_that_replicas_have_not_confirmed_is_waited_for() {
    let at_once = ReplicaBehaviour::Confirm { delay: Duration::ZERO };
    for without in [ReplicaBehaviour::Silent, ReplicaBehaviour::Absent] {
        let replica = ScriptedReplica::new(at_once);
        let mut config = config();
        config.sync_replica_timeout = Duration::from_millis(20);
        let environment = Environment::on(SimDisk::new(10).shared());
        let store = Store::open_replicated(config, environment, replica.clone()).unwrap();
        store.put(Message::new("orders", "x")).unwrap().ok().unwrap();
        let consumer = builder(&store).open().unwrap();
        let batch = consumer.poll(LONG).unwrap();
        replica.behave(without);
        for _ in 0..3 {
            assert!(matches!(batch[0].reject(), Err(Error::NotOk(_))));
        }
        replica.behave(at_once);
        // What was put where replicas were out of reach is not awaited, but looked at.
        let started = Instant::now();
        let settled = loop {
            match batch[0].reject() {
                Err(Error::NotOk(_)) if started.elapsed() < LONG => std::thread::yield_now(),
                settled => break settled.unwrap(),
            }
        };
        assert_eq!(settled, Settled::Done);
        assert_eq!(set_aside(&store), [0, 0, 1]);
        drop((batch, consumer));
        store.close().unwrap();
    }
}

#[test]
fn a_group_that_could_set_nothing_aside_is_refused() {
    let (_disk, _clock, store) = world();
    let long = "g".repeat(123);
    for group in ["a@b", "a.b", "", "a/b", "x%BROADCAST%y", &long] {
        for kind in 0..3 {
            let builder = store.consumer(group).subscribe("orders", TagFilter::any());
            let opened = match kind {
                0 => builder.open(),
                1 => builder.ordered().open(),
                _ => builder.broadcast("ann").open(),
            };
            assert!(opened.is_err(), "{group:?} {kind}");
        }
    }
    assert!(builder(&store).broadcast("a/b").open().is_err());
    for own in ["%RETRY%billing", "%DLQ%billing"] {
        assert!(matches!(
            builder(&store).subscribe(own, TagFilter::any()).open(),
            Err(Error::Config { field: "subscription", .. })
        ));
    }
    assert!(store.topics().is_empty(), "nothing was made of them");
}

#[test]
fn no_delay_of_a_retry_panics_or_spins() {
    for kind in 0..3 {
        let (_disk, clock, store) = world();
        put(&store, Message::new("orders", "x"));
        let consumer = of_kind(kind, &store).open().unwrap();
        let batch = consumer.poll(NOW).unwrap();
        for far in [Duration::MAX, Duration::from_secs(4 * 24 * 3600)] {
            let refused = batch[0].retry_after(far);
            let too_long = InvalidMessage::DelayTooLong { delay_ms: 0, max_ms: 0 };
            let same = std::mem::discriminant(&too_long);
            assert!(
                matches!(&refused, Err(Error::InvalidMessage(why))
                    if std::mem::discriminant(why) == same),
                "{kind}: {refused:?}"
            );
        }
        assert_eq!(batch[0].retry_after(Duration::ZERO).unwrap(), Settled::Done);
        drop(batch);
        assert!(consumer.poll(NOW).unwrap().is_empty(), "{kind}: a millisecond at least");
        clock.advance(Duration::from_millis(1));
        deliver(&store);
        assert_eq!(body(&consumer).as_deref(), Some("x"), "{kind}");
    }
}

#[test]
fn a_message_that_says_how_it_was_delayed_or_what_it_cancels_comes_again_all_the_same() {
    let levels = [(names::DELAY, "7"), (names::TIMER_DELAY_SEC, "7"), (names::TIMER_DELAY_MS, "7")];
    let times = [(names::TIMER_DELIVER_MS, "7"), (names::TIMER_OUT_MS, "7")];
    let cancels = [(names::TIMER_DELETE_UNIQUE_KEY, "orders+k")];
    for (name, value) in levels.into_iter().chain(times).chain(cancels) {
        for delay in [1000, 1500] {
            let (_disk, clock, store) = world();
            put(&store, Message::new("orders", "x").property(name, value));
            let consumer = builder(&store).open().unwrap();
            let delay = Duration::from_millis(delay);
            assert_eq!(consumer.poll(NOW).unwrap()[0].retry_after(delay).unwrap(), Settled::Done);
            for _ in 0..3 {
                clock.advance(Duration::from_secs(1));
                deliver(&store);
            }
            assert_eq!(body(&consumer).as_deref(), Some("x"), "{name}, {delay:?}");
        }
    }
}

#[test]
fn a_message_without_room_for_more_properties_is_set_aside_all_the_same() {
    let (_disk, clock, store) = world();
    let full = Message::new("orders", "x").unique_key("id").property("fat", "y".repeat(32_700));
    put(&store, full.clone());
    put(&store, full);
    let consumer = builder(&store).open().unwrap();
    let batch = consumer.poll(NOW).unwrap();
    assert_eq!(batch[0].retry_later().unwrap(), Settled::Done);
    assert_eq!(batch[1].reject().unwrap(), Settled::Done);
    drop(batch);
    clock.advance(Duration::from_secs(10));
    deliver(&store);
    let again = consumer.poll(NOW).unwrap();
    assert_eq!((again[0].topic(), again[0].unique_key()), ("orders", Some("id")));
    assert_eq!(store.dead_letters("billing").count(), 1);
}

#[test]
fn a_dead_letter_without_room_for_more_properties_is_handled_when_it_is_sent_back() {
    for fat in (32_500..32_740).step_by(10) {
        let (_disk, _clock, store) = world();
        put(&store, Message::new("orders", "x").unique_key("k").property("fat", "y".repeat(fat)));
        let consumer = builder(&store).open().unwrap();
        assert_eq!(consumer.poll(NOW).unwrap()[0].reject().unwrap(), Settled::Done);
        drop(consumer);
        let consumer = builder(&store).open().unwrap();
        let dedup = consumer.deduplicator().open().unwrap();
        assert_eq!(dedup.known_keys(), 1);
        assert_eq!(store.dead_letters("billing").redrive_to_topic(1).unwrap(), 1);
        let batch = consumer.poll(NOW).unwrap();
        let once = dedup.handle(&batch[0], || Ok::<_, Error>(())).unwrap();
        assert_eq!(once, Once::Ran(()), "{fat}");
    }
}

#[test]
fn a_message_that_leaves_no_room_to_say_where_it_comes_from_is_refused_and_not_taken_for_handled() {
    for own in (32_600..32_740).step_by(10) {
        let (_disk, _clock, store) = world();
        put(&store, Message::new("orders", "x").unique_key("k".repeat(own)));
        let consumer = builder(&store).open().unwrap();
        match consumer.poll(NOW).unwrap()[0].reject() {
            Err(Error::TooLarge { what: "properties", .. }) => continue,
            rejected => assert_eq!(rejected.unwrap(), Settled::Done, "{own}"),
        }
        let [letter] = &store.dead_letters("billing").list(9).unwrap()[..] else { panic!("{own}") };
        assert!(letter.record().properties().get("ORIGIN_MESSAGE_ID").is_some(), "{own}");
    }
}

#[test]
fn what_a_producer_says_of_retries_means_nothing() {
    let (_disk, clock, store) = world();
    let forged = Message::new("orders", "x")
        .property("RETRY_TOPIC", "SCHEDULE_TOPIC_XXXX")
        .property("ORIGIN_MESSAGE_ID", "nobody")
        .reconsume_times(17);
    put(&store, forged);
    let consumer = builder(&store).open().unwrap();
    let batch = consumer.poll(NOW).unwrap();
    assert_eq!((batch[0].topic(), batch[0].reconsume_times()), ("orders", 0));
    assert_eq!(batch[0].retry_later().unwrap(), Settled::Done);
    drop(batch);
    assert_eq!(store.dead_letters("billing").count(), 0);
    clock.advance(Duration::from_secs(10));
    deliver(&store);
    let batch = consumer.poll(NOW).unwrap();
    assert_eq!((batch[0].topic(), batch[0].reconsume_times()), ("orders", 1));
    assert_ne!(batch[0].get("ORIGIN_MESSAGE_ID"), Some("nobody"));
    batch[0].reject().unwrap();
    assert_eq!(store.dead_letters("billing").redrive_to_topic(1).unwrap(), 1);
    assert_eq!(body(&consumer).as_deref(), Some("x"));
}

#[test]
fn letters_that_come_from_nowhere_are_sent_nowhere() {
    let (_disk, _clock, store) = world();
    for topic in [None, Some("%RETRY%billing"), Some("%DLQ%billing"), Some("SCHEDULE_TOPIC_XXXX")] {
        let letter = Message::new("%DLQ%billing", "x");
        put(
            &store,
            match topic {
                Some(topic) => letter.property("RETRY_TOPIC", topic),
                None => letter,
            },
        );
    }
    let letters = store.dead_letters("billing");
    for left in (1..=4).rev() {
        assert_eq!(letters.count(), left);
        let refused = letters.redrive_to_topic(usize::MAX);
        assert!(
            matches!(refused, Err(Error::InvalidMessage(InvalidMessage::SystemTopic { .. }))),
            "{refused:?}"
        );
        assert_eq!(letters.discard(1).unwrap(), 1);
    }
    assert_eq!(store.max_offset("%DLQ%billing", 0), Some(4));
}

#[test]
fn a_new_group_lags_from_its_beginning() {
    let (_disk, _clock, store) = world();
    put(&store, Message::new("orders", "x"));
    let _consumer = builder(&store).open().unwrap();
    let lag = store.lag("billing");
    assert_eq!((lag.len(), lag[0].messages()), (1, 1));
}

#[test]
fn one_dead_letter_that_finds_no_room_holds_up_no_other() {
    let (disk, clock, store) = world();
    for n in 0..3 {
        put(&store, Message::new("%RETRY%billing", n.to_string()).reconsume_times(5));
    }
    let consumer = builder(&store).max_reconsume_times(2).open().unwrap();
    drop(consumer.poll(NOW).unwrap());
    disk.set_capacity(disk.used());
    while store.submit(Message::new("filler", vec![7; 500])).is_ok() {
        store.flush().unwrap();
        while store.step(StoreWorker::Upkeep) == Next::Now {}
    }
    assert!(matches!(consumer.poll(NOW), Err(Error::DiskFull { .. })));
    assert_eq!(store.dead_letters("billing").count(), 0);
    disk.set_capacity(u64::MAX);
    // Once they have rested, and there is a segment again.
    for _ in 0..3 {
        clock.advance(Duration::from_secs(1));
        while store.step(StoreWorker::Upkeep) == Next::Now {}
        let _ = consumer.poll(NOW);
    }
    assert_eq!(store.dead_letters("billing").count(), 3);
}

/// An error of a handler that cannot be shown.
#[derive(Debug)]
struct Sly;

impl std::fmt::Display for Sly {
    fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        panic!("planted")
    }
}

impl std::error::Error for Sly {}

#[test]
fn a_listener_outlives_an_error_that_panics_when_it_is_shown() {
    let store = Store::open_in(config(), Environment::on(SimDisk::new(1).shared())).unwrap();
    let consumer = builder(&store).open().unwrap();
    let (tell, told) = mpsc::channel();
    let listener = consumer.listen(1, move |message| {
        if message.body() == b"bad" {
            return Err(Sly.into());
        }
        tell.send(())?;
        Ok(Handled::Done)
    });
    let listener = listener.unwrap();
    for body in ["bad", "good"] {
        store.put(Message::new("orders", body).queue(0)).unwrap().ok().unwrap();
    }
    told.recv_timeout(LONG).expect("nobody listens any more");
    listener.close().unwrap();
    store.close().unwrap();
}

#[test]
fn whoever_sets_a_message_aside_that_somebody_is_setting_aside_waits_for_the_same_copy() {
    let (disk, clock) = (SimDisk::new(1), Arc::new(ManualClock::new(1_700_000_000_000)));
    let environment = Environment::on(disk.shared()).clock(clock.clone());
    let store = Store::open_in(config(), environment).unwrap();
    store.put(Message::new("orders", "x")).unwrap().ok().unwrap();
    let lease = Duration::from_millis(200);
    let open = || builder(&store).consume_timeout(lease).open().unwrap();
    let consumers = [open(), open(), open()];
    let mut rejecting = Vec::new();
    for consumer in &consumers {
        let batch = consumer.poll(LONG).unwrap();
        assert_eq!(batch.len(), 1);
        disk.hang_syncs(true);
        let laid = store.stats().watermarks.appended;
        rejecting.push(std::thread::spawn(move || batch[0].reject().unwrap()));
        if rejecting.len() == 1 {
            let started = Instant::now();
            while store.stats().watermarks.appended == laid {
                assert!(started.elapsed() < LONG, "no copy is made");
                std::thread::yield_now();
            }
        }
        // The lease runs out while the copy is on its way.
        clock.advance(lease);
    }
    disk.hang_syncs(false);
    let settled: Vec<_> = rejecting.into_iter().map(|one| one.join().unwrap()).collect();
    assert_eq!(store.dead_letters("billing").count(), 1, "{settled:?}");
    store.close().unwrap();
}

#[test]
fn an_instance_that_begins_with_what_is_to_come_gets_nothing_that_was_sent_back_before() {
    let (_disk, clock, store) = world();
    let open = |name: &str| builder(&store).broadcast(name).from(ConsumeFrom::Last).open().unwrap();
    let one = open("one");
    put(&store, Message::new("orders", "x"));
    assert_eq!(one.poll(NOW).unwrap()[0].reject().unwrap(), Settled::Done);
    assert_eq!(store.dead_letters("billing").redrive(1).unwrap(), 1);
    clock.advance(Duration::from_secs(1));
    assert_eq!(body(&one).as_deref(), Some("x"));
    assert_eq!(body(&open("two")), None);
    // One that was there before gets what is sent back while it is away.
    drop(one);
    put(&store, Message::new("orders", "y"));
    let one = open("one");
    assert_eq!(one.poll(NOW).unwrap()[0].reject().unwrap(), Settled::Done);
    drop(one);
    assert_eq!(store.dead_letters("billing").redrive(1).unwrap(), 1);
    assert_eq!(body(&open("one")).as_deref(), Some("y"));
}

#[test]
fn nothing_is_noted_of_a_group_that_has_no_dead_letters_to_discard() {
    let (_disk, _clock, store) = world();
    assert_eq!(store.dead_letters("nobody").discard(9).unwrap(), 0);
    assert!(store.committed_offsets().is_empty());
}
