//! Background threads: named, woken by a doorbell, joined with a bound.
//!
//! Background work is written as a step that does what there is to do and says when to come back. A
//! [`Worker`] drives steps on a thread of its own; a simulation calls the same steps itself, in
//! whatever order it likes.

use crate::error::{Error, IoOp};
use crate::sync::{AtomicBool, Receiver, RecvTimeoutError, Sender, TrySendError, channel};
use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::task::Wake;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// When a step wants to run again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// At once: there is more to do.
    Now,
    /// At this instant, or before if something comes up: when the doorbell rings.
    At(Instant),
    /// Not before something comes up: when the doorbell rings.
    Idle,
}

impl Next {
    /// The sooner of the two.
    pub(crate) fn or_sooner(self, other: Self) -> Self {
        match (self, other) {
            (Self::Now, _) | (_, Self::Now) => Self::Now,
            (Self::At(one), Self::At(other)) => Self::At(one.min(other)),
            (Self::Idle, next) | (next, Self::Idle) => next,
        }
    }
}

/// Wakes a worker. Ringing twice before the worker looks is ringing once.
#[derive(Debug, Clone)]
pub(crate) struct Doorbell {
    ring: Sender<()>,
}

impl Doorbell {
    pub(crate) fn new() -> (Self, Receiver<()>) {
        let (ring, heard) = channel(1);
        (Self { ring }, heard)
    }

    pub(crate) fn ring(&self) {
        match self.ring.try_send(()) {
            // Full: the worker has yet to hear the last ring, and will look after it.
            Ok(()) | Err(TrySendError::Full(()) | TrySendError::Disconnected(())) => {}
        }
    }
}

/// A doorbell that is rung only while the worker sleeps, so that ringing costs next to nothing while
/// it works.
#[derive(Debug, Default)]
pub(crate) struct Alarm {
    bell: OnceLock<Doorbell>,
    awake: AtomicBool,
}

impl Alarm {
    /// Says which bell to ring; false if that was said before.
    pub(crate) fn connect(&self, bell: Doorbell) -> bool {
        self.bell.set(bell).is_ok()
    }

    pub(crate) fn bell(&self) -> Option<&Doorbell> {
        self.bell.get()
    }

    /// Wakes the worker. The caller has made the work visible before, with a `SeqCst` store or one
    /// followed by a `SeqCst` fence.
    pub(crate) fn ring(&self) {
        if !self.awake.load(Ordering::SeqCst)
            && !self.awake.swap(true, Ordering::SeqCst)
            && let Some(bell) = self.bell.get()
        {
            bell.ring();
        }
    }

    /// What a worker with nothing to do returns: it sleeps, unless `work` appeared meanwhile.
    pub(crate) fn sleep_unless(&self, work: impl FnOnce() -> bool) -> Next {
        self.awake.store(false, Ordering::SeqCst);
        // Whoever brings work shows it first and looks at `awake` then; one of us sees the other.
        if work() {
            self.awake.store(true, Ordering::SeqCst);
            return Next::Now;
        }
        Next::Idle
    }
}

/// For puts that are awaited on the worker's thread.
impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        self.ring();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.ring();
    }
}

/// Runs `work` on a thread called `name`; it goes on if nobody joins it.
pub(crate) fn detach(
    name: &str,
    work: impl FnOnce() + Send + 'static,
) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(name.to_owned()).spawn(work)
}

/// Runs `work` on a thread called `name` and waits for it, at most `timeout`: for calls that may hang
/// in the operating system.
pub(crate) fn run_bounded(
    name: &str,
    timeout: Duration,
    work: impl FnOnce() -> Result<(), Error> + Send + 'static,
) -> Result<(), Error> {
    let (done, answer) = channel(1);
    let body = move || {
        // Nobody listens any more if the time was up.
        let _ = done.send(work());
    };
    if let Err(source) = detach(name, body) {
        return Err(Error::io(IoOp::Create, Path::new(name), None, source));
    }
    match answer.recv_timeout(timeout) {
        Ok(outcome) => outcome,
        Err(_) => Err(Error::CloseTimeout { thread: name.to_owned() }),
    }
}

/// What a panic said.
pub(crate) fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default()
}

thread_local! {
    static IS_WORKER: Cell<bool> = const { Cell::new(false) };
}

/// Whether this is the thread of a [`Worker`].
pub(crate) fn is_worker() -> bool {
    IS_WORKER.get()
}

/// A thread that runs one step after another until it is stopped.
#[derive(Debug)]
pub(crate) struct Worker {
    name: String,
    bell: Doorbell,
    stop: Arc<AtomicBool>,
    gone: Receiver<()>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts a thread called `name` that listens to `heard`. A panic in `step` ends the thread and
    /// is handed to `on_panic`.
    pub(crate) fn spawn(
        name: &str,
        (bell, heard): (Doorbell, Receiver<()>),
        mut step: impl FnMut() -> Next + Send + 'static,
        on_panic: impl FnOnce(Error) + Send + 'static,
    ) -> std::io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (alive, gone) = channel::<()>(0);
        let (stopped, thread_name) = (stop.clone(), name.to_owned());
        let body = move || {
            IS_WORKER.set(true);
            // Dropped when the thread ends, however it ends: that is what `stop` waits for.
            let _alive = alive;
            let run = AssertUnwindSafe(|| {
                while !stopped.load(Ordering::Acquire) {
                    match step() {
                        Next::Now => {}
                        Next::Idle => {
                            if heard.recv().is_err() {
                                break;
                            }
                        }
                        Next::At(when) => {
                            if heard.recv_deadline(when) == Err(RecvTimeoutError::Disconnected) {
                                break;
                            }
                        }
                    }
                }
            });
            if let Err(panic) = catch_unwind(run) {
                let message = panic_message(&*panic);
                on_panic(Error::WorkerPanicked { thread: thread_name, message });
            }
        };
        let thread = detach(name, body)?;
        Ok(Self { name: name.to_owned(), bell, stop, gone, thread: Some(thread) })
    }

    /// Whether this is its thread.
    pub(crate) fn runs_here(&self) -> bool {
        let here = std::thread::current().id();
        self.thread.as_ref().is_some_and(|thread| thread.thread().id() == here)
    }

    /// Asks the thread to stop after its current step and waits for it, at most `timeout`, unless it is
    /// the one that asks. A thread that hangs in the operating system is left behind and named in the error.
    pub(crate) fn stop(&mut self, timeout: Duration) -> Result<(), Error> {
        let runs_here = self.runs_here();
        let Some(thread) = self.thread.take() else { return Ok(()) };
        self.stop.store(true, Ordering::Release);
        self.bell.ring();
        if runs_here {
            return Ok(());
        }
        if self.gone.recv_timeout(timeout) == Err(RecvTimeoutError::Timeout) {
            return Err(Error::CloseTimeout { thread: self.name.clone() });
        }
        // The panic, if there was one, went to `on_panic`.
        let _ = thread.join();
        Ok(())
    }
}
