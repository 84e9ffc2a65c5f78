//! Time as the store sees it: a monotonic clock for deadlines, a wall clock for store timestamps.

use std::fmt;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Where the store reads the time.
///
/// Timestamps, deadlines and intervals are told by it. What sleeps until such an instant sleeps by the
/// operating system's clock, though, and so do two short pauses of the queues' threads. A test owns
/// time completely if it steps the workers itself ([`Threads::Stepped`](crate::Threads::Stepped)) and
/// calls nothing that blocks.
pub trait Clock: Send + Sync + fmt::Debug {
    /// A monotonic instant, for deadlines and intervals.
    fn now(&self) -> Instant;

    /// Milliseconds since the Unix epoch, for store and born timestamps. It may step back: store
    /// timestamps never do.
    fn unix_millis(&self) -> i64;

    /// How many seconds local time is ahead of UTC at that time, for the names of index files and the
    /// hours of retention. UTC itself unless the clock knows better.
    fn utc_offset_seconds(&self, unix_millis: i64) -> i64 {
        let _ = unix_millis;
        0
    }
}

/// A time in milliseconds since the epoch, as a clock on the wall shows it.
pub(crate) fn local_millis(clock: &dyn Clock, unix_millis: i64) -> i64 {
    unix_millis.saturating_add(clock.utc_offset_seconds(unix_millis).saturating_mul(1000))
}

/// The date of a day counted from 1970-01-01, in the Gregorian calendar.
pub(crate) fn civil_from_days(days: i64) -> (i64, i64, i64) {
    // Years that begin in March have their leap day at the end; 400 of them are an era.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let (month, carry) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (era * 400 + year_of_era + carry, month, day)
}

/// The operating system's clocks.
#[derive(Debug, Default, Clone, Copy)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Instant {
        Instant::now()
    }

    fn unix_millis(&self) -> i64 {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH);
        since_epoch.map_or(0, |d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX))
    }

    fn utc_offset_seconds(&self, unix_millis: i64) -> i64 {
        crate::disk::utc_offset_seconds(unix_millis.div_euclid(1000))
    }
}

/// A clock that moves only when told to (feature `sim`).
#[cfg(feature = "sim")]
#[derive(Debug)]
pub struct ManualClock {
    origin: Instant,
    elapsed_micros: std::sync::atomic::AtomicU64,
    epoch_millis: i64,
}

#[cfg(feature = "sim")]
impl ManualClock {
    /// A clock that stands at `epoch_millis` milliseconds after the Unix epoch.
    pub fn new(epoch_millis: i64) -> Self {
        Self { origin: Instant::now(), elapsed_micros: Default::default(), epoch_millis }
    }

    /// Moves both clocks forward.
    pub fn advance(&self, by: std::time::Duration) {
        let micros = u64::try_from(by.as_micros()).unwrap_or(u64::MAX);
        self.elapsed_micros.fetch_add(micros, std::sync::atomic::Ordering::SeqCst);
    }

    fn elapsed_micros(&self) -> u64 {
        self.elapsed_micros.load(std::sync::atomic::Ordering::SeqCst)
    }
}

#[cfg(feature = "sim")]
impl Clock for ManualClock {
    fn now(&self) -> Instant {
        self.origin + std::time::Duration::from_micros(self.elapsed_micros())
    }

    fn unix_millis(&self) -> i64 {
        self.epoch_millis + (self.elapsed_micros() / 1000) as i64
    }
}
