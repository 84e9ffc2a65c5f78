//! What replicas cost: puts with one on loopback beside puts without, and a replica that catches up
//! beside a plain copy of the same bytes over a socket into a synced file.
//!
//! Both of a pair are measured straight after each other, five times. The replica runs in the same process
//! and on the same disk, so it takes its share of both from the primary.

mod common;

use common::{KIB, MIB, Scratch, is_smoke_test, put_all};
use duralog::replication::{
    Ack, NodeId, NodeOptions, Primary, PrimaryOptions, Replica, ReplicaOptions,
};
use duralog::{FlushMode, Store, StoreConfig};
use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

const ROUNDS: usize = 5;
const ROUND_SECS: f64 = 1.0;
const PATIENCE: Duration = Duration::from_secs(60);
/// Puts in flight while a store is filled that is to be caught up with.
const FILL_THREADS: usize = 2;

fn main() {
    let wanted: Vec<String> =
        std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let is_wanted =
        |name: &str| wanted.is_empty() || wanted.iter().any(|part| name.contains(&**part));
    println!("{:<34} {:>12} {:>12} {:>7}", "replication", "with", "without", "ratio");
    for (flush, ack, threads) in [
        (FlushMode::sync(), Ack::Sync, 1),
        (FlushMode::sync(), Ack::Sync, 16),
        (FlushMode::sync(), Ack::Sync, 64),
        (FlushMode::sync(), Ack::Async, 64),
        (FlushMode::async_default(), Ack::Async, 1),
        (FlushMode::async_default(), Ack::Async, 4),
        (FlushMode::async_default(), Ack::Sync, 64),
    ] {
        let is_sync = matches!(flush, FlushMode::Sync { .. });
        let flushed = if is_sync { "sync-flush" } else { "async-flush" };
        let acked = if ack == Ack::Sync { "sync-ack" } else { "async-ack" };
        let name = format!("{flushed}/{acked}/{threads}-threads");
        if is_wanted(&name) {
            print_row(&name, "k/s", rounds(|| puts(flush, ack, threads)));
        }
    }
    if is_wanted("catch-up") {
        print_row("catch-up", "MB/s", rounds(catch_up));
    }
}

/// So many pairs, by how much the first is of the second.
fn rounds(mut measure: impl FnMut() -> (f64, f64)) -> Vec<(f64, f64)> {
    let rounds = if is_smoke_test() { 1 } else { ROUNDS };
    let mut pairs: Vec<_> = (0..rounds).map(|_| measure()).collect();
    pairs.sort_by(|a, b| (a.0 / a.1).total_cmp(&(b.0 / b.1)));
    pairs
}

fn print_row(name: &str, unit: &str, pairs: Vec<(f64, f64)>) {
    let ratio = |pair: &(f64, f64)| pair.0 / pair.1;
    let (with, without) = pairs[pairs.len() / 2];
    let (least, most) = (ratio(&pairs[0]), ratio(&pairs[pairs.len() - 1]));
    println!(
        "{name:<34} {with:>7.1} {unit:<4} {without:>7.1} {unit:<4} {:>7.2}  ({least:.2} to {most:.2})",
        with / without
    );
}

/// Thousands of puts a second with a replica, and without.
fn puts(flush: FlushMode, ack: Ack, threads: usize) -> (f64, f64) {
    let scratch = Scratch::new("replication");
    let config = |name: &str| StoreConfig::new(scratch.path().join(name)).flush_mode(flush);
    let alone = Store::open(config("alone")).expect("opens");
    let without = rate(&alone, threads);
    alone.close().expect("closes");
    // A replica that acknowledges what is durable had better make it so.
    let there = config("replica").flush_mode(FlushMode::sync());
    let (primary, replica) = pair(&config("primary"), &there, ack);
    let with = rate(primary.store(), threads);
    let end = primary.store().stats().watermarks.appended;
    primary.close().expect("closes");
    wait_until(|| replica.state().durable == end);
    replica.close().expect("closes");
    (with, without)
}

fn rate(store: &Store, threads: usize) -> f64 {
    let warm_up = if is_smoke_test() { 200 } else { 5_000 };
    let took = put_all(store, threads, KIB, warm_up);
    if is_smoke_test() {
        return warm_up as f64 / took.as_secs_f64() / 1e3;
    }
    let count = (warm_up as f64 / took.as_secs_f64() * ROUND_SECS) as u64;
    count as f64 / put_all(store, threads, KIB, count).as_secs_f64() / 1e3
}

fn pair(here: &StoreConfig, there: &StoreConfig, ack: Ack) -> (Primary, Replica) {
    let options = PrimaryOptions::new(NodeOptions::new(NodeId(1))).ack(ack);
    let primary = Primary::open(here.clone(), options).expect("opens");
    let address = primary.listen("127.0.0.1:0").expect("a port is free").to_string();
    let options = ReplicaOptions::new(NodeOptions::new(NodeId(2)), address);
    let replica = Replica::open(there.clone(), options).expect("opens");
    primary.wait_for_replicas(1, PATIENCE).expect("it connects");
    (primary, replica)
}

fn wait_until(done: impl Fn() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < PATIENCE, "the replica does not get there");
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// Megabytes a second of a replica that catches up, and of a plain copy.
fn catch_up() -> (f64, f64) {
    let bytes = if is_smoke_test() { MIB } else { 512 * MIB };
    let scratch = Scratch::new("catch-up");
    let config = |name: &str| StoreConfig::new(scratch.path().join(name));
    let here = config("primary").flush_mode(FlushMode::async_default());
    let options = PrimaryOptions::new(NodeOptions::new(NodeId(1))).ack(Ack::Async);
    let primary = Primary::open(here, options).expect("opens");
    put_all(primary.store(), FILL_THREADS, KIB, bytes / KIB as u64);
    primary.store().flush().expect("flushes");
    let end = primary.store().stats().watermarks.appended;
    let log = scratch.path().join("primary/commitlog/00000000000000000000");
    let copied = copy(&log, &scratch.path().join("copy"), end);
    let address = primary.listen("127.0.0.1:0").expect("a port is free").to_string();
    let options = ReplicaOptions::new(NodeOptions::new(NodeId(2)), address);
    let started = Instant::now();
    let replica = Replica::open(config("replica"), options).expect("opens");
    wait_until(|| replica.state().durable == end);
    let caught_up = started.elapsed();
    replica.close().expect("closes");
    primary.close().expect("closes");
    let rate = |took: Duration| end as f64 / took.as_secs_f64() / 1e6;
    (rate(caught_up), rate(copied))
}

/// Sends the first `len` bytes of a file over a socket into another file, and syncs that.
fn copy(from: &Path, to: &Path, len: u64) -> Duration {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = listener.local_addr().expect("it is bound");
    let mut source = File::open(from).expect("readable").take(len);
    let mut target = File::create(to).expect("writable");
    let started = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let (mut socket, _) = listener.accept().expect("someone connects");
            let mut bytes = vec![0; MIB as usize];
            loop {
                let got = source.read(&mut bytes).expect("readable");
                if got == 0 {
                    break;
                }
                socket.write_all(&bytes[..got]).expect("the peer reads");
            }
        });
        let mut socket = TcpStream::connect(address).expect("connects");
        let mut bytes = vec![0; MIB as usize];
        loop {
            let got = socket.read(&mut bytes).expect("the peer writes");
            if got == 0 {
                break;
            }
            target.write_all(&bytes[..got]).expect("writable");
        }
    });
    target.sync_data().expect("synced");
    started.elapsed()
}
