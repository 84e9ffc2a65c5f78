//! Consumers: groups, leases, acknowledgement, and what becomes of messages that could not be handled.

mod dead_letters;
mod group;
mod in_flight;
mod listener;
mod received;
mod retry;

pub use dead_letters::DeadLetters;
pub(crate) use group::Groups;
pub use listener::{Handled, Listener};
pub use received::{Batch, Received, Settled};
pub(super) use retry::is_dead_letter;

use super::Event;
use crate::error::{Error, Result};
use crate::log::GroupOffset;
use crate::message::format::{BROADCAST, is_system_topic};
use crate::store::{Filter, Store, group_of, wanted_topics};
use group::{Agreement, Group, Mode, Taken, Terms, dead_letter_topic, retry_topic};
use in_flight::Owner;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How long a consumer may hold a message, RocketMQ's `consumeTimeout`.
const CONSUME_TIMEOUT: Duration = Duration::from_secs(15 * 60);
/// RocketMQ's `pullBatchSize`.
const BATCH_MAX: usize = 32;
/// RocketMQ's `maxReconsumeTimes`.
const MAX_RECONSUME_TIMES: u32 = 16;
/// RocketMQ's `consumeConcurrentlyMaxSpan`.
const MAX_SPAN: usize = 2000;

/// Where a group begins that has no offset yet.
///
/// With the first message in any case where it may have had one: in a store some of whose offsets were
/// damaged, and in one that was a replica or that another node wrote before it: replicas are told of the offsets of
/// groups a while after they have moved, and by RocketMQ's protocol not at all. The files of a RocketMQ slave do
/// not say that they are: what its table of offsets does not know is new.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum ConsumeFrom {
    /// With the first message that is kept. The default: nothing that was put is passed over.
    #[default]
    First,
    /// With what is put from now on, RocketMQ's default.
    Last,
    /// With the first message stored then or later, in milliseconds since the epoch. For a time to come, with what
    /// is put from now on.
    Timestamp(i64),
}

/// How far a group is behind in a queue.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct QueueLag {
    /// The topic.
    pub topic: String,
    /// The queue.
    pub queue_id: i32,
    /// The group is done with everything before this offset.
    pub next: u64,
    /// Offset of the next message to come.
    pub end: u64,
}

impl QueueLag {
    /// Messages that the group is not done with.
    pub fn messages(&self) -> u64 {
        self.end.saturating_sub(self.next)
    }
}

/// How far groups that have come to this are behind, by group, topic and queue.
pub(super) fn lags(store: &Store, offsets: Vec<GroupOffset>) -> Vec<(String, QueueLag)> {
    let topics = wanted_topics(offsets.iter().map(|one| (one.group.as_str(), one.topic.as_str())));
    let known = offsets.into_iter();
    let known = known.map(|one| ((one.group, one.topic, one.queue_id), one.next));
    let mut known: BTreeMap<_, _> = known.collect();
    let mut lags = Vec::new();
    for (group, topic) in topics {
        // In those that have come since, it is where it begins.
        for queue_id in store.queue_ids(&topic) {
            let Some(end) = store.max_offset(&topic, queue_id) else { continue };
            let min = store.min_offset(&topic, queue_id).unwrap_or(0);
            let at = known.remove(&(group.clone(), topic.clone(), queue_id));
            let next = at.unwrap_or(min);
            lags.push((group.clone(), QueueLag { topic: topic.clone(), queue_id, next, end }));
        }
    }
    // What it knows of queues that there are none of.
    let gone = known.into_iter().map(|((group, topic, queue_id), next)| {
        (group, QueueLag { topic, queue_id, next, end: next })
    });
    lags.extend(gone);
    lags
}

