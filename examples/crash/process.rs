//! A node that runs as a process of its own, and what all of them have said.

use super::Failure;
use super::crash::{self, Ack};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Longer than anything takes on a machine that is busy, too.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What the nodes have said of their messages.
pub struct Record {
    acks: BufWriter<File>,
    pub acked: u64,
    /// Stored, but not confirmed in time.
    pub unsure: u64,
    pub refused: u64,
    /// Logs that were cut, and such as were begun anew.
    pub cuts: u64,
    pub restarts: u64,
    /// Acknowledged after the replicas were fenced, but confirmed before.
    pub late: u64,
    /// By term: how many, and the last one's physical offset.
    acked_in: BTreeMap<u64, (u64, u64)>,
    /// By term: puts that were not `PutOk`.
    failed_in: BTreeMap<u64, u64>,
    /// By term: nothing of an older one can be confirmed behind this offset.
    fences: BTreeMap<u64, u64>,
    pub wrong: Vec<String>,
}

impl Record {
    pub fn new(acks: File) -> Self {
        Self {
            acks: BufWriter::new(acks),
            acked: 0,
            unsure: 0,
            refused: 0,
            cuts: 0,
            restarts: 0,
            late: 0,
            acked_in: BTreeMap::new(),
            failed_in: BTreeMap::new(),
            fences: BTreeMap::new(),
            wrong: Vec::new(),
        }
    }

    pub fn acked_in(&self, term: u64) -> u64 {
        self.acked_in.get(&term).map_or(0, |acked| acked.0)
    }

    pub fn failed_in(&self, term: u64) -> u64 {
        self.failed_in.get(&term).copied().unwrap_or(0)
    }

    /// Enough nodes were fenced with `term`, and `end` is the most that one of them holds.
    pub fn fence(&mut self, term: u64, end: u64) {
        self.fences.insert(term, end);
        for (older, (_, last)) in self.acked_in.range(..term) {
            if *last >= end {
                self.wrong.push(format!(
                    "term {older}: a message at {last} was acknowledged, and those who were fenced with \
                     {term} end at {end}"
                ));
            }
        }
    }

    pub fn flush(&mut self) -> std::io::Result<()> {
        self.acks.flush()
    }

    fn hear(&mut self, line: &str) -> std::io::Result<()> {
        if let Some(ack) = Ack::parse(line) {
            let (term, at) = (crash::run_of(ack.seq), ack.physical_offset);
            self.acked += 1;
            let (acked, last) = self.acked_in.entry(term).or_default();
            (*acked, *last) = (*acked + 1, at.max(*last));
            if let Some(end) = self.fences.range(term + 1..).map(|fence| *fence.1).min() {
                self.late += 1;
                if at >= end {
                    self.wrong.push(format!("{line} in term {term}, which was fenced at {end}"));
                }
            }
            return writeln!(self.acks, "{line}");
        }
        let mut words = line.split(' ');
        let (what, seq) = (words.next(), words.nth(1).and_then(|seq| seq.parse().ok()));
        match what {
            Some("UNSURE") => self.unsure += 1,
            Some("REFUSED") => self.refused += 1,
            Some("CUT") => self.cuts += 1,
            Some("RESTARTED") => self.restarts += 1,
            _ => self.wrong.push(format!("a node said {line}")),
        }
        if let Some(seq) = seq {
            *self.failed_in.entry(crash::run_of(seq)).or_default() += 1;
        }
        Ok(())
    }
}

/// The record, which is only added to: whoever panicked meanwhile left it whole.
pub fn lock(record: &Mutex<Record>) -> MutexGuard<'_, Record> {
    record.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A running node, which is killed when nobody holds it any more.
pub struct Process {
    child: Child,
    commands: Option<ChildStdin>,
    answers: Receiver<String>,
    listener: Option<JoinHandle<std::io::Result<()>>>,
}

impl Process {
    pub fn start(
        mut command: Command,
        errors: File,
        record: Arc<Mutex<Record>>,
    ) -> Result<Self, Failure> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(errors);
        let mut child = command.spawn()?;
        let commands = child.stdin.take();
        let said = child.stdout.take().ok_or("no standard output")?;
        let (answer, answers) = channel();
        let listener = Some(std::thread::spawn(move || listen(said, &record, &answer)));
        Ok(Self { child, commands, answers, listener })
    }

    /// Says what is to be done, and does not wait for it.
    pub fn tell(&mut self, command: &str) -> Result<(), Failure> {
        let commands = self.commands.as_mut().ok_or("it is about to end")?;
        Ok(commands.write_all(format!("{command}\n").as_bytes())?)
    }

    /// Has something done, and waits for the answer.
    pub fn ask(&mut self, command: &str) -> Result<Vec<String>, Failure> {
        self.tell(command)?;
        let answer = self.answers.recv_timeout(PATIENCE);
        let answer = answer.map_err(|error| format!("no answer to {command}: {error}"))?;
        match answer.strip_prefix("OK ") {
            Some(answer) => Ok(answer.split(' ').map(str::to_owned).collect()),
            None => Err(answer.into()),
        }
    }

    /// Sends it a signal that it does not notice.
    pub fn signal(&self, signal: &str) -> Result<(), Failure> {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill").args(["-s", signal, &pid]).status()?;
        if sent.success() { Ok(()) } else { Err(format!("kill: {sent}").into()) }
    }

    /// Kills it; everything that it said before was heard on return.
    pub fn kill(mut self) -> Result<(), Failure> {
        if let Some(status) = self.child.try_wait()? {
            return Err(format!("it had ended by itself: {status}").into());
        }
        self.child.kill()?;
        self.child.wait()?;
        self.hear_the_rest()
    }

    /// Lets it end, when it has been told to close its store.
    pub fn end(mut self) -> Result<(), Failure> {
        drop(self.commands.take());
        let status = self.child.wait()?;
        self.hear_the_rest()?;
        if status.success() { Ok(()) } else { Err(format!("it ended with {status}").into()) }
    }

    fn hear_the_rest(&mut self) -> Result<(), Failure> {
        let listener = self.listener.take().ok_or("nobody listens")?;
        Ok(listener.join().map_err(|_| "the listener panicked")??)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Also one that was stopped, and would not notice that this program has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Hears what a node says until it is gone. A last line that it did not live to finish does not count.
fn listen(
    said: ChildStdout,
    record: &Mutex<Record>,
    answers: &Sender<String>,
) -> std::io::Result<()> {
    let mut said = BufReader::new(said);
    let mut line = String::new();
    while said.read_line(&mut line)? > 0 {
        if let Some(line) = line.strip_suffix('\n') {
            if line.starts_with("OK") || line.starts_with("ERR") {
                // Nobody waits for what was killed.
                let _ = answers.send(line.to_owned());
            } else {
                lock(record).hear(line)?;
            }
        }
        line.clear();
    }
    Ok(())
}
