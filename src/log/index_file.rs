//! One file of the key index: a hash table on disk, as RocketMQ lays it out.
//!
//! ```text
//! header 40: begin time i64, end time i64, begin offset i64, end offset i64, slots used i32, next item i32
//! slots  4 each: number of the newest item of the chain, 0 for none
//! items 20 each: key hash i32, physical offset i64, seconds after the begin time i32, older item i32
//! ```
//!
//! Items come in log order and never change, so they are appended; slots and header are changed in
//! memory and written now and then, all that changed together. Item 0 is never used.

use super::directory::{refused, write_failed};
use super::key_index::IndexOptions;
use crate::disk::{Allocation, Disk, DiskFile, OpenAccess, SyncMethod};
use crate::error::{IoContext, IoOp, Result};
use parking_lot::RwLock;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const HEADER_LEN: u64 = 40;
const SLOT_LEN: u64 = 4;
const ITEM_LEN: usize = 20;
/// Slots that are read and written together.
const PAGE_SLOTS: usize = 1024;
const PAGE_LEN: usize = PAGE_SLOTS * SLOT_LEN as usize;
/// Items are written when so many bytes of them have come.
const TAIL_MAX: usize = 64 << 10;
/// Items read at once by those who walk all of them.
const WALK_ITEMS: u32 = 16 << 10;

/// Sizes of the tables in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Geometry {
    pub(crate) slots: u32,
    pub(crate) items: u32,
}

impl Geometry {
    pub(crate) fn file_len(self) -> u64 {
        self.item_at(self.items)
    }

    fn slot_at(self, slot: u64) -> u64 {
        HEADER_LEN + slot * SLOT_LEN
    }

    fn item_at(self, item: u32) -> u64 {
        self.slot_at(self.slots.into()) + u64::from(item) * ITEM_LEN as u64
    }

    fn slot_of(self, hash: u32) -> usize {
        (hash % self.slots.max(1)) as usize
    }
}

/// What a file says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) begin_timestamp: i64,
    pub(crate) end_timestamp: i64,
    pub(crate) begin_physical: u64,
    /// Physical offset of the newest message in the file.
    pub(crate) end_physical: u64,
    pub(crate) slots_used: u32,
    /// Number of the next item.
    pub(crate) next_item: u32,
}

impl Default for Header {
    fn default() -> Self {
        Self {
            begin_timestamp: 0,
            end_timestamp: 0,
            begin_physical: 0,
            end_physical: 0,
            slots_used: 0,
            next_item: 1,
        }
    }
}

impl Header {
    pub(crate) const LEN: usize = HEADER_LEN as usize;

    /// Makes an item of this offset and second the newest one.
    fn end_at(&mut self, physical_offset: u64, seconds: u32) {
        self.end_physical = physical_offset;
        // Items know the second alone.
        let end = i64::from(seconds) * 1000 + 999;
        self.end_timestamp = self.begin_timestamp.saturating_add(end);
    }

    pub(crate) fn encode(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        let (times, rest) = bytes.split_at_mut(16);
        let (offsets, counts) = rest.split_at_mut(16);
        let times = times.as_chunks_mut::<8>().0.iter_mut();
        for (place, time) in times.zip([self.begin_timestamp, self.end_timestamp]) {
            *place = time.to_be_bytes();
        }
        let offsets = offsets.as_chunks_mut::<8>().0.iter_mut();
        for (place, offset) in offsets.zip([self.begin_physical, self.end_physical]) {
            *place = offset.to_be_bytes();
        }
        let counts = counts.as_chunks_mut::<4>().0.iter_mut();
        for (place, count) in counts.zip([self.slots_used, self.next_item]) {
            *place = count.to_be_bytes();
        }
        bytes
    }

    pub(crate) fn decode(bytes: &[u8; Self::LEN]) -> Self {
        let number = |at: usize| {
            bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |b| u64::from_be_bytes(*b))
        };
        let counts = number(32);
        Self {
            begin_timestamp: number(0).cast_signed(),
            end_timestamp: number(8).cast_signed(),
            begin_physical: number(16),
            end_physical: number(24),
            slots_used: (counts >> 32) as u32,
            // A file that was made and never used says 0.
            next_item: (counts as u32).max(1),
        }
    }
}

