//! Async flush: puts do not wait, but no byte waits for longer than the interval until a sync starts that
//! covers it, unless the sync before takes longer.

use super::commit_log::CommitLog;
use super::core::Core;
use super::flusher::{Flusher, Policy, flush};
use crate::environment::Threads;
use crate::error::Result;
use crate::worker::Next;
use std::time::{Duration, Instant};

/// Name of the thread that syncs.
const THREAD: &str = "duralog-sync";
/// RocketMQ's page, in which `least_pages` counts.
const PAGE: u64 = 4096;
/// Bounds of both intervals.
const INTERVAL_MIN: Duration = Duration::from_millis(1);
const INTERVAL_MAX: Duration = Duration::from_secs(3600 * 24 * 365);
/// While bytes wait, they are counted so many times an interval.
const LOOKS_PER_INTERVAL: u32 = 10;

/// Makes a [`CommitLog`] durable at intervals.
///
/// Dropping it stops the thread; [`CommitLog::close`] syncs what is left.
#[derive(Debug)]
pub struct IntervalFlush {
    flusher: Flusher<Interval>,
}

impl IntervalFlush {
    /// Starts the thread `duralog-sync` for `log`, with the meaning of
    /// [`FlushMode::Async`](crate::FlushMode::Async). Intervals below a millisecond or above a year
    /// count as these.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) if the log has a flusher, or has had one;
    /// [`Error::Io`](crate::Error::Io) if no thread can be had.
    pub fn start(
        log: &CommitLog,
        interval: Duration,
        least_pages: u32,
        thorough: Duration,
    ) -> Result<Self> {
        Self::start_with(log, interval, least_pages, thorough, Threads::Own)
    }

    pub(crate) fn start_with(
        log: &CommitLog,
        interval: Duration,
        least_pages: u32,
        thorough: Duration,
        threads: Threads,
    ) -> Result<Self> {
        let [interval, thorough] =
            [interval, thorough].map(|time| time.clamp(INTERVAL_MIN, INTERVAL_MAX));
        let last_sync = log.core().clock.now();
        let policy = Interval { interval, least_pages, thorough, waiting_since: None, last_sync };
        Ok(Self { flusher: Flusher::start(log, THREAD, policy, threads)? })
    }

    /// Stops the thread.
    ///
    /// # Errors
    /// [`Error::CloseTimeout`](crate::Error::CloseTimeout) if it hangs in a sync.
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

#[derive(Debug)]
struct Interval {
    interval: Duration,
    least_pages: u32,
    thorough: Duration,
    /// When the oldest unsynced byte was first seen.
    waiting_since: Option<Instant>,
    /// When the last sync began, or the thread.
    last_sync: Instant,
}

impl Policy for Interval {
    fn step(&mut self, core: &Core) -> Next {
        let pending = core.progress.appended().saturating_sub(core.progress.durable());
        if !core.has_unsynced() {
            self.waiting_since = None;
            return core.flusher_sleeps();
        }
        let now = core.clock.now();
        let since = *self.waiting_since.get_or_insert(now);
        let due = if core.take_flush_wanted() { now } else { self.due(since, pending) };
        if now < due {
            // Nobody rings while bytes wait, so look now and then whether there are enough.
            return Next::At(due.min(now + self.interval / LOOKS_PER_INTERVAL));
        }
        // What is appended while the sync runs waits from now on, not from when it ends.
        self.waiting_since = Some(now);
        self.last_sync = now;
        flush(core);
        Next::Now
    }
}

impl Interval {
    /// When the sync for bytes that wait since `since` is due.
    fn due(&self, since: Instant, pending: u64) -> Instant {
        let enough = self.least_pages > 0 && pending >= u64::from(self.least_pages) * PAGE;
        if enough {
            // They wait for the interval of the last sync to end, not for their own.
            self.last_sync + self.interval
        } else {
            // RocketMQ's way is to wait for the long interval.
            since + self.thorough.max(self.interval)
        }
    }
}
