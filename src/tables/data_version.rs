//! The version that a table carries, by which brokers tell whether they have the same one.

use super::json::{Object, put, take};

/// Which state of a table this is; it changes with every save.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct DataVersion {
    /// How often the table was saved.
    pub counter: i64,
    /// When it was saved last, in milliseconds since 1970.
    pub timestamp: i64,
    /// The epoch of the broker that saved it; RocketMQ 5 with a controller.
    pub state_version: i64,
    rest: Object,
}

const NAME: &str = "dataVersion";

impl DataVersion {
    pub(super) fn take(object: &mut Object) -> Result<Self, String> {
        let mut rest = take(object, NAME, Object::new())?;
        Ok(Self {
            counter: take(&mut rest, "counter", 0)?,
            timestamp: take(&mut rest, "timestamp", 0)?,
            state_version: take(&mut rest, "stateVersion", 0)?,
            rest,
        })
    }

    pub(super) fn put(&self, object: &mut Object) {
        let mut own = self.rest.clone();
        put(&mut own, "counter", self.counter);
        put(&mut own, "timestamp", self.timestamp);
        put(&mut own, "stateVersion", self.state_version);
        put(object, NAME, own);
    }

    pub(super) fn advance(&mut self, now_millis: i64) {
        self.counter = self.counter.wrapping_add(1);
        self.timestamp = now_millis;
    }
}
