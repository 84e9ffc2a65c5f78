//! From record to message, without copying.

use super::crc::{split_record_crc, stored_crc};
use super::format::{DELAY_LEVELS_MS, RECORD_CRC_SIZE, RECORD_SIZE_MIN};
use super::header::{RecordVersion, header_size, host_size};
use super::host::Host;
use super::ids::OffsetMessageId;
use super::properties::PropertiesRef;
use super::stored::StoredMessage;
use super::sys_flag::SysFlag;
use super::tags::tags_code;
use super::wire::Reader;
use crate::error::Corruption;
use std::fmt;

/// One encoded record, its parts found but not copied, its checksums not yet verified. Fields are
/// decoded when they are asked for.
#[derive(Clone, Copy)]
pub struct RecordRef<'a> {
    bytes: &'a [u8],
    parts: Parts,
    topic: &'a str,
}

/// Where the parts of a record begin: what an owner of the bytes keeps so that it need not look for
/// them again.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Parts {
    version: RecordVersion,
    body: u32,
    topic: u32,
    properties: u32,
}

impl Parts {
    /// The body of the record in `bytes`.
    pub(crate) fn body<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        let end = (self.topic as usize).saturating_sub(self.version.topic_len_size());
        bytes.get(self.body as usize..end).unwrap_or_default()
    }
}

/// By which checksum a record is judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RecordCheck {
    /// By that of the body. A `__CRC32#` that does not match may be stale: RocketMQ without the
    /// option copies the property along when it puts a stored message again.
    Body,
    /// By that of the whole record, which must be there: for records that are known to have been
    /// written with one. The body and its checksum are covered.
    Record,
}

impl<'a> RecordRef<'a> {
    /// Finds the parts of the record at the front of `bytes`, which may hold more.
    ///
    /// Looks at structure only: all lengths must agree with each other.
    ///
    /// # Errors
    /// [`Corruption::Truncated`] if a record seems to begin here but ends behind `bytes`. It says
    /// how many bytes to come back with; that number is not yet to be trusted.
    /// [`Corruption::Magic`], [`Corruption::Length`], [`Corruption::Topic`] if this is no record.
    #[inline]
    pub fn decode(bytes: &'a [u8]) -> Result<Self, Corruption> {
        let (size, magic) = read_prefix(bytes)?;
        let version = RecordVersion::from_magic(magic).ok_or(Corruption::Magic { found: magic })?;
        let wrong_size = || Corruption::Length { field: "record size", value: size.into() };
        let size = usize::try_from(size).map_err(|_| wrong_size())?;
        if size < RECORD_SIZE_MIN {
            return Err(wrong_size());
        }
        let bytes = bytes.get(..size).ok_or_else(|| match size_by_parts(bytes, version) {
            // Whoever waited for as many bytes as it claims could wait for ever.
            Some(other) if other != size => wrong_size(),
            _ => truncated(size, bytes),
        })?;

        // Every record of the smallest size holds the field that says it.
        let body = body_at(bytes);
        let mut reader = Reader::new(bytes);
        reader.slice(body - BODY_LEN_SIZE).ok_or_else(wrong_size)?;
        let at = |reader: &Reader<'_>| (bytes.len() - reader.len()) as u32;
        let body_len = reader.i32().ok_or_else(wrong_size)?;
        part(&mut reader, "body length", body_len.into())?;
        let topic_len = topic_len(&mut reader, version).ok_or_else(wrong_size)?;
        let topic_at = at(&reader);
        let topic = part(&mut reader, "topic length", topic_len)?;
        let properties_len = reader.i16().ok_or_else(wrong_size)?;
        let properties = at(&reader);
        part(&mut reader, "properties length", properties_len.into())?;
        if !reader.is_empty() {
            return Err(wrong_size());
        }

        let topic = str::from_utf8(topic).map_err(|_| Corruption::Topic)?;
        let parts = Parts { version, body: body as u32, topic: topic_at, properties };
        Ok(Self { bytes, parts, topic })
    }

    pub(crate) fn parts(&self) -> Parts {
        self.parts
    }

