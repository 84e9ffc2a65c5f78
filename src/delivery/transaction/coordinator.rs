//! Who decides half messages, and what is put for it.
//!
//! The half message is put first; then either the message itself and an entry that the half message is
//! done with, or that entry alone. A crash in between leaves the half message open, and the producer is
//! asked. The log keeps the order of what was put, so an entry never survives without what came before it.

use super::super::{Delivery, Sent, delay};
use super::checker::Checker;
use super::half::{self, HalfMessageView};
use super::ledger::{Fronts, Ledger};
use super::{TransactionState, TransactionStats};
use crate::delivery::producer::select::Routes;
use crate::delivery::unique_ids::UniqueIds;
use crate::error::{Corruption, Error, Result};
use crate::log::{MessageView, TimeBound};
use crate::message::format::{CHECKED_IN_VAIN_TOPIC, HALF_DONE_TOPIC, HALF_TOPIC};
use crate::message::format::{PROPERTIES_LEN_MAX, RECORD_CRC_SIZE, TRANSACTION_GROUP as GROUP};
use crate::message::{Message, Transaction, names};
use crate::store::{Acknowledged, FetchStatus, PutResult, Store, TagFilter, Ticket, WeakStore};
use crate::worker::Next;
use parking_lot::Mutex;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::mem;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// How often those offsets are moved at most, and how soon what failed is tried again.
const PAUSE: Duration = Duration::from_secs(1);
/// Messages that an open one may hold up before it is put again behind them.
const SPAN_MIN: u64 = 10_000;
/// Open half messages put again in one step.
const MOVES: usize = 16;
/// Those whose copies are not yet safe.
const MOVING_MAX: usize = 1024;
/// Messages read in one go.
const BATCH: usize = 256;
/// Messages with one key that are looked at to find one of them.
const KEY_MAX: usize = 1024;

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

/// How the offsets of the group are moved.
#[derive(Debug, Default)]
struct Advance {
    not_before: Option<Instant>,
    /// Where to, once the log is safe up to there: what was closed before must not be forgotten while its
    /// entry can be lost.
    wanted: Option<([Fronts; 2], u64)>,
    /// Up to where entries can be passed, now that the offsets of the messages have been moved. At another
    /// time: whoever copies all offsets meanwhile must not copy the one of the entries alone.
    entries: [Option<u64>; 2],
}

/// Committed messages of a queue, by the half message that they come from.
#[derive(Debug)]
struct Scan {
    from: u64,
    committed: HashMap<i64, u64>,
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
    /// Finds out which half messages of earlier lives of the store are open. Puts nothing.
    pub(super) fn recover(store: &Store, delivery: &Arc<Delivery>) -> Result<Self> {
        let nothing = || Ledger::new(Fronts { messages: 0, entries: 0 });
        let book = Book {
            ledgers: [nothing(), nothing()],
            groups: HashMap::new(),
            unsettled: Vec::new(),
            last_error: None,
        };
        let coordinator = Self {
            delivery: Arc::downgrade(delivery),
            desks: Default::default(),
            book: Mutex::new(book),
            advance: Mutex::default(),
            is_dirty: AtomicBool::new(true),
            scans: Mutex::default(),
            routes: Routes::default(),
            keys: UniqueIds::new(store.clock(), store.config().log.store_host.ip()),
            counts: Counts::default(),
        };
        // A half message that was parked is done with, though a crash may have come before it said so.
        let parked = coordinator.recover_queue(store, Queue::Parked, &HashSet::new())?;
        coordinator.recover_queue(store, Queue::Half, &parked)?;
        Ok(coordinator)
    }

