//! A connection of a replica, as its primary sees it.

use crate::error::Error;
use crate::replication::feed::data_at;
use crate::replication::group::{Group, SessionId};
use crate::replication::history::{History, Plan, epoch_at};
use crate::replication::inbox::Inbox;
use crate::replication::options::{Ack, NodeOptions, PrimaryOptions};
use crate::replication::primary::bells::Bells;
use crate::replication::primary::greeting::Greeting;
use crate::replication::primary::groups::Groups;
use crate::replication::secret::Secret;
use crate::replication::session::{Order, Outgoing, Session, SessionError, last_words, unexpected};
use crate::replication::wire::{self, CHECKED_MAX, Frame, Join, Nonce, QUEUES_MAX, STRANGER_MAX};
use crate::replication::{
    Epoch, EpochStart, GroupStandings, LogId, NodeId, QueueStart, ReplicatedLog,
};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// How long a replica may wait to hear what is confirmed, if no records follow.
const CONFIRM_DELAY: Duration = Duration::from_millis(5);

/// What all sessions of a primary share.
#[derive(Debug)]
pub(crate) struct Hub {
    pub(crate) log: Arc<dyn ReplicatedLog>,
    pub(crate) group: Group,
    /// Which log it is.
    pub(crate) log_id: LogId,
    /// The primary's own epoch.
    pub(crate) epoch: EpochStart,
    /// Those of its log, its own the last.
    pub(crate) epochs: Vec<EpochStart>,
    pub(crate) cluster: u64,
    pub(crate) secret: Secret,
    pub(crate) heartbeat: Duration,
    /// Bytes a second that a replica is sent at most.
    pub(crate) rate: Option<NonZeroU64>,
    pub(crate) bells: Arc<Bells>,
    /// Replicas alone make something confirmed: it need not be durable here.
    lazy: bool,
    /// Everything before is confirmed, and everyone may know.
    published: AtomicU64,
    /// A newer epoch of which a replica told; 0 without one.
    superseded: AtomicU64,
    /// Where the queues go on at an offset, once for all sessions that tell of it.
    starts: Mutex<Option<(u64, Weak<[QueueStart]>)>>,
    /// How far consumer groups have come, once for all sessions.
    standings: Mutex<Option<GroupStandings>>,
}

impl Hub {
    pub(crate) fn new(
        log: Arc<dyn ReplicatedLog>,
        group: Group,
        log_id: LogId,
        epoch: EpochStart,
        options: &PrimaryOptions,
        lazy: bool,
    ) -> Self {
        let NodeOptions { cluster, secret, heartbeat_interval, .. } = options.node.clone();
        let epochs = History::of(&*log).epochs;
        let (superseded, published) = (AtomicU64::new(0), AtomicU64::new(group.confirmed()));
        Self {
            log,
            group,
            log_id,
            epoch,
            epochs,
            cluster,
            secret,
            heartbeat: heartbeat_interval,
            rate: options.max_transfer_rate,
            bells: Arc::default(),
            // Puts that wait for nobody are no safer on the replicas than here: what a power cut takes here
            // is taken back there, and nobody has read it.
            lazy: lazy && options.ack == Ack::Sync,
            published,
            superseded,
            starts: Mutex::default(),
            standings: Mutex::default(),
        }
    }

    /// Everything before is confirmed.
    pub(crate) fn confirmed(&self) -> u64 {
        self.published.load(Ordering::SeqCst)
    }

    /// Confirms what enough replicas hold, and what is durable here, too, unless puts do not wait for
    /// that: this node, when it comes back after a power cut, must not lack what someone has read.
    pub(crate) fn publish(&self) -> Result<(), Error> {
        let held = self.group.confirmed();
        let confirmed = if self.lazy { held } else { held.min(self.log.durable()) };
        if self.confirmed() >= confirmed {
            return Ok(());
        }
        // Before anyone is told: if it fails, the next one tries again.
        self.log.confirm(confirmed, self.epoch.epoch)?;
        if self.published.fetch_max(confirmed, Ordering::SeqCst) < confirmed {
            // Readers of every replica wait for it, whoever's ack it was, or this node's own sync.
            self.bells.ring_all();
        }
        Ok(())
    }

    /// How long a replica that was `told` so much, and has all records before `next`, may wait to hear
    /// more.
    fn rest(&self, (epoch, confirmed): (Epoch, u64), next: u64) -> Duration {
        if epoch != epoch_at(&self.epochs, next).epoch {
            // Nothing that it holds counts before it has entered this primary's epoch.
            Duration::ZERO
        } else if self.confirmed() > confirmed {
            CONFIRM_DELAY
        } else {
            self.heartbeat
        }
    }

