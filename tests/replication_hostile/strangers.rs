//! Whoever does not know the secret.

use crate::rng::Rng;
use crate::scene::{Attack, Scene, is_connection, is_protocol};
use crate::wire_peer::*;
use duralog::replication::{Acceptor, SessionError, Stream, TcpAcceptor};
use std::time::Duration;

/// At most the challenge, which is a number that nobody knew before.
fn learns_nothing(told: &[u8]) {
    let is_challenge = told.len() == 28 && told[0] == CHALLENGE;
    assert!(told.is_empty() || is_challenge, "a stranger is told {told:?}");
}

fn withstands(attack: &Attack) {
    let scene = Scene::new();
    scene.withstands(attack);
    scene.close();
}

/// Sends this, and is shut out for it.
fn sends(what: &'static str, bytes: Vec<u8>) {
    let act = Box::new(move |scene: &Scene| {
        let mut peer = scene.connect();
        peer.send(&bytes);
        learns_nothing(&peer.rest());
    });
    withstands(&Attack { what, is: is_protocol, joins: false, act });
}

/// The same, once it was challenged.
fn answers(
    what: &'static str,
    is: fn(&SessionError) -> bool,
    answer: impl Fn(&Nonce) -> Vec<u8> + 'static,
) {
    let act = Box::new(move |scene: &Scene| {
        let mut peer = scene.connect();
        peer.send(&hello(VERSION, NONCE));
        let challenge: Nonce = peer.expect(CHALLENGE).try_into().expect("a nonce");
        peer.send(&answer(&challenge));
        assert_eq!(peer.rest(), NOTHING, "{what}");
    });
    withstands(&Attack { what, is, joins: false, act });
}

fn is_secret(error: &SessionError) -> bool {
    matches!(error, SessionError::Secret)
}

/// One frame of each kind, as it would be said at another time.
fn frames() -> Vec<(u8, Vec<u8>)> {
    let epoch = EpochStart::new(1, 0);
    vec![
        (HELLO, hello(VERSION, NONCE)),
        (CHALLENGE, frame(CHALLENGE, &NONCE)),
        (PROOF, frame(PROOF, &[7; 32])),
        (PROVEN, frame(PROVEN, &[7; 32])),
        (JOIN, frame(JOIN, &[0; 72])),
        (WELCOME, welcome(LOG_ID, epoch, 0, 0)),
        (REFUSE, refuse(6, 1, u64::MAX)),
        (BEGIN, begin(0, 0, 0)),
        (DATA, data(epoch, 0, 0, b"")),
        (ACK, ack(1, 0, 0)),
        (LEND, frame(LEND, &u64s(&[0]))),
    ]
}

#[test]
fn garbage_is_refused() {
    let mut rng = Rng(1);
    for len in [12, 40, 64, 5000, 100_000] {
        // All of it is known to be wrong once the head is there: no kind has such a number.
        let bytes = (0..len).map(|at| if at < 4 { 0xee } else { rng.next() as u8 });
        sends("garbage", bytes.collect());
    }
    sends("another protocol", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec());
    sends("a RocketMQ slave", [0; 8].repeat(2));
}

#[test]
fn a_frame_that_is_none_is_refused_before_anything_is_proved() {
    let sound = hello(VERSION, NONCE);
    let flipped = |at: usize| {
        let mut bytes = sound.clone();
        bytes[at] ^= 1;
        bytes
    };
    sends("a wrong checksum", flipped(8));
    sends("a damaged nonce", flipped(30));
    sends("another magic", frame(HELLO, &[&b"DURALOGS"[..], &[0; 20]].concat()));
    sends("a Hello with more in it", frame(HELLO, &[&sound[12..], &[0]].concat()));
    sends("a Hello with less in it", frame(HELLO, &sound[12..30]));
    sends("a byte that must be zero", frame_of(HELLO, 1, 28, &sound[12..]));
    for kind in [0, 12, 127, 255] {
        sends("an unknown kind", frame(kind, &sound[12..]));
    }
    for len in [65, 1 << 20, u32::MAX] {
        sends("a huge length", frame_of(HELLO, 0, len, &[]));
        answers("a huge length", is_protocol, move |_| frame_of(PROOF, 0, len, &[]));
    }
}

#[test]
fn a_frame_out_of_turn_is_refused_before_anything_is_proved() {
    for (kind, bytes) in frames() {
        if kind != HELLO {
            sends("a frame out of turn", bytes.clone());
        }
        if kind != PROOF {
            answers("a frame out of turn", is_protocol, move |_| bytes.clone());
        }
    }
}

#[test]
fn whoever_does_not_know_the_secret_is_told_nothing() {
    answers("a wrong secret", is_secret, |challenge| {
        frame(PROOF, &proof("another secret", Side::Replica, &NONCE, challenge))
    });
    answers("no secret", is_secret, |challenge| {
        frame(PROOF, &proof("", Side::Replica, &NONCE, challenge))
    });
    answers("the proof of the other side", is_secret, |challenge| {
        frame(PROOF, &proof(SECRET, Side::Primary, &NONCE, challenge))
    });
    answers("a proof with the nonces exchanged", is_secret, |challenge| {
        frame(PROOF, &proof(SECRET, Side::Replica, challenge, &NONCE))
    });
    answers("a proof of one bit too few", is_secret, |challenge| {
        let mut proof = proof(SECRET, Side::Replica, &NONCE, challenge);
        proof[31] ^= 1;
        frame(PROOF, &proof)
    });
}

