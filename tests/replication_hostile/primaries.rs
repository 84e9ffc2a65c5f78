//! A primary that is none, to a replica that connects to it.

use crate::counting::Counting;
use crate::scene::{
    EPOCH, Heard, Scene, config, ends, eventually, files, is_connection, is_protocol, node,
};
use crate::temp::TempDir;
use crate::wire_peer::*;
use duralog::replication::{
    Epoch, Primary, PrimaryOptions, Refusal, Replica, ReplicaOptions, SessionError,
};
use duralog::{Error, Message};
use std::net::{Shutdown, TcpListener};
use std::sync::Arc;
use std::time::Duration;

/// What a primary may say to a replica that holds a log.
struct Log {
    id: u64,
    /// Its newest epoch.
    epoch: EpochStart,
    end: u64,
    /// What the primary holds behind that.
    next: Vec<u8>,
}

impl Log {
    /// How another primary would go on.
    fn newer(&self) -> EpochStart {
        EpochStart { epoch: EPOCH * 2, start: self.end, ..self.epoch }
    }
}

/// A replica that was disconnected from the primary of a scene, when there was more to come.
struct Victim {
    scene: Scene,
    dir: TempDir,
    log: Log,
}

impl Victim {
    fn new() -> Self {
        let (scene, dir) = (Scene::new(), TempDir::in_memory());
        let end = scene.end();
        Self::follow(&scene, &dir, end);
        scene.put(5);
        let (mut peer, mut next) = (scene.connect(), Vec::new());
        let joined = peer.follow(&Join::of(66, crate::scene::SEGMENT_SIZE));
        while (next.len() as u64) < scene.end() {
            next.extend_from_slice(&peer.expect(DATA)[44..]);
        }
        next.drain(..end as usize);
        let (id, epoch) = (joined.log, joined.epoch);
        Self { scene, dir, log: Log { id, epoch, end, next } }
    }

    /// Opens the replica, and closes it when it holds and shows everything before `end`.
    fn follow(scene: &Scene, dir: &TempDir, end: u64) {
        let options = ReplicaOptions::new(node(3, &Heard::default()), scene.address.to_string());
        let replica = Replica::open(config(dir.path()), options).expect("it opens");
        eventually("the replica catches up", || {
            replica.state().durable >= end && replica.state().confirmed >= end
        });
        ends("closing", move || replica.close().expect("it closes"));
    }
}

/// That a replica whose primary does this, each time it connects, ends the connection with that error,
/// says it once, keeps what it has, and follows an honest primary afterwards.
fn withstands(
    what: &'static str,
    is: fn(&SessionError) -> bool,
    act: impl Fn(&mut Peer, &Log) + Send + 'static,
) {
    let Victim { scene, dir, log } = Victim::new();
    let end = log.end;
    let log_files = || files(&dir.path().join("commitlog"));
    let before = log_files();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = listener.local_addr().expect("an address");
    let heard = Heard::default();
    let mut node = node(3, &heard);
    node.housekeeping_interval = Duration::from_secs(1);
    let mut options = ReplicaOptions::new(node, address.to_string());
    (options.retry_min, options.retry_max) = (Duration::from_millis(1), Duration::from_millis(1));
    let replica = Replica::open(config(dir.path()), options).expect("it opens");
    let acted = std::thread::spawn(move || {
        for _ in 0..3 {
            act(&mut Peer::accept(&listener), &log);
        }
        // Whatever came before has been told when it comes again.
        drop(Peer::accept(&listener));
        listener
    });
    eventually(what, || heard.count(is) >= 1);
    let listener = acted.join().expect("the peer got what it expected");
    let state = replica.state();
    assert_eq!((state.durable, state.confirmed), (end, end), "{what}");
    assert!(replica.store().put(Message::new("t", "x")).is_err(), "{what}");
    ends("closing", move || replica.close().expect("it closes"));
    drop(listener);
    let told = heard.count(is);
    let joined = heard.connected();
    assert_eq!(told, joined.max(1), "{what}: {:?}", heard.errors());
    assert_eq!(log_files(), before, "{what}");
    Victim::follow(&scene, &dir, scene.end());
    scene.close();
}

