//! Copies and what becomes of them: once where mark and effect commit together, and otherwise as often as is
//! promised.

#[path = "support/rng.rs"]
mod rng;

use duralog::clock::ManualClock;
use duralog::delivery::dedup::{Deduplicator, Mark, Marks, Once, SqliteDedup};
use duralog::delivery::{Consumer, ConsumerBuilder, Received};
use duralog::disk::{Cut, CutMoment, SimDisk};
use duralog::message::names;
use duralog::{
    Environment, Error, Message, Next, Result, Store, StoreConfig, StoreWorker, TagFilter,
};
use rng::Rng;
use rusqlite::Connection;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

const NOW: Duration = Duration::ZERO;
const QUEUES: i32 = 2;
const DAY: Duration = Duration::from_secs(24 * 3600);

fn config() -> StoreConfig {
    let mut config = StoreConfig::new("/store").segment_size(16 << 10);
    config.consume_queue_file_size = 20 * 64;
    config.index_enable = false;
    config
}

fn subscribed(store: &Store) -> ConsumerBuilder {
    store.consumer("billing").subscribe("orders", TagFilter::any())
}

/// Puts a message into a store that nobody but the caller drives.
fn put(store: &Store, message: Message) -> Result<()> {
    while store.step(StoreWorker::Upkeep) == Next::Now {}
    let ticket = store.try_submit(message)?;
    for worker in [StoreWorker::Upkeep, StoreWorker::Flush, StoreWorker::Upkeep] {
        while store.step(worker) == Next::Now {}
    }
    ticket.wait()?.ok().map(drop)
}

/// Delivers what is due.
fn deliver(store: &Store) {
    for worker in [StoreWorker::Upkeep, StoreWorker::Delivery, StoreWorker::Flush] {
        while store.step(worker) == Next::Now {}
    }
    while store.step(StoreWorker::Delivery) == Next::Now {}
}

fn key_of(message: &Received) -> String {
    message.unique_key().expect("a key").to_owned()
}

// Marks in a database.

fn open_marks() -> (Connection, Arc<ManualClock>, SqliteDedup) {
    let database = Connection::open_in_memory().unwrap();
    database.execute_batch("CREATE TABLE effects (key TEXT)").unwrap();
    let clock = Arc::new(ManualClock::new(1_700_000_000_000));
    let dedup = SqliteDedup::open(&database, "billing").unwrap().clock(clock.clone());
    (database, clock, dedup)
}

fn effects(database: &Connection) -> i64 {
    database.query_row("SELECT count(*) FROM effects", [], |row| row.get(0)).unwrap()
}

fn once(dedup: &SqliteDedup, database: &mut Connection, key: &str) -> Once<()> {
    let insert = |transaction: &rusqlite::Transaction<'_>| -> Result<()> {
        transaction.execute("INSERT INTO effects VALUES (?1)", [key])?;
        Ok(())
    };
    dedup.once(database, key, insert).unwrap()
}

#[test]
fn an_effect_happens_once_for_a_key_and_a_scope_and_again_when_it_is_forgotten() {
    let (mut database, clock, dedup) = open_marks();
    assert_eq!(once(&dedup, &mut database, "a"), Once::Ran(()));
    assert_eq!(once(&dedup, &mut database, "a"), Once::AlreadyDone);
    assert_eq!(once(&dedup, &mut database, "b"), Once::Ran(()));
    let other = SqliteDedup::open(&database, "mailing").unwrap().clock(clock.clone());
    assert_eq!(once(&other, &mut database, "a"), Once::Ran(()));
    clock.advance(7 * DAY - Duration::from_millis(1));
    assert_eq!(once(&dedup, &mut database, "a"), Once::AlreadyDone);
    clock.advance(Duration::from_millis(1));
    assert_eq!(once(&dedup, &mut database, "a"), Once::Ran(()));
    assert_eq!(effects(&database), 4);
}

#[test]
fn an_effect_that_fails_or_panics_leaves_no_trace() {
    let (mut database, _, dedup) = open_marks();
    let failed: Result<Once<()>> = dedup.once(&mut database, "a", |transaction| {
        transaction.execute("INSERT INTO effects VALUES ('a')", [])?;
        Err(Error::Full)
    });
    assert!(matches!(failed, Err(Error::Full)));
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        dedup.once::<(), Error>(&mut database, "a", |transaction| {
            transaction.execute("INSERT INTO effects VALUES ('a')", [])?;
            panic!("half-way")
        })
    }));
    assert!(panicked.is_err());
    assert_eq!(effects(&database), 0);
    assert_eq!(once(&dedup, &mut database, "a"), Once::Ran(()));
}

/// Of a database that takes every key.
struct AnyKey;

impl Marks for AnyKey {
    fn begin(&mut self, _: &str, _: i64, _: i64) -> Result<Mark> {
        Ok(Mark::Fresh)
    }

    fn succeed(&mut self, _: &str, _: i64) -> Result<()> {
        Ok(())
    }

    fn fail(&mut self, _: &str, _: i64) -> Result<()> {
        Ok(())
    }
}

