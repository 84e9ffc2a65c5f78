//! The seam to a replicator: what it is told, and what it may ask and say.

use super::Shared;
#[cfg(feature = "replication")]
use super::Store;
use super::offsets::Offsets;
use crate::error::{Error, Result};
use crate::log::{Core, GroupOffset, Patience, Queues, queue_starts};
#[cfg(feature = "replication")]
use crate::replication::given;
use crate::replication::{
    Epoch, EpochStart, GroupStandings, LogId, LogSlice, NodeId, QueueStart, Refusal, ReplicatedLog,
    Replicator, Role, StartPoint,
};
use std::sync::{Arc, Weak};

impl Shared {
    /// Starts replication, before anything is shown to a reader. `shown` was, when the log was last
    /// open.
    pub(super) fn start_replicator(
        &self,
        replicator: &Arc<dyn Replicator>,
        shown: u64,
    ) -> Result<()> {
        let core = &self.core;
        let (end, epochs) = (core.progress.durable(), core.epochs());
        // A primary's readers go on from where they were. A replica's see nothing that the primary of
        // now may not have.
        let shown = if self.role == Role::Primary { shown } else { 0 };
        // Nor is anything before the beginning of a log that began anew: the dispatcher would look for it.
        let confirmed = core.agreed().max(shown).max(core.min_offset()).min(end);
        core.progress.require_confirmation(confirmed);
        let handle = LogHandle {
            core: Arc::downgrade(core),
            queues: Arc::downgrade(&self.queues),
            offsets: Arc::downgrade(&self.offsets),
            role: replicator.role(),
            lazy: !self.is_sync(),
            patience: if self.threaded {
                Patience::For(core.config.put_timeout)
            } else {
                Patience::None
            },
        };
        let at = StartPoint {
            min_offset: core.min_offset(),
            end,
            epoch: epochs.last(),
            begun: epochs.begun(),
            promised: epochs.promised,
            confirmed,
            lazy: !self.is_sync(),
            in_doubt: epochs.in_doubt,
        };
        let confirmed = replicator.start(Arc::new(handle), at)?;
        core.progress.set_confirmed(if confirmed == u64::MAX {
            core.vouch_for_none()?;
            u64::MAX
        } else {
            confirmed.min(end)
        });
        core.set_replicator(replicator.clone());
        Ok(())
    }
}

#[cfg(feature = "replication")]
impl Store {
    /// How far primaries have brought it, durably, see [`given`].
    pub(crate) fn given(&self) -> (Epoch, u64) {
        let core = &self.shared().core;
        // First: an epoch that is entered meanwhile comes behind all that is durable now.
        let durable = core.progress.durable();
        given(core.epochs().starts(), core.min_offset()..durable)
    }

    /// The newest epoch that a primary gave, also if nothing of it is left, or others are not told of it.
    pub(crate) fn last_reign(&self) -> Epoch {
        self.shared().core.epochs().last_reign()
    }
}

/// The log, as a replicator holds it: it does not keep a closed store alive.
#[derive(Debug)]
struct LogHandle {
    core: Weak<Core>,
    queues: Weak<Queues>,
    offsets: Weak<Offsets>,
    role: Role,
    /// Puts are acknowledged before they are durable here.
    lazy: bool,
    /// None in a store that is stepped: whoever waits there waits for itself.
    patience: Patience,
}

impl LogHandle {
    fn core(&self) -> Result<Arc<Core>> {
        self.core.upgrade().ok_or(Error::Closed)
    }

    fn core_as(&self, role: Role) -> Result<Arc<Core>> {
        if self.role == role {
            return self.core();
        }
        Err(Error::Refused(match role {
            Role::Primary => Refusal::NotPrimary,
            Role::Replica => Refusal::NotReplica,
        }))
    }

    fn order_cut(&self, to: u64, restarts: bool) -> Result<()> {
        let core = self.core_as(Role::Replica)?;
        core.check_cut(to, restarts)?;
        let offsets = self.offsets.upgrade().ok_or(Error::Closed)?;
        offsets.forget_deliveries()?;
        core.order_cut(to, restarts)
    }

    /// What `of` says of the log; 0 if it is gone.
    fn offset(&self, of: impl FnOnce(&Core) -> u64) -> u64 {
        self.core.upgrade().map_or(0, |core| of(&core))
    }
}

/// Refuses what is said under another epoch than the newest of the log.
fn check_epoch(core: &Core, is: Epoch) -> Result<()> {
    let was = core.newest_epoch();
    if was == is { Ok(()) } else { Err(Error::Refused(Refusal::EpochFell { was, is })) }
}

