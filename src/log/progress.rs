//! How far the log has come, told in five offsets, and waiting for it.

#[cfg(all(test, shuttle))]
mod model;
mod sleepers;
mod slot;

pub(crate) use slot::Seat;

use crate::error::Error;
use crate::sync::{AtomicBool, AtomicU64, AtomicUsize, current_thread, fence};
use crate::worker::Alarm;
use sleepers::Sleepers;
use slot::Slot;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::Ordering::{Relaxed, Release, SeqCst};
use std::sync::{Arc, OnceLock};
use std::task::Waker;
use std::time::Instant;

/// Wait slots of a group. Those of one slot wake each other one by one; the first of each is woken by
/// the flusher.
const SLOTS: usize = 8;
/// Groups up to this size use all slots, so that all are back before the next sync begins. In larger
/// ones that does not matter, and waking costs the flusher more than the disk can spare: they use one.
const SPREAD_GROUP_MAX: usize = 24;

/// A number that stays with the calling thread; few threads share one.
pub(crate) fn thread_number() -> usize {
    thread_local! {
        static NUMBER: usize = {
            let mut hasher = DefaultHasher::new();
            current_thread().id().hash(&mut hasher);
            hasher.finish() as usize
        };
    }
    NUMBER.with(|number| *number)
}

/// The five offsets that tell the state of a log. All are physical, in bytes; none ever falls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Watermarks {
    /// Offsets given out.
    pub appended: u64,
    /// In the page cache: survives a kill.
    pub written: u64,
    /// Synced: survives a power cut.
    pub durable: u64,
    /// Held by the replicas that the ack policy asks for; what the log held when it was opened counts.
    /// `u64::MAX` without a replicator.
    pub confirmed: u64,
    /// In the consume queues.
    pub dispatched: u64,
}

/// How far a message has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reached {
    /// It has its offset; a kill may take it.
    Appended,
    /// In the page cache: survives a kill.
    Written,
    /// Synced: survives a power cut.
    Durable,
    /// Synced, and held by the replicas that the ack policy asks for.
    Confirmed,
}

/// What a waiter waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Need {
    pub(crate) durable: bool,
    pub(crate) confirmed: bool,
}

/// Which wait slots a waiter may sleep in: those of its group's parity, so that a finished group wakes
/// nobody else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Group(pub(crate) u64);

/// How a wait ended.
#[derive(Debug, Clone)]
pub(crate) enum Waited {
    Met,
    Latched(Arc<Error>),
    TimedOut,
}

/// The watermarks, the latch, and those who sleep until they move.
///
/// Every store to a watermark and every load by a waiter is `SeqCst`, or there is a `SeqCst` fence
/// behind the store: a waiter announces itself, then looks; a publisher stores, then looks for
/// waiters. In a single total order one of them sees the other, so nobody sleeps through the step it
/// waits for.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    /// Moved by producers with every put.
    producers: Line<Produced>,
    durable: Line<AtomicU64>,
    dispatched: Line<AtomicU64>,
    confirmed: AtomicU64,
    latch: OnceLock<Arc<Error>>,
    ended: AtomicBool,
    visible_by: OnceLock<VisibleBy>,
    visible_alarm: Alarm,
    groups: [[Slot; SLOTS]; 2],
    /// Those who wait for replicas, too. A sync would wake them in vain: a replica is rarely ahead of it.
    confirms: Sleepers,
    /// The tasks among them.
    confirm_tasks: Slot,
    /// How many puts waited in the last group.
    group_size: AtomicUsize,
    flushes: Slot,
    readers: Slot,
    /// Readers who wait for messages to come.
    awaited: AtomicUsize,
}

#[derive(Debug, Default)]
struct Produced {
    appended: AtomicU64,
    written: AtomicU64,
}

/// What some threads change all the time and others look at seldom: in cache lines of its own (two,
/// because processors fetch pairs), so that nothing beside it slows down.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct Line<T>(pub(crate) T);

/// Which watermark, beside `confirmed`, holds readers back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum VisibleBy {
    Written,
    Durable,
}

impl Progress {
    /// A log that ends at `end`, durable and dispatched up to `durable`.
    pub(crate) fn at(end: u64, durable: u64) -> Self {
        let new = Self::default();
        new.producers.0.appended.store(end, SeqCst);
        new.producers.0.written.store(end, SeqCst);
        new.durable.0.store(durable, SeqCst);
        new.confirmed.store(u64::MAX, SeqCst);
        new.dispatched.0.store(durable, SeqCst);
        new
    }

