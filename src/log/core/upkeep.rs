//! What the log needs done beside the puts: the next segment, blocks to write into, and a saved durable
//! offset.

use super::super::directory::remove_if_there;
use super::super::segment::{Segment, file_name};
use super::append::NextSegment;
use super::{Core, access};
use crate::config::WriteMode;
use crate::disk::{Allocation, SyncMethod, is_full};
use crate::error::{Error, IoContext, IoOp, Result};
use crate::worker::Next;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Blocks are written with zeros this far ahead of the records, so that a sync finds no metadata to
/// update.
const PREWRITE_WINDOW: u64 = 32 << 20;
/// One piece of that. A write into a piece under way waits for it.
const PREWRITE_STEP: u64 = 2 << 20;
/// After each piece upkeep rests for so many times as long, to leave the disk to the records.
const PREPARE_REST: u32 = 3;
/// Groups larger than this hide the cost of unprepared blocks; preparing them would cost bandwidth.
const PREWRITE_GROUP_MAX: u64 = 64 << 10;
/// The durable offset is saved when it has moved this far,
const CHECKPOINT_BYTES: u64 = 16 << 20;
/// or this long ago.
const CHECKPOINT_INTERVAL: Duration = Duration::from_millis(200);
/// Mapped pages are touched this far ahead of the records,
const PREFAULT_WINDOW: u64 = 16 << 20;
/// so many bytes at once: for more the page cache takes memory in one piece, see `WRITE_PIECE` of the
/// disk.
const PREFAULT_STEP: u64 = 256 << 10;

impl Core {
    pub(in crate::log) fn upkeep_step(&self) -> Next {
        let _one_at_a_time = self.upkeeping.lock();
        self.upkeep_timer.store(false, Ordering::Release);
        let saved = self.save_durable();
        if self.prepare_next() {
            return Next::Now;
        }
        let started = self.clock.now();
        if self.prepare_blocks() {
            if self.config.write_mode == WriteMode::Mmap {
                return Next::Now;
            }
            let now = self.clock.now();
            return Next::At(now + (now.saturating_duration_since(started)) * PREPARE_REST);
        }
        saved
    }

    /// Makes the next segment if it is time; true if it did something.
    fn prepare_next(&self) -> bool {
        let base = {
            let append = self.append.lock();
            let half = append.segment.base_offset() + self.segment_size / 2;
            let due = match append.next {
                NextSegment::Pending { wanted } => wanted || append.end >= half,
                NextSegment::Ready(_) | NextSegment::Failed(_) => false,
            };
            if !due || append.closed || self.progress.latched().is_some() {
                return false;
            }
            append.segment.end_offset()
        };
        let made = self.create_segment(base);
        let mut append = self.append.lock();
        append.next = match made {
            Ok(segment) => NextSegment::Ready(segment),
            Err(error) => NextSegment::Failed(error),
        };
        drop(append);
        self.changed.notify_all();
        true
    }

