//! Transactions: what is committed is delivered, what is rolled back never, whatever crashes.

#[path = "support/rng.rs"]
mod rng;

use duralog::clock::ManualClock;
use duralog::delivery::{
    HalfMessage, HalfMessageView, TransactionOutcome, TransactionState, TransactionStats,
    TransactionalProducer,
};
use duralog::disk::{Cut, CutMoment, Fault, SimCall, SimDisk};
use duralog::message::format::{CHECKED_IN_VAIN_TOPIC, HALF_DONE_TOPIC, HALF_TOPIC};
use duralog::message::{SysFlag, names};
use duralog::{
    Environment, Error, FlushMode, InvalidMessage, Message, Next, Store, StoreConfig, StoreWorker,
    StoredMessage,
};
use rng::Rng;
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const DIR: &str = "/store";
const SYSTEM_GROUP: &str = "CID_RMQ_SYS_TRANS";
const SECOND: Duration = Duration::from_secs(1);

fn config() -> StoreConfig {
    let mut config = StoreConfig::new(DIR).segment_size(64 << 10);
    config.consume_queue_file_size = 20 * 64;
    (config.index_slots, config.index_items) = (64, 4096);
    config
}

/// A machine: what is on its disk, and what time it is.
struct World {
    disk: SimDisk,
    clock: Arc<ManualClock>,
    config: StoreConfig,
}

impl World {
    fn new() -> Self {
        let clock = Arc::new(ManualClock::new(1_700_000_000_000));
        Self { disk: SimDisk::new(1), clock, config: config() }
    }

    fn try_open(&self) -> duralog::Result<Store> {
        let environment = Environment::on(self.disk.shared()).clock(self.clock.clone()).stepped();
        Store::open_in(self.config.clone(), environment)
    }

    fn open(&self) -> Store {
        self.try_open().unwrap()
    }

    /// Pulls the plug and opens the store again.
    fn power_cut(&mut self) -> Store {
        self.disk = self.disk.cut_power(Cut::losing_all());
        self.open()
    }

    fn pass(&self, store: &Store, time: Duration) {
        self.clock.advance(time);
        work(store);
    }
}

fn work(store: &Store) {
    use StoreWorker::{Delivery, Dispatch, Flush, Offsets, Upkeep};
    for worker in [Upkeep, Flush, Dispatch, Delivery, Offsets] {
        while store.step(worker) == Next::Now {}
    }
}

/// The answers of a checker, by body, and what it was asked.
#[derive(Clone, Default)]
struct Oracle {
    answers: Arc<Mutex<BTreeMap<String, TransactionState>>>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Oracle {
    fn say(&self, body: &str, answer: TransactionState) {
        self.answers.lock().unwrap().insert(body.to_owned(), answer);
    }

    fn check(&self) -> impl Fn(&HalfMessageView) -> TransactionState + Send + Sync + 'static {
        let oracle = self.clone();
        move |half| {
            let body = text(half.body());
            oracle.asked.lock().unwrap().push(body.clone());
            let answers = oracle.answers.lock().unwrap();
            answers.get(&body).copied().unwrap_or(TransactionState::Unknown)
        }
    }

