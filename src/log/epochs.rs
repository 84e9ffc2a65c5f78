//! Under whom the log was written: `duralog/epochs`.
//!
//! ```text
//! magic "duralogE"  version u32  flags u32  log u64  promised u64  entries u32
//! per entry: epoch u64, start u64, node u64, flags u32
//! crc32 u32 over everything before
//! ```
//!
//! All integers are big endian. There is no such file before the first replicator starts. `log` is the id
//! of the log, or 0. Flag 1 of an entry says that the records of the epoch carry `__CRC32#`; flag 1 of the
//! file, that the newest epoch is this node's own and what was acknowledged under it may be durable on
//! replicas alone; flag 2, that some of that may have been lost here; flag 4, that whoever chooses the next
//! primary has asked for the promise, and nobody has reigned by it yet; flag 8, that this node was the last
//! to reign here, as far as it knows; flag 16, that the log was last open without replication, or copied.
//! Starts rise; only an epoch of node 0, of puts without replication, may begin where another one does, which
//! has no byte then.

use super::directory::read_small;
use crate::disk::Disk;
use crate::error::{Corruption, Error, Result};
use crate::replication::{Epoch, EpochStart, LogId, NodeId, Refusal};
use parking_lot::{Mutex, MutexGuard, RwLock};
use std::ops::{Deref, Range};
use std::path::Path;
use std::sync::Arc;

/// Its name in `duralog/`.
pub(crate) const NAME: &str = "epochs";
const MAGIC: &[u8; 8] = b"duralogE";
const VERSION: u32 = 1;
const RECORD_CRC: u32 = 1;
const LAZY: u32 = 1;
const IN_DOUBT: u32 = 2;
const FENCED: u32 = 4;
const OWN: u32 = 8;
const ALONE: u32 = 16;
const ENTRY: usize = 28;
/// Of so many parts of the numbers that a term has left, an epoch that is nobody's passes over one at most.
const SHARES: u64 = 1 << 12;
/// More are not kept: the oldest are forgotten.
pub(crate) const ENTRIES_MAX: usize = 1024;
const LEN_MAX: usize = 8 + 4 + 4 + 8 + 8 + 4 + ENTRIES_MAX * ENTRY + 4;

/// The epochs of a log, oldest first, and the one that was promised to come.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Epochs {
    /// Which log it is, once it was replicated.
    pub(crate) id: Option<LogId>,
    /// Nobody may write under a lower one any more.
    pub(crate) promised: Epoch,
    /// Whoever chooses the next primary has asked for that, and nobody has reigned in that epoch or a later
    /// one since, as far as is known here.
    pub(super) fenced: bool,
    /// The newest epoch is this node's own, and what was acknowledged under it need not have been durable
    /// here.
    pub(crate) lazy: bool,
    /// Some of that may be lost here: the log was not closed in order since.
    pub(crate) in_doubt: bool,
    /// This node has begun an epoch, and has followed nobody since.
    pub(super) own: bool,
    /// The log was last open without replication, or is a copy that nobody has had open yet: all of it was
    /// shown, whatever is confirmed.
    pub(super) alone: bool,
    pub(super) starts: Vec<EpochStart>,
}

/// The epochs of an open log. Whoever asks for them hears of what is durable, and does not wait for a disk.
#[derive(Debug)]
pub(super) struct KnownEpochs {
    known: RwLock<Arc<Epochs>>,
    changing: Mutex<()>,
}

/// The epochs while nobody else can change them.
pub(super) struct Changing<'a> {
    of: &'a KnownEpochs,
    now: Arc<Epochs>,
    _alone: MutexGuard<'a, ()>,
}

impl KnownEpochs {
    pub(super) fn new(epochs: Epochs) -> Self {
        Self { known: RwLock::new(Arc::new(epochs)), changing: Mutex::new(()) }
    }

    pub(super) fn known(&self) -> Arc<Epochs> {
        self.known.read().clone()
    }

    /// Waits for whoever changes them now.
    pub(super) fn change(&self) -> Changing<'_> {
        let alone = self.changing.lock();
        Changing { of: self, now: self.known(), _alone: alone }
    }
}

