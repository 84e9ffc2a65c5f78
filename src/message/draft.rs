//! From message to record: all work that can be done before the append lock is done in
//! [`Draft::new`], what is left in [`Draft::encode`] is a small header and copying.

use super::crc::{Checksum, Suffix, record_crc_property};
use super::format::{
    CRC_MASK, PROPERTIES_LEN_MAX, RETRY_TOPIC_LEN_MAX, RETRY_TOPIC_PREFIX, TOPIC_LEN_MAX,
};
use super::header::{Header, RecordVersion, Tail, header_size};
use super::host::Host;
use super::message::Message;
use super::wire::{Sink, StackBuffer};
use crate::error::{Error, InvalidMessage};

/// How a store encodes its messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordLayout {
    /// The store host of messages that bring none.
    pub store_host: Host,
    /// The born host of messages that bring none.
    pub born_host: Host,
    /// Whether records end in a checksum over all of them, RocketMQ's `enabledAppendPropCRC`.
    pub record_crc: bool,
    /// Whether topics may be longer than a V1 record can hold.
    pub long_topics: bool,
    /// Longest body, in bytes.
    pub max_message_size: usize,
    /// Largest record, in bytes: what one segment has room for, less its blank.
    pub max_record_size: usize,
}

/// What a record learns when it gets its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Where in the log the record begins.
    pub physical_offset: u64,
    /// Its position in its queue, counted from 0; 0 for a message that is in none.
    pub queue_offset: u64,
    /// When it is stored, in milliseconds since 1970.
    pub store_timestamp: i64,
}

/// Topic and properties up to this size are put together before they are checksummed and copied: one
/// call instead of five, twice.
const SHORT_TAIL_MAX: usize = 192;

/// A validated message whose body and properties are already checksummed, ready to be given its
/// place.
#[derive(Debug, Clone, Copy)]
pub struct Draft<'a> {
    message: &'a Message,
    layout: &'a RecordLayout,
    size: usize,
    body_crc: u32,
    /// The checksum of all that follows the header, where the record gets one.
    suffix: Option<Suffix>,
}

impl<'a> Draft<'a> {
    /// Validates `message` and checksums what is known of its record. Allocates nothing.
    ///
    /// # Errors
    /// [`Error::InvalidMessage`] for a topic, queue id or property that RocketMQ's format does not
    /// allow; [`Error::TooLarge`] for a part over its limit.
    pub fn new(message: &'a Message, layout: &'a RecordLayout) -> Result<Self, Error> {
        if let Some(invalid) = message.invalid() {
            return Err(Error::InvalidMessage(invalid.clone()));
        }
        check_topic(message.topic(), layout.long_topics)?;
        check_queue_id(message.queue_id())?;
        let tail = tail(message, layout);
        if !message.body_is_known() {
            check_len("body", message.counted_len(), layout.max_message_size)?;
        }
        check_len("properties", tail.properties_len(), PROPERTIES_LEN_MAX)?;
        let (born_host, store_host) = (born_host(message, layout), store_host(message, layout));
        let header_size = header_size(born_host.ip.is_ipv6(), store_host.ip.is_ipv6());
        let size = header_size + message.body().len() + tail.size();
        check_len("record", size, layout.max_record_size.min(i32::MAX as usize))?;

        let mut checksum = Checksum::default();
        checksum.write(message.body());
        let body_crc = checksum.value() & CRC_MASK;
        let suffix = layout.record_crc.then(|| {
            write_tail(&tail, &[], &mut checksum);
            Suffix::new(checksum.value(), (message.body().len() + tail.len_without_crc()) as u32)
        });
        Ok(Self { message, layout, size, body_crc, suffix })
    }

    /// Bytes of the record.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Whether it was made for `layout`, or one like it.
    #[inline]
    pub(crate) fn is_for(&self, layout: &RecordLayout) -> bool {
        std::ptr::eq(self.layout, layout) || self.layout == layout
    }

    /// Whether the message gets a queue offset and a queue entry.
    pub fn takes_queue_offset(&self) -> bool {
        self.message.sys_flag.takes_queue_offset()
    }

