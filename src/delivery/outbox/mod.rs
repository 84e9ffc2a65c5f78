//! The outbox: a message that is sent if, and only if, a change in the application's database commits.
//!
//! RocketMQ's transactions ask the application afterwards whether its change happened. An outbox, also called
//! a local message table, needs no asking: the application records the message in a table of its own database,
//! in the same transaction as its change. An [`Outbox`] sends what the table holds, and marks it.
//!
//! # What is promised
//! * A message whose recording was rolled back is never sent.
//! * One whose recording was committed is sent at least once, or is [dead](Outbox::dead) and can be seen to be.
//!   It is marked only after the store has said [`PutOk`](crate::PutStatus::PutOk), so that a crash in between
//!   sends it again, with the same [id](SealedMessage::unique_key): up to 64 messages, as no more than that are
//!   stored and not marked at a time. A producer with a second store sends a message again, without any crash,
//!   after each attempt that is not `PutOk`. Who must not handle such a copy twice finds the means in
//!   [`dedup`](super::dedup).
//! * Messages with the same [sharding key](crate::Message::sharding_key) are first stored in the order of their
//!   ids, each when the one before it is safe, or is dead. Copies that a crash makes come in that order once
//!   more, beginning with any of them. One that dies lets the later ones pass, and is sent behind them if it
//!   is re-armed; with `max_attempts(u32::MAX)` only what no store would ever take dies. Those without a
//!   sharding key have no order.
//!
//! # What fails
//! * *A store that is full or slow, a disk without room*: the message is tried again after a pause that doubles,
//!   [`retry_pause`](OutboxBuilder::retry_pause) up to [`retry_pause_max`](OutboxBuilder::retry_pause_max), and
//!   is dead after [`max_attempts`](OutboxBuilder::max_attempts). Until something is sent again, one message
//!   per `retry_pause` is tried, so that a long outage does not kill all of them.
//! * *A message that the store will not take* (too large, an unknown topic, a damaged row), nor the second one
//!   where the producer has two: it is dead at once. To ask the second one is a
//!   [retry](super::ProducerBuilder::retry_times_when_send_async_failed): a producer without any asks the first alone.
//! * *Stored, but not as safe as asked* (slow disk, replicas that are away): it is marked when it has become so,
//!   and not sent again meanwhile. It does not die. While 64 messages wait for that, no others are sent. Where the
//!   producer has a second store, it is not known which of them has it: it is tried again, as if there was no room.
//! * *A store that is closed or latched*: nothing is held against the messages. [`Outbox::trouble`] tells; they
//!   go on with an outbox on the store that is opened next, or with the producer's second store. One that the
//!   other store, which is open, will not take is tried again after a pause that doubles, does not die of it, and
//!   holds up those of its sharding key alone.
//! * *The database*: tried again after `retry_pause`, and nothing is sent before what was sent is marked.
//!
//! # Delays
//! A message with a [delay](crate::Message::delay) or a [level](crate::Message::delay_level) is delayed from when
//! it is sent; [`deliver_at`](crate::Message::deliver_at) is a time, whenever that is.

#[cfg(feature = "sim")]
mod memory;
mod relay;
mod sealed;
#[cfg(feature = "rusqlite")]
mod sqlite;
mod table;
#[cfg(all(test, feature = "sim", feature = "rusqlite"))]
mod tests;

#[cfg(feature = "sim")]
pub use memory::MemoryOutbox;
#[cfg(feature = "rusqlite")]
pub use rusqlite;
pub use sealed::SealedMessage;
#[cfg(feature = "rusqlite")]
pub use sqlite::SqliteOutbox;
pub use table::{DeadMessage, DueMessages, OutboxCounts, OutboxTable, PendingMessage, SendFailure};

use super::Producer;
use super::producer::select::Routes;
use crate::error::{Error, IoContext, IoOp, Result};
use crate::message::Message;
use crate::worker::{Doorbell, Next, Worker, is_worker};
use parking_lot::Mutex;
use relay::Relay;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

const OUTBOX_THREAD: &str = "duralog-outbox";
/// Dead messages looked at in one go.
const DEAD: usize = 256;

#[derive(Debug, Clone)]
struct Options {
    max_attempts: u32,
    pause: Duration,
    pause_max: Duration,
    keep_sent: Duration,
    poll_interval: Duration,
}

