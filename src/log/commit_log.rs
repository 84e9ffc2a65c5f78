//! The one log that takes every message of every topic.
//!
//! A put takes the append lock for as long as it takes to give a record its offsets and copy it
//! once. From there bytes move on by two calls that anyone may make and background threads do make:
//! [`CommitLog::write`] brings what gathered into the page cache, [`CommitLog::sync`] makes what is
//! there durable. [`Watermarks`] tell how far each has come.

use super::checkpoint::Checkpoint;
use super::core::{Appended, Core, Patience, Records};
use super::progress::Watermarks;
use super::recovery::RecoveryReport;
use super::view::MessageView;
use crate::config::LogConfig;
use crate::environment::{Environment, Threads};
#[cfg(doc)]
use crate::error::Error;
use crate::error::Result;
use crate::message::{Draft, RecordLayout};
use crate::replication::Role;
use crate::worker::{Doorbell, Next, Worker, run_bounded};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Name of the thread that prepares segments and saves the checkpoint.
const UPKEEP_THREAD: &str = "duralog-upkeep";
/// Name of the thread that does the last of the work.
pub(crate) const CLOSE_THREAD: &str = "duralog-close";

/// An append-only log of RocketMQ records in segment files.
///
/// Usable alone, as a write-ahead log: [`append`](Self::append) gives a record its place,
/// [`GroupCommit`](super::GroupCommit) makes it durable, [`read`](Self::read) returns it.
///
/// # Examples
/// ```
/// use duralog::log::{CommitLog, GroupCommit, Patience};
/// use duralog::message::{Draft, Message};
/// use duralog::{LogConfig, Reached};
/// use std::time::Duration;
///
/// # let dir = std::env::temp_dir().join(format!("duralog-doc-log-{}", std::process::id()));
/// let log = CommitLog::open(LogConfig::new(&dir).segment_size(1 << 20))?;
/// let commits = GroupCommit::start(&log, Duration::from_secs(5))?;
/// let change = Message::new("accounts", "balance += 10");
/// let draft = Draft::new(&change, log.layout())?;
/// let appended = log.append(&[draft], Patience::For(Duration::from_secs(1)))?;
/// assert_eq!(commits.wait(&appended)?, Reached::Durable); // any number of threads share a sync
/// for record in log.records(log.min_offset()) {
///     assert_eq!(record?.body(), b"balance += 10");
/// }
/// commits.stop()?;
/// log.close()?;
/// # std::fs::remove_dir_all(&dir).unwrap();
/// # Ok::<(), duralog::Error>(())
/// ```
#[derive(Debug)]
pub struct CommitLog {
    core: Arc<Core>,
    worker: Mutex<Option<Worker>>,
    report: RecoveryReport,
    closed: AtomicBool,
    /// It was closed while a thread hung.
    keeps_lock: AtomicBool,
    threads: Threads,
}

impl CommitLog {
    /// Opens or creates the log in `config.dir` and recovers it: finishes an interrupted cut, checks
    /// every record above the durable offset, makes the accepted ones durable again and cuts off the
    /// rest.
    ///
    /// # Errors
    /// [`Error::Locked`] if another store has the directory; [`Error::Corrupt`] for damage that the
    /// recovery mode does not let pass; [`Error::UnknownFormat`] if a newer version of this crate wrote
    /// it; [`Error::Config`], [`Error::Io`], [`Error::DiskFull`].
    pub fn open(config: LogConfig) -> Result<Self> {
        Self::open_in(config, Environment::default())
    }

