//! Wakes tasks whose deadline passes while nothing else happens.

use super::Shared;
use crate::worker::{Doorbell, Next};
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Deadlines are kept this apart, so that many tickets share one.
const GRAIN: Duration = Duration::from_millis(10);

/// The deadlines of awaited tickets.
#[derive(Debug, Default)]
pub(crate) struct Deadlines {
    pending: Mutex<Pending>,
    bell: OnceLock<Doorbell>,
}

#[derive(Debug, Default)]
struct Pending {
    origin: Option<Instant>,
    /// In grains after `origin`.
    grains: BTreeSet<u32>,
}

impl Pending {
    fn instant(&self, grain: u32) -> Option<Instant> {
        self.origin?.checked_add(GRAIN * grain)
    }

    fn first(&self) -> Option<Instant> {
        self.instant(*self.grains.first()?)
    }
}

impl Deadlines {
    pub(crate) fn connect(&self, bell: Doorbell) {
        let _ = self.bell.set(bell);
    }

    /// Wakes every task at `deadline` or up to a grain later. `now` is the time of the call.
    pub(crate) fn add(&self, now: Instant, deadline: Instant) {
        let mut pending = self.pending.lock();
        // No later call asks for anything earlier than this.
        let origin = *pending.origin.get_or_insert(now);
        let after = deadline.saturating_duration_since(origin).as_millis() / GRAIN.as_millis() + 1;
        let before = pending.first();
        pending.grains.insert(u32::try_from(after).unwrap_or(u32::MAX));
        let earlier = pending.first() != before;
        drop(pending);
        if earlier && let Some(bell) = self.bell.get() {
            bell.ring();
        }
    }

    /// Drops the deadlines that have passed; whether there were any, and the next one.
    fn expire(&self, now: Instant) -> (bool, Option<Instant>) {
        let mut pending = self.pending.lock();
        let mut expired = false;
        while pending.first().is_some_and(|first| first <= now) {
            pending.grains.pop_first();
            expired = true;
        }
        if pending.grains.is_empty() {
            pending.origin = None;
        }
        (expired, pending.first())
    }
}

impl Shared {
    pub(super) fn deadline_step(&self) -> Next {
        let (expired, next) = self.deadlines.expire(self.core.clock.now());
        if expired {
            // Each task looks at its own deadline.
            self.core.progress.wake_puts();
        }
        next.map_or(Next::Idle, Next::At)
    }
}
