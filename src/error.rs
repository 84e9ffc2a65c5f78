//! Everything that can go wrong, as values a caller can match on.

use crate::message::Compression;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fmt, io};

/// The result of a fallible call, unless it names an error of its own.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What the operating system was asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum IoOp {
    /// Opening a file or directory.
    Open,
    /// Creating a file, a directory or a thread; the path is then the name of the thread.
    Create,
    /// Reserving disk blocks.
    Allocate,
    /// Reading.
    Read,
    /// Writing.
    Write,
    /// Making a file durable.
    Sync,
    /// Making a directory's entries durable.
    SyncDir,
    /// Mapping a file into memory.
    Map,
    /// Giving a file another name.
    Rename,
    /// Deleting a file.
    Remove,
    /// Listing a directory.
    List,
    /// Zeroing a range of a file.
    Zero,
    /// Taking the store's lock.
    Lock,
}

/// What is wrong with bytes that should have been a record, or with the files that should hold it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Corruption {
    /// The bytes end before the record does.
    Truncated {
        /// Bytes the record claims.
        needed: u64,
        /// Bytes that are there.
        available: u64,
    },
    /// The magic code is none that RocketMQ writes; all zeros where nothing was ever written.
    Magic {
        /// The four bytes found.
        found: u32,
    },
    /// A length field contradicts the others.
    Length {
        /// The field that does not fit.
        field: &'static str,
        /// Its value.
        value: i64,
    },
    /// The body does not match its checksum.
    BodyCrc {
        /// The checksum in the record.
        stored: u32,
        /// The checksum of the body.
        computed: u32,
    },
    /// The record does not match its `__CRC32#` property.
    RecordCrc {
        /// The checksum in the record.
        stored: u32,
        /// The checksum of the record.
        computed: u32,
    },
    /// The record has no `__CRC32#` property though this store wrote one.
    RecordCrcMissing,
    /// The physical offset in the record is not where the record lies.
    Offset {
        /// The offset the record claims.
        stored: i64,
        /// The offset at which it was found.
        actual: u64,
    },
    /// The topic is not valid UTF-8.
    Topic,
    /// A queue entry and the record it points to disagree.
    QueueEntry,
    /// A file of a sequence is missing.
    Gap {
        /// The last file before the gap.
        before: PathBuf,
        /// The first file behind it.
        after: PathBuf,
    },
    /// Files at the end of the log are missing.
    Missing {
        /// Everything before this physical offset was durable.
        durable: u64,
        /// Where the files that are there end.
        end: u64,
    },
    /// A file does not have the size of its neighbours.
    FileSize {
        /// Its size in bytes.
        found: u64,
        /// The size it should have.
        expected: u64,
    },
    /// A valid record lies behind a damaged one: rot rather than a torn tail.
    SuspectedRot {
        /// Physical offset of the first valid record behind the damage.
        next_valid: u64,
    },
    /// One of RocketMQ's tables is not JSON, or not the JSON that belongs there, and no backup helps.
    Json {
        /// What is wrong.
        what: String,
    },
    /// A file of duralog's own fails its checksum or has an unknown layout.
    StateFile {
        /// What does not fit.
        what: &'static str,
    },
}

/// What a message may not be.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum InvalidMessage {
    /// The topic is empty.
    EmptyTopic,
    /// The topic holds a character outside `[%|a-zA-Z0-9_-]`.
    TopicCharacter {
        /// The first such character.
        found: char,
    },
    /// A property name or value is empty, or holds the bytes 0x01 or 0x02.
    Property {
        /// The name of the property.
        name: String,
    },
    /// The queue id is negative or not below the number of queues allowed.
    QueueId {
        /// The queue id asked for.
        queue_id: i32,
        /// Queue ids allowed are below this.
        limit: i32,
    },
    /// The messages of a batch do not share one topic and queue.
    MixedBatch,
    /// A batch without messages.
    EmptyBatch,
    /// The draft was made for a log with another layout of records.
    ForeignDraft,
    /// A property that says when a message is to be delivered is no number.
    DeliveryTime {
        /// What it says.
        value: String,
    },
    /// A message is to be delivered later than a message may be.
    DelayTooLong {
        /// How far ahead, in milliseconds.
        delay_ms: i64,
        /// How far ahead it may be, in milliseconds.
        max_ms: i64,
    },
    /// The topic is one that the store or a broker keeps for itself, which no transaction ends in.
    SystemTopic {
        /// The topic.
        topic: String,
    },
    /// A half message asks for delivery to be delayed: a transaction cannot be.
    DelayedTransaction,
    /// A message with a time of its own has the property `TIMER_DEL_UNIQKEY`: waiting, it would be one that cancels
    /// another, and never come. [`Store::cancel_delayed`](crate::Store::cancel_delayed) cancels.
    Cancellation,
    /// The queue has no offset left: a record of another program claims one near the largest there
    /// can be. Use another queue.
    QueueFull {
        /// The queue id.
        queue_id: i32,
    },
}

