//! The real file system, by Linux system calls.
#![allow(unsafe_code, reason = "system calls")]

use super::region::{Memory, Published};
use super::{
    Allocation, DirEntry, Disk, DiskFile, DiskLock, DiskSpace, FileSystemKind, LockError,
    MapAccess, OpenAccess, Region, SyncMethod,
};
use memmap2::{MmapMut, MmapOptions, MmapRaw};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

#[cfg(not(target_os = "linux"))]
compile_error!("duralog needs Linux: its locks, allocation and syncs are Linux system calls");

/// Zeros are written in pieces of this size.
const ZERO_CHUNK: usize = 256 << 10;

/// Long writes are made in pieces of this size. The page cache takes each in units as large as the
/// write allows, and those of 2 MiB and more are dear: memory in one piece is what a system that has
/// run for a while has least of.
const WRITE_PIECE: usize = 1 << 20;

/// The operating system's file system.
#[derive(Debug, Default, Clone, Copy)]
pub struct HostDisk;

impl HostDisk {
    /// The disk behind an `Arc`, as a store wants it.
    pub fn shared() -> Arc<dyn Disk> {
        Arc::new(Self)
    }
}

/// Repeats a system call that a signal interrupted.
fn retried(mut call: impl FnMut() -> libc::c_int) -> io::Result<libc::c_int> {
    loop {
        let answer = call();
        if answer != -1 {
            return Ok(answer);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

fn c_path(path: &Path) -> io::Result<std::ffi::CString> {
    std::ffi::CString::new(path.as_os_str().as_bytes())
        .map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// How far local time is ahead of UTC at a time in seconds since the epoch; 0 where that is not known.
pub(crate) fn utc_offset_seconds(unix_seconds: i64) -> i64 {
    let time: libc::time_t = unix_seconds;
    // SAFETY: a `tm` of zeros is a valid value: integers, and a pointer that may be null.
    let mut local: libc::tm = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are to live values of the right type; the call writes to the second alone
    // and keeps neither.
    let converted = unsafe { libc::localtime_r(&raw const time, &raw mut local) };
    if converted.is_null() { 0 } else { local.tm_gmtoff }
}

fn offset(value: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(value).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// Where a holder of the lock names itself: the bytes before are the caller's.
const HOLDER_AT: u64 = 4;

/// The process that a holder of the lock wrote into its file.
fn written_holder(file: &File) -> Option<u32> {
    let mut text = [0; 32];
    let len = file.read_at(&mut text, HOLDER_AT).ok()?;
    str::from_utf8(text.get(..len)?).ok()?.trim().parse().ok()
}

/// Reserves blocks for the first `len` bytes of `file`, holes included, and makes it that long; false
/// where the file system cannot.
fn fallocate(file: &File, len: u64) -> io::Result<bool> {
    let count = offset(len)?;
    // SAFETY: plain system call on a descriptor that `file` keeps open.
    match retried(|| unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, count) }) {
        Ok(_) => Ok(true),
        Err(e) if matches!(e.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS)) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Lets `file`, which is `from` bytes long, have blocks for `len` bytes, never a hole: a store to a
/// hole on a full disk is a SIGBUS. Holes stay only where the file system cannot reserve blocks.
fn reserve(file: &File, from: u64, len: u64) -> io::Result<()> {
    if len == 0 || fallocate(file, len)? {
        return Ok(());
    }
    let zeros = vec![0; ZERO_CHUNK];
    let mut at = from;
    while at < len {
        let piece = (len - at).min(ZERO_CHUNK as u64);
        file.write_all_at(&zeros[..piece as usize], at)?;
        at += piece;
    }
    Ok(())
}

/// The lock on byte 0 of a file.
#[derive(Debug)]
struct HostLock(File);

impl Drop for HostLock {
    fn drop(&mut self) {
        // Closing is not enough: a process that another thread is about to start has the description
        // open, and the lock with it, until it runs its program.
        let mut range = lock_range(libc::F_UNLCK);
        // SAFETY: the descriptor is open and `range` outlives the call.
        let _ = retried(|| unsafe {
            libc::fcntl(self.0.as_raw_fd(), libc::F_OFD_SETLK, &raw mut range)
        });
    }
}

/// Byte 0 of a file, to be locked or let go.
fn lock_range(kind: libc::c_int) -> libc::flock {
    // SAFETY: `flock` is plain data for which all zeros is a value.
    let mut range: libc::flock = unsafe { std::mem::zeroed() };
    range.l_type = kind as libc::c_short;
    range.l_whence = libc::SEEK_SET as libc::c_short;
    range.l_len = 1;
    range
}

impl Disk for HostDisk {
    fn create(
        &self,
        path: &Path,
        len: u64,
        allocation: Allocation,
    ) -> io::Result<Arc<dyn DiskFile>> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(path)?;
        let sized = match allocation {
            Allocation::Reserved => reserve(&file, 0, len),
            _ => file.set_len(len),
        };
        if let Err(e) = sized {
            // The caller hears why; a left-over file would only be in its way.
            let _ = fs::remove_file(path);
            return Err(e);
        }
        Ok(Arc::new(HostFile::new(file, len)))
    }

    fn open(&self, path: &Path, access: OpenAccess) -> io::Result<Arc<dyn DiskFile>> {
        let file = OpenOptions::new().read(true).write(access == OpenAccess::Write).open(path)?;
        let len = file.metadata()?.len();
        Ok(Arc::new(HostFile::new(file, len)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn hard_link(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::hard_link(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn create_dir(&self, path: &Path) -> io::Result<bool> {
        match fs::create_dir(path) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(false),
            Err(e) => Err(e),
        }
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<DirEntry>> {
        let mut entries = Vec::new();
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            let metadata = match entry.metadata() {
                Ok(metadata) => metadata,
                // Removed between the two calls, by a live writer beside a read-only store.
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(e),
            };
            let is_dir = metadata.is_dir();
            let name = entry.file_name().to_string_lossy().into_owned();
            entries.push(DirEntry { name, len: if is_dir { 0 } else { metadata.len() }, is_dir });
        }
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn lock(&self, path: &Path) -> Result<DiskLock, LockError> {
        // Java's broker locks byte 0 with fcntl too; an open file description lock conflicts with it,
        // and with another store of this same process.
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(LockError::Io)?;
        let mut range = lock_range(libc::F_WRLCK);
        // SAFETY: the descriptor is open and `range` outlives the call.
        let taken =
            retried(|| unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw mut range) });
        match taken {
            Ok(_) => {
                let lock = HostLock(file);
                // Who we are: the system does not know. Always as long, so that a full disk does not
                // keep an old store closed.
                let holder = format!(
                    " {:010}
",
                    std::process::id()
                );
                lock.0.write_all_at(holder.as_bytes(), HOLDER_AT).map_err(LockError::Io)?;
                Ok(Box::new(lock))
            }
            Err(e) if matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => {
                range.l_pid = 0;
                range.l_type = libc::F_WRLCK as libc::c_short;
                // SAFETY: as above. It answers -1 as the pid where the holder is a description.
                let asked = retried(|| unsafe {
                    libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &raw mut range)
                });
                let named = asked.is_ok() && range.l_pid > 0;
                let pid = if named { Some(range.l_pid as u32) } else { written_holder(&file) };
                Err(LockError::Held { pid })
            }
            Err(e) => Err(LockError::Io(e)),
        }
    }

    fn space(&self, path: &Path) -> io::Result<DiskSpace> {
        let path = c_path(path)?;
        // SAFETY: `statvfs` is plain data for which all zeros is a value.
        let mut stat: libc::statvfs = unsafe { std::mem::zeroed() };
        // SAFETY: the path is NUL-terminated and `stat` outlives the call.
        retried(|| unsafe { libc::statvfs(path.as_ptr(), &raw mut stat) })?;
        let block = stat.f_frsize;
        Ok(DiskSpace { total: stat.f_blocks * block, available: stat.f_bavail * block })
    }

    fn kind(&self, path: &Path) -> io::Result<FileSystemKind> {
        let path = c_path(path)?;
        // SAFETY: `statfs` is plain data for which all zeros is a value.
        let mut stat: libc::statfs = unsafe { std::mem::zeroed() };
        // SAFETY: the path is NUL-terminated and `stat` outlives the call.
        retried(|| unsafe { libc::statfs(path.as_ptr(), &raw mut stat) })?;
        Ok(match stat.f_type as u32 {
            0x0102_1994 | 0x8584_58f6 => FileSystemKind::Memory,
            0x6969 | 0x517b | 0xff53_4d42 | 0xfe53_4d42 | 0x00c3_6400 | 0x5346_414f
            | 0x0102_1997 => FileSystemKind::Network,
            _ => FileSystemKind::Local,
        })
    }
}

#[derive(Debug)]
struct HostFile {
    file: File,
    len: AtomicU64,
    published: Arc<Published>,
    mapping: OnceLock<Arc<MmapRaw>>,
}

impl HostFile {
    fn new(file: File, len: u64) -> Self {
        Self { file, len: AtomicU64::new(len), published: Arc::default(), mapping: OnceLock::new() }
    }

    fn check_unpublished(&self, from: u64) -> io::Result<()> {
        if from < self.published.get() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "published bytes never change",
            ));
        }
        Ok(())
    }
}

impl DiskFile for HostFile {
    fn len(&self) -> u64 {
        self.len.load(Ordering::Acquire)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut filled = 0;
        while let Some(rest) = buf.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match self.file.read_at(rest, offset + filled as u64) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(filled)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.check_unpublished(offset)?;
        let mut at = offset;
        for piece in bytes.chunks(WRITE_PIECE) {
            self.file.write_all_at(piece, at)?;
            at += piece.len() as u64;
        }
        self.len.fetch_max(offset + bytes.len() as u64, Ordering::AcqRel);
        Ok(())
    }

    fn sync(&self, method: SyncMethod) -> io::Result<()> {
        match method {
            SyncMethod::Fdatasync => self.file.sync_data(),
            SyncMethod::Fsync => self.file.sync_all(),
            SyncMethod::Msync => match self.mapping.get() {
                Some(mapping) => mapping.flush(),
                None => {
                    Err(io::Error::new(io::ErrorKind::InvalidInput, "msync needs a mapped file"))
                }
            },
        }
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        let from = self.len();
        reserve(&self.file, from, len.max(from))?;
        self.len.fetch_max(len, Ordering::AcqRel);
        Ok(())
    }

    fn prewrite(&self, range: Range<u64>) -> io::Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        self.check_unpublished(range.start)?;
        // Around the page cache: zeros in it would only push out what readers want, and the next
        // sync would write them together with its records.
        let direct = OpenOptions::new()
            .write(true)
            .custom_flags(libc::O_DIRECT)
            .open(format!("/proc/self/fd/{}", self.file.as_raw_fd()));
        let zeros = MmapMut::map_anon(ZERO_CHUNK)?;
        let mut at = range.start;
        while at < range.end {
            let piece =
                zeros.get(..(range.end - at).min(ZERO_CHUNK as u64) as usize).unwrap_or(&zeros);
            let around = direct.as_ref().ok().map(|file| file.write_all_at(piece, at));
            if !matches!(around, Some(Ok(()))) {
                self.file.write_all_at(piece, at)?;
            }
            at += piece.len() as u64;
        }
        Ok(())
    }

    fn next_data(&self, from: u64) -> io::Result<Option<u64>> {
        // SAFETY: plain system call on a descriptor that `self.file` keeps open; nothing here uses
        // the descriptor's position.
        let found = unsafe { libc::lseek(self.file.as_raw_fd(), offset(from)?, libc::SEEK_DATA) };
        if found >= 0 {
            return Ok(Some(found as u64));
        }
        match io::Error::last_os_error().raw_os_error() {
            Some(libc::ENXIO) => Ok(None),
            _ if from < self.len() => Ok(Some(from)),
            _ => Ok(None),
        }
    }

    fn send(&self, range: Range<u64>, socket: BorrowedFd<'_>) -> io::Result<u64> {
        let (mut at, count) = (offset(range.start)?, range.end.saturating_sub(range.start));
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        let (to, from) = (socket.as_raw_fd(), self.file.as_raw_fd());
        let (sent, error) = without_sigpipe(|| {
            // SAFETY: plain system call on two descriptors that are borrowed for it; it writes to `at`
            // alone, and neither reads nor writes memory of this process otherwise.
            let sent = unsafe { libc::sendfile(to, from, &raw mut at, count) };
            (sent, io::Error::last_os_error())
        });
        if sent > 0 {
            return Ok(sent as u64);
        }
        Err(match error.raw_os_error() {
            _ if sent == 0 => io::ErrorKind::UnexpectedEof.into(),
            Some(libc::EINVAL | libc::ENOSYS | libc::EOPNOTSUPP) => {
                io::ErrorKind::Unsupported.into()
            }
            _ => error,
        })
    }

    fn map(&self, access: MapAccess) -> io::Result<Region> {
        let len = usize::try_from(self.len())
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        let mut options = MmapOptions::new();
        options.len(len);
        let mapping = Arc::new(match access {
            MapAccess::Read => options.map_raw_read_only(&self.file)?,
            MapAccess::Write => options.map_raw(&self.file)?,
        });
        let memory = Box::new(Mapped { mapping: mapping.clone() });
        if self.mapping.set(mapping).is_err() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "mapped before"));
        }
        let writable = access == MapAccess::Write;
        Region::new(memory, self.published.clone(), writable)
            .ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }
}