    fn producer(&self, store: &Store, group: &str) -> TransactionalProducer {
        store.transactional_producer(group, self.check()).open().unwrap()
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Everything in a queue.
fn read(store: &Store, topic: &str, queue_id: i32) -> Vec<StoredMessage> {
    let (mut found, mut at) = (Vec::new(), store.min_offset(topic, queue_id).unwrap_or(0));
    while at < store.max_offset(topic, queue_id).unwrap_or(0) {
        let fetched = store.get(topic, queue_id, at, 64).unwrap();
        assert!(fetched.next_offset > at);
        found.extend(fetched.messages);
        at = fetched.next_offset;
    }
    found
}

fn bodies(store: &Store, topic: &str) -> Vec<String> {
    read(store, topic, 0).iter().map(|message| text(&message.body)).collect()
}

fn stats(store: &Store) -> TransactionStats {
    store.transactions().unwrap().stats()
}

fn order(body: &str) -> Message {
    Message::new("orders", body).queue(0)
}

#[test]
fn a_half_message_is_seen_when_it_is_committed_and_not_before() {
    let mut world = World::new();
    let store = world.open();
    let oracle = Oracle::default();
    let producer = oracle.producer(&store, "service");
    let message = order("paid").tag("t").key("order-42").flag(7).born_at(5).wait(false);
    let half = producer.begin(message.queue(2)).unwrap();
    // Though it says that it does not wait.
    let store = world.power_cut();
    assert_eq!(store.max_offset("orders", 2), None);
    assert_eq!(stats(&store).open, 1);
    drop((producer, half, store));

    let store = world.open();
    let producer = oracle.producer(&store, "service");
    let half = producer.begin(order("sent").queue(2)).unwrap();
    let done = half.commit().unwrap();
    assert_eq!((done.queue_id, done.queue_offset), (2, 0));
    assert_eq!(half.commit().unwrap(), done, "it is asked, not put again");
    assert_eq!(text(&read(&store, "orders", 2)[0].body), "sent");
    let store = world.power_cut();
    assert_eq!(read(&store, "orders", 2).len(), 1);
}

#[test]
fn a_store_that_is_closed_leaves_nothing_behind() {
    let world = World::new();
    let store = world.open();
    let producer = Oracle::default().producer(&store, "service");
    let committed = producer.begin(order("1")).unwrap();
    committed.commit().unwrap();
    producer.begin(order("2")).unwrap().rollback().unwrap();
    let left = producer.begin(order("3")).unwrap();
    world.pass(&store, Duration::from_secs(60));
    drop((producer, committed, left));
    store.close().unwrap();
    drop(store);
    assert_eq!(Arc::strong_count(&world.clock), 1, "something holds the store");
}

#[test]
fn a_message_of_a_transaction_goes_where_a_producer_would_send_it() {
    let world = World::new();
    let store = world.open();
    let producer = store.producer("plain").open().unwrap();
    let transactions = Oracle::default().producer(&store, "service");
    let committed = |message| transactions.begin(message).unwrap().commit().unwrap().queue_id;
    let of_key = |key: &str| Message::new("orders", "x").sharding_key(key);
    for number in 0..20 {
        let key = format!("customer-{number}");
        let sent = producer.send(of_key(&key).wait(false)).unwrap().put.queue_id;
        assert_eq!(committed(of_key(&key)), sent, "{key}");
    }
    // One that says so itself, and the others by turns.
    assert_eq!(committed(of_key("customer-6").queue(3)), 3);
    let turns: BTreeSet<_> = (0..4).map(|_| committed(Message::new("orders", "x"))).collect();
    assert_eq!(turns, BTreeSet::from([0, 1, 2, 3]));
    // One that the topic does not have.
    let refused = transactions.begin(of_key("k").queue(4)).unwrap_err();
    let limit = InvalidMessage::QueueId { queue_id: 4, limit: 4 };
    assert!(matches!(refused, Error::InvalidMessage(what) if what == limit));
}

#[test]
fn the_topic_of_a_transaction_is_noted_before_anything_is_put() {
    let mut world = World::new();
    let store = world.open();
    let half = Oracle::default().producer(&store, "service").begin(order("paid")).unwrap();
    let store = world.power_cut();
    assert_eq!(store.topic("orders").unwrap().map(|topic| topic.write_queue_nums), Some(4));
    drop(half);
    // What is refused leaves none.
    let producer = Oracle::default().producer(&store, "service");
    producer.begin(Message::new("later", "x").delay_level(2)).unwrap_err();
    producer.begin(Message::new("bad", "x").tag("")).unwrap_err();
    assert_eq!((store.topic("later").unwrap(), store.topic("bad").unwrap()), (None, None));
}

#[test]
fn what_is_rolled_back_is_never_seen_and_nobody_is_asked_about_it() {
    let mut world = World::new();
    let store = world.open();
    let oracle = Oracle::default();
    oracle.say("paid", TransactionState::Commit);
    let half = oracle.producer(&store, "service").begin(order("paid")).unwrap();
    half.rollback().unwrap();
    half.rollback().unwrap();
    let store = world.power_cut();
    let _producer = oracle.producer(&store, "service");
    (0..20).for_each(|_| world.pass(&store, 31 * SECOND));
    assert_eq!((oracle.asked().len(), store.max_offset("orders", 0)), (0, None));
    assert_eq!(stats(&store).open, 0);
}

#[test]
fn a_decision_cannot_be_taken_back() {
    let world = World::new();
    let store = world.open();
    let producer = Oracle::default().producer(&store, "service");
    let half = producer.begin(order("paid")).unwrap();
    half.commit().unwrap();
    let entries = store.max_offset(HALF_DONE_TOPIC, 0);
    let refused = half.rollback().unwrap_err();
    assert!(matches!(refused, Error::TransactionDecided { committed: true }), "{refused}");
    assert_eq!(store.max_offset(HALF_DONE_TOPIC, 0), entries);
    let half = producer.begin(order("sent")).unwrap();
    half.rollback().unwrap();
    let refused = half.commit().unwrap_err();
    assert!(matches!(refused, Error::TransactionDecided { committed: false }), "{refused}");
    assert_eq!(bodies(&store, "orders"), ["paid"]);
}

#[test]
fn a_half_message_left_open_is_checked_in_time_and_again_until_there_is_an_answer() {
    let world = World::new();
    let store = world.open();
    let oracle = Oracle::default();
    let producer = oracle.producer(&store, "service");
    drop(producer.begin(order("paid")).unwrap());
    world.pass(&store, 5 * SECOND);
    assert_eq!(oracle.asked().len(), 0, "it is not old enough");
    world.pass(&store, SECOND);
    assert_eq!(oracle.asked(), ["paid"]);
    world.pass(&store, 29 * SECOND);
    assert_eq!(oracle.asked().len(), 0);
    oracle.say("paid", TransactionState::Commit);
    world.pass(&store, SECOND);
    assert_eq!((oracle.asked().len(), bodies(&store, "orders")), (1, vec!["paid".to_owned()]));
    world.pass(&store, 100 * SECOND);
    assert_eq!((oracle.asked().len(), bodies(&store, "orders").len()), (0, 1));
    drop(producer.begin(order("sent")).unwrap());
    oracle.say("sent", TransactionState::Rollback);
    world.pass(&store, 6 * SECOND);
    assert_eq!((oracle.asked().len(), bodies(&store, "orders").len()), (1, 1));
    assert_eq!((stats(&store).open, stats(&store).committed, stats(&store).rolled_back), (0, 1, 1));
}

#[test]
fn the_numbers_of_a_producer_are_its_own() {
    let world = World::new();
    let store = world.open();
    let oracle = Oracle::default();
    let producer = store
        .transactional_producer("service", oracle.check())
        .transaction_timeout(SECOND)
        .transaction_check_interval(2 * SECOND)
        .transaction_check_max(2)
        .max_open_transactions(1)
        .open()
        .unwrap();
    drop(producer.begin(order("paid")).unwrap());
    let refused = producer.begin(order("sent")).unwrap_err();
    assert!(matches!(refused, Error::TooManyTransactions { max: 1 }) && refused.is_retryable());
    world.pass(&store, SECOND);
    world.pass(&store, SECOND);
    assert_eq!(oracle.asked().len(), 1);
    world.pass(&store, SECOND);
    assert_eq!(oracle.asked().len(), 1);
    assert_eq!((stats(&store).open, stats(&store).parked), (0, 1));
    producer.begin(order("sent")).unwrap().commit().unwrap();
    for (group, interval, max) in [("", 1, 1), ("a/b", 1, 1), ("x", 0, 1), ("x", 1, 0)] {
        let builder = store.transactional_producer(group, oracle.check());
        let builder = builder.transaction_check_interval(interval * SECOND);
        let refused = builder.transaction_check_max(max).open().unwrap_err();
        assert!(matches!(refused, Error::Config { .. }), "{refused}");
    }
}

#[test]
fn a_message_may_ask_for_its_own_time() {
    let world = World::new();
    let store = world.open();
    let oracle = Oracle::default();
    let producer = oracle.producer(&store, "service");
    drop(producer.begin(order("slow").property(names::CHECK_IMMUNITY_TIME, "60")).unwrap());
    drop(producer.begin(order("odd").property(names::CHECK_IMMUNITY_TIME, "-1")).unwrap());
    world.pass(&store, 6 * SECOND);
    assert_eq!(oracle.asked(), ["odd"]);
    world.pass(&store, 53 * SECOND);
    assert_eq!(oracle.asked(), ["odd"]);
    world.pass(&store, SECOND);
    assert_eq!(oracle.asked(), ["slow"]);
}

#[test]
fn after_fifteen_checks_a_half_message_is_parked_and_decided_by_hand() {
    let mut world = World::new();
    let store = world.open();
    let oracle = Oracle::default();
    let producer = oracle.producer(&store, "service");
    let halves = ["paid", "sent", "lost"].map(|body| producer.begin(order(body)).unwrap());
    world.pass(&store, 6 * SECOND);
    (0..13).for_each(|_| world.pass(&store, 30 * SECOND));
    assert_eq!((oracle.asked().len(), stats(&store).open, stats(&store).parked), (3 * 14, 3, 0));
    world.pass(&store, 30 * SECOND);
    assert_eq!((oracle.asked().len(), stats(&store).open, stats(&store).parked), (3, 0, 3));
    world.pass(&store, 300 * SECOND);
    assert_eq!(oracle.asked().len(), 0);
    let parked = store.transactions().unwrap().parked();
    assert_eq!(parked[0].transaction_id(), halves[0].transaction_id());
    assert_eq!(parked[1].read().unwrap().checks(), 15);
    // Who still has it may decide it, too.
    halves[2].commit().unwrap();
    parked[0].commit().unwrap();
    parked[0].commit().unwrap();
    assert!(matches!(parked[0].rollback(), Err(Error::TransactionDecided { .. })));
    assert_eq!(bodies(&store, "orders"), ["lost", "paid"]);
    let store = world.power_cut();
    let _producer = oracle.producer(&store, "service");
    let transactions = store.transactions().unwrap();
    let left = transactions.parked();
    assert_eq!((left.len(), text(left[0].read().unwrap().body())), (1, "sent".to_owned()));
    left[0].rollback().unwrap();
    assert_eq!(transactions.parked().len(), 0);
    world.pass(&store, 30 * SECOND);
    let store = world.power_cut();
    assert_eq!((store.transactions().unwrap().parked().len(), stats(&store).open), (0, 0));
    assert_eq!(bodies(&store, "orders").len(), 2);
}

#[test]
fn the_number_of_checks_survives_a_crash() {
    let mut world = World::new();
    let store = world.open();
    let oracle = Oracle::default();
    let producer = oracle.producer(&store, "service");
    drop(producer.begin(order("paid")).unwrap());
    world.pass(&store, 6 * SECOND);
    (0..9).for_each(|_| world.pass(&store, 30 * SECOND));
    let store = world.power_cut();
    let producer = oracle.producer(&store, "service");
    world.pass(&store, Duration::ZERO);
    (0..4).for_each(|_| world.pass(&store, 30 * SECOND));
    assert_eq!((oracle.asked().len(), stats(&store).parked), (15, 1));
    assert_eq!(stats(&store).open, 0);
    drop(producer);
}

#[test]
fn what_an_earlier_life_left_open_is_checked_once_its_group_has_a_producer() {
    let mut world = World::new();
    let store = world.open();
    let oracle = Oracle::default();
    let producers = ["one", "other"].map(|group| oracle.producer(&store, group));
    for (producer, body) in producers.iter().zip(["paid", "sent"]) {
        drop(producer.begin(order(body)).unwrap());
        oracle.say(body, TransactionState::Commit);
    }
    let store = world.power_cut();
    let other = oracle.producer(&store, "other");
    assert_eq!((stats(&store).open, stats(&store).unattended), (2, 1));
    world.pass(&store, 5 * SECOND);
    assert_eq!(oracle.asked().len(), 0);
    world.pass(&store, SECOND);
    assert_eq!(
        (oracle.asked(), bodies(&store, "orders")),
        (vec!["sent".into()], vec!["sent".into()])
    );
    // It holds up nobody, and nobody counts what nobody answers.
    (0..20).for_each(|_| world.pass(&store, 30 * SECOND));
    other.begin(order("late")).unwrap().commit().unwrap();
    assert_eq!((stats(&store).open, stats(&store).parked), (1, 0));
    let _one = oracle.producer(&store, "one");
    world.pass(&store, Duration::ZERO);
    assert_eq!((oracle.asked(), bodies(&store, "orders").len()), (vec!["paid".into()], 3));
}

#[test]
fn a_group_has_one_producer_and_when_that_is_gone_another_one() {
    let world = World::new();
    let store = world.open();
    let oracle = Oracle::default();
    let producer = oracle.producer(&store, "service");
    drop(producer.begin(order("paid")).unwrap());
    let clone = producer.clone();
    drop(producer);
    let refused = store.transactional_producer("service", oracle.check()).open().unwrap_err();
    assert!(matches!(refused, Error::ProducerGroupInUse { .. }));
    drop(clone);
    world.pass(&store, 60 * SECOND);
    assert_eq!(oracle.asked().len(), 0);
    let _next = oracle.producer(&store, "service");
    world.pass(&store, Duration::ZERO);
    assert_eq!(oracle.asked(), ["paid"]);
}

#[test]
fn a_message_is_sent_in_one_call_and_what_its_code_says_is_done() {
    let world = World::new();
    let store = world.open();
    let oracle = Oracle::default();
    let producer = oracle.producer(&store, "service");
    let committed = producer.send(order("paid"), |_| TransactionState::Commit).unwrap();
    assert!(matches!(committed, TransactionOutcome::Committed(done) if done.queue_offset == 0));
    let rolled_back = producer.send(order("sent"), |_| TransactionState::Rollback).unwrap();
    assert!(matches!(rolled_back, TransactionOutcome::RolledBack));
    let open = producer.send(order("open"), |_| TransactionState::Unknown).unwrap();
    let TransactionOutcome::Open(half) = open else { panic!("{open:?}") };
    half.commit().unwrap();
    let run = AssertUnwindSafe(|| producer.send(order("panics"), |_| panic!("on purpose")));
    assert!(catch_unwind(run).is_err());
    assert_eq!(
        (bodies(&store, "orders"), stats(&store).open),
        (vec!["paid".into(), "open".into()], 1)
    );
    world.pass(&store, 6 * SECOND);
    assert_eq!(oracle.asked(), ["panics"]);
}

#[test]
fn a_checker_that_panics_knows_nothing() {
    let world = World::new();
    let store = world.open();
    let calls = AtomicUsize::new(0);
    let check = move |_: &HalfMessageView| match calls.fetch_add(1, Ordering::SeqCst) {
        0 => panic!("on purpose"),
        _ => TransactionState::Commit,
    };
    let producer = store.transactional_producer("service", check).open().unwrap();
    drop(producer.begin(order("paid")).unwrap());
    world.pass(&store, 6 * SECOND);
    assert_eq!((stats(&store).open, stats(&store).panicked_checks), (1, 1));
    world.pass(&store, 30 * SECOND);
    assert_eq!(bodies(&store, "orders"), ["paid"]);
}

#[test]
fn what_could_never_be_committed_is_refused_before_anything_is_stored() {
    let mut world = World::new();
    world.config.auto_create_topic = false;
    let store = world.open();
    store.create_topic("orders", duralog::tables::TopicConfig::new(2)).unwrap();
    let producer = Oracle::default().producer(&store, "service");
    let refused = |message: Message| producer.begin(message).unwrap_err();
    assert!(matches!(
        refused(order("").delay_level(3)),
        Error::InvalidMessage(InvalidMessage::DelayedTransaction)
    ));
    assert!(matches!(
        refused(Message::new(HALF_TOPIC, "")),
        Error::InvalidMessage(InvalidMessage::SystemTopic { .. })
    ));
    assert!(matches!(refused(Message::new("elsewhere", "")), Error::UnknownTopic { .. }));
    assert!(matches!(
        refused(order("").queue(2)),
        Error::InvalidMessage(InvalidMessage::QueueId { .. })
    ));
    assert!(matches!(refused(Message::new("a b", "")), Error::InvalidMessage(_)));
    let longest = "v".repeat(i16::MAX as usize - 160);
    assert!(matches!(
        refused(order("").property("p", longest)),
        Error::TooLarge { what: "properties", .. }
    ));
    // What is refused at the limit would not fit when it is checked; what is taken does.
    let fits = |len: usize| producer.begin(order(&"b".repeat(len))).is_ok();
    let limit = (64 << 10) - 8;
    let longest = (limit - 800..limit).rev().find(|len| fits(*len)).unwrap();
    assert_eq!(store.max_offset(HALF_TOPIC, 0), Some(1));
    (0..16).for_each(|_| world.pass(&store, 30 * SECOND));
    let parked = store.transactions().unwrap().parked();
    assert_eq!(parked[0].commit().unwrap().queue_offset, 0);
    assert_eq!(read(&store, "orders", 0)[0].body.len(), longest);
}

/// Whoever asks is kept waiting until told otherwise.
struct Gate {
    entered: Receiver<()>,
    leave: Sender<TransactionState>,
}

fn gated(store: &Store, group: &str) -> (TransactionalProducer, Gate) {
    let ((enter, entered), (leave, left)) = (channel(), channel());
    let (enter, left) = (Mutex::new(enter), Mutex::new(left));
    let check = move |_: &HalfMessageView| {
        enter.lock().unwrap().send(()).unwrap();
        left.lock().unwrap().recv().unwrap_or(TransactionState::Unknown)
    };
    let builder = store.transactional_producer(group, check).transaction_timeout(Duration::ZERO);
    let builder = builder.transaction_check_interval(Duration::from_millis(1));
    (builder.open().unwrap(), Gate { entered, leave })
}

fn threaded(disk: &SimDisk) -> Store {
    Store::open_in(config(), Environment::on(disk.shared())).unwrap()
}

#[test]
fn a_checker_that_hangs_holds_up_nobody_else() {
    let disk = SimDisk::new(1);
    let store = threaded(&disk);
    let (hanging, gate) = gated(&store, "hanging");
    drop(hanging.begin(order("stuck")).unwrap());
    gate.entered.recv().unwrap();
    let (other, other_gate) = gated(&store, "other");
    drop(other.begin(order("paid")).unwrap());
    other_gate.entered.recv().unwrap();
    other_gate.leave.send(TransactionState::Commit).unwrap();
    assert!(store.wait_for("orders", 0, 0, Duration::from_secs(60)).unwrap());
    assert_eq!(bodies(&store, "orders"), ["paid"]);
    // Nor does it hold the store.
    gate.leave.send(TransactionState::Commit).unwrap();
    assert!(store.wait_for("orders", 0, 1, Duration::from_secs(60)).unwrap());
}

#[test]
fn a_hanging_checker_does_not_keep_the_store_locked() {
    let disk = SimDisk::new(1);
    let mut config = config();
    config.log.close_timeout = Duration::from_millis(50);
    let store = Store::open_in(config, Environment::on(disk.shared())).unwrap();
    let (hanging, gate) = gated(&store, "hanging");
    drop(hanging.begin(order("stuck")).unwrap());
    gate.entered.recv().unwrap();
    drop(hanging);
    drop(store);
    let store = threaded(&disk);
    let _ = gate.leave.send(TransactionState::Commit);
    assert_eq!((stats(&store).open, store.max_offset("orders", 0)), (1, None));
}

#[test]
fn of_the_application_and_the_checker_one_decides() {
    let disk = SimDisk::new(1);
    let store = threaded(&disk);
    let (producer, gate) = gated(&store, "service");
    let half = producer.begin(order("paid")).unwrap();
    gate.entered.recv().unwrap();
    half.commit().unwrap();
    gate.leave.send(TransactionState::Rollback).unwrap();
    let half = producer.begin(order("sent")).unwrap();
    gate.entered.recv().unwrap();
    half.rollback().unwrap();
    gate.leave.send(TransactionState::Commit).unwrap();
    let half = producer.begin(order("late")).unwrap();
    gate.entered.recv().unwrap();
    gate.leave.send(TransactionState::Commit).unwrap();
    assert!(store.wait_for("orders", 0, 1, Duration::from_secs(60)).unwrap());
    assert!(matches!(half.rollback(), Err(Error::TransactionDecided { committed: true })));
    half.commit().unwrap();
    assert_eq!(bodies(&store, "orders"), ["paid", "late"]);
    assert_eq!((stats(&store).committed, stats(&store).rolled_back), (2, 1));
}

#[test]
fn threads_that_decide_the_same_agree_and_share_entries() {
    let disk = SimDisk::new(1);
    let store = threaded(&disk);
    let producer = Oracle::default().producer(&store, "service");
    let halves: Vec<HalfMessage> =
        (0..40).map(|n| producer.begin(order(&n.to_string())).unwrap()).collect();
    let committed = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (halves, committed) = (&halves, &committed);
            scope.spawn(move || {
                for half in halves {
                    let done =
                        if thread % 2 == 0 { half.commit().map(drop) } else { half.rollback() };
                    match done {
                        Ok(()) if thread % 2 == 0 => committed.fetch_add(1, Ordering::SeqCst),
                        Ok(()) => 0,
                        Err(error) => {
                            assert!(matches!(error, Error::TransactionDecided { .. }), "{error}");
                            0
                        }
                    };
                }
            });
        }
    });
    store.flush().unwrap();
    let delivered = bodies(&store, "orders");
    let distinct: BTreeSet<_> = delivered.iter().collect();
    assert_eq!((distinct.len(), 2 * distinct.len()), (delivered.len(), committed.into_inner()));
    let entries = read(&store, HALF_DONE_TOPIC, 0);
    let done: Vec<u64> = entries.iter().flat_map(done_offsets).collect();
    assert_eq!(done.iter().collect::<BTreeSet<_>>().len(), 40);
    assert_eq!(done.len(), 40);
}

