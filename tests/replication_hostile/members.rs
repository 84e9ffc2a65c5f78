//! Whoever knows the secret, and is no honest replica all the same.

use crate::scene::{Attack, EPOCH, SEGMENT_SIZE, Scene, is_connection, is_protocol};
use crate::wire_peer::*;
use duralog::replication::{NodeId, SessionError};
use std::net::Shutdown;

/// The node that attacks.
const NODE: u64 = 66;

fn withstands(what: &'static str, is: fn(&SessionError) -> bool, act: impl Fn(&Scene) + 'static) {
    let scene = Scene::new();
    scene.withstands(&Attack { what, is, joins: false, act: Box::new(act) });
    scene.close();
}

/// The same for one that is sent the log first.
fn withstands_follower(
    what: &'static str,
    is: fn(&SessionError) -> bool,
    act: impl Fn(&Scene) + 'static,
) {
    let scene = Scene::new();
    scene.withstands(&Attack { what, is, joins: true, act: Box::new(act) });
    scene.close();
}

/// Joins like this, and is refused with this code and details.
fn refused(
    what: &'static str,
    is: fn(&SessionError) -> bool,
    join: impl Fn(&mut Join) + 'static,
    (code, first, second): (u32, u64, u64),
) {
    withstands(what, is, move |scene| {
        let mut peer = scene.connect();
        peer.introduce();
        let mut wrong = Join::of(NODE, SEGMENT_SIZE);
        join(&mut wrong);
        peer.send(&wrong.frame());
        assert_eq!(
            peer.frame(),
            Some((REFUSE, refuse(code, first, second)[12..].to_vec())),
            "{what}"
        );
        assert_eq!(peer.rest(), NOTHING, "{what}");
    });
}

/// Says this after it was proved, and is not answered.
fn says(what: &'static str, bytes: Vec<u8>) {
    withstands(what, is_protocol, move |scene| {
        let mut peer = scene.connect();
        peer.introduce();
        peer.send(&bytes);
        assert_eq!(peer.rest(), NOTHING, "{what}");
    });
}

/// Says this while it is sent the log from its beginning.
fn says_while_following(what: &'static str, bytes: fn(&Scene) -> Vec<u8>) {
    withstands_follower(what, is_protocol, move |scene| {
        let mut peer = scene.connect();
        peer.follow(&Join::of(NODE, SEGMENT_SIZE));
        peer.expect(DATA);
        peer.send(&bytes(scene));
        peer.rest();
    });
}

fn is_diverged(error: &SessionError) -> bool {
    matches!(error, SessionError::Diverged)
}

#[test]
fn another_version_is_told_which_one_is_spoken() {
    for version in [0, 2, u32::MAX] {
        let is = |error: &SessionError| matches!(error, SessionError::Version { .. });
        withstands("another version", is, move |scene| {
            let mut peer = scene.connect();
            let challenge = peer.greet(version, SECRET);
            // What is refused is believed only of one who has proved to be a primary.
            assert_eq!(peer.expect(PROVEN), proof(SECRET, Side::Primary, &NONCE, &challenge));
            assert_eq!(peer.expect(REFUSE), refuse(1, VERSION.into(), 0)[12..]);
            assert_eq!(peer.rest(), NOTHING);
        });
    }
}

#[test]
fn whoever_does_not_belong_here_is_refused() {
    let is = |error: &SessionError| matches!(error, SessionError::Cluster { theirs: 8 });
    refused("another cluster", is, |join| join.cluster = 8, (2, 0, 0));
    let is =
        |error: &SessionError| matches!(error, SessionError::SegmentSize { replica: 4096, .. });
    refused("other segments", is, |join| join.segment_size = 4096, (3, SEGMENT_SIZE, 4096));
    let is =
        |error: &SessionError| matches!(error, SessionError::DuplicateNode { node: NodeId(1 | 2) });
    refused("a node id that is taken", is, |join| join.node = 2, (4, 2, 0));
    refused("the primary's own id", is, |join| join.node = 1, (4, 1, 0));
}

