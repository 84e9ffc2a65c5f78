//! The store's root directory: what lies where, who holds it, and whether it was left in order.

pub(crate) use super::queue_dir::non_empty;
use crate::config::{LogConfig, RecoveryMode};
use crate::disk::{
    Allocation, Disk, DiskFile, DiskLock, LockError, OpenAccess, SyncMethod, is_full,
};
use crate::error::{Corruption, Error, IoContext, IoOp, Result};
use parking_lot::Mutex;
use std::hash::{BuildHasher, RandomState};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Version of the files in `duralog/`.
const FORMAT: &[u8] = b"duralog format 1\n";
const FORMAT_NAME: &[u8] = b"duralog format ";
const TEMPORARY: &str = ".tmp";
/// An empty file in `duralog/`, there once records of another node were taken over.
const COPIES: &str = "copies";
/// What a lock file begins with once a Java broker has started, and once this crate has recovered.
const LOCK_OF_JAVA: [u8; 4] = *b"lock";
const LOCK_OF_OURS: [u8; 4] = *b"dura";

/// The directories of a store, locked while this lives unless it is only read.
#[derive(Debug)]
pub(crate) struct Directory {
    root: PathBuf,
    commitlog: PathBuf,
    duralog: PathBuf,
    abort: PathBuf,
    was_open: bool,
    lock_text: [u8; 4],
    owner: Option<u64>,
    token: u64,
    lock: Mutex<Option<Lock>>,
    has_copies: AtomicBool,
}

pub(crate) struct Lock(#[expect(dead_code, reason = "held, not used")] DiskLock);

impl std::fmt::Debug for Lock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Lock")
    }
}

impl Directory {
    /// Creates what is missing and takes the lock. A read-only opener does neither: there must be a
    /// log. The new names are durable after [`write_abort`](Self::write_abort).
    pub(crate) fn open(disk: &dyn Disk, config: &LogConfig) -> Result<Self> {
        let root = config.dir.clone();
        let (commitlog, duralog, abort) =
            (root.join("commitlog"), root.join("duralog"), root.join("abort"));
        let mut lock = None;
        if config.read_only {
            disk.list(&commitlog).at(IoOp::Open, &commitlog)?;
        } else {
            create_dir_all(disk, &root)?;
            lock = Some(take_lock(disk, &root)?);
            let created =
                [&commitlog, &duralog].map(|dir| disk.create_dir(dir).at(IoOp::Create, dir));
            for made in created {
                made?;
            }
        }
        let was_open = exists(disk, &root, "abort")?;
        let lock_text = read_lock_text(disk, &root)?;
        let owner = read_token(disk, &abort)?;
        // Process ids return, in containers above all.
        let token = RandomState::new().hash_one(std::process::id());
        let lock = Mutex::new(lock);
        let has_copies = AtomicBool::new(exists(disk, &duralog, COPIES)?);
        let directory = Self {
            root,
            commitlog,
            duralog,
            abort,
            was_open,
            lock_text,
            owner,
            token,
            lock,
            has_copies,
        };
        directory.check_format(disk, config)?;
        if !config.read_only {
            directory.remove_temporaries(disk)?;
        }
        Ok(directory)
    }

    /// Lets another store have the directory, unless a thread of this one hangs while it writes there;
    /// whether it did.
    pub(crate) fn unlock(&self, patience: Duration) -> bool {
        let lock = self.lock.try_lock_for(patience);
        lock.is_some_and(|mut lock| {
            *lock = None;
            true
        })
    }

    /// Keeps the directory from others while something is written there.
    ///
    /// # Errors
    /// [`Error::Closed`] if another store may have it by now.
    pub(crate) fn hold(&self) -> Result<impl Drop + '_> {
        let lock = self.lock.lock();
        if lock.is_some() { Ok(lock) } else { Err(Error::Closed) }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn commitlog(&self) -> &Path {
        &self.commitlog
    }

    pub(crate) fn duralog(&self) -> &Path {
        &self.duralog
    }

    /// Where a file called `name` is made before it gets its own name.
    pub(crate) fn temporary(&self, name: &str) -> PathBuf {
        self.duralog.join(format!("{name}{TEMPORARY}"))
    }

    /// Whether the last owner, this crate or a Java broker, did not close the store.
    pub(crate) fn was_open(&self) -> bool {
        self.was_open
    }

    /// Whether this crate was the last to have the directory, as the opening that `token` names. Of a
    /// Java broker that was killed since, RocketMQ 4.9 leaves its mark in `lock` alone: it keeps an
    /// `abort` that it finds.
    pub(crate) fn was_left_by(&self, token: u64) -> bool {
        self.owner == Some(token) && self.lock_text != LOCK_OF_JAVA
    }

    /// Whether records of another node were taken over, if only once.
    pub(crate) fn has_copies(&self) -> bool {
        self.has_copies.load(Ordering::Acquire)
    }

    /// Notes, durably, that there are such records, before there are.
    pub(crate) fn note_copies(&self, disk: &dyn Disk) -> Result<()> {
        if self.has_copies() {
            return Ok(());
        }
        self.save(disk, COPIES, &[])?;
        self.has_copies.store(true, Ordering::Release);
        Ok(())
    }

