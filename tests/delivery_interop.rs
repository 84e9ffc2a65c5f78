//! A broker takes over a store in which messages wait, and gives it back: Apache RocketMQ's own delay
//! levels, timer wheel, transactions and consumer offsets on what this crate has delayed, retried and
//! prepared, and this crate on what the broker made of it. Of 4.9 only the store was published, which
//! delivers what is delayed; of 5.x there is a whole broker. `.ci/interop` runs all this.

#[path = "support/both_readers.rs"]
mod both_readers;
#[allow(dead_code, reason = "its `main` is not called")]
#[path = "../examples/dump.rs"]
mod dump;
#[macro_use]
#[path = "support/java.rs"]
mod java;
#[path = "support/java_session.rs"]
mod java_session;
#[path = "support/temp.rs"]
mod temp;

use both_readers::{Messages, assert_same, by_place, config, copy, place, read};
use duralog::clock::ManualClock;
use duralog::delivery::{
    Consumer, DelayHandle, HalfMessageView, Producer, TransactionState, TransactionalProducer,
};
use duralog::message::format::{
    CHECKED_IN_VAIN_TOPIC, DELAY_LEVELS_MS, HALF_DONE_TOPIC, HALF_TOPIC, SCHEDULE_TOPIC,
    TIMER_DONE_TOPIC, TIMER_TOPIC,
};
use duralog::{Environment, FlushMode, Message, Next, Store, StoreWorker, TagFilter};
use java::Java;
use java_session::JavaSession;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const ORDERS: &str = "orders";
const PAYMENTS: &str = "payments";
const RETRIES: &str = "%RETRY%billing";
const DEAD: &str = "%DLQ%billing";
const SYSTEM_GROUP: &str = "CID_RMQ_SYS_TRANS";
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
const PATIENCE: Duration = Duration::from_secs(60);
/// What is written here first was written so long ago: what is due within it waits for nobody.
const AGO: i64 = 90_000;

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    since.as_millis().try_into().expect("within reach")
}

/// A store of ours on a clock that moves when told to.
struct Ours {
    store: Store,
    clock: Arc<ManualClock>,
    /// What checkers were asked, by the bodies of the half messages.
    asked: Arc<Mutex<Vec<String>>>,
    /// What the group is done with, by body.
    handled: Handled,
}

/// How often each message was handled for good, by body.
type Handled = BTreeMap<String, usize>;

impl Ours {
    fn open(dir: &Path, at: i64) -> Self {
        let clock = Arc::new(ManualClock::new(at));
        let environment = Environment::default().clock(clock.clone()).stepped();
        let config = config(dir, FlushMode::sync());
        let store = Store::open_in(config, environment).expect("the store opens");
        store.deliver_delayed().expect("it delivers");
        Self { store, clock, asked: Arc::default(), handled: Handled::new() }
    }

    fn work(&self) {
        use StoreWorker::{Delivery, Dispatch, Flush, Offsets, Upkeep};
        for _ in 0..1000 {
            for worker in [Upkeep, Flush, Dispatch] {
                while self.store.step(worker) == Next::Now {}
            }
            if self.store.step(Delivery) != Next::Now {
                while self.store.step(Offsets) == Next::Now {}
                return;
            }
        }
        panic!("delivery does not come to rest");
    }

    fn pass(&self, time: Duration) {
        self.clock.advance(time);
        // Once more, for what was put meanwhile.
        for _ in 0..2 {
            self.work();
        }
    }

    fn producer(&self) -> Producer {
        self.store.producer("shop").open().expect("it opens")
    }

    fn consumer(&self) -> Consumer {
        let consumer = self.store.consumer("billing").subscribe(PAYMENTS, TagFilter::any());
        consumer.open().expect("it opens")
    }

    /// A producer whose checker says `answer`, but of what is to be parked that it does not know.
    fn transactions(&self, group: &str, answer: TransactionState) -> TransactionalProducer {
        let asked = self.asked.clone();
        let check = move |half: &HalfMessageView| {
            asked.lock().expect("no panic").push(text(half.body()));
            answer
        };
        let producer = self.store.transactional_producer(group, check);
        let producer = producer.transaction_timeout(6 * SECOND).transaction_check_interval(HOUR);
        let checks = if group == "lost" { 1 } else { 15 };
        producer.transaction_check_max(checks).open().expect("it opens")
    }

