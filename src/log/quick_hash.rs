//! A cheap hash for the small keys that every put and every dispatch looks up.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};

/// Builds [`QuickHasher`]s. The seed is random, so that topic names sent by strangers cannot be
/// chosen to collide; nothing may depend on the order in which such a map is walked.
#[derive(Debug, Clone)]
pub(crate) struct QuickHash {
    seed: u64,
}

impl Default for QuickHash {
    fn default() -> Self {
        Self { seed: RandomState::new().hash_one(0u8) }
    }
}

impl BuildHasher for QuickHash {
    type Hasher = QuickHasher;

    fn build_hasher(&self) -> QuickHasher {
        QuickHasher { state: self.seed }
    }
}

/// Folds each word in by one wide multiplication, whose two halves spread every input bit over the
/// whole state.
#[derive(Debug)]
pub(crate) struct QuickHasher {
    state: u64,
}

impl QuickHasher {
    fn fold(&mut self, word: u64) {
        let product =
            u128::from(self.state ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
        self.state = (product >> 64) as u64 ^ product as u64;
    }
}

impl Hasher for QuickHasher {
    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.fold(u64::from_le_bytes(*word));
        }
        // The length goes in with the rest, so that trailing zero bytes count.
        let rest = rest.iter().fold(rest.len() as u64, |word, byte| word << 8 | u64::from(*byte));
        self.fold(rest);
    }

    fn write_u8(&mut self, value: u8) {
        self.fold(u64::from(value));
    }

    fn write_u32(&mut self, value: u32) {
        self.fold(u64::from(value));
    }

    fn write_i32(&mut self, value: i32) {
        self.fold(value as u64);
    }

    fn write_u64(&mut self, value: u64) {
        self.fold(value);
    }

    fn finish(&self) -> u64 {
        self.state
    }
}
