//! A log that is written elsewhere first: epochs, records taken over byte for byte, and cuts.

use super::super::checkpoint::go_on_from;
use super::super::epochs::{self, Changing, Epochs};
use super::super::recovery::OFFSET_MAX;
use super::append::Appender;
use super::{Core, Patience};
use crate::error::{Corruption, Error, Result};
use crate::message::{self, Frame};
use crate::replication::{Epoch, EpochStart, LogId, NodeId, Refusal};
use parking_lot::MutexGuard;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Whole frames that lie next to each other in one segment.
#[derive(Debug, Default)]
struct Piece {
    len: usize,
    last_timestamp: i64,
    records: u64,
    ends_segment: bool,
}

impl Core {
    /// Everything before is held by replicas and never taken back, as far as is known here.
    pub(crate) fn agreed(&self) -> u64 {
        self.agreed.load(Ordering::SeqCst)
    }

    /// Notes that everything before `end` is. How far that has come is saved some time later; that it has
    /// come anywhere at all is durable on return: a node that knows of nothing that was confirmed may be told
    /// to give up its log for another one.
    pub(crate) fn agree(&self, end: u64) -> Result<()> {
        self.note_first(end, self.progress.durable())?;
        if self.agreed.fetch_max(end, Ordering::SeqCst) < end {
            // The disk may have got there meanwhile, and nobody else would note it then.
            self.note_first(end, self.progress.durable())?;
            self.want_saving();
        }
        Ok(())
    }

    /// Notes that something is agreed, where the log is durable before `durable`, unless that is noted. What
    /// is agreed of a log that is not durable at all is noted when it is.
    pub(super) fn note_first(&self, agreed: u64, durable: u64) -> Result<()> {
        let known = agreed.min(durable);
        if known == 0 || self.noted_agreed.load(Ordering::SeqCst) > 0 {
            return Ok(());
        }
        self.note_agreed(known)
    }

    fn note_agreed(&self, known: u64) -> Result<()> {
        let _held = self.directory.hold()?;
        self.checkpoint.update(true, |checkpoint| {
            checkpoint.confirmed = checkpoint.confirmed.max(known);
        })?;
        self.noted_agreed.fetch_max(known, Ordering::SeqCst);
        Ok(())
    }

    /// Makes durable what is agreed, before the queues vouch for it.
    pub(crate) fn save_agreed(&self) -> Result<()> {
        let agreed = self.agreed().min(self.progress.durable());
        if agreed <= self.noted_agreed.load(Ordering::SeqCst) {
            return Ok(());
        }
        self.note_agreed(agreed)
    }

    pub(crate) fn epochs(&self) -> Arc<Epochs> {
        self.epochs.known()
    }

    pub(crate) fn newest_epoch(&self) -> Epoch {
        self.epochs.known().last()
    }

    /// Of a log that is another node's, shows what is confirmed, as far as that was saved here.
    pub(crate) fn hide_what_may_be_taken_back(&self) {
        let epochs = self.epochs.known();
        if !epochs.alone && !epochs.own && self.directory.has_copies() {
            let confirmed = self.agreed().max(self.min_offset()).min(self.progress.durable());
            self.progress.require_confirmation(confirmed);
        }
    }

    /// Begins an epoch at the end of the log; durable on return.
    pub(crate) fn begin_epoch(&self, epoch: Epoch, node: NodeId, lazy: bool) -> Result<EpochStart> {
        let mut epochs = self.epochs.change();
        if canary!("epoch_twice")
            && let Some(last) = epochs.starts().last()
        {
            return Ok(*last);
        }
        let start = self.progress.appended();
        let begun = EpochStart { epoch, start, node, record_crc: self.config.record_crc };
        let was = epochs.last().max(epochs.promised);
        let fell = !epochs.starts().is_empty() && epoch <= epochs.last();
        // What is promised to nobody has been: another node's, or of a log whose end was lost.
        let promised = epochs.promised;
        let given =
            epoch > promised || promised == Epoch(0) || epoch == promised && epochs.is_fenced();
        if fell || !given {
            return Err(Error::Refused(Refusal::EpochFell { was, is: epoch }));
        }
        let mut changed = Epochs::clone(&epochs);
        // No other opening, of whatever log, has this one's token.
        changed.id = changed.id.or_else(|| LogId::new(self.directory.token().max(1)));
        (changed.own, changed.in_doubt) = (true, false);
        self.add_epoch(&mut epochs, changed, begun, lazy)?;
        Ok(begun)
    }

