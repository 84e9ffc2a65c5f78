//! What `crash_writer` and `crash_node` write and `crash_verify` expects, and `crash_delivery` builds upon:
//! messages that can be made again, byte for byte, by whoever knows the seed, and the lines that tell which of
//! them were acknowledged.

#![allow(dead_code, reason = "each program needs another part")]

use duralog::Message;
use duralog::message::RecordRef;
use std::fmt;

/// Name of the property that holds the size of the body.
const SIZE: &str = "SIZE";
/// Name of the property that holds a digest of all that tells one message from another. It covers
/// what a short body cannot.
const CHECK: &str = "CHECK";
/// The upper half of a `seq` counts the writer's runs, the lower half the messages of the run.
const ORDINAL_BITS: u32 = 32;

/// Which message it is. No two messages of a store have the same thread and seq.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Identity {
    pub thread: u64,
    pub seq: u64,
    pub size: usize,
}

impl Identity {
    /// The message that this thread puts in this run after `ordinal` others.
    pub fn new(thread: u64, run: u64, ordinal: u64, size: usize) -> Self {
        Self { thread, seq: first_seq(run) + ordinal, size }
    }

    /// What the record says it is; whether that is true, [`message`](Self::message) tells.
    pub fn of(record: &RecordRef<'_>) -> Option<Self> {
        Some(Self {
            thread: record.tags()?.parse().ok()?,
            seq: record.keys()?.parse().ok()?,
            size: record.properties().get(SIZE)?.parse().ok()?,
        })
    }

    /// The one message that has this identity.
    pub fn message(&self, seed: u64, topic: &str, queue_id: i32) -> Message {
        let place = topic.bytes().chain(queue_id.to_be_bytes()).map(u64::from);
        let check = digest(self.numbers(seed).into_iter().chain(place));
        Message::new(topic, self.body(seed))
            .queue(queue_id)
            .tag(self.thread.to_string())
            .key(self.seq.to_string())
            .property(SIZE, self.size.to_string())
            .property(CHECK, format!("{check:016x}"))
    }

    fn numbers(&self, seed: u64) -> [u64; 4] {
        [seed, self.thread, self.seq, self.size as u64]
    }

    /// What its body holds.
    pub fn body(&self, seed: u64) -> Vec<u8> {
        let mut state = digest(self.numbers(seed));
        let mut body = Vec::with_capacity(self.size + size_of::<u64>());
        while body.len() < self.size {
            state = state.wrapping_add(GOLDEN);
            body.extend_from_slice(&mix(state).to_le_bytes());
        }
        body.truncate(self.size);
        body
    }
}

/// The topic and the queue of the `n`th message.
pub fn place(n: u64, topics: u64, queues: u64) -> (String, i32) {
    (format!("crash-{}", n % topics), (n / topics % queues) as i32)
}

/// The seq with which each thread begins the writer's `run`.
pub fn first_seq(run: u64) -> u64 {
    run << ORDINAL_BITS
}

/// The run that a seq is of.
pub fn run_of(seq: u64) -> u64 {
    seq >> ORDINAL_BITS
}

/// One line of the writer's output: this message was acknowledged, and lies there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ack {
    pub topic: String,
    pub queue_id: i32,
    pub queue_offset: u64,
    pub physical_offset: u64,
    pub thread: u64,
    pub seq: u64,
}

impl Ack {
    /// Reads a line, without its end.
    pub fn parse(line: &str) -> Option<Self> {
        let mut words = line.strip_prefix("ACK ")?.split(' ');
        let ack = Self {
            topic: words.next()?.to_owned(),
            queue_id: words.next()?.parse().ok()?,
            queue_offset: words.next()?.parse().ok()?,
            physical_offset: words.next()?.parse().ok()?,
            thread: words.next()?.parse().ok()?,
            seq: words.next()?.parse().ok()?,
        };
        words.next().is_none().then_some(ack)
    }
}

impl fmt::Display for Ack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { topic, queue_id, queue_offset, physical_offset, thread, seq } = self;
        write!(f, "ACK {topic} {queue_id} {queue_offset} {physical_offset} {thread} {seq}")
    }
}

/// Choices that a seed repeats.
#[derive(Debug)]
pub struct Random(pub u64);

impl Random {
    /// A number below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(GOLDEN);
        mix(self.0) % n
    }

    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub fn choose<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}

/// The step and the output function of the generator SplitMix64.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

fn mix(mut z: u64) -> u64 {
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

pub fn digest(numbers: impl IntoIterator<Item = u64>) -> u64 {
    numbers.into_iter().fold(0, |digest, number| mix((digest ^ number).wrapping_add(GOLDEN)))
}
