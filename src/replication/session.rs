//! What a connection between two nodes is, whatever they speak, and how it ends.
//!
//! A session knows no sockets, threads or clocks: it is given what came and the time, and says what is to
//! be sent. Threads drive it over a stream; a simulation drives many, in any order, without one.

use super::inbox::Inbox;
use super::wire::{Frame, WireError};
use super::{Epoch, LogId, LogSlice, NodeId, QueueStart, Refusal, ReplicatedLog};
use crate::error::Error;
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Instant;

/// One end of a connection.
pub(crate) trait Session: Send {
    /// Takes what it understands out of `inbox`. An order ends the session.
    fn receive(&mut self, inbox: &mut Inbox, now: Instant) -> Result<Option<Order>, SessionError>;

    /// What is to be sent now.
    fn poll(&mut self, now: Instant) -> Result<Option<Outgoing>, SessionError>;

    /// Whether there is something to send, as far as can be told without saying it.
    fn is_ready(&self, now: Instant) -> bool;

    /// The session is over.
    fn leave(&mut self);

    /// When there may be something to send though nothing happens.
    fn due(&self) -> Option<Instant>;

    /// What the peer is told when the session ends like this, if it may know.
    fn farewell(&self, error: &SessionError) -> Option<Vec<u8>>;

    /// Whether the greeting is over, for which the peer has little time.
    fn is_introduced(&self) -> bool;

    /// Whether the log goes from one to the other.
    fn is_streaming(&self) -> bool;

    /// The replica at the other end, once it was accepted.
    fn node(&self) -> Option<NodeId> {
        None
    }
}

/// Bytes to be sent: the second part straight from the log.
#[derive(Debug)]
pub(crate) struct Outgoing {
    pub(crate) head: Vec<u8>,
    pub(crate) body: Option<LogSlice>,
}

impl Outgoing {
    pub(crate) fn frame(frame: &Frame<'_>) -> Self {
        Self { head: frame.head(), body: None }
    }

    pub(crate) fn body(&self) -> &[u8] {
        self.body.as_ref().map_or(&[], LogSlice::bytes)
    }
}

/// What a replica has to do to its log before it can follow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Order {
    /// Which log the primary has that gives it, and its epoch; none of a RocketMQ master.
    pub(crate) log: Option<LogId>,
    pub(crate) epoch: Epoch,
    pub(crate) change: Change,
}

/// A change of a log, which is opened again then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    Truncate(u64),
    /// With where the queues go on, if that is known.
    Restart {
        at: u64,
        queues: Option<Arc<[QueueStart]>>,
    },
}

impl Order {
    /// Ends the log; the next open carries out the rest.
    pub(crate) fn give(&self, log: &dyn ReplicatedLog) -> Result<(), SessionError> {
        let (epoch, by) = (self.epoch, log.promised());
        if by > epoch {
            // Someone has asked for that promise to find out what is here.
            return Err(SessionError::Superseded { epoch, by });
        }
        let follow = || self.log.map_or(Ok(()), |id| log.follow(Some(id), epoch));
        match follow() {
            Err(Error::Refused(Refusal::AnotherLog)) => {
                self.carry_out(log)?;
                // Its epochs bind nobody in the one that takes its place.
                follow()?;
            }
            followed => {
                followed?;
                self.carry_out(log)?;
            }
        }
        Ok(())
    }

    fn carry_out(&self, log: &dyn ReplicatedLog) -> Result<(), Error> {
        match &self.change {
            Change::Truncate(to) => log.truncate(*to),
            Change::Restart { at, queues } => {
                if let Some(queues) = queues {
                    log.prepare_restart(*at, queues)?;
                }
                log.restart(*at)
            }
        }
    }
}

