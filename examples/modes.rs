//! What each guarantee costs: sync and async flush, with and without a replica, one producer and
//! sixteen.
//!
//! The replica is a node of its own, in this process and on the same disk: what the way to another machine
//! takes comes on top.

use duralog::message::Message;
use duralog::replication::{
    Ack, NodeId, NodeOptions, Primary, PrimaryOptions, Replica, ReplicaOptions,
};
use duralog::{FlushMode, PutStatus, Result, Store, StoreConfig};
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

const BODY: usize = 1024;
const TIME_PER_LINE: Duration = Duration::from_millis(700);
/// How long the replica may take to connect.
const PATIENCE: Duration = Duration::from_secs(60);
const STATUSES: [PutStatus; 4] = [
    PutStatus::PutOk,
    PutStatus::FlushDiskTimeout,
    PutStatus::FlushReplicaTimeout,
    PutStatus::ReplicaNotAvailable,
];
const LEGEND: &str = "
flush        sync: a put returns when its message would survive a power cut.
             async: when it would survive the end of this process; a sync starts within 500 ms.
replication  none: there is no replica.
             async: the replica is sent everything, but no put waits for it.
             sync: a put returns when its message is durable on the replica, too, which syncs what it gets
             as soon as it can, whatever the flush mode here.
latency      of a put as its producer sees it. Sixteen producers share syncs and round trips.";

fn main() -> ExitCode {
    let args: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let dir = match args.as_slice() {
        [] => std::env::temp_dir(),
        [dir] if !dir.as_os_str().as_encoded_bytes().starts_with(b"-") => dir.clone(),
        _ => {
            eprintln!("usage: modes [DIR]");
            return ExitCode::from(2);
        }
    };
    // Below what the caller named, so that nothing but the measured stores is ever removed.
    let dir = dir.join(format!("duralog-modes-{}", std::process::id()));
    let outcome = print_table(&dir);
    // What is left, when something failed, is of no use to anyone.
    let _ = std::fs::remove_dir_all(&dir);
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("modes: {error}");
            ExitCode::FAILURE
        }
    }
}

fn print_table(dir: &Path) -> Result<(), Box<dyn Error>> {
    println!(
        "Bodies of {BODY} bytes, {} ms per line, in {}\n",
        TIME_PER_LINE.as_millis(),
        dir.display()
    );
    print!("{:<6} {:<11} {:>9} {:>9}", "flush", "replication", "producers", "messages");
    STATUSES.iter().for_each(|status| print!(" {:>19}", status.to_string()));
    println!(" {:>8} {:>9} {:>9}", "TPS", "mean", "p99");
    for flush in [FlushMode::sync(), FlushMode::async_default()] {
        for replication in [Replication::None, Replication::Async, Replication::Sync] {
            for producers in [1, 16] {
                let measured = measure(dir, flush, replication, producers)?;
                print_line(flush, replication, producers, &measured);
            }
        }
    }
    println!("{LEGEND}");
    Ok(())
}

fn print_line(flush: FlushMode, replication: Replication, producers: usize, measured: &Measured) {
    let flush = if matches!(flush, FlushMode::Sync { .. }) { "sync" } else { "async" };
    let replication = match replication {
        Replication::None => "none",
        Replication::Async => "async",
        Replication::Sync => "sync",
    };
    let messages: u64 = measured.statuses.iter().sum();
    print!("{flush:<6} {replication:<11} {producers:>9} {messages:>9}");
    measured.statuses.iter().for_each(|count| print!(" {count:>19}"));
    let tps = messages as f64 / measured.elapsed.as_secs_f64();
    println!(" {tps:>8.0} {:>9} {:>9}", micros(measured.mean()), micros(measured.quantile(0.99)));
}

fn micros(duration: Duration) -> String {
    format!("{:.1} us", duration.as_secs_f64() * 1e6)
}

#[derive(Clone, Copy)]
enum Replication {
    None,
    Async,
    Sync,
}

struct Measured {
    elapsed: Duration,
    statuses: [u64; 4],
    /// Sorted.
    latencies: Vec<Duration>,
}

impl Measured {
    fn mean(&self) -> Duration {
        let total: Duration = self.latencies.iter().sum();
        total / u32::try_from(self.latencies.len().max(1)).unwrap_or(u32::MAX)
    }

    fn quantile(&self, share: f64) -> Duration {
        let rank = (self.latencies.len() as f64 * share).ceil() as usize;
        self.latencies.get(rank.max(1) - 1).copied().unwrap_or_default()
    }
}

/// Puts for a while to a store of its own.
fn measure(
    dir: &Path,
    flush: FlushMode,
    replication: Replication,
    producers: usize,
) -> Result<Measured, Box<dyn Error>> {
    let node = Node::open(dir, flush, replication)?;
    let started = Instant::now();
    let until = started + TIME_PER_LINE;
    let outcomes: Vec<Vec<(PutStatus, Duration)>> = std::thread::scope(|scope| {
        let store = node.store();
        let threads: Vec<_> = (0..producers)
            .map(|queue_id| scope.spawn(move || produce(store, queue_id, until)))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("a producer panicked"))
            .collect::<Result<_>>()
    })?;
    let elapsed = started.elapsed();
    node.close()?;
    std::fs::remove_dir_all(dir)?;

    let outcomes = outcomes.concat();
    let statuses =
        STATUSES.map(|status| outcomes.iter().filter(|put| put.0 == status).count() as u64);
    let mut latencies: Vec<_> = outcomes.into_iter().map(|put| put.1).collect();
    latencies.sort_unstable();
    Ok(Measured { elapsed, statuses, latencies })
}

/// Puts one message after the other to a queue of its own; how each put ended, and how long it took.
fn produce(store: &Store, queue_id: usize, until: Instant) -> Result<Vec<(PutStatus, Duration)>> {
    let message = Message::new("modes", [7; BODY]).queue(queue_id as i32);
    let mut puts = Vec::new();
    let mut begun = Instant::now();
    while begun < until {
        let status = store.put(&message)?.status;
        let ended = Instant::now();
        puts.push((status, ended - begun));
        begun = ended;
    }
    Ok(puts)
}

/// Where puts go to.
enum Node {
    Alone(Store),
    Replicated { primary: Primary, replica: Box<Replica> },
}

impl Node {
    fn open(dir: &Path, flush: FlushMode, replication: Replication) -> Result<Self> {
        let config = |name| StoreConfig::new(dir.join(name)).segment_size(256 << 20);
        let here = config("here").flush_mode(flush);
        let ack = match replication {
            Replication::None => return Ok(Self::Alone(Store::open(here)?)),
            Replication::Async => Ack::Async,
            Replication::Sync => Ack::Sync,
        };
        let options = PrimaryOptions::new(NodeOptions::new(NodeId(1))).ack(ack);
        let primary = Primary::open(here, options)?;
        let address = primary.listen("127.0.0.1:0")?.to_string();
        let options = ReplicaOptions::new(NodeOptions::new(NodeId(2)), address);
        let replica = Box::new(Replica::open(config("there"), options)?);
        primary.wait_for_replicas(1, PATIENCE)?;
        Ok(Self::Replicated { primary, replica })
    }

    fn store(&self) -> &Store {
        match self {
            Self::Alone(store) => store,
            Self::Replicated { primary, .. } => primary.store(),
        }
    }

    fn close(self) -> Result<()> {
        match self {
            Self::Alone(store) => store.close(),
            // The primary first: it waits a little for a replica that has yet to get everything.
            Self::Replicated { primary, replica } => primary.close().and(replica.close()),
        }
    }
}
