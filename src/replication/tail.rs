//! The end of a log that is taken over in pieces of any size.

use super::{Epoch, ReplicatedLog};
use crate::error::Result;

/// Whole records go to the log; what is not whole yet waits here for its rest.
#[derive(Debug)]
pub(crate) struct Tail {
    end: u64,
    rest: Vec<u8>,
}

impl Tail {
    /// Of a log that ends at `end`.
    pub(crate) fn at(end: u64) -> Self {
        Self { end, rest: Vec::new() }
    }

    /// Whole records are in the log up to here.
    pub(crate) fn end(&self) -> u64 {
        self.end
    }

    /// Where the next bytes belong.
    pub(crate) fn received(&self) -> u64 {
        self.end + self.rest.len() as u64
    }

    /// Takes bytes that lie at [`received`](Self::received).
    pub(crate) fn take(
        &mut self,
        log: &dyn ReplicatedLog,
        epoch: Epoch,
        bytes: &[u8],
    ) -> Result<()> {
        if self.rest.is_empty() {
            let end = log.append(self.end, epoch, bytes)?;
            let taken = (end - self.end) as usize;
            self.rest.extend_from_slice(bytes.get(taken..).unwrap_or_default());
            self.end = end;
        } else {
            self.rest.extend_from_slice(bytes);
            let end = log.append(self.end, epoch, &self.rest)?;
            self.rest.drain(..(end - self.end) as usize);
            self.end = end;
        }
        Ok(())
    }
}
