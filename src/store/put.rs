//! Putting: from a message to a place in the log, and to an answer.

use super::{PutResult, PutStatus, Shared, Store, Ticket};
use crate::config::FlushMode;
use crate::error::{Error, InvalidMessage, Result};
use crate::log::progress::{Need, Waited};
use crate::log::{Appended, Patience};
use crate::message::format::is_delay_queue;
use crate::message::{Draft, Message, OffsetMessageId};
use crate::replication::{Confirmation, Refusal, Role};
use std::borrow::Borrow;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A message that has its place, and what its put waits for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pending {
    pub(crate) appended: Appended,
    queue_id: i32,
    message_id: OffsetMessageId,
    pub(crate) need: Need,
    replicas_available: bool,
    /// `None` where nothing is waited for.
    flush_deadline: Option<Instant>,
    replica_deadline: Option<Instant>,
}

impl Pending {
    /// What it waits for, one thing after the other, but each against a deadline that began with the
    /// put.
    fn parts(&self) -> [(Need, Option<Instant>); 2] {
        [
            (Need { confirmed: false, ..self.need }, self.flush_deadline),
            (Need { durable: false, ..self.need }, self.replica_deadline),
        ]
    }

    /// The instants at which an answer may be due though nothing happens.
    pub(crate) fn deadlines(&self) -> impl Iterator<Item = Instant> {
        self.flush_deadline.into_iter().chain(self.replica_deadline)
    }
}

/// How a put stands that is waited for step by step.
pub(crate) enum Outlook {
    Answer(PutResult),
    Open { need: Need, until: Instant },
}

/// How long a put may take.
#[derive(Debug, Clone, Copy)]
struct Pace {
    /// Whether it may wait for its place.
    may_wait: bool,
    /// How long for its place, and for the page cache.
    patience: Duration,
    /// When it is to be answered, should its own deadlines be later.
    until: Option<Instant>,
    /// Whether a thread waits for the answer from the start.
    blocking: bool,
}

impl Pace {
    /// The same, answered by `until`. It is `now`.
    fn by(self, now: Instant, until: Instant) -> Self {
        let left = until.saturating_duration_since(now);
        Self { patience: self.patience.min(left), until: Some(until), ..self }
    }
}

impl Store {
    /// Stores `message` and waits until it is as safe as the store's settings ask.
    ///
    /// Under sync flush, [`PutOk`](super::PutStatus::PutOk) means that the message survives a power
    /// cut; under async flush, that it survives the end of the process. Blocks up to
    /// `sync_flush_timeout` or, with a replicator, `sync_replica_timeout` if that is longer, counted from
    /// the call; the other statuses mean *stored, but not known to be as safe as asked*. Where it has to
    /// wait for its place, behind `max_in_flight_bytes` that the disk does not take or for the next
    /// segment, that ends with an error after `put_timeout`. A message with `wait(false)`, or under async
    /// flush without a replicator, is answered once it is in the page cache, with `FlushDiskTimeout` if
    /// that takes longer than `put_timeout`.
    ///
    /// A topic that is not known comes with the message, but is not noted in `topics.json`, where brokers look:
    /// what makes use of a queue as it is needs no more. [`Store::create_topic`],
    /// [producers](Store::producer) and [consumers](Store::consumer) note it.
    ///
    /// # Errors
    /// Nothing was stored: [`Error::InvalidMessage`], [`Error::TooLarge`], [`Error::DiskFull`],
    /// [`Error::Io`] if the next segment cannot be created or mapped, [`Error::SegmentNotReady`],
    /// [`Error::Full`], [`Error::Refused`], [`Error::Latched`], [`Error::ReadOnly`], [`Error::Closed`].
    /// It may be stored or not: [`Error::Unknown`].
    pub fn put(&self, message: impl Borrow<Message>) -> Result<PutResult> {
        let shared = self.shared();
        let started =
            shared.stats.sample_start(&*shared.core.clock, shared.core.progress.appended());
        let pending = shared.place_one(message.borrow(), shared.usual_pace(true, true))?;
        let result = shared.wait(&pending);
        shared.stats.sample_end(&*shared.core.clock, started);
        shared.counted(result)
    }

