//! Reading records in place.

use super::super::segment::{Segment, file_name};
use super::super::view::MessageView;
use super::Core;
use crate::disk::{Prefix, Region};
use crate::error::{Corruption, Error, Result};
use crate::message::{self, Frame, RecordCheck, RecordRef};
use crate::replication::LogSlice;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Mappings kept, about; the system allows a process some 65,000.
const MAPPINGS_MAX: usize = 4096;

/// How a record at `physical_offset` is checked.
#[inline]
fn check_in(checksummed: &[Range<u64>], physical_offset: u64) -> RecordCheck {
    let ours = checksummed.iter().any(|range| range.contains(&physical_offset));
    if ours { RecordCheck::Record } else { RecordCheck::Body }
}

/// One frame of the log, as found in a mapping.
enum Found<'a> {
    Record(Located<'a>),
    Blank { next: u64 },
}

/// A record and where it is.
pub(crate) struct Located<'a> {
    pub(crate) record: RecordRef<'a>,
    pub(crate) physical_offset: u64,
    region: &'a Region,
    at: u64,
}

impl Located<'_> {
    /// The record, held beyond the reader's next step.
    #[inline]
    pub(crate) fn view(&self) -> MessageView {
        MessageView::new(self.region.clone(), self.at, self.physical_offset, &self.record)
    }
}

/// Reads frames one by one, and keeps hold of the segment it is in: the next one is likely to be
/// there, too.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    core: &'a Core,
    verify: bool,
    checksummed: Arc<[Range<u64>]>,
    /// The segment it is in, and what can be read of it.
    here: Option<(Arc<Segment>, Prefix)>,
}

impl Reader<'_> {
    /// The record at `physical_offset`; `None` outside of what is written.
    #[inline(always)]
    pub(crate) fn record(&mut self, physical_offset: u64) -> Result<Option<Located<'_>>> {
        let core = self.core;
        match self.frame(physical_offset)? {
            Some(Found::Record(located)) => Ok(Some(located)),
            Some(Found::Blank { .. }) => {
                Err(core.corrupt_at(physical_offset, Corruption::QueueEntry))
            }
            None => Ok(None),
        }
    }

    #[inline(always)]
    fn frame(&mut self, physical_offset: u64) -> Result<Option<Found<'_>>> {
        let core = self.core;
        let here = self.here.as_ref().is_some_and(|(segment, _)| segment.holds(physical_offset));
        if !here {
            let Some(segment) = core.segments.find(physical_offset) else { return Ok(None) };
            let prefix = core.readable(&segment)?.prefix();
            self.here = Some((segment, prefix));
        }
        let Some((segment, prefix)) = &mut self.here else { return Ok(None) };
        let at = physical_offset - segment.base_offset();
        if at >= prefix.bytes().len() as u64 {
            prefix.refresh();
        }
        let Some(bytes) = prefix.bytes().get(at as usize..).filter(|bytes| !bytes.is_empty())
        else {
            return Ok(None);
        };
        let remaining = core.segment_size - at;
        let frame = if self.verify {
            let check = check_in(&self.checksummed, physical_offset);
            message::verified_frame(bytes, physical_offset, remaining, check)
        } else {
            message::frame(bytes, physical_offset, remaining)
        };
        match frame {
            Ok(Frame::Blank { .. }) => Ok(Some(Found::Blank { next: segment.end_offset() })),
            Ok(Frame::Record(record)) => {
                let region = prefix.region();
                Ok(Some(Found::Record(Located { record, physical_offset, region, at })))
            }
            Err(what) => Err(segment.corrupt(physical_offset, what)),
        }
    }
}

/// The records of a log from some offset on, in log order.
#[derive(Debug)]
pub struct Records<'a> {
    reader: Reader<'a>,
    at: u64,
    until: u64,
}

impl Records<'_> {
    /// Where the next record is looked for.
    pub fn offset(&self) -> u64 {
        self.at
    }

    /// What `each` makes of the next record that ends in time; an error of the log ends the iteration.
    pub(crate) fn next_with<T>(
        &mut self,
        each: impl FnOnce(&Located<'_>) -> T,
    ) -> Option<Result<T>> {
        while self.at < self.until {
            match self.reader.frame(self.at) {
                Ok(Some(Found::Record(located))) => {
                    let end = self.at + located.record.size() as u64;
                    if end > self.until {
                        return None;
                    }
                    self.at = end;
                    return Some(Ok(each(&located)));
                }
                Ok(Some(Found::Blank { next })) => self.at = next,
                Ok(None) => return None,
                Err(error) => {
                    self.until = self.at;
                    return Some(Err(error));
                }
            }
        }
        None
    }
}

