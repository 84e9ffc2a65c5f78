//! RocketMQ's `checkpoint`: up to which store time a broker that starts here may trust the files.
//!
//! After a crash a broker looks for the newest commit log file that begins three seconds before the
//! times in this file, and dispatches everything behind anew. Nothing of ours reads it but the key
//! index, for what a broker left.

use super::directory::{Directory, write_new};
use crate::disk::{Disk, DiskFile, OpenAccess, SyncMethod};
use crate::error::{IoContext, IoOp, Result};
use parking_lot::Mutex;
use std::io::ErrorKind;
use std::sync::Arc;

const NAME: &str = "checkpoint";
const LEN: usize = 4096;
/// Where the time stands up to which index files are durable.
const INDEX_AT: u64 = 16;

/// Times in milliseconds since the epoch: whatever was stored before is durable in these files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct BrokerTimes {
    pub(crate) commit_log: i64,
    pub(crate) consume_queues: i64,
    pub(crate) index: i64,
}

/// The file, open once it was written.
#[derive(Debug, Default)]
pub(crate) struct BrokerCheckpoint {
    file: Mutex<Option<Arc<dyn DiskFile>>>,
}

impl BrokerCheckpoint {
    /// Saves `times`, durably. What else a broker keeps in the file stays as it is.
    pub(crate) fn save(
        &self,
        disk: &dyn Disk,
        directory: &Directory,
        times: BrokerTimes,
    ) -> Result<()> {
        let path = directory.root().join(NAME);
        let mut bytes = [0; 24];
        let numbers = [times.commit_log, times.consume_queues, times.index];
        for (place, time) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(numbers) {
            *place = time.to_be_bytes();
        }
        let mut slot = self.file.lock();
        if slot.is_none() {
            *slot = match disk.open(&path, OpenAccess::Write) {
                Ok(file) if file.len() >= LEN as u64 => Some(file),
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(error).at(IoOp::Open, &path);
                }
                _ => None,
            };
        }
        if let Some(file) = &*slot {
            file.write_at(&bytes, 0).at_offset(IoOp::Write, &path, 0)?;
            return file.sync(SyncMethod::Fdatasync).at(IoOp::Sync, &path);
        }
        let mut whole = [0; LEN];
        if let Some(place) = whole.get_mut(..bytes.len()) {
            place.copy_from_slice(&bytes);
        }
        let temporary = directory.temporary(NAME);
        write_new(disk, &temporary, &whole)?;
        disk.rename(&temporary, &path).at(IoOp::Rename, &path)?;
        disk.sync_dir(directory.root()).at(IoOp::SyncDir, directory.root())
    }

    /// Up to which time index files are durable, as whoever had the store last says.
    pub(super) fn index_time(disk: &dyn Disk, directory: &Directory) -> Result<i64> {
        let path = directory.root().join(NAME);
        let mut time = [0; 8];
        match disk.open(&path, OpenAccess::Read) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            opened => {
                let file = opened.at(IoOp::Open, &path)?;
                file.read_at(&mut time, INDEX_AT).at_offset(IoOp::Read, &path, INDEX_AT)?;
            }
        }
        Ok(i64::from_be_bytes(time))
    }
}
