//! Which messages have a key: RocketMQ's `index/`, and up to where it is to be trusted.
//!
//! The index is derived from the log. It covers every record before some physical offset; what comes
//! behind is put in again when the store is opened. `duralog/index` says up to where that is durable:
//!
//! ```text
//! magic "duralogI"  version u32  slots u32  items u32  covered u64  file u64  header 40  crc32 u32
//! ```
//!
//! `file` is the name of the newest file, 0 for none, and `header` what that file said of itself.

use super::broker_checkpoint::BrokerCheckpoint;
use super::directory::Directory;
use super::index_file::{Geometry, Header, IndexFile};
use crate::clock::{Clock, civil_from_days, local_millis};
use crate::disk::{Disk, OpenAccess};
use crate::error::{IoContext, IoOp, Result};
use crate::message::{RecordRef, Transaction, index_hash, names};
use parking_lot::{Mutex, RwLock};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const MAGIC: &[u8; 8] = b"duralogI";
const VERSION: u32 = 1;
/// Its name in `duralog/`.
pub(super) const STATE_NAME: &str = "index";
const STATE_LEN: usize = 8 + 4 + 4 + 4 + 8 + 8 + Header::LEN + 4;
const INDEX_DIR: &str = "index";
/// Digits in the name of a file.
const NAME_LEN: usize = 17;

/// How the key index is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IndexOptions {
    /// Chains of a file, RocketMQ's `maxHashSlotNum`. Default 5,000,000; at least 1.
    pub slots: u32,
    /// Keys of a file and one more, RocketMQ's `maxIndexNum`. Default 20,000,000; at least 2.
    pub items: u32,
    /// Nothing is ever written: new keys stay in memory, without a bound. Default false.
    pub read_only: bool,
}

impl Default for IndexOptions {
    fn default() -> Self {
        Self { slots: 5_000_000, items: 20_000_000, read_only: false }
    }
}

impl IndexOptions {
    pub(crate) fn geometry(&self) -> Geometry {
        let limit = i32::MAX as u32;
        Geometry { slots: self.slots.clamp(1, limit), items: self.items.clamp(2, limit) }
    }
}

/// How the store was left by whoever had it last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Left {
    /// Not closed in order.
    pub(crate) unclean: bool,
    /// Where the log begins, and where it ends now.
    pub(crate) min: u64,
    pub(crate) end: u64,
}

/// `duralog/index`, decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Saved {
    geometry: Geometry,
    covered: u64,
    file: u64,
    header: Header,
}

impl Saved {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(STATE_LEN);
        bytes.extend_from_slice(MAGIC);
        for number in [VERSION, self.geometry.slots, self.geometry.items] {
            bytes.extend_from_slice(&number.to_be_bytes());
        }
        for number in [self.covered, self.file] {
            bytes.extend_from_slice(&number.to_be_bytes());
        }
        bytes.extend_from_slice(&self.header.encode());
        let crc = crc32fast::hash(&bytes);
        bytes.extend_from_slice(&crc.to_be_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (fields, crc) = bytes.split_last_chunk::<4>()?;
        if crc32fast::hash(fields) != u32::from_be_bytes(*crc) || bytes.len() != STATE_LEN {
            return None;
        }
        let (magic, rest) = fields.split_first_chunk::<8>()?;
        let (version, rest) = rest.split_first_chunk::<4>()?;
        if magic != MAGIC || u32::from_be_bytes(*version) != VERSION {
            return None;
        }
        let (slots, rest) = rest.split_first_chunk()?;
        let (items, rest) = rest.split_first_chunk()?;
        let (covered, rest) = rest.split_first_chunk()?;
        let (file, rest) = rest.split_first_chunk()?;
        let saved = Self {
            geometry: Geometry {
                slots: u32::from_be_bytes(*slots),
                items: u32::from_be_bytes(*items),
            },
            covered: u64::from_be_bytes(*covered),
            file: u64::from_be_bytes(*file),
            header: Header::decode(rest.first_chunk()?),
        };
        // More than a file has room for is no number of items, whatever the checksum says.
        (saved.header.next_item <= saved.geometry.items.max(1)).then_some(saved)
    }
}

/// Where the next key goes.
#[derive(Debug)]
struct Writer {
    /// Every record before this physical offset has its keys in the index.
    covered: u64,
    /// Where a record begins from which on they are to be put in again.
    resume: u64,
    /// It could not be written: it stays as it is until the store is opened again.
    failed: bool,
    /// Full files that are not durable yet.
    unsynced: Vec<Arc<IndexFile>>,
    /// Names that the directory got or lost since it was synced.
    names_dirty: bool,
    last_name: u64,
}

