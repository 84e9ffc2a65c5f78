//! Peers of a primary that lost the end of its log, and asks its replicas for it.

use crate::scene::{EPOCH, Heard, SEGMENT_SIZE, config, ends, eventually, is_protocol, node};
use crate::temp::TempDir;
use crate::wire_peer::*;
use duralog::disk::{Cut, SimDisk};
use duralog::replication::{
    Epoch, Primary, PrimaryOptions, Replica, ReplicaOptions, SessionError, TcpAcceptor,
};
use duralog::{Environment, Error, FlushMode, Message, PutStatus, StoreConfig};
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

/// One whose disk has nothing that was not synced explicitly.
fn lazy() -> StoreConfig {
    let (interval, least_pages) = (Duration::from_secs(3600), 0);
    let mode = FlushMode::Async { interval, least_pages, thorough_interval: interval };
    config(Path::new("/store")).flush_mode(mode)
}

fn replica(dir: &TempDir, id: u64, address: SocketAddr) -> Replica {
    let mut options = ReplicaOptions::new(node(id, &Heard::default()), address.to_string());
    (options.retry_min, options.retry_max) = (Duration::from_millis(1), Duration::from_millis(50));
    Replica::open(config(&dir.path().join(id.to_string())), options).expect("it opens")
}

#[test]
fn what_was_lost_is_not_taken_from_those_who_do_not_have_it() {
    let (dir, disk, heard) = (TempDir::in_memory(), SimDisk::new(1), Heard::default());
    let options = || PrimaryOptions::new(node(1, &heard));
    let first = PrimaryOptions::new(node(1, &Heard::default())).epoch(Epoch(EPOCH));
    let primary =
        Primary::open_in(lazy(), Environment::on(disk.shared()), first).expect("it opens");
    let address = primary.listen("127.0.0.1:0").expect("a port is free");
    let replicas = [2, 3].map(|id| replica(&dir, id, address));
    primary.wait_for_replicas(2, PATIENCE).expect("they connect");
    for n in 0..50u8 {
        let put = primary.store().put(Message::new("t", vec![n; 300])).expect("put");
        assert_eq!(put.status, PutStatus::PutOk);
    }
    let end = primary.store().stats().watermarks.appended;
    let log_id = primary.log_id().expect("it has one").0.get();
    for replica in replicas {
        eventually("it has everything", || replica.state().durable == end);
        replica.close().expect("it closes");
    }
    let disk = disk.cut_power(Cut::losing_all());
    drop(primary);

    let acceptor = TcpAcceptor::bind("127.0.0.1:0").expect("a port is free");
    let address = acceptor.address();
    let (asked, environment) = (options(), Environment::on(disk.shared()));
    let recovering = std::thread::spawn(move || {
        Primary::recover_in(lazy(), environment, asked, acceptor, 2, PATIENCE)
    });
    let mut stranger = Peer::connect(address);
    stranger.send(&[0xee; 100]);
    assert_eq!(stranger.rest(), NOTHING);
    let mut stranger = Peer::connect(address);
    stranger.greet(VERSION, "another secret");
    assert_eq!(stranger.rest(), NOTHING);
    // One of the two that have to be heard.
    let second = replica(&dir, 2, address);
    let epoch = EpochStart { epoch: EPOCH, start: 0, node: 1, flags: 1 };
    // What one of another log holds, or has promised, is not asked for, and ends nothing.
    let mut stranger = Peer::connect(address);
    stranger.introduce();
    let mut join = Join::of(67, SEGMENT_SIZE);
    (join.log, join.end, join.epochs) = (LOG_ID, 1 << 40, vec![epoch]);
    join.promised = 9 * EPOCH;
    stranger.send(&join.frame());
    assert_eq!(stranger.expect(REFUSE), refuse(8, log_id, LOG_ID)[12..]);
    assert_eq!(stranger.rest(), NOTHING);
    let lies: [fn(EpochStart, u64) -> Vec<u8>; 8] = [
        |epoch, from| data(epoch, from, 0, &[0xee; 500]),
        |epoch, from| data(epoch, from, 0, &[0; 500]),
        |epoch, from| data(epoch, from + 1, 0, &[0; 500]),
        |epoch, from| data(EpochStart { epoch: EPOCH * 2, ..epoch }, from, 0, &[0; 500]),
        |epoch, _| data(epoch, u64::MAX, u64::MAX, &[]),
        |_, from| ack(EPOCH, from, from),
        |_, _| frame_of(DATA, 0, u32::MAX, &[]),
        |_, _| frame(LEND, &u64s(&[0])),
    ];
    for lie in lies {
        // It claims to have most.
        let mut liar = Peer::connect(address);
        liar.introduce();
        let mut join = Join::of(66, SEGMENT_SIZE);
        (join.end, join.epochs) = (1 << 40, vec![epoch]);
        liar.send(&join.frame());
        let from = number(&liar.expect(LEND), 0);
        assert!(from < end);
        liar.send(&lie(epoch, from));
        liar.rest();
    }
    assert!(!recovering.is_finished(), "there was nobody who had anything");
    let third = replica(&dir, 3, address);
    let primary = ends("recovering", move || recovering.join().expect("no panic"));
    let primary = primary.expect("it has everything again");
    assert_eq!(primary.store().stats().watermarks.appended, end);
    assert_eq!(heard.count(|error| matches!(error, SessionError::Secret)), 1);
    assert!(heard.count(is_protocol) > 0);
    assert_eq!(heard.count(|error| matches!(error, SessionError::AnotherLog { .. })), 1);
    assert_eq!(primary.log_id().map(|id| id.0.get()), Some(log_id));
    assert!(heard.count(|error| matches!(error, SessionError::Log(Error::Corrupt { .. }))) > 0);
    primary.listen(address).expect("the port is free again");
    primary.wait_for_replicas(2, PATIENCE).expect("they connect");
    let put = primary.store().put(Message::new("t", "and one more")).expect("put");
    assert_eq!((put.status, put.queue_offset), (PutStatus::PutOk, 50));
    let got = primary.store().get("t", 0, 0, 100).expect("readable").messages;
    assert!(got.iter().take(50).enumerate().all(|(n, one)| one.body[..] == [n as u8; 300]));
    ends("closing", move || {
        second.close().expect("it closes");
        third.close().expect("it closes");
        primary.close().expect("it closes");
    });
}
