//! What happens to messages, and what needs somebody's attention, told to whoever asked to hear of it.

use super::{QueueLag, Received, Sent, Settled};
use crate::config::Threshold;
use crate::error::{Error, Result};
use crate::log::MessageView;
use crate::message::format::is_system_topic;
use crate::store::{PutStatus, Store};
use crate::worker::Next;
use parking_lot::{Mutex, RwLock};
use std::collections::HashSet;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How a consumer settled a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Verdict {
    /// It was handled.
    Acked,
    /// It is to come again later.
    RetriedLater,
    /// It went to the dead letters: the consumer said so, or was to have it later once too often.
    Rejected,
}

/// Something that happened.
///
/// A message's way can be followed by its [`unique_key`](Received::unique_key). When it was made and stored
/// stands in its record, see [`Received::view`]; when the other things happened is when they are told.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A producer sent a message, or a batch: it is told where the first one lies. That of a transaction is
    /// sent when it is committed, by the application or by an answer of the checker.
    Sent {
        /// What the producer answered.
        sent: &'a Sent,
    },
    /// A producer gave up a message, a half message included; or it lies there, but not as safely as asked.
    /// One whose ticket nobody waits for is not told of.
    NotSent {
        /// What the producer answered, the message's id included.
        error: &'a Error,
    },
    /// A consumer was given a message.
    Delivered {
        /// The group.
        group: &'a str,
        /// The message.
        message: &'a Received,
    },
    /// A consumer settled a message.
    Settled {
        /// The group.
        group: &'a str,
        /// The message.
        message: &'a Received,
        /// How.
        verdict: Verdict,
        /// Whether that counted.
        settled: Settled,
        /// How long the consumer had it.
        held: Duration,
    },
    /// The handler of a listener returned an error for a message, or panicked: it comes again later.
    HandlerFailed {
        /// The group.
        group: &'a str,
        /// The message.
        message: &'a Received,
        /// What the error, or the panic, says.
        reason: &'a str,
    },
    /// A consumer could not be given a message, because its body cannot be decompressed: it counts as one
    /// that could not be handled.
    Undecodable {
        /// The group.
        group: &'a str,
        /// The message, as it lies in its queue.
        message: &'a MessageView,
        /// Why, [`Error::Codec`].
        error: &'a Error,
    },
    /// A message of a group became a dead letter.
    DeadLetter {
        /// The group.
        group: &'a str,
        /// The message, as it lay in its queue: see [`MessageView::decoded_body`] for its body.
        message: &'a MessageView,
    },
    /// A group is behind by more than [`Watch::lag_over`] in a queue. Told again once it was not.
    Lag {
        /// The group.
        group: &'a str,
        /// How far.
        queue: &'a QueueLag,
    },
    /// The disk is beyond [`Watch::disk_over`]. Told again once it was not.
    DiskOver {
        /// Bytes that are left.
        available: u64,
    },
    /// The store is latched: a write or sync failed, and no further put is accepted, or no offset of a group.
    /// Told once of each.
    Failed {
        /// The first failure.
        error: &'a Error,
    },
    /// Puts were answered with another status than `PutOk` since this was looked at last.
    NotOk {
        /// The status.
        status: PutStatus,
        /// How many.
        puts: u64,
    },
}

