//! Outboxes: what is committed with a message is sent, what is rolled back never is, and what cannot be sent is
//! there to be seen.

#[path = "support/temp.rs"]
mod temp;
#[path = "support/wall.rs"]
mod wall;

use duralog::clock::ManualClock;
use duralog::delivery::outbox::{
    DeadMessage, DueMessages, MemoryOutbox, Outbox, OutboxCounts, OutboxTable, SealedMessage,
    SendFailure, SqliteOutbox,
};
use duralog::delivery::{Event, Producer, Watch};
use duralog::disk::{Fault, SimDisk, SyncFailure};
use duralog::message::names;
use duralog::replication::{ReplicaBehaviour, ScriptedReplica};
use duralog::tables::TopicConfig;
use duralog::{Environment, Error, Message, Next, Store, StoreConfig, StoreWorker, StoredMessage};
use rusqlite::Connection;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};
use temp::TempDir;
use wall::Wall;

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
/// Longer than any test may take, where something is bound to happen.
const LONG: Duration = Duration::from_secs(60);

fn config() -> StoreConfig {
    let mut config = StoreConfig::new("/store").segment_size(64 << 10);
    config.consume_queue_file_size = 20 * 64;
    config.index_enable = false;
    config
}

struct Bench {
    disk: SimDisk,
    clock: Arc<ManualClock>,
    store: Store,
    table: MemoryOutbox,
}

impl Bench {
    fn new() -> Self {
        Self::with(config(), None)
    }

    /// Nobody but the caller drives the store.
    fn with(config: StoreConfig, replica: Option<Arc<ScriptedReplica>>) -> Self {
        let (disk, clock) = (SimDisk::new(1), Arc::new(ManualClock::new(1_700_000_000_000)));
        let environment = Environment::on(disk.shared()).clock(clock.clone()).stepped();
        let store = match replica {
            Some(replica) => Store::open_replicated(config, environment, replica),
            None => Store::open_in(config, environment),
        };
        Self { disk, clock, store: store.unwrap(), table: MemoryOutbox::default() }
    }

    /// Another store, which goes by the same clock.
    fn second(&self, config: StoreConfig) -> (SimDisk, Store) {
        let disk = SimDisk::new(2);
        let environment = Environment::on(disk.shared()).clock(self.clock.clone());
        let store = Store::open_in(config, environment.stepped()).unwrap();
        (disk, store)
    }

    fn producer(&self) -> Producer {
        let producer = self.store.producer("orders-service");
        producer.retry_times_when_send_async_failed(0).open().unwrap()
    }

    fn outbox(&self) -> Outbox {
        Outbox::builder(self.producer(), self.table.clone()).start().unwrap()
    }

    fn record(&self, message: &Message) -> i64 {
        self.table.record([message]).unwrap()
    }

    fn unix_millis(&self) -> i64 {
        duralog::clock::Clock::unix_millis(&*self.clock)
    }
}

fn message(body: &str) -> Message {
    Message::new("orders", body)
}

/// All messages of a topic, queue by queue.
fn read(store: &Store, topic: &str) -> Vec<StoredMessage> {
    let queues = store.topic(topic).unwrap().map_or(0, |it| it.read_queue_nums);
    (0..queues).flat_map(|id| store.get(topic, id, 0, 10_000).unwrap().messages).collect()
}

fn bodies(store: &Store) -> Vec<String> {
    let text = |message: StoredMessage| String::from_utf8(message.body).unwrap();
    let mut bodies: Vec<_> = read(store, "orders").into_iter().map(text).collect();
    bodies.sort();
    bodies
}

fn counts(pending: u64, sent: u64, dead: u64) -> OutboxCounts {
    OutboxCounts { pending, sent, dead }
}

