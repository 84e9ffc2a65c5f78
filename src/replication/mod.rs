//! The hook through which a log is copied elsewhere before a put is called safe, and a primary and replicas
//! over TCP behind it (feature `replication`): begin with `Primary` and `Replica`.
//!
//! The store gives out offsets and bytes; a [`Replicator`] carries them away and says how far the
//! others have come, by moving one watermark: everything below *confirmed* is held by as many
//! replicas as the policy asks for and is never taken back. Puts wait for that watermark, and under
//! [`Visibility::Safe`](crate::Visibility::Safe) readers see nothing above it. On the other nodes a
//! [`Replicator`] in [`Role::Replica`] takes the bytes over.
//!
//! The feature `sim` adds `ScriptedReplica`, which confirms, delays, refuses or vanishes as its
//! `ReplicaBehaviour` says.

#[cfg(feature = "replication")]
mod events;
#[cfg(feature = "replication")]
mod feed;
#[cfg(all(fuzzing, feature = "replication"))]
pub mod fuzzing;
#[cfg(feature = "replication")]
mod group;
#[cfg(feature = "replication")]
mod history;
#[cfg(feature = "replication")]
mod inbox;
#[cfg(feature = "replication")]
mod link;
#[cfg(feature = "replication")]
mod net;
#[cfg(feature = "replication")]
mod options;
#[cfg(feature = "replication")]
mod primary;
#[cfg(feature = "replication")]
mod replica;
#[cfg(feature = "replication")]
mod rocketmq;
#[cfg(feature = "sim")]
mod scripted;
#[cfg(feature = "replication")]
mod secret;
#[cfg(feature = "replication")]
mod session;
#[cfg(all(test, feature = "sim", feature = "replication"))]
mod simulation;
#[cfg(feature = "replication")]
mod tail;
#[cfg(feature = "replication")]
mod wire;

#[cfg(feature = "replication")]
pub use events::{Event, Observer};
#[cfg(feature = "replication")]
pub use group::{AckLevel, ReplicaStatus};
#[cfg(feature = "replication")]
pub use net::{Acceptor, Connector, Stream, StreamWriter, TcpAcceptor, TcpConnector};
#[cfg(feature = "replication")]
pub use options::{Ack, NodeOptions, PrimaryOptions, Protocol, ReplicaOptions};
#[cfg(feature = "replication")]
pub use primary::Primary;
#[cfg(feature = "replication")]
pub use replica::{Replica, ReplicaState, Standing};
#[cfg(feature = "replication")]
pub use secret::Secret;
#[cfg(feature = "replication")]
pub use session::SessionError;

#[cfg(feature = "sim")]
pub use scripted::{ReplicaBehaviour, ScriptedReplica};

use crate::disk::{DiskFile, Region};
use crate::error::Result;
use crate::log::GroupOffset;
use std::fmt;
use std::num::NonZeroU64;
use std::ops::Range;
use std::sync::Arc;
#[cfg(feature = "replication")]
use std::{io, os::fd::BorrowedFd};

/// The reign of a primary. It never falls; what is said under an older one is refused.
///
/// The upper half is a *term*: whoever decides which node is the primary begins one with each decision,
/// and never gives it to two nodes. The lower half counts the openings of that primary in its term. So a
/// primary that is only opened again never gets in the way of one that was chosen meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Epoch(pub u64);

/// Bits of an epoch that count openings.
const OPENING_BITS: u32 = 32;

impl Epoch {
    /// The beginning of a term.
    pub const fn term(term: u32) -> Self {
        Self((term as u64) << OPENING_BITS)
    }

    /// The beginning of the term after this epoch's. Nothing follows the last term: there it is an epoch that
    /// begins none.
    pub const fn next_term(self) -> Self {
        match ((self.0 >> OPENING_BITS) + 1).checked_mul(1 << OPENING_BITS) {
            Some(next) => Self(next),
            None => Self(u64::MAX),
        }
    }

