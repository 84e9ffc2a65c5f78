//! Who decides half messages, and what is put for it.
//!
//! The half message is put first; then either the message itself and an entry that the half message is
//! done with, or that entry alone. A crash in between leaves the half message open, and the producer is
//! asked. The log keeps the order of what was put, so an entry never survives without what came before it.

mod checks;
mod recovery;
mod search;
mod upkeep;

use super::super::{Delivery, Sent, delay};
use super::TransactionStats;
use super::checker::Checker;
use super::half::{self, HalfMessageView};
use super::ledger::Ledger;
use crate::delivery::producer::select::Routes;
use crate::delivery::unique_ids::UniqueIds;
use crate::error::{Corruption, Error, Result};
use crate::log::MessageView;
use crate::message::format::{CHECKED_IN_VAIN_TOPIC, HALF_DONE_TOPIC, HALF_TOPIC};
use crate::message::format::{PROPERTIES_LEN_MAX, RECORD_CRC_SIZE, TRANSACTION_GROUP as GROUP};
use crate::message::{Message, names};
use crate::store::{Acknowledged, FetchStatus, PutResult, Store, TagFilter, Ticket};
use checks::first_check;
use parking_lot::Mutex;
use search::Scan;
use std::collections::{BTreeSet, HashMap};
use std::mem;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};
use upkeep::Advance;

/// Messages read in one go.
const BATCH: usize = 256;

/// The two queues of half messages, each with one that says which of them are done with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Queue {
    /// Those that are checked.
    Half = 0,
    /// Those that were checked in vain too often.
    Parked = 1,
}

impl Queue {
    const ALL: [Self; 2] = [Self::Half, Self::Parked];

    fn topic(self) -> &'static str {
        match self {
            Self::Half => HALF_TOPIC,
            Self::Parked => CHECKED_IN_VAIN_TOPIC,
        }
    }

    /// Topic and queue of the entries. RocketMQ has none for parked messages: theirs are in a queue that it
    /// never looks into.
    fn entries(self) -> (&'static str, i32) {
        match self {
            Self::Half => (HALF_DONE_TOPIC, 0),
            Self::Parked => (CHECKED_IN_VAIN_TOPIC, 1),
        }
    }
}

/// Where the newest copy of a half message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    queue: Queue,
    offset: u64,
}

/// A half message, whichever copy of it is the newest.
#[derive(Debug)]
pub(super) struct Half {
    group: Arc<str>,
    /// Held by whoever decides, until it is decided: there is one decision.
    state: Mutex<HalfState>,
}

#[derive(Debug)]
struct HalfState {
    place: Place,
    /// Physical offset of the first copy.
    origin: u64,
    checks: u32,
    /// It is from an earlier life of the store, and may have been committed shortly before that ended.
    is_recovered: bool,
    /// When it was stored, in milliseconds since 1970.
    since: i64,
    /// Seconds until the first check, if not the producer's timeout.
    immunity: Option<u32>,
    due: Option<Instant>,
    /// Copies that are done with as soon as what was put last is safe.
    closing: Vec<Place>,
    /// What was put last on its behalf.
    latest: Option<Arc<Ticket>>,
    fate: Fate,
    /// How it was committed, to be told to whoever asked.
    news: Option<Box<Result<Sent>>>,
}

#[derive(Debug)]
enum Fate {
    Open,
    /// With where the message lies, if that was found out by looking for it.
    Committed(Option<Box<Acknowledged>>),
    RolledBack,
}

impl HalfState {
    fn new(place: Place, origin: u64) -> Self {
        Self {
            place,
            origin,
            checks: 0,
            is_recovered: false,
            since: 0,
            immunity: None,
            due: None,
            closing: Vec::new(),
            latest: None,
            fate: Fate::Open,
            news: None,
        }
    }
}

/// Whether what is put may wait for its place, and for being safe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pace {
    Patient,
    /// On the thread that does everything: others would wait, too.
    AtOnce,
}

