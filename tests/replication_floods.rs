//! Many connections at once, and what they cost: a binary of its own, because it counts the threads,
//! descriptors and bytes of its process.
#![allow(unsafe_code, reason = "an allocator can only be replaced by an unsafe trait")]

#[allow(dead_code, reason = "other tests use more of it")]
#[path = "replication_hostile/scene.rs"]
mod scene;
#[path = "support/temp.rs"]
mod temp;
#[path = "support/wire_peer.rs"]
mod wire_peer;

use duralog::Message;
use duralog::replication::{Replica, ReplicaOptions, SessionError, TcpAcceptor};
use scene::{EPOCH, Heard, Putting, SEGMENT_SIZE, Scene, config, ends, eventually, node};
use std::alloc::{GlobalAlloc, Layout, System};
use std::fs;
use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;
use temp::TempDir;
use wire_peer::*;

static ALLOCATED: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

struct Counting;

fn grown(by: usize) {
    let now = ALLOCATED.fetch_add(by, Ordering::SeqCst) + by;
    PEAK.fetch_max(now, Ordering::SeqCst);
}

// SAFETY: every call goes on to the system's allocator, unchanged; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grown(layout.size());
        // SAFETY: the caller keeps the contract, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        grown(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        ALLOCATED.fetch_sub(layout.size(), Ordering::SeqCst);
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// One test at a time: each counts what the process has.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(|failed| failed.into_inner())
}

/// Threads and sockets.
fn held() -> (usize, usize) {
    let entries = |dir: &str| fs::read_dir(dir).expect("a directory").map(|one| one.expect("one"));
    let target = |path: PathBuf| fs::read_link(path).unwrap_or_default();
    let is_socket = |path: PathBuf| target(path).to_string_lossy().starts_with("socket:");
    let sockets = entries("/proc/self/fd").filter(|one| is_socket(one.path()));
    (entries("/proc/self/task").count(), sockets.count())
}

/// Connects and resets the connection at once: the primary accepts one that is gone.
fn reset(address: SocketAddr) {
    let socket = TcpStream::connect(address).expect("it listens");
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    // SAFETY: the descriptor is open, and the option is as long as it is said to be.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            (&raw const linger).cast(),
            size_of_val(&linger) as libc::socklen_t,
        )
    };
    assert_eq!(set, 0);
}

/// Opens another honest replica, which must find its way in.
fn another_gets_in(scene: &Scene, id: u64) -> (Replica, TempDir) {
    let dir = TempDir::in_memory();
    let mut options = ReplicaOptions::new(node(id, &Heard::default()), scene.address.to_string());
    (options.retry_min, options.retry_max) =
        (Duration::from_millis(10), Duration::from_millis(100));
    let replica = Replica::open(config(dir.path()), options).expect("it opens");
    let end = scene.end();
    eventually("another replica gets in", || replica.state().durable >= end);
    (replica, dir)
}

#[test]
fn thousands_of_connections_leave_no_thread_and_no_descriptor_behind() {
    let _alone = alone();
    let scene = Scene::new();
    let rocketmq = TcpAcceptor::bind("127.0.0.1:0").expect("a port is free");
    let slaves = rocketmq.address();
    scene.primary.serve_rocketmq(rocketmq).expect("it listens");
    let before = held();
    let putting = Putting::to(&scene.primary);
    for n in 0..3000 {
        let address = if n % 7 == 0 { slaves } else { scene.address };
        match n % 6 {
            0 => drop(Peer::connect(address)),
            1 | 2 => reset(address),
            3 => Peer::connect(address).send(&hello(VERSION, NONCE)),
            4 => Peer::connect(address).send(&[0xee; 100]),
            // Closed with what it was sent unread, which resets it.
            _ => Peer::connect(scene.address).introduce(),
        }
    }
    // All the time others were let in.
    let (replica, dir) = another_gets_in(&scene, 3);
    putting.goes_on();
    drop(putting);
    ends("closing", move || replica.close().expect("it closes"));
    eventually("all that was opened is closed", || held() == before);
    assert_eq!(scene.honest.errors().len(), 0);
    // A few kinds of trouble with one host.
    let told = scene.heard.errors().len();
    assert!(told <= 4 + scene.heard.connected(), "{told} times");
    drop(dir);
    scene.close();
}

#[test]
fn connections_that_are_reset_at_once_hold_up_nobody() {
    let _alone = alone();
    let scene = Scene::new();
    let (stop, address) = (Arc::new(AtomicBool::new(false)), scene.address);
    let stopped = stop.clone();
    let resetting = thread::spawn(move || {
        while !stopped.load(Ordering::SeqCst) {
            (0..100).for_each(|_| reset(address));
        }
    });
    let putting = Putting::to(&scene.primary);
    for id in 3..6 {
        let (replica, _dir) = another_gets_in(&scene, id);
        putting.goes_on();
        ends("closing", move || replica.close().expect("it closes"));
    }
    stop.store(true, Ordering::SeqCst);
    resetting.join().expect("no panic");
    drop(putting);
    scene.close();
}

