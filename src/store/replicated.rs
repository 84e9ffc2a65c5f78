//! The seam to a replicator: what it is told, and what it may ask and say.

use super::Shared;
use crate::error::{Error, Result};
use crate::log::Core;
use crate::replication::{Epoch, LogSlice, Refusal, ReplicatedLog, Replicator, StartPoint};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

impl Shared {
    pub(super) fn start_replicator(&self, replicator: &Arc<dyn Replicator>) -> Result<()> {
        let progress = &self.core.progress;
        let end = progress.durable();
        // What was recovered is in the queues already and stays visible.
        progress.require_confirmation(end);
        let log =
            Arc::new(LogHandle { core: Arc::downgrade(&self.core), epoch: AtomicU64::new(0) });
        let at =
            StartPoint { min_offset: self.core.min_offset(), end, epoch: Epoch(self.core.epoch()) };
        let epoch = replicator.start(log.clone(), at)?;
        if epoch < at.epoch {
            replicator.stop();
            return Err(Error::Refused(Refusal::EpochFell { was: at.epoch, is: epoch }));
        }
        log.epoch.store(epoch.0, Ordering::Release);
        // Durable before anything is written under it.
        self.core.begin_epoch(epoch.0).inspect_err(|_| replicator.stop())?;
        self.core.set_replicator(replicator.clone());
        Ok(())
    }
}

/// The log, as a replicator holds it: it does not keep a closed store alive.
#[derive(Debug)]
struct LogHandle {
    core: Weak<Core>,
    epoch: AtomicU64,
}

impl ReplicatedLog for LogHandle {
    fn end(&self) -> u64 {
        self.core.upgrade().map_or(0, |core| core.progress.written())
    }

    fn durable(&self) -> u64 {
        self.core.upgrade().map_or(0, |core| core.progress.durable())
    }

    fn read(&self, from: u64, max: u64) -> Result<LogSlice> {
        self.core.upgrade().ok_or(Error::Closed)?.slice(from, max)
    }

    fn confirm(&self, end: u64, epoch: Epoch) -> Result<()> {
        if epoch.0 != self.epoch.load(Ordering::Acquire) {
            return Err(Error::Refused(Refusal::NotPrimary));
        }
        let core = self.core.upgrade().ok_or(Error::Closed)?;
        core.progress.set_confirmed(end.min(core.progress.appended()));
        Ok(())
    }
}
