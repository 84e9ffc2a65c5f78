//! Consumers that choose messages by an SQL92 expression: they get those and no others, and are done with the
//! others, whatever crashes.

#[path = "support/rng.rs"]
mod rng;

use duralog::clock::{Clock, ManualClock};
use duralog::delivery::{Consumer, Handled, Settled};
use duralog::disk::{Cut, SimDisk};
use duralog::{
    Environment, Error, Filter, Message, Next, SqlFilter, Store, StoreConfig, StoreWorker,
    TagFilter,
};
use rng::Rng;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

const NOW: Duration = Duration::ZERO;
const LARGE: &str = "amount > 100 AND region IN ('eu', 'uk')";

fn config() -> StoreConfig {
    let mut config = StoreConfig::new("/store").segment_size(64 << 10);
    config.consume_queue_file_size = 20 * 64;
    config.index_enable = false;
    config
}

fn sql(expression: &str) -> SqlFilter {
    SqlFilter::parse(expression).unwrap()
}

fn order(amount: impl ToString, region: &str) -> Message {
    let amount = amount.to_string();
    Message::new("orders", &*amount).property("amount", &*amount).property("region", region)
}

/// A clock that moves by a millisecond whenever somebody looks, if it is told to.
#[derive(Debug)]
struct Ticking {
    clock: ManualClock,
    ticks: AtomicBool,
}

impl Clock for Ticking {
    fn now(&self) -> Instant {
        if self.ticks.load(Ordering::SeqCst) {
            self.clock.advance(Duration::from_millis(1));
        }
        self.clock.now()
    }

    fn unix_millis(&self) -> i64 {
        self.clock.unix_millis()
    }
}

/// A store whose time stands still unless it is told to pass.
struct World {
    disk: SimDisk,
    clock: Arc<Ticking>,
    store: Store,
}

impl World {
    fn new() -> Self {
        let clock = ManualClock::new(1_700_000_000_000);
        let clock = Arc::new(Ticking { clock, ticks: AtomicBool::new(false) });
        let disk = SimDisk::new(1);
        let store = Self::open(&disk, &clock);
        Self { disk, clock, store }
    }

    fn open(disk: &SimDisk, clock: &Arc<Ticking>) -> Store {
        let environment = Environment::on(disk.shared()).clock(clock.clone()).stepped();
        Store::open_in(config(), environment).unwrap()
    }

    fn kill(&mut self) {
        self.disk = self.disk.kill();
        self.store = Self::open(&self.disk, &self.clock);
    }

    fn put(&self, message: Message) -> u64 {
        let ticket = self.store.submit(message).unwrap();
        for worker in [StoreWorker::Upkeep, StoreWorker::Flush] {
            while self.store.step(worker) == Next::Now {}
        }
        ticket.wait().unwrap().ok().unwrap().queue_offset
    }

    fn consumer(&self, filter: impl Into<Filter>) -> Consumer {
        self.store.consumer("audit").subscribe("orders", filter).open().unwrap()
    }

    fn committed(&self) -> Option<u64> {
        self.store.committed_offset("audit", "orders", 0)
    }

    /// Delivers what is due after so long.
    fn pass(&self, time: Duration) {
        self.clock.clock.advance(time);
        for worker in [StoreWorker::Delivery, StoreWorker::Upkeep, StoreWorker::Flush] {
            while self.store.step(worker) == Next::Now {}
        }
        while self.store.step(StoreWorker::Delivery) == Next::Now {}
    }
}

fn bodies(batch: &[duralog::delivery::Received]) -> Vec<String> {
    batch.iter().map(|one| String::from_utf8_lossy(one.body()).into_owned()).collect()
}

