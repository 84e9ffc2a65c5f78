//! The only door to the operating system: files, mappings, syncs, locks.
//!
//! Everything above this module talks to an `Arc<dyn Disk>`, so the whole engine runs on the real
//! file system ([`HostDisk`]) or on a simulated one that loses whatever was not synced
//! (`SimDisk`, feature `sim`). Control calls are virtual; bytes are read through the concrete
//! [`Region`], at the cost of a slice.
//!
//! All `unsafe` code and all system calls of the crate live here.

mod host;
mod region;
#[cfg(feature = "sim")]
mod sim;

pub use host::HostDisk;
pub(crate) use host::utc_offset_seconds;
pub use region::Region;
pub(crate) use region::{Prefix, RegionWriter};
#[cfg(feature = "sim")]
pub use sim::*;

use std::any::Any;
use std::fmt;
use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::Arc;

/// How a file is made durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum SyncMethod {
    /// `fdatasync`: the data, and the metadata needed to read it back. The default.
    #[default]
    Fdatasync,
    /// `fsync`: timestamps as well.
    Fsync,
    /// `msync(MS_SYNC)` over the whole mapping, as RocketMQ's `MappedByteBuffer.force` does. Needs a
    /// mapped file.
    Msync,
}

/// How the blocks of a new file are provided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Allocation {
    /// Blocks are reserved at once: a full disk is an error here and never later.
    Reserved,
    /// Only the length is set; blocks come with the first write, which may find the disk full.
    Sparse,
}

/// What a mapping is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MapAccess {
    /// Reading alone; writes go through [`DiskFile::write_at`] and show up in the mapping.
    Read,
    /// Reading, and writing through the mapping.
    Write,
}

/// What a file may be opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OpenAccess {
    /// Reading alone.
    Read,
    /// Reading and writing.
    Write,
}

/// One name in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirEntry {
    /// The name, without its directory. Names that are not UTF-8 are converted lossily.
    pub name: String,
    /// The length in bytes; 0 for a directory.
    pub len: u64,
    /// Whether it is a directory.
    pub is_dir: bool,
}

/// Room on a file system, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskSpace {
    /// Size of the file system.
    pub total: u64,
    /// What this process may still use.
    pub available: u64,
}

/// What kind of file system holds the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FileSystemKind {
    /// A local file system whose syncs can be trusted as far as the device can.
    Local,
    /// In memory (tmpfs, ramfs): nothing survives a reboot.
    Memory,
    /// A network file system: locks and syncs may not mean what they say.
    Network,
}

/// Why the lock was not taken.
#[derive(Debug)]
#[non_exhaustive]
pub enum LockError {
    /// Someone holds it.
    Held {
        /// The holder, where the system names it.
        pid: Option<u32>,
    },
    /// The system refused.
    Io(io::Error),
}

/// A held lock; dropping it releases it.
pub type DiskLock = Box<dyn Any + Send + Sync>;

/// A file system, reduced to what a log needs.
///
/// Nothing is durable before the matching sync: a file's bytes and length need [`DiskFile::sync`],
/// its name needs [`Disk::sync_dir`] on the directory that holds it. Implementations may persist
/// any subset of unsynced changes.
pub trait Disk: Send + Sync + fmt::Debug {
    /// Creates `path` with `len` zero bytes. Fails with `AlreadyExists` where the name is taken, and
    /// with `StorageFull` where [`Allocation::Reserved`] blocks are not to be had; nothing is left
    /// behind then.
    fn create(
        &self,
        path: &Path,
        len: u64,
        allocation: Allocation,
    ) -> io::Result<Arc<dyn DiskFile>>;

    /// Opens an existing file. The descriptor is closed in child processes.
    fn open(&self, path: &Path, access: OpenAccess) -> io::Result<Arc<dyn DiskFile>>;

    /// Gives a file another name, replacing what had it, or a directory, replacing an empty one at most.
    /// Durable once the directories are synced.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Gives a file a second name, where nothing has it yet. Durable once the directory is synced.
    ///
    /// `Unsupported` unless it is implemented; whoever calls this copies the file then.
    fn hard_link(&self, from: &Path, to: &Path) -> io::Result<()> {
        let _ = (from, to);
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Removes a name. Open files and mappings stay usable. Durable once the directory is synced.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Creates one directory if it is not there; its parent must be. True if it was created.
    fn create_dir(&self, path: &Path) -> io::Result<bool>;

    /// Removes an empty directory.
    fn remove_dir(&self, path: &Path) -> io::Result<()>;

    /// The names in a directory, sorted. `NotFound` if there is no such directory.
    fn list(&self, path: &Path) -> io::Result<Vec<DirEntry>>;

    /// Makes the names in a directory durable.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;

    /// Takes the exclusive lock on byte 0 of `path`, creating the file if needed. It excludes other
    /// processes, a Java broker among them, and other stores in this process. The first four bytes
    /// of the file stay as they are: there a Java broker that starts writes `lock`.
    fn lock(&self, path: &Path) -> Result<DiskLock, LockError>;

    /// Room on the file system that holds `path`.
    fn space(&self, path: &Path) -> io::Result<DiskSpace>;

    /// The kind of file system that holds `path`.
    fn kind(&self, path: &Path) -> io::Result<FileSystemKind>;
}

/// One open file of a [`Disk`].
///
/// A failed [`sync`](Self::sync) means that any byte written since the last good one may be lost,
/// even if a later sync succeeds. One owner syncs a file: the system reports a write error once.
pub trait DiskFile: Send + Sync + fmt::Debug {
    /// Length in bytes.
    fn len(&self) -> u64;

