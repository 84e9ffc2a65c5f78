//! RocketMQ's protocol, in which nobody proves anything: a slave that is none, and a master.

use crate::rng::Rng;
use crate::scene::{
    Heard, Putting, SEGMENT_SIZE, Scene, config, ends, eventually, files, is_connection,
    is_protocol, node,
};
use crate::temp::TempDir;
use crate::wire_peer::{NOTHING, PATIENCE, Peer};
use duralog::replication::{
    AckLevel, Primary, PrimaryOptions, Refusal, Replica, ReplicaOptions, SessionError, TcpAcceptor,
};
use duralog::{Error, Message, Store};
use std::io::Read;
use std::net::{Shutdown, SocketAddr, TcpListener};
use std::path::Path;
use std::time::Duration;

fn is_out_of_place(error: &SessionError) -> bool {
    matches!(error, SessionError::Log(Error::Refused(Refusal::OutOfPlace { .. })))
}

fn is_silent(error: &SessionError) -> bool {
    matches!(error, SessionError::Silent)
}

fn report(offset: i64) -> Vec<u8> {
    offset.to_be_bytes().to_vec()
}

/// That a slave that does this is left with that error, told once but for those who were served first,
/// and that nothing comes of it.
fn withstands(
    what: &str,
    is: fn(&SessionError) -> bool,
    is_served: bool,
    act: impl Fn(&mut Peer, &Scene),
) {
    let scene = Scene::impatient();
    let acceptor = TcpAcceptor::bind("127.0.0.1:0").expect("a port is free");
    let address = acceptor.address();
    scene.primary.serve_rocketmq(acceptor).expect("it listens");
    let putting = Putting::to(&scene.primary);
    for _ in 0..2 {
        act(&mut Peer::connect(address), &scene);
        putting.goes_on();
    }
    drop(putting);
    let before = scene.state();
    act(&mut Peer::connect(address), &scene);
    let told = if is_served { 3 } else { 1 };
    eventually(what, || scene.heard.count(is) == told);
    assert_eq!(scene.heard.errors().len(), told, "{what}: {:?}", scene.heard.errors());
    assert_eq!(scene.state(), before, "{what}");
    assert_eq!(scene.honest.errors().len(), 0, "{what}");
    let nodes: Vec<u64> = scene.primary.replicas().iter().map(|one| one.node.0).collect();
    assert_eq!(nodes, [2], "{what}: what is gone leaves nothing behind");
    scene.put(3);
    scene.close();
}

/// A report in the place of the first one.
fn reports(what: &str, is: fn(&SessionError) -> bool, bytes: Vec<u8>) {
    withstands(what, is, false, |peer, _| {
        peer.send(&bytes);
        assert_eq!(peer.rest(), NOTHING, "{what}");
    });
}

#[test]
fn a_slave_that_wants_what_is_not_there_is_told_nothing() {
    for offset in [1 << 20, 1 << 40, i64::MAX, i64::MAX - SEGMENT_SIZE as i64] {
        reports("an offset beyond the log", is_out_of_place, report(offset));
    }
    reports("another protocol", is_out_of_place, b"GET / HTTP/1.1\r\n\r\n".to_vec());
    let mut rng = Rng(7);
    let mut garbage: Vec<u8> = (0..64).map(|_| rng.next() as u8).collect();
    garbage[0] &= 0x7f;
    reports("garbage", is_out_of_place, garbage);
    // Negative numbers mean nothing, however many come.
    let negative = [report(-1), report(i64::MIN), report(-(1 << 40))].concat();
    reports("negative offsets", is_silent, negative.clone());
    reports(
        "negative offsets and a huge one",
        is_out_of_place,
        [negative, report(1 << 50)].concat(),
    );
}

#[test]
fn a_slave_that_says_half_a_report_is_told_nothing() {
    withstands("silence", is_silent, false, |peer, _| assert_eq!(peer.rest(), NOTHING));
    withstands("half a report and silence", is_silent, false, |peer, _| {
        peer.send(&report(0)[..7]);
        assert_eq!(peer.rest(), NOTHING);
    });
    withstands("half a report and the end", is_connection, false, |peer, _| {
        peer.send(&report(0)[..7]);
        peer.0.shutdown(Shutdown::Write).expect("shut down");
        assert_eq!(peer.rest(), NOTHING);
    });
}

