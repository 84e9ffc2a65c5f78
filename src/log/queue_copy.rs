//! The queues in another directory, cut where a copy of the log ends.

use super::consume_queue::ConsumeQueue;
use super::queue_dir::QueueOptions;
use super::queue_entry::QueueEntry;
use super::queues::Queues;
use crate::disk::Disk;
use crate::error::Result;
use std::path::Path;
use std::sync::Arc;

/// Entries read at once.
const RUN: usize = 4096;
/// Each queue is written from its beginning to its end, and then no more.
const OPEN_FILES: usize = 8;
const TAIL_SIZE: usize = 64 << 10;

/// What [`Queues::copy_to`] did.
#[derive(Debug, Default)]
pub(crate) struct QueueCopies {
    /// Entries of messages.
    pub(crate) messages: u64,
    /// Physical offset of the newest of those messages.
    pub(crate) newest: Option<u64>,
}

impl Queues {
    /// Writes the entries that point before `end` to queue files below `root`, and a table that vouches
    /// for them; durable on return. Every record before `end` has been dispatched, and is durable in a
    /// log that begins at `log_min`.
    ///
    /// `check` is called now and then; its error ends the copy.
    pub(crate) fn copy_to(
        &self,
        disk: Arc<dyn Disk>,
        root: &Path,
        (log_min, end): (u64, u64),
        check: &dyn Fn() -> Result<()>,
    ) -> Result<QueueCopies> {
        let options = QueueOptions {
            open_files: OPEN_FILES,
            tail_size: TAIL_SIZE,
            ..QueueOptions::default()
        };
        let (copy, _) = Queues::open(disk, root, &options)?;
        // There is nothing that a later opener would have to look for.
        copy.finish_recovery(false, 0)?;
        let mut done = QueueCopies::default();
        self.for_each(|queue| {
            check()?;
            copy_queue(queue, &copy, (log_min, end), check, &mut done)
        })?;
        copy.checkpoint(end, &mut || check())?;
        Ok(done)
    }
}

fn copy_queue(
    from: &ConsumeQueue,
    to: &Queues,
    (log_min, end): (u64, u64),
    check: &dyn Fn() -> Result<()>,
    done: &mut QueueCopies,
) -> Result<()> {
    let first = from.min_offset();
    let (mut at, stop) = (first, from.max_offset());
    let mut copy = None;
    let mut blanks = 0;
    let mut run = Vec::new();
    'entries: while at < stop {
        check()?;
        run.clear();
        let count = usize::try_from(stop - at).unwrap_or(RUN).min(RUN);
        from.read(at, count, &mut run)?;
        if run.is_empty() {
            // Expired since.
            at = from.min_offset().max(at + 1);
            blanks = 0;
            continue;
        }
        for entry in &run {
            if entry.is_blank() {
                blanks += 1;
            } else if entry.physical_offset >= end {
                break 'entries;
            } else {
                let queue = match &copy {
                    Some(queue) => queue,
                    None => copy.insert(sized_as(from, to)?),
                };
                for blank in at - blanks..at {
                    queue.append(blank, QueueEntry::BLANK)?;
                }
                queue.append(at, *entry)?;
                blanks = 0;
                done.messages += 1;
                done.newest = done.newest.max(Some(entry.physical_offset));
            }
            at += 1;
        }
    }
    if copy.is_none() && first > 0 && log_min > 0 {
        // All have expired. The last one tells a broker where the queue goes on.
        let queue = copy.insert(sized_as(from, to)?);
        queue.append(first - 1, from.entry_before(first).unwrap_or(QueueEntry::BLANK))?;
    }
    let Some(queue) = copy else { return Ok(()) };
    queue.correct_min_offset(log_min)?;
    // The second time nothing has happened since the first, and its memory is given back.
    queue.visit(end, &mut || check())?;
    queue.visit(end, &mut || check()).map(|_| ())
}

/// The queue of the same name, its files to be as long as those of `from`.
fn sized_as(from: &ConsumeQueue, to: &Queues) -> Result<Arc<ConsumeQueue>> {
    let queue = to.get_or_create(from.topic(), from.queue_id())?;
    queue.set_file_size(from.file_size()?);
    Ok(queue)
}
