//! A peer that has connected to a primary.

use crate::stage::{self, A_WHILE, EPOCH, LOG, OUR_NONCE, SEGMENT_SIZE, Stage, number, step};
use crate::wire_peer::*;
use duralog::replication::Protocol;
use libfuzzer_sys::arbitrary::{Result, Unstructured};

/// What a peer has said, and knows.
#[derive(Default)]
struct Knowing {
    greeted: bool,
    proved: bool,
    joined: bool,
    begun: bool,
    /// Behind the last byte that was sent.
    sent: u64,
}

pub fn attack(script: &mut Unstructured<'_>) {
    let stage = Stage::with(&LOG);
    let mut end = stage.serve(Protocol::Duralog, 2 * EPOCH);
    let whole = LOG.bytes.len() as u64;
    let mut confirmed = end.log().confirmed();
    let mut knowing = Knowing::default();
    let mut challenges = 0;
    for _ in 0..24 {
        if script.is_empty() {
            break;
        }
        let Ok((said, answered)) = next(script, &mut knowing) else { break };
        let said = match answered {
            true => end.hear(&said).and_then(|ordered| {
                assert!(!ordered, "a primary takes no orders");
                end.say()
            }),
            false => {
                end.wait(A_WHILE);
                end.say()
            }
        };
        let said = match said {
            Ok(said) => said,
            Err(error) => {
                let words = end.last_words(&error);
                assert!(knowing.proved || words.is_none(), "a stranger is told {error}");
                break;
            }
        };
        for (kind, payload) in frames(&said) {
            match kind {
                CHALLENGE => {
                    challenges += 1;
                    assert!(challenges == 1 && payload == OUR_NONCE);
                }
                DATA => {
                    assert!(knowing.proved);
                    let (offset, bytes) = (number_at(&payload, 28), &payload[44..]);
                    let (from, to) = (offset as usize, offset as usize + bytes.len());
                    assert_eq!(bytes, &LOG.bytes[from..to]);
                    knowing.sent = to as u64;
                }
                _ => assert!(knowing.proved, "a stranger is told {kind}"),
            }
        }
        step(&end);
        let now = end.log().confirmed();
        assert!(now == confirmed || (knowing.proved && now > confirmed && now <= knowing.sent));
        confirmed = now;
    }
    assert_eq!((end.log().end(), end.log().epochs().len()), (whole, 2));
    assert_eq!(stage.log(whole), LOG.bytes);
    end.store().close().expect("it closes");
}

/// What is said next, and whether it is said at all or time passes instead.
fn next(script: &mut Unstructured<'_>, knowing: &mut Knowing) -> Result<(Vec<u8>, bool)> {
    let ends = [0, knowing.sent, SEGMENT_SIZE, LOG.bytes.len() as u64, u64::MAX];
    let said = match script.int_in_range(0..=9)? {
        // What an honest one would say.
        0..=2 => honest(knowing),
        3 => stage::bytes(script).to_vec(),
        4 => frame(script.int_in_range(0..=12)?, stage::bytes(script)),
        5 => {
            let mut join = Join::of(script.int_in_range(0..=3)?, SEGMENT_SIZE);
            (join.log, join.confirmed) = (number(script, &[0, LOG.id]), number(script, &ends));
            (join.min, join.end) = (number(script, &ends), number(script, &ends));
            for _ in 0..script.int_in_range(0..=4)? {
                let mut epoch = EpochStart { flags: 1, ..LOG.epoch };
                epoch.epoch = number(script, &[0, 1, EPOCH, 2 * EPOCH]);
                epoch.start = number(script, &ends);
                epoch.node = number(script, &[1]);
                join.epochs.push(epoch);
            }
            join.frame()
        }
        6 => begin(number(script, &ends), number(script, &[0, 4096]), script.arbitrary()?),
        7 => ack(
            number(script, &[0, EPOCH, 2 * EPOCH]),
            number(script, &ends),
            number(script, &ends),
        ),
        8 => return Ok((Vec::new(), false)),
        _ => {
            let proved = knowing.proved;
            let mut said = honest(knowing);
            let at = script.choose_index(said.len())?;
            said[at] ^= 1 << script.int_in_range(0..=7)?;
            // What is damaged proves nothing.
            knowing.proved = proved;
            said
        }
    };
    Ok((said, true))
}

fn honest(knowing: &mut Knowing) -> Vec<u8> {
    if !std::mem::replace(&mut knowing.greeted, true) {
        return hello(VERSION, NONCE);
    }
    if !std::mem::replace(&mut knowing.proved, true) {
        return frame(PROOF, &proof(SECRET, Side::Replica, &NONCE, &OUR_NONCE));
    }
    if !std::mem::replace(&mut knowing.joined, true) {
        return Join::of(2, SEGMENT_SIZE).frame();
    }
    if !std::mem::replace(&mut knowing.begun, true) {
        return begin(0, 0, 0);
    }
    let epoch = if knowing.sent < LOG.bytes.len() as u64 { EPOCH } else { 2 * EPOCH };
    ack(epoch, knowing.sent, knowing.sent)
}

/// The frames of what a node said: all of them whole.
pub fn frames(mut said: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let mut found = Vec::new();
    while !said.is_empty() {
        let len = u32::from_be_bytes(said[4..8].try_into().expect("4 bytes")) as usize;
        let (whole, rest) = said.split_at(12 + len);
        assert_eq!(whole, frame(whole[0], &whole[12..]));
        let kind = if whole[0] == RECORDS { DATA } else { whole[0] };
        found.push((kind, whole[12..].to_vec()));
        said = rest;
    }
    found
}

pub fn number_at(payload: &[u8], at: usize) -> u64 {
    crate::wire_peer::number(payload, at)
}
