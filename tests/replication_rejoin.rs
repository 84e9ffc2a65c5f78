//! Nodes that come back to a cluster that has gone on, or to the wrong one.

#[path = "support/gate.rs"]
mod gate;
#[path = "support/hooked.rs"]
mod hooked;
#[path = "support/nodes.rs"]
mod nodes;
#[path = "support/sim.rs"]
mod sim;

use duralog::config::Retention;
use duralog::disk::{Cut, SimCall, SimDisk};
use duralog::replication::{
    Ack, Epoch, NodeId, NodeOptions, Primary, PrimaryOptions, Replica, ReplicaOptions, SessionError,
};
use duralog::{Environment, Message, PutStatus, Store, StoreConfig};
use gate::Gate;
use hooked::Hooked;
use nodes::*;
use sim::*;
use std::path::PathBuf;
use std::time::Duration;

const SEGMENT: u64 = 16 << 10;

fn keeping(bytes: u64) -> StoreConfig {
    config().retention(Retention::max_total_bytes(bytes).check_interval(Duration::from_millis(1)))
}

/// One whose puts wait for nobody.
fn asynchronous(id: u64) -> PrimaryOptions {
    node(id).ack(Ack::Async)
}

/// Where the oldest segment begins that is still there.
fn oldest(disk: &SimDisk) -> u64 {
    let start = |path: &PathBuf| {
        let name = path.strip_prefix(format!("{DIR}/commitlog")).ok()?;
        name.to_str()?.parse().ok()
    };
    disk.files().iter().filter_map(start).min().expect("there is a segment")
}

fn put_until(store: &Store, mut id: u64, reached: u64) {
    while store.stats().watermarks.appended < reached {
        put(store, id);
        id += 1;
    }
}

fn places(store: &Store) -> Vec<(i64, u64)> {
    all(store).iter().map(|one| (one.queue_offset, id_of(&one.body))).collect()
}

/// Opens a store without replication, and puts so much that the oldest segment expires.
fn expires_alone(disk: &SimDisk) {
    let alone = open(disk, keeping(2 * SEGMENT));
    put_until(&alone, 1000, 2 * SEGMENT + 1);
    eventually("the oldest segment expires", || oldest(disk) == SEGMENT);
    alone.close().expect("it closes");
}

/// Waits until the replica shows the messages of the primary, as far back as both keep them.
fn shows_the_same(replica: &Replica, primary: &Primary) {
    let of_primary = places(primary.store());
    eventually("it shows the same", || {
        let shown = places(&replica.store());
        let is_same = of_primary.ends_with(&shown) || shown.ends_with(&of_primary);
        !shown.is_empty() && is_same
    });
}

/// Waits until it follows, or is kept from that: whether by the log's being another one.
fn is_refused_for_another_log(replica: &Replica) -> bool {
    let is_refused = || matches!(replica.state().last_error, Some(SessionError::AnotherLog { .. }));
    eventually("it is refused, or follows", || is_refused() || replica.state().following);
    is_refused()
}

const ASIDE: &str = "aside";

/// Puts a message to a queue of its own; its queue offset.
fn put_aside(store: &Store) -> u64 {
    let put = store.put(Message::new(ASIDE, "x")).expect("it is accepted");
    put.ok().expect("it waits for nobody").queue_offset
}

/// Waits until a replica shows what comes next in that queue.
fn shows_aside(replica: &Replica, primary: &Primary) {
    let offset = put_aside(primary.store());
    follows(replica, primary);
    eventually("it shows it", || {
        let got = replica.store().get(ASIDE, 0, offset, 1);
        got.is_ok_and(|got| got.messages.iter().any(|one| one.queue_offset == offset as i64))
    });
}

/// A has taken over without P, which went on alone until nothing was left of what both had.
struct Parted {
    a: Primary,
    a_disk: SimDisk,
    p_disk: SimDisk,
}

fn parted(config_of_a: StoreConfig) -> Parted {
    parted_with(config_of_a, [0, 0])
}

