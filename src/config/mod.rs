//! What can be chosen, with the defaults, and what is refused.

mod broker_conf;
mod broker_keys;
mod properties;
mod retention;

pub use broker_conf::{BrokerConf, BrokerKey, BrokerReplication, BrokerRole, Treatment};
pub use retention::{Retention, Threshold};

use crate::disk::SyncMethod;
use crate::error::{Error, Result};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
/// Java maps no more of a file.
const INDEX_FILE_SIZE_MAX: u64 = i32::MAX as u64;

/// How bytes reach the page cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WriteMode {
    /// One `pwrite` for all records that gathered meanwhile. A sync then writes only what changed.
    Pwrite,
    /// Each record is copied into a shared mapping: no system call per put, but kernels with large
    /// folios write up to 1 MiB per sync.
    Mmap,
}

/// When bytes are made durable, and which puts wait for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum FlushMode {
    /// RocketMQ's `SYNC_FLUSH`: a put answers once its bytes are durable, one sync for all who wait.
    Sync {
        /// How long a put waits before it answers `FlushDiskTimeout`. Default 5 s; 1 ms to 1 h.
        timeout: Duration,
    },
    /// RocketMQ's `ASYNC_FLUSH`: a put answers once its bytes are in the page cache; a power cut may
    /// take what was put since the last finished sync began. With a disk that keeps up, that is
    /// `interval`, or `thorough_interval` if that is longer, and the time of one sync.
    Async {
        /// A sync starts at most this long after the oldest byte it covers, or when the sync before it
        /// ends, if that is later. Default 500 ms; 1 ms to 1 h.
        interval: Duration,
        /// Once this many pages of 4 KiB wait, the next sync starts `interval` after the last one began,
        /// however young they are; that is checked ten times per `interval`. 0 leaves it to their age.
        /// Default 4.
        least_pages: u32,
        /// How long fewer than `least_pages` pages may wait. RocketMQ defers them up to 10 s; here
        /// the bound is `interval` unless this is larger. Default: equal to `interval`.
        thorough_interval: Duration,
    },
}

impl FlushMode {
    /// Sync flush with the default timeout of 5 s.
    pub fn sync() -> Self {
        Self::Sync { timeout: Duration::from_secs(5) }
    }

    /// Async flush: 500 ms, 4 pages.
    pub fn async_default() -> Self {
        let interval = Duration::from_millis(500);
        Self::Async { interval, least_pages: 4, thorough_interval: interval }
    }

    /// RocketMQ's own async flush: up to 4 pages may stay unsynced for 10 s.
    pub fn rocketmq_async() -> Self {
        let interval = Duration::from_millis(500);
        Self::Async { interval, least_pages: 4, thorough_interval: Duration::from_secs(10) }
    }
}

/// What recovery does with damage above the durable offset. Below it, in the two stricter modes, a
/// damaged record is an error when it is read: by a consumer, or at open to fill the queues.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum RecoveryMode {
    /// Refuse to open when a valid record lies behind a damaged one.
    Strict,
    /// Cut the log at the first damaged record. Where a valid record lies behind it, the bytes cut
    /// are first copied to `duralog/cut-<offset>`. The default. Opened read-only, the log ends there
    /// and nothing is changed; [`RecoveryReport::cut`](crate::RecoveryReport::cut) tells.
    #[default]
    TolerateTail,
    /// Keep the valid records behind the damage: the damaged ones are replaced by records that no
    /// consumer sees, after a copy to `duralog/cut-<offset>`, or, opened read-only, stepped over. Reads
    /// skip damaged messages, also below the durable offset.
    Salvage,
}

/// Which messages a reader sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Visibility {
    /// Only what can no longer vanish: durable with sync flush, in the page cache with async flush,
    /// and confirmed where a replicator is in place. The default. A store that is opened read-only beside a writer, or after a crash, shows
    /// what the last checkpoint says is durable: with sync flush that is some 200 ms behind.
    #[default]
    Safe,
    /// Whatever is in the page cache, as in RocketMQ with `readUnCommitted`: a crash may take back
    /// what a consumer has seen. Without effect on a replica.
    Appended,
}

