//! One node of a replicated store, which does what it is told: `crash_failover` is the one who tells it, and
//! who kills it.
//!
//! It reads commands from standard input, one a line, and answers each by a line on standard output that
//! begins with `OK` or `ERR`:
//!
//! ```text
//! follow ADDRESS FLUSH            is a replica of whoever listens there
//! fence TERM                      OK <epoch of the log> <its end>
//! promote TERM LEVEL WHEN         becomes the primary: OK <address>
//! put SIZE                        begins to put messages, until it is told to stop
//! pause                           stops that: OK <end of the log>
//! state                           OK <1: in good order> <durable> <confirmed>
//! close
//! ```
//!
//! `FLUSH` is `sync` or `async`, `LEVEL` `durable` or `memory`, `WHEN` `strict` or `always`. In between it
//! says of every message that was `PutOk` where it lies, as `crash_writer` does; the term counts as the run.
//! `UNSURE` is said of one that is stored but was not confirmed, `REFUSED` of one that was not stored and is put
//! again, `CUT` and `RESTARTED` when the log of a replica is.

mod crash;

use crash::{Ack, Identity};
use duralog::replication::{
    AckLevel, Epoch, Event, NodeId, NodeOptions, Primary, PrimaryOptions, Replica, ReplicaOptions,
    Secret,
};
use duralog::{FlushMode, PutStatus, Store, StoreConfig};
use std::collections::VecDeque;
use std::fmt::Display;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

const USAGE: &str = "\
usage: crash_node DIR ID [OPTION]...

  --listen IP           where a primary is reached (127.0.0.1)
  --threads N           producers (4)
  --segment-size BYTES  size of a log file (262144)
  --seed S              decides what is in the bodies (1)";
const TOPICS: u64 = 2;
const QUEUES: u64 = 4;
/// Short, so that a cut connection is noticed while the cut lasts.
const HEARTBEAT: Duration = Duration::from_millis(100);
const HOUSEKEEPING: Duration = Duration::from_millis(800);
const RETRY: Duration = Duration::from_millis(10);
const RETRY_MAX: Duration = Duration::from_millis(100);
const REPLICA_TIMEOUT: Duration = Duration::from_millis(500);
/// A producer whose put did not succeed lets so much time pass: nobody else holds it up.
const PACE: Duration = Duration::from_millis(10);
/// How often a node with async flush syncs: puts wait for that where a replica is to have synced.
const INTERVAL: Duration = Duration::from_millis(5);

type Failure = Box<dyn std::error::Error + Send + Sync>;

struct Options {
    dir: PathBuf,
    id: u64,
    listen: String,
    threads: u64,
    segment_size: u64,
    seed: u64,
}

fn main() -> ExitCode {
    let Some(options) = parse() else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    match run(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("crash_node: {error}");
            ExitCode::FAILURE
        }
    }
}

fn parse() -> Option<Options> {
    let mut args = std::env::args_os().skip(1);
    let dir = args.next().filter(|dir| !dir.as_encoded_bytes().starts_with(b"-"))?.into();
    let id = args.next()?.to_str()?.parse().ok()?;
    let listen = "127.0.0.1".to_owned();
    let mut options = Options { dir, id, listen, threads: 4, segment_size: 256 << 10, seed: 1 };
    while let Some(name) = args.next() {
        let value = args.next()?.into_string().ok()?;
        let number = || value.parse::<u64>().ok();
        match name.to_str()? {
            "--listen" => options.listen = value,
            "--threads" => options.threads = number().filter(|threads| *threads > 0)?,
            "--segment-size" => options.segment_size = number()?,
            "--seed" => options.seed = number()?,
            _ => return None,
        }
    }
    Some(options)
}

fn run(options: Options) -> Result<(), Failure> {
    // A `File` has no buffer: a line is a `write`, and whole, or never was.
    let out = Arc::new(Out(Mutex::new(io::stdout().as_fd().try_clone_to_owned()?.into())));
    let mut node = Node { options, out: out.clone(), role: Role::None, producers: Vec::new() };
    for command in io::stdin().lines() {
        let command = command?;
        let words: Vec<&str> = command.split(' ').collect();
        match node.obey(&words) {
            Ok(answer) => out.say(format_args!("OK {answer}"))?,
            Err(error) => out.say(format_args!("ERR {command}: {error}"))?,
        }
    }
    Ok(())
}