/// Why a connection to another node ended. What is stored is not touched by any of it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum SessionError {
    /// The peer closed it, or could not be reached.
    Connection {
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// Nothing was heard of the peer for `housekeeping_interval`, or it did not introduce itself in time.
    Silent,
    /// The peer sent what is no message of this protocol: another program, or another version of it.
    Protocol {
        /// What was wrong.
        what: String,
    },
    /// The peer speaks another version of the protocol.
    Version {
        /// Its version.
        theirs: u32,
    },
    /// The peer does not know the secret.
    Secret,
    /// The peer belongs to another cluster.
    Cluster {
        /// Its cluster.
        theirs: u64,
    },
    /// The logs have segments of different sizes.
    SegmentSize {
        /// The primary's, in bytes.
        primary: u64,
        /// The replica's, in bytes.
        replica: u64,
    },
    /// Another replica with the same id is connected, or it is the primary's own.
    DuplicateNode {
        /// The id.
        node: NodeId,
    },
    /// The replica holds records of another log than the primary's: it was pointed at another cluster, or
    /// the primary's directory was emptied. It keeps what it has, unless it began that log itself and knows
    /// of nothing in it that was confirmed or put without replication. Point it at a primary of its own log; to
    /// give up what it holds instead, empty its directory, and fence it with the newest term before it
    /// follows.
    AnotherLog {
        /// The primary's log.
        primary: LogId,
        /// The replica's.
        replica: LogId,
    },
    /// The logs hold different records, and no epoch in common says up to where they agree. To begin
    /// anew, empty the replica's directory, and fence it with the newest term before it follows.
    Diverged,
    /// The primary's epoch is over: a newer one has begun, or was promised.
    Superseded {
        /// The primary's epoch.
        epoch: Epoch,
        /// The newer one.
        by: Epoch,
    },
    /// The primary's epoch was another node's before: two were given the same.
    EpochTaken {
        /// The epoch.
        epoch: Epoch,
        /// The other node.
        node: NodeId,
    },
    /// This node serves as many connections as it can.
    Crowded,
    /// The log could not be read or written, or did not take what came.
    Log(Error),
    /// This node ended it: it closes, was fenced, or the same replica has connected anew.
    Stopped,
}

/// The codes of [`Frame::Refuse`].
const VERSION: u32 = 1;
const CLUSTER: u32 = 2;
const SEGMENT_SIZE: u32 = 3;
const DUPLICATE: u32 = 4;
const DIVERGED: u32 = 5;
const SUPERSEDED: u32 = 6;
const TAKEN: u32 = 7;
const ANOTHER_LOG: u32 = 8;

impl SessionError {
    pub(crate) fn protocol(what: impl Into<String>) -> Self {
        Self::Protocol { what: what.into() }
    }

    /// What the peer is told, if it may know.
    pub(crate) fn refusal(&self) -> Option<Frame<'static>> {
        let (code, details) = match self {
            Self::Version { .. } => (VERSION, [super::wire::VERSION.into(), 0]),
            Self::Cluster { .. } => (CLUSTER, [0, 0]),
            Self::SegmentSize { primary, replica } => (SEGMENT_SIZE, [*primary, *replica]),
            Self::DuplicateNode { node } => (DUPLICATE, [node.0, 0]),
            Self::AnotherLog { primary, replica } => {
                (ANOTHER_LOG, [primary, replica].map(|id| LogId::number(Some(*id))))
            }
            Self::Diverged => (DIVERGED, [0, 0]),
            Self::Superseded { epoch, by } => (SUPERSEDED, [epoch.0, by.0]),
            Self::EpochTaken { epoch, node } => (TAKEN, [epoch.0, node.0]),
            _ => return None,
        };
        Some(Frame::Refuse { code, details })
    }

    /// What a refusal says.
    pub(crate) fn from_refusal(code: u32, [first, second]: [u64; 2]) -> Self {
        match code {
            VERSION => Self::Version { theirs: first as u32 },
            CLUSTER => Self::Cluster { theirs: first },
            SEGMENT_SIZE => Self::SegmentSize { primary: first, replica: second },
            DUPLICATE => Self::DuplicateNode { node: NodeId(first) },
            DIVERGED => Self::Diverged,
            SUPERSEDED => Self::Superseded { epoch: Epoch(first), by: Epoch(second) },
            TAKEN => Self::EpochTaken { epoch: Epoch(first), node: NodeId(second) },
            ANOTHER_LOG => match (LogId::new(first), LogId::new(second)) {
                (Some(primary), Some(replica)) => Self::AnotherLog { primary, replica },
                _ => Self::protocol("a refusal of a log without an id"),
            },
            other => Self::protocol(format!("a refusal with the unknown code {other}")),
        }
    }

    /// A number per kind: what keeps happening is told once.
    pub(crate) fn kind(&self) -> u8 {
        match self {
            Self::Connection { .. } => 0,
            Self::Silent => 1,
            Self::Protocol { .. } => 2,
            Self::Version { .. } => 3,
            Self::Secret => 4,
            Self::Cluster { .. } => 5,
            Self::SegmentSize { .. } => 6,
            Self::DuplicateNode { .. } => 7,
            Self::Diverged => 8,
            Self::Superseded { .. } => 9,
            Self::EpochTaken { .. } => 10,
            Self::Log(_) => 11,
            Self::Stopped => 12,
            Self::Crowded => 13,
            Self::AnotherLog { .. } => 14,
        }
    }
}

