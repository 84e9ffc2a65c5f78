//! How far consumer groups have come, as the store keeps it.

use super::stats::QueueWork;
use super::{Shared, Store};
use crate::environment::Environment;
use crate::error::{Error, Result};
use crate::log::directory::Directory;
use crate::log::{GroupOffset, GroupOffsets, RecoveryReport, check_offset_names};
use crate::message::format::{
    BROADCAST, DEAD_LETTER_TOPIC_PREFIX, DELAY_GROUP, RETRY_TOPIC_PREFIX, SCHEDULE_TOPIC,
    TRANSACTION_GROUP,
};
use crate::replication::Role;
use crate::tables::{ConsumerOffsets, DelayOffsets, Source, Tables};
use crate::worker::{Alarm, Next};
use parking_lot::{Condvar, Mutex};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How often `consumerOffset.json` is written while offsets move, as by RocketMQ.
const EXPORT_INTERVAL: Duration = Duration::from_secs(5);

/// The table, and who makes it durable.
#[derive(Debug)]
pub(super) struct Offsets {
    table: GroupOffsets,
    /// Groups that come to something here go on by themselves: the log is another node's.
    apart: bool,
    brokers: Tables,
    /// How many writes of the table are in `consumerOffset.json`.
    exported: AtomicU64,
    /// When the next export may be made.
    export_due: Mutex<Option<Instant>>,
    alarm: Alarm,
    /// Someone waits for a sync.
    wanted: AtomicBool,
    due: Mutex<Option<Instant>>,
    /// Rung after each sync.
    synced: Condvar,
}

/// The group that commits offsets under a name: one of several where all its consumers get everything.
pub(crate) fn group_of(name: &str) -> &str {
    name.split_once(BROADCAST).map_or(name, |(group, _)| group)
}

/// The topics of which groups want the messages, each behind the name under which their offsets in it are
/// committed, by the offsets that are known: the topics that they consume, their retries and dead letters.
pub(crate) fn wanted_topics<'a>(
    known: impl Iterator<Item = (&'a str, &'a str)>,
) -> BTreeSet<(String, String)> {
    let mut topics = BTreeSet::new();
    for (name, topic) in known {
        topics.insert((name.to_owned(), topic.to_owned()));
        let group = group_of(name);
        let dead_letters = format!("{DEAD_LETTER_TOPIC_PREFIX}{group}");
        // Where all get everything, the group itself comes to something in those alone, and each consumer reads
        // what is sent back under a name of its own.
        if topic != dead_letters {
            topics.insert((name.to_owned(), format!("{RETRY_TOPIC_PREFIX}{group}")));
        }
        topics.insert((group.to_owned(), dead_letters));
    }
    topics
}

impl Offsets {
    pub(super) fn new(
        table: GroupOffsets,
        role: Role,
        root: &Path,
        environment: Environment,
    ) -> Self {
        // What was written before may not be in the export.
        let exported = if table.written() == 0 { 0 } else { u64::MAX };
        Self {
            exported: AtomicU64::new(exported),
            table,
            apart: role == Role::Replica,
            brokers: Tables::new_in(root, environment),
            export_due: Mutex::new(None),
            alarm: Alarm::default(),
            wanted: AtomicBool::new(false),
            due: Mutex::new(None),
            synced: Condvar::new(),
        }
    }

    pub(super) fn alarm(&self) -> &Alarm {
        &self.alarm
    }

    /// Takes over what a broker has written since, and takes groups back to where the queues end; before
    /// anything is put.
    pub(super) fn recover(
        &self,
        end: impl Fn(&str, i32) -> u64,
        read_only: bool,
        report: &mut RecoveryReport,
    ) -> Result<()> {
        report.damaged_offsets = self.table.damaged();
        let known = match self.brokers.load_with_bytes::<ConsumerOffsets>() {
            Ok((loaded, _)) if loaded.source == Source::Nothing => None,
            Ok((loaded, bytes)) => Some((loaded.table, crc32fast::hash(&bytes))),
            // The truth is not there: a store is opened all the same.
            Err(error @ Error::Corrupt { .. }) => {
                report.offsets_not_imported = Some(error.to_string());
                None
            }
            Err(error) => return Err(error),
        };
        self.import_delays(&end)?;
        match known {
            Some((theirs, crc)) if !self.table.knows_export(crc) => {
                report.imported_offsets = self.import(&theirs)?;
                report.clamped_offsets = self.table.clamp(end)?;
                // Only now, when what it said is durable.
                if read_only { Ok(()) } else { self.table.note_export(crc) }
            }
            _ => self.table.clamp(end).map(|clamped| report.clamped_offsets = clamped),
        }
    }

