//! From whatever a crash left to a log whose every byte is durable and valid.
//!
//! Recovery looks only at what lies above the durable offset. It finishes an interrupted cut, checks
//! record after record, writes and syncs what it accepts once more (after a kill it may be in the
//! page cache alone), and cuts off the rest so that no stale byte can come back.

mod cut;
mod report;
mod scan;
mod tail;

pub use report::{Cut, Hole, RecoveryReport};

use super::checkpoint::{Checkpoint, CheckpointFile, end_ranges, go_on_from};
use super::directory::{Directory, remove_if_there};
use super::epochs::Epochs;
use super::queue_table;
use super::segment::{file_name, parse_file_name};
use crate::config::{LogConfig, RecoveryMode};
use crate::disk::{Disk, DiskFile, OpenAccess, SyncMethod};
use crate::error::{Corruption, Error, IoContext, IoOp, Result};
use crate::message::{RecordCheck, format};
use crate::replication::{Epoch, EpochStart, NodeId, Role};
use scan::Scan;
use std::path::PathBuf;
use std::sync::Arc;
use tail::Tail;

/// How much is read at a time.
const STEP: usize = 512 << 10;
/// How exactly is asked where data lies, in bytes.
const DATA_STEP: u64 = 64 << 10;
/// Enough of a record to know its size.
const HEADER: u64 = format::HEADER_SIZE_MAX as u64;
/// How often what changes under a reader is looked at again.
const LOOKS_MAX: u32 = 8;
/// Sizes of a segment that can be: a record must fit, and RocketMQ counts in `i32`.
const SEGMENT_SIZES: std::ops::RangeInclusive<u64> = 128..=i32::MAX as u64;
/// RocketMQ's offsets are `i64`; far below its end nothing overflows.
pub(super) const OFFSET_MAX: u64 = i64::MAX as u64 / 2;

/// What the log starts with.
pub(super) struct Recovered {
    pub(super) bases: Vec<u64>,
    pub(super) segment_size: u64,
    pub(super) end: u64,
    /// Known to be durable: everything, but in a log that is only read.
    pub(super) durable: u64,
    pub(super) last_timestamp: i64,
    pub(super) checkpoint: CheckpointFile,
    pub(super) epochs: Epochs,
    pub(super) report: RecoveryReport,
}

