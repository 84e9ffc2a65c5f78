//! One store at a time, whoever else tries: this process, another one, or a Java broker.
#![allow(unsafe_code, reason = "a lock as Java takes it is one system call")]

#[path = "support/temp.rs"]
mod temp;

use duralog::{Error, Message, PutStatus, Store, StoreConfig, Visibility};
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use temp::TempDir;

/// Tells a copy of this program which directory to hold, and how.
const ROLE: &str = "DURALOG_TEST_ROLE";
const HELD: &str = "the lock is held";

fn config(dir: &Path) -> StoreConfig {
    StoreConfig::new(dir).segment_size(64 << 10)
}

/// The lock that Java's `FileChannel.lock` takes on the first byte; whether it was to be had.
fn lock_as_java(dir: &Path) -> Option<File> {
    let path = dir.join("lock");
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
    let file = file.expect("the lock file");
    // SAFETY: `flock` is plain data for which all zeros is a value.
    let mut range: libc::flock = unsafe { std::mem::zeroed() };
    range.l_type = libc::F_WRLCK as libc::c_short;
    range.l_whence = libc::SEEK_SET as libc::c_short;
    range.l_len = 1;
    // SAFETY: the descriptor is open and `range` outlives the call.
    let taken = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLK, &raw const range) };
    (taken == 0).then_some(file)
}

/// Another process with the lock; it ends with its standard input.
struct Holder(Child);

