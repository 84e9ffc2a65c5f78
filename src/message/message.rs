//! What a producer puts.

use super::host::Host;
use super::properties::{Properties, PropertiesRef, names};
use super::record::RecordRef;
use super::sys_flag::SysFlag;
use crate::error::InvalidMessage;
use std::time::Duration;

/// A message to be put: topic, body, properties, and what RocketMQ keeps beside them.
///
/// Built by chaining. Values without rules of their own are public fields, each with a method to
/// chain: of the same name, but for [`born_timestamp`](Self::born_timestamp), which
/// [`born_at`](Self::born_at) sets. Nothing is checked before the put.
///
/// ```
/// # use duralog::message::Message;
/// let message = Message::new("orders", "paid 42").tag("paid").key("order-42").key("customer-7");
/// assert_eq!(message.keys(), Some("order-42 customer-7"));
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    topic: String,
    body: Vec<u8>,
    queue_id: i32,
    /// Whether anyone has said which: a producer chooses one otherwise.
    queue_chosen: bool,
    /// Never holds a `__CRC32#`.
    properties: Properties,
    /// The first property that was refused: a builder has no other way to say so.
    invalid: Option<InvalidMessage>,
    /// What the property WAIT says: every put asks.
    waits: bool,
    /// Its body was in the log before, where the limit for bodies may have been higher.
    body_is_known: bool,
    /// How long the body was before a producer compressed it, otherwise 0.
    plain_len: usize,
    /// The application's own number; stored, never looked at.
    pub flag: i32,
    /// How the body is encoded and the message's part in a transaction. The bits that tell the
    /// kind of the hosts are set by the store.
    pub sys_flag: SysFlag,
    /// When the producer made the message, in milliseconds since 1970. 0: when it is stored.
    pub born_timestamp: i64,
    /// Where the producer runs. `None`: [`LogConfig::store_host`](crate::LogConfig::store_host).
    pub born_host: Option<Host>,
    /// Where the message is stored first. `None`:
    /// [`LogConfig::store_host`](crate::LogConfig::store_host).
    pub store_host: Option<Host>,
    /// How often a consumer failed to handle the message.
    pub reconsume_times: i32,
    /// Physical offset of the half message that a committed or rolled back message comes from.
    pub prepared_transaction_offset: i64,
}

impl Message {
    /// A message for `topic`: for its queue 0, unless a queue is chosen, or a
    /// [`Producer`](crate::delivery::Producer) chooses one.
    pub fn new(topic: impl Into<String>, body: impl Into<Vec<u8>>) -> Self {
        Self {
            topic: topic.into(),
            body: body.into(),
            queue_id: 0,
            queue_chosen: false,
            properties: Properties::new(),
            invalid: None,
            waits: true,
            body_is_known: false,
            plain_len: 0,
            flag: 0,
            sys_flag: SysFlag::default(),
            born_timestamp: 0,
            born_host: None,
            store_host: None,
            reconsume_times: 0,
            prepared_transaction_offset: 0,
        }
    }

    /// Sets the tag that consumers filter by.
    #[must_use]
    pub fn tag(self, tag: impl AsRef<str>) -> Self {
        self.property(names::TAGS, tag)
    }

    /// Adds a key, by which [`Store::query`](crate::Store::query) finds the message. A key with spaces in it
    /// counts as several.
    #[must_use]
    pub fn key(self, key: impl AsRef<str>) -> Self {
        let key = key.as_ref();
        match self.keys() {
            // The empty key must be refused, which a trailing space would hide.
            Some(keys) if !key.is_empty() => {
                let keys = format!("{keys} {key}");
                self.property(names::KEYS, keys)
            }
            _ => self.property(names::KEYS, key),
        }
    }

