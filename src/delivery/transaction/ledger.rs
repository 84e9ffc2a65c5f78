//! Which messages of a queue are open, and up to where nobody needs to read again.

use std::collections::{BTreeMap, VecDeque};

/// A queue of messages that are open until an entry of another queue says otherwise.
///
/// Its fronts are where the next recovery begins to read both queues: from them on, everything is found
/// that is open, and every entry that closed what lies behind.
#[derive(Debug)]
pub(super) struct Ledger<T> {
    /// By queue offset.
    open: BTreeMap<u64, T>,
    /// Behind the last message that is known.
    end: u64,
    /// The first message that cannot be passed though it is not among the open ones.
    hold: Option<u64>,
    /// The entries not yet passed, each with the last message that it closes.
    entries: VecDeque<(u64, u64)>,
    entries_end: u64,
}

/// Queue offsets at which to begin to read messages and entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fronts {
    pub(super) messages: u64,
    pub(super) entries: u64,
}

impl<T> Ledger<T> {
    /// A ledger of queues that are read from `fronts` on.
    pub(super) fn new(fronts: Fronts) -> Self {
        Self {
            open: BTreeMap::new(),
            end: fronts.messages,
            hold: None,
            entries: VecDeque::new(),
            entries_end: fronts.entries,
        }
    }

    /// Notes a message. They come in the order of the queue; what lies between was put by someone else, and
    /// is left to the next recovery.
    pub(super) fn note(&mut self, offset: u64, open: Option<T>) {
        if offset > self.end {
            self.hold(self.end);
        }
        self.end = self.end.max(offset + 1);
        if let Some(open) = open {
            self.open.insert(offset, open);
        }
    }

    /// Keeps the front at `offset` or before, whatever is closed.
    pub(super) fn hold(&mut self, offset: u64) {
        self.hold = Some(self.hold.map_or(offset, |hold| hold.min(offset)));
    }

    pub(super) fn close(&mut self, offset: u64) -> Option<T> {
        self.open.remove(&offset)
    }

    pub(super) fn get(&self, offset: u64) -> Option<&T> {
        self.open.get(&offset)
    }

    pub(super) fn open(&self) -> impl Iterator<Item = (u64, &T)> {
        self.open.iter().map(|(offset, open)| (*offset, open))
    }

    pub(super) fn len(&self) -> usize {
        self.open.len()
    }

    /// Notes an entry that closes messages, the last of them at `last`. They come in the order of their
    /// queue.
    pub(super) fn note_entry(&mut self, offset: u64, last: u64) {
        self.entries_end = self.entries_end.max(offset + 1);
        self.entries.push_back((offset, last));
    }

    /// The oldest open messages, as long as by far most of those behind them are closed: then it costs
    /// little to move all that are open, and much to read from there again.
    pub(super) fn stragglers(&self, span_min: u64) -> impl Iterator<Item = (u64, &T)> {
        let opens = (0..=self.open.len() as u64).rev();
        let is_far = move |offset: u64, open: u64| self.end - offset > span_min + 4 * open;
        let is_held = |offset: u64| self.hold.is_none_or(|hold| offset < hold);
        let oldest = self.open.iter().zip(opens);
        oldest
            .take_while(move |((offset, _), open)| is_far(**offset, *open) && is_held(**offset))
            .map(|((offset, open), _)| (*offset, open))
    }

    pub(super) fn fronts(&mut self) -> Fronts {
        let first = self.open.first_key_value().map_or(self.end, |(first, _)| *first);
        let messages = self.hold.map_or(first, |hold| hold.min(first));
        while self.entries.front().is_some_and(|(_, last)| *last < messages) {
            self.entries.pop_front();
        }
        let entries = self.entries.front().map_or(self.entries_end, |(offset, _)| *offset);
        Fronts { messages, entries }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn fronts(messages: u64, entries: u64) -> Fronts {
        Fronts { messages, entries }
    }

    #[test]
    fn what_someone_else_put_is_not_passed() {
        let mut ledger = Ledger::new(fronts(3, 0));
        ledger.note(3, Some(()));
        ledger.note(6, Some(()));
        ledger.close(3);
        ledger.close(6);
        assert_eq!(ledger.fronts(), fronts(4, 0));
    }

    #[test]
    fn a_straggler_is_one_that_holds_up_many_that_are_closed() {
        let mut ledger = Ledger::new(fronts(0, 0));
        for offset in 0..115 {
            ledger.note(offset, Some(offset));
        }
        assert_eq!(ledger.stragglers(100).next(), None, "all are open");
        for offset in 3..115 {
            ledger.close(offset);
        }
        let found = |span_min| ledger.stragglers(span_min).map(|(offset, _)| offset);
        assert_eq!(found(100).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(found(103).next(), None);
        assert_eq!(found(102).next(), Some(0));
    }

    /// What happens to a ledger: a message is put, or those chosen by the numbers are closed by one entry.
    fn actions() -> impl Strategy<Value = Vec<Option<Vec<prop::sample::Index>>>> {
        let close = prop::collection::vec(any::<prop::sample::Index>(), 1..4);
        prop::collection::vec(prop::option::of(close), 1..80)
    }

    proptest! {
        #[test]
        fn whoever_reads_from_the_fronts_finds_all_that_is_open(actions in actions()) {
            let mut ledger = Ledger::new(fronts(0, 0));
            let (mut put, mut entries) = (0, Vec::new());
            let mut open = BTreeSet::new();
            for action in actions {
                match action {
                    None => {
                        ledger.note(put, Some(()));
                        open.insert(put);
                        put += 1;
                    }
                    Some(chosen) => {
                        let of: Vec<u64> = open.iter().copied().collect();
                        if of.is_empty() {
                            continue;
                        }
                        let closed: BTreeSet<u64> =
                            chosen.iter().map(|index| *index.get(&of)).collect();
                        for offset in &closed {
                            prop_assert!(ledger.close(*offset).is_some());
                            open.remove(offset);
                        }
                        let last = *closed.last().unwrap();
                        ledger.note_entry(entries.len() as u64, last);
                        entries.push(closed);
                    }
                }
                let from = ledger.fronts();
                let closed: BTreeSet<u64> =
                    entries[from.entries as usize..].iter().flatten().copied().collect();
                let found: BTreeSet<u64> =
                    (from.messages..put).filter(|offset| !closed.contains(offset)).collect();
                prop_assert_eq!(&found, &open);
                // As far as they can be.
                prop_assert_eq!(from.messages, open.first().copied().unwrap_or(put));
                let needed = entries.iter().position(|closed| *closed.last().unwrap() >= from.messages);
                prop_assert_eq!(from.entries as usize, needed.unwrap_or(entries.len()));
            }
        }
    }
}
