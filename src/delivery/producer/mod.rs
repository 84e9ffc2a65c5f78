//! Producers: from an application's call to a message that is stored, or an error that says what became of
//! it.

mod attempts;
mod builder;
pub(in crate::delivery) mod select;
mod ticket;

pub use builder::ProducerBuilder;
pub use ticket::SendTicket;

use super::unique_ids::{Entry, UniqueIds};
use super::{Delivery, delay};
use crate::error::{Error, Result};
use crate::message::{Compression, Message, SysFlag, names};
use crate::store::{PutResult, PutStatus, Store, StoreWorker, Ticket};
use crate::worker::Next;
pub(in crate::delivery) use attempts::is_of_message;
use attempts::{Attempts, Place, Verdict};
use select::{Routes, Selector};
use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// Sends messages to a [`Store`]: gives them an id and a queue, compresses them where that is asked for,
/// and tries again what may succeed later.
///
/// Made by [`Store::producer`]. Cheap to clone and usable from any number of threads; it is a handle of
/// its store, which stays open with it.
///
/// # Which queue
/// The one that the message was given with [`Message::queue`]; else the one that the producer's
/// [`queue_selector`](ProducerBuilder::queue_selector) chooses; else the one that belongs to its
/// [`sharding_key`](Message::sharding_key), always the same as long as the topic has as many queues; else
/// one after the other. A topic that is not known is created with
/// [`default_topic_queue_nums`](crate::StoreConfig::default_topic_queue_nums) queues, durably, if
/// [`auto_create_topic`](crate::StoreConfig::auto_create_topic) is on.
///
/// # What is tried again
/// Whatever may succeed later ([`Error::is_retryable`]: a full disk, bytes in flight, a replicator that
/// refuses), after pauses that double, in all of [`send_timeout`](ProducerBuilder::send_timeout). A message
/// that is stored but not as safe as asked is not put into the same store once more: `send` fails with
/// [`Error::NotOk`] and what the store said. Where there is a
/// [second store](ProducerBuilder::retry_another_when_not_ok), it takes the message then, and when the
/// first one fails for good. A message that two stores hold has the same
/// [`unique_key`](Sent::unique_key) in both.
///
/// # How long it takes
/// No longer than `send_timeout`, whatever the timeouts of the store are: an answer that it does not have
/// by then is [`Error::NotOk`] with [`FlushDiskTimeout`](PutStatus::FlushDiskTimeout) or
/// [`FlushReplicaTimeout`](PutStatus::FlushReplicaTimeout), and says where the message lies; an attempt
/// that could be followed by one in the second store is given half of the time that is left. Only a system
/// call that hangs takes longer, and the first message to a topic, which notes it in `topics.json`.
///
/// # Examples
/// ```
/// use duralog::{Message, Store, StoreConfig};
///
/// # let dir = std::env::temp_dir().join(format!("duralog-doc-producer-{}", std::process::id()));
/// let store = Store::open(StoreConfig::new(&dir).segment_size(1 << 20))?;
/// let producer = store.producer("orders-service").open()?;
/// let sent = producer.send(Message::new("orders", "paid 42").key("order-42"))?;
/// println!("{} lies in queue {}", sent.unique_key(), sent.put.queue_id);
///
/// // What one customer does stays in order.
/// let placed = producer.send(Message::new("orders", "placed 43").sharding_key("customer-7"))?;
/// let paid = producer.send(Message::new("orders", "paid 43").sharding_key("customer-7"))?;
/// assert_eq!(placed.put.queue_id, paid.put.queue_id);
/// # store.close()?;
/// # std::fs::remove_dir_all(&dir).unwrap();
/// # Ok::<(), duralog::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Producer {
    inner: Arc<Inner>,
}

/// A message that was sent.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Sent {
    /// Where it lies, and how safely: `PutOk`, or a status that the producer
    /// [accepts](ProducerBuilder::accept).
    pub put: PutResult,
    /// How many attempts it took.
    pub attempts: u32,
    /// Whether the [second store](ProducerBuilder::retry_another_when_not_ok) took it.
    pub fell_back: bool,
    key: Key,
}

impl Sent {
    fn new(put: PutResult, attempts: &Attempts, key: &mut Key) -> Self {
        let fell_back = attempts.place == Place::Fallback;
        Self { put, attempts: attempts.made, fell_back, key: std::mem::take(key) }
    }

    /// One that took a single attempt.
    pub(in crate::delivery) fn at_once(put: PutResult, unique_key: &str) -> Self {
        Self { put, attempts: 1, fell_back: false, key: Key::Given(unique_key.into()) }
    }

