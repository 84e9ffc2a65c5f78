//! Consumers, listeners and stores that end while others are still at work with them.

use duralog::delivery::Settled;
use duralog::disk::SimDisk;
use duralog::{Environment, Error, Message, Store, StoreConfig, TagFilter};
use std::time::Duration;

const LONG: Duration = Duration::from_secs(60);

fn config() -> StoreConfig {
    let mut config = StoreConfig::new("/store").segment_size(256 << 10);
    config.index_enable = false;
    config
}

fn open(disk: &SimDisk) -> Store {
    Store::open_in(config(), Environment::on(disk.shared())).unwrap()
}

fn put(store: &Store, body: &str) {
    store.put(Message::new("orders", body)).unwrap().ok().unwrap();
}

fn committed(store: &Store) -> Option<u64> {
    store.committed_offset("billing", "orders", 0)
}

#[test]
fn what_is_held_while_its_store_closes_counts_no_more() {
    for is_ordered in [false, true] {
        let disk = SimDisk::new(1);
        let store = open(&disk);
        (0..4).for_each(|n| put(&store, &n.to_string()));
        let builder = store.consumer("billing").subscribe("orders", TagFilter::any());
        let builder = if is_ordered { builder.ordered() } else { builder };
        let consumer = builder.open().unwrap();
        let batch = consumer.poll(LONG).unwrap();
        assert_eq!(batch[0].ack().unwrap(), Settled::Done);
        store.close().unwrap();
        let reopened = open(&disk);
        // Whether or not the group would move by it.
        for message in [&batch[2], &batch[1]] {
            assert!(matches!(message.ack(), Err(Error::Closed)));
            assert!(matches!(message.retry_later(), Err(Error::Closed)));
            assert!(matches!(message.reject(), Err(Error::Closed)));
        }
        assert!(matches!(batch.ack(), Err(Error::Closed)));
        drop((batch, consumer, store));
        assert_eq!(committed(&reopened), Some(1));
        reopened.close().unwrap();
        assert_eq!(committed(&open(&disk)), Some(1));
    }
}