/// The key index of one store.
///
/// One thread puts; any number of threads look keys up meanwhile. Memory grows with the slots that were
/// used since the last checkpoint, 20 MB with the default geometry, and 64 KiB for keys not written yet.
#[derive(Debug)]
pub(crate) struct KeyIndex {
    disk: Arc<dyn Disk>,
    clock: Arc<dyn Clock>,
    dir: PathBuf,
    options: IndexOptions,
    /// Oldest first.
    files: RwLock<Vec<Arc<IndexFile>>>,
    writer: Mutex<Writer>,
    /// The state on disk. Held by the one checkpoint at a time.
    saved: Mutex<Option<Saved>>,
}

impl KeyIndex {
    /// Opens the index below `root`. What does not fit is removed, and with it everything newer: it is
    /// to be put in again from [`resume_at`](Self::resume_at) on.
    pub(crate) fn open(
        disk: Arc<dyn Disk>,
        clock: Arc<dyn Clock>,
        directory: &Directory,
        options: IndexOptions,
        left: Left,
    ) -> Result<Self> {
        let dir = directory.root().join(INDEX_DIR);
        let state_path = directory.duralog().join(STATE_NAME);
        let saved = read_saved(&*disk, &state_path);
        let fits = saved.is_none_or(|saved| saved.geometry == options.geometry());
        // The log lost what was durable: an offset below the new end may be another message's later.
        let saved = saved.filter(|saved| fits && saved.covered <= left.end);
        let writer = Writer {
            covered: left.min,
            resume: left.min,
            failed: false,
            unsynced: Vec::new(),
            names_dirty: false,
            last_name: 0,
        };
        let index = Self {
            disk,
            clock,
            dir,
            options,
            files: RwLock::default(),
            writer: Mutex::new(writer),
            saved: Mutex::new(saved),
        };
        let mut found = index.load()?;
        let known = saved.filter(|saved| index.continues(&mut found, saved));
        if known.is_none() {
            // For good, before anything that it speaks of is touched.
            index.forget_state(directory, &state_path)?;
        }
        if !fits {
            index.remove_all(&mut found, 0)?;
        }
        match (&known, &saved) {
            (Some(saved), _) => index.settle(&found, saved, left.unclean)?,
            // A broker that recovers drops the newest files, and does not index again all that was in
            // them. Files before the one that is gone were complete.
            (None, Some(saved)) => {
                let kept = found.iter().take_while(|file| file.name() < saved.file).count();
                index.remove_all(&mut found, kept)?;
            }
            (None, None) if left.unclean => index.drop_unsafe(&mut found, directory)?,
            (None, None) => {}
        }
        // A file before the newest may reach behind what was durable, too.
        let limit = known.map_or(left.end, |saved| saved.covered);
        found.iter().rev().try_for_each(|file| file.forget_from(limit))?;
        let newest =
            found.iter().rev().map(|file| file.header()).find(|header| header.next_item > 1);
        let mut writer = index.writer.lock();
        (writer.resume, writer.covered) = match (known, newest) {
            (Some(saved), _) => (saved.covered, saved.covered),
            // The record at the end of the newest file is in it, and where it ends is not said. Where
            // files are gone, some of its keys may be, too: it is put in again.
            (None, Some(header)) => {
                let whole = saved.is_none() && !left.unclean;
                (header.end_physical, header.end_physical + u64::from(whole))
            }
            (None, None) => (left.min, left.min),
        };
        let older = found.iter().rev().skip(1).filter(|file| file.is_dirty());
        writer.unsynced = older.cloned().collect();
        drop(writer);
        *index.files.write() = found;
        if known.is_none() && !index.options.read_only {
            index.adopt(directory)?;
        }
        Ok(index)
    }

    /// Saves what the index begins with: should a broker drop some of it before the first checkpoint,
    /// the next open knows.
    fn adopt(&self, directory: &Directory) -> Result<()> {
        self.files.read().iter().try_for_each(|file| file.sync())?;
        let mut saved = self.saved.lock();
        let writer = self.writer.lock();
        let covered = writer.resume;
        *saved = Some(self.write_all(writer, directory, covered)?);
        Ok(())
    }

    fn forget_state(&self, directory: &Directory, path: &Path) -> Result<()> {
        if self.options.read_only {
            return Ok(());
        }
        super::directory::remove_if_there(&*self.disk, path)?;
        let dir = directory.duralog();
        self.disk.sync_dir(dir).at(IoOp::SyncDir, dir)
    }