impl Pace {
    fn lay(self, store: &Store, message: &Message) -> Result<Ticket> {
        // Where there are no threads, nobody else makes room.
        let is_patient = self == Self::Patient || !store.is_threaded();
        if is_patient { store.lay(message) } else { store.try_submit(message) }
    }
}

/// What a place holds.
enum Found {
    View(MessageView),
    /// Nothing that can be read yet.
    Later,
    /// Nothing that will ever be.
    Lost(Error),
}

/// Who writes to a queue of half messages and to that of its entries.
#[derive(Debug, Default)]
struct Desk {
    /// Held while a copy gets its place, until the ledger knows it.
    order: Mutex<()>,
    /// What is to be in the next entry; whoever added something waits for its turn.
    owed: Mutex<Vec<u64>>,
    /// Held while an entry gets its place; the last one.
    turn: Mutex<Option<Arc<Ticket>>>,
}

/// What is known of a producer group.
#[derive(Debug, Default)]
struct Group {
    checker: Option<Arc<Checker>>,
    /// When which half message is to be checked.
    due: BTreeSet<(Instant, u64)>,
}

#[derive(Debug)]
struct Book {
    ledgers: [Ledger<Arc<Half>>; 2],
    groups: HashMap<Arc<str>, Group>,
    /// Those that have something to close.
    unsettled: Vec<Arc<Half>>,
    last_error: Option<Error>,
}

#[derive(Debug, Default)]
struct Counts {
    committed: AtomicU64,
    rolled_back: AtomicU64,
    checks: AtomicU64,
    panics: AtomicU64,
    parked: AtomicU64,
    unreadable: AtomicU64,
}

/// The half messages of a store.
#[derive(Debug)]
pub(crate) struct Coordinator {
    delivery: Weak<Delivery>,
    desks: [Desk; 2],
    book: Mutex<Book>,
    advance: Mutex<Advance>,
    /// Something was closed since the offsets were moved.
    is_dirty: AtomicBool,
    /// Where there is no key index to ask.
    scans: Mutex<HashMap<(String, i32), Scan>>,
    keys: UniqueIds,
    routes: Routes,
    counts: Counts,
}

fn add(count: &AtomicU64) {
    count.fetch_add(1, Ordering::Relaxed);
}

impl Coordinator {
    /// Puts a half message.
    pub(super) fn begin(
        &self,
        store: &Store,
        checker: &Checker,
        message: Message,
    ) -> Result<(Arc<Half>, Message)> {
        let begun = self.begin_quietly(store, checker, message);
        if let Err(error) = &begun {
            self.tell(Some(Box::new(Err(error.clone()))));
        }
        begun
    }

    /// Lets whoever asked know of a message that was sent or not. Not under a lock: that is a stranger's code.
    fn tell(&self, news: Option<Box<Result<Sent>>>) {
        if let (Some(news), Some(delivery)) = (news, self.delivery.upgrade()) {
            delivery.observers.tell_sent(&news);
        }
    }

    fn begin_quietly(
        &self,
        store: &Store,
        checker: &Checker,
        mut message: Message,
    ) -> Result<(Arc<Half>, Message)> {
        half::check(&message)?;
        store.check_compression(message.sys_flag.compression())?;
        self.routes.aim(store, std::slice::from_mut(&mut message), None)?;
        let new_key = || self.keys.next(store.clock(), store.now()).id().to_owned();
        let prepared = half::prepare(message, &checker.group, new_key)?;
        self.check_size(store, &prepared)?;
        let group = {
            let mut book = self.book.lock();
            let max = checker.options.max_open;
            if book.ledgers[Queue::Half as usize].len() >= max {
                return Err(Error::TooManyTransactions { max });
            }
            book.intern(&checker.group)
        };
        let immunity = half::immunity(prepared.properties_ref());
        let message = half::half_of(prepared);
        let nowhere = Place { queue: Queue::Half, offset: u64::MAX };
        let half = Arc::new(Half { group, state: Mutex::new(HalfState::new(nowhere, 0)) });
        let mut state = half.state.lock();
        let ticket = self.append(store, Queue::Half, &message, &half, Pace::Patient)?;
        state.place.offset = ticket.queue_offset();
        state.origin = ticket.physical_offset();
        state.immunity = immunity;
        state.since = store.clock().unix_millis();
        let result = store.settle(&ticket)?;
        // Also if it is not as safe as asked: it is there, and whoever put it may not decide.
        state.since = result.store_timestamp;
        let due = first_check(store, checker, &state);
        self.schedule(&half, &mut state, due);
        drop(state);
        result.ok()?;
        Ok((half, message))
    }

