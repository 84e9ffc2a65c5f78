//! The node that takes puts.

mod replicator;
mod session;

pub(crate) use replicator::PrimaryReplicator;
pub(crate) use session::{PrimarySession, unexpected};