/// Says this instead of a challenge, and is told nothing but a nonce.
fn greets(what: &'static str, bytes: Vec<u8>) {
    withstands(what, is_protocol, move |peer, _| {
        peer.send(&bytes);
        assert!([vec![], vec![HELLO]].contains(&peer.kinds()), "{what}");
    });
}

/// Says this instead of its proof.
fn proves(
    what: &'static str,
    is: fn(&SessionError) -> bool,
    answer: fn(Nonce, [u8; 32]) -> Vec<u8>,
) {
    withstands(what, is, move |peer, _| {
        let (nonce, theirs) = peer.challenge();
        peer.send(&answer(nonce, theirs));
        assert_eq!(peer.rest(), NOTHING, "{what}");
    });
}

/// Says this to a replica that has joined.
fn welcomes(what: &'static str, is: fn(&SessionError) -> bool, answer: fn(&Log) -> Vec<u8>) {
    withstands(what, is, move |peer, log| {
        let join = peer.prove();
        assert_eq!((join.node, join.log, join.min, join.end), (3, log.id, 0, log.end), "{what}");
        assert_eq!(join.confirmed, log.end, "{what}");
        assert_eq!(join.epochs.last(), Some(&log.epoch), "{what}");
        peer.send(&answer(log));
        peer.kinds();
    });
}

/// Says this to a replica that follows.
fn sends(what: &'static str, is: fn(&SessionError) -> bool, answer: fn(&Log) -> Vec<u8>) {
    withstands(what, is, move |peer, log| {
        peer.prove();
        peer.send(&welcome(log.id, log.newer(), 0, log.end));
        peer.expect(BEGIN);
        peer.send(&answer(log));
        peer.kinds();
    });
}

fn is_secret(error: &SessionError) -> bool {
    matches!(error, SessionError::Secret)
}

fn is_corrupt(error: &SessionError) -> bool {
    matches!(error, SessionError::Log(Error::Corrupt { .. }))
}

fn is_out_of_place(error: &SessionError) -> bool {
    matches!(error, SessionError::Log(Error::Refused(Refusal::OutOfPlace { .. })))
}

fn is_silent(error: &SessionError) -> bool {
    matches!(error, SessionError::Silent)
}

#[test]
fn a_replica_believes_nobody_who_has_proved_nothing() {
    let epoch = EpochStart::new(EPOCH, 0);
    greets("garbage", vec![0xee; 5000]);
    greets("another protocol", b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec());
    greets("a wrong checksum", {
        let mut bytes = frame(CHALLENGE, &NONCE);
        bytes[20] ^= 1;
        bytes
    });
    greets("an unknown kind", frame(99, &NONCE));
    greets("a huge length", frame_of(CHALLENGE, 0, u32::MAX, &[]));
    greets("a frame that is too long for it", frame_of(CHALLENGE, 0, 65, &[]));
    for bytes in [
        hello(VERSION, NONCE),
        frame(PROVEN, &[7; 32]),
        welcome(LOG_ID, epoch, 1, 0),
        refuse(6, 1, u64::MAX),
        refuse(5, 0, 0),
        data(epoch, 0, 0, b""),
        frame(LEND, &u64s(&[0])),
    ] {
        greets("a frame out of turn", bytes);
    }
    proves("a huge length", is_protocol, |_, _| frame_of(PROVEN, 0, 65, &[]));
    proves("a Welcome without a proof", is_protocol, |_, _| {
        welcome(LOG_ID, EpochStart::new(EPOCH * 9, 0), 1, 0)
    });
    proves("a Refuse without a proof", is_protocol, |_, _| refuse(5, 0, 0));
    proves("a Lend without a proof", is_protocol, |_, _| frame(LEND, &u64s(&[0])));
}

