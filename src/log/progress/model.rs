//! The waiting protocol under a scheduler that tries one order of threads after another. Time stands
//! still, so a wake-up that gets lost leaves everyone asleep, and the scheduler says so.

use super::*;
use crate::sync::Mutex;
use crate::worker::{Doorbell, Next};
use shuttle::rand::{Rng, thread_rng};
use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::{Config, Runner, future, thread};
use std::future::poll_fn;
use std::task::Poll;

/// Orders tried; `DURALOG_SCHEDULES` asks for others.
fn schedules() -> usize {
    std::env::var("DURALOG_SCHEDULES").ok().and_then(|n| n.parse().ok()).unwrap_or(20_000)
}

/// Half of the orders are random, half have few changes of thread in unlucky places.
fn check(scenario: impl Fn() + Send + Sync + Clone + 'static) {
    // The watermarks and their slots are made on the stack.
    let mut config = Config::new();
    config.stack_size = 256 << 10;
    let random = RandomScheduler::new(schedules() / 2);
    Runner::new(random, config.clone()).run(scenario.clone());
    Runner::new(PctScheduler::new(4, schedules() / 2), config).run(scenario);
}

const DURABLE: Need = Need { durable: true, confirmed: false };
const BOTH: Need = Need { durable: true, confirmed: true };
const CONFIRMED: Need = Need { durable: false, confirmed: true };

/// The log as waiters know it: bytes get offsets and groups, are written, are synced.
#[derive(Debug, Default)]
struct Log {
    progress: Progress,
    flusher: Alarm,
    /// Where the next byte goes, and its group.
    append: Mutex<(u64, u64)>,
    /// Where the written bytes end, and the group of the last of them.
    written: Mutex<(u64, u64)>,
    synced_group: Mutex<u64>,
    stop: AtomicBool,
}

impl Log {
    fn new() -> Arc<Self> {
        let append = Mutex::new((0, 1));
        Arc::new(Self { progress: Progress::at(0, 0), append, ..Self::default() })
    }

    /// A byte's end and its group, after the flusher has been told.
    fn append(&self) -> (u64, Group) {
        let mut append = self.append.lock();
        append.0 += 1;
        self.progress.set_appended(append.0);
        let (end, group) = *append;
        drop(append);
        self.flusher.ring();
        (end, Group(group))
    }

    fn write(&self) {
        let mut written = self.written.lock();
        let mut append = self.append.lock();
        if append.0 == written.0 {
            return;
        }
        *written = *append;
        append.1 += 1;
        drop(append);
        self.progress.set_written(written.0);
    }

    fn sync(&self) {
        let mut synced_group = self.synced_group.lock();
        let (end, group) = *self.written.lock();
        let woken = (group == *synced_group + 1).then_some(Group(group));
        *synced_group = group;
        self.progress.set_durable(end, woken);
    }

    fn has_unsynced(&self) -> bool {
        self.progress.appended() > self.progress.durable() && self.progress.latched().is_none()
    }

    /// One step of the flusher; it sleeps as the real one does.
    fn flush(&self) -> Next {
        if !self.has_unsynced() {
            return self.flusher.sleep_unless(|| self.has_unsynced());
        }
        self.write();
        self.sync();
        Next::Now
    }

    /// A thread that steps until the log stops.
    fn worker(
        self: &Arc<Self>,
        connect: impl FnOnce(&Self, Doorbell),
        mut step: impl FnMut(&Self) -> Next + Send + 'static,
    ) -> thread::JoinHandle<()> {
        let (bell, heard) = Doorbell::new();
        connect(self, bell);
        let log = self.clone();
        thread::spawn(move || {
            while !log.stop.load(SeqCst) {
                if step(&log) != Next::Now {
                    let _ = heard.recv();
                }
            }
        })
    }

    fn flusher(self: &Arc<Self>, step: fn(&Self) -> Next) -> thread::JoinHandle<()> {
        self.worker(|log, bell| assert!(log.flusher.connect(bell)), step)
    }

    fn stop(&self) {
        self.stop.store(true, SeqCst);
        for alarm in [&self.flusher, self.progress.visible_alarm()] {
            if let Some(bell) = alarm.bell() {
                bell.ring();
            }
        }
    }

    fn wait(&self, (end, group): (u64, Group), need: Need) -> Waited {
        self.progress.wait(end, need, group, None)
    }
}

