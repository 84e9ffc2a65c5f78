//! What may be deleted, and when.

use super::{check_duration, refused};
use crate::disk::DiskSpace;
use crate::error::Result;
use std::time::Duration;

const HOUR: Duration = Duration::from_secs(3600);

/// When a file system counts as full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Threshold {
    /// More than this share of it is used, in percent; 1 to 100.
    UsedPercent(u8),
    /// More than so many bytes of it are used, by whomever.
    UsedBytes(u64),
    /// Fewer than so many bytes of it are free.
    FreeBytes(u64),
}

impl Threshold {
    /// Whether a file system with this much room is beyond the threshold. One of size 0 never is.
    pub fn is_exceeded(self, space: DiskSpace) -> bool {
        let used = space.total.saturating_sub(space.available);
        match self {
            Self::UsedPercent(percent) => {
                u128::from(used) * 100 > u128::from(percent) * u128::from(space.total)
            }
            Self::UsedBytes(bytes) => used > bytes,
            Self::FreeBytes(bytes) => space.total > 0 && space.available < bytes,
        }
    }

    fn validate(self, field: &'static str) -> Result<()> {
        match self {
            Self::UsedPercent(percent) if !(1..=100).contains(&percent) => {
                refused(field, percent, "1 to 100 percent")
            }
            _ => Ok(()),
        }
    }
}

/// Which segments are deleted: whole ones, oldest first, never the last one, nor one of which anything
/// is still on its way to the disk, to replicas or to the queues. Queues and index follow. Views that
/// were handed out stay valid; their disk space comes back when the last of them goes.
///
/// A segment goes when it is too old (`file_reserved_time`, in the hours of `delete_when`, or in any
/// hour while the disk is beyond `disk_max_used`), or while the disk is beyond `disk_clean_forcibly`,
/// or while the log is larger than `max_total_bytes`. What is `None` plays no part.
///
/// ```
/// use duralog::config::{Retention, Threshold};
/// use std::time::Duration;
///
/// let week = Retention::rocketmq()
///     .file_reserved_time(Duration::from_secs(7 * 24 * 3600))
///     .disk_warning(Threshold::FreeBytes(10 << 30))
///     .pin_by_groups(true);
/// assert_eq!(week.delete_when, [4]);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Retention {
    /// Age after which a segment may go: that of its newest message, by store time; RocketMQ's
    /// `fileReservedTime`, which goes by the time the file was last modified instead. Where that is a time to
    /// come, because the clock was ahead once, it counts from when this process first saw the segment
    /// followed by another one. At least 1 s.
    pub file_reserved_time: Option<Duration>,
    /// Hours of the local day, 0 to 23, in which segments go for their age; RocketMQ's `deleteWhen`.
    /// Empty means any hour.
    pub delete_when: Vec<u8>,
    /// Beyond it, segments that are old enough go in any hour; RocketMQ's `diskMaxUsedSpaceRatio`.
    pub disk_max_used: Option<Threshold>,
    /// Beyond it, puts are refused; RocketMQ's `diskSpaceWarningLevelRatio`.
    pub disk_warning: Option<Threshold>,
    /// Beyond it, segments go whatever their age; RocketMQ's `diskSpaceCleanForciblyRatio`.
    pub disk_clean_forcibly: Option<Threshold>,
    /// Largest size of the commit log: segments beyond it go whatever their age, in any hour. At
    /// least 1.
    pub max_total_bytes: Option<u64>,
    /// How often this is looked at; RocketMQ's `cleanResourceInterval`. Default 10 s; 1 ms to 1 h.
    pub check_interval: Duration,
    /// How many segments go each time; RocketMQ's `deleteFileBatchMax`. Default 10; at least 1.
    pub delete_batch_max: usize,
    /// Whether a segment stays while a known consumer group has not consumed its messages: those of every
    /// topic that it has begun with, and its retries; or while a dead letter of the group in it was neither
    /// sent back nor [discarded](crate::delivery::DeadLetters::discard). Delayed messages stay until they are
    /// delivered, and half messages until they are decided: those that were shortly before a crash until
    /// somebody asks for [transactions](crate::Store::transactions) again. The disk may fill up then. Default
    /// false.
    pub pin_by_groups: bool,
    /// Whether a segment stays while a replica lacks it that has connected since the store was opened, a RocketMQ
    /// slave that is connected now, and is not farther behind than `PrimaryOptions::max_replica_lag`: one that
    /// is begins anew with the oldest segment. The disk may fill up then. Default false.
    pub pin_by_replicas: bool,
}

impl Retention {
    /// RocketMQ's: 72 hours, deleted from four to five in the morning, or at any time on a disk more
    /// than 75 % full; whatever their age beyond 85 %; puts are refused beyond 90 %.
    pub fn rocketmq() -> Self {
        Self {
            file_reserved_time: Some(72 * HOUR),
            delete_when: vec![4],
            disk_max_used: Some(Threshold::UsedPercent(75)),
            disk_warning: Some(Threshold::UsedPercent(90)),
            disk_clean_forcibly: Some(Threshold::UsedPercent(85)),
            ..Self::nothing()
        }
    }

    /// A log of at most `bytes`, whatever the age of what goes.
    pub fn max_total_bytes(bytes: u64) -> Self {
        Self { max_total_bytes: Some(bytes), ..Self::nothing() }
    }