    /// Whatever becomes of a half message must fit, too.
    fn check_size(&self, store: &Store, prepared: &Message) -> Result<()> {
        let len = prepared.properties_ref().as_bytes().len() + half::SPARE + RECORD_CRC_SIZE;
        if len > PROPERTIES_LEN_MAX {
            return Err(Error::TooLarge { what: "properties", len, max: PROPERTIES_LEN_MAX });
        }
        let longest = HALF_TOPIC.len().max(CHECKED_IN_VAIN_TOPIC.len());
        let spare = half::SPARE + longest.saturating_sub(prepared.topic().len());
        store.check_message(prepared, spare)
    }

    /// Puts a copy, which the ledger knows then.
    fn append(
        &self,
        store: &Store,
        queue: Queue,
        message: &Message,
        half: &Arc<Half>,
        pace: Pace,
    ) -> Result<Ticket> {
        let order = &self.desks[queue as usize].order;
        let _order = match pace {
            // Whoever has it may wait for room, and those behind it not each as long once more.
            Pace::Patient => order.try_lock_for(patience(store)),
            Pace::AtOnce => order.try_lock(),
        };
        let _order = _order.ok_or(Error::Full)?;
        let ticket = pace.lay(store, message)?;
        self.book.lock().ledgers[queue as usize].note(ticket.queue_offset(), Some(half.clone()));
        self.touch();
        Ok(ticket)
    }

    /// What the newest copy says.
    pub(super) fn read(&self, store: &Store, half: &Half) -> Result<HalfMessageView> {
        let state = half.state.lock();
        HalfMessageView::new(self.view(store, &state)?)
    }

    fn view(&self, store: &Store, state: &HalfState) -> Result<MessageView> {
        let mut found = find(store, state.place)?;
        if let (Found::Later, Some(ticket)) = (&found, &state.latest) {
            // Whatever comes of that, it can be read or not.
            let _ = store.settle(ticket);
            found = find(store, state.place)?;
        }
        match found {
            Found::View(view) => Ok(view),
            Found::Later => {
                let (durable, wanted) = (store.safe_end(), state.origin + 1);
                Err(Error::FlushTimeout { durable, wanted })
            }
            Found::Lost(error) => Err(error),
        }
    }

    /// Puts the message of a half message; once, whoever asks how often.
    pub(super) fn commit(&self, store: &Store, half: &Arc<Half>) -> Result<Acknowledged> {
        let mut state = half.state.lock();
        let committed = self.commit_locked(store, half, &mut state);
        let news = state.news.take();
        drop(state);
        self.tell(news);
        committed
    }

