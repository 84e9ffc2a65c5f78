//! RocketMQ's own replication with plain sockets in the place of RocketMQ, for what a real one does not
//! do when it is asked to. `tests/ha_follow.rs` has the real one.

#[path = "support/ha_wire.rs"]
mod ha_wire;
#[path = "support/stored_log.rs"]
mod stored_log;
#[path = "support/temp.rs"]
mod temp;

use duralog::replication::{
    AckLevel, Admission, Epoch, LogId, NodeId, NodeOptions, Primary, PrimaryOptions, Refusal,
    Replica, ReplicaOptions, ReplicatedLog, Replicator, Role, SessionError, StartPoint,
    TcpAcceptor,
};
use duralog::{Environment, Error, FlushMode, Message, PutStatus, Store, StoreConfig};
use ha_wire::{Frame, MasterListener, MasterSocket, SlaveSocket};
use std::net::Ipv4Addr;
use std::num::NonZeroU64;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};
use stored_log::Log;
use temp::TempDir;

const PATIENCE: Duration = Duration::from_secs(60);

fn config(dir: &Path) -> StoreConfig {
    let config = StoreConfig::new(dir).flush_mode(FlushMode::async_default());
    let mut config = config.segment_size(64 << 10);
    config.index_enable = false;
    config
}

/// A closed store; where its log ends.
fn written(dir: &Path, count: usize) -> Log {
    let store = Store::open(config(dir)).expect("the store opens");
    let mut end = 0;
    for n in 0..count {
        let message = Message::new("t", vec![n as u8; 200]);
        end = store.put(&message).expect("accepted").ok().expect("stored").end_offset;
    }
    store.close().expect("it closes");
    Log::stored(dir, end)
}

fn replica(dir: &Path, listener: &MasterListener) -> Replica {
    let address = format!("127.0.0.1:{}", listener.port());
    let mut options = ReplicaOptions::new(NodeOptions::new(NodeId(1)), address).of_rocketmq();
    options.node.heartbeat_interval = Duration::from_millis(50);
    Replica::open(config(dir), options).expect("the replica opens")
}

fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < PATIENCE, "not so after {PATIENCE:?}: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// The connection has ended, whatever was reported before.
fn hangs_up(socket: &mut MasterSocket) {
    while socket.report().is_some() {}
}

/// A log of which the replica has the first part, and a connection on which it has said where to begin.
struct Joined {
    _temp: TempDir,
    log: Log,
    had: u64,
    from: u64,
    listener: MasterListener,
    socket: MasterSocket,
    replica: Replica,
}

impl Joined {
    fn new() -> Self {
        let temp = TempDir::new();
        let (dir, listener) = (temp.path().join("replica"), MasterListener::new());
        // Into the second segment, so that what is compared begins in the first.
        let log = written(&temp.path().join("master"), 400);
        let first = replica(&dir, &listener);
        let mut socket = listener.accept();
        assert_eq!(socket.report(), Some(0));
        let had = *log.boundaries().range((64 << 10) + 1000..).next().expect("there are more");
        for (from, to) in [(0, 64 << 10), (64 << 10, had)] {
            socket.send(&Frame::new(from, log.from(from, to)));
        }
        eventually("it has the first part", || first.state().durable == had);
        first.close().expect("it closes");
        let replica = replica(&dir, &listener);
        let mut socket = listener.accept();
        let from = socket.report().expect("it reports");
        assert!(from < 64 << 10 && 0 < from, "{from} of {had}");
        Self { _temp: temp, log, had, from, listener, socket, replica }
    }

    fn send(&mut self, from: u64, to: u64) {
        self.socket.send(&Frame::new(from, self.log.from(from, to)));
    }

    #[track_caller]
    fn assert_diverged(mut self) {
        hangs_up(&mut self.socket);
        // Held: a connection that ends is the last one that did.
        let _next = self.listener.accept();
        let state = self.replica.state();
        assert!(!state.following && state.durable == self.had, "{state:?}");
        assert!(matches!(state.last_error, Some(SessionError::Diverged)), "{state:?}");
    }
}

#[test]
fn a_replica_goes_on_where_the_master_has_the_same_as_it() {
    let mut joined = Joined::new();
    let (from, had, end) = (joined.from, joined.had, joined.log.end());
    joined.socket.send(&Frame::heartbeat(from));
    // In pieces, one of which goes on into what is new.
    joined.send(from, from + 1);
    assert!(!joined.replica.state().following);
    joined.send(from + 1, 64 << 10);
    joined.send(64 << 10, had + 100);
    joined.send(had + 100, end);
    eventually("it has everything", || joined.replica.state().durable == end);
    assert!(joined.replica.state().following);
    let mut reported = from;
    while reported < end {
        let report = joined.socket.report().expect("it keeps the connection");
        assert!((reported..=end).contains(&report), "{report} after {reported}");
        reported = report;
    }
}

