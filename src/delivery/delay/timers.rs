//! Messages with a time of their own: they lie in the timer topic in the order in which they came, and
//! are due in another one.
//!
//! The soonest of them are kept in memory, 16 bytes each, and found again by reading the topic when most
//! of those are delivered. What was delivered is told by a floor, before which all are, and by notes of
//! what is behind it.

use super::done::{Done, note};
use super::levels::PUT_OFF_MS;
use super::outbox::{Outbox, Trouble};
use super::routing::{WHEEL_MS, delivered, destination, timed, timer_due, timer_slot};
use super::{BATCH, GROUP, Moment, RETRY_MS, Report, not_deliverable, patience};
use crate::error::{Corruption, Error, Result};
use crate::message::format::{TIMER_DONE_TOPIC, TIMER_TOPIC};
use crate::message::{Message, PropertiesRef, RecordRef, names};
use crate::store::{Ending, FetchStatus, Store, TagFilter, Ticket};
use crate::worker::Next;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::mem;

/// Messages that are kept in memory at most.
const SOON_MAX: usize = 1 << 20;
/// How long what was delivered is collected before a note is written of it.
const NOTE_MS: i64 = 100;
/// What is collected at most before.
const NOTE_LEN: usize = 512;
/// Notes that one message may keep which cannot be put: then it is put behind the others.
const NOTES_MAX: usize = 64;
/// Set in the place of what is delivered, and not of what cancels something: that comes first.
const IS_MESSAGE: u64 = 1 << 63;

/// When something is due, and which it is: its queue offset.
type Key = (i64, u64);
const NEVER: Key = (i64::MAX, u64::MAX);

fn offset_of((_, place): Key) -> u64 {
    place & !IS_MESSAGE
}

#[derive(Debug)]
pub(super) struct Timers {
    /// What is due before `horizon` and not yet on its way; more while a pass goes on.
    soon: BTreeSet<Key>,
    soon_max: usize,
    /// What is due then or later is not in memory.
    horizon: Key,
    pass: Option<Pass>,
    /// What is due and cannot be put as things stand, as many as may be kept in memory, and when it is tried
    /// again. Not among the soonest, where what is due last is let go of and found again by its time.
    put_off: BTreeSet<Key>,
    put_off_until: Option<i64>,
    /// The next message of the topic that was not looked at.
    tail: u64,
    done: Done,
    outbox: Outbox<Key>,
    /// By second.
    cancelled: BTreeMap<i64, Cancelled>,
    /// Done with, but not noted.
    unnoted: Vec<u64>,
    /// Those among them that were cancelled. They are noted though the floor tells of them: what the notes
    /// say of their markers may be durable before the floor is.
    unnoted_cancelled: BTreeSet<u64>,
    note_at: Option<i64>,
    /// The floor as the store knows it.
    committed: Option<u64>,
    /// Behind which queue offset each note lies, and the highest offset in it.
    notes: VecDeque<(u64, u64)>,
    /// Behind which of them they are let go of, once so many writes of offsets are durable.
    trimming: Option<(u64, u64)>,
    /// The next note to read, until all are.
    notes_from: Option<u64>,
    /// Not before this time, after a failure.
    pause: Option<i64>,
}

/// A look at everything that waits, for what is due at the horizon or behind it.
#[derive(Debug)]
struct Pass {
    next: u64,
    /// What is due before this, and was seen, is in memory.
    horizon: Key,
}

/// What is cancelled of what is due in one second, or has a slot in it.
#[derive(Debug, Default)]
struct Cancelled {
    /// When it is due, topic, `+`, and unique key.
    exactly: BTreeSet<(i64, String)>,
    /// The same of what a broker recalls: it remembers of a message only which slot that has.
    in_slot: BTreeSet<(i64, String)>,
    /// The messages that say so.
    markers: Vec<u64>,
}

/// What a record of the timer topic is.
enum Found {
    Waiting(Key),
    /// Nothing that could be delivered, and why.
    Broken(Error),
}

