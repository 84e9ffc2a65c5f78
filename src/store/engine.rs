//! What runs while a store is open: the log, who flushes it, and the threads; and how all of it ends.

use super::{Shared, StoreConfig};
use crate::config::FlushMode;
use crate::environment::Threads;
use crate::error::{Error, IoContext, IoOp, Result};
use crate::log::{CLOSE_THREAD, CommitLog, GroupCommit, IntervalFlush};
use crate::sync::Receiver;
use crate::worker::{Alarm, Doorbell, Next, Worker, detach, run_bounded};
use parking_lot::Mutex;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How long a reader may take to notice that the store is closed.
const SEAL_TIME: Duration = Duration::from_millis(100);
const DISPATCH_THREAD: &str = "duralog-dispatch";
const CHECKPOINT_THREAD: &str = "duralog-checkpoint";
const DEADLINE_THREAD: &str = "duralog-deadline";
pub(super) const DELIVERY_THREAD: &str = "duralog-delivery";
const OFFSETS_THREAD: &str = "duralog-offsets";
/// Whoever commits an offset, on a thread of the application.
const COMMIT: &str = "commit_offset";
const RETENTION_THREAD: &str = "duralog-retain";

/// What runs while the store is open, and is stopped when it closes.
pub(super) struct Engine {
    pub(super) shared: Arc<Shared>,
    pub(super) log: CommitLog,
    pub(super) flush: Flush,
    pub(super) workers: Mutex<Vec<Worker>>,
}

pub(super) enum Flush {
    Group(GroupCommit),
    Interval(IntervalFlush),
    /// The store is only read.
    Never,
}

impl Flush {
    pub(super) fn start(log: &CommitLog, config: &StoreConfig, threads: Threads) -> Result<Self> {
        Ok(match config.flush_mode {
            FlushMode::Sync { timeout } => {
                Self::Group(GroupCommit::start_with(log, timeout, threads)?)
            }
            FlushMode::Async { interval, least_pages, thorough_interval } => Self::Interval(
                IntervalFlush::start_with(log, interval, least_pages, thorough_interval, threads)?,
            ),
        })
    }

    fn runs_here(&self) -> bool {
        match self {
            Self::Group(group_commit) => group_commit.runs_here(),
            Self::Interval(interval_flush) => interval_flush.runs_here(),
            Self::Never => false,
        }
    }

    fn stop(&self, timeout: Duration) -> Result<()> {
        match self {
            Self::Group(group_commit) => group_commit.stop_within(timeout),
            Self::Interval(interval_flush) => interval_flush.stop_within(timeout),
            Self::Never => Ok(()),
        }
    }
}

impl Engine {
    pub(super) fn start_threads(&self) -> Result<()> {
        let mut workers = self.workers.lock();
        let (bell, heard) = Doorbell::new();
        self.shared.core.progress.visible_alarm().connect(bell.clone());
        workers.push(self.spawn(DISPATCH_THREAD, (bell, heard), Shared::dispatch_step)?);
        let (bell, heard) = Doorbell::new();
        self.shared.checkpointer.alarm().connect(bell.clone());
        workers.push(self.spawn(CHECKPOINT_THREAD, (bell, heard), Shared::checkpoint_step)?);
        let (bell, heard) = Doorbell::new();
        self.shared.deadlines.connect(bell.clone());
        workers.push(self.spawn(DEADLINE_THREAD, (bell, heard), Shared::deadline_step)?);
        if self.shared.config.retention.is_some() {
            workers.push(self.spawn(RETENTION_THREAD, Doorbell::new(), Shared::retention_step)?);
        }
        Ok(())
    }

    /// Starts the thread that makes offsets durable, which a store without consumers does not need.
    pub(super) fn start_offsets(&self) -> Result<()> {
        let shared = self.shared.clone();
        let step = move || shared.offsets_step();
        self.start_lazily(OFFSETS_THREAD, self.shared.offsets.alarm(), step)
    }

    /// Starts a thread that not every store needs, unless it runs already.
    pub(super) fn start_lazily(
        &self,
        name: &str,
        alarm: &Alarm,
        step: impl FnMut() -> Next + Send + 'static,
    ) -> Result<()> {
        self.shared.check_open()?;
        if !self.shared.threaded || alarm.bell().is_some() {
            return Ok(());
        }
        let mut workers = self.workers.lock();
        // Whoever closes the store stops those who are there.
        self.shared.check_open()?;
        let (bell, heard) = Doorbell::new();
        if alarm.bell().is_none() {
            workers.push(self.shared.core.spawn(name, (bell.clone(), heard), step)?);
            alarm.connect(bell.clone());
            // It may have gone to sleep before, and whoever rang then found no bell.
            bell.ring();
        }
        Ok(())
    }