impl Holder {
    /// A copy of this program that holds `dir` as `role` says.
    fn start(role: &str, dir: &Path) -> Self {
        let program = std::env::current_exe().expect("this program");
        let mut child = Command::new(program)
            .args(["--exact", "another_process_holds_what_it_is_told_to", "--nocapture"])
            .env(ROLE, format!("{role}:{}", dir.display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a second process");
        let mut lines = BufReader::new(child.stdout.take().expect("its output")).lines();
        let held = lines.any(|line| line.expect("its output").contains(HELD));
        assert!(held, "the second process did not get the lock");
        std::thread::spawn(move || lines.for_each(drop));
        Self(child)
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Lets it end of its own accord.
    fn finish(mut self) {
        drop(self.0.stdin.take());
        assert!(self.0.wait().expect("it ends").success());
    }

    fn kill(mut self) {
        self.0.kill().expect("it can be killed");
        self.0.wait().expect("it ends");
    }
}

/// What the second process does; without a role, nothing.
#[test]
fn another_process_holds_what_it_is_told_to() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let (role, dir) = role.split_once(':').expect("a role and a directory");
    let wait = || {
        println!("{HELD}");
        std::io::stdin().read_to_end(&mut Vec::new()).expect("standard input");
    };
    if role == "java" {
        let _lock = lock_as_java(Path::new(dir)).expect("nobody else has it");
        wait();
    } else {
        let store = Store::open(config(Path::new(dir))).expect("the store opens");
        put(&store, "theirs");
        wait();
        store.close().expect("the store closes");
    }
}

fn assert_locked(dir: &Path, by: u32) {
    match Store::open(config(dir)) {
        Err(error @ Error::Locked { .. }) => {
            let Error::Locked { path, pid } = &error else { unreachable!() };
            assert_eq!(path, &dir.join("lock"));
            assert_eq!(*pid, Some(by));
            assert!(error.to_string().contains(&by.to_string()), "{error}");
        }
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("two stores have the directory open"),
    }
}

fn put(store: &Store, body: &str) {
    let result = store.put(Message::new("orders", body)).expect("stored");
    assert_eq!(result.status, PutStatus::PutOk);
}

#[test]
fn a_second_opener_in_this_process_is_refused() {
    let dir = TempDir::new();
    let store = Store::open(config(dir.path())).expect("the store opens");
    put(&store, "one");
    for _ in 0..3 {
        assert_locked(dir.path(), std::process::id());
    }
    put(&store, "two");
    store.close().expect("it was not disturbed");
    let store = Store::open(config(dir.path())).expect("the lock was released");
    assert_eq!(store.get("orders", 0, 0, 10).expect("readable").messages.len(), 2);
}

#[test]
fn a_dropped_store_releases_its_lock() {
    let dir = TempDir::new();
    for _ in 0..3 {
        let store = Store::open(config(dir.path())).expect("the lock is free");
        let clone = store.clone();
        drop(store);
        put(&clone, "still open");
        assert_locked(dir.path(), std::process::id());
    }
}

#[test]
fn a_second_opener_in_another_process_is_refused_by_its_pid() {
    let dir = TempDir::new();
    let holder = Holder::start("store", dir.path());
    assert_locked(dir.path(), holder.pid());
    // A store that is still recovering has not said there that it is open.
    let abort = dir.path().join("abort");
    let text = std::fs::read(&abort).expect("it is open");
    std::fs::remove_file(&abort).expect("it is there");
    assert_locked(dir.path(), holder.pid());
    std::fs::write(&abort, text).expect("as it was");
    holder.finish();
    let store = Store::open(config(dir.path())).expect("the lock was released");
    assert!(!store.recovery().unclean);
    assert_eq!(store.get("orders", 0, 0, 10).expect("readable").messages.len(), 1);
}

#[test]
fn a_killed_process_leaves_no_lock_behind() {
    let dir = TempDir::new();
    Holder::start("store", dir.path()).kill();
    let store = Store::open(config(dir.path())).expect("the lock went with the process");
    assert!(store.recovery().unclean);
    assert_eq!(store.get("orders", 0, 0, 10).expect("readable").messages.len(), 1);
}

#[test]
fn a_java_broker_keeps_the_store_out() {
    let dir = TempDir::new();
    let holder = Holder::start("java", dir.path());
    assert_locked(dir.path(), holder.pid());
    holder.finish();
    put(&Store::open(config(dir.path())).expect("the lock was released"), "ours");
}

#[test]
fn the_store_keeps_a_java_broker_out() {
    let dir = TempDir::new();
    let holder = Holder::start("store", dir.path());
    assert!(lock_as_java(dir.path()).is_none(), "a broker would have started on the open store");
    holder.finish();
    assert!(lock_as_java(dir.path()).is_some());
}

#[test]
fn a_process_started_meanwhile_does_not_inherit_the_lock() {
    let (ours, other) = (TempDir::new(), TempDir::new());
    let store = Store::open(config(ours.path())).expect("the store opens");
    let holder = Holder::start("store", other.path());
    store.close().expect("the store closes");
    drop(store);
    put(&Store::open(config(ours.path())).expect("the lock was released"), "again");
    holder.finish();
}

#[test]
fn a_read_only_opener_needs_no_lock() {
    let dir = TempDir::new();
    let holder = Holder::start("store", dir.path());
    // The last checkpoint of a store that has just begun knows of nothing durable.
    let config = config(dir.path()).read_only(true).visibility(Visibility::Appended);
    let store = Store::open(config).expect("reading disturbs nobody");
    let found = store.get("orders", 0, 0, 10).expect("readable").messages;
    assert_eq!(found[0].body, b"theirs");
    drop(store);
    holder.finish();
}

#[test]
fn a_store_that_closed_is_let_go_though_another_thread_starts_processes() {
    let (dir, stop) = (TempDir::new(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        // Between its fork and its program a process has every file of this one open.
        scope.spawn(|| {
            while !stop.load(Ordering::SeqCst) {
                let status = Command::new("true").status();
                assert!(status.expect("a process starts").success());
            }
        });
        for _ in 0..100 {
            let store = Store::open(config(dir.path()));
            let closed = store.map(|store| store.close());
            if !matches!(closed, Ok(Ok(()))) {
                stop.store(true, Ordering::SeqCst);
                panic!("{closed:?}");
            }
        }
        stop.store(true, Ordering::SeqCst);
    });
}
