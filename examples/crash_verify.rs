//! Says whether a store that `crash_writer` filled, and that was killed at any moment, kept what it
//! had acknowledged; or one of those that `crash_failover` had its nodes fill.
//!
//! It recovers the store as any program would, reads every message through the consume queues, holds
//! it against the acknowledgements and against what the writer must have written, and compares the
//! queues with the log; and the log, byte by byte, with those of other nodes, which must be closed. It prints
//! one line of JSON; problems go to standard error one by one.

mod crash;

use crash::{Ack, Identity};
use duralog::log::CommitLog;
use duralog::{Error, LogConfig, MessageView, Result, Store, StoreConfig, TagFilter};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

const USAGE: &str = "usage: crash_verify DIR ACKS_FILE [--seed S] [--like DIR]...";
/// More problems than this are counted but not described.
const DESCRIBED: usize = 20;
/// Messages fetched at a time.
const FETCH: usize = 256;

fn main() -> ExitCode {
    let Some(options) = parse() else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    match verify(&options) {
        Ok(verdict) => {
            println!("{verdict}");
            if verdict.problems() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("crash_verify: {error}");
            ExitCode::FAILURE
        }
    }
}

struct Options {
    dir: PathBuf,
    acks: PathBuf,
    seed: u64,
    /// Directories that must hold the same log.
    like: Vec<PathBuf>,
}

fn parse() -> Option<Options> {
    let mut args = std::env::args_os().skip(1);
    let mut path = || args.next().filter(|arg| !arg.as_encoded_bytes().starts_with(b"-"));
    let (dir, acks) = (path()?.into(), path()?.into());
    let mut options = Options { dir, acks, seed: 1, like: Vec::new() };
    while let Some(name) = args.next() {
        let value = args.next()?;
        match name.to_str()? {
            "--seed" => options.seed = value.to_str()?.parse().ok()?,
            "--like" => options.like.push(value.into()),
            _ => return None,
        }
    }
    Some(options)
}

/// What came out.
#[derive(Debug, Default)]
struct Verdict {
    acked: usize,
    found: usize,
    /// Thread and seq of messages that are not there, or not in their queue: acknowledged ones, and
    /// such as later ones prove to have been there.
    lost: HashSet<(u64, u64)>,
    /// Damaged records and queue entries, and messages that are not what was written.
    corrupt: HashSet<String>,
    /// Messages that are there a second time.
    duplicate: usize,
    /// Messages that nobody wrote, or that had been cut off and came back.
    invented: usize,
    /// Queue offsets without a message.
    holes: u64,
    /// Other nodes that hold another log.
    unlike: usize,
    cut_bytes: u64,
    recovery: Duration,
}

impl Verdict {
    fn problems(&self) -> usize {
        let holes = usize::try_from(self.holes).unwrap_or(usize::MAX);
        self.lost.len() + self.corrupt.len() + self.duplicate + self.invented + holes + self.unlike
    }

    fn lost(&mut self, (thread, seq): (u64, u64), what: impl fmt::Display) {
        if !self.lost.contains(&(thread, seq)) {
            self.describe("lost", format_args!("thread {thread}, seq {seq}: {what}"));
            self.lost.insert((thread, seq));
        }
    }

    /// Counts the same damage once, however often it is met.
    fn corrupt(&mut self, what: String) {
        if !self.corrupt.contains(&what) {
            self.describe("corrupt", &what);
            self.corrupt.insert(what);
        }
    }

    fn duplicate(&mut self, what: impl fmt::Display) {
        self.describe("duplicate", what);
        self.duplicate += 1;
    }

    fn invented(&mut self, what: impl fmt::Display) {
        self.describe("invented", what);
        self.invented += 1;
    }

    fn holes(&mut self, count: u64, topic: &str, queue_id: i32, before: u64) {
        if count > 0 {
            self.describe("holes", format_args!("{count} before {topic}/{queue_id}/{before}"));
            self.holes += count;
        }
    }

    fn unlike(&mut self, what: impl fmt::Display) {
        self.describe("unlike", what);
        self.unlike += 1;
    }

