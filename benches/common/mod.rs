//! What the benchmarks share: scratch directories on the disk that the build lies on, messages, the
//! program in `benches/ceiling`, and the comparison with it.
//!
//! Every case is measured twice. Criterion gives its report and its plots. Then come five rounds of
//! `fdatasync`, ceiling and store, each straight after the other: the machine's mood changes within
//! minutes, and only figures of one minute can be divided by each other. A round whose bare fdatasync
//! takes more than twice the best of the day is void.

#![allow(dead_code, reason = "no benchmark needs all of it")]

use criterion::{BenchmarkId, Criterion, SamplingMode, Throughput};
use duralog::{FetchStatus, Message, Store, TagFilter};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Barrier;
use std::time::{Duration, Instant, SystemTime};

pub const KIB: usize = 1 << 10;
pub const MIB: u64 = 1 << 20;
pub const TOPIC: &str = "bench";

const ROUNDS: usize = 5;
/// How long a round of the store takes, about.
const ROUND_SECS: f64 = 1.0;
/// Stores up to this size are verified as a whole after each measurement.
const VERIFY_MAX: u64 = 32 * MIB;
/// Messages of each queue that are compared byte by byte.
const SAMPLES: u64 = 64;

/// Whether everything is only to be run once: `cargo bench -- --test`, or `cargo test --benches`.
pub fn is_smoke_test() -> bool {
    let has = |wanted: &str| std::env::args().any(|arg| arg == wanted);
    has("--test") || !has("--bench")
}

/// A directory beside the build, removed when dropped. Not in `/tmp`, which may be memory.
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new(name: &str) -> Self {
        let dir = beside_the_build().join(format!("{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).expect("a scratch directory");
        Self(dir)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn beside_the_build() -> &'static Path {
    Path::new(env!("CARGO_TARGET_TMPDIR"))
}

/// The ceiling's bodies: random, so that nothing below can compress them.
pub fn body(size: usize, seed: u64) -> Vec<u8> {
    let mut x = 0x9E37_79B9_7F4A_7C15u64 ^ (seed + 1);
    let step = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x as u8
    };
    std::iter::repeat_with(step).take(size).collect()
}

/// The message that a producer puts again and again, into a queue of its own.
pub fn message(producer: usize, size: usize) -> Message {
    Message::new(TOPIC, body(size, producer as u64)).queue(producer as i32)
}

/// Puts `count` messages from so many threads, and checks that they are there; how long the puts took.
pub fn put_all(store: &Store, threads: usize, size: usize, count: u64) -> Duration {
    let before: Vec<u64> = (0..threads).map(|producer| queue_len(store, producer)).collect();
    let share = |producer: usize| {
        let (threads, producer) = (threads as u64, producer as u64);
        count / threads + u64::from(producer < count % threads)
    };
    let ready = Barrier::new(threads);
    let produce = |producer: usize| {
        let message = message(producer, size);
        ready.wait();
        let started = Instant::now();
        for _ in 0..share(producer) {
            let put = store.put(&message).and_then(|put| put.ok());
            put.expect("every put is acknowledged");
        }
        (started, Instant::now())
    };
    let times: Vec<(Instant, Instant)> = std::thread::scope(|scope| {
        let produce = &produce;
        let producers: Vec<_> =
            (0..threads).map(|producer| scope.spawn(move || produce(producer))).collect();
        let joined = producers.into_iter().map(|producer| producer.join());
        joined.collect::<Result<_, _>>().expect("no producer gives up")
    });
    // Measured by those that put: a thread that only looks on may be late to see the beginning.
    let started = times.iter().map(|(started, _)| *started).min().expect("someone puts");
    let took = times.iter().map(|(_, ended)| *ended).max().expect("someone puts") - started;
    for (producer, before) in before.into_iter().enumerate() {
        assert_eq!(queue_len(store, producer), before + share(producer), "messages are missing");
        check_samples(store, producer, size, before);
    }
    check_all(store);
    took
}

pub fn queue_len(store: &Store, producer: usize) -> u64 {
    store.max_offset(TOPIC, producer as i32).unwrap_or(0)
}

/// Compares some messages of a queue, from one on, with what was put.
pub fn check_samples(store: &Store, producer: usize, size: usize, from: u64) {
    let (len, expected) = (queue_len(store, producer), body(size, producer as u64));
    for at in (from..len).step_by(((len - from) / SAMPLES).max(1) as usize) {
        let found = store.get_view(TOPIC, producer as i32, at, 1, &TagFilter::any());
        let found = found.expect("readable");
        assert_eq!(found.status, FetchStatus::Found);
        assert!(found.messages.iter().all(|view| view.body() == expected), "other bytes");
    }
}

/// Verifies every checksum and queue entry where that does not take too long.
fn check_all(store: &Store) {
    if store.stats().watermarks.appended <= VERIFY_MAX {
        let report = store.verify().expect("readable");
        assert!(report.is_ok(), "{:?}", report.damage);
    }
}

/// One line of the ceiling program, as far as it is used.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ceiling {
    pub per_second: f64,
    pub seconds: f64,
    pub p50_us: f64,
    pub mb_per_second: f64,
}

