//! What replicas cost: puts with one on loopback beside puts without, and a replica that catches up
//! beside a plain copy of the same bytes over a socket into a synced file.
//!
//! The replica is a process of its own, and the processors are shared out as if each had a machine, which
//! the primary without a replica gets no more of. The disk, the memory and the kernel's side of the
//! network are one. Both of a pair are measured straight after each other, since the machine's mood
//! changes; a ratio is the median of many pairs, and half of them lie in the range beside it.
//!
//! Puts that wait for no disk and for no replica take less of a processor than the kernel takes to send
//! them. What it takes at least is measured, too: the limit is the ratio of puts beside a thread that sends
//! as many bytes over a socket to a process that throws them away. Sockets have the congestion control that is
//! the kernel's own default, if the system allows it: another one may spread what is sent by timers, which
//! tells more of that than of us.

mod common;

use common::{KIB, MIB, Scratch, is_smoke_test, put_all};
use duralog::config::Retention;
use duralog::replication::{
    Ack, NodeId, NodeOptions, Primary, PrimaryOptions, Replica, ReplicaOptions, ReplicaStatus,
    TcpAcceptor,
};
use duralog::{FlushMode, Store, StoreConfig};
use socket2::SockRef;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// How often a replica catches up.
const ROUNDS: usize = 5;
/// Pairs of bursts, and how long each takes, about.
const BURSTS: usize = 41;
const BURST_SECS: f64 = 0.3;
/// What a store keeps, in segments of an eighth of it: memory that is used again and again, as in a store
/// that has run for long. New memory can cost a virtual machine more than everything else.
const KEPT: u64 = 2048 * MIB;
/// How often the bare sender looks for something to send, as the sender of a primary does.
const REST: Duration = Duration::from_micros(250);
const CONGESTION_CONTROL: &[u8] = b"cubic";
/// Puts of the first burst of each, which does not count.
const WARM_UP: u64 = 500;
const PATIENCE: Duration = Duration::from_secs(60);
/// Puts in flight while a store is filled that is to be caught up with.
const FILL_THREADS: usize = 2;

/// What this program is told when it is to be one part of a pair.
const PRIMARY: &str = "--primary";
const REPLICA: &str = "--replica";
const SYNC_REPLICA: &str = "--sync-replica";
const SINK: &str = "--sink";

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [REPLICA, address, dir] => follow(address, Path::new(dir), FlushMode::async_default()),
        [SYNC_REPLICA, address, dir] => follow(address, Path::new(dir), FlushMode::sync()),
        [SINK, address] => throw_away(address),
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

/// A store that forgets.
fn config(dir: &Path, flush: FlushMode) -> StoreConfig {
    let retention = Retention::max_total_bytes(KEPT).pin_by_replicas(true);
    let retention = retention.check_interval(Duration::from_millis(20));
    StoreConfig::new(dir).segment_size(KEPT / 8).retention(retention).flush_mode(flush)
}

/// The replica's process: it follows until nobody wants it any more.
fn follow(address: &str, dir: &Path, flush: FlushMode) {
    let config = config(dir, flush);
    let options = ReplicaOptions::new(NodeOptions::new(NodeId(2)), address);
    let replica = Replica::open(config, options).expect("opens");
    io::stdin().read_to_end(&mut Vec::new()).expect("readable");
    replica.close().expect("closes");
}

/// A process that wants nothing of what it is sent.
fn throw_away(address: &str) {
    let mut socket = TcpStream::connect(address).expect("it listens");
    let mut bytes = vec![0; MIB as usize];
    while socket.read(&mut bytes).expect("readable") > 0 {}
}

/// A listener on loopback. What it is set to, connections inherit.
fn listener() -> TcpListener {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    // The system's choice stays where it allows no other; which one it is stands above the figures.
    let _ = SockRef::from(&listener).set_tcp_congestion(CONGESTION_CONTROL);
    listener
}

/// A process at the other end.
struct Other(Child);

