//! An order is placed in a table and told to the warehouse, and either both happens or neither, whatever
//! crashes in between. The warehouse may be told twice, and ships once. What it cannot ship is set aside, and
//! comes again when somebody has seen to it. Ends by itself after some seconds.
//!
//! ```sh
//! cargo run --release --example order_service
//! ```

use duralog::delivery::{Event, HalfMessageView, Handled, Received, TransactionState, Watch};
use duralog::{Message, Store, StoreConfig, TagFilter};
use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::path::Path;
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(8);

fn main() -> ExitCode {
    if std::env::args_os().len() > 1 {
        eprintln!("usage: order_service");
        return ExitCode::from(2);
    }
    let dir = std::env::temp_dir().join(format!("order_service-{}", std::process::id()));
    let outcome = order_service(&dir);
    // It was only a demonstration, nobody misses it.
    let _ = std::fs::remove_dir_all(&dir);
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("order_service: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The order service's table, by the ids of transactions. In earnest it is one of a database, and the id is
/// written in the same transaction as the order.
#[derive(Default)]
struct Orders(Mutex<BTreeMap<String, String>>);

impl Orders {
    fn place(&self, transaction: &str, order: &str) {
        let mut orders = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        orders.insert(transaction.to_owned(), order.to_owned());
    }

    fn knows(&self, transaction: &str) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains_key(transaction)
    }
}

/// What the warehouse has shipped, and to where it can.
#[derive(Default)]
struct Warehouse {
    /// The ids of messages that were handled: these, too, go to the database together with what was done.
    handled: BTreeSet<String>,
    shipped: Vec<String>,
    roads: BTreeSet<String>,
}

fn order_service(dir: &Path) -> Result<(), Box<dyn Error>> {
    let store = Store::open(StoreConfig::new(dir).segment_size(16 << 20))?;
    let warehouse = Arc::new(Mutex::new(Warehouse::default()));
    let (tell, told) = channel();
    let tell_of_letters = tell.clone();
    store.observe(Watch::new(move |event| {
        if let Event::DeadLetter { message, .. } = event {
            println!("  observer: {}: a dead letter", String::from_utf8_lossy(message.body()));
            // Nobody waits for it any more when all is over.
            let _ = tell_of_letters.send(());
        }
    }))?;
    let handler = {
        let warehouse = warehouse.clone();
        move |message: &Received| ship(&warehouse, message, &tell)
    };
    let consumer = store
        .consumer("warehouse")
        .subscribe("orders", TagFilter::any())
        // What fails once more becomes a dead letter; the default is 16.
        .max_reconsume_times(2)
        .open()?;
    let listener = consumer.listen(2, handler)?;

    println!("Five orders are placed:");
    let expected = place_orders(&store)?;
    hear(&told, expected)?;

    let letters = store.dead_letters("warehouse");
    println!("Dead letters of the warehouse:");
    for letter in letters.list(10)? {
        let record = letter.record();
        println!(
            "  {} ({}), after {} attempts",
            String::from_utf8_lossy(letter.body()),
            record.keys().unwrap_or("-"),
            record.reconsume_times()
        );
    }
    println!("Somebody builds a road to Tir na nOg, and has them sent again:");
    let road = "Tir na nOg".to_owned();
    warehouse.lock().unwrap_or_else(PoisonError::into_inner).roads.insert(road);
    let sent = letters.redrive(10)?;
    hear(&told, sent)?;

    listener.close()?;
    let warehouse = warehouse.lock().unwrap_or_else(PoisonError::into_inner);
    println!("Shipped, each once: {}", warehouse.shipped.join(", "));
    println!("Dead letters that are left: {}", letters.count());
    store.close()?;
    if warehouse.shipped.len() == 3 {
        Ok(())
    } else {
        Err("not everything was shipped once".into())
    }
}

/// Places orders, each in one of the ways in which that can go; how many of them the warehouse will be done with.
fn place_orders(store: &Store) -> Result<usize, Box<dyn Error>> {
    let orders = Arc::new(Orders::default());
    let table = orders.clone();
    // Asked about transactions of which nothing was said: what happened stands in the table.
    let check = move |half: &HalfMessageView| {
        let happened = half.transaction_id().is_some_and(|id| table.knows(id));
        let body = String::from_utf8_lossy(half.body());
        println!("  {body}: nobody said; the table {} it", if happened { "has" } else { "lacks" });
        if happened { TransactionState::Commit } else { TransactionState::Rollback }
    };
    // Soon, for a demonstration; the default is 6 s.
    let producer = store
        .transactional_producer("order-service", check)
        .transaction_timeout(Duration::from_millis(500))
        .transaction_check_interval(Duration::from_millis(200))
        .open()?;
    let order = |number: u32, body: &str| {
        Message::new("orders", body).key(format!("order-{number}")).property("ORDER", body)
    };

    let body = "two teapots to Ada in London";
    producer.send(order(1, body), |half| {
        orders.place(half.transaction_id(), body);
        println!("  {body}: placed");
        TransactionState::Commit
    })?;
    let body = "a samovar to Grace in Arlington, on credit";
    producer.send(order(2, body), |_| {
        println!("  {body}: declined, the warehouse never hears of it");
        TransactionState::Rollback
    })?;
    let body = "a kettle to Alan in Wilmslow";
    producer.send(order(3, body), |half| {
        orders.place(half.transaction_id(), body);
        println!("  {body}: placed, and the service crashes before it can say so");
        TransactionState::Unknown
    })?;
    let body = "a cup to Edsger in Nuenen";
    producer.send(order(4, body), |_| {
        println!("  {body}: the service crashes before the order is in the table");
        TransactionState::Unknown
    })?;
    let body = "a tea strainer to Oisin in Tir na nOg";
    producer.send(order(5, body), |half| {
        orders.place(half.transaction_id(), body);
        println!("  {body}: placed");
        TransactionState::Commit
    })?;
    // Those in doubt are decided while the producer is open.
    let transactions = store.transactions()?;
    let started = Instant::now();
    while transactions.stats().open > 0 {
        if started.elapsed() > PATIENCE {
            return Err("a transaction stays open".into());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(3)
}

/// Ships an order, once, however often the warehouse is told of it.
fn ship(
    warehouse: &Mutex<Warehouse>,
    message: &Received,
    tell: &Sender<()>,
) -> Result<Handled, Box<dyn Error>> {
    let order = std::str::from_utf8(message.body())?;
    let id = message.unique_key().ok_or("an order without an id")?;
    let mut warehouse = warehouse.lock().unwrap_or_else(PoisonError::into_inner);
    let attempt = message.reconsume_times() + 1;
    if warehouse.handled.contains(id) {
        println!("  warehouse: {order}: told again, and already shipped");
        tell.send(())?;
        return Ok(Handled::Done);
    }
    if order.ends_with("Tir na nOg") && !warehouse.roads.contains("Tir na nOg") {
        println!("  warehouse: {order}: attempt {attempt}: no road leads there");
        return Ok(Handled::RetryAfter(Duration::from_millis(300)));
    }
    warehouse.handled.insert(id.to_owned());
    warehouse.shipped.push(order.to_owned());
    println!("  warehouse: {order}: shipped");
    if order.contains("Ada") {
        println!("  warehouse: {order}: but the network fails before that is acknowledged");
        return Ok(Handled::RetryAfter(Duration::from_millis(200)));
    }
    tell.send(())?;
    Ok(Handled::Done)
}

/// Waits until the warehouse is done with so many orders.
fn hear(told: &Receiver<()>, orders: usize) -> Result<(), Box<dyn Error>> {
    for _ in 0..orders {
        told.recv_timeout(PATIENCE)?;
    }
    Ok(())
}
