//! Messages that went back and cannot be read when they are to be given out again.

use duralog::clock::ManualClock;
use duralog::delivery::{Batch, Consumer};
use duralog::disk::{Fault, SimCall, SimDisk};
use duralog::{Environment, Error, Message, Store, StoreConfig, TagFilter};
use std::sync::Arc;
use std::time::Duration;

const NOW: Duration = Duration::ZERO;

fn world() -> (SimDisk, Arc<ManualClock>, Store) {
    let (disk, clock) = (SimDisk::new(1), Arc::new(ManualClock::new(1_700_000_000_000)));
    let environment = Environment::on(disk.shared()).clock(clock.clone()).stepped();
    let mut config = StoreConfig::new("/store").segment_size(256 << 10);
    config.index_enable = false;
    // Each entry of a queue has a file of its own, and few are kept open.
    config.consume_queue_file_size = 20;
    config.max_open_queue_files = 4;
    let store = Store::open_in(config.clone(), environment.clone()).unwrap();
    for n in 0..11 {
        let topic = if n < 3 { "orders" } else { "others" };
        let ticket = store.submit(Message::new(topic, n.to_string())).unwrap();
        store.flush().unwrap();
        ticket.wait().unwrap().ok().unwrap();
    }
    // What is new is still in memory.
    store.close().unwrap();
    let store = Store::open_in(config, environment).unwrap();
    (disk, clock, store)
}

fn consumer(store: &Store, is_ordered: bool) -> Consumer {
    let builder = store.consumer("billing").subscribe("orders", TagFilter::any());
    if is_ordered { builder.ordered() } else { builder }.open().unwrap()
}

fn numbers(batch: &Batch) -> Vec<u64> {
    batch.iter().map(|one| one.queue_offset()).collect()
}

#[test]
fn what_cannot_be_read_is_neither_done_with_nor_passed_in_order() {
    for is_ordered in [false, true] {
        let (disk, clock, store) = world();
        let consumer = consumer(&store, is_ordered);
        drop(consumer.poll(NOW).unwrap());
        let second = format!("consumequeue/orders/0/{:020}", 20);
        let fail = || {
            // Others are open then.
            assert_eq!(store.get("others", 0, 0, 8).unwrap().messages.len(), 8);
            disk.inject(Fault::on(SimCall::Open).path(second.clone()));
        };
        fail();
        let batch = consumer.poll(NOW).unwrap();
        assert_eq!(numbers(&batch), if is_ordered { vec![0] } else { vec![0, 2] });
        batch.ack().unwrap();
        assert!(consumer.poll(NOW).unwrap().is_empty(), "not again at once");
        fail();
        clock.advance(Duration::from_secs(1));
        assert!(matches!(consumer.poll(NOW), Err(Error::Io { .. })));
        assert_eq!(store.committed_offset("billing", "orders", 0), Some(1));
        assert_eq!(disk.faults_fired(), 2);
        clock.advance(Duration::from_secs(1));
        let batch = consumer.poll(NOW).unwrap();
        assert_eq!(numbers(&batch), if is_ordered { vec![1, 2] } else { vec![1] });
        assert!(batch.iter().all(|one| one.reconsume_times() == 0), "nobody had them");
        batch.ack().unwrap();
        assert_eq!(store.committed_offset("billing", "orders", 0), Some(3));
    }
}

#[test]
fn what_came_back_with_one_that_cannot_be_read_is_to_be_had_at_once() {
    let (disk, clock, store) = world();
    let consumer = consumer(&store, false);
    drop(consumer.poll(NOW).unwrap());
    assert_eq!(store.get("others", 0, 0, 8).unwrap().messages.len(), 8);
    disk.inject(Fault::on(SimCall::Open).path(format!("consumequeue/orders/0/{:020}", 0)));
    let batch = consumer.poll(NOW).unwrap();
    assert_eq!((numbers(&batch), disk.faults_fired()), (vec![1, 2], 1));
    batch.ack().unwrap();
    clock.advance(Duration::from_secs(1));
    let batch = consumer.poll(NOW).unwrap();
    assert_eq!((numbers(&batch), batch[0].reconsume_times()), (vec![0], 0));
}