impl Timers {
    /// Where the timers are. What waits is read step by step.
    pub(super) fn load(store: &Store) -> Self {
        let committed = store.committed_offset(GROUP, TIMER_TOPIC, 0);
        // What has expired need not be looked at, and may be very much.
        let first = store.min_offset(TIMER_TOPIC, 0).unwrap_or(0);
        let floor = committed.unwrap_or(0).max(first);
        let notes_from = store.committed_offset(GROUP, TIMER_DONE_TOPIC, 0).unwrap_or(0);
        Self {
            soon: BTreeSet::new(),
            soon_max: SOON_MAX,
            horizon: NEVER,
            pass: None,
            put_off: BTreeSet::new(),
            put_off_until: None,
            tail: floor,
            done: Done::before(floor),
            outbox: Outbox::default(),
            cancelled: BTreeMap::new(),
            unnoted: Vec::new(),
            unnoted_cancelled: BTreeSet::new(),
            note_at: None,
            committed,
            notes: VecDeque::new(),
            trimming: None,
            notes_from: Some(notes_from),
            pause: None,
        }
    }

    #[cfg(test)]
    pub(super) fn keep_in_memory(&mut self, soon_max: usize) {
        self.soon_max = soon_max;
    }

    /// How many wait, as far as that is known without reading.
    pub(super) fn pending(&self) -> u64 {
        let open = self.tail - self.done.floor().min(self.tail);
        let known = self.soon.len() + self.put_off.len() + self.outbox.keys().count();
        open.min(known as u64)
    }

    pub(super) fn step(
        &mut self,
        store: &Store,
        moment: &Moment<'_>,
        report: &mut Report,
    ) -> Result<Next, Trouble> {
        let mut arrived = Vec::new();
        self.outbox.settle(
            moment.waker,
            |end| store.is_confirmed(end),
            |end| store.is_durable(end),
            |key| arrived.push(offset_of(key)),
        )?;
        if self.outbox.is_full() {
            store.want_flush();
        }
        report.stats.delivered += arrived.len() as u64;
        arrived.into_iter().for_each(|offset| self.finish(offset, moment));
        if let Some(until) = self.pause {
            // Not longer than was meant, where the clock goes back.
            if moment.unix < until && until - moment.unix <= RETRY_MS {
                return Ok(moment.at(until));
            }
            self.pause = None;
        }
        match self.work(store, moment, report) {
            Err(Trouble::OwnFault(error) | Trouble::Later(error)) => {
                let until = moment.unix + patience(&error);
                report.trouble(error, until);
                self.pause = Some(until);
                Ok(moment.at(until))
            }
            worked => worked,
        }
    }

    fn work(
        &mut self,
        store: &Store,
        moment: &Moment<'_>,
        report: &mut Report,
    ) -> Result<Next, Trouble> {
        if self.read_notes(store)? {
            return Ok(Next::Now);
        }
        // What cancels a message must be known before the message is sent, and so must all that was put
        // before this step began.
        let is_caught_up = store.is_caught_up();
        let mut more = self.read_tail(store, moment, report)?;
        let is_due = |key: Option<&Key>| key.is_some_and(|(due, _)| *due <= moment.unix);
        self.try_again(moment);
        if !more && is_caught_up {
            self.send_due(store, moment, report)?;
            more |= is_due(self.soon.first()) && !self.outbox.is_full();
        }
        more |= self.pass(store, moment, report)?;
        self.note(store, moment)?;
        if more {
            return Ok(Next::Now);
        }
        if !is_caught_up {
            return Ok(moment.at(i64::MAX));
        }
        let mut next = if self.outbox.is_empty() { Next::Idle } else { moment.at(i64::MAX) };
        for due in self.soon.first().map(|(due, _)| *due).into_iter().chain(self.put_off_until) {
            next = next.or_sooner(moment.at(due));
        }
        Ok(self.note_at.map_or(next, |at| next.or_sooner(moment.at(at))))
    }

