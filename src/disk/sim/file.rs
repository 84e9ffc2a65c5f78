//! One simulated file: its page cache, and what the platter still holds instead.
//!
//! The platter is not a second image. For each sector that differs, the file remembers what the
//! platter holds (`undo`); a sync drops that memory, a power cut puts some of it back. So a sync and
//! a reboot cost as much as was written since the last one, however large the file is.

use super::bits::Bits;
use super::block::{Block, PAGE, PublishedBytes, SECTOR};
use super::cut::Dice;
use super::world::PathInfo;
use crate::disk::region::Published;
use parking_lot::{Mutex, MutexGuard};
use std::io;
use std::ops::Range;
use std::sync::Arc;

/// Longer files are a mistake of the test, not memory worth asking for.
const MAX_LEN: u64 = 1 << 36;
const SECTORS_PER_PAGE: usize = PAGE / SECTOR;
const ZEROS: [u8; SECTOR] = [0; SECTOR];

/// A file, whatever its names.
pub(super) struct Inode {
    state: Mutex<FileState>,
    /// What calls on it are known by: the name that it was given or opened under last. It has another
    /// one only where a power cut came into a rename.
    name: Mutex<Arc<PathInfo>>,
}

impl Inode {
    pub(super) fn new(state: FileState, name: &Arc<PathInfo>) -> Arc<Self> {
        Arc::new(Self { state: Mutex::new(state), name: Mutex::new(name.clone()) })
    }

    pub(super) fn state(&self) -> MutexGuard<'_, FileState> {
        self.state.lock()
    }

    pub(super) fn name(&self) -> Arc<PathInfo> {
        self.name.lock().clone()
    }

    pub(super) fn set_name(&self, name: &Arc<PathInfo>) {
        *self.name.lock() = name.clone();
    }
}

/// A sector whose cached bytes are not those on the platter.
struct Undo {
    sector: usize,
    /// What the platter holds; `None` is zeros.
    platter: Option<Box<[u8; SECTOR]>>,
}

/// A sync under way: the bytes it found dirty when it began. What is written meanwhile is not its
/// business.
struct Flight {
    id: u64,
    sectors: Vec<usize>,
    bytes: Vec<u8>,
    len: Option<u64>,
}

/// Who holds the lock on a file.
#[derive(Debug, Clone, Copy)]
pub(super) enum Holder {
    /// A handle of the simulated process.
    Own,
    /// Another process.
    Foreign(u32),
}

pub(super) struct FileState {
    block: Arc<Block>,
    len: u64,
    platter_len: u64,
    /// Whether the next sync writes the length.
    len_dirty: bool,
    /// Sectors that may hold a byte other than zero.
    written: Bits,
    /// Pages that were reserved.
    reserved: Bits,
    undo: Vec<Undo>,
    /// The sectors in `undo`.
    stale: Bits,
    /// Sectors in `undo` that the next sync will not write: a failed sync marked them clean, or a
    /// sync under way has them.
    clean: Bits,
    clean_count: usize,
    flights: Vec<Flight>,
    next_flight: u64,
    /// Sectors that `SyncFailure::Revert` could not change because a region had published them.
    reverts: Vec<usize>,
    /// Whether the next sync reports the failure of an earlier one.
    pub(super) late_error: bool,
    /// Pages with blocks behind them.
    pub(super) pages: u64,
    /// Names.
    pub(super) links: u32,
    /// Descriptors and regions of this incarnation.
    pub(super) handles: u32,
    pub(super) generation: u64,
    pub(super) holder: Option<Holder>,
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, what)
}

fn sectors(range: Range<usize>) -> Range<usize> {
    range.start / SECTOR..range.end.div_ceil(SECTOR)
}

