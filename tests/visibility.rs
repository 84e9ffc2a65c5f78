//! A reader under default settings never sees a message that a power cut then removes.

#[path = "support/sim.rs"]
mod sim;

use duralog::disk::{Cut, Survival};
use duralog::{Error, FlushMode, Message, PutStatus, Store, StoreConfig, TagFilter, Visibility};
use sim::*;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

/// What readers were shown: the message at each queue offset.
#[derive(Debug, Default)]
struct Seen {
    messages: BTreeMap<u64, u64>,
    max_offset: u64,
}

impl Seen {
    fn add(&mut self, queue_offset: u64, body: &[u8]) {
        let id = id_of(body);
        let before = self.messages.insert(queue_offset, id);
        assert!(before.is_none_or(|before| before == id), "a message changed under a reader");
    }
}

/// Follows the queue in one of four ways until the machine goes down.
fn follow(store: &Store, kind: usize, stop: &AtomicBool, seen: &Mutex<Seen>) {
    let mut at = 0;
    while !stop.load(Ordering::SeqCst) {
        match kind {
            0 => {
                let Ok(fetched) = store.get(TOPIC, 0, at, 100) else { return };
                let mut seen = seen.lock().expect("no reader failed");
                for message in &fetched.messages {
                    seen.add(message.queue_offset as u64, &message.body);
                }
                seen.max_offset = seen.max_offset.max(fetched.max_offset);
                at = fetched.next_offset;
            }
            1 => {
                let fetched = store.get_view(TOPIC, 0, at, 100, &TagFilter::any());
                let Ok(fetched) = fetched else { return };
                let mut seen = seen.lock().expect("no reader failed");
                for view in &fetched.messages {
                    seen.add(view.queue_offset(), view.body());
                }
                at = fetched.next_offset;
            }
            2 => {
                let there = store.wait_for(TOPIC, 0, at, Duration::from_millis(5));
                let Ok(there) = there else { return };
                if there {
                    let mut seen = seen.lock().expect("no reader failed");
                    seen.max_offset = seen.max_offset.max(at + 1);
                    at += 1;
                }
            }
            _ => {
                let Some(max) = store.max_offset(TOPIC, 0) else { continue };
                let mut seen = seen.lock().expect("no reader failed");
                seen.max_offset = seen.max_offset.max(max);
                drop(seen);
                let end = store.stats().watermarks.appended;
                if let Ok(Some(view)) = store.get_at(end.saturating_sub(1)) {
                    drop(view);
                }
            }
        }
    }
}

/// Producers and readers race; then the power goes, and what was seen must be there.
fn race(seed: u64, config: StoreConfig) -> usize {
    let disk = disk();
    disk.set_sync_latency(Duration::from_micros(300));
    let store = open(&disk, config.clone());
    let (stop, seen, next_id) = (AtomicBool::new(false), Mutex::default(), AtomicU64::new(0));
    let survival = [Survival::None, Survival::Coin, Survival::Rarely, Survival::Suffix];
    let next = thread::scope(|scope| {
        for producer in 0..3 {
            let (store, stop, next_id) = (&store, &stop, &next_id);
            scope.spawn(move || {
                let mut tickets = Vec::new();
                while !stop.load(Ordering::SeqCst) {
                    let id = next_id.fetch_add(1, Ordering::Relaxed);
                    let message = message(id).wait(producer != 2);
                    match store.submit(message) {
                        Ok(ticket) if producer == 0 => drop(ticket.wait()),
                        Ok(ticket) => tickets.push(ticket),
                        Err(_) => return,
                    }
                    if tickets.len() > 20 {
                        for ticket in tickets.drain(..) {
                            let _ = ticket.wait();
                        }
                    }
                }
            });
        }
        for kind in 0..4 {
            let (store, stop, seen) = (&store, &stop, &seen);
            scope.spawn(move || follow(store, kind, stop, seen));
        }
        eventually("readers have seen some", || {
            seen.lock().expect("no reader failed").max_offset > 30 + seed % 40
        });
        let cut = Cut::seeded(seed).sectors(survival[seed as usize % 4]);
        let next = disk.cut_power(cut);
        stop.store(true, Ordering::SeqCst);
        next
    });
    drop(store);
    let store = open(&next, config);
    let found: BTreeMap<u64, u64> = all(&store)
        .iter()
        .map(|message| (message.queue_offset as u64, id_of(&message.body)))
        .collect();
    let seen = seen.into_inner().expect("no reader failed");
    for (queue_offset, id) in &seen.messages {
        assert_eq!(
            found.get(queue_offset),
            Some(id),
            "seed {seed}: a message that was seen is gone"
        );
    }
    let max = store.max_offset(TOPIC, 0).expect("the queue is there");
    assert!(max >= seen.max_offset, "seed {seed}: readers were told of {}", seen.max_offset);
    seen.messages.len()
}

#[test]
fn what_a_reader_saw_survives_a_power_cut() {
    let seen: usize = (0..40).map(|seed| race(seed, config())).sum();
    assert!(seen > 1000);
}

#[test]
fn what_a_reader_saw_survives_a_power_cut_over_many_segments() {
    let seen: usize = (0..20).map(|seed| race(seed, config().segment_size(4096))).sum();
    assert!(seen > 500);
}

/// A store with one durable message and one whose sync hangs.
fn half_synced(config: StoreConfig) -> (duralog::disk::SimDisk, Store, duralog::Ticket) {
    let disk = disk();
    let store = open(&disk, config);
    put(&store, 0);
    disk.hang_syncs(true);
    let ticket = store.submit(message(1)).expect("there is room");
    eventually("the bytes are in the page cache", || {
        store.stats().watermarks.written > ticket.physical_offset()
    });
    (disk, store, ticket)
}

