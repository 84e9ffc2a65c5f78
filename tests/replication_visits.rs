//! A store of a node that is opened without replication now and then.

#[path = "support/nodes.rs"]
mod nodes;
#[path = "support/sim.rs"]
mod sim;

use duralog::disk::{Cut, SimDisk};
use duralog::replication::{Ack, Epoch, NodeId, NodeOptions, Primary, Refusal, Replica};
use duralog::{Error, PutStatus, StoreConfig};
use nodes::*;
use sim::*;

fn with_record_crc(record_crc: bool) -> StoreConfig {
    let mut config = config();
    config.log.record_crc = record_crc;
    config
}

fn close(replica: Replica) {
    replica.close().expect("it closes");
}

#[test]
fn a_replica_follows_on_after_a_look_that_was_to_check_its_records_for_something_else() {
    for record_crc in [false, true] {
        let disks = [disk(), disk()];
        let a = primary_with(&disks[0], with_record_crc(record_crc), node(1));
        let line = Line::to(&a);
        let config_of_b = with_record_crc(record_crc);
        let b = || replica_with(&disks[1], config_of_b.clone(), NodeOptions::new(NodeId(2)), &line);
        let before = b();
        a.wait_for_replicas(1, LONG).expect("it connects");
        assert_eq!(status_of_put(&a, 0), PutStatus::PutOk);
        close(before);
        open(&disks[1], with_record_crc(!record_crc)).close().expect("it closes");
        let b = b();
        a.wait_for_replicas(1, LONG).expect("it is back");
        assert_eq!(status_of_put(&a, 1), PutStatus::PutOk, "{record_crc}: {:?}", b.state());
        eventually("it shows both", || ids(&b.store()) == [0, 1]);
    }
}

#[test]
fn a_look_that_is_killed_puts_nothing_in_doubt_that_was_closed_in_order() {
    let disks = [disk(), disk()];
    let a = primary_with(&disks[0], unsynced(), node(1));
    let _b = replica(&disks[1], 2, &Line::to(&a));
    a.wait_for_replicas(1, LONG).expect("it connects");
    assert_eq!(status_of_put(&a, 0), PutStatus::PutOk);
    let acked = end(&a);
    a.close().expect("it closes");
    drop(a);
    let look = open(&disks[0], config());
    let killed = disks[0].kill();
    drop(look);
    let a = primary_with(&killed, unsynced(), node(1));
    assert_eq!(end(&a), acked);
}

#[test]
fn a_primary_that_lost_a_last_epoch_without_records_recovers_where_nobody_has_more() {
    for puts_alone in [false, true] {
        let disks = [disk(), disk()];
        let a = primary_with(&disks[0], unsynced(), node(1));
        let line = Line::to(&a);
        let b = replica(&disks[1], 2, &line);
        a.wait_for_replicas(1, LONG).expect("it connects");
        assert_eq!(status_of_put(&a, 0), PutStatus::PutOk);
        a.close().expect("it closes");
        drop(a);
        let a = primary_with(&disks[0], unsynced(), node(1));
        line.lead_to(&a);
        eventually("b is in its epoch", || b.standing().is_ok_and(|at| at.epoch == a.epoch()));
        let a_disk = disks[0].cut_power(Cut::losing_all());
        drop(a);
        if puts_alone {
            put_alone(&a_disk, [1]);
        }
        match try_primary(&a_disk, unsynced(), node(1)) {
            Err(Error::Refused(Refusal::TailInDoubt)) => {}
            other => panic!("{other:?}"),
        }
        let a = recovered(&a_disk, unsynced(), 1, &line).expect("all have been heard");
        line.lead_to(&a);
        a.wait_for_replicas(1, LONG).expect("it is back");
        assert_eq!(status_of_put(&a, 2), PutStatus::PutOk);
        let shown: &[u64] = if puts_alone { &[0, 1, 2] } else { &[0, 2] };
        eventually("both show it", || ids(a.store()) == shown && ids(&b.store()) == shown);
    }
}

#[test]
fn a_look_without_writing_shows_no_more_of_a_replica_than_it_showed_itself() {
    // What it is given is from before replication, or was put between two openings with it.
    for was_replicated in [false, true] {
        let disks = [disk(), disk()];
        if was_replicated {
            primary(&disks[0], 1).close().expect("it closes");
        }
        put_alone(&disks[0], 0..100);
        let a = primary_with(&disks[0], config(), stingy(1));
        let b = replica(&disks[1], 2, &Line::to(&a));
        eventually("b has a segment", || b.state().durable > 0);
        assert!(b.state().confirmed == 0 && ids(&b.store()).is_empty(), "{:?}", b.state());
        close(b);
        let look = open_stepped(&disks[1], config().read_only(true)).expect("it opens");
        assert!(ids(&look).is_empty(), "replicated before: {was_replicated}");
    }
}

#[test]
fn what_was_put_on_a_replica_does_not_pass_for_the_next_epoch_of_its_primary() {
    let Pair { disks, a, line, b } = pair();
    close(b);
    put_alone(&disks[1], [100]);
    a.close().expect("it closes");
    drop(a);
    // The next one, behind the same record.
    let a = primary(&disks[0], 1);
    line.lead_to(&a);
    let b = replica(&disks[1], 2, &line);
    goes_on(&a, &b);
}

/// A primary, and two replicas that have one message of it, and then were given one each: as long, and in
/// the same place.
fn two_that_were_given_something() -> (Primary, [SimDisk; 2]) {
    let Trio { disks: [_, of_b, of_c], a, b, c, .. } = trio();
    close(b);
    close(c);
    put_alone(&of_b, [1000]);
    put_alone(&of_c, [1200]);
    (a, [of_b, of_c])
}