    pub(crate) fn watermarks(&self) -> Watermarks {
        // Read in the order in which they may lag, so that a snapshot keeps dispatched <= written
        // <= appended even while they move.
        let dispatched = self.dispatched.0.load(SeqCst);
        let confirmed = self.confirmed.load(SeqCst);
        let durable = self.durable.0.load(SeqCst);
        let written = self.producers.0.written.load(SeqCst);
        let appended = self.producers.0.appended.load(SeqCst);
        Watermarks { appended, written, durable, confirmed, dispatched }
    }

    pub(crate) fn appended(&self) -> u64 {
        self.producers.0.appended.load(SeqCst)
    }

    pub(crate) fn written(&self) -> u64 {
        self.producers.0.written.load(SeqCst)
    }

    pub(crate) fn durable(&self) -> u64 {
        self.durable.0.load(SeqCst)
    }

    pub(crate) fn confirmed(&self) -> u64 {
        self.confirmed.load(SeqCst)
    }

    pub(crate) fn dispatched(&self) -> u64 {
        self.dispatched.0.load(SeqCst)
    }

    /// Where readers must stop.
    pub(crate) fn visible(&self) -> u64 {
        match self.visible_by.get() {
            None => self.written(),
            Some(VisibleBy::Written) => self.written().min(self.confirmed()),
            Some(VisibleBy::Durable) if canary!("visible_too_far") => self.written(),
            Some(VisibleBy::Durable) => self.durable().min(self.confirmed()),
        }
    }

    /// Says what makes a message visible; without it, being written does. The first call wins.
    pub(crate) fn set_visible_by(&self, visible_by: VisibleBy) {
        let _ = self.visible_by.set(visible_by);
    }

    /// Rung when more has become visible.
    pub(crate) fn visible_alarm(&self) -> &Alarm {
        &self.visible_alarm
    }

    pub(crate) fn reached(&self, end: u64) -> Reached {
        if self.durable() >= end {
            // Without a replicator nobody confirms anything.
            let confirmed = self.confirmed();
            let replicated = confirmed != u64::MAX && confirmed >= end;
            if replicated { Reached::Confirmed } else { Reached::Durable }
        } else if self.written() >= end {
            Reached::Written
        } else {
            Reached::Appended
        }
    }

    /// Called under the append lock, which orders it.
    pub(crate) fn set_appended(&self, end: u64) {
        self.producers.0.appended.store(end, SeqCst);
    }

    /// The two at once, for bytes that are copied straight into the page cache.
    #[inline]
    pub(crate) fn set_appended_and_written(&self, end: u64) {
        self.producers.0.appended.store(end, Release);
        self.producers.0.written.store(end, Release);
        // As good as two `SeqCst` stores for those who look at an alarm next, and half as dear.
        fence(SeqCst);
        self.ring_if_visible();
    }

    /// Called in offset order by whoever holds the log's write side.
    pub(crate) fn set_written(&self, end: u64) {
        self.producers.0.written.store(end, SeqCst);
        self.ring_if_visible();
    }

    /// Rings where being written makes a message visible.
    fn ring_if_visible(&self) {
        if self.visible_by.get() != Some(&VisibleBy::Durable) {
            self.visible_alarm.ring();
        }
    }

    /// Moves `durable` and wakes the group it completes, or everyone.
    pub(crate) fn set_durable(&self, end: u64, group: Option<Group>) {
        let before = self.durable.0.fetch_max(end, SeqCst);
        self.wake_durable(group);
        // Whoever confirms later wakes them then.
        let confirmed = self.confirmed();
        if confirmed > before && confirmed != u64::MAX {
            self.wake_confirmed(confirmed);
        }
        self.flushes.wake();
        self.visible_alarm.ring();
    }

    /// Wakes those who wait for the disk alone: those of `group`, or all.
    fn wake_durable(&self, group: Option<Group>) {
        match group {
            Some(group) => self.slots(group).iter().for_each(Slot::wake),
            None => self.groups.iter().flatten().for_each(Slot::wake),
        }
    }

    /// Lets everyone who waits for a put look again.
    pub(crate) fn wake_puts(&self) {
        self.wake_durable(None);
        self.wake_confirmed(u64::MAX);
    }

    /// Wakes those who wait for replicas, too, and for nothing beyond `end`.
    fn wake_confirmed(&self, end: u64) {
        self.confirms.wake_through(end);
        self.confirm_tasks.wake();
    }

    /// Starts counting confirmations from `end`: from here on puts wait for replicas.
    pub(crate) fn require_confirmation(&self, end: u64) {
        self.confirmed.store(end, SeqCst);
    }

    pub(crate) fn set_confirmed(&self, end: u64) {
        if self.confirmed.fetch_max(end, SeqCst) < end {
            self.wake_confirmed(end);
            self.visible_alarm.ring();
        }
    }