impl Changing<'_> {
    /// Shows the new ones, which are durable by now.
    pub(super) fn show(&mut self, epochs: Epochs) {
        self.now = Arc::new(epochs);
        *self.of.known.write() = self.now.clone();
    }
}

impl Deref for Changing<'_> {
    type Target = Epochs;

    fn deref(&self) -> &Epochs {
        &self.now
    }
}

impl Epochs {
    /// What lies in `dir`; `None` where there is no such file.
    pub(crate) fn read(disk: &dyn Disk, dir: &Path) -> Result<Option<Self>> {
        let path = dir.join(NAME);
        let Some(bytes) = read_small(disk, &path, LEN_MAX + 1)? else { return Ok(None) };
        Self::decode(&bytes).map(Some).ok_or_else(|| {
            // Whoever forgets a promise may break it: nothing here can be made up.
            let what = Corruption::StateFile { what: "the epochs cannot be read" };
            Error::Corrupt { path, offset: 0, what }
        })
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(LEN_MAX.min(64 + self.starts.len() * ENTRY));
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_be_bytes());
        let flags = [
            (self.lazy, LAZY),
            (self.in_doubt, IN_DOUBT),
            (self.fenced, FENCED),
            (self.own, OWN),
            (self.alone, ALONE),
        ];
        let flags =
            flags.iter().filter(|(is_set, _)| *is_set).fold(0, |flags, (_, flag)| flags | flag);
        bytes.extend_from_slice(&flags.to_be_bytes());
        for number in [LogId::number(self.id), self.promised.0] {
            bytes.extend_from_slice(&number.to_be_bytes());
        }
        bytes.extend_from_slice(&(self.starts.len() as u32).to_be_bytes());
        for one in &self.starts {
            for number in [one.epoch.0, one.start, one.node.0] {
                bytes.extend_from_slice(&number.to_be_bytes());
            }
            let flags = if one.record_crc { RECORD_CRC } else { 0 };
            bytes.extend_from_slice(&flags.to_be_bytes());
        }
        let crc = crc32fast::hash(&bytes);
        bytes.extend_from_slice(&crc.to_be_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let (fields, crc) = bytes.split_last_chunk::<4>()?;
        let rest = fields.strip_prefix(MAGIC)?;
        let (version, rest) = rest.split_first_chunk()?;
        let (flags, rest) = rest.split_first_chunk()?;
        let (id, rest) = rest.split_first_chunk()?;
        let (promised, rest) = rest.split_first_chunk()?;
        let (count, rest) = rest.split_first_chunk()?;
        let sound = crc32fast::hash(fields) == u32::from_be_bytes(*crc)
            && u32::from_be_bytes(*version) == VERSION
            && (u32::from_be_bytes(*count) as usize).checked_mul(ENTRY) == Some(rest.len());
        if !sound {
            return None;
        }
        let starts = rest.chunks_exact(ENTRY).map(|entry| {
            let u64_at = |at: usize| entry.get(at..)?.first_chunk().map(|b| u64::from_be_bytes(*b));
            let flags = entry.last_chunk().map(|b| u32::from_be_bytes(*b))?;
            Some(EpochStart {
                epoch: Epoch(u64_at(0)?),
                start: u64_at(8)?,
                node: NodeId(u64_at(16)?),
                record_crc: flags & RECORD_CRC != 0,
            })
        });
        let starts: Vec<_> = starts.collect::<Option<_>>()?;
        let follows = |a: &EpochStart, b: &EpochStart| {
            a.start < b.start || a.start == b.start && !b.is_reign()
        };
        let ordered = starts.is_sorted_by(|a, b| a.epoch < b.epoch && follows(a, b));
        let id = LogId::new(u64::from_be_bytes(*id));
        let promised = Epoch(u64::from_be_bytes(*promised));
        let flags = u32::from_be_bytes(*flags);
        let flags = [LAZY, IN_DOUBT, FENCED, OWN, ALONE].map(|flag| flags & flag != 0);
        let [lazy, in_doubt, fenced, own, alone] = flags;
        ordered.then_some(Self { id, promised, fenced, lazy, in_doubt, own, alone, starts })
    }

