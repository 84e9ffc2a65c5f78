//! Asking the producers about half messages that stay open.

use super::super::TransactionState;
use super::super::checker::Checker;
use super::super::half::HalfMessageView;
use super::{Book, Coordinator, Fate, Found, Half, HalfState, Pace, Place, Queue};
use super::{add, find, is_about_the_queue};
use crate::error::{Error, Result};
use crate::log::MessageView;
use crate::store::{Store, WeakStore};
use crate::worker::Next;
use std::sync::Arc;
use std::time::{Duration, Instant};

impl Coordinator {
    /// Takes a checker in, and has the half messages of its group checked.
    pub(crate) fn register(&self, store: &Store, checker: &Arc<Checker>) -> Result<()> {
        let waiting: Vec<Arc<Half>> = {
            let mut book = self.book.lock();
            let group = book.intern(&checker.group);
            let known = book.groups.entry(group).or_default();
            if known.checker.is_some() {
                return Err(Error::ProducerGroupInUse { group: checker.group.to_string() });
            }
            known.checker = Some(checker.clone());
            let open = book.ledgers[Queue::Half as usize].open();
            open.filter(|(_, half)| half.group == checker.group)
                .map(|(_, half)| half.clone())
                .collect()
        };
        for half in waiting {
            let mut state = half.state.lock();
            if matches!(state.fate, Fate::Open) && state.place.queue == Queue::Half {
                let due = first_check(store, checker, &state);
                self.schedule(&half, &mut state, due);
            }
        }
        self.wake();
        Ok(())
    }

    pub(crate) fn unregister(&self, checker: &Arc<Checker>) {
        let mut book = self.book.lock();
        if let Some(group) = book.groups.get_mut(&checker.group) {
            group.checker = None;
            group.due.clear();
        }
    }

    /// Asks the producer what is to become of a half message. Nobody needs the store while it thinks.
    pub(crate) fn check(&self, store: &WeakStore, checker: &Checker, half: &Arc<Half>) {
        let asked = store.upgrade().and_then(|store| self.to_check(&store, checker, half));
        let Some((place, view)) = asked else { return };
        let answer = checker.ask(&view).unwrap_or_else(|| {
            add(&self.counts.panics);
            TransactionState::Unknown
        });
        add(&self.counts.checks);
        if let Some(store) = store.upgrade() {
            self.answered(&store, checker, half, (place, &view), answer);
            let news = half.state.lock().news.take();
            self.tell(news);
        }
    }

    pub(super) fn answered(
        &self,
        store: &Store,
        checker: &Checker,
        half: &Arc<Half>,
        (place, view): (Place, &HalfMessageView),
        answer: TransactionState,
    ) {
        let mut state = half.state.lock();
        // The application was faster.
        if !matches!(state.fate, Fate::Open) {
            return;
        }
        // What is said of one copy holds for the one that has taken its place meanwhile.
        if state.place != place && answer == TransactionState::Unknown {
            return self.check_later(store, checker, half, &mut state);
        }
        let done = match answer {
            TransactionState::Commit => self.commit_locked(store, half, &mut state).map(drop),
            TransactionState::Rollback => self.roll_back_locked(store, half, &mut state),
            TransactionState::Unknown => {
                self.not_known(store, checker, half, &mut state, view.view())
            }
        };
        let Err(error) = done else { return };
        let is_hopeless = matches!(
            error,
            Error::InvalidMessage(_) | Error::TooLarge { .. } | Error::UnknownTopic { .. }
        );
        self.note_error(error);
        if !matches!(state.fate, Fate::Open) {
            return;
        }
        // What cannot be committed is not asked for for ever.
        let counted =
            is_hopeless && self.not_known(store, checker, half, &mut state, view.view()).is_ok();
        if !counted {
            self.check_later(store, checker, half, &mut state);
        }
    }

    /// The half message, if it is to be checked.
    fn to_check(
        &self,
        store: &Store,
        checker: &Checker,
        half: &Arc<Half>,
    ) -> Option<(Place, HalfMessageView)> {
        let mut state = half.state.lock();
        state.due = None;
        if !matches!(state.fate, Fate::Open) || state.place.queue != Queue::Half {
            return None;
        }
        let view = match find(store, state.place) {
            Ok(Found::View(view)) => view,
            Ok(Found::Lost(error)) => {
                self.lose(half, &mut state, error);
                return None;
            }
            found => {
                if let Err(error) = found {
                    self.note_error(error);
                }
                self.check_later(store, checker, half, &mut state);
                return None;
            }
        };
        match self.committed_before(store, half, &mut state, &view, Pace::Patient) {
            Ok(Some(_)) => None,
            Ok(None) => HalfMessageView::new(view).ok().map(|view| (state.place, view)),
            Err(error) => {
                self.note_error(error);
                self.check_later(store, checker, half, &mut state);
                None
            }
        }
    }