/// Steps while there is something to do at once.
fn run(outbox: &Outbox) -> Next {
    loop {
        match outbox.step() {
            Next::Now => {}
            next => return next,
        }
    }
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !holds() {
        assert!(Instant::now() < deadline, "it never came about that {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

// What is recorded.

#[test]
fn a_message_is_there_if_and_only_if_what_it_is_about_was_committed() {
    let bench = Bench::new();
    let dir = TempDir::in_memory();
    let database = dir.path().join("orders.db");
    let table = SqliteOutbox::open(Connection::open(&database).unwrap()).unwrap();
    let outbox = Outbox::builder(bench.producer(), table).start().unwrap();
    let mut application = Connection::open(&database).unwrap();
    application.execute_batch("CREATE TABLE orders (id INTEGER PRIMARY KEY)").unwrap();
    for (id, commits) in [(1, true), (2, false), (3, true)] {
        let change = application.transaction().unwrap();
        change.execute("INSERT INTO orders VALUES (?1)", [id]).unwrap();
        SqliteOutbox::record(&change, &message(&format!("paid {id}"))).unwrap();
        assert!(outbox.counts().is_ok_and(|found| found.pending < 2), "nobody sees it yet");
        if commits {
            change.commit().unwrap();
        }
    }
    run(&outbox);
    assert_eq!(bodies(&bench.store), ["paid 1", "paid 3"]);
    assert_eq!(outbox.counts().unwrap(), counts(0, 2, 0));
}

#[test]
fn nothing_is_recorded_in_a_transaction_that_the_database_has_rolled_back() {
    let dir = TempDir::in_memory();
    let path = dir.path().join("orders.db");
    let mut table = SqliteOutbox::open(Connection::open(&path).unwrap()).unwrap();
    let mut database = Connection::open(&path).unwrap();
    let schema = "CREATE TABLE orders (id INTEGER PRIMARY KEY); INSERT INTO orders VALUES (1)";
    database.execute_batch(schema).unwrap();
    let change = database.transaction().unwrap();
    change.execute("INSERT INTO orders VALUES (42)", []).unwrap();
    // Nobody looks at what it says.
    change.execute("INSERT OR ROLLBACK INTO orders VALUES (1)", []).unwrap_err();
    let recorded = SqliteOutbox::record(&change, &message("paid 42"));
    assert_eq!(table.counts().unwrap(), counts(0, 0, 0));
    assert!(matches!(recorded, Err(Error::RolledBack)), "{recorded:?}");
}

#[test]
fn a_message_arrives_as_it_was_recorded_and_with_the_id_that_it_was_given_then() {
    let bench = Bench::new();
    let outbox = bench.outbox();
    let full = message("paid 42").queue(3).tag("paid").key("order-42").flag(7).born_at(5);
    bench.record(&full.clone().unique_key("order-42-paid"));
    bench.record(&message("bare"));
    let mut table = bench.table.clone();
    let given: Vec<_> = table.due(i64::MAX, 9).unwrap().messages;
    let given = SealedMessage::open(&given[1].bytes).unwrap();
    run(&outbox);
    let stored = read(&bench.store, "orders");
    let found = stored.iter().find(|it| it.body == b"paid 42").unwrap();
    assert_eq!((found.queue_id, found.tags(), found.keys()), (3, Some("paid"), Some("order-42")));
    assert_eq!((found.flag, found.born_timestamp), (7, 5));
    assert_eq!(found.unique_key(), Some("order-42-paid"));
    let bare = stored.iter().find(|it| it.body == b"bare").unwrap();
    assert_eq!(bare.unique_key(), given.get(names::UNIQ_KEY));
    assert_eq!(bare.born_timestamp, given.born_timestamp);
}

#[test]
fn a_message_that_asks_not_to_wait_is_marked_when_it_is_safe_like_any_other() {
    let replica = ScriptedReplica::new(ReplicaBehaviour::Absent);
    let bench = Bench::with(config(), Some(replica));
    bench.record(&message("careless").wait(false));
    let outbox = bench.outbox();
    run(&outbox);
    assert_eq!(outbox.counts().unwrap(), counts(1, 0, 0));
}

#[test]
fn a_message_with_a_delay_is_delivered_later() {
    let bench = Bench::new();
    bench.record(&message("later").queue(0).delay(SECOND));
    let outbox = bench.outbox();
    run(&outbox);
    assert_eq!(outbox.counts().unwrap(), counts(0, 1, 0));
    assert_eq!(bodies(&bench.store), [""; 0]);
    bench.clock.advance(SECOND);
    for worker in [duralog::StoreWorker::Delivery, duralog::StoreWorker::Flush] {
        while bench.store.step(worker) == Next::Now {}
    }
    assert_eq!(bodies(&bench.store), ["later"]);
}

#[test]
fn what_was_sent_is_forgotten_after_a_while() {
    let bench = Bench::new();
    let builder = Outbox::builder(bench.producer(), bench.table.clone()).keep_sent(2 * HOUR);
    let outbox = builder.start().unwrap();
    bench.record(&message("one"));
    run(&outbox);
    bench.clock.advance(HOUR);
    bench.record(&message("two"));
    run(&outbox);
    assert_eq!(outbox.counts().unwrap(), counts(0, 2, 0));
    bench.clock.advance(HOUR);
    run(&outbox);
    assert_eq!(outbox.counts().unwrap(), counts(0, 1, 0));
    assert_eq!(bodies(&bench.store), ["one", "two"]);
}

// What fails.

#[test]
fn what_the_store_refuses_is_tried_again_after_longer_pauses_and_is_dead_in_the_end() {
    let replica = ScriptedReplica::new(ReplicaBehaviour::Refuse);
    let bench = Bench::with(config(), Some(replica.clone()));
    let id = bench.record(&message("refused"));
    let builder = Outbox::builder(bench.producer(), bench.table.clone());
    let outbox = builder.max_attempts(4).retry_pause(SECOND).start().unwrap();
    for pause in [1, 2, 4] {
        let before = bench.unix_millis();
        run(&outbox);
        assert_eq!(outbox.counts().unwrap(), counts(1, 0, 0));
        let due = bench.table.clone().due(before, 9).unwrap();
        assert_eq!(due.next_ms, Some(before + pause * 1000));
        assert!(due.messages.is_empty());
        bench.clock.advance(Duration::from_millis(pause as u64 * 1000 - 1));
        run(&outbox);
        let due = bench.table.clone().due(before, 9).unwrap();
        assert_eq!(due.next_ms, Some(before + pause * 1000), "not before it was due");
        bench.clock.advance(Duration::from_millis(1));
    }
    run(&outbox);
    assert_eq!(outbox.counts().unwrap(), counts(0, 0, 1));
    let [dead] = &outbox.dead(9).unwrap()[..] else { panic!("it is not there") };
    assert_eq!((dead.id, dead.attempts), (id, 4));
    assert!(dead.error.contains("refused"), "{}", dead.error);
    assert_eq!(SealedMessage::open(&dead.bytes).unwrap().body(), b"refused");

    replica.behave(ReplicaBehaviour::Confirm { delay: Duration::ZERO });
    bench.clock.advance(HOUR);
    run(&outbox);
    assert_eq!(outbox.counts().unwrap(), counts(0, 0, 1), "nobody has asked for it");
    assert!(outbox.rearm(id).unwrap());
    assert!(!outbox.rearm(id).unwrap(), "it is not dead any more");
    run(&outbox);
    assert_eq!(outbox.counts().unwrap(), counts(0, 1, 0));
    assert_eq!(bodies(&bench.store), ["refused"]);
}

#[test]
fn an_outage_is_not_held_against_all_that_wait() {
    let replica = ScriptedReplica::new(ReplicaBehaviour::Refuse);
    let bench = Bench::with(config(), Some(replica.clone()));
    for number in 0..50 {
        bench.record(&message(&format!("{number:02}")));
    }
    let outbox = bench.outbox();
    for tried in 1..=10 {
        let Next::At(next) = run(&outbox) else { panic!("it is not over") };
        let now = duralog::clock::Clock::now(&*bench.clock);
        assert_eq!(next, now + SECOND);
        bench.clock.advance(SECOND);
        let due = bench.table.clone().due(0, 99).unwrap();
        assert!(due.messages.len() >= 50 - tried, "one at a time");
    }
    replica.behave(ReplicaBehaviour::Confirm { delay: Duration::ZERO });
    // Threads wait by the system's clock, which goes on.
    bench.clock.advance(HOUR);
    outbox.retry_now().unwrap();
    run(&outbox);
    assert_eq!(outbox.counts().unwrap(), counts(0, 50, 0));
    assert_eq!(bodies(&bench.store).len(), 50);
}

#[test]
fn what_no_store_would_take_is_dead_at_once_and_holds_up_nobody() {
    let mut config = config();
    config.auto_create_topic = false;
    let bench = Bench::with(config, None);
    bench.store.create_topic("orders", TopicConfig::new(1)).unwrap();
    let lane = |body: &str| message(body).sharding_key("customer-7");
    let unknown = Message::new("payments", "unknown").sharding_key("customer-7");
    let large = Message::new("orders", vec![1; 5 << 20]);
    let ids = [&unknown, &lane("one"), &large, &lane("two")].map(|it| bench.record(it));
    let outbox = bench.outbox();
    for message in [&unknown, &large] {
        assert!(outbox.check(message).is_err());
    }
    outbox.check(&message("one")).unwrap();
    run(&outbox);
    assert_eq!(outbox.counts().unwrap(), counts(0, 2, 2));
    let dead = outbox.dead(9).unwrap();
    assert_eq!((dead[0].id, dead[0].attempts), (ids[0], 1));
    assert!(dead[0].error.contains("payments"), "{}", dead[0].error);
    assert!(dead[1].error.contains("max_message_size"), "{}", dead[1].error);
    assert_eq!(bodies(&bench.store), ["one", "two"]);

    bench.store.create_topic("payments", TopicConfig::new(1)).unwrap();
    assert!(outbox.discard(ids[2]).unwrap());
    assert_eq!(outbox.rearm_all().unwrap(), 1);
    run(&outbox);
    assert_eq!(outbox.counts().unwrap(), counts(0, 3, 0));
    assert_eq!(read(&bench.store, "payments")[0].body, b"unknown");
}

#[test]
fn a_row_that_is_damaged_is_dead_and_holds_up_nobody() {
    let bench = Bench::new();
    let dir = TempDir::in_memory();
    let database = dir.path().join("orders.db");
    let table = SqliteOutbox::open(Connection::open(&database).unwrap()).unwrap();
    let mut application = Connection::open(&database).unwrap();
    let change = application.transaction().unwrap();
    let ids = ["damaged", "whole"].map(|body| SqliteOutbox::record(&change, &message(body)));
    let damaged = *ids[0].as_ref().unwrap();
    change.commit().unwrap();
    let update = "UPDATE duralog_outbox SET message = substr(message, 1, 50) WHERE id = ?1";
    application.execute(update, [damaged]).unwrap();
    let outbox = Outbox::builder(bench.producer(), table).start().unwrap();
    run(&outbox);
    assert_eq!(bodies(&bench.store), ["whole"]);
    assert_eq!(outbox.counts().unwrap(), counts(0, 1, 1));
    // As whoever looks at the database sees it.
    let look = "SELECT topic, state, attempts, error FROM duralog_outbox WHERE id = ?1";
    let told: (String, String, i64, String) = application
        .query_row(look, [damaged], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))
        .unwrap();
    assert_eq!((&*told.0, &*told.1), ("orders", "dead"));
    assert!(told.3.contains("corrupt"), "{}", told.3);
}

/// A producer that panics for messages that say so, as often as is left.
fn moody(store: &Store, left: &Arc<Mutex<u32>>) -> Producer {
    let left = left.clone();
    let producer = store.producer("orders-service").queue_selector(move |message, queues| {
        let mut left = left.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if message.tags() == Some("moody") && *left > 0 {
            *left -= 1;
            drop(left);
            panic!("not in the mood");
        }
        queues[0]
    });
    producer.open().unwrap()
}

#[test]
fn a_message_that_waits_holds_up_its_lane_and_no_other() {
    let bench = Bench::new();
    let lane = |body: &str, lane: &str| message(body).sharding_key(lane);
    for message in [
        lane("a1", "a"),
        lane("a2", "a").tag("moody"),
        lane("b1", "b"),
        lane("a3", "a"),
        message("free"),
        lane("b2", "b"),
        lane("a4", "a"),
    ] {
        bench.record(&message);
    }
    let left = Arc::new(Mutex::new(2));
    let builder = Outbox::builder(moody(&bench.store, &left), bench.table.clone());
    let outbox = builder.retry_pause(SECOND).start().unwrap();
    let sent = || {
        let stored = read(&bench.store, "orders").into_iter();
        stored.map(|it| String::from_utf8(it.body).unwrap()).collect::<Vec<_>>()
    };
    let before = ["a1", "b1", "free", "b2"];
    for pause in [1, 2] {
        run(&outbox);
        assert_eq!(sent(), before);
        bench.clock.advance(pause * SECOND - Duration::from_millis(1));
        run(&outbox);
        assert_eq!(sent(), before);
        bench.clock.advance(Duration::from_millis(1));
    }
    run(&outbox);
    assert_eq!(sent(), [&before[..], &["a2", "a3", "a4"]].concat());
    assert_eq!(outbox.counts().unwrap(), counts(0, 7, 0));
}

#[test]
fn one_that_dies_lets_its_lane_pass() {
    let bench = Bench::new();
    let lane = |body: &str| message(body).sharding_key("a");
    bench.record(&lane("a1").tag("moody"));
    bench.record(&lane("a2"));
    let left = Arc::new(Mutex::new(u32::MAX));
    let builder = Outbox::builder(moody(&bench.store, &left), bench.table.clone());
    let outbox = builder.max_attempts(2).start().unwrap();
    run(&outbox);
    assert_eq!(outbox.counts().unwrap(), counts(2, 0, 0));
    bench.clock.advance(SECOND);
    run(&outbox);
    assert_eq!(outbox.counts().unwrap(), counts(0, 1, 1));
    assert!(outbox.dead(1).unwrap()[0].error.contains("not in the mood"));
    *left.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = 0;
    assert_eq!(outbox.rearm_all().unwrap(), 1);
    run(&outbox);
    assert_eq!(bodies(&bench.store), ["a1", "a2"]);
}

#[test]
fn what_is_stored_but_not_safe_yet_is_not_stored_again_and_is_marked_when_it_is() {
    let replica = ScriptedReplica::new(ReplicaBehaviour::Absent);
    let bench = Bench::with(config(), Some(replica.clone()));
    bench.record(&message("one").sharding_key("a"));
    bench.record(&message("two").sharding_key("a"));
    let builder = Outbox::builder(bench.producer(), bench.table.clone());
    let outbox = builder.max_attempts(2).start().unwrap();
    for _ in 0..5 {
        run(&outbox);
        assert_eq!(outbox.counts().unwrap(), counts(2, 0, 0), "it does not die of that");
        assert_eq!(bench.store.stats().messages, 1);
        bench.clock.advance(HOUR);
    }
    replica.behave(ReplicaBehaviour::Confirm { delay: Duration::ZERO });
    eventually("the replicas have it", || bench.store.stats().watermarks.confirmed > 0);
    run(&outbox);
    assert_eq!(outbox.counts().unwrap(), counts(0, 2, 0));
    assert_eq!(bodies(&bench.store), ["one", "two"]);
}

#[test]
fn no_more_than_sixty_four_messages_wait_to_become_safe_and_are_sent_twice_by_a_crash() {
    for crashes in [false, true] {
        let replica = ScriptedReplica::new(ReplicaBehaviour::Absent);
        let bench = Bench::with(config(), Some(replica.clone()));
        for number in 0..300 {
            bench.record(&message(&number.to_string()));
        }
        let outbox = bench.outbox();
        for _ in 0..10 {
            run(&outbox);
            assert_eq!(outbox.counts().unwrap(), counts(300, 0, 0));
            assert_eq!(bench.store.stats().messages, 64);
            bench.clock.advance(HOUR);
        }
        if !crashes {
            // Whoever marks them by hand does not hold up the others.
            let ids: Vec<_> = (1..=64).collect();
            bench.table.clone().mark_sent(&ids, bench.unix_millis()).unwrap();
            replica.behave(ReplicaBehaviour::Confirm { delay: Duration::ZERO });
            eventually("the replicas have it", || bench.store.stats().watermarks.confirmed > 0);
            run(&outbox);
            assert_eq!(outbox.counts().unwrap(), counts(0, 300, 0));
            assert_eq!(bench.store.stats().messages, 300);
            continue;
        }
        let environment = Environment::on(bench.disk.kill().shared()).stepped();
        let store = Store::open_in(config(), environment).unwrap();
        let producer = store.producer("orders-service").open().unwrap();
        let outbox = Outbox::builder(producer, bench.table.clone()).start().unwrap();
        run(&outbox);
        assert_eq!(outbox.counts().unwrap(), counts(0, 300, 0));
        assert_eq!(bodies(&store).len(), 300 + 64);
    }
}

#[test]
fn what_the_producer_accepts_is_marked_only_when_it_is_as_safe_as_asked() {
    let replica = ScriptedReplica::new(ReplicaBehaviour::Absent);
    let bench = Bench::with(config(), Some(replica.clone()));
    bench.record(&message("one"));
    let producer = bench.store.producer("g").accept(duralog::PutStatus::ReplicaNotAvailable);
    let builder = Outbox::builder(producer.open().unwrap(), bench.table.clone());
    let outbox = builder.start().unwrap();
    run(&outbox);
    assert_eq!(outbox.counts().unwrap(), counts(1, 0, 0));
    bench.store.close().unwrap();
    bench.clock.advance(HOUR);
    assert_eq!(run(&outbox), Next::Idle, "it never will be");
    assert!(matches!(outbox.trouble(), Some(Error::Closed)));
}

#[test]
fn a_store_that_is_closed_is_held_against_no_message() {
    let bench = Bench::new();
    for body in ["one", "two"] {
        bench.record(&message(body));
    }
    let builder = Outbox::builder(bench.producer(), bench.table.clone()).max_attempts(1);
    let outbox = builder.start().unwrap();
    bench.store.close().unwrap();
    for _ in 0..5 {
        assert_eq!(outbox.step(), Next::Idle);
    }
    assert!(matches!(outbox.trouble(), Some(Error::Closed)));
    assert_eq!(outbox.counts().unwrap(), counts(2, 0, 0));
    drop(outbox);
    let environment = Environment::on(bench.disk.shared()).stepped();
    let store = Store::open_in(config(), environment).unwrap();
    let producer = store.producer("orders-service").open().unwrap();
    let outbox = Outbox::builder(producer, bench.table.clone()).start().unwrap();
    run(&outbox);
    assert!(outbox.trouble().is_none());
    assert_eq!(bodies(&store), ["one", "two"]);
}

/// A table whose calls fail.
#[derive(Clone)]
struct Failing {
    table: MemoryOutbox,
    how: Arc<Mutex<How>>,
}

#[derive(Default)]
struct How {
    mark_sent: bool,
    panic: bool,
    due: bool,
}

impl OutboxTable for Failing {
    fn make_due(&mut self) -> duralog::Result<()> {
        self.table.make_due()
    }
    fn due(&mut self, now_ms: i64, max: usize) -> duralog::Result<DueMessages> {
        if self.how.lock().unwrap().due {
            return Err(Error::database("no such table"));
        }
        self.table.due(now_ms, max)
    }
    fn mark_sent(&mut self, ids: &[i64], now_ms: i64) -> duralog::Result<()> {
        let how = self.how.lock().unwrap();
        let (fails, panics) = (how.mark_sent, how.panic);
        drop(how);
        assert!(!panics, "a table that panics");
        if fails {
            return Err(Error::database("read only"));
        }
        self.table.mark_sent(ids, now_ms)
    }
    fn mark_failed(&mut self, id: i64, failure: &SendFailure) -> duralog::Result<()> {
        self.table.mark_failed(id, failure)
    }
    fn dead(&mut self, max: usize) -> duralog::Result<Vec<DeadMessage>> {
        self.table.dead(max)
    }
    fn rearm(&mut self, id: i64) -> duralog::Result<bool> {
        self.table.rearm(id)
    }
    fn discard(&mut self, id: i64) -> duralog::Result<bool> {
        self.table.discard(id)
    }
    fn prune(&mut self, until_ms: i64, max: usize) -> duralog::Result<usize> {
        self.table.prune(until_ms, max)
    }
    fn counts(&mut self) -> duralog::Result<OutboxCounts> {
        self.table.counts()
    }
}

#[test]
fn while_what_was_sent_cannot_be_marked_nothing_is_sent_again() {
    let bench = Bench::new();
    let how = Arc::new(Mutex::new(How { mark_sent: true, ..How::default() }));
    let table = Failing { table: bench.table.clone(), how: how.clone() };
    bench.record(&message("one"));
    let outbox = Outbox::builder(bench.producer(), table).start().unwrap();
    for panics in [false, true, false] {
        how.lock().unwrap().panic = panics;
        assert!(matches!(outbox.step(), Next::At(_)));
        let trouble = outbox.trouble().expect("it does not get on");
        assert_eq!(matches!(trouble, Error::Panicked { .. }), panics, "{trouble}");
        bench.clock.advance(SECOND);
        bench.record(&message("two"));
    }
    assert_eq!(bodies(&bench.store), ["one"]);
    *how.lock().unwrap() = How::default();
    run(&outbox);
    assert!(outbox.trouble().is_none());
    assert_eq!(bodies(&bench.store), ["one", "two", "two", "two"]);
    assert_eq!(outbox.counts().unwrap(), counts(0, 4, 0));
}

// Threads.

struct Threaded {
    store: Store,
    table: MemoryOutbox,
}

impl Threaded {
    fn new() -> Self {
        let store = Store::open_in(config(), Environment::on(SimDisk::new(1).shared())).unwrap();
        Self { store, table: MemoryOutbox::default() }
    }

    fn outbox(&self, table: impl OutboxTable + 'static, poll: Duration) -> Outbox {
        let producer = self.store.producer("orders-service").open().unwrap();
        Outbox::builder(producer, table).poll_interval(poll).start().unwrap()
    }
}

#[test]
fn what_is_left_from_before_is_sent_at_the_start_whatever_it_waits_for() {
    let bench = Threaded::new();
    let id = bench.table.record([&message("one")]).unwrap();
    let failure = SendFailure { attempts: 3, next_ms: Some(i64::MAX), error: "late".to_owned() };
    bench.table.clone().mark_failed(id, &failure).unwrap();
    let outbox = bench.outbox(bench.table.clone(), HOUR);
    eventually("it is sent", || outbox.counts().unwrap().sent == 1);
    outbox.close().unwrap();
    assert_eq!(bodies(&bench.store), ["one"]);
}

#[test]
fn an_outbox_that_is_told_sends_at_once_and_one_that_is_not_finds_out() {
    let bench = Threaded::new();
    let outbox = bench.outbox(bench.table.clone(), HOUR);
    for sent in 1..20 {
        bench.table.record([&message("told")]).unwrap();
        outbox.notify();
        eventually("it is sent", || outbox.counts().unwrap().sent == sent);
    }
    outbox.close().unwrap();
    bench.table.record([&message("not told")]).unwrap();
    let outbox = bench.outbox(bench.table.clone(), Duration::from_millis(1));
    eventually("it is sent", || outbox.counts().unwrap().sent == 20);
    bench.table.record([&message("not told")]).unwrap();
    eventually("it is sent", || outbox.counts().unwrap().sent == 21);
}

#[test]
fn a_table_that_panics_ends_no_thread() {
    let bench = Threaded::new();
    let how = Arc::new(Mutex::new(How { panic: true, ..How::default() }));
    let table = Failing { table: bench.table.clone(), how: how.clone() };
    bench.table.record([&message("one")]).unwrap();
    let producer = bench.store.producer("orders-service").open().unwrap();
    let pause = Duration::from_millis(1);
    let outbox = Outbox::builder(producer, table).retry_pause(pause).start().unwrap();
    eventually("it panics", || matches!(outbox.trouble(), Some(Error::Panicked { .. })));
    *how.lock().unwrap() = How { due: true, ..How::default() };
    eventually("it fails", || matches!(outbox.trouble(), Some(Error::Database { .. })));
    *how.lock().unwrap() = How::default();
    eventually("it goes on", || outbox.counts().unwrap().sent == 1);
    assert_eq!(bodies(&bench.store), ["one"]);
}

#[test]
fn an_outbox_that_is_closed_sends_nothing_more() {
    let bench = Threaded::new();
    let outbox = bench.outbox(bench.table.clone(), Duration::from_millis(1));
    outbox.close().unwrap();
    bench.table.record([&message("one")]).unwrap();
    let (told, heard) = std::sync::mpsc::channel();
    let tell = move |event: &Event<'_>| {
        if matches!(event, Event::Sent { .. }) {
            let _ = told.send(());
        }
    };
    bench.store.observe(Watch::new(tell)).unwrap();
    assert!(heard.recv_timeout(Duration::from_millis(50)).is_err());
    drop(bench.outbox(bench.table.clone(), HOUR));
}

#[test]
fn values_out_of_range_are_refused() {
    let bench = Bench::new();
    let builder = || Outbox::builder(bench.producer(), bench.table.clone());
    for (builder, expected) in [
        (builder().max_attempts(0), "max_attempts"),
        (builder().retry_pause(Duration::ZERO), "retry_pause"),
        (builder().retry_pause_max(Duration::from_millis(1)), "retry_pause_max"),
        (builder().poll_interval(Duration::ZERO), "poll_interval"),
    ] {
        match builder.start() {
            Err(Error::Config { field, .. }) => assert_eq!(field, expected),
            other => panic!("{expected}: {other:?}"),
        }
    }
}

#[test]
fn a_hundred_lanes_are_sent_side_by_side_and_each_in_order() {
    let bench = Bench::new();
    for number in 0..1000 {
        let lane = format!("lane-{}", number * 7 % 100);
        bench.record(&message(&format!("{number:04}")).sharding_key(lane));
    }
    let outbox = bench.outbox();
    run(&outbox);
    assert_eq!(outbox.counts().unwrap(), counts(0, 1000, 0));
    let mut lanes: BTreeMap<String, Vec<Vec<u8>>> = BTreeMap::new();
    for stored in read(&bench.store, "orders") {
        let lane = stored.get(names::SHARDING_KEY).unwrap().to_owned();
        lanes.entry(lane).or_default().push(stored.body);
    }
    assert_eq!(lanes.len(), 100);
    assert!(lanes.values().all(|lane| lane.len() == 10 && lane.is_sorted()));
    let syncs = bench.disk.syncs_of("commitlog");
    assert!(syncs < 100, "{syncs} syncs for 1000 messages");
}

/// Until not even an empty message fits.
fn fill(store: &Store) {
    for body in [1000, 100, 10, 0] {
        while store.try_submit(Message::new("orders", vec![0; body]).queue(0)).is_ok() {
            let _ = store.flush();
        }
    }
}

/// Until something fits again.
fn make_room(disk: &SimDisk, store: &Store) {
    disk.set_capacity(u64::MAX);
    store.flush().unwrap();
    while store.step(StoreWorker::Upkeep) == Next::Now {}
    // The first who asks for a segment is told of the failure of before, and has it tried again.
    assert!(store.try_submit(Message::new("orders", "")).is_err());
    while store.step(StoreWorker::Upkeep) == Next::Now {}
}

/// An outbox whose own store is full for the moment, and that has `second`.
fn full_beside(bench: &Bench, second: &Store) -> Outbox {
    let producer = bench.store.producer("orders-service").retry_another_when_not_ok(second.clone());
    let producer = producer.retry_times_when_send_async_failed(1).open().unwrap();
    drop(producer.send_async(Message::new("orders", "first").queue(0)).unwrap());
    bench.store.flush().unwrap();
    let outbox = Outbox::builder(producer, bench.table.clone()).start().unwrap();
    bench.disk.set_capacity(bench.disk.used());
    fill(&bench.store);
    outbox
}

#[test]
fn what_a_second_store_holds_against_a_message_kills_none_while_the_first_is_only_full() {
    let bench = Bench::new();
    let mut strict = config();
    strict.auto_create_topic = false;
    let (_, second) = bench.second(strict);
    let outbox = full_beside(&bench, &second);
    bench.record(&Message::new("orders", "paid").queue(0));
    run(&outbox);
    assert_eq!(outbox.counts().unwrap(), counts(1, 0, 0));
    bench.clock.advance(HOUR);
    make_room(&bench.disk, &bench.store);
    run(&outbox);
    assert_eq!(outbox.counts().unwrap(), counts(0, 1, 0));
}

#[test]
fn a_second_store_that_is_closed_halts_nothing_while_the_first_is_only_full() {
    let bench = Bench::new();
    let (_, second) = bench.second(config());
    let outbox = full_beside(&bench, &second);
    second.close().unwrap();
    bench.record(&Message::new("orders", "paid").queue(0));
    assert_ne!(run(&outbox), Next::Idle, "{:?}", outbox.trouble());
    bench.clock.advance(HOUR);
    make_room(&bench.disk, &bench.store);
    run(&outbox);
    assert_eq!(outbox.counts().unwrap(), counts(0, 1, 0));
}

#[test]
fn what_the_only_store_that_is_open_refuses_is_put_off_and_holds_up_nobody() {
    let mut strict = config();
    strict.auto_create_topic = false;
    type End = fn(&SimDisk, &Store);
    let ends: [End; 2] = [
        |_, store| store.close().unwrap(),
        |disk, store| {
            disk.inject(Fault::sync(SyncFailure::KeepNew).path("commitlog"));
            drop(store.try_submit(message("latches")).unwrap());
            store.flush().unwrap_err();
        },
    ];
    for ends in ends {
        for first_ends in [false, true] {
            let (first, second) = match first_ends {
                true => (config(), strict.clone()),
                false => (strict.clone(), config()),
            };
            let bench = Bench::with(first, None);
            let (disk, second) = bench.second(second);
            let stores = [(&bench.disk, &bench.store), (&disk, &second)];
            let [(disk, over), (_, open)] =
                if first_ends { stores } else { [stores[1], stores[0]] };
            for store in [&bench.store, &second] {
                store.create_topic("orders", TopicConfig::new(4)).unwrap();
            }
            let producer = bench.store.producer("g").retry_another_when_not_ok(second.clone());
            let builder = Outbox::builder(producer.open().unwrap(), bench.table.clone());
            let outbox = builder.max_attempts(2).start().unwrap();
            ends(disk, over);
            let bad = Message::new("unknown", "bad").queue(0).sharding_key("a");
            for message in [bad, message("held").sharding_key("a"), message("good")] {
                bench.record(&message);
            }
            for pause in [1, 2, 4, 8] {
                let before = bench.unix_millis();
                run(&outbox);
                assert_eq!(outbox.counts().unwrap(), counts(2, 1, 0), "{first_ends}");
                let due = bench.table.clone().due(before, 9).unwrap();
                assert_eq!(due.next_ms, Some(before + pause * 1000), "{first_ends}");
                bench.clock.advance(Duration::from_secs(pause as u64));
            }
            assert_eq!(bodies(open), ["good"]);
        }
    }
}

#[test]
fn nothing_waits_longer_than_was_meant_though_the_clock_is_put_back() {
    let disk = SimDisk::new(1);
    let clock = Arc::new(Wall::new(1_700_000_000_000));
    let environment = Environment::on(disk.shared()).clock(clock.clone()).stepped();
    let store = Store::open_in(config(), environment).unwrap();
    let producer = store.producer("g").retry_times_when_send_async_failed(0).open().unwrap();
    let table = MemoryOutbox::default();
    let outbox = Outbox::builder(producer, table.clone()).start().unwrap();
    disk.set_capacity(disk.used());
    fill(&store);
    table.record([&Message::new("orders", "paid").sharding_key("k")]).unwrap();
    run(&outbox);
    assert_eq!(outbox.counts().unwrap(), counts(1, 0, 0));
    make_room(&disk, &store);
    clock.put_ahead(-24 * 3_600_000);
    table.record([&Message::new("orders", "of the same lane").sharding_key("k")]).unwrap();
    for _ in 0..3 {
        clock.steady.advance(20 * SECOND);
        run(&outbox);
    }
    assert_eq!(outbox.counts().unwrap(), counts(0, 2, 0));
}

#[test]
fn a_row_that_sql_has_spoilt_is_dead_and_holds_up_no_other() {
    let (bench, dir) = (Bench::new(), TempDir::new());
    let path = dir.path().join("orders.db");
    let table = SqliteOutbox::open(Connection::open(&path).unwrap()).unwrap();
    let mut database = Connection::open(&path).unwrap();
    for body in ["bad", "lane", "good"] {
        let change = database.transaction().unwrap();
        SqliteOutbox::record(&change, &Message::new("orders", body).sharding_key(body)).unwrap();
        change.commit().unwrap();
    }
    let spoil =
        "UPDATE duralog_outbox SET message = 'no blob', error = x'ff', attempts = 'x' WHERE id = 1;
        UPDATE duralog_outbox SET lane = x'ff' WHERE id = 2";
    database.execute_batch(spoil).unwrap();
    let outbox = Outbox::builder(bench.producer(), table).start().unwrap();
    run(&outbox);
    assert_eq!(outbox.counts().unwrap(), counts(0, 2, 1), "{:?}", outbox.trouble());
    let dead = outbox.dead(9).unwrap();
    assert_eq!((dead.len(), dead[0].id), (1, 1));
    assert!(matches!(dead[0].message(), Err(Error::Corrupt { .. })));
    assert_eq!(outbox.rearm_all().unwrap(), 1);
}

#[test]
fn what_is_checked_and_lets_pass_is_not_dead_at_once() {
    let bench = Bench::new();
    let mut closed = TopicConfig::new(4);
    closed.perm = TopicConfig::READ;
    bench.store.create_topic("closed", closed).unwrap();
    bench.store.create_topic("four", TopicConfig::new(4)).unwrap();
    let outbox = bench.outbox();
    let refused = |message: Message| outbox.check(&message).unwrap_err();
    assert!(matches!(refused(Message::new("closed", "x")), Error::TopicNotWritable { .. }));
    for topic in ["four", "new"] {
        let error = refused(Message::new(topic, "x").queue(9));
        assert!(matches!(error, Error::InvalidMessage(_)), "{error}");
        outbox.check(&Message::new(topic, "x").queue(3)).unwrap();
    }
    assert_eq!(bench.store.topic("new").unwrap(), None, "asking creates nothing");
}
