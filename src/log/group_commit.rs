//! Sync flush: one sync for all who wait, and an answer by everyone's deadline.

use super::commit_log::CommitLog;
use super::core::{Appended, Core};
use super::flusher::{Flusher, Policy, flush};
use super::progress::{Need, Reached, Waited};
use crate::environment::Threads;
use crate::error::{Error, Result};
use crate::worker::Next;
use std::time::Duration;

/// Name of the thread that syncs.
const THREAD: &str = "duralog-sync";
/// A longer timeout than this is none.
const TIMEOUT_MAX: Duration = Duration::from_secs(3600 * 24 * 365);

/// Makes a [`CommitLog`] durable for those who wait, one sync per group.
///
/// While a sync runs, the next group forms; it is synced as soon as the disk is free. Waiting for more
/// to come would gain nothing: producers that come back find the disk busy and form the group after.
/// Only where they wait for replicas, too, the processor is offered to others before a sync begins.
///
/// Dropping it stops the thread; [`CommitLog::close`] syncs what is left. [`CommitLog`] has an example.
#[derive(Debug)]
pub struct GroupCommit {
    flusher: Flusher<Grouped>,
    timeout: Duration,
}

impl GroupCommit {
    /// Starts the thread `duralog-sync` for `log`. [`wait`](Self::wait) gives up after `timeout`.
    ///
    /// # Errors
    /// [`Error::Config`] if the log has a flusher, or has had one; [`Error::Io`] if no thread can be had.
    pub fn start(log: &CommitLog, timeout: Duration) -> Result<Self> {
        Self::start_with(log, timeout, Threads::Own)
    }

    pub(crate) fn start_with(log: &CommitLog, timeout: Duration, threads: Threads) -> Result<Self> {
        Ok(Self {
            flusher: Flusher::start(log, THREAD, Grouped, threads)?,
            timeout: timeout.min(TIMEOUT_MAX),
        })
    }

    /// Waits until what was appended is durable; how far it has come when the wait ends.
    ///
    /// Anything below [`Reached::Durable`] means that the timeout passed: not lost, only not durable
    /// yet. Waiting again is allowed.
    ///
    /// # Errors
    /// [`Error::Unknown`] if a write or sync failed before the bytes were durable.
    pub fn wait(&self, appended: &Appended) -> Result<Reached> {
        let core = self.flusher.core();
        core.wake_flusher();
        let deadline = core.clock.now() + self.timeout;
        let need = Need { durable: true, confirmed: false };
        match core.progress.wait(appended.end, need, appended.group, Some(deadline)) {
            Waited::Met => Ok(Reached::Durable),
            Waited::TimedOut => Ok(core.progress.reached(appended.end)),
            Waited::Latched(first) => {
                Err(Error::Unknown { physical_offset: appended.physical_offset, first })
            }
        }
    }

    /// Stops the thread. [`CommitLog::close`] syncs what is left.
    ///
    /// # Errors
    /// [`Error::CloseTimeout`] if it hangs in a sync for longer than `close_timeout`.
    pub fn stop(&self) -> Result<()> {
        self.stop_within(self.flusher.core().config.close_timeout)
    }

    pub(crate) fn stop_within(&self, timeout: Duration) -> Result<()> {
        self.flusher.stop(timeout)
    }

    /// Whether this is its thread.
    pub(crate) fn runs_here(&self) -> bool {
        self.flusher.runs_here()
    }

    /// One step of the thread's work, for [`Threads::Stepped`].
    pub(crate) fn step(&self) -> Next {
        self.flusher.step()
    }
}

/// Syncs whenever there is something to sync.
#[derive(Debug)]
struct Grouped;

impl Policy for Grouped {
    fn step(&mut self, core: &Core) -> Next {
        if !core.has_unsynced() {
            return core.flusher_sleeps();
        }
        if core.progress.expects_replicated_group() {
            // Producers come back one by one when a replica has answered, and that takes longer than the
            // disk: whoever is about to run joins this group, and there are fewer of them.
            std::thread::yield_now();
        }
        flush(core);
        Next::Now
    }
}