#[test]
fn a_history_that_is_not_of_this_log_is_refused() {
    let epochs = |list: &[(u64, u64)]| -> Vec<EpochStart> {
        list.iter().map(|(epoch, start)| EpochStart::new(*epoch, *start)).collect()
    };
    let far = epochs(&[(1, 10), (2, 1 << 62)]);
    let many: Vec<_> = (1..=1024).map(|number| EpochStart::new(number, number * 1000)).collect();
    let histories = [
        ("an end beyond everything", vec![], 0, u64::MAX),
        ("an epoch that begins far away", far, 5, u64::MAX),
        ("as many epochs as there can be", many.clone(), 500, 1 << 30),
        ("many epochs that end nowhere", many, 0, u64::MAX),
    ];
    for (what, epochs, min, end) in histories {
        let join = move |join: &mut Join| {
            (join.min, join.end) = (min, end);
            join.epochs.clone_from(&epochs);
            join.epochs.iter_mut().for_each(|one| one.node = 77);
        };
        refused(what, is_diverged, join, (5, 0, 0));
    }
}

#[test]
fn whoever_holds_another_log_is_refused_and_ends_no_epoch_of_this_one() {
    let is = |error: &SessionError| matches!(error, SessionError::AnotherLog { replica, .. } if replica.0.get() == LOG_ID);
    let attacks: [(_, fn(&mut Join)); 4] = [
        ("the same epoch of another log", |_| {}),
        ("a newer promise to another log", |join| join.promised = 9 * EPOCH),
        ("a newer epoch of another log", |join| join.epochs[0].epoch = 9 * EPOCH),
        ("the same epoch of another node", |join| join.epochs[0].node = 77),
    ];
    for (what, change) in attacks {
        withstands(what, is, move |scene| {
            let mut peer = scene.connect();
            peer.introduce();
            // It would not even fit.
            let mut join = Join::of(NODE, SEGMENT_SIZE / 2);
            (join.log, join.end, join.confirmed) = (LOG_ID, 300, 1);
            join.epochs = vec![EpochStart { flags: 1, ..EpochStart::new(EPOCH, 0) }];
            change(&mut join);
            peer.send(&join.frame());
            let refused = peer.expect(REFUSE);
            let primary = scene.primary.log_id().expect("it has one").0.get();
            assert_eq!(refused, refuse(8, primary, LOG_ID)[12..], "{what}");
            assert_eq!(peer.rest(), NOTHING, "{what}");
        });
    }
}

#[test]
fn whoever_has_nothing_in_common_is_told_where_to_begin_anew_and_no_more() {
    let own = |count| {
        let epochs = (1..=count).map(|number| EpochStart::new(number, number * 1000));
        epochs.map(|one| EpochStart { node: NODE, ..one }).collect::<Vec<_>>()
    };
    let histories = [
        ("another log", LOG_ID, own(1), 1000, u64::MAX),
        ("another log of many epochs", LOG_ID, own(1024), 1000, 1 << 40),
        ("a log that is empty far away", 0, vec![], u64::MAX, u64::MAX),
        ("a log that is empty somewhere behind", 0, vec![], 1 << 40, 1 << 40),
    ];
    for (what, log, epochs, min, end) in histories {
        withstands_follower(what, is_connection, move |scene| {
            let mut join = Join::of(NODE, SEGMENT_SIZE);
            (join.log, join.min, join.end) = (log, min, end);
            join.epochs.clone_from(&epochs);
            let mut peer = scene.connect();
            let welcome = peer.join(&join);
            assert_eq!((welcome.plan, welcome.offset), (2, 0), "{what}");
            assert_eq!(peer.frame().map(|(kind, _)| kind), Some(QUEUES), "{what}");
            peer.0.shutdown(Shutdown::Write).expect("shut down");
            assert_eq!(peer.rest(), NOTHING, "{what}");
        });
    }
}

#[test]
fn an_epoch_that_two_nodes_were_given_is_told_to_both() {
    let is =
        |error: &SessionError| matches!(error, SessionError::EpochTaken { node: NodeId(77), .. });
    let join = |join: &mut Join| {
        join.end = 9000;
        join.epochs = vec![EpochStart { node: 77, ..EpochStart::new(EPOCH, 0) }];
    };
    refused("the primary's epoch of another node", is, join, (7, EPOCH, 77));
}

