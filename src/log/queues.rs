//! All queues of a store, and the table that lets them be opened without reading them.

use super::consume_queue::{ConsumeQueue, Durable};
use super::queue_dir::{Layout, QueueOptions, QueueRepair, Shared, check_topic, non_empty};
use super::queue_entry::ENTRY_SIZE;
use super::queue_entry::QueueEntry;
use super::queue_starts::QueueStarts;
use super::queue_table::{self, Row, Table, TableWriter};
use super::quick_hash::QuickHash;
use super::segment::{file_name, parse_file_name};
use crate::disk::{Allocation, Disk, OpenAccess, SyncMethod};
use crate::error::{Error, IoContext, IoOp, Result};
use crate::replication::QueueStart;
use parking_lot::{Mutex, MutexGuard, RwLock};
use std::collections::HashMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

/// Directory of the queues below the store's root, where RocketMQ has it.
const QUEUES_DIR: &str = "consumequeue";
/// Directory of what RocketMQ does not know.
const OWN_DIR: &str = "duralog";
const TABLE_TEMPORARY_NAME: &str = "queues.tmp";

/// What the table said when the queues were opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueTable {
    /// Every record before this physical offset is in the queues; dispatch continues here. 0 where
    /// there is no table, or none to be trusted: then it starts at the log's beginning.
    ///
    /// An offset behind the end of the log means that the log lost what was durable: the queues
    /// are to be [`reset`](Queues::reset).
    pub offset: u64,
    /// Why the table was thrown away, if it was.
    pub distrusted: Option<String>,
}

#[derive(Debug, Default)]
struct Registry {
    topics: HashMap<Box<str>, HashMap<i32, Arc<ConsumeQueue>, QuickHash>, QuickHash>,
    /// All queues by number, in the order in which they came: the maps have no order that two runs
    /// would share.
    all: Vec<Arc<ConsumeQueue>>,
}

impl Registry {
    fn find(&self, topic: &str, queue_id: i32) -> Option<&Arc<ConsumeQueue>> {
        self.topics.get(topic)?.get(&queue_id)
    }

    fn insert(&mut self, queue: ConsumeQueue) -> Arc<ConsumeQueue> {
        let queue = Arc::new(queue);
        self.topics
            .entry(queue.topic().into())
            .or_default()
            .insert(queue.queue_id(), Arc::clone(&queue));
        self.all.push(Arc::clone(&queue));
        queue
    }
}

/// The consume queues of one store.
///
/// Opening reads one table and one entry per queue. After it, the log is dispatched from
/// [`QueueTable::offset`], and [`finish_recovery`](Self::finish_recovery) cleans up; then
/// [`checkpoint`](Self::checkpoint) moves that offset forward from time to time.
///
/// Memory grows with the queues (some 300 bytes each) and is bounded by
/// [`QueueOptions::tail_memory`] for entries not yet written; open files are bounded by
/// [`QueueOptions::open_files`].
///
/// # Examples
/// ```
/// use duralog::disk::HostDisk;
/// use duralog::log::{QueueEntry, QueueOptions, Queues};
///
/// # let dir = std::env::temp_dir().join(format!("duralog-doc-queues-{}", std::process::id()));
/// # std::fs::create_dir(&dir).unwrap();
/// let (queues, table) = Queues::open(HostDisk::shared(), &dir, &QueueOptions::default())?;
/// assert_eq!(table.offset, 0); // what lies behind in the log is to be dispatched
/// let queue = queues.get_or_create("orders", 0)?;
/// queue.append(0, QueueEntry { physical_offset: 0, size: 128, tags_code: 0 })?;
/// queue.append(1, QueueEntry { physical_offset: 128, size: 96, tags_code: 0 })?;
/// queues.finish_recovery(false, 0)?;
/// assert_eq!(queue.entry(1)?.map(|entry| entry.physical_offset), Some(128));
/// queues.checkpoint(224, &mut || Ok(()))?; // the log is durable before 224
/// # std::fs::remove_dir_all(&dir).unwrap();
/// # Ok::<(), duralog::Error>(())
/// ```
#[derive(Debug)]
pub struct Queues {
    root: PathBuf,
    shared: Arc<Shared>,
    registry: RwLock<Registry>,
    /// Directories without a queue here have not been looked at.
    rebuilding: AtomicBool,
    /// Something in the files is wrong: no table may vouch for them.
    distrusted: AtomicBool,
    /// The offset of the table on disk. Held by the one checkpoint at a time.
    saved: Mutex<Option<u64>>,
    /// Where they go on in a log that began anew in the middle of another one.
    starts: OnceLock<QueueStarts>,
}