impl Store {
    /// A consumer of `group`, to be [opened](ConsumerBuilder::open) once it says what it wants.
    ///
    /// # Examples
    /// ```
    /// # use duralog::{Message, Store, StoreConfig};
    /// use duralog::TagFilter;
    /// use std::time::Duration;
    ///
    /// # let dir = std::env::temp_dir().join(format!("duralog-doc-consumer-{}", std::process::id()));
    /// # let store = Store::open(StoreConfig::new(&dir).segment_size(1 << 20))?;
    /// store.put(Message::new("orders", "paid 42"))?.ok()?;
    ///
    /// let consumer = store.consumer("billing").subscribe("orders", TagFilter::any()).open()?;
    /// for message in consumer.poll(Duration::from_secs(1))? {
    ///     match std::str::from_utf8(message.body()) {
    ///         Ok(order) => {
    ///             assert_eq!(order, "paid 42");
    ///             message.ack()?;
    ///         }
    ///         Err(_) => {
    ///             message.retry_later()?;
    ///         }
    ///     }
    /// }
    /// assert_eq!(store.lag("billing").iter().map(|queue| queue.messages()).sum::<u64>(), 0);
    /// # drop(consumer);
    /// # store.close()?;
    /// # std::fs::remove_dir_all(&dir).unwrap();
    /// # Ok::<(), duralog::Error>(())
    /// ```
    pub fn consumer(&self, group: impl Into<String>) -> ConsumerBuilder {
        ConsumerBuilder {
            store: self.clone(),
            group: group.into(),
            subscriptions: Vec::new(),
            mode: Mode::Concurrent,
            from: ConsumeFrom::default(),
            batch_max: BATCH_MAX,
            consume_timeout: CONSUME_TIMEOUT,
            max_reconsume_times: None,
            max_span: MAX_SPAN,
        }
    }

    /// How far a group is behind, by topic and queue, in all queues of the topics that it has an offset of: its
    /// retries and dead letters are among them where there are any, but not those that wait for their delay. A
    /// consumer that gets [everything for itself](ConsumerBuilder::broadcast) is a group of its own,
    /// `group%BROADCAST%instance`, whose dead letters are those of `group`.
    pub fn lag(&self, group: &str) -> Vec<QueueLag> {
        let mut offsets = self.committed_offsets();
        // Those of its instances tell that it has dead letters.
        offsets.retain(|known| group_of(&known.group) == group_of(group));
        let lags = lags(self, offsets).into_iter().filter(|(name, _)| name == group);
        lags.map(|(_, queue)| queue).collect()
    }

    /// The dead letters of a group: what its consumers rejected, or failed to handle too often.
    pub fn dead_letters(&self, group: impl Into<String>) -> DeadLetters {
        DeadLetters::new(self.clone(), group.into())
    }
}

/// What a consumer wants, see [`Store::consumer`].
#[derive(Debug, Clone)]
#[must_use = "a consumer gets nothing before it is opened"]
pub struct ConsumerBuilder {
    store: Store,
    group: String,
    subscriptions: Vec<(String, Filter)>,
    mode: Mode,
    from: ConsumeFrom,
    batch_max: usize,
    consume_timeout: Duration,
    max_reconsume_times: Option<u32>,
    max_span: usize,
}

impl ConsumerBuilder {
    /// Asks for the messages of a topic that pass `filter`, a [`TagFilter`](crate::TagFilter) or, with the
    /// feature `sql92`, an `SqlFilter`; the others count as handled. The second call for a topic replaces the
    /// first.
    pub fn subscribe(mut self, topic: impl Into<String>, filter: impl Into<Filter>) -> Self {
        let (topic, filter) = (topic.into(), filter.into());
        self.subscriptions.retain(|(known, _)| *known != topic);
        self.subscriptions.push((topic, filter));
        self
    }

    /// One batch of a queue at a time, in the order of the queue: messages of one queue are never handled
    /// side by side, and one that fails holds up its queue until it is handled, `max_reconsume_times` at
    /// most if that is set. By default messages of a queue are handled side by side.
    ///
    /// A handler that takes longer than `consume_timeout`, or whose consumer is closed meanwhile, has lost its
    /// message: the next one begins while it runs.
    pub fn ordered(mut self) -> Self {
        self.mode = Mode::Ordered;
        self
    }

    /// Every consumer gets every message, and has offsets of its own under the name `instance`, which is
    /// to be the same when it comes again. What fails comes again to the same consumer, after 10 s, 30 s, 1 min
    /// and so on, and what fails too often goes to the dead letters of the group. It stays in its queue
    /// meanwhile: after [`max_span`](Self::max_span) messages behind it, that stands still until it is done
    /// with, which takes almost seven hours with the default of
    /// [`max_reconsume_times`](Self::max_reconsume_times).
    pub fn broadcast(mut self, instance: impl Into<String>) -> Self {
        self.mode = Mode::Broadcast { instance: instance.into() };
        self
    }

