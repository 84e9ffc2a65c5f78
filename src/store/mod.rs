//! The message store: log, queues, flushing and replication, composed.

mod deadline;
mod dispatch;
mod engine;
mod filter;
mod offsets;
mod put;
mod read;
mod replicated;
mod result;
mod retention;
mod snapshot;
mod stats;
mod ticket;
mod topics;
mod upper;
mod verify;

#[cfg(feature = "sql92")]
pub use filter::SqlFilter;
pub use filter::{Filter, TagFilter};
pub(crate) use offsets::{group_of, wanted_topics};
pub use read::{FetchStatus, Fetched};
pub use result::{Acknowledged, PutResult, PutStatus};
pub use retention::{Pinned, RetentionStats};
pub use snapshot::SnapshotReport;
pub use stats::{Health, Latency, Pin, Stats};
pub use ticket::Ticket;
pub(crate) use upper::{Ending, Upper, WeakStore};
pub use verify::VerifyReport;

use crate::clock::Clock;
use crate::config::{FlushMode, RecoveryMode, StoreConfig, Visibility};
use crate::disk::Disk;
use crate::environment::{Environment, Threads};
use crate::error::{Error, Result};
use crate::log::progress::VisibleBy;
use crate::log::queue_starts;
use crate::log::{
    CLOSE_THREAD, CommitLog, Core, GroupOffsets, IndexOptions, KeyIndex, Left, QueueOptions,
    Queues, RecoveryReport,
};
use crate::replication::{Replicator, Role};
use crate::worker::{Next, detach, is_worker};
use deadline::Deadlines;
use dispatch::Dispatcher;
use engine::{Engine, Flush};
use offsets::Offsets;
use parking_lot::Mutex;
use stats::QueueWork;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use topics::Topics;
use upper::UpperSlot;

/// A durable message store in a directory.
///
/// Cheap to clone and usable from any number of threads; all clones are one store. When the last
/// clone goes the store closes, as far as it can; [`close`](Self::close) also says what went wrong.
///
/// # Examples
/// ```
/// use duralog::{Message, Store, StoreConfig};
///
/// # let dir = std::env::temp_dir().join(format!("duralog-doc-store-{}", std::process::id()));
/// let store = Store::open(StoreConfig::new(&dir).segment_size(1 << 20))?;
/// let put = store.put(Message::new("orders", "paid 42").tag("paid").key("order-42"))?.ok()?;
/// let messages = store.get("orders", 0, put.queue_offset, 32)?.messages;
/// assert_eq!(messages[0].body, b"paid 42");
/// store.close()?;
/// # std::fs::remove_dir_all(&dir).unwrap();
/// # Ok::<(), duralog::Error>(())
/// ```
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.shared.fmt(f)
    }
}

/// What handles own: dropping the last one closes the store.
struct Inner {
    shared: Arc<Shared>,
    engine: Arc<Engine>,
    report: Arc<RecoveryReport>,
    /// Not so for what the store's own threads hold while they work: whoever lets go of the last handle
    /// closes the store, and does not leave that to one of them.
    is_handle: bool,
}

/// What handles, tickets and threads share.
pub(crate) struct Shared {
    pub(crate) core: Arc<Core>,
    pub(crate) queues: Arc<Queues>,
    pub(crate) index: Option<KeyIndex>,
    pub(crate) config: StoreConfig,
    pub(crate) deadlines: Deadlines,
    pub(crate) stats: stats::Meters,
    pub(crate) expiry: retention::Expiry,
    offsets: Arc<Offsets>,
    topics: Topics,
    upper: UpperSlot,
    replicator: Option<Arc<dyn Replicator>>,
    role: Role,
    dispatcher: Mutex<Dispatcher>,
    checkpointer: dispatch::Checkpointer,
    closed: AtomicBool,
    threaded: bool,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let core = &self.core;
        f.debug_struct("Store")
            .field("dir", &core.config.dir)
            .field("watermarks", &core.progress.watermarks())
            .field("latched", &core.progress.latched())
            .field("open", &self.is_open())
            .finish_non_exhaustive()
    }
}

/// One of the background workers, for [`Store::step`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StoreWorker {
    /// Writes and syncs.
    Flush,
    /// Prepares segments and saves the durable offset.
    Upkeep,
    /// Feeds the consume queues.
    Dispatch,
    /// Makes the consume queues durable.
    Checkpoint,
    /// Wakes awaited tickets whose deadline has passed.
    Deadline,
    /// Deletes what has expired, where retention is on.
    Retention,
    /// Makes the offsets of consumer groups durable.
    Offsets,
    /// Delivers what was delayed and finishes transactions, where that is used.
    Delivery,
}

