//! A record that nobody reads.

use super::{Draft, Host, Message, RecordLayout, RecordRef, Stamp, SysFlag, Transaction};
use std::net::{IpAddr, Ipv4Addr};

/// The topic of fillers: so short that one takes the place of any record. No queue entry ever points
/// at one.
const TOPIC: &str = "-";

/// A record of exactly `size` bytes that readers of the log, RocketMQ among them, step over: a
/// rolled-back message gets no queue entry. `None` if `size` is too small for a record.
pub(crate) fn filler(physical_offset: u64, size: usize, record_crc: bool) -> Option<Vec<u8>> {
    let host = Host { ip: IpAddr::V4(Ipv4Addr::LOCALHOST), port: 0 };
    let layout = RecordLayout {
        store_host: host,
        born_host: host,
        record_crc,
        long_topics: false,
        max_message_size: usize::MAX,
        max_record_size: usize::MAX,
    };
    let with_body = |len| Message::new(TOPIC, vec![0; len]).sys_flag(SysFlag::ROLLBACK);
    let overhead = Draft::new(&with_body(0), &layout).ok()?.size();
    let message = with_body(size.checked_sub(overhead)?);
    let draft = Draft::new(&message, &layout).ok()?;
    let mut record = Vec::with_capacity(size);
    draft.encode(&Stamp { physical_offset, queue_offset: 0, store_timestamp: 0 }, &mut record);
    Some(record)
}

/// Whether a record is a filler. No message was ever stored at time 0.
pub(crate) fn is_filler(record: &RecordRef<'_>) -> bool {
    record.store_timestamp() == 0
        && record.sys_flag().transaction() == Transaction::Rollback
        && record.topic() == TOPIC
}

#[cfg(test)]
mod tests {
    use super::super::{Frame, RecordCheck, frame};
    use super::*;

    #[test]
    fn fills_any_size_that_a_record_can_have() {
        for (record_crc, size_min) in [(false, 92), (true, 112)] {
            assert_eq!(filler(7, size_min - 1, record_crc), None);
            for size in [size_min, size_min + 1, 4096, 100_000] {
                let bytes = filler(7, size, record_crc).unwrap();
                assert_eq!(bytes.len(), size);
                let Ok(Frame::Record(record)) = frame(&bytes, 7, u64::MAX) else {
                    panic!("no record of {size} bytes");
                };
                assert!(!record.sys_flag().takes_queue_offset() && is_filler(&record));
                record.verify(RecordCheck::Body).unwrap();
                assert_eq!(record.verify(RecordCheck::Record).is_ok(), record_crc);
            }
        }
    }
}
