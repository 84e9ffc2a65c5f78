//! What a primary answers to its store.

use super::server::Server;
use super::session::Hub;
use crate::clock::Clock;
use crate::environment::Threads;
use crate::error::{Error, Result};
use crate::replication::group::{Group, SessionId};
use crate::replication::net::Acceptor;
use crate::replication::options::{Ack, PrimaryOptions, Protocol};
use crate::replication::{
    Admission, Confirmation, Epoch, Refusal, ReplicatedLog, Replicator, StartPoint,
};
use crate::worker::Alarm;
use parking_lot::{Mutex, RwLock};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// How long a store that closes waits for its replicas.
const DRAIN_MAX: Duration = Duration::from_secs(1);

/// What the store's side and the connections share.
pub(super) struct Shared {
    pub(super) options: PrimaryOptions,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) hub: OnceLock<Arc<Hub>>,
    senders: RwLock<Vec<(SessionId, Arc<Alarm>)>>,
}

impl Shared {
    /// Rings `alarm` when there is something to send.
    pub(super) fn wake(&self, session: SessionId, alarm: Arc<Alarm>) {
        self.senders.write().push((session, alarm));
        self.ring_all();
    }

    pub(super) fn forget(&self, session: SessionId) {
        self.senders.write().retain(|(other, _)| *other != session);
    }

    fn ring_all(&self) {
        for (_, alarm) in self.senders.read().iter() {
            alarm.ring();
        }
    }
}

/// The primary's side of the seam: it admits puts and wakes those who send them on.
pub(crate) struct PrimaryReplicator {
    shared: Arc<Shared>,
    threads: Threads,
    /// Behind the last byte that was written, about: what the next put is measured by.
    written: AtomicU64,
    server: Mutex<Option<Arc<Server>>>,
}

impl fmt::Debug for PrimaryReplicator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PrimaryReplicator")
            .field("options", &self.shared.options)
            .field("group", &self.shared.hub.get().map(|hub| &hub.group))
            .finish_non_exhaustive()
    }
}

impl PrimaryReplicator {
    pub(crate) fn new(
        options: PrimaryOptions,
        clock: Arc<dyn Clock>,
        threads: Threads,
    ) -> Arc<Self> {
        let (hub, senders) = (OnceLock::new(), RwLock::default());
        Arc::new(Self {
            shared: Arc::new(Shared { options, clock, hub, senders }),
            threads,
            written: AtomicU64::new(0),
            server: Mutex::new(None),
        })
    }

    /// What the sessions share, once the store is open.
    pub(crate) fn hub(&self) -> Option<&Arc<Hub>> {
        self.shared.hub.get()
    }

    pub(super) fn serve(&self, acceptor: Arc<dyn Acceptor>, protocol: Protocol) -> Result<()> {
        let server = self.server.lock().clone().ok_or(Error::Closed)?;
        server.serve(acceptor, protocol)
    }
}

impl Replicator for PrimaryReplicator {
    fn start(&self, log: Arc<dyn ReplicatedLog>, at: StartPoint) -> Result<u64> {
        let options = &self.shared.options;
        let node = &options.node;
        let epoch = match options.epoch {
            Some(epoch) => epoch,
            None => Epoch(at.epoch.0 + 1),
        };
        let epoch = log.begin_epoch(epoch, node.node)?;
        let confirmed = log.confirmed();
        let group = Group::new(options.policy(), confirmed);
        let gate = (node.cluster, node.secret.clone());
        self.written.store(at.end, Ordering::Relaxed);
        let hub = Hub::new(log, group, epoch, gate, node.heartbeat_interval);
        self.shared.hub.get_or_init(|| Arc::new(hub));
        if self.threads == Threads::Own {
            *self.server.lock() = Some(Server::start(self.shared.clone())?);
        }
        Ok(match options.ack {
            Ack::Sync => confirmed,
            Ack::Async => u64::MAX,
        })
    }

    fn admit(&self) -> Result<Admission, Refusal> {
        let options = &self.shared.options;
        let hub = self.hub().ok_or(Refusal::Stopped)?;
        if hub.superseded().is_some() {
            return Err(Refusal::NotPrimary);
        }
        let confirmation = match options.ack {
            Ack::Async => Confirmation::NotAsked,
            Ack::Sync if hub.group.reaches(self.written.load(Ordering::Relaxed)) => {
                Confirmation::Awaited
            }
            Ack::Sync if options.strict => {
                let available = hub.group.connected();
                let required = options.min_insync_replicas;
                return Err(Refusal::NotEnoughReplicas { available, required });
            }
            Ack::Sync => Confirmation::OutOfReach,
        };
        Ok(Admission { epoch: hub.epoch.epoch, confirmation })
    }

    fn on_written(&self, end: u64) {
        self.written.fetch_max(end, Ordering::SeqCst);
        self.shared.ring_all();
    }

    fn on_durable(&self, _end: u64) {}

    fn retention_floor(&self) -> u64 {
        self.hub().map_or(u64::MAX, |hub| hub.group.floor(self.written.load(Ordering::Relaxed)))
    }

    fn stop(&self) {
        let server = self.server.lock().take();
        if let (Some(server), Some(hub)) = (server, self.hub()) {
            // Everything is durable here by now: a replica that is promoted next should have it, too.
            hub.group.drain(hub.log.end(), DRAIN_MAX);
            server.stop();
        }
    }
}
