//! Ends of connections without sockets and threads, for the fuzz targets. Built with `--cfg fuzzing`
//! alone, which `cargo fuzz` gives, and no part of the crate's interface.

use super::inbox::Inbox;
use super::primary::{Inquiry, InquirySession, PrimaryReplicator, PrimarySession};
use super::replica::{Identity, ReplicaReplicator, ReplicaSession};
use super::rocketmq::{MasterSession, SlaveSession};
use super::session::{Session, SessionError};
use super::wire::{FRAME_MAX, next_frame};
use super::{NodeOptions, PrimaryOptions, Protocol, ReplicatedLog};
use crate::environment::Environment;
use crate::error::{Error, Result};
use crate::{Store, StoreConfig};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// One end, and the store behind it.
pub struct End {
    store: Store,
    log: Arc<dyn ReplicatedLog>,
    /// What time the session takes it to be; for the store it stands still.
    now: Instant,
    session: Box<dyn Session>,
    inbox: Inbox,
}

impl fmt::Debug for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("End").field("store", &self.store).finish_non_exhaustive()
    }
}

impl End {
    /// The end of a primary that someone has connected to.
    ///
    /// # Errors
    /// As [`Store::open_replicated`].
    pub fn serve(
        config: StoreConfig,
        environment: Environment,
        options: PrimaryOptions,
        protocol: Protocol,
        nonce: [u8; 16],
    ) -> Result<Self> {
        let (clock, threads) = (environment.clock.clone(), environment.threads);
        let replicator = PrimaryReplicator::new(options, clock.clone(), threads);
        let store = Store::open_replicated(config, environment, replicator.clone())?;
        let hub = replicator.hub().ok_or(Error::Closed)?.clone();
        let (log, now) = (hub.log.clone(), clock.now());
        let session: Box<dyn Session> = match protocol {
            Protocol::Duralog => Box::new(PrimarySession::new(hub, 1, nonce, now)),
            Protocol::Rocketmq => Box::new(MasterSession::new(hub, 1, "", now)),
        };
        Ok(Self { store, log, now, session, inbox: Inbox::default() })
    }

    /// The end of a replica that has connected to someone.
    ///
    /// # Errors
    /// As [`Store::open_replicated`].
    pub fn follow(
        config: StoreConfig,
        environment: Environment,
        node: &NodeOptions,
        protocol: Protocol,
        nonce: [u8; 16],
    ) -> Result<Self> {
        let clock = environment.clock.clone();
        let replicator = Arc::new(ReplicaReplicator::default());
        let store = Store::open_replicated(config, environment, replicator.clone())?;
        let (log, now) = (replicator.log()?.clone(), clock.now());
        let identity = Identity {
            cluster: node.cluster,
            node: node.node,
            instance: 1,
            secret: node.secret.clone(),
            heartbeat: node.heartbeat_interval,
        };
        let session: Box<dyn Session> = match protocol {
            Protocol::Duralog => Box::new(ReplicaSession::new(log.clone(), identity, nonce, now)),
            Protocol::Rocketmq => Box::new(SlaveSession::new(log.clone(), identity.heartbeat, now)),
        };
        Ok(Self { store, log, now, session, inbox: Inbox::default() })
    }

    /// Whether the other has said who it is, and was heard.
    pub fn is_introduced(&self) -> bool {
        self.session.is_introduced()
    }

    /// The connection is gone.
    pub fn hang_up(mut self) {
        self.session.leave();
    }

    /// The store.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The log.
    pub fn log(&self) -> &dyn ReplicatedLog {
        &*self.log
    }

    /// Lets time pass.
    pub fn wait(&mut self, time: Duration) {
        self.now += time;
    }

    /// All there is to say now.
    ///
    /// # Errors
    /// The session is over.
    pub fn say(&mut self) -> Result<Vec<u8>, SessionError> {
        let mut said = Vec::new();
        while let Some(outgoing) = self.session.poll(self.now)? {
            said.extend_from_slice(&outgoing.head);
            said.extend_from_slice(outgoing.body());
        }
        Ok(said)
    }

    /// Hears this; whether the log was given an order, after which it has to be opened again.
    ///
    /// # Errors
    /// The session is over.
    pub fn hear(&mut self, mut bytes: &[u8]) -> Result<bool, SessionError> {
        while !bytes.is_empty() {
            self.inbox.fill(&mut bytes)?;
            let Some(order) = self.session.receive(&mut self.inbox, self.now)? else {
                continue;
            };
            order.give(&*self.log)?;
            return Ok(true);
        }
        Ok(false)
    }

    /// What the peer is told when the session ends with `error`.
    pub fn last_words(&self, error: &SessionError) -> Option<Vec<u8>> {
        self.session.farewell(error)
    }
}

/// A primary that asks its replicas for what it lost.
pub struct Asking {
    store: Store,
    log: Arc<dyn ReplicatedLog>,
    inquiry: Arc<Inquiry>,
    now: Instant,
    nonce: [u8; 16],
    accepted: u64,
}

impl fmt::Debug for Asking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Asking").field("store", &self.store).finish_non_exhaustive()
    }
}

impl Asking {
    /// One that has to hear so many of them.
    ///
    /// # Errors
    /// As [`Store::open_replicated`].
    pub fn open(
        config: StoreConfig,
        environment: Environment,
        node: &NodeOptions,
        replicas: usize,
        nonce: [u8; 16],
    ) -> Result<Self> {
        let now = environment.clock.now();
        let replicator = Arc::new(ReplicaReplicator::default());
        let store = Store::open_replicated(config, environment, replicator.clone())?;
        let log = replicator.log()?.clone();
        let inquiry =
            Inquiry::new((log.clone(), store.last_reign()), node.clone(), replicas, Arc::default());
        Ok(Self { store, log, inquiry, now, nonce, accepted: 0 })
    }

    /// The end of one more connection.
    pub fn accept(&mut self) -> End {
        self.accepted += 1;
        let (inquiry, now) = (self.inquiry.clone(), self.now);
        let session = InquirySession::new(inquiry, self.accepted, self.nonce, now);
        let (store, log) = (self.store.clone(), self.log.clone());
        End { store, log, now, session: Box::new(session), inbox: Inbox::default() }
    }

    /// What has come of it, once something has.
    pub fn outcome(&self) -> Option<Result<(), SessionError>> {
        self.inquiry.wait(Duration::ZERO).ok()
    }
}

/// Reads all frames at the front of `bytes`, each of which must be what it is written as.
pub fn read_frames(mut bytes: &[u8]) {
    let (mut inbox, mut whole, all) = (Inbox::default(), 0, bytes);
    loop {
        match next_frame(&mut inbox, FRAME_MAX) {
            Ok(Some(frame)) => {
                let written = frame.encode();
                assert_eq!(all.get(whole..whole + written.len()), Some(&written[..]));
                whole += written.len();
            }
            Ok(None) => match inbox.fill(&mut bytes) {
                Ok(1..) => {}
                _ => return,
            },
            Err(_) => return,
        }
    }
}