    /// The epoch after this one. Nothing follows the last one: it is refused again.
    pub(crate) const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// Whether a term begins with it.
    pub const fn begins_term(self) -> bool {
        self.0.trailing_zeros() >= OPENING_BITS
    }
}

/// A machine that holds a copy of the log. 0 stands for none in particular.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct NodeId(pub u64);

/// Which log it is: drawn when the first epoch of a log begins, and taken over by whoever follows. The logs
/// of two clusters have different ones, whatever their nodes and epochs are called.
///
/// A copy of the directory, a [snapshot](crate::Store::snapshot) for instance, is of the same log: it may
/// join the cluster it was taken from. To make a cluster of its own out of it, keep the two apart by
/// `NodeOptions::cluster` or a secret, and give it an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LogId(pub NonZeroU64);

impl LogId {
    pub(crate) fn new(number: u64) -> Option<Self> {
        NonZeroU64::new(number).map(Self)
    }

    /// The number where a log has one, and 0 where it has none.
    pub(crate) fn number(id: Option<Self>) -> u64 {
        id.map_or(0, |id| id.0.get())
    }
}

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Where a queue goes on in a log that begins later than with its first record.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct QueueStart {
    /// The topic.
    pub topic: String,
    /// The queue.
    pub queue_id: i32,
    /// The queue offset of its first record that lies there or behind, also of one to come.
    pub offset: u64,
}

/// How far consumer groups have come.
#[derive(Debug, Clone)]
pub struct GroupStandings {
    /// [`ReplicatedLog::group_moves`] says so much, or more, once there is something new.
    pub moves: u64,
    /// In order of their groups, topics and queues.
    pub offsets: Arc<[GroupOffset]>,
    /// Whatever a group had seen, and whatever it had put before it went on, lies before this physical offset.
    pub end: u64,
}

/// The beginning of an epoch in a log. Two copies of a [log](LogId) that know the same one are equal up to
/// where it, or the copy, ends first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct EpochStart {
    /// The epoch.
    pub epoch: Epoch,
    /// Physical offset of its first record.
    pub start: u64,
    /// Who was the primary.
    pub node: NodeId,
    /// Whether its records carry `__CRC32#`: then one without a matching checksum is corrupt.
    pub record_crc: bool,
}

impl EpochStart {
    /// Whether a primary wrote under it: puts without replication are under node 0's, as are the records from
    /// before it.
    pub(crate) fn is_reign(&self) -> bool {
        self.node != NodeId(0)
    }
}

/// The newest of these epochs that a primary gave, and where what it gave ends, in a log of which `kept` is
/// there. What was put behind that without replication is on this node alone, whatever its epoch is called, and
/// says nothing of how far the node had come. Where nothing is left of it, that is no further than an empty log.
#[cfg(feature = "replication")]
pub(crate) fn given(epochs: &[EpochStart], kept: Range<u64>) -> (Epoch, u64) {
    let newest = epochs.iter().rev().find(|one| one.is_reign());
    // What is from before replication counts: others have it from whoever was the first primary.
    let alone = epochs.iter().rev().take_while(|one| !one.is_reign() && one.epoch > Epoch(0));
    let end = alone.map(|one| one.start).fold(kept.end, u64::min);
    let none = (Epoch(0), 0);
    if end < kept.start { none } else { (newest.map_or(none.0, |one| one.epoch), end) }
}

/// Who gives out the offsets of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// This node does: it takes puts.
    Primary,
    /// Another node does: this one takes over its records, and refuses puts.
    Replica,
}