/// Which RocketMQ must be able to read what is written; [`StoreConfig::compatibility`] chooses the
/// options.
///
/// Everything else that is written, both read. `__CRC32#` is one more property to RocketMQ 4.9, which
/// keeps it, and copies it along where it stores a message again; this crate knows such a copy for
/// what it is. Sizes of files are not in the files: a broker must be configured with
/// `segment_size`, `consume_queue_file_size`, `index_slots` and `index_items` of the store; the
/// defaults are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Compatibility {
    /// RocketMQ 4.9: no [`long_topics`](LogConfig::long_topics), whose records make it cut the log
    /// where the first one stands, and [`zlib_only`](StoreConfig::zlib_only), as its consumers take every
    /// compressed body for zlib's.
    Rocketmq49,
    /// RocketMQ 5.1 and later: whatever this crate writes. The default.
    Rocketmq5,
}

/// Settings of a [`CommitLog`](crate::log::CommitLog).
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct LogConfig {
    /// The store's root directory; `commitlog/` and `duralog/` lie in it.
    pub dir: PathBuf,
    /// Bytes of one segment file, RocketMQ's `mappedFileSizeCommitLog`. Default 1 GiB; a multiple of
    /// 4 KiB from 4 KiB to 1 GiB. Where segments exist, their size is used instead.
    pub segment_size: u64,
    /// Default [`WriteMode::Pwrite`]. In a store [`StoreConfig::write_mode`] decides instead.
    pub write_mode: WriteMode,
    /// Default [`SyncMethod::Fdatasync`].
    pub sync_method: SyncMethod,
    /// Default [`RecoveryMode::TolerateTail`].
    pub recovery_mode: RecoveryMode,
    /// Write RocketMQ 5's `__CRC32#` property, a checksum over the whole record. Default true.
    pub record_crc: bool,
    /// Take topics of 128 to 255 bytes, which only those of retries, `%RETRY%<group>`, may have: they
    /// need V2 records, which RocketMQ reads since 5.1. Otherwise a longer topic than 127 bytes is
    /// [`Error::TooLarge`]. Default true.
    pub long_topics: bool,
    /// Largest body in bytes. Default 4 MiB; 1 byte to 512 MiB. It must fit a segment, too.
    pub max_message_size: usize,
    /// Bytes that may wait to be written; beyond that a put waits, `try_submit` answers `Full`. Default
    /// 8 MiB; 4 KiB to 1 GiB. Two such buffers exist; one message may be larger. Has no meaning for
    /// [`WriteMode::Mmap`], where nothing waits to be written.
    pub max_in_flight_bytes: usize,
    /// How long a put waits for its place: for the next segment, or for room among the bytes in flight;
    /// and, where it does not wait for the disk, until it is in the page cache. All else has timeouts of
    /// its own. No effect on [`CommitLog::append`](crate::log::CommitLog::append), which is told its
    /// patience. Default 5 s; 1 ms to 1 h.
    pub put_timeout: Duration,
    /// How long `close` may take to make everything durable and to stop the threads, and `flush` to
    /// make everything durable. Default 5 s; 1 ms to 1 h.
    pub close_timeout: Duration,
    /// The address written into records as store host, part of the offset message id. Default
    /// 127.0.0.1:10911.
    pub store_host: SocketAddr,
    /// Open without writing anything, beside a live writer if there is one. There must be a log. What
    /// is written later is not seen: open it again for that. Default false.
    pub read_only: bool,
}