/// Why an expression is no filter, see `SqlFilter` (feature `sql92`). Positions are in bytes, counted from 0.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum InvalidFilter {
    /// The expression is too long.
    TooLong {
        /// Its length in bytes.
        len: usize,
        /// The limit in bytes.
        max: usize,
    },
    /// Parentheses stand in more of them than are allowed.
    TooDeep {
        /// Where the first one stands that is too many.
        at: usize,
        /// How deep they may be.
        max: usize,
    },
    /// Something stands where it may not.
    Unexpected {
        /// Where it begins.
        at: usize,
        /// What stands there, shortened if it is long; empty where the expression ends too early.
        found: String,
        /// What may stand there.
        expected: &'static str,
    },
}

/// Why a body cannot be compressed or decompressed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum CodecError {
    /// This build of duralog has not the feature that it takes.
    Missing {
        /// The feature of the crate.
        feature: &'static str,
    },
    /// RocketMQ has given the type in the record no meaning, or a newer one has.
    Unknown,
    /// The store is one of [`zlib_only`](crate::StoreConfig::zlib_only).
    NotZlib,
    /// More bytes come out than are allowed.
    TooLong {
        /// Bytes allowed.
        max: usize,
    },
    /// The bytes are not what the codec makes, or end too early.
    Malformed {
        /// What the codec says.
        what: String,
    },
}

