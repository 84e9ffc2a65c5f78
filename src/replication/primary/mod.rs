//! The node that takes puts.

mod bells;
mod greeting;
mod groups;
mod inquiry;
mod replicator;
mod server;
mod session;

#[cfg(any(test, fuzzing))]
pub(crate) use inquiry::{Inquiry, InquirySession};
pub(crate) use replicator::PrimaryReplicator;
pub(crate) use session::Hub;
#[cfg(any(test, fuzzing))]
pub(crate) use session::PrimarySession;

use super::group::ReplicaStatus;
use super::net::{Acceptor, TcpAcceptor};
use super::options::{PrimaryOptions, Protocol, ReplicaOptions, refused};
use super::replica::{Replica, ReplicaReplicator};
use super::secret::random;
use super::session::SessionError;
use super::{Epoch, LogId, Refusal, ReplicatedLog, Replicator};
use crate::config::StoreConfig;
use crate::environment::Environment;
use crate::error::{Error, IoContext, IoOp, Result};
use crate::store::Store;
use bells::Bells;
#[cfg(not(any(test, fuzzing)))]
use inquiry::{Inquiry, InquirySession};
use replicator::may_be_reigned;
use server::{MakeSession, Server, Service};
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

/// A store whose messages are copied to replicas (feature `replication`).
///
/// Each opening begins an epoch of its own; whoever decides which node is the primary sees to it that
/// there is one at a time, and fences the replicas before another one takes over: see
/// [`Replica::fence`]. Dropping it ends the service of its replicas, also while other handles of its store
/// live on: their puts find no replica any more.
///
/// # Examples
/// A primary and a replica of it in one process:
/// ```
/// use duralog::replication::{NodeId, NodeOptions, Primary, PrimaryOptions, Replica, ReplicaOptions};
/// use duralog::{Message, PutStatus, StoreConfig};
///
/// # let dir = std::env::temp_dir().join(format!("duralog-doc-primary-{}", std::process::id()));
/// # let (here, there) = (dir.join("here"), dir.join("there"));
/// # let config = |dir: &std::path::Path| StoreConfig::new(dir).segment_size(1 << 20);
/// let options = PrimaryOptions::new(NodeOptions::new(NodeId(1)));
/// let primary = Primary::open(config(&here), options)?;
/// let address = primary.listen("127.0.0.1:0")?;
///
/// let options = ReplicaOptions::new(NodeOptions::new(NodeId(2)), address.to_string());
/// let replica = Replica::open(config(&there), options)?;
/// primary.wait_for_replicas(1, std::time::Duration::from_secs(10))?;
///
/// // PutOk: durable here, and durable on the replica.
/// let put = primary.store().put(Message::new("orders", "paid 42"))?;
/// assert_eq!(put.status, PutStatus::PutOk);
/// replica.close()?;
/// primary.close()?;
/// # std::fs::remove_dir_all(&dir).unwrap();
/// # Ok::<(), duralog::Error>(())
/// ```
#[derive(Debug)]
pub struct Primary {
    store: Store,
    replicator: Arc<PrimaryReplicator>,
    environment: Environment,
}

impl Primary {
    /// Opens the store in `config.log.dir` as a primary, and begins a new epoch. It takes puts from now
    /// on, and replicas once it [listens](Self::listen).
    ///
    /// # Errors
    /// As [`Store::open`], and [`Error::Config`] for the options.
    /// [`Refusal::EpochFell`](super::Refusal::EpochFell) if the log knows [`PrimaryOptions::epoch`] or a
    /// later one, or has promised a later one. [`Refusal::TailInDoubt`](super::Refusal::TailInDoubt) without
    /// that option, if the log was not closed in order while puts waited for replicas under async flush;
    /// [`Refusal::NotFenced`](super::Refusal::NotFenced), if it was last a replica's, and is given no epoch.
    pub fn open(config: StoreConfig, options: PrimaryOptions) -> Result<Self> {
        Self::open_in(config, Environment::default(), options)
    }

