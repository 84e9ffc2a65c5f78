//! The hook through which a log is copied elsewhere before a put is called safe.
//!
//! The store gives out offsets and bytes; a [`Replicator`] carries them away and says how far the
//! others have come, by moving one watermark: everything below *confirmed* is held by as many
//! replicas as the policy asks for and is never taken back. Puts wait for that watermark, and under
//! [`Visibility::Safe`](crate::Visibility::Safe) readers see nothing above it. What the log holds when it
//! is opened counts as confirmed.
//!
//! The feature `sim` adds `ScriptedReplica`, which confirms, delays, refuses or vanishes as its
//! `ReplicaBehaviour` says.

#[cfg(feature = "sim")]
mod scripted;

#[cfg(feature = "sim")]
pub use scripted::{ReplicaBehaviour, ScriptedReplica};

use crate::disk::Region;
use crate::error::Result;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// The term of office of a primary. It never falls; what is said under an older one is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Epoch(pub u64);

/// Why a put was refused before anything was written.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refusal {
    /// Fewer replicas are in reach than the policy insists on.
    NotEnoughReplicas {
        /// Replicas in reach.
        available: usize,
        /// Replicas required.
        required: usize,
    },
    /// This node is not the primary, or no longer.
    NotPrimary,
    /// The replicator was stopped.
    Stopped,
    /// The replicator began with an older epoch than the log was last written under.
    EpochFell {
        /// The epoch of the log.
        was: Epoch,
        /// The replicator's.
        is: Epoch,
    },
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotEnoughReplicas { available, required } => {
                write!(f, "{available} replicas in reach, {required} required")
            }
            Self::NotPrimary => f.write_str("this node is not the primary"),
            Self::Stopped => f.write_str("the replicator is stopped"),
            Self::EpochFell { was, is } => {
                write!(
                    f,
                    "the log was written under epoch {}, the replicator is at {}",
                    was.0, is.0
                )
            }
        }
    }
}

/// What the replicator says to a put that has not been written yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Admission {
    /// The epoch under which the put is accepted.
    pub epoch: Epoch,
    /// Whether enough replicas are in reach to confirm it. If not, the put is stored here and ends as
    /// `ReplicaNotAvailable` without waiting for replicas.
    pub replicas_available: bool,
}

/// Where the log stands when replication starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct StartPoint {
    /// Physical offset of the first byte kept.
    pub min_offset: u64,
    /// Physical offset behind the last record. All of it is durable.
    pub end: u64,
    /// The epoch under which the log was last written.
    pub epoch: Epoch,
}

/// A backend that copies the log to other machines.
///
/// **Order.** `start` once, before the first put; then any number of the others; `stop` once, when
/// the store closes: puts that still wait for replicas then end as `FlushReplicaTimeout`.
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
///     Admission, Epoch, Refusal, ReplicatedLog, Replicator, StartPoint,
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
///     fn start(&self, log: Arc<dyn ReplicatedLog>, at: StartPoint) -> Result<Epoch> {
///         let epoch = Epoch(at.epoch.0 + 1);
///         self.log.get_or_init(|| (log, epoch));
///         Ok(epoch)
///     }
///
///     fn admit(&self) -> Result<Admission, Refusal> {
///         let (_, epoch) = self.log.get().ok_or(Refusal::Stopped)?;
///         Ok(Admission { epoch: *epoch, replicas_available: true })
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
    /// Begins replicating `log`, and says the epoch in which it may be written. The backend starts
    /// its own threads here. From now on puts wait for [`ReplicatedLog::confirm`].
    ///
    /// The log may be read at once, but nothing can be confirmed before this has returned.
    ///
    /// What the log holds by then counts as confirmed, and readers see it: a backend that knows better
    /// brings the replicas that far first, or fails.
    ///
    /// # Errors
    /// The store is then not opened; nor is it with an epoch below `at.epoch`.
    fn start(&self, log: Arc<dyn ReplicatedLog>, at: StartPoint) -> Result<Epoch>;

    /// Whether a put may go ahead. Nothing was written yet.
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

/// The log as a replicator sees it.
pub trait ReplicatedLog: Send + Sync + fmt::Debug {
    /// Physical offset behind the last byte that can be read; 0 once the store is gone.
    fn end(&self) -> u64;

    /// Physical offset behind the last byte that survives a power cut here; 0 once the store is gone.
    fn durable(&self) -> u64;

    /// Bytes from `from` on, at most `max` of them and all from one segment; empty at the end. They
    /// are not copied, and stay readable as long as the slice is held.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) if the segment cannot be opened or mapped;
    /// [`Error::Closed`](crate::Error::Closed) if the store is gone.
    fn read(&self, from: u64, max: u64) -> Result<LogSlice>;

    /// Everything before `end` is held by as many replicas as the policy asks for. Lower values than
    /// before change nothing.
    ///
    /// # Errors
    /// [`Error::Refused`](crate::Error::Refused) if `epoch` is not the one that
    /// [`Replicator::start`] returned; [`Error::Closed`](crate::Error::Closed) if the store is gone.
    fn confirm(&self, end: u64, epoch: Epoch) -> Result<()>;
}

/// A piece of the log that keeps its segment alive.
#[derive(Debug, Clone)]
pub struct LogSlice {
    region: Option<Region>,
    range: Range<u64>,
    offset: u64,
}

impl LogSlice {
    pub(crate) fn new(region: Region, range: Range<u64>, offset: u64) -> Self {
        Self { region: Some(region), range, offset }
    }

    pub(crate) fn empty(offset: u64) -> Self {
        Self { region: None, range: 0..0, offset }
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
