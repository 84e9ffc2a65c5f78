//! What the consumers of a group share: where each queue stands, and who has which message.

use super::ConsumeFrom;
use super::in_flight::{Again, InFlight, LeaseId, Owner};
use super::received::Batch;
use super::retry::{Copies, Fate};
use crate::delivery::{Delivery, Event};
use crate::error::{Error, Result};
use crate::log::{MessageView, TimeBound};
use crate::message::format::{BROADCAST, DEAD_LETTER_TOPIC_PREFIX, RETRY_TOPIC_PREFIX};
use crate::message::{Message, RecordRef};
use crate::store::{FetchStatus, Filter, Store};
use parking_lot::{Mutex, RwLock};
use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// Entries of a queue looked at before others get their turn, where a filter lets none pass.
const SCAN: u64 = 16 * 1024;
/// Messages read before others get their turn, where a filter looks at all of them.
const READ: u64 = 256;
/// RocketMQ's `maxMessageSize`, which its producers hold plain bodies to.
const BODY_MAX: usize = 4 << 20;
/// How long a message waits that could be neither handed out nor set aside.
const PAUSE: Duration = Duration::from_secs(1);

/// What there was for a consumer.
pub(super) enum Taken {
    Batch(Batch),
    Nothing,
    /// Nothing yet, and there is more to be looked at.
    NotYet,
}

/// What all consumers of a group agree on.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Agreement {
    /// By topic.
    pub(super) subscriptions: Vec<(String, Filter)>,
    pub(super) mode: Mode,
    /// How many messages of a queue may be between the first one that is not done with and the last one
    /// that was taken.
    pub(super) max_span: usize,
}

/// How a group consumes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Mode {
    /// Any number of messages of a queue at a time; what fails goes to the retry topic.
    Concurrent,
    /// One batch of a queue at a time; what fails holds up its queue.
    Ordered,
    /// Every consumer on its own; what fails comes again to the same one.
    Broadcast { instance: String },
}

impl Mode {
    /// Under which name the offsets of a group are committed.
    pub(super) fn offsets_name(&self, group: &str) -> String {
        match self {
            Self::Broadcast { instance } => format!("{group}{BROADCAST}{instance}"),
            Self::Concurrent | Self::Ordered => group.to_owned(),
        }
    }
}

/// A consumer group while it has consumers, or messages that they have not settled.
pub(super) struct Group {
    pub(super) store: Store,
    pub(super) delivery: Arc<Delivery>,
    pub(super) name: String,
    pub(super) agreement: Agreement,
    /// Under which name its offsets are committed.
    offsets_name: String,
    /// The retry topic included.
    topics: Vec<(String, Filter)>,
    queues: RwLock<Found>,
    /// Counts what makes it worth looking again for messages, but for new ones.
    changes: AtomicU64,
    turn: AtomicUsize,
    members: Mutex<Members>,
    /// All its consumers are gone and their leases over: it commits nothing any more, and whoever comes begins
    /// another one.
    retired: AtomicBool,
}

/// The consumers of a group.
#[derive(Default)]
struct Members {
    /// With the length of their leases.
    present: Vec<(Owner, Duration)>,
    last: u64,
}

#[derive(Default)]
struct Found {
    queues: Arc<[Arc<Queue>]>,
    /// How many queues the store had when they were looked for.
    of: usize,
}

/// A queue as a group sees it.
pub(super) struct Queue {
    topic: usize,
    id: i32,
    state: Mutex<InFlight>,
    /// Locked after the state, by whoever needs both.
    copies: Mutex<Copies>,
    /// Where new messages would be taken from; `u64::MAX` while none may be taken. Changes with the state.
    next: AtomicU64,
}

/// The groups of a store.
#[derive(Default)]
pub(crate) struct Groups {
    /// By the name of their offsets.
    live: Mutex<HashMap<String, Weak<Group>>>,
}