    /// Where the group begins in queues of a topic in none of which it has an offset. Default
    /// [`ConsumeFrom::First`]. A queue that appears later is always begun with its first message.
    pub fn from(mut self, from: ConsumeFrom) -> Self {
        self.from = from;
        self
    }

    /// How many messages [`poll`](Consumer::poll) returns at most. Default 32; 1 to 1024.
    pub fn batch_max(mut self, messages: usize) -> Self {
        self.batch_max = messages;
        self
    }

    /// How long a message may be held before it is given to somebody else. Default 15 min; 1 ms to 24 h.
    pub fn consume_timeout(mut self, timeout: Duration) -> Self {
        self.consume_timeout = timeout;
        self
    }

    /// How often a message comes again before it goes to the dead letters of the group. Default 16, and
    /// without end where messages are handled in order, as by RocketMQ.
    pub fn max_reconsume_times(mut self, times: u32) -> Self {
        self.max_reconsume_times = Some(times);
        self
    }

    /// How many messages of a queue may lie between the first that is not handled and the last that was
    /// given out: a crash makes at most so many come again. Default 2000, RocketMQ's
    /// `consumeConcurrentlyMaxSpan`; 1 to 1,000,000. All consumers of a group in a process must agree.
    pub fn max_span(mut self, messages: usize) -> Self {
        self.max_span = messages;
        self
    }

    /// Opens the consumer. Where a group begins that is new is durable when this returns.
    ///
    /// A topic that is not known is created, durably, with
    /// [`default_topic_queue_nums`](crate::StoreConfig::default_topic_queue_nums) queues, if
    /// [`auto_create_topic`](crate::StoreConfig::auto_create_topic) is on; so are the topics of the group's
    /// retries and dead letters in any case.
    ///
    /// # Errors
    /// [`Error::Config`] for a value out of range, for a subscription, a mode or a `max_span` that the group's
    /// other consumers in this process do not share, and for a name that no group can have;
    /// [`Error::InvalidMessage`] and [`Error::TooLarge`] for one that cannot be part of the topics of its
    /// retries and dead letters, which has at most 122 bytes, of a topic's characters; [`Error::UnknownTopic`]
    /// where topics must be created first; [`Error::ReadOnly`]; [`Error::Closed`]; and what
    /// [`Store::commit_offset`](crate::Store::commit_offset) and
    /// [`Store::flush_offsets`](crate::Store::flush_offsets) say.
    pub fn open(self) -> Result<Consumer> {
        let Self { store, group, subscriptions, mode, from, .. } = self;
        if store.config().log.read_only {
            return Err(Error::ReadOnly);
        }
        if !store.is_open() {
            return Err(Error::Closed);
        }
        let refused = |field, value: String, allowed| Err(Error::Config { field, value, allowed });
        if subscriptions.is_empty() {
            return refused("subscription", "none".to_owned(), "at least one topic");
        }
        if !(1..=1024).contains(&self.batch_max) {
            return refused("batch_max", self.batch_max.to_string(), "1 to 1024");
        }
        if !(1..=1_000_000).contains(&self.max_span) {
            return refused("max_span", self.max_span.to_string(), "1 to 1000000");
        }
        let day = Duration::from_secs(24 * 3600);
        if !(Duration::from_millis(1)..=day).contains(&self.consume_timeout) {
            return refused(
                "consume_timeout",
                format!("{:?}", self.consume_timeout),
                "1 ms to 24 h",
            );
        }
        let max_reconsume_times = self.max_reconsume_times.unwrap_or(match mode {
            Mode::Ordered => u32::MAX,
            _ => MAX_RECONSUME_TIMES,
        });
        let own = [retry_topic(&group), dead_letter_topic(&group)];
        if let Some((topic, _)) = subscriptions.iter().find(|(topic, _)| own.contains(topic)) {
            return refused("subscription", topic.clone(), "no topic that is the group's own");
        }
        if group.is_empty() || group.contains(BROADCAST) {
            return refused("group", group, "a name, without `%BROADCAST%`");
        }
        // What no topic and no offset can be called is not found out when a message is to be set aside.
        let name = mode.offsets_name(&group);
        for topic in subscriptions.iter().map(|(topic, _)| topic).chain(&own) {
            store.check_known(topic)?;
            store.check_offset_name(&name, topic)?;
        }
        // For brokers, which give out nothing of a topic that is not in their table, and when told to clean up
        // delete its queues. Not when something is to be set aside: the disk may hang then.
        for topic in &own {
            store.require_topic(topic, 1)?;
        }
        for (topic, _) in &subscriptions {
            let queues = match topic {
                // Those that come with brokers, and with other groups.
                topic if is_system_topic(topic) => continue,
                topic if retry::is_retry(topic) || retry::is_dead_letter(topic) => 1,
                _ => store.config().default_topic_queue_nums,
            };
            match store.require_topic(topic, queues) {
                // What makes room must be able to begin; the next one notes it.
                Err(Error::DiskFull { .. }) => {}
                noted => drop(noted?),
            }
        }
        // Whoever asks for the same in another order agrees.
        let mut subscriptions = subscriptions;
        subscriptions.sort_by(|one, other| one.0.cmp(&other.0));
        let agreement = Agreement { subscriptions, mode, max_span: self.max_span };
        let terms = Terms {
            batch_max: self.batch_max,
            consume_timeout: self.consume_timeout,
            max_reconsume_times,
        };
        let (group, owner) = Groups::join(&store, &group, agreement, from, &terms)?;
        let member = Member { group, owner, terms: Arc::new(terms), gone: AtomicBool::new(false) };
        Ok(Consumer { member: Arc::new(member) })
    }
}

