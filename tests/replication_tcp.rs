//! A primary and its replicas over real sockets.

#[path = "support/temp.rs"]
mod temp;

use duralog::config::Retention;
use duralog::disk::{Cut, SimDisk};
use duralog::replication::{
    Acceptor, Ack, Connector, Epoch, Event, NodeId, NodeOptions, Primary, PrimaryOptions, Refusal,
    Replica, ReplicaOptions, Secret, SessionError, Stream, StreamWriter, TcpAcceptor,
};
use duralog::{
    Environment, Error, FlushMode, Message, PutStatus, Reached, Store, StoreConfig, TagFilter,
};
use std::collections::BTreeSet;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::num::NonZeroU64;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use temp::TempDir;

const PATIENCE: Duration = Duration::from_secs(60);

fn config(dir: &Path) -> StoreConfig {
    let mut config = StoreConfig::new(dir).segment_size(64 << 10);
    config.index_slots = 101;
    config.index_items = 1000;
    config
}

fn node(id: u64) -> NodeOptions {
    NodeOptions::new(NodeId(id))
        .secret(Secret::new("the secret"))
        .observe(move |event| println!("node {id}: {event:?}"))
}

fn primary(dir: &Path, id: u64) -> Primary {
    Primary::open(config(dir), PrimaryOptions::new(node(id))).expect("the primary opens")
}

fn replica(dir: &Path, id: u64, address: impl ToString) -> Replica {
    Replica::open(config(dir), ReplicaOptions::new(node(id), address.to_string()))
        .expect("the replica opens")
}

/// Waits for what another thread does: it must come to pass, however long that takes.
fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < PATIENCE, "not so after {PATIENCE:?}: {what}");
        std::thread::yield_now();
    }
}

fn bodies(store: &Store) -> Vec<String> {
    let messages = store.get("t", 0, 0, 100_000).expect("it can be read").messages;
    messages.iter().map(|message| String::from_utf8_lossy(&message.body).into_owned()).collect()
}

fn put(store: &Store, body: &str) -> duralog::PutResult {
    store.put(Message::new("t", body.to_owned())).expect("it is accepted")
}

#[test]
fn what_is_put_is_durable_on_the_replica() {
    let dir = TempDir::new();
    let primary = primary(&dir.path().join("a"), 1);
    let address = primary.listen("127.0.0.1:0").expect("a port is free");
    let replica = replica(&dir.path().join("b"), 2, address);
    primary.wait_for_replicas(1, PATIENCE).expect("it connects");
    for n in 0..500 {
        let result = put(primary.store(), &format!("message {n}"));
        assert_eq!((result.status, result.reached), (PutStatus::PutOk, Reached::Confirmed));
        assert!(replica.state().durable >= result.end_offset);
    }
    let wanted: Vec<_> = (0..500).map(|n| format!("message {n}")).collect();
    assert_eq!(bodies(primary.store()), wanted);
    eventually("the replica shows all", || bodies(&replica.store()) == wanted);
    assert!(replica.store().put(Message::new("t", "x")).is_err(), "a replica takes no puts");
    replica.close().expect("it closes");
    primary.close().expect("it closes");
}

/// Where groups stand in queue 0 of `t`.
fn group(store: &Store, group: &str) -> Option<u64> {
    store.committed_offset(group, "t", 0)
}

#[test]
fn consumer_groups_go_on_where_they_were_after_a_failover_and_back() {
    let dir = TempDir::new();
    let [a, b] = ["a", "b"].map(|name| dir.path().join(name));
    let frequent = |id| {
        let mut node = node(id);
        node.heartbeat_interval = Duration::from_millis(50);
        node
    };
    let first =
        Primary::open(config(&a), PrimaryOptions::new(frequent(1))).expect("the primary opens");
    let address = first.listen("127.0.0.1:0").expect("a port is free");
    let follow = |dir: &Path, id, address: &str| {
        Replica::open(config(dir), ReplicaOptions::new(frequent(id), address)).expect("it opens")
    };
    let second = follow(&b, 2, &address.to_string());
    first.wait_for_replicas(1, PATIENCE).expect("it connects");
    for n in 0..50 {
        assert_eq!(put(first.store(), &format!("message {n}")).status, PutStatus::PutOk);
    }
    let take = |store: &Store, count| {
        let consumer = store.consumer("billing").subscribe("t", TagFilter::any()).open();
        let consumer = consumer.expect("it opens");
        let batch = consumer.poll_max(count, PATIENCE).expect("it can be read");
        let bodies = batch.iter().map(|one| String::from_utf8_lossy(one.body()).into_owned());
        let bodies: Vec<_> = bodies.collect();
        batch.ack().expect("it is acked");
        bodies
    };
    assert_eq!(take(first.store(), 30).last().expect("there are some"), "message 29");
    first.store().commit_offset("gone", "t", 0, 9).expect("it is committed");
    eventually("the replica knows", || {
        group(&second.store(), "billing") == Some(30) && group(&second.store(), "gone") == Some(9)
    });
    first.store().forget_offsets("gone", "t").expect("it is forgotten");
    eventually("the replica forgets", || group(&second.store(), "gone").is_none());

    let epoch = first.epoch().next_term();
    second.fence(epoch).expect("it is fenced");
    first.close().expect("it closes");
    let second = second.promote(PrimaryOptions::new(frequent(2)).epoch(epoch).ack(Ack::Async));
    let second = second.expect("it takes over");
    assert_eq!(take(second.store(), 10).first().expect("there are some"), "message 30");
    let address = second.listen("127.0.0.1:0").expect("a port is free");
    let first = follow(&a, 1, &address.to_string());
    eventually("the old primary knows", || group(&first.store(), "billing") == Some(40));
    first.close().expect("it closes");
    second.close().expect("it closes");
}

#[test]
fn a_replica_hears_of_groups_that_move_while_nothing_is_put_long_before_the_next_heartbeat() {
    let dir = TempDir::new();
    let [a, b] = ["a", "b"].map(|name| dir.path().join(name));
    let rare = |id| {
        let mut node = node(id);
        node.heartbeat_interval = 10 * PATIENCE;
        node.housekeeping_interval = 40 * PATIENCE;
        node
    };
    let primary =
        Primary::open(config(&a), PrimaryOptions::new(rare(1))).expect("the primary opens");
    let address = primary.listen("127.0.0.1:0").expect("a port is free").to_string();
    let replica = Replica::open(config(&b), ReplicaOptions::new(rare(2), address));
    let replica = replica.expect("it opens");
    primary.wait_for_replicas(1, PATIENCE).expect("it connects");
    for n in 0..3 {
        assert_eq!(put(primary.store(), &format!("message {n}")).status, PutStatus::PutOk);
    }
    for next in 1..=3 {
        // Each time after it had nothing more to say.
        primary.store().commit_offset("billing", "t", 0, next).expect("it is committed");
        eventually("it knows", || group(&replica.store(), "billing") == Some(next));
    }
}

