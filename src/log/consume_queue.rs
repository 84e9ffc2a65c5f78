//! One queue: where the messages of one topic and queue id lie in the commit log.
//!
//! A queue is derived from the log and can be rebuilt from it, so nothing here is needed to keep a
//! message. Entries appended last stand in a small tail in memory; readers see them there at once.
//! The files hold the rest. Three offsets, all counted in entries:
//!
//! ```text
//! min ......... durable ......... written ......... max
//!  └ in the files, synced ┘└ in the page cache ┘└ tail ┘
//! ```

use super::file_cache::{CachedFile, FileForWrite, FileKey};
use super::queue_dir::{Layout, QueueOptions, QueueRepair, Shared, Survey, non_empty};
use super::queue_entry::{
    ENTRY_LEN, ENTRY_SIZE, QUEUE_OFFSET_MAX, QueueAppend, QueueEntry, TimeBound,
};
use super::segment::file_name;
use crate::disk::{Allocation, Disk, DiskFile, OpenAccess, last_nonzero};
use crate::error::{Corruption, Error, IoContext, IoOp, Result};
use crate::message::format::RECORD_SIZE_MIN;
use parking_lot::{RwLock, RwLockUpgradableReadGuard, RwLockWriteGuard};
use std::fmt;
use std::io::ErrorKind;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A tail shorter than this is not written for want of memory: that would be a sync per entry.
const CROWDED_TAIL: usize = 512;

/// Bytes read at once by the loops that walk whole files.
const SCAN_LEN: usize = ENTRY_LEN * 3200;

/// Entries read by one system call at most, so that a long run needs no large buffer.
const RUN_MAX: u64 = 4096;

/// Runs up to this many entries are read through the stack.
const SHORT_RUN: usize = 64;
/// How much of what lies behind the end of a queue is looked at in one go: as a rule it is nothing.
const STALE_STEP: usize = 4096;

/// What changes under the lock.
struct State {
    /// Names the queue in the file cache; a new one whenever files are removed at the end, so that
    /// a descriptor of a removed file is never taken for its successor.
    key: u64,
    file_size: u64,
    /// The directory was surveyed, and the slots before `written` in its file hold entries.
    prepared: bool,
    /// Entries before this are in the files.
    written: u64,
    /// Entries from `written` on, encoded.
    tail: Vec<u8>,
    /// Bytes the tail may grow to before it is written or given more room.
    room: usize,
    /// Something was appended since the last visit of a checkpoint.
    recent: bool,
    /// Stands in [`Shared::listed`], or is being visited.
    listed: bool,
    /// Indexes of the files written to since the last sync.
    dirty: Range<u64>,
    /// The directory has changed since it was last synced.
    names_dirty: bool,
    /// Files below this index have durable names.
    named: u64,
    /// Entries before this are durable and point below the table's offset.
    durable: u64,
    /// Physical offset in the entry before `durable`.
    durable_last: u64,
    /// Physical offset of the last entry that is not blank.
    last_physical: u64,
    /// Physical offset of the entry at the queue's first offset, where that is known.
    first_physical: Option<u64>,
    /// Files below this index are known to be gone.
    swept: u64,
    /// Nothing before this was ever in the log that is here.
    start: u64,
}

impl State {
    fn new(key: u64, file_size: u64) -> Self {
        Self {
            key,
            file_size,
            prepared: false,
            written: 0,
            tail: Vec::new(),
            room: 0,
            recent: false,
            listed: false,
            dirty: 0..0,
            names_dirty: false,
            named: 0,
            durable: 0,
            durable_last: 0,
            last_physical: 0,
            first_physical: None,
            swept: 0,
            start: 0,
        }
    }

    fn file_of(&self, queue_offset: u64) -> u64 {
        queue_offset * ENTRY_SIZE / self.file_size
    }

    fn mark_dirty(&mut self, index: u64) {
        self.dirty = if self.dirty.is_empty() {
            index..index + 1
        } else {
            self.dirty.start.min(index)..self.dirty.end.max(index + 1)
        };
        self.names_dirty |= index >= self.named;
    }

    /// The entries of the tail from `from` on.
    fn tail_from(&self, from: u64) -> &[[u8; ENTRY_LEN]] {
        let skip = usize::try_from(from.saturating_sub(self.written)).unwrap_or(usize::MAX);
        self.tail.as_chunks::<ENTRY_LEN>().0.get(skip..).unwrap_or_default()
    }
}

/// A row of the table, from which a queue is opened without touching its files.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Durable {
    pub(crate) min: u64,
    pub(crate) max: u64,
    pub(crate) file_size: u64,
    pub(crate) last_physical: u64,
}

/// The queue of one topic and queue id.
///
/// One thread appends; any number of threads read meanwhile. Nothing is open, and no directory need
/// exist, before the first write or read. In a store the queues come from [`Queues`](super::Queues),
/// which makes all of them durable together; one [opened](Self::open) by itself is made durable by
/// [`sync`](Self::sync).
///
/// # Examples
/// ```
/// use duralog::disk::HostDisk;
/// use duralog::log::{ConsumeQueue, QueueEntry, QueueOptions};
///
/// # let dir = std::env::temp_dir().join(format!("duralog-doc-queue-{}", std::process::id()));
/// let queue =
///     ConsumeQueue::open(HostDisk::shared(), &dir, "orders", 0, &QueueOptions::default())?;
/// let entry = QueueEntry { physical_offset: 0, size: 128, tags_code: 0 };
/// queue.append(queue.max_offset(), entry)?; // can be read from here on
/// queue.sync()?; // survives a power cut from here on
/// assert_eq!(queue.entry(0)?, Some(entry));
/// # std::fs::remove_dir_all(&dir).unwrap();
/// # Ok::<(), duralog::Error>(())
/// ```
pub struct ConsumeQueue {
    shared: Arc<Shared>,
    number: u32,
    topic: Box<str>,
    queue_id: i32,
    min: AtomicU64,
    max: AtomicU64,
    /// First offset in the table on disk: files it needs are not removed.
    recorded_min: AtomicU64,
    state: RwLock<State>,
}