    /// Creates a segment under a name that nobody looks for, makes it durable, and only then gives it
    /// its own name: a crash leaves the whole file or none.
    pub(super) fn create_segment(&self, base: u64) -> Result<Arc<Segment>> {
        let size = self.segment_size;
        let temporary = self.directory.temporary(&file_name(base));
        let segment = Segment::new(self.directory.commitlog(), base, size, access(&self.config));
        match self.disk.remove(&temporary) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(e).at(IoOp::Remove, &temporary);
            }
            _ => {}
        }
        let file = self
            .disk
            .create(&temporary, size, Allocation::Reserved)
            .map_err(|error| self.allocation_failed(&temporary, segment.path(), error))?;
        if self.config.write_mode == WriteMode::Pwrite {
            // Costs speed if it fails, nothing else.
            let _ = file.prewrite(0..self.first_piece());
        }
        if !canary!("segment_sync") {
            file.sync(SyncMethod::Fsync).at(IoOp::Sync, &temporary)?;
        }
        self.disk.rename(&temporary, segment.path()).at(IoOp::Rename, segment.path())?;
        let segment = segment.with_file(file);
        let named = self.settle_segment(&segment);
        if named.is_err() {
            // Not to be found by the next open as a segment of this log.
            let _ = self.disk.remove(segment.path());
        }
        named.map(|()| Arc::new(segment))
    }

    /// The error for blocks that could not be had for the file at `path`, the segment at `segment`.
    pub(super) fn allocation_failed(
        &self,
        path: &Path,
        segment: &Path,
        error: std::io::Error,
    ) -> Error {
        if !is_full(error.kind()) {
            return Error::io(IoOp::Allocate, path, None, error);
        }
        let available = self.disk.space(self.directory.root()).ok().map(|space| space.available);
        Error::DiskFull { path: segment.to_owned(), needed: self.segment_size, available }
    }

    fn settle_segment(&self, segment: &Segment) -> Result<()> {
        if !canary!("segment_dir_sync") {
            self.disk
                .sync_dir(self.directory.commitlog())
                .at(IoOp::SyncDir, self.directory.commitlog())?;
        }
        self.region(segment).map(|_| ())
    }

    /// How much of a new segment is prepared before its first use.
    pub(super) fn first_piece(&self) -> u64 {
        match self.config.write_mode {
            WriteMode::Pwrite => PREWRITE_STEP.min(self.segment_size),
            WriteMode::Mmap => 0,
        }
    }

    /// How far ahead of the records blocks or pages are prepared.
    pub(super) fn window(&self) -> u64 {
        match self.config.write_mode {
            WriteMode::Pwrite => PREWRITE_WINDOW,
            WriteMode::Mmap => PREFAULT_WINDOW,
        }
    }

    /// Prepares blocks ahead of the records; true if there may be more to do.
    fn prepare_blocks(&self) -> bool {
        let (segment, piece) = {
            let mut append = self.append.lock();
            if append.closed || self.progress.latched().is_some() {
                return false;
            }
            let mapped = append.writer.is_some();
            let step = if mapped { PREFAULT_STEP } else { PREWRITE_STEP };
            let base = append.segment.base_offset();
            // Whole steps from the segment's start: direct writes need aligned pieces.
            let ahead = (append.end - base).next_multiple_of(step) + base;
            let from = append.prepared.max(ahead);
            let to = (from + step).min(append.segment.end_offset());
            let large = !mapped && self.group_bytes.load(Ordering::Relaxed) > PREWRITE_GROUP_MAX;
            if from >= to || from >= append.end + self.window() || large {
                append.preparing = false;
                return false;
            }
            append.prepared = to;
            if !mapped {
                // Claimed under the append lock: every later append into it finds the claim.
                *self.preparing.lock() = Some(from..to);
            }
            (append.segment.clone(), from..to)
        };
        let inside = piece.start - segment.base_offset()..piece.end - segment.base_offset();
        // A failure costs speed, not safety; if the disk is failing, the write itself will say so.
        if self.config.write_mode == WriteMode::Mmap {
            let _ = self.region(&segment).map(|region| region.prefault(inside));
        } else {
            let _ = segment.file(&*self.disk).map(|file| file.prewrite(inside));
            *self.preparing.lock() = None;
            self.prepared.notify_all();
        }
        true
    }

    /// Where the oldest segment ends, if there are newer ones.
    pub(crate) fn oldest_end(&self) -> Option<u64> {
        match self.segments.all().as_slice() {
            [oldest, _, ..] => Some(oldest.end_offset()),
            _ => None,
        }
    }

    /// Deletes the oldest segment, which ends at `end`, and any that could not be deleted before.
    /// Views of it stay valid, and keep its disk space as long as they are alive.
    ///
    /// One name at a time, each durable before the next: a crash leaves no gap.
    pub(crate) fn remove_oldest(&self, end: u64) -> Result<()> {
        let mut doomed = self.doomed.lock();
        doomed.extend(self.segments.take_first(end).map(|segment| segment.path().to_owned()));
        let dir = self.directory.commitlog();
        while let Some(path) = doomed.first() {
            remove_if_there(&*self.disk, path)?;
            if !canary!("expire_dir_sync") {
                self.disk.sync_dir(dir).at(IoOp::SyncDir, dir)?;
            }
            doomed.remove(0);
        }
        Ok(())
    }

    /// Has upkeep save how far the log has come, unless it is about to look anyway.
    pub(super) fn want_saving(&self) {
        if !self.upkeep_timer.swap(true, Ordering::AcqRel) {
            self.upkeep.ring();
        }
    }

    /// Saves the durable offset, and what of it is confirmed, if it moved far enough or long enough ago.
    fn save_durable(&self) -> Next {
        let durable = if canary!("durable_ahead") {
            self.progress.appended()
        } else {
            self.progress.durable()
        };
        let agreed = self.agreed();
        let saved = self.checkpoint.durable();
        let is_saved = durable <= saved && agreed.min(durable) <= self.checkpoint.confirmed();
        let rolled = self.rolled_since_checkpoint.swap(false, Ordering::AcqRel);
        if is_saved || self.progress.latched().is_some() {
            return Next::Idle;
        }
        let now = self.clock.now();
        let due = self.checkpoint.saved_at().is_none_or(|at| now >= at + CHECKPOINT_INTERVAL);
        if rolled || due || durable.saturating_sub(saved) >= CHECKPOINT_BYTES {
            // A roll forces it to the disk, so that no closed segment is ever in doubt.
            let timestamp = self.append.lock().last_timestamp;
            if let Err(error) = self.checkpoint.save(rolled, now, durable, agreed, timestamp) {
                self.latch(error);
            }
            return Next::Idle;
        }
        self.upkeep_timer.store(true, Ordering::Release);
        Next::At(now + CHECKPOINT_INTERVAL)
    }
}
