//! Disks that hang elsewhere than in a sync, and handles that outlive their store.

#[path = "support/gate.rs"]
mod gate;
#[path = "support/hooked.rs"]
mod hooked;
#[path = "support/sim.rs"]
mod sim;
#[path = "support/temp.rs"]
mod temp;

use duralog::disk::{Disk, HostDisk, SimCall};
use duralog::tables::TopicConfig;
use duralog::{
    Environment, Error, FlushMode, Message, PutStatus, Reached, Store, StoreWorker, WriteMode,
};
use gate::Gate;
use hooked::{Hook, Hooked};
use sim::*;
use std::io;
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::thread;
use std::time::Duration;

/// Puts that do not wait for the disk are answered though upkeep hangs in the blocks they need.
fn puts_are_answered_beside_upkeep_that_hangs(flush: FlushMode) {
    // The first piece of a segment is prepared before anything is put into it, by another thread.
    let (disk, gate) = (disk(), Gate::new("duralog-upkeep", (SimCall::Prewrite, 1)));
    let hooked = Hooked::over(disk.shared(), gate.clone());
    let mut config =
        config().segment_size(16 << 20).flush_mode(flush).write_mode(WriteMode::Pwrite);
    config.log.put_timeout = Duration::from_millis(50);
    gate.set(true);
    let store = Store::open_in(config, Environment::on(hooked)).expect("the store opens");
    // Beside large groups it would not even begin.
    eventually("upkeep hangs", || gate.is_reached());
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

/// Holds up the writes of one thread.
#[derive(Debug, Default)]
struct Late {
    shut: Mutex<bool>,
    held: Condvar,
    waits: Mutex<bool>,
}

impl Hook for Late {
    fn before(&self, call: SimCall) -> io::Result<()> {
        let is_late = call == SimCall::Write && thread::current().name() == Some("late");
        let mut shut = self.shut.lock().expect("nobody panics");
        while is_late && *shut {
            *self.waits.lock().expect("nobody panics") = true;
            self.held.notify_all();
            shut = self.held.wait(shut).expect("nobody panics");
        }
        Ok(())
    }
}

#[test]
fn a_store_is_nobody_elses_while_an_offset_is_written() {
    let (disk, late) = (disk(), Arc::new(Late::default()));
    let mut config = config();
    config.log.close_timeout = Duration::from_millis(200);
    let store = open(&disk, config.clone());
    for id in 0..2 {
        store.put(message(id)).expect("it is stored").ok().expect("it is safe");
    }
    store.wait_for(TOPIC, 0, 1, LONG).expect("it is dispatched");
    store.commit_offset("billing", TOPIC, 0, 1).expect("it is noted");
    // Afterwards there is nothing to be exported that would meet who commits.
    store.close().expect("it closes");
    let environment = Environment::on(Hooked::over(disk.shared(), late.clone()));
    let store = Store::open_in(config, environment).expect("it opens");
    *late.shut.lock().expect("nobody panics") = true;
    let committing = store.clone();
    let commit = move || committing.commit_offset("billing", TOPIC, 0, 2);
    let thread = thread::Builder::new().name("late".to_owned()).spawn(commit).expect("it runs");
    let mut shut = late.shut.lock().expect("nobody panics");
    while !*late.waits.lock().expect("nobody panics") {
        shut = late.held.wait(shut).expect("nobody panics");
    }
    drop(shut);
    let closed = store.close();
    assert!(matches!(closed, Err(Error::CloseTimeout { .. })), "{closed:?}");
    let locked = disk.lock("/store/lock".as_ref());
    assert!(locked.is_err(), "somebody may write to it");
    *late.shut.lock().expect("nobody panics") = false;
    late.held.notify_all();
    thread.join().expect("nobody panics").expect("it was in time");
    assert!(matches!(store.commit_offset("billing", TOPIC, 0, 2), Err(Error::Closed)));
}

/// Holds up the sync of the offsets' thread after the first.
#[derive(Debug, Default)]
struct SlowExport {
    syncs: Mutex<usize>,
    moved: Condvar,
    released: Mutex<bool>,
}

impl Hook for SlowExport {
    fn before(&self, call: SimCall) -> io::Result<()> {
        if call == SimCall::Sync && thread::current().name() == Some("duralog-offsets") {
            let mut syncs = self.syncs.lock().expect("nobody panics");
            *syncs += 1;
            self.moved.notify_all();
            while *syncs > 1 && !*self.released.lock().expect("nobody panics") {
                syncs = self.moved.wait(syncs).expect("nobody panics");
            }
        }
        Ok(())
    }
}

#[test]
fn groups_go_on_beside_an_export_that_hangs() {
    let (disk, slow) = (disk(), Arc::new(SlowExport::default()));
    let environment = Environment::on(Hooked::over(disk.shared(), slow.clone()));
    let store = Store::open_in(config(), environment).expect("it opens");
    store.put(message(0)).expect("it is stored").ok().expect("it is safe");
    store.wait_for(TOPIC, 0, 0, LONG).expect("it is dispatched");
    store.commit_offset("billing", TOPIC, 0, 0).expect("it is noted");
    store.flush_offsets().expect("it is durable");
    let mut syncs = slow.syncs.lock().expect("nobody panics");
    while *syncs < 2 {
        syncs = slow.moved.wait(syncs).expect("nobody panics");
    }
    drop(syncs);
    let (told, heard) = mpsc::channel();
    let committing = store.clone();
    let commit = move || {
        let committed = committing.commit_offset("billing", TOPIC, 0, 1);
        told.send((committed, committing.committed_offset("billing", TOPIC, 0)))
    };
    let thread = thread::spawn(commit);
    let answer = heard.recv_timeout(Duration::from_secs(20));
    *slow.released.lock().expect("nobody panics") = true;
    let syncs = slow.syncs.lock().expect("nobody panics");
    slow.moved.notify_all();
    drop(syncs);
    thread.join().expect("nobody panics").expect("somebody listens");
    let (committed, offset) = answer.expect("a commit hangs");
    committed.expect("it is noted");
    assert_eq!(offset, Some(1));
    store.close().expect("it closes");
}

#[test]
fn topics_are_known_while_another_one_is_noted_on_a_disk_that_hangs() {
    let disk = disk();
    let mut config = config();
    config.auto_create_topic = false;
    config.log.put_timeout = Duration::from_millis(50);
    let store = Store::open_in(config, Environment::on(disk.shared())).expect("the store opens");
    store.create_topic(TOPIC, TopicConfig::new(4)).expect("it is noted");
    disk.hang_syncs(true);
    let noting = store.clone();
    let noting = thread::spawn(move || noting.create_topic("new", TopicConfig::new(1)));
    eventually("it hangs", || disk.hanging_syncs() > 0);
    let (asking, (tell, told)) = (store.clone(), mpsc::channel());
    let asking = thread::spawn(move || {
        let known = [TOPIC, "new"].map(|topic| asking.topic(topic).expect("readable").is_some());
        let put = asking.try_submit(Message::new("nobody", "x")).map(drop);
        tell.send((known, put)).expect("someone hears it");
    });
    let answer = told.recv_timeout(LONG);
    disk.hang_syncs(false);
    let (known, put) = answer.expect("whoever asks waits for the disk");
    assert_eq!(known, [true, false], "what is not durable is not known");
    assert!(matches!(put, Err(Error::UnknownTopic { .. })), "{put:?}");
    asking.join().expect("it has ended");
    noting.join().expect("it has ended").expect("it is noted");
    assert!(store.topic("new").expect("readable").is_some());
    store.close().expect("the store closes");
}
