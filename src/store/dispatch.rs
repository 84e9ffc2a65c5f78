//! From the log to the consume queues: the dispatcher follows what is visible, the checkpointer makes
//! the queues durable now and then so that the next open need not start from the beginning.

use super::Shared;
use super::stats::QueueWork;
use crate::config::RecoveryMode;
use crate::error::{Corruption, Error, Result};
use crate::log::{
    BrokerCheckpoint, BrokerTimes, Hole, KeyIndex, Located, QueueEntry, QueueTable, RecoveryReport,
};
use crate::message::format::{RECORD_SIZE_MIN, is_delay_topic};
use crate::message::{RecordCheck, RecordRef};
use crate::worker::{Alarm, Next};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Records dispatched before readers are told.
const BATCH: usize = 256;
/// How long a reader waits for its turn to dispatch.
const CATCH_UP_MAX: Duration = Duration::from_secs(1);
/// How long the dispatcher rests when it has caught up and nobody waits for what comes next: to be
/// woken for each put would cost producers more than the put. Readers who ask for messages dispatch
/// them themselves, and those who begin to wait end the rest.
const REST: Duration = Duration::from_millis(1);
/// When a full disk is tried again.
const RETRY: Duration = Duration::from_millis(100);
/// Syncs of queue files a second: the disk belongs to the log.
const QUEUE_SYNCS_PER_SECOND: u32 = 200;

/// Where the dispatcher is. One at a time holds it.
#[derive(Debug, Default)]
pub(super) struct Dispatcher {
    /// It has dispatched since it last slept.
    worked: bool,
    /// The last attempt failed.
    failed: bool,
    /// A delayed message was dispatched of which nobody has been told.
    delayed: bool,
}

/// When the queues were last made durable.
#[derive(Debug, Default)]
pub(super) struct Checkpointer {
    alarm: Alarm,
    for_brokers: BrokerCheckpoint,
    /// Every record before this offset is durably in the queues.
    queues_durable: AtomicU64,
    /// The last attempt to move it went to here; another one waits for as many bytes more.
    attempted: AtomicU64,
    /// Another one does not wait: the queues' first offsets have moved.
    wanted: AtomicBool,
}

impl Checkpointer {
    pub(super) fn alarm(&self) -> &Alarm {
        &self.alarm
    }

    pub(super) fn queues_durable(&self) -> u64 {
        self.queues_durable.load(Ordering::Acquire)
    }

    pub(super) fn want(&self) {
        self.wanted.store(true, Ordering::SeqCst);
        self.alarm.ring();
    }

    fn start_at(&self, offset: u64) {
        self.queues_durable.store(offset, Ordering::Release);
        self.attempted.store(offset, Ordering::Release);
    }

    fn attempted(&self) -> u64 {
        self.attempted.load(Ordering::Acquire)
    }
}

impl Shared {
    /// Fills the queues with what they lack, before anyone uses them.
    pub(super) fn redispatch(&self, table: &QueueTable, report: &mut RecoveryReport) -> Result<()> {
        let end = self.core.progress.visible();
        let min = self.core.min_offset();
        let lost = table.offset > end;
        if lost {
            self.queues.reset()?;
        }
        report.queues_rebuilt = match &table.distrusted {
            Some(reason) => Some(reason.clone()),
            None if lost => Some("the queue table is ahead of the log".to_owned()),
            None => None,
        };
        let queued = if lost { min } else { table.offset.max(min) };
        let indexed = self.index.as_ref().map_or(queued, |index| index.resume_at().max(min));
        let from = queued.min(indexed);
        let dispatched = self.redispatch_from(from, end, report)?;
        self.core.progress.set_dispatched(dispatched);
        let crashed = report.unclean
            || report.foreign
            || report.cut.is_some()
            || report.finished_cut.is_some();
        self.queues.finish_recovery(crashed, min)?;
        if min > 0 {
            self.queues.for_each(|queue| queue.correct_min_offset(min))?;
            if let Some(index) = &self.index {
                index.expire(min)?;
            }
        }
        self.queues.for_each(|queue| {
            self.core.continue_queue(queue.topic(), queue.queue_id(), queue.max_offset());
            Ok(())
        })?;
        self.count_what_is_not_shown(dispatched)?;
        self.checkpointer.start_at(queued);
        Ok(())
    }

