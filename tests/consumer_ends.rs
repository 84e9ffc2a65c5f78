//! Consumers, listeners and stores that end while others are still at work with them.

use duralog::clock::{Clock, ManualClock};
use duralog::delivery::{Consumer, Handled, Listener, Received, Settled, Watch};
use duralog::disk::SimDisk;
use duralog::{Environment, Error, Message, Store, StoreConfig, TagFilter};
use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Context, Wake, Waker};
use std::time::{Duration, Instant};

const NOW: Duration = Duration::ZERO;
const LONG: Duration = Duration::from_secs(60);

fn config() -> StoreConfig {
    let mut config = StoreConfig::new("/store").segment_size(256 << 10);
    config.index_enable = false;
    config
}

fn open(disk: &SimDisk) -> Store {
    Store::open_in(config(), Environment::on(disk.shared())).unwrap()
}

fn put(store: &Store, body: &str) {
    store.put(Message::new("orders", body)).unwrap().ok().unwrap();
}

fn consumer(store: &Store) -> Consumer {
    store.consumer("billing").subscribe("orders", TagFilter::any()).open().unwrap()
}

fn committed(store: &Store) -> Option<u64> {
    store.committed_offset("billing", "orders", 0)
}

#[test]
fn what_is_held_while_its_store_closes_counts_no_more() {
    for is_ordered in [false, true] {
        let disk = SimDisk::new(1);
        let store = open(&disk);
        (0..4).for_each(|n| put(&store, &n.to_string()));
        let builder = store.consumer("billing").subscribe("orders", TagFilter::any());
        let builder = if is_ordered { builder.ordered() } else { builder };
        let consumer = builder.open().unwrap();
        let batch = consumer.poll(LONG).unwrap();
        assert_eq!(batch[0].ack().unwrap(), Settled::Done);
        store.close().unwrap();
        let reopened = open(&disk);
        // Whether or not the group would move by it.
        for message in [&batch[2], &batch[1]] {
            assert!(matches!(message.ack(), Err(Error::Closed)));
            assert!(matches!(message.retry_later(), Err(Error::Closed)));
            assert!(matches!(message.reject(), Err(Error::Closed)));
        }
        assert!(matches!(batch.ack(), Err(Error::Closed)));
        drop((batch, consumer, store));
        assert_eq!(committed(&reopened), Some(1));
        reopened.close().unwrap();
        assert_eq!(committed(&open(&disk)), Some(1));
    }
}

/// A handle that somebody takes away and ends, perhaps on the thread that it ends.
type Slot<T> = Arc<Mutex<Option<T>>>;

#[test]
fn a_handler_may_close_its_listener() {
    let store = open(&SimDisk::new(1));
    let consumer = consumer(&store);
    let slot: Slot<Listener> = Arc::default();
    let (told, heard) = mpsc::channel();
    let taken = slot.clone();
    let listener = consumer
        .listen(3, move |_| {
            let listener = taken.lock().unwrap().take().unwrap();
            told.send(listener.close())?;
            Ok(Handled::Done)
        })
        .unwrap();
    *slot.lock().unwrap() = Some(listener);
    put(&store, "the end");
    heard.recv_timeout(LONG).unwrap().unwrap();
    // It is done with the message that it has.
    while committed(&store) != Some(1) {
        std::thread::yield_now();
    }
    put(&store, "nobody's");
    assert_eq!(consumer.poll(LONG).unwrap().ack().unwrap(), 1);
    store.close().unwrap();
}

#[test]
fn nobody_listens_to_what_is_closed() {
    let store = open(&SimDisk::new(1));
    let (gone, other) = (consumer(&store), consumer(&store));
    gone.close();
    let handle = |_: &Received| Ok(Handled::Done);
    assert!(matches!(gone.listen(1, handle), Err(Error::Closed)));
    store.close().unwrap();
    assert!(matches!(other.listen(1, handle), Err(Error::Closed)));
}