fn done_offsets(entry: &StoredMessage) -> Vec<u64> {
    let body = text(&entry.body);
    body.split(',').filter(|n| !n.is_empty()).map(|n| n.parse().unwrap()).collect()
}

#[test]
fn a_crash_between_a_message_and_its_entry_makes_no_second_message_and_nobody_is_asked() {
    for index_enable in [true, false] {
        let mut world = World::new();
        world.config.index_enable = index_enable;
        let store = world.open();
        let oracle = Oracle::default();
        let producer = oracle.producer(&store, "service");
        producer.begin(order("first")).unwrap().commit().unwrap();
        drop(producer.begin(order("open")).unwrap());
        for body in ["paid", "sent"] {
            // The same key: it does not tell them apart.
            producer.begin(order(body).unique_key("k")).unwrap().commit().unwrap();
        }
        let late = producer.begin(order("late").unique_key("k")).unwrap();
        let entries = store.max_offset(HALF_DONE_TOPIC, 0);
        late.commit().unwrap();
        // The entry waits for the next sync.
        let store = world.power_cut();
        assert_eq!(store.max_offset(HALF_DONE_TOPIC, 0), entries);
        let _producer = oracle.producer(&store, "service");
        assert_eq!(stats(&store).open, 2, "index {index_enable}");
        world.pass(&store, 6 * SECOND);
        assert_eq!(oracle.asked(), ["open"]);
        assert_eq!(bodies(&store, "orders"), ["first", "paid", "sent", "late"]);
        assert_eq!(stats(&store).open, 1);
    }
}

