//! What is told of messages, and of what needs attention.

use duralog::clock::ManualClock;
use duralog::delivery::{Event, HalfMessage, HalfMessageView, TransactionState, Watch};
use duralog::disk::{Fault, SimDisk, SyncFailure};
use duralog::message::Compression;
use duralog::{
    Environment, Error, Message, Next, Store, StoreConfig, StoreWorker, TagFilter, Threshold,
};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const NOW: Duration = Duration::ZERO;

struct World {
    disk: SimDisk,
    clock: Arc<ManualClock>,
    store: Store,
    told: Arc<Mutex<Vec<String>>>,
}

impl World {
    fn new(watch: impl FnOnce(Watch) -> Watch) -> Self {
        let (disk, clock) = (SimDisk::new(1), Arc::new(ManualClock::new(1_700_000_000_000)));
        let mut config = StoreConfig::new("/store").segment_size(64 << 10);
        config.index_enable = false;
        let environment = Environment::on(disk.shared()).clock(clock.clone()).stepped();
        let store = Store::open_in(config, environment).unwrap();
        let told = Arc::new(Mutex::new(Vec::new()));
        let noted = told.clone();
        let tell = move |event: &Event<'_>| noted.lock().unwrap().push(line(event));
        store.observe(watch(Watch::new(tell))).unwrap();
        Self { disk, clock, store, told }
    }

    fn put(&self, body: &str) -> Result<(), Error> {
        let ticket = self.store.submit(Message::new("orders", body))?;
        for worker in [StoreWorker::Upkeep, StoreWorker::Flush] {
            while self.store.step(worker) == Next::Now {}
        }
        ticket.wait()?.ok().map(|_| ())
    }

    /// A second passes, and somebody looks; what was told by then.
    fn look(&self) -> Vec<String> {
        self.clock.advance(Duration::from_secs(1));
        while self.store.step(StoreWorker::Delivery) == Next::Now {}
        self.told()
    }

    fn told(&self) -> Vec<String> {
        std::mem::take(&mut self.told.lock().unwrap())
    }
}

fn line(event: &Event<'_>) -> String {
    let text = |body: &[u8]| String::from_utf8_lossy(body).into_owned();
    match event {
        Event::Delivered { group, message } => {
            format!("{group} gets {}", text(message.body()))
        }
        Event::Settled { group, message, verdict, settled, held, .. } => {
            let body = text(message.body());
            format!("{group} {verdict:?} {body} after {} s: {settled:?}", held.as_secs())
        }
        Event::DeadLetter { group, message } => {
            format!("{group} cannot handle {}", text(message.body()))
        }
        Event::Lag { group, queue } => format!("{group} lags by {}", queue.messages()),
        Event::DiskOver { available } => format!("{available} bytes left"),
        Event::Failed { error } => format!("failed: {error}"),
        Event::NotOk { status, puts } => format!("{puts} {status}"),
        other => format!("{other:?}"),
    }
}

#[test]
fn the_way_of_a_message_is_told() {
    let world = World::new(|watch| watch);
    for body in ["good", "bad", "late"] {
        world.put(body).unwrap();
    }
    let builder = world.store.consumer("billing").subscribe("orders", TagFilter::any());
    let consumer = builder.max_reconsume_times(0).open().unwrap();
    let batch = consumer.poll(NOW).unwrap();
    assert_eq!(world.told(), ["billing gets good", "billing gets bad", "billing gets late"]);
    world.clock.advance(Duration::from_secs(2));
    batch[0].ack().unwrap();
    batch[1].reject().unwrap();
    assert_eq!(
        world.told(),
        [
            "billing Acked good after 2 s: Done",
            "billing cannot handle bad",
            "billing Rejected bad after 2 s: Done"
        ]
    );
    world.clock.advance(Duration::from_secs(15 * 60));
    assert!(consumer.poll(NOW).unwrap().is_empty());
    assert_eq!(world.told(), ["billing cannot handle late"]);
    assert_eq!(batch.ack().unwrap(), 0);
    assert_eq!(world.told(), ["billing Acked late after 902 s: LeaseLost"]);
}

#[test]
fn what_producers_send_is_told() {
    let (told, heard) = std::sync::mpsc::channel();
    let disk = SimDisk::new(2);
    let mut config = StoreConfig::new("/store").segment_size(64 << 10);
    config.log.max_message_size = 1000;
    let store = Store::open_in(config, Environment::on(disk.shared())).unwrap();
    let tell = move |event: &Event<'_>| match event {
        Event::Sent { sent } => told.send(sent.unique_key().to_owned()).unwrap(),
        Event::NotSent { error } => told.send(error.to_string()).unwrap(),
        _ => {}
    };
    store.observe(Watch::new(tell)).unwrap();
    let producer = store.producer("shop").open().unwrap();
    let sent = producer.send(Message::new("orders", "x")).unwrap();
    assert_eq!(heard.recv().unwrap(), sent.unique_key());
    let sent = producer.send_async(Message::new("orders", "x")).unwrap().wait().unwrap();
    assert_eq!(heard.recv().unwrap(), sent.unique_key());
    let large = || Message::new("orders", vec![0; 2000]);
    let refused = producer.send(large()).unwrap_err();
    assert_eq!(heard.recv().unwrap(), refused.to_string());
    // Before it is compressed, too.
    let producer =
        store.producer("shop").compress(Compression::Zlib).compress_over(9).open().unwrap();
    let refused = producer.send(large()).unwrap_err();
    assert_eq!(heard.recv().unwrap(), refused.to_string());
    let refused = producer.send_async(large()).unwrap_err();
    assert!(matches!(refused, Error::TooLarge { .. }));
    assert_eq!(heard.recv().unwrap(), refused.to_string());
    assert!(heard.try_recv().is_err());
}