#[test]
fn messages_without_a_key_are_not_taken_for_copies_of_each_other() {
    let (mut database, _, dedup) = open_marks();
    let refused = [
        dedup.once::<(), Error>(&mut database, "", |_| panic!("it ran")).map(drop),
        dedup.guarded::<(), Error>(&database, "", || panic!("it ran")).map(drop),
        AnyKey.run::<(), Error>("", dedup.times(), |_| panic!("it ran")).map(drop),
        dedup.marks(&database).begin("", 0, 1).map(drop),
        dedup.marks(&database).succeed("", 1),
    ];
    assert!(refused.iter().all(|it| matches!(it, Err(Error::EmptyKey))), "{refused:?}");
    assert_eq!(once(&dedup, &mut database, "a"), Once::Ran(()), "no transaction is left open");

    // The built-in one has a way to do without.
    let bench = Bench::new();
    let consumer = subscribed(&bench.store).open().unwrap();
    let dedup = consumer.deduplicator().key(|view| {
        let record = view.record();
        Some(record.tags().unwrap_or_default().to_owned())
    });
    let dedup = dedup.open().unwrap();
    for key in ["a", "b"] {
        bench.put(key);
    }
    assert_eq!(bench.handle(&consumer, &dedup), ["a", "b"]);
    assert_eq!(dedup.known_keys(), 0);
    assert_eq!(
        consumer.deduplicator().key(|_| Some(String::new())).open().unwrap().known_keys(),
        0
    );
}

/// As SQLite does by itself where it runs out of room or of memory.
fn roll_back(database: &Connection) {
    let refused = "CREATE TABLE IF NOT EXISTS one (id INTEGER PRIMARY KEY);
        INSERT INTO one VALUES (1); INSERT OR ROLLBACK INTO one VALUES (1)";
    database.execute_batch(refused).unwrap_err();
    assert!(database.is_autocommit());
}

#[test]
fn an_effect_whose_transaction_is_over_is_not_marked_though_it_says_that_all_is_well() {
    for begins_anew in [false, true] {
        let (mut database, _, dedup) = open_marks();
        let result = dedup.once(&mut database, "a", |transaction| {
            transaction.execute("INSERT INTO effects VALUES ('a')", [])?;
            roll_back(transaction);
            if begins_anew {
                transaction.execute_batch("BEGIN")?;
            }
            Ok::<_, Error>(())
        });
        assert!(matches!(result, Err(Error::RolledBack)), "{result:?}");
        assert!(database.is_autocommit(), "nothing is left open");
        assert_eq!(effects(&database), 0);
        assert_eq!(once(&dedup, &mut database, "a"), Once::Ran(()));
        assert_eq!(effects(&database), 1);
    }
}

#[test]
fn marks_of_a_transaction_are_not_made_when_it_is_over() {
    let (mut database, _, dedup) = open_marks();
    let times = dedup.times();
    let until = times.processing_until_ms;
    let transaction = database.transaction().unwrap();
    let mut marks = dedup.marks(&transaction);
    assert_eq!(marks.begin("a", times.now_ms, until).unwrap(), Mark::Fresh);
    roll_back(&transaction);
    // Somebody else, in the same millisecond.
    let mut others = dedup.marks(&transaction);
    assert_eq!(others.begin("a", times.now_ms, until).unwrap(), Mark::Fresh);
    let over = [
        marks.succeed("a", times.done_until_ms),
        marks.fail("a", until),
        marks.begin("b", times.now_ms, until).map(drop),
    ];
    assert!(over.iter().all(|it| matches!(it, Err(Error::RolledBack))), "{over:?}");
    assert_eq!(others.begin("a", times.now_ms, until).unwrap(), Mark::Processing);
    assert_eq!(others.begin("b", times.now_ms, until).unwrap(), Mark::Fresh);
}

#[test]
fn marks_that_have_run_out_are_forgotten_as_others_are_made() {
    let (mut database, clock, dedup) = open_marks();
    let dedup = dedup.keep(DAY);
    for number in 0..50 {
        assert_eq!(once(&dedup, &mut database, &number.to_string()), Once::Ran(()));
    }
    clock.advance(DAY);
    for number in 100..120 {
        assert_eq!(once(&dedup, &mut database, &number.to_string()), Once::Ran(()));
    }
    let count = "SELECT count(*) FROM duralog_marks";
    let left: i64 = database.query_row(count, [], |row| row.get(0)).unwrap();
    assert_eq!(left, 20);
}