    /// [`put`](Self::put) or [`put_batch`](Self::put_batch), answered by `until` at the latest: with the
    /// status reached by then, whatever the settings say. It is `now`.
    pub(crate) fn put_by<M: Borrow<Message>>(
        &self,
        messages: &[M],
        now: Instant,
        until: Instant,
    ) -> Result<PutResult> {
        let shared = self.shared();
        let pace = shared.usual_pace(true, true).by(now, until);
        let pending = shared.place_all(messages, pace)?;
        shared.counted(shared.wait(&pending))
    }

    /// Refuses what no put would do: one to a store that is closed, read or a replica.
    pub(crate) fn check_takes_puts(&self) -> Result<()> {
        let shared = self.shared();
        shared.check_open()?;
        if shared.config.log.read_only {
            return Err(Error::ReadOnly);
        }
        shared.check_role()
    }

    /// [`submit`](Self::submit) or [`try_submit`](Self::try_submit) with a ticket that is answered by
    /// `until` at the latest. It is `now`.
    pub(crate) fn submit_by<M: Borrow<Message>>(
        &self,
        messages: &[M],
        may_wait: bool,
        now: Instant,
        until: Instant,
    ) -> Result<Ticket> {
        let shared = self.shared();
        let pace = shared.usual_pace(may_wait, false).by(now, until);
        let pending = shared.place_all(messages, pace)?;
        Ok(Ticket::new(shared.clone(), pending))
    }

    /// Stores messages of one topic and queue next to each other, with consecutive queue offsets, and
    /// waits for all of them. A crash before the answer may keep the first few. If one message waits,
    /// see [`Message::wait`], all do.
    ///
    /// # Examples
    /// ```
    /// # use duralog::{Message, Store, StoreConfig};
    /// # let dir = std::env::temp_dir().join(format!("duralog-doc-batch-{}", std::process::id()));
    /// # let store = Store::open(StoreConfig::new(&dir).segment_size(1 << 20))?;
    /// let batch = ["placed", "paid", "sent"].map(|body| Message::new("orders", body).queue(2));
    /// let put = store.put_batch(&batch)?.ok()?;
    /// let stored = store.get("orders", 2, put.queue_offset, batch.len())?.messages;
    /// assert_eq!(stored[2].body, b"sent");
    /// # store.close()?;
    /// # std::fs::remove_dir_all(&dir).unwrap();
    /// # Ok::<(), duralog::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`put`](Self::put); [`InvalidMessage::MixedBatch`] and [`InvalidMessage::EmptyBatch`];
    /// [`Error::TooLarge`] also if the batch does not fit a segment.
    pub fn put_batch<M: Borrow<Message>>(&self, messages: &[M]) -> Result<PutResult> {
        let shared = self.shared();
        let pending = shared.place_batch(messages, shared.usual_pace(true, true))?;
        shared.counted(shared.wait(&pending))
    }

    /// Gives `message` its place and returns without waiting for it to become safe; the ticket does.
    ///
    /// One thread can keep thousands of puts in flight this way. Blocks while `max_in_flight_bytes` are
    /// on the way or a segment is being made, up to `put_timeout`. Where the put does not wait for the
    /// disk, with `wait(false)` or under async flush, the message is in the page cache on return, unless
    /// that takes longer than `put_timeout`; otherwise not even that is sure before the ticket says so.
    ///
    /// # Examples
    /// ```
    /// # use duralog::{Message, Store, StoreConfig};
    /// # let dir = std::env::temp_dir().join(format!("duralog-doc-submit-{}", std::process::id()));
    /// # let store = Store::open(StoreConfig::new(&dir).segment_size(1 << 20))?;
    /// let mut tickets = Vec::new();
    /// for number in 0..100 {
    ///     tickets.push(store.submit(Message::new("orders", format!("order {number}")))?);
    /// }
    /// for ticket in tickets {
    ///     ticket.wait()?.ok()?; // a few syncs cover all of them
    /// }
    /// # store.close()?;
    /// # std::fs::remove_dir_all(&dir).unwrap();
    /// # Ok::<(), duralog::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`put`](Self::put).
    pub fn submit(&self, message: impl Borrow<Message>) -> Result<Ticket> {
        let shared = self.shared();
        let pending = shared.place_one(message.borrow(), shared.usual_pace(true, false))?;
        Ok(Ticket::new(shared.clone(), pending))
    }