pub(super) fn recover(
    disk: &dyn Disk,
    config: &LogConfig,
    directory: &Directory,
    role: Option<Role>,
) -> Result<Recovered> {
    let access = if config.read_only { OpenAccess::Read } else { OpenAccess::Write };
    let path = directory.duralog().join("checkpoint");
    let (file, known) = CheckpointFile::open(disk, &path, access)?;
    if known.is_none() && file.is_damaged() && config.recovery_mode != RecoveryMode::Salvage {
        let what = Corruption::StateFile { what: "both slots of the checkpoint are damaged" };
        return Err(Error::Corrupt { path, offset: 0, what });
    }
    let foreign = known.is_none();
    let left_open = known.as_ref().is_some_and(|known| !known.clean);
    // Whoever closed it may have left the abort file for a broker, because the queues were behind.
    let closed_by_us = known.as_ref().is_some_and(|known| {
        known.clean && (!directory.was_open() || directory.was_left_by(known.owner))
    });
    let mut recovery = Recovery {
        disk,
        config,
        directory,
        size: known.as_ref().map_or(0, |known| known.segment_size),
        checkpoint: known.unwrap_or_default(),
        ours_until: 0,
        may_hold_others: false,
        bare_from: None,
        cut_at: u64::MAX,
        names_durable: false,
        closed_by_us,
        bases: Vec::new(),
        report: RecoveryReport {
            unclean: (directory.was_open() || left_open) && !closed_by_us,
            ..RecoveryReport::default()
        },
        last_timestamp: 0,
    };
    recovery.note_newest_epoch()?;
    if !closed_by_us && !directory.was_left_by(recovery.checkpoint.owner) {
        // Someone else had this store since it was left or closed, or crashed with it: a Java broker,
        // whose records need not carry a checksum.
        recovery.suspect_others_from(recovery.checkpoint.durable);
    }
    // The queues are made durable only as far as the log is.
    let queues = queue_table::saved_offset(disk, directory.duralog());
    recovery.checkpoint.durable = recovery.checkpoint.durable.max(queues.unwrap_or(0));
    recovery.ours_until = recovery.checkpoint.durable;
    recovery.last_timestamp = recovery.checkpoint.last_timestamp;
    let mut attempts = if config.read_only { LOOKS_MAX } else { 1 };
    while let Err(error) = recovery.load(&file) {
        // A live writer may have made a segment while the directory was read.
        attempts -= 1;
        if attempts == 0 || !matches!(error, Error::Corrupt { .. }) {
            return Err(error);
        }
        recovery.report.ignored.clear();
    }
    recovery.report.foreign = foreign && !recovery.bases.is_empty();
    if !config.read_only {
        file.ensure(disk)?;
        if !canary!("duralog_dir_sync") {
            disk.sync_dir(directory.duralog()).at(IoOp::SyncDir, directory.duralog())?;
        }
    }
    let end = recovery.find_end(&file)?;
    let mut epochs = recovery.epochs(end)?;
    if !config.read_only {
        let found = epochs.clone();
        if let Some(start) = recovery.bare_from
            && epochs.checksummed().iter().any(|range| range.contains(&start))
        {
            // No primary gave it: its epoch says that each of its records has a checksum of its own.
            epochs.begin_alone(start, false, directory.token())?;
        }
        // Whoever had a look, without replication, has put nothing, and what records were to carry then says
        // nothing of those that come.
        epochs.take_back_looks(end);
        if role == Some(Role::Replica) {
            recovery.take_checksummed_of(&epochs);
        } else {
            recovery.extend_checksummed(end);
        }
        if role.is_none() && found.is_replicated() {
            epochs.begin_alone(end, config.record_crc, directory.token())?;
        }
        epochs.alone = role.is_none() && (found.is_replicated() || directory.has_copies());
        if epochs != found {
            directory.save(disk, super::epochs::NAME, &epochs.encode())?;
        }
        let settled = Checkpoint {
            durable: end,
            clean: false,
            cut: None,
            restarts: false,
            shared: false,
            epoch: epochs.last().0,
            confirmed: recovery.checkpoint.confirmed.min(end),
            segment_size: recovery.size,
            last_timestamp: recovery.last_timestamp,
            owner: directory.token(),
            ..recovery.checkpoint.clone()
        };
        file.update(true, |checkpoint| *checkpoint = settled)?;
        directory.write_abort(disk)?;
    } else {
        file.assume(recovery.checkpoint.clone());
    }
    // Whoever is writing, or was when it died, may not have synced all that can be read.
    let in_doubt = config.read_only && recovery.report.unclean && !foreign;
    let durable = if in_doubt { recovery.checkpoint.durable.min(end) } else { end };
    Ok(Recovered {
        bases: recovery.bases,
        segment_size: recovery.size,
        end,
        durable,
        last_timestamp: recovery.last_timestamp,
        checkpoint: file,
        epochs,
        report: recovery.report,
    })
}

struct Recovery<'a> {
    disk: &'a dyn Disk,
    config: &'a LogConfig,
    directory: &'a Directory,
    checkpoint: Checkpoint,
    /// The durable offset as it was told: no other program wrote before it.
    ours_until: u64,
    /// Behind it, another program may have written since.
    may_hold_others: bool,
    /// Then the first record there without a checksum of its own.
    bare_from: Option<u64>,
    /// What lies from there on counts no more, though it is still to be cut.
    cut_at: u64,
    /// This crate was the last to have the log, and closed it in order.
    closed_by_us: bool,
    /// The names of the segments have been synced.
    names_durable: bool,
    size: u64,
    bases: Vec<u64>,
    report: RecoveryReport,
    last_timestamp: i64,
}