    /// Notes which log the records are of that come next, and who brings them; durable on return.
    pub(crate) fn follow(&self, id: Option<LogId>, primary: Epoch) -> Result<()> {
        let mut epochs = self.epochs.change();
        let mut changed = Epochs::clone(&epochs);
        self.followed.store(primary.0, Ordering::Relaxed);
        if changed.id.is_some() && changed.id != id {
            let is_emptied = self.checkpoint.current().restarts;
            if self.progress.appended() > self.min_offset() && !is_emptied {
                return Err(Error::Refused(Refusal::AnotherLog));
            }
            // Nothing is here of those epochs, and nothing will be: they bind nobody in this log.
            changed.cut(0);
        }
        (changed.id, changed.own) = (id, false);
        changed.note_reign(primary);
        self.save_epochs(&mut epochs, changed)
    }

    /// Enters the epoch of another node, of which the next record is; durable on return.
    pub(crate) fn enter_epoch(&self, start: EpochStart) -> Result<()> {
        let mut epochs = self.epochs.change();
        if epochs.starts().last() == Some(&start) {
            return Ok(());
        }
        let end = self.progress.appended();
        // Epochs that ended before anything was written under them are left again.
        let mut changed = Epochs::clone(&epochs);
        changed.own = false;
        changed.leave(end);
        if end == self.min_offset() && changed.starts().last() != Some(&start) {
            // Nothing is left of those that began before, either.
            changed.leave(0);
        }
        let goes_on = match changed.starts().last() {
            Some(last) => *last == start,
            None => start.epoch == Epoch(0),
        };
        if goes_on {
            self.save_epochs(&mut epochs, changed)?;
            // What an epoch without a record has said of checksums counts no more.
            return self.note_checksummed(end, start);
        }
        let begins_here = start.start == end;
        // A log that holds nothing yet may begin in the middle of an epoch.
        let is_empty = start.start < end && end == self.min_offset() && changed.starts().is_empty();
        if !begins_here && !is_empty {
            return Err(Error::Refused(Refusal::OutOfPlace { end, at: start.start }));
        }
        // Not by what was promised: it may have been written long before, and be brought by a new primary.
        let was = changed.last();
        if !changed.starts().is_empty() && start.epoch <= was {
            return Err(Error::Refused(Refusal::EpochFell { was, is: start.epoch }));
        }
        if changed.in_doubt && start.epoch.0 >= self.followed.load(Ordering::Relaxed) {
            // Whoever reigns has all that was confirmed, and so has this node: not only until the next power
            // cut, or it would vouch again for what it lacks.
            if !canary!("doubt_forgotten") {
                self.write()?;
                self.sync()?;
            }
            changed.in_doubt = false;
        }
        self.add_epoch(&mut epochs, changed, start, false)?;
        self.note_checksummed(end, start)
    }

    /// Says which records carry a checksum, when the next one comes at `end` and is of the epoch `start`.
    fn note_checksummed(&self, end: u64, start: EpochStart) -> Result<()> {
        // Where the epochs stay what they are, nobody has asked for it before.
        let _held = self.directory.hold()?;
        let mut checksummed = self.checksummed().to_vec();
        go_on_from(&mut checksummed, end, start.record_crc);
        // The epoch is entered, even if the checkpoint does not get to know of it: then recovery makes up
        // for that.
        *self.checksummed.write() = checksummed.as_slice().into();
        self.checkpoint.update(true, |checkpoint| {
            checkpoint.checksummed = checksummed;
            checkpoint.epoch = start.epoch.0;
        })
    }

    fn add_epoch(
        &self,
        epochs: &mut Changing<'_>,
        mut changed: Epochs,
        start: EpochStart,
        lazy: bool,
    ) -> Result<()> {
        let (was, is) = (changed.last(), start.epoch);
        if is == is.next() {
            // None could follow.
            return Err(Error::Refused(Refusal::EpochFell { was, is }));
        }
        changed.begin(start);
        changed.expire(self.min_offset());
        changed.lazy = lazy;
        self.save_epochs(epochs, changed)
    }

    /// No put of this epoch waits for replicas: nothing is safe that could be lost here.
    pub(crate) fn vouch_for_none(&self) -> Result<()> {
        let mut epochs = self.epochs.change();
        let changed = Epochs { lazy: false, ..Epochs::clone(&epochs) };
        self.save_epochs(&mut epochs, changed)
    }