impl Queues {
    /// Opens the queues of the store at `root`. They never refuse to open because of what they find:
    /// a table that is damaged, or that queue files contradict, is thrown away, and with it every
    /// queue.
    ///
    /// # Errors
    /// [`Error::Io`] if a table that must not be trusted cannot be removed.
    pub fn open(
        disk: Arc<dyn Disk>,
        root: &Path,
        options: &QueueOptions,
    ) -> Result<(Self, QueueTable)> {
        let layout = Layout::Tree(root.join(QUEUES_DIR));
        let shared = Arc::new(Shared::new(disk, layout, non_empty(root).to_owned(), options));
        let queues = Self {
            root: root.to_owned(),
            shared,
            registry: RwLock::default(),
            rebuilding: AtomicBool::new(true),
            distrusted: AtomicBool::new(false),
            saved: Mutex::new(None),
            starts: OnceLock::new(),
        };
        let read = queues.read_table().and_then(|table| {
            let Some(table) = table else { return Ok(None) };
            queues.verify(&table)?;
            Ok(Some(table))
        });
        let (offset, distrusted) = match read {
            Ok(Some(table)) => {
                queues.adopt(&table);
                (table.offset, None)
            }
            Ok(None) => (0, None),
            Err(reason) => {
                queues.forget_table()?;
                (0, Some(reason))
            }
        };
        Ok((queues, QueueTable { offset, distrusted }))
    }

    fn own_dir(&self) -> PathBuf {
        self.root.join(OWN_DIR)
    }

    fn queues_dir(&self) -> PathBuf {
        self.root.join(QUEUES_DIR)
    }

    /// The table, if there is one; otherwise why it cannot be read.
    fn read_table(&self) -> Result<Option<Table>, String> {
        queue_table::read(&*self.shared.disk, &self.own_dir())
    }

    /// Whether the files of every queue are there, and the last entry is the one the table remembers.
    fn verify(&self, table: &Table) -> Result<(), String> {
        let mut path = self.queues_dir();
        for row in table.rows.iter().filter(|row| row.min < row.max) {
            path.push(&row.topic);
            path.push(row.queue_id.to_string());
            self.verify_row(row, &path, table.offset)
                .map_err(|what| format!("queue {} of topic {}: {what}", row.queue_id, row.topic))?;
            path.pop();
            path.pop();
        }
        Ok(())
    }

    fn verify_row(&self, row: &Row, dir: &Path, offset: u64) -> Result<(), String> {
        let place = (row.max - 1) * ENTRY_SIZE;
        let last = place - place % row.file_size;
        let first = row.min * ENTRY_SIZE;
        let first = first - first % row.file_size;
        let files = self.shared.disk.list(dir);
        let files = files.map_err(|error| format!("its directory cannot be read: {error}"))?;
        let mut expected = first;
        for file in &files {
            if expected <= last && parse_file_name(&file.name) == Some(expected) {
                if file.len != row.file_size {
                    let (name, len) = (&file.name, file.len);
                    return Err(format!("file {name} has {len} bytes, not {}", row.file_size));
                }
                expected += row.file_size;
            }
        }
        if expected <= last {
            return Err(format!("file {} is missing", file_name(expected)));
        }
        let name = file_name(last);
        let file = self.shared.disk.open(&dir.join(&name), OpenAccess::Read);
        let file = file.map_err(|error| format!("file {name} cannot be opened: {error}"))?;
        let mut bytes = [0; ENTRY_SIZE as usize];
        let got = file.read_at(&mut bytes, place - last);
        got.map_err(|error| format!("the last entry cannot be read: {error}"))?;
        match QueueEntry::decode(&bytes) {
            Some(entry) if entry.physical_offset != row.last_physical => {
                Err("the last entry is another one".into())
            }
            Some(entry) if entry.physical_offset >= offset => {
                Err("the last entry points past the table".into())
            }
            Some(_) => Ok(()),
            None => Err("the last entry is none".into()),
        }
    }