    /// Names this opening of the store.
    pub(crate) fn token(&self) -> u64 {
        self.token
    }

    /// Says to a Java broker, and to the next recovery, that this process has the store.
    pub(crate) fn write_abort(&self, disk: &dyn Disk) -> Result<()> {
        let text = format!("{} {:020}", std::process::id(), self.token);
        self.replace(disk, "abort", &self.abort, text.as_bytes())?;
        if self.lock_text != LOCK_OF_OURS {
            // Durable before anything is put: a Java broker makes its own mark so.
            let path = self.root.join("lock");
            let file = disk.open(&path, OpenAccess::Write).at(IoOp::Open, &path)?;
            file.write_at(&LOCK_OF_OURS, 0).at(IoOp::Write, &path)?;
            if !canary!("lock_sync") {
                file.sync(SyncMethod::Fdatasync).at(IoOp::Sync, &path)?;
            }
        }
        if canary!("root_dir_sync") {
            return Ok(());
        }
        // The directories made by `open` become durable with it, before anything is put into them.
        disk.sync_dir(&self.root).at(IoOp::SyncDir, &self.root)
    }

    /// Gives the file `name` of `duralog/` this content at once, durably.
    pub(crate) fn save(&self, disk: &dyn Disk, name: &str, bytes: &[u8]) -> Result<()> {
        let _held = self.hold()?;
        self.replace(disk, name, &self.duralog.join(name), bytes)?;
        disk.sync_dir(&self.duralog).at(IoOp::SyncDir, &self.duralog)
    }

    /// Gives `path` this content at once: a crash leaves the old file or the new one. The caller
    /// syncs the directory.
    fn replace(&self, disk: &dyn Disk, name: &str, path: &Path, bytes: &[u8]) -> Result<()> {
        let temporary = self.temporary(name);
        write_new(disk, &temporary, bytes)?;
        disk.rename(&temporary, path).at(IoOp::Rename, path)
    }

    pub(crate) fn remove_abort(&self, disk: &dyn Disk) -> Result<()> {
        remove_if_there(disk, &self.abort)?;
        disk.sync_dir(&self.root).at(IoOp::SyncDir, &self.root)
    }

    /// Stores what `fill` writes under `name` in `duralog/`, or under the first free name after it.
    /// A crash or a failure leaves the whole copy or none.
    pub(crate) fn keep_copy(
        &self,
        disk: &dyn Disk,
        name: &str,
        fill: impl FnOnce(&dyn DiskFile, &Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let taken: Vec<_> = disk.list(&self.duralog).at(IoOp::List, &self.duralog)?;
        let free = |name: &String| taken.iter().all(|entry| entry.name != *name);
        let mut names =
            std::iter::once(name.to_owned()).chain((1u32..).map(|n| format!("{name}.{n}")));
        let path = self.duralog.join(names.find(free).unwrap_or_else(|| name.to_owned()));
        let temporary = self.temporary(name);
        fill_new(disk, &temporary, fill)?;
        disk.rename(&temporary, &path).at(IoOp::Rename, &path)?;
        disk.sync_dir(&self.duralog).at(IoOp::SyncDir, &self.duralog)?;
        Ok(path)
    }

    fn check_format(&self, disk: &dyn Disk, config: &LogConfig) -> Result<()> {
        let path = self.duralog.join("format");
        let found = read_small(disk, &path, 64)?.unwrap_or_default();
        let found = found.as_slice();
        if found == FORMAT {
            return Ok(());
        }
        if found.starts_with(FORMAT_NAME) {
            let found = String::from_utf8_lossy(found).trim_end().to_owned();
            return Err(Error::UnknownFormat { path, found });
        }
        if !found.is_empty() && config.recovery_mode != RecoveryMode::Salvage {
            let what = Corruption::StateFile { what: "it names no format" };
            return Err(Error::Corrupt { path, offset: 0, what });
        }
        if config.read_only {
            return Ok(());
        }
        // The first to make a store here. Someone may have been killed at it, with directories made
        // but not yet durable.
        if !canary!("ancestors_sync") {
            sync_ancestors(disk, &self.root)?;
        }
        self.save(disk, "format", FORMAT)
    }

    fn remove_temporaries(&self, disk: &dyn Disk) -> Result<()> {
        for entry in disk.list(&self.duralog).at(IoOp::List, &self.duralog)? {
            if entry.name.ends_with(TEMPORARY) && !entry.is_dir {
                remove_if_there(disk, &self.duralog.join(&entry.name))?;
            }
        }
        Ok(())
    }
}

/// The error for `len` bytes that could not be written to `path`.
pub(crate) fn write_failed(path: &Path, len: usize, error: std::io::Error) -> Error {
    refused(IoOp::Write, path, len, error)
}

pub(crate) fn refused(op: IoOp, path: &Path, len: usize, error: std::io::Error) -> Error {
    if is_full(error.kind()) {
        return Error::DiskFull { path: path.to_owned(), needed: len as u64, available: None };
    }
    Error::io(op, path, None, error)
}

pub(crate) fn take_lock(disk: &dyn Disk, root: &Path) -> Result<Lock> {
    let path = root.join("lock");
    match disk.lock(&path) {
        Ok(lock) => Ok(Lock(lock)),
        Err(LockError::Held { pid }) => Err(Error::Locked { path, pid }),
        Err(LockError::Io(e)) => Err(e).at(IoOp::Lock, &path),
    }
}

/// The beginning of the lock file; zeros where there is none.
fn read_lock_text(disk: &dyn Disk, root: &Path) -> Result<[u8; 4]> {
    let mut found = read_small(disk, &root.join("lock"), 4)?.unwrap_or_default();
    found.resize(4, 0);
    Ok(found.first_chunk().copied().unwrap_or_default())
}

/// The second word of `abort`; a Java broker writes its process id alone, or nothing.
fn read_token(disk: &dyn Disk, abort: &Path) -> Result<Option<u64>> {
    // Where it cannot be read, whose the records are that lie at the end is not to be guessed.
    let Some(text) = read_small(disk, abort, 64)? else { return Ok(None) };
    let text = str::from_utf8(&text).ok();
    Ok(text.and_then(|text| text.split_whitespace().nth(1)?.parse().ok()))
}

/// The first `max` bytes of a file; `None` where there is none.
pub(crate) fn read_small(disk: &dyn Disk, path: &Path, max: usize) -> Result<Option<Vec<u8>>> {
    let file = match disk.open(path, OpenAccess::Read) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).at(IoOp::Open, path),
    };
    let mut bytes = vec![0; file.len().min(max as u64) as usize];
    let got = file.read_at(&mut bytes, 0).at(IoOp::Read, path)?;
    bytes.truncate(got);
    Ok(Some(bytes))
}

