//! A log that takes another one over, through the seam and without a network.

#[path = "support/sim.rs"]
mod sim;

use duralog::disk::SimDisk;
use duralog::replication::{
    Admission, Epoch, EpochStart, NodeId, Refusal, ReplicaBehaviour, ReplicatedLog, Replicator,
    Role, ScriptedReplica, StartPoint,
};
use duralog::{Environment, Error, Store, StoreWorker};
use sim::*;
use std::sync::{Arc, OnceLock};

const SEGMENT: u64 = 16 << 10;

/// A replica that does nothing by itself.
#[derive(Debug, Default)]
struct Copy(OnceLock<Arc<dyn ReplicatedLog>>);

impl Replicator for Copy {
    fn role(&self) -> Role {
        Role::Replica
    }

    fn start(&self, log: Arc<dyn ReplicatedLog>, _at: StartPoint) -> duralog::Result<u64> {
        let confirmed = log.confirmed();
        self.0.get_or_init(|| log);
        Ok(confirmed)
    }

    fn admit(&self) -> Result<Admission, Refusal> {
        Err(Refusal::NotPrimary)
    }

    fn on_written(&self, _end: u64) {}

    fn on_durable(&self, _end: u64) {}

    fn stop(&self) {}
}

fn open_copy(disk: &SimDisk) -> (Store, Arc<dyn ReplicatedLog>) {
    let copy = Arc::new(Copy::default());
    let environment = Environment::on(disk.shared()).stepped();
    let store = Store::open_replicated(config(), environment, copy.clone());
    let log = copy.0.get().expect("it was started").clone();
    (store.expect("the store opens"), log)
}

fn epoch(epoch: u64, start: u64) -> EpochStart {
    EpochStart { epoch: Epoch(epoch), start, node: NodeId(1), record_crc: true }
}

/// A log with some segments, to be copied.
fn filled_log() -> (SimDisk, Store) {
    let (disk, replica) = (disk(), ScriptedReplica::new(ReplicaBehaviour::Absent));
    let store = Store::open_replicated(config(), Environment::on(disk.shared()), replica);
    let store = store.expect("the store opens");
    let mut id = 0;
    while store.stats().watermarks.appended < 3 * SEGMENT {
        let _ = store.put(message(id)).expect("stored");
        id += 1;
    }
    (disk, store)
}

/// Takes over what `from` holds from `at` to `to`; the new end. In pieces, so that the next segment is
/// made in time.
fn copy_over(from: &SimDisk, copy: &Store, log: &dyn ReplicatedLog, at: u64, to: u64) -> u64 {
    let epoch = log.epochs().last().expect("it was entered").epoch;
    let mut at = at;
    while at < to {
        let base = at / SEGMENT * SEGMENT;
        let bytes = from.bytes(segment(base)).expect("it is there");
        let until = to.min(base + SEGMENT).min(at + SEGMENT * 3 / 4);
        let piece = &bytes[(at - base) as usize..(until - base) as usize];
        copy.step(StoreWorker::Upkeep);
        let end = log.append(at, epoch, piece).expect("it fits");
        assert!(end > at, "nothing is taken at {at}");
        copy.step(StoreWorker::Flush);
        at = end;
    }
    at
}

#[test]
fn what_older_primaries_wrote_is_taken_over_after_a_promise_to_a_newer_one() {
    let (source, primary) = filled_log();
    let (disk, end) = (disk(), primary.stats().watermarks.appended);
    let (copy, log) = open_copy(&disk);
    log.promise(Epoch(9)).expect("nobody was promised more");
    log.enter_epoch(epoch(1, 0)).expect("the primary of epoch 9 hands it on");
    assert_eq!(copy_over(&source, &copy, &*log, 0, end), end);
    log.enter_epoch(epoch(4, end)).expect("that one, too");
    assert_eq!(log.promised(), Epoch(9));
    let older = log.enter_epoch(epoch(3, end));
    assert!(older.is_ok(), "nothing was written under epoch 4: {older:?}");
}

#[test]
fn an_epoch_in_which_nothing_was_written_is_left_for_an_older_one() {
    let (disk, (source, _primary)) = (disk(), filled_log());
    let (copy, log) = open_copy(&disk);
    log.enter_epoch(epoch(5, 0)).expect("an empty log");
    log.enter_epoch(epoch(2, 0)).expect("nothing was written under epoch 5");
    assert_eq!(log.epochs(), [epoch(2, 0)]);
    copy_over(&source, &copy, &*log, 0, SEGMENT);
    let back = log.enter_epoch(epoch(1, SEGMENT));
    assert!(matches!(back, Err(Error::Refused(Refusal::EpochFell { .. }))), "{back:?}");
}

#[test]
fn a_log_that_is_cut_to_nothing_knows_no_epoch() {
    let (disk, (source, _primary)) = (disk(), filled_log());
    let (copy, log) = open_copy(&disk);
    log.enter_epoch(epoch(1, 0)).expect("an empty log");
    copy_over(&source, &copy, &*log, 0, SEGMENT);
    log.truncate(0).expect("nothing is confirmed");
    drop(copy);
    let (_copy, log) = open_copy(&disk);
    assert_eq!((log.end(), log.epochs()), (0, Vec::new()));
}

#[test]
fn a_log_that_begins_anew_shows_what_comes_then() {
    let (source, primary) = filled_log();
    let (disk, end) = (disk(), primary.stats().watermarks.appended);
    // Behind the end of what was there, and before it.
    for (had, anew) in [(0, SEGMENT), (SEGMENT, 2 * SEGMENT), (2 * SEGMENT, SEGMENT)] {
        let (copy, log) = open_copy(&disk);
        if had > 0 {
            log.enter_epoch(epoch(1, 0)).expect("an empty log");
            copy_over(&source, &copy, &*log, log.end(), had);
        }
        log.restart(anew).expect("nothing is confirmed");
        drop(copy);
        let (copy, log) = open_copy(&disk);
        assert_eq!((log.min_offset(), log.end(), log.epochs()), (anew, anew, Vec::new()));
        log.enter_epoch(epoch(1, 0)).expect("an empty log");
        copy_over(&source, &copy, &*log, anew, end);
        log.confirm(end, Epoch(1)).expect("the epoch is right");
        let first = copy.min_offset(TOPIC, 0).expect("there are messages");
        let shown = copy.get(TOPIC, 0, first, usize::MAX).expect("the queue can be read").messages;
        assert_eq!(shown[0].body, body(first));
        assert_eq!(first + shown.len() as u64, primary.stats().messages);
        drop(copy);
        disk.files().into_iter().for_each(|path| disk.drop_file(path).expect("it is there"));
    }
}

#[test]
fn what_is_confirmed_is_neither_cut_nor_begun_anew() {
    let (disk, (source, _primary)) = (disk(), filled_log());
    let (copy, log) = open_copy(&disk);
    log.enter_epoch(epoch(1, 0)).expect("an empty log");
    copy_over(&source, &copy, &*log, 0, 2 * SEGMENT);
    log.confirm(2 * SEGMENT, Epoch(1)).expect("the epoch is right");
    for refused in [log.truncate(SEGMENT), log.restart(SEGMENT)] {
        let why = Refusal::Confirmed { confirmed: 2 * SEGMENT, to: SEGMENT };
        assert!(matches!(&refused, Err(Error::Refused(other)) if *other == why), "{refused:?}");
    }
    log.truncate(2 * SEGMENT).expect("nothing is taken back");
}
