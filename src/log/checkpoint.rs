//! What recovery may rely on: the durable offset, a cut under way, and which records carry a
//! checksum of ours.
//!
//! `duralog/checkpoint` holds two slots of one sector each. The one with the last save that was synced
//! is not written to, so that a torn write leaves it. The durable offset in it is a lower bound: it is
//! written after the sync it speaks of, and losing a later one only makes recovery look at more.

use crate::disk::{Allocation, Disk, DiskFile, OpenAccess, SyncMethod};
use crate::error::{IoContext, IoOp, Result};
use parking_lot::Mutex;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

const MAGIC: [u8; 8] = *b"DURALOG1";
const SLOT: usize = 512;
const CHECKSUM_AT: usize = SLOT - 4;
const RANGES_AT: usize = 64;
const RANGES_MAX: usize = (CONFIRMED_AT - RANGES_AT) / 16;
const CONFIRMED_AT: usize = TIMESTAMP_AT - 8;
const TIMESTAMP_AT: usize = CHECKSUM_AT - 12;
const CLEAN: u32 = 1;
const CUTTING: u32 = 2;
/// The cut takes what lies before it, too.
const RESTARTING: u32 = 4;
/// The bytes behind the cut may be mapped: they are not to be changed.
const SHARED: u32 = 8;

/// What `duralog/checkpoint` says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Checkpoint {
    /// Every byte before this physical offset is durable.
    pub durable: u64,
    /// The log was closed with everything durable and zeros behind `durable`.
    pub clean: bool,
    /// A cut at this physical offset was begun, or is to be made: recovery finishes it before anything
    /// else.
    pub cut: Option<u64>,
    /// The cut takes what lies before it, too: the log begins anew there.
    pub restarts: bool,
    /// Views may be alive of what lies behind the cut, or a snapshot may have it: the segment gets a new
    /// file.
    pub shared: bool,
    /// Everything before this physical offset is held by replicas and never taken back; a lower bound.
    /// 0 without replication.
    pub confirmed: u64,
    /// Names the opening of the store that wrote this; as long as it lasts, `abort` names it, too.
    pub owner: u64,
    /// The epoch under which the log was last written; 0 without replication.
    pub epoch: u64,
    /// Size of a segment in bytes.
    pub segment_size: u64,
    /// Store timestamp of the newest record, in milliseconds since the epoch: those to come are not
    /// older, whatever the clock says.
    pub last_timestamp: i64,
    /// Physical offsets at which this crate wrote records with `__CRC32#`: there a record without a
    /// matching one is corrupt. The last range may be open-ended, at `u64::MAX`.
    pub checksummed: Vec<Range<u64>>,
}

/// Takes what lies from `end` on out of the ranges.
pub(super) fn end_ranges(ranges: &mut Vec<Range<u64>>, end: u64) {
    ranges.iter_mut().for_each(|range| range.end = range.end.min(end));
    ranges.retain(|range| !range.is_empty());
}

/// Says of everything from `at` on whether it is in a range, whatever was said before.
pub(super) fn go_on_from(ranges: &mut Vec<Range<u64>>, at: u64, is_in_range: bool) {
    end_ranges(ranges, at);
    if !is_in_range {
        return;
    }
    // Joined with a range that ends here, so that restarts and connections do not use up slots.
    match ranges.last_mut().filter(|last| last.end == at) {
        Some(last) => last.end = u64::MAX,
        None => ranges.push(at..u64::MAX),
    }
}

impl Checkpoint {
    /// Whether the record at `physical_offset` must carry a matching `__CRC32#`.
    pub fn is_checksummed(&self, physical_offset: u64) -> bool {
        self.checksummed.iter().any(|range| range.contains(&physical_offset))
    }

    fn encode(&self, sequence: u64) -> [u8; SLOT] {
        let mut slot = [0; SLOT];
        let flags = [
            (self.clean, CLEAN),
            (self.cut.is_some(), CUTTING),
            (self.restarts, RESTARTING),
            (self.shared, SHARED),
        ];
        let flags = flags.iter().filter(|flag| flag.0).fold(0, |all, flag| all | flag.1);
        // Only the newest ranges fit; forgetting an old one means trusting its body checksums alone.
        let skipped = self.checksummed.len().saturating_sub(RANGES_MAX);
        let ranges = self.checksummed.get(skipped..).unwrap_or_default();
        let mut at = 0;
        let mut put = |field: &[u8]| {
            if let Some(place) = slot.get_mut(at..at + field.len()) {
                place.copy_from_slice(field);
            }
            at += field.len();
        };
        put(&MAGIC);
        for number in [
            sequence,
            self.durable,
            self.cut.unwrap_or(0),
            self.epoch,
            self.segment_size,
            u64::from(flags) << 32 | ranges.len() as u64,
            self.owner,
        ] {
            put(&number.to_be_bytes());
        }
        for range in ranges {
            put(&range.start.to_be_bytes());
            put(&range.end.to_be_bytes());
        }
        slot[CONFIRMED_AT..CONFIRMED_AT + 8].copy_from_slice(&self.confirmed.to_be_bytes());
        slot[TIMESTAMP_AT..TIMESTAMP_AT + 8].copy_from_slice(&self.last_timestamp.to_be_bytes());
        let checksum = crc32fast::hash(&slot[..CHECKSUM_AT]).to_be_bytes();
        slot[CHECKSUM_AT..].copy_from_slice(&checksum);
        slot
    }