    /// Whether it is known who wrote some of the log, or will: then what is put alone is told apart from that.
    pub(crate) fn is_replicated(&self) -> bool {
        self.id.is_some() || self.promised > Epoch(0) || !self.starts.is_empty()
    }

    pub(crate) fn starts(&self) -> &[EpochStart] {
        &self.starts
    }

    pub(crate) fn last(&self) -> Epoch {
        self.starts.last().map_or(Epoch(0), |last| last.epoch)
    }

    /// The newest one of a primary.
    pub(crate) fn last_reign(&self) -> Epoch {
        self.starts.iter().rev().find(|one| one.is_reign()).map_or(Epoch(0), |last| last.epoch)
    }

    /// Adds `start`. Epochs that would begin at or behind it have no byte in the log any more.
    pub(crate) fn begin(&mut self, start: EpochStart) {
        if !start.is_reign() {
            // What is put without replication counts once there is something: until then, one that begins at
            // the same offset is only out of sight.
            self.end_at(start.start);
        } else {
            self.cut(start.start);
            self.note_reign(start.epoch);
        }
        self.starts.push(start);
        let surplus = self.starts.len().saturating_sub(ENTRIES_MAX);
        self.starts.drain(..surplus);
    }

    /// Nobody may write under an epoch before this one: it was promised, or is the newest of a primary, of which
    /// others are not told, because something was put without replication where it begins.
    pub(crate) fn barred(&self) -> Epoch {
        let reign = self.starts.iter().rposition(EpochStart::is_reign);
        match reign.and_then(|at| self.starts.get(at..)) {
            Some([hidden, next, ..]) if hidden.start == next.start => {
                hidden.epoch.max(self.promised)
            }
            _ => self.promised,
        }
    }

    /// Begins an epoch that is nobody's: what is put from `start` on is not part of what was replicated. Its
    /// number is `drawn`, so that two nodes that went on alone from the same offset do not take what they put
    /// for the same; as long as nobody else can have been told of it, it goes on.
    pub(crate) fn begin_alone(&mut self, start: u64, record_crc: bool, drawn: u64) -> Result<()> {
        if self.alone
            && let Some(last) = self.starts.last()
            && (last.is_reign(), last.record_crc) == (false, record_crc)
        {
            return Ok(());
        }
        // Not behind what is promised: that is another one's, or this node's own by a word that it still needs.
        let was = self.last();
        // However often that happens, it does not come to the next term.
        let room = (was.next_term().0 - was.0) / SHARES;
        let epoch = Epoch(was.0.saturating_add(1 + drawn % room.max(1)));
        if epoch == epoch.next() {
            return Err(Error::Refused(Refusal::EpochFell { was, is: epoch }));
        }
        self.begin(EpochStart { epoch, start, node: NodeId(0), record_crc });
        Ok(())
    }

    /// Whether this node may be made primary in the epoch that is promised.
    pub(crate) fn is_fenced(&self) -> bool {
        self.fenced && self.last() < self.promised
    }

    /// Somebody reigns in `epoch`: a fence for it, or for one before, has done what it was for.
    pub(crate) fn note_reign(&mut self, epoch: Epoch) {
        self.fenced &= epoch < self.promised;
    }

    /// Promises `epoch` though nobody has asked for it.
    fn raise(&mut self, epoch: Epoch) {
        if epoch > self.promised {
            (self.promised, self.fenced) = (epoch, false);
        }
    }

    /// Forgets the newest epochs where they are nobody's, and have no byte in a log that ends at `end`: as if
    /// they had never begun.
    pub(crate) fn take_back_looks(&mut self, end: u64) {
        while self.starts.pop_if(|last| !last.is_reign() && last.start >= end).is_some() {}
    }

    /// The epochs, each with where it ends, without those that something was put behind, without replication,
    /// before they had a byte.
    fn spans(&self) -> impl Iterator<Item = (&EpochStart, u64)> {
        let ends = self.starts.iter().skip(1).map(|next| next.start).chain([u64::MAX]);
        self.starts.iter().zip(ends).filter(|(one, end)| one.start < *end)
    }