/// An operation failed. Each variant says what state it left behind.
///
/// Errors are cheap to clone: one failed sync answers every waiter with the same error.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused an operation. As the error of a put: nothing was stored.
    Io {
        /// What was attempted.
        op: IoOp,
        /// On which path.
        path: PathBuf,
        /// At which offset of that file, where there is one.
        offset: Option<u64>,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// No room for the next file. What is stored is untouched and readable; writing resumes by
    /// itself when there is room again.
    DiskFull {
        /// The file that could not be allocated.
        path: PathBuf,
        /// Bytes asked for.
        needed: u64,
        /// Bytes the file system had left, where it says.
        available: Option<u64>,
    },
    /// Stored bytes fail verification. Nothing was changed.
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Offset inside that file.
        offset: u64,
        /// What is wrong.
        what: Corruption,
    },
    /// A newer version of this crate wrote the store. Nothing was changed.
    UnknownFormat {
        /// The file that says so.
        path: PathBuf,
        /// What it says.
        found: String,
    },
    /// A write or sync failed earlier, so no further put is accepted: not stored. Reads of durable
    /// data go on. Close and reopen the store to continue.
    Latched {
        /// The failure that latched the store.
        first: Arc<Error>,
    },
    /// The message got its place, then a write or sync failed: it may or may not be stored. The
    /// store is latched. After reopening, a read at `physical_offset` tells.
    Unknown {
        /// Where the message lies if it is stored.
        physical_offset: u64,
        /// The failure.
        first: Arc<Error>,
    },
    /// The end of this log is to be cut off, because another one was chosen: it takes nothing more. The
    /// next open cuts and goes on. See
    /// [`ReplicatedLog::truncate`](crate::replication::ReplicatedLog::truncate).
    Retired {
        /// Physical offset of the cut.
        cut: u64,
    },
    /// A message, or one part of it, is over its limit. Nothing was stored.
    TooLarge {
        /// The part: `body`, `topic`, `properties`, `record` or `batch`; or a `table` of
        /// [`tables`](crate::tables).
        what: &'static str,
        /// Its length in bytes.
        len: usize,
        /// The limit in bytes.
        max: usize,
    },
    /// The message breaks a rule of the format. Nothing was stored.
    InvalidMessage(InvalidMessage),
    /// An expression is no filter. Nothing was changed.
    InvalidFilter(InvalidFilter),
    /// Another store has the directory open, in this process or in another, or a Java broker has.
    Locked {
        /// The lock file.
        path: PathBuf,
        /// The process that holds it, where that can be told.
        pid: Option<u32>,
    },
    /// A snapshot is to go to a directory that holds something. Nothing was changed.
    NotEmpty {
        /// The directory.
        path: PathBuf,
    },
    /// A configuration value is out of range.
    Config {
        /// The field. Those of [`FlushMode`](crate::FlushMode) go by RocketMQ-like names:
        /// `sync_flush_timeout` is `timeout`, `flush_interval` is `interval`, and
        /// `flush_thorough_interval` is `thorough_interval`. `flusher` is none: the commit log has
        /// had one before.
        field: &'static str,
        /// Its value.
        value: String,
        /// What is allowed.
        allowed: &'static str,
    },
    /// `max_in_flight_bytes` wait to be written: at once for `try_submit`, for `put_timeout` for the
    /// others. Nothing was stored.
    Full,
    /// The next segment was not ready before the deadline. Nothing was stored.
    SegmentNotReady {
        /// Physical offset at which the segment begins.
        base_offset: u64,
    },
    /// The replicator refused the put before anything was written: nothing was stored. Or the store
    /// refused the replicator, at open or from a call of
    /// [`ReplicatedLog`](crate::replication::ReplicatedLog), and nothing was changed.
    Refused(crate::replication::Refusal),
    /// A [`PutResult`](crate::PutResult) other than `PutOk` was turned into an error by `ok()`.
    NotOk(crate::store::PutResult),
    /// The store was opened read-only.
    ReadOnly,
    /// The store or log is closed. A put that gets this was not stored.
    Closed,
    /// What was put was not durable in time. Nothing has failed: the sync goes on, later puts are
    /// accepted, and the same call may succeed later.
    FlushTimeout {
        /// Physical offset before which everything is durable.
        durable: u64,
        /// The offset that was asked for.
        wanted: u64,
    },
    /// There is no such topic, and
    /// [`auto_create_topic`](crate::StoreConfig::auto_create_topic) is off. Nothing was stored; create it
    /// with [`Store::create_topic`](crate::Store::create_topic).
    UnknownTopic {
        /// The topic.
        topic: String,
    },
    /// Nobody may put to the topic: it is one that RocketMQ keeps for itself, or what `topics.json` says
    /// of it allows no writing. Nothing was stored.
    TopicNotWritable {
        /// The topic.
        topic: String,
    },
    /// A [`Producer`](crate::delivery::Producer) gave up. What `error` says of the message holds:
    /// [`is_unknown`](Self::is_unknown) tells whether a copy may be stored, which then has this key.
    SendFailed {
        /// How often it was attempted.
        attempts: u32,
        /// The id of the message, the first one's for a batch; [`Store::query`](crate::Store::query)
        /// finds it by that.
        unique_key: String,
        /// Why: what the first attempt met that may have left a copy, or else the last one; of two stores, the
        /// one that leaves more to be hoped for, such as a full disk rather than an unknown topic.
        error: Arc<Error>,
    },
    /// The half message was decided before, the other way. Nothing was stored.
    TransactionDecided {
        /// Whether it was committed; if not, it was rolled back.
        committed: bool,
    },
    /// So many half messages are open that no further one is taken. Nothing was stored.
    TooManyTransactions {
        /// How many may be open.
        max: usize,
    },
    /// A stored half message lacks what it takes to commit it, or holds what no message can have: another
    /// program wrote it. Nothing was changed.
    MalformedHalfMessage {
        /// The property that is missing or wrong.
        property: &'static str,
    },
    /// A stored message that was to be delivered later has expired, or does not say when or where: another
    /// program wrote it. It is passed over.
    NotDeliverable {
        /// The topic that it waited in.
        topic: String,
        /// The queue of that topic.
        queue_id: i32,
        /// Its position in that queue, counted from 0.
        queue_offset: u64,
    },
    /// A half message is not there any more: retention deleted it, or recovery cut it off.
    HalfMessageGone {
        /// Its queue offset.
        queue_offset: u64,
    },
    /// Another producer of this process has the producer group in this store; clone that one.
    ProducerGroupInUse {
        /// The group.
        group: String,
    },
    /// An offset to commit lies behind the end of its queue: messages to come would be passed over. Nothing
    /// was committed.
    OffsetOutOfRange {
        /// The queue offset to commit.
        offset: u64,
        /// The queue offset of the next message to come.
        end: u64,
    },
    /// The offsets of consumer groups were not durable in time. Nothing has failed: the sync goes on.
    OffsetsNotDurable,
    /// A body cannot be compressed or decompressed. What is stored is as it was put.
    Codec {
        /// How the body is or was to be compressed.
        compression: Compression,
        /// What is wrong.
        what: CodecError,
    },
    /// A database of the application's failed, or somebody's implementation upon it. What was to be changed in
    /// it is not changed, unless it says so itself.
    Database {
        /// What it says.
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// A transaction of the application's database was over before its time: the database has rolled it back by
    /// itself, which SQLite does after some errors (`OR ROLLBACK`, a full disk, no memory) and MySQL after a
    /// deadlock, or it was ended from within. Nothing was marked or recorded. What was changed in it is undone;
    /// what was changed since is not.
    RolledBack,
    /// What is to be handled once has an empty key: it would be taken for a copy of all others that have none.
    /// Nothing ran, and nothing was marked.
    EmptyKey,
    /// Somebody else handles what has this key, or did when the process ended; once that is
    /// done, or its time is up, the same call may succeed.
    InProgress {
        /// The key.
        key: String,
    },
    /// Code of the application's panicked where it was called from a thread of this crate.
    Panicked {
        /// What the panic said.
        message: String,
    },
    /// A background thread did not stop in time: it hangs in the operating system, or in a handler of the
    /// application. What was put is as safe as its `PutOk` said; the thread is left behind, and with it the
    /// lock of the store, if it is one of those that write to it.
    CloseTimeout {
        /// The thread's name.
        thread: String,
    },
    /// A background thread panicked. If it was one of the store, that is latched.
    WorkerPanicked {
        /// The thread's name.
        thread: String,
        /// What the panic said.
        message: String,
    },
}

