//! Writes messages until it is killed, and says of every acknowledged one where it lies.
//!
//! Each `PutOk` is answered by one line, in one `write`, on standard output:
//!
//! ```text
//! ACK <topic> <queue_id> <queue_offset> <physical_offset> <thread> <seq>
//! ```
//!
//! `crash_verify` then tells whether the store kept what it promised. On a store that exists the
//! writer goes on: it recovers, and counts as another run, whose `seq` are all new.

mod crash;

use crash::{Ack, Identity};
use duralog::{FlushMode, PutStatus, Store, StoreConfig, SyncMethod, WriteMode};
use std::error::Error;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

const USAGE: &str = "\
usage: crash_writer DIR [OPTION]...

  --threads N           producers (1)
  --flush sync|async    what an acknowledgement means (sync)
  --size BYTES          size of a body (1000)
  --queues Q            queues of each topic (4)
  --topics T            topics, crash-0 and so on (2)
  --segment-size BYTES  size of a log file, where there is none yet (1073741824)
  --write MODE          pwrite or mmap (what goes with the flush mode)
  --sync METHOD         fdatasync, fsync or msync (fdatasync)
  --seed S              decides what is in the bodies (1)
  --messages M          stop after so many instead of going on for ever";

type Failure = Box<dyn Error + Send + Sync>;

struct Options {
    dir: PathBuf,
    threads: u64,
    flush: FlushMode,
    size: usize,
    queues: u64,
    topics: u64,
    segment_size: u64,
    write: Option<WriteMode>,
    sync: Option<SyncMethod>,
    seed: u64,
    messages: u64,
}

fn main() -> ExitCode {
    let Some(options) = parse() else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("crash_writer: {error}");
            ExitCode::FAILURE
        }
    }
}

fn parse() -> Option<Options> {
    let mut args = std::env::args_os().skip(1);
    let mut options = Options {
        dir: args.next().filter(|dir| !dir.as_encoded_bytes().starts_with(b"-"))?.into(),
        threads: 1,
        flush: FlushMode::sync(),
        size: 1000,
        queues: 4,
        topics: 2,
        segment_size: 1 << 30,
        write: None,
        sync: None,
        seed: 1,
        messages: u64::MAX,
    };
    while let Some(name) = args.next() {
        let value = args.next()?.into_string().ok()?;
        let number = || value.parse::<u64>().ok();
        match name.to_str()? {
            "--threads" => options.threads = number().filter(|threads| *threads > 0)?,
            "--flush" if value == "sync" => options.flush = FlushMode::sync(),
            "--flush" if value == "async" => options.flush = FlushMode::async_default(),
            "--size" => options.size = value.parse().ok()?,
            "--queues" => {
                options.queues = number()
                    .filter(|queues| i32::try_from(*queues).is_ok_and(|queues| queues > 0))?
            }
            "--topics" => options.topics = number().filter(|topics| *topics > 0)?,
            "--segment-size" => options.segment_size = number()?,
            "--write" if value == "pwrite" => options.write = Some(WriteMode::Pwrite),
            "--write" if value == "mmap" => options.write = Some(WriteMode::Mmap),
            "--sync" if value == "fdatasync" => options.sync = Some(SyncMethod::Fdatasync),
            "--sync" if value == "fsync" => options.sync = Some(SyncMethod::Fsync),
            "--sync" if value == "msync" => options.sync = Some(SyncMethod::Msync),
            "--seed" => options.seed = number()?,
            "--messages" => options.messages = number()?,
            _ => return None,
        }
    }
    Some(options)
}

fn run(options: &Options) -> Result<(), Failure> {
    let mut config =
        StoreConfig::new(&options.dir).flush_mode(options.flush).segment_size(options.segment_size);
    if let Some(mode) = options.write {
        config = config.write_mode(mode);
    }
    if let Some(method) = options.sync {
        config = config.sync_method(method);
    }
    // Whoever kills this process can tell by these lines whether it was recovering.
    eprintln!("crash_writer: opening");
    let store = Store::open(config)?;
    eprintln!("crash_writer: open");
    let writer = Writer {
        run: count_run(&options.dir)?,
        left: AtomicU64::new(options.messages),
        // A `File` has no buffer: a line is a `write`, done before the next put begins.
        acks: Mutex::new(io::stdout().as_fd().try_clone_to_owned()?.into()),
        store,
        options,
    };
    let writer = &writer;
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..options.threads)
            .map(|thread| scope.spawn(move || writer.produce(thread)))
            .collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("a producer panicked"))
    })?;
    Ok(writer.store.close()?)
}

/// Which run on this store it is. The number comes from a file beside the store and not from the
/// store itself, so that a store that lost messages cannot lead to the same ones being put again.
fn count_run(dir: &Path) -> io::Result<u64> {
    let path = dir.join("crash_writer.runs");
    let mut runs = OpenOptions::new().create(true).append(true).open(path)?;
    let run = runs.metadata()?.len();
    runs.write_all(b".")?;
    runs.sync_all()?;
    Ok(run)
}

struct Writer<'a> {
    options: &'a Options,
    store: Store,
    run: u64,
    left: AtomicU64,
    acks: Mutex<File>,
}

impl Writer<'_> {
    fn produce(&self, thread: u64) -> Result<(), Failure> {
        let mut ordinal = 0;
        while self.claim() {
            if let Err(error) = self.put(thread, ordinal) {
                self.left.store(0, Ordering::Relaxed);
                return Err(error);
            }
            ordinal += 1;
        }
        Ok(())
    }

    /// Takes one of the messages that are left to put.
    fn claim(&self) -> bool {
        let less_one = |left: u64| left.checked_sub(1);
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less_one).is_ok()
    }

    fn put(&self, thread: u64, ordinal: u64) -> Result<(), Failure> {
        let Options { size, queues, topics, seed, .. } = *self.options;
        let identity = Identity::new(thread, self.run, ordinal, size);
        let (topic, queue_id) = crash::place(thread + ordinal, topics, queues);
        let put = self.store.put(identity.message(seed, &topic, queue_id))?;
        if put.status != PutStatus::PutOk {
            eprintln!("crash_writer: thread {thread}, seq {}: {}", identity.seq, put.status);
            return Ok(());
        }
        let ack = Ack {
            topic,
            queue_id: put.queue_id,
            queue_offset: put.queue_offset,
            physical_offset: put.physical_offset,
            thread,
            seq: identity.seq,
        };
        let line = format!("{ack}\n");
        let mut acks = self.acks.lock().map_err(|_| "another producer panicked")?;
        Ok(acks.write_all(line.as_bytes())?)
    }
}