    /// [`submit`](Self::submit) for a [batch](Self::put_batch).
    ///
    /// # Errors
    /// As [`put_batch`](Self::put_batch).
    pub fn submit_batch<M: Borrow<Message>>(&self, messages: &[M]) -> Result<Ticket> {
        let shared = self.shared();
        let pending = shared.place_batch(messages, shared.usual_pace(true, false))?;
        Ok(Ticket::new(shared.clone(), pending))
    }

    /// [`try_submit`](Self::try_submit) for a [batch](Self::put_batch).
    ///
    /// # Errors
    /// As [`put_batch`](Self::put_batch) and [`try_submit`](Self::try_submit).
    pub fn try_submit_batch<M: Borrow<Message>>(&self, messages: &[M]) -> Result<Ticket> {
        let shared = self.shared();
        let pending = shared.place_batch(messages, shared.usual_pace(false, false))?;
        Ok(Ticket::new(shared.clone(), pending))
    }

    /// [`submit`](Self::submit) without waiting for a place. A put that does not wait for the disk, one
    /// with `wait(false)` or under async flush, still writes to the page cache, or waits up to
    /// `put_timeout` for who is writing to it.
    ///
    /// # Errors
    /// As [`put`](Self::put): [`Error::Full`] where `submit` would wait for room,
    /// [`Error::SegmentNotReady`] where it would wait for a segment.
    pub fn try_submit(&self, message: impl Borrow<Message>) -> Result<Ticket> {
        let shared = self.shared();
        let pending = shared.place_one(message.borrow(), shared.usual_pace(false, false))?;
        Ok(Ticket::new(shared.clone(), pending))
    }
}

impl Shared {
    #[inline]
    fn usual_pace(&self, may_wait: bool, blocking: bool) -> Pace {
        let patience = self.core.config.put_timeout;
        Pace { may_wait, patience, until: None, blocking }
    }

    /// A place for a message, or none: it waits for nothing.
    pub(super) fn place_at_once(&self, message: &Message) -> Result<Pending> {
        self.place_one(message, self.usual_pace(false, false))
    }

    #[inline]
    fn place_all<M: Borrow<Message>>(&self, messages: &[M], pace: Pace) -> Result<Pending> {
        match messages {
            [message] => self.place_one(message.borrow(), pace),
            _ => self.place_batch(messages, pace),
        }
    }

    #[inline]
    fn place_one(&self, message: &Message, pace: Pace) -> Result<Pending> {
        let draft = Draft::new(message, self.core.layout())?;
        self.place(std::slice::from_ref(&draft), pace)
    }

    fn check_role(&self) -> Result<()> {
        match self.role {
            Role::Replica => Err(Error::Refused(Refusal::NotPrimary)),
            _ => Ok(()),
        }
    }

    fn place_batch<M: Borrow<Message>>(&self, messages: &[M], pace: Pace) -> Result<Pending> {
        let layout = self.core.layout();
        let drafts = messages.iter().map(|message| Draft::new(message.borrow(), layout));
        let drafts = drafts.collect::<Result<Vec<_>>>()?;
        self.place(&drafts, pace)
    }

