//! An outbox in an application's SQLite database.

use super::{
    DeadMessage, DueMessages, OutboxCounts, OutboxTable, PendingMessage, SealedMessage, SendFailure,
};
use crate::error::{Error, Result};
use crate::message::Message;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OptionalExtension, Row, Transaction, TransactionBehavior, params};

/// Ids are never used twice, and grow in the order of commits: SQLite has one writer at a time.
const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS duralog_outbox (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    unique_key TEXT NOT NULL,
    topic TEXT NOT NULL,
    lane TEXT,
    message BLOB NOT NULL,
    state TEXT NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'sent', 'dead')),
    attempts INTEGER NOT NULL DEFAULT 0,
    next_ms INTEGER NOT NULL DEFAULT 0,
    error TEXT,
    sent_ms INTEGER
);
CREATE INDEX IF NOT EXISTS duralog_outbox_state ON duralog_outbox (state, id);
CREATE INDEX IF NOT EXISTS duralog_outbox_waiting ON duralog_outbox (next_ms)
    WHERE state = 'pending' AND next_ms > 0;
CREATE INDEX IF NOT EXISTS duralog_outbox_lane ON duralog_outbox (lane, id)
    WHERE state = 'pending' AND next_ms > 0;
CREATE INDEX IF NOT EXISTS duralog_outbox_sent ON duralog_outbox (sent_ms) WHERE state = 'sent';
";

/// Times that a message waits for are greater than 0: both indices of those that wait hold few.
const DUE: &str = "
SELECT id, lane, attempts, message FROM duralog_outbox AS row
WHERE state = 'pending' AND next_ms <= ?1 AND NOT EXISTS (
    SELECT 1 FROM duralog_outbox AS before
    WHERE before.state = 'pending' AND before.next_ms > 0 AND before.next_ms > ?1
        AND before.lane = row.lane AND before.id < row.id
)
ORDER BY id LIMIT ?2";

/// The table `duralog_outbox` of a SQLite database (feature `rusqlite`): the message and the application's
/// own change commit in one transaction.
///
/// [`record`](Self::record) is given the application's transaction; what it adds is there if, and only if,
/// that commits. The [`Outbox`](super::Outbox) has a connection of its own, to the same file.
///
/// The table can be looked at: `topic`, `unique_key`, `state` (`pending`, `sent` or `dead`), `attempts`,
/// `next_ms` and `error` are columns. Only `message` is bytes.
///
/// # What the database must be set to
/// A commit must be durable before another connection sees it, or a power cut may take back a change whose
/// message was sent: `journal_mode = WAL` with `synchronous = FULL` (or `EXTRA` with another journal), on the
/// connection of the *application*. `FULL` is SQLite's default, `NORMAL` is not enough.
///
/// The outbox writes to the same file: a transaction of the application that begins with reading should be
/// [immediate](TransactionBehavior::Immediate), or SQLite may refuse its first write as busy. Both wait for each
/// other as long as their connections' `busy_timeout` says; rusqlite's default is 5 s.
///
/// # Examples
/// ```
/// use duralog::delivery::outbox::{Outbox, SqliteOutbox, rusqlite::Connection};
/// use duralog::{Message, Store, StoreConfig};
/// # use std::time::Duration;
///
/// # let dir = std::env::temp_dir().join(format!("duralog-doc-sqlite-outbox-{}", std::process::id()));
/// # std::fs::create_dir_all(&dir).unwrap();
/// # let store = Store::open(StoreConfig::new(dir.join("store")).segment_size(1 << 20))?;
/// let path = dir.join("orders.db");
/// let table = SqliteOutbox::open(Connection::open(&path)?)?;
/// let outbox = Outbox::builder(store.producer("orders-service").open()?, table).start()?;
///
/// let mut database = Connection::open(&path)?;
/// database.execute_batch("CREATE TABLE orders (id INTEGER PRIMARY KEY, paid REAL)")?;
/// let change = database.transaction()?;
/// change.execute("INSERT INTO orders VALUES (42, 12.5)", [])?;
/// SqliteOutbox::record(&change, &Message::new("orders", "paid 42").queue(0))?;
/// change.commit()?; // both, or none of them, whatever crashes
/// outbox.notify();
///
/// assert!(store.wait_for("orders", 0, 0, Duration::from_secs(60))?);
/// assert_eq!(store.get("orders", 0, 0, 1)?.messages[0].body, b"paid 42");
/// outbox.close()?;
/// # store.close()?;
/// # std::fs::remove_dir_all(&dir).unwrap();
/// # Ok::<(), duralog::Error>(())
/// ```
#[derive(Debug)]
pub struct SqliteOutbox {
    database: Connection,
}

impl SqliteOutbox {
    /// The table of `database`, created if it is not there: before anything can be recorded.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn open(database: Connection) -> Result<Self> {
        database.execute_batch(SCHEMA)?;
        Ok(Self { database })
    }

    /// Records a message within a transaction of the application; its id in the table.
    ///
    /// Wake the outbox with [`notify`](super::Outbox::notify) after the commit.
    ///
    /// # Errors
    /// As [`SealedMessage::seal`]; [`Error::Database`]; [`Error::RolledBack`] if the transaction is over, which it
    /// can be by itself after an error that nobody looked at. Nothing was recorded.
    pub fn record(transaction: &Transaction<'_>, message: &Message) -> Result<i64> {
        if transaction.is_autocommit() {
            return Err(Error::RolledBack);
        }
        let sealed = SealedMessage::seal(message)?;
        let insert =
            "INSERT INTO duralog_outbox (unique_key, topic, lane, message) VALUES (?1, ?2, ?3, ?4)";
        let row = params![sealed.unique_key(), sealed.topic(), sealed.lane(), sealed.bytes()];
        transaction.execute(insert, row)?;
        Ok(transaction.last_insert_rowid())
    }
}