    fn save_epochs(&self, epochs: &mut Changing<'_>, changed: Epochs) -> Result<()> {
        if **epochs == changed {
            return Ok(());
        }
        if !canary!("epoch_save") {
            self.directory.save(&*self.disk, epochs::NAME, &changed.encode())?;
        }
        epochs.show(changed);
        Ok(())
    }

    /// Lets nobody write under an epoch before `epoch` any more; durable on return.
    pub(crate) fn promise(&self, epoch: Epoch) -> Result<()> {
        let mut epochs = self.epochs.change();
        let was = epochs.last().max(epochs.promised);
        if epoch <= was {
            return Err(Error::Refused(Refusal::EpochFell { was, is: epoch }));
        }
        let changed = Epochs { promised: epoch, fenced: true, ..Epochs::clone(&epochs) };
        self.save_epochs(&mut epochs, changed)
    }

    /// Takes over the whole frames at the front of `bytes`, which belong at the log's end `at`; the new
    /// end. What is not whole yet is to come again, with the rest of it.
    pub(crate) fn append_verbatim(
        &self,
        mut at: u64,
        bytes: &[u8],
        patience: Patience,
    ) -> Result<u64> {
        self.check_end(at)?;
        let (from, mut rest) = (at, bytes);
        loop {
            let piece = match self.whole_frames(at, rest) {
                // What came before the damage is in the log.
                Err(_) if at > from => return Ok(at),
                piece => piece?,
            };
            let Some((frames, behind)) = rest.split_at_checked(piece.len) else { return Ok(at) };
            if frames.is_empty() {
                return Ok(at);
            }
            self.place_verbatim(at, frames, &piece, patience)?;
            at += frames.len() as u64;
            rest = behind;
        }
    }

    /// Whether the log can go on, at `at`.
    fn check_end(&self, at: u64) -> Result<()> {
        if let Some(first) = self.progress.latched() {
            return Err(Error::Latched { first: first.clone() });
        }
        let (end, closed) = {
            let append = self.append.lock();
            (append.end, append.closed)
        };
        match end {
            _ if closed => Err(Error::Closed),
            end if end != at => Err(Error::Refused(Refusal::OutOfPlace { end, at })),
            _ => Ok(()),
        }
    }

    /// The verified frames at the front of `bytes`, which lie at `from`, up to the end of a segment.
    fn whole_frames(&self, from: u64, bytes: &[u8]) -> Result<Piece> {
        let mut piece = Piece::default();
        let end = self.segment_start(from) + self.segment_size;
        // Not more than may be in flight, but for a single one.
        while piece.len < self.config.max_in_flight_bytes / 2 {
            let at = from + piece.len as u64;
            let rest = bytes.get(piece.len..).unwrap_or_default();
            if rest.is_empty() {
                break;
            }
            match message::verified_frame(rest, at, end - at, self.check_at(at)) {
                Ok(Frame::Record(record)) => {
                    piece.len += record.size();
                    piece.records += 1;
                    piece.last_timestamp = piece.last_timestamp.max(record.store_timestamp());
                }
                // What follows the blank means nothing, and is taken over all the same.
                Ok(Frame::Blank { size }) if rest.len() >= size as usize => {
                    piece.len += size as usize;
                    piece.ends_segment = true;
                    break;
                }
                Ok(Frame::Blank { .. }) | Err(Corruption::Truncated { .. }) => break,
                // The frames before it are sound.
                Err(_) if piece.len > 0 => break,
                Err(what) => return Err(self.corrupt_at(at, what)),
            }
        }
        Ok(piece)
    }

