//! Records on their way to another node.

use super::history::{epoch_at, next_epoch};
use super::session::Outgoing;
use super::wire::{DATA_MAX, Frame};
use super::{EpochStart, Refusal, ReplicatedLog};
use crate::error::{Error, Result};
use std::ops::Range;

/// What lies at the beginning of `range`, as much as one frame takes: never of two epochs. An empty range
/// makes a heartbeat.
pub(crate) fn data_at(
    log: &dyn ReplicatedLog,
    epochs: &[EpochStart],
    range: Range<u64>,
    confirmed: u64,
) -> Result<Outgoing> {
    let offset = range.start;
    let epoch = epoch_at(epochs, offset);
    if range.is_empty() {
        return Ok(Outgoing::frame(&Frame::Data { epoch, offset, confirmed, bytes: &[] }));
    }
    let boundary = next_epoch(epochs, offset).unwrap_or(u64::MAX).min(range.end);
    let slice = log.read(offset, DATA_MAX.min(boundary - offset))?;
    if slice.bytes().is_empty() {
        // Deleted meanwhile, because it has expired.
        let end = log.min_offset();
        return Err(Error::Refused(Refusal::OutOfPlace { end, at: offset }));
    }
    let head = Frame::Data { epoch, offset, confirmed, bytes: slice.bytes() }.head();
    Ok(Outgoing { head, body: Some(slice) })
}