/// How a consumer takes messages.
#[derive(Debug, Clone)]
pub(super) struct Terms {
    pub(super) batch_max: usize,
    pub(super) consume_timeout: Duration,
    pub(super) max_reconsume_times: u32,
}

/// The topic of a group's retries.
pub(super) fn retry_topic(group: &str) -> String {
    format!("{RETRY_TOPIC_PREFIX}{group}")
}

/// The topic of a group's dead letters.
pub(super) fn dead_letter_topic(group: &str) -> String {
    format!("{DEAD_LETTER_TOPIC_PREFIX}{group}")
}

impl Groups {
    /// The group, as the consumers that it has agree on it, and another consumer of it, which takes messages
    /// on those terms.
    pub(super) fn join(
        store: &Store,
        name: &str,
        agreement: Agreement,
        from: ConsumeFrom,
        terms: &Terms,
    ) -> Result<(Arc<Group>, Owner)> {
        let delivery = Delivery::of(store)?;
        let offsets_name = agreement.mode.offsets_name(name);
        let mut live = delivery.groups.live.lock();
        live.retain(|_, group| group.upgrade().is_some_and(|group| !group.is_over()));
        for group in live.values().filter_map(Weak::upgrade).filter(|group| group.name == name) {
            agreement.check(&group.agreement)?;
        }
        if let Some(group) = live.get(&offsets_name).and_then(Weak::upgrade)
            && let Some(owner) = group.enter(terms)
        {
            return Ok((group, owner));
        }
        let group = Group::new(store, delivery.clone(), name, offsets_name.clone(), agreement);
        group.start(from)?;
        let group = Arc::new(group);
        let owner = group.enter(terms).ok_or(Error::Closed)?;
        live.insert(offsets_name, Arc::downgrade(&group));
        Ok((group, owner))
    }
}

impl Agreement {
    /// Refuses what another consumer of the group does not share.
    fn check(&self, other: &Self) -> Result<()> {
        let refused = |field, value: String| {
            let allowed = "that of the group's other consumers";
            Err(Error::Config { field, value, allowed })
        };
        if self.mode != other.mode {
            // Those that get everything are each for itself.
            let everyone = |mode: &Mode| matches!(mode, Mode::Broadcast { .. });
            let is_apart = everyone(&self.mode) && everyone(&other.mode);
            return if is_apart { Ok(()) } else { refused("mode", format!("{:?}", self.mode)) };
        }
        if self.subscriptions != other.subscriptions {
            return refused("subscription", format!("{:?}", self.subscriptions));
        }
        if self.max_span != other.max_span {
            return refused("max_span", self.max_span.to_string());
        }
        Ok(())
    }
}

impl Group {
    fn new(
        store: &Store,
        delivery: Arc<Delivery>,
        name: &str,
        offsets_name: String,
        agreement: Agreement,
    ) -> Self {
        let mut subscriptions = agreement.subscriptions.clone();
        // Where nothing is retried by way of it, dead letters that are sent back come through it.
        subscriptions.push((retry_topic(name), Filter::any()));
        Self {
            store: store.clone(),
            delivery,
            name: name.to_owned(),
            offsets_name,
            topics: subscriptions,
            agreement,
            queues: RwLock::default(),
            changes: AtomicU64::new(0),
            turn: AtomicUsize::new(0),
            members: Mutex::default(),
            retired: AtomicBool::new(false),
        }
    }

    /// Under which name its offsets are committed, and of which topics.
    pub(super) fn reads(&self) -> (&str, &[(String, Filter)]) {
        (&self.offsets_name, &self.topics)
    }

    /// The longest body to be made of a compressed one, in bytes: what this store takes, and what producers
    /// of RocketMQ's make.
    pub(super) fn body_max(&self) -> usize {
        self.store.config().log.max_message_size.max(BODY_MAX)
    }