#[test]
fn while_somebody_is_at_a_key_nobody_else_is_until_his_time_is_up() {
    let (database, clock, dedup) = open_marks();
    let dedup = dedup.processing_timeout(Duration::from_secs(60));
    let in_progress = || match dedup.guarded::<(), Error>(&database, "a", || panic!("another")) {
        Err(error @ Error::InProgress { .. }) => assert!(error.is_retryable()),
        other => panic!("{other:?}"),
    };
    let ran = dedup.guarded(&database, "a", || {
        in_progress();
        Err::<(), _>(Error::Full)
    });
    assert!(matches!(ran, Err(Error::Full)));
    // It was taken back. The next one vanishes.
    let times = dedup.times();
    let begin = |now| {
        let until = now + 60_000;
        dedup.marks(&database).begin("a", now, until).unwrap()
    };
    assert_eq!(begin(times.now_ms), Mark::Fresh);
    in_progress();
    assert_eq!(begin(times.now_ms + 59_999), Mark::Processing);
    clock.advance(Duration::from_secs(60));
    let ran = dedup.guarded(&database, "a", || {
        // He comes back after his time.
        dedup.marks(&database).fail("a", times.now_ms + 60_000)?;
        in_progress();
        Ok::<_, Error>(())
    });
    assert_eq!(ran.unwrap(), Once::Ran(()));
    assert_eq!(begin(times.now_ms + 61_000), Mark::Done);
    assert_eq!(dedup.guarded::<(), Error>(&database, "a", || Ok(())).unwrap(), Once::AlreadyDone);
}

// The built-in one.

struct Bench {
    clock: Arc<ManualClock>,
    disk: SimDisk,
    store: Store,
}

impl Bench {
    fn new() -> Self {
        let (disk, clock) = (SimDisk::new(1), Arc::new(ManualClock::new(1_700_000_000_000)));
        let store = Self::open(&disk, &clock);
        Self { clock, disk, store }
    }

    fn open(disk: &SimDisk, clock: &Arc<ManualClock>) -> Store {
        let environment = Environment::on(disk.shared()).clock(clock.clone()).stepped();
        Store::open_in(config(), environment).unwrap()
    }

    fn reopen(self) -> Self {
        let Self { clock, disk, store } = self;
        store.close().unwrap();
        drop(store);
        let store = Self::open(&disk, &clock);
        Self { clock, disk, store }
    }

    fn put(&self, key: &str) {
        put(&self.store, Message::new("orders", "x").unique_key(key)).unwrap();
    }

    fn consumer(&self) -> (Consumer, Deduplicator) {
        let consumer = subscribed(&self.store).open().unwrap();
        let dedup = consumer.deduplicator().open().unwrap();
        (consumer, dedup)
    }

    /// Handles what is there; the keys of those that ran.
    fn handle(&self, consumer: &Consumer, dedup: &Deduplicator) -> Vec<String> {
        let mut ran = Vec::new();
        loop {
            let batch = consumer.poll(NOW).unwrap();
            if batch.is_empty() {
                return ran;
            }
            for message in batch {
                let key = key_of(&message);
                if let Once::Ran(()) = dedup.handle(&message, || Ok::<_, Error>(())).unwrap() {
                    ran.push(key);
                }
                message.ack().unwrap();
            }
        }
    }
}

#[test]
fn a_copy_of_what_has_succeeded_is_not_handled_in_this_life_nor_in_the_next() {
    let bench = Bench::new();
    let (consumer, dedup) = bench.consumer();
    for key in ["a", "b", "a"] {
        bench.put(key);
    }
    assert_eq!(bench.handle(&consumer, &dedup), ["a", "b"]);
    bench.put("b");
    assert_eq!(bench.handle(&consumer, &dedup), [""; 0]);
    drop((consumer, dedup));
    let bench = bench.reopen();
    let (consumer, dedup) = bench.consumer();
    assert_eq!(dedup.known_keys(), 2);
    for key in ["b", "a", "c"] {
        bench.put(key);
    }
    assert_eq!(bench.handle(&consumer, &dedup), ["c"]);
}

#[test]
fn another_group_and_one_that_was_taken_back_handle_everything() {
    let bench = Bench::new();
    let (consumer, dedup) = bench.consumer();
    for key in ["a", "b", "c"] {
        bench.put(key);
    }
    assert_eq!(bench.handle(&consumer, &dedup), ["a", "b", "c"]);
    let other = bench.store.consumer("mailing").subscribe("orders", TagFilter::any());
    let other = other.open().unwrap();
    let others = other.deduplicator().open().unwrap();
    assert_eq!(bench.handle(&other, &others), ["a", "b", "c"]);
    drop((consumer, dedup));
    bench.store.commit_offset("billing", "orders", 0, 1).unwrap();
    let (consumer, dedup) = bench.consumer();
    assert_eq!(bench.handle(&consumer, &dedup), ["b", "c"]);
}

#[test]
fn what_fails_is_handled_again_until_it_succeeds() {
    let bench = Bench::new();
    let (consumer, dedup) = bench.consumer();
    bench.put("a");
    bench.put("a");
    let batch = consumer.poll(NOW).unwrap();
    let failed = dedup.handle(&batch[0], || Err::<(), _>("not now"));
    assert_eq!(failed, Err("not now"));
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        dedup.handle::<(), Error>(&batch[0], || panic!("not now"))
    }));
    assert!(panicked.is_err());
    // The other copy will do.
    assert_eq!(dedup.handle(&batch[1], || Ok::<_, Error>(7)).unwrap(), Once::Ran(7));
    assert_eq!(dedup.handle(&batch[0], || Ok::<_, Error>(8)).unwrap(), Once::AlreadyDone);
}