#[test]
fn a_group_that_reads_a_replica_goes_on_by_itself() {
    let dir = TempDir::new();
    let mut options = node(1);
    options.heartbeat_interval = Duration::from_millis(50);
    let primary = Primary::open(config(&dir.path().join("a")), PrimaryOptions::new(options));
    let primary = primary.expect("the primary opens");
    let address = primary.listen("127.0.0.1:0").expect("a port is free");
    let replica = replica(&dir.path().join("b"), 2, address);
    primary.wait_for_replicas(1, PATIENCE).expect("it connects");
    for n in 0..10 {
        assert_eq!(put(primary.store(), &format!("message {n}")).status, PutStatus::PutOk);
    }
    let commit = |group: &str, next| {
        primary.store().commit_offset(group, "t", 0, next).expect("it is committed");
    };
    commit("reports", 4);
    eventually("the replica knows", || group(&replica.store(), "reports") == Some(4));
    let store = replica.store();
    let consumer = store.consumer("reports").subscribe("t", TagFilter::any()).open();
    let consumer = consumer.expect("it opens");
    // Nothing is acknowledged here yet.
    let batch = consumer.poll_max(1, PATIENCE).expect("it can be read");
    assert_eq!(batch[0].body(), b"message 4");
    commit("reports", 9);
    commit("mark", 1);
    eventually("the replica knows", || group(&replica.store(), "mark") == Some(1));
    drop((batch, consumer));
    assert_eq!(group(&replica.store(), "reports"), Some(4));
    let consumer = store.consumer("reports").subscribe("t", TagFilter::any()).open();
    let consumer = consumer.expect("it opens");
    let batch = consumer.poll_max(1, PATIENCE).expect("it can be read");
    assert_eq!(batch[0].body(), b"message 4");
    drop((batch, consumer));
    replica.close().expect("it closes");
    primary.close().expect("it closes");
}

#[test]
fn a_replica_takes_over_and_the_old_primary_follows_it() {
    let dir = TempDir::new();
    let [a, b, c] = ["a", "b", "c"].map(|name| dir.path().join(name));
    let first = primary(&a, 1);
    let address = first.listen("127.0.0.1:0").expect("a port is free");
    let (second, third) = (replica(&b, 2, address), replica(&c, 3, address));
    first.wait_for_replicas(2, PATIENCE).expect("they connect");
    let mut acked = BTreeSet::new();
    for n in 0..300 {
        let body = format!("first {n}");
        if put(first.store(), &body).status == PutStatus::PutOk {
            acked.insert(body);
        }
    }
    assert_eq!(acked.len(), 300);
    let epoch = first.epoch().next_term();
    let standings = [second.fence(epoch).expect("b"), third.fence(epoch).expect("c")];
    // Nobody confirms anything for it any more.
    match first.store().put(Message::new("t", "late")) {
        Ok(result) => assert_ne!(result.status, PutStatus::PutOk),
        Err(Error::Refused(Refusal::NotPrimary)) => assert_eq!(first.superseded(), Some(epoch)),
        Err(other) => panic!("{other:?}"),
    }
    let (chosen, chosen_id, other, other_id, other_dir) = match standings[0] >= standings[1] {
        true => (second, 2, third, 3, &c),
        false => (third, 3, second, 2, &b),
    };
    let options = PrimaryOptions::new(node(chosen_id)).epoch(epoch);
    let taken_over = chosen.promote(options).expect("it takes over");
    assert_eq!(taken_over.epoch(), epoch);
    assert!(first.log_id().is_some() && taken_over.log_id() == first.log_id());
    let address = taken_over.listen("127.0.0.1:0").expect("a port is free");
    other.close().expect("it closes");
    let other = replica(other_dir, other_id, address);
    let old = first
        .into_replica(config(&a), ReplicaOptions::new(node(1), address.to_string()))
        .expect("it comes back");
    taken_over.wait_for_replicas(2, PATIENCE).expect("they connect");
    for n in 0..100 {
        let body = format!("second {n}");
        assert_eq!(put(taken_over.store(), &body).status, PutStatus::PutOk);
        acked.insert(body);
    }
    println!("{:?}", bodies(taken_over.store()));
    for store in [taken_over.store().clone(), other.store(), old.store()] {
        eventually("all nodes show what was acknowledged", || {
            let shown: Vec<_> = bodies(&store);
            let set: BTreeSet<_> = shown.iter().cloned().collect();
            assert_eq!(set.len(), shown.len(), "something is there twice");
            acked.is_subset(&set)
        });
    }
    eventually("what nobody confirmed is gone", || {
        bodies(&old.store()) == bodies(taken_over.store())
    });
}

#[test]
fn a_replica_that_was_fenced_catches_up_through_older_epochs() {
    let dir = TempDir::new();
    let [a, b, c] = ["a", "b", "c"].map(|name| dir.path().join(name));
    let first = primary(&a, 1);
    let address = first.listen("127.0.0.1:0").expect("a port is free");
    let (second, third) = (replica(&b, 2, address), replica(&c, 3, address));
    first.wait_for_replicas(2, PATIENCE).expect("they connect");
    assert_eq!(put(first.store(), "of the first opening").status, PutStatus::PutOk);
    eventually("both have it", || {
        [&second, &third].map(|one| one.state().durable)
            == [first.store().stats().watermarks.durable; 2]
    });
    third.close().expect("it closes");
    first.close().expect("it closes");
    drop((first, third));
    // The third misses a whole epoch.
    let first = primary(&a, 1);
    let address = first.listen("127.0.0.1:0").expect("a port is free");
    second.close().expect("it closes");
    drop(second);
    let second = replica(&b, 2, address);
    first.wait_for_replicas(1, PATIENCE).expect("it connects");
    assert_eq!(put(first.store(), "of the second opening").status, PutStatus::PutOk);
    let third = replica(&c, 3, "127.0.0.1:1");
    let term = first.epoch().next_term();
    let standings = [second.fence(term).expect("b"), third.fence(term).expect("c")];
    assert!(standings[0] > standings[1]);
    let taken_over = second.promote(PrimaryOptions::new(node(2))).expect("it takes over");
    let address = taken_over.listen("127.0.0.1:0").expect("a port is free");
    third.close().expect("it closes");
    drop(third);
    let third = replica(&c, 3, address);
    taken_over.wait_for_replicas(1, PATIENCE).expect("it connects");
    assert_eq!(put(taken_over.store(), "of the next term").status, PutStatus::PutOk);
    eventually("it shows all", || bodies(&third.store()).len() == 3);
    first.close().expect("it closes");
}

