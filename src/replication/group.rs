//! What a primary knows of its replicas: who is there, how far each is, and what follows from it.

use super::session::SessionError;
use super::{NodeId, Refusal};
use parking_lot::{Condvar, Mutex};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// When a replica's copy counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum AckLevel {
    /// When it is durable there: it survives a power cut of all machines at once. The default.
    #[default]
    Durable,
    /// When it is in the replica's memory, as in RocketMQ: it survives the loss of the primary, not that
    /// of the replica's power.
    InMemory,
}

/// What is asked of the replicas.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Policy {
    /// Copies beside the primary's without which nothing is confirmed.
    pub(crate) needed: usize,
    pub(crate) level: AckLevel,
    /// Farther behind, a replica is out of reach.
    pub(crate) max_lag: u64,
}

/// More are not remembered: those who are away and hold least are forgotten.
const MEMBERS_MAX: usize = 512;

/// A connection of a replica.
pub(crate) type SessionId = u64;

/// What is lost at once: all that is said to be on it is one copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) enum Machine {
    /// Nothing tells which one it is: it might be any other of these.
    #[default]
    Unknown,
    /// That of a node, which says who it is.
    Node(NodeId),
    /// Whatever is behind this address.
    Address(IpAddr),
}

#[derive(Debug, Default)]
struct Member {
    machine: Machine,
    /// The connection it has now.
    session: Option<SessionId>,
    instance: u64,
    /// What it holds as the policy asks, in this epoch.
    counts: u64,
    written: u64,
    durable: u64,
    /// Where it goes on when it comes back, as far as is known.
    resumes: u64,
}

/// One replica as the primary sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReplicaStatus {
    /// Who it is.
    pub node: NodeId,
    /// Whether it is connected now.
    pub connected: bool,
    /// What it said it holds in memory: a physical offset.
    pub written: u64,
    /// What it said survives a power cut there: a physical offset.
    pub durable: u64,
}

/// All replicas of a primary, for one epoch.
#[derive(Debug)]
pub(crate) struct Group {
    policy: Policy,
    members: Mutex<BTreeMap<NodeId, Member>>,
    /// Rung when a member has said something, or is gone.
    heard: Condvar,
    confirmed: AtomicU64,
    /// Before this offset a put finds enough replicas near enough; 0 where there are not enough.
    reach: AtomicU64,
    /// Nobody is served any more.
    stopped: AtomicBool,
}

impl Group {
    /// Nothing behind `confirmed` is.
    pub(crate) fn new(policy: Policy, confirmed: u64) -> Self {
        let group = Self {
            policy,
            members: Mutex::default(),
            heard: Condvar::new(),
            confirmed: AtomicU64::new(confirmed),
            reach: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
        };
        group.settle(&BTreeMap::new());
        group
    }

    /// Everything before is held by as many replicas as the policy asks for.
    pub(crate) fn confirmed(&self) -> u64 {
        self.confirmed.load(Ordering::SeqCst)
    }

    /// Whether what is put at `end` has enough replicas near enough to confirm it.
    #[inline]
    pub(crate) fn reaches(&self, end: u64) -> bool {
        end < self.reach.load(Ordering::Relaxed)
    }

    /// Lets `session` speak for `node`. A newer connection of the same instance takes the place of the
    /// older one; two instances with one name are a mistake of whoever named them.
    pub(crate) fn join(
        &self,
        node: NodeId,
        instance: u64,
        session: SessionId,
    ) -> Result<(), SessionError> {
        self.join_on(Machine::Node(node), node, instance, session)
    }

    /// The same for one of several that may be on a machine.
    pub(crate) fn join_on(
        &self,
        machine: Machine,
        node: NodeId,
        instance: u64,
        session: SessionId,
    ) -> Result<(), SessionError> {
        let mut members = self.members.lock();
        if members.len() >= MEMBERS_MAX && !members.contains_key(&node) {
            // Nothing that is confirmed is taken back by it.
            let away = members.iter().filter(|(_, member)| member.session.is_none());
            let least = away.min_by_key(|(_, member)| member.counts).map(|(node, _)| *node);
            least.map(|node| members.remove(&node));
        }
        let member = members.entry(node).or_default();
        if member.session.is_some() && member.instance != instance {
            return Err(SessionError::DuplicateNode { node });
        }
        // It may have lost what it had: it says anew what counts.
        let resumes = member.resumes;
        let session = Some(session);
        *member = Member { machine, session, instance, resumes, ..Member::default() };
        self.settle(&members);
        Ok(())
    }

