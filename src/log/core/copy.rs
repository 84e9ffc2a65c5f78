//! The log in another directory, while it goes on being written here.

use super::super::checkpoint::{Checkpoint, CheckpointFile, end_ranges};
use super::super::directory::{Directory, refused, write_failed};
use super::super::epochs::{self, Epochs};
use super::super::segment::{Segment, file_name};
use super::Core;
use crate::disk::{Allocation, Disk, OpenAccess, SyncMethod, last_nonzero};
use crate::error::{Corruption, Error, IoContext, IoOp, Result};
use std::path::Path;
use std::sync::Arc;

/// How much is copied at a time.
const STEP: usize = 1 << 20;
/// So many segments before the last RocketMQ reads when it starts, to cut the log at the first damage
/// and to write on there.
const REREAD_BY_ROCKETMQ: usize = 2;

/// What [`Core::copy_segments`] did.
#[derive(Debug, Default)]
pub(crate) struct SegmentCopies {
    /// Where the copied log begins.
    pub(crate) min: u64,
    pub(crate) segments: usize,
    pub(crate) linked: usize,
    pub(crate) copied_bytes: u64,
}

impl Core {
    /// Makes sure that recovery never again changes a byte before `end`, all of which is durable: the
    /// segments before may have another name from now on.
    ///
    /// # Errors
    /// [`Error::Closed`] if another store may have the directory by now.
    pub(crate) fn vouch_for(&self, end: u64) -> Result<()> {
        if self.config.read_only {
            return Ok(());
        }
        let _held = self.directory.hold()?;
        self.checkpoint.update(true, |checkpoint| {
            checkpoint.durable = checkpoint.durable.max(end);
        })
    }

    /// Gives `to` everything before `end`, which is durable; durable there on return. A segment that is
    /// full becomes a second name of the same file where the disk can do that, otherwise a copy. The
    /// last one, in which the next record goes, is always a copy, with zeros from `end` on.
    pub(crate) fn copy_segments(
        &self,
        to: &Directory,
        end: u64,
        check: &dyn Fn() -> Result<()>,
    ) -> Result<SegmentCopies> {
        let last = self.segment_start(end);
        let whole: Vec<Arc<Segment>> =
            self.segments.all().into_iter().filter(|one| one.base_offset() < last).collect();
        let mut done = SegmentCopies {
            min: whole.first().map_or(last, |first| first.base_offset()),
            segments: whole.len() + 1,
            ..SegmentCopies::default()
        };
        let reread_from = whole.len().saturating_sub(REREAD_BY_ROCKETMQ);
        let mut unlinked = Vec::new();
        for (n, segment) in whole.iter().enumerate() {
            check()?;
            // A broker that starts on the one directory would change the other.
            let unsafe_to_share = n >= reread_from && !self.is_sound(segment)?;
            if !unsafe_to_share && self.link(segment, to)? {
                done.linked += 1;
            } else {
                unlinked.push(segment.base_offset());
            }
        }
        // All of them at hand before the first is read: that may take long, and they may expire.
        let mut slices = Vec::with_capacity(unlinked.len() + 1);
        for base in unlinked {
            slices.push((base, self.segment_size, self.slice(base, self.segment_size)?));
        }
        slices.push((last, end - last, self.slice(last, end - last)?));
        for (base, wanted, slice) in slices {
            let path = to.commitlog().join(file_name(base));
            let bytes = slice.bytes();
            if (bytes.len() as u64) < wanted {
                let available = bytes.len() as u64;
                let what = Corruption::Truncated { needed: wanted, available };
                return Err(self.corrupt_at(base, what));
            }
            write_copy(&*self.disk, &path, bytes, self.segment_size, check)?;
            done.copied_bytes += wanted;
        }
        if !canary!("snapshot_dir_sync") {
            self.disk.sync_dir(to.commitlog()).at(IoOp::SyncDir, to.commitlog())?;
        }
        Ok(done)
    }

    /// Whether every record in the segment is valid.
    fn is_sound(&self, segment: &Segment) -> Result<bool> {
        let mut records = self.verified_records(segment.base_offset(), segment.end_offset());
        while let Some(found) = records.next_with(|_| ()) {
            match found {
                Err(Error::Corrupt { .. }) => return Ok(false),
                found => found?,
            }
        }
        Ok(true)
    }

    /// False if the disk cannot; whatever the reason, a copy will do.
    fn link(&self, segment: &Segment, to: &Directory) -> Result<bool> {
        let name = to.commitlog().join(file_name(segment.base_offset()));
        if self.disk.hard_link(segment.path(), &name).is_err() {
            return Ok(false);
        }
        if self.config.read_only {
            // Whoever wrote it may have been killed before it synced.
            let file = self.disk.open(&name, OpenAccess::Read).at(IoOp::Open, &name)?;
            file.sync(SyncMethod::Fdatasync).at(IoOp::Sync, &name)?;
        }
        Ok(true)
    }

    /// Writes into `to` what the next recovery there may rely on: everything before `end` is durable,
    /// and nothing else is there. Durable on return, but for the name.
    pub(crate) fn copy_checkpoint(&self, to: &Directory, end: u64) -> Result<()> {
        let mut checksummed = self.checksummed().to_vec();
        end_ranges(&mut checksummed, end);
        let mut epochs = Epochs::clone(&self.epochs.known());
        epochs.end_at(end);
        // It was asked of this node, which alone may be made primary by it, and alone knows how far it has
        // come since.
        (epochs.fenced, epochs.own) = (false, false);
        // Nothing is in it that a reader may not see.
        epochs.alone = epochs.is_replicated() || self.directory.has_copies();
        let copy = Checkpoint {
            durable: end,
            clean: true,
            cut: None,
            restarts: false,
            shared: false,
            confirmed: self.agreed().min(end),
            owner: to.token(),
            epoch: epochs.last().0,
            segment_size: self.segment_size,
            last_timestamp: self.last_timestamp(),
            checksummed,
        };
        if epochs != Epochs::default() {
            to.save(&*self.disk, epochs::NAME, &epochs.encode())?;
        }
        let path = to.duralog().join("checkpoint");
        let (file, _) = CheckpointFile::open(&*self.disk, &path, OpenAccess::Write)?;
        file.ensure(&*self.disk)?;
        file.update(true, |checkpoint| *checkpoint = copy)
    }
}

/// Makes a file of `len` bytes that begins with `bytes`, with holes where those are zero. Durable on
/// return, but for its name.
fn write_copy(
    disk: &dyn Disk,
    path: &Path,
    bytes: &[u8],
    len: u64,
    check: &dyn Fn() -> Result<()>,
) -> Result<()> {
    let file = disk
        .create(path, len, Allocation::Sparse)
        .map_err(|error| refused(IoOp::Create, path, 0, error))?;
    for (n, piece) in bytes.chunks(STEP).enumerate() {
        check()?;
        let used = last_nonzero(piece).map_or(0, |last| last + 1);
        let piece = piece.get(..used).unwrap_or_default();
        if !piece.is_empty() {
            let written = file.write_at(piece, (n * STEP) as u64);
            written.map_err(|error| write_failed(path, piece.len(), error))?;
        }
    }
    if canary!("snapshot_sync") {
        return Ok(());
    }
    file.sync(SyncMethod::Fdatasync).at(IoOp::Sync, path)
}
