//! Durable message storage, embedded: RocketMQ's store as a library.
//!
//! A message whose [`put`](Store::put) returned [`PutOk`](PutStatus::PutOk) is never lost, never
//! altered and never delivered wrong, whatever crashed: the process in any mode, the machine with sync
//! flush, which is the default.

#![deny(missing_docs)]

pub mod clock;
pub mod config;
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
pub use error::{Corruption, Error, InvalidMessage, IoOp, Result};
pub use log::{MessageView, Reached, RecoveryReport, TimeBound, Watermarks};
pub use message::{Message, StoredMessage};
pub use store::{
    Acknowledged, FetchStatus, Fetched, Health, PutResult, PutStatus, Stats, Store, StoreWorker,
    TagFilter, Ticket, VerifyReport,
};
pub use worker::Next;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