    fn describe(&self, kind: &str, what: impl fmt::Display) {
        if self.problems() < DESCRIBED {
            eprintln!("crash_verify: {kind}: {what}");
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { acked, found, duplicate, invented, holes, unlike, cut_bytes, .. } = self;
        let (lost, corrupt) = (self.lost.len(), self.corrupt.len());
        write!(f, r#"{{"acked":{acked},"found":{found},"lost":{lost},"corrupt":{corrupt},"#)?;
        write!(f, r#""duplicate":{duplicate},"invented":{invented},"holes":{holes},"#)?;
        write!(
            f,
            r#""unlike":{unlike},"cut_bytes":{cut_bytes},"recovery_ms":{}}}"#,
            self.recovery.as_millis()
        )
    }
}

/// Where a message was found in the queues, and which it is.
#[derive(Debug, PartialEq, Eq)]
struct Found {
    topic: String,
    queue_id: i32,
    queue_offset: u64,
    thread: u64,
    seq: u64,
}

/// What the queues lead to, by physical offset.
type Messages = BTreeMap<u64, Found>;

fn verify(options: &Options) -> Result<Verdict, Box<dyn std::error::Error>> {
    let Options { dir, seed, .. } = options;
    let acks = read_acks(&options.acks)?;
    if !dir.join("commitlog").is_dir() {
        return Err(format!("{} holds no store", dir.display()).into());
    }
    let started = Instant::now();
    let store = Store::open(StoreConfig::new(dir))?;
    let mut verdict = Verdict {
        acked: acks.len(),
        cut_bytes: store.recovery().cut_bytes(),
        recovery: started.elapsed(),
        ..Verdict::default()
    };
    let messages = read_queues(&store, *seed, &mut verdict)?;
    check_acks(&acks, &messages, &mut verdict);
    for damage in store.verify()?.damage {
        verdict.corrupt(damage.to_string());
    }
    store.close()?;
    check_log(dir, &messages, &mut verdict)?;
    for other in &options.like {
        compare_logs(dir, other, &mut verdict)?;
    }
    Ok(verdict)
}

/// The acknowledgements; a last line that the writer did not live to finish does not count.
fn read_acks(path: &Path) -> Result<Vec<Ack>, Box<dyn std::error::Error>> {
    let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
    let complete = text.rfind('\n').map_or("", |end| &text[..end]);
    let parse = |(i, line)| {
        Ack::parse(line).ok_or_else(|| format!("{}:{}: not an ACK line", path.display(), i + 1))
    };
    Ok(complete.lines().enumerate().map(parse).collect::<Result<_, _>>()?)
}

/// Reads every queue from offset 0 to its end.
fn read_queues(store: &Store, seed: u64, verdict: &mut Verdict) -> Result<Messages> {
    let mut messages = Messages::new();
    let mut identities = HashSet::new();
    for (topic, queue_ids) in store.topics() {
        for queue_id in queue_ids {
            let end = store.max_offset(&topic, queue_id).unwrap_or(0);
            let mut next = 0;
            while next < end {
                let first = next.max(store.min_offset(&topic, queue_id).unwrap_or(0));
                let fetched =
                    match store.get_view(&topic, queue_id, first, FETCH, &TagFilter::any()) {
                        Ok(fetched) => fetched,
                        Err(damage @ Error::Corrupt { .. }) => {
                            verdict.corrupt(damage.to_string());
                            next = first + 1;
                            continue;
                        }
                        Err(error) => return Err(error),
                    };
                for message in &fetched.messages {
                    let offset = message.queue_offset();
                    verdict.holes(offset - next, &topic, queue_id, offset);
                    next = offset + 1;
                    if let Some(found) = judge(message, seed, verdict) {
                        if !identities.insert((found.thread, found.seq)) {
                            verdict.duplicate(format_args!("{found:?}"));
                        }
                        messages.insert(message.physical_offset(), found);
                    }
                }
                let looked_at =
                    fetched.next_offset.max(next + u64::from(fetched.messages.is_empty()));
                verdict.holes(looked_at - next, &topic, queue_id, looked_at);
                next = looked_at;
            }
        }
    }
    verdict.found = identities.len();
    Ok(messages)
}

/// Holds a message against the only one that may have its identity.
fn judge(message: &MessageView, seed: u64, verdict: &mut Verdict) -> Option<Found> {
    let record = message.record();
    let (topic, queue_id) = (record.topic(), record.queue_id());
    let Some(identity) = Identity::of(&record) else {
        verdict.invented(place(message));
        return None;
    };
    let written = identity.message(seed, topic, queue_id);
    let written_properties = written.properties_ref().as_bytes();
    if record.body() != written.body() || record.properties().as_bytes() != written_properties {
        verdict.corrupt(format!("{}: not what was written as {identity:?}", place(message)));
    }
    let (topic, queue_offset) = (topic.to_owned(), message.queue_offset());
    Some(Found { topic, queue_id, queue_offset, thread: identity.thread, seq: identity.seq })
}

fn place(message: &MessageView) -> String {
    let (record, offset) = (message.record(), message.queue_offset());
    let at = message.physical_offset();
    format!("{}/{}/{offset} at {at}", record.topic(), record.queue_id())
}

fn check_acks(acks: &[Ack], messages: &Messages, verdict: &mut Verdict) {
    for ack in acks {
        let Ack { topic, queue_id, queue_offset, physical_offset, thread, seq } = ack;
        let promised = Found {
            topic: topic.clone(),
            queue_id: *queue_id,
            queue_offset: *queue_offset,
            thread: *thread,
            seq: *seq,
        };
        match messages.get(physical_offset) {
            Some(found) if *found == promised => {}
            Some(other) => verdict.lost((*thread, *seq), format_args!("{ack}, where {other:?} is")),
            None => verdict.lost((*thread, *seq), format_args!("{ack}, where nothing is")),
        }
    }
}

/// Walks the log from its first record to its last and compares it with what the queues lead to.
fn check_log(dir: &Path, messages: &Messages, verdict: &mut Verdict) -> Result<()> {
    let log = open_log(dir)?;
    let mut walk = Walk { messages, verdict, queued: 0, run: 0, next: HashMap::new() };
    let mut start = Some(log.min_offset());
    while let Some(at) = start.take() {
        let mut records = log.records(at);
        while let Some(record) = records.next() {
            match record {
                Ok(message) => walk.visit(&message),
                Err(damage) => {
                    walk.verdict.corrupt(damage.to_string());
                    // The queues know where the next one is.
                    start = messages.range(records.offset() + 1..).map(|next| *next.0).next();
                }
            }
        }
    }
    for _ in walk.queued..messages.len() {
        walk.verdict.invented("a message is in the queues, but not in the log");
    }
    log.close()
}

fn open_log(dir: &Path) -> Result<CommitLog> {
    let mut config = LogConfig::new(dir);
    config.read_only = true;
    CommitLog::open(config)
}

/// Compares the files of two logs, up to where the logs end.
fn compare_logs(
    dir: &Path,
    other: &Path,
    verdict: &mut Verdict,
) -> Result<(), Box<dyn std::error::Error>> {
    let logs = [open_log(dir)?, open_log(other)?];
    let [ours, theirs] = logs.each_ref().map(|log| log.min_offset()..log.watermarks().durable);
    if ours != theirs {
        verdict.unlike(format_args!("{} holds {theirs:?}, and not {ours:?}", other.display()));
    }
    let mut at = ours.start.max(theirs.start);
    while at < ours.end.min(theirs.end) {
        let name = format!("commitlog/{at:020}");
        let read = |dir: &Path| std::fs::read(dir.join(&name));
        let (mut one, mut two) = (read(dir)?, read(other)?);
        let size = one.len() as u64;
        let used = (ours.end.min(theirs.end) - at).min(size) as usize;
        one.truncate(used);
        two.truncate(used);
        if one != two {
            let first = one.iter().zip(&two).position(|(a, b)| a != b);
            let at = at + first.unwrap_or(one.len().min(two.len())) as u64;
            verdict.unlike(format_args!("{} differs at {at}", other.display()));
            break;
        }
        at += size;
    }
    Ok(logs.iter().try_for_each(CommitLog::close)?)
}

/// A walk through the log.
struct Walk<'a> {
    messages: &'a Messages,
    verdict: &'a mut Verdict,
    /// Messages that are in the queues as well.
    queued: usize,
    /// The youngest run so far.
    run: u64,
    /// What a thread put next.
    next: HashMap<u64, u64>,
}

impl Walk<'_> {
    fn visit(&mut self, message: &MessageView) {
        let record = message.record();
        let Some(Identity { thread, seq, .. }) = Identity::of(&record) else {
            return self.verdict.invented(place(message));
        };
        let claimed = (record.topic(), record.queue_id(), message.queue_offset());
        match self.messages.get(&message.physical_offset()) {
            Some(found) if (&*found.topic, found.queue_id, found.queue_offset) == claimed => {
                self.queued += 1;
            }
            _ => {
                let place = place(message);
                self.verdict.lost((thread, seq), format_args!("{place} is not in its queue"));
            }
        }
        let run = crash::run_of(seq);
        if run < self.run {
            // It had been cut off when the younger run began to write.
            return self.verdict.invented(format_args!("{} came back", place(message)));
        }
        self.run = run;
        // A thread puts one message after the other, so one that is missing in between was lost,
        // even if its acknowledgement was never seen.
        let expected = self.next.get(&thread).copied().unwrap_or(0).max(crash::first_seq(run));
        if expected < seq {
            self.verdict.lost((thread, expected), format_args!("missing at {}", place(message)));
        }
        self.next.insert(thread, seq + 1);
    }
}