fn exists(disk: &dyn Disk, dir: &Path, name: &str) -> Result<bool> {
    match disk.list(dir) {
        Ok(entries) => Ok(entries.iter().any(|entry| entry.name == name)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e).at(IoOp::List, dir),
    }
}

pub(crate) fn remove_if_there(disk: &dyn Disk, path: &Path) -> Result<()> {
    match disk.remove(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(e).at(IoOp::Remove, path),
        _ => Ok(()),
    }
}

/// Stores `bytes` in a file of its own at `path`, whatever was there; durable but for its name.
pub(crate) fn write_new(disk: &dyn Disk, path: &Path, bytes: &[u8]) -> Result<()> {
    fill_new(disk, path, |file, path| {
        file.write_at(bytes, 0).map_err(|error| write_failed(path, bytes.len(), error))
    })
}

/// The same with what `fill` writes.
fn fill_new(
    disk: &dyn Disk,
    path: &Path,
    fill: impl FnOnce(&dyn DiskFile, &Path) -> Result<()>,
) -> Result<()> {
    remove_if_there(disk, path)?;
    let file = disk.create(path, 0, Allocation::Sparse);
    let written = file.map_err(|error| refused(IoOp::Create, path, 0, error)).and_then(|file| {
        fill(&*file, path)?;
        file.sync(SyncMethod::Fdatasync).at(IoOp::Sync, path)
    });
    written.map_err(|error| {
        // What there is of it takes up room that is wanted elsewhere.
        let _ = disk.remove(path);
        with_space(disk, error)
    })
}

/// Says of a full disk what is left of it.
pub(crate) fn with_space(disk: &dyn Disk, error: Error) -> Error {
    match error {
        Error::DiskFull { path, needed, .. } => {
            let space = path.parent().and_then(|dir| disk.space(non_empty(dir)).ok());
            Error::DiskFull { path, needed, available: space.map(|space| space.available) }
        }
        other => other,
    }
}

/// Makes the name of `dir` durable, and those of the directories above it as far as that is allowed:
/// where it is not, nobody made one either.
pub(crate) fn sync_ancestors(disk: &dyn Disk, dir: &Path) -> Result<()> {
    use ErrorKind::{InvalidInput, PermissionDenied, ReadOnlyFilesystem, Unsupported};
    for above in dir.ancestors().skip(1).map(non_empty) {
        match disk.sync_dir(above) {
            Ok(()) => {}
            Err(error) => match error.kind() {
                InvalidInput | PermissionDenied | ReadOnlyFilesystem | Unsupported => break,
                _ => return Err(error).at(IoOp::SyncDir, above),
            },
        }
    }
    Ok(())
}

/// Creates `dir` and the directories above it, each durable in the one above.
pub(crate) fn create_dir_all(disk: &dyn Disk, dir: &Path) -> Result<()> {
    let parent = dir.parent().map(non_empty);
    let made = match (disk.create_dir(dir), parent) {
        (Err(e), Some(parent)) if e.kind() == ErrorKind::NotFound && parent != dir => {
            create_dir_all(disk, parent)?;
            disk.create_dir(dir)
        }
        (made, _) => made,
    };
    if made.at(IoOp::Create, dir)?
        && let Some(parent) = parent
    {
        disk.sync_dir(parent).at(IoOp::SyncDir, parent)?;
    }
    Ok(())
}
