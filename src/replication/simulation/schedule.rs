//! What happens, one event after the other, and how it all comes to rest.

use super::checker::{GROUP, TOPIC};
use super::network::{Connection, Heard, NODES, Side};
use super::node::{Crash, KeptView, Part, Running};
use super::{Counts, Simulation};
use crate::clock::Clock;
use crate::disk::{CutMoment, Fault, SimCall, SimDisk, SyncFailure};
use crate::error::Error;
use crate::replication::primary::{InquirySession, PrimarySession};
use crate::replication::replica::{Identity, ReplicaSession};
use crate::replication::session::{Change, Order, Session, SessionError};
use crate::replication::{Epoch, Refusal, Role, Secret};
use crate::{Message, Next, PutStatus, StoreWorker, TagFilter, Ticket};
use std::time::Duration;

/// How many rounds without a fault it may take until all nodes are equal.
const ROUNDS: usize = 300;
const MILLISECOND: Duration = Duration::from_millis(1);

impl Simulation {
    pub(super) fn run(mut self) -> Counts {
        self.trace(|s| format!("{:?}", s.settings));
        for node in &self.nodes {
            self.trace(|_| format!("{:?}: {:?}", node.id, node.config.flush_mode));
        }
        self.counts.add("schedules");
        for node in 0..NODES {
            self.open_replica(node);
        }
        self.begin_failover();
        (0..NODES).for_each(|node| self.fence(node));
        self.promote();
        // What a visitor has seen may be deleted, though nobody has confirmed it.
        let is_visited = !self.settings.retention && self.later_rng.one_in(3);
        for _ in 0..self.settings.events {
            self.event();
            if is_visited && self.later_rng.one_in(64) {
                self.visit();
            }
            if self.later_rng.one_in(100) {
                self.change_pace();
            }
        }
        self.heal();
        self.counts
    }

    fn event(&mut self) {
        let (event, node) = (self.rng.below(1000), self.rng.index(NODES));
        match event {
            0..180 => self.put(),
            180..185 => self.put_on(node, 1),
            185..275 => self.step(node, StoreWorker::Flush),
            275..310 => self.step(node, StoreWorker::Upkeep),
            310..340 => self.step(node, StoreWorker::Dispatch),
            340..347 => self.step(node, StoreWorker::Checkpoint),
            347..350 => self.step(node, StoreWorker::Offsets),
            350..370 => (0..NODES).for_each(|node| self.step(node, StoreWorker::Retention)),
            370..590 => self.exchange(),
            590..650 => self.pump(),
            650..710 => self.connect(node),
            710..750 => self.collect(node),
            750..800 => self.consume(node),
            800..850 => self.pass_time(),
            850..865 => self.change_links(),
            865..875 => self.break_connection(),
            875..883 => self.reconnect(node),
            883..890 => self.notice_silence(),
            890..898 => self.crash_some(node),
            898..907 => self.plan_crash(node),
            907..913 => self.hurt(node),
            913..919 => self.mend(node),
            919..921 => self.wipe(node),
            921..925 => self.reopen(node),
            925..955 => self.revive(node),
            955..970 => self.demote(node),
            _ => self.decide(),
        }
    }

    /// Takes stock after something was done on a node; whether it lives on.
    pub(super) fn settle(&mut self, node: usize) -> bool {
        if self.nodes[node].disk.is_down() {
            self.counts.add("crashed in the middle of a call");
            self.crash(node, Crash::Kill);
            return false;
        }
        let Some(running) = &mut self.nodes[node].running else { return false };
        self.checker.observe(&*running.log, &mut running.observed);
        true
    }

    fn running(&self, node: usize) -> Option<&Running> {
        self.nodes[node].running.as_ref()
    }

    // Producers and consumers.

    /// A put where a producer would take it.
    fn put(&mut self) {
        let primaries = (0..NODES).filter(|node| {
            self.running(*node).is_some_and(|running| running.role() == Role::Primary)
        });
        let primaries: Vec<_> = primaries.collect();
        if primaries.is_empty() {
            return;
        }
        let node = self.rng.pick(&primaries);
        let count = if self.rng.one_in(8) { 2 + self.rng.index(3) } else { 1 };
        self.put_on(node, count);
    }

