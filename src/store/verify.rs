//! Looking at everything, when the user asks for it.

use super::dispatch::entry;
use super::{Shared, Store};
use crate::error::{Error, Result};
use crate::log::MessageView;

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
    /// [`Error::Io`] if a file cannot be read. Damage is not an error but what the report is for.
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
        loop {
            let view = match records.next() {
                Some(Ok(view)) => view,
                Some(Err(error @ Error::Corrupt { .. })) => {
                    report.damage.push(error);
                    let next = self.core.resync(records.offset(), end);
                    records = self.core.verified_records(next, end);
                    continue;
                }
                Some(Err(error)) => return Err(error),
                // What has expired meanwhile is nobody's damage.
                None if records.offset() < self.core.min_offset().min(end) => {
                    records = self.core.verified_records(self.core.min_offset(), end);
                    continue;
                }
                None => return Ok(report),
            };
            report.records += 1;
            report.bytes += view.size() as u64;
            report.damage.extend(self.queue_damage_of(&view)?);
        }
    }

    /// What is wrong with the queue entry of a record, if anything is.
    fn queue_damage_of(&self, view: &MessageView) -> Result<Option<Error>> {
        let record = view.record();
        let offset = record.queue_offset().cast_unsigned();
        if !record.sys_flag().takes_queue_offset() {
            return Ok(None);
        }
        // Without a queue the topic is no directory name, which is nobody's damage.
        let Some(queue) = self.queues.get(record.topic(), record.queue_id()) else {
            return Ok(None);
        };
        let found = match queue.entry(offset) {
            Ok(found) => found,
            Err(error @ Error::Corrupt { .. }) => return Ok(Some(error)),
            Err(error) => return Err(error),
        };
        let expired = offset < queue.min_offset();
        let fits = found == Some(entry(view.physical_offset(), &record));
        Ok((!fits && !expired).then(|| queue.corrupt_entry(offset)))
    }
}
