//! Deleting what has expired: whole segments, oldest first, and what queues and index say of them.

use super::Shared;
use super::offsets::wanted_topics;
use super::stats::QueueWork;
use crate::clock::local_millis;
use crate::config::{Retention, Threshold};
use crate::disk::DiskSpace;
use crate::error::{Error, IoContext, IoOp, Result};
use crate::log::ConsumeQueue;
use crate::message::format::{
    CHECKED_IN_VAIN_TOPIC, DELAY_GROUP, HALF_DONE_TOPIC, HALF_TOPIC, SCHEDULE_TOPIC, TIMER_TOPIC,
    TRANSACTION_GROUP,
};
use crate::tables::{ConsumerOffsets, QueueProgress};
use crate::worker::Next;
use parking_lot::{Mutex, MutexGuard};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const HOUR_MS: i64 = 3600 * 1000;

/// What retention has deleted since the store was opened, and what holds it up.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RetentionStats {
    /// Segments deleted.
    pub segments: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Messages deleted that a known consumer group had not consumed, counted once for each group.
    pub unconsumed: u64,
    /// What kept the oldest segment that is due from being deleted when that was last looked at.
    pub pinned_by: Vec<Pinned>,
}

/// Someone who needs a segment that is due to be deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Pinned {
    /// A replica lacks what lies behind this physical offset.
    Replica {
        /// The physical offset.
        floor: u64,
    },
    /// A consumer group has not consumed what is in the segment.
    Group {
        /// Its name.
        group: String,
        /// The topic.
        topic: String,
        /// The queue.
        queue_id: i32,
        /// The queue offset of the next message it has not consumed.
        offset: u64,
    },
}

/// The state of retention.
#[derive(Debug, Default)]
pub(crate) struct Expiry {
    stats: Mutex<RetentionStats>,
    /// The disk is beyond the level at which puts are refused.
    refuses: AtomicBool,
    next: Mutex<Option<Instant>>,
    /// Held while segments are deleted, and by whoever needs all of them.
    deleting: Mutex<()>,
    /// Where segments end that were seen to be followed by others, and when they were first.
    ended: Mutex<VecDeque<(u64, Instant)>>,
}

impl Expiry {
    /// Keeps every segment until the guard goes.
    pub(super) fn hold(&self) -> MutexGuard<'_, ()> {
        self.deleting.lock()
    }

    pub(super) fn stats(&self) -> RetentionStats {
        self.stats.lock().clone()
    }
}

/// Why segments may go at the moment.
struct Reasons {
    /// Whatever their age.
    forced: bool,
    /// Those last written before this time, in milliseconds since the epoch.
    older_than: Option<i64>,
}

impl Shared {
    /// The error for a put while the disk is beyond the warning level.
    #[inline]
    pub(super) fn check_disk(&self, needed: u64) -> Result<()> {
        if !self.expiry.refuses.load(Ordering::Relaxed) {
            return Ok(());
        }
        let path = self.core.directory().commitlog().to_owned();
        let space = self.core.disk.space(self.core.directory().root()).ok();
        Err(Error::DiskFull { path, needed, available: space.map(|space| space.available) })
    }

    pub(super) fn retention_step(&self) -> Next {
        let Some(retention) = &self.config.retention else { return Next::Idle };
        let now = self.core.clock.now();
        let mut next = self.expiry.next.lock();
        if let Some(due) = next.filter(|due| now < *due) {
            return Next::At(due);
        }
        if self.core.progress.latched().is_some() || self.core.config.read_only {
            return Next::Idle;
        }
        let Some(_deleting) = self.expiry.deleting.try_lock() else {
            // Whoever needs them all is asked again soon, and not waited for: the store may be closing.
            return Next::At(now + retention.check_interval);
        };
        self.note_ends();
        let outcome = self.expire(retention);
        let more = matches!(outcome, Ok(true));
        self.stats.queue_work(QueueWork::Expire, outcome.err());
        if more {
            return Next::Now;
        }
        let due = now + retention.check_interval;
        *next = Some(due);
        Next::At(due)
    }

