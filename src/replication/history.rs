//! What two logs have in common, told by their epochs alone.

use super::{Epoch, EpochStart, LogId, NodeId, ReplicatedLog, given};

/// Which log it is, its epochs, with one for the records that lie before the first replicator was started,
/// where it begins and ends, and up to where it is known to be confirmed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct History {
    pub(crate) id: Option<LogId>,
    pub(crate) epochs: Vec<EpochStart>,
    pub(crate) min: u64,
    pub(crate) end: u64,
    pub(crate) confirmed: u64,
}

/// Stands for records that no epoch tells of.
const BEFORE: EpochStart =
    EpochStart { epoch: Epoch(0), start: 0, node: NodeId(0), record_crc: false };

impl History {
    pub(crate) fn of(log: &dyn ReplicatedLog) -> Self {
        // The end first: an epoch that begins meanwhile begins behind it.
        let end = log.end();
        let (mut epochs, min) = (log.epochs(), log.min_offset());
        add_first(&mut epochs, min);
        Self { id: log.log_id(), epochs, min, end, confirmed: log.confirmed() }
    }

    /// The newest epoch of the log `id`. Those of another one say nothing of it.
    pub(crate) fn last_in(&self, id: Option<LogId>) -> EpochStart {
        self.last_of(id, |_| true)
    }

    /// The newest one of a primary: what was put without replication ends nobody's.
    pub(crate) fn last_reign_in(&self, id: Option<LogId>) -> EpochStart {
        self.last_of(id, EpochStart::is_reign)
    }

    fn last_of(&self, id: Option<LogId>, counts: impl Fn(&EpochStart) -> bool) -> EpochStart {
        let last = self.epochs.iter().rev().find(|one| counts(one));
        last.filter(|_| !self.is_of_another(id)).copied().unwrap_or(BEFORE)
    }

    /// Whether it was last of another log than `id`, even if nothing of that is left.
    pub(crate) fn is_of_another(&self, id: Option<LogId>) -> bool {
        self.id.is_some() && id.is_some() && self.id != id
    }

    /// How far primaries have brought it, see [`given`].
    pub(crate) fn given(&self) -> (Epoch, u64) {
        given(&self.epochs, self.min..self.end)
    }

    /// The same for the log `id`.
    pub(crate) fn given_in(&self, id: Option<LogId>) -> (Epoch, u64) {
        if self.is_of_another(id) { (BEFORE.epoch, 0) } else { self.given() }
    }

    /// Whether it is of the same log, so that what no epoch tells of is the same there, as far as it goes.
    pub(crate) fn is_copy_of(&self, other: &Self) -> bool {
        self.id.is_some() && self.id == other.id
    }

    fn is_empty(&self) -> bool {
        self.min == self.end
    }

    fn end_of(&self, index: usize) -> u64 {
        self.epochs.get(index + 1).map_or(self.end, |next| next.start.min(self.end))
    }

    /// Whether every byte was written under some epoch.
    fn is_told(&self) -> bool {
        self.epochs.first().is_some_and(|one| one.start <= self.min && one.epoch > BEFORE.epoch)
    }

    /// The log of which this one holds records, if that is another than `id`.
    pub(crate) fn other_than(&self, id: Option<LogId>) -> Option<LogId> {
        self.id.filter(|_| !self.is_empty() && self.is_of_another(id))
    }

    /// Whether the log of `node`, which has this history, may be brought in line like this with one whose id
    /// is `id`.
    pub(crate) fn allows(&self, plan: Plan, id: Option<LogId>, node: NodeId) -> bool {
        let is_same = self.id.is_some() && self.id == id;
        match plan {
            _ if is_same || self.is_empty() => true,
            // The bytes are compared before any are taken.
            Plan::Follow(_) => self.id.is_none() || id.is_none(),
            // A first primary whom nobody followed gives up all that it has: its cluster has begun without
            // it, in another log. Whoever knows of something that was ever confirmed is no such node, but one of
            // another cluster, even if that has expired since. Nor is a replica, which may hold what was
            // confirmed without having heard of that, or what was put without replication, which is safe where
            // it is.
            Plan::Restart(_) => {
                let is_own = self.epochs.iter().all(|one| one.node == node);
                self.id.is_some() && self.is_told() && is_own && self.confirmed == 0
            }
            Plan::Truncate(_) => false,
            Plan::Diverged => true,
        }
    }

