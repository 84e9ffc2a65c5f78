//! Ids for messages that bring none, of the form that RocketMQ's clients give theirs.

use crate::clock::{Clock, civil_from_days, local_millis};
use crate::message::names;
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

const DAY: i64 = 24 * 3600 * 1000;
/// After so many milliseconds the clock on the wall is asked again: someone may have set it.
const ASK_AGAIN: u64 = 1000;
/// Name, 1, 56 digits where the address is of IPv6, and 2.
const ENTRY_MAX: usize = names::UNIQ_KEY.len() + 1 + 56 + 1;

/// Gives out ids that no other one gives out: not in this process, nor, as far as chance can tell, in
/// any other.
///
/// An id is address, process, a number of its own, milliseconds of the month and counter. The number
/// differs for each of these and for each month, so that nothing is left to chance within a process;
/// where processes may have the same address and number, it begins with 32 random bits, and 32 more take
/// the place of an address that is the same everywhere.
///
/// They are those of the process that made this: a store does not live on in a process that is forked, and
/// asking each time which one it is would be a system call for each message. [`of_process`] asks.
#[derive(Debug)]
pub(in crate::delivery) struct UniqueIds {
    /// Milliseconds since 1970, shifted by the 16 bits of the counter: never the same twice, also when the
    /// clock stands or goes back.
    last: AtomicU64,
    address: IpAddr,
    month: Month,
    calendar: Calendar,
}

/// What date it is, without asking the clock on the wall each time.
#[derive(Debug)]
struct Calendar {
    origin: Instant,
    /// When that clock was asked last, in milliseconds since `origin`.
    asked: AtomicU64,
    /// What it said, in milliseconds since 1970, less `asked`.
    ahead: AtomicI64,
}

impl Calendar {
    fn new(clock: &dyn Clock) -> Self {
        let ahead = AtomicI64::new(clock.unix_millis());
        Self { origin: clock.now(), asked: AtomicU64::new(0), ahead }
    }

    /// Milliseconds since 1970 when it is `now`.
    fn unix_millis(&self, clock: &dyn Clock, now: Instant) -> u64 {
        let since = now.saturating_duration_since(self.origin).as_millis() as u64;
        if since.saturating_sub(self.asked.load(Ordering::Relaxed)) >= ASK_AGAIN {
            self.asked.store(since, Ordering::Relaxed);
            let ahead = clock.unix_millis().saturating_sub(since.cast_signed());
            self.ahead.store(ahead, Ordering::Relaxed);
        }
        let ahead = self.ahead.load(Ordering::Relaxed);
        ahead.saturating_add(since.cast_signed()).max(0).cast_unsigned()
    }
}

/// What the ids of a month have in common.
#[derive(Debug)]
struct Month {
    /// In milliseconds since 1970.
    start: u64,
    end: u64,
    /// The property as far as it is the same for all.
    head: Entry,
    next: OnceLock<Box<Month>>,
}

/// The property of an id, as it is written: name, 1, digits, 2.
#[derive(Debug, Clone, Copy)]
pub(in crate::delivery) struct Entry {
    bytes: [u8; ENTRY_MAX],
    len: usize,
}

impl UniqueIds {
    /// Ids of a client at `address`.
    pub(in crate::delivery) fn new(clock: &dyn Clock, address: IpAddr) -> Self {
        let address = match address {
            // RocketMQ, too, makes up an address where it knows none.
            address if address.is_loopback() || address.is_unspecified() => {
                let random = (seed() >> 32) as u32;
                random.to_be_bytes().into()
            }
            address => address,
        };
        let now = clock.unix_millis().max(0).cast_unsigned();
        let month = Month::of(now, clock, address);
        Self { last: AtomicU64::new(now << 16), address, month, calendar: Calendar::new(clock) }
    }

