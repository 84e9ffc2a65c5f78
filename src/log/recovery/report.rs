//! What recovery found and did, as values.

use crate::error::Corruption;
use crate::log::group_offsets::ClampedOffset;
use std::path::PathBuf;

/// What recovery found and did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RecoveryReport {
    /// The log was not closed in order.
    pub unclean: bool,
    /// There was no checkpoint of this crate: another program wrote the log.
    pub foreign: bool,
    /// Physical offset at which scanning began: the durable offset known before.
    pub scanned_from: u64,
    /// Bytes of valid records found from there on.
    pub scanned_bytes: u64,
    /// Their number.
    pub scanned_records: u64,
    /// Bytes that were written and synced again.
    pub rewritten_bytes: u64,
    /// Where the log was cut, if bytes had to go; where it ends for a reader, if it was opened
    /// read-only: then they are still there.
    pub cut: Option<Cut>,
    /// A cut that an earlier recovery had begun was finished at this offset.
    pub finished_cut: Option<u64>,
    /// Damaged stretches that [`RecoveryMode::Salvage`](crate::RecoveryMode::Salvage) stepped over.
    pub salvaged: Vec<Hole>,
    /// Names in `commitlog/` that are no segments; they were left alone.
    pub ignored: Vec<String>,
    /// Messages whose queue entries were written again.
    pub redispatched_records: u64,
    /// Why the table of the queues was not believed, if there was one: they were rebuilt from the whole
    /// log, as they are where there is none.
    pub queues_rebuilt: Option<String>,
    /// Consumer groups that were farther than a queue is now, and were taken back to its end: nothing that
    /// is put from here on is passed over.
    pub clamped_offsets: Vec<ClampedOffset>,
    /// Offsets of consumer groups that were taken over from `consumerOffset.json`, because a broker wrote it
    /// since.
    pub imported_offsets: usize,
    /// Why `consumerOffset.json` was not looked at, if it cannot be read.
    pub offsets_not_imported: Option<String>,
    /// Rows of consumer offsets that cannot be read: the groups concerned are thought to be new.
    pub damaged_offsets: usize,
}

impl RecoveryReport {
    /// Bytes that were cut off, without the zeros that end them: [`Cut::bytes`], or 0.
    pub fn cut_bytes(&self) -> u64 {
        self.cut.as_ref().map_or(0, |cut| cut.bytes)
    }
}

/// The end of the log, where bytes that are no record lay behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Cut {
    /// Physical offset of the first byte cut.
    pub offset: u64,
    /// Bytes from there to the last one that was not zero.
    pub bytes: u64,
    /// Why the bytes at `offset` are no record.
    pub what: Corruption,
    /// Physical offset of the first valid record among the bytes: damage rather than a torn tail.
    pub next_valid: Option<u64>,
    /// Copies of the cut bytes, made because a valid record lay among them.
    pub copies: Vec<PathBuf>,
}

/// A damaged stretch with valid records behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Hole {
    /// Physical offset of its first byte.
    pub offset: u64,
    /// Its length in bytes.
    pub bytes: u64,
    /// What is wrong with it.
    pub what: Corruption,
    /// A copy of its bytes; none where they were left as they are: below the durable offset, or in a log
    /// that was opened read-only.
    pub copy: Option<PathBuf>,
}
