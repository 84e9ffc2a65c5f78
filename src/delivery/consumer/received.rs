//! A message in the hands of a consumer.

use super::group::Lent;
use super::retry;
use crate::delivery::{Event, Verdict};
use crate::error::{Error, Result};
use crate::log::MessageView;
use crate::message::names;
use std::borrow::Cow;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Bytes of decompressed bodies with which a batch ends, if one may be no longer than that.
const PLAIN_MAX: usize = 32 << 20;

/// What became of a message that was settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Settled {
    /// It counts: the group is done with the message.
    Done,
    /// It does not: the lease had run out and the message was given out again, or it was settled before.
    /// Whoever has it now says what becomes of it. If it ran out while a copy was being stored that takes its
    /// place, that is there nonetheless: the message comes once more, or lies among the dead letters, too.
    LeaseLost,
}

/// A message that a consumer has on lease.
///
/// It is to be settled: by [`ack`](Self::ack), [`retry_later`](Self::retry_later) or
/// [`reject`](Self::reject). One that is dropped unsettled comes again at once; one that is held, when
/// `consume_timeout` has passed. The message itself is read in place, and keeps its segment in memory.
pub struct Received {
    lent: Arc<Lent>,
    view: MessageView,
    /// The body, where what is stored is a compressed one.
    plain: Option<Box<[u8]>>,
    failures: u32,
    settled: AtomicBool,
}

impl Received {
    /// The topic it was put to. For one that comes again that is the topic it had at first, not that of
    /// the group's retries.
    pub fn topic(&self) -> &str {
        let record = self.view.record();
        let first = record.properties().get(names::RETRY_TOPIC);
        first.filter(|_| self.lent.group.is_own_retry(record.topic())).unwrap_or(record.topic())
    }

    /// The queue it lies in, of the topic that it lies in: see [`view`](Self::view).
    pub fn queue_id(&self) -> i32 {
        self.view.record().queue_id()
    }

    /// Its position in that queue, counted from 0.
    pub fn queue_offset(&self) -> u64 {
        self.view.queue_offset()
    }

    /// The body as its producer gave it: decompressed, if it is stored compressed.
    ///
    /// A body that cannot be decompressed is nobody's to handle: see
    /// [`Consumer::poll`](super::Consumer::poll) for what becomes of its message. Only observers see that
    /// one, and it is empty there.
    pub fn body(&self) -> &[u8] {
        self.plain.as_deref().unwrap_or_else(|| self.view.body())
    }

    /// The body as it is stored, which differs from [`body`](Self::body) where
    /// [`SysFlag::compression`](crate::message::SysFlag::compression) says how it was compressed.
    pub fn raw_body(&self) -> &[u8] {
        self.view.body()
    }

    /// The tag.
    pub fn tags(&self) -> Option<&str> {
        self.view.record().tags()
    }

    /// The keys, separated by spaces.
    pub fn keys(&self) -> Option<&str> {
        self.view.record().keys()
    }

    /// The producer's own id of the message: the same, however often it comes. `None` if it was put without one:
    /// a [`Producer`](crate::delivery::Producer), an outbox and
    /// [`Store::submit_delayed`](crate::Store::submit_delayed) give one, [`Store::put`](crate::Store::put) does not.
    pub fn unique_key(&self) -> Option<&str> {
        self.view.record().unique_key()
    }

