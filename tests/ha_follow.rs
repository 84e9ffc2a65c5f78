//! This crate's nodes and Apache RocketMQ's with each other: a replica that follows a Java master, and
//! Java slaves that follow a primary. How RocketMQ's replication works stands in `tests/ha_interop.rs`.
//! `.ci/interop` runs this.

#[path = "support/counting.rs"]
mod counting;
#[allow(dead_code, reason = "its `main` is not called")]
#[path = "../examples/dump.rs"]
mod dump;
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

use counting::Counting;
use duralog::replication::{
    Ack, AckLevel, Connector, Epoch, Event, NodeId, NodeOptions, Primary, PrimaryOptions, Refusal,
    Replica, ReplicaOptions, SessionError, TcpAcceptor, TcpConnector,
};
use duralog::{Error, FlushMode, Message, PutStatus, Store, StoreConfig, TagFilter};
use ha_wire::SlaveSocket;
use java::{INDEX_ITEMS, INDEX_SLOTS, Java, Process, QUEUE_FILE_SIZE, SEGMENT_SIZE, messages};
use java_replica::{JavaReplica, QUEUES, TOPICS};
use rng::Rng;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};
use stored_log::Log;
use temp::TempDir;

const PATIENCE: Duration = Duration::from_secs(60);
/// Both sides' own heartbeats come every 5 s unless told otherwise.
const HEARTBEAT: &str = "haSendHeartbeatInterval=100";
const SYNC: &str = "brokerRole=SYNC_MASTER";
/// 5.x counts the master. 4.9 does not know the setting, and waits for one slave.
const TWO_REPLICAS: &str = "inSyncReplicas=2";
const INTERVAL: Duration = Duration::from_millis(100);
const BODY: u64 = 100;

/// What nodes of this crate say of each other.
#[derive(Clone, Default)]
struct Heard(Arc<Mutex<Vec<Event>>>);

impl Heard {
    fn node(&self, id: u64) -> NodeOptions {
        let heard = self.0.clone();
        let mut node = NodeOptions::new(NodeId(id))
            .observe(move |event| heard.lock().expect("no panic").push(event.clone()));
        node.heartbeat_interval = INTERVAL;
        node
    }

    fn count(&self, matches: impl Fn(&Event) -> bool) -> usize {
        self.0.lock().expect("no panic").iter().filter(|event| matches(event)).count()
    }

    fn connected(&self) -> usize {
        self.count(|event| matches!(event, Event::Connected { .. }))
    }

    /// Nothing but connections that came and went, and what an empty log begins with.
    #[track_caller]
    fn assert_no_trouble(&self) {
        let heard = self.0.lock().expect("no panic");
        for event in heard.iter() {
            let usual = matches!(
                event,
                Event::Connected { .. }
                    | Event::Restarted { .. }
                    | Event::Ended { error: SessionError::Connection { .. }, .. }
                    | Event::Ended { error: SessionError::Stopped, .. }
            );
            assert!(usual, "{heard:?}");
        }
    }
}

/// Waits for what another thread does: it must come to pass, however long that takes.
#[track_caller]
fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < PATIENCE, "not so after {PATIENCE:?}: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

fn config(dir: &Path) -> StoreConfig {
    let mut config = StoreConfig::new(dir)
        .flush_mode(FlushMode::async_default())
        .segment_size(SEGMENT_SIZE)
        .consume_queue_file_size(QUEUE_FILE_SIZE);
    (config.index_slots, config.index_items) = (INDEX_SLOTS, INDEX_ITEMS);
    config
}

fn options(heard: &Heard, connector: impl Connector + 'static) -> ReplicaOptions {
    let mut options = ReplicaOptions::connecting(heard.node(2), connector).of_rocketmq();
    options.retry_max = Duration::from_millis(200);
    options
}

fn replica_of(port: u16, dir: &Path, heard: &Heard) -> Replica {
    let connector = TcpConnector::new(format!("127.0.0.1:{port}"));
    Replica::open(config(dir), options(heard, connector)).expect("the replica opens")
}

fn reaches(replica: &Replica, end: u64) {
    eventually("the replica has everything", || replica.state().durable >= end);
    assert_eq!(replica.state().durable, end);
}