#[test]
fn a_proof_that_was_overheard_is_of_no_use() {
    let scene = Scene::new();
    let mut overheard = scene.connect();
    overheard.send(&hello(VERSION, NONCE));
    let challenge: Nonce = overheard.expect(CHALLENGE).try_into().expect("a nonce");
    let theirs = proof(SECRET, Side::Replica, &NONCE, &challenge);
    overheard.send(&frame(PROOF, &theirs));
    let ours: [u8; 32] = overheard.expect(PROVEN).try_into().expect("a proof");
    let act = Box::new(move |scene: &Scene| {
        // The replica's own, the primary's, and the one that the primary gives for its own challenge.
        for replayed in [theirs, ours] {
            let mut peer = scene.connect();
            peer.send(&hello(VERSION, NONCE));
            assert_ne!(peer.expect(CHALLENGE), challenge);
            peer.send(&frame(PROOF, &replayed));
            assert_eq!(peer.rest(), NOTHING);
        }
        let (mut one, mut other) = (scene.connect(), scene.connect());
        one.send(&hello(VERSION, NONCE));
        let asked: Nonce = one.expect(CHALLENGE).try_into().expect("a nonce");
        other.send(&hello(VERSION, asked));
        let asked_back = other.expect(CHALLENGE);
        one.send(&frame(PROOF, &[&asked_back[..], &asked_back].concat()));
        assert_eq!(one.rest(), NOTHING);
        other.send(&frame(PROOF, &theirs));
        assert_eq!(other.rest(), NOTHING);
    });
    scene.withstands(&Attack { what: "a replayed proof", is: is_secret, joins: false, act });
    drop(overheard);
    scene.close();
}

/// Calls everyone who comes by it the same.
#[derive(Debug)]
struct Named(&'static str, TcpAcceptor);

impl Acceptor for Named {
    fn accept(&self, patience: Duration) -> std::io::Result<Stream> {
        Ok(Stream { peer: format!("{}:1", self.0), ..self.1.accept(patience)? })
    }

    fn close(&self) {
        self.1.close();
    }
}

#[test]
fn a_host_with_many_connections_does_not_drive_out_one_with_few() {
    let scene = Scene::new();
    let [slow, fast] = ["slow", "fast"].map(|name| {
        let tcp = TcpAcceptor::bind("127.0.0.1:0").expect("a port is free");
        let address = tcp.address();
        scene.primary.serve(Named(name, tcp)).expect("it listens");
        address
    });
    let mut peer = Peer::connect(slow);
    peer.send(&hello(VERSION, NONCE));
    let challenge: Nonce = peer.expect(CHALLENGE).try_into().expect("a nonce");
    // Each of these takes the place of another one, and of the first if that were the oldest of all.
    let mut held = Vec::new();
    for _ in 0..200 {
        let mut one = Peer::connect(fast);
        one.send(&hello(VERSION, NONCE));
        one.expect(CHALLENGE);
        held.push(one);
    }
    peer.send(&frame(PROOF, &proof(SECRET, Side::Replica, &NONCE, &challenge)));
    peer.expect(PROVEN);
    drop(held);
    scene.close();
}

#[test]
fn half_a_frame_and_the_end_is_the_end_of_a_connection() {
    let cut: [fn(&mut Peer); 4] = [
        |_| {},
        |peer| peer.send(&hello(VERSION, NONCE)[..7]),
        |peer| peer.send(&hello(VERSION, NONCE)[..39]),
        |peer| {
            peer.send(&hello(VERSION, NONCE));
            peer.expect(CHALLENGE);
            peer.send(&frame(PROOF, &[7; 32])[..40]);
        },
    ];
    for sent in cut {
        let act = Box::new(move |scene: &Scene| {
            let mut peer = scene.connect();
            sent(&mut peer);
            peer.0.shutdown(std::net::Shutdown::Write).expect("shut down");
            learns_nothing(&peer.rest());
        });
        withstands(&Attack { what: "half a frame", is: is_connection, joins: false, act });
    }
}

#[test]
fn half_a_frame_and_silence_is_given_up_after_a_while() {
    let act = Box::new(|scene: &Scene| {
        let mut peers: Vec<Peer> = (0..8).map(|_| scene.connect()).collect();
        for (at, peer) in peers.iter_mut().enumerate() {
            match at % 4 {
                0 => {}
                1 => peer.send(&[HELLO]),
                2 => peer.send(&hello(VERSION, NONCE)[..39]),
                _ => {
                    peer.send(&hello(VERSION, NONCE));
                    peer.expect(CHALLENGE);
                    peer.send(&frame(PROOF, &[7; 32])[..40]);
                }
            }
        }
        peers.iter_mut().for_each(|peer| learns_nothing(&peer.rest()));
    });
    let is = |error: &SessionError| matches!(error, SessionError::Silent);
    let scene = Scene::impatient();
    scene.withstands(&Attack { what: "silence", is, joins: false, act });
    scene.close();
}