    fn commit_locked(
        &self,
        store: &Store,
        half: &Arc<Half>,
        state: &mut HalfState,
    ) -> Result<Acknowledged> {
        match &state.fate {
            Fate::Committed(Some(done)) => return Ok(**done),
            Fate::Committed(None) => {}
            Fate::RolledBack => return Err(Error::TransactionDecided { committed: false }),
            Fate::Open => {
                let view = self.view(store, state)?;
                let pace = Pace::Patient;
                if let Some(done) = self.committed_before(store, half, state, &view, pace)? {
                    return Ok(done);
                }
                let message = half::committed(&view.record(), state.origin)?;
                // None that was begun here is, but a broker lets a commit be.
                let is_delayed = delay::asks_to_wait(&message);
                let message = if is_delayed { store.rerouted(message)? } else { message };
                let key = message.get(names::UNIQ_KEY).unwrap_or_default();
                state.latest = Some(Arc::new(store.lay(&message)?));
                self.decide(half, state, Fate::Committed(None));
                let place = state.place;
                state.closing.push(place);
                add(&self.counts.committed);
                let finished = self.finish(store, half, state);
                state.news = Some(Box::new(match &finished {
                    Ok(put) => put.ok().map(|_| Sent::at_once(*put, key)),
                    Err(error) => Err(error.clone()),
                }));
                return finished?.ok();
            }
        }
        self.finish(store, half, state)?.ok()
    }

    /// Sees to it that a half message never becomes a message.
    pub(super) fn roll_back(&self, store: &Store, half: &Arc<Half>) -> Result<()> {
        self.roll_back_locked(store, half, &mut half.state.lock())
    }

    fn roll_back_locked(
        &self,
        store: &Store,
        half: &Arc<Half>,
        state: &mut HalfState,
    ) -> Result<()> {
        match &state.fate {
            Fate::Committed(_) => return Err(Error::TransactionDecided { committed: true }),
            Fate::RolledBack => {}
            Fate::Open => {
                if state.is_recovered
                    && let Found::View(view) = find(store, state.place)?
                    && self.committed_before(store, half, state, &view, Pace::Patient)?.is_some()
                {
                    return Err(Error::TransactionDecided { committed: true });
                }
                // The newest copy last: while its entry is missing, the half message is open.
                while let Some(place) = state.closing.first().copied() {
                    self.put_done(store, place, Pace::Patient)?;
                    state.closing.remove(0);
                }
                state.latest = Some(self.put_done(store, state.place, Pace::Patient)?);
                self.decide(half, state, Fate::RolledBack);
                add(&self.counts.rolled_back);
            }
        }
        match state.latest.clone() {
            Some(ticket) => store.settle(&ticket)?.ok().map(drop),
            None => Ok(()),
        }
    }

    fn decide(&self, half: &Half, state: &mut HalfState, fate: Fate) {
        state.fate = fate;
        self.unschedule(half, state);
    }

    /// Waits for what was put last, and closes what is to be closed then.
    fn finish(&self, store: &Store, half: &Arc<Half>, state: &mut HalfState) -> Result<PutResult> {
        let ticket = state.latest.clone().ok_or(Error::Closed)?;
        let result = store.settle(&ticket)?;
        let is_closed =
            store.is_safe_here(&result) && self.close(store, state, Pace::Patient).is_ok();
        if !is_closed {
            self.book.lock().unsettled.push(half.clone());
            self.wake();
        }
        Ok(result)
    }

    fn close(&self, store: &Store, state: &mut HalfState, pace: Pace) -> Result<()> {
        while let Some(place) = state.closing.first().copied() {
            self.put_done(store, place, pace)?;
            state.closing.remove(0);
        }
        Ok(())
    }

