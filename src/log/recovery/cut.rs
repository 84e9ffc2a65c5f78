//! Taking out of the log what is no record, for good.

use super::super::checkpoint::CheckpointFile;
use super::super::directory::{refused, remove_if_there, write_failed};
use super::super::epochs::{self, Epochs};
use super::super::segment::file_name;
use super::super::{key_index, queue_starts, queue_table};
use super::tail::Tail;
use super::{Cut, DATA_STEP, Hole, Recovery, STEP};
use crate::config::RecoveryMode;
use crate::disk::{Allocation, DiskFile, SyncMethod};
use crate::error::{Corruption, Error, IoContext, IoOp, Result};
use crate::message::{self, RecordCheck};
use std::path::PathBuf;

impl Recovery<'_> {
    /// Cuts the log at `at`, unless there is nothing behind it.
    pub(super) fn cut(
        &mut self,
        file: &CheckpointFile,
        at: u64,
        what: Corruption,
        tail: &Tail,
        copy: bool,
    ) -> Result<()> {
        let bytes = tail.data_end.saturating_sub(at);
        let beyond: Vec<_> = self.bases.iter().copied().filter(|base| *base > at).collect();
        let mut copies = Vec::new();
        if copy && !self.config.read_only {
            copies = self.copy_tail(at, tail.data_end)?;
        }
        if bytes > 0 {
            let next_valid = tail.next_valid;
            self.report.cut = Some(Cut { offset: at, bytes, what, next_valid, copies });
        }
        self.bases.retain(|base| *base <= at);
        if self.config.read_only || (bytes == 0 && beyond.is_empty()) {
            return Ok(());
        }
        self.carry_out_cut(file, at, &beyond)
    }

    /// The durable cut: recorded first, so that a crash in the middle cannot leave half of it.
    pub(super) fn carry_out_cut(
        &mut self,
        file: &CheckpointFile,
        at: u64,
        beyond: &[u64],
    ) -> Result<()> {
        let dir = self.directory.commitlog();
        let mut cutting = self.checkpoint.clone();
        cutting.cut = Some(at);
        cutting.durable = cutting.durable.min(at);
        cutting.clean = false;
        cutting.segment_size = self.size;
        file.update(true, |checkpoint| *checkpoint = cutting.clone())?;
        let base = self.segment_of(at);
        if self.bases.contains(&base) && self.checkpoint.shared {
            self.replace_segment(base, at)?;
        } else if self.bases.contains(&base) {
            let (segment, path) = self.open(base)?;
            if !canary!("stale_tail") {
                let end = if canary!("one_header_zeroed") {
                    (at - base + 8).min(self.size)
                } else {
                    self.size
                };
                if self.report.finished_cut.is_some() {
                    overwrite(&*segment, at - base..end).at_offset(IoOp::Zero, &path, at - base)?;
                }
                segment.zero(at - base..end).at_offset(IoOp::Zero, &path, at - base)?;
                if !canary!("cut_sync") {
                    segment.sync(SyncMethod::Fdatasync).at(IoOp::Sync, &path)?;
                }
            }
        }
        for base in beyond.iter().rev() {
            remove_if_there(self.disk, &dir.join(file_name(*base)))?;
        }
        if !canary!("cut_dir_sync") {
            self.disk.sync_dir(dir).at(IoOp::SyncDir, dir)?;
        }
        if cutting.restarts {
            self.replace_segment(base, at)?;
            cutting.durable = at;
            match queue_starts::take_effect(self.disk, self.directory, at) {
                Err(Error::Corrupt { .. })
                    if self.config.recovery_mode == RecoveryMode::Salvage => {}
                taken => taken?,
            }
        }
        // What is derived of the log must not vouch for what is cut: offsets behind the cut are given
        // out again. What cannot be read now is thrown away by who opens it, as it is ahead of the log;
        // but nobody would notice the queues of another history that ended before this one begins.
        let queued = || queue_table::saved_offset(self.disk, self.directory.duralog());
        if cutting.restarts || queued().is_some_and(|queued| queued > at) {
            self.forget(queue_table::NAME)?;
        }
        if key_index::saved_offset(self.disk, self.directory.duralog()).is_some_and(|o| o > at) {
            self.forget(key_index::STATE_NAME)?;
        }
        // Nor must an epoch come back that began behind the cut, once the log has grown again.
        let epochs = Epochs::read(self.disk, self.directory.duralog())?.unwrap_or_default();
        let mut kept = epochs.clone();
        if cutting.restarts {
            kept.leave(0);
        } else {
            // One that begins right there stays: this node has vouched in it for all that comes before.
            kept.end_at(at);
        }
        if kept != epochs {
            self.directory.save(self.disk, epochs::NAME, &kept.encode())?;
        }
        self.names_durable = true;
        (cutting.cut, cutting.restarts, cutting.shared) = (None, false, false);
        file.update(true, |checkpoint| *checkpoint = cutting.clone())?;
        self.checkpoint = cutting;
        Ok(())
    }

    /// Gives the segment at `base` a new file, which holds what lies before `at`, and zeros.
    fn replace_segment(&self, base: u64, at: u64) -> Result<()> {
        let (name, dir) = (file_name(base), self.directory.commitlog());
        let temporary = self.directory.temporary(&name);
        remove_if_there(self.disk, &temporary)?;
        let made = self.disk.create(&temporary, self.size, Allocation::Reserved);
        let copy = made.map_err(|error| refused(IoOp::Create, &temporary, 0, error))?;
        if at > base {
            let (segment, path) = self.open(base)?;
            let mut bytes = vec![0; STEP.min((at - base) as usize)];
            for from in (0..at - base).step_by(STEP) {
                let piece = bytes.get_mut(..STEP.min((at - base - from) as usize));
                let piece = piece.unwrap_or_default();
                let got = segment.read_at(piece, from).at_offset(IoOp::Read, &path, from)?;
                let read = piece.get(..got).unwrap_or_default();
                copy.write_at(read, from).at_offset(IoOp::Write, &temporary, from)?;
            }
        }
        copy.sync(SyncMethod::Fsync).at(IoOp::Sync, &temporary)?;
        let path = dir.join(name);
        self.disk.rename(&temporary, &path).at(IoOp::Rename, &path)?;
        self.disk.sync_dir(dir).at(IoOp::SyncDir, dir)
    }

    /// Removes a file of `duralog/` for good.
    fn forget(&self, name: &str) -> Result<()> {
        let dir = self.directory.duralog();
        remove_if_there(self.disk, &dir.join(name))?;
        self.disk.sync_dir(dir).at(IoOp::SyncDir, dir)
    }

    /// Copies everything from `at` to `end` to `duralog/cut-<offset>`, a file per segment.
    pub(super) fn copy_tail(&self, at: u64, end: u64) -> Result<Vec<PathBuf>> {
        let mut copies = Vec::new();
        for &base in self.bases.iter().filter(|base| **base + self.size > at && **base < end) {
            copies.push(self.copy(at.max(base), end.min(base + self.size))?);
        }
        Ok(copies)
    }

    /// Copies the bytes from `from` to `to`, which lie in one segment.
    pub(super) fn copy(&self, from: u64, to: u64) -> Result<PathBuf> {
        let base = self.segment_of(from);
        let (segment, path) = self.open(base)?;
        self.directory.keep_copy(self.disk, &format!("cut-{from}"), |copy, copy_path| {
            let mut bytes = vec![0; STEP.min((to - from) as usize)];
            for at in (from..to).step_by(STEP) {
                let piece = bytes.get_mut(..STEP.min((to - at) as usize)).unwrap_or_default();
                let got =
                    segment.read_at(piece, at - base).at_offset(IoOp::Read, &path, at - base)?;
                let read = piece.get(..got).unwrap_or_default();
                copy.write_at(read, at - from).map_err(|e| write_failed(copy_path, got, e))?;
            }
            Ok(())
        })
    }

    /// Where reading goes on after the hole from `at`.
    pub(super) fn after_hole(&self, at: u64, next_valid: u64) -> u64 {
        let end = self.segment_of(at) + self.size;
        next_valid.min(end)
    }

    /// Replaces the bytes from `at` to `next_valid` by something every reader steps over: a record
    /// that no queue takes, or a blank where the hole reaches the end of the segment. False if the
    /// hole is too small for either.
    pub(super) fn fill_hole(&mut self, at: u64, next_valid: u64, what: Corruption) -> Result<bool> {
        let base = self.segment_of(at);
        let to = self.after_hole(at, next_valid);
        if self.config.read_only {
            self.report.salvaged.push(Hole { offset: at, bytes: to - at, what, copy: None });
            return Ok(true);
        }
        let filler = if to == base + self.size {
            Some(message::blank((to - at) as u32).to_vec())
        } else {
            message::filler(at, (to - at) as usize, self.check_at(at) == RecordCheck::Record)
        };
        let Some(filler) = filler else { return Ok(false) };
        let copy = self.copy(at, to)?;
        let (file, path) = self.open(base)?;
        file.write_at(&filler, at - base).at_offset(IoOp::Write, &path, at - base)?;
        self.report.salvaged.push(Hole { offset: at, bytes: to - at, what, copy: Some(copy) });
        Ok(true)
    }
}

/// Writes zeros over whatever `range` may hold, also where it reads as zeros: a sync that failed may
/// have left them in the page cache alone.
fn overwrite(file: &dyn DiskFile, range: std::ops::Range<u64>) -> std::io::Result<()> {
    let zeros = vec![0; STEP];
    for data in file.data_ranges(range, DATA_STEP)? {
        for at in data.clone().step_by(STEP) {
            let piece = (data.end - at).min(STEP as u64);
            file.write_at(zeros.get(..piece as usize).unwrap_or_default(), at)?;
        }
    }
    Ok(())
}
