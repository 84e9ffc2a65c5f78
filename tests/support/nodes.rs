//! Primaries and replicas on simulated disks, and the way from one to the other. Beside `sim`.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use crate::sim::{LONG, config, disk, eventually, ids, message, open, put, unsynced};
use duralog::disk::{Cut, SimDisk};
use duralog::replication::{
    Connector, Epoch, Event, NodeId, NodeOptions, Primary, PrimaryOptions, Replica, ReplicaOptions,
    Stream, TcpAcceptor, TcpConnector,
};
use duralog::{Environment, Error, PutStatus, StoreConfig};
use std::io;
use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// The way to a primary, while there is one.
#[derive(Debug, Clone, Default)]
pub struct Line(Arc<Mutex<Option<SocketAddr>>>);

impl Line {
    pub fn to(primary: &Primary) -> Self {
        let line = Self::default();
        line.lead_to(primary);
        line
    }

    pub fn lead_to(&self, primary: &Primary) {
        self.lead(primary.listen("127.0.0.1:0").expect("a port is free"));
    }

    pub fn lead(&self, address: SocketAddr) {
        *self.0.lock().expect("nobody panics") = Some(address);
    }

    /// No connection comes about any more; one that there is stays.
    pub fn end(&self) {
        *self.0.lock().expect("nobody panics") = None;
    }

    pub fn has_ended(&self) -> bool {
        self.0.lock().expect("nobody panics").is_none()
    }
}

impl Connector for Line {
    fn connect(&self, limit: Duration, patience: Duration) -> io::Result<Stream> {
        let address = *self.0.lock().expect("nobody panics");
        let address = address.ok_or(io::ErrorKind::ConnectionRefused)?;
        TcpConnector::new(address.to_string()).connect(limit, patience)
    }
}

pub fn node(id: u64) -> PrimaryOptions {
    PrimaryOptions::new(NodeOptions::new(NodeId(id)))
}

/// One that gives a replica a segment, and the next one only hours later.
pub fn stingy(id: u64) -> PrimaryOptions {
    let mut options = node(id);
    options.max_transfer_rate = NonZeroU64::new(1);
    options
}

pub fn try_primary(
    disk: &SimDisk,
    config: StoreConfig,
    options: PrimaryOptions,
) -> Result<Primary, Error> {
    Primary::open_in(config, Environment::on(disk.shared()), options)
}

pub fn primary_with(disk: &SimDisk, config: StoreConfig, options: PrimaryOptions) -> Primary {
    try_primary(disk, config, options).expect("the primary opens")
}

pub fn primary(disk: &SimDisk, id: u64) -> Primary {
    primary_with(disk, config(), node(id))
}

/// One that gets back what it lost from a replica, which comes by `line`.
pub fn recovered(
    disk: &SimDisk,
    config: StoreConfig,
    id: u64,
    line: &Line,
) -> Result<Primary, Error> {
    let acceptor = TcpAcceptor::bind("127.0.0.1:0").expect("a port is free");
    line.lead(acceptor.address());
    let environment = Environment::on(disk.shared());
    Primary::recover_in(config, environment, node(id), acceptor, 1, LONG)
}

pub fn replica_with(
    disk: &SimDisk,
    config: StoreConfig,
    node: NodeOptions,
    line: &Line,
) -> Replica {
    let mut options = ReplicaOptions::connecting(node, line.clone());
    // Nobody waits long for one that finds nobody at first.
    options.retry_max = options.retry_min;
    Replica::open_in(config, Environment::on(disk.shared()), options).expect("the replica opens")
}

pub fn replica(disk: &SimDisk, id: u64, line: &Line) -> Replica {
    replica_with(disk, config(), NodeOptions::new(NodeId(id)), line)
}

