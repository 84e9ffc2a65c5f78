//! Bringing bytes into the page cache, and making them durable.

use super::super::progress::Group;
use super::super::segment::Segment;
use super::Core;
use super::append::{Appender, Staged};
use crate::error::{Error, IoContext, IoOp, Result};
use crate::worker::{Doorbell, Next};
use parking_lot::MutexGuard;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// The write side, in the order of writing.
#[derive(Debug, Default)]
pub(super) struct Written {
    spare: Staged,
    /// Segments with bytes that no sync covers yet.
    unsynced: Vec<Arc<Segment>>,
    end: u64,
    /// The group that ends at `end`.
    group: u64,
}

impl Written {
    pub(super) fn at(end: u64) -> Self {
        Self { end, ..Self::default() }
    }
}

/// What the last sync covered, or the one under way: everything before `end`, the newest of it in
/// `segments`.
#[derive(Debug, Default)]
pub(super) struct Covered {
    end: u64,
    segments: Vec<Arc<Segment>>,
    group: u64,
}

impl Core {
    /// Asks the flusher for a sync.
    pub(crate) fn wake_flusher(&self) {
        self.flusher.ring();
    }

    /// What a flusher with nothing to do returns.
    pub(crate) fn flusher_sleeps(&self) -> Next {
        self.flusher.sleep_unless(|| self.has_unsynced())
    }

    /// Whether a sync would get anywhere.
    pub(crate) fn has_unsynced(&self) -> bool {
        self.progress.appended() > self.progress.durable() && self.progress.latched().is_none()
    }

    /// Names the doorbell of the one flusher; false if there is one.
    pub(crate) fn set_flusher(&self, bell: Doorbell) -> bool {
        self.flusher.connect(bell)
    }

    /// Asks an interval flusher not to wait for its interval.
    pub(crate) fn want_flush(&self) {
        self.flush_wanted.store(true, Ordering::SeqCst);
        if let Some(bell) = self.flusher.bell() {
            bell.ring();
        }
    }

    pub(crate) fn take_flush_wanted(&self) -> bool {
        self.flush_wanted.swap(false, Ordering::SeqCst)
    }

    /// Brings everything staged into the page cache.
    pub(crate) fn write(&self) -> Result<()> {
        self.write_holding(self.written.lock(), None).map(|_| ())
    }

    /// The same, but gives up after `patience` behind other threads whose writes do not end; whether it
    /// did not have to.
    pub(crate) fn write_within(&self, patience: Duration) -> Result<bool> {
        let deadline = self.clock.now().checked_add(patience);
        match deadline {
            Some(deadline) => self.write_until(deadline),
            None => self.write().map(|()| true),
        }
    }

    fn write_until(&self, deadline: Instant) -> Result<bool> {
        match self.written.try_lock_until(deadline) {
            Some(written) => self.write_holding(written, Some(deadline)),
            None => Ok(false),
        }
    }

    fn write_holding(
        &self,
        mut written: MutexGuard<'_, Written>,
        deadline: Option<Instant>,
    ) -> Result<bool> {
        // Before anything else: whoever waited here while a write failed had its bytes in it.
        if let Some(first) = self.progress.latched() {
            return Err(Error::Latched { first: first.clone() });
        }
        let (mut staged, group, end) = {
            let Some(mut append) = self.append_when_prepared(deadline) else { return Ok(false) };
            self.progress.expect_group(std::mem::take(&mut append.waiting));
            if append.staged.runs.is_empty() {
                return Ok(true);
            }
            let spare = std::mem::take(&mut written.spare);
            let group = append.group;
            append.group += 1;
            (std::mem::replace(&mut append.staged, spare), group, append.end)
        };
        self.changed.notify_all();
        self.group_bytes.store(staged.bytes.len() as u64, Ordering::Relaxed);
        staged.fill_block(self.segment_size);
        let outcome = self.write_runs(&staged, end, &mut written.unsynced);
        written.spare = staged;
        written.spare.clear(self.config.max_in_flight_bytes);
        if let Err(error) = outcome {
            // The offsets are given out and the bytes are not there: nothing may follow them.
            self.latch(error.clone());
            return Err(error);
        }
        // A roll leaves a gap behind the blank record, so the end is not that of the last byte.
        written.end = end;
        written.group = group;
        self.progress.set_written(end);
        self.tell_written(end);
        Ok(true)
    }