    /// The producer does not know: it is asked again, or not any more.
    fn not_known(
        &self,
        store: &Store,
        checker: &Checker,
        half: &Arc<Half>,
        state: &mut HalfState,
        view: &MessageView,
    ) -> Result<()> {
        let checks = state.checks.saturating_add(1);
        let queue = if checks < checker.options.check_max { Queue::Half } else { Queue::Parked };
        self.move_to(store, half, state, view, (queue, checks), Pace::Patient)?;
        match queue {
            Queue::Half => self.check_later(store, checker, half, state),
            Queue::Parked => add(&self.counts.parked),
        }
        Ok(())
    }

    fn check_later(
        &self,
        store: &Store,
        checker: &Checker,
        half: &Arc<Half>,
        state: &mut HalfState,
    ) {
        let now = store.clock().now();
        let due = now.checked_add(checker.options.check_interval).unwrap_or(now + NEVER);
        self.schedule(half, state, due);
    }

    /// Gives up a half message that cannot be read.
    pub(super) fn lose(&self, half: &Half, state: &mut HalfState, error: Error) {
        self.unschedule(half, state);
        let Place { queue, offset } = state.place;
        let mut book = self.book.lock();
        let ledger = &mut book.ledgers[queue as usize];
        if ledger.close(offset).is_some() {
            add(&self.counts.unreadable);
        }
        if is_about_the_queue(&error) {
            ledger.hold(offset);
        }
        book.last_error = Some(error);
    }

    pub(super) fn schedule(&self, half: &Half, state: &mut HalfState, due: Instant) {
        self.unschedule(half, state);
        let mut book = self.book.lock();
        let Some(group) = book.groups.get_mut(&half.group) else { return };
        if group.checker.is_none() {
            return;
        }
        let entry = (due, state.place.offset);
        group.due.insert(entry);
        state.due = Some(due);
        let is_first = group.due.first() == Some(&entry);
        drop(book);
        if is_first {
            self.wake();
        }
    }

    /// When it was to be checked, if nobody is about to.
    pub(super) fn unschedule(&self, half: &Half, state: &mut HalfState) -> Option<Instant> {
        let due = state.due.take()?;
        let mut book = self.book.lock();
        let group = book.groups.get_mut(&half.group)?;
        group.due.remove(&(due, state.place.offset)).then_some(due)
    }

    pub(super) fn have_checked(&self, store: &Store, now: Instant) -> Next {
        let mut due: Vec<(Arc<Checker>, Arc<Half>)> = Vec::new();
        {
            let mut book = self.book.lock();
            let Book { ledgers: [halves, _], groups, .. } = &mut *book;
            for group in groups.values_mut() {
                let Some(checker) = &group.checker else { continue };
                while group.due.first().is_some_and(|(at, _)| *at <= now) {
                    let Some((_, offset)) = group.due.pop_first() else { break };
                    if let Some(half) = halves.get(offset) {
                        due.push((checker.clone(), half.clone()));
                    }
                }
            }
        }
        for (checker, half) in due {
            if store.is_threaded() {
                checker.enqueue(half);
            } else {
                self.check(&store.downgrade(), &checker, &half);
            }
        }
        let book = self.book.lock();
        let first = book.groups.values().filter_map(|group| group.due.first()).min();
        first.map_or(Next::Idle, |(at, _)| Next::At(*at))
    }
}

/// As good as never, and a time that can be told.
pub(super) const NEVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// When a half message is to be checked for the first time.
pub(super) fn first_check(store: &Store, checker: &Checker, state: &HalfState) -> Instant {
    let seconds = |seconds: u32| Duration::from_secs(seconds.into());
    let timeout = state.immunity.map_or(checker.options.timeout, seconds);
    let age = store.clock().unix_millis().saturating_sub(state.since);
    let age = Duration::from_millis(u64::try_from(age).unwrap_or(0));
    let now = store.clock().now();
    now.checked_add(timeout.saturating_sub(age)).unwrap_or(now + NEVER)
}