/// Every message of a Java store whose log ends there.
fn all_of(java: &mut JavaReplica, end: u64) -> Vec<Value> {
    java.reach(end);
    java.messages(&TOPICS, QUEUES)
}

/// Reads each of these messages, in the order of the queues, and no others.
#[track_caller]
fn assert_reads(store: &Store, messages: &[Value]) {
    let mut queues: BTreeMap<(&str, i32), Vec<&Value>> = BTreeMap::new();
    for message in messages {
        let topic = message["topic"].as_str().expect("a topic");
        let queue = i32::try_from(message["queueId"].as_i64().expect("a number")).expect("an id");
        queues.entry((topic, queue)).or_default().push(message);
    }
    for ((topic, queue), messages) in &queues {
        let first = messages[0]["queueOffset"].as_u64().expect("a number");
        let end = first + messages.len() as u64;
        eventually("all is in the queues", || store.max_offset(topic, *queue) == Some(end));
        assert_eq!(store.min_offset(topic, *queue), Some(first), "{topic}/{queue}");
        let (mut next, mut messages) = (first, messages.iter());
        while next < end {
            let found = store.get_view(topic, *queue, next, 256, &TagFilter::any());
            for view in found.expect("readable").messages {
                let message = messages.next().expect("not more than there are");
                assert_eq!(view.queue_offset(), next, "{topic}/{queue}");
                assert_eq!(view.physical_offset(), message["physicalOffset"], "{topic}/{queue}");
                assert_eq!(view.size(), message["size"], "{topic}/{queue}");
                assert_eq!(view.record().tags_code(), message["tagsCode"], "{topic}/{queue}");
                assert_eq!(view.topic(), *topic);
                next += 1;
            }
        }
    }
    let count: usize = queues.values().map(Vec::len).sum();
    let stored = store
        .topics()
        .into_iter()
        .flat_map(|(topic, ids)| ids.into_iter().map(move |id| (topic.clone(), id)));
    let bounds = stored.map(|(topic, id)| {
        store.max_offset(&topic, id).unwrap_or(0) - store.min_offset(&topic, id).unwrap_or(0)
    });
    assert_eq!(bounds.sum::<u64>(), count as u64, "others are in the queues, too");
}

fn a_replica_follows_a_java_master(java: Java) {
    let temp = TempDir::new();
    let (master_dir, dir) = (temp.path().join("master"), temp.path().join("replica"));
    let mut master = JavaReplica::master(java, &master_dir, 0, &[HEARTBEAT]);
    let port = master.port;
    let heard = Heard::default();
    let replica = replica_of(port, &dir, &heard);
    let mut end = 0;
    for _ in 0..4 {
        end = master.put(5000, BODY);
    }
    reaches(&replica, end);
    assert!(replica.state().following);
    replica.close().expect("it closes");

    // Closed while the master goes on, and dropped while it is sent something.
    end = master.put(20_000, BODY);
    let replica = replica_of(port, &dir, &heard);
    let (before, far) = (replica.state().durable, end - 8 * SEGMENT_SIZE);
    let putting = thread::spawn(move || {
        let end = master.put(20_000, BODY);
        (master, end)
    });
    eventually("it is on its way", || replica.state().durable > far);
    drop(replica);
    let (mut master, put) = putting.join().expect("no panic");
    let replica = replica_of(port, &dir, &heard);
    let dropped = replica.state().durable;
    assert!(before < dropped && dropped <= put);
    end = master.put(10_000, BODY);
    reaches(&replica, end);

    let connected = heard.connected();
    master.close();
    eventually("it notices", || !replica.state().following);
    // This one answers no put before the replica has acknowledged it.
    let settings = [HEARTBEAT, SYNC, TWO_REPLICAS, "slaveTimeout=60000"];
    let mut master = JavaReplica::master(java, &master_dir, port, &settings);
    master.ask("slaves 1");
    end = master.put(30_000, BODY);
    assert_eq!(master.ask(&format!("slaves 1 {end}"))["acked"], end);
    reaches(&replica, end);
    assert!(heard.connected() > connected);
    heard.assert_no_trouble();

    Log::stored(&master_dir, end).assert_same(&Log::stored(&dir, end));
    let messages = all_of(&mut master, end);
    assert_eq!(messages.len(), 100_000);
    assert_reads(&replica.store(), &messages);
    replica.close().expect("it closes");
    println!(
        "replication {}: a replica followed, {} messages in {end} bytes; it was dropped at {dropped} \
         of {put}",
        java.0,
        messages.len()
    );
}

