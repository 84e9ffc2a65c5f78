//! One end of a connection between two nodes, on a plain socket, for tests that say what no node would.
//! It is written from the description in `src/replication/wire.rs` and shares no code with it.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

/// Longer than anything takes that is to come.
pub const PATIENCE: Duration = Duration::from_secs(60);
pub const SECRET: &str = "the secret";
pub const CLUSTER: u64 = 7;
pub const VERSION: u32 = 1;
const HEAD: usize = 12;

pub const HELLO: u8 = 1;
pub const CHALLENGE: u8 = 2;
pub const PROOF: u8 = 3;
pub const PROVEN: u8 = 4;
pub const JOIN: u8 = 5;
pub const WELCOME: u8 = 6;
pub const REFUSE: u8 = 7;
pub const BEGIN: u8 = 8;
pub const DATA: u8 = 9;
pub const ACK: u8 = 10;
pub const LEND: u8 = 11;
pub const QUEUES: u8 = 12;
pub const OFFSETS: u8 = 13;
pub const RECORDS: u8 = 14;

pub const NOTHING: [u8; 0] = [];

pub type Nonce = [u8; 16];
pub const NONCE: Nonce = *b"sixteen bytes...";

pub fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg());
    !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step))
}

/// A frame with a good checksum, whatever is in it.
pub fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    frame_of(kind, 0, payload.len() as u32, payload)
}

pub fn frame_of(kind: u8, zero: u8, len: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind, zero, 0, 0];
    bytes.extend_from_slice(&len.to_be_bytes());
    // What lies in records has checksums of its own.
    let covered = payload.get(..44).filter(|_| kind == RECORDS).unwrap_or(payload);
    let crc = crc32(&[&bytes[..], covered].concat());
    bytes.extend_from_slice(&crc.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// Numbers one after the other, big-endian.
pub fn u64s(numbers: &[u64]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_be_bytes()).collect()
}

pub fn hello(version: u32, nonce: Nonce) -> Vec<u8> {
    frame(HELLO, &[&b"DURALOGR"[..], &version.to_be_bytes(), &nonce].concat())
}

#[derive(Clone, Copy)]
pub enum Side {
    Primary,
    Replica,
}

/// What shows that one knows the secret.
pub fn proof(secret: &str, side: Side, replica: &Nonce, primary: &Nonce) -> [u8; 32] {
    let who: &[u8] = match side {
        Side::Primary => b"duralog primary 1",
        Side::Replica => b"duralog replica 1",
    };
    hmac_sha256::HMAC::mac([who, replica, primary].concat(), secret)
}

/// The log of a primary that is none.
pub const LOG_ID: u64 = 0x10c;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EpochStart {
    pub epoch: u64,
    pub start: u64,
    pub node: u64,
    pub flags: u32,
}

impl EpochStart {
    pub fn new(epoch: u64, start: u64) -> Self {
        Self { epoch, start, node: 1, flags: 0 }
    }

    fn bytes(&self) -> Vec<u8> {
        [&u64s(&[self.epoch, self.start, self.node])[..], &self.flags.to_be_bytes()].concat()
    }

    fn parse(bytes: &[u8]) -> Self {
        let (epoch, start, node) = (number(bytes, 0), number(bytes, 8), number(bytes, 16));
        let flags = u32::from_be_bytes(bytes[24..28].try_into().expect("4 bytes"));
        Self { epoch, start, node, flags }
    }
}

/// Who a replica is. The default is an empty one that nobody objects to.
#[derive(Debug, Clone)]
pub struct Join {
    pub cluster: u64,
    pub node: u64,
    pub instance: u64,
    pub segment_size: u64,
    /// 0 where it has none.
    pub log: u64,
    pub min: u64,
    pub end: u64,
    pub confirmed: u64,
    pub promised: u64,
    pub epochs: Vec<EpochStart>,
}

impl Join {
    pub fn of(node: u64, segment_size: u64) -> Self {
        let (cluster, instance) = (CLUSTER, 99);
        let (log, min, end, confirmed, promised, epochs) = (0, 0, 0, 0, 0, Vec::new());
        Self { cluster, node, instance, segment_size, log, min, end, confirmed, promised, epochs }
    }

