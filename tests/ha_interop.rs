//! Replication as Apache RocketMQ does it (`DefaultHAService`): its own master and slave with each other,
//! and plain sockets in the place of either. `.ci/interop` runs this.
//!
//! The slave connects, and reports where its log ends: 8 bytes. The master sends frames: 8 bytes for the
//! offset in the log, 4 for a length, and so many bytes of the log. All numbers are big-endian, and there
//! is nothing else: no greeting, no version, no checksum, no epoch. What the tests below show, where 4.9
//! and 5.x differ with both:
//!
//! The master
//! - sends nothing before the first report, not even heartbeats;
//! - takes the first report for the offset to send from, wherever that is: in the middle of a record,
//!   below its own log or above it. Where it has nothing to send, it sends heartbeats, for ever if need be;
//! - takes 0 for "the last file". A slave that is empty gets no earlier file than the one that is written
//!   when it connects;
//! - takes a negative number for no report;
//! - closes the connection of a slave whose later report is above its own log (4.9), or believes it (5.x);
//! - counts each report as an acknowledgement, the first one too, and keeps the greatest for good;
//! - cuts frames at 32 KiB and at the end of a file, in the middle of a record or not. What fills up a file
//!   is sent like all the rest;
//! - sends a heartbeat, a frame without bytes, when it has sent nothing for an interval. It has the offset
//!   that is next. The interval begins with the connection, so that the first frame is a heartbeat if the
//!   first report came late, as RocketMQ's does.
//!
//! The slave
//! - does not report at once: 4.9 waits for an interval from when it connected, 5.x from when it last
//!   reported on any connection. It looks once a second while nothing comes;
//! - reports for each frame with bytes as soon as these are in memory, synced or not, half a record too;
//!   and every interval. After a restart it may report less than it did before;
//! - closes the connection upon a frame that does not begin where its log ends, before the frame's bytes
//!   are there, and heartbeats are no exception. Then 4.9 connects again at once, 5.x after 5 s; both wait
//!   for 5 s when nobody listens;
//! - begins an empty log with the file in which the first frame's offset lies, at its beginning, be that
//!   the offset or not. A heartbeat is enough;
//! - loses the bytes of a frame that goes beyond the end of a file, all of them, and says nothing;
//! - leaves a master that was silent for `haHousekeepingInterval` (5.x), or never does (4.9).
//!
//! Not shown here, for it takes long: a frame that is longer than 4 MiB with its header never gets through.
//! The slave goes on reporting, and reads no more.

#[macro_use]
#[path = "support/java.rs"]
mod java;
#[path = "support/ha_wire.rs"]
mod ha_wire;
#[path = "support/java_replica.rs"]
mod java_replica;
#[path = "support/rng.rs"]
mod rng;
#[path = "support/stored_log.rs"]
mod stored_log;
#[path = "support/temp.rs"]
mod temp;

use duralog::{FlushMode, Message, Store, StoreConfig};
use ha_wire::{Frame, MasterListener, MasterSocket, SlaveSocket};
use java::{Java, QUEUE_FILE_SIZE, SEGMENT_SIZE};
use java_replica::{JavaReplica, QUEUES, TOPICS};
use rng::Rng;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;
use stored_log::Log;
use temp::TempDir;

/// The most that a master sends in a frame (`haTransferBatchSize`).
const BATCH: usize = 32 << 10;
/// What both sides do every 5 s unless told otherwise.
const HEARTBEAT: &str = "haSendHeartbeatInterval=100";
/// A slave with this reports at every turn: as soon as it is connected, when something came, and every
/// second. With any other it waits for a second before the first report, should the interval be shorter.
const EAGER: &str = "haSendHeartbeatInterval=-1";
const SYNC: &str = "brokerRole=SYNC_MASTER";
/// 5.x counts the master, and waits for nobody if one is enough, which is its default. 4.9 does not know
/// the setting, and waits for one slave.
const TWO_REPLICAS: &str = "inSyncReplicas=2";

impl Java {
    fn is_4_9(self) -> bool {
        self.0.starts_with("4.")
    }
}

fn segment_of(offset: u64) -> u64 {
    offset - offset % SEGMENT_SIZE
}

fn dirs() -> (TempDir, PathBuf, PathBuf) {
    let temp = TempDir::new();
    let (master, slave) = (temp.path().join("master"), temp.path().join("slave"));
    (temp, master, slave)
}