#[test]
fn a_half_message_taken_before_the_limit_was_lowered_is_asked_about_and_committed() {
    let mut world = World::new();
    let store = world.open();
    let oracle = Oracle::default();
    let (paid, unknown) = ("p".repeat(5_000), "u".repeat(5_000));
    let producer = oracle.producer(&store, "service");
    drop(producer.begin(order(&paid)).unwrap());
    drop(producer.begin(order(&unknown)).unwrap());
    world.config.log.max_message_size = 100;
    let store = world.power_cut();
    let producer = oracle.producer(&store, "service");
    assert!(matches!(producer.begin(order(&paid)), Err(Error::TooLarge { .. })));
    oracle.say(&paid, TransactionState::Commit);
    for _ in 0..15 {
        world.pass(&store, 30 * SECOND);
    }
    assert_eq!(bodies(&store, "orders"), [paid]);
    assert_eq!((stats(&store).open, stats(&store).parked), (0, 1));
}

#[test]
fn an_index_that_lacks_what_was_committed_is_not_believed() {
    // Lost, or ends with a failure: before the half message or behind it.
    for fails_at in [None, Some(1), Some(2), Some(3), Some(4), Some(5)] {
        let mut world = World::new();
        // One key in each file.
        world.config.index_items = 2;
        let store = world.open();
        let oracle = Oracle::default();
        let producer = oracle.producer(&store, "service");
        drop(producer.begin(order("open")).unwrap());
        producer.begin(order("paid")).unwrap().commit().unwrap();
        world.disk = world.disk.cut_power(Cut::losing_all());
        drop((producer, store));
        if fails_at.is_none() {
            // Whoever did that left what says up to where the index is.
            for file in world.disk.files() {
                if file.starts_with(format!("{DIR}/index")) {
                    world.disk.drop_file(&file).unwrap();
                }
            }
        }
        if let Some(nth) = fails_at {
            let fault = Fault::on(SimCall::Create).path(format!("{DIR}/index/"));
            world.disk.inject(fault.nth(nth).forever());
        }
        let store = world.open();
        let _producer = oracle.producer(&store, "service");
        world.pass(&store, 6 * SECOND);
        assert_eq!(oracle.asked(), ["open"], "{fails_at:?}");
        assert_eq!(bodies(&store, "orders"), ["paid"]);
        assert_eq!(stats(&store).open, 1);
    }
}

#[test]
fn a_crash_between_a_message_that_is_delayed_and_its_entry_makes_no_second_message() {
    for index_enable in [true, false] {
        for (name, value, time) in [
            (names::DELAY, "4", 30 * SECOND),
            (names::TIMER_DELAY_SEC, "30", 30 * SECOND),
            (names::TIMER_DELIVER_MS, "1700000040000", 40 * SECOND),
        ] {
            for is_delivered in [false, true] {
                let mut world = World::new();
                world.config.index_enable = index_enable;
                let store = world.open();
                put(&store, brokers_half("paid").property(name, value));
                drop(store);
                let store = world.power_cut();
                let oracle = Oracle::default();
                oracle.say("paid", TransactionState::Commit);
                let producer = oracle.producer(&store, "service");
                world.clock.advance(6 * SECOND);
                // The entry waits for the next sync.
                while store.step(StoreWorker::Delivery) == Next::Now {}
                assert_eq!(oracle.asked(), ["paid"]);
                let mut next = world.power_cut();
                drop((producer, store));
                if is_delivered {
                    next.deliver_delayed().unwrap();
                    world.pass(&next, time);
                    world.pass(&next, SECOND);
                    assert_eq!(bodies(&next, "orders"), ["paid"]);
                    next.close().unwrap();
                    drop(next);
                    next = world.open();
                }
                let store = next;
                let _producer = oracle.producer(&store, "service");
                (0..60).for_each(|_| world.pass(&store, SECOND));
                let case = format!("{name}, index {index_enable}, delivered {is_delivered}");
                assert_eq!(oracle.asked(), [""; 0], "{case}");
                assert_eq!(bodies(&store, "orders"), ["paid"], "{case}");
                assert_eq!(stats(&store).open, 0, "{case}");
            }
        }
    }
}

#[test]
fn what_a_broker_has_committed_of_a_copy_is_not_committed_again_though_it_did_not_say_so() {
    for index_enable in [true, false] {
        let mut world = World::new();
        world.config.index_enable = index_enable;
        let store = world.open();
        let oracle = Oracle::default();
        let producer = oracle.producer(&store, "service");
        for body in ["paid", "open"] {
            drop(producer.begin(order(body).unique_key(body)).unwrap());
        }
        // Checked in vain, they are put again.
        world.pass(&store, 6 * SECOND);
        assert_eq!(oracle.asked(), ["paid", "open"]);
        let copy = read(&store, HALF_TOPIC, 0).remove(2);
        assert_eq!(text(&copy.body), "paid");
        let committed = Message::new("orders", copy.body)
            .properties(copy.properties)
            .sys_flag(SysFlag::COMMIT)
            .prepared_transaction_offset(copy.physical_offset);
        put(&store, committed);
        let store = world.power_cut();
        let _producer = oracle.producer(&store, "service");
        oracle.say("paid", TransactionState::Commit);
        world.pass(&store, 60 * SECOND);
        assert_eq!(oracle.asked(), ["open"], "index {index_enable}");
        assert_eq!(bodies(&store, "orders"), ["paid"]);
        assert_eq!(stats(&store).open, 1);
    }
}

#[test]
fn a_full_disk_is_told_of_and_the_half_message_stays_open_until_there_is_room() {
    let world = World::new();
    let store = world.open();
    let oracle = Oracle::default();
    let producer = oracle.producer(&store, "service");
    let half = producer.begin(order(&"b".repeat(20_000))).unwrap();
    world.disk.set_capacity(world.disk.used());
    // What is reserved is used first.
    let refused = (0..20).find_map(|_| store.try_submit(order(&"x".repeat(9_000))).err());
    assert!(refused.is_some());
    let refused = half.commit().unwrap_err();
    assert!(matches!(refused, Error::DiskFull { .. }), "{refused}");
    let others = bodies(&store, "orders").len();
    let rolled_back = (0..1000).find_map(|_| {
        let half = producer.begin(order("small")).ok()?;
        half.rollback().err()
    });
    if let Some(refused) = rolled_back {
        assert!(matches!(refused, Error::DiskFull { .. }), "{refused}");
    }
    world.pass(&store, 6 * SECOND);
    assert!(stats(&store).open >= 1);
    assert_eq!(bodies(&store, "orders").len(), others);
    world.disk.set_capacity(u64::MAX);
    half.commit().unwrap();
    assert_eq!(bodies(&store, "orders").len(), others + 1);
    // A check that came when the disk was full does not count.
    oracle.say("small", TransactionState::Rollback);
    world.pass(&store, 60 * SECOND);
    assert_eq!((stats(&store).open, stats(&store).parked), (0, 0));
}