    /// The same in another environment.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_in(
        config: StoreConfig,
        environment: Environment,
        options: PrimaryOptions,
    ) -> Result<Self> {
        options.validate()?;
        Self::start(config, environment, options)
    }

    fn start(
        config: StoreConfig,
        environment: Environment,
        options: PrimaryOptions,
    ) -> Result<Self> {
        let replicator =
            PrimaryReplicator::new(options, environment.clock.clone(), environment.threads);
        let store = Store::open_replicated(config, environment.clone(), replicator.clone())?;
        Ok(Self { store, replicator, environment })
    }

    /// Opens a store of which [`open`](Self::open) said [`Refusal::TailInDoubt`]: serves `acceptor` until
    /// `replicas` different ones have been heard, takes over what the one that holds most has and this
    /// node lost, and opens the store as a primary. Of `n` replicas, one of any `n - min_insync_replicas
    /// + 1` holds whatever was confirmed: that is how many are to be heard, and none of them with a new or emptied
    /// disk, nor one whose acks mean [`InMemory`](super::AckLevel::InMemory) after a power cut.
    ///
    /// One that holds records of another [log](LogId) is refused, and does not count. `acceptor` is closed on
    /// return: [`listen`](Self::listen) or [`serve`](Self::serve) again.
    ///
    /// # Errors
    /// As [`open`](Self::open), and [`Error::Config`] for no `replicas`: a new
    /// [`PrimaryOptions::epoch`] is what gives up what only they have.
    /// [`Refusal::NotEnoughReplicas`] after `patience`; [`Refusal::NotPrimary`]
    /// if a replica knows a newer epoch, or has more than this node where something was put here without
    /// replication since: then one of the replicas is to be promoted, and this node opened as a [`Replica`]. The
    /// store is closed then, and its tail is still in doubt.
    pub fn recover(
        config: StoreConfig,
        options: PrimaryOptions,
        acceptor: impl Acceptor + 'static,
        replicas: usize,
        patience: Duration,
    ) -> Result<Self> {
        Self::recover_in(config, Environment::default(), options, acceptor, replicas, patience)
    }

    /// The same in another environment, which must have threads of its own.
    ///
    /// # Errors
    /// As [`recover`](Self::recover).
    pub fn recover_in(
        config: StoreConfig,
        environment: Environment,
        options: PrimaryOptions,
        acceptor: impl Acceptor + 'static,
        replicas: usize,
        patience: Duration,
    ) -> Result<Self> {
        options.validate()?;
        if replicas == 0 {
            return refused("replicas", replicas, "at least 1: to ask nobody, give a new epoch");
        }
        let replicator = Arc::new(ReplicaReplicator::default());
        let store =
            Store::open_replicated(config.clone(), environment.clone(), replicator.clone())?;
        let asked = replicator.log().and_then(|log| {
            if options.epoch.is_none() && may_be_reigned(&**log, replicator.begun()) {
                return Err(Error::Refused(Refusal::NotFenced));
            }
            let own = (log.clone(), store.last_reign());
            inquire(&options, own, &environment, acceptor, replicas, patience)
        });
        let flushed = asked.and_then(|()| store.flush());
        let epoch = replicator.log().map(|log| {
            let newest = log.epochs().last().map_or(Epoch(0), |last| last.epoch);
            newest.next()
        });
        let closed = store.close();
        flushed.and(closed)?;
        // Said explicitly, because the doubt lasts until an epoch has begun.
        let mut options = options;
        options.epoch.get_or_insert(epoch?);
        Self::start(config, environment, options)
    }

    /// The store: it takes puts, and gives messages once they are confirmed.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The epoch that this opening began.
    pub fn epoch(&self) -> Epoch {
        self.replicator.hub().map_or(Epoch(0), |hub| hub.epoch.epoch)
    }

    /// Which log it is: that of all its replicas.
    pub fn log_id(&self) -> Option<LogId> {
        self.replicator.hub().map(|hub| hub.log_id)
    }

    /// The newer epoch that ended this one, if a replica told of one: then puts are refused with
    /// [`Refusal::NotPrimary`](super::Refusal::NotPrimary).
    pub fn superseded(&self) -> Option<Epoch> {
        self.replicator.hub().and_then(|hub| hub.superseded())
    }

    /// Serves replicas at a TCP address; where it listens. Port 0 takes a free one.
    ///
    /// # Errors
    /// [`Error::Io`] if the address is not to be had; [`Error::Closed`].
    pub fn listen(&self, address: impl ToSocketAddrs) -> Result<SocketAddr> {
        let acceptor = TcpAcceptor::bind(address).at(IoOp::Open, Path::new("the TCP listener"))?;
        let address = acceptor.address();
        self.serve(acceptor)?;
        Ok(address)
    }

    /// Serves replicas that come by `acceptor`, TLS for instance.
    ///
    /// # Errors
    /// [`Error::Closed`]; [`Error::Io`] if there is no thread to be had.
    pub fn serve(&self, acceptor: impl Acceptor + 'static) -> Result<()> {
        self.replicator.serve(Arc::new(acceptor), Protocol::Duralog)
    }

    /// Serves RocketMQ slaves of the classic HA service, 4.9 or 5, that come by `acceptor`. They know no
    /// secret and no epoch: whoever reaches it is given the log, so it is to be reached by nobody else.
    /// Their acknowledgements count where [`AckLevel::InMemory`](super::AckLevel::InMemory) was chosen,
    /// as one copy for each IP address: see [`PrimaryOptions::min_insync_replicas`]. Otherwise puts that wait
    /// for replicas do not find them in reach.
    /// `segment_size` must be their `mappedFileSizeCommitLog`; one that is empty is started at the last
    /// segment, as RocketMQ does it: what lies before is not on it, though its acknowledgements cover that.
    ///
    /// # Errors
    /// [`Error::Closed`]; [`Error::Io`] if there is no thread to be had.
    pub fn serve_rocketmq(&self, acceptor: impl Acceptor + 'static) -> Result<()> {
        self.replicator.serve(Arc::new(acceptor), Protocol::Rocketmq)
    }

    /// Every replica that was connected since this was opened; of RocketMQ slaves, the connections of now.
    pub fn replicas(&self) -> Vec<ReplicaStatus> {
        self.replicator.hub().map_or_else(Vec::new, |hub| hub.group.status())
    }

    /// Waits until so many replicas are in reach: connected, and not more than `max_replica_lag` behind;
    /// counted as for [`PrimaryOptions::min_insync_replicas`].
    ///
    /// # Errors
    /// [`Refusal::NotEnoughReplicas`](super::Refusal::NotEnoughReplicas) after `patience`; [`Error::Closed`],
    /// also if it gets closed meanwhile.
    pub fn wait_for_replicas(&self, replicas: usize, patience: Duration) -> Result<()> {
        let hub = self.replicator.hub().ok_or(Error::Closed)?;
        let waited = hub.group.wait_for(replicas, hub.log.end(), patience);
        waited.map_err(|refused| match hub.group.is_stopped() {
            true => Error::Closed,
            false => Error::Refused(refused),
        })
    }

    /// Closes the store, when the replicas that are connected have everything or after a second; and
    /// stops serving them.
    ///
    /// # Errors
    /// As [`Store::close`].
    pub fn close(&self) -> Result<()> {
        self.store.close()
    }

    /// Closes this, and opens the store again as a replica of another primary, in the same environment.
    ///
    /// # Errors
    /// As [`close`](Self::close) and [`Replica::open_in`]; the store is closed then.
    pub fn into_replica(self, config: StoreConfig, options: ReplicaOptions) -> Result<Replica> {
        self.close()?;
        let environment = self.environment.clone();
        drop(self);
        Replica::open_in(config, environment, options)
    }
}

