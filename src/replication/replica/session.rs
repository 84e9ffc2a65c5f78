//! A connection to the primary, as a replica sees it.

use crate::error::Error;
use crate::log::queue_starts::STARTS_MAX;
use crate::replication::feed::data_at;
use crate::replication::history::{History, Plan};
use crate::replication::inbox::Inbox;
use crate::replication::replica::groups::Groups;
use crate::replication::secret::{Secret, Side};
use crate::replication::session::{
    Change, Order, Outgoing, Session, SessionError, last_words, unexpected,
};
use crate::replication::tail::Tail;
use crate::replication::wire::{
    self, CHECKED_MAX, CONTROL_MAX, EPOCHS_MAX, FRAME_MAX, Frame, Join, Nonce, STRANGER_MAX,
};
use crate::replication::{Epoch, EpochStart, LogId, NodeId, QueueStart, ReplicatedLog};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Who a replica is.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    pub(crate) cluster: u64,
    pub(crate) node: NodeId,
    pub(crate) instance: u64,
    pub(crate) secret: Secret,
    pub(crate) heartbeat: Duration,
}

#[derive(Debug)]
enum State {
    AwaitChallenge,
    AwaitProven {
        theirs: Nonce,
    },
    AwaitWelcome {
        history: History,
    },
    /// It has to begin anew, and is told where the queues go on; of so many it is still to hear.
    AwaitQueues {
        primary: (LogId, Epoch),
        at: u64,
        queues: Vec<QueueStart>,
        left: Option<u32>,
    },
    Following(Box<Following>),
    /// The primary lost the end of its log, and asked for it.
    Lending {
        epochs: Vec<EpochStart>,
        next: u64,
        end: u64,
    },
}

/// How far the log has come in this session.
#[derive(Debug)]
struct Following {
    primary: EpochStart,
    /// The primary's log, until this one is known to be the same.
    joins: Option<LogId>,
    entered: EpochStart,
    tail: Tail,
    /// The primary has sent something that could be taken: it has found that the logs are equal so far.
    heard: bool,
    /// What the primary was told last.
    told: Option<(Epoch, u64, u64)>,
    groups: Groups,
}

/// A connection to the primary.
#[derive(Debug)]
pub(crate) struct ReplicaSession {
    log: Arc<dyn ReplicatedLog>,
    identity: Identity,
    nonce: Nonce,
    state: State,
    outbox: VecDeque<Frame<'static>>,
    sent_at: Instant,
}

impl ReplicaSession {
    pub(crate) fn new(
        log: Arc<dyn ReplicatedLog>,
        identity: Identity,
        nonce: Nonce,
        now: Instant,
    ) -> Self {
        let hello = Frame::Hello { version: wire::VERSION, nonce };
        let outbox = VecDeque::from([hello]);
        Self { log, identity, nonce, state: State::AwaitChallenge, outbox, sent_at: now }
    }

    fn max_frame(&self) -> u32 {
        match self.state {
            State::AwaitChallenge | State::AwaitProven { .. } => STRANGER_MAX,
            State::AwaitWelcome { .. } | State::AwaitQueues { .. } | State::Lending { .. } => {
                CONTROL_MAX
            }
            State::Following(_) => FRAME_MAX,
        }
    }

    fn is_known(&self) -> bool {
        !matches!(self.state, State::AwaitChallenge | State::AwaitProven { .. })
    }