#[test]
fn a_slave_that_acknowledges_what_was_never_sent_is_left() {
    for far in [1 << 30, i64::MAX] {
        withstands("an ack of what was never put", is_protocol, true, |peer, _| {
            peer.send(&report(0));
            assert!(peer.0.peek(&mut [0; 12]).expect("it is served") > 0);
            peer.send(&report(far));
            peer.rest();
        });
    }
    withstands("an ack of the next byte", is_protocol, true, |peer, scene| {
        peer.send(&report(0));
        assert!(peer.0.peek(&mut [0; 12]).expect("it is served") > 0);
        peer.send(&report(scene.end() as i64 + (1 << 20)));
        peer.rest();
    });
    withstands("silence", is_silent, true, |peer, _| {
        peer.send(&report(0));
        peer.rest();
    });
    withstands("reports that fall, and the end", is_connection, true, |peer, _| {
        peer.send(&[report(0), report(-1), report(0), report(i64::MIN)].concat());
        assert!(peer.0.peek(&mut [0; 12]).expect("it is served") > 0);
        peer.0.shutdown(Shutdown::Write).expect("shut down");
        peer.rest();
    });
}

/// A frame of a master's.
fn frame(offset: u64, size: u32, bytes: &[u8]) -> Vec<u8> {
    [&offset.to_be_bytes()[..], &size.to_be_bytes(), bytes].concat()
}

/// The log of a store that never had a replica, as RocketMQ's would be.
fn log(dir: &Path, messages: u64) -> Vec<u8> {
    let mut config = config(dir);
    config.log.record_crc = false;
    let store = Store::open(config).expect("it opens");
    let mut end = 0;
    for _ in 0..messages {
        end = store.put(Message::new("t", vec![7; 300])).expect("put").end_offset;
    }
    store.close().expect("it closes");
    let mut log: Vec<u8> = files(&dir.join("commitlog")).into_values().flatten().collect();
    log.truncate(end as usize);
    log
}

fn follow(dir: &Path, address: SocketAddr, heard: &Heard) -> Replica {
    let mut node = node(3, heard);
    node.housekeeping_interval = Duration::from_secs(2);
    let mut options = ReplicaOptions::new(node, address.to_string()).of_rocketmq();
    (options.retry_min, options.retry_max) = (Duration::from_millis(1), Duration::from_millis(1));
    Replica::open(config(dir), options).expect("it opens")
}

/// What the slave reports first: not all that it holds, so that it can compare the end of it.
fn reported(peer: &mut Peer, held: u64) -> u64 {
    let mut first = [0; 8];
    peer.0.read_exact(&mut first).expect("it reports");
    let first = u64::from_be_bytes(first);
    assert!(first <= held && (first == 0) == (held == 0), "{first} of {held}");
    first
}

/// The log from `from` to `to`.
fn sent(log: &[u8], from: u64, to: u64) -> Vec<u8> {
    frame(from, (to - from) as u32, &log[from as usize..to as usize])
}

/// That a slave whose master does this leaves it with that error, keeps what it has, and follows one that
/// gives it the log afterwards. It holds the first `held` messages of ten.
fn leaves(
    what: &'static str,
    held: u64,
    is: fn(&SessionError) -> bool,
    act: impl Fn(&mut Peer, u64, &[u8]) + Send + 'static,
) {
    let (whole, copy) = (TempDir::in_memory(), TempDir::in_memory());
    let log = log(whole.path(), 10);
    let end = log.len() as u64 / 10 * held;
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = listener.local_addr().expect("an address");
    let give = |from: u64, to: u64| {
        let replica = follow(copy.path(), address, &Heard::default());
        let mut peer = Peer::accept(&listener);
        let first = reported(&mut peer, from);
        peer.send(&sent(&log, first, to));
        eventually("it takes over what is sound", || replica.state().durable == to);
        ends("closing", move || replica.close().expect("it closes"));
    };
    give(0, end);
    let before = files(&copy.path().join("commitlog"));
    let heard = Heard::default();
    let replica = follow(copy.path(), address, &heard);
    let (acting, whole) = (listener.try_clone().expect("a handle"), log.clone());
    let acted = std::thread::spawn(move || {
        for _ in 0..3 {
            let mut peer = Peer::accept(&acting);
            let first = reported(&mut peer, end);
            if first < end {
                peer.send(&sent(&whole, first, end));
            }
            act(&mut peer, end, &whole[end as usize..]);
        }
        drop(Peer::accept(&acting));
    });
    eventually(what, || heard.count(is) >= 1);
    acted.join().expect("the peer got what it expected");
    let state = replica.state();
    assert_eq!((state.durable, state.confirmed), (end, end), "{what}");
    ends("closing", move || replica.close().expect("it closes"));
    // Who has shown that it has the same log is told of each time.
    let connected = if held == 0 { 1 } else { 3 };
    assert!((1..=connected).contains(&heard.count(is)), "{what}: {:?}", heard.errors());
    assert_eq!(files(&copy.path().join("commitlog")), before, "{what}");
    // Those that were told to go away have not all been accepted.
    listener.set_nonblocking(true).expect("set");
    while listener.accept().is_ok() {}
    listener.set_nonblocking(false).expect("set");
    give(end, log.len() as u64);
}

