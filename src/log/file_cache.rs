//! A bounded set of open files, shared by all queues.
//!
//! Writers and readers share one descriptor per file. A file with unsynced writes is never just
//! closed: a write-back error is reported to descriptors that were open when the bytes were
//! written, so closing it could lose the only report. Clean files go first, least recently used by
//! the clock algorithm; where none is clean, a *writer* syncs one and then closes it, and a *reader*
//! keeps its descriptor to itself for the length of one read. A failed sync, whoever made it,
//! latches the cache: every later [`FileCache::check`] answers with it.

use super::queue_entry::ENTRY_LEN;
use super::quick_hash::QuickHash;
use crate::disk::{DiskFile, SyncMethod};
use crate::error::{Error, IoContext, IoOp, Result};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::io;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

/// How far is read ahead, in bytes: several times what is asked for at once, so that most fetches need
/// no system call.
const AHEAD: usize = 256 * ENTRY_LEN;

/// One file of one queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct FileKey {
    /// The queue, by a number that is never given out twice in a process.
    pub(crate) queue: u64,
    /// Which file of the queue: its base offset divided by the file size.
    pub(crate) index: u64,
}

/// An open file.
#[derive(Debug)]
pub(crate) struct CachedFile {
    path: PathBuf,
    file: Arc<dyn DiskFile>,
    /// Writers between [`FileCache::get_for_write`] and the end of their write.
    pins: AtomicU32,
    /// Finished writes. The file is dirty while this differs from `synced`.
    writes: AtomicU64,
    synced: AtomicU64,
    /// Held during a sync and until its outcome is recorded: the system reports an error once, so a
    /// second sync must not succeed while the first has not yet told of its failure.
    syncing: Mutex<()>,
    ahead: Mutex<Ahead>,
}

/// Bytes read ahead of a reader who goes through a file.
#[derive(Debug, Default)]
struct Ahead {
    at: u64,
    bytes: Vec<u8>,
    /// Finished writes when they were read.
    writes: u64,
    /// Where the last reader stopped: only one who goes on there is worth reading ahead for.
    next: u64,
}

impl Ahead {
    fn get(&self, at: u64, len: usize) -> Option<&[u8]> {
        let from = usize::try_from(at.checked_sub(self.at)?).ok()?;
        self.bytes.get(from..)?.get(..len)
    }
}

impl CachedFile {
    fn new((path, file): (PathBuf, Arc<dyn DiskFile>)) -> Self {
        Self {
            path,
            file,
            pins: AtomicU32::new(0),
            writes: AtomicU64::new(0),
            synced: AtomicU64::new(0),
            syncing: Mutex::new(()),
            ahead: Mutex::default(),
        }
    }

    /// Fills `buf` from `at` on, as far as the file reaches; how many bytes that were. What lies
    /// before `end` may be read ahead, for whoever asks next.
    pub(crate) fn read_run(&self, buf: &mut [u8], at: u64, end: u64) -> io::Result<usize> {
        let readable = end.saturating_sub(at).min(AHEAD as u64) as usize;
        let alone = self.ahead.try_lock().filter(|_| buf.len() < readable);
        let Some(mut ahead) = alone else { return self.file.read_at(buf, at) };
        let goes_on = std::mem::replace(&mut ahead.next, at + buf.len() as u64) == at;
        let writes = self.writes.load(Ordering::Acquire);
        let current = ahead.writes == writes && !self.is_pinned();
        if !current || ahead.get(at, buf.len()).is_none() {
            if !goes_on {
                return self.file.read_at(buf, at);
            }
            ahead.bytes.resize(readable, 0);
            // Not to be taken for what it was before, should the read fail.
            (ahead.at, ahead.writes) = (at, u64::MAX);
            let got = self.file.read_at(&mut ahead.bytes, at)?;
            ahead.bytes.truncate(got);
            if !self.is_pinned() {
                ahead.writes = writes;
            }
        }
        let found = ahead.get(at, buf.len().min(ahead.bytes.len())).unwrap_or_default();
        let got = found.len();
        if let Some(filled) = buf.get_mut(..got) {
            filled.copy_from_slice(found);
        }
        Ok(got)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn is_pinned(&self) -> bool {
        self.pins.load(Ordering::Acquire) > 0
    }

    fn is_dirty(&self) -> bool {
        self.writes.load(Ordering::Acquire) != self.synced.load(Ordering::Acquire)
    }
}

impl Deref for CachedFile {
    type Target = dyn DiskFile;

    fn deref(&self) -> &Self::Target {
        &*self.file
    }
}

/// A file that stays open, and counts as written to, until this is dropped.
#[derive(Debug)]
pub(crate) struct FileForWrite(Arc<CachedFile>);

impl Deref for FileForWrite {
    type Target = CachedFile;

