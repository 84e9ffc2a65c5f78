//! The slots of a queue, and the offsets that count them.

/// Bytes per entry in a queue file.
pub const ENTRY_SIZE: u64 = 20;
pub(crate) const ENTRY_LEN: usize = ENTRY_SIZE as usize;

/// Queue offsets stay below this, so that byte positions fit in RocketMQ's signed 64 bits with
/// room to spare: no sum of an offset in bytes and a file size overflows.
pub(crate) const QUEUE_OFFSET_MAX: u64 = 1 << 56;

/// The largest queue file.
pub(crate) const FILE_SIZE_MAX: u64 = 1 << 40;

/// Where one message lies: one slot of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueEntry {
    /// Offset of the record in the commit log.
    pub physical_offset: u64,
    /// Length of the whole record in bytes.
    pub size: u32,
    /// Hash of the message's tag, sign-extended, 0 without one; in `SCHEDULE_TOPIC_XXXX` the delivery
    /// time in milliseconds since 1970.
    pub tags_code: i64,
}

impl QueueEntry {
    /// What RocketMQ writes into slots that have no message: it passes for an entry, but the size is
    /// no record's.
    pub const BLANK: Self = Self { physical_offset: 0, size: i32::MAX as u32, tags_code: 0 };

    /// The 20 bytes on disk.
    pub fn encode(self) -> [u8; 20] {
        let mut bytes = [0; ENTRY_LEN];
        let (offset, rest) = bytes.split_at_mut(8);
        let (size, tags) = rest.split_at_mut(4);
        offset.copy_from_slice(&self.physical_offset.to_be_bytes());
        size.copy_from_slice(&self.size.to_be_bytes());
        tags.copy_from_slice(&self.tags_code.to_be_bytes());
        bytes
    }

    /// The entry in 20 bytes of a file; `None` where RocketMQ would not take them for one: a
    /// negative offset, or a size below one.
    pub fn decode(bytes: &[u8; 20]) -> Option<Self> {
        let (offset, rest) = bytes.split_first_chunk::<8>()?;
        let (size, rest) = rest.split_first_chunk::<4>()?;
        let tags = rest.first_chunk::<8>()?;
        let entry = Self {
            physical_offset: u64::from_be_bytes(*offset),
            size: u32::from_be_bytes(*size),
            tags_code: i64::from_be_bytes(*tags),
        };
        entry.is_valid().then_some(entry)
    }

    /// Whether this slot was filled to bridge a gap and points to no message.
    pub fn is_blank(&self) -> bool {
        *self == Self::BLANK
    }

    pub(crate) fn is_valid(&self) -> bool {
        self.physical_offset <= i64::MAX as u64 && self.size > 0 && self.size <= i32::MAX as u32
    }
}

/// What [`ConsumeQueue::append`](super::ConsumeQueue::append) did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueAppend {
    /// The entry is the queue's new end.
    New,
    /// The queue has an entry at this offset already; nothing was changed.
    Duplicate,
    /// The entry was appended, but offsets before it are missing from the log. In a queue with
    /// entries they were filled with [`QueueEntry::BLANK`]; an empty queue now starts at the entry.
    Gap {
        /// How many offsets are missing.
        missing: u64,
    },
}

/// Which message [`ConsumeQueue::offset_by_time`](super::ConsumeQueue::offset_by_time) looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum TimeBound {
    /// The first message stored at or after the time.
    #[default]
    Lower,
    /// The last message stored at or before the time.
    Upper,
}
