//! What a store runs on: a disk, a clock, and who drives its background work.

use crate::clock::{Clock, SystemClock};
use crate::disk::{Disk, HostDisk};
use std::sync::Arc;

/// Who runs background work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Threads {
    /// Named threads of the store. The default.
    #[default]
    Own,
    /// Nobody: the caller steps each worker itself, in the order it wants to see, with
    /// [`Store::step`](crate::Store::step). For simulation; a blocking call that waits for background
    /// work would wait until its deadline.
    Stepped,
}

/// The world outside the store. The default is the operating system's; a simulation brings its own,
/// such as `disk::SimDisk` and `clock::ManualClock` of the feature `sim`.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Environment {
    /// Where the files are.
    pub disk: Arc<dyn Disk>,
    /// What time it is.
    pub clock: Arc<dyn Clock>,
    /// Who runs background work.
    pub threads: Threads,
}

impl Default for Environment {
    fn default() -> Self {
        Self { disk: HostDisk::shared(), clock: Arc::new(SystemClock), threads: Threads::Own }
    }
}

impl Environment {
    /// The given disk, the system's clock, own threads.
    pub fn on(disk: Arc<dyn Disk>) -> Self {
        Self { disk, ..Self::default() }
    }

    /// Sets the clock.
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Leaves background work to the caller.
    pub fn stepped(mut self) -> Self {
        self.threads = Threads::Stepped;
        self
    }
}
