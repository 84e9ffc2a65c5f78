//! The node that takes puts.

mod replicator;
mod server;
mod session;

pub(crate) use replicator::PrimaryReplicator;
#[cfg(test)]
pub(crate) use session::PrimarySession;
pub(crate) use session::{Hub, unexpected};

use super::group::ReplicaStatus;
use super::net::{Acceptor, TcpAcceptor};
use super::options::{PrimaryOptions, Protocol, ReplicaOptions};
use super::replica::Replica;
use super::{Epoch, Replicator};
use crate::config::StoreConfig;
use crate::environment::Environment;
use crate::error::{Error, IoContext, IoOp, Result};
use crate::store::Store;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::Path;
use std::sync::Arc;

/// A store whose messages are copied to replicas (feature `replication`).
///
/// Each opening begins an epoch of its own; whoever decides which node is the primary sees to it that
/// there is one at a time, and fences the replicas before another one takes over: see
/// [`Replica::fence`].
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
}

impl Primary {
    /// Opens the store in `config.log.dir` as a primary, and begins a new epoch. It takes puts from now
    /// on, and replicas once it [listens](Self::listen).
    ///
    /// # Errors
    /// As [`Store::open`], and [`Error::Config`] for the options.
    /// [`Refusal::EpochFell`](super::Refusal::EpochFell) if the log knows [`PrimaryOptions::epoch`] or a
    /// later one, or has promised a later one.
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
        let replicator =
            PrimaryReplicator::new(options, environment.clock.clone(), environment.threads);
        let store = Store::open_replicated(config, environment, replicator.clone())?;
        Ok(Self { store, replicator })
    }

    /// The store: it takes puts, and gives messages once they are confirmed.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The epoch that this opening began.
    pub fn epoch(&self) -> Epoch {
        self.replicator.hub().map_or(Epoch(0), |hub| hub.epoch.epoch)
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
    /// Their acknowledgements count where [`AckLevel::InMemory`](super::AckLevel::InMemory) was chosen.
    /// `segment_size` must be their `mappedFileSizeCommitLog`; one that is empty is started at the last
    /// segment, as RocketMQ does it.
    ///
    /// # Errors
    /// [`Error::Closed`]; [`Error::Io`] if there is no thread to be had.
    pub fn serve_rocketmq(&self, acceptor: impl Acceptor + 'static) -> Result<()> {
        self.replicator.serve(Arc::new(acceptor), Protocol::Rocketmq)
    }

    /// Every replica that was connected since this was opened.
    pub fn replicas(&self) -> Vec<ReplicaStatus> {
        self.replicator.hub().map_or_else(Vec::new, |hub| hub.group.status())
    }

    /// Waits until so many replicas are in reach: connected, and not more than `max_replica_lag` behind.
    ///
    /// # Errors
    /// [`Refusal::NotEnoughReplicas`](super::Refusal::NotEnoughReplicas) after `patience`.
    pub fn wait_for_replicas(&self, replicas: usize, patience: std::time::Duration) -> Result<()> {
        let hub = self.replicator.hub().ok_or(Error::Closed)?;
        hub.group.wait_for(replicas, hub.log.end(), patience).map_err(Error::Refused)
    }

    /// Closes the store, when the replicas that are connected have everything or after a second; and
    /// stops serving them.
    ///
    /// # Errors
    /// As [`Store::close`].
    pub fn close(&self) -> Result<()> {
        self.store.close()
    }

    /// Closes this, and opens the store again as a replica of another primary.
    ///
    /// # Errors
    /// As [`close`](Self::close) and [`Replica::open`]; the store is closed then.
    pub fn into_replica(self, config: StoreConfig, options: ReplicaOptions) -> Result<Replica> {
        self.close()?;
        drop(self);
        Replica::open(config, options)
    }
}

impl Drop for Primary {
    fn drop(&mut self) {
        // Other handles of the store may live on; replicas are served no longer.
        self.replicator.stop();
    }
}
