//! Kills a process again and again that has producers, transactions and consumers on one store, lets the last
//! one finish, and checks what became of every message.
//!
//! ```sh
//! cargo run --release --example crash_delivery -- DIR              # 200 kills, some two minutes
//! cargo run --release --example crash_delivery -- DIR --judge      # judge once more what lies there
//! ```
//!
//! Whatever a call has returned is written to `DIR/diary` by the process that made it, in one `write`, before it
//! goes on: that survives a kill. What must have become of a message follows from its id. The judge, and the
//! rules that it goes by, are in `crash/judge.rs`.

mod crash;
#[path = "crash/diary.rs"]
mod diary;
#[path = "crash/judge.rs"]
mod judge;
#[path = "crash/plan.rs"]
mod plan;
#[path = "crash/service.rs"]
mod service;

use crash::Random;
use diary::{Diary, Said};
use duralog::FlushMode;
use service::{Orders, Task};
use std::error::Error;
use std::fs::File;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, ExitStatus};
use std::time::{Duration, Instant};

const USAGE: &str = "\
usage: crash_delivery DIR [OPTION]...

  --kills N          processes to be killed (200)
  --seconds S        how long they live in all (100)
  --seed S           repeats the choices of an earlier run, as far as time can be repeated (1)
  --judge            judges what an earlier run has left in DIR

What it starts, and kills, is itself:

  --life N           the process is the Nth one
  --flush sync|async
  --close MS         closes the store after so long
  --drain            sends nothing, and ends when all is handled";
/// Longer than anything takes on a machine that is busy, too.
const PATIENCE: Duration = Duration::from_secs(300);
/// With so many kills everything happens that can.
const OFTEN: u64 = 100;

type Failure = Box<dyn Error + Send + Sync>;

struct Options {
    dir: PathBuf,
    kills: u64,
    seconds: u64,
    seed: u64,
    role: Role,
}

enum Role {
    Drive,
    Judge,
    Serve { life: u64, flush: FlushMode, task: Task },
}

fn main() -> ExitCode {
    let Some(options) = parse() else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let outcome = match options.role {
        Role::Drive => drive(&options).and_then(|()| judge(&options)),
        Role::Judge => judge(&options),
        Role::Serve { life, flush, task } => {
            service::run(&options.dir, &Orders { seed: options.seed, life, flush, task })
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("crash_delivery: {error}");
            ExitCode::FAILURE
        }
    }
}

fn parse() -> Option<Options> {
    let mut args = std::env::args_os().skip(1);
    let dir = args.next().filter(|dir| !dir.as_encoded_bytes().starts_with(b"-"))?.into();
    let mut options = Options { dir, kills: 200, seconds: 100, seed: 1, role: Role::Drive };
    let (mut life, mut flush, mut task) = (None, FlushMode::sync(), Task::Work);
    while let Some(name) = args.next() {
        let mut value = || args.next()?.into_string().ok();
        match name.to_str()? {
            "--kills" => options.kills = value()?.parse().ok().filter(|n| *n > 0)?,
            "--seconds" => options.seconds = value()?.parse().ok().filter(|n| *n > 0)?,
            "--seed" => options.seed = value()?.parse().ok()?,
            "--judge" => options.role = Role::Judge,
            "--life" => life = Some(value()?.parse().ok()?),
            "--flush" => {
                flush = match value()?.as_str() {
                    "sync" => FlushMode::sync(),
                    "async" => FlushMode::async_default(),
                    _ => return None,
                }
            }
            "--close" => task = Task::Close(Duration::from_millis(value()?.parse().ok()?)),
            "--drain" => task = Task::Drain,
            _ => return None,
        }
    }
    if let Some(life) = life {
        options.role = Role::Serve { life, flush, task };
    }
    Some(options)
}

/// What a process was at when it was killed.
#[derive(Debug, Default)]
struct Moments {
    early: u64,
    opening: u64,
    starting: u64,
    working: u64,
    closing: u64,
}

struct Driver<'a> {
    options: &'a Options,
    diary: Diary,
    random: Random,
    life: u64,
    moments: Moments,
}

fn drive(options: &Options) -> Result<(), Failure> {
    std::fs::create_dir_all(&options.dir)?;
    let path = options.dir.join("diary");
    let diary = Diary::open(&path, true).map_err(|error| match error.kind() {
        ErrorKind::AlreadyExists => {
            format!("{} is of an earlier run: name another DIR, or judge it", path.display()).into()
        }
        _ => Failure::from(error),
    })?;
    diary.say(&Said::Seed(options.seed))?;
    let (random, moments) = (Random(options.seed), Moments::default());
    let mut driver = Driver { options, diary, random, life: 0, moments };
    while driver.kills() < options.kills {
        driver.live()?;
    }
    driver.drain()?;
    let Moments { early, opening, starting, working, closing } = driver.moments;
    println!(
        "crash_delivery: {} kills: {early} before the store was opened, {opening} while it was, {starting} \
         before work began, {working} at work, {closing} while it closed",
        options.kills
    );
    if options.kills >= OFTEN && [opening, starting, working, closing].contains(&0) {
        return Err("nobody was killed at one of these moments".into());
    }
    Ok(())
}