fn is_diverged(error: &SessionError) -> bool {
    matches!(error, SessionError::Diverged)
}

#[test]
fn a_frame_of_a_size_that_cannot_be_is_refused_before_it_comes() {
    for size in [(4 << 20) + 1, i32::MAX as u32, -1_i32 as u32, i32::MIN as u32] {
        for held in [0, 5] {
            leaves("a size that cannot be", held, is_protocol, move |peer, end, _| {
                peer.send(&frame(end, size, &[]));
                peer.rest();
            });
        }
    }
}

#[test]
fn a_frame_of_another_place_is_not_taken() {
    for at in [0, 1, 1 << 40, i64::MAX as u64, i64::MIN as u64, u64::MAX] {
        leaves("a frame of another place", 5, is_diverged, move |peer, _, rest| {
            peer.send(&frame(at, rest.len() as u32, rest));
            peer.rest();
        });
    }
    for at in [1, SEGMENT_SIZE - 1, i64::MAX as u64, u64::MAX] {
        leaves("no beginning of a segment", 0, is_diverged, move |peer, _, rest| {
            peer.send(&frame(at, rest.len() as u32, rest));
            peer.rest();
        });
    }
    let far = [i64::MIN as u64, (-(SEGMENT_SIZE as i64)) as u64, i64::MAX as u64 / 2 + 1];
    for at in far {
        leaves("a beginning where no log can be", 0, is_out_of_place, move |peer, _, _| {
            peer.send(&frame(at, 0, &[]));
            peer.rest();
        });
    }
}

#[test]
fn a_master_with_another_log_is_left() {
    let (here, there) = (TempDir::in_memory(), TempDir::in_memory());
    let log = log(here.path(), 10);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = listener.local_addr().expect("an address");
    let heard = Heard::default();
    let replica = follow(there.path(), address, &heard);
    let mut peer = Peer::accept(&listener);
    assert_eq!(reported(&mut peer, 0), 0);
    let end = log.len() as u64;
    peer.send(&sent(&log, 0, end));
    eventually("it takes over what is sound", || replica.state().durable == end);
    for at in [1, end as usize / 2, end as usize - 1] {
        drop(peer);
        peer = Peer::accept(&listener);
        let first = reported(&mut peer, end);
        let mut other = log.clone();
        other[at] ^= 1;
        peer.send(&sent(&other, first, end));
        peer.rest();
    }
    eventually("it says why", || heard.count(is_diverged) > 0);
    assert_eq!(replica.state().durable, end);
    drop((peer, listener));
    ends("closing", move || replica.close().expect("it closes"));
}

#[test]
fn bytes_that_are_no_records_are_not_taken() {
    let is_corrupt =
        |error: &SessionError| matches!(error, SessionError::Log(Error::Corrupt { .. }));
    let damage: [fn(&mut Vec<u8>); 5] = [
        |bytes| bytes.fill(0xee),
        |bytes| bytes.fill(0),
        |bytes| bytes[120] ^= 1,
        |bytes| bytes[35] ^= 1,
        |bytes| drop(bytes.drain(..bytes.len() / 5)),
    ];
    for change in damage {
        leaves("no records", 5, is_corrupt, move |peer, end, rest| {
            let mut bytes = rest.to_vec();
            change(&mut bytes);
            peer.send(&frame(end, bytes.len() as u32, &bytes));
            peer.rest();
        });
    }
}

