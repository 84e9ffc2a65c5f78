//! Where queues go on in a log that began anew in the middle of another one: `duralog/queue-starts`.
//!
//! ```text
//! magic "duralogS"  version u32  offset u64  rows u32
//! per row: topic length u8, topic, queue id i32, queue offset u64
//! crc32 u32 over everything before
//! ```
//!
//! All integers are big endian. No record tells of a queue whose records lie before `offset`, where the log
//! began: the primary's queues do, and are asked once. Everything else about queues is derived from the
//! log; this is not, and stays as long as the log does.

use super::directory::{Directory, read_small, remove_if_there};
use super::queue_dir::check_topic;
use super::queue_entry::QUEUE_OFFSET_MAX;
use crate::disk::Disk;
use crate::error::{Corruption, Error, Result};
use crate::replication::QueueStart;
use std::path::Path;

/// Its name in `duralog/`.
pub(crate) const NAME: &str = "queue-starts";
/// Its name before the log begins there.
const NEXT_NAME: &str = "queue-starts-next";
const MAGIC: &[u8; 8] = b"duralogS";
const VERSION: u32 = 1;
/// Most queues that one log goes on with.
pub(crate) const STARTS_MAX: usize = 1 << 20;
/// Most bytes of a row.
pub(crate) const ROW_MAX: usize = 1 + u8::MAX as usize + 4 + 8;
const LEN_MAX: usize = 8 + 4 + 8 + 4 + STARTS_MAX * ROW_MAX + 4;

/// The file, decoded.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct QueueStarts {
    /// Physical offset at which the log began.
    pub(crate) offset: u64,
    pub(crate) rows: Vec<QueueStart>,
}

/// Whether a queue can go on there.
fn is_plausible(start: &QueueStart) -> bool {
    check_topic(&start.topic, start.queue_id).is_ok() && start.offset <= QUEUE_OFFSET_MAX
}

/// Appends a row. One that no queue could have is left out, as no reader would take it.
pub(crate) fn put_row(start: &QueueStart, out: &mut Vec<u8>) {
    if is_plausible(start) {
        out.push(start.topic.len() as u8);
        out.extend_from_slice(start.topic.as_bytes());
        out.extend_from_slice(&start.queue_id.to_be_bytes());
        out.extend_from_slice(&start.offset.to_be_bytes());
    }
}

/// Takes a row off the front; `None` if there is none that a queue could have.
pub(crate) fn take_row(bytes: &mut &[u8]) -> Option<QueueStart> {
    let (len, rest) = bytes.split_first()?;
    let (topic, rest) = rest.split_at_checked(usize::from(*len))?;
    let (queue_id, rest) = rest.split_first_chunk()?;
    let (offset, rest) = rest.split_first_chunk()?;
    *bytes = rest;
    let topic = str::from_utf8(topic).ok()?.to_owned();
    let (queue_id, offset) = (i32::from_be_bytes(*queue_id), u64::from_be_bytes(*offset));
    Some(QueueStart { topic, queue_id, offset }).filter(is_plausible)
}

fn encode(offset: u64, rows: &[QueueStart]) -> Vec<u8> {
    let mut body = Vec::new();
    rows.iter().for_each(|row| put_row(row, &mut body));
    let count = rows.iter().filter(|row| is_plausible(row)).count() as u32;
    let head = [&MAGIC[..], &VERSION.to_be_bytes(), &offset.to_be_bytes(), &count.to_be_bytes()];
    let mut bytes = [&head.concat()[..], &body].concat();
    let crc = crc32fast::hash(&bytes);
    bytes.extend_from_slice(&crc.to_be_bytes());
    bytes
}

fn decode(bytes: &[u8]) -> Option<QueueStarts> {
    let (fields, crc) = bytes.split_last_chunk::<4>()?;
    let rest = fields.strip_prefix(MAGIC)?;
    let (version, rest) = rest.split_first_chunk()?;
    let (offset, rest) = rest.split_first_chunk()?;
    let (count, mut rest) = rest.split_first_chunk()?;
    if crc32fast::hash(fields) != u32::from_be_bytes(*crc)
        || u32::from_be_bytes(*version) != VERSION
    {
        return None;
    }
    let rows = (0..u32::from_be_bytes(*count)).map(|_| take_row(&mut rest)).collect::<Option<_>>();
    let starts = QueueStarts { offset: u64::from_be_bytes(*offset), rows: rows? };
    rest.is_empty().then_some(starts)
}

