//! Peers of a primary that asks its replicas for what it lost.

use crate::primary::{frames, number_at};
use crate::replica::epoch;
use crate::stage::{
    self, EPOCH, LAGGING, LEFT, LOG, OUR_NONCE, SEGMENT_SIZE, Stage, number, records, step,
};
use crate::wire_peer::*;
use duralog::Error;
use duralog::replication::fuzzing::{Asking, End};
use duralog::replication::{Protocol, SessionError};
use libfuzzer_sys::arbitrary::{Result, Unstructured};
use std::collections::BTreeMap;

/// A connection, and how far it has come.
struct Peer {
    end: End,
    serial: u32,
    /// It has said nothing that an honest one would not.
    honest: bool,
    greeted: bool,
    proved: bool,
    /// What it says that it holds.
    claims: Option<Join>,
    /// Behind the last byte that it has lent, once it was asked to.
    lent: Option<u64>,
    done: bool,
}

impl Peer {
    fn new(asking: &mut Asking, serial: u32) -> Self {
        Self {
            end: asking.accept(),
            serial,
            honest: true,
            greeted: false,
            proved: false,
            claims: None,
            lent: None,
            done: false,
        }
    }

    fn lends(&self) -> bool {
        self.lent.is_some() && !self.done
    }

    /// Where what primaries gave it ends, as it says.
    fn until(&self) -> Option<u64> {
        self.claims.as_ref().map(|join| given(join).1)
    }

    /// Whether it says that it holds the epoch in which the primary lost something.
    fn knows_epoch(&self) -> bool {
        let of = |one: &EpochStart| (one.epoch, one.start, one.node, one.flags & 1);
        let known = |join: &Join| join.epochs.iter().any(|one| of(one) == of(&LOG.epoch));
        self.claims.as_ref().is_some_and(known)
    }

    /// Hears all that it is told.
    fn listen(&mut self) {
        for (kind, payload) in frames(&self.end.say().expect("it can go on")) {
            match kind {
                CHALLENGE => assert_eq!(payload, OUR_NONCE),
                LEND => {
                    assert!(self.knows_epoch() && self.lent.is_none());
                    self.lent = Some(number_at(&payload, 0));
                    assert_eq!(self.lent, Some(self.end.log().end()));
                }
                _ => assert!(self.proved && kind == PROVEN, "it is told {kind}"),
            }
        }
    }
}

/// Two connections at a time.
struct Peers {
    asking: Asking,
    two: [Peer; 2],
    serial: u32,
    needed: usize,
    /// Who was heard last of each node, and how far primaries brought it, as it claims.
    heard: BTreeMap<u64, (u32, (u64, u64))>,
    over: bool,
    /// What was lent need not be what was lost.
    altered: bool,
}

/// The newest epoch that a primary gave, and where what it gave ends. Node 0 stands for puts without
/// replication, which are on one node alone; what has no epoch, for what is older than all of that.
fn given(join: &Join) -> (u64, u64) {
    if ![0, LEFT.id].contains(&join.log) {
        // Of another log it has nothing left, or it is not heard.
        return (0, 0);
    }
    let (mut newest, mut end) = (0, join.end);
    for one in join.epochs.iter().filter(|one| one.epoch > 0) {
        (newest, end) = match one.node {
            0 => (newest, end.min(one.start)),
            _ => (one.epoch, join.end),
        };
    }
    (newest, end)
}

pub fn attack(script: &mut Unstructured<'_>) {
    let stage = Stage::with(&LEFT);
    let needed = script.int_in_range(1..=2).unwrap_or(1);
    let mut asking = stage.ask(needed);
    let two = [1, 2].map(|serial| Peer::new(&mut asking, serial));
    let (serial, heard, over, altered) = (2, BTreeMap::new(), false, false);
    let mut peers = Peers { asking, two, serial, needed, heard, over, altered };
    for _ in 0..32 {
        if script.is_empty() || peers.act(script).is_err() {
            break;
        }
    }
    let Peers { two: [Peer { end, .. }, _], altered, .. } = peers;
    step(&end);
    let held = end.log().end();
    if !altered {
        assert_eq!(stage.log(held), LOG.bytes[..held as usize]);
    }
    let _ = end.store().close();
    let end = stage.follow(Protocol::Duralog);
    assert_eq!(end.log().end(), held, "it opens with all that it held");
    let verified = end.store().verify().expect("it can be read");
    assert!(altered || verified.is_ok(), "{verified:?}");
    let _ = end.store().close();
}

impl Peers {
    /// One of them does something, and both hear what comes of it.
    fn act(&mut self, script: &mut Unstructured<'_>) -> Result<()> {
        let at = usize::from(script.arbitrary::<bool>()?);
        let Some(said) = self.next(script, at)? else {
            self.replace(at);
            self.settle();
            return Ok(());
        };
        let peer = &mut self.two[at];
        let (before, decided) = (peer.end.log().end(), self.asking.outcome());
        let heard = peer.end.hear(&said).map(|ordered| assert!(!ordered, "it takes no orders"));
        step(&peer.end);
        let end = peer.end.log().end();
        let lends = peer.lends() && !matches!(decided, Some(Ok(())));
        let may_grow = lends && peer.until().is_some_and(|until| end <= until);
        assert!(end == before || (end > before && may_grow), "{before}, {end}");
        if heard.is_ok() && peer.claims.is_none() && peer.end.is_introduced() {
            assert!(peer.proved, "a stranger is believed");
            let join = Join::parse(&frames(&said)[0].1);
            let (newest, _) = given(&join);
            assert!(newest.max(join.promised) <= EPOCH, "it knows of a newer primary");
            self.heard.insert(join.node, (peer.serial, given(&join)));
            peer.claims = Some(join);
        }
        peer.done |= peer.lends() && peer.until() == Some(end);
        if let Err(error) = heard {
            let words = peer.end.last_words(&error);
            assert!(peer.proved || words.is_none(), "a stranger is told {error}");
            // Nobody makes room for the next segment meanwhile.
            let full =
                matches!(error, SessionError::Log(Error::SegmentNotReady { .. } | Error::Full));
            assert!(!peer.honest || self.altered || full, "an honest one is left with {error}");
            let same = self.asking.outcome().is_some() == decided.is_some();
            assert!(peer.proved || same, "a stranger decides");
            self.replace(at);
        }
        self.settle();
        Ok(())
    }