#[test]
fn a_history_that_is_none_is_refused() {
    let joined = |min, end, epochs: &[(u64, u64)]| {
        let mut join = Join::of(NODE, SEGMENT_SIZE);
        (join.min, join.end) = (min, end);
        join.epochs = epochs.iter().map(|(epoch, at)| EpochStart::new(*epoch, *at)).collect();
        join
    };
    let too_many: Vec<_> = (0..1025).map(|number| (number, number)).collect();
    let far_too_many: Vec<_> = (0..40_000).map(|number| (number, number)).collect();
    says("an end before the beginning", joined(9, 8, &[]).frame());
    says("epochs that fall", joined(0, 900, &[(2, 0), (1, 100)]).frame());
    says("the same epoch twice", joined(0, 900, &[(1, 0), (1, 100)]).frame());
    says("two epochs at one place", joined(0, 900, &[(1, 5), (2, 5)]).frame());
    says("offsets that fall", joined(0, 900, &[(1, 100), (2, 50)]).frame());
    says("an epoch behind the end", joined(0, 900, &[(1, 901)]).frame());
    says("more epochs than there can be", joined(0, u64::MAX, &too_many).frame());
    says("far more epochs than there can be", joined(0, u64::MAX, &far_too_many).frame());
    let mut unknown = joined(0, 900, &[(1, 0)]);
    unknown.epochs[0].flags = 2;
    says("an unknown flag", unknown.frame());
    let whole = joined(0, 900, &[(1, 0)]).frame();
    says("half an epoch", frame(JOIN, &whole[12..whole.len() - 14]));
    says("half a Join", frame(JOIN, &whole[12..60]));
}

#[test]
fn a_frame_that_is_none_is_refused_after_the_proof_too() {
    let mut damaged = Join::of(NODE, SEGMENT_SIZE).frame();
    damaged[40] ^= 1;
    says("a wrong checksum", damaged);
    says("an unknown kind", frame(200, &[0; 72]));
    for len in [72 + 1024 * 28 + 1, u32::MAX] {
        says("a huge length", frame_of(JOIN, 0, len, &[]));
    }
    for bytes in [
        hello(VERSION, NONCE),
        frame(PROOF, &[7; 32]),
        begin(0, 0, 0),
        ack(EPOCH, 0, 0),
        data(EpochStart::new(EPOCH, 0), 0, 0, b""),
        welcome(LOG_ID, EpochStart::new(EPOCH, 0), 0, 0),
        frame(LEND, &u64s(&[0])),
        // That an epoch is over is believed of nobody who has not said who it is.
        refuse(6, 1, u64::MAX),
    ] {
        says("a frame out of turn", bytes);
    }
}

#[test]
fn whoever_claims_to_hold_the_log_has_to_know_its_end() {
    let joined = |scene: &Scene, peer: &mut Peer| {
        let mut probe = scene.connect();
        let probed = probe.join(&Join::of(NODE, SEGMENT_SIZE));
        let mut join = Join::of(NODE + 1, SEGMENT_SIZE);
        (join.log, join.end, join.epochs) = (probed.log, 300, vec![probed.epoch]);
        let welcome = peer.join(&join);
        assert_eq!((welcome.plan, welcome.offset), (0, 300));
    };
    withstands("a wrong checksum of the log", is_diverged, move |scene| {
        let mut peer = scene.connect();
        joined(scene, &mut peer);
        peer.send(&begin(300, 100, 0xdead_beef));
        assert_eq!(peer.kinds(), [REFUSE]);
    });
    for (from, len) in [(299, 100), (301, 100), (u64::MAX, 0), (300, 4097), (300, u64::MAX)] {
        withstands("a Begin elsewhere", is_protocol, move |scene| {
            let mut peer = scene.connect();
            joined(scene, &mut peer);
            peer.send(&begin(from, len, 0));
            assert_eq!(peer.kinds(), NOTHING);
        });
    }
}

#[test]
fn what_was_never_sent_is_not_acknowledged() {
    says_while_following("an ack of everything", |_| ack(EPOCH, u64::MAX, u64::MAX));
    says_while_following("an ack of what was never put", |scene| {
        let far = scene.end() + (1 << 20);
        ack(EPOCH, far, far)
    });
    says_while_following("more durable than written", |_| ack(EPOCH, 100, 101));
    says_while_following("an epoch that is none yet", |_| ack(EPOCH + 1, 100, 100));
}

