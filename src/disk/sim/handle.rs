//! What the simulated disk hands out: open files, the memory of regions, locks.

use super::block::{Block, PAGE};
use super::fault::{SimCall, SyncFailure};
use super::file::{FileState, Inode};
use super::world::{Machine, Verdict, World, os};
use crate::disk::region::{Memory, Published};
use crate::disk::{DiskFile, MapAccess, OpenAccess, Region, SyncMethod};
use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// One open file.
pub(super) struct SimFile {
    handle: Handle,
    access: OpenAccess,
    published: Arc<Published>,
    mapped: AtomicBool,
}

/// One count in the handles of a file.
struct Handle {
    machine: Arc<Machine>,
    generation: u64,
    inode: Arc<Inode>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.machine.release(&self.inode, self.generation);
    }
}

impl SimFile {
    pub(super) fn open(
        machine: &Arc<Machine>,
        world: &World,
        inode: Arc<Inode>,
        access: OpenAccess,
    ) -> Arc<dyn DiskFile> {
        inode.state().handles += 1;
        Arc::new(Self {
            handle: Handle { machine: machine.clone(), generation: world.generation, inode },
            access,
            published: Arc::default(),
            mapped: AtomicBool::new(false),
        })
    }

    /// The error of a call that its caller should not have made; the dead do not hear of it.
    fn misused(&self, error: io::Error) -> io::Result<()> {
        self.handle.machine.lock().check_alive(self.handle.generation).and(Err(error))
    }

    fn check_writable(&self) -> io::Result<()> {
        if self.access == OpenAccess::Write { Ok(()) } else { self.misused(os(libc::EBADF)) }
    }

    fn enter(&self, call: SimCall) -> io::Result<(parking_lot::MutexGuard<'_, World>, Verdict)> {
        let Handle { machine, generation, inode } = &self.handle;
        // Under the lock: a rename comes before the whole call or after it.
        let world = machine.lock();
        machine.enter(world, *generation, call, &inode.name())
    }

    /// A call that takes hold of `range` as a whole; in the middle of it, of a part from its start.
    fn take_range(
        &self,
        call: SimCall,
        range: Range<u64>,
        take: impl FnOnce(&mut FileState, Range<u64>) -> io::Result<()>,
    ) -> io::Result<()> {
        self.check_writable()?;
        let (mut world, verdict) = self.enter(call)?;
        let mut part = range.clone();
        match &verdict {
            Verdict::Fail(fault) => return Err(fault.error()),
            Verdict::Middle => {
                part.end =
                    range.start + world.rng.below((range.end - range.start) as usize + 1) as u64
            }
            Verdict::Go => {}
        }
        let mut state = self.handle.inode.state();
        let room = state.check_unpublished(range.start).and_then(|()| state.make_room(range.end));
        let taken = room.and_then(|()| {
            if state.holes(&part) > world.free_pages() {
                return Err(os(libc::ENOSPC));
            }
            world.charged(&mut state, |state| take(state, part))
        });
        drop(state);
        if let Verdict::Middle = verdict {
            Err(self.handle.machine.fall(&mut world))
        } else {
            taken
        }
    }
}

impl fmt::Debug for SimFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimFile")
            .field("path", &self.handle.inode.name().path)
            .field("access", &self.access)
            .finish_non_exhaustive()
    }
}

impl DiskFile for SimFile {
    fn len(&self) -> u64 {
        self.handle.inode.state().len()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let (mut world, verdict) = self.enter(SimCall::Read)?;
        if let Verdict::Fail(fault) = verdict {
            return Err(fault.error());
        }
        let got = self.handle.inode.state().read(buf, offset);
        world.stats.reads += 1;
        world.stats.read_bytes += got as u64;
        Ok(got)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.check_writable()?;
        let (mut world, verdict) = self.enter(SimCall::Write)?;
        let mut state = self.handle.inode.state();
        let mut allowed = bytes.len();
        match &verdict {
            Verdict::Go => {}
            Verdict::Middle => allowed = world.rng.below(bytes.len() + 1),
            Verdict::Fail(fault) => allowed = fault.short.min(bytes.len()),
        }
        let end = offset.saturating_add(bytes.len() as u64);
        // Regions of other descriptors bear with what changes nothing.
        let own = offset < self.published.get();
        let room = if own { state.check_unpublished(offset) } else { state.make_room(end) };
        let written = room.and_then(|()| {
            let fitting = state.fitting(offset as usize, allowed, world.free_pages());
            world.charged(&mut state, |state| state.write(offset as usize, &bytes[..fitting]))?;
            world.stats.writes += 1;
            world.stats.written_bytes += fitting as u64;
            let name = self.handle.inode.name();
            name.written_bytes.fetch_add(fitting as u64, Ordering::Relaxed);
            if fitting < allowed { Err(os(libc::ENOSPC)) } else { Ok(()) }
        });
        drop(state);
        match verdict {
            Verdict::Go => written,
            Verdict::Middle => Err(self.handle.machine.fall(&mut world)),
            Verdict::Fail(fault) => Err(fault.error()),
        }
    }

