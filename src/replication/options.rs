//! What can be chosen of a primary and its replicas.

use super::events::{Event, Observer};
use super::group::{AckLevel, Policy};
use super::net::{Connector, TcpConnector};
use super::{Epoch, NodeId, Secret};
use crate::config::{BrokerReplication, BrokerRole};
use crate::error::{Error, Result};
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

/// Whether a put waits for replicas.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Ack {
    /// RocketMQ's `SYNC_MASTER`: a put is `PutOk` once `min_insync_replicas` replicas hold it, too,
    /// [durably](AckLevel::Durable) unless chosen otherwise: how soon that is so is up to the flush mode of the
    /// replicas, see [`ReplicaOptions`]. The default.
    #[default]
    Sync,
    /// RocketMQ's `ASYNC_MASTER`: a put does not wait for replicas. What they lack when this machine is
    /// lost is lost.
    Async,
}

/// What primary and replicas of a cluster agree on.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct NodeOptions {
    /// Who this node is: 1 or higher, and no other node's of the cluster.
    pub node: NodeId,
    /// The cluster, the same on all its nodes: whoever belongs to another one is refused. Default 0.
    pub cluster: u64,
    /// What all nodes know and nobody else. Default: empty, which keeps nobody out.
    pub secret: Secret,
    /// How often a node that has nothing else to say gives a sign of life, RocketMQ's
    /// `haSendHeartbeatInterval`. Default 5 s; 1 ms to 1 h.
    pub heartbeat_interval: Duration,
    /// A connection on which nothing was heard for so long is closed, RocketMQ's
    /// `haHousekeepingInterval`. Default 20 s; 1 ms to 1 h, and longer than `heartbeat_interval`.
    pub housekeeping_interval: Duration,
    /// Hears of what happens between nodes. Default: nobody does.
    pub observer: Observer,
}

impl NodeOptions {
    /// The defaults for a node with this id.
    pub fn new(node: NodeId) -> Self {
        Self {
            node,
            cluster: 0,
            secret: Secret::default(),
            heartbeat_interval: Duration::from_secs(5),
            housekeeping_interval: Duration::from_secs(20),
            observer: Observer::default(),
        }
    }

    /// Sets [`cluster`](Self::cluster).
    pub fn cluster(mut self, cluster: u64) -> Self {
        self.cluster = cluster;
        self
    }

    /// Sets [`secret`](Self::secret).
    pub fn secret(mut self, secret: Secret) -> Self {
        self.secret = secret;
        self
    }

    /// Calls `tell` with each [`Event`], as an [`Observer`]: it must not block.
    pub fn observe(mut self, tell: impl Fn(&Event) + Send + Sync + 'static) -> Self {
        self.observer = Observer::new(tell);
        self
    }

    /// With the intervals that a broker's configuration file asks for.
    pub fn with_broker(mut self, broker: &BrokerReplication) -> Self {
        self.heartbeat_interval = broker.heartbeat_interval.unwrap_or(self.heartbeat_interval);
        self.housekeeping_interval =
            broker.housekeeping_interval.unwrap_or(self.housekeeping_interval);
        self
    }

    pub(crate) fn validate(&self) -> Result<()> {
        if self.node == NodeId(0) {
            return refused("node", 0, "at least 1");
        }
        check("heartbeat_interval", self.heartbeat_interval)?;
        check("housekeeping_interval", self.housekeeping_interval)?;
        if self.housekeeping_interval <= self.heartbeat_interval {
            let value = format!("{:?}", self.housekeeping_interval);
            return refused("housekeeping_interval", value, "longer than heartbeat_interval");
        }
        Ok(())
    }
}

