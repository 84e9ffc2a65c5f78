//! A primary and an honest replica of it, with puts that go on while someone attacks.

use crate::temp::TempDir;
use crate::wire_peer::{CLUSTER, PATIENCE, Peer, SECRET};
use duralog::replication::{
    Epoch, Event, NodeId, NodeOptions, Primary, PrimaryOptions, Replica, ReplicaOptions, Secret,
    SessionError,
};
use duralog::{Message, PutStatus, StoreConfig};
use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

pub const SEGMENT_SIZE: u64 = 64 << 10;
/// The primary's: a term of its own, the first.
pub const EPOCH: u64 = 1 << 32;

/// Waits for what is bound to happen, however long it takes.
pub fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < PATIENCE, "not so after {PATIENCE:?}: {what}");
        thread::yield_now();
    }
}

/// Runs `work`, which must come to an end.
pub fn ends<T: Send + 'static>(what: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, answer) = channel();
    let worker = thread::spawn(move || done.send(work()));
    let answer = answer.recv_timeout(PATIENCE);
    assert!(answer.is_ok() || worker.is_finished(), "{what} hangs");
    answer.unwrap_or_else(|_| panic!("{what} panicked"))
}

/// What was told to an observer.
#[derive(Debug, Clone, Default)]
pub struct Heard(Arc<Mutex<Vec<Event>>>);

impl Heard {
    pub fn errors(&self) -> Vec<SessionError> {
        let events = self.0.lock().expect("no panic");
        let error = |event: &Event| match event {
            Event::Ended { error, .. } => Some(error.clone()),
            _ => None,
        };
        events.iter().filter_map(error).collect()
    }

    pub fn count(&self, is: impl Fn(&SessionError) -> bool) -> usize {
        self.errors().iter().filter(|error| is(error)).count()
    }

    /// How often a peer was accepted.
    pub fn connected(&self) -> usize {
        self.events(|event| matches!(event, Event::Connected { .. }))
    }

    /// How often a newer epoch was told of.
    pub fn superseded(&self) -> usize {
        self.events(|event| matches!(event, Event::Superseded { .. }))
    }

    fn events(&self, is: impl Fn(&Event) -> bool) -> usize {
        self.0.lock().expect("no panic").iter().filter(|event| is(event)).count()
    }

    fn observe(&self, options: NodeOptions) -> NodeOptions {
        let events = self.0.clone();
        options.observe(move |event| events.lock().expect("no panic").push(event.clone()))
    }
}

pub fn config(dir: &Path) -> StoreConfig {
    let mut config = StoreConfig::new(dir).segment_size(SEGMENT_SIZE);
    (config.index_slots, config.index_items) = (101, 1000);
    // A busy machine is no reason for another status.
    config.sync_replica_timeout = PATIENCE;
    config.sync_flush_timeout(PATIENCE)
}

pub fn node(id: u64, heard: &Heard) -> NodeOptions {
    let mut options = NodeOptions::new(NodeId(id)).cluster(CLUSTER).secret(Secret::new(SECRET));
    options.heartbeat_interval = Duration::from_millis(50);
    heard.observe(options)
}

/// Puts until it is dropped; each put must be safe.
pub struct Putting {
    stop: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Putting {
    pub fn to(primary: &Primary) -> Self {
        let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (store, stopped, counted) = (primary.store().clone(), stop.clone(), count.clone());
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::SeqCst) {
                let result = store.put(Message::new("t", vec![7; 300])).expect("it is accepted");
                assert_eq!(result.status, PutStatus::PutOk);
                counted.fetch_add(1, Ordering::SeqCst);
            }
        });
        Self { stop, count, thread: Some(thread) }
    }

    /// Waits until a few more are safe.
    pub fn goes_on(&self) {
        let before = self.count.load(Ordering::SeqCst);
        eventually("puts go on", || {
            assert!(!self.thread.as_ref().is_some_and(JoinHandle::is_finished), "a put failed");
            self.count.load(Ordering::SeqCst) >= before + 5
        });
    }

    fn end(&mut self) -> thread::Result<()> {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.take().map_or(Ok(()), JoinHandle::join)
    }
}

impl Drop for Putting {
    fn drop(&mut self) {
        let ended = self.end();
        assert!(ended.is_ok() || thread::panicking(), "a put failed");
    }
}

/// All files below a directory, but for the lock.
pub fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.file_name().is_none_or(|name| name != "lock") {
            let bytes = fs::read(&path).expect("readable");
            found.insert(path, bytes);
        }
    }
    found
}

pub struct Scene {
    pub dir: TempDir,
    pub primary: Primary,
    pub replica: Replica,
    pub address: SocketAddr,
    /// By the primary.
    pub heard: Heard,
    /// By the honest replica.
    pub honest: Heard,
}

impl Scene {
    pub fn new() -> Self {
        Self::with(|_| {})
    }

    /// One in which nobody may be silent for long.
    pub fn impatient() -> Self {
        Self::with(|options| options.node.housekeeping_interval = Duration::from_secs(2))
    }