/// A member of a consumer group.
///
/// All consumers of a group in a process take their messages from the same queues: whoever asks first gets
/// what is there, and what one of them does not settle comes to another. Cheap to clone, and usable from any
/// number of threads; the last clone that goes gives back what it holds.
///
/// # On a replica
/// A replica can be consumed from: what is acknowledged there counts there, and the primary does not hear of it.
/// A group begins where it stands on the primary, as far as the replica knows, and goes on by itself from then on.
/// It takes no messages, so none can be set aside: [`Received::retry_later`] and [`Received::reject`] answer
/// [`Error::Refused`] with [`NotPrimary`](crate::replication::Refusal::NotPrimary), and the message comes again
/// when its lease runs out. In order, and where every consumer gets everything, only `reject` does, as the rest
/// makes no copy. What was given out in vain too often cannot become a dead letter: nobody gets it any more, it
/// holds up the group's offset in its queue, and [`poll`](Consumer::poll) says so every second.
#[derive(Clone)]
pub struct Consumer {
    member: Arc<Member>,
}

struct Member {
    group: Arc<Group>,
    owner: Owner,
    terms: Arc<Terms>,
    gone: AtomicBool,
}

impl Consumer {
    /// The group's name.
    pub fn group(&self) -> &str {
        &self.member.group.name
    }

    /// What the group reads of which store, its retries included, and the name of its offsets.
    pub(in crate::delivery) fn reads(&self) -> (&Store, &str, &[(String, Filter)]) {
        let (offsets_name, topics) = self.member.group.reads();
        (&self.member.group.store, offsets_name, topics)
    }

    /// Messages of one queue, up to `batch_max` of them; blocks up to `timeout` until there are any, and as
    /// long as a put takes where one has failed too often, or cannot be decompressed, and is set aside. Empty
    /// if there was none in time: also where a long row of messages that do not pass took all of it; the next
    /// call goes on behind them. The queues take turns.
    ///
    /// The messages are on lease for `consume_timeout`, see [`Received`].
    ///
    /// Bodies that a producer compressed are decompressed, up to `max_message_size` of the store, or
    /// 4 MiB if that is more. A message whose body is damaged, longer, or compressed by something that this
    /// build has no feature for, is not returned: it counts as one that could not be handled, and
    /// comes again as if [`retry_later`](Received::retry_later) had been called, until it is a dead letter or
    /// a consumer can read it. [`Event::Undecodable`] tells why.
    ///
    /// # Errors
    /// [`Error::Closed`] if the store or this consumer is closed, or gets closed meanwhile; those of
    /// [`Store::get`], for a queue that cannot be read, once the others have nothing more to give;
    /// those of [`Store::commit_offset`] where messages were passed over or have expired, and those of
    /// [`Store::put`] where one was to become a dead letter or could not be decompressed.
    pub fn poll(&self, timeout: Duration) -> Result<Batch> {
        self.poll_max(self.member.terms.batch_max, timeout)
    }

    /// The same with another limit: at most `max` messages.
    ///
    /// # Errors
    /// As [`poll`](Self::poll).
    pub fn poll_max(&self, max: usize, timeout: Duration) -> Result<Batch> {
        self.poll_until(max, timeout, || false)
    }