    fn put_on(&mut self, node: usize, count: usize) {
        if self.running(node).is_none() {
            return;
        }
        let queue = self.rng.index(self.settings.queues);
        let (mut ids, mut messages): (Vec<usize>, Vec<Message>) = (Vec::new(), Vec::new());
        for _ in 0..count {
            let len = self.rng.below(self.settings.largest / count as u64) as usize;
            let (id, message) = self.checker.message(queue, len);
            ids.push(id);
            messages.push(message);
        }
        let Some(running) = &mut self.nodes[node].running else { return };
        let role = running.role();
        let submitted = match messages.as_slice() {
            [one] => running.store.try_submit(one),
            many => running.store.try_submit_batch(many),
        };
        if !self.settle(node) {
            return;
        }
        match submitted {
            Ok(ticket) => {
                assert_eq!(role, Role::Primary, "a replica took a put");
                self.counts.add("puts");
                self.trace(|_| format!("{node} takes {ids:?} at {}", ticket.physical_offset()));
                if let Some(running) = &mut self.nodes[node].running {
                    running.tickets.push((ids, ticket));
                }
            }
            Err(Error::Unknown { .. }) if self.nodes[node].hurt => {}
            Err(error) => {
                let expected = match &error {
                    Error::Refused(Refusal::NotPrimary | Refusal::NotEnoughReplicas { .. }) => true,
                    Error::Full | Error::SegmentNotReady { .. } => true,
                    other => self.nodes[node].excuses(other),
                };
                assert!(expected, "a put on {node}: {error}");
                self.counts.add("puts refused");
                let wants_segment = matches!(error, Error::SegmentNotReady { .. });
                ids.into_iter().for_each(|id| self.checker.refused(id));
                if wants_segment && !self.rng.one_in(4) {
                    self.step(node, StoreWorker::Upkeep);
                }
            }
        }
    }

    /// Asks for the answers of puts.
    fn collect(&mut self, node: usize) {
        if !self.settle(node) {
            return;
        }
        let Some(running) = &mut self.nodes[node].running else { return };
        let (shows_all, tickets) = (running.shows_all, std::mem::take(&mut running.tickets));
        let waiting = self.answer(node, shows_all, tickets);
        if let Some(running) = &mut self.nodes[node].running {
            running.tickets = waiting;
        }
    }

    /// Takes the answers that there are; the tickets that have none.
    fn answer(
        &mut self,
        node: usize,
        shows_all: bool,
        tickets: Vec<(Vec<usize>, Ticket)>,
    ) -> Vec<(Vec<usize>, Ticket)> {
        let mut waiting = Vec::new();
        for (ids, ticket) in tickets {
            match ticket.try_get() {
                Ok(None) => waiting.push((ids, ticket)),
                Ok(Some(result)) => {
                    self.trace(|_| format!("{ids:?} on {node}: {:?}", result.status));
                    self.counts.add(match result.status {
                        PutStatus::PutOk => "put ok",
                        PutStatus::FlushReplicaTimeout => "replica timeout",
                        PutStatus::ReplicaNotAvailable => "replica not available",
                        PutStatus::FlushDiskTimeout => "disk timeout",
                    });
                    let lasts = result.status == PutStatus::PutOk && !shows_all;
                    // A log that cannot be read cannot be compared.
                    let told = result.end_offset <= self.checker.end() || !self.nodes[node].hurt;
                    if lasts && told {
                        self.checker.put_ok(&ids, &result);
                    }
                }
                Err(Error::Unknown { .. }) if self.nodes[node].hurt => {}
                Err(error) => panic!("the answer of a put on {node}: {error}"),
            }
        }
        waiting
    }

    /// Lets a consumer go on in a queue.
    fn consume(&mut self, node: usize) {
        let queue = self.rng.index(self.settings.queues);
        if self.rng.one_in(16) {
            // A new one begins at the beginning.
            if let Some(running) = &mut self.nodes[node].running {
                running.consumed[queue] = 0;
            }
        }
        match self.rng.below(8) {
            0 => self.look_behind(node, queue),
            1..4 => self.handle(node, queue),
            _ => self.consume_queue(node, queue),
        }
    }

    /// Lets a consumer group, which consumes from primaries, go on in a queue.
    fn handle(&mut self, node: usize, queue: usize) {
        let most = 1 + self.rng.index(8);
        let Some(running) = self.running(node) else { return };
        if running.role() == Role::Replica {
            return;
        }
        let from = running.store.committed_offset(GROUP, TOPIC, queue as i32).unwrap_or(0);
        let fetched = running.store.get(TOPIC, queue as i32, from, most);
        let next = fetched.as_ref().map_or(from, |fetched| fetched.next_offset);
        let committed = (next != from)
            .then(|| running.store.commit_offset(GROUP, TOPIC, queue as i32, next))
            .transpose();
        // What was given to it is handled though the machine goes down.
        for message in fetched.iter().flat_map(|fetched| &fetched.messages) {
            self.checker.handled(queue, message);
        }
        if fetched.as_ref().is_ok_and(|one| one.messages.is_empty()) && next > from {
            self.checker.expired(queue, next);
        }
        let found = fetched.as_ref().map(|fetched| fetched.status).ok();
        self.trace(|_| {
            format!("the group goes on in {queue} from {from} to {next} on {node}: {found:?}")
        });
        if !self.settle(node) {
            return;
        }
        for error in [fetched.err(), committed.err()].into_iter().flatten() {
            assert!(self.nodes[node].excuses(&error), "a group on {node}: {error}");
        }
        self.counts.add_if(next != from, "the group goes on");
    }