    /// The record in `bytes` whose [`parts`](Self::parts) these are. Other bytes give a record with
    /// other or empty parts.
    pub(crate) fn from_parts(bytes: &'a [u8], parts: &Parts) -> Self {
        let Parts { topic, properties, .. } = *parts;
        let topic = bytes.get(topic as usize..(properties as usize).saturating_sub(2));
        let topic = str::from_utf8(topic.unwrap_or_default()).unwrap_or_default();
        Self { bytes, parts: *parts, topic }
    }

    /// Verifies the checksum that `check` names.
    ///
    /// # Errors
    /// [`Corruption::BodyCrc`], [`Corruption::RecordCrc`] or [`Corruption::RecordCrcMissing`].
    pub fn verify(&self, check: RecordCheck) -> Result<(), Corruption> {
        match check {
            RecordCheck::Body => {
                let (stored, computed) = (self.body_crc(), stored_crc(self.body()));
                let matches = stored == computed;
                if matches { Ok(()) } else { Err(Corruption::BodyCrc { stored, computed }) }
            }
            RecordCheck::Record => {
                let stored = self.record_crc().ok_or(Corruption::RecordCrcMissing)?;
                let (covered, _) = self
                    .bytes
                    .split_last_chunk::<RECORD_CRC_SIZE>()
                    .ok_or(Corruption::RecordCrcMissing)?;
                let computed = stored_crc(covered);
                let matches = stored == computed;
                if matches { Ok(()) } else { Err(Corruption::RecordCrc { stored, computed }) }
            }
        }
    }

    /// [`decode`](Self::decode) and what [`verify`](Self::verify) says.
    ///
    /// The checksum of a whole record is computed first: that streams through memory, and fields and
    /// properties, from both ends of the record, are in the cache when decoding looks at them.
    #[inline(always)]
    pub(crate) fn decode_and_verify(
        bytes: &'a [u8],
        check: RecordCheck,
    ) -> Result<(Self, Result<(), Corruption>), Corruption> {
        let size = read_prefix(bytes).ok().and_then(|(size, _)| usize::try_from(size).ok());
        let covered = size
            .filter(|size| check == RecordCheck::Record && *size <= STREAMED_MAX)
            .and_then(|size| bytes.get(..size)?.split_last_chunk::<RECORD_CRC_SIZE>());
        let computed = covered.map(|(covered, _)| stored_crc(covered));
        let record = Self::decode(bytes)?;
        let verified = match (computed, record.record_crc()) {
            (Some(computed), Some(stored)) if computed == stored => Ok(()),
            (Some(computed), Some(stored)) => Err(Corruption::RecordCrc { stored, computed }),
            _ => record.verify(check),
        };
        Ok((record, verified))
    }

    /// The record as it lies in the log.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Where in the record the body ends.
    pub(crate) fn body_end(&self) -> usize {
        self.parts.body as usize + self.body().len()
    }

    /// Bytes of the record.
    pub fn size(&self) -> usize {
        self.bytes.len()
    }

    /// Which layout the record has.
    pub fn version(&self) -> RecordVersion {
        self.parts.version
    }

    /// The stored checksum of the body.
    pub fn body_crc(&self) -> u32 {
        u32::from_be_bytes(field(self.bytes, 8))
    }

    /// The queue.
    pub fn queue_id(&self) -> i32 {
        i32::from_be_bytes(field(self.bytes, 12))
    }

    /// The application's own number.
    pub fn flag(&self) -> i32 {
        i32::from_be_bytes(field(self.bytes, 16))
    }

    /// Its position in its queue, counted from 0.
    pub fn queue_offset(&self) -> i64 {
        queue_offset(self.bytes)
    }

    /// Where in the log the record says it begins.
    pub fn physical_offset(&self) -> i64 {
        i64::from_be_bytes(field(self.bytes, 28))
    }

    /// How the body and hosts are encoded, and the message's part in a transaction.
    pub fn sys_flag(&self) -> SysFlag {
        SysFlag(i32::from_be_bytes(field(self.bytes, SYS_FLAG_AT)))
    }

