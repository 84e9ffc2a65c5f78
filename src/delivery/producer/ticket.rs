//! A send in flight.

use super::attempts::{Attempts, Place, Verdict};
use super::{Inner, Key, Sent, failed};
use crate::error::{Error, Result};
use crate::log::progress::Seat;
use crate::message::Message;
use crate::store::{PutResult, Ticket};
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

/// How soon a task looks again whether there is room, or a segment.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// The answer to come of a message that was [sent](super::Producer::send_async).
///
/// Wait for it by blocking, or await it: it is a future that needs no runtime. Whatever has to be tried
/// again is tried by whoever waits or polls, and by nobody else; polling never blocks for room. Dropping it
/// cancels nothing: a message that has its place is stored all the same.
#[must_use = "the message is not known to be safe before the ticket is answered"]
pub struct SendTicket {
    inner: Arc<Inner>,
    /// Empty once no other attempt could need it.
    message: Option<Message>,
    key: Key,
    attempts: Attempts,
    /// Where the message was given a queue.
    aimed: Option<Place>,
    /// When all of it ends.
    until: Instant,
    state: State,
}

enum State {
    /// It has its place.
    InFlight(Ticket),
    /// The next look at a place for it.
    Pausing {
        until: Instant,
        seat: Option<Seat>,
        /// The current attempt has begun already, and was told to wait.
        began: bool,
    },
    Answered,
}

impl SendTicket {
    pub(super) fn begin(inner: Arc<Inner>, message: Message) -> Result<Self> {
        let mut message = message;
        let now = inner.now();
        inner.compress(std::slice::from_mut(&mut message))?;
        let key = inner.identify(std::slice::from_mut(&mut message), now);
        let (until, attempts) =
            (now + inner.options.send_timeout, inner.attempts(inner.options.async_retries));
        let state = State::Pausing { until: now, seat: None, began: false };
        let message = Some(message);
        let mut ticket = Self { inner, message, key, attempts, aimed: None, until, state };
        loop {
            match ticket.place(ticket.inner.now(), true) {
                Ok(placed) => {
                    ticket.state = State::InFlight(placed);
                    return Ok(ticket);
                }
                Err(error) => match ticket.settle(Err(error)) {
                    Some(answer) => return Err(answer.err().unwrap_or(Error::Closed)),
                    None if ticket.is_due() => {}
                    None => return Ok(ticket),
                },
            }
        }
    }

    /// The id of the message, its property `UNIQ_KEY`.
    pub fn unique_key(&self) -> &str {
        self.key.as_str()
    }

    /// Whether the store has taken it, or has already said that it never will.
    pub(in crate::delivery) fn is_placed(&self) -> bool {
        !matches!(self.state, State::Pausing { .. })
    }

    /// Blocks until the message is sent or has failed: until
    /// [`send_timeout`](super::ProducerBuilder::send_timeout) after the call that sent it at the latest,
    /// or, if that is over already, at once, without another attempt.
    ///
    /// # Errors
    /// As [`Producer::send`](super::Producer::send).
    pub fn wait(mut self) -> Result<Sent> {
        loop {
            let outcome = match std::mem::replace(&mut self.state, State::Answered) {
                State::InFlight(ticket) => ticket.wait(),
                State::Pausing { until, began, .. } => {
                    let now = self.inner.now();
                    let now = self.inner.pause(now, until.saturating_duration_since(now));
                    if let Some(answer) = self.give_up(now, began) {
                        return answer;
                    }
                    match self.place(now, true) {
                        Ok(ticket) => {
                            self.state = State::InFlight(ticket);
                            continue;
                        }
                        Err(error) => Err(error),
                    }
                }
                State::Answered => return Err(Error::Closed),
            };
            if let Some(answer) = self.settle(outcome) {
                return answer;
            }
        }
    }

    /// One attempt at a place.
    fn place(&mut self, now: Instant, may_wait: bool) -> Result<Ticket> {
        let Self { inner, message, attempts, aimed, until, .. } = self;
        let Some(message) = message else { return Err(Error::Closed) };
        let (place, selector) = (attempts.place, inner.options.selector.as_ref());
        let target = inner.target(place);
        target.aim(std::slice::from_mut(message), aimed, place, selector)?;
        let share = now + attempts.share(until.saturating_duration_since(now));
        let ticket = target.submit(message, may_wait, now, share)?;
        if !attempts.has_more() {
            self.message = None;
        }
        Ok(ticket)
    }

    /// The answer of one that is to be tried again, but was left alone for too long.
    fn give_up(&mut self, now: Instant, began: bool) -> Option<Result<Sent>> {
        if now < self.until {
            return None;
        }
        let error = self.attempts.give_up(began)?;
        self.state = State::Answered;
        Some(self.inner.told(Err(failed(self.attempts.made, &self.key, error))))
    }

    /// Judges how an attempt ended: the answer, or `None` and the next attempt is set.
    fn settle(&mut self, outcome: Result<PutResult>) -> Option<Result<Sent>> {
        let now = self.inner.now();
        let left = self.until.saturating_duration_since(now);
        let inner = &self.inner;
        Some(inner.told(match self.attempts.judge(outcome, |status| inner.accepts(status), left) {
            Verdict::Sent(put) => Ok(Sent::new(put, &self.attempts, &mut self.key)),
            Verdict::Failed(error) => Err(failed(self.attempts.made, &self.key, error)),
            Verdict::Again(pause) => {
                self.state = State::Pausing { until: now + pause, seat: None, began: false };
                return None;
            }
        }))
    }

    /// Whether the next attempt is due.
    fn is_due(&self) -> bool {
        matches!(&self.state, State::Pausing { until, .. } if self.inner.now() >= *until)
    }

    /// Whether a place that cannot be had at once may be had soon, within the same attempt.
    fn may_wait_for(&self, error: &Error, began: bool, now: Instant) -> bool {
        let waits = match error {
            Error::Full | Error::SegmentNotReady { .. } => true,
            // What an earlier attempt at the next segment met; this one has asked for another.
            Error::DiskFull { .. } => !began,
            _ => false,
        };
        waits && now < self.until
    }
}

impl Future for SendTicket {
    type Output = Result<Sent>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        loop {
            let outcome = match &mut this.state {
                State::Answered => return Poll::Pending,
                State::InFlight(ticket) => ready!(Pin::new(ticket).poll(context)),
                State::Pausing { until, seat, began } => {
                    let target = this.inner.target(this.attempts.place);
                    ready!(target.store.poll_until(*until, context, seat));
                    let (now, began) = (this.inner.now(), *began);
                    if let Some(answer) = (!began).then(|| this.give_up(now, began)).flatten() {
                        return Poll::Ready(answer);
                    }
                    match this.place(now, false) {
                        Ok(ticket) => {
                            this.state = State::InFlight(ticket);
                            continue;
                        }
                        Err(error) if this.may_wait_for(&error, began, now) => {
                            let until = (now + LOOK_AGAIN).min(this.until);
                            this.state = State::Pausing { until, seat: None, began: true };
                            continue;
                        }
                        Err(error) => Err(error),
                    }
                }
            };
            if let Some(answer) = this.settle(outcome) {
                this.state = State::Answered;
                return Poll::Ready(answer);
            }
        }
    }
}

impl fmt::Debug for SendTicket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SendTicket")
            .field("unique_key", &self.unique_key())
            .field("attempts", &self.attempts.made)
            .finish_non_exhaustive()
    }
}