impl Options {
    /// How long to wait after so many attempts.
    fn pause_after(&self, attempts: u32) -> Duration {
        let factor = 1u32.checked_shl(attempts.saturating_sub(1)).unwrap_or(u32::MAX);
        self.pause.saturating_mul(factor).min(self.pause_max)
    }
}

/// Sets up an [`Outbox`], see [`Outbox::builder`].
#[must_use = "nothing is sent before `start`"]
pub struct OutboxBuilder {
    producer: Producer,
    table: Box<dyn OutboxTable>,
    options: Options,
}

impl OutboxBuilder {
    /// How often a message is tried before it is dead, at least 1. Default 16: with the other defaults, more
    /// than an hour.
    pub fn max_attempts(mut self, attempts: u32) -> Self {
        self.options.max_attempts = attempts;
        self
    }

    /// How long to wait after a failure, twice as long after the next one, and so on. Default 1 s; 1 ms to
    /// 1 h.
    pub fn retry_pause(mut self, pause: Duration) -> Self {
        self.options.pause = pause;
        self
    }

    /// How long to wait at most. Default 10 min; `retry_pause` to 24 h.
    pub fn retry_pause_max(mut self, pause: Duration) -> Self {
        self.options.pause_max = pause;
        self
    }

    /// How long the table keeps what was sent. Default 24 h.
    pub fn keep_sent(mut self, time: Duration) -> Self {
        self.options.keep_sent = time;
        self
    }

    /// How long the outbox sleeps, unless it is [told](Outbox::notify) that there is something to send: as
    /// late as that it finds what it was not told of. Default 10 s; 1 ms to 1 h.
    pub fn poll_interval(mut self, interval: Duration) -> Self {
        self.options.poll_interval = interval;
        self
    }

    /// Starts the outbox: all that is pending is due. Its thread is called `duralog-outbox`; on a store
    /// without threads, call [`step`](Outbox::step).
    ///
    /// # Errors
    /// [`Error::Config`] for a value out of range; [`Error::Database`]; [`Error::Io`] if the thread cannot be
    /// started.
    pub fn start(self) -> Result<Outbox> {
        let Self { producer, mut table, options } = self;
        let (hour, day) = (Duration::from_secs(3600), Duration::from_secs(24 * 3600));
        check("retry_pause", options.pause, Duration::from_millis(1)..=hour, "1 ms to 1 h")?;
        let (range, allowed) = (options.pause..=day, "`retry_pause` to 24 h");
        check("retry_pause_max", options.pause_max, range, allowed)?;
        let range = Duration::from_millis(1)..=hour;
        check("poll_interval", options.poll_interval, range, "1 ms to 1 h")?;
        if options.max_attempts == 0 {
            let (field, value) = ("max_attempts", "0".to_owned());
            return Err(Error::Config { field, value, allowed: "at least 1" });
        }
        table.make_due()?;
        let is_threaded = producer.store().is_threaded();
        let relay = Arc::new(Relay::new(producer, options, table));
        let (bell, heard) = Doorbell::new();
        let outbox = Outbox { relay: relay.clone(), bell: bell.clone(), worker: Mutex::default() };
        if is_threaded {
            let failed = relay.clone();
            let panicked = move |error| *failed.trouble.lock() = Some(error);
            let step = move || relay.step();
            let worker = Worker::spawn(OUTBOX_THREAD, (bell, heard), step, panicked);
            *outbox.worker.lock() = Some(worker.at(IoOp::Create, Path::new(OUTBOX_THREAD))?);
        }
        Ok(outbox)
    }
}

fn check(
    field: &'static str,
    value: Duration,
    range: std::ops::RangeInclusive<Duration>,
    allowed: &'static str,
) -> Result<()> {
    if range.contains(&value) {
        return Ok(());
    }
    Err(Error::Config { field, value: format!("{value:?}"), allowed })
}

impl fmt::Debug for OutboxBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OutboxBuilder").field("options", &self.options).finish_non_exhaustive()
    }
}

/// Sends what an application records in a table of its own database, see the [module](self).
///
/// One at a time for a table: two would send everything twice. It is a handle of its producer's store, which
/// stays open with it. Dropping it ends its thread, as [`close`](Self::close) does.
pub struct Outbox {
    relay: Arc<Relay>,
    bell: Doorbell,
    worker: Mutex<Option<Worker>>,
}

