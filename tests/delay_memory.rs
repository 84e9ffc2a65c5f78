//! What a delayed message that waits costs in memory. A binary of its own: it counts every byte of the
//! process.
#![allow(unsafe_code, reason = "an allocator can only be replaced by an unsafe trait")]

#[path = "support/temp.rs"]
mod temp;

use duralog::{FlushMode, Message, Store, StoreConfig};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use temp::TempDir;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

struct Counting;

fn grow(bytes: usize) {
    let live = LIVE.fetch_add(bytes, Ordering::Relaxed) + bytes;
    PEAK.fetch_max(live, Ordering::Relaxed);
}

// SAFETY: every call goes on to the system's allocator, unchanged; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        // SAFETY: the caller keeps the contract, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while !holds() {
        assert!(Instant::now() < deadline, "it never came about that {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// 100,000 unless told otherwise: `DURALOG_PENDING=1000000`.
fn pending() -> u64 {
    std::env::var("DURALOG_PENDING").ok().and_then(|n| n.parse().ok()).unwrap_or(100_000)
}

#[test]
fn a_million_delayed_messages_would_fit_in_a_hundred_mebibytes() {
    let count = pending();
    let dir = TempDir::in_memory();
    let mut config = StoreConfig::new(dir.path()).segment_size(64 << 20);
    config = config.flush_mode(FlushMode::async_default());
    config.index_enable = false;
    let open = || Store::open(config.clone()).expect("the store opens");
    let store = open();
    store
        .submit_delayed(Message::new("orders", "").delay_level(18))
        .unwrap()
        .0
        .wait()
        .unwrap()
        .ok()
        .unwrap();
    let waiting = |store: &Store| store.delay_stats().unwrap().pending_timers;
    let before = LIVE.load(Ordering::SeqCst);
    PEAK.store(before, Ordering::SeqCst);
    for n in 0..count {
        // In no order.
        let delay = Duration::from_secs(3600) + Duration::from_millis(n * 7_919 % 3_600_000);
        let message = Message::new("orders", vec![7; 100]).delay(delay);
        drop(store.submit_delayed(message).unwrap());
    }
    eventually("all of them wait", || waiting(&store) == count);
    let peak = PEAK.load(Ordering::SeqCst) - before;
    println!("put: {} bytes each, {peak} at most", peak as u64 / count);
    assert!((peak as u64) < 100 * count, "{peak} bytes for {count} messages");
    store.close().unwrap();
    drop(store);

    // The same when they are found by reading.
    let before = LIVE.load(Ordering::SeqCst);
    PEAK.store(before, Ordering::SeqCst);
    let store = open();
    store.deliver_delayed().unwrap();
    eventually("all of them are found", || waiting(&store) == count);
    let peak = PEAK.load(Ordering::SeqCst) - before;
    println!("found: {} bytes each, {peak} at most", peak as u64 / count);
    assert!((peak as u64) < 100 * count, "{peak} bytes for {count} messages");
    store.close().unwrap();
}