    /// The id of the message, its property `UNIQ_KEY`; the first one's, for a batch. The same in every
    /// copy that retries may have left.
    pub fn unique_key(&self) -> &str {
        self.key.as_str()
    }
}

/// The id of a message.
#[derive(Clone)]
enum Key {
    Own(Entry),
    Given(Box<str>),
}

impl Default for Key {
    fn default() -> Self {
        Self::Given(Box::default())
    }
}

impl Key {
    fn as_str(&self) -> &str {
        match self {
            Self::Own(entry) => entry.id(),
            Self::Given(key) => key,
        }
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_str().fmt(f)
    }
}

#[derive(Debug)]
struct Inner {
    group: String,
    main: Target,
    fallback: Option<Target>,
    ids: UniqueIds,
    options: Options,
}

/// A store that is sent to.
struct Target {
    store: Store,
    routes: Routes,
    delivery: Arc<Delivery>,
}

#[derive(Debug, Clone)]
struct Options {
    send_timeout: Duration,
    retries: u32,
    async_retries: u32,
    pause: Duration,
    accepted: Vec<PutStatus>,
    compression: Option<Compression>,
    compress_over: usize,
    selector: Option<Selector>,
}

impl Store {
    /// Builds a [`Producer`] of the group `group`: those that do the same, in this process and in others.
    pub fn producer(&self, group: impl Into<String>) -> ProducerBuilder {
        ProducerBuilder::new(self.clone(), group.into())
    }
}

impl Producer {
    /// The group.
    pub fn group(&self) -> &str {
        &self.inner.group
    }

    /// The store that it sends to.
    pub fn store(&self) -> &Store {
        &self.inner.main.store
    }

    /// The queues over which the messages of a topic are spread. Creates the topic as a send would.
    ///
    /// # Errors
    /// As [`send`](Self::send), for the topic.
    pub fn queues(&self, topic: &str) -> Result<Vec<i32>> {
        self.inner.main.routes.queues(&self.inner.main.store, topic)
    }

    /// Sends `message` and waits until it is as safe as the store's settings ask: it answers `Ok` if that
    /// is so, [`PutOk`](PutStatus::PutOk), or if the producer [accepts](ProducerBuilder::accept) what it
    /// is. What that survives is what [`Store::put`] says.
    ///
    /// Blocks for [`send_timeout`](ProducerBuilder::send_timeout) at most, see
    /// [`Producer`](Self#how-long-it-takes).
    ///
    /// # Errors
    /// Nothing was stored, and no other attempt would help: [`Error::InvalidMessage`],
    /// [`Error::TooLarge`], [`Error::UnknownTopic`], [`Error::TopicNotWritable`], and [`Error::Codec`] for a
    /// body compressed by what the store does not take.
    ///
    /// [`Error::SendFailed`] otherwise, with the error of [`Store::put`] in it. Where that is
    /// [`Error::NotOk`], the message is stored, but not as safely as asked by then; where it is
    /// [`Error::Unknown`], it may be.
    pub fn send(&self, message: Message) -> Result<Sent> {
        let mut message = message;
        self.inner.send(std::slice::from_mut(&mut message), self.inner.options.retries)
    }

    /// Sends messages of one topic, which are stored next to each other in one queue, and waits for all of
    /// them as [`send`](Self::send) does. A crash before the answer may keep the first few.
    ///
    /// Those that choose a queue or have a sharding key must agree on the queue; a
    /// [`queue_selector`](ProducerBuilder::queue_selector) is asked with the first message.
    ///
    /// # Examples
    /// ```
    /// # use duralog::{Message, Store, StoreConfig};
    /// # let dir = std::env::temp_dir().join(format!("duralog-doc-send-batch-{}", std::process::id()));
    /// # let store = Store::open(StoreConfig::new(&dir).segment_size(1 << 20))?;
    /// let producer = store.producer("orders-service").open()?;
    /// let sent = producer.send_batch(["placed", "paid"].map(|body| Message::new("orders", body)))?;
    /// let put = sent.put;
    /// assert_eq!(store.get("orders", put.queue_id, put.queue_offset, 2)?.messages[1].body, b"paid");
    /// # store.close()?;
    /// # std::fs::remove_dir_all(&dir).unwrap();
    /// # Ok::<(), duralog::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`send`](Self::send); [`InvalidMessage::MixedBatch`](crate::InvalidMessage::MixedBatch) and
    /// [`InvalidMessage::EmptyBatch`](crate::InvalidMessage::EmptyBatch).
    pub fn send_batch(&self, messages: impl IntoIterator<Item = Message>) -> Result<Sent> {
        let mut messages: Vec<Message> = messages.into_iter().collect();
        self.inner.send(&mut messages, self.inner.options.retries)
    }

