//! What every attack has: a disk, a clock, and a log to speak of.

use crate::wire_peer::{CLUSTER, EpochStart, SECRET};
use duralog::clock::ManualClock;
use duralog::disk::SimDisk;
use duralog::replication::fuzzing::{Asking, End};
use duralog::replication::{Ack, Epoch, NodeId, NodeOptions, PrimaryOptions, Protocol, Secret};
use duralog::{Environment, Message, StoreConfig, StoreWorker};
use libfuzzer_sys::arbitrary::Unstructured;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

pub const SEGMENT_SIZE: u64 = 4096;
pub const EPOCH: u64 = 1 << 32;
/// Longer than a heartbeat interval.
pub const A_WHILE: Duration = Duration::from_secs(6);
pub const OUR_NONCE: [u8; 16] = *b"of the node here";

/// A log of one epoch, of which every attack is about.
pub struct Log {
    pub bytes: Vec<u8>,
    /// Another one each time, but the same in all that is made of it.
    pub id: u64,
    pub epoch: EpochStart,
    files: Vec<(PathBuf, Vec<u8>)>,
}

pub static LOG: LazyLock<Log> = LazyLock::new(|| written(30));
/// What a primary has left of it that lost the rest, and a replica that lags behind.
pub static LEFT: LazyLock<Log> = LazyLock::new(|| written(12));
pub static LAGGING: LazyLock<Log> = LazyLock::new(|| written(20));

fn written(messages: usize) -> Log {
    let stage = Stage::new();
    let end = stage.serve(Protocol::Duralog, EPOCH);
    fill(&end, messages);
    let bytes = stage.log(end.log().end());
    let id = end.log().log_id().expect("an epoch has begun").0.get();
    end.store().close().expect("it closes");
    let epoch = EpochStart { epoch: EPOCH, start: 0, node: 1, flags: 1 };
    let read = |file: PathBuf| (file.clone(), stage.disk.bytes(file).expect("a file"));
    Log { bytes, id, epoch, files: stage.disk.files().into_iter().map(read).collect() }
}

pub struct Stage {
    pub disk: SimDisk,
    clock: Arc<ManualClock>,
}

/// Puts the first messages of which the log is made.
fn fill(end: &End, messages: usize) {
    for n in 0..messages {
        let message = Message::new("t", vec![n as u8; n * 37 % 400]);
        while end.store().try_submit(&message).is_err() {
            step(end);
        }
        step(end);
    }
}

impl Stage {
    pub fn new() -> Self {
        Self { disk: SimDisk::new(1), clock: Arc::new(ManualClock::new(1_700_000_000_000)) }
    }

    /// One where a log is already.
    pub fn with(log: &Log) -> Self {
        let stage = Self::new();
        for (file, bytes) in &log.files {
            stage.disk.put_file(file, bytes).expect("there is room");
        }
        stage
    }

    fn config() -> StoreConfig {
        let mut config = StoreConfig::new("/store").segment_size(SEGMENT_SIZE);
        config.index_enable = false;
        config.consume_queue_file_size = 400;
        // Nobody else works meanwhile: who waits, waits in vain.
        config.log.put_timeout = Duration::from_millis(1);
        config
    }

    fn environment(&self) -> Environment {
        Environment::on(self.disk.shared()).clock(self.clock.clone()).stepped()
    }

    fn node(id: u64) -> NodeOptions {
        NodeOptions::new(NodeId(id)).cluster(CLUSTER).secret(Secret::new(SECRET))
    }

    pub fn serve(&self, protocol: Protocol, epoch: u64) -> End {
        let options = PrimaryOptions::new(Self::node(1)).ack(Ack::Async).epoch(Epoch(epoch));
        End::serve(Self::config(), self.environment(), options, protocol, OUR_NONCE)
            .expect("a primary opens")
    }

    pub fn follow(&self, protocol: Protocol) -> End {
        End::follow(Self::config(), self.environment(), &Self::node(2), protocol, OUR_NONCE)
            .expect("a replica opens")
    }

    /// A primary that lost the end of its log, and has to hear so many replicas.
    pub fn ask(&self, replicas: usize) -> Asking {
        Asking::open(Self::config(), self.environment(), &Self::node(1), replicas, OUR_NONCE)
            .expect("a store opens")
    }

    /// The bytes of the log's files up to `end`.
    pub fn log(&self, end: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        for base in (0..end).step_by(SEGMENT_SIZE as usize) {
            let file = format!("/store/commitlog/{base:020}");
            bytes.extend(self.disk.bytes(file).expect("a segment"));
        }
        bytes.truncate(end as usize);
        bytes
    }
}

pub fn step(end: &End) {
    for worker in [StoreWorker::Flush, StoreWorker::Upkeep, StoreWorker::Dispatch] {
        end.store().step(worker);
    }
}

/// One of these, or one beside it, or any.
pub fn number(script: &mut Unstructured<'_>, known: &[u64]) -> u64 {
    match script.int_in_range(0..=3).unwrap_or(0) {
        0 => script.choose(known).copied().unwrap_or(0),
        1 => script.choose(known).map_or(0, |known| known.wrapping_add(1)),
        2 => script.choose(known).map_or(0, |known| known.wrapping_sub(1)),
        _ => script.arbitrary().unwrap_or(0),
    }
}

pub fn bytes<'a>(script: &mut Unstructured<'a>) -> &'a [u8] {
    let len = usize::from(script.arbitrary::<u8>().unwrap_or(0)).min(script.len());
    script.bytes(len).unwrap_or_default()
}

/// Some of the log, and whether it was altered.
pub fn records(script: &mut Unstructured<'_>, from: u64) -> (Vec<u8>, bool) {
    let from = (from as usize).min(LOG.bytes.len());
    let len = usize::from(script.arbitrary::<u16>().unwrap_or(0)) % (2 * SEGMENT_SIZE as usize);
    let to = (from + len).min(LOG.bytes.len());
    let mut taken = LOG.bytes[from..to].to_vec();
    let mut altered = false;
    if script.ratio(1, 4).unwrap_or(false) && !taken.is_empty() {
        for _ in 0..script.int_in_range(1..=4).unwrap_or(1) {
            let at = script.choose_index(taken.len()).unwrap_or(0);
            let by: u8 = script.arbitrary().unwrap_or(1);
            taken[at] ^= by;
            altered |= by != 0;
        }
    }
    (taken, altered)
}