    /// Whether `session` still speaks for `node`.
    pub(crate) fn is_current(&self, node: NodeId, session: SessionId) -> bool {
        self.members.lock().get(&node).is_some_and(|member| member.session == Some(session))
    }

    /// Notes what a replica holds. It counts once the replica is in the primary's own epoch, which begins at
    /// `epoch`, and holds all that comes before it: an older primary's records may yet be cut from it, and
    /// a power cut that takes the end of them takes the epoch along.
    pub(crate) fn ack(
        &self,
        node: NodeId,
        session: SessionId,
        (written, durable): (u64, u64),
        epoch: Option<u64>,
    ) {
        self.note(node, session, (written, durable), durable, epoch);
    }

    /// The same for a RocketMQ slave, which says nothing of its disk.
    pub(crate) fn ack_in_memory(&self, node: NodeId, session: SessionId, written: u64) {
        self.note(node, session, (written, 0), written, Some(0));
    }

    fn note(
        &self,
        node: NodeId,
        session: SessionId,
        (written, durable): (u64, u64),
        resumes: u64,
        epoch: Option<u64>,
    ) {
        let mut members = self.members.lock();
        if let Some(member) = members.get_mut(&node).filter(|one| one.session == Some(session)) {
            (member.written, member.durable, member.resumes) = (written, durable, resumes);
            let held = match self.policy.level {
                AckLevel::Durable if canary!("ack_before_durable") => written,
                AckLevel::Durable => durable.min(written),
                AckLevel::InMemory => written,
            };
            if epoch.is_some_and(|start| held >= start) {
                member.counts = held;
            }
            self.settle(&members);
        }
    }

    /// Forgets a member that will not come back under this name.
    pub(crate) fn forget(&self, node: NodeId) {
        let mut members = self.members.lock();
        members.remove(&node);
        self.settle(&members);
    }

    pub(crate) fn leave(&self, node: NodeId, session: SessionId) {
        let mut members = self.members.lock();
        if let Some(member) = members.get_mut(&node).filter(|one| one.session == Some(session)) {
            member.session = None;
        }
        self.settle(&members);
    }

    /// Whether what the member says can ever count: a RocketMQ slave says nothing of its disk.
    fn is_of_use(&self, member: &Member) -> bool {
        let says_all = matches!(member.machine, Machine::Node(_));
        says_all || self.policy.level == AckLevel::InMemory || self.policy.needed == 0
    }

    /// Works out what follows from what the members hold.
    fn settle(&self, members: &BTreeMap<NodeId, Member>) {
        let mut held = copies(members.values());
        let near = |member: &&Member| member.session.is_some() && self.is_of_use(member);
        let mut near = copies(members.values().filter(near));
        if canary!("confirm_past_absent") && !near.is_empty() {
            held.clone_from(&near);
            held.resize(self.policy.needed.max(near.len()), u64::MAX);
        }
        // Those who are away keep what they have, and are never left out of the count.
        let confirmed = nth_largest(&mut held, self.policy.needed);
        self.confirmed.fetch_max(confirmed.unwrap_or(0), Ordering::SeqCst);
        let reach = match self.policy.needed {
            0 => u64::MAX,
            needed => nth_largest(&mut near, needed)
                .map_or(0, |held| held.saturating_add(self.policy.max_lag).saturating_add(1)),
        };
        self.reach.store(reach, Ordering::Relaxed);
        self.heard.notify_all();
    }

    /// Waits until everyone who is connected has everything before `end`, at most `patience`.
    pub(crate) fn drain(&self, end: u64, patience: Duration) {
        let mut members = self.members.lock();
        let lacks = |member: &Member| member.session.is_some() && member.written < end;
        let waiting = |members: &mut BTreeMap<NodeId, Member>| members.values().any(lacks);
        self.heard.wait_while_for(&mut members, waiting, patience);
    }