    pub(super) fn is_ordered(&self) -> bool {
        self.agreement.mode == Mode::Ordered
    }

    /// Another consumer, unless all that there were are gone.
    fn enter(&self, terms: &Terms) -> Option<Owner> {
        let mut members = self.members.lock();
        if self.is_retired() {
            return None;
        }
        members.last += 1;
        let owner = Owner(members.last);
        members.present.push((owner, terms.consume_timeout));
        drop(members);
        // Those that sleep go by its leases, too.
        self.changed();
        Some(owner)
    }

    fn is_retired(&self) -> bool {
        self.retired.load(SeqCst)
    }

    /// Whether others may begin: it commits nothing any more.
    fn is_over(&self) -> bool {
        // Whoever retires it waits for the last commit.
        let _members = self.members.lock();
        self.is_retired()
    }

    /// The shortest lease of any consumer.
    fn shortest_lease(&self) -> Duration {
        let leases = self.members.lock().present.iter().map(|(_, lease)| *lease).min();
        leases.unwrap_or(Duration::from_secs(24 * 3600))
    }

    pub(super) fn now(&self) -> Instant {
        self.store.now()
    }

    /// Finds out where a group begins that is new, durably.
    fn start(&self, from: ConsumeFrom) -> Result<()> {
        let recovery = self.store.recovery();
        // A group that is not known may be one whose offset was damaged, or is on another node.
        let may_be_lost = recovery.damaged_offsets > 0
            || recovery.offsets_not_imported.is_some()
            || self.store.has_changed_hands();
        let from = if may_be_lost { ConsumeFrom::First } else { from };
        let place = |topic: &str, id| {
            let offset = self.offset_from(topic, id, from)?;
            match self.commit(topic, id, offset) {
                // It begins there in any case.
                Err(Error::DiskFull { .. }) if from == ConsumeFrom::First => Ok(()),
                committed => committed,
            }
        };
        // What comes through it to one that gets everything was sent back for all of them, and waits for those
        // that have come to anything, whatever they want now. Before the others: it is new until one is placed.
        if matches!(self.agreement.mode, Mode::Broadcast { .. })
            && let Some((topic, _)) = self.topics.last()
            && self.store.max_offset(topic, 0).is_some_and(|end| end > 0)
            && !self.is_known()
        {
            place(topic, 0)?;
        }
        // Its own retries are nothing that it could want to pass over.
        for (topic, _) in &self.agreement.subscriptions {
            let ids = self.store.queue_ids(topic);
            let known =
                ids.iter().chain(&[0]).find_map(|id| Some((*id, self.committed(topic, *id)?)));
            if let Some((id, next)) = known {
                // Queues that it does not know have come since. On a replica it goes on by itself from here:
                // where the primary's consumers go on from now on is not where these are.
                if self.store.is_replica() {
                    self.commit(topic, id, next)?;
                }
                continue;
            }
            // Where there is no queue yet, whatever comes is new to the group.
            let ids = if ids.is_empty() { vec![0] } else { ids };
            for id in ids {
                place(topic, id)?;
            }
        }
        // If a power cut could take it back, the next start might begin behind what was put meanwhile. Also where
        // it was known: whoever noted it may have given up waiting.
        self.store.flush_offsets()
    }

    /// Whether it has come to anything, of whatever topic.
    fn is_known(&self) -> bool {
        self.store.committed_offsets().iter().any(|known| known.group == self.offsets_name)
    }

    fn offset_from(&self, topic: &str, id: i32, from: ConsumeFrom) -> Result<u64> {
        Ok(match from {
            ConsumeFrom::First => self.store.min_offset(topic, id).unwrap_or(0),
            ConsumeFrom::Last => self.store.max_offset(topic, id).unwrap_or(0),
            ConsumeFrom::Timestamp(when) => {
                self.store.offset_by_time(topic, id, when, TimeBound::Lower)?.unwrap_or(0)
            }
        })
    }