/// A store of this crate's, closed.
fn written_here(dir: &Path, count: usize) -> Log {
    let config = StoreConfig::new(dir).flush_mode(FlushMode::async_default());
    let config = config.segment_size(SEGMENT_SIZE).consume_queue_file_size(QUEUE_FILE_SIZE);
    let store = Store::open(config).expect("opened");
    let mut rng = Rng(1);
    for n in 0..count {
        let body: Vec<u8> = (0..rng.index(1000)).map(|_| rng.next() as u8).collect();
        let message = Message::new("orders", body).queue(n as i32 % QUEUES);
        assert!(store.put(&message).expect("stored").ok().is_ok());
    }
    let end = store.stats().watermarks.appended;
    store.close().expect("closed");
    Log::stored(dir, end)
}

fn a_java_slave_follows_a_java_master(java: Java) {
    let (_temp, master_dir, slave_dir) = dirs();
    let mut master = JavaReplica::master(java, &master_dir, 0, &[HEARTBEAT]);
    let port = master.port;
    let mut slave = JavaReplica::slave(java, &slave_dir, port, &[HEARTBEAT]);
    let assert_same = |end| {
        Log::stored(&master_dir, end).assert_same(&Log::stored(&slave_dir, end));
    };
    // An empty slave begins with the file that the master writes then: here the first.
    slave.reach(master.put(50, 300));
    let end = master.put(3950, 300);
    slave.reach(end);
    assert_same(end);

    slave.close();
    master.ask("slaves 0");
    let end = master.put(2000, 300);
    let mut slave = JavaReplica::slave(java, &slave_dir, port, &[HEARTBEAT]);
    slave.reach(end);
    assert_same(end);

    master.close();
    let settings = [HEARTBEAT, SYNC, TWO_REPLICAS, "slaveTimeout=60000"];
    let mut master = JavaReplica::master(java, &master_dir, port, &settings);
    slave.wake();
    master.ask("slaves 1");
    let end = master.put(4000, 300);
    slave.reach(end);
    assert_same(end);
    // Its own queues may be behind.
    master.reach(end);
    let messages = master.messages(&TOPICS, QUEUES);
    assert_eq!(messages.len(), 10_000);
    assert!(messages == slave.messages(&TOPICS, QUEUES), "other messages in the slave's queues");
    println!(
        "replication {}: the slave follows, {} messages in {end} bytes, the same in both",
        java.0,
        messages.len()
    );
}

/// What a socket took that acknowledged all it was sent.
struct Followed {
    log: Log,
    frames: Vec<(u64, u64)>,
    heartbeats: usize,
}

impl Followed {
    /// From `begin` on, until the log has come to `end` or the connection ends.
    fn new(mut socket: SlaveSocket, begin: u64, end: u64) -> Self {
        let log = Log { begin, bytes: Vec::new() };
        let mut followed = Self { log, frames: Vec::new(), heartbeats: 0 };
        while followed.log.end() < end {
            let Some(frame) = socket.frame() else { break };
            assert_eq!(frame.offset, followed.log.end());
            if frame.is_heartbeat() {
                followed.heartbeats += 1;
                continue;
            }
            assert!(frame.body.len() <= BATCH);
            assert_eq!(segment_of(frame.end() - 1), segment_of(frame.offset));
            followed.frames.push((frame.offset, frame.end()));
            followed.log.bytes.extend(&frame.body);
            socket.report(frame.end() as i64);
        }
        followed
    }
}