    /// Reads what was noted before the store was opened; whether there is more of it.
    fn read_notes(&mut self, store: &Store) -> Result<bool> {
        let Some(from) = self.notes_from else { return Ok(false) };
        let found = match store.get_view(TIMER_DONE_TOPIC, 0, from, BATCH, &TagFilter::any()) {
            // Messages come twice then.
            Err(Error::Corrupt { what, .. }) if what != Corruption::QueueEntry => {
                self.notes_from = Some(from + 1);
                return Ok(true);
            }
            found => found?,
        };
        for view in &found.messages {
            // A note never speaks of what comes behind it, whoever has put it.
            let end = store.first_behind(TIMER_TOPIC, 0, view.physical_offset())?;
            let highest = self.done.take_note(view.body(), end);
            self.notes.push_back((view.queue_offset() + 1, highest));
        }
        let is_end = !matches!(found.status, FetchStatus::Found | FetchStatus::OffsetTooSmall)
            && found.next_offset >= found.max_offset;
        self.notes_from = (!is_end).then_some(found.next_offset);
        Ok(!is_end)
    }

    /// Takes up what was put since; whether there is more of it.
    fn read_tail(
        &mut self,
        store: &Store,
        moment: &Moment<'_>,
        report: &mut Report,
    ) -> Result<bool> {
        let max = store.max_offset(TIMER_TOPIC, 0).unwrap_or(0);
        // What is done with need not be read.
        self.tail = self.done.next_open(self.tail).min(max.max(self.tail));
        if self.tail >= max {
            return Ok(false);
        }
        if self.committed.is_none() {
            // Retention may be told to keep what a group has not consumed.
            store.commit_offset(GROUP, TIMER_TOPIC, 0, self.done.floor())?;
            self.committed = Some(self.done.floor());
        }
        let from = self.tail;
        self.tail = scan(store, from, report, |offset, found, report| {
            if self.done.contains(offset) {
                return;
            }
            match found {
                Some(Found::Waiting(key)) if key < self.horizon => {
                    self.soon.insert(key);
                    self.shed();
                }
                // A pass finds it.
                Some(Found::Waiting(_)) => {}
                Some(Found::Broken(error)) => {
                    report.undeliverable(error);
                    self.finish(offset, moment);
                }
                None => self.finish(offset, moment),
            }
        })?;
        Ok(self.tail < max)
    }

    /// Lets go of what is due last, where there is more than may be kept.
    fn shed(&mut self) {
        while self.soon.len() > self.soon_max
            && let Some(last) = self.soon.pop_last()
        {
            self.horizon = self.horizon.min(last);
            if let Some(pass) = &mut self.pass {
                pass.horizon = pass.horizon.min(last);
            }
        }
    }

    /// Looks for what is due at the horizon and behind it, where there is room for it; whether there is
    /// more to look at.
    fn pass(&mut self, store: &Store, moment: &Moment<'_>, report: &mut Report) -> Result<bool> {
        if self.pass.is_none() {
            let enough = self.soon.len() > self.soon_max / 2
                && self.soon.first().is_some_and(|key| *key < self.horizon);
            if self.horizon == NEVER || enough {
                return Ok(false);
            }
            self.pass = Some(Pass { next: self.done.floor(), horizon: NEVER });
        }
        let Some(Pass { next, .. }) = &self.pass else { return Ok(false) };
        let next = self.done.next_open(*next).min(self.tail);
        if next < self.tail {
            let next = scan(store, next, report, |offset, found, _| {
                let Some(Found::Waiting(key)) = found else { return };
                let wanted = self.horizon <= key
                    && self.pass.as_ref().is_some_and(|pass| key < pass.horizon);
                let is_sent = || {
                    key.0 <= moment.unix
                        && self.outbox.keys().any(|sent| offset_of(*sent) == offset)
                };
                let is_put_off = || self.put_off.contains(&key);
                if wanted && !self.done.contains(offset) && !is_put_off() && !is_sent() {
                    self.soon.insert(key);
                    self.shed();
                }
            })?;
            if let Some(pass) = &mut self.pass {
                pass.next = next;
            }
            return Ok(true);
        }
        if let Some(pass) = self.pass.take() {
            self.horizon = pass.horizon;
        }
        Ok(false)
    }