    /// Deletes what is due, a batch of segments at most; whether there may be more.
    fn expire(&self, retention: &Retention) -> Result<bool> {
        let root = self.core.directory().root();
        let space = self.core.disk.space(root).at(IoOp::Open, root)?;
        self.watch_disk(retention, space);
        let mut pinned = Vec::new();
        let mut deleted = 0;
        while deleted < retention.delete_batch_max {
            let space = self.core.disk.space(root).at(IoOp::Open, root)?;
            let Some(end) = self.oldest_due(&self.reasons(retention, space)) else { break };
            if !self.queues_are_durable(end) {
                break;
            }
            // All that lies before is in its queue by now, however new that is.
            let offsets = self.wanted()?;
            pinned = self.pins_before(end, retention, &offsets)?;
            if !pinned.is_empty() {
                break;
            }
            self.delete_before(end, &offsets)?;
            deleted += 1;
        }
        if deleted > 0 {
            // Queue files go once no table counts on them any more.
            self.checkpointer.want();
        }
        let more = deleted == retention.delete_batch_max;
        self.expiry.stats.lock().pinned_by = pinned;
        Ok(more)
    }

    /// How far all groups have come, also in queues in which they have yet to begin: of the topics that they
    /// consume, of their retries and dead letters, and of what waits to be delivered.
    fn wanted(&self) -> Result<ConsumerOffsets> {
        let mut offsets = self.offsets.known()?;
        let known = offsets.iter().map(|QueueProgress { group, topic, .. }| (group, topic));
        let mut topics = wanted_topics(known);
        topics.extend(
            [
                (DELAY_GROUP, SCHEDULE_TOPIC),
                (DELAY_GROUP, TIMER_TOPIC),
                (TRANSACTION_GROUP, HALF_TOPIC),
                (TRANSACTION_GROUP, CHECKED_IN_VAIN_TOPIC),
            ]
            .map(|(group, topic)| (group.to_owned(), topic.to_owned())),
        );
        for (group, topic) in topics {
            for queue_id in self.queues.ids(&topic) {
                if offsets.get(&topic, &group, queue_id).is_none() {
                    // A name that no group can have is none.
                    let _ = offsets.set(&topic, &group, queue_id, 0);
                }
            }
        }
        // Entries are wanted for the half messages before them in the log, which are waited for.
        for (topic, queue_id) in [(HALF_DONE_TOPIC, 0), (CHECKED_IN_VAIN_TOPIC, 1)] {
            let _ = offsets.set(topic, TRANSACTION_GROUP, queue_id, i64::MAX);
        }
        Ok(offsets)
    }

    /// Refuses puts beyond the warning level, until the disk is below the level of forced deletion.
    fn watch_disk(&self, retention: &Retention, space: DiskSpace) {
        let beyond = |level| is_beyond(level, space);
        let refuses = self.expiry.refuses.load(Ordering::Relaxed);
        let stays = refuses && beyond(retention.disk_clean_forcibly);
        self.expiry.refuses.store(beyond(retention.disk_warning) || stays, Ordering::Relaxed);
    }

    fn reasons(&self, retention: &Retention, space: DiskSpace) -> Reasons {
        let beyond = |level| is_beyond(level, space);
        let bytes = self.core.segment_count() as u64 * self.core.segment_size();
        let too_large = retention.max_total_bytes.is_some_and(|max| bytes > max);
        let now = self.core.clock.unix_millis();
        let hour = local_millis(&*self.core.clock, now).div_euclid(HOUR_MS).rem_euclid(24);
        let hours = &retention.delete_when;
        let timely = hours.is_empty() || hours.iter().any(|due| i64::from(*due) == hour);
        let timely = timely || beyond(retention.disk_max_used);
        let age = retention.file_reserved_time.filter(|_| timely);
        let age = age.map(|age| i64::try_from(age.as_millis()).unwrap_or(i64::MAX));
        Reasons {
            forced: too_large || beyond(retention.disk_clean_forcibly),
            older_than: age.map(|age| now.saturating_sub(age)),
        }
    }

    /// Where the oldest segment ends, if it may go for one of the `reasons`.
    fn oldest_due(&self, reasons: &Reasons) -> Option<u64> {
        let (end, progress) = (self.core.oldest_end()?, &self.core.progress);
        // Nothing that is still on its way to the disk, to replicas or to the queues.
        let safe = progress.durable().min(progress.confirmed()).min(progress.dispatched());
        if end > safe {
            return None;
        }
        // No record of a segment is younger than the one behind it.
        let newest = || self.core.read(end, false).ok().flatten();
        let old = |limit: i64| {
            newest().is_some_and(|view| {
                let newest = view.record().store_timestamp();
                newest < limit || newest > self.core.clock.unix_millis() && self.is_old(end, limit)
            })
        };
        (reasons.forced || reasons.older_than.is_some_and(old)).then_some(end)
    }

