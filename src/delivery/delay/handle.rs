//! Putting what is to be delivered later, and taking it back.

use super::routing::routed;
use super::timers::marker;
use crate::delivery::Delivery;
use crate::error::{Error, InvalidMessage, Result};
use crate::message::format::TIMER_TOPIC;
use crate::message::{Message, PropertiesRef, names};
use crate::store::{Store, Ticket};
use std::fmt;

/// A message that waits for a time of its own, named so that it can be cancelled. Its text,
/// which `Display` prints and [`parse`](Self::parse) reads, can be kept anywhere.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct DelayHandle {
    topic: String,
    deliver_at: i64,
    unique_key: String,
}

impl DelayHandle {
    /// That of a message as it waits; `None` for one that does not, or waits for a level.
    pub(crate) fn of(waiting: &Message) -> Option<Self> {
        Self::from_parts(waiting.topic(), waiting.properties_ref())
    }

    fn from_parts(topic: &str, properties: PropertiesRef<'_>) -> Option<Self> {
        if topic != TIMER_TOPIC {
            return None;
        }
        Some(Self {
            topic: properties.get(names::REAL_TOPIC)?.to_owned(),
            deliver_at: properties.get(names::TIMER_DELIVER_MS)?.parse().ok()?,
            unique_key: properties.get(names::UNIQ_KEY)?.to_owned(),
        })
    }

    /// The topic to which it will be delivered.
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// When it is due, in milliseconds since 1970.
    pub fn deliver_at(&self) -> i64 {
        self.deliver_at
    }

    /// The producer's own id of the message, `UNIQ_KEY`.
    pub fn unique_key(&self) -> &str {
        &self.unique_key
    }

    /// Reads the text of a handle.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(4, ' ');
        let (version, topic, deliver_at, unique_key) =
            (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        if version != "v1" || topic.is_empty() || unique_key.is_empty() {
            return None;
        }
        let deliver_at = deliver_at.parse().ok()?;
        Some(Self { topic: topic.to_owned(), deliver_at, unique_key: unique_key.to_owned() })
    }

    /// What is put to cancel it.
    fn cancellation(&self) -> Message {
        // The body is what RocketMQ's own has.
        Message::new(&self.topic, "0")
            .property(names::TIMER_DELETE_UNIQUE_KEY, marker(&self.topic, &self.unique_key))
            .deliver_at(self.deliver_at)
    }
}

impl fmt::Display for DelayHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "v1 {} {} {}", self.topic, self.deliver_at, self.unique_key)
    }
}

/// What came of cancelling a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[must_use = "the message may have been delivered"]
#[non_exhaustive]
pub enum Cancelled {
    /// In time: if a message with that handle was waiting, it is not delivered, whatever crashes.
    InTime,
    /// The message became due meanwhile: it may have been delivered, or not.
    Perhaps,
    /// The message was due before: nothing was done.
    TooLate,
}

/// What a store has done with delayed messages since it was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DelayStats {
    /// Messages delivered, of either kind.
    pub delivered: u64,
    /// Timed messages that were cancelled when they were due.
    pub cancelled: u64,
    /// Messages that are damaged, or do not say where they belong: they stay where they were waiting.
    pub undeliverable: u64,
    /// Timed messages that are waiting in memory, cancellations among them; not those that wait on disk
    /// alone, where there are more than a million.
    pub pending_timers: u64,
}

