//! A thread of the store that panics: everyone hears of it, and nobody is told a lie.

#[path = "support/future.rs"]
mod future;
#[path = "support/hooked.rs"]
mod hooked;
#[path = "support/sim.rs"]
mod sim;

use duralog::clock::{Clock, SystemClock};
use duralog::disk::SimCall;
use duralog::replication::{
    Admission, Refusal, ReplicaBehaviour, ReplicatedLog, Replicator, ScriptedReplica, StartPoint,
};
use duralog::{Environment, Error, Message, PutResult, PutStatus, Reached, Store, StoreConfig};
use hooked::{Hook, Hooked};
use sim::*;
use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Wake, Waker};
use std::time::{Duration, Instant};

/// Panics in the thread of this name, once it is told to.
#[derive(Debug)]
struct Bomb {
    thread: &'static str,
    armed: AtomicBool,
}

impl Bomb {
    fn tick(&self) {
        let here = std::thread::current().name() == Some(self.thread);
        if here && self.armed.swap(false, Ordering::SeqCst) {
            panic!("planted");
        }
    }
}

impl Hook for Bomb {
    fn before(&self, call: SimCall) -> io::Result<()> {
        let changes =
            [SimCall::Create, SimCall::Open, SimCall::CreateDir, SimCall::Write, SimCall::Sync];
        if changes.contains(&call) {
            self.tick();
        }
        Ok(())
    }
}

/// The one thread that calls no disk asks for the time.
const DEADLINE: &str = "duralog-deadline";

impl Clock for Bomb {
    fn now(&self) -> Instant {
        self.tick();
        SystemClock.now()
    }

    fn unix_millis(&self) -> i64 {
        SystemClock.unix_millis()
    }
}

fn assert_panicked(error: &Error, name: &str) {
    match error {
        Error::WorkerPanicked { thread, message } => {
            assert_eq!((thread.as_str(), message.as_str()), (name, "planted"));
        }
        other => panic!("not a panic: {other}"),
    }
}

/// Segments and queue files that are soon full, and so something to do for every thread.
fn busy() -> StoreConfig {
    let mut config = config().segment_size(4096).consume_queue_file_size(40);
    config.queue_checkpoint_bytes = 4096;
    config
}

fn put_and_wait(store: &Store, id: u64) -> duralog::Result<PutResult> {
    store.put(message(id))
}

/// Lets `thread` panic once some messages are stored, and puts until that is heard.
fn panic_in(thread: &'static str) {
    panic_in_with(thread, busy(), put_and_wait);
}

fn panic_in_with(
    thread: &'static str,
    config: StoreConfig,
    put_another: fn(&Store, u64) -> duralog::Result<PutResult>,
) {
    let disk = disk();
    let bomb = Arc::new(Bomb { thread, armed: AtomicBool::new(false) });
    let mined = Hooked::over(disk.shared(), bomb.clone());
    let mut environment = Environment::on(mined);
    if thread == DEADLINE {
        environment = environment.clock(bomb.clone());
    }
    let store = Store::open_in(config.clone(), environment).expect("the store opens");
    let mut acknowledged: Vec<u64> = (0..3).map(|id| put(&store, id)).collect();
    bomb.armed.store(true, Ordering::SeqCst);
    // How many puts pass before the thread has panicked and said so is the scheduler's to decide.
    let give_up = Instant::now() + LONG;
    let error = (3..)
        .take_while(|_| Instant::now() < give_up)
        .find_map(|id| match put_another(&store, id) {
            Ok(result) => {
                acknowledged.push(result.ok().expect("the put is safe").queue_offset);
                None
            }
            Err(error) => Some(error),
        })
        .unwrap_or_else(|| panic!("{thread} panicked and nobody was told"));
    match &error {
        Error::Latched { first } | Error::Unknown { first, .. } => assert_panicked(first, thread),
        other => panic!("{other}"),
    }
    let refused = store.put(message(2000)).expect_err("nothing is taken any more");
    assert!(matches!(refused, Error::Latched { .. }), "{refused}");
    assert_panicked(&store.health().latched.expect("the store is latched"), thread);
    let found = store.get(TOPIC, 0, 0, 3).expect("reads go on");
    assert_eq!(found.messages.len(), 3);
    assert!(store.close().is_err(), "a panic is told on close as well");
    drop(store);
    let store = open(&disk, config);
    assert_eq!(ids(&store)[..acknowledged.len()], acknowledged);
    assert!(store.verify().expect("the log can be read").is_ok());
}

#[test]
fn a_panic_while_syncing_latches_the_store() {
    panic_in("duralog-sync");
}

#[test]
fn a_panic_while_preparing_segments_latches_the_store() {
    panic_in("duralog-upkeep");
}

#[test]
fn a_panic_while_checkpointing_latches_the_store() {
    panic_in("duralog-checkpoint");
}

