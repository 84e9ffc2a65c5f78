//! What a replica answers to its store.

use crate::error::{Error, Result};
use crate::replication::{Admission, Epoch, Refusal, ReplicatedLog, Replicator, Role, StartPoint};
use crate::worker::{Alarm, Doorbell};
use parking_lot::RwLock;
use std::sync::{Arc, OnceLock};

/// The replica's side of the seam: it refuses puts, and wakes whoever tells the primary what is here.
#[derive(Debug, Default)]
pub(crate) struct ReplicaReplicator {
    log: OnceLock<Arc<dyn ReplicatedLog>>,
    begun: OnceLock<Epoch>,
    /// Rung when more is written or durable.
    alarm: RwLock<Option<Arc<Alarm>>>,
}

impl ReplicaReplicator {
    /// The log, once the store is open.
    pub(crate) fn log(&self) -> Result<&Arc<dyn ReplicatedLog>> {
        self.log.get().ok_or(Error::Closed)
    }

    /// The newest epoch that this node had begun itself, if nobody else had since.
    pub(crate) fn begun(&self) -> Epoch {
        self.begun.get().copied().unwrap_or_default()
    }

    /// An alarm that rings `bell` from now on, in place of the one before.
    pub(super) fn new_alarm(&self, bell: Doorbell) -> Arc<Alarm> {
        let alarm = Arc::new(Alarm::default());
        alarm.connect(bell);
        *self.alarm.write() = Some(alarm.clone());
        alarm
    }

    fn ring(&self) {
        if let Some(alarm) = &*self.alarm.read() {
            alarm.ring();
        }
    }
}

impl Replicator for ReplicaReplicator {
    fn role(&self) -> Role {
        Role::Replica
    }

    fn start(&self, log: Arc<dyn ReplicatedLog>, at: StartPoint) -> Result<u64> {
        let confirmed = log.confirmed();
        self.begun.get_or_init(|| at.begun);
        self.log.get_or_init(|| log);
        Ok(confirmed)
    }

    fn admit(&self) -> Result<Admission, Refusal> {
        Err(Refusal::NotPrimary)
    }

    fn on_written(&self, _end: u64) {
        self.ring();
    }

    fn on_durable(&self, _end: u64) {
        self.ring();
    }

    fn stop(&self) {}
}