    /// The same in another environment: another disk, clock, or without a thread.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_in(config: LogConfig, environment: Environment) -> Result<Self> {
        Self::open_as(config, environment, None)
    }

    /// The same for a log that is replicated, in a role.
    pub(crate) fn open_as(
        config: LogConfig,
        environment: Environment,
        role: Option<Role>,
    ) -> Result<Self> {
        config.validate()?;
        let threads = environment.threads;
        let (bell, heard) = Doorbell::new();
        let (core, report) = Core::open(config, environment, bell.clone(), role)?;
        let mut worker = None;
        if threads == Threads::Own && !core.config.read_only {
            let stepped = core.clone();
            let step = move || stepped.upkeep_step();
            worker = Some(core.spawn(UPKEEP_THREAD, (bell.clone(), heard), step)?);
            bell.ring();
        }
        Ok(Self {
            core,
            worker: Mutex::new(worker),
            report,
            closed: AtomicBool::new(false),
            keeps_lock: AtomicBool::new(false),
            threads,
        })
    }

    /// What recovery found and did.
    pub fn recovery(&self) -> &RecoveryReport {
        &self.report
    }

    /// How records of this log are laid out; what [`Draft::new`] wants.
    pub fn layout(&self) -> &RecordLayout {
        self.core.layout()
    }

    /// Gives the records of `drafts` their offsets, next to each other in one segment.
    ///
    /// Nothing is durable on return, nor, with [`WriteMode::Pwrite`](crate::WriteMode::Pwrite), even in
    /// the page cache: see [`GroupCommit::wait`](super::GroupCommit::wait), or call
    /// [`write`](Self::write) and [`sync`](Self::sync). How long it waits for room or for the next
    /// segment is up to `patience` alone, not to [`LogConfig::put_timeout`].
    ///
    /// # Errors
    /// Nothing was appended: [`Error::TooLarge`] if the records do not fit a segment together,
    /// [`Error::Full`] or [`Error::SegmentNotReady`] when `patience` ends, [`Error::DiskFull`],
    /// [`Error::Io`] if the next segment cannot be created or mapped, [`Error::Latched`],
    /// [`Error::Closed`], [`Error::ReadOnly`], [`Error::InvalidMessage`] without a draft, for one made
    /// for another [`layout`](Self::layout), or for a queue that is full.
    pub fn append(&self, drafts: &[Draft<'_>], patience: Patience) -> Result<Appended> {
        let appended = self.core.append(drafts, patience, false)?;
        self.core.wake_flusher();
        Ok(appended)
    }

    /// Lets the next record of a queue get the queue offset `next`. Without it a queue begins at 0
    /// each time the log is opened: the log alone does not know how its queues end,
    /// [`ConsumeQueue::max_offset`](super::ConsumeQueue::max_offset) does.
    pub fn continue_queue(&self, topic: &str, queue_id: i32, next: u64) {
        self.core.continue_queue(topic, queue_id, next);
    }

    /// Brings everything appended into the page cache: it then survives a kill.
    ///
    /// # Errors
    /// [`Error::Io`] if a segment cannot be written, which latches the log: nothing is appended any
    /// more, and what was on its way may be stored or not. [`Error::Latched`] ever after.
    pub fn write(&self) -> Result<()> {
        self.core.write()
    }

    /// Makes everything written durable: it then survives a power cut.
    ///
    /// # Errors
    /// [`Error::Io`] if the sync fails, which latches the log: nothing is appended any more, and what the
    /// sync should have covered may be stored or not, until the log is reopened. [`Error::Latched`] ever
    /// after.
    pub fn sync(&self) -> Result<()> {
        self.core.sync().map(|_| ())
    }

    /// The record at `physical_offset`, verified; `None` outside of what is written.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if no valid record begins there; [`Error::Io`] if the segment cannot be mapped.
    pub fn read(&self, physical_offset: u64) -> Result<Option<MessageView>> {
        let written = self.core.progress.written();
        let found = self.core.read(physical_offset, true)?;
        Ok(found.filter(|view| physical_offset + view.size() as u64 <= written))
    }

    /// Every record from `physical_offset` on that is in the page cache now, in log order and verified.
    /// An error, as of [`read`](Self::read), ends the iteration.
    pub fn records(&self, physical_offset: u64) -> Records<'_> {
        self.core.verified_records(physical_offset, self.core.progress.written())
    }

    /// How far the log has come.
    pub fn watermarks(&self) -> Watermarks {
        self.core.progress.watermarks()
    }

    /// What the next recovery may rely on, as it was last saved.
    pub fn checkpoint(&self) -> Checkpoint {
        self.core.checkpoint()
    }

    /// Physical offset of the first byte kept.
    pub fn min_offset(&self) -> u64 {
        self.core.min_offset()
    }

    /// One step of the background work that prepares segments and saves the checkpoint. For
    /// [`Threads::Stepped`].
    pub fn step(&self) -> Next {
        self.core.upkeep_step()
    }

    /// Writes and syncs what is left, records that the log was closed cleanly, and stops the thread.
    ///
    /// # Errors
    /// The first failure; the log is closed nonetheless. [`Error::CloseTimeout`] if a thread hangs for
    /// longer than `close_timeout`: the directory then stays locked. A second call returns `Ok`.
    pub fn close(&self) -> Result<()> {
        if self.closed.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        self.core.close_appends();
        let timeout = self.core.config.close_timeout;
        self.stop_upkeep(timeout)?;
        let core = self.core.clone();
        if self.threads == Threads::Stepped {
            return core.shut(false);
        }
        // On a thread of its own: the disk may hang.
        run_bounded(CLOSE_THREAD, timeout, move || core.shut(false))
    }

    /// Closes without writing anything; `keep_lock` if a thread may yet write.
    pub(crate) fn abandon(&self, keep_lock: bool) {
        self.closed.store(true, Ordering::Release);
        self.core.close_appends();
        let timeout = self.core.config.close_timeout;
        let stopped = self.stop_upkeep(timeout);
        let let_go = !keep_lock && stopped.is_ok() && self.core.directory().unlock(timeout);
        self.keeps_lock.store(!let_go, Ordering::Release);
    }

    /// Whether it was closed while a thread hung, and no thread is left now.
    pub(crate) fn may_unlock(&self) -> bool {
        self.keeps_lock.load(Ordering::Acquire) && !self.core.is_running()
    }

    /// Lets another store have what this one kept when it was closed, unless somebody writes there even now.
    pub(crate) fn unlock(&self) {
        let let_go = self.core.directory().unlock(Duration::ZERO);
        self.keeps_lock.store(!let_go, Ordering::Release);
    }

    pub(crate) fn core(&self) -> &Arc<Core> {
        &self.core
    }

    /// Whether this is the thread of the log.
    pub(crate) fn runs_here(&self) -> bool {
        self.worker.lock().as_ref().is_some_and(Worker::runs_here)
    }

    pub(crate) fn stop_upkeep(&self, timeout: Duration) -> Result<()> {
        let worker = self.worker.lock().take();
        worker.map_or(Ok(()), |mut worker| worker.stop(timeout))
    }
}

impl Drop for CommitLog {
    fn drop(&mut self) {
        // Best effort; `close` is how a caller hears of errors.
        let _ = self.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::SimDisk;
    use crate::error::Error;

    #[test]
    fn a_directory_that_somebody_writes_to_is_let_go_of_afterwards() {
        let disk = SimDisk::new(1);
        let open = || {
            let mut config = LogConfig::new("/store").segment_size(4096);
            config.close_timeout = Duration::from_millis(1);
            CommitLog::open_in(config, Environment::on(disk.shared()).stepped())
        };
        let log = open().expect("it opens");
        let held = log.core().directory().hold().expect("it is open");
        let closed = log.core().shut(false);
        assert!(matches!(closed, Err(Error::CloseTimeout { .. })), "{closed:?}");
        log.abandon(false);
        log.unlock();
        assert!(log.may_unlock());
        assert!(matches!(open(), Err(Error::Locked { .. })));
        drop(held);
        log.unlock();
        assert!(!log.may_unlock());
        open().expect("it is let go of");
    }
}
