//! The files of a commit log: one segment each, found by physical offset.

use crate::disk::{Disk, DiskFile, MapAccess, OpenAccess, Region, SyncMethod};
use crate::error::{Corruption, Error, IoContext, IoOp, Result};
use parking_lot::{Mutex, RwLock};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A file's name: the offset of its first byte in 20 decimal digits.
pub(crate) fn file_name(base_offset: u64) -> String {
    format!("{base_offset:020}")
}

/// The offset a file name stands for; `None` for a name RocketMQ would not give.
pub(crate) fn parse_file_name(name: &str) -> Option<u64> {
    let all_digits = name.len() == 20 && name.bytes().all(|b| b.is_ascii_digit());
    all_digits.then(|| name.parse().ok()).flatten()
}

/// What a log may do with its segments' files, and with their mappings.
pub(crate) type Access = (OpenAccess, MapAccess);

#[derive(Debug)]
enum Mapping {
    None,
    Mapped(Region),
    /// There is none any more: what the file holds is about to change.
    Retired,
}

/// One file of the commit log.
///
/// Opened and mapped when first needed; the mapping lives as long as anyone holds the segment, the
/// descriptor until every byte is durable.
#[derive(Debug)]
pub(crate) struct Segment {
    base_offset: u64,
    size: u64,
    path: PathBuf,
    map: MapAccess,
    open: OpenAccess,
    file: Mutex<Option<Arc<dyn DiskFile>>>,
    region: RwLock<Mapping>,
    /// Read since mappings were last looked through for ones to give up.
    used: AtomicBool,
}

impl Segment {
    pub(crate) fn new(dir: &Path, base_offset: u64, size: u64, (open, map): Access) -> Self {
        let path = dir.join(file_name(base_offset));
        Self {
            base_offset,
            size,
            path,
            map,
            open,
            file: Mutex::new(None),
            region: RwLock::new(Mapping::None),
            used: AtomicBool::new(true),
        }
    }

    /// A segment whose file was just created and is still open.
    pub(crate) fn with_file(self, file: Arc<dyn DiskFile>) -> Self {
        Self { file: Mutex::new(Some(file)), ..self }
    }

    pub(crate) fn base_offset(&self) -> u64 {
        self.base_offset
    }

    pub(crate) fn holds(&self, offset: u64) -> bool {
        (self.base_offset..self.end_offset()).contains(&offset)
    }

