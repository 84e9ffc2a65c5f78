//! Where threads sleep and tasks leave their wakers until a watermark moves.

use crate::sync::{AtomicUsize, Condvar, Mutex};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering::SeqCst;
use std::task::Waker;
use std::time::Instant;

#[derive(Debug, Default)]
pub(super) struct Slot {
    /// Sleeping threads and parked wakers; lets a publisher skip the lock when it is 0.
    waiting: AtomicUsize,
    parked: Mutex<Parked>,
    moved: Condvar,
}

#[derive(Debug, Default)]
struct Parked {
    /// How often all wakers were taken.
    round: u64,
    wakers: Vec<Waker>,
}

/// Where a task has left its waker.
#[derive(Debug)]
pub(crate) struct Seat {
    slot: usize,
    round: u64,
    waker: Waker,
}

impl Slot {
    pub(super) fn wake(&self) {
        if self.waiting.load(SeqCst) == 0 {
            return;
        }
        let mut parked = self.parked.lock();
        self.waiting.fetch_sub(parked.wakers.len(), SeqCst);
        let woken = std::mem::take(&mut parked.wakers);
        parked.round += 1;
        self.moved.notify_all();
        drop(parked);
        for waker in woken {
            // A stranger's code: if it panics, that is told by then, and the others are woken still.
            let _ = catch_unwind(AssertUnwindSafe(|| waker.wake()));
        }
    }

    /// Sleeps until `done` answers or the deadline passes; `done` is asked once more then.
    pub(super) fn wait<T>(
        &self,
        deadline: Option<Instant>,
        mut done: impl FnMut() -> Option<T>,
    ) -> Option<T> {
        if let Some(answer) = done() {
            return Some(answer);
        }
        self.waiting.fetch_add(1, SeqCst);
        let mut guard = self.parked.lock();
        let answer = loop {
            if let Some(answer) = done() {
                break Some(answer);
            }
            match deadline {
                None => self.moved.wait(&mut guard),
                Some(deadline) => {
                    if self.moved.wait_until(&mut guard, deadline).timed_out() {
                        break done();
                    }
                }
            }
        };
        drop(guard);
        self.waiting.fetch_sub(1, SeqCst);
        answer
    }

    /// Leaves `waker` to be woken by the next move, unless `done` answers now. `seat` remembers that it
    /// is there: this slot is the one called `slot`.
    pub(super) fn register<T>(
        &self,
        (slot, seat): (usize, &mut Option<Seat>),
        waker: &Waker,
        done: impl Fn() -> Option<T>,
    ) -> Option<T> {
        let mut parked = self.parked.lock();
        let round = parked.round;
        let sits =
            |seat: &Seat| seat.slot == slot && seat.round == round && seat.waker.will_wake(waker);
        if !seat.as_ref().is_some_and(sits) {
            parked.wakers.push(waker.clone());
            self.waiting.fetch_add(1, SeqCst);
            *seat = Some(Seat { slot, round, waker: waker.clone() });
        }
        // Asked after announcing, and under the lock that `wake` takes: a move that this does not
        // see will find the waker.
        done()
    }
}
