use super::super::testing::*;
use super::super::{Properties, RecordCheck, RecordRef, SysFlag};
use super::*;
use proptest::prelude::*;
use std::net::Ipv6Addr;

fn invalid(message: &Message) -> InvalidMessage {
    match Draft::new(message, &layout(true)) {
        Err(Error::InvalidMessage(invalid)) => invalid,
        other => panic!("{other:?}"),
    }
}

fn too_large(message: &Message, layout: &RecordLayout) -> (&'static str, usize, usize) {
    match Draft::new(message, layout) {
        Err(Error::TooLarge { what, len, max }) => (what, len, max),
        other => panic!("{other:?}"),
    }
}

#[test]
fn writes_the_record_of_the_format_page() {
    assert_eq!(encode(&worked(), false, &WORKED_STAMP), WORKED);
}

#[test]
fn writes_the_record_checksum_of_the_format_page() {
    let record = encode(&worked(), true, &WORKED_STAMP);
    let mut expected = WORKED.to_vec();
    expected[3] = 0x7C;
    expected[96] = 27;
    expected.extend_from_slice(b"__CRC32#\x010670489011\x02");
    assert_eq!(record, expected);
    assert_eq!(RecordRef::decode(&record).unwrap().record_crc(), Some(1_109_840_760));
}

#[test]
fn ipv6_hosts_are_wider_and_set_their_bits() {
    let host = Host::new(Ipv6Addr::LOCALHOST, 1);
    let both = worked().born_host(host).store_host(host);
    let record = encode(&both, false, &WORKED_STAMP);
    assert_eq!(record.len(), 128);
    assert_eq!(RecordRef::decode(&record).unwrap().sys_flag(), SysFlag(0x30));
    for message in [worked().born_host(host), worked().store_host(host)] {
        assert_eq!(encode(&message, true, &WORKED_STAMP).len(), 124 + 12);
    }
}

#[test]
fn bits_that_contradict_the_hosts_are_cleared() {
    let message = worked().sys_flag(SysFlag(0x331));
    let record = encode(&message, false, &WORKED_STAMP);
    assert_eq!(record.len(), WORKED.len());
    assert_eq!(RecordRef::decode(&record).unwrap().sys_flag(), SysFlag(0x301));
}

#[test]
fn an_empty_message_has_no_body_checksum_but_a_record_checksum() {
    let record = encode(&Message::new("T", ""), true, &WORKED_STAMP);
    let record = RecordRef::decode(&record).unwrap();
    assert_eq!(record.body_crc(), 0);
    assert_eq!(record.properties().as_bytes(), b"");
    record.verify(RecordCheck::Body).unwrap();
    record.verify(RecordCheck::Record).unwrap();
}

#[test]
fn a_message_without_a_time_is_born_when_it_is_stored() {
    let record = encode(&worked().born_at(0), false, &WORKED_STAMP);
    assert_eq!(RecordRef::decode(&record).unwrap().born_timestamp(), 1_700_000_000_123);
}

#[test]
fn an_open_property_is_ended_only_before_a_checksum() {
    let open = worked().properties(Properties::from_bytes(*b"TAGS\x01A"));
    let plain = encode(&open, false, &WORKED_STAMP);
    assert_eq!(RecordRef::decode(&plain).unwrap().properties().as_bytes(), b"TAGS\x01A");
    let checked = encode(&open, true, &WORKED_STAMP);
    assert_eq!(checked, encode(&worked(), true, &WORKED_STAMP));
}

#[test]
fn a_checksum_of_another_record_is_not_copied_along() {
    let stale = b"__CRC32#\x010670489011\x02TAGS\x01A\x02__CRC32#\x011";
    let message = worked().properties(Properties::from_bytes(*stale));
    assert_eq!(encode(&message, false, &WORKED_STAMP), WORKED);
}

#[test]
fn topics_are_held_to_their_characters_and_length() {
    assert_eq!(invalid(&Message::new("", "")), InvalidMessage::EmptyTopic);
    for (topic, found) in [("a b", ' '), ("a/b", '/'), ("\u{4E2D}", '\u{4E2D}'), ("a\0", '\0')] {
        assert_eq!(invalid(&Message::new(topic, "")), InvalidMessage::TopicCharacter { found });
    }
    let topic = |prefix: &str, len: usize| Message::new(format!("{prefix:x<len$}"), "");
    for (message, size) in [(topic("", 127), 91 + 127), (topic("%RETRY%", 255), 92 + 255)] {
        assert_eq!(Draft::new(&message, &layout(false)).unwrap().size(), size);
    }
    assert_eq!(too_large(&topic("", 128), &layout(true)), ("topic", 128, 127));
    assert_eq!(too_large(&topic("%RETRY%", 256), &layout(true)), ("topic", 256, 255));
}

