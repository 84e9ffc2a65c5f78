//! Which topic a delayed message waits in, and what becomes of it when it is due.

use crate::error::{Error, InvalidMessage, Result};
use crate::message::format::{
    DELAY_LEVELS_MS, HALF_TOPIC, SCHEDULE_TOPIC, TIMER_DELAY_MAX_MS, TIMER_TOPIC, is_delay_topic,
};
use crate::message::{
    Message, Properties, PropertiesRef, RecordRef, Transaction, check_topic, names,
};

/// RocketMQ's wheel moves on by this.
pub(super) const WHEEL_MS: i64 = 1_000;

/// What is put in the place of `message` at `now_ms`: the same message where nothing delays it, or one
/// that waits in one of RocketMQ's topics and becomes it when it is due.
pub(crate) fn routed(message: Message, now_ms: i64) -> Result<Message> {
    if !may_wait(&message) {
        return Ok(message);
    }
    if let Some(queue_id) = schedule_queue(message.properties_ref()) {
        return waiting_in(message, SCHEDULE_TOPIC, queue_id);
    }
    let Some(deliver_at) = deliver_at(&message, now_ms)? else { return Ok(message) };
    let delay_ms = deliver_at.saturating_sub(now_ms);
    if delay_ms > TIMER_DELAY_MAX_MS {
        let max_ms = TIMER_DELAY_MAX_MS;
        return Err(Error::InvalidMessage(InvalidMessage::DelayTooLong { delay_ms, max_ms }));
    }
    if delay_ms <= 0 { Ok(message) } else { timed(message, deliver_at) }
}

/// A message that waits in the timer topic until `deliver_at`, whatever its properties say.
pub(super) fn timed(message: Message, deliver_at: i64) -> Result<Message> {
    // What RocketMQ's wheel goes by. It counts whole seconds, and this crate does not.
    let out = (deliver_at - 1).div_euclid(WHEEL_MS) * WHEEL_MS;
    let message = message
        .property(names::TIMER_DELIVER_MS, deliver_at.to_string())
        .property(names::TIMER_OUT_MS, out.to_string());
    waiting_in(message, TIMER_TOPIC, 0)
}

fn waiting_in(message: Message, topic: &str, queue_id: i32) -> Result<Message> {
    check_topic(message.topic(), true)?;
    let id = message.queue_id();
    if id < 0 {
        let invalid = InvalidMessage::QueueId { queue_id: id, limit: i32::MAX };
        return Err(Error::InvalidMessage(invalid));
    }
    let (real_topic, waits) = (message.topic().to_owned(), message.waits());
    let waiting = message
        .property(names::REAL_TOPIC, real_topic)
        .property(names::REAL_QUEUE_ID, id.to_string())
        .moved_to(topic, queue_id);
    // Whoever puts it may not want to wait, whatever its properties say.
    Ok(if waits { waiting } else { waiting.not_waiting() })
}

/// Whether a message may be one that is to be delivered later. It may turn out not to be.
pub(crate) fn asks_to_wait(message: &Message) -> bool {
    let properties = message.properties_ref();
    let asks =
        [names::DELAY, names::TIMER_DELAY_SEC, names::TIMER_DELAY_MS, names::TIMER_DELIVER_MS];
    properties.iter_raw().any(|(name, _)| asks.iter().any(|ask| ask.as_bytes() == name))
}

/// The queue in which a message waits, or waited, that asks to be delivered later.
pub(crate) fn waits_in(message: &Message) -> Option<(&'static str, i32)> {
    let level = schedule_queue(message.properties_ref()).map(|queue_id| (SCHEDULE_TOPIC, queue_id));
    level.or_else(|| asks_to_wait(message).then_some((TIMER_TOPIC, 0)))
}

/// Half messages are delayed when they are committed, if at all.
fn may_wait(message: &Message) -> bool {
    let is_half = match message.sys_flag.transaction() {
        Transaction::Prepared | Transaction::Rollback => true,
        Transaction::None => message.get(names::TRANSACTION_PREPARED) == Some("true"),
        Transaction::Commit => false,
    };
    !is_half && !is_delay_topic(message.topic()) && message.topic() != HALF_TOPIC
}

/// The queue of the schedule topic for the level of a message.
fn schedule_queue(properties: PropertiesRef<'_>) -> Option<i32> {
    let level: i32 = properties.get(names::DELAY)?.parse().ok()?;
    (level > 0).then(|| level.min(DELAY_LEVELS_MS.len() as i32) - 1)
}

