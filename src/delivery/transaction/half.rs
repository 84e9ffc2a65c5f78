//! What half messages look like, and what becomes of them, in RocketMQ's words.

use crate::error::{Error, InvalidMessage, Result};
use crate::log::MessageView;
use crate::message::format::{HALF_TOPIC, is_system_topic};
use crate::message::{Message, PropertiesRef, RecordRef, SysFlag, names};

/// The tag of an entry that says that half messages are done with.
const DONE_TAG: &str = "d";
/// The longest list of half messages in one such entry, in bytes; RocketMQ's `transactionOpMsgMaxSize`.
pub(super) const DONE_MAX: usize = 4096;
/// What a copy of a half message may be longer than the half message: the number of checks.
pub(super) const SPARE: usize = names::TRANSACTION_CHECK_TIMES.len() + 10 + 2;

/// A half message as it is stored: the message that a commit will put, and what is known of it.
///
/// Like a [`MessageView`] it keeps its segment in memory for as long as it lives.
#[derive(Debug, Clone)]
pub struct HalfMessageView {
    view: MessageView,
    target: Target,
}

impl HalfMessageView {
    /// The half message in `view`.
    ///
    /// # Errors
    /// [`Error::MalformedHalfMessage`] if it does not say where it belongs.
    pub(super) fn new(view: MessageView) -> Result<Self> {
        let target = Target::of(view.record().properties())?;
        Ok(Self { view, target })
    }

    /// The topic that the message is meant for.
    pub fn topic(&self) -> &str {
        &self.target.topic
    }

    /// The queue that the message is meant for.
    pub fn queue_id(&self) -> i32 {
        self.target.queue_id
    }

    /// The body, as it is stored.
    pub fn body(&self) -> &[u8] {
        self.view.body()
    }

    /// The tag.
    pub fn tags(&self) -> Option<&str> {
        self.properties().tags()
    }

    /// The keys, separated by spaces.
    pub fn keys(&self) -> Option<&str> {
        self.properties().keys()
    }

    /// The id of the transaction, which [`HalfMessage::transaction_id`](super::HalfMessage::transaction_id)
    /// told whoever began it.
    pub fn transaction_id(&self) -> Option<&str> {
        let properties = self.properties();
        properties.get(names::TRANSACTION_ID).or_else(|| properties.unique_key())
    }

    /// The value of a property.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.properties().get(name)
    }

    /// The group of the producer that put it.
    pub fn producer_group(&self) -> Option<&str> {
        self.get(names::PRODUCER_GROUP)
    }

    /// How many checks have ended as [`Unknown`](super::TransactionState::Unknown) so far.
    pub fn checks(&self) -> u32 {
        checks(self.properties())
    }

    /// When the producer made it, in milliseconds since 1970.
    pub fn born_timestamp(&self) -> i64 {
        self.view.record().born_timestamp()
    }

    /// The record as it lies in RocketMQ's half topic.
    pub fn view(&self) -> &MessageView {
        &self.view
    }

    fn properties(&self) -> PropertiesRef<'_> {
        self.view.record().properties()
    }
}

/// Where a half message goes in the end.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Target {
    topic: String,
    queue_id: i32,
}

impl Target {
    fn of(properties: PropertiesRef<'_>) -> Result<Self> {
        let malformed = |property| Error::MalformedHalfMessage { property };
        let topic = properties
            .get(names::REAL_TOPIC)
            .filter(|topic| !is_system_topic(topic))
            .ok_or_else(|| malformed(names::REAL_TOPIC))?;
        let queue_id = properties
            .get(names::REAL_QUEUE_ID)
            .and_then(|id| id.parse().ok())
            .ok_or_else(|| malformed(names::REAL_QUEUE_ID))?;
        Ok(Self { topic: topic.to_owned(), queue_id })
    }
}

/// How often a half message was checked in vain.
pub(super) fn checks(properties: PropertiesRef<'_>) -> u32 {
    properties.get(names::TRANSACTION_CHECK_TIMES).and_then(|n| n.parse().ok()).unwrap_or(0)
}

/// Seconds in which it is not to be checked, if it says so.
pub(super) fn immunity(properties: PropertiesRef<'_>) -> Option<u32> {
    properties.get(names::CHECK_IMMUNITY_TIME).and_then(|seconds| seconds.parse().ok())
}

