//! The first steps: open a store, put messages, read them, close, and find them again.

use duralog::{Message, Result, Store, StoreConfig};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let outcome = match args.as_slice() {
        [] => {
            let dir = std::env::temp_dir().join(format!("quickstart-{}", std::process::id()));
            let outcome = quickstart(&dir);
            // It was only a demonstration, nobody misses it.
            let _ = std::fs::remove_dir_all(&dir);
            outcome
        }
        [dir] if !dir.as_os_str().as_encoded_bytes().starts_with(b"-") => quickstart(dir),
        _ => {
            eprintln!("usage: quickstart [DIR]");
            return ExitCode::from(2);
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("quickstart: {error}");
            ExitCode::FAILURE
        }
    }
}

fn quickstart(dir: &Path) -> Result<()> {
    // Log files of 16 MiB will do here; the default is 1 GiB.
    let config = StoreConfig::new(dir).segment_size(16 << 20);

    println!("Opening a store in {}", dir.display());
    let store = Store::open(config.clone())?;

    println!("Putting five messages to two topics:");
    for (topic, tag, body) in [
        ("orders", "placed", "two teapots for Ada"),
        ("orders", "placed", "a samovar for Grace"),
        ("payments", "card", "Ada paid 42.00"),
        ("orders", "sent", "two teapots to Ada"),
        ("payments", "cash", "Grace paid 99.00"),
    ] {
        // `put` returns once the message would survive a power cut; `ok` turns anything less, such
        // as a disk that does not answer in time, into an error.
        let put = store.put(Message::new(topic, body).tag(tag).key("demo"))?;
        println!("  {topic}/{}: {}", put.queue_offset, put.status);
        put.ok()?;
    }

    println!("Reading them back:");
    print_topic(&store, "orders")?;
    print_topic(&store, "payments")?;

    println!("Closing, and opening the same directory again:");
    store.close()?;
    let store = Store::open(config)?;
    print_topic(&store, "orders")?;
    print_topic(&store, "payments")?;
    store.close()
}

/// Prints what queue 0 of `topic` holds. A topic may have many queues; messages that name none go
/// to this one.
fn print_topic(store: &Store, topic: &str) -> Result<()> {
    let mut offset = store.min_offset(topic, 0).unwrap_or(0);
    loop {
        let fetched = store.get(topic, 0, offset, 32)?;
        for message in &fetched.messages {
            let text = String::from_utf8_lossy(&message.body);
            println!(
                "  {topic}/{}: [{}] {text}",
                message.queue_offset,
                message.tags().unwrap_or("-")
            );
        }
        if fetched.next_offset >= fetched.max_offset {
            return Ok(());
        }
        offset = fetched.next_offset;
    }
}
