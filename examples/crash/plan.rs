//! What `crash_delivery` sends and how it is handled. All of it follows from the seed and the message's id, so
//! that the judge knows what must have become of a message of which nothing is left but its id.

use super::crash::{self, Identity, Random};
use duralog::Message;
use duralog::delivery::TransactionState;
use std::fmt;
use std::time::Duration;

/// Handled side by side, by the group [`WORKERS`].
pub const JOBS: &str = "jobs";
/// Handled in order, by the group [`KEEPERS`].
pub const STEPS: &str = "steps";
pub const WORKERS: &str = "workers";
pub const KEEPERS: &str = "keepers";
pub const GROUPS: [(&str, &str); 2] = [(WORKERS, JOBS), (KEEPERS, STEPS)];
pub const QUEUES: i32 = 4;
/// So many messages of a queue of jobs may be between the first that is not done with and the last given out.
pub const SPAN: usize = 32;
/// So many messages of a queue of steps are given out at a time.
pub const BATCH: usize = 4;
/// Messages that can be in hand when the process is killed, and whose settling may have just ended.
pub const LISTENERS: usize = 3;
pub const POLLED: usize = 8;
/// How often a message comes again before it is a dead letter.
pub const RETRIES: u32 = 6;
/// How long a job may be held; one that is slow is held longer.
pub const TIMEOUT: Duration = Duration::from_millis(300);
pub const SLOW: Duration = Duration::from_millis(400);
/// When a message is to be delivered, in milliseconds since 1970.
pub const DUE: &str = "DUE";
/// A transaction that nobody decides is parked after so many checks.
pub const CHECKS: u32 = 3;

/// Threads that send jobs, begin transactions and send steps.
const SENDERS: u64 = 4;
const TRADERS: u64 = 3;
const WALKERS: u64 = 2;
pub const PRODUCERS: u64 = SENDERS + TRADERS + WALKERS;
/// Sharding keys of each thread that sends steps.
const KEYS: u64 = 3;

/// A message's id: no two of a store are equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id {
    pub thread: u64,
    pub seq: u64,
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.thread, self.seq)
    }
}

impl Id {
    pub fn parse(text: &str) -> Option<Self> {
        let (thread, seq) = text.split_once('-')?;
        Some(Self { thread: thread.parse().ok()?, seq: seq.parse().ok()? })
    }
}

/// How a message is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Plain,
    /// By one of RocketMQ's levels, the first.
    Level,
    /// After a time.
    Delay(u64),
    /// At a time.
    At(u64),
    Trade(Trade),
}

/// What becomes of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trade {
    /// Nobody knows ever if this is `Unknown`.
    pub outcome: TransactionState,
    /// Whether its producer says so, rather than the checker.
    pub is_told: bool,
    /// How often the checker does not know.
    pub doubts: u32,
}

/// What becomes of a message when it is handled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Done,
    /// It is held for longer than it may be, the first time.
    Slow,
    /// The handler returns an error the first time.
    FailsOnce,
    PanicsOnce,
    /// It is to come again soon, so often.
    Again(u32),
    /// It is to come again soon, for ever.
    Hopeless,
    Rejected,
}

impl Fate {
    /// Whether it is a dead letter in the end, and never handled.
    pub fn is_death(self) -> bool {
        matches!(self, Self::Hopeless | Self::Rejected)
    }
}

/// What there is to know of a message.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    pub id: Id,
    pub way: Way,
    pub fate: Fate,
    size: usize,
    seed: u64,
    random: u64,
}

impl Plan {
    pub fn of(seed: u64, id: Id) -> Self {
        let digest = crash::digest([seed, id.thread, id.seq]);
        let mut random = Random(digest);
        let way = match id.thread {
            _ if is_step(id) => Way::Plain,
            thread if thread >= SENDERS => Way::Trade(trade(&mut random)),
            _ => match random.below(20) {
                0 => Way::Level,
                1..=3 => Way::Delay(1 + random.below(400)),
                4 => Way::At(1 + random.below(400)),
                _ => Way::Plain,
            },
        };
        let fate = match random.below(400) {
            0 => Fate::Slow,
            1 | 2 => Fate::FailsOnce,
            3 | 4 => Fate::PanicsOnce,
            5..=14 => Fate::Again(1 + random.below(3) as u32),
            15 | 16 => Fate::Hopeless,
            17..=22 => Fate::Rejected,
            _ => Fate::Done,
        };
        // One of those that fail would hold up a queue of steps for a second.
        let fate = if is_step(id) && fate == Fate::Slow { Fate::Done } else { fate };
        let size = random.choose(&[0, 10, 100, 100, 300, 300, 1000, 6000]);
        Self { id, way, fate, size, seed, random: random.0 }
    }

    pub fn topic(&self) -> &'static str {
        if is_step(self.id) { STEPS } else { JOBS }
    }

    pub fn group(&self) -> &'static str {
        if is_step(self.id) { KEEPERS } else { WORKERS }
    }

    /// What it is in order with.
    pub fn sharding_key(&self) -> Option<(u64, u64)> {
        is_step(self.id).then_some((self.id.thread, self.id.seq % KEYS))
    }

    pub fn body(&self) -> Vec<u8> {
        let Id { thread, seq } = self.id;
        Identity { thread, seq, size: self.size }.body(self.seed)
    }

    /// The message, when it is `now` in milliseconds since 1970.
    pub fn message(&self, now: u64) -> Message {
        let message = Message::new(self.topic(), self.body()).key(self.id.to_string());
        if let Some((thread, key)) = self.sharding_key() {
            return message.sharding_key(format!("{thread}-{key}"));
        }
        let (message, after) = match self.way {
            Way::Plain => return message,
            Way::Trade(_) => return message.queue((self.id.seq % QUEUES as u64) as i32),
            Way::Level => (message.delay_level(1), 1000),
            Way::Delay(after) => (message.delay(Duration::from_millis(after)), after),
            Way::At(after) => (message.deliver_at((now + after).cast_signed()), after),
        };
        message.property(DUE, (now + after).to_string())
    }

    /// Whether it must be delivered once it is known to be sent, or begun.
    pub fn appears(&self) -> bool {
        match self.way {
            Way::Trade(trade) => trade.outcome == TransactionState::Commit,
            _ => true,
        }
    }

    /// Whether a crash may have it delivered once more.
    pub fn may_be_copied(&self) -> bool {
        matches!(self.way, Way::Level | Way::Delay(_) | Way::At(_))
    }

    /// Whether it fails that is in order and must not fail in every life: what failed is forgotten with it.
    pub fn fails_in(&self, life: u64) -> bool {
        !is_step(self.id) || crash::digest([self.random, life]).is_multiple_of(2)
    }
}

fn is_step(id: Id) -> bool {
    id.thread >= SENDERS + TRADERS
}

fn trade(random: &mut Random) -> Trade {
    use TransactionState::{Commit, Rollback, Unknown};
    match random.below(20) {
        0 => Trade { outcome: Unknown, is_told: false, doubts: u32::MAX },
        1..=4 => Trade {
            outcome: random.choose(&[Commit, Rollback]),
            is_told: false,
            doubts: random.below(CHECKS.into()) as u32,
        },
        _ => Trade { outcome: random.choose(&[Commit, Rollback]), is_told: true, doubts: 0 },
    }
}
