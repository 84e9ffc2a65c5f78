//! The thread that syncs, whatever decides when.

use super::commit_log::CommitLog;
use super::core::Core;
use crate::environment::Threads;
use crate::error::{Error, Result};
use crate::worker::{Doorbell, Next, Worker};
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;

/// Decides when to sync.
pub(super) trait Policy: Send + std::fmt::Debug + 'static {
    /// Syncs if it is time, and says when to ask again.
    fn step(&mut self, core: &Core) -> Next;
}

/// One policy and the thread it runs on.
#[derive(Debug)]
pub(super) struct Flusher<P> {
    core: Arc<Core>,
    policy: Arc<Mutex<P>>,
    worker: Mutex<Option<Worker>>,
}

impl<P: Policy> Flusher<P> {
    pub(super) fn start(log: &CommitLog, name: &str, policy: P, threads: Threads) -> Result<Self> {
        let core = log.core().clone();
        let (bell, heard) = Doorbell::new();
        if !core.set_flusher(bell.clone()) {
            let (field, value) = ("flusher", name.to_owned());
            return Err(Error::Config { field, value, allowed: "one per commit log" });
        }
        let policy = Arc::new(Mutex::new(policy));
        let mut worker = None;
        if threads == Threads::Own {
            let (stepped, policy) = (core.clone(), policy.clone());
            let step = move || policy.lock().step(&stepped);
            worker = Some(core.spawn(name, (bell, heard), step)?);
        }
        Ok(Self { core, policy, worker: Mutex::new(worker) })
    }

    pub(super) fn core(&self) -> &Core {
        &self.core
    }

    pub(super) fn step(&self) -> Next {
        self.policy.lock().step(&self.core)
    }

    /// Whether this is its thread.
    pub(super) fn runs_here(&self) -> bool {
        self.worker.lock().as_ref().is_some_and(Worker::runs_here)
    }

    /// Stops the thread, waiting at most `timeout`.
    pub(super) fn stop(&self, timeout: Duration) -> Result<()> {
        let worker = self.worker.lock().take();
        worker.map_or(Ok(()), |mut worker| worker.stop(timeout))
    }
}

impl<P> Drop for Flusher<P> {
    fn drop(&mut self) {
        if let Some(mut worker) = self.worker.lock().take() {
            // `stop` is how a caller hears of errors.
            let _ = worker.stop(self.core.config.close_timeout);
        }
    }
}

/// Writes and syncs everything appended so far.
///
/// A failure has latched the log and woken everyone: there is nobody left to tell.
pub(super) fn flush(core: &Core) {
    let _ = core.write().and_then(|()| core.sync());
}
