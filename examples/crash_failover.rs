//! Kills the primary of three nodes again and again, has one of the replicas take over each time, and checks
//! that nothing that any primary acknowledged is missing on any node.
//!
//! This program is the one who decides which node is the primary: it chooses the terms, fences two of the
//! three nodes, and promotes the one that has more. The nodes are processes (`crash_node`), and
//! `crash_verify` is the judge. `.ci/failover` runs it.

mod crash;
#[path = "crash/network.rs"]
mod network;
#[path = "crash/process.rs"]
mod process;

use crash::Random;
use network::{NODES, Network};
use process::{PATIENCE, Process, Record};
use std::error::Error;
use std::fmt;
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

const USAGE: &str = "\
usage: crash_failover DIR [OPTION]...

  --failovers N               primaries to be killed (25)
  --seed S                    repeats the choices of an earlier run (1)
  --network proxy|namespaces  what partitions are made of (proxy); namespaces are for one who is root in
                              a network namespace and a mount namespace of its own";
/// After so many failovers everything is verified.
const VERIFIED_EVERY: u64 = 10;
/// After so many failovers the next primary is cut off rather than killed.
const PARTITIONED_EVERY: u64 = 7;
/// In so many failovers everything happens that can.
const OFTEN: u64 = 50;
/// So many messages are acknowledged before a primary is lost, as a rule.
const LOAD: u64 = 30;
/// Nobody listens there.
const NOBODY: &str = "127.0.0.1:1";

type Failure = Box<dyn Error + Send + Sync>;

struct Options {
    dir: PathBuf,
    failovers: u64,
    seed: u64,
    namespaces: bool,
}

fn main() -> ExitCode {
    let Some(options) = parse() else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("crash_failover: seed {}: {error}", options.seed);
            ExitCode::FAILURE
        }
    }
}

fn parse() -> Option<Options> {
    let mut args = std::env::args_os().skip(1);
    let dir = args.next().filter(|dir| !dir.as_encoded_bytes().starts_with(b"-"))?.into();
    let mut options = Options { dir, failovers: 25, seed: 1, namespaces: false };
    while let Some(name) = args.next() {
        let value = args.next()?.into_string().ok()?;
        match name.to_str()? {
            "--failovers" => options.failovers = value.parse().ok().filter(|n| *n > 0)?,
            "--seed" => options.seed = value.parse().ok()?,
            "--network" if value == "proxy" => options.namespaces = false,
            "--network" if value == "namespaces" => options.namespaces = true,
            _ => return None,
        }
    }
    Some(options)
}

fn run(options: &Options) -> Result<(), Failure> {
    std::fs::create_dir_all(&options.dir)?;
    let network = if options.namespaces { Network::namespaces()? } else { Network::proxy()? };
    let acks = options.dir.join("acks");
    let record = Record::new(OpenOptions::new().create_new(true).append(true).open(&acks)?);
    let mut cluster = Cluster {
        dir: options.dir.clone(),
        programs: std::env::current_exe()?.parent().ok_or("no directory")?.to_owned(),
        seed: options.seed,
        acks,
        network,
        record: Arc::new(Mutex::new(record)),
        random: Random(options.seed),
        nodes: [const { None }; NODES],
        asleep: [false; NODES],
        office: None,
        term: 0,
        counts: Counts::default(),
    };
    cluster.fail_over()?;
    for done in 1..=options.failovers {
        cluster.lose_primary()?;
        if done % PARTITIONED_EVERY == 0 || done == options.failovers {
            cluster.partition()?;
        }
        if done % VERIFIED_EVERY == 0 || done == options.failovers {
            cluster.verify()?;
            println!("crash_failover: {done} of {}: {cluster}", options.failovers);
            cluster.fail_over()?;
        }
    }
    let happened = cluster.record().cuts > 0 && cluster.counts.killed_in_promotion > 0;
    if options.failovers >= OFTEN && !happened {
        return Err("no log was ever cut, or nobody was killed in promotion".into());
    }
    Ok(())
}