    /// When the producer made the message, in milliseconds since 1970.
    pub fn born_timestamp(&self) -> i64 {
        i64::from_be_bytes(field(self.bytes, 40))
    }

    /// Where the producer runs.
    pub fn born_host(&self) -> Host {
        self.host_at(BORN_HOST_AT, self.sys_flag().contains(SysFlag::BORN_HOST_V6))
    }

    /// When the message was stored, in milliseconds since 1970.
    pub fn store_timestamp(&self) -> i64 {
        i64::from_be_bytes(field(self.bytes, self.store_timestamp_at()))
    }

    /// Where the message was stored first.
    pub fn store_host(&self) -> Host {
        let v6 = self.sys_flag().contains(SysFlag::STORE_HOST_V6);
        self.host_at(self.store_timestamp_at() + 8, v6)
    }

    /// How often a consumer failed to handle the message.
    pub fn reconsume_times(&self) -> i32 {
        i32::from_be_bytes(self.field_before_body(16))
    }

    /// Physical offset of the half message that this one comes from.
    pub fn prepared_transaction_offset(&self) -> i64 {
        i64::from_be_bytes(self.field_before_body(12))
    }

    fn store_timestamp_at(&self) -> usize {
        BORN_HOST_AT + host_size(self.sys_flag().contains(SysFlag::BORN_HOST_V6))
    }

    fn host_at(&self, at: usize, v6: bool) -> Host {
        let mut reader = Reader::new(self.bytes.get(at..).unwrap_or_default());
        let host = if v6 { Host::read_v6(&mut reader) } else { Host::read_v4(&mut reader) };
        host.unwrap_or(Host::new([0, 0, 0, 0], 0))
    }

    fn field_before_body<const N: usize>(&self, distance: usize) -> [u8; N] {
        field(self.bytes, (self.parts.body as usize).saturating_sub(distance))
    }

    /// The body.
    pub fn body(&self) -> &'a [u8] {
        self.parts.body(self.bytes)
    }

    /// The topic.
    pub fn topic(&self) -> &'a str {
        self.topic
    }

    /// The properties, without the record checksum.
    ///
    /// The byte that ends the last property stays, even where it was written only because the
    /// checksum follows: it changes no property, and with it the record is encoded again as it was.
    pub fn properties(&self) -> PropertiesRef<'a> {
        PropertiesRef::new(split_record_crc(self.all_properties()).0)
    }

    /// The stored checksum of the record, where it ends in one.
    pub fn record_crc(&self) -> Option<u32> {
        split_record_crc(self.all_properties()).1
    }

    fn all_properties(&self) -> &'a [u8] {
        self.bytes.get(self.parts.properties as usize..).unwrap_or_default()
    }

    /// The tag.
    pub fn tags(&self) -> Option<&'a str> {
        self.properties().tags()
    }

    /// The keys, separated by spaces.
    pub fn keys(&self) -> Option<&'a str> {
        self.properties().keys()
    }

    /// The producer's own id of the message.
    pub fn unique_key(&self) -> Option<&'a str> {
        self.properties().unique_key()
    }

    /// What the queue entry keeps of the tag, with RocketMQ's default delay levels.
    pub fn tags_code(&self) -> i64 {
        self.tags_code_with(&DELAY_LEVELS_MS)
    }

    /// What the queue entry keeps of the tag; a message in the schedule topic waits for
    /// `delays_ms[level - 1]`.
    pub fn tags_code_with(&self, delays_ms: &[i64]) -> i64 {
        tags_code(self.topic, self.properties(), self.store_timestamp(), delays_ms)
    }

    /// The id that tells where the record lies.
    pub fn message_id(&self) -> OffsetMessageId {
        OffsetMessageId { host: self.store_host(), physical_offset: self.physical_offset() }
    }

    /// A copy that outlives the bytes.
    pub fn to_stored(&self) -> StoredMessage {
        StoredMessage {
            version: self.version(),
            body_crc: self.body_crc(),
            queue_id: self.queue_id(),
            flag: self.flag(),
            queue_offset: self.queue_offset(),
            physical_offset: self.physical_offset(),
            sys_flag: self.sys_flag(),
            born_timestamp: self.born_timestamp(),
            born_host: self.born_host(),
            store_timestamp: self.store_timestamp(),
            store_host: self.store_host(),
            reconsume_times: self.reconsume_times(),
            prepared_transaction_offset: self.prepared_transaction_offset(),
            body: self.body().to_vec(),
            topic: self.topic.to_owned(),
            properties: self.properties().to_owned(),
            record_crc: self.record_crc(),
        }
    }
}