#[test]
fn a_replica_finds_out_that_the_master_has_other_bytes() {
    let mut joined = Joined::new();
    let from = joined.from;
    let mut body = joined.log.from(from, 64 << 10).to_vec();
    *body.last_mut().expect("some") ^= 1;
    joined.socket.send(&Frame::new(from, &body));
    joined.assert_diverged();
}

#[test]
fn a_replica_finds_out_that_the_master_has_less() {
    let mut joined = Joined::new();
    let from = joined.from;
    joined.send(from, from + 500);
    let (mut socket, at) = (joined.socket.share(), from + 500);
    // For as long as it listens.
    let beating = thread::spawn(move || {
        while socket.try_send(&Frame::heartbeat(at)) {
            thread::sleep(Duration::from_millis(20));
        }
    });
    joined.assert_diverged();
    beating.join().expect("no panic");
}

#[test]
fn a_replica_that_was_fenced_takes_nothing_more() {
    let mut joined = Joined::new();
    let (from, had, end) = (joined.from, joined.had, joined.log.end());
    joined.send(from, 64 << 10);
    joined.send(64 << 10, had);
    eventually("it follows", || joined.replica.state().following);
    let by = Epoch(0).next_term();
    let standing = joined.replica.fence(by).expect("it promises");
    assert_eq!(standing.end, had);
    hangs_up(&mut joined.socket);
    for _ in 0..2 {
        let mut socket = joined.listener.accept();
        let from = socket.report().expect("it reports");
        // It may hang up before all of it is sent.
        let _ = socket.try_send(&Frame::new(from, joined.log.from(from, 64 << 10)));
        let _ = socket.try_send(&Frame::new(64 << 10, joined.log.from(64 << 10, end)));
        hangs_up(&mut socket);
    }
    let state = joined.replica.state();
    let superseded = SessionError::Superseded { epoch: Epoch(0), by };
    assert_eq!(format!("{:?}", state.last_error), format!("{:?}", Some(superseded)));
    assert_eq!(state.durable, had);
}

/// Notes that what comes next is of this log, as a replica does when a primary of this crate sends it the
/// first byte.
#[derive(Debug)]
struct Joins(LogId);

impl Replicator for Joins {
    fn role(&self) -> Role {
        Role::Replica
    }

    fn start(&self, log: Arc<dyn ReplicatedLog>, _: StartPoint) -> duralog::Result<u64> {
        log.follow(Some(self.0), Epoch(1))?;
        Ok(log.confirmed())
    }

    fn admit(&self) -> Result<Admission, Refusal> {
        Err(Refusal::NotPrimary)
    }

    fn on_written(&self, _: u64) {}

    fn on_durable(&self, _: u64) {}

    fn stop(&self) {}
}

/// The store in `dir` joins a log of a primary of this crate, and leaves before it is sent anything.
fn join_a_log(dir: &Path) {
    let joins = Arc::new(Joins(LogId(NonZeroU64::MIN)));
    let store = Store::open_replicated(config(dir), Environment::default(), joins);
    store.expect("the store opens").close().expect("it closes");
}

#[test]
fn what_a_rocketmq_master_sends_is_not_taken_for_a_log_of_this_crate() {
    let temp = TempDir::new();
    let (dir, listener) = (temp.path().join("replica"), MasterListener::new());
    let log = written(&temp.path().join("master"), 10);
    join_a_log(&dir);
    let joined = replica(&dir, &listener);
    assert_eq!(joined.state().log_id, Some(LogId(NonZeroU64::MIN)));
    let mut socket = listener.accept();
    assert_eq!(socket.report(), Some(0));
    socket.send(&Frame::new(0, log.from(0, log.end())));
    eventually("it has everything", || joined.state().durable == log.end());
    assert_eq!(joined.state().log_id, None);
}

#[test]
fn what_was_joined_to_a_log_of_this_crate_no_rocketmq_master_goes_on_with() {
    let joined = Joined::new();
    let Joined { _temp: temp, log, had, listener, socket, replica: first, .. } = joined;
    first.close().expect("it closes");
    drop((first, socket));
    let dir = temp.path().join("replica");
    join_a_log(&dir);
    let replica = replica(&dir, &listener);
    let mut socket = listener.accept();
    let from = socket.report().expect("it reports");
    // It may hang up before all of it is sent.
    let _ = socket.try_send(&Frame::new(from, log.from(from, 64 << 10)));
    let joined = Joined { _temp: temp, log, had, from, listener, socket, replica };
    joined.assert_diverged();
}

/// A primary with something in its log, for which what slaves have in memory counts.
struct Master {
    primary: Primary,
    port: u16,
    /// Where the log ended when it was opened.
    end: u64,
    _temp: TempDir,
}

impl Master {
    fn new(change: impl FnOnce(&mut PrimaryOptions)) -> Self {
        let temp = TempDir::new();
        let end = written(temp.path(), 100).end();
        let mut options = PrimaryOptions::new(NodeOptions::new(NodeId(1)));
        (options.ack_level, options.max_replica_lag) = (AckLevel::InMemory, 1000);
        change(&mut options);
        let mut config = config(temp.path());
        config.sync_replica_timeout = PATIENCE;
        let primary = Primary::open(config, options).expect("the primary opens");
        let acceptor = TcpAcceptor::bind("127.0.0.1:0").expect("a port is free");
        let port = acceptor.address().port();
        primary.serve_rocketmq(acceptor).expect("it is open");
        Self { primary, port, end, _temp: temp }
    }

