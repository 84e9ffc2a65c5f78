//! A damaged store that RocketMQ wrote: the fixtures of the tests, with any of their files changed,
//! shortened, removed or given to one another. What must hold is said in `../recovery/check.rs`: opening
//! and reading ends, without a panic; what is read was stored; and a message before the first damaged
//! byte is read, or reading it says why not.
//!
//! The input is one byte that chooses the store and the recovery mode, and ten bytes for each edit, see
//! [`damage`].

#![no_main]

#[path = "../recovery/check.rs"]
mod check;
mod damage;
#[path = "../recovery/image.rs"]
mod image;
mod stores;

use check::Sample;
use duralog::RecoveryMode;
use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;

const MODES: [RecoveryMode; 3] =
    [RecoveryMode::TolerateTail, RecoveryMode::Strict, RecoveryMode::Salvage];

static SAMPLES: LazyLock<Vec<Sample>> = LazyLock::new(stores::samples);

fuzz_target!(|input: &[u8]| {
    let Some((&choice, edits)) = input.split_first() else { return };
    let choice = usize::from(choice);
    let sample = &SAMPLES[choice % SAMPLES.len()];
    let damage = damage::inflict(sample, edits);
    check::check(sample, &damage, MODES[choice / SAMPLES.len() % MODES.len()]);
});