impl fmt::Debug for ConsumeQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConsumeQueue")
            .field("topic", &self.topic)
            .field("queue_id", &self.queue_id)
            .field("min_offset", &self.min_offset())
            .field("max_offset", &self.max_offset())
            .finish_non_exhaustive()
    }
}

impl Drop for ConsumeQueue {
    fn drop(&mut self) {
        self.shared.tail_bytes.fetch_sub(self.state.get_mut().tail.capacity(), Ordering::Relaxed);
    }
}

/// Opening, and what the set of queues needs.
impl ConsumeQueue {
    /// Opens the queue whose files lie in `dir`, to be used by itself. Nothing need be there yet.
    ///
    /// The end is found by reading: entries are dense, so it is the first slot without an entry, or
    /// with one that points before its predecessor. Files of the wrong size, and files behind a
    /// missing one, are removed; [`take_repairs`](Self::take_repairs) tells.
    ///
    /// # Errors
    /// [`Error::Io`] if the directory or a file cannot be read.
    pub fn open(
        disk: Arc<dyn Disk>,
        dir: &Path,
        topic: &str,
        queue_id: i32,
        options: &QueueOptions,
    ) -> Result<Self> {
        let exists = |path: &Path| disk.list(path).is_ok();
        let top = dir
            .ancestors()
            .skip(1)
            .map(non_empty)
            .find(|path| exists(path))
            .unwrap_or(dir)
            .to_owned();
        let shared = Arc::new(Shared::new(disk, Layout::Single(dir.to_owned()), top, options));
        let queue = Self::load(shared, 0, topic, queue_id)?;
        queue.recorded_min.store(u64::MAX, Ordering::Relaxed);
        Ok(queue)
    }

    /// A queue without entries.
    pub(crate) fn empty(shared: Arc<Shared>, number: u32, topic: &str, queue_id: i32) -> Self {
        let state = State::new(shared.new_key(), shared.options.file_size);
        Self {
            shared,
            number,
            topic: topic.into(),
            queue_id,
            min: AtomicU64::new(0),
            max: AtomicU64::new(0),
            recorded_min: AtomicU64::new(u64::MAX),
            state: RwLock::new(state),
        }
    }

    /// A queue as the table describes it.
    pub(crate) fn restored(
        shared: Arc<Shared>,
        number: u32,
        topic: &str,
        queue_id: i32,
        row: Durable,
    ) -> Self {
        let mut queue = Self::empty(shared, number, topic, queue_id);
        let state = queue.state.get_mut();
        state.file_size = row.file_size;
        state.written = row.max;
        state.durable = row.max;
        state.durable_last = row.last_physical;
        state.last_physical = row.last_physical;
        if row.min < row.max {
            state.prepared = true;
            state.named = state.file_of(row.max - 1) + 1;
        }
        queue.min = AtomicU64::new(row.min);
        queue.max = AtomicU64::new(row.max);
        queue.recorded_min = AtomicU64::new(row.min);
        queue
    }

    /// A queue as its files show it.
    pub(crate) fn load(
        shared: Arc<Shared>,
        number: u32,
        topic: &str,
        queue_id: i32,
    ) -> Result<Self> {
        let mut queue = Self::empty(shared, number, topic, queue_id);
        let dir = queue.dir();
        let mut survey =
            Survey::take(&*queue.shared.disk, &dir, queue.shared.options.file_size, false)?;
        queue.clear_away(&dir, &survey)?;
        let contiguous = survey
            .files
            .windows(2)
            .take_while(|pair| matches!(pair, [a, b] if a + 1 == *b))
            .count();
        let unreachable = survey.files.split_off((contiguous + 1).min(survey.files.len()));
        for index in unreachable.into_iter().rev() {
            queue.discard(
                dir.join(file_name(index * survey.file_size)),
                "a queue file behind a missing one",
            )?;
        }
        let state = queue.state.get_mut();
        state.file_size = survey.file_size;
        let (Some(first), Some(_)) = (survey.files.first(), survey.files.last()) else {
            return Ok(queue);
        };
        let start = first * survey.file_size / ENTRY_SIZE;
        let end = queue.find_end(&survey.files)?;
        let state = queue.state.get_mut();
        state.prepared = true;
        state.written = end;
        queue.max = AtomicU64::new(end);
        queue.min = AtomicU64::new(start);
        let real = queue.next_real(start, end)?;
        queue.min = AtomicU64::new(real.map_or(end, |(at, _)| at));
        let last = queue.last_real(queue.min_offset(), end)?;
        queue.state.get_mut().last_physical = last;
        Ok(queue)
    }

    fn clear_away(&self, dir: &Path, survey: &Survey) -> Result<()> {
        for name in &survey.strangers {
            self.shared.report(dir.join(name), "not a queue file", false);
        }
        survey.misfits.iter().try_for_each(|(name, what)| self.discard(dir.join(name), what))
    }

    fn discard(&self, path: PathBuf, what: &'static str) -> Result<()> {
        let remove = !self.shared.is_read_only();
        if remove {
            self.shared.remove_file(&path)?;
        }
        self.shared.report(path, what, remove);
        Ok(())
    }