#[test]
fn a_replica_follows_nobody_who_does_not_know_the_secret() {
    proves("a wrong secret", is_secret, |nonce, _| {
        frame(PROVEN, &proof("another secret", Side::Primary, &nonce, &NONCE))
    });
    proves("the replica's own proof", is_secret, |_, theirs| frame(PROVEN, &theirs));
    proves("a proof for another nonce", is_secret, |_, _| {
        frame(PROVEN, &proof(SECRET, Side::Primary, &[1; 16], &NONCE))
    });
    withstands("the replica's own nonce", is_secret, |peer, _| {
        let hello = peer.expect(HELLO);
        peer.send(&frame(CHALLENGE, &hello[12..]));
        let theirs = peer.expect(PROOF);
        peer.send(&frame(PROVEN, &theirs));
        assert_eq!(peer.rest(), NOTHING);
    });
}

#[test]
fn a_connection_that_ends_is_told_of_once() {
    withstands("an end at once", is_connection, |peer, _| {
        peer.0.shutdown(Shutdown::Both).expect("shut down");
    });
    withstands("half a challenge", is_connection, |peer, _| {
        peer.expect(HELLO);
        peer.send(&frame(CHALLENGE, &NONCE)[..20]);
        peer.0.shutdown(Shutdown::Write).expect("shut down");
        assert_eq!(peer.rest(), NOTHING);
    });
    withstands("half a Welcome", is_connection, |peer, log| {
        peer.prove();
        peer.send(&welcome(log.id, log.newer(), 0, log.end)[..40]);
        peer.0.shutdown(Shutdown::Write).expect("shut down");
        peer.rest();
    });
    withstands("half a record", is_connection, |peer, log| {
        peer.prove();
        peer.send(&welcome(log.id, log.newer(), 0, log.end));
        peer.send(&data(log.epoch, log.end, 0, &log.next[..100]));
        peer.0.shutdown(Shutdown::Write).expect("shut down");
        peer.kinds();
    });
}

#[test]
fn a_primary_that_falls_silent_is_left() {
    withstands("silence", is_silent, |peer, _| assert_eq!(peer.kinds(), [HELLO]));
    withstands("half a challenge and silence", is_silent, |peer, _| {
        peer.send(&frame(CHALLENGE, &NONCE)[..20]);
        assert_eq!(peer.kinds(), [HELLO]);
    });
    withstands("silence after the proof", is_silent, |peer, _| {
        peer.prove();
        assert_eq!(peer.rest(), NOTHING);
    });
    withstands("half a frame and silence", is_silent, |peer, log| {
        peer.prove();
        peer.send(&welcome(log.id, log.newer(), 0, log.end));
        peer.send(&data(log.epoch, log.end, 0, &log.next)[..100]);
        peer.kinds();
    });
}

#[test]
fn a_refusal_is_what_the_primary_says_it_is() {
    welcomes("a Refuse", |e| matches!(e, SessionError::Cluster { .. }), |_| refuse(2, 0, 0));
    welcomes(
        "a Refuse",
        |e| matches!(e, SessionError::SegmentSize { primary: 5, replica: 6 }),
        |_| refuse(3, 5, 6),
    );
    welcomes("a Refuse", |e| matches!(e, SessionError::DuplicateNode { .. }), |_| refuse(4, 3, 0));
    welcomes("a Refuse", |e| matches!(e, SessionError::Diverged), |_| refuse(5, 0, 0));
    welcomes("a Refuse", |e| matches!(e, SessionError::Superseded { .. }), |_| refuse(6, 1, 2));
    welcomes(
        "a Refuse",
        |e| matches!(e, SessionError::AnotherLog { primary, .. } if primary.0.get() == LOG_ID),
        |log| refuse(8, LOG_ID, log.id),
    );
    welcomes("a Refuse of a log without an id", is_protocol, |log| refuse(8, 0, log.id));
    welcomes("a Refuse that nobody knows", is_protocol, |_| refuse(99, 1, 2));
    withstands(
        "another version",
        |e| matches!(e, SessionError::Version { theirs: 2 }),
        |peer, _| {
            let (nonce, _) = peer.challenge();
            peer.send(&frame(PROVEN, &proof(SECRET, Side::Primary, &nonce, &NONCE)));
            peer.send(&refuse(1, 2, 0));
            peer.kinds();
        },
    );
}