    /// Puts the entry that a copy is done with, together with what others have for it.
    fn put_done(&self, store: &Store, place: Place, pace: Pace) -> Result<Arc<Ticket>> {
        let Place { queue, offset } = place;
        let desk = &self.desks[queue as usize];
        let mut turn = match pace {
            Pace::Patient => {
                desk.owed.lock().push(offset);
                match desk.turn.try_lock_for(patience(store)) {
                    Some(turn) => turn,
                    None => {
                        let mut owed = desk.owed.lock();
                        if let Some(mine) = owed.iter().position(|owed| *owed == offset) {
                            owed.swap_remove(mine);
                            return Err(Error::Full);
                        }
                        drop(owed);
                        // Whoever has the turn has taken it along.
                        desk.turn.lock()
                    }
                }
            }
            Pace::AtOnce => {
                let turn = desk.turn.try_lock().ok_or(Error::Full)?;
                desk.owed.lock().push(offset);
                turn
            }
        };
        let batch: Vec<u64> = {
            let mut owed = desk.owed.lock();
            let Some(mine) = owed.iter().position(|owed| *owed == offset) else {
                // Someone took it along while this one waited.
                return turn.clone().ok_or(Error::Closed);
            };
            owed.swap(0, mine);
            let count = half::fitting(&owed);
            owed.drain(..count).collect()
        };
        let (topic, queue_id) = queue.entries();
        let ticket = match pace.lay(store, &half::done(topic, queue_id, &batch)) {
            Ok(ticket) => Arc::new(ticket),
            Err(error) => {
                let others = batch.into_iter().filter(|other| *other != offset);
                desk.owed.lock().extend(others);
                return Err(error);
            }
        };
        *turn = Some(ticket.clone());
        let mut book = self.book.lock();
        let ledger = &mut book.ledgers[queue as usize];
        ledger.note_entry(ticket.queue_offset(), batch.iter().copied().max().unwrap_or(0));
        for offset in batch {
            ledger.close(offset);
        }
        drop(book);
        self.touch();
        Ok(ticket)
    }

    /// Has the offsets looked at.
    fn touch(&self) {
        if !self.is_dirty.swap(true, Ordering::SeqCst) {
            self.wake();
        }
    }

    /// Puts a copy of an open half message, which is the newest one then.
    fn move_to(
        &self,
        store: &Store,
        half: &Arc<Half>,
        state: &mut HalfState,
        view: &MessageView,
        (queue, checks): (Queue, u32),
        pace: Pace,
    ) -> Result<()> {
        let message = half::copy_for(&view.record(), state.origin, checks, queue.topic());
        let ticket = self.append(store, queue, &message, half, pace)?;
        // Not one that is being checked by now.
        let due = self.unschedule(half, state);
        let place = state.place;
        state.closing.push(place);
        state.place = Place { queue, offset: ticket.queue_offset() };
        state.checks = checks;
        state.latest = Some(Arc::new(ticket));
        if let (Queue::Half, Some(due)) = (queue, due) {
            self.schedule(half, state, due);
        }
        if pace == Pace::AtOnce {
            // The one before is closed once this one is safe.
            self.book.lock().unsettled.push(half.clone());
            return Ok(());
        }
        self.finish(store, half, state).map(drop)
    }

    fn note_error(&self, error: Error) {
        self.book.lock().last_error = Some(error);
    }

    fn wake(&self) {
        fence(Ordering::SeqCst);
        if let Some(delivery) = self.delivery.upgrade() {
            delivery.alarm.ring();
        }
    }

    /// Lets go of all tickets, each of which keeps the store in memory.
    pub(super) fn let_go(&self) {
        for desk in &self.desks {
            *desk.turn.lock() = None;
        }
        let mut book = self.book.lock();
        let mut halves = mem::take(&mut book.unsettled);
        for ledger in &book.ledgers {
            halves.extend(ledger.open().map(|(_, half)| half.clone()));
        }
        drop(book);
        for half in halves {
            if let Some(mut state) = half.state.try_lock() {
                state.latest = None;
            }
        }
    }

    /// Half messages that were checked too often and are still undecided, the oldest first, and what they
    /// say.
    pub(super) fn parked(&self, store: &Store) -> Vec<(Arc<Half>, Option<HalfMessageView>)> {
        let parked: Vec<Arc<Half>> = {
            let book = self.book.lock();
            book.ledgers[Queue::Parked as usize].open().map(|(_, half)| half.clone()).collect()
        };
        let undecided = parked.into_iter().filter_map(|half| {
            let mut state = half.state.lock();
            let view = self.view(store, &state).ok();
            if let Some(view) = &view
                && let Err(error) =
                    self.committed_before(store, &half, &mut state, view, Pace::Patient)
            {
                self.note_error(error);
            }
            let is_open = matches!(state.fate, Fate::Open);
            drop(state);
            is_open.then(|| (half, view.and_then(|view| HalfMessageView::new(view).ok())))
        });
        undecided.collect()
    }

