//! The wire between a master of RocketMQ's and its slave, both halves on plain sockets. Numbers are
//! big-endian; what follows which stands in `tests/ha_interop.rs`.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd};
use std::time::Duration;

/// Longer than anything takes that is to come.
const PATIENCE: Duration = Duration::from_secs(60);
const FRAME_HEADER: usize = 12;

/// Bytes of the log: its offset (8 bytes), their number (4 bytes), and themselves. A heartbeat has none.
#[derive(Debug, PartialEq)]
pub struct Frame {
    pub offset: u64,
    pub body: Vec<u8>,
}

impl Frame {
    pub fn new(offset: u64, body: &[u8]) -> Self {
        Self { offset, body: body.to_vec() }
    }

    pub fn heartbeat(offset: u64) -> Self {
        Self::new(offset, &[])
    }

    pub fn is_heartbeat(&self) -> bool {
        self.body.is_empty()
    }

    pub fn end(&self) -> u64 {
        self.offset + self.body.len() as u64
    }

    pub fn header(&self) -> [u8; FRAME_HEADER] {
        let mut header = [0; FRAME_HEADER];
        header[..8].copy_from_slice(&self.offset.to_be_bytes());
        header[8..].copy_from_slice(&(self.body.len() as u32).to_be_bytes());
        header
    }
}

/// The slave's end: it reports where its log ends (8 bytes), and is sent frames.
pub struct SlaveSocket(TcpStream);

impl SlaveSocket {
    pub fn connect(port: u16) -> Self {
        Self(prepared(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("it listens")))
    }

    /// As a slave on the machine with that address.
    pub fn connect_from(from: Ipv4Addr, port: u16) -> Self {
        Self(prepared(bound_to(from, port).expect("it listens")))
    }

    pub fn report(&mut self, offset: i64) {
        self.send(&offset.to_be_bytes());
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).expect("sent");
    }

    /// The next frame, or none when the master has closed the connection.
    pub fn frame(&mut self) -> Option<Frame> {
        let header = receive(&mut self.0, FRAME_HEADER)?;
        let (offset, size) = header.split_at(8);
        let offset = u64::from_be_bytes(offset.try_into().expect("8 bytes"));
        let size = u32::from_be_bytes(size.try_into().expect("4 bytes"));
        Some(Frame { offset, body: receive(&mut self.0, size as usize)? })
    }

    /// The next frame that is none of the heartbeats before it.
    pub fn data(&mut self) -> Frame {
        loop {
            let frame = self.frame().expect("the master keeps the connection");
            if !frame.is_heartbeat() {
                return frame;
            }
        }
    }

    /// That nothing comes, for so long.
    pub fn hears_nothing_for(&mut self, time: Duration) {
        self.0.set_read_timeout(Some(time)).expect("set");
        let heard = self.0.peek(&mut [0]);
        assert!(
            heard.as_ref().is_err_and(|error| error.kind() == ErrorKind::WouldBlock),
            "{heard:?}"
        );
        self.0.set_read_timeout(Some(PATIENCE)).expect("set");
    }

    /// Another handle of the same connection.
    pub fn share(&self) -> Self {
        Self(self.0.try_clone().expect("a handle"))
    }

    pub fn shut_down(&self) {
        self.0.shutdown(std::net::Shutdown::Both).expect("shut down");
    }
}

pub struct MasterListener(TcpListener);

impl MasterListener {
    pub fn new() -> Self {
        Self(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port"))
    }

    pub fn port(&self) -> u16 {
        self.0.local_addr().expect("an address").port()
    }

    pub fn accept(&self) -> MasterSocket {
        MasterSocket(prepared(self.0.accept().expect("a connection").0))
    }
}

/// The master's end.
pub struct MasterSocket(TcpStream);

impl MasterSocket {
    pub fn send(&mut self, frame: &Frame) {
        self.send_bytes(&[&frame.header()[..], &frame.body].concat());
    }

    pub fn send_bytes(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).expect("sent");
    }

    /// Whether the slave still takes it.
    pub fn try_send(&mut self, frame: &Frame) -> bool {
        self.0.write_all(&[&frame.header()[..], &frame.body].concat()).is_ok()
    }

    /// Another handle of the same connection.
    pub fn share(&self) -> Self {
        Self(self.0.try_clone().expect("a handle"))
    }

    /// The next report, or none when the slave has closed the connection.
    pub fn report(&mut self) -> Option<u64> {
        let report = receive(&mut self.0, 8)?;
        Some(u64::from_be_bytes(report.try_into().expect("8 bytes")))
    }

    /// Reads reports until one says `after`; all that come sooner say `before`.
    pub fn await_report(&mut self, before: u64, after: u64) {
        loop {
            let report = self.report().expect("the slave keeps the connection");
            if report == after {
                return;
            }
            assert_eq!(report, before);
        }
    }
}

/// A connection to a port of this machine that comes from one of its addresses: the standard library
/// leaves the choice to the system.
#[allow(unsafe_code, reason = "an address is chosen by system calls")]
fn bound_to(from: Ipv4Addr, port: u16) -> io::Result<TcpStream> {
    let checked = |returned: libc::c_int| match returned {
        -1 => Err(io::Error::last_os_error()),
        returned => Ok(returned),
    };
    let address = |ip: Ipv4Addr, port: u16| libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: port.to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from(ip).to_be() },
        sin_zero: [0; 8],
    };
    let len = size_of::<libc::sockaddr_in>() as libc::socklen_t;
    let (here, there) = (address(from, 0), address(Ipv4Addr::LOCALHOST, port));
    // SAFETY: it takes numbers, and nobody else has the descriptor that it returns.
    let socket = unsafe {
        let descriptor =
            checked(libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0))?;
        TcpStream::from_raw_fd(descriptor)
    };
    // SAFETY: the descriptor is open, and both addresses are as long as they are said to be.
    unsafe {
        checked(libc::bind(socket.as_raw_fd(), (&raw const here).cast(), len))?;
        checked(libc::connect(socket.as_raw_fd(), (&raw const there).cast(), len))?;
    }
    Ok(socket)
}

fn prepared(socket: TcpStream) -> TcpStream {
    socket.set_read_timeout(Some(PATIENCE)).expect("set");
    socket.set_nodelay(true).expect("set");
    socket
}

/// So many bytes, or none if the other has closed the connection.
fn receive(socket: &mut TcpStream, count: usize) -> Option<Vec<u8>> {
    let mut bytes = vec![0; count];
    match socket.read_exact(&mut bytes) {
        Ok(()) => Some(bytes),
        Err(error) => {
            let closed = [ErrorKind::UnexpectedEof, ErrorKind::ConnectionReset];
            assert!(closed.contains(&error.kind()), "{error}");
            None
        }
    }
}