    fn committed(&self, topic: &str, id: i32) -> Option<u64> {
        self.store.committed_offset(&self.offsets_name, topic, id)
    }

    fn commit(&self, topic: &str, id: i32, next: u64) -> Result<()> {
        self.store.commit_offset(&self.offsets_name, topic, id, next)
    }

    fn topic(&self, queue: &Queue) -> Option<(&str, &Filter)> {
        self.topics.get(queue.topic).map(|(name, filter)| (name.as_str(), filter))
    }

    /// The queues, with those that have appeared.
    fn queues(&self) -> Arc<[Arc<Queue>]> {
        let of = self.store.queue_count();
        {
            let found = self.queues.read();
            if found.of == of {
                return found.queues.clone();
            }
        }
        let mut found = self.queues.write();
        let known: HashSet<_> = found.queues.iter().map(|queue| (queue.topic, queue.id)).collect();
        let mut queues = found.queues.to_vec();
        for (number, (topic, _)) in self.topics.iter().enumerate() {
            for id in self.store.queue_ids(topic) {
                if !known.contains(&(number, id)) {
                    let floor = self.committed(topic, id).unwrap_or(0);
                    let state = InFlight::new(floor, self.is_ordered());
                    let (state, next) = (Mutex::new(state), AtomicU64::new(floor));
                    let copies = Mutex::default();
                    queues.push(Arc::new(Queue { topic: number, id, state, copies, next }));
                }
            }
        }
        *found = Found { queues: queues.into(), of };
        found.queues.clone()
    }

    /// Waits until there may be something to take, at most until `deadline`; whether there may.
    pub(super) fn wait(&self, seen: u64, deadline: Option<Instant>) -> Result<bool> {
        if deadline.is_some_and(|deadline| deadline <= self.now()) {
            return Ok(false);
        }
        let of = self.store.queue_count();
        let queues = self.queues();
        let due = queues.iter().filter_map(|queue| queue.state.lock().due()).min();
        // A lease that begins while nobody looks ends no sooner.
        let lease = self.now() + self.shortest_lease();
        let until = [due, deadline, Some(lease)].into_iter().flatten().min();
        let ready = self.store.wait_dispatched(until, || {
            let new = |queue: &Arc<Queue>| {
                let next = queue.next.load(SeqCst);
                self.topic(queue)
                    .is_some_and(|(topic, _)| self.store.dispatched_end(topic, queue.id) > next)
            };
            let changed = self.changes() != seen || self.store.queue_count() != of;
            (changed || !self.store.is_open() || queues.iter().any(new)).then_some(())
        });
        self.check_open()?;
        let look_again =
            until.is_some_and(|until| deadline.is_none_or(|deadline| until < deadline));
        Ok(ready.is_some() || look_again)
    }

    /// To be told to [`wait`](Self::wait), from before it was looked for messages.
    pub(super) fn changes(&self) -> u64 {
        self.changes.load(SeqCst)
    }

    /// Tells whoever asked to hear of what happens.
    pub(super) fn tell(&self, event: &Event<'_>) {
        if self.delivery.observers.some() {
            self.delivery.observers.tell(event);
        }
    }

    /// Refuses what would count for nothing: the store is closed.
    pub(super) fn check_open(&self) -> Result<()> {
        if self.store.is_open() { Ok(()) } else { Err(Error::Closed) }
    }

    /// Lets everyone look again who waits: somebody may get what was not to be had before.
    pub(super) fn changed(&self) {
        self.changes.fetch_add(1, SeqCst);
        self.store.wake_readers();
    }