#[test]
fn what_was_acknowledged_is_not_taken_back() {
    says_while_following("what is written falls", |_| {
        [ack(EPOCH, 200, 100), ack(EPOCH, 199, 100)].concat()
    });
    says_while_following("what is durable falls", |_| {
        [ack(EPOCH, 200, 100), ack(EPOCH, 300, 99)].concat()
    });
    says_while_following("the epoch falls", |_| {
        [ack(EPOCH, 200, 100), ack(EPOCH - 1, 200, 100)].concat()
    });
}

#[test]
fn a_replica_says_nothing_but_what_it_holds() {
    says_while_following("bytes of the log", |_| data(EpochStart::new(EPOCH, 0), 0, 0, &[0; 9]));
    says_while_following("another Join", |_| Join::of(NODE, SEGMENT_SIZE).frame());
    says_while_following("another Begin", |_| begin(0, 0, 0));
    says_while_following("another Hello", |_| hello(VERSION, NONCE));
    says_while_following("a Lend", |_| frame(LEND, &u64s(&[0])));
    says_while_following("a huge length", |_| frame_of(ACK, 0, u32::MAX, &[]));
    says_while_following("a wrong checksum", |_| {
        let mut bytes = ack(EPOCH, 0, 0);
        bytes[20] ^= 1;
        bytes
    });
    says_while_following("an unknown refusal", |_| refuse(99, 0, 0));
}

#[test]
fn half_a_frame_and_the_end_is_the_end_of_a_member_too() {
    fn leaves(scene: &Scene, stage: fn(&mut Peer)) {
        let mut peer = scene.connect();
        stage(&mut peer);
        peer.0.shutdown(Shutdown::Write).expect("shut down");
        peer.rest();
    }
    withstands("half a Join", is_connection, |scene| {
        leaves(scene, |peer| {
            peer.introduce();
            peer.send(&Join::of(NODE, SEGMENT_SIZE).frame()[..50]);
        });
    });
    withstands("half a Begin", is_connection, |scene| {
        leaves(scene, |peer| {
            peer.join(&Join::of(NODE, SEGMENT_SIZE));
            peer.send(&begin(0, 0, 0)[..31]);
        });
    });
    withstands_follower("half an Ack", is_connection, |scene| {
        leaves(scene, |peer| {
            peer.follow(&Join::of(NODE, SEGMENT_SIZE));
            peer.send(&ack(EPOCH, 0, 0)[..20]);
        });
    });
}

#[test]
fn half_a_frame_and_silence_is_given_up_at_every_stage() {
    let act = |scene: &Scene| {
        let mut peers: Vec<Peer> = (0..3).map(|_| scene.connect()).collect();
        peers[0].introduce();
        peers[1].introduce();
        peers[1].send(&Join::of(NODE, SEGMENT_SIZE).frame()[..50]);
        peers[2].join(&Join::of(NODE + 2, SEGMENT_SIZE));
        peers[2].send(&begin(0, 0, 0)[..31]);
        for peer in &mut peers {
            peer.kinds();
        }
    };
    let is = |error: &SessionError| matches!(error, SessionError::Silent);
    let scene = Scene::impatient();
    scene.withstands(&Attack { what: "silence", is, joins: false, act: Box::new(act) });
    scene.close();
    let act = |scene: &Scene| {
        let mut peer = scene.connect();
        peer.follow(&Join::of(NODE, SEGMENT_SIZE));
        peer.send(&ack(EPOCH, 0, 0)[..20]);
        peer.kinds();
    };
    let scene = Scene::impatient();
    scene.withstands(&Attack { what: "half an Ack", is, joins: true, act: Box::new(act) });
    scene.close();
}

#[test]
fn an_epoch_that_nothing_can_follow_ends_nobodys() {
    fn is_superseded(error: &SessionError) -> bool {
        matches!(error, SessionError::Superseded { .. })
    }
    withstands_follower("an epoch that none can follow", is_superseded, |scene| {
        let mut peer = scene.connect();
        peer.follow(&Join::of(NODE, SEGMENT_SIZE));
        peer.expect(DATA);
        peer.send(&refuse(6, EPOCH, u64::MAX));
        peer.rest();
    });
}
