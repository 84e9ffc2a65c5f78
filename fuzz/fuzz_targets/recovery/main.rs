//! A damaged store: whatever is done to its files, opening and reading it ends, without a panic, and
//! gives out no message that was never put and none in other words.
//!
//! The input is one byte that chooses a store and eight bytes for each edit of its files, see
//! [`damage`]. Then, in each recovery mode and read-only:
//!
//! - every message read is one that was put, byte for byte and in its place; where the damage took
//!   away the knowledge that records carry a checksum, its body is;
//! - a message that lies in the log before the first damaged byte is read, or reading it says why not;
//! - a message found by key has that key, and none before the damage is missed as long as the index is
//!   as it was;
//! - a read-only store changes nothing;
//! - a store that opened takes another message, closes, and opens again with all that was read before.

#![no_main]

mod check;
mod damage;
mod image;
mod stores;

use check::Sample;
use duralog::RecoveryMode;
use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;

static SAMPLES: LazyLock<Vec<Sample>> = LazyLock::new(stores::samples);

fuzz_target!(|input: &[u8]| {
    let Some((&choice, edits)) = input.split_first() else { return };
    let sample = &SAMPLES[usize::from(choice) % SAMPLES.len()];
    let damage = damage::inflict(sample, edits);
    for mode in [RecoveryMode::TolerateTail, RecoveryMode::Strict, RecoveryMode::Salvage] {
        check::check(sample, &damage, mode);
    }
});
