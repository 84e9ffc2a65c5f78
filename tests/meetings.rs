//! Where one part of the store meets another: retention and whoever still needs something, transactions and
//! what is sent back, delays and queues that are full, tables of brokers and what is read of them.

#[path = "support/expiry.rs"]
mod expiry;
#[path = "support/hooked.rs"]
mod hooked;
#[path = "support/sim.rs"]
mod sim;
#[path = "support/wall.rs"]
mod wall;

use duralog::clock::{Clock, ManualClock};
use duralog::config::Retention;
use duralog::delivery::{HalfMessageView, Settled, TransactionState};
use duralog::disk::{SimCall, SimDisk};
use duralog::message::format::{CHECKED_IN_VAIN_TOPIC, HALF_DONE_TOPIC};
use duralog::message::{Draft, Stamp, names};
use duralog::{Environment, Message, Next, Store, StoreConfig, StoreWorker, TagFilter};
use expiry::*;
use hooked::{Hook, Hooked};
use sim::*;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use wall::Wall;

const SEC: Duration = Duration::from_secs(1);

fn open_with(disk: &SimDisk, config: StoreConfig, clock: Arc<dyn Clock>) -> Store {
    let environment = Environment::on(disk.shared()).clock(clock).stepped();
    Store::open_in(config, environment).expect("the store opens")
}

fn work(store: &Store) {
    use StoreWorker::{Delivery, Dispatch, Flush, Offsets, Upkeep};
    for _ in 0..4 {
        for worker in [Upkeep, Flush, Dispatch, Delivery, Offsets] {
            let mut n = 0;
            while store.step(worker) == Next::Now && n < 1000 {
                n += 1;
            }
        }
    }
}

fn put_now(store: &Store, message: Message) {
    let ticket = store.try_submit(message).expect("taken");
    store.flush().expect("sound");
    ticket.wait().expect("answer").ok().expect("ok");
}

fn pinned() -> StoreConfig {
    keeping(Retention::max_total_bytes(4 * SEGMENT).pin_by_groups(true))
}

#[test]
fn what_a_broker_has_parked_stays_where_groups_are_waited_for() {
    let disk = disk();
    let clock = Arc::new(ManualClock::new(MIDNIGHT));
    let store = open_with(&disk, pinned(), clock.clone());
    // As a broker's `TransactionalMessageServiceImpl` puts it.
    let parked = Message::new(CHECKED_IN_VAIN_TOPIC, "undecided")
        .property(names::REAL_TOPIC, "orders2")
        .property(names::REAL_QUEUE_ID, "0")
        .property(names::TRANSACTION_PREPARED, "true")
        .property(names::PRODUCER_GROUP, "service")
        .unique_key("u1");
    put_now(&store, parked);
    fill(&store, 0, 12);
    expire(&store);
    assert_eq!(store.min_offset(CHECKED_IN_VAIN_TOPIC, 0), Some(0));
    assert_eq!(store.max_offset(CHECKED_IN_VAIN_TOPIC, 0), Some(1));
    assert_eq!(store.transactions().unwrap().parked().len(), 1);
}

#[test]
fn transactions_that_are_decided_keep_nothing_for_a_life_that_has_none() {
    let disk = disk();
    let clock = Arc::new(ManualClock::new(MIDNIGHT));
    let store = open_with(&disk, pinned(), clock.clone());
    let check = |_: &HalfMessageView| TransactionState::Unknown;
    let producer = store.transactional_producer("service", check).open().unwrap();
    for pause in [5 * SEC, Duration::ZERO] {
        let half = producer.begin(Message::new("orders2", "x").queue(0)).unwrap();
        half.rollback().unwrap();
        clock.advance(pause);
        work(&store);
        clock.advance(pause);
        work(&store);
    }
    assert_eq!(store.committed_offset("CID_RMQ_SYS_TRANS", HALF_DONE_TOPIC, 0), Some(1));
    drop(producer);
    store.close().unwrap();
    let store = open_with(&disk, pinned(), clock);
    fill(&store, 0, 12);
    expire(&store);
    assert_eq!(store.stats().retention.pinned_by, []);
    assert_eq!(store.transactions().unwrap().stats().open, 0);
}

