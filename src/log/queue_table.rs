//! The table of all queues: `duralog/queues`.
//!
//! ```text
//! magic "duralogQ"  version u32  flags u32  offset u64  rows u32
//! per row: topic length u8, topic, queue id i32, min u64, max u64, file size u64, last u64
//! crc32 u32 over everything before
//! ```
//!
//! All integers are big endian, as in the files the table describes.

use crate::disk::{Disk, OpenAccess};
use std::io::ErrorKind;
use std::path::Path;

use super::queue_dir::check_topic;
use super::queue_entry::{ENTRY_SIZE, FILE_SIZE_MAX, QUEUE_OFFSET_MAX};

/// Its name in `duralog/`.
pub(crate) const NAME: &str = "queues";
/// A longer table is not one we wrote: about five million queues.
const LEN_MAX: u64 = 1 << 30;
const MAGIC: &[u8; 8] = b"duralogQ";
const VERSION: u32 = 1;
const FLAG_REBUILDING: u32 = 1;

/// What is durable of one queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) topic: String,
    pub(crate) queue_id: i32,
    pub(crate) min: u64,
    pub(crate) max: u64,
    pub(crate) file_size: u64,
    /// Physical offset in the entry before `max`.
    pub(crate) last_physical: u64,
}

/// The table, decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Table {
    /// Every record before this physical offset is durably in the queue files.
    pub(crate) offset: u64,
    /// Queue directories without a row have not been looked at yet.
    pub(crate) rebuilding: bool,
    pub(crate) rows: Vec<Row>,
}

/// Writes a table row by row, so that no second copy of all rows is needed.
#[derive(Debug)]
pub(crate) struct TableWriter {
    bytes: Vec<u8>,
    rows: u32,
}

/// Where the number of rows stands.
const ROWS_AT: usize = 8 + 4 + 4 + 8;

impl TableWriter {
    pub(crate) fn new(offset: u64, rebuilding: bool) -> Self {
        let mut bytes = Vec::with_capacity(256);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_be_bytes());
        bytes.extend_from_slice(&(if rebuilding { FLAG_REBUILDING } else { 0 }).to_be_bytes());
        bytes.extend_from_slice(&offset.to_be_bytes());
        bytes.extend_from_slice(&[0; 4]);
        Self { bytes, rows: 0 }
    }

    /// `topic` has passed [`check_topic`], so its length fits in a byte.
    pub(crate) fn row(&mut self, topic: &str, queue_id: i32, numbers: [u64; 4]) {
        self.bytes.push(topic.len() as u8);
        self.bytes.extend_from_slice(topic.as_bytes());
        self.bytes.extend_from_slice(&queue_id.to_be_bytes());
        for number in numbers {
            self.bytes.extend_from_slice(&number.to_be_bytes());
        }
        self.rows += 1;
    }

    pub(crate) fn finish(mut self) -> Vec<u8> {
        if let Some(place) = self.bytes.get_mut(ROWS_AT..ROWS_AT + 4) {
            place.copy_from_slice(&self.rows.to_be_bytes());
        }
        let crc = crc32fast::hash(&self.bytes);
        self.bytes.extend_from_slice(&crc.to_be_bytes());
        self.bytes
    }
}

/// Takes fields off the front; `None` where the bytes end first.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(head)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }
}

/// The table in `dir`, if there is one; otherwise why it cannot be read.
pub(crate) fn read(disk: &dyn Disk, dir: &Path) -> Result<Option<Table>, String> {
    let file = match disk.open(&dir.join(NAME), OpenAccess::Read) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("the queue table cannot be opened: {error}")),
    };
    if file.len() > LEN_MAX {
        return Err(format!("the queue table has {} bytes", file.len()));
    }
    let mut bytes = vec![0; file.len() as usize];
    let got = file.read_at(&mut bytes, 0);
    let got = got.map_err(|error| format!("the queue table cannot be read: {error}"))?;
    bytes.truncate(got);
    decode(&bytes).map(Some).map_err(|what| format!("the queue table is damaged: {what}"))
}

/// How far the log was durable when the table in `dir` was saved; `None` if nothing says so.
pub(crate) fn saved_offset(disk: &dyn Disk, dir: &Path) -> Option<u64> {
    read(disk, dir).ok().flatten().map(|table| table.offset)
}

