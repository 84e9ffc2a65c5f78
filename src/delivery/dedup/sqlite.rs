//! Marks in an application's SQLite database.

use super::{Mark, MarkTimes, Marks, Once, check_key};
use crate::clock::{Clock, SystemClock};
use crate::error::{Error, Result};
use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};
use std::sync::Arc;
use std::time::Duration;

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS duralog_marks (
    scope TEXT NOT NULL,
    key TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('PROCESSING', 'SUCCESS')),
    until_ms INTEGER NOT NULL,
    PRIMARY KEY (scope, key)
);
CREATE INDEX IF NOT EXISTS duralog_marks_until ON duralog_marks (until_ms);
";

/// Marks forgotten for each that is made: more than one, so that they get fewer.
const FORGET: i64 = 4;

/// Effects that happen once, in a SQLite database (feature `rusqlite`).
///
/// The marks are in the table `duralog_marks`, each by a scope and a key: give each consumer group a scope of
/// its own, as each handles every message. They are forgotten after a while, [`keep`](Self::keep): a copy
/// that comes later is handled once more.
///
/// # Examples
/// ```
/// use duralog::delivery::dedup::{Once, SqliteDedup};
/// use duralog::delivery::outbox::rusqlite::Connection;
/// use duralog::{Message, Store, StoreConfig, TagFilter};
/// use std::time::Duration;
///
/// # let dir = std::env::temp_dir().join(format!("duralog-doc-sqlite-dedup-{}", std::process::id()));
/// # let store = Store::open(StoreConfig::new(&dir).segment_size(1 << 20))?;
/// let mut database = Connection::open_in_memory()?;
/// database.execute_batch("CREATE TABLE paid (cents INTEGER); INSERT INTO paid VALUES (0)")?;
/// let dedup = SqliteDedup::open(&database, "billing")?;
///
/// // A producer that did not get its answer puts a message once more.
/// let message = Message::new("orders", "42").unique_key("order-7-paid");
/// store.put(&message)?.ok()?;
/// store.put(&message)?.ok()?;
///
/// let consumer = store.consumer("billing").subscribe("orders", TagFilter::any()).open()?;
/// for message in consumer.poll(Duration::from_secs(1))? {
///     // It was put without one: nobody can tell its copies.
///     let Some(key) = message.unique_key() else {
///         message.reject()?;
///         continue;
///     };
///     let once = dedup.once(&mut database, key, |transaction| {
///         let cents: i64 = std::str::from_utf8(message.body()).unwrap_or("0").parse().unwrap_or(0);
///         transaction.execute("UPDATE paid SET cents = cents + ?1", [cents])?;
///         Ok::<_, duralog::Error>(())
///     })?;
///     println!("{}", if once == Once::AlreadyDone { "a copy" } else { "paid" });
///     message.ack()?;
/// }
/// let paid: i64 = database.query_row("SELECT cents FROM paid", [], |row| row.get(0))?;
/// assert_eq!(paid, 42);
/// # drop(consumer);
/// # store.close()?;
/// # std::fs::remove_dir_all(&dir).unwrap();
/// # Ok::<(), duralog::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct SqliteDedup {
    scope: String,
    keep: Duration,
    processing: Duration,
    clock: Arc<dyn Clock>,
}