    /// Looks at what lies behind the consumer group in a queue.
    fn look_behind(&mut self, node: usize, queue: usize) {
        let Some(running) = self.running(node) else { return };
        let Some(next) = running.store.committed_offset(GROUP, TOPIC, queue as i32) else { return };
        let behind = running.store.get(TOPIC, queue as i32, 0, next as usize);
        let behind = behind.and_then(|found| {
            let from = found.next_offset;
            // Where the first ones have expired it is told where to begin.
            if !found.messages.is_empty() || from >= next {
                return Ok(found);
            }
            running.store.get(TOPIC, queue as i32, from, (next - from) as usize)
        });
        if !self.settle(node) {
            return;
        }
        match behind {
            Ok(found) => {
                let passed = found.messages.iter().filter(|one| (one.queue_offset as u64) < next);
                passed.for_each(|message| self.checker.passed(queue, message));
            }
            Err(error) => {
                assert!(self.nodes[node].excuses(&error), "a read on {node}: {error}");
            }
        }
        self.counts.add("looks behind the group");
    }

    fn consume_queue(&mut self, node: usize, queue: usize) {
        let Some(running) = &self.nodes[node].running else { return };
        let from = running.consumed[queue];
        // What a primary has shown before it still shows, though it waits for replicas now.
        let shown = match running.role() {
            Role::Primary if running.shows_all => u64::MAX,
            Role::Primary if self.settings.mixed || self.nodes[node].visited => running.began,
            _ => 0,
        };
        let fetched = running.store.get(TOPIC, queue as i32, from, 1000);
        if !self.settle(node) {
            return;
        }
        let fetched = match fetched {
            Ok(fetched) => fetched,
            Err(error) => {
                assert!(self.nodes[node].excuses(&error), "a read on {node}: {error}");
                return;
            }
        };
        for message in &fetched.messages {
            if message.physical_offset as u64 >= shown {
                self.checker.read(queue, message);
            } else {
                self.checker.identify(queue, &message.body);
            }
        }
        self.counts.add_if(!fetched.messages.is_empty(), "reads");
        self.keep_view(node, queue, from);
        if let Some(running) = &mut self.nodes[node].running {
            running.consumed[queue] = fetched.next_offset;
        }
    }

    /// Keeps one of the messages that are there now and then, and looks at those that are kept.
    fn keep_view(&mut self, number: usize, queue: usize, offset: u64) {
        let node = &mut self.nodes[number];
        let openings = node.openings;
        node.check_views();
        let earlier = node.views.iter().any(|view| view.opening < openings);
        self.counts.add_if(earlier, "views of an earlier opening read again");
        let Some(running) = &node.running else { return };
        if self.rng.one_in(4)
            && let Ok(found) =
                running.store.get_view(TOPIC, queue as i32, offset, 1, &TagFilter::any())
            && let Some(view) = found.messages.into_iter().next()
        {
            let was = view.body().to_vec();
            node.views.push(KeptView { opening: openings, view, was });
        }
        self.settle(number);
    }

    // The stores' own work.

    fn step(&mut self, node: usize, worker: StoreWorker) {
        let waits_for_disk = matches!(worker, StoreWorker::Flush | StoreWorker::Upkeep);
        if waits_for_disk && self.nodes[node].slow && !self.later_rng.one_in(16) {
            self.counts.add("steps not done for a slow disk");
            return;
        }
        let Some(running) = self.running(node) else { return };
        let next = running.store.step(worker);
        if !self.settle(node) {
            return;
        }
        if worker == StoreWorker::Flush && matches!(next, Next::At(_)) && self.rng.one_in(2) {
            // An interval is long compared with a schedule.
            self.clock.advance(10 * MILLISECOND);
            if let Some(running) = self.running(node) {
                running.store.step(worker);
                self.settle(node);
            }
        }
    }

    fn pass_time(&mut self) {
        let by = match self.rng.below(20) {
            0 => 6 * Duration::from_secs(1),
            1..4 => 250 * MILLISECOND,
            _ => MILLISECOND * (1 + self.rng.below(8) as u32),
        };
        self.clock.advance(by);
    }

    // The network.

    /// A connection and one of its ends.
    fn some_end(&mut self) -> Option<(usize, Side)> {
        let count = self.network.connections.len();
        if count == 0 {
            return None;
        }
        let side = self.rng.pick(&[Side::Primary, Side::Replica]);
        Some((self.rng.index(count), side))
    }