/// Nobody can ask RocketMQ for more.
fn an_empty_replica_begins_with_the_file_that_the_master_writes(java: Java) {
    let temp = TempDir::new();
    let (master_dir, dir) = (temp.path().join("master"), temp.path().join("replica"));
    let mut master = JavaReplica::master(java, &master_dir, 0, &[HEARTBEAT]);
    let mut end = master.put(1000, BODY);
    let begin = end - end % SEGMENT_SIZE;
    assert!(begin > SEGMENT_SIZE);
    let heard = Heard::default();
    for _ in 0..2 {
        let replica = replica_of(master.port, &dir, &heard);
        eventually("it begins", || replica.state().durable >= begin);
        end = master.put(500, BODY);
        reaches(&replica, end);
        let all = Log::stored(&master_dir, end);
        let log = Log::stored(&dir, end);
        assert_eq!(log.begin, begin);
        assert!(log.bytes == all.from(begin, end));
        let mut messages = all_of(&mut master, end);
        messages.retain(|message| message["physicalOffset"].as_u64().expect("a number") >= begin);
        assert_reads(&replica.store(), &messages);
        replica.close().expect("it closes");
    }
    let restarted = |event: &Event| matches!(event, Event::Restarted { at } if *at == begin);
    assert_eq!(heard.count(restarted), 1);
    heard.assert_no_trouble();
    println!("replication {}: a replica began at {begin} and came to {end}", java.0);
}

/// Lets a replica on what is in `dir` connect again and again, and see that it is of no use.
#[track_caller]
fn assert_diverged(port: u16, dir: &Path, end: u64) {
    let before = Log::stored(dir, end);
    let heard = Heard::default();
    let connector = Arc::new(Counting::to(format!("127.0.0.1:{port}")));
    let options = options(&heard, connector.clone());
    let replica = Replica::open(config(dir), options).expect("the replica opens");
    eventually("it tries again", || connector.taken() > 2);
    let state = replica.state();
    assert!(!state.following);
    assert_eq!(state.durable, end);
    assert!(matches!(state.last_error, Some(SessionError::Diverged)), "{state:?}");
    replica.close().expect("it closes");
    let diverged =
        |event: &Event| matches!(event, Event::Ended { error: SessionError::Diverged, .. });
    assert_eq!(heard.count(diverged), 1);
    assert_eq!(heard.connected(), 0);
    before.assert_same(&Log::stored(dir, end));
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a directory");
    for entry in fs::read_dir(from).expect("a directory") {
        let path = entry.expect("an entry").path();
        let to = to.join(path.file_name().expect("a name"));
        if path.is_dir() {
            copy(&path, &to);
        } else {
            fs::copy(&path, &to).expect("copied");
        }
    }
}

fn a_replica_with_other_records_than_the_master_stays_as_it_is(java: Java) {
    let temp = TempDir::new();
    let [master_dir, shorter_dir, dir] =
        ["master", "shorter", "replica"].map(|name| temp.path().join(name));
    let mut master = JavaReplica::master(java, &master_dir, 0, &[HEARTBEAT]);
    let port = master.port;
    let heard = Heard::default();
    let replica = replica_of(port, &dir, &heard);
    reaches(&replica, master.put(1000, BODY));
    master.close();
    // What the master is left with that loses its tail.
    copy(&master_dir, &shorter_dir);
    let mut master = JavaReplica::master(java, &master_dir, port, &[HEARTBEAT]);
    let end = master.put(300, BODY);
    reaches(&replica, end);
    replica.close().expect("it closes");
    drop(master);

    let mut master = JavaReplica::master(java, &shorter_dir, port, &[HEARTBEAT]);
    assert_diverged(port, &dir, end);
    // It has records there again, and they are others.
    assert!(master.put(1000, BODY + 1) > end);
    assert_diverged(port, &dir, end);
    drop(master);

    // This crate's own records are nobody else's.
    let master = JavaReplica::master(java, &master_dir, port, &[HEARTBEAT]);
    let primary = Primary::open(config(&dir), PrimaryOptions::new(heard.node(2)).ack(Ack::Async));
    let primary = primary.expect("it opens");
    let end = put(primary.store(), end, 10);
    primary.close().expect("it closes");
    assert_diverged(port, &dir, end);
    master.close();
    println!("replication {}: a replica kept its {end} bytes to itself", java.0);
}