#[test]
fn a_retry_is_handled_though_the_group_is_done_with_the_message_that_it_stands_for() {
    for reopens in [false, true] {
        let bench = Bench::new();
        let (consumer, dedup) = bench.consumer();
        bench.put("a");
        for message in consumer.poll(NOW).unwrap() {
            message.retry_after(Duration::from_secs(1)).unwrap();
        }
        drop((consumer, dedup));
        let bench = if reopens { bench.reopen() } else { bench };
        bench.clock.advance(Duration::from_secs(2));
        let (consumer, dedup) = bench.consumer();
        assert_eq!(dedup.known_keys(), 1);
        deliver(&bench.store);
        assert_eq!(bench.handle(&consumer, &dedup), ["a"]);
        // Whoever sends it now sends a copy.
        bench.put("a");
        assert_eq!(bench.handle(&consumer, &dedup), [""; 0]);
    }
}

#[test]
fn the_retry_of_a_message_without_an_id_has_none_and_is_known_as_a_copy_of_it() {
    for delay in [1000, 1500] {
        let bench = Bench::new();
        put(&bench.store, Message::new("orders", "x")).unwrap();
        let consumer = subscribed(&bench.store).consume_timeout(Duration::from_secs(10));
        let consumer = consumer.open().unwrap();
        let dedup = consumer.deduplicator().open().unwrap();
        let slow = consumer.poll(NOW).unwrap();
        bench.clock.advance(Duration::from_secs(11));
        // Somebody else gets it, and cannot handle it now; the slow one succeeds nonetheless.
        let delay = Duration::from_millis(delay);
        consumer.poll(NOW).unwrap()[0].retry_after(delay).unwrap();
        assert_eq!(dedup.handle(&slow[0], || Ok::<_, Error>(())).unwrap(), Once::Ran(()));
        bench.clock.advance(delay);
        deliver(&bench.store);
        let again = consumer.poll(NOW).unwrap();
        assert_eq!((again.len(), again[0].unique_key()), (1, None));
        let once = dedup.handle(&again[0], || Ok::<_, Error>(())).unwrap();
        assert_eq!(once, Once::AlreadyDone, "{delay:?}");
    }
}

#[test]
fn a_dead_letter_that_is_sent_back_is_handled() {
    for to_topic in [false, true] {
        let bench = Bench::new();
        let (consumer, dedup) = bench.consumer();
        bench.put("a");
        for message in consumer.poll(NOW).unwrap() {
            message.reject().unwrap();
        }
        drop((consumer, dedup));
        let bench = bench.reopen();
        let (consumer, dedup) = bench.consumer();
        assert_eq!(bench.handle(&consumer, &dedup), [""; 0]);
        let letters = bench.store.dead_letters("billing");
        let sent = if to_topic { letters.redrive_to_topic(9) } else { letters.redrive(9) };
        assert_eq!(sent.unwrap(), 1);
        assert_eq!(bench.handle(&consumer, &dedup), ["a"]);
    }
}

#[test]
fn as_many_keys_are_known_as_were_asked_for_and_for_as_long() {
    let bench = Bench::new();
    let (consumer, dedup) = bench.consumer();
    for number in 0..600 {
        bench.put(&number.to_string());
        bench.clock.advance(Duration::from_secs(1));
    }
    bench.handle(&consumer, &dedup);
    let known = |builder: duralog::delivery::dedup::DeduplicatorBuilder| {
        let dedup = builder.open().unwrap();
        // Without a trace in the queue.
        for number in 0..600 {
            bench.put(&number.to_string());
        }
        let mut ran = Vec::new();
        loop {
            let batch = consumer.poll(NOW).unwrap();
            if batch.is_empty() {
                break ran;
            }
            for message in batch {
                if dedup.handle(&message, || Ok::<_, Error>(())).unwrap() == Once::Ran(()) {
                    ran.push(key_of(&message));
                }
                message.ack().unwrap();
            }
        }
    };
    let firsts = |count: usize| (0..count).map(|it| it.to_string()).collect::<Vec<_>>();
    // Those that come again take the places of others.
    let window = Duration::from_secs(250);
    assert_eq!(known(consumer.deduplicator().window(window)), firsts(350));
    assert_eq!(known(consumer.deduplicator().max_keys(600)), firsts(0));
    assert_eq!(consumer.deduplicator().max_keys(40).open().unwrap().known_keys(), 40);
    let refused = consumer.deduplicator().max_keys(0).open();
    assert!(matches!(refused, Err(Error::Config { field: "max_keys", .. })));
}

/// The keys that a deduplicator knows at its start are those of which a copy is not handled.
fn known_at_start(bench: &Bench, max_keys: usize, keys: &[String]) -> Vec<String> {
    let consumer = subscribed(&bench.store).open().unwrap();
    let dedup = consumer.deduplicator().max_keys(max_keys).open().unwrap();
    assert!(dedup.known_keys() <= max_keys);
    let mut known = Vec::new();
    for key in keys {
        bench.put(key);
        for message in consumer.poll(NOW).unwrap() {
            if dedup.handle(&message, || Err::<(), ()>(())).is_ok() {
                known.push(key_of(&message));
            }
            message.ack().unwrap();
        }
    }
    known
}

