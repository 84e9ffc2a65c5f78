//! Mapped bytes, and the one rule that makes reading them safe: what is published never changes.
#![allow(unsafe_code, reason = "the one place that turns mapped memory into slices")]

use std::fmt;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

const CACHE_LINE: usize = 64;
/// Of what is further away the processor foresees the use by itself.
const PREFETCH_MAX: u64 = 4096;

/// Asks for the cache line at `address`. A hint: no address is wrong.
#[inline]
fn prefetch(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: part of the baseline of x86-64; it neither reads nor faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// The published length of one file, shared by its descriptor and its region: the region hands out
/// slices below it, the descriptor refuses writes below it.
#[derive(Debug, Default)]
pub(super) struct Published(AtomicU64);

impl Published {
    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }
}

/// What keeps the memory of a region alive, and who wants to know of stores to it.
pub(super) trait Memory: Send + Sync {
    fn base(&self) -> *mut u8;
    fn len(&self) -> usize;
    /// Called around a store through a `RegionWriter`, and with an empty range around a change of
    /// the published length; the real disk needs no such call.
    fn store(&self, range: Range<usize>, copy: &mut dyn FnMut());
    fn observes_stores(&self) -> bool;
    fn prefault(&self, range: Range<usize>) -> std::io::Result<()>;
}

/// A file mapped into memory.
///
/// A prefix of it is *published*: those bytes never change again, as long as the file is written only
/// through the handle it was mapped from, and may be borrowed as slices. The rest belongs to the one
/// `RegionWriter`, or to whoever writes the file. Cloning is cheap; the mapping goes when its last
/// clone goes, whatever happened to the file's name.
#[derive(Clone)]
pub struct Region {
    shared: Arc<Shared>,
}

struct Shared {
    base: NonNull<u8>,
    len: usize,
    published: Arc<Published>,
    has_writer: AtomicBool,
    observed: bool,
    memory: Box<dyn Memory>,
}

// SAFETY: `base` points into `memory`, which is Send + Sync and lives as long as `Shared`. Bytes
// below `published` are never written (RegionWriter and the file's descriptor check it), so shared
// reads of them do not race; bytes above are written by the single RegionWriter alone and read by
// nobody through this type.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Region {
    /// `None` if the memory has no address. Only a `writable` region hands out a writer.
    pub(super) fn new(
        memory: Box<dyn Memory>,
        published: Arc<Published>,
        writable: bool,
    ) -> Option<Self> {
        let base = NonNull::new(memory.base())?;
        let len = memory.len();
        let (has_writer, observed) = (AtomicBool::new(!writable), memory.observes_stores());
        let shared = Shared { base, len, published, has_writer, observed, memory };
        Some(Self { shared: Arc::new(shared) })
    }

    /// Length of the mapping in bytes.
    pub fn len(&self) -> u64 {
        self.shared.len as u64
    }

    /// Whether nothing is mapped.
    pub fn is_empty(&self) -> bool {
        self.shared.len == 0
    }

    /// How many bytes from the start are published.
    pub fn published(&self) -> u64 {
        self.shared.published.get()
    }

    /// Publishes the bytes before `end`; never takes back what was published.
    ///
    /// From here on [`bytes`](Self::bytes) hands them out and every way to change them is refused.
    /// The caller has written them, and no write to them is under way.
    pub(crate) fn publish(&self, end: u64) {
        assert!(end <= self.len(), "published beyond the mapping");
        let shared = &*self.shared;
        let mut raise = || {
            // Release: a reader that sees the new length sees the bytes below it.
            shared.published.0.fetch_max(end, Ordering::Release);
        };
        let at = end as usize;
        if shared.observed { shared.memory.store(at..at, &mut raise) } else { raise() }
    }

    /// The bytes of `range`; `None` unless all of them are published.
    pub fn bytes(&self, range: Range<u64>) -> Option<&[u8]> {
        if range.start > range.end || range.end > self.published() {
            return None;
        }
        // SAFETY: the range lies below `published`, which is at most the mapping's length, so it is
        // inside the allocation that `self.shared` keeps alive for the borrow. Published bytes are
        // initialised and never written again: `RegionWriter::copy_in`, `DiskFile::write_at` and
        // `DiskFile::prewrite` refuse them. Truncation by a foreign process is excluded by the
        // store's lock and named in the crate's assumptions.
        Some(unsafe {
            std::slice::from_raw_parts(
                self.shared.base.as_ptr().add(range.start as usize),
                (range.end - range.start) as usize,
            )
        })
    }

    /// What is published now.
    pub(crate) fn prefix(&self) -> Prefix {
        Prefix { region: self.clone(), len: self.published() }
    }

    /// How many clones of this region are alive, this one and its writer among them.
    pub fn holders(&self) -> usize {
        Arc::strong_count(&self.shared)
    }

    /// The one writer of this mapping; `None` if it was taken before or the mapping is for reading.
    pub(crate) fn writer(&self) -> Option<RegionWriter> {
        let taken = self.shared.has_writer.swap(true, Ordering::AcqRel);
        (!taken).then(|| RegionWriter { region: self.clone() })
    }

    /// Touches the pages of `range` so that later stores do not fault; changes no byte.
    pub(crate) fn prefault(&self, range: Range<u64>) -> std::io::Result<()> {
        let end = range.end.min(self.len());
        if range.start >= end {
            return Ok(());
        }
        self.shared.memory.prefault(range.start as usize..end as usize)
    }
}