    pub fn with(change: impl FnOnce(&mut PrimaryOptions)) -> Self {
        let dir = TempDir::in_memory();
        let (heard, honest) = (Heard::default(), Heard::default());
        let mut options = PrimaryOptions::new(node(1, &heard)).epoch(Epoch(EPOCH));
        change(&mut options);
        let primary = Primary::open(config(&dir.path().join("a")), options).expect("it opens");
        let address = primary.listen("127.0.0.1:0").expect("a port is free");
        let options = ReplicaOptions::new(node(2, &honest), address.to_string());
        let replica = Replica::open(config(&dir.path().join("b")), options).expect("it opens");
        primary.wait_for_replicas(1, PATIENCE).expect("it connects");
        let scene = Self { dir, primary, replica, address, heard, honest };
        scene.put(20);
        scene
    }

    pub fn put(&self, count: usize) {
        for _ in 0..count {
            let put = self.primary.store().put(Message::new("t", vec![7; 300]));
            assert_eq!(put.expect("it is accepted").status, PutStatus::PutOk);
        }
    }

    pub fn connect(&self) -> Peer {
        Peer::connect(self.address)
    }

    pub fn end(&self) -> u64 {
        self.primary.store().stats().watermarks.appended
    }

    /// The files of the primary, with nothing under way, by their checksums, and its watermarks. But for
    /// its checkpoint, which follows the watermarks after a while.
    pub fn state(&self) -> (BTreeMap<PathBuf, u32>, String) {
        eventually("all is at rest", || {
            let marks = self.primary.store().stats().watermarks;
            let seen = [marks.confirmed, marks.dispatched, self.replica.state().confirmed];
            seen == [marks.appended; 3]
        });
        let sums = || {
            let files = files(&self.dir.path().join("a")).into_iter();
            let lasting = files.filter(|(path, _)| !path.ends_with("checkpoint"));
            lasting.map(|(path, bytes)| (path, crc32fast::hash(&bytes))).collect::<BTreeMap<_, _>>()
        };
        let mut before = sums();
        eventually("nothing is written", || {
            let now = sums();
            std::mem::replace(&mut before, now.clone()) == now
        });
        (before, format!("{:?}", self.primary.store().stats().watermarks))
    }

    /// That an attack, made several times while puts go on and once while nothing does, ends with
    /// this error, is told once, and changes nothing.
    pub fn withstands(&self, attack: &Attack) {
        let Attack { what, is, joins, act } = attack;
        let putting = Putting::to(&self.primary);
        for _ in 0..2 {
            act(self);
            putting.goes_on();
        }
        drop(putting);
        let before = self.state();
        act(self);
        // What is told of one more connection is told after all of that.
        let eof = std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
        let (marker, after): (&[u8], fn(&SessionError) -> bool) =
            match is(&SessionError::Connection { source: Arc::new(eof) }) {
                true => (&[0; 12], is_protocol),
                false => (&[], is_connection),
            };
        let mut last = self.connect();
        last.send(marker);
        last.0.shutdown(std::net::Shutdown::Write).expect("shut down");
        last.rest();
        eventually(what, || self.heard.count(after) == 1);
        // Who is accepted each time is told of each time.
        let times = if *joins { 3 } else { 1 };
        eventually(what, || self.heard.count(is) == times);
        assert_eq!(self.heard.errors().len(), times + 1, "{what}: {:?}", self.heard.errors());
        assert_eq!(self.state(), before, "{what}");
        assert_eq!(self.honest.errors().len(), 0, "{what}: the honest replica was disturbed");
        assert_eq!((self.primary.superseded(), self.heard.superseded()), (None, 0), "{what}");
        self.put(3);
    }

    /// That both close in order, and hold the same log.
    pub fn close(self) {
        let Self { dir, primary, replica, .. } = self;
        let end = primary.store().stats().watermarks.appended;
        eventually("the honest replica has everything", || replica.state().durable == end);
        ends("closing", move || {
            primary.close().expect("the primary closes");
            replica.close().expect("the replica closes");
        });
        let [a, b] = ["a", "b"].map(|name| {
            let log = files(&dir.path().join(name).join("commitlog")).into_iter();
            let named = log.map(|(path, bytes)| (path.file_name().map(ToOwned::to_owned), bytes));
            // A file that is made ready for what comes next is not part of the log.
            named.take(end.div_ceil(SEGMENT_SIZE) as usize)
        });
        assert!(a.eq(b), "the logs differ");
    }
}

/// What a peer does, until its connection is closed, and what the primary makes of it.
pub struct Attack {
    pub what: &'static str,
    pub is: fn(&SessionError) -> bool,
    /// Whether it is accepted as a replica first.
    pub joins: bool,
    pub act: Box<dyn Fn(&Scene)>,
}

pub fn is_connection(error: &SessionError) -> bool {
    matches!(error, SessionError::Connection { .. })
}

pub fn is_protocol(error: &SessionError) -> bool {
    matches!(error, SessionError::Protocol { .. })
}
