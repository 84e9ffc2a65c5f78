//! How the store is doing.

use super::retention::RetentionStats;
use super::{PutStatus, Shared, Store};
use crate::clock::Clock;
use crate::disk::{DiskSpace, FileSystemKind};
use crate::error::Error;
use crate::log::progress::{Line, thread_number};
use crate::log::{AppendCounts, Watermarks};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

/// One put in so many is timed: reading the clock twice costs as much as the append itself.
const SAMPLE: u64 = 16;
/// Places for one counter.
const SHARDS: usize = 8;
/// Buckets of a latency histogram, one per power of two of nanoseconds.
const BUCKETS: usize = 48;

/// Counters that move as the store works.
#[derive(Debug)]
pub(crate) struct Meters {
    /// By status, in as many places as threads may count at once without getting in each other's way.
    statuses: [Line<[AtomicU64; 4]>; SHARDS],
    put_nanos: [AtomicU64; BUCKETS],
    put_nanos_max: AtomicU64,
    queue_errors: Mutex<[Option<Error>; 7]>,
    skipped_records: AtomicU64,
}

/// What is done with the consume queues, and may fail and be tried again.
#[derive(Debug, Clone, Copy)]
pub(super) enum QueueWork {
    Dispatch,
    Checkpoint,
    /// Nothing helps before the next open.
    Rebuild,
    /// The same for the key index.
    Index,
    /// What has expired could not be deleted.
    Expire,
    /// Brokers could not be told of consumer offsets.
    Export,
    /// Delayed messages that are due could not be delivered.
    Delay,
}

impl Default for Meters {
    fn default() -> Self {
        Self {
            statuses: Default::default(),
            put_nanos: std::array::from_fn(|_| AtomicU64::new(0)),
            put_nanos_max: AtomicU64::new(0),
            queue_errors: Mutex::default(),
            skipped_records: AtomicU64::new(0),
        }
    }
}

impl Meters {
    /// The time, for one put in [`SAMPLE`]. Which ones is decided by the offset at which the log ends,
    /// scrambled: a count of puts would be one more thing that producers contend for.
    pub(super) fn sample_start(&self, clock: &dyn Clock, end: u64) -> Option<Instant> {
        let scrambled = end.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        scrambled.is_multiple_of(SAMPLE).then(|| clock.now())
    }

    pub(super) fn sample_end(&self, clock: &dyn Clock, started: Option<Instant>) {
        let Some(started) = started else { return };
        let nanos = clock.now().saturating_duration_since(started).as_nanos() as u64;
        let bucket = (u64::BITS - nanos.leading_zeros()) as usize;
        if let Some(bucket) = self.put_nanos.get(bucket.min(BUCKETS - 1)) {
            bucket.fetch_add(1, Relaxed);
        }
        self.put_nanos_max.fetch_max(nanos, Relaxed);
    }

    pub(super) fn count(&self, status: PutStatus) {
        let Some(Line([ok, disk, replica, none])) = self.statuses.get(thread_number() % SHARDS)
        else {
            return;
        };
        let counter = match status {
            PutStatus::PutOk => ok,
            PutStatus::FlushDiskTimeout => disk,
            PutStatus::FlushReplicaTimeout => replica,
            PutStatus::ReplicaNotAvailable => none,
        };
        counter.fetch_add(1, Relaxed);
    }

    /// How many puts ended so: in the order of [`PutStatus`].
    fn statuses(&self) -> [u64; 4] {
        self.statuses.iter().fold([0; 4], |mut sums, Line(shard)| {
            sums.iter_mut().zip(shard).for_each(|(sum, count)| *sum += count.load(Relaxed));
            sums
        })
    }

    /// Notes how `work` ended.
    pub(super) fn queue_work(&self, work: QueueWork, error: Option<Error>) {
        if let Some(place) = self.queue_errors.lock().get_mut(work as usize) {
            *place = error;
        }
    }