    /// Up to where `other`, of the same log, holds the same bytes; `None` if they know no epoch in common.
    fn common_end(&self, other: &Self) -> Option<u64> {
        self.epochs.iter().enumerate().rev().find_map(|(ours, one)| {
            let theirs = other.epochs.iter().position(|other| other == one)?;
            Some(self.end_of(ours).min(other.end_of(theirs)))
        })
    }

    /// What the replica `node` with the history `other` has to do before it can follow this log. It refuses
    /// to give up what it was told to be confirmed.
    pub(crate) fn plan_for(&self, other: &Self, node: NodeId) -> Plan {
        let plan = if other.is_empty() {
            self.plan_for_empty(other)
        } else if other.is_of_another(self.id) {
            // Epochs of another log have nothing to do with these, however much they look like them.
            Plan::Restart(self.min)
        } else {
            self.plan_for_same(other, node)
        };
        if other.allows(plan, self.id, node) { plan } else { Plan::Diverged }
    }

    /// The same where nothing lies in the other log. One that goes on where it stands counts as holding all
    /// that comes before: where it did not follow this one up to there, it begins where this one does, and is
    /// told where the queues go on.
    fn plan_for_empty(&self, other: &Self) -> Plan {
        let (at, is_copy) = (other.end, other.is_copy_of(self));
        let begins_there = at == self.min && (is_copy || at == 0);
        let has_followed = is_copy && at > self.min && self.common_end(other) == Some(at);
        if begins_there || has_followed { Plan::Follow(at) } else { Plan::Restart(self.min) }
    }

    /// The same where both are of one log.
    fn plan_for_same(&self, other: &Self, node: NodeId) -> Plan {
        // Without an epoch in common, all that the other one holds is of epochs that ended differently. Of
        // records from before replication nobody knows whose they are, but for a node that has only ever
        // followed.
        let has_reigned = other.epochs.iter().any(|one| one.node == node);
        let follows = other.is_copy_of(self) && !has_reigned;
        let told = follows || self.is_told() && other.is_told();
        match self.common_end(other) {
            None if told => Plan::Restart(self.min),
            None => Plan::Diverged,
            // It was deleted, here or there.
            Some(common) if common < self.min.max(other.min) => Plan::Restart(self.min),
            Some(common) if common < other.end => Plan::Truncate(common),
            Some(common) => Plan::Follow(common),
        }
    }
}

/// The epoch that the record at `offset` belongs to, or would.
pub(crate) fn epoch_at(epochs: &[EpochStart], offset: u64) -> EpochStart {
    epochs.iter().rev().find(|one| one.start <= offset).copied().unwrap_or(BEFORE)
}

/// The first offset behind `offset` at which another epoch begins.
pub(crate) fn next_epoch(epochs: &[EpochStart], offset: u64) -> Option<u64> {
    epochs.iter().map(|one| one.start).find(|start| *start > offset)
}

/// Adds an epoch for records that no epoch tells of, if there are any.
fn add_first(epochs: &mut Vec<EpochStart>, min: u64) {
    if epochs.first().is_none_or(|first| first.start > min && first.epoch > BEFORE.epoch) {
        epochs.insert(0, BEFORE);
    }
}

