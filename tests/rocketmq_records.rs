//! Commit logs that RocketMQ itself wrote, against what RocketMQ itself says is in them.

#[path = "support/fixtures.rs"]
mod fixtures;
#[path = "support/sha256.rs"]
mod sha256;

use duralog::message::{
    Draft, Frame, Host, Message, RecordCheck, RecordLayout, RecordRef, RecordVersion, Stamp, frame,
};
use fixtures::{cases, manifest};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::Path;

/// The segments of a case, oldest first, each with the physical offset at which it begins.
fn segments(case: &Path) -> Vec<(u64, Vec<u8>)> {
    let mut segments: Vec<_> = fs::read_dir(case.join("store/commitlog"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| {
            let base = path.file_name().unwrap().to_str().unwrap().parse().unwrap();
            (base, fs::read(path).unwrap())
        })
        .collect();
    segments.sort();
    segments
}

/// Calls `found` with each frame of a segment and its offset, up to the first that does not decode.
fn scan<'a>(base: u64, segment: &'a [u8], mut found: impl FnMut(u64, Frame<'a>)) {
    let mut at = 0;
    while at < segment.len() {
        let offset = base + at as u64;
        let rest = &segment[at..];
        let Ok(frame) = frame(rest, offset, rest.len() as u64) else { return };
        found(offset, frame);
        at += match frame {
            Frame::Record(record) => record.size(),
            Frame::Blank { size } => size as usize,
        };
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A host as Java prints it: no group of an IPv6 address is left out.
fn as_java_prints(host: Host) -> String {
    match host.ip {
        IpAddr::V4(ip) => format!("{ip}:{}", host.port),
        IpAddr::V6(ip) => {
            let groups = ip.segments().map(|group| format!("{group:x}"));
            format!("[{}]:{}", groups.join(":"), host.port)
        }
    }
}

/// The value that the manifest should have under `key`.
fn field(record: &RecordRef<'_>, key: &str) -> Value {
    match key {
        "physicalOffset" => record.physical_offset().into(),
        "size" => record.size().into(),
        "topic" => record.topic().into(),
        "queueId" => record.queue_id().into(),
        "queueOffset" => record.queue_offset().into(),
        "flag" => record.flag().into(),
        "sysFlag" => record.sys_flag().0.into(),
        "bornTimestamp" => record.born_timestamp().into(),
        "storeTimestamp" => record.store_timestamp().into(),
        "bornHost" => as_java_prints(record.born_host()).into(),
        "storeHost" => as_java_prints(record.store_host()).into(),
        "reconsumeTimes" => record.reconsume_times().into(),
        "preparedTransactionOffset" => record.prepared_transaction_offset().into(),
        "bodyCRC" => record.body_crc().into(),
        "bodyLength" => record.body().len().into(),
        "bodyHex" => hex(record.body()).into(),
        "bodySha256" => sha256::hex_digest(record.body()).into(),
        "tags" => record.tags().into(),
        "keys" => record.keys().into(),
        "properties" => {
            let map: BTreeMap<_, _> = record.properties().iter().collect();
            serde_json::to_value(map).unwrap()
        }
        "propertiesHex" => hex(record.properties().as_bytes()).into(),
        "tagsCode" => record.tags_code().into(),
        other => panic!("the manifest has a field {other} that this test does not know"),
    }
}

#[test]
fn every_record_decodes_to_what_the_manifest_says() {
    let mut compared = 0;
    for case in cases() {
        let manifest = manifest(&case);
        let Some(expected) = manifest["messages"].as_array() else { continue };
        let mut expected_messages = expected.iter();
        let mut blanks = Vec::new();
        for (base, segment) in segments(&case) {
            scan(base, &segment, |offset, frame| match frame {
                Frame::Record(record) => {
                    let expected = expected_messages.next().unwrap().as_object().unwrap();
                    for (key, value) in expected {
                        // A message without a queue entry has no tag code that could be compared.
                        if key != "tagsCode" || !value.is_null() {
                            let found = field(&record, key);
                            assert_eq!(&found, value, "{key} at {offset} of {}", case.display());
                        }
                    }
                    compared += 1;
                }
                Frame::Blank { size } => {
                    blanks.push(serde_json::json!({ "physicalOffset": offset, "size": size }));
                }
            });
        }
        assert_eq!(expected_messages.next(), None, "{}", case.display());
        assert_eq!(manifest["blanks"], Value::Array(blanks), "{}", case.display());
    }
    assert_eq!(compared, 2918);
}

#[test]
fn every_record_verifies_and_encodes_to_the_same_bytes() {
    let mut records = 0;
    for case in cases() {
        let rotten = case.ends_with("killed-crc") || case.ends_with("killed-middle");
        let mut damaged = 0;
        for (base, segment) in segments(&case) {
            scan(base, &segment, |_, frame| {
                if let Frame::Record(record) = frame {
                    assert_eq!(record.to_stored().encode(), record.bytes());
                    assert_eq!(record.version(), RecordVersion::V1);
                    assert_eq!(record.record_crc(), None);
                    damaged += usize::from(record.verify(RecordCheck::Body).is_err());
                    records += 1;
                }
            });
        }
        assert_eq!(damaged, usize::from(rotten), "{}", case.display());
    }
    assert!(records > 2918);
}

#[test]
fn a_message_put_with_the_same_fields_becomes_the_same_bytes() {
    let layout = RecordLayout {
        store_host: Host::new([0, 0, 0, 0], 0),
        born_host: Host::new([0, 0, 0, 0], 0),
        record_crc: false,
        long_topics: true,
        max_message_size: 4 << 20,
        max_record_size: (1 << 30) - 8,
    };
    for case in cases() {
        for (base, segment) in segments(&case) {
            scan(base, &segment, |offset, frame| {
                let Frame::Record(record) = frame else { return };
                // A put computes the checksum and the missing time anew.
                if record.verify(RecordCheck::Body).is_err() || record.born_timestamp() == 0 {
                    return;
                }
                let message = Message::new(record.topic(), record.body())
                    .properties(record.properties().to_owned())
                    .queue(record.queue_id())
                    .flag(record.flag())
                    .sys_flag(record.sys_flag())
                    .born_at(record.born_timestamp())
                    .born_host(record.born_host())
                    .store_host(record.store_host())
                    .reconsume_times(record.reconsume_times())
                    .prepared_transaction_offset(record.prepared_transaction_offset());
                let stamp = Stamp {
                    physical_offset: offset,
                    queue_offset: record.queue_offset() as u64,
                    store_timestamp: record.store_timestamp(),
                };
                let mut bytes = Vec::new();
                Draft::new(&message, &layout).unwrap().encode(&stamp, &mut bytes);
                assert_eq!(bytes, record.bytes(), "{offset} of {}", case.display());
            });
        }
    }
}