/// Why something was refused; nothing was changed by it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refusal {
    /// Fewer replicas are in reach than the policy insists on.
    NotEnoughReplicas {
        /// Replicas in reach: connected, and not too far behind.
        available: usize,
        /// Replicas required.
        required: usize,
    },
    /// This node is not the primary, or no longer.
    NotPrimary,
    /// This node is not a replica: it gives out the offsets itself.
    NotReplica,
    /// The log holds records, and they are of another one than what is to come.
    AnotherLog,
    /// The replicator was stopped.
    Stopped,
    /// The epoch is older than one that the log knows or has been promised to.
    EpochFell {
        /// The epoch of the log.
        was: Epoch,
        /// The other one.
        is: Epoch,
    },
    /// The log does not end there, or does not hold what should be there.
    OutOfPlace {
        /// Physical offset behind its last record.
        end: u64,
        /// The offset that was meant.
        at: u64,
    },
    /// This node was the primary, under async flush, and was not closed in order: puts that replicas have
    /// confirmed may be lost here. `Primary::recover` asks the replicas; or make one of them the primary;
    /// or give this one a new epoch explicitly, which gives up what only they have: replicas that know
    /// it to be confirmed have to be emptied before they can follow, and fenced before they do.
    TailInDoubt,
    /// A replica, or the log of one, is to become the primary that was not fenced before, or has followed
    /// another primary since, and was given no epoch: that primary may be at work.
    NotFenced,
    /// What is to be cut is confirmed: someone was told that it is never taken back. The peer is a wrong
    /// one, or was made primary without asking enough replicas.
    Confirmed {
        /// Everything before this physical offset is confirmed.
        confirmed: u64,
        /// Where it should be cut.
        to: u64,
    },
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotEnoughReplicas { available, required } => {
                write!(f, "{available} replicas in reach, {required} required")
            }
            Self::NotPrimary => f.write_str("this node is not the primary"),
            Self::NotReplica => f.write_str("this node is not a replica"),
            Self::AnotherLog => f.write_str("what is to come is of another log than what is here"),
            Self::Stopped => f.write_str("the replicator is stopped"),
            Self::EpochFell { was, is } => {
                write!(f, "the log knows epoch {}, or has promised it, so {} is too old", was.0, is.0)
            }
            Self::OutOfPlace { end, at } => {
                write!(f, "physical offset {at} does not fit a log that ends at {end}")
            }
            Self::NotFenced => f.write_str(
                "the replica was not fenced, or has followed a primary since: `Replica::fence` enough of \
                 them before one is promoted",
            ),
            Self::TailInDoubt => f.write_str(
                "the end of the log may be lost here and be on replicas alone; ask them with \
                 `Primary::recover`, promote one of them, or give a new epoch explicitly",
            ),
            Self::Confirmed { confirmed, to } => write!(
                f,
                "a cut at {to} would take back what is confirmed up to {confirmed}; follow another \
                 primary, or empty this node's directory to begin anew, and fence it with the newest \
                 term before it follows"
            ),
        }
    }
}

/// What becomes of a put on the way to the replicas.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Confirmation {
    /// It waits until replicas have confirmed it.
    Awaited,
    /// Too few replicas are in reach to confirm it: it is stored here, as safely as without replication,
    /// and ends as `ReplicaNotAvailable` without waiting for them.
    OutOfReach,
    /// It does not depend on replicas.
    NotAsked,
}

/// What the replicator says to a put that has not been written yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Admission {
    /// The epoch under which the put is accepted.
    pub epoch: Epoch,
    /// Whether it waits for replicas.
    pub confirmation: Confirmation,
}

/// Where the log stands when replication starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct StartPoint {
    /// Physical offset of the first byte kept.
    pub min_offset: u64,
    /// Physical offset behind the last record. All of it is durable.
    pub end: u64,
    /// The newest epoch of the log; 0 without one.
    pub epoch: Epoch,
    /// The newest epoch that this node has begun, also where the log has lost all of it, which others may
    /// have; 0 if another node has reigned since.
    pub begun: Epoch,
    /// Nobody may write under an epoch before this one any more.
    pub promised: Epoch,
    /// Everything before was confirmed, or shown to readers, when the log was last open; a lower bound.
    pub confirmed: u64,
    /// Puts are acknowledged before they are durable here.
    pub lazy: bool,
    /// The log was last written by this node under async flush, and not closed in order: what was
    /// confirmed at its end may be lost here, and be on replicas alone.
    pub in_doubt: bool,
}

