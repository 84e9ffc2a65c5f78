//! A node that takes over another one's log.

mod replicator;
mod session;

pub(crate) use replicator::ReplicaReplicator;
pub(crate) use session::{Identity, ReplicaSession};
