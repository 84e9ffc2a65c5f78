//! From a producer to a consumer in one process.
//!
//! Rates stand beside those of puts alone, in pairs of which one follows the other; the last table is in
//! microseconds and milliseconds, and says little about another machine.

mod common;

use common::{KIB, Scratch, TOPIC, body, is_smoke_test};
use duralog::delivery::{ConsumerBuilder, Handled};
use duralog::{FlushMode, Message, Store, StoreConfig, TagFilter};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

const PAIRS: usize = 9;
const LONG: Duration = Duration::from_secs(60);

fn main() {
    let smoke = is_smoke_test();
    let messages = if smoke { 2_000 } else { 200_000 };
    println!("# delivery: 1 KiB, async flush, one producer; median of {PAIRS} pairs");
    println!("| | of the put rate | least, most | thousands a second |");
    println!("|---|---|---|---|");
    type Run = fn(&Store, u64, usize) -> Duration;
    let cases: [(&str, Run); 3] = [
        ("poll 32, ack them together", |store, count, _| polled(store, count, 32, true)),
        ("poll 32, ack each", |store, count, _| polled(store, count, 32, false)),
        ("listener, 2 workers", |store, count, round| listened(store, count, 2, round)),
    ];
    for (name, run) in cases {
        let mut ratios = Vec::new();
        let mut rates = Vec::new();
        for round in 0..if smoke { 1 } else { PAIRS } {
            let (scratch, store) = open(FlushMode::async_default());
            let alone = put(&store, messages);
            let took = run(&store, messages, round);
            ratios.push(alone.as_secs_f64() / took.as_secs_f64());
            rates.push(messages as f64 / took.as_secs_f64() / 1e3);
            store.close().expect("closes");
            drop(scratch);
        }
        ratios.sort_by(f64::total_cmp);
        rates.sort_by(f64::total_cmp);
        let (least, most) = (ratios[0], ratios[ratios.len() - 1]);
        let (ratio, rate) = (ratios[ratios.len() / 2], rates[rates.len() / 2]);
        println!("| {name} | {ratio:.2} | {least:.2}, {most:.2} | {rate:.0} |");
    }
    println!("\n| | p50 | p99 |\n|---|---|---|");
    wake_up(if smoke { 20 } else { 2_000 });
    offsets(if smoke { 100 } else { 10_000 });
}

fn open(flush_mode: FlushMode) -> (Scratch, Store) {
    let scratch = Scratch::new("delivery");
    let mut config = StoreConfig::new(scratch.path()).flush_mode(flush_mode);
    config.index_enable = false;
    let store = Store::open(config).expect("opens");
    (scratch, store)
}

fn message() -> Message {
    Message::new(TOPIC, body(KIB, 0))
}

/// Puts so many messages; how long that takes.
fn put(store: &Store, count: u64) -> Duration {
    let message = message();
    let started = Instant::now();
    for _ in 0..count {
        store.put(&message).and_then(|put| put.ok()).expect("put");
    }
    started.elapsed()
}

fn consumer(store: &Store) -> ConsumerBuilder {
    let from = duralog::delivery::ConsumeFrom::Last;
    store.consumer("bench").subscribe(TOPIC, TagFilter::any()).from(from)
}

/// Puts on one thread, and consumes on another; until the last one is acknowledged.
fn polled(store: &Store, count: u64, batch: usize, together: bool) -> Duration {
    let consumer = consumer(store).batch_max(batch).open().expect("opens");
    let expected = body(KIB, 0);
    std::thread::scope(|scope| {
        let started = Instant::now();
        scope.spawn(|| put(store, count));
        let mut got = 0;
        while got < count {
            let batch = consumer.poll(LONG).expect("readable");
            assert!(batch[0].body() == expected, "other bytes");
            got += batch.len() as u64;
            if together {
                batch.ack().expect("acknowledged");
            } else {
                for message in &batch {
                    message.ack().expect("acknowledged");
                }
            }
        }
        assert_eq!(got, count, "some came twice");
        started.elapsed()
    })
}

fn listened(store: &Store, count: u64, workers: usize, _round: usize) -> Duration {
    let consumer = consumer(store).open().expect("opens");
    let (done, heard) = mpsc::channel();
    let handled = Arc::new(AtomicU64::new(0));
    let started = Instant::now();
    let listener = consumer
        .listen(workers, move |message| {
            assert_eq!(message.body().len(), KIB);
            if handled.fetch_add(1, Ordering::Relaxed) + 1 == count {
                done.send(Instant::now())?;
            }
            Ok(Handled::Done)
        })
        .expect("starts");
    put(store, count);
    let ended: Instant = heard.recv_timeout(LONG).expect("all are handled");
    listener.close().expect("closes");
    ended - started
}

/// From a message being visible to a waiting consumer having it.
fn wake_up(count: usize) {
    let (_scratch, store) = open(FlushMode::async_default());
    let consumer = consumer(&store).open().expect("opens");
    let (told, heard) = mpsc::channel();
    let waiter = std::thread::spawn(move || {
        for _ in 0..count {
            let batch = consumer.poll(LONG).expect("readable");
            let now = Instant::now();
            batch.ack().expect("acknowledged");
            told.send(now).expect("heard");
        }
    });
    let message = message();
    let mut times: Vec<Duration> = (0..count)
        .map(|_| {
            // Long enough for the consumer to be asleep, and the store to be idle.
            std::thread::sleep(Duration::from_millis(3));
            store.put(&message).and_then(|put| put.ok()).expect("put");
            let visible = Instant::now();
            let got: Instant = heard.recv().expect("it came");
            got.saturating_duration_since(visible)
        })
        .collect();
    waiter.join().expect("it ended");
    row("visible to polled, idle store", &mut times, 1e6, "us");
}

/// Opening a store that knows so many groups.
fn offsets(groups: usize) {
    let (scratch, store) = open(FlushMode::async_default());
    put(&store, 1);
    for group in 0..groups {
        store.commit_offset(&format!("group-{group}"), TOPIC, 0, 1).expect("committed");
    }
    store.close().expect("closes");
    let mut times: Vec<Duration> = (0..5)
        .map(|_| {
            let mut config = StoreConfig::new(scratch.path());
            config.index_enable = false;
            let started = Instant::now();
            let store = Store::open(config).expect("opens");
            let took = started.elapsed();
            assert_eq!(store.committed_offsets().len(), groups);
            store.close().expect("closes");
            took
        })
        .collect();
    row(&format!("opening with {groups} groups"), &mut times, 1e3, "ms");
}

fn row(name: &str, times: &mut [Duration], unit: f64, unit_name: &str) {
    times.sort();
    let at = |share: f64| {
        let index = ((times.len() - 1) as f64 * share) as usize;
        times[index].as_secs_f64() * unit
    };
    println!("| {name} | {:.1} {unit_name} | {:.1} {unit_name} |", at(0.5), at(0.99));
}