/// Keeps a peer that hangs up from ending the process where nobody ignores `SIGPIPE`: a flag of the other
/// calls that send says so, and this one has none.
fn without_sigpipe<T>(call: impl FnOnce() -> T) -> T {
    let mut sigpipe = MaybeUninit::<libc::sigset_t>::uninit();
    let (mut before, mut pending) = (sigpipe, sigpipe);
    // SAFETY: the first call initializes `sigpipe`, and the others fill the sets that they are given; they
    // fail for no valid signal and way. Only the mask of this thread is changed.
    let was_pending = unsafe {
        libc::sigemptyset(sigpipe.as_mut_ptr());
        libc::sigaddset(sigpipe.as_mut_ptr(), libc::SIGPIPE);
        libc::sigpending(pending.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_BLOCK, sigpipe.as_ptr(), before.as_mut_ptr());
        libc::sigismember(pending.as_ptr(), libc::SIGPIPE) == 1
    };
    let result = call();
    let at_once = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: all sets were initialized above. The signal that is taken, if there is one, came of `call`.
    unsafe {
        if !was_pending {
            libc::sigtimedwait(sigpipe.as_ptr(), ptr::null_mut(), &raw const at_once);
        }
        libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), ptr::null_mut());
    }
    result
}

struct Mapped {
    mapping: Arc<MmapRaw>,
}