    fn adopt(&self, table: &Table) {
        let mut registry = self.registry.write();
        for row in &table.rows {
            let durable = Durable {
                min: row.min,
                max: row.max,
                file_size: row.file_size,
                last_physical: row.last_physical,
            };
            let number = registry.all.len() as u32;
            let shared = Arc::clone(&self.shared);
            registry.insert(ConsumeQueue::restored(
                shared,
                number,
                &row.topic,
                row.queue_id,
                durable,
            ));
        }
        self.rebuilding.store(table.rebuilding, Ordering::Relaxed);
        *self.saved.lock() = Some(table.offset);
    }

    /// Removes the table for good before anything it might describe is written over: half rebuilt
    /// queues could agree with it.
    fn forget_table(&self) -> Result<()> {
        if self.shared.is_read_only() {
            return Ok(());
        }
        let dir = self.own_dir();
        self.shared.remove_file(&dir.join(queue_table::NAME))?;
        self.shared.sync_dir(&dir)
    }

    /// Removes the table for good, and saves none any more: when the store is opened again, every
    /// queue is rebuilt from the log. For when an entry turns out to be wrong.
    ///
    /// # Errors
    /// [`Error::Io`] if the table cannot be removed.
    pub fn distrust(&self) -> Result<()> {
        if self.distrusted.swap(true, Ordering::SeqCst) {
            return Ok(());
        }
        self.forget_distrusted()
    }

    /// Removes a table that must not vouch any more. Where a checkpoint is under way it does that at its
    /// end: the reader who found the wrong entry does not wait for so many syncs.
    fn forget_distrusted(&self) -> Result<()> {
        match self.saved.try_lock() {
            Some(mut saved) => {
                *saved = None;
                self.forget_table()
            }
            None => Ok(()),
        }
    }

    /// Forgets every queue and removes the table, so that dispatching the whole log writes every
    /// entry again, in place. For recovery, before any queue is in use.
    ///
    /// # Errors
    /// [`Error::Io`] if the table cannot be removed.
    pub fn reset(&self) -> Result<()> {
        let mut saved = self.saved.lock();
        self.forget_table()?;
        *saved = None;
        *self.registry.write() = Registry::default();
        self.shared.listed.lock().clear();
        self.rebuilding.store(true, Ordering::Relaxed);
        drop(saved);
        self.go_on()
    }

    /// Lets queues go on where those of the log do from which this one was begun anew. For recovery, before
    /// the log is dispatched.
    pub(crate) fn begin_at(&self, starts: QueueStarts) -> Result<()> {
        self.starts.get_or_init(|| starts);
        self.go_on()
    }

    fn go_on(&self) -> Result<()> {
        let rows = self.starts.get().map_or(&[][..], |starts| &starts.rows);
        rows.iter().try_for_each(|row| {
            self.get_or_create(&row.topic, row.queue_id)?.go_on_at(row.offset);
            Ok(())
        })
    }

    /// Where each queue goes on in a log that begins at `log_min`: those in which nothing lies before are left
    /// out.
    pub(crate) fn starts_in(&self, log_min: u64) -> Result<Vec<QueueStart>> {
        let mut starts = Vec::new();
        self.for_each(|queue| {
            let offset = queue.start_in(log_min)?;
            if offset > 0 {
                let (topic, queue_id) = (queue.topic().to_owned(), queue.queue_id());
                starts.push(QueueStart { topic, queue_id, offset });
            }
            Ok(())
        })?;
        Ok(starts)
    }

