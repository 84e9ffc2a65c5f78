//! Marks that cost nothing: those of what a consumer group is done with are its offsets.

use super::Once;
use super::recent::{Known, Recent};
use crate::delivery::{Consumer, Received};
use crate::error::{Error, Result};
use crate::log::{MessageView, TimeBound};
use crate::message::format::RETRY_TOPIC_PREFIX;
use crate::message::names;
use crate::store::{Filter, Store};
use parking_lot::{Condvar, Mutex};
use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Messages of a queue read in one go: few at first, as there may be many queues.
const CHUNKS: std::ops::RangeInclusive<u64> = 32..=1024;
/// Messages taken for each key that is kept, at most: many may be copies.
const COPIES: u64 = 16;
/// Messages that may be taken however few keys are kept.
const COPIES_MIN: u64 = 10_000;
/// Messages looked at for each key that is kept, at most: a filter may let few of them pass.
const LOOKS: u64 = 100;
/// Messages that may be looked at however few keys are kept.
const LOOKS_MIN: u64 = 1_000_000;

type KeyOf = dyn Fn(&MessageView) -> Option<String> + Send + Sync;

impl Consumer {
    /// A [`Deduplicator`] for the consumer's group, to be [opened](DeduplicatorBuilder::open).
    pub fn deduplicator(&self) -> DeduplicatorBuilder {
        DeduplicatorBuilder {
            consumer: self.clone(),
            max_keys: 100_000,
            window: Duration::from_secs(24 * 3600),
            key: Arc::new(usual_key),
        }
    }
}

/// Sets up a [`Deduplicator`].
#[must_use = "nothing is known before `open`"]
pub struct DeduplicatorBuilder {
    consumer: Consumer,
    max_keys: usize,
    window: Duration,
    key: Arc<KeyOf>,
}

impl DeduplicatorBuilder {
    /// How many keys are known at most, the newest ones. Default 100,000, some 150 bytes each; 1 to
    /// 100,000,000.
    pub fn max_keys(mut self, keys: usize) -> Self {
        self.max_keys = keys;
        self
    }

    /// How long a key is known. Default 24 h.
    pub fn window(mut self, window: Duration) -> Self {
        self.window = window;
        self
    }

    /// What tells copies of a message from other messages: those with the same key are one, whatever their
    /// topic. `None`, or an empty one: the message is handled however often it comes. Called also for messages
    /// that were handled before. Default: [`unique_key`](Received::unique_key), or where the first copy lies if it
    /// has none.
    pub fn key(
        mut self,
        key: impl Fn(&MessageView) -> Option<String> + Send + Sync + 'static,
    ) -> Self {
        self.key = Arc::new(key);
        self
    }

    /// Reads back which messages the group is done with, the newest of all its queues first: as many as are to
    /// be known, and not all of the queues. Where few of the messages pass the subscription, or many are copies,
    /// it ends after looking at the newest 1,000,000 or [`max_keys`](Self::max_keys) times 100, whichever is more,
    /// or after taking 10,000 that pass, or `max_keys` times 16.
    ///
    /// # Errors
    /// [`Error::Config`] for a value out of range; [`Error::Io`]. A message that is damaged is passed
    /// over.
    pub fn open(self) -> Result<Deduplicator> {
        let Self { consumer, max_keys, window, key } = self;
        if !(1..=100_000_000).contains(&max_keys) {
            let (field, value) = ("max_keys", max_keys.to_string());
            return Err(Error::Config { field, value, allowed: "1 to 100000000" });
        }
        // All that have an empty one would be copies of each other.
        let key: Arc<KeyOf> = Arc::new(move |view| key(view).filter(|key| !key.is_empty()));
        let (store, offsets_name, topics) = consumer.reads();
        let window_ms = i64::try_from(window.as_millis()).unwrap_or(i64::MAX);
        let since = store.clock().unix_millis().saturating_sub(window_ms);
        let mut recent = Recent::new(max_keys, window_ms);
        let settled = settled(store, offsets_name, topics, (max_keys, since), &key)?;
        for (stored_at, key) in settled.into_iter().rev() {
            recent.note(key, Known::Settled, stored_at);
        }
        let state = Mutex::new(State { recent, running: HashSet::new() });
        let shared = Shared { store: store.clone(), key, state, ended: Condvar::new() };
        Ok(Deduplicator { shared: Arc::new(shared) })
    }
}

impl fmt::Debug for DeduplicatorBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeduplicatorBuilder")
            .field("consumer", &self.consumer)
            .field("max_keys", &self.max_keys)
            .field("window", &self.window)
            .finish_non_exhaustive()
    }
}