impl Memory for Mapped {
    fn base(&self) -> *mut u8 {
        self.mapping.as_mut_ptr()
    }

    fn len(&self) -> usize {
        self.mapping.len()
    }

    fn store(&self, _range: Range<usize>, copy: &mut dyn FnMut()) {
        copy();
    }

    fn observes_stores(&self) -> bool {
        false
    }

    fn prefault(&self, range: Range<usize>) -> io::Result<()> {
        match self.mapping.advise_range(memmap2::Advice::PopulateWrite, range.start, range.len()) {
            // Kernels before 5.14 do not know it; faulting later is slower, not wrong.
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => Ok(()),
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;
    use std::process::Command;

    #[test]
    fn published_bytes_are_refused_to_every_write() {
        let path = std::env::temp_dir().join(format!("duralog-host-{}", std::process::id()));
        let file = HostDisk.create(&path, 8192, Allocation::Reserved).unwrap();
        // The file goes with its last handle, whatever comes of the test.
        HostDisk.remove(&path).unwrap();
        let region = file.map(MapAccess::Read).unwrap();
        file.write_at(b"kept", 0).unwrap();
        region.publish(4);
        for refused in [file.write_at(b"x", 3), file.prewrite(0..4096), file.prewrite(3..8192)] {
            assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::InvalidInput);
        }
        assert_eq!(region.bytes(0..4).unwrap(), b"kept");
        file.prewrite(0..0).unwrap();
        file.prewrite(4096..8192).unwrap();
        file.write_at(b"more", 4).unwrap();
    }

    #[test]
    fn what_a_file_holds_is_sent_from_where_it_lies() {
        let path = std::env::temp_dir().join(format!("duralog-send-{}", std::process::id()));
        let file = HostDisk.create(&path, 8192, Allocation::Reserved).unwrap();
        HostDisk.remove(&path).unwrap();
        file.write_at(b"from the page cache", 4090).unwrap();
        let (here, mut there) = UnixStream::pair().unwrap();
        assert_eq!(file.send(4095..4109, here.as_fd()).unwrap(), 14);
        let behind = file.send(8192..8193, here.as_fd()).unwrap_err();
        assert_eq!(behind.kind(), io::ErrorKind::UnexpectedEof);
        drop(here);
        let mut got = String::new();
        there.read_to_string(&mut got).unwrap();
        assert_eq!(got, "the page cache");
    }

    #[test]
    fn a_peer_that_hangs_up_does_not_end_the_process() {
        const ALONE: &str = "DURALOG_TEST_ALONE";
        if std::env::var_os(ALONE).is_none() {
            // In a process of its own, for all threads share what a signal does.
            let name = "disk::host::tests::a_peer_that_hangs_up_does_not_end_the_process";
            let mut alone = Command::new(std::env::current_exe().unwrap());
            let ended = alone.args(["--exact", name]).env(ALONE, "1").output().unwrap();
            assert!(ended.status.success(), "{ended:?}");
            return;
        }
        // SAFETY: nobody relies on its being ignored here.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
        let path = std::env::temp_dir().join(format!("duralog-pipe-{}", std::process::id()));
        let file = HostDisk.create(&path, 8192, Allocation::Reserved).unwrap();
        HostDisk.remove(&path).unwrap();
        let (here, there) = UnixStream::pair().unwrap();
        drop(there);
        for _ in 0..2 {
            let error = file.send(0..8192, here.as_fd()).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
        }
        let mut mask = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: the first call fills the set, and changes nothing.
        let is_blocked = unsafe {
            libc::pthread_sigmask(libc::SIG_BLOCK, ptr::null(), mask.as_mut_ptr());
            libc::sigismember(mask.as_ptr(), libc::SIGPIPE)
        };
        assert_eq!(is_blocked, 0, "the thread is as it was");
    }
}