impl Error {
    pub(crate) fn io(op: IoOp, path: &Path, offset: Option<u64>, source: io::Error) -> Self {
        Self::Io { op, path: path.to_owned(), offset, source: Arc::new(source) }
    }

    /// The error of a database, for implementations upon one.
    pub fn database(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Database { source: source.into().into() }
    }

    /// Whether the same call may succeed later: a full disk that has room again, bytes in flight that
    /// are written, a segment that is ready, a replicator that takes puts again, a sync that ends.
    pub fn is_retryable(&self) -> bool {
        matches!(
            self.cause(),
            Self::DiskFull { .. }
                | Self::Full
                | Self::SegmentNotReady { .. }
                | Self::Refused(_)
                | Self::FlushTimeout { .. }
                | Self::OffsetsNotDurable
                | Self::TooManyTransactions { .. }
                | Self::InProgress { .. }
        )
    }

    /// Whether the message of the failed put may be stored nonetheless.
    pub fn is_unknown(&self) -> bool {
        matches!(self.cause(), Self::Unknown { .. } | Self::NotOk(_))
    }

    /// What a [`SendFailed`](Self::SendFailed) is about; any other error itself.
    pub fn cause(&self) -> &Self {
        match self {
            Self::SendFailed { error, .. } => error.cause(),
            other => other,
        }
    }
}

#[cfg(feature = "rusqlite")]
impl From<rusqlite::Error> for Error {
    fn from(error: rusqlite::Error) -> Self {
        Self::database(error)
    }
}

/// Attaches the operation, path and offset to an `io::Error`.
pub(crate) trait IoContext<T> {
    fn at(self, op: IoOp, path: &Path) -> Result<T>;
    fn at_offset(self, op: IoOp, path: &Path, offset: u64) -> Result<T>;
}

impl<T> IoContext<T> for io::Result<T> {
    fn at(self, op: IoOp, path: &Path) -> Result<T> {
        self.map_err(|e| Error::io(op, path, None, e))
    }

