//! When async flush syncs, on a clock that moves only when told to: neither before its time, which
//! would cost what async flush saves, nor after it, which would lose more than was said.

#[path = "support/sim.rs"]
mod sim;

use duralog::clock::{Clock, ManualClock};
use duralog::{Environment, FlushMode, Message, Next, Store, StoreConfig, StoreWorker};
use sim::*;
use std::sync::Arc;
use std::time::Duration;

const INTERVAL: Duration = Duration::from_millis(500);
const THOROUGH: Duration = Duration::from_secs(10);
const TICK: Duration = Duration::from_micros(1);
/// As RocketMQ counts them.
const PAGE: u64 = 4096;
const PAGES: u32 = 4;

/// A store whose flusher runs when the test says so.
struct Stepped {
    store: Store,
    clock: Arc<ManualClock>,
}

impl Stepped {
    fn new(interval: Duration, least_pages: u32, thorough_interval: Duration) -> Self {
        let mode = FlushMode::Async { interval, least_pages, thorough_interval };
        Self::with(config().segment_size(1 << 20).flush_mode(mode))
    }

    fn with(config: StoreConfig) -> Self {
        let clock = Arc::new(ManualClock::new(1_700_000_000_000));
        let environment = Environment::on(disk().shared()).clock(clock.clone()).stepped();
        let store = Store::open_in(config, environment).expect("the store opens");
        Self { store, clock }
    }

    /// Appends one record of exactly so many bytes.
    fn append(&self, size: u64) {
        let of = |body: u64| Message::new(TOPIC, vec![7; body as usize]);
        let before = self.appended();
        // A record is longer than its body by as much for every body.
        let probe = Stepped::new(INTERVAL, 0, THOROUGH);
        drop(probe.store.try_submit(of(0)).expect("there is room"));
        drop(self.store.try_submit(of(size - probe.appended())).expect("there is room"));
        assert_eq!(self.appended() - before, size);
    }

    fn appended(&self) -> u64 {
        self.store.stats().watermarks.appended
    }

    fn is_synced(&self) -> bool {
        let watermarks = self.store.stats().watermarks;
        watermarks.durable == watermarks.appended
    }

    fn step(&self) -> Next {
        self.store.step(StoreWorker::Flush)
    }

    /// Lets the flusher look, as often as it wants to, until `time` has passed: it syncs then, not a
    /// moment before, and has asked to be woken in time.
    fn assert_due_in(&self, time: Duration) {
        let due = self.clock.now() + time;
        loop {
            let next = self.step();
            let now = self.clock.now();
            assert!(!self.is_synced(), "synced {:?} early", due - now);
            let Next::At(when) = next else { panic!("{next:?}, while bytes wait") };
            assert!(now < when && when <= due, "{next:?}, but it is due at {due:?}");
            if when == due {
                break;
            }
            self.clock.advance(when - now);
        }
        self.clock.advance(due - self.clock.now() - TICK);
        assert_eq!(self.step(), Next::At(due));
        assert!(!self.is_synced(), "synced a tick early");
        self.clock.advance(TICK);
        self.assert_due();
    }

    fn assert_due(&self) {
        assert!(!self.is_synced());
        assert_eq!(self.step(), Next::Now);
        assert!(self.is_synced(), "it was due");
        assert_eq!(self.step(), Next::Idle);
    }
}

#[test]
fn a_few_bytes_wait_for_the_thorough_interval() {
    let log = Stepped::new(INTERVAL, PAGES, THOROUGH);
    // It counts from when the bytes were first seen, not from the start.
    log.clock.advance(Duration::from_secs(3));
    log.append(200);
    log.assert_due_in(THOROUGH);
    log.clock.advance(Duration::from_secs(1));
    log.append(200);
    log.assert_due_in(THOROUGH);
}

#[test]
fn enough_pages_wait_for_the_interval() {
    let log = Stepped::new(INTERVAL, PAGES, THOROUGH);
    log.append(PAGE * u64::from(PAGES));
    log.assert_due_in(INTERVAL);
    // From one sync to the next, however late in between they come.
    let late = INTERVAL * 3 / 4;
    log.clock.advance(late);
    log.append(PAGE * u64::from(PAGES));
    log.assert_due_in(INTERVAL - late);
}

#[test]
fn enough_pages_after_a_quiet_interval_are_synced_at_once() {
    let log = Stepped::new(INTERVAL, PAGES, THOROUGH);
    log.clock.advance(INTERVAL);
    log.append(PAGE * u64::from(PAGES));
    log.assert_due();
}

#[test]
fn a_byte_less_than_the_least_pages_is_not_enough() {
    let log = Stepped::new(INTERVAL, PAGES, THOROUGH);
    log.append(PAGE * u64::from(PAGES) - 1);
    log.assert_due_in(THOROUGH);
}

#[test]
fn what_comes_late_makes_enough_pages_with_what_waits() {
    let log = Stepped::new(INTERVAL, PAGES, THOROUGH);
    log.append(PAGE * u64::from(PAGES) - 200);
    log.clock.advance(INTERVAL);
    assert!(matches!(log.step(), Next::At(_)));
    assert!(!log.is_synced());
    log.append(200);
    log.assert_due();
}

#[test]
fn without_least_pages_everything_waits_for_the_thorough_interval() {
    let log = Stepped::new(INTERVAL, 0, THOROUGH);
    log.append(PAGE * 100);
    log.assert_due_in(THOROUGH);
}

#[test]
fn a_thorough_interval_below_the_interval_counts_as_the_interval() {
    let log = Stepped::new(INTERVAL, PAGES, INTERVAL / 5);
    log.append(200);
    log.assert_due_in(INTERVAL);
}

#[test]
fn a_roll_does_not_wait_for_the_interval() {
    // An hour, and no number of pages is enough.
    let log = Stepped::with(unsynced());
    while log.store.stats().rolls == 0 {
        assert!(matches!(log.step(), Next::At(_) | Next::Idle), "synced before the roll");
        match log.store.try_submit(message(1)) {
            Ok(ticket) => drop(ticket),
            Err(_) => drop(log.store.step(StoreWorker::Upkeep)),
        }
        assert_eq!(log.store.stats().watermarks.durable, 0);
    }
    log.assert_due();
    log.append(200);
    assert!(matches!(log.step(), Next::At(_)), "the roll hurries one sync, not all that follow");
    assert!(!log.is_synced());
}

#[test]
fn a_flush_does_not_wait_for_the_interval() {
    let store = open(&disk(), unsynced());
    for id in 0..3 {
        let put = put_result(&store, id);
        assert!(store.stats().watermarks.durable < put.end_offset);
        store.flush().expect("it is made durable now");
        assert!(store.stats().watermarks.durable >= put.end_offset);
    }
}
