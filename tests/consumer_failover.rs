//! Consumers on a node that has taken over.

use duralog::delivery::ConsumeFrom;
use duralog::disk::SimDisk;
use duralog::replication::{Epoch, NodeId, NodeOptions, Primary, PrimaryOptions};
use duralog::{Environment, Message, Store, StoreConfig, TagFilter};
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
