//! Messages that a group could not handle.

use super::group::{dead_letter_topic, retry_topic};
use super::retry;
use crate::delivery::Delivery;
use crate::delivery::producer::select::queue_of_key;
use crate::error::{Error, InvalidMessage, Result};
use crate::log::MessageView;
use crate::message::format::is_system_topic;
use crate::message::{Message, RecordRef, names};
use crate::store::{Filter, Store, TagFilter};
use std::fmt;

/// Letters fetched in one go.
const BATCH: usize = 32;

/// The dead letters of a consumer group, oldest first, see [`Store::dead_letters`].
///
/// They lie in the topic `%DLQ%` of the group, and stay there: what was sent back or given up is passed over
/// from then on.
///
/// # Examples
/// ```
/// # use duralog::{Message, Store, StoreConfig};
/// use duralog::TagFilter;
/// use std::time::Duration;
///
/// # let dir = std::env::temp_dir().join(format!("duralog-doc-letters-{}", std::process::id()));
/// # let store = Store::open(StoreConfig::new(&dir).segment_size(1 << 20))?;
/// store.put(Message::new("orders", "paid twice"))?.ok()?;
/// let consumer = store.consumer("billing").subscribe("orders", TagFilter::any()).open()?;
/// for message in consumer.poll(Duration::from_secs(1))? {
///     message.reject()?;
/// }
/// let letters = store.dead_letters("billing");
/// assert_eq!(letters.count(), 1);
/// assert_eq!(letters.list(10)?[0].body(), b"paid twice");
///
/// // Mend what was wrong, and let the group have them again.
/// assert_eq!(letters.redrive(10)?, 1);
/// let again = consumer.poll(Duration::from_secs(1))?;
/// assert_eq!((again[0].topic(), again[0].body()), ("orders", &b"paid twice"[..]));
/// # drop((again, consumer, letters));
/// # store.close()?;
/// # std::fs::remove_dir_all(&dir).unwrap();
/// # Ok::<(), duralog::Error>(())
/// ```
pub struct DeadLetters {
    store: Store,
    group: String,
    topic: String,
}

impl DeadLetters {
    pub(super) fn new(store: Store, group: String) -> Self {
        let topic = dead_letter_topic(&group);
        Self { store, group, topic }
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.end().saturating_sub(self.next())
    }

    /// The first `max` of them. Their properties `DLQ_ORIGIN_TOPIC` and `DLQ_ORIGIN_MESSAGE_ID` say where
    /// they come from. [`MessageView::decoded_body`] gives the body of one that was compressed.
    ///
    /// # Errors
    /// As [`Store::get`].
    pub fn list(&self, max: usize) -> Result<Vec<MessageView>> {
        let any = TagFilter::any();
        Ok(self.store.get_view(&self.topic, 0, self.next(), max, &any)?.messages)
    }

    /// Lets the group have the first `max` of them again, as new messages of the topic that they come
    /// from, with all their retries; how many there were. Other groups do not see them.
    ///
    /// Each is passed over here only when its copy is as safe as the store's settings ask, and that is
    /// durable when this returns; a crash in between sends some of them twice.
    ///
    /// # Errors
    /// Those of [`Store::get`], [`Store::put`], [`Store::commit_offset`] and [`Store::flush_offsets`];
    /// [`Error::NotOk`] if a copy is not known to be safe, and [`Error::FlushTimeout`] if it is not durable in
    /// time, also under async flush: the next call sends that one again. Those before were sent.
    pub fn redrive(&self, max: usize) -> Result<usize> {
        self.send(max, |record| {
            let first = origin(record).to_owned();
            Ok(fresh(record, retry_topic(&self.group)).property(names::RETRY_TOPIC, first))
        })
    }

