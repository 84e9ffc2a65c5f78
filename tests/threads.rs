//! The threads of a store: named, joined, and asleep when there is nothing to do. A binary of its own:
//! it looks at all threads of the process.

#[path = "support/hooked.rs"]
mod hooked;
#[path = "support/sim.rs"]
mod sim;
#[path = "support/temp.rs"]
mod temp;

use duralog::delivery::{Handled, Received};
use duralog::disk::SimCall;
use duralog::replication::{ReplicaBehaviour, ScriptedReplica};
use duralog::{Environment, FlushMode, Message, Store, StoreConfig, TagFilter};
use hooked::{Hook, Hooked};
use sim::{LONG, eventually, put};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};
use std::{fs, io, thread};
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
fn threads_are_named_and_gone_after_close() {
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

/// Keeps threads of a store from ending: each waits, behind all that it does for the store, until
/// somebody waits for it, or until the store says that it is closed.
#[derive(Debug, Default)]
struct Lingering {
    state: Mutex<Ended>,
    moved: Condvar,
}

#[derive(Debug, Default)]
struct Ended {
    closed: bool,
    in_time: Vec<String>,
    late: Vec<String>,
}

/// What a thread leaves behind last.
struct Leaving(Arc<Lingering>);

impl Drop for Leaving {
    fn drop(&mut self) {
        let (give_up, mut joined) = (Instant::now() + LONG, false);
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        while !state.closed && !joined && Instant::now() < give_up {
            let moved = self.0.moved.wait_timeout(state, Duration::from_millis(1));
            state = moved.unwrap_or_else(PoisonError::into_inner).0;
            joined = is_joined();
        }
        let name = thread::current().name().unwrap_or_default().to_owned();
        if joined { state.in_time.push(name) } else { state.late.push(name) }
    }
}

/// Whether some thread of this process waits for the end of this one: in the system call that waits
/// for a word in memory to change, and that word is the number of this thread, which the system clears
/// when it is gone.
fn is_joined() -> bool {
    let me = fs::read_link("/proc/thread-self").expect("a link to this thread");
    let me: u64 = me.file_name().and_then(|id| id.to_str()?.parse().ok()).expect("its number");
    fs::read_dir("/proc/self/task").expect("the threads").flatten().any(|task| {
        let Ok(call) = fs::read_to_string(task.path().join("syscall")) else { return false };
        let expected = call.split(' ').nth(3).and_then(|word| word.strip_prefix("0x"));
        expected.and_then(|word| u64::from_str_radix(word, 16).ok()) == Some(me)
    })
}

thread_local! {
    static LEAVING: RefCell<Option<Leaving>> = const { RefCell::new(None) };
}

const WRITERS: [&str; 3] = ["duralog-sync", "duralog-upkeep", "duralog-checkpoint"];

#[derive(Debug)]
struct Planter(Arc<Lingering>);

impl Hook for Planter {
    fn before(&self, _: SimCall) -> io::Result<()> {
        // Of the five those that call the disk here. `duralog-close` has said all it has to say when
        // it ends, and nobody waits for that.
        if WRITERS.contains(&thread::current().name().unwrap_or_default()) {
            LEAVING.with_borrow_mut(|leaving| {
                leaving.get_or_insert_with(|| Leaving(self.0.clone()));
            });
        }
        Ok(())
    }
}

#[test]
fn closing_waits_for_the_end_of_its_threads() {
    let _alone = alone();
    for mode in modes() {
        let lingering = Arc::new(Lingering::default());
        let disk = Hooked::over(sim::disk().shared(), Arc::new(Planter(lingering.clone())));
        let mut config = sim::config().flush_mode(mode).segment_size(4096);
        config.queue_checkpoint_bytes = 4096;
        config.log.close_timeout = LONG;
        let store = Store::open_in(config, Environment::on(disk)).expect("the store opens");
        for id in 0..100 {
            put(&store, id);
        }
        // Under async flush entries wait for a sync, and the next put asks again.
        let mut more = 100..;
        eventually("all of them had something to do", || {
            put(&store, more.next().expect("there is no end"));
            store.stats().queues_durable > 0
        });
        store.close().expect("the store closes");
        let mut ended = lingering.state.lock().expect("nobody panics");
        ended.closed = true;
        lingering.moved.notify_all();
        drop(ended);
        none_left();
        let ended = lingering.state.lock().expect("nobody panics");
        assert_eq!(ended.late, [""; 0], "closed while they were running");
        for name in WRITERS {
            assert!(ended.in_time.iter().any(|ended| ended == name), "{name}: {ended:?}");
        }
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
fn an_idle_listener_uses_no_cpu() {
    let _alone = alone();
    none_left();
    let dir = TempDir::new();
    let store = Store::open(config(&dir, FlushMode::sync())).expect("the store opens");
    put(&store, 0);
    let (told, heard) = mpsc::channel();
    let builder = store.consumer("billing").subscribe(sim::TOPIC, TagFilter::any());
    let consumer = builder.open().expect("the consumer opens");
    let handle = move |_: &Received| {
        told.send(())?;
        Ok(Handled::Done)
    };
    // The names of two would be the same.
    let listener = consumer.listen(1, handle).expect("the listener starts");
    heard.recv_timeout(LONG).expect("it is handled");
    // Longer than whoever looks now and then would sleep.
    eventually("three seconds pass in which no thread runs", || {
        let before = threads();
        std::thread::sleep(Duration::from_secs(3));
        before == threads() && before.contains_key("duralog-consume")
    });
    // It is still awake to what comes.
    put(&store, 1);
    heard.recv_timeout(LONG).expect("it is handled");
    listener.close().expect("the listener ends");
    store.close().expect("the store closes");
    none_left();
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

#[test]
fn whoever_drops_the_last_handle_has_closed_the_store() {
    let _alone = alone();
    let disk = sim::disk();
    let open = || Store::open_in(sim::config(), Environment::on(disk.shared()));
    for round in 0..50 {
        let store = open().expect("the one before is closed");
        let producer = store.producer("service").open().expect("a producer");
        for delay in 0..10 {
            // The store's own thread is at work by the time it is dropped.
            let message = Message::new("orders", "x").queue(0).delay(Duration::from_millis(delay));
            drop(producer.send_async(message).expect("there is room"));
        }
        (0..round * 200).for_each(|_| thread::yield_now());
        drop((producer, store));
    }
    open().expect("the last one is closed").close().expect("it closes");
    none_left();
}
