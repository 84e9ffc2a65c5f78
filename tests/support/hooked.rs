//! Another disk, with something done before each call.

use duralog::SyncMethod;
use duralog::disk::{
    Allocation, DirEntry, Disk, DiskFile, DiskLock, DiskSpace, FileSystemKind, LockError,
    MapAccess, OpenAccess, Region, SimCall,
};
use std::fmt;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// What is done before a call; an error is its answer.
pub trait Hook: Send + Sync + fmt::Debug + 'static {
    fn before(&self, call: SimCall) -> io::Result<()>;
}

#[derive(Debug)]
pub struct Hooked {
    below: Arc<dyn Disk>,
    hook: Arc<dyn Hook>,
}

#[derive(Debug)]
struct HookedFile {
    below: Arc<dyn DiskFile>,
    hook: Arc<dyn Hook>,
}

impl Hooked {
    pub fn over(below: Arc<dyn Disk>, hook: Arc<dyn Hook>) -> Arc<Self> {
        Arc::new(Self { below, hook })
    }

    fn file(&self, below: Arc<dyn DiskFile>) -> Arc<dyn DiskFile> {
        Arc::new(HookedFile { below, hook: self.hook.clone() })
    }
}

impl Disk for Hooked {
    fn create(
        &self,
        path: &Path,
        len: u64,
        allocation: Allocation,
    ) -> io::Result<Arc<dyn DiskFile>> {
        self.hook.before(SimCall::Create)?;
        self.below.create(path, len, allocation).map(|file| self.file(file))
    }

    fn open(&self, path: &Path, access: OpenAccess) -> io::Result<Arc<dyn DiskFile>> {
        self.hook.before(SimCall::Open)?;
        self.below.open(path, access).map(|file| self.file(file))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.hook.before(SimCall::Rename)?;
        self.below.rename(from, to)
    }

    fn hard_link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.hook.before(SimCall::HardLink)?;
        self.below.hard_link(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.hook.before(SimCall::Remove)?;
        self.below.remove(path)
    }

    fn create_dir(&self, path: &Path) -> io::Result<bool> {
        self.hook.before(SimCall::CreateDir)?;
        self.below.create_dir(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.hook.before(SimCall::RemoveDir)?;
        self.below.remove_dir(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<DirEntry>> {
        self.hook.before(SimCall::List)?;
        self.below.list(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.hook.before(SimCall::SyncDir)?;
        self.below.sync_dir(path)
    }

    fn lock(&self, path: &Path) -> Result<DiskLock, LockError> {
        self.hook.before(SimCall::Lock).map_err(LockError::Io)?;
        self.below.lock(path)
    }

    fn space(&self, path: &Path) -> io::Result<DiskSpace> {
        self.hook.before(SimCall::Space)?;
        self.below.space(path)
    }

    fn kind(&self, path: &Path) -> io::Result<FileSystemKind> {
        self.below.kind(path)
    }
}

impl DiskFile for HookedFile {
    fn len(&self) -> u64 {
        self.below.len()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.hook.before(SimCall::Read)?;
        self.below.read_at(buf, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.hook.before(SimCall::Write)?;
        self.below.write_at(bytes, offset)
    }

    fn sync(&self, method: SyncMethod) -> io::Result<()> {
        self.hook.before(SimCall::Sync)?;
        self.below.sync(method)
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.hook.before(SimCall::Allocate)?;
        self.below.allocate(len)
    }

    fn prewrite(&self, range: Range<u64>) -> io::Result<()> {
        self.hook.before(SimCall::Prewrite)?;
        self.below.prewrite(range)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        self.hook.before(SimCall::NextData)?;
        self.below.next_data(offset)
    }

    fn map(&self, access: MapAccess) -> io::Result<Region> {
        self.hook.before(SimCall::Map)?;
        self.below.map(access)
    }
}