#[test]
fn the_newest_keys_are_known_after_a_restart_however_many_queues_they_lie_in() {
    let bench = Bench::new();
    let (consumer, dedup) = bench.consumer();
    let key = |number: i32| format!("key-{number}");
    for number in 0..16 * 120 {
        let message = Message::new("orders", "x").unique_key(key(number)).queue(number % 16);
        put(&bench.store, message).unwrap();
        bench.clock.advance(Duration::from_millis(1));
    }
    while !bench.handle(&consumer, &dedup).is_empty() {}
    drop((consumer, dedup));
    let bench = bench.reopen();
    let last = |count: i32| (16 * 120 - count..16 * 120).map(key).collect::<Vec<_>>();
    assert_eq!(known_at_start(&bench, 100, &last(120)), last(100));
}

#[test]
fn copies_of_one_message_and_messages_of_others_take_no_places() {
    let bench = Bench::new();
    let paid = || bench.store.consumer("billing").subscribe("orders", TagFilter::of(["paid"]));
    let consumer = paid().open().unwrap();
    for number in 0..6000 {
        let tag = if number % 200 == 0 { "paid" } else { "placed" };
        let message = Message::new("orders", "x").unique_key(number.to_string()).tag(tag);
        put(&bench.store, message).unwrap();
    }
    for _ in 0..20 {
        put(&bench.store, Message::new("orders", "x").unique_key("again").tag("paid")).unwrap();
    }
    loop {
        let batch = consumer.poll(NOW).unwrap();
        if batch.is_empty() && bench.store.committed_offset("billing", "orders", 0) == Some(6020) {
            break;
        }
        batch.ack().unwrap();
    }
    assert_eq!(consumer.deduplicator().max_keys(25).open().unwrap().known_keys(), 25);
    assert_eq!(consumer.deduplicator().open().unwrap().known_keys(), 31);
}

#[test]
fn what_the_group_did_not_ask_for_is_not_taken_for_handled() {
    let bench = Bench::new();
    let tagged = |tag: &str| {
        let message = Message::new("orders", "x").unique_key("a").tag(tag);
        put(&bench.store, message).unwrap();
    };
    tagged("placed");
    let paid = bench.store.consumer("billing").subscribe("orders", TagFilter::of(["paid"]));
    let consumer = paid.open().unwrap();
    assert!(consumer.poll(NOW).unwrap().is_empty());
    assert_eq!(bench.store.committed_offset("billing", "orders", 0), Some(1));
    let dedup = consumer.deduplicator().open().unwrap();
    tagged("paid");
    assert_eq!(bench.handle(&consumer, &dedup), ["a"]);
}

#[test]
fn an_application_has_keys_of_its_own() {
    let bench = Bench::new();
    let consumer = subscribed(&bench.store).open().unwrap();
    let builder = consumer.deduplicator().key(|view| {
        let record = view.record();
        record.keys().map(|key| format!("{key} {}", record.tags().unwrap_or_default()))
    });
    let dedup = builder.open().unwrap();
    let put_order = |key: &str, order: &str, tag: &str| {
        let message = Message::new("orders", "x").unique_key(key).tag(tag);
        let message = if order.is_empty() { message } else { message.key(order) };
        put(&bench.store, message).unwrap();
    };
    put_order("a", "42", "placed");
    put_order("b", "42", "paid");
    put_order("c", "42", "paid");
    put_order("d", "", "paid");
    put_order("d", "", "paid");
    assert_eq!(bench.handle(&consumer, &dedup), ["a", "b", "d", "d"]);
}

#[test]
fn of_two_copies_in_the_hands_of_two_threads_one_is_handled() {
    let bench = Bench::new();
    let (consumer, dedup) = bench.consumer();
    for round in 0..50 {
        let key = round.to_string();
        bench.put(&key);
        bench.put(&key);
        let batch = consumer.poll(NOW).unwrap();
        let ran = AtomicU32::new(0);
        let (began, other) = mpsc::channel::<()>();
        thread::scope(|scope| {
            scope.spawn(|| {
                let first = dedup.handle(&batch[0], || {
                    began.send(()).unwrap();
                    ran.fetch_add(1, Ordering::SeqCst);
                    // Time enough for the other one.
                    for _ in 0..1000 {
                        thread::yield_now();
                    }
                    assert_eq!(ran.load(Ordering::SeqCst), 1, "both at once");
                    if round % 2 == 0 { Ok(()) } else { Err(Error::Full) }
                });
                assert_eq!(first.is_ok(), round % 2 == 0);
                drop(began);
            });
            other.recv().unwrap();
            let second = dedup.handle(&batch[1], || {
                ran.fetch_add(1, Ordering::SeqCst);
                Ok::<_, Error>(())
            });
            let expected = if round % 2 == 0 { Once::AlreadyDone } else { Once::Ran(()) };
            assert_eq!(second.unwrap(), expected);
        });
        batch.ack().unwrap();
    }
}