#[test]
fn segments_expire_though_a_brokers_table_is_damaged() {
    let disk = disk();
    let clock = Arc::new(ManualClock::new(MIDNIGHT));
    let config = keeping(Retention::max_total_bytes(4 * SEGMENT));
    let store = open_with(&disk, config.clone(), clock.clone());
    fill(&store, 0, 12);
    store.close().unwrap();
    drop(store);
    disk.put_file(format!("{DIR}/config/consumerOffset.json"), b"{\"offsetTable\":{").unwrap();
    let store = open_with(&disk, config, clock.clone());
    assert!(store.recovery().offsets_not_imported.is_some());
    for _ in 0..100 {
        clock.advance(Duration::from_secs(60));
        expire(&store);
        work(&store);
    }
    assert!(store.stats().retention.segments > 0, "nothing ever expires: the disk fills");
}

#[test]
fn segments_expire_though_a_brokers_table_holds_what_it_cannot_mean() {
    for key in [TOPIC.to_owned(), format!("{TOPIC}@a@b"), "@g".to_owned()] {
        let disk = disk();
        let clock = Arc::new(ManualClock::new(MIDNIGHT));
        let config = keeping(Retention::max_total_bytes(4 * SEGMENT));
        let store = open_with(&disk, config.clone(), clock.clone());
        fill(&store, 0, 12);
        put_now(&store, message(99_999).queue(1));
        store.close().unwrap();
        drop(store);
        let json = format!("{{\"offsetTable\":{{\"{key}\":{{0:1}}}}}}");
        disk.put_file(format!("{DIR}/config/consumerOffset.json"), json.as_bytes()).unwrap();
        let store = open_with(&disk, config, clock.clone());
        for _ in 0..10 {
            clock.advance(Duration::from_secs(60));
            expire(&store);
            work(&store);
        }
        assert!(store.stats().retention.segments > 0, "{key}: nothing ever expires");
    }
}

/// A store with a queue in which no offset is left, as a record of another program has it.
fn store_with_a_full_queue(clock: &Arc<ManualClock>) -> (SimDisk, Store) {
    let disk = disk();
    let config = config();
    let store = open_with(&disk, config.clone(), clock.clone());
    put_now(&store, message(0));
    let at = store.stats().watermarks.appended;
    let next = disk.kill();
    drop(store);
    let mut bytes = Vec::new();
    let stamp =
        Stamp { physical_offset: at, queue_offset: (1 << 56) - 1, store_timestamp: MIDNIGHT };
    let record = Message::new("full", "by another program");
    Draft::new(&record, &layout()).unwrap().encode(&stamp, &mut bytes);
    next.edit(segment(0), |content| {
        content[at as usize..at as usize + bytes.len()].copy_from_slice(&bytes);
    })
    .unwrap();
    let store = open_with(&next, config, clock.clone());
    assert_eq!(store.max_offset("full", 0), Some(1 << 56), "{:?}", store.recovery());
    (next, store)
}

/// That a message which can be put comes, though another one that waits cannot be.
fn the_other_one_comes(stuck: Message, fine: Message) {
    let clock = Arc::new(ManualClock::new(MIDNIGHT));
    let (_disk, store) = store_with_a_full_queue(&clock);
    for message in [stuck, fine] {
        let (ticket, _) = store.submit_delayed(message).unwrap();
        work(&store);
        ticket.wait().unwrap().ok().unwrap();
    }
    for _ in 0..600 {
        clock.advance(SEC);
        work(&store);
    }
    assert_eq!(store.max_offset("fine", 0), Some(1), "it is held up for ever");
}

#[test]
fn a_queue_that_is_full_holds_up_no_other_message_of_a_level() {
    let message = |topic: &str| Message::new(topic, "level").delay_level(1);
    the_other_one_comes(message("full"), message("fine"));
}