#[test]
fn a_plan_that_does_not_fit_the_log_is_not_followed() {
    let superseded = |e: &SessionError| matches!(e, SessionError::Superseded { .. });
    welcomes("an epoch that is over", superseded, |log| {
        welcome(log.id, EpochStart { epoch: log.epoch.epoch - 1, ..log.epoch }, 0, log.end)
    });
    welcomes(
        "the epoch of another node",
        |e| matches!(e, SessionError::EpochTaken { .. }),
        |log| welcome(log.id, EpochStart { node: 77, ..log.epoch }, 0, log.end),
    );
    welcomes("another end", is_protocol, |log| welcome(log.id, log.newer(), 0, log.end - 1));
    welcomes("an end far away", is_protocol, |log| welcome(log.id, log.newer(), 0, u64::MAX));
    welcomes("an unknown plan", is_protocol, |log| welcome(log.id, log.newer(), 4, log.end));
    welcomes(
        "a log with nothing in common",
        |e| matches!(e, SessionError::Diverged),
        |log| welcome(log.id, log.newer(), 3, 0),
    );
    let confirmed = |e: &SessionError| {
        matches!(e, SessionError::Log(Error::Refused(Refusal::Confirmed { .. })))
    };
    welcomes("a cut of everything", confirmed, |log| welcome(log.id, log.newer(), 1, 0));
    welcomes("a cut of what is confirmed", confirmed, |log| {
        welcome(log.id, log.newer(), 1, log.end - 1)
    });
    welcomes("a cut behind the end", is_out_of_place, |log| {
        welcome(log.id, log.newer(), 1, log.end + 1)
    });
    welcomes("a cut far away", is_out_of_place, |log| welcome(log.id, log.newer(), 1, u64::MAX));
    welcomes("a beginning before what is confirmed", confirmed, |log| {
        [welcome(log.id, log.newer(), 2, 0), queues(0, "t", &[])].concat()
    });
    for far in [1 << 63, u64::MAX - 65535, (i64::MAX as u64 / 2 + 1)] {
        assert_eq!(far % crate::scene::SEGMENT_SIZE, 0);
        withstands("a beginning where no log can be", is_out_of_place, move |peer, log| {
            peer.prove();
            peer.send(&welcome(log.id, log.newer(), 2, far));
            peer.send(&queues(0, "t", &[]));
            peer.kinds();
        });
    }
    let another_log = |e: &SessionError| matches!(e, SessionError::AnotherLog { primary, .. } if primary.0.get() == LOG_ID);
    welcomes("another log", another_log, |log| welcome(LOG_ID, log.newer(), 0, log.end));
    welcomes("a cut for another log", another_log, |log| welcome(LOG_ID, log.newer(), 1, log.end));
    welcomes("another log from its beginning", another_log, |log| {
        welcome(LOG_ID, log.newer(), 1, 0)
    });
    welcomes("another log from farther on", another_log, |log| {
        welcome(LOG_ID, log.newer(), 2, 16 * crate::scene::SEGMENT_SIZE)
    });
    welcomes("no log", is_protocol, |log| welcome(0, log.newer(), 0, log.end));
    welcomes("a Lend of what is not there", is_protocol, |log| frame(LEND, &u64s(&[log.end + 1])));
    welcomes("records before they are asked for", is_protocol, |log| {
        data(log.epoch, log.end, 0, &log.next)
    });
    welcomes("a huge length", is_protocol, |_| frame_of(WELCOME, 0, 1 << 20, &[]));
}

