//! No heap allocation per message. A binary of its own: it counts every allocation of the process.
#![allow(unsafe_code, reason = "an allocator can only be replaced by an unsafe trait")]

#[path = "support/temp.rs"]
mod temp;

use duralog::message::PropertiesRef;
use duralog::{FlushMode, Message, PutStatus, SqlFilter, Store, StoreConfig};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use temp::TempDir;

/// One test at a time: some count what the whole process does.
static ALONE: Mutex<()> = Mutex::new(());

static EVERYWHERE: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static HERE: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

fn count() {
    EVERYWHERE.fetch_add(1, Ordering::Relaxed);
    let _ = HERE.try_with(|here| here.set(here.get() + 1));
}

// SAFETY: every call goes on to the system's allocator, unchanged; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the contract, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.realloc(at, layout, size) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Allocations of the producer's thread and of the whole process during 10,000 puts.
fn allocations(mode: FlushMode) -> (u64, u64) {
    let dir = TempDir::in_memory();
    let config = StoreConfig::new(dir.path()).segment_size(64 << 20).flush_mode(mode);
    let store = Store::open(config).expect("the store opens");
    let message = Message::new("orders", vec![7; 100]).tag("paid").key("order-42");
    let put = |message: &Message| {
        let result = store.put(message).expect("the put is accepted");
        assert_eq!(result.status, PutStatus::PutOk);
        result.queue_offset
    };
    // Most of the warm-up waits for no disk.
    let hasty = message.clone().wait(false);
    let mut last = 0;
    for n in 0..20_000 {
        last = put(if n < 18_000 { &hasty } else { &message });
    }
    assert!(store.wait_for("orders", 0, last, std::time::Duration::from_secs(60)).expect("open"));
    let before = (HERE.get(), EVERYWHERE.load(Ordering::SeqCst));
    for _ in 0..10_000 {
        last = put(&message);
    }
    let counted = (HERE.get() - before.0, EVERYWHERE.load(Ordering::SeqCst) - before.1);
    assert_eq!(last, 29_999);
    store.close().expect("the store closes");
    counted
}

#[test]
fn ten_thousand_puts_allocate_nothing() {
    let _alone = ALONE.lock().expect("no other test failed");
    for (by_the_producer, by_everyone) in
        [FlushMode::async_default(), FlushMode::sync()].map(allocations)
    {
        assert_eq!(by_the_producer, 0);
        // Background work may still grow a buffer to a size it had not reached before.
        assert!(by_everyone < 10, "{by_everyone} allocations for 10,000 puts");
    }
}

/// Allocations of a thread that sends 10,000 messages which are made already, each with an id or without.
fn allocations_of_sends(with_id: bool) -> u64 {
    let dir = TempDir::in_memory();
    let config = StoreConfig::new(dir.path()).segment_size(64 << 20);
    let store = Store::open(config.flush_mode(FlushMode::async_default())).expect("it opens");
    let producer = store.producer("orders-service").open().expect("a producer");
    let message = |n: usize| {
        let message = Message::new("orders", vec![7; 100]).tag("paid").sharding_key("customer-7");
        if with_id { message.unique_key(format!("{n}")) } else { message }
    };
    let messages = |count: usize| (0..count).map(message).collect::<Vec<_>>();
    messages(20_000).into_iter().for_each(|message| drop(producer.send(message).expect("sent")));
    let counted = (0..3).map(|_| {
        let messages = messages(10_000);
        let before = HERE.get();
        messages.into_iter().for_each(|message| drop(producer.send(message).expect("sent")));
        HERE.get() - before
    });
    // Where the disk is slow for once, a buffer may grow to a size it had not reached before.
    let least = counted.min().expect("three");
    store.close().expect("the store closes");
    least
}

#[test]
fn a_send_allocates_what_the_id_takes_and_nothing_else() {
    let _alone = ALONE.lock().expect("no other test failed");
    // The properties grow by the id that a message gets; an id that it brings is kept for the answer.
    for with_id in [false, true] {
        assert_eq!(allocations_of_sends(with_id), 10_000);
    }
}

#[test]
fn a_message_passes_a_filter_without_an_allocation() {
    let filter = SqlFilter::parse(
        "amount > 100 AND price < 2.5 AND paid = TRUE AND region IN ('eu', 'uk') AND (name CONTAINS 'x' \
         OR amount BETWEEN 1 AND 300) AND nothing IS NULL AND a = b AND region <> 'it''s'",
    )
    .expect("an expression");
    let properties =
        b"amount\x01200\x02price\x011.5\x02paid\x01true\x02region\x01eu\x02name\x01y\x02a\x013\x02b\x013\x02";
    let before = HERE.get();
    let passed = (0..1000).filter(|_| filter.passes(PropertiesRef::new(properties))).count();
    assert_eq!((passed, HERE.get() - before), (1000, 0));
}