    fn deref(&self) -> &CachedFile {
        &self.0
    }
}

impl Drop for FileForWrite {
    fn drop(&mut self) {
        // The write counts before the pin goes: nobody may see the file unpinned and still clean.
        self.0.writes.fetch_add(1, Ordering::Release);
        self.0.pins.fetch_sub(1, Ordering::Release);
    }
}

#[derive(Debug)]
struct Slot {
    key: FileKey,
    file: Arc<CachedFile>,
    referenced: bool,
}

#[derive(Debug, Default)]
struct Slots {
    by_key: HashMap<FileKey, usize, QuickHash>,
    slots: Vec<Slot>,
    hand: usize,
}

impl Slots {
    fn find(&mut self, key: FileKey) -> Option<&Arc<CachedFile>> {
        let slot = self.slots.get_mut(*self.by_key.get(&key)?)?;
        slot.referenced = true;
        Some(&slot.file)
    }

    fn insert(&mut self, key: FileKey, file: Arc<CachedFile>) {
        self.by_key.insert(key, self.slots.len());
        self.slots.push(Slot { key, file, referenced: true });
    }

    fn remove(&mut self, key: FileKey) {
        let Some(at) = self.by_key.remove(&key) else { return };
        self.slots.swap_remove(at);
        if let Some(moved) = self.slots.get(at) {
            self.by_key.insert(moved.key, at);
        }
    }

    /// Closes the next file that may simply be closed; false if there is none.
    fn evict_clean(&mut self) -> bool {
        // The first round takes the marks off, the second finds whatever is there to find.
        for _ in 0..2 * self.slots.len() {
            self.hand = if self.hand + 1 < self.slots.len() { self.hand + 1 } else { 0 };
            let Some(slot) = self.slots.get_mut(self.hand) else { return false };
            if slot.file.is_pinned() || slot.file.is_dirty() {
                continue;
            }
            if std::mem::take(&mut slot.referenced) {
                continue;
            }
            let key = slot.key;
            self.remove(key);
            return true;
        }
        false
    }

    /// The next file that can be closed once it is synced.
    fn next_dirty(&mut self) -> Option<Arc<CachedFile>> {
        for _ in 0..self.slots.len() {
            self.hand = if self.hand + 1 < self.slots.len() { self.hand + 1 } else { 0 };
            match self.slots.get(self.hand) {
                Some(slot) if !slot.file.is_pinned() => return Some(Arc::clone(&slot.file)),
                _ => {}
            }
        }
        None
    }
}

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct FileCache {
    capacity: usize,
    slots: Mutex<Slots>,
    failed: OnceLock<Error>,
}

impl FileCache {
    /// A cache that keeps at most `capacity` files open, beside those being written to or read in
    /// this moment.
    pub(crate) fn new(capacity: usize) -> Self {
        Self { capacity: capacity.max(1), slots: Mutex::default(), failed: OnceLock::new() }
    }

    /// A file for reading.
    pub(crate) fn get(
        &self,
        key: FileKey,
        open: impl FnOnce() -> Result<(PathBuf, Arc<dyn DiskFile>)>,
    ) -> Result<Arc<CachedFile>> {
        if let Some(file) = self.slots.lock().find(key) {
            return Ok(Arc::clone(file));
        }
        let file = Arc::new(CachedFile::new(open()?));
        let mut slots = self.slots.lock();
        if let Some(first) = slots.find(key) {
            return Ok(Arc::clone(first));
        }
        if slots.slots.len() < self.capacity || slots.evict_clean() {
            slots.insert(key, Arc::clone(&file));
        }
        Ok(file)
    }

    /// A file for writing. It stays open at least until it is synced.
    pub(crate) fn get_for_write(
        &self,
        key: FileKey,
        open: impl FnOnce() -> Result<(PathBuf, Arc<dyn DiskFile>)>,
    ) -> Result<FileForWrite> {
        // Pinned under the lock: eviction looks at the pins under the same lock.
        let pin = |file: &Arc<CachedFile>| {
            file.pins.fetch_add(1, Ordering::AcqRel);
            FileForWrite(Arc::clone(file))
        };
        if let Some(file) = self.slots.lock().find(key) {
            return Ok(pin(file));
        }
        let file = Arc::new(CachedFile::new(open()?));
        let mut slots = self.slots.lock();
        while slots.slots.len() >= self.capacity && !slots.evict_clean() {
            let Some(dirty) = slots.next_dirty() else { break };
            drop(slots);
            // The failure stays in the cache for the next checkpoint; the write at hand goes on.
            let _ = self.sync_file(&dirty);
            slots = self.slots.lock();
        }
        if let Some(first) = slots.find(key) {
            return Ok(pin(first));
        }
        let pinned = pin(&file);
        slots.insert(key, file);
        Ok(pinned)
    }

    /// Whether [`get_for_write`](Self::get_for_write) would have to sync another file first.
    pub(crate) fn would_sync(&self, key: FileKey) -> bool {
        let slots = self.slots.lock();
        slots.slots.len() >= self.capacity
            && !slots.by_key.contains_key(&key)
            && slots.slots.iter().all(|slot| slot.file.is_pinned() || slot.file.is_dirty())
    }