    fn check_open(&self) -> Result<()> {
        let Member { group, gone, .. } = &*self.member;
        if gone.load(Ordering::SeqCst) { Err(Error::Closed) } else { group.check_open() }
    }

    /// How many messages one worker takes: what it has not come to is not to be had by others.
    fn messages_at_a_time(&self) -> usize {
        let Member { group, terms, .. } = &*self.member;
        if group.is_ordered() { terms.batch_max } else { 1 }
    }

    /// The same; ends also when `stop` says so, which is asked whenever the group may have messages.
    fn poll_until(&self, max: usize, timeout: Duration, stop: impl Fn() -> bool) -> Result<Batch> {
        let Member { group, owner, terms, gone } = &*self.member;
        if max == 0 {
            return Ok(Batch::default());
        }
        // A deadline too far away to be told is none.
        let deadline = group.now().checked_add(timeout);
        loop {
            self.check_open()?;
            let seen = group.changes();
            let taken = match group.take(*owner, terms, max)? {
                Taken::Batch(batch) => Taken::Batch(batch.decompressed()?),
                other => other,
            };
            let goes_on = match taken {
                Taken::Batch(batch) if !batch.is_empty() => {
                    // It was closed meanwhile, and what it took then did not go back with the rest.
                    if gone.load(Ordering::SeqCst) {
                        return Err(Error::Closed);
                    }
                    if group.delivery.observers.some() {
                        for message in &batch {
                            group.tell(&Event::Delivered { group: &group.name, message });
                        }
                    }
                    return Ok(batch);
                }
                Taken::Nothing => !stop() && group.wait(seen, deadline)?,
                // Nothing yet, or nothing that has a body.
                Taken::NotYet | Taken::Batch(_) => {
                    !stop() && deadline.is_none_or(|deadline| group.now() <= deadline)
                }
            };
            if !goes_on {
                return Ok(Batch::default());
            }
        }
    }

    /// Hands messages to `handle` on `workers` threads until the listener is closed.
    ///
    /// What `handle` returns says what becomes of a message; one for which it fails or panics comes again
    /// later, as [`Received::retry_later`] says. Nothing is committed before the handler is done. If a
    /// message cannot be set aside, because the disk is full, it stays on lease and comes again when that
    /// runs out.
    ///
    /// # Errors
    /// [`Error::Config`] for no workers or more than 1024; [`Error::Closed`]; [`Error::Io`] if a thread cannot
    /// be started.
    ///
    /// # Examples
    /// ```
    /// # use duralog::{Message, Store, StoreConfig};
    /// use duralog::TagFilter;
    /// use duralog::delivery::Handled;
    ///
    /// # let dir = std::env::temp_dir().join(format!("duralog-doc-listener-{}", std::process::id()));
    /// # let store = Store::open(StoreConfig::new(&dir).segment_size(1 << 20))?;
    /// let (done, answers) = std::sync::mpsc::channel();
    /// let consumer = store.consumer("billing").subscribe("orders", TagFilter::any()).open()?;
    /// let listener = consumer.listen(2, move |message| {
    ///     let order = String::from_utf8(message.body().to_vec())?;
    ///     done.send(order)?;
    ///     Ok(Handled::Done)
    /// })?;
    /// store.put(Message::new("orders", "paid 42"))?.ok()?;
    /// assert_eq!(answers.recv().unwrap(), "paid 42");
    /// listener.close()?;
    /// # store.close()?;
    /// # std::fs::remove_dir_all(&dir).unwrap();
    /// # Ok::<(), duralog::Error>(())
    /// ```
    pub fn listen<F>(&self, workers: usize, handle: F) -> Result<Listener>
    where
        F: Fn(&Received) -> std::result::Result<Handled, Box<dyn std::error::Error>>
            + Send
            + Sync
            + 'static,
    {
        Listener::start(self, workers, Arc::new(handle))
    }

    /// Gives back what the consumer holds, and ends it and all its clones: others of the group get it at
    /// once.
    pub fn close(&self) {
        self.member.leave();
    }
}

impl Member {
    fn leave(&self) {
        if !self.gone.swap(true, Ordering::SeqCst) {
            self.group.leave(self.owner);
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.leave();
    }
}

impl fmt::Debug for Consumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer")
            .field("group", &self.member.group.name)
            .field("agreement", &self.member.group.agreement)
            .finish_non_exhaustive()
    }
}
