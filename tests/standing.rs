//! What a node says of itself, and knows, after power cuts, cuts and looks.

#[path = "support/passive.rs"]
mod passive;
#[path = "support/sim.rs"]
mod sim;

use duralog::disk::{Cut, SimDisk};
use duralog::replication::{
    Ack, Connector, Epoch, EpochStart, Event, NodeId, NodeOptions, Primary, PrimaryOptions,
    Refusal, Replica, ReplicaOptions, ReplicatedLog, SessionError, Stream, TcpAcceptor,
    TcpConnector,
};
use duralog::{Environment, Error, PutStatus, Store, StoreConfig};
use passive::Passive;
use sim::*;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// The way to a primary, while there is one.
#[derive(Debug, Clone, Default)]
struct Line(Arc<Mutex<Option<SocketAddr>>>);

impl Line {
    fn to(primary: &Primary) -> Self {
        let line = Self::default();
        line.lead_to(primary);
        line
    }

    fn lead_to(&self, primary: &Primary) {
        let address = primary.listen("127.0.0.1:0").expect("a port is free");
        *self.0.lock().expect("nobody panics") = Some(address);
    }

    /// No connection comes about any more; one that there is stays.
    fn end(&self) {
        *self.0.lock().expect("nobody panics") = None;
    }

    fn has_ended(&self) -> bool {
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

fn node(id: u64) -> PrimaryOptions {
    PrimaryOptions::new(NodeOptions::new(NodeId(id)))
}

fn primary_with(disk: &SimDisk, config: StoreConfig, id: u64) -> Primary {
    let environment = Environment::on(disk.shared());
    Primary::open_in(config, environment, node(id)).expect("the primary opens")
}

fn primary(disk: &SimDisk, id: u64) -> Primary {
    primary_with(disk, config(), id)
}

fn replica_with(disk: &SimDisk, config: StoreConfig, node: NodeOptions, line: &Line) -> Replica {
    let options = ReplicaOptions::connecting(node, line.clone());
    Replica::open_in(config, Environment::on(disk.shared()), options).expect("the replica opens")
}

fn replica(disk: &SimDisk, id: u64, line: &Line) -> Replica {
    replica_with(disk, config(), NodeOptions::new(NodeId(id)), line)
}

/// One that follows nobody.
fn idle(disk: &SimDisk, id: u64) -> Replica {
    replica(disk, id, &Line::default())
}

fn status_of_put(primary: &Primary, id: u64) -> PutStatus {
    primary.store().put(message(id)).expect("it is accepted").status
}

fn end(primary: &Primary) -> u64 {
    primary.store().stats().watermarks.appended
}

fn log_on(disk: &SimDisk) -> (Store, Arc<dyn ReplicatedLog>) {
    let replicator = Arc::new(Passive::default());
    let environment = Environment::on(disk.shared()).stepped();
    let store = Store::open_replicated(config(), environment, replicator.clone());
    (store.expect("the copy opens"), replicator.log())
}

/// A primary, A, that has lost all that it was given, and its replica, B, that holds it.
struct Lost {
    a_disk: SimDisk,
    b_disk: SimDisk,
    b: Replica,
    /// Everything before was acknowledged.
    acked: u64,
    /// The next one.
    term: Epoch,
}

/// What a power cut leaves of A, where so many messages were put.
fn lost_by_a(messages: u64) -> Lost {
    let (disk_of_a, b_disk) = (disk(), disk());
    // It syncs only when it must.
    let a = primary_with(&disk_of_a, unsynced(), 1);
    let b = replica(&b_disk, 2, &Line::to(&a));
    a.wait_for_replicas(1, LONG).expect("it connects");
    for id in 0..messages {
        assert_eq!(status_of_put(&a, id), PutStatus::PutOk);
    }
    let (acked, term) = (end(&a), a.epoch().next_term());
    let a_disk = disk_of_a.cut_power(Cut::losing_all());
    Lost { a_disk, b_disk, b, acked, term }
}

#[test]
fn doubt_survives_a_second_power_cut() {
    let Lost { a_disk, b, acked, term, .. } = lost_by_a(50);
    b.fence(term).expect("it is newer");
    let b = b.promote(node(2)).expect("it takes over");
    let node_a = NodeOptions::new(NodeId(1));
    let a = replica_with(&a_disk, unsynced(), node_a.clone(), &Line::to(&b));
    eventually("the old primary has come to the new epoch", || {
        a.standing().is_ok_and(|standing| standing.epoch == term)
    });
    // Nothing has asked it to sync since.
    let a_disk = a_disk.cut_power(Cut::losing_all());
    drop((a, b));
    // The other one is lost for good, and whoever vouches is chosen.
    let a = replica_with(&a_disk, unsynced(), node_a, &Line::default());
    let standing = a.fence(term.next_term()).expect("it is newer");
    assert!(
        !standing.vouches || standing.end >= acked,
        "it vouches, and lacks what lies before {acked} and was acknowledged: {standing:?}"
    );
}

#[test]
fn doubt_outlasts_a_restart_into_an_older_epoch() {
    let disk = disk();
    let primary = primary_with(&disk, unsynced(), 1);
    // Whether replicas have it by now, the node cannot tell later.
    assert_eq!(status_of_put(&primary, 1), PutStatus::ReplicaNotAvailable);
    let lost = primary.epoch();
    let disk = disk.cut_power(Cut::losing_all());
    drop(primary);
    let (store, log) = log_on(&disk);
    assert!(log.in_doubt() && log.end() == 0);
    let at = 4 * log.segment_size();
    log.restart(at).expect("nothing is confirmed here");
    drop((store, log));
    let (_store, log) = log_on(&disk);
    let reigning = lost.next_term();
    log.follow(log.log_id(), reigning).expect("it is the same log");
    let own = EpochStart { epoch: lost, start: 0, node: NodeId(1), record_crc: true };
    log.enter_epoch(own).expect("the log begins in the middle of it");
    assert!(log.in_doubt(), "it has come to the epoch whose end it lost, and holds nothing of it");
    let newest = EpochStart { epoch: reigning, start: at, node: NodeId(2), record_crc: true };
    log.enter_epoch(newest).expect("it begins here");
    assert!(!log.in_doubt(), "it has all that whoever reigns had at first");
}

/// Three nodes with sync flush, of which P wrote alone, then Q did, and then P took over again with
/// R: [`SHOWN`] can be read on both of them since, and Q lacks some of it.
struct Three {
    disks: [SimDisk; 3],
    p: Primary,
    r: Replica,
    /// From R to P. It ends when R is told to cut its log.
    line: Line,
    /// In which P reigns.
    term: Epoch,
}

const SHOWN: [u64; 2] = [0, 1];

fn three_of_which_p_wrote_alone() -> Three {
    let disks = [disk(), disk(), disk()];
    let p = primary(&disks[0], 1);
    let line = Line::to(&p);
    let (q, r) = (replica(&disks[1], 2, &line), replica(&disks[2], 3, &line));
    p.wait_for_replicas(2, LONG).expect("they connect");
    assert_eq!(status_of_put(&p, 0), PutStatus::PutOk);
    eventually("both have it", || [&q, &r].iter().all(|one| one.state().durable == end(&p)));
    q.close().expect("it closes");
    r.close().expect("it closes");
    drop((q, r));
    assert_ne!(status_of_put(&p, 1), PutStatus::PutOk);
    let term = p.epoch().next_term();
    p.close().expect("it closes");
    drop(p);
    let (q, r) = (idle(&disks[1], 2), idle(&disks[2], 3));
    q.fence(term).expect("it is newer");
    r.fence(term).expect("it is newer");
    let q = q.promote(node(2)).expect("it takes over");
    assert_ne!(status_of_put(&q, 2), PutStatus::PutOk);
    q.close().expect("it closes");
    drop(q);
    let term = term.next_term();
    let p = idle(&disks[0], 1);
    let (at_p, at_r) = (p.fence(term).expect("it is newer"), r.fence(term).expect("it is newer"));
    assert!(at_p > at_r);
    let p = p.promote(node(1)).expect("it takes over");
    r.close().expect("it closes");
    drop(r);
    let line = Line::to(&p);
    let its_line = line.clone();
    let observed = NodeOptions::new(NodeId(3)).observe(move |event| {
        if matches!(event, Event::Truncated { .. }) {
            its_line.end();
        }
    });
    let r = replica_with(&disks[2], config(), observed, &line);
    p.wait_for_replicas(1, LONG).expect("it connects");
    eventually("both show it", || ids(p.store()) == SHOWN && ids(&r.store()) == SHOWN);
    Three { disks, p, r, line, term }
}

/// What can be read after a failover by the rules, when P is lost.
fn shown_without_p(q_disk: &SimDisk, r: Replica, term: Epoch) -> Vec<u64> {
    let q = idle(q_disk, 2);
    let (at_q, at_r) = (q.fence(term).expect("it is newer"), r.fence(term).expect("it is newer"));
    assert!(at_q.vouches && at_r.vouches);
    let (chosen, id) = if at_q > at_r { (q, 2) } else { (r, 3) };
    // It waits for no replica, and shows all it has.
    let chosen = chosen.promote(node(id).ack(Ack::Async)).expect("it takes over");
    ids(chosen.store())
}

#[test]
fn a_cut_takes_nothing_back_that_was_read() {
    let Three { disks, p, r, line, term } = three_of_which_p_wrote_alone();
    // One more, of which P loses all in a power cut.
    disks[0].hang_syncs(true);
    let ticket = p.store().submit(message(3)).expect("it is accepted");
    let longer = end(&p);
    eventually("r has it", || r.state().durable == longer);
    line.end();
    let p_disk = disks[0].cut_power(Cut::losing_all());
    drop((ticket, p));
    p_disk.hang_syncs(false);
    let p = primary(&p_disk, 1);
    assert!(end(&p) < longer);
    // R hears what to cut, and cannot ask again: it does not come to the epoch that P has begun.
    line.lead_to(&p);
    eventually("r is cut", || line.has_ended());
    assert_eq!((r.state().durable, ids(&r.store())), (end(&p), SHOWN.to_vec()));
    drop(p);
    assert_eq!(shown_without_p(&disks[1], r, term.next_term()), SHOWN);
}

#[test]
fn a_look_at_a_replica_takes_nothing_back_that_was_read() {
    let Three { disks, p, r, term, .. } = three_of_which_p_wrote_alone();
    r.close().expect("it closes");
    drop((p, r));
    // Without replication, by whoever only has a look.
    open(&disks[2], config()).close().expect("it closes");
    assert_eq!(shown_without_p(&disks[1], idle(&disks[2], 3), term.next_term()), SHOWN);
}

#[test]
fn a_slow_replica_of_three_keeps_its_log_from_another_cluster() {
    let disks = [disk(), disk(), disk()];
    let p = primary(&disks[0], 1);
    let line = Line::to(&p);
    let b = replica(&disks[1], 2, &line);
    // It syncs only when it must.
    let c = replica_with(&disks[2], unsynced(), NodeOptions::new(NodeId(3)), &line);
    p.wait_for_replicas(2, LONG).expect("they connect");
    assert_eq!(status_of_put(&p, 0), PutStatus::PutOk);
    eventually("c hears that it is confirmed", || c.state().confirmed == end(&p));
    assert_eq!(c.state().durable, 0, "the other one was faster");
    c.store().flush().expect("it flushes");
    assert_eq!(c.state().durable, end(&p));
    // From here on it counts among those that hold what is confirmed.
    let c_disk = disks[2].cut_power(Cut::losing_all());
    drop((b, c, p));
    let stranger_disk = disk();
    let stranger = primary(&stranger_disk, 1);
    assert_eq!(status_of_put(&stranger, 1), PutStatus::ReplicaNotAvailable);
    let c = replica(&c_disk, 3, &Line::to(&stranger));
    let is_refused = || matches!(c.state().last_error, Some(SessionError::AnotherLog { .. }));
    eventually("it is refused, or follows", || is_refused() || c.state().following);
    assert!(is_refused(), "it gives up what is confirmed for the log of another cluster");
    assert_eq!(ids(&c.store()), [0]);
}

#[test]
fn what_was_put_without_replication_outranks_nothing_that_a_primary_gave() {
    // Whether C comes to an epoch in which it gets nothing before something is put there.
    for reopened in [false, true] {
        let disks = [disk(), disk(), disk()];
        let mut a = primary(&disks[0], 1);
        let line = Line::to(&a);
        let (b, mut c) = (replica(&disks[1], 2, &line), replica(&disks[2], 3, &line));
        a.wait_for_replicas(2, LONG).expect("they connect");
        assert_eq!(status_of_put(&a, 0), PutStatus::PutOk);
        eventually("both have it", || [&b, &c].iter().all(|one| one.state().durable == end(&a)));
        if reopened {
            drop(a);
            a = primary(&disks[0], 1);
            line.lead_to(&a);
            eventually("both are in the epoch", || {
                let come = |one: &Replica| one.standing().is_ok_and(|at| at.epoch == a.epoch());
                come(&b) && come(&c)
            });
        }
        let at_c = c.standing().expect("it is open");
        c.close().expect("it closes");
        drop(c);
        assert_eq!(status_of_put(&a, 1), PutStatus::PutOk);
        // Twice, each time under an epoch of its own.
        for id in [100, 101] {
            let alone = open(&disks[2], config());
            put(&alone, id);
            alone.close().expect("it closes");
        }
        let term = a.epoch().next_term();
        drop(a);
        c = idle(&disks[2], 3);
        let stands = c.standing().expect("it is open");
        assert_eq!((stands.epoch, stands.end), (at_c.epoch, at_c.end));
        let (at_b, at_c) =
            (b.fence(term).expect("it is newer"), c.fence(term).expect("it is newer"));
        assert!(at_b > at_c, "{at_b:?}, {at_c:?}");
        let promoted = b.promote(node(2)).expect("it takes over");
        drop(c);
        line.lead_to(&promoted);
        c = replica(&disks[2], 3, &line);
        promoted.wait_for_replicas(1, LONG).expect("it follows");
        assert_eq!(status_of_put(&promoted, 2), PutStatus::PutOk);
        eventually("both show it", || {
            ids(promoted.store()) == [0, 1, 2] && ids(&c.store()) == [0, 1, 2]
        });
    }
}

#[test]
fn a_store_that_was_never_replicated_becomes_the_first_primary_of_what_it_holds() {
    let disks = [disk(), disk()];
    let alone = open(&disks[0], config());
    put(&alone, 0);
    alone.close().expect("it closes");
    let (a, b) = (idle(&disks[0], 1), idle(&disks[1], 2));
    let term = Epoch::term(1);
    let (at_a, at_b) = (a.fence(term).expect("it is newer"), b.fence(term).expect("it is newer"));
    assert!(at_a > at_b, "{at_a:?}, {at_b:?}");
    let a = a.promote(node(1)).expect("it is the first");
    drop(b);
    let b = replica(&disks[1], 2, &Line::to(&a));
    a.wait_for_replicas(1, LONG).expect("it follows");
    assert_eq!(status_of_put(&a, 1), PutStatus::PutOk);
    eventually("both show it", || ids(a.store()) == [0, 1] && ids(&b.store()) == [0, 1]);
}

#[test]
fn a_primary_that_lost_its_tail_does_not_recover_past_what_was_put_in_its_place() {
    let Lost { a_disk, b_disk, b, acked, term } = lost_by_a(10);
    drop(b);
    let alone = open(&a_disk, config());
    put(&alone, 100);
    alone.close().expect("it closes");
    let acceptor = TcpAcceptor::bind("127.0.0.1:0").expect("a port is free");
    let line = Line::default();
    *line.0.lock().expect("nobody panics") = Some(acceptor.address());
    let b = replica(&b_disk, 2, &line);
    let environment = Environment::on(a_disk.shared());
    match Primary::recover_in(config(), environment, node(1), acceptor, 1, LONG) {
        Err(Error::Refused(Refusal::NotPrimary)) => {}
        other => panic!("{other:?}"),
    }
    // As it says: the replica is the primary from now on.
    assert_eq!(b.fence(term).expect("it is newer").end, acked);
    let b = b.promote(node(2)).expect("it takes over");
    let a = replica(&a_disk, 1, &Line::to(&b));
    b.wait_for_replicas(1, LONG).expect("it follows");
    assert_eq!(status_of_put(&b, 10), PutStatus::PutOk);
    eventually("it shows all", || ids(&a.store()) == (0..11).collect::<Vec<_>>());
}

#[test]
fn a_primary_becomes_a_replica_on_its_own_disk() {
    let disks = [disk(), disk()];
    let a = primary(&disks[0], 1);
    let b = replica(&disks[1], 2, &Line::to(&a));
    a.wait_for_replicas(1, LONG).expect("it connects");
    assert_eq!(status_of_put(&a, 0), PutStatus::PutOk);
    b.fence(a.epoch().next_term()).expect("it is newer");
    let b = b.promote(node(2)).expect("it takes over");
    let options = ReplicaOptions::connecting(NodeOptions::new(NodeId(1)), Line::to(&b));
    let a = a.into_replica(config(), options).expect("it is where it was");
    assert_eq!(a.state().log_id, b.log_id());
    b.wait_for_replicas(1, LONG).expect("it follows");
}

#[test]
fn a_replica_is_no_primary_before_it_is_fenced() {
    let disks = [disk(), disk()];
    let a = primary(&disks[0], 1);
    let b = replica(&disks[1], 2, &Line::to(&a));
    a.wait_for_replicas(1, LONG).expect("it connects");
    assert_eq!(status_of_put(&a, 0), PutStatus::PutOk);
    b.close().expect("it closes");
    drop(b);
    let reopened =
        |options| Primary::open_in(config(), Environment::on(disks[1].shared()), options);
    match reopened(node(2)) {
        Err(Error::Refused(Refusal::NotFenced)) => {}
        other => panic!("{other:?}"),
    }
    let term = a.epoch().next_term();
    drop(a);
    // Whoever gives an epoch knows what he does; from then on the node is a primary of before.
    reopened(node(2).epoch(term)).expect("it is newer").close().expect("it closes");
    assert!(reopened(node(2)).expect("it goes on").epoch() > term);
}
