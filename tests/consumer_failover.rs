//! Consumers on a node that has taken over.

#[path = "support/passive.rs"]
mod passive;

use duralog::delivery::{ConsumeFrom, Settled};
use duralog::disk::SimDisk;
use duralog::replication::{Epoch, NodeId, NodeOptions, Primary, PrimaryOptions, Refusal};
use duralog::{Environment, Error, Message, Store, StoreConfig, TagFilter};
use passive::Passive;
use std::sync::Arc;
use std::time::Duration;

const LONG: Duration = Duration::from_secs(60);

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

/// A replica that has taken over so much of a RocketMQ master, which says neither who it is nor under which
/// epoch it writes.
fn following(disk: &SimDisk, bytes: &[u8]) -> Store {
    let follows = Arc::new(Passive::default());
    let environment = Environment::on(disk.shared());
    let store = Store::open_replicated(config(), environment, follows.clone()).unwrap();
    let log = follows.log();
    if !bytes.is_empty() {
        log.append(0, Epoch(0), bytes).unwrap();
        log.confirm(bytes.len() as u64, Epoch(0)).unwrap();
    }
    store
}

#[test]
fn what_a_replica_holds_was_consumed_elsewhere() {
    let (master, replica) = (SimDisk::new(1), SimDisk::new(2));
    let store = Store::open_in(config(), Environment::on(master.shared())).unwrap();
    let put = store.put(Message::new("orders", "before")).unwrap().ok().unwrap();
    store.close().unwrap();
    let log = master.bytes("/store/commitlog/00000000000000000000").unwrap();
    // Nothing has come from anywhere: it is a store like any other.
    following(&replica, b"").close().unwrap();
    let store = Store::open_in(config(), Environment::on(replica.shared())).unwrap();
    assert_eq!(first_of(&store), None);
    store.forget_offsets("billing", "orders").unwrap();
    store.forget_offsets("billing", "%RETRY%billing").unwrap();
    store.close().unwrap();
    following(&replica, &log[..put.end_offset as usize]).close().unwrap();
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

#[test]
fn on_a_replica_a_message_is_handled_or_comes_again() {
    let (master, replica) = (SimDisk::new(1), SimDisk::new(2));
    let store = Store::open_in(config(), Environment::on(master.shared())).unwrap();
    let puts = ["good", "bad", "next"].map(|body| Message::new("orders", body));
    let ends = puts.map(|message| store.put(message).unwrap().ok().unwrap().end_offset);
    store.close().unwrap();
    let log = master.bytes("/store/commitlog/00000000000000000000").unwrap();
    let store = following(&replica, &log[..ends[2] as usize]);
    let open = || {
        let builder = store.consumer("billing").subscribe("orders", TagFilter::any());
        builder.max_reconsume_times(0).consume_timeout(Duration::from_millis(20)).open().unwrap()
    };
    let consumer = open();
    let batch = consumer.poll_max(2, LONG).unwrap();
    assert_eq!(batch[0].ack().unwrap(), Settled::Done);
    let refused = |error: Error| matches!(error, Error::Refused(Refusal::NotPrimary));
    assert!(refused(batch[1].retry_later().unwrap_err()));
    assert!(refused(batch[1].reject().unwrap_err()));
    assert!(batch[1].is_on_lease());
    // Nor does it become a dead letter when it was held too long; what lies behind it is not held up.
    std::mem::forget(batch);
    let (mut told, mut next) = (false, 0);
    while !told || next == 0 {
        match consumer.poll(LONG) {
            Ok(batch) => next += batch.ack().unwrap(),
            Err(error) => told |= refused(error),
        }
    }
    assert_eq!(next, 1);
    assert_eq!(store.committed_offset("billing", "orders", 0), Some(1));
    drop(consumer);
    // In order nothing is copied.
    let builder = store.consumer("shipping").subscribe("orders", TagFilter::any()).ordered();
    let consumer = builder.open().unwrap();
    let batch = consumer.poll(LONG).unwrap();
    assert_eq!(batch[0].retry_after(Duration::from_millis(1)).unwrap(), Settled::Done);
    assert_eq!(consumer.poll(LONG).unwrap()[0].reconsume_times(), 1);
}