#[test]
fn a_master_that_stops_half_way_is_left() {
    leaves("an end at once", 5, is_connection, |peer, _, _| {
        peer.0.shutdown(Shutdown::Both).expect("shut down");
    });
    leaves("half a head and the end", 5, is_connection, |peer, end, _| {
        peer.send(&frame(end, 100, &[])[..7]);
        peer.0.shutdown(Shutdown::Write).expect("shut down");
        peer.rest();
    });
    leaves("half a record and the end", 5, is_connection, |peer, end, rest| {
        peer.send(&frame(end, rest.len() as u32, &rest[..100]));
        peer.0.shutdown(Shutdown::Write).expect("shut down");
        peer.rest();
    });
    leaves("silence", 5, is_silent, |peer, _, _| drop(peer.rest()));
    leaves("half a record and silence", 5, is_silent, |peer, end, rest| {
        peer.send(&frame(end, rest.len() as u32, &rest[..100]));
        peer.rest();
    });
}

#[test]
fn half_a_record_that_was_acknowledged_is_neither_shown_nor_taken_for_damage() {
    let dir = TempDir::in_memory();
    let open = || {
        let mut options = PrimaryOptions::new(node(1, &Heard::default()));
        options.ack_level = AckLevel::InMemory;
        let primary = Primary::open(config(dir.path()), options).expect("it opens");
        let acceptor = TcpAcceptor::bind("127.0.0.1:0").expect("a port is free");
        let address = acceptor.address();
        primary.serve_rocketmq(acceptor).expect("it listens");
        (primary, Peer::connect(address))
    };
    let shown =
        |primary: &Primary| primary.store().get("t", 0, 0, 100).expect("readable").messages.len();
    let (primary, mut slave) = open();
    slave.send(&report(0));
    primary.wait_for_replicas(1, PATIENCE).expect("it connects");
    let store = primary.store().clone();
    let putting = std::thread::spawn(move || {
        [(); 2].map(|()| store.put(Message::new("t", vec![7; 300])).expect("put"))
    });
    let given = |peer: &mut Peer| loop {
        let mut head = [0; 12];
        peer.0.read_exact(&mut head).expect("it is sent the log");
        let mut bytes = vec![0; u32::from_be_bytes(head[8..].try_into().expect("4")) as usize];
        peer.0.read_exact(&mut bytes).expect("it is sent the log");
        if !bytes.is_empty() {
            break u64::from_be_bytes(head[..8].try_into().expect("8")) + bytes.len() as u64;
        }
    };
    let end = given(&mut slave);
    slave.send(&report(end as i64));
    // As RocketMQ's does, for each piece that it gets.
    eventually("the first is shown", || shown(&primary) == 1);
    let half = end + 100;
    assert!(given(&mut slave) > half);
    slave.send(&report(half as i64));
    eventually("half of it is confirmed", || primary.store().stats().watermarks.confirmed == half);
    assert_eq!(shown(&primary), 1);
    let snapshot = TempDir::in_memory();
    primary.store().snapshot(snapshot.path().join("copy")).expect("a copy is made");
    ends("closing", move || primary.close().expect("it closes"));
    assert_eq!(putting.join().expect("they were answered").len(), 2);

    let (primary, mut slave) = open();
    assert_eq!(shown(&primary), 1);
    let end = primary.store().stats().watermarks.appended;
    slave.send(&report(end as i64));
    eventually("all of it is shown", || shown(&primary) == 2);
    assert!(primary.store().verify().expect("readable").is_ok());
    ends("closing", move || primary.close().expect("it closes"));
}

#[test]
fn a_slave_that_does_not_read_holds_up_neither_puts_nor_the_close() {
    let scene = Scene::new();
    let acceptor = TcpAcceptor::bind("127.0.0.1:0").expect("a port is free");
    let address = acceptor.address();
    scene.primary.serve_rocketmq(acceptor).expect("it listens");
    let slaves: Vec<Peer> = (0..20)
        .map(|_| {
            let mut slave = Peer::connect(address);
            slave.send(&report(1));
            slave
        })
        .collect();
    eventually("they are served", || scene.primary.replicas().len() == slaves.len() + 1);
    let store = scene.primary.store().clone();
    for _ in 0..300 {
        store.put(Message::new("t", vec![7; 30_000])).expect("put").ok().expect("safe");
    }
    scene.close();
    drop(slaves);
}