    /// The offset behind the last entry of files that follow each other.
    fn find_end(&self, files: &[u64]) -> Result<u64> {
        let (file_size, key) = {
            let state = self.state.read();
            (state.file_size, state.key)
        };
        let per_file = file_size / ENTRY_SIZE;
        let mut buf = vec![0; SCAN_LEN.min(usize::try_from(file_size).unwrap_or(SCAN_LEN))];
        let mut last = None;
        for (nth, index) in files.iter().enumerate() {
            let file = self.readable(FileKey { queue: key, index: *index }, file_size)?;
            // As RocketMQ does, trust all but the last three files if they end well.
            let mut at = if nth + 3 < files.len() { file_size - ENTRY_SIZE } else { 0 };
            while at < file_size {
                let got = file.read_at(&mut buf, at).at_offset(IoOp::Read, file.path(), at)?;
                let slots = buf.get(..got).unwrap_or_default().as_chunks::<ENTRY_LEN>().0;
                for (slot, bytes) in slots.iter().enumerate() {
                    let entry = QueueEntry::decode(bytes);
                    let grows = |e: &QueueEntry| {
                        e.is_blank() || last.is_none_or(|last| last < e.physical_offset)
                    };
                    let Some(entry) = entry.filter(grows) else {
                        // A short look at an early file found no end: it may lie further up.
                        let from = index * per_file;
                        let here = from + at / ENTRY_SIZE + slot as u64;
                        return if nth + 3 < files.len() {
                            self.find_end(files.get(nth..nth + 1).unwrap_or_default())
                        } else {
                            Ok(here)
                        };
                    };
                    if !entry.is_blank() {
                        last = Some(entry.physical_offset);
                    }
                }
                if slots.is_empty() {
                    return Ok(index * per_file + at / ENTRY_SIZE);
                }
                at += (slots.len() * ENTRY_LEN) as u64;
            }
        }
        Ok(files.last().map_or(0, |index| (index + 1) * per_file))
    }

    /// Physical offset of the last entry in `from..to` that is not blank.
    fn last_real(&self, from: u64, to: u64) -> Result<u64> {
        let mut at = to;
        while at > from {
            at -= 1;
            match self.entry(at)? {
                Some(entry) if !entry.is_blank() => return Ok(entry.physical_offset),
                _ => {}
            }
        }
        Ok(0)
    }

    pub(crate) fn dir(&self) -> PathBuf {
        match &self.shared.layout {
            Layout::Single(dir) => dir.clone(),
            Layout::Tree(root) => {
                let mut dir = root.join(&*self.topic);
                dir.push(self.queue_id.to_string());
                dir
            }
        }
    }

    fn path(&self, index: u64, file_size: u64) -> PathBuf {
        self.dir().join(file_name(index * file_size))
    }

    /// Bytes of each of its files, those to come included.
    pub(crate) fn file_size(&self) -> Result<u64> {
        let (prepared, file_size) = {
            let state = self.state.read();
            (state.prepared, state.file_size)
        };
        if prepared {
            return Ok(file_size);
        }
        // What another program made decides, as it would at the first write.
        Ok(Survey::take(&*self.shared.disk, &self.dir(), file_size, false)?.file_size)
    }

    /// Sets how long files are to be, of a queue that has none.
    pub(crate) fn set_file_size(&self, file_size: u64) {
        self.state.write().file_size = file_size;
    }

    /// The entry before `offset`, also one that has expired, as long as its file is there.
    pub(crate) fn entry_before(&self, offset: u64) -> Option<QueueEntry> {
        let (key, file_size) = {
            let state = self.state.read();
            (state.key, state.file_size)
        };
        let at = offset.checked_sub(1)?.checked_mul(ENTRY_SIZE)?;
        let file = self.readable(FileKey { queue: key, index: at / file_size }, file_size).ok()?;
        let mut bytes = [0; ENTRY_LEN];
        let got = file.read_at(&mut bytes, at % file_size).ok()?;
        QueueEntry::decode(&bytes).filter(|_| got == ENTRY_LEN)
    }

    /// The row for the table.
    pub(crate) fn durable(&self) -> Durable {
        let state = self.state.read();
        Durable {
            min: self.min_offset().min(state.durable),
            max: state.durable,
            file_size: state.file_size,
            last_physical: state.durable_last,
        }
    }

    /// The table on disk says that the queue starts here.
    pub(crate) fn set_recorded_min(&self, min: u64) {
        self.recorded_min.store(min, Ordering::Relaxed);
    }

    /// Lets a queue go on at `offset`, if it does not reach that far: what comes before is nowhere in the log.
    /// For recovery, while nobody else uses the queue.
    pub(crate) fn go_on_at(&self, offset: u64) {
        let mut state = self.state.write();
        state.start = offset;
        if self.max_offset() < offset {
            self.start_at(&mut state, offset);
        }
    }

    /// Where it went on, if nothing has come since as far as is known here.
    pub(crate) fn unmoved(&self) -> Option<u64> {
        let start = self.state.read().start;
        (self.max_offset() == start).then_some(start)
    }

    /// Whether anything happened since the queue was opened.
    pub(crate) fn is_listed(&self) -> bool {
        self.state.read().listed
    }
}

/// Reading.
impl ConsumeQueue {
    /// The topic.
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// The queue id.
    pub fn queue_id(&self) -> i32 {
        self.queue_id
    }

    /// The first offset that can be read. Equal to [`max_offset`](Self::max_offset) if the queue is
    /// empty or everything in it has expired.
    pub fn min_offset(&self) -> u64 {
        self.min.load(Ordering::Acquire)
    }

    /// The offset of the next entry to be appended.
    pub fn max_offset(&self) -> u64 {
        self.max.load(Ordering::Acquire)
    }

    /// What was found in the way since the last call. Where this is not empty, the queue should be
    /// built again from the log.
    pub fn take_repairs(&self) -> Vec<QueueRepair> {
        self.shared.take_repairs()
    }