    /// How `work` ended last, if it failed.
    pub(super) fn queue_error(&self, work: QueueWork) -> Option<Error> {
        self.queue_errors.lock().get(work as usize).cloned().flatten()
    }

    /// Counts a record of which no queue entry could be made.
    pub(super) fn skip_record(&self) {
        self.skipped_records.fetch_add(1, Relaxed);
    }

    fn put_latency(&self) -> Latency {
        let counts: Vec<u64> = self.put_nanos.iter().map(|bucket| bucket.load(Relaxed)).collect();
        let total: u64 = counts.iter().sum();
        let quantile = |share: f64| {
            let rank = (total as f64 * share).ceil() as u64;
            let mut seen = 0;
            let bucket = counts.iter().position(|count| {
                seen += count;
                seen >= rank.max(1)
            });
            Duration::from_nanos(bucket.map_or(0, |bucket| 1 << bucket))
        };
        let max = Duration::from_nanos(self.put_nanos_max.load(Relaxed));
        Latency { samples: total, p50: quantile(0.5).min(max), p99: quantile(0.99).min(max), max }
    }
}

/// How long something takes. Quantiles are upper bounds within a factor of two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Latency {
    /// How many were timed.
    pub samples: u64,
    /// Half of them took at most this long.
    pub p50: Duration,
    /// 99 of 100 took at most this long.
    pub p99: Duration,
    /// The longest.
    pub max: Duration,
}

/// Views that keep a segment in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Pin {
    /// Physical offset at which the segment begins.
    pub segment: u64,
    /// Views into it that are alive.
    pub views: usize,
}

/// Numbers since the store was opened.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Stats {
    /// How far the log has come.
    pub watermarks: Watermarks,
    /// Every record before this offset is durably in the consume queues: the next open dispatches
    /// from here.
    pub queues_durable: u64,
    /// Physical offset of the first byte kept.
    pub min_offset: u64,
    /// Messages that got their place in the log.
    pub messages: u64,
    /// Their size as records, in bytes.
    pub message_bytes: u64,
    /// Puts that were answered with `PutOk`. A batch counts as one, a ticket once it is asked.
    pub put_ok: u64,
    /// The same with `FlushDiskTimeout`.
    pub flush_disk_timeouts: u64,
    /// The same with `FlushReplicaTimeout`.
    pub flush_replica_timeouts: u64,
    /// The same with `ReplicaNotAvailable`.
    pub replica_not_available: u64,
    /// How long [`Store::put`] takes. About one call in 16 is timed; batches and submits never are.
    pub put_latency: Latency,
    /// Calls that wrote records to a file; 0 with [`WriteMode::Mmap`](crate::WriteMode::Mmap).
    pub writes: u64,
    /// Syncs of the log.
    pub syncs: u64,
    /// Mean duration of a sync.
    pub sync_mean: Duration,
    /// The longest sync.
    pub sync_max: Duration,
    /// Messages per sync, on average.
    pub group_size: f64,
    /// How often the log went on in a new segment.
    pub rolls: u64,
    /// Segments of the log.
    pub segments: usize,
    /// Topics.
    pub topics: usize,
    /// Consume queues.
    pub queues: usize,
    /// Messages that are in no queue because their topic is no directory name, or because they claim a
    /// place in their queue that they cannot have; another program wrote them.
    pub undispatchable: u64,
    /// Segments that views keep in memory, those among them that were deleted not counted.
    pub pins: Vec<Pin>,
    /// What was deleted because it had expired, and what was not.
    pub retention: RetentionStats,
}

