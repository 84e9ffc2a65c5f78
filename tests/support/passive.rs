//! A replica that does nothing by itself.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use duralog::replication::{Admission, Refusal, ReplicatedLog, Replicator, Role, StartPoint};
use std::sync::{Arc, Mutex};

#[derive(Debug, Default)]
pub struct Passive(Mutex<Option<(Arc<dyn ReplicatedLog>, StartPoint)>>);

impl Passive {
    pub fn log(&self) -> Arc<dyn ReplicatedLog> {
        self.0.lock().expect("nobody panics").as_ref().expect("it was started").0.clone()
    }

    pub fn start_point(&self) -> StartPoint {
        self.0.lock().expect("nobody panics").as_ref().expect("it was started").1
    }
}

impl Replicator for Passive {
    fn role(&self) -> Role {
        Role::Replica
    }

    fn start(&self, log: Arc<dyn ReplicatedLog>, at: StartPoint) -> duralog::Result<u64> {
        let confirmed = log.confirmed();
        *self.0.lock().expect("nobody panics") = Some((log, at));
        Ok(confirmed)
    }

    fn admit(&self) -> Result<Admission, Refusal> {
        Err(Refusal::NotPrimary)
    }

    fn on_written(&self, _: u64) {}

    fn on_durable(&self, _: u64) {}

    fn stop(&self) {}
}
