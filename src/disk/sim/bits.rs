//! A growable set of small numbers.

use std::ops::Range;

/// One bit per sector or page of a file; what was never set is not in it.
#[derive(Debug, Default, Clone)]
pub(super) struct Bits {
    words: Vec<u64>,
}

impl Bits {
    /// Makes room for numbers below `count`.
    pub(super) fn grow(&mut self, count: usize) {
        if self.words.len() * 64 < count {
            self.words.resize(count.div_ceil(64), 0);
        }
    }

    pub(super) fn get(&self, index: usize) -> bool {
        self.words.get(index / 64).is_some_and(|word| word >> (index % 64) & 1 == 1)
    }

    pub(super) fn set(&mut self, index: usize) {
        self.grow(index + 1);
        self.words[index / 64] |= 1 << (index % 64);
    }

    pub(super) fn clear(&mut self, index: usize) {
        if let Some(word) = self.words.get_mut(index / 64) {
            *word &= !(1 << (index % 64));
        }
    }

    pub(super) fn set_range(&mut self, range: Range<usize>) {
        self.grow(range.end);
        self.each_mask(range, |word, mask| *word |= mask);
    }

    pub(super) fn clear_range(&mut self, range: Range<usize>) {
        self.each_mask(range, |word, mask| *word &= !mask);
    }

    fn each_mask(&mut self, range: Range<usize>, mut apply: impl FnMut(&mut u64, u64)) {
        let end = range.end.min(self.words.len() * 64);
        let mut at = range.start;
        while at < end {
            let stop = end.min((at / 64 + 1) * 64);
            apply(&mut self.words[at / 64], (u64::MAX >> (64 - (stop - at))) << (at % 64));
            at = stop;
        }
    }

    /// The first member at or after `from`.
    pub(super) fn next(&self, from: usize) -> Option<usize> {
        let first = self.words.get(from / 64)? & (u64::MAX << (from % 64));
        if first != 0 {
            return Some(from / 64 * 64 + first.trailing_zeros() as usize);
        }
        let after = from / 64 + 1;
        let found = after + self.words.get(after..)?.iter().position(|word| *word != 0)?;
        Some(found * 64 + self.words[found].trailing_zeros() as usize)
    }

    /// The first number at or after `from` that is not a member.
    fn next_absent(&self, from: usize) -> usize {
        let Some(word) = self.words.get(from / 64) else { return from };
        let first = !word & (u64::MAX << (from % 64));
        if first != 0 {
            return from / 64 * 64 + first.trailing_zeros() as usize;
        }
        let after = from / 64 + 1;
        let rest = self.words.get(after..).unwrap_or(&[]);
        let full = rest.iter().take_while(|word| **word == u64::MAX).count();
        let ones = rest.get(full).map_or(0, |word| word.trailing_ones() as usize);
        (after + full) * 64 + ones
    }

    /// The runs of adjacent members, in order.
    pub(super) fn runs(&self) -> impl Iterator<Item = Range<usize>> {
        let mut at = 0;
        std::iter::from_fn(move || {
            let start = self.next(at)?;
            at = self.next_absent(start);
            Some(start..at)
        })
    }

    /// The eight numbers from `eighth * 8` as one byte.
    pub(super) fn byte(&self, eighth: usize) -> u8 {
        self.words.get(eighth / 8).map_or(0, |word| (word >> (eighth % 8 * 8)) as u8)
    }

    /// How many words are in use, 64 numbers each.
    pub(super) fn word_count(&self) -> usize {
        self.words.len()
    }

    pub(super) fn word(&self, index: usize) -> u64 {
        self.words.get(index).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::Bits;

    #[test]
    fn ranges_runs_and_searches_cross_words() {
        let mut bits = Bits::default();
        bits.set_range(3..5);
        bits.set_range(60..200);
        bits.clear_range(64..65);
        bits.set(255);
        assert_eq!(bits.runs().collect::<Vec<_>>(), [3..5, 60..64, 65..200, 255..256]);
        assert_eq!((bits.next(5), bits.next(64), bits.next(256)), (Some(60), Some(65), None));
        assert!(bits.get(199) && !bits.get(200) && !bits.get(9999));
        assert_eq!(bits.byte(0), 0b0001_1000);
        bits.clear(255);
        assert_eq!(bits.next(200), None);
    }
}