/// The ceiling to put beside a case.
pub struct Beside {
    pub args: String,
    /// The figure to divide by, in the unit of the case.
    pub figure: fn(Ceiling) -> f64,
}

/// One thing to measure.
pub struct Case {
    pub name: String,
    /// What criterion calls the work of one iteration.
    pub throughput: Throughput,
    /// The same in `unit`, for the table.
    pub work: f64,
    pub unit: &'static str,
    /// Iterations when everything is only run once.
    pub smoke: u64,
    /// Iterations of a round at most, should a second allow more.
    pub most: u64,
    /// What to divide by; one line of the table for each.
    pub beside: Vec<Beside>,
}

/// The benchmarks of one file: runs them and prints the table.
pub struct Suite {
    name: &'static str,
    criterion: Criterion,
    scratch: Scratch,
    program: Option<PathBuf>,
    smoke: bool,
    rows: Vec<Row>,
}

struct Row {
    name: String,
    unit: &'static str,
    /// Which ceiling.
    beside: String,
    rounds: Vec<Round>,
}

#[derive(Clone, Copy)]
struct Round {
    figure: f64,
    ceiling: f64,
    fdatasync_us: f64,
}

impl Suite {
    pub fn new(name: &'static str) -> Self {
        let criterion = Criterion::default()
            .sample_size(10)
            .warm_up_time(Duration::from_millis(300))
            .measurement_time(Duration::from_secs(2))
            .configure_from_args();
        let (scratch, smoke) = (Scratch::new(&format!("ceiling-{name}")), is_smoke_test());
        Self { name, criterion, scratch, program: None, smoke, rows: Vec::new() }
    }

    /// Measures `run`, which does so many iterations and says how long they took.
    pub fn measure(&mut self, case: Case, mut run: impl FnMut(u64) -> Duration) {
        // Criterion decides whether the case was asked for; then it is known how fast it is.
        let mut per_second = None;
        let mut group = self.criterion.benchmark_group(self.name);
        group.sampling_mode(SamplingMode::Flat).throughput(case.throughput.clone());
        group.bench_function(BenchmarkId::from_parameter(&case.name), |bencher| {
            bencher.iter_custom(|iterations| {
                let iterations = if self.smoke { case.smoke } else { iterations };
                let took = run(iterations);
                per_second = Some(iterations as f64 / took.as_secs_f64());
                took
            });
        });
        group.finish();
        let Some(per_second) = per_second.filter(|_| !self.smoke) else { return };
        let iterations = ((per_second * ROUND_SECS) as u64).clamp(1, case.most);
        let row = |beside: &Beside| {
            let kind = beside.args.split(' ').next().unwrap_or_default().to_owned();
            Row { name: case.name.clone(), unit: case.unit, beside: kind, rounds: Vec::new() }
        };
        let mut rows: Vec<Row> = case.beside.iter().map(row).collect();
        for _ in 0..ROUNDS {
            let fdatasync_us = self.ceiling("fdatasync --secs 0.3").p50_us;
            let of = |beside: &Beside| (beside.figure)(self.ceiling(&beside.args));
            let ceilings: Vec<f64> = case.beside.iter().map(of).collect();
            let figure = iterations as f64 * case.work / run(iterations).as_secs_f64();
            for (row, ceiling) in rows.iter_mut().zip(ceilings) {
                row.rounds.push(Round { figure, ceiling, fdatasync_us });
            }
        }
        self.rows.append(&mut rows);
    }

