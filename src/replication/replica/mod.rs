//! A node that takes over another one's log.

mod follower;
mod groups;
mod replicator;
mod session;

pub(crate) use replicator::ReplicaReplicator;
#[cfg(any(test, fuzzing))]
pub(crate) use session::{Identity, ReplicaSession};

use super::options::{PrimaryOptions, ReplicaOptions, check_term};
use super::primary::Primary;
use super::session::SessionError;
use super::{Epoch, Event, LogId, Refusal};
use crate::config::StoreConfig;
use crate::environment::{Environment, Threads};
use crate::error::{Error, Result};
use crate::store::Store;
use follower::Follower;

/// Where a replica stands, for whoever chooses the next primary: the greatest has the most.
///
/// What was put while the store was open without replication counts for nothing here: no primary gave it, and
/// no other node has it. It lies behind [`end`](Self::end), stays where this node is promoted, and is cut where
/// it follows another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub struct Standing {
    /// The newest epoch that a primary gave it.
    pub epoch: Epoch,
    /// Physical offset behind the last record of that; all of it is durable. Both are 0 where nothing of it is kept.
    pub end: u64,
    /// It lets nobody write under an epoch before this one any more.
    pub promised: Epoch,
    /// It has what it ever vouched for. Not so for a primary under async flush that was not closed in
    /// order, until it has come to the epoch of a newer one: it does not count among those that are fenced.
    pub vouches: bool,
}

/// How a replica gets on.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ReplicaState {
    /// Which log it has; `None` before it has followed a primary, or after a RocketMQ master.
    pub log_id: Option<LogId>,
    /// Whether it follows its primary now.
    pub following: bool,
    /// Physical offset behind the last byte that survives a power cut here.
    pub durable: u64,
    /// Physical offset up to which the primary has said that records are confirmed.
    pub confirmed: u64,
    /// How the last connection ended.
    pub last_error: Option<SessionError>,
}

/// A store that follows a [`Primary`] (feature `replication`).
///
/// It refuses puts. It can be read meanwhile, up to what is confirmed: nothing that a reader sees here
/// is ever taken back, whichever node becomes the primary.
///
/// # Failover
/// Nodes do not elect a primary; whoever does so for them, a person or a program, makes it safe like
/// this. Of `n` nodes in all, primaries of before among them, the primary and `k = min_insync_replicas`
/// replicas hold what is confirmed. Begin a term that is higher than any before.
/// [`fence`](Self::fence) at least `n - k` nodes with it, opened as replicas: one of them holds whatever
/// was confirmed, and none of them helps the old primary any more. [`promote`](Self::promote) the one with
/// the greatest [`Standing`]; open the others, and the old primary when it returns, as replicas of it.
///
/// - A node that has lost something does not count among those `n - k` before it has come to the epoch of a
///   newer primary: one that does not [vouch](Standing::vouches) for its log, one with a new or emptied disk or
///   restored from a snapshot, one whose acks mean [`InMemory`](super::AckLevel::InMemory) after a power cut.
/// - A node with a new or emptied disk, or one that was restored from a snapshot, has forgotten what it
///   promised: fence it with the newest term before it follows anyone.
/// - `n` counts every node that ever acknowledged anything. Before one is taken out for good, or `k` is
///   raised, let all others catch up with what is confirmed.
/// - All of them are to have one [log](super::LogId). Where the first primary is lost before anyone has
///   followed it, the next one begins another, and the first gives up its own when it returns. A replica that
///   had followed it keeps what it has, see [`SessionError::AnotherLog`].
/// - RocketMQ slaves cannot be fenced: they are no part of this, and with them among the `k` it does not
///   hold.
#[derive(Debug)]
pub struct Replica {
    follower: Follower,
}

impl Replica {
    /// Opens the store in `config.log.dir` as a replica, and follows the primary from now on: reconnects
    /// when the connection ends, cuts what the primary does not have, and begins anew with the oldest
    /// that the primary has where what follows here is gone there. One whose records are of another
    /// [log](LogId) than the primary's says so, see [`SessionError::AnotherLog`], and keeps them.
    ///
    /// # Errors
    /// As [`Store::open`], and [`Error::Config`] for the options. Whether the primary can be reached is
    /// told by [`state`](Self::state) and the observer.
    pub fn open(config: StoreConfig, options: ReplicaOptions) -> Result<Self> {
        Self::open_in(config, Environment::default(), options)
    }

    /// The same in another environment, which must have threads of its own.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_in(
        config: StoreConfig,
        environment: Environment,
        options: ReplicaOptions,
    ) -> Result<Self> {
        options.validate()?;
        if environment.threads == Threads::Stepped {
            let allowed = "Threads::Own for a replica";
            return Err(Error::Config { field: "threads", value: "Stepped".to_owned(), allowed });
        }
        let follower = Follower::start(config, environment, options)?;
        Ok(Self { follower })
    }

    /// The store, for reading. It is closed, and another one takes its place, whenever the log is cut or
    /// begun anew to follow another primary, or a write or sync has failed: ask again when it says
    /// [`Error::Closed`], or for each batch.
    pub fn store(&self) -> Store {
        self.follower.store()
    }

    /// How it gets on.
    pub fn state(&self) -> ReplicaState {
        self.follower.state()
    }

    /// Promises not to follow a primary with an epoch before `epoch` any more, and says where this
    /// replica stands. What it acknowledged is in there; nothing comes after. Durable on return. One that
    /// fails half-way is asked again with a later term.
    ///
    /// `epoch` begins a term, see [`Epoch::next_term`], that is higher than [`Standing::promised`] and the
    /// epochs of all nodes: none of them alone tells which one is next.
    ///
    /// # Errors
    /// [`Error::Config`] if it does not.
    /// [`Refusal::EpochFell`](super::Refusal::EpochFell) if it knows `epoch` or a later one, or has
    /// promised it to someone else; [`Error::Closed`] while the log is cut, or the store opened again;
    /// [`Error::DiskFull`], [`Error::Io`], [`Error::FlushTimeout`].
    pub fn fence(&self, epoch: Epoch) -> Result<Standing> {
        check_term(epoch)?;
        self.follower.fence(epoch)
    }

    /// Where this replica stands now.
    ///
    /// # Errors
    /// [`Error::Closed`] while the store is opened again.
    pub fn standing(&self) -> Result<Standing> {
        self.follower.standing()
    }

    /// Stops following, and opens the store again as a primary, in the epoch that it was
    /// [fenced](Self::fence) with, if it has followed nobody in that term since, or [`PrimaryOptions::epoch`].
    ///
    /// # Errors
    /// [`Refusal::NotFenced`](super::Refusal::NotFenced) without either; as [`close`](Self::close) and
    /// [`Primary::open`]. The store is closed then.
    pub fn promote(self, options: PrimaryOptions) -> Result<Primary> {
        let standing = self.follower.standing()?;
        if options.epoch.is_none() && !self.follower.is_fenced() {
            return Err(Error::Refused(Refusal::NotFenced));
        }
        self.follower.stop()?;
        let (config, environment) = self.follower.settings();
        drop(self);
        let mut options = options;
        options.epoch.get_or_insert(standing.promised);
        Primary::open_in(config, environment, options)
    }

    /// Stops following and closes the store. A second call lets others have the directory where the first one
    /// could not, because a thread hung that has ended since.
    ///
    /// # Errors
    /// As [`Store::close`].
    pub fn close(&self) -> Result<()> {
        self.follower.stop()
    }
}