    /// The epochs that others are told of: one at most begins at an offset.
    pub(crate) fn in_sight(&self) -> Vec<EpochStart> {
        self.spans().map(|(one, _)| *one).collect()
    }

    /// Forgets epochs that begin at or behind `end`.
    pub(crate) fn cut(&mut self, end: u64) {
        self.starts.retain(|one| one.start < end);
    }

    /// The same, where another primary's records come next: an older one than those that are forgotten must
    /// not bring them.
    pub(crate) fn leave(&mut self, end: u64) {
        self.forget(|one| one.start >= end);
    }

    /// Forgets epochs that begin behind `end`: what came before them is not all there. They have been all the
    /// same, and are nobody's any more.
    pub(crate) fn end_at(&mut self, end: u64) {
        self.forget(|one| one.start > end);
    }

    fn forget(&mut self, is_gone: impl Fn(&EpochStart) -> bool) {
        let reigned = self.last_reign();
        self.starts.retain(|one| !is_gone(one));
        if self.last_reign() < reigned {
            self.raise(reigned);
        }
    }

    /// The newest epoch that this node has begun, if nobody else has reigned since: also one of which the log
    /// has lost everything, while replicas may have it.
    pub(crate) fn begun(&self) -> Epoch {
        match (self.own, self.is_fenced()) {
            (false, _) => Epoch(0),
            (true, true) => self.last(),
            (true, false) => self.last().max(self.promised),
        }
    }

    /// Forgets epochs that end at or before `min`.
    pub(crate) fn expire(&mut self, min: u64) {
        let gone = self.starts.iter().skip(1).take_while(|next| next.start <= min).count();
        self.starts.drain(..gone);
    }

    /// Where this crate wrote records with a checksum of their own, as far as the epochs tell.
    pub(crate) fn checksummed(&self) -> Vec<Range<u64>> {
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for (one, end) in self.spans().filter(|(one, _)| one.record_crc) {
            match ranges.last_mut() {
                Some(last) if last.end == one.start => last.end = end,
                _ => ranges.push(one.start..end),
            }
        }
        ranges
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(epoch: u64, start: u64) -> EpochStart {
        EpochStart { epoch: Epoch(epoch), start, node: NodeId(epoch % 3), record_crc: epoch != 2 }
    }

    fn sample() -> Epochs {
        let starts = vec![start(1, 0), start(2, 100), start(5, 300), start(6, 400)];
        let id = LogId::new(9);
        Epochs {
            id,
            promised: Epoch(7),
            fenced: true,
            lazy: true,
            in_doubt: true,
            own: true,
            alone: true,
            starts,
        }
    }

    #[test]
    fn what_is_encoded_decodes() {
        for epochs in [sample(), Epochs::default()] {
            assert_eq!(Epochs::decode(&epochs.encode()), Some(epochs));
        }
    }

    #[test]
    fn every_flipped_bit_and_every_missing_byte_is_noticed() {
        let bytes = sample().encode();
        for at in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[at] ^= 4;
            assert_eq!(Epochs::decode(&flipped), None, "byte {at}");
            assert_eq!(Epochs::decode(&bytes[..at]), None, "{at} bytes");
        }
    }

    #[test]
    fn an_epoch_takes_the_place_of_those_that_would_begin_behind_it() {
        let mut epochs = sample();
        epochs.begin(start(8, 300));
        assert_eq!(epochs.starts(), [start(1, 0), start(2, 100), start(8, 300)]);
    }

    #[test]
    fn a_fence_lasts_until_somebody_reigns_by_it() {
        let fenced = Epochs { promised: Epoch(10), ..sample() };
        for newer in [10, 11] {
            let mut epochs = fenced.clone();
            epochs.begin(start(7, 500));
            assert!(epochs.is_fenced(), "that is brought by whoever reigns");
            epochs.begin(start(newer, 600));
            assert!(!epochs.is_fenced());
            // Nor does it come back when that is left or lost again.
            let mut lost = epochs.clone();
            epochs.leave(550);
            lost.end_at(550);
            for epochs in [epochs, lost] {
                assert_eq!((epochs.last(), epochs.is_fenced()), (Epoch(7), false));
            }
        }
        let mut epochs = fenced.clone();
        epochs.leave(400);
        assert_eq!((epochs.last(), epochs.promised), (Epoch(5), Epoch(10)));
        assert!(epochs.is_fenced());
        epochs.note_reign(Epoch(9));
        assert!(epochs.is_fenced());
        epochs.note_reign(Epoch(10));
        assert!(!epochs.is_fenced());
    }