    /// Whether someone sleeps until messages are dispatched.
    pub(crate) fn has_readers(&self) -> bool {
        self.awaited.load(SeqCst) > 0
    }

    pub(crate) fn set_dispatched(&self, end: u64) {
        self.dispatched.0.store(end, SeqCst);
        self.readers.wake();
    }

    /// Refuses every later put with `error` and wakes everyone; the first call wins.
    pub(crate) fn latch(&self, error: Error) -> Arc<Error> {
        let first = self.latch.get_or_init(|| Arc::new(error)).clone();
        self.wake_all();
        first
    }

    pub(crate) fn latched(&self) -> Option<&Arc<Error>> {
        self.latch.get()
    }

    /// Says how many puts wait in a group nowadays.
    pub(crate) fn expect_group(&self, size: usize) {
        if self.group_size.load(Relaxed) != size {
            self.group_size.store(size, Relaxed);
        }
    }

    /// Whether several puts wait in a group nowadays, and for replicas, too.
    pub(crate) fn expects_replicated_group(&self) -> bool {
        self.confirmed() != u64::MAX && self.group_size.load(Relaxed) > 1
    }

    /// The slots of a group.
    fn slots(&self, group: Group) -> &[Slot; SLOTS] {
        let [even, odd] = &self.groups;
        if group.0.is_multiple_of(2) { even } else { odd }
    }

    /// The one in which this thread sleeps until a group is durable, and its number.
    fn slot(&self, group: Group) -> (usize, &Slot) {
        let slots @ [first, ..] = self.slots(group);
        let used = if self.group_size.load(Relaxed) > SPREAD_GROUP_MAX { 1 } else { SLOTS };
        let number = thread_number() % used;
        slots.get(number).map_or((0, first), |slot| (number, slot))
    }

    /// What a wait would answer now.
    pub(crate) fn met(&self, end: u64, need: Need) -> Option<Waited> {
        let durable = !need.durable || self.durable() >= end;
        let confirmed = !need.confirmed || self.confirmed() >= end;
        if durable && confirmed {
            return Some(Waited::Met);
        }
        // A latched store syncs no more, but what is durable may yet be confirmed.
        if !durable && let Some(first) = self.latched() {
            return Some(Waited::Latched(first.clone()));
        }
        self.ended.load(SeqCst).then_some(Waited::TimedOut)
    }

    /// Blocks until `need` holds for all bytes before `end`, the log latches, or time is up.
    pub(crate) fn wait(
        &self,
        end: u64,
        need: Need,
        group: Group,
        deadline: Option<Instant>,
    ) -> Waited {
        let met = || self.met(end, need);
        let waited = match need.confirmed {
            true => self.confirms.wait(end, deadline, met),
            false => self.slot(group).1.wait(deadline, met),
        };
        waited.unwrap_or(Waited::TimedOut)
    }

    /// Blocks until everything before `end` is durable, for a waiter that belongs to no group.
    pub(crate) fn wait_for_flush(&self, end: u64, deadline: Instant) -> Waited {
        let need = Need { durable: true, confirmed: false };
        self.flushes.wait(Some(deadline), || self.met(end, need)).unwrap_or(Waited::TimedOut)
    }

    /// The same for a future: `None` after leaving its waker, in a seat that it keeps.
    pub(crate) fn poll(
        &self,
        end: u64,
        need: Need,
        group: Group,
        waker: &Waker,
        seat: &mut Option<Seat>,
    ) -> Option<Waited> {
        self.met(end, need).or_else(|| {
            let (number, slot) =
                if need.confirmed { (SLOTS, &self.confirm_tasks) } else { self.slot(group) };
            slot.register((number, seat), waker, || self.met(end, need))
        })
    }

    /// Blocks until `done` answers, asking again whenever messages were dispatched.
    pub(crate) fn wait_dispatched<T>(
        &self,
        deadline: Option<Instant>,
        done: impl FnMut() -> Option<T>,
    ) -> Option<T> {
        self.awaited.fetch_add(1, SeqCst);
        // A dispatcher that rests hears of no put; from now on it sleeps instead.
        if let Some(dispatcher) = self.visible_alarm.bell() {
            dispatcher.ring();
        }
        let answer = self.readers.wait(deadline, done);
        self.awaited.fetch_sub(1, SeqCst);
        answer
    }

    /// Lets readers look again.
    pub(crate) fn wake_readers(&self) {
        self.readers.wake();
    }

    /// Nobody moves a watermark any more: whoever waits is answered with what has been reached.
    pub(crate) fn end(&self) {
        self.ended.store(true, SeqCst);
        self.wake_all();
    }

    /// Lets every waiter look again.
    pub(crate) fn wake_all(&self) {
        self.wake_puts();
        self.flushes.wake();
        self.readers.wake();
    }
}