    /// Appends the entries at `from` and behind, `max_entries` at most, to `out`; none if `from` is
    /// not between [`min_offset`](Self::min_offset) and [`max_offset`](Self::max_offset). Blank
    /// entries are among them: the n-th entry is the one at `from + n`.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Corrupt`]; the entries read before stay in `out`. The queue can be
    /// built again from the log.
    pub fn read(&self, from: u64, max_entries: usize, out: &mut Vec<QueueEntry>) -> Result<()> {
        let mut at = from;
        let wanted = from.saturating_add(max_entries as u64);
        while at < wanted {
            let (key, file_size, written) = {
                let state = self.state.read();
                // Both under the lock: an empty queue may start elsewhere between two loads.
                let end = wanted.min(self.max_offset());
                if at < self.min_offset() || at >= end {
                    return Ok(());
                }
                if at >= state.written {
                    let count = usize::try_from(end - at).unwrap_or(usize::MAX);
                    out.extend(
                        state.tail_from(at).iter().take(count).filter_map(QueueEntry::decode),
                    );
                    return Ok(());
                }
                (state.key, state.file_size, state.written)
            };
            let stop = wanted.min(written);
            match self.read_run(at..stop, written, key, file_size, out) {
                Ok(count) => at += count,
                // Expired, and its file removed, since the look at the offsets above.
                Err(_) if at < self.min_offset() => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Reads the start of `range` by one system call at most; how many entries that were.
    fn read_run(
        &self,
        range: Range<u64>,
        written: u64,
        key: u64,
        file_size: u64,
        out: &mut Vec<QueueEntry>,
    ) -> Result<u64> {
        let per_file = file_size / ENTRY_SIZE;
        let index = range.start / per_file;
        let slot = range.start % per_file;
        let count = (range.end - range.start).min(per_file - slot).min(RUN_MAX);
        let len = count as usize * ENTRY_LEN;
        let mut short = [0; SHORT_RUN * ENTRY_LEN];
        let mut long = Vec::new();
        let buf = match short.get_mut(..len) {
            Some(buf) => buf,
            None => {
                long.resize(len, 0);
                &mut long[..]
            }
        };
        let file = self.readable(FileKey { queue: key, index }, file_size)?;
        let at = slot * ENTRY_SIZE;
        // What is written never changes while the queue is in use, so it may be read ahead.
        let end = ((written - index * per_file) * ENTRY_SIZE).min(file_size);
        let got = file.read_run(buf, at, end);
        let got = got.at_offset(IoOp::Read, file.path(), at)?;
        let slots = buf.get(..got).unwrap_or_default().as_chunks::<ENTRY_LEN>().0;
        out.reserve(slots.len());
        for (nth, bytes) in slots.iter().enumerate() {
            let entry = QueueEntry::decode(bytes).ok_or_else(|| Error::Corrupt {
                path: file.path().to_owned(),
                offset: at + (nth * ENTRY_LEN) as u64,
                what: Corruption::QueueEntry,
            })?;
            out.push(entry);
        }
        if slots.len() < count as usize {
            let what = Corruption::FileSize { found: at + got as u64, expected: file_size };
            return Err(Error::Corrupt { path: file.path().to_owned(), offset: at, what });
        }
        Ok(count)
    }

    fn readable(&self, key: FileKey, file_size: u64) -> Result<Arc<CachedFile>> {
        // A writer may find the file in the cache, so it is opened for both where that is allowed.
        let access = if self.shared.is_read_only() { OpenAccess::Read } else { OpenAccess::Write };
        self.shared.files.get(key, || {
            let path = self.path(key.index, file_size);
            let file = self.shared.disk.open(&path, access).at(IoOp::Open, &path)?;
            Ok((path, file))
        })
    }

    /// The entry at `queue_offset`; `None` if the queue does not reach that far, or no longer.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn entry(&self, queue_offset: u64) -> Result<Option<QueueEntry>> {
        let mut found = Vec::with_capacity(1);
        self.read(queue_offset, 1, &mut found)?;
        Ok(found.pop())
    }

    /// The first entry in `from..to` that is not blank, with its offset.
    fn next_real(&self, from: u64, to: u64) -> Result<Option<(u64, QueueEntry)>> {
        let mut run = Vec::new();
        let (mut at, mut step) = (from, 1);
        while at < to {
            run.clear();
            let count = usize::try_from(to - at).unwrap_or(usize::MAX).min(step);
            self.read(at, count, &mut run)?;
            if run.is_empty() {
                return Ok(None);
            }
            for entry in &run {
                if !entry.is_blank() {
                    return Ok(Some((at, *entry)));
                }
                at += 1;
            }
            // Blanks come in runs.
            step = RUN_MAX as usize;
        }
        Ok(None)
    }

    /// Splits `range` where `before` turns from true to false: the last entry for which it is true,
    /// and the first for which it is not, or the end of the range. Blank entries are neither.
    fn partition(
        &self,
        range: Range<u64>,
        mut before: impl FnMut(QueueEntry) -> Result<bool>,
    ) -> Result<(Option<u64>, u64)> {
        let (mut low, mut high) = (range.start, range.end);
        let mut last = None;
        while low < high {
            let middle = low + (high - low) / 2;
            match self.next_real(middle, high)? {
                Some((at, entry)) if before(entry)? => {
                    last = Some(at);
                    low = at + 1;
                }
                _ => high = middle,
            }
        }
        let first = self.next_real(low, range.end)?;
        Ok((last, first.map_or(range.end, |(at, _)| at)))
    }

    /// The first offset whose entry points to `physical_offset` or behind; the queue's end if there
    /// is none.
    pub(crate) fn lower_bound(&self, physical_offset: u64) -> Result<u64> {
        let range = self.min_offset()..self.max_offset();
        self.partition(range, |entry| Ok(entry.physical_offset < physical_offset))
            .map(|(_, first)| first)
    }

    /// Finds a message by its store time, which `store_time` reads from the record.
    ///
    /// [`TimeBound::Lower`]: the first offset stored at or after `timestamp`, `max_offset` if there
    /// is none. [`TimeBound::Upper`]: the last one stored at or before it, `min_offset` if there is
    /// none. Takes about log2 of the queue's length calls of `store_time`.
    ///
    /// # Errors
    /// As [`read`](Self::read), and what `store_time` returns.
    pub fn offset_by_time(
        &self,
        timestamp: i64,
        bound: TimeBound,
        store_time: &dyn Fn(QueueEntry) -> Result<i64>,
    ) -> Result<u64> {
        let range = self.min_offset()..self.max_offset();
        let min = range.start;
        match bound {
            TimeBound::Lower => {
                Ok(self.partition(range, |entry| Ok(store_time(entry)? < timestamp))?.1)
            }
            TimeBound::Upper => Ok(self
                .partition(range, |entry| Ok(store_time(entry)? <= timestamp))?
                .0
                .unwrap_or(min)),
        }
    }
}

/// Appending.
impl ConsumeQueue {
    /// Appends the entry of the message with `queue_offset`. It can be read when this returns; it
    /// reaches the files later.
    ///
    /// To be called from one thread at a time.
    ///
    /// # Errors
    /// The entry was not appended, and the same call may be repeated: [`Error::DiskFull`] or
    /// [`Error::Io`] if the tail had to be written first and could not; blanks already filled into a
    /// gap stay. [`Error::Corrupt`] if entry or offset are none that a queue can hold, or if more
    /// entries are missing than there is room for their records in the log, between that of the
    /// entry before and this one.
    pub fn append(&self, queue_offset: u64, entry: QueueEntry) -> Result<QueueAppend> {
        if !entry.is_valid() || queue_offset >= QUEUE_OFFSET_MAX {
            return Err(self.refused(queue_offset));
        }
        let mut missing = 0;
        loop {
            let mut state = self.state.write();
            let max = self.max.load(Ordering::Relaxed);
            if queue_offset == max {
                if state.tail.len() + ENTRY_LEN <= state.room {
                    self.push(&mut state, max, entry);
                    return Ok(if missing == 0 {
                        QueueAppend::New
                    } else {
                        QueueAppend::Gap { missing }
                    });
                }
                drop(state);
                self.make_room()?;
            } else if queue_offset < max {
                return Ok(QueueAppend::Duplicate);
            } else {
                drop(state);
                missing = missing.max(queue_offset - max);
                self.bridge(queue_offset, entry.physical_offset)?;
            }
        }
    }

    /// The error for an entry that is wrong: where it stands.
    pub(crate) fn corrupt_entry(&self, queue_offset: u64) -> Error {
        let file_size = self.state.read().file_size;
        let at = queue_offset.saturating_mul(ENTRY_SIZE);
        let path = self.path(at / file_size, file_size);
        Error::Corrupt { path, offset: at % file_size, what: Corruption::QueueEntry }
    }

    fn refused(&self, queue_offset: u64) -> Error {
        Error::Corrupt { path: self.dir(), offset: queue_offset, what: Corruption::QueueEntry }
    }

    /// The caller has seen that there is room.
    fn push(&self, state: &mut State, max: u64, entry: QueueEntry) {
        state.tail.extend_from_slice(&entry.encode());
        if !entry.is_blank() {
            state.last_physical = entry.physical_offset;
        }
        state.recent = true;
        if !state.listed {
            self.list(state);
        }
        // Release: whoever sees the new end finds the entry.
        self.max.store(max + 1, Ordering::Release);
    }

    fn list(&self, state: &mut State) {
        state.listed = true;
        self.shared.listed.lock().push(self.number);
    }

    /// Lets the tail take at least one more entry: by growing, or by writing it.
    ///
    /// Where writing would mean to sync another queue's file first, to get a descriptor, the tail
    /// grows past its size instead as long as there is memory: the next checkpoint writes it, off
    /// the thread that dispatches.
    fn make_room(&self) -> Result<()> {
        let options = &self.shared.options;
        {
            let mut state = self.state.write();
            let need = state.tail.len() + ENTRY_LEN;
            if need <= state.room {
                return Ok(());
            }
            let crowded = state.tail.len() >= CROWDED_TAIL.min(options.tail_size)
                && self.shared.tail_bytes() > options.tail_memory;
            let small = need <= options.tail_size;
            if self.shared.is_read_only() || (!crowded && (small || self.would_sync(&state))) {
                self.grow_tail(&mut state, if small { options.tail_size } else { usize::MAX });
                return Ok(());
            }
        }
        self.flush()
    }

    fn would_sync(&self, state: &State) -> bool {
        let index = state.file_of(state.written);
        self.shared.files.would_sync(FileKey { queue: state.key, index })
    }

    /// Doubles the tail, up to `bound`; by one entry at least.
    fn grow_tail(&self, state: &mut State, bound: usize) {
        let held = state.tail.capacity();
        let need = state.tail.len() + ENTRY_LEN;
        let room = (held * 2).min(bound).max(need);
        state.tail.reserve_exact(room - state.tail.len());
        state.room = state.tail.capacity();
        self.shared.tail_bytes.fetch_add(state.room - held, Ordering::Relaxed);
    }

    fn free_tail(&self, state: &mut State) {
        self.shared.tail_bytes.fetch_sub(state.tail.capacity(), Ordering::Relaxed);
        state.tail = Vec::new();
        state.room = 0;
    }

    /// Makes `to` the next offset to append, for an entry that points to `physical_offset`.
    fn bridge(&self, to: u64, physical_offset: u64) -> Result<()> {
        if self.min_offset() == self.max_offset() {
            self.flush()?;
        }
        loop {
            let mut state = self.state.write();
            let mut max = self.max.load(Ordering::Relaxed);
            if max >= to {
                return Ok(());
            }
            if self.min_offset() == max && state.tail.is_empty() {
                self.start_at(&mut state, to);
                return Ok(());
            }
            // More than were ever lost: the record lies about its place, and must not fill the disk.
            let room = physical_offset.saturating_sub(state.last_physical);
            if to - max > room / RECORD_SIZE_MIN as u64 {
                return Err(self.refused(to));
            }
            while max < to && state.tail.len() + ENTRY_LEN <= state.room {
                self.push(&mut state, max, QueueEntry::BLANK);
                max += 1;
            }
            drop(state);
            if max < to {
                self.make_room()?;
            }
        }
    }

    /// An empty queue starts over at `offset`.
    fn start_at(&self, state: &mut State, offset: u64) {
        state.prepared = false;
        state.written = offset;
        state.durable = offset;
        state.first_physical = None;
        // Max first, so that nobody sees a first offset behind the end.
        self.max.store(offset, Ordering::Release);
        self.min.store(offset, Ordering::Release);
    }

    /// Writes the tail to the files: it survives a kill, not yet a power cut.
    ///
    /// # Errors
    /// [`Error::DiskFull`] or [`Error::Io`]; the entries stay in memory and can be read.
    pub fn flush(&self) -> Result<()> {
        if self.shared.is_read_only() {
            return Ok(());
        }
        // Upgradable: readers go on during the writes, appends and other flushes wait.
        let mut state = self.state.upgradable_read();
        if state.tail.is_empty() {
            return Ok(());
        }
        if !state.prepared {
            let prepared = self.prepare(&state);
            let file_size =
                prepared.map_err(|error| self.shared.write_error(error, state.file_size))?;
            let mut writable = RwLockUpgradableReadGuard::upgrade(state);
            writable.file_size = file_size;
            writable.prepared = true;
            writable.named = 0;
            writable.names_dirty = true;
            state = RwLockWriteGuard::downgrade_to_upgradable(writable);
        }
        let per_file = state.file_size / ENTRY_SIZE;
        let mut at = state.written;
        let mut rest = state.tail.as_slice();
        while !rest.is_empty() {
            let (index, slot) = (at / per_file, at % per_file);
            let fit = usize::try_from((per_file - slot) * ENTRY_SIZE).unwrap_or(usize::MAX);
            let (now, later) = rest.split_at_checked(fit).unwrap_or((rest, &[]));
            let key = FileKey { queue: state.key, index };
            let file = self.writable(key, state.file_size, slot == 0)?;
            let offset = slot * ENTRY_SIZE;
            let written = file.write_at(now, offset).at_offset(IoOp::Write, file.path(), offset);
            written.map_err(|error| self.shared.write_error(error, now.len() as u64))?;
            at += (now.len() / ENTRY_LEN) as u64;
            rest = later;
        }
        let mut state = RwLockUpgradableReadGuard::upgrade(state);
        for index in state.written / per_file..=(at - 1) / per_file {
            state.mark_dirty(index);
        }
        state.written = at;
        state.tail.clear();
        if state.room > self.shared.options.tail_size {
            self.free_tail(&mut state);
        }
        Ok(())
    }

    fn writable(&self, key: FileKey, file_size: u64, fresh: bool) -> Result<FileForWrite> {
        let shared = &*self.shared;
        shared.files.get_for_write(key, || {
            let path = self.path(key.index, file_size);
            let file = self.open_or_create(&path, file_size, fresh);
            let file = file.map_err(|error| shared.write_error(error, file_size))?;
            Ok((path, file))
        })
    }

    /// `fresh`: nothing of value can be in the file yet.
    fn open_or_create(
        &self,
        path: &Path,
        file_size: u64,
        fresh: bool,
    ) -> Result<Arc<dyn DiskFile>> {
        let disk = &*self.shared.disk;
        match disk.open(path, OpenAccess::Write) {
            Ok(file) if file.len() == file_size => return Ok(file),
            Ok(_) if fresh => self.discard(path.to_owned(), "a queue file of another size")?,
            Ok(file) => {
                let what = Corruption::FileSize { found: file.len(), expected: file_size };
                return Err(Error::Corrupt { path: path.to_owned(), offset: 0, what });
            }
            Err(error) if fresh && error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error).at(IoOp::Open, path),
        }
        disk.create(path, file_size, Allocation::Sparse).at(IoOp::Create, path)
    }

    /// Makes the directory ready for the queue's first entry in this life: it exists, holds no file
    /// that does not fit or would stand before a gap, and every slot before the entry in its file
    /// holds an entry, as RocketMQ expects. The file size that rules.
    fn prepare(&self, state: &State) -> Result<u64> {
        let dir = self.dir();
        self.shared.create_dirs(&dir)?;
        let survey = Survey::take(&*self.shared.disk, &dir, state.file_size, false)?;
        self.clear_away(&dir, &survey)?;
        let file_size = survey.file_size;
        let start = state.written * ENTRY_SIZE;
        let index = start / file_size;
        for old in survey.files.iter().take_while(|old| **old < index) {
            self.shared.files.forget(FileKey { queue: state.key, index: *old });
            self.shared.remove_file(&dir.join(file_name(old * file_size)))?;
        }
        if start > index * file_size {
            let first = state.tail_from(state.written).first().and_then(QueueEntry::decode);
            let before = first.map_or(0, |entry| entry.physical_offset);
            let file = self.writable(FileKey { queue: state.key, index }, file_size, true)?;
            fill_blanks(&file, start - index * file_size, before)?;
        }
        Ok(file_size)
    }
}

/// Puts blanks into the slots before `end` that hold nothing, or point to `physical_offset` or
/// behind. Expired entries stay: reading them is cheaper than writing blanks over them.
fn fill_blanks(file: &CachedFile, end: u64, physical_offset: u64) -> Result<()> {
    let mut buf = vec![0; SCAN_LEN.min(usize::try_from(end).unwrap_or(SCAN_LEN))];
    let mut at = 0;
    while at < end {
        let len = usize::try_from(end - at).unwrap_or(usize::MAX).min(buf.len());
        let Some(piece) = buf.get_mut(..len) else { break };
        let got = file.read_at(piece, at).at_offset(IoOp::Read, file.path(), at)?;
        if let Some(unread) = piece.get_mut(got..) {
            unread.fill(0);
        }
        let mut changed = false;
        for slot in piece.as_chunks_mut::<ENTRY_LEN>().0 {
            let keep =
                |entry: &QueueEntry| entry.is_blank() || entry.physical_offset < physical_offset;
            if !QueueEntry::decode(slot).is_some_and(|entry| keep(&entry)) {
                *slot = QueueEntry::BLANK.encode();
                changed = true;
            }
        }
        if changed {
            file.write_at(piece, at).at_offset(IoOp::Write, file.path(), at)?;
        }
        at += len as u64;
    }
    Ok(())
}

/// Making durable, cutting, expiring.
impl ConsumeQueue {
    /// Writes the tail and makes everything durable: files, their names, and the directories that
    /// were created for them.
    ///
    /// # Errors
    /// As [`flush`](Self::flush); [`Error::ReadOnly`]; and the first failed sync of this queue's
    /// set, now and ever after: what is in the files is then in doubt until they are opened again
    /// and written from the log once more.
    pub fn sync(&self) -> Result<()> {
        if self.shared.is_read_only() {
            return Err(Error::ReadOnly);
        }
        self.make_durable(&mut || Ok(()))?;
        let dirs = std::mem::take(&mut *self.shared.unsynced_dirs.lock());
        dirs.iter().try_for_each(|dir| self.shared.sync_dir(dir))?;
        self.shared.files.check()
    }