    pub(super) fn stats(&self) -> TransactionStats {
        let book = self.book.lock();
        let [halves, parked] = &book.ledgers;
        let is_unattended =
            |half: &Half| book.groups.get(&half.group).is_none_or(|group| group.checker.is_none());
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        TransactionStats {
            open: halves.len(),
            unattended: halves.open().filter(|(_, half)| is_unattended(half)).count(),
            parked: parked.len(),
            committed: load(&self.counts.committed),
            rolled_back: load(&self.counts.rolled_back),
            checks: load(&self.counts.checks),
            panicked_checks: load(&self.counts.panics),
            parked_in_all: load(&self.counts.parked),
            unreadable: load(&self.counts.unreadable),
            last_error: book.last_error.clone(),
        }
    }
}

impl Book {
    /// The name that all half messages of a group share.
    fn intern(&mut self, group: &str) -> Arc<str> {
        if let Some((name, _)) = self.groups.get_key_value(group) {
            return name.clone();
        }
        let name: Arc<str> = group.into();
        self.groups.insert(name.clone(), Group::default());
        name
    }
}

/// How long whatever is put waits for its place.
fn patience(store: &Store) -> Duration {
    store.config().log.put_timeout
}

/// What the copy at `place` says.
fn find(store: &Store, place: Place) -> Result<Found> {
    let (topic, offset) = (place.queue.topic(), place.offset);
    let fetched = match store.get_view(topic, 0, offset, 1, &TagFilter::any()) {
        Ok(fetched) => fetched,
        Err(error @ Error::Corrupt { .. }) => return Ok(Found::Lost(error)),
        Err(error) => return Err(error),
    };
    if offset >= fetched.min_offset && offset >= fetched.max_offset {
        return Ok(Found::Later);
    }
    let mut messages = fetched.messages.into_iter();
    Ok(match messages.next().filter(|view| view.queue_offset() == offset) {
        Some(view) => Found::View(view),
        None => Found::Lost(Error::HalfMessageGone { queue_offset: offset }),
    })
}

/// Reads a queue from an offset to its end; what cannot be read is an error of that offset.
fn read_all(
    store: &Store,
    topic: &str,
    queue_id: i32,
    from: u64,
    mut each: impl FnMut(u64, Result<MessageView>),
) -> Result<()> {
    let end = store.max_offset(topic, queue_id).unwrap_or(0);
    let mut at = from;
    while at < end {
        let fetched = match store.get_view(topic, queue_id, at, BATCH, &TagFilter::any()) {
            Ok(fetched) => fetched,
            Err(error @ Error::Corrupt { .. }) => {
                each(at, Err(error));
                at += 1;
                continue;
            }
            Err(error) => return Err(error),
        };
        for view in fetched.messages {
            for lost in at..view.queue_offset() {
                each(lost, Err(Error::HalfMessageGone { queue_offset: lost }));
            }
            at = view.queue_offset() + 1;
            each(view.queue_offset(), Ok(view));
        }
        // Whatever the status, the reader comes further.
        let next = fetched.next_offset.max(at);
        if next == at && fetched.status != FetchStatus::Found {
            break;
        }
        for lost in at..next {
            each(lost, Err(Error::HalfMessageGone { queue_offset: lost }));
        }
        at = next;
    }
    Ok(())
}

/// Whether it is not the message that is damaged, but the way to it: the next open mends that.
fn is_about_the_queue(error: &Error) -> bool {
    matches!(error, Error::Corrupt { what: Corruption::QueueEntry, .. })
}

