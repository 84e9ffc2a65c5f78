//! Reading: by queue offset, by time, and waiting for what is not there yet.

use super::dispatch::entry;
use super::filter::{Filter, Passes, TagFilter};
use super::stats::QueueWork;
use super::{Shared, Store};
use crate::config::RecoveryMode;
use crate::error::{Corruption, Error, Result};
use crate::log::{ConsumeQueue, Located, MessageView, QueueEntry, Reader, TimeBound};
use crate::message::{StoredMessage, is_filler};
use std::io::ErrorKind;
use std::ops::{Range, RangeInclusive};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Entries looked at in one go.
const ENTRIES: usize = 64;
/// Room made for messages before they are found, at most: a filter may let few of them pass.
const MESSAGES_EXPECTED: usize = 256;

/// What a fetch found, in RocketMQ's terms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FetchStatus {
    /// Messages, at least one.
    Found,
    /// There is no such topic or queue.
    NoSuchQueue,
    /// The queue holds no message.
    QueueEmpty,
    /// The offset lies before the first message kept; `next_offset` is that one's.
    OffsetTooSmall,
    /// The offset is that of the next message to come.
    AtEnd,
    /// The offset lies behind that; `next_offset` is the end.
    OffsetTooLarge,
    /// There are messages, but none to return: from the offset on none passes the filter, or none is
    /// whole (under [`RecoveryMode::Salvage`]), or `max` is 0. Go on at `next_offset`.
    NoMatch,
}

/// What a fetch returns.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Fetched<T> {
    /// What was found.
    pub status: FetchStatus,
    /// The messages, in queue order.
    pub messages: Vec<T>,
    /// Where to go on; 0 if there is no such queue.
    pub next_offset: u64,
    /// Offset of the first message kept.
    pub min_offset: u64,
    /// Offset of the next message to come.
    pub max_offset: u64,
    /// Damaged messages stepped over; only under [`RecoveryMode::Salvage`].
    pub skipped_damaged: u64,
}

impl Store {
    /// Up to `max` messages of a queue from `offset` on, copied out and verified.
    ///
    /// A reader sees only what can no longer vanish, see [`Visibility`](crate::Visibility). With a
    /// `max` of 0 nothing is read, and inside the queue the status is [`FetchStatus::NoMatch`]. A closed
    /// store is read as far as it was dispatched.
    ///
    /// # Errors
    /// [`Error::Corrupt`] with file and offset if a message fails verification, unless the recovery
    /// mode is [`RecoveryMode::Salvage`]: then it is stepped over and counted. [`Error::Io`]. Messages
    /// found before the damaged one are returned first; the call that begins with it fails.
    pub fn get(
        &self,
        topic: &str,
        queue_id: i32,
        offset: u64,
        max: usize,
    ) -> Result<Fetched<StoredMessage>> {
        let found = self.get_view(topic, queue_id, offset, max, &TagFilter::any())?;
        Ok(Fetched {
            status: found.status,
            messages: found.messages.iter().map(MessageView::to_stored).collect(),
            next_offset: found.next_offset,
            min_offset: found.min_offset,
            max_offset: found.max_offset,
            skipped_damaged: found.skipped_damaged,
        })
    }

