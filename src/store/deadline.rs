//! Wakes tasks whose deadline passes while nothing else happens.

use super::{Shared, Store};
use crate::log::progress::{Group, Need, Seat};
use crate::worker::{Doorbell, Next};
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::sync::OnceLock;
use std::task::{Context, Poll};
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

impl Store {
    /// Ready when it is `until`, or when nothing will come of waiting any more: the store has closed or
    /// latched. `seat` is where the waker stays meanwhile.
    pub(crate) fn poll_until(
        &self,
        until: Instant,
        context: &Context<'_>,
        seat: &mut Option<Seat>,
    ) -> Poll<()> {
        let (shared, now) = (self.shared(), self.shared().core.clock.now());
        if now >= until {
            return Poll::Ready(());
        }
        if seat.is_none() {
            shared.deadlines.add(now, until);
        }
        // What no put waits for: only the deadlines, which wake everyone, and the end wake this one.
        let need = Need { durable: true, confirmed: false };
        let waker = context.waker();
        match shared.core.progress.poll(u64::MAX, need, Group(0), waker, seat) {
            Some(_) => Poll::Ready(()),
            // Looked at once more with the waker in place.
            None if shared.core.clock.now() >= until => Poll::Ready(()),
            None => Poll::Pending,
        }
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