// Whatever crashes.

/// How a handler marks what it has done.
#[derive(Debug, Clone, Copy, PartialEq)]
enum How {
    /// In the transaction of the effect.
    InTransaction,
    /// Before it, in one of its own.
    First,
    /// After it, in one of its own.
    Afterwards,
    /// As the consumer group does.
    BuiltIn,
}

/// What is wrong.
#[derive(Debug, PartialEq)]
enum Wrong {
    Lost(String),
    Repeated(String),
}

#[derive(Default)]
struct Counts {
    put: usize,
    copies: usize,
    handled: usize,
    passed: usize,
    crashes: usize,
    again: usize,
    seconds: usize,
}

/// The process ends here.
struct Crash;

struct World {
    seed: u64,
    rng: Rng,
    how: How,
    disk: SimDisk,
    clock: Arc<ManualClock>,
    database: Connection,
    dedup: SqliteDedup,
    running: Option<(Store, Consumer, Deduplicator)>,
    held: Vec<Received>,
    /// Put with `PutOk`.
    sure: BTreeSet<String>,
    next: u64,
    /// For the built-in one, whose effects are outside: how often each has happened.
    effects: BTreeMap<String, u32>,
    /// In this life.
    succeeded: BTreeSet<String>,
    /// Of which the group was done with an original at the start of this life.
    settled: BTreeSet<String>,
    wrong: Option<Wrong>,
    counts: Counts,
}

impl World {
    fn new(seed: u64, how: How) -> Self {
        let database = Connection::open_in_memory().expect("a database");
        database
            .execute_batch("CREATE TABLE effects (key TEXT PRIMARY KEY, times INTEGER)")
            .expect("created");
        let dedup = SqliteDedup::open(&database, "billing").expect("created");
        let clock = Arc::new(ManualClock::new(1_700_000_000_000));
        let mut world = Self {
            seed,
            rng: Rng(seed),
            how,
            disk: SimDisk::new(seed),
            dedup: dedup.clock(clock.clone()),
            clock,
            database,
            running: None,
            held: Vec::new(),
            sure: BTreeSet::new(),
            next: 0,
            effects: BTreeMap::new(),
            succeeded: BTreeSet::new(),
            settled: BTreeSet::new(),
            wrong: None,
            counts: Counts::default(),
        };
        world.open();
        world
    }

    fn open(&mut self) {
        self.succeeded.clear();
        while self.running.is_none() {
            match self.try_open() {
                Ok(running) => self.running = Some(running),
                Err(error) => {
                    assert!(self.disk.is_down(), "seed {}: {error}", self.seed);
                    self.disk = self.disk.reboot(Cut::seeded(self.rng.next()));
                }
            }
        }
        self.settled.clear();
        let (store, ..) = self.running.as_ref().expect("it runs");
        for queue in 0..QUEUES {
            let end = store.committed_offset("billing", "orders", queue).unwrap_or(0);
            let before = store.get("orders", queue, 0, end as usize).expect("readable").messages;
            self.settled.extend(before.iter().filter_map(|it| Some(it.unique_key()?.to_owned())));
        }
    }

    fn try_open(&self) -> Result<(Store, Consumer, Deduplicator)> {
        let environment = Environment::on(self.disk.shared()).clock(self.clock.clone()).stepped();
        let store = Store::open_in(config(), environment)?;
        let consumer = subscribed(&store).max_span(20).open()?;
        // Time passes here by hours.
        let dedup = consumer.deduplicator().window(365 * DAY).open()?;
        Ok((store, consumer, dedup))
    }

    fn crash(&mut self) {
        self.counts.crashes += 1;
        if self.disk.is_down() {
            self.forget();
            self.disk = self.disk.reboot(Cut::seeded(self.rng.next()));
        } else {
            self.disk.disarm();
            let disk = match self.rng.below(3) {
                0 => self.disk.cut_power(Cut::seeded(self.rng.next())),
                _ => self.disk.kill(),
            };
            self.forget();
            self.disk = disk;
        }
        self.open();
    }

    fn forget(&mut self) {
        self.held.clear();
        self.running = None;
    }

    /// After a call failed: that may only be because the power did.
    fn failed(&mut self, error: &Error) {
        assert!(self.disk.is_down(), "seed {}: {error}", self.seed);
        self.crash();
    }

    fn store(&self) -> &Store {
        &self.running.as_ref().expect("it runs").0
    }

    fn put(&mut self) {
        let copy = self.next > 0 && self.rng.below(4) == 0;
        let number = if copy { self.rng.below(self.next) } else { self.next };
        self.next = self.next.max(number + 1);
        let key = format!("k{number}");
        let queue = self.rng.below(QUEUES as u64) as i32;
        let message = Message::new("orders", "x").unique_key(&key).queue(queue);
        match put(self.store(), message) {
            Ok(()) => {
                self.counts.put += 1;
                self.counts.copies += usize::from(copy);
                self.sure.insert(key);
            }
            Err(error) => self.failed(&error),
        }
    }

