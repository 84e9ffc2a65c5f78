use super::super::testing::*;
use super::super::{Properties, SysFlag};
use super::*;
use proptest::prelude::*;

fn length(field: &'static str, value: i64) -> Corruption {
    Corruption::Length { field, value }
}

/// The worked record with some bytes replaced.
fn worked_with(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut record = WORKED.to_vec();
    record[at..at + bytes.len()].copy_from_slice(bytes);
    record
}

fn error(bytes: &[u8]) -> Corruption {
    RecordRef::decode(bytes).unwrap_err()
}

#[test]
fn reads_the_record_of_the_format_page() {
    let mut bytes = WORKED.to_vec();
    bytes.extend_from_slice(b"what follows");
    let record = RecordRef::decode(&bytes).unwrap();
    record.verify(RecordCheck::Body).unwrap();
    assert_eq!(record.bytes(), WORKED);
    assert_eq!((record.size(), record.version()), (104, RecordVersion::V1));
    assert_eq!((record.topic(), record.body()), ("T", &b"hello"[..]));
    assert_eq!(record.body_crc(), 0x3610_A686);
    assert_eq!(record.born_timestamp(), 1_700_000_000_000);
    assert_eq!(record.store_timestamp(), 1_700_000_000_123);
    assert_eq!(record.born_host(), Host::new([127, 0, 0, 1], 50000));
    assert_eq!(record.store_host(), Host::new([127, 0, 0, 1], 10911));
    assert_eq!((record.tags(), record.keys(), record.unique_key()), (Some("A"), None, None));
    assert_eq!(record.tags_code(), 65);
    assert_eq!(record.message_id().to_string(), "7F00000100002A9F0000000000000000");
}

#[test]
fn a_record_that_goes_on_asks_for_its_size() {
    for available in [0, 7] {
        let missing = Corruption::Truncated { needed: 8, available };
        assert_eq!(error(&WORKED[..available as usize]), missing);
    }
    for available in [8, 88, 103] {
        let missing = Corruption::Truncated { needed: 104, available };
        assert_eq!(error(&WORKED[..available as usize]), missing);
    }
}

#[test]
fn what_is_no_record_is_told_by_its_magic_code() {
    assert_eq!(error(&[0; 200]), Corruption::Magic { found: 0 });
    assert_eq!(
        error(&worked_with(4, &[0xCB, 0xD4, 0x31, 0x94])),
        Corruption::Magic { found: 0xCBD4_3194 }
    );
}

#[test]
fn lengths_must_agree() {
    for size in [-1i32, 0, 90] {
        assert_eq!(error(&worked_with(0, &size.to_be_bytes())), length("record size", size.into()));
    }
    assert_eq!(error(&worked_with(3, &[103])), length("properties length", 7));
    let mut longer = worked_with(3, &[105]);
    longer.push(0);
    assert_eq!(error(&longer), length("record size", 105));
    assert_eq!(error(&worked_with(84, &[0xFF; 4])), length("body length", -1));
    assert_eq!(error(&worked_with(87, &[17])), length("body length", 17));
    assert_eq!(error(&worked_with(93, &[0x80])), length("topic length", -128));
    assert_eq!(error(&worked_with(93, &[11])), length("topic length", 11));
    assert_eq!(error(&worked_with(95, &[0xFF, 0xFF])), length("properties length", -1));
    assert_eq!(error(&worked_with(96, &[6])), length("record size", 104));
}

#[test]
fn a_topic_must_be_text() {
    assert_eq!(error(&worked_with(94, &[0xFF])), Corruption::Topic);
}

#[test]
fn the_second_version_has_a_wider_topic_length() {
    let stored = StoredMessage {
        version: RecordVersion::V2,
        ..RecordRef::decode(&WORKED).unwrap().to_stored()
    };
    let bytes = stored.encode();
    assert_eq!((bytes.len(), &bytes[4..8]), (105, &[0xDA, 0xA3, 0x20, 0xAB][..]));
    assert_eq!(&bytes[93..96], b"\x00\x01T");
    assert_eq!(RecordRef::decode(&bytes).unwrap().to_stored(), stored);
}

#[test]
fn damage_to_the_body_shows_in_its_checksum() {
    let bytes = worked_with(88, b"j");
    let damaged = RecordRef::decode(&bytes).unwrap().verify(RecordCheck::Body);
    assert!(matches!(damaged, Err(Corruption::BodyCrc { stored: 0x3610_A686, .. })));
}

