//! Messages whose bodies look like records: whoever can put messages must not be able to put words into
//! other people's topics.

#[path = "support/sim.rs"]
mod sim;

use duralog::disk::SimDisk;
use duralog::message::{Draft, Stamp};
use duralog::{Message, RecoveryMode, Store};
use sim::*;

/// Bytes of a record before its body.
const HEADER: u64 = 88;

/// Puts a message whose body holds a whole record, after so many zeros, with the offset that it will
/// have; where the message and the record begin.
fn put_crafted(store: &Store, zeros: usize) -> (u64, u64) {
    let at = store.stats().watermarks.appended;
    let inner = at + HEADER + zeros as u64;
    let forged = Message::new("payments", "pay mallory 1000000");
    let mut body = vec![0; zeros];
    let stamp = Stamp { physical_offset: inner, queue_offset: 0, store_timestamp: 1 };
    Draft::new(&forged, &layout()).expect("valid").encode(&stamp, &mut body);
    let put = store.put(Message::new("chat", body)).expect("stored").ok().expect("acknowledged");
    assert_eq!(put.physical_offset, at);
    (at, inner)
}

/// Puts a message, then one with a record in its body, then two more, and kills the store before it
/// could save how far it is durable. The queue offset of the crafted one is damaged then.
fn damaged_around(zeros: usize) -> SimDisk {
    let disk = disk();
    let store = open(&disk, unsynced());
    put(&store, 0);
    let (at, _) = put_crafted(&store, zeros);
    put(&store, 1);
    put(&store, 2);
    let next = disk.kill();
    drop(store);
    next.flip_bit(segment(0), at + 20, 3).expect("the log is there");
    next
}

#[test]
fn no_message_is_read_from_the_middle_of_another() {
    let disk = disk();
    let store = open(&disk, config());
    let (outer, inner) = put_crafted(&store, 0);
    let found = store.get_at(inner);
    assert!(found.is_err(), "{found:?}");
    assert!(store.get_at(outer).expect("it is there").is_some());
}

#[test]
fn salvage_reads_no_message_from_the_body_of_a_damaged_one() {
    for zeros in [0, 40] {
        let disk = damaged_around(zeros);
        for read_only in [true, false] {
            let config = unsynced().recovery_mode(RecoveryMode::Salvage).read_only(read_only);
            let store = open(&disk, config);
            assert_eq!(ids(&store), [0, 1, 2], "{zeros} zeros, read-only: {read_only}");
            let forged = store.get("payments", 0, 0, 10).expect("readable");
            assert!(forged.messages.is_empty(), "{:?}", forged.messages);
        }
    }
}

#[test]
fn salvage_keeps_what_lies_behind_the_smallest_record() {
    let disk = disk();
    let store = open(&disk, unsynced());
    let put = || store.put(Message::new("t", "")).expect("stored").ok().expect("acknowledged");
    let puts = [put(), put(), put()];
    let next = disk.kill();
    drop(store);
    next.flip_bit(segment(0), puts[1].physical_offset + 20, 3).expect("the log is there");
    let store = open(&next, unsynced().recovery_mode(RecoveryMode::Salvage));
    let found = store.get("t", 0, 0, 10).expect("readable");
    assert_eq!(found.messages.len(), 2, "{:?}", store.recovery());
}

#[test]
fn a_body_full_of_headers_does_not_keep_recovery_busy_for_ever() {
    const HEADERS: usize = 20_000;
    const SEGMENT: u64 = 4 << 20;
    let disk = disk();
    let mut config = unsynced().segment_size(SEGMENT);
    config.log.max_message_size = 4 << 20;
    let store = open(&disk, config.clone());
    let mut body = vec![0u8; HEADERS * 64];
    for n in 0..HEADERS {
        let (at, physical) = (n * 64, HEADER + n as u64 * 64);
        // A record that reaches to the end of the segment, by its own word.
        let size = (SEGMENT - physical - 8) as u32;
        body[at..at + 4].copy_from_slice(&size.to_be_bytes());
        body[at + 4..at + 8].copy_from_slice(&0xDAA3_20A7u32.to_be_bytes());
        body[at + 28..at + 36].copy_from_slice(&physical.to_be_bytes());
    }
    store.put(Message::new("t", body)).expect("stored").ok().expect("acknowledged");
    let next = disk.kill();
    drop(store);
    next.flip_bit(segment(0), 0, 0).expect("the log is there");
    let before = next.stats().read_bytes;
    drop(open(&next, config));
    let read = next.stats().read_bytes - before;
    assert!(read < 1 << 30, "{read} bytes were read for a segment of {SEGMENT}");
}
