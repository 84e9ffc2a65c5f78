//! Which store is tried next, when, and what is answered in the end. Touches nothing and knows no clock.

use crate::error::{Error, InvalidMessage};
use crate::store::{PutResult, PutStatus};
use std::time::Duration;

/// The store of the producer, or the one to fall back on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Main,
    Fallback,
}

/// What comes of an attempt.
#[derive(Debug)]
pub(super) enum Verdict {
    /// It is taken.
    Sent(PutResult),
    /// Tried again after so long, in the [`place`](Attempts::place) that is next.
    Again(Duration),
    /// That is all.
    Failed(Error),
}

/// The attempts at one message.
#[derive(Debug)]
pub(super) struct Attempts {
    /// How many were begun.
    pub(super) made: u32,
    most: u32,
    /// Where the current one is made.
    pub(super) place: Place,
    main: Standing,
    fallback: Standing,
    /// How long to pause before a store is tried once more.
    pause: Duration,
    /// The first failure that may have left a copy: no later one is to hide it.
    left_copy: Option<Error>,
    /// The most hopeful of what the attempts before this one met, and where.
    met: Option<(Place, Error)>,
}

/// What is to be expected of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Untried,
    /// It may take the message if it is asked again.
    Failed,
    /// It will not take it, or may have it already.
    Out,
}

impl Attempts {
    /// At most `most` attempts, the first of which has begun.
    pub(super) fn new(most: u32, has_fallback: bool, pause: Duration) -> Self {
        Self {
            made: 1,
            most: most.max(1),
            place: Place::Main,
            main: Standing::Untried,
            fallback: if has_fallback { Standing::Untried } else { Standing::Out },
            pause,
            left_copy: None,
            met: None,
        }
    }

    /// The part of the time that is left which the current attempt may take: where another store could be
    /// tried next, half of it.
    pub(super) fn share(&self, left: Duration) -> Duration {
        let other = match self.place {
            Place::Main => self.fallback,
            Place::Fallback => self.main,
        };
        if self.made < self.most && other != Standing::Out { left / 2 } else { left }
    }

    /// Whether a later attempt may need the message.
    pub(super) fn has_more(&self) -> bool {
        self.made < self.most && self.fallback != Standing::Out
    }

    /// Judges how the current attempt ended, with so much time left for others.
    pub(super) fn judge(
        &mut self,
        outcome: Result<PutResult, Error>,
        accepts: impl FnOnce(PutStatus) -> bool,
        left: Duration,
    ) -> Verdict {
        let error = match outcome {
            Ok(result) if accepts(result.status) => return Verdict::Sent(result),
            Ok(result) => Error::NotOk(result),
            Err(error) => error,
        };
        *self.standing(self.place) =
            if error.is_retryable() { Standing::Failed } else { Standing::Out };
        let next = if no_store_takes(&error) { None } else { self.next() };
        let pause = next.map(|next| match *self.standing(next) {
            Standing::Untried => Duration::ZERO,
            _ => self.pause,
        });
        match (next, pause) {
            (Some(next), Some(pause)) if self.made < self.most && pause < left => {
                if error.is_unknown() {
                    self.left_copy.get_or_insert(error.clone());
                }
                let best = self.best(error);
                self.met = Some(best);
                if !pause.is_zero() {
                    self.pause *= 2;
                }
                self.made += 1;
                self.place = next;
                Verdict::Again(pause)
            }
            _ => Verdict::Failed(self.left_copy.take().unwrap_or_else(|| self.best(error).1)),
        }
    }

    /// The answer where there is no time for the attempt that was to come, or has just `begun`.
    pub(super) fn give_up(&mut self, begun: bool) -> Option<Error> {
        let met = self.met.take().map(|(_, error)| error);
        let error = self.left_copy.take().or(met)?;
        self.made -= u32::from(!begun);
        Some(error)
    }

    /// What is to be told in the end, if no later attempt goes better: what one store holds against the
    /// message does not hide that another one may take it.
    fn best(&mut self, error: Error) -> (Place, Error) {
        let place = self.place;
        match self.met.take() {
            Some((other, met)) if other != place && hope(&met) > hope(&error) => (other, met),
            _ => (place, error),
        }
    }

    /// The store to be tried next: the other one, if there is any use in that.
    fn next(&mut self) -> Option<Place> {
        let other = match self.place {
            Place::Main => Place::Fallback,
            Place::Fallback => Place::Main,
        };
        [other, self.place].into_iter().find(|place| *self.standing(*place) != Standing::Out)
    }