/// What a replica has to do to follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Plan {
    /// It goes on at its end.
    Follow(u64),
    /// It cuts its log there first.
    Truncate(u64),
    /// It begins anew there: what it lacks is no longer kept.
    Restart(u64),
    /// The logs have nothing in common.
    Diverged,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    impl History {
        fn plan(&self, other: &Self) -> Plan {
            self.plan_for(other, NodeId(1))
        }
    }

    fn start(epoch: u64, start: u64) -> EpochStart {
        EpochStart { epoch: Epoch(epoch), start, node: NodeId(1), record_crc: true }
    }

    fn history(epochs: &[(u64, u64)], min: u64, end: u64) -> History {
        let mut epochs = epochs.iter().map(|(epoch, at)| start(*epoch, *at)).collect();
        add_first(&mut epochs, min);
        History { id: LogId::new(1), epochs, min, end, confirmed: 0 }
    }

    /// The same of another log.
    fn of_another_log(history: History) -> History {
        History { id: LogId::new(2), ..history }
    }

    /// The same of a log that was never replicated.
    fn of_no_log(history: History) -> History {
        History { id: None, ..history }
    }

    #[test]
    fn a_replica_that_is_behind_follows_on_from_its_end() {
        let primary = history(&[(1, 0), (2, 100)], 0, 300);
        assert_eq!(primary.plan(&history(&[(1, 0)], 0, 60)), Plan::Follow(60));
        assert_eq!(primary.plan(&history(&[(1, 0)], 0, 100)), Plan::Follow(100));
        assert_eq!(primary.plan(&history(&[(1, 0), (2, 100)], 0, 300)), Plan::Follow(300));
        assert_eq!(primary.plan(&history(&[], 0, 0)), Plan::Follow(0));
    }

    #[test]
    fn what_another_epoch_wrote_is_cut() {
        let primary = history(&[(1, 0), (3, 100)], 0, 300);
        assert_eq!(primary.plan(&history(&[(1, 0)], 0, 150)), Plan::Truncate(100));
        let other = history(&[(1, 0), (2, 80)], 0, 500);
        assert_eq!(primary.plan(&other), Plan::Truncate(80));
    }

    #[test]
    fn the_same_epoch_of_another_node_is_another_one() {
        let primary = history(&[(1, 0), (2, 100)], 0, 300);
        let mut other = primary.clone();
        other.epochs[1].node = NodeId(9);
        assert_eq!(primary.plan(&other), Plan::Truncate(100));
    }

    #[test]
    fn what_is_no_longer_kept_is_begun_anew() {
        let primary = history(&[(2, 50)], 200, 300);
        assert_eq!(primary.plan(&history(&[], 0, 0)), Plan::Restart(200));
        assert_eq!(primary.plan(&history(&[(2, 50)], 0, 120)), Plan::Restart(200));
    }

    #[test]
    fn where_the_common_epoch_is_no_longer_kept_a_replica_begins_anew() {
        let primary = history(&[(4, 150)], 200, 300);
        assert_eq!(primary.plan(&history(&[(1, 0)], 0, 120)), Plan::Restart(200));
        assert_eq!(primary.plan(&history(&[(1, 0)], 0, 250)), Plan::Restart(200));
        // Of what no epoch tells of, it depends on whether it may be the node's own.
        let untold = history(&[(1, 50)], 0, 120);
        assert_eq!(primary.plan(&untold), Plan::Diverged);
        assert_eq!(primary.plan_for(&untold, NodeId(2)), Plan::Restart(200));
        assert_eq!(primary.plan_for(&of_no_log(untold), NodeId(2)), Plan::Diverged);
    }

    #[test]
    fn what_follows_on_an_epoch_that_is_no_longer_kept_is_begun_anew() {
        let primary = history(&[(1, 0), (5, 200), (7, 300)], 0, 400);
        for other in [history(&[(3, 200), (4, 500)], 200, 800), history(&[(3, 500)], 500, 800)] {
            assert_eq!(primary.plan(&other), Plan::Restart(0));
        }
    }

    #[test]
    fn epochs_of_two_logs_are_two_however_equal_they_look() {
        let primary = history(&[(1, 0)], 0, 300);
        for end in [120, 300, 500] {
            let mut other = of_another_log(history(&[(1, 0)], 0, end));
            other.confirmed = 100;
            assert_eq!(primary.plan(&other), Plan::Diverged, "{end}");
        }
        let behind = history(&[(1, 0)], 200, 300);
        let mut other = of_another_log(history(&[(1, 0)], 0, 120));
        other.confirmed = 100;
        assert_eq!(behind.plan(&other), Plan::Diverged);
    }

    #[test]
    fn a_log_that_begins_later_takes_the_place_of_no_other_one() {
        let primary = history(&[(4, 150)], 200, 300);
        for end in [120, 250, 500] {
            let mut other = of_another_log(history(&[(1, 0)], 0, end));
            other.confirmed = 100;
            assert_eq!(primary.plan(&other), Plan::Diverged, "{end}");
        }
    }

    #[test]
    fn an_empty_log_follows_any_other_one() {
        let primary = history(&[(1, 0)], 0, 300);
        for empty in [history(&[], 0, 0), history(&[(1, 0)], 0, 0)] {
            assert_eq!(primary.plan(&of_another_log(empty.clone())), Plan::Follow(0));
            assert_eq!(primary.plan(&of_no_log(empty)), Plan::Follow(0));
        }
        let behind = history(&[(1, 0)], 200, 300);
        assert_eq!(behind.plan(&of_another_log(history(&[], 0, 0))), Plan::Restart(200));
    }

    #[test]
    fn a_first_primary_of_another_log_gives_it_up_if_nothing_of_it_is_confirmed() {
        for min in [0, 200] {
            let primary = history(&[(2, min)], min, 300);
            let other = of_another_log(history(&[(1, 0)], 0, 120));
            assert_eq!(primary.plan(&other), Plan::Restart(min));
            let known = History { confirmed: 1, ..other };
            assert_eq!(primary.plan(&known), Plan::Diverged);
            let expired = History { min: 50, ..known };
            assert_eq!(primary.plan(&expired), Plan::Diverged);
        }
        // What was there before is not its own.
        let primary = history(&[(2, 0)], 0, 300);
        let older = of_another_log(history(&[(1, 50)], 0, 120));
        assert_eq!(primary.plan(&older), Plan::Diverged);
        let far = of_another_log(history(&[(1, 400)], 400, 500));
        assert_eq!(primary.plan(&far), Plan::Restart(0));
        assert_eq!(primary.plan_for(&far, NodeId(2)), Plan::Diverged);
    }

    #[test]
    fn nothing_of_a_log_that_was_never_replicated_is_cut() {
        let primary = history(&[(1, 500)], 0, 700);
        assert_eq!(primary.plan(&of_no_log(history(&[], 0, 300))), Plan::Follow(300));
        assert_eq!(primary.plan(&of_no_log(history(&[], 0, 600))), Plan::Diverged);
        let behind = history(&[(1, 500)], 400, 700);
        assert_eq!(behind.plan(&of_no_log(history(&[], 0, 300))), Plan::Diverged);
    }

    #[test]
    fn logs_without_a_common_epoch_have_nothing_to_do_with_each_other() {
        let primary = history(&[(2, 0)], 0, 300);
        assert_eq!(primary.plan(&history(&[(1, 50)], 0, 120)), Plan::Diverged);
        assert_eq!(primary.plan(&of_no_log(history(&[], 0, 120))), Plan::Diverged);
    }

    #[test]
    fn a_first_primary_that_never_had_a_replica_begins_anew() {
        let primary = history(&[(2, 0)], 0, 300);
        assert_eq!(primary.plan(&history(&[(1, 0)], 0, 120)), Plan::Restart(0));
    }

    #[test]
    fn whoever_has_deleted_what_they_shared_begins_anew() {
        let primary = history(&[(1, 0), (2, 100)], 0, 300);
        for end in [250, 300, 500] {
            let other = history(&[(1, 0), (3, 120)], 200, end);
            assert_eq!(primary.plan(&other), Plan::Restart(0), "{end}");
        }
        let other = history(&[(1, 0), (3, 120)], 50, 300);
        assert_eq!(primary.plan(&other), Plan::Truncate(100));
    }

    #[test]
    fn a_node_stands_where_what_primaries_gave_it_ends_if_any_of_that_is_left() {
        let alone = EpochStart { node: NodeId(0), ..start(2, 100) };
        for (min, stands) in [(0, (1, 100)), (100, (1, 100)), (101, (0, 0))] {
            let mut visited = history(&[(1, 0)], min, 300);
            visited.epochs.push(alone);
            assert_eq!(visited.given(), (Epoch(stands.0), stands.1), "{min}");
        }
        assert_eq!(history(&[(1, 0), (2, 100)], 101, 300).given(), (Epoch(2), 300));
        assert_eq!(history(&[], 0, 300).given(), (Epoch(0), 300), "from before replication");
    }

    #[test]
    fn an_empty_log_goes_on_where_it_stands_only_if_it_followed_up_to_there() {
        let primary = history(&[(1, 0), (2, 100)], 0, 300);
        assert_eq!(primary.plan(&history(&[(1, 0)], 80, 80)), Plan::Follow(80));
        assert_eq!(primary.plan(&history(&[(1, 0)], 120, 120)), Plan::Restart(0));
        assert_eq!(primary.plan(&history(&[(1, 0), (2, 100)], 120, 120)), Plan::Follow(120));
        assert_eq!(primary.plan(&history(&[(1, 0), (2, 100)], 400, 400)), Plan::Restart(0));
        assert_eq!(primary.plan(&history(&[(3, 80)], 80, 80)), Plan::Restart(0));
        let begun_anew = history(&[(2, 0)], 200, 300);
        assert_eq!(begun_anew.plan(&history(&[], 200, 200)), Plan::Follow(200));
        for other in [of_another_log, of_no_log] {
            assert_eq!(begun_anew.plan(&other(history(&[], 200, 200))), Plan::Restart(200));
        }
    }

    #[test]
    fn records_from_before_the_first_epoch_are_one_epoch() {
        let primary = history(&[(1, 500)], 0, 700);
        assert_eq!(primary.plan(&history(&[], 0, 300)), Plan::Follow(300));
        assert_eq!(epoch_at(&primary.epochs, 499).epoch, Epoch(0));
        assert_eq!(next_epoch(&primary.epochs, 300), Some(500));
        assert_eq!(epoch_at(&primary.epochs, 500).epoch, Epoch(1));
        assert_eq!(next_epoch(&primary.epochs, 500), None);
    }

    /// A log as the epoch that wrote each byte.
    fn bytes(history: &History) -> Vec<(u64, u64)> {
        (0..history.end).map(|at| (epoch_at(&history.epochs, at).epoch.0, at)).collect()
    }

    proptest! {
        /// Histories that grow out of each other: each primary takes over from where some node was.
        #[test]
        fn the_common_end_is_where_the_bytes_begin_to_differ(
            steps in prop::collection::vec((0usize..3, 0usize..3, 0u64..20, any::<prop::sample::Index>()), 1..12)
        ) {
            let mut nodes = vec![history(&[], 0, 0); 3];
            for (epoch, (primary, follower, grow, share)) in steps.into_iter().enumerate() {
                let (epoch, end) = (epoch as u64 + 1, nodes[primary].end);
                nodes[primary].epochs.retain(|one| one.start < end);
                nodes[primary].epochs.push(start(epoch, end));
                nodes[primary].end += grow;
                if primary != follower {
                    let (ours, theirs) = (nodes[primary].clone(), nodes[follower].clone());
                    let common = match ours.plan(&theirs) {
                        Plan::Follow(at) | Plan::Truncate(at) | Plan::Restart(at) => at,
                        other => panic!("{other:?}"),
                    };
                    let differs = bytes(&ours).iter().zip(bytes(&theirs)).position(|(a, b)| *a != b);
                    let shorter = ours.end.min(theirs.end);
                    prop_assert_eq!(common, differs.map_or(shorter, |at| at as u64));
                    let reached = common + share.index((ours.end - common) as usize + 1) as u64;
                    let epochs = ours.epochs.iter().copied().filter(|one| one.start <= reached);
                    let epochs = epochs.collect();
                    nodes[follower] = History { epochs, end: reached, ..ours };
                }
            }
        }
    }
}
