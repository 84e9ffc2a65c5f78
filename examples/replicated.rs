//! A primary and two replicas: messages are copied as they are put, the primary is lost, a replica takes
//! over, and the old primary comes back as a replica of it. Three nodes in one process, on loopback.

use duralog::replication::{
    Ack, NodeId, NodeOptions, Primary, PrimaryOptions, Replica, ReplicaOptions,
};
use duralog::{Message, PutStatus, Store, StoreConfig};
use std::collections::BTreeSet;
use std::error::Error;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// How long this waits for what other threads do, before it calls that a failure.
const PATIENCE: Duration = Duration::from_secs(60);
const TOPIC: &str = "orders";

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    let ack = match args.as_slice() {
        [] => Ack::Async,
        [sync] if sync == "--sync" => Ack::Sync,
        _ => {
            eprintln!("usage: replicated [--sync]");
            return ExitCode::from(2);
        }
    };
    let dir = std::env::temp_dir().join(format!("replicated-{}", std::process::id()));
    let outcome = fail_over(&dir, ack);
    // It was only a demonstration, nobody misses it.
    let _ = std::fs::remove_dir_all(&dir);
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("replicated: {error}");
            ExitCode::FAILURE
        }
    }
}

fn fail_over(dir: &Path, ack: Ack) -> Result<(), Box<dyn Error>> {
    let config = |id: u64| StoreConfig::new(dir.join(format!("node-{id}"))).segment_size(1 << 20);
    let node = |id: u64| NodeOptions::new(NodeId(id));
    let follow = |id: u64, address: &str| {
        println!("Node {id} follows {address}");
        Replica::open(config(id), ReplicaOptions::new(node(id), address))
    };

    let primary = Primary::open(config(1), PrimaryOptions::new(node(1)).ack(ack))?;
    let address = primary.listen("127.0.0.1:0")?.to_string();
    println!("Node 1 is the primary, and listens at {address}");
    let replicas = [follow(2, &address)?, follow(3, &address)?];
    primary.wait_for_replicas(2, PATIENCE)?;

    println!("\nPutting 2000 messages, acknowledgement {ack:?}:");
    let mut promised = BTreeSet::new();
    put(primary.store(), 0..2000, &mut promised)?;
    let end = primary.store().stats().watermarks.appended;
    for (id, replica) in [2, 3].into_iter().zip(&replicas) {
        eventually("a replica has caught up", || replica.state().durable == end)?;
        let state = replica.state();
        println!("  node {id}: {} bytes durable, {} confirmed", state.durable, state.confirmed);
    }

    // One process cannot lose a machine. Fenced replicas come to the same: whether it is dead or only
    // out of reach, nobody takes anything from the primary of an older term any more.
    let epoch = primary.epoch().next_term();
    println!("\nNode 1 is out of reach. Fencing the replicas with the next term:");
    let standings = [replicas[0].fence(epoch)?, replicas[1].fence(epoch)?];
    for (id, standing) in [2, 3].into_iter().zip(&standings) {
        println!("  node {id}: {} bytes durable, and no more from node 1", standing.end);
    }
    println!("Node 1 does not know yet, and is given 20 more messages:");
    put(primary.store(), 2000..2020, &mut promised)?;
    primary.close()?;
    drop(primary);

    let [second, third] = replicas;
    let (chosen, other, ids) = match standings[0] >= standings[1] {
        true => (second, third, (2, 3)),
        false => (third, second, (3, 2)),
    };
    println!("\nNode {} has the most, and is promoted:", ids.0);
    let primary = chosen.promote(PrimaryOptions::new(node(ids.0)).ack(ack))?;
    let address = primary.listen("127.0.0.1:0")?.to_string();
    other.close()?;
    drop(other);
    let (other, old) = (follow(ids.1, &address)?, follow(1, &address)?);
    primary.wait_for_replicas(2, PATIENCE)?;

    println!("\nPutting 1000 more to node {}:", ids.0);
    put(primary.store(), 3000..4000, &mut promised)?;
    let wanted = bodies(primary.store())?;
    // What was put to node 1 last is cut from its log: the store is opened anew for that.
    for replica in [&other, &old] {
        let same = || bodies(&replica.store()).is_ok_and(|bodies| bodies == wanted);
        eventually("all nodes show the same", same)?;
    }
    println!("\nAll three nodes show the same {} messages", wanted.len());

    let missing = promised.difference(&wanted.into_iter().collect()).count();
    println!("{missing} of the {} that were PutOk are missing", promised.len());
    match (ack, missing) {
        (Ack::Sync, 0) => {}
        (Ack::Sync, _) => return Err("a message that was PutOk is lost".into()),
        // Here the replicas had caught up, or nearly, before the primary was lost.
        (Ack::Async, _) => {
            println!("PutOk did not wait for a replica; with --sync it does, and none can be")
        }
    }
    for replica in [other, old] {
        replica.close()?;
    }
    Ok(primary.close()?)
}

/// Puts one message for each number, and notes which of them were `PutOk`.
fn put(
    store: &Store,
    numbers: std::ops::Range<u32>,
    promised: &mut BTreeSet<Vec<u8>>,
) -> duralog::Result<()> {
    let (mut ok, mut unknown, mut refused) = (0, 0, 0);
    for number in numbers {
        let body = format!("order {number}").into_bytes();
        match store.put(Message::new(TOPIC, body.clone())) {
            Ok(put) if put.status == PutStatus::PutOk => {
                ok += 1;
                promised.insert(body);
            }
            Ok(_) => unknown += 1,
            Err(duralog::Error::Refused(_)) => refused += 1,
            Err(error) => return Err(error),
        }
    }
    println!("  {ok} PutOk, {unknown} stored here but not confirmed, {refused} refused");
    Ok(())
}

/// The messages that a reader sees.
fn bodies(store: &Store) -> duralog::Result<Vec<Vec<u8>>> {
    let messages = store.get(TOPIC, 0, 0, 10_000)?.messages;
    Ok(messages.into_iter().map(|message| message.body).collect())
}

fn eventually(what: &str, mut is_so: impl FnMut() -> bool) -> Result<(), Box<dyn Error>> {
    let started = Instant::now();
    while !is_so() {
        if started.elapsed() > PATIENCE {
            return Err(format!("not so after {PATIENCE:?}: {what}").into());
        }
        std::thread::yield_now();
    }
    Ok(())
}
