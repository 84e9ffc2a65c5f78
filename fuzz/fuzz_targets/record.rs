//! Any bytes as a record, a batch, a property string, an id: no panic, and what decodes is encoded to
//! the same bytes.

#![no_main]

use duralog::Corruption;
use duralog::message::{
    Frame, OffsetMessageId, Properties, RecordCheck, RecordRef, UniqueKey, decode_batch, format,
    frame,
};
use libfuzzer_sys::fuzz_target;
use std::hint::black_box;

fuzz_target!(|bytes: &[u8]| {
    let record = RecordRef::decode(bytes);
    if let Ok(record) = record {
        check(&record);
        check_prefixes(record.bytes());
    }
    check_frames(bytes, record.ok());
    check_batch(bytes);
    check_properties(bytes);
    if let Ok(text) = str::from_utf8(bytes) {
        check_ids(text);
    }
});

/// The record can be looked at, and its fields alone make it again.
fn check(record: &RecordRef<'_>) {
    let stored = record.to_stored();
    let encoded = stored.encode();
    assert_eq!(encoded, record.bytes(), "other bytes than were decoded: {stored:?}");
    assert_eq!(stored.size(), record.size());
    let again = RecordRef::decode(&encoded).expect("what was encoded decodes");
    assert_eq!(again.to_stored(), stored);

    let body_is_good = record.verify(RecordCheck::Body).is_ok();
    if record.verify(RecordCheck::Record).is_ok() {
        assert!(record.record_crc().is_some(), "verified without a checksum");
    }
    black_box((body_is_good, record.keys(), record.unique_key()));
    assert_eq!(stored.tags_code(), record.tags_code());
    assert_eq!(stored.tags(), record.tags());
    let id = record.message_id();
    assert_eq!(OffsetMessageId::parse(&id.to_string()), Some(id), "{id}");
    // Those that are not UTF-8 are passed over.
    assert!(record.properties().iter().count() <= record.properties().len());
}

/// A record that is cut short asks for more, and never passes for another one.
fn check_prefixes(record: &[u8]) {
    let shorter = (record.len().saturating_sub(16)..record.len()).chain(0..16.min(record.len()));
    for len in shorter {
        match RecordRef::decode(&record[..len]) {
            Err(Corruption::Truncated { needed, available }) => {
                assert!(needed > available && available == len as u64);
                assert!(needed <= record.len() as u64);
            }
            other => panic!("{len} of {} bytes decode to {other:?}", record.len()),
        }
    }
}

/// What lies in a segment is a record only at its own offset, and only where a blank fits behind it.
fn check_frames(bytes: &[u8], record: Option<RecordRef<'_>>) {
    let len = bytes.len() as u64;
    let stated = record.map_or(0, |record| record.physical_offset().cast_unsigned());
    for offset in [stated, stated ^ 1] {
        for remaining in [0, 7, 8, len, len + 7, len + 8, 1 << 30, u64::MAX] {
            match frame(bytes, offset, remaining) {
                Ok(Frame::Record(found)) => {
                    let size = found.size() as u64;
                    assert_eq!(found.physical_offset().cast_unsigned(), offset);
                    assert!(size + format::BLANK_SIZE as u64 <= remaining && size <= len);
                }
                Ok(Frame::Blank { size }) => assert_eq!(u64::from(size), remaining),
                Err(Corruption::Truncated { needed, available }) => {
                    assert!(needed > available && needed <= remaining && available == len);
                }
                Err(_) => {}
            }
        }
    }
}

fn check_batch(bytes: &[u8]) {
    let mut entries = decode_batch(bytes);
    // Every entry takes some bytes, so an end must come.
    let decoded = entries.by_ref().take(bytes.len() + 1).take_while(Result::is_ok).count();
    assert!(decoded <= bytes.len(), "a batch without end");
}

fn check_properties(bytes: &[u8]) {
    let mut properties = Properties::from_bytes(bytes);
    assert_eq!(properties.as_bytes(), bytes);
    for (name, value) in properties.iter_raw() {
        black_box((name, value));
    }
    let before = properties.len();
    if properties.set("FUZZ", "value").is_ok() {
        assert_eq!(properties.get("FUZZ"), Some("value"));
        assert!(properties.len() <= before + 1);
        assert!(properties.remove("FUZZ"));
        assert_eq!(properties.get("FUZZ"), None);
    }
}

fn check_ids(text: &str) {
    if let Some(id) = OffsetMessageId::parse(text) {
        assert_eq!(OffsetMessageId::parse(&id.to_string()), Some(id));
    }
    if let Some(key) = UniqueKey::parse(text) {
        assert_eq!(UniqueKey::parse(&key.to_string()), Some(key));
    }
}
