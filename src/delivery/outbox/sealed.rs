//! A message as an outbox keeps it.

use crate::clock::{Clock, SystemClock};
use crate::delivery::unique_ids;
use crate::error::{Corruption, Error, Result};
use crate::message::format::is_system_topic;
use crate::message::{Draft, Host, Message, RecordCheck, RecordLayout, RecordRef, Stamp, names};
use std::net::Ipv4Addr;

/// The first byte; the record begins behind the second.
const FORMAT: u8 = 1;
/// The second byte.
const ANY_QUEUE: u8 = 0;
const CHOSEN_QUEUE: u8 = 1;
const PREFIX: usize = 2;

/// A message that is ready to be recorded in an [`OutboxTable`](super::OutboxTable).
///
/// All of it is in [`bytes`](Self::bytes): topic, queue, body, properties (tags, keys, sharding key and delay
/// are among them), flags and hosts, as a record of RocketMQ's with its checksums, which
/// [`open`](Self::open) verifies. What else is here is for columns of its own, so that a table can be read by
/// people and asked by SQL.
///
/// Its id, the property `UNIQ_KEY`, is given when it is sealed, and is the same however often it is sent: a
/// copy that a crash made can be told as one. Processes that are forked give out other ids than their parent.
#[derive(Debug, Clone, PartialEq)]
pub struct SealedMessage {
    unique_key: String,
    topic: String,
    lane: Option<String>,
    bytes: Vec<u8>,
}

impl SealedMessage {
    /// Seals `message`: gives it an id unless it has one, and notes when it was made unless it says so.
    ///
    /// # Errors
    /// What no store would take: [`Error::InvalidMessage`], [`Error::TooLarge`],
    /// [`Error::TopicNotWritable`] for a topic that a store keeps for itself. How long a body may be is the
    /// store's to say when it is sent.
    pub fn seal(message: &Message) -> Result<Self> {
        if is_system_topic(message.topic()) {
            return Err(Error::TopicNotWritable { topic: message.topic().to_owned() });
        }
        let (clock, mut message) = (SystemClock, message.clone());
        if message.get(names::UNIQ_KEY).is_none() {
            let ids = unique_ids::of_process(&clock);
            message.add_entry(ids.next(&clock, clock.now()).as_bytes());
        }
        let store_timestamp = clock.unix_millis();
        let layout = layout();
        let draft = Draft::new(&message, &layout)?;
        let is_chosen = message.chosen_queue().is_some();
        let mut bytes = Vec::with_capacity(PREFIX + draft.size());
        bytes.extend([FORMAT, if is_chosen { CHOSEN_QUEUE } else { ANY_QUEUE }]);
        let stamp = Stamp { physical_offset: 0, queue_offset: 0, store_timestamp };
        draft.encode(&stamp, &mut bytes);
        Ok(Self {
            unique_key: message.get(names::UNIQ_KEY).unwrap_or_default().to_owned(),
            topic: message.topic().to_owned(),
            lane: message.get(names::SHARDING_KEY).map(str::to_owned),
            bytes,
        })
    }

    /// The id of the message, its property `UNIQ_KEY`.
    pub fn unique_key(&self) -> &str {
        &self.unique_key
    }

    /// The topic.
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// What the message is kept in order with: its sharding key.
    pub fn lane(&self) -> Option<&str> {
        self.lane.as_deref()
    }

    /// The message.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The message in `bytes`.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if they are not what [`seal`](Self::seal) made.
    pub fn open(bytes: &[u8]) -> Result<Message> {
        let opened = match bytes {
            [FORMAT, chosen @ (ANY_QUEUE | CHOSEN_QUEUE), record @ ..] => {
                decoded(record, *chosen == CHOSEN_QUEUE)
            }
            _ => Err(Corruption::StateFile { what: "a message of an outbox has an unknown form" }),
        };
        opened.map_err(|what| Error::Corrupt { path: "outbox".into(), offset: 0, what })
    }
}

fn decoded(bytes: &[u8], is_chosen: bool) -> Result<Message, Corruption> {
    let record = RecordRef::decode(bytes)?;
    record.verify(RecordCheck::Record)?;
    let given = |host: Host| (host != nowhere()).then_some(host);
    let mut message = Message::copy_of(&record, record.topic())
        .prepared_transaction_offset(record.prepared_transaction_offset());
    message.born_host = given(record.born_host());
    message.store_host = given(record.store_host());
    Ok(if is_chosen { message.queue(record.queue_id()) } else { message })
}