/// The published bytes of a [`Region`] as of some moment: reading them looks at nothing that a
/// writer still changes, not even at how far it has come.
#[derive(Debug, Clone)]
pub(crate) struct Prefix {
    region: Region,
    len: u64,
}

impl Prefix {
    /// The bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: `len` was published when this was made, and so for ever: as in `Region::bytes`.
        unsafe { std::slice::from_raw_parts(self.region.shared.base.as_ptr(), self.len as usize) }
    }

    /// The region, of which more may be published by now.
    pub(crate) fn region(&self) -> &Region {
        &self.region
    }

    /// Takes in what was published meanwhile.
    pub(crate) fn refresh(&mut self) {
        self.len = self.region.published();
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Region")
            .field("len", &self.len())
            .field("published", &self.published())
            .finish()
    }
}

/// The right to store into the unpublished part of a [`Region`] that was mapped for writing.
#[derive(Debug)]
pub(crate) struct RegionWriter {
    region: Region,
}

impl RegionWriter {
    /// Publishes the bytes before `end`, see [`Region::publish`].
    pub(crate) fn publish(&self, end: u64) {
        self.region.publish(end);
    }

    /// Brings the memory of `range` near, as far as that pays, for a store that is likely to come: it
    /// would have to wait for each line otherwise.
    #[inline]
    pub(crate) fn prefetch(&self, range: Range<u64>) {
        let end = range.end.min(range.start.saturating_add(PREFETCH_MAX)).min(self.region.len());
        for line in (range.start..end).step_by(CACHE_LINE) {
            // SAFETY: `line` is below the length of the mapping.
            prefetch(unsafe { self.region.shared.base.as_ptr().add(line as usize) });
        }
    }

    /// Copies `bytes` to `offset`.
    ///
    /// # Panics
    /// If the range is not inside the mapping, or not above what is published: both would be errors
    /// of the caller that end in other people's memory.
    pub(crate) fn copy_in(&mut self, offset: u64, bytes: &[u8]) {
        let shared = &*self.region.shared;
        let at = offset as usize;
        assert!(at <= shared.len && bytes.len() <= shared.len - at, "store outside the mapping");
        assert!(offset >= shared.published.0.load(Ordering::Relaxed), "store into published bytes");
        let mut copy = || {
            // SAFETY: the destination is inside the mapping (checked above), which was mapped
            // writable (only such regions hand out writers). It lies above `published`, so no slice
            // covers it, and this is the only writer (`has_writer`, `&mut self`). `bytes` is a live
            // slice elsewhere: it cannot overlap memory that no slice covers.
            unsafe {
                std::ptr::copy_nonoverlapping(
                    bytes.as_ptr(),
                    shared.base.as_ptr().add(at),
                    bytes.len(),
                );
            }
        };
        if shared.observed { shared.memory.store(at..at + bytes.len(), &mut copy) } else { copy() }
    }
}
