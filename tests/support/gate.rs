//! A disk that one thread hangs at.

use crate::hooked::Hook;
use duralog::disk::SimCall;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

/// Holds up a thread, from its so many-th call of a kind on, while it is shut.
#[derive(Debug)]
pub struct Gate {
    thread: &'static str,
    at: (SimCall, usize),
    calls: AtomicUsize,
    shut: Mutex<bool>,
    moved: Condvar,
    reached: AtomicBool,
}

impl Gate {
    pub fn new(thread: &'static str, at: (SimCall, usize)) -> Arc<Self> {
        let (calls, reached) = (AtomicUsize::new(0), AtomicBool::new(false));
        let (shut, moved) = (Mutex::new(false), Condvar::new());
        Arc::new(Self { thread, at, calls, shut, moved, reached })
    }

    pub fn set(&self, shut: bool) {
        *self.shut.lock().expect("no panic") = shut;
        self.moved.notify_all();
    }

    /// Whether the thread has come to it.
    pub fn is_reached(&self) -> bool {
        self.reached.load(Ordering::SeqCst)
    }
}

impl Hook for Gate {
    fn before(&self, call: SimCall) -> io::Result<()> {
        let (kind, nth) = self.at;
        let concerned = thread::current().name() == Some(self.thread) && call == kind;
        let mut shut = self.shut.lock().expect("no panic");
        if !concerned || !*shut || self.calls.fetch_add(1, Ordering::SeqCst) + 1 < nth {
            return Ok(());
        }
        while *shut {
            self.reached.store(true, Ordering::SeqCst);
            shut = self.moved.wait(shut).expect("no panic");
        }
        Ok(())
    }
}
