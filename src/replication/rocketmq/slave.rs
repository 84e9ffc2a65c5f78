//! A replica of this crate that follows a RocketMQ master.

use super::{FRAME_MAX, HEAD};
use crate::replication::inbox::Inbox;
use crate::replication::session::{Change, Order, Outgoing, Session, SessionError};
use crate::replication::tail::Tail;
use crate::replication::{Epoch, ReplicatedLog};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// At least so much of its end a replica asks for again, to compare it.
const CHECKED_MIN: u64 = 4096;
/// A master that limits how much it sends in a second may have heartbeats for the rest of it.
const NOTHING_MAX: Duration = Duration::from_secs(2);

/// A connection to a RocketMQ master.
#[derive(Debug)]
pub(crate) struct SlaveSession {
    log: Arc<dyn ReplicatedLog>,
    heartbeat: Duration,
    tail: Tail,
    /// Where the log ended when this began, and up to where the master has sent the same bytes.
    known: u64,
    checked: u64,
    /// When it first had nothing to send though there is something here.
    nothing_since: Option<Instant>,
    /// What was reported last.
    reported: Option<u64>,
    sent_at: Instant,
    /// The head of the frame whose bytes are to come.
    head: Option<(u64, usize)>,
    heard: bool,
}

impl SlaveSession {
    pub(crate) fn new(log: Arc<dyn ReplicatedLog>, heartbeat: Duration, now: Instant) -> Self {
        let end = log.end();
        // Not 0, which stands for an empty log. What is reported counts as acknowledged.
        let from = end.saturating_sub(CHECKED_MIN).min(log.durable());
        let checked = from.max(log.min_offset()).max(1).min(end);
        Self {
            log,
            heartbeat,
            tail: Tail::at(end),
            known: end,
            checked,
            nothing_since: None,
            reported: None,
            sent_at: now,
            head: None,
            heard: false,
        }
    }

    /// Whether the master has yet to show that it has what is here.
    fn is_checking(&self) -> bool {
        self.checked < self.known
    }

    /// What the master is to know: what would survive here. At first, where it is to begin.
    fn held(&self) -> u64 {
        match self.reported {
            // Above its end, a master of 4.9 takes a second report for a reason to hang up.
            Some(reported) if self.is_checking() => reported,
            Some(reported) => self.log.durable().max(reported),
            None => self.checked,
        }
    }

    /// Where the next frame begins.
    fn next(&self) -> u64 {
        if self.is_checking() { self.checked } else { self.tail.received() }
    }

    /// Looks at where the bytes of a frame belong, before they come.
    fn check(&self, offset: u64, size: usize) -> Result<Option<Order>, SessionError> {
        if size > FRAME_MAX {
            return Err(SessionError::protocol(format!("a frame of {size} bytes")));
        }
        let is_empty = self.tail.received() == self.log.min_offset();
        if !self.log.epochs().is_empty() || (self.log.log_id().is_some() && !is_empty) {
            // Records of a primary of this crate are in the log: no RocketMQ master has them.
            return Err(SessionError::Diverged);
        }
        let by = self.log.promised();
        if by > Epoch(0) {
            // Someone has asked for that promise to find out what is here: it must not grow any more.
            return Err(SessionError::Superseded { epoch: Epoch(0), by });
        }
        if offset == self.next() {
            return Ok(None);
        }
        if is_empty && offset > self.tail.end() && offset.is_multiple_of(self.log.segment_size()) {
            let change = Change::Restart { at: offset, queues: None };
            return Ok(Some(Order { log: None, epoch: Epoch(0), change }));
        }
        Err(SessionError::Diverged)
    }

    /// Compares the bytes that are here already; how many they are.
    fn compare(&mut self, bytes: &[u8], now: Instant) -> Result<usize, SessionError> {
        let mut rest = bytes;
        while self.is_checking() && !rest.is_empty() {
            let max = (self.known - self.checked).min(rest.len() as u64);
            let here = self.log.read(self.checked, max)?;
            let here = here.bytes();
            if here.is_empty() || !rest.starts_with(here) {
                return Err(SessionError::Diverged);
            }
            self.checked += here.len() as u64;
            rest = rest.get(here.len()..).unwrap_or_default();
        }
        if !bytes.is_empty() {
            self.nothing_since = None;
        } else if self.is_checking() {
            // It sends no heartbeat while it has something else to send, but for one at first.
            let since = *self.nothing_since.get_or_insert(now);
            if now >= since + NOTHING_MAX {
                return Err(SessionError::Diverged);
            }
        }
        Ok(bytes.len() - rest.len())
    }
}

impl Session for SlaveSession {
    fn receive(&mut self, inbox: &mut Inbox, now: Instant) -> Result<Option<Order>, SessionError> {
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
                    *self.head.insert(head)
                }
            };
            let Some(bytes) = inbox.take(size) else { return Ok(None) };
            let known = self.compare(bytes, now)?;
            self.head = None;
            if self.is_checking() {
                continue;
            }
            self.heard = true;
            if self.log.log_id().is_some() {
                // It was to become the log of a primary of this crate, and is none: nothing says which log a
                // RocketMQ master has.
                self.log.follow(None, Epoch(0))?;
            }
            self.tail.take(&*self.log, Epoch(0), bytes.get(known..).unwrap_or_default())?;
            self.log.confirm(self.tail.end(), Epoch(0))?;
        }
    }

    fn poll(&mut self, now: Instant) -> Result<Option<Outgoing>, SessionError> {
        if !self.is_ready(now) {
            return Ok(None);
        }
        let held = self.held();
        self.reported = Some(held);
        self.sent_at = now;
        Ok(Some(Outgoing { head: held.to_be_bytes().to_vec(), body: None }))
    }

    fn is_ready(&self, now: Instant) -> bool {
        self.reported != Some(self.held()) || self.due().is_some_and(|due| due <= now)
    }

    fn leave(&mut self) {}

    fn due(&self) -> Option<Instant> {
        (!self.is_checking()).then(|| self.sent_at + self.heartbeat)
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
