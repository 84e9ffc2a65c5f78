//! From the table to the store: rounds of what is due.

use super::table::{OutboxTable, PendingMessage, SendFailure};
use super::{Options, SealedMessage};
use crate::delivery::producer::is_of_message;
use crate::delivery::{Producer, Sent};
use crate::error::{Error, Result};
use crate::store::PutStatus;
use crate::worker::{Next, panic_message};
use parking_lot::Mutex;
use std::collections::{HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Messages that are sent and not marked, at most: as many as a crash may send twice.
pub(super) const BATCH: usize = 64;
/// Bytes that a store takes before somebody must write them, where no thread does.
const LAID: usize = 1 << 20;
/// Rows forgotten in one go.
const PRUNE: usize = 1000;
/// A clock that falls behind by more, in milliseconds, was put back: all that waits is tried again.
const CLOCK_BACK: i64 = 1000;
/// Between two looks at what may be forgotten, in milliseconds.
const PRUNE_EVERY: i64 = 60_000;

/// Sends what a table holds.
pub(super) struct Relay {
    pub(super) producer: Producer,
    pub(super) options: Options,
    pub(super) table: Mutex<Box<dyn OutboxTable>>,
    /// Held for a round: there is one at a time.
    state: Mutex<State>,
    pub(super) stopping: AtomicBool,
    pub(super) trouble: Mutex<Option<Error>>,
}

#[derive(Default)]
struct State {
    /// Sent, but the table does not know it yet.
    unmarked: Vec<i64>,
    /// Stored, but not yet as safely as asked: where each ends in the log.
    in_doubt: HashMap<i64, u64>,
    prune_at: Option<i64>,
    /// The time of the last round.
    rounded_at: i64,
}

/// What becomes of the messages of a round.
#[derive(Default)]
struct Round {
    sent: Vec<i64>,
    failed: Vec<(i64, SendFailure)>,
    /// Nothing more of these is sent in this round.
    held: HashSet<String>,
    end: Option<End>,
}

/// Why a round ends before its messages do.
enum End {
    /// Others would hardly fare better now.
    Pause,
    /// The store takes nothing more.
    Halt(Error),
}

impl Relay {
    pub(super) fn new(producer: Producer, options: Options, table: Box<dyn OutboxTable>) -> Self {
        Self {
            producer,
            options,
            table: Mutex::new(table),
            state: Mutex::default(),
            stopping: AtomicBool::new(false),
            trouble: Mutex::default(),
        }
    }

    /// A round; when the next one is due.
    pub(super) fn step(&self) -> Next {
        let mut state = self.state.lock();
        let (trouble, next) = match guarded(|| self.round(&mut state)) {
            Ok((None, next)) => (None, next),
            Ok((Some(error), next)) => (Some(error), next),
            Err(error) => (Some(error), self.in_a_while(self.options.pause)),
        };
        *self.trouble.lock() = trouble;
        next
    }

    fn in_a_while(&self, pause: Duration) -> Next {
        Next::At(self.producer.store().now() + pause)
    }

    fn unix_millis(&self) -> i64 {
        self.producer.store().clock().unix_millis()
    }

    fn round(&self, state: &mut State) -> Result<(Option<Error>, Next)> {
        // Whether or not they are due: there is only room for so many.
        let safe = state.in_doubt.extract_if(|_, end| self.is_safe(*end));
        state.unmarked.extend(safe.map(|(id, _)| id));
        self.mark_sent(state)?;
        let now = self.unix_millis();
        let rounded_at = std::mem::replace(&mut state.rounded_at, now);
        if rounded_at.saturating_sub(now) > CLOCK_BACK {
            // Nothing waits longer than was meant, though the clock was put back.
            self.table.lock().make_due()?;
        }
        self.prune(state, now)?;
        let due = self.table.lock().due(now, BATCH)?;
        if due.messages.is_empty() {
            let until_next = due.next_ms.map_or(i64::MAX, |next| next.saturating_sub(now));
            let until_next = Duration::from_millis(until_next.max(1).unsigned_abs());
            return Ok((None, self.in_a_while(until_next.min(self.options.poll_interval))));
        }
        let mut round = Round::default();
        let mut window = due.messages;
        while !window.is_empty() && round.end.is_none() && !self.is_stopping() {
            window = self.pass(state, &mut round, window);
        }
        state.unmarked.append(&mut round.sent);
        self.mark_sent(state)?;
        let mut table = self.table.lock();
        for (id, failure) in &round.failed {
            table.mark_failed(*id, failure)?;
        }
        Ok(match round.end {
            None => (None, Next::Now),
            Some(End::Pause) => (None, self.in_a_while(self.options.pause)),
            Some(End::Halt(error)) if self.producer.is_single() => (Some(error), Next::Idle),
            // The other store may take them.
            Some(End::Halt(error)) => (Some(error), self.in_a_while(self.options.pause)),
        })
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    fn mark_sent(&self, state: &mut State) -> Result<()> {
        if !state.unmarked.is_empty() {
            self.table.lock().mark_sent(&state.unmarked, self.unix_millis())?;
            state.unmarked.clear();
        }
        Ok(())
    }

    fn prune(&self, state: &mut State, now: i64) -> Result<()> {
        if state.prune_at.is_some_and(|at| at > now && at - now <= PRUNE_EVERY) {
            return Ok(());
        }
        let keep = i64::try_from(self.options.keep_sent.as_millis()).unwrap_or(i64::MAX);
        let pruned = self.table.lock().prune(now.saturating_sub(keep), PRUNE)?;
        state.prune_at = (pruned < PRUNE).then_some(now.saturating_add(PRUNE_EVERY));
        Ok(())
    }

    /// Sends the first message of each lane side by side; what is left.
    fn pass(
        &self,
        state: &mut State,
        round: &mut Round,
        window: Vec<PendingMessage>,
    ) -> Vec<PendingMessage> {
        let (mut busy, mut left, mut flights) = (HashSet::new(), Vec::new(), Vec::new());
        let mut laid = 0;
        for pending in window {
            if round.end.is_some() || self.is_stopping() {
                break;
            }
            if let Some(lane) = &pending.lane {
                if round.held.contains(lane) {
                    continue;
                }
                if !busy.insert(lane.clone()) {
                    left.push(pending);
                    continue;
                }
            }
            if let Some(end) = state.in_doubt.get(&pending.id).copied() {
                self.look_again(state, round, &pending, end);
                continue;
            }
            let message = match SealedMessage::open(&pending.bytes) {
                Ok(message) => message,
                Err(error) => {
                    round.bury(&pending, pending.attempts, &error);
                    continue;
                }
            };
            if round.sent.len() + state.in_doubt.len() + flights.len() >= BATCH {
                round.end = Some(End::Pause);
                break;
            }
            laid += pending.bytes.len();
            self.producer.drive(laid > LAID);
            laid = if laid > LAID { 0 } else { laid };
            // Whatever it says itself about waiting: it is marked for good.
            match guarded(|| self.producer.send_async(message.waiting())) {
                Ok(ticket) => {
                    if !ticket.is_placed() {
                        // The store has no room, or none for this one: the others wait for how it ends.
                        round.end = Some(End::Pause);
                    }
                    flights.push((pending, ticket));
                }
                Err(error) => self.judge(state, round, &pending, Err(error)),
            }
        }
        self.producer.drive(true);
        for (pending, ticket) in flights {
            let outcome = guarded(|| ticket.wait());
            self.judge(state, round, &pending, outcome);
        }
        left
    }

    /// What became of a message that was stored, but not as safely as asked. Another copy would lie behind
    /// it and be no safer.
    fn look_again(&self, state: &mut State, round: &mut Round, pending: &PendingMessage, end: u64) {
        let store = self.producer.store();
        if self.is_safe(end) {
            state.in_doubt.remove(&pending.id);
            round.sent.push(pending.id);
            return;
        }
        let over = store.latched().map(|first| (*first).clone());
        if let Some(error) = over.or_else(|| (!store.is_open()).then_some(Error::Closed)) {
            round.end = Some(End::Halt(error));
            return;
        }
        let error = "stored, but not yet as safe as the store's settings ask".to_owned();
        let next_ms = Some(self.again_at(self.options.pause));
        round.hold(pending, SendFailure { attempts: pending.attempts, next_ms, error });
    }

    fn is_safe(&self, end: u64) -> bool {
        let store = self.producer.store();
        store.safe_end() >= end && store.is_confirmed(end)
    }

    fn again_at(&self, pause: Duration) -> i64 {
        let pause = i64::try_from(pause.as_millis()).unwrap_or(i64::MAX);
        self.unix_millis().saturating_add(pause).max(1)
    }

    fn judge(
        &self,
        state: &mut State,
        round: &mut Round,
        pending: &PendingMessage,
        outcome: Result<Sent>,
    ) {
        let error = match outcome {
            Ok(sent) if sent.put.status == PutStatus::PutOk => {
                round.sent.push(pending.id);
                return;
            }
            // The producer takes it for success; here it is marked only when it is.
            Ok(sent) => Error::NotOk(sent.put),
            Err(error) => error,
        };
        let attempts = pending.attempts.saturating_add(1);
        let made = if let Error::SendFailed { attempts, .. } = &error { *attempts } else { 1 };
        let mut may_die = true;
        match error.cause() {
            // Both were asked, and the one that goes on will not take this one: that holds up no other, and
            // kills none that its own store may take when it is opened again.
            cause if ends_the_store(cause) && made > 1 && self.producer.has_store_left() => {
                may_die = false;
            }
            cause if ends_the_store(cause) => {
                round.end = Some(End::Halt(cause.clone()));
                return;
            }
            cause if is_of_message(cause) => return round.bury(pending, attempts, &error),
            // Of two stores it is not known which one has it.
            Error::NotOk(put) if self.producer.is_single() => {
                state.in_doubt.insert(pending.id, put.end_offset);
                may_die = false;
                round.end = Some(End::Pause);
            }
            Error::Panicked { .. } => {}
            _ => round.end = Some(End::Pause),
        }
        if may_die && attempts >= self.options.max_attempts {
            return round.bury(pending, attempts, &error);
        }
        let next_ms = Some(self.again_at(self.options.pause_after(attempts)));
        round.hold(pending, SendFailure { attempts, next_ms, error: error.to_string() });
    }
}

impl Round {
    /// The message is tried again, and none of its lane passes it.
    fn hold(&mut self, pending: &PendingMessage, failure: SendFailure) {
        self.held.extend(pending.lane.clone());
        self.failed.push((pending.id, failure));
    }

    fn bury(&mut self, pending: &PendingMessage, attempts: u32, error: &Error) {
        let failure = SendFailure { attempts, next_ms: None, error: error.to_string() };
        self.failed.push((pending.id, failure));
    }
}

/// Whether no message can be sent before the store is opened again: that is held against none of them.
fn ends_the_store(error: &Error) -> bool {
    matches!(
        error,
        Error::Closed
            | Error::ReadOnly
            | Error::Latched { .. }
            | Error::Unknown { .. }
            | Error::Retired { .. }
    )
}

/// Runs code that may be the application's.
fn guarded<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    let done = catch_unwind(AssertUnwindSafe(work));
    done.unwrap_or_else(|panic| Err(Error::Panicked { message: panic_message(&*panic) }))
}