    fn at_offset(self, op: IoOp, path: &Path, offset: u64) -> Result<T> {
        self.map_err(|e| Error::io(op, path, Some(offset), e))
    }
}

impl fmt::Display for IoOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Open => "open",
            Self::Create => "create",
            Self::Allocate => "allocate",
            Self::Read => "read",
            Self::Write => "write",
            Self::Sync => "sync",
            Self::SyncDir => "sync directory",
            Self::Map => "map",
            Self::Rename => "rename",
            Self::Remove => "remove",
            Self::List => "list",
            Self::Zero => "zero",
            Self::Lock => "lock",
        })
    }
}

impl fmt::Display for Corruption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated { needed, available } => {
                write!(f, "record of {needed} bytes, but only {available} are there")
            }
            Self::Magic { found } => write!(f, "unknown magic code {found:#010x}"),
            Self::Length { field, value } => write!(f, "{field} of {value} does not fit"),
            Self::BodyCrc { stored, computed } => {
                write!(f, "body checksum {computed:#010x}, but {stored:#010x} is stored")
            }
            Self::RecordCrc { stored, computed } => {
                write!(f, "record checksum {computed:#010x}, but {stored:#010x} is stored")
            }
            Self::RecordCrcMissing => f.write_str("record checksum is missing"),
            Self::Offset { stored, actual } => {
                write!(f, "record claims physical offset {stored} but lies at {actual}")
            }
            Self::Topic => f.write_str("topic is not UTF-8"),
            Self::QueueEntry => f.write_str("queue entry and record disagree"),
            Self::Gap { before, after } => {
                write!(f, "files are missing between {} and {}", before.display(), after.display())
            }
            Self::Missing { durable, end } => write!(
                f,
                "everything before physical offset {durable} was durable, but the files end at {end}"
            ),
            Self::FileSize { found, expected } => {
                write!(f, "file of {found} bytes where {expected} are expected")
            }
            Self::SuspectedRot { next_valid } => {
                write!(f, "damaged record, yet a valid one follows at physical offset {next_valid}")
            }
            Self::Json { what } => f.write_str(what),
            Self::StateFile { what } => write!(f, "duralog's own file is damaged: {what}"),
        }
    }
}

impl fmt::Display for InvalidMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EmptyTopic => f.write_str("the topic is empty"),
            Self::TopicCharacter { found } => {
                write!(f, "the topic holds {found:?}; allowed are letters, digits, %, |, _ and -")
            }
            Self::Property { name } => {
                write!(
                    f,
                    "property {name:?} has an empty name or value, or one that holds the bytes 1 or 2"
                )
            }
            Self::QueueId { queue_id, limit } => match *limit {
                i32::MAX => write!(f, "queue id {queue_id} is negative"),
                _ => write!(f, "queue id {queue_id} is not in 0..{limit}"),
            },
            Self::MixedBatch => f.write_str("the messages of a batch must share topic and queue"),
            Self::EmptyBatch => f.write_str("a batch needs at least one message"),
            Self::ForeignDraft => f.write_str("the draft was made for the layout of another log"),
            Self::DeliveryTime { value } => {
                write!(f, "{value:?} is no time of delivery: give milliseconds as a number")
            }
            Self::DelayTooLong { delay_ms, max_ms } => {
                write!(f, "delivery in {delay_ms} ms is too far ahead, {max_ms} ms are the most")
            }
            Self::SystemTopic { topic } => {
                write!(f, "{topic} is kept by the store itself; use a topic of your own")
            }
            Self::DelayedTransaction => f.write_str(
                "a half message cannot be delayed; remove DELAY and TIMER_* from its properties",
            ),
            Self::Cancellation => f.write_str(
                "a message with a time of its own may not have TIMER_DEL_UNIQKEY, it would never come: cancel with \
                 `cancel_delayed`",
            ),
            Self::QueueFull { queue_id } => {
                write!(f, "queue {queue_id} has no offset left, use another queue")
            }
        }
    }
}