#[test]
fn a_check_on_a_full_disk_is_made_again_and_does_not_count() {
    let world = World::new();
    let store = world.open();
    let oracle = Oracle::default();
    let producer = oracle.producer(&store, "service");
    let (first, second) = ("c".repeat(20_000), "u".repeat(20_000));
    oracle.say(&first, TransactionState::Commit);
    drop(producer.begin(order(&first)).unwrap());
    drop(producer.begin(order(&second)).unwrap());
    world.disk.set_capacity(world.disk.used());
    while store.try_submit(order(&"x".repeat(9_000))).is_ok() {
        work(&store);
    }
    let others = bodies(&store, "orders").len();
    world.pass(&store, 6 * SECOND);
    assert_eq!((oracle.asked().len(), stats(&store).open), (2, 2));
    assert!(matches!(stats(&store).last_error, Some(Error::DiskFull { .. })));
    world.disk.set_capacity(u64::MAX);
    world.pass(&store, 30 * SECOND);
    assert_eq!((oracle.asked().len(), stats(&store).open), (2, 1));
    assert_eq!(bodies(&store, "orders").len(), others + 1);
    let copies = read(&store, HALF_TOPIC, 0);
    assert_eq!(copies.last().unwrap().get(names::TRANSACTION_CHECK_TIMES), Some("1"));
}

#[test]
fn a_commit_whose_entry_finds_no_room_is_done_and_the_entry_follows() {
    let world = World::new();
    let store = world.open();
    let producer = Oracle::default().producer(&store, "service");
    let half = producer.begin(order("paid")).unwrap();
    let size = half.read().unwrap().view().size() as u64;
    // Room for the message in the first segment, and hardly more.
    let fill = |len: u64| put(&store, order(&"x".repeat(len as usize)));
    let left = || (64 << 10) - store.stats().watermarks.appended;
    fill(100);
    let before = left();
    fill(100);
    let overhead = before - left() - 100;
    // Before the next segment is made ahead.
    world.disk.set_capacity(world.disk.used());
    fill(left() - overhead - size - 50);
    half.commit().unwrap();
    assert_eq!((stats(&store).open, store.max_offset(HALF_DONE_TOPIC, 0)), (1, None));
    assert!(matches!(half.rollback(), Err(Error::TransactionDecided { committed: true })));
    world.pass(&store, SECOND);
    assert_eq!(stats(&store).open, 1);
    world.disk.set_capacity(u64::MAX);
    world.pass(&store, SECOND);
    world.pass(&store, SECOND);
    assert_eq!((stats(&store).open, store.max_offset(HALF_DONE_TOPIC, 0)), (0, Some(1)));
    assert_eq!(bodies(&store, "orders").iter().filter(|body| *body == "paid").count(), 1);
}

/// Waits for what other threads are bound to do.
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(std::time::Instant::now() < deadline, "it never came about that {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn what_a_slow_disk_has_not_made_safe_is_decided_all_the_same_and_put_once() {
    let disk = SimDisk::new(1);
    let mut config = config().flush_mode(FlushMode::Sync { timeout: Duration::from_millis(20) });
    config.index_enable = false;
    let store = Store::open_in(config, Environment::on(disk.shared())).unwrap();
    let oracle = Oracle::default();
    let producer = oracle.producer(&store, "service");
    let (paid, sent) =
        (producer.begin(order("paid")).unwrap(), producer.begin(order("sent")).unwrap());
    disk.hang_syncs(true);
    assert!(matches!(paid.commit(), Err(Error::NotOk(_))));
    assert!(matches!(paid.commit(), Err(Error::NotOk(_))));
    assert!(matches!(paid.rollback(), Err(Error::TransactionDecided { committed: true })));
    assert!(matches!(sent.rollback(), Err(Error::NotOk(_))));
    assert!(matches!(sent.commit(), Err(Error::TransactionDecided { committed: false })));
    assert!(matches!(producer.begin(order("late")), Err(Error::NotOk(_))));
    disk.hang_syncs(false);
    store.flush().unwrap();
    let done = paid.commit().unwrap();
    sent.rollback().unwrap();
    assert_eq!((done.queue_offset, bodies(&store, "orders").len()), (0, 1));
    eventually("the entry is put", || {
        store.flush().unwrap();
        let entries = read(&store, HALF_DONE_TOPIC, 0);
        let done: BTreeSet<u64> = entries.iter().flat_map(done_offsets).collect();
        done == BTreeSet::from([0, 1])
    });
    // Whoever put it may not decide: the checker does.
    assert_eq!(stats(&store).open, 1);
}

#[test]
fn a_crash_while_a_half_message_is_parked_parks_it_once() {
    let mut world = World::new();
    let store = world.open();
    let oracle = Oracle::default();
    let producer = store.transactional_producer("service", oracle.check());
    let producer = producer.transaction_check_max(1).open().unwrap();
    drop(producer.begin(order("paid")).unwrap());
    world.pass(&store, 6 * SECOND);
    // The half message is done with, but that waits for the next sync.
    let store = world.power_cut();
    assert_eq!(store.max_offset(HALF_DONE_TOPIC, 0), None);
    let _producer = oracle.producer(&store, "service");
    assert_eq!((stats(&store).parked, oracle.asked().len()), (1, 1));
    world.pass(&store, 60 * SECOND);
    assert_eq!((stats(&store).open, stats(&store).parked, oracle.asked().len()), (0, 1, 0));
    store.transactions().unwrap().parked()[0].rollback().unwrap();
    world.pass(&store, 2 * SECOND);
    let store = world.power_cut();
    assert_eq!((stats(&store).open, stats(&store).parked), (0, 0));
}

#[test]
fn offsets_never_pass_what_a_power_cut_may_bring_back() {
    let mut world = World::new();
    world.config = world.config.flush_mode(FlushMode::async_default());
    let store = world.open();
    let oracle = Oracle::default();
    let producer = oracle.producer(&store, "service");
    let half = producer.begin(order("paid")).unwrap();
    store.flush().unwrap();
    half.commit().unwrap();
    // What moves offsets runs, and the disk has yet to be written to.
    while store.step(StoreWorker::Delivery) == Next::Now {}
    world.clock.advance(SECOND);
    while store.step(StoreWorker::Delivery) == Next::Now {}
    store.flush_offsets().unwrap();
    let store = world.power_cut();
    assert_eq!(store.max_offset("orders", 0), None, "as async flush may");
    oracle.say("paid", TransactionState::Commit);
    let _producer = oracle.producer(&store, "service");
    world.pass(&store, 6 * SECOND);
    assert_eq!(bodies(&store, "orders"), ["paid"]);
}

#[test]
fn a_half_message_that_rots_is_told_of_and_holds_up_nobody() {
    let mut world = World::new();
    let store = world.open();
    let oracle = Oracle::default();
    let producer = oracle.producer(&store, "service");
    let rotten = producer.begin(order("rotten")).unwrap();
    drop(producer.begin(order("paid")).unwrap());
    oracle.say("paid", TransactionState::Commit);
    let at = rotten.read().unwrap().view().physical_offset();
    let flip = |disk: &SimDisk| {
        disk.flip_bit(format!("{DIR}/commitlog/{:020}", 0), at + 90, 1).unwrap();
    };
    store.close().unwrap();
    drop((producer, rotten));
    flip(&world.disk);
    world.disk = world.disk.kill();
    let store = world.open();
    let producer = oracle.producer(&store, "service");
    let found = stats(&store);
    assert_eq!((found.open, found.unreadable), (1, 1));
    assert!(matches!(found.last_error, Some(Error::Corrupt { .. })));
    world.pass(&store, 6 * SECOND);
    world.pass(&store, 6 * SECOND);
    assert_eq!(
        (oracle.asked(), bodies(&store, "orders")),
        (vec!["paid".into()], vec!["paid".into()])
    );
    assert_eq!(store.committed_offset(SYSTEM_GROUP, HALF_TOPIC, 0), Some(2));
    drop(producer);
}

#[test]
fn a_half_message_that_expires_is_told_of_unless_groups_hold_up_what_they_need() {
    for pin in [false, true] {
        let mut world = World::new();
        let retention = duralog::config::Retention::max_total_bytes(2 * (64 << 10));
        world.config = world.config.retention(retention.pin_by_groups(pin));
        world.config.queue_checkpoint_bytes = 4096;
        let store = world.open();
        let oracle = Oracle::default();
        let producer = oracle.producer(&store, "service");
        (0..3).for_each(|_| world.pass(&store, SECOND));
        let half = producer.begin(order("forgotten")).unwrap();
        world.pass(&store, SECOND);
        for _ in 0..300 {
            put(&store, order(&"x".repeat(1000)));
        }
        store.step(StoreWorker::Checkpoint);
        while store.step(StoreWorker::Retention) == Next::Now {}
        store.step(StoreWorker::Checkpoint);
        let is_there = store.min_offset(HALF_TOPIC, 0) == Some(0);
        assert_eq!(is_there, pin);
        world.pass(&store, 6 * SECOND);
        let found = stats(&store);
        if pin {
            assert_eq!((found.open, found.unreadable, oracle.asked().len()), (1, 0, 1));
            half.commit().unwrap();
        } else {
            assert_eq!((found.open, found.unreadable, oracle.asked().len()), (0, 1, 0));
            assert!(matches!(half.commit(), Err(Error::HalfMessageGone { queue_offset: 0 })));
        }
    }
}