impl Store {
    /// [`submit`](Self::submit) for a message that is to be delivered later, if it is one: see
    /// [`Message::delay_level`], [`Message::deliver_at`] and [`Message::delay`]. It is put to one of
    /// RocketMQ's topics, `SCHEDULE_TOPIC_XXXX` or `rmq_sys_wheel_timer`, as safely as any message; the
    /// ticket says where. When it is due by the store's clock, a thread of the store puts it to its own
    /// topic and queue: never before, and at most 100 ms later where there is nothing else to do. After a
    /// crash it may be delivered again if it was delivered shortly before.
    ///
    /// Its topic is created now if it is not known, durably, as by a producer.
    ///
    /// With a time of its own comes a handle, by which it can be [cancelled](Self::cancel_delayed). Its
    /// unique key is the handle's; one that has none is given one.
    ///
    /// What waits when a store is opened is delivered once somebody calls this, or
    /// [`deliver_delayed`](Self::deliver_delayed).
    ///
    /// # Errors
    /// As [`put`](Self::put), for what the message is now and for what it will be: nothing is stored that
    /// could not be delivered. [`InvalidMessage::DelayTooLong`], [`InvalidMessage::DeliveryTime`] and
    /// [`InvalidMessage::Cancellation`].
    ///
    /// # Examples
    /// ```
    /// use duralog::{Message, Store, StoreConfig};
    /// use std::time::Duration;
    ///
    /// # let dir = std::env::temp_dir().join(format!("duralog-doc-delay-{}", std::process::id()));
    /// let store = Store::open(StoreConfig::new(&dir).segment_size(1 << 20))?;
    /// let message = Message::new("orders", "remind of 42").delay(Duration::from_millis(20));
    /// let (ticket, handle) = store.submit_delayed(message)?;
    /// ticket.wait()?.ok()?; // it is safe, and will be delivered
    /// println!("to be cancelled by {}", handle.expect("it has a time of its own"));
    /// assert!(store.wait_for("orders", 0, 0, Duration::from_secs(60))?);
    /// assert_eq!(store.get("orders", 0, 0, 1)?.messages[0].body, b"remind of 42");
    /// # store.close()?;
    /// # std::fs::remove_dir_all(&dir).unwrap();
    /// # Ok::<(), duralog::Error>(())
    /// ```
    pub fn submit_delayed(&self, message: Message) -> Result<(Ticket, Option<DelayHandle>)> {
        let topic = message.topic().to_owned();
        let message = self.routed(message)?;
        if message.topic() != topic {
            // Not when it is delivered: the disk may hang then.
            self.require_topic(&topic, self.config().default_topic_queue_nums)?;
        }
        let ticket = self.submit(&message)?;
        Ok((ticket, DelayHandle::of(&message)))
    }

    /// Delivers what is delayed, from now on: what other processes or earlier lives of the store have put.
    /// Not needed where something delayed is put.
    ///
    /// # Errors
    /// [`Error::ReadOnly`]; [`Error::Closed`]; [`Error::Io`] if no thread can be started.
    pub fn deliver_delayed(&self) -> Result<()> {
        if self.config().log.read_only {
            return Err(Error::ReadOnly);
        }
        Delivery::of(self).map(drop)
    }

    /// What is put in the place of an application's message that may be delayed; whoever puts it has it
    /// delivered.
    pub(crate) fn routed(&self, message: Message) -> Result<Message> {
        // What waits must fit where it will go.
        self.check_message(&message, 0)?;
        let delivery = Delivery::of(self)?;
        // By which it can be cancelled.
        let message = match message.get(names::UNIQ_KEY) {
            Some(_) => message,
            None => message.unique_key(delivery.ids.next(self.clock(), self.now()).id()),
        };
        let message = routed(message, self.clock().unix_millis())?;
        if message.topic() == TIMER_TOPIC && message.get(names::TIMER_DELETE_UNIQUE_KEY).is_some() {
            return Err(Error::InvalidMessage(InvalidMessage::Cancellation));
        }
        Ok(message)
    }

    /// The same for a message that is in the store already, in whatever form: with an id that is new it would
    /// be taken for another one.
    pub(crate) fn rerouted(&self, message: Message) -> Result<Message> {
        self.check_message(&message, 0)?;
        routed(message, self.clock().unix_millis())
    }

    /// The handle of a message that was sent to be delivered later, at a time of its own: where it was put
    /// is what a [`Sent`](crate::delivery::Sent) or a ticket says. `None` for any other message.
    ///
    /// # Errors
    /// As [`get_at`](Self::get_at).
    ///
    /// # Examples
    /// ```
    /// # use duralog::delivery::Cancelled;
    /// # use duralog::{Message, Store, StoreConfig};
    /// # use std::time::Duration;
    /// # let dir = std::env::temp_dir().join(format!("duralog-doc-handle-{}", std::process::id()));
    /// # let store = Store::open(StoreConfig::new(&dir).segment_size(1 << 20))?;
    /// let producer = store.producer("shop").open()?;
    /// let later = Message::new("orders", "remind of 42").delay(Duration::from_secs(3600));
    /// let sent = producer.send(later)?;
    /// let handle = store.delay_handle(sent.put.physical_offset)?.expect("it waits");
    /// assert_eq!(store.cancel_delayed(&handle)?, Cancelled::InTime);
    /// # drop(producer);
    /// # store.close()?;
    /// # std::fs::remove_dir_all(&dir).unwrap();
    /// # Ok::<(), duralog::Error>(())
    /// ```
    pub fn delay_handle(&self, physical_offset: u64) -> Result<Option<DelayHandle>> {
        let found = self.get_at(physical_offset)?;
        let handle = found.and_then(|view| {
            let record = view.record();
            DelayHandle::from_parts(record.topic(), record.properties())
        });
        Ok(handle)
    }