/// Whether the store is in order.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Health {
    /// The failure after which nothing is written any more, if there was one.
    pub latched: Option<Arc<Error>>,
    /// The failure after which no offset of a consumer group is written any more, if there was one: what is
    /// acknowledged from then on is refused, and messages come again after the next open.
    pub offsets_latched: Option<Arc<Error>>,
    /// The consume queues or the key index cannot be written or made durable at the moment, or have to
    /// be rebuilt, or what has expired cannot be deleted: nothing is lost, but readers may lag and the
    /// next open takes longer. Or delayed messages cannot be delivered:
    /// [`delay_stats`](Store::delay_stats) tells how many.
    pub queue_error: Option<Error>,
    /// How long the sync that is under way has taken so far, if there is one: a disk that hangs shows
    /// here first.
    pub syncing_for: Option<Duration>,
    /// What the store lies on, where that can be told. In memory nothing survives a reboot; on a
    /// network locks and syncs may not mean what they say.
    pub file_system: Option<FileSystemKind>,
    /// Bytes left on the file system, where that can be told.
    pub available_bytes: Option<u64>,
}

impl Health {
    /// Whether nothing is known that needs somebody's attention: no failure, and a local file system,
    /// on which puts mean what they say. A full or slow disk shows in the other fields.
    pub fn is_ok(&self) -> bool {
        self.latched.is_none()
            && self.offsets_latched.is_none()
            && self.queue_error.is_none()
            && self.file_system == Some(FileSystemKind::Local)
    }
}

impl Store {
    /// How many puts ended so: in the order of [`PutStatus`].
    pub(crate) fn put_statuses(&self) -> [u64; 4] {
        self.shared().stats.statuses()
    }

    /// The failure after which nothing is written any more.
    pub(crate) fn latched(&self) -> Option<Arc<Error>> {
        self.shared().core.progress.latched().cloned()
    }

    /// The same for the offsets of groups.
    pub(crate) fn offsets_latched(&self) -> Option<Arc<Error>> {
        self.shared().offsets.latched()
    }

    /// What the file system has left, where that can be told.
    pub(crate) fn disk_space(&self) -> Option<DiskSpace> {
        let core = &self.shared().core;
        core.disk.space(core.directory().root()).ok()
    }

    /// What the store has done since it was opened, and how far it is.
    pub fn stats(&self) -> Stats {
        self.shared().collect()
    }

    /// Whether the store is in order.
    pub fn health(&self) -> Health {
        let shared = self.shared();
        let (disk, root) = (&shared.core.disk, shared.core.directory().root());
        Health {
            latched: shared.core.progress.latched().cloned(),
            offsets_latched: shared.offsets.latched(),
            queue_error: shared.stats.queue_errors.lock().iter().flatten().next().cloned(),
            syncing_for: shared.core.syncing_for(),
            file_system: disk.kind(root).ok(),
            available_bytes: disk.space(root).ok().map(|space| space.available),
        }
    }
}

impl Shared {
    fn collect(&self) -> Stats {
        let counts = &self.core.counts;
        let AppendCounts { records: messages, bytes: message_bytes, rolls } =
            self.core.append_counts();
        let syncs = counts.syncs.load(Relaxed);
        let [ok, disk, replica, none] = self.stats.statuses();
        let mean = counts.sync_nanos.load(Relaxed).checked_div(syncs).unwrap_or(0);
        Stats {
            watermarks: self.core.progress.watermarks(),
            queues_durable: self.checkpointer.queues_durable(),
            min_offset: self.core.min_offset(),
            messages,
            message_bytes,
            put_ok: ok,
            flush_disk_timeouts: disk,
            flush_replica_timeouts: replica,
            replica_not_available: none,
            put_latency: self.stats.put_latency(),
            writes: counts.writes.load(Relaxed),
            syncs,
            sync_mean: Duration::from_nanos(mean),
            sync_max: Duration::from_nanos(counts.sync_nanos_max.load(Relaxed)),
            group_size: if syncs == 0 { 0.0 } else { messages as f64 / syncs as f64 },
            rolls,
            segments: self.core.segment_count(),
            topics: self.queues.topics().len(),
            queues: self.queues.len(),
            undispatchable: self.stats.skipped_records.load(Relaxed),
            retention: self.expiry.stats(),
            pins: self
                .core
                .pins()
                .into_iter()
                .map(|(segment, views)| Pin { segment, views })
                .collect(),
        }
    }
}
