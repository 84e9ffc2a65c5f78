use super::*;
use crate::disk::{
    DirEntry, DiskLock, DiskSpace, FileSystemKind, HostDisk, LockError, MapAccess, Region,
    SyncMethod,
};
use parking_lot::Mutex;
use proptest::prelude::*;
use std::collections::{BTreeMap, HashSet};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize};

/// A directory that goes away with the test.
pub(crate) struct TempDir(pub(crate) PathBuf);

impl TempDir {
    pub(crate) fn new(name: &str) -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let unique = format!(
            "duralog-{name}-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let path = std::env::temp_dir().join(unique);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The real disk under supervision: it knows what would not survive a power cut, and fails on
/// command. It never really syncs: no test here cuts the power.
#[derive(Debug, Default)]
pub(crate) struct AuditDisk {
    pub(crate) audit: Arc<Audit>,
}

#[derive(Debug, Default)]
pub(crate) struct Audit {
    pub(crate) dirty_files: Mutex<HashSet<PathBuf>>,
    pub(crate) dirty_dirs: Mutex<HashSet<PathBuf>>,
    /// Descriptors closed while what they wrote was not synced.
    pub(crate) lost: Mutex<Vec<PathBuf>>,
    /// How many of the next syncs fail.
    pub(crate) fail_syncs: AtomicUsize,
    pub(crate) full: AtomicBool,
    pub(crate) syncs: AtomicUsize,
    pub(crate) opens: AtomicUsize,
    pub(crate) reads: AtomicUsize,
    pub(crate) writes: AtomicUsize,
    pub(crate) changes: AtomicUsize,
    pub(crate) open_files: AtomicUsize,
    pub(crate) most_open_files: AtomicUsize,
}

impl Audit {
    fn name_changed(&self, path: &Path) {
        self.changes.fetch_add(1, Ordering::Relaxed);
        self.dirty_dirs.lock().insert(path.parent().unwrap().to_owned());
    }

    fn sync_fails(&self) -> bool {
        let one_less = |left: usize| left.checked_sub(1);
        self.fail_syncs.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less).is_ok()
    }

    fn room(&self) -> io::Result<()> {
        if self.full.load(Ordering::Relaxed) { Err(ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    /// Everything below `dir` that is not durable.
    pub(crate) fn unsynced(&self, dir: &Path) -> Vec<PathBuf> {
        let (files, dirs) = (self.dirty_files.lock(), self.dirty_dirs.lock());
        let below = |path: &&PathBuf| path.starts_with(dir);
        files.iter().filter(below).chain(dirs.iter().filter(below)).cloned().collect()
    }

    pub(crate) fn count(counter: &AtomicUsize) -> usize {
        counter.load(Ordering::Relaxed)
    }
}

impl AuditDisk {
    fn file(&self, path: &Path, inner: Arc<dyn DiskFile>) -> Arc<dyn DiskFile> {
        let open = self.audit.open_files.fetch_add(1, Ordering::Relaxed) + 1;
        self.audit.most_open_files.fetch_max(open, Ordering::Relaxed);
        let audit = Arc::clone(&self.audit);
        Arc::new(AuditFile { path: path.to_owned(), inner, audit, dirty: AtomicBool::new(false) })
    }
}

impl Disk for AuditDisk {
    fn create(
        &self,
        path: &Path,
        len: u64,
        allocation: Allocation,
    ) -> io::Result<Arc<dyn DiskFile>> {
        self.audit.room()?;
        let file = HostDisk.create(path, len, allocation)?;
        self.audit.name_changed(path);
        self.audit.dirty_files.lock().insert(path.to_owned());
        Ok(self.file(path, file))
    }

    fn open(&self, path: &Path, access: OpenAccess) -> io::Result<Arc<dyn DiskFile>> {
        self.audit.opens.fetch_add(1, Ordering::Relaxed);
        Ok(self.file(path, HostDisk.open(path, access)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        HostDisk.rename(from, to)?;
        assert!(!self.audit.dirty_files.lock().contains(from), "{} was not synced", from.display());
        self.audit.name_changed(to);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        HostDisk.remove(path)?;
        self.audit.dirty_files.lock().remove(path);
        self.audit.lost.lock().retain(|lost| lost != path);
        self.audit.name_changed(path);
        Ok(())
    }

    fn create_dir(&self, path: &Path) -> io::Result<bool> {
        let created = HostDisk.create_dir(path)?;
        if created {
            self.audit.name_changed(path);
        }
        Ok(created)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        HostDisk.remove_dir(path)?;
        self.audit.dirty_dirs.lock().remove(path);
        self.audit.name_changed(path);
        Ok(())
    }

    fn list(&self, path: &Path) -> io::Result<Vec<DirEntry>> {
        HostDisk.list(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        if self.audit.sync_fails() {
            return Err(io::Error::from_raw_os_error(5));
        }
        HostDisk.list(path)?;
        self.audit.dirty_dirs.lock().remove(path);
        Ok(())
    }

    fn lock(&self, path: &Path) -> Result<DiskLock, LockError> {
        HostDisk.lock(path)
    }

    fn space(&self, path: &Path) -> io::Result<DiskSpace> {
        HostDisk.space(path)
    }

    fn kind(&self, path: &Path) -> io::Result<FileSystemKind> {
        HostDisk.kind(path)
    }
}

#[derive(Debug)]
struct AuditFile {
    path: PathBuf,
    inner: Arc<dyn DiskFile>,
    audit: Arc<Audit>,
    dirty: AtomicBool,
}

impl Drop for AuditFile {
    fn drop(&mut self) {
        self.audit.open_files.fetch_sub(1, Ordering::Relaxed);
        if *self.dirty.get_mut() {
            self.audit.lost.lock().push(self.path.clone());
        }
    }
}

impl DiskFile for AuditFile {
    fn len(&self) -> u64 {
        self.inner.len()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.audit.reads.fetch_add(1, Ordering::Relaxed);
        self.inner.read_at(buf, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.audit.room()?;
        self.audit.writes.fetch_add(1, Ordering::Relaxed);
        self.audit.changes.fetch_add(1, Ordering::Relaxed);
        self.dirty.store(true, Ordering::Relaxed);
        self.audit.dirty_files.lock().insert(self.path.clone());
        self.inner.write_at(bytes, offset)
    }

    fn sync(&self, method: SyncMethod) -> io::Result<()> {
        self.audit.syncs.fetch_add(1, Ordering::Relaxed);
        // Clean after a failure as well, as the system has it.
        self.dirty.store(false, Ordering::Relaxed);
        if self.audit.sync_fails() {
            return Err(io::Error::from_raw_os_error(5));
        }
        let _ = method;
        self.audit.dirty_files.lock().remove(&self.path);
        Ok(())
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.inner.allocate(len)
    }

    fn prewrite(&self, range: Range<u64>) -> io::Result<()> {
        self.inner.prewrite(range)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        self.inner.next_data(offset)
    }

    fn map(&self, access: MapAccess) -> io::Result<Region> {
        self.inner.map(access)
    }
}

pub(crate) fn entry(n: u64) -> QueueEntry {
    QueueEntry { physical_offset: n * 100 + 7, size: 100, tags_code: -(n as i64) }
}

pub(crate) fn options(slots: u64, open_files: usize, tail_size: usize) -> QueueOptions {
    QueueOptions { file_size: slots * ENTRY_SIZE, open_files, tail_size, ..QueueOptions::default() }
}

fn open(dir: &Path, options: &QueueOptions) -> ConsumeQueue {
    ConsumeQueue::open(Arc::new(AuditDisk::default()), dir, "t", 0, options).unwrap()
}

/// Appends the entries of these numbers at these offsets.
fn fill(queue: &ConsumeQueue, offsets: Range<u64>) {
    for n in offsets {
        queue.append(n, entry(n)).unwrap();
    }
}

fn read_all(queue: &ConsumeQueue) -> Vec<QueueEntry> {
    let mut out = Vec::new();
    queue.read(queue.min_offset(), usize::MAX, &mut out).unwrap();
    out
}

#[test]
fn an_entry_has_rocketmqs_bytes() {
    let entry =
        QueueEntry { physical_offset: 0x1122_3344_5566, size: 0x68, tags_code: -392_709_271 };
    let bytes = [
        0, 0, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0, 0, 0, 0x68, 255, 255, 255, 255, 0xe8, 0x97,
        0xbb, 0x69,
    ];
    assert_eq!(entry.encode(), bytes);
    assert_eq!(QueueEntry::decode(&bytes), Some(entry));
    assert_eq!(QueueEntry::decode(&[0; 20]), None);
    assert_eq!(QueueEntry::decode(&[255; 20]), None);
    let blank = [0, 0, 0, 0, 0, 0, 0, 0, 0x7f, 255, 255, 255, 0, 0, 0, 0, 0, 0, 0, 0];
    assert!(QueueEntry::decode(&blank).unwrap().is_blank());
}

#[test]
fn what_a_queue_cannot_hold_is_refused_and_changes_nothing() {
    let dir = TempDir::new("refused");
    let queue = open(&dir.0.join("q"), &options(4, 2, 40));
    queue.append(0, entry(0)).unwrap();
    for bad in [
        QueueEntry { size: 0, ..entry(1) },
        QueueEntry { size: 1 << 31, ..entry(1) },
        QueueEntry { physical_offset: 1 << 63, ..entry(1) },
    ] {
        assert!(matches!(queue.append(1, bad), Err(Error::Corrupt { .. })));
    }
    for far in [QUEUE_OFFSET_MAX, u64::MAX] {
        assert!(matches!(queue.append(far, entry(1)), Err(Error::Corrupt { .. })), "{far}");
    }
    assert_eq!(queue.max_offset(), 1);
    let fresh = open(&dir.0.join("r"), &options(4, 2, 40));
    assert!(fresh.append(QUEUE_OFFSET_MAX, entry(0)).is_err());
    let far = QUEUE_OFFSET_MAX - 2;
    assert_eq!(fresh.append(far, entry(0)).unwrap(), QueueAppend::Gap { missing: far });
    assert_eq!((fresh.min_offset(), fresh.max_offset()), (far, far + 1));
    fresh.sync().unwrap();
    assert_eq!(fresh.entry(far).unwrap(), Some(entry(0)));
}

#[test]
fn no_more_is_bridged_than_the_log_can_have_lost() {
    let dir = TempDir::new("bridged");
    let queue = open(&dir.0, &options(4, 2, 40));
    let at = |physical_offset| QueueEntry { physical_offset, ..entry(0) };
    queue.append(0, at(1000)).unwrap();
    // Two of the smallest records, but not three.
    let next = at(1000 + 3 * RECORD_SIZE_MIN as u64 - 1);
    assert!(matches!(queue.append(4, next), Err(Error::Corrupt { .. })));
    assert!(matches!(queue.append(2, at(999)), Err(Error::Corrupt { .. })));
    assert_eq!(queue.max_offset(), 1);
    assert_eq!(queue.append(3, next).unwrap(), QueueAppend::Gap { missing: 2 });
    let mut entries = Vec::new();
    queue.read(0, 9, &mut entries).unwrap();
    assert_eq!(entries, [at(1000), QueueEntry::BLANK, QueueEntry::BLANK, next]);
}

#[test]
fn a_queue_that_starts_late_has_blanks_before_its_first_entry() {
    let dir = TempDir::new("late");
    let options = options(5, 2, 40);
    let queue = open(&dir.0, &options);
    assert_eq!(queue.append(8, entry(8)).unwrap(), QueueAppend::Gap { missing: 8 });
    assert_eq!((queue.min_offset(), queue.max_offset()), (8, 9));
    queue.sync().unwrap();
    let bytes = std::fs::read(dir.0.join("00000000000000000100")).unwrap();
    let slots: Vec<_> = bytes.as_chunks().0.iter().map(QueueEntry::decode).collect();
    let blank = Some(QueueEntry::BLANK);
    assert_eq!(slots, [blank, blank, blank, Some(entry(8)), None]);
    assert!(!dir.0.join("00000000000000000000").exists());
    drop(queue);
    let queue = open(&dir.0, &options);
    assert_eq!((queue.min_offset(), queue.max_offset()), (8, 9));
}

#[test]
fn foreign_files_are_cleared_away_and_reported() {
    let dir = TempDir::new("foreign");
    let options = options(5, 2, 40);
    let queue = open(&dir.0, &options);
    fill(&queue, 0..12);
    queue.sync().unwrap();
    drop(queue);
    std::fs::write(dir.0.join("00000000000000000300"), [1; 60]).unwrap();
    std::fs::write(dir.0.join("00000000000000000400"), []).unwrap();
    std::fs::write(dir.0.join("99999999999999999999"), []).unwrap();
    std::fs::write(dir.0.join("notes.txt"), "mine").unwrap();
    std::fs::create_dir(dir.0.join("00000000000000000500")).unwrap();
    let queue = open(&dir.0, &options);
    let repairs = queue.take_repairs();
    assert_eq!(repairs.iter().filter(|repair| repair.removed).count(), 2, "{repairs:?}");
    assert_eq!(repairs.len(), 5);
    assert!(dir.0.join("notes.txt").exists());
    assert_eq!(read_all(&queue), (0..12).map(entry).collect::<Vec<_>>());
    drop(queue);
    std::fs::remove_file(dir.0.join("00000000000000000100")).unwrap();
    let queue = open(&dir.0, &options);
    assert_eq!(read_all(&queue), (0..5).map(entry).collect::<Vec<_>>());
    assert_eq!(queue.take_repairs().iter().filter(|repair| repair.removed).count(), 1);
    // Another configured size changes nothing for a queue that has files.
    drop(queue);
    let queue = open(&dir.0, &self::options(7, 2, 40));
    queue.append(5, entry(5)).unwrap();
    queue.sync().unwrap();
    assert_eq!(std::fs::metadata(dir.0.join("00000000000000000100")).unwrap().len(), 100);
}

#[test]
fn a_full_disk_loses_nothing_and_stops_nobody_for_good() {
    let dir = TempDir::new("full");
    let disk = Arc::new(AuditDisk::default());
    let audit = Arc::clone(&disk.audit);
    let queue = ConsumeQueue::open(disk, &dir.0.join("q"), "t", 0, &options(5, 2, 60)).unwrap();
    audit.full.store(true, Ordering::Relaxed);
    fill(&queue, 0..3);
    assert!(matches!(queue.append(3, entry(3)), Err(Error::DiskFull { .. })));
    assert!(matches!(queue.sync(), Err(Error::DiskFull { .. })));
    assert_eq!(read_all(&queue), (0..3).map(entry).collect::<Vec<_>>());
    audit.full.store(false, Ordering::Relaxed);
    fill(&queue, 3..20);
    queue.sync().unwrap();
    assert_eq!(read_all(&queue), (0..20).map(entry).collect::<Vec<_>>());
    assert_eq!(audit.unsynced(&dir.0), Vec::<PathBuf>::new());
}

#[test]
fn a_failed_sync_is_told_even_if_it_came_from_an_eviction() {
    let dir = TempDir::new("evicted");
    let disk = Arc::new(AuditDisk::default());
    let audit = Arc::clone(&disk.audit);
    let options = QueueOptions { tail_memory: 0, ..options(1, 1, 20) };
    let queue = ConsumeQueue::open(disk, &dir.0.join("q"), "t", 0, &options).unwrap();
    audit.fail_syncs.store(usize::MAX, Ordering::Relaxed);
    fill(&queue, 0..5);
    assert!(Audit::count(&audit.syncs) > 0);
    audit.fail_syncs.store(0, Ordering::Relaxed);
    for _ in 0..2 {
        assert!(matches!(queue.sync(), Err(Error::Io { op: IoOp::Sync, .. })));
    }
    assert_eq!(read_all(&queue).len(), 5);
    assert_eq!(*audit.lost.lock(), Vec::<PathBuf>::new());
}

#[test]
fn a_run_of_entries_takes_one_read() {
    let dir = TempDir::new("run");
    let disk = Arc::new(AuditDisk::default());
    let audit = Arc::clone(&disk.audit);
    let queue =
        ConsumeQueue::open(disk, &dir.0.join("q"), "t", 0, &options(2000, 2, 4096)).unwrap();
    fill(&queue, 0..1500);
    let (reads, writes) = (Audit::count(&audit.reads), Audit::count(&audit.writes));
    assert_eq!(writes, 1500 / 204);
    let mut out = Vec::new();
    queue.read(100, 1400, &mut out).unwrap();
    assert_eq!(out, (100..1500).map(entry).collect::<Vec<_>>());
    assert_eq!(Audit::count(&audit.reads) - reads, 1);
    assert_eq!(Audit::count(&audit.opens), 1);
}

#[test]
fn truncate_leaves_nothing_behind_the_end() {
    let dir = TempDir::new("truncate");
    let disk = Arc::new(AuditDisk::default());
    let audit = Arc::clone(&disk.audit);
    let queue = ConsumeQueue::open(disk, &dir.0.join("q"), "t", 0, &options(5, 4, 40)).unwrap();
    fill(&queue, 0..23);
    queue.truncate(7).unwrap();
    queue.sync().unwrap();
    let names: Vec<_> =
        HostDisk.list(&dir.0.join("q")).unwrap().into_iter().map(|e| e.name).collect();
    assert_eq!(names, ["00000000000000000000", "00000000000000000100"]);
    let bytes = std::fs::read(dir.0.join("q/00000000000000000100")).unwrap();
    assert!(bytes[40..].iter().all(|byte| *byte == 0));
    assert_eq!(queue.max_offset(), 7);
    let changes = Audit::count(&audit.changes);
    queue.truncate(7).unwrap();
    queue.truncate(u64::MAX).unwrap();
    assert_eq!(Audit::count(&audit.changes), changes);
    for n in 7..30 {
        queue.append(n, entry(n + 1000)).unwrap();
    }
    let expected: Vec<_> = (0..7).map(entry).chain((7..30).map(|n| entry(n + 1000))).collect();
    assert_eq!(read_all(&queue), expected);
    queue.sync().unwrap();
    assert_eq!(audit.unsynced(&dir.0), Vec::<PathBuf>::new());
    assert_eq!(*audit.lost.lock(), Vec::<PathBuf>::new());
}

#[test]
fn a_reader_beside_the_appender_sees_whole_entries_in_order() {
    let dir = TempDir::new("concurrent");
    let queue = open(&dir.0, &options(100, 2, 200));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for seed in 0..3 {
            let (queue, done) = (&queue, &done);
            scope.spawn(move || {
                let mut out = Vec::new();
                let mut from = seed;
                while !done.load(Ordering::Relaxed) {
                    out.clear();
                    let end = queue.max_offset();
                    queue.read(from, 64, &mut out).unwrap();
                    assert!(out.len() as u64 >= end.saturating_sub(from).min(64));
                    for (at, found) in (from..).zip(&out) {
                        assert_eq!(*found, entry(at));
                    }
                    from =
                        if out.is_empty() { from * 7 % (end + 1) } else { from + out.len() as u64 };
                }
            });
        }
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                queue.sync().unwrap();
            }
        });
        for n in 0..30_000 {
            assert_eq!(queue.append(n, entry(n)).unwrap(), QueueAppend::New);
        }
        done.store(true, Ordering::Relaxed);
    });
    assert_eq!(read_all(&queue).len(), 30_000);
}

#[test]
fn a_read_only_queue_changes_nothing_on_disk() {
    let dir = TempDir::new("read-only");
    let queue = open(&dir.0, &options(5, 2, 40));
    fill(&queue, 0..12);
    queue.sync().unwrap();
    drop(queue);
    std::fs::write(dir.0.join("00000000000000000300"), [1; 60]).unwrap();
    let disk = Arc::new(AuditDisk::default());
    let audit = Arc::clone(&disk.audit);
    let options = QueueOptions { read_only: true, ..options(5, 2, 40) };
    let queue = ConsumeQueue::open(disk, &dir.0, "t", 0, &options).unwrap();
    fill(&queue, 12..500);
    queue.flush().unwrap();
    assert_eq!(read_all(&queue), (0..500).map(entry).collect::<Vec<_>>());
    assert!(matches!(queue.sync(), Err(Error::ReadOnly)));
    assert!(matches!(queue.truncate(0), Err(Error::ReadOnly)));
    assert!(matches!(queue.remove_expired(), Err(Error::ReadOnly)));
    assert_eq!(Audit::count(&audit.changes), 0);
}

#[derive(Debug, Clone)]
enum Op {
    Append,
    Duplicate(u64),
    Gap(u64),
    Read(u64, usize),
    Flush,
    Sync,
    Reopen,
    Truncate(u64),
    CorrectMin(u64),
    RemoveExpired,
    ByTime(i64),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        12 => Just(Op::Append),
        1 => (0u64..9).prop_map(Op::Duplicate),
        2 => (1u64..12).prop_map(Op::Gap),
        4 => (0u64..12, 0usize..20).prop_map(|(back, count)| Op::Read(back, count)),
        1 => Just(Op::Flush),
        1 => Just(Op::Sync),
        1 => Just(Op::Reopen),
        1 => (0u64..8).prop_map(Op::Truncate),
        1 => (0u64..12).prop_map(Op::CorrectMin),
        1 => Just(Op::RemoveExpired),
        2 => (-40i64..20).prop_map(Op::ByTime),
    ]
}

/// A queue and what it should hold.
struct Model {
    dir: TempDir,
    disk: Arc<AuditDisk>,
    options: QueueOptions,
    queue: Option<ConsumeQueue>,
    entries: BTreeMap<u64, QueueEntry>,
    min: u64,
    max: u64,
    /// Number of the next entry ever made.
    made: u64,
}

impl Model {
    fn queue(&self) -> &ConsumeQueue {
        self.queue.as_ref().unwrap()
    }

    /// Entries share store times in threes.
    fn time(entry: &QueueEntry) -> i64 {
        (entry.physical_offset / 300) as i64
    }

    fn live(&self) -> Vec<QueueEntry> {
        self.entries.range(self.min..self.max).map(|(_, entry)| *entry).collect()
    }

    fn append(&mut self, gap: u64) {
        let at = self.max + gap;
        self.made += gap + 1;
        let new = entry(self.made);
        let expected = if gap == 0 { QueueAppend::New } else { QueueAppend::Gap { missing: gap } };
        assert_eq!(self.queue().append(at, new).unwrap(), expected);
        if gap > 0 && self.min == self.max {
            self.min = at;
        }
        for blank in self.max.max(self.min)..at {
            self.entries.insert(blank, QueueEntry::BLANK);
        }
        self.entries.insert(at, new);
        self.max = at + 1;
    }

    fn reopen(&mut self) {
        self.queue().flush().unwrap();
        self.queue = None;
        assert_eq!(
            *self.disk.audit.lost.lock().drain(..).collect::<Vec<_>>(),
            Vec::<PathBuf>::new()
        );
    }

    fn by_time(&self, timestamp: i64) {
        let real: Vec<_> =
            self.entries.range(self.min..self.max).filter(|(_, e)| !e.is_blank()).collect();
        let lower =
            real.iter().find(|(_, e)| Self::time(e) >= timestamp).map_or(self.max, |(at, _)| **at);
        let upper = real
            .iter()
            .rev()
            .find(|(_, e)| Self::time(e) <= timestamp)
            .map_or(self.min, |(at, _)| **at);
        for (bound, expected) in [(TimeBound::Lower, lower), (TimeBound::Upper, upper)] {
            let found =
                self.queue().offset_by_time(timestamp, bound, &|e| Ok(Self::time(&e))).unwrap();
            assert_eq!(found, expected, "{bound:?} {timestamp}");
        }
    }

    fn run(&mut self, op: Op) {
        match op {
            Op::Append => self.append(0),
            Op::Gap(gap) => self.append(gap),
            Op::Duplicate(back) if back < self.max => {
                let at = self.max - 1 - back;
                assert_eq!(
                    self.queue().append(at, entry(1 << 30)).unwrap(),
                    QueueAppend::Duplicate
                );
            }
            Op::Duplicate(_) => {}
            Op::Read(back, count) => {
                let from = self.max.saturating_sub(back);
                let mut out = Vec::new();
                self.queue().read(from, count, &mut out).unwrap();
                let to = self.max.min(from + count as u64);
                let expected: Vec<_> = if from < self.min {
                    vec![]
                } else {
                    self.entries.range(from..to.max(from)).map(|(_, e)| *e).collect()
                };
                assert_eq!(out, expected);
            }
            Op::Flush => self.queue().flush().unwrap(),
            Op::Sync => {
                self.queue().sync().unwrap();
                assert_eq!(self.disk.audit.unsynced(&self.dir.0), Vec::<PathBuf>::new());
            }
            Op::Reopen => {
                self.queue().sync().unwrap();
                self.reopen();
                let disk: Arc<dyn Disk> = Arc::<AuditDisk>::clone(&self.disk);
                let queue =
                    ConsumeQueue::open(disk, &self.dir.0.join("a/b"), "t", 0, &self.options)
                        .unwrap();
                assert_eq!(queue.take_repairs(), []);
                if self.min == self.max && queue.max_offset() == 0 {
                    // Nothing on disk told of the end.
                    (self.min, self.max) = (0, 0);
                }
                // The first offset is the log's to know.
                let first = self.entries.range(self.min..self.max).find(|(_, e)| !e.is_blank());
                queue
                    .correct_min_offset(first.map_or(u64::MAX >> 1, |(_, e)| e.physical_offset))
                    .unwrap();
                self.min = first.map_or(self.max, |(at, _)| *at);
                self.queue = Some(queue);
            }
            Op::Truncate(back) => {
                let to = self.max.saturating_sub(back);
                self.queue().truncate(to).unwrap();
                (self.min, self.max) = (self.min.min(to), to);
            }
            Op::CorrectMin(back) => {
                let log_min = entry(self.made.saturating_sub(back)).physical_offset;
                self.queue().correct_min_offset(log_min).unwrap();
                let mut live = self.entries.range(self.min..self.max);
                let first = live.find(|(_, e)| !e.is_blank() && e.physical_offset >= log_min);
                let first = first.map_or(self.max, |(at, _)| *at);
                self.min = first;
            }
            Op::RemoveExpired => {
                self.queue().remove_expired().unwrap();
            }
            Op::ByTime(back) => self.by_time((self.made as i64) / 3 + back),
        }
        assert_eq!((self.queue().min_offset(), self.queue().max_offset()), (self.min, self.max));
        assert_eq!(read_all(self.queue()), self.live());
        assert!(Audit::count(&self.disk.audit.open_files) <= self.options.open_files);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn a_queue_is_its_model(
        slots in 1u64..6,
        open_files in 1usize..4,
        tail_size in 1usize..100,
        hurried: bool,
        ops in prop::collection::vec(op(), 1..80),
    ) {
        let dir = TempDir::new("model");
        let tail_memory = if hurried { 0 } else { 1 << 20 };
        let options = QueueOptions { tail_memory, ..options(slots, open_files, tail_size) };
        let disk = Arc::new(AuditDisk::default());
        let shared: Arc<dyn Disk> = Arc::<AuditDisk>::clone(&disk);
        let queue = ConsumeQueue::open(shared, &dir.0.join("a/b"), "t", 0, &options).unwrap();
        let entries = BTreeMap::new();
        let mut model = Model { dir, disk, options, queue: Some(queue), entries, min: 0, max: 0, made: 0 };
        for op in ops {
            model.run(op);
        }
    }
}