/// Many connections of which each says one byte now and then, and is opened anew when it was closed.
struct Loris {
    stop: Arc<AtomicBool>,
    bytes: Arc<AtomicUsize>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Loris {
    fn on(address: SocketAddr, connections: usize, open: fn(SocketAddr) -> Peer) -> Self {
        let (stop, bytes) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let threads = (0..4).map(|_| {
            let (stopped, said) = (stop.clone(), bytes.clone());
            thread::spawn(move || {
                let mut peers: Vec<(Peer, usize)> = Vec::new();
                let sentence = hello(VERSION, NONCE);
                while !stopped.load(Ordering::SeqCst) {
                    if peers.len() < connections / 4 {
                        peers.push((open(address), 0));
                    }
                    for (peer, at) in &mut peers {
                        // The last byte is never said.
                        let next = sentence.get(*at).filter(|_| *at + 1 < sentence.len());
                        if peer
                            .0
                            .write_all(next.map_or(&[][..], |byte| std::slice::from_ref(byte)))
                            .is_err()
                        {
                            (*peer, *at) = (open(address), 0);
                        } else {
                            *at += 1;
                            said.fetch_add(1, Ordering::SeqCst);
                        }
                    }
                    thread::park_timeout(Duration::from_millis(100));
                }
            })
        });
        let threads = threads.collect();
        Self { stop, bytes, threads }
    }

    fn end(self) {
        self.stop.store(true, Ordering::SeqCst);
        self.threads.into_iter().for_each(|one| one.join().expect("no panic"));
    }
}

#[test]
fn those_who_say_one_byte_now_and_then_keep_nobody_out() {
    let _alone = alone();
    let opened: [fn(SocketAddr) -> Peer; 2] = [Peer::connect, |address| {
        let mut peer = Peer::connect(address);
        // One that knows the secret is as slow as the others; it may have been closed meanwhile.
        peer.send(&hello(VERSION, NONCE));
        if let Some((CHALLENGE, challenge)) = peer.frame() {
            let challenge: Nonce = challenge.try_into().expect("a nonce");
            peer.send(&frame(PROOF, &proof(SECRET, Side::Replica, &NONCE, &challenge)));
        }
        peer
    }];
    for open in opened {
        let scene = Scene::new();
        let putting = Putting::to(&scene.primary);
        // Far more than are served at a time.
        let loris = Loris::on(scene.address, 400, open);
        eventually("they are at it", || loris.bytes.load(Ordering::SeqCst) > 2000);
        for id in 3..6 {
            let (replica, _dir) = another_gets_in(&scene, id);
            putting.goes_on();
            ends("closing", move || replica.close().expect("it closes"));
        }
        assert_eq!(scene.honest.errors().len(), 0);
        drop(putting);
        loris.end();
        let told = scene.heard.errors().len();
        assert!(told <= 4 * (1 + scene.heard.connected()), "told {told} times");
        scene.close();
    }
}

#[test]
fn a_peer_that_never_reads_holds_up_neither_puts_nor_the_close() {
    let _alone = alone();
    let scene = Scene::with(|options| options.node.housekeeping_interval = Duration::from_secs(3));
    let deaf: Vec<Peer> = (0..20)
        .map(|n| {
            let mut peer = scene.connect();
            peer.follow(&Join::of(100 + n, SEGMENT_SIZE));
            peer
        })
        .collect();
    let store = scene.primary.store().clone();
    let put = || {
        for _ in 0..300 {
            store.put(Message::new("t", vec![7; 30_000])).expect("put").ok().expect("safe");
        }
    };
    put();
    let silent = |error: &SessionError| matches!(error, SessionError::Silent);
    eventually("they are given up", || scene.heard.count(silent) > 0);
    drop(deaf);
    let deaf: Vec<Peer> = (0..20)
        .map(|n| {
            let mut peer = scene.connect();
            peer.follow(&Join::of(200 + n, SEGMENT_SIZE));
            peer
        })
        .collect();
    put();
    scene.close();
    drop(deaf);
}

#[test]
fn one_that_is_shut_out_cannot_stay_by_reading_slowly() {
    let _alone = alone();
    let scene = Scene::new();
    let store = scene.primary.store().clone();
    for _ in 0..300 {
        store.put(Message::new("t", vec![7; 30_000])).expect("put").ok().expect("safe");
    }
    let before = held();
    let mut peer = scene.connect();
    peer.follow(&Join::of(66, SEGMENT_SIZE));
    // What is sent does not all fit into the connection, so that the last word has to wait for it.
    peer.expect(DATA);
    peer.send(&ack(EPOCH, u64::MAX, u64::MAX));
    let reading = AtomicBool::new(true);
    thread::scope(|scope| {
        scope.spawn(|| {
            while reading.load(Ordering::SeqCst) {
                let _ = std::io::Read::read(&mut peer.0, &mut [0]);
                thread::park_timeout(Duration::from_millis(20));
            }
        });
        let gone = || scene.heard.count(scene::is_protocol) == 1;
        eventually("it is put away", gone);
        reading.store(false, Ordering::SeqCst);
    });
    drop(peer);
    eventually("all that was opened is closed", || held() == before);
    scene.close();
}

#[test]
fn a_length_is_believed_only_as_far_as_bytes_come() {
    let _alone = alone();
    let scene = Scene::new();
    scene.state();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = listener.local_addr().expect("an address").to_string();
    let dirs = [TempDir::in_memory(), TempDir::in_memory()];
    let replica = |id| {
        let mut options = ReplicaOptions::new(node(id, &Heard::default()), address.clone());
        (options.retry_min, options.retry_max) =
            (Duration::from_millis(1), Duration::from_millis(1));
        options
    };
    let ours = Replica::open(config(dirs[0].path()), replica(3)).expect("it opens");
    let mut primary = Peer::accept(&listener);
    let slave = replica(4).of_rocketmq();
    let theirs = Replica::open(config(dirs[1].path()), slave).expect("it opens");
    let mut master = Peer::accept(&listener);

    let before = ALLOCATED.load(Ordering::SeqCst);
    PEAK.store(before, Ordering::SeqCst);
    let lengths = [65, 1 << 16, 1 << 24, 1 << 31, u32::MAX];
    for len in lengths {
        let mut stranger = scene.connect();
        stranger.send(&frame_of(HELLO, 0, len, &[7; 100]));
        stranger.rest();
        let mut member = scene.connect();
        member.introduce();
        member.send(&frame_of(JOIN, 0, len.max(30_000), &[7; 100]));
        member.rest();
    }
    // As much as may come, and does not.
    let members: Vec<Peer> = (0..20)
        .map(|_| {
            let mut member = scene.connect();
            member.introduce();
            member.send(&frame_of(JOIN, 0, 28_000, &[7; 100]));
            member
        })
        .collect();
    for len in lengths {
        primary.prove();
        primary.send(&frame_of(WELCOME, 0, len.max(30_000), &[7; 100]));
        primary.rest();
        primary = Peer::accept(&listener);
        master.send(&[&0u64.to_be_bytes()[..], &len.max((4 << 20) + 1).to_be_bytes()].concat());
        master.rest();
        master = Peer::accept(&listener);
        // Which of the two came first is not known.
        let mut first = [0; 8];
        let is_master = |peer: &Peer| peer.0.peek(&mut [0; 8]).is_ok();
        assert!(is_master(&primary) && is_master(&master));
        primary.0.peek(&mut first).expect("it says something");
        if first[0] != HELLO {
            std::mem::swap(&mut primary, &mut master);
        }
    }
    let most = PEAK.load(Ordering::SeqCst) - before;
    // Buffers of 64 KiB for each connection, and some for the threads.
    assert!(most < 16 << 20, "{most} bytes");
    drop((members, primary, master, listener));
    ends("closing", move || {
        ours.close().expect("it closes");
        theirs.close().expect("it closes");
    });
    scene.close();
}

#[test]
fn a_replica_begins_anew_once_it_was_told_of_as_many_queues_as_it_was_to_hear_of() {
    let _alone = alone();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = listener.local_addr().expect("an address").to_string();
    let dir = TempDir::in_memory();
    let mut options = ReplicaOptions::new(node(3, &Heard::default()), address);
    (options.retry_min, options.retry_max) = (Duration::from_millis(1), Duration::from_millis(1));
    let replica = Replica::open(config(dir.path()), options).expect("it opens");
    let mut primary = Peer::accept(&listener);
    let at = primary.prove().segment_size;
    let begin_anew = welcome(LOG_ID, EpochStart::new(1, 0), 2, at);
    let wrong = [
        vec![queues(u32::MAX, "t", &[(0, 7)])],
        vec![queues(1, "t", &[(0, 7)]), queues(1, "t", &[(1, 8)])],
        vec![queues(1, "t", &[(0, 7)]), queues(1, "t", &[])],
        vec![queues(1, "t", &[(0, 7)]), queues(0, "t", &[(1, 8), (2, 9)])],
        vec![queues(0, "../t", &[(0, 7)])],
        vec![queues(0, "t", &[(u32::MAX, 7)])],
        vec![queues(0, "t", &[(0, u64::MAX)])],
    ];
    for frames in wrong {
        primary.send(&[begin_anew.clone(), frames.concat()].concat());
        primary.rest();
        primary = Peer::accept(&listener);
        assert_eq!(primary.prove().min, 0, "{frames:?}");
        assert!(replica.store().topics().is_empty());
    }
    primary.send(&begin_anew);
    primary.send(&queues(1, "t", &[(0, 7)]));
    primary.send(&queues(0, "t", &[(1, 8)]));
    let joined = Peer::accept(&listener).prove();
    assert_eq!((joined.min, joined.end), (at, at));
    let next = |queue_id| replica.store().max_offset("t", queue_id);
    assert_eq!([0, 1, 2].map(next), [Some(7), Some(8), None]);
    drop((primary, listener));
    ends("closing", move || replica.close().expect("it closes"));
}