#[cfg(all(test, feature = "sim"))]
mod tests {
    use super::super::TransactionState;
    use super::upkeep::SPAN_MIN;
    use super::*;
    use crate::disk::SimDisk;
    use crate::{Environment, StoreConfig};

    #[test]
    fn what_others_had_for_an_entry_that_finds_no_room_is_still_theirs_to_put() {
        let disk = SimDisk::new(1);
        let config = StoreConfig::new("/s").segment_size(16 << 10);
        let store = Store::open_in(config, Environment::on(disk.shared()).stepped()).unwrap();
        let delivery = Delivery::of(&store).unwrap();
        let coordinator = delivery.transactions.of(&store, &delivery).unwrap();
        let place = |offset| Place { queue: Queue::Half, offset };
        disk.set_capacity(disk.used());
        while store.lay(&Message::new("orders", "x")).is_ok() {}
        let owed = &coordinator.desks[Queue::Half as usize].owed;
        owed.lock().extend([7, 9]);
        let refused = coordinator.put_done(&store, place(8), Pace::Patient).unwrap_err();
        assert!(matches!(refused, Error::DiskFull { .. }), "{refused}");
        let mut left = owed.lock().clone();
        left.sort_unstable();
        assert_eq!(left, [7, 9]);
        disk.set_capacity(u64::MAX);
        coordinator.put_done(&store, place(8), Pace::Patient).unwrap();
        assert!(owed.lock().is_empty());
        store.flush().unwrap();
        let entries = store.get(HALF_DONE_TOPIC, 0, 0, 2).unwrap().messages;
        let mut told: Vec<_> = entries[0].body.split(|byte| *byte == b',').collect();
        told.sort_unstable();
        assert_eq!(told, [&b""[..], b"7", b"8", b"9"], "one entry says all of it");
    }

    #[test]
    fn a_half_message_is_committed_though_its_copy_cannot_be_read_yet() {
        let disk = SimDisk::new(1);
        let mut config = StoreConfig::new("/s").segment_size(64 << 10);
        config = config.flush_mode(crate::FlushMode::sync());
        config.visibility = crate::Visibility::Safe;
        let store = Store::open_in(config, Environment::on(disk.shared()).stepped()).unwrap();
        let check = |_: &HalfMessageView| TransactionState::Unknown;
        let producer = store.transactional_producer("service", check).open().unwrap();
        let half = producer.begin(Message::new("orders", "paid").queue(0)).unwrap();
        let delivery = Delivery::of(&store).unwrap();
        let coordinator = delivery.transactions.of(&store, &delivery).unwrap();
        coordinator.book.lock().ledgers[Queue::Half as usize].note(2 * SPAN_MIN, None);
        coordinator.step(&store);
        assert_eq!(coordinator.stats().open, 2, "it has a copy");
        half.commit().unwrap();
        assert_eq!(store.get("orders", 0, 0, 9).unwrap().messages.len(), 1);
    }

    #[test]
    fn nobody_waits_without_end_for_those_who_wait_for_room() {
        let disk = SimDisk::new(1);
        let mut config = StoreConfig::new("/s").segment_size(64 << 10);
        config.log.put_timeout = Duration::from_millis(10);
        let store = Store::open_in(config, Environment::on(disk.shared()).stepped()).unwrap();
        let check = |_: &HalfMessageView| TransactionState::Unknown;
        let producer = store.transactional_producer("service", check).open().unwrap();
        let half = producer.begin(Message::new("orders", "1").queue(0)).unwrap();
        let delivery = Delivery::of(&store).unwrap();
        let coordinator = delivery.transactions.of(&store, &delivery).unwrap();
        let Desk { order, owed, turn } = &coordinator.desks[Queue::Half as usize];
        let (order, turn) = (order.lock(), turn.lock());
        let refused = producer.begin(Message::new("orders", "2").queue(0));
        assert!(matches!(refused, Err(Error::Full)), "{refused:?}");
        let refused =
            coordinator.put_done(&store, Place { queue: Queue::Half, offset: 0 }, Pace::Patient);
        assert!(matches!(refused, Err(Error::Full)), "{refused:?}");
        assert!(owed.lock().is_empty(), "nobody is to put it any more");
        drop((order, turn));
        half.rollback().unwrap();
        assert_eq!(coordinator.stats().open, 0);
    }

