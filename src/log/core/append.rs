//! Giving records their offsets, and copying them once.

use super::super::progress::Group;
use super::super::queue_offsets::QueueOffsets;
use super::super::segment::Segment;
use super::Core;
use crate::disk::{OpenAccess, RegionWriter};
use crate::error::{Error, InvalidMessage, Result};
use crate::message::format::BLANK_SIZE;
use crate::message::{self, Draft, Sink, Stamp};
use parking_lot::MutexGuard;
use std::io::ErrorKind;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// The unit in which file systems keep what is written.
const BLOCK: u64 = 4096;

/// How long an append may wait for room or for the next segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// Not at all.
    None,
    /// At most so long.
    For(Duration),
}

/// Where a record lies, and what to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Appended {
    /// Physical offset of the first record.
    pub physical_offset: u64,
    /// Physical offset behind the last record.
    pub end: u64,
    /// Queue offset of the first record; 0 for records that take none.
    pub queue_offset: u64,
    /// Store timestamp of all records, in milliseconds since the epoch.
    pub store_timestamp: i64,
    pub(crate) group: Group,
}

/// Records copied but not yet written, in [`WriteMode::Pwrite`].
#[derive(Debug, Default)]
pub(super) struct Staged {
    pub(super) bytes: Vec<u8>,
    /// Runs of `bytes` and where they belong; a roll begins a new one.
    pub(super) runs: Vec<Run>,
}

#[derive(Debug)]
pub(super) struct Run {
    pub(super) segment: Arc<Segment>,
    pub(super) physical_offset: u64,
    pub(super) from: usize,
    /// It ends with the blank that ends the segment.
    pub(super) ends_segment: bool,
}

impl Staged {
    /// Begins a run at `physical_offset` unless the last one is in the same segment.
    pub(super) fn run_in(&mut self, segment: &Arc<Segment>, physical_offset: u64) {
        if self.runs.last().is_none_or(|run| !Arc::ptr_eq(&run.segment, segment)) {
            let from = self.bytes.len();
            self.runs.push(Run {
                segment: segment.clone(),
                physical_offset,
                from,
                ends_segment: false,
            });
        }
    }

    /// Fills the last block with zeros, if it is one that was not written to before: to change a part
    /// of a block that is not in the page cache, the system would have to read it first.
    pub(super) fn fill_block(&mut self, segment_size: u64) {
        let Some(run) = self.runs.last().filter(|run| !run.ends_segment) else { return };
        let from = run.physical_offset - run.segment.base_offset();
        let end = from + (self.bytes.len() - run.from) as u64;
        let block_end = end.next_multiple_of(BLOCK).min(segment_size);
        if end.next_multiple_of(BLOCK) - BLOCK >= from {
            self.bytes.resize(self.bytes.len() + (block_end - end) as usize, 0);
        }
    }

    /// Whether any of it lies in `piece`, where the last run ends at `end`; one that ends its segment
    /// counts as all of the rest.
    pub(super) fn touches(&self, piece: &Range<u64>, end: u64) -> bool {
        self.runs.iter().any(|run| {
            let run_end = if run.ends_segment { run.segment.end_offset() } else { end };
            run.physical_offset < piece.end && piece.start < run_end
        })
    }

    /// Readies it for other records. Far more memory than the `usual` is given back: it was for one
    /// large record.
    pub(super) fn clear(&mut self, usual: usize) {
        self.bytes.clear();
        if self.bytes.capacity() > 2 * usual + BLOCK as usize {
            self.bytes.shrink_to(usual);
        }
        self.runs.clear();
    }
}

/// The segment after the current one.
#[derive(Debug)]
pub(super) enum NextSegment {
    /// Upkeep makes it when the current one is half full, or when someone waits for it.
    Pending {
        wanted: bool,
    },
    Ready(Arc<Segment>),
    /// It could not be made. Tried again when someone wants it.
    Failed(Error),
}

/// What was appended since the log was opened.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct AppendCounts {
    pub(crate) records: u64,
    pub(crate) bytes: u64,
    pub(crate) rolls: u64,
}

