//! Finding out from the replicas what this node lost itself, before it takes puts again.

use super::bells::Bells;
use super::greeting::Greeting;
use crate::replication::group::SessionId;
use crate::replication::history::{History, Plan};
use crate::replication::inbox::Inbox;
use crate::replication::secret::Secret;
use crate::replication::session::{Order, Outgoing, Session, SessionError, last_words, unexpected};
use crate::replication::tail::Tail;
use crate::replication::wire::{self, CONTROL_MAX, FRAME_MAX, Frame, Join, Nonce};
use crate::replication::{Epoch, NodeId, NodeOptions, Refusal, ReplicatedLog};
use parking_lot::{Condvar, Mutex};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The newest epoch that a primary gave a node, and where what it gave ends: the greatest has the most.
type Standing = (Epoch, u64);

/// What is asked, and what has been heard.
pub(crate) struct Inquiry {
    log: Arc<dyn ReplicatedLog>,
    /// The newest epoch that a primary gave this node, even if others are not told of it.
    newest: Epoch,
    cluster: u64,
    secret: Secret,
    heartbeat: Duration,
    /// So many replicas have to be heard.
    needed: usize,
    bells: Arc<Bells>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    heard: BTreeMap<NodeId, (SessionId, Standing)>,
    /// Whoever has more than this node, and gives it.
    lender: Option<SessionId>,
    outcome: Option<Result<(), SessionError>>,
}

impl Inquiry {
    pub(crate) fn new(
        (log, newest): (Arc<dyn ReplicatedLog>, Epoch),
        NodeOptions { cluster, secret, heartbeat_interval, .. }: NodeOptions,
        needed: usize,
        bells: Arc<Bells>,
    ) -> Arc<Self> {
        let (state, changed) = (Mutex::default(), Condvar::new());
        let heartbeat = heartbeat_interval;
        Arc::new(Self { log, newest, cluster, secret, heartbeat, needed, bells, state, changed })
    }

    /// Waits for the outcome, at most `patience`; otherwise who was not heard.
    pub(crate) fn wait(&self, patience: Duration) -> Result<Result<(), SessionError>, Refusal> {
        let mut state = self.state.lock();
        self.changed.wait_while_for(&mut state, |state| state.outcome.is_none(), patience);
        let (available, required) = (state.heard.len(), self.needed);
        state.outcome.clone().ok_or(Refusal::NotEnoughReplicas { available, required })
    }

    fn standing(&self, own: &History) -> Standing {
        let (epoch, end) = own.given();
        (epoch.max(self.newest), end)
    }

    /// Hears what a replica holds.
    fn hear(&self, session: SessionId, join: &Join) -> Result<(), SessionError> {
        let (primary, replica) = (self.log.segment_size(), join.segment_size);
        if primary != replica {
            return Err(SessionError::SegmentSize { primary, replica });
        }
        let own = History::of(&*self.log);
        if let Some((replica, primary)) = join.history.other_than(own.id).zip(own.id) {
            // What it holds, or has promised, says nothing about this log, of which it has nothing.
            return Err(SessionError::AnotherLog { primary, replica });
        }
        let (epoch, standing) = (self.newest, join.history.given_in(own.id));
        let by = join.promised.max(standing.0);
        if by > epoch && join.history.is_of_another(own.id) {
            return Err(SessionError::Superseded { epoch, by });
        }
        let mut state = self.state.lock();
        let told = if by > epoch {
            Err(SessionError::Superseded { epoch, by })
        } else if standing > self.standing(&own)
            && join.history.plan_for(&own, join.node) != Plan::Follow(own.end)
        {
            // Also what was put here without replication since would be in its way.
            Err(SessionError::Diverged)
        } else {
            state.heard.insert(join.node, (session, standing));
            self.decide(&mut state);
            Ok(())
        };
        if let Err(error) = &told {
            // Someone else is the primary now, or should be: nothing is to be decided here.
            state.outcome.get_or_insert(Err(error.clone()));
            self.changed.notify_all();
        }
        told
    }

    /// Chooses a lender when enough have been heard, or ends if nobody has more.
    fn decide(&self, state: &mut State) {
        if state.lender.is_some() || state.outcome.is_some() || state.heard.len() < self.needed {
            return;
        }
        match state.heard.values().max_by_key(|(_, standing)| *standing) {
            Some((session, standing)) if *standing > self.standing(&History::of(&*self.log)) => {
                state.lender = Some(*session);
                self.bells.ring_all();
            }
            _ => {
                state.outcome = Some(Ok(()));
                self.changed.notify_all();
            }
        }
    }

    fn is_lender(&self, session: SessionId) -> bool {
        self.state.lock().lender == Some(session)
    }

    /// The lender has given all it has, or is gone.
    fn settle(&self, session: SessionId, gone: bool) {
        let mut state = self.state.lock();
        if gone {
            // It says what it holds when it comes back.
            state.heard.retain(|_, (other, _)| *other != session);
        }
        if state.lender == Some(session) {
            state.lender = None;
            self.decide(&mut state);
        }
    }
}

