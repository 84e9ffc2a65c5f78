//! What an outbox needs of a database.

use super::SealedMessage;
use crate::error::Result;
use crate::message::Message;

/// The table in which messages wait, and which tells afterwards what became of them.
///
/// How a message is recorded within the application's transaction is the implementation's own: the method
/// that does it takes whatever a transaction is there, [seals](SealedMessage::seal) the message and
/// adds it as one that is pending, with no attempts, due at once. It must fail, with
/// [`Error::RolledBack`](crate::Error::RolledBack), where the database has ended that transaction by itself: the
/// message would be sent, and what it is about undone. Ids must grow in the order in which
/// transactions commit as far as the order of messages matters: rows of one lane, recorded one after the
/// other, must have ascending ids.
///
/// Times are in milliseconds since 1970. Each call is a transaction of its own, and what it changed is
/// durable when it returns; if [`mark_sent`](Self::mark_sent) loses its change in a crash, messages are sent
/// again, and that is all. A panic counts as an error.
///
/// `SqliteOutbox` (feature `rusqlite`) is an implementation, and `MemoryOutbox` (feature `sim`) a small one to
/// read.
pub trait OutboxTable: Send {
    /// Makes all that is pending due at once, whatever it waits for.
    ///
    /// # Errors
    /// [`Error::Database`](crate::Error::Database), here and in all other calls.
    fn make_due(&mut self) -> Result<()>;

    /// The first `max` messages that are pending and due, by id, but for those that have a pending message
    /// of the same lane before them that is not due.
    ///
    /// # Errors
    /// As [`make_due`](Self::make_due).
    fn due(&mut self, now_ms: i64, max: usize) -> Result<DueMessages>;

    /// Notes that pending messages were sent. Others are left as they are.
    ///
    /// # Errors
    /// As [`make_due`](Self::make_due).
    fn mark_sent(&mut self, ids: &[i64], now_ms: i64) -> Result<()>;

    /// Notes that a pending message was not sent. Others are left as they are.
    ///
    /// # Errors
    /// As [`make_due`](Self::make_due).
    fn mark_failed(&mut self, id: i64, failure: &SendFailure) -> Result<()>;

    /// The first `max` dead messages, by id.
    ///
    /// # Errors
    /// As [`make_due`](Self::make_due).
    fn dead(&mut self, max: usize) -> Result<Vec<DeadMessage>>;

    /// Makes a dead message pending again, with no attempts and due at once; whether it was dead.
    ///
    /// # Errors
    /// As [`make_due`](Self::make_due).
    fn rearm(&mut self, id: i64) -> Result<bool>;

    /// Forgets a dead message; whether it was dead.
    ///
    /// # Errors
    /// As [`make_due`](Self::make_due).
    fn discard(&mut self, id: i64) -> Result<bool>;

    /// Forgets up to `max` messages that were sent at `until_ms` or before; how many.
    ///
    /// # Errors
    /// As [`make_due`](Self::make_due).
    fn prune(&mut self, until_ms: i64, max: usize) -> Result<usize>;

    /// How many messages there are.
    ///
    /// # Errors
    /// As [`make_due`](Self::make_due).
    fn counts(&mut self) -> Result<OutboxCounts>;
}

/// A message that is to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingMessage {
    /// Its id in the table.
    pub id: i64,
    /// What it is kept in order with, see [`SealedMessage::lane`].
    pub lane: Option<String>,
    /// How often it was tried.
    pub attempts: u32,
    /// The message, see [`SealedMessage::bytes`].
    pub bytes: Vec<u8>,
}

/// What is to be sent, and when more is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DueMessages {
    /// By id.
    pub messages: Vec<PendingMessage>,
    /// The earliest time, after now, for which a pending message waits.
    pub next_ms: Option<i64>,
}

/// How it stands with a message that was not sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SendFailure {
    /// How often it was tried so far.
    pub attempts: u32,
    /// When it is tried again; `None` if it is dead.
    pub next_ms: Option<i64>,
    /// Why it was not sent.
    pub error: String,
}

/// A message that is not tried any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadMessage {
    /// Its id in the table, to [re-arm](super::Outbox::rearm) it by.
    pub id: i64,
    /// How often it was tried.
    pub attempts: u32,
    /// Why it was not sent.
    pub error: String,
    /// The message, see [`SealedMessage::bytes`].
    pub bytes: Vec<u8>,
}

impl DeadMessage {
    /// The message.
    ///
    /// # Errors
    /// [`Error::Corrupt`](crate::Error::Corrupt) if it is dead because its row is damaged.
    pub fn message(&self) -> Result<Message> {
        SealedMessage::open(&self.bytes)
    }
}

/// How many messages an outbox has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OutboxCounts {
    /// To be sent.
    pub pending: u64,
    /// Sent, and not yet forgotten.
    pub sent: u64,
    /// Not tried any more.
    pub dead: u64,
}
