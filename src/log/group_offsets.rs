//! How far consumer groups have come: `duralog/offsets`.
//!
//! ```text
//! header: magic "duralogO"  version u32  exports u32  crc32 u32 of each, newest first
//!         zeros  crc32 u32 over everything before
//! row:    crc32 u32 over what follows  topic length u8  group length u8  apart u8  zero u8
//!         next offset u64  queue id i32  topic  group
//! ```
//!
//! Header and rows have a sector of 512 bytes each, so that a torn write leaves the old one or the new
//! one; a row of zeros is free. All integers are big endian. The blocks are reserved before a row is given
//! out: on a full disk groups that have a row go on.
//!
//! `apart` is 1 where a group came to that on a replica, by itself: it does not follow the primary's then.
//!
//! The exports are the contents of `consumerOffset.json` that this crate wrote, or has taken over: what else
//! lies there comes from a broker that ran since.

use super::directory::{Directory, refused, with_space, write_new};
use super::queue_dir::check_topic;
use crate::disk::{Disk, DiskFile, OpenAccess, SyncMethod};
use crate::error::{Corruption, Error, IoContext, IoOp, Result};
use parking_lot::{Mutex, RwLock};
use std::collections::{BTreeMap, HashSet};
use std::io::ErrorKind;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Its name in `duralog/`.
const NAME: &str = "offsets";
const MAGIC: &[u8; 8] = b"duralogO";
const VERSION: u32 = 1;
const SECTOR: usize = 512;
const CHECKSUM_AT: usize = SECTOR - 4;
const EXPORTS_AT: usize = 16;
/// One that is there, one that may be the backup, and one that may have been under way.
const EXPORTS_MAX: usize = 3;
const NAMES_AT: usize = 20;
/// Most bytes of the names of a group and a topic.
pub(crate) const NAMES_MAX: usize = SECTOR - NAMES_AT;
/// What the file grows by: 127 rows at first, then 128.
const CHUNK: u64 = 64 << 10;
/// The same where there is no room for so many.
const CHUNK_MIN: u64 = 4 << 10;
/// A longer file is not one we wrote: about two million rows.
const LEN_MAX: u64 = 1 << 30;

/// Whose offset a row holds.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Key {
    group: String,
    topic: String,
    queue_id: i32,
}

#[derive(Debug)]
struct Row {
    at: u64,
    key: Key,
    next: AtomicU64,
    /// The group came to that on this node, while that was a replica.
    apart: AtomicBool,
    /// One commit at a time.
    writing: Mutex<()>,
}

/// By queue, by topic, by group.
type Groups = BTreeMap<String, BTreeMap<String, BTreeMap<i32, Arc<Row>>>>;

#[derive(Debug, Default)]
struct Rows {
    file: Option<Arc<dyn DiskFile>>,
    groups: Groups,
    free: Vec<u64>,
    /// Newest first.
    exports: Vec<u32>,
}

impl Row {
    fn new(at: u64, key: Key, next: u64, apart: bool) -> Self {
        let (next, apart) = (AtomicU64::new(next), AtomicBool::new(apart));
        Self { at, key, next, apart, writing: Mutex::new(()) }
    }

    fn next(&self) -> u64 {
        self.next.load(Ordering::Acquire)
    }

    fn is_apart(&self) -> bool {
        self.apart.load(Ordering::Acquire)
    }
}

impl Rows {
    fn find(&self, group: &str, topic: &str, queue_id: i32) -> Option<&Arc<Row>> {
        self.groups.get(group)?.get(topic)?.get(&queue_id)
    }

    fn insert(&mut self, row: Arc<Row>) {
        let Key { group, topic, queue_id } = row.key.clone();
        self.groups.entry(group).or_default().entry(topic).or_default().insert(queue_id, row);
    }

    fn iter(&self) -> impl Iterator<Item = &Arc<Row>> {
        self.groups.values().flat_map(BTreeMap::values).flat_map(BTreeMap::values)
    }