/// When a message asks to be delivered, unless it has been before.
fn deliver_at(message: &Message, now_ms: i64) -> Result<Option<i64>> {
    if message.get(names::TIMER_OUT_MS).is_some() {
        return Ok(None);
    }
    let number = |name: &str| {
        let Some(value) = message.get(name) else { return Ok(None) };
        let invalid = || InvalidMessage::DeliveryTime { value: value.to_owned() };
        value.parse::<i64>().map(Some).map_err(|_| Error::InvalidMessage(invalid()))
    };
    if let Some(seconds) = number(names::TIMER_DELAY_SEC)? {
        return Ok(Some(now_ms.saturating_add(seconds.saturating_mul(1_000))));
    }
    match number(names::TIMER_DELAY_MS)? {
        Some(millis) => Ok(Some(now_ms.saturating_add(millis))),
        None => number(names::TIMER_DELIVER_MS),
    }
}

/// When a record of the timer topic is due; `None` if it does not say so.
pub(super) fn timer_due(properties: PropertiesRef<'_>) -> Option<i64> {
    let number = |name| properties.get(name)?.parse::<i64>().ok();
    // A broker keeps the exact time of those only whose producer gave it one; rounded down, it would be
    // early.
    let exact = number(names::TIMER_DELIVER_MS);
    exact.or_else(|| Some(timer_slot(properties)?.saturating_add(WHEEL_MS)))
}

/// The time that RocketMQ's wheel goes by for a record of the timer topic.
pub(super) fn timer_slot(properties: PropertiesRef<'_>) -> Option<i64> {
    properties.get(names::TIMER_OUT_MS)?.parse().ok()
}

/// The topic and queue that a waiting message belongs to; `None` if it does not say, or not rightly.
pub(super) fn destination<'a>(properties: PropertiesRef<'a>) -> Option<(&'a str, i32)> {
    let topic = properties.get(names::REAL_TOPIC)?;
    let queue_id: i32 = properties.get(names::REAL_QUEUE_ID)?.parse().ok()?;
    let is_one = check_topic(topic, true).is_ok() && !is_delay_topic(topic) && topic != HALF_TOPIC;
    (is_one && queue_id >= 0).then_some((topic, queue_id))
}

/// The message that waits in `record`, if it says where it belongs. As in RocketMQ, it keeps the
/// properties that made it wait.
pub(super) fn delivered(record: &RecordRef<'_>) -> Option<Message> {
    let properties = record.properties();
    let (topic, queue_id) = destination(properties)?;
    let message = Message::new(topic, record.body())
        .queue(queue_id)
        .properties(Properties::from_bytes(properties.as_bytes()))
        .flag(record.flag())
        .sys_flag(record.sys_flag())
        .born_at(record.born_timestamp())
        .born_host(record.born_host())
        .store_host(record.store_host())
        .reconsume_times(record.reconsume_times())
        .prepared_transaction_offset(record.prepared_transaction_offset());
    Some(message.waiting().with_known_body())
}

/// The message in `record` again, to wait in `queue_id` of the schedule topic: for as long as that makes it,
/// and no larger.
pub(super) fn scheduled_again(record: &RecordRef<'_>, queue_id: i32) -> Message {
    let message = Message::copy_of(record, SCHEDULE_TOPIC).queue(queue_id);
    let origin = record.prepared_transaction_offset();
    let message = message.store_host(record.store_host()).prepared_transaction_offset(origin);
    message.waiting().with_known_body()
}