    /// Messages of one queue for `owner`, if there are any; the queues take turns.
    pub(super) fn take(
        self: &Arc<Self>,
        owner: Owner,
        terms: &Arc<Terms>,
        max: usize,
    ) -> Result<Taken> {
        self.store.catch_up();
        let queues = self.queues();
        let first = self.turn.fetch_add(1, SeqCst);
        let (mut failed, mut unfinished) = (None, false);
        for number in 0..queues.len() {
            let Some(queue) = queues.get(first.wrapping_add(number) % queues.len()) else {
                continue;
            };
            match self.take_from(queue, owner, terms, max) {
                Ok(Taken::Batch(batch)) => return Ok(Taken::Batch(batch)),
                Ok(Taken::Nothing) => {}
                Ok(Taken::NotYet) => unfinished = true,
                // One queue's damage does not hold up the others.
                Err(error) => {
                    failed.get_or_insert(error);
                }
            }
        }
        match failed {
            _ if unfinished => Ok(Taken::NotYet),
            Some(error) => Err(error),
            None => Ok(Taken::Nothing),
        }
    }

    fn take_from(
        self: &Arc<Self>,
        queue: &Arc<Queue>,
        owner: Owner,
        terms: &Arc<Terms>,
        max: usize,
    ) -> Result<Taken> {
        let now = self.now();
        let until = now + terms.consume_timeout;
        let mut state = queue.state.lock();
        state.expire(now);
        let floor = state.floor();
        let mut hopeless = Vec::new();
        let mut taken = Ok(Taken::Nothing);
        while matches!(taken, Ok(Taken::Nothing)) && hopeless.is_empty() {
            let Some((lease, again)) = state.lend_again(max, now, owner, until) else { break };
            taken = self.fetch_again(queue, &mut state, (lease, &again), terms, &mut hopeless);
        }
        if let (Ok(Taken::Nothing), true) = (&taken, hopeless.is_empty()) {
            taken = self.fetch_new(queue, &mut state, owner, terms, max);
        }
        let noted = self.note(queue, &state, floor);
        self.publish(queue, &state);
        // What is not handed out goes back, which takes the lock; a put may take its time, and a stranger's
        // code may do anything.
        drop(state);
        let buried = hopeless.into_iter().map(Hopeless::bury).fold(Ok(()), Result::and);
        noted.and(buried).and(taken)
    }

    /// Messages that nobody had yet.
    fn fetch_new(
        self: &Arc<Self>,
        queue: &Arc<Queue>,
        state: &mut InFlight,
        owner: Owner,
        terms: &Arc<Terms>,
        max: usize,
    ) -> Result<Taken> {
        let until = self.now() + terms.consume_timeout;
        let Some((topic, filter)) = self.topic(queue) else { return Ok(Taken::Nothing) };
        let mut looked = false;
        loop {
            let (room, next) = (state.room(self.agreement.max_span), state.next());
            if room == 0 || self.store.dispatched_end(topic, queue.id) <= next {
                return Ok(Taken::Nothing);
            }
            // Others get their turn, and whoever waits may be out of time.
            if looked {
                return Ok(Taken::NotYet);
            }
            // Nothing in between has to be remembered while nothing is lent.
            let scan = if state.floor() == next { SCAN.max(room as u64) } else { room as u64 };
            let scan = if filter.reads_all() { scan.min(READ) } else { scan };
            let offsets = next..next.saturating_add(scan);
            let max = max.min(room);
            let found = self.store.get_before(topic, queue.id, offsets, max, filter)?;
            match found.status {
                FetchStatus::OffsetTooSmall | FetchStatus::QueueEmpty => {
                    state.skip_to(found.next_offset);
                }
                FetchStatus::Found | FetchStatus::NoMatch => {
                    let lent = found.messages.iter().map(MessageView::queue_offset);
                    let lease = state.lend(lent, found.next_offset, owner, until);
                    if !found.messages.is_empty() {
                        let messages = found.messages.into_iter().map(|view| (view, 0));
                        let lent = self.lent(queue, lease, terms);
                        return Ok(Taken::Batch(Batch::new(lent, messages)));
                    }
                    looked = true;
                }
                _ => {}
            }
            if state.next() == next {
                return Ok(Taken::Nothing);
            }
        }
    }