#[test]
fn what_is_not_durable_is_not_seen_by_default() {
    let (disk, store, ticket) = half_synced(config());
    assert_eq!(ids(&store), [0]);
    assert_eq!(store.max_offset(TOPIC, 0), Some(1));
    assert!(!store.wait_for(TOPIC, 0, 1, Duration::from_millis(20)).expect("the store is open"));
    assert!(store.get_at(ticket.physical_offset()).expect("not corrupt").is_none());
    disk.hang_syncs(false);
    assert!(store.wait_for(TOPIC, 0, 1, LONG).expect("the store is open"));
    assert_eq!(ids(&store), [0, 1]);
    assert!(store.get_at(ticket.physical_offset()).expect("not corrupt").is_some());
    assert_eq!(ticket.wait().expect("no failure").status, PutStatus::PutOk);
}

#[test]
fn a_topic_is_not_seen_before_its_first_message() {
    let disk = disk();
    let store = open(&disk, config());
    disk.hang_syncs(true);
    let ticket = store.submit(message(0)).expect("there is room");
    assert_eq!(store.max_offset(TOPIC, 0).unwrap_or(0), 0);
    assert!(ids(&store).is_empty());
    disk.hang_syncs(false);
    assert_eq!(ticket.wait().expect("no failure").status, PutStatus::PutOk);
    assert_eq!(store.max_offset(TOPIC, 0), Some(1));
}

#[test]
fn what_is_in_the_page_cache_is_seen_when_asked_for() {
    let (disk, store, ticket) = half_synced(config().visibility(Visibility::Appended));
    assert!(store.wait_for(TOPIC, 0, 1, LONG).expect("the store is open"));
    assert_eq!(ids(&store), [0, 1]);
    assert!(store.get_at(ticket.physical_offset()).expect("not corrupt").is_some());
    assert!(store.stats().watermarks.durable <= ticket.physical_offset(), "it is not durable");
    drop(ticket);
    // And so a reader may have seen what is gone.
    let (_disk, store) = reopen_after_power_cut(&disk, store, config());
    assert_eq!(ids(&store)[0], 0);
}

#[test]
fn async_flush_shows_what_a_kill_cannot_take() {
    let disk = disk();
    let store = open(&disk, unsynced());
    (0..10).for_each(|id| assert_eq!(put(&store, id), id));
    assert_eq!(ids(&store), (0..10).collect::<Vec<_>>());
    assert_eq!(store.stats().watermarks.durable, 0);
    let next = disk.kill();
    drop(store);
    assert_eq!(ids(&open(&next, unsynced())), (0..10).collect::<Vec<_>>());
}

#[test]
fn a_put_that_does_not_wait_is_seen_once_it_is_durable() {
    let disk = disk();
    let store = open(&disk, config());
    put(&store, 0);
    disk.hang_syncs(true);
    let result = store.put(message(1).wait(false)).expect("it is written");
    assert_eq!(result.status, PutStatus::PutOk);
    assert_eq!(ids(&store), [0]);
    disk.hang_syncs(false);
    assert!(store.wait_for(TOPIC, 0, 1, LONG).expect("the store is open"));
    assert!(store.stats().watermarks.durable >= result.end_offset);
}

#[test]
fn a_waiting_reader_is_told_of_close() {
    let disk = disk();
    let store = open(&disk, config());
    thread::scope(|scope| {
        let waiting = scope.spawn(|| store.wait_for(TOPIC, 0, 0, LONG));
        store.close().expect("the store closes");
        let told = waiting.join().expect("no panic");
        assert!(matches!(told, Err(Error::Closed)), "{told:?}");
    });
}

#[test]
fn a_waiting_reader_is_woken_by_the_message() {
    let disk = disk();
    let store = open(&disk, config().flush_mode(FlushMode::sync()));
    thread::scope(|scope| {
        let waiting = scope.spawn(|| store.wait_for(TOPIC, 0, 3, Duration::MAX));
        for id in 0..4 {
            put(&store, id);
        }
        assert!(waiting.join().expect("no panic").expect("the store is open"));
    });
    let other = Message::new("other", "x");
    assert_eq!(store.put(other).expect("accepted").status, PutStatus::PutOk);
}

#[test]
fn a_read_only_reader_sees_no_more_than_is_durable() {
    let disk = disk();
    let store = open(&disk, config());
    put(&store, 0);
    disk.hang_syncs(true);
    let ticket = store.submit(message(1)).expect("accepted");
    eventually("its sync hangs", || disk.hanging_syncs() > 0);
    let put = store.put(message(2).wait(false)).expect("accepted");
    assert_eq!(put.status, PutStatus::PutOk);
    let seen = ids(&open(&disk, config().read_only(true)));
    let everything = config().read_only(true).visibility(Visibility::Appended);
    assert_eq!(ids(&open(&disk, everything)), [0, 1, 2]);
    let (_disk, store) = reopen_after_power_cut(&disk, store, config());
    drop(ticket);
    assert!(ids(&store).starts_with(&seen), "seen: {seen:?}");
}

#[test]
fn a_read_only_reader_sees_all_of_a_store_that_was_closed() {
    let (disk, _) = filled(5);
    assert_eq!(ids(&open(&disk, config().read_only(true))), [0, 1, 2, 3, 4]);
}
