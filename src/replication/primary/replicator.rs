//! What a primary answers to its store.

use super::session::Hub;
use crate::error::Result;
use crate::replication::group::{Group, SessionId};
use crate::replication::options::{Ack, PrimaryOptions};
use crate::replication::{
    Admission, Confirmation, Epoch, Refusal, ReplicatedLog, Replicator, StartPoint,
};
use crate::worker::Alarm;
use parking_lot::RwLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

/// The primary's side of the seam: it admits puts and wakes those who send them on.
#[derive(Debug)]
pub(crate) struct PrimaryReplicator {
    options: PrimaryOptions,
    hub: OnceLock<Arc<Hub>>,
    /// Behind the last byte that was written, about: what the next put is measured by.
    written: AtomicU64,
    senders: RwLock<Vec<(SessionId, Arc<Alarm>)>>,
    stopped: AtomicBool,
}

impl PrimaryReplicator {
    pub(crate) fn new(options: PrimaryOptions) -> Arc<Self> {
        Arc::new(Self {
            options,
            hub: OnceLock::new(),
            written: AtomicU64::new(0),
            senders: RwLock::default(),
            stopped: AtomicBool::new(false),
        })
    }

    /// What the sessions share, once the store is open.
    pub(crate) fn hub(&self) -> Option<&Arc<Hub>> {
        self.hub.get()
    }

    /// Rings `alarm` when there is something to send.
    pub(crate) fn wake(&self, session: SessionId, alarm: Arc<Alarm>) {
        self.senders.write().push((session, alarm));
    }

    pub(crate) fn forget(&self, session: SessionId) {
        self.senders.write().retain(|(other, _)| *other != session);
    }

    pub(crate) fn ring_all(&self) {
        for (_, alarm) in self.senders.read().iter() {
            alarm.ring();
        }
    }
}

impl Replicator for PrimaryReplicator {
    fn start(&self, log: Arc<dyn ReplicatedLog>, at: StartPoint) -> Result<u64> {
        let node = &self.options.node;
        let epoch = match self.options.epoch {
            _ if cfg!(canary = "epoch_twice") && at.epoch > Epoch(0) => at.epoch,
            Some(epoch) => epoch,
            None => Epoch(at.epoch.0 + 1),
        };
        let epoch = log.begin_epoch(epoch, node.node)?;
        let confirmed = log.confirmed();
        let group = Group::new(self.options.policy(), confirmed);
        let gate = (node.cluster, node.secret.clone());
        self.written.store(at.end, Ordering::Relaxed);
        self.hub
            .get_or_init(|| Arc::new(Hub::new(log, group, epoch, gate, node.heartbeat_interval)));
        Ok(match self.options.ack {
            Ack::Sync => confirmed,
            Ack::Async => u64::MAX,
        })
    }

    fn admit(&self) -> Result<Admission, Refusal> {
        let hub = self.hub.get().ok_or(Refusal::Stopped)?;
        if hub.superseded().is_some() {
            return Err(Refusal::NotPrimary);
        }
        let confirmation = match self.options.ack {
            Ack::Async => Confirmation::NotAsked,
            Ack::Sync if hub.group.reaches(self.written.load(Ordering::Relaxed)) => {
                Confirmation::Awaited
            }
            Ack::Sync if self.options.strict => {
                let available = hub.group.connected();
                let required = self.options.min_insync_replicas;
                return Err(Refusal::NotEnoughReplicas { available, required });
            }
            Ack::Sync => Confirmation::OutOfReach,
        };
        Ok(Admission { epoch: hub.epoch.epoch, confirmation })
    }

    fn on_written(&self, end: u64) {
        self.written.fetch_max(end, Ordering::SeqCst);
        self.ring_all();
    }

    fn on_durable(&self, _end: u64) {}

    fn retention_floor(&self) -> u64 {
        self.hub.get().map_or(u64::MAX, |hub| hub.group.floor(self.written.load(Ordering::Relaxed)))
    }

    fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
    }
}