    /// Writes the tail, syncs files and directory; up to which offset the queue is durable then,
    /// as far as it is up to its own directory.
    fn make_durable(&self, pace: &mut dyn FnMut() -> Result<()>) -> Result<u64> {
        self.flush()?;
        let (key, dirty, names_dirty, written) = {
            let state = self.state.read();
            (state.key, state.dirty.clone(), state.names_dirty, state.written)
        };
        for index in dirty.clone() {
            let key = FileKey { queue: key, index };
            if self.shared.files.is_dirty(key) {
                pace()?;
            }
            // Asked for even if it looks clean: another thread may just be syncing it.
            self.shared.files.sync(key)?;
        }
        if names_dirty {
            pace()?;
            self.shared.sync_dir(&self.dir())?;
        }
        let mut state = self.state.write();
        if state.key != key {
            return Ok(written);
        }
        if names_dirty {
            state.named = state.named.max(dirty.end);
            state.names_dirty = state.dirty.end > state.named;
        }
        if state.dirty == dirty && self.is_clean(&state) {
            state.dirty = 0..0;
        }
        Ok(written)
    }

    /// A checkpoint's visit: makes durable what is in the queue now, and notes for the table how
    /// much of it points before `limit`. True if nothing has happened since the last visit, so that
    /// there need not be another.
    ///
    /// `pace` is called before each sync; its error ends the call and loses nothing.
    pub(crate) fn visit(&self, limit: u64, pace: &mut dyn FnMut() -> Result<()>) -> Result<bool> {
        let written = self.make_durable(pace)?;
        let (durable, last) = self.before(limit, written)?;
        let mut state = self.state.write();
        state.durable = durable;
        state.durable_last = last;
        let settled = state.dirty.is_empty() && !state.names_dirty && durable == self.max_offset();
        // One more visit after the last entry: an active queue keeps its memory between two.
        let idle = settled && !std::mem::take(&mut state.recent);
        if idle {
            self.free_tail(&mut state);
            state.listed = false;
        }
        Ok(idle)
    }