/// Standard output, a line at a time.
struct Out(Mutex<File>);

impl Out {
    fn say(&self, line: impl Display) -> io::Result<()> {
        let line = format!("{line}\n");
        self.0
            .lock()
            .map_err(|_| io::Error::other("another thread panicked"))?
            .write_all(line.as_bytes())
    }
}

enum Role {
    None,
    Primary(Primary),
    Replica(Box<Replica>),
}

struct Node {
    options: Options,
    out: Arc<Out>,
    role: Role,
    producers: Vec<Producer>,
}

/// A thread that puts messages, until it is told to stop.
struct Producer {
    stopped: Arc<AtomicBool>,
    thread: JoinHandle<Result<(), Failure>>,
}

impl Node {
    fn obey(&mut self, command: &[&str]) -> Result<String, Failure> {
        match *command {
            ["follow", address, flush] => self.follow(address, flush),
            ["fence", term] => {
                let Role::Replica(replica) = &self.role else { return Err("not a replica".into()) };
                let standing = replica.fence(Epoch::term(term.parse()?))?;
                Ok(format!("{} {}", standing.epoch.0, standing.end))
            }
            ["promote", term, level, when] => {
                self.promote(Epoch::term(term.parse()?), level, when == "strict")
            }
            ["put", size] => self.put(size.parse()?),
            ["pause"] => self.pause(),
            ["state"] => self.state(),
            ["close"] => {
                self.close()?;
                Ok(String::new())
            }
            _ => Err("not a command".into()),
        }
    }

    fn config(&self, flush: &str) -> StoreConfig {
        let flush = match flush {
            "sync" => FlushMode::sync(),
            _ => {
                FlushMode::Async { interval: INTERVAL, least_pages: 0, thorough_interval: INTERVAL }
            }
        };
        let options = &self.options;
        let mut config = StoreConfig::new(&options.dir).segment_size(options.segment_size);
        config.sync_replica_timeout = REPLICA_TIMEOUT;
        config.flush_mode(flush)
    }

    fn node_options(&self) -> NodeOptions {
        let out = self.out.clone();
        let mut node = NodeOptions::new(NodeId(self.options.id))
            .secret(Secret::new("crash"))
            .observe(move |event| {
                // Whoever listens there reads whatever comes, or is gone.
                let _ = match event {
                    Event::Truncated { to } => out.say(format_args!("CUT {to}")),
                    Event::Restarted { at } => out.say(format_args!("RESTARTED {at}")),
                    other => writeln!(io::stderr(), "crash_node: {other:?}"),
                };
            });
        (node.heartbeat_interval, node.housekeeping_interval) = (HEARTBEAT, HOUSEKEEPING);
        node
    }

    fn follow(&mut self, address: &str, flush: &str) -> Result<String, Failure> {
        self.stop()?;
        let config = self.config(flush);
        let mut options = ReplicaOptions::new(self.node_options(), address);
        (options.retry_min, options.retry_max) = (RETRY, RETRY_MAX);
        let replica = match std::mem::replace(&mut self.role, Role::None) {
            Role::Primary(primary) => primary.into_replica(config, options)?,
            Role::Replica(replica) => {
                replica.close()?;
                drop(replica);
                Replica::open(config, options)?
            }
            Role::None => Replica::open(config, options)?,
        };
        self.role = Role::Replica(Box::new(replica));
        Ok(String::new())
    }

    fn promote(&mut self, epoch: Epoch, level: &str, strict: bool) -> Result<String, Failure> {
        let Role::Replica(replica) = std::mem::replace(&mut self.role, Role::None) else {
            return Err("not a replica".into());
        };
        let mut options = PrimaryOptions::new(self.node_options()).epoch(epoch).strict(strict);
        if level == "memory" {
            options.ack_level = AckLevel::InMemory;
        }
        let primary = replica.promote(options)?;
        let address = primary.listen((&*self.options.listen, 0))?;
        self.role = Role::Primary(primary);
        Ok(address.to_string())
    }