    fn poll(&mut self) {
        let (_, consumer, _) = self.running.as_ref().expect("it runs");
        match consumer.poll_max(4, NOW) {
            Ok(batch) => self.held.extend(batch),
            Err(error) => self.failed(&error),
        }
    }

    fn settle(&mut self) {
        if self.held.is_empty() {
            return;
        }
        let which = self.rng.index(self.held.len());
        let message = self.held.remove(which);
        let settled = match self.rng.below(12) {
            0 => message.retry_later(),
            1 => message.reject(),
            2 => return drop(message),
            _ => {
                // In which of its steps the process ends, if it does.
                let ends = self.rng.below(24);
                match self.handle(&message, ends) {
                    Ok(()) => message.ack(),
                    Err(Crash) => {
                        drop(message);
                        return self.crash();
                    }
                }
            }
        };
        if let Err(error) = settled {
            drop(message);
            self.failed(&error);
        }
    }

    /// Handles a message; the process may end in one of its steps.
    fn handle(&mut self, message: &Received, ends: u64) -> std::result::Result<(), Crash> {
        let key = key_of(message);
        let crash = |step: u64| if step == ends { Err(Crash) } else { Ok(()) };
        crash(0)?;
        let done = match self.how {
            How::InTransaction => self.in_transaction(&key, ends)?,
            How::First => self.mark_first(&key, ends)?,
            How::Afterwards => self.mark_afterwards(&key, ends)?,
            How::BuiltIn => self.built_in(message, &key, ends)?,
        };
        match done {
            Once::Ran(()) => self.counts.handled += 1,
            Once::AlreadyDone => self.counts.passed += 1,
        }
        // Before it is acknowledged.
        crash(3)
    }

    fn in_transaction(&mut self, key: &str, ends: u64) -> std::result::Result<Once<()>, Crash> {
        let ended = |step: u64| if step == ends { Err(Error::Closed) } else { Ok(()) };
        let once = self.dedup.once(&mut self.database, key, |transaction| {
            ended(1)?;
            transaction.execute(EFFECT, [key])?;
            ended(2)
        });
        match once {
            Err(Error::Closed) => Err(Crash),
            other => Ok(other.expect("a sound database")),
        }
    }

    /// What looks right at first: whoever gets the mark does it.
    fn mark_first(&mut self, key: &str, ends: u64) -> std::result::Result<Once<()>, Crash> {
        let times = self.dedup.times();
        let mut marks = self.dedup.marks(&self.database);
        if marks.begin(key, times.now_ms, times.done_until_ms).expect("sound") != Mark::Fresh {
            return Ok(Once::AlreadyDone);
        }
        marks.succeed(key, times.done_until_ms).expect("a sound database");
        if ends == 1 {
            return Err(Crash);
        }
        self.database.execute(EFFECT, [key]).expect("a sound database");
        if ends == 2 { Err(Crash) } else { Ok(Once::Ran(())) }
    }

    fn mark_afterwards(&mut self, key: &str, ends: u64) -> std::result::Result<Once<()>, Crash> {
        let times = self.dedup.times();
        let mut marks = self.dedup.marks(&self.database);
        match marks.begin(key, times.now_ms, times.now_ms).expect("a sound database") {
            Mark::Done => return Ok(Once::AlreadyDone),
            Mark::Fresh | Mark::Processing => {}
        }
        if ends == 1 {
            return Err(Crash);
        }
        self.database.execute(EFFECT, [key]).expect("a sound database");
        if ends == 2 {
            return Err(Crash);
        }
        let mut marks = self.dedup.marks(&self.database);
        marks.succeed(key, times.done_until_ms).expect("a sound database");
        Ok(Once::Ran(()))
    }

    fn built_in(
        &mut self,
        message: &Received,
        key: &str,
        ends: u64,
    ) -> std::result::Result<Once<()>, Crash> {
        let (_, _, dedup) = self.running.as_ref().expect("it runs");
        let (effects, mut ran) = (&mut self.effects, false);
        let once = dedup.handle(message, || {
            if ends == 1 {
                return Err(Crash);
            }
            ran = true;
            *effects.entry(key.to_owned()).or_default() += 1;
            if ends == 2 { Err(Crash) } else { Ok(()) }
        });
        if ran {
            let is_second = message.view().topic() != "orders"
                || message.get(names::ORIGIN_MESSAGE_ID).is_some();
            let again = !self.succeeded.insert(key.to_owned());
            let was_settled = self.settled.contains(key) && !is_second;
            if again || was_settled {
                self.wrong.get_or_insert(Wrong::Repeated(key.to_owned()));
            }
            self.counts.seconds += usize::from(is_second);
        }
        once
    }

    fn deliver(&mut self) {
        self.clock.advance(Duration::from_secs(self.rng.below(60)));
        deliver(self.store());
        if self.disk.is_down() {
            self.crash();
        }
    }