fn limit(max: usize) -> i64 {
    i64::try_from(max).unwrap_or(i64::MAX)
}

// What SQL may have changed is read as whatever it is: one row that was must not hold up the others.

fn count(row: &Row<'_>, column: usize) -> rusqlite::Result<u32> {
    let number = row.get_ref(column)?.as_i64().unwrap_or(0).max(0);
    Ok(u32::try_from(number).unwrap_or(u32::MAX))
}

fn bytes(row: &Row<'_>, column: usize) -> rusqlite::Result<Vec<u8>> {
    Ok(row.get_ref(column)?.as_bytes().unwrap_or_default().to_vec())
}

fn text(row: &Row<'_>, column: usize) -> rusqlite::Result<String> {
    Ok(String::from_utf8_lossy(&bytes(row, column)?).into_owned())
}

impl OutboxTable for SqliteOutbox {
    fn make_due(&mut self) -> Result<()> {
        let update =
            "UPDATE duralog_outbox SET next_ms = 0 WHERE state = 'pending' AND next_ms > 0";
        self.database.execute(update, [])?;
        Ok(())
    }

    fn due(&mut self, now_ms: i64, max: usize) -> Result<DueMessages> {
        // Both answers are of one moment.
        let read = self.database.transaction()?;
        let messages = {
            let mut due = read.prepare(DUE)?;
            let rows = due.query_map(params![now_ms, limit(max)], |row| {
                Ok(PendingMessage {
                    id: row.get(0)?,
                    lane: match row.get_ref(1)? {
                        ValueRef::Null => None,
                        _ => Some(text(row, 1)?),
                    },
                    attempts: count(row, 2)?,
                    bytes: bytes(row, 3)?,
                })
            })?;
            rows.collect::<rusqlite::Result<Vec<_>>>()?
        };
        let next = "SELECT min(next_ms) FROM duralog_outbox
            WHERE state = 'pending' AND next_ms > 0 AND next_ms > ?1";
        let next_ms = read.query_row(next, [now_ms], |row| Ok(row.get_ref(0)?.as_i64().ok()))?;
        Ok(DueMessages { messages, next_ms })
    }

    fn mark_sent(&mut self, ids: &[i64], now_ms: i64) -> Result<()> {
        let write = self.database.transaction_with_behavior(TransactionBehavior::Immediate)?;
        {
            let mut update = write.prepare(
                "UPDATE duralog_outbox SET state = 'sent', sent_ms = ?2, next_ms = 0, error = NULL
                WHERE id = ?1 AND state = 'pending'",
            )?;
            for id in ids {
                update.execute(params![id, now_ms])?;
            }
        }
        write.commit()?;
        Ok(())
    }

    fn mark_failed(&mut self, id: i64, failure: &SendFailure) -> Result<()> {
        let state = if failure.next_ms.is_some() { "pending" } else { "dead" };
        let next_ms = failure.next_ms.unwrap_or(0);
        let update = "UPDATE duralog_outbox SET state = ?2, attempts = ?3, next_ms = ?4, error = ?5
            WHERE id = ?1 AND state = 'pending'";
        let row = params![id, state, failure.attempts, next_ms, failure.error];
        self.database.execute(update, row)?;
        Ok(())
    }

    fn dead(&mut self, max: usize) -> Result<Vec<DeadMessage>> {
        let mut dead = self.database.prepare(
            "SELECT id, attempts, coalesce(error, ''), message FROM duralog_outbox
            WHERE state = 'dead' ORDER BY id LIMIT ?1",
        )?;
        let rows = dead.query_map([limit(max)], |row| {
            Ok(DeadMessage {
                id: row.get(0)?,
                attempts: count(row, 1)?,
                error: text(row, 2)?,
                bytes: bytes(row, 3)?,
            })
        })?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    fn rearm(&mut self, id: i64) -> Result<bool> {
        let update = "UPDATE duralog_outbox SET state = 'pending', attempts = 0, next_ms = 0
            WHERE id = ?1 AND state = 'dead'";
        Ok(self.database.execute(update, [id])? > 0)
    }

    fn discard(&mut self, id: i64) -> Result<bool> {
        let delete = "DELETE FROM duralog_outbox WHERE id = ?1 AND state = 'dead'";
        Ok(self.database.execute(delete, [id])? > 0)
    }

    fn prune(&mut self, until_ms: i64, max: usize) -> Result<usize> {
        let old = "SELECT id FROM duralog_outbox WHERE state = 'sent' AND sent_ms <= ?1 LIMIT ?2";
        // Who has nothing to delete does not write.
        let any = self.database.query_row(old, params![until_ms, 1], |row| row.get::<_, i64>(0));
        if any.optional()?.is_none() {
            return Ok(0);
        }
        let delete = format!("DELETE FROM duralog_outbox WHERE id IN ({old})");
        Ok(self.database.execute(&delete, params![until_ms, limit(max)])?)
    }

    fn counts(&mut self) -> Result<OutboxCounts> {
        let mut counts = OutboxCounts::default();
        let select = "SELECT state, count(*) FROM duralog_outbox GROUP BY state";
        let mut states = self.database.prepare(select)?;
        let mut rows = states.query([])?;
        while let Some(row) = rows.next()? {
            let number = u64::try_from(row.get::<_, i64>(1)?).unwrap_or(0);
            match row.get_ref(0)?.as_str() {
                Ok("pending") => counts.pending = number,
                Ok("sent") => counts.sent = number,
                Ok("dead") => counts.dead = number,
                _ => {}
            }
        }
        Ok(counts)
    }
}
