//! Sync flush: how many puts a second survive a power cut.
//!
//! Producers that wait for each put stand beside the ceiling's plain leader and follower; the one that
//! keeps thousands of puts in flight stands beside the bandwidth of the disk, and its figure counts
//! whole records, as the ceiling counts whole bytes.

mod common;

use common::{Beside, Case, KIB, Scratch, Suite, check_samples, message, put_all, queue_len};
use criterion::Throughput;
use duralog::{FlushMode, PutStatus, Store, StoreConfig, Ticket};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Puts that one thread keeps in flight.
const WINDOW: usize = 8192;

fn main() {
    let mut suite = Suite::new("group_commit");
    for (size, label) in [(100, "100B"), (KIB, "1KiB")] {
        for threads in [1, 4, 16, 64] {
            waiting(&mut suite, size, label, threads);
        }
    }
    for (size, label) in [(100, "100B"), (KIB, "1KiB")] {
        pipelined(&mut suite, size, label);
    }
    suite.finish();
}

fn waiting(suite: &mut Suite, size: usize, label: &str, threads: usize) {
    let case = Case {
        name: format!("{label}/{threads}-threads"),
        throughput: Throughput::Elements(1),
        work: 1e-3,
        unit: "k/s",
        smoke: 200,
        most: 1_000_000,
        beside: vec![Beside {
            args: format!("sync --secs 1 --size {size} --threads {threads}"),
            figure: |ceiling| ceiling.per_second / 1e3,
        }],
    };
    let mut opened = None;
    suite.measure(case, |count| {
        let Opened { store, .. } = opened.get_or_insert_with(Opened::new);
        put_all(store, threads, size, count)
    });
    opened.iter().for_each(Opened::finish);
}

fn pipelined(suite: &mut Suite, size: usize, label: &str) {
    let record = record_size(size);
    let case = Case {
        name: format!("{label}/submit"),
        throughput: Throughput::Bytes(record),
        work: record as f64 / 1e6,
        unit: "MB/s",
        smoke: 2000,
        most: 5_000_000,
        beside: vec![Beside {
            args: "bandwidth --secs 1".to_owned(),
            figure: |ceiling| ceiling.mb_per_second,
        }],
    };
    let mut opened = None;
    suite.measure(case, |count| {
        let Opened { store, .. } = opened.get_or_insert_with(Opened::new);
        submit_all(store, size, count)
    });
    opened.iter().for_each(Opened::finish);
}

/// A store that all measurements of a case go on in.
struct Opened {
    store: Store,
    _scratch: Scratch,
}

impl Opened {
    fn new() -> Self {
        let scratch = Scratch::new("group_commit");
        let config = StoreConfig::new(scratch.path()).flush_mode(FlushMode::sync());
        Self { store: Store::open(config).expect("opens"), _scratch: scratch }
    }

    fn finish(&self) {
        let (report, stats) = (self.store.verify().expect("readable"), self.store.stats());
        assert!(report.is_ok(), "{:?}", report.damage);
        assert_eq!(report.records, stats.messages, "messages are missing");
        self.store.close().expect("closes");
    }
}

/// Puts `count` messages from this thread without waiting for each.
fn submit_all(store: &Store, size: usize, count: u64) -> Duration {
    let (message, before) = (message(0, size), queue_len(store, 0));
    let mut in_flight: VecDeque<Ticket> = VecDeque::with_capacity(WINDOW);
    let wait = |ticket: Ticket| {
        let put = ticket.wait().expect("no put fails");
        assert_eq!(put.status, PutStatus::PutOk);
    };
    let started = Instant::now();
    for _ in 0..count {
        if in_flight.len() == WINDOW {
            in_flight.pop_front().into_iter().for_each(wait);
        }
        in_flight.push_back(store.submit(&message).expect("accepted"));
    }
    in_flight.into_iter().for_each(wait);
    let took = started.elapsed();
    assert_eq!(queue_len(store, 0), before + count, "messages are missing");
    check_samples(store, 0, size, before);
    took
}

/// Bytes of the record of such a message.
fn record_size(size: usize) -> u64 {
    let Opened { store, _scratch } = &Opened::new();
    let put = store.put(message(0, size)).and_then(|put| put.ok()).expect("acknowledged");
    put.end_offset - put.physical_offset
}