    /// Sets a property. A name or value that is empty or holds the bytes 1 or 2 fails the put.
    ///
    /// `__CRC32#` belongs to the store and is ignored.
    #[must_use]
    pub fn property(mut self, name: impl AsRef<str>, value: impl AsRef<str>) -> Self {
        let name = name.as_ref();
        if name != names::RECORD_CRC
            && let Err(invalid) = self.properties.set(name, value.as_ref())
        {
            self.invalid.get_or_insert(invalid);
        }
        self.waits = self.properties_ref().waits();
        self
    }

    /// Replaces all properties. A `__CRC32#` among them belongs to another record and is dropped.
    #[must_use]
    pub fn properties(mut self, mut properties: Properties) -> Self {
        properties.remove(names::RECORD_CRC);
        self.properties = properties;
        self.invalid = None;
        self.waits = self.properties_ref().waits();
        self
    }

    /// Chooses the queue: 0 or more, and below `StoreConfig::max_queues_per_topic`. A
    /// [`Producer`](crate::delivery::Producer) keeps to it.
    #[must_use]
    pub fn queue(mut self, queue_id: i32) -> Self {
        self.queue_id = queue_id;
        self.queue_chosen = true;
        self
    }

    /// Lets a [`Producer`](crate::delivery::Producer) put all messages with this key into the same
    /// queue, in which they stay in order; RocketMQ's property `__SHARDINGKEY`. Means nothing to
    /// [`Store::put`](crate::Store::put).
    #[must_use]
    pub fn sharding_key(self, key: impl AsRef<str>) -> Self {
        self.property(names::SHARDING_KEY, key)
    }

    /// Sets the application's own number.
    #[must_use]
    pub fn flag(mut self, flag: i32) -> Self {
        self.flag = flag;
        self
    }

    /// Replaces the bits that RocketMQ itself reads. What they call prepared or rolled back lies in no queue,
    /// as there: nobody reads it but at its physical offset, and its queue offset is given out again.
    #[must_use]
    pub fn sys_flag(mut self, sys_flag: SysFlag) -> Self {
        self.sys_flag = sys_flag;
        self
    }

    /// Whether the put waits until the message is flushed and replicated as the store is configured
    /// to; RocketMQ's `WAIT` property. Messages wait unless told not to. The put of one that does not is
    /// answered once it is in the page cache, whatever disk and replicas do.
    #[must_use]
    pub fn wait(self, wait: bool) -> Self {
        self.property(names::WAIT, if wait { "true" } else { "false" })
    }

    /// Asks for delivery to be delayed by one of RocketMQ's levels, the first of which is 1, see
    /// [`DELAY_LEVELS_MS`](super::format::DELAY_LEVELS_MS); a level beyond the last counts as the last, 0
    /// as none. Takes the place of [`deliver_at`](Self::deliver_at) and [`delay`](Self::delay).
    ///
    /// Acted on by [`Store::submit_delayed`](crate::Store::submit_delayed) and by who puts through it;
    /// [`Store::put`](crate::Store::put) stores it as it is, and the message can be read at once.
    #[must_use]
    pub fn delay_level(self, level: u32) -> Self {
        self.timed().property(names::DELAY, level.to_string())
    }

    /// Asks for delivery at a time, in milliseconds since 1970: never before, and at once if it has
    /// passed. At most [`TIMER_DELAY_MAX_MS`](super::format::TIMER_DELAY_MAX_MS) ahead. Takes the place of
    /// [`delay_level`](Self::delay_level) and [`delay`](Self::delay); acted on as a level is.
    #[must_use]
    pub fn deliver_at(self, timestamp_ms: i64) -> Self {
        self.timed().property(names::TIMER_DELIVER_MS, timestamp_ms.to_string())
    }

    /// Asks for delivery to be delayed by `delay`, rounded up to milliseconds and counted from the put. At
    /// most [`TIMER_DELAY_MAX_MS`](super::format::TIMER_DELAY_MAX_MS). Takes the place of
    /// [`delay_level`](Self::delay_level) and [`deliver_at`](Self::deliver_at); acted on as a level is.
    #[must_use]
    pub fn delay(self, delay: Duration) -> Self {
        let millis = delay.as_nanos().div_ceil(1_000_000);
        let millis = i64::try_from(millis).unwrap_or(i64::MAX);
        self.timed().property(names::TIMER_DELAY_MS, millis.to_string())
    }