#[test]
fn a_consumer_gets_what_its_expression_says_and_is_done_with_the_rest() {
    let mut world = World::new();
    for (amount, region) in
        [("50", "eu"), ("150", "eu"), ("250", "us"), ("many", "eu"), ("350", "uk"), ("99", "uk")]
    {
        world.put(order(amount, region));
    }
    world.put(Message::new("orders", "neither"));
    let consumer = world.consumer(sql(LARGE));
    let batch = consumer.poll(NOW).unwrap();
    assert_eq!(bodies(&batch), ["150", "350"]);
    assert_eq!(world.committed(), Some(1), "the first one did not pass");
    assert_eq!(batch[0].ack().unwrap(), Settled::Done);
    assert_eq!(world.committed(), Some(4));
    drop((batch, consumer));
    world.kill();
    let consumer = world.consumer(sql(LARGE));
    let batch = consumer.poll(NOW).unwrap();
    assert_eq!(bodies(&batch), ["350"]);
    batch.ack().unwrap();
    assert!(consumer.poll(NOW).unwrap().is_empty());
    assert_eq!(world.committed(), Some(7));
    assert!(world.store.lag("audit").iter().all(|queue| queue.messages() == 0));
    drop(consumer);

    world.kill();
    assert!(world.consumer(sql(LARGE)).poll(NOW).unwrap().is_empty());
    // What did not pass is handled, also for whoever asks for something else now.
    assert!(world.consumer(TagFilter::any()).poll(NOW).unwrap().is_empty());
    world.put(order(1, "eu"));
    assert_eq!(bodies(&world.consumer(sql("amount < 2")).poll(NOW).unwrap()), ["1"]);
}

#[test]
fn tags_are_properties_too() {
    let world = World::new();
    for (tag, amount) in [("paid", 1), ("placed", 200), ("paid", 300)] {
        world.put(order(amount, "eu").tag(tag).key("order-7"));
    }
    let filter = sql("TAGS = 'paid' AND amount > 100 AND KEYS STARTSWITH 'order-'");
    assert_eq!(bodies(&world.consumer(filter).poll(NOW).unwrap()), ["300"]);
}

#[test]
fn a_message_that_passed_comes_again_when_it_failed() {
    let mut world = World::new();
    world.put(order(1, "eu"));
    world.put(order(200, "eu"));
    let consumer = world.consumer(sql(LARGE));
    let batch = consumer.poll(NOW).unwrap();
    assert_eq!(batch[0].retry_later().unwrap(), Settled::Done);
    assert_eq!(world.committed(), Some(2));
    drop((batch, consumer));
    world.kill();
    // The expression is asked once: a retry passes, whatever it says now.
    let consumer = world.consumer(sql("amount > 1000"));
    world.pass(Duration::from_secs(3600));
    let batch = consumer.poll(NOW).unwrap();
    assert_eq!((bodies(&batch), batch[0].reconsume_times()), (vec!["200".to_owned()], 1));
    batch.ack().unwrap();
    world.pass(Duration::from_secs(3600));
    assert!(consumer.poll(NOW).unwrap().is_empty());
}

#[test]
fn in_order_the_next_one_that_passes_waits_for_the_one_before() {
    let world = World::new();
    for amount in [1, 200, 2, 300, 3, 400] {
        world.put(order(amount, "eu"));
    }
    let builder = world.store.consumer("audit").subscribe("orders", sql(LARGE));
    let consumer = builder.ordered().batch_max(1).open().unwrap();
    for amount in ["200", "300", "400"] {
        let batch = consumer.poll(NOW).unwrap();
        assert_eq!(bodies(&batch), [amount]);
        assert!(consumer.poll(NOW).unwrap().is_empty());
        batch.ack().unwrap();
    }
    assert_eq!(world.committed(), Some(6));
}

#[test]
fn the_consumers_of_a_group_agree_on_their_expression() {
    let world = World::new();
    let open = |filter: Filter| world.store.consumer("audit").subscribe("orders", filter).open();
    let first = open(sql(LARGE).into()).unwrap();
    open(sql(LARGE).into()).unwrap();
    for other in [sql("amount > 200").into(), TagFilter::any().into(), sql("TRUE").into()] {
        match open(other) {
            Err(Error::Config { field: "subscription", value, .. }) => {
                assert!(value.contains("orders"), "{value}");
            }
            opened => panic!("{opened:?}"),
        }
    }
    drop(first);
    open(sql("amount > 200").into()).unwrap();
}