#[test]
fn a_panic_while_dispatching_latches_the_store() {
    // No checkpoint takes the entries from the thread that makes them: it has to write them itself.
    let mut config = busy();
    config.queue_checkpoint_bytes = u64::MAX;
    panic_in_with("duralog-dispatch", config, put_and_wait);
}

#[test]
fn a_panic_while_watching_deadlines_latches_the_store() {
    panic_in_with(DEADLINE, busy(), |store, id| {
        let mut ticket = pin!(store.submit(message(id))?);
        // Answered here or not, it is a task by now that the thread is to wake in time.
        let _ = ticket.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        future::block_on(ticket)
    });
}

#[test]
fn waiters_are_woken_by_a_panic() {
    let disk = disk();
    let bomb = Arc::new(Bomb { thread: "duralog-sync", armed: AtomicBool::new(false) });
    let mined = Hooked::over(disk.shared(), bomb.clone());
    let config = config().sync_flush_timeout(LONG);
    let store = Store::open_in(config, Environment::on(mined)).expect("the store opens");
    put(&store, 0);
    bomb.armed.store(true, Ordering::SeqCst);
    let tickets: Vec<_> = (1..6).filter_map(|id| store.submit(message(id)).ok()).collect();
    assert!(!tickets.is_empty());
    std::thread::scope(|scope| {
        for ticket in tickets {
            scope.spawn(|| match ticket.wait() {
                Err(Error::Unknown { first, .. }) => assert_panicked(&first, "duralog-sync"),
                other => panic!("a waiter was told {other:?}"),
            });
        }
    });
}

/// A replicator that panics in the store's thread.
#[derive(Debug)]
struct MinedReplica {
    below: Arc<ScriptedReplica>,
    bomb: Bomb,
}

impl Replicator for MinedReplica {
    fn start(&self, log: Arc<dyn ReplicatedLog>, at: StartPoint) -> duralog::Result<u64> {
        self.below.start(log, at)
    }

    fn admit(&self) -> Result<Admission, Refusal> {
        self.below.admit()
    }

    fn on_written(&self, end: u64) {
        self.below.on_written(end);
    }

    fn on_durable(&self, end: u64) {
        self.bomb.tick();
        self.below.on_durable(end);
    }

    fn stop(&self) {
        self.below.stop();
    }
}

#[test]
fn a_replicator_that_panics_latches_the_store() {
    let disk = disk();
    let below = ScriptedReplica::new(ReplicaBehaviour::Silent);
    let bomb = Bomb { thread: "duralog-sync", armed: AtomicBool::new(true) };
    let replica = Arc::new(MinedReplica { below, bomb });
    let mut config = config();
    config.sync_replica_timeout = Duration::from_millis(50);
    let store = Store::open_replicated(config, Environment::on(disk.shared()), replica)
        .expect("the store opens");
    // Its bytes were durable when the thread died, so it may be told that only replicas are missing.
    match store.put(Message::new(TOPIC, "x")) {
        Err(Error::Unknown { first, .. }) => assert_panicked(&first, "duralog-sync"),
        Ok(result) => {
            assert_eq!(result.status, PutStatus::FlushReplicaTimeout);
            assert_eq!(result.reached, Reached::Durable);
        }
        Err(other) => panic!("{other}"),
    }
    let refused = store.put(message(1)).expect_err("nothing is taken any more");
    match &refused {
        Error::Latched { first } => assert_panicked(first, "duralog-sync"),
        other => panic!("{other}"),
    }
    assert!(store.close().is_err());
}

/// Notes that it was woken, and panics if it is to.
#[derive(Default)]
struct Startled {
    woken: AtomicBool,
    panics: bool,
}

impl Wake for Startled {
    fn wake(self: Arc<Self>) {
        self.woken.store(true, Ordering::SeqCst);
        if self.panics {
            panic!("planted");
        }
    }
}

#[test]
fn a_waker_that_panics_strands_nobody_else() {
    let disk = disk();
    let store = open(&disk, config());
    disk.hang_syncs(true);
    let tickets = (0..4).map(|id| Box::pin(store.submit(message(id)).expect("accepted")));
    let mut tickets: Vec<_> = tickets.collect();
    let wakers: Vec<_> =
        (0..4).map(|n| Arc::new(Startled { panics: n == 0, ..Startled::default() })).collect();
    for (ticket, startled) in tickets.iter_mut().zip(&wakers) {
        let waker = Waker::from(startled.clone());
        assert!(ticket.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    }
    disk.hang_syncs(false);
    for startled in &wakers {
        eventually("it is woken", || startled.woken.load(Ordering::SeqCst));
    }
    for ticket in tickets {
        let result = future::block_on(ticket).expect("no failure");
        assert_eq!(result.status, PutStatus::PutOk);
    }
    assert!(store.health().is_ok());
}