fn read_named(disk: &dyn Disk, dir: &Path, name: &str) -> Result<Option<QueueStarts>> {
    let path = dir.join(name);
    let Some(bytes) = read_small(disk, &path, LEN_MAX + 1)? else { return Ok(None) };
    decode(&bytes).map(Some).ok_or_else(|| {
        // Without it queue offsets would be given out twice, and nothing here can make it up.
        let what = Corruption::StateFile { what: "where the queues go on cannot be read" };
        Error::Corrupt { path, offset: 0, what }
    })
}

/// What lies in `dir`; `None` where there is no such file.
pub(crate) fn read(disk: &dyn Disk, dir: &Path) -> Result<Option<QueueStarts>> {
    read_named(disk, dir, NAME)
}

/// Keeps `rows` for a log that is about to begin anew at `offset`; durable on return. Those of now stay in
/// force until it does.
pub(crate) fn prepare(
    disk: &dyn Disk,
    directory: &Directory,
    offset: u64,
    rows: &[QueueStart],
) -> Result<()> {
    directory.save(disk, NEXT_NAME, &encode(offset, rows))
}

/// The log begins anew at `offset`: what was prepared for that is in force, durably. May be repeated.
pub(crate) fn take_effect(disk: &dyn Disk, directory: &Directory, offset: u64) -> Result<()> {
    let dir = directory.duralog();
    let Some(next) = read_named(disk, dir, NEXT_NAME)? else { return Ok(()) };
    // Otherwise it is for a beginning that never came.
    if next.offset == offset {
        // A copy, since a power cut may let a file lose its old name before it has the new one.
        directory.save(disk, NAME, &encode(offset, &next.rows))?;
    }
    remove_if_there(disk, &dir.join(NEXT_NAME))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn start(topic: &str, queue_id: i32, offset: u64) -> QueueStart {
        QueueStart { topic: topic.to_owned(), queue_id, offset }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            offset: u64, rows in prop::collection::vec(("[a-zA-Z%_-]{1,40}", 0i32.., 0u64..1 << 40), 0..20)
        ) {
            let rows: Vec<_> = rows.iter().map(|(topic, id, at)| start(topic, *id, *at)).collect();
            let read = decode(&encode(offset, &rows));
            prop_assert_eq!(read, Some(QueueStarts { offset, rows }));
        }

        #[test]
        fn any_bytes_decode_to_something(mut bytes in prop::collection::vec(any::<u8>(), 0..400), sign: bool) {
            if sign {
                // Past the checksum, to the rows.
                let head = [&MAGIC[..], &VERSION.to_be_bytes(), &[0; 8], &[0, 0, 0, 2]].concat();
                bytes.splice(0..0, head);
                bytes.extend(crc32fast::hash(&bytes).to_be_bytes());
            }
            let _ = decode(&bytes);
        }
    }

    #[test]
    fn every_flipped_or_missing_byte_is_noticed() {
        let bytes = encode(4096, &[start("orders", 0, 7), start("%RETRY%g", 7, 70_000)]);
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut damaged = bytes.clone();
                damaged[at] ^= 1 << bit;
                assert_eq!(decode(&damaged), None, "byte {at} bit {bit}");
            }
            assert_eq!(decode(&bytes[..at]), None, "cut at {at}");
        }
    }

    #[test]
    fn rows_that_no_queue_could_have_are_neither_written_nor_read() {
        let far = QUEUE_OFFSET_MAX + 1;
        for bad in [start("../t", 0, 1), start("", 0, 1), start("t", -1, 1), start("t", 0, far)] {
            assert_eq!(encode(0, std::slice::from_ref(&bad)), encode(0, &[]), "{bad:?}");
            let mut row = vec![bad.topic.len() as u8];
            row.extend_from_slice(bad.topic.as_bytes());
            row.extend_from_slice(&bad.queue_id.to_be_bytes());
            row.extend_from_slice(&bad.offset.to_be_bytes());
            assert_eq!(take_row(&mut &row[..]), None, "{bad:?}");
        }
    }
}