    fn place_verbatim(
        &self,
        at: u64,
        frames: &[u8],
        piece: &Piece,
        patience: Patience,
    ) -> Result<()> {
        let mut append: MutexGuard<'_, Appender> = self.append.lock();
        let (mut attempted, mut next) = (false, None);
        self.wait_until(&mut append, patience, |append| {
            if let Some(full) = self.over_limit(append, frames.len() as u64) {
                return Ok(Some(full));
            }
            if piece.ends_segment {
                match self.next_segment(append, &mut attempted)? {
                    Ok(segment) => next = Some(segment),
                    Err(refused) => return Ok(Some(refused)),
                }
            }
            Ok(None)
        })?;
        if append.end != at {
            return Err(Error::Refused(Refusal::OutOfPlace { end: append.end, at }));
        }
        if let Some(next) = next {
            self.end_segment(&mut append, frames, next)?;
        } else {
            let Appender { writer, segment, staged, end, .. } = &mut *append;
            let behind = *end + frames.len() as u64;
            if let Some(writer) = writer {
                writer.copy_in(*end - segment.base_offset(), frames);
                writer.publish(behind - segment.base_offset());
            } else {
                staged.run_in(segment, *end);
                staged.bytes.extend_from_slice(frames);
            }
            *end = behind;
            self.tell_end(&append);
        }
        append.last_timestamp = append.last_timestamp.max(piece.last_timestamp);
        append.appended.records += piece.records;
        append.appended.bytes += frames.len() as u64;
        let (end, mapped) = (append.end, append.writer.is_some());
        let wants_upkeep = self.wants_upkeep(&mut append);
        drop(append);
        if mapped {
            self.tell_written(end);
        }
        if wants_upkeep {
            self.upkeep.ring();
        }
        self.wake_flusher();
        Ok(())
    }

    /// Refuses a cut that cannot be ordered; how far replicas agree.
    pub(crate) fn check_cut(&self, to: u64, restarts: bool) -> Result<u64> {
        let (confirmed, end) = (self.agreed(), self.progress.appended());
        let in_place = if restarts {
            to.is_multiple_of(self.segment_size) && to <= OFFSET_MAX
        } else {
            (self.min_offset()..=end).contains(&to)
        };
        if !in_place {
            return Err(Error::Refused(Refusal::OutOfPlace { end, at: to }));
        }
        // What was confirmed before the log begins here is gone already: it comes again.
        let is_gone = restarts && confirmed <= self.min_offset();
        if to < confirmed && !is_gone {
            return Err(Error::Refused(Refusal::Confirmed { confirmed, to }));
        }
        Ok(confirmed)
    }

    /// Orders a cut at `to`, which the next open carries out before anything else, and ends this log:
    /// it takes nothing more. `restarts`: what lies before `to` goes, too.
    pub(crate) fn order_cut(&self, to: u64, restarts: bool) -> Result<()> {
        let confirmed = self.check_cut(to, restarts)?;
        let deadline = self.clock.now() + self.config.close_timeout;
        let hangs = |what: &str| Error::CloseTimeout { thread: what.to_owned() };
        // First, for whoever syncs may have to note what is confirmed.
        let synced = self.syncing.try_lock_until(deadline);
        let _synced = synced.ok_or_else(|| hangs("that syncs the log"))?;
        let _held = self.directory.hold()?;
        // Nobody else writes the checkpoint from here on.
        let _upkeep = self.upkeeping.lock();
        self.latch(Error::Retired { cut: to });
        // Nobody writes or syncs any more, or maps anew what is about to change.
        let written = self.written.try_lock_until(deadline);
        let _written = written.ok_or_else(|| hangs("that writes the log"))?;
        let mut append = self.append.lock();
        append.writer = None;
        append.closed = true;
        drop(append);
        if let Some(segment) = self.segments.find(to) {
            segment.retire();
        }
        if canary!("cut_unrecorded") {
            return Ok(());
        }
        self.checkpoint.update(true, |checkpoint| {
            checkpoint.cut = Some(to);
            checkpoint.restarts = restarts;
            // Views of an earlier opening may be alive, and a snapshot may have the same file.
            checkpoint.shared = !restarts;
            checkpoint.durable = checkpoint.durable.min(to);
            checkpoint.clean = false;
            checkpoint.confirmed = checkpoint.confirmed.max(confirmed.min(to));
        })
    }

    /// A checksum of the last bytes before `end`, at most `max`, and how many they were: by it two nodes
    /// find out whether they speak of the same log.
    pub(crate) fn checksum_before(&self, end: u64, max: u64) -> Result<(u64, u32)> {
        let from = end.saturating_sub(max).max(self.min_offset()).min(end);
        let (mut at, mut hasher) = (from, crc32fast::Hasher::new());
        while at < end {
            let slice = self.slice(at, end - at)?;
            if slice.bytes().is_empty() {
                break;
            }
            hasher.update(slice.bytes());
            at += slice.bytes().len() as u64;
        }
        Ok((at - from, hasher.finalize()))
    }
}