    /// The lowest offset from which on a replica lacks the log, if it is not hopelessly far behind `end`.
    pub(crate) fn floor(&self, end: u64) -> u64 {
        let members = self.members.lock();
        let near = |member: &&Member| member.resumes.saturating_add(self.policy.max_lag) >= end;
        members.values().filter(near).map(|member| member.resumes).min().unwrap_or(u64::MAX)
    }

    /// How many replicas are connected and not too far behind `end`.
    pub(crate) fn in_reach(&self, end: u64) -> usize {
        self.count_near(&self.members.lock(), end)
    }

    fn count_near(&self, members: &BTreeMap<NodeId, Member>, end: u64) -> usize {
        let near = |member: &&Member| {
            let reach = member.counts.saturating_add(self.policy.max_lag);
            member.session.is_some() && self.is_of_use(member) && reach >= end
        };
        copies(members.values().filter(near)).len()
    }

    /// Waits until so many replicas are connected and not too far behind `end`.
    pub(crate) fn wait_for(
        &self,
        required: usize,
        end: u64,
        patience: Duration,
    ) -> Result<(), Refusal> {
        let mut members = self.members.lock();
        let lacks = |members: &BTreeMap<NodeId, Member>| {
            !self.stopped.load(Ordering::SeqCst) && self.count_near(members, end) < required
        };
        self.heard.wait_while_for(&mut members, |members| lacks(members), patience);
        match self.count_near(&members, end) {
            available if available < required => {
                Err(Refusal::NotEnoughReplicas { available, required })
            }
            _ => Ok(()),
        }
    }

    /// Lets nobody wait for replicas any more.
    pub(crate) fn stop(&self) {
        let _members = self.members.lock();
        self.stopped.store(true, Ordering::SeqCst);
        self.heard.notify_all();
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }

    pub(crate) fn status(&self) -> Vec<ReplicaStatus> {
        let members = self.members.lock();
        let status = |(node, member): (&NodeId, &Member)| ReplicaStatus {
            node: *node,
            connected: member.session.is_some(),
            written: member.written,
            durable: member.durable,
        };
        members.iter().map(status).collect()
    }
}

/// What each copy counts for: as much as the member that has most of it.
fn copies<'a>(members: impl Iterator<Item = &'a Member>) -> Vec<u64> {
    let mut copies: BTreeMap<Machine, u64> = BTreeMap::new();
    for member in members {
        let most = copies.entry(member.machine).or_default();
        *most = member.counts.max(*most);
    }
    copies.into_values().collect()
}

