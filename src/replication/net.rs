//! How nodes reach each other: TCP as it is, or whatever a program brings instead.

use crate::sync::AtomicBool;
use std::fmt;
use std::io::ErrorKind::{ConnectionAborted, Interrupted, InvalidInput, NotConnected};
use std::io::{self, IoSlice, Read, Write};
use std::net::ToSocketAddrs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How long it may take to wake a listener of this process.
const WAKE_TIMEOUT: Duration = Duration::from_secs(1);

/// A connection, in two halves that two threads use at the same time.
pub struct Stream {
    /// What comes from the peer. A read during which nothing comes for as long as the
    /// [`Connector`] or [`Acceptor`] was told fails with `WouldBlock` or `TimedOut`.
    pub reader: Box<dyn Read + Send>,
    /// What goes to the peer. A write that does not get on for so long fails likewise.
    pub writer: StreamWriter,
    /// Ends both halves, from any thread: reads and writes under way, and all later ones, end at once.
    pub hang_up: Box<dyn Fn() + Send + Sync>,
    /// Who is at the other end: an address, with or without a port. It is for messages, and for RocketMQ
    /// slaves, which count by the IP address in it; all without one count as a single copy.
    pub peer: String,
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream").field("peer", &self.peer).finish_non_exhaustive()
    }
}

impl Stream {
    /// A TCP connection as it is: nothing of it is encrypted.
    ///
    /// # Errors
    /// What the system says to the settings.
    pub fn tcp(socket: TcpStream, patience: Duration) -> io::Result<Self> {
        let peer = socket.peer_addr()?;
        Self::from_peer(socket, peer, patience)
    }

    fn from_peer(socket: TcpStream, peer: SocketAddr, patience: Duration) -> io::Result<Self> {
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(patience))?;
        socket.set_write_timeout(Some(patience))?;
        let (reader, closing) = (socket.try_clone()?, socket.try_clone()?);
        let hang_up = move || {
            // Whoever was faster has ended it already.
            let _ = closing.shutdown(Shutdown::Both);
        };
        Ok(Self {
            reader: Box::new(reader),
            writer: StreamWriter::Tcp(socket),
            hang_up: Box::new(hang_up),
            peer: peer.to_string(),
        })
    }
}

/// Where what goes to the peer is written.
pub enum StreamWriter {
    /// A socket that takes the bytes as they are: those of the log go there from the page cache, without a
    /// copy, where the system can do that.
    Tcp(TcpStream),
    /// Whatever makes something else of them, or takes them elsewhere.
    Other(Box<dyn Write + Send>),
}

impl StreamWriter {
    /// What writes into anything.
    pub fn other(writer: impl Write + Send + 'static) -> Self {
        Self::Other(Box::new(writer))
    }

    fn inner(&mut self) -> &mut dyn Write {
        match self {
            Self::Tcp(socket) => socket,
            Self::Other(writer) => writer,
        }
    }
}

impl Write for StreamWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.inner().write(bytes)
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        self.inner().write_vectored(parts)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner().flush()
    }
}

impl fmt::Debug for StreamWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(socket) => f.debug_tuple("Tcp").field(socket).finish(),
            Self::Other(_) => f.debug_tuple("Other").finish_non_exhaustive(),
        }
    }
}

/// How a replica reaches its primary: by TLS, for instance, as in the example `replicated_tls`.
pub trait Connector: Send + Sync + fmt::Debug {
    /// Connects, within about `limit`: a replica that is closed does not wait for it. Reads and writes of the
    /// stream give up after `patience`.
    ///
    /// # Errors
    /// Tried again later, with growing pauses.
    fn connect(&self, limit: Duration, patience: Duration) -> io::Result<Stream>;
}

/// How a primary is reached.
pub trait Acceptor: Send + Sync + fmt::Debug {
    /// Waits for the next connection. What a handshake takes is to be done by its first reads and
    /// writes, which give up after `patience`: others wait here.
    ///
    /// # Errors
    /// Taken note of, and tried again after a pause; the last one after [`close`](Self::close).
    fn accept(&self, patience: Duration) -> io::Result<Stream>;

    /// Makes the [`accept`](Self::accept) under way, and all later ones, fail at once.
    fn close(&self);
}

/// Plain TCP to the addresses of a name, one after the other.
#[derive(Debug, Clone)]
pub struct TcpConnector {
    address: String,
}

impl TcpConnector {
    /// To `address`, `host:port`. The name is looked up for each connection.
    pub fn new(address: impl Into<String>) -> Self {
        Self { address: address.into() }
    }
}

impl Connector for TcpConnector {
    fn connect(&self, limit: Duration, patience: Duration) -> io::Result<Stream> {
        let mut failed = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        let addresses: Vec<_> = self.address.to_socket_addrs()?.collect();
        // All of them together have no longer than one.
        let share = limit / u32::try_from(addresses.len().max(1)).unwrap_or(u32::MAX);
        for address in addresses {
            match TcpStream::connect_timeout(&address, share.max(Duration::from_millis(1))) {
                Ok(socket) => return Stream::tcp(socket, patience),
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }
}

/// Plain TCP.
#[derive(Debug)]
pub struct TcpAcceptor {
    listener: TcpListener,
    address: SocketAddr,
    closed: AtomicBool,
}

impl TcpAcceptor {
    /// Listens at `address`; port 0 takes a free one.
    ///
    /// # Errors
    /// What the system says, above all that the port is taken.
    pub fn bind(address: impl ToSocketAddrs) -> io::Result<Self> {
        Self::over(TcpListener::bind(address)?)
    }

    /// Takes over a listener with the settings that it has: connections inherit them, such as the size of the
    /// buffers, or the congestion control. The one called `bbr` spreads what is sent by timers, which can take
    /// the processor more than all else that sending does.
    ///
    /// # Errors
    /// What the system says to the question where it listens.
    pub fn over(listener: TcpListener) -> io::Result<Self> {
        let address = listener.local_addr()?;
        Ok(Self { listener, address, closed: AtomicBool::new(false) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Acceptor for TcpAcceptor {
    fn accept(&self, patience: Duration) -> io::Result<Stream> {
        loop {
            let accepted = self.listener.accept();
            if self.closed.load(Ordering::SeqCst) {
                return Err(io::ErrorKind::NotConnected.into());
            }
            // One that was gone before its turn came is no trouble of the listener's: to pause for it
            // would be to let anyone keep out everyone.
            let (socket, peer) = match accepted {
                Err(error) if matches!(error.kind(), ConnectionAborted | Interrupted) => continue,
                accepted => accepted?,
            };
            match Stream::from_peer(socket, peer, patience) {
                Err(error) if matches!(error.kind(), InvalidInput | NotConnected) => {}
                stream => return stream,
            }
        }
    }

    fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        let mut own = self.address;
        match own.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => own.set_ip(Ipv4Addr::LOCALHOST.into()),
            IpAddr::V6(ip) if ip.is_unspecified() => own.set_ip(Ipv6Addr::LOCALHOST.into()),
            _ => {}
        }
        // The system has no other way to wake who waits there.
        let _ = TcpStream::connect_timeout(&own, WAKE_TIMEOUT);
    }
}

impl<T: Acceptor + ?Sized> Acceptor for Arc<T> {
    fn accept(&self, patience: Duration) -> io::Result<Stream> {
        (**self).accept(patience)
    }

    fn close(&self) {
        (**self).close();
    }
}

impl<T: Connector + ?Sized> Connector for Arc<T> {
    fn connect(&self, limit: Duration, patience: Duration) -> io::Result<Stream> {
        (**self).connect(limit, patience)
    }
}