    /// The next one. It is `now`, by `clock`.
    pub(in crate::delivery) fn next(&self, clock: &dyn Clock, now: Instant) -> Entry {
        let now = self.calendar.unix_millis(clock, now) << 16;
        let following = |last: u64| now.max(last.wrapping_add(1));
        let updated = self
            .last
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| Some(following(last)));
        let next = updated.map_or(now, following);
        let (millis, counter) = (next >> 16, next as u16);
        let mut month = &self.month;
        while millis >= month.end {
            let following = || Box::new(Month::of(millis, clock, self.address));
            month = month.next.get_or_init(following);
        }
        let mut entry = month.head;
        let since = u32::try_from(millis.saturating_sub(month.start)).unwrap_or(u32::MAX);
        let value = u64::from(since) << 16 | u64::from(counter);
        let mut tail = [2; 13];
        for (index, place) in tail.iter_mut().take(12).enumerate() {
            *place = hex_digit((value >> (44 - 4 * index)) as u8 & 0xF);
        }
        entry.push(&tail);
        entry
    }
}

impl Month {
    /// The one of `millis` since 1970.
    fn of(millis: u64, clock: &dyn Clock, address: IpAddr) -> Self {
        let mut head = Entry { bytes: [0; ENTRY_MAX], len: 0 };
        head.push(names::UNIQ_KEY.as_bytes());
        head.push(&[1]);
        match address {
            IpAddr::V4(ip) => head.push_hex(&ip.octets()),
            IpAddr::V6(ip) => head.push_hex(&ip.octets()),
        }
        head.push_hex(&(std::process::id() as u16).to_be_bytes());
        head.push_hex(&number().to_be_bytes());
        let (start, end) = month_around(millis.cast_signed(), clock);
        // Whatever the clock says of time zones: it is a month around `millis`.
        let longest = 32 * DAY.cast_unsigned();
        let start = start.clamp(millis.saturating_sub(longest), millis);
        let end = end.clamp(millis + 1, millis + longest);
        Self { start, end, head, next: OnceLock::new() }
    }
}

/// When the local month of a time began and when it ends.
fn month_around(millis: i64, clock: &dyn Clock) -> (u64, u64) {
    let day_of_month = |day: i64| civil_from_days(day).2;
    let today = local_millis(clock, millis).div_euclid(DAY);
    let first = today - (day_of_month(today) - 1);
    // 32 days on, it is early in the next month.
    let later = first + 32;
    let next = later - (day_of_month(later) - 1);
    let instant_of = |day: i64| {
        let local = day.saturating_mul(DAY);
        let ahead = local_millis(clock, local).saturating_sub(local);
        u64::try_from(local.saturating_sub(ahead)).unwrap_or(0)
    };
    (instant_of(first), instant_of(next))
}

/// What is this process's own. A child that it forks begins with all that is in its memory, and is to give
/// out other ids.
struct Life {
    pid: u32,
    seed: u64,
    ids: OnceLock<UniqueIds>,
    /// That of a child, in the memory of the child.
    next: OnceLock<Box<Life>>,
}

impl Life {
    fn of(pid: u32) -> Self {
        let seed = RandomState::new().hash_one(pid);
        Self { pid, seed, ids: OnceLock::new(), next: OnceLock::new() }
    }

    /// That of the process `pid`, which this one is: a system call told. Without a lock, which another thread
    /// might hold when the process is forked.
    fn at(&self, pid: u32) -> &Self {
        let mut last = self;
        while let Some(next) = last.next.get() {
            last = next;
        }
        if last.pid == pid {
            return last;
        }
        last.next.get_or_init(|| Box::new(Self::of(pid)))
    }

    fn current() -> &'static Self {
        static FIRST: OnceLock<Life> = OnceLock::new();
        let pid = std::process::id();
        FIRST.get_or_init(|| Self::of(pid)).at(pid)
    }
}

/// Ids for what has no store. They are other ones in a process that this one forks.
pub(in crate::delivery) fn of_process(clock: &dyn Clock) -> &'static UniqueIds {
    Life::current().ids.get_or_init(|| UniqueIds::new(clock, Ipv4Addr::LOCALHOST.into()))
}

