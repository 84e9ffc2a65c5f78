//! Whether a half message of an earlier life was committed shortly before that ended.

use super::super::half::{self, HalfMessageView};
use super::{Coordinator, Fate, Half, HalfState, Pace, read_all};
use crate::delivery::delay;
use crate::error::Result;
use crate::log::{MessageView, TimeBound};
use crate::message::Transaction;
use crate::store::{Acknowledged, Store, TagFilter};
use std::collections::HashMap;
use std::sync::Arc;

/// Messages with one key that are looked at to find one of them.
const KEY_MAX: usize = 1024;

/// Committed messages of a queue, by the half message that they come from.
#[derive(Debug)]
pub(super) struct Scan {
    from: u64,
    committed: HashMap<i64, u64>,
}

impl Coordinator {
    /// Where the message of a half message from an earlier life lies, if a crash came between it and the
    /// entry that the half message is done with. Decides it then.
    pub(super) fn committed_before(
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
        let key = view.record().unique_key();
        let comes_from_it = |found: &MessageView| {
            found.physical_offset() > view.physical_offset()
                && found.record().unique_key() == key
                && committed_from(found).is_some_and(|from| origins.contains(&from))
        };
        if let Some(key) = key
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