/// The same message without what only says where it came from: never larger than what waited.
pub(super) fn shortened(message: Message) -> Message {
    message.without(&[names::REAL_TOPIC, names::REAL_QUEUE_ID]).waiting()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const NOW: i64 = 1_700_000_000_123;

    fn waits(message: Message) -> (String, i32) {
        let routed = routed(message, NOW).unwrap();
        assert_eq!(routed.get(names::REAL_TOPIC), Some("orders"));
        assert_eq!(routed.get(names::REAL_QUEUE_ID), Some("3"));
        (routed.topic().to_owned(), routed.queue_id())
    }

    fn message() -> Message {
        Message::new("orders", "paid").queue(3)
    }

    #[test]
    fn each_level_has_its_queue_and_those_beyond_the_last_share_it() {
        for (level, queue_id) in [(1, 0), (2, 1), (18, 17), (19, 17), (1_000_000, 17)] {
            assert_eq!(waits(message().delay_level(level)), (SCHEDULE_TOPIC.to_owned(), queue_id));
        }
    }

    #[test]
    fn what_nothing_delays_is_put_as_it_is() {
        let half = message().sys_flag(crate::message::SysFlag::PREPARED);
        for message in [
            message(),
            message().delay_level(0),
            message().property("DELAY", "-1"),
            message().property("DELAY", "soon"),
            message().deliver_at(NOW),
            message().deliver_at(-1),
            message().delay(Duration::ZERO),
            half.delay_level(1),
            message().property("TRAN_MSG", "true").delay_level(1),
            Message::new(HALF_TOPIC, "").delay_level(1),
            Message::new(SCHEDULE_TOPIC, "").delay_level(1),
            Message::new(TIMER_TOPIC, "").delay_level(1),
            message().property("TIMER_OUT_MS", "1").property("TIMER_DELAY_MS", "1"),
        ] {
            assert_eq!(routed(message.clone(), NOW).unwrap(), message);
        }
    }

    #[test]
    fn a_committed_message_waits_though_it_was_a_half_one() {
        let committed = message().sys_flag(crate::message::SysFlag::COMMIT);
        let committed = committed.property("TRAN_MSG", "true").delay_level(2);
        assert_eq!(waits(committed), (SCHEDULE_TOPIC.to_owned(), 1));
    }

    #[test]
    fn times_are_kept_to_the_millisecond_and_rocketmq_gets_its_second() {
        let due = |message: Message| {
            let routed = routed(message, NOW).unwrap();
            assert_eq!((routed.topic(), routed.queue_id()), (TIMER_TOPIC, 0));
            let number = |name| routed.get(name).unwrap().parse::<i64>().unwrap() - NOW;
            (number(names::TIMER_DELIVER_MS), number(names::TIMER_OUT_MS))
        };
        assert_eq!(due(message().deliver_at(NOW + 1)), (1, -123));
        assert_eq!(due(message().delay(Duration::from_nanos(1))), (1, -123));
        assert_eq!(due(message().delay(Duration::from_micros(1_001))), (2, -123));
        // A whole second belongs to the one before.
        assert_eq!(due(message().deliver_at(NOW + 877)), (877, -123));
        assert_eq!(due(message().deliver_at(NOW + 878)), (878, 877));
        assert_eq!(due(message().property("TIMER_DELAY_SEC", "2")), (2_000, 1_877));
        assert_eq!(due(message().delay(Duration::from_secs(72 * 3600))).0, TIMER_DELAY_MAX_MS);
    }

    #[test]
    fn the_last_way_to_delay_a_message_counts() {
        assert_eq!(waits(message().deliver_at(NOW + 1).delay_level(1)).0, SCHEDULE_TOPIC);
        assert_eq!(waits(message().delay_level(1).deliver_at(NOW + 1)).0, TIMER_TOPIC);
        // Also of one that was delivered before.
        let again = message().property("TIMER_OUT_MS", "1").property("TIMER_DELAY_SEC", "9");
        let again = routed(again.delay(Duration::from_millis(5)), NOW).unwrap();
        assert_eq!(again.get(names::TIMER_DELIVER_MS), Some((NOW + 5).to_string().as_str()));
    }

    #[test]
    fn what_cannot_wait_is_refused() {
        let refused = |message| match routed(message, NOW) {
            Err(Error::InvalidMessage(invalid)) => invalid,
            other => panic!("{other:?}"),
        };
        let max_ms = TIMER_DELAY_MAX_MS;
        assert_eq!(
            refused(message().deliver_at(NOW + max_ms + 1)),
            InvalidMessage::DelayTooLong { delay_ms: max_ms + 1, max_ms }
        );
        refused(message().delay(Duration::MAX));
        let soon = || "soon".to_owned();
        let invalid = InvalidMessage::DeliveryTime { value: soon() };
        assert_eq!(refused(message().property("TIMER_DELIVER_MS", "soon")), invalid);
        assert_eq!(refused(message().property("TIMER_DELAY_SEC", "soon")), invalid);
        assert_eq!(refused(Message::new("", "").delay_level(1)), InvalidMessage::EmptyTopic);
        let queue_id = InvalidMessage::QueueId { queue_id: -1, limit: i32::MAX };
        assert_eq!(refused(message().queue(-1).delay_level(1)), queue_id);
    }

    #[test]
    fn a_message_of_a_broker_that_rounded_is_never_early() {
        let due = |bytes: &[u8]| timer_due(PropertiesRef::new(bytes));
        assert_eq!(due(b"TIMER_OUT_MS\x015000\x02TIMER_DELAY_SEC\x015\x02"), Some(6_000));
        assert_eq!(due(b"TIMER_OUT_MS\x015000\x02TIMER_DELIVER_MS\x015123\x02"), Some(5_123));
        assert_eq!(due(b"TIMER_OUT_MS\x01soon\x02"), None);
    }
}
