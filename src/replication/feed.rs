//! Records on their way to another node.

use super::history::{epoch_at, next_epoch};
use super::session::Outgoing;
use super::wire::{DATA_MAX, Frame};
use super::{EpochStart, Refusal, ReplicatedLog};
use crate::error::{Error, Result};
use std::ops::Range;

/// What lies at the beginning of `range`, as much as one frame takes: never of two epochs. An empty range
/// makes a heartbeat.
pub(crate) fn data_at(
    log: &dyn ReplicatedLog,
    epochs: &[EpochStart],
    range: Range<u64>,
    confirmed: u64,
) -> Result<Outgoing> {
    let offset = range.start;
    let epoch = epoch_at(epochs, offset);
    if range.is_empty() {
        let (bytes, are_records): (&[u8], _) = (&[], false);
        let heartbeat = Frame::Data { epoch, offset, confirmed, bytes, are_records };
        return Ok(Outgoing::frame(&heartbeat));
    }
    let boundary = next_epoch(epochs, offset).unwrap_or(u64::MAX).min(range.end);
    let slice = log.read(offset, DATA_MAX.min(boundary - offset))?;
    if slice.bytes().is_empty() {
        // Deleted meanwhile, because it has expired.
        let end = log.min_offset();
        return Err(Error::Refused(Refusal::OutOfPlace { end, at: offset }));
    }
    let are_records = epoch.record_crc && slice.are_records();
    let head = Frame::Data { epoch, offset, confirmed, bytes: slice.bytes(), are_records }.head();
    Ok(Outgoing { head, body: Some(slice) })
}

#[cfg(all(test, feature = "sim"))]
mod tests {
    use super::*;
    use crate::config::{FlushMode, StoreConfig};
    use crate::disk::SimDisk;
    use crate::environment::{Environment, Threads};
    use crate::message::Message;
    use crate::replication::options::{Ack, NodeOptions, PrimaryOptions};
    use crate::replication::primary::PrimaryReplicator;
    use crate::replication::{Epoch, NodeId};
    use crate::store::{Store, StoreWorker};
    use crate::worker::Next;

    #[test]
    fn only_what_verifies_itself_is_sent_without_a_checksum_of_the_frame() {
        for record_crc in [false, true] {
            let mut config = StoreConfig::new("/store").segment_size(4096);
            config.flush_mode = FlushMode::async_default();
            config.log.record_crc = record_crc;
            let environment = Environment::on(SimDisk::new(1).shared()).stepped();
            let options = PrimaryOptions::new(NodeOptions::new(NodeId(1))).ack(Ack::Async);
            let clock = environment.clock.clone();
            let primary = PrimaryReplicator::new(options, clock, Threads::Stepped);
            let store = Store::open_replicated(config, environment, primary.clone()).unwrap();
            let epoch = EpochStart { epoch: Epoch(1), start: 0, node: NodeId(1), record_crc };
            let kind = |at: u64, to: u64| {
                let log = &*primary.hub().unwrap().log;
                data_at(log, &[epoch], at..to, 0).unwrap().head[0]
            };
            let (data, records) = (9, if record_crc { 14 } else { 9 });
            let put = |count| {
                for _ in 0..count {
                    store.put(Message::new("t", vec![7; 1000])).unwrap().ok().unwrap();
                    while store.step(StoreWorker::Upkeep) == Next::Now {}
                }
                store.flush().unwrap();
            };
            put(1);
            assert_eq!(kind(0, 500), records);
            put(4);
            let end = store.stats().watermarks.written;
            assert!(end > 4096);
            // A blank fills the first segment, and nothing says what lies behind its head.
            assert_eq!([kind(0, end), kind(0, 500), kind(4096, end)], [data, data, records]);
            store.close().unwrap();
        }
    }
}
