//! Bytes from a peer that are not yet understood.

use std::io::{self, Read};

/// Room for small messages, so that many come with one call of the system.
pub(crate) const READ_AHEAD: usize = 64 << 10;

/// Bytes in the order in which they came, and room for more.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    bytes: Vec<u8>,
    /// What lies before has been taken, what lies behind `filled` is room.
    taken: usize,
    filled: usize,
    /// How long the message at the front is.
    wanted: usize,
}

impl Inbox {
    /// What is there.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.bytes.get(self.taken..self.filled).unwrap_or_default()
    }

    /// The first `len` bytes, taken out. `None` if they are not all there; then room is made for them,
    /// so a caller has checked before that `len` is not too much.
    pub(crate) fn take(&mut self, len: usize) -> Option<&[u8]> {
        if self.filled - self.taken < len {
            self.wanted = len;
            return None;
        }
        let from = self.taken;
        self.taken += len;
        self.bytes.get(from..from + len)
    }

    /// Reads what `from` has now; 0 at its end.
    pub(crate) fn fill(&mut self, from: &mut (impl Read + ?Sized)) -> io::Result<usize> {
        self.bytes.copy_within(self.taken..self.filled, 0);
        self.filled -= std::mem::take(&mut self.taken);
        let room = READ_AHEAD.max(std::mem::take(&mut self.wanted));
        if self.bytes.len() < room {
            self.bytes.resize(room, 0);
        }
        let got = from.read(self.bytes.get_mut(self.filled..).unwrap_or_default())?;
        self.filled += got;
        Ok(got)
    }

    /// How much memory it holds.
    #[cfg(test)]
    pub(crate) fn capacity(&self) -> usize {
        self.bytes.len()
    }
}