/// `examples/replica_follow.rs`, at work.
struct Follower {
    process: Process,
    lines: BufReader<ChildStdout>,
    input: ChildStdin,
}

impl Follower {
    fn command(port: u16, dir: &Path) -> Command {
        let tests = std::env::current_exe().expect("this program");
        let built = tests.ancestors().nth(2).expect("where tests and examples are built");
        let mut command = Command::new(built.join("examples/replica_follow"));
        command.arg(format!("127.0.0.1:{port}")).arg(dir);
        command.args(["--segment-size", &SEGMENT_SIZE.to_string()]);
        command
    }

    fn start(port: u16, dir: &Path) -> Self {
        let mut command = Self::command(port, dir);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = Process(command.spawn().expect("built by .ci/interop"));
        let lines = BufReader::new(process.0.stdout.take().expect("piped"));
        let input = process.0.stdin.take().expect("piped");
        Self { process, lines, input }
    }

    /// Reads until it says that it has come to `end` and follows.
    fn reaches(&mut self, end: u64) {
        let wanted = format!("durable {end}, confirmed {end}, following ");
        let mut line = String::new();
        while !line.starts_with(&wanted) {
            line.clear();
            assert!(self.lines.read_line(&mut line).expect("UTF-8") > 0, "it ended before {end}");
        }
    }

    fn end(self) {
        let Self { mut process, input, .. } = self;
        drop(input);
        assert!(process.0.wait().expect("it ends").success());
    }
}

fn the_example_follows_a_java_master(java: Java) {
    let temp = TempDir::new();
    let (master_dir, dir) = (temp.path().join("master"), temp.path().join("replica"));
    let mut master = JavaReplica::master(java, &master_dir, 0, &[HEARTBEAT]);
    let port = master.port;
    let mut follower = Follower::start(port, &dir);
    let begun = master.put(100, BODY);
    follower.reaches(begun);
    let putting = thread::spawn(move || {
        let end = master.put(10_000, BODY);
        (master, end)
    });
    let files = || fs::read_dir(dir.join("commitlog")).expect("a directory").count();
    eventually("it is on its way", || files() > 8);
    follower.process.kill();
    let (mut master, end) = putting.join().expect("no panic");
    let mut follower = Follower::start(port, &dir);
    follower.reaches(end);
    follower.end();
    Log::stored(&master_dir, end).assert_same(&Log::stored(&dir, end));

    let mut dumped = Vec::new();
    dump::dump(&dir, &mut dumped).expect("readable");
    let mut stored = all_of(&mut master, end);
    stored.sort_by_key(|message| message["physicalOffset"].as_u64());
    assert_eq!(stored.len(), 10_100);
    assert!(messages(&dumped) == stored, "other messages are in the log");

    master.close();
    let output = Follower::command(port, &dir).args(["--for", "3"]).output().expect("it runs");
    assert!(output.status.success());
    let said = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(said.contains(&format!("durable {end}, ")) && said.contains("not following"), "{said}");
    println!("replication {}: the example followed to {end}, killed on the way", java.0);
}

/// Puts messages; where the log ends then.
fn put(store: &Store, seed: u64, count: u64) -> u64 {
    let mut rng = Rng(seed);
    let mut end = 0;
    for n in 0..count {
        let size = if rng.one_in(100) { 4000 } else { rng.index(200) };
        let body: Vec<u8> = (0..size).map(|_| rng.next() as u8).collect();
        let message = Message::new(rng.pick(&TOPICS), body)
            .queue(rng.index(QUEUES as usize) as i32)
            .tag(rng.pick(&["paid", "late"]))
            .key(format!("key-{n}"));
        let put = store.put(&message).expect("accepted");
        assert_eq!(put.status, PutStatus::PutOk);
        end = put.end_offset;
    }
    end
}

