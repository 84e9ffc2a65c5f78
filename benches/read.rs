//! Reading what was put, verified: a queue from its beginning, a queue at random, and the log.
//!
//! All three stand beside the ceiling's pass over a mapped file, which looks at every byte once and
//! knows no queues. The store lies in the page cache, as the ceiling's file does.

mod common;

use common::{Beside, Case, KIB, MIB, Scratch, Suite, TOPIC, body, is_smoke_test, put_all};
use criterion::Throughput;
use duralog::config::LogConfig;
use duralog::log::CommitLog;
use duralog::{FlushMode, MessageView, Store, StoreConfig, TagFilter};
use std::path::Path;
use std::time::{Duration, Instant};

const SIZE: usize = KIB;
/// As many as the ceiling reads, about.
const MESSAGES: u64 = 512 * MIB / SIZE as u64;
/// Messages fetched by one call when reading in order.
const BATCH: usize = 32;
/// One message in so many is compared byte by byte. The checksums of all are verified.
const COMPARED: u64 = 1024;

fn main() {
    let mut suite = Suite::new("read");
    let mut filled = None;
    queue_in_order(&mut suite, &mut filled);
    queue_at_random(&mut suite, &mut filled);
    log_in_order(&mut suite, &mut filled);
    suite.finish();
}

/// A store of so many messages, closed.
struct Filled {
    scratch: Scratch,
    messages: u64,
    body: Vec<u8>,
}

impl Filled {
    fn new() -> Self {
        let scratch = Scratch::new("read");
        let messages = if is_smoke_test() { 4000 } else { MESSAGES };
        let config = StoreConfig::new(scratch.path()).flush_mode(FlushMode::async_default());
        let store = Store::open(config).expect("opens");
        put_all(&store, 1, SIZE, messages);
        store.close().expect("closes");
        Self { scratch, messages, body: body(SIZE, 0) }
    }

    fn path(&self) -> &Path {
        self.scratch.path()
    }

    fn open(&self) -> Store {
        Store::open(StoreConfig::new(self.path()).read_only(true)).expect("opens")
    }

    fn check(&self, at: u64, view: &MessageView) {
        assert_eq!(view.queue_offset(), at, "another message");
        if at.is_multiple_of(COMPARED) {
            assert_eq!(view.body(), self.body, "other bytes");
        }
    }
}

fn case(name: &str) -> Case {
    Case {
        name: format!("1KiB/{name}"),
        throughput: Throughput::Elements(1),
        work: 1e-3,
        unit: "k/s",
        smoke: 2000,
        // One pass, as the ceiling's: the first look at a page costs more than the next.
        most: MESSAGES,
        beside: vec![Beside {
            args: format!("scan --size {SIZE}"),
            figure: |ceiling| ceiling.per_second / 1e3,
        }],
    }
}

fn queue_in_order(suite: &mut Suite, filled: &mut Option<Filled>) {
    suite.measure(case("queue"), |count| {
        let filled = filled.get_or_insert_with(Filled::new);
        let store = filled.open();
        let (mut left, mut at) = (count, 0);
        let started = Instant::now();
        while left > 0 {
            let wanted = BATCH.min(left as usize);
            let found = store.get_view(TOPIC, 0, at, wanted, &TagFilter::any()).expect("readable");
            assert!(!found.messages.is_empty(), "{:?} at {at}", found.status);
            for (at, view) in (at..).zip(&found.messages) {
                filled.check(at, view);
            }
            left -= found.messages.len() as u64;
            at = if found.next_offset == filled.messages { 0 } else { found.next_offset };
        }
        started.elapsed()
    });
}

fn queue_at_random(suite: &mut Suite, filled: &mut Option<Filled>) {
    suite.measure(case("random"), |count| {
        let filled = filled.get_or_insert_with(Filled::new);
        let store = filled.open();
        let mut state = 1u64;
        timed(count, || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let at = (state >> 33) % filled.messages;
            let found = store.get_view(TOPIC, 0, at, 1, &TagFilter::any()).expect("readable");
            filled.check(at, found.messages.first().expect("found"));
        })
    });
}

fn log_in_order(suite: &mut Suite, filled: &mut Option<Filled>) {
    suite.measure(case("log"), |count| {
        let filled = filled.get_or_insert_with(Filled::new);
        let mut config = LogConfig::new(filled.path());
        config.read_only = true;
        let log = CommitLog::open(config).expect("opens");
        let (mut records, mut at) = (log.records(0), 0);
        timed(count, || {
            if at == filled.messages {
                (records, at) = (log.records(0), 0);
            }
            let view = records.next().expect("a record").expect("a valid one");
            filled.check(at, &view);
            at += 1;
        })
    });
}

fn timed(count: u64, mut read: impl FnMut()) -> Duration {
    let started = Instant::now();
    (0..count).for_each(|_| read());
    started.elapsed()
}