/// Who is the primary, and where it listens.
#[derive(Clone)]
struct Office {
    node: usize,
    address: String,
}

/// When a partition ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Healed {
    /// As soon as the replicas are fenced: what they acknowledged before still arrives.
    AtOnce,
    /// Before another primary is promoted, but too late for that.
    Unheard,
    /// When another primary is at work.
    TooLate,
}

#[derive(Default)]
struct Counts {
    primaries_killed: u64,
    replicas_killed: u64,
    killed_catching_up: u64,
    killed_in_promotion: u64,
    promotions: u64,
    partitions: u64,
    refused_fences: u64,
    verified: u64,
}

struct Cluster {
    dir: PathBuf,
    programs: PathBuf,
    seed: u64,
    acks: PathBuf,
    network: Network,
    record: Arc<Mutex<Record>>,
    random: Random,
    /// Those that run.
    nodes: [Option<Process>; NODES],
    /// Those that were stopped, and know nothing of what happens.
    asleep: [bool; NODES],
    office: Option<Office>,
    term: u64,
    counts: Counts,
}

impl fmt::Display for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (counts, record) = (&self.counts, self.record());
        write!(
            f,
            "{} primaries and {} replicas killed, {} coming back, {} in promotion; {} promotions, {} fences \
             repeated, {} partitions, {} logs cut, {} begun anew; {} acknowledged ({} late), {} unsure, {} refused; {} \
             verdicts",
            counts.primaries_killed,
            counts.replicas_killed,
            counts.killed_catching_up,
            counts.killed_in_promotion,
            counts.promotions,
            counts.refused_fences,
            counts.partitions,
            record.cuts,
            record.restarts,
            record.acked,
            record.late,
            record.unsure,
            record.refused,
            counts.verified,
        )
    }
}