fn primary(dir: &Path, heard: &Heard, ack: Ack, level: AckLevel) -> Primary {
    let mut options = PrimaryOptions::new(heard.node(1)).ack(ack);
    options.ack_level = level;
    let mut config = config(dir);
    config.sync_replica_timeout = Duration::from_secs(1);
    Primary::open(config, options).expect("the primary opens")
}

/// Serves slaves on `port`, or on any if that is 0.
fn serve(primary: &Primary, port: u16) -> u16 {
    let acceptor = TcpAcceptor::bind((Ipv4Addr::LOCALHOST, port)).expect("the port is free");
    let port = acceptor.address().port();
    primary.serve_rocketmq(acceptor).expect("it is open");
    port
}

fn a_java_slave_follows_a_primary(java: Java) {
    let temp = TempDir::new();
    let (dir, slave_dir) = (temp.path().join("primary"), temp.path().join("slave"));
    let heard = Heard::default();
    let first = primary(&dir, &heard, Ack::Async, AckLevel::Durable);
    let port = serve(&first, 0);
    let mut slave = JavaReplica::slave(java, &slave_dir, port, &[HEARTBEAT]);
    // It begins with the file that is written when it connects.
    slave.reach(put(first.store(), 1, 100));
    slave.reach(put(first.store(), 2, 39_900));

    slave.close();
    put(first.store(), 3, 20_000);
    let mut slave = JavaReplica::slave(java, &slave_dir, port, &[HEARTBEAT]);
    let end = put(first.store(), 4, 10_000);
    slave.reach(end);

    first.close().expect("it closes");
    drop(first);
    let primary = primary(&dir, &heard, Ack::Async, AckLevel::Durable);
    serve(&primary, port);
    slave.wake();
    let end = put(primary.store(), 5, 30_000);
    let messages = all_of(&mut slave, end);
    Log::stored(&dir, end).assert_same(&Log::stored(&slave_dir, end));
    assert_eq!(messages.len(), 100_000);
    assert_reads(primary.store(), &messages);
    heard.assert_no_trouble();
    primary.close().expect("it closes");
    println!(
        "replication {}: a slave followed this crate's primary, {} messages in {end} bytes",
        java.0,
        messages.len()
    );
}

fn what_a_java_slave_holds_counts_as_in_memory(java: Java) {
    let temp = TempDir::new();
    let (dir, slave_dir) = (temp.path().join("primary"), temp.path().join("slave"));
    let heard = Heard::default();
    let status = |primary: &Primary| {
        primary.store().put(Message::new("orders", "x")).expect("accepted").status
    };
    let first = primary(&dir, &heard, Ack::Sync, AckLevel::InMemory);
    assert_eq!(status(&first), PutStatus::ReplicaNotAvailable);
    let port = serve(&first, 0);
    let mut slave = JavaReplica::slave(java, &slave_dir, port, &[HEARTBEAT]);
    first.wait_for_replicas(1, PATIENCE).expect("it connects");
    let end = put(first.store(), 1, 500);
    slave.reach(end);
    let replicas = first.replicas();
    assert_eq!((replicas.len(), replicas[0].written, replicas[0].durable), (1, end, 0));
    first.close().expect("it closes");
    drop(first);

    let primary = primary(&dir, &heard, Ack::Sync, AckLevel::Durable);
    serve(&primary, port);
    slave.wake();
    eventually("it connects", || primary.replicas().iter().any(|slave| slave.written >= end));
    // It is given the log, and no put waits for what it could never say.
    assert_eq!(status(&primary), PutStatus::ReplicaNotAvailable);
    slave.reach(primary.store().stats().watermarks.appended);
    slave.close();
    eventually("it is gone", || primary.replicas().is_empty());
    assert_eq!(status(&primary), PutStatus::ReplicaNotAvailable);
    heard.assert_no_trouble();
    println!("replication {}: a slave's acknowledgement counted where it may", java.0);
}

