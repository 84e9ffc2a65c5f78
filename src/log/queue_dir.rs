//! The directories of queues: what is in them, and what all queues of a store share.

use super::file_cache::FileCache;
use super::queue_entry::{ENTRY_LEN, ENTRY_SIZE, FILE_SIZE_MAX, QUEUE_OFFSET_MAX};
use super::segment;
use crate::disk::{Disk, is_full};
use crate::error::{Error, InvalidMessage, IoContext, IoOp, Result};
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

/// How queues are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueOptions {
    /// Bytes per file, rounded up to whole entries. A queue that has files keeps their size. Default
    /// 6,000,000 (300,000 entries).
    pub file_size: u64,
    /// Files kept open, over all queues. Default 256.
    pub open_files: usize,
    /// Bytes a queue holds in memory before it writes them, if a file can be had for them without
    /// a wait. Default 4096.
    pub tail_size: usize,
    /// Bytes that all queues hold in memory together before they write, and wait, anyway. What is
    /// held may exceed this by 512 bytes per queue. Default 64 MiB.
    pub tail_memory: usize,
    /// Nothing is ever written: new entries stay in memory, without a bound. Default false.
    pub read_only: bool,
}

impl Default for QueueOptions {
    fn default() -> Self {
        Self {
            file_size: 6_000_000,
            open_files: 256,
            tail_size: 4096,
            tail_memory: 64 << 20,
            read_only: false,
        }
    }
}

impl QueueOptions {
    pub(crate) fn rounded(&self) -> Self {
        let slots =
            self.file_size.clamp(ENTRY_SIZE, FILE_SIZE_MAX - ENTRY_SIZE).div_ceil(ENTRY_SIZE);
        Self {
            file_size: slots * ENTRY_SIZE,
            tail_size: self.tail_size.max(ENTRY_LEN),
            ..self.clone()
        }
    }
}

/// Something found on disk that did not belong there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueRepair {
    /// The file or directory.
    pub path: PathBuf,
    /// What was wrong with it.
    pub what: &'static str,
    /// Whether it was removed; otherwise it is ignored.
    pub removed: bool,
}

/// Repairs remembered between two looks at them; a damaged store must not fill the memory.
const REPAIRS_MAX: usize = 1000;

/// Where queue directories lie.
#[derive(Debug)]
pub(crate) enum Layout {
    /// The one directory of a queue that stands alone.
    Single(PathBuf),
    /// A directory of `<topic>/<queue id>`.
    Tree(PathBuf),
}

/// What the queues of one store share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) layout: Layout,
    /// The lowest directory whose own name is someone else's business.
    pub(crate) top: PathBuf,
    pub(crate) options: QueueOptions,
    pub(crate) files: FileCache,
    /// Queues that a checkpoint has to visit, by number, in the order in which they came.
    pub(crate) listed: Mutex<Vec<u32>>,
    /// Directories that got new names, beside the queues' own.
    pub(crate) unsynced_dirs: Mutex<BTreeSet<PathBuf>>,
    /// A queue's first offset moved, which the table does not know yet.
    pub(crate) min_moved: AtomicBool,
    pub(crate) repairs: Mutex<Vec<QueueRepair>>,
    pub(crate) tail_bytes: AtomicUsize,
    pub(crate) next_key: AtomicU64,
    /// The directory may be someone else's by now.
    sealed: AtomicBool,
}

impl Shared {
    pub(crate) fn new(
        disk: Arc<dyn Disk>,
        layout: Layout,
        top: PathBuf,
        options: &QueueOptions,
    ) -> Self {
        let options = options.rounded();
        Self {
            disk,
            layout,
            top,
            files: FileCache::new(options.open_files),
            options,
            listed: Mutex::default(),
            unsynced_dirs: Mutex::default(),
            min_moved: AtomicBool::new(false),
            repairs: Mutex::default(),
            tail_bytes: AtomicUsize::new(0),
            next_key: AtomicU64::new(0),
            sealed: AtomicBool::new(false),
        }
    }

    /// Whether nothing may be written, ever or any more.
    pub(crate) fn is_read_only(&self) -> bool {
        self.options.read_only || self.sealed.load(Ordering::Acquire)
    }

    pub(crate) fn seal(&self) {
        self.sealed.store(true, Ordering::Release);
    }

    pub(crate) fn new_key(&self) -> u64 {
        self.next_key.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn tail_bytes(&self) -> usize {
        self.tail_bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn report(&self, path: PathBuf, what: &'static str, removed: bool) {
        let mut repairs = self.repairs.lock();
        if repairs.len() < REPAIRS_MAX {
            repairs.push(QueueRepair { path, what, removed });
        }
    }

    pub(crate) fn take_repairs(&self) -> Vec<QueueRepair> {
        std::mem::take(&mut *self.repairs.lock())
    }

    /// Creates `dir` and what is missing above it. Every name on the way counts as not durable: it
    /// may stem from a process that was killed before it synced.
    pub(crate) fn create_dirs(&self, dir: &Path) -> Result<()> {
        let parents = dir.ancestors().skip(1).map(non_empty);
        let mut unsynced = Vec::new();
        for parent in parents {
            unsynced.push(parent.to_owned());
            if parent == self.top {
                break;
            }
        }
        match self.disk.create_dir(dir) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                for parent in unsynced.iter().rev() {
                    if *parent != self.top {
                        self.disk.create_dir(parent).at(IoOp::Create, parent)?;
                    }
                }
                self.disk.create_dir(dir).at(IoOp::Create, dir)?;
            }
            other => {
                other.at(IoOp::Create, dir)?;
            }
        }
        self.unsynced_dirs.lock().extend(unsynced);
        Ok(())
    }

