//! What is built upon a store, is driven by it and ends before it.

use super::engine::{DELIVERY_THREAD, Engine};
use super::stats::QueueWork;
use super::{Acknowledged, Inner, PutResult, PutStatus, RecoveryReport, Shared, Store, Ticket};
use crate::clock::Clock;
use crate::environment::{Environment, Threads};
use crate::error::{CodecError, Error, Result};
use crate::log::Reached;
use crate::message::{Compression, Draft, Message};
use crate::replication::{NodeId, Role};
use crate::tables::Tables;
use crate::worker::{Alarm, Next};
use std::any::Any;
use std::fmt;
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

/// How often a stepped store makes room itself before a message is refused.
const ROOM_ATTEMPTS: usize = 3;

/// A wing above the store.
pub(crate) trait Upper: Any + Send + Sync {
    /// Does what there is to do in the background.
    fn step(&self, store: &Store) -> Next;

    /// Rung when a step has something to do before it asked to be called again.
    fn alarm(&self) -> &Alarm;

    /// Notes how far it is while the store still takes that; no step does anything after it.
    fn end(&self, ending: &Ending<'_>);

    /// Lets go of what keeps the store in memory: nobody has a handle any more.
    fn let_go(&self);
}

/// Where a store keeps it: the first one that is asked for stays.
#[derive(Default)]
pub(super) struct UpperSlot(OnceLock<Arc<dyn Upper>>);

impl UpperSlot {
    /// Wakes it, if it is there.
    pub(super) fn ring(&self) {
        if let Some(upper) = self.0.get() {
            upper.alarm().ring();
        }
    }

    pub(super) fn let_go(&self) {
        if let Some(upper) = self.0.get() {
            upper.let_go();
        }
    }
}

impl fmt::Debug for UpperSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("UpperSlot").field(&self.0.get().is_some()).finish()
    }
}

/// A store that is being closed, as its wing sees it: nobody else has anything from it any more.
pub(crate) struct Ending<'a> {
    shared: &'a Arc<Shared>,
    /// Until when it may take.
    pub(crate) until: Instant,
}

impl Ending<'_> {
    pub(crate) fn clock(&self) -> &dyn Clock {
        &*self.shared.core.clock
    }

    /// Whether what was put becomes durable by itself.
    pub(crate) fn has_threads(&self) -> bool {
        self.shared.threaded
    }

    /// Makes durable what was put, if that can be done in time.
    pub(crate) fn flush(&self) {
        let core = &self.shared.core;
        // Whoever waits is told by the latch, and what is not durable is not noted as done with.
        let _ = if self.shared.threaded {
            core.want_flush();
            self.shared.wait_durable(core.progress.appended(), self.until)
        } else {
            core.write().and_then(|()| core.sync().map(drop))
        };
    }

    /// Whether a power cut leaves what lies before `end`.
    pub(crate) fn is_durable(&self, end: u64) -> bool {
        self.shared.core.progress.durable() >= end
    }

    /// As [`Store::log_end`].
    pub(crate) fn log_end(&self) -> u64 {
        self.shared.log_end()
    }

    /// As [`Store::safe_end`].
    pub(crate) fn safe_end(&self) -> u64 {
        self.shared.safe_end()
    }

    /// As [`Store::takes_puts`].
    pub(crate) fn takes_puts(&self) -> bool {
        self.shared.takes_puts()
    }

    /// The last things to be put.
    pub(crate) fn submit(&self, message: &Message) -> Result<Ticket> {
        let pending = self.shared.place_at_once(message)?;
        Ok(Ticket::new(self.shared.clone(), pending))
    }

    /// As [`Store::commit_offset`], for what was read from the queue.
    pub(crate) fn commit_offset(
        &self,
        group: &str,
        topic: &str,
        queue_id: i32,
        next: u64,
    ) -> Result<()> {
        self.shared.offsets.commit(group, topic, queue_id, next)
    }

    pub(crate) fn tables(&self) -> Tables {
        self.shared.broker_tables()
    }
}

/// A store that closes though this is there.
pub(crate) struct WeakStore {
    engine: Weak<Engine>,
    report: Arc<RecoveryReport>,
}

impl WeakStore {
    /// The store, unless it is gone. It may close meanwhile.
    pub(crate) fn upgrade(&self) -> Option<Store> {
        let engine = self.engine.upgrade()?;
        let (shared, report) = (engine.shared.clone(), self.report.clone());
        Some(Store { inner: Arc::new(Inner { shared, engine, report, is_handle: false }) })
    }
}