    fn is_clean(&self, state: &State) -> bool {
        state
            .dirty
            .clone()
            .all(|index| !self.shared.files.is_dirty(FileKey { queue: state.key, index }))
    }

    /// Where the entries before `written` that point before `limit` end, and where the last of them
    /// points.
    fn before(&self, limit: u64, written: u64) -> Result<(u64, u64)> {
        let all = self.state.read().last_physical < limit;
        let end = if all { written } else { self.lower_bound(limit)?.min(written) };
        let last = match end.checked_sub(1) {
            Some(at) => self.entry(at)?.map_or(0, |entry| entry.physical_offset),
            None => 0,
        };
        Ok((end, last))
    }

    /// Ends the queue at `max_offset`, or where it ends already if that is before. What the files hold
    /// behind the end is zeroed and later files are removed, so that nobody who reads the directory
    /// takes stale entries for messages.
    ///
    /// For recovery, while nobody else uses the queue. Not durable before the next sync.
    ///
    /// # Errors
    /// [`Error::ReadOnly`]; [`Error::Io`] with the queue cut in memory, but perhaps not on disk.
    pub fn truncate(&self, max_offset: u64) -> Result<()> {
        if self.shared.is_read_only() {
            return Err(Error::ReadOnly);
        }
        self.cut_tail(max_offset)?;
        self.flush()?;
        let dir = self.dir();
        let mut state = self.state.write();
        let survey = Survey::take(&*self.shared.disk, &dir, state.file_size, state.prepared)?;
        if !survey.exists {
            return Ok(());
        }
        self.clear_away(&dir, &survey)?;
        let file_size = survey.file_size;
        state.file_size = file_size;
        let end = self.max_offset() * ENTRY_SIZE;
        let mut removed = !survey.misfits.is_empty();
        for index in survey.files.iter().rev().take_while(|index| **index * file_size >= end) {
            self.shared.files.forget(FileKey { queue: state.key, index: *index });
            self.shared.remove_file(&dir.join(file_name(index * file_size)))?;
            removed = true;
        }
        let index = end / file_size;
        if survey.files.contains(&index) && index * file_size < end {
            self.zero_behind(&mut state, index, end - index * file_size)?;
        }
        if removed {
            let kept = end.div_ceil(file_size);
            let key = self.shared.new_key();
            for index in state.dirty.clone() {
                self.shared
                    .files
                    .rekey(FileKey { queue: state.key, index }, FileKey { queue: key, index });
            }
            state.key = key;
            state.dirty = state.dirty.start.min(kept)..state.dirty.end.min(kept);
            state.named = state.named.min(kept);
            state.names_dirty = true;
        }
        if (removed || !state.dirty.is_empty()) && !state.listed {
            self.list(&mut state);
        }
        Ok(())
    }