    /// Gives `message` its place and returns; the ticket tells what became of it. One thread can keep
    /// thousands in flight this way.
    ///
    /// Blocks while there is no place, as [`Store::submit`] does, for
    /// [`send_timeout`](ProducerBuilder::send_timeout) at most. Where the store refuses it for a reason that
    /// may pass, the ticket tries again, whenever it is waited for or polled; such a message is stored
    /// behind those that were sent after it.
    ///
    /// # Examples
    /// ```
    /// # use duralog::{Message, Store, StoreConfig};
    /// # let dir = std::env::temp_dir().join(format!("duralog-doc-send-async-{}", std::process::id()));
    /// # let store = Store::open(StoreConfig::new(&dir).segment_size(1 << 20))?;
    /// let producer = store.producer("orders-service").open()?;
    /// let orders = (0..100).map(|number| Message::new("orders", format!("order {number}")));
    /// let tickets = orders.map(|order| producer.send_async(order)).collect::<Result<Vec<_>, _>>()?;
    /// for ticket in tickets {
    ///     ticket.wait()?; // a few syncs cover all of them
    /// }
    /// # store.close()?;
    /// # std::fs::remove_dir_all(&dir).unwrap();
    /// # Ok::<(), duralog::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`send`](Self::send), where no other attempt would help.
    pub fn send_async(&self, message: Message) -> Result<SendTicket> {
        SendTicket::begin(self.inner.clone(), message)
    }

    /// Whether there is no second store.
    pub(in crate::delivery) fn is_single(&self) -> bool {
        self.inner.fallback.is_none()
    }

    /// Whether it has a store that is neither closed nor latched.
    pub(in crate::delivery) fn has_store_left(&self) -> bool {
        let mut targets = self.inner.targets();
        targets.any(|Target { store, .. }| store.is_open() && store.latched().is_none())
    }

    /// Does what threads would do, where nobody but the caller drives a store: makes room, and what was
    /// put durable if `flush` says so.
    pub(in crate::delivery) fn drive(&self, flush: bool) {
        for target in self.inner.targets() {
            if !target.store.is_threaded() {
                if flush {
                    // Whoever waits is told by the store.
                    let _ = target.store.flush();
                }
                while target.store.step(StoreWorker::Upkeep) == Next::Now {}
            }
        }
    }

    /// Sends `message` once and does not wait for disk or replicas: it is in the page cache on return and
    /// survives the end of the process, not a power cut; what [`Message::wait`]`(false)` asks for, but
    /// without the property. Nothing is tried again.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub fn send_oneway(&self, message: Message) -> Result<()> {
        let mut message = message.not_waiting();
        self.inner.send(std::slice::from_mut(&mut message), 0).map(drop)
    }
}

impl Inner {
    fn target(&self, place: Place) -> &Target {
        match (place, &self.fallback) {
            (Place::Fallback, Some(fallback)) => fallback,
            _ => &self.main,
        }
    }

    fn targets(&self) -> impl Iterator<Item = &Target> {
        [Some(&self.main), self.fallback.as_ref()].into_iter().flatten()
    }

    fn now(&self) -> Instant {
        self.main.store.clock().now()
    }

    fn attempts(&self, retries: u32) -> Attempts {
        let most = retries.saturating_add(1);
        Attempts::new(most, self.fallback.is_some(), self.options.pause)
    }

    fn accepts(&self, status: PutStatus) -> bool {
        status == PutStatus::PutOk || self.options.accepted.contains(&status)
    }

    fn send(&self, messages: &mut [Message], retries: u32) -> Result<Sent> {
        let mut now = self.now();
        let until = now + self.options.send_timeout;
        self.compress(messages)?;
        let mut key = None;
        let mut attempts = self.attempts(retries);
        let mut aimed = None;
        loop {
            let share = now + attempts.share(until.saturating_duration_since(now));
            let target = self.target(attempts.place);
            let selector = self.options.selector.as_ref();
            let aim = target.aim(messages, &mut aimed, attempts.place, selector);
            // After the first look for a sharding key, which has less to look through then.
            let key = key.get_or_insert_with(|| self.identify(messages, now));
            let outcome = aim.and_then(|()| target.put(messages, now, share));
            if let Ok(put) = outcome
                && self.accepts(put.status)
            {
                return self.told(Ok(Sent::new(put, &attempts, key)));
            }
            now = self.now();
            let left = until.saturating_duration_since(now);
            match attempts.judge(outcome, |status| self.accepts(status), left) {
                Verdict::Again(pause) => now = self.pause(now, pause),
                Verdict::Failed(error) => {
                    return self.told(Err(failed(attempts.made, key, error)));
                }
                Verdict::Sent(put) => return self.told(Ok(Sent::new(put, &attempts, key))),
            }
        }
    }

