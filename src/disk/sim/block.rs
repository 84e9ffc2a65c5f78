//! The page cache of one file: memory that regions point into.
#![allow(
    unsafe_code,
    reason = "owns the memory that regions of the simulated disk hand out as slices"
)]

use crate::disk::region::Published;
use parking_lot::Mutex;
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

/// What the simulated device writes in one piece.
pub(super) const SECTOR: usize = 512;
/// What the simulated file system allocates in one piece.
pub(super) const PAGE: usize = 4096;
/// The alignment up to which the allocator can ask the system for zero pages without touching them.
const CHEAP_ALIGN: usize = 16;

/// Page-aligned bytes, all initialised.
///
/// Every write takes `readers` and changes nothing below the published lengths in it, and published
/// lengths only rise under that lock. So no byte that a region may lend out is ever written, whatever
/// the callers do.
pub(super) struct Block {
    base: NonNull<u8>,
    len: usize,
    allocation: NonNull<u8>,
    layout: Layout,
    /// The published lengths of all descriptors that mapped this block.
    readers: Mutex<Vec<Weak<Published>>>,
    mapped_writable: AtomicBool,
}

// SAFETY: the memory is owned by the block and reached through raw pointers alone: by the methods
// below under `readers`, and by slices over published bytes, which are never written (see above).
unsafe impl Send for Block {}
// SAFETY: as above.
unsafe impl Sync for Block {}

/// A write would have changed bytes that a region has published.
#[derive(Debug)]
pub(super) struct PublishedBytes;

impl Block {
    /// At least `len` zero bytes, in whole pages.
    pub(super) fn zeroed(len: usize) -> Self {
        let len = len.max(1).next_multiple_of(PAGE);
        // One page more than asked, and the alignment made by hand: an allocator asked for page
        // alignment clears the memory itself, all 64 MiB of a segment of which a test uses little.
        let Ok(layout) = Layout::from_size_align(len + PAGE, CHEAP_ALIGN) else {
            panic!("a file of {len} bytes does not fit into memory");
        };
        // SAFETY: the layout's size is at least one page, so not zero.
        let raw = unsafe { alloc_zeroed(layout) };
        let Some(allocation) = NonNull::new(raw) else { handle_alloc_error(layout) };
        let address = allocation.addr().get();
        let padding = address.next_multiple_of(PAGE) - address;
        // SAFETY: `padding` is less than a page, and the allocation is a page longer than `len`.
        let base = unsafe { allocation.add(padding) };
        Self {
            base,
            len,
            allocation,
            layout,
            readers: Mutex::default(),
            mapped_writable: AtomicBool::new(false),
        }
    }

    pub(super) fn base(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Whether a region that can store was ever mapped from it.
    pub(super) fn mapped_writable(&self) -> bool {
        self.mapped_writable.load(Ordering::Relaxed)
    }

    /// Notes a descriptor whose regions point here.
    pub(super) fn add_reader(&self, published: &Arc<Published>, writable: bool) {
        let mut readers = self.readers.lock();
        readers.retain(|reader| reader.strong_count() > 0);
        readers.push(Arc::downgrade(published));
        if writable {
            self.mapped_writable.store(true, Ordering::Relaxed);
        }
    }

    /// Forgets descriptors: nobody but the caller knows the block any more.
    pub(super) fn clear_readers(&mut self) {
        self.readers.get_mut().clear();
        *self.mapped_writable.get_mut() = false;
    }

    /// Where writable bytes begin.
    pub(super) fn published(&self) -> usize {
        highest(&self.readers.lock())
    }

    pub(super) fn read(&self, at: usize, into: &mut [u8]) {
        assert!(at <= self.len && into.len() <= self.len - at, "read outside the block");
        let _no_writes = self.readers.lock();
        // SAFETY: the source is inside the allocation (checked above) and initialised; nobody writes
        // to it while the lock is held. `into` is an exclusive slice, so it cannot overlap memory
        // over which no exclusive slice ever exists.
        unsafe {
            std::ptr::copy_nonoverlapping(self.base.as_ptr().add(at), into.as_mut_ptr(), into.len())
        }
    }

    pub(super) fn write(&self, at: usize, bytes: &[u8]) -> Result<(), PublishedBytes> {
        assert!(at <= self.len && bytes.len() <= self.len - at, "write outside the block");
        let readers = self.readers.lock();
        // Recovery writes once more what a failed sync may have left in memory alone.
        let (again, new) = bytes.split_at(highest(&readers).saturating_sub(at).min(bytes.len()));
        // SAFETY: inside the allocation (checked above) and initialised; nobody writes to it while the
        // lock is held.
        let there = unsafe { std::slice::from_raw_parts(self.base.as_ptr().add(at), again.len()) };
        if there != again {
            return Err(PublishedBytes);
        }
        let at = at + again.len();
        // SAFETY: the destination is inside the allocation (checked above). If it is not empty, it lies at
        // or above every published length, which cannot rise while the lock is held, so no slice covers it,
        // and `there` is not used any more; other writes need the lock. `bytes` is a live slice, so it lies
        // elsewhere or below `at`.
        unsafe {
            std::ptr::copy_nonoverlapping(new.as_ptr(), self.base.as_ptr().add(at), new.len())
        }
        Ok(())
    }

    /// Runs `copy`, which writes to `range` or, where that is empty, raises a published length.
    pub(super) fn store(&self, range: Range<usize>, copy: &mut dyn FnMut()) {
        let readers = self.readers.lock();
        assert!(range.is_empty() || range.start >= highest(&readers), "store into published bytes");
        copy();
    }

    /// Takes over the bytes of `other` in each of `ranges`.
    pub(super) fn copy_from(&mut self, other: &Block, ranges: impl Iterator<Item = Range<usize>>) {
        let _no_writes = other.readers.lock();
        for range in ranges {
            assert!(
                range.start <= range.end && range.end <= self.len.min(other.len),
                "copy outside a block"
            );
            // SAFETY: both sides are inside their allocations, which are two. Nobody writes to the
            // source while its lock is held; `&mut self` says that nobody else knows the destination.
            unsafe {
                std::ptr::copy_nonoverlapping(
                    other.base.as_ptr().add(range.start),
                    self.base.as_ptr().add(range.start),
                    range.len(),
                );
            }
        }
    }

    /// Takes over the descriptors of a block that this one replaces while no region points into it.
    pub(super) fn inherit_readers(&mut self, other: &Block) {
        self.readers.get_mut().clone_from(&other.readers.lock());
    }
}

fn highest(readers: &[Weak<Published>]) -> usize {
    readers.iter().filter_map(Weak::upgrade).map(|reader| reader.get() as usize).max().unwrap_or(0)
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: allocated in `zeroed` with this layout; regions hold an Arc of the block, so
        // nothing points into it any more.
        unsafe { dealloc(self.allocation.as_ptr(), self.layout) }
    }
}