    /// Reads one of the queues and its entries; the origins of all messages found.
    fn recover_queue(
        &self,
        store: &Store,
        queue: Queue,
        moved: &HashSet<u64>,
    ) -> Result<HashSet<u64>> {
        let fronts = begin(store, queue)?;
        let (done_topic, done_queue) = queue.entries();
        let mut ledger = Ledger::new(fronts);
        // Where the last entry lies that closes a message.
        let mut done: HashMap<u64, u64> = HashMap::new();
        let mut end = 0;
        read_all(store, done_topic, done_queue, fronts.entries, |offset, found| {
            let (mut closed, at) = match found {
                Ok(view) => (half::read_done(&view.record()), view.physical_offset()),
                Err(error) => {
                    // What it closed is found to be committed, or the producer is asked once more.
                    add(&self.counts.unreadable);
                    self.note_error(error);
                    (Vec::new(), 0)
                }
            };
            // Anybody may have put it: it says nothing of what is yet to come.
            if closed.iter().any(|closed| *closed >= end) {
                end = store.max_offset(queue.topic(), 0).unwrap_or(0);
                closed.retain(|closed| *closed < end);
            }
            ledger.note_entry(offset, closed.iter().copied().max().unwrap_or(0));
            done.extend(closed.into_iter().map(|closed| (closed, at)));
        })?;
        let is_closed_behind =
            |offset: u64, at: u64| done.get(&offset).is_some_and(|entry| *entry > at);
        // Looked up where it matters: a broker may close the first message before or after it copies that.
        let is_closed = |offset: u64, copy_at: u64| {
            is_closed_behind(offset, copy_at)
                || done.contains_key(&offset)
                    && !matches!(
                        find(store, Place { queue, offset }),
                        Ok(Found::View(view)) if !is_closed_behind(offset, view.physical_offset())
                    )
        };

        let mut book = self.book.lock();
        let mut found: Vec<(u64, Option<u64>, Arc<Half>)> = Vec::new();
        // The newest copy of a half message stands for all of them, be it ours or a broker's.
        let mut newest: HashMap<u64, u64> = HashMap::new();
        let mut brokers_newest: HashMap<u64, u64> = HashMap::new();
        read_all(store, queue.topic(), 0, fronts.messages, |offset, read| {
            let at = read.as_ref().map_or(0, MessageView::physical_offset);
            let usable = read.and_then(|view| self.recovered(&mut book, queue, offset, &view));
            ledger.note(offset, None);
            match usable {
                Ok((half, prepared_offset)) => {
                    newest.insert(half.state.lock().origin, offset);
                    let is_done = is_closed_behind(offset, at)
                        || prepared_offset.is_some_and(|first| is_closed(first, at));
                    if let Some(first) = prepared_offset {
                        brokers_newest.insert(first, offset);
                    }
                    if !is_done {
                        found.push((offset, prepared_offset, Arc::new(half)));
                    }
                }
                Err(_) if done.contains_key(&offset) => {}
                Err(error) => {
                    if is_about_the_queue(&error) {
                        ledger.hold(offset);
                    }
                    add(&self.counts.unreadable);
                    book.last_error = Some(error);
                }
            }
        })?;
        for (offset, prepared_offset, half) in found {
            ledger.note(offset, Some(half.clone()));
            let mut state = half.state.lock();
            let first = prepared_offset.unwrap_or(offset);
            let is_old = newest.get(&state.origin) != Some(&offset)
                || brokers_newest.get(&first).is_some_and(|newest| *newest != offset);
            if is_old || moved.contains(&state.origin) {
                state.fate = Fate::RolledBack;
                let place = state.place;
                state.closing.push(place);
                book.unsettled.push(half.clone());
            }
        }
        book.ledgers[queue as usize] = ledger;
        Ok(newest.into_keys().collect())
    }