#[test]
fn what_does_not_follow_is_not_taken() {
    sends("records of another place", is_protocol, |log| {
        data(log.epoch, log.end + 1, 0, &log.next)
    });
    sends("records of far away", is_protocol, |log| data(log.epoch, u64::MAX, 0, &log.next));
    sends("records that are there", is_protocol, |log| data(log.epoch, 0, 0, &log.next));
    sends("an epoch after the primary's", is_protocol, |log| {
        data(EpochStart { epoch: log.newer().epoch + 1, ..log.newer() }, log.end, 0, &log.next)
    });
    let fell = |e: &SessionError| {
        matches!(
            e,
            SessionError::Log(Error::Refused(
                Refusal::EpochFell { .. } | Refusal::OutOfPlace { .. }
            ))
        )
    };
    sends("an epoch that falls", fell, |log| {
        data(EpochStart { epoch: log.epoch.epoch - 1, ..log.epoch }, log.end, 0, &log.next)
    });
    sends("an epoch that falls, here", fell, |log| {
        let epoch = log.epoch.epoch - 1;
        data(EpochStart { epoch, start: log.end, ..log.epoch }, log.end, 0, &log.next)
    });
    sends("an epoch that began before", is_out_of_place, |log| {
        data(EpochStart { start: log.end - 1, ..log.newer() }, log.end, 0, b"")
    });
    sends("an epoch that begins later", is_out_of_place, |log| {
        data(EpochStart { start: u64::MAX, ..log.newer() }, log.end, 0, b"")
    });
    sends("an epoch that begins inside of a record", is_protocol, |log| {
        let half = data(log.epoch, log.end, 0, &log.next[..100]);
        let newer = EpochStart { start: log.end + 100, ..log.newer() };
        [half, data(newer, log.end + 100, 0, &log.next[100..])].concat()
    });
    sends("more than one frame may have", is_protocol, |_| frame_of(DATA, 0, (1 << 20) + 45, &[]));
    sends("a huge length", is_protocol, |_| frame_of(DATA, 0, u32::MAX, &[]));
    sends("another Welcome", is_protocol, |log| welcome(log.id, log.newer(), 0, log.end));
    sends("an Ack", is_protocol, |log| ack(EPOCH, log.end, log.end));
    sends("a Lend", is_protocol, |log| frame(LEND, &u64s(&[log.end])));
}

#[test]
fn offsets_of_groups_that_cannot_be_are_not_taken() {
    fn one(end: u64, left: u32) -> Vec<u8> {
        offsets(end, 1, left, "g", &[(0, 7)])
    }
    sends("more to come than there can be", is_protocol, |_| one(0, u32::MAX));
    sends("more than was to come", is_protocol, |_| [one(0, 1), one(0, 1)].concat());
    sends("fewer than were to come", is_protocol, |_| [one(0, 3), one(0, 0)].concat());
    sends("nothing of what was to come", is_protocol, |_| {
        [offsets(0, 1, 2, "g", &[(0, 7)]), offsets(0, 1, 2, "g", &[])].concat()
    });
    sends("two at once", is_protocol, |_| [one(5, 1), one(6, 0)].concat());
    sends("neither the whole nor a part", is_protocol, |_| offsets(0, 2, 0, "g", &[(0, 7)]));
    sends("a name that no group has", is_protocol, |_| offsets(0, 1, 0, "a/b", &[(0, 7)]));
    sends("no group", is_protocol, |_| offsets(0, 1, 0, "", &[(0, 7)]));
    sends("no queue", is_protocol, |_| offsets(0, 1, 0, "g", &[(u32::MAX, 7)]));
    sends("an offset that no queue has", is_protocol, |_| offsets(0, 1, 0, "g", &[(0, 1 << 60)]));
    welcomes("offsets before they are asked for", is_protocol, |_| one(0, 0));
}