fn a_java_slave_with_a_longer_log_is_told_nothing(java: Java) {
    let temp = TempDir::new();
    let [longer_dir, dir, slave_dir] =
        ["longer", "primary", "slave"].map(|name| temp.path().join(name));
    let heard = Heard::default();
    let longer = primary(&longer_dir, &heard, Ack::Async, AckLevel::Durable);
    let port = serve(&longer, 0);
    let mut slave = JavaReplica::slave(java, &slave_dir, port, &[HEARTBEAT]);
    slave.reach(put(longer.store(), 1, 10));
    let longer_end = put(longer.store(), 2, 500);
    slave.reach(longer_end);
    let before = Log::stored(&slave_dir, longer_end);
    longer.close().expect("it closes");
    drop(longer);

    let heard = Heard::default();
    let primary = primary(&dir, &heard, Ack::Async, AckLevel::Durable);
    let end = put(primary.store(), 3, 300);
    assert!(end < longer_end);
    serve(&primary, port);
    slave.wake();
    let refused = |event: &Event| match event {
        Event::Ended { error: SessionError::Log(Error::Refused(refusal)), .. } => {
            *refusal == Refusal::OutOfPlace { end, at: longer_end }
        }
        _ => false,
    };
    eventually("it is refused", || heard.count(refused) > 0);
    // As is whoever else claims to have more; such a one hears nothing at all.
    for _ in 0..3 {
        let mut socket = SlaveSocket::connect(port);
        socket.report(longer_end as i64);
        assert_eq!(socket.frame(), None);
    }
    assert_eq!(heard.count(refused), 1);
    assert!(primary.replicas().is_empty());
    assert_eq!(slave.ask("offset")["max"], longer_end);
    before.assert_same(&Log::stored(&slave_dir, longer_end));
    // One that has what is here is served meanwhile.
    let mut socket = SlaveSocket::connect(port);
    socket.report(SEGMENT_SIZE as i64);
    assert_eq!(socket.data().offset, SEGMENT_SIZE);
    println!("replication {}: a slave that has more than there is was told nothing", java.0);
}

fn a_replica_takes_over_from_a_java_master(java: Java) {
    let temp = TempDir::new();
    let (master_dir, dir) = (temp.path().join("master"), temp.path().join("replica"));
    let mut master = JavaReplica::master(java, &master_dir, 0, &[HEARTBEAT]);
    let heard = Heard::default();
    let replica = replica_of(master.port, &dir, &heard);
    let taken_over = master.put(2000, BODY);
    reaches(&replica, taken_over);
    let messages = all_of(&mut master, taken_over);
    eventually("it shows everything", || {
        replica.store().stats().watermarks.dispatched >= taken_over
    });
    master.close();
    let refused = replica.store().put(Message::new("orders", "x"));
    assert!(matches!(refused, Err(Error::Refused(Refusal::NotPrimary))), "{refused:?}");
    let standing = replica.standing().expect("it is open");
    assert_eq!((standing.epoch, standing.end), (Epoch(0), taken_over));
    replica.fence(standing.epoch.next_term()).expect("it promises");
    let options = PrimaryOptions::new(heard.node(2)).ack(Ack::Async);
    let primary = replica.promote(options).expect("it takes over");
    assert_reads(primary.store(), &messages);
    put(primary.store(), 1, 1000);

    // The old master has nothing else, and follows.
    let port = serve(&primary, 0);
    let mut old = JavaReplica::slave(java, &master_dir, port, &[HEARTBEAT]);
    let end = put(primary.store(), 2, 1000);
    let messages = all_of(&mut old, end);
    assert_eq!(messages.len(), 4000);
    assert_reads(primary.store(), &messages);
    old.close();
    primary.close().expect("it closes");
    drop(primary);
    heard.assert_no_trouble();
    Log::stored(&dir, end).assert_same(&Log::stored(&master_dir, end));

    let mut listed = java.run("list", &dir, &[]);
    let place = |message: &Value| message["physicalOffset"].as_u64();
    listed.sort_by_key(place);
    let mut messages = messages;
    messages.sort_by_key(place);
    assert!(
        listed == messages,
        "the Java store reads other messages in the new primary's directory"
    );
    println!("replication {}: a replica took over at {taken_over} and went on to {end}", java.0);
}

for_each_version! {
    a_replica_follows_a_java_master
    an_empty_replica_begins_with_the_file_that_the_master_writes
    a_replica_with_other_records_than_the_master_stays_as_it_is
    a_java_slave_follows_a_primary
    what_a_java_slave_holds_counts_as_in_memory
    a_java_slave_with_a_longer_log_is_told_nothing
    a_replica_takes_over_from_a_java_master
    the_example_follows_a_java_master
}