#[test]
fn what_is_no_expression_is_refused_before_there_is_a_consumer() {
    let error = SqlFilter::parse("amount > 'much'").unwrap_err();
    assert!(matches!(error, Error::InvalidFilter(_)), "{error}");
    assert!(error.to_string().starts_with("invalid filter: at byte 9: "), "{error}");
}

#[test]
fn messages_that_do_not_pass_hold_up_nothing() {
    let world = World::new();
    for n in 0..3000 {
        world.put(order(if n % 1500 == 3 { 200 } else { 1 }, "eu"));
    }
    let builder = world.store.consumer("audit").subscribe("orders", sql(LARGE));
    let consumer = builder.max_span(10).open().unwrap();
    let first = consumer.poll(NOW).unwrap();
    assert_eq!(first[0].queue_offset(), 3);
    assert_eq!((first.len(), world.committed()), (1, Some(3)));
    first.ack().unwrap();
    let second = consumer.poll(NOW).unwrap();
    assert_eq!(second[0].queue_offset(), 1503);
    second.ack().unwrap();
    assert!(consumer.poll(NOW).unwrap().is_empty());
    assert_eq!(world.committed(), Some(3000));
}

#[test]
fn a_poll_ends_in_time_also_where_nothing_passes() {
    let mut world = World::new();
    for n in 0..2000 {
        world.put(order(if n == 1999 { 200 } else { 1 }, "eu"));
    }
    let consumer = world.consumer(sql(LARGE));
    world.clock.ticks.store(true, Ordering::SeqCst);
    assert!(consumer.poll(NOW).unwrap().is_empty());
    let first = world.committed().unwrap();
    assert!((1..2000).contains(&first), "{first}");
    assert!(consumer.poll(NOW).unwrap().is_empty());
    let second = world.committed().unwrap();
    assert!((first + 1..2000).contains(&second), "{second} after {first}");
    drop(consumer);
    world.kill();
    assert_eq!(world.committed(), Some(second), "what was read is not read again");
    let consumer = world.consumer(sql(LARGE));
    let batch = consumer.poll(Duration::from_secs(60)).unwrap();
    assert_eq!(batch[0].queue_offset(), 1999, "there is time enough");
}

#[test]
fn other_queues_have_their_turn_while_one_is_read() {
    let world = World::new();
    for _ in 0..2000 {
        world.put(order(1, "eu"));
    }
    world.put(order(200, "eu").queue(1));
    let consumer = world.consumer(sql(LARGE));
    let batch = consumer.poll(NOW).unwrap();
    assert_eq!((batch[0].queue_id(), bodies(&batch)), (1, vec!["200".to_owned()]));
    assert!(world.committed().unwrap_or(0) < 2000, "{:?}", world.committed());
}

#[test]
fn a_damaged_queue_holds_up_no_other_one() {
    let mut world = World::new();
    world.put(order(500, "eu").queue(1));
    for _ in 0..1000 {
        world.put(order(1, "eu"));
    }
    world.put(order(200, "eu"));
    world.store.close().unwrap();
    let log = "/store/commitlog/00000000000000000000";
    let bytes = world.disk.bytes(log).unwrap();
    let body = bytes.windows(3).position(|three| three == b"500").unwrap();
    world.disk.flip_bit(log, body as u64, 0).unwrap();
    world.store = World::open(&world.disk, &world.clock);
    let consumer = world.consumer(sql(LARGE));
    let batch = consumer.poll(NOW).unwrap();
    assert_eq!(bodies(&batch), ["200"]);
    assert!(matches!(consumer.poll(NOW), Err(Error::Corrupt { .. })));
}