/// Which half messages a broker would find open: from the offsets of the group on, those that no entry says
/// are done with.
fn open_to_a_broker(store: &Store) -> Vec<String> {
    let from = |topic| {
        let min = store.min_offset(topic, 0).unwrap_or(0);
        store.committed_offset(SYSTEM_GROUP, topic, 0).unwrap_or(min)
    };
    let (halves_from, entries_from) = (from(HALF_TOPIC), from(HALF_DONE_TOPIC));
    let entries = read(store, HALF_DONE_TOPIC, 0).into_iter();
    let entries = entries.filter(|entry| entry.queue_offset as u64 >= entries_from);
    let done: BTreeSet<u64> = entries.flat_map(|entry| done_offsets(&entry)).collect();
    let halves = read(store, HALF_TOPIC, 0).into_iter();
    let open = halves.filter(|half| {
        let offset = half.queue_offset as u64;
        offset >= halves_from && !done.contains(&offset)
    });
    open.map(|half| text(&half.body)).collect()
}

#[test]
fn the_offsets_move_over_what_is_done_with_and_a_broker_is_told() {
    let mut world = World::new();
    let store = world.open();
    let oracle = Oracle::default();
    let producer = oracle.producer(&store, "service");
    let offsets = |store: &Store| {
        [HALF_TOPIC, HALF_DONE_TOPIC].map(|topic| store.committed_offset(SYSTEM_GROUP, topic, 0))
    };
    let halves = ["a", "b", "c"].map(|body| producer.begin(order(body)).unwrap());
    halves[1].commit().unwrap();
    world.pass(&store, SECOND);
    assert_eq!(offsets(&store), [Some(0), None], "the first one is open");
    assert_eq!(open_to_a_broker(&store), ["a", "c"]);
    halves[0].rollback().unwrap();
    world.pass(&store, SECOND);
    assert_eq!(offsets(&store), [Some(2), Some(0)], "entries are passed later");
    assert_eq!(open_to_a_broker(&store), ["c"]);
    world.pass(&store, SECOND);
    assert_eq!(offsets(&store), [Some(2), Some(2)]);
    // A check in vain moves the half message to the end.
    world.pass(&store, 6 * SECOND);
    world.pass(&store, SECOND);
    world.pass(&store, SECOND);
    assert_eq!(offsets(&store), [Some(3), Some(3)]);
    assert_eq!(open_to_a_broker(&store), ["c"]);
    let copy = &read(&store, HALF_TOPIC, 0)[3];
    assert_eq!(copy.get(names::TRANSACTION_CHECK_TIMES), Some("1"));
    store.close().unwrap();
    let tables = duralog::tables::Tables::new_in(DIR, Environment::on(world.disk.shared()));
    let exported = tables.load::<duralog::tables::ConsumerOffsets>().unwrap().table;
    assert_eq!(exported.get(HALF_TOPIC, SYSTEM_GROUP, 0), Some(3));
    assert_eq!(exported.get(HALF_DONE_TOPIC, SYSTEM_GROUP, 0), Some(3));
    drop((producer, halves));
    let store = world.power_cut();
    assert_eq!((open_to_a_broker(&store), stats(&store).open), (vec!["c".into()], 1));
}

#[test]
fn one_that_nobody_checks_does_not_hold_the_offsets_for_ever() {
    let mut world = World::new();
    world.config = world.config.segment_size(1 << 20);
    world.config.consume_queue_file_size = 20 * 4096;
    world.config.index_enable = false;
    let store = world.open();
    let oracle = Oracle::default();
    let old = oracle.producer(&store, "old");
    drop(old.begin(order("stuck")).unwrap());
    drop(old);
    let producer = oracle.producer(&store, "service");
    for n in 0..10_004 {
        producer.begin(order("x")).unwrap().rollback().unwrap();
        if n % 1000 == 0 {
            world.pass(&store, SECOND);
        }
    }
    assert_eq!(store.committed_offset(SYSTEM_GROUP, HALF_TOPIC, 0), Some(0));
    producer.begin(order("x")).unwrap().rollback().unwrap();
    (0..4).for_each(|_| world.pass(&store, SECOND));
    assert_eq!(store.committed_offset(SYSTEM_GROUP, HALF_TOPIC, 0), Some(10_006));
    assert_eq!(open_to_a_broker(&store), ["stuck"]);
    assert_eq!((stats(&store).open, oracle.asked().len()), (1, 0));
    let copy = read(&store, HALF_TOPIC, 0).pop().unwrap();
    assert_eq!(copy.get(names::TRANSACTION_CHECK_TIMES), None, "it was not checked");
    let store = world.power_cut();
    let _old = oracle.producer(&store, "old");
    oracle.say("stuck", TransactionState::Commit);
    world.pass(&store, Duration::ZERO);
    assert_eq!(bodies(&store, "orders"), ["stuck"]);
}

/// A half message as a broker stores it.
fn brokers_half(body: &str) -> Message {
    Message::new(HALF_TOPIC, body)
        .property(names::REAL_TOPIC, "orders")
        .property(names::REAL_QUEUE_ID, "0")
        .property(names::TRANSACTION_PREPARED, "true")
        .property(names::PRODUCER_GROUP, "service")
        .unique_key(body)
}

fn put(store: &Store, message: Message) {
    let ticket = store.submit(message).unwrap();
    work(store);
    ticket.wait().unwrap().ok().unwrap();
}

#[test]
fn what_a_broker_left_open_is_found_whichever_version_it_had() {
    let mut world = World::new();
    let store = world.open();
    let done = |body: &str| Message::new(HALF_DONE_TOPIC, body).tag("d");
    for body in ["0", "1", "2", "3", "4", "5"] {
        put(&store, brokers_half(body));
    }
    put(&store, done("1"));
    put(&store, done("2,3,"));
    // One that was put again because it is not to be checked yet; its first copy was committed since.
    put(&store, brokers_half("3 again").property(names::TRANSACTION_PREPARED_QUEUE_OFFSET, "3"));
    // One that was checked.
    put(&store, brokers_half("checked").property(names::TRANSACTION_CHECK_TIMES, "14"));
    put(&store, Message::new(HALF_TOPIC, "makes no sense"));
    // One whose copies and itself are all open: the newest stands for them.
    put(&store, brokers_half("thrice"));
    for body in ["thrice, again", "thrice, and again"] {
        let offset = names::TRANSACTION_PREPARED_QUEUE_OFFSET;
        put(&store, brokers_half(body).property(offset, "9"));
    }
    store.commit_offset(SYSTEM_GROUP, HALF_TOPIC, 0, 1).unwrap();
    store.flush_offsets().unwrap();
    let store = world.power_cut();
    let oracle = Oracle::default();
    let _producer = oracle.producer(&store, "service");
    assert_eq!(stats(&store).unreadable, 1);
    world.pass(&store, 6 * SECOND);
    assert_eq!(oracle.asked(), ["4", "5", "checked", "thrice, and again"]);
    assert_eq!((stats(&store).open, stats(&store).parked), (3, 1));
    let parked = store.transactions().unwrap().parked();
    assert_eq!(parked[0].transaction_id(), "checked");
}

#[test]
fn an_entry_that_anybody_has_put_says_nothing_of_what_comes_behind_it_and_holds_nothing_up() {
    let mut world = World::new();
    let store = world.open();
    let oracle = Oracle::default();
    let producer = oracle.producer(&store, "service");
    producer.begin(order("0")).unwrap().rollback().unwrap();
    put(&store, Message::new(HALF_DONE_TOPIC, "2,18446744073709551615,3,9000,").tag("d"));
    for body in ["1", "2"] {
        drop(producer.begin(order(body)).unwrap());
    }
    // A copy of a broker's own of the one that was named too early.
    put(&store, brokers_half("3").property(names::TRANSACTION_PREPARED_QUEUE_OFFSET, "2"));
    drop(producer);
    let store = world.power_cut();
    let producer = oracle.producer(&store, "service");
    world.pass(&store, 6 * SECOND);
    assert_eq!(oracle.asked(), ["1", "3"]);
    for body in ["1", "3"] {
        oracle.say(body, TransactionState::Commit);
    }
    world.pass(&store, 30 * SECOND);
    (0..3).for_each(|_| world.pass(&store, SECOND));
    assert_eq!((stats(&store).open, stats(&store).committed), (0, 2));
    producer.begin(order("last")).unwrap().rollback().unwrap();
    (0..3).for_each(|_| world.pass(&store, SECOND));
    let next = store.committed_offset(SYSTEM_GROUP, HALF_DONE_TOPIC, 0);
    assert_eq!(next, store.max_offset(HALF_DONE_TOPIC, 0));
}