    /// Lets whoever asked know how a message was sent.
    fn told(&self, answer: Result<Sent>) -> Result<Sent> {
        self.main.delivery.observers.tell_sent(&answer);
        answer
    }

    /// Sleeps, by the system's clock; what time it is then.
    fn pause(&self, now: Instant, pause: Duration) -> Instant {
        if pause.is_zero() {
            return now;
        }
        thread::sleep(pause);
        self.now()
    }

    /// Gives an id to those that bring none; that of the first one.
    fn identify(&self, messages: &mut [Message], now: Instant) -> Key {
        let clock = self.main.store.clock();
        let mut first = None;
        for message in messages {
            let key = match message.get(names::UNIQ_KEY) {
                Some(given) => Key::Given(given.into()),
                None => {
                    let entry = self.ids.next(clock, now);
                    message.add_entry(entry.as_bytes());
                    Key::Own(entry)
                }
            };
            first.get_or_insert(key);
        }
        first.unwrap_or_default()
    }

    /// Messages that cannot be compressed are given up.
    fn compress(&self, messages: &mut [Message]) -> Result<()> {
        let Some(compression) = self.options.compression else { return Ok(()) };
        let mut messages = messages.iter_mut();
        let compressed = messages.try_for_each(|message| self.compress_one(message, compression));
        compressed.inspect_err(|error| self.main.delivery.observers.tell_not_sent(error))
    }

    fn compress_one(&self, message: &mut Message, compression: Compression) -> Result<()> {
        let len = message.body().len();
        if len < self.options.compress_over || message.sys_flag.contains(SysFlag::COMPRESSED) {
            return Ok(());
        }
        // What no store takes is refused by each, and need not be compressed for that.
        let limits = self.targets().map(|target| target.store.config().log.max_message_size);
        if limits.max().is_none_or(|max| len > max) {
            return Ok(());
        }
        let body = compression.compress(message.body())?;
        if body.len() < len {
            message.set_compressed(body, compression.sys_flag());
        }
        Ok(())
    }
}

impl Target {
    fn new(store: Store) -> Result<Self> {
        store.check_takes_puts()?;
        let delivery = Delivery::of(&store)?;
        Ok(Self { store, routes: Routes::default(), delivery })
    }

    /// Chooses a queue of this store, unless that was done before.
    fn aim(
        &self,
        messages: &mut [Message],
        aimed: &mut Option<Place>,
        place: Place,
        selector: Option<&Selector>,
    ) -> Result<()> {
        if *aimed != Some(place) {
            self.routes.aim(&self.store, messages, selector)?;
            *aimed = Some(place);
        }
        Ok(())
    }

    /// One attempt, answered by `until`.
    fn put(&self, messages: &[Message], now: Instant, until: Instant) -> Result<PutResult> {
        match messages {
            [message] => {
                let routed = self.routed(message)?;
                self.store.put_by(std::slice::from_ref(&routed), now, until)
            }
            _ => {
                let routed = messages.iter().map(|message| self.routed(message));
                let routed = routed.collect::<Result<Vec<_>>>()?;
                self.store.put_by(&routed, now, until)
            }
        }
    }

    /// The same, with the answer to come.
    fn submit(
        &self,
        message: &Message,
        may_wait: bool,
        now: Instant,
        until: Instant,
    ) -> Result<Ticket> {
        let routed = self.routed(message)?;
        self.store.submit_by(std::slice::from_ref(&routed), may_wait, now, until)
    }

    /// What is put for a message that has its queue: itself, unless it is to be delivered later.
    fn routed<'a>(&self, message: &'a Message) -> Result<Cow<'a, Message>> {
        self.store.check_compression(message.sys_flag.compression())?;
        if !delay::asks_to_wait(message) {
            return Ok(Cow::Borrowed(message));
        }
        self.store.routed(message.clone()).map(Cow::Owned)
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.store.fmt(f)
    }
}

/// The error of a message at which so many attempts were made.
fn failed(attempts: u32, key: &Key, error: Error) -> Error {
    if is_of_message(&error) {
        return error;
    }
    let unique_key = key.as_str().to_owned();
    Error::SendFailed { attempts, unique_key, error: Arc::new(error) }
}