    /// Runs the ceiling program.
    fn ceiling(&mut self, args: &str) -> Ceiling {
        let program = self.program.get_or_insert_with(build_ceiling);
        let output = Command::new(program)
            .args(args.split_whitespace())
            .arg("--dir")
            .arg(self.scratch.path())
            .output()
            .expect("the ceiling program starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let mut ceiling = Ceiling::default();
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            let line: serde_json::Value = serde_json::from_str(line).expect("a line of JSON");
            let take = |into: &mut f64, name: &str| *into = line[name].as_f64().unwrap_or(*into);
            take(&mut ceiling.per_second, "per_s");
            take(&mut ceiling.seconds, "secs");
            take(&mut ceiling.p50_us, "p50_us");
            take(&mut ceiling.mb_per_second, "MBps");
        }
        ceiling
    }

    /// Ends the report and prints the table.
    pub fn finish(mut self) {
        self.criterion.final_summary();
        if self.smoke {
            // Most others fill half a gigabyte before they begin.
            self.ceiling("async --secs 0.1 --bytes 16777216");
        }
        if self.rows.is_empty() {
            return;
        }
        let moods = || self.rows.iter().flat_map(|row| &row.rounds).map(|round| round.fdatasync_us);
        let best = best_of_the_day(moods().fold(f64::INFINITY, f64::min));
        println!("\n{}: medians; best bare fdatasync of the day {best:.0} us", self.name);
        println!(
            "{:<34} {:>12} {:>12} {:<7} {:<9} {:>5}  fdatasync p50 in us, (void)",
            "case", "store", "ceiling", "", "beside", "ratio"
        );
        for row in &self.rows {
            row.print(best);
        }
    }
}

impl Row {
    fn print(&self, best: f64) {
        let is_void = |round: &Round| round.fdatasync_us > 2.0 * best;
        let mut valid: Vec<Round> =
            self.rounds.iter().filter(|round| !is_void(round)).copied().collect();
        let verdict = if valid.is_empty() { "all void, measure again" } else { "" };
        if valid.is_empty() {
            valid.clone_from(&self.rounds);
        }
        let median = |of: fn(&Round) -> f64| {
            let mut figures: Vec<f64> = valid.iter().map(of).collect();
            figures.sort_by(f64::total_cmp);
            figures[figures.len() / 2]
        };
        let (figure, ceiling) = (median(|round| round.figure), median(|round| round.ceiling));
        let moods = self.rounds.iter().map(|round| {
            let us = round.fdatasync_us;
            if is_void(round) { format!("({us:.0})") } else { format!("{us:.0}") }
        });
        println!(
            "{:<34} {:>12} {:>12} {:<7} {:<9} {:>5}  {} {verdict}",
            self.name,
            format!("{figure:.1}"),
            format!("{ceiling:.1}"),
            self.unit,
            self.beside,
            format!("{:.2}", figure / ceiling),
            moods.collect::<Vec<_>>().join(" "),
        );
    }
}

/// The fastest bare fdatasync of the last 24 hours, this run's included.
fn best_of_the_day(now: f64) -> f64 {
    let path = beside_the_build().join("fdatasync-best");
    let is_recent = |written: SystemTime| {
        written.elapsed().is_ok_and(|age| age < Duration::from_secs(24 * 3600))
    };
    let earlier =
        fs::metadata(&path).and_then(|file| file.modified()).ok().filter(|at| is_recent(*at));
    let earlier = earlier.and_then(|_| fs::read_to_string(&path).ok()?.trim().parse().ok());
    match earlier {
        Some(earlier) if earlier <= now => earlier,
        _ => {
            let _ = fs::write(&path, format!("{now}\n"));
            now
        }
    }
}

/// Builds `benches/ceiling`, a package of its own so that it stays as it was given.
fn build_ceiling() -> PathBuf {
    let target = beside_the_build().join("ceiling");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["build", "--quiet", "--release", "--locked", "--manifest-path"])
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/benches/ceiling/Cargo.toml"))
        .arg("--target-dir")
        .arg(&target)
        .status()
        .expect("cargo starts");
    assert!(status.success(), "benches/ceiling does not build");
    target.join("release/ceiling")
}