    /// A slave at that address of this machine's that has everything, and of which the primary knows.
    fn slave(&self, from: Ipv4Addr) -> SlaveSocket {
        let before = self.slaves();
        let mut socket = SlaveSocket::connect_from(from, self.port);
        socket.report(self.end as i64);
        eventually("it is served", || self.slaves() == before + 1);
        eventually("it has everything", || self.have(self.end));
        socket
    }

    fn slaves(&self) -> usize {
        self.primary.replicas().len()
    }

    /// Whether all slaves have acknowledged that much.
    fn have(&self, end: u64) -> bool {
        self.primary.replicas().iter().all(|slave| slave.written == end)
    }

    fn confirmed(&self) -> u64 {
        self.primary.store().stats().watermarks.confirmed
    }

    fn put(&self) -> duralog::PutResult {
        self.primary.store().put(Message::new("t", "x")).expect("accepted")
    }
}

/// Takes the next bytes of the log, and acknowledges them.
fn take(socket: &mut SlaveSocket) -> u64 {
    let end = socket.data().end();
    socket.report(end as i64);
    end
}

#[track_caller]
fn assert_one_of_two(outcome: duralog::Result<()>) {
    let refusal = Refusal::NotEnoughReplicas { available: 1, required: 2 };
    assert!(matches!(&outcome, Err(Error::Refused(is)) if *is == refusal), "{outcome:?}");
}

const HERE: Ipv4Addr = Ipv4Addr::LOCALHOST;
const THERE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

#[test]
fn slaves_at_one_address_are_one_copy_however_many_they_are() {
    let master = Master::new(|options| options.min_insync_replicas = 2);
    // The second may be the first one, come back before its old connection was given up.
    let mut slaves = [HERE; 2].map(|from| master.slave(from));
    let put = master.primary.store().submit(Message::new("t", "x")).expect("accepted");
    let [end, _] = slaves.each_mut().map(take);
    eventually("both have it", || master.have(end));
    assert_eq!(master.confirmed(), master.end);
    let put = put.wait().expect("no failure");
    assert_eq!((put.status, put.end_offset), (PutStatus::ReplicaNotAvailable, end));
    assert_one_of_two(master.primary.wait_for_replicas(2, Duration::ZERO));
    // Neither has thrown out the other.
    let end = master.put().end_offset;
    assert_eq!(slaves.each_mut().map(take), [end; 2]);
}

#[test]
fn slaves_at_one_address_are_one_copy_for_whoever_insists_on_two() {
    let master = Master::new(|options| {
        (options.min_insync_replicas, options.strict) = (2, true);
    });
    let _slaves = [HERE; 2].map(|from| master.slave(from));
    assert_one_of_two(master.primary.store().submit(Message::new("t", "x")).map(drop));
}

#[test]
fn slaves_at_two_addresses_are_two_copies() {
    let master = Master::new(|options| options.min_insync_replicas = 2);
    let mut slaves = [HERE, THERE].map(|from| master.slave(from));
    thread::scope(|scope| {
        let put = scope.spawn(|| master.put());
        let ends = slaves.each_mut().map(take);
        let put = put.join().expect("no panic");
        assert_eq!((put.status, [put.end_offset; 2]), (PutStatus::PutOk, ends));
    });
}

#[test]
fn a_slave_that_leaves_does_not_take_along_another_one_at_its_address() {
    let master = Master::new(|options| options.min_insync_replicas = 2);
    let (first, mut second) = (master.slave(HERE), master.slave(HERE));
    let mut other = master.slave(THERE);
    drop(first);
    eventually("it is gone", || master.slaves() == 2);
    thread::scope(|scope| {
        let put = scope.spawn(|| master.put());
        let ends = [&mut second, &mut other].map(take);
        let put = put.join().expect("no panic");
        assert_eq!((put.status, [put.end_offset; 2]), (PutStatus::PutOk, ends));
    });
}

#[test]
fn a_slave_that_comes_back_is_in_reach_when_it_has_said_what_it_holds() {
    let master = Master::new(|options| options.strict = true);
    let store = master.primary.store();
    assert!(store.put(Message::new("t", "x")).is_err(), "nobody is there");
    let mut socket = SlaveSocket::connect(master.port);
    socket.report(master.end as i64);
    // It says no more before it is sent something.
    master.primary.wait_for_replicas(1, PATIENCE).expect("it has everything");
    thread::scope(|scope| {
        let put = scope.spawn(|| master.put());
        let end = take(&mut socket);
        let put = put.join().expect("no panic");
        assert_eq!((put.status, put.end_offset), (PutStatus::PutOk, end));
    });
}