/// Lets a handler run for each message until it has succeeded, and not for copies that come later; made by
/// [`Consumer::deduplicator`].
///
/// It marks a message when its handler has succeeded, in memory, and what it knows of earlier lives of the
/// process it reads from the queues: messages before the group's offset are done with. So a mark is durable
/// exactly when the acknowledgement is, and costs no write.
///
/// # What is promised
/// * Each message is handled until it has succeeded once, or is a dead letter. A copy is not handled if another
///   one has succeeded.
/// * While the process runs, no message succeeds twice, as long as its key is known:
///   [`max_keys`](DeduplicatorBuilder::max_keys), [`window`](DeduplicatorBuilder::window).
/// * After the process or the machine has ended, those may succeed again that were in flight: handled, but before
///   the group's offset had moved over them. These are messages that were not acknowledged, or were while one
///   before them in their queue was not (`max_span` at most, see
///   [`ConsumerBuilder::max_span`](crate::delivery::ConsumerBuilder::max_span)), or, after a power cut, whose offset
///   was not durable yet; and copies of messages that were to be retried, where a second one was made because the
///   first was in flight at such an end.
/// * A message that comes from the group's retries, or was sent back from dead letters, is
///   handled unless one of its copies has succeeded in this life: that the group was done with it before does not
///   say that it has succeeded.
///
/// What lies before the place where a group began, or was taken by
/// [`commit_offset`](crate::Store::commit_offset), counts as handled; so does what an earlier subscription's filter
/// did not let pass. A group that is taken back handles messages
/// again that come before what is known, with a deduplicator that is opened after that.
///
/// One for all consumers of a group in a process: clone it. It is a handle of its store, which stays open with it.
///
/// # Examples
/// ```
/// # use duralog::{Message, Store, StoreConfig};
/// use duralog::TagFilter;
/// use duralog::delivery::Handled;
/// # use std::sync::mpsc;
///
/// # let dir = std::env::temp_dir().join(format!("duralog-doc-dedup-{}", std::process::id()));
/// # let store = Store::open(StoreConfig::new(&dir).segment_size(1 << 20))?;
/// # let (mail, sent) = mpsc::channel();
/// let consumer = store.consumer("mailing").subscribe("orders", TagFilter::any()).open()?;
/// let dedup = consumer.deduplicator().open()?;
/// let listener = consumer.listen(2, move |message| {
///     // A handler that fails is asked again.
///     dedup.handle(message, || mail.send(message.body().to_vec()))?;
///     Ok(Handled::Done)
/// })?;
///
/// let message = Message::new("orders", "paid 42").unique_key("order-42-paid");
/// store.put(&message)?.ok()?;
/// store.put(&message)?.ok()?;
/// store.put(Message::new("orders", "paid 43"))?.ok()?;
/// # let both = [sent.recv().unwrap(), sent.recv().unwrap()];
/// # assert!(both.contains(&b"paid 42".to_vec()) && both.contains(&b"paid 43".to_vec()));
/// listener.close()?;
/// # assert!(sent.try_recv().is_err(), "nothing is mailed twice");
/// # drop(consumer);
/// # store.close()?;
/// # std::fs::remove_dir_all(&dir).unwrap();
/// # Ok::<(), duralog::Error>(())
/// ```
#[derive(Clone)]
pub struct Deduplicator {
    shared: Arc<Shared>,
}

struct Shared {
    store: Store,
    key: Arc<KeyOf>,
    state: Mutex<State>,
    ended: Condvar,
}

struct State {
    recent: Recent,
    /// What is being handled.
    running: HashSet<Arc<str>>,
}

impl Deduplicator {
    /// Runs `effect` unless a message with the same key has succeeded. Where such a message is being handled by
    /// another thread, this waits for how that ends.
    ///
    /// Acknowledge the message when this returns `Ok`. If `effect` fails or panics, nothing is marked. Not to be
    /// called by `effect` for the same key: it would wait for itself.
    ///
    /// # Errors
    /// What `effect` says.
    pub fn handle<T, E>(
        &self,
        message: &Received,
        effect: impl FnOnce() -> Result<T, E>,
    ) -> Result<Once<T>, E> {
        let view = message.view();
        let Some(key) = (self.shared.key)(view) else { return effect().map(Once::Ran) };
        let key: Arc<str> = key.into();
        // Where its own copies were settled does not tell how it ended with this one.
        let enough = if is_second(view) { Known::Succeeded } else { Known::Settled };
        let mut state = self.shared.state.lock();
        loop {
            let now = self.shared.store.clock().unix_millis();
            if state.recent.get(&key, now).is_some_and(|known| known >= enough) {
                return Ok(Once::AlreadyDone);
            }
            if state.running.insert(key.clone()) {
                break;
            }
            self.shared.ended.wait(&mut state);
        }
        drop(state);
        let running = Running { shared: &self.shared, key: &key };
        let value = effect()?;
        let now = self.shared.store.clock().unix_millis();
        // Before anybody else may begin.
        self.shared.state.lock().recent.note(key.clone(), Known::Succeeded, now);
        drop(running);
        Ok(Once::Ran(value))
    }

    /// How many keys are known.
    pub fn known_keys(&self) -> usize {
        self.shared.state.lock().recent.len()
    }
}