/// A backend that copies the log to other machines, or takes it over from another.
///
/// **Order.** `role` and `start` once, before the first put; then any number of the others; `stop` once,
/// when the store closes: puts that still wait for replicas then end as `FlushReplicaTimeout`. A store
/// keeps its role for as long as it is open: a change of roles is a close and an open, which takes a
/// millisecond or two, and gives everything that waited its answer.
/// **Threads.** `admit` and `on_written` are called from producers' threads and from the store's,
/// also at the same time, so an `end` may be lower than one reported before; `on_durable` from the
/// thread that syncs. **Blocking.** No method but `start` and `stop` may block, and `on_written` and
/// `on_durable` may not call the store, whose locks are held: they stand in the path of every put and
/// are meant to signal other threads. The log may be read, and confirmed, from any of them.
///
/// # Examples
/// One that confirms what is written here, as if a replica had answered at once:
/// ```
/// use duralog::replication::{
///     Admission, Confirmation, Epoch, NodeId, Refusal, ReplicatedLog, Replicator, StartPoint,
/// };
/// use duralog::{Environment, Message, Reached, Result, Store, StoreConfig};
/// use std::sync::{Arc, OnceLock};
///
/// #[derive(Debug, Default)]
/// struct Echo {
///     log: OnceLock<(Arc<dyn ReplicatedLog>, Epoch)>,
/// }
///
/// impl Replicator for Echo {
///     fn start(&self, log: Arc<dyn ReplicatedLog>, at: StartPoint) -> Result<u64> {
///         // Newer than all that the log knows, has known or has promised.
///         let epoch = Epoch(at.epoch.max(at.begun).max(at.promised).0 + 1);
///         log.begin_epoch(epoch, NodeId(1))?;
///         self.log.get_or_init(|| (log, epoch));
///         Ok(at.end) // what the log holds already counts as confirmed
///     }
///
///     fn admit(&self) -> Result<Admission, Refusal> {
///         let (_, epoch) = self.log.get().ok_or(Refusal::Stopped)?;
///         Ok(Admission { epoch: *epoch, confirmation: Confirmation::Awaited })
///     }
///
///     fn on_written(&self, end: u64) {
///         // A real one signals its threads here; they `read` the log, send, and confirm.
///         if let Some((log, epoch)) = self.log.get() {
///             let _ = log.confirm(end, *epoch);
///         }
///     }
///
///     fn on_durable(&self, _end: u64) {}
///
///     fn stop(&self) {}
/// }
///
/// # let dir = std::env::temp_dir().join(format!("duralog-doc-replicator-{}", std::process::id()));
/// let config = StoreConfig::new(&dir).segment_size(1 << 20);
/// let store = Store::open_replicated(config, Environment::default(), Arc::new(Echo::default()))?;
/// assert_eq!(store.put(Message::new("orders", "paid 42"))?.reached, Reached::Confirmed);
/// # store.close()?;
/// # std::fs::remove_dir_all(&dir).unwrap();
/// # Ok::<(), duralog::Error>(())
/// ```
pub trait Replicator: Send + Sync + fmt::Debug + 'static {
    /// Whether this node takes puts, or takes over another one's records. Asked once, before the log is
    /// recovered.
    fn role(&self) -> Role {
        Role::Primary
    }

    /// Begins replicating `log`, and says up to where it counts as confirmed: from now on readers see
    /// nothing behind that offset, or [`StartPoint::confirmed`] if that is higher, before
    /// [`ReplicatedLog::confirm`] moves it, and puts that are [awaited](Confirmation::Awaited) wait for
    /// it. `u64::MAX` if readers and puts do not depend on replicas.
    ///
    /// A primary begins its epoch here, with [`ReplicatedLog::begin_epoch`], before it accepts or sends
    /// anything. The backend starts its own threads here; the log can be read and confirmed at once.
    ///
    /// # Errors
    /// The store is then not opened, and `stop` is not called.
    fn start(&self, log: Arc<dyn ReplicatedLog>, at: StartPoint) -> Result<u64>;

    /// Whether a put may go ahead. Nothing was written yet. Not asked in [`Role::Replica`], where every
    /// put is refused.
    ///
    /// # Errors
    /// The put fails with [`Error::Refused`](crate::Error::Refused), and nothing is stored.
    fn admit(&self) -> Result<Admission, Refusal>;

    /// Bytes up to `end` are in the page cache here and can be read through the log.
    fn on_written(&self, end: u64);

    /// Bytes up to `end` survive a power cut here.
    fn on_durable(&self, end: u64);

    /// Physical offset behind which some replica still needs the log: with
    /// [`pin_by_replicas`](crate::config::Retention::pin_by_replicas) nothing from there on is deleted.
    /// None needs anything unless this says otherwise.
    fn retention_floor(&self) -> u64 {
        u64::MAX
    }

    /// Ends replication and joins the backend's threads.
    fn stop(&self);
}