    fn standing(&mut self, place: Place) -> &mut Standing {
        match place {
            Place::Main => &mut self.main,
            Place::Fallback => &mut self.fallback,
        }
    }
}

/// How much an error leaves to be hoped for.
fn hope(error: &Error) -> u8 {
    if error.is_unknown() {
        3
    } else if error.is_retryable() {
        2
    } else if is_of_message(error) {
        0
    } else {
        1
    }
}

/// Whether no store at all would take the message.
fn no_store_takes(error: &Error) -> bool {
    match error {
        // How many queues there are, and how full they are, is another matter elsewhere.
        Error::InvalidMessage(
            InvalidMessage::QueueId { .. } | InvalidMessage::QueueFull { .. },
        ) => false,
        Error::InvalidMessage(_) => true,
        _ => false,
    }
}

/// Whether the message itself is at fault: the store will not take it as it is.
pub(in crate::delivery) fn is_of_message(error: &Error) -> bool {
    matches!(
        error,
        Error::InvalidMessage(_)
            | Error::TooLarge { .. }
            | Error::UnknownTopic { .. }
            | Error::TopicNotWritable { .. }
            | Error::Codec { .. }
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::Reached;
    use crate::message::{Host, OffsetMessageId};
    use proptest::prelude::*;
    use std::sync::Arc;

    const LONG: Duration = Duration::from_secs(3600);
    const PAUSE: Duration = Duration::from_millis(100);

    fn answer(status: PutStatus) -> PutResult {
        let message_id = OffsetMessageId { host: Host::new([127, 0, 0, 1], 1), physical_offset: 0 };
        PutResult {
            status,
            reached: Reached::Appended,
            queue_id: 0,
            queue_offset: 0,
            physical_offset: 0,
            end_offset: 100,
            store_timestamp: 0,
            message_id,
        }
    }

    fn late() -> Result<PutResult, Error> {
        Ok(answer(PutStatus::FlushDiskTimeout))
    }

    fn unknown() -> Result<PutResult, Error> {
        Err(Error::Unknown { physical_offset: 7, first: Arc::new(Error::Closed) })
    }

    fn judge(attempts: &mut Attempts, outcome: Result<PutResult, Error>) -> Verdict {
        attempts.judge(outcome, |status| status == PutStatus::PutOk, LONG)
    }

    fn assert_again(attempts: &mut Attempts, outcome: Result<PutResult, Error>, pause: Duration) {
        match judge(attempts, outcome) {
            Verdict::Again(found) => assert_eq!(found, pause),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_store_that_may_take_it_later_is_asked_again_after_pauses_that_double() {
        let mut attempts = Attempts::new(4, false, PAUSE);
        for factor in [1, 2, 4] {
            assert_again(&mut attempts, Err(Error::Full), PAUSE * factor);
            assert_eq!(attempts.place, Place::Main);
        }
        assert!(matches!(judge(&mut attempts, Err(Error::Full)), Verdict::Failed(Error::Full)));
        assert_eq!(attempts.made, 4);
    }

    #[test]
    fn without_a_fallback_nothing_is_put_twice_into_the_store() {
        for outcome in [late(), unknown(), Err(Error::Closed)] {
            let mut attempts = Attempts::new(9, false, PAUSE);
            assert!(matches!(judge(&mut attempts, outcome), Verdict::Failed(_)));
            assert_eq!(attempts.made, 1);
        }
    }

    #[test]
    fn the_other_store_is_tried_at_once_and_each_again_after_a_pause_if_it_may_take_it_then() {
        let mut attempts = Attempts::new(9, true, PAUSE);
        assert_again(&mut attempts, Err(Error::Full), Duration::ZERO);
        assert_eq!(attempts.place, Place::Fallback);
        assert_again(&mut attempts, Err(Error::Full), PAUSE);
        assert_eq!(attempts.place, Place::Main);
        assert_again(&mut attempts, Err(Error::Closed), 2 * PAUSE);
        assert_eq!(attempts.place, Place::Fallback);
        assert_again(&mut attempts, Err(Error::Full), 4 * PAUSE);
        assert_eq!(attempts.place, Place::Fallback);
        let ok = Ok(answer(PutStatus::PutOk));
        assert!(matches!(judge(&mut attempts, ok), Verdict::Sent(_)));
        assert_eq!(attempts.made, 5);
    }

    #[test]
    fn that_there_may_be_a_copy_is_not_hidden_by_what_comes_later() {
        for (first, is_late) in [(late(), true), (unknown(), false)] {
            let mut attempts = Attempts::new(3, true, PAUSE);
            assert_again(&mut attempts, first, Duration::ZERO);
            let Verdict::Failed(error) = judge(&mut attempts, Err(Error::Closed)) else {
                panic!("nothing is left to try");
            };
            assert_eq!(matches!(error, Error::NotOk(_)), is_late);
            assert!(error.is_unknown());
        }
    }

    #[test]
    fn what_no_store_would_take_is_tried_nowhere_else() {
        let mut attempts = Attempts::new(3, true, PAUSE);
        let error = Error::InvalidMessage(InvalidMessage::EmptyTopic);
        assert!(matches!(judge(&mut attempts, Err(error)), Verdict::Failed(_)));
        assert_eq!(attempts.made, 1);
    }

    fn unknown_topic() -> Result<PutResult, Error> {
        Err(Error::UnknownTopic { topic: "orders".to_owned() })
    }

    #[test]
    fn what_one_store_holds_against_a_message_is_not_held_against_it_while_the_other_may_take_it() {
        for (retries, made) in [(1, 2), (2, 3)] {
            let mut attempts = Attempts::new(1 + retries, true, PAUSE);
            assert_again(&mut attempts, Err(Error::Full), Duration::ZERO);
            if retries > 1 {
                assert_again(&mut attempts, unknown_topic(), PAUSE);
                assert_eq!(attempts.place, Place::Main);
            }
            let last = if retries > 1 { Err(Error::Full) } else { unknown_topic() };
            assert!(matches!(judge(&mut attempts, last), Verdict::Failed(Error::Full)));
            assert_eq!(attempts.made, made);
        }
        // The other way round.
        let mut attempts = Attempts::new(9, true, PAUSE);
        assert_again(&mut attempts, unknown_topic(), Duration::ZERO);
        assert_eq!(attempts.place, Place::Fallback);
        assert_again(&mut attempts, Err(Error::Full), PAUSE);
        assert_eq!(attempts.place, Place::Fallback);
        let refused = judge(&mut attempts, unknown_topic());
        assert!(matches!(refused, Verdict::Failed(Error::UnknownTopic { .. })), "by both");
        // A store that is over may be opened again.
        let mut attempts = Attempts::new(9, true, PAUSE);
        assert_again(&mut attempts, Err(Error::Closed), Duration::ZERO);
        assert!(matches!(judge(&mut attempts, unknown_topic()), Verdict::Failed(Error::Closed)));
    }

    #[test]
    fn no_attempt_begins_when_the_time_is_up_and_the_first_leaves_time_for_the_second() {
        let mut attempts = Attempts::new(3, true, PAUSE);
        assert_eq!(attempts.share(LONG), LONG / 2);
        let verdict = attempts.judge(late(), |_| false, Duration::ZERO);
        assert!(matches!(verdict, Verdict::Failed(Error::NotOk(_))));
        assert_eq!(Attempts::new(3, false, PAUSE).share(LONG), LONG);
        assert_eq!(Attempts::new(1, true, PAUSE).share(LONG), LONG);
        let mut attempts = Attempts::new(3, false, PAUSE);
        let verdict = attempts.judge(Err(Error::Full), |_| false, PAUSE);
        assert!(matches!(verdict, Verdict::Failed(Error::Full)), "no pause that outlasts it");
    }

    proptest! {
        #[test]
        fn whatever_happens_no_store_gets_a_second_copy_and_attempts_are_bounded(
            outcomes in prop::collection::vec(0u8..5, 20),
            most in 1u32..8,
            has_fallback: bool,
        ) {
            let mut attempts = Attempts::new(most, has_fallback, Duration::from_nanos(1));
            let (mut copies, mut tried) = (Vec::new(), 0);
            for outcome in outcomes {
                let place = attempts.place;
                tried += 1;
                prop_assert!(!copies.contains(&place), "a second copy in {place:?}");
                prop_assert!(has_fallback || place == Place::Main);
                let outcome = match outcome {
                    0 => late(),
                    1 => unknown(),
                    2 => Err(Error::Full),
                    3 => Err(Error::Closed),
                    _ => Ok(answer(PutStatus::PutOk)),
                };
                if matches!(outcome, Ok(PutResult { status: PutStatus::FlushDiskTimeout, .. }))
                    || matches!(outcome, Err(Error::Unknown { .. }))
                {
                    copies.push(place);
                }
                match judge(&mut attempts, outcome) {
                    Verdict::Again(_) => continue,
                    Verdict::Sent(_) => break,
                    Verdict::Failed(error) => {
                        prop_assert_eq!(error.is_unknown(), !copies.is_empty());
                        break;
                    }
                }
            }
            prop_assert!(tried <= most);
            prop_assert_eq!(tried, attempts.made);
        }
    }
}