    /// Cancels a message that has not been delivered yet, durably whatever the flush mode: as RocketMQ does,
    /// by a message that says so. Blocks as a [`put`](Self::put), and then until a power cut cannot undo it.
    ///
    /// A handle that names no message, or one that was delivered or cancelled, does nothing.
    ///
    /// # Errors
    /// As [`put`](Self::put); [`Error::NotOk`] and [`Error::FlushTimeout`] if what cancels it is not known to
    /// be safe: it may count nonetheless.
    ///
    /// # Examples
    /// ```
    /// use duralog::delivery::{Cancelled, DelayHandle};
    /// use duralog::{Message, Store, StoreConfig};
    /// use std::time::Duration;
    ///
    /// # let dir = std::env::temp_dir().join(format!("duralog-doc-cancel-{}", std::process::id()));
    /// let store = Store::open(StoreConfig::new(&dir).segment_size(1 << 20))?;
    /// let message = Message::new("orders", "remind of 42").delay(Duration::from_secs(3600));
    /// let (ticket, handle) = store.submit_delayed(message)?;
    /// ticket.wait()?.ok()?;
    /// let kept = handle.expect("it has a time of its own").to_string(); // in a database, say
    ///
    /// let handle = DelayHandle::parse(&kept).expect("it is one");
    /// assert_eq!(store.cancel_delayed(&handle)?, Cancelled::InTime);
    /// # store.close()?;
    /// # std::fs::remove_dir_all(&dir).unwrap();
    /// # Ok::<(), duralog::Error>(())
    /// ```
    pub fn cancel_delayed(&self, handle: &DelayHandle) -> Result<Cancelled> {
        let Some(ticket) = self.submit_cancel(handle)? else { return Ok(Cancelled::TooLate) };
        self.wait_until_safe(&ticket)?;
        let in_time = self.clock().unix_millis() < handle.deliver_at;
        Ok(if in_time { Cancelled::InTime } else { Cancelled::Perhaps })
    }

    /// The same without waiting: the message is cancelled if the ticket is answered with `PutOk` before
    /// it is due, and that lasts as long as what the store's flush mode makes of a put. `None` if it was due before.
    ///
    /// # Errors
    /// As [`submit`](Self::submit).
    pub fn submit_cancel(&self, handle: &DelayHandle) -> Result<Option<Ticket>> {
        Delivery::of(self)?;
        let message = routed(handle.cancellation(), self.clock().unix_millis())?;
        if message.topic() != TIMER_TOPIC {
            return Ok(None);
        }
        self.submit(&message).map(Some)
    }

    /// What has come of delayed messages since the store was opened.
    ///
    /// # Errors
    /// [`Error::Closed`]; [`Error::Io`] if no thread can be started.
    pub fn delay_stats(&self) -> Result<DelayStats> {
        Ok(Delivery::of(self)?.delay.stats())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_is_what_its_text_says() {
        let handle = DelayHandle {
            topic: "orders".to_owned(),
            deliver_at: 1_700_000_000_123,
            unique_key: "a key of its own".to_owned(),
        };
        assert_eq!(handle.to_string(), "v1 orders 1700000000123 a key of its own");
        assert_eq!(DelayHandle::parse(&handle.to_string()), Some(handle));
        for text in
            ["", "v1", "v1 orders 1", "v2 orders 1 k", "v1  1 k", "v1 orders x k", "v1 o 1 "]
        {
            assert_eq!(DelayHandle::parse(text), None, "{text}");
        }
    }
}
