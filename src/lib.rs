//! Durable message storage, embedded: RocketMQ's commit log, consume queues and group commit as a
//! library.
//!
//! A message whose [`put`](Store::put) returned [`PutOk`](PutStatus::PutOk) is never lost, never
//! altered and never delivered wrong, whatever crashed: the process in any mode, the machine with sync
//! flush, which is the default.
//!
//! ```
//! use duralog::{Message, Store, StoreConfig, TagFilter};
//!
//! # let dir = std::env::temp_dir().join(format!("duralog-doc-crate-{}", std::process::id()));
//! // Segments of 1 MiB will do here; the default is 1 GiB, reserved from the start.
//! let store = Store::open(StoreConfig::new(&dir).segment_size(1 << 20))?;
//! store.put(Message::new("orders", "paid 42").tag("paid").key("order-42"))?.ok()?;
//! let consumer = store.consumer("billing").subscribe("orders", TagFilter::any()).open()?;
//! for message in consumer.poll(std::time::Duration::from_secs(1))? {
//!     println!("{} {:?}", message.queue_offset(), message.body());
//!     message.ack()?;
//! }
//! store.close()?; // dropping the last handle does the same, best effort
//! # std::fs::remove_dir_all(&dir).unwrap();
//! # Ok::<(), duralog::Error>(())
//! ```
//!
//! # Where to begin
//!
//! * [`Store`] is everything, composed. [`put`](Store::put) and [`put_batch`](Store::put_batch) wait until
//!   a message is as safe as [`StoreConfig`] asks; [`submit`](Store::submit) returns a [`Ticket`] to wait
//!   for later, or to await; [`get`](Store::get) and [`get_view`](Store::get_view) read a queue, and
//!   [`wait_for`](Store::wait_for) blocks until there is something to read.
//! * [`delivery`] stands on top: producers, consumer groups, retries and dead letters, delayed messages,
//!   transactions. It begins with [`Store::producer`] and [`Store::consumer`].
//! * [`log`] has the parts, each usable alone: [`CommitLog`](log::CommitLog) with
//!   [`GroupCommit`](log::GroupCommit) is a write-ahead log, [`Queues`](log::Queues) an index of it.
//! * [`message`] is the codec: what a record looks like, and its checksums.
//! * [`replication`] copies the log to other machines before a put is called safe: `Primary` and `Replica`
//!   (feature `replication`), or whatever implements [`replication::Replicator`].
//! * [`Environment`] is what a store runs on: another disk, another clock, no threads. With
//!   `disk::SimDisk` (feature `sim`) a test cuts the power.
//!
//! # Durability
//!
//! What a `put` that returned `PutOk` survives. Replication is off unless a store is opened as a
//! `replication::Primary`; "durable" and "in memory" say when a replica's copy counts.
//!
//! | flush | replication | this process killed | this machine: OS crash, power cut | this machine lost |
//! |---|---|---|---|---|
//! | async | none | kept | what was put since the last finished sync began may be lost: with a disk that keeps up, `interval` (500 ms; `thorough_interval` if longer) and the time of one sync; never reordered, never with holes | lost |
//! | **sync** (the default) | none | kept | kept | lost |
//! | async | async | kept | as without replication | what the replicas lacked is lost |
//! | sync | async | kept | kept | what the replicas lacked is lost |
//! | async | sync, durable (the default there) | kept | kept on the replicas, from which the primary gets it back | kept on the replicas |
//! | sync | sync, durable | kept | kept | kept on the replicas |
//! | async | sync, in memory | kept | kept on the replicas, unless their power goes, too | kept on the replicas, unless their power goes, too |
//! | sync | sync, in memory | kept | kept | kept on the replicas, unless their power goes, too |
//!
//! A put that asked not to wait (`Message::wait(false)`) is what async flush without replication makes of it
//! for a kill, and promised nothing beyond. `FlushDiskTimeout`, `FlushReplicaTimeout` and
//! `ReplicaNotAvailable` say: kept by a kill iff `reached >= Written`, and not as safe as asked *yet*;
//! unknown until the watermarks of `Store::stats` pass its `end_offset`. `Err`: not stored, except
//! `Error::Unknown`: the message got its place, then a write or sync failed.
//!
//! Every put says how far its message had come, in [`PutResult::reached`]. A failed sync or write
//! *latches* the store: every waiter gets the error, later puts are refused, reads of durable data go
//! on, and reopening is the way out. Readers see only what can no longer vanish, see [`Visibility`];
//! what opening does after a crash, see [`RecoveryMode`]. The fault model stands in the README.
//!
//! # Features
//!
//! * `replication`, off by default: a primary and its replicas over TCP, and RocketMQ's own HA protocol.
//! * `sim`, off by default: what tests need to make things fail. `disk::SimDisk`, a disk in memory that
//!   loses what was not synced; `clock::ManualClock`, a clock that moves only when told to;
//!   `replication::ScriptedReplica` and `ReplicaBehaviour`, a replica that confirms, delays, refuses or
//!   is away.
//! * `rusqlite`, off by default: an outbox and marks in an application's own SQLite database, see
//!   [`delivery::outbox`] and [`delivery::dedup`]. Which SQLite is linked is the application's choice:
//!   `rusqlite-bundled` builds the C library that rusqlite brings.
//! * `sql92`, off by default: consumers that choose messages by their properties, with `SqlFilter`.
//! * `zlib`, `lz4`, `zstd`, off by default: what producers compress large bodies with, and consumers
//!   decompress. The last one builds a C library.

#![deny(missing_docs)]

#[macro_use]
mod canary;
pub mod clock;
pub mod config;
pub mod delivery;
pub mod disk;
mod environment;
pub mod error;
pub mod log;
pub mod message;
pub mod replication;
pub mod store;
mod sync;
pub mod tables;
mod worker;

pub use config::{
    Compatibility, FlushMode, LogConfig, RecoveryMode, Retention, StoreConfig, Threshold,
    Visibility, WriteMode,
};
pub use disk::SyncMethod;
pub use environment::{Environment, Threads};
pub use error::{CodecError, Corruption, Error, InvalidFilter, InvalidMessage, IoOp, Result};
pub use log::{
    ClampedOffset, GroupOffset, MessageView, Reached, RecoveryReport, TimeBound, Watermarks,
};
pub use message::{Message, StoredMessage};
#[cfg(feature = "sql92")]
pub use store::SqlFilter;
pub use store::{
    Acknowledged, FetchStatus, Fetched, Filter, Health, Pinned, PutResult, PutStatus,
    RetentionStats, SnapshotReport, Stats, Store, StoreWorker, TagFilter, Ticket, VerifyReport,
};
pub use worker::Next;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

/// The durability table stands here and in the README in the same words.
///
/// ```
/// let readme = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md"));
/// let page = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/src/lib.rs"));
/// for row in readme.lines().filter(|line| line.starts_with('|')) {
///     assert!(page.contains(&format!("//! {row}\n")), "{row}");
/// }
/// ```
#[cfg(doctest)]
struct DurabilityTable;