/// Settings of a [`Primary`](super::Primary). What has no method to set it is assigned. How long a put waits for
/// replicas is the store's [`sync_replica_timeout`](crate::StoreConfig::sync_replica_timeout).
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct PrimaryOptions {
    /// Who this is.
    pub node: NodeOptions,
    /// Default [`Ack::Sync`].
    pub ack: Ack,
    /// When a replica's copy counts. Default [`AckLevel::Durable`].
    pub ack_level: AckLevel,
    /// How many replicas, beside the primary, must hold what is confirmed. Default 1; 1 to 64. RocketMQ
    /// slaves at one IP address count as one replica, which holds what the furthest of them does: they
    /// have no names, so one that comes back cannot be told from another, and what is on one machine is
    /// lost with it. So two of them behind one proxy count as one, and one with two addresses as two.
    pub min_insync_replicas: usize,
    /// Refuse a put, before it is written, while fewer than `min_insync_replicas` are in reach, with
    /// [`Refusal::NotEnoughReplicas`](super::Refusal::NotEnoughReplicas). Otherwise it is stored here
    /// and ends as `ReplicaNotAvailable`. Default false. No effect with [`Ack::Async`].
    pub strict: bool,
    /// A replica that lacks more bytes than this is out of reach, RocketMQ's `haMaxGapNotInSync`. Default
    /// 256 MiB.
    pub max_replica_lag: u64,
    /// Bytes a second that each replica is sent at most, but for RocketMQ slaves. Default
    /// `None`: as many as it takes. A replica that reads slowly is sent no more than it reads in any case.
    /// Not taken from a broker's file: there `maxHaTransferByteInSecond` counts with `haFlowControlEnable` alone.
    pub max_transfer_rate: Option<NonZeroU64>,
    /// The epoch that this opening begins, which begins a [term](Epoch::term): given by whoever decides
    /// which node is the primary, higher than any before, and never to two nodes. `None`, the default,
    /// goes on in the term of the log: for a primary that is only opened again.
    pub epoch: Option<Epoch>,
}

impl PrimaryOptions {
    /// The defaults: puts wait for one replica that has made them durable.
    pub fn new(node: NodeOptions) -> Self {
        Self {
            node,
            ack: Ack::Sync,
            ack_level: AckLevel::Durable,
            min_insync_replicas: 1,
            strict: false,
            max_replica_lag: 256 << 20,
            max_transfer_rate: None,
            epoch: None,
        }
    }

    /// Sets [`ack`](Self::ack).
    pub fn ack(mut self, ack: Ack) -> Self {
        self.ack = ack;
        self
    }

    /// Sets [`min_insync_replicas`](Self::min_insync_replicas).
    pub fn min_insync_replicas(mut self, replicas: usize) -> Self {
        self.min_insync_replicas = replicas;
        self
    }

    /// Sets [`strict`](Self::strict).
    pub fn strict(mut self, strict: bool) -> Self {
        self.strict = strict;
        self
    }

    /// Sets [`epoch`](Self::epoch).
    pub fn epoch(mut self, epoch: Epoch) -> Self {
        self.epoch = Some(epoch);
        self
    }

    /// With what a broker's configuration file asks for: its role, [`Ack`]; `inSyncReplicas`, in which
    /// RocketMQ counts the master; the gap, [`max_replica_lag`](Self::max_replica_lag); and the
    /// intervals. `SYNC_MASTER` with RocketMQ 5's default of 1 waits for one replica here: there it waits
    /// for none.
    pub fn with_broker(mut self, broker: &BrokerReplication) -> Self {
        self.node = self.node.with_broker(broker);
        self.ack = match broker.role {
            None => self.ack,
            Some(BrokerRole::SyncMaster) => Ack::Sync,
            Some(BrokerRole::AsyncMaster | BrokerRole::Slave) => Ack::Async,
        };
        let replicas = broker.in_sync_replicas.map(|all| all.saturating_sub(1).max(1) as usize);
        self.min_insync_replicas = replicas.unwrap_or(self.min_insync_replicas);
        self.max_replica_lag = broker.max_lag.unwrap_or(self.max_replica_lag);
        self
    }

    pub(crate) fn validate(&self) -> Result<()> {
        self.node.validate()?;
        if !(1..=64).contains(&self.min_insync_replicas) {
            return refused("min_insync_replicas", self.min_insync_replicas, "1 to 64");
        }
        self.epoch.map_or(Ok(()), check_term)?;
        Ok(())
    }

    pub(crate) fn policy(&self) -> Policy {
        let (needed, level) = (self.min_insync_replicas, self.ack_level);
        Policy { needed, level, max_lag: self.max_replica_lag }
    }
}

/// What is spoken on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Protocol {
    /// That of this crate: both sides prove the secret, and find out where their logs agree. The
    /// default.
    #[default]
    Duralog,
    /// That of RocketMQ's classic HA service, 4.9 and 5: offsets and bytes, and nothing else.
    Rocketmq,
}

/// Settings of a [`Replica`](super::Replica).
///
/// It syncs by the flush mode of its own store. Where puts wait for it, leave that at
/// [`FlushMode::sync`](crate::FlushMode::sync), the default, whatever the primary's: under async flush each of them
/// waits for the next sync here, and under [`FlushMode::rocketmq_async`](crate::FlushMode::rocketmq_async) that may be
/// later than `sync_replica_timeout` allows.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ReplicaOptions {
    /// Who this is.
    pub node: NodeOptions,
    /// How it reaches its primary.
    pub connector: Arc<dyn Connector>,
    /// What it speaks. Default [`Protocol::Duralog`].
    pub protocol: Protocol,
    /// The pause after a connection that did not come about; it doubles up to
    /// [`retry_max`](Self::retry_max). Default 100 ms; 1 ms to 1 h.
    pub retry_min: Duration,
    /// The longest such pause. Default 5 s, RocketMQ's; 1 ms to 1 h.
    pub retry_max: Duration,
}