#[test]
fn what_transactions_send_is_told_once() {
    let world = World::new(|watch| watch);
    let commits = |half: &HalfMessageView| match half.body() {
        b"asked" => TransactionState::Commit,
        _ => TransactionState::Rollback,
    };
    let producer = world.store.transactional_producer("shop", commits).open().unwrap();
    let begin = |body: &str| producer.begin(Message::new("orders", body).unique_key(body));
    let half = begin("paid").unwrap();
    let (asked, other) = (begin("asked").unwrap(), begin("other").unwrap());
    begin("not paid").unwrap().rollback().unwrap();
    assert!(world.told().is_empty());
    let sent = |told: &[String], key: &str| {
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0].starts_with("Sent") && told[0].contains(&format!("{key:?}")), "{told:?}");
    };
    half.commit().unwrap();
    sent(&world.told(), "paid");
    half.commit().unwrap();
    assert!(world.told().is_empty());
    world.clock.advance(Duration::from_secs(10));
    sent(&world.look(), "asked");
    asked.commit().unwrap();
    other.commit().unwrap_err();
    assert!(world.told().is_empty());
    let refused = producer.begin(Message::new("orders", "x").delay_level(1)).unwrap_err();
    assert!(
        matches!(&world.told()[..], [told] if told.contains("DelayedTransaction")),
        "{refused}"
    );
}

/// Who is told may do what the application may.
#[test]
fn who_is_told_of_a_transaction_may_ask_where_it_lies() {
    let disk = SimDisk::new(2);
    let store = Store::open_in(StoreConfig::new("/store"), Environment::on(disk.shared())).unwrap();
    let halves = Arc::<Mutex<Vec<HalfMessage>>>::default();
    let (known, (told, heard)) = (halves.clone(), std::sync::mpsc::channel());
    let tell = move |event: &Event<'_>| {
        if let Event::Sent { sent } = event {
            let again = known.lock().unwrap()[0].commit().unwrap();
            told.send((sent.put.queue_offset, again.queue_offset)).unwrap();
        }
    };
    store.observe(Watch::new(tell)).unwrap();
    let producer =
        store.transactional_producer("shop", |_| TransactionState::Unknown).open().unwrap();
    let half = producer.begin(Message::new("orders", "x")).unwrap();
    halves.lock().unwrap().push(half.clone());
    half.commit().unwrap();
    assert_eq!(heard.recv().unwrap(), (0, 0));
    halves.lock().unwrap().clear();
}

#[test]
fn a_message_that_was_to_come_later_once_too_often_is_told_as_rejected() {
    let world = World::new(|watch| watch);
    world.put("bad").unwrap();
    let builder = world.store.consumer("billing").subscribe("orders", TagFilter::any());
    let consumer = builder.max_reconsume_times(0).open().unwrap();
    consumer.poll(NOW).unwrap()[0].retry_later().unwrap();
    assert_eq!(
        world.told(),
        ["billing gets bad", "billing cannot handle bad", "billing Rejected bad after 0 s: Done"]
    );
}

#[test]
fn a_group_that_falls_behind_is_told_once_until_it_has_caught_up() {
    let world = World::new(|watch| watch.lag_over(2));
    for n in 0..3 {
        world.put(&n.to_string()).unwrap();
    }
    world.store.commit_offset("billing", "orders", 0, 0).unwrap();
    assert_eq!(world.look(), ["billing lags by 3"]);
    assert!(world.look().is_empty());
    world.store.commit_offset("billing", "orders", 0, 1).unwrap();
    assert!(world.look().is_empty());
    world.put("3").unwrap();
    assert_eq!(world.look(), ["billing lags by 3"]);
}