/// To which so many messages are given that come to a queue of their own, at P and at A.
fn parted_with(config_of_a: StoreConfig, aside: [u64; 2]) -> Parted {
    let (p_disk, a_disk) = (disk(), disk());
    let p = primary_with(&p_disk, keeping(3 * SEGMENT), asynchronous(1));
    let line = Line::to(&p);
    let a = replica_with(&a_disk, config_of_a, NodeOptions::new(NodeId(2)), &line);
    p.wait_for_replicas(1, LONG).expect("it connects");
    for id in 0..5 {
        assert_eq!(status_of_put(&p, id), PutStatus::PutOk);
    }
    eventually("a knows that it is confirmed", || a.state().confirmed == end(&p));
    line.end();
    a.fence(p.epoch().next_term()).expect("it is newer");
    let a = a.promote(asynchronous(2)).expect("it takes over");
    for (store, count) in [p.store(), a.store()].into_iter().zip(aside) {
        assert!((0..count).all(|offset| put_aside(store) == offset));
    }
    put_until(p.store(), 1000, 4 * SEGMENT + 1);
    // The queue goes on elsewhere there.
    put_until(a.store(), 5100, 7 * SEGMENT + 1);
    eventually("it expires at p", || oldest(&p_disk) == 2 * SEGMENT);
    p.close().expect("it closes");
    Parted { a, a_disk, p_disk }
}

#[test]
fn an_old_primary_follows_though_all_that_it_shares_with_the_new_one_has_expired() {
    // Whether the new one still knows of the epoch before its own.
    for is_opened_again in [false, true] {
        let of_a = keeping(7 * SEGMENT);
        let Parted { mut a, a_disk, p_disk } = parted(of_a.clone());
        eventually("it expires at a", || oldest(&a_disk) == SEGMENT);
        if is_opened_again {
            drop(a);
            a = primary_with(&a_disk, of_a, asynchronous(2));
        }
        let p = replica(&p_disk, 1, &Line::to(&a));
        follows(&p, &a);
        shows_the_same(&p, &a);
    }
}

#[test]
fn an_old_primary_follows_though_it_has_deleted_all_that_it_shares_with_the_new_one() {
    let Parted { a, p_disk, .. } = parted(config());
    let p = replica(&p_disk, 1, &Line::to(&a));
    follows(&p, &a);
    shows_the_same(&p, &a);
}

#[test]
fn what_cannot_be_compared_any_more_is_not_taken_for_the_same() {
    let disks = [disk(), disk()];
    let a = open(&disks[0], keeping(SEGMENT));
    put_until(&a, 1000, SEGMENT + SEGMENT / 2 + 1);
    eventually("the first segment expires", || oldest(&disks[0]) == SEGMENT);
    a.close().expect("it closes");
    drop(a);
    // Another store, of messages that are as long: it ends where a record of A does.
    let b = open(&disks[1], config());
    put_until(&b, 5000, SEGMENT + SEGMENT / 8);
    let held = b.stats().watermarks.appended;
    b.close().expect("it closes");
    drop(b);
    let log = || {
        let all = [0, SEGMENT].map(|base| disks[1].bytes(segment(base)).expect("it is there"));
        let mut all = all.concat();
        all.truncate(held as usize);
        all
    };
    let before = log();
    let a = primary(&disks[0], 1);
    let b = replica(&disks[1], 2, &Line::to(&a));
    // It says that it follows before they have compared what they hold; then it has the primary's log.
    eventually("it is refused, or has joined", || {
        b.state().last_error.is_some() || b.state().log_id.is_some()
    });
    let state = b.state();
    assert!(matches!(state.last_error, Some(SessionError::Diverged)), "{state:?}");
    assert_eq!((state.log_id, state.durable), (None, held));
    assert_eq!(status_of_put(&a, 9000), PutStatus::ReplicaNotAvailable);
    b.close().expect("it closes");
    assert!(log() == before, "it was changed");
}