impl ReplicaOptions {
    /// The defaults, for a primary that listens at `address`, `host:port`.
    pub fn new(node: NodeOptions, address: impl Into<String>) -> Self {
        Self::connecting(node, TcpConnector::new(address))
    }

    /// The defaults, for a primary that is reached by `connector`.
    pub fn connecting(node: NodeOptions, connector: impl Connector + 'static) -> Self {
        Self {
            node,
            connector: Arc::new(connector),
            protocol: Protocol::Duralog,
            retry_min: Duration::from_millis(100),
            retry_max: Duration::from_secs(5),
        }
    }

    /// Follows a RocketMQ master, whose `haListenPort` the connector reaches: `segment_size` must be its
    /// `mappedFileSizeCommitLog`. Whatever is taken over counts as confirmed, because RocketMQ does not
    /// say what is: a failover there may take back what was read here. Nor does it say how far queues have
    /// come all of whose messages are deleted: where this store begins later than with the first message, such
    /// a queue begins with queue offset 0 again if this node is ever given puts.
    pub fn of_rocketmq(mut self) -> Self {
        self.protocol = Protocol::Rocketmq;
        self
    }

    pub(crate) fn validate(&self) -> Result<()> {
        self.node.validate()?;
        check("retry_min", self.retry_min)?;
        check("retry_max", self.retry_max)
    }
}

pub(crate) fn check_term(epoch: Epoch) -> Result<()> {
    if epoch.begins_term() {
        return Ok(());
    }
    refused("epoch", epoch.0, "the beginning of a term, a multiple of 2^32: see Epoch::next_term")
}

fn check(field: &'static str, value: Duration) -> Result<()> {
    if (Duration::from_millis(1)..=Duration::from_secs(3600)).contains(&value) {
        return Ok(());
    }
    refused(field, format!("{value:?}"), "1 ms to 1 h")
}

pub(crate) fn refused<T>(
    field: &'static str,
    value: impl ToString,
    allowed: &'static str,
) -> Result<T> {
    Err(Error::Config { field, value: value.to_string(), allowed })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::StoreConfig;

    #[test]
    fn a_brokers_file_says_how_it_is_replicated() {
        let text = "storePathRootDir = d\nbrokerRole = SYNC_MASTER\ninSyncReplicas = 3\n\
                    haMaxGapNotInSync = 1000\nhaSendHeartbeatInterval = 200\nhaListenPort = 0";
        let conf = StoreConfig::from_properties(text).expect("it is sound");
        assert_eq!(conf.ignored().count(), 0);
        assert_eq!(conf.replication.listen_port, None);
        let options = PrimaryOptions::new(NodeOptions::new(NodeId(1))).ack(Ack::Async);
        let options = options.with_broker(&conf.replication);
        assert_eq!((options.ack, options.min_insync_replicas), (Ack::Sync, 2));
        assert_eq!(options.max_replica_lag, 1000);
        assert_eq!(options.node.heartbeat_interval, Duration::from_millis(200));
        assert!(options.validate().is_ok());
    }

    #[test]
    fn what_a_brokers_file_does_not_say_stays_as_it_was() {
        let conf = StoreConfig::from_properties("storePathRootDir = d").expect("it is sound");
        for ack in [Ack::Sync, Ack::Async] {
            let options = PrimaryOptions::new(NodeOptions::new(NodeId(1))).ack(ack);
            assert_eq!(options.with_broker(&conf.replication).ack, ack);
        }
    }

    #[test]
    fn settings_out_of_range_are_refused_by_name() {
        let field = |outcome: Result<()>| match outcome {
            Err(Error::Config { field, .. }) => field,
            other => panic!("{other:?}"),
        };
        let node = || NodeOptions::new(NodeId(1));
        assert_eq!(field(NodeOptions::new(NodeId(0)).validate()), "node");
        let mut hasty = node();
        hasty.housekeeping_interval = hasty.heartbeat_interval;
        assert_eq!(field(hasty.validate()), "housekeeping_interval");
        let none = PrimaryOptions::new(node()).min_insync_replicas(0);
        assert_eq!(field(none.validate()), "min_insync_replicas");
        let mut eager = ReplicaOptions::new(node(), "127.0.0.1:1");
        eager.retry_min = Duration::ZERO;
        assert_eq!(field(eager.validate()), "retry_min");
    }
}