    fn redrive(&mut self) {
        let letters = self.store().dead_letters("billing");
        let to_topic = self.rng.below(2) == 0;
        let sent = if to_topic { letters.redrive_to_topic(3) } else { letters.redrive(3) };
        if let Err(error) = sent {
            self.failed(&error);
        }
    }

    fn step(&mut self) {
        match self.rng.below(40) {
            0 => self.crash(),
            1 => {
                let moment = self.rng.pick(&[CutMoment::Before, CutMoment::Middle]);
                match self.rng.below(3) {
                    0 => self.disk.cut_at(1 + self.rng.below(60), moment),
                    _ => self.disk.kill_at(1 + self.rng.below(60), moment),
                }
            }
            2 => self.clock.advance(Duration::from_secs(15 * 60)),
            3 => self.deliver(),
            4 => self.redrive(),
            5..14 => self.put(),
            14..24 => self.poll(),
            _ => self.settle(),
        }
    }

    /// Handles what is left, and looks how often each effect has happened.
    fn finish(mut self) -> (Counts, Option<Wrong>) {
        self.crash();
        self.disk.disarm();
        let mut idle = 0;
        while idle < 10 {
            self.redrive();
            self.clock.advance(Duration::from_secs(3 * 3600));
            self.deliver();
            self.poll();
            idle = if self.held.is_empty() { idle + 1 } else { 0 };
            while let Some(message) = self.held.pop() {
                assert!(self.handle(&message, u64::MAX).is_ok());
                message.ack().expect("a sound disk");
            }
        }
        if self.how != How::BuiltIn {
            let mut rows = self.database.prepare("SELECT key, times FROM effects").expect("sound");
            let rows = rows.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).expect("sound");
            self.effects = rows.map(|row| row.expect("a row")).collect();
        }
        for key in &self.sure {
            if !self.effects.contains_key(key) {
                self.wrong.get_or_insert(Wrong::Lost(key.clone()));
            }
        }
        for (key, times) in &self.effects {
            self.counts.again += usize::from(*times > 1);
            if *times > 1 && self.how != How::BuiltIn {
                self.wrong.get_or_insert(Wrong::Repeated(key.clone()));
            }
        }
        (self.counts, self.wrong)
    }
}

const EFFECT: &str = "INSERT INTO effects VALUES (?1, 1)
    ON CONFLICT (key) DO UPDATE SET times = times + 1";

/// What is wrong with a way to mark, and in how many of so many schedules.
fn run(how: How, seeds: u64) -> (Counts, Vec<(u64, Wrong)>) {
    let only = std::env::var("DURALOG_SEED").ok().and_then(|seed| seed.parse().ok());
    let (mut total, mut wrong) = (Counts::default(), Vec::new());
    for seed in only.map_or(0..seeds, |seed: u64| seed..seed + 1) {
        let mut world = World::new(seed, how);
        for _ in 0..400 {
            world.step();
        }
        let (counts, found) = world.finish();
        wrong.extend(found.map(|wrong| (seed, wrong)));
        total.put += counts.put;
        total.copies += counts.copies;
        total.handled += counts.handled;
        total.passed += counts.passed;
        total.crashes += counts.crashes;
        total.again += counts.again;
        total.seconds += counts.seconds;
    }
    println!(
        "{how:?}: {} put, {} of them copies, {} handled, {} passed over, {} crashes, {} effects more than once, \
         {} handled as retries; wrong in {} of {seeds}",
        total.put,
        total.copies,
        total.handled,
        total.passed,
        total.crashes,
        total.again,
        total.seconds,
        wrong.len()
    );
    (total, wrong)
}

#[test]
fn with_the_mark_in_its_transaction_an_effect_happens_once_whatever_crashes() {
    let (counts, wrong) = run(How::InTransaction, 40);
    assert_eq!(wrong, []);
    assert_eq!(counts.again, 0);
    assert!(counts.passed > 500 && counts.crashes > 500);
}

#[test]
fn a_mark_that_is_made_first_loses_effects_and_this_shows() {
    let (_, wrong) = run(How::First, 10);
    assert!(wrong.iter().any(|(_, wrong)| matches!(wrong, Wrong::Lost(_))), "{wrong:?}");
    assert!(wrong.iter().all(|(_, wrong)| matches!(wrong, Wrong::Lost(_))), "{wrong:?}");
}

#[test]
fn a_mark_that_is_made_afterwards_repeats_effects_and_this_shows() {
    let (_, wrong) = run(How::Afterwards, 10);
    assert!(wrong.iter().any(|(_, wrong)| matches!(wrong, Wrong::Repeated(_))), "{wrong:?}");
    assert!(wrong.iter().all(|(_, wrong)| matches!(wrong, Wrong::Repeated(_))), "{wrong:?}");
}

#[test]
fn the_built_in_one_loses_nothing_and_repeats_only_what_was_in_flight() {
    let (counts, wrong) = run(How::BuiltIn, 40);
    assert_eq!(wrong, []);
    assert!(counts.passed > 500 && counts.crashes > 500 && counts.seconds > 100);
    // It is not that nothing could have happened twice.
    assert!(counts.again > 10);
}