/// One that finds nobody to follow once it was told to cut its log.
pub fn replica_until_cut(disk: &SimDisk, id: u64, line: &Line) -> Replica {
    let its_line = line.clone();
    let observed = NodeOptions::new(NodeId(id)).observe(move |event| {
        if matches!(event, Event::Truncated { .. }) {
            its_line.end();
        }
    });
    replica_with(disk, config(), observed, line)
}

/// One that follows nobody.
pub fn idle(disk: &SimDisk, id: u64) -> Replica {
    replica(disk, id, &Line::default())
}

pub fn status_of_put(primary: &Primary, id: u64) -> PutStatus {
    primary.store().put(message(id)).expect("it is accepted").status
}

/// Puts them while the store is open without replication.
pub fn put_alone(disk: &SimDisk, ids: impl IntoIterator<Item = u64>) {
    let alone = open(disk, config());
    for id in ids {
        put(&alone, id);
    }
    alone.close().expect("it closes");
}

pub fn end(primary: &Primary) -> u64 {
    primary.store().stats().watermarks.appended
}

/// Waits until the replica has all that the primary has.
pub fn follows(replica: &Replica, primary: &Primary) {
    eventually("it follows, and has all", || {
        let state = replica.state();
        state.following && state.durable == end(primary)
    });
}

/// A primary, A, and its replica, B, which have one message, 0.
pub struct Pair {
    pub disks: [SimDisk; 2],
    pub a: Primary,
    pub line: Line,
    pub b: Replica,
}

pub fn pair() -> Pair {
    let disks = [disk(), disk()];
    let a = primary(&disks[0], 1);
    let line = Line::to(&a);
    let b = replica(&disks[1], 2, &line);
    a.wait_for_replicas(1, LONG).expect("it connects");
    assert_eq!(status_of_put(&a, 0), PutStatus::PutOk);
    Pair { disks, a, line, b }
}

/// The replica gets one more message, and shows it behind the first one.
pub fn goes_on(a: &Primary, b: &Replica) {
    a.wait_for_replicas(1, LONG).expect("it is back");
    assert_eq!(status_of_put(a, 1), PutStatus::PutOk);
    eventually("it shows both", || ids(&b.store()) == [0, 1]);
}

/// A primary, A, and its replicas, B and C, which have one message, 0.
pub struct Trio {
    pub disks: [SimDisk; 3],
    pub a: Primary,
    pub line: Line,
    pub b: Replica,
    pub c: Replica,
}

pub fn trio() -> Trio {
    let disks = [disk(), disk(), disk()];
    let a = primary(&disks[0], 1);
    let line = Line::to(&a);
    let (b, c) = (replica(&disks[1], 2, &line), replica(&disks[2], 3, &line));
    a.wait_for_replicas(2, LONG).expect("they connect");
    assert_eq!(status_of_put(&a, 0), PutStatus::PutOk);
    eventually("both have it", || [&b, &c].iter().all(|one| one.state().durable == end(&a)));
    Trio { disks, a, line, b, c }
}

/// A primary, A, that has lost all that it was given, and its replica, B, that holds it.
pub struct Lost {
    pub a_disk: SimDisk,
    pub b_disk: SimDisk,
    pub b: Replica,
    /// Everything before was acknowledged.
    pub acked: u64,
    /// The next one.
    pub term: Epoch,
}

/// What a power cut leaves of A, where so many messages were put.
pub fn lost_by_a(messages: u64) -> Lost {
    let (disk_of_a, b_disk) = (disk(), disk());
    // It syncs only when it must.
    let a = primary_with(&disk_of_a, unsynced(), node(1));
    let b = replica(&b_disk, 2, &Line::to(&a));
    a.wait_for_replicas(1, LONG).expect("it connects");
    for id in 0..messages {
        assert_eq!(status_of_put(&a, id), PutStatus::PutOk);
    }
    let (acked, term) = (end(&a), a.epoch().next_term());
    let a_disk = disk_of_a.cut_power(Cut::losing_all());
    Lost { a_disk, b_disk, b, acked, term }
}
