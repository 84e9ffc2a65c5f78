//! Taking out of the log what is no record, for good.

use super::super::checkpoint::CheckpointFile;
use super::super::directory::{remove_if_there, write_failed};
use super::super::segment::file_name;
use super::tail::Tail;
use super::{Cut, DATA_STEP, Hole, Recovery, STEP};
use crate::disk::{DiskFile, SyncMethod};
use crate::error::{Corruption, IoContext, IoOp, Result};
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
        if self.bases.contains(&base) {
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
        self.names_durable = true;
        cutting.cut = None;
        file.update(true, |checkpoint| *checkpoint = cutting.clone())?;
        self.checkpoint = cutting;
        Ok(())
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