/// What at least `n` of the values reach.
fn nth_largest(values: &mut [u64], n: usize) -> Option<u64> {
    values.sort_unstable_by(|a, b| b.cmp(a));
    n.checked_sub(1).and_then(|at| values.get(at)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: NodeId = NodeId(1);
    const B: NodeId = NodeId(2);

    fn group(needed: usize, level: AckLevel) -> Group {
        Group::new(Policy { needed, level, max_lag: 100 }, 10)
    }

    fn acked(
        group: &Group,
        node: NodeId,
        session: SessionId,
        held: (u64, u64),
        epoch: Option<u64>,
    ) -> u64 {
        group.ack(node, session, held, epoch);
        group.confirmed()
    }

    #[test]
    fn so_many_replicas_must_hold_it() {
        let group = group(2, AckLevel::Durable);
        group.join(A, 1, 1).unwrap();
        assert_eq!(acked(&group, A, 1, (50, 40), Some(0)), 10);
        group.join(B, 1, 2).unwrap();
        assert_eq!(acked(&group, B, 2, (90, 30), Some(0)), 30);
        assert_eq!(acked(&group, B, 2, (90, 90), Some(0)), 40);
    }

    #[test]
    fn in_memory_counts_where_it_was_chosen() {
        let group = group(1, AckLevel::InMemory);
        group.join(A, 1, 1).unwrap();
        assert_eq!(acked(&group, A, 1, (50, 40), Some(0)), 50);
    }

    #[test]
    fn what_a_replica_holds_of_an_older_epoch_does_not_count() {
        let group = group(1, AckLevel::Durable);
        group.join(A, 1, 1).unwrap();
        assert_eq!(acked(&group, A, 1, (50, 50), None), 10);
        assert_eq!(acked(&group, A, 1, (50, 50), Some(0)), 50);
    }

    #[test]
    fn an_epoch_that_a_power_cut_would_take_along_does_not_count() {
        let group = group(1, AckLevel::Durable);
        group.join(A, 1, 1).unwrap();
        // It has entered the epoch, durably, and what comes before it is not all on the disk.
        assert_eq!(acked(&group, A, 1, (80, 50), Some(60)), 10);
        assert_eq!(acked(&group, A, 1, (80, 60), Some(60)), 60);
        // Whose acks mean memory is not asked after a power cut.
        let group = self::group(1, AckLevel::InMemory);
        group.join(A, 1, 1).unwrap();
        assert_eq!(acked(&group, A, 1, (80, 50), Some(60)), 80);
    }

    #[test]
    fn whoever_is_away_is_not_left_out() {
        let group = group(2, AckLevel::Durable);
        group.join(A, 1, 1).unwrap();
        group.join(B, 1, 2).unwrap();
        group.ack(A, 1, (50, 50), Some(0));
        group.ack(B, 2, (50, 50), Some(0));
        group.leave(B, 2);
        assert_eq!(acked(&group, A, 1, (80, 80), Some(0)), 50);
        assert!(!group.reaches(81));
    }

    fn slave(group: &Group, machine: u8, id: u64) -> NodeId {
        let node = NodeId(id);
        group.join_on(Machine::Address([10, 0, 0, machine].into()), node, id, id).unwrap();
        node
    }

    fn in_memory(group: &Group, node: NodeId, written: u64) -> u64 {
        group.ack_in_memory(node, node.0, written);
        group.confirmed()
    }

    #[test]
    fn what_is_on_one_machine_is_one_copy_and_holds_what_the_furthest_holds() {
        let group = group(2, AckLevel::InMemory);
        let [first, second] = [1, 2].map(|id| slave(&group, 1, id));
        assert_eq!([in_memory(&group, first, 60), in_memory(&group, second, 50)], [10; 2]);
        assert!(group.in_reach(0) == 1 && !group.reaches(0));
        let alone = group.wait_for(2, 60, Duration::ZERO);
        assert_eq!(alone, Err(Refusal::NotEnoughReplicas { available: 1, required: 2 }));
        let other = slave(&group, 2, 3);
        assert_eq!(in_memory(&group, other, 90), 60);
        assert!(group.reaches(160) && !group.reaches(161));
        assert_eq!((group.in_reach(0), group.wait_for(2, 160, Duration::ZERO)), (2, Ok(())));
        // Each connection goes on where it is.
        assert_eq!((group.floor(60), group.status().len()), (50, 3));
    }

    #[test]
    fn whoever_leaves_a_machine_leaves_it_what_the_others_hold() {
        let group = group(2, AckLevel::InMemory);
        let [first, second, other] = [(1, 1), (1, 2), (2, 3)].map(|(at, id)| slave(&group, at, id));
        for (node, held) in [(first, 50), (second, 60), (other, 60)] {
            in_memory(&group, node, held);
        }
        group.forget(second);
        assert_eq!((group.confirmed(), group.in_reach(0)), (60, 2));
        assert!(group.reaches(150) && !group.reaches(151));
        assert_eq!([in_memory(&group, other, 90), in_memory(&group, first, 70)], [60, 70]);
        group.forget(first);
        assert!(group.in_reach(0) == 1 && !group.reaches(0));
    }

    #[test]
    fn nodes_that_say_who_they_are_count_wherever_they_are() {
        let group = group(3, AckLevel::InMemory);
        let slave = slave(&group, 1, 3);
        for node in [A, B] {
            group.join(node, 1, node.0).unwrap();
            group.ack(node, node.0, (50, 50), Some(0));
        }
        assert_eq!((in_memory(&group, slave, 40), group.in_reach(0)), (40, 3));
    }

    #[test]
    fn what_a_rocketmq_slave_has_yet_to_get_is_kept_for_it() {
        let group = group(1, AckLevel::Durable);
        group.join(A, 1, 1).unwrap();
        group.ack_in_memory(A, 1, 950);
        assert_eq!((group.floor(1000), group.floor(1051)), (950, u64::MAX));
        assert_eq!(group.confirmed(), 10);
    }

    #[test]
    fn what_a_replica_lacks_is_kept_for_it_while_it_comes_back() {
        let group = group(1, AckLevel::Durable);
        group.join(A, 1, 1).unwrap();
        group.ack(A, 1, (950, 950), Some(0));
        group.leave(A, 1);
        group.join(A, 1, 2).unwrap();
        assert_eq!(group.floor(1000), 950);
    }

    #[test]
    fn names_without_number_take_up_no_more_memory() {
        let group = group(1, AckLevel::Durable);
        group.join(A, 1, 1).unwrap();
        group.ack(A, 1, (50, 50), Some(0));
        group.leave(A, 1);
        for name in 100..100 + 3 * MEMBERS_MAX as u64 {
            group.join(NodeId(name), 1, name).unwrap();
            group.leave(NodeId(name), name);
        }
        let status = group.status();
        assert_eq!(status.len(), MEMBERS_MAX);
        assert!(status.iter().any(|one| one.node == A), "whoever holds most is remembered");
        assert_eq!(group.confirmed(), 50);
    }

    #[test]
    fn an_old_connection_says_nothing_any_more() {
        let group = group(1, AckLevel::Durable);
        group.join(A, 1, 1).unwrap();
        group.join(A, 1, 2).unwrap();
        assert_eq!(acked(&group, A, 1, (50, 50), Some(0)), 10);
        group.leave(A, 1);
        assert_eq!(group.in_reach(0), 1);
        assert!(group.is_current(A, 2) && !group.is_current(A, 1));
    }

    #[test]
    fn two_replicas_with_one_name_are_refused_while_the_first_is_there() {
        let group = group(1, AckLevel::Durable);
        group.join(A, 1, 1).unwrap();
        assert!(matches!(group.join(A, 2, 2), Err(SessionError::DuplicateNode { node: A })));
        group.leave(A, 1);
        group.join(A, 2, 3).unwrap();
    }

    #[test]
    fn a_slave_that_says_nothing_of_its_disk_is_not_in_reach_where_that_counts() {
        let patience = Duration::ZERO;
        for (level, reaches) in [(AckLevel::Durable, false), (AckLevel::InMemory, true)] {
            let group = group(1, level);
            let slave = slave(&group, 1, 3);
            group.ack_in_memory(slave, 3, 60);
            assert_eq!(
                (group.reaches(60), group.in_reach(0) == 1),
                (reaches, reaches),
                "{level:?}"
            );
            assert_eq!(group.wait_for(1, 60, patience).is_ok(), reaches, "{level:?}");
        }
        // Where no put waits, it is a replica like any other.
        let group = group(0, AckLevel::Durable);
        slave(&group, 1, 3);
        assert!(group.wait_for(1, 60, patience).is_ok());
    }

    #[test]
    fn a_replica_too_far_behind_is_not_counted_among_those_in_reach() {
        let group = group(1, AckLevel::Durable);
        group.join(A, 1, 1).unwrap();
        group.ack(A, 1, (50, 50), Some(0));
        for (end, in_reach) in [(150, true), (151, false)] {
            let counted = group.in_reach(end) == 1;
            assert_eq!((group.reaches(end), counted), (in_reach, in_reach), "{end}");
        }
    }

    #[test]
    fn a_replica_too_far_behind_is_out_of_reach_and_holds_nothing_up() {
        let group = group(1, AckLevel::Durable);
        assert!(!group.reaches(0) && !group.reaches(10));
        group.join(A, 1, 1).unwrap();
        group.ack(A, 1, (50, 50), Some(0));
        assert!(group.reaches(150) && !group.reaches(151));
        assert_eq!((group.floor(150), group.floor(151)), (50, u64::MAX));
    }
}