    pub fn frame(&self) -> Vec<u8> {
        let mut payload = u64s(&[self.cluster, self.node, self.instance, self.segment_size]);
        payload.extend(u64s(&[self.log, self.min, self.end, self.confirmed, self.promised]));
        payload.extend(self.epochs.iter().flat_map(EpochStart::bytes));
        frame(JOIN, &payload)
    }

    pub fn parse(payload: &[u8]) -> Self {
        let at = |index: usize| number(payload, index * 8);
        Self {
            cluster: at(0),
            node: at(1),
            instance: at(2),
            segment_size: at(3),
            log: at(4),
            min: at(5),
            end: at(6),
            confirmed: at(7),
            promised: at(8),
            epochs: payload[72..].chunks(28).map(EpochStart::parse).collect(),
        }
    }
}

pub fn begin(from: u64, len: u64, crc: u32) -> Vec<u8> {
    frame(BEGIN, &[&u64s(&[from, len])[..], &crc.to_be_bytes()].concat())
}

pub fn ack(epoch: u64, written: u64, durable: u64) -> Vec<u8> {
    frame(ACK, &u64s(&[epoch, written, durable]))
}

pub fn welcome(log: u64, epoch: EpochStart, plan: u32, offset: u64) -> Vec<u8> {
    let plan = &plan.to_be_bytes()[..];
    frame(WELCOME, &[&u64s(&[log])[..], &epoch.bytes(), plan, &u64s(&[offset])].concat())
}

/// How far a group has come in queues of `t`, all of it if that is 1; so many more come in further frames.
pub fn offsets(end: u64, whole: u32, left: u32, group: &str, next: &[(u32, u64)]) -> Vec<u8> {
    let mut payload = u64s(&[end]);
    payload.extend_from_slice(&whole.to_be_bytes());
    payload.extend_from_slice(&left.to_be_bytes());
    for (queue_id, next) in next {
        payload.extend_from_slice(&[1, group.len() as u8]);
        payload.extend_from_slice(&queue_id.to_be_bytes());
        payload.extend_from_slice(&next.to_be_bytes());
        payload.push(b't');
        payload.extend_from_slice(group.as_bytes());
    }
    frame(OFFSETS, &payload)
}

/// Where queues of a topic go on; so many more come in further frames.
pub fn queues(left: u32, topic: &str, starts: &[(u32, u64)]) -> Vec<u8> {
    let mut payload = left.to_be_bytes().to_vec();
    for (queue_id, offset) in starts {
        payload.push(topic.len() as u8);
        payload.extend_from_slice(topic.as_bytes());
        payload.extend_from_slice(&queue_id.to_be_bytes());
        payload.extend_from_slice(&offset.to_be_bytes());
    }
    frame(QUEUES, &payload)
}

pub fn refuse(code: u32, first: u64, second: u64) -> Vec<u8> {
    frame(REFUSE, &[&code.to_be_bytes()[..], &u64s(&[first, second])].concat())
}

pub fn data(epoch: EpochStart, offset: u64, confirmed: u64, bytes: &[u8]) -> Vec<u8> {
    data_of(DATA, epoch, offset, confirmed, bytes)
}

/// Of a kind that says what is to be verified.
pub fn data_of(kind: u8, epoch: EpochStart, offset: u64, confirmed: u64, bytes: &[u8]) -> Vec<u8> {
    frame(kind, &[&epoch.bytes()[..], &u64s(&[offset, confirmed]), bytes].concat())
}

/// The number at `at`.
pub fn number(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}

/// What a primary said to a replica that joined.
#[derive(Debug, Clone, Copy)]
pub struct Welcome {
    pub log: u64,
    pub epoch: EpochStart,
    pub plan: u32,
    pub offset: u64,
}

pub struct Peer(pub TcpStream);

impl Peer {
    pub fn connect(address: SocketAddr) -> Self {
        let socket = loop {
            match TcpStream::connect(address) {
                Ok(socket) => break socket,
                // The queue of those who wait to be accepted is full.
                Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
                Err(error) => panic!("it listens: {error}"),
            }
        };
        Self::on(socket)
    }

    pub fn accept(listener: &TcpListener) -> Self {
        Self::on(listener.accept().expect("a connection").0)
    }

    fn on(socket: TcpStream) -> Self {
        socket.set_read_timeout(Some(PATIENCE)).expect("set");
        socket.set_nodelay(true).expect("set");
        Self(socket)
    }

    /// Sends; the other may have gone already.
    pub fn send(&mut self, bytes: &[u8]) {
        let _ = self.0.write_all(bytes);
    }

