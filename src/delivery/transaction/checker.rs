//! Who asks a producer what became of its transactions.

use super::coordinator::{Coordinator, Half};
use super::half::HalfMessageView;
use super::{Check, Options, TransactionState};
use crate::error::{Error, IoContext, IoOp, Result};
use crate::store::Store;
use crate::worker::{Doorbell, Next, Worker, is_worker};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

const CHECK_THREAD: &str = "duralog-check";

/// The checker of a producer group, and the half messages that it is to be asked about.
pub(super) struct Checker {
    pub(super) group: Arc<str>,
    pub(super) options: Options,
    check: Box<Check>,
    queue: Mutex<VecDeque<Arc<Half>>>,
    bell: OnceLock<Doorbell>,
}

impl fmt::Debug for Checker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Checker").field("group", &self.group).finish_non_exhaustive()
    }
}

impl Checker {
    pub(super) fn new(group: &str, options: Options, check: Box<Check>) -> Self {
        let (queue, bell) = (Mutex::default(), OnceLock::new());
        Self { group: group.into(), options, check, queue, bell }
    }

    /// The answer; `None` if there is none but a panic.
    pub(super) fn ask(&self, view: &HalfMessageView) -> Option<TransactionState> {
        catch_unwind(AssertUnwindSafe(|| (self.check)(view))).ok()
    }

    /// Has a half message checked on the thread.
    pub(super) fn enqueue(&self, half: Arc<Half>) {
        self.queue.lock().push_back(half);
        if let Some(bell) = self.bell.get() {
            bell.ring();
        }
    }

    /// Starts the thread: what hangs in a checker holds up nobody else.
    pub(super) fn start(
        self: &Arc<Self>,
        store: &Store,
        coordinator: &Arc<Coordinator>,
    ) -> Result<Worker> {
        let (bell, heard) = Doorbell::new();
        let _ = self.bell.set(bell.clone());
        // The thread keeps nothing alive: a checker that hangs must not hold the lock of a store.
        let (checker, coordinator) = (Arc::downgrade(self), Arc::downgrade(coordinator));
        let store = store.downgrade();
        let step = move || {
            let parts = Weak::upgrade(&checker).zip(Weak::upgrade(&coordinator));
            let Some((checker, coordinator)) = parts else { return Next::Idle };
            let Some(half) = checker.queue.lock().pop_front() else { return Next::Idle };
            coordinator.check(&store, &checker, &half);
            Next::Now
        };
        let spawned = Worker::spawn(CHECK_THREAD, (bell, heard), step, |_: Error| {});
        spawned.at(IoOp::Create, Path::new(CHECK_THREAD))
    }
}

/// Ends the thread of a checker; it is not waited for where that would be in vain.
pub(super) fn stop(worker: &mut Worker, timeout: Duration) {
    let timeout = if is_worker() { Duration::ZERO } else { timeout };
    let _ = worker.stop(timeout);
}
