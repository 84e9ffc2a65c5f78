//! A network that is late, delivers in pieces, one way only, or not at all.

use crate::replication::inbox::Inbox;
use crate::replication::session::{Order, Session, SessionError};
use std::collections::VecDeque;
use std::io::Read;
use std::time::Instant;

pub(super) const NODES: usize = 3;
/// A sender with so many bytes on the way waits.
const WINDOW: usize = 16 << 10;

/// The two ends of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Primary,
    Replica,
}

impl Side {
    pub(super) fn other(self) -> Self {
        match self {
            Self::Primary => Self::Replica,
            Self::Replica => Self::Primary,
        }
    }
}

/// Bytes on the way to one end, in the order in which they were sent.
#[derive(Debug, Default)]
struct Pipe {
    bytes: VecDeque<u8>,
    /// Nothing follows.
    closed: bool,
}

/// What a node has of a connection.
struct End {
    session: Box<dyn Session>,
    inbox: Inbox,
}

/// A connection, as long as one of its ends believes in it.
pub(super) struct Connection {
    nodes: [usize; 2],
    ends: [Option<End>; 2],
    pipes: [Pipe; 2],
}

/// What came of bytes that arrived.
pub(super) enum Heard {
    Nothing,
    Order(Order),
    Ended(SessionError),
    /// The other end closed the connection.
    Closed,
}

impl Connection {
    pub(super) fn new(
        (primary, at_primary): (usize, Box<dyn Session>),
        (replica, at_replica): (usize, Box<dyn Session>),
    ) -> Self {
        let end = |session| Some(End { session, inbox: Inbox::default() });
        Self {
            nodes: [primary, replica],
            ends: [end(at_primary), end(at_replica)],
            pipes: [Pipe::default(), Pipe::default()],
        }
    }

    pub(super) fn node(&self, side: Side) -> usize {
        self.nodes[side as usize]
    }

    pub(super) fn is_alive(&self, side: Side) -> bool {
        self.ends[side as usize].is_some()
    }

    /// Whether something is on the way to `side`, be it the news that nothing follows.
    pub(super) fn brings(&self, side: Side) -> bool {
        let pipe = &self.pipes[side as usize];
        self.is_alive(side) && (pipe.closed || !pipe.bytes.is_empty())
    }

    /// Whether `side` has something to say, and room to say it.
    pub(super) fn speaks(&self, side: Side, now: Instant) -> bool {
        let pipe = &self.pipes[side.other() as usize];
        let end = self.ends[side as usize].as_ref().filter(|_| !pipe.closed);
        pipe.bytes.len() <= WINDOW && end.is_some_and(|end| end.session.is_ready(now))
    }

    pub(super) fn on_the_way(&self, side: Side) -> usize {
        self.pipes[side as usize].bytes.len()
    }

    /// Lets one end say what it has to say, `most` frames of it; whether it said anything.
    pub(super) fn speak(
        &mut self,
        side: Side,
        most: usize,
        now: Instant,
    ) -> Result<bool, SessionError> {
        let pipe = &mut self.pipes[side.other() as usize];
        let Some(end) = &mut self.ends[side as usize] else { return Ok(false) };
        let mut spoke = false;
        for _ in 0..most {
            if pipe.closed || pipe.bytes.len() > WINDOW {
                break;
            }
            let Some(sent) = end.session.poll(now)? else { break };
            pipe.bytes.extend(&sent.head);
            pipe.bytes.extend(sent.body());
            spoke = true;
        }
        Ok(spoke)
    }

    /// Lets up to `most` bytes arrive.
    pub(super) fn deliver(&mut self, side: Side, most: usize, now: Instant) -> Heard {
        let pipe = &mut self.pipes[side as usize];
        let Some(End { session, inbox }) = &mut self.ends[side as usize] else {
            return Heard::Nothing;
        };
        if pipe.bytes.is_empty() {
            return if pipe.closed { Heard::Closed } else { Heard::Nothing };
        }
        let mut piece = (&mut pipe.bytes).take(most as u64);
        loop {
            let got = inbox.fill(&mut piece).expect("memory can be read");
            if got == 0 {
                return Heard::Nothing;
            }
            match session.receive(inbox, now) {
                Ok(None) => {}
                Ok(Some(order)) => return Heard::Order(order),
                Err(error) => return Heard::Ended(error),
            }
        }
    }

    /// Ends one end; the other one is told why, where it may know.
    pub(super) fn end(&mut self, side: Side, why: Option<&SessionError>) {
        let Some(mut end) = self.ends[side as usize].take() else { return };
        end.session.leave();
        let pipe = &mut self.pipes[side.other() as usize];
        if let Some(farewell) = why.and_then(|why| end.session.farewell(why)) {
            pipe.bytes.extend(farewell);
        }
        pipe.closed = true;
        self.pipes[side as usize] = Pipe { bytes: VecDeque::new(), closed: true };
    }

    /// Ends one end without a word: the other one goes on believing in it.
    pub(super) fn vanish(&mut self, side: Side) {
        if let Some(mut end) = self.ends[side as usize].take() {
            end.session.leave();
        }
    }

    /// Loses what is on the way, and with it the connection.
    pub(super) fn cut(&mut self) {
        for pipe in &mut self.pipes {
            *pipe = Pipe { bytes: VecDeque::new(), closed: true };
        }
    }
}

/// All connections, and who can reach whom.
#[derive(Default)]
pub(super) struct Network {
    pub(super) connections: Vec<Connection>,
    /// From the first to the second nothing arrives.
    blocked: [[bool; NODES]; NODES],
}

impl Network {
    pub(super) fn block(&mut self, from: usize, to: usize, blocked: bool) {
        self.blocked[from][to] = blocked;
    }

    /// Whether anything is on the way to an end that it will reach only once links work again.
    pub(super) fn holds_up(&self) -> bool {
        let sides = [Side::Primary, Side::Replica];
        let waits = |one: &Connection, side| one.brings(side) && !self.arrives(one, side);
        self.connections.iter().any(|one| sides.iter().any(|side| waits(one, *side)))
    }

    pub(super) fn unblock_all(&mut self) {
        self.blocked = Default::default();
    }

    pub(super) fn blocked_links(&self) -> usize {
        self.blocked.iter().flatten().filter(|blocked| **blocked).count()
    }

    /// Whether a connection can be made: that takes both directions.
    pub(super) fn connects(&self, a: usize, b: usize) -> bool {
        !self.blocked[a][b] && !self.blocked[b][a]
    }

    /// Whether what is on the way to this end can arrive.
    pub(super) fn arrives(&self, connection: &Connection, side: Side) -> bool {
        !self.blocked[connection.node(side.other())][connection.node(side)]
    }

    /// The connection that a replica has to its primary now.
    pub(super) fn of_replica(&self, node: usize) -> Option<usize> {
        self.connections
            .iter()
            .position(|one| one.node(Side::Replica) == node && one.is_alive(Side::Replica))
    }

    /// A node is gone: its peers hear of it, or not.
    pub(super) fn lose(&mut self, node: usize, silently: bool) {
        for connection in &mut self.connections {
            for side in [Side::Primary, Side::Replica] {
                if connection.node(side) == node {
                    if silently { connection.vanish(side) } else { connection.end(side, None) }
                }
            }
        }
    }

    /// Forgets connections in which nobody believes any more.
    pub(super) fn sweep(&mut self) {
        self.connections.retain(|one| one.is_alive(Side::Primary) || one.is_alive(Side::Replica));
    }
}
