//! TLS between nodes, for which both sides show a certificate.
//!
//! The two halves of a connection are used by two threads at the same time. What TLS knows lies behind
//! a lock that nobody holds while waiting for the network.
#![allow(dead_code, reason = "tests use all of it")]

use duralog::replication::{Acceptor, Connector, Stream, StreamWriter, TcpAcceptor, TcpConnector};
use parking_lot::Mutex;
use rustls::pki_types::{PrivatePkcs8KeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, ClientConnection, Connection};
use rustls::{RootCertStore, ServerConfig, ServerConnection};
use std::error::Error;
use std::io::{self, ErrorKind, Read, Write};
use std::sync::Arc;
use std::time::Duration;

/// What every node is called in its certificate: whose it is does not matter, but who made it.
const NODE: &str = "node.duralog.example";

/// How the nodes of a cluster connect: whoever has this certificate is one of them. In earnest each has
/// one of its own, from a file, and the root is the authority that has signed them all.
pub struct Identity {
    pub roots: Arc<RootCertStore>,
    pub client: Arc<ClientConfig>,
    pub server: Arc<ServerConfig>,
}

impl Identity {
    pub fn new() -> Result<Self, Box<dyn Error>> {
        let made = rcgen::generate_simple_self_signed([NODE.to_owned()])?;
        let (chain, key) = (vec![made.cert.der().clone()], made.signing_key.serialize_der());
        let key = || PrivatePkcs8KeyDer::from(key.clone()).into();
        let mut roots = RootCertStore::empty();
        roots.add(made.cert.der().clone())?;
        let roots = Arc::new(roots);
        let client = ClientConfig::builder()
            .with_root_certificates(roots.clone())
            .with_client_auth_cert(chain.clone(), key())?;
        let server = ServerConfig::builder()
            .with_client_cert_verifier(WebPkiClientVerifier::builder(roots.clone()).build()?)
            .with_single_cert(chain, key())?;
        Ok(Self { roots, client: client.into(), server: server.into() })
    }
}

#[derive(Debug)]
pub struct TlsConnector(pub TcpConnector, pub Arc<ClientConfig>);

impl Connector for TlsConnector {
    fn connect(&self, limit: Duration, patience: Duration) -> io::Result<Stream> {
        let name = ServerName::try_from(NODE).map_err(io::Error::other)?;
        let tls = ClientConnection::new(self.1.clone(), name).map_err(io::Error::other)?;
        Ok(over(self.0.connect(limit, patience)?, tls.into()))
    }
}

#[derive(Debug)]
pub struct TlsAcceptor(pub TcpAcceptor, pub Arc<ServerConfig>);

impl Acceptor for TlsAcceptor {
    fn accept(&self, patience: Duration) -> io::Result<Stream> {
        let tls = ServerConnection::new(self.1.clone()).map_err(io::Error::other)?;
        Ok(over(self.0.accept(patience)?, tls.into()))
    }

    fn close(&self) {
        self.0.close();
    }
}

/// The handshake is part of the first reads and writes.
fn over(stream: Stream, tls: Connection) -> Stream {
    let Stream { reader, writer, hang_up, peer } = stream;
    let session = Arc::new(Session { tls: Mutex::new(tls), out: Mutex::new(writer) });
    let reader = Reader { session: session.clone(), below: reader, came: Vec::new() };
    let (reader, writer) = (Box::new(reader), StreamWriter::other(Writer(session)));
    Stream { reader, writer, hang_up, peer }
}

struct Session {
    tls: Mutex<Connection>,
    /// Held from when records are made until they are sent, so that they go in their order. Whoever
    /// needs both locks takes this one first.
    out: Mutex<StreamWriter>,
}

impl Session {
    /// Sends what there is to send.
    fn send(&self, out: &mut dyn Write) -> io::Result<()> {
        loop {
            let (mut records, mut tls) = (Vec::new(), self.tls.lock());
            while tls.wants_write() {
                tls.write_tls(&mut records)?;
            }
            drop(tls);
            if records.is_empty() {
                return out.flush();
            }
            out.write_all(&records)?;
        }
    }
}

struct Reader {
    session: Arc<Session>,
    below: Box<dyn Read + Send>,
    /// What came, and TLS has not taken yet.
    came: Vec<u8>,
}

impl Read for Reader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut tls = self.session.tls.lock();
            match tls.reader().read(into) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                read => return read,
            }
            if tls.wants_write() {
                drop(tls);
                self.session.send(&mut *self.session.out.lock())?;
                continue;
            }
            if self.came.is_empty() {
                drop(tls);
                self.came.resize(16 << 10, 0);
                let got = self.below.read(&mut self.came);
                self.came.truncate(*got.as_ref().unwrap_or(&0));
                if got? == 0 {
                    // Without a farewell; what speaks here knows by itself whether it has heard all.
                    return Ok(0);
                }
                tls = self.session.tls.lock();
            }
            let taken = tls.read_tls(&mut &self.came[..])?;
            self.came.drain(..taken);
            if let Err(error) = tls.process_new_packets() {
                drop(tls);
                // It may have gone without being told why.
                let _ = self.session.send(&mut *self.session.out.lock());
                return Err(io::Error::new(ErrorKind::InvalidData, error));
            }
        }
    }
}

struct Writer(Arc<Session>);

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut out = self.0.out.lock();
        let written = self.0.tls.lock().writer().write(bytes)?;
        self.0.send(&mut *out)?;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