    /// The same without copying, for messages that pass `filter`: up to `max` of them, looked for as
    /// far as the queue goes. A view keeps its segment in memory for as long as it lives, also when the
    /// store is closed.
    ///
    /// # Examples
    /// ```
    /// # use duralog::{Message, Store, StoreConfig};
    /// use duralog::TagFilter;
    ///
    /// # let dir = std::env::temp_dir().join(format!("duralog-doc-view-{}", std::process::id()));
    /// # let store = Store::open(StoreConfig::new(&dir).segment_size(1 << 20))?;
    /// for (tag, body) in [("placed", "1: teapot"), ("paid", "1: 42.00"), ("placed", "2: samovar")] {
    ///     store.put(Message::new("orders", body).tag(tag))?.ok()?;
    /// }
    /// let placed = store.get_view("orders", 0, 0, 32, &TagFilter::of(["placed"]))?;
    /// let bodies: Vec<&[u8]> = placed.messages.iter().map(|view| view.body()).collect();
    /// assert_eq!(bodies, [&b"1: teapot"[..], b"2: samovar"]);
    /// assert_eq!(placed.next_offset, 3);
    /// # store.close()?;
    /// # std::fs::remove_dir_all(&dir).unwrap();
    /// # Ok::<(), duralog::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub fn get_view(
        &self,
        topic: &str,
        queue_id: i32,
        offset: u64,
        max: usize,
        filter: &TagFilter,
    ) -> Result<Fetched<MessageView>> {
        self.shared().fetch(topic, queue_id, offset..u64::MAX, max, filter)
    }

    /// Blocks until the queue reaches beyond `offset`, at most for `timeout`; whether it does. The queue
    /// need not exist yet.
    ///
    /// # Examples
    /// ```
    /// # use duralog::{Message, Store, StoreConfig};
    /// # use std::time::Duration;
    /// # let dir = std::env::temp_dir().join(format!("duralog-doc-wait-{}", std::process::id()));
    /// # let store = Store::open(StoreConfig::new(&dir).segment_size(1 << 20))?;
    /// # store.put_batch(&["placed", "paid", "sent"].map(|body| Message::new("orders", body)))?.ok()?;
    /// let mut offset = 0; // as the consumer saved it
    /// # let mut bodies = Vec::new();
    /// while store.wait_for("orders", 0, offset, Duration::from_millis(50))? {
    ///     let fetched = store.get("orders", 0, offset, 32)?;
    ///     for message in fetched.messages {
    ///         println!("{} {:?}", message.queue_offset, message.body);
    /// #       bodies.push(message.body);
    ///     }
    ///     offset = fetched.next_offset;
    /// }
    /// # assert_eq!((bodies.len(), offset), (3, 3));
    /// # store.close()?;
    /// # std::fs::remove_dir_all(&dir).unwrap();
    /// # Ok::<(), duralog::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Closed`] if the store is closed, or gets closed meanwhile.
    pub fn wait_for(
        &self,
        topic: &str,
        queue_id: i32,
        offset: u64,
        timeout: Duration,
    ) -> Result<bool> {
        let shared = self.shared();
        let there = || {
            if let Err(error) = shared.check_open() {
                return Some(Err(error));
            }
            let queue = shared.queues.get(topic, queue_id);
            (queue.is_some_and(|queue| queue.max_offset() > offset)).then_some(Ok(true))
        };
        shared.catch_up();
        if let Some(answer) = there() {
            return answer;
        }
        // A deadline too far away to be told is none.
        let deadline = shared.core.clock.now().checked_add(timeout);
        shared.core.progress.wait_dispatched(deadline, there).unwrap_or(Ok(false))
    }

    /// Blocks until `done` answers, asking again whenever messages were dispatched or
    /// [`wake_readers`](Self::wake_readers) was called; `None` when time is up. `done` must neither wait nor
    /// dispatch.
    pub(crate) fn wait_dispatched<T>(
        &self,
        deadline: Option<Instant>,
        done: impl FnMut() -> Option<T>,
    ) -> Option<T> {
        self.shared().core.progress.wait_dispatched(deadline, done)
    }

    /// Lets everyone look again who waits for messages.
    pub(crate) fn wake_readers(&self) {
        self.shared().core.progress.wake_readers();
    }

    /// Dispatches what is visible now.
    pub(crate) fn catch_up(&self) {
        self.shared().catch_up();
    }

    /// Offset of the next message to be dispatched to a queue; 0 if there is no such queue. Dispatches
    /// nothing.
    pub(crate) fn dispatched_end(&self, topic: &str, queue_id: i32) -> u64 {
        self.shared().queues.get(topic, queue_id).map_or(0, |queue| queue.max_offset())
    }

    /// How many queues there are; it only grows.
    pub(crate) fn queue_count(&self) -> usize {
        self.shared().queues.len()
    }

    /// [`get_view`](Self::get_view) that looks at no message from `until` on.
    pub(crate) fn get_before(
        &self,
        topic: &str,
        queue_id: i32,
        offsets: Range<u64>,
        max: usize,
        filter: &Filter,
    ) -> Result<Fetched<MessageView>> {
        self.shared().fetch(topic, queue_id, offsets, max, filter)
    }

    /// The topics and their queue ids, sorted.
    pub fn topics(&self) -> Vec<(String, Vec<i32>)> {
        self.shared().catch_up();
        self.shared().queues.topics()
    }

    /// Offset of the first message kept in a queue; `None` if there is no such queue.
    pub fn min_offset(&self, topic: &str, queue_id: i32) -> Option<u64> {
        self.shared().queue(topic, queue_id).map(|queue| queue.min_offset())
    }

    /// Offset of the next message to become visible in a queue; `None` if there is no such queue.
    pub fn max_offset(&self, topic: &str, queue_id: i32) -> Option<u64> {
        self.shared().queue(topic, queue_id).map(|queue| queue.max_offset())
    }

    /// The offset that `timestamp` (milliseconds since the epoch) leads to in a queue:
    /// [`TimeBound::Lower`] the first message stored then or later, or the queue's end if there is none;
    /// [`TimeBound::Upper`] the last one stored then or earlier, or the queue's first offset if there
    /// is none. `None` if there is no such queue.
    ///
    /// # Examples
    /// ```
    /// # use duralog::{Message, Store, StoreConfig};
    /// use duralog::TimeBound;
    ///
    /// # let dir = std::env::temp_dir().join(format!("duralog-doc-time-{}", std::process::id()));
    /// # let store = Store::open(StoreConfig::new(&dir).segment_size(1 << 20))?;
    /// let put = store.put(Message::new("orders", "paid 42"))?.ok()?;
    /// let stored_at = put.store_timestamp;
    /// assert_eq!(store.offset_by_time("orders", 0, stored_at, TimeBound::Lower)?, Some(0));
    /// assert_eq!(store.offset_by_time("orders", 0, stored_at + 1, TimeBound::Lower)?, Some(1));
    /// assert_eq!(store.offset_by_time("orders", 0, stored_at + 1, TimeBound::Upper)?, Some(0));
    /// # store.close()?;
    /// # std::fs::remove_dir_all(&dir).unwrap();
    /// # Ok::<(), duralog::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub fn offset_by_time(
        &self,
        topic: &str,
        queue_id: i32,
        timestamp: i64,
        bound: TimeBound,
    ) -> Result<Option<u64>> {
        let shared = self.shared();
        let Some(queue) = shared.queue(topic, queue_id) else { return Ok(None) };
        let store_time = |entry: QueueEntry| {
            let view = shared.core.read(entry.physical_offset, false)?;
            Ok(view.map_or(i64::MAX, |view| view.record().store_timestamp()))
        };
        queue.offset_by_time(timestamp, bound, &store_time).map(Some)
    }

    /// Messages of a topic that have `key` among their keys, or as the unique key of their producer, and
    /// were stored in `times` (milliseconds since the epoch): the newest `max` of them, in log order.
    ///
    /// RocketMQ's `queryMessage`, but for messages whose key has the same hash: those are left out.
    ///
    /// # Errors
    /// As [`get`](Self::get); [`Error::Config`] if [`index_enable`](crate::StoreConfig::index_enable) is
    /// off; why the index could not be opened, if it could not: [`health`](Self::health) says so, too.
    ///
    /// # Examples
    /// ```
    /// use duralog::{Message, Store, StoreConfig};
    ///
    /// # let dir = std::env::temp_dir().join(format!("duralog-doc-query-{}", std::process::id()));
    /// let store = Store::open(StoreConfig::new(&dir).segment_size(1 << 20))?;
    /// store.put(Message::new("orders", "paid 42").key("order-42"))?.ok()?;
    /// let found = store.query("orders", "order-42", 32, 0..=i64::MAX)?;
    /// assert_eq!(found[0].body(), b"paid 42");
    /// store.close()?;
    /// # std::fs::remove_dir_all(&dir).unwrap();
    /// # Ok::<(), duralog::Error>(())
    /// ```
    pub fn query(
        &self,
        topic: &str,
        key: &str,
        max: usize,
        times: RangeInclusive<i64>,
    ) -> Result<Vec<MessageView>> {
        self.shared().query(topic, key, max, times)
    }

    /// The message at a physical offset, as a [`PutResult`](super::PutResult) names it; `None` if
    /// nothing visible is there.
    ///
    /// # Errors
    /// As [`get`](Self::get); [`Error::Corrupt`] also if no record begins there, or none but what
    /// [`RecoveryMode::Salvage`] put in the place of damage.
    pub fn get_at(&self, physical_offset: u64) -> Result<Option<MessageView>> {
        let shared = self.shared();
        let visible = shared.core.progress.visible();
        if physical_offset >= visible {
            return Ok(None);
        }
        let found = shared.core.read(physical_offset, true)?;
        let Some(view) = found.filter(|view| physical_offset + view.size() as u64 <= visible)
        else {
            return Ok(None);
        };
        if shared.is_whole(&view)? {
            Ok(Some(view))
        } else {
            Err(shared.core.corrupt_at(physical_offset, Corruption::QueueEntry))
        }
    }
}

