//! A replica that does as it is told, for tests and demonstrations.

use super::{
    Admission, Confirmation, Epoch, NodeId, Refusal, ReplicatedLog, Replicator, StartPoint,
};
use crate::clock::{Clock, SystemClock};
use crate::error::{Error, IoContext, IoOp, Result};
use crate::sync::Receiver;
use crate::worker::{Doorbell, Next, Worker};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

const THREAD: &str = "duralog-replica";
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// What a [`ScriptedReplica`] does (feature `sim`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReplicaBehaviour {
    /// Confirms what is written here after this delay, as a replica that far away would.
    Confirm {
        /// The round trip.
        delay: Duration,
    },
    /// Is in reach but never answers: puts end as `FlushReplicaTimeout`.
    Silent,
    /// Is out of reach: puts end as `ReplicaNotAvailable`.
    Absent,
    /// Refuses puts before they are written.
    Refuse,
}

/// A replicator without a replica: it confirms, delays, refuses or vanishes (feature `sim`).
///
/// The behaviour may change at any time; what was written meanwhile is confirmed once it is
/// [`ReplicaBehaviour::Confirm`] again.
#[derive(Debug)]
pub struct ScriptedReplica {
    shared: Arc<Shared>,
    bell: Doorbell,
    heard: Receiver<()>,
    worker: Mutex<Option<Worker>>,
}

#[derive(Debug)]
struct Shared {
    clock: SystemClock,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    behaviour: ReplicaBehaviour,
    log: Option<Arc<dyn ReplicatedLog>>,
    epoch: Epoch,
    /// Ends of the log and when they will have been confirmed.
    on_the_way: VecDeque<(u64, Instant)>,
}

impl ScriptedReplica {
    /// A replica that behaves like this for now.
    pub fn new(behaviour: ReplicaBehaviour) -> Arc<Self> {
        let (bell, heard) = Doorbell::new();
        let state = State { behaviour, log: None, epoch: Epoch(0), on_the_way: VecDeque::new() };
        let shared = Arc::new(Shared { clock: SystemClock, state: Mutex::new(state) });
        Arc::new(Self { shared, bell, heard, worker: Mutex::new(None) })
    }

    /// Changes the behaviour.
    pub fn behave(&self, behaviour: ReplicaBehaviour) {
        let mut state = self.shared.state.lock();
        state.behaviour = behaviour;
        if let Some(end) = state.log.as_ref().map(|log| log.end()) {
            state.send(end, self.shared.clock.now());
        }
        drop(state);
        self.bell.ring();
    }
}

impl State {
    fn send(&mut self, end: u64, now: Instant) {
        let ReplicaBehaviour::Confirm { delay } = self.behaviour else { return };
        if self.on_the_way.back().is_none_or(|last| last.0 < end) {
            self.on_the_way.push_back((end, now + delay));
        }
    }
}

impl Shared {
    fn step(&self) -> Next {
        let mut state = self.state.lock();
        let now = self.clock.now();
        let mut arrived = None;
        while let Some((end, _)) = state.on_the_way.front().copied().filter(|sent| sent.1 <= now) {
            state.on_the_way.pop_front();
            arrived = Some(end);
        }
        let confirms = matches!(state.behaviour, ReplicaBehaviour::Confirm { .. });
        let next = state.on_the_way.front().map_or(Next::Idle, |sent| Next::At(sent.1));
        let (log, epoch) = (state.log.clone(), state.epoch);
        drop(state);
        if let (Some(log), Some(end), true) = (log, arrived, confirms) {
            // The epoch is the one this replica gave out, so it is never stale.
            let _ = log.confirm(end, epoch);
        }
        next
    }
}

impl Replicator for ScriptedReplica {
    fn start(&self, log: Arc<dyn ReplicatedLog>, at: StartPoint) -> Result<u64> {
        let epoch = Epoch(at.epoch.0 + 1);
        log.begin_epoch(epoch, NodeId(1))?;
        let mut state = self.shared.state.lock();
        state.log = Some(log);
        state.epoch = epoch;
        drop(state);
        let (stepped, bell, heard) = (self.shared.clone(), self.bell.clone(), self.heard.clone());
        let worker = Worker::spawn(THREAD, (bell, heard), move || stepped.step(), |_| {});
        *self.worker.lock() = Some(worker.at(IoOp::Create, Path::new(THREAD))?);
        Ok(at.end)
    }

    fn admit(&self) -> Result<Admission, Refusal> {
        let state = self.shared.state.lock();
        match state.behaviour {
            ReplicaBehaviour::Refuse => {
                Err(Refusal::NotEnoughReplicas { available: 0, required: 1 })
            }
            behaviour => {
                let confirmation = match behaviour {
                    ReplicaBehaviour::Absent => Confirmation::OutOfReach,
                    _ => Confirmation::Awaited,
                };
                Ok(Admission { epoch: state.epoch, confirmation })
            }
        }
    }

    fn on_written(&self, end: u64) {
        self.shared.state.lock().send(end, self.shared.clock.now());
        self.bell.ring();
    }

    fn on_durable(&self, _end: u64) {}

    fn stop(&self) {
        let worker = self.worker.lock().take();
        let stopped: Result<(), Error> =
            worker.map_or(Ok(()), |mut worker| worker.stop(STOP_TIMEOUT));
        // It only computes and signals, so it cannot hang.
        debug_assert!(stopped.is_ok());
        self.shared.state.lock().log = None;
    }
}