#[test]
fn a_replica_that_lacks_some_of_before_replication_follows_though_that_expires() {
    // Of that there is what the replica lacks, then, or nothing.
    for (is_there, kept, segments) in [(true, 3, 3), (false, 2, 6)] {
        let disks = [disk(), disk()];
        put_alone(&disks[0], 0..100);
        let a = primary_with(&disks[0], config(), stingy(1));
        let before = end(&a);
        let b = replica(&disks[1], 2, &Line::to(&a));
        eventually("it has a segment", || b.state().durable == SEGMENT);
        b.close().expect("it closes");
        drop((a, b));
        let a = primary_with(&disks[0], keeping(kept * SEGMENT), asynchronous(1));
        put_until(a.store(), 1000, segments * SEGMENT + 1);
        let left = (segments + 1 - kept) * SEGMENT;
        eventually("it expires", || oldest(&disks[0]) == left);
        assert_eq!(left == SEGMENT && SEGMENT < before, is_there);
        a.close().expect("it closes");
        drop(a);
        let a = primary(&disks[0], 1);
        let b = replica(&disks[1], 2, &Line::to(&a));
        follows(&b, &a);
        assert_eq!(status_of_put(&a, 9000), PutStatus::PutOk);
        shows_the_same(&b, &a);
    }
}

#[test]
fn a_replica_that_has_not_heard_that_its_records_are_confirmed_keeps_them_from_another_log() {
    let disks = [disk(), disk()];
    let a = primary(&disks[0], 1);
    let line = Line::to(&a);
    // It notes that something is confirmed where it hears of it.
    let gate = Gate::new("duralog-replica", (SimCall::Sync, 1));
    let environment = Environment::on(Hooked::over(disks[1].shared(), gate.clone()));
    let options = ReplicaOptions::connecting(NodeOptions::new(NodeId(2)), line.clone());
    let b = Replica::open_in(config(), environment, options).expect("the replica opens");
    a.wait_for_replicas(1, LONG).expect("it connects");
    eventually("b is in the epoch", || b.standing().is_ok_and(|at| at.epoch == a.epoch()));
    gate.set(true);
    assert_eq!(status_of_put(&a, 0), PutStatus::PutOk);
    eventually("b hears of it", || gate.is_reached());
    let b_disk = disks[1].cut_power(Cut::losing_all());
    gate.set(false);
    drop(b);
    let held = end(&a);
    let b = idle(&b_disk, 2);
    assert_eq!((b.state().durable, b.state().confirmed), (held, 0));
    b.close().expect("it closes");
    drop(b);
    // Its first epoch is called the same.
    let other = primary(&disk(), 1);
    let b = replica(&b_disk, 2, &Line::to(&other));
    assert!(is_refused_for_another_log(&b), "it gave up {held} bytes: {:?}", b.state());
    assert_eq!(b.state().durable, held);
    b.close().expect("it closes");
    drop(b);
    let b = replica(&b_disk, 2, &line);
    a.wait_for_replicas(1, LONG).expect("it is back");
    eventually("it shows it", || ids(&b.store()) == [0]);
}

#[test]
fn a_first_primary_that_was_open_without_replication_gives_up_nothing_for_another_log() {
    let p_disk = disk();
    let p = primary_with(&p_disk, config(), asynchronous(1));
    for id in 0..5 {
        assert_eq!(status_of_put(&p, id), PutStatus::PutOk);
    }
    p.close().expect("it closes");
    drop(p);
    put_alone(&p_disk, 5..10);
    let other = primary_with(&disk(), config(), node(7).epoch(Epoch::term(3)));
    let p = replica(&p_disk, 1, &Line::to(&other));
    assert!(is_refused_for_another_log(&p), "it gave up all it had: {:?}", p.state());
    p.close().expect("it closes");
    drop(p);
    let alone = open(&p_disk, config());
    eventually("it is all there", || ids(&alone) == (0..10).collect::<Vec<_>>());
}

#[test]
fn the_terms_of_another_cluster_end_nothing_here() {
    // What there is of them is nothing, or was never confirmed.
    for puts in [0, 3] {
        let disks = [disk(), disk(), disk()];
        let a = primary(&disks[0], 1);
        let line = Line::to(&a);
        let _b = replica(&disks[1], 2, &line);
        a.wait_for_replicas(1, LONG).expect("it connects");
        assert_eq!(status_of_put(&a, 0), PutStatus::PutOk);
        let c = primary_with(&disks[2], config(), node(3).epoch(Epoch::term(9)));
        for id in 0..puts {
            assert_eq!(status_of_put(&c, 100 + id), PutStatus::ReplicaNotAvailable);
        }
        c.close().expect("it closes");
        drop(c);
        let c = replica(&disks[2], 3, &line);
        follows(&c, &a);
        assert_eq!((status_of_put(&a, 1), a.superseded()), (PutStatus::PutOk, None));
        eventually("it shows both", || ids(&c.store()) == [0, 1]);
    }
}

