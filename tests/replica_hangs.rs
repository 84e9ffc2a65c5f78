//! A replica whose disk hangs while its log is cut, or while it closes, and is well again later.

#[path = "support/gate.rs"]
mod gate;
#[path = "support/hooked.rs"]
mod hooked;
#[path = "support/temp.rs"]
mod temp;

use duralog::disk::{HostDisk, SimCall};
use duralog::replication::{
    Ack, Connector, Event, NodeId, NodeOptions, Primary, PrimaryOptions, Replica, ReplicaOptions,
    SessionError, Stream, TcpConnector,
};
use duralog::{Environment, Error, Message, PutStatus, Store, StoreConfig};
use gate::Gate;
use hooked::Hooked;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};
use temp::TempDir;

const PATIENCE: Duration = Duration::from_secs(60);

fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < PATIENCE, "not so after {PATIENCE:?}: {what}");
        thread::yield_now();
    }
}

/// Goes where it is told.
#[derive(Debug, Clone, Default)]
struct Turning(Arc<Mutex<String>>);

impl Turning {
    fn to(&self, address: impl ToString) {
        *self.0.lock().expect("no panic") = address.to_string();
    }
}

impl Connector for Turning {
    fn connect(&self, limit: Duration, patience: Duration) -> io::Result<Stream> {
        let address = self.0.lock().expect("no panic").clone();
        TcpConnector::new(address).connect(limit, patience)
    }
}

fn config(dir: &Path) -> StoreConfig {
    let mut config = StoreConfig::new(dir).segment_size(64 << 10);
    (config.index_slots, config.index_items) = (101, 1000);
    config
}

fn put(store: &Store, topic: &str) -> PutStatus {
    store.put(Message::new(topic, vec![7; 300])).expect("it is accepted").status
}

/// R is told to cut its log while the thread that makes its queues durable hangs `at` such a call. Waits
/// for what comes of that, `meanwhile`; then the disk is well again, and R follows.
fn is_cut_while_its_disk_hangs(at: (SimCall, usize), meanwhile: fn(&Arc<Replica>)) {
    let dir = TempDir::new();
    let [p_dir, q_dir, r_dir] = ["p", "q", "r"].map(|name| dir.path().join(name));
    let mut p_config = config(&p_dir);
    p_config.sync_replica_timeout = Duration::from_millis(200);
    let node = |id| NodeOptions::new(NodeId(id));
    let options = PrimaryOptions::new(node(1)).min_insync_replicas(2);
    let p = Primary::open(p_config, options).expect("it opens");
    let address = p.listen("127.0.0.1:0").expect("a port is free").to_string();
    let q = Replica::open(config(&q_dir), ReplicaOptions::new(node(2), address.clone()));
    let q = q.expect("it opens");

    let gate = Gate::new("duralog-checkpoint", at);
    let environment = Environment::on(Hooked::over(HostDisk::shared(), gate.clone()));
    let mut r_config = config(&r_dir);
    r_config.queue_checkpoint_bytes = 4096;
    r_config.log.close_timeout = Duration::from_millis(200);
    let turning = Turning::default();
    turning.to(address);
    let mut r_options = ReplicaOptions::connecting(node(3), turning.clone());
    r_options.retry_max = r_options.retry_min;
    let r = Arc::new(Replica::open_in(r_config, environment, r_options).expect("it opens"));
    p.wait_for_replicas(2, PATIENCE).expect("they connect");
    eventually("puts go through", || put(p.store(), "t") == PutStatus::PutOk);
    gate.set(true);
    let mut topics = 0;
    eventually("the thread hangs", || {
        topics += 1;
        put(p.store(), &format!("t{topics}"));
        gate.is_reached()
    });
    // A tail that Q lacks.
    let term = p.epoch().next_term();
    q.fence(term).expect("it promises");
    eventually("Q has left", || p.replicas().iter().filter(|one| one.connected).count() == 1);
    put(p.store(), "t");
    let end = p.store().stats().watermarks.appended;
    eventually("R has the tail", || r.state().durable == end);
    p.close().expect("it closes");
    drop(p);

    let (told, hears) = mpsc::channel();
    let observed = node(2).observe(move |event| {
        if let Event::Ended { .. } = event {
            // Nobody listens any more after the first.
            let _ = told.send(());
        }
    });
    let q = q.promote(PrimaryOptions::new(observed).ack(Ack::Async)).expect("it takes over");
    turning.to(q.listen("127.0.0.1:0").expect("a port is free"));
    hears.recv_timeout(PATIENCE).expect("R is told to cut its log");
    meanwhile(&r);
    gate.set(false);
    eventually("R follows", || r.state().following);
    assert_eq!(put(q.store(), "t"), PutStatus::PutOk);
    let end = q.store().stats().watermarks.appended;
    eventually("R has it", || r.state().durable == end);
}

#[test]
fn a_replica_follows_again_once_a_call_that_outlasted_the_close_is_over() {
    // What comes first is about what is confirmed, and the cut itself would wait for that.
    is_cut_while_its_disk_hangs((SimCall::Sync, 3), |r| {
        let is_locked =
            |error: &SessionError| matches!(error, SessionError::Log(Error::Locked { .. }));
        eventually("nobody else may have the directory", || {
            r.state().last_error.as_ref().is_some_and(is_locked)
        });
    });
}