    fn sync(&self, method: SyncMethod) -> io::Result<()> {
        if method == SyncMethod::Msync && !self.mapped.load(Ordering::Relaxed) {
            return self
                .misused(io::Error::new(io::ErrorKind::InvalidInput, "msync needs a mapped file"));
        }
        let (mut world, verdict) = self.enter(SimCall::Sync)?;
        world.count_sync(method);
        self.handle.inode.name().syncs.fetch_add(1, Ordering::Relaxed);
        let mut state = self.handle.inode.state();
        let mut fault = match verdict {
            Verdict::Go => None,
            Verdict::Fail(fault) => Some((fault.sync, fault.error())),
            Verdict::Middle => {
                // Left under way: the cut decides how much of it came through.
                state.begin_sync();
                drop(state);
                return Err(self.handle.machine.fall(&mut world));
            }
        };
        if std::mem::take(&mut state.late_error) {
            fault = Some((SyncFailure::KeepNew, os(libc::EIO)));
        }
        let takes_time = world.hang || !world.latency.is_zero();
        if !takes_time && fault.is_none() && !state.is_syncing() {
            state.sync();
            return Ok(());
        }
        let id = state.begin_sync();
        if takes_time {
            drop(state);
            world = self.handle.machine.spend_sync(world, self.handle.generation)?;
            state = self.handle.inode.state();
        }
        let result = match fault {
            None => {
                state.finish_sync(id);
                Ok(())
            }
            Some((SyncFailure::KeepNew, error)) => {
                state.fail_sync(id);
                Err(error)
            }
            Some((SyncFailure::Revert, error)) => {
                state.revert_sync(id);
                Err(error)
            }
            Some((SyncFailure::Late, _)) => {
                state.fail_sync(id);
                state.late_error = true;
                Ok(())
            }
        };
        // Held to the end: a power cut comes before or after the outcome of a sync, not within.
        drop(world);
        result
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        let len = len.max(self.len());
        // What is published was written, or will never be.
        let from = self.handle.inode.state().published();
        self.take_range(SimCall::Allocate, from..len, |state, range| {
            state.reserve(range.clone());
            state.extend(range.end);
            Ok(())
        })
    }

    fn prewrite(&self, range: Range<u64>) -> io::Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        self.take_range(SimCall::Prewrite, range, FileState::write_zeros)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        match self.enter(SimCall::NextData)? {
            (_, Verdict::Fail(fault)) => Err(fault.error()),
            (_world, _) => Ok(self.handle.inode.state().next_data(offset)),
        }
    }

    fn map(&self, access: MapAccess) -> io::Result<Region> {
        let (world, verdict) = self.enter(SimCall::Map)?;
        if let Verdict::Fail(fault) = verdict {
            return Err(fault.error());
        }
        let writable = access == MapAccess::Write;
        if writable && self.access == OpenAccess::Read {
            return Err(os(libc::EACCES));
        }
        if self.mapped.swap(true, Ordering::Relaxed) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "mapped before"));
        }
        let (machine, inode) = (self.handle.machine.clone(), self.handle.inode.clone());
        let mut state = inode.state();
        let (block, len) = (state.map(&self.published, writable), state.len() as usize);
        drop(state);
        let handle = Handle { machine, generation: world.generation, inode };
        drop(world);
        let memory = Box::new(SimMemory { handle, block, len });
        Region::new(memory, self.published.clone(), writable)
            .ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }
}

/// A mapping of a file.
struct SimMemory {
    handle: Handle,
    block: Arc<Block>,
    len: usize,
}

impl Memory for SimMemory {
    fn base(&self) -> *mut u8 {
        self.block.base()
    }

    fn len(&self) -> usize {
        self.len
    }

    fn store(&self, range: Range<usize>, copy: &mut dyn FnMut()) {
        let mut state = self.handle.inode.state();
        // A region that outlived its process writes into memory that is no file's any more.
        let is_file = state.generation == self.handle.generation && state.is_backed_by(&self.block);
        if is_file && !range.is_empty() {
            if let Some(page) = state.first_hole(range.clone()) {
                panic!(
                    "would be SIGBUS: a store to offset {}, which was never reserved",
                    page * PAGE
                );
            }
            let published = self.block.published();
            assert!(range.start >= published, "store into published bytes");
            state.mark(range.clone());
            let machine = &self.handle.machine;
            machine.stores.fetch_add(1, Ordering::Relaxed);
            machine.stored_bytes.fetch_add(range.len() as u64, Ordering::Relaxed);
        }
        self.block.store(range, copy);
    }

    fn observes_stores(&self) -> bool {
        true
    }

    fn prefault(&self, _range: Range<usize>) -> io::Result<()> {
        Ok(())
    }
}

/// A lock of the simulated process.
pub(super) struct SimLock {
    machine: Arc<Machine>,
    generation: u64,
    inode: Arc<Inode>,
}

impl SimLock {
    pub(super) fn new(machine: Arc<Machine>, generation: u64, inode: Arc<Inode>) -> Self {
        Self { machine, generation, inode }
    }
}

impl Drop for SimLock {
    fn drop(&mut self) {
        let _world = self.machine.lock();
        let mut state = self.inode.state();
        if state.generation == self.generation {
            state.holder = None;
        }
    }
}