    fn decode(slot: &[u8; SLOT]) -> Option<(u64, Self)> {
        let (fields, checksum) = slot.split_last_chunk::<4>()?;
        if crc32fast::hash(fields) != u32::from_be_bytes(*checksum) || !fields.starts_with(&MAGIC) {
            return None;
        }
        let u64_at = |at: usize| fields.get(at..)?.first_chunk().map(|b| u64::from_be_bytes(*b));
        let u32_at = |at: usize| fields.get(at..)?.first_chunk().map(|b| u32::from_be_bytes(*b));
        let flags = u32_at(48)?;
        // One more fitted before there was a place for `confirmed`.
        let count = usize::try_from(u32_at(52)?).ok().filter(|count| *count <= RANGES_MAX + 1)?;
        let ranges =
            (0..count).map(|i| Some(u64_at(RANGES_AT + 16 * i)?..u64_at(RANGES_AT + 16 * i + 8)?));
        let checkpoint = Self {
            durable: u64_at(16)?,
            clean: flags & CLEAN != 0,
            cut: if flags & CUTTING != 0 { Some(u64_at(24)?) } else { None },
            restarts: flags & RESTARTING != 0,
            shared: flags & SHARED != 0,
            confirmed: if count > RANGES_MAX { 0 } else { u64_at(CONFIRMED_AT)? },
            owner: u64_at(56)?,
            epoch: u64_at(32)?,
            segment_size: u64_at(40)?,
            last_timestamp: u64_at(TIMESTAMP_AT)?.cast_signed(),
            checksummed: ranges.collect::<Option<_>>()?,
        };
        Some((u64_at(8)?, checkpoint))
    }
}

/// The file that holds the checkpoint.
#[derive(Debug)]
pub(crate) struct CheckpointFile {
    path: PathBuf,
    damaged: bool,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    file: Option<Arc<dyn DiskFile>>,
    sequence: u64,
    /// Where the slot lies that is not written to.
    kept_at: u64,
    /// What it holds is known to be durable.
    kept_is_durable: bool,
    current: Checkpoint,
    saved_at: Option<Instant>,
}

impl CheckpointFile {
    /// Reads `path`; the checkpoint is `None` where the file is missing or neither slot is valid.
    pub(crate) fn open(
        disk: &dyn Disk,
        path: &Path,
        access: OpenAccess,
    ) -> Result<(Self, Option<Checkpoint>)> {
        let file = match disk.open(path, access) {
            Ok(file) => Some(file),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
            Err(e) => return Err(e).at(IoOp::Open, path),
        };
        let (mut newest, mut kept_at) = (None, SLOT as u64);
        // One slot that cannot be read may be the first write ever, torn; then nothing was promised.
        let mut unreadable = 0;
        for at in [0, SLOT] {
            let mut slot = [0; SLOT];
            let Some(file) = &file else { break };
            file.read_at(&mut slot, at as u64).at_offset(IoOp::Read, path, at as u64)?;
            let found = Checkpoint::decode(&slot);
            unreadable += usize::from(found.is_none() && slot.iter().any(|byte| *byte != 0));
            if found.as_ref().map(|f| f.0) > newest.as_ref().map(|f: &(u64, Checkpoint)| f.0) {
                (newest, kept_at) = (found, at as u64);
            }
        }
        let (sequence, current) = newest.clone().unwrap_or_default();
        let damaged = unreadable == 2;
        let kept_is_durable = newest.is_none();
        let state = State { file, sequence, kept_at, kept_is_durable, current, saved_at: None };
        let state = Mutex::new(state);
        Ok((Self { path: path.to_owned(), damaged, state }, newest.map(|found| found.1)))
    }

    /// Whether something was written, and none of it can be read.
    pub(crate) fn is_damaged(&self) -> bool {
        self.damaged
    }

    /// Creates the file where it is missing. The caller syncs the directory.
    pub(crate) fn ensure(&self, disk: &dyn Disk) -> Result<()> {
        let mut state = self.state.lock();
        if state.file.is_none() {
            let made = disk.create(&self.path, 2 * SLOT as u64, Allocation::Reserved);
            state.file = Some(made.at(IoOp::Create, &self.path)?);
        }
        Ok(())
    }