#[test]
fn a_group_moves_once_what_it_has_seen_is_here_and_confirmed() {
    let Victim { scene, dir, log } = Victim::new();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = listener.local_addr().expect("an address");
    let mut options = ReplicaOptions::new(node(3, &Heard::default()), address.to_string());
    (options.retry_min, options.retry_max) = (Duration::from_millis(1), Duration::from_millis(1));
    let replica = Replica::open(config(dir.path()), options).expect("it opens");
    let mut peer = Peer::accept(&listener);
    peer.prove();
    peer.send(&welcome(log.id, log.newer(), 0, log.end));
    let end = log.end + log.next.len() as u64;
    let committed = |queue_id| replica.store().committed_offset("g", "t", queue_id);
    // What it has seen here lies behind the log's end, and before what is said after that.
    peer.send(&offsets(end, 1, 0, "g", &[(0, 22)]));
    peer.send(&offsets(log.end, 0, 0, "g", &[(0, 23), (1, 4)]));
    peer.send(&offsets(log.end, 0, 0, "g", &[(1, 5)]));
    peer.send(&data(log.epoch, log.end, log.end, &log.next));
    eventually("the replica holds it", || replica.state().durable == end);
    peer.expect(BEGIN);
    while number(&peer.expect(ACK), 16) < end {}
    assert_eq!((committed(0), committed(1)), (None, None), "that is not confirmed");
    peer.send(&data(log.epoch, end, end, b""));
    eventually("the group moves", || (committed(0), committed(1)) == (Some(23), Some(5)));
    drop((peer, listener));
    ends("closing", move || replica.close().expect("it closes"));
    scene.close();
}

#[test]
fn records_that_are_damaged_are_not_taken() {
    fn with(log: &Log, change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut bytes = log.next.clone();
        change(&mut bytes);
        data(log.epoch, log.end, u64::MAX, &bytes)
    }
    sends("zeros", is_corrupt, |log| with(log, |bytes| bytes.fill(0)));
    sends("garbage", is_corrupt, |log| with(log, |bytes| bytes.fill(0xee)));
    sends("a damaged body", is_corrupt, |log| with(log, |bytes| bytes[120] ^= 1));
    sends("a damaged property", is_corrupt, |log| {
        with(log, |bytes| {
            let size = u32::from_be_bytes(bytes[..4].try_into().expect("4 bytes")) as usize;
            bytes[size - 3] ^= 1;
        })
    });
    sends("a damaged queue offset", is_corrupt, |log| with(log, |bytes| bytes[27] ^= 1));
    sends("a record of another place", is_corrupt, |log| with(log, |bytes| bytes[35] ^= 1));
    sends("the same record again", is_corrupt, |log| {
        with(log, |bytes| {
            let size = u32::from_be_bytes(bytes[..4].try_into().expect("4 bytes")) as usize;
            bytes.drain(..size);
        })
    });
    sends("a record that is longer than its segment", is_corrupt, |log| {
        with(log, |bytes| bytes[..4].copy_from_slice(&(1u32 << 30).to_be_bytes()))
    });
    sends("a blank that is longer than its segment", is_corrupt, |log| {
        with(log, |bytes| {
            bytes[..4].copy_from_slice(&(1u32 << 30).to_be_bytes());
            bytes[4..8].copy_from_slice(&0xcbd4_3194_u32.to_be_bytes());
        })
    });
}

#[test]
fn records_that_are_damaged_on_the_way_are_not_taken() {
    fn flipped(log: &Log, at: usize) -> Vec<u8> {
        let mut bytes = log.next.clone();
        bytes[at] ^= 1;
        data_of(RECORDS, log.epoch, log.end, 0, &bytes)
    }
    sends("a flipped bit of a queue offset", is_corrupt, |log| flipped(log, 27));
    sends("a flipped bit of a body", is_corrupt, |log| flipped(log, 120));
    sends("a flipped bit of what is no record's", is_protocol, |log| {
        let mut frame = data_of(RECORDS, log.epoch, log.end, 0, &log.next);
        frame[12 + 30] ^= 1;
        frame
    });
    sends("records that carry no checksums", is_protocol, |log| {
        let epoch = EpochStart { flags: 0, ..log.epoch };
        data_of(RECORDS, epoch, log.end, 0, &log.next)
    });
}