    /// The same, but they are put to the topic that they come from: every group gets them. Those with a sharding
    /// key go to the queue of that key, the others are spread.
    ///
    /// # Errors
    /// As [`redrive`](Self::redrive), and [`InvalidMessage::SystemTopic`] for one that comes from no topic of
    /// an application's: [`discard`](Self::discard) it.
    pub fn redrive_to_topic(&self, max: usize) -> Result<usize> {
        self.send(max, |record| {
            let topic = origin(record);
            if retry::is_retry(topic) || retry::is_dead_letter(topic) || is_system_topic(topic) {
                let topic = topic.to_owned();
                return Err(Error::InvalidMessage(InvalidMessage::SystemTopic { topic }));
            }
            let queues = self.store.topic(topic)?.map_or(1, |topic| topic.write_queue_nums);
            let queues = queues.max(1);
            let queue = match record.properties().get(names::SHARDING_KEY) {
                Some(key) => queue_of_key(key, queues),
                None => (record.queue_offset() % i64::from(queues)) as i32,
            };
            Ok(fresh(record, topic).without(&[names::RETRY_TOPIC]).queue(queue))
        })
    }

    /// Gives up the first `max` of them; how many there were. Durable when this returns.
    ///
    /// # Errors
    /// As [`Store::commit_offset`] and [`Store::flush_offsets`].
    pub fn discard(&self, max: usize) -> Result<usize> {
        let delivery = Delivery::of(&self.store)?;
        let _alone = delivery.dead_letters.lock();
        let (next, end) = (self.next(), self.end());
        let count = end.saturating_sub(next).min(max as u64);
        if count > 0 {
            self.pass(next + count)?;
        }
        // Also what was given up by a call that could not wait for it.
        self.store.flush_offsets()?;
        Ok(count as usize)
    }

    fn send(&self, max: usize, copy: impl Fn(&RecordRef<'_>) -> Result<Message>) -> Result<usize> {
        let delivery = Delivery::of(&self.store)?;
        let _alone = delivery.dead_letters.lock();
        // Those that come meanwhile are for the next call.
        let (mut next, end) = (self.next(), self.end());
        let mut sent = 0;
        while sent < max && next < end {
            let any = Filter::any();
            let wanted = BATCH.min(max - sent);
            let found = self.store.get_before(&self.topic, 0, next..end, wanted, &any)?;
            for view in &found.messages {
                delivery.put(&self.store, copy(&view.record())?)?;
                self.pass(view.queue_offset() + 1)?;
                sent += 1;
            }
            if found.next_offset <= next {
                break;
            }
            next = found.next_offset;
            self.pass(next)?;
        }
        self.store.flush_offsets()?;
        Ok(sent)
    }

    fn end(&self) -> u64 {
        self.store.max_offset(&self.topic, 0).unwrap_or(0)
    }

    fn next(&self) -> u64 {
        let first = self.store.min_offset(&self.topic, 0).unwrap_or(0);
        self.store.committed_offset(&self.group, &self.topic, 0).unwrap_or(0).max(first)
    }

    fn pass(&self, next: u64) -> Result<()> {
        self.store.commit_offset(&self.group, &self.topic, 0, next)
    }
}

/// The topic that a dead letter comes from.
fn origin<'a>(record: &RecordRef<'a>) -> &'a str {
    let properties = record.properties();
    let first = properties.get(names::DLQ_ORIGIN_TOPIC).or(properties.get(names::RETRY_TOPIC));
    first.filter(|topic| !retry::is_retry(topic)).unwrap_or(record.topic())
}

/// The message as it was before its group failed to handle it.
fn fresh(record: &RecordRef<'_>, topic: impl Into<String>) -> Message {
    retry::copy_of(record, topic)
        .without(&[names::DLQ_ORIGIN_TOPIC, names::DLQ_ORIGIN_MESSAGE_ID])
        .reconsume_times(0)
}

impl fmt::Debug for DeadLetters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeadLetters")
            .field("group", &self.group)
            .field("count", &self.count())
            .finish_non_exhaustive()
    }
}