impl Outbox {
    /// An outbox to be, which sends through `producer` what `table` holds.
    ///
    /// What the producer [accepts](super::ProducerBuilder::accept) beside `PutOk` does not count as sent.
    pub fn builder(producer: Producer, table: impl OutboxTable + 'static) -> OutboxBuilder {
        let options = Options {
            max_attempts: 16,
            pause: Duration::from_secs(1),
            pause_max: Duration::from_secs(600),
            keep_sent: Duration::from_secs(24 * 3600),
            poll_interval: Duration::from_secs(10),
        };
        OutboxBuilder { producer, table: Box::new(table), options }
    }

    /// Tells the outbox that a transaction was committed. Costs next to nothing, and waits for nothing. What
    /// it is not told of, it finds by itself after
    /// [`poll_interval`](OutboxBuilder::poll_interval).
    pub fn notify(&self) {
        self.bell.ring();
    }

    /// Sends up to 64 messages that are due, and says when it is to be called again: for a store without
    /// threads. Blocks as long as they take.
    pub fn step(&self) -> Next {
        self.relay.step()
    }

    /// Whether `message` could be sent to the producer's own store as things stand, for an application that
    /// wants to know before it commits: otherwise what cannot be sent is dead.
    ///
    /// # Errors
    /// As [`SealedMessage::seal`], and for a message that is too large, a topic that does not exist or takes
    /// nothing, a queue that it does not have, or a body compressed by what the store does not take, those of
    /// [`Producer::send`].
    pub fn check(&self, message: &Message) -> Result<()> {
        let message = SealedMessage::open(SealedMessage::seal(message)?.bytes())?;
        let store = self.relay.producer.store();
        Routes::check(store, &message)?;
        store.check_compression(message.sys_flag.compression())?;
        store.check_message(&store.routed(message)?, 0)
    }

    /// How many messages are pending, sent or dead.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn counts(&self) -> Result<OutboxCounts> {
        self.relay.table.lock().counts()
    }

    /// The first `max` messages that are not tried any more, and why.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn dead(&self, max: usize) -> Result<Vec<DeadMessage>> {
        self.relay.table.lock().dead(max)
    }

    /// Tries a dead message again, with all its attempts; whether it was dead.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn rearm(&self, id: i64) -> Result<bool> {
        let armed = self.relay.table.lock().rearm(id)?;
        self.notify();
        Ok(armed)
    }

    /// Tries all messages again that are dead now; how many there were.
    ///
    /// # Errors
    /// [`Error::Database`]. Some may be armed again.
    pub fn rearm_all(&self) -> Result<usize> {
        let mut armed = 0;
        {
            // Not between two rounds: what dies again would be armed again.
            let mut table = self.relay.table.lock();
            loop {
                let dead = table.dead(DEAD)?;
                if dead.is_empty() {
                    break;
                }
                for message in dead {
                    armed += usize::from(table.rearm(message.id)?);
                }
            }
        }
        self.notify();
        Ok(armed)
    }

    /// Gives up a dead message for good; whether it was dead.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn discard(&self, id: i64) -> Result<bool> {
        self.relay.table.lock().discard(id)
    }

    /// Makes all that is pending due at once, whatever it waits for: whatever was wrong is mended.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn retry_now(&self) -> Result<()> {
        self.relay.table.lock().make_due()?;
        self.notify();
        Ok(())
    }

    /// Why nothing is sent: the database fails, or the store takes nothing more. `None` while all is well;
    /// why a single message was not sent is told by its row.
    pub fn trouble(&self) -> Option<Error> {
        self.relay.trouble.lock().clone()
    }

    /// Ends the thread once it is done with the messages that it is at. Blocks up to the store's
    /// `close_timeout`. What is pending is sent when an outbox starts again.
    ///
    /// # Errors
    /// [`Error::CloseTimeout`] if it takes longer.
    pub fn close(self) -> Result<()> {
        self.stop()
    }

    fn stop(&self) -> Result<()> {
        self.relay.stopping.store(true, Ordering::SeqCst);
        let Some(mut worker) = self.worker.lock().take() else { return Ok(()) };
        let timeout = self.relay.producer.store().config().log.close_timeout;
        worker.stop(if is_worker() { Duration::ZERO } else { timeout })
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        // `close` is how a caller hears of it.
        let _ = self.stop();
    }
}

impl fmt::Debug for Outbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outbox")
            .field("producer", &self.relay.producer)
            .field("options", &self.relay.options)
            .finish_non_exhaustive()
    }
}
