//! Disks that hang elsewhere than in a sync, and handles that outlive their store.

#[path = "support/hooked.rs"]
mod hooked;
#[path = "support/sim.rs"]
mod sim;
#[path = "support/temp.rs"]
mod temp;

use duralog::disk::{Disk, HostDisk, SimCall};
use duralog::{Environment, FlushMode, Message, PutStatus, Reached, Store, StoreWorker, WriteMode};
use hooked::{Hook, Hooked};
use sim::*;
use std::io;
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::thread;
use std::time::Duration;

/// Holds up whoever prepares blocks, while it is shut.
#[derive(Debug, Default)]
struct Gate {
    shut: Mutex<bool>,
    moved: Condvar,
}

impl Gate {
    fn set(&self, shut: bool) {
        *self.shut.lock().expect("nobody panics") = shut;
        self.moved.notify_all();
    }
}

impl Hook for Gate {
    fn before(&self, call: SimCall) -> io::Result<()> {
        // The first piece of a segment is prepared before anything is put into it.
        let upkeep = thread::current().name() == Some("duralog-upkeep");
        let mut shut = self.shut.lock().expect("nobody panics");
        while upkeep && call == SimCall::Prewrite && *shut {
            shut = self.moved.wait(shut).expect("nobody panics");
        }
        Ok(())
    }
}

/// Puts that do not wait for the disk are answered though upkeep hangs in the blocks they need.
fn puts_are_answered_beside_upkeep_that_hangs(flush: FlushMode) {
    let (disk, gate) = (disk(), Arc::new(Gate::default()));
    let hooked = Hooked::over(disk.shared(), gate.clone());
    let mut config =
        config().segment_size(16 << 20).flush_mode(flush).write_mode(WriteMode::Pwrite);
    config.log.put_timeout = Duration::from_millis(50);
    gate.set(true);
    let store = Store::open_in(config, Environment::on(hooked)).expect("the store opens");
    let (answers, answered) = mpsc::channel();
    let putting = store.clone();
    let producer = thread::spawn(move || {
        for id in 0..8u8 {
            let put = putting.put(Message::new(TOPIC, vec![id; 1 << 20]).wait(false));
            let _ = answers.send(put);
        }
    });
    let mut late = 0;
    for _ in 0..8 {
        let put = answered.recv_timeout(LONG).expect("a put hangs");
        // One that finds no room is refused, and not stored.
        let Ok(put) = put else { continue };
        match put.status {
            PutStatus::PutOk => assert!(put.reached >= Reached::Written),
            PutStatus::FlushDiskTimeout => late += 1,
            other => panic!("{other}"),
        }
    }
    assert!(late > 0, "nothing hung");
    gate.set(false);
    producer.join().expect("the producer ends");
    store.close().expect("the store closes");
}

#[test]
fn a_put_that_does_not_wait_is_answered_beside_upkeep_that_hangs() {
    puts_are_answered_beside_upkeep_that_hangs(FlushMode::sync());
}

#[test]
fn an_async_put_is_answered_beside_upkeep_that_hangs() {
    puts_are_answered_beside_upkeep_that_hangs(FlushMode::async_default());
}

/// Fails the syncs of whoever flushes, once it is told to.
#[derive(Debug, Default)]
struct Broken(Mutex<bool>);

impl Hook for Broken {
    fn before(&self, call: SimCall) -> io::Result<()> {
        if call == SimCall::Sync && *self.0.lock().expect("nobody panics") {
            return Err(io::Error::from_raw_os_error(5));
        }
        Ok(())
    }
}

#[test]
fn a_handle_writes_nothing_once_its_store_is_closed() {
    let dir = temp::TempDir::new();
    let broken = Arc::new(Broken::default());
    let hooked = Hooked::over(HostDisk::shared(), broken.clone());
    let mut config = unsynced().segment_size(1 << 18);
    config.log.dir = dir.path().to_owned();
    config.consume_queue_file_size = 20 * 10_000;
    let store = Store::open_in(config, Environment::on(hooked).stepped()).expect("it opens");
    let mut stored = 0;
    while stored < 600 {
        match store.try_submit(message(stored)) {
            Ok(ticket) => {
                drop(ticket);
                stored += 1;
            }
            Err(_) => drop(store.step(StoreWorker::Upkeep)),
        }
    }
    let queue_files = dir.path().join("consumequeue");
    *broken.0.lock().expect("nobody panics") = true;
    assert!(store.close().is_err());
    *broken.0.lock().expect("nobody panics") = false;
    assert!(!queue_files.exists());
    // The directory may be someone else's by now.
    let lock = HostDisk.lock(&dir.path().join("lock")).expect("the lock is free");
    let _ = store.get(TOPIC, 0, 0, 1000);
    let _ = store.wait_for(TOPIC, 0, 599, Duration::ZERO);
    assert!(!queue_files.exists(), "written without the lock");
    drop(lock);
}
