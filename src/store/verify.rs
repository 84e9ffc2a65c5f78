//! Looking at everything, when the user asks for it.

use super::dispatch::entry;
use super::{Shared, Store};
use crate::error::{Error, Result};

/// What [`Store::verify`] found.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct VerifyReport {
    /// Valid records. Those that [`RecoveryMode::Salvage`] put in the place of damage count, too.
    ///
    /// [`RecoveryMode::Salvage`]: crate::RecoveryMode::Salvage
    pub records: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Damage, in log order. Behind a damaged record reading goes on at the next valid one.
    pub damage: Vec<Error>,
}

impl VerifyReport {
    /// Whether nothing is damaged.
    pub fn is_ok(&self) -> bool {
        self.damage.is_empty()
    }
}

impl Store {
    /// Reads every record that a reader may see, verifies its checksums, and compares it with its
    /// queue entry. Takes as long as reading the whole log; puts and reads go on beside it.
    ///
    /// # Errors
    /// [`Error::Io`] if a file cannot be read; [`Error::Corrupt`] if a queue's file holds what is no
    /// entry at all, as a consumer of that queue gets it. Any other damage is not an error but what the
    /// report is for.
    pub fn verify(&self) -> Result<VerifyReport> {
        self.shared().verify()
    }
}

impl Shared {
    fn verify(&self) -> Result<VerifyReport> {
        let mut report = VerifyReport::default();
        self.catch_up();
        let end = self.core.progress.dispatched();
        let mut records = self.core.verified_records(self.core.min_offset(), end);
        while let Some(view) = records.next() {
            let view = match view {
                Ok(view) => view,
                Err(error @ Error::Corrupt { .. }) => {
                    report.damage.push(error);
                    let next = self.core.resync(records.offset(), end);
                    records = self.core.verified_records(next, end);
                    continue;
                }
                Err(error) => return Err(error),
            };
            report.records += 1;
            report.bytes += view.size() as u64;
            let record = view.record();
            let offset = record.queue_offset().cast_unsigned();
            // Without a queue the topic is no directory name, which is nobody's damage.
            if record.sys_flag().takes_queue_offset()
                && let Some(queue) = self.queues.get(record.topic(), record.queue_id())
                && queue.entry(offset)? != Some(entry(view.physical_offset(), &record))
            {
                report.damage.push(queue.corrupt_entry(offset));
            }
        }
        Ok(report)
    }
}