    fn of<'a>(&'a self, group: &str) -> impl Iterator<Item = &'a Arc<Row>> {
        self.groups.get(group).into_iter().flat_map(BTreeMap::values).flat_map(BTreeMap::values)
    }

    /// Whether the group goes on by itself, here on a replica.
    fn is_apart(&self, group: &str) -> bool {
        self.of(group).any(|row| row.is_apart())
    }

    fn remove(&mut self, key: &Key) {
        let Some(topics) = self.groups.get_mut(&key.group) else { return };
        let Some(queues) = topics.get_mut(&key.topic) else { return };
        queues.remove(&key.queue_id);
        if queues.is_empty() {
            topics.remove(&key.topic);
        }
        if topics.is_empty() {
            self.groups.remove(&key.group);
        }
    }
}

/// How far a consumer group has come in one queue.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct GroupOffset {
    /// The consumer group.
    pub group: String,
    /// The topic.
    pub topic: String,
    /// The queue of the topic.
    pub queue_id: i32,
    /// The queue offset of the next message that the group wants.
    pub next: u64,
}

impl GroupOffset {
    /// How far a group has come in one queue.
    pub fn new(
        group: impl Into<String>,
        topic: impl Into<String>,
        queue_id: i32,
        next: u64,
    ) -> Self {
        Self { group: group.into(), topic: topic.into(), queue_id, next }
    }
}

/// A group was farther than a queue, whose end a power cut or another primary had taken: it goes on at the
/// end that is there now, so that it does not pass over what is put next.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClampedOffset {
    /// Where the group goes on.
    pub now: GroupOffset,
    /// What it had committed.
    pub committed: u64,
}

/// The offsets of all groups.
#[derive(Debug)]
pub(crate) struct GroupOffsets {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    temporary: PathBuf,
    read_only: bool,
    rows: RwLock<Rows>,
    damaged: usize,
    /// Counts the writes, and how many of them a sync covers.
    written: AtomicU64,
    synced: AtomicU64,
    /// Counts what can be read of them, once it can be.
    moves: AtomicU64,
    /// One sync at a time.
    syncing: Mutex<()>,
    latch: OnceLock<Arc<Error>>,
    /// Nobody commits any more: the store closes, and the file may be someone else's afterwards. To be looked
    /// at by whoever has the rows.
    sealed: AtomicBool,
}

impl GroupOffsets {
    /// Reads what is there; makes nothing where there is nothing.
    pub(crate) fn open(
        disk: Arc<dyn Disk>,
        directory: &Directory,
        read_only: bool,
    ) -> Result<Self> {
        let dir = directory.duralog().to_owned();
        let path = dir.join(NAME);
        let (mut rows, mut damaged) = (Rows::default(), 0);
        let access = if read_only { OpenAccess::Read } else { OpenAccess::Write };
        match disk.open(&path, access) {
            Ok(file) => {
                damaged = read(&*file, &path, &mut rows)?;
                rows.file = Some(file);
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error).at(IoOp::Open, &path),
        }
        // What a kill left behind is not known to be durable.
        let is_unsynced = rows.file.is_some() && directory.was_open() && !read_only;
        Ok(Self {
            temporary: directory.temporary(NAME),
            disk,
            dir,
            read_only,
            rows: RwLock::new(rows),
            damaged,
            written: AtomicU64::new(is_unsynced.into()),
            synced: AtomicU64::new(0),
            moves: AtomicU64::new(0),
            syncing: Mutex::new(()),
            latch: OnceLock::new(),
            sealed: AtomicBool::new(false),
        })
    }

    fn path(&self) -> PathBuf {
        self.dir.join(NAME)
    }

    /// Rows that cannot be read: some groups may be thought to be new.
    pub(crate) fn damaged(&self) -> usize {
        self.damaged
    }