impl ReplicatedLog for LogHandle {
    fn min_offset(&self) -> u64 {
        self.offset(Core::min_offset)
    }

    fn end(&self) -> u64 {
        self.offset(|core| core.progress.written())
    }

    fn durable(&self) -> u64 {
        self.offset(|core| core.progress.durable())
    }

    fn segment_size(&self) -> u64 {
        self.offset(Core::segment_size)
    }

    fn read(&self, from: u64, max: u64) -> Result<LogSlice> {
        self.core()?.slice(from, max)
    }

    fn checksum(&self, end: u64, max: u64) -> Result<(u64, u32)> {
        self.core()?.checksum_before(end, max)
    }

    fn confirm(&self, end: u64, epoch: Epoch) -> Result<()> {
        let core = self.core()?;
        check_epoch(&core, epoch)?;
        let end = end.min(core.progress.appended());
        core.agree(end)?;
        core.progress.set_confirmed(end);
        Ok(())
    }

    fn confirmed(&self) -> u64 {
        self.offset(Core::agreed)
    }

    fn log_id(&self) -> Option<LogId> {
        self.core.upgrade().and_then(|core| core.epochs().id)
    }

    fn follow(&self, id: Option<LogId>, primary: Epoch) -> Result<()> {
        self.core_as(Role::Replica)?.follow(id, primary)
    }

    fn epochs(&self) -> Vec<EpochStart> {
        self.core.upgrade().map_or_else(Vec::new, |core| core.epochs().in_sight())
    }

    fn in_doubt(&self) -> bool {
        self.core.upgrade().is_some_and(|core| core.epochs().in_doubt)
    }

    fn promised(&self) -> Epoch {
        self.core.upgrade().map_or(Epoch(0), |core| core.epochs().barred())
    }

    fn is_fenced(&self) -> bool {
        self.core.upgrade().is_some_and(|core| core.epochs().is_fenced())
    }

    fn promise(&self, epoch: Epoch) -> Result<()> {
        self.core()?.promise(epoch)
    }

    fn begin_epoch(&self, epoch: Epoch, node: NodeId) -> Result<EpochStart> {
        self.core_as(Role::Primary)?.begin_epoch(epoch, node, self.lazy)
    }

    fn enter_epoch(&self, start: EpochStart) -> Result<()> {
        self.core_as(Role::Replica)?.enter_epoch(start)
    }

    fn append(&self, at: u64, epoch: Epoch, bytes: &[u8]) -> Result<u64> {
        let core = self.core_as(Role::Replica)?;
        check_epoch(&core, epoch)?;
        core.directory().note_copies(&*core.disk)?;
        let end = core.append_verbatim(at, bytes, self.patience)?;
        // Not left to the flusher, which may be in the middle of a sync: the next session of this replica
        // says that it has what is written.
        core.write()?;
        Ok(end)
    }

    fn truncate(&self, to: u64) -> Result<()> {
        self.order_cut(to, false)
    }

    fn queue_starts(&self, at: u64) -> Result<Vec<QueueStart>> {
        let (core, queues) = (self.core()?, self.queues.upgrade().ok_or(Error::Closed)?);
        let starts = queues.starts_in(at)?;
        // The log loses its segments first: while it begins there, so do the queues.
        match core.min_offset() {
            min if min == at => Ok(starts),
            end => Err(Error::Refused(Refusal::OutOfPlace { end, at })),
        }
    }

    fn prepare_restart(&self, at: u64, queues: &[QueueStart]) -> Result<()> {
        let core = self.core_as(Role::Replica)?;
        queue_starts::prepare(&*core.disk, core.directory(), at, queues)
    }

    fn restart(&self, at: u64) -> Result<()> {
        self.order_cut(at, true)
    }

    fn group_moves(&self) -> u64 {
        self.offsets.upgrade().map_or(0, |offsets| offsets.moves())
    }

    fn group_standings(&self) -> Result<GroupStandings> {
        let offsets = self.offsets.upgrade().ok_or(Error::Closed)?;
        // In this order: a move that is not in the offsets yet is counted later, and the log has all that a
        // group has seen, or put before it went on.
        let (moves, offsets) = (offsets.moves(), offsets.all().into());
        Ok(GroupStandings { moves, offsets, end: self.core()?.progress.appended() })
    }

    fn take_group_offsets(&self, whole: bool, offsets: &[GroupOffset]) -> Result<()> {
        self.core_as(Role::Replica)?;
        self.offsets.upgrade().ok_or(Error::Closed)?.take_over(whole, offsets)
    }
}