#[derive(Debug)]
pub(super) struct Appender {
    pub(super) end: u64,
    pub(super) segment: Arc<Segment>,
    pub(super) next: NextSegment,
    pub(super) staged: Staged,
    pub(super) group: u64,
    /// Puts in the group now forming that wait for it.
    pub(super) waiting: usize,
    pub(super) last_timestamp: i64,
    pub(super) offsets: QueueOffsets,
    pub(super) appended: AppendCounts,
    pub(super) closed: bool,
    /// Mapped writing: the writer of `segment`, and the segments left behind since the last sync.
    pub(super) writer: Option<RegionWriter>,
    pub(super) rolled: Vec<Arc<Segment>>,
    /// Blocks or pages of `segment` are prepared up to here.
    pub(super) prepared: u64,
    /// Upkeep knows that more are due.
    pub(super) preparing: bool,
}

impl Appender {
    pub(super) fn new(end: u64, segment: Arc<Segment>, last_timestamp: i64) -> Self {
        Self {
            end,
            segment,
            next: NextSegment::Pending { wanted: false },
            staged: Staged::default(),
            // None is 0: that is the last one synced when nothing has been.
            group: 1,
            waiting: 0,
            last_timestamp,
            offsets: QueueOffsets::default(),
            appended: AppendCounts::default(),
            closed: false,
            writer: None,
            rolled: Vec::new(),
            prepared: end,
            preparing: false,
        }
    }
}

/// Copies records straight into a mapping.
struct MappedSink<'a> {
    writer: &'a mut RegionWriter,
    at: u64,
}

impl Sink for MappedSink<'_> {
    fn write(&mut self, bytes: &[u8]) {
        self.writer.copy_in(self.at, bytes);
        self.at += bytes.len() as u64;
    }
}

impl Core {
    pub(crate) fn append(
        &self,
        drafts: &[Draft<'_>],
        patience: Patience,
        waits: bool,
    ) -> Result<Appended> {
        if self.config.read_only {
            return Err(Error::ReadOnly);
        }
        if drafts.is_empty() {
            return Err(Error::InvalidMessage(InvalidMessage::EmptyBatch));
        }
        if !drafts.iter().all(|draft| draft.is_for(&self.layout)) {
            return Err(Error::InvalidMessage(InvalidMessage::ForeignDraft));
        }
        let total: usize = drafts.iter().map(Draft::size).sum();
        let size = total as u64;
        if size + BLANK_SIZE as u64 > self.segment_size {
            let max = self.segment_size as usize - BLANK_SIZE;
            return Err(Error::TooLarge { what: "batch", len: total, max });
        }
        // Before the lock, where others would wait for it.
        let mut now = self.clock.unix_millis();
        let mut append = self.append.lock();
        if self.make_room(&mut append, size, patience)? {
            now = self.clock.unix_millis();
        }
        let full = |draft: &&Draft<'_>| {
            !append.offsets.has_room(draft.topic(), draft.queue_id(), drafts.len())
        };
        if let Some(draft) = drafts.iter().find(full) {
            let queue_id = draft.queue_id();
            return Err(Error::InvalidMessage(InvalidMessage::QueueFull { queue_id }));
        }
        let timestamp = now.max(append.last_timestamp);
        let physical_offset = append.end;
        let mut stamp = Stamp { physical_offset, queue_offset: 0, store_timestamp: timestamp };
        let queue_offset;
        let Appender { offsets, writer, segment, staged, .. } = &mut *append;
        if let Some(writer) = writer {
            let base = segment.base_offset();
            let mut sink = MappedSink { writer, at: physical_offset - base };
            queue_offset = place(drafts, &mut stamp, offsets, &mut sink);
            let end = stamp.physical_offset - base;
            writer.publish(end);
            // The next record is likely to be as long.
            writer.prefetch(end..end + size);
        } else {
            staged.run_in(segment, physical_offset);
            staged.bytes.reserve(total);
            queue_offset = place(drafts, &mut stamp, offsets, &mut staged.bytes);
        }
        append.end = stamp.physical_offset;
        append.last_timestamp = timestamp;
        append.appended.records += drafts.len() as u64;
        append.appended.bytes += size;
        self.tell_end(&append);
        append.waiting += usize::from(waits);
        let appended = Appended {
            physical_offset,
            end: append.end,
            queue_offset,
            store_timestamp: timestamp,
            group: Group(append.group),
        };
        let wants_upkeep = self.wants_upkeep(&mut append);
        let mapped = append.writer.is_some();
        drop(append);
        if mapped {
            self.tell_written(appended.end);
        }
        if wants_upkeep {
            self.upkeep.ring();
        }
        Ok(appended)
    }

