//! An outbox in memory.

use super::{
    DeadMessage, DueMessages, OutboxCounts, OutboxTable, PendingMessage, SealedMessage, SendFailure,
};
use crate::error::Result;
use crate::message::Message;
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

/// A table in memory, for tests (feature `sim`): it survives an [`Outbox`](super::Outbox), not the process.
///
/// All clones are one table.
///
/// # Examples
/// ```
/// use duralog::delivery::outbox::{MemoryOutbox, Outbox};
/// use duralog::disk::SimDisk;
/// use duralog::{Environment, Message, Store, StoreConfig};
///
/// let disk = SimDisk::new(1);
/// let config = StoreConfig::new("/store").segment_size(1 << 20);
/// let store = Store::open_in(config, Environment::on(disk.shared()).stepped())?;
/// let table = MemoryOutbox::default();
/// table.record([&Message::new("orders", "paid 42").queue(0)])?;
///
/// // On a store without threads, an outbox is stepped, too.
/// let outbox = Outbox::builder(store.producer("orders-service").open()?, table.clone()).start()?;
/// outbox.step();
/// assert_eq!(outbox.counts()?.sent, 1);
/// assert_eq!(store.get("orders", 0, 0, 1)?.messages[0].body, b"paid 42");
/// # Ok::<(), duralog::Error>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct MemoryOutbox {
    rows: Arc<Mutex<BTreeMap<i64, Row>>>,
    /// No id is used twice.
    last_id: Arc<AtomicI64>,
}

#[derive(Debug)]
struct Row {
    sealed: SealedMessage,
    state: State,
    attempts: u32,
    error: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Until when it waits.
    Pending(i64),
    /// When it was sent.
    Sent(i64),
    Dead,
}

impl MemoryOutbox {
    /// Records messages, all of them or none; the id of the last one.
    ///
    /// # Errors
    /// As [`SealedMessage::seal`].
    pub fn record<'a>(&self, messages: impl IntoIterator<Item = &'a Message>) -> Result<i64> {
        let sealed = messages.into_iter().map(SealedMessage::seal).collect::<Result<Vec<_>>>()?;
        let mut rows = self.rows.lock();
        for sealed in sealed {
            let id = self.last_id.fetch_add(1, Ordering::Relaxed) + 1;
            let state = State::Pending(0);
            rows.insert(id, Row { sealed, state, attempts: 0, error: String::new() });
        }
        Ok(self.last_id.load(Ordering::Relaxed))
    }

    fn with_row<T>(&self, id: i64, change: impl FnOnce(&mut Row) -> T) -> Option<T> {
        self.rows.lock().get_mut(&id).map(change)
    }
}

impl OutboxTable for MemoryOutbox {
    fn make_due(&mut self) -> Result<()> {
        for row in self.rows.lock().values_mut() {
            if let State::Pending(until) = &mut row.state {
                *until = 0;
            }
        }
        Ok(())
    }

    fn due(&mut self, now_ms: i64, max: usize) -> Result<DueMessages> {
        let rows = self.rows.lock();
        let (mut due, mut held) = (DueMessages::default(), HashSet::new());
        for (id, row) in rows.iter() {
            let (lane, State::Pending(until)) = (row.sealed.lane(), row.state) else { continue };
            if until > now_ms {
                held.extend(lane);
                due.next_ms = Some(due.next_ms.map_or(until, |next| next.min(until)));
            } else if due.messages.len() < max && lane.is_none_or(|lane| !held.contains(lane)) {
                due.messages.push(PendingMessage {
                    id: *id,
                    lane: lane.map(str::to_owned),
                    attempts: row.attempts,
                    bytes: row.sealed.bytes().to_vec(),
                });
            }
        }
        Ok(due)
    }

    fn mark_sent(&mut self, ids: &[i64], now_ms: i64) -> Result<()> {
        for id in ids {
            self.with_row(*id, |row| {
                if matches!(row.state, State::Pending(_)) {
                    row.state = State::Sent(now_ms);
                }
            });
        }
        Ok(())
    }

    fn mark_failed(&mut self, id: i64, failure: &SendFailure) -> Result<()> {
        self.with_row(id, |row| {
            if matches!(row.state, State::Pending(_)) {
                row.state = failure.next_ms.map_or(State::Dead, State::Pending);
                row.attempts = failure.attempts;
                row.error.clone_from(&failure.error);
            }
        });
        Ok(())
    }

    fn dead(&mut self, max: usize) -> Result<Vec<DeadMessage>> {
        let rows = self.rows.lock();
        let dead = rows.iter().filter(|(_, row)| row.state == State::Dead).take(max);
        let told = |(id, row): (&i64, &Row)| DeadMessage {
            id: *id,
            attempts: row.attempts,
            error: row.error.clone(),
            bytes: row.sealed.bytes().to_vec(),
        };
        Ok(dead.map(told).collect())
    }

    fn rearm(&mut self, id: i64) -> Result<bool> {
        let armed = self.with_row(id, |row| {
            let is_dead = row.state == State::Dead;
            if is_dead {
                (row.state, row.attempts) = (State::Pending(0), 0);
            }
            is_dead
        });
        Ok(armed.unwrap_or(false))
    }

    fn discard(&mut self, id: i64) -> Result<bool> {
        let mut rows = self.rows.lock();
        let is_dead = rows.get(&id).is_some_and(|row| row.state == State::Dead);
        if is_dead {
            rows.remove(&id);
        }
        Ok(is_dead)
    }

    fn prune(&mut self, until_ms: i64, max: usize) -> Result<usize> {
        let mut rows = self.rows.lock();
        let old = |row: &Row| matches!(row.state, State::Sent(when) if when <= until_ms);
        let ids = rows.iter().filter(|(_, row)| old(row)).map(|(id, _)| *id).take(max);
        let ids: Vec<_> = ids.collect();
        ids.iter().for_each(|id| drop(rows.remove(id)));
        Ok(ids.len())
    }

    fn counts(&mut self) -> Result<OutboxCounts> {
        let mut counts = OutboxCounts::default();
        for row in self.rows.lock().values() {
            *match row.state {
                State::Pending(_) => &mut counts.pending,
                State::Sent(_) => &mut counts.sent,
                State::Dead => &mut counts.dead,
            } += 1;
        }
        Ok(counts)
    }
}