impl FileState {
    /// An empty file of `len` zeros, none of which is durable.
    pub(super) fn new(len: u64, generation: u64) -> io::Result<Self> {
        if len > MAX_LEN {
            return Err(io::Error::from_raw_os_error(libc::EFBIG));
        }
        Ok(Self {
            block: Arc::new(Block::zeroed(len as usize)),
            len,
            platter_len: 0,
            len_dirty: len > 0,
            written: Bits::default(),
            reserved: Bits::default(),
            undo: Vec::new(),
            stale: Bits::default(),
            clean: Bits::default(),
            clean_count: 0,
            flights: Vec::new(),
            next_flight: 0,
            reverts: Vec::new(),
            late_error: false,
            pages: 0,
            links: 0,
            handles: 0,
            generation,
            holder: None,
        })
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    pub(super) fn read(&self, into: &mut [u8], offset: u64) -> usize {
        let available = self.len.saturating_sub(offset).min(into.len() as u64) as usize;
        if available > 0 {
            self.block.read(offset as usize, &mut into[..available]);
        }
        available
    }

    /// The bytes as the next process would read them.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len as usize];
        for run in self.written.runs() {
            let (start, end) = (run.start * SECTOR, (run.end * SECTOR).min(bytes.len()));
            if start < end {
                self.block.read(start, &mut bytes[start..end]);
            }
        }
        bytes
    }

    /// The bytes as the platter holds them, so those that survive whatever the cut.
    pub(super) fn platter_bytes(&self) -> Vec<u8> {
        let mut bytes = self.bytes();
        for undo in &self.undo {
            let (start, end) =
                (undo.sector * SECTOR, ((undo.sector + 1) * SECTOR).min(bytes.len()));
            if start < end {
                let platter = undo.platter.as_deref().unwrap_or(&ZEROS);
                bytes[start..end].copy_from_slice(&platter[..end - start]);
            }
        }
        bytes.truncate(self.platter_len as usize);
        bytes
    }

    pub(super) fn next_data(&self, offset: u64) -> Option<u64> {
        let sector = self.written.next(usize::try_from(offset).ok()? / SECTOR)?;
        let found = offset.max((sector * SECTOR) as u64);
        (found < self.len).then_some(found)
    }

    fn is_backed(&self, page: usize) -> bool {
        self.written.byte(page) != 0 || self.reserved.get(page)
    }

    /// The first page of the range that has no blocks.
    pub(super) fn first_hole(&self, range: Range<usize>) -> Option<usize> {
        (range.start / PAGE..range.end.div_ceil(PAGE)).find(|page| !self.is_backed(*page))
    }

    /// How many bytes of a write to `offset` find room, if `room` pages are free.
    pub(super) fn fitting(&self, offset: usize, len: usize, mut room: u64) -> usize {
        for page in offset / PAGE..(offset + len).div_ceil(PAGE) {
            if !self.is_backed(page) {
                if room == 0 {
                    return (page * PAGE).saturating_sub(offset);
                }
                room -= 1;
            }
        }
        len
    }

    /// How many pages of the range have no blocks.
    pub(super) fn holes(&self, range: &Range<u64>) -> u64 {
        let pages = range.start / PAGE as u64..range.end.div_ceil(PAGE as u64);
        pages.filter(|page| !self.is_backed(*page as usize)).count() as u64
    }

    /// Gives every page of the range blocks.
    pub(super) fn reserve(&mut self, range: Range<u64>) {
        self.pages += self.holes(&range);
        self.reserved.set_range(range.start as usize / PAGE..(range.end as usize).div_ceil(PAGE));
    }

    pub(super) fn published(&self) -> u64 {
        self.block.published() as u64
    }

    /// Refuses what would write where some region has published bytes.
    pub(super) fn check_unpublished(&self, start: u64) -> io::Result<()> {
        if start < self.published() { Err(invalid("published bytes never change")) } else { Ok(()) }
    }

    /// Checks that bytes may be written up to `end`, and makes the block that long.
    pub(super) fn make_room(&mut self, end: u64) -> io::Result<()> {
        if end > MAX_LEN {
            return Err(io::Error::from_raw_os_error(libc::EFBIG));
        }
        if end as usize > self.block.len() {
            if Arc::get_mut(&mut self.block).is_none() {
                return Err(invalid("a mapped file cannot grow on the simulated disk"));
            }
            let mut longer = self.copied_block((end as usize).max(self.block.len() * 2));
            longer.inherit_readers(&self.block);
            self.block = Arc::new(longer);
        }
        Ok(())
    }