#[test]
fn a_listener_hears_what_passes() {
    let dir = std::env::temp_dir().join(format!("duralog-filter-{}", std::process::id()));
    let store = Store::open(StoreConfig::new(&dir).segment_size(1 << 20)).unwrap();
    let consumer = store.consumer("audit").subscribe("orders", sql(LARGE)).open().unwrap();
    let (heard, hears) = mpsc::channel();
    let listener = consumer
        .listen(2, move |message| {
            heard.send(String::from_utf8(message.body().to_vec())?)?;
            Ok(Handled::Done)
        })
        .unwrap();
    for amount in [1, 200, 2, 300] {
        store.put(order(amount, "eu")).unwrap().ok().unwrap();
    }
    let mut all: Vec<String> =
        (0..2).map(|_| hears.recv_timeout(Duration::from_secs(60)).unwrap()).collect();
    all.sort_unstable();
    assert_eq!(all, ["200", "300"]);
    listener.close().unwrap();
    assert!(hears.try_recv().is_err());
    drop(consumer);
    store.close().unwrap();
    std::fs::remove_dir_all(&dir).unwrap();
}

/// Whether a message passes, said another way.
fn passes(amount: &str, region: &str) -> bool {
    amount.parse::<i32>().is_ok_and(|amount| amount > 100) && matches!(region, "eu" | "uk")
}

#[test]
fn what_passes_is_handled_and_nothing_else_whatever_crashes() {
    let only = std::env::var("DURALOG_SEED").ok().and_then(|seed| seed.parse().ok());
    let (mut crashes, mut handled, mut again, mut passed_over) = (0, 0, 0, 0);
    for seed in only.map_or(0..100, |seed: u64| seed..seed + 1) {
        let mut rng = Rng(seed);
        let mut world = World::new();
        // By queue and offset: whether it passes, and how often it was handled.
        let mut put: BTreeMap<(i32, u64), (bool, u32)> = BTreeMap::new();
        let mut consumer = world.consumer(sql(LARGE));
        for step in 0..150 {
            let is_last = step == 149;
            match rng.below(20) {
                0 => {
                    drop(consumer);
                    world.kill();
                    consumer = world.consumer(sql(LARGE));
                    crashes += 1;
                }
                1 => {
                    drop(consumer);
                    world.disk = world.disk.reboot(Cut::seeded(rng.next()));
                    world.store = World::open(&world.disk, &world.clock);
                    consumer = world.consumer(sql(LARGE));
                    crashes += 1;
                }
                2..12 => {
                    let amount = rng.pick(&["1", "100", "101", "5000", "101.5", "many"]);
                    let region = rng.pick(&["eu", "uk", "us"]);
                    let queue = rng.below(2) as i32;
                    let offset = world.put(order(amount, region).queue(queue));
                    put.insert((queue, offset), (passes(amount, region), 0));
                }
                _ => {}
            }
            while is_last || rng.below(3) > 0 {
                let batch = consumer.poll_max(1 + rng.index(4), NOW).unwrap();
                for message in &batch {
                    let place = (message.queue_id(), message.queue_offset());
                    let (passes, count) = put.get_mut(&place).unwrap();
                    assert!(*passes, "seed {seed}: {place:?} does not pass");
                    // What is dropped comes again.
                    if is_last || rng.below(5) > 0 {
                        assert_eq!(message.ack().unwrap(), Settled::Done, "seed {seed}");
                        again += usize::from(*count > 0);
                        *count += 1;
                    }
                }
                if batch.is_empty() {
                    break;
                }
            }
        }
        for (place, (passes, count)) in &put {
            assert_eq!(*passes, *count > 0, "seed {seed}: {place:?} was handled {count} times");
            handled += count;
            passed_over += usize::from(!passes);
        }
        let lag = world.store.lag("audit");
        assert!(lag.iter().all(|queue| queue.messages() == 0), "seed {seed}: {lag:?}");
    }
    println!(
        "{handled} handled, {again} of them again, {passed_over} did not pass, {crashes} crashes"
    );
    if only.is_none() {
        assert!(crashes > 500 && handled > 1000 && again > 100 && passed_over > 1000);
    }
}