#[test]
fn an_empty_node_that_was_a_primary_once_follows_the_first_epoch_of_another_one() {
    let disks = [disk(), disk()];
    let a = primary(&disks[0], 1);
    let b = primary(&disks[1], 3);
    assert_eq!(a.epoch(), b.epoch());
    b.close().expect("it closes");
    drop(b);
    let b = replica(&disks[1], 3, &Line::to(&a));
    a.wait_for_replicas(1, LONG).expect("it connects");
    assert_eq!(status_of_put(&a, 0), PutStatus::PutOk);
    eventually("it shows it", || ids(&b.store()) == [0]);
}

#[test]
fn an_old_primary_that_has_deleted_what_it_shares_gives_out_no_queue_offset_again() {
    let Parted { a, p_disk, .. } = parted_with(config(), [0, 10]);
    let p = replica(&p_disk, 1, &Line::to(&a));
    follows(&p, &a);
    eventually("it knows that it is confirmed", || p.state().confirmed == end(&a));
    p.fence(a.epoch().next_term()).expect("it is newer");
    let p = p.promote(asynchronous(1)).expect("it takes over");
    assert_eq!(put_aside(p.store()), 10);
}

#[test]
fn an_old_primary_that_has_deleted_what_it_shares_shows_what_comes_to_a_queue_of_which_it_had_more()
{
    let Parted { a, p_disk, .. } = parted_with(config(), [5, 0]);
    let p = replica(&p_disk, 1, &Line::to(&a));
    follows(&p, &a);
    shows_aside(&p, &a);
}

#[test]
fn a_first_primary_that_gives_up_its_log_shows_what_comes_to_a_queue_of_which_it_had_more() {
    let p_disk = disk();
    let p = primary_with(&p_disk, keeping(3 * SEGMENT), asynchronous(1));
    assert!((0..5).all(|offset| put_aside(p.store()) == offset));
    put_until(p.store(), 1000, 4 * SEGMENT + 1);
    eventually("it expires", || oldest(&p_disk) == 2 * SEGMENT);
    p.close().expect("it closes");
    drop(p);
    let a = primary_with(&disk(), config(), asynchronous(2));
    put_until(a.store(), 5100, 7 * SEGMENT + 1);
    let p = replica(&p_disk, 1, &Line::to(&a));
    follows(&p, &a);
    shows_aside(&p, &a);
}

#[test]
fn a_replica_that_deleted_what_it_shared_while_it_was_open_alone_gets_what_it_missed() {
    let Trio { disks, a, line, b, c } = trio();
    b.close().expect("it closes");
    drop(b);
    expires_alone(&disks[1]);
    // C confirms it: past where the log of B begins, but not up to where that ends.
    put_until(a.store(), 1, SEGMENT + SEGMENT / 2);
    let b = replica(&disks[1], 2, &line);
    follows(&b, &a);
    c.close().expect("it closes");
    drop(c);
    assert_eq!(status_of_put(&a, 2000), PutStatus::PutOk);
    let (shown, term) = (places(a.store()), a.epoch().next_term());
    drop(a);
    let c = idle(&disks[2], 3);
    let (at_b, at_c) = (b.fence(term).expect("it is newer"), c.fence(term).expect("it is newer"));
    assert!(at_b > at_c, "{at_b:?}, {at_c:?}");
    let b = b.promote(asynchronous(2)).expect("it takes over");
    assert_eq!(places(b.store()), shown);
}

#[test]
fn a_replica_that_deleted_alone_what_it_shared_follows_a_primary_with_less_than_that() {
    let Pair { disks, a, line, b } = pair();
    b.close().expect("it closes");
    drop(b);
    expires_alone(&disks[1]);
    assert!(end(&a) < oldest(&disks[1]));
    let b = replica(&disks[1], 2, &line);
    follows(&b, &a);
    goes_on(&a, &b);
}