    /// Takes up again what could not be put, after some time; not longer than was meant, where the clock
    /// goes back.
    fn try_again(&mut self, moment: &Moment<'_>) {
        let is_early = |until: i64| moment.unix < until && until - moment.unix <= PUT_OFF_MS;
        if self.put_off_until.is_none_or(is_early) {
            return;
        }
        self.put_off_until = None;
        for key in mem::take(&mut self.put_off) {
            // Otherwise a pass finds it.
            if key < self.horizon || self.pass.as_ref().is_some_and(|pass| key < pass.horizon) {
                self.soon.insert(key);
            }
        }
        self.shed();
    }

    /// Sends what is due.
    fn send_due(
        &mut self,
        store: &Store,
        moment: &Moment<'_>,
        report: &mut Report,
    ) -> Result<(), Trouble> {
        for _ in 0..BATCH {
            let Some(key) = self.soon.first().copied() else { break };
            if key.0 > moment.unix || key >= self.horizon || self.outbox.is_full() {
                break;
            }
            self.send(store, key, moment, report)?;
            self.soon.remove(&key);
        }
        self.forget_cancelled(moment);
        Ok(())
    }

    /// Sends one message, or does without; an error leaves it where it is.
    fn send(
        &mut self,
        store: &Store,
        key: Key,
        moment: &Moment<'_>,
        report: &mut Report,
    ) -> Result<(), Trouble> {
        let offset = offset_of(key);
        let found = match store.get_view(TIMER_TOPIC, 0, offset, 1, &TagFilter::any()) {
            Err(error @ Error::Corrupt { .. }) if !is_of_queue(&error) => {
                report.undeliverable(error);
                self.finish(offset, moment);
                return Ok(());
            }
            found => found?,
        };
        let Some(view) = found.messages.first().filter(|view| view.queue_offset() == offset) else {
            // It has expired.
            report.undeliverable(not_deliverable(TIMER_TOPIC, 0, offset));
            self.finish(offset, moment);
            return Ok(());
        };
        let record = view.record();
        if let Some(marked) = record.properties().get(names::TIMER_DELETE_UNIQUE_KEY) {
            let (due, slot) = times(record.properties(), key.0);
            let cancelled = self.cancelled.entry(slot.div_euclid(WHEEL_MS)).or_default();
            cancelled.exactly.insert((due, marked.to_owned()));
            let is_exact = record.properties().get(names::TIMER_DELIVER_MS).is_some();
            if due == recalled_at(slot) || !is_exact {
                cancelled.in_slot.insert((slot, marked.to_owned()));
            }
            // Not done with before what it cancels is: a crash between would undo it.
            cancelled.markers.push(offset);
            return Ok(());
        }
        if self.is_cancelled(key.0, &record) {
            report.stats.cancelled += 1;
            self.unnoted_cancelled.insert(offset);
            self.finish(offset, moment);
            return Ok(());
        }
        let Some(message) = delivered(&record) else {
            report.undeliverable(not_deliverable(TIMER_TOPIC, 0, offset));
            self.finish(offset, moment);
            return Ok(());
        };
        match self.outbox.send(store, message, key) {
            // It is in nobody's way: it waits until things have changed.
            Err(Trouble::OwnFault(error)) => {
                let until = moment.unix + PUT_OFF_MS;
                report.trouble(error, until);
                if (self.put_off.len() >= self.soon_max || self.keeps_notes(offset))
                    && let Some(message) = delivered(&record)
                {
                    match self.outbox.put_off(store, &timed(message, until)?.waiting(), key) {
                        Err(Error::TooLarge { .. }) => {}
                        put => return Ok(put?),
                    }
                }
                self.put_off.insert(key);
                self.put_off_until.get_or_insert(until);
                Ok(())
            }
            sent => sent,
        }
    }

