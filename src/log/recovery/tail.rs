//! What lies behind the last valid record: nothing, a torn tail, or records that are still good.

use super::{DATA_STEP, HEADER, Recovery, STEP};
use crate::disk::{DiskFile, last_nonzero};
use crate::error::{Corruption, IoContext, IoOp, Result};
use crate::message::{self, Frame, RecordCheck, RecordRef, format};

/// Bytes that are read to tell whether something behind damage is a record. Messages can be made of
/// what looks like thousands of them, each as long as the segment.
const CANDIDATES_MAX: u64 = 256 << 20;

/// What lies behind the end of the valid records.
pub(super) struct Tail {
    /// Physical offset behind the last byte that is not zero.
    pub(super) data_end: u64,
    pub(super) next_valid: Option<u64>,
    /// `next_valid` was checked to the end.
    pub(super) certain: bool,
}

impl Recovery<'_> {
    /// Whether what is refused at `at` is a whole record that leaves too little room behind it: the file
    /// was longer when that was written, and no size of a segment can be taken from it.
    pub(super) fn is_shortened(&self, at: u64, what: &Corruption) -> Result<bool> {
        if !matches!(what, Corruption::Length { field: "record size", .. }) {
            return Ok(false);
        }
        let remaining = self.segment_of(at) + self.size - at;
        let bytes = self.read_range(at, at + remaining)?;
        let room = remaining + format::BLANK_SIZE as u64;
        let whole = message::verified_frame(&bytes, at, room, RecordCheck::Body);
        Ok(matches!(whole, Ok(Frame::Record(_))))
    }

    /// Looks for bytes other than zero, and for a valid record, behind the damage at `at`.
    pub(super) fn probe(&self, at: u64) -> Result<Tail> {
        let tail = self.search(at, at)?;
        // What looks like a record inside of the damaged one's body is part of it.
        match tail.next_valid {
            Some(found) => match self.whole_body_end(at)? {
                Some(end) if found < end => self.search(at, end - 1),
                _ => Ok(tail),
            },
            None => Ok(tail),
        }
    }

    /// Where the body of the damaged record at `at` ends, if it is whole.
    fn whole_body_end(&self, at: u64) -> Result<Option<u64>> {
        let end = self.segment_of(at) + self.size;
        let mut bytes = self.read_range(at, (at + HEADER).min(end))?;
        if let Err(Corruption::Truncated { needed, .. }) = RecordRef::decode(&bytes)
            && needed <= end - at
        {
            bytes = self.read_range(at, at + needed)?;
        }
        Ok(message::whole_body_end(&bytes).map(|end| at + end as u64))
    }

    /// Looks for bytes other than zero behind `at`, and for a valid record behind `after`.
    fn search(&self, at: u64, after: u64) -> Result<Tail> {
        let mut tail = Tail { data_end: at, next_valid: None, certain: true };
        let mut budget = CANDIDATES_MAX;
        let mut bytes = vec![0; STEP];
        for &base in self.bases.iter().filter(|base| **base + self.size > at) {
            let (file, path) = self.open(base)?;
            let from = at.saturating_sub(base);
            let ranges = file.data_ranges(from..self.size, DATA_STEP);
            for data in ranges.at_offset(IoOp::Read, &path, from)? {
                // Chunks overlap by a header, so that no magic code is cut in two.
                for from in data.clone().step_by(STEP - HEADER as usize) {
                    let want = (data.end - from).min(STEP as u64) as usize;
                    let chunk = bytes.get_mut(..want).unwrap_or_default();
                    let got = file.read_at(chunk, from).at_offset(IoOp::Read, &path, from)?;
                    let chunk = bytes.get(..got).unwrap_or_default();
                    let Some(last) = last_nonzero(chunk) else { continue };
                    tail.data_end = tail.data_end.max(base + from + last as u64 + 1);
                    if tail.next_valid.is_none() {
                        tail.next_valid =
                            self.find_record(&*file, base + from, chunk, after, &mut budget)?;
                        tail.certain = budget > 0;
                    }
                }
            }
        }
        Ok(tail)
    }

    /// The first valid record that begins in `chunk`, which lies at `start` of the log, behind `after`.
    /// When the budget is used up, what may be one is taken for one.
    fn find_record(
        &self,
        file: &dyn DiskFile,
        start: u64,
        chunk: &[u8],
        after: u64,
        budget: &mut u64,
    ) -> Result<Option<u64>> {
        for at in message::candidates(chunk, start).filter(|at| *at > after) {
            if self.is_record(file, at, budget)? || *budget == 0 {
                return Ok(Some(at));
            }
        }
        Ok(None)
    }

    fn is_record(&self, file: &dyn DiskFile, at: u64, budget: &mut u64) -> Result<bool> {
        let base = self.segment_of(at);
        let remaining = base + self.size - at;
        let mut want = HEADER.min(remaining);
        loop {
            *budget = budget.saturating_sub(want);
            let mut bytes = vec![0; want as usize];
            let got =
                file.read_at(&mut bytes, at - base).at(IoOp::Read, self.directory.commitlog())?;
            let bytes = bytes.get(..got).unwrap_or_default();
            // By its body alone: as evidence it need not be one of ours.
            match message::verified_frame(bytes, at, remaining, RecordCheck::Body) {
                Ok(Frame::Record(_)) => return Ok(true),
                Err(Corruption::Truncated { needed, .. })
                    if needed > want && needed <= remaining && *budget > 0 =>
                {
                    want = needed;
                }
                _ => return Ok(false),
            }
        }
    }
}