impl LogConfig {
    /// The defaults, for a log in `dir`.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            segment_size: 1024 * MIB,
            write_mode: WriteMode::Pwrite,
            sync_method: SyncMethod::Fdatasync,
            recovery_mode: RecoveryMode::TolerateTail,
            record_crc: true,
            long_topics: true,
            max_message_size: 4 << 20,
            max_in_flight_bytes: 8 << 20,
            put_timeout: Duration::from_secs(5),
            close_timeout: Duration::from_secs(5),
            store_host: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 10911),
            read_only: false,
        }
    }

    /// Sets [`segment_size`](Self::segment_size).
    pub fn segment_size(mut self, bytes: u64) -> Self {
        self.segment_size = bytes;
        self
    }

    pub(crate) fn validate(&self) -> Result<()> {
        let size = self.segment_size;
        if !(4 * KIB..=1024 * MIB).contains(&size) || !size.is_multiple_of(4 * KIB) {
            return refused("segment_size", size, "a multiple of 4096 from 4096 to 1073741824");
        }
        if self.max_message_size == 0 || self.max_message_size > 512 << 20 {
            return refused("max_message_size", self.max_message_size, "1 to 536870912");
        }
        if self.max_in_flight_bytes < 4096 || self.max_in_flight_bytes > 1 << 30 {
            return refused("max_in_flight_bytes", self.max_in_flight_bytes, "4096 to 1073741824");
        }
        check_duration("put_timeout", self.put_timeout)?;
        check_duration("close_timeout", self.close_timeout)
    }
}

/// Settings of a [`Store`](crate::Store): the log's, and those of everything above it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct StoreConfig {
    /// Settings of the commit log. Its `write_mode` is not looked at:
    /// [`write_mode`](Self::write_mode) decides.
    pub log: LogConfig,
    /// Default [`FlushMode::sync`].
    pub flush_mode: FlushMode,
    /// Default [`Visibility::Safe`].
    pub visibility: Visibility,
    /// How bytes reach the page cache; `None`, the default, takes what is faster for the flush mode:
    /// `Pwrite` for sync, `Mmap` for async flush.
    pub write_mode: Option<WriteMode>,
    /// Bytes of one consume queue file, RocketMQ's `mappedFileSizeConsumeQueue`, rounded up to a
    /// multiple of 20. Default 6,000,000; 20 bytes to 1 GiB. Where a queue has files, their size is
    /// used.
    pub consume_queue_file_size: u64,
    /// Open files of consume queues kept at hand. Default 256; at least 4.
    pub max_open_queue_files: usize,
    /// Queue ids must be below this. Default 65,536.
    pub max_queues_per_topic: i32,
    /// Whether a topic comes with the first message put to it, RocketMQ's `autoCreateTopicEnable`.
    /// Default true. Otherwise [`Store::create_topic`](crate::Store::create_topic) must come first; topics
    /// that hold something exist.
    ///
    /// Topics whose names begin with `%RETRY%` or `%DLQ%`, and RocketMQ's system topics, come in any case:
    /// consumers need theirs, and a put does not say whose it is. Anybody who has the store can put to
    /// them.
    pub auto_create_topic: bool,
    /// Queues of a topic that a producer, a transaction, a consumer or
    /// [`Store::submit_delayed`](crate::Store::submit_delayed) creates, RocketMQ's `defaultTopicQueueNums`.
    /// Default 4; 1 to `max_queues_per_topic`.
    pub default_topic_queue_nums: i32,
    /// Whether producers, transactional ones too, refuse bodies that are compressed by anything but zlib.
    /// What an application puts without them is stored as it is. Default false.
    pub zlib_only: bool,
    /// How long a put waits for replicas before it answers `FlushReplicaTimeout`. Default 5 s; 1 ms to
    /// 1 h.
    pub sync_replica_timeout: Duration,
    /// How long after a commit the offsets of consumer groups are made durable, at the latest. Default
    /// 500 ms; 1 ms to 1 h.
    pub consumer_offset_interval: Duration,
    /// The queues are made durable, so that the next open need not look at older messages, whenever
    /// this many bytes of messages have come. Default 64 MiB; at least 4 KiB.
    pub queue_checkpoint_bytes: u64,
    /// Which messages may be deleted. Default `None`: none are.
    pub retention: Option<Retention>,
    /// Keep an index of keys, RocketMQ's `messageIndexEnable`. Default true.
    pub index_enable: bool,
    /// Hash slots of an index file, RocketMQ's `maxHashSlotNum`. Default 5,000,000; at least 1.
    pub index_slots: u32,
    /// Entries an index file has room for, RocketMQ's `maxIndexNum`: the first is never used. Default
    /// 20,000,000; at least 2. The file must stay below 2 GiB.
    pub index_items: u32,
}

