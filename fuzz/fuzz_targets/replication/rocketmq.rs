//! The ends of RocketMQ's protocol.

use crate::stage::{self, A_WHILE, EPOCH, LOG, SEGMENT_SIZE, Stage, number, records, step};
use duralog::replication::Protocol;
use libfuzzer_sys::arbitrary::Unstructured;

/// A slave that has connected to a master.
pub fn attack_master(script: &mut Unstructured<'_>) {
    let stage = Stage::with(&LOG);
    let mut end = stage.serve(Protocol::Rocketmq, 2 * EPOCH);
    let (whole, confirmed) = (end.log().end(), end.log().confirmed());
    let log = stage.log(whole);
    let ends = [0, 1, SEGMENT_SIZE, whole, i64::MAX as u64, u64::MAX];
    let mut reported = false;
    for _ in 0..24 {
        if script.is_empty() {
            break;
        }
        let heard = match script.int_in_range(0..=2).unwrap_or(0) {
            0 => {
                reported = true;
                end.hear(&number(script, &ends).to_be_bytes())
            }
            1 => {
                // Bytes in the wrong number, too, make a report some time.
                reported = true;
                end.hear(stage::bytes(script))
            }
            _ => {
                end.wait(A_WHILE);
                Ok(false)
            }
        };
        let Ok(said) = heard.and_then(|_| end.say()) else { break };
        assert!(reported || said.is_empty(), "a stranger is told something");
        let mut said = &said[..];
        while let Some((head, rest)) = said.split_first_chunk::<12>() {
            let offset = u64::from_be_bytes(head[..8].try_into().expect("8 bytes")) as usize;
            let size = u32::from_be_bytes(head[8..].try_into().expect("4 bytes")) as usize;
            let (bytes, rest) = rest.split_at(size);
            assert_eq!(bytes, &log[offset..offset + size]);
            said = rest;
        }
        step(&end);
        assert_eq!(end.log().confirmed(), confirmed, "a slave of RocketMQ's confirms nothing");
    }
    assert_eq!(stage.log(whole), log);
    end.store().close().expect("it closes");
}

/// A master that a slave has connected to.
pub fn attack_slave(script: &mut Unstructured<'_>) {
    let stage = Stage::new();
    let mut end = stage.follow(Protocol::Rocketmq);
    let (mut sent, mut altered) = (0, false);
    for _ in 0..24 {
        if script.is_empty() {
            break;
        }
        let ends = [0, sent, SEGMENT_SIZE, 1 << 40, i64::MAX as u64, i64::MIN as u64, u64::MAX];
        let said = match script.int_in_range(0..=4).unwrap_or(0) {
            0 | 1 => {
                let (bytes, changed) = records(script, sent);
                altered |= changed;
                let head = [&sent.to_be_bytes()[..], &(bytes.len() as u32).to_be_bytes()].concat();
                sent += bytes.len() as u64;
                [head, bytes].concat()
            }
            2 => {
                let at = number(script, &ends);
                let at = if script.ratio(1, 2).unwrap_or(false) {
                    at / SEGMENT_SIZE * SEGMENT_SIZE
                } else {
                    at
                };
                let size: u32 = script.arbitrary().unwrap_or(0);
                altered = true;
                [&at.to_be_bytes()[..], &size.to_be_bytes()].concat()
            }
            3 => {
                altered = true;
                stage::bytes(script).to_vec()
            }
            _ => {
                end.wait(A_WHILE);
                Vec::new()
            }
        };
        let before = end.log().end();
        match end.hear(&said) {
            Ok(false) => {}
            Ok(true) => {
                let _ = end.store().close();
                end = stage.follow(Protocol::Rocketmq);
                altered = true;
                continue;
            }
            Err(error) => {
                assert_eq!(end.last_words(&error), None);
                break;
            }
        }
        let Ok(said) = end.say() else { break };
        assert!(said.len().is_multiple_of(8));
        step(&end);
        assert!(end.log().end() >= before && end.log().confirmed() <= end.log().end());
    }
    step(&end);
    let held = end.store().stats().watermarks.appended;
    if !altered {
        assert_eq!(stage.log(held), LOG.bytes[..held as usize]);
    }
    let _ = end.store().close();
    let end = stage.follow(Protocol::Rocketmq);
    assert_eq!(end.store().stats().watermarks.appended, held, "it opens with all that it held");
    let verified = end.store().verify().expect("it can be read");
    assert!(altered || verified.is_ok(), "{verified:?}");
    let _ = end.store().close();
}