impl Shared {
    /// Whether a message begins here, and not in the middle of another one whose body looks like one.
    fn is_whole(&self, view: &MessageView) -> Result<bool> {
        let record = view.record();
        let at = view.physical_offset();
        if record.sys_flag().takes_queue_offset()
            && let Some(queue) = self.queue(record.topic(), record.queue_id())
            && queue.entry(record.queue_offset().cast_unsigned())? == Some(entry(at, &record))
        {
            return Ok(true);
        }
        if is_filler(&record) {
            return Ok(false);
        }
        // In no queue, or not in this one: only a walk tells.
        let end = at + view.size() as u64;
        let mut records = self.core.records(self.core.segment_start(at), end);
        while let Some(found) = records.next_with(|located| located.physical_offset) {
            if found? == at {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn query(
        &self,
        topic: &str,
        key: &str,
        max: usize,
        times: RangeInclusive<i64>,
    ) -> Result<Vec<MessageView>> {
        let Some(index) = &self.index else {
            let (field, allowed) = ("index_enable", "true to query by key");
            let off = Error::Config { field, value: "false".to_owned(), allowed };
            return Err(self.stats.queue_error(QueueWork::Index).unwrap_or(off));
        };
        self.catch_up();
        let mut reader = self.core.reader(true);
        let mut found: Vec<MessageView> = Vec::new();
        let mut failed = None;
        // The index knows the second in which a message was stored.
        let seconds = (times.start().saturating_sub(999), *times.end());
        index.find(topic, key, seconds, &mut |offset| {
            // One that has the key twice comes twice.
            if found.len() < max && found.last().is_none_or(|last| offset < last.physical_offset())
            {
                match self.with_key(&mut reader, offset, topic, key) {
                    Ok(Some(view)) if times.contains(&view.record().store_timestamp()) => {
                        found.push(view);
                    }
                    Ok(_) => {}
                    Err(error) => failed = Some(error),
                }
            }
            failed.is_none() && found.len() < max
        })?;
        found.reverse();
        failed.map_or(Ok(found), Err)
    }

    /// The visible message at `offset`, if it has the key.
    fn with_key(
        &self,
        reader: &mut Reader<'_>,
        offset: u64,
        topic: &str,
        key: &str,
    ) -> Result<Option<MessageView>> {
        let located = match reader.record(offset) {
            Ok(Some(located)) => located,
            Ok(None) => return Ok(None),
            Err(Error::Corrupt { .. }) if self.core.recovery_mode() == RecoveryMode::Salvage => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let record = &located.record;
        let end = offset + record.size() as u64;
        let has_key = record.topic() == topic
            && (record.unique_key() == Some(key)
                || record.keys().is_some_and(|keys| keys.split(' ').any(|word| word == key)));
        Ok((has_key && end <= self.core.progress.visible()).then(|| located.view()))
    }

    /// The queue, with everything in it that is visible now.
    pub(super) fn queue(&self, topic: &str, queue_id: i32) -> Option<Arc<ConsumeQueue>> {
        self.catch_up();
        self.queues.get(topic, queue_id)
    }

    fn fetch(
        &self,
        topic: &str,
        queue_id: i32,
        Range { start: offset, end: until }: Range<u64>,
        max: usize,
        filter: &impl Passes,
    ) -> Result<Fetched<MessageView>> {
        let mut fetched = Fetched {
            status: FetchStatus::NoSuchQueue,
            messages: Vec::new(),
            next_offset: 0,
            min_offset: 0,
            max_offset: 0,
            skipped_damaged: 0,
        };
        // What was put before is to be found: unless there is enough anyway, dispatch it first.
        let wanted = offset.saturating_add(max as u64);
        let there = self.queues.get(topic, queue_id).filter(|queue| wanted <= queue.max_offset());
        let Some(queue) = there.or_else(|| self.queue(topic, queue_id)) else { return Ok(fetched) };
        (fetched.min_offset, fetched.max_offset) = (queue.min_offset(), queue.max_offset());
        let (low, high) = (fetched.min_offset, fetched.max_offset);
        (fetched.status, fetched.next_offset) = if low == high {
            (FetchStatus::QueueEmpty, high)
        } else if offset < low {
            (FetchStatus::OffsetTooSmall, low)
        } else if offset == high {
            (FetchStatus::AtEnd, high)
        } else if offset > high {
            (FetchStatus::OffsetTooLarge, high)
        } else {
            (FetchStatus::NoMatch, offset)
        };
        if fetched.status != FetchStatus::NoMatch {
            return Ok(fetched);
        }
        let high = high.min(until);
        let expected = max.min(high.saturating_sub(offset) as usize).min(MESSAGES_EXPECTED);
        fetched.messages.reserve(expected);
        let mut entries = Vec::with_capacity(ENTRIES.min(max));
        let mut reader = self.core.reader(true);
        while fetched.messages.len() < max && fetched.next_offset < high {
            entries.clear();
            let wanted = ENTRIES.min(max - fetched.messages.len());
            let wanted = wanted.min((high - fetched.next_offset) as usize);
            if let Err(error) = queue.read(fetched.next_offset, wanted, &mut entries) {
                return Err(self.queue_damage(error));
            }
            if entries.is_empty() {
                break;
            }
            for entry in &entries {
                let at = fetched.next_offset;
                fetched.next_offset += 1;
                // A blank stands where a message was lost, or before the first one.
                if entry.is_blank() || !filter.may_pass(entry.tags_code) {
                    continue;
                }
                match self.locate(&mut reader, entry, &queue, at) {
                    Ok(Some(located)) if filter.passes(&located.record) => {
                        fetched.messages.push(located.view());
                    }
                    Ok(_) => {}
                    Err(error) => {
                        if let Error::Corrupt { what, .. } = &error {
                            if *what == Corruption::QueueEntry {
                                // The message is good, the entry is not: the next open writes all
                                // entries anew.
                                self.distrust_queues(&error);
                            } else if self.core.recovery_mode() == RecoveryMode::Salvage {
                                fetched.skipped_damaged += 1;
                                continue;
                            }
                        }
                        if fetched.messages.is_empty() {
                            return Err(error);
                        }
                        // What was found first is good; the next fetch begins with the error.
                        fetched.next_offset = at;
                        fetched.status = FetchStatus::Found;
                        return Ok(fetched);
                    }
                }
            }
        }
        if !fetched.messages.is_empty() {
            fetched.status = FetchStatus::Found;
        }
        Ok(fetched)
    }

    /// What to make of an error of a queue's files: if they are damaged, the next open rebuilds them.
    pub(super) fn queue_damage(&self, error: Error) -> Error {
        let error = match error {
            Error::Io { path, source, .. } if source.kind() == ErrorKind::NotFound => {
                Error::Corrupt { path, offset: 0, what: Corruption::QueueEntry }
            }
            other => other,
        };
        if matches!(error, Error::Corrupt { .. }) {
            self.distrust_queues(&error);
        }
        error
    }

    /// The verified message that an entry of `queue` points to, checked to be the one that belongs at
    /// `queue_offset`; `None` if it is not there any more.
    #[inline]
    fn locate<'a>(
        &self,
        reader: &'a mut Reader<'_>,
        found: &QueueEntry,
        queue: &ConsumeQueue,
        queue_offset: u64,
    ) -> Result<Option<Located<'a>>> {
        let Some(located) = reader.record(found.physical_offset)? else {
            if found.physical_offset < self.core.min_offset() {
                return Ok(None);
            }
            // What was dispatched is in the log: the entry points nowhere.
            return Err(queue.corrupt_entry(queue_offset));
        };
        let record = &located.record;
        let fits = record.topic() == queue.topic()
            && record.queue_id() == queue.queue_id()
            && record.queue_offset().cast_unsigned() == queue_offset
            && record.size() == found.size as usize;
        if fits { Ok(Some(located)) } else { Err(queue.corrupt_entry(queue_offset)) }
    }
}
