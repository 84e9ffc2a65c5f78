//! Checking records one by one, and writing back what is accepted.

use super::{HEADER, Recovery, STEP};
use crate::disk::DiskFile;
use crate::error::{Corruption, IoContext, IoOp, Result};
use crate::message::{self, Frame, RecordCheck, format};
use std::path::PathBuf;
use std::sync::Arc;

/// A pass over the records, which writes back what it accepted as it goes.
pub(super) struct Scan {
    /// The bytes at hand, of the segment at `base`, from physical offset `start` on.
    bytes: Vec<u8>,
    start: u64,
    base: u64,
    file: Option<(Arc<dyn DiskFile>, PathBuf)>,
    /// Accepted bytes before this offset have been written back, or need not be.
    rewritten: u64,
}

impl Scan {
    pub(super) fn new(from: u64, rewrite_from: u64) -> Self {
        Self { bytes: Vec::new(), start: from, base: u64::MAX, file: None, rewritten: rewrite_from }
    }

    /// Accepts records from `at` on; where it had to stop, and why.
    pub(super) fn run(
        &mut self,
        recovery: &mut Recovery<'_>,
        mut at: u64,
    ) -> Result<(u64, Corruption)> {
        loop {
            let base = recovery.segment_of(at);
            if at >= recovery.cut_at || !recovery.bases.contains(&base) {
                return Ok((at, Corruption::Magic { found: 0 }));
            }
            let remaining = base + recovery.size - at;
            let mut want = HEADER.min(remaining);
            let step = loop {
                let check = recovery.check_at(at);
                let bytes = self.fetch(recovery, base, at, want)?;
                match message::verified_frame(bytes, at, remaining, check) {
                    Ok(Frame::Blank { .. }) => break Ok(None),
                    Ok(Frame::Record(record)) => {
                        recovery.note_record(at, || {
                            check == RecordCheck::Record
                                || record.verify(RecordCheck::Record).is_ok()
                        });
                        break Ok(Some((record.size() as u64, record.store_timestamp())));
                    }
                    Err(Corruption::Truncated { needed, .. })
                        if needed > want && needed <= remaining =>
                    {
                        want = needed;
                    }
                    Err(what) => break Err(what),
                }
            };
            match step {
                Ok(Some((size, timestamp))) => {
                    at += size;
                    recovery.report.scanned_bytes += size;
                    recovery.report.scanned_records += 1;
                    recovery.last_timestamp = recovery.last_timestamp.max(timestamp);
                }
                Ok(None) => {
                    self.write_back(recovery, at + format::BLANK_SIZE as u64)?;
                    at = base + recovery.size;
                    self.rewritten = self.rewritten.max(at);
                }
                Err(what) => return Ok((at, what)),
            }
        }
    }

    /// Bytes from `at` on, at least `want` unless the segment ends.
    fn fetch(
        &mut self,
        recovery: &mut Recovery<'_>,
        base: u64,
        at: u64,
        want: u64,
    ) -> Result<&[u8]> {
        let held = self.base == base
            && at >= self.start
            && at + want <= self.start + self.bytes.len() as u64;
        if !held {
            self.write_back(recovery, at)?;
            if self.base != base {
                self.file = Some(recovery.open(base)?);
                self.base = base;
            }
            let length = (want.max(STEP as u64)).min(base + recovery.size - at) as usize;
            self.bytes.resize(length, 0);
            self.start = at;
            if let Some((file, path)) = &self.file {
                let got = file.read_at(&mut self.bytes, at - base).at_offset(
                    IoOp::Read,
                    path,
                    at - base,
                )?;
                self.bytes.truncate(got);
            }
        }
        Ok(self.bytes.get((at - self.start) as usize..).unwrap_or_default())
    }

    /// Writes the accepted bytes before `upto` back to where they came from.
    fn write_back(&mut self, recovery: &mut Recovery<'_>, upto: u64) -> Result<()> {
        let from = self.rewritten.max(self.start);
        if upto <= from || recovery.config.read_only {
            return Ok(());
        }
        if let Some((file, path)) = &self.file
            && let Some(bytes) =
                self.bytes.get((from - self.start) as usize..(upto - self.start) as usize)
        {
            if !canary!("recovery_rewrite") {
                let at = from - self.base;
                file.write_at(bytes, at).at_offset(IoOp::Write, path, at)?;
            }
            recovery.report.rewritten_bytes += bytes.len() as u64;
            self.rewritten = upto;
        }
        Ok(())
    }

    pub(super) fn finish(&mut self, recovery: &mut Recovery<'_>, end: u64) -> Result<()> {
        self.write_back(recovery, end)
    }
}