impl fmt::Display for InvalidFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong { len, max } => write!(f, "{len} bytes are over the limit of {max}"),
            Self::TooDeep { at, max } => {
                write!(f, "at byte {at}: more than {max} parentheses in each other")
            }
            Self::Unexpected { at, found, expected } if found.is_empty() => {
                write!(f, "at byte {at}: it ends where {expected} must stand")
            }
            Self::Unexpected { at, found, expected } => {
                write!(f, "at byte {at}: {found:?} stands where {expected} must stand")
            }
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io { op, path, offset: Some(offset), source } => {
                write!(f, "cannot {op} {} at {offset}: {source}", path.display())
            }
            Self::Io { op, path, offset: None, source } => {
                write!(f, "cannot {op} {}: {source}", path.display())
            }
            Self::DiskFull { path, needed, available } => {
                write!(f, "no room for {needed} bytes of {}", path.display())?;
                if let Some(available) = available {
                    write!(f, " ({available} left)")?;
                }
                f.write_str("; free some space, or use smaller segments (`segment_size`)")
            }
            Self::Corrupt { path, offset, what } => {
                write!(f, "{} is corrupt at {offset}: {what}", path.display())?;
                match what {
                    Corruption::Gap { .. } | Corruption::FileSize { .. } => Ok(()),
                    Corruption::QueueEntry => {
                        f.write_str("; reopen the store to rebuild its queues")
                    }
                    Corruption::Json { .. } => {
                        f.write_str("; there is no usable backup, mend the file or remove it")
                    }
                    _ => f.write_str("; `RecoveryMode::Salvage` keeps what is whole"),
                }
            }
            Self::UnknownFormat { path, found } => write!(
                f,
                "{} says {found:?}: a newer duralog wrote this store, open it with that one",
                path.display()
            ),
            Self::Latched { first } => {
                write!(f, "nothing is written after an earlier failure, reopen the store: {first}")
            }
            Self::Unknown { physical_offset, first } => write!(
                f,
                "whether the message at physical offset {physical_offset} is stored is unknown, reopen \
                 the store and look there: {first}"
            ),
            Self::TooLarge { what, len, max } => {
                write!(f, "{what} of {len} bytes is over the limit of {max}")?;
                f.write_str(match *what {
                    "body" => " (`max_message_size`)",
                    "record" | "batch" => " (what fits in one segment: `segment_size`)",
                    _ => "",
                })
            }
            Self::InvalidMessage(what) => write!(f, "invalid message: {what}"),
            Self::InvalidFilter(what) => write!(f, "invalid filter: {what}"),
            Self::Locked { path, pid: Some(pid) } if *pid == std::process::id() => {
                let path = path.display();
                write!(f, "{path} is held by this process ({pid}); one store at a time")
            }
            Self::Locked { path, pid: Some(pid) } => {
                write!(f, "{} is held by process {pid}; one store at a time", path.display())
            }
            Self::Locked { path, pid: None } => {
                write!(f, "{} is held by someone else; one store at a time", path.display())
            }
            Self::Config { field, value, allowed } => {
                write!(f, "{field} is {value}, but must be {allowed}")
            }
            Self::NotEmpty { path } => {
                let path = path.display();
                write!(f, "{path} is not empty; a snapshot goes to a directory of its own")
            }
            Self::Full => f.write_str(
                "`max_in_flight_bytes` wait for the disk already; try again when some are written",
            ),
            Self::SegmentNotReady { base_offset } => {
                write!(
                    f,
                    "the segment at {base_offset} was not ready in time; the disk is slow, try again"
                )
            }
            Self::Refused(why) => write!(f, "refused: {why}"),
            Self::Retired { cut } => {
                write!(f, "the log is to be cut at {cut} to follow another one; open it again")
            }
            Self::NotOk(result) => {
                write!(f, "put ended as {:?}, reached {:?}", result.status, result.reached)
            }
            Self::ReadOnly => f.write_str("the store was opened read-only"),
            Self::Closed => f.write_str("the store is closed, or what was opened on it"),
            Self::UnknownTopic { topic } => {
                write!(f, "there is no topic {topic:?}, and topics are not created by puts here")
            }
            Self::TopicNotWritable { topic } => write!(
                f,
                "nobody may put to topic {topic:?}: RocketMQ keeps it for itself, or its `perm` in \
                 topics.json forbids it"
            ),
            Self::SendFailed { attempts: 1, unique_key, error } => {
                write!(f, "message {unique_key} was not sent: {error}")
            }
            Self::SendFailed { attempts, unique_key, error } => {
                write!(f, "message {unique_key} was not sent in {attempts} attempts: {error}")
            }
            Self::TransactionDecided { committed } => {
                let decided = if *committed { "committed" } else { "rolled back" };
                write!(f, "the transaction was {decided} before, which cannot be taken back")
            }
            Self::TooManyTransactions { max } => write!(
                f,
                "{max} half messages are open (`max_open_transactions`); commit or roll back some, or let \
                 a producer of their group open that checks them"
            ),
            Self::MalformedHalfMessage { property } => {
                write!(f, "the half message has no {property} that could be used")
            }
            Self::NotDeliverable { topic, queue_id, queue_offset } => write!(
                f,
                "message {queue_offset} of queue {queue_id} of {topic}, which was to be delivered later, \
                 has expired, or does not say when or where; it is passed over"
            ),
            Self::HalfMessageGone { queue_offset } => {
                write!(f, "the half message at queue offset {queue_offset} is not there any more")
            }
            Self::ProducerGroupInUse { group } => write!(
                f,
                "there is a transactional producer of group {group:?} already; clone it or name another one"
            ),
            Self::OffsetOutOfRange { offset, end } => write!(
                f,
                "the queue ends at {end}: committing {offset} would pass over messages to come"
            ),
            Self::OffsetsNotDurable => f.write_str(
                "the committed offsets are not durable yet; the disk is slow, the sync goes on",
            ),
            Self::FlushTimeout { durable, wanted } => write!(
                f,
                "only the bytes before {durable} are durable yet, not those before {wanted}; the disk \
                 is slow, the sync goes on"
            ),
            Self::Codec { compression, what } => match what {
                CodecError::Missing { feature } => write!(
                    f,
                    "{compression:?} takes the feature `{feature}` of duralog, which this build lacks"
                ),
                CodecError::Unknown => write!(f, "compression {compression:?} is not known"),
                CodecError::NotZlib => {
                    write!(
                        f,
                        "{compression:?} is refused: this store is to hold bodies of zlib's alone"
                    )
                }
                CodecError::TooLong { max } => {
                    write!(f, "the {compression:?} body holds more than the {max} bytes allowed")
                }
                CodecError::Malformed { what } => write!(f, "no {compression:?} body: {what}"),
            },
            Self::Database { source } => write!(f, "the database failed: {source}"),
            Self::RolledBack => f.write_str(
                "the transaction was over before its time, most likely rolled back by the database after an error \
                 that nobody looked at: nothing was marked or recorded; pass on what statements fail with, and \
                 begin a new one",
            ),
            Self::EmptyKey => f.write_str(
                "an empty key, which would make copies of each other of all messages that have none: give it one \
                 when it is sent, or take what else tells it from others",
            ),
            Self::InProgress { key } => {
                write!(f, "somebody else is at {key:?}, try again later")
            }
            Self::Panicked { message } => {
                write!(f, "a function of the application panicked: {message}")
            }
            Self::CloseTimeout { thread } => {
                write!(
                    f,
                    "thread {thread} did not end within `close_timeout` and was left behind; if it writes \
                     to the store, that stays locked until it does or the process ends"
                )
            }
            Self::WorkerPanicked { thread, message } => {
                write!(f, "thread {thread} panicked: {message}")
            }
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { source, .. } => Some(&**source),
            Self::Latched { first } | Self::Unknown { first, .. } => Some(&**first),
            Self::SendFailed { error, .. } => Some(&**error),
            Self::Database { source } => Some(&**source),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_holds_the_lock_is_told_apart() {
        let held_by = |pid| Error::Locked { path: PathBuf::from("/s/lock"), pid }.to_string();
        let own = std::process::id();
        let this = format!("/s/lock is held by this process ({own}); one store at a time");
        assert_eq!(held_by(Some(own)), this);
        let other = format!("/s/lock is held by process {}; one store at a time", own + 1);
        assert_eq!(held_by(Some(own + 1)), other);
        assert_eq!(held_by(None), "/s/lock is held by someone else; one store at a time");
    }
}
