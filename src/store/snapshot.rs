//! A copy of the store in another directory, made while it is in use.
//!
//! The copy ends at one physical offset, which everything that it holds agrees with. It is written under
//! a name of its own and gets the one asked for at the end, so that there is a whole copy or none.

use super::stats::QueueWork;
use super::{Engine, Shared, Store};
use crate::config::LogConfig;
use crate::disk::{Allocation, Disk, OpenAccess, SyncMethod, is_full};
use crate::error::{Error, IoContext, IoOp, Result};
use crate::log::directory::{self, Directory, refused, remove_if_there, take_lock, write_failed};
use crate::log::{BrokerCheckpoint, BrokerTimes, Core, queue_starts};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What the name of the directory ends with until the copy is whole.
const TEMPORARY: &str = ".duralog-tmp";
const LOCK: &str = "lock";
const CONFIG: &str = "config";
/// The tables, and their backups.
const TABLES: [&str; 2] = [".json", ".json.bak"];
/// How much of a table is copied at a time.
const STEP: usize = 64 << 10;
/// How often is looked whether the queues have come far enough.
const TICK: Duration = Duration::from_millis(1);

/// What [`Store::snapshot`] made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct SnapshotReport {
    /// Physical offset at which the copy ends: it holds every record before, and none behind.
    pub end: u64,
    /// Segments of its log.
    pub segments: usize,
    /// Those that are second names of the same files, and take no room of their own.
    pub linked: usize,
    /// Bytes of the log that were copied.
    pub copied_bytes: u64,
    /// Messages in its consume queues.
    pub messages: u64,
}

impl Store {
    /// Copies the store to `dir`, which must not exist or be empty, while producers and consumers go on.
    ///
    /// Whatever was put before the call is in the copy; of what is put meanwhile, the first so many. With
    /// a replicator, messages that are not confirmed are not in it: it holds what a reader sees. The copy
    /// is a store of its own, as cleanly closed as [`close`](Self::close) leaves one, and durable when
    /// this returns: duralog opens it without a scan, and RocketMQ finds log, queues, key index and the
    /// tables of `config/` where it expects them.
    ///
    /// Where the file system allows, segments that are full are *hard links*: they take no time and no
    /// room, and damage to one is damage to both. As long as they are whole nothing is written to them,
    /// here or there. The last two of them are read first, since RocketMQ would cut the log at damage
    /// there and write on; one that is damaged is copied instead. The rest is always a copy: up to one segment of the log, 20 bytes a
    /// message, the key index, and a sync for each queue. Needs up to 4 bytes of memory for each slot of
    /// an index file, and maps the segments that it copies.
    ///
    /// Until it is whole, the copy stands beside `dir` under a name that ends with `.duralog-tmp`. A
    /// crash may leave that behind; the next snapshot to `dir` removes it. `dir` cannot be a mount point.
    ///
    /// # Errors
    /// There is no snapshot, what was made of one is removed, though not directories above it, and the
    /// store goes on as before.
    /// [`Error::NotEmpty`]; [`Error::Config`] if `dir` has no name or lies in the store;
    /// [`Error::Locked`] while another snapshot to `dir` is under way; [`Error::DiskFull`] and
    /// [`Error::Io`]; [`Error::Latched`] and [`Error::FlushTimeout`] as of [`flush`](Self::flush), the
    /// latter also if the queues do not follow in time; [`Error::Corrupt`] if a queue is damaged: reopen
    /// the store to rebuild it; [`Error::Closed`] if the store is closed, or gets closed meanwhile.
    ///
    /// # Examples
    /// ```
    /// use duralog::{Message, Store, StoreConfig};
    ///
    /// # let dir = std::env::temp_dir().join(format!("duralog-doc-snap-{}", std::process::id()));
    /// # let backup = dir.join("backup");
    /// # let dir = dir.join("data");
    /// let store = Store::open(StoreConfig::new(&dir).segment_size(1 << 20))?;
    /// store.put(Message::new("orders", "paid 42"))?.ok()?;
    /// let made = store.snapshot(&backup)?;
    /// store.put(Message::new("orders", "paid 43"))?.ok()?;
    ///
    /// let copy = Store::open(StoreConfig::new(&backup))?;
    /// assert_eq!((made.messages, copy.max_offset("orders", 0)), (1, Some(1)));
    /// assert_eq!(copy.get("orders", 0, 0, 32)?.messages[0].body, b"paid 42");
    /// # copy.close()?;
    /// # store.close()?;
    /// # std::fs::remove_dir_all(dir.parent().unwrap()).unwrap();
    /// # Ok::<(), duralog::Error>(())
    /// ```
    pub fn snapshot(&self, dir: impl AsRef<Path>) -> Result<SnapshotReport> {
        let shared = self.shared();
        shared.check_open()?;
        let disk = &*shared.core.disk;
        // Nothing is deleted that is being copied.
        let _kept = shared.expiry.hold();
        let made = Snapshot::begin(&shared.core, dir.as_ref()).and_then(|copy| {
            let filled = copy.fill(&self.inner.engine);
            let made = filled.and_then(|report| copy.publish(shared).map(|()| report));
            made.inspect_err(|_| remove_tree(disk, &copy.temporary, &[]))
        });
        made.map_err(|error| name_full_disk(disk, dir.as_ref(), error))
    }
}