#[test]
fn an_empty_replica_catches_up_from_the_oldest_segment() {
    let dir = TempDir::new();
    let options = PrimaryOptions::new(node(1)).ack(Ack::Async);
    let config_a = config(&dir.path().join("a")).flush_mode(FlushMode::async_default());
    let primary = Primary::open(config_a, options).expect("the primary opens");
    for n in 0..3000 {
        assert_eq!(put(primary.store(), &format!("message {n}")).status, PutStatus::PutOk);
    }
    let address = primary.listen("127.0.0.1:0").expect("a port is free");
    let replica = replica(&dir.path().join("b"), 2, address);
    let end = primary.store().stats().watermarks.appended;
    eventually("it has everything", || replica.state().durable == end);
    eventually("it shows everything", || bodies(&replica.store()).len() == 3000);
}

#[test]
fn a_primary_that_lost_its_tail_gets_it_back_from_a_replica() {
    let (dir, disk) = (TempDir::new(), SimDisk::new(1));
    // No sync in the background before the power goes.
    let lazy = |disk: &SimDisk| {
        let mut config = config(Path::new("/store")).flush_mode(FlushMode::async_default());
        if let FlushMode::Async { interval, thorough_interval, .. } = &mut config.flush_mode {
            (*interval, *thorough_interval) =
                (Duration::from_secs(3600), Duration::from_secs(3600));
        }
        (config, Environment::on(disk.shared()))
    };
    let options = || PrimaryOptions::new(node(1));
    let (config_a, environment) = lazy(&disk);
    let primary = Primary::open_in(config_a, environment, options()).expect("it opens");
    let address = primary.listen("127.0.0.1:0").expect("a port is free");
    let replicas = [2, 3].map(|id| replica(&dir.path().join(id.to_string()), id, address));
    primary.wait_for_replicas(2, PATIENCE).expect("they connect");
    let wanted: Vec<_> = (0..200).map(|n| format!("message {n}")).collect();
    for body in &wanted {
        assert_eq!(put(primary.store(), body).status, PutStatus::PutOk);
    }
    let disk = disk.cut_power(Cut::losing_all());
    drop(primary);
    let (config_a, environment) = lazy(&disk);
    match Primary::open_in(config_a.clone(), environment.clone(), options()) {
        Err(Error::Refused(Refusal::TailInDoubt)) => {}
        other => panic!("{other:?}"),
    }
    // Nor does the doubt go away when the store is opened and closed in order.
    let unreachable = ReplicaOptions::new(node(1), "127.0.0.1:1");
    let quiet = Replica::open_in(config_a.clone(), environment.clone(), unreachable);
    quiet.expect("it opens").close().expect("it closes");
    let nobody = TcpAcceptor::bind("127.0.0.1:0").expect("a port is free");
    let (config, env) = (config_a.clone(), environment.clone());
    match Primary::recover_in(config, env, options(), nobody, 0, PATIENCE) {
        Err(Error::Config { field: "replicas", .. }) => {}
        other => panic!("{other:?}"),
    }
    let acceptor = TcpAcceptor::bind(address).expect("the port is free again");
    let primary =
        Primary::recover_in(config_a, environment, options(), acceptor, 2, PATIENCE).expect("all");
    primary.listen(address).expect("the port is free again");
    primary.wait_for_replicas(2, PATIENCE).expect("they connect");
    assert_eq!(put(primary.store(), "and one more").status, PutStatus::PutOk);
    let wanted = [wanted, vec!["and one more".to_owned()]].concat();
    eventually("nothing is lost", || bodies(primary.store()) == wanted);
    for replica in &replicas {
        eventually("nor on the replicas", || bodies(&replica.store()) == wanted);
    }
}

#[test]
fn a_replica_is_sent_no_more_than_the_rate_allows_and_gets_there() {
    let dir = TempDir::new();
    let mut options = PrimaryOptions::new(node(1)).ack(Ack::Async);
    options.max_transfer_rate = NonZeroU64::new(200_000);
    let primary = Primary::open(config(&dir.path().join("a")), options).expect("it opens");
    for n in 0..300 {
        assert_eq!(put(primary.store(), &format!("{n:0>1000}")).status, PutStatus::PutOk);
    }
    let address = primary.listen("127.0.0.1:0").expect("a port is free");
    let started = Instant::now();
    let replica = replica(&dir.path().join("b"), 2, address);
    let end = primary.store().stats().watermarks.appended;
    eventually("it has everything", || replica.state().durable == end);
    // All but what the last frame held has been paced.
    let paced = end.saturating_sub(64 << 10);
    assert!(started.elapsed() >= Duration::from_secs(paced) / 200_000, "{:?}", started.elapsed());
}

#[test]
fn without_enough_replicas_a_put_says_so_at_once_or_is_refused() {
    let dir = TempDir::new();
    let mut config = config(&dir.path().join("a"));
    config.sync_replica_timeout = Duration::from_secs(3600);
    let primary = Primary::open(config.clone(), PrimaryOptions::new(node(1))).expect("it opens");
    let alone = put(primary.store(), "alone");
    assert_eq!((alone.status, alone.reached), (PutStatus::ReplicaNotAvailable, Reached::Durable));
    assert!(bodies(primary.store()).is_empty(), "a failover would take it back");
    primary.close().expect("it closes");
    let strict = PrimaryOptions::new(node(1)).strict(true).min_insync_replicas(2);
    let primary = Primary::open(config, strict).expect("it opens");
    let address = primary.listen("127.0.0.1:0").expect("a port is free");
    let second = replica(&dir.path().join("b"), 2, address);
    primary.wait_for_replicas(1, PATIENCE).expect("it connects");
    let before = primary.store().stats().watermarks.appended;
    match primary.store().put(Message::new("t", "refused")) {
        Err(Error::Refused(Refusal::NotEnoughReplicas { available: 1, required: 2 })) => {}
        other => panic!("{other:?}"),
    }
    assert_eq!(primary.store().stats().watermarks.appended, before, "nothing was written");
    let third = replica(&dir.path().join("c"), 3, address);
    primary.wait_for_replicas(2, PATIENCE).expect("it connects");
    assert_eq!(put(primary.store(), "welcome").status, PutStatus::PutOk);
    eventually("what came before is confirmed with it", || {
        bodies(primary.store()) == ["alone", "welcome"]
    });
    second.close().expect("it closes");
    third.close().expect("it closes");
}

