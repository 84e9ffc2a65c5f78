//! A peer that a replica has connected to.

use crate::primary::{frames, number_at};
use crate::stage::{
    self, A_WHILE, EPOCH, LOG, OUR_NONCE, SEGMENT_SIZE, Stage, number, records, step,
};
use crate::wire_peer::*;
use duralog::replication::Protocol;
use duralog::replication::fuzzing::End;
use libfuzzer_sys::arbitrary::{Result, Unstructured};

/// How far a peer has come.
#[derive(Default)]
struct Said {
    challenge: bool,
    proof: bool,
    welcome: bool,
    /// Behind the last byte of the log that was sent in its place.
    sent: u64,
    /// The log need not be the primary's any more.
    altered: bool,
}

pub fn attack(script: &mut Unstructured<'_>) {
    let stage = Stage::new();
    let mut end = stage.follow(Protocol::Duralog);
    let mut said = Said::default();
    let mut told = frames(&end.say().expect("it says Hello"));
    for _ in 0..24 {
        if script.is_empty() {
            break;
        }
        let Ok(next) = next(script, &mut said) else { break };
        let (before, proved) = (marks(&end), said.proof);
        let heard = match next {
            Some(bytes) => end.hear(&bytes),
            None => {
                end.wait(A_WHILE);
                Ok(false)
            }
        };
        match heard {
            Ok(false) => {}
            Ok(true) => {
                assert!(proved, "a stranger gives no orders");
                let _ = end.store().close();
                end = stage.follow(Protocol::Duralog);
                told.clear();
                said = Said { altered: true, ..Said::default() };
                continue;
            }
            Err(error) => {
                let words = end.last_words(&error);
                assert!(said.proof || words.is_none(), "a stranger is told {error}");
                break;
            }
        }
        let Ok(words) = end.say() else { break };
        told.extend(frames(&words));
        let kinds: Vec<u8> = told.iter().map(|(kind, _)| *kind).collect();
        assert!(said.proof || [&[HELLO][..], &[HELLO, PROOF]].contains(&&kinds[..]), "{kinds:?}");
        step(&end);
        let now = marks(&end);
        assert!(now.0 >= before.0 && now.1 >= before.1 && now.1 <= now.0, "{before:?}, {now:?}");
        assert!(proved || now == before, "a stranger changes nothing");
    }
    for (kind, payload) in told.iter().filter(|(kind, _)| *kind == ACK) {
        let (written, durable) = (number_at(payload, 8), number_at(payload, 16));
        assert!(durable <= written, "{kind}");
    }
    step(&end);
    let held = marks(&end);
    if !said.altered {
        assert_eq!(stage.log(held.0), LOG.bytes[..held.0 as usize]);
    }
    let _ = end.store().close();
    let end = stage.follow(Protocol::Duralog);
    assert_eq!(marks(&end).0, held.0, "it opens with all that it held");
    let verified = end.store().verify().expect("it can be read");
    assert!(said.altered || verified.is_ok(), "{verified:?}");
    let _ = end.store().close();
}

/// Where the log ends, and up to where it is confirmed.
fn marks(end: &End) -> (u64, u64) {
    let marks = end.store().stats().watermarks;
    (marks.appended, end.log().confirmed())
}

/// What is said next; none where time passes.
fn next(script: &mut Unstructured<'_>, said: &mut Said) -> Result<Option<Vec<u8>>> {
    let ends = [0, said.sent, SEGMENT_SIZE, LOG.bytes.len() as u64, i64::MAX as u64, u64::MAX];
    let bytes = match script.int_in_range(0..=10)? {
        0..=3 => honest(script, said)?,
        4 => stage::bytes(script).to_vec(),
        5 => frame(script.int_in_range(0..=RECORDS)?, stage::bytes(script)),
        6 => welcome(
            number(script, &[0, LOG.id]),
            epoch(script, &ends),
            script.int_in_range(0..=4)?,
            {
                let at = number(script, &ends);
                if script.arbitrary()? { at / SEGMENT_SIZE * SEGMENT_SIZE } else { at }
            },
        ),
        7 => {
            let (from, (bytes, altered)) = (number(script, &ends), records(script, said.sent));
            said.altered |= altered || from != said.sent;
            let kind = *script.choose(&[DATA, RECORDS])?;
            data_of(kind, epoch(script, &ends), from, number(script, &ends), &bytes)
        }
        8 => match script.int_in_range(0..=2)? {
            0 => refuse(script.int_in_range(0..=9)?, number(script, &ends), 1),
            1 => frame(LEND, &u64s(&[number(script, &ends)])),
            _ => queues(script.int_in_range(0..=1)?, "t", &[(0, number(script, &ends))]),
        },
        9 => return Ok(None),
        _ => {
            let mut bytes = honest(script, said)?;
            let at = script.choose_index(bytes.len())?;
            bytes[at] ^= 1 << script.int_in_range(0..=7)?;
            bytes
        }
    };
    Ok(Some(bytes))
}

pub fn epoch(script: &mut Unstructured<'_>, ends: &[u64]) -> EpochStart {
    let mut epoch = LOG.epoch;
    if script.ratio(1, 2).unwrap_or(false) {
        epoch.epoch = number(script, &[0, EPOCH, 2 * EPOCH]);
        epoch.start = number(script, ends);
        epoch.node = number(script, &[1]);
        epoch.flags = script.int_in_range(0..=2).unwrap_or(1);
    }
    epoch
}

/// What an honest primary would say.
fn honest(script: &mut Unstructured<'_>, said: &mut Said) -> Result<Vec<u8>> {
    if !std::mem::replace(&mut said.challenge, true) {
        return Ok(frame(CHALLENGE, &NONCE));
    }
    if !std::mem::replace(&mut said.proof, true) {
        return Ok(frame(PROVEN, &proof(SECRET, Side::Primary, &OUR_NONCE, &NONCE)));
    }
    let primary = EpochStart { epoch: EPOCH * 2, start: LOG.bytes.len() as u64, ..LOG.epoch };
    if !std::mem::replace(&mut said.welcome, true) {
        return Ok(welcome(LOG.id, primary, 0, said.sent));
    }
    let (bytes, altered) = records(script, said.sent);
    let from = said.sent;
    said.sent += bytes.len() as u64;
    // Where its segment has not ended, there are records alone, and what was altered on the way shows.
    let unended = (LOG.bytes.len() as u64 - 1) / SEGMENT_SIZE * SEGMENT_SIZE;
    let verify_themselves = from >= unended && script.arbitrary()?;
    said.altered |= altered && !verify_themselves;
    let kind = if verify_themselves { RECORDS } else { DATA };
    Ok(data_of(kind, LOG.epoch, from, number(script, &[0, from, said.sent]), &bytes))
}
