//! A put in flight.

use super::put::{Outlook, Pending};
use super::{PutResult, Shared};
use crate::error::Result;
use crate::log::progress::Seat;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

/// The answer to come of a [`submit`](super::Store::submit)ted message.
///
/// Wait for it by blocking, or await it: it is a future that needs no runtime. Its deadline began
/// with the submit. Dropping it cancels nothing: the message is stored all the same.
///
/// # Examples
/// ```
/// use duralog::{Message, Store, StoreConfig};
///
/// # use std::sync::Arc;
/// # use std::task::{Context, Poll, Wake, Waker};
/// # struct Unpark(std::thread::Thread);
/// # impl Wake for Unpark {
/// #     fn wake(self: Arc<Self>) {
/// #         self.0.unpark();
/// #     }
/// # }
/// # fn block_on<F: Future>(future: F) -> F::Output {
/// #     let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
/// #     let mut future = std::pin::pin!(future);
/// #     loop {
/// #         match future.as_mut().poll(&mut Context::from_waker(&waker)) {
/// #             Poll::Ready(output) => return output,
/// #             Poll::Pending => std::thread::park(),
/// #         }
/// #     }
/// # }
/// # let dir = std::env::temp_dir().join(format!("duralog-doc-ticket-{}", std::process::id()));
/// let store = Store::open(StoreConfig::new(&dir).segment_size(1 << 20))?;
/// // Under any executor: `block_on` here is one of ten lines.
/// let put = block_on(async { store.submit(Message::new("orders", "paid 42"))?.await?.ok() })?;
/// assert_eq!(put.queue_offset, 0);
/// # store.close()?;
/// # std::fs::remove_dir_all(&dir).unwrap();
/// # Ok::<(), duralog::Error>(())
/// ```
#[must_use = "the message is not known to be safe before the ticket is answered"]
pub struct Ticket {
    shared: Arc<Shared>,
    pending: Pending,
    registered: bool,
    seat: Option<Seat>,
    /// It was answered before, and counts as one put.
    counted: AtomicBool,
}

impl Ticket {
    pub(crate) fn new(shared: Arc<Shared>, pending: Pending) -> Self {
        Self { shared, pending, registered: false, seat: None, counted: AtomicBool::new(false) }
    }

    /// Another one for the same put, to be waited for as long as at first. It counts as no other put.
    pub(crate) fn again(&self) -> Self {
        let pending = self.shared.renewed(self.pending);
        Self { counted: AtomicBool::new(true), ..Self::new(self.shared.clone(), pending) }
    }

    /// The answer for whoever asks, counted once.
    fn answer(&self, answer: Result<PutResult>) -> Result<PutResult> {
        if answer.is_err() || self.counted.swap(true, Ordering::Relaxed) {
            return answer;
        }
        self.shared.counted(answer)
    }

    /// Blocks until the put is answered, at most until its deadline; or until the store closes, with
    /// the status reached by then.
    ///
    /// # Errors
    /// [`Error::Unknown`](crate::Error::Unknown) if a write or sync failed before the message was safe.
    pub fn wait(self) -> Result<PutResult> {
        self.answer(self.shared.wait(&self.pending))
    }

    /// Blocks until the put is answered, at most for `timeout`: then `None`, and the ticket can be
    /// waited for again.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    pub fn wait_timeout(&self, timeout: Duration) -> Result<Option<PutResult>> {
        let core = &self.shared.core;
        // A limit too far away to be told is none.
        let limit = core.clock.now().checked_add(timeout);
        loop {
            match self.shared.outlook(&self.pending)? {
                Outlook::Answer(result) => return self.answer(Ok(result)).map(Some),
                Outlook::Open { need, until } => {
                    let until = limit.map_or(until, |limit| limit.min(until));
                    let appended = &self.pending.appended;
                    let _ = core.progress.wait(appended.end, need, appended.group, Some(until));
                }
            }
            if limit.is_some_and(|limit| core.clock.now() >= limit) {
                return self.try_get();
            }
        }
    }

    /// The answer, if there is one by now.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    pub fn try_get(&self) -> Result<Option<PutResult>> {
        Ok(match self.shared.outlook(&self.pending)? {
            Outlook::Answer(result) => Some(self.answer(Ok(result))?),
            Outlook::Open { .. } => None,
        })
    }

    /// The physical offset at which the message begins, in bytes; the first one, for a batch.
    pub fn physical_offset(&self) -> u64 {
        self.pending.appended.physical_offset
    }

    /// The message's position in its queue, counted from 0; the first one's, for a batch.
    pub fn queue_offset(&self) -> u64 {
        self.pending.appended.queue_offset
    }
}

impl Future for Ticket {
    type Output = Result<PutResult>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if !self.registered {
            // Nobody moves a watermark while the disk hangs; the deadline must wake the task.
            let now = self.shared.core.clock.now();
            let deadlines = &self.shared.deadlines;
            self.pending.deadlines().for_each(|deadline| deadlines.add(now, deadline));
            self.registered = true;
        }
        let appended = self.pending.appended;
        // Looked at once more with the waker in place: a deadline that passed before woke nobody.
        let mut armed = false;
        loop {
            match self.shared.outlook(&self.pending) {
                Err(error) => return Poll::Ready(Err(error)),
                Ok(Outlook::Answer(result)) => return Poll::Ready(self.answer(Ok(result))),
                Ok(Outlook::Open { .. }) if armed => return Poll::Pending,
                Ok(Outlook::Open { need, .. }) => {
                    let Self { shared, seat, .. } = &mut *self;
                    let (progress, waker) = (&shared.core.progress, context.waker());
                    let moved = progress.poll(appended.end, need, appended.group, waker, seat);
                    armed = moved.is_none();
                }
            }
        }
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticket")
            .field("physical_offset", &self.physical_offset())
            .finish_non_exhaustive()
    }
}

#[cfg(all(test, feature = "sim"))]
mod tests {
    use crate::disk::SimDisk;
    use crate::{Environment, Message, Store, StoreConfig};
    use std::future::Future;
    use std::pin::pin;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Context, Poll, Wake, Waker};

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn the_first_group_is_woken_though_a_sync_covers_the_second_with_it() {
        let disk = SimDisk::new(1);
        let config = StoreConfig::new("/s").segment_size(64 << 10);
        let store = Store::open_in(config, Environment::on(disk.shared()).stepped()).unwrap();
        let mut ticket = pin!(store.submit(Message::new("t", "waits")).unwrap());
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(woken.clone());
        let mut context = Context::from_waker(&waker);
        assert!(ticket.as_mut().poll(&mut context).is_pending());
        let core = &store.shared().core;
        core.write().unwrap();
        // Written by itself: a group of its own between the write and the sync.
        drop(store.submit(Message::new("t", "does not").wait(false)).unwrap());
        core.sync().unwrap();
        assert_eq!(woken.0.load(Ordering::SeqCst), 1);
        assert!(matches!(ticket.as_mut().poll(&mut context), Poll::Ready(Ok(_))));
    }
}