/// The log as a replicator sees it. It does not keep a closed store alive: then offsets are 0, and
/// everything else is [`Error::Closed`](crate::Error::Closed).
pub trait ReplicatedLog: Send + Sync + fmt::Debug {
    /// Physical offset of the first byte kept.
    fn min_offset(&self) -> u64;

    /// Physical offset behind the last byte that can be read.
    fn end(&self) -> u64;

    /// Physical offset behind the last byte that survives a power cut here.
    fn durable(&self) -> u64;

    /// Bytes of a segment, by which all nodes must go: records do not cross from one to the next.
    fn segment_size(&self) -> u64;

    /// Bytes from `from` on, at most `max` of them and all from one segment; empty at the end, and where
    /// they are no longer kept. They are not copied, and stay readable as long as the slice is held.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) if the segment cannot be opened or mapped.
    fn read(&self, from: u64, max: u64) -> Result<LogSlice>;

    /// A CRC-32 of the last bytes before `end`, at most `max`, and how many they are: by it two nodes
    /// find out whether they speak of the same log.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    fn checksum(&self, end: u64, max: u64) -> Result<(u64, u32)>;

    /// Everything before `end` is held by as many replicas as the policy asks for, and never taken back:
    /// readers may see it. Lower values than before change nothing.
    ///
    /// # Errors
    /// [`Error::Refused`](crate::Error::Refused) if `epoch` is not the newest of the log.
    fn confirm(&self, end: u64, epoch: Epoch) -> Result<()>;

    /// What [`confirm`](Self::confirm) last said, or had said when the log was last open; a lower bound.
    fn confirmed(&self) -> u64;

    /// Which log it is, if it was ever replicated.
    fn log_id(&self) -> Option<LogId>;

    /// Notes which log the records are of that come next, and in which epoch whoever brings them reigns,
    /// before the first of them is taken; `None` where they come from something that has no ids. Durable on
    /// return. What is here must be known to be the beginning of that log. In [`Role::Replica`].
    ///
    /// # Errors
    /// [`Error::Refused`](crate::Error::Refused) if the log holds records of another one;
    /// [`Error::DiskFull`](crate::Error::DiskFull), [`Error::Io`](crate::Error::Io).
    fn follow(&self, id: Option<LogId>, primary: Epoch) -> Result<()>;

    /// The epochs of the log, oldest first: those of which it holds bytes, and the newest.
    fn epochs(&self) -> Vec<EpochStart>;

    /// Whether this node may lack something that it has vouched for: it was a primary under async flush,
    /// was not closed in order, and has not come to the epoch of whoever it [follows](Self::follow) since, with
    /// all that comes before durable here.
    fn in_doubt(&self) -> bool;

    /// The epoch that nobody may write before any more; see [`promise`](Self::promise).
    fn promised(&self) -> Epoch;

    /// Whether [`promised`](Self::promised) is what someone has asked for with [`promise`](Self::promise), and
    /// this log knows of nobody who has reigned in that epoch, or a later one, since: an epoch that is left
    /// again is promised, too, but was another node's.
    fn is_fenced(&self) -> bool;