impl StoreConfig {
    /// The defaults, for a store in `dir`: sync flush, segments of 1 GiB.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            log: LogConfig::new(dir),
            flush_mode: FlushMode::sync(),
            visibility: Visibility::Safe,
            write_mode: None,
            consume_queue_file_size: 6_000_000,
            max_open_queue_files: 256,
            max_queues_per_topic: 65_536,
            auto_create_topic: true,
            default_topic_queue_nums: 4,
            zlib_only: false,
            sync_replica_timeout: Duration::from_secs(5),
            consumer_offset_interval: Duration::from_millis(500),
            queue_checkpoint_bytes: 64 * MIB,
            retention: None,
            index_enable: true,
            index_slots: 5_000_000,
            index_items: 20_000_000,
        }
    }

    /// Sets [`flush_mode`](Self::flush_mode).
    pub fn flush_mode(mut self, mode: FlushMode) -> Self {
        self.flush_mode = mode;
        self
    }

    /// Sets how long a sync put waits, and with it sync flush.
    pub fn sync_flush_timeout(self, timeout: Duration) -> Self {
        self.flush_mode(FlushMode::Sync { timeout })
    }

    /// Sets the size of a segment in bytes.
    pub fn segment_size(mut self, bytes: u64) -> Self {
        self.log.segment_size = bytes;
        self
    }

    /// Sets [`write_mode`](Self::write_mode).
    pub fn write_mode(mut self, mode: WriteMode) -> Self {
        self.write_mode = Some(mode);
        self
    }

    /// Sets the sync method.
    pub fn sync_method(mut self, method: SyncMethod) -> Self {
        self.log.sync_method = method;
        self
    }

    /// Sets the recovery mode.
    pub fn recovery_mode(mut self, mode: RecoveryMode) -> Self {
        self.log.recovery_mode = mode;
        self
    }

    /// Sets [`visibility`](Self::visibility).
    pub fn visibility(mut self, visibility: Visibility) -> Self {
        self.visibility = visibility;
        self
    }

    /// Sets [`consume_queue_file_size`](Self::consume_queue_file_size).
    pub fn consume_queue_file_size(mut self, bytes: u64) -> Self {
        self.consume_queue_file_size = bytes;
        self
    }

    /// Sets [`retention`](Self::retention).
    pub fn retention(mut self, retention: Retention) -> Self {
        self.retention = Some(retention);
        self
    }

    /// Chooses the options whose default would break a reader of that version.
    pub fn compatibility(mut self, compatibility: Compatibility) -> Self {
        self.log.long_topics = compatibility != Compatibility::Rocketmq49;
        self.zlib_only = compatibility == Compatibility::Rocketmq49;
        self
    }

    /// Opens without writing anything.
    pub fn read_only(mut self, read_only: bool) -> Self {
        self.log.read_only = read_only;
        self
    }

    /// The log's settings with what depends on the flush mode filled in.
    pub(crate) fn resolved_log(&self) -> LogConfig {
        let mut log = self.log.clone();
        log.write_mode = self.write_mode.unwrap_or(match self.flush_mode {
            FlushMode::Sync { .. } => WriteMode::Pwrite,
            FlushMode::Async { .. } => WriteMode::Mmap,
        });
        log
    }

    pub(crate) fn validate(&self) -> Result<()> {
        self.log.validate()?;
        match self.flush_mode {
            FlushMode::Sync { timeout } => check_duration("sync_flush_timeout", timeout)?,
            FlushMode::Async { interval, thorough_interval, .. } => {
                check_duration("flush_interval", interval)?;
                check_duration("flush_thorough_interval", thorough_interval)?;
            }
        }
        check_duration("sync_replica_timeout", self.sync_replica_timeout)?;
        check_duration("consumer_offset_interval", self.consumer_offset_interval)?;
        if !(20..=1024 * MIB).contains(&self.consume_queue_file_size) {
            return refused(
                "consume_queue_file_size",
                self.consume_queue_file_size,
                "20 to 1073741824",
            );
        }
        if self.max_open_queue_files < 4 {
            return refused("max_open_queue_files", self.max_open_queue_files, "at least 4");
        }
        if self.max_queues_per_topic < 1 {
            return refused("max_queues_per_topic", self.max_queues_per_topic, "at least 1");
        }
        if !(1..=self.max_queues_per_topic).contains(&self.default_topic_queue_nums) {
            return refused(
                "default_topic_queue_nums",
                self.default_topic_queue_nums,
                "1 to max_queues_per_topic",
            );
        }
        if self.queue_checkpoint_bytes < 4 * KIB {
            return refused("queue_checkpoint_bytes", self.queue_checkpoint_bytes, "at least 4096");
        }
        if self.index_slots == 0 {
            return refused("index_slots", 0, "at least 1");
        }
        let index_size = 40 + 4 * u64::from(self.index_slots) + 20 * u64::from(self.index_items);
        if self.index_items < 2 || index_size > INDEX_FILE_SIZE_MAX {
            return refused(
                "index_items",
                self.index_items,
                "at least 2, with 40 + 4 * index_slots + 20 * index_items at most 2147483647",
            );
        }
        self.retention.as_ref().map_or(Ok(()), Retention::validate)
    }
}

