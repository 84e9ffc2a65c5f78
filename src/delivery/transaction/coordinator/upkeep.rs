//! What is done in the background: closing what is left to be closed, and moving the offsets of the group.

use super::super::ledger::{Fronts, Ledger};
use super::{Coordinator, Fate, Found, GROUP, Half, HalfState, Pace, Queue, find};
use crate::error::Error;
use crate::store::{Ending, Store};
use crate::worker::Next;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How often those offsets are moved at most, and how soon what failed is tried again.
const PAUSE: Duration = Duration::from_secs(1);
/// Messages that an open one may hold up before it is put again behind them.
pub(super) const SPAN_MIN: u64 = 10_000;
/// Open half messages put again in one step.
const MOVES: usize = 16;
/// Those whose copies are not yet safe.
const MOVING_MAX: usize = 1024;

/// How the offsets of the group are moved.
#[derive(Debug, Default)]
pub(super) struct Advance {
    not_before: Option<Instant>,
    /// Where to, once the log is safe up to there: what was closed before must not be forgotten while its
    /// entry can be lost.
    wanted: Option<([Fronts; 2], u64)>,
    /// Up to where entries can be passed, now that the offsets of the messages have been moved. At another
    /// time: whoever copies all offsets meanwhile must not copy the one of the entries alone.
    entries: [Option<u64>; 2],
}

impl Coordinator {
    /// Does what there is to do: closes what is left to be closed, has half messages checked, and moves the
    /// offsets.
    pub(crate) fn step(&self, store: &Store) -> Next {
        if !store.takes_puts() {
            return Next::Idle;
        }
        let now = store.clock().now();
        let settled = self.settle_rest(store, now);
        let checked = self.have_checked(store, now);
        let moved = self.move_stragglers(store, now);
        settled.or_sooner(checked).or_sooner(moved).or_sooner(self.advance(store, now))
    }

    fn settle_rest(&self, store: &Store, now: Instant) -> Next {
        let rest = mem::take(&mut self.book.lock().unsettled);
        let mut left = Vec::new();
        for half in rest {
            let is_settled = half.state.try_lock().is_some_and(|mut state| {
                let is_safe = state.latest.as_ref().is_none_or(|ticket| {
                    let answer = ticket.try_get();
                    answer.is_ok_and(|result| result.is_some_and(|r| store.is_safe_here(&r)))
                });
                is_safe && self.close(store, &mut state, Pace::AtOnce).is_ok()
            });
            if !is_settled {
                left.push(half);
            }
        }
        if left.is_empty() {
            return Next::Idle;
        }
        self.book.lock().unsettled.append(&mut left);
        Next::At(now + PAUSE)
    }

    /// Puts open half messages again that hold up the offsets though nobody decides them.
    fn move_stragglers(&self, store: &Store, now: Instant) -> Next {
        let stragglers: Vec<(u64, Arc<Half>)> = {
            let book = self.book.lock();
            let found = book.ledgers[Queue::Half as usize].stragglers(SPAN_MIN).take(MOVING_MAX);
            found.map(|(offset, half)| (offset, half.clone())).collect()
        };
        if stragglers.is_empty() {
            return Next::Idle;
        }
        let mut moved = 0;
        for (offset, half) in stragglers {
            // Otherwise it is being decided, or its copy is not yet safe.
            if let Some(mut state) = half.state.try_lock()
                && state.place.offset == offset
                && self.is_moved(store, &half, &mut state)
            {
                moved += 1;
            }
            if moved == MOVES {
                break;
            }
        }
        if moved > 0 { Next::Now } else { Next::At(now + PAUSE) }
    }

