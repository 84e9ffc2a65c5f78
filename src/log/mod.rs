//! The commit log, its durability, and the queues that index it: the parts of a store, each usable
//! alone.
//!
//! [`CommitLog`] takes records and gives them back. [`GroupCommit`] makes it durable for those who wait,
//! [`IntervalFlush`] at intervals; a log has one of them, or is synced by hand. [`Queues`] tell where the
//! messages of a topic and queue id lie in the log, and are rebuilt from it when in doubt.

mod broker_checkpoint;
pub(crate) mod checkpoint;
mod commit_log;
mod consume_queue;
mod core;
pub(crate) mod directory;
mod epochs;
mod file_cache;
mod flusher;
mod group_commit;
mod group_offsets;
mod index_file;
mod interval_flush;
mod key_index;
pub(crate) mod progress;
mod queue_copy;
mod queue_dir;
mod queue_entry;
mod queue_offsets;
pub(crate) mod queue_starts;
mod queue_table;
mod queues;
pub(crate) mod quick_hash;
mod recovery;
mod segment;
mod view;

pub(crate) use broker_checkpoint::{BrokerCheckpoint, BrokerTimes};
pub use checkpoint::Checkpoint;
pub(crate) use commit_log::CLOSE_THREAD;
pub use commit_log::CommitLog;
pub use consume_queue::ConsumeQueue;
pub(crate) use core::{AppendCounts, Core, Located, Reader};
pub use core::{Appended, Patience, Records};
pub use group_commit::GroupCommit;
#[cfg(feature = "replication")]
pub(crate) use group_offsets::NAMES_MAX as OFFSET_NAMES_MAX;
pub use group_offsets::{ClampedOffset, GroupOffset};
pub(crate) use group_offsets::{GroupOffsets, check_names as check_offset_names};
pub use interval_flush::IntervalFlush;
pub use key_index::IndexOptions;
pub(crate) use key_index::{KeyIndex, Left};
pub use progress::{Reached, Watermarks};
pub use queue_dir::{QueueOptions, QueueRepair};
#[cfg(feature = "replication")]
pub(crate) use queue_entry::QUEUE_OFFSET_MAX;
pub use queue_entry::{QueueAppend, QueueEntry, TimeBound};
pub use queues::{QueueTable, Queues};
pub use recovery::{Cut, Hole, RecoveryReport};
pub use view::MessageView;