    fn history(&self) -> History {
        let (min, end) = (self.log.min_offset(), self.log.end());
        let (id, epochs) = (Some(self.log_id), self.epochs.clone());
        History { id, epochs, min, end, confirmed: self.confirmed() }
    }

    fn queue_starts(&self, at: u64) -> Result<Arc<[QueueStart]>, Error> {
        let mut starts = self.starts.lock();
        let known = starts.as_ref().filter(|(known, _)| *known == at);
        if let Some(known) = known.and_then(|(_, queues)| queues.upgrade()) {
            return Ok(known);
        }
        let queues: Arc<[QueueStart]> = self.log.queue_starts(at)?.into();
        *starts = Some((at, Arc::downgrade(&queues)));
        Ok(queues)
    }

    pub(super) fn standings(&self) -> Result<GroupStandings, Error> {
        let mut standings = self.standings.lock();
        match &*standings {
            Some(known) if known.moves == self.log.group_moves() => Ok(known.clone()),
            _ => Ok(standings.insert(self.log.group_standings()?).clone()),
        }
    }

    /// The newer epoch that ended this one, if there is one.
    pub(crate) fn superseded(&self) -> Option<Epoch> {
        let by = self.superseded.load(Ordering::Relaxed);
        (by > 0).then_some(Epoch(by))
    }

    /// Looks for an epoch that ends this one, or was given to two.
    fn check_epochs(&self, join: &Join) -> Result<(), SessionError> {
        if join.history.is_of_another(Some(self.log_id)) && join.promised > self.epoch.epoch {
            // Perhaps to whoever chooses the primaries of the other log.
            let (epoch, by) = (self.epoch.epoch, join.promised);
            return Err(SessionError::Superseded { epoch, by });
        }
        let last = join.history.last_reign_in(Some(self.log_id));
        self.check_epoch(join.promised.max(last.epoch))?;
        if last.epoch == self.epoch.epoch && last.node != self.epoch.node {
            return Err(SessionError::EpochTaken { epoch: last.epoch, node: last.node });
        }
        Ok(())
    }

    fn check_epoch(&self, theirs: Epoch) -> Result<(), SessionError> {
        if theirs <= self.epoch.epoch {
            return Ok(());
        }
        self.superseded.fetch_max(theirs.0, Ordering::Relaxed);
        Err(SessionError::Superseded { epoch: self.epoch.epoch, by: theirs })
    }
}

#[derive(Debug)]
enum State {
    Greeting(Greeting),
    /// It is `told` that the replica holds the same before `at`: the bytes show it otherwise.
    AwaitBegin {
        node: NodeId,
        at: u64,
        told: bool,
    },
    /// What the replica was told last is `told`: which epoch it is in, and what is confirmed.
    Streaming {
        node: NodeId,
        next: u64,
        told: Option<(Epoch, u64)>,
        acked: Acked,
        groups: Groups,
    },
    /// The replica has to begin anew, and is told where the queues go on.
    Telling {
        queues: Arc<[QueueStart]>,
        next: usize,
    },
    /// The replica has something to do first, and comes back.
    Dismissed,
}

/// What a replica said last that it holds, and whether it has come to the primary's own epoch.
#[derive(Debug)]
struct Acked {
    in_epoch: bool,
    written: u64,
    durable: u64,
}

impl Acked {
    /// A replica whose log loses something ends the session, and says what it holds in the next one.
    fn takes_back(&self, before: &Self) -> bool {
        (before.in_epoch && !self.in_epoch)
            || self.written < before.written
            || self.durable < before.durable
    }
}

/// A connection of a replica.
#[derive(Debug)]
pub(crate) struct PrimarySession {
    hub: Arc<Hub>,
    id: SessionId,
    state: State,
    outbox: VecDeque<Frame<'static>>,
    sent_at: Instant,
    /// When the next records may be sent, by the rate.
    paced_until: Instant,
    /// Consumer groups were what it spoke of last.
    spoke_of_groups: bool,
}

impl PrimarySession {
    pub(crate) fn new(hub: Arc<Hub>, id: SessionId, nonce: Nonce, now: Instant) -> Self {
        let (state, outbox) = (State::Greeting(Greeting::new(nonce)), VecDeque::new());
        let (sent_at, paced_until) = (now, now);
        Self { hub, id, state, outbox, sent_at, paced_until, spoke_of_groups: false }
    }