#[test]
fn two_replicas_with_one_id_are_told_so_and_the_first_stays() {
    let (scene, dir) = (Scene::new(), TempDir::in_memory());
    let heard = Heard::default();
    let options = ReplicaOptions::new(node(2, &heard), scene.address.to_string());
    let second = Replica::open(config(dir.path()), options).expect("it opens");
    let is = |error: &SessionError| matches!(error, SessionError::DuplicateNode { .. });
    eventually("the second is refused", || heard.count(is) == 1 && scene.heard.count(is) == 1);
    scene.put(50);
    assert!(!second.state().following);
    assert_eq!((heard.errors().len(), scene.heard.errors().len()), (1, 1));
    assert_eq!(scene.honest.errors().len(), 0);
    // When the first is gone, the second takes its place.
    scene.replica.close().expect("it closes");
    scene.primary.wait_for_replicas(1, PATIENCE).expect("the second connects");
    scene.put(5);
    ends("closing", move || {
        second.close().expect("it closes");
        scene.primary.close().expect("it closes");
    });
}

#[test]
fn a_replica_whose_secret_is_wrong_says_so_once_and_goes_on_trying() {
    let (scene, dir) = (Scene::new(), TempDir::in_memory());
    let heard = Heard::default();
    let mut wrong = node(3, &heard);
    wrong.secret = duralog::replication::Secret::new("another secret");
    let mut options = ReplicaOptions::new(wrong, scene.address.to_string());
    (options.retry_min, options.retry_max) = (Duration::from_millis(1), Duration::from_millis(1));
    let replica = Replica::open(config(dir.path()), options).expect("it opens");
    eventually("the primary says why", || scene.heard.count(is_secret) == 1);
    eventually("the replica hears that it was left", || heard.count(is_connection) == 1);
    scene.put(200);
    assert_eq!((heard.errors().len(), scene.heard.errors().len()), (1, 1));
    ends("closing", move || replica.close().expect("it closes"));
    scene.close();
}

#[test]
fn a_replica_whose_last_record_was_altered_says_so_once_and_never_that_it_is_connected() {
    let Victim { scene, dir, log } = Victim::new();
    let path = dir.path().join(format!("commitlog/{:020}", 0));
    let mut bytes = std::fs::read(&path).expect("readable");
    let held = &mut bytes[..log.end as usize];
    let body = held.windows(300).rposition(|bytes| bytes == [7; 300]).expect("a body");
    held[body] ^= 1;
    std::fs::write(&path, bytes).expect("written");
    let heard = Heard::default();
    let connector = Arc::new(Counting::to(scene.address.to_string()));
    let mut options = ReplicaOptions::connecting(node(3, &heard), connector.clone());
    (options.retry_min, options.retry_max) = (Duration::from_millis(1), Duration::from_millis(1));
    let replica = Replica::open(config(dir.path()), options).expect("it opens");
    let is_diverged = |error: &SessionError| matches!(error, SessionError::Diverged);
    eventually("the primary says why", || scene.heard.count(is_diverged) == 1);
    eventually("it goes on trying", || connector.taken() > 10);
    assert_eq!((heard.count(is_diverged), heard.errors().len(), heard.connected()), (1, 1, 0));
    assert_eq!(scene.heard.count(is_diverged), 1);
    ends("closing", move || replica.close().expect("it closes"));
    scene.close();
}

#[test]
fn a_primary_that_learns_of_a_newer_epoch_says_so_once() {
    let dir = TempDir::in_memory();
    let heard = Heard::default();
    let options = PrimaryOptions::new(node(1, &heard));
    let primary = Primary::open(config(dir.path()), options).expect("it opens");
    let address = primary.listen("127.0.0.1:0").expect("a port is free");
    let mut join = Join::of(66, crate::scene::SEGMENT_SIZE);
    join.promised = EPOCH * 3;
    for _ in 0..3 {
        let mut peer = Peer::connect(address);
        peer.introduce();
        peer.send(&join.frame());
        assert_eq!(peer.kinds(), [REFUSE]);
    }
    eventually("it is told", || heard.superseded() == 1);
    assert_eq!(primary.superseded().map(|by| by.0), Some(EPOCH * 3));
    let refused = primary.store().put(Message::new("t", "x"));
    assert!(matches!(refused, Err(Error::Refused(Refusal::NotPrimary))), "{refused:?}");
    ends("closing", move || primary.close().expect("it closes"));
    assert_eq!(heard.superseded(), 1);
}

