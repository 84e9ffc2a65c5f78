//! What a consumer group has of one queue: what is done with, what is lent, and what goes back.
//!
//! Plain state, told the time: no store, no thread, no clock.

use std::collections::{BTreeSet, VecDeque};
use std::ops::Range;
use std::time::Instant;

/// Says whose a message is: whoever was given it last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct LeaseId(u64);

/// Who holds leases: a consumer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Owner(pub(super) u64);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Slot {
    Done,
    /// Somebody has it.
    Lent(LeaseId),
    /// To be given out again, from then on.
    Back(Instant),
}

/// One message's place.
#[derive(Debug, Clone, Copy)]
struct Place {
    slot: Slot,
    /// How often it was given out and not handled.
    failures: u32,
}

const DONE: Place = Place { slot: Slot::Done, failures: 0 };

#[derive(Debug)]
struct Lease {
    id: LeaseId,
    owner: Owner,
    until: Instant,
    /// Its messages lie in this range; some of it may be others'.
    range: Range<u64>,
    open: u32,
}

/// A message that comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Again {
    pub(super) offset: u64,
    /// How often it was given out and not handled.
    pub(super) failures: u32,
}

/// The messages of a queue that lie before the one to be read next and are not all done with.
#[derive(Debug)]
pub(super) struct InFlight {
    /// Everything before this offset is done with.
    floor: u64,
    places: VecDeque<Place>,
    /// In the order of their ids.
    leases: VecDeque<Lease>,
    last_lease: u64,
    /// No lease ends before.
    first_end: Option<Instant>,
    /// What is to be given out again, and when.
    back: BTreeSet<(Instant, u64)>,
    /// Messages are lent in order: one lease at a time, and nothing passes what goes back.
    ordered: bool,
}

impl InFlight {
    pub(super) fn new(floor: u64, ordered: bool) -> Self {
        Self {
            floor,
            places: VecDeque::new(),
            leases: VecDeque::new(),
            last_lease: 0,
            first_end: None,
            back: BTreeSet::new(),
            ordered,
        }
    }

    /// Everything before this offset is done with.
    pub(super) fn floor(&self) -> u64 {
        self.floor
    }

    /// The first message that was never looked at.
    pub(super) fn next(&self) -> u64 {
        self.floor + self.places.len() as u64
    }

    /// How many messages may be looked at before the floor must move, with at most `span` between them.
    pub(super) fn room(&self, span: usize) -> usize {
        if self.ordered && (!self.leases.is_empty() || !self.back.is_empty()) {
            return 0;
        }
        span.saturating_sub(self.places.len())
    }

    /// When to look again for what may be given out, if nobody settles anything.
    pub(super) fn due(&self) -> Option<Instant> {
        let back = match self.ordered {
            true if !self.leases.is_empty() => None,
            true => self.first_back(),
            false => self.back.first().copied(),
        };
        let ends = self.first_end.filter(|_| !self.leases.is_empty());
        back.map(|(when, _)| when).into_iter().chain(ends).min()
    }

    /// The one that goes back with the lowest offset.
    fn first_back(&self) -> Option<(Instant, u64)> {
        self.back.iter().copied().min_by_key(|(_, offset)| *offset)
    }

    fn place(&mut self, offset: u64) -> Option<&mut Place> {
        let index = usize::try_from(offset.checked_sub(self.floor)?).ok()?;
        self.places.get_mut(index)
    }

    fn failures(&self, offset: u64) -> u32 {
        let index = offset.checked_sub(self.floor).and_then(|index| usize::try_from(index).ok());
        index.and_then(|index| self.places.get(index)).map_or(0, |place| place.failures)
    }

    fn lease(&self, id: LeaseId) -> Option<&Lease> {
        let index = self.leases.binary_search_by_key(&id, |lease| lease.id).ok()?;
        self.leases.get(index)
    }

    /// Goes on at `offset` where that lies behind: what was before it is not there any more.
    pub(super) fn skip_to(&mut self, offset: u64) {
        let gone = offset.saturating_sub(self.floor);
        if gone == 0 {
            return;
        }
        let places = usize::try_from(gone).map_or(self.places.len(), |n| n.min(self.places.len()));
        for _ in 0..places {
            if let Some(Place { slot: Slot::Lent(lease), .. }) = self.places.pop_front() {
                self.close_one(lease);
            }
        }
        self.back.retain(|(_, back)| *back >= offset);
        self.floor = offset;
        self.advance();
    }

    /// Lends the messages at `found`, ascending, all before `until`; what lies between them and is new is
    /// passed over.
    pub(super) fn lend(
        &mut self,
        found: impl IntoIterator<Item = u64>,
        until: u64,
        owner: Owner,
        deadline: Instant,
    ) -> LeaseId {
        let id = self.new_lease();
        let first = self.next();
        let mut open = 0;
        for offset in found {
            self.pass_over(offset);
            self.places.push_back(Place { slot: Slot::Lent(id), failures: 0 });
            open += 1;
        }
        self.pass_over(until);
        self.add_lease(Lease { id, owner, until: deadline, range: first..until, open });
        self.advance();
        id
    }

    fn pass_over(&mut self, until: u64) {
        if self.places.is_empty() {
            self.floor = self.floor.max(until);
        }
        while self.next() < until {
            self.places.push_back(DONE);
        }
    }

    fn new_lease(&mut self) -> LeaseId {
        self.last_lease += 1;
        LeaseId(self.last_lease)
    }

