use super::super::testing::WORKED;
use super::super::{Properties, RecordRef};
use super::*;

fn worked() -> StoredMessage {
    RecordRef::decode(&WORKED).unwrap().to_stored()
}

#[test]
fn encodes_to_the_bytes_it_came_from() {
    assert_eq!(worked().encode(), WORKED);
    assert_eq!(worked().size(), WORKED.len());
}

#[test]
fn reads_its_properties() {
    let mut stored = worked();
    stored.properties.set("KEYS", "a b").unwrap();
    stored.properties.set("UNIQ_KEY", "id").unwrap();
    assert_eq!((stored.tags(), stored.keys()), (Some("A"), Some("a b")));
    assert_eq!((stored.unique_key(), stored.get("none")), (Some("id"), None));
    assert_eq!(stored.tags_code(), 65);
    assert_eq!(stored.message_id().to_string(), "7F00000100002A9F0000000000000000");
}

#[test]
fn an_open_property_is_ended_before_a_checksum() {
    let mut stored = worked();
    stored.properties = Properties::from_bytes(*b"TAGS\x01A");
    stored.record_crc = Some(1);
    let bytes = stored.encode();
    assert_eq!(bytes.len(), stored.size());
    assert_eq!(RecordRef::decode(&bytes).unwrap().properties().as_bytes(), b"TAGS\x01A\x02");
}

#[test]
fn what_the_format_cannot_hold_does_not_decode() {
    let topic = StoredMessage { topic: "x".repeat(128), ..worked() };
    let properties = Properties::from_bytes(vec![b'x'; 32_768]);
    for stored in [topic, StoredMessage { properties, ..worked() }] {
        assert!(RecordRef::decode(&stored.encode()).is_err());
    }
}