    /// The value of a property.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.view.record().properties().get(name)
    }

    /// How often the group has failed to handle it, as far as is known: retries survive a crash, but not those
    /// in order or where every consumer gets everything, nor do leases that ran out.
    pub fn reconsume_times(&self) -> u32 {
        self.lent.group.retried(&self.view.record()).saturating_add(self.failures)
    }

    /// Whether it has not been given to somebody else and was not settled. In order, one that failed takes
    /// those with it that came behind it: they are not to be handled before it.
    pub fn is_on_lease(&self) -> bool {
        !self.is_settled() && self.lent.holds(self.queue_offset())
    }

    /// The record, as it lies in the store: with its body compressed, if it was put so.
    pub fn view(&self) -> &MessageView {
        &self.view
    }

    /// Says that the message is handled. The group's offset moves over it once everything before it in
    /// its queue is handled, too; that survives a kill when this returns, and a power cut as
    /// [`Store::commit_offset`](crate::Store::commit_offset) says.
    ///
    /// # Errors
    /// As [`Store::commit_offset`](crate::Store::commit_offset). The message counts as handled for as
    /// long as the group has consumers, and comes again after that. [`Error::Closed`](crate::Error::Closed)
    /// once the store is closed: nothing that is still held counts then.
    pub fn ack(&self) -> Result<Settled> {
        if self.is_settled() {
            return Ok(Settled::LeaseLost);
        }
        let counted = self.lent.settle_one(self.queue_offset())?;
        Ok(self.settled_as(Verdict::Acked, counted))
    }

    fn settled_as(&self, verdict: Verdict, counted: bool) -> Settled {
        self.settled.store(true, Ordering::Relaxed);
        let settled = if counted { Settled::Done } else { Settled::LeaseLost };
        let group = &self.lent.group;
        if group.delivery.observers.some() {
            let held = group.now().saturating_duration_since(self.lent.since);
            let (group_name, message) = (&*group.name, self);
            group.tell(&Event::Settled { group: group_name, message, verdict, settled, held });
        }
        settled
    }

    /// Says that the message could not be handled, and is to come again later: 10 s, 30 s, 1 min and so
    /// on, longer each time, up to 2 h. After `max_reconsume_times` it goes to the dead letters of the
    /// group.
    ///
    /// Where the properties of a message leave no room for what RocketMQ adds to them, the copy lacks some: first
    /// what it has only to show where a dead letter comes from, then the longest; tags, keys and sharding key last.
    /// The unique key is kept, and so is what the copy takes to come again and to be told from what was handled.
    ///
    /// The message goes to the group's retry topic, as by RocketMQ, and is done with here once the copy
    /// is as safe as the store's settings ask. A group that consumes in order, or each consumer for
    /// itself, makes no copy: the message stays, and in order it holds up its queue, for 1 s each time.
    ///
    /// # Errors
    /// Those of [`Store::put`](crate::Store::put); [`Error::NotOk`](crate::Error::NotOk) if the copy is not known to
    /// be as safe as asked, and [`Error::FlushTimeout`](crate::Error::FlushTimeout) if it is not durable in time,
    /// which it has to be under async flush, too. The message stays on lease then, and the call may be made again:
    /// it waits once more for the copy that is there. Only a crash in between, the end of the group's last consumer,
    /// or another wish, such as [`reject`](Self::reject) after this, makes another one, and the message may come
    /// twice then.
    ///
    /// [`Error::TooLarge`](crate::Error::TooLarge) for a message that leaves no room for what its copy says of it,
    /// in a segment or in its properties, as with a unique key of nearly 32 KiB, or another property as long that
    /// is not UTF-8: that one can only be acknowledged, and holds up the group's offset until then.
    ///
    /// [`Error::Refused`](crate::Error::Refused) on a replica, see [`Consumer`](super::Consumer).
    pub fn retry_later(&self) -> Result<Settled> {
        self.set_aside(retry::Fate::Later)
    }

    /// The same with a delay of the caller's choice, at least 1 ms; by one of RocketMQ's levels where one
    /// fits.
    ///
    /// # Errors
    /// As [`retry_later`](Self::retry_later), and
    /// [`InvalidMessage::DelayTooLong`](crate::InvalidMessage::DelayTooLong) beyond three days.
    pub fn retry_after(&self, delay: Duration) -> Result<Settled> {
        self.set_aside(retry::Fate::After(delay))
    }

    /// Says that the message will never be handled: it goes to the dead letters of the group, see
    /// [`Store::dead_letters`](crate::Store::dead_letters).
    ///
    /// # Errors
    /// As [`retry_later`](Self::retry_later).
    pub fn reject(&self) -> Result<Settled> {
        self.set_aside(retry::Fate::Dead)
    }

    fn set_aside(&self, fate: retry::Fate) -> Result<Settled> {
        let group = &self.lent.group;
        group.check_open()?;
        if !self.is_on_lease() {
            return Ok(Settled::LeaseLost);
        }
        let fate = match fate {
            retry::Fate::After(delay) => retry::Fate::After(retry::checked(delay)?),
            other => other,
        };
        let max = self.lent.terms.max_reconsume_times;
        let mut verdict = Verdict::RetriedLater;
        let counted = match group.plan(&self.view, self.reconsume_times(), max, fate) {
            retry::Plan::InPlace(delay) => {
                let when = group.now() + delay;
                self.lent.give_back(self.queue_offset(), when, true)
            }
            retry::Plan::Copy(copy) => {
                let is_dead = retry::is_dead_letter(copy.topic());
                let fate = if is_dead { retry::Fate::Dead } else { fate };
                self.lent.put_copy(self.queue_offset(), fate, copy)?;
                if is_dead {
                    verdict = Verdict::Rejected;
                    let (group_name, message) = (&*group.name, &self.view);
                    group.tell(&Event::DeadLetter { group: group_name, message });
                }
                self.lent.settle_one(self.queue_offset())?
            }
        };
        Ok(self.settled_as(verdict, counted))
    }

    /// Sets it aside, because its body cannot be told.
    fn refuse(&self, error: &Error) -> Result<Settled> {
        let group = &self.lent.group;
        group.tell(&Event::Undecodable { group: &group.name, message: &self.view, error });
        // Otherwise it comes again when its lease has run out: what went wrong may last.
        self.retry_later().inspect_err(|_| self.keep())
    }

    /// Finds out what the body is.
    fn decompress(&mut self, max: usize) -> Result<()> {
        let decoded = self.view.decoded_body(max).map(|body| match body {
            Cow::Owned(plain) => Some(plain.into_boxed_slice()),
            Cow::Borrowed(_) => None,
        });
        self.plain = decoded.inspect_err(|_| self.plain = Some(Box::default()))?;
        Ok(())
    }

    /// Leaves it on lease until that runs out.
    pub(super) fn keep(&self) {
        self.settled.store(true, Ordering::Relaxed);
    }

    fn is_settled(&self) -> bool {
        self.settled.load(Ordering::Relaxed)
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        if !self.is_settled() {
            // Nobody can settle it any more.
            let now = self.lent.group.now();
            self.lent.give_back(self.queue_offset(), now, false);
        }
    }
}

