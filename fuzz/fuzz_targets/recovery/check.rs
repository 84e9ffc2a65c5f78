//! What must hold of a store, whatever was done to its files.

use crate::image::{Image, ROOT};
use duralog::log::CommitLog;
use duralog::{
    Environment, Error, LogConfig, Message, RecoveryMode, Store, StoreConfig, StoreWorker,
    TagFilter,
};
use std::collections::{BTreeMap, BTreeSet};

/// Where messages go that are put after the damage.
pub const NEW_TOPIC: &str = "new";
/// Offsets of one queue that are looked at; damage can make a queue seem to have more.
const OFFSETS_MAX: u64 = 300;
/// Keys that are asked for.
const KEYS_MAX: usize = 24;

/// Topic, queue id and queue offset.
pub type Place = (String, i32, u64);

/// A message that was put.
pub struct Known {
    pub physical_offset: u64,
    pub bytes: Vec<u8>,
    pub keys: Vec<String>,
}

/// A store, as it was left.
pub struct Sample {
    pub config: StoreConfig,
    pub image: Image,
    /// The same store some time before.
    pub earlier: Image,
    pub messages: BTreeMap<Place, Known>,
    /// Some keys with their topics, and the end and offset of each message that has one.
    pub keys: BTreeMap<(String, String), Vec<(u64, u64)>>,
    /// The bodies of every record, also of one that is in no queue.
    pub bodies: BTreeSet<Vec<u8>>,
    /// Nothing says that its records carry a checksum of their own.
    pub without_checksums: bool,
    /// Where the log was damaged before any edit.
    pub damaged_from: u64,
}

impl Sample {
    /// The messages that opening the image, as often as need be, brings to light.
    pub fn new(config: StoreConfig, image: Image, earlier: Image, without_checksums: bool) -> Self {
        let disk = image.to_disk();
        let environment = Environment::on(disk.shared()).stepped();
        let mut log = LogConfig::new(ROOT);
        log.read_only = true;
        let opened = CommitLog::open_in(log, environment.clone()).expect("a log");
        let cut = opened.recovery().cut.as_ref().filter(|cut| cut.next_valid.is_some());
        let damaged_from = cut.map_or(u64::MAX, |cut| cut.offset);
        drop(opened);
        let salvage = config.clone().recovery_mode(RecoveryMode::Salvage);
        let store = Store::open_in(salvage, environment.clone()).expect("a store");
        let messages = known(&store);
        store.close().expect("closed");
        let mut log = LogConfig::new(ROOT);
        log.read_only = true;
        let opened = CommitLog::open_in(log, environment).expect("a log");
        let bodies = opened.records(0).map(|view| view.expect("whole").body().to_vec()).collect();
        let keys = keys(&messages);
        Self { config, image, earlier, messages, keys, bodies, without_checksums, damaged_from }
    }
}

fn keys(messages: &BTreeMap<Place, Known>) -> BTreeMap<(String, String), Vec<(u64, u64)>> {
    let mut keys = BTreeMap::<_, Vec<_>>::new();
    for (place, known) in messages {
        let end = known.physical_offset + known.bytes.len() as u64;
        for key in &known.keys {
            let having = keys.entry((place.0.clone(), key.clone())).or_default();
            having.push((end, known.physical_offset));
        }
    }
    let step = keys.len().div_ceil(KEYS_MAX).max(1);
    keys.into_iter().step_by(step).collect()
}

fn known(store: &Store) -> BTreeMap<Place, Known> {
    let mut messages = BTreeMap::new();
    for (topic, queues) in store.topics() {
        for queue in queues {
            let found = store.get_view(&topic, queue, 0, 1000, &TagFilter::any()).expect("read");
            for view in found.messages {
                let record = view.record();
                let words = record.keys().unwrap_or_default().split(' ');
                let words = words.filter(|word| !word.is_empty()).chain(record.unique_key());
                let known = Known {
                    physical_offset: view.physical_offset(),
                    bytes: view.bytes().to_vec(),
                    keys: words.map(str::to_owned).collect(),
                };
                messages.insert((topic.clone(), queue, view.queue_offset()), known);
            }
        }
    }
    messages
}

/// A damaged store, and what can be expected of it.
pub struct Damage {
    pub image: Image,
    /// The log is as it was before this physical offset.
    pub log_intact_to: u64,
    /// Nothing says any more that records carry a checksum of their own.
    pub checksums_forgotten: bool,
    /// A file of duralog's own says something else than it did, with a matching checksum.
    pub forged: bool,
    /// The index, and whatever says up to where it can be trusted, is as it was.
    pub index_untouched: bool,
}

impl Damage {
    /// What edits made of a sample.
    pub fn new(sample: &Sample, image: Image, forged: bool) -> Self {
        let differs = |name: &str| image.0.get(name) != sample.image.0.get(name);
        let checksums_forgotten =
            sample.without_checksums || forged || differs("duralog/checkpoint") || differs("abort");
        let log_intact_to = intact(&sample.image, &image).min(sample.damaged_from);
        let elsewhere = |image: &Image| {
            let files = image.0.clone().into_iter();
            let free =
                |name: &str| name.starts_with("commitlog/") || name.starts_with("consumequeue/");
            files.filter(|(name, _)| !free(name)).collect::<BTreeMap<_, _>>()
        };
        let index_untouched = elsewhere(&sample.image) == elsewhere(&image);
        Self { image, log_intact_to, checksums_forgotten, forged, index_untouched }
    }
}