    /// Lets an end speak, or lets it hear something.
    fn exchange(&mut self) {
        let now = self.clock.now();
        let mut ends = Vec::new();
        for (at, connection) in self.network.connections.iter().enumerate() {
            for side in [Side::Primary, Side::Replica] {
                let brings = connection.brings(side) && self.network.arrives(connection, side);
                let both = [(at, side, true), (at, side, false)];
                let possible = [brings, connection.speaks(side, now)];
                let possible = both.iter().zip(possible).filter(|(_, possible)| *possible);
                ends.extend(possible.map(|(end, _)| *end));
            }
        }
        if ends.is_empty() {
            return;
        }
        let (at, side, hears) = self.rng.pick(&ends);
        if hears {
            let connection = &self.network.connections[at];
            let on_the_way = connection.on_the_way(side) as u64;
            let most = match self.rng.below(3) {
                0 => 1 + self.rng.below(on_the_way.max(1)),
                _ => on_the_way,
            };
            self.hear(at, side, most as usize);
        } else {
            let most = self.rng.pick(&[1, 1, 1, 3]);
            self.speak(at, side, most);
        }
        self.network.sweep();
    }

    fn speak(&mut self, at: usize, side: Side, most: usize) -> bool {
        let connection = &mut self.network.connections[at];
        let node = connection.node(side);
        if !connection.is_alive(side) {
            return false;
        }
        let spoke = connection.speak(side, most, self.clock.now());
        if !self.settle(node) {
            return true;
        }
        match spoke {
            Ok(spoke) => spoke,
            Err(error) => {
                self.end_session(at, side, &error);
                true
            }
        }
    }

    fn hear(&mut self, at: usize, side: Side, most: usize) {
        let node = self.network.connections[at].node(side);
        if side == Side::Replica && !self.rng.one_in(8) {
            // As a rule the segment that is needed next is there in time.
            self.step(node, StoreWorker::Upkeep);
        }
        let now = self.clock.now();
        let heard = self.network.connections[at].deliver(side, most, now);
        if !self.settle(node) {
            return;
        }
        match heard {
            Heard::Nothing if side == Side::Primary => self.conclude(node),
            Heard::Nothing => {}
            Heard::Closed => self.network.connections[at].end(side, None),
            Heard::Ended(error) => self.end_session(at, side, &error),
            Heard::Order(order) => {
                self.network.connections[at].end(side, None);
                self.carry_out(node, order);
            }
        }
    }

    fn is_asked_by_a_visited_one(&self, at: usize) -> bool {
        let asking = self.network.connections[at].node(Side::Primary);
        let part = self.running(asking).map(|running| &running.part);
        self.nodes[asking].visited && matches!(part, Some(Part::Inquirer(_)))
    }

    fn end_session(&mut self, at: usize, side: Side, error: &SessionError) {
        let node = self.network.connections[at].node(side);
        let name = match error {
            SessionError::Stopped => "sessions taken over by another",
            SessionError::Superseded { .. } => "sessions of an older primary refused",
            // A first primary was replaced by a node that knew nothing of its log.
            SessionError::AnotherLog { .. } => "sessions with a log that was given up refused",
            // What a visitor put where the end of a log was lost is in the way of getting that back.
            SessionError::Diverged if self.is_asked_by_a_visited_one(at) => {
                "inquiries given up after a visit"
            }
            SessionError::DuplicateNode { .. } => "sessions refused while an old one was there",
            SessionError::Log(Error::SegmentNotReady { .. } | Error::Full | Error::Closed) => {
                "sessions ended because the log was not ready"
            }
            SessionError::Log(Error::Refused(Refusal::OutOfPlace { .. }))
                if side == Side::Primary =>
            {
                "sessions ended because what they lacked was deleted"
            }
            SessionError::Log(error) if self.nodes[node].excuses(error) => {
                "sessions ended by a failing disk"
            }
            other => panic!("a session between {node} and its peer ended: {other}"),
        };
        self.trace(|_| format!("session of {node} ends: {error}"));
        self.counts.add(name);
        let connection = &mut self.network.connections[at];
        let primary = connection.node(Side::Primary);
        connection.end(side, Some(error));
        if matches!(error, SessionError::AnotherLog { .. })
            && side == Side::Replica
            && self.acting_primary() == Some(primary)
        {
            self.empty(node);
        }
    }