    pub(crate) fn current(&self) -> Checkpoint {
        self.state.lock().current.clone()
    }

    /// Up to where records are confirmed, as last saved.
    pub(crate) fn confirmed(&self) -> u64 {
        self.state.lock().current.confirmed
    }

    /// Takes `checkpoint` as the current one without writing it, for a log that is only read.
    pub(crate) fn assume(&self, checkpoint: Checkpoint) {
        self.state.lock().current = checkpoint;
    }

    /// When [`save`](Self::save) last wrote.
    pub(crate) fn saved_at(&self) -> Option<Instant> {
        self.state.lock().saved_at
    }

    /// The durable offset as last saved.
    pub(crate) fn durable(&self) -> u64 {
        self.state.lock().current.durable
    }

    /// Saves the durable offset, what of it is confirmed, and the store timestamp of a record at or
    /// behind it.
    pub(crate) fn save(
        &self,
        sync: bool,
        now: Instant,
        durable: u64,
        confirmed: u64,
        timestamp: i64,
    ) -> Result<()> {
        let mut state = self.state.lock();
        let before = state.current.durable;
        // Someone may have vouched for more meanwhile.
        state.current.durable = before.max(durable);
        state.current.confirmed = state.current.confirmed.max(confirmed.min(durable));
        // Too young a timestamp does no harm if the write fails.
        state.current.last_timestamp = state.current.last_timestamp.max(timestamp);
        state.write(&self.path, sync).inspect_err(|_| state.current.durable = before)?;
        state.saved_at = Some(now);
        Ok(())
    }

    /// Changes the checkpoint. Durable on return if `sync`, else some time later.
    pub(crate) fn update(&self, sync: bool, change: impl FnOnce(&mut Checkpoint)) -> Result<()> {
        let mut state = self.state.lock();
        let before = state.current.clone();
        change(&mut state.current);
        state.write(&self.path, sync).inspect_err(|_| state.current = before)
    }
}

impl State {
    /// Writes the current checkpoint into the slot that may be lost.
    fn write(&mut self, path: &Path, sync: bool) -> Result<()> {
        let sequence = self.sequence + 1;
        let at = SLOT as u64 - self.kept_at;
        let Some(file) = &self.file else { return Ok(()) };
        if !self.kept_is_durable {
            // After a kill the newest save may be in the page cache alone.
            file.sync(SyncMethod::Fdatasync).at(IoOp::Sync, path)?;
            self.kept_is_durable = true;
        }
        file.write_at(&self.current.encode(sequence), at).at_offset(IoOp::Write, path, at)?;
        self.sequence = sequence;
        if sync {
            if !canary!("checkpoint_sync") {
                file.sync(SyncMethod::Fdatasync).at(IoOp::Sync, path)?;
            }
            self.kept_at = at;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Checkpoint {
        Checkpoint {
            durable: 123_456,
            clean: true,
            cut: Some(99),
            restarts: true,
            shared: true,
            confirmed: 77,
            owner: 4711,
            epoch: 7,
            segment_size: 4096,
            last_timestamp: 1_700_000_000_000,
            checksummed: vec![0..10, 20..u64::MAX],
        }
    }

    #[test]
    fn ranges_that_go_on_are_one_and_those_that_do_not_end() {
        let mut ranges = vec![0..10, 20..u64::MAX];
        for at in [30, 30, 40] {
            go_on_from(&mut ranges, at, true);
            assert_eq!(ranges, [0..10, 20..u64::MAX]);
        }
        go_on_from(&mut ranges, 50, false);
        assert_eq!(ranges, [0..10, 20..50]);
        go_on_from(&mut ranges, 60, true);
        assert_eq!(ranges, [0..10, 20..50, 60..u64::MAX]);
        go_on_from(&mut ranges, 55, false);
        assert_eq!(ranges, [0..10, 20..50]);
    }

    #[test]
    fn slot_round_trip() {
        assert_eq!(Checkpoint::decode(&sample().encode(5)), Some((5, sample())));
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let slot = sample().encode(5);
        for at in 0..SLOT {
            let mut flipped = slot;
            flipped[at] ^= 0x10;
            assert_eq!(Checkpoint::decode(&flipped), None, "byte {at}");
        }
    }

    #[test]
    fn only_the_newest_ranges_are_kept() {
        let many =
            Checkpoint { checksummed: (0..100).map(|i| 2 * i..2 * i + 1).collect(), ..sample() };
        let (_, kept) = Checkpoint::decode(&many.encode(1)).unwrap();
        assert_eq!(kept.checksummed.last(), Some(&(198..199)));
        assert_eq!(kept.checksummed.len(), RANGES_MAX);
    }
}
