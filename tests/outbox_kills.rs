//! A process with an outbox, a consumer and a database on real files, killed again and again.

#[path = "support/temp.rs"]
mod temp;

use duralog::delivery::Consumer;
use duralog::delivery::dedup::{Once, SqliteDedup};
use duralog::delivery::outbox::{Outbox, SqliteOutbox};
use duralog::{Error, Message, Result, Store, StoreConfig, TagFilter};
use rusqlite::{Connection, TransactionBehavior};
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;
use temp::TempDir;

/// Tells a copy of this program in which directory to work.
const ROLE: &str = "DURALOG_TEST_ROLE";
const KILLS: usize = 6;

fn connect(dir: &Path) -> Connection {
    let database = Connection::open(dir.join("orders.db")).expect("a database");
    database.busy_timeout(Duration::from_secs(60)).expect("set");
    let schema = "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;
        CREATE TABLE IF NOT EXISTS orders (id INTEGER PRIMARY KEY);
        CREATE TABLE IF NOT EXISTS effects (id INTEGER PRIMARY KEY, times INTEGER)";
    database.execute_batch(schema).expect("a schema");
    database
}

fn open(dir: &Path) -> Result<(Store, Outbox, Consumer)> {
    let store = Store::open(StoreConfig::new(dir.join("store")).segment_size(1 << 20))?;
    let table = SqliteOutbox::open(connect(dir))?;
    let producer = store.producer("orders-service").open()?;
    let outbox = Outbox::builder(producer, table).poll_interval(Duration::from_millis(20));
    let consumer = store.consumer("billing").subscribe("orders", TagFilter::any()).open()?;
    Ok((store, outbox.start()?, consumer))
}

/// Handles what is there; how many messages there were.
fn handle(consumer: &Consumer, database: &mut Connection, wait: Duration) -> Result<usize> {
    let dedup = SqliteDedup::open(database, "billing")?;
    let batch = consumer.poll(wait)?;
    for message in &batch {
        let id = std::str::from_utf8(message.body()).expect("a number");
        let _: Once<()> = dedup.once(database, id, |transaction| {
            let effect = "INSERT INTO effects VALUES (?1, 1)
                ON CONFLICT (id) DO UPDATE SET times = times + 1";
            transaction.execute(effect, [id])?;
            Ok::<_, Error>(())
        })?;
        message.ack()?;
    }
    Ok(batch.len())
}

/// What the other process does until it is killed; without a role, nothing.
#[test]
fn another_process_works_until_it_is_killed() {
    let Ok(dir) = std::env::var(ROLE) else { return };
    let dir = Path::new(&dir);
    let (_store, outbox, consumer) = open(dir).expect("it opens");
    let (mut database, mut second) = (connect(dir), connect(dir));
    thread::spawn(move || {
        loop {
            handle(&consumer, &mut second, Duration::from_secs(1)).expect("it is handled");
        }
    });
    let last = "SELECT coalesce(max(id), 0) FROM orders";
    let mut id: i64 = database.query_row(last, [], |row| row.get(0)).expect("a number");
    loop {
        id += 1;
        let change = database.transaction_with_behavior(TransactionBehavior::Immediate);
        let change = change.expect("a transaction");
        change.execute("INSERT INTO orders VALUES (?1)", [id]).expect("inserted");
        let message = Message::new("orders", id.to_string()).sharding_key((id % 3).to_string());
        SqliteOutbox::record(&change, &message).expect("recorded");
        // That one never happens: its message must not be seen.
        if id % 5 == 0 {
            continue;
        }
        change.commit().expect("committed");
        outbox.notify();
        let mut output = std::io::stdout().lock();
        // Whoever started this may be gone, and this with it.
        writeln!(output, "\ncommitted {id}").and_then(|()| output.flush()).expect("heard");
    }
}

#[test]
fn nothing_that_was_committed_is_lost_and_nothing_happens_twice_however_often_it_is_killed() {
    let dir = TempDir::new();
    let mut told = BTreeSet::new();
    for kill in 0..KILLS {
        let program = std::env::current_exe().expect("this program");
        let mut child = Command::new(program)
            .args(["--exact", "another_process_works_until_it_is_killed", "--nocapture"])
            .env(ROLE, dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a second process");
        let lines = BufReader::new(child.stdout.take().expect("its output")).lines();
        let mut left = 10 + 7 * kill as i64;
        for line in lines {
            let line = line.expect("its output");
            let Some(id) = line.strip_prefix("committed ") else { continue };
            told.insert(id.parse::<i64>().expect("a number"));
            // What it said before it was killed comes still.
            left -= 1;
            if left == 0 {
                child.kill().expect("it can be killed");
            }
        }
        child.wait().expect("it ends");
    }

    let (store, outbox, consumer) = open(dir.path()).expect("it opens");
    let mut database = connect(dir.path());
    loop {
        // What is pending now is to be read after that.
        let pending = outbox.counts().expect("readable").pending;
        let wait = Duration::from_millis(50);
        let handled = handle(&consumer, &mut database, wait).expect("it is handled");
        if pending == 0 && handled == 0 {
            break;
        }
    }
    assert_eq!(outbox.counts().expect("readable").dead, 0);
    drop((outbox, consumer));
    store.close().expect("it closes");
    let ids = |select: &str| -> BTreeSet<i64> {
        let mut rows = database.prepare(select).expect("prepared");
        let rows = rows.query_map([], |row| row.get(0)).expect("asked");
        rows.map(|row| row.expect("a row")).collect()
    };
    let committed = ids("SELECT id FROM orders");
    assert!(told.is_subset(&committed), "told, but not committed");
    assert!(committed.len() >= KILLS * 10);
    assert_eq!(ids("SELECT id FROM effects"), committed);
    assert_eq!(ids("SELECT id FROM effects WHERE times > 1"), BTreeSet::new());
}