    fn send(&self, producer: &Producer, message: Message) {
        let ticket = producer.send_async(message).expect("it is put");
        self.work();
        ticket.wait().expect("it is safe");
    }

    fn timed(&self, message: Message) -> DelayHandle {
        let (ticket, handle) = self.store.submit_delayed(message).expect("it is put");
        self.work();
        ticket.wait().expect("an answer").ok().expect("it is safe");
        handle.expect("it has a time of its own")
    }

    fn close(self) {
        self.work();
        self.store.close().expect("the store closes");
    }
}

fn text(body: &[u8]) -> String {
    String::from_utf8(body.to_vec()).expect("UTF-8")
}

fn body_of(message: &Value) -> String {
    let hex = message["bodyHex"].as_str().expect("a short body");
    let byte = |at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal");
    text(&(0..hex.len()).step_by(2).map(byte).collect::<Vec<_>>())
}

/// How often each body is among messages.
fn bodies_of<'a>(messages: impl IntoIterator<Item = &'a Value>) -> Handled {
    let mut bodies = Handled::new();
    messages.into_iter().for_each(|message| handle(&mut bodies, body_of(message)));
    bodies
}

fn bodies(messages: &Messages, topic: &str) -> Handled {
    bodies_of(messages.values().filter(|message| message["topic"] == topic))
}

fn names<'a>(bodies: impl IntoIterator<Item = &'a str>) -> BTreeSet<String> {
    bodies.into_iter().map(str::to_owned).collect()
}

/// A store in which everything waits that can: for a level, for a time, for a retry, for the end of a
/// transaction. Of each kind something is done with, and much is not. It is left 14 s after `at`.
fn busy(dir: &Path, at: i64) -> Ours {
    let mut ours = Ours::open(dir, at);
    let store = &ours.store;
    let producer = ours.producer();
    let to = |body: &str| Message::new(ORDERS, body).tag("paid").key(format!("key of {body}"));
    for level in 1..=DELAY_LEVELS_MS.len() as u32 {
        for n in 0..2 {
            let message = to(&format!("level {level} {n}")).queue(n);
            ours.send(&producer, message.delay_level(level));
        }
    }
    for (body, after) in TIMERS {
        ours.timed(to(body).delay(Duration::from_millis(after)));
    }
    for (body, after) in CANCELLED {
        let handle = ours.timed(to(body).queue(1).deliver_at(at + after as i64));
        let cancelled = store.submit_cancel(&handle).expect("put").expect("in time");
        ours.work();
        cancelled.wait().expect("an answer").ok().expect("it is safe");
    }

    // Before a checker is asked, half messages are decided, or moved behind, or parked.
    let lost = ours.transactions("lost", TransactionState::Unknown);
    drop(lost.begin(Message::new(ORDERS, "half parked").queue(0)).expect("begun"));
    let bank = ours.transactions("bank", TransactionState::Unknown);
    let begin = |body: &str| bank.begin(to(body).queue(1)).expect("begun");
    begin("half committed").commit().expect("committed");
    begin("half rolled back").rollback().expect("rolled back");
    for body in ["half asked 1", "half asked 2", "half asked 3"] {
        drop(begin(body));
    }
    ours.pass(7 * SECOND);
    for n in 0..PAID {
        ours.send(&producer, Message::new(PAYMENTS, payment(n)).queue(n as i32 % 2));
    }
    ours.work();
    let consumer = ours.consumer();
    let next = || {
        let mut messages = consumer.poll_max(1, Duration::ZERO).expect("messages").into_iter();
        messages.next().expect("one message")
    };
    let mut handled = Handled::new();
    for n in 0..7 {
        let message = next();
        if [0, 1, 6].contains(&n) {
            handled.insert(text(message.body()), 1);
        }
        let settled = match n {
            0 | 1 => message.ack(),
            2 | 3 => message.retry_after(SECOND),
            // Not here any more: they wait, the one for a level and the other for a time.
            4 => message.retry_later(),
            5 => message.retry_after(20 * SECOND),
            _ => message.reject(),
        };
        settled.expect("settled");
    }
    ours.pass(3 * SECOND);
    loop {
        let message = next();
        if message.reconsume_times() > 0 {
            message.retry_later().expect("settled");
            break;
        }
        handled.insert(text(message.body()), 1);
        message.ack().expect("settled");
    }
    for n in 2..4 {
        ours.send(&producer, to(&format!("level 3 {n}")).delay_level(3));
    }
    for body in ["half open 1", "half open 2", "half open 3"] {
        drop(begin(body));
    }
    // Behind open ones, so that only their entries say that they are done with.
    begin("half committed late").commit().expect("committed");
    begin("half rolled back late").rollback().expect("rolled back");
    ours.pass(4 * SECOND);
    assert_eq!(store.transactions().expect("some").stats().open, 6);
    // Three levels of orders, two times, two retries.
    assert_eq!(store.delay_stats().expect("some").delivered, 3 * 2 + 2 + 2);
    drop(consumer);
    ours.handled = handled;
    ours
}