impl Store {
    pub(crate) fn downgrade(&self) -> WeakStore {
        let Inner { engine, report, .. } = &*self.inner;
        WeakStore { engine: Arc::downgrade(engine), report: report.clone() }
    }

    pub(crate) fn is_threaded(&self) -> bool {
        self.shared().threaded
    }

    /// Checks what a put would check, as if the record had `spare` bytes more.
    pub(crate) fn check_message(&self, message: &Message, spare: usize) -> Result<()> {
        let shared = self.shared();
        let layout = shared.core.layout();
        let draft = Draft::new(message, layout)?;
        let len = draft.size() + spare;
        if len > layout.max_record_size {
            return Err(Error::TooLarge { what: "record", len, max: layout.max_record_size });
        }
        shared.check_queue(message.topic(), message.queue_id())
    }

    /// Refuses a body that is compressed by what not all are to know who read this store.
    pub(crate) fn check_compression(&self, compression: Option<Compression>) -> Result<()> {
        match compression {
            Some(compression) if self.config().zlib_only && compression != Compression::Zlib => {
                Err(Error::Codec { compression, what: CodecError::NotZlib })
            }
            _ => Ok(()),
        }
    }

    /// [`submit`](Self::submit), also where nobody but the caller drives the store.
    pub(crate) fn lay(&self, message: &Message) -> Result<Ticket> {
        if self.is_threaded() {
            return self.submit(message);
        }
        for _ in 0..ROOM_ATTEMPTS {
            match self.try_submit(message) {
                Err(Error::SegmentNotReady { .. } | Error::Full) => {
                    self.flush()?;
                    while self.inner.engine.log.step() == Next::Now {}
                }
                laid => return laid,
            }
        }
        self.try_submit(message)
    }

    /// Waits for the answer of a ticket, also where nobody but the caller drives the store. Asked again, it
    /// is the answer as of then.
    pub(crate) fn settle(&self, ticket: &Ticket) -> Result<PutResult> {
        if let Some(result) = ticket.try_get()? {
            return Ok(result);
        }
        if !self.is_threaded() {
            // If it fails, the ticket says so.
            let _ = self.flush();
        }
        loop {
            if let Some(result) = ticket.wait_timeout(Duration::MAX)? {
                return Ok(result);
            }
        }
    }

    /// Stores a message that takes the place of another one and waits whatever it says about waiting, until
    /// it is as safe as the store's settings ask, and durable in any case: the offset that passes over the
    /// other one may become durable at any time.
    pub(crate) fn put_safely(&self, message: Message) -> Result<Acknowledged> {
        self.wait_until_safe(&self.lay(&message.waiting())?)
    }

    /// What [`put_safely`](Self::put_safely) waits for, by the ticket of such a message.
    pub(crate) fn wait_until_safe(&self, ticket: &Ticket) -> Result<Acknowledged> {
        let put = self.settle(ticket)?.ok()?;
        let shared = self.shared();
        if shared.core.progress.durable() < put.end_offset {
            if !shared.threaded {
                self.flush()?;
            }
            shared.core.want_flush();
            let until = self.now() + shared.core.config.put_timeout;
            shared.wait_durable(put.end_offset, until)?;
        }
        Ok(put)
    }

    /// Whether a power cut leaves what lies before `end`.
    pub(crate) fn is_durable(&self, end: u64) -> bool {
        self.shared().core.progress.durable() >= end
    }

    /// Asks for a sync before it is due.
    pub(crate) fn want_flush(&self) {
        self.shared().core.want_flush();
    }

    /// Whether the log was not written by this node alone: what groups had committed may be on another one.
    pub(crate) fn has_changed_hands(&self) -> bool {
        let core = &self.shared().core;
        if core.directory().has_copies() {
            return true;
        }
        // Files that came here by other ways than replication.
        let epochs = core.epochs();
        // The number of a store that is opened without replication, on whatever node.
        let named = |node: &NodeId| *node != NodeId(0);
        let mut nodes = epochs.starts().iter().map(|start| start.node).filter(named);
        let first = nodes.next();
        nodes.any(|node| Some(node) != first)
    }