    /// Whether the file has no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads until `buf` is full or the file ends; the number of bytes read.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Writes all of `bytes`, extending the file if needed. In the page cache when it returns; any
    /// part may have been written when it fails. Bytes that a [`Region`] of this file has published
    /// are refused with `InvalidInput`: they never change.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Makes everything written so far durable, through this descriptor or a mapping of it.
    fn sync(&self, method: SyncMethod) -> io::Result<()>;

    /// Reserves blocks for the whole file, holes in it included, and makes it at least `len` long. What
    /// it holds stays as it is.
    fn allocate(&self, len: u64) -> io::Result<()>;

    /// Turns reserved blocks that were never written into written zero blocks, so that a later sync
    /// has no metadata to update. The caller keeps others from writing to `range` meanwhile. Bytes
    /// that a [`Region`] of this file has published are refused as in [`write_at`](Self::write_at).
    fn prewrite(&self, range: Range<u64>) -> io::Result<()>;

    /// The first offset at or after `offset` that may hold a byte other than zero; `None` if there
    /// is none. An optimisation: it may name offsets that hold zeros, never skip one that does not.
    fn next_data(&self, offset: u64) -> io::Result<Option<u64>>;

    /// Sends a part of `range`, its beginning, to a socket, straight from the page cache; how many bytes, one
    /// at least. The system may read them no sooner than the peer takes them: they are not to change.
    ///
    /// `Unsupported` unless it is implemented; whoever calls this sends a copy then.
    fn send(&self, range: Range<u64>, socket: BorrowedFd<'_>) -> io::Result<u64> {
        let _ = (range, socket);
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Maps the whole file. Once per open file.
    fn map(&self, access: MapAccess) -> io::Result<Region>;

    /// Makes `range` read as zeros by writing over what is not, keeping the blocks; the number of
    /// bytes written. Not durable before [`sync`](Self::sync).
    fn zero(&self, range: Range<u64>) -> io::Result<u64> {
        let zeros = vec![0u8; ZERO_STEP];
        let mut found = vec![0u8; ZERO_STEP];
        let mut written = 0;
        for data in self.data_ranges(range, ZERO_STEP as u64)? {
            for at in data.clone().step_by(ZERO_STEP) {
                let want = (data.end - at).min(ZERO_STEP as u64) as usize;
                let got = self.read_at(&mut found[..want], at)?;
                if last_nonzero(&found[..got]).is_some() {
                    self.write_at(&zeros[..got], at)?;
                    written += got as u64;
                }
            }
        }
        Ok(written)
    }

    /// Where in `range` there may be bytes other than zeros, in order, to within `step` bytes.
    ///
    /// To be known before any of it is read: a system that reads ahead counts what it read as data.
    fn data_ranges(&self, range: Range<u64>, step: u64) -> io::Result<Vec<Range<u64>>> {
        let mut ranges: Vec<Range<u64>> = Vec::new();
        let mut at = range.start;
        while at < range.end
            && let Some(data) = self.next_data(at)?.filter(|data| *data < range.end)
        {
            let end = (data + step).min(range.end);
            match ranges.last_mut() {
                Some(last) if last.end == data => last.end = end,
                _ => ranges.push(data..end),
            }
            at = end;
        }
        Ok(ranges)
    }
}

/// Whether an error says that there is no room, on the disk or in someone's share of it.
pub(crate) fn is_full(kind: io::ErrorKind) -> bool {
    matches!(kind, io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// How much [`DiskFile::zero`] looks at in one go.
const ZERO_STEP: usize = 64 << 10;

/// Where the last byte stands that is not zero.
pub(crate) fn last_nonzero(bytes: &[u8]) -> Option<usize> {
    const ZEROS: [u8; 4096] = [0; 4096];
    // Most are zero: comparing blocks is many times faster than looking at each byte.
    let mut blocks = bytes.chunks(ZEROS.len()).enumerate().rev();
    let differs = |block: &[u8]| ZEROS.get(..block.len()) != Some(block);
    let (number, block) = blocks.find(|(_, block)| differs(block))?;
    let last = block.iter().rposition(|byte| *byte != 0)?;
    Some(number * ZEROS.len() + last)
}

#[cfg(test)]
mod tests {
    use super::last_nonzero;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_last_byte_that_is_not_zero_is_found(
            len in 0usize..20_000,
            set in prop::collection::vec(any::<prop::sample::Index>(), 0..4),
        ) {
            let mut bytes = vec![0; len];
            for index in set.iter().filter(|_| len > 0) {
                bytes[index.index(len)] = 1;
            }
            prop_assert_eq!(last_nonzero(&bytes), bytes.iter().rposition(|byte| *byte != 0));
        }
    }
}
