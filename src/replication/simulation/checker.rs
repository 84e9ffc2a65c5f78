//! What the cluster has promised, and whether it keeps it: told by payloads of which no two are alike.
//!
//! The bytes below what is confirmed anywhere are written down once, and every node must have the same
//! ones for ever. Everything else is asked of that one log: a put that was `PutOk` is in it, at its
//! place, and so is whatever a reader saw; no message is in it twice, and none that was never put.

use crate::message::{self, Frame, RecordCheck};
use crate::replication::ReplicatedLog;
use crate::{Message, PutResult, StoredMessage};
use std::collections::HashSet;

pub(super) const TOPIC: &str = "orders";
pub(super) const QUEUES: usize = 2;
pub(super) const GROUP: &str = "billing";

/// What is known of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It may have been stored.
    Open,
    /// Its put was refused: it is nowhere.
    Refused,
}

#[derive(Debug)]
struct Put {
    queue: usize,
    len: usize,
    fate: Fate,
    /// Where in the log it is for ever.
    place: Option<u64>,
}

/// What is confirmed, and what was put.
#[derive(Debug)]
pub(super) struct Checker {
    segment_size: u64,
    puts: Vec<Put>,
    /// Everything that was ever confirmed.
    confirmed: Vec<u8>,
    /// Up to here its records are known.
    parsed: usize,
    /// Whose the offsets of the queues are.
    queues: [Vec<usize>; QUEUES],
    /// What the consumer group was given anywhere.
    handled: HashSet<usize>,
    /// What had expired when it came to it, somewhere.
    expired: [u64; QUEUES],
}

fn body(id: usize, len: usize) -> Vec<u8> {
    let id = id as u64;
    let filler = (8..len).map(|at| ((at as u64 * (id | 1)) >> 3) as u8);
    id.to_be_bytes().into_iter().chain(filler).collect()
}

impl Checker {
    pub(super) fn new(segment_size: u64) -> Self {
        let (queues, handled, expired) = Default::default();
        let (puts, confirmed, parsed) = (Vec::new(), Vec::new(), 0);
        Self { segment_size, puts, confirmed, parsed, queues, handled, expired }
    }

    /// A message that nobody has put yet, with its number.
    pub(super) fn message(&mut self, queue: usize, len: usize) -> (usize, Message) {
        let (id, len) = (self.puts.len(), len.max(8));
        self.puts.push(Put { queue, len, fate: Fate::Open, place: None });
        (id, Message::new(TOPIC, body(id, len)).queue(queue as i32))
    }

    /// The put said that nothing was stored.
    pub(super) fn refused(&mut self, id: usize) {
        self.puts[id].fate = Fate::Refused;
    }

    /// The put was `PutOk` under a policy by which that outlasts the primary.
    pub(super) fn put_ok(&self, ids: &[usize], result: &PutResult) {
        assert!(
            result.end_offset <= self.confirmed.len() as u64,
            "PutOk up to {}, but only {} is confirmed",
            result.end_offset,
            self.confirmed.len()
        );
        for (n, id) in ids.iter().enumerate() {
            let (put, offset) = (&self.puts[*id], result.queue_offset as usize + n);
            assert_eq!(self.queues[put.queue].get(offset), Some(id), "PutOk of another message");
            if n == 0 {
                assert_eq!(put.place, Some(result.physical_offset), "message {id} lies elsewhere");
            }
        }
    }

    /// Which message a reader was given; every byte of it is compared.
    pub(super) fn identify(&self, queue: usize, found: &[u8]) -> usize {
        let id = found.first_chunk().map(|id| u64::from_be_bytes(*id) as usize);
        let known = id.and_then(|id| Some((id, self.puts.get(id)?)));
        let (id, put) = known.unwrap_or_else(|| panic!("a message that was never put: {found:?}"));
        assert_eq!(found, body(id, put.len), "message {id} was altered");
        assert_eq!(put.queue, queue, "message {id} is in the wrong queue");
        assert_ne!(put.fate, Fate::Refused, "message {id} was refused, and is there");
        id
    }

    /// A reader was given what may never vanish.
    pub(super) fn read(&self, queue: usize, found: &StoredMessage) {
        let id = self.identify(queue, &found.body);
        let offset = found.queue_offset as usize;
        assert_eq!(
            self.queues[queue].get(offset),
            Some(&id),
            "a reader saw message {id} at offset {offset} of queue {queue}, where it may not stay"
        );
        assert_eq!(self.puts[id].place, Some(found.physical_offset as u64));
    }