    fn handle(&mut self, frame: Frame<'_>) -> Result<Option<Order>, SessionError> {
        let known = self.is_known();
        match (&mut self.state, frame) {
            (State::AwaitChallenge, Frame::Challenge { nonce }) => {
                let proof = self.identity.secret.prove(Side::Replica, &self.nonce, &nonce);
                self.outbox.push_back(Frame::Proof(proof));
                self.state = State::AwaitProven { theirs: nonce };
            }
            (State::AwaitProven { theirs }, Frame::Proven(proof)) => {
                let secret = &self.identity.secret;
                if !secret.accepts(&proof, Side::Primary, &self.nonce, theirs) {
                    return Err(SessionError::Secret);
                }
                self.join();
            }
            (State::AwaitWelcome { history }, Frame::Welcome { log, epoch, plan }) => {
                let history = history.clone();
                return self.welcome(log, epoch, plan, &history);
            }
            (
                State::AwaitQueues { primary, at, queues, left },
                Frame::Queues { left: behind, queues: more },
            ) => {
                let all = behind as usize + more.len();
                let fits = match left {
                    None => all <= STARTS_MAX,
                    Some(left) => all == *left as usize && !more.is_empty(),
                };
                if !fits {
                    return Err(SessionError::protocol("Queues of another number"));
                }
                queues.extend(more);
                *left = Some(behind);
                if behind == 0 {
                    let ((log, epoch), queues) = (*primary, std::mem::take(queues));
                    let change = Change::Restart { at: *at, queues: Some(queues.into()) };
                    return Ok(Some(Order { log: Some(log), epoch, change }));
                }
            }
            (State::AwaitWelcome { history }, Frame::Lend { from }) => {
                // What was put here without replication is not part of what the primary lost.
                let (_, end) = history.given();
                if !(history.min..=end).contains(&from) {
                    return Err(SessionError::protocol("a Lend of what was never offered"));
                }
                let epochs = std::mem::take(&mut history.epochs);
                self.state = State::Lending { epochs, next: from, end };
            }
            (State::Following(following), Frame::Data { epoch, offset, confirmed, bytes, .. }) => {
                following.take_over(&*self.log, epoch, offset, bytes)?;
                let confirmed = confirmed.min(following.tail.end());
                self.log.confirm(confirmed, following.entered.epoch)?;
                // At the latest with the next heartbeat there may be room.
                if bytes.is_empty() {
                    following.groups.try_again();
                }
                following.groups.settle(&*self.log)?;
            }
            (State::Following(following), Frame::Offsets { end, whole, left, offsets }) => {
                following.check_promise(&*self.log)?;
                if !following.groups.hear(end, whole, left, offsets) {
                    return Err(SessionError::protocol("Offsets of another number"));
                }
                following.groups.settle(&*self.log)?;
            }
            // A primary that asks others first, or takes what it lost, is alive.
            (State::AwaitWelcome { .. } | State::Lending { .. }, Frame::Ack { .. }) => {}
            (_, Frame::Refuse { code, details }) if known => {
                return Err(SessionError::from_refusal(code, details));
            }
            (_, other) => return Err(unexpected(&other)),
        }
        Ok(None)
    }

    fn join(&mut self) {
        let Identity { cluster, node, instance, .. } = self.identity;
        let mut history = History::of(&*self.log);
        let surplus = history.epochs.len().saturating_sub(EPOCHS_MAX);
        history.epochs.drain(..surplus);
        let segment_size = self.log.segment_size();
        let promised = self.log.promised();
        let said = history.clone();
        let join = Join { cluster, node, instance, segment_size, promised, history };
        self.outbox.push_back(Frame::Join(join));
        self.state = State::AwaitWelcome { history: said };
    }

    fn welcome(
        &mut self,
        log: LogId,
        primary: EpochStart,
        plan: Plan,
        history: &History,
    ) -> Result<Option<Order>, SessionError> {
        if !history.allows(plan, Some(log), self.identity.node) {
            return Err(match history.other_than(Some(log)) {
                Some(replica) => SessionError::AnotherLog { primary: log, replica },
                None => SessionError::Diverged,
            });
        }
        let now = History::of(&*self.log);
        let last = now.last_reign_in(Some(log));
        let by = self.log.promised().max(last.epoch);
        if primary.epoch < by {
            return Err(SessionError::Superseded { epoch: primary.epoch, by });
        }
        if last.epoch == primary.epoch && last.node != primary.node {
            return Err(SessionError::EpochTaken { epoch: last.epoch, node: last.node });
        }
        match plan {
            Plan::Follow(at) if at == history.end => {
                let (len, crc) = self.log.checksum(at, CHECKED_MAX)?;
                self.outbox.push_back(Frame::Begin { from: at, len, crc });
                let tail = Tail::at(at);
                let joins = Some(log);
                let entered = now.last_in(Some(log));
                let (heard, told, groups) = (false, None, Groups::default());
                self.state = State::Following(Box::new(Following {
                    primary,
                    joins,
                    entered,
                    tail,
                    heard,
                    told,
                    groups,
                }));
                Ok(None)
            }
            Plan::Follow(_) => Err(SessionError::protocol("a Welcome to another log")),
            Plan::Truncate(to) => {
                let (log, change) = (Some(log), Change::Truncate(to));
                Ok(Some(Order { log, epoch: primary.epoch, change }))
            }
            Plan::Restart(at) => {
                let (primary, queues) = ((log, primary.epoch), Vec::new());
                self.state = State::AwaitQueues { primary, at, queues, left: None };
                Ok(None)
            }
            Plan::Diverged => Err(SessionError::Diverged),
        }
    }
}

