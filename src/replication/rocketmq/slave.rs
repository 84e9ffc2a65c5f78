//! A replica of this crate that follows a RocketMQ master.

use super::{FRAME_MAX, HEAD};
use crate::replication::inbox::Inbox;
use crate::replication::session::{Order, Outgoing, Session, SessionError};
use crate::replication::tail::Tail;
use crate::replication::{Epoch, ReplicatedLog};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A connection to a RocketMQ master.
#[derive(Debug)]
pub(crate) struct SlaveSession {
    log: Arc<dyn ReplicatedLog>,
    heartbeat: Duration,
    tail: Tail,
    /// What was reported last.
    reported: Option<u64>,
    sent_at: Instant,
    /// The head of the frame whose bytes are to come.
    head: Option<(u64, usize)>,
    heard: bool,
}

impl SlaveSession {
    pub(crate) fn new(log: Arc<dyn ReplicatedLog>, heartbeat: Duration, now: Instant) -> Self {
        let tail = Tail::at(log.end());
        Self { log, heartbeat, tail, reported: None, sent_at: now, head: None, heard: false }
    }

    /// What the master is to know: what would survive here. At first, where the log ends.
    fn held(&self) -> u64 {
        self.log.durable().max(self.reported.unwrap_or(self.tail.end()))
    }

    /// Looks at where the bytes of a frame belong, before they come.
    fn check(&self, offset: u64, size: usize) -> Result<Option<Order>, SessionError> {
        if size > FRAME_MAX {
            return Err(SessionError::protocol(format!("a frame of {size} bytes")));
        }
        if !self.log.epochs().is_empty() {
            // Records of a primary of this crate are in the log: no RocketMQ master has them.
            return Err(SessionError::Diverged);
        }
        if offset == self.tail.received() {
            return Ok(None);
        }
        let is_empty = self.tail.received() == self.log.min_offset();
        if is_empty && offset > self.tail.end() && offset.is_multiple_of(self.log.segment_size()) {
            return Ok(Some(Order::Restart(offset)));
        }
        Err(SessionError::Diverged)
    }
}

impl Session for SlaveSession {
    fn receive(&mut self, inbox: &mut Inbox, _now: Instant) -> Result<Option<Order>, SessionError> {
        loop {
            let (_, size) = match self.head {
                Some(head) => head,
                None => {
                    let Some(head) = inbox.take(HEAD) else { return Ok(None) };
                    let offset = head.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes));
                    let size = head.last_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes));
                    let head = (offset, size as usize);
                    if let Some(order) = self.check(head.0, head.1)? {
                        return Ok(Some(order));
                    }
                    self.heard = true;
                    *self.head.insert(head)
                }
            };
            let Some(bytes) = inbox.take(size) else { return Ok(None) };
            self.tail.take(&*self.log, Epoch(0), bytes)?;
            self.head = None;
            self.log.confirm(self.tail.end(), Epoch(0))?;
        }
    }

    fn poll(&mut self, now: Instant) -> Result<Option<Outgoing>, SessionError> {
        let held = self.held();
        if self.reported == Some(held) && now < self.sent_at + self.heartbeat {
            return Ok(None);
        }
        self.reported = Some(held);
        self.sent_at = now;
        Ok(Some(Outgoing { head: held.to_be_bytes().to_vec(), body: None }))
    }

    fn is_ready(&self, now: Instant) -> bool {
        self.reported != Some(self.held()) || self.due().is_some_and(|due| due <= now)
    }

    fn leave(&mut self) {}

    fn due(&self) -> Option<Instant> {
        Some(self.sent_at + self.heartbeat)
    }

    fn farewell(&self, _error: &SessionError) -> Option<Vec<u8>> {
        None
    }

    /// A master says nothing before it has something to say, or for a heartbeat's time.
    fn is_introduced(&self) -> bool {
        true
    }

    fn is_streaming(&self) -> bool {
        self.heard
    }
}
