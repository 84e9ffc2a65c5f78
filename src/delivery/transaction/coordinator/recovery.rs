//! Which half messages of earlier lives of the store are open.

use super::super::half::{self, HalfMessageView};
use super::super::ledger::{Fronts, Ledger};
use super::{Book, Coordinator, Counts, Fate, Found, GROUP, Half, HalfState, Place, Queue};
use super::{add, find, is_about_the_queue, read_all};
use crate::delivery::Delivery;
use crate::delivery::producer::select::Routes;
use crate::delivery::unique_ids::UniqueIds;
use crate::error::{Error, Result};
use crate::log::{MessageView, TimeBound};
use crate::message::names;
use crate::store::Store;
use parking_lot::Mutex;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

impl Coordinator {
    /// Finds out which half messages of earlier lives of the store are open. Puts nothing.
    pub(crate) fn recover(store: &Store, delivery: &Arc<Delivery>) -> Result<Self> {
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
}

/// Where to begin to read.
pub(super) fn begin(store: &Store, queue: Queue) -> Result<Fronts> {
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