    /// Empties a replica whose log was given up before anything of it was confirmed, as an operator is told to.
    /// Of the log that took its place it has acknowledged nothing.
    fn empty(&mut self, node: usize) {
        let confirmed = self.running(node).map_or(0, |running| running.log.confirmed());
        assert_eq!(confirmed, 0, "{node} was left with a log of which something is confirmed");
        self.replace_disk(node);
        self.counts.add("replicas of a log that was given up emptied");
    }

    /// Does what a replica was told to do to its log, and opens it again.
    fn carry_out(&mut self, node: usize, order: Order) {
        self.trace(|_| format!("{node}: {order:?}"));
        let Some(running) = self.running(node) else { return };
        let done = order.give(&*running.log);
        if !self.settle(node) {
            return;
        }
        match done {
            Ok(()) => self.counts.add(match order.change {
                Change::Truncate(_) => "truncations",
                Change::Restart { .. } => "restarts of a replica far behind",
            }),
            Err(SessionError::Log(error)) if self.nodes[node].excuses(&error) => {}
            Err(error) => panic!("{order:?}: {error}"),
        }
        self.nodes[node].running = None;
        if self.nodes[node].disk.is_down() {
            self.crash(node, Crash::Kill);
        }
        self.open_replica(node);
    }

    /// Lets everything that can arrive on a connection arrive.
    fn pump(&mut self) {
        if let Some((at, _)) = self.some_end() {
            self.pump_on(at);
        }
    }

    fn pump_on(&mut self, at: usize) {
        for _ in 0..8 {
            let mut quiet = true;
            for side in [Side::Primary, Side::Replica] {
                quiet &= !self.speak(at, side, 1);
                let connection = &self.network.connections[at];
                if connection.brings(side) && self.network.arrives(connection, side) {
                    quiet = false;
                    let most = connection.on_the_way(side);
                    self.hear(at, side, most);
                }
                self.step(self.network.connections[at].node(side), StoreWorker::Flush);
            }
            if quiet {
                break;
            }
        }
        self.network.sweep();
    }

    /// Lets a replica that has no connection seek its primary.
    fn connect(&mut self, node: usize) {
        let seeks = |node: &usize| {
            let is_replica = self.running(*node).is_some_and(Running::is_replica);
            is_replica && self.network.of_replica(*node).is_none()
        };
        let Some(node) = (node..node + NODES).map(|node| node % NODES).find(seeks) else { return };
        self.mistake_primary(node);
        // Word of a new primary may not have come to everyone.
        let primary = match self.authority.primary {
            Some(primary) if !self.rng.one_in(8) => primary,
            _ => self.rng.index(NODES),
        };
        self.connect_to(node, primary);
        if !self.rng.one_in(3) && !self.network.connections.is_empty() {
            self.pump_on(self.network.connections.len() - 1);
        }
    }

    fn connect_to(&mut self, node: usize, primary: usize) {
        if !self.introduce(node) {
            return;
        }
        let (Some(there), Some(here)) = (self.running(primary), self.running(node)) else {
            return;
        };
        if !here.is_replica() || !self.network.connects(node, primary) {
            return;
        }
        if here.is_latched() {
            self.reopen(node);
            return;
        }
        let identity = self.identity(node);
        let log = here.log.clone();
        let now = self.clock.now();
        let (id, nonce) = (self.sessions + 1, [1; 16]);
        let at_primary: Box<dyn Session> = match &there.part {
            Part::Primary(primary) => {
                let hub = primary.hub().expect("it is open").clone();
                Box::new(PrimarySession::new(hub, id, nonce, now))
            }
            // Of whom it lost itself what it had acknowledged, the primary learns nothing.
            Part::Inquirer(inquiry) if !self.has_lost(node) => {
                Box::new(InquirySession::new(inquiry.clone(), id, nonce, now))
            }
            _ => return,
        };
        let at_replica = Box::new(ReplicaSession::new(log, identity, [2; 16], now));
        self.sessions = id;
        let connection = Connection::new((primary, at_primary), (node, at_replica));
        self.network.connections.push(connection);
        self.counts.add("connections");
        self.trace(|_| format!("{node} connects to {primary}"));
    }

    pub(super) fn identity(&self, node: usize) -> Identity {
        Identity {
            cluster: 7,
            node: self.nodes[node].id,
            instance: self.nodes[node].openings,
            secret: Secret::new("all"),
            heartbeat: 5 * Duration::from_secs(1),
        }
    }

    fn change_links(&mut self) {
        let (from, to) = (self.rng.index(NODES), self.rng.index(NODES));
        if from == to || self.rng.one_in(2) {
            self.counts.add_if(self.network.holds_up(), "delays");
            self.network.unblock_all();
            return;
        }
        self.network.block(from, to, true);
        let both = self.rng.one_in(2);
        if both {
            self.network.block(to, from, true);
        }
        self.counts.add(if both { "two-way partitions" } else { "one-way partitions" });
    }