impl fmt::Debug for Deduplicator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Deduplicator")
            .field("known_keys", &self.known_keys())
            .finish_non_exhaustive()
    }
}

/// A key whose message is being handled, until this is dropped, however the handler ends.
struct Running<'a> {
    shared: &'a Shared,
    key: &'a Arc<str>,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.shared.state.lock().running.remove(self.key);
        self.shared.ended.notify_all();
    }
}

fn usual_key(view: &MessageView) -> Option<String> {
    let record = view.record();
    let key = record.unique_key().or(record.properties().get(names::ORIGIN_MESSAGE_ID));
    Some(key.map_or_else(|| record.message_id().to_string(), str::to_owned))
}

/// Whether a message takes the place of one that the group was done with without having handled it: a retry,
/// or a dead letter that was sent back.
fn is_second(view: &MessageView) -> bool {
    let record = view.record();
    record.topic().starts_with(RETRY_TOPIC_PREFIX)
        || record.properties().get(names::ORIGIN_MESSAGE_ID).is_some()
}

/// The messages that a group is done with, the newest first: when each was stored, and its key. No key twice;
/// `max` of them, stored at `since` or later.
fn settled(
    store: &Store,
    offsets_name: &str,
    topics: &[(String, Filter)],
    (max, since): (usize, i64),
    key: &Arc<KeyOf>,
) -> Result<Vec<(i64, Arc<str>)>> {
    let mut queues = Vec::new();
    for (topic, filter) in topics {
        for id in store.queue_ids(topic) {
            let Some(end) = store.committed_offset(offsets_name, topic, id) else { continue };
            let first = store.min_offset(topic, id).unwrap_or(0);
            // It only saves time.
            let since = store.offset_by_time(topic, id, since, TimeBound::Lower);
            let low = since.ok().flatten().unwrap_or(first).max(first);
            let (found, newest_left, chunk) = (Vec::new(), i64::MAX, *CHUNKS.start());
            queues.push(Backwards { topic, filter, id, low, end, found, newest_left, chunk });
        }
    }
    let mut looks = (max as u64).saturating_mul(LOOKS).max(LOOKS_MIN);
    let mut takes = (max as u64).saturating_mul(COPIES).max(COPIES_MIN);
    let (mut newest, mut known) = (Vec::new(), HashSet::new());
    while newest.len() < max && takes > 0 {
        let next = queues.iter_mut().filter_map(|queue| Some((queue.next()?, queue)));
        let Some((at, queue)) = next.max_by_key(|(at, _)| *at) else { break };
        if at < since {
            break;
        }
        let Some(view) = queue.found.pop() else {
            if looks == 0 {
                break;
            }
            looks = looks.saturating_sub(queue.refill(store)?);
            continue;
        };
        takes -= 1;
        if let Some(key) = key(&view) {
            let key: Arc<str> = key.into();
            if known.insert(key.clone()) {
                newest.push((at, key));
            }
        }
    }
    Ok(newest)
}

/// A queue, read from a group's offset back.
struct Backwards<'a> {
    topic: &'a str,
    filter: &'a Filter,
    id: i32,
    low: u64,
    end: u64,
    /// In their order.
    found: Vec<MessageView>,
    /// None that is left is newer.
    newest_left: i64,
    chunk: u64,
}

impl Backwards<'_> {
    /// When its next message was stored, or at the latest if that is not known yet.
    fn next(&self) -> Option<i64> {
        let left = || (self.end > self.low).then_some(self.newest_left);
        self.found.last().map(stored_at).or_else(left)
    }

    /// Looks at some more messages; at how many.
    fn refill(&mut self, store: &Store) -> Result<u64> {
        let start = self.low.max(self.end.saturating_sub(self.chunk));
        let looked_at = self.end - start;
        let mut at = start;
        while at < self.end {
            let (offsets, max) = (at..self.end, looked_at as usize);
            match store.get_before(self.topic, self.id, offsets, max, self.filter) {
                Ok(found) => {
                    self.found.extend(found.messages);
                    if found.next_offset <= at {
                        break;
                    }
                    at = found.next_offset;
                }
                Err(Error::Corrupt { .. }) => at += 1,
                Err(error) => return Err(error),
            }
        }
        let first = match self.found.first() {
            Some(view) => Some(stored_at(view)),
            // Those of other queues come before what is older than this.
            None => {
                let any = Filter::any();
                let first = store.get_before(self.topic, self.id, start..start + 1, 1, &any);
                first.ok().and_then(|it| it.messages.first().map(stored_at))
            }
        };
        self.newest_left = self.newest_left.min(first.unwrap_or(i64::MAX));
        self.end = start;
        self.chunk = (self.chunk * 2).min(*CHUNKS.end());
        Ok(looked_at)
    }
}

fn stored_at(view: &MessageView) -> i64 {
    view.record().store_timestamp()
}