    fn nothing() -> Self {
        Self {
            file_reserved_time: None,
            delete_when: Vec::new(),
            disk_max_used: None,
            disk_warning: None,
            disk_clean_forcibly: None,
            max_total_bytes: None,
            check_interval: Duration::from_secs(10),
            delete_batch_max: 10,
            pin_by_groups: false,
            pin_by_replicas: false,
        }
    }

    /// Sets [`file_reserved_time`](Self::file_reserved_time).
    pub fn file_reserved_time(mut self, age: Duration) -> Self {
        self.file_reserved_time = Some(age);
        self
    }

    /// Sets [`delete_when`](Self::delete_when).
    pub fn delete_when(mut self, hours: impl IntoIterator<Item = u8>) -> Self {
        self.delete_when = hours.into_iter().collect();
        self
    }

    /// Sets [`disk_max_used`](Self::disk_max_used).
    pub fn disk_max_used(mut self, threshold: Threshold) -> Self {
        self.disk_max_used = Some(threshold);
        self
    }

    /// Sets [`disk_warning`](Self::disk_warning).
    pub fn disk_warning(mut self, threshold: Threshold) -> Self {
        self.disk_warning = Some(threshold);
        self
    }

    /// Sets [`disk_clean_forcibly`](Self::disk_clean_forcibly).
    pub fn disk_clean_forcibly(mut self, threshold: Threshold) -> Self {
        self.disk_clean_forcibly = Some(threshold);
        self
    }

    /// Adds a bound of [`max_total_bytes`](Self::max_total_bytes) to the other rules.
    pub fn total_bytes(mut self, bytes: u64) -> Self {
        self.max_total_bytes = Some(bytes);
        self
    }

    /// Sets [`check_interval`](Self::check_interval).
    pub fn check_interval(mut self, interval: Duration) -> Self {
        self.check_interval = interval;
        self
    }

    /// Sets [`delete_batch_max`](Self::delete_batch_max).
    pub fn delete_batch_max(mut self, segments: usize) -> Self {
        self.delete_batch_max = segments;
        self
    }

    /// Sets [`pin_by_groups`](Self::pin_by_groups).
    pub fn pin_by_groups(mut self, pin: bool) -> Self {
        self.pin_by_groups = pin;
        self
    }

    /// Sets [`pin_by_replicas`](Self::pin_by_replicas).
    pub fn pin_by_replicas(mut self, pin: bool) -> Self {
        self.pin_by_replicas = pin;
        self
    }

    pub(super) fn validate(&self) -> Result<()> {
        if let Some(age) = self.file_reserved_time
            && age < Duration::from_secs(1)
        {
            return refused("file_reserved_time", format!("{age:?}"), "at least 1 s");
        }
        if let Some(hour) = self.delete_when.iter().find(|hour| **hour > 23) {
            return refused("delete_when", hour, "hours from 0 to 23");
        }
        for (field, threshold) in [
            ("disk_max_used", self.disk_max_used),
            ("disk_warning", self.disk_warning),
            ("disk_clean_forcibly", self.disk_clean_forcibly),
        ] {
            threshold.map_or(Ok(()), |threshold| threshold.validate(field))?;
        }
        if self.max_total_bytes == Some(0) {
            return refused("max_total_bytes", 0, "at least 1");
        }
        check_duration("check_interval", self.check_interval)?;
        if self.delete_batch_max == 0 {
            return refused("delete_batch_max", 0, "at least 1");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    fn space(total: u64, available: u64) -> DiskSpace {
        DiskSpace { total, available }
    }

    #[test]
    fn a_threshold_is_exceeded_by_the_first_byte_beyond_it() {
        for (threshold, available) in [
            (Threshold::UsedPercent(75), 250),
            (Threshold::UsedBytes(750), 250),
            (Threshold::FreeBytes(250), 250),
            (Threshold::UsedPercent(100), 0),
        ] {
            assert!(!threshold.is_exceeded(space(1000, available)), "{threshold:?}");
            let beyond = available.checked_sub(1);
            let exceeded = beyond.is_none_or(|free| threshold.is_exceeded(space(1000, free)));
            assert!(exceeded, "{threshold:?}");
        }
        assert!(Threshold::UsedPercent(99).is_exceeded(space(u64::MAX, 1)));
    }

    #[test]
    fn a_file_system_that_tells_no_size_is_never_full() {
        for threshold in
            [Threshold::UsedPercent(1), Threshold::UsedBytes(1), Threshold::FreeBytes(1)]
        {
            assert!(!threshold.is_exceeded(space(0, 0)), "{threshold:?}");
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused_by_name() {
        let refused = |retention: Retention| match retention.validate() {
            Err(Error::Config { field, .. }) => field,
            other => panic!("{other:?}"),
        };
        let base = Retention::rocketmq;
        assert!(base().validate().is_ok());
        assert!(Retention::max_total_bytes(1).validate().is_ok());
        assert_eq!(refused(base().file_reserved_time(Duration::ZERO)), "file_reserved_time");
        assert_eq!(refused(base().delete_when([4, 24])), "delete_when");
        assert_eq!(refused(base().disk_max_used(Threshold::UsedPercent(0))), "disk_max_used");
        assert_eq!(refused(base().disk_warning(Threshold::UsedPercent(101))), "disk_warning");
        let forcibly = base().disk_clean_forcibly(Threshold::UsedPercent(0));
        assert_eq!(refused(forcibly), "disk_clean_forcibly");
        assert_eq!(refused(base().total_bytes(0)), "max_total_bytes");
        assert_eq!(refused(base().check_interval(Duration::ZERO)), "check_interval");
        assert_eq!(refused(base().delete_batch_max(0)), "delete_batch_max");
    }
}