/// That a replica, after what `act` does as its primaries, is not promoted without an epoch before it is
/// fenced.
fn is_not_fenced_by(act: fn(&TcpListener, &Log, &Replica)) {
    let Victim { scene, dir, log } = Victim::new();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = listener.local_addr().expect("an address").to_string();
    let open = || {
        let mut options = ReplicaOptions::new(node(3, &Heard::default()), &address);
        let brief = Duration::from_millis(1);
        (options.retry_min, options.retry_max) = (brief, brief);
        Replica::open(config(dir.path()), options).expect("it opens")
    };
    let options = || PrimaryOptions::new(node(3, &Heard::default()));
    let replica = open();
    act(&listener, &log, &replica);
    let promoted = replica.promote(options());
    assert!(matches!(promoted, Err(Error::Refused(Refusal::NotFenced))), "{promoted:?}");
    let (replica, term) = (open(), Epoch(9 * EPOCH));
    replica.fence(term).expect("it is newer than all that was promised");
    // Also when it was closed in between.
    replica.close().expect("it closes");
    drop(replica);
    let primary = open().promote(options()).expect("it is fenced");
    assert_eq!(primary.epoch(), term);
    ends("closing", move || primary.close().expect("it closes"));
    scene.close();
}

/// A primary that goes on with the log in this epoch.
fn reigns(listener: &TcpListener, log: &Log, epoch: u64) -> Peer {
    let mut peer = Peer::accept(listener);
    peer.prove();
    peer.send(&welcome(log.id, EpochStart { epoch, ..log.newer() }, 0, log.end));
    peer.expect(BEGIN);
    peer
}

fn stands(replica: &Replica, (epoch, promised): (u64, u64), end: u64) {
    eventually("it stands there", || {
        replica
            .standing()
            .is_ok_and(|at| (at.epoch, at.promised, at.end) == (Epoch(epoch), Epoch(promised), end))
    });
}

#[test]
fn an_epoch_whose_records_were_cut_is_no_fence() {
    is_not_fenced_by(|listener, log, replica| {
        let mut peer = reigns(listener, log, 2 * EPOCH);
        peer.send(&data(log.newer(), log.end, 0, &log.next));
        stands(replica, (2 * EPOCH, 2 * EPOCH), log.end + log.next.len() as u64);
        drop(peer);
        let mut peer = Peer::accept(listener);
        peer.prove();
        let next = EpochStart { epoch: 3 * EPOCH, ..log.newer() };
        peer.send(&welcome(log.id, next, 1, log.end));
        stands(replica, (2 * EPOCH, 2 * EPOCH), log.end);
    });
}

#[test]
fn an_epoch_that_was_left_without_a_record_is_no_fence() {
    is_not_fenced_by(|listener, log, replica| {
        let mut peer = reigns(listener, log, 2 * EPOCH);
        peer.send(&data(log.newer(), log.end, 0, b""));
        stands(replica, (2 * EPOCH, 2 * EPOCH), log.end);
        drop(peer);
        let mut peer = reigns(listener, log, 3 * EPOCH);
        peer.send(&data(log.epoch, log.end, 0, &log.next));
        stands(replica, (EPOCH, 2 * EPOCH), log.end + log.next.len() as u64);
    });
}

#[test]
fn a_fence_is_over_when_its_term_is_someone_elses() {
    is_not_fenced_by(|listener, log, replica| {
        let before = Peer::accept(listener);
        replica.fence(Epoch(2 * EPOCH)).expect("it is newer");
        drop(before);
        let mut peer = reigns(listener, log, 2 * EPOCH);
        // It does not have all that came before that term yet.
        peer.send(&data(log.epoch, log.end, 0, &log.next));
        stands(replica, (EPOCH, 2 * EPOCH), log.end + log.next.len() as u64);
    });
}
