//! The threads of a store: named, joined, and asleep when there is nothing to do. A binary of its own:
//! it looks at all threads of the process.

#[path = "support/sim.rs"]
mod sim;
#[path = "support/temp.rs"]
mod temp;

use duralog::replication::{ReplicaBehaviour, ScriptedReplica};
use duralog::{Environment, FlushMode, Message, Store, StoreConfig};
use sim::{eventually, put};
use std::collections::BTreeMap;
use std::fs;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use temp::TempDir;

/// One store at a time: the names do not tell stores apart.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Names of this process's threads that belong to a store, with what each has used so far. The system
/// keeps 15 characters of a name.
fn threads() -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for task in fs::read_dir("/proc/self/task").expect("the threads").flatten() {
        // A thread may end while it is looked at.
        let Ok(name) = fs::read_to_string(task.path().join("comm")) else { continue };
        let Ok(stat) = fs::read_to_string(task.path().join("stat")) else { continue };
        let Ok(status) = fs::read_to_string(task.path().join("status")) else { continue };
        let name = name.trim().to_owned();
        if !name.starts_with("duralog") {
            continue;
        }
        // Ticks in user and kernel mode are the 14th and 15th field, the name being the second.
        let behind = stat.rsplit_once(')').expect("a name in parentheses").1;
        let ticks: Vec<&str> = behind.split_whitespace().skip(11).take(2).collect();
        let switches: Vec<&str> =
            status.lines().filter(|line| line.contains("ctxt_switches")).collect();
        let before = found.insert(name.clone(), format!("{ticks:?} {switches:?}"));
        assert!(before.is_none(), "two threads are called {name}");
    }
    found
}

fn names() -> Vec<String> {
    threads().into_keys().collect()
}

const ALL: [&str; 5] =
    ["duralog-checkpo", "duralog-deadlin", "duralog-dispatc", "duralog-sync", "duralog-upkeep"];

fn config(dir: &TempDir, mode: FlushMode) -> StoreConfig {
    StoreConfig::new(dir.path()).segment_size(1 << 20).flush_mode(mode)
}

fn modes() -> [FlushMode; 2] {
    [FlushMode::sync(), FlushMode::async_default()]
}

/// A joined thread may be listed a moment longer.
fn none_left() {
    eventually("all threads are gone", || names().is_empty());
}

#[test]
fn threads_are_named_and_joined_on_close() {
    let _alone = alone();
    for mode in modes() {
        none_left();
        let dir = TempDir::new();
        let store = Store::open(config(&dir, mode)).expect("the store opens");
        // A new thread takes a moment to name itself.
        eventually("all threads are there", || names() == ALL);
        put(&store, 0);
        assert_eq!(names(), ALL);
        store.close().expect("the store closes");
        none_left();
    }
}

#[test]
fn threads_are_joined_when_the_last_handle_goes() {
    let _alone = alone();
    none_left();
    let dir = TempDir::new();
    let store = Store::open(config(&dir, FlushMode::sync())).expect("the store opens");
    let clone = store.clone();
    drop(store);
    eventually("all threads are there", || names() == ALL);
    put(&clone, 0);
    drop(clone);
    none_left();
}

#[test]
fn a_read_only_store_has_no_threads() {
    let _alone = alone();
    none_left();
    let dir = TempDir::new();
    let store = Store::open(config(&dir, FlushMode::sync())).expect("the store opens");
    put(&store, 0);
    store.close().expect("the store closes");
    none_left();
    let store = Store::open(config(&dir, FlushMode::sync()).read_only(true)).expect("it opens");
    assert_eq!(store.get("orders", 0, 0, 1).expect("readable").messages.len(), 1);
    assert_eq!(names(), [""; 0]);
}

#[test]
fn an_open_that_fails_leaves_no_thread_behind() {
    let _alone = alone();
    none_left();
    let disk = sim::disk();
    disk.put_file("/store/commitlog/00000000000000000000", &[7; 4096]).expect("there is room");
    disk.put_file("/store/commitlog/00000000000000008192", &[7; 4096]).expect("there is room");
    assert!(sim::try_open(&disk, sim::config()).is_err());
    disk.put_file("/other/lock", b"").expect("there is room");
    disk.hold_lock("/other/lock", 1).expect("it is there");
    let mut held = sim::config();
    held.log.dir = "/other".into();
    assert!(sim::try_open(&disk, held).is_err());
    none_left();
}

#[test]
fn an_idle_store_uses_no_cpu() {
    let _alone = alone();
    for mode in modes() {
        none_left();
        let dir = TempDir::new();
        let store = Store::open(config(&dir, mode)).expect("the store opens");
        for id in 0..200 {
            put(&store, id);
        }
        let message = Message::new("orders", "awaited");
        assert!(store.submit(&message).expect("accepted").wait().expect("no failure").ok().is_ok());
        // Whatever puts have left to do ends; from then on no thread is so much as woken.
        eventually("a second passes in which no thread runs", || {
            let before = threads();
            std::thread::sleep(Duration::from_secs(1));
            before == threads() && before.len() == ALL.len()
        });
        store.close().expect("the store closes");
    }
}

#[test]
fn an_idle_replicated_store_uses_no_cpu() {
    let _alone = alone();
    none_left();
    let dir = TempDir::new();
    let replica = ScriptedReplica::new(ReplicaBehaviour::Confirm { delay: Duration::ZERO });
    let config = config(&dir, FlushMode::sync());
    let store = Store::open_replicated(config, Environment::default(), replica).expect("it opens");
    for id in 0..50 {
        put(&store, id);
    }
    eventually("a second passes in which no thread runs", || {
        let before = threads();
        std::thread::sleep(Duration::from_secs(1));
        before == threads()
    });
    store.close().expect("the store closes");
    none_left();
}
