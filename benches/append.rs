//! Async flush: how fast puts reach the page cache.
//!
//! *Cold* is a new store: the first pass over segments that were allocated and never written, beside
//! the ceiling that copies into a fresh mapping. *Warm* is a pass over segments that were written
//! before: a log never goes back by itself, so between two passes the benchmark fills the segments
//! with zeros, in place, and removes everything else. What opens then is an empty log in files whose
//! blocks are written and whose pages are in the page cache; beside it stands the ceiling that copies
//! into a mapping of which every page was touched. Only the page tables are new each time, as they
//! are in a service that starts again.
//!
//! The background sync of async flush runs in all of them; the ceiling has none.

mod common;

use common::{Beside, Case, KIB, MIB, Scratch, Suite, is_smoke_test, put_all};
use criterion::Throughput;
use duralog::{FlushMode, Store, StoreConfig};
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

/// Records of one pass, so that it stays in one segment and no second one is being prepared.
const PASS: u64 = 400 * MIB;
/// More than the header, topic, properties and checksum of a record here.
const OVERHEAD: u64 = 160;

fn main() {
    let mut suite = Suite::new("append");
    for (size, label) in [(100, "100B"), (KIB, "1KiB"), (16 * KIB, "16KiB")] {
        for threads in [1, 2, 4] {
            cold(&mut suite, size, label, threads);
            warm(&mut suite, size, label, threads);
        }
    }
    suite.finish();
}

fn cold(suite: &mut Suite, size: usize, label: &str, threads: usize) {
    let args = format!("async --secs 1 --size {size} --threads {threads}");
    let case = case(format!("{label}/{threads}-threads/cold"), args, size);
    let most = case.most;
    suite.measure(case, |count| {
        in_passes(count, most, |count| {
            let scratch = Scratch::new("append");
            pass(scratch.path(), threads, size, count)
        })
    });
}

fn warm(suite: &mut Suite, size: usize, label: &str, threads: usize) {
    let args = |kind| format!("{kind} --secs 1 --size {size} --threads {threads}");
    let mut case = case(format!("{label}/{threads}-threads/warm"), args("warm"), size);
    // Also beside the one that `cold` is divided by: pages that are there already are a head start.
    case.beside.push(beside(args("async")));
    let (most, first) = (case.most, if is_smoke_test() { case.smoke } else { case.most });
    let mut written: Option<Scratch> = None;
    suite.measure(case, |count| {
        let scratch = written.get_or_insert_with(|| {
            let scratch = Scratch::new("append");
            pass(scratch.path(), threads, size, first);
            scratch
        });
        in_passes(count, most, |count| {
            rewind(scratch.path());
            pass(scratch.path(), threads, size, count)
        })
    });
}

/// Splits `count` so that no pass gets more than `most`.
fn in_passes(count: u64, most: u64, mut pass: impl FnMut(u64) -> Duration) -> Duration {
    let starts = (0..count).step_by(most as usize);
    starts.map(|start| pass(most.min(count - start))).sum()
}

fn case(name: String, args: String, size: usize) -> Case {
    Case {
        name,
        throughput: Throughput::Elements(1),
        work: 1e-3,
        unit: "k/s",
        smoke: 1000,
        most: PASS / (size as u64 + OVERHEAD),
        beside: vec![beside(args)],
    }
}

fn beside(args: String) -> Beside {
    Beside { args, figure: |ceiling| ceiling.per_second / 1e3 }
}

fn pass(dir: &Path, threads: usize, size: usize, count: u64) -> Duration {
    let config = StoreConfig::new(dir).flush_mode(FlushMode::async_default());
    let store = Store::open(config).expect("opens");
    let took = put_all(&store, threads, size, count);
    store.close().expect("closes");
    took
}

/// Makes an empty log of one that was written, in the same blocks.
fn rewind(dir: &Path) {
    let zeros = vec![0; MIB as usize];
    for segment in fs::read_dir(dir.join("commitlog")).expect("a log") {
        let segment = segment.expect("a segment").path();
        let file = OpenOptions::new().read(true).write(true).open(segment).expect("opens");
        let mut found = zeros.clone();
        for at in (0..file.metadata().expect("a length").len()).step_by(zeros.len()) {
            let got = file.read_at(&mut found, at).expect("readable");
            if found[..got] == zeros[..got] {
                break;
            }
            file.write_all_at(&zeros[..got], at).expect("written");
        }
        file.sync_all().expect("synced");
    }
    for rest in ["duralog", "consumequeue"] {
        fs::remove_dir_all(dir.join(rest)).expect("removed");
    }
}
