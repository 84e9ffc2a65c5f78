//! The scheduler's primitives behind the interfaces that the crate uses. Time does not pass here: a
//! deadline is never reached, so that a wake-up that got lost is a deadlock.

pub(crate) use crossbeam_channel::{RecvTimeoutError, TrySendError};
pub(crate) use shuttle::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, fence};
pub(crate) use shuttle::thread::current as current_thread;

use shuttle::sync;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, mpsc};
use std::time::Instant;

#[derive(Debug, Default)]
pub(crate) struct Mutex<T>(sync::Mutex<T>);

/// Empty only while a condition variable has the lock.
pub(crate) struct MutexGuard<'a, T>(Option<sync::MutexGuard<'a, T>>);

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(sync::Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        MutexGuard(Some(self.0.lock().unwrap()))
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.as_ref().unwrap()
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.0.as_mut().unwrap()
    }
}

#[derive(Debug, Default)]
pub(crate) struct Condvar(sync::Condvar);

pub(crate) struct WaitTimeoutResult;

impl WaitTimeoutResult {
    pub(crate) fn timed_out(&self) -> bool {
        false
    }
}

impl Condvar {
    pub(crate) fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
        guard.0 = guard.0.take().map(|held| self.0.wait(held).unwrap());
    }

    pub(crate) fn wait_until<T>(
        &self,
        guard: &mut MutexGuard<'_, T>,
        _deadline: Instant,
    ) -> WaitTimeoutResult {
        self.wait(guard);
        WaitTimeoutResult
    }

    pub(crate) fn notify_all(&self) {
        self.0.notify_all();
    }
}

pub(crate) fn channel<T>(capacity: usize) -> (Sender<T>, Receiver<T>) {
    let (sender, receiver) = sync::mpsc::sync_channel(capacity);
    (Sender(sender), Receiver(Arc::new(sync::Mutex::new(receiver))))
}

#[derive(Clone)]
pub(crate) struct Sender<T>(sync::mpsc::SyncSender<T>);

impl<T> Sender<T> {
    pub(crate) fn try_send(&self, value: T) -> Result<(), TrySendError<T>> {
        self.0.try_send(value).map_err(|error| match error {
            mpsc::TrySendError::Full(value) => TrySendError::Full(value),
            mpsc::TrySendError::Disconnected(value) => TrySendError::Disconnected(value),
        })
    }

    pub(crate) fn send(&self, value: T) -> Result<(), mpsc::SendError<T>> {
        self.0.send(value)
    }
}

impl<T> fmt::Debug for Sender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sender")
    }
}

/// Held by one thread at a time while it listens.
#[derive(Clone)]
pub(crate) struct Receiver<T>(Arc<sync::Mutex<sync::mpsc::Receiver<T>>>);

impl<T> Receiver<T> {
    pub(crate) fn recv(&self) -> Result<T, mpsc::RecvError> {
        self.0.lock().unwrap().recv()
    }

    #[cfg(test)]
    pub(crate) fn try_recv(&self) -> Result<T, mpsc::TryRecvError> {
        self.0.lock().unwrap().try_recv()
    }

    pub(crate) fn recv_deadline(&self, _deadline: Instant) -> Result<T, RecvTimeoutError> {
        self.recv().map_err(|_| RecvTimeoutError::Disconnected)
    }

    pub(crate) fn recv_timeout(
        &self,
        _timeout: std::time::Duration,
    ) -> Result<T, RecvTimeoutError> {
        self.recv().map_err(|_| RecvTimeoutError::Disconnected)
    }
}

impl<T> fmt::Debug for Receiver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Receiver")
    }
}