const PAID: usize = 10;

fn payment(n: usize) -> String {
    format!("payment {n}")
}

/// By what time after the store was begun they are due.
const TIMERS: [(&str, u64); 6] = [
    ("time 1", 1_500),
    ("time 2", 9_000),
    ("time 3", 30_000),
    ("time 4", 45_678),
    ("time 5", 3_600_000),
    ("time 6", 100_000_000),
];
const CANCELLED: [(&str, u64); 3] =
    [("cancelled 1", 5_000), ("cancelled 2", 40_000), ("cancelled 3", 3_700_000)];

/// What is in it says when it is due, and the queues of the schedule topic say the same.
fn assert_due(messages: &Messages) {
    let mut levels = BTreeSet::new();
    for message in messages.values() {
        let number = |name: &str| message[name].as_i64().expect("a number");
        if message["topic"] == SCHEDULE_TOPIC {
            let level = number("queueId");
            levels.insert(level);
            let due = number("storeTimestamp") + DELAY_LEVELS_MS[level as usize];
            assert_eq!(number("tagsCode"), due, "{message}");
        }
        if message["topic"] == TIMER_TOPIC {
            let property = |name: &str| {
                let value = message["properties"][name].as_str().expect("a property");
                value.parse::<i64>().expect("a number")
            };
            let (out, exact) = (property("TIMER_OUT_MS"), property("TIMER_DELIVER_MS"));
            assert!(out % 1000 == 0 && (1..=1000).contains(&(exact - out)), "{message}");
        }
    }
    assert!(levels.into_iter().eq(0..DELAY_LEVELS_MS.len() as i64));
}

/// Closed in order, and as a kill leaves it.
fn what_waits_is_what_java_reads(java: Java) {
    let (temp, dir) = place();
    let ours = busy(&dir, now() - AGO);
    let killed = temp.path().join("killed");
    copy(&dir, &killed);
    ours.close();
    let mut compared = 0;
    for (dir, was_closed) in [(dir, true), (killed, false)] {
        // RocketMQ 4.9 delivers what is due in whatever it opens.
        let look = temp.path().join("look");
        copy(&dir, &look);
        // After a kill it forgets keys.
        let (mut listed, _) = java.list_with_keys(&look, &[]);
        let (mine, report) = read(&dir);
        assert_eq!(report.cut, None);
        if !was_closed && java.0.starts_with("4.") {
            // It recovers before it knows the levels, and then delivers their messages at once: its own fault.
            for (place, message) in
                listed.iter_mut().filter(|((topic, ..), _)| topic == SCHEDULE_TOPIC)
            {
                let hash = if message["tags"].is_null() { 0 } else { 3_433_164 };
                assert_eq!(message["tagsCode"], hash);
                message["tagsCode"] = mine[place]["tagsCode"].clone();
            }
        }
        assert_same(&mine, &listed);
        assert_due(&listed);
        let topics: BTreeSet<_> = listed.keys().map(|(topic, ..)| topic.as_str()).collect();
        let expected = BTreeSet::from([
            SCHEDULE_TOPIC,
            TIMER_TOPIC,
            TIMER_DONE_TOPIC,
            HALF_TOPIC,
            HALF_DONE_TOPIC,
            CHECKED_IN_VAIN_TOPIC,
            RETRIES,
            DEAD,
            ORDERS,
            PAYMENTS,
        ]);
        assert_eq!(topics, expected);
        // Whatever became of it there, nothing of it is gone.
        let after = read(&look).0;
        assert!(mine.iter().all(|(place, message)| after.get(place) == Some(message)));
        std::fs::remove_dir_all(look).expect("removed");
        compared += listed.len();
    }
    println!("interop {}: what waits is the same to both: {compared} messages", java.0);
}

