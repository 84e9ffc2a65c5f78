//! What is known to be done with, within bounds. Plain state, told the time.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// Old places in the line that are not worth clearing away.
const SPARE: usize = 16;

/// How much is known of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Known {
    /// The group is done with a message that has it: it was handled, or a copy has taken its place among
    /// the retries or dead letters.
    Settled,
    /// It was handled.
    Succeeded,
}

#[derive(Debug)]
struct Entry {
    known: Known,
    at_ms: i64,
    /// Which of its places in the line counts.
    ticket: u64,
}

/// Keys, the newest ones.
#[derive(Debug)]
pub(super) struct Recent {
    max: usize,
    window_ms: i64,
    keys: HashMap<Arc<str>, Entry>,
    /// In the order in which they were noted; those that were noted again have old places in it.
    line: VecDeque<(u64, Arc<str>)>,
    tickets: u64,
}

impl Recent {
    pub(super) fn new(max: usize, window_ms: i64) -> Self {
        Self { max, window_ms, keys: HashMap::new(), line: VecDeque::new(), tickets: 0 }
    }

    /// Notes what is known of a key at a time. It does not take back what is known.
    pub(super) fn note(&mut self, key: Arc<str>, known: Known, at_ms: i64) {
        self.tickets += 1;
        let ticket = self.tickets;
        let entry = self.keys.entry(key.clone()).or_insert(Entry { known, at_ms, ticket });
        entry.known = entry.known.max(known);
        (entry.at_ms, entry.ticket) = (entry.at_ms.max(at_ms), ticket);
        self.line.push_back((ticket, key));
        self.shrink(at_ms);
        if self.line.len() > 2 * self.keys.len() + SPARE {
            let keys = &self.keys;
            self.line.retain(|(ticket, key)| keys.get(key).is_some_and(|it| it.ticket == *ticket));
        }
    }

    /// What is known of a key.
    pub(super) fn get(&self, key: &str, now_ms: i64) -> Option<Known> {
        let entry = self.keys.get(key)?;
        (!self.is_over(entry.at_ms, now_ms)).then_some(entry.known)
    }

    fn is_over(&self, at_ms: i64, now_ms: i64) -> bool {
        now_ms.saturating_sub(at_ms) > self.window_ms
    }

    fn shrink(&mut self, now_ms: i64) {
        while let Some((ticket, key)) = self.line.front() {
            let current = self.keys.get(key).filter(|entry| entry.ticket == *ticket);
            match current {
                Some(entry)
                    if self.keys.len() <= self.max && !self.is_over(entry.at_ms, now_ms) =>
                {
                    break;
                }
                Some(_) => drop(self.keys.remove(key)),
                None => {}
            }
            self.line.pop_front();
        }
    }

    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const WINDOW: i64 = 20;

    proptest! {
        #[test]
        fn as_many_of_the_newest_keys_are_known_as_the_bounds_allow(
            notes in prop::collection::vec((0..12u8, any::<bool>(), 0..6i64), 0..120),
            max in 1..8usize,
        ) {
            let mut recent = Recent::new(max, WINDOW);
            // Oldest first, each key once.
            let mut model: Vec<(u8, Known, i64)> = Vec::new();
            let mut now = 1_000;
            for (key, handled, later) in notes {
                now += later;
                let known = if handled { Known::Succeeded } else { Known::Settled };
                recent.note(key.to_string().into(), known, now);
                let before = model.iter().position(|(known, ..)| *known == key);
                let before = before.map(|at| model.remove(at).1);
                model.push((key, known.max(before.unwrap_or(known)), now));
                model.retain(|(_, _, at)| now - at <= WINDOW);
                let surplus = model.len().saturating_sub(max);
                model.drain(..surplus);
                for each in 0..12u8 {
                    let expected = model.iter().find(|(known, ..)| *known == each);
                    let found = recent.get(&each.to_string(), now);
                    prop_assert_eq!(found, expected.map(|(_, known, _)| *known));
                }
                prop_assert!(recent.len() <= max);
                prop_assert!(recent.line.len() <= 2 * recent.len() + SPARE);
            }
            prop_assert_eq!(recent.get("0", now + 2 * WINDOW), None, "without anything noted since");
        }
    }
}
