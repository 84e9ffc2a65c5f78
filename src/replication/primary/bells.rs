//! How those who send hear that there may be something to send.

use crate::replication::group::SessionId;
use crate::worker::Alarm;
use parking_lot::RwLock;
use std::sync::Arc;

/// Wakes those who send.
#[derive(Debug, Default)]
pub(crate) struct Bells(RwLock<Vec<(SessionId, Arc<Alarm>)>>);

impl Bells {
    pub(super) fn add(&self, session: SessionId, alarm: Arc<Alarm>) {
        self.0.write().push((session, alarm.clone()));
        // For what came up before.
        alarm.ring();
    }

    pub(super) fn remove(&self, session: SessionId) {
        self.0.write().retain(|(other, _)| *other != session);
    }

    /// There may be something to send.
    #[inline]
    pub(crate) fn ring_all(&self) {
        for (_, alarm) in self.0.read().iter() {
            alarm.ring();
        }
    }
}
