//! Any bytes from the other end of a connection, between nodes of this crate and between RocketMQ's: a
//! session takes them, or ends with a typed error, and never panics.
//!
//! The input is what a peer says and does, see each module: next to nothing gets past a checksum and a
//! proof by chance, so the peer can make both. After each step
//!
//! - a peer that has proved nothing was told nothing but a nonce;
//! - what was sent of the log is what it holds;
//! - nothing is confirmed that is not there, and nothing is taken back;
//! - a replica's log, and that of a primary that asks for what it lost, holds what the other's does, or what
//!   the peer has altered in a frame of its own;
//! - a log that was given an order, or whose session has ended, opens again with all that it held.

#![no_main]

mod inquiry;
mod primary;
mod replica;
mod rocketmq;
mod stage;
#[path = "../../../tests/support/wire_peer.rs"]
mod wire_peer;

use duralog::replication::fuzzing;
use libfuzzer_sys::arbitrary::Unstructured;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    fuzzing::read_frames(input);
    let mut script = Unstructured::new(input);
    match script.int_in_range(0..=4) {
        Ok(0) => primary::attack(&mut script),
        Ok(1) => replica::attack(&mut script),
        Ok(2) => rocketmq::attack_master(&mut script),
        Ok(4) => inquiry::attack(&mut script),
        _ => rocketmq::attack_slave(&mut script),
    }
});