    /// Without whatever delayed it before: what was delivered still says when it was due.
    fn timed(mut self) -> Self {
        for name in [
            names::DELAY,
            names::TIMER_DELAY_SEC,
            names::TIMER_DELAY_MS,
            names::TIMER_DELIVER_MS,
            names::TIMER_OUT_MS,
        ] {
            self.properties.remove(name);
        }
        self
    }

    /// Sets when the producer made the message, in milliseconds since 1970.
    #[must_use]
    pub fn born_at(mut self, timestamp_ms: i64) -> Self {
        self.born_timestamp = timestamp_ms;
        self
    }

    /// Sets where the producer runs.
    #[must_use]
    pub fn born_host(mut self, host: Host) -> Self {
        self.born_host = Some(host);
        self
    }

    /// Sets where the message is stored first.
    #[must_use]
    pub fn store_host(mut self, host: Host) -> Self {
        self.store_host = Some(host);
        self
    }

    /// Sets how often a consumer failed to handle the message.
    #[must_use]
    pub fn reconsume_times(mut self, times: i32) -> Self {
        self.reconsume_times = times;
        self
    }

    /// Sets the physical offset of the half message that this one comes from.
    #[must_use]
    pub fn prepared_transaction_offset(mut self, physical_offset: i64) -> Self {
        self.prepared_transaction_offset = physical_offset;
        self
    }

    /// Sets the producer's own id of the message.
    #[must_use]
    pub fn unique_key(self, key: impl AsRef<str>) -> Self {
        self.property(names::UNIQ_KEY, key)
    }

    /// The topic.
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// The body.
    pub fn body(&self) -> &[u8] {
        &self.body
    }

    /// The queue.
    pub fn queue_id(&self) -> i32 {
        self.queue_id
    }

