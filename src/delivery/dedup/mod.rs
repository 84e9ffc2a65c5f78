//! Handling a message once, though it may come more than once.
//!
//! Delivery is at least once: a message that was acknowledged in vain, because the process ended or a lease
//! ran out, comes again, and a producer that did not get its answer sends another copy. What is done about
//! it depends on what handling a message does:
//!
//! | | what it takes | its effect happens |
//! |---|---|---|
//! | `SqliteDedup::once`, or [`Marks`] in a transaction of another database | the effect is a change in that database | **once**: mark and effect commit in one transaction |
//! | [`Deduplicator`] | nothing: no table, no extra write | at least once; again only for what was in flight when the process or the machine ended |
//! | `SqliteDedup::guarded`, or [`Marks`] outside of a transaction | a database, whatever the effect is | at least once; again if the process ended between effect and mark; by one consumer at a time, in whichever process |
//!
//! No mark is made before the effect: a crash in between would lose the effect, and nobody would notice.
//!
//! The key is what tells copies: the message's [`unique_key`](super::Received::unique_key), which a producer
//! gives once, or something of the application's own, such as a number of an order and what happened to it.
//! [`Store::put`](crate::Store::put) gives none: a message that was put without a key of its own has none, and an
//! empty key is refused with [`Error::EmptyKey`], as all that have it would be copies of each other.

mod deduplicator;
mod recent;
#[cfg(feature = "rusqlite")]
mod sqlite;

pub use deduplicator::{Deduplicator, DeduplicatorBuilder};
#[cfg(feature = "rusqlite")]
pub use sqlite::{SqliteDedup, SqliteMarks};

use crate::error::{Error, Result};

/// What came of handling something that is to be handled once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[must_use = "it may not have run"]
pub enum Once<T> {
    /// It ran, and this is what it returned.
    Ran(T),
    /// It had run before: acknowledge the message.
    AlreadyDone,
}

impl<T> Once<T> {
    /// What it returned, if it ran.
    pub fn ran(self) -> Option<T> {
        match self {
            Self::Ran(value) => Some(value),
            Self::AlreadyDone => None,
        }
    }
}

/// How it stands with a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mark {
    /// Nobody was at it, or not for so long that it is forgotten: it is the caller's now.
    Fresh,
    /// PROCESSING: somebody is at it, or was when the process ended.
    Processing,
    /// SUCCESS: it is done.
    Done,
}

/// Marks of what is being handled and what is done, by key, in a database.
///
/// Used *within* the transaction of an effect, the effect happens once: mark and effect are there together, or
/// neither is. Used *outside* of one, each call is a transaction of its own, and the effect happens at least
/// once. [`run`](Self::run) does the right thing in both cases.
///
/// Some databases end a transaction by themselves after an error, which whoever runs the effect may not have
/// looked at. Marks of a transaction must then fail, with [`Error::RolledBack`]: they would be there without the
/// effect.
///
/// Times are in milliseconds since 1970. Every mark has a time until which it counts, and is as good as absent
/// from then on.
pub trait Marks {
    /// Says how it stands with `key`, and marks it PROCESSING until `until_ms` if it is
    /// [fresh](Mark::Fresh): of two who ask at the same time, one gets it.
    ///
    /// # Errors
    /// [`Error::Database`], and [`Error::RolledBack`] where it is the marks of a transaction that is over, here
    /// and in all other calls.
    fn begin(&mut self, key: &str, now_ms: i64, until_ms: i64) -> Result<Mark>;

    /// Marks `key` SUCCESS until `until_ms`, whatever it was.
    ///
    /// # Errors
    /// As [`begin`](Self::begin).
    fn succeed(&mut self, key: &str, until_ms: i64) -> Result<()>;

    /// Takes back the mark PROCESSING that was made until `until_ms`, if it is still there.
    ///
    /// # Errors
    /// As [`begin`](Self::begin).
    fn fail(&mut self, key: &str, until_ms: i64) -> Result<()>;

    /// Runs `effect` unless `key` is done: begins, runs, and marks it done; or takes the mark back if
    /// `effect` fails.
    ///
    /// # Errors
    /// What `effect` says; [`Error::EmptyKey`]; [`Error::InProgress`] if somebody else is at it;
    /// [`Error::RolledBack`]; [`Error::Database`]. If the last mark fails, `effect` has run: in a transaction, do
    /// not commit.
    fn run<T, E: From<Error>>(
        &mut self,
        key: &str,
        times: MarkTimes,
        effect: impl FnOnce(&mut Self) -> Result<T, E>,
    ) -> Result<Once<T>, E>
    where
        Self: Sized,
    {
        check_key(key)?;
        match self.begin(key, times.now_ms, times.processing_until_ms)? {
            Mark::Done => return Ok(Once::AlreadyDone),
            Mark::Processing => return Err(Error::InProgress { key: key.to_owned() }.into()),
            Mark::Fresh => {}
        }
        match effect(self) {
            Ok(value) => {
                self.succeed(key, times.done_until_ms)?;
                Ok(Once::Ran(value))
            }
            Err(error) => {
                // It runs out by itself where it cannot be taken back.
                let _ = self.fail(key, times.processing_until_ms);
                Err(error)
            }
        }
    }
}

/// All that have no key would be copies of each other, and only the first of them would be handled.
fn check_key(key: &str) -> Result<()> {
    if key.is_empty() { Err(Error::EmptyKey) } else { Ok(()) }
}

/// What time it is for a mark, and until when it counts, in milliseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MarkTimes {
    /// Now.
    pub now_ms: i64,
    /// Until when nobody else begins.
    pub processing_until_ms: i64,
    /// Until when it is known to be done.
    pub done_until_ms: i64,
}
