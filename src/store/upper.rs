//! What is built upon a store, is driven by it and ends before it.

use super::Store;
use super::engine::DELIVERY_THREAD;
use crate::error::Result;
use crate::worker::{Alarm, Next};
use std::any::Any;
use std::fmt;
use std::sync::{Arc, OnceLock, Weak};

/// A wing above the store.
pub(crate) trait Upper: Any + Send + Sync {
    /// Does what there is to do in the background.
    fn step(&self, store: &Store) -> Next;

    /// Rung when a step has something to do before it asked to be called again.
    fn alarm(&self) -> &Alarm;
}

/// Where a store keeps it: the first one that is asked for stays.
#[derive(Default)]
pub(super) struct UpperSlot(OnceLock<Arc<dyn Upper>>);

impl fmt::Debug for UpperSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("UpperSlot").field(&self.0.get().is_some()).finish()
    }
}

impl Store {
    /// What is built upon this store, made by the first who asks.
    pub(crate) fn upper(&self, make: impl FnOnce() -> Arc<dyn Upper>) -> Arc<dyn Upper> {
        self.shared().upper.0.get_or_init(make).clone()
    }

    /// Starts the thread that drives it, unless it runs already.
    pub(crate) fn start_upper(&self) -> Result<()> {
        let Some(upper) = self.shared().upper.0.get() else { return Ok(()) };
        // The thread is no handle: a store that nobody holds any more closes.
        let (inner, stepped) = (Arc::downgrade(&self.inner), upper.clone());
        let step = move || match Weak::upgrade(&inner) {
            Some(inner) => stepped.step(&Store { inner }),
            None => Next::Idle,
        };
        self.inner.engine.start_lazily(DELIVERY_THREAD, upper.alarm(), step)
    }

    pub(super) fn upper_step(&self) -> Next {
        let upper = self.shared().upper.0.get().cloned();
        upper.map_or(Next::Idle, |upper| upper.step(self))
    }
}
