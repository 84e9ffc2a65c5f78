//! Consumers that take messages in order: what fails, hangs or is lost in the midst of a batch.

#[path = "support/rng.rs"]
mod rng;

use duralog::clock::ManualClock;
use duralog::delivery::{Batch, Consumer, Settled};
use duralog::disk::SimDisk;
use duralog::{Environment, Message, Store, StoreConfig, TagFilter};
use rng::Rng;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

const NOW: Duration = Duration::ZERO;
const LEASE: Duration = Duration::from_secs(60);

fn world(count: usize) -> (Arc<ManualClock>, Store) {
    let clock = Arc::new(ManualClock::new(1_700_000_000_000));
    let environment = Environment::on(SimDisk::new(1).shared()).clock(clock.clone()).stepped();
    let mut config = StoreConfig::new("/store").segment_size(256 << 10);
    config.index_enable = false;
    let store = Store::open_in(config, environment).unwrap();
    for n in 0..count {
        let ticket = store.submit(Message::new("orders", n.to_string())).unwrap();
        store.flush().unwrap();
        ticket.wait().unwrap().ok().unwrap();
    }
    (clock, store)
}

fn consumer(store: &Store) -> Consumer {
    let builder = store.consumer("billing").subscribe("orders", TagFilter::any());
    builder.ordered().consume_timeout(LEASE).open().unwrap()
}

fn numbers(batch: &Batch) -> Vec<u64> {
    batch.iter().map(|one| one.queue_offset()).collect()
}

fn committed(store: &Store) -> u64 {
    store.committed_offset("billing", "orders", 0).unwrap()
}

#[test]
fn what_lies_behind_a_failure_comes_again_behind_it() {
    let (clock, store) = world(6);
    let (ann, bob) = (consumer(&store), consumer(&store));
    let batch = ann.poll_max(4, NOW).unwrap();
    assert_eq!(batch[0].retry_later().unwrap(), Settled::Done);
    // They went back with it, whatever is still said of them.
    for behind in &batch[1..] {
        assert!(!behind.is_on_lease());
        assert_eq!(behind.ack().unwrap(), Settled::LeaseLost);
    }
    assert_eq!(batch.ack().unwrap(), 0);
    assert!(bob.poll(NOW).unwrap().is_empty());
    clock.advance(Duration::from_secs(1));
    let first = bob.poll(NOW).unwrap();
    assert_eq!((numbers(&first), first[0].reconsume_times()), (vec![0], 1));
    assert!(ann.poll(NOW).unwrap().is_empty());
    assert_eq!(first.ack().unwrap(), 1);
    let rest = ann.poll_max(4, NOW).unwrap();
    assert_eq!(numbers(&rest), [1, 2, 3]);
    assert!(rest.iter().all(|one| one.reconsume_times() == 0), "they have not failed");
    assert_eq!(rest.ack().unwrap(), 3);
    assert_eq!(numbers(&bob.poll(NOW).unwrap()), [4, 5]);
    assert_eq!(committed(&store), 4);
}

#[test]
fn what_is_left_of_a_batch_whose_time_runs_out_comes_again_in_order() {
    let (clock, store) = world(5);
    let (ann, bob) = (consumer(&store), consumer(&store));
    let batch = ann.poll(NOW).unwrap();
    assert_eq!(batch[0].ack().unwrap(), Settled::Done);
    clock.advance(LEASE);
    // Nobody else asked for it yet.
    assert_eq!(batch[1].ack().unwrap(), Settled::Done);
    // The one at which it hung comes alone, and then those that nobody came to.
    let hung = bob.poll(NOW).unwrap();
    assert_eq!((numbers(&hung), hung[0].reconsume_times()), (vec![2], 1));
    for late in &batch[2..] {
        assert_eq!(late.ack().unwrap(), Settled::LeaseLost);
    }
    assert_eq!(committed(&store), 2);
    assert_eq!(hung.ack().unwrap(), 1);
    let rest = ann.poll(NOW).unwrap();
    assert_eq!(numbers(&rest), [3, 4]);
    assert!(rest.iter().all(|one| one.reconsume_times() == 0));
    // Whoever had them before has no say in it.
    drop(batch);
    assert!(rest.iter().all(|one| one.is_on_lease()));
    assert_eq!(rest.ack().unwrap(), 2);
    assert_eq!(committed(&store), 5);
}