/// Asks so many replicas for what the log lost.
fn inquire(
    options: &PrimaryOptions,
    own: (Arc<dyn ReplicatedLog>, Epoch),
    environment: &Environment,
    acceptor: impl Acceptor + 'static,
    replicas: usize,
    patience: Duration,
) -> Result<()> {
    let (node, bells) = (&options.node, Arc::<Bells>::default());
    let inquiry = Inquiry::new(own, node.clone(), replicas, bells.clone());
    let asking = inquiry.clone();
    let make: MakeSession = Box::new(move |id, protocol, _peer, now| match protocol {
        Protocol::Duralog => Ok(Box::new(InquirySession::new(asking.clone(), id, random()?, now))),
        Protocol::Rocketmq => Err(SessionError::Stopped),
    });
    let clock = environment.clock.clone();
    // Without an epoch there is nothing to be ended.
    let (node, superseded) = (node.clone(), Box::new(|| None));
    let told = AtomicU64::default();
    let service = Service { node, clock, bells, rest: None, make, superseded, told };
    let server = Server::start(service)?;
    let served = server.serve(Arc::new(acceptor), Protocol::Duralog);
    let outcome = served.and_then(|()| inquiry.wait(patience).map_err(Error::Refused));
    server.stop();
    match outcome? {
        Ok(()) => Ok(()),
        Err(SessionError::Log(error)) => Err(error),
        Err(_) => Err(Error::Refused(Refusal::NotPrimary)),
    }
}

impl Drop for Primary {
    fn drop(&mut self) {
        // Other handles of the store may live on; replicas are served no longer.
        self.replicator.stop();
    }
}