    /// The files of the right geometry, oldest first, up to the first that is none.
    fn load(&self) -> Result<Vec<Arc<IndexFile>>> {
        let names = self.names()?;
        let mut found = Vec::new();
        self.writer.lock().last_name = names.last().copied().unwrap_or(0);
        let mut opened = names.iter().map(|name| {
            let file = IndexFile::open(&*self.disk, &self.dir, *name, &self.options);
            file.map(|file| (*name, file))
        });
        let misfit = loop {
            match opened.next().transpose()? {
                Some((_, Some(file))) => found.push(Arc::new(file)),
                Some((name, None)) => break name,
                None => return Ok(found),
            }
        };
        let unreadable = names.iter().filter(|name| **name >= misfit);
        unreadable.rev().try_for_each(|name| self.remove(&IndexFile::path_of(&self.dir, *name)))?;
        Ok(found)
    }

    /// Whether the file that `saved` speaks of is there; those made since are not needed.
    fn continues(&self, found: &mut Vec<Arc<IndexFile>>, saved: &Saved) -> bool {
        let known = match found.iter().position(|file| file.name() == saved.file) {
            Some(at) => at + 1,
            None if saved.file == 0 => 0,
            None => return false,
        };
        let newer = found.split_off(known);
        // A name that cannot be removed now is in the way later, and tells of it.
        newer.iter().all(|file| self.remove(file.path()).is_ok())
    }

    /// Brings the newest file to what `saved` says.
    fn settle(&self, found: &[Arc<IndexFile>], saved: &Saved, unclean: bool) -> Result<()> {
        match found.last() {
            // Of what came behind, items may be missing and slots may point to them.
            Some(last) if unclean || last.header() != saved.header => {
                last.rebuild(saved.header, saved.covered)
            }
            _ => Ok(()),
        }
    }

    /// Keeps what RocketMQ keeps after a crash: the files that its checkpoint vouches for.
    fn drop_unsafe(&self, found: &mut Vec<Arc<IndexFile>>, directory: &Directory) -> Result<()> {
        let safe_until = BrokerCheckpoint::index_time(&*self.disk, directory)?;
        let safe = |file: &Arc<IndexFile>| {
            let header = file.header();
            header.next_item > 1 && header.end_timestamp <= safe_until
        };
        let kept = found.iter().take_while(|file| safe(file)).count();
        self.remove_all(found, kept)
    }

    /// Removes the files from number `kept` on, newest first.
    fn remove_all(&self, found: &mut Vec<Arc<IndexFile>>, kept: usize) -> Result<()> {
        found.split_off(kept).iter().rev().try_for_each(|file| self.remove(file.path()))
    }

    fn remove(&self, path: &Path) -> Result<()> {
        if self.options.read_only {
            return Ok(());
        }
        self.writer.lock().names_dirty = true;
        super::directory::remove_if_there(&*self.disk, path)
    }

    /// Where a record begins that may lack its keys, when the index is opened; none before does.
    pub(crate) fn resume_at(&self) -> u64 {
        self.writer.lock().resume
    }

    /// Whether the index ended with a failure and lacks what came behind.
    pub(crate) fn has_failed(&self) -> bool {
        self.writer.lock().failed
    }

    /// Puts the keys of a record in, unless they are. Records come in log order.
    ///
    /// A failure ends the index until the store is opened again; what it covers can be found.
    #[inline]
    pub(crate) fn put(&self, physical_offset: u64, record: &RecordRef<'_>) -> Result<()> {
        let properties = record.properties();
        if properties.as_bytes().is_empty() {
            return Ok(());
        }
        let unique = properties.get_raw(names::UNIQ_KEY.as_bytes());
        let keys = properties.get_raw(names::KEYS.as_bytes());
        let rolled_back = record.sys_flag().transaction() == Transaction::Rollback;
        if unique.is_none() && keys.is_none() || rolled_back {
            return Ok(());
        }
        let words = keys.unwrap_or_default().split(|byte| *byte == b' ');
        let keys = unique.into_iter().chain(words.filter(|word| !word.is_empty()));
        let mut writer = self.writer.lock();
        if writer.failed || physical_offset < writer.covered {
            return Ok(());
        }
        let timestamp = record.store_timestamp();
        for key in keys {
            let hash = index_hash(record.topic(), key);
            let put = self.put_one(&mut writer, hash, physical_offset, timestamp);
            put.inspect_err(|_| writer.failed = true)?;
        }
        writer.covered = physical_offset + record.size() as u64;
        Ok(())
    }