#[derive(Debug)]
enum Stage {
    Greeting(Greeting),
    Waiting { end: u64 },
    Borrowing { tail: Tail, until: u64 },
    Done,
}

/// A replica that is asked.
pub(crate) struct InquirySession {
    inquiry: Arc<Inquiry>,
    id: SessionId,
    stage: Stage,
    outbox: VecDeque<Frame<'static>>,
    sent_at: Instant,
}

impl InquirySession {
    pub(crate) fn new(inquiry: Arc<Inquiry>, id: SessionId, nonce: Nonce, now: Instant) -> Self {
        let stage = Stage::Greeting(Greeting::new(nonce));
        Self { inquiry, id, stage, outbox: VecDeque::new(), sent_at: now }
    }

    fn max_frame(&self) -> u32 {
        match &self.stage {
            Stage::Greeting(greeting) => greeting.max_frame(),
            Stage::Borrowing { .. } => FRAME_MAX,
            Stage::Waiting { .. } | Stage::Done => CONTROL_MAX,
        }
    }

    /// Asks for what was lost, or gives a sign of life.
    fn next(&mut self, now: Instant) -> Option<Frame<'static>> {
        let log = &self.inquiry.log;
        match &self.stage {
            Stage::Waiting { end } if self.inquiry.is_lender(self.id) => {
                let (from, until) = (log.end(), *end);
                self.stage = Stage::Borrowing { tail: Tail::at(from), until };
                Some(Frame::Lend { from })
            }
            _ if self.due().is_some_and(|due| due <= now) => {
                // The durable offset first: it must not pass the other.
                let durable = log.durable();
                Some(Frame::Ack { epoch: Epoch(0), written: log.end().max(durable), durable })
            }
            _ => None,
        }
    }

    fn is_known(&self) -> bool {
        !matches!(&self.stage, Stage::Greeting(greeting) if !greeting.is_known())
    }

    fn handle(&mut self, frame: Frame<'_>) -> Result<(), SessionError> {
        let inquiry = &self.inquiry;
        match (&mut self.stage, frame) {
            (Stage::Greeting(greeting), frame) => {
                let (cluster, secret) = (inquiry.cluster, &inquiry.secret);
                if let Some(join) = greeting.hear(frame, cluster, secret, &mut self.outbox)? {
                    let (_, end) = join.history.given();
                    self.stage = Stage::Waiting { end };
                    inquiry.hear(self.id, &join)?;
                }
            }
            (Stage::Borrowing { tail, until }, Frame::Data { epoch, offset, bytes, .. }) => {
                let log = &*inquiry.log;
                if offset != tail.received() || tail.received() + bytes.len() as u64 > *until {
                    return Err(SessionError::protocol("bytes of the log that do not follow"));
                }
                tail.take(log, epoch.epoch, bytes)?;
                if tail.end() == *until {
                    self.stage = Stage::Done;
                    inquiry.settle(self.id, false);
                }
            }
            (_, Frame::Refuse { code, details }) => {
                return Err(SessionError::from_refusal(code, details));
            }
            (_, other) => return Err(unexpected(&other)),
        }
        Ok(())
    }
}

impl Session for InquirySession {
    fn receive(&mut self, inbox: &mut Inbox, _now: Instant) -> Result<Option<Order>, SessionError> {
        while let Some(frame) = wire::next_frame(inbox, self.max_frame())? {
            self.handle(frame)?;
        }
        Ok(None)
    }

    fn poll(&mut self, now: Instant) -> Result<Option<Outgoing>, SessionError> {
        let frame = self.outbox.pop_front().or_else(|| self.next(now));
        if frame.is_some() {
            self.sent_at = now;
        }
        Ok(frame.map(|frame| Outgoing::frame(&frame)))
    }

    fn is_ready(&self, now: Instant) -> bool {
        let chosen = matches!(self.stage, Stage::Waiting { .. }) && self.inquiry.is_lender(self.id);
        chosen || self.due().is_some_and(|due| due <= now)
    }

    fn leave(&mut self) {
        if !matches!(self.stage, Stage::Done) {
            self.inquiry.settle(self.id, true);
        }
    }

    fn due(&self) -> Option<Instant> {
        match &self.stage {
            _ if !self.outbox.is_empty() => Some(self.sent_at),
            Stage::Greeting(_) => None,
            _ => Some(self.sent_at + self.inquiry.heartbeat),
        }
    }

    fn farewell(&self, error: &SessionError) -> Option<Vec<u8>> {
        self.is_known().then(|| last_words(&self.outbox, error)).flatten()
    }

    fn is_introduced(&self) -> bool {
        !matches!(self.stage, Stage::Greeting(_))
    }

    fn is_streaming(&self) -> bool {
        matches!(self.stage, Stage::Borrowing { .. })
    }
}

impl Drop for InquirySession {
    fn drop(&mut self) {
        self.leave();
    }
}