    fn copied_block(&self, len: usize) -> Block {
        let mut copy = Block::zeroed(len);
        let end = self.block.len();
        copy.copy_from(
            &self.block,
            self.written.runs().map(|run| run.start * SECTOR..(run.end * SECTOR).min(end)),
        );
        copy
    }

    pub(super) fn extend(&mut self, len: u64) {
        if len > self.len {
            self.len = len;
            self.len_dirty = true;
        }
    }

    /// Writes into the page cache; room was made before.
    pub(super) fn write(&mut self, offset: usize, bytes: &[u8]) -> io::Result<()> {
        if !bytes.is_empty() {
            self.mark(offset..offset + bytes.len());
            let written = self.block.write(offset, bytes);
            written.map_err(|PublishedBytes| invalid("published bytes never change"))?;
            self.extend((offset + bytes.len()) as u64);
        }
        Ok(())
    }

    /// Makes the range read as zeros and gives it blocks; sectors that are zero already cost nothing.
    pub(super) fn write_zeros(&mut self, range: Range<u64>) -> io::Result<()> {
        let mut at = range.start;
        while let Some(data) = self.next_data(at).filter(|data| *data < range.end) {
            let end = range.end.min((data / SECTOR as u64 + 1) * SECTOR as u64);
            self.write(data as usize, &ZEROS[..(end - data) as usize])?;
            at = end;
        }
        self.reserve(range.clone());
        self.extend(range.end);
        Ok(())
    }

    /// Notes that the range is about to change: its sectors are dirty, and what the platter holds of
    /// them is remembered.
    pub(super) fn mark(&mut self, range: Range<usize>) {
        for sector in sectors(range) {
            if !self.stale.get(sector) {
                let platter = self.written.get(sector).then(|| {
                    let mut bytes = Box::new(ZEROS);
                    self.block.read(sector * SECTOR, &mut *bytes);
                    bytes
                });
                self.undo.push(Undo { sector, platter });
                self.stale.set(sector);
            } else if self.clean_count > 0 && self.clean.get(sector) {
                self.set_clean(sector, false);
            }
            if !self.written.get(sector) {
                self.pages += u64::from(!self.is_backed(sector / SECTORS_PER_PAGE));
                self.written.set(sector);
            }
        }
    }

    fn set_clean(&mut self, sector: usize, clean: bool) {
        if clean == self.clean.get(sector) {
            return;
        }
        if clean {
            self.clean.set(sector);
            self.clean_count += 1;
        } else {
            self.clean.clear(sector);
            self.clean_count -= 1;
        }
    }

    /// How many sectors a power cut would decide about.
    pub(super) fn unsynced(&self) -> usize {
        self.undo.len() - self.clean_count
    }

    /// Whether a sync is under way, which a second one has to take along.
    pub(super) fn is_syncing(&self) -> bool {
        !self.flights.is_empty()
    }

    /// A sync that takes no time, while no other is under way.
    pub(super) fn sync(&mut self) {
        if self.clean_count == 0 {
            for undo in self.undo.drain(..) {
                self.stale.clear(undo.sector);
            }
        } else {
            let (stale, clean) = (&mut self.stale, &self.clean);
            self.undo.retain(|undo| {
                let keep = clean.get(undo.sector);
                if !keep {
                    stale.clear(undo.sector);
                }
                keep
            });
        }
        if self.len_dirty {
            self.platter_len = self.len;
            self.len_dirty = false;
        }
    }

    /// The first half of a sync that takes time; returns what to hand to the second half.
    pub(super) fn begin_sync(&mut self) -> u64 {
        let mut sectors: Vec<usize> = self
            .undo
            .iter()
            .map(|undo| undo.sector)
            .filter(|sector| !self.clean.get(*sector))
            .collect();
        sectors.sort_unstable();
        let mut bytes = vec![0; sectors.len() * SECTOR];
        for (sector, into) in sectors.iter().zip(bytes.chunks_exact_mut(SECTOR)) {
            self.block.read(sector * SECTOR, into);
            self.set_clean(*sector, true);
        }
        let len = self.len_dirty.then_some(self.len);
        self.len_dirty = false;
        let id = self.next_flight;
        self.next_flight += 1;
        self.flights.push(Flight { id, sectors, bytes, len });
        id
    }

