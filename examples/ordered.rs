//! What happens to one account is handled in order, and accounts beside each other: a message that cannot be
//! handled for a while holds up the queue that it is in, and no other. Ends by itself after some seconds.
//!
//! ```sh
//! cargo run --release --example ordered
//! ```

use duralog::delivery::Handled;
use duralog::{Message, Store, StoreConfig, TagFilter};
use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;
use std::process::ExitCode;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

const ACCOUNTS: [&str; 4] = ["Ada", "Grace", "Alan", "Barbara"];
const STEPS: [&str; 4] = ["account opened", "100 paid in", "60 paid out", "account closed"];
/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(8);

fn main() -> ExitCode {
    if std::env::args_os().len() > 1 {
        eprintln!("usage: ordered");
        return ExitCode::from(2);
    }
    let dir = std::env::temp_dir().join(format!("ordered-{}", std::process::id()));
    let outcome = ordered(&dir);
    // It was only a demonstration, nobody misses it.
    let _ = std::fs::remove_dir_all(&dir);
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ordered: {error}");
            ExitCode::FAILURE
        }
    }
}

fn ordered(dir: &Path) -> Result<(), Box<dyn Error>> {
    let store = Store::open(StoreConfig::new(dir).segment_size(16 << 20))?;
    let producer = store.producer("bank").open()?;

    println!("Each account has a sharding key, which decides the queue:");
    let mut queues = BTreeMap::new();
    for step in STEPS {
        for account in ACCOUNTS {
            let message = Message::new("accounts", step).key(account).sharding_key(account);
            let sent = producer.send(message)?;
            queues.insert(account, sent.put.queue_id);
        }
    }
    for (account, queue) in &queues {
        println!("  {account}: queue {queue}");
    }

    println!(
        "Three workers handle them; one of Grace's fails twice, and holds up her queue alone:"
    );
    let started = Instant::now();
    let (done, answers) = channel();
    let consumer =
        store.consumer("ledger").subscribe("accounts", TagFilter::any()).ordered().open()?;
    let listener = consumer.listen(3, move |message| {
        let account = message.keys().unwrap_or_default().to_owned();
        let step = std::str::from_utf8(message.body())?.to_owned();
        let at = started.elapsed().as_millis();
        if account == "Grace" && step == "60 paid out" && message.reconsume_times() < 2 {
            println!("{at:>6} ms  {account} {step}: not now");
            // The others go on; what is behind this one waits.
            return Ok(Handled::RetryAfter(Duration::from_millis(700)));
        }
        println!("{at:>6} ms  {account} {step}");
        // As if there was something to do.
        std::thread::sleep(Duration::from_millis(50));
        done.send((account, step))?;
        Ok(Handled::Done)
    })?;

    let mut handled = BTreeMap::<String, Vec<String>>::new();
    let mut last = Vec::new();
    for _ in 0..ACCOUNTS.len() * STEPS.len() {
        let (account, step) = answers.recv_timeout(PATIENCE)?;
        if step == "account closed" {
            last.push(account.clone());
        }
        handled.entry(account).or_default().push(step);
    }
    listener.close()?;
    for (account, steps) in &handled {
        println!("  {account}: {}", steps.join(", "));
        if *steps != STEPS {
            return Err(format!("{account} is out of order").into());
        }
    }
    println!("Closed in this order: {}", last.join(", "));
    Ok(store.close()?)
}