#[test]
fn a_replica_that_hangs_is_waited_for_until_the_deadline_and_not_when_it_lags_too_far() {
    let (dir, disk) = (TempDir::new(), SimDisk::new(1));
    let mut config_a = config(&dir.path().join("a"));
    config_a.sync_replica_timeout = Duration::from_millis(50);
    let mut options = PrimaryOptions::new(node(1));
    options.max_replica_lag = 4096;
    let primary = Primary::open(config_a, options).expect("it opens");
    let address = primary.listen("127.0.0.1:0").expect("a port is free").to_string();
    let mut config_b = config(Path::new("/store"));
    config_b.log.close_timeout = Duration::from_millis(50);
    let environment = Environment::on(disk.shared());
    let replica =
        Replica::open_in(config_b, environment, ReplicaOptions::new(node(2), address)).expect("b");
    primary.wait_for_replicas(1, PATIENCE).expect("it connects");
    eventually("puts are confirmed", || put(primary.store(), "warm").status == PutStatus::PutOk);
    disk.hang_syncs(true);
    let first = put(primary.store(), "hangs");
    assert_eq!((first.status, first.reached), (PutStatus::FlushReplicaTimeout, Reached::Durable));
    eventually("it lags too far", || {
        put(primary.store(), &"x".repeat(1000)).status == PutStatus::ReplicaNotAvailable
    });
    disk.hang_syncs(false);
    eventually("it is back", || put(primary.store(), "back").status == PutStatus::PutOk);
    replica.close().expect("it closes");
}

/// Syncs when it is told to, and not before.
fn lazy(disk: &SimDisk) -> (StoreConfig, Environment) {
    let mut config = config(Path::new("/store")).flush_mode(FlushMode::async_default());
    if let FlushMode::Async { interval, thorough_interval, .. } = &mut config.flush_mode {
        (*interval, *thorough_interval) = (Duration::from_secs(3600), Duration::from_secs(3600));
    }
    (config, Environment::on(disk.shared()))
}

fn holds_all(primary: &Primary) -> bool {
    let end = primary.store().stats().watermarks.appended;
    primary.replicas().iter().any(|replica| replica.durable == end)
}

#[test]
fn where_no_put_waits_for_replicas_a_power_cut_takes_nothing_back_that_was_read_there() {
    let (dir, disk) = (TempDir::new(), SimDisk::new(1));
    let options = || PrimaryOptions::new(node(1)).ack(Ack::Async);
    let (config, environment) = lazy(&disk);
    let primary = Primary::open_in(config, environment, options()).expect("it opens");
    let address = primary.listen("127.0.0.1:0").expect("a port is free");
    let replica = replica(&dir.path().join("b"), 2, address);
    primary.wait_for_replicas(1, PATIENCE).expect("it connects");
    assert_eq!(put(primary.store(), "first").status, PutStatus::PutOk);
    primary.store().flush().expect("it flushes");
    eventually("the replica shows it", || bodies(&replica.store()) == ["first"]);
    // With the third comes word of whether the second is confirmed.
    for body in ["second", "third"] {
        assert_eq!(put(primary.store(), body).status, PutStatus::PutOk);
        eventually("the replica has it", || holds_all(&primary));
    }
    assert_eq!(bodies(&replica.store()), ["first"], "the primary may yet lose the others");
    let disk = disk.cut_power(Cut::losing_all());
    drop(primary);
    let (config, environment) = lazy(&disk);
    let primary = Primary::open_in(config, environment, options()).expect("it opens");
    assert_eq!(put(primary.store(), "fourth").status, PutStatus::PutOk);
    primary.store().flush().expect("it flushes");
    primary.listen(address).expect("the port is free again");
    eventually("the replica follows", || bodies(&replica.store()) == ["first", "fourth"]);
}

#[test]
fn a_replica_hears_at_once_of_what_the_primary_was_the_last_to_sync() {
    let (dir, disk) = (TempDir::new(), SimDisk::new(1));
    // A sign of life comes too late for this test.
    let quiet = |id| {
        let mut node = node(id);
        (node.heartbeat_interval, node.housekeeping_interval) = (5 * PATIENCE, 10 * PATIENCE);
        node
    };
    let environment = Environment::on(disk.shared());
    let config_here = config(Path::new("/store"));
    let options = PrimaryOptions::new(quiet(1));
    let primary = Primary::open_in(config_here, environment, options).expect("it opens");
    let address = primary.listen("127.0.0.1:0").expect("a port is free").to_string();
    let options = ReplicaOptions::new(quiet(2), address);
    let replica = Replica::open(config(&dir.path().join("b")), options).expect("it opens");
    primary.wait_for_replicas(1, PATIENCE).expect("it connects");
    assert_eq!(put(primary.store(), "first").status, PutStatus::PutOk);
    eventually("it shows the first", || bodies(&replica.store()) == ["first"]);
    disk.hang_syncs(true);
    let ticket = primary.store().submit(Message::new("t", "second")).expect("it is accepted");
    eventually("the replica has it", || holds_all(&primary));
    disk.hang_syncs(false);
    assert_eq!(ticket.wait().expect("it is stored").status, PutStatus::PutOk);
    eventually("it shows the second", || bodies(&replica.store()) == ["first", "second"]);
}

#[test]
fn a_node_that_may_have_lost_something_says_so_until_it_has_followed_another_one() {
    let (dir, disk) = (TempDir::new(), SimDisk::new(1));
    let (config_here, environment) = lazy(&disk);
    let first = Primary::open_in(config_here, environment, PrimaryOptions::new(node(1)));
    let first = first.expect("it opens");
    let address = first.listen("127.0.0.1:0").expect("a port is free");
    let second = replica(&dir.path().join("b"), 2, address);
    first.wait_for_replicas(1, PATIENCE).expect("it connects");
    assert_eq!(put(first.store(), "acked").status, PutStatus::PutOk);
    let term = first.epoch().next_term();
    let disk = disk.cut_power(Cut::losing_all());
    drop(first);
    assert!(second.fence(term).expect("it promises").vouches);
    let second = second.promote(PrimaryOptions::new(node(2))).expect("it takes over");
    let address = second.listen("127.0.0.1:0").expect("a port is free").to_string();
    let (config_here, environment) = lazy(&disk);
    let options = ReplicaOptions::new(node(1), "127.0.0.1:1");
    let old = Replica::open_in(config_here, environment, options).expect("it opens");
    // It is no witness that "acked" was never confirmed.
    assert!(!old.fence(term).expect("it promises").vouches);
    old.close().expect("it closes");
    let options = ReplicaOptions::new(node(1), address);
    let environment = Environment::on(disk.shared());
    let old = Replica::open_in(config(Path::new("/store")), environment, options);
    let old = old.expect("it opens");
    eventually("it has what it lost", || bodies(&old.store()) == ["acked"]);
    // The epoch that ends the doubt comes behind that.
    eventually("it vouches again", || old.standing().expect("it is open").vouches);
}

