//! A damaged store: whatever is done to its files, opening and reading it ends, without a panic, and
//! gives out no message that was never put and none in other words.
//!
//! The input is one byte that chooses a store and eight bytes for each edit of its files, see
//! [`damage`]. Then, in each recovery mode and read-only:
//!
//! - every message read is one that was put, byte for byte and in its place; where the damage took
//!   away the knowledge that records carry a checksum, its body is;
//! - a message that lies in the log before the first damaged byte is read, or reading it says why not;
//! - a read-only store changes nothing;
//! - a store that opened takes another message, closes, and opens again with all that was read before.

#![no_main]

mod damage;
mod image;
mod stores;

use damage::Damage;
use duralog::{
    Environment, Error, Message, RecoveryMode, Store, StoreConfig, StoreWorker, TagFilter,
};
use image::Image;
use libfuzzer_sys::fuzz_target;
use std::collections::BTreeMap;
use std::sync::LazyLock;
use stores::{Known, Place, Sample};

static SAMPLES: LazyLock<Vec<Sample>> = LazyLock::new(stores::samples);

/// Offsets of one queue that are looked at; damage can make a queue seem to have more.
const OFFSETS_MAX: u64 = 300;

fuzz_target!(|input: &[u8]| {
    let Some((&choice, edits)) = input.split_first() else { return };
    let sample = &SAMPLES[usize::from(choice) % SAMPLES.len()];
    let damage = damage::inflict(sample, edits);
    for mode in [RecoveryMode::TolerateTail, RecoveryMode::Strict, RecoveryMode::Salvage] {
        let check = Check { sample, damage: &damage, config: stores::config().recovery_mode(mode) };
        check.read_write();
        check.read_only();
    }
});

struct Check<'a> {
    sample: &'a Sample,
    damage: &'a Damage,
    config: StoreConfig,
}

/// What a reader got for each place it asked for: a message, or the reason why not.
type Answers = BTreeMap<Place, Result<Vec<u8>, String>>;

impl Check<'_> {
    fn read_only(&self) {
        let disk = self.damage.image.to_disk();
        let config = self.config.clone().read_only(true);
        if let Ok(store) = Store::open_in(config, Environment::on(disk.shared()).stepped()) {
            let answers = self.read(&store);
            self.expect_undamaged(&store, &answers);
            let _ = store.verify();
            store.close().expect("nothing can fail when nothing is written");
        }
        assert_eq!(Image::of(&disk), self.damage.image, "a read-only store changed something");
    }

    fn read_write(&self) {
        let disk = self.damage.image.to_disk();
        let environment = Environment::on(disk.shared()).stepped();
        let Ok(store) = Store::open_in(self.config.clone(), environment.clone()) else { return };
        let before = self.read(&store);
        self.expect_undamaged(&store, &before);
        let put = put(&store);
        let closed = store.close();
        drop(store);

        let again = match Store::open_in(self.config.clone(), environment) {
            Ok(store) => store,
            // A reader met a wrong queue entry, so the queues are built anew from a damaged log.
            Err(Error::Corrupt { .. }) if self.damage.log_intact_to < u64::MAX => return,
            Err(error) => panic!("opened and closed ({closed:?}), but not again: {error}"),
        };
        let after = self.read(&again);
        // Two records may claim one place where only their bodies are protected.
        let stable = !self.damage.checksums_forgotten || self.damage.log_intact_to == u64::MAX;
        for (place, answer) in before.iter().filter(|_| stable) {
            if let Ok(bytes) = answer
                && after.get(place) != Some(&Ok(bytes.clone()))
            {
                panic!(
                    "{place:?} was read, but after {closed:?} it is {:?}; {:?}",
                    after.get(place),
                    again.recovery()
                );
            }
        }
        if let Some((offset, bytes)) = put {
            let found = again.get(stores::NEW_TOPIC, 0, offset, 1).expect("readable");
            assert!(
                found.messages.first().is_some_and(|message| message.encode() == bytes),
                "acknowledged after recovery, then lost: {:?}",
                again.recovery()
            );
        }
    }

    /// Reads every queue, and checks that each message is one that was put there.
    fn read(&self, store: &Store) -> Answers {
        let mut answers = Answers::new();
        for (topic, queues) in store.topics() {
            for queue in queues {
                let min = store.min_offset(&topic, queue).unwrap_or(0);
                let max = store.max_offset(&topic, queue).unwrap_or(0);
                for offset in (min..max).take(OFFSETS_MAX as usize) {
                    let place = (topic.clone(), queue, offset);
                    let answer = store.get_view(&topic, queue, offset, 1, &TagFilter::any());
                    let answer = match answer {
                        Err(error) => Err(error.to_string()),
                        Ok(fetched) if fetched.skipped_damaged > 0 => Err("skipped".to_owned()),
                        Ok(fetched) => match fetched.messages.first() {
                            // A blank in the queue leads to the next message.
                            Some(view) if view.queue_offset() != offset => continue,
                            Some(view) => {
                                self.expect_genuine(&place, view.bytes(), view.body());
                                Ok(view.bytes().to_vec())
                            }
                            None => continue,
                        },
                    };
                    answers.insert(place, answer);
                }
            }
        }
        answers
    }

    fn expect_genuine(&self, place: &Place, bytes: &[u8], body: &[u8]) {
        if place.0 == stores::NEW_TOPIC {
            return;
        }
        let genuine = |known: &Known| known.bytes == bytes;
        if self.sample.messages.get(place).is_some_and(genuine) {
            return;
        }
        // Without their own checksum, records are judged by that of the body.
        let same_body = |known: &Known| known.body == body;
        if self.damage.checksums_forgotten && self.sample.messages.values().any(same_body) {
            return;
        }
        panic!("invented or altered: {place:?} {}", String::from_utf8_lossy(bytes));
    }

    /// What lies before the damage is there, or said to be not.
    fn expect_undamaged(&self, store: &Store, answers: &Answers) {
        if self.damage.forged {
            return;
        }
        for (place, known) in &self.sample.messages {
            let end = known.physical_offset + known.bytes.len() as u64;
            if end <= self.damage.log_intact_to && !answers.contains_key(place) {
                panic!(
                    "{place:?} at {}..{end} is lost without a word, {:?} are intact; {:?}; {:?}",
                    known.physical_offset,
                    self.damage.log_intact_to,
                    store.recovery(),
                    store.verify()
                );
            }
        }
    }
}

/// Puts one message more; where it is and what it looks like, if it is acknowledged.
fn put(store: &Store) -> Option<(u64, Vec<u8>)> {
    let message = Message::new(stores::NEW_TOPIC, "after recovery");
    let ticket = match store.try_submit(&message) {
        Err(Error::SegmentNotReady { .. }) => {
            store.step(StoreWorker::Upkeep);
            store.try_submit(&message).ok()?
        }
        other => other.ok()?,
    };
    store.step(StoreWorker::Flush);
    store.step(StoreWorker::Dispatch);
    ticket.try_get().ok()??.ok().ok()?;
    let found = store.get(stores::NEW_TOPIC, 0, ticket.queue_offset(), 1).expect("just put");
    Some((ticket.queue_offset(), found.messages.first().expect("acknowledged").encode()))
}