#[test]
fn damage_to_a_header_shows_in_the_record_checksum_only() {
    let mut bytes = encode(&worked(), true, &WORKED_STAMP);
    bytes[19] ^= 1;
    let record = RecordRef::decode(&bytes).unwrap();
    assert_eq!(record.verify(RecordCheck::Body), Ok(()));
    assert!(matches!(
        record.verify(RecordCheck::Record),
        Err(Corruption::RecordCrc { stored: 1_109_840_760, .. })
    ));
    let without = RecordRef::decode(&WORKED).unwrap();
    assert_eq!(without.verify(RecordCheck::Record), Err(Corruption::RecordCrcMissing));
}

#[test]
fn a_record_checksum_of_zero_is_a_checksum() {
    let stored =
        StoredMessage { record_crc: Some(0), ..RecordRef::decode(&WORKED).unwrap().to_stored() };
    let bytes = stored.encode();
    let record = RecordRef::decode(&bytes).unwrap();
    assert_eq!(record.record_crc(), Some(0));
    assert!(matches!(
        record.verify(RecordCheck::Record),
        Err(Corruption::RecordCrc { stored: 0, .. })
    ));
}

#[test]
fn a_stale_checksum_that_java_copied_along_is_judged_by_the_body() {
    let mut stored = RecordRef::decode(&WORKED).unwrap().to_stored();
    stored.properties = Properties::from_bytes(*b"__CRC32#\x010670489011\x02TAGS\x01A\x02");
    let bytes = stored.encode();
    let record = RecordRef::decode(&bytes).unwrap();
    assert_eq!((record.record_crc(), record.tags()), (None, Some("A")));
    assert_eq!(record.verify(RecordCheck::Body), Ok(()));
    assert_eq!(record.to_stored().encode(), bytes);
}

#[test]
fn host_bits_of_another_width_do_not_fit() {
    assert!(matches!(error(&worked_with(39, &[0x30])), Corruption::Length { .. }));
    let bits = SysFlag(i32::from(WORKED[39]));
    assert_eq!(bits, SysFlag::default());
}

#[test]
fn parts_of_other_bytes_are_empty() {
    let parts = RecordRef::decode(&WORKED).unwrap().parts();
    let other = RecordRef::from_parts(b"short", &parts);
    assert_eq!((other.topic(), other.body()), ("", &b""[..]));
    assert!(other.properties().is_empty());
    assert_eq!(other.verify(RecordCheck::Record), Err(Corruption::RecordCrcMissing));
}

proptest! {
    #[test]
    fn a_record_is_found_again_from_its_parts(
        message in any_message(),
        stamp in any_stamp(),
        record_crc: bool,
    ) {
        let bytes = encode(&message, record_crc, &stamp);
        let record = RecordRef::decode(&bytes).unwrap();
        let again = RecordRef::from_parts(&bytes, &record.parts());
        prop_assert_eq!(again.to_stored(), record.to_stored());
        prop_assert_eq!(again.bytes(), record.bytes());
    }

    #[test]
    fn decoding_is_total(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = RecordRef::decode(&bytes);
    }

    #[test]
    fn decoding_is_total_behind_a_plausible_start(
        version in prop_oneof![Just(RecordVersion::V1), Just(RecordVersion::V2)],
        mut bytes in prop::collection::vec(any::<u8>(), 91..200),
        zeroed: bool,
    ) {
        let size = bytes.len() as u32;
        bytes[..4].copy_from_slice(&size.to_be_bytes());
        bytes[4..8].copy_from_slice(&version.magic().to_be_bytes());
        if zeroed {
            bytes[39] = 0;
            bytes[84..88].fill(0);
        }
        if let Ok(record) = RecordRef::decode(&bytes) {
            prop_assert_eq!(record.to_stored().encode(), bytes);
        }
    }

    #[test]
    fn any_damage_decodes_to_an_error_or_to_the_same_bytes(
        message in any_message(),
        stamp in any_stamp(),
        record_crc: bool,
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut bytes = encode(&message, record_crc, &stamp);
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Ok(record) = RecordRef::decode(&bytes) {
            let _ = record.verify(RecordCheck::Body);
            let _ = record.verify(RecordCheck::Record);
            prop_assert_eq!(record.to_stored().encode(), record.bytes());
        }
    }

    #[test]
    fn a_record_checksum_shows_every_single_byte(
        message in any_message(),
        stamp in any_stamp(),
        flip in 1..=u8::MAX,
    ) {
        let mut bytes = encode(&message, true, &stamp);
        for at in 0..bytes.len() {
            bytes[at] ^= flip;
            let intact = RecordRef::decode(&bytes).is_ok_and(|r| r.verify(RecordCheck::Record).is_ok());
            prop_assert!(!intact, "byte {} ^ {:#04x}", at, flip);
            bytes[at] ^= flip;
        }
    }
}