    /// Notes where the last whole segment ends.
    fn note_ends(&self) {
        let (size, min) = (self.core.segment_size(), self.core.min_offset());
        let end = self.core.progress.durable() / size * size;
        let mut ended = self.expiry.ended.lock();
        while ended.front().is_some_and(|(end, _)| *end <= min) {
            ended.pop_front();
        }
        if ended.back().is_none_or(|(last, _)| *last < end) {
            ended.push_back((end, self.core.clock.now()));
        }
    }

    /// Whether a segment that ends there ended before a time, as far as this process has seen: where its
    /// records say that they are of a time to come, because the clock was ahead when they were put.
    fn is_old(&self, end: u64, limit: i64) -> bool {
        let age = self.core.clock.unix_millis().saturating_sub(limit);
        let age = Duration::from_millis(u64::try_from(age).unwrap_or(0));
        let ended = self.expiry.ended.lock();
        let seen = ended.iter().find(|(seen, _)| *seen >= end).map(|(_, at)| *at);
        seen.is_some_and(|at| self.core.clock.now().saturating_duration_since(at) > age)
    }

    /// Whether the queues hold durably what lies before `end`, now if not before: how far a queue has come
    /// is told by nothing else once its messages are gone.
    fn queues_are_durable(&self, end: u64) -> bool {
        if end > self.checkpointer.queues_durable() {
            self.checkpointer.want();
            self.checkpoint_step();
        }
        end <= self.checkpointer.queues_durable()
    }

    /// Who needs what lies before `end`.
    fn pins_before(
        &self,
        end: u64,
        retention: &Retention,
        offsets: &ConsumerOffsets,
    ) -> Result<Vec<Pinned>> {
        let mut pins = Vec::new();
        if retention.pin_by_replicas
            && let Some(replicator) = &self.replicator
        {
            let floor = replicator.retention_floor();
            if floor < end {
                pins.push(Pinned::Replica { floor });
            }
        }
        if retention.pin_by_groups {
            for progress in offsets.iter() {
                let Some(queue) = self.queues.get(progress.topic, progress.queue_id) else {
                    continue;
                };
                let kept = queue.lower_bound(end)?;
                if unconsumed(&queue, &progress, kept) > 0 {
                    pins.push(Pinned::Group {
                        group: progress.group.to_owned(),
                        topic: progress.topic.to_owned(),
                        queue_id: progress.queue_id,
                        offset: progress.offset.max(0).cast_unsigned(),
                    });
                }
            }
        }
        Ok(pins)
    }

    fn delete_before(&self, end: u64, offsets: &ConsumerOffsets) -> Result<()> {
        let mut lost = 0;
        for progress in offsets.iter() {
            if let Some(queue) = self.queues.get(progress.topic, progress.queue_id) {
                lost += unconsumed(&queue, &progress, queue.lower_bound(end)?);
            }
        }
        self.core.remove_oldest(end)?;
        let mut stats = self.expiry.stats.lock();
        stats.segments += 1;
        stats.bytes += self.core.segment_size();
        stats.unconsumed += lost;
        drop(stats);
        self.queues.for_each(|queue| queue.correct_min_offset(end))?;
        self.index.as_ref().map_or(Ok(()), |index| index.expire(end))
    }

    /// Removes files of queues in which everything has expired.
    pub(super) fn sweep_queues(&self) -> Result<()> {
        self.queues.for_each(|queue| queue.remove_expired().map(|_| ()))
    }
}

fn is_beyond(level: Option<Threshold>, space: DiskSpace) -> bool {
    level.is_some_and(|level| level.is_exceeded(space))
}

/// Messages of a queue before `kept` that a group has not consumed.
fn unconsumed(queue: &Arc<ConsumeQueue>, progress: &QueueProgress<'_>, kept: u64) -> u64 {
    let next = progress.offset.max(0).cast_unsigned().max(queue.min_offset());
    kept.saturating_sub(next)
}