    /// Makes the names in `dir` durable. A directory that was removed again has none to lose.
    pub(crate) fn sync_dir(&self, dir: &Path) -> Result<()> {
        if canary!("queue_dir_sync") {
            return Ok(());
        }
        match self.disk.sync_dir(dir) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            other => {
                other.at(IoOp::SyncDir, dir).inspect_err(|error| self.files.fail(error.clone()))
            }
        }
    }

    pub(crate) fn remove_file(&self, path: &Path) -> Result<()> {
        match self.disk.remove(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            other => other.at(IoOp::Remove, path),
        }
    }

    /// Names a full disk for what it is.
    pub(crate) fn write_error(&self, error: Error, needed: u64) -> Error {
        match error {
            Error::Io { path, source, .. } if is_full(source.kind()) => {
                let available = self.disk.space(&path).ok().map(|space| space.available);
                Error::DiskFull { path, needed, available }
            }
            other => other,
        }
    }
}

/// The parent of a one-part relative path is the current directory, not nothing.
pub(crate) fn non_empty(path: &Path) -> &Path {
    if path.as_os_str().is_empty() { Path::new(".") } else { path }
}

/// Whether a topic and queue id can be directories below `consumequeue/` and nothing else.
pub(crate) fn check_topic(topic: &str, queue_id: i32) -> Result<()> {
    if topic.is_empty() {
        return Err(Error::InvalidMessage(InvalidMessage::EmptyTopic));
    }
    if topic.len() > usize::from(u8::MAX) {
        return Err(Error::TooLarge { what: "topic", len: topic.len(), max: usize::from(u8::MAX) });
    }
    let escape = topic.chars().find(|c| matches!(c, '/' | '\0'));
    if let Some(found) = escape.or((topic == "." || topic == "..").then_some('.')) {
        return Err(Error::InvalidMessage(InvalidMessage::TopicCharacter { found }));
    }
    if queue_id < 0 {
        return Err(Error::InvalidMessage(InvalidMessage::QueueId { queue_id, limit: i32::MAX }));
    }
    Ok(())
}

fn parse_file_name(name: &str) -> Option<u64> {
    segment::parse_file_name(name).filter(|base| *base < QUEUE_OFFSET_MAX * ENTRY_SIZE)
}

/// What lies in a queue directory.
#[derive(Debug)]
pub(crate) struct Survey {
    pub(crate) exists: bool,
    pub(crate) file_size: u64,
    /// Indexes of the files that fit, ascending.
    pub(crate) files: Vec<u64>,
    /// Names of queue files of another size.
    pub(crate) misfits: Vec<(String, &'static str)>,
    /// Names that are no queue file's.
    pub(crate) strangers: Vec<String>,
}

impl Survey {
    /// Looks without changing anything. `file_size` is what files should have; `fixed` if they must,
    /// otherwise the first plausible file of a directory without any of that size tells.
    pub(crate) fn take(disk: &dyn Disk, dir: &Path, file_size: u64, fixed: bool) -> Result<Self> {
        let mut survey = Self {
            exists: true,
            file_size,
            files: Vec::new(),
            misfits: Vec::new(),
            strangers: Vec::new(),
        };
        let names = match disk.list(dir) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                survey.exists = false;
                return Ok(survey);
            }
            other => other.at(IoOp::List, dir)?,
        };
        let mut found = Vec::new();
        for entry in names {
            match parse_file_name(&entry.name) {
                Some(base) if !entry.is_dir => found.push((base, entry.len, entry.name)),
                _ => survey.strangers.push(entry.name),
            }
        }
        let fits = |(base, len, _): &&(u64, u64, String), size: u64| {
            *len == size && base.is_multiple_of(size)
        };
        if !fixed && !found.iter().any(|file| fits(&file, file_size)) {
            let sizes = ENTRY_SIZE..=FILE_SIZE_MAX;
            let plausible = |len: u64| sizes.contains(&len) && len.is_multiple_of(ENTRY_SIZE);
            let told = found.iter().find(|file| plausible(file.1) && fits(file, file.1));
            survey.file_size = told.map_or(file_size, |file| file.1);
        }
        for file in found {
            if fits(&&file, survey.file_size) {
                survey.files.push(file.0 / survey.file_size);
            } else {
                let what = if file.1 == 0 {
                    "an empty queue file"
                } else {
                    "a queue file of another size"
                };
                survey.misfits.push((file.2, what));
            }
        }
        survey.files.sort_unstable();
        Ok(survey)
    }
}