    fn cut_tail(&self, max_offset: u64) -> Result<()> {
        {
            let mut state = self.state.write();
            let (min, max) = (self.min_offset(), self.max_offset());
            if max_offset >= max {
                return Ok(());
            }
            let keep = max_offset.saturating_sub(state.written);
            let keep = usize::try_from(keep).unwrap_or(usize::MAX).saturating_mul(ENTRY_LEN);
            state.tail.truncate(keep);
            state.written = state.written.min(max_offset);
            state.durable = state.durable.min(max_offset);
            state.first_physical = None;
            // Empty now: the slots before the end are not known to hold anything.
            state.prepared &= max_offset > min;
            self.min.store(min.min(max_offset), Ordering::Release);
            self.max.store(max_offset, Ordering::Release);
        }
        let last = self.last_real(self.min_offset(), self.max_offset())?;
        let mut state = self.state.write();
        state.last_physical = last;
        Ok(())
    }

    fn zero_behind(&self, state: &mut State, index: u64, from: u64) -> Result<()> {
        let key = FileKey { queue: state.key, index };
        let Some(stale) = self.next_stale(key, state.file_size, from)? else { return Ok(()) };
        let file = self.writable(key, state.file_size, false)?;
        let zeroed = file.zero(stale..state.file_size);
        // Some of it may be zeroed even if not all is.
        state.mark_dirty(index);
        zeroed.map(drop).at_offset(IoOp::Zero, file.path(), stale)
    }

