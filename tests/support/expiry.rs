//! Stores that are stepped until what is old in them expires. Beside `sim`.

use crate::sim::{config, message};
use duralog::config::Retention;
use duralog::{Next, Store, StoreConfig, StoreWorker};

pub const SEGMENT: u64 = 16 << 10;
/// Midnight, UTC.
pub const MIDNIGHT: i64 = 1_700_006_400_000;

pub fn keeping(retention: Retention) -> StoreConfig {
    let mut config = config().retention(retention);
    config.queue_checkpoint_bytes = 4096;
    // Small, beside the segments.
    (config.index_slots, config.index_items) = (100, 10_000);
    config
}

/// Puts messages from `from` on until `segments` more have been begun; the next id.
pub fn fill(store: &Store, from: u64, segments: u64) -> u64 {
    let (mut id, rolls) = (from, store.stats().rolls);
    while store.stats().rolls < rolls + segments {
        match store.try_submit(message(id)) {
            Ok(ticket) => {
                drop(ticket);
                id += 1;
            }
            Err(_) => drop(store.step(StoreWorker::Upkeep)),
        }
        store.step(StoreWorker::Flush);
        store.step(StoreWorker::Dispatch);
    }
    id
}

/// Lets everything expire that is due.
pub fn expire(store: &Store) {
    while store.step(StoreWorker::Retention) == Next::Now {}
    store.step(StoreWorker::Checkpoint);
}