    /// A half message of an earlier life, and the queue offset of the one whose end is its own, too.
    fn recovered(
        &self,
        book: &mut Book,
        queue: Queue,
        offset: u64,
        view: &MessageView,
    ) -> Result<(Half, Option<u64>)> {
        let view = HalfMessageView::new(view.clone())?;
        let Some(group) = view.producer_group() else {
            return Err(Error::MalformedHalfMessage { property: names::PRODUCER_GROUP });
        };
        let group = book.intern(group);
        let record = view.view().record();
        let mut state = HalfState::new(Place { queue, offset }, half::origin(&record));
        state.is_recovered = true;
        state.checks = view.checks();
        state.immunity = half::immunity(record.properties());
        // A copy is younger than the half message, and the first copy not older than it was stored.
        let is_copy = state.origin != view.view().physical_offset();
        state.since = if is_copy { record.born_timestamp() } else { record.store_timestamp() };
        let prepared_offset = view.get(names::TRANSACTION_PREPARED_QUEUE_OFFSET);
        // It speaks of the queue of those that are checked.
        let prepared_offset = prepared_offset.filter(|_| queue == Queue::Half);
        let prepared_offset = prepared_offset.and_then(|offset| offset.parse().ok());
        Ok((Half { group, state: Mutex::new(state) }, prepared_offset))
    }

    /// Takes a checker in, and has the half messages of its group checked.
    pub(super) fn register(&self, store: &Store, checker: &Arc<Checker>) -> Result<()> {
        let waiting: Vec<Arc<Half>> = {
            let mut book = self.book.lock();
            let group = book.intern(&checker.group);
            let known = book.groups.entry(group).or_default();
            if known.checker.is_some() {
                return Err(Error::ProducerGroupInUse { group: checker.group.to_string() });
            }
            known.checker = Some(checker.clone());
            let open = book.ledgers[Queue::Half as usize].open();
            open.filter(|(_, half)| half.group == checker.group)
                .map(|(_, half)| half.clone())
                .collect()
        };
        for half in waiting {
            let mut state = half.state.lock();
            if matches!(state.fate, Fate::Open) && state.place.queue == Queue::Half {
                let due = first_check(store, checker, &state);
                self.schedule(&half, &mut state, due);
            }
        }
        self.wake();
        Ok(())
    }

