//! A stored message with all its fields, owned.

use super::crc::record_crc_property;
use super::format::DELAY_LEVELS_MS;
use super::header::{Header, RecordVersion, Tail, header_size};
use super::host::Host;
use super::ids::OffsetMessageId;
use super::properties::Properties;
use super::sys_flag::SysFlag;
use super::tags::tags_code;
use super::wire::{Sink, StackBuffer};

/// A message as it was read from the log.
///
/// Its offsets are signed as in the format: a record of another program may hold anything there. In a
/// message that [`Store::get`](crate::Store::get) returns, `queue_offset` and `physical_offset` are
/// never negative.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredMessage {
    /// Which layout its record has.
    pub version: RecordVersion,
    /// The stored checksum of the body.
    pub body_crc: u32,
    /// The queue.
    pub queue_id: i32,
    /// The application's own number.
    pub flag: i32,
    /// Its position in its queue, counted from 0.
    pub queue_offset: i64,
    /// Where in the log the record begins.
    pub physical_offset: i64,
    /// How the body and hosts are encoded, and the message's part in a transaction.
    pub sys_flag: SysFlag,
    /// When the producer made the message, in milliseconds since 1970.
    pub born_timestamp: i64,
    /// Where the producer runs.
    pub born_host: Host,
    /// When the message was stored, in milliseconds since 1970.
    pub store_timestamp: i64,
    /// Where the message was stored first.
    pub store_host: Host,
    /// How often a consumer failed to handle the message.
    pub reconsume_times: i32,
    /// Physical offset of the half message that this one comes from.
    pub prepared_transaction_offset: i64,
    /// The body.
    pub body: Vec<u8>,
    /// The topic.
    pub topic: String,
    /// The properties, without the record checksum.
    pub properties: Properties,
    /// The stored checksum of the record, where it ends in one.
    pub record_crc: Option<u32>,
}

impl StoredMessage {
    /// The record, from the fields alone: what was decoded is encoded to the same bytes.
    ///
    /// Checksums are written as they stand, so after changing a field they no longer match. Fields
    /// that the format cannot hold give bytes that no decoder accepts.
    pub fn encode(&self) -> Vec<u8> {
        let tail = self.tail();
        let size = self.size();
        let mut record = Vec::with_capacity(size);
        let mut header = StackBuffer::new();
        self.header().encode(size, self.version, self.body.len(), &mut header);
        record.write(header.filled());
        record.write(&self.body);
        tail.write(&mut record);
        if let Some(crc) = self.record_crc {
            record.write(&record_crc_property(crc));
        }
        record
    }

    /// Bytes of the record.
    pub fn size(&self) -> usize {
        let header_size = header_size(self.born_host.ip.is_ipv6(), self.store_host.ip.is_ipv6());
        header_size + self.body.len() + self.tail().size()
    }

    /// The value of a property.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.properties.get(name)
    }

    /// The tag.
    pub fn tags(&self) -> Option<&str> {
        self.properties.view().tags()
    }

    /// The keys, separated by spaces.
    pub fn keys(&self) -> Option<&str> {
        self.properties.view().keys()
    }

    /// The producer's own id of the message.
    pub fn unique_key(&self) -> Option<&str> {
        self.properties.view().unique_key()
    }

    /// What the queue entry keeps of the tag, with RocketMQ's default delay levels.
    pub fn tags_code(&self) -> i64 {
        tags_code(&self.topic, self.properties.view(), self.store_timestamp, &DELAY_LEVELS_MS)
    }

    /// The id that tells where the record lies.
    pub fn message_id(&self) -> OffsetMessageId {
        OffsetMessageId { host: self.store_host, physical_offset: self.physical_offset }
    }

    fn header(&self) -> Header {
        Header {
            body_crc: self.body_crc,
            queue_id: self.queue_id,
            flag: self.flag,
            queue_offset: self.queue_offset,
            physical_offset: self.physical_offset,
            sys_flag: self.sys_flag,
            born_timestamp: self.born_timestamp,
            born_host: self.born_host,
            store_timestamp: self.store_timestamp,
            store_host: self.store_host,
            reconsume_times: self.reconsume_times,
            prepared_transaction_offset: self.prepared_transaction_offset,
        }
    }

    fn tail(&self) -> Tail<'_> {
        Tail {
            version: self.version,
            topic: &self.topic,
            properties: self.properties.as_bytes(),
            record_crc: self.record_crc.is_some(),
        }
    }
}

#[cfg(test)]
mod tests;