    /// The properties.
    pub fn properties_ref(&self) -> PropertiesRef<'_> {
        self.properties.view()
    }

    /// The value of a property.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.properties.get(name)
    }

    /// The tag.
    pub fn tags(&self) -> Option<&str> {
        self.properties_ref().tags()
    }

    /// The keys, separated by spaces.
    pub fn keys(&self) -> Option<&str> {
        self.properties_ref().keys()
    }

    /// Whether a put waits for flush and replication.
    pub fn waits(&self) -> bool {
        self.waits
    }

    /// What is in a record, for another topic.
    pub(crate) fn copy_of(record: &RecordRef<'_>, topic: impl Into<String>) -> Self {
        // Where hosts lie is the store's to say, and its own host is where the copy is stored first.
        let hosts = SysFlag::BORN_HOST_V6.with(SysFlag::STORE_HOST_V6);
        Self::new(topic, record.body())
            .properties(record.properties().to_owned())
            .flag(record.flag())
            .sys_flag(record.sys_flag().without(hosts))
            .born_at(record.born_timestamp())
            .born_host(record.born_host())
            .reconsume_times(record.reconsume_times())
    }

    /// The same message, whose put waits whatever its property says.
    pub(crate) fn waiting(mut self) -> Self {
        self.waits = true;
        self
    }

    /// The same message, whose put does not wait, whatever its property says.
    pub(crate) fn not_waiting(mut self) -> Self {
        self.waits = false;
        self
    }

    /// The same message, whose body was taken once, whatever bodies may be put now.
    pub(crate) fn with_known_body(mut self) -> Self {
        self.body_is_known = true;
        self
    }

    pub(crate) fn body_is_known(&self) -> bool {
        self.body_is_known
    }

    /// What counts as the length of the body where that has a limit: what comes out for a handler must be what
    /// could have been put as it is.
    pub(crate) fn counted_len(&self) -> usize {
        self.body.len().max(self.plain_len)
    }

    /// The queue, if anyone has chosen it.
    pub(crate) fn chosen_queue(&self) -> Option<i32> {
        self.queue_chosen.then_some(self.queue_id)
    }

    /// Puts it into a queue that nobody has chosen for good.
    pub(crate) fn set_queue(&mut self, queue_id: i32) {
        self.queue_id = queue_id;
    }

    /// Adds a property that it does not have, given as it is written: name, 1, value, 2.
    pub(crate) fn add_entry(&mut self, entry: &[u8]) {
        self.properties.append(PropertiesRef::new(entry));
    }

    /// Replaces the body by what it is when compressed.
    pub(crate) fn set_compressed(&mut self, body: Vec<u8>, bits: SysFlag) {
        self.plain_len = self.body.len();
        self.body = body;
        self.sys_flag = self.sys_flag.with(bits);
    }

    /// The same message with another body and other properties.
    pub(crate) fn with_content(&self, body: &[u8], mut properties: Properties) -> Self {
        properties.remove(names::RECORD_CRC);
        Self {
            topic: self.topic.clone(),
            body: body.to_vec(),
            waits: properties.view().waits(),
            properties,
            invalid: self.invalid.clone(),
            ..*self
        }
    }

    /// The same message for another topic and queue.
    pub(crate) fn moved_to(mut self, topic: impl Into<String>, queue_id: i32) -> Self {
        (self.topic, self.queue_id) = (topic.into(), queue_id);
        self
    }

    /// The same message without some properties.
    pub(crate) fn without(mut self, names: &[&str]) -> Self {
        for name in names {
            self.properties.remove(name);
        }
        self.waits = self.properties_ref().waits();
        self
    }

    /// The first property that was refused.
    pub(crate) fn invalid(&self) -> Option<&InvalidMessage> {
        self.invalid.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_refused_property_is_remembered() {
        let refused = |name: &str| Some(InvalidMessage::Property { name: name.to_owned() });
        let message = Message::new("t", "").property("a\u{1}", "x").property("", "y").tag("t");
        assert_eq!(message.invalid, refused("a\u{1}"));
        assert_eq!(message.tags(), Some("t"));
        assert_eq!(Message::new("t", "").key("a").key("").invalid, refused(names::KEYS));
        assert_eq!(Message::new("t", "").key("").invalid, refused(names::KEYS));
    }

    #[test]
    fn the_record_checksum_is_never_taken_from_a_caller() {
        let properties = Properties::from_bytes(*b"a\x01b\x02__CRC32#\x010000000000\x02");
        let message = Message::new("t", "").properties(properties).property("__CRC32#", "1");
        assert_eq!(message.properties_ref().as_bytes(), b"a\x01b\x02");
        assert_eq!(message.invalid, None);
    }

    #[test]
    fn replacing_the_properties_takes_back_what_was_refused() {
        assert_eq!(Message::new("t", "").tag("").properties(Properties::new()).invalid, None);
    }

    #[test]
    fn fields_chain_under_their_own_names() {
        let host = Host::new([1, 2, 3, 4], 5);
        let message = Message::new("t", "b")
            .queue(3)
            .flag(4)
            .sys_flag(SysFlag::COMMIT)
            .born_at(5)
            .born_host(host)
            .store_host(host)
            .reconsume_times(6)
            .prepared_transaction_offset(7)
            .unique_key("id")
            .delay_level(2)
            .wait(false);
        assert_eq!((message.topic(), message.body(), message.queue_id()), ("t", &b"b"[..], 3));
        assert_eq!(
            (message.flag, message.sys_flag, message.born_timestamp),
            (4, SysFlag::COMMIT, 5)
        );
        assert_eq!((message.born_host, message.store_host), (Some(host), Some(host)));
        assert_eq!((message.reconsume_times, message.prepared_transaction_offset), (6, 7));
        assert_eq!(
            message.properties_ref().as_bytes(),
            b"UNIQ_KEY\x01id\x02DELAY\x012\x02WAIT\x01false\x02"
        );
        assert!(!message.waits());
    }
}