/// Runs `tasks` beside the log's own `threads` and stops those when all have ended.
fn run(log: &Log, threads: Vec<thread::JoinHandle<()>>, tasks: Vec<thread::JoinHandle<()>>) {
    tasks.into_iter().for_each(|task| task.join().unwrap());
    log.stop();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

fn producer(log: &Arc<Log>, puts: usize) -> thread::JoinHandle<()> {
    let log = log.clone();
    thread::spawn(move || {
        for _ in 0..puts {
            let appended = log.append();
            assert!(matches!(log.wait(appended, DURABLE), Waited::Met));
            assert!(log.progress.durable() >= appended.0);
        }
    })
}

fn awaiting_producer(log: &Arc<Log>) -> thread::JoinHandle<()> {
    let log = log.clone();
    thread::spawn(move || {
        let (end, group) = log.append();
        let mut seat = None;
        let ticket = poll_fn(|context| {
            match log.progress.poll(end, DURABLE, group, context.waker(), &mut seat) {
                Some(waited) => Poll::Ready(waited),
                None => Poll::Pending,
            }
        });
        assert!(matches!(future::block_on(ticket), Waited::Met));
        assert!(log.progress.durable() >= end);
    })
}

#[test]
fn everyone_who_waits_for_a_sync_is_answered_after_it() {
    check(|| {
        let log = Log::new();
        log.progress.expect_group(thread_rng().gen_range(0..=2 * SPREAD_GROUP_MAX));
        let flusher = log.flusher(Log::flush);
        let impatient = {
            let log = log.clone();
            // A put that does not wait writes for itself, so that one sync covers two groups.
            thread::spawn(move || {
                log.append();
                log.write();
            })
        };
        let tasks = vec![producer(&log, 2), producer(&log, 1), awaiting_producer(&log), impatient];
        run(&log, vec![flusher], tasks);
    });
}

#[test]
fn everyone_hears_of_a_sync_that_failed() {
    check(|| {
        let log = Log::new();
        let flusher = log.flusher(|log| {
            if log.has_unsynced() && thread_rng().gen_bool(0.5) {
                log.write();
                log.progress.latch(Error::Full);
                return Next::Now;
            }
            log.flush()
        });
        let tasks = (0..3).map(|_| {
            let log = log.clone();
            thread::spawn(move || {
                let appended = log.append();
                match log.wait(appended, DURABLE) {
                    Waited::Met => assert!(log.progress.durable() >= appended.0),
                    Waited::Latched(_) => assert!(log.progress.latched().is_some()),
                    Waited::TimedOut => panic!("nothing ended"),
                }
            })
        });
        let tasks = tasks.collect();
        run(&log, vec![flusher], tasks);
    });
}

#[test]
fn everyone_is_answered_when_the_log_ends() {
    check(|| {
        let log = Log::new();
        let waiter = {
            let log = log.clone();
            thread::spawn(move || {
                let appended = log.append();
                assert!(matches!(log.wait(appended, DURABLE), Waited::TimedOut));
            })
        };
        log.progress.end();
        run(&log, vec![], vec![waiter]);
    });
}

#[test]
fn disk_and_replica_may_answer_in_either_order() {
    check(|| {
        let log = Log::new();
        log.progress.require_confirmation(0);
        let flusher = log.flusher(Log::flush);
        let replica = {
            let log = log.clone();
            thread::spawn(move || {
                while log.progress.confirmed() < 3 {
                    log.progress.set_confirmed(log.progress.appended());
                    thread::yield_now();
                }
            })
        };
        let tasks = [BOTH, CONFIRMED, BOTH].map(|need| {
            let log = log.clone();
            thread::spawn(move || {
                let appended = log.append();
                assert!(matches!(log.wait(appended, need), Waited::Met));
                assert!(log.progress.confirmed() >= appended.0);
                assert!(!need.durable || log.progress.durable() >= appended.0);
            })
        });
        let tasks = tasks.into_iter().chain([replica]).collect();
        run(&log, vec![flusher], tasks);
    });
}

#[test]
fn a_reader_hears_of_what_becomes_visible() {
    check(|| {
        let log = Log::new();
        log.progress.set_visible_by(VisibleBy::Durable);
        let flusher = log.flusher(Log::flush);
        let mut worked = false;
        let dispatcher = log.worker(
            |log, bell| assert!(log.progress.visible_alarm().connect(bell)),
            move |log| {
                let progress = &log.progress;
                if progress.visible() > progress.dispatched() {
                    worked = true;
                    progress.set_dispatched(progress.visible());
                    return Next::Now;
                }
                if std::mem::take(&mut worked) && !progress.has_readers() {
                    return Next::At(Instant::now());
                }
                let alarm = progress.visible_alarm();
                alarm.sleep_unless(|| progress.visible() > progress.dispatched())
            },
        );
        let reader = {
            let log = log.clone();
            thread::spawn(move || {
                for wanted in 1..=2 {
                    let progress = &log.progress;
                    let done = || (progress.dispatched() >= wanted).then_some(());
                    assert_eq!(progress.wait_dispatched(None, done), Some(()));
                }
            })
        };
        let tasks = vec![producer(&log, 1), producer(&log, 1), reader];
        run(&log, vec![flusher, dispatcher], tasks);
    });
}