impl Recovery<'_> {
    /// Lists the segments, finishes an interrupted cut, and checks that none is missing.
    fn load(&mut self, file: &CheckpointFile) -> Result<()> {
        let dir = self.directory.commitlog();
        let entries = self.disk.list(dir).at(IoOp::List, dir)?;
        let mut found = Vec::new();
        for entry in entries {
            match parse_file_name(&entry.name) {
                Some(base) if !entry.is_dir && base <= OFFSET_MAX => found.push((base, entry.len)),
                _ => self.report.ignored.push(entry.name),
            }
        }
        if let Some(&(base, 0)) = found.last() {
            // RocketMQ creates a file, then gives it its length; a kill in between leaves this.
            found.pop();
            if !self.config.read_only {
                remove_if_there(self.disk, &dir.join(file_name(base)))?;
            }
        }
        if self.size == 0 {
            self.size = found.first().map_or(self.config.segment_size, |first| first.1);
        }
        if !SEGMENT_SIZES.contains(&self.size) {
            let what =
                Corruption::FileSize { found: self.size, expected: self.config.segment_size };
            let path =
                found.first().map_or_else(|| dir.to_owned(), |first| dir.join(file_name(first.0)));
            return Err(Error::Corrupt { path, offset: 0, what });
        }
        if let Some(cut) = self.checkpoint.cut {
            let restarts = self.checkpoint.restarts;
            let goes = |base: u64| restarts || base > cut;
            let beyond: Vec<_> =
                found.iter().map(|segment| segment.0).filter(|base| goes(*base)).collect();
            found.retain(|segment| !goes(segment.0));
            self.bases = found.iter().map(|segment| segment.0).collect();
            if !self.config.read_only {
                self.report.finished_cut = Some(cut);
                self.carry_out_cut(file, cut, &beyond)?;
                if restarts {
                    found.push((cut, self.size));
                }
            } else if restarts {
                // Nothing of it counts any more.
                self.checkpoint.durable = 0;
            } else {
                self.cut_at = cut;
                self.checkpoint.durable = self.checkpoint.durable.min(cut);
            }
        }
        self.check_geometry(&found)?;
        self.bases = found.into_iter().map(|segment| segment.0).collect();
        Ok(())
    }

    fn check_geometry(&mut self, found: &[(u64, u64)]) -> Result<()> {
        let path = |base| self.directory.commitlog().join(file_name(base));
        for &(base, len) in found {
            if len != self.size || !base.is_multiple_of(self.size.max(1)) {
                let what = Corruption::FileSize { found: len, expected: self.size };
                return Err(Error::Corrupt { path: path(base), offset: 0, what });
            }
        }
        for pair in found.windows(2) {
            if let [(before, _), (after, _)] = *pair
                && before + self.size != after
            {
                let what = Corruption::Gap { before: path(before), after: path(after) };
                return Err(Error::Corrupt { path: path(before + self.size), offset: 0, what });
            }
        }
        let end = found.last().map_or(0, |last| last.0 + self.size);
        let durable = self.checkpoint.durable;
        if durable > end {
            if self.config.recovery_mode == RecoveryMode::Salvage {
                self.checkpoint.durable = found.last().map_or(0, |last| last.0);
                return Ok(());
            }
            // What a sync promised lies in a file that is not there.
            let missing = durable / self.size.max(1) * self.size;
            let what = Corruption::Missing { durable, end };
            return Err(Error::Corrupt { path: path(missing), offset: durable - missing, what });
        }
        Ok(())
    }

    /// Scans, decides about damage, makes durable what stays and cuts what does not; the log's end.
    fn find_end(&mut self, file: &CheckpointFile) -> Result<u64> {
        let Some((&first, &last)) = self.bases.first().zip(self.bases.last()) else {
            return Ok(self.checkpoint.durable);
        };
        let foreign = self.report.foreign;
        let from = if foreign { first } else { self.checkpoint.durable.max(first) };
        // RocketMQ keeps no durable offset. It trusts all but its last three files, and so the older
        // ones need a sync, not a second write.
        let rewrite_from =
            if foreign { last.saturating_sub(2 * self.size).max(first) } else { from };
        // An older slot of the checkpoint may say that it is clean where the newest has rotted.
        let trusted_clean = self.closed_by_us;
        if trusted_clean {
            // What lies behind a clean end was not written by this crate.
            self.suspect_others_from(self.ours_until);
        }
        self.report.scanned_from = from;
        let mut scan = Scan::new(from, rewrite_from);
        let (mut at, mut looks) = (from, LOOKS_MAX);
        let end = loop {
            let (stopped, what) = scan.run(self, at)?;
            at = stopped;
            if at >= self.cut_at {
                break self.cut_at;
            }
            if foreign && !self.config.read_only && self.is_shortened(at, &what)? {
                let expected = self.config.segment_size;
                return Err(self.corrupt(at, Corruption::FileSize { found: self.size, expected }));
            }
            let tail = Tail { data_end: at, next_valid: None, certain: true };
            if trusted_clean && at == from && matches!(what, Corruption::Magic { found: 0 }) {
                // Zeros behind it, but perhaps a segment that was prepared and never used.
                self.cut(file, at, what, &tail, false)?;
                break at;
            }
            let tail = self.probe(at)?;
            if self.config.read_only && tail.next_valid.is_some() {
                // A live writer may have written the record since, and those behind it.
                scan = Scan::new(at, rewrite_from);
                let (stopped, _) = scan.run(self, at)?;
                if stopped > at {
                    at = stopped;
                    looks -= 1;
                    // It writes faster than this looks: there is no damage, and no end to wait for.
                    if looks == 0 {
                        break at;
                    }
                    continue;
                }
            }
            let Some(next_valid) = tail.next_valid else {
                scan.finish(self, at)?;
                self.cut(file, at, what, &tail, false)?;
                break at;
            };
            let tolerated = self.config.read_only || at >= rewrite_from;
            if !tolerated && self.config.recovery_mode != RecoveryMode::Salvage {
                return Err(self.corrupt(at, what));
            }
            let mode = self.config.recovery_mode;
            if mode == RecoveryMode::Strict {
                return Err(self.corrupt(at, Corruption::SuspectedRot { next_valid }));
            }
            scan.finish(self, at)?;
            let salvages = mode == RecoveryMode::Salvage && tail.certain;
            if salvages && self.fill_hole(at, next_valid, what.clone())? {
                at = self.after_hole(at, next_valid);
                scan = Scan::new(at, rewrite_from.max(at));
                continue;
            }
            self.cut(file, at, what, &tail, true)?;
            break at;
        };
        scan.finish(self, end)?;
        self.sync_from(if foreign { first } else { from })?;
        Ok(end)
    }

    fn segment_of(&self, at: u64) -> u64 {
        at / self.size * self.size
    }

    fn open(&self, base: u64) -> Result<(Arc<dyn DiskFile>, PathBuf)> {
        let path = self.directory.commitlog().join(file_name(base));
        let access = if self.config.read_only { OpenAccess::Read } else { OpenAccess::Write };
        let file = self.disk.open(&path, access).at(IoOp::Open, &path)?;
        Ok((file, path))
    }

    fn corrupt(&self, at: u64, what: Corruption) -> Error {
        let base = self.segment_of(at);
        Error::Corrupt {
            path: self.directory.commitlog().join(file_name(base)),
            offset: at - base,
            what,
        }
    }

    /// Hears of a record that was accepted, and whether it has a checksum of its own.
    fn note_record(&mut self, at: u64, has_checksum: impl FnOnce() -> bool) {
        if self.may_hold_others && self.bare_from.is_none() && !has_checksum() {
            self.bare_from = Some(at);
        }
    }

    fn suspect_others_from(&mut self, from: u64) {
        self.may_hold_others = true;
        self.forget_checksums_from(from);
    }

    fn check_at(&self, at: u64) -> RecordCheck {
        if self.checkpoint.is_checksummed(at) { RecordCheck::Record } else { RecordCheck::Body }
    }

    fn forget_checksums_from(&mut self, from: u64) {
        end_ranges(&mut self.checkpoint.checksummed, from);
    }

    /// From `end` on, records are written as this configuration says, whatever was there before.
    fn extend_checksummed(&mut self, end: u64) {
        go_on_from(&mut self.checkpoint.checksummed, end, self.config.record_crc);
    }

    /// The epochs of the log that ends at `end`.
    fn epochs(&self, end: u64) -> Result<Epochs> {
        let kept_apart = Epochs::read(self.disk, self.directory.duralog())?;
        let is_older = kept_apart.is_none() && self.checkpoint.epoch > 0;
        let mut epochs = kept_apart.unwrap_or_default();
        if is_older {
            // Written before epochs were kept apart.
            let (epoch, node) = (Epoch(self.checkpoint.epoch), NodeId(0));
            epochs.begin(EpochStart { epoch, start: 0, node, record_crc: false });
        }
        let found = epochs.clone();
        epochs.end_at(end);
        // What was closed in order holds here all that was vouched for.
        epochs.lazy &= self.report.unclean;
        epochs.in_doubt |= epochs.lazy;
        if epochs != found && !self.config.read_only {
            // Once the log has grown again they would seem to be part of it.
            self.directory.save(self.disk, super::epochs::NAME, &epochs.encode())?;
        }
        Ok(epochs)
    }

    /// The newest epoch may have been entered, or begun, without a word of what its records carry: they are
    /// judged by that.
    fn note_newest_epoch(&mut self) -> Result<()> {
        let epochs = Epochs::read(self.disk, self.directory.duralog())?.unwrap_or_default();
        if let Some(newest) = epochs.starts().last()
            && newest.epoch.0 != self.checkpoint.epoch
        {
            go_on_from(&mut self.checkpoint.checksummed, newest.start, newest.record_crc);
        }
        Ok(())
    }

    /// Records of a replica are those of the epochs' primaries, whatever this configuration says.
    fn take_checksummed_of(&mut self, epochs: &Epochs) {
        let replicated_from = epochs.starts().first().map_or(u64::MAX, |first| first.start);
        self.forget_checksums_from(replicated_from);
        self.checkpoint.checksummed.extend(epochs.checksummed());
    }

    fn read_range(&self, from: u64, to: u64) -> Result<Vec<u8>> {
        let base = self.segment_of(from);
        let (file, path) = self.open(base)?;
        let mut bytes = vec![0; (to - from) as usize];
        let got =
            file.read_at(&mut bytes, from - base).at_offset(IoOp::Read, &path, from - base)?;
        bytes.truncate(got);
        Ok(bytes)
    }

    /// Syncs every segment from the one that holds `from`, and their names: whoever made the last of
    /// them may have been killed before it could.
    fn sync_from(&self, from: u64) -> Result<()> {
        if self.config.read_only || canary!("recovery_sync") {
            return Ok(());
        }
        let dir = self.directory.commitlog();
        if !self.names_durable && !canary!("recovery_dir_sync") {
            self.disk.sync_dir(dir).at(IoOp::SyncDir, dir)?;
        }
        for &base in self.bases.iter().filter(|base| **base + self.size > from) {
            let (file, path) = self.open(base)?;
            file.sync(SyncMethod::Fdatasync).at(IoOp::Sync, &path)?;
        }
        Ok(())
    }
}