    /// Begins to put messages.
    fn put(&mut self, size: usize) -> Result<String, Failure> {
        let Role::Primary(primary) = &self.role else { return Err("not a primary".into()) };
        let (term, seed) = (primary.epoch().0 / Epoch::term(1).0, self.options.seed);
        for thread in 0..self.options.threads {
            let (store, out) = (primary.store().clone(), self.out.clone());
            let stopped = Arc::new(AtomicBool::new(false));
            let told = stopped.clone();
            // One waits for each message, the others have some on their way: those leave a tail.
            let window = 1 << (thread % 4);
            let produce = move || {
                let produced = produce(&store, &out, &told, seed, window, |ordinal| {
                    Identity::new(thread, term, ordinal, size)
                });
                if let Err(error) = &produced {
                    eprintln!("crash_node: thread {thread}: {error}");
                }
                produced
            };
            self.producers.push(Producer { stopped, thread: std::thread::spawn(produce) });
        }
        Ok(String::new())
    }

    /// Stops the producers.
    fn stop(&mut self) -> Result<(), Failure> {
        for producer in &self.producers {
            producer.stopped.store(true, Ordering::Relaxed);
        }
        self.producers
            .drain(..)
            .try_for_each(|producer| producer.thread.join().expect("a producer panicked"))
    }

    fn pause(&mut self) -> Result<String, Failure> {
        self.stop()?;
        let Role::Primary(primary) = &self.role else { return Err("not a primary".into()) };
        Ok(primary.store().stats().watermarks.appended.to_string())
    }

    fn state(&self) -> Result<String, Failure> {
        match &self.role {
            Role::None => Err("no store is open".into()),
            Role::Replica(replica) => {
                let state = replica.state();
                let following = u8::from(state.following);
                Ok(format!("{following} {} {}", state.durable, state.confirmed))
            }
            Role::Primary(primary) => {
                let marks = primary.store().stats().watermarks;
                let in_office = u8::from(primary.superseded().is_none());
                Ok(format!("{in_office} {} {}", marks.durable, marks.confirmed))
            }
        }
    }

    fn close(&mut self) -> Result<(), Failure> {
        self.stop()?;
        match std::mem::replace(&mut self.role, Role::None) {
            Role::None => {}
            Role::Primary(primary) => primary.close()?,
            Role::Replica(replica) => replica.close()?,
        }
        Ok(())
    }
}

/// Puts one message after the other, up to `window` of them at a time, and says what becomes of each.
fn produce(
    store: &Store,
    out: &Out,
    stopped: &AtomicBool,
    seed: u64,
    window: usize,
    identity: impl Fn(u64) -> Identity,
) -> Result<(), Failure> {
    let (mut ordinal, mut sent) = (0, VecDeque::new());
    loop {
        let goes_on = !stopped.load(Ordering::Relaxed);
        if goes_on && sent.len() < window {
            let identity = identity(ordinal);
            let (thread, seq) = (identity.thread, identity.seq);
            let (topic, queue_id) = crash::place(thread + ordinal, TOPICS, QUEUES);
            match store.submit(identity.message(seed, &topic, queue_id)) {
                Ok(ticket) => {
                    sent.push_back((topic, thread, seq, ticket));
                    ordinal += 1;
                    continue;
                }
                // It was not stored: it is put once more.
                Err(duralog::Error::Refused(why)) => {
                    out.say(format_args!("REFUSED {thread} {seq} {why}"))?;
                    std::thread::sleep(PACE);
                }
                Err(error) => return Err(error.into()),
            }
        }
        let Some((topic, thread, seq, ticket)) = sent.pop_front() else {
            if goes_on {
                continue;
            }
            return Ok(());
        };
        let put = ticket.wait()?;
        if put.status == PutStatus::PutOk {
            let physical_offset = put.physical_offset;
            let (queue_id, queue_offset) = (put.queue_id, put.queue_offset);
            out.say(Ack { topic, queue_id, queue_offset, physical_offset, thread, seq })?;
        } else {
            out.say(format_args!("UNSURE {thread} {seq} {}", put.status))?;
            std::thread::sleep(PACE);
        }
    }
}