    pub(crate) fn get(&self, group: &str, topic: &str, queue_id: i32) -> Option<u64> {
        let rows = self.rows.read();
        rows.find(group, topic, queue_id).map(|row| row.next())
    }

    pub(crate) fn all(&self) -> Vec<GroupOffset> {
        self.rows.read().iter().map(|row| row.key.at(row.next())).collect()
    }

    /// Whether a group has come to any queue of a topic.
    pub(crate) fn knows(&self, group: &str, topic: &str) -> bool {
        self.rows.read().groups.get(group).is_some_and(|topics| topics.contains_key(topic))
    }

    /// How often anything of [`all`](Self::all) has changed: asked before, it does not miss anything.
    pub(crate) fn moves(&self) -> u64 {
        self.moves.load(Ordering::SeqCst)
    }

    /// Notes where a group goes on; `apart` if it does so on a replica, by itself. In the page cache when this
    /// returns.
    pub(crate) fn commit(
        &self,
        (group, topic, queue_id): (&str, &str, i32),
        next: u64,
        apart: bool,
    ) -> Result<()> {
        self.check_writable()?;
        {
            let rows = self.rows.read();
            self.check_open()?;
            if let Some(row) = rows.find(group, topic, queue_id) {
                return self.write(&rows, row, next, apart);
            }
        }
        check_names(group, topic, queue_id)?;
        let mut rows = self.rows.write();
        self.check_open()?;
        if let Some(row) = rows.find(group, topic, queue_id).cloned() {
            return self.write(&rows, &row, next, apart);
        }
        let at = self.free_row(&mut rows)?;
        let key = Key { group: group.to_owned(), topic: topic.to_owned(), queue_id };
        let row = Row::new(at, key, next, apart);
        if let Err(error) = self.write(&rows, &row, next, apart) {
            rows.free.push(at);
            return Err(error);
        }
        rows.insert(Arc::new(row));
        self.moves.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    /// Takes over where the primary's groups are, all of them if it is the `whole`. Groups that go on by
    /// themselves here stay where they are.
    pub(crate) fn take_over(&self, whole: bool, offsets: &[GroupOffset]) -> Result<()> {
        let is_apart = |group: &str| self.rows.read().is_apart(group);
        for GroupOffset { group, topic, queue_id, next } in offsets {
            let is_known = self.get(group, topic, *queue_id) == Some(*next);
            if !is_known && !is_apart(group) {
                self.commit((group, topic, *queue_id), *next, false)?;
            }
        }
        if !whole {
            return Ok(());
        }
        let of = |one: &GroupOffset| (one.group.clone(), one.topic.clone(), one.queue_id);
        let theirs: HashSet<_> = offsets.iter().map(of).collect();
        self.forget_these(|rows| {
            let groups = rows.groups.keys().filter(|group| !rows.is_apart(group));
            let known = groups.flat_map(|group| rows.of(group));
            let is_gone = |row: &&Arc<Row>| {
                let Key { group, topic, queue_id } = row.key.clone();
                !theirs.contains(&(group, topic, queue_id))
            };
            known.filter(is_gone).cloned().collect()
        })?;
        Ok(())
    }

    /// Takes over where another program left a group.
    pub(crate) fn import(&self, group: &str, topic: &str, queue_id: i32, next: u64) -> Result<()> {
        check_names(group, topic, queue_id)?;
        if self.get(group, topic, queue_id) == Some(next) {
            return Ok(());
        }
        if !self.read_only {
            return self.commit((group, topic, queue_id), next, false);
        }
        let key = Key { group: group.to_owned(), topic: topic.to_owned(), queue_id };
        self.rows.write().insert(Arc::new(Row::new(0, key, next, false)));
        Ok(())
    }

    /// Whether the export with this checksum is one of ours, or was taken over.
    pub(crate) fn knows_export(&self, crc: u32) -> bool {
        self.rows.read().exports.contains(&crc)
    }

    /// Remembers an export, durably.
    pub(crate) fn note_export(&self, crc: u32) -> Result<()> {
        self.check_writable()?;
        let mut rows = self.rows.write();
        if rows.file.is_none() {
            self.grow(&mut rows)?;
        }
        rows.exports.retain(|known| *known != crc);
        rows.exports.insert(0, crc);
        rows.exports.truncate(EXPORTS_MAX);
        self.write_bytes(&rows, &header(&rows.exports), 0)?;
        // Not under the lock: groups go on meanwhile.
        let file = rows.file.clone();
        drop(rows);
        // The system reports a failure once: whoever hears of it latches before another one asks.
        let _syncing = self.syncing.lock();
        self.check_latch()?;
        self.sync_file(file.as_deref())
    }

    /// Forgets where a group was, in all queues of a topic; whether it was known. Durable when this
    /// returns: a row that came back would stand beside a newer one.
    pub(crate) fn forget(&self, group: &str, topic: &str) -> Result<bool> {
        self.forget_these(|rows| {
            let queues = rows.groups.get(group).and_then(|topics| topics.get(topic));
            queues.into_iter().flat_map(BTreeMap::values).cloned().collect()
        })
    }

    /// The same for all that groups had come to.
    pub(crate) fn forget_groups(&self, groups: &[&str]) -> Result<bool> {
        self.forget_these(|rows| groups.iter().flat_map(|group| rows.of(group)).cloned().collect())
    }

    /// Whether there were any such rows.
    fn forget_these(&self, which: impl FnOnce(&Rows) -> Vec<Arc<Row>>) -> Result<bool> {
        self.check_writable()?;
        let mut rows = self.rows.write();
        self.check_open()?;
        let known = which(&rows);
        for row in &known {
            self.write_at(&rows, &[0; SECTOR], row.at)?;
        }
        if known.is_empty() {
            return Ok(false);
        }
        self.sync_file(rows.file.as_deref())?;
        for row in &known {
            rows.remove(&row.key);
            rows.free.push(row.at);
        }
        self.moves.fetch_add(1, Ordering::SeqCst);
        Ok(true)
    }

    /// Takes groups back that are farther than `end` says a queue is. All offsets are durable when this
    /// returns: those of a queue that are missing are given out anew from now on, and a group that a power
    /// cut took farther would pass over them.
    pub(crate) fn clamp(&self, end: impl Fn(&str, i32) -> u64) -> Result<Vec<ClampedOffset>> {
        let rows = self.rows.read();
        let mut clamped = Vec::new();
        for row in rows.iter() {
            let committed = row.next();
            let end = end(&row.key.topic, row.key.queue_id);
            if committed > end {
                clamped.push(ClampedOffset { now: row.key.at(end), committed });
                if self.read_only {
                    row.next.store(end, Ordering::Release);
                } else {
                    self.write(&rows, row, end, row.is_apart())?;
                }
            }
        }
        drop(rows);
        if !canary!("clamp_sync") {
            self.sync()?;
        }
        Ok(clamped)
    }

    /// Puts a copy into the directory of another store, durably; nothing if nobody has committed yet.
    pub(crate) fn copy_to(&self, directory: &Directory) -> Result<()> {
        let rows = self.rows.read();
        if rows.file.is_none() {
            return Ok(());
        }
        let mut bytes = header(&rows.exports).to_vec();
        for row in rows.iter() {
            bytes.extend_from_slice(&row.key.encode(row.next(), row.is_apart()).0);
        }
        drop(rows);
        directory.save(&*self.disk, NAME, &bytes)
    }

    /// Whether a sync would get anywhere.
    pub(crate) fn has_unsynced(&self) -> bool {
        self.synced.load(Ordering::SeqCst) < self.written.load(Ordering::SeqCst)
            && self.latch.get().is_none()
    }

    /// How many writes there were.
    pub(crate) fn written(&self) -> u64 {
        self.written.load(Ordering::SeqCst)
    }

    /// Whether a sync covers so many of them.
    pub(crate) fn is_synced(&self, written: u64) -> Result<bool> {
        let is_synced = self.synced.load(Ordering::SeqCst) >= written;
        if is_synced { Ok(true) } else { self.check_latch().map(|()| false) }
    }

    /// Makes durable what was committed before.
    pub(crate) fn sync(&self) -> Result<()> {
        let _syncing = self.syncing.lock();
        self.check_latch()?;
        let written = self.written.load(Ordering::SeqCst);
        if self.synced.load(Ordering::SeqCst) >= written {
            return Ok(());
        }
        // Not under the lock: commits go on meanwhile.
        let file = self.rows.read().file.clone();
        self.sync_file(file.as_deref())?;
        self.synced.store(written, Ordering::SeqCst);
        Ok(())
    }

    fn sync_file(&self, file: Option<&dyn DiskFile>) -> Result<()> {
        let synced = file.map_or(Ok(()), |file| file.sync(SyncMethod::Fdatasync));
        synced.at(IoOp::Sync, &self.path()).map_err(|error| self.latch(error))
    }

    /// Takes no commit any more; whether those that were under way are done, which is waited for at most so
    /// long.
    pub(crate) fn seal(&self, patience: Duration) -> bool {
        self.sealed.store(true, Ordering::SeqCst);
        self.rows.try_write_for(patience).is_some()
    }

    fn check_open(&self) -> Result<()> {
        if self.sealed.load(Ordering::SeqCst) { Err(Error::Closed) } else { Ok(()) }
    }

    fn check_writable(&self) -> Result<()> {
        if self.read_only { Err(Error::ReadOnly) } else { self.check_latch() }
    }

    /// The failure after which nothing is written any more.
    pub(crate) fn latched(&self) -> Option<Arc<Error>> {
        self.latch.get().cloned()
    }

    fn check_latch(&self) -> Result<()> {
        match self.latch.get() {
            Some(first) => Err(Error::Latched { first: first.clone() }),
            None => Ok(()),
        }
    }

    /// What is on the disk is unknown from now on: nothing is written any more.
    fn latch(&self, error: Error) -> Error {
        self.latch.get_or_init(|| Arc::new(error.clone()));
        error
    }

    fn write(&self, rows: &Rows, row: &Row, next: u64, apart: bool) -> Result<()> {
        let _writing = row.writing.lock();
        let (sector, len) = row.key.encode(next, apart);
        self.write_at(rows, sector.get(..len).unwrap_or_default(), row.at)?;
        row.next.store(next, Ordering::Release);
        row.apart.store(apart, Ordering::Release);
        self.moves.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn write_at(&self, rows: &Rows, bytes: &[u8], at: u64) -> Result<()> {
        self.write_bytes(rows, bytes, at)?;
        self.written.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn write_bytes(&self, rows: &Rows, bytes: &[u8], at: u64) -> Result<()> {
        // Every row lies in a file.
        let file = rows.file.as_ref().ok_or(Error::Closed)?;
        let written = file.write_at(bytes, at).at_offset(IoOp::Write, &self.path(), at);
        written.map_err(|error| self.latch(error))
    }

    /// Where a new row goes, in a file that has the blocks for it.
    fn free_row(&self, rows: &mut Rows) -> Result<u64> {
        if rows.free.is_empty() {
            self.grow(rows)?;
        }
        rows.free.pop().ok_or(Error::Full)
    }

    /// Makes the file, or more room in it. A store that opens must be able to take over what a broker left,
    /// also where the disk is nearly full.
    fn grow(&self, rows: &mut Rows) -> Result<()> {
        match self.grow_by(rows, CHUNK) {
            Err(Error::DiskFull { .. }) => self.grow_by(rows, CHUNK_MIN),
            grown => grown,
        }
    }

    fn grow_by(&self, rows: &mut Rows, chunk: u64) -> Result<()> {
        let (from, to) = match &rows.file {
            None => {
                rows.file = Some(self.create(chunk)?);
                (SECTOR as u64, chunk)
            }
            Some(file) => {
                let len = file.len().next_multiple_of(SECTOR as u64).max(SECTOR as u64);
                let to = (len + 1).next_multiple_of(chunk);
                if to > LEN_MAX {
                    let (len, max) = (to as usize, LEN_MAX as usize);
                    return Err(Error::TooLarge { what: "table of group offsets", len, max });
                }
                let allocated = file.allocate(to);
                let error = |e| refused(IoOp::Allocate, &self.path(), to as usize, e);
                allocated.map_err(|e| with_space(&*self.disk, error(e)))?;
                (len, to)
            }
        };
        rows.free.extend((from..to).step_by(SECTOR));
        rows.free.reverse();
        Ok(())
    }

    /// A crash leaves a whole file with a header, or none.
    fn create(&self, len: u64) -> Result<Arc<dyn DiskFile>> {
        let (path, disk) = (self.path(), &*self.disk);
        // Zeros that are written have their blocks.
        let mut bytes = header(&[]).to_vec();
        bytes.resize(len as usize, 0);
        write_new(disk, &self.temporary, &bytes)?;
        disk.rename(&self.temporary, &path).at(IoOp::Rename, &path)?;
        disk.sync_dir(&self.dir).at(IoOp::SyncDir, &self.dir)?;
        disk.open(&path, OpenAccess::Write).at(IoOp::Open, &path)
    }
}

impl Key {
    fn at(&self, next: u64) -> GroupOffset {
        let Self { group, topic, queue_id } = self.clone();
        GroupOffset { group, topic, queue_id, next }
    }

    /// The row, and how much of the sector it takes.
    fn encode(&self, next: u64, apart: bool) -> ([u8; SECTOR], usize) {
        let mut sector = [0; SECTOR];
        let mut len = 4;
        let mut put = |field: &[u8]| {
            // The names were checked to fit.
            if let Some(place) = sector.get_mut(len..len + field.len()) {
                place.copy_from_slice(field);
                len += field.len();
            }
        };
        put(&[self.topic.len() as u8, self.group.len() as u8, apart.into(), 0]);
        put(&next.to_be_bytes());
        put(&self.queue_id.to_be_bytes());
        put(self.topic.as_bytes());
        put(self.group.as_bytes());
        let crc = crc32fast::hash(sector.get(4..len).unwrap_or_default());
        sector[..4].copy_from_slice(&crc.to_be_bytes());
        (sector, len)
    }

    /// Whose it is, the next offset, and whether it is a replica's own.
    fn decode(sector: &[u8; SECTOR]) -> Option<(Self, u64, bool)> {
        let (crc, rest) = sector.split_first_chunk::<4>()?;
        let ([topic_len, group_len, apart @ (0 | 1), 0], fields) = rest.split_first_chunk::<4>()?
        else {
            return None;
        };
        let (topic_len, group_len) = (usize::from(*topic_len), usize::from(*group_len));
        let used = rest.get(..NAMES_AT - 4 + topic_len + group_len)?;
        if crc32fast::hash(used) != u32::from_be_bytes(*crc) {
            return None;
        }
        let (next, fields) = fields.split_first_chunk::<8>()?;
        let (queue_id, names) = fields.split_first_chunk::<4>()?;
        let name = |from: usize, len: usize| {
            Some(std::str::from_utf8(names.get(from..from + len)?).ok()?.to_owned())
        };
        let (topic, group) = (name(0, topic_len)?, name(topic_len, group_len)?);
        let queue_id = i32::from_be_bytes(*queue_id);
        Some((Self { group, topic, queue_id }, u64::from_be_bytes(*next), *apart == 1))
    }
}

fn header(exports: &[u32]) -> [u8; SECTOR] {
    let mut header = [0; SECTOR];
    header[..8].copy_from_slice(MAGIC);
    header[8..12].copy_from_slice(&VERSION.to_be_bytes());
    header[12..EXPORTS_AT].copy_from_slice(&(exports.len() as u32).to_be_bytes());
    for (place, crc) in header[EXPORTS_AT..].chunks_exact_mut(4).zip(exports) {
        place.copy_from_slice(&crc.to_be_bytes());
    }
    let crc = crc32fast::hash(&header[..CHECKSUM_AT]);
    header[CHECKSUM_AT..].copy_from_slice(&crc.to_be_bytes());
    header
}

/// Takes in all rows; how many cannot be read.
fn read(file: &dyn DiskFile, path: &Path, rows: &mut Rows) -> Result<usize> {
    let damaged = |what| {
        let what = Corruption::StateFile { what };
        Err(Error::Corrupt { path: path.to_owned(), offset: 0, what })
    };
    if file.len() > LEN_MAX {
        return damaged("there is too much of the group offsets");
    }
    let mut bytes = vec![0; file.len() as usize];
    let got = file.read_at(&mut bytes, 0).at_offset(IoOp::Read, path, 0)?;
    bytes.truncate(got);
    let (sectors, _) = bytes.as_chunks::<SECTOR>();
    let Some((first, sectors)) = sectors.split_first() else {
        return damaged("the group offsets have no header");
    };
    let count = first.get(12..EXPORTS_AT).and_then(|count| count.first_chunk());
    let count = count.map_or(0, |count| u32::from_be_bytes(*count) as usize).min(EXPORTS_MAX);
    let exports = first.get(EXPORTS_AT..).unwrap_or_default().as_chunks::<4>().0;
    rows.exports = exports.iter().take(count).map(|crc| u32::from_be_bytes(*crc)).collect();
    if *first != header(&rows.exports) {
        let same = |range: Range<usize>| first.get(range.clone()) == header(&[]).get(range);
        if !same(0..12) {
            return damaged("the header of the group offsets cannot be read");
        }
        // A kill or rot may tear it. The rows speak for themselves; what brokers were told looks as if a
        // broker had said it, and is not farther than the rows.
        rows.exports.clear();
    }
    let mut unreadable = 0;
    for (number, sector) in sectors.iter().enumerate() {
        let at = ((number + 1) * SECTOR) as u64;
        if sector.iter().all(|byte| *byte == 0) {
            rows.free.push(at);
            continue;
        }
        let Some((key, next, apart)) = Key::decode(sector) else {
            // Left as it is for whoever wants to look at it.
            unreadable += 1;
            continue;
        };
        if let Some(twin) = rows.find(&key.group, &key.topic, key.queue_id) {
            unreadable += 1;
            if twin.next() <= next {
                continue;
            }
        }
        rows.insert(Arc::new(Row::new(at, key, next, apart)));
    }
    rows.free.reverse();
    Ok(unreadable)
}

/// Refuses names that no row can have.
pub(crate) fn check_names(group: &str, topic: &str, queue_id: i32) -> Result<()> {
    check_topic(topic, queue_id)?;
    let is_plain = |c: char| !c.is_control() && !matches!(c, '@' | '/');
    if group.is_empty() || !group.chars().all(is_plain) {
        let (field, value) = ("group", format!("{group:?}"));
        let allowed = "a name without `@`, `/` and control characters";
        return Err(Error::Config { field, value, allowed });
    }
    match group.len() {
        len if len > usize::from(u8::MAX) => {
            Err(Error::TooLarge { what: "group", len, max: usize::from(u8::MAX) })
        }
        len if len + topic.len() > NAMES_MAX => {
            let (what, len) = ("name of group and topic", len + topic.len());
            Err(Error::TooLarge { what, len, max: NAMES_MAX })
        }
        _ => Ok(()),
    }
}
