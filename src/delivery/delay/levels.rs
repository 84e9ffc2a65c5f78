//! RocketMQ's delay levels: one queue of the schedule topic each, in which messages are due in the order
//! in which they lie.

use super::outbox::{Outbox, Trouble};
use super::routing::{delivered, scheduled_again, timed};
use super::{BATCH, GROUP, Moment, RETRY_MS, Report, not_deliverable, patience};
use crate::clock::Clock;
use crate::error::{Corruption, Error, Result};
use crate::log::MessageView;
use crate::message::format::{DELAY_LEVELS_MS, SCHEDULE_TOPIC};
use crate::store::{Ending, FetchStatus, Store, TagFilter};
use crate::tables::{DelayOffsets, Tables};
use crate::worker::Next;

/// When a message is tried again that cannot be put as things stand.
pub(super) const PUT_OFF_MS: i64 = 10_000;
/// The queue of the level that waits as long.
const PUT_OFF_QUEUE: i32 = 2;

#[derive(Debug, Default)]
pub(super) struct Levels {
    levels: [Level; DELAY_LEVELS_MS.len()],
    /// What `delayOffset.json` says.
    exported: [u64; DELAY_LEVELS_MS.len()],
}

#[derive(Debug, Default)]
struct Level {
    /// The next message to look at.
    next: u64,
    /// When it is due, where that was found out.
    next_due: Option<i64>,
    /// What lies before is delivered.
    reached: u64,
    /// The same as the store knows it; nothing before the first message.
    committed: Option<u64>,
    /// By what lies before the offset behind each was delivered.
    outbox: Outbox<u64>,
    /// Messages before this offset were there at that time, where the clock is behind their stamps.
    seen: Option<(u64, i64)>,
    /// Not before this time, after a failure.
    pause: Option<i64>,
}

impl Levels {
    /// Where each level is: the store has taken over what brokers have delivered.
    pub(super) fn load(store: &Store) -> Result<Self> {
        let told = match store.tables().load::<DelayOffsets>() {
            Ok(loaded) => loaded.table,
            Err(Error::Corrupt { .. }) => DelayOffsets::default(),
            Err(error) => return Err(error),
        };
        let mut loaded = Self::default();
        for ((level, exported), queue_id) in
            loaded.levels.iter_mut().zip(&mut loaded.exported).zip(0..)
        {
            level.committed = store.committed_offset(GROUP, SCHEDULE_TOPIC, queue_id);
            let next = level.committed.unwrap_or(0);
            (level.next, level.reached) = (next, next);
            let told = told.get(queue_id + 1).and_then(|next| u64::try_from(next).ok());
            *exported = told.unwrap_or(0);
        }
        Ok(loaded)
    }

    pub(super) fn step(
        &mut self,
        store: &Store,
        moment: &Moment<'_>,
        report: &mut Report,
    ) -> Result<Next, Trouble> {
        let mut next = Next::Idle;
        for (level, (queue_id, delay)) in self.levels.iter_mut().zip((0..).zip(DELAY_LEVELS_MS)) {
            next = next.or_sooner(level.step(store, queue_id, delay, moment, report)?);
        }
        Ok(next)
    }

    /// Whether brokers do not know how far the levels are.
    pub(super) fn wants_export(&self) -> bool {
        self.levels.iter().zip(self.exported).any(|(level, exported)| level.reached != exported)
    }

    /// Tells them.
    pub(super) fn export(&mut self, tables: &Tables) -> Result<()> {
        if !self.wants_export() {
            return Ok(());
        }
        let reached = self.levels.each_ref().map(|level| level.reached);
        let mut table = match tables.load::<DelayOffsets>() {
            Ok(loaded) => loaded.table,
            Err(Error::Corrupt { .. }) => DelayOffsets::default(),
            Err(error) => return Err(error),
        };
        for (level, reached) in (1..).zip(reached) {
            if reached > 0 {
                table.set(level, reached.cast_signed());
            }
        }
        tables.save(&mut table)?;
        self.exported = reached;
        Ok(())
    }

    pub(super) fn end(&mut self, ending: &Ending<'_>, moment: &Moment<'_>) {
        for (level, queue_id) in self.levels.iter_mut().zip(0..) {
            super::wait_for(&mut level.outbox, ending, moment, |reached| level.reached = reached);
            if level.committed.is_some_and(|committed| level.reached > committed) {
                // What is not noted is delivered again.
                let _ = ending.commit_offset(GROUP, SCHEDULE_TOPIC, queue_id, level.reached);
            }
        }
        let _ = self.export(&ending.tables());
    }
}