    /// Lets nobody write under an epoch before `epoch` any more, also after a crash: durable on return.
    /// Who asks enough replicas for that promise can then choose the one with the most as the next
    /// primary, and no older one confirms anything behind its back.
    ///
    /// # Errors
    /// [`Error::Refused`](crate::Error::Refused) if the log knows `epoch` or a later one, or has promised
    /// it; [`Error::DiskFull`](crate::Error::DiskFull), [`Error::Io`](crate::Error::Io).
    fn promise(&self, epoch: Epoch) -> Result<()>;

    /// Begins an epoch of this node at the end of the log, before the first put under it; durable on
    /// return. A log without an id is given one. In [`Role::Primary`].
    ///
    /// # Errors
    /// As [`promise`](Self::promise), but that someone may have [asked](Self::is_fenced) for a promise to this
    /// epoch.
    fn begin_epoch(&self, epoch: Epoch, node: NodeId) -> Result<EpochStart>;

    /// Notes that what comes next, at the end of the log, is of this epoch; durable on return. Entering
    /// the newest one again changes nothing. Epochs of which the log holds nothing are left for it, and
    /// those of primaries are promised from then on. In [`Role::Replica`].
    ///
    /// It may be older than what was promised: a new primary also brings what was written before. The
    /// backend sees to it that nobody brings anything whose own epoch is.
    ///
    /// # Errors
    /// [`Error::Refused`](crate::Error::Refused) if the log holds records of this or a later epoch, or if
    /// the epoch does not begin where the log ends; an empty log may begin in the middle of one.
    /// [`Error::DiskFull`](crate::Error::DiskFull), [`Error::Io`](crate::Error::Io).
    fn enter_epoch(&self, start: EpochStart) -> Result<()>;

    /// Takes over the records and blanks at the front of `bytes`, as far as they are whole, byte for
    /// byte, at the end of the log, which is `at`; the new end. They are checked before, and in the
    /// page cache or on their way there on return. In [`Role::Replica`].
    ///
    /// What is not whole at the end of `bytes` is not taken: it is to come again, with its rest. One
    /// record may be as long as a segment.
    ///
    /// # Errors
    /// [`Error::Corrupt`](crate::Error::Corrupt) if no valid record is there;
    /// [`Error::Refused`](crate::Error::Refused) if the log does not end at `at`, or `epoch` is not the
    /// newest; [`Error::DiskFull`](crate::Error::DiskFull), [`Error::Full`](crate::Error::Full) and
    /// [`Error::SegmentNotReady`](crate::Error::SegmentNotReady) after `put_timeout`.
    fn append(&self, at: u64, epoch: Epoch, bytes: &[u8]) -> Result<u64>;

    /// Orders a cut at `to`, and ends this log: nothing is written any more, calls fail with
    /// [`Error::Latched`](crate::Error::Latched) by [`Error::Retired`](crate::Error::Retired). The order
    /// is durable on return, and the next open carries it out before anything else, or finishes it after
    /// a crash. A log is never cut under its readers: views of what is cut stay what they are.
    /// In [`Role::Replica`].
    ///
    /// # Errors
    /// [`Error::Refused`](crate::Error::Refused) if that is not inside the log, or before what is
    /// [confirmed](Self::confirmed); [`Error::Io`](crate::Error::Io).
    fn truncate(&self, to: u64) -> Result<()>;

    /// Where each queue goes on at `at`, with which the log begins; those that go on with 0 are left out. No
    /// record tells of a queue all of whose records have expired: whoever gives this log to a node that
    /// [begins it anew](Self::restart) gives these along, lest queue offsets be given out twice there. Not to be
    /// asked before [`Replicator::start`] has returned.
    ///
    /// # Errors
    /// [`Error::Refused`](crate::Error::Refused) if the log does not begin at `at`, or no longer;
    /// [`Error::Io`](crate::Error::Io), [`Error::Corrupt`](crate::Error::Corrupt).
    fn queue_starts(&self, at: u64) -> Result<Vec<QueueStart>> {
        let _ = at;
        Ok(Vec::new())
    }

