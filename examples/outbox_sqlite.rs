//! An outbox in SQLite: an order and the message about it commit together, a crash between the commit and the
//! sending loses nothing, and what cannot be sent is dead until somebody mends what was wrong. Ends by itself.
//!
//! ```sh
//! cargo run --release --features rusqlite-bundled --example outbox_sqlite
//! ```

use duralog::delivery::dedup::{Once, SqliteDedup};
use duralog::delivery::outbox::{Outbox, SqliteOutbox};
use duralog::tables::TopicConfig;
use duralog::{Error, Message, Result, Store, StoreConfig, TagFilter};
use rusqlite::{Connection, TransactionBehavior};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

type Outcome = std::result::Result<(), Box<dyn std::error::Error>>;

fn connect(dir: &Path) -> Result<Connection> {
    let database = Connection::open(dir.join("orders.db"))?;
    // What another connection sees must be durable: the outbox sends it.
    database.execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL")?;
    Ok(database)
}

fn open(dir: &Path) -> Result<(Store, Outbox)> {
    let mut config = StoreConfig::new(dir.join("store")).segment_size(16 << 20);
    config.auto_create_topic = false;
    let store = Store::open(config)?;
    store.create_topic("orders", TopicConfig::new(4))?;
    let producer = store.producer("orders-service").open()?;
    let outbox = Outbox::builder(producer, SqliteOutbox::open(connect(dir)?)?).start()?;
    Ok((store, outbox))
}

/// An order is paid, and a message says so: both, or neither of them.
fn pay(database: &mut Connection, order: i64, message: &Message, commits: bool) -> Result<()> {
    let change = database.transaction_with_behavior(TransactionBehavior::Immediate)?;
    change.execute("INSERT INTO orders VALUES (?1)", [order])?;
    SqliteOutbox::record(&change, message)?;
    // A transaction that is dropped is rolled back.
    if commits { Ok(change.commit()?) } else { Ok(()) }
}

fn show(what: &str, outbox: &Outbox, expected: [u64; 3]) -> Outcome {
    let counts = outbox.counts()?;
    let counts = [counts.pending, counts.sent, counts.dead];
    let [pending, sent, dead] = counts;
    println!("{what}: {pending} pending, {sent} sent, {dead} dead");
    check(counts == expected, what)
}

/// What an example promises, it keeps, or it fails.
fn check(holds: bool, what: &str) -> Outcome {
    if holds { Ok(()) } else { Err(format!("{what}: that should not be so").into()) }
}

fn wait_until_sent(outbox: &Outbox) -> Result<()> {
    let until = Instant::now() + Duration::from_secs(5);
    while outbox.counts()?.pending > 0 && Instant::now() < until {
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

fn main() -> Outcome {
    if std::env::args_os().len() > 1 {
        eprintln!("usage: outbox_sqlite");
        std::process::exit(2);
    }
    let dir = std::env::temp_dir().join(format!("duralog-outbox-{}", std::process::id()));
    std::fs::create_dir_all(&dir).map_err(Error::database)?;
    let mut database = connect(&dir)?;
    let schema = "CREATE TABLE orders (id INTEGER PRIMARY KEY);
        CREATE TABLE mails (order_id TEXT)";
    database.execute_batch(schema)?;
    let paid = |order: i64| {
        let message = Message::new("orders", format!("{order}")).tag("paid");
        message.key(format!("order-{order}")).sharding_key(format!("customer-{}", order % 3))
    };

    // The table must be there before anything is recorded.
    let (store, outbox) = open(&dir)?;
    pay(&mut database, 1, &paid(1), true)?;
    outbox.notify();
    wait_until_sent(&outbox)?;
    show("order 1 is paid", &outbox, [0, 1, 0])?;
    pay(&mut database, 2, &paid(2), false)?;
    show("order 2 is rolled back", &outbox, [0, 1, 0])?;

    // The process ends between the commit and the sending.
    drop(outbox);
    store.close()?;
    drop(store);
    pay(&mut database, 3, &paid(3), true)?;
    println!("order 3 is paid, and nobody is there to send the message");

    let (store, outbox) = open(&dir)?;
    wait_until_sent(&outbox)?;
    show("opened again", &outbox, [0, 2, 0])?;

    // There is no such topic, and puts create none here.
    pay(&mut database, 4, &Message::new("refunds", "4"), true)?;
    outbox.notify();
    wait_until_sent(&outbox)?;
    show("a refund", &outbox, [0, 2, 1])?;
    for dead in outbox.dead(10)? {
        println!(
            "  message {} is dead after {} attempt(s): {}",
            dead.id, dead.attempts, dead.error
        );
    }
    store.create_topic("refunds", TopicConfig::new(1))?;
    outbox.rearm_all()?;
    wait_until_sent(&outbox)?;
    show("mended and armed again", &outbox, [0, 3, 0])?;

    // A copy, as a crash between the sending and the mark would leave it.
    store.put(paid(3).unique_key("order-3-again").queue(0))?.ok()?;
    let dedup = SqliteDedup::open(&database, "mailing")?;
    let consumer = store.consumer("mailing").subscribe("orders", TagFilter::any()).open()?;
    let mut copies = 0;
    loop {
        let batch = consumer.poll(Duration::from_millis(200))?;
        if batch.is_empty() {
            break;
        }
        for message in batch {
            // What says of no order what it is about is for people to look at.
            let Some(key) = message.keys() else {
                message.reject()?;
                continue;
            };
            let once = dedup.once(&mut database, key, |transaction| {
                transaction.execute("INSERT INTO mails VALUES (?1)", [key])?;
                Ok::<_, Error>(())
            })?;
            let is_copy = once == Once::AlreadyDone;
            copies += u32::from(is_copy);
            let what = if is_copy { "a copy, passed over" } else { "mailed" };
            println!("{key}: {what}");
            message.ack()?;
        }
    }
    let mut select = database.prepare("SELECT order_id FROM mails ORDER BY order_id")?;
    let mails = select.query_map([], |row| row.get::<_, String>(0))?;
    let mails = mails.collect::<rusqlite::Result<Vec<_>>>()?;
    println!("{} mails for 2 paid orders", mails.len());
    check(mails == ["order-1", "order-3"], "the mails")?;
    check(copies == 1, "the copy")?;

    outbox.close()?;
    store.close()?;
    let _ = std::fs::remove_dir_all(&dir);
    Ok(())
}