impl Driver<'_> {
    fn kills(&self) -> u64 {
        let Moments { early, opening, starting, working, closing } = &self.moments;
        early + opening + starting + working + closing
    }

    /// Starts a process, and kills it unless it ends before as it was told to.
    fn live(&mut self) -> Result<(), Failure> {
        // A part of them does not live to open the store.
        let mean = self.options.seconds * 1000 / self.options.kills;
        let age = match self.random.one_in(4) {
            true => self.random.below(40),
            false => self.random.below(2 * mean + mean / 2),
        };
        // As a rule it is at that when it is killed.
        let close = self.random.one_in(6).then(|| age.saturating_sub(self.random.below(300)));
        let close = close.map(|close| ["--close".to_owned(), close.to_string()]);
        let from = self.diary.end()?;
        let mut child = Process(self.start(close.as_ref().map_or(&[], |close| close))?);
        std::thread::sleep(Duration::from_millis(age));
        if let Some(status) = child.0.try_wait()? {
            return self.ended(from, status, close.is_some());
        }
        child.0.kill()?;
        let status = child.0.wait()?;
        if status.code().is_some() {
            // It was faster.
            return self.ended(from, status, close.is_some());
        }
        let said = self.diary.mend(from)?;
        self.diary.say(&Said::Killed)?;
        let moments = &mut self.moments;
        let is_open = |said: &Said| matches!(said, Said::Open(_));
        *match () {
            () if said.contains(&Said::Closing) => &mut moments.closing,
            () if said.contains(&Said::Ready) => &mut moments.working,
            () if said.iter().any(is_open) => &mut moments.starting,
            () if said.contains(&Said::Opening) => &mut moments.opening,
            () => &mut moments.early,
        } += 1;
        Ok(())
    }

    fn ended(&mut self, from: u64, status: ExitStatus, may_end: bool) -> Result<(), Failure> {
        self.diary.mend(from)?;
        if !status.success() || !may_end {
            let errors = self.options.dir.join("errors").display().to_string();
            return Err(
                format!("life {} ended by itself: {status}; see {errors}", self.life).into()
            );
        }
        Ok(self.diary.say(&Said::Ended)?)
    }

    fn start(&mut self, task: &[String]) -> Result<Child, Failure> {
        self.life += 1;
        self.diary.say(&Said::Life(self.life))?;
        let flush = self.random.choose(&["sync", "sync", "async"]);
        let errors = self.options.dir.join("errors");
        let errors = File::options().create(true).append(true).open(errors)?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(&self.options.dir).args(["--life", &self.life.to_string(), "--flush", flush]);
        command.args(["--seed", &self.options.seed.to_string()]).args(task).stderr(errors);
        Ok(command.spawn()?)
    }

    /// Lets a last process do what is left to do.
    fn drain(&mut self) -> Result<(), Failure> {
        let (from, started) = (self.diary.end()?, Instant::now());
        let mut child = Process(self.start(&["--drain".to_owned()])?);
        while started.elapsed() < PATIENCE {
            if let Some(status) = child.0.try_wait()? {
                return self.ended(from, status, true);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Err(format!("not all was handled after {PATIENCE:?}").into())
    }
}

/// A process that does not outlive the driver.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn judge(options: &Options) -> Result<(), Failure> {
    let said = diary::read(&std::fs::read_to_string(options.dir.join("diary"))?)?;
    let Some(Said::Seed(seed)) = said.first() else { return Err("no seed in the diary".into()) };
    if !said.contains(&Said::Drained) {
        return Err("nobody saw to it that all was handled".into());
    }
    let verdict = judge::judge(service::config(&options.dir, *seed), *seed, &said)?;
    verdict.to_string().lines().for_each(|line| println!("crash_delivery: {line}"));
    if verdict.problems > 0 {
        return Err(format!("{} problems, seed {seed}", verdict.problems).into());
    }
    let kinds = ["given again", "handled again", "delayed again", "dead", "parked", "in flight"];
    let kinds = kinds.into_iter().find(|kind| verdict.counted(kind) == 0);
    match kinds.filter(|_| verdict.counted("kills") >= OFTEN) {
        Some(kind) => Err(format!("there was nothing {kind}").into()),
        None => Ok(()),
    }
}