    /// The second half of a sync that succeeds. Earlier ones that are still under way land too: their
    /// bytes were written before this one began, which vouches for them.
    pub(super) fn finish_sync(&mut self, id: u64) {
        let later =
            self.flights.iter().position(|flight| flight.id > id).unwrap_or(self.flights.len());
        let landed: Vec<Flight> = self.flights.drain(..later).collect();
        for flight in &landed {
            self.land(flight, || true);
            self.platter_len = self.platter_len.max(flight.len.unwrap_or(0));
        }
        let mut live = ZEROS;
        let mut undo = std::mem::take(&mut self.undo);
        undo.retain(|undo| {
            if !self.clean.get(undo.sector) {
                return true;
            }
            self.block.read(undo.sector * SECTOR, &mut live);
            let differs = live != *undo.platter.as_deref().unwrap_or(&ZEROS);
            if !differs {
                self.stale.clear(undo.sector);
                self.set_clean(undo.sector, false);
            }
            differs
        });
        self.undo = undo;
    }

    /// Puts those sectors of `flight` that `chosen` picks onto the platter.
    fn land(&mut self, flight: &Flight, mut chosen: impl FnMut() -> bool) {
        for undo in &mut self.undo {
            if let Ok(index) = flight.sectors.binary_search(&undo.sector)
                && chosen()
            {
                let platter = undo.platter.get_or_insert_with(|| Box::new(ZEROS));
                platter.copy_from_slice(&flight.bytes[index * SECTOR..(index + 1) * SECTOR]);
            }
        }
    }

    /// The second half of a sync that fails: its sectors stay clean, the platter stays old.
    pub(super) fn fail_sync(&mut self, id: u64) {
        self.flights.retain(|flight| flight.id != id);
    }

    /// The second half of a sync that fails and takes the new bytes out of the cache.
    pub(super) fn revert_sync(&mut self, id: u64) {
        if let Some(index) = self.flights.iter().position(|flight| flight.id == id) {
            let flight = self.flights.remove(index);
            self.reverts.extend(flight.sectors);
            self.apply_reverts();
        }
    }

    /// Reverts the sectors that no region has published.
    pub(super) fn apply_reverts(&mut self) {
        if self.reverts.is_empty() {
            return;
        }
        self.reverts.sort_unstable();
        let reverts = std::mem::take(&mut self.reverts);
        let mut kept = Vec::new();
        let mut undo = std::mem::take(&mut self.undo);
        undo.retain(|undo| {
            // Written again since: the new bytes are dirty, and nothing is left to revert.
            if reverts.binary_search(&undo.sector).is_err() || !self.clean.get(undo.sector) {
                return true;
            }
            let platter = undo.platter.as_deref().unwrap_or(&ZEROS);
            if self.block.write(undo.sector * SECTOR, platter).is_err() {
                kept.push(undo.sector);
                return true;
            }
            self.stale.clear(undo.sector);
            self.set_clean(undo.sector, false);
            false
        });
        self.undo = undo;
        self.reverts = kept;
    }

    /// Moves the file off a block that a region still points into, so that neither sees the other's
    /// writes any more.
    pub(super) fn detach(&mut self) {
        match Arc::get_mut(&mut self.block) {
            Some(block) => block.clear_readers(),
            None => self.block = Arc::new(self.copied_block(self.block.len())),
        }
    }

    /// As [`detach`](Self::detach), where a store by a process that does not know of its end yet could
    /// change what the file holds.
    pub(super) fn detach_writers(&mut self) {
        if self.block.mapped_writable() {
            self.detach();
        }
    }

    /// The process is gone; the page cache stays.
    pub(super) fn survive_kill(&mut self, generation: u64) {
        self.detach();
        for flight in std::mem::take(&mut self.flights) {
            for sector in flight.sectors {
                self.set_clean(sector, false);
            }
            self.len_dirty |= flight.len.is_some();
        }
        self.apply_reverts();
        if matches!(self.holder, Some(Holder::Own)) {
            self.holder = None;
        }
        (self.links, self.handles, self.generation) = (0, 0, generation);
    }