    /// Another connection takes the place of one that has ended.
    fn replace(&mut self, at: usize) {
        self.serial += 1;
        let next = Peer::new(&mut self.asking, self.serial);
        let gone = std::mem::replace(&mut self.two[at], next);
        if !gone.done {
            self.heard.retain(|_, (serial, _)| *serial != gone.serial);
        }
        gone.end.hang_up();
    }

    /// Looks at what has come of it.
    fn settle(&mut self) {
        self.two.iter_mut().for_each(Peer::listen);
        let lend = self.two.iter().filter(|peer| peer.lends()).count();
        match self.asking.outcome() {
            None => assert!(lend == 1 || (lend == 0 && self.heard.len() < self.needed)),
            Some(Ok(())) if !std::mem::replace(&mut self.over, true) => {
                let own = (EPOCH, self.two[0].end.log().end());
                assert!(lend == 0 && self.heard.len() >= self.needed);
                assert!(self.heard.values().all(|(_, standing)| *standing <= own));
            }
            Some(_) => {}
        }
    }

    /// What the peer says next; none if it hangs up.
    fn next(&mut self, script: &mut Unstructured<'_>, at: usize) -> Result<Option<Vec<u8>>> {
        let lent = self.two[at].lent.unwrap_or(0);
        let (left, whole) = (LEFT.bytes.len() as u64, LOG.bytes.len() as u64);
        let ends = [0, lent, SEGMENT_SIZE, left, whole, u64::MAX];
        let kind = script.int_in_range(0..=10)?;
        self.two[at].honest &= kind <= 3;
        Ok(Some(match kind {
            0..=3 => self.honest(script, at)?,
            4 => stage::bytes(script).to_vec(),
            5 => frame(script.int_in_range(0..=12)?, stage::bytes(script)),
            6 => {
                let mut join = Join::of(script.int_in_range(0..=3)?, SEGMENT_SIZE);
                (join.min, join.end) = (number(script, &[0]), number(script, &ends));
                join.promised = number(script, &[0, EPOCH]);
                for _ in 0..script.int_in_range(0..=3)? {
                    join.epochs.push(epoch(script, &ends));
                }
                join.frame()
            }
            7 => {
                let at_end = script.ratio(3, 4)?;
                let from = if at_end { lent } else { number(script, &ends) };
                let (bytes, altered) = records(script, from);
                self.altered |= altered;
                if self.two[at].lent == Some(from) {
                    self.two[at].lent = Some(from + bytes.len() as u64);
                }
                data(epoch(script, &ends), from, number(script, &ends), &bytes)
            }
            8 => match script.arbitrary()? {
                true => refuse(script.int_in_range(0..=9)?, number(script, &ends), 1),
                false => frame(PROOF, &proof("none", Side::Replica, &NONCE, &OUR_NONCE)),
            },
            9 => return Ok(None),
            _ => {
                let proved = self.two[at].proved;
                let mut said = self.honest(script, at)?;
                // What is damaged proves nothing.
                self.two[at].proved = proved;
                if !said.is_empty() {
                    let at = script.choose_index(said.len())?;
                    said[at] ^= 1 << script.int_in_range(0..=7)?;
                }
                said
            }
        }))
    }

    /// What an honest replica would say, one that lags behind or one that does not.
    fn honest(&mut self, script: &mut Unstructured<'_>, at: usize) -> Result<Vec<u8>> {
        let peer = &mut self.two[at];
        if !std::mem::replace(&mut peer.greeted, true) {
            return Ok(hello(VERSION, NONCE));
        }
        if !std::mem::replace(&mut peer.proved, true) {
            return Ok(frame(PROOF, &proof(SECRET, Side::Replica, &NONCE, &OUR_NONCE)));
        }
        let Some(until) = peer.until() else {
            let mut join = Join::of(script.int_in_range(2..=3)?, SEGMENT_SIZE);
            let log = *script.choose(&[&LOG, &LAGGING, &LEFT])?;
            (join.end, join.epochs) = (log.bytes.len() as u64, vec![log.epoch]);
            return Ok(join.frame());
        };
        // It waits until it is asked for something.
        let Some(lent) = peer.lent.filter(|_| !peer.done) else { return Ok(Vec::new()) };
        let (mut bytes, altered) = records(script, lent);
        bytes.truncate(until.saturating_sub(lent) as usize);
        self.altered |= altered;
        peer.lent = Some(lent + bytes.len() as u64);
        Ok(data(LOG.epoch, lent, 0, &bytes))
    }
}