/// The first physical offset at which two logs differ.
fn intact(before: &Image, after: &Image) -> u64 {
    let segments = |image: &Image| {
        let named = image.0.iter().filter_map(|(name, bytes)| {
            let name = name.strip_prefix("commitlog/").filter(|name| name.len() == 20)?;
            Some((name.parse::<u64>().ok()?, bytes.clone()))
        });
        named.collect::<BTreeMap<_, _>>()
    };
    let (before, after) = (segments(before), segments(after));
    let mut first = u64::MAX;
    for base in before.keys().chain(after.keys()) {
        let (old, new) = (before.get(base), after.get(base));
        if old == new {
            continue;
        }
        let same = |(old, new): (&Vec<u8>, &Vec<u8>)| {
            let same = std::iter::zip(old, new).take_while(|(old, new)| old == new).count() as u64;
            // The length of the only segment is taken for that of all, and in a segment of that length
            // a record that leaves no room for a blank cannot be.
            if old.len() == new.len() { same } else { same.saturating_sub(8) }
        };
        first = first.min(base.saturating_add(old.zip(new).map_or(0, same)));
    }
    first
}

/// Opens the damaged store in one recovery mode, to read and write and to read alone.
pub fn check(sample: &Sample, damage: &Damage, mode: RecoveryMode) {
    let check = Check { sample, damage, config: sample.config.clone().recovery_mode(mode) };
    check.read_write();
    check.read_only();
}

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
            // After a crash it sees what is known to be durable.
            let seen = store.stats().watermarks.durable;
            self.expect_undamaged(&store, &answers, seen);
            self.query(&store, seen);
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
        self.expect_undamaged(&store, &before, u64::MAX);
        self.query(&store, u64::MAX);
        let _ = store.verify();
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
        self.query(&again, u64::MAX);
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
            let found = again.get(NEW_TOPIC, 0, offset, 1).expect("readable");
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
        if place.0 == NEW_TOPIC {
            return;
        }
        let genuine = |known: &Known| known.bytes == bytes;
        if self.sample.messages.get(place).is_some_and(genuine) {
            return;
        }
        // Without their own checksum, records are judged by that of the body.
        if self.damage.checksums_forgotten && self.sample.bodies.contains(body) {
            return;
        }
        panic!("invented or altered: {place:?} {}", String::from_utf8_lossy(bytes));
    }

    /// Asks for keys, and for messages by where they lie: what is found has the key, and what is not
    /// lies behind the damage.
    fn query(&self, store: &Store, seen: u64) {
        let intact_to = self.damage.log_intact_to.min(seen);
        for ((topic, key), having) in &self.sample.keys {
            let Ok(found) = store.query(topic, key, 1000, i64::MIN..=i64::MAX) else { continue };
            let offsets: Vec<_> = found.iter().map(|view| view.physical_offset()).collect();
            assert!(offsets.is_sorted_by(|a, b| a < b), "{key} of {topic}: {offsets:?}");
            for view in &found {
                let record = view.record();
                let words = record.keys().unwrap_or_default();
                assert!(
                    view.topic() == topic
                        && (record.unique_key() == Some(key.as_str())
                            || words.split(' ').any(|w| w == key)),
                    "{view:?} does not have the key {key} of {topic}"
                );
                let place = (topic.clone(), record.queue_id(), view.queue_offset());
                self.expect_genuine(&place, view.bytes(), view.body());
            }
            for (end, at) in having.iter().filter(|_| self.damage.index_untouched) {
                let missed = *end <= intact_to && !offsets.contains(at);
                assert!(!missed, "{key} of {topic} does not find {at}, only {offsets:?}");
            }
        }
        let messages = &self.sample.messages;
        for known in messages.values().step_by(messages.len() / 16 + 1) {
            if let Ok(Some(view)) = store.get_at(known.physical_offset) {
                let record = view.record();
                let place = (view.topic().to_owned(), record.queue_id(), view.queue_offset());
                self.expect_genuine(&place, view.bytes(), view.body());
            }
        }
    }

    /// What lies before the damage is there, or said to be not.
    fn expect_undamaged(&self, store: &Store, answers: &Answers, seen: u64) {
        let intact_to = self.damage.log_intact_to.min(seen);
        if self.damage.forged {
            return;
        }
        for (place, known) in &self.sample.messages {
            let end = known.physical_offset + known.bytes.len() as u64;
            if end <= intact_to && !answers.contains_key(place) {
                panic!(
                    "{place:?} at {}..{end} is lost without a word, {intact_to} are intact; {:?}; {:?}",
                    known.physical_offset,
                    store.recovery(),
                    store.verify()
                );
            }
        }
    }
}

/// Puts one message more; where it is and what it looks like, if it is acknowledged.
fn put(store: &Store) -> Option<(u64, Vec<u8>)> {
    let message = Message::new(NEW_TOPIC, "after recovery");
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
    let found = store.get(NEW_TOPIC, 0, ticket.queue_offset(), 1).expect("just put");
    Some((ticket.queue_offset(), found.messages.first().expect("acknowledged").encode()))
}