/// What consumers do that fail, hang, go and come too late.
fn scenario(seed: u64) {
    let mut rng = Rng(seed);
    let count = 24;
    let (clock, store) = world(count as usize);
    let mut consumers = [consumer(&store), consumer(&store)];
    let mut acked: u64 = 0;
    let mut late: Vec<Batch> = Vec::new();
    for _ in 0..2000 {
        if acked == count {
            break;
        }
        let which = rng.below(2) as usize;
        let batch = consumers[which].poll_max(1 + rng.below(6) as usize, NOW).unwrap();
        // All before it is handled, and there is no gap.
        let expected: Vec<_> = (acked..acked + batch.len() as u64).collect();
        assert_eq!(numbers(&batch), expected, "seed {seed}");
        let well = rng.below(batch.len() as u64 + 1) as usize;
        for message in &batch[..well] {
            assert_eq!(message.ack().unwrap(), Settled::Done, "seed {seed}");
            acked += 1;
        }
        if let Some(failing) = batch.get(well) {
            match rng.below(5) {
                0 => assert_eq!(failing.retry_later().unwrap(), Settled::Done),
                1 => {
                    let delay = Duration::from_millis(rng.below(5000));
                    assert_eq!(failing.retry_after(delay).unwrap(), Settled::Done);
                }
                2 => clock.advance(LEASE),
                3 => {
                    consumers[which].close();
                    consumers[which] = consumer(&store);
                }
                _ => {}
            }
        }
        if rng.below(2) == 0 {
            late.push(batch);
        } else {
            drop(batch);
        }
        clock.advance(Duration::from_millis(rng.below(3000)));
        if late.len() > 3 {
            let stale = late.remove(rng.below(3) as usize);
            let lost = stale.iter().filter(|one| !one.is_on_lease()).count();
            if lost == stale.len() {
                assert_eq!(stale.ack().unwrap(), 0, "seed {seed}");
            }
        }
        assert_eq!(committed(&store), acked, "seed {seed}");
    }
    assert_eq!(acked, count, "seed {seed}");
}

#[test]
fn order_is_kept_and_nothing_counts_twice_whoever_fails() {
    (0..200).for_each(scenario);
}

/// Longer than it may take to hear of something.
const LONG: Duration = Duration::from_secs(60);

#[test]
fn whoever_waits_hears_of_what_waited_for_the_last_of_a_batch() {
    for fails in [false, true] {
        let store = Store::open_in(
            StoreConfig::new("/store").segment_size(256 << 10),
            Environment::on(SimDisk::new(1).shared()),
        );
        let store = store.unwrap();
        for n in 0..3 {
            store.put(Message::new("orders", n.to_string())).unwrap().ok().unwrap();
        }
        let (ann, bob) = (consumer(&store), consumer(&store));
        let mut batch = ann.poll(LONG).unwrap().into_iter();
        let first = batch.next().unwrap();
        let (tell, told) = mpsc::channel();
        let (begin, began) = mpsc::channel();
        let waiting = thread::spawn(move || {
            begin.send(()).unwrap();
            tell.send(numbers(&bob.poll(LONG).unwrap())).unwrap();
        });
        began.recv().unwrap();
        // As a rule it sleeps by then; if not, it finds the same.
        (0..10_000).for_each(|_| thread::yield_now());
        if fails {
            // For a moment it holds up what lies behind it.
            batch.next().unwrap().retry_after(Duration::from_millis(1)).unwrap();
        }
        drop(batch);
        (0..10_000).for_each(|_| thread::yield_now());
        first.ack().unwrap();
        let got = told.recv_timeout(LONG / 2).expect("nobody told it");
        assert_eq!(got, if fails { vec![1] } else { vec![1, 2] });
        waiting.join().unwrap();
        store.close().unwrap();
    }
}