    #[test]
    fn what_is_done_without_replication_ends_neither_a_fence_nor_a_reign() {
        let fenced = Epochs { promised: Epoch(1 << 32), alone: false, ..sample() };
        for drawn in [0, 7, u64::MAX] {
            let mut epochs = fenced.clone();
            epochs.begin_alone(500, true, drawn).expect("there is a number");
            assert!(epochs.is_fenced());
            // Had it been but a look.
            let mut looked = epochs.clone();
            looked.take_back_looks(500);
            assert_eq!(looked, fenced);
            // It is known of no more once that is cut.
            epochs.begin_alone(600, true, drawn).expect("there is a number");
            for end in [500, 600] {
                let (mut left, mut lost) = (epochs.clone(), epochs.clone());
                left.leave(end);
                lost.end_at(end - 1);
                assert_eq!(left.promised, fenced.promised);
                assert_eq!(lost.promised, fenced.promised);
            }
            epochs.begin(EpochStart { epoch: Epoch(1 << 32), ..start(1, 700) });
            assert_eq!(epochs.starts().len(), fenced.starts().len() + 3);
        }
    }

    #[test]
    fn an_epoch_that_is_out_of_sight_lets_no_older_one_write() {
        let mut epochs = Epochs { promised: Epoch(0), alone: false, ..sample() };
        epochs.cut(400);
        epochs.begin_alone(300, true, 0).expect("there is a number");
        assert!(epochs.in_sight().iter().all(|one| one.epoch != Epoch(5)));
        assert_eq!((epochs.promised, epochs.barred()), (Epoch(0), Epoch(5)));
    }

    #[test]
    fn what_is_put_without_replication_again_and_again_is_one_epoch_until_others_may_know_it() {
        let mut epochs = Epochs { alone: false, ..sample() };
        epochs.begin_alone(500, true, 7).expect("there is a number");
        let once = Epochs { alone: true, ..epochs };
        let mut again = once.clone();
        again.begin_alone(600, true, 8).expect("it goes on");
        assert_eq!(again, once);
        again.begin_alone(600, false, 8).expect("there is a number");
        let mut known = Epochs { alone: false, ..once.clone() };
        known.begin_alone(600, true, 8).expect("there is a number");
        for other in [again, known] {
            assert_eq!(other.starts().len(), once.starts().len() + 1);
        }
    }

    #[test]
    fn however_often_something_is_put_without_replication_the_term_goes_on() {
        let mut epochs = Epochs::default();
        epochs.begin(start(1, 0));
        for number in 1..10_000 {
            epochs.begin_alone(number, true, u64::MAX).expect("there is a number");
        }
        assert!(epochs.last() < Epoch::term(1), "{:?}", epochs.last());
    }

    #[test]
    fn the_epoch_that_reaches_over_the_first_byte_is_kept() {
        let mut epochs = sample();
        epochs.expire(300);
        assert_eq!(epochs.starts(), [start(5, 300), start(6, 400)]);
        epochs.expire(399);
        assert_eq!(epochs.starts(), [start(5, 300), start(6, 400)]);
    }

    #[test]
    fn neighbouring_epochs_with_checksums_are_one_range() {
        assert_eq!(sample().checksummed(), [0..100, 300..u64::MAX]);
    }

    #[test]
    fn only_the_newest_epochs_are_kept() {
        let mut epochs = Epochs::default();
        for number in 1..=2 * ENTRIES_MAX as u64 {
            epochs.begin(start(number, number));
        }
        assert_eq!(epochs.starts().len(), ENTRIES_MAX);
        assert_eq!(epochs.last(), Epoch(2 * ENTRIES_MAX as u64));
        assert_eq!(Epochs::decode(&epochs.encode()), Some(epochs));
    }
}