/// One key of one message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Item {
    hash: u32,
    physical_offset: u64,
    /// After the header's begin time.
    seconds: u32,
    /// The next older item of the chain; 0 ends it.
    older: u32,
}

impl Item {
    fn encode(self) -> [u8; ITEM_LEN] {
        let mut bytes = [0; ITEM_LEN];
        let (hash, rest) = bytes.split_at_mut(4);
        let (offset, rest) = rest.split_at_mut(8);
        let (seconds, older) = rest.split_at_mut(4);
        hash.copy_from_slice(&self.hash.to_be_bytes());
        offset.copy_from_slice(&self.physical_offset.to_be_bytes());
        seconds.copy_from_slice(&self.seconds.to_be_bytes());
        older.copy_from_slice(&self.older.to_be_bytes());
        bytes
    }

    fn decode(bytes: &[u8; ITEM_LEN]) -> Self {
        let word = |at: usize| {
            bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |b| u32::from_be_bytes(*b))
        };
        let physical_offset = u64::from(word(4)) << 32 | u64::from(word(8));
        Self { hash: word(0), physical_offset, seconds: word(12), older: word(16) }
    }

    /// The seconds of an item of this number. RocketMQ counts those of the first one from the end of
    /// the file before, though the begin time is its own.
    fn seconds_of(self, number: u32) -> u32 {
        if number <= 1 { 0 } else { self.seconds }
    }
}

/// Some of the slots, as they are to be.
#[derive(Debug)]
struct Page {
    slots: [u32; PAGE_SLOTS],
    dirty: bool,
}

#[derive(Debug)]
struct State {
    header: Header,
    /// Those that were looked at; the others are as the file has them.
    pages: Vec<Option<Box<Page>>>,
    /// Items that are not in the file yet, encoded; the first has the number `tail_from`.
    tail: Vec<u8>,
    tail_from: u32,
    /// Something is not in the file, or not durable in it.
    dirty: bool,
}

impl State {
    fn new(geometry: Geometry, header: Header) -> Self {
        let pages = (geometry.slots as usize).div_ceil(PAGE_SLOTS);
        Self {
            header,
            pages: std::iter::repeat_with(|| None).take(pages).collect(),
            tail: Vec::new(),
            tail_from: header.next_item,
            dirty: false,
        }
    }

    fn tail_item(&self, number: u32) -> Option<Item> {
        let at = number.checked_sub(self.tail_from)? as usize;
        self.tail.as_chunks::<ITEM_LEN>().0.get(at).map(Item::decode)
    }
}

/// What header and slots are to be on disk.
#[derive(Debug)]
pub(crate) struct Image {
    header: Header,
    /// Runs of slots, encoded, and where they belong.
    pages: Vec<(u64, Vec<u8>)>,
}

/// One file of the key index.
#[derive(Debug)]
pub(crate) struct IndexFile {
    name: u64,
    path: PathBuf,
    geometry: Geometry,
    read_only: bool,
    /// None of one that is made while nothing may be written.
    file: Option<Arc<dyn DiskFile>>,
    state: RwLock<State>,
}

impl IndexFile {
    /// The name of a file is the local time at which it was made, in 17 digits.
    pub(crate) fn path_of(dir: &Path, name: u64) -> PathBuf {
        dir.join(format!("{name:017}"))
    }

    /// Makes an empty file called `name`. Its name is durable once the directory is synced.
    pub(crate) fn create(
        disk: &dyn Disk,
        dir: &Path,
        name: u64,
        options: &IndexOptions,
    ) -> Result<Self> {
        let (path, geometry) = (Self::path_of(dir, name), options.geometry());
        let file = if options.read_only {
            None
        } else {
            let made = disk.create(&path, geometry.file_len(), Allocation::Sparse);
            Some(made.at(IoOp::Create, &path)?)
        };
        let state = RwLock::new(State::new(geometry, Header::default()));
        state.write().dirty = true;
        Ok(Self { name, path, geometry, read_only: options.read_only, file, state })
    }