    /// Whether a message is as safe on this machine as the flush mode asks.
    pub(crate) fn is_safe_here(&self, result: &PutResult) -> bool {
        let wanted = if self.shared().is_sync() { Reached::Durable } else { Reached::Written };
        result.status == PutStatus::PutOk || result.reached >= wanted
    }

    /// Physical offset behind everything that was put.
    pub(crate) fn log_end(&self) -> u64 {
        self.shared().log_end()
    }

    /// Physical offset before which nothing is lost, neither by a power cut nor to another primary.
    pub(crate) fn safe_end(&self) -> u64 {
        self.shared().safe_end()
    }

    /// Whether the key index is there, and knows what lies in the log.
    pub(crate) fn has_all_keys(&self) -> bool {
        self.config().index_enable && !self.shared().lacks_keys()
    }

    /// The first message of a queue that does not lie before a physical offset; the queue's end if there is
    /// none.
    pub(crate) fn first_behind(&self, topic: &str, queue_id: i32, physical: u64) -> Result<u64> {
        let queue = self.shared().queue(topic, queue_id);
        queue.map_or(Ok(0), |queue| queue.lower_bound(physical))
    }

    /// What is built upon this store, made by the first who asks.
    pub(crate) fn upper(&self, make: impl FnOnce() -> Arc<dyn Upper>) -> Arc<dyn Upper> {
        self.shared().upper.0.get_or_init(make).clone()
    }

    /// Starts the thread that drives it, unless it runs already.
    pub(crate) fn start_upper(&self) -> Result<()> {
        let Some(upper) = self.shared().upper.0.get() else { return Ok(()) };
        if self.config().log.read_only {
            // There is nothing that it may do.
            return self.shared().check_open();
        }
        // The thread is no handle: a store that nobody holds any more closes.
        let (store, stepped) = (self.downgrade(), upper.clone());
        let step = move || store.upgrade().map_or(Next::Idle, |store| stepped.step(&store));
        self.inner.engine.start_lazily(DELIVERY_THREAD, upper.alarm(), step)
    }

    pub(super) fn upper_step(&self) -> Next {
        let upper = self.shared().upper.0.get().cloned();
        upper.map_or(Next::Idle, |upper| upper.step(self))
    }

    /// Whether this process may put: not to a store that is only read, nor to another node's log.
    pub(crate) fn takes_puts(&self) -> bool {
        self.shared().takes_puts()
    }

    /// Whether the log is another node's.
    pub(crate) fn is_replica(&self) -> bool {
        self.shared().role == Role::Replica
    }

    /// Whether the queues hold whatever was visible when this was asked.
    pub(crate) fn is_caught_up(&self) -> bool {
        let progress = &self.shared().core.progress;
        let visible = progress.visible();
        self.shared().catch_up();
        progress.dispatched() >= visible
    }

    /// Whether replicas have confirmed what lies before `end`, though nobody waited for it.
    pub(crate) fn is_confirmed(&self, end: u64) -> bool {
        let watermarks = self.shared().core.progress.watermarks();
        watermarks.confirmed >= end && (watermarks.durable >= end || !self.shared().is_sync())
    }

    /// The tables that brokers read.
    pub(crate) fn tables(&self) -> Tables {
        self.shared().broker_tables()
    }

    /// Notes why delayed messages are not delivered, or that they are.
    pub(crate) fn note_delays(&self, error: Option<Error>) {
        self.shared().stats.queue_work(QueueWork::Delay, error);
    }
}

impl Shared {
    fn log_end(&self) -> u64 {
        self.core.progress.appended()
    }

    fn safe_end(&self) -> u64 {
        self.core.progress.durable().min(self.core.progress.visible())
    }

    fn takes_puts(&self) -> bool {
        !self.config.log.read_only && self.role != Role::Replica
    }

    fn broker_tables(&self) -> Tables {
        let core = &self.core;
        let threads = if self.threaded { Threads::Own } else { Threads::Stepped };
        let environment =
            Environment { disk: core.disk.clone(), clock: core.clock.clone(), threads };
        Tables::new_in(core.directory().root(), environment)
    }

    /// Lets what is built upon the store end, as far as that does not take long.
    pub(super) fn end_upper(self: &Arc<Self>) {
        if let Some(upper) = self.upper.0.get() {
            let until = self.core.clock.now() + self.core.config.close_timeout / 4;
            upper.end(&Ending { shared: self, until });
        }
    }
}