#[test]
fn a_group_falls_behind_also_in_a_queue_where_it_has_done_nothing_yet() {
    let world = World::new(|watch| watch.lag_over(1));
    let builder = world.store.consumer("billing").subscribe("orders", TagFilter::any());
    let consumer = builder.open().unwrap();
    for body in ["1", "2"] {
        world.put(body).unwrap();
    }
    let held = consumer.poll(NOW).unwrap();
    assert_eq!(held.len(), 2);
    let ticket = world.store.submit(Message::new("orders", "3").queue(3)).unwrap();
    world.store.step(StoreWorker::Flush);
    ticket.wait().unwrap().ok().unwrap();
    let lag = |store: &Store| -> Vec<_> {
        let lag = store.lag("billing").into_iter();
        lag.map(|one| (one.topic.clone(), one.queue_id, one.messages())).collect()
    };
    while world.store.step(StoreWorker::Dispatch) == Next::Now {}
    let at = |topic: &str, queue, messages| (topic.to_owned(), queue, messages);
    assert_eq!(lag(&world.store), [at("orders", 0, 2), at("orders", 3, 1)]);
    held[0].reject().unwrap();
    while world.store.step(StoreWorker::Dispatch) == Next::Now {}
    let dead = at("%DLQ%billing", 0, 1);
    assert_eq!(lag(&world.store), [dead, at("orders", 0, 1), at("orders", 3, 1)]);
}

#[test]
fn a_disk_that_fills_is_told_once_until_it_has_room() {
    let world = World::new(|watch| watch.disk_over(Threshold::FreeBytes(1 << 20)));
    assert!(world.look().is_empty());
    world.disk.set_capacity(world.disk.used() + 1000);
    assert_eq!(world.look(), ["1000 bytes left"]);
    assert!(world.look().is_empty());
    world.disk.set_capacity(u64::MAX);
    assert!(world.look().is_empty());
    world.disk.set_capacity(world.disk.used());
    assert_eq!(world.look(), ["0 bytes left"]);
}

#[test]
fn a_failed_sync_is_told_once() {
    let world = World::new(|watch| watch);
    world.disk.inject(Fault::sync(SyncFailure::KeepNew));
    assert!(world.put("x").is_err());
    let told = world.look();
    assert_eq!(told.len(), 1);
    assert!(told[0].starts_with("failed: "), "{told:?}");
    assert!(world.look().is_empty());
}

#[test]
fn a_failed_sync_of_offsets_is_told_once() {
    let world = World::new(|watch| watch);
    world.put("1").unwrap();
    world.store.commit_offset("billing", "orders", 0, 1).unwrap();
    world.disk.inject(Fault::sync(SyncFailure::KeepNew).path("offsets"));
    assert!(world.store.flush_offsets().is_err());
    assert!(world.store.health().offsets_latched.is_some() && !world.store.health().is_ok());
    let told = world.look();
    assert!(told.len() == 1 && told[0].starts_with("failed: "), "{told:?}");
    assert_eq!(world.look(), [""; 0]);
    world.put("2").unwrap();
}

#[test]
fn puts_that_are_not_safe_in_time_are_told() {
    let world = World::new(|watch| watch);
    for _ in 0..3 {
        let ticket = world.store.submit(Message::new("orders", "x")).unwrap();
        world.clock.advance(Duration::from_secs(5));
        assert!(ticket.wait_timeout(NOW).unwrap().is_some_and(|put| put.ok().is_err()));
    }
    assert_eq!(world.look(), ["3 FLUSH_DISK_TIMEOUT"]);
    assert!(world.look().is_empty());
}

#[test]
fn one_that_panics_hears_on_and_others_hear_too() {
    let world = World::new(|watch| watch);
    world.store.observe(Watch::new(|_| panic!("as it is meant to"))).unwrap();
    let heard = Arc::new(Mutex::new(0));
    let counted = heard.clone();
    world.store.observe(Watch::new(move |_| *counted.lock().unwrap() += 1)).unwrap();
    world.put("x").unwrap();
    let builder = world.store.consumer("billing").subscribe("orders", TagFilter::any());
    builder.open().unwrap().poll(NOW).unwrap().ack().unwrap();
    assert_eq!(*heard.lock().unwrap(), 2);
    assert_eq!(world.told().len(), 2);
}

#[test]
fn a_watch_that_never_looks_is_refused() {
    let world = World::new(|watch| watch);
    let refused = world.store.observe(Watch::new(|_| ()).interval(Duration::ZERO));
    assert!(matches!(refused, Err(Error::Config { field: "interval", .. })));
}

#[test]
fn a_store_that_is_closed_or_only_read_delivers_nothing_and_tells_nobody() {
    let disk = SimDisk::new(1);
    let open = |read_only| {
        let config = StoreConfig::new("/store").segment_size(64 << 10).read_only(read_only);
        Store::open_in(config, Environment::on(disk.shared())).unwrap()
    };
    let store = open(false);
    store.deliver_delayed().unwrap();
    store.close().unwrap();
    let producer = store.transactional_producer("shop", |_| TransactionState::Unknown);
    for answer in [
        store.deliver_delayed(),
        store.delay_stats().map(drop),
        store.transactions().map(drop),
        store.observe(Watch::new(|_| ())),
        producer.open().map(drop),
    ] {
        assert!(matches!(answer, Err(Error::Closed)), "{answer:?}");
    }
    let store = open(true);
    for answer in [store.deliver_delayed(), store.observe(Watch::new(|_| ()))] {
        assert!(matches!(answer, Err(Error::ReadOnly)), "{answer:?}");
    }
    assert_eq!(store.delay_stats().unwrap().delivered, 0);
}