/// Decodes any bytes, or says what is wrong with them.
pub(crate) fn decode(bytes: &[u8]) -> Result<Table, &'static str> {
    let (body, crc) = bytes.split_last_chunk::<4>().ok_or("the file is too short")?;
    if crc32fast::hash(body) != u32::from_be_bytes(*crc) {
        return Err("the checksum does not match");
    }
    let mut reader = Reader(body);
    if reader.array::<8>().as_ref() != Some(MAGIC) {
        return Err("the magic is not ours");
    }
    if reader.u32() != Some(VERSION) {
        return Err("the version is unknown");
    }
    let header = (|| Some((reader.u32()?, reader.u64()?, reader.u32()?)))();
    let (flags, offset, count) = header.ok_or("the header is cut short")?;
    let mut rows = Vec::new();
    for _ in 0..count {
        let row = row(&mut reader).ok_or("a row is cut short")?;
        if !is_plausible(&row) {
            return Err("a row is out of range");
        }
        rows.push(row);
    }
    if !reader.0.is_empty() {
        return Err("there are bytes behind the last row");
    }
    Ok(Table { offset, rebuilding: flags & FLAG_REBUILDING != 0, rows })
}

fn row(reader: &mut Reader<'_>) -> Option<Row> {
    let [len] = reader.array()?;
    // An invalid name becomes one that is refused as out of range.
    let topic = String::from_utf8(reader.bytes(usize::from(len))?.to_vec()).unwrap_or_default();
    let queue_id = reader.array().map(i32::from_be_bytes)?;
    let (min, max) = (reader.u64()?, reader.u64()?);
    let (file_size, last_physical) = (reader.u64()?, reader.u64()?);
    Some(Row { topic, queue_id, min, max, file_size, last_physical })
}

fn is_plausible(row: &Row) -> bool {
    check_topic(&row.topic, row.queue_id).is_ok()
        && row.min <= row.max
        && row.max <= QUEUE_OFFSET_MAX
        && (ENTRY_SIZE..=FILE_SIZE_MAX).contains(&row.file_size)
        && row.file_size.is_multiple_of(ENTRY_SIZE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rows() -> impl Strategy<Value = Vec<Row>> {
        let row = (
            "[a-zA-Z%_-]{1,40}",
            0i32..,
            0u64..1 << 40,
            0u64..1 << 40,
            1u64..1 << 20,
            any::<u64>(),
        );
        let row = row.prop_map(|(topic, queue_id, a, b, slots, last_physical)| Row {
            topic,
            queue_id,
            min: a.min(b),
            max: a.max(b),
            file_size: slots * ENTRY_SIZE,
            last_physical,
        });
        prop::collection::vec(row, 0..20)
    }

    fn encode(table: &Table) -> Vec<u8> {
        let mut writer = TableWriter::new(table.offset, table.rebuilding);
        for row in &table.rows {
            writer.row(
                &row.topic,
                row.queue_id,
                [row.min, row.max, row.file_size, row.last_physical],
            );
        }
        writer.finish()
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(offset: u64, rebuilding: bool, rows in rows()) {
            let table = Table { offset, rebuilding, rows };
            prop_assert_eq!(decode(&encode(&table)), Ok(table));
        }

        #[test]
        fn any_bytes_decode_to_something(mut bytes in prop::collection::vec(any::<u8>(), 0..400), sign: bool) {
            if sign {
                // Past the checksum, to the rows.
                let head = [&MAGIC[..], &VERSION.to_be_bytes(), &[0; 12], &[0, 0, 0, 2]].concat();
                bytes.splice(0..0, head);
                bytes.extend(crc32fast::hash(&bytes).to_be_bytes());
            }
            let _ = decode(&bytes);
        }
    }

    #[test]
    fn every_flipped_or_missing_byte_is_noticed() {
        let row = |topic: &str, queue_id| Row {
            topic: topic.to_owned(),
            queue_id,
            min: 3,
            max: 70_000,
            file_size: 6_000_000,
            last_physical: 123_456_789,
        };
        let table = Table {
            offset: 987_654_321,
            rebuilding: false,
            rows: vec![row("orders", 0), row("%RETRY%g", 7)],
        };
        let bytes = encode(&table);
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut damaged = bytes.clone();
                damaged[at] ^= 1 << bit;
                assert!(decode(&damaged).is_err(), "byte {at} bit {bit}");
            }
            assert!(decode(&bytes[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn rows_out_of_range_are_refused() {
        let good = Row {
            topic: "t".into(),
            queue_id: 0,
            min: 0,
            max: 1,
            file_size: ENTRY_SIZE,
            last_physical: 0,
        };
        let bad = [
            Row { topic: "../t".into(), ..good.clone() },
            Row { topic: "..".into(), ..good.clone() },
            Row { topic: String::new(), ..good.clone() },
            Row { queue_id: -1, ..good.clone() },
            Row { min: 2, ..good.clone() },
            Row { max: u64::MAX, ..good.clone() },
            Row { file_size: 0, ..good.clone() },
            Row { file_size: 30, ..good.clone() },
            Row { file_size: u64::MAX - 15, ..good.clone() },
        ];
        for row in bad {
            let table = Table { offset: 0, rebuilding: false, rows: vec![row.clone()] };
            assert!(decode(&encode(&table)).is_err(), "{row:?}");
        }
    }
}