    pub(super) fn unregister(&self, checker: &Arc<Checker>) {
        let mut book = self.book.lock();
        if let Some(group) = book.groups.get_mut(&checker.group) {
            group.checker = None;
            group.due.clear();
        }
    }

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
            Pace::Patient => order.lock(),
            Pace::AtOnce => order.try_lock().ok_or(Error::Full)?,
        };
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
                let message = if is_delayed { store.routed(message)? } else { message };
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
                desk.turn.lock()
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
        let due = state.due;
        self.unschedule(half, state);
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

    /// Where the message of a half message from an earlier life lies, if a crash came between it and the
    /// entry that the half message is done with. Decides it then.
    fn committed_before(
        &self,
        store: &Store,
        half: &Arc<Half>,
        state: &mut HalfState,
        view: &MessageView,
        pace: Pace,
    ) -> Result<Option<Acknowledged>> {
        if !state.is_recovered {
            return Ok(None);
        }
        let found = self.find_committed(store, state.origin, view)?;
        state.is_recovered = false;
        let Some(found) = found else { return Ok(None) };
        let record = found.record();
        let done = Acknowledged {
            queue_id: record.queue_id(),
            queue_offset: found.queue_offset(),
            physical_offset: found.physical_offset(),
            end_offset: found.physical_offset() + found.size() as u64,
            store_timestamp: record.store_timestamp(),
            message_id: record.message_id(),
        };
        self.decide(half, state, Fate::Committed(Some(Box::new(done))));
        let place = state.place;
        state.closing.push(place);
        if self.close(store, state, pace).is_err() {
            self.book.lock().unsettled.push(half.clone());
        }
        Ok(Some(done))
    }

    fn find_committed(
        &self,
        store: &Store,
        origin: u64,
        view: &MessageView,
    ) -> Result<Option<MessageView>> {
        let half = HalfMessageView::new(view.clone())?;
        let message = half::committed(&view.record(), origin)?;
        // A delayed one waits elsewhere, and once it is delivered, is in both places.
        let waiting =
            delay::waits_in(&message).map(|(topic, queue_id)| (topic.to_owned(), queue_id));
        for queue in waiting.into_iter().chain([(half.topic().to_owned(), half.queue_id())]) {
            if let Some(found) = self.find_committed_in(store, &queue, origin, view)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    fn find_committed_in(
        &self,
        store: &Store,
        queue: &(String, i32),
        origin: u64,
        view: &MessageView,
    ) -> Result<Option<MessageView>> {
        let (topic, queue_id) = (queue.0.as_str(), queue.1);
        let since = view.record().store_timestamp();
        // A broker that commits a copy says where that lies.
        let origins = [origin, view.physical_offset()].map(u64::cast_signed);
        let comes_from_it = |found: &MessageView| {
            found.physical_offset() > view.physical_offset()
                && committed_from(found).is_some_and(|from| origins.contains(&from))
        };
        if let Some(key) = view.record().unique_key()
            && let Ok(found) = store.query(topic, key, KEY_MAX, since..=i64::MAX)
        {
            let is_all = found.len() < KEY_MAX;
            let found = found.into_iter().find(comes_from_it);
            if found.is_some() || is_all && is_indexed(store, view, key) {
                return Ok(found);
            }
        }
        let lower = store.offset_by_time(topic, queue_id, since, TimeBound::Lower)?;
        let Some(from) = lower else { return Ok(None) };
        let mut scans = self.scans.lock();
        if scans.get(queue).is_none_or(|scan| scan.from > from) {
            let mut committed = HashMap::new();
            read_all(store, topic, queue_id, from, |offset, found| {
                if let Some(origin) = found.ok().as_ref().and_then(committed_from) {
                    committed.insert(origin, offset);
                }
            })?;
            scans.insert(queue.clone(), Scan { from, committed });
        }
        let Some(scan) = scans.get(queue) else { return Ok(None) };
        for offset in origins.iter().filter_map(|from| scan.committed.get(from)) {
            let found = store.get_view(topic, queue_id, *offset, 1, &TagFilter::any())?;
            if let Some(found) = found.messages.into_iter().find(comes_from_it) {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// Asks the producer what is to become of a half message. Nobody needs the store while it thinks.
    pub(super) fn check(&self, store: &WeakStore, checker: &Checker, half: &Arc<Half>) {
        let asked = store.upgrade().and_then(|store| self.to_check(&store, checker, half));
        let Some((place, view)) = asked else { return };
        let answer = checker.ask(&view).unwrap_or_else(|| {
            add(&self.counts.panics);
            TransactionState::Unknown
        });
        add(&self.counts.checks);
        if let Some(store) = store.upgrade() {
            self.answered(&store, checker, half, (place, &view), answer);
            let news = half.state.lock().news.take();
            self.tell(news);
        }
    }

    fn answered(
        &self,
        store: &Store,
        checker: &Checker,
        half: &Arc<Half>,
        (place, view): (Place, &HalfMessageView),
        answer: TransactionState,
    ) {
        let mut state = half.state.lock();
        // The application was faster.
        if !matches!(state.fate, Fate::Open) {
            return;
        }
        // What is said of one copy holds for the one that has taken its place meanwhile.
        if state.place != place && answer == TransactionState::Unknown {
            return self.check_later(store, checker, half, &mut state);
        }
        let done = match answer {
            TransactionState::Commit => self.commit_locked(store, half, &mut state).map(drop),
            TransactionState::Rollback => self.roll_back_locked(store, half, &mut state),
            TransactionState::Unknown => {
                self.not_known(store, checker, half, &mut state, view.view())
            }
        };
        let Err(error) = done else { return };
        let is_hopeless = matches!(
            error,
            Error::InvalidMessage(_) | Error::TooLarge { .. } | Error::UnknownTopic { .. }
        );
        self.note_error(error);
        if !matches!(state.fate, Fate::Open) {
            return;
        }
        // What cannot be committed is not asked for for ever.
        let counted =
            is_hopeless && self.not_known(store, checker, half, &mut state, view.view()).is_ok();
        if !counted {
            self.check_later(store, checker, half, &mut state);
        }
    }

    /// The half message, if it is to be checked.
    fn to_check(
        &self,
        store: &Store,
        checker: &Checker,
        half: &Arc<Half>,
    ) -> Option<(Place, HalfMessageView)> {
        let mut state = half.state.lock();
        state.due = None;
        if !matches!(state.fate, Fate::Open) || state.place.queue != Queue::Half {
            return None;
        }
        let view = match find(store, state.place) {
            Ok(Found::View(view)) => view,
            Ok(Found::Lost(error)) => {
                self.lose(half, &mut state, error);
                return None;
            }
            found => {
                if let Err(error) = found {
                    self.note_error(error);
                }
                self.check_later(store, checker, half, &mut state);
                return None;
            }
        };
        match self.committed_before(store, half, &mut state, &view, Pace::Patient) {
            Ok(Some(_)) => None,
            Ok(None) => HalfMessageView::new(view).ok().map(|view| (state.place, view)),
            Err(error) => {
                self.note_error(error);
                self.check_later(store, checker, half, &mut state);
                None
            }
        }
    }

    /// The producer does not know: it is asked again, or not any more.
    fn not_known(
        &self,
        store: &Store,
        checker: &Checker,
        half: &Arc<Half>,
        state: &mut HalfState,
        view: &MessageView,
    ) -> Result<()> {
        let checks = state.checks.saturating_add(1);
        let queue = if checks < checker.options.check_max { Queue::Half } else { Queue::Parked };
        self.move_to(store, half, state, view, (queue, checks), Pace::Patient)?;
        match queue {
            Queue::Half => self.check_later(store, checker, half, state),
            Queue::Parked => add(&self.counts.parked),
        }
        Ok(())
    }

    fn check_later(
        &self,
        store: &Store,
        checker: &Checker,
        half: &Arc<Half>,
        state: &mut HalfState,
    ) {
        let now = store.clock().now();
        let due = now.checked_add(checker.options.check_interval).unwrap_or(now + NEVER);
        self.schedule(half, state, due);
    }

    /// Gives up a half message that cannot be read.
    fn lose(&self, half: &Half, state: &mut HalfState, error: Error) {
        self.unschedule(half, state);
        let Place { queue, offset } = state.place;
        let mut book = self.book.lock();
        let ledger = &mut book.ledgers[queue as usize];
        if ledger.close(offset).is_some() {
            add(&self.counts.unreadable);
        }
        if is_about_the_queue(&error) {
            ledger.hold(offset);
        }
        book.last_error = Some(error);
    }

    fn schedule(&self, half: &Half, state: &mut HalfState, due: Instant) {
        self.unschedule(half, state);
        let mut book = self.book.lock();
        let Some(group) = book.groups.get_mut(&half.group) else { return };
        if group.checker.is_none() {
            return;
        }
        let entry = (due, state.place.offset);
        group.due.insert(entry);
        state.due = Some(due);
        let is_first = group.due.first() == Some(&entry);
        drop(book);
        if is_first {
            self.wake();
        }
    }

    fn unschedule(&self, half: &Half, state: &mut HalfState) {
        let Some(due) = state.due.take() else { return };
        if let Some(group) = self.book.lock().groups.get_mut(&half.group) {
            group.due.remove(&(due, state.place.offset));
        }
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

    /// Does what there is to do: closes what is left to be closed, has half messages checked, and moves the
    /// offsets.
    pub(super) fn step(&self, store: &Store) -> Next {
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

    fn have_checked(&self, store: &Store, now: Instant) -> Next {
        let mut due: Vec<(Arc<Checker>, Arc<Half>)> = Vec::new();
        {
            let mut book = self.book.lock();
            let Book { ledgers: [halves, _], groups, .. } = &mut *book;
            for group in groups.values_mut() {
                let Some(checker) = &group.checker else { continue };
                while group.due.first().is_some_and(|(at, _)| *at <= now) {
                    let Some((_, offset)) = group.due.pop_first() else { break };
                    if let Some(half) = halves.get(offset) {
                        due.push((checker.clone(), half.clone()));
                    }
                }
            }
        }
        for (checker, half) in due {
            if store.is_threaded() {
                checker.enqueue(half);
            } else {
                self.check(&store.downgrade(), &checker, &half);
            }
        }
        let book = self.book.lock();
        let first = book.groups.values().filter_map(|group| group.due.first()).min();
        first.map_or(Next::Idle, |(at, _)| Next::At(*at))
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
    fn advance(&self, store: &Store, now: Instant) -> Next {
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

/// Where to begin to read.
fn begin(store: &Store, queue: Queue) -> Result<Fronts> {
    let of = |topic: &str, queue_id| {
        let min = store.min_offset(topic, queue_id).unwrap_or(0);
        store.committed_offset(GROUP, topic, queue_id).unwrap_or(min).max(min)
    };
    let (done_topic, done_queue) = queue.entries();
    let messages = of(queue.topic(), 0);
    let committed = of(done_topic, done_queue);
    // Each of the two offsets may have gone back without the other. Whatever closes a message from the
    // first one on was stored after that.
    let place = Place { queue, offset: messages };
    let needed = match find(store, place)? {
        Found::View(view) => {
            let since = view.record().store_timestamp();
            store.offset_by_time(done_topic, done_queue, since, TimeBound::Lower)
        }
        Found::Later => Ok(None),
        Found::Lost(_) => Ok(Some(0)),
    };
    let needed = match needed {
        Err(Error::Corrupt { .. }) => Some(0),
        needed => needed?,
    };
    let entries = needed.map_or(committed, |needed| needed.min(committed));
    let entries = entries.max(store.min_offset(done_topic, done_queue).unwrap_or(0));
    if entries < committed && store.takes_puts() {
        store.commit_offset(GROUP, done_topic, done_queue, entries)?;
    }
    Ok(Fronts { messages, entries })
}

/// As good as never, and a time that can be told.
const NEVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// When a half message is to be checked for the first time.
fn first_check(store: &Store, checker: &Checker, state: &HalfState) -> Instant {
    let seconds = |seconds: u32| Duration::from_secs(seconds.into());
    let timeout = state.immunity.map_or(checker.options.timeout, seconds);
    let age = store.clock().unix_millis().saturating_sub(state.since);
    let age = Duration::from_millis(u64::try_from(age).unwrap_or(0));
    let now = store.clock().now();
    now.checked_add(timeout.saturating_sub(age)).unwrap_or(now + NEVER)
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

/// Whether the key index would know a message that came after the half message in `view`: it knows that one.
fn is_indexed(store: &Store, view: &MessageView, key: &str) -> bool {
    let (record, at) = (view.record(), view.physical_offset());
    let since = record.store_timestamp();
    let found = store.query(record.topic(), key, KEY_MAX, since..=since);
    let knows_it = found.is_ok_and(|found| found.iter().any(|one| one.physical_offset() == at));
    knows_it && store.has_all_keys()
}

/// Where the first copy of the half message lies that a committed message comes from.
fn committed_from(view: &MessageView) -> Option<i64> {
    let record = view.record();
    let is_committed = record.sys_flag().transaction() == Transaction::Commit;
    is_committed.then(|| record.prepared_transaction_offset())
}

/// Whether it is not the message that is damaged, but the way to it: the next open mends that.
fn is_about_the_queue(error: &Error) -> bool {
    matches!(error, Error::Corrupt { what: Corruption::QueueEntry, .. })
}

#[cfg(all(test, feature = "sim"))]
mod tests {
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