#[test]
fn what_a_broker_left_that_is_to_be_delayed_is_once_it_is_committed() {
    let mut world = World::new();
    let store = world.open();
    put(&store, brokers_half("paid").property(names::DELAY, "4"));
    let store = world.power_cut();
    let oracle = Oracle::default();
    oracle.say("paid", TransactionState::Commit);
    let _producer = oracle.producer(&store, "service");
    world.pass(&store, 6 * SECOND);
    assert_eq!((stats(&store).committed, stats(&store).open), (1, 0));
    (0..28).for_each(|_| world.pass(&store, SECOND));
    assert_eq!(store.max_offset("orders", 0), None);
    (0..3).for_each(|_| world.pass(&store, SECOND));
    assert_eq!(bodies(&store, "orders"), ["paid"]);
}

#[test]
fn what_a_broker_parked_is_decided_by_hand() {
    let mut world = World::new();
    let store = world.open();
    for body in ["paid", "sent"] {
        let half = brokers_half(body).property(names::TRANSACTION_PREPARED_QUEUE_OFFSET, "0");
        let properties = half.properties_ref().to_owned();
        put(&store, Message::new(CHECKED_IN_VAIN_TOPIC, body).properties(properties));
    }
    let parked = store.transactions().unwrap().parked();
    assert_eq!(parked.len(), 2);
    parked[0].commit().unwrap();
    world.pass(&store, SECOND);
    let store = world.power_cut();
    let parked = store.transactions().unwrap().parked();
    assert_eq!((parked.len(), parked[0].transaction_id()), (1, "sent"));
    assert_eq!(bodies(&store, "orders"), ["paid"]);
}

#[test]
fn what_a_broker_left_that_cannot_be_committed_is_parked_in_the_end_and_holds_up_nobody() {
    let mut world = World::new();
    let store = world.open();
    let nowhere = brokers_half("nowhere").property(names::REAL_TOPIC, "no topic");
    put(&store, nowhere.property(names::TRANSACTION_CHECK_TIMES, "5"));
    put(&store, brokers_half("paid"));
    let store = world.power_cut();
    let oracle = Oracle::default();
    for body in ["nowhere", "paid"] {
        oracle.say(body, TransactionState::Commit);
    }
    let _producer = oracle.producer(&store, "service");
    world.pass(&store, 6 * SECOND);
    assert_eq!(
        (oracle.asked(), bodies(&store, "orders")),
        (vec!["nowhere".into(), "paid".into()], vec!["paid".into()],)
    );
    (0..20).for_each(|_| world.pass(&store, 30 * SECOND));
    assert_eq!((oracle.asked().len(), stats(&store).open, stats(&store).parked), (9, 0, 1));
    let parked = store.transactions().unwrap().parked();
    assert!(matches!(parked[0].commit(), Err(Error::InvalidMessage(_))));
    parked[0].rollback().unwrap();
    assert_eq!(stats(&store).parked, 0);
}

/// What is to become of a transaction: told to the checker after so many questions.
#[derive(Debug, Clone, Copy)]
struct Truth {
    state: TransactionState,
    after: usize,
}

/// What the application's database knows, whatever crashes.
#[derive(Default)]
struct Database {
    truths: BTreeMap<String, Truth>,
    asked: BTreeMap<String, usize>,
    /// Those of which a commit or rollback has returned `Ok`.
    decided: BTreeSet<String>,
}

#[derive(Default)]
struct Totals {
    crashes: u64,
    begun: u64,
    committed: u64,
    rolled_back: u64,
    parked: u64,
    unknown: u64,
    full: u64,
    gone_back: u64,
    saved: u64,
}

const SYSTEM_QUEUES: [(&str, i32); 4] =
    [(HALF_TOPIC, 0), (HALF_DONE_TOPIC, 0), (CHECKED_IN_VAIN_TOPIC, 0), (CHECKED_IN_VAIN_TOPIC, 1)];
const SERVICES: [&str; 3] = ["alpha", "beta", "gamma"];

struct Scenario<'a> {
    rng: Rng,
    disk: SimDisk,
    clock: Arc<ManualClock>,
    config: StoreConfig,
    kills_only: bool,
    database: Arc<Mutex<Database>>,
    /// Half messages that are known to be stored.
    stored: BTreeSet<String>,
    /// Offsets of the group at some time.
    points: Vec<[u64; 4]>,
    totals: &'a mut Totals,
}

/// What one life of the process has.
struct Life {
    store: Store,
    producers: Vec<TransactionalProducer>,
    halves: Vec<(String, HalfMessage)>,
}