/// A replica follows on, and ends nobody's epoch, after its store was opened without replication.
fn follows_on_after(visits: impl FnOnce(&Path)) {
    let dir = TempDir::new();
    let primary = primary(&dir.path().join("a"), 1);
    let address = primary.listen("127.0.0.1:0").expect("a port is free");
    let b = dir.path().join("b");
    let follower = replica(&b, 2, address);
    primary.wait_for_replicas(1, PATIENCE).expect("it connects");
    assert_eq!(put(primary.store(), "first").status, PutStatus::PutOk);
    follower.close().expect("it closes");
    visits(&b);
    let follower = replica(&b, 2, address);
    primary.wait_for_replicas(1, PATIENCE).expect("it comes back");
    assert_eq!(put(primary.store(), "second").status, PutStatus::PutOk);
    assert_eq!(primary.superseded(), None);
    eventually("it shows both", || bodies(&follower.store()) == ["first", "second"]);
}

#[test]
fn a_look_at_a_replica_without_replication_ends_nobodys_epoch() {
    follows_on_after(|b| {
        for _ in 0..2 {
            Store::open(config(b)).expect("it opens").close().expect("it closes");
        }
    });
}

#[test]
fn what_was_put_on_a_replica_without_replication_ends_nobodys_epoch_and_is_cut() {
    follows_on_after(|b| {
        // In two visits, of which the second one, too, comes behind what a primary gave.
        for body in ["of its own", "again"] {
            let store = Store::open(config(b)).expect("it opens");
            assert_eq!(put(&store, body).status, PutStatus::PutOk);
            store.close().expect("it closes");
        }
    });
}

#[test]
fn whoever_hears_of_a_newer_epoch_may_close_the_primary() {
    let dir = TempDir::new();
    let (tell, told) = std::sync::mpsc::channel();
    let closed = Arc::new(Mutex::new(None::<std::sync::Weak<Primary>>));
    let whom = closed.clone();
    let options = NodeOptions::new(NodeId(1)).secret(Secret::new("the secret"));
    let options = options.observe(move |event| {
        if let Event::Superseded { by } = event {
            let primary = whom.lock().expect("no panic").clone().and_then(|weak| weak.upgrade());
            let closed = primary.map(|primary| primary.close());
            tell.send((*by, closed)).expect("someone hears it");
        }
    });
    let primary = Primary::open(config(&dir.path().join("a")), PrimaryOptions::new(options));
    let primary = Arc::new(primary.expect("the primary opens"));
    *closed.lock().expect("no panic") = Some(Arc::downgrade(&primary));
    let address = primary.listen("127.0.0.1:0").expect("a port is free");
    let replica = replica(&dir.path().join("b"), 2, address);
    primary.wait_for_replicas(1, PATIENCE).expect("it connects");
    let term = primary.epoch().next_term();
    replica.fence(term).expect("it promises");
    let (by, closed) = told.recv_timeout(PATIENCE).expect("it comes back");
    assert_eq!(by, term);
    closed.expect("it is there").expect("it closes");
    assert!(!primary.store().is_open());
}

/// A node that nothing but its address keeps with its cluster.
fn open_node(id: u64) -> NodeOptions {
    NodeOptions::new(NodeId(id)).observe(move |event| println!("node {id}: {event:?}"))
}

/// Opens a primary whose oldest segments go, and puts until those before `from` are gone.
fn primary_that_keeps_from(from: u64, dir: &Path) -> Primary {
    let retention = Retention::max_total_bytes(128 << 10).check_interval(Duration::from_millis(1));
    let mut config = config(dir);
    config.retention = Some(retention);
    let options = PrimaryOptions::new(open_node(1)).ack(Ack::Async);
    let primary = Primary::open(config, options).expect("it opens");
    put_until_it_keeps_from(from, primary.store());
    primary
}

fn put_until_it_keeps_from(from: u64, store: &Store) {
    eventually("what comes first is gone", || {
        assert_eq!(put(store, &"x".repeat(1000)).status, PutStatus::PutOk);
        let oldest = store.min_offset("t", 0).expect("the queue is there");
        let kept = store.get("t", 0, oldest, 1).expect("it can be read").messages;
        kept.first().is_some_and(|first| first.physical_offset as u64 >= from)
    });
}

#[test]
fn a_replica_that_is_pointed_at_another_cluster_says_so_and_keeps_its_log() {
    let dir = TempDir::new();
    let [a, b, c] = ["a", "b", "c"].map(|name| dir.path().join(name));
    let own = Primary::open(config(&a), PrimaryOptions::new(open_node(1))).expect("it opens");
    let own_address = own.listen("127.0.0.1:0").expect("a port is free").to_string();
    let follow = |address: String| {
        Replica::open(config(&b), ReplicaOptions::new(open_node(2), address)).expect("it opens")
    };
    let replica = follow(own_address.clone());
    own.wait_for_replicas(1, PATIENCE).expect("it connects");
    let wanted: Vec<_> = (0..50).map(|n| format!("message {n}")).collect();
    for body in &wanted {
        assert_eq!(put(own.store(), body).status, PutStatus::PutOk);
    }
    eventually("the replica shows all", || bodies(&replica.store()) == wanted);
    replica.close().expect("it closes");
    drop(replica);
    let end = own.store().stats().watermarks.appended;

    // Its first epoch is the first of the same node there, too: at first all of it is kept, then only what
    // came later than all that the replica holds, and then that epoch is forgotten.
    let strangers: [&dyn Fn() -> Primary; 3] = [
        &|| {
            let options = PrimaryOptions::new(open_node(1)).ack(Ack::Async);
            let primary = Primary::open(config(&c), options).expect("it opens");
            assert_eq!(put(primary.store(), "of another cluster").status, PutStatus::PutOk);
            primary
        },
        &|| primary_that_keeps_from(end + 1, &c),
        &|| {
            let primary = primary_that_keeps_from(end + 1, &c);
            let second = primary.store().stats().watermarks.appended;
            primary.close().expect("it closes");
            primary_that_keeps_from(second, &c).close().expect("it closes");
            primary_that_keeps_from(second, &c)
        },
    ];
    for stranger in strangers {
        let stranger = stranger();
        let address = stranger.listen("127.0.0.1:0").expect("a port is free");
        let replica = follow(address.to_string());
        eventually("it says whom it met", || {
            matches!(replica.state().last_error, Some(SessionError::AnotherLog { .. }))
        });
        assert_eq!(bodies(&replica.store()), wanted);
        assert_eq!(stranger.superseded(), None);
        replica.close().expect("it closes");
        stranger.close().expect("it closes");
    }

    let replica = follow(own_address);
    own.wait_for_replicas(1, PATIENCE).expect("it is back");
    assert_eq!(put(own.store(), "and one more").status, PutStatus::PutOk);
    let wanted = [wanted, vec!["and one more".to_owned()]].concat();
    eventually("the replica shows all", || bodies(&replica.store()) == wanted);
}