    fn add_lease(&mut self, lease: Lease) {
        if lease.open > 0 {
            self.first_end = Some(self.first_end.map_or(lease.until, |end| end.min(lease.until)));
            self.leases.push_back(lease);
        }
    }

    /// Lends at most `max` messages that went back and are due. One that failed comes alone: whatever is
    /// wrong with it is not to be held against others.
    pub(super) fn lend_again(
        &mut self,
        max: usize,
        now: Instant,
        owner: Owner,
        deadline: Instant,
    ) -> Option<(LeaseId, Vec<Again>)> {
        if self.back.is_empty() || max == 0 {
            return None;
        }
        let mut offsets: Vec<u64> = if self.ordered {
            if !self.leases.is_empty() || self.first_back().is_none_or(|(when, _)| when > now) {
                return None;
            }
            self.back.iter().map(|(_, offset)| *offset).collect()
        } else {
            let due = self.back.iter().take_while(|(when, _)| *when <= now);
            due.take(max).map(|(_, offset)| *offset).collect()
        };
        offsets.sort_unstable();
        offsets.truncate(max);
        let failed = |offset: &u64| self.failures(*offset) > 0;
        let alone = offsets.iter().position(failed).map(|at| at.max(1));
        offsets.truncate(alone.unwrap_or(max));
        let range = *offsets.first()?..*offsets.last()? + 1;
        let id = self.new_lease();
        let mut again = Vec::with_capacity(offsets.len());
        for offset in offsets {
            let Some(place) = self.place(offset) else { continue };
            let failures = place.failures;
            let when = match std::mem::replace(&mut place.slot, Slot::Lent(id)) {
                Slot::Back(when) => when,
                Slot::Done | Slot::Lent(_) => continue,
            };
            self.back.remove(&(when, offset));
            again.push(Again { offset, failures });
        }
        let open = again.len() as u32;
        self.add_lease(Lease { id, owner, until: deadline, range, open });
        Some((id, again))
    }

    /// Notes that a message is done with, if it is whoever asks who has it.
    pub(super) fn settle(&mut self, offset: u64, lease: LeaseId) -> bool {
        match self.place(offset) {
            Some(place) if place.slot == Slot::Lent(lease) => place.slot = Slot::Done,
            _ => return false,
        }
        self.close_one(lease);
        self.advance();
        true
    }

    /// Whether that message is lent under that lease.
    pub(super) fn is_lent(&mut self, offset: u64, lease: LeaseId) -> bool {
        self.place(offset).is_some_and(|place| place.slot == Slot::Lent(lease))
    }

    /// Takes a message back, to be given out again from `when` on; in order, also what was lent with it
    /// and lies behind it.
    pub(super) fn give_back(
        &mut self,
        offset: u64,
        lease: LeaseId,
        when: Instant,
        failed: bool,
    ) -> bool {
        if !self.is_lent(offset, lease) {
            return false;
        }
        let lent = self.lease(lease).filter(|_| self.ordered);
        let end = lent.map_or(offset + 1, |lease| lease.range.end);
        for each in offset..end {
            self.take_back(each, lease, when, failed && each == offset);
        }
        true
    }

    /// Takes back what was lent with a message and lies behind it.
    pub(super) fn give_back_behind(&mut self, offset: u64, lease: LeaseId, when: Instant) {
        let end = self.lease(lease).map_or(0, |lease| lease.range.end);
        for each in offset + 1..end {
            self.take_back(each, lease, when, false);
        }
    }

    fn take_back(&mut self, offset: u64, lease: LeaseId, when: Instant, failed: bool) -> bool {
        let Some(place) = self.place(offset) else { return false };
        if place.slot != Slot::Lent(lease) {
            return false;
        }
        place.slot = Slot::Back(when);
        if failed {
            place.failures = place.failures.saturating_add(1);
        }
        self.back.insert((when, offset));
        self.close_one(lease);
        true
    }

    /// Takes back what was lent for longer than agreed.
    pub(super) fn expire(&mut self, now: Instant) {
        if self.first_end.is_none_or(|end| end > now) {
            return;
        }
        self.end_leases(|lease| lease.until <= now, now, true);
        self.first_end = self.leases.iter().map(|lease| lease.until).min();
    }

    /// Takes back what a consumer has that goes.
    pub(super) fn release(&mut self, owner: Owner, now: Instant) {
        self.end_leases(|lease| lease.owner == owner, now, false);
    }

    fn end_leases(&mut self, ends: impl Fn(&Lease) -> bool, now: Instant, failed: bool) {
        let ended = self.leases.iter().filter(|lease| ends(lease));
        let ended: Vec<_> = ended.map(|lease| (lease.id, lease.range.clone())).collect();
        for (id, range) in ended {
            let mut failed = failed;
            for offset in range {
                let taken = self.take_back(offset, id, now, failed);
                // In order, whoever had them all was still at the first.
                failed &= !(taken && self.ordered);
            }
        }
    }

    /// One message of a lease is out of it.
    fn close_one(&mut self, lease: LeaseId) {
        let Ok(index) = self.leases.binary_search_by_key(&lease, |lease| lease.id) else { return };
        if let Some(found) = self.leases.get_mut(index) {
            found.open = found.open.saturating_sub(1);
            if found.open == 0 {
                self.leases.remove(index);
            }
        }
    }

    /// Moves the floor over what is done with.
    fn advance(&mut self) {
        while let Some(Place { slot: Slot::Done, .. }) = self.places.front() {
            self.places.pop_front();
            self.floor += 1;
        }
    }
}

#[cfg(test)]
mod tests;