impl Scenario<'_> {
    fn producer(&self, store: &Store, group: &str) -> duralog::Result<TransactionalProducer> {
        let database = self.database.clone();
        let check = move |half: &HalfMessageView| {
            let body = text(half.body());
            let mut database = database.lock().unwrap();
            assert!(!database.decided.contains(&body), "{body} is decided, and still asked about");
            let asked = database.asked.entry(body.clone()).or_default();
            *asked += 1;
            let asked = *asked;
            let truth = database.truths[&body];
            if asked > truth.after { truth.state } else { TransactionState::Unknown }
        };
        store.transactional_producer(group, check).open()
    }

    /// Opens the store, with producers for some of the groups.
    fn try_live(&mut self, all: bool) -> duralog::Result<Life> {
        let environment = Environment::on(self.disk.shared()).clock(self.clock.clone()).stepped();
        let store = Store::open_in(self.config.clone(), environment)?;
        self.check(&store);
        if !self.points.is_empty() && self.rng.one_in(4) {
            // Each for itself: a broker's table may be taken over in part.
            for (queue, (topic, queue_id)) in SYSTEM_QUEUES.into_iter().enumerate() {
                let offset = self.rng.pick(&self.points)[queue];
                let known = store.committed_offset(SYSTEM_GROUP, topic, queue_id).unwrap_or(0);
                if self.rng.one_in(2) {
                    store.commit_offset(SYSTEM_GROUP, topic, queue_id, offset.min(known))?;
                }
            }
            self.totals.gone_back += 1;
        }
        let mut producers = Vec::new();
        for group in SERVICES {
            if all || !self.rng.one_in(4) {
                producers.push(self.producer(&store, group)?);
            }
        }
        Ok(Life { store, producers, halves: Vec::new() })
    }

    fn crash(&mut self, life: Option<Life>) -> Life {
        drop(life);
        let mut is_kill = self.kills_only || !self.disk.is_down() && self.rng.one_in(2);
        loop {
            let cut = Cut::seeded(self.rng.below(u64::MAX));
            self.disk = if is_kill { self.disk.kill() } else { self.disk.cut_power(cut) };
            self.disk.set_capacity(u64::MAX);
            self.totals.crashes += 1;
            if self.rng.one_in(4) {
                self.arm(60);
            }
            match self.try_live(false) {
                Ok(life) if !self.disk.is_down() => {
                    self.disk.disarm();
                    return life;
                }
                Ok(life) => drop(life),
                Err(error) => assert!(self.disk.is_down(), "{error}"),
            }
            is_kill = self.kills_only;
        }
    }

    fn arm(&mut self, within: u64) {
        let (n, moment) = (1 + self.rng.below(within), CutMoment::Before);
        if self.kills_only { self.disk.kill_at(n, moment) } else { self.disk.cut_at(n, moment) }
    }

    /// How often each message is delivered.
    fn delivered(store: &Store) -> BTreeMap<String, usize> {
        let mut count = BTreeMap::new();
        for queue_id in 0..2 {
            for message in read(store, "orders", queue_id) {
                *count.entry(text(&message.body)).or_default() += 1;
            }
        }
        count
    }

    /// What holds at any time.
    fn check(&self, store: &Store) {
        let delivered = Self::delivered(store);
        let database = self.database.lock().unwrap();
        for (body, count) in &delivered {
            let truth = database.truths[body];
            assert_eq!(truth.state, TransactionState::Commit, "{body} is delivered");
            assert_eq!(*count, 1, "{body} is delivered again");
        }
        for body in &database.decided {
            let is_committed = database.truths[body].state == TransactionState::Commit;
            assert_eq!(delivered.contains_key(body), is_committed, "{body}");
        }
        let open: BTreeSet<String> = open_to_a_broker(store).into_iter().collect();
        let parked: BTreeSet<String> = bodies(store, CHECKED_IN_VAIN_TOPIC).into_iter().collect();
        for body in &self.stored {
            let is_somewhere = open.contains(body)
                || parked.contains(body)
                || delivered.contains_key(body)
                || database.truths[body].state == TransactionState::Rollback;
            assert!(is_somewhere, "{body} is lost");
        }
    }

    fn begin(&mut self, life: &mut Life, number: u64) -> duralog::Result<()> {
        if life.producers.is_empty() {
            return Ok(());
        }
        let index = self.rng.index(life.producers.len());
        let body = format!("{number}{}", "-".repeat(self.rng.index(200)));
        let states =
            [TransactionState::Commit, TransactionState::Rollback, TransactionState::Unknown];
        let truth = Truth { state: self.rng.pick(&states), after: self.rng.index(4) };
        self.database.lock().unwrap().truths.insert(body.clone(), truth);
        let mut message = order(&body).queue(self.rng.below(2) as i32);
        if self.rng.one_in(4) {
            message = message.unique_key("not unique at all");
        }
        let half = life.producers[index].begin(message)?;
        self.alive()?;
        self.totals.begun += 1;
        self.stored.insert(body.clone());
        life.halves.push((body, half));
        Ok(())
    }

    /// Who was killed says nothing any more, though a mapping takes what he writes.
    fn alive(&self) -> duralog::Result<()> {
        if self.disk.is_down() { Err(Error::Closed) } else { Ok(()) }
    }

    /// What an application does that knows what it did.
    fn decide(&mut self, body: &str, half: &HalfMessage) -> duralog::Result<()> {
        let state = self.database.lock().unwrap().truths[body].state;
        match state {
            TransactionState::Commit => {
                half.commit()?;
                self.alive()?;
                self.totals.committed += 1;
                let refused = half.rollback();
                assert!(matches!(refused, Err(Error::TransactionDecided { committed: true })));
            }
            TransactionState::Rollback => {
                half.rollback()?;
                self.alive()?;
                self.totals.rolled_back += 1;
                let refused = half.commit();
                assert!(matches!(refused, Err(Error::TransactionDecided { committed: false })));
            }
            _ => return Ok(()),
        }
        self.database.lock().unwrap().decided.insert(body.to_owned());
        Ok(())
    }

    /// Someone looks at what was parked, and makes up his mind.
    fn resolve(&mut self, half: &HalfMessage) -> duralog::Result<()> {
        let body = text(half.read()?.body());
        let state = self.rng.pick(&[TransactionState::Commit, TransactionState::Rollback]);
        {
            let mut database = self.database.lock().unwrap();
            assert!(database.asked[&body] >= 15, "{body} was not asked about often enough");
            let truth = database.truths.get_mut(&body).unwrap();
            if truth.state == TransactionState::Unknown {
                truth.state = state;
            }
        }
        self.totals.parked += 1;
        self.decide(&body, half)
    }

    fn act(&mut self, life: &mut Life, number: u64) -> duralog::Result<()> {
        match self.rng.below(100) {
            0..30 => self.begin(life, number),
            30..50 if !life.halves.is_empty() => {
                let index = self.rng.index(life.halves.len());
                let (body, half) = life.halves[index].clone();
                let decided = self.decide(&body, &half);
                if decided.is_ok() || self.rng.one_in(2) {
                    drop(life.halves.swap_remove(index));
                }
                decided
            }
            50..55 if !life.halves.is_empty() => {
                drop(life.halves.swap_remove(self.rng.index(life.halves.len())));
                Ok(())
            }
            55..80 => {
                self.clock.advance(self.rng.below(40) as u32 * SECOND);
                work(&life.store);
                Ok(())
            }
            80..83 => {
                let parked = life.store.transactions()?.parked();
                if parked.is_empty() {
                    return Ok(());
                }
                let half = &parked[self.rng.index(parked.len())];
                self.resolve(half)
            }
            83..86 => {
                let point = SYSTEM_QUEUES.map(|(topic, queue_id)| {
                    life.store.committed_offset(SYSTEM_GROUP, topic, queue_id).unwrap_or(0)
                });
                self.points.push(point);
                Ok(())
            }
            86..88 => {
                self.disk.set_capacity(self.disk.used() + self.rng.below(3) * 4096);
                Ok(())
            }
            88..90 => {
                self.disk.set_capacity(u64::MAX);
                Ok(())
            }
            90..93 => {
                self.arm(25);
                Ok(())
            }
            93..95 => life.store.flush(),
            95..97 => Err(Error::Closed),
            _ => Ok(()),
        }
    }

    fn run(&mut self) {
        let mut life = self.try_live(false).unwrap();
        let count = 30 + self.rng.below(170);
        for number in 0..count {
            match self.act(&mut life, number) {
                Ok(()) if !self.disk.is_down() => {}
                Err(Error::DiskFull { .. } | Error::SegmentNotReady { .. })
                    if !self.disk.is_down() =>
                {
                    self.totals.full += 1;
                }
                // The lights went out, or the process is killed.
                outcome => {
                    let is_kill = matches!(outcome, Err(Error::Closed));
                    assert!(self.disk.is_down() || is_kill, "{outcome:?}");
                    self.totals.unknown += u64::from(outcome.is_err());
                    life = self.crash(Some(life));
                }
            }
        }
        self.disk.disarm();
        self.disk.set_capacity(u64::MAX);
        drop(life);
        self.disk = self.disk.kill();
        let life = self.try_live(true).unwrap();
        for _ in 0..20 {
            self.clock.advance(31 * SECOND);
            work(&life.store);
        }
        self.check(&life.store);
        let transactions = life.store.transactions().unwrap();
        let found = transactions.stats();
        assert_eq!((found.open, found.unreadable), (0, 0), "{:?}", found.last_error);
        let parked = transactions.parked();
        let ids: BTreeSet<_> = parked.iter().map(|half| half.transaction_id().to_owned()).collect();
        assert!(ids.len() == parked.len() || ids.contains("not unique at all"));
        for half in parked {
            self.resolve(&half).unwrap();
        }
        self.clock.advance(2 * SECOND);
        work(&life.store);
        work(&life.store);
        self.check(&life.store);
        assert_eq!(open_to_a_broker(&life.store), [""; 0]);
        let delivered = Self::delivered(&life.store);
        let database = self.database.lock().unwrap();
        for body in &self.stored {
            let is_committed = database.truths[body].state == TransactionState::Commit;
            assert_ne!(database.truths[body].state, TransactionState::Unknown, "{body}");
            assert_eq!(delivered.contains_key(body), is_committed, "{body}");
        }
        let saved = database.truths.iter().filter(|(body, truth)| {
            let is_committed = truth.state == TransactionState::Commit;
            is_committed && !database.decided.contains(*body) && delivered.contains_key(*body)
        });
        self.totals.saved += saved.count() as u64;
    }
}

fn scenario(seed: u64, totals: &mut Totals) {
    let mut rng = Rng(seed);
    let kills_only = rng.one_in(3);
    let mut config = config().segment_size(16 << 10);
    config.index_enable = rng.one_in(2);
    if kills_only {
        config = config.flush_mode(FlushMode::async_default());
    }
    let mut scenario = Scenario {
        rng,
        disk: SimDisk::new(seed),
        clock: Arc::new(ManualClock::new(1_700_000_000_000)),
        config,
        kills_only,
        database: Arc::default(),
        stored: BTreeSet::new(),
        points: Vec::new(),
        totals,
    };
    scenario.run();
}

#[test]
fn what_was_committed_is_delivered_once_and_what_was_rolled_back_never_whatever_crashes() {
    let mut totals = Totals::default();
    let only = std::env::var("DURALOG_SEED").ok().and_then(|seed| seed.parse().ok());
    let count = std::env::var("DURALOG_SEEDS").ok().and_then(|count| count.parse().ok());
    let seeds = only.map_or(0..count.unwrap_or(120), |seed: u64| seed..seed + 1);
    for seed in seeds {
        let run = AssertUnwindSafe(|| scenario(seed, &mut totals));
        if let Err(panic) = catch_unwind(run) {
            eprintln!("DURALOG_SEED={seed}");
            std::panic::resume_unwind(panic);
        }
    }
    let Totals { crashes, begun, committed, rolled_back, parked, unknown, full, gone_back, saved } =
        totals;
    println!(
        "{crashes} crashes, {begun} begun, {committed} committed, {rolled_back} rolled back, {parked} \
         parked, {unknown} not known, {full} without room, {gone_back} gone back, {saved} by checks"
    );
    if only.is_none() {
        assert!(crashes > 300 && begun > 1000 && committed > 200 && rolled_back > 200);
        assert!(parked > 100 && full > 10 && gone_back > 30 && saved > 100);
    }
}
