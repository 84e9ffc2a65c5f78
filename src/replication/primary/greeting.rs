//! How a peer proves that it is a replica of this cluster.

use crate::replication::secret::{Secret, Side};
use crate::replication::session::{SessionError, unexpected};
use crate::replication::wire::{self, CONTROL_MAX, Frame, Join, Nonce, STRANGER_MAX};
use std::collections::VecDeque;

/// The first frames of a connection, up to the one in which the replica says who it is. Until it has
/// proved that it knows the secret, it is told nothing but a nonce.
#[derive(Debug)]
pub(crate) struct Greeting {
    nonce: Nonce,
    awaited: Awaited,
}

/// Which frame is to come.
#[derive(Debug)]
enum Awaited {
    Hello,
    Proof { theirs: Nonce, version: u32 },
    Join,
}

impl Greeting {
    pub(crate) fn new(nonce: Nonce) -> Self {
        Self { nonce, awaited: Awaited::Hello }
    }

    pub(crate) fn max_frame(&self) -> u32 {
        if self.is_known() { CONTROL_MAX } else { STRANGER_MAX }
    }

    /// Whether the peer has proved to know the secret.
    pub(crate) fn is_known(&self) -> bool {
        matches!(self.awaited, Awaited::Join)
    }

    /// Hears the next frame; who it is, when it has said so.
    pub(crate) fn hear(
        &mut self,
        frame: Frame<'_>,
        cluster: u64,
        secret: &Secret,
        outbox: &mut VecDeque<Frame<'static>>,
    ) -> Result<Option<Join>, SessionError> {
        match (&self.awaited, frame) {
            (Awaited::Hello, Frame::Hello { version, nonce }) => {
                outbox.push_back(Frame::Challenge { nonce: self.nonce });
                self.awaited = Awaited::Proof { theirs: nonce, version };
                Ok(None)
            }
            (Awaited::Proof { theirs, version }, Frame::Proof(proof)) => {
                let version = *version;
                if !secret.accepts(&proof, Side::Replica, theirs, &self.nonce) {
                    return Err(SessionError::Secret);
                }
                let proven = secret.prove(Side::Primary, theirs, &self.nonce);
                outbox.push_back(Frame::Proven(proven));
                self.awaited = Awaited::Join;
                if version != wire::VERSION {
                    return Err(SessionError::Version { theirs: version });
                }
                Ok(None)
            }
            (Awaited::Join, Frame::Join(join)) if join.cluster != cluster => {
                Err(SessionError::Cluster { theirs: join.cluster })
            }
            (Awaited::Join, Frame::Join(join)) => Ok(Some(join)),
            (_, other) => Err(unexpected(&other)),
        }
    }
}