    fn break_connection(&mut self) {
        if let Some((at, _)) = self.some_end() {
            self.network.connections[at].cut();
            self.counts.add("connections broken");
        }
    }

    /// A replica gives its connection up without its primary hearing of it, and seeks a new one.
    fn reconnect(&mut self, node: usize) {
        if let Some(at) = self.network.of_replica(node) {
            self.network.connections[at].vanish(Side::Replica);
            self.counts.add("connections half open");
            self.connect(node);
        }
    }

    /// An end has not heard anything for too long.
    fn notice_silence(&mut self) {
        let Some((at, side)) = self.some_end() else { return };
        let connection = &mut self.network.connections[at];
        if !connection.is_alive(side.other()) || self.network.blocked_links() > 0 {
            self.network.connections[at].end(side, Some(&SessionError::Silent));
            self.network.sweep();
        }
    }

    // What befalls the nodes.

    /// Ends a life of a node.
    pub(super) fn crash(&mut self, node: usize, crash: Crash) {
        let seed = self.rng.next();
        let crash = self.nodes[node].crash(crash, seed);
        self.trace(|_| format!("{node} crashes: {crash:?}"));
        match crash {
            Crash::Kill => self.counts.add("kills"),
            Crash::PowerCut => {
                self.counts.add("power cuts");
                self.note_power_cut(node);
            }
        }
        let silently = crash == Crash::PowerCut && self.rng.one_in(2);
        self.network.lose(node, silently);
    }

    /// A way to crash that this cluster must bear.
    fn some_crash(&mut self, node: usize) -> Crash {
        if self.rng.one_in(2) && self.bears_power_cut(node) { Crash::PowerCut } else { Crash::Kill }
    }

    fn crash_some(&mut self, node: usize) {
        let crash = self.some_crash(node);
        if self.running(node).is_some() || crash == Crash::PowerCut {
            self.crash(node, crash);
        }
    }

    fn plan_crash(&mut self, node: usize) {
        let crash = self.some_crash(node);
        let moment = self.rng.pick(&[CutMoment::Before, CutMoment::Middle]);
        let calls = 1 + self.rng.below(30);
        self.nodes[node].plan(crash, calls, moment);
    }

    /// Loses a node's disk.
    fn wipe(&mut self, node: usize) {
        if !self.bears_loss(node) {
            return;
        }
        self.note_loss(node);
        self.replace_disk(node);
        self.counts.add("disks replaced by empty ones");
    }

    fn replace_disk(&mut self, node: usize) {
        self.crash(node, Crash::Kill);
        self.note_new_disk(node);
        let disk = SimDisk::new(self.rng.next());
        self.nodes[node].replace_disk(disk);
        self.trace(|_| format!("{node} has a new disk"));
    }

    fn hurt(&mut self, number: usize) {
        let node = &mut self.nodes[number];
        (node.hurt, node.failing) = (true, true);
        if self.rng.one_in(3) {
            node.disk.set_capacity(node.disk.used());
            self.counts.add("disks full");
            return;
        }
        let nth = 1 + self.rng.below(6);
        let calls = [
            SimCall::Create,
            SimCall::Rename,
            SimCall::Write,
            SimCall::SyncDir,
            SimCall::Remove,
            SimCall::Map,
            SimCall::Open,
        ];
        let fault = if self.rng.one_in(2) {
            self.counts.add("failing syncs");
            Fault::sync(SyncFailure::KeepNew)
        } else {
            self.counts.add("failing calls");
            Fault::on(self.rng.pick(&calls))
        };
        node.disk.inject(fault.nth(nth));
    }

    /// The disk of a node becomes slow, or as fast as it was.
    fn change_pace(&mut self) {
        let node = self.later_rng.index(NODES);
        let slow = self.later_rng.one_in(3) && !self.nodes[node].slow;
        self.nodes[node].slow = slow;
        self.counts.add_if(slow, "slow disks");
    }

    fn mend(&mut self, node: usize) {
        let node = &mut self.nodes[node];
        node.disk.clear_faults();
        node.disk.set_capacity(1 << 40);
        node.failing = false;
    }

    /// Closes a store in order; whether it could be.
    pub(super) fn close(&mut self, node: usize) -> bool {
        let Some((closed, mut closing)) = self.nodes[node].close() else { return false };
        if self.nodes[node].disk.is_down() {
            self.crash(node, Crash::Kill);
            return false;
        }
        self.network.lose(node, false);
        self.checker.observe(&*closing.log, &mut closing.observed);
        let waiting = self.answer(node, closing.shows_all, closing.tickets);
        assert!(waiting.is_empty(), "a put was not answered when its store closed");
        match closed {
            Ok(()) => self.counts.add("closed"),
            Err(error) => assert!(self.nodes[node].excuses(&error), "{node} closes: {error}"),
        }
        true
    }