    fn spawn(
        &self,
        name: &str,
        doorbell: (Doorbell, Receiver<()>),
        step: fn(&Shared) -> Next,
    ) -> Result<Worker> {
        let shared = self.shared.clone();
        self.shared.core.spawn(name, doorbell, move || step(&shared))
    }

    pub(super) fn flush_all(&self) -> Result<()> {
        let core = &self.shared.core;
        let end = core.progress.appended();
        if core.config.read_only || end <= core.progress.durable() {
            return Ok(());
        }
        if !self.shared.threaded {
            core.write()?;
            return core.sync().map(|_| ());
        }
        core.want_flush();
        let timeout = core.config.close_timeout;
        self.shared.wait_durable(end, core.clock.now() + timeout)
    }

    pub(super) fn close(self: &Arc<Self>) -> Result<()> {
        if self.runs_here() {
            return self.close_apart();
        }
        if !self.shared.closed.swap(true, Ordering::AcqRel) {
            return self.end();
        }
        self.let_go();
        Ok(())
    }

    /// Lets another store have the directory, if closing could not because a thread hung that has ended since.
    fn let_go(&self) {
        if self.log.may_unlock()
            && self.shared.offsets.seal(SEAL_TIME)
            && self.shared.dispatcher.try_lock_for(SEAL_TIME).is_some()
        {
            self.log.unlock();
        }
    }

    /// Closes in the background: a thread cannot wait for itself. If there is no other to be had, the next
    /// open recovers.
    pub(super) fn close_apart(self: &Arc<Self>) -> Result<()> {
        if self.shared.closed.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        let engine = self.clone();
        let closing = detach(CLOSE_THREAD, move || drop(engine.end()));
        closing.map(drop).at(IoOp::Create, Path::new(CLOSE_THREAD))
    }

    /// Whether this is one of the threads that closing waits for.
    fn runs_here(&self) -> bool {
        self.workers.lock().iter().any(Worker::runs_here)
            || self.flush.runs_here()
            || self.log.runs_here()
    }

    fn end(&self) -> Result<()> {
        let (mut first, mut hangs) = (Ok(()), false);
        let mut note = |outcome: Result<()>| {
            hangs |= matches!(outcome, Err(Error::CloseTimeout { .. }));
            if first.is_ok() {
                first = outcome;
            }
        };
        let core = &self.shared.core;
        self.shared.end_upper();
        core.close_appends();
        core.progress.wake_all();
        // One deadline for all: a disk that hangs is waited for once.
        let deadline = core.clock.now() + core.config.close_timeout;
        let left = || deadline.saturating_duration_since(core.clock.now());
        match self.flush_all() {
            // What hangs is named by what follows.
            Err(Error::FlushTimeout { .. }) => {}
            flushed => note(flushed),
        }
        note(self.flush.stop(left()));
        // Not under the lock: a worker that is waited for may run somebody's code which wants it.
        let workers = std::mem::take(&mut *self.workers.lock());
        for mut worker in workers {
            note(worker.stop(left()));
        }
        if let Some(replicator) = &self.shared.replicator {
            replicator.stop();
        }
        note(self.log.stop_upkeep(left()));
        // What is committed before is durable with the rest, and nothing is afterwards, when the file may be
        // someone else's.
        if !self.shared.offsets.seal(left().max(SEAL_TIME)) {
            note(Err(Error::CloseTimeout { thread: COMMIT.to_owned() }));
        }
        if first.is_ok() {
            let shared = self.shared.clone();
            // With many queues that would take longer: half of the time is theirs, and what is not
            // durable then is dispatched again by the next open.
            let queues_until = core.clock.now() + left() / 2;
            let running = core.running();
            let finish = move || {
                let _running = running;
                let offsets = shared.offsets.finish().and_then(|()| shared.offsets.export());
                let log = shared.finish_queues(queues_until);
                log.and_then(|behind| shared.core.shut(behind)).and(offsets)
            };
            // On a thread of its own: the disk may hang even now.
            first = if self.shared.threaded {
                run_bounded(CLOSE_THREAD, left(), finish)
            } else {
                finish()
            };
            hangs |= matches!(first, Err(Error::CloseTimeout { .. }));
        }
        // A reader may be filling the queues: afterwards, they may be someone else's.
        self.shared.queues.seal();
        hangs |= self.shared.dispatcher.try_lock_for(left().max(SEAL_TIME)).is_none();
        // Not to be let go while a thread may yet write, and not to be called clean after a failure.
        self.log.abandon(hangs);
        // Puts that still wait get their last answer.
        self.shared.core.progress.end();
        first
    }
}