    /// Opens a file as its header describes it; `None` if it cannot be an index of this geometry.
    pub(crate) fn open(
        disk: &dyn Disk,
        dir: &Path,
        name: u64,
        options: &IndexOptions,
    ) -> Result<Option<Self>> {
        let (path, geometry) = (Self::path_of(dir, name), options.geometry());
        let access = if options.read_only { OpenAccess::Read } else { OpenAccess::Write };
        let file = disk.open(&path, access).at(IoOp::Open, &path)?;
        let mut bytes = [0; Header::LEN];
        let got = file.read_at(&mut bytes, 0).at_offset(IoOp::Read, &path, 0)?;
        let header = Header::decode(&bytes);
        let fits = got == bytes.len()
            && file.len() == geometry.file_len()
            && header.next_item <= geometry.items
            && header.begin_physical <= header.end_physical
            && header.end_physical <= i64::MAX as u64;
        let (state, file) = (RwLock::new(State::new(geometry, header)), Some(file));
        Ok(fits.then_some(Self { name, path, geometry, read_only: options.read_only, file, state }))
    }

    pub(crate) fn name(&self) -> u64 {
        self.name
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn header(&self) -> Header {
        self.state.read().header
    }

    /// Whether it is not on disk as it is here.
    pub(crate) fn is_dirty(&self) -> bool {
        self.state.read().dirty
    }

    pub(crate) fn is_full(&self) -> bool {
        self.header().next_item >= self.geometry.items
    }

    /// Adds a key; false if the file is full.
    pub(crate) fn put(&self, hash: u32, physical_offset: u64, timestamp: i64) -> Result<bool> {
        let mut state = self.state.write();
        let header = state.header;
        let number = header.next_item;
        if number >= self.geometry.items {
            return Ok(false);
        }
        let newest = self.slot(&mut state, hash)?;
        let first = number <= 1;
        let begin_timestamp = if first { timestamp } else { header.begin_timestamp };
        let older = if *newest < number { *newest } else { 0 };
        let item = Item {
            hash,
            physical_offset,
            seconds: seconds_after(begin_timestamp, timestamp),
            older,
        };
        *newest = number;
        state.tail.extend_from_slice(&item.encode());
        state.header = Header {
            begin_timestamp,
            end_timestamp: timestamp,
            begin_physical: if first { physical_offset } else { header.begin_physical },
            end_physical: physical_offset,
            slots_used: header.slots_used + u32::from(older == 0),
            next_item: number + 1,
        };
        state.dirty = true;
        if state.tail.len() >= TAIL_MAX && !self.read_only {
            self.write_tail(&mut state)?;
        }
        Ok(true)
    }

    /// The slot of a hash, to be changed.
    fn slot<'a>(&self, state: &'a mut State, hash: u32) -> Result<&'a mut u32> {
        let slot = self.geometry.slot_of(hash);
        let (number, at) = (slot / PAGE_SLOTS, slot % PAGE_SLOTS);
        // Never taken: the geometry says how many pages there are.
        let missing = || crate::Error::Closed;
        let place = state.pages.get_mut(number).ok_or_else(missing)?;
        let page = match place {
            Some(page) => page,
            None => place.insert(self.read_page(number)?),
        };
        page.dirty = true;
        page.slots.get_mut(at).ok_or_else(missing)
    }

    fn read_page(&self, number: usize) -> Result<Box<Page>> {
        let at = self.geometry.slot_at((number * PAGE_SLOTS) as u64);
        let mut bytes = [0; PAGE_LEN];
        let got = self.read(&mut bytes, at)?;
        let mut page = Box::new(Page { slots: [0; PAGE_SLOTS], dirty: false });
        let words = bytes.get(..got).unwrap_or_default().as_chunks::<4>().0;
        for (slot, word) in page.slots.iter_mut().zip(words) {
            *slot = u32::from_be_bytes(*word);
        }
        Ok(page)
    }

    /// Fills `bytes` from `at` on, as far as there is anything.
    fn read(&self, bytes: &mut [u8], at: u64) -> Result<usize> {
        let Some(file) = &self.file else { return Ok(0) };
        file.read_at(bytes, at).at_offset(IoOp::Read, &self.path, at)
    }

    fn put_at(&self, bytes: &[u8], at: u64) -> Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        file.write_at(bytes, at).at_offset(IoOp::Write, &self.path, at)
    }

    fn write_tail(&self, state: &mut State) -> Result<()> {
        let at = self.geometry.item_at(state.tail_from);
        self.put_at(&state.tail, at)?;
        state.tail.clear();
        state.tail_from = state.header.next_item;
        Ok(())
    }

    /// Writes the items, and says what else is to be written for them to be found; `None` if nothing
    /// has changed.
    pub(crate) fn prepare(&self) -> Result<Option<Image>> {
        let mut state = self.state.write();
        if !std::mem::take(&mut state.dirty) {
            return Ok(None);
        }
        self.write_tail(&mut state)?;
        Ok(Some(self.take_image(&mut state)))
    }

    /// Makes durable what was there when the file was opened: another program wrote it.
    pub(crate) fn sync(&self) -> Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        file.sync(SyncMethod::Fdatasync).at(IoOp::Sync, &self.path)
    }

    /// Makes an image durable, and every item it speaks of.
    ///
    /// After a failure the file on disk may be anything, and what is in memory is not all of it: it
    /// has to be built again from the log.
    pub(crate) fn write(&self, image: Image) -> Result<()> {
        for (at, bytes) in &image.pages {
            self.put_at(bytes, *at)?;
        }
        self.put_at(&image.header.encode(), 0)?;
        match &self.file {
            Some(file) if !canary!("index_sync") => {
                file.sync(SyncMethod::Fdatasync).at(IoOp::Sync, &self.path)
            }
            _ => Ok(()),
        }
    }

    fn take_image(&self, state: &mut State) -> Image {
        let mut pages = Vec::new();
        for (number, page) in state.pages.iter_mut().enumerate() {
            let Some(page) = page.as_mut().filter(|page| page.dirty) else { continue };
            page.dirty = false;
            let first = number * PAGE_SLOTS;
            let count = (self.geometry.slots as usize - first).min(PAGE_SLOTS);
            let slots = page.slots.iter().take(count);
            let bytes = slots.flat_map(|slot| slot.to_be_bytes()).collect();
            pages.push((self.geometry.slot_at(first as u64), bytes));
        }
        Image { header: state.header, pages }
    }

    /// Forgets the slots, which are as the file has them: nothing is put here any more.
    pub(crate) fn forget_slots(&self) {
        let mut state = self.state.write();
        let unchanged = |page: &mut Option<Box<Page>>| {
            page.as_ref().is_none_or(|page| !page.dirty).then(|| *page = None);
        };
        state.pages.iter_mut().for_each(unchanged);
    }

    /// Physical offsets of messages whose key has this hash, stored in `times`, newest first, until
    /// `each` says false.
    pub(crate) fn find(
        &self,
        hash: u32,
        times: (i64, i64),
        each: &mut dyn FnMut(u64) -> bool,
    ) -> Result<()> {
        let (header, mut number) = {
            let state = self.state.read();
            (state.header, self.newest(&state, hash)?)
        };
        // Item numbers fall along a chain; in a damaged file they may not, and it must end there.
        let mut below = header.next_item;
        while number > 0 && number < below {
            let item = self.item(number)?;
            let seconds = item.seconds_of(number);
            let time = header.begin_timestamp.saturating_add(i64::from(seconds) * 1000);
            if time < times.0 {
                break;
            }
            if item.hash == hash && time <= times.1 && !each(item.physical_offset) {
                break;
            }
            (below, number) = (number, item.older);
        }
        Ok(())
    }

    fn newest(&self, state: &State, hash: u32) -> Result<u32> {
        let slot = self.geometry.slot_of(hash);
        if let Some(Some(page)) = state.pages.get(slot / PAGE_SLOTS) {
            return Ok(page.slots.get(slot % PAGE_SLOTS).copied().unwrap_or_default());
        }
        let at = self.geometry.slot_at(slot as u64);
        let mut bytes = [0; 4];
        self.read(&mut bytes, at)?;
        Ok(u32::from_be_bytes(bytes))
    }

    fn item(&self, number: u32) -> Result<Item> {
        if let Some(item) = self.state.read().tail_item(number) {
            return Ok(item);
        }
        let at = self.geometry.item_at(number);
        let mut bytes = [0; ITEM_LEN];
        self.read(&mut bytes, at)?;
        Ok(Item::decode(&bytes))
    }

    /// The items from number `from` on, encoded: as many as come in one piece, `count` at most.
    fn items(&self, from: u32, count: u32) -> Result<Vec<u8>> {
        let want = count as usize * ITEM_LEN;
        let state = self.state.read();
        let written = state.tail_from.saturating_sub(from) as usize * ITEM_LEN;
        if written == 0 {
            let skip = (from - state.tail_from) as usize * ITEM_LEN;
            let tail = state.tail.get(skip..).unwrap_or_default();
            return Ok(tail.get(..want.min(tail.len())).unwrap_or_default().to_vec());
        }
        drop(state);
        let mut bytes = vec![0; want.min(written)];
        let got = self.read(&mut bytes, self.geometry.item_at(from))?;
        bytes.truncate(got);
        Ok(bytes)
    }

    /// Makes a file of the same name in `dir` that holds the items of messages before `end`, durably but
    /// for its name; what it says of itself. `None` if there are none such: then there is no file.
    ///
    /// Messages may be added meanwhile. Takes four bytes of memory for each slot.
    pub(crate) fn copy_to(&self, disk: &dyn Disk, dir: &Path, end: u64) -> Result<Option<Header>> {
        let mut header = self.header();
        if header.next_item <= 1 || header.begin_physical >= end {
            return Ok(None);
        }
        let path = Self::path_of(dir, self.name);
        let copy = disk
            .create(&path, self.geometry.file_len(), Allocation::Sparse)
            .map_err(|error| refused(IoOp::Create, &path, 0, error))?;
        let write = |bytes: &[u8], at: u64| {
            copy.write_at(bytes, at).map_err(|error| write_failed(&path, bytes.len(), error))
        };
        let mut slots = vec![0u32; self.geometry.slots as usize];
        let (mut number, mut last) = (1, None);
        while number < header.next_item {
            let bytes = self.items(number, (header.next_item - number).min(WALK_ITEMS))?;
            let mut kept = 0;
            for item in bytes.as_chunks::<ITEM_LEN>().0.iter().map(Item::decode) {
                if item.physical_offset >= end {
                    break;
                }
                if let Some(slot) = slots.get_mut(self.geometry.slot_of(item.hash)) {
                    *slot = number + kept;
                }
                last = Some((item.physical_offset, item.seconds_of(number + kept)));
                kept += 1;
            }
            let kept_bytes = bytes.get(..kept as usize * ITEM_LEN).unwrap_or_default();
            write(kept_bytes, self.geometry.item_at(number))?;
            number += kept;
            if kept == 0 || kept_bytes.len() < bytes.len() {
                break;
            }
        }
        for (n, page) in slots.chunks(PAGE_SLOTS).enumerate() {
            if page.iter().any(|slot| *slot > 0) {
                let bytes: Vec<u8> = page.iter().flat_map(|slot| slot.to_be_bytes()).collect();
                write(&bytes, self.geometry.slot_at((n * PAGE_SLOTS) as u64))?;
            }
        }
        if let Some((physical_offset, seconds)) = last.filter(|_| number < header.next_item) {
            header.end_at(physical_offset, seconds);
        }
        header.next_item = number;
        header.slots_used = slots.iter().filter(|slot| **slot > 0).count() as u32;
        write(&header.encode(), 0)?;
        copy.sync(SyncMethod::Fdatasync).at(IoOp::Sync, &path)?;
        Ok(Some(header))
    }

    /// Takes out messages at `end` and behind it, as [`rebuild`](Self::rebuild) does.
    pub(crate) fn forget_from(&self, end: u64) -> Result<()> {
        let header = self.header();
        if header.next_item <= 1 || header.end_physical < end {
            return Ok(());
        }
        self.rebuild(header, end)
    }

    /// Makes the file one that holds the first items only: those numbered below `header.next_item` of
    /// messages before `end`. Its slots are built anew from them, whatever they were. Done in memory,
    /// and on disk with the next flush.
    pub(crate) fn rebuild(&self, header: Header, end: u64) -> Result<()> {
        let mut state = State::new(self.geometry, Header { next_item: 1, ..header });
        for page in &mut state.pages {
            *page = Some(Box::new(Page { slots: [0; PAGE_SLOTS], dirty: true }));
        }
        let mut last = None;
        let mut number = 1;
        while number < header.next_item {
            let count = (header.next_item - number).min(WALK_ITEMS);
            let at = self.geometry.item_at(number);
            let mut bytes = vec![0; count as usize * ITEM_LEN];
            self.read(&mut bytes, at)?;
            let items = bytes.as_chunks::<ITEM_LEN>().0.iter().map(Item::decode);
            let kept = items.take_while(|item| item.physical_offset < end);
            let before = number;
            for item in kept {
                *self.slot(&mut state, item.hash)? = number;
                last = Some((item.physical_offset, item.seconds_of(number)));
                number += 1;
            }
            if number - before < count {
                break;
            }
        }
        let used = state.pages.iter().flatten().flat_map(|page| &page.slots);
        state.header.slots_used = used.filter(|slot| **slot > 0).count() as u32;
        state.header.next_item = number;
        state.tail_from = number;
        state.dirty = true;
        match last {
            Some(_) if number == header.next_item => {}
            Some((physical_offset, seconds)) => state.header.end_at(physical_offset, seconds),
            None => state.header = Header::default(),
        }
        *self.state.write() = state;
        Ok(())
    }
}