impl Other {
    fn replica(role: &str, cpus: &str, primary: &Primary, dir: &Path) -> Self {
        let acceptor = TcpAcceptor::over(listener()).expect("it is bound");
        let address = acceptor.address().to_string();
        primary.serve(acceptor).expect("it has a thread");
        let mut command = this_program(cpus);
        command.args([role, &address]).arg(dir).stdin(Stdio::piped());
        Self(command.spawn().expect("it starts"))
    }

    fn sink(cpus: &str) -> (Self, TcpStream) {
        let listener = listener();
        let address = listener.local_addr().expect("it is bound").to_string();
        let child = this_program(cpus).args([SINK, &address]).spawn().expect("it starts");
        (Self(child), listener.accept().expect("it connects").0)
    }

    fn stop(mut self) {
        drop(self.0.stdin.take());
        let ended = self.0.wait().expect("it ends");
        assert!(ended.success(), "{ended}");
    }
}

/// Waits until the replica has said that it holds everything.
fn wait_for_all(primary: &Primary, held: fn(&ReplicaStatus) -> u64) {
    let (started, end) = (Instant::now(), primary.store().stats().watermarks.appended);
    while !primary.replicas().iter().any(|replica| held(replica) == end) {
        assert!(started.elapsed() < PATIENCE, "the replica does not get there");
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// Sends as many bytes as are put until the other end is gone.
fn pour(mut socket: &TcpStream, store: &Store, until: Receiver<()>) {
    let bytes = vec![7; MIB as usize];
    let mut sent = store.stats().watermarks.appended;
    while until.recv_timeout(REST) == Err(RecvTimeoutError::Timeout) {
        let mut left = (store.stats().watermarks.appended - sent) as usize;
        sent += left as u64;
        while left > 0 {
            let piece = &bytes[..left.min(bytes.len())];
            socket.write_all(piece).expect("the peer reads");
            left -= piece.len();
        }
    }
}

fn measure(cpus: &str, args: &[String]) {
    let wanted: Vec<&String> = args.iter().filter(|arg| !arg.starts_with('-')).collect();
    let is_wanted =
        |name: &str| wanted.is_empty() || wanted.iter().any(|part| name.contains(&**part));
    let control = SockRef::from(&listener()).tcp_congestion().expect("every socket has one");
    println!("congestion control: {}", String::from_utf8_lossy(&control).trim_end_matches('\0'));
    println!(
        "{:<34} {:>12} {:>12} {:>7} {:>16} {:>6}",
        "replication", "with", "without", "ratio", "", "limit"
    );
    for (flush, ack, threads) in [
        (FlushMode::sync(), Ack::Sync, 1),
        (FlushMode::sync(), Ack::Sync, 16),
        (FlushMode::sync(), Ack::Sync, 64),
        (FlushMode::sync(), Ack::Async, 1),
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

/// Rates of one round.
struct Round {
    with: f64,
    without: f64,
    /// Beside a bare sender, where that is the limit.
    limit: Option<f64>,
}

impl Round {
    fn ratio(&self) -> f64 {
        self.with / self.without
    }
}

fn print_row(name: &str, unit: &str, mut rounds: Vec<Round>) {
    let mut limits: Vec<f64> =
        rounds.iter().filter_map(|round| Some(round.limit? / round.without)).collect();
    limits.sort_by(f64::total_cmp);
    let limit = limits.get(limits.len() / 2).map(|limit| format!("{limit:.2}"));
    rounds.sort_by(|a, b| a.ratio().total_cmp(&b.ratio()));
    let (middle, quarter) = (&rounds[rounds.len() / 2], rounds.len() / 4);
    let (least, most) = (rounds[quarter].ratio(), rounds[rounds.len() - 1 - quarter].ratio());
    println!(
        "{name:<34} {:>7.1} {unit:<4} {:>7.1} {unit:<4} {:>7.2}  ({least:.2} to {most:.2}) {:>6}",
        middle.with,
        middle.without,
        middle.ratio(),
        limit.unwrap_or_default()
    );
}

/// Thousands of puts a second with a replica, and without: bursts into two open stores in turn, so that
/// both meet the same weather.
fn puts(cpus: &str, flush: FlushMode, ack: Ack, threads: usize) -> Vec<Round> {
    let is_waited_for = ack == Ack::Sync || matches!(flush, FlushMode::Sync { .. });
    let scratch = Scratch::new("replication");
    let alone = Store::open(config(&scratch.path().join("alone"), flush)).expect("opens");
    let options = PrimaryOptions::new(NodeOptions::new(NodeId(1))).ack(ack);
    let primary = config(&scratch.path().join("primary"), flush);
    let primary = Primary::open(primary, options).expect("opens");
    // What a replica acknowledges is durable: if someone waits, it had better make it so at once.
    let role = if is_waited_for { SYNC_REPLICA } else { REPLICA };
    let replica = Other::replica(role, cpus, &primary, &scratch.path().join("replica"));
    primary.wait_for_replicas(1, PATIENCE).expect("it connects");
    let (sink, socket) = Other::sink(cpus);
    let rate = |store: &Store, count: u64| {
        count as f64 / put_all(store, threads, KIB, count).as_secs_f64() / 1e3
    };
    let burst = |store: &Store, count: u64| {
        let rate = rate(store, count);
        wait_for_all(&primary, |replica| replica.written);
        rate
    };
    let poured = |count: u64| {
        std::thread::scope(|scope| {
            let (_until_here, gone) = channel();
            scope.spawn(|| pour(&socket, &alone, gone));
            rate(&alone, count)
        })
    };
    let mut rounds = Vec::new();
    let (mut with, mut without) = (WARM_UP, WARM_UP);
    let count = if is_smoke_test() { 1 } else { BURSTS };
    for round in 0..=count {
        let mut both = Round { with: 0.0, without: 0.0, limit: None };
        // Each is the first in turn.
        for turn in round..round + 3 {
            match turn % 3 {
                0 => both.with = burst(primary.store(), with),
                1 => both.without = burst(&alone, without),
                _ => both.limit = (!is_waited_for).then(|| poured(without)),
            }
        }
        let next = |rate: f64| (rate * 1e3 * BURST_SECS) as u64;
        (with, without) = (next(both.with), next(both.without));
        if round > 0 {
            rounds.push(both);
        }
    }
    replica.stop();
    drop(socket);
    sink.stop();
    primary.close().expect("closes");
    alone.close().expect("closes");
    rounds
}

/// Megabytes a second of a replica that catches up, and of a plain copy.
fn catch_up(cpus: &str) -> Round {
    let bytes = if is_smoke_test() { MIB } else { KEPT / 4 };
    let scratch = Scratch::new("catch-up");
    let primary = config(&scratch.path().join("primary"), FlushMode::async_default());
    let options = PrimaryOptions::new(NodeOptions::new(NodeId(1))).ack(Ack::Async);
    let primary = Primary::open(primary, options).expect("opens");
    put_all(primary.store(), FILL_THREADS, KIB, bytes / KIB as u64);
    primary.store().flush().expect("flushes");
    let end = primary.store().stats().watermarks.appended;
    let copied = copy(&scratch.path().join("primary/commitlog"), &scratch.path().join("copy"), end);
    let started = Instant::now();
    let replica = Other::replica(SYNC_REPLICA, cpus, &primary, &scratch.path().join("replica"));
    wait_for_all(&primary, |replica| replica.durable);
    let caught_up = started.elapsed();
    replica.stop();
    primary.close().expect("closes");
    let rate = |took: Duration| end as f64 / took.as_secs_f64() / 1e6;
    Round { with: rate(caught_up), without: rate(copied), limit: None }
}

/// Sends the first `len` bytes of a log over a socket into a file, and syncs that.
fn copy(from: &Path, to: &Path, len: u64) -> Duration {
    let listener = listener();
    let address = listener.local_addr().expect("it is bound");
    let names =
        std::fs::read_dir(from).expect("readable").map(|entry| entry.expect("readable").path());
    let mut segments: Vec<_> = names.collect();
    segments.sort();
    let segments = segments.into_iter().map(|segment| File::open(segment).expect("readable"));
    let nothing: Box<dyn Read + Send> = Box::new(io::empty());
    let mut source = segments.fold(nothing, |log, segment| Box::new(log.chain(segment))).take(len);
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
