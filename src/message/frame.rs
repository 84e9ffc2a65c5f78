//! What lies at an offset of a segment: a record, or the blank that ends the segment.

use super::format::{BLANK_SIZE, MAGIC_BLANK, MAGIC_V1, MAGIC_V2};
use super::record::{RecordCheck, RecordRef, read_prefix};
use crate::error::Corruption;

/// Where a record has its magic code.
const MAGIC_AT: usize = 4;
/// Where a record says at which physical offset it lies.
const PHYSICAL_OFFSET_AT: usize = 28;

/// What lies at an offset of a segment.
#[derive(Debug, Clone, Copy)]
pub enum Frame<'a> {
    /// A record.
    Record(RecordRef<'a>),
    /// Nothing up to the end of the segment.
    Blank {
        /// Bytes to the end of the segment.
        size: u32,
    },
}

/// Reads what lies at `physical_offset`, where `remaining` bytes are left in the segment and
/// `bytes` holds the first of them, or all.
///
/// A record must lie where it says it lies and leave room for a blank; a blank must reach to the
/// end of the segment. Checksums are not verified.
///
/// # Errors
/// [`Corruption::Truncated`] only if `remaining` bytes would be enough: fetch what it asks for and
/// try again. Any other [`Corruption`] if no record and no blank lies here.
pub fn frame(bytes: &[u8], physical_offset: u64, remaining: u64) -> Result<Frame<'_>, Corruption> {
    look(bytes, physical_offset, remaining, RecordRef::decode)
}

/// The same, and the record's checksum is verified.
///
/// # Errors
/// Those of [`frame`], and those of [`RecordRef::verify`].
#[inline(always)]
pub(crate) fn verified_frame(
    bytes: &[u8],
    physical_offset: u64,
    remaining: u64,
    check: RecordCheck,
) -> Result<Frame<'_>, Corruption> {
    let mut verified = Ok(());
    let found = look(bytes, physical_offset, remaining, |bytes| {
        let (record, outcome) = RecordRef::decode_and_verify(bytes, check)?;
        verified = outcome;
        Ok(record)
    });
    // What is no record here need not have its checksum judged.
    found.and_then(|frame| verified.map(|()| frame))
}

#[inline(always)]
fn look<'a>(
    bytes: &'a [u8],
    physical_offset: u64,
    remaining: u64,
    decode: impl FnOnce(&'a [u8]) -> Result<RecordRef<'a>, Corruption>,
) -> Result<Frame<'a>, Corruption> {
    if remaining < BLANK_SIZE as u64 {
        let value = remaining.cast_signed();
        return Err(Corruption::Length { field: "rest of the segment", value });
    }
    let (size, magic) = read_prefix(bytes)?;
    if magic == MAGIC_BLANK {
        return match u32::try_from(size) {
            Ok(size) if u64::from(size) == remaining => Ok(Frame::Blank { size }),
            _ => Err(Corruption::Length { field: "blank size", value: size.into() }),
        };
    }
    match decode(bytes) {
        Err(Corruption::Truncated { needed, .. }) if !fits(needed, remaining) => {
            Err(Corruption::Length { field: "record size", value: size.into() })
        }
        Err(other) => Err(other),
        Ok(record) if !fits(record.size() as u64, remaining) => {
            Err(Corruption::Length { field: "record size", value: size.into() })
        }
        Ok(record) if record.physical_offset().cast_unsigned() != physical_offset => {
            let stored = record.physical_offset();
            Err(Corruption::Offset { stored, actual: physical_offset })
        }
        Ok(record) => Ok(Frame::Record(record)),
    }
}

/// Offsets in `bytes`, which lie at `start` of the log, at which a record may begin: those with a
/// magic code and the right physical offset behind them.
pub(crate) fn candidates(bytes: &[u8], start: u64) -> impl Iterator<Item = u64> {
    let magics = [MAGIC_V1.to_be_bytes(), MAGIC_V2.to_be_bytes()];
    bytes.windows(PHYSICAL_OFFSET_AT + 8).zip(start..).filter_map(move |(window, at)| {
        let (_, rest) = window.split_at_checked(MAGIC_AT)?;
        let magic = rest.first_chunk::<4>()?;
        let stated = window.last_chunk::<8>()?;
        (magics.contains(magic) && *stated == at.to_be_bytes()).then_some(at)
    })
}

/// Where the body of the record at the front of `bytes` ends, if the body is whole, though the record
/// may be damaged elsewhere: then nothing else begins before. Properties are text, which no record is.
pub(crate) fn whole_body_end(bytes: &[u8]) -> Option<usize> {
    let record = RecordRef::decode(bytes).ok()?;
    record.verify(RecordCheck::Body).ok()?;
    Some(record.body_end())
}

/// Whether a record leaves room for a blank.
fn fits(record_size: u64, remaining: u64) -> bool {
    record_size.checked_add(BLANK_SIZE as u64).is_some_and(|end| end <= remaining)
}

/// The blank for the last `remaining` bytes of a segment. What follows these eight bytes means
/// nothing.
pub fn blank(remaining: u32) -> [u8; BLANK_SIZE] {
    let ([a, b, c, d], [e, f, g, h]) = (remaining.to_be_bytes(), MAGIC_BLANK.to_be_bytes());
    [a, b, c, d, e, f, g, h]
}

#[cfg(test)]
mod tests;
