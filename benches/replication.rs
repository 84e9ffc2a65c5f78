//! What replicas cost: puts with one on loopback beside puts without, and a replica that catches up
//! beside a plain copy of the same bytes over a socket into a synced file.
//!
//! The replica is a process of its own, and the processors are shared out as if each had a machine, which
//! the primary without a replica gets no more of. The disk, the memory and the kernel's side of the
//! network are one. Both of a pair are measured straight after each other, since the machine's mood
//! changes; a ratio is the median of many pairs, and half of them lie in the range beside it.

mod common;

use common::{KIB, MIB, Scratch, is_smoke_test, put_all};
use duralog::replication::{
    Ack, NodeId, NodeOptions, Primary, PrimaryOptions, Replica, ReplicaOptions,
};
use duralog::{FlushMode, Store, StoreConfig};
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How often a replica catches up.
const ROUNDS: usize = 5;
/// Pairs of bursts, and how long each takes, about.
const BURSTS: usize = 41;
const BURST_SECS: f64 = 0.3;
/// Puts of the first burst of each, which does not count.
const WARM_UP: u64 = 500;
const PATIENCE: Duration = Duration::from_secs(60);
/// Puts in flight while a store is filled that is to be caught up with.
const FILL_THREADS: usize = 2;

/// What this program is told when it is to be one of the two.
const PRIMARY: &str = "--primary";
const REPLICA: &str = "--replica";

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [REPLICA, address, dir] => follow(address, Path::new(dir)),
        [PRIMARY, cpus, ..] => measure(cpus, &args[2..]),
        _ => {
            let (here, there) = halves();
            let mut primary = this_program(&here);
            let ended = primary.args([PRIMARY, &there]).args(&args).status().expect("it starts");
            assert!(ended.success(), "{ended}");
        }
    }
}

/// The processors of the primary and of the replica; empty if they cannot be shared out.
fn halves() -> (String, String) {
    let count = std::thread::available_parallelism().map_or(1, usize::from);
    let (here, there) =
        (format!("0-{}", (count / 2).max(1) - 1), format!("{}-{}", count / 2, count - 1));
    let works = |cpus: &str| {
        let tried = Command::new("taskset").args(["-c", cpus, "true"]).status();
        tried.is_ok_and(|status| status.success())
    };
    if count > 1 && works(&here) && works(&there) {
        return (here, there);
    }
    println!("primary and replica share the processors: there is one, or taskset does not work");
    Default::default()
}

/// This program again, on some processors.
fn this_program(cpus: &str) -> Command {
    let program = std::env::current_exe().expect("it has a name");
    if cpus.is_empty() {
        return Command::new(program);
    }
    let mut taskset = Command::new("taskset");
    taskset.args(["-c", cpus]).arg(program);
    taskset
}

/// The replica's process: it follows until nobody wants it any more.
fn follow(address: &str, dir: &Path) {
    // What it acknowledges is durable: it had better make it so at once.
    let config = StoreConfig::new(dir).flush_mode(FlushMode::sync());
    let options = ReplicaOptions::new(NodeOptions::new(NodeId(2)), address);
    let replica = Replica::open(config, options).expect("opens");
    io::stdin().read_to_end(&mut Vec::new()).expect("readable");
    replica.close().expect("closes");
}

/// A replica in a process of its own.
struct Follower(Child);

impl Follower {
    fn start(cpus: &str, primary: &Primary, dir: &Path) -> Self {
        let address = primary.listen("127.0.0.1:0").expect("a port is free").to_string();
        let mut command = this_program(cpus);
        command.args([REPLICA, &address]).arg(dir).stdin(Stdio::piped());
        Self(command.spawn().expect("it starts"))
    }

    fn stop(mut self) {
        drop(self.0.stdin.take());
        let ended = self.0.wait().expect("it ends");
        assert!(ended.success(), "{ended}");
    }
}

/// Waits until the replica has said that it holds everything.
fn wait_for_all(primary: &Primary) {
    let (started, end) = (Instant::now(), primary.store().stats().watermarks.appended);
    while !primary.replicas().iter().any(|replica| replica.durable == end) {
        assert!(started.elapsed() < PATIENCE, "the replica does not get there");
        std::thread::sleep(Duration::from_micros(200));
    }
}

fn measure(cpus: &str, args: &[String]) {
    let wanted: Vec<&String> = args.iter().filter(|arg| !arg.starts_with('-')).collect();
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
            print_row(&name, "k/s", puts(cpus, flush, ack, threads));
        }
    }
    if is_wanted("catch-up") {
        let rounds = if is_smoke_test() { 1 } else { ROUNDS };
        print_row("catch-up", "MB/s", (0..rounds).map(|_| catch_up(cpus)).collect());
    }
}

fn print_row(name: &str, unit: &str, mut pairs: Vec<(f64, f64)>) {
    let ratio = |pair: &(f64, f64)| pair.0 / pair.1;
    pairs.sort_by(|a, b| ratio(a).total_cmp(&ratio(b)));
    let (with, without) = pairs[pairs.len() / 2];
    let quarter = pairs.len() / 4;
    let (least, most) = (ratio(&pairs[quarter]), ratio(&pairs[pairs.len() - 1 - quarter]));
    println!(
        "{name:<34} {with:>7.1} {unit:<4} {without:>7.1} {unit:<4} {:>7.2}  ({least:.2} to {most:.2})",
        with / without
    );
}

/// Thousands of puts a second with a replica, and without: bursts into two open stores in turn, so that
/// both meet the same weather.
fn puts(cpus: &str, flush: FlushMode, ack: Ack, threads: usize) -> Vec<(f64, f64)> {
    let scratch = Scratch::new("replication");
    let config = |name: &str| StoreConfig::new(scratch.path().join(name)).flush_mode(flush);
    let alone = Store::open(config("alone")).expect("opens");
    let options = PrimaryOptions::new(NodeOptions::new(NodeId(1))).ack(ack);
    let primary = Primary::open(config("primary"), options).expect("opens");
    let replica = Follower::start(cpus, &primary, &scratch.path().join("replica"));
    primary.wait_for_replicas(1, PATIENCE).expect("it connects");
    let burst = |store: &Store, count: u64| {
        let rate = count as f64 / put_all(store, threads, KIB, count).as_secs_f64() / 1e3;
        wait_for_all(&primary);
        rate
    };
    let mut pairs = Vec::new();
    let (mut with, mut without) = (WARM_UP, WARM_UP);
    let rounds = if is_smoke_test() { 1 } else { BURSTS };
    for round in 0..=rounds {
        let pair = if round % 2 == 0 {
            let with = burst(primary.store(), with);
            (with, burst(&alone, without))
        } else {
            let without = burst(&alone, without);
            (burst(primary.store(), with), without)
        };
        if round > 0 {
            pairs.push(pair);
        }
        (with, without) = ((pair.0 * 1e3 * BURST_SECS) as u64, (pair.1 * 1e3 * BURST_SECS) as u64);
    }
    replica.stop();
    primary.close().expect("closes");
    alone.close().expect("closes");
    pairs
}

/// Megabytes a second of a replica that catches up, and of a plain copy.
fn catch_up(cpus: &str) -> (f64, f64) {
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
    let started = Instant::now();
    let replica = Follower::start(cpus, &primary, &scratch.path().join("replica"));
    wait_for_all(&primary);
    let caught_up = started.elapsed();
    replica.stop();
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
