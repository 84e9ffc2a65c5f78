//! A way to a primary that counts how often it was taken.

use duralog::replication::{Connector, Stream, TcpConnector};
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

#[derive(Debug)]
pub struct Counting {
    to: TcpConnector,
    taken: AtomicUsize,
}

impl Counting {
    pub fn to(address: String) -> Self {
        Self { to: TcpConnector::new(address), taken: AtomicUsize::new(0) }
    }

    /// How often it was tried to connect.
    pub fn taken(&self) -> usize {
        self.taken.load(Ordering::SeqCst)
    }
}

impl Connector for Counting {
    fn connect(&self, limit: Duration, patience: Duration) -> io::Result<Stream> {
        self.taken.fetch_add(1, Ordering::SeqCst);
        self.to.connect(limit, patience)
    }
}
