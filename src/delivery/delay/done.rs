//! Which messages of the timer topic are done with.
//!
//! Before the floor all are; behind it, a bit tells. What the bits say survives as notes: messages
//! whose bodies list queue offsets, `3-5,9,`.

use std::collections::VecDeque;
use std::fmt::Write;
use std::ops::RangeInclusive;

/// Longest body of a note, in bytes; RocketMQ's `transactionOpMsgMaxSize`.
const NOTE_LEN_MAX: usize = 4_096;
const BITS: u64 = u64::BITS as u64;

/// A set of queue offsets that holds all below its floor.
#[derive(Debug, Default)]
pub(super) struct Done {
    /// A multiple of 64: where the first word stands.
    base: u64,
    words: VecDeque<u64>,
}

impl Done {
    /// All offsets before `floor`.
    pub(super) fn before(floor: u64) -> Self {
        let mut done = Self::default();
        done.raise(floor);
        done
    }

    /// The lowest offset that is not in the set.
    pub(super) fn floor(&self) -> u64 {
        self.base + self.words.front().map_or(0, |word| u64::from(word.trailing_ones()))
    }

    pub(super) fn contains(&self, offset: u64) -> bool {
        let Some(place) = offset.checked_sub(self.base) else { return true };
        self.word(place / BITS) >> (place % BITS) & 1 == 1
    }

    /// The lowest offset from `from` on that is not in the set.
    pub(super) fn next_open(&self, from: u64) -> u64 {
        let from = from.max(self.base);
        let (mut index, place) = ((from - self.base) / BITS, (from - self.base) % BITS);
        let mut word = self.word(index) | ((1 << place) - 1);
        while word == u64::MAX {
            index += 1;
            word = self.word(index);
        }
        self.base + index * BITS + u64::from(word.trailing_ones())
    }

    pub(super) fn insert(&mut self, offset: u64) {
        let Some(place) = offset.checked_sub(self.base) else { return };
        let index = (place / BITS) as usize;
        if index >= self.words.len() {
            self.words.resize(index + 1, 0);
        }
        if let Some(word) = self.words.get_mut(index) {
            *word |= 1 << (place % BITS);
        }
        self.drop_full();
    }

    /// Puts in what a note says of offsets before `end`; the highest of them, or 0.
    pub(super) fn take_note(&mut self, body: &[u8], end: u64) -> u64 {
        let (mut highest, mut at) = (0, self.base);
        for range in noted(body) {
            let (first, last) = range.into_inner();
            let behind = last.saturating_add(1).min(end);
            if first >= behind {
                continue;
            }
            highest = highest.max(behind - 1);
            // They rise in a note: none is looked at twice.
            at = self.next_open(first.max(at));
            while at < behind {
                self.insert(at);
                at = self.next_open(at + 1);
            }
        }
        highest
    }

    fn drop_full(&mut self) {
        while self.words.front() == Some(&u64::MAX) {
            self.words.pop_front();
            self.base += BITS;
        }
    }

    /// Puts all offsets before `floor` into the set.
    pub(super) fn raise(&mut self, floor: u64) {
        while self.base + BITS <= floor {
            self.words.pop_front();
            if self.words.is_empty() {
                self.base = floor - floor % BITS;
            } else {
                self.base += BITS;
            }
        }
        (self.base..floor).for_each(|offset| self.insert(offset));
        self.drop_full();
    }

    fn word(&self, index: u64) -> u64 {
        usize::try_from(index).ok().and_then(|index| self.words.get(index)).copied().unwrap_or(0)
    }
}

/// A note, and the highest offset in it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Note {
    pub(super) body: String,
    pub(super) highest: u64,
    /// How many of the offsets it holds.
    pub(super) len: usize,
}

/// The note of the first of some offsets, which are sorted: of as many as fit.
pub(super) fn note(offsets: &[u64]) -> Option<Note> {
    let (mut body, mut len, mut highest) = (String::new(), 0, 0);
    while let Some(&first) = offsets.get(len) {
        if body.len() + 2 * 20 + 2 > NOTE_LEN_MAX {
            break;
        }
        let mut last = first;
        while offsets.get(len).is_some_and(|next| *next == last || *next == last + 1) {
            last = offsets.get(len).copied().unwrap_or(last);
            len += 1;
        }
        // A string takes whatever is written to it.
        let _ =
            if first == last { write!(body, "{first},") } else { write!(body, "{first}-{last},") };
        highest = last;
    }
    (len > 0).then_some(Note { body, highest, len })
}