#[test]
fn an_old_primary_that_has_deleted_what_it_shares_lacks_nothing_when_it_is_chosen_again() {
    let Parted { a, p_disk, .. } = parted(config());
    let p = replica(&p_disk, 1, &Line::to(&a));
    follows(&p, &a);
    let (shown, term) = (places(a.store()), a.epoch().next_term());
    drop(a);
    p.fence(term).expect("it is newer");
    let p = p.promote(asynchronous(1)).expect("it takes over");
    assert_eq!(places(p.store()), shown);
}

#[test]
fn a_first_primary_whose_log_nobody_has_follows_the_one_that_has_begun_without_it() {
    let disks = [disk(), disk(), disk()];
    // Opened again, it is in an epoch that is newer than that of the other one.
    for id in [100, 101] {
        let a = primary(&disks[0], 1);
        assert_eq!(status_of_put(&a, id), PutStatus::ReplicaNotAvailable);
        a.close().expect("it closes");
    }
    let b = primary(&disks[1], 2);
    let line = Line::to(&b);
    let _c = replica(&disks[2], 3, &line);
    b.wait_for_replicas(1, LONG).expect("it connects");
    assert_eq!(status_of_put(&b, 0), PutStatus::PutOk);
    let a = replica(&disks[0], 1, &line);
    follows(&a, &b);
    assert_eq!((status_of_put(&b, 1), b.superseded()), (PutStatus::PutOk, None));
    eventually("it shows both", || ids(&a.store()) == [0, 1]);
}

#[test]
fn a_primary_that_is_opened_again_is_not_ended_by_a_node_that_reigned_in_another_cluster() {
    let disks = [disk(), disk(), disk()];
    // In a term, and again without being given one.
    for (options, id) in [(node(3).epoch(Epoch::term(5)), 100), (node(3), 101)] {
        let c = primary_with(&disks[2], config(), options);
        assert_eq!(status_of_put(&c, id), PutStatus::ReplicaNotAvailable);
        c.close().expect("it closes");
    }
    let mut a = primary(&disks[0], 1);
    let line = Line::to(&a);
    let b = replica(&disks[1], 2, &line);
    a.wait_for_replicas(1, LONG).expect("it connects");
    assert_eq!(status_of_put(&a, 0), PutStatus::PutOk);
    let c = replica(&disks[2], 3, &line);
    for id in [1, 2] {
        follows(&b, &a);
        follows(&c, &a);
        assert_eq!((status_of_put(&a, id), a.superseded()), (PutStatus::PutOk, None));
        drop(a);
        a = primary(&disks[0], 1);
        line.lead_to(&a);
    }
    eventually("both show all", || [&b, &c].iter().all(|one| ids(&one.store()) == [0, 1, 2]));
}

#[test]
fn a_primary_that_goes_on_tells_nobody_that_it_was_superseded() {
    let disks = [disk(), disk()];
    // It has a log of its own, and has promised whoever chooses the primaries there.
    primary(&disks[1], 2).close().expect("it closes");
    let b = idle(&disks[1], 2);
    b.fence(Epoch::term(9)).expect("it is newer");
    b.close().expect("it closes");
    drop(b);
    let (tell, told) = std::sync::mpsc::channel();
    let observed = NodeOptions::new(NodeId(1)).observe(move |event| {
        // Nobody listens any more after the first.
        let _ = tell.send(event.clone());
    });
    let a = primary_with(&disks[0], config(), PrimaryOptions::new(observed).ack(Ack::Async));
    let b = replica(&disks[1], 2, &Line::to(&a));
    let is_over = || matches!(b.state().last_error, Some(SessionError::Superseded { .. }));
    eventually("it is refused", is_over);
    assert_eq!((status_of_put(&a, 0), a.superseded()), (PutStatus::PutOk, None));
    let first = told.recv_timeout(LONG).expect("it says why");
    assert!(!matches!(first, duralog::replication::Event::Superseded { .. }), "{first:?}");
}