    fn put_one(
        &self,
        writer: &mut Writer,
        hash: u32,
        physical_offset: u64,
        timestamp: i64,
    ) -> Result<()> {
        let newest = self.files.read().last().cloned();
        if let Some(newest) = newest {
            if newest.put(hash, physical_offset, timestamp)? {
                return Ok(());
            }
            writer.unsynced.push(newest);
        }
        let file = Arc::new(self.make_file(writer)?);
        self.files.write().push(file.clone());
        file.put(hash, physical_offset, timestamp).map(|_| ())
    }

    fn make_file(&self, writer: &mut Writer) -> Result<IndexFile> {
        if !self.options.read_only {
            self.disk.create_dir(&self.dir).at(IoOp::Create, &self.dir)?;
        }
        let now = self.clock.unix_millis();
        // Names tell the order, whatever the clock says.
        let name = name_of(local_millis(&*self.clock, now)).max(writer.last_name + 1);
        writer.last_name = name;
        writer.names_dirty = true;
        IndexFile::create(&*self.disk, &self.dir, name, &self.options)
    }

    /// Makes the keys of every record before `dispatched` durable, where all of them have been put:
    /// when the store is opened again, they need not be.
    ///
    /// No more than the log has durable counts: behind that, other messages may lie one day.
    pub(crate) fn checkpoint(
        &self,
        directory: &Directory,
        dispatched: u64,
        durable: u64,
    ) -> Result<()> {
        let mut saved = self.saved.lock();
        let mut writer = self.writer.lock();
        if writer.failed || self.options.read_only {
            return Ok(());
        }
        // Records without a key are covered, too.
        writer.covered = writer.covered.max(dispatched);
        let covered = writer.covered.min(durable);
        if saved.is_some_and(|saved| saved.covered == covered) && !writer.names_dirty {
            return Ok(());
        }
        let written = self.write_all(writer, directory, covered);
        match written {
            Ok(state) => *saved = Some(state),
            Err(_) => self.writer.lock().failed = true,
        }
        written.map(|_| ())
    }

    fn write_all(
        &self,
        mut writer: parking_lot::MutexGuard<'_, Writer>,
        directory: &Directory,
        covered: u64,
    ) -> Result<Saved> {
        let newest = self.files.read().last().cloned();
        let full = std::mem::take(&mut writer.unsynced);
        let names_dirty = std::mem::take(&mut writer.names_dirty);
        let mut images = Vec::new();
        for file in full.iter().chain(&newest) {
            images.push((file, file.prepare()?));
        }
        let header = newest.as_ref().map(|file| file.header()).unwrap_or_default();
        let ours = self.has_its_names()?;
        // Puts go on while this is written, and belong to the next checkpoint.
        drop(writer);
        for (file, image) in images {
            image.map_or(Ok(()), |image| file.write(image))?;
        }
        full.iter().for_each(|file| file.forget_slots());
        if names_dirty && !canary!("index_dir_sync") {
            let root = directory.root();
            self.disk.sync_dir(&self.dir).or_else(|error| match error.kind() {
                ErrorKind::NotFound => Ok(()),
                _ => Err(error).at(IoOp::SyncDir, &self.dir),
            })?;
            self.disk.sync_dir(root).at(IoOp::SyncDir, root)?;
        }
        let geometry = self.options.geometry();
        let file = newest.as_ref().map_or(0, |file| file.name());
        let state = if ours {
            Saved { geometry, covered, file, header }
        } else {
            Saved { geometry, covered: 0, file: 0, header: Header::default() }
        };
        directory.save(&*self.disk, STATE_NAME, &state.encode())?;
        Ok(state)
    }

    /// Whether the directory holds the files of this index and no others. A broker that is started here
    /// drops files and makes some before it sees the lock; the next open begins anew then.
    fn has_its_names(&self) -> Result<bool> {
        let there = self.names()?;
        Ok(self.files.read().iter().map(|file| file.name()).eq(there))
    }

    /// The names of the files in the directory, which tell the order.
    fn names(&self) -> Result<Vec<u64>> {
        let entries = match self.disk.list(&self.dir) {
            Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
            listed => listed.at(IoOp::List, &self.dir)?,
        };
        let names = entries.iter().filter(|entry| !entry.is_dir);
        let mut names: Vec<_> = names.filter_map(|entry| parse_name(&entry.name)).collect();
        names.sort_unstable();
        Ok(names)
    }