    /// The consumer group was given a message.
    pub(super) fn handled(&mut self, queue: usize, found: &StoredMessage) {
        let id = self.identify(queue, &found.body);
        self.handled.insert(id);
    }

    /// The consumer group found nothing of a queue before this offset any more.
    pub(super) fn expired(&mut self, queue: usize, before: u64) {
        self.expired[queue] = self.expired[queue].max(before);
    }

    /// The consumer group is behind a message.
    pub(super) fn passed(&self, queue: usize, found: &StoredMessage) {
        let id = self.identify(queue, &found.body);
        let offset = found.queue_offset;
        assert!(
            self.handled.contains(&id) || (offset as u64) < self.expired[queue],
            "the group passes over message {id}, at {offset} of queue {queue}"
        );
    }

    /// Everything that is confirmed, in a queue, from the first offset on.
    pub(super) fn in_queue(&self, queue: usize) -> u64 {
        self.queues[queue].len() as u64
    }

    pub(super) fn end(&self) -> u64 {
        self.confirmed.len() as u64
    }

    /// Looks at what is newly confirmed on a node, which was looked at up to `seen`.
    pub(super) fn observe(&mut self, log: &dyn ReplicatedLog, seen: &mut u64) {
        let confirmed = log.confirmed();
        while *seen < confirmed {
            // A failing disk may not let it be read.
            let Ok(slice) = log.read(*seen, confirmed - *seen) else { return };
            let bytes = slice.bytes();
            if bytes.is_empty() {
                let kept_from = log.min_offset();
                if kept_from <= *seen {
                    return;
                }
                *seen = kept_from;
                continue;
            }
            self.agree(*seen, bytes);
            *seen += bytes.len() as u64;
        }
    }

    fn agree(&mut self, offset: u64, bytes: &[u8]) {
        let from = offset as usize;
        assert!(from <= self.confirmed.len(), "confirmed from {from} on, but not before");
        let known = (self.confirmed.len() - from).min(bytes.len());
        self.compare(offset, &bytes[..known]);
        self.confirmed.extend(&bytes[known..]);
        self.parse();
    }

    fn compare(&self, offset: u64, bytes: &[u8]) {
        let from = offset as usize;
        let known = &self.confirmed[from..from + bytes.len()];
        if known != bytes {
            let differs = known.iter().zip(bytes).position(|(a, b)| a != b);
            let at = from + differs.unwrap_or(0);
            panic!("two logs differ at {at}, below what is confirmed up to {}", self.end());
        }
    }

    /// The records of what was confirmed since.
    fn parse(&mut self) {
        while self.parsed < self.confirmed.len() {
            let (at, rest) = (self.parsed, &self.confirmed[self.parsed..]);
            let remaining = self.segment_size - at as u64 % self.segment_size;
            match message::verified_frame(rest, at as u64, remaining, RecordCheck::Record) {
                Ok(Frame::Record(record)) => {
                    let queue = record.queue_id() as usize;
                    let (offset, size) = (record.queue_offset() as usize, record.size());
                    let id = self.identify(queue, record.body());
                    assert_eq!(self.queues[queue].len(), offset, "the next offset of a queue");
                    let before = self.puts[id].place.replace(at as u64);
                    assert_eq!(before, None, "message {id} is there twice, also at {at}");
                    self.queues[queue].push(id);
                    self.parsed += size;
                }
                Ok(Frame::Blank { size }) if rest.len() >= size as usize => {
                    self.parsed += size as usize;
                }
                Ok(Frame::Blank { .. }) => break,
                Err(what) => panic!("what is confirmed at {at} is no record: {what:?}"),
            }
        }
    }

    /// Checks that a log holds everything that was ever confirmed, as far back as it is kept.
    pub(super) fn holds_all(&self, log: &dyn ReplicatedLog) {
        let mut at = log.min_offset();
        while at < self.end() {
            let Ok(slice) = log.read(at, self.end() - at) else { return };
            let bytes = slice.bytes();
            assert!(!bytes.is_empty(), "confirmed up to {}, and lost from {at} on", self.end());
            self.compare(at, bytes);
            at += bytes.len() as u64;
        }
    }
}