    fn is_known(&self) -> bool {
        !matches!(&self.state, State::Greeting(greeting) if !greeting.is_known())
    }

    fn max_frame(&self) -> u32 {
        match &self.state {
            State::Greeting(greeting) => greeting.max_frame(),
            _ => STRANGER_MAX,
        }
    }

    fn handle(&mut self, frame: Frame<'_>) -> Result<(), SessionError> {
        match (&mut self.state, frame) {
            (State::Greeting(greeting), frame) => {
                let Hub { cluster, secret, .. } = &*self.hub;
                if let Some(join) = greeting.hear(frame, *cluster, secret, &mut self.outbox)? {
                    self.join(&join)?;
                }
            }
            (State::AwaitBegin { node, at, told }, Frame::Begin { from, len, crc })
                if from == *at && len <= CHECKED_MAX =>
            {
                let (node, next, told) = (*node, *at, *told);
                let is_equal = self.hub.log.checksum(next, len)? == (len, crc);
                if !is_equal && (!told || self.holds(next, len)) {
                    return Err(SessionError::Diverged);
                }
                let acked = Acked { in_epoch: false, written: next, durable: 0 };
                let groups = Groups::new(self.sent_at);
                self.state = State::Streaming { node, next, told: None, acked, groups };
            }
            (
                State::Streaming { node, next, acked, .. },
                Frame::Ack { epoch, written, durable },
            ) => {
                let hub = &self.hub;
                let in_epoch = epoch == hub.epoch.epoch;
                let is_sent = written <= *next && (!in_epoch || hub.epoch.start <= *next);
                if !is_sent || durable > written || epoch > hub.epoch.epoch {
                    return Err(SessionError::protocol("an ack of what was never sent"));
                }
                let said = Acked { in_epoch, written, durable };
                if said.takes_back(acked) {
                    return Err(SessionError::protocol("an ack that takes back another one"));
                }
                *acked = said;
                let epoch = in_epoch.then_some(hub.epoch.start);
                hub.group.ack(*node, self.id, (written, durable), epoch);
                hub.publish()?;
            }
            (_, Frame::Refuse { code, details }) => {
                let error = SessionError::from_refusal(code, details);
                if let SessionError::Superseded { by, .. } = error
                    && by.next() > by
                {
                    self.hub.check_epoch(by)?;
                }
                return Err(error);
            }
            (_, other) => return Err(unexpected(&other)),
        }
        Ok(())
    }

    /// Whether the bytes of a checksum are still kept here.
    fn holds(&self, end: u64, len: u64) -> bool {
        end.checked_sub(len).is_some_and(|from| from >= self.hub.log.min_offset())
    }

    fn join(&mut self, join: &Join) -> Result<(), SessionError> {
        let hub = &self.hub;
        let own = hub.history();
        let plan = own.plan_for(&join.history, join.node);
        if let Some(replica) = join.history.other_than(Some(hub.log_id))
            && plan == Plan::Diverged
        {
            // Before all else: a newer epoch of another log does not end one of this.
            return Err(SessionError::AnotherLog { primary: hub.log_id, replica });
        }
        hub.check_epochs(join)?;
        if join.node == hub.epoch.node {
            return Err(SessionError::DuplicateNode { node: join.node });
        }
        let (primary, replica) = (hub.log.segment_size(), join.segment_size);
        if primary != replica {
            return Err(SessionError::SegmentSize { primary, replica });
        }
        self.state = match plan {
            Plan::Follow(at) => {
                hub.group.join(join.node, join.instance, self.id)?;
                let is_told = epoch_at(&own.epochs, at.saturating_sub(1)).epoch > Epoch(0);
                let told = is_told || join.history.is_copy_of(&own);
                State::AwaitBegin { node: join.node, at, told }
            }
            Plan::Truncate(_) => State::Dismissed,
            Plan::Restart(at) => State::Telling { queues: hub.queue_starts(at)?, next: 0 },
            Plan::Diverged => return Err(SessionError::Diverged),
        };
        self.outbox.push_back(Frame::Welcome { log: hub.log_id, epoch: hub.epoch, plan });
        Ok(())
    }