#[test]
fn a_handler_may_close_its_store_and_open_it_again() {
    let disk = SimDisk::new(1);
    let store = open(&disk);
    let consumer = consumer(&store);
    let (told, heard) = mpsc::channel();
    let (closing, its_disk) = (store.clone(), disk.clone());
    let listener = consumer
        .listen(2, move |_| {
            let closed = closing.close();
            told.send(
                closed.and_then(|()| Store::open_in(config(), Environment::on(its_disk.shared()))),
            )?;
            Ok(Handled::Done)
        })
        .unwrap();
    put(&store, "the end");
    let reopened = heard.recv_timeout(LONG).unwrap().unwrap();
    assert_eq!(committed(&reopened), Some(0), "it was not handled before the end");
    listener.close().unwrap();
    assert_eq!(committed(&reopened), Some(0));
    reopened.close().unwrap();
}

/// Opens a store again that is closed in the background.
fn reopen(disk: &SimDisk) -> Store {
    let started = Instant::now();
    let reopened = loop {
        match Store::open_in(config(), Environment::on(disk.shared())) {
            Ok(store) => break store,
            Err(Error::Locked { .. }) if started.elapsed() < LONG => std::thread::yield_now(),
            Err(error) => panic!("{error}"),
        }
    };
    assert!(!reopened.recovery().unclean);
    reopened
}

#[test]
fn whoever_is_told_of_something_may_close_the_store_that_tells_it() {
    let disk = SimDisk::new(1);
    let store = open(&disk);
    put(&store, "x");
    drop(consumer(&store));
    let (told, heard) = mpsc::channel();
    let closing = store.clone();
    let watch = Watch::new(move |_| drop(told.send(closing.close())));
    store.observe(watch.lag_over(0)).unwrap();
    heard.recv_timeout(LONG).unwrap().unwrap();
    drop(store);
    reopen(&disk).close().unwrap();
}

/// Closes a store on whatever thread it is woken.
struct Closes {
    store: Store,
    told: mpsc::Sender<duralog::Result<()>>,
}

impl Wake for Closes {
    fn wake(self: Arc<Self>) {
        let _ = self.told.send(self.store.close());
    }
}

#[test]
fn a_task_that_one_of_its_threads_wakes_may_close_a_store() {
    let disk = SimDisk::new(1);
    let store = open(&disk);
    let (told, heard) = mpsc::channel();
    let waker = Waker::from(Arc::new(Closes { store: store.clone(), told }));
    disk.hang_syncs(true);
    let mut ticket = pin!(store.submit(Message::new("orders", "x")).unwrap());
    assert!(ticket.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    disk.hang_syncs(false);
    heard.recv_timeout(LONG).unwrap().unwrap();
    drop(store);
    assert_eq!(reopen(&disk).max_offset("orders", 0), Some(1));
}

/// A clock that does something once, when it was asked so many times.
struct Alarm {
    clock: ManualClock,
    left: AtomicI64,
    then: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl std::fmt::Debug for Alarm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.clock.fmt(f)
    }
}

impl Alarm {
    fn set(&self, left: i64, then: impl FnOnce() + Send + 'static) {
        *self.then.lock().unwrap() = Some(Box::new(then));
        self.left.store(left, Ordering::SeqCst);
    }
}

impl Clock for Alarm {
    fn now(&self) -> Instant {
        if self.left.fetch_sub(1, Ordering::SeqCst) == 1
            && let Some(then) = self.then.lock().unwrap().take()
        {
            then();
        }
        self.clock.now()
    }

    fn unix_millis(&self) -> i64 {
        self.clock.unix_millis()
    }
}