#[test]
fn a_queue_that_is_full_holds_up_no_other_message_with_a_time() {
    let message = |topic: &str, seconds| Message::new(topic, "timed").delay(seconds * SEC);
    the_other_one_comes(message("full", 1), message("fine", 2));
}

#[test]
fn a_letter_that_is_sent_back_does_not_pass_for_the_commit_of_another_transaction() {
    let disk = disk();
    let clock = Arc::new(ManualClock::new(MIDNIGHT));
    let mut config = config();
    config.index_enable = false;
    let store = open_with(&disk, config.clone(), clock.clone());
    let unknown = |_: &HalfMessageView| TransactionState::Unknown;
    let producer = store.transactional_producer("service", unknown).open().unwrap();
    // The first record of the log.
    let first = producer.begin(Message::new("paid", "first").queue(0)).unwrap();
    let second = producer.begin(Message::new("paid", "second").queue(0)).unwrap();
    second.commit().unwrap();
    let consumer = store.consumer("billing").subscribe("paid", TagFilter::any()).open().unwrap();
    work(&store);
    let batch = consumer.poll(Duration::ZERO).unwrap();
    assert_eq!(batch.len(), 1);
    batch[0].reject().unwrap();
    assert_eq!(store.dead_letters("billing").redrive_to_topic(9).unwrap(), 1);
    work(&store);
    drop((batch, consumer, first, second, producer));
    store.close().unwrap();
    drop(store);

    let store = open_with(&disk, config, clock.clone());
    // It happened, says the application.
    let commit = |_: &HalfMessageView| TransactionState::Commit;
    let _producer = store.transactional_producer("service", commit).open().unwrap();
    for _ in 0..100 {
        clock.advance(SEC);
        work(&store);
    }
    let found = store.get("paid", 0, 0, 99).unwrap().messages;
    let bodies: Vec<_> =
        found.iter().map(|m| String::from_utf8_lossy(&m.body).into_owned()).collect();
    assert!(bodies.iter().any(|body| body == "first"), "the committed message is lost: {bodies:?}");
}

#[test]
fn a_clock_that_was_ahead_once_keeps_nothing_for_ever() {
    let disk = disk();
    let clock = Arc::new(Wall::new(MIDNIGHT));
    let hour = Duration::from_secs(3600);
    let retention =
        Retention::max_total_bytes(u64::MAX).file_reserved_time(10 * hour).delete_when([]);
    let store = open_with(&disk, keeping(retention), clock.clone());
    clock.put_ahead(10 * 365 * 24 * 3_600_000);
    put_now(&store, message(0));
    clock.put_ahead(0);
    fill(&store, 1, 12);
    expire(&store);
    clock.steady.advance(9 * hour);
    expire(&store);
    assert_eq!(store.stats().retention.segments, 0, "it is not that old");
    fill(&store, 10_000, 3);
    clock.steady.advance(2 * hour);
    expire(&store);
    let gone = store.stats().retention.segments;
    assert!((10..=12).contains(&gone), "{gone}: those of eleven hours ago go, and no others");
}

/// Does something while retention asks for space: the second time it is about to look for pins.
#[derive(Default)]
struct AtSpace {
    armed: AtomicBool,
    seen: AtomicUsize,
    does: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}
impl std::fmt::Debug for AtSpace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AtSpace")
    }
}
impl Hook for AtSpace {
    fn before(&self, call: SimCall) -> io::Result<()> {
        if matches!(call, SimCall::Space) && self.armed.load(Ordering::SeqCst) {
            // The first call comes before it is asked what groups want, the second one after that.
            if self.seen.fetch_add(1, Ordering::SeqCst) == 1
                && let Some(does) = self.does.lock().unwrap().take()
            {
                does();
            }
        }
        Ok(())
    }
}