#[test]
fn a_log_of_which_all_that_was_confirmed_has_expired_is_kept_from_another_cluster() {
    let dir = TempDir::new();
    let [a, b, c] = ["a", "b", "c"].map(|name| dir.path().join(name));
    let follow = |dir: &Path, address: SocketAddr| {
        let options = ReplicaOptions::new(open_node(2), address.to_string());
        Replica::open(config(dir), options).expect("it opens")
    };
    let own = primary_that_keeps_from(0, &a);
    let replica = follow(&b, own.listen("127.0.0.1:0").expect("a port is free"));
    eventually("something is confirmed", || replica.state().confirmed > 0);
    drop(replica);
    // It goes on alone.
    put_until_it_keeps_from(own.store().stats().watermarks.appended, own.store());
    let kept = own.store().stats().watermarks.appended;
    own.close().expect("it closes");
    drop(own);

    let stranger = primary_that_keeps_from(kept, &c);
    let replica = follow(&a, stranger.listen("127.0.0.1:0").expect("a port is free"));
    let is_refused = || matches!(replica.state().last_error, Some(SessionError::AnotherLog { .. }));
    eventually("it is refused, or follows", || is_refused() || replica.state().following);
    assert!(is_refused(), "it gives up its log for that of another cluster");
    assert_eq!(replica.state().durable, kept);
}

#[test]
fn a_promoted_replica_goes_on_with_the_offsets_of_queues_all_of_whose_records_have_expired() {
    let dir = TempDir::new();
    let [a, b] = ["a", "b"].map(|name| dir.path().join(name));
    let mut keeping_little = config(&a);
    let retention = Retention::max_total_bytes(128 << 10).check_interval(Duration::from_millis(1));
    keeping_little.retention = Some(retention);
    let options = PrimaryOptions::new(open_node(1)).ack(Ack::Async);
    let primary = Primary::open(keeping_little, options).expect("it opens");
    // More than one frame tells of.
    let queues = 0..250;
    let to = |queue| Message::new("idle", "x").queue(queue);
    let puts = |store: &Store, queue| {
        store.put(to(queue)).expect("stored").ok().expect("it waits for nobody").queue_offset
    };
    for queue in queues.clone() {
        (0..=queue % 3).for_each(|n| assert_eq!(puts(primary.store(), queue), n as u64));
    }
    eventually("the idle queues are empty", || {
        assert_eq!(put(primary.store(), &"x".repeat(1000)).status, PutStatus::PutOk);
        queues.clone().all(|queue| {
            let store = primary.store();
            store.min_offset("idle", queue) == store.max_offset("idle", queue)
        })
    });
    let address = primary.listen("127.0.0.1:0").expect("a port is free");
    let options = ReplicaOptions::new(open_node(2), address.to_string());
    let replica = Replica::open(config(&b), options).expect("it opens");
    primary.wait_for_replicas(1, PATIENCE).expect("it connects");
    let end = primary.store().stats().watermarks.appended;
    eventually("the replica holds all", || replica.state().durable >= end);
    replica.fence(primary.epoch().next_term()).expect("a newer term");
    primary.close().expect("it closes");
    let options = PrimaryOptions::new(open_node(2)).ack(Ack::Async);
    let next = replica.promote(options).expect("it was fenced");
    for queue in queues {
        assert_eq!(puts(next.store(), queue), queue as u64 % 3 + 1, "queue {queue}");
    }
}

type Told = Arc<Mutex<Vec<Event>>>;

fn count(told: &Told, is: impl Fn(&Event) -> bool) -> usize {
    told.lock().expect("no panic").iter().filter(|event| is(event)).count()
}

/// One that panics at everything it is told, once it has noted it.
fn startled(id: u64, told: &Told) -> NodeOptions {
    let told = told.clone();
    node(id).observe(move |event| {
        told.lock().expect("no panic").push(event.clone());
        panic!("planted: {event:?}");
    })
}

/// Fails once before it accepts anyone.
#[derive(Debug)]
struct Stumbling {
    below: TcpAcceptor,
    failed: AtomicBool,
}

impl Acceptor for Stumbling {
    fn accept(&self, patience: Duration) -> io::Result<Stream> {
        match self.failed.swap(true, Ordering::SeqCst) {
            true => self.below.accept(patience),
            false => Err(io::ErrorKind::Other.into()),
        }
    }

    fn close(&self) {
        self.below.close();
    }
}

#[test]
fn an_observer_that_panics_ends_no_thread_of_a_primary_and_none_of_a_replica() {
    let (dir, told, heard) = (TempDir::new(), Told::default(), Told::default());
    let ended = || count(&told, |event| matches!(event, Event::Ended { .. }));
    let options = PrimaryOptions::new(startled(1, &told));
    let primary = Primary::open(config(&dir.path().join("a")), options).expect("it opens");
    let below = TcpAcceptor::bind("127.0.0.1:0").expect("a port is free");
    let address = below.address();
    primary.serve(Stumbling { below, failed: AtomicBool::new(false) }).expect("it listens");
    eventually("the thread that accepts tells of it", || ended() == 1);
    drop(TcpStream::connect(address).expect("it listens"));
    eventually("the thread that watches tells of it", || ended() == 2);
    for round in 1..3 {
        let options = ReplicaOptions::new(startled(2, &heard), address.to_string());
        let replica = Replica::open(config(&dir.path().join("b")), options).expect("it opens");
        primary.wait_for_replicas(1, PATIENCE).expect("it connects");
        assert_eq!(put(primary.store(), "safe").status, PutStatus::PutOk);
        eventually("both tell of it", || {
            let connected = |event: &Event| matches!(event, Event::Connected { .. });
            [&told, &heard].map(|told| count(told, connected)) == [round; 2]
        });
        assert_eq!(put(primary.store(), "safe").status, PutStatus::PutOk);
        replica.close().expect("it closes");
        eventually("the thread that watches is still there", || ended() == 2 + round);
    }
    primary.close().expect("it closes");
}

