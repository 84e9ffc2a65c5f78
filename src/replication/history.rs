//! What two logs have in common, told by their epochs alone.

use super::{Epoch, EpochStart, NodeId, ReplicatedLog};

/// The epochs of a log, with one for the records that lie before the first replicator was started, and
/// where it begins and ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct History {
    pub(crate) epochs: Vec<EpochStart>,
    pub(crate) min: u64,
    pub(crate) end: u64,
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
        Self { epochs, min, end }
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

    /// The same, from offset 0 on.
    fn is_told_from_the_start(&self) -> bool {
        self.min == 0 && self.is_told()
    }

    /// Up to where `other` holds the same bytes; `None` if they know no epoch in common.
    pub(crate) fn common_end(&self, other: &Self) -> Option<u64> {
        let common = self.epochs.iter().enumerate().rev().find_map(|(ours, one)| {
            let theirs = other.epochs.iter().position(|other| other == one)?;
            Some(self.end_of(ours).min(other.end_of(theirs)))
        });
        // Two that began empty have that in common. Of records from before replication nobody knows
        // whose they are.
        let both_told = self.is_told_from_the_start() && other.is_told_from_the_start();
        common.or(both_told.then_some(0))
    }

    /// What a replica with the history `other` has to do before it can follow this log.
    pub(crate) fn plan_for(&self, other: &Self) -> Plan {
        let common = if other.is_empty() { Some(other.end) } else { self.common_end(other) };
        match common {
            // What they had in common may have been deleted here. Whoever was told that it is confirmed
            // refuses to begin anew.
            None if self.min > 0 && other.is_told() => Plan::Restart(self.min),
            None => Plan::Diverged,
            Some(common) if common < self.min => Plan::Restart(self.min),
            // An empty log further on than this one holds nothing that could be cut.
            Some(common) if common > self.end => Plan::Diverged,
            Some(common) if common < other.min => Plan::Diverged,
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

    fn start(epoch: u64, start: u64) -> EpochStart {
        EpochStart { epoch: Epoch(epoch), start, node: NodeId(1), record_crc: true }
    }

    fn history(epochs: &[(u64, u64)], min: u64, end: u64) -> History {
        let mut epochs = epochs.iter().map(|(epoch, at)| start(*epoch, *at)).collect();
        add_first(&mut epochs, min);
        History { epochs, min, end }
    }

    #[test]
    fn a_replica_that_is_behind_follows_on_from_its_end() {
        let primary = history(&[(1, 0), (2, 100)], 0, 300);
        assert_eq!(primary.plan_for(&history(&[(1, 0)], 0, 60)), Plan::Follow(60));
        assert_eq!(primary.plan_for(&history(&[(1, 0)], 0, 100)), Plan::Follow(100));
        assert_eq!(primary.plan_for(&history(&[(1, 0), (2, 100)], 0, 300)), Plan::Follow(300));
        assert_eq!(primary.plan_for(&history(&[], 0, 0)), Plan::Follow(0));
    }

    #[test]
    fn what_another_epoch_wrote_is_cut() {
        let primary = history(&[(1, 0), (3, 100)], 0, 300);
        assert_eq!(primary.plan_for(&history(&[(1, 0)], 0, 150)), Plan::Truncate(100));
        let other = history(&[(1, 0), (2, 80)], 0, 500);
        assert_eq!(primary.plan_for(&other), Plan::Truncate(80));
    }

    #[test]
    fn the_same_epoch_of_another_node_is_another_one() {
        let primary = history(&[(1, 0), (2, 100)], 0, 300);
        let mut other = primary.clone();
        other.epochs[1].node = NodeId(9);
        assert_eq!(primary.plan_for(&other), Plan::Truncate(100));
    }

    #[test]
    fn what_is_no_longer_kept_is_begun_anew() {
        let primary = history(&[(2, 50)], 200, 300);
        assert_eq!(primary.plan_for(&history(&[], 0, 0)), Plan::Restart(200));
        assert_eq!(primary.plan_for(&history(&[(2, 50)], 0, 120)), Plan::Restart(200));
    }

    #[test]
    fn where_the_common_epoch_is_no_longer_kept_a_replica_begins_anew() {
        let primary = history(&[(4, 150)], 200, 300);
        assert_eq!(primary.plan_for(&history(&[(1, 0)], 0, 120)), Plan::Restart(200));
        assert_eq!(primary.plan_for(&history(&[(1, 0)], 0, 250)), Plan::Restart(200));
        assert_eq!(primary.plan_for(&history(&[(1, 50)], 0, 120)), Plan::Diverged);
    }

    #[test]
    fn logs_without_a_common_epoch_have_nothing_to_do_with_each_other() {
        let primary = history(&[(2, 0)], 0, 300);
        assert_eq!(primary.plan_for(&history(&[(1, 50)], 0, 120)), Plan::Diverged);
        assert_eq!(primary.plan_for(&history(&[], 0, 120)), Plan::Diverged);
    }

    #[test]
    fn a_first_primary_that_never_had_a_replica_begins_anew() {
        let primary = history(&[(2, 0)], 0, 300);
        assert_eq!(primary.plan_for(&history(&[(1, 0)], 0, 120)), Plan::Truncate(0));
    }

    #[test]
    fn records_from_before_the_first_epoch_are_one_epoch() {
        let primary = history(&[(1, 500)], 0, 700);
        assert_eq!(primary.plan_for(&history(&[], 0, 300)), Plan::Follow(300));
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
                    let common = match ours.plan_for(&theirs) {
                        Plan::Follow(at) | Plan::Truncate(at) => at,
                        other => panic!("{other:?}"),
                    };
                    let differs = bytes(&ours).iter().zip(bytes(&theirs)).position(|(a, b)| *a != b);
                    let shorter = ours.end.min(theirs.end);
                    prop_assert_eq!(common, differs.map_or(shorter, |at| at as u64));
                    let reached = common + share.index((ours.end - common) as usize + 1) as u64;
                    let epochs = ours.epochs.iter().copied().filter(|one| one.start <= reached);
                    nodes[follower] = History { epochs: epochs.collect(), min: 0, end: reached };
                }
            }
        }
    }
}