    /// Moves the watermarks to the end of what was appended.
    pub(super) fn tell_end(&self, append: &Appender) {
        if append.writer.is_some() {
            self.progress.set_appended_and_written(append.end);
        } else {
            self.progress.set_appended(append.end);
        }
    }

    /// What was appended since the log was opened.
    pub(crate) fn append_counts(&self) -> AppendCounts {
        self.append.lock().appended
    }

    /// Lets the next record of a queue get the queue offset `next`.
    pub(crate) fn continue_queue(&self, topic: &str, queue_id: i32, next: u64) {
        self.append.lock().offsets.set(topic, queue_id, next);
    }

    /// Where a queue ends in the log, shown or not.
    pub(crate) fn queue_end(&self, topic: &str, queue_id: i32) -> u64 {
        self.append.lock().offsets.next(topic, queue_id)
    }

    /// Whether upkeep has something to do that it has not been told yet.
    pub(super) fn wants_upkeep(&self, append: &mut Appender) -> bool {
        let half = append.segment.base_offset() + self.segment_size / 2;
        let mut wants = false;
        if let NextSegment::Pending { wanted } = &mut append.next
            && !*wanted
            && append.end >= half
        {
            *wanted = true;
            wants = true;
        }
        let near = append.end + self.window() / 2 >= append.prepared;
        if near && !append.preparing && append.prepared < append.segment.end_offset() {
            append.preparing = true;
            wants = true;
        }
        wants
    }

    /// Waits until `size` bytes fit among the bytes in flight and into the segment, and says whether it
    /// took a wait; rolls if needed.
    fn make_room(
        &self,
        append: &mut MutexGuard<'_, Appender>,
        size: u64,
        patience: Patience,
    ) -> Result<bool> {
        let mut attempted = false;
        self.wait_until(append, patience, |append| {
            loop {
                if let Some(full) = self.over_limit(append, size) {
                    return Ok(Some(full));
                }
                if size + BLANK_SIZE as u64 <= append.segment.end_offset() - append.end {
                    return Ok(None);
                }
                match self.next_segment(append, &mut attempted)? {
                    Ok(next) => self.roll(append, next)?,
                    Err(refused) => return Ok(Some(refused)),
                }
            }
        })
    }

    /// Waits until `ready` refuses no more, as long as `patience` lasts; whether it took a wait.
    pub(super) fn wait_until(
        &self,
        append: &mut MutexGuard<'_, Appender>,
        patience: Patience,
        mut ready: impl FnMut(&mut Appender) -> Result<Option<Error>>,
    ) -> Result<bool> {
        let mut deadline = None;
        loop {
            if let Some(first) = self.progress.latched() {
                return Err(Error::Latched { first: first.clone() });
            }
            if append.closed {
                return Err(Error::Closed);
            }
            let Some(refused) = ready(append)? else { return Ok(deadline.is_some()) };
            let Patience::For(limit) = patience else { return Err(refused) };
            // The clock is read only by those who have to wait. A limit too far away to be told is
            // none.
            match *deadline.get_or_insert_with(|| self.clock.now().checked_add(limit)) {
                Some(deadline) if self.changed.wait_until(append, deadline).timed_out() => {
                    return Err(refused);
                }
                Some(_) => {}
                None => self.changed.wait(append),
            }
        }
    }