fn a_java_master_sends_its_log_to_a_socket(java: Java) {
    let (_temp, dir, _) = dirs();
    let settings = [HEARTBEAT, SYNC, TWO_REPLICAS, "slaveTimeout=60000"];
    let mut master = JavaReplica::master(java, &dir, 0, &settings);
    let mut socket = SlaveSocket::connect(master.port);
    socket.hears_nothing_for(Duration::from_millis(400));
    socket.report(0);
    // Due since the connection began. An empty slave learns from it where its log begins.
    assert_eq!(socket.frame(), Some(Frame::heartbeat(0)));
    let shared = socket.share();
    let following = thread::spawn(move || Followed::new(shared, 0, u64::MAX));
    // No put is answered before it is acknowledged.
    let end = master.put(3000, 400);
    let slaves = master.ask(&format!("slaves 1 {end}"));
    assert_eq!(slaves["slaves"], json!([{ "requested": 0, "acked": end }]));
    socket.shut_down();
    let followed = following.join().expect("no panic");
    let log = Log::stored(&dir, end);
    // What fills up a file is sent like all the rest.
    log.assert_same(&followed.log);

    // A slave that has fallen behind is sent full frames, which end wherever they are full.
    let mut socket = SlaveSocket::connect(master.port);
    socket.report(SEGMENT_SIZE as i64);
    let late = Followed::new(socket, SEGMENT_SIZE, end);
    assert!(late.log.bytes == log.from(SEGMENT_SIZE, end));
    let (_, full) = late.frames.split_last().expect("some");
    assert!(full.iter().all(|(begin, end)| (end - begin) as usize == BATCH));
    let boundaries = log.boundaries();
    assert_eq!(boundaries.last(), Some(&end));
    let cut = late.frames.iter().filter(|(_, end)| !boundaries.contains(end)).count();
    assert!(cut > 5, "{:?}", late.frames);
    println!(
        "replication {}: a socket was sent {end} bytes in {} frames and {} heartbeats; of {} to another \
         {cut} cut a record",
        java.0,
        followed.frames.len(),
        followed.heartbeats,
        late.frames.len()
    );
}

/// The offset of the first data after these bytes.
fn first_data(port: u16, reports: &[&[u8]]) -> u64 {
    let mut socket = SlaveSocket::connect(port);
    for bytes in reports {
        socket.send(bytes);
    }
    socket.data().offset
}

fn a_java_master_believes_any_offset(java: Java) {
    let (_temp, dir, _) = dirs();
    let mut master = JavaReplica::master(java, &dir, 0, &[HEARTBEAT]);
    let port = master.port;
    let end = master.put(1000, 400);
    let offset = |offset: i64| offset.to_be_bytes();

    // There is no way to ask for the first file once there is another.
    assert_eq!(first_data(port, &[&offset(0)]), segment_of(end));
    assert_eq!(first_data(port, &[&offset(1)]), 1);
    assert_eq!(first_data(port, &[&offset(100_000)]), 100_000);
    // Of what came at once the last counts; a report may come in parts.
    let two = [offset(100_000), offset(SEGMENT_SIZE as i64)].concat();
    assert_eq!(first_data(port, &[&two]), SEGMENT_SIZE);
    assert_eq!(first_data(port, &[&offset(100_000)[..3], &offset(100_000)[3..]]), 100_000);
    assert_eq!(first_data(port, &[&offset(-1), &offset(100_000)]), 100_000);

    // There is nothing to send, for the time being.
    let beyond = end + 1000;
    let [mut once, mut twice] = [0; 2].map(|_| {
        let mut socket = SlaveSocket::connect(port);
        socket.report(beyond as i64);
        for _ in 0..2 {
            assert_eq!(socket.frame(), Some(Frame::heartbeat(beyond)));
        }
        socket
    });
    assert_eq!(master.ask("slaves 2")["acked"], beyond);
    twice.report(beyond as i64);
    if java.is_4_9() {
        while let Some(frame) = twice.frame() {
            assert_eq!(frame, Frame::heartbeat(beyond));
        }
    }
    let mut end = end;
    while end <= beyond {
        once.report(0);
        end = master.put(1, 400);
    }
    assert_eq!(once.data().offset, beyond);
    if !java.is_4_9() {
        assert_eq!(twice.data().offset, beyond);
    }
    println!("replication {}: a master sent from 1 and from {beyond} alike", java.0);
}

fn a_java_master_counts_what_is_claimed(java: Java) {
    let (_temp, dir, _) = dirs();
    let settings = [HEARTBEAT, SYNC, TWO_REPLICAS, "slaveTimeout=1000"];
    let mut master = JavaReplica::master(java, &dir, 0, &settings);
    let put = |master: &mut JavaReplica, status: &str| {
        assert_eq!(master.put_any(1, 400).1, json!({ status: 1 }));
    };
    let timeout = "FLUSH_SLAVE_TIMEOUT";
    put(&mut master, if java.is_4_9() { "SLAVE_NOT_AVAILABLE" } else { timeout });
    let mut honest = SlaveSocket::connect(master.port);
    honest.report(0);
    master.ask("slaves 1");
    put(&mut master, timeout);
    // The first report counts as an acknowledgement, whatever it says.
    let mut liar = SlaveSocket::connect(master.port);
    liar.report(1 << 40);
    master.ask("slaves 2");
    put(&mut master, "PUT_OK");
    // To 4.9 for good, as long as any slave is connected. 5.x counts those that are, if it is asked for
    // more than one; the greatest offset that was ever claimed it keeps, too.
    liar.shut_down();
    assert_eq!(master.ask("slaves 1")["acked"], 1_u64 << 40);
    put(&mut master, if java.is_4_9() { "PUT_OK" } else { timeout });
    println!("replication {}: a master counted what a liar claimed", java.0);
}