impl fmt::Debug for Received {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Received")
            .field("topic", &self.topic())
            .field("queue_id", &self.queue_id())
            .field("queue_offset", &self.queue_offset())
            .field("reconsume_times", &self.reconsume_times())
            .field("body_len", &self.body().len())
            .finish_non_exhaustive()
    }
}

/// Messages of one queue, in their order; none if there was nothing in time.
#[derive(Debug, Default)]
pub struct Batch {
    messages: Vec<Received>,
}

impl Batch {
    pub(super) fn new(
        lent: Arc<Lent>,
        messages: impl IntoIterator<Item = (MessageView, u32)>,
    ) -> Self {
        let received = |(view, failures)| Received {
            lent: lent.clone(),
            view,
            plain: None,
            failures,
            settled: AtomicBool::new(false),
        };
        Self { messages: messages.into_iter().map(received).collect() }
    }

    /// The same with plain bodies. A message that has none counts as one that could not be handled, and
    /// those that it holds up go back, as do those that would take too much memory now; if then no message
    /// is left, what went wrong with one that could not be set aside.
    pub(super) fn decompressed(mut self) -> Result<Self> {
        let Some(Received { lent, .. }) = self.messages.first() else { return Ok(self) };
        let is_compressed =
            |message: &Received| message.view.record().sys_flag().compression().is_some();
        if !self.messages.iter().any(is_compressed) {
            return Ok(self);
        }
        let lent = lent.clone();
        let max = lent.group.body_max();
        let mut plain = Vec::with_capacity(self.messages.len());
        let (mut held, mut failed) = (0, None);
        for mut message in self.messages.drain(..) {
            if let Err(error) = message.decompress(max) {
                failed = message.refuse(&error).err().or(failed);
                if lent.group.is_ordered() {
                    break;
                }
                continue;
            }
            held += message.plain.as_ref().map_or(0, |body| body.len());
            plain.push(message);
            if held > max.max(PLAIN_MAX) {
                break;
            }
        }
        match failed {
            Some(error) if plain.is_empty() => Err(error),
            _ => Ok(Self { messages: plain }),
        }
    }

    /// Says that all messages are handled that are not settled yet, as [`Received::ack`] for each, but
    /// with one commit; how many counted.
    ///
    /// # Errors
    /// As [`Received::ack`].
    pub fn ack(&self) -> Result<usize> {
        let Some(Received { lent, .. }) = self.messages.first() else { return Ok(0) };
        let open: Vec<_> = self.messages.iter().filter(|message| !message.is_settled()).collect();
        let settled = lent.settle(open.iter().map(|message| message.queue_offset()))?;
        let mut acked = 0;
        for (message, counted) in open.into_iter().zip(settled) {
            acked += usize::from(message.settled_as(Verdict::Acked, counted) == Settled::Done);
        }
        Ok(acked)
    }
}

impl Deref for Batch {
    type Target = [Received];

    fn deref(&self) -> &[Received] {
        &self.messages
    }
}

impl IntoIterator for Batch {
    type Item = Received;
    type IntoIter = std::vec::IntoIter<Received>;

    fn into_iter(self) -> Self::IntoIter {
        self.messages.into_iter()
    }
}

impl<'a> IntoIterator for &'a Batch {
    type Item = &'a Received;
    type IntoIter = std::slice::Iter<'a, Received>;

    fn into_iter(self) -> Self::IntoIter {
        self.messages.iter()
    }
}
