//! What the tests of this module share.

use super::*;
use proptest::prelude::*;
use std::net::IpAddr;

/// The record of the format page: topic `T`, body `hello`, tag `A`.
pub(super) const WORKED: [u8; 104] = *b"\
    \x00\x00\x00\x68\xda\xa3\x20\xa7\x36\x10\xa6\x86\x00\x00\x00\x00\
    \x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\
    \x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x8b\xcf\xe5\x68\x00\
    \x7f\x00\x00\x01\x00\x00\xc3\x50\x00\x00\x01\x8b\xcf\xe5\x68\x7b\
    \x7f\x00\x00\x01\x00\x00\x2a\x9f\x00\x00\x00\x00\x00\x00\x00\x00\
    \x00\x00\x00\x00\x00\x00\x00\x05hello\x01T\x00\x07TAGS\x01A\x02";

/// Where and when it was stored.
pub(super) const WORKED_STAMP: Stamp =
    Stamp { physical_offset: 0, queue_offset: 0, store_timestamp: 1_700_000_000_123 };

/// The message it was made from.
pub(super) fn worked() -> Message {
    Message::new("T", "hello").tag("A").born_at(1_700_000_000_000)
}

pub(super) fn layout(record_crc: bool) -> RecordLayout {
    RecordLayout {
        store_host: Host::new([127, 0, 0, 1], 10911),
        born_host: Host::new([127, 0, 0, 1], 50000),
        record_crc,
        long_topics: true,
        max_message_size: 4 << 20,
        max_record_size: 1 << 30,
    }
}

pub(super) fn encode(message: &Message, record_crc: bool, stamp: &Stamp) -> Vec<u8> {
    let layout = layout(record_crc);
    let draft = Draft::new(message, &layout).unwrap();
    let mut record = Vec::new();
    draft.encode(stamp, &mut record);
    assert_eq!(record.len(), draft.size());
    record
}

fn any_host() -> impl Strategy<Value = Host> {
    (any::<IpAddr>(), any::<i32>()).prop_map(|(ip, port)| Host { ip, port })
}

fn any_properties() -> impl Strategy<Value = Properties> {
    let entry = "[A-Z]{1,8}\u{1}\\PC{1,20}\u{2}|__CRC32#\u{1}[0-9]{10}\u{2}|[a-c\u{1}\u{2}]{0,9}";
    let text = prop::collection::vec(entry, 0..6).prop_map(|entries| entries.concat().into_bytes());
    prop_oneof![4 => text, 1 => prop::collection::vec(any::<u8>(), 0..60)]
        .prop_map(Properties::from_bytes)
}

pub(super) fn any_message() -> impl Strategy<Value = Message> {
    let topic = "[%|a-zA-Z0-9_-]{1,127}|%RETRY%[a-z]{100,248}";
    let body = prop::collection::vec(any::<u8>(), 0..300);
    let hosts = (any::<Option<()>>(), any_host(), any::<Option<()>>(), any_host());
    let numbers =
        (0..=i32::MAX, any::<i32>(), any::<i32>(), any::<i64>(), any::<i32>(), any::<i64>());
    (topic, body, any_properties(), hosts, numbers).prop_map(
        |(topic, body, properties, (born, born_host, store, store_host), numbers)| {
            let (queue_id, flag, sys_flag, born_at, times, prepared) = numbers;
            let mut message = Message::new(topic, body)
                .properties(properties)
                .queue(queue_id)
                .flag(flag)
                .sys_flag(SysFlag(sys_flag))
                .born_at(born_at)
                .reconsume_times(times)
                .prepared_transaction_offset(prepared);
            message.born_host = born.map(|()| born_host);
            message.store_host = store.map(|()| store_host);
            message
        },
    )
}

pub(super) fn any_stamp() -> impl Strategy<Value = Stamp> {
    (0..1u64 << 62, any::<u32>(), any::<i64>()).prop_map(|(physical_offset, queue, time)| Stamp {
        physical_offset,
        queue_offset: queue.into(),
        store_timestamp: time,
    })
}