/// Random bits of this process.
fn seed() -> u64 {
    Life::current().seed
}

/// A number that this process has not used before.
fn number() -> u32 {
    static NUMBERS: AtomicU32 = AtomicU32::new(0);
    (seed() as u32).wrapping_add(NUMBERS.fetch_add(1, Ordering::Relaxed))
}

impl Entry {
    /// The id itself.
    pub(in crate::delivery) fn id(&self) -> &str {
        let digits = self.bytes.get(names::UNIQ_KEY.len() + 1..self.len.saturating_sub(1));
        str::from_utf8(digits.unwrap_or_default()).unwrap_or_default()
    }

    pub(in crate::delivery) fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }

    fn push(&mut self, bytes: &[u8]) {
        let end = self.len + bytes.len();
        if let Some(place) = self.bytes.get_mut(self.len..end) {
            place.copy_from_slice(bytes);
            self.len = end;
        }
    }

    fn push_hex(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.push(&[hex_digit(byte >> 4), hex_digit(byte & 0xF)]);
        }
    }
}

fn hex_digit(value: u8) -> u8 {
    if value < 10 { b'0' + value } else { b'A' - 10 + value }
}

#[cfg(all(test, feature = "sim"))]
mod tests {
    use super::*;
    use crate::clock::{ManualClock, SystemClock};
    use crate::message::UniqueKey;
    use std::collections::HashSet;
    use std::net::Ipv6Addr;
    use std::time::Duration;

    /// 2026-11-26 09:00 UTC.
    const NOVEMBER: i64 = 1_795_683_600_000;

    fn parsed(entry: &Entry) -> UniqueKey {
        let key = UniqueKey::parse(entry.id()).expect("an id of RocketMQ's form");
        assert_eq!(key.to_string(), entry.id());
        key
    }

    fn next(ids: &UniqueIds, clock: &ManualClock) -> UniqueKey {
        parsed(&ids.next(clock, clock.now()))
    }

    const MILLIS: Duration = Duration::from_millis(1);

    #[test]
    fn an_id_tells_address_process_and_time_as_those_of_rocketmq_do() {
        let clock = ManualClock::new(NOVEMBER);
        let ids = UniqueIds::new(&clock, [192, 168, 1, 2].into());
        clock.advance(5 * MILLIS);
        let id = ids.next(&clock, clock.now());
        let property = format!("UNIQ_KEY\u{1}{}\u{2}", id.id());
        assert_eq!(id.as_bytes(), property.as_bytes());
        let key = parsed(&id);
        assert_eq!((key.ip, key.pid), ([192, 168, 1, 2].into(), std::process::id() as u16));
        // 25 days and nine hours into the month.
        assert_eq!((key.millis_of_month, key.counter), ((25 * 24 + 9) * 3_600_000 + 5, 0));
        assert_eq!(next(&ids, &clock).counter, 1);
        // A time that goes back brings no id back.
        let later = parsed(&ids.next(&clock, clock.now() - 3 * MILLIS));
        assert_eq!((later.millis_of_month, later.counter), (key.millis_of_month, 2));
        clock.advance(7000 * MILLIS);
        assert_eq!(next(&ids, &clock).millis_of_month, key.millis_of_month + 7000);
        let v6 = UniqueIds::new(&clock, Ipv6Addr::new(1, 2, 3, 4, 5, 6, 7, 8).into());
        assert_eq!(v6.next(&clock, clock.now()).id().len(), 56);
    }

