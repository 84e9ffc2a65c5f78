//! A clock whose part on the wall can be put back or ahead, while the steady one goes on.

use duralog::clock::{Clock, ManualClock};
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Instant;

#[derive(Debug)]
pub struct Wall {
    pub steady: ManualClock,
    ahead_ms: AtomicI64,
}

impl Wall {
    pub fn new(epoch_millis: i64) -> Self {
        Self { steady: ManualClock::new(epoch_millis), ahead_ms: AtomicI64::new(0) }
    }

    /// Puts it so far ahead of where it would be.
    pub fn put_ahead(&self, millis: i64) {
        self.ahead_ms.store(millis, Ordering::SeqCst);
    }
}

impl Clock for Wall {
    fn now(&self) -> Instant {
        self.steady.now()
    }

    fn unix_millis(&self) -> i64 {
        self.steady.unix_millis() + self.ahead_ms.load(Ordering::SeqCst)
    }
}
