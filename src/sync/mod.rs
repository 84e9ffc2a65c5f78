//! What waiting is built of: the system's locks and atomics, or those of a scheduler that tries one
//! order of threads after another (`--cfg shuttle`, unit tests alone).

#[cfg(all(test, shuttle))]
mod model;
#[cfg(all(test, shuttle))]
pub(crate) use model::*;
#[cfg(not(all(test, shuttle)))]
pub(crate) use system::*;

#[cfg(not(all(test, shuttle)))]
mod system {
    pub(crate) use crossbeam_channel::{
        Receiver, RecvTimeoutError, Sender, TrySendError, bounded as channel,
    };
    pub(crate) use parking_lot::{Condvar, Mutex};
    pub(crate) use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, fence};
    pub(crate) use std::thread::current as current_thread;
}