fn check_duration(field: &'static str, value: Duration) -> Result<()> {
    if (Duration::from_millis(1)..=Duration::from_secs(3600)).contains(&value) {
        return Ok(());
    }
    refused(field, format!("{value:?}"), "1 ms to 1 h")
}

fn refused<T>(field: &'static str, value: impl ToString, allowed: &'static str) -> Result<T> {
    Err(Error::Config { field, value: value.to_string(), allowed })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused_field(config: StoreConfig) -> &'static str {
        match config.validate() {
            Err(Error::Config { field, .. }) => field,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_index_file_is_one_that_java_can_map() {
        let index = |slots, items| StoreConfig {
            index_slots: slots,
            index_items: items,
            ..StoreConfig::new("d")
        };
        assert!(index(1, 2).validate().is_ok());
        assert_eq!(refused_field(index(0, 2)), "index_slots");
        assert_eq!(refused_field(index(1, 1)), "index_items");
        let most = ((INDEX_FILE_SIZE_MAX - 44) / 20) as u32;
        assert!(index(1, most).validate().is_ok());
        assert_eq!(refused_field(index(1, most + 1)), "index_items");
        assert_eq!(refused_field(index(u32::MAX, u32::MAX)), "index_items");
    }

    #[test]
    fn a_store_is_refused_with_a_retention_that_cannot_be_meant() {
        let config = StoreConfig::new("d").retention(Retention::max_total_bytes(0));
        assert_eq!(refused_field(config), "max_total_bytes");
    }

    #[test]
    fn compatibility_chooses_what_an_older_broker_could_not_read() {
        let config = StoreConfig::new("d");
        assert!(config.log.long_topics);
        let older = config.compatibility(Compatibility::Rocketmq49);
        assert!(!older.log.long_topics && older.zlib_only);
        let newer = older.compatibility(Compatibility::Rocketmq5);
        assert!(newer.log.long_topics && !newer.zlib_only);
    }
}
