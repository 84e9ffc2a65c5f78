//! Any message that a caller can make: refused with a typed error, or a record that decodes to it.

#![no_main]

use duralog::Message;
use duralog::message::{
    Draft, Frame, Host, Properties, RecordCheck, RecordLayout, Stamp, SysFlag, frame,
};
use libfuzzer_sys::arbitrary::{Arbitrary, Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use std::net::{IpAddr, Ipv4Addr};

#[derive(Debug)]
struct Input<'a> {
    topic: &'a str,
    body: &'a [u8],
    raw_properties: Option<&'a [u8]>,
    properties: Vec<(&'a str, &'a str)>,
    queue_id: i32,
    sys_flag: i32,
    born: (IpAddr, i32),
    stored: (IpAddr, i32),
    stamp: Stamp,
    record_crc: bool,
}

impl<'a> Arbitrary<'a> for Input<'a> {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        Ok(Self {
            stamp: Stamp {
                physical_offset: u.arbitrary()?,
                queue_offset: u.arbitrary()?,
                store_timestamp: u.arbitrary()?,
            },
            record_crc: u.arbitrary()?,
            queue_id: u.arbitrary()?,
            sys_flag: u.arbitrary()?,
            born: u.arbitrary()?,
            stored: u.arbitrary()?,
            topic: u.arbitrary()?,
            raw_properties: u.arbitrary()?,
            properties: u.arbitrary()?,
            body: u.arbitrary()?,
        })
    }
}

fuzz_target!(|input: Input<'_>| {
    let mut message = Message::new(input.topic, input.body)
        .queue(input.queue_id)
        .sys_flag(SysFlag(input.sys_flag))
        .born_host(Host::new(input.born.0, input.born.1))
        .store_host(Host::new(input.stored.0, input.stored.1));
    if let Some(raw) = input.raw_properties {
        message = message.properties(Properties::from_bytes(raw));
    }
    for (name, value) in &input.properties {
        message = message.property(name, value);
    }
    let layout = RecordLayout {
        store_host: Host::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 10911),
        born_host: Host::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0),
        record_crc: input.record_crc,
        long_topics: true,
        max_message_size: 4 << 20,
        max_record_size: 8 << 20,
    };
    let Ok(draft) = Draft::new(&message, &layout) else { return };
    let mut record = Vec::new();
    draft.encode(&input.stamp, &mut record);
    assert_eq!(record.len(), draft.size());

    let room = record.len() as u64 + 8;
    let found = match frame(&record, input.stamp.physical_offset, room) {
        Ok(Frame::Record(found)) => found,
        other => panic!("{message:?} became {other:?}"),
    };
    found.verify(RecordCheck::Body).expect("the body's checksum");
    if input.record_crc {
        found.verify(RecordCheck::Record).expect("the record's checksum");
    }
    assert_eq!(found.body(), input.body);
    assert_eq!(found.topic(), input.topic);
    assert_eq!(found.queue_id(), input.queue_id);
    assert_eq!(found.queue_offset().cast_unsigned(), input.stamp.queue_offset);
    assert_eq!(found.born_host(), Host::new(input.born.0, input.born.1));
    assert_eq!(found.store_host(), Host::new(input.stored.0, input.stored.1));
    assert_eq!(found.tags(), message.tags());
    assert!(found.properties().iter_raw().eq(message.properties_ref().iter_raw()));
    assert_eq!(found.to_stored().encode(), record);
});
