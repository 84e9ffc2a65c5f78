//! Two sessions without a network between them, for tests.

use super::primary::{PrimaryReplicator, PrimarySession};
use super::replica::{Identity, ReplicaReplicator, ReplicaSession};
use super::session::{Order, Session, SessionError};
use super::*;
use crate::clock::{Clock, ManualClock};
use crate::disk::SimDisk;
use crate::environment::Threads;
use crate::replication::inbox::Inbox;
use crate::{Environment, Message, Store, StoreConfig, StoreWorker};
use std::time::{Duration, Instant};

struct Node {
    disk: SimDisk,
    clock: Arc<ManualClock>,
}

fn config() -> StoreConfig {
    let mut config = StoreConfig::new("/store").segment_size(4096);
    config.index_enable = false;
    config
}

impl Node {
    fn new(seed: u64) -> Self {
        Self { disk: SimDisk::new(seed), clock: Arc::new(ManualClock::new(1_700_000_000_000)) }
    }

    fn environment(&self) -> Environment {
        Environment::on(self.disk.shared()).clock(self.clock.clone()).stepped()
    }

    fn primary(&self) -> (Store, Arc<PrimaryReplicator>) {
        let options = PrimaryOptions::new(NodeOptions::new(NodeId(1)));
        let replicator = PrimaryReplicator::new(options, self.clock.clone(), Threads::Stepped);
        let opened = Store::open_replicated(config(), self.environment(), replicator.clone());
        (opened.expect("the primary opens"), replicator)
    }

    fn replica(&self) -> (Store, Arc<ReplicaReplicator>) {
        let replicator = Arc::new(ReplicaReplicator::default());
        let opened = Store::open_replicated(config(), self.environment(), replicator.clone());
        (opened.expect("the replica opens"), replicator)
    }
}

fn step(store: &Store) {
    for worker in [StoreWorker::Flush, StoreWorker::Upkeep, StoreWorker::Dispatch] {
        store.step(worker);
    }
}

fn identity() -> Identity {
    Identity {
        cluster: 0,
        node: NodeId(2),
        instance: 1,
        secret: Secret::default(),
        heartbeat: Duration::from_secs(5),
    }
}

/// Passes on everything that one has to say to the other; an order, or an error, ends it.
fn pump(
    from: &mut dyn Session,
    to: &mut dyn Session,
    inbox: &mut Inbox,
    now: Instant,
) -> Result<Option<Order>, SessionError> {
    while let Some(sent) = from.poll(now)? {
        for part in [&sent.head[..], sent.body()] {
            let mut part = part;
            while !part.is_empty() {
                inbox.fill(&mut part).expect("a slice can be read");
                if let Some(order) = to.receive(inbox, now)? {
                    return Ok(Some(order));
                }
            }
        }
    }
    Ok(None)
}

#[test]
fn a_replica_follows_and_confirms() {
    let (one, two) = (Node::new(1), Node::new(2));
    let (store, primary) = one.primary();
    let (copy, replica) = two.replica();
    let (hub, log) = (primary.hub().unwrap().clone(), replica.log().unwrap().clone());
    let now = one.clock.now();
    let mut ours = PrimarySession::new(hub, 1, [1; 16], now);
    let mut theirs = ReplicaSession::new(log, identity(), [2; 16], now);
    let (mut to_primary, mut to_replica) = (Inbox::default(), Inbox::default());
    let mut put = 0;
    for round in 0..400u64 {
        if round % 3 == 0 && store.try_submit(Message::new("t", vec![7; round as usize])).is_ok() {
            put += 1;
        }
        step(&store);
        pump(&mut ours, &mut theirs, &mut to_replica, now).unwrap();
        step(&copy);
        pump(&mut theirs, &mut ours, &mut to_primary, now).unwrap();
    }
    let (here, there) = (store.stats().watermarks, copy.stats().watermarks);
    assert!(put > 100, "{put}");
    assert_eq!(here.appended, there.durable);
    assert_eq!(here.confirmed, here.appended);
    let messages = copy.get("t", 0, 0, 1000).unwrap().messages;
    assert!(messages.len() >= put - 1, "{} of {put}", messages.len());
}