/// As RocketMQ counts them: never negative, and 0 where the beginning is not known.
fn seconds_after(begin: i64, timestamp: i64) -> u32 {
    if begin <= 0 {
        return 0;
    }
    (timestamp.saturating_sub(begin) / 1000).clamp(0, i32::MAX.into()) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_laid_out_as_rocketmq_does() {
        let header = Header {
            begin_timestamp: 1_700_000_000_123,
            end_timestamp: 1_700_000_000_123,
            begin_physical: 0,
            end_physical: 0,
            slots_used: 1,
            next_item: 2,
        };
        let mut expected = Vec::new();
        expected.extend([0, 0, 1, 0x8b, 0xcf, 0xe5, 0x68, 0x7b].repeat(2));
        expected.extend([0; 16]);
        expected.extend([0, 0, 0, 1, 0, 0, 0, 2]);
        assert_eq!(header.encode().as_slice(), expected);
        assert_eq!(Header::decode(&header.encode()), header);
    }

    #[test]
    fn an_item_is_laid_out_as_rocketmq_does() {
        let item = Item { hash: 2_539_445, physical_offset: 1 << 40, seconds: 7, older: 3 };
        let expected = [0, 0x26, 0xbf, 0xb5, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 3];
        assert_eq!(item.encode(), expected);
        assert_eq!(Item::decode(&expected), item);
    }

    #[test]
    fn the_default_file_has_rocketmqs_size() {
        let geometry = Geometry { slots: 5_000_000, items: 20_000_000 };
        assert_eq!(geometry.file_len(), 420_000_040);
        assert_eq!(geometry.slot_at(geometry.slot_of(2_539_445) as u64), 10_157_820);
        assert_eq!(geometry.item_at(1), 20_000_060);
    }

    #[test]
    fn seconds_count_from_the_beginning() {
        assert_eq!(seconds_after(1_000, 3_999), 2);
        assert_eq!(seconds_after(3_999, 1_000), 0);
        assert_eq!(seconds_after(0, 5_000), 0);
        assert_eq!(seconds_after(1, i64::MAX), i32::MAX as u32);
    }
}