    /// Keeps what [`queue_starts`](Self::queue_starts) says elsewhere for a [`restart`](Self::restart) at `at`;
    /// durable on return, and in force once that is carried out: queues that are not among them begin with 0
    /// then. In [`Role::Replica`].
    ///
    /// # Errors
    /// [`Error::DiskFull`](crate::Error::DiskFull), [`Error::Io`](crate::Error::Io).
    fn prepare_restart(&self, at: u64, queues: &[QueueStart]) -> Result<()> {
        let _ = (at, queues);
        Ok(())
    }

    /// The same for a log that begins anew at `at`, a multiple of the segment size: what it lacks is no
    /// longer to be had where the log comes from. Its queues go on where they did here, or with 0, unless
    /// [`prepare_restart`](Self::prepare_restart) was told otherwise.
    ///
    /// # Errors
    /// As [`truncate`](Self::truncate).
    fn restart(&self, at: u64) -> Result<()>;

    /// Counts how often a consumer group has moved since the log was opened.
    fn group_moves(&self) -> u64 {
        0
    }

    /// How far all consumer groups have come. Not to be asked before [`Replicator::start`] has returned.
    ///
    /// # Errors
    /// [`Error::Closed`](crate::Error::Closed).
    fn group_standings(&self) -> Result<GroupStandings> {
        Ok(GroupStandings { moves: 0, offsets: Arc::default(), end: u64::MAX })
    }

    /// Takes over what [`group_standings`](Self::group_standings) says elsewhere, all of it if it is the
    /// `whole`, and otherwise what has moved; in the page cache on return. Groups that have committed here,
    /// while this was a replica, stay where they are. In [`Role::Replica`], and only once what lies before the
    /// standings' `end` is durable here, and [confirmed](Self::confirmed): a group that is taken on must not
    /// pass over what another log has in its place.
    ///
    /// # Errors
    /// [`Error::DiskFull`](crate::Error::DiskFull), [`Error::Io`](crate::Error::Io),
    /// [`Error::Latched`](crate::Error::Latched) if writing offsets has failed: some of them may be taken over.
    fn take_group_offsets(&self, whole: bool, offsets: &[GroupOffset]) -> Result<()> {
        let _ = (whole, offsets);
        Ok(())
    }
}

/// A piece of the log that keeps its segment alive.
#[derive(Debug, Clone)]
pub struct LogSlice {
    region: Option<Region>,
    /// What `region` is mapped from, where it is open.
    #[cfg_attr(not(feature = "replication"), allow(dead_code, reason = "nobody else sends it"))]
    file: Option<Arc<dyn DiskFile>>,
    range: Range<u64>,
    offset: u64,
}

impl LogSlice {
    pub(crate) fn new(
        region: Region,
        file: Option<Arc<dyn DiskFile>>,
        range: Range<u64>,
        offset: u64,
    ) -> Self {
        Self { region: Some(region), file, range, offset }
    }

    pub(crate) fn empty(offset: u64) -> Self {
        Self { region: None, file: None, range: 0..0, offset }
    }

    /// Sends the bytes from where they lie, as far as the system can do that; how many it has sent.
    ///
    /// It may read them only when the peer takes them, long after this. No cut changes them until then: one
    /// that was ordered gives the segment another file, and a recovery takes only what it could not read.
    #[cfg(feature = "replication")]
    pub(crate) fn send(&self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        let mut rest = self.range.clone();
        while let Some(file) = self.file.as_ref().filter(|_| !rest.is_empty()) {
            match file.send(rest.clone(), socket) {
                Ok(sent) => rest.start += sent,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::Unsupported => break,
                Err(error) => return Err(error),
            }
        }
        Ok((rest.start - self.range.start) as usize)
    }

    /// Whether each byte is known to lie in a record: only where a segment has ended is there a blank, and
    /// whatever lies behind it.
    #[cfg(feature = "replication")]
    pub(crate) fn are_records(&self) -> bool {
        self.region.as_ref().is_some_and(|region| region.published() < region.len())
    }

    /// Physical offset of the first byte.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        self.region.as_ref().and_then(|region| region.bytes(self.range.clone())).unwrap_or_default()
    }
}