    /// Whether all that is done with behind a message is noted one by one for its sake alone.
    fn keeps_notes(&self, offset: u64) -> bool {
        self.notes.len() >= NOTES_MAX && self.done.floor() == offset
    }

    fn is_cancelled(&self, due: i64, record: &RecordRef<'_>) -> bool {
        let properties = record.properties();
        let (due, slot) = times(properties, due);
        let Some(cancelled) = self.cancelled.get(&slot.div_euclid(WHEEL_MS)) else { return false };
        let (topic, key) = (properties.get(names::REAL_TOPIC), properties.get(names::UNIQ_KEY));
        topic.zip(key).is_some_and(|(topic, key)| {
            let marker = marker(topic, key);
            cancelled.exactly.contains(&(due, marker.clone()))
                || cancelled.in_slot.contains(&(slot, marker))
        })
    }

    /// What is cancelled at times of which nothing waits any more.
    fn forget_cancelled(&mut self, moment: &Moment<'_>) {
        while let Some(first) = self.cancelled.first_entry() {
            // Whoever does not know more than its slot waits for a second longer.
            let due = first.key().saturating_add(2).saturating_mul(WHEEL_MS);
            let waits = self.soon.first().is_some_and(|(next, _)| *next <= due);
            if waits || self.horizon <= (due, u64::MAX) {
                break;
            }
            first.remove().markers.into_iter().for_each(|offset| self.finish(offset, moment));
        }
    }

    /// Is done with a message, and will note that.
    fn finish(&mut self, offset: u64, moment: &Moment<'_>) {
        self.done.insert(offset);
        self.unnoted.push(offset);
        self.note_at.get_or_insert(moment.unix + NOTE_MS);
    }

    /// Notes what is done with, now and then.
    fn note(&mut self, store: &Store, moment: &Moment<'_>) -> Result<()> {
        let Some(at) = self.note_at else { return Ok(()) };
        let soon = moment.unix < at && at - moment.unix <= NOTE_MS;
        if soon && self.unnoted.len() < NOTE_LEN {
            return Ok(());
        }
        self.note_at = None;
        let noted = self.note_with(
            |next| store.commit_offset(GROUP, TIMER_TOPIC, 0, next),
            |note| store.try_submit(note),
        );
        if noted.is_err() {
            self.note_at = Some(moment.unix + RETRY_MS);
        }
        noted
    }

    fn note_with(
        &mut self,
        commit: impl FnOnce(u64) -> Result<()>,
        submit: impl Fn(&Message) -> Result<Ticket>,
    ) -> Result<()> {
        let floor = self.done.floor();
        let mut committed = Ok(());
        if self.committed != Some(floor) {
            committed = commit(floor);
            if committed.is_ok() {
                self.committed = Some(floor);
            }
        }
        // The floor tells of the others.
        let floor = self.committed.unwrap_or(0);
        let cancelled = &self.unnoted_cancelled;
        self.unnoted.retain(|offset| *offset >= floor || cancelled.contains(offset));
        self.unnoted.sort_unstable();
        while let Some(note) = note(&self.unnoted) {
            // It need not be waited for: whatever is durable behind it, it is.
            let message = Message::new(TIMER_DONE_TOPIC, note.body).tag("d").wait(false);
            let ticket = submit(&message)?;
            self.notes.push_back((ticket.queue_offset() + 1, note.highest));
            self.unnoted.drain(..note.len);
        }
        self.unnoted_cancelled.clear();
        committed
    }

    /// Whether there are notes that the floor has made useless.
    pub(super) fn wants_trim(&self) -> bool {
        self.trimming.is_some() || self.has_useless_notes()
    }

    fn has_useless_notes(&self) -> bool {
        let first = self.notes.front().map(|(_, highest)| *highest);
        self.notes_from.is_none() && first < self.committed && first.is_some()
    }