    /// Why `size` more bytes may not be in flight, if they may not.
    #[inline]
    pub(super) fn over_limit(&self, append: &Appender, size: u64) -> Option<Error> {
        let staged = append.staged.bytes.len();
        let over = staged > 0 && staged + size as usize > self.config.max_in_flight_bytes;
        over.then_some(Error::Full)
    }

    /// The segment behind the current one, or why it is not there yet: then it has been asked for.
    /// `attempted` is kept from one call to the next.
    pub(super) fn next_segment(
        &self,
        append: &mut Appender,
        attempted: &mut bool,
    ) -> Result<Result<Arc<Segment>, Error>> {
        let gone = matches!(&append.next, NextSegment::Ready(next) if self.is_gone(next));
        if gone {
            append.next = NextSegment::Pending { wanted: true };
        }
        match &mut append.next {
            NextSegment::Ready(next) => Ok(Ok(next.clone())),
            NextSegment::Failed(error) => {
                // That may have been long ago: only a fresh failure is this put's answer.
                let error = error.clone();
                append.next = NextSegment::Pending { wanted: true };
                self.upkeep.ring();
                if std::mem::replace(attempted, true) { Err(error) } else { Ok(Err(error)) }
            }
            NextSegment::Pending { wanted } => {
                *wanted = true;
                *attempted = true;
                self.upkeep.ring();
                let base_offset = append.segment.end_offset();
                Ok(Err(Error::SegmentNotReady { base_offset }))
            }
        }
    }

    /// Whether somebody removed a segment that was made ahead: a Java broker that is started on an open
    /// store deletes it before it sees the lock. What is written to it then would be lost.
    fn is_gone(&self, segment: &Segment) -> bool {
        let opened = self.disk.open(segment.path(), OpenAccess::Read);
        opened.is_err_and(|error| error.kind() == ErrorKind::NotFound)
    }

    /// Ends the current segment with RocketMQ's blank record and goes on in `next`.
    fn roll(&self, append: &mut Appender, next: Arc<Segment>) -> Result<()> {
        let left = append.segment.end_offset() - append.end;
        self.end_segment(append, &message::blank(left as u32), next)
    }

    /// Ends the current segment with `bytes` and goes on in `next`.
    pub(super) fn end_segment(
        &self,
        append: &mut Appender,
        bytes: &[u8],
        next: Arc<Segment>,
    ) -> Result<()> {
        let writer = self.region(&next)?.writer();
        let base = append.segment.base_offset();
        if let Some(writer) = &mut append.writer {
            writer.copy_in(append.end - base, bytes);
            writer.publish(self.segment_size);
            append.rolled.push(append.segment.clone());
        } else {
            let staged = &mut append.staged;
            staged.run_in(&append.segment, append.end);
            staged.bytes.extend_from_slice(bytes);
            if let Some(run) = staged.runs.last_mut() {
                run.ends_segment = true;
            }
        }
        self.segments.push(next.clone());
        append.end = next.base_offset();
        append.prepared = append.end + self.first_piece();
        append.preparing = false;
        append.segment = next;
        append.writer = writer;
        append.next = NextSegment::Pending { wanted: false };
        self.tell_end(append);
        append.appended.rolls += 1;
        // A segment left behind keeps a descriptor until a sync covers it: not for a whole interval.
        self.want_flush();
        Ok(())
    }
}

/// Encodes `drafts` into `sink`, from `stamp` on; the queue offset of the first.
fn place(
    drafts: &[Draft<'_>],
    stamp: &mut Stamp,
    offsets: &mut QueueOffsets,
    sink: &mut impl Sink,
) -> u64 {
    let mut first = None;
    for draft in drafts {
        stamp.queue_offset = if draft.takes_queue_offset() {
            offsets.take(draft.topic(), draft.queue_id())
        } else {
            0
        };
        first.get_or_insert(stamp.queue_offset);
        draft.encode(stamp, sink);
        stamp.physical_offset += draft.size() as u64;
    }
    first.unwrap_or(0)
}