    /// Ends recovery, when the log has been dispatched to its end: nothing stale stays behind the
    /// end of a queue.
    ///
    /// `cut`: the log may have lost its tail since the queue files were written, by a cut or because
    /// the system crashed. Every queue is looked at then, otherwise those that got entries. After a
    /// rebuild it counts as true, and queues without a record in the log are cleared away as well:
    /// they keep the entries that point before `log_min`, the log's first offset, all of them
    /// expired, so that they continue with the right offset; without any they are removed.
    ///
    /// # Errors
    /// [`Error::Io`]; calling it again continues.
    pub fn finish_recovery(&self, cut: bool, log_min: u64) -> Result<()> {
        if !self.shared.is_read_only() {
            let cut = cut || self.rebuilding.load(Ordering::Relaxed);
            for queue in self.snapshot() {
                // Its files may tell of more, which has expired: the sweep looks at them.
                let is_unmoved = queue.unmoved().is_some_and(|start| start > 0);
                if (cut && !is_unmoved) || queue.is_listed() {
                    queue.truncate(u64::MAX)?;
                }
            }
            if cut {
                self.sweep(log_min)?;
            }
            self.rebuilding.store(false, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Looks at the directories of which no queue is known, or only an empty one.
    fn sweep(&self, log_min: u64) -> Result<()> {
        let disk = &self.shared.disk;
        let list = |dir: &Path| match disk.list(dir) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
            other => other.at(IoOp::List, dir),
        };
        let root = self.queues_dir();
        for topic in list(&root)?.into_iter().filter(|entry| entry.is_dir) {
            let topic_dir = root.join(&topic.name);
            let mut removed = false;
            for queue in list(&topic_dir)?.into_iter().filter(|entry| entry.is_dir) {
                let id = queue.name.parse::<i32>().ok().filter(|id| id.to_string() == queue.name);
                let dir = topic_dir.join(&queue.name);
                match id.filter(|id| check_topic(&topic.name, *id).is_ok()) {
                    Some(id) => removed |= self.sweep_queue(&topic.name, id, dir, log_min)?,
                    None => self.shared.report(dir, "not a queue directory", false),
                }
            }
            if removed {
                self.remove_dir(&topic_dir);
                self.shared.unsynced_dirs.lock().extend([topic_dir, root.clone()]);
            }
        }
        Ok(())
    }

    /// Whether the directory was removed.
    fn sweep_queue(&self, topic: &str, queue_id: i32, dir: PathBuf, log_min: u64) -> Result<bool> {
        let known = self.get(topic, queue_id);
        let start = known.as_ref().map_or(Some(0), |queue| queue.unmoved());
        let Some(start) = start else { return Ok(false) };
        let number = self.registry.read().all.len() as u32;
        let Ok(queue) = ConsumeQueue::load(Arc::clone(&self.shared), number, topic, queue_id)
        else {
            // Derived files do not keep a store from opening; what is in the log has its queues.
            self.shared.report(dir, "a queue directory that cannot be read", false);
            return Ok(false);
        };
        let expired = queue.lower_bound(log_min)?;
        // What points before the beginning of a log that began anew was perhaps never confirmed.
        let begin = self.starts.get().map_or(0, |starts| starts.offset);
        let keep = expired > queue.lower_bound(begin)?.max(start);
        queue.truncate(if keep { expired } else { 0 })?;
        match known {
            Some(known) if keep => known.go_on_at(expired),
            None if keep => {
                queue.correct_min_offset(log_min)?;
                self.registry.write().insert(queue);
            }
            _ => return Ok(self.remove_dir(&dir)),
        }
        Ok(false)
    }

    /// Removes a directory in which nothing of a queue is left; what else it holds stays.
    fn remove_dir(&self, dir: &Path) -> bool {
        let removed = self.shared.disk.remove_dir(dir).is_ok();
        if removed {
            self.shared.report(
                dir.to_owned(),
                "a queue directory without messages in the log",
                true,
            );
        }
        removed
    }

    /// The queue, if it is known. Allocates nothing.
    pub fn get(&self, topic: &str, queue_id: i32) -> Option<Arc<ConsumeQueue>> {
        self.registry.read().find(topic, queue_id).map(Arc::clone)
    }

    /// The queue, created in memory if it is not known. Its directory appears with its first write.
    ///
    /// # Errors
    /// [`Error::InvalidMessage`] or [`Error::TooLarge`] if the topic cannot be the name of a
    /// directory, or the queue id is negative.
    pub fn get_or_create(&self, topic: &str, queue_id: i32) -> Result<Arc<ConsumeQueue>> {
        if let Some(queue) = self.get(topic, queue_id) {
            return Ok(queue);
        }
        check_topic(topic, queue_id)?;
        let mut registry = self.registry.write();
        if let Some(queue) = registry.find(topic, queue_id) {
            return Ok(Arc::clone(queue));
        }
        let number = registry.all.len() as u32;
        Ok(registry.insert(ConsumeQueue::empty(Arc::clone(&self.shared), number, topic, queue_id)))
    }

    /// The topics with their queue ids, sorted.
    pub fn topics(&self) -> Vec<(String, Vec<i32>)> {
        let registry = self.registry.read();
        let mut topics: Vec<_> = registry
            .topics
            .iter()
            .map(|(topic, queues)| {
                let mut ids: Vec<_> = queues.keys().copied().collect();
                ids.sort_unstable();
                (topic.to_string(), ids)
            })
            .collect();
        topics.sort_unstable();
        topics
    }

    /// The queue ids of a topic, sorted; none for a topic that is not known.
    pub fn ids(&self, topic: &str) -> Vec<i32> {
        let registry = self.registry.read();
        let ids = registry.topics.get(topic).map(|queues| queues.keys().copied());
        let mut ids: Vec<_> = ids.into_iter().flatten().collect();
        ids.sort_unstable();
        ids
    }

    /// How many queues are known.
    pub fn len(&self) -> usize {
        self.registry.read().all.len()
    }

    /// Whether no queue is known.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn snapshot(&self) -> Vec<Arc<ConsumeQueue>> {
        self.registry.read().all.clone()
    }

    /// Calls `visit` for every queue known now, in the order in which they came, until it fails.
    ///
    /// # Errors
    /// The first error of `visit`.
    pub fn for_each(&self, mut visit: impl FnMut(&Arc<ConsumeQueue>) -> Result<()>) -> Result<()> {
        self.snapshot().iter().try_for_each(&mut visit)
    }

    /// What was found in the way since the last call: files that were no queue's.
    pub fn take_repairs(&self) -> Vec<QueueRepair> {
        self.shared.take_repairs()
    }

    /// Files open at this moment.
    pub fn open_files(&self) -> usize {
        self.shared.files.len()
    }

    /// Memory held for entries that are not in the files yet, in bytes.
    pub fn tail_bytes(&self) -> usize {
        self.shared.tail_bytes()
    }

    /// From here on nothing is written: the directory may be someone else's. What is in the queues can
    /// be read.
    pub(crate) fn seal(&self) {
        self.shared.seal();
    }

    /// Whether a checkpoint should come soon: queues hold half the memory they may, and when it is
    /// used up appends wait for syncs.
    pub fn wants_checkpoint(&self) -> bool {
        self.shared.tail_bytes() > self.shared.options.tail_memory / 2
    }

    /// Makes every entry that points before `dispatched` durable and saves the table: when the store
    /// is opened again, dispatch continues at `dispatched`.
    ///
    /// Every record before `dispatched` must be in the queues *and durable in the log*: entries
    /// behind it do not count as part of their queues after a crash. `pace` is called before each
    /// sync and may sleep to bound their rate; its error ends the checkpoint and loses nothing.
    /// Visits the queues that got entries, and rewrites the table of all.
    ///
    /// # Errors
    /// The table on disk stays as it was. [`Error::ReadOnly`]; what `pace` returned; [`Error::Io`] or
    /// [`Error::DiskFull`]. Once a sync of queue files has failed, every checkpoint returns its
    /// error until the queues are opened again.
    pub fn checkpoint(&self, dispatched: u64, pace: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        if self.shared.is_read_only() {
            return Err(Error::ReadOnly);
        }
        let result = self.checkpoint_holding(self.saved.lock(), dispatched, pace);
        // Whoever distrusts the table from here on removes it; for those before, this does.
        if self.distrusted.load(Ordering::SeqCst) {
            return result.and(self.forget_distrusted());
        }
        result
    }

    fn checkpoint_holding(
        &self,
        mut saved: MutexGuard<'_, Option<u64>>,
        dispatched: u64,
        pace: &mut dyn FnMut() -> Result<()>,
    ) -> Result<()> {
        self.shared.files.check()?;
        if self.distrusted.load(Ordering::SeqCst) {
            return Ok(());
        }
        let min_moved = self.shared.min_moved.swap(false, Ordering::AcqRel);
        if *saved == Some(dispatched) && !min_moved && self.shared.listed.lock().is_empty() {
            return Ok(());
        }
        let result =
            self.persist(dispatched, pace).and_then(|()| self.save_table(dispatched, pace));
        match &result {
            Ok(()) => *saved = Some(dispatched),
            Err(_) => self.shared.min_moved.store(true, Ordering::Release),
        }
        result
    }

    fn persist(&self, dispatched: u64, pace: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        let shared = &*self.shared;
        let listed = std::mem::take(&mut *shared.listed.lock());
        let mut visited = 0;
        let result = listed.iter().try_for_each(|number| {
            let queue = self.registry.read().all.get(*number as usize).map(Arc::clone);
            let idle = queue.map_or(Ok(true), |queue| queue.visit(dispatched, pace))?;
            if !idle {
                shared.listed.lock().push(*number);
            }
            visited += 1;
            Ok(())
        });
        if result.is_err() {
            shared.listed.lock().extend(listed.iter().skip(visited));
            return result;
        }
        let dirs = std::mem::take(&mut *shared.unsynced_dirs.lock());
        let synced = dirs.iter().try_for_each(|dir| {
            pace()?;
            shared.sync_dir(dir)
        });
        if synced.is_err() {
            shared.unsynced_dirs.lock().extend(dirs);
        }
        // Last: a file may have been synced, and may have failed, on its way out of the cache.
        synced.and_then(|()| shared.files.check())
    }

    fn save_table(&self, dispatched: u64, pace: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        let queues = self.snapshot();
        let mut writer = TableWriter::new(dispatched, self.rebuilding.load(Ordering::Relaxed));
        let mut mins = Vec::with_capacity(queues.len());
        for queue in &queues {
            let row = queue.durable();
            mins.push(row.min);
            if row.max > 0 {
                let numbers = [row.min, row.max, row.file_size, row.last_physical];
                writer.row(queue.topic(), queue.queue_id(), numbers);
            }
        }
        let bytes = writer.finish();
        let (disk, dir) = (&self.shared.disk, self.own_dir());
        if disk.create_dir(&dir).at(IoOp::Create, &dir)? {
            let root = non_empty(&self.root);
            disk.sync_dir(root).at(IoOp::SyncDir, root)?;
        }
        let temporary = dir.join(TABLE_TEMPORARY_NAME);
        self.shared.remove_file(&temporary)?;
        let file = disk
            .create(&temporary, bytes.len() as u64, Allocation::Sparse)
            .at(IoOp::Create, &temporary)?;
        file.write_at(&bytes, 0).at_offset(IoOp::Write, &temporary, 0)?;
        pace()?;
        if !canary!("queue_table_sync") {
            file.sync(SyncMethod::Fdatasync).at(IoOp::Sync, &temporary)?;
        }
        let path = dir.join(queue_table::NAME);
        disk.rename(&temporary, &path).at(IoOp::Rename, &path)?;
        disk.sync_dir(&dir).at(IoOp::SyncDir, &dir)?;
        for (queue, min) in queues.iter().zip(mins) {
            queue.set_recorded_min(min);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