    fn is_moved(&self, store: &Store, half: &Arc<Half>, state: &mut HalfState) -> bool {
        if !matches!(state.fate, Fate::Open) {
            return false;
        }
        let view = match find(store, state.place) {
            Ok(Found::View(view)) => view,
            Ok(Found::Lost(error)) => {
                self.lose(half, state, error);
                return true;
            }
            _ => return false,
        };
        let (checks, pace) = (state.checks, Pace::AtOnce);
        let moved = match self.committed_before(store, half, state, &view, pace) {
            Ok(Some(_)) => Ok(()),
            Ok(None) => self.move_to(store, half, state, &view, (Queue::Half, checks), pace),
            Err(error) => Err(error),
        };
        match moved {
            Ok(()) => true,
            // There is room later.
            Err(Error::Full | Error::SegmentNotReady { .. }) => false,
            Err(error) => {
                self.note_error(error);
                false
            }
        }
    }

    /// Moves the offsets of the group, some time after something was closed.
    pub(super) fn advance(&self, store: &Store, now: Instant) -> Next {
        let mut advance = self.advance.lock();
        if advance.wanted.is_none() {
            if !self.is_dirty.load(Ordering::SeqCst) {
                return Next::Idle;
            }
            if let Some(not_before) = advance.not_before.filter(|not_before| now < *not_before) {
                return Next::At(not_before);
            }
            self.is_dirty.store(false, Ordering::SeqCst);
            self.scans.lock().clear();
            let fronts = self.book.lock().ledgers.each_mut().map(Ledger::fronts);
            advance.wanted = Some((fronts, store.log_end()));
        }
        let later = Next::At(now + PAUSE);
        let Some((fronts, end)) = advance.wanted else { return Next::Idle };
        advance.not_before = Some(now + PAUSE);
        if store.safe_end() < end || !self.is_advanced(store, fronts, &mut advance.entries) {
            return later;
        }
        advance.wanted = None;
        if self.is_dirty.load(Ordering::SeqCst) { later } else { Next::Idle }
    }

    /// Moves the offsets of the messages a last time: the next life may have no transactions, and what groups
    /// have not consumed may be kept for this one, too. Those of the entries stay, see [`Advance`].
    pub(crate) fn end(&self, ending: &Ending<'_>) {
        let left = ending.until.saturating_duration_since(ending.clock().now());
        let Some(mut advance) = self.advance.try_lock_for(left) else { return };
        let is_moved = advance.wanted.is_none() && !self.is_dirty.load(Ordering::SeqCst);
        if is_moved || !ending.takes_puts() {
            return;
        }
        let fronts = self.book.lock().ledgers.each_mut().map(Ledger::fronts);
        let end = ending.log_end();
        ending.flush();
        if ending.safe_end() < end {
            return;
        }
        // Nobody takes them back to where they were to go before.
        advance.wanted = None;
        for (queue, fronts) in Queue::ALL.into_iter().zip(fronts) {
            if fronts.messages > 0
                && let Err(error) = ending.commit_offset(GROUP, queue.topic(), 0, fronts.messages)
            {
                self.note_error(error);
            }
        }
    }

    fn is_advanced(
        &self,
        store: &Store,
        fronts: [Fronts; 2],
        entries: &mut [Option<u64>; 2],
    ) -> bool {
        let commit = |topic: &str, queue_id, next| {
            let known = store.committed_offset(GROUP, topic, queue_id);
            let is_empty = store.max_offset(topic, queue_id).unwrap_or(0) == 0;
            if known == Some(next) || known.is_none() && is_empty {
                return Ok(());
            }
            store.commit_offset(GROUP, topic, queue_id, next)
        };
        let advanced = Queue::ALL.iter().zip(fronts).zip(entries).try_for_each(
            |((queue, fronts), entries)| {
                let (done_topic, done_queue) = queue.entries();
                if let Some(entries) = *entries {
                    commit(done_topic, done_queue, entries)?;
                }
                commit(queue.topic(), 0, fronts.messages)?;
                if entries.replace(fronts.entries) != Some(fronts.entries) {
                    self.is_dirty.store(true, Ordering::SeqCst);
                }
                Ok(())
            },
        );
        advanced.map_err(|error| self.note_error(error)).is_ok()
    }
}
