//! A primary and a replica over TLS, both in this process: both show certificates, made at the start.

mod tls;

use duralog::replication::{
    NodeId, NodeOptions, Primary, PrimaryOptions, Replica, ReplicaOptions, TcpAcceptor,
    TcpConnector,
};
use duralog::{Message, StoreConfig};
use std::error::Error;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;
use tls::{Identity, TlsAcceptor, TlsConnector};

fn main() -> ExitCode {
    if std::env::args_os().len() > 1 {
        eprintln!("usage: replicated_tls");
        return ExitCode::from(2);
    }
    let dir = std::env::temp_dir().join(format!("replicated-tls-{}", std::process::id()));
    let outcome = replicate(&dir);
    // It was only a demonstration, nobody misses it.
    let _ = std::fs::remove_dir_all(&dir);
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("replicated_tls: {error}");
            ExitCode::FAILURE
        }
    }
}

fn replicate(dir: &Path) -> Result<(), Box<dyn Error>> {
    let identity = Identity::new()?;
    let config = |name: &str| StoreConfig::new(dir.join(name)).segment_size(16 << 20);
    let node = |id| NodeOptions::new(NodeId(id)).observe(move |event| println!("{id}: {event:?}"));

    let primary = Primary::open(config("primary"), PrimaryOptions::new(node(1)))?;
    let tcp = TcpAcceptor::bind("127.0.0.1:0")?;
    let address = tcp.address().to_string();
    primary.serve(TlsAcceptor(tcp, identity.server))?;

    let connector = TlsConnector(TcpConnector::new(address), identity.client);
    let options = ReplicaOptions::connecting(node(2), connector);
    let replica = Replica::open(config("replica"), options)?;
    primary.wait_for_replicas(1, Duration::from_secs(10))?;

    for n in 1..=5 {
        let put = primary.store().put(Message::new("orders", format!("order {n}")))?;
        println!("order {n}: {}, durable on both", put.status);
        put.ok()?;
    }
    let held = replica.state().durable;
    println!("The replica holds {held} bytes of the log.");
    replica.close()?;
    primary.close()?;
    Ok(())
}