impl Store {
    /// Opens the store in `config.log.dir`, creating it where there is none, and recovers it.
    ///
    /// # Errors
    /// [`Error::Locked`] with the holder's process id if the store is open elsewhere;
    /// [`Error::Corrupt`] for damage that the recovery mode does not let pass;
    /// [`Error::UnknownFormat`] if a newer version of this crate wrote it; [`Error::Config`],
    /// [`Error::DiskFull`], [`Error::Io`]. Nothing is left running.
    pub fn open(config: StoreConfig) -> Result<Self> {
        Self::open_in(config, Environment::default())
    }

    /// The same in another environment: another disk, clock, or without threads.
    ///
    /// # Examples
    /// A power cut that loses everything that was not synced, on the disk of the feature `sim`:
    /// ```
    /// use duralog::disk::{Cut, SimDisk};
    /// use duralog::{Environment, Message, Store, StoreConfig};
    ///
    /// let config = StoreConfig::new("/store").segment_size(1 << 20);
    /// let disk = SimDisk::new(1);
    /// let store = Store::open_in(config.clone(), Environment::on(disk.shared()))?;
    /// let put = store.put(Message::new("orders", "paid 42"))?.ok()?;
    ///
    /// let disk = disk.cut_power(Cut::losing_all());
    /// let reopened = Store::open_in(config, Environment::on(disk.shared()))?;
    /// assert!(reopened.recovery().unclean);
    /// assert_eq!(reopened.get("orders", 0, put.queue_offset, 1)?.messages[0].body, b"paid 42");
    /// # Ok::<(), duralog::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_in(config: StoreConfig, environment: Environment) -> Result<Self> {
        Self::open_with(config, environment, None)
    }

    /// The same, replicated: puts wait for what `replicator` confirms, or are refused if that takes over
    /// another node's records. [`Replicator`] has an example.
    ///
    /// # Errors
    /// As [`open`](Self::open), and what the replicator's `start` says. [`Error::Config`] for
    /// `read_only`.
    pub fn open_replicated(
        config: StoreConfig,
        environment: Environment,
        replicator: Arc<dyn Replicator>,
    ) -> Result<Self> {
        Self::open_with(config, environment, Some(replicator))
    }

    fn open_with(
        config: StoreConfig,
        environment: Environment,
        replicator: Option<Arc<dyn Replicator>>,
    ) -> Result<Self> {
        config.validate()?;
        if replicator.is_some() && config.log.read_only {
            let allowed = "false where a replicator writes to the log";
            return Err(Error::Config { field: "read_only", value: "true".to_owned(), allowed });
        }
        let (threads, disk) = (environment.threads, environment.disk.clone());
        let role = replicator.as_ref().map(|replicator| replicator.role());
        let log = CommitLog::open_as(config.resolved_log(), environment, role)?;
        let built = Shared::build(&log, config, disk, threads, replicator);
        let (shared, flush, report) = match built {
            Ok(built) => built,
            Err(error) => {
                // Not closed in order: what this recovery could not finish, the next one must.
                log.abandon(false);
                return Err(error);
            }
        };
        let workers = Mutex::new(Vec::new());
        let engine = Arc::new(Engine { shared: shared.clone(), log, flush, workers });
        let report = Arc::new(report);
        let store = Self { inner: Arc::new(Inner { shared, engine, report, is_handle: true }) };
        if threads == Threads::Own && !store.shared().core.config.read_only {
            store.inner.engine.start_threads()?;
            // The offsets of the primary's groups come as soon as it is followed. What a crash has changed of
            // them a broker must not find as it was.
            if store.shared().role == Role::Replica || !store.shared().offsets.is_exported() {
                store.inner.engine.start_offsets()?;
            }
        }
        Ok(store)
    }

    /// Whether nobody has closed it.
    pub fn is_open(&self) -> bool {
        self.shared().is_open()
    }

    /// What recovery found and did when this store was opened.
    pub fn recovery(&self) -> &RecoveryReport {
        &self.inner.report
    }

    /// The settings in force: those of the log with the size that its segments have, and the write mode
    /// that goes with the flush mode.
    pub fn config(&self) -> &StoreConfig {
        &self.inner.shared.config
    }

    /// Makes everything put so far durable, whatever the flush mode. Blocks up to `close_timeout`.
    ///
    /// # Errors
    /// [`Error::Latched`] if a write or sync failed, in a stepped store the failure itself;
    /// [`Error::FlushTimeout`] if it takes longer.
    pub fn flush(&self) -> Result<()> {
        self.inner.engine.flush_all()
    }

    /// Refuses further puts, makes everything durable, stops the threads and marks the store clean.
    /// Takes about `close_timeout` at most. All clones are closed with it; a second call returns `Ok` at
    /// once, even while the first one is still at work, and lets others have the directory where the first one
    /// could not, because a thread hung that has ended since. Views that were handed out stay valid, and a
    /// handle that is still there goes on reading what was dispatched by then; only
    /// [`wait_for`](Self::wait_for) fails. Files are closed with the last handle.
    ///
    /// Dropping the last handle does the same as well as it can. A thread of the store cannot wait for
    /// itself: where a [`Waker`], or whoever is told of an [`Event`](crate::delivery::Event), calls this or
    /// drops the last handle there, it returns `Ok` at once, and goes on in the background.
    ///
    /// [`Waker`]: std::task::Waker
    ///
    /// # Errors
    /// The first thing that failed. What was put is as safe as its `PutOk` said: under async flush, a
    /// power cut may take what no sync has covered. [`Error::CloseTimeout`] if a thread hangs in the
    /// operating system: the call does not hang with it.
    pub fn close(&self) -> Result<()> {
        self.inner.engine.close()
    }

    /// Runs one step of a worker. For a store opened with [`Threads::Stepped`].
    pub fn step(&self, worker: StoreWorker) -> Next {
        let engine = &self.inner.engine;
        match worker {
            StoreWorker::Flush => match &engine.flush {
                Flush::Group(group_commit) => group_commit.step(),
                Flush::Interval(interval_flush) => interval_flush.step(),
                Flush::Never => Next::Idle,
            },
            StoreWorker::Upkeep => engine.log.step(),
            StoreWorker::Dispatch => engine.shared.dispatch_step(),
            StoreWorker::Checkpoint => engine.shared.checkpoint_step(),
            StoreWorker::Deadline => engine.shared.deadline_step(),
            StoreWorker::Retention => engine.shared.retention_step(),
            StoreWorker::Offsets => engine.shared.offsets_step(),
            StoreWorker::Delivery => self.upper_step(),
        }
    }

    /// What the store's clock says.
    pub(crate) fn now(&self) -> Instant {
        self.shared().core.clock.now()
    }

    /// Whether both are one store.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(self.shared(), other.shared())
    }

    /// What time it is here.
    pub(crate) fn clock(&self) -> &dyn Clock {
        &*self.shared().core.clock
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.inner.shared
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if !self.is_handle {
            return;
        }
        // Best effort; `close` is how a caller hears of errors.
        if !is_worker() {
            let _ = self.engine.close();
            return self.shared.upper.let_go();
        }
        // A task that one of our threads woke let go of the last handle: that thread cannot wait for
        // itself. If there is no other to be had, the next open recovers.
        let engine = self.engine.clone();
        let close = move || {
            let _ = engine.close();
            engine.shared.upper.let_go();
        };
        let _ = detach(CLOSE_THREAD, close);
    }
}