    /// About where the file holds something behind `from`. Usually nothing: then the rest of one
    /// block is read, and no more.
    fn next_stale(&self, key: FileKey, file_size: u64, from: u64) -> Result<Option<u64>> {
        let file = self.readable(key, file_size)?;
        let mut buf = [0; STALE_STEP];
        let ranges = file.data_ranges(from..file_size, STALE_STEP as u64);
        for data in ranges.at_offset(IoOp::Read, file.path(), from)? {
            for at in data.clone().step_by(STALE_STEP) {
                let want = (data.end - at).min(STALE_STEP as u64) as usize;
                let part = buf.get_mut(..want).unwrap_or_default();
                let got = file.read_at(part, at).at_offset(IoOp::Read, file.path(), at)?;
                if last_nonzero(part.get(..got).unwrap_or_default()).is_some() {
                    return Ok(Some(at));
                }
            }
        }
        Ok(None)
    }

    /// Moves the first offset to the first entry that points to `log_min` or behind: what is before
    /// has expired with the log. If everything has, the first offset is the end.
    ///
    /// # Errors
    /// As [`read`](Self::read); nothing was changed.
    pub fn correct_min_offset(&self, log_min: u64) -> Result<()> {
        let all_expired = {
            let state = self.state.read();
            let (min, max) = (self.min_offset(), self.max_offset());
            if min == max || state.first_physical.is_some_and(|first| first >= log_min) {
                return Ok(());
            }
            // Known without a look at the files, which matters for many idle queues.
            (state.last_physical < log_min).then_some(max)
        };
        let first = all_expired.map_or_else(|| self.lower_bound(log_min), Ok)?;
        let found = self.entry(first)?;
        let mut state = self.state.write();
        state.first_physical = found.map(|entry| entry.physical_offset);
        if self.min.fetch_max(first, Ordering::AcqRel) < first {
            self.shared.min_moved.store(true, Ordering::Release);
        }
        Ok(())
    }

    /// The queue offset of the first entry that points to `log_min` or behind, also of one to come.
    pub(crate) fn start_in(&self, log_min: u64) -> Result<u64> {
        {
            let state = self.state.read();
            let (min, max) = (self.min_offset(), self.max_offset());
            if min == max || state.first_physical.is_some_and(|first| first >= log_min) {
                return Ok(min);
            }
            // Known without a look at the files, which matters for many idle queues.
            if state.last_physical < log_min {
                return Ok(max);
            }
        }
        self.lower_bound(log_min)
    }

    /// Removes the files in which every entry has expired, except the last of the queue; how many
    /// those were. In a store, files that the table on disk still counts on wait for the next
    /// checkpoint.
    ///
    /// # Errors
    /// [`Error::ReadOnly`]; [`Error::Io`] with some of the files removed.
    pub fn remove_expired(&self) -> Result<u64> {
        if self.shared.is_read_only() {
            return Err(Error::ReadOnly);
        }
        let state = self.state.upgradable_read();
        let Some(last) = state.written.checked_sub(1) else { return Ok(0) };
        let first = self.min_offset().min(self.recorded_min.load(Ordering::Relaxed)).min(last);
        let keep = state.file_of(first);
        if keep <= state.swept {
            return Ok(0);
        }
        let dir = self.dir();
        let survey = Survey::take(&*self.shared.disk, &dir, state.file_size, true)?;
        let mut removed = 0;
        for index in survey.files.iter().take_while(|index| **index < keep) {
            self.shared.files.forget(FileKey { queue: state.key, index: *index });
            self.shared.remove_file(&dir.join(file_name(index * state.file_size)))?;
            removed += 1;
        }
        let mut state = RwLockUpgradableReadGuard::upgrade(state);
        state.swept = keep;
        if removed > 0 {
            state.names_dirty = true;
            if !state.listed {
                self.list(&mut state);
            }
        }
        Ok(removed)
    }
}

#[cfg(test)]
pub(crate) mod tests;