    fn write_runs(
        &self,
        staged: &Staged,
        end: u64,
        unsynced: &mut Vec<Arc<Segment>>,
    ) -> Result<()> {
        let ends = staged.runs.iter().skip(1).map(|run| run.from).chain([staged.bytes.len()]);
        for (run, to) in staged.runs.iter().zip(ends) {
            let bytes = staged.bytes.get(run.from..to).unwrap_or_default();
            let segment = &run.segment;
            let at = run.physical_offset - segment.base_offset();
            let file = segment.file(&*self.disk)?;
            if unsynced.last().is_none_or(|last| !Arc::ptr_eq(last, segment)) {
                unsynced.push(segment.clone());
            }
            file.write_at(bytes, at).at_offset(IoOp::Write, segment.path(), at)?;
            let published =
                if run.ends_segment { self.segment_size } else { end - segment.base_offset() };
            self.region(segment)?.publish(published);
            self.counts.writes.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// The append side, when upkeep zeroes nothing of what is to be written or published: what it will
    /// zero next lies behind. `None` if it does not end by `deadline`.
    fn append_when_prepared(&self, deadline: Option<Instant>) -> Option<MutexGuard<'_, Appender>> {
        loop {
            let append = self.append.lock();
            let mut preparing = self.preparing.lock();
            let touches = |piece: &Range<u64>| append.staged.touches(piece, append.end);
            if !preparing.as_ref().is_some_and(touches) {
                drop(preparing);
                return Some(append);
            }
            drop(append);
            match deadline {
                None => self.prepared.wait(&mut preparing),
                Some(deadline) => {
                    if self.prepared.wait_until(&mut preparing, deadline).timed_out() {
                        return None;
                    }
                }
            }
        }
    }

    /// Makes everything written durable and wakes those who waited for it; the durable offset.
    pub(crate) fn sync(&self) -> Result<u64> {
        self.sync_holding(self.syncing.lock())
    }

    /// The same, but gives up when another thread's sync does not end by `deadline`.
    pub(crate) fn sync_until(&self, deadline: Instant) -> Result<u64> {
        match self.syncing.try_lock_until(deadline) {
            Some(covered) => self.sync_holding(covered),
            None => Err(Error::CloseTimeout { thread: "that syncs the log".to_owned() }),
        }
    }

    fn sync_holding(&self, mut covered: MutexGuard<'_, Covered>) -> Result<u64> {
        if let Some(first) = self.progress.latched() {
            return Err(Error::Latched { first: first.clone() });
        }
        let before = covered.group;
        self.cover(&mut covered);
        let Covered { end, segments, group } = &*covered;
        let (end, group) = (*end, *group);
        // Only if one group alone became durable does its slot hold everyone concerned.
        let woken = (group == before + 1).then_some(Group(group));
        let rolled = segments.iter().any(|segment| segment.end_offset() <= end);
        if end > self.progress.durable() {
            if canary!("ack_before_sync") {
                self.progress.set_durable(end, woken);
            }
            let started = self.clock.now();
            *self.counts.sync_began.lock() = Some(started);
            let synced = self.sync_segments(segments, end, started);
            *self.counts.sync_began.lock() = None;
            if let Err(error) = synced {
                // No retry, ever: the system reports a lost page once and then calls it clean.
                self.latch(error.clone());
                return Err(error);
            }
        }
        let noted = self.note_first(self.agreed(), end);
        self.progress.set_durable(end, woken);
        // And what was agreed before anyone could see that.
        if let Err(error) = noted.and_then(|()| self.note_first(self.agreed(), end)) {
            self.latch(error);
        }
        if rolled {
            self.rolled_since_checkpoint.store(true, Ordering::Release);
            self.upkeep.ring();
        }
        if let Some(replicator) = self.replicator.get() {
            replicator.on_durable(end);
        }
        self.want_saving();
        Ok(end)
    }

    /// Turns to everything written by now.
    fn cover(&self, covered: &mut Covered) {
        covered.segments.clear();
        let mut append = self.append.lock();
        if append.writer.is_some() {
            covered.segments.append(&mut append.rolled);
            covered.segments.push(append.segment.clone());
            (covered.end, covered.group) = (append.end, append.group);
            append.group += 1;
            return;
        }
        drop(append);
        let mut written = self.written.lock();
        std::mem::swap(&mut covered.segments, &mut written.unsynced);
        (covered.end, covered.group) = (written.end, written.group);
    }

    fn sync_segments(&self, segments: &[Arc<Segment>], end: u64, started: Instant) -> Result<()> {
        for segment in segments {
            if !canary!("data_sync") {
                let attempt = segment.sync(self.config.sync_method);
                if canary!("retry_failed_sync") && attempt.is_err() {
                    segment.sync(self.config.sync_method)?;
                } else {
                    attempt?;
                }
            }
            self.counts.syncs.fetch_add(1, Ordering::Relaxed);
            if segment.end_offset() <= end {
                // Some systems report a failed write one call late, and this is the last one.
                segment.sync(self.config.sync_method)?;
                segment.seal();
            }
        }
        let nanos = self.clock.now().saturating_duration_since(started).as_nanos() as u64;
        self.counts.sync_nanos.fetch_add(nanos, Ordering::Relaxed);
        self.counts.sync_nanos_max.fetch_max(nanos, Ordering::Relaxed);
        Ok(())
    }

    /// Writes and syncs whatever is left.
    pub(super) fn flush_until(&self, deadline: Instant) -> Result<()> {
        if self.config.read_only || self.progress.appended() == self.progress.durable() {
            return Ok(());
        }
        if !self.write_until(deadline)? {
            return Err(Error::CloseTimeout { thread: "that writes the log".to_owned() });
        }
        self.sync_until(deadline).map(|_| ())
    }
}