    /// Commits the floor if it is not `before` any more.
    fn note(&self, queue: &Queue, state: &InFlight, before: u64) -> Result<()> {
        match self.topic(queue) {
            // Whoever is still at work for its last consumer has no say in where the next ones are.
            _ if self.is_retired() => Ok(()),
            // Under the lock: a lower floor must not be written after a higher one.
            Some((topic, _)) if state.floor() != before => {
                self.commit(topic, queue.id, state.floor())
            }
            _ => Ok(()),
        }
    }

    /// The messages that went back, but for those that are not kept any more and those that have failed
    /// too often.
    fn fetch_again(
        self: &Arc<Self>,
        queue: &Arc<Queue>,
        state: &mut InFlight,
        (lease, again): (LeaseId, &[Again]),
        terms: &Arc<Terms>,
        hopeless: &mut Vec<Hopeless>,
    ) -> Result<Taken> {
        let Some((topic, _)) = self.topic(queue) else { return Ok(Taken::Nothing) };
        let lent = self.lent(queue, lease, terms);
        let (mut messages, mut failed) = (Vec::with_capacity(again.len()), None);
        for Again { offset, failures } in again.iter().copied() {
            let any = Filter::any();
            let found = self.store.get_before(topic, queue.id, offset..offset + 1, 1, &any);
            match found.map(|found| found.messages.into_iter().next()) {
                Ok(Some(view)) => {
                    let times = self.retried(&view.record()).saturating_add(failures);
                    if times <= terms.max_reconsume_times {
                        messages.push((view, failures));
                    } else {
                        hopeless.push(Hopeless { lent: lent.clone(), view });
                        if self.is_ordered() {
                            // Those behind it come once it is out of the way.
                            state.give_back_behind(offset, lease, self.now());
                            break;
                        }
                    }
                }
                // It has expired.
                Ok(None) => drop(state.settle(offset, lease)),
                Err(error) => {
                    state.give_back(offset, lease, self.now() + PAUSE, false);
                    failed.get_or_insert(error);
                    // In order, all behind it went back with it.
                    if self.is_ordered() {
                        break;
                    }
                }
            }
        }
        match failed {
            Some(error) if messages.is_empty() => Err(error),
            _ if messages.is_empty() => Ok(Taken::Nothing),
            _ => Ok(Taken::Batch(Batch::new(lent, messages))),
        }
    }

    /// How often the group has set the message aside before: what another group says of it means nothing.
    pub(super) fn retried(&self, record: &RecordRef<'_>) -> u32 {
        let own = self.topics.last().is_some_and(|(topic, _)| topic == record.topic());
        if own { u32::try_from(record.reconsume_times()).unwrap_or(0) } else { 0 }
    }

    fn lent(self: &Arc<Self>, queue: &Arc<Queue>, lease: LeaseId, terms: &Arc<Terms>) -> Arc<Lent> {
        let (group, queue, terms) = (self.clone(), queue.clone(), terms.clone());
        let since = self.now();
        Arc::new(Lent { group, queue, terms, lease, since })
    }

    /// Says what may be taken from the queue to those who wait for it.
    fn publish(&self, queue: &Queue, state: &InFlight) {
        let next = if state.room(self.agreement.max_span) > 0 { state.next() } else { u64::MAX };
        if queue.next.swap(next, SeqCst) == u64::MAX && next != u64::MAX {
            self.changed();
        }
    }

    /// A consumer goes, and what it has goes back at once.
    pub(super) fn leave(&self, owner: Owner) {
        let mut members = self.members.lock();
        members.present.retain(|(one, _)| *one != owner);
        let (now, queues) = (self.now(), self.queues.read().queues.clone());
        for queue in queues.iter() {
            queue.state.lock().release(owner, now);
        }
        // Nobody can settle anything by then: what was settled before counts, and is committed.
        if members.present.is_empty() {
            self.retired.store(true, SeqCst);
            // Whoever saw that it was not commits first. Queues that are found from now on see it.
            let queues = self.queues.read().queues.clone();
            queues.iter().for_each(|queue| drop(queue.state.lock()));
        }
        drop(members);
        self.changed();
    }
}