    /// The topic.
    pub fn topic(&self) -> &'a str {
        self.message.topic()
    }

    /// The queue.
    pub fn queue_id(&self) -> i32 {
        self.message.queue_id()
    }

    /// The store host, part of the message's id.
    pub(crate) fn store_host(&self) -> Host {
        store_host(self.message, self.layout)
    }

    /// Whether the put waits for flush and replication.
    pub fn waits(&self) -> bool {
        self.message.waits()
    }

    /// Writes the record, [`size`](Self::size) bytes.
    #[inline]
    pub fn encode(&self, stamp: &Stamp, sink: &mut impl Sink) {
        let Self { message, layout, .. } = *self;
        let born_at = message.born_timestamp;
        let fields = Header {
            body_crc: self.body_crc,
            queue_id: message.queue_id(),
            flag: message.flag,
            queue_offset: stamp.queue_offset.cast_signed(),
            physical_offset: stamp.physical_offset.cast_signed(),
            sys_flag: message.sys_flag,
            born_timestamp: if born_at == 0 { stamp.store_timestamp } else { born_at },
            born_host: born_host(message, layout),
            store_timestamp: stamp.store_timestamp,
            store_host: store_host(message, layout),
            reconsume_times: message.reconsume_times,
            prepared_transaction_offset: message.prepared_transaction_offset,
        };
        let tail = tail(message, layout);
        let mut header = StackBuffer::new();
        fields.encode(self.size, tail.version, message.body().len(), &mut header);
        sink.write(header.filled());
        sink.write(message.body());
        match self.suffix {
            Some(suffix) => {
                let property = record_crc_property(suffix.after(header.filled()));
                write_tail(&tail, &property, sink);
            }
            None => write_tail(&tail, &[], sink),
        }
    }
}

fn born_host(message: &Message, layout: &RecordLayout) -> Host {
    message.born_host.unwrap_or(layout.born_host)
}

fn store_host(message: &Message, layout: &RecordLayout) -> Host {
    message.store_host.unwrap_or(layout.store_host)
}

fn tail<'a>(message: &'a Message, layout: &RecordLayout) -> Tail<'a> {
    Tail {
        version: RecordVersion::for_topic(message.topic()),
        topic: message.topic(),
        properties: message.properties_ref().as_bytes(),
        record_crc: layout.record_crc,
    }
}

/// Writes `tail` and what follows it, in one piece if they are short.
#[inline]
fn write_tail(tail: &Tail<'_>, record_crc: &[u8], sink: &mut impl Sink) {
    if tail.len_without_crc() + record_crc.len() <= SHORT_TAIL_MAX {
        let mut short = StackBuffer::<SHORT_TAIL_MAX>::new();
        tail.write(&mut short);
        short.write(record_crc);
        sink.write(short.filled());
    } else {
        tail.write(sink);
        sink.write(record_crc);
    }
}

/// Refuses a name that no topic can have.
pub(crate) fn check_topic(topic: &str, long_topics: bool) -> Result<(), Error> {
    if topic.is_empty() {
        return Err(Error::InvalidMessage(InvalidMessage::EmptyTopic));
    }
    let long = long_topics && topic.starts_with(RETRY_TOPIC_PREFIX);
    let max = if long { RETRY_TOPIC_LEN_MAX } else { TOPIC_LEN_MAX };
    check_len("topic", topic.len(), max)?;
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '%' | '|' | '_' | '-');
    match topic.chars().find(|&c| !allowed(c)) {
        Some(found) => Err(Error::InvalidMessage(InvalidMessage::TopicCharacter { found })),
        None => Ok(()),
    }
}

/// How many queues a topic has is the caller's to know.
fn check_queue_id(queue_id: i32) -> Result<(), Error> {
    if queue_id < 0 {
        let invalid = InvalidMessage::QueueId { queue_id, limit: i32::MAX };
        return Err(Error::InvalidMessage(invalid));
    }
    Ok(())
}

fn check_len(what: &'static str, len: usize, max: usize) -> Result<(), Error> {
    if len > max {
        return Err(Error::TooLarge { what, len, max });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