/// Feeds a part of a log in frames of every size that fits. Returns their number.
fn feed(socket: &mut MasterSocket, log: &Log, from: u64, to: u64, rng: &mut Rng) -> u64 {
    let (mut at, mut frames) = (from, 0);
    while at < to {
        let most = (segment_of(at) + SEGMENT_SIZE).min(to) - at;
        let size = if rng.one_in(8) { most } else { 1 + rng.below(most.min(BATCH as u64)) };
        socket.send(&Frame::new(at, log.from(at, at + size)));
        if rng.one_in(8) {
            socket.send(&Frame::heartbeat(at + size));
        }
        (at, frames) = (at + size, frames + 1);
    }
    frames
}

fn a_java_slave_takes_a_log_from_a_socket(java: Java) {
    let (temp, dir, slave_dir) = dirs();
    let log = written_here(&dir, 2000);
    let listener = MasterListener::new();
    let mut rng = Rng(2);
    let mut slave = JavaReplica::slave(java, &slave_dir, listener.port(), &[HEARTBEAT]);
    let mut socket = listener.accept();
    // It does not wait for the master to speak first, but for its own interval.
    assert_eq!(socket.report(), Some(0));
    // A report for each frame as soon as its bytes are in memory, if there are any; those of the
    // interval come between.
    let mut at = 0;
    while at < 30_000 {
        let size = 1 + rng.below(3000);
        socket.send(&Frame::new(at, log.from(at, at + size)));
        socket.await_report(at, at + size);
        at += size;
    }
    let frames = feed(&mut socket, &log, at, log.end(), &mut rng);
    let mut reported = at;
    while reported < log.end() {
        let report = socket.report().expect("it keeps the connection");
        assert!((reported..=log.end()).contains(&report), "{report} after {reported}");
        reported = report;
    }
    slave.reach(log.end());
    log.assert_same(&Log::stored(&slave_dir, log.end()));
    assert_eq!(slave.messages(&["orders"], QUEUES).len(), 2000);
    drop(slave);

    // An empty slave begins with the file of the first frame's offset. A heartbeat is enough.
    let begin = 3 * SEGMENT_SIZE;
    let later_dir = temp.path().join("later");
    let mut slave = JavaReplica::slave(java, &later_dir, listener.port(), &[HEARTBEAT]);
    let mut socket = listener.accept();
    assert_eq!(socket.report(), Some(0));
    socket.send(&Frame::heartbeat(begin));
    socket.await_report(0, begin);
    feed(&mut socket, &log, begin, log.end(), &mut rng);
    slave.reach(log.end());
    let later = Log::stored(&later_dir, log.end());
    assert_eq!(later.begin, begin);
    assert!(later.bytes == log.from(begin, log.end()));
    drop(slave);

    // As a master it never sends what it does not have, nor does it say so.
    let mut master = JavaReplica::master(java, &later_dir, 0, &[HEARTBEAT]);
    let mut socket = SlaveSocket::connect(master.port);
    socket.report(SEGMENT_SIZE as i64);
    for _ in 0..3 {
        assert_eq!(socket.frame(), Some(Frame::heartbeat(SEGMENT_SIZE)));
        master.put(1, 400);
    }
    assert_eq!(first_data(master.port, &[&begin.to_be_bytes()]), begin);
    println!("replication {}: a slave took {reported} bytes in {frames} frames and more", java.0);
}