#[test]
fn what_comes_into_a_new_queue_while_segments_go_stays_for_its_group() {
    let disk = disk();
    let hook = Arc::new(AtSpace::default());
    let clock = Arc::new(ManualClock::new(MIDNIGHT));
    let environment =
        Environment::on(Hooked::over(disk.shared(), hook.clone())).clock(clock.clone()).stepped();
    let retention = Retention::max_total_bytes(2 * SEGMENT).pin_by_groups(true);
    let store = Store::open_in(keeping(retention), environment).unwrap();
    let consumer =
        store.consumer("billing").subscribe("payments", TagFilter::any()).open().unwrap();
    put_now(&store, Message::new("payments", "first").queue(0));
    let batch = consumer.poll(Duration::ZERO).unwrap();
    assert_eq!(batch.ack().unwrap(), 1);
    work(&store);
    expire(&store);
    let others = store.clone();
    *hook.does.lock().unwrap() = Some(Box::new(move || {
        put_now(&others, Message::new("payments", "mine").queue(1));
        fill(&others, 0, 6);
    }));
    clock.advance(Duration::from_secs(3600));
    hook.armed.store(true, Ordering::SeqCst);
    expire(&store);
    assert!(hook.does.lock().unwrap().is_none(), "it ran");
    let batch = consumer.poll(Duration::ZERO).unwrap();
    let bodies: Vec<_> = batch.iter().map(|m| m.body().to_vec()).collect();
    assert_eq!(bodies, [b"mine".to_vec()]);
}

#[test]
fn a_retry_says_what_matters_of_a_message_with_hardly_any_room() {
    let disk = disk();
    let clock = Arc::new(ManualClock::new(MIDNIGHT));
    let mut config = config().segment_size(256 << 10);
    config.log.max_message_size = 64 << 10;
    let store = open_with(&disk, config, clock.clone());
    let message = Message::new("t", "body")
        .tag("vip")
        .key("order-42")
        .sharding_key("customer-7")
        .property("tenant", "acme")
        .property("blob", "x".repeat(32_767 - 20 - 95));
    put_now(&store, message);
    let consumer = store.consumer("billing").subscribe("t", TagFilter::any()).open().unwrap();
    let batch = consumer.poll(Duration::ZERO).unwrap();
    assert_eq!(batch[0].get("tenant"), Some("acme"));
    assert_eq!(batch[0].retry_later().unwrap(), Settled::Done);
    for _ in 0..20 {
        clock.advance(SEC);
        work(&store);
    }
    let batch = consumer.poll(Duration::ZERO).unwrap();
    assert_eq!(batch.len(), 1);
    let again = &batch[0];
    let said = (again.tags(), again.keys(), again.get("tenant"), again.get("__SHARDINGKEY"));
    assert_eq!(said, (Some("vip"), Some("order-42"), Some("acme"), Some("customer-7")));
}

#[test]
fn fewer_queues_than_there_were_keep_no_consumer_out() {
    let disk = disk();
    let clock = Arc::new(ManualClock::new(MIDNIGHT));
    let store = open_with(&disk, config(), clock.clone());
    put_now(&store, Message::new("t", "body").queue(9));
    store.close().unwrap();
    drop(store);
    let mut config = config();
    (config.max_queues_per_topic, config.default_topic_queue_nums) = (8, 4);
    let store = open_with(&disk, config, clock.clone());
    let consumer = store.consumer("billing").subscribe("t", TagFilter::any()).open();
    let consumer = consumer.expect("it opens");
    assert_eq!(consumer.poll(Duration::ZERO).unwrap().len(), 1);
}

#[test]
fn a_retry_of_what_looks_like_a_transaction_waits() {
    let disk = disk();
    let clock = Arc::new(ManualClock::new(MIDNIGHT));
    let store = open_with(&disk, config(), clock.clone());
    put_now(&store, Message::new("t", "body").property(names::TRANSACTION_PREPARED, "true"));
    let consumer = store.consumer("billing").subscribe("t", TagFilter::any()).open().unwrap();
    let mut rounds = 0;
    loop {
        let batch = consumer.poll(Duration::ZERO).unwrap();
        let Some(message) = batch.first() else { break };
        message.retry_later().unwrap();
        rounds += 1;
        work(&store);
    }
    assert_eq!(
        rounds,
        1,
        "no time has passed, and it came {rounds} times; {} dead",
        store.dead_letters("billing").count()
    );
}