#[cfg(all(test, feature = "sim"))]
mod tests {
    use crate::clock::SystemClock;
    use crate::config::LogConfig;
    use crate::disk::{Cut, CutMoment, SimDisk};
    use crate::environment::Environment;
    use crate::log::checkpoint::CheckpointFile;
    use crate::log::{CommitLog, Patience};
    use crate::message::{Draft, Message};
    use std::path::Path;
    use std::sync::Arc;

    fn open(disk: &SimDisk) -> crate::Result<CommitLog> {
        let environment = Environment::on(disk.shared()).clock(Arc::new(SystemClock)).stepped();
        CommitLog::open_in(LogConfig::new("/log").segment_size(4096), environment)
    }

    /// A log of equal records over several segments, left by a kill; the offset of each.
    fn filled(disk: &SimDisk) -> Vec<u64> {
        let log = open(disk).unwrap();
        let message = Message::new("t", vec![7; 300]);
        let draft = Draft::new(&message, log.layout()).unwrap();
        let mut offsets = Vec::new();
        while offsets.len() < 30 {
            match log.append(&[draft], Patience::None) {
                Ok(appended) => offsets.push(appended.physical_offset),
                Err(_) => drop(log.step()),
            }
        }
        log.write().unwrap();
        log.sync().unwrap();
        offsets
    }

    fn set_cut(disk: &SimDisk, at: u64) {
        let path = Path::new("/log/duralog/checkpoint");
        let (file, _) = CheckpointFile::open(disk, path, crate::disk::OpenAccess::Write).unwrap();
        file.update(true, |checkpoint| {
            checkpoint.durable = at;
            checkpoint.cut = Some(at);
        })
        .unwrap();
    }

    #[test]
    fn an_interrupted_cut_is_finished_wherever_it_is_interrupted_again() {
        for moment in [CutMoment::Before, CutMoment::Middle] {
            for call in 1.. {
                let disk = SimDisk::new(call);
                let offsets = filled(&disk);
                let disk = disk.kill();
                let cut = offsets[11];
                set_cut(&disk, cut);
                disk.cut_at(call, moment);
                let first = open(&disk);
                let finished = !disk.is_down();
                let disk = disk.reboot(Cut::losing_all());
                drop(first);
                let log = open(&disk).unwrap();
                assert_eq!(log.watermarks().appended, cut, "power lost at call {call}");
                assert_eq!(log.records(0).count(), 11);
                if finished {
                    break;
                }
            }
        }
    }
}
