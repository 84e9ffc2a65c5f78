//! The stores that are going to be damaged: small, but with several segments, two topics, and files of
//! every kind.

use crate::check::Sample;
use crate::image::{Image, ROOT};
use duralog::clock::ManualClock;
use duralog::disk::SimDisk;
use duralog::{Environment, Error, FlushMode, Message, Store, StoreConfig, StoreWorker};
use std::sync::Arc;
use std::time::Duration;

const TOPICS: [&str; 2] = ["orders", "payments"];
const MESSAGES: u64 = 40;
/// When the files are looked at that an edit can bring back.
const EARLIER: u64 = 15;

#[derive(Clone, Copy, PartialEq)]
enum Left {
    Closed,
    /// Everything synced, but the process is gone.
    Killed,
    /// Killed with nothing synced since the last segment was full.
    KilledUnsynced,
    /// As RocketMQ would have left it: without anything of ours.
    Foreign,
}

fn config() -> StoreConfig {
    let mut config = StoreConfig::new(ROOT).segment_size(4096).consume_queue_file_size(400);
    config.queue_checkpoint_bytes = 4096;
    config.max_open_queue_files = 4;
    (config.index_slots, config.index_items) = (10, 8);
    config
}

pub fn samples() -> Vec<Sample> {
    [Left::Closed, Left::Killed, Left::KilledUnsynced, Left::Foreign].map(sample).into()
}

fn sample(left: Left) -> Sample {
    let disk = SimDisk::new(1);
    let clock = Arc::new(ManualClock::new(1_700_000_000_000));
    let environment = Environment::on(disk.shared()).clock(clock.clone()).stepped();
    let mut config = config();
    config.log.record_crc = left != Left::Foreign;
    if left == Left::KilledUnsynced {
        let interval = Duration::from_secs(3600);
        let thorough_interval = interval;
        config.flush_mode = FlushMode::Async { interval, least_pages: 0, thorough_interval };
    }
    let store = Store::open_in(config, environment).expect("an empty disk");
    let mut earlier = Image::default();
    for n in 0..MESSAGES {
        clock.advance(Duration::from_millis(10));
        submit(&store, &message(n));
        for worker in [StoreWorker::Flush, StoreWorker::Upkeep, StoreWorker::Dispatch] {
            store.step(worker);
        }
        if n % 8 == 7 {
            store.step(StoreWorker::Checkpoint);
        }
        if n == EARLIER {
            earlier = Image::of(&disk);
        }
    }
    if matches!(left, Left::Closed | Left::Foreign) {
        store.close().expect("closed");
    }
    let mut image = Image::of(&disk);
    if left == Left::Foreign {
        image.0.retain(|name, _| !name.starts_with("duralog/"));
    }
    let sample = Sample::new(self::config(), image, earlier, left == Left::Foreign);
    assert_eq!(sample.messages.len() as u64, MESSAGES);
    sample
}

/// Some with equal sizes, some empty, some large: four or five to a segment.
fn message(n: u64) -> Message {
    let len = match n % 5 {
        0 => 300,
        1 => 0,
        2 => 300,
        3 => 40 + 17 * n as usize,
        _ => 120,
    };
    let mut state = n;
    let bytes = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 33) as u8
    });
    let body: Vec<u8> = bytes.take(len).collect();
    let message = Message::new(TOPICS[n as usize % 2], body).queue((n / 2 % 2) as i32);
    if n.is_multiple_of(3) { message.tag("t").key(format!("k{n}")) } else { message }
}

fn submit(store: &Store, message: &Message) {
    for _ in 0..3 {
        match store.try_submit(message) {
            Ok(_ticket) => return,
            Err(Error::SegmentNotReady { .. }) => store.step(StoreWorker::Upkeep),
            Err(other) => panic!("{other}"),
        };
    }
    panic!("no segment");
}