    /// Where the next queues go on. One frame at least, so that the replica knows that there are no more.
    fn next_queues(&mut self) -> Option<Frame<'static>> {
        let State::Telling { queues, next } = &mut self.state else { return None };
        let rest = queues.get(*next..).unwrap_or_default();
        let (these, later) = rest.split_at_checked(QUEUES_MAX).unwrap_or((rest, &[]));
        let frame = Frame::Queues { left: later.len() as u32, queues: these.to_vec() };
        *next += these.len();
        if later.is_empty() {
            self.state = State::Dismissed;
        }
        Some(frame)
    }

    /// How far consumer groups have come, if that is to be said now.
    fn next_offsets(&mut self, now: Instant) -> Result<Option<Frame<'static>>, SessionError> {
        let State::Streaming { groups, .. } = &mut self.state else { return Ok(None) };
        Ok(groups.next(&self.hub, now)?)
    }

    /// The next records, or word of what is confirmed, or a sign of life.
    fn stream(&mut self, now: Instant) -> Result<Option<Outgoing>, SessionError> {
        let State::Streaming { next, told, .. } = &mut self.state else { return Ok(None) };
        let hub = &self.hub;
        let (offset, confirmed) = (*next, hub.confirmed());
        // By the rate, word of what is confirmed goes at any time, records do not.
        let end = if now < self.paced_until { offset } else { hub.log.end() };
        if offset == end
            && let Some(told) = *told
            && now < self.sent_at + hub.rest(told, offset)
        {
            return Ok(None);
        }
        let data = data_at(&*hub.log, &hub.epochs, offset..end, confirmed)?;
        let sent = data.body().len() as u64;
        if let Some(rate) = hub.rate.filter(|_| sent > 0) {
            let rate = rate.get().min(u32::MAX.into()) as u32;
            self.paced_until = now + Duration::from_secs(sent) / rate;
        }
        *next += sent;
        *told = Some((epoch_at(&hub.epochs, offset).epoch, confirmed));
        self.sent_at = now;
        Ok(Some(data))
    }
}

impl Session for PrimarySession {
    fn receive(&mut self, inbox: &mut Inbox, _now: Instant) -> Result<Option<Order>, SessionError> {
        while let Some(frame) = wire::next_frame(inbox, self.max_frame())? {
            self.handle(frame)?;
        }
        Ok(None)
    }

    fn poll(&mut self, now: Instant) -> Result<Option<Outgoing>, SessionError> {
        if let Some(frame) = self.outbox.pop_front().or_else(|| self.next_queues()) {
            return Ok(Some(Outgoing::frame(&frame)));
        }
        if let State::Streaming { node, .. } = &self.state
            && !self.hub.group.is_current(*node, self.id)
        {
            return Err(SessionError::Stopped);
        }
        // Records do not wait for all that is to be said of groups.
        let records_first = std::mem::take(&mut self.spoke_of_groups);
        if records_first && let Some(records) = self.stream(now)? {
            return Ok(Some(records));
        }
        if let Some(frame) = self.next_offsets(now)? {
            self.spoke_of_groups = true;
            return Ok(Some(Outgoing::frame(&frame)));
        }
        if records_first { Ok(None) } else { self.stream(now) }
    }

    fn is_ready(&self, now: Instant) -> bool {
        let more = match &self.state {
            State::Streaming { next, .. } => now >= self.paced_until && *next < self.hub.log.end(),
            _ => false,
        };
        more || self.due().is_some_and(|due| due <= now)
    }

    fn leave(&mut self) {
        if let Some(node) = self.node() {
            self.hub.group.leave(node, self.id);
        }
    }

    fn due(&self) -> Option<Instant> {
        match &self.state {
            _ if !self.outbox.is_empty() => Some(self.sent_at),
            State::Streaming { told: Some(told), next, groups, .. } => {
                let word = self.sent_at + self.hub.rest(*told, *next);
                let records = (*next < self.hub.log.end()).then_some(self.paced_until);
                [Some(word), records, Some(groups.due(self.sent_at))].into_iter().flatten().min()
            }
            State::Streaming { told: None, .. } | State::Telling { .. } => Some(self.sent_at),
            _ => None,
        }
    }

    fn farewell(&self, error: &SessionError) -> Option<Vec<u8>> {
        self.is_known().then(|| last_words(&self.outbox, error)).flatten()
    }

    fn is_introduced(&self) -> bool {
        // Word of many queues may take longer than a greeting.
        self.is_streaming() || matches!(self.state, State::Telling { .. })
    }

    fn is_streaming(&self) -> bool {
        matches!(self.state, State::Streaming { .. })
    }

    fn node(&self) -> Option<NodeId> {
        match self.state {
            State::AwaitBegin { node, .. } | State::Streaming { node, .. } => Some(node),
            _ => None,
        }
    }
}

impl Drop for PrimarySession {
    fn drop(&mut self) {
        self.leave();
    }
}
