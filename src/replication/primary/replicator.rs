//! What a primary answers to its store.

use super::server::{MakeSession, Server, Service};
use super::session::{Hub, PrimarySession};
use crate::clock::Clock;
use crate::environment::Threads;
use crate::error::{Error, Result};
use crate::replication::group::Group;
use crate::replication::net::Acceptor;
use crate::replication::options::{Ack, PrimaryOptions, Protocol};
use crate::replication::rocketmq::MasterSession;
use crate::replication::secret::random;
use crate::replication::{
    Admission, Confirmation, Epoch, Refusal, ReplicatedLog, Replicator, StartPoint,
};
use parking_lot::Mutex;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// How long a store that closes waits for its replicas.
const DRAIN_MAX: Duration = Duration::from_secs(1);

/// How long a sender rests when nobody waits for it: to be woken for each put costs the producer more
/// than the put. Not longer, or what was put is no longer in the cache when it is sent.
const REST: Duration = Duration::from_micros(250);

/// The primary's side of the seam: it admits puts and wakes those who send them on.
pub(crate) struct PrimaryReplicator {
    options: PrimaryOptions,
    clock: Arc<dyn Clock>,
    threads: Threads,
    hub: OnceLock<Arc<Hub>>,
    /// Behind the last byte that was written, about: what the next put is measured by.
    written: AtomicU64,
    server: Mutex<Option<Arc<Server>>>,
}

impl fmt::Debug for PrimaryReplicator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PrimaryReplicator")
            .field("options", &self.options)
            .field("group", &self.hub().map(|hub| &hub.group))
            .finish_non_exhaustive()
    }
}

impl PrimaryReplicator {
    pub(crate) fn new(
        options: PrimaryOptions,
        clock: Arc<dyn Clock>,
        threads: Threads,
    ) -> Arc<Self> {
        Arc::new(Self {
            options,
            clock,
            threads,
            hub: OnceLock::new(),
            written: AtomicU64::new(0),
            server: Mutex::new(None),
        })
    }

    /// What the sessions share, once the store is open.
    pub(crate) fn hub(&self) -> Option<&Arc<Hub>> {
        self.hub.get()
    }

    pub(super) fn serve(&self, acceptor: Arc<dyn Acceptor>, protocol: Protocol) -> Result<()> {
        let server = self.server.lock().clone().ok_or(Error::Closed)?;
        server.serve(acceptor, protocol)
    }
}

/// Whether another primary of this log may be at work, whose the next epoch is; `begun` is the newest that
/// this node has begun.
pub(super) fn may_be_reigned(log: &dyn ReplicatedLog, begun: Epoch) -> bool {
    begun == Epoch(0) && log.log_id().is_some() && !log.is_fenced()
}

impl Replicator for PrimaryReplicator {
    fn start(&self, log: Arc<dyn ReplicatedLog>, at: StartPoint) -> Result<u64> {
        let options = &self.options;
        let node = &options.node;
        let epoch = match options.epoch {
            Some(epoch) => epoch,
            None if at.in_doubt && !canary!("tail_trusted") => {
                return Err(Error::Refused(Refusal::TailInDoubt));
            }
            None if may_be_reigned(&*log, at.begun) => {
                return Err(Error::Refused(Refusal::NotFenced));
            }
            // Refused by the log if it has promised a newer one to someone.
            None => at.epoch.max(at.begun).next(),
        };
        let epoch = log.begin_epoch(epoch, node.node)?;
        let log_id = log.log_id().ok_or(Error::Closed)?;
        let confirmed = log.confirmed();
        let group = Group::new(options.policy(), confirmed);
        self.written.store(at.end, Ordering::Relaxed);
        let hub = Hub::new(log, group, log_id, epoch, options, at.lazy);
        let hub = self.hub.get_or_init(|| Arc::new(hub)).clone();
        if self.threads == Threads::Own {
            let (bells, reigning) = (hub.bells.clone(), hub.clone());
            let make: MakeSession = Box::new(move |id, protocol, peer, now| {
                Ok(match protocol {
                    Protocol::Duralog => {
                        Box::new(PrimarySession::new(hub.clone(), id, random()?, now))
                    }
                    Protocol::Rocketmq => Box::new(MasterSession::new(hub.clone(), id, peer, now)),
                })
            });
            let service = Service {
                node: node.clone(),
                clock: self.clock.clone(),
                bells,
                rest: (options.ack == Ack::Async).then_some(REST),
                make,
                superseded: Box::new(move || reigning.superseded()),
                told: AtomicU64::default(),
            };
            *self.server.lock() = Some(Server::start(service)?);
        }
        Ok(match options.ack {
            Ack::Sync => confirmed,
            Ack::Async => u64::MAX,
        })
    }

    fn admit(&self) -> Result<Admission, Refusal> {
        let options = &self.options;
        let hub = self.hub().ok_or(Refusal::Stopped)?;
        if hub.superseded().is_some() {
            return Err(Refusal::NotPrimary);
        }
        let written = self.written.load(Ordering::Relaxed);
        let confirmation = match options.ack {
            Ack::Async => Confirmation::NotAsked,
            Ack::Sync if hub.group.reaches(written) => Confirmation::Awaited,
            Ack::Sync if options.strict => {
                let available = hub.group.in_reach(written);
                let required = options.min_insync_replicas;
                return Err(Refusal::NotEnoughReplicas { available, required });
            }
            Ack::Sync => Confirmation::OutOfReach,
        };
        Ok(Admission { epoch: hub.epoch.epoch, confirmation })
    }

    fn on_written(&self, end: u64) {
        self.written.fetch_max(end, Ordering::SeqCst);
        if let Some(hub) = self.hub() {
            hub.bells.ring_all();
        }
    }

    fn on_durable(&self, _end: u64) {
        if let Some(hub) = self.hub() {
            // Only a log that is gone refuses it.
            let _ = hub.publish();
        }
    }

    fn retention_floor(&self) -> u64 {
        self.hub().map_or(u64::MAX, |hub| hub.group.floor(self.written.load(Ordering::Relaxed)))
    }

    fn stop(&self) {
        let server = self.server.lock().take();
        if let (Some(server), Some(hub)) = (server, self.hub()) {
            // Everything is durable here by now: a replica that is promoted next should have it, too.
            hub.group.drain(hub.log.end(), DRAIN_MAX);
            hub.group.stop();
            server.stop();
        }
    }
}