/// A message that has failed too often.
struct Hopeless {
    lent: Arc<Lent>,
    view: MessageView,
}

impl Hopeless {
    /// Makes it a dead letter. If that fails it comes again, and is tried again: later where it may be one
    /// already.
    fn bury(self) -> Result<()> {
        let Self { lent, view } = self;
        let (group, offset) = (&lent.group, view.queue_offset());
        let letter = group.dead_letter(&view.record());
        if let Err(error) = lent.put_copy(offset, Fate::Dead, letter) {
            let pause = if error.is_unknown() || matches!(error, Error::NotOk(_)) {
                lent.terms.consume_timeout.max(PAUSE)
            } else {
                PAUSE
            };
            lent.give_back(offset, group.now() + pause, false);
            return Err(error);
        }
        group.tell(&Event::DeadLetter { group: &group.name, message: &view });
        lent.settle_one(offset).map(|_| ())
    }
}

/// What the messages of a batch have in common.
pub(super) struct Lent {
    pub(super) group: Arc<Group>,
    queue: Arc<Queue>,
    pub(super) terms: Arc<Terms>,
    lease: LeaseId,
    pub(super) since: Instant,
}

impl Lent {
    /// Whether the message has not been given to somebody else.
    pub(super) fn holds(&self, offset: u64) -> bool {
        self.queue.state.lock().is_lent(offset, self.lease)
    }

    /// Notes that messages are done with and commits how far the group has come; whether each was still
    /// lent.
    pub(super) fn settle(&self, offsets: impl Iterator<Item = u64>) -> Result<Vec<bool>> {
        let Self { group, queue, lease, .. } = self;
        group.check_open()?;
        let mut state = queue.state.lock();
        let (floor, due) = (state.floor(), state.due());
        let mut copies = queue.copies.lock();
        let settle = |offset| {
            let is_settled = state.settle(offset, *lease);
            if is_settled {
                copies.forget(offset);
            }
            is_settled
        };
        let settled = offsets.map(settle).collect();
        drop(copies);
        group.publish(queue, &state);
        // In order, what went back waited for the last of these.
        if state.due().is_some_and(|now| due.is_none_or(|before| now < before)) {
            group.changed();
        }
        group.note(queue, &state, floor)?;
        Ok(settled)
    }

    /// The same for one message.
    pub(super) fn settle_one(&self, offset: u64) -> Result<bool> {
        Ok(self.settle(std::iter::once(offset))?.contains(&true))
    }

    /// Stores what takes a message's place, as it was decided, and waits until it is safe: the message may be
    /// settled then. If it is not, and somebody decides the same again, that waits for this copy.
    pub(super) fn put_copy(&self, offset: u64, fate: Fate, copy: Message) -> Result<()> {
        let Self { group, queue, .. } = self;
        let laid = queue.copies.lock().find(offset, fate);
        let ticket = match laid {
            Some(ticket) => ticket,
            None => {
                let ticket = group.lay_copy(copy)?;
                // Before it is waited for: somebody else may be given the message meanwhile.
                let floor = queue.state.lock().floor();
                queue.copies.lock().keep(offset, fate, ticket.again(), floor);
                ticket
            }
        };
        group.store.wait_until_safe(&ticket).map(drop)
    }

    /// Gives a message back, to come again from `when` on.
    pub(super) fn give_back(&self, offset: u64, when: Instant, failed: bool) -> bool {
        let given = self.queue.state.lock().give_back(offset, self.lease, when, failed);
        if given {
            self.group.changed();
        }
        given
    }
}