    pub(crate) fn end_offset(&self) -> u64 {
        self.base_offset + self.size
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The open file.
    pub(crate) fn file(&self, disk: &dyn Disk) -> Result<Arc<dyn DiskFile>> {
        self.open_in(disk, &mut self.file.lock())
    }

    /// The file, unless every byte of it is durable.
    pub(crate) fn open_file(&self) -> Option<Arc<dyn DiskFile>> {
        self.file.lock().clone()
    }

    fn open_in(
        &self,
        disk: &dyn Disk,
        file: &mut Option<Arc<dyn DiskFile>>,
    ) -> Result<Arc<dyn DiskFile>> {
        if let Some(file) = file {
            return Ok(file.clone());
        }
        let opened = disk.open(&self.path, self.open).at(IoOp::Open, &self.path)?;
        Ok(file.insert(opened).clone())
    }

    /// The mapping, made when first asked for, and whether it was made just now.
    pub(crate) fn region(&self, disk: &dyn Disk) -> Result<(Region, bool)> {
        self.used.store(true, Ordering::Relaxed);
        if let Mapping::Mapped(region) = &*self.region.read() {
            return Ok((region.clone(), false));
        }
        let mut slot = self.region.write();
        match &*slot {
            Mapping::Mapped(region) => return Ok((region.clone(), false)),
            Mapping::Retired => return Err(Error::Closed),
            Mapping::None => {}
        }
        let mut file = self.file.lock();
        let region = self.open_in(disk, &mut file)?.map(self.map).at(IoOp::Map, &self.path)?;
        *slot = Mapping::Mapped(region.clone());
        Ok((region, true))
    }

    /// Gives up the mapping for good, and maps the file no more.
    pub(crate) fn retire(&self) {
        *self.region.write() = Mapping::Retired;
    }

    /// Gives up the mapping, unless it was used since this was last asked or is still written to;
    /// true if it is gone. Views that are alive keep theirs.
    pub(crate) fn unmap_if_cold(&self) -> bool {
        if self.used.swap(false, Ordering::Relaxed) || self.file.lock().is_some() {
            return false;
        }
        let mut slot = self.region.write();
        let mapped = matches!(*slot, Mapping::Mapped(_));
        if mapped {
            *slot = Mapping::None;
        }
        mapped
    }

    pub(crate) fn is_mapped(&self) -> bool {
        matches!(*self.region.read(), Mapping::Mapped(_))
    }

    pub(crate) fn sync(&self, method: SyncMethod) -> Result<()> {
        match self.open_file() {
            Some(file) => file.sync(method).at(IoOp::Sync, &self.path),
            // Closed only after a sync that covered the whole segment.
            None => Ok(()),
        }
    }

    /// How many others hold the mapping: views, slices, and the writer if there is one.
    pub(crate) fn holders(&self) -> usize {
        match &*self.region.read() {
            Mapping::Mapped(region) => region.holders().saturating_sub(1),
            Mapping::None | Mapping::Retired => 0,
        }
    }

    /// Closes the descriptor of a segment that will not be written again; the mapping stays.
    pub(crate) fn seal(&self) {
        if self.is_mapped() {
            *self.file.lock() = None;
        }
    }

    pub(crate) fn corrupt(&self, physical_offset: u64, what: Corruption) -> Error {
        let offset = physical_offset.saturating_sub(self.base_offset);
        Error::Corrupt { path: self.path.clone(), offset, what }
    }
}

/// The segments of a log in offset order, without gaps.
#[derive(Debug)]
pub(crate) struct Segments {
    size: u64,
    list: RwLock<Vec<Arc<Segment>>>,
}

impl Segments {
    pub(crate) fn new(size: u64, list: Vec<Arc<Segment>>) -> Self {
        Self { size, list: RwLock::new(list) }
    }

    pub(crate) fn push(&self, segment: Arc<Segment>) {
        self.list.write().push(segment);
    }

    /// The segment that holds `offset`.
    pub(crate) fn find(&self, offset: u64) -> Option<Arc<Segment>> {
        let list = self.list.read();
        let first = list.first()?.base_offset();
        let index = offset.checked_sub(first)? / self.size;
        list.get(usize::try_from(index).ok()?).cloned()
    }

    pub(crate) fn min_offset(&self) -> u64 {
        self.list.read().first().map_or(0, |first| first.base_offset())
    }

    /// Takes out the first segment, if it ends at `end` and others follow.
    pub(crate) fn take_first(&self, end: u64) -> Option<Arc<Segment>> {
        let mut list = self.list.write();
        let due = list.len() > 1 && list.first().is_some_and(|first| first.end_offset() == end);
        due.then(|| list.remove(0))
    }

    /// Gives up mappings that were not used for a while, if there are more than `max`: the system
    /// allows a process only so many.
    pub(crate) fn limit_mappings(&self, max: usize) {
        let list = self.list.read();
        let mut mapped = list.iter().filter(|segment| segment.is_mapped()).count();
        // Twice: the first time may only take note of who is used.
        for segment in list.iter().chain(list.iter()) {
            if mapped <= max / 2 || list.len() <= max {
                break;
            }
            mapped -= usize::from(segment.unmap_if_cold());
        }
    }

    pub(crate) fn last(&self) -> Option<Arc<Segment>> {
        self.list.read().last().cloned()
    }

    pub(crate) fn all(&self) -> Vec<Arc<Segment>> {
        self.list.read().clone()
    }
}
