//! Replication over the TLS of the example: what it promises of the wire, and of who is let in.

#[path = "support/temp.rs"]
mod temp;
#[path = "../examples/tls/mod.rs"]
mod tls;

use duralog::replication::{
    Acceptor, Connector, NodeId, NodeOptions, Primary, PrimaryOptions, Replica, ReplicaOptions,
    SessionError, TcpAcceptor, TcpConnector,
};
use duralog::{Message, StoreConfig};
use rustls::ClientConfig;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};
use temp::TempDir;
use tls::{Identity, TlsAcceptor, TlsConnector};

const PATIENCE: Duration = Duration::from_secs(60);
const BODY: &str = "what is said here is for nobody else";

fn config(dir: &Path) -> StoreConfig {
    let mut config = StoreConfig::new(dir).segment_size(1 << 20);
    (config.index_slots, config.index_items) = (101, 1000);
    config.sync_replica_timeout = PATIENCE;
    config
}

fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < PATIENCE, "not so after {PATIENCE:?}: {what}");
        thread::yield_now();
    }
}

/// Errors that a node tells of.
type Errors = Arc<Mutex<Vec<SessionError>>>;

fn node(id: u64) -> (NodeOptions, Errors) {
    let errors = Errors::default();
    let heard = errors.clone();
    let options = NodeOptions::new(NodeId(id)).observe(move |event| {
        if let duralog::replication::Event::Ended { error, .. } = event {
            heard.lock().expect("no panic").push(error.clone());
        }
    });
    (options, errors)
}

/// Whether one of them is of the certificates, and says `what`.
fn says(errors: &Errors, what: &str) -> bool {
    errors.lock().expect("no panic").iter().any(|error| match error {
        SessionError::Connection { source } => source.to_string().contains(what),
        _ => false,
    })
}

fn primary(dir: &Path, acceptor: impl Acceptor + 'static) -> (Primary, Errors) {
    let (options, errors) = node(1);
    let primary = Primary::open(config(dir), PrimaryOptions::new(options)).expect("it opens");
    primary.serve(acceptor).expect("it listens");
    (primary, errors)
}

fn replica(dir: &Path, connector: impl Connector + 'static) -> (Replica, Errors) {
    let (options, errors) = node(2);
    let options = ReplicaOptions::connecting(options, connector);
    (Replica::open(config(dir), options).expect("it opens"), errors)
}

/// Forwards each connection to `to`, and keeps what goes by; where it listens.
fn sniff(to: SocketAddr) -> (SocketAddr, Arc<Mutex<Vec<u8>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let (address, seen) = (listener.local_addr().expect("an address"), Arc::default());
    let seen_here: Arc<Mutex<Vec<u8>>> = Arc::clone(&seen);
    thread::spawn(move || {
        for near in listener.incoming().flatten() {
            let far = TcpStream::connect(to).expect("it listens");
            let ways = [(&near, &far), (&far, &near)].map(|(from, to)| {
                (from.try_clone().expect("a handle"), to.try_clone().expect("a handle"))
            });
            for (mut from, mut to) in ways {
                let seen = seen_here.clone();
                thread::spawn(move || {
                    let mut piece = [0; 4096];
                    while let Ok(got @ 1..) = from.read(&mut piece) {
                        seen.lock().expect("no panic").extend_from_slice(&piece[..got]);
                        if to.write_all(&piece[..got]).is_err() {
                            break;
                        }
                    }
                    let _ = to.shutdown(Shutdown::Both);
                });
            }
        }
    });
    (address, seen)
}

/// Replicates some messages, and says how often the body of one was seen on the way.
fn times_seen(
    acceptor: impl Acceptor + 'static,
    connector: impl Connector + 'static,
    seen: &Mutex<Vec<u8>>,
) -> usize {
    let dir = TempDir::in_memory();
    let (primary, _) = primary(&dir.path().join("a"), acceptor);
    let (replica, errors) = replica(&dir.path().join("b"), connector);
    primary.wait_for_replicas(1, PATIENCE).expect("it connects");
    for n in 0..100 {
        // Some of them take many records of TLS.
        let body = BODY.repeat(1 + n % 10 * 400);
        primary.store().put(Message::new("orders", body)).expect("put").ok().expect("safe");
    }
    eventually("the replica shows all", || {
        let got = replica.store().get("orders", 0, 0, 1000).expect("readable").messages;
        got.len() == 100 && got.iter().all(|message| message.body.starts_with(BODY.as_bytes()))
    });
    assert_eq!(errors.lock().expect("no panic").len(), 0);
    replica.close().expect("it closes");
    primary.close().expect("it closes");
    let seen = seen.lock().expect("no panic");
    assert!(seen.len() > 100 * BODY.len() * 1800, "all of it went by");
    seen.windows(BODY.len()).filter(|bytes| *bytes == BODY.as_bytes()).count()
}