    #[test]
    fn each_month_has_a_number_of_its_own() {
        let clock = ManualClock::new(NOVEMBER);
        let ids = UniqueIds::new(&clock, [127, 0, 0, 1].into());
        let november = next(&ids, &clock);
        // 30 November, 23:59:59.999, and a millisecond later.
        let end = 4 * DAY + 15 * 3_600_000;
        clock.advance(MILLIS * (end as u32 - 1));
        let last = next(&ids, &clock);
        assert_eq!(last.class_loader_hash, november.class_loader_hash);
        assert_eq!(i64::from(last.millis_of_month), 30 * DAY - 1);
        clock.advance(MILLIS);
        let december = next(&ids, &clock);
        assert_eq!(december.millis_of_month, 0);
        assert_ne!(december.class_loader_hash, november.class_loader_hash);
        // The same time of a later month.
        clock.advance(Duration::from_millis((61 * DAY - end).cast_unsigned()));
        let next = next(&ids, &clock);
        assert_eq!(next.millis_of_month, november.millis_of_month);
        assert_ne!(next.class_loader_hash, november.class_loader_hash);
        assert_ne!(next.ip, IpAddr::from([127, 0, 0, 1]), "the same everywhere");
    }

    #[test]
    fn a_clock_that_somebody_sets_is_followed() {
        #[derive(Debug)]
        struct Set(ManualClock, AtomicI64);
        impl Clock for Set {
            fn now(&self) -> Instant {
                self.0.now()
            }
            fn unix_millis(&self) -> i64 {
                self.0.unix_millis() + self.1.load(Ordering::Relaxed)
            }
        }
        let clock = Set(ManualClock::new(NOVEMBER), AtomicI64::new(0));
        let ids = UniqueIds::new(&clock, [1, 2, 3, 4].into());
        let next = || parsed(&ids.next(&clock, clock.now())).millis_of_month;
        let before = next();
        clock.1.store(3_600_000, Ordering::Relaxed);
        clock.0.advance(2000 * MILLIS);
        assert_eq!(next(), before + 3_602_000);
    }

    #[test]
    fn a_forked_process_has_a_seed_and_ids_of_its_own() {
        let parent = Life::of(7);
        assert_eq!(parent.at(7).seed, parent.seed);
        let child = parent.at(8);
        assert_ne!(child.seed, parent.seed);
        assert!(std::ptr::eq(parent.at(8), child));
        // The number of one that has ended is given out again.
        assert!(!std::ptr::eq(child.at(7), &raw const parent));
        assert!(std::ptr::eq(of_process(&SystemClock), of_process(&SystemClock)));
    }

    #[test]
    fn months_begin_at_midnight_where_the_clock_hangs() {
        #[derive(Debug)]
        struct Abroad;
        impl Clock for Abroad {
            fn now(&self) -> Instant {
                Instant::now()
            }
            fn unix_millis(&self) -> i64 {
                NOVEMBER
            }
            fn utc_offset_seconds(&self, _: i64) -> i64 {
                -5 * 3600
            }
        }
        let ids = UniqueIds::new(&Abroad, [1, 2, 3, 4].into());
        let key = parsed(&ids.next(&Abroad, ids.calendar.origin));
        assert_eq!(key.millis_of_month, (25 * 24 + 9 - 5) * 3_600_000);
    }

    #[test]
    fn four_threads_and_two_producers_never_give_out_the_same_while_the_clock_stands() {
        let clock = ManualClock::new(NOVEMBER);
        let producers = [0; 2].map(|_| UniqueIds::new(&clock, [127, 0, 0, 1].into()));
        let (clock, producers) = (&clock, &producers);
        let ids = std::thread::scope(|scope| {
            let threads = [0, 1, 0, 1].map(|producer: usize| {
                scope.spawn(move || {
                    let ids = (0..100_000).map(|count| {
                        if count % 30_000 == 0 {
                            clock.advance(Duration::from_millis(1));
                        }
                        let id = producers[producer].next(clock, clock.now());
                        id.id().to_owned()
                    });
                    ids.collect::<Vec<_>>()
                })
            });
            threads.map(|thread| thread.join().unwrap()).concat()
        });
        assert_eq!(ids.iter().collect::<HashSet<_>>().len(), 400_000);
    }
}