impl Following {
    /// What the primary is to know.
    fn held(&self, log: &dyn ReplicatedLog) -> (Epoch, u64, u64) {
        // The durable offset first: it must not pass the other.
        let durable = log.durable();
        // What was put without replication belongs to no primary's, whatever it is called.
        let entered = if self.entered.is_reign() { self.entered.epoch } else { Epoch(0) };
        (entered, log.end().max(durable), durable)
    }

    fn check_promise(&self, log: &dyn ReplicatedLog) -> Result<(), SessionError> {
        let promised = log.promised();
        if promised > self.primary.epoch {
            // Someone has asked for that promise to find out what is here: it must not grow any more.
            return Err(SessionError::Superseded { epoch: self.primary.epoch, by: promised });
        }
        Ok(())
    }

    /// Takes bytes of the log over, which lie at `offset` and are of `epoch`.
    fn take_over(
        &mut self,
        log: &dyn ReplicatedLog,
        epoch: EpochStart,
        offset: u64,
        bytes: &[u8],
    ) -> Result<(), SessionError> {
        self.check_promise(log)?;
        if offset != self.tail.received() || epoch.epoch > self.primary.epoch {
            return Err(SessionError::protocol("bytes of the log that do not follow"));
        }
        if let Some(id) = self.joins.take() {
            // Now that the primary has found that what is here is the beginning of what it has.
            log.follow(Some(id), self.primary.epoch)?;
            // An empty log forgets those of another one.
            self.entered = History::of(log).last_in(Some(id));
        }
        if epoch != self.entered {
            if self.tail.received() > self.tail.end() {
                return Err(SessionError::protocol("an epoch that begins inside of a record"));
            }
            log.enter_epoch(epoch)?;
            self.entered = epoch;
        }
        self.tail.take(log, epoch.epoch, bytes)?;
        self.heard = true;
        Ok(())
    }
}

impl Session for ReplicaSession {
    fn receive(&mut self, inbox: &mut Inbox, _now: Instant) -> Result<Option<Order>, SessionError> {
        while let Some(frame) = wire::next_frame(inbox, self.max_frame())? {
            if let Some(order) = self.handle(frame)? {
                return Ok(Some(order));
            }
        }
        Ok(None)
    }

    fn poll(&mut self, now: Instant) -> Result<Option<Outgoing>, SessionError> {
        if let Some(frame) = self.outbox.pop_front() {
            self.sent_at = now;
            return Ok(Some(Outgoing::frame(&frame)));
        }
        let following = match &mut self.state {
            State::Following(following) => following,
            State::Lending { epochs, next, end } if *next < *end => {
                let data = data_at(&*self.log, epochs, *next..*end, self.log.confirmed())?;
                *next += data.body().len() as u64;
                return Ok(Some(data));
            }
            _ => return Ok(None),
        };
        following.groups.settle(&*self.log)?;
        let held = following.held(&*self.log);
        if following.told.is_some_and(|(_, written, _)| held.1 < written) {
            // It is closed, and tells of nothing any more.
            return Err(Error::Closed.into());
        }
        if following.told == Some(held) && now < self.sent_at + self.identity.heartbeat {
            return Ok(None);
        }
        following.told = Some(held);
        self.sent_at = now;
        let (epoch, written, durable) = held;
        Ok(Some(Outgoing::frame(&Frame::Ack { epoch, written, durable })))
    }

    fn is_ready(&self, now: Instant) -> bool {
        let news = match &self.state {
            State::Following(following) => following.told != Some(following.held(&*self.log)),
            State::Lending { next, end, .. } => next < end,
            _ => false,
        };
        news || !self.outbox.is_empty() || self.due().is_some_and(|due| due <= now)
    }

    fn leave(&mut self) {}

    fn due(&self) -> Option<Instant> {
        match &self.state {
            State::Following(_) => Some(self.sent_at + self.identity.heartbeat),
            _ => None,
        }
    }

    fn farewell(&self, error: &SessionError) -> Option<Vec<u8>> {
        self.is_known().then(|| last_words(&self.outbox, error)).flatten()
    }

    fn is_introduced(&self) -> bool {
        self.is_known()
    }

    fn is_streaming(&self) -> bool {
        matches!(&self.state, State::Following(following) if following.heard)
    }
}