    /// Lets go of them.
    pub(super) fn trim(&mut self, store: &Store) -> Result<()> {
        if self.trimming.is_none() {
            let mut next = None;
            while self.has_useless_notes() {
                next = self.notes.pop_front().map(|(behind, _)| behind);
            }
            let Some(next) = next else { return Ok(()) };
            self.trimming = Some((next, store.want_offsets_synced()?));
        }
        let Some((next, mark)) = self.trimming else { return Ok(()) };
        // Not before the floor is durable, which tells what they told.
        if !store.are_offsets_synced(mark)? {
            return Ok(());
        }
        self.trimming = None;
        let end = store.max_offset(TIMER_DONE_TOPIC, 0).unwrap_or(0);
        store.commit_offset(GROUP, TIMER_DONE_TOPIC, 0, next.min(end))
    }

    pub(super) fn end(&mut self, ending: &Ending<'_>, moment: &Moment<'_>) {
        let mut arrived = Vec::new();
        super::wait_for(&mut self.outbox, ending, moment, |key| arrived.push(offset_of(key)));
        arrived.into_iter().for_each(|offset| self.finish(offset, moment));
        if self.note_at.is_some() {
            // What is not noted is delivered again.
            let _ = self.note_with(
                |next| ending.commit_offset(GROUP, TIMER_TOPIC, 0, next),
                |note| ending.submit(note),
            );
        }
    }
}

/// When a record of the timer topic is due, and its slot.
fn times(properties: PropertiesRef<'_>, due: i64) -> (i64, i64) {
    let due = timer_due(properties).unwrap_or(due);
    let slot = timer_slot(properties);
    (
        due,
        slot.unwrap_or_else(|| due.saturating_sub(1).div_euclid(WHEEL_MS).saturating_mul(WHEEL_MS)),
    )
}

/// The time of what a broker puts to recall a message of a slot.
fn recalled_at(slot: i64) -> i64 {
    slot.saturating_add(1)
}

/// What a message says that cancels another one.
pub(super) fn marker(topic: &str, unique_key: &str) -> String {
    format!("{topic}+{unique_key}")
}

fn is_of_queue(error: &Error) -> bool {
    matches!(error, Error::Corrupt { what: Corruption::QueueEntry, .. })
}

/// Shows what lies at `from` and behind it, each by its queue offset: `None` where there is nothing any
/// more. Where to go on.
fn scan(
    store: &Store,
    from: u64,
    report: &mut Report,
    mut show: impl FnMut(u64, Option<Found>, &mut Report),
) -> Result<u64> {
    let found = match store.get_view(TIMER_TOPIC, 0, from, BATCH, &TagFilter::any()) {
        Err(error @ Error::Corrupt { .. }) if !is_of_queue(&error) => {
            show(from, Some(Found::Broken(error)), report);
            return Ok(from + 1);
        }
        found => found?,
    };
    report.stats.undeliverable += found.skipped_damaged;
    let mut expected = from;
    for view in &found.messages {
        let offset = view.queue_offset();
        (expected..offset).for_each(|gone| show(gone, None, report));
        let record = view.record();
        let properties = record.properties();
        let is_marker = properties.get(names::TIMER_DELETE_UNIQUE_KEY).is_some();
        let found = match timer_due(properties) {
            // Before all that it may cancel.
            Some(due) if is_marker => {
                let slot = timer_slot(properties).map_or(due, recalled_at);
                Found::Waiting((due.min(slot), offset))
            }
            Some(due) if destination(properties).is_some() => {
                Found::Waiting((due, offset | IS_MESSAGE))
            }
            _ => Found::Broken(not_deliverable(TIMER_TOPIC, 0, offset)),
        };
        show(offset, Some(found), report);
        expected = offset + 1;
    }
    (expected..found.next_offset).for_each(|gone| show(gone, None, report));
    Ok(found.next_offset.max(expected))
}