/// Whom to tell, and of what, see [`Store::observe`].
///
/// What needs attention is looked for every [`interval`](Self::interval).
#[must_use = "nothing is told before it is given to `Store::observe`"]
pub struct Watch {
    tell: Box<dyn Fn(&Event<'_>) + Send + Sync>,
    lag_over: Option<u64>,
    disk_over: Option<Threshold>,
    interval: Duration,
    seen: Mutex<Seen>,
}

/// What was told, and is not to be told again.
#[derive(Default)]
struct Seen {
    due: Option<Instant>,
    lags: HashSet<(String, String, i32)>,
    disk: bool,
    failed: [bool; 2],
    statuses: Option<[u64; 3]>,
}

impl Watch {
    /// Calls `tell` with each event, on the thread on which it happened: it must not block. If it panics,
    /// that is ignored.
    pub fn new(tell: impl Fn(&Event<'_>) + Send + Sync + 'static) -> Self {
        Self {
            tell: Box::new(tell),
            lag_over: None,
            disk_over: None,
            interval: Duration::from_secs(1),
            seen: Mutex::default(),
        }
    }

    /// Tells of groups that are behind by more messages than that in a queue. Off by default.
    pub fn lag_over(mut self, messages: u64) -> Self {
        self.lag_over = Some(messages);
        self
    }

    /// Tells when the disk is beyond a threshold. Off by default.
    pub fn disk_over(mut self, threshold: Threshold) -> Self {
        self.disk_over = Some(threshold);
        self
    }

    /// How often to look for what needs attention. Default 1 s; 10 ms to 1 h.
    pub fn interval(mut self, interval: Duration) -> Self {
        self.interval = interval;
        self
    }

    fn tell(&self, event: &Event<'_>) {
        // A stranger's code: whatever it does, messages go on.
        let _ = catch_unwind(AssertUnwindSafe(|| (self.tell)(event)));
    }

    /// Looks for what needs attention, if it is time; when to look again.
    fn look(&self, store: &Store) -> Instant {
        let now = store.now();
        // Whoever is told may step the store.
        let Some(mut seen) = self.seen.try_lock() else { return now + self.interval };
        if let Some(due) = seen.due.filter(|due| *due > now) {
            return due;
        }
        let due = now + self.interval;
        seen.due = Some(due);
        self.look_at_puts(store, &mut seen);
        self.look_at_groups(store, &mut seen);
        let space = store.disk_space();
        let over = self.disk_over.zip(space).filter(|(level, space)| level.is_exceeded(*space));
        if let Some((_, space)) = over.filter(|_| !seen.disk) {
            self.tell(&Event::DiskOver { available: space.available });
        }
        seen.disk = over.is_some();
        due
    }

    fn look_at_puts(&self, store: &Store, seen: &mut Seen) {
        let failures = [store.latched(), store.offsets_latched()];
        for (latched, told) in failures.iter().zip(&mut seen.failed) {
            if let Some(error) = latched.as_ref().filter(|_| !*told) {
                self.tell(&Event::Failed { error });
            }
            *told = latched.is_some();
        }
        let kinds = [
            PutStatus::FlushDiskTimeout,
            PutStatus::FlushReplicaTimeout,
            PutStatus::ReplicaNotAvailable,
        ];
        let [_, counts @ ..] = store.put_statuses();
        let before = seen.statuses.replace(counts).unwrap_or(counts);
        for ((status, count), before) in kinds.into_iter().zip(counts).zip(before) {
            if count > before {
                self.tell(&Event::NotOk { status, puts: count - before });
            }
        }
    }

    fn look_at_groups(&self, store: &Store, seen: &mut Seen) {
        let Some(limit) = self.lag_over else { return };
        for (group, queue) in super::consumer::lags(store, store.committed_offsets()) {
            // Of each dead letter is told when it becomes one.
            if is_system_topic(&queue.topic) || super::consumer::is_dead_letter(&queue.topic) {
                continue;
            }
            let key = (group, queue.topic.clone(), queue.queue_id);
            if queue.messages() <= limit {
                seen.lags.remove(&key);
            } else if !seen.lags.contains(&key) {
                self.tell(&Event::Lag { group: &key.0, queue: &queue });
                seen.lags.insert(key);
            }
        }
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch")
            .field("lag_over", &self.lag_over)
            .field("disk_over", &self.disk_over)
            .field("interval", &self.interval)
            .finish_non_exhaustive()
    }
}

/// All who asked to hear of what happens in a store.
#[derive(Default)]
pub(crate) struct Observers {
    watches: RwLock<Vec<Arc<Watch>>>,
    some: AtomicBool,
}

impl Observers {
    pub(super) fn add(&self, watch: Watch, store: &Store) -> Result<()> {
        let allowed = "10 ms to 1 h";
        if !(Duration::from_millis(10)..=Duration::from_secs(3600)).contains(&watch.interval) {
            let value = format!("{:?}", watch.interval);
            return Err(Error::Config { field: "interval", value, allowed });
        }
        // What was so before is not news.
        let [_, counts @ ..] = store.put_statuses();
        watch.seen.lock().statuses = Some(counts);
        self.watches.write().push(Arc::new(watch));
        self.some.store(true, Ordering::Release);
        Ok(())
    }

    /// Whether anybody listens.
    pub(super) fn some(&self) -> bool {
        self.some.load(Ordering::Acquire)
    }

    pub(super) fn tell(&self, event: &Event<'_>) {
        // Not under the lock: whoever is told may ask to be told more.
        let watches = self.watches.read().clone();
        watches.iter().for_each(|watch| watch.tell(event));
    }

    /// Tells how a message was sent.
    pub(super) fn tell_sent(&self, answer: &Result<Sent>) {
        match answer {
            Ok(sent) if self.some() => self.tell(&Event::Sent { sent }),
            Ok(_) => {}
            Err(error) => self.tell_not_sent(error),
        }
    }

    /// Tells that a message was given up.
    pub(super) fn tell_not_sent(&self, error: &Error) {
        if self.some() {
            self.tell(&Event::NotSent { error });
        }
    }

    pub(super) fn step(&self, store: &Store) -> Next {
        if !self.some() {
            return Next::Idle;
        }
        let watches = self.watches.read().clone();
        let looks = watches.iter().map(|watch| watch.look(store));
        looks.min().map_or(Next::Idle, Next::At)
    }
}

impl Store {
    /// Tells `watch` from now on what happens to messages, and what needs attention. It cannot be taken
    /// back, and ends with the store.
    ///
    /// # Examples
    /// ```
    /// # use duralog::{Message, Store, StoreConfig, TagFilter};
    /// use duralog::delivery::{Event, Watch};
    /// use std::sync::mpsc;
    /// # use std::time::Duration;
    ///
    /// # let dir = std::env::temp_dir().join(format!("duralog-doc-observe-{}", std::process::id()));
    /// # let store = Store::open(StoreConfig::new(&dir).segment_size(1 << 20))?;
    /// let (told, heard) = mpsc::channel();
    /// store.observe(Watch::new(move |event| {
    ///     if let Event::DeadLetter { group, message } = event {
    ///         let _ = told.send(format!("{group}: {}", String::from_utf8_lossy(message.body())));
    ///     }
    /// }))?;
    ///
    /// store.put(Message::new("orders", "paid twice"))?.ok()?;
    /// let consumer = store.consumer("billing").subscribe("orders", TagFilter::any()).open()?;
    /// for message in consumer.poll(Duration::from_secs(1))? {
    ///     message.reject()?;
    /// }
    /// assert_eq!(heard.recv().unwrap(), "billing: paid twice");
    /// # drop(consumer);
    /// # store.close()?;
    /// # std::fs::remove_dir_all(&dir).unwrap();
    /// # Ok::<(), duralog::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Config`] for an interval out of range; [`Error::Io`] if the thread that looks for what needs
    /// attention cannot be started; [`Error::ReadOnly`]; [`Error::Closed`].
    pub fn observe(&self, watch: Watch) -> Result<()> {
        if self.config().log.read_only {
            return Err(Error::ReadOnly);
        }
        let delivery = super::Delivery::of(self)?;
        delivery.observers.add(watch, self)?;
        delivery.alarm.ring();
        Ok(())
    }
}