    /// The power is gone; what the platter holds, and what `dice` adds, becomes the file.
    pub(super) fn survive_cut(&mut self, generation: u64, dice: &mut Dice) {
        if self.generation != generation {
            self.detach();
            self.settle(dice);
            self.reverts.clear();
            self.late_error = false;
            self.holder = None;
            (self.links, self.handles, self.generation) = (0, 0, generation);
        }
    }

    fn settle(&mut self, dice: &mut Dice) {
        for flight in std::mem::take(&mut self.flights) {
            self.land(&flight, || dice.landed());
            if let Some(len) = flight.len.filter(|_| dice.landed()) {
                self.platter_len = self.platter_len.max(len);
            }
        }
        let mut lost_blocks = false;
        if !self.undo.is_empty() {
            self.undo.sort_unstable_by_key(|undo| undo.sector);
            dice.begin_file(self.unsynced());
            for undo in self.undo.drain(..) {
                self.stale.clear(undo.sector);
                let clean = self.clean_count > 0 && self.clean.get(undo.sector);
                if !clean && dice.sector_survives() {
                    continue;
                }
                let platter = undo.platter.as_deref().unwrap_or(&ZEROS);
                self.block.write(undo.sector * SECTOR, platter).expect("no region knows the block");
                if undo.platter.is_none() {
                    self.written.clear(undo.sector);
                    lost_blocks = true;
                }
            }
            self.clean = Bits::default();
            self.clean_count = 0;
        }
        if self.len != self.platter_len {
            let survives = self.len_dirty && dice.len_survives();
            if !survives {
                self.shorten(self.platter_len);
                lost_blocks = true;
            }
            self.platter_len = self.len;
            self.len_dirty = false;
        }
        if lost_blocks {
            self.count_pages();
        }
    }

    /// Drops what lies at or behind `len`, on the platter and in the cache, which no region knows.
    fn shorten(&mut self, len: u64) {
        let len = len as usize;
        let mut from = len / SECTOR;
        while let Some(sector) = self.written.next(from) {
            let start = len.max(sector * SECTOR);
            let zeros = &ZEROS[..(sector + 1) * SECTOR - start];
            self.block.write(start, zeros).expect("no region knows the block");
            if start == sector * SECTOR {
                self.written.clear(sector);
            }
            from = sector + 1;
        }
        self.reserved.clear_range(len.div_ceil(PAGE)..usize::MAX);
        self.len = len as u64;
    }

    fn count_pages(&mut self) {
        let words = self.written.word_count().max(self.reserved.word_count().saturating_mul(8));
        self.pages = (0..words)
            .map(|index| {
                let (word, reserved) = (self.written.word(index), self.reserved.byte(index));
                if word == 0 {
                    return u64::from(reserved.count_ones());
                }
                let written = (0..8).filter(|eighth| word >> (eighth * 8) & 0xff != 0);
                u64::from(written.fold(reserved, |pages, eighth| pages | 1 << eighth).count_ones())
            })
            .sum();
    }

    /// Replaces the whole file, in the cache and on the platter alike.
    pub(super) fn replace(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut fresh = Self::new(bytes.len() as u64, self.generation)?;
        for (sector, chunk) in bytes.chunks(SECTOR).enumerate() {
            if *chunk != ZEROS[..chunk.len()] {
                fresh.write(sector * SECTOR, chunk)?;
            }
        }
        fresh.len_dirty = true;
        fresh.sync();
        fresh.reserved = std::mem::take(&mut self.reserved);
        fresh.reserved.clear_range(bytes.len().div_ceil(PAGE)..usize::MAX);
        fresh.count_pages();
        (fresh.links, fresh.handles, fresh.holder) = (self.links, self.handles, self.holder);
        *self = fresh;
        Ok(())
    }

    /// Shares the block with a region; the region belongs to the descriptor of `published`.
    pub(super) fn map(&mut self, published: &Arc<Published>, writable: bool) -> Arc<Block> {
        self.block.add_reader(published, writable);
        self.handles += 1;
        self.block.clone()
    }

    /// Whether this is the block behind the file, and not one it left.
    pub(super) fn is_backed_by(&self, block: &Arc<Block>) -> bool {
        Arc::ptr_eq(&self.block, block)
    }
}