#[test]
fn a_primary_in_doubt_is_in_doubt_whatever_its_puts_wait_for_now() {
    let (dir, disk) = (TempDir::new(), SimDisk::new(1));
    let (config, environment) = lazy(&disk);
    let primary = Primary::open_in(config, environment, PrimaryOptions::new(node(1)));
    let primary = primary.expect("it opens");
    let address = primary.listen("127.0.0.1:0").expect("a port is free");
    let _replica = replica(&dir.path().join("b"), 2, address);
    primary.wait_for_replicas(1, PATIENCE).expect("it connects");
    assert_eq!(put(primary.store(), "on the replica alone").status, PutStatus::PutOk);
    let disk = disk.cut_power(Cut::losing_all());
    drop(primary);
    for ack in [Ack::Async, Ack::Sync, Ack::Async] {
        let (config, environment) = lazy(&disk);
        let options = PrimaryOptions::new(node(1)).ack(ack);
        let opened = Primary::open_in(config, environment, options).map(drop);
        let doubt = matches!(opened, Err(Error::Refused(Refusal::TailInDoubt)));
        assert!(doubt, "{ack:?}: {opened:?}");
    }
}

#[test]
fn a_closed_replica_promises_nothing() {
    let dir = TempDir::new();
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    let primary = primary(&a, 1);
    let address = primary.listen("127.0.0.1:0").expect("a port is free");
    let follower = replica(&b, 2, address);
    primary.wait_for_replicas(1, PATIENCE).expect("it connects");
    assert_eq!(put(primary.store(), "first").status, PutStatus::PutOk);
    follower.close().expect("it closes");
    let term = primary.epoch().next_term();
    let _next = Primary::open(config(&b), PrimaryOptions::new(node(2)).epoch(term));
    let epochs = || std::fs::read(b.join("duralog/epochs")).expect("it is there");
    let before = epochs();
    let fenced = follower.fence(term.next_term());
    assert!(matches!(fenced, Err(Error::Closed)), "{fenced:?}");
    assert_eq!(epochs(), before, "the directory is another one's");
}

/// A primary of which no put waited, and another one that has begun without it.
fn given_up(dir: &Path, count: usize) -> (Primary, Primary, SocketAddr) {
    let options = PrimaryOptions::new(node(1)).ack(Ack::Async);
    let first = Primary::open(config(&dir.join("a")), options).expect("it opens");
    for n in 0..count {
        assert_eq!(put(first.store(), &format!("message {n}")).status, PutStatus::PutOk);
    }
    eventually("they are shown", || bodies(first.store()).len() == count);
    let options = PrimaryOptions::new(node(2)).epoch(Epoch::term(1));
    let second = Primary::open(config(&dir.join("b")), options).expect("it opens");
    let address = second.listen("127.0.0.1:0").expect("a port is free");
    (first, second, address)
}

#[test]
fn a_snapshot_outlasts_a_cut_of_the_log_that_it_is_of() {
    let dir = TempDir::new();
    let (first, second, address) = given_up(dir.path(), 3000);
    let snapshot = dir.path().join("snapshot");
    let made = first.store().snapshot(&snapshot).expect("there is room");
    assert!(made.linked > 0, "{made:?}");
    first.close().expect("it closes");
    drop(first);
    let _back = replica(&dir.path().join("a"), 1, address);
    second.wait_for_replicas(1, PATIENCE).expect("it follows");
    let store = Store::open(config(&snapshot).read_only(true)).expect("it opens");
    let report = store.verify().expect("it can be read");
    assert!(report.is_ok() && report.records == 3000, "{report:?}");
}

#[test]
fn a_view_of_an_earlier_opening_outlasts_a_cut() {
    let dir = TempDir::new();
    let (first, second, address) = given_up(dir.path(), 300);
    let found = first.store().get_view("t", 0, 7, 1, &TagFilter::any()).expect("it can be read");
    let [view] = &found.messages[..] else { panic!("it is there") };
    let before = view.bytes().to_vec();
    let options = ReplicaOptions::new(node(1), address.to_string());
    let back = first.into_replica(config(&dir.path().join("a")), options).expect("it opens");
    second.wait_for_replicas(1, PATIENCE).expect("it follows");
    for n in 0..300 {
        assert_eq!(put(second.store(), &format!("another {n}")).status, PutStatus::PutOk);
    }
    eventually("they are there", || bodies(&back.store()).len() == 300);
    assert_eq!(view.bytes(), before);
}

#[test]
fn a_replica_closes_though_its_disk_hangs() {
    let (dir, disk) = (TempDir::new(), SimDisk::new(1));
    let first = primary(&dir.path().join("a"), 1);
    let address = first.listen("127.0.0.1:0").expect("a port is free");
    let mut here = config(Path::new("/store"));
    here.log.close_timeout = Duration::from_millis(100);
    let mut options = ReplicaOptions::new(node(2), address.to_string());
    options.retry_max = options.retry_min;
    let replica = Replica::open_in(here, Environment::on(disk.shared()), options);
    let replica = replica.expect("it opens");
    first.wait_for_replicas(1, PATIENCE).expect("it connects");
    assert_eq!(put(first.store(), "first").status, PutStatus::PutOk);
    let epoch = first.epoch();
    first.close().expect("it closes");
    drop(first);
    // It has a new epoch to note.
    disk.hang_syncs(true);
    let second = primary(&dir.path().join("a"), 1);
    second.listen(address).expect("the port is free again");
    eventually("it hangs", || disk.hanging_syncs() > 0);
    let (done, closed) = std::sync::mpsc::channel();
    let replica = Arc::new(replica);
    let closing = replica.clone();
    let closer = std::thread::spawn(move || {
        // Whoever asks for the epochs does not wait for the new one.
        let standing = closing.standing().map(|standing| standing.epoch);
        let answers = (closing.state().log_id, standing, closing.close());
        done.send(answers).expect("someone hears it");
    });
    let answer = closed.recv_timeout(PATIENCE);
    disk.hang_syncs(false);
    let (log_id, standing, answer) = answer.expect("it comes back while the disk hangs");
    assert_eq!((log_id, standing.expect("it is open")), (second.log_id(), epoch));
    assert!(matches!(answer, Err(Error::CloseTimeout { .. })), "{answer:?}");
    closer.join().expect("it has ended");
}