impl Cluster {
    fn record(&self) -> MutexGuard<'_, Record> {
        process::lock(&self.record)
    }

    fn node(&mut self, node: usize) -> Result<&mut Process, Failure> {
        self.nodes[node].as_mut().ok_or_else(|| format!("node {node} does not run").into())
    }

    fn ask(&mut self, node: usize, command: &str) -> Result<Vec<String>, Failure> {
        let answer = self.node(node)?.ask(command);
        Ok(answer.map_err(|error| format!("node {node}: {error}"))?)
    }

    /// Waits for what other processes do: it must come to pass, however long that takes.
    fn eventually(
        &mut self,
        what: &str,
        mut is_so: impl FnMut(&mut Self) -> Result<bool, Failure>,
    ) -> Result<(), Failure> {
        let started = Instant::now();
        while !is_so(self)? {
            self.check()?;
            if started.elapsed() > PATIENCE {
                return Err(format!("not so after {PATIENCE:?}: {what}").into());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        self.check()
    }

    fn check(&self) -> Result<(), Failure> {
        match self.record().wrong.first() {
            Some(wrong) => Err(wrong.clone().into()),
            None => Ok(()),
        }
    }

    /// Lets things happen for a while.
    fn pass(&mut self, max: u64) {
        std::thread::sleep(Duration::from_millis(self.random.below(max + 1)));
    }

    fn primary(&self) -> Result<usize, Failure> {
        Ok(self.office.as_ref().ok_or("there is no primary")?.node)
    }

    fn start(&mut self, node: usize) -> Result<(), Failure> {
        let mut command = self.network.command(node, &self.programs.join("crash_node"));
        command.arg(self.dir.join(format!("node-{node}"))).arg((node + 1).to_string());
        command.args(["--listen", &self.network.ip(node), "--seed", &self.seed.to_string()]);
        let errors = self.dir.join(format!("node-{node}.err"));
        let errors = OpenOptions::new().create(true).append(true).open(errors)?;
        self.nodes[node] = Some(Process::start(command, errors, self.record.clone())?);
        Ok(())
    }

    /// Lets a node run that does not, as a replica of nobody for now.
    fn wake(&mut self, node: usize) -> Result<(), Failure> {
        if std::mem::take(&mut self.asleep[node]) {
            self.node(node)?.signal("CONT")?;
        }
        if self.nodes[node].is_none() {
            self.start(node)?;
            let command = self.following(node, None);
            self.ask(node, &command)?;
        }
        Ok(())
    }

    /// Lets a node run and follow the primary, and kills it now and then while it gets there.
    fn come_back(&mut self, node: usize) -> Result<(), Failure> {
        self.start(node)?;
        while self.random.one_in(4) {
            let command = self.following(node, self.office.clone().as_ref());
            self.node(node)?.tell(&command)?;
            self.pass(30);
            self.kill(node)?;
            self.counts.killed_catching_up += 1;
            self.start(node)?;
        }
        self.follow(node)
    }

    fn follow(&mut self, node: usize) -> Result<(), Failure> {
        let command = self.following(node, self.office.clone().as_ref());
        self.ask(node, &command).map(drop)
    }

    /// What has a node follow the primary, or nobody.
    fn following(&mut self, node: usize, office: Option<&Office>) -> String {
        let address = match office {
            Some(office) => self.network.way(node, office.node, &office.address),
            None => NOBODY.to_owned(),
        };
        let flush = self.random.choose(&["sync", "async"]);
        format!("follow {address} {flush}")
    }

    fn put_to_sleep(&mut self, node: usize) -> Result<(), Failure> {
        self.asleep[node] = true;
        self.node(node)?.signal("STOP")
    }

    fn kill(&mut self, node: usize) -> Result<(), Failure> {
        self.asleep[node] = false;
        let process = self.nodes[node].take().ok_or("it does not run")?;
        Ok(process.kill().map_err(|error| format!("node {node}: {error}"))?)
    }

    fn await_load(&mut self, messages: u64) -> Result<(), Failure> {
        let (term, before) = (self.term, self.record().acked_in(self.term));
        self.eventually("messages are acknowledged", |cluster| {
            Ok(cluster.record().acked_in(term) >= before + messages)
        })
    }

    /// Kills the primary, and perhaps others before; another one takes over.
    fn lose_primary(&mut self) -> Result<(), Failure> {
        let primary = self.primary()?;
        // Now and then at once: while the others still catch up, or have not even connected.
        if self.random.one_in(4) {
            self.pass(30);
        } else {
            self.await_load(LOAD)?;
            self.pass(150);
        }
        let others = others(primary);
        let replica = self.random.choose(&others);
        if self.nodes[replica].is_some() {
            match self.random.below(7) {
                0 => {
                    self.kill(replica)?;
                    self.counts.replicas_killed += 1;
                    self.pass(100);
                }
                1 => {
                    self.kill(replica)?;
                    self.counts.replicas_killed += 1;
                    self.pass(100);
                    self.come_back(replica)?;
                    self.pass(20);
                }
                2 => {
                    self.put_to_sleep(replica)?;
                    self.pass(100);
                }
                3 => {
                    // What is put now stays on the primary.
                    for other in others {
                        if self.nodes[other].is_some() {
                            self.put_to_sleep(other)?;
                        }
                    }
                    self.pass(100);
                }
                _ => {}
            }
        }
        self.kill(primary)?;
        self.counts.primaries_killed += 1;
        self.office = None;
        self.fail_over()?;
        // Whoever is dead comes back, as a rule at once.
        for node in 0..NODES {
            if self.nodes[node].is_none() && !self.random.one_in(3) {
                self.come_back(node)?;
            }
        }
        Ok(())
    }

    /// Makes one of the nodes the primary, and lets those that run follow it.
    fn fail_over(&mut self) -> Result<(), Failure> {
        loop {
            let asked = self.two_of_three();
            let chosen = self.fence(asked)?;
            if self.term > 1 && self.random.one_in(6) {
                let command = self.promotion();
                self.node(chosen)?.tell(&command)?;
                self.pass(4);
                self.kill(chosen)?;
                self.counts.killed_in_promotion += 1;
                continue;
            }
            return self.promote(chosen);
        }
    }

    /// What was confirmed is on two of three nodes: whichever two are asked, one of them has it.
    fn two_of_three(&mut self) -> [usize; 2] {
        let away = self.random.below(NODES as u64) as usize;
        // As a rule those that run.
        let dead = (0..NODES).find(|node| self.nodes[*node].is_none());
        let away = if self.random.one_in(4) { away } else { dead.unwrap_or(away) };
        others(away)
    }

    /// Fences two nodes with the next term, and says which of them has more.
    fn fence(&mut self, nodes: [usize; 2]) -> Result<usize, Failure> {
        let started = Instant::now();
        loop {
            self.term += 1;
            let mut standings = Vec::new();
            for node in nodes {
                self.wake(node)?;
                match self.ask(node, &format!("fence {}", self.term)) {
                    Ok(said) => standings.push((numbers(&said)?, node)),
                    // It opens its store anew: what comes of the promise is not known, so the next one is
                    // another.
                    Err(error) if started.elapsed() > PATIENCE => return Err(error),
                    Err(_) => {}
                }
            }
            if standings.len() < nodes.len() {
                self.counts.refused_fences += 1;
                continue;
            }
            let end = standings.iter().map(|standing| standing.0[1]).max().unwrap_or(0);
            self.record().fence(self.term, end);
            self.check()?;
            return Ok(standings.into_iter().max().ok_or("nobody was asked")?.1);
        }
    }

    fn promotion(&mut self) -> String {
        let level = self.random.choose(&["durable", "memory"]);
        let when = self.random.choose(&["strict", "always"]);
        format!("promote {} {level} {when}", self.term)
    }

    /// Makes a node that was fenced the primary, and lets the others follow it, but for one that is cut off.
    fn promote(&mut self, node: usize) -> Result<(), Failure> {
        let command = self.promotion();
        let address = self.ask(node, &command)?.concat();
        self.counts.promotions += 1;
        let cut_off = self.office.replace(Office { node, address }).map(|office| office.node);
        let size = self.random.choose(&[0, 100, 100, 1000, 1000, 10_000, 20_000]);
        self.ask(node, &format!("put {size}"))?;
        for other in others(node) {
            if self.nodes[other].is_some() && Some(other) != cut_off {
                self.wake(other)?;
                self.follow(other)?;
            }
        }
        Ok(())
    }

    /// Cuts the primary off, has another one take over meanwhile, and lets the old one come back.
    fn partition(&mut self) -> Result<(), Failure> {
        let (old, term) = (self.primary()?, self.term);
        let others = others(old);
        for other in others {
            self.wake(other)?;
            self.follow(other)?;
        }
        self.await_load(LOAD)?;
        let cut = self.cut_off(old)?;
        self.counts.partitions += 1;
        self.pass(300);
        let chosen = self.fence(others)?;
        // Whoever sleeps puts nothing until it is woken.
        let healed = match self.asleep[old] {
            true => self.random.choose(&[Healed::AtOnce, Healed::TooLate]),
            false => self.random.choose(&[Healed::AtOnce, Healed::Unheard, Healed::TooLate]),
        };
        let failed = self.record().failed_in(term);
        let in_vain = |cluster: &mut Self| {
            cluster.eventually("a put to the old primary does not succeed", |cluster| {
                Ok(cluster.record().failed_in(term) > failed)
            })
        };
        if healed == Healed::AtOnce {
            self.heal(&cut)?;
            self.wake(old)?;
        }
        if !self.asleep[old] {
            in_vain(self)?;
        }
        if healed == Healed::Unheard {
            self.heal(&cut)?;
        }
        if healed != Healed::TooLate {
            self.eventually("the old primary hears that its term is over", |cluster| {
                Ok(cluster.ask(old, "state")?[0] == "0")
            })?;
        }
        self.promote(chosen)?;
        self.await_load(LOAD)?;
        if healed == Healed::TooLate {
            self.heal(&cut)?;
            self.wake(old)?;
            in_vain(self)?;
        }
        if self.random.one_in(2) {
            return self.follow(old);
        }
        self.kill(old)?;
        self.counts.primaries_killed += 1;
        self.come_back(old)
    }

    /// Lets a primary and its replicas hear nothing of each other, or one side of the other; or the primary
    /// do nothing for a while. Which directions are cut.
    fn cut_off(&mut self, primary: usize) -> Result<Vec<(usize, usize)>, Failure> {
        let [one, other] = others(primary);
        let (from, to) = ([(primary, one), (primary, other)], [(one, primary), (other, primary)]);
        let (first, last) = match self.random.below(5) {
            0 => (vec![], from.to_vec()),
            1 => (vec![], to.to_vec()),
            2 => (vec![], [from, to].concat()),
            3 => (vec![from[0], to[0]], vec![from[1], to[1]]),
            _ => {
                self.put_to_sleep(primary)?;
                return Ok(vec![]);
            }
        };
        first.iter().try_for_each(|(from, to)| self.network.cut(*from, *to))?;
        if !first.is_empty() {
            // One replica is enough.
            self.await_load(LOAD)?;
        }
        last.iter().try_for_each(|(from, to)| self.network.cut(*from, *to))?;
        Ok([first, last].concat())
    }

    fn heal(&self, cut: &[(usize, usize)]) -> Result<(), Failure> {
        cut.iter().try_for_each(|(from, to)| self.network.heal(*from, *to))
    }

    /// Lets everyone catch up, ends all nodes, and has their stores judged.
    fn verify(&mut self) -> Result<(), Failure> {
        let primary = self.primary()?;
        for other in others(primary) {
            if self.nodes[other].is_none() {
                self.come_back(other)?;
            }
        }
        let end = self.ask(primary, "pause")?.concat();
        let wanted = ["1".to_owned(), end.clone(), end];
        for node in 0..NODES {
            self.eventually("all nodes have everything", |cluster| {
                Ok(cluster.ask(node, "state")? == wanted)
            })?;
        }
        for node in 0..NODES {
            if self.random.one_in(2) {
                self.kill(node)?;
            } else {
                self.ask(node, "close")?;
                let process = self.nodes[node].take().ok_or("it does not run")?;
                process.end().map_err(|error| format!("node {node}: {error}"))?;
            }
        }
        self.office = None;
        self.record().flush()?;
        let dirs = [0, 1, 2].map(|node| self.dir.join(format!("node-{node}")));
        self.judge(&dirs[1], &[])?;
        self.judge(&dirs[2], &[])?;
        self.judge(&dirs[0], &dirs[1..])
    }

    fn judge(&mut self, dir: &Path, like: &[PathBuf]) -> Result<(), Failure> {
        let mut command = Command::new(self.programs.join("crash_verify"));
        command.args([dir, &self.acks]).args(["--seed", &self.seed.to_string()]);
        for other in like {
            command.arg("--like").arg(other);
        }
        let output = command.output()?;
        self.counts.verified += 1;
        let said =
            String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        let acked = format!("\"acked\":{},", self.record().acked);
        if output.status.success() && said.contains(&acked) {
            return Ok(());
        }
        Err(format!("{}: {}", dir.display(), said.trim()).into())
    }
}

fn others(than: usize) -> [usize; 2] {
    [(than + 1) % NODES, (than + 2) % NODES]
}

fn numbers(words: &[String]) -> Result<Vec<u64>, Failure> {
    Ok(words.iter().map(|word| word.parse()).collect::<Result<_, _>>()?)
}