    /// Makes a file's finished writes durable; nothing to do if it is not open, for then whoever
    /// closed it synced it before.
    pub(crate) fn sync(&self, key: FileKey) -> Result<()> {
        let file = self.slots.lock().find(key).map(Arc::clone);
        file.map_or(Ok(()), |file| self.sync_file(&file))
    }

    /// Whether the file is open and has unsynced writes.
    pub(crate) fn is_dirty(&self, key: FileKey) -> bool {
        let slots = self.slots.lock();
        let slot = slots.by_key.get(&key).and_then(|at| slots.slots.get(*at));
        slot.is_some_and(|slot| slot.file.is_dirty())
    }

    fn sync_file(&self, file: &CachedFile) -> Result<()> {
        let _turn = file.syncing.lock();
        let writes = file.writes.load(Ordering::Acquire);
        if writes == file.synced.load(Ordering::Acquire) {
            return Ok(());
        }
        let outcome = if canary!("queue_sync") {
            Ok(())
        } else {
            file.sync(SyncMethod::Fdatasync).at(IoOp::Sync, &file.path)
        };
        if let Err(error) = &outcome {
            self.fail(error.clone());
        }
        // Clean after a failure too: it is recorded for good, and no second sync would tell more.
        file.synced.store(writes, Ordering::Release);
        outcome
    }

    /// Forgets a file that is about to be removed.
    pub(crate) fn forget(&self, key: FileKey) {
        self.slots.lock().remove(key);
    }

    /// Moves an open file to another key.
    pub(crate) fn rekey(&self, from: FileKey, to: FileKey) {
        let mut slots = self.slots.lock();
        let Some(at) = slots.by_key.remove(&from) else { return };
        if let Some(slot) = slots.slots.get_mut(at) {
            slot.key = to;
            slots.by_key.insert(to, at);
        }
    }

    /// Latches the cache: something that should be durable may never be.
    pub(crate) fn fail(&self, error: Error) {
        // The first failure is the one to tell.
        let _ = self.failed.set(error);
    }

    /// The error of the first failed sync, if there was one.
    pub(crate) fn check(&self) -> Result<()> {
        self.failed.get().map_or(Ok(()), |error| Err(error.clone()))
    }

    /// Files open at this moment.
    pub(crate) fn len(&self) -> usize {
        self.slots.lock().slots.len()
    }
}

#[cfg(all(test, feature = "sim"))]
mod tests {
    use super::*;
    use crate::disk::{Allocation, Disk, SimDisk};

    const LEN: usize = 3 * AHEAD;

    fn open(disk: &SimDisk) -> (FileCache, FileKey, Arc<CachedFile>) {
        let path = Path::new("/queue");
        let file = disk.create(path, LEN as u64, Allocation::Sparse).unwrap();
        let bytes: Vec<u8> = (0..LEN).map(|n| (n / 7) as u8).collect();
        file.write_at(&bytes, 0).unwrap();
        let cache = FileCache::new(4);
        let key = FileKey { queue: 1, index: 0 };
        let file = cache.get(key, || Ok((path.to_owned(), file))).unwrap();
        (cache, key, file)
    }

    fn read(file: &CachedFile, at: usize, len: usize, end: usize) -> Vec<u8> {
        let mut buf = vec![0xAA; len];
        let got = file.read_run(&mut buf, at as u64, end as u64).unwrap();
        buf.truncate(got);
        buf
    }

    #[test]
    fn whoever_goes_on_reads_what_a_plain_read_would() {
        let disk = SimDisk::new(1);
        let (_cache, _, file) = open(&disk);
        for len in [20, 640, 1000, AHEAD, AHEAD + 20] {
            for at in (0..LEN - len).step_by(len) {
                let mut plain = vec![0; len];
                file.read_at(&mut plain, at as u64).unwrap();
                assert_eq!(read(&file, at, len, LEN), plain, "{len} bytes at {at}");
            }
        }
    }

    #[test]
    fn nothing_is_read_ahead_of_what_is_written() {
        let disk = SimDisk::new(1);
        let (cache, key, file) = open(&disk);
        let old = read(&file, 0, 20, 60);
        assert_eq!(read(&file, 20, 20, 60).len(), 20);
        // The third is written only now, through the cache or around it.
        file.write_at(&[9; 40], 60).unwrap();
        assert_eq!(read(&file, 40, 40, 100)[20..], [9; 20]);
        let writer = cache.get_for_write(key, || unreachable!("it is open")).unwrap();
        writer.write_at(&[8; 20], 0).unwrap();
        // While it writes nothing is kept; afterwards nothing older is taken.
        assert_eq!(read(&file, 0, 20, 100), [8; 20]);
        writer.write_at(&old, 0).unwrap();
        drop(writer);
        assert_eq!(read(&file, 0, 20, 100), old);
    }
}