impl Shared {
    /// Everything above the log: queues filled, flushing and replication started.
    fn build(
        log: &CommitLog,
        config: StoreConfig,
        disk: Arc<dyn Disk>,
        threads: Threads,
        replicator: Option<Arc<dyn Replicator>>,
    ) -> Result<(Arc<Self>, Flush, RecoveryReport)> {
        let core = log.core().clone();
        let read_only = config.log.read_only;
        let mut config = config;
        config.log = core.config.clone();
        config.log.segment_size = core.segment_size();
        let options = QueueOptions {
            file_size: config.consume_queue_file_size,
            open_files: config.max_open_queue_files,
            read_only,
            ..QueueOptions::default()
        };
        let (queues, table) = Queues::open(disk.clone(), core.directory().root(), &options)?;
        match queue_starts::read(&*disk, core.directory().duralog()) {
            Ok(Some(starts)) if starts.offset <= core.min_offset() => queues.begin_at(starts)?,
            Err(Error::Corrupt { .. }) if core.recovery_mode() == RecoveryMode::Salvage => {}
            read => drop(read?),
        }
        let queues = Arc::new(queues);
        let role = replicator.as_ref().map_or(Role::Primary, |replicator| replicator.role());
        if config.visibility == Visibility::Safe || role == Role::Replica {
            let sync = matches!(config.flush_mode, FlushMode::Sync { .. });
            let visible_by = if sync { VisibleBy::Durable } else { VisibleBy::Written };
            core.progress.set_visible_by(visible_by);
        }
        let environment = Environment { disk: disk.clone(), clock: core.clock.clone(), threads };
        let offsets = GroupOffsets::open(disk.clone(), core.directory(), read_only)?;
        let mut report = log.recovery().clone();
        let stats = stats::Meters::default();
        let mut index = None;
        if config.index_enable {
            let (slots, items) = (config.index_slots, config.index_items);
            let options = IndexOptions { slots, items, read_only };
            let (min, end) = (core.min_offset(), core.progress.visible());
            let unclean =
                report.unclean || report.finished_cut.is_some() || core.directory().was_open();
            let left = Left { unclean, min, end };
            match KeyIndex::open(disk, core.clock.clone(), core.directory(), options, left) {
                Ok(opened) => index = Some(opened),
                // The store can do without it until the next open, which puts in what it lacks.
                Err(error) => stats.queue_work(QueueWork::Index, Some(error)),
            }
        }
        let shared = Arc::new(Self {
            index,
            deadlines: Deadlines::default(),
            stats,
            expiry: retention::Expiry::default(),
            offsets: Arc::new(Offsets::new(
                offsets,
                role,
                core.directory().root(),
                environment.clone(),
            )),
            topics: Topics::new(core.directory().root(), environment),
            upper: UpperSlot::default(),
            replicator: replicator.clone(),
            role,
            dispatcher: Mutex::new(Dispatcher::default()),
            checkpointer: dispatch::Checkpointer::default(),
            closed: AtomicBool::new(false),
            threaded: threads == Threads::Own,
            core,
            queues,
            config,
        });
        if let Some(replicator) = &replicator {
            shared.start_replicator(replicator, table.offset)?;
        } else if read_only {
            shared.core.hide_what_may_be_taken_back();
        }
        let started = shared.redispatch(&table, &mut report).and_then(|()| {
            let end = |topic: &str, id| {
                // What is not confirmed any more as far as is known here was, if a group is behind it.
                let shown = shared.queue(topic, id).map_or(0, |queue| queue.max_offset());
                shown.max(shared.core.queue_end(topic, id))
            };
            shared.offsets.recover(end, read_only, &mut report)?;
            if read_only { Ok(Flush::Never) } else { Flush::start(log, &shared.config, threads) }
        });
        match (started, &replicator) {
            (Err(error), Some(replicator)) => {
                replicator.stop();
                Err(error)
            }
            (started, _) => Ok((shared, started?, report)),
        }
    }