fn messages_of(answer: &Value) -> Messages {
    by_place(answer["messages"].as_array().expect("a list").clone())
}

/// What there is of a broker.
struct Theirs {
    session: JavaSession,
    /// Whether it is a whole broker.
    is_whole: bool,
}

impl Theirs {
    fn open(java: Java, dir: &Path, options: &[&str]) -> Self {
        let (session, first) = JavaSession::start(java, "broker", dir, options);
        let is_whole = first["broker"].as_bool().expect("it says so");
        assert_eq!(is_whole, !java.0.starts_with("4."));
        Self { session, is_whole }
    }

    fn ask(&mut self, command: &str) -> Value {
        self.session.ask(command)
    }

    /// Asks until the answer is as it should be.
    fn ask_until<T>(&mut self, command: &str, read: impl Fn(Value) -> Result<T, Value>) -> T {
        let started = Instant::now();
        loop {
            match read(self.ask(command)) {
                Ok(found) => return found,
                Err(answer) => assert!(started.elapsed() < PATIENCE, "{command}: {answer}"),
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn list_when(&mut self, is_so: impl Fn(&Messages) -> bool) -> Messages {
        self.ask_until("list", |answer| {
            let messages = messages_of(&answer);
            if is_so(&messages) { Ok(messages) } else { Err(answer) }
        })
    }

    fn group(&mut self, group: &str, topic: &str, queue_id: i32) -> Option<u64> {
        let answer = self.ask(&format!("group {group} {topic} {queue_id}"));
        answer["offset"].as_i64().expect("a number").try_into().ok()
    }

    /// What the group has not consumed; it has then.
    fn consume(&mut self, topic: &str, queue_id: i32) -> Vec<String> {
        let answer = self.ask(&format!("consume billing {topic} {queue_id}"));
        answer["messages"].as_array().expect("a list").iter().map(body_of).collect()
    }
}

/// The broker takes over what waits, does its part of it, and gives the rest back.
fn a_broker_goes_on_with_what_waits_and_gives_it_back(java: Java) {
    let (temp, dir) = place();
    let ours = busy(&dir, now() - AGO);
    let offsets = ours.store.committed_offsets();
    let mut handled = ours.handled.clone();
    ours.close();
    let before = read(&dir).0;
    let timed = bodies_of(before.values().filter(|message| {
        message["topic"] == TIMER_TOPIC && message["properties"]["REAL_TOPIC"] == RETRIES
    }));
    let timed = timed.into_keys().next().expect("one");
    let half = |of: &str, n| format!("half {of} {n}");
    let open: Vec<_> =
        ["asked", "open"].iter().flat_map(|of| [1, 2, 3].map(|n| half(of, n))).collect();

    let mut theirs = Theirs::open(java, &dir, &[]);
    let is_whole = theirs.is_whole;
    // One minute is over, and two are not.
    let mut due: BTreeSet<String> =
        (1..=5).flat_map(|level| (0..2).map(move |n| format!("level {level} {n}"))).collect();
    due.extend(names(["level 3 2", "level 3 3"]));
    if is_whole {
        due.extend(TIMERS.iter().take(4).map(|(body, _)| (*body).to_owned()));
    }
    let retries = if is_whole { 5 } else { 4 };
    let there = theirs.list_when(|messages| {
        let orders = bodies(messages, ORDERS);
        due.iter().all(|body| orders.contains_key(body))
            && bodies(messages, RETRIES).values().sum::<usize>() >= retries
    });
    for (place, message) in &before {
        assert_eq!(there.get(place), Some(message), "it is as it was");
    }
    // It notes that a little later.
    theirs.ask_until("delays", |answer| {
        let is_done = |level: i32| {
            let offsets = &answer["levels"][level.to_string()];
            offsets[0] == offsets[1] && !offsets[0].is_null()
        };
        if (1..=5).all(is_done) { Ok(()) } else { Err(answer) }
    });

    let (mut ended, mut back) = (Handled::new(), None);
    if is_whole {
        let topics = &theirs.ask("topics")["topics"];
        for (topic, queues) in [(ORDERS, 4), (PAYMENTS, 4), (RETRIES, 1), (DEAD, 1)] {
            assert_eq!(topics[topic], json!([queues, queues]), "{topic}");
        }
        for one in &offsets {
            let known = theirs.group(&one.group, &one.topic, one.queue_id);
            let moved = known > Some(one.next) && one.group == SYSTEM_GROUP;
            assert!(known == Some(one.next) || moved, "{one:?}: {known:?}");
        }
        for body in theirs.consume(RETRIES, 0).into_iter().chain(theirs.consume(PAYMENTS, 0)) {
            handle(&mut handled, body);
        }

        let answer = theirs.ask("check");
        let asked = answer["asked"].as_array().expect("a list");
        let of = |half: &Value| half["body"].as_str().expect("a body").to_owned();
        assert_eq!(asked.iter().map(of).collect::<Vec<_>>(), open);
        for (place, answer) in [(0, "commit"), (1, "rollback"), (3, "commit"), (4, "rollback")] {
            theirs.ask(&format!("{answer} {}", asked[place]["queueOffset"]));
            ended.insert(of(&asked[place]), usize::from(answer == "commit"));
        }
        let end = before.keys().filter(|(topic, ..)| topic == HALF_DONE_TOPIC).count();
        theirs.ask(&format!("await {HALF_DONE_TOPIC} 0 {}", end + 1));
        theirs.ask(&format!("prepare bank {ORDERS} 0 {THEIRS} UNIQ_KEY=theirs TAGS=paid"));
        ended.insert(THEIRS.to_owned(), 1);
        let one = before.iter().find(|((topic, queue, _), _)| topic == PAYMENTS && *queue == 1);
        let one = &one.expect("some").1;
        theirs.ask(&format!("back billing {} 0", one["physicalOffset"]));
        back = Some(body_of(one));
        theirs.ask(&format!("put {ORDERS} 0 theirs-timed TIMER_DELAY_SEC=30"));
    }
    theirs.ask(&format!("put {ORDERS} 0 theirs"));
    theirs.ask(&format!("put {ORDERS} 1 theirs-delayed DELAY=4"));
    theirs.session.close();

    let ours = Ours::open(&dir, now());
    let report = ours.store.recovery();
    assert!(!report.unclean && report.clamped_offsets.is_empty(), "{report:?}");
    let bank = ours.transactions("bank", TransactionState::Commit);
    let consumer = ours.consumer();
    // As long as anything waits; in small steps at first.
    for step in 0..270 {
        ours.pass(if step < 90 { 10 * SECOND } else { 600 * SECOND });
        let batches = std::iter::from_fn(|| {
            let batch = consumer.poll(Duration::ZERO).expect("messages");
            (!batch.is_empty()).then_some(batch)
        });
        for batch in batches {
            batch.iter().for_each(|message| handle(&mut handled, text(message.body())));
            batch.ack().expect("settled");
        }
    }
    let asked = std::mem::take(&mut *ours.asked.lock().expect("no panic"));
    let left = open.iter().filter(|body| !ended.contains_key(*body)).cloned();
    let left: Vec<_> = left.chain(ended.contains_key(THEIRS).then(|| THEIRS.to_owned())).collect();
    assert_eq!(asked, left);
    ended.extend(left.into_iter().map(|body| (body, 1)));
    drop((bank, consumer));
    ours.close();

    let look = temp.path().join("look");
    copy(&dir, &look);
    let listed = java.list(&look);
    let mine = read(&dir).0;
    assert_same(&mine, &listed);
    let mut orders = bodies(&mine, ORDERS);
    let mut times = |body: &str| orders.remove(body).unwrap_or(0);
    for (body, count) in ended {
        assert_eq!(times(&body), count, "{body}");
    }
    let again = is_whole.then_some(2);
    for (body, after) in TIMERS {
        let times = times(body);
        // What the wheel of a broker has delivered is delivered here again, and the other way round.
        let is_due = (after as i64) < AGO;
        assert!(times == 1 || is_due && Some(times) == again, "{body}: {times}");
    }
    for (body, after) in CANCELLED {
        let times = times(body);
        // A broker that is not at rest may find out too late.
        let is_due = (after as i64) < AGO;
        assert!(times == 0 || is_due && is_whole && times == 1, "{body}: {times}");
    }
    // All else is delivered once, whoever did it.
    let levels = (1..=DELAY_LEVELS_MS.len()).flat_map(|level| [0, 1].map(|n| (level, n)));
    let levels = levels.chain([(3, 2), (3, 3)]).map(|(level, n)| format!("level {level} {n}"));
    let mut expected: Handled = levels.map(|body| (body, 1)).collect();
    expected.extend(
        ["half committed", "half committed late", "theirs", "theirs-delayed"]
            .map(|body| (body.to_owned(), 1)),
    );
    if is_whole {
        expected.insert("theirs-timed".to_owned(), 1);
    }
    assert_eq!(orders, expected);

    for n in 0..PAID {
        let (body, times) = (payment(n), handled.remove(&payment(n)).unwrap_or(0));
        let sent_back = usize::from(back.as_ref() == Some(&body));
        // That one waited for a time of its own.
        let may_come_twice = is_whole && timed == body;
        assert!(
            times == 1 + sent_back || may_come_twice && times == 2 + sent_back,
            "{body}: {times}"
        );
    }
    assert_eq!(handled, Handled::new());
    assert_eq!(bodies(&mine, DEAD).into_values().sum::<usize>(), 1);
    println!("interop {}: taken over and given back: {} messages", java.0, mine.len());
}

const THEIRS: &str = "half-theirs";

fn handle(handled: &mut Handled, body: String) {
    *handled.entry(body).or_default() += 1;
}

/// A broker collects for some seconds what it has to say about half messages that were decided. If it dies
/// then, what was committed is there, and nothing says so.
fn what_a_broker_has_committed_is_not_committed_again(java: Java) {
    let (_temp, dir) = place();
    let ours = busy(&dir, now() - AGO);
    ours.close();
    let mut theirs = Theirs::open(java, &dir, &["transactionOpBatchInterval=86400000"]);
    let halves = messages_of(&theirs.ask("list"));
    let entries = bodies(&halves, HALF_DONE_TOPIC);
    for (body, answer) in [
        // That is the second copy of it.
        ("half asked 1", "commit"),
        ("half open 1", "commit"),
        ("half open 2", "rollback"),
    ] {
        let copies = halves
            .iter()
            .filter(|((topic, ..), half)| topic == HALF_TOPIC && body_of(half) == body);
        let newest = copies.map(|((.., offset), _)| offset).max().expect("a copy");
        theirs.ask(&format!("{answer} {newest}"));
    }
    assert_eq!(
        bodies(&messages_of(&theirs.ask("list")), HALF_DONE_TOPIC),
        entries,
        "it said so already"
    );
    drop(theirs);

    let ours = Ours::open(&dir, now());
    let bank = ours.transactions("bank", TransactionState::Commit);
    ours.pass(7 * SECOND);
    let asked = std::mem::take(&mut *ours.asked.lock().expect("no panic"));
    assert_eq!(asked, ["half asked 2", "half asked 3", "half open 2", "half open 3"]);
    drop(bank);
    ours.close();
    let orders = bodies(&read(&dir).0, ORDERS);
    for n in 1..=3 {
        for of in ["asked", "open"] {
            assert_eq!(orders.get(&format!("half {of} {n}")), Some(&1));
        }
    }
}

for_each_version! {
    what_waits_is_what_java_reads
    a_broker_goes_on_with_what_waits_and_gives_it_back
}
// Of the other one no broker is to be had.
for_each_version!(@ v5_3_3_alone "5.3.3" what_a_broker_has_committed_is_not_committed_again);