impl From<io::Error> for SessionError {
    fn from(source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Self::Silent,
            _ => Self::Connection { source: Arc::new(source) },
        }
    }
}

impl From<WireError> for SessionError {
    fn from(error: WireError) -> Self {
        Self::protocol(error.to_string())
    }
}

impl From<Error> for SessionError {
    fn from(error: Error) -> Self {
        Self::Log(error)
    }
}

impl fmt::Display for SessionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connection { source } => write!(f, "there is no connection, or it has ended: {source}"),
            Self::Silent => f.write_str("nothing was heard of the peer for too long"),
            Self::Protocol { what } => write!(f, "the peer sent {what}"),
            Self::Version { theirs } => {
                write!(f, "the peer speaks version {theirs} of the protocol")
            }
            Self::Secret => f.write_str("the peer does not know the secret"),
            Self::Cluster { .. } => f.write_str("the peer belongs to another cluster"),
            Self::SegmentSize { primary, replica } => write!(
                f,
                "the primary's segments have {primary} bytes, the replica's {replica}; give the \
                 replica the same `segment_size` and an empty directory"
            ),
            Self::DuplicateNode { node } => {
                write!(f, "the id {} is the primary's, or of a replica that is connected already", node.0)
            }
            Self::AnotherLog { primary, replica } => write!(
                f,
                "the replica holds records of the log {replica}, but the primary's is {primary}: one of \
                 another cluster, or its directory was emptied; point the replica at a primary of its own \
                 log, or, to give up what it holds, empty its directory to begin anew, and fence it with \
                 the newest term before it follows"
            ),
            Self::Diverged => f.write_str(
                "the logs hold different records and have no epoch in common; if it is the right \
                 primary, empty the replica's directory to begin anew, and fence it with the newest \
                 term before it follows",
            ),
            Self::Superseded { epoch, by } => {
                write!(f, "epoch {} is over, {} has begun or was promised", epoch.0, by.0)
            }
            Self::EpochTaken { epoch, node } => write!(
                f,
                "epoch {} is node {}'s: two primaries were given the same",
                epoch.0, node.0
            ),
            Self::Crowded => f.write_str("there are too many connections"),
            Self::Log(error) => write!(f, "the log does not go on: {error}"),
            Self::Stopped => f.write_str("this node ended it: it closes, was fenced or connected to anew"),
        }
    }
}

impl std::error::Error for SessionError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Connection { source } => Some(&**source),
            Self::Log(error) => Some(error),
            _ => None,
        }
    }
}

/// What a peer that may know is told of the end, behind what it is still to hear: what comes before is
/// why it believes it.
pub(crate) fn last_words(
    outbox: &VecDeque<Frame<'static>>,
    error: &SessionError,
) -> Option<Vec<u8>> {
    let refusal = error.refusal()?;
    Some(outbox.iter().chain([&refusal]).flat_map(Frame::head).collect())
}

/// The error for a frame that has no place here.
pub(crate) fn unexpected(frame: &Frame<'_>) -> SessionError {
    SessionError::protocol(format!("a {} out of turn", frame.name()))
}

#[cfg(all(test, feature = "sim"))]
mod tests {
    use super::*;
    use crate::config::StoreConfig;
    use crate::disk::SimDisk;
    use crate::environment::Environment;
    use crate::replication::replica::ReplicaReplicator;
    use crate::store::Store;

    #[test]
    fn an_order_is_not_carried_out_after_the_epoch_of_whoever_gave_it() {
        let replicator = Arc::new(ReplicaReplicator::default());
        let config = StoreConfig::new("/store").segment_size(4096);
        let environment = Environment::on(SimDisk::new(1).shared()).stepped();
        let store = Store::open_replicated(config, environment, replicator.clone());
        let store = store.expect("it opens");
        let log = replicator.log().expect("it has begun");
        log.promise(Epoch(7)).expect("nothing is promised");
        let order = |epoch| Order { log: None, epoch: Epoch(epoch), change: Change::Truncate(0) };
        let answer = order(6).give(&**log);
        let (epoch, by) = (Epoch(6), Epoch(7));
        assert_eq!(
            format!("{answer:?}"),
            format!("{:?}", Err::<(), _>(SessionError::Superseded { epoch, by }))
        );
        assert!(store.health().latched.is_none());
        order(7).give(&**log).expect("whoever reigns may");
        assert!(store.health().latched.is_some(), "the log ends with that");
    }
}