impl Level {
    fn step(
        &mut self,
        store: &Store,
        queue_id: i32,
        delay: i64,
        moment: &Moment<'_>,
        report: &mut Report,
    ) -> Result<Next, Trouble> {
        let Self { outbox, reached, .. } = self;
        let mut arrived = 0;
        outbox.settle(
            moment.waker,
            |end| store.is_confirmed(end),
            |end| store.is_durable(end),
            |behind| {
                *reached = behind;
                arrived += 1;
            },
        )?;
        report.stats.delivered += arrived;
        let end = store.max_offset(SCHEDULE_TOPIC, queue_id).unwrap_or(0);
        // At first, too: retention may be told to keep what a group has not consumed.
        if end > 0 && self.committed != Some(self.reached) {
            match store.commit_offset(GROUP, SCHEDULE_TOPIC, queue_id, self.reached) {
                Ok(()) => self.committed = Some(self.reached),
                // What is not noted is delivered again after a crash.
                Err(error) => report.trouble(error, moment.unix + RETRY_MS),
            }
        }
        if let Some(until) = self.pause {
            // Not longer than was meant, where the clock goes back.
            if moment.unix < until && until - moment.unix <= RETRY_MS {
                return Ok(moment.at(until));
            }
            self.pause = None;
        }
        let waits = if self.outbox.is_empty() { Next::Idle } else { moment.at(i64::MAX) };
        if self.outbox.is_full() {
            store.want_flush();
            return Ok(waits);
        }
        // The clock may have gone back since.
        match self.next_due.filter(|due| *due - moment.unix <= delay) {
            Some(due) if due > moment.unix => return Ok(waits.or_sooner(moment.at(due))),
            _ => self.next_due = None,
        }
        if end <= self.next {
            return Ok(waits);
        }
        match self.deliver(store, queue_id, (delay, end), moment, report) {
            Ok(next) => Ok(waits.or_sooner(next)),
            Err(Trouble::Ended) => Err(Trouble::Ended),
            Err(Trouble::OwnFault(error) | Trouble::Later(error)) => {
                let until = moment.unix + patience(&error);
                report.trouble(error, until);
                self.pause = Some(until);
                Ok(moment.at(until))
            }
        }
    }

    /// Puts the messages that are due, as many as are read in one go.
    fn deliver(
        &mut self,
        store: &Store,
        queue_id: i32,
        (delay, end): (i64, u64),
        moment: &Moment<'_>,
        report: &mut Report,
    ) -> Result<Next, Trouble> {
        let found = store.get_view(SCHEDULE_TOPIC, queue_id, self.next, BATCH, &TagFilter::any());
        let found = match found {
            // Damage is all that is left of it, and the next open makes no more of it.
            Err(Error::Corrupt { what, path, offset }) if what != Corruption::QueueEntry => {
                report.undeliverable(Error::Corrupt { what, path, offset });
                self.pass(self.next + 1);
                return Ok(Next::Now);
            }
            found => found?,
        };
        if found.status == FetchStatus::OffsetTooSmall {
            self.pass(found.min_offset);
            return Ok(Next::Now);
        }
        report.stats.undeliverable += found.skipped_damaged;
        for view in &found.messages {
            let offset = view.queue_offset();
            let due = self.due(view, (delay, end), store.clock());
            if due > moment.unix {
                self.pass(offset);
                self.next_due = Some(due);
                return Ok(moment.at(due));
            }
            if self.outbox.is_full() {
                return Ok(Next::Idle);
            }
            let Some(message) = delivered(&view.record()) else {
                report.undeliverable(not_deliverable(SCHEDULE_TOPIC, queue_id, offset));
                self.pass(offset + 1);
                continue;
            };
            self.pass(offset);
            let sent = self.outbox.send(store, message, offset + 1);
            if let (Err(Trouble::OwnFault(error)), Some(message)) =
                (&sent, delivered(&view.record()))
            {
                // It must not hold up the others: it waits elsewhere, until things have changed.
                let until = moment.unix + PUT_OFF_MS;
                report.trouble(error.clone(), until);
                let elsewhere = timed(message, until)?.waiting();
                match self.outbox.put_off(store, &elsewhere, offset + 1) {
                    // It leaves no room to say until when.
                    Err(Error::TooLarge { .. }) => {
                        let again = scheduled_again(&view.record(), queue_id.max(PUT_OFF_QUEUE));
                        self.outbox.put_off(store, &again, offset + 1)?;
                    }
                    put => put?,
                }
            } else {
                sent?;
            }
            self.next = offset + 1;
        }
        self.pass(found.next_offset);
        Ok(Next::Now)
    }

    /// Goes on at `next`: what lies between is delivered, or cannot be.
    fn pass(&mut self, next: u64) {
        self.next = self.next.max(next);
        match self.outbox.last_mut() {
            Some(behind) => *behind = (*behind).max(next),
            None => self.reached = self.reached.max(next),
        }
    }

    /// When a message is due. Where the clock stands before the time at which it was stored, it has gone
    /// back, or is another node's: then the delay is counted from when the message was seen first.
    fn due(&mut self, view: &MessageView, (delay, end): (i64, u64), clock: &dyn Clock) -> i64 {
        let stored = view.record().store_timestamp();
        let due = stored.saturating_add(delay);
        // Read now: it was stored before this, though perhaps after the step began.
        let unix = clock.unix_millis();
        if stored <= unix {
            return due;
        }
        let seen_at = match self.seen {
            Some((before, at)) if view.queue_offset() < before && at <= unix => at,
            _ => {
                self.seen = Some((end, unix));
                unix
            }
        };
        due.min(seen_at + delay)
    }
}