#[test]
fn nobody_on_the_way_can_read_what_is_replicated() {
    let cluster = Identity::new().expect("a certificate");
    let tcp = TcpAcceptor::bind("127.0.0.1:0").expect("a port is free");
    let (address, seen) = sniff(tcp.address());
    let connector = TlsConnector(TcpConnector::new(address.to_string()), cluster.client);
    assert_eq!(times_seen(TlsAcceptor(tcp, cluster.server), connector, &seen), 0);

    // Whoever looks in the same way at what is not encrypted sees everything.
    let tcp = TcpAcceptor::bind("127.0.0.1:0").expect("a port is free");
    let (address, seen) = sniff(tcp.address());
    assert!(times_seen(tcp, TcpConnector::new(address.to_string()), &seen) >= 100);
}

/// That this replica does not get in, that the primary says `why`, and gives nothing.
fn refuses(why: &str, client: impl FnOnce(&Identity) -> Arc<ClientConfig>) {
    let (dir, cluster) = (TempDir::in_memory(), Identity::new().expect("a certificate"));
    let tcp = TcpAcceptor::bind("127.0.0.1:0").expect("a port is free");
    let address = tcp.address().to_string();
    let server = cluster.server.clone();
    let (primary, errors) = primary(&dir.path().join("a"), TlsAcceptor(tcp, server));
    let put = primary.store().put(Message::new("orders", BODY)).expect("it is stored");
    let connector = TlsConnector(TcpConnector::new(address.clone()), client(&cluster));
    let (stranger, its) = replica(&dir.path().join("b"), connector);
    eventually(why, || says(&errors, why));
    eventually("it is told", || !its.lock().expect("no panic").is_empty());
    assert!(!stranger.state().following);
    assert_eq!((stranger.state().durable, primary.replicas().len()), (0, 0));
    stranger.close().expect("it closes");
    // One that has a certificate gets in.
    let connector = TlsConnector(TcpConnector::new(address), cluster.client);
    let (replica, _) = replica(&dir.path().join("c"), connector);
    eventually("it has everything", || replica.state().durable == put.end_offset);
    replica.close().expect("it closes");
    primary.close().expect("it closes");
}

#[test]
fn a_replica_without_a_certificate_is_refused() {
    refuses("peer sent no certificates", |cluster| {
        let config = ClientConfig::builder().with_root_certificates(cluster.roots.clone());
        Arc::new(config.with_no_client_auth())
    });
}

#[test]
fn a_replica_with_a_certificate_of_somebody_elses_is_refused() {
    refuses("invalid peer certificate", |cluster| {
        let other = Identity::new().expect("a certificate");
        let mut config = (*other.client).clone();
        // It trusts the primary, which does not trust it.
        let verifier = rustls::client::WebPkiServerVerifier::builder(cluster.roots.clone());
        config.dangerous().set_certificate_verifier(verifier.build().expect("a verifier"));
        Arc::new(config)
    });
}

#[test]
fn a_primary_with_a_certificate_of_somebody_elses_is_not_followed() {
    let dir = TempDir::in_memory();
    let [ours, theirs] = [(); 2].map(|()| Identity::new().expect("a certificate"));
    let tcp = TcpAcceptor::bind("127.0.0.1:0").expect("a port is free");
    let address = tcp.address().to_string();
    let (primary, _) = primary(&dir.path().join("a"), TlsAcceptor(tcp, theirs.server));
    let connector = TlsConnector(TcpConnector::new(address), ours.client);
    let (replica, errors) = replica(&dir.path().join("b"), connector);
    eventually("it says why", || says(&errors, "invalid peer certificate"));
    assert!(!replica.state().following);
    replica.close().expect("it closes");
    primary.close().expect("it closes");
}

#[test]
fn whoever_speaks_no_tls_is_refused_and_one_who_says_nothing_holds_up_nobody() {
    let (dir, cluster) = (TempDir::in_memory(), Identity::new().expect("a certificate"));
    let tcp = TcpAcceptor::bind("127.0.0.1:0").expect("a port is free");
    let address = tcp.address();
    let server = cluster.server.clone();
    let (primary, errors) = primary(&dir.path().join("a"), TlsAcceptor(tcp, server));
    // A handshake in `accept` would wait for these.
    let silent: Vec<TcpStream> =
        (0..5).map(|_| TcpStream::connect(address).expect("it listens")).collect();
    let (plain, _) = replica(&dir.path().join("b"), TcpConnector::new(address.to_string()));
    let connector = TlsConnector(TcpConnector::new(address.to_string()), cluster.client);
    let (replica, _) = replica(&dir.path().join("c"), connector);
    primary.wait_for_replicas(1, PATIENCE).expect("it connects");
    primary.store().put(Message::new("orders", BODY)).expect("put").ok().expect("safe");
    eventually("the other is refused", || says(&errors, "corrupt message"));
    assert!(!plain.state().following);
    plain.close().expect("it closes");
    replica.close().expect("it closes");
    primary.close().expect("it closes");
    drop(silent);
}