#[test]
fn a_fence_on_a_disk_that_hangs_keeps_nobody_from_the_replica() {
    let (dir, disk) = (TempDir::new(), SimDisk::new(1));
    let primary = primary(&dir.path().join("a"), 1);
    let address = primary.listen("127.0.0.1:0").expect("a port is free");
    let options = ReplicaOptions::new(node(2), address.to_string());
    let replica =
        Replica::open_in(config(Path::new("/store")), Environment::on(disk.shared()), options);
    let replica = Arc::new(replica.expect("it opens"));
    primary.wait_for_replicas(1, PATIENCE).expect("it connects");
    assert_eq!(put(primary.store(), "first").status, PutStatus::PutOk);
    eventually("it shows it", || bodies(&replica.store()) == ["first"]);
    disk.hang_syncs(true);
    let (fencing, term) = (replica.clone(), primary.epoch().next_term());
    let fencing = std::thread::spawn(move || fencing.fence(term));
    eventually("it hangs", || disk.hanging_syncs() > 0);
    let (asking, (tell, told)) = (replica.clone(), std::sync::mpsc::channel());
    let asking = std::thread::spawn(move || {
        let told = (asking.state().confirmed, bodies(&asking.store()));
        tell.send(told).expect("someone hears it");
    });
    let answer = told.recv_timeout(PATIENCE);
    disk.hang_syncs(false);
    let (confirmed, shown) = answer.expect("whoever asks waits for the disk");
    assert!(confirmed > 0 && shown == ["first"], "{confirmed} {shown:?}");
    asking.join().expect("it has ended");
    assert_eq!(fencing.join().expect("it has ended").expect("it promises").promised, term);
}

/// Does not answer before it is let go.
#[derive(Debug, Default, Clone)]
struct Swallows {
    asked: Arc<AtomicBool>,
    lets_go: Arc<AtomicBool>,
}

impl Connector for Swallows {
    fn connect(&self, _limit: Duration, _patience: Duration) -> io::Result<Stream> {
        self.asked.store(true, Ordering::SeqCst);
        while !self.lets_go.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        Err(io::ErrorKind::TimedOut.into())
    }
}

#[test]
fn a_replica_is_promoted_while_it_seeks_a_primary_that_is_gone() {
    let dir = TempDir::new();
    let swallows = Swallows::default();
    let options = ReplicaOptions::connecting(node(2), swallows.clone());
    let replica = Replica::open(config(dir.path()), options).expect("it opens");
    eventually("it seeks one", || swallows.asked.load(Ordering::SeqCst));
    let term = Epoch::term(1);
    replica.fence(term).expect("it promises");
    let options = PrimaryOptions::new(node(2)).min_insync_replicas(1);
    let primary = replica.promote(options).expect("it waits for nobody");
    assert_eq!(primary.epoch(), term);
    swallows.lets_go.store(true, Ordering::SeqCst);
    primary.close().expect("it closes");
}

#[test]
fn a_replica_that_is_closed_while_it_seeks_a_primary_tells_of_nothing_that_comes_of_it() {
    let dir = TempDir::new();
    let (swallows, told) = (Swallows::default(), Arc::new(AtomicBool::new(false)));
    let telling = told.clone();
    let observed =
        NodeOptions::new(NodeId(2)).observe(move |_| telling.store(true, Ordering::SeqCst));
    let options = ReplicaOptions::connecting(observed, swallows.clone());
    let replica = Replica::open(config(dir.path()), options).expect("it opens");
    eventually("it seeks one", || swallows.asked.load(Ordering::SeqCst));
    replica.close().expect("it closes");
    drop(replica);
    swallows.lets_go.store(true, Ordering::SeqCst);
    // Its thread lets go of the connector, and of whom it tells, when it ends.
    eventually("its thread ends", || Arc::strong_count(&told) == 1);
    assert!(!told.load(Ordering::SeqCst));
}

#[test]
fn nobody_waits_for_replicas_of_a_primary_that_is_closed() {
    let dir = TempDir::new();
    let primary = Arc::new(primary(dir.path(), 1));
    let waiting = primary.clone();
    let waiting = std::thread::spawn(move || waiting.wait_for_replicas(1, 10 * PATIENCE));
    primary.close().expect("it closes");
    let answer = waiting.join().expect("it has ended");
    assert!(matches!(answer, Err(Error::Closed)), "{answer:?}");
}

#[test]
fn whoever_hears_of_a_cut_may_ask_the_replica() {
    let dir = TempDir::new();
    let (first, _second, address) = given_up(dir.path(), 1);
    first.close().expect("it closes");
    drop(first);
    let (tell, told) = std::sync::mpsc::channel();
    let asked = Arc::new(Mutex::new(None::<std::sync::Weak<Replica>>));
    let whom = asked.clone();
    let options = NodeOptions::new(NodeId(1)).secret(Secret::new("the secret"));
    let options = options.observe(move |event| {
        if let Event::Restarted { .. } = event {
            // Not before there is someone to ask.
            eventually("it is opened", || whom.lock().expect("no panic").is_some());
            let replica = whom.lock().expect("no panic").clone().and_then(|weak| weak.upgrade());
            let state = replica.map(|replica| replica.state());
            let _ = tell.send(state.is_some());
        }
    });
    let options = ReplicaOptions::new(options, address.to_string());
    let replica =
        Arc::new(Replica::open(config(&dir.path().join("a")), options).expect("it opens"));
    *asked.lock().expect("no panic") = Some(Arc::downgrade(&replica));
    assert_eq!(told.recv_timeout(PATIENCE), Ok(true));
}

/// Sends what is written once that is flushed.
#[derive(Debug)]
struct Buffering(TcpAcceptor);

impl Acceptor for Buffering {
    fn accept(&self, patience: Duration) -> io::Result<Stream> {
        let mut stream = self.0.accept(patience)?;
        let below = std::mem::replace(&mut stream.writer, StreamWriter::other(io::sink()));
        stream.writer = StreamWriter::other(io::BufWriter::new(below));
        Ok(stream)
    }

    fn close(&self) {
        self.0.close();
    }
}

#[test]
fn whoever_is_refused_over_a_stream_that_buffers_hears_why() {
    let dir = TempDir::new();
    let primary = primary(&dir.path().join("a"), 1);
    let acceptor = TcpAcceptor::bind("127.0.0.1:0").expect("a port is free");
    let address = acceptor.address().to_string();
    primary.serve(Buffering(acceptor)).expect("it listens");
    let other = config(&dir.path().join("b")).segment_size(32 << 10);
    let replica = Replica::open(other, ReplicaOptions::new(node(2), address)).expect("it opens");
    eventually("the connection ends", || replica.state().last_error.is_some());
    let state = replica.state();
    assert!(matches!(state.last_error, Some(SessionError::SegmentSize { .. })), "{state:?}");
}
