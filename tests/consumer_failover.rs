//! Consumers on a node that has taken over.

use duralog::delivery::ConsumeFrom;
use duralog::disk::SimDisk;
use duralog::replication::{
    Admission, Epoch, NodeId, NodeOptions, Primary, PrimaryOptions, Refusal, ReplicatedLog,
    Replicator, Role, StartPoint,
};
use duralog::{Environment, Message, Store, StoreConfig, TagFilter};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

fn config() -> StoreConfig {
    let mut config = StoreConfig::new("/store").segment_size(64 << 10);
    config.index_enable = false;
    config
}

/// The log as it lies on the disk of the first node is that of the second one, too.
fn put_as(disk: &SimDisk, node: u64, epoch: u64, body: &str) {
    let mut options = PrimaryOptions::new(NodeOptions::new(NodeId(node)));
    options = options.ack(duralog::replication::Ack::Async).epoch(Epoch(epoch << 32));
    let environment = Environment::on(disk.shared());
    let primary = Primary::open_in(config(), environment, options).unwrap();
    primary.store().put(Message::new("orders", body)).unwrap().ok().unwrap();
    primary.close().unwrap();
}

fn first_of(store: &Store) -> Option<Vec<u8>> {
    let builder = store.consumer("billing").subscribe("orders", TagFilter::any());
    let consumer = builder.from(ConsumeFrom::Last).open().unwrap();
    let batch = consumer.poll(Duration::ZERO).unwrap();
    batch.first().map(|message| message.body().to_vec())
}

#[test]
fn a_group_whose_offsets_may_be_on_another_node_begins_with_the_first_message() {
    let disk = SimDisk::new(1);
    put_as(&disk, 1, 1, "before");
    let store = Store::open_in(config(), Environment::on(disk.shared())).unwrap();
    assert_eq!(first_of(&store), None, "one node wrote all of it");
    store.forget_offsets("billing", "orders").unwrap();
    store.forget_offsets("billing", "%RETRY%billing").unwrap();
    store.close().unwrap();
    put_as(&disk, 2, 2, "after");
    let store = Store::open_in(config(), Environment::on(disk.shared())).unwrap();
    assert_eq!(first_of(&store).as_deref(), Some(&b"before"[..]));
}

/// A replica of a RocketMQ master, which says neither who it is nor under which epoch it writes.
#[derive(Debug, Default)]
struct Follows(OnceLock<Arc<dyn ReplicatedLog>>);

impl Replicator for Follows {
    fn role(&self) -> Role {
        Role::Replica
    }

    fn start(&self, log: Arc<dyn ReplicatedLog>, at: StartPoint) -> duralog::Result<u64> {
        self.0.set(log).unwrap();
        Ok(at.end)
    }

    fn admit(&self) -> Result<Admission, Refusal> {
        Err(Refusal::NotPrimary)
    }

    fn on_written(&self, _: u64) {}

    fn on_durable(&self, _: u64) {}

    fn stop(&self) {}
}

fn follow(disk: &SimDisk, bytes: &[u8]) {
    let follows = Arc::new(Follows::default());
    let environment = Environment::on(disk.shared());
    let store = Store::open_replicated(config(), environment, follows.clone()).unwrap();
    let log = follows.0.get().unwrap();
    if !bytes.is_empty() {
        log.append(0, Epoch(0), bytes).unwrap();
        log.confirm(bytes.len() as u64, Epoch(0)).unwrap();
    }
    store.close().unwrap();
}

#[test]
fn what_a_replica_holds_was_consumed_elsewhere() {
    let (master, replica) = (SimDisk::new(1), SimDisk::new(2));
    let store = Store::open_in(config(), Environment::on(master.shared())).unwrap();
    let put = store.put(Message::new("orders", "before")).unwrap().ok().unwrap();
    store.close().unwrap();
    let log = master.bytes("/store/commitlog/00000000000000000000").unwrap();
    // Nothing has come from anywhere: it is a store like any other.
    follow(&replica, b"");
    let store = Store::open_in(config(), Environment::on(replica.shared())).unwrap();
    assert_eq!(first_of(&store), None);
    store.forget_offsets("billing", "orders").unwrap();
    store.forget_offsets("billing", "%RETRY%billing").unwrap();
    store.close().unwrap();
    follow(&replica, &log[..put.end_offset as usize]);
    // Also after a crash, in a snapshot, and when it has a name of its own.
    let replica = replica.kill();
    let store = Store::open_in(config(), Environment::on(replica.shared())).unwrap();
    store.snapshot("/copy").unwrap();
    assert_eq!(first_of(&store).as_deref(), Some(&b"before"[..]));
    drop(store);
    let mut copy = config();
    copy.log.dir = "/copy".into();
    let store = Store::open_in(copy, Environment::on(replica.shared())).unwrap();
    assert_eq!(first_of(&store).as_deref(), Some(&b"before"[..]));
    store.close().unwrap();
}