#[test]
fn without_long_topics_what_needs_the_second_version_is_refused() {
    let short = RecordLayout { long_topics: false, ..layout(true) };
    let topic = |len: usize| Message::new(format!("{:x<len$}", "%RETRY%"), "");
    assert!(Draft::new(&topic(127), &short).is_ok());
    assert_eq!(too_large(&topic(128), &short), ("topic", 128, 127));
}

#[test]
fn long_topics_choose_the_second_version() {
    for (len, version) in [(127, RecordVersion::V1), (128, RecordVersion::V2)] {
        let message = Message::new(format!("{:x<len$}", "%RETRY%"), "b");
        let record = encode(&message, true, &WORKED_STAMP);
        let record = RecordRef::decode(&record).unwrap();
        assert_eq!((record.version(), record.topic().len()), (version, len));
    }
}

#[test]
fn bodies_and_records_are_held_to_the_layout() {
    let message = worked();
    let exact = RecordLayout { max_message_size: 5, max_record_size: 104, ..layout(false) };
    assert!(Draft::new(&message, &exact).is_ok());
    let smaller = RecordLayout { max_message_size: 4, ..exact.clone() };
    assert_eq!(too_large(&message, &smaller), ("body", 5, 4));
    let smaller = RecordLayout { max_record_size: 103, ..exact };
    assert_eq!(too_large(&message, &smaller), ("record", 104, 103));
}

#[test]
fn properties_leave_room_for_the_checksum_and_its_separator() {
    let open = |len: usize| {
        let bytes = format!("a\u{1}{:x<1$}", "", len - 2).into_bytes();
        Message::new("T", "").properties(Properties::from_bytes(bytes))
    };
    assert!(Draft::new(&open(32_767), &layout(false)).is_ok());
    assert_eq!(too_large(&open(32_768), &layout(false)), ("properties", 32_768, 32_767));
    assert!(Draft::new(&open(32_746), &layout(true)).is_ok());
    assert_eq!(too_large(&open(32_747), &layout(true)), ("properties", 32_768, 32_767));
    let ended = Message::new("T", "").property("a", "x".repeat(32_747 - 3));
    assert!(Draft::new(&ended, &layout(true)).is_ok());
}

#[test]
fn refused_properties_and_queues_surface() {
    let property = InvalidMessage::Property { name: "a\u{2}".to_owned() };
    assert_eq!(invalid(&worked().property("a\u{2}", "x")), property);
    let queue = InvalidMessage::QueueId { queue_id: -1, limit: i32::MAX };
    assert_eq!(invalid(&worked().queue(-1)), queue);
}

#[test]
fn tells_what_the_append_needs_to_know() {
    let (message, layout) = (worked().queue(3).wait(false), layout(true));
    let draft = Draft::new(&message, &layout).unwrap();
    assert_eq!((draft.topic(), draft.queue_id(), draft.waits()), ("T", 3, false));
    assert!(draft.takes_queue_offset());
    let half = worked().sys_flag(SysFlag::PREPARED);
    assert!(!Draft::new(&half, &layout).unwrap().takes_queue_offset());
}

proptest! {
    #[test]
    fn what_is_put_is_what_is_read(message in any_message(), stamp in any_stamp(), record_crc: bool) {
        let bytes = encode(&message, record_crc, &stamp);
        let record = RecordRef::decode(&bytes).unwrap();
        record.verify(RecordCheck::Body).unwrap();
        if record_crc {
            record.verify(RecordCheck::Record).unwrap();
        }
        let v6 = SysFlag::BORN_HOST_V6 | SysFlag::STORE_HOST_V6;
        let layout = layout(record_crc);
        prop_assert_eq!(record.topic(), message.topic());
        prop_assert_eq!(record.body(), message.body());
        prop_assert_eq!(record.queue_id(), message.queue_id());
        prop_assert_eq!(record.flag(), message.flag);
        prop_assert_eq!(record.sys_flag().without(v6), message.sys_flag.without(v6));
        prop_assert_eq!(record.born_host(), message.born_host.unwrap_or(layout.born_host));
        prop_assert_eq!(record.store_host(), message.store_host.unwrap_or(layout.store_host));
        prop_assert_eq!(record.reconsume_times(), message.reconsume_times);
        prop_assert_eq!(record.prepared_transaction_offset(), message.prepared_transaction_offset);
        prop_assert_eq!(record.physical_offset() as u64, stamp.physical_offset);
        prop_assert_eq!(record.queue_offset() as u64, stamp.queue_offset);
        prop_assert_eq!(record.store_timestamp(), stamp.store_timestamp);
        let properties: Vec<_> = record.properties().iter_raw().collect();
        prop_assert_eq!(properties, message.properties_ref().iter_raw().collect::<Vec<_>>());
        prop_assert_eq!(record.to_stored().encode(), bytes);
    }
}
