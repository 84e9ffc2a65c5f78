//! Delayed messages: they wait in RocketMQ's topics and are put where they belong when they are due.
//!
//! A message is never delivered before it is due by the store's clock, and as a rule within
//! milliseconds; what cannot be put is tried again, and nothing is passed over but what is damaged. A
//! crash may have what was delivered shortly before delivered again.

mod done;
mod handle;
mod levels;
mod outbox;
mod routing;
mod timers;

pub use handle::{Cancelled, DelayHandle, DelayStats};
pub(crate) use routing::{asks_to_wait, waits_in};

use crate::clock::Clock;
use crate::error::{Error, Result};
use crate::message::format::DELAY_GROUP as GROUP;
use crate::store::{Ending, Store};
use crate::worker::{Alarm, Next};
use levels::Levels;
use outbox::{Outbox, Trouble};
use parking_lot::Mutex;
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};
use timers::Timers;

/// Messages read in one go.
const BATCH: usize = 64;
/// When what failed is tried again. Longer is not slept either while something waits: the wall clock may
/// be set, and a machine may sleep.
const RETRY_MS: i64 = 100;
/// The same where the store makes room at the moment.
const RETRY_SOON_MS: i64 = 10;
/// How often `delayOffset.json` is written while levels move, as by RocketMQ.
const EXPORT_INTERVAL: Duration = Duration::from_secs(10);

/// What one store has delayed.
#[derive(Debug, Default)]
pub(crate) struct Delay {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    waiting: Option<Waiting>,
    report: Report,
    export_at: Option<Instant>,
    /// Nothing is put any more.
    stopped: bool,
    ended: bool,
    #[cfg(test)]
    soon_max: Option<usize>,
}

#[derive(Debug)]
struct Waiting {
    levels: Levels,
    timers: Timers,
}

/// The time at which a step happens, and whom to wake for the next one.
struct Moment<'a> {
    now: Instant,
    unix: i64,
    waker: &'a Waker,
}

impl<'a> Moment<'a> {
    fn of(clock: &dyn Clock, waker: &'a Waker) -> Self {
        Self { now: clock.now(), unix: clock.unix_millis(), waker }
    }

    /// When to look whether it is `unix` by the wall clock.
    fn at(&self, unix: i64) -> Next {
        let millis = unix.saturating_sub(self.unix).clamp(0, RETRY_MS);
        Next::At(self.now + Duration::from_millis(millis.cast_unsigned()))
    }
}

/// What there is to tell.
#[derive(Debug, Default)]
struct Report {
    stats: DelayStats,
    /// What will not be delivered any more: the last of it.
    lost: Option<Error>,
    /// What failed, and until when that is news: it is tried again before.
    trouble: Option<(Error, i64)>,
    is_told: bool,
}

impl Report {
    fn undeliverable(&mut self, error: Error) {
        self.stats.undeliverable += 1;
        (self.lost, self.is_told) = (Some(error), false);
    }

    /// What failed, and when it is tried again.
    fn trouble(&mut self, error: Error, until: i64) {
        (self.trouble, self.is_told) = (Some((error, until + RETRY_MS)), false);
    }

    /// Tells the store; when there may be something else to tell.
    fn tell(&mut self, store: &Store, moment: &Moment<'_>) -> Next {
        if self.trouble.as_ref().is_some_and(|(_, until)| *until < moment.unix) {
            (self.trouble, self.is_told) = (None, false);
        }
        if !std::mem::replace(&mut self.is_told, true) {
            let trouble = self.trouble.as_ref().map(|(error, _)| error.clone());
            store.note_delays(trouble.or_else(|| self.lost.clone()));
        }
        if self.trouble.is_some() { moment.at(i64::MAX) } else { Next::Idle }
    }
}

impl Delay {
    /// Delivers what is due.
    pub(super) fn step(&self, store: &Store, alarm: &Arc<Alarm>) -> Next {
        if !store.takes_puts() {
            return Next::Idle;
        }
        let mut state = self.state.lock();
        if state.ended || state.stopped {
            return Next::Idle;
        }
        let waker = Waker::from(alarm.clone());
        let moment = Moment::of(store.clock(), &waker);
        match state.step(store, &moment) {
            Ok(next) => next,
            Err(Trouble::Ended) => {
                // How far all is, is yet to be noted.
                state.stopped = true;
                Next::Idle
            }
            Err(Trouble::OwnFault(error) | Trouble::Later(error)) => {
                state.report.trouble(error, moment.unix + RETRY_MS);
                state.report.tell(store, &moment)
            }
        }
    }

