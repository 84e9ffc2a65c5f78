//! What a node says of itself, and knows, after power cuts, cuts and looks.

#[path = "support/nodes.rs"]
mod nodes;
#[path = "support/passive.rs"]
mod passive;
#[path = "support/sim.rs"]
mod sim;

use duralog::disk::{Cut, SimDisk};
use duralog::replication::{
    Ack, Epoch, EpochStart, NodeId, NodeOptions, Primary, Refusal, Replica, ReplicaOptions,
    ReplicatedLog, SessionError,
};
use duralog::{Environment, Error, PutStatus, Store};
use nodes::*;
use passive::Passive;
use sim::*;
use std::sync::Arc;

fn log_on(disk: &SimDisk) -> (Store, Arc<dyn ReplicatedLog>) {
    let replicator = Arc::new(Passive::default());
    let environment = Environment::on(disk.shared()).stepped();
    let store = Store::open_replicated(config(), environment, replicator.clone());
    (store.expect("the copy opens"), replicator.log())
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
    let primary = primary_with(&disk, unsynced(), node(1));
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
    let Trio { disks, a: p, b: q, c: r, .. } = trio();
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
    let r = replica_until_cut(&disks[2], 3, &line);
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
        let Trio { disks, mut a, line, b, mut c } = trio();
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
            put_alone(&disks[2], [id]);
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
    put_alone(&disks[0], [0]);
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
    put_alone(&a_disk, [100]);
    let line = Line::default();
    let b = replica(&b_disk, 2, &line);
    match recovered(&a_disk, config(), 1, &line) {
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
    let Pair { a, b, .. } = pair();
    b.fence(a.epoch().next_term()).expect("it is newer");
    let b = b.promote(node(2)).expect("it takes over");
    let options = ReplicaOptions::connecting(NodeOptions::new(NodeId(1)), Line::to(&b));
    let a = a.into_replica(config(), options).expect("it is where it was");
    assert_eq!(a.state().log_id, b.log_id());
    b.wait_for_replicas(1, LONG).expect("it follows");
}

#[test]
fn a_replica_is_no_primary_before_it_is_fenced() {
    let Pair { disks, a, b, .. } = pair();
    b.close().expect("it closes");
    drop(b);
    let reopened = |options| try_primary(&disks[1], config(), options);
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

#[test]
fn a_primary_that_was_closed_in_order_is_in_no_doubt_after_it_was_refused() {
    let disks = [disk(), disk()];
    let a = primary_with(&disks[0], unsynced(), node(1).epoch(Epoch::term(5)));
    let _b = replica(&disks[1], 2, &Line::to(&a));
    a.wait_for_replicas(1, LONG).expect("it connects");
    assert_eq!(status_of_put(&a, 0), PutStatus::PutOk);
    a.close().expect("it closes");
    drop(a);
    // By a slip of whoever starts it.
    match try_primary(&disks[0], unsynced(), node(1).epoch(Epoch::term(4))) {
        Err(Error::Refused(Refusal::EpochFell { .. })) => {}
        other => panic!("{other:?}"),
    }
    let a = primary_with(&disks[0], unsynced(), node(1));
    assert!(a.epoch() > Epoch::term(5));
}

#[test]
fn an_old_primary_that_the_new_one_has_cut_reigns_no_more() {
    let Pair { disks, a, line, b } = pair();
    line.end();
    b.fence(a.epoch().next_term()).expect("it is newer");
    let b = b.promote(node(2)).expect("it takes over");
    assert_ne!(status_of_put(&a, 1), PutStatus::PutOk);
    a.close().expect("it closes");
    drop(a);
    let line = Line::to(&b);
    let a = replica_until_cut(&disks[0], 1, &line);
    eventually("it is cut", || line.has_ended());
    a.close().expect("it closes");
    drop(a);
    // It has not come to the epoch of the other one, whose first put was still to come.
    match try_primary(&disks[0], config(), node(1)) {
        Err(Error::Refused(Refusal::NotFenced)) => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_fence_is_spent_when_the_primary_of_its_term_has_cut_the_log() {
    let disks = [disk(), disk(), disk()];
    let p = primary_with(&disks[0], config(), node(1).min_insync_replicas(2));
    let line = Line::to(&p);
    let (a, b) = (replica(&disks[1], 2, &line), replica(&disks[2], 3, &line));
    p.wait_for_replicas(2, LONG).expect("they connect");
    assert_eq!(status_of_put(&p, 0), PutStatus::PutOk);
    a.close().expect("it closes");
    drop(a);
    assert_ne!(status_of_put(&p, 1), PutStatus::PutOk);
    eventually("b has it", || b.state().durable == end(&p));
    b.close().expect("it closes");
    drop(b);
    let term = p.epoch().next_term();
    drop(p);
    let line = Line::default();
    let (a, b) = (idle(&disks[1], 2), replica_until_cut(&disks[2], 3, &line));
    let (at_a, at_b) = (a.fence(term).expect("it is newer"), b.fence(term).expect("it is newer"));
    // By a slip of whoever chooses: all that was confirmed is there, too.
    assert!(at_a < at_b);
    let a = a.promote(node(2)).expect("it takes over");
    line.lead_to(&a);
    eventually("b is cut", || line.has_ended());
    let promoted = b.promote(node(3)).map(|b| b.epoch());
    assert!(
        matches!(promoted, Err(Error::Refused(Refusal::NotFenced))),
        "{promoted:?}, where {:?} is another one's",
        a.epoch()
    );
}

#[test]
fn nobody_recovers_as_a_primary_the_log_of_a_replica_that_was_not_fenced() {
    let Trio { disks, a, line, b, c } = trio();
    b.close().expect("it closes");
    c.close().expect("it closes");
    drop((b, c));
    // Even if another one says that it has no more.
    let elsewhere = Line::default();
    let c = replica(&disks[2], 3, &elsewhere);
    match recovered(&disks[1], config(), 2, &elsewhere) {
        Err(Error::Refused(Refusal::NotFenced)) => {}
        other => panic!("{other:?}"),
    }
    drop(c);
    let b = replica(&disks[1], 2, &line);
    goes_on(&a, &b);
}

#[test]
fn what_is_put_without_replication_promises_nothing() {
    let Pair { disks, a, line, b } = pair();
    b.close().expect("it closes");
    drop(b);
    put_alone(&disks[1], [100]);
    let b = idle(&disks[1], 2);
    // Whom it follows next is not from before what it says.
    assert_eq!(b.standing().expect("it is open").promised, a.epoch());
    b.close().expect("it closes");
    drop(b);
    let b = replica(&disks[1], 2, &line);
    a.wait_for_replicas(1, LONG).expect("it is back");
    assert_eq!(status_of_put(&a, 1), PutStatus::PutOk);
    assert_eq!(b.standing().expect("it is open").promised, a.epoch());
}
