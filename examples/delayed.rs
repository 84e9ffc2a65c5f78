//! Messages that are delivered later: by one of RocketMQ's levels, after a time, at a time, and one that
//! is taken back. Ends by itself after some seconds.
//!
//! ```sh
//! cargo run --release --example delayed
//! ```

use duralog::delivery::{Cancelled, DelayHandle};
use duralog::{Message, Store, StoreConfig};
use std::error::Error;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is after 1970");
    since.as_millis() as i64
}

fn main() -> ExitCode {
    if std::env::args_os().len() > 1 {
        eprintln!("usage: delayed");
        return ExitCode::from(2);
    }
    let dir = std::env::temp_dir().join(format!("duralog-delayed-{}", std::process::id()));
    let outcome = delayed(&dir);
    // It was only a demonstration, nobody misses it.
    let _ = std::fs::remove_dir_all(&dir);
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("delayed: {error}");
            ExitCode::FAILURE
        }
    }
}

fn delayed(dir: &Path) -> Result<(), Box<dyn Error>> {
    let config = StoreConfig::new(dir).segment_size(16 << 20);
    let store = Store::open(config.clone())?;
    let start = now_ms();
    let send = |body: &str, message: Message, due: i64| {
        let message = message.property("due", due.to_string());
        let (ticket, handle) = store.submit_delayed(message)?;
        ticket.wait()?.ok()?;
        println!("{:>5} ms  put {body:?}, due at {} ms", now_ms() - start, due - start);
        Ok::<_, duralog::Error>(handle)
    };
    let message = |body: &str| Message::new("orders", body);
    let body = "level 1: a second";
    send(body, message(body).delay_level(1), now_ms() + 1_000)?;
    let body = "after 250 ms";
    send(body, message(body).delay(Duration::from_millis(250)), now_ms() + 250)?;
    let (body, due) = ("at a time", start + 1_789);
    send(body, message(body).deliver_at(due), due)?;
    let (body, due) = ("never, for it is cancelled", start + 1_500);
    let handle = send(body, message(body).deliver_at(due), due)?;
    let (body, due) = ("after the store was closed and opened again", start + 3_000);
    send(body, message(body).deliver_at(due), due)?;

    // A handle is kept as text, wherever the application keeps such things.
    let text = handle.expect("it has a time of its own").to_string();
    let handle = DelayHandle::parse(&text).expect("it is one");
    let cancelled = store.cancel_delayed(&handle)?;
    println!("{:>5} ms  cancelled: {cancelled:?}", now_ms() - start);

    // Those that came, and whether they were due.
    let mut came: Vec<(String, bool)> = Vec::new();
    let mut show = |store: &Store, from: u64| {
        let found = store.get("orders", 0, from, 32)?;
        for message in &found.messages {
            let due: i64 = message.get("due").and_then(|due| due.parse().ok()).unwrap_or_default();
            let body = String::from_utf8_lossy(&message.body);
            let (at, late) = (message.store_timestamp - start, message.store_timestamp - due);
            println!("{at:>5} ms  {body:?} came, {late} ms after it was due");
            came.push((body.into_owned(), late >= 0));
        }
        Ok::<_, duralog::Error>(found.next_offset)
    };
    let mut next = 0;
    while next < 3 && store.wait_for("orders", 0, next, Duration::from_secs(5))? {
        next = show(&store, next)?;
    }
    store.close()?;
    drop(store);

    let store = Store::open(config)?;
    store.deliver_delayed()?;
    while next < 4 && store.wait_for("orders", 0, next, Duration::from_secs(5))? {
        next = show(&store, next)?;
    }
    println!("{:?}", store.delay_stats()?);
    store.close()?;

    // Each once and none too early, or this fails.
    if cancelled != Cancelled::InTime {
        return Err("this machine is too slow to cancel a message in time".into());
    }
    came.sort();
    let all = [
        "after 250 ms",
        "after the store was closed and opened again",
        "at a time",
        "level 1: a second",
    ];
    if came != all.map(|body| (body.to_owned(), true)) {
        return Err(format!("that should not be all that came when it was due: {came:?}").into());
    }
    Ok(())
}