/// The offsets in the body of a note. What is none is passed over: a message comes twice then.
fn noted(body: &[u8]) -> impl Iterator<Item = RangeInclusive<u64>> {
    // A longer one is none of ours.
    let body = if body.len() > NOTE_LEN_MAX { &[] } else { body };
    str::from_utf8(body).unwrap_or_default().split(',').filter_map(|part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse().ok()?..=last.parse().ok()?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn notes_hold_runs_and_what_does_not_parse_is_passed_over() {
        let of = note(&[3, 4, 4, 5, 9, 11, 12]).unwrap();
        assert_eq!(of, Note { body: "3-5,9,11-12,".to_owned(), highest: 12, len: 7 });
        assert_eq!(note(&[]), None);
        let ranges: Vec<_> = noted(b"3-5,x,-,7-,9,").collect();
        assert_eq!(ranges, [3..=5, 9..=9]);
        assert_eq!(noted(b"\xFF3,").count(), 0);
    }

    #[test]
    fn forged_notes_cost_little_and_say_nothing_of_what_is_yet_to_come() {
        let end = 1 << 24;
        let mut done = Done::before(5);
        assert_eq!(done.take_note(b"18446744073709551615,7-18446744073709551615,", 9), 8);
        assert!(!done.contains(5) && done.contains(8) && !done.contains(9));
        // The same again and again.
        let body = format!("6-{},", u64::MAX).repeat(170);
        assert!(body.len() <= NOTE_LEN_MAX);
        assert_eq!(done.take_note(body.as_bytes(), end), end - 1);
        assert_eq!((done.floor(), done.words.len()), (5, end as usize / 64));
        assert_eq!(done.take_note(format!("5,{body}").repeat(2).as_bytes(), end), 0, "too long");
    }

    #[test]
    fn a_note_is_not_longer_than_it_may_be_and_the_rest_goes_into_the_next() {
        let offsets: Vec<u64> = (0..10_000).map(|n| n * 2 + (1 << 50)).collect();
        let mut left = &offsets[..];
        let mut found = Vec::new();
        while let Some(note) = note(left) {
            assert!(note.body.len() <= NOTE_LEN_MAX);
            found.extend(noted(note.body.as_bytes()).flatten());
            assert_eq!(found.last(), Some(&note.highest));
            left = &left[note.len..];
        }
        assert_eq!(found, offsets);
    }

    proptest! {
        #[test]
        fn the_set_is_like_a_plain_one(
            floor in 0..200u64,
            steps in proptest::collection::vec((0..2u8, 0..400u64), 0..200),
        ) {
            let mut done = Done::before(floor);
            let mut model: BTreeSet<u64> = (0..floor).collect();
            for (what, offset) in steps {
                if what == 0 {
                    done.insert(offset);
                    model.insert(offset);
                } else {
                    done.raise(offset / 4);
                    model.extend(0..offset / 4);
                }
                let floor = (0..).find(|offset| !model.contains(offset));
                prop_assert_eq!(Some(done.floor()), floor);
            }
            for offset in 0..500 {
                prop_assert_eq!(done.contains(offset), model.contains(&offset));
                let open = (offset..).find(|offset| !model.contains(offset));
                prop_assert_eq!(Some(done.next_open(offset)), open);
            }
        }

        #[test]
        fn notes_say_what_they_were_made_of(offsets in proptest::collection::btree_set(0..2_000u64, 0..500)) {
            let offsets: Vec<u64> = offsets.into_iter().collect();
            let mut left = &offsets[..];
            let mut found = Vec::new();
            while let Some(note) = note(left) {
                found.extend(noted(note.body.as_bytes()).flatten());
                left = &left[note.len..];
            }
            prop_assert_eq!(found, offsets);
        }

        #[test]
        fn reading_a_note_is_total(
            body in proptest::collection::vec(any::<u8>(), 0..50), end in 0..1_000u64,
        ) {
            noted(&body).count();
            let mut done = Done::default();
            done.take_note(&body, end);
            prop_assert!(done.floor() <= end);
        }

        #[test]
        fn a_note_closes_what_it_says_before_its_own_place(
            offsets in proptest::collection::btree_set(0..700u64, 0..300), end in 0..700u64, floor in 0..100u64,
        ) {
            let listed: Vec<u64> = offsets.iter().copied().collect();
            let body = note(&listed).map_or_else(String::new, |note| note.body);
            let mut done = Done::before(floor);
            let highest = done.take_note(body.as_bytes(), end);
            for offset in 0..700 {
                let told = offset < end && offsets.contains(&offset);
                prop_assert_eq!(done.contains(offset), told || offset < floor);
            }
            prop_assert_eq!(highest, offsets.range(..end).next_back().copied().unwrap_or(0));
        }
    }
}