impl Iterator for Records<'_> {
    type Item = Result<MessageView>;

    /// The next record; an error ends the iteration.
    fn next(&mut self) -> Option<Self::Item> {
        self.next_with(|located| located.view())
    }
}

impl Core {
    /// A reader that checks checksums if it is to `verify`.
    pub(crate) fn reader(&self, verify: bool) -> Reader<'_> {
        Reader { core: self, verify, checksummed: self.checksummed(), here: None }
    }

    /// The record at `physical_offset`; `verify` checks its checksums.
    pub(crate) fn read(&self, physical_offset: u64, verify: bool) -> Result<Option<MessageView>> {
        Ok(self.reader(verify).record(physical_offset)?.map(|located| located.view()))
    }

    pub(crate) fn corrupt_at(&self, physical_offset: u64, what: Corruption) -> Error {
        match self.segments.find(physical_offset) {
            Some(segment) => segment.corrupt(physical_offset, what),
            None => {
                let path = self.directory.commitlog().join(file_name(physical_offset));
                Error::Corrupt { path, offset: 0, what }
            }
        }
    }

    /// The region of a segment, with everything published that is written in it.
    fn readable(&self, segment: &Segment) -> Result<Region> {
        let region = self.region(segment)?;
        // A segment from before this open is complete; only the current one grows.
        if region.published() < self.segment_size && segment.end_offset() <= self.progress.written()
        {
            region.publish(self.segment_size);
            if segment.end_offset() <= self.progress.durable() {
                segment.seal();
            }
        }
        Ok(region)
    }

    /// The mapping of a segment; others give up theirs if there are too many.
    pub(super) fn region(&self, segment: &Segment) -> Result<Region> {
        let (region, mapped_now) = segment.region(&*self.disk)?;
        if mapped_now
            && (self.mapped.fetch_add(1, Ordering::Relaxed) + 1).is_multiple_of(MAPPINGS_MAX)
        {
            self.segments.limit_mappings(MAPPINGS_MAX);
        }
        Ok(region)
    }

    /// Where the segment that holds `physical_offset` begins.
    pub(crate) fn segment_start(&self, physical_offset: u64) -> u64 {
        physical_offset / self.segment_size * self.segment_size
    }

    pub(crate) fn check_at(&self, physical_offset: u64) -> RecordCheck {
        check_in(&self.checksummed(), physical_offset)
    }

    /// Where this crate wrote records with a checksum of their own.
    pub(super) fn checksummed(&self) -> Arc<[Range<u64>]> {
        self.checksummed.read().clone()
    }

    /// Bytes for a replicator, from one segment.
    pub(crate) fn slice(&self, from: u64, max: u64) -> Result<LogSlice> {
        let written = self.progress.written();
        let Some(segment) = self.segments.find(from).filter(|_| from < written) else {
            return Ok(LogSlice::empty(from));
        };
        let region = self.readable(&segment)?;
        let at = from - segment.base_offset();
        // More is published while a group is being written: its write may yet fail.
        let readable = region.published().min(written - segment.base_offset());
        let to = readable.min(at.saturating_add(max));
        Ok(LogSlice::new(region, segment.open_file(), at..to.max(at), from))
    }

    pub(crate) fn records(&self, from: u64, until: u64) -> Records<'_> {
        Records { reader: self.reader(false), at: from, until }
    }

    pub(crate) fn verified_records(&self, from: u64, until: u64) -> Records<'_> {
        Records { reader: self.reader(true), at: from, until }
    }

    /// Where the body of the damaged record at `offset` ends, if it is whole: what looks like a record
    /// before is part of it.
    fn whole_body_end(&self, offset: u64) -> Option<u64> {
        let end = self.segment_start(offset) + self.segment_size;
        let slice = self.slice(offset, end - offset).ok()?;
        message::whole_body_end(slice.bytes()).map(|end| offset + end as u64)
    }

    /// The first offset behind the damage at `offset` where a valid record begins; `until` if there is
    /// none.
    pub(crate) fn resync(&self, offset: u64, until: u64) -> u64 {
        let mut from = self.whole_body_end(offset).unwrap_or(offset + 1);
        while from < until {
            let end = self.segment_start(from) + self.segment_size;
            let found = self.slice(from, end - from).ok().and_then(|slice| {
                let valid = |at: &u64| matches!(self.read(*at, true), Ok(Some(_)));
                message::candidates(slice.bytes(), from).find(valid)
            });
            if let Some(found) = found {
                return found.min(until);
            }
            from = end;
        }
        until
    }
}
