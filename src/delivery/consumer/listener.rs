//! Threads that hand messages to a handler.

use super::group::Group;
use super::{Consumer, Received};
use crate::delivery::Event;
use crate::error::{Error, IoContext, IoOp, Result};
use crate::worker::{Doorbell, Next, Worker};
use parking_lot::Mutex;
use std::any::Any;
use std::error::Error as StdError;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How long a worker rests after it could not get messages.
const PAUSE: Duration = Duration::from_millis(100);
const WORKERS_MAX: usize = 1024;

/// What a handler says of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Handled {
    /// It is handled, see [`Received::ack`].
    Done,
    /// It is to come again, see [`Received::retry_later`].
    RetryLater,
    /// It is to come again after that time, see [`Received::retry_after`].
    RetryAfter(Duration),
    /// It will never be handled, see [`Received::reject`].
    Reject,
}

type Handler = dyn Fn(&Received) -> std::result::Result<Handled, Box<dyn StdError>> + Send + Sync;

/// Threads that hand messages to a handler, see [`Consumer::listen`].
///
/// Dropping it ends them, as [`close`](Self::close) does. It keeps its store open.
pub struct Listener {
    consumer: Consumer,
    shared: Arc<Shared>,
    workers: Vec<Worker>,
}

struct Shared {
    handler: Arc<Handler>,
    stopping: AtomicBool,
    /// The last thing that went wrong outside the handler.
    trouble: Mutex<Option<Error>>,
}

impl Listener {
    pub(super) fn start(
        consumer: &Consumer,
        workers: usize,
        handler: Arc<Handler>,
    ) -> Result<Self> {
        if !(1..=WORKERS_MAX).contains(&workers) {
            let (field, value) = ("workers", workers.to_string());
            return Err(Error::Config { field, value, allowed: "1 to 1024" });
        }
        consumer.check_open()?;
        let shared = Arc::new(Shared {
            handler,
            stopping: AtomicBool::new(false),
            trouble: Mutex::new(None),
        });
        let own = consumer.clone();
        let mut listener = Self { consumer: own, shared: shared.clone(), workers: Vec::new() };
        for number in 0..workers {
            let name = format!("duralog-consume-{number}");
            let (consumer, shared, failed) = (consumer.clone(), shared.clone(), shared.clone());
            let step = move || shared.step(&consumer);
            let panicked = move |error| *failed.trouble.lock() = Some(error);
            let worker = Worker::spawn(&name, Doorbell::new(), step, panicked);
            // Those that run already end with the listener.
            listener.workers.push(worker.at(IoOp::Create, Path::new(&name))?);
        }
        Ok(listener)
    }

    /// What went wrong last beside the handler: messages that could not be read, committed or set aside.
    pub fn trouble(&self) -> Option<Error> {
        self.shared.trouble.lock().clone()
    }

    /// Ends the workers once they are done with the message they have; what they hold beside it goes
    /// back. Blocks up to the store's `close_timeout`; called by the handler, for all workers but its own.
    ///
    /// # Errors
    /// [`Error::CloseTimeout`] with a worker's name if its handler takes longer. Its message is given to
    /// somebody else when its lease runs out.
    pub fn close(mut self) -> Result<()> {
        self.stop()
    }

    fn stop(&mut self) -> Result<()> {
        self.shared.stopping.store(true, Ordering::SeqCst);
        let group = &self.consumer.member.group;
        group.changed();
        let until = group.now() + group.store.config().log.close_timeout;
        let mut stopped = Ok(());
        for mut worker in self.workers.drain(..) {
            let left = until.saturating_duration_since(group.now());
            stopped = stopped.and(worker.stop(left));
        }
        stopped
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // `close` is how a caller hears of it.
        let _ = self.stop();
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listener")
            .field("consumer", &self.consumer)
            .field("workers", &self.workers.len())
            .finish_non_exhaustive()
    }
}

impl Shared {
    fn step(&self, consumer: &Consumer) -> Next {
        if self.stopping.load(Ordering::SeqCst) {
            return Next::Idle;
        }
        let group = &consumer.member.group;
        let max = consumer.messages_at_a_time();
        let stop = || self.stopping.load(Ordering::SeqCst);
        // Whoever ends it wakes it.
        let batch = match consumer.poll_until(max, Duration::MAX, stop) {
            Ok(batch) => batch,
            Err(Error::Closed) => return Next::Idle,
            Err(error) => {
                *self.trouble.lock() = Some(error);
                return Next::At(group.now() + PAUSE);
            }
        };
        for message in batch {
            if stop() {
                break;
            }
            if !message.is_on_lease() {
                continue;
            }
            if let Err(error) = self.handle(&message, group) {
                *self.trouble.lock() = Some(error);
                // Not at once: what went wrong may last. In order, nothing may be handled before it.
                message.keep();
                if group.is_ordered() {
                    break;
                }
            }
        }
        Next::Now
    }

    fn handle(&self, message: &Received, group: &Group) -> Result<()> {
        let handled = catch_unwind(AssertUnwindSafe(|| {
            // Its error is shown, and dropped, in here: that is the application's code, too.
            (self.handler)(message).map_err(|error| error.to_string())
        }));
        let failed = |reason: &str| {
            group.tell(&Event::HandlerFailed { group: &group.name, message, reason });
            message.retry_later()
        };
        match handled {
            Ok(Ok(Handled::Done)) => message.ack(),
            Ok(Ok(Handled::RetryAfter(delay))) => message.retry_after(delay),
            Ok(Ok(Handled::Reject)) => message.reject(),
            Ok(Ok(Handled::RetryLater)) => message.retry_later(),
            Ok(Err(reason)) => failed(&reason),
            Err(panic) => failed(&panic_text(panic)),
        }
        .map(|_| ())
    }
}

/// What a panic says. Whatever else it carries is left alone: dropping that may panic again.
fn panic_text(panic: Box<dyn Any + Send>) -> String {
    let panic = match panic.downcast::<String>() {
        Ok(text) => return *text,
        Err(other) => other,
    };
    match panic.downcast::<&str>() {
        Ok(text) => (*text).to_owned(),
        Err(other) => {
            std::mem::forget(other);
            "a panic".to_owned()
        }
    }
}