    /// Copies the keys of records before `end` into the index of another store; durable on return. All
    /// of those records have been put here, but if the index [has failed](Self::has_failed). The
    /// [settled timestamp](Self::settled_timestamp) of the copy.
    pub(crate) fn copy_to(&self, directory: &Directory, end: u64) -> Result<i64> {
        let disk = &*self.disk;
        let dir = directory.root().join(INDEX_DIR);
        let files = self.files.read().clone();
        let mut copied: Vec<(u64, Header)> = Vec::new();
        for file in &files {
            disk.create_dir(&dir).at(IoOp::Create, &dir)?;
            let Some(header) = file.copy_to(disk, &dir, end)? else { break };
            copied.push((file.name(), header));
        }
        if !files.is_empty() {
            disk.sync_dir(&dir).at(IoOp::SyncDir, &dir)?;
        }
        let geometry = self.options.geometry();
        let (file, header) = copied.pop().unwrap_or_default();
        let state = Saved { geometry, covered: end, file, header };
        directory.save(disk, STATE_NAME, &state.encode())?;
        let settled = copied.iter().filter(|(_, header)| header.next_item >= geometry.items);
        Ok(settled.map(|(_, header)| header.end_timestamp).max().unwrap_or(0))
    }

    /// Up to which time every key is durably in a file that is never changed again: RocketMQ's
    /// `indexMsgTimestamp`.
    pub(crate) fn settled_timestamp(&self) -> i64 {
        let saved = self.saved.lock().map_or(0, |saved| saved.file);
        let files = self.files.read();
        let settled = files.iter().rev().filter(|file| file.name() < saved && file.is_full());
        settled.map(|file| file.header().end_timestamp).max().unwrap_or(0)
    }

    /// Physical offsets, falling, of messages that have a key with the hash of this one and were stored
    /// in `times` (milliseconds since the epoch, both included, to the second), until `each` says false.
    ///
    /// Other keys may have the same hash, and one message may come more than once.
    pub(crate) fn find(
        &self,
        topic: &str,
        key: &str,
        times: (i64, i64),
        each: &mut dyn FnMut(u64) -> bool,
    ) -> Result<()> {
        let hash = index_hash(topic, key.as_bytes());
        let files = self.files.read().clone();
        let mut more = true;
        for file in files.iter().rev() {
            let header = file.header();
            if header.begin_timestamp <= times.1 && header.end_timestamp >= times.0 {
                file.find(hash, times, &mut |offset| {
                    more = each(offset);
                    more
                })?;
            }
            if !more || header.begin_timestamp < times.0 {
                break;
            }
        }
        Ok(())
    }

    /// Removes files of which every message has expired: all lie before `min`. The newest one stays.
    pub(crate) fn expire(&self, min: u64) -> Result<()> {
        let mut files = self.files.write();
        let others = files.len().saturating_sub(1);
        let expired =
            files.iter().take(others).take_while(|file| file.header().end_physical < min).count();
        let expired: Vec<_> = files.drain(..expired).collect();
        drop(files);
        let mut writer = self.writer.lock();
        writer.unsynced.retain(|file| !expired.iter().any(|gone| Arc::ptr_eq(gone, file)));
        drop(writer);
        expired.iter().try_for_each(|file| self.remove(file.path()))
    }
}

/// Up to where the index in `dir` is durable, if it says so.
pub(super) fn saved_offset(disk: &dyn Disk, dir: &Path) -> Option<u64> {
    read_saved(disk, &dir.join(STATE_NAME)).map(|saved| saved.covered)
}

fn read_saved(disk: &dyn Disk, path: &Path) -> Option<Saved> {
    let mut bytes = [0; STATE_LEN + 1];
    let length = disk.open(path, OpenAccess::Read).ok()?.read_at(&mut bytes, 0).ok()?;
    Saved::decode(bytes.get(..length)?)
}

fn parse_name(name: &str) -> Option<u64> {
    let all_digits = name.len() == NAME_LEN && name.bytes().all(|byte| byte.is_ascii_digit());
    all_digits.then(|| name.parse().ok()).flatten()
}

/// A time in local milliseconds since the epoch as `yyyyMMddHHmmssSSS`.
fn name_of(local_millis: i64) -> u64 {
    const DAY: i64 = 24 * 3600 * 1000;
    let (days, time) = (local_millis.div_euclid(DAY), local_millis.rem_euclid(DAY));
    let (year, month, day) = civil_from_days(days);
    let (seconds, millis) = (time / 1000, time % 1000);
    let date = (year * 100 + month) * 100 + day;
    let clock = (seconds / 3600 * 100 + seconds / 60 % 60) * 100 + seconds % 60;
    u64::try_from((date * 1_000_000 + clock) * 1000 + millis).unwrap_or(0)
}

#[cfg(test)]
mod tests;