    #[test]
    fn a_half_message_that_is_about_to_be_checked_is_not_checked_once_more_because_it_moves() {
        let disk = SimDisk::new(1);
        let config = StoreConfig::new("/s").segment_size(64 << 10);
        let store = Store::open_in(config, Environment::on(disk.shared()).stepped()).unwrap();
        let check = |_: &HalfMessageView| TransactionState::Unknown;
        let producer = store.transactional_producer("service", check).open().unwrap();
        let _half = producer.begin(Message::new("orders", "1").queue(0)).unwrap();
        let delivery = Delivery::of(&store).unwrap();
        let coordinator = delivery.transactions.of(&store, &delivery).unwrap();
        let dues =
            || coordinator.book.lock().groups.values().map(|group| group.due.len()).sum::<usize>();
        let moved = |times: u64| {
            coordinator.book.lock().ledgers[Queue::Half as usize].note(times * 2 * SPAN_MIN, None);
            coordinator.step(&store);
        };
        assert_eq!(dues(), 1);
        moved(1);
        assert_eq!(dues(), 1, "it is still to be checked when it was");
        // A checker has it, and is busy with others.
        coordinator.book.lock().groups.values_mut().for_each(|group| group.due.clear());
        moved(2);
        assert_eq!(dues(), 0);
    }

    #[test]
    fn the_thread_that_does_everything_waits_for_no_copy_to_become_safe() {
        let disk = SimDisk::new(1);
        let long = Duration::from_secs(3600);
        let config = StoreConfig::new("/s").segment_size(64 << 10);
        let config = config.flush_mode(crate::FlushMode::Sync { timeout: long });
        let store = Store::open_in(config, Environment::on(disk.shared())).unwrap();
        let check = |_: &HalfMessageView| TransactionState::Unknown;
        let producer = store.transactional_producer("service", check);
        let producer = producer.transaction_timeout(long).open().unwrap();
        let halves =
            ["1", "2", "3"].map(|n| producer.begin(Message::new("orders", n).queue(0)).unwrap());
        let delivery = Delivery::of(&store).unwrap();
        let coordinator = delivery.transactions.of(&store, &delivery).unwrap();
        // The first offset makes a file, which is synced.
        store.commit_offset("group", HALF_TOPIC, 0, 0).unwrap();
        disk.hang_syncs(true);
        // As if so many had been put and closed since.
        let end = 2 * SPAN_MIN;
        coordinator.book.lock().ledgers[Queue::Half as usize].note(end, None);
        let started = Instant::now();
        let eventually = |holds: &dyn Fn(&Ledger<Arc<Half>>) -> bool| {
            while !holds(&coordinator.book.lock().ledgers[Queue::Half as usize]) {
                assert!(started.elapsed() < Duration::from_secs(60), "it waits");
                coordinator.step(&store);
                std::thread::yield_now();
            }
        };
        eventually(&|ledger| ledger.len() == 6);
        assert!(coordinator.book.lock().ledgers[0].get(0).is_some(), "its copy may be lost");
        disk.hang_syncs(false);
        eventually(&|ledger| ledger.len() == 3 && ledger.get(0).is_none());
        let [first, second, _] = halves;
        first.commit().unwrap();
        second.rollback().unwrap();
        assert_eq!(store.get("orders", 0, 0, 9).unwrap().messages.len(), 1);
        assert_eq!(coordinator.stats().open, 1);
    }
}
