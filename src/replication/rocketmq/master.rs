//! A RocketMQ slave that follows a primary of this crate.

use super::{BATCH_MAX, REPORT};
use crate::error::Error;
use crate::replication::group::{Machine, SessionId};
use crate::replication::inbox::Inbox;
use crate::replication::primary::Hub;
use crate::replication::session::{Order, Outgoing, Session, SessionError};
use crate::replication::{NodeId, Refusal};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

/// RocketMQ slaves have no ids: they get one per connection that no node of ours can have by accident.
const NODE_BIT: u64 = 1 << 63;

/// A connection of a RocketMQ slave.
#[derive(Debug)]
pub(crate) struct MasterSession {
    hub: Arc<Hub>,
    id: SessionId,
    machine: Machine,
    /// What is to be sent next, once the slave has said where it wants to begin.
    next: Option<u64>,
    greeted: bool,
    sent_at: Instant,
}

impl MasterSession {
    /// Of a slave at the address `peer`.
    pub(crate) fn new(hub: Arc<Hub>, id: SessionId, peer: &str, now: Instant) -> Self {
        Self { hub, id, machine: machine(peer), next: None, greeted: false, sent_at: now }
    }

    fn node(&self) -> NodeId {
        NodeId(NODE_BIT | self.id)
    }

    /// Where a slave begins that says it holds `reported`.
    fn begin(&mut self, reported: u64) -> Result<(), SessionError> {
        let log = &self.hub.log;
        let (min, end, size) = (log.min_offset(), log.end(), log.segment_size());
        let at = match reported {
            // It holds nothing: RocketMQ starts it at the last file, or it would not be in sync for
            // long.
            0 => end / size.max(1) * size,
            at if at < min || at > end => {
                return Err(Error::Refused(Refusal::OutOfPlace { end, at }).into());
            }
            at => at,
        };
        self.hub.group.join_on(self.machine, self.node(), self.id, self.id)?;
        self.next = Some(at);
        // It says no more before it is sent something, or for a heartbeat's time.
        if reported > 0 { self.report(at, reported) } else { Ok(()) }
    }

    fn report(&self, next: u64, reported: u64) -> Result<(), SessionError> {
        if reported > next {
            return Err(SessionError::protocol("an ack of what was never sent"));
        }
        let hub = &self.hub;
        // It answers from memory: nothing is known to be durable there.
        hub.group.ack_in_memory(self.node(), self.id, reported);
        hub.publish()?;
        Ok(())
    }
}

/// Where a slave is: it may come back while its old connection is still taken to be alive, and nothing but
/// its address tells that what is held by both is held once.
fn machine(peer: &str) -> Machine {
    let ip = peer.parse().map(|address: SocketAddr| address.ip()).or_else(|_| peer.parse());
    // A listener for both kinds of addresses has another word for the old kind.
    ip.map_or(Machine::Unknown, |ip| Machine::Address(ip.to_canonical()))
}

impl Session for MasterSession {
    fn receive(&mut self, inbox: &mut Inbox, _now: Instant) -> Result<Option<Order>, SessionError> {
        while let Some(report) = inbox.take(REPORT).and_then(|bytes| bytes.first_chunk()) {
            // A negative one means nothing, to RocketMQ as well.
            let Ok(reported) = u64::try_from(i64::from_be_bytes(*report)) else { continue };
            match self.next {
                None => self.begin(reported)?,
                Some(next) => self.report(next, reported)?,
            }
        }
        Ok(None)
    }

    fn poll(&mut self, now: Instant) -> Result<Option<Outgoing>, SessionError> {
        let Some(next) = self.next else { return Ok(None) };
        let log = &self.hub.log;
        let body = if next < log.end() {
            let slice = log.read(next, BATCH_MAX)?;
            if slice.bytes().is_empty() {
                let end = log.min_offset();
                return Err(Error::Refused(Refusal::OutOfPlace { end, at: next }).into());
            }
            Some(slice)
        } else if self.greeted && now < self.sent_at + self.hub.heartbeat {
            return Ok(None);
        } else {
            None
        };
        let len = body.as_ref().map_or(0, |slice| slice.bytes().len());
        let mut head = Vec::with_capacity(super::HEAD);
        head.extend_from_slice(&next.to_be_bytes());
        head.extend_from_slice(&(len as u32).to_be_bytes());
        self.next = Some(next + len as u64);
        self.greeted = true;
        self.sent_at = now;
        Ok(Some(Outgoing { head, body }))
    }

    fn is_ready(&self, now: Instant) -> bool {
        let more = self.next.is_some_and(|next| next < self.hub.log.end());
        more || self.due().is_some_and(|due| due <= now)
    }

    fn leave(&mut self) {
        self.hub.group.forget(self.node());
    }

    fn due(&self) -> Option<Instant> {
        let rest = if self.greeted { self.hub.heartbeat } else { std::time::Duration::ZERO };
        self.next.map(|_| self.sent_at + rest)
    }

    fn farewell(&self, _error: &SessionError) -> Option<Vec<u8>> {
        None
    }

    fn is_introduced(&self) -> bool {
        self.next.is_some()
    }

    fn is_streaming(&self) -> bool {
        self.next.is_some()
    }
}

impl Drop for MasterSession {
    fn drop(&mut self) {
        self.leave();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slave_is_where_its_address_says_whatever_its_port() {
        let first = machine("10.0.0.1:1000");
        assert!(matches!(first, Machine::Address(_)));
        for same in ["10.0.0.1:1001", "[::ffff:10.0.0.1]:1002", "10.0.0.1"] {
            assert_eq!(machine(same), first, "{same}");
        }
        for other in ["10.0.0.2:1000", "[2001:db8::1]:1000", "[2001:db8::2]:1000"] {
            assert_ne!(machine(other), first, "{other}");
        }
        assert_ne!(machine("[2001:db8::1]:1000"), machine("[2001:db8::2]:1000"));
        assert_eq!(machine("a slave"), machine("another slave"));
    }
}
