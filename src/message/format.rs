//! Numbers of the on-disk format, all big-endian on disk, and the sizes that follow from them.

/// Magic code of a record whose topic length takes one byte.
pub const MAGIC_V1: u32 = 0xDAA3_20A7;
/// Magic code of a record whose topic length takes two bytes; RocketMQ 5.1 and later.
pub const MAGIC_V2: u32 = 0xDAA3_20AB;
/// Magic code of the blank that fills the end of a segment.
pub const MAGIC_BLANK: u32 = 0xCBD4_3194;

/// Bytes of a blank's header, and the room every record leaves behind it for one.
pub const BLANK_SIZE: usize = 8;
/// Bytes before the body when both hosts are IPv4.
pub const HEADER_SIZE_MIN: usize = 88;
/// Bytes before the body when both hosts are IPv6.
pub const HEADER_SIZE_MAX: usize = HEADER_SIZE_MIN + 2 * (HOST_V6_SIZE - HOST_V4_SIZE);
/// Bytes of the smallest record: no body, no topic, no properties.
pub const RECORD_SIZE_MIN: usize = HEADER_SIZE_MIN + 1 + 2;
/// Bytes of an IPv4 address and its port.
pub const HOST_V4_SIZE: usize = 4 + 4;
/// Bytes of an IPv6 address and its port.
pub const HOST_V6_SIZE: usize = 16 + 4;
/// Bytes of a `__CRC32#` property: name, separator, ten digits, separator.
pub const RECORD_CRC_SIZE: usize = 20;

/// Longest topic of an ordinary message, and the longest that a V1 record can hold.
pub const TOPIC_LEN_MAX: usize = 127;
/// Longest topic of a consumer group's retries.
pub const RETRY_TOPIC_LEN_MAX: usize = 255;
/// What the topic of a consumer group's retries begins with.
pub const RETRY_TOPIC_PREFIX: &str = "%RETRY%";
/// Between the name of a group and that of one that gets everything for itself, in the name of its offsets.
pub(crate) const BROADCAST: &str = "%BROADCAST%";
/// What the topic of a consumer group's dead letters begins with.
pub const DEAD_LETTER_TOPIC_PREFIX: &str = "%DLQ%";
/// Longest property string, the record checksum included.
pub const PROPERTIES_LEN_MAX: usize = i16::MAX as usize;
/// The topic in which RocketMQ keeps delayed messages until they are due.
pub const SCHEDULE_TOPIC: &str = "SCHEDULE_TOPIC_XXXX";
/// The topic in which RocketMQ 5 keeps messages that are to be delivered at a time of their own.
pub const TIMER_TOPIC: &str = "rmq_sys_wheel_timer";
/// The topic that says which messages of the timer wheel are done with; RocketMQ has no such topic.
pub const TIMER_DONE_TOPIC: &str = "rmq_sys_wheel_timer_done";
/// The consumer group whose offsets tell how far delayed messages are delivered; RocketMQ has no such
/// group.
pub const DELAY_GROUP: &str = "CID_RMQ_SYS_DURALOG_DELAY";
/// RocketMQ's default `timerMaxDelaySec`, in milliseconds: how far ahead a message may be timed.
pub const TIMER_DELAY_MAX_MS: i64 = 3 * 24 * 60 * 60 * 1_000;
/// The topic in which RocketMQ keeps the half messages of transactions.
pub const HALF_TOPIC: &str = "RMQ_SYS_TRANS_HALF_TOPIC";
/// The topic that says which half messages are done with.
pub const HALF_DONE_TOPIC: &str = "RMQ_SYS_TRANS_OP_HALF_TOPIC";
/// The consumer group whose offsets tell up to where half messages and entries need not be read again.
pub(crate) const TRANSACTION_GROUP: &str = "CID_RMQ_SYS_TRANS";
/// The topic of half messages that were checked in vain too often.
pub const CHECKED_IN_VAIN_TOPIC: &str = "TRANS_CHECK_MAX_TIME_TOPIC";

/// Whether a topic is one of those that a store or a broker keeps for itself.
pub fn is_system_topic(topic: &str) -> bool {
    topic == SCHEDULE_TOPIC
        || topic == CHECKED_IN_VAIN_TOPIC
        || topic.get(..8).is_some_and(|prefix| prefix.eq_ignore_ascii_case("rmq_sys_"))
}

/// Whether delayed messages wait in a topic.
#[inline]
pub(crate) fn is_delay_topic(topic: &str) -> bool {
    topic.len() == SCHEDULE_TOPIC.len() && (topic == SCHEDULE_TOPIC || topic == TIMER_TOPIC)
}

/// Whether a queue is one of those in which they wait.
pub(crate) fn is_delay_queue(topic: &str, queue_id: i32) -> bool {
    is_delay_topic(topic) && (0..DELAY_LEVELS_MS.len() as i32).contains(&queue_id)
}

/// Ends a property's name.
pub(crate) const NAME_END: u8 = 1;
/// Ends a property's value.
pub(crate) const VALUE_END: u8 = 2;

/// RocketMQ keeps checksums in signed integers and drops the sign bit.
pub(crate) const CRC_MASK: u32 = 0x7FFF_FFFF;

/// Delays of RocketMQ's default `messageDelayLevel`, level 1 first.
pub const DELAY_LEVELS_MS: [i64; 18] = {
    const SECOND: i64 = 1_000;
    const MINUTE: i64 = 60 * SECOND;
    const HOUR: i64 = 60 * MINUTE;
    [
        SECOND,
        5 * SECOND,
        10 * SECOND,
        30 * SECOND,
        MINUTE,
        2 * MINUTE,
        3 * MINUTE,
        4 * MINUTE,
        5 * MINUTE,
        6 * MINUTE,
        7 * MINUTE,
        8 * MINUTE,
        9 * MINUTE,
        10 * MINUTE,
        20 * MINUTE,
        30 * MINUTE,
        HOUR,
        2 * HOUR,
    ]
};

const _: () = {
    assert!(SCHEDULE_TOPIC.len() == TIMER_TOPIC.len());
    assert!(HEADER_SIZE_MIN == 5 * 4 + 2 * 8 + 4 + 2 * 8 + 2 * HOST_V4_SIZE + 4 + 8 + 4);
    assert!(HEADER_SIZE_MAX == 112);
    assert!(RECORD_SIZE_MIN == 91);
    assert!(RECORD_CRC_SIZE == super::properties::names::RECORD_CRC.len() + 1 + 10 + 1);
    assert!(TOPIC_LEN_MAX == i8::MAX as usize);
    // A body at its limit always makes a record that RocketMQ accepts, which allows 64 KiB more.
    assert!(HEADER_SIZE_MAX + 2 + RETRY_TOPIC_LEN_MAX + 2 + PROPERTIES_LEN_MAX < 64 * 1024);
};