#[test]
fn replicas_that_were_given_something_at_the_same_place_follow_their_primary_again() {
    let (a, disks) = two_that_were_given_something();
    let line = Line::to(&a);
    let replicas = [replica(&disks[0], 2, &line), replica(&disks[1], 3, &line)];
    a.wait_for_replicas(2, LONG).expect("they are back");
    assert_eq!(status_of_put(&a, 1), PutStatus::PutOk);
    for one in replicas {
        eventually("it shows both", || ids(&one.store()) == [0, 1]);
    }
}

#[test]
fn what_was_put_on_a_replica_stays_where_that_is_promoted_and_goes_where_another_one_is() {
    let (a, disks) = two_that_were_given_something();
    let (b, c) = (idle(&disks[0], 2), idle(&disks[1], 3));
    let term = a.epoch().next_term();
    let at_b = b.fence(term).expect("it is newer");
    assert_eq!(at_b, c.fence(term).expect("it is newer"));
    let b = b.promote(node(2)).expect("it takes over");
    close(c);
    let c = replica(&disks[1], 3, &Line::to(&b));
    b.wait_for_replicas(1, LONG).expect("it follows");
    assert_eq!(status_of_put(&b, 1), PutStatus::PutOk);
    eventually("both show it", || {
        ids(b.store()) == [0, 1000, 1] && ids(&c.store()) == [0, 1000, 1]
    });
}

#[test]
fn a_primary_gets_back_what_it_lost_and_not_what_was_put_on_the_replica_that_has_it() {
    let Lost { a_disk, b_disk, b, acked, .. } = lost_by_a(10);
    close(b);
    put_alone(&b_disk, [100]);
    let line = Line::default();
    let b = replica(&b_disk, 2, &line);
    let a = recovered(&a_disk, unsynced(), 1, &line).expect("all have been heard");
    assert_eq!(end(&a), acked);
    line.lead_to(&a);
    a.wait_for_replicas(1, LONG).expect("it is back");
    assert_eq!(status_of_put(&a, 10), PutStatus::PutOk);
    let shown: Vec<_> = (0..11).collect();
    eventually("both show it", || ids(a.store()) == shown && ids(&b.store()) == shown);
}

#[test]
fn what_was_put_on_a_replica_that_catches_up_is_cut_and_counts_for_nothing() {
    // Up to before where the first epoch begins, and past that.
    for (puts, past) in [(1, false), (200, true)] {
        let disks = [disk(), disk()];
        put_alone(&disks[0], 0..100);
        let a = primary_with(&disks[0], config(), stingy(1));
        let b = replica(&disks[1], 2, &Line::to(&a));
        eventually("b has a segment", || b.state().durable > 0);
        close(b);
        let b = idle(&disks[1], 2);
        let before = b.standing().expect("it is open");
        assert!(before.end < end(&a));
        close(b);
        put_alone(&disks[1], 1000..1000 + puts);
        let b = idle(&disks[1], 2);
        let stands = b.standing().expect("it is open");
        assert_eq!((stands.epoch, stands.end), (before.epoch, before.end));
        assert_eq!(b.state().durable > end(&a), past);
        close(b);
        a.close().expect("it closes");
        drop(a);
        let a = primary(&disks[0], 1);
        let b = replica(&disks[1], 2, &Line::to(&a));
        a.wait_for_replicas(1, LONG).expect("it follows");
        assert_eq!(status_of_put(&a, 100), PutStatus::PutOk);
        let shown: Vec<_> = (0..101).collect();
        eventually("both show it", || ids(a.store()) == shown && ids(&b.store()) == shown);
        close(b);
        for mode in modes() {
            let copy = disk_with(&contents(&disks[1]));
            let store = open(&copy, config().recovery_mode(mode));
            eventually("it is all there", || ids(&store) == shown);
        }
    }
}

#[test]
fn what_is_put_on_a_node_that_was_only_fenced_ends_no_fence_and_counts_for_nothing() {
    let disk = disk();
    let fenced = idle(&disk, 2);
    let standing = fenced.fence(Epoch::term(3)).expect("it is the first");
    close(fenced);
    put_alone(&disk, [0]);
    let fenced = idle(&disk, 2);
    assert_eq!(fenced.standing().expect("it is open"), standing);
    let promoted = fenced.promote(node(2).ack(Ack::Async)).expect("it was fenced");
    assert_eq!((promoted.epoch(), ids(promoted.store())), (Epoch::term(3), vec![0]));
}

#[test]
fn a_copy_shows_all_that_it_holds_whatever_was_confirmed() {
    let Pair { disks, a, b, .. } = pair();
    b.fence(a.epoch().next_term()).expect("it promises");
    // Its puts wait for nobody, and nothing that comes now is ever confirmed.
    let b = b.promote(node(2).ack(Ack::Async)).expect("it is promoted");
    assert_eq!(status_of_put(&b, 1), PutStatus::PutOk);
    eventually("it shows both", || ids(b.store()) == [0, 1]);
    b.store().snapshot("/copy").expect("there is room");
    let mut config = config().read_only(true);
    config.log.dir = "/copy".into();
    let copy = open_stepped(&disks[1], config).expect("it opens");
    assert_eq!(ids(&copy), [0, 1]);
}

#[test]
fn however_often_a_replica_is_visited_it_counts_for_what_it_was_given_and_follows_on() {
    let Pair { disks, a, line, b } = pair();
    let standing = b.standing().expect("it is open");
    close(b);
    // More than there are epochs that a log remembers.
    for id in 0..1025 {
        put_alone(&disks[1], [100 + id]);
    }
    let b = idle(&disks[1], 2);
    assert_eq!(b.standing().expect("it is open"), standing);
    close(b);
    let b = replica(&disks[1], 2, &line);
    goes_on(&a, &b);
}