/// In the place of a host that a message does not say.
fn nowhere() -> Host {
    Host::new(Ipv4Addr::UNSPECIFIED, 0)
}

fn layout() -> RecordLayout {
    RecordLayout {
        store_host: nowhere(),
        born_host: nowhere(),
        record_crc: true,
        long_topics: false,
        max_message_size: usize::MAX,
        max_record_size: usize::MAX,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::InvalidMessage;
    use crate::message::SysFlag;
    use proptest::prelude::*;
    use std::net::Ipv6Addr;
    use std::time::Duration;

    fn opened(message: &Message) -> Message {
        let sealed = SealedMessage::seal(message).unwrap();
        let opened = SealedMessage::open(sealed.bytes()).unwrap();
        assert_eq!(opened.get(names::UNIQ_KEY), Some(sealed.unique_key()));
        assert_eq!(opened.topic(), sealed.topic());
        assert_ne!(opened.born_timestamp, 0);
        opened
    }

    #[test]
    fn nothing_of_a_message_is_lost() {
        let host = Host::new(Ipv6Addr::LOCALHOST, 10911);
        let full = Message::new("orders", "paid 42")
            .queue(7)
            .tag("paid")
            .key("order-42")
            .sharding_key("customer-7")
            .property("own", "ä")
            .delay(Duration::from_secs(3))
            .unique_key("id")
            .wait(false)
            .flag(-5)
            .sys_flag(SysFlag::MULTI_TAGS)
            .born_at(1_700_000_000_123)
            .born_host(host)
            .store_host(host)
            .reconsume_times(2)
            .prepared_transaction_offset(99);
        assert_eq!(opened(&full), full);
        assert_eq!(SealedMessage::seal(&full).unwrap().lane(), Some("customer-7"));
    }

    #[test]
    fn what_a_message_leaves_open_stays_open() {
        let bare = Message::new("orders", "");
        let opened = opened(&bare);
        assert_eq!(opened.chosen_queue(), None);
        assert_eq!((opened.born_host, opened.store_host), (None, None));
        let same = opened.clone().without(&[names::UNIQ_KEY]).born_at(0);
        assert_eq!(same.properties_ref().as_bytes(), b"");
        assert_eq!(same, bare);
    }

    #[test]
    fn each_message_is_given_an_id_of_its_own() {
        let message = Message::new("orders", "");
        let key = || SealedMessage::seal(&message).unwrap().unique_key().to_owned();
        let (one, other) = (key(), key());
        assert_ne!(one, other);
        assert!(crate::message::UniqueKey::parse(&one).is_some(), "{one}");
    }

    #[test]
    fn what_no_store_takes_is_not_recorded() {
        let refused = |message: Message| SealedMessage::seal(&message).unwrap_err();
        assert!(matches!(
            refused(Message::new("", "")),
            Error::InvalidMessage(InvalidMessage::EmptyTopic)
        ));
        assert!(matches!(
            refused(Message::new("t", "").property("a", "")),
            Error::InvalidMessage(InvalidMessage::Property { .. })
        ));
        let system = Message::new("SCHEDULE_TOPIC_XXXX", "");
        assert!(matches!(refused(system), Error::TopicNotWritable { .. }));
    }

    proptest! {
        #[test]
        fn what_is_damaged_is_told_whatever_bit_it_is(at: prop::sample::Index, bit in 0..8u32) {
            let message = Message::new("orders", "paid 42").tag("paid");
            let sealed = SealedMessage::seal(&message).unwrap();
            let mut bytes = sealed.bytes().to_vec();
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            match SealedMessage::open(&bytes) {
                Err(Error::Corrupt { .. }) => {}
                // Which queue is all that the second byte says.
                Ok(_) => prop_assert_eq!((at, bit), (1, 0)),
                Err(other) => return Err(TestCaseError::fail(format!("{other:?}"))),
            }
            prop_assert!(SealedMessage::open(&bytes[..at]).is_err());
        }
    }
}