/// A store that is stepped, of so many messages.
fn alarmed(messages: usize) -> (Arc<Alarm>, Store) {
    let clock = Arc::new(Alarm {
        clock: ManualClock::new(1_700_000_000_000),
        left: AtomicI64::new(0),
        then: Mutex::new(None),
    });
    let environment = Environment::on(SimDisk::new(1).shared()).clock(clock.clone()).stepped();
    let store = Store::open_in(config(), environment).unwrap();
    for n in 0..messages {
        let ticket = store.submit(Message::new("orders", n.to_string())).unwrap();
        store.flush().unwrap();
        ticket.wait().unwrap().ok().unwrap();
    }
    (clock, store)
}

#[test]
fn a_poll_that_meets_the_end_of_its_consumer_keeps_nothing() {
    let (clock, store) = alarmed(1);
    let (ann, bob) = (consumer(&store), consumer(&store));
    // The queues are known, and what is there is read.
    drop(bob.poll(NOW).unwrap());
    let ending = ann.clone();
    // The first time is for the deadline, before it is looked whether the consumer is gone; the second one
    // is in the midst of it.
    clock.set(2, move || ending.close());
    let polled = ann.poll(NOW);
    assert!(clock.then.lock().unwrap().is_none(), "it was closed");
    let got = bob.poll(NOW).unwrap();
    assert_eq!(got.len(), 1);
    assert_eq!(got[0].reconsume_times(), 0);
    assert!(matches!(polled, Err(Error::Closed)));
}

#[test]
fn a_poll_that_meets_the_end_of_the_last_consumer_has_no_say_in_where_the_next_ones_are() {
    let (clock, store) = alarmed(3);
    let open = |store: &Store| {
        let builder = store.consumer("billing").subscribe("orders", TagFilter::any());
        builder.max_reconsume_times(0).ordered().open().unwrap()
    };
    let ann = open(&store);
    ann.poll_max(1, NOW).unwrap()[0].retry_later().unwrap();
    clock.clock.advance(LONG);
    let (ending, other) = (ann.clone(), store.clone());
    clock.set(2, move || {
        ending.close();
        assert_eq!(open(&other).poll(NOW).unwrap().ack().unwrap(), 3);
    });
    drop(ann.poll(NOW));
    assert!(clock.then.lock().unwrap().is_none(), "it was closed");
    assert_eq!(store.dead_letters("billing").count(), 1, "it had failed once too often");
    assert_eq!(committed(&store), Some(3));
}

#[test]
fn a_batch_that_is_still_held_keeps_no_group_from_beginning_anew() {
    let store = open(&SimDisk::new(1));
    (0..4).for_each(|n| put(&store, &n.to_string()));
    let old = consumer(&store);
    let (done, open) = (old.poll_max(2, LONG).unwrap(), old.poll_max(2, LONG).unwrap());
    assert_eq!(done.ack().unwrap(), 2);
    drop(old);
    // Nobody consumes it any more: it may be taken back.
    store.commit_offset("billing", "orders", 0, 0).unwrap();
    let new = consumer(&store);
    let again = new.poll(LONG).unwrap();
    assert_eq!(again.len(), 4);
    assert_eq!(open[0].ack().unwrap(), Settled::LeaseLost);
    drop((done, open));
    assert_eq!(committed(&store), Some(0));
    assert_eq!(again.ack().unwrap(), 4);
    assert_eq!(committed(&store), Some(4));
    drop(new);
    let other = store.consumer("billing").subscribe("others", TagFilter::any()).open();
    assert!(other.is_ok(), "{other:?}");
}

#[test]
fn instances_that_get_everything_agree_with_nobody_but_themselves() {
    let store = open(&SimDisk::new(1));
    let builder = || store.consumer("billing").subscribe("orders", TagFilter::any());
    let ann = builder().broadcast("ann").open().unwrap();
    let bob = builder().broadcast("bob").max_span(10).open().unwrap();
    for (wanted, other) in [("max_span", builder().broadcast("bob")), ("mode", builder())] {
        let refused = other.open();
        let names_it = matches!(&refused, Err(Error::Config { field, .. }) if *field == wanted);
        assert!(names_it, "not {wanted}: {refused:?}");
    }
    drop((ann, bob));
    builder().open().unwrap();
}