    /// Takes over all offsets of a broker; how many there were.
    fn import(&self, theirs: &ConsumerOffsets) -> Result<usize> {
        let mut count = 0;
        for progress in theirs.iter() {
            // What a broker may hold that it cannot mean.
            let Ok(next) = u64::try_from(progress.offset) else { continue };
            // No broker moves those: it hands on what it was told, and has perhaps delivered more since.
            let is_behind =
                Some(next) < self.table.get(progress.group, progress.topic, progress.queue_id);
            if progress.group == DELAY_GROUP && is_behind {
                continue;
            }
            match self.table.import(progress.group, progress.topic, progress.queue_id, next) {
                Ok(()) => count += 1,
                Err(Error::Config { .. } | Error::TooLarge { .. } | Error::InvalidMessage(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(count)
    }

    /// Takes over which delayed messages a broker has delivered.
    fn import_delays(&self, end: impl Fn(&str, i32) -> u64) -> Result<()> {
        let theirs = match self.brokers.load::<DelayOffsets>() {
            Ok(loaded) => loaded.table,
            // Messages come twice then.
            Err(Error::Corrupt { .. }) => return Ok(()),
            Err(error) => return Err(error),
        };
        for (level, next) in theirs.iter() {
            let (Ok(next), Some(queue_id)) = (u64::try_from(next), level.checked_sub(1)) else {
                continue;
            };
            // Behind the end there is nothing that it can have delivered.
            let next = next.min(end(SCHEDULE_TOPIC, queue_id));
            let known = self.table.get(DELAY_GROUP, SCHEDULE_TOPIC, queue_id).unwrap_or(0);
            if queue_id >= 0 && known < next {
                match self.table.import(DELAY_GROUP, SCHEDULE_TOPIC, queue_id, next) {
                    Err(Error::DiskFull { .. }) => {}
                    imported => imported?,
                }
            }
        }
        Ok(())
    }

    /// Forgets, durably, which delayed messages were delivered and which half messages are done with, before
    /// a part of the log goes that another primary does not have: what was put for them may lie in it. They
    /// come again, or are looked at again.
    pub(super) fn forget_deliveries(&self) -> Result<()> {
        self.table.forget_groups(&[DELAY_GROUP, TRANSACTION_GROUP])?;
        let mut delays = match self.brokers.load::<DelayOffsets>() {
            Ok(loaded) => loaded.table,
            Err(Error::Corrupt { .. }) => DelayOffsets::default(),
            Err(error) => return Err(error),
        };
        let told: Vec<i32> = delays.iter().filter(|told| told.1 != 0).map(|told| told.0).collect();
        if !told.is_empty() {
            for level in told {
                delays.set(level, 0);
            }
            self.brokers.save(&mut delays)?;
        }
        self.export()
    }

    /// Where all groups are: as brokers were told, and what has moved since.
    pub(super) fn known(&self) -> Result<ConsumerOffsets> {
        let mut table = self.told()?;
        self.put_into(&mut table);
        Ok(table)
    }

    /// Where all groups are, as brokers were told.
    fn told(&self) -> Result<ConsumerOffsets> {
        match self.brokers.load::<ConsumerOffsets>() {
            Ok(loaded) => Ok(loaded.table),
            // The truth is not there.
            Err(Error::Corrupt { .. }) => Ok(ConsumerOffsets::default()),
            Err(error) => Err(error),
        }
    }

    fn put_into(&self, table: &mut ConsumerOffsets) {
        for one in self.table.all() {
            // A name that RocketMQ cannot have is of no use to it.
            let _ = table.set(&one.topic, &one.group, one.queue_id, one.next.cast_signed());
        }
    }

    /// The failure after which nothing is written any more.
    pub(super) fn latched(&self) -> Option<Arc<Error>> {
        self.table.latched()
    }

    /// Whether brokers know what is here.
    pub(super) fn is_exported(&self) -> bool {
        self.exported.load(Ordering::SeqCst) == self.table.written()
    }

    /// Writes `consumerOffset.json`, for a broker that may start here.
    pub(super) fn export(&self) -> Result<()> {
        if self.is_exported() {
            return Ok(());
        }
        let written = self.table.written();
        let mut table = self.told()?;
        let forgotten: Vec<_> = table
            .iter()
            .filter(|one| !self.table.knows(one.group, one.topic))
            .map(|one| (one.topic.to_owned(), one.group.to_owned()))
            .collect();
        for (topic, group) in forgotten {
            table.remove(&topic, &group);
        }
        self.put_into(&mut table);
        self.brokers
            .save_noting(&mut table, |bytes| self.table.note_export(crc32fast::hash(bytes)))?;
        // What is written of the export itself does not count as a change.
        self.exported.store(written, Ordering::SeqCst);
        Ok(())
    }

    /// Notes how far a group is, unasked: the store is closing.
    pub(super) fn commit(&self, group: &str, topic: &str, queue_id: i32, next: u64) -> Result<()> {
        self.table.commit((group, topic, queue_id), next, self.apart)
    }

    /// Counts what moves: asked before [`all`](Self::all), it does not miss anything.
    pub(super) fn moves(&self) -> u64 {
        self.table.moves()
    }

    /// Where all groups are.
    pub(super) fn all(&self) -> Vec<GroupOffset> {
        self.table.all()
    }

    /// Takes over where the groups of the primary are.
    pub(super) fn take_over(&self, whole: bool, offsets: &[GroupOffset]) -> Result<()> {
        let taken = self.table.take_over(whole, offsets);
        self.alarm.ring();
        taken
    }

    /// Takes no commit any more; whether those that were under way are done, which is waited for at most so
    /// long.
    pub(super) fn seal(&self, patience: Duration) -> bool {
        self.table.seal(patience)
    }

    /// Puts a copy into the directory of another store.
    pub(super) fn copy_to(&self, directory: &Directory) -> Result<()> {
        self.table.copy_to(directory)
    }

    /// Makes everything durable, and tells those who wait for it.
    pub(super) fn finish(&self) -> Result<()> {
        let synced = self.table.sync();
        self.tell();
        synced
    }

    fn tell(&self) {
        *self.due.lock() = None;
        self.synced.notify_all();
    }
}

impl Store {
    /// Notes that a consumer group wants `next` as its next message of a queue: everything before it is
    /// done with. Going back is allowed, and makes messages come again. Consumers of the group that are open
    /// here have their own count, and write it with their next acknowledgement: close them first.
    ///
    /// It survives a kill when this returns, and a power cut after the next sync, which begins within
    /// [`consumer_offset_interval`](crate::StoreConfig::consumer_offset_interval): until then a power cut
    /// may take the group back to an earlier offset, never forward. [`flush_offsets`](Self::flush_offsets)
    /// waits for it. Works on a full disk, but for a group that is new in a queue.
    ///
    /// # Errors
    /// [`Error::OffsetOutOfRange`] behind the queue's end: messages to come would be passed over.
    /// [`Error::Config`] and [`Error::TooLarge`] for a group's name, 1 to 255 bytes without `@`, `/` and
    /// control characters; [`Error::InvalidMessage`] for a topic's; [`Error::DiskFull`]; [`Error::Latched`]
    /// after a failure; [`Error::ReadOnly`]; [`Error::Closed`].
    ///
    /// # Examples
    /// ```
    /// use duralog::{Message, Store, StoreConfig, TagFilter};
    ///
    /// # let dir = std::env::temp_dir().join(format!("duralog-doc-offsets-{}", std::process::id()));
    /// let store = Store::open(StoreConfig::new(&dir).segment_size(1 << 20))?;
    /// let put = store.put(Message::new("orders", "paid 42"))?.ok()?;
    /// store.wait_for("orders", 0, 0, std::time::Duration::from_secs(1))?;
    ///
    /// let next = store.committed_offset("billing", "orders", 0).unwrap_or(0);
    /// for message in store.get_view("orders", 0, next, 32, &TagFilter::any())?.messages {
    ///     // handle it, then:
    ///     store.commit_offset("billing", "orders", 0, message.queue_offset() + 1)?;
    /// }
    /// store.flush_offsets()?;
    /// assert_eq!(store.committed_offset("billing", "orders", 0), Some(put.queue_offset + 1));
    /// # store.close()?;
    /// # std::fs::remove_dir_all(&dir).unwrap();
    /// # Ok::<(), duralog::Error>(())
    /// ```
    pub fn commit_offset(&self, group: &str, topic: &str, queue_id: i32, next: u64) -> Result<()> {
        let shared = self.shared();
        shared.check_open()?;
        if next > self.dispatched_end(topic, queue_id) {
            let end = self.max_offset(topic, queue_id).unwrap_or(0);
            if next > end {
                return Err(Error::OffsetOutOfRange { offset: next, end });
            }
        }
        self.inner.engine.start_offsets()?;
        shared.offsets.commit(group, topic, queue_id, next)?;
        shared.offsets.alarm.ring();
        Ok(())
    }

    /// Refuses a name under which no offset can be committed.
    pub(crate) fn check_offset_name(&self, group: &str, topic: &str) -> Result<()> {
        check_offset_names(group, topic, 0)
    }

    /// The next message that a consumer group wants of a queue; `None` if it never said.
    pub fn committed_offset(&self, group: &str, topic: &str, queue_id: i32) -> Option<u64> {
        self.shared().offsets.table.get(group, topic, queue_id)
    }

    /// Where all groups are in all queues, by group, topic and queue.
    pub fn committed_offsets(&self) -> Vec<GroupOffset> {
        self.shared().offsets.table.all()
    }

    /// Forgets where a group was in the queues of a topic; whether that was known. Durable when this
    /// returns; [`pin_by_groups`](crate::config::Retention::pin_by_groups) waits some seconds longer for the
    /// group.
    ///
    /// # Errors
    /// As [`commit_offset`](Self::commit_offset).
    pub fn forget_offsets(&self, group: &str, topic: &str) -> Result<bool> {
        let shared = self.shared();
        shared.check_open()?;
        self.inner.engine.start_offsets()?;
        let known = shared.offsets.table.forget(group, topic);
        // Brokers are told, and what expires waits for those of whom they know.
        shared.offsets.alarm.ring();
        known
    }

    /// Has all offsets committed so far made durable, and does not wait: whether they are, is asked of
    /// [`are_offsets_synced`](Self::are_offsets_synced) with the number that this returns.
    pub(crate) fn want_offsets_synced(&self) -> Result<u64> {
        let shared = self.shared();
        let offsets = &shared.offsets;
        let written = offsets.table.written();
        if !shared.threaded {
            return offsets.finish().map(|()| written);
        }
        self.inner.engine.start_offsets()?;
        offsets.wanted.store(true, Ordering::SeqCst);
        if let Some(bell) = offsets.alarm.bell() {
            bell.ring();
        }
        Ok(written)
    }

    pub(crate) fn are_offsets_synced(&self, written: u64) -> Result<bool> {
        self.shared().offsets.table.is_synced(written)
    }

    /// Makes all offsets committed so far durable, with one sync for all who ask. Blocks up to
    /// `close_timeout`.
    ///
    /// # Errors
    /// [`Error::Latched`] if a write or sync of the offsets failed; [`Error::OffsetsNotDurable`] if it takes
    /// longer.
    pub fn flush_offsets(&self) -> Result<()> {
        let shared = self.shared();
        let offsets = &shared.offsets;
        let clock = &shared.core.clock;
        let deadline = clock.now() + shared.core.config.close_timeout;
        let wanted = self.want_offsets_synced()?;
        if !shared.threaded {
            return Ok(());
        }
        let mut due = offsets.due.lock();
        loop {
            if offsets.table.is_synced(wanted)? {
                return Ok(());
            }
            shared.check_open()?;
            if offsets.synced.wait_until(&mut due, deadline).timed_out() {
                let is_synced = offsets.table.is_synced(wanted)?;
                return if is_synced { Ok(()) } else { Err(Error::OffsetsNotDurable) };
            }
        }
    }
}

impl Shared {
    pub(super) fn offsets_step(&self) -> Next {
        let offsets = &self.offsets;
        let has_work = || offsets.table.has_unsynced();
        if !has_work() {
            // Whoever waits for a sync after a failure waits in vain.
            offsets.tell();
            return self.export_step();
        }
        let now = self.core.clock.now();
        let due = *offsets.due.lock().get_or_insert(now + self.config.consumer_offset_interval);
        if now < due && !offsets.wanted.swap(false, Ordering::SeqCst) {
            return Next::At(due);
        }
        // A failure has latched the table, and whoever waits is told.
        let _ = offsets.finish();
        Next::Now
    }

    /// Exports what has moved, if that is due.
    fn export_step(&self) -> Next {
        let offsets = &self.offsets;
        let (mut due, now) = (offsets.export_due.lock(), self.core.clock.now());
        if !offsets.is_exported() && due.is_none_or(|due| due <= now) {
            // A broker that starts here after a failure finds the last one, and messages come again.
            let exported = offsets.export();
            self.stats.queue_work(QueueWork::Export, exported.err());
            *due = Some(now + EXPORT_INTERVAL);
        }
        match offsets.alarm.sleep_unless(|| offsets.table.has_unsynced()) {
            Next::Idle if !offsets.is_exported() => due.map_or(Next::Idle, Next::At),
            next => next,
        }
    }
}

#[cfg(all(test, feature = "sim"))]
mod tests {
    use super::*;
    use crate::StoreConfig;
    use crate::disk::SimDisk;
    use crate::message::Message;
    use crate::worker::Doorbell;

    #[test]
    fn who_found_the_store_open_and_comes_too_late_writes_nothing() {
        let disk = SimDisk::new(1);
        let config = StoreConfig::new("/s").segment_size(64 << 10);
        let store = Store::open_in(config, Environment::on(disk.shared())).unwrap();
        store.put(Message::new("t", "x")).unwrap().ok().unwrap();
        store.wait_for("t", 0, 0, Duration::from_secs(60)).unwrap();
        store.commit_offset("known", "t", 0, 0).unwrap();
        assert!(store.shared().offsets.seal(Duration::from_secs(60)));
        let before = disk.bytes("/s/duralog/offsets").unwrap();
        for group in ["known", "new"] {
            assert!(matches!(store.commit_offset(group, "t", 0, 1), Err(Error::Closed)));
            assert!(matches!(store.forget_offsets(group, "t"), Err(Error::Closed)));
        }
        assert!(before[512..] == disk.bytes("/s/duralog/offsets").unwrap()[512..]);
        store.close().unwrap();
    }

    #[test]
    fn whoever_has_a_group_forgotten_wakes_the_one_who_tells_brokers() {
        let environment = Environment::on(SimDisk::new(1).shared()).stepped();
        let store = Store::open_in(StoreConfig::new("/s"), environment).unwrap();
        store.commit_offset("known", "t", 0, 0).unwrap();
        store.flush_offsets().unwrap();
        let (bell, heard) = Doorbell::new();
        assert!(store.shared().offsets.alarm.connect(bell));
        while store.shared().offsets_step() == Next::Now {}
        assert!(store.shared().offsets.is_exported() && heard.try_recv().is_err());
        assert!(store.forget_offsets("known", "t").unwrap());
        assert!(heard.try_recv().is_ok());
    }
}
