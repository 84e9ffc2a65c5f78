//! How long `Store::open` takes: after a kill with half a gigabyte that nothing says is durable, and
//! after a clean close, where the size of the store should not matter.
//!
//! The killed store is a copy of one that is open and whose sync is an hour away, so that all of it has
//! to be checked, written and synced again, and dispatched to its queues. Each open gets a new copy,
//! synced before the clock starts. Beside it stands the ceiling's pass over as many bytes, which checks
//! records of its own and makes them durable once more.

mod common;

use common::{
    Beside, Case, KIB, MIB, Scratch, Suite, TOPIC, check_samples, is_smoke_test, put_all, queue_len,
};
use criterion::Throughput;
use duralog::disk::{Allocation, HostDisk, SyncMethod};
use duralog::{FlushMode, Store, StoreConfig};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

const SIZE: usize = KIB;
/// What the ceiling recovers.
const CEILING_BYTES: f64 = 512.0 * MIB as f64;

fn main() {
    let mut suite = Suite::new("recovery");
    let full = if is_smoke_test() { 8 * MIB } else { 512 * MIB };
    killed(&mut suite, full);
    clean(&mut suite, "512MiB", full);
    clean(&mut suite, "64MiB", full / 8);
    suite.finish();
}

/// Puts about so many bytes of records; how many messages that were.
fn fill(store: &Store, bytes: u64) -> u64 {
    store.put(common::message(0, SIZE)).and_then(|put| put.ok()).expect("acknowledged");
    let record = store.stats().message_bytes;
    put_all(store, 1, SIZE, bytes / record);
    queue_len(store, 0)
}

fn config(dir: &Path) -> StoreConfig {
    StoreConfig::new(dir).flush_mode(FlushMode::async_default())
}

fn killed(suite: &mut Suite, bytes: u64) {
    let mut left = None;
    let case = Case {
        name: "killed/512MiB".to_owned(),
        throughput: Throughput::BytesDecimal(bytes),
        work: bytes as f64 / 1e6,
        unit: "MB/s",
        smoke: 1,
        most: 1,
        beside: vec![Beside {
            args: format!("recover --size {SIZE}"),
            figure: |ceiling| CEILING_BYTES / 1e6 / ceiling.seconds,
        }],
    };
    suite.measure(case, |count| {
        let left = left.get_or_insert_with(|| Killed::new(bytes));
        (0..count).map(|_| left.open_a_copy()).sum()
    });
}

/// A store that was never told that it ends.
struct Killed {
    scratch: Scratch,
    store: Store,
    messages: u64,
}

impl Killed {
    fn new(bytes: u64) -> Self {
        let scratch = Scratch::new("killed");
        let interval = Duration::from_secs(3600);
        let never = FlushMode::Async { interval, least_pages: 0, thorough_interval: interval };
        let store = Store::open(config(scratch.path()).flush_mode(never)).expect("opens");
        let messages = fill(&store, bytes);
        assert_eq!(store.stats().watermarks.durable, 0, "it was synced");
        Self { scratch, store, messages }
    }

    fn open_a_copy(&self) -> Duration {
        let copy = Scratch::new("killed-copy");
        let end = self.store.stats().watermarks.written;
        copy_store(self.scratch.path(), copy.path(), end);
        let started = Instant::now();
        let store = Store::open(config(copy.path())).expect("recovers");
        let took = started.elapsed();
        let report = store.recovery();
        assert!(report.unclean && report.cut.is_none(), "{report:?}");
        assert_eq!((report.scanned_bytes, report.rewritten_bytes), (end, end));
        check(&store, self.messages);
        took
    }
}

fn clean(suite: &mut Suite, label: &str, bytes: u64) {
    let mut closed = None;
    let case = Case {
        name: format!("clean/{label}"),
        throughput: Throughput::Elements(1),
        work: 1.0,
        unit: "opens/s",
        smoke: 1,
        most: 20,
        // A few of those is what an open has to do, however large the store is.
        beside: vec![Beside {
            args: "fdatasync --secs 0.3".to_owned(),
            figure: |ceiling| 1e6 / ceiling.p50_us,
        }],
    };
    suite.measure(case, |count| {
        let (scratch, messages) = closed.get_or_insert_with(|| {
            let scratch = Scratch::new("clean");
            let store = Store::open(config(scratch.path())).expect("opens");
            let messages = fill(&store, bytes);
            store.close().expect("closes");
            (scratch, messages)
        });
        let open = || {
            let started = Instant::now();
            let store = Store::open(config(scratch.path())).expect("opens");
            let took = started.elapsed();
            assert_eq!((store.recovery().scanned_bytes, store.recovery().unclean), (0, false));
            check(&store, *messages);
            store.close().expect("closes");
            took
        };
        (0..count).map(|_| open()).sum()
    });
}

fn check(store: &Store, messages: u64) {
    assert_eq!(store.max_offset(TOPIC, 0), Some(messages), "messages are missing");
    check_samples(store, 0, SIZE, 0);
}

/// Copies the files of a store whose log ends at `end`. What lies behind that is allocated but was
/// never written, there as here.
fn copy_store(from: &Path, to: &Path, end: u64) {
    let disk = HostDisk::shared();
    for entry in fs::read_dir(from).expect("a directory") {
        let from = entry.expect("an entry").path();
        let name = from.file_name().expect("a name");
        let to = to.join(name);
        if from.is_dir() {
            fs::create_dir(&to).expect("made");
            copy_store(&from, &to, end);
            continue;
        }
        let (old, len) = (File::open(&from).expect("opens"), from.metadata().expect("there").len());
        let is_segment = from.parent().is_some_and(|dir| dir.ends_with("commitlog"));
        let base = name.to_str().filter(|_| is_segment).and_then(|name| name.parse::<u64>().ok());
        let data = base.map_or(len, |base| end.saturating_sub(base).min(len));
        let kind = if is_segment { Allocation::Reserved } else { Allocation::Sparse };
        let new = disk.create(&to, len, kind).expect("made");
        let mut piece = vec![0; MIB as usize];
        for at in (0..data).step_by(piece.len()) {
            let wanted = (data - at).min(MIB) as usize;
            old.read_exact_at(&mut piece[..wanted], at).expect("read");
            // Queue files have holes.
            if piece[..wanted].iter().any(|byte| *byte != 0) {
                new.write_at(&piece[..wanted], at).expect("written");
            }
        }
        new.sync(SyncMethod::Fdatasync).expect("synced");
    }
}