    pub(crate) fn is_sync(&self) -> bool {
        matches!(self.config.flush_mode, FlushMode::Sync { .. })
    }

    pub(crate) fn is_open(&self) -> bool {
        !self.closed.load(Ordering::Acquire)
    }

    pub(crate) fn check_open(&self) -> Result<()> {
        if self.is_open() { Ok(()) } else { Err(Error::Closed) }
    }
}

#[cfg(all(test, feature = "sim"))]
mod tests {
    use super::*;
    use crate::disk::SimDisk;
    use crate::message::Message;
    use std::time::{Duration, Instant};

    #[test]
    fn a_latched_store_whose_thread_hangs_keeps_its_lock() {
        let disk = SimDisk::new(1);
        let open = || {
            let mut config = StoreConfig::new("/s").segment_size(64 << 10);
            config.log.close_timeout = Duration::from_millis(100);
            Store::open_in(config, Environment::on(disk.shared()))
        };
        let store = open().unwrap();
        disk.hang_syncs(true);
        let ticket = store.submit(Message::new("t", "x")).unwrap();
        let started = Instant::now();
        while disk.hanging_syncs() == 0 {
            assert!(started.elapsed() < Duration::from_secs(60), "no sync began");
            std::thread::yield_now();
        }
        // The first thing that goes wrong is another one.
        store.shared().core.latch(Error::Closed);
        assert!(matches!(store.close(), Err(Error::Latched { .. })));
        assert!(matches!(open(), Err(Error::Locked { .. })), "a thread may yet write");
        drop((store, ticket));
        disk.hang_syncs(false);
    }
}
