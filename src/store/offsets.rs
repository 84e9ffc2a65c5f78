//! How far consumer groups have come, as the store keeps it.

use super::{Shared, Store};
use crate::error::{Error, Result};
use crate::log::directory::Directory;
use crate::log::{ClampedOffset, GroupOffset, GroupOffsets};
use crate::worker::{Alarm, Next};
use parking_lot::{Condvar, Mutex};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// The table, and who makes it durable.
#[derive(Debug)]
pub(super) struct Offsets {
    table: GroupOffsets,
    alarm: Alarm,
    /// Someone waits for a sync.
    wanted: AtomicBool,
    due: Mutex<Option<Instant>>,
    /// Rung after each sync.
    synced: Condvar,
}

impl Offsets {
    pub(super) fn new(table: GroupOffsets) -> Self {
        Self {
            table,
            alarm: Alarm::default(),
            wanted: AtomicBool::new(false),
            due: Mutex::new(None),
            synced: Condvar::new(),
        }
    }

    pub(super) fn alarm(&self) -> &Alarm {
        &self.alarm
    }

    /// Takes groups back to where the queues end, before anything is put.
    pub(super) fn clamp(&self, end: impl Fn(&str, i32) -> u64) -> Result<Vec<ClampedOffset>> {
        self.table.clamp(end)
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
    /// done with. Going back is allowed, and makes messages come again.
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
    /// use duralog::{Message, Store, StoreConfig};
    ///
    /// # let dir = std::env::temp_dir().join(format!("duralog-doc-offsets-{}", std::process::id()));
    /// let store = Store::open(StoreConfig::new(&dir).segment_size(1 << 20))?;
    /// let put = store.put(Message::new("orders", "paid 42"))?.ok()?;
    /// store.wait_for("orders", 0, 0, std::time::Duration::from_secs(1))?;
    ///
    /// let next = store.committed_offset("billing", "orders", 0).unwrap_or(0);
    /// for message in store.get("orders", 0, next, 32)?.messages {
    ///     // handle it, then:
    ///     store.commit_offset("billing", "orders", 0, message.queue_offset + 1)?;
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
        let end = self.max_offset(topic, queue_id).unwrap_or(0);
        if next > end {
            return Err(Error::OffsetOutOfRange { offset: next, end });
        }
        self.inner.engine.start_offsets()?;
        shared.offsets.table.commit(group, topic, queue_id, next)?;
        shared.offsets.alarm.ring();
        Ok(())
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
    /// returns.
    ///
    /// # Errors
    /// As [`commit_offset`](Self::commit_offset).
    pub fn forget_offsets(&self, group: &str, topic: &str) -> Result<bool> {
        self.shared().check_open()?;
        self.shared().offsets.table.forget(group, topic)
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
        if !shared.threaded {
            return offsets.finish();
        }
        self.inner.engine.start_offsets()?;
        let wanted = offsets.table.written();
        let clock = &shared.core.clock;
        let deadline = clock.now() + shared.core.config.close_timeout;
        offsets.wanted.store(true, Ordering::SeqCst);
        if let Some(bell) = offsets.alarm.bell() {
            bell.ring();
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
            return offsets.alarm.sleep_unless(has_work);
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
}
