//! A record in a mapped segment, held.

use crate::disk::Region;
use crate::error::Result;
use crate::message::{Parts, RecordRef, StoredMessage, queue_offset};
use std::borrow::Cow;
use std::fmt;

/// A stored message, read in place.
///
/// It keeps its segment in memory for as long as it lives, also when the file has been removed or
/// the store closed; cloning it copies nothing.
#[derive(Clone)]
pub struct MessageView {
    region: Region,
    at: u64,
    size: u32,
    physical_offset: u64,
    parts: Parts,
}

impl MessageView {
    /// The view of `record`, whose bytes lie at `at` of `region`.
    #[inline]
    pub(super) fn new(
        region: Region,
        at: u64,
        physical_offset: u64,
        record: &RecordRef<'_>,
    ) -> Self {
        Self { region, at, size: record.size() as u32, physical_offset, parts: record.parts() }
    }

    /// Where in the log it begins, in bytes.
    pub fn physical_offset(&self) -> u64 {
        self.physical_offset
    }

    /// Bytes of the record.
    pub fn size(&self) -> usize {
        self.size as usize
    }

    /// The record as it lies in the log.
    pub fn bytes(&self) -> &[u8] {
        // Published when the view was made, and so for ever.
        self.region.bytes(self.at..self.at + u64::from(self.size)).unwrap_or_default()
    }

    /// Its fields.
    pub fn record(&self) -> RecordRef<'_> {
        RecordRef::from_parts(self.bytes(), &self.parts)
    }

    /// The body.
    pub fn body(&self) -> &[u8] {
        self.parts.body(self.bytes())
    }

    /// The body as its producer gave it: decompressed, if it is stored compressed. Takes memory for `max`
    /// bytes and some buffers at most; a body that is stored as it was is given whatever its length.
    ///
    /// # Errors
    /// As [`StoredMessage::decoded_body`].
    pub fn decoded_body(&self, max: usize) -> Result<Cow<'_, [u8]>> {
        self.record().decoded_body(max)
    }

    /// The topic.
    pub fn topic(&self) -> &str {
        self.record().topic()
    }

    /// Its position in its queue, counted from 0.
    pub fn queue_offset(&self) -> u64 {
        queue_offset(self.bytes()).cast_unsigned()
    }

    /// A copy that keeps nothing in memory but itself.
    pub fn to_stored(&self) -> StoredMessage {
        self.record().to_stored()
    }
}

impl fmt::Debug for MessageView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let record = self.record();
        f.debug_struct("MessageView")
            .field("physical_offset", &self.physical_offset)
            .field("topic", &record.topic())
            .field("queue_id", &record.queue_id())
            .field("queue_offset", &record.queue_offset())
            .field("body_len", &record.body().len())
            .finish_non_exhaustive()
    }
}
