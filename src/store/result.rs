//! What a put answers.

use crate::error::{Error, Result};
use crate::log::Reached;
use crate::message::OffsetMessageId;
use std::fmt;

/// How a put ended, in four of RocketMQ's words. What is printed is RocketMQ's spelling.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PutStatus {
    /// The guarantees that were asked for hold: with sync flush, the message survives a power cut; with
    /// async flush, or where it did not wait, the end of the process. Where it waited for replicas,
    /// they have confirmed it.
    PutOk,
    /// Stored, but not durable within `sync_flush_timeout`, or, where it did not wait for that, not in
    /// the page cache within `put_timeout`: it may become so later.
    FlushDiskTimeout,
    /// Stored, but not confirmed by replicas within `sync_replica_timeout`. RocketMQ's
    /// `FLUSH_SLAVE_TIMEOUT`.
    FlushReplicaTimeout,
    /// Stored here, but too few replicas were in reach. None was waited for, but the disk was, as without
    /// replication: [`PutResult::reached`] says how safe it is here. RocketMQ's `SLAVE_NOT_AVAILABLE`.
    ReplicaNotAvailable,
}

impl fmt::Display for PutStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::PutOk => "PUT_OK",
            Self::FlushDiskTimeout => "FLUSH_DISK_TIMEOUT",
            Self::FlushReplicaTimeout => "FLUSH_SLAVE_TIMEOUT",
            Self::ReplicaNotAvailable => "SLAVE_NOT_AVAILABLE",
        })
    }
}

/// Where a message was stored, and how safely.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "only PutOk keeps the promise: look at `status`, or call `ok()?`"]
#[non_exhaustive]
pub struct PutResult {
    /// How the put ended.
    pub status: PutStatus,
    /// How far the message had come when the put ended; all of it, for a batch.
    pub reached: Reached,
    /// The queue.
    pub queue_id: i32,
    /// The message's position in its queue, counted from 0; the first one's, for a batch.
    pub queue_offset: u64,
    /// The physical offset at which it begins, in bytes.
    pub physical_offset: u64,
    /// The physical offset behind it. Whatever lies before that in the log is as safe, or safer.
    pub end_offset: u64,
    /// When it was stored, in milliseconds since 1970. Never falls from one message of the log to the
    /// next, whatever the clock does.
    pub store_timestamp: i64,
    /// RocketMQ's offset message id, made of store host and physical offset.
    pub message_id: OffsetMessageId,
}

impl PutResult {
    /// Where the message lies, if the status is `PutOk`.
    ///
    /// # Errors
    /// [`Error::NotOk`] for any other status: the message is stored, but not as safely as asked.
    pub fn ok(self) -> Result<Acknowledged> {
        let Self { queue_id, queue_offset, physical_offset, end_offset, store_timestamp, .. } =
            self;
        match self.status {
            PutStatus::PutOk => Ok(Acknowledged {
                queue_id,
                queue_offset,
                physical_offset,
                end_offset,
                store_timestamp,
                message_id: self.message_id,
            }),
            _ => Err(Error::NotOk(self)),
        }
    }
}

/// Where a message lies whose put returned `PutOk`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Acknowledged {
    /// The queue.
    pub queue_id: i32,
    /// The message's position in its queue, counted from 0; the first one's, for a batch.
    pub queue_offset: u64,
    /// The physical offset at which it begins, in bytes.
    pub physical_offset: u64,
    /// The physical offset behind it. Whatever lies before that in the log is as safe, or safer.
    pub end_offset: u64,
    /// When it was stored, in milliseconds since 1970. Never falls from one message of the log to the
    /// next, whatever the clock does.
    pub store_timestamp: i64,
    /// RocketMQ's offset message id, made of store host and physical offset.
    pub message_id: OffsetMessageId,
}