    /// Records from `from` on are not all confirmed, and in no queue yet; their queue offsets are taken.
    fn count_what_is_not_shown(&self, from: u64) -> Result<()> {
        let mut records = self.core.records(from, self.core.progress.appended());
        let count = |located: &Located<'_>| {
            let record = &located.record;
            let offset = record.queue_offset().cast_unsigned();
            if record.sys_flag().takes_queue_offset()
                && self.is_plausible(offset, located.physical_offset)
            {
                self.core.continue_queue(record.topic(), record.queue_id(), offset + 1);
            }
        };
        while let Some(counted) = records.next_with(count) {
            counted?;
        }
        Ok(())
    }

    /// Dispatches the records from `from` to `end`; behind the last one, because half of one may be
    /// confirmed. One that is damaged could lie about its queue, or about its place in it, so that the
    /// records behind it would not find theirs.
    fn redispatch_from(&self, from: u64, end: u64, report: &mut RecoveryReport) -> Result<u64> {
        let salvage = self.core.recovery_mode() == RecoveryMode::Salvage;
        // What lies behind has been checked by recovery just now. A store that is only read has its
        // holes still.
        let mut checked_from =
            if report.salvaged.is_empty() { report.scanned_from.min(end) } else { end };
        let (mut at, mut reached) = (from, from);
        while at < end {
            let (until, mut records) = if at < checked_from {
                (checked_from, self.core.verified_records(at, checked_from))
            } else {
                (end, self.core.records(at, end))
            };
            at = loop {
                match records.next_with(|located| self.dispatch(located)) {
                    Some(Ok(dispatched)) => {
                        dispatched?;
                        report.redispatched_records += 1;
                    }
                    // One that reaches over to where recovery began is in no doubt.
                    None if records.offset() < until && until < end => {
                        checked_from = records.offset();
                        break checked_from;
                    }
                    None => {
                        reached = records.offset();
                        break reached.max(until);
                    }
                    Some(Err(Error::Corrupt { what, .. })) if salvage => {
                        let offset = records.offset();
                        let next = self.core.resync(offset, end);
                        let known = report.salvaged.iter().any(|hole| hole.offset == offset);
                        if !known {
                            let bytes = next - offset;
                            report.salvaged.push(Hole { offset, bytes, what, copy: None });
                        }
                        reached = next;
                        break next;
                    }
                    Some(Err(error)) => return Err(error),
                }
            };
        }
        Ok(reached)
    }

    pub(super) fn dispatch_step(&self) -> Next {
        self.dispatch_batch(&mut self.dispatcher.lock())
    }

    fn dispatch_batch(&self, dispatcher: &mut Dispatcher) -> Next {
        let progress = &self.core.progress;
        let (from, until) = (progress.dispatched(), progress.visible());
        if until <= from {
            if std::mem::take(&mut dispatcher.worked) && !progress.has_readers() {
                return Next::At(self.core.clock.now() + REST);
            }
            return progress
                .visible_alarm()
                .sleep_unless(|| progress.visible() > progress.dispatched());
        }
        dispatcher.worked = true;
        let mut records = self.core.records(from, until);
        // Over a blank, too: the offset behind a record is where the next one is looked for.
        let mut reached = from;
        for _ in 0..BATCH {
            let dispatched = records.next_with(|located| {
                dispatcher.delayed |= is_delay_topic(located.record.topic());
                self.dispatch(located)
            });
            let Some(dispatched) = dispatched else { break };
            match dispatched.flatten() {
                Ok(()) => {}
                // The disk may have room again, and a damaged file is made anew by the next open; the
                // log is not touched by any of this.
                Err(
                    error @ (Error::DiskFull { .. } | Error::Io { .. } | Error::Corrupt { .. }),
                ) => {
                    if matches!(error, Error::Corrupt { .. }) {
                        self.distrust_queues(&error);
                    }
                    progress.set_dispatched(reached);
                    dispatcher.failed = true;
                    self.stats.queue_work(QueueWork::Dispatch, Some(error));
                    return Next::At(self.core.clock.now() + RETRY);
                }
                Err(error) => {
                    // A queue that misses a message would deliver wrongly: nothing may follow.
                    self.core.latch(error);
                    return Next::Idle;
                }
            }
            reached = records.offset();
        }
        if records.offset() == from {
            // What is visible ends in the middle of a record.
            return progress.visible_alarm().sleep_unless(|| progress.visible() > until);
        }
        progress.set_dispatched(records.offset());
        if std::mem::take(&mut dispatcher.delayed) {
            self.upper.ring();
        }
        if std::mem::take(&mut dispatcher.failed) {
            self.stats.queue_work(QueueWork::Dispatch, None);
        }
        if self.wants_checkpoint() {
            self.checkpointer.alarm.ring();
        }
        Next::Now
    }

    /// Dispatches what is visible now, so that a reader finds what was put before it asked.
    pub(super) fn catch_up(&self) {
        let progress = &self.core.progress;
        let visible = progress.visible();
        if progress.dispatched() >= visible || !self.is_open() {
            return;
        }
        // A reader does not wait long for a dispatcher that hangs in the operating system.
        let Some(mut dispatcher) = self.dispatcher.try_lock_for(CATCH_UP_MAX) else { return };
        while progress.dispatched() < visible
            && self.is_open()
            && self.dispatch_batch(&mut dispatcher) == Next::Now
        {}
    }

    fn wants_checkpoint(&self) -> bool {
        let progress = &self.core.progress;
        // An entry may become durable only after its record. In async flush that may not be so yet;
        // the next dispatch asks again.
        let target = progress.dispatched().min(progress.durable());
        let waiting = target.saturating_sub(self.checkpointer.attempted());
        self.checkpointer.wanted.load(Ordering::SeqCst)
            || waiting > 0
                && (waiting >= self.config.queue_checkpoint_bytes || self.queues.wants_checkpoint())
    }

    fn dispatch(&self, located: &Located<'_>) -> Result<()> {
        let record = &located.record;
        // Prepared and rolled-back messages are in no queue.
        if !record.sys_flag().takes_queue_offset() {
            self.index(located);
            return Ok(());
        }
        let queue = match self.queues.get(record.topic(), record.queue_id()) {
            Some(queue) => queue,
            None => match self.queues.get_or_create(record.topic(), record.queue_id()) {
                Ok(queue) => queue,
                // No directory can have that name.
                Err(Error::InvalidMessage(_) | Error::TooLarge { .. }) => {
                    self.stats.skip_record();
                    return Ok(());
                }
                Err(other) => return Err(other),
            },
        };
        let offset = record.queue_offset().cast_unsigned();
        if !self.is_plausible(offset, located.physical_offset) {
            self.stats.skip_record();
            return Ok(());
        }
        match queue.append(offset, entry(located.physical_offset, record)) {
            Ok(_) => {}
            // A queue offset that no queue can have; another program wrote it.
            Err(Error::Corrupt { what: Corruption::QueueEntry, .. }) => {
                self.stats.skip_record();
                return Ok(());
            }
            Err(other) => return Err(other),
        }
        self.index(located);
        Ok(())
    }

    /// Whether there should be an index, and it lacks what is in the log.
    pub(super) fn lacks_keys(&self) -> bool {
        self.config.index_enable && self.index.as_ref().is_none_or(KeyIndex::has_failed)
    }

    /// Puts the keys of a record into the index, which can do without: it is rebuilt by the next open.
    #[inline]
    fn index(&self, located: &Located<'_>) {
        if let Some(index) = &self.index
            && let Err(error) = index.put(located.physical_offset, &located.record)
        {
            self.stats.queue_work(QueueWork::Index, Some(error));
        }
    }

    /// Whether so many messages can have come before in one queue. Asked of records without a checksum
    /// over their header: a wrong offset would make every later message of the queue look like one
    /// that is there already.
    fn is_plausible(&self, queue_offset: u64, physical_offset: u64) -> bool {
        queue_offset <= physical_offset / RECORD_SIZE_MIN as u64
            || self.core.check_at(physical_offset) == RecordCheck::Record
    }

    pub(super) fn checkpoint_step(&self) -> Next {
        let progress = &self.core.progress;
        let latched = || progress.latched().is_some();
        if !self.wants_checkpoint() || latched() {
            return self.checkpointer.alarm.sleep_unless(|| self.wants_checkpoint() && !latched());
        }
        let moved = self.checkpointer.wanted.swap(false, Ordering::SeqCst);
        let target = progress.dispatched().min(progress.durable());
        self.checkpointer.attempted.store(target, Ordering::Release);
        let agreed = self.core.save_agreed();
        let saved = agreed.and_then(|()| self.queues.checkpoint(target, &mut || self.pace()));
        let saved = saved.and_then(|()| self.checkpoint_others(target, false));
        match saved.and_then(|()| if moved { self.sweep_queues() } else { Ok(()) }) {
            Ok(()) => {
                self.checkpointer.queues_durable.store(target, Ordering::Release);
                self.stats.queue_work(QueueWork::Checkpoint, None);
            }
            Err(Error::Closed) => return Next::Idle,
            // The queues can be rebuilt from the log; until then only the next open is slower.
            Err(error) => self.stats.queue_work(QueueWork::Checkpoint, Some(error)),
        }
        Next::Now
    }

    /// Spreads the syncs of queue files out, and ends them when the store closes.
    fn pace(&self) -> Result<()> {
        self.check_open()?;
        if self.threaded {
            std::thread::sleep(Duration::from_secs(1) / QUEUE_SYNCS_PER_SECOND);
        }
        Ok(())
    }

    /// Makes sure that the next open rebuilds the queues from the log.
    pub(super) fn distrust_queues(&self, why: &Error) {
        let error = self.queues.distrust().err().unwrap_or_else(|| why.clone());
        self.stats.queue_work(QueueWork::Rebuild, Some(error));
    }

    /// Makes the index durable, and tells a broker that may start here up to where all is. `all`: the
    /// log is durable and dispatched to its end, and no more is put.
    fn checkpoint_others(&self, dispatched: u64, all: bool) -> Result<()> {
        let (core, mut times) = (&self.core, BrokerTimes::default());
        if let Some(index) = &self.index {
            let durable = core.progress.durable();
            let saved = index.checkpoint(core.directory(), dispatched, durable);
            let failed = saved.as_ref().err().cloned();
            if failed.is_some() {
                self.stats.queue_work(QueueWork::Index, failed);
            }
            times.index = index.settled_timestamp();
        }
        let time = if all { core.last_timestamp() } else { self.time_before(dispatched) };
        (times.commit_log, times.consume_queues) = (time, time);
        self.checkpointer.for_brokers.save(&*core.disk, core.directory(), times)
    }

    /// A store time that no record behind `offset` is older than: that of the record with which the
    /// last segment before it begins; 0 if there is none.
    fn time_before(&self, offset: u64) -> i64 {
        let begin = self.core.segment_start(offset.saturating_sub(1));
        let first = self.core.read(begin, false).ok().flatten();
        first.map_or(0, |view| view.record().store_timestamp())
    }

    /// The last dispatch and checkpoint, when the workers have stopped; whether the files stay behind
    /// the log. The checkpoint is given up at `until`: what is derived can be rebuilt.
    pub(super) fn finish_queues(&self, until: Instant) -> Result<bool> {
        if self.core.config.read_only {
            return Ok(false);
        }
        while self.dispatch_step() == Next::Now {}
        if let Some(first) = self.core.progress.latched() {
            return Err(Error::Latched { first: first.clone() });
        }
        let target = self.core.progress.dispatched().min(self.core.progress.durable());
        let in_time = || if self.core.clock.now() < until { Ok(()) } else { Err(Error::Closed) };
        self.core.save_agreed()?;
        match self.queues.checkpoint(target, &mut { in_time }) {
            Err(Error::Closed) => Ok(true),
            finished => {
                finished?;
                let behind = target < self.core.progress.appended();
                self.checkpoint_others(target, !behind)?;
                Ok(behind || self.lacks_keys())
            }
        }
    }
}

/// The queue entry of a record.
pub(super) fn entry(physical_offset: u64, record: &RecordRef<'_>) -> QueueEntry {
    QueueEntry { physical_offset, size: record.size() as u32, tags_code: record.tags_code() }
}