    fn reopen(&mut self, node: usize) {
        if self.close(node) {
            self.restart(node);
        }
    }

    /// Looks after a node that is down, or as good as down.
    fn revive(&mut self, node: usize) {
        if self.running(node).is_some_and(Running::is_latched) {
            self.counts.add("stores that failed restarted");
            let crash = self.some_crash(node);
            self.crash(node, crash);
        }
        for node in 0..NODES {
            if self.running(node).is_none() && !self.rng.one_in(3) {
                self.restart(node);
            }
        }
    }

    /// Someone opens a node's store without replication, and puts something there or does not.
    fn visit(&mut self) {
        let node = self.later_rng.index(NODES);
        if self.running(node).is_some() && !self.stop(node) {
            return;
        }
        let store = match self.nodes[node].open_alone() {
            Ok(store) => store,
            Err(otherwise) => {
                self.note_opened(node, otherwise);
                return;
            }
        };
        self.note_visit(node, &store);
        self.counts.add("visits without replication");
        // What is put where no primary ever was is another log, and nobody takes it back.
        let most = if store.last_reign() > Epoch(0) { 3 } else { 0 };
        for _ in 0..self.later_rng.below(most + 1) {
            let (id, message) = self.checker.message(0, 8 + self.later_rng.index(60));
            match store.try_submit(&message) {
                Ok(ticket) => {
                    self.counts.add("puts without replication");
                    self.trace(|_| {
                        format!("{node} takes {id} alone at {}", ticket.physical_offset())
                    });
                }
                Err(Error::Unknown { .. }) => {}
                Err(error) => {
                    let is_full = matches!(error, Error::Full | Error::SegmentNotReady { .. });
                    let is_down = self.nodes[node].disk.is_down();
                    let excused = is_full || is_down || self.nodes[node].excuses(&error);
                    assert!(excused, "a put on {node} alone: {error}");
                    // Whether it was stored nobody knows of a machine that went down.
                    if !is_down {
                        self.checker.refused(id);
                    }
                }
            }
            let workers = [StoreWorker::Flush, StoreWorker::Upkeep, StoreWorker::Dispatch];
            store.step(self.later_rng.pick(&workers));
        }
        self.trace(|_| format!("{node} was visited: {:?}", store.stats().watermarks));
        if self.nodes[node].disk.is_down() || self.later_rng.one_in(3) {
            let crash = self.later_rng.pick(&[Crash::Kill, Crash::PowerCut]);
            self.crash(node, crash);
        } else if let Err(error) = store.close() {
            let excused = self.nodes[node].disk.is_down() || self.nodes[node].excuses(&error);
            assert!(excused, "{node} closes alone: {error}");
        }
        if self.nodes[node].disk.is_down() {
            self.crash(node, Crash::Kill);
        }
    }

    // The end.

    /// Everything works again: now all nodes must become equal, and puts must go through.
    fn heal(&mut self) {
        self.trace(|_| "everything works again".to_owned());
        self.network.unblock_all();
        self.network
            .connections
            .retain_mut(|one| one.is_alive(Side::Primary) && one.is_alive(Side::Replica));
        for node in 0..NODES {
            self.mend(node);
            self.nodes[node].slow = false;
            self.nodes[node].disk.disarm();
            self.nodes[node].planned = None;
            let fails = |one: &Running| one.is_latched() || one.store.flush_offsets().is_err();
            if self.running(node).is_some_and(fails) {
                self.crash(node, Crash::Kill);
            }
        }
        for round in 0.. {
            self.appoint();
            self.round();
            if self.is_settled() {
                break;
            }
            assert!(round < ROUNDS, "the nodes do not become equal: {}", self.state());
        }
        self.prove_liveness();
        self.compare();
    }

    /// Sees to it that there is a primary, and that all others are replicas.
    fn appoint(&mut self) {
        for _ in 0..ROUNDS {
            for node in 0..NODES {
                self.demote(node);
                if self.running(node).is_none() && self.authority.primary != Some(node) {
                    self.open_replica(node);
                }
            }
            if self.acting_primary().is_some_and(|node| self.is_obeyed(node)) {
                return;
            }
            if let Some(node) = self.authority.primary
                && self.running(node).is_some_and(|running| !running.is_replica())
            {
                // One that asks for what it lost may ask in vain.
                self.crash(node, Crash::Kill);
            }
            if self.rng.one_in(2) && self.reinstate() {
                return;
            }
            if let Some(node) = self.authority.primary
                && self.running(node).is_none()
            {
                self.open_replica(node);
            }
            self.begin_failover();
            (0..NODES).for_each(|node| self.fence(node));
            if self.promote() {
                return;
            }
        }
        panic!("nobody can be made primary: {}", self.state());
    }