/// Where a copy says it comes from whose half message is the first record of the log: RocketMQ leaves 0 in
/// half messages that are no copies.
const FROM_THE_BEGINNING: i64 = -1;

/// Physical offset of the first copy of the half message in `record`. RocketMQ does not use the field in
/// half messages; copies made here say in it where they come from.
pub(super) fn origin(record: &RecordRef<'_>) -> u64 {
    match record.prepared_transaction_offset() {
        FROM_THE_BEGINNING => 0,
        origin if origin > 0 => origin.cast_unsigned(),
        _ => record.physical_offset().cast_unsigned(),
    }
}

/// Refuses what no transaction takes.
///
/// # Errors
/// [`Error::InvalidMessage`] if it is for a system topic or is to be delayed, or if a property of it was
/// refused.
pub(super) fn check(message: &Message) -> Result<()> {
    if let Some(invalid) = message.invalid() {
        return Err(Error::InvalidMessage(invalid.clone()));
    }
    if is_system_topic(message.topic()) {
        let topic = message.topic().to_owned();
        return Err(Error::InvalidMessage(InvalidMessage::SystemTopic { topic }));
    }
    let is_delayed = message.get(names::DELAY).is_some_and(|level| level != "0");
    let timers = [names::TIMER_DELAY_SEC, names::TIMER_DELAY_MS, names::TIMER_DELIVER_MS];
    if is_delayed || timers.iter().any(|name| message.get(name).is_some()) {
        return Err(Error::InvalidMessage(InvalidMessage::DelayedTransaction));
    }
    Ok(())
}

/// A [`check`]ed message with all that its half message has, still for the queue that it is meant for.
///
/// # Errors
/// [`Error::InvalidMessage`] for the name of a group that no property can have.
pub(super) fn prepare(
    message: Message,
    group: &str,
    unique_key: impl FnOnce() -> String,
) -> Result<Message> {
    let mut properties = message.properties_ref().to_owned();
    // A message that was consumed and is passed on may come from a transaction itself.
    properties.remove(names::TRANSACTION_CHECK_TIMES);
    properties.remove(names::TRANSACTION_PREPARED_QUEUE_OFFSET);
    let unique_key = match message.get(names::UNIQ_KEY) {
        Some(key) => key.to_owned(),
        None => unique_key(),
    };
    let queue_id = message.queue_id().to_string();
    for (name, value) in [
        (names::TRANSACTION_PREPARED, "true"),
        (names::PRODUCER_GROUP, group),
        (names::UNIQ_KEY, &unique_key),
        (names::TRANSACTION_ID, &unique_key),
        (names::REAL_TOPIC, message.topic()),
        (names::REAL_QUEUE_ID, &queue_id),
    ] {
        properties.set(name, value).map_err(Error::InvalidMessage)?;
    }
    let sys_flag = message.sys_flag.without(SysFlag::TRANSACTION_MASK);
    let message = message.sys_flag(sys_flag).prepared_transaction_offset(0);
    Ok(message.properties(properties).waiting())
}

/// The half message of a message that was [`prepare`]d.
pub(super) fn half_of(prepared: Message) -> Message {
    prepared.moved_to(HALF_TOPIC, 0)
}

/// The message that a commit puts.
///
/// # Errors
/// [`Error::MalformedHalfMessage`] if the half message does not say where it belongs.
pub(super) fn committed(half: &RecordRef<'_>, origin: u64) -> Result<Message> {
    let Target { topic, queue_id } = Target::of(half.properties())?;
    let sys_flag = half.sys_flag().without(SysFlag::TRANSACTION_MASK).with(SysFlag::COMMIT);
    let message = again(half, &topic).queue(queue_id).sys_flag(sys_flag);
    Ok(message.prepared_transaction_offset(origin.cast_signed()))
}

/// A copy of a half message that was checked in vain `checks` times, for queue 0 of `topic`.
pub(super) fn copy_for(half: &RecordRef<'_>, origin: u64, checks: u32, topic: &str) -> Message {
    let origin = if origin == 0 { FROM_THE_BEGINNING } else { origin.cast_signed() };
    let copy = again(half, topic).prepared_transaction_offset(origin);
    match checks {
        0 => copy,
        _ => copy.property(names::TRANSACTION_CHECK_TIMES, checks.to_string()).waiting(),
    }
}