    /// Waits for what is on its way, and notes how far all is.
    pub(super) fn end(&self, ending: &Ending<'_>, alarm: &Arc<Alarm>) {
        let left = ending.until.saturating_duration_since(ending.clock().now());
        let Some(mut state) = self.state.try_lock_for(left) else { return };
        if std::mem::replace(&mut state.ended, true) {
            return;
        }
        let waker = Waker::from(alarm.clone());
        let moment = Moment::of(ending.clock(), &waker);
        if let Some(waiting) = &mut state.waiting {
            ending.flush();
            waiting.levels.end(ending, &moment);
            waiting.timers.end(ending, &moment);
        }
    }

    /// Lets go of the tickets of what a failure left on its way, which keep the store in memory.
    pub(super) fn let_go(&self) {
        if let Some(mut state) = self.state.try_lock() {
            state.waiting = None;
        }
    }

    fn stats(&self) -> DelayStats {
        let state = self.state.lock();
        let pending = state.waiting.as_ref().map_or(0, |waiting| waiting.timers.pending());
        DelayStats { pending_timers: pending, ..state.report.stats }
    }

    #[cfg(test)]
    fn keep_in_memory(&self, soon_max: usize) {
        self.state.lock().soon_max = Some(soon_max);
    }
}

impl State {
    fn step(&mut self, store: &Store, moment: &Moment<'_>) -> Result<Next, Trouble> {
        if self.waiting.is_none() {
            let (levels, timers) = (Levels::load(store)?, Timers::load(store));
            self.waiting = Some(Waiting { levels, timers });
            #[cfg(test)]
            if let (Some(waiting), Some(max)) = (&mut self.waiting, self.soon_max) {
                waiting.timers.keep_in_memory(max);
            }
        }
        let Some(Waiting { levels, timers }) = &mut self.waiting else { return Ok(Next::Idle) };
        let next = levels.step(store, moment, &mut self.report)?;
        let next = next.or_sooner(timers.step(store, moment, &mut self.report)?);
        let mut export_at = None;
        if levels.wants_export() || timers.wants_trim() {
            let due = self.export_at.unwrap_or(moment.now + EXPORT_INTERVAL);
            export_at = Some(due);
            if due <= moment.now {
                export_at = None;
                let exported = levels.export(&store.tables());
                if let Err(error) = exported.and_then(|()| timers.trim(store)) {
                    export_at = Some(moment.now + EXPORT_INTERVAL);
                    self.report.trouble(error, moment.unix + EXPORT_INTERVAL.as_millis() as i64);
                }
            }
        }
        self.export_at = export_at;
        let next = export_at.map_or(next, |due| next.or_sooner(Next::At(due)));
        Ok(next.or_sooner(self.report.tell(store, moment)))
    }
}

/// How long what failed is left alone.
fn patience(error: &Error) -> i64 {
    match error {
        Error::Full | Error::SegmentNotReady { .. } => RETRY_SOON_MS,
        _ => RETRY_MS,
    }
}

/// Waits for puts while the store closes.
fn wait_for<K>(
    outbox: &mut Outbox<K>,
    ending: &Ending<'_>,
    moment: &Moment<'_>,
    mut arrived: impl FnMut(K),
) {
    let is_durable = |end| ending.is_durable(end);
    loop {
        if outbox.settle(moment.waker, |_| false, is_durable, &mut arrived).is_err() {
            return;
        }
        let left = ending.until.saturating_duration_since(ending.clock().now());
        if !ending.has_threads() {
            break;
        }
        let waited = outbox.first().map(|ticket| ticket.wait_timeout(left));
        match waited {
            Some(Ok(Some(answer))) if answer.status == crate::PutStatus::PutOk => {
                if !is_durable(answer.end_offset) {
                    ending.flush();
                }
                if !is_durable(answer.end_offset) {
                    break;
                }
            }
            _ => break,
        }
    }
    outbox.clear();
}

/// What is wrong with a message that is gone, or does not say, or not rightly, where it belongs.
fn not_deliverable(topic: &str, queue_id: i32, queue_offset: u64) -> Error {
    Error::NotDeliverable { topic: topic.to_owned(), queue_id, queue_offset }
}

#[cfg(test)]
mod tests;