fn a_java_slave_drops_what_does_not_follow(java: Java) {
    let (temp, dir, slave_dir) = dirs();
    let log = written_here(&dir, 300);
    let listener = MasterListener::new();
    let mut rng = Rng(3);
    let mut slave = JavaReplica::slave(java, &slave_dir, listener.port(), &[EAGER]);
    let mut socket = listener.accept();
    let end = 60_000;
    feed(&mut socket, &log, 0, end, &mut rng);
    while socket.report().expect("it keeps the connection") < end {}
    let drops = |socket: &mut MasterSocket, bytes: &[u8], slave: &mut JavaReplica| {
        socket.send_bytes(bytes);
        while let Some(report) = socket.report() {
            assert_eq!(report, end);
        }
        if !java.is_4_9() {
            slave.wake();
        }
        *socket = listener.accept();
        assert_eq!(socket.report(), Some(end));
    };
    let ahead = Frame::new(end + 1, log.from(end + 1, end + 100));
    drops(&mut socket, &ahead.header(), &mut slave);
    drops(&mut socket, &Frame::heartbeat(end + 1).header(), &mut slave);
    // What it has already, with more and without.
    for to in [end, end + 100] {
        let again = Frame::new(end - 100, log.from(end - 100, to));
        drops(&mut socket, &[&again.header()[..], &again.body].concat(), &mut slave);
    }
    // What does not fit into the file is lost, and that shows with the frame after it.
    socket.send(&Frame::new(end, log.from(end, end + 10_000)));
    socket.await_report(end, end);
    drops(&mut socket, &Frame::heartbeat(end + 10_000).header(), &mut slave);
    feed(&mut socket, &log, end, log.end(), &mut rng);
    slave.reach(log.end());
    log.assert_same(&Log::stored(&slave_dir, log.end()));
    drop(slave);

    // The first bytes of an empty slave go to the beginning of a file, wherever they are from.
    let shifted_dir = temp.path().join("shifted");
    let mut slave = JavaReplica::slave(java, &shifted_dir, listener.port(), &[EAGER]);
    let mut socket = listener.accept();
    assert_eq!(socket.report(), Some(0));
    let from = SEGMENT_SIZE + 1000;
    socket.send(&Frame::new(from, log.from(from, from + 500)));
    socket.await_report(0, SEGMENT_SIZE + 500);
    assert_eq!(slave.ask("offset")["max"], SEGMENT_SIZE + 500);
    println!("replication {}: a slave dropped what did not follow", java.0);
}

fn a_java_slave_forgets_half_a_message_that_it_acknowledged(java: Java) {
    let (_temp, dir, slave_dir) = dirs();
    let log = written_here(&dir, 500);
    let listener = MasterListener::new();
    let mut rng = Rng(4);
    let slave = JavaReplica::slave(java, &slave_dir, listener.port(), &[EAGER]);
    let mut socket = listener.accept();
    let boundary = *log.boundaries().range(100_000..).next().expect("one");
    let half = boundary + 50;
    feed(&mut socket, &log, 0, half, &mut rng);
    while socket.report().expect("it keeps the connection") < half {}
    slave.close();
    // It could not dispatch everything.
    assert!(slave_dir.join("abort").exists());
    let mut slave = JavaReplica::slave(java, &slave_dir, listener.port(), &[EAGER]);
    let mut socket = listener.accept();
    assert_eq!(socket.report(), Some(boundary));
    feed(&mut socket, &log, boundary, log.end(), &mut rng);
    slave.reach(log.end());
    log.assert_same(&Log::stored(&slave_dir, log.end()));
    assert_eq!(slave.messages(&["orders"], QUEUES).len(), 500);
    println!("replication {}: a slave asked again for {boundary} after it had {half}", java.0);
}

fn only_a_slave_of_4_9_stays_with_one_who_is_silent(java: Java) {
    let (_temp, master_dir, slave_dir) = dirs();
    let settings = [HEARTBEAT, "haHousekeepingInterval=4000"];
    let master = JavaReplica::master(java, &master_dir, 0, &settings);
    let mut to_master = SlaveSocket::connect(master.port);
    let listener = MasterListener::new();
    let _slave = JavaReplica::slave(java, &slave_dir, listener.port(), &settings);
    let mut to_slave = listener.accept();
    if java.is_4_9() {
        // A second or more from each to the next.
        for _ in 0..5 {
            assert_eq!(to_slave.report(), Some(0));
        }
    } else {
        while let Some(report) = to_slave.report() {
            assert_eq!(report, 0);
        }
    }
    // This one was sent nothing, and given up by both.
    assert_eq!(to_master.frame(), None);
    println!("replication {}: the silent were left", java.0);
}

for_each_version! {
    a_java_slave_follows_a_java_master
    a_java_master_sends_its_log_to_a_socket
    a_java_master_believes_any_offset
    a_java_master_counts_what_is_claimed
    a_java_slave_takes_a_log_from_a_socket
    a_java_slave_drops_what_does_not_follow
    a_java_slave_forgets_half_a_message_that_it_acknowledged
    only_a_slave_of_4_9_stays_with_one_who_is_silent
}