/// A snapshot under way.
struct Snapshot<'a> {
    core: &'a Core,
    dir: &'a Path,
    temporary: PathBuf,
    /// That of the temporary name, locked.
    directory: Directory,
}

impl<'a> Snapshot<'a> {
    /// Takes the temporary name, and removes what a crash left there.
    fn begin(core: &'a Core, dir: &'a Path) -> Result<Self> {
        let disk = &*core.disk;
        let refuse = |allowed| {
            let value = dir.display().to_string();
            Err(Error::Config { field: "dir", value, allowed })
        };
        let Some(name) = dir.file_name() else { return refuse("a directory with a name") };
        if dir.starts_with(core.directory().root()) {
            return refuse("a directory outside of the store");
        }
        if !list(disk, dir)?.is_empty() {
            return Err(Error::NotEmpty { path: dir.to_owned() });
        }
        let mut name = name.to_owned();
        name.push(TEMPORARY);
        let temporary = dir.with_file_name(name);
        if !list(disk, &temporary)?.is_empty() {
            // Unless someone is at work there. The lock stays: whoever comes next asks for it, too.
            let _lock = take_lock(disk, &temporary)?;
            remove_tree(disk, &temporary, &[LOCK]);
        }
        let config = LogConfig { dir: temporary.clone(), read_only: false, ..core.config.clone() };
        match Directory::open(disk, &config) {
            Ok(directory) => Ok(Self { core, dir, temporary, directory }),
            Err(error) => {
                if !matches!(error, Error::Locked { .. }) {
                    remove_tree(disk, &temporary, &[]);
                }
                Err(error)
            }
        }
    }

    /// Copies everything, durably but for the names at the top.
    fn fill(&self, engine: &Engine) -> Result<SnapshotReport> {
        let (core, to, shared) = (self.core, &self.directory, &*engine.shared);
        let disk = &*core.disk;
        let check = || shared.check_open();
        // First: how far consumers have come is never behind the end of the copied queues then.
        self.copy_tables()?;
        shared.offsets.copy_to(to)?;
        let end = shared.settle(engine)?;
        if core.directory().has_copies() {
            to.note_copies(disk)?;
        }
        core.vouch_for(end)?;
        let log = core.copy_segments(to, end, &check)?;
        let queues = shared
            .queues
            .copy_to(core.disk.clone(), to.root(), (log.min, end), &check)
            .map_err(|error| shared.note_queue_damage(error))?;
        // A reader may have come upon a wrong entry, which is now in the copy as well.
        if let Some(error) = shared.stats.queue_error(QueueWork::Rebuild) {
            return Err(error);
        }
        let newest = queues.newest.map(|at| core.read(at, false)).transpose()?.flatten();
        let time = newest.map_or(0, |view| view.record().store_timestamp());
        let mut times = BrokerTimes { commit_log: time, consume_queues: time, index: 0 };
        match &shared.index {
            _ if shared.lacks_keys() => {
                // A broker has to look for the keys itself, from the beginning of the log.
                to.write_abort(disk)?;
                times = BrokerTimes::default();
            }
            Some(index) => times.index = index.copy_to(to, end)?,
            None => {}
        }
        let starts = |of: &Directory| of.duralog().join(queue_starts::NAME);
        copy_file(disk, &starts(core.directory()), &starts(to))?;
        core.copy_checkpoint(to, end)?;
        BrokerCheckpoint::default().save(disk, to, times)?;
        Ok(SnapshotReport {
            end,
            segments: log.segments,
            linked: log.linked,
            copied_bytes: log.copied_bytes,
            messages: queues.messages,
        })
    }

    /// Copies RocketMQ's tables.
    fn copy_tables(&self) -> Result<()> {
        let disk = &*self.core.disk;
        let (from, to) = (self.core.directory().root().join(CONFIG), self.temporary.join(CONFIG));
        let entries = list(disk, &from)?;
        let is_table = |name: &str| TABLES.iter().any(|ending| name.ends_with(ending));
        let tables = entries.iter().filter(|entry| !entry.is_dir && is_table(&entry.name));
        let mut made = false;
        for table in tables {
            if !made {
                disk.create_dir(&to).at(IoOp::Create, &to)?;
                made = true;
            }
            copy_file(disk, &from.join(&table.name), &to.join(&table.name))?;
        }
        if made { disk.sync_dir(&to).at(IoOp::SyncDir, &to) } else { Ok(()) }
    }