/// RocketMQ leaves the host where the half message was stored first, too.
fn again(half: &RecordRef<'_>, topic: &str) -> Message {
    Message::copy_of(half, topic).store_host(half.store_host()).waiting().with_known_body()
}

/// The entry that says which messages of a queue are done with, for `queue_id` of `topic`.
pub(super) fn done(topic: &str, queue_id: i32, offsets: &[u64]) -> Message {
    let body: String = offsets.iter().map(|offset| format!("{offset},")).collect();
    Message::new(topic, body).queue(queue_id).tag(DONE_TAG)
}

/// How many of `offsets`, from the first on, one entry takes: at least one.
pub(super) fn fitting(offsets: &[u64]) -> usize {
    let mut len = 0;
    let fits = offsets.iter().take_while(|offset| {
        len += offset.checked_ilog10().unwrap_or(0) as usize + 2;
        len <= DONE_MAX
    });
    fits.count().max(1)
}

/// What an entry says is done with. RocketMQ 4 writes a number, 5 each number with a comma behind it.
pub(super) fn read_done(record: &RecordRef<'_>) -> Vec<u64> {
    if record.tags() != Some(DONE_TAG) {
        return Vec::new();
    }
    let numbers = record.body().split(|&byte| byte == b',');
    let numbers = numbers.filter_map(|number| str::from_utf8(number).ok()?.trim().parse().ok());
    numbers.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Draft, Host, RecordLayout, Stamp};
    use proptest::prelude::*;

    fn record_of(message: &Message, physical_offset: u64) -> Vec<u8> {
        let host = Host::new([127, 0, 0, 1], 10911);
        let layout = RecordLayout {
            store_host: host,
            born_host: host,
            record_crc: true,
            long_topics: false,
            max_message_size: 1 << 20,
            max_record_size: 1 << 21,
        };
        let mut bytes = Vec::new();
        let stamp = Stamp { physical_offset, queue_offset: 3, store_timestamp: 5 };
        Draft::new(message, &layout).unwrap().encode(&stamp, &mut bytes);
        bytes
    }

    fn prepared(message: Message) -> Result<Message> {
        check(&message)?;
        prepare(message, "service", || "generated".to_owned())
    }

    #[test]
    fn a_half_message_says_where_it_belongs_and_what_was_said_before_is_replaced() {
        let message = Message::new("orders", "paid")
            .queue(3)
            .tag("t")
            .flag(7)
            .property(names::TRANSACTION_CHECK_TIMES, "9")
            .property(names::TRANSACTION_PREPARED_QUEUE_OFFSET, "4")
            .property(names::REAL_TOPIC, "elsewhere")
            .sys_flag(SysFlag::COMMIT.with(SysFlag::MULTI_TAGS))
            .prepared_transaction_offset(99)
            .wait(false);
        let half = half_of(prepared(message).unwrap());
        assert_eq!((half.topic(), half.queue_id()), (HALF_TOPIC, 0));
        assert_eq!((half.sys_flag, half.prepared_transaction_offset), (SysFlag::MULTI_TAGS, 0));
        assert!(half.waits());
        let expected = [
            (names::TAGS, Some("t")),
            (names::TRANSACTION_PREPARED, Some("true")),
            (names::PRODUCER_GROUP, Some("service")),
            (names::UNIQ_KEY, Some("generated")),
            (names::TRANSACTION_ID, Some("generated")),
            (names::REAL_TOPIC, Some("orders")),
            (names::REAL_QUEUE_ID, Some("3")),
            (names::TRANSACTION_CHECK_TIMES, None),
            (names::TRANSACTION_PREPARED_QUEUE_OFFSET, None),
        ];
        for (name, value) in expected {
            assert_eq!(half.get(name), value, "{name}");
        }
    }

    #[test]
    fn a_key_of_the_applications_own_is_the_id_of_its_transaction() {
        let half = prepared(Message::new("orders", "paid").unique_key("mine")).unwrap();
        assert_eq!(half.get(names::UNIQ_KEY), Some("mine"));
        assert_eq!(half.get(names::TRANSACTION_ID), Some("mine"));
    }

    #[test]
    fn what_is_to_be_delayed_or_goes_to_a_system_topic_is_refused() {
        let delayed = |message: Message| {
            let refused = prepared(message).unwrap_err();
            matches!(refused, Error::InvalidMessage(InvalidMessage::DelayedTransaction))
        };
        assert!(delayed(Message::new("t", "").delay_level(1)));
        assert!(delayed(Message::new("t", "").property(names::TIMER_DELAY_SEC, "1")));
        assert!(delayed(Message::new("t", "").property(names::TIMER_DELAY_MS, "1")));
        assert!(delayed(Message::new("t", "").property(names::TIMER_DELIVER_MS, "1")));
        assert!(prepared(Message::new("t", "").delay_level(0)).is_ok());
        let refused = prepared(Message::new(HALF_TOPIC, "")).unwrap_err();
        assert!(matches!(refused, Error::InvalidMessage(InvalidMessage::SystemTopic { .. })));
        let refused = prepared(Message::new("t", "").tag("")).unwrap_err();
        assert!(matches!(refused, Error::InvalidMessage(InvalidMessage::Property { .. })));
    }

    #[test]
    fn copies_and_the_committed_message_tell_where_the_first_copy_lies() {
        let message =
            Message::new("orders", "paid").queue(2).flag(7).reconsume_times(4).born_at(11);
        let message = half_of(prepared(message).unwrap());
        for at in [0, 500] {
            let half = record_of(&message, at);
            let half = RecordRef::decode(&half).unwrap();
            assert_eq!((origin(&half), checks(half.properties())), (at, 0));

            let copy = copy_for(&half, origin(&half), 2, HALF_TOPIC);
            let copy = record_of(&copy, 900);
            let copy = RecordRef::decode(&copy).unwrap();
            assert_eq!((origin(&copy), checks(copy.properties())), (at, 2));
            assert_eq!((copy.topic(), copy.queue_id(), copy.flag()), (HALF_TOPIC, 0, 7));
            let again = copy_for(&copy, origin(&copy), 3, HALF_TOPIC);
            assert_eq!(again.get(names::TRANSACTION_CHECK_TIMES), Some("3"));
            assert_eq!(origin(&RecordRef::decode(&record_of(&again, 990)).unwrap()), at);

            let end = committed(&copy, origin(&copy)).unwrap();
            assert_eq!((end.topic(), end.queue_id(), end.body()), ("orders", 2, &b"paid"[..]));
            let from = end.prepared_transaction_offset;
            assert_eq!((end.sys_flag, from), (SysFlag::COMMIT, at as i64));
            assert_eq!((end.flag, end.reconsume_times, end.born_timestamp), (7, 4, 11));
            assert_eq!(end.properties_ref().as_bytes(), copy.properties().as_bytes());
        }
    }

    #[test]
    fn half_messages_that_belong_nowhere_cannot_be_committed() {
        for (topic, queue_id) in [("", "0"), (HALF_TOPIC, "0"), ("orders", ""), ("orders", "x")] {
            let mut message = Message::new(HALF_TOPIC, "");
            for (name, value) in [(names::REAL_TOPIC, topic), (names::REAL_QUEUE_ID, queue_id)] {
                message = if value.is_empty() { message } else { message.property(name, value) };
            }
            let half = record_of(&message, 1);
            let refused = committed(&RecordRef::decode(&half).unwrap(), 1);
            assert!(matches!(refused, Err(Error::MalformedHalfMessage { .. })), "{topic}");
        }
    }

    #[test]
    fn entries_of_both_versions_are_read() {
        let read = |body: &str, tag: &str| {
            let record = record_of(&Message::new("t", body).tag(tag), 0);
            read_done(&RecordRef::decode(&record).unwrap())
        };
        assert_eq!(read("17", "d"), [17]);
        assert_eq!(read("17,18,21,", "d"), [17, 18, 21]);
        assert_eq!(read("17,x,,-1,21", "d"), [17, 21]);
        assert_eq!(read("17", "e"), [0; 0]);
        assert_eq!(read("", "d"), [0; 0]);
    }

    proptest! {
        #[test]
        fn an_entry_says_what_was_put_into_it_and_is_not_too_long(
            offsets in prop::collection::vec(any::<u64>(), 1..600),
        ) {
            let count = fitting(&offsets);
            let message = done("t", 1, &offsets[..count]);
            prop_assert!(message.body().len() <= DONE_MAX);
            let record = record_of(&message, 0);
            prop_assert_eq!(read_done(&RecordRef::decode(&record).unwrap()), &offsets[..count]);
            if let Some(next) = offsets.get(count) {
                prop_assert!(message.body().len() + next.to_string().len() + 1 > DONE_MAX);
            }
        }
    }
}