    /// Whether nobody has promised not to follow this primary: a node whose log is another one does not say so.
    fn is_obeyed(&self, primary: usize) -> bool {
        let reign = self.nodes[primary].reign;
        let promised = |node| self.running(node).map_or(Epoch(0), |one| one.log.promised());
        (0..NODES).all(|node| promised(node) <= reign)
    }

    /// Everyone does whatever there is to do.
    fn round(&mut self) {
        for node in 0..NODES {
            if self.acting_primary() != Some(node) && self.network.of_replica(node).is_none() {
                let primary = self.authority.primary.expect("one was appointed");
                self.connect_to(node, primary);
            }
            for worker in [StoreWorker::Flush, StoreWorker::Upkeep, StoreWorker::Dispatch] {
                self.step(node, worker);
            }
        }
        for at in 0..self.network.connections.len() {
            for side in [Side::Primary, Side::Replica].repeat(4) {
                self.speak(at, side, 1);
                let most = self.network.connections[at].on_the_way(side.other());
                if self.network.connections[at].brings(side.other()) {
                    self.hear(at, side.other(), most);
                }
            }
        }
        self.network.sweep();
        self.clock.advance(100 * MILLISECOND);
    }

    /// Whether all nodes hold everything, know that it is confirmed, and how far the group has come.
    fn is_settled(&self) -> bool {
        let ends = |running: &Running| {
            let watermarks = running.store.stats().watermarks;
            [watermarks.appended, watermarks.durable, running.log.confirmed()]
        };
        let ends: Vec<_> = (0..NODES).filter_map(|node| self.running(node).map(ends)).collect();
        let groups = |running: &Running| running.store.committed_offsets();
        let mut groups = (0..NODES).filter_map(|node| self.running(node).map(groups));
        let agreed = groups.next().is_some_and(|first| groups.all(|other| other == first));
        let [first, ..] = ends.as_slice() else { return false };
        agreed && ends.len() == NODES && ends.iter().flatten().all(|end| *end == first[0])
    }

    /// A put goes through, at the latest once the replicas have said what they hold.
    fn prove_liveness(&mut self) {
        let ok = |s: &Self| s.counts.0.get("put ok").copied().unwrap_or(0);
        let before = ok(self);
        for round in 0.. {
            assert!(round < ROUNDS, "puts do not go through: {}", self.state());
            self.appoint();
            let primary = self.acting_primary().expect("one was appointed");
            if ok(self) == before && self.tickets() == 0 && self.is_settled() {
                self.put_on(primary, 1);
            }
            self.round();
            (0..NODES).for_each(|node| self.collect(node));
            if ok(self) > before && self.tickets() == 0 && self.is_settled() {
                break;
            }
        }
    }

    /// How many puts wait.
    fn tickets(&self) -> usize {
        self.nodes
            .iter()
            .filter_map(|node| node.running.as_ref())
            .map(|one| one.tickets.len())
            .sum()
    }

    /// All logs hold the same bytes, and consumers find them.
    fn compare(&mut self) {
        for node in 0..NODES {
            self.settle(node);
            self.nodes[node].check_views();
            let running = self.running(node).expect("all run");
            assert_eq!(running.log.end(), self.checker.end(), "{}", self.state());
            self.checker.holds_all(&*running.log);
            for queue in 0..self.settings.queues {
                // A consumer that is too far behind is told where to go on.
                self.look_behind(node, queue);
                self.consume_queue(node, queue);
                self.consume_queue(node, queue);
                let running = self.running(node).expect("all run");
                let (reached, all) = (running.consumed[queue], self.checker.in_queue(queue));
                let got = running.store.get(TOPIC, queue as i32, 0, 1);
                assert_eq!(
                    reached, all,
                    "a consumer of queue {queue} on {node} does not get far {got:?}"
                );
            }
        }
    }

    fn state(&self) -> String {
        let state = |node: usize| {
            let Some(running) = self.running(node) else { return format!("{node} is down") };
            let (end, confirmed) = (running.log.end(), running.log.confirmed());
            let latched = running.store.health().latched;
            let (role, newest) = (running.role(), running.log.epochs());
            format!(
                "{node} {role:?} {:?} min {} confirmed {confirmed} end {end} {latched:?} {newest:?}",
                running.store.stats().watermarks,
                running.log.min_offset(),
            ) + &format!(" {:?}", running.store.committed_offsets())
        };
        let nodes: Vec<_> = (0..NODES).map(state).collect();
        format!("{:?}\n{}", self.settings, nodes.join("\n"))
    }
}