impl SqliteDedup {
    /// The marks of `scope` in a database; creates the table if it is not there.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn open(database: &Connection, scope: impl Into<String>) -> Result<Self> {
        database.execute_batch(SCHEMA)?;
        Ok(Self {
            scope: scope.into(),
            keep: Duration::from_secs(7 * 24 * 3600),
            processing: Duration::from_secs(15 * 60),
            clock: Arc::new(SystemClock),
        })
    }

    /// How long it is remembered what is done. Default 7 days: longer than a copy can be under way.
    #[must_use]
    pub fn keep(mut self, time: Duration) -> Self {
        self.keep = time;
        self
    }

    /// How long [`guarded`](Self::guarded) keeps others off after whoever was at it has vanished. Default 15
    /// min: longer than handling takes.
    #[must_use]
    pub fn processing_timeout(mut self, time: Duration) -> Self {
        self.processing = time;
        self
    }

    /// Another clock than the system's.
    #[must_use]
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Runs `effect` in a transaction, unless it did before for this key. Mark and effect commit together: the
    /// effect happens once, whatever crashes and however often this is called.
    ///
    /// Acknowledge the message when this returns `Ok`. If `effect` fails or panics, nothing is changed and
    /// nothing marked. What `effect` does beside the transaction may happen more often. Waits for other writers
    /// as long as the `busy_timeout` of `database` says.
    ///
    /// `effect` must pass on what statements fail with. After some errors SQLite has rolled back all that was
    /// done, and what is done then is done at once: it is not undone, and happens again.
    ///
    /// # Errors
    /// What `effect` says; [`Error::RolledBack`] if it says that all is well, but its transaction is over;
    /// [`Error::Database`], after which nothing was changed, unless it was the commit that failed: call it
    /// again to know. [`Error::InProgress`] where [`guarded`](Self::guarded) is at the key; [`Error::EmptyKey`].
    pub fn once<T, E: From<Error>>(
        &self,
        database: &mut Connection,
        key: &str,
        effect: impl FnOnce(&Transaction<'_>) -> Result<T, E>,
    ) -> Result<Once<T>, E> {
        // It begins with a write, which a deferred transaction might be refused.
        let begun = database.transaction_with_behavior(TransactionBehavior::Immediate);
        let transaction = begun.map_err(Error::from)?;
        let once = self.marks(&transaction).run(key, self.times(), |marks| -> Result<T, E> {
            let value = effect(&transaction)?;
            // Another transaction may have been begun in its place.
            if marks.is_begun(key)? { Ok(value) } else { Err(Error::RolledBack.into()) }
        })?;
        transaction.commit().map_err(Error::from)?;
        Ok(once)
    }

    /// Runs `effect`, which is no change of this database, unless it did before for this key. It is marked
    /// when it has happened, so it happens at least once, and again if the process ends before the
    /// mark. While it runs, nobody else runs it, for
    /// [`processing_timeout`](Self::processing_timeout) at most.
    ///
    /// # Errors
    /// What `effect` says; [`Error::InProgress`] if somebody else is at it, who may be gone: let the message
    /// come again later; [`Error::EmptyKey`]; [`Error::Database`].
    pub fn guarded<T, E: From<Error>>(
        &self,
        database: &Connection,
        key: &str,
        effect: impl FnOnce() -> Result<T, E>,
    ) -> Result<Once<T>, E> {
        self.marks(database).run(key, self.times(), |_| effect())
    }

    /// The marks themselves: of a transaction, where the caller begins and commits it, or of a connection. Those
    /// of a transaction fail with [`Error::RolledBack`] when it is over.
    pub fn marks<'a>(&'a self, database: &'a Connection) -> SqliteMarks<'a> {
        let in_transaction = !database.is_autocommit();
        SqliteMarks { database, scope: &self.scope, in_transaction }
    }

    /// What time it is, and until when marks that are made now count.
    pub fn times(&self) -> MarkTimes {
        let now_ms = self.clock.unix_millis();
        let after = |time: Duration| {
            now_ms.saturating_add(i64::try_from(time.as_millis()).unwrap_or(i64::MAX))
        };
        MarkTimes {
            now_ms,
            processing_until_ms: after(self.processing),
            done_until_ms: after(self.keep),
        }
    }
}

/// The marks of a scope, see [`SqliteDedup::marks`].
#[derive(Debug)]
pub struct SqliteMarks<'a> {
    database: &'a Connection,
    scope: &'a str,
    in_transaction: bool,
}

impl SqliteMarks<'_> {
    /// SQLite may have ended the transaction by itself: a mark would be one without its effect.
    fn check(&self) -> Result<()> {
        if self.in_transaction && self.database.is_autocommit() {
            return Err(Error::RolledBack);
        }
        Ok(())
    }

    fn is_begun(&self, key: &str) -> Result<bool> {
        let look = "SELECT state = 'PROCESSING' FROM duralog_marks WHERE scope = ?1 AND key = ?2";
        let found = self.database.query_row(look, params![self.scope, key], |row| row.get(0));
        Ok(found.optional()?.unwrap_or(false))
    }
}

impl Marks for SqliteMarks<'_> {
    fn begin(&mut self, key: &str, now_ms: i64, until_ms: i64) -> Result<Mark> {
        self.check()?;
        check_key(key)?;
        let forget = "DELETE FROM duralog_marks WHERE rowid IN
            (SELECT rowid FROM duralog_marks WHERE until_ms <= ?1 ORDER BY until_ms LIMIT ?2)";
        self.database.execute(forget, params![now_ms, FORGET])?;
        // One statement: of two connections, one marks it.
        let mark = "INSERT INTO duralog_marks (scope, key, state, until_ms)
            VALUES (?1, ?2, 'PROCESSING', ?3)
            ON CONFLICT (scope, key) DO UPDATE SET state = 'PROCESSING', until_ms = ?3
            WHERE until_ms <= ?4";
        let row = params![self.scope, key, until_ms, now_ms];
        if self.database.execute(mark, row)? > 0 {
            return Ok(Mark::Fresh);
        }
        let look = "SELECT state = 'SUCCESS' FROM duralog_marks WHERE scope = ?1 AND key = ?2";
        let done = self.database.query_row(look, params![self.scope, key], |row| row.get(0));
        // Where it has just been taken back, somebody was at it.
        let is_done: bool = done.optional()?.unwrap_or(false);
        Ok(if is_done { Mark::Done } else { Mark::Processing })
    }

    fn succeed(&mut self, key: &str, until_ms: i64) -> Result<()> {
        self.check()?;
        check_key(key)?;
        let mark = "INSERT INTO duralog_marks (scope, key, state, until_ms)
            VALUES (?1, ?2, 'SUCCESS', ?3)
            ON CONFLICT (scope, key) DO UPDATE SET state = 'SUCCESS', until_ms = ?3";
        self.database.execute(mark, params![self.scope, key, until_ms])?;
        Ok(())
    }

    fn fail(&mut self, key: &str, until_ms: i64) -> Result<()> {
        self.check()?;
        let delete = "DELETE FROM duralog_marks
            WHERE scope = ?1 AND key = ?2 AND state = 'PROCESSING' AND until_ms = ?3";
        self.database.execute(delete, params![self.scope, key, until_ms])?;
        Ok(())
    }
}
