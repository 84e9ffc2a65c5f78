//! The fields before a record's body, in file order, and the parts behind it.

use super::format::{
    HEADER_SIZE_MAX, HEADER_SIZE_MIN, HOST_V4_SIZE, HOST_V6_SIZE, MAGIC_V1, MAGIC_V2,
    RECORD_CRC_SIZE, TOPIC_LEN_MAX, VALUE_END,
};
use super::host::Host;
use super::sys_flag::SysFlag;
use super::wire::{Sink, StackBuffer};

/// Which of RocketMQ's two layouts a record has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RecordVersion {
    /// The length of the topic takes one signed byte.
    V1,
    /// The length of the topic takes two bytes; RocketMQ 5.1 and later.
    V2,
}

impl RecordVersion {
    /// The version that RocketMQ chooses: V1 for every topic it can hold.
    pub(crate) fn for_topic(topic: &str) -> Self {
        if topic.len() > TOPIC_LEN_MAX { Self::V2 } else { Self::V1 }
    }

    pub(crate) fn from_magic(magic: u32) -> Option<Self> {
        match magic {
            MAGIC_V1 => Some(Self::V1),
            MAGIC_V2 => Some(Self::V2),
            _ => None,
        }
    }

    pub(crate) fn magic(self) -> u32 {
        match self {
            Self::V1 => MAGIC_V1,
            Self::V2 => MAGIC_V2,
        }
    }

    pub(crate) fn topic_len_size(self) -> usize {
        match self {
            Self::V1 => 1,
            Self::V2 => 2,
        }
    }
}

/// The fixed fields of a record but for its lengths and magic code.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Header {
    pub body_crc: u32,
    pub queue_id: i32,
    pub flag: i32,
    pub queue_offset: i64,
    pub physical_offset: i64,
    pub sys_flag: SysFlag,
    pub born_timestamp: i64,
    pub born_host: Host,
    pub store_timestamp: i64,
    pub store_host: Host,
    pub reconsume_times: i32,
    pub prepared_transaction_offset: i64,
}

impl Header {
    /// Everything from the record's first byte to its body, into an empty buffer.
    #[inline(always)]
    pub(crate) fn encode(
        &self,
        record_size: usize,
        version: RecordVersion,
        body_len: usize,
        buffer: &mut StackBuffer<HEADER_SIZE_MAX>,
    ) {
        buffer.write(&length_i32(record_size));
        buffer.write(&version.magic().to_be_bytes());
        buffer.write(&self.body_crc.to_be_bytes());
        buffer.write(&self.queue_id.to_be_bytes());
        buffer.write(&self.flag.to_be_bytes());
        buffer.write(&self.queue_offset.to_be_bytes());
        buffer.write(&self.physical_offset.to_be_bytes());
        buffer.write(&self.stored_sys_flag().0.to_be_bytes());
        buffer.write(&self.born_timestamp.to_be_bytes());
        self.born_host.write(buffer);
        buffer.write(&self.store_timestamp.to_be_bytes());
        self.store_host.write(buffer);
        buffer.write(&self.reconsume_times.to_be_bytes());
        buffer.write(&self.prepared_transaction_offset.to_be_bytes());
        buffer.write(&length_i32(body_len));
    }

    /// The width of the hosts follows from two bits, so the bits follow from the hosts, whatever
    /// the caller gave.
    fn stored_sys_flag(&self) -> SysFlag {
        let mut sys_flag = self.sys_flag.without(SysFlag::BORN_HOST_V6 | SysFlag::STORE_HOST_V6);
        if self.born_host.ip.is_ipv6() {
            sys_flag = sys_flag | SysFlag::BORN_HOST_V6;
        }
        if self.store_host.ip.is_ipv6() {
            sys_flag = sys_flag | SysFlag::STORE_HOST_V6;
        }
        sys_flag
    }
}

/// Bytes before the body of a record whose hosts have IPv6 addresses or not.
pub(crate) fn header_size(born_v6: bool, store_v6: bool) -> usize {
    HEADER_SIZE_MIN - 2 * HOST_V4_SIZE + host_size(born_v6) + host_size(store_v6)
}

pub(crate) fn host_size(v6: bool) -> usize {
    if v6 { HOST_V6_SIZE } else { HOST_V4_SIZE }
}

/// What follows the body: topic and properties.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tail<'a> {
    pub version: RecordVersion,
    pub topic: &'a str,
    /// Without the record checksum.
    pub properties: &'a [u8],
    /// Whether a record checksum follows, which counts as a property.
    pub record_crc: bool,
}

impl Tail<'_> {
    /// Bytes of the property string as it is stored.
    pub(crate) fn properties_len(&self) -> usize {
        let added = if self.record_crc { self.separator().len() + RECORD_CRC_SIZE } else { 0 };
        self.properties.len() + added
    }

    /// Bytes from the body to the end of the record.
    pub(crate) fn size(&self) -> usize {
        self.version.topic_len_size() + self.topic.len() + 2 + self.properties_len()
    }

    /// Bytes that [`write`](Self::write) writes.
    pub(crate) fn len_without_crc(&self) -> usize {
        self.size() - if self.record_crc { RECORD_CRC_SIZE } else { 0 }
    }

    /// Writes everything but the record checksum.
    #[inline]
    pub(crate) fn write(&self, sink: &mut impl Sink) {
        match self.version {
            RecordVersion::V1 => sink.write(&length_i8(self.topic.len())),
            RecordVersion::V2 => sink.write(&length_i16(self.topic.len())),
        }
        sink.write(self.topic.as_bytes());
        sink.write(&length_i16(self.properties_len()));
        sink.write(self.properties);
        sink.write(self.separator());
    }

    /// Ends the last property where the caller did not and the record checksum follows.
    fn separator(&self) -> &'static [u8] {
        match self.properties.last() {
            Some(&last) if self.record_crc && last != VALUE_END => &[VALUE_END],
            _ => &[],
        }
    }
}

// A length that its field cannot hold becomes -1, which every decoder refuses: better than a
// truncated number that makes another record of the same bytes.

fn length_i8(len: usize) -> [u8; 1] {
    i8::try_from(len).unwrap_or(-1).to_be_bytes()
}

fn length_i16(len: usize) -> [u8; 2] {
    i16::try_from(len).unwrap_or(-1).to_be_bytes()
}

fn length_i32(len: usize) -> [u8; 4] {
    i32::try_from(len).unwrap_or(-1).to_be_bytes()
}