#[test]
fn whoever_asks_how_a_replica_gets_on_does_not_wait_for_the_disk_that_it_cuts_its_log_on() {
    is_cut_while_its_disk_hangs((SimCall::Create, 1), |r| {
        let (asking, (answered, answers)) = (r.clone(), mpsc::channel());
        thread::spawn(move || {
            for _ in 0..1000 {
                let _ = answered.send(asking.state());
                thread::yield_now();
            }
        });
        for _ in 0..1000 {
            let state = answers.recv_timeout(PATIENCE).expect("it is not at the disk");
            assert!(!state.following);
        }
    });
}

#[test]
fn a_replica_vouches_for_nothing_that_an_older_primary_has_told_it_to_cut() {
    let dir = TempDir::new();
    let [p_dir, q_dir, r_dir] = ["p", "q", "r"].map(|name| dir.path().join(name));
    let node = |id| NodeOptions::new(NodeId(id));
    let alone = |id| PrimaryOptions::new(node(id)).ack(Ack::Async);
    let p = Primary::open(config(&p_dir), alone(1).min_insync_replicas(2)).expect("it opens");
    let address = p.listen("127.0.0.1:0").expect("a port is free").to_string();
    let q = Replica::open(config(&q_dir), ReplicaOptions::new(node(2), address.clone()));
    let q = q.expect("it opens");
    let end = |primary: &Primary| primary.store().stats().watermarks.appended;
    assert_eq!(put(p.store(), "t"), PutStatus::PutOk);
    eventually("Q has it", || q.state().durable == end(&p));
    let shared = end(&p);
    // R has a tail that Q lacks.
    q.close().expect("it closes");
    drop(q);
    let gate = Gate::new("duralog-replica", (SimCall::Open, 1));
    let environment = Environment::on(Hooked::over(HostDisk::shared(), gate.clone()));
    let mut r_config = config(&r_dir);
    r_config.log.close_timeout = Duration::from_millis(200);
    let turning = Turning::default();
    turning.to(address);
    let mut r_options = ReplicaOptions::connecting(node(3), turning.clone());
    r_options.retry_max = r_options.retry_min;
    let r = Replica::open_in(r_config, environment, r_options).expect("it opens");
    assert_eq!(put(p.store(), "t"), PutStatus::PutOk);
    eventually("R has the tail", || r.state().durable == end(&p));
    turning.to("127.0.0.1:9");
    let mut term = p.epoch().next_term();
    p.close().expect("it closes");
    drop(p);
    let q = Primary::open(config(&q_dir), alone(2).epoch(term)).expect("it takes over");
    gate.set(true);
    turning.to(q.listen("127.0.0.1:0").expect("a port is free"));
    eventually("it hangs before the cut is ordered", || gate.is_reached());
    term = term.next_term();
    let fenced = r.fence(term);
    gate.set(false);
    assert!(matches!(fenced, Err(Error::Closed)), "{fenced:?}");
    let mut standing = None;
    eventually("it has opened its store again", || {
        term = term.next_term();
        standing = r.fence(term).ok();
        standing.is_some()
    });
    assert_eq!(standing.map(|standing| standing.end), Some(shared));
}

/// A replica that is not waited for for long, with its primary.
fn impatient(dir: &TempDir, gate: &Arc<Gate>) -> (Primary, Replica, StoreConfig) {
    let node = |id| NodeOptions::new(NodeId(id));
    let options = PrimaryOptions::new(node(1)).ack(Ack::Async);
    let primary = Primary::open(config(&dir.path().join("p")), options).expect("it opens");
    let address = primary.listen("127.0.0.1:0").expect("a port is free").to_string();
    let environment = Environment::on(Hooked::over(HostDisk::shared(), gate.clone()));
    let mut config = config(&dir.path().join("r"));
    config.log.close_timeout = Duration::from_millis(200);
    let mut options = ReplicaOptions::new(node(2), address);
    options.retry_max = options.retry_min;
    let replica = Replica::open_in(config.clone(), environment, options).expect("it opens");
    assert_eq!(put(primary.store(), "t"), PutStatus::PutOk);
    let end = primary.store().stats().watermarks.appended;
    eventually("it follows", || replica.state().durable == end);
    (primary, replica, config)
}

/// Closing it again works once nothing hangs any more.
fn is_closed_in_the_end(replica: &Replica, config: &StoreConfig) {
    eventually("the directory is free", || {
        replica.close().expect("it is closed");
        Store::open(config.clone()).is_ok()
    });
}

#[test]
fn a_replica_that_is_closed_again_lets_others_have_the_directory_once_no_thread_hangs() {
    let (dir, gate) = (TempDir::new(), Gate::new("duralog-sync", (SimCall::Sync, 1)));
    let (primary, replica, config) = impatient(&dir, &gate);
    gate.set(true);
    assert_eq!(put(primary.store(), "t"), PutStatus::PutOk);
    eventually("the sync hangs", || gate.is_reached());
    assert!(matches!(replica.close(), Err(Error::CloseTimeout { .. })));
    gate.set(false);
    is_closed_in_the_end(&replica, &config);
}

#[test]
fn a_replica_that_is_closed_while_it_opens_its_store_again_stays_closed() {
    let (dir, gate) = (TempDir::new(), Gate::new("duralog-replica", (SimCall::Rename, 1)));
    let (primary, replica, config) = impatient(&dir, &gate);
    gate.set(true);
    // As it is when a write has failed.
    replica.store().close().expect("it closes");
    primary.close().expect("it closes");
    eventually("it opens its store again", || gate.is_reached());
    assert!(matches!(replica.close(), Err(Error::CloseTimeout { .. })));
    gate.set(false);
    is_closed_in_the_end(&replica, &config);
    assert!(!replica.store().is_open());
}
