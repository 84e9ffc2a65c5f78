//! The body in which a client sends several messages at once.
//!
//! Each message is `size, magic 0, checksum 0, flag, body length, body, properties length,
//! properties`; topic, queue, hosts and time are those of the batch. The store makes an ordinary
//! record of each.

use super::format::PROPERTIES_LEN_MAX;
use super::message::Message;
use super::properties::PropertiesRef;
use super::record::part;
use super::wire::{Reader, Sink};
use crate::error::{Corruption, Error, InvalidMessage};

/// Bytes of a message in a batch without body and properties.
const ENTRY_SIZE_MIN: usize = 5 * 4 + 2;

/// One message of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchEntry<'a> {
    /// The application's own number.
    pub flag: i32,
    /// The body.
    pub body: &'a [u8],
    /// The message's own properties.
    pub properties: PropertiesRef<'a>,
}

impl<'a> BatchEntry<'a> {
    /// The message as RocketMQ stores it: everything else from `batch`, whose properties are
    /// joined behind the message's own. A batch is in no transaction.
    pub fn to_message(&self, batch: &Message) -> Message {
        let mut properties = self.properties.to_owned();
        properties.append(batch.properties_ref());
        batch.with_content(self.body, properties).flag(self.flag).prepared_transaction_offset(0)
    }

    fn read(reader: &mut Reader<'a>) -> Result<Self, Corruption> {
        let field = "batch entry size";
        let size = reader.i32().ok_or(Corruption::Length { field, value: 0 })?;
        let wrong_size = || Corruption::Length { field, value: size.into() };
        // RocketMQ looks at neither the magic code nor the checksum; clients leave them 0.
        let mut fixed = || Some((reader.i32()?, reader.i32()?, reader.i32()?, reader.i32()?));
        let (_, _, flag, body_len) = fixed().ok_or_else(wrong_size)?;
        let body = part(reader, "body length", body_len.into())?;
        let properties_len = reader.i16().ok_or_else(wrong_size)?;
        let properties = part(reader, "properties length", properties_len.into())?;
        if usize::try_from(size) != Ok(ENTRY_SIZE_MIN + body.len() + properties.len()) {
            return Err(wrong_size());
        }
        Ok(Self { flag, body, properties: PropertiesRef::new(properties) })
    }
}

/// Reads the messages of a batch, in order. After an error nothing follows.
pub fn decode_batch(bytes: &[u8]) -> impl Iterator<Item = Result<BatchEntry<'_>, Corruption>> {
    let mut reader = Reader::new(bytes);
    std::iter::from_fn(move || {
        if reader.is_empty() {
            return None;
        }
        let entry = BatchEntry::read(&mut reader);
        if entry.is_err() {
            reader = Reader::new(&[]);
        }
        Some(entry)
    })
}

/// Makes one body of `messages`. Only flag, body and properties are in it.
///
/// # Errors
/// [`Error::InvalidMessage`] if there are none, if they differ in topic or queue, or if one has a
/// property that was refused; [`Error::TooLarge`] if a length does not fit its field.
pub fn encode_batch(messages: &[Message]) -> Result<Vec<u8>, Error> {
    let first = messages.first().ok_or(Error::InvalidMessage(InvalidMessage::EmptyBatch))?;
    let mut batch = Vec::new();
    for message in messages {
        if (message.topic(), message.queue_id()) != (first.topic(), first.queue_id()) {
            return Err(Error::InvalidMessage(InvalidMessage::MixedBatch));
        }
        encode_entry(message, &mut batch)?;
    }
    Ok(batch)
}

fn encode_entry(message: &Message, batch: &mut Vec<u8>) -> Result<(), Error> {
    if let Some(invalid) = message.invalid() {
        return Err(Error::InvalidMessage(invalid.clone()));
    }
    let (body, properties) = (message.body(), message.properties_ref().as_bytes());
    let properties_len = i16::try_from(properties.len()).map_err(|_| Error::TooLarge {
        what: "properties",
        len: properties.len(),
        max: PROPERTIES_LEN_MAX,
    })?;
    let size = ENTRY_SIZE_MIN + body.len() + properties.len();
    let too_large = |_| Error::TooLarge { what: "body", len: body.len(), max: i32::MAX as usize };
    let size = i32::try_from(size).map_err(too_large)?;
    let body_len = i32::try_from(body.len()).map_err(too_large)?;
    for field in [size, 0, 0, message.flag, body_len] {
        batch.write(&field.to_be_bytes());
    }
    batch.write(body);
    batch.write(&properties_len.to_be_bytes());
    batch.write(properties);
    Ok(())
}

#[cfg(test)]
mod tests;