    /// The next frame, or none when the other has closed the connection. What is said of consumer groups now
    /// and then is passed over, and data is data, whatever is to be verified of it.
    pub fn frame(&mut self) -> Option<(u8, Vec<u8>)> {
        loop {
            let mut head = [0; HEAD];
            self.fill(&mut head)?;
            let len = u32::from_be_bytes(head[4..8].try_into().expect("4 bytes"));
            let mut payload = vec![0; len as usize];
            self.fill(&mut payload)?;
            assert_eq!(head, frame(head[0], &payload)[..HEAD], "a node sends sound frames");
            match head[0] {
                OFFSETS => {}
                RECORDS => return Some((DATA, payload)),
                kind => return Some((kind, payload)),
            }
        }
    }

    /// The next frame, which is one of this kind.
    pub fn expect(&mut self, kind: u8) -> Vec<u8> {
        match self.frame() {
            Some((got, payload)) if got == kind => payload,
            other => panic!("not a frame of kind {kind}, but {other:?}"),
        }
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Option<()> {
        match self.0.read_exact(bytes) {
            Ok(()) => Some(()),
            Err(error) => {
                let gone = [ErrorKind::UnexpectedEof, ErrorKind::ConnectionReset];
                assert!(gone.contains(&error.kind()), "nothing came: {error}");
                None
            }
        }
    }

    /// All that still comes, until the other closes the connection.
    pub fn rest(&mut self) -> Vec<u8> {
        let (mut all, mut piece) = (Vec::new(), [0; 4096]);
        loop {
            match self.0.read(&mut piece) {
                Ok(0) => return all,
                Ok(got) => all.extend_from_slice(&piece[..got]),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return all,
                Err(error) => panic!("the connection is not closed: {error}"),
            }
        }
    }

    /// The kinds of all frames that still come, until the other closes the connection.
    pub fn kinds(&mut self) -> Vec<u8> {
        std::iter::from_fn(|| self.frame()).map(|(kind, _)| kind).collect()
    }

    /// A replica's part, up to the proof; the challenge that it answers.
    pub fn greet(&mut self, version: u32, secret: &str) -> Nonce {
        self.send(&hello(version, NONCE));
        let challenge: Nonce = self.expect(CHALLENGE).try_into().expect("a nonce");
        self.send(&frame(PROOF, &proof(secret, Side::Replica, &NONCE, &challenge)));
        challenge
    }

    /// The same as one who knows the secret.
    pub fn introduce(&mut self) {
        let challenge = self.greet(VERSION, SECRET);
        let proven = proof(SECRET, Side::Primary, &NONCE, &challenge);
        assert_eq!(self.expect(PROVEN), proven);
    }

    pub fn join(&mut self, join: &Join) -> Welcome {
        self.introduce();
        self.send(&join.frame());
        let bytes = self.expect(WELCOME);
        let plan = u32::from_be_bytes(bytes[36..40].try_into().expect("4 bytes"));
        let (log, epoch) = (number(&bytes, 0), EpochStart::parse(&bytes[8..]));
        Welcome { log, epoch, plan, offset: number(&bytes, 40) }
    }

    /// Joins as an empty replica, and is sent the log.
    pub fn follow(&mut self, join: &Join) -> Welcome {
        let welcome = self.join(join);
        assert_eq!((welcome.plan, welcome.offset), (0, join.end));
        self.send(&begin(join.end, 0, 0));
        welcome
    }

    /// A primary's part, up to its own proof; the replica's nonce and its proof.
    pub fn challenge(&mut self) -> (Nonce, [u8; 32]) {
        let hello = self.expect(HELLO);
        assert_eq!(hello[..8], *b"DURALOGR");
        self.send(&frame(CHALLENGE, &NONCE));
        let nonce: Nonce = hello[12..].try_into().expect("a nonce");
        let theirs: [u8; 32] = self.expect(PROOF).try_into().expect("a proof");
        assert_eq!(theirs, proof(SECRET, Side::Replica, &nonce, &NONCE));
        (nonce, theirs)
    }

    /// The same as one who knows the secret; how the replica introduces itself.
    pub fn prove(&mut self) -> Join {
        let (nonce, _) = self.challenge();
        self.send(&frame(PROVEN, &proof(SECRET, Side::Primary, &nonce, &NONCE)));
        Join::parse(&self.expect(JOIN))
    }
}