    #[inline]
    fn place(&self, drafts: &[Draft<'_>], pace: Pace) -> Result<Pending> {
        let patience = if pace.may_wait { Patience::For(pace.patience) } else { Patience::None };
        let Some((first, others)) = drafts.split_first() else {
            return Err(Error::InvalidMessage(InvalidMessage::EmptyBatch));
        };
        let (topic, queue_id) = (first.topic(), first.queue_id());
        if others.iter().any(|draft| draft.topic() != topic || draft.queue_id() != queue_id) {
            return Err(Error::InvalidMessage(InvalidMessage::MixedBatch));
        }
        self.check_queue(topic, queue_id)?;
        self.check_role()?;
        self.check_disk(drafts.iter().map(|draft| draft.size() as u64).sum())?;
        let admission = match &self.replicator {
            Some(replicator) => Some(replicator.admit().map_err(Error::Refused)?),
            None => None,
        };
        let waits = drafts.iter().any(Draft::waits);
        let confirmation =
            admission.map_or(Confirmation::NotAsked, |admission| admission.confirmation);
        let need = Need {
            durable: waits && self.is_sync(),
            confirmed: waits && confirmation == Confirmation::Awaited,
        };
        let (flush_deadline, replica_deadline) = self.deadlines_of(need);
        let sooner = |deadline: Instant| pace.until.map_or(deadline, |until| until.min(deadline));
        let appended = self.core.append(drafts, patience, pace.blocking && need.durable)?;
        self.core.wake_flusher();
        if !need.durable {
            // A success is never only in this process's memory.
            self.write_through(&appended, pace.patience)?;
        }
        Ok(Pending {
            appended,
            queue_id,
            message_id: self.message_id(&appended, first),
            need,
            replicas_available: confirmation != Confirmation::OutOfReach || !waits,
            flush_deadline: flush_deadline.map(sooner),
            replica_deadline: replica_deadline.map(sooner),
        })
    }

    /// Whether something may be put to a queue.
    #[inline]
    pub(super) fn check_queue(&self, topic: &str, queue_id: i32) -> Result<()> {
        // Each delay level has a queue, however few another topic may have.
        if queue_id >= self.config.max_queues_per_topic && !is_delay_queue(topic, queue_id) {
            let limit = self.config.max_queues_per_topic;
            return Err(Error::InvalidMessage(InvalidMessage::QueueId { queue_id, limit }));
        }
        if self.config.auto_create_topic { Ok(()) } else { self.check_topic(topic, queue_id) }
    }

    /// Counted from the call, before the message gets its place.
    #[inline]
    fn deadlines_of(&self, need: Need) -> (Option<Instant>, Option<Instant>) {
        if !need.durable && !need.confirmed {
            return (None, None);
        }
        let now = self.core.clock.now();
        let flush = match self.config.flush_mode {
            FlushMode::Sync { timeout } if need.durable => Some(now + timeout),
            _ => None,
        };
        (flush, need.confirmed.then(|| now + self.config.sync_replica_timeout))
    }

    /// What a put waits for, waited for once more: as long as at first, and by now replicas that were out of
    /// reach may have it.
    pub(super) fn renewed(&self, pending: Pending) -> Pending {
        let (flush_deadline, replica_deadline) = self.deadlines_of(pending.need);
        let is_confirmed = self.core.progress.confirmed() >= pending.appended.end;
        let replicas_available = pending.replicas_available || is_confirmed;
        Pending { replicas_available, flush_deadline, replica_deadline, ..pending }
    }

    #[inline]
    fn message_id(&self, appended: &Appended, draft: &Draft<'_>) -> OffsetMessageId {
        let physical_offset = appended.physical_offset.cast_signed();
        OffsetMessageId { host: draft.store_host(), physical_offset }
    }

    #[inline]
    fn write_through(&self, appended: &Appended, patience: Duration) -> Result<()> {
        if self.core.progress.written() >= appended.end {
            return Ok(());
        }
        let physical_offset = appended.physical_offset;
        match self.core.write_within(patience) {
            // Whoever took the bytes along has written them by now; if the time was up, the answer
            // says so.
            Ok(_) => Ok(()),
            Err(Error::Latched { first }) => Err(Error::Unknown { physical_offset, first }),
            Err(error) => Err(Error::Unknown { physical_offset, first: Arc::new(error) }),
        }
    }

    /// Blocks until `pending` is answered.
    #[inline]
    pub(crate) fn wait(&self, pending: &Pending) -> Result<PutResult> {
        let progress = &self.core.progress;
        let Pending { appended, need, .. } = pending;
        if !need.durable && !need.confirmed {
            return Ok(self.result(pending));
        }
        if need.confirmed {
            return self.wait_for_both(pending);
        }
        let waited = progress.wait(appended.end, *need, appended.group, pending.flush_deadline);
        if let Waited::Latched(first) = waited {
            return Err(Error::Unknown { physical_offset: appended.physical_offset, first });
        }
        Ok(self.result(pending))
    }

    /// Blocks until disk and replicas have answered, each against its own deadline.
    fn wait_for_both(&self, pending: &Pending) -> Result<PutResult> {
        let appended = &pending.appended;
        loop {
            match self.outlook(pending)? {
                Outlook::Answer(result) => return Ok(result),
                Outlook::Open { need, until } => {
                    let progress = &self.core.progress;
                    let _ = progress.wait(appended.end, need, appended.group, Some(until));
                }
            }
        }
    }

    /// The answer if there is one by now; otherwise what is still waited for, and until when.
    pub(crate) fn outlook(&self, pending: &Pending) -> Result<Outlook> {
        let appended = &pending.appended;
        let mut open = Need { durable: false, confirmed: false };
        let mut until = None;
        let mut now = None;
        for (part, deadline) in pending.parts() {
            match self.core.progress.met(appended.end, part) {
                Some(Waited::Latched(first)) => {
                    let physical_offset = appended.physical_offset;
                    return Err(Error::Unknown { physical_offset, first });
                }
                Some(_) => continue,
                None => {}
            }
            let now = *now.get_or_insert_with(|| self.core.clock.now());
            if let Some(deadline) = deadline.filter(|deadline| now < *deadline) {
                open.durable |= part.durable;
                open.confirmed |= part.confirmed;
                until = Some(until.map_or(deadline, |other: Instant| other.min(deadline)));
            }
        }
        Ok(match until {
            Some(until) => Outlook::Open { need: open, until },
            None => Outlook::Answer(self.result(pending)),
        })
    }

    /// An answer that is given for the first time.
    #[inline]
    pub(crate) fn counted(&self, answer: Result<PutResult>) -> Result<PutResult> {
        answer.inspect(|result| self.stats.count(result.status))
    }

    /// The answer as of now, taken to be final.
    #[inline]
    pub(crate) fn result(&self, pending: &Pending) -> PutResult {
        let progress = &self.core.progress;
        let Pending { appended, need, .. } = pending;
        let end = appended.end;
        let status = if need.confirmed && progress.confirmed() < end {
            PutStatus::FlushReplicaTimeout
        } else if !pending.replicas_available {
            PutStatus::ReplicaNotAvailable
        } else if need.durable && progress.durable() < end || progress.written() < end {
            PutStatus::FlushDiskTimeout
        } else {
            PutStatus::PutOk
        };
        PutResult {
            status,
            reached: progress.reached(end),
            queue_id: pending.queue_id,
            queue_offset: appended.queue_offset,
            physical_offset: appended.physical_offset,
            end_offset: end,
            store_timestamp: appended.store_timestamp,
            message_id: pending.message_id,
        }
    }

    pub(crate) fn wait_durable(&self, end: u64, deadline: Instant) -> Result<()> {
        match self.core.progress.wait_for_flush(end, deadline) {
            Waited::Met => Ok(()),
            Waited::Latched(first) => Err(Error::Latched { first }),
            Waited::TimedOut => {
                Err(Error::FlushTimeout { durable: self.core.progress.durable(), wanted: end })
            }
        }
    }
}