    /// Gives the copy its name, durably.
    fn publish(&self, shared: &Shared) -> Result<()> {
        let disk = &*self.core.disk;
        // The names at the top are durable since RocketMQ's checkpoint came to them.
        let duralog = self.directory.duralog();
        disk.sync_dir(duralog).at(IoOp::SyncDir, duralog)?;
        // Since it was closed, somebody else may have written what was copied last.
        shared.check_open()?;
        disk.rename(&self.temporary, self.dir).map_err(|error| match error.kind() {
            ErrorKind::DirectoryNotEmpty | ErrorKind::AlreadyExists => {
                Error::NotEmpty { path: self.dir.to_owned() }
            }
            _ => Error::io(IoOp::Rename, self.dir, None, error),
        })?;
        if canary!("snapshot_name_sync") {
            return Ok(());
        }
        let parent = self.dir.parent().map_or(Path::new("."), directory::non_empty);
        let named = disk.sync_dir(parent).at(IoOp::SyncDir, parent);
        named.inspect_err(|_| remove_tree(disk, self.dir, &[]))
    }
}

impl Shared {
    /// Makes everything put so far durable and dispatches it; up to where both is so.
    fn settle(&self, engine: &Engine) -> Result<u64> {
        let progress = &self.core.progress;
        let put = progress.appended();
        engine.flush_all()?;
        let wanted = put.min(progress.visible());
        let deadline = self.core.clock.now() + self.core.config.close_timeout;
        loop {
            self.check_open()?;
            self.catch_up();
            let dispatched = progress.dispatched();
            // What is visible may end in the middle of a record.
            let is_all = || self.core.records(dispatched, wanted).next_with(|_| ()).is_none();
            if dispatched >= wanted || is_all() {
                return Ok(dispatched.min(progress.durable()));
            }
            if let Some(first) = progress.latched() {
                return Err(Error::Latched { first: first.clone() });
            }
            if let Some(error) = self.stats.queue_error(QueueWork::Dispatch) {
                return Err(error);
            }
            if !self.threaded || self.core.clock.now() >= deadline {
                return Err(Error::FlushTimeout { durable: dispatched, wanted });
            }
            std::thread::sleep(TICK);
        }
    }

    /// If it is the queues of this store that are damaged, the next open rebuilds them.
    fn note_queue_damage(&self, error: Error) -> Error {
        match &error {
            Error::Io { path, .. } | Error::Corrupt { path, .. }
                if path.starts_with(self.core.directory().root()) =>
            {
                self.queue_damage(error)
            }
            _ => error,
        }
    }
}

/// What is in a directory; nothing where there is none.
fn list(disk: &dyn Disk, dir: &Path) -> Result<Vec<crate::disk::DirEntry>> {
    match disk.list(dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        listed => listed.at(IoOp::List, dir),
    }
}

/// Copies a file, durably but for its name. Nothing happens if there is none.
fn copy_file(disk: &dyn Disk, from: &Path, to: &Path) -> Result<()> {
    let source = match disk.open(from, OpenAccess::Read) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        opened => opened.at(IoOp::Open, from)?,
    };
    let copy = disk
        .create(to, 0, Allocation::Sparse)
        .map_err(|error| refused(IoOp::Create, to, 0, error))?;
    let mut bytes = vec![0; STEP];
    let mut at = 0;
    loop {
        let got = source.read_at(&mut bytes, at).at_offset(IoOp::Read, from, at)?;
        let read = bytes.get(..got).unwrap_or_default();
        if read.is_empty() {
            return copy.sync(SyncMethod::Fdatasync).at(IoOp::Sync, to);
        }
        copy.write_at(read, at).map_err(|error| write_failed(to, got, error))?;
        at += got as u64;
    }
}

/// Removes a directory and what is in it, but for the names `but` at its top, as far as that works:
/// whatever made it necessary is the error to tell.
fn remove_tree(disk: &dyn Disk, dir: &Path, but: &[&str]) {
    for entry in disk.list(dir).unwrap_or_default() {
        let path = dir.join(&entry.name);
        if entry.is_dir {
            remove_tree(disk, &path, &[]);
        } else if !but.contains(&entry.name.as_str()) {
            let _ = remove_if_there(disk, &path);
        }
    }
    if but.is_empty() {
        let _ = disk.remove_dir(dir);
    }
}

/// Names a full disk for what it is, and says what is left of it.
fn name_full_disk(disk: &dyn Disk, dir: &Path, error: Error) -> Error {
    let (path, needed) = match error {
        Error::DiskFull { path, needed, available: None } => (path, needed),
        Error::Io { path, source, .. } if is_full(source.kind()) => (path, 0),
        other => return other,
    };
    let parent = dir.parent().map_or(Path::new("."), directory::non_empty);
    let available = disk.space(parent).ok().map(|space| space.available);
    Error::DiskFull { path, needed, available }
}
