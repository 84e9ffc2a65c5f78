//! Where threads sleep until a watermark has passed what each of them waits for.

use crate::sync::{AtomicU64, Condvar, Mutex};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Instant;

/// Threads in the order of the offsets that they wait for, so that a step of the watermark wakes those
/// whom it concerns and nobody else.
#[derive(Debug)]
pub(super) struct Sleepers {
    /// The lowest offset that someone waits for; lets a publisher skip the lock when it is not there yet.
    first: AtomicU64,
    line: Mutex<VecDeque<(u64, Arc<Sleeper>)>>,
}

impl Default for Sleepers {
    fn default() -> Self {
        Self { first: AtomicU64::new(u64::MAX), line: Mutex::default() }
    }
}

#[derive(Debug, Default)]
struct Sleeper {
    state: Mutex<State>,
    moved: Condvar,
}

#[derive(Debug, Default)]
struct State {
    is_called: bool,
    /// Those whom this one calls next. One after the other, so that a crowd of producers does not stand
    /// between the processor and those who write, sync and send what the first of them has put.
    others: VecDeque<Arc<Sleeper>>,
    /// It sleeps no more.
    is_gone: bool,
}

impl Sleepers {
    /// Wakes those who wait for nothing beyond `end`.
    pub(super) fn wake_through(&self, end: u64) {
        if self.first.load(SeqCst) > end {
            return;
        }
        let mut line = self.line.lock();
        let count = line.partition_point(|(awaited, _)| *awaited <= end);
        let called = line.drain(..count).map(|(_, sleeper)| sleeper).collect();
        self.note_first(&line);
        drop(line);
        call(called);
    }

    fn note_first(&self, line: &VecDeque<(u64, Arc<Sleeper>)>) {
        self.first.store(line.front().map_or(u64::MAX, |(end, _)| *end), SeqCst);
    }

    /// Sleeps until `done` answers or the deadline passes; `done` is asked once more then. It is asked
    /// whenever the watermark has passed `end`.
    pub(super) fn wait<T>(
        &self,
        end: u64,
        deadline: Option<Instant>,
        done: impl Fn() -> Option<T>,
    ) -> Option<T> {
        if let Some(answer) = done() {
            return Some(answer);
        }
        let sleeper = Arc::new(Sleeper::default());
        loop {
            let mut line = self.line.lock();
            let at = line.partition_point(|(awaited, _)| *awaited <= end);
            line.insert(at, (end, sleeper.clone()));
            self.note_first(&line);
            // Asked after announcing, and under the lock that whoever moves the watermark takes next.
            if let Some(answer) = done() {
                line.remove(at);
                self.note_first(&line);
                return Some(answer);
            }
            drop(line);
            let is_called = sleeper.sleep(deadline);
            if !is_called {
                let mut line = self.line.lock();
                line.retain(|(_, other)| !Arc::ptr_eq(other, &sleeper));
                self.note_first(&line);
            }
            let answer = done();
            if answer.is_some() || !is_called {
                return answer;
            }
        }
    }
}

impl Sleeper {
    /// Whether it was called, rather than that time is up. Those whom it was given to call are called.
    fn sleep(&self, deadline: Option<Instant>) -> bool {
        let mut state = self.state.lock();
        while !state.is_called {
            match deadline {
                None => self.moved.wait(&mut state),
                Some(deadline) => {
                    if self.moved.wait_until(&mut state, deadline).timed_out() && !state.is_called {
                        state.is_gone = true;
                        return false;
                    }
                }
            }
        }
        state.is_called = false;
        let others = std::mem::take(&mut state.others);
        drop(state);
        call(others);
        true
    }
}

/// Wakes the first of them who still sleeps, and leaves the others to that one.
fn call(mut sleepers: VecDeque<Arc<Sleeper>>) {
    while let Some(sleeper) = sleepers.pop_front() {
        let mut state = sleeper.state.lock();
        if state.is_gone {
            continue;
        }
        state.others = std::mem::take(&mut sleepers);
        state.is_called = true;
        sleeper.moved.notify_all();
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;
    use std::thread::scope;
    use std::time::Duration;

    fn is_called(sleeper: &Sleeper) -> bool {
        sleeper.state.lock().is_called
    }

    #[test]
    fn one_who_gave_up_is_passed_over_and_the_next_one_calls_the_rest() {
        let sleepers: VecDeque<Arc<Sleeper>> = (0..3).map(|_| Arc::default()).collect();
        let [gone, second, third] = [0, 1, 2].map(|n: usize| sleepers[n].clone());
        assert!(!gone.sleep(Some(Instant::now())));
        call(sleepers);
        assert!(!is_called(&gone) && is_called(&second) && !is_called(&third));
        assert!(second.sleep(None));
        assert!(is_called(&third));
    }

    #[test]
    fn nobody_is_called_for_less_than_he_waits_for() {
        let sleepers = Sleepers::default();
        let (near, far) = (Arc::new(Sleeper::default()), Arc::new(Sleeper::default()));
        sleepers.line.lock().extend([(10, near.clone()), (20, far.clone())]);
        sleepers.note_first(&sleepers.line.lock());
        sleepers.wake_through(9);
        assert!(!is_called(&near));
        sleepers.wake_through(19);
        assert!(is_called(&near) && !is_called(&far));
        sleepers.wake_through(20);
        assert!(is_called(&far));
    }

    #[test]
    fn one_whose_time_is_up_leaves_the_line() {
        let sleepers = Sleepers::default();
        assert_eq!(sleepers.wait(10, Some(Instant::now()), || None::<()>), None);
        assert!(sleepers.line.lock().is_empty());
        assert_eq!(sleepers.first.load(SeqCst), u64::MAX);
    }

    #[test]
    fn one_who_is_called_too_early_sleeps_again() {
        let (sleepers, is_done) = (Sleepers::default(), AtomicBool::new(false));
        let (sleepers, is_done) = (&sleepers, &is_done);
        scope(|threads| {
            let done = || is_done.load(SeqCst).then_some(());
            let too_late = Instant::now() + Duration::from_secs(60);
            let waiter = threads.spawn(move || sleepers.wait(10, Some(too_late), done));
            // Called once at least before it is done, then until it hears of it.
            while sleepers.first.load(SeqCst) == u64::MAX {
                std::thread::yield_now();
            }
            sleepers.wake_through(10);
            is_done.store(true, SeqCst);
            while !waiter.is_finished() {
                sleepers.wake_through(10);
                std::thread::yield_now();
            }
            assert_eq!(waiter.join().unwrap(), Some(()));
        });
    }
}
