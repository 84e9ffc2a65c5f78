//! Faults that a test plants, and the disk calls they hit.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

/// The calls of a disk, as faults name them and labels print them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum SimCall {
    /// `Disk::create`.
    Create,
    /// `Disk::open`.
    Open,
    /// `Disk::rename`; its path is the new name.
    Rename,
    /// `Disk::hard_link`; its path is the new name.
    HardLink,
    /// `Disk::remove`.
    Remove,
    /// `Disk::create_dir`.
    CreateDir,
    /// `Disk::remove_dir`.
    RemoveDir,
    /// `Disk::list`.
    List,
    /// `Disk::sync_dir`.
    SyncDir,
    /// `Disk::lock`.
    Lock,
    /// `Disk::space`.
    Space,
    /// `DiskFile::read_at`.
    Read,
    /// `DiskFile::write_at`.
    Write,
    /// `DiskFile::sync`.
    Sync,
    /// `DiskFile::allocate`.
    Allocate,
    /// `DiskFile::prewrite`.
    Prewrite,
    /// `DiskFile::next_data`.
    NextData,
    /// `DiskFile::map`.
    Map,
}

pub(super) const CALLS: usize = 18;

impl SimCall {
    /// All of them.
    pub const ALL: [Self; CALLS] = [
        Self::Create,
        Self::Open,
        Self::Rename,
        Self::HardLink,
        Self::Remove,
        Self::CreateDir,
        Self::RemoveDir,
        Self::List,
        Self::SyncDir,
        Self::Lock,
        Self::Space,
        Self::Read,
        Self::Write,
        Self::Sync,
        Self::Allocate,
        Self::Prewrite,
        Self::NextData,
        Self::Map,
    ];

    /// The name in labels, such as `sync_dir`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Open => "open",
            Self::Rename => "rename",
            Self::HardLink => "hard_link",
            Self::Remove => "remove",
            Self::CreateDir => "create_dir",
            Self::RemoveDir => "remove_dir",
            Self::List => "list",
            Self::SyncDir => "sync_dir",
            Self::Lock => "lock",
            Self::Space => "space",
            Self::Read => "read",
            Self::Write => "write",
            Self::Sync => "sync",
            Self::Allocate => "allocate",
            Self::Prewrite => "prewrite",
            Self::NextData => "next_data",
            Self::Map => "map",
        }
    }

    /// Whether it changes the disk, and so is a point at which a planned cut may fall.
    pub fn is_mutating(self) -> bool {
        !matches!(
            self,
            Self::Open | Self::List | Self::Space | Self::Read | Self::NextData | Self::Map
        )
    }

    /// Whether a read-only file system refuses it.
    pub(super) fn needs_writable(self) -> bool {
        self.is_mutating() && !matches!(self, Self::Sync | Self::SyncDir | Self::CreateDir)
    }
}

/// How a failing sync of a file behaves. In each of them the bytes written since the last good sync
/// are gone with the next power cut, unless they are written again and synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SyncFailure {
    /// The sync fails; the pages are clean from then on and keep the new bytes, so a later sync
    /// succeeds without writing them (ext4, XFS).
    KeepNew,
    /// The sync fails; the file reads as it was at the last good sync (Btrfs). Sectors that a region
    /// has published change only when the file is opened again or the process dies.
    Revert,
    /// The sync succeeds without writing; the next sync of the file fails in its place, and loses
    /// what was written in between too.
    Late,
}

#[derive(Clone)]
enum Where {
    Anywhere,
    Part(String),
    Matching(Arc<dyn Fn(&Path) -> bool + Send + Sync>),
}

/// A planned failure of a disk call.
#[derive(Clone)]
pub struct Fault {
    call: SimCall,
    at: Where,
    nth: u64,
    forever: bool,
    error: Error,
    pub(super) sync: SyncFailure,
    pub(super) short: usize,
}

#[derive(Debug, Clone, Copy)]
enum Error {
    Os(i32),
    Kind(io::ErrorKind),
}

impl Fault {
    /// The next `call` fails with `EIO`, once, and has no effect. A sync fails as
    /// [`SyncFailure::KeepNew`].
    pub fn on(call: SimCall) -> Self {
        let error = Error::Os(libc::EIO);
        let sync = SyncFailure::KeepNew;
        Self { call, at: Where::Anywhere, nth: 1, forever: false, error, sync, short: 0 }
    }

    /// The next sync of a file fails, in this manner.
    pub fn sync(failure: SyncFailure) -> Self {
        Self { sync: failure, ..Self::on(SimCall::Sync) }
    }

    /// The next write puts down its first `bytes` bytes and then fails.
    pub fn short_write(bytes: usize) -> Self {
        Self { short: bytes, ..Self::on(SimCall::Write) }
    }

    /// Not the next matching call but the `n`-th; 1 is the next.
    pub fn nth(self, n: u64) -> Self {
        assert!(n > 0, "calls are counted from 1");
        Self { nth: n, ..self }
    }

    /// All matching calls from then on, not only one.
    pub fn forever(self) -> Self {
        Self { forever: true, ..self }
    }

    /// Only calls whose path contains `part` count. The path of a file that was renamed is the new
    /// one, however it was opened.
    pub fn path(self, part: impl Into<String>) -> Self {
        Self { at: Where::Part(part.into()), ..self }
    }

    /// Only calls whose path satisfies `matches` count. It is asked during the call, so it must not
    /// call the disk itself.
    pub fn path_where(self, matches: impl Fn(&Path) -> bool + Send + Sync + 'static) -> Self {
        Self { at: Where::Matching(Arc::new(matches)), ..self }
    }

    /// Fails with this error number of the operating system.
    pub fn errno(self, code: i32) -> Self {
        Self { error: Error::Os(code), ..self }
    }

    /// Fails with an error of this kind.
    pub fn kind(self, kind: io::ErrorKind) -> Self {
        Self { error: Error::Kind(kind), ..self }
    }

    pub(super) fn error(&self) -> io::Error {
        match self.error {
            Error::Os(code) => io::Error::from_raw_os_error(code),
            Error::Kind(kind) => kind.into(),
        }
    }

    fn matches(&self, call: SimCall, path: &Path) -> bool {
        self.call == call
            && match &self.at {
                Where::Anywhere => true,
                Where::Part(part) => path.to_string_lossy().contains(part.as_str()),
                Where::Matching(matches) => matches(path),
            }
    }
}

impl fmt::Debug for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fault")
            .field("call", &self.call)
            .field("nth", &self.nth)
            .field("forever", &self.forever)
            .field("error", &self.error)
            .finish_non_exhaustive()
    }
}

/// The planted faults that have not run out.
#[derive(Debug, Default)]
pub(super) struct Faults {
    planted: Vec<(Fault, u64)>,
    pub(super) fired: u64,
}

impl Faults {
    pub(super) fn plant(&mut self, fault: Fault) {
        self.planted.push((fault, 0));
    }

    pub(super) fn clear(&mut self) {
        self.planted.clear();
    }

    /// Counts one call; the fault that hits it, if any.
    pub(super) fn hit(&mut self, call: SimCall, path: &Path) -> Option<Fault> {
        let mut hit = None;
        self.planted.retain_mut(|(fault, seen)| {
            if !fault.matches(call, path) {
                return true;
            }
            *seen += 1;
            let due = *seen >= fault.nth && hit.is_none();
            if due {
                hit = Some(fault.clone());
            }
            !due || fault.forever
        });
        self.fired += u64::from(hit.is_some());
        hit
    }
}
