//! Follows a RocketMQ master, 4.9 or 5: keeps its log in a directory byte for byte, and the queues with
//! it. Says about once a second how it gets on; what it holds then is durable. It goes on where it was
//! when it is run again, killed or not.
//!
//! `dump DIR` prints the messages, also meanwhile; RocketMQ itself opens the directory, too.

use duralog::StoreConfig;
use duralog::replication::{NodeId, NodeOptions, Replica, ReplicaOptions, ReplicaState};
use std::error::Error;
use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::Duration;

const USAGE: &str = "\
usage: replica_follow ADDR DIR [OPTION]...

  ADDR                  host:port of the master: its haListenPort, as a rule 10912
  --segment-size BYTES  the master's mappedFileSizeCommitLog (1073741824)
  --for SECONDS         stop after so long instead of at the end of input";

const PERIOD: Duration = Duration::from_secs(1);

struct Options {
    address: String,
    dir: PathBuf,
    segment_size: u64,
    time: Option<Duration>,
}

fn main() -> ExitCode {
    let Some(options) = parse() else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    match follow(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("replica_follow: {error}");
            ExitCode::FAILURE
        }
    }
}

fn parse() -> Option<Options> {
    let mut args = std::env::args_os().skip(1);
    let is_value = |word: &OsString| !word.as_encoded_bytes().starts_with(b"-");
    let mut options = Options {
        address: args.next().filter(is_value)?.into_string().ok()?,
        dir: args.next().filter(is_value)?.into(),
        segment_size: 1 << 30,
        time: None,
    };
    while let Some(name) = args.next() {
        let value = args.next()?.into_string().ok()?;
        match name.to_str()? {
            "--segment-size" => options.segment_size = value.parse().ok()?,
            "--for" => options.time = Some(Duration::from_secs(value.parse().ok()?)),
            _ => return None,
        }
    }
    Some(options)
}

fn follow(options: &Options) -> Result<(), Box<dyn Error>> {
    let config = StoreConfig::new(&options.dir).segment_size(options.segment_size);
    let node = NodeOptions::new(NodeId(1));
    let following = ReplicaOptions::new(node, &options.address).of_rocketmq();
    let replica = Replica::open(config, following)?;
    let ended = end(options.time);
    let mut said = say(&options.address, &replica.state());
    while said.is_ok() && ended.recv_timeout(PERIOD) == Err(RecvTimeoutError::Timeout) {
        said = say(&options.address, &replica.state());
    }
    // Whatever became of the reader of the lines.
    replica.close()?;
    match said {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// Disconnects when it is time to stop.
fn end(time: Option<Duration>) -> Receiver<()> {
    let (end, ended) = mpsc::channel();
    thread::spawn(move || {
        match time {
            Some(time) => thread::sleep(time),
            // An input that cannot be read has ended, too.
            None => drop(io::copy(&mut io::stdin(), &mut io::sink())),
        }
        drop(end);
    });
    ended
}

fn say(address: &str, state: &ReplicaState) -> io::Result<()> {
    let ReplicaState { durable, confirmed, .. } = state;
    let how = match &state.last_error {
        _ if state.following => format!("following {address}"),
        Some(error) => format!("not following {address}: {error}"),
        None => format!("connecting to {address}"),
    };
    writeln!(io::stdout(), "durable {durable}, confirmed {confirmed}, {how}")
}