impl fmt::Debug for RecordRef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecordRef")
            .field("physical_offset", &self.physical_offset())
            .field("topic", &self.topic)
            .field("queue_id", &self.queue_id())
            .field("queue_offset", &self.queue_offset())
            .field("body_len", &self.body().len())
            .field("properties", &self.properties())
            .finish_non_exhaustive()
    }
}

/// Records up to this size are checksummed before it is known whether they are any: in larger ones it
/// would gain nothing.
const STREAMED_MAX: usize = 64 << 10;
const SYS_FLAG_AT: usize = 36;
const BORN_HOST_AT: usize = 48;
const BODY_LEN_SIZE: usize = 4;

/// The position in its queue of the record in `bytes`.
pub(crate) fn queue_offset(record: &[u8]) -> i64 {
    i64::from_be_bytes(field(record, 20))
}

/// The bytes of a field, zeros where the record is too short to have it: none that was decoded is.
#[inline(always)]
fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes.get(at..).and_then(<[u8]>::first_chunk).copied().unwrap_or([0; N])
}

/// Bytes of size and magic code, with which records and blanks begin.
const PREFIX_SIZE: usize = 8;

/// Size and magic code of the record or blank at the front of `bytes`.
pub(crate) fn read_prefix(bytes: &[u8]) -> Result<(i32, u32), Corruption> {
    let mut reader = Reader::new(bytes);
    match (reader.i32(), reader.u32()) {
        (Some(size), Some(magic)) => Ok((size, magic)),
        _ => Err(truncated(PREFIX_SIZE, bytes)),
    }
}

/// Where the body of a record begins, by its flags.
#[inline]
fn body_at(bytes: &[u8]) -> usize {
    let flags = SysFlag(i32::from_be_bytes(field(bytes, SYS_FLAG_AT)));
    header_size(flags.contains(SysFlag::BORN_HOST_V6), flags.contains(SysFlag::STORE_HOST_V6))
}

/// The length of the topic, which comes next.
#[inline]
fn topic_len(reader: &mut Reader<'_>, version: RecordVersion) -> Option<i64> {
    match version {
        RecordVersion::V1 => reader.i8().map(i64::from),
        RecordVersion::V2 => reader.i16().map(i64::from),
    }
}

/// The size by its parts of a record that ends behind `bytes`, if their lengths are here.
#[cold]
fn size_by_parts(bytes: &[u8], version: RecordVersion) -> Option<usize> {
    let mut reader = Reader::new(bytes);
    reader.slice(body_at(bytes) - BODY_LEN_SIZE)?;
    let body = reader.i32()?;
    reader.slice(usize::try_from(body).ok()?)?;
    let topic = topic_len(&mut reader, version)?;
    reader.slice(usize::try_from(topic).ok()?)?;
    let properties = usize::try_from(reader.i16()?).ok()?;
    Some(bytes.len() - reader.len() + properties)
}

fn truncated(needed: usize, bytes: &[u8]) -> Corruption {
    Corruption::Truncated { needed: needed as u64, available: bytes.len() as u64 }
}

pub(crate) fn part<'a>(
    reader: &mut Reader<'a>,
    field: &'static str,
    len: i64,
) -> Result<&'a [u8], Corruption> {
    usize::try_from(len)
        .ok()
        .and_then(|len| reader.slice(len))
        .ok_or(Corruption::Length { field, value: len })
}

#[cfg(test)]
mod tests;
