//! The log alone, as a write-ahead log. Run it again: what it waited for is there.

use duralog::log::{CommitLog, GroupCommit, Patience};
use duralog::message::{Draft, Message};
use duralog::{LogConfig, Reached, Result};
use std::time::Duration;

const TIMEOUT: Duration = Duration::from_secs(5);

fn main() -> Result<()> {
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    let dir = match args.as_slice() {
        [] => std::env::temp_dir().join("duralog-wal"),
        [dir] if !dir.as_encoded_bytes().starts_with(b"-") => dir.into(),
        _ => {
            eprintln!("usage: wal [DIR]");
            std::process::exit(2);
        }
    };
    let log = CommitLog::open(LogConfig::new(dir).segment_size(1 << 20))?;
    let mut entries = 0;
    for record in log.records(log.min_offset()) {
        println!("replayed: {}", String::from_utf8_lossy(record?.body()));
        entries += 1;
    }
    log.continue_queue("wal", 0, entries);
    let commits = GroupCommit::start(&log, TIMEOUT)?;
    for change in ["balance += 10", "balance -= 3"] {
        let entry = Message::new("wal", change);
        let draft = Draft::new(&entry, log.layout())?;
        let appended = log.append(&[draft], Patience::For(TIMEOUT))?;
        // Any number of threads may wait here: one sync answers all of them.
        match commits.wait(&appended)? {
            Reached::Durable => println!("logged {change} as entry {}", appended.queue_offset),
            reached => println!("{change} is only {reached:?} yet: the disk is slow"),
        }
    }
    commits.stop()?;
    log.close()
}
