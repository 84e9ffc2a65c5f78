//! The state behind a commit log, shared by its handle, its threads and the store.

mod append;
mod copy;
mod flush;
mod read;
mod replica;
mod upkeep;

pub(crate) use append::AppendCounts;
pub use append::{Appended, Patience};
pub use read::Records;
pub(crate) use read::{Located, Reader};

use super::checkpoint::{Checkpoint, CheckpointFile};
use super::directory::Directory;
use super::epochs::KnownEpochs;
use super::progress::Progress;
use super::recovery::{self, RecoveryReport};
use super::segment::{Access, Segment, Segments};
use crate::clock::Clock;
use crate::config::{LogConfig, RecoveryMode, WriteMode};
use crate::disk::{Disk, MapAccess, OpenAccess};
use crate::environment::Environment;
use crate::error::{Error, IoContext, IoOp, Result};
use crate::message::RecordLayout;
use crate::message::format::BLANK_SIZE;
use crate::replication::{Replicator, Role};
use crate::sync::Receiver;
use crate::worker::{Alarm, Doorbell, Next, Worker};
use append::{Appender, NextSegment};
use flush::{Covered, Written};
use parking_lot::{Condvar, Mutex, RwLock};
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// Counts of work done, for `stats()`.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) writes: AtomicU64,
    pub(crate) syncs: AtomicU64,
    pub(crate) sync_nanos: AtomicU64,
    pub(crate) sync_nanos_max: AtomicU64,
    /// When the sync under way began.
    pub(crate) sync_began: Mutex<Option<Instant>>,
}

/// What the log's threads and handles share.
pub(crate) struct Core {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) config: LogConfig,
    pub(crate) progress: Arc<Progress>,
    pub(crate) layout: RecordLayout,
    pub(crate) counts: Counts,
    segment_size: u64,
    directory: Directory,
    segments: Segments,
    checkpoint: CheckpointFile,
    /// As in the checkpoint; it changes while a log is opened, and when a replica enters an epoch.
    checksummed: RwLock<Arc<[Range<u64>]>>,
    epochs: KnownEpochs,
    /// Everything before is held by replicas and never taken back, as far as is known here.
    agreed: AtomicU64,
    /// How much of it is known to survive a power cut.
    noted_agreed: AtomicU64,
    /// Held by each thread of the log and the store for as long as it runs: it may yet write.
    threads: Arc<()>,
    /// The epoch in which whoever brings the records reigns; none at first.
    followed: AtomicU64,
    append: Mutex<Appender>,
    /// Rung when staging room or the next segment appears; paired with `append`.
    changed: Condvar,
    written: Mutex<Written>,
    /// Held while a sync runs.
    syncing: Mutex<Covered>,
    /// The range that upkeep is zeroing; writes into it wait.
    preparing: Mutex<Option<Range<u64>>>,
    prepared: Condvar,
    group_bytes: AtomicU64,
    upkeep: Doorbell,
    /// Held during a step of upkeep.
    upkeeping: Mutex<()>,
    flusher: Alarm,
    flush_wanted: AtomicBool,
    replicator: OnceLock<Arc<dyn Replicator>>,
    upkeep_timer: AtomicBool,
    rolled_since_checkpoint: AtomicBool,
    /// Files of segments that are no longer the log's, oldest first.
    doomed: Mutex<Vec<PathBuf>>,
    /// Mappings made so far.
    pub(super) mapped: AtomicUsize,
}

impl fmt::Debug for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Core")
            .field("dir", &self.config.dir)
            .field("watermarks", &self.progress.watermarks())
            .field("latched", &self.progress.latched())
            .finish_non_exhaustive()
    }
}

impl Core {
    /// Starts a thread of the log or its store: a panic there latches the log.
    pub(crate) fn spawn(
        self: &Arc<Self>,
        name: &str,
        doorbell: (Doorbell, Receiver<()>),
        mut step: impl FnMut() -> Next + Send + 'static,
    ) -> Result<Worker> {
        let (latched, running) = (self.clone(), self.running());
        let panicked = move |error| {
            latched.latch(error);
        };
        let step = move || {
            let _running = &running;
            step()
        };
        Worker::spawn(name, doorbell, step, panicked).at(IoOp::Create, Path::new(name))
    }

    /// To be held by a thread for as long as it runs.
    pub(crate) fn running(&self) -> Arc<()> {
        self.threads.clone()
    }

    /// Whether a thread of the log or its store runs.
    pub(crate) fn is_running(&self) -> bool {
        Arc::strong_count(&self.threads) > 1
    }

    /// Recovers the log and readies it for the next record.
    pub(super) fn open(
        config: LogConfig,
        environment: Environment,
        upkeep: Doorbell,
        role: Option<Role>,
    ) -> Result<(Arc<Self>, RecoveryReport)> {
        let Environment { disk, clock, .. } = environment;
        let directory = Directory::open(&*disk, &config)?;
        let recovered = recovery::recover(&*disk, &config, &directory, role)?;
        let (end, size) = (recovered.end, recovered.segment_size);
        let segment =
            |base: u64| Arc::new(Segment::new(directory.commitlog(), base, size, access(&config)));
        let segments = recovered.bases.iter().map(|base| segment(*base)).collect();
        let host = config.store_host.into();
        let layout = RecordLayout {
            store_host: host,
            born_host: host,
            record_crc: config.record_crc,
            long_topics: config.long_topics,
            max_message_size: config.max_message_size,
            max_record_size: size as usize - BLANK_SIZE,
        };
        let core = Arc::new(Self {
            progress: Arc::new(Progress::at(end, recovered.durable)),
            layout,
            counts: Counts::default(),
            segment_size: size,
            segments: Segments::new(size, segments),
            checksummed: RwLock::new(recovered.checkpoint.current().checksummed.into()),
            epochs: KnownEpochs::new(recovered.epochs),
            agreed: AtomicU64::new(recovered.checkpoint.confirmed()),
            noted_agreed: AtomicU64::new(recovered.checkpoint.confirmed()),
            threads: Arc::default(),
            followed: AtomicU64::new(u64::MAX),
            checkpoint: recovered.checkpoint,
            append: Mutex::new(Appender::new(
                end,
                segment(end / size * size),
                recovered.last_timestamp,
            )),
            changed: Condvar::new(),
            written: Mutex::new(Written::at(end)),
            syncing: Mutex::default(),
            preparing: Mutex::new(None),
            prepared: Condvar::new(),
            group_bytes: AtomicU64::new(0),
            upkeep,
            upkeeping: Mutex::new(()),
            flusher: Alarm::default(),
            flush_wanted: AtomicBool::new(false),
            replicator: OnceLock::new(),
            upkeep_timer: AtomicBool::new(false),
            rolled_since_checkpoint: AtomicBool::new(false),
            doomed: Mutex::default(),
            mapped: AtomicUsize::new(0),
            disk,
            clock,
            directory,
            config,
        });
        if core.config.read_only {
            core.publish_through(end)?;
        } else {
            core.begin(end)?;
        }
        Ok((core, recovered.report))
    }

    /// Makes the segment that takes the next record where there is none, and readies it.
    fn begin(&self, end: u64) -> Result<()> {
        let current = match self.segments.find(end) {
            Some(current) => current,
            // The first one, or the one behind a last segment that is full.
            None => {
                let created = self.create_segment(end)?;
                self.segments.push(created.clone());
                created
            }
        };
        // Opened before the first write: a write error is reported to descriptors open by then.
        let file = current.file(&*self.disk)?;
        // Another program may have left holes, and a store to one of them on a full disk is a SIGBUS.
        file.allocate(self.segment_size)
            .map_err(|error| self.allocation_failed(current.path(), current.path(), error))?;
        self.publish_through(end)?;
        let region = self.region(&current)?;
        let mut append = self.append.lock();
        append.writer = region.writer();
        append.segment = current;
        Ok(())
    }

    /// Publishes what recovery accepted, segment by segment as they are opened by readers.
    fn publish_through(&self, end: u64) -> Result<()> {
        if let Some(last) = self.segments.find(end).or_else(|| self.segments.last()) {
            let inside = end.saturating_sub(last.base_offset()).min(self.segment_size);
            self.region(&last)?.publish(inside);
        }
        Ok(())
    }

    /// Tells `replicator` of bytes from now on; false if there is one.
    pub(crate) fn set_replicator(&self, replicator: Arc<dyn Replicator>) -> bool {
        self.replicator.set(replicator).is_ok()
    }

    pub(super) fn tell_written(&self, end: u64) {
        if let Some(replicator) = self.replicator.get() {
            replicator.on_written(end);
        }
    }

    /// Refuses every later put and wakes everyone who waits for anything.
    pub(crate) fn latch(&self, error: Error) {
        self.progress.latch(error);
        // Under the lock, or a put that is about to wait for room would miss it.
        drop(self.append.lock());
        self.changed.notify_all();
    }

    pub(crate) fn recovery_mode(&self) -> RecoveryMode {
        self.config.recovery_mode
    }

    pub(crate) fn directory(&self) -> &Directory {
        &self.directory
    }

    pub(crate) fn segment_size(&self) -> u64 {
        self.segment_size
    }

    pub(crate) fn segment_count(&self) -> usize {
        self.segments.all().len()
    }

    pub(crate) fn min_offset(&self) -> u64 {
        self.segments.min_offset()
    }

    /// Which segments views keep in memory, and how many views.
    pub(crate) fn pins(&self) -> Vec<(u64, usize)> {
        let appended = self.append.lock();
        let (writing, has_writer) = (appended.segment.base_offset(), appended.writer.is_some());
        drop(appended);
        let pinned = |segment: &Arc<Segment>| {
            let own = usize::from(has_writer && segment.base_offset() == writing);
            (segment.base_offset(), segment.holders().saturating_sub(own))
        };
        self.segments.all().iter().map(pinned).filter(|(_, views)| *views > 0).collect()
    }

    /// How long the sync under way has taken so far.
    pub(crate) fn syncing_for(&self) -> Option<Duration> {
        let began = *self.counts.sync_began.lock();
        began.map(|began| self.clock.now().saturating_duration_since(began))
    }

    pub(crate) fn layout(&self) -> &RecordLayout {
        &self.layout
    }

    pub(crate) fn checkpoint(&self) -> Checkpoint {
        self.checkpoint.current()
    }

    /// Store timestamp of the newest record.
    pub(crate) fn last_timestamp(&self) -> i64 {
        self.append.lock().last_timestamp
    }

    /// No append succeeds from here on.
    pub(crate) fn close_appends(&self) {
        self.append.lock().closed = true;
        self.changed.notify_all();
    }

    /// Makes everything durable, marks the log clean and lets go of the directory. The queues may be
    /// `behind` the log: then a Java broker is told that it has to look.
    pub(crate) fn shut(&self, behind: bool) -> Result<()> {
        let deadline = self.clock.now() + self.config.close_timeout;
        let shut = self.flush_until(deadline).and_then(|()| self.finish(behind));
        // A thread that hangs may yet write: nobody else may have the directory then.
        let hangs = matches!(shut, Err(Error::CloseTimeout { .. }));
        if hangs || self.directory.unlock(self.config.close_timeout) {
            return shut;
        }
        shut.and(Err(Error::CloseTimeout { thread: "that writes to the directory".to_owned() }))
    }

    /// Removes what only a running store needs and marks the log clean.
    fn finish(&self, behind: bool) -> Result<()> {
        if self.config.read_only || self.progress.latched().is_some() {
            return Ok(());
        }
        let unused = match std::mem::replace(
            &mut self.append.lock().next,
            NextSegment::Pending { wanted: false },
        ) {
            NextSegment::Ready(segment) => Some(segment),
            _ => None,
        };
        if let Some(segment) = unused {
            self.disk.remove(segment.path()).at(IoOp::Remove, segment.path())?;
            self.disk
                .sync_dir(self.directory.commitlog())
                .at(IoOp::SyncDir, self.directory.commitlog())?;
        }
        let durable = self.progress.durable();
        let timestamp = self.append.lock().last_timestamp;
        self.checkpoint.update(true, |checkpoint| {
            checkpoint.durable = durable;
            checkpoint.confirmed = checkpoint.confirmed.max(self.agreed().min(durable));
            checkpoint.last_timestamp = checkpoint.last_timestamp.max(timestamp);
            checkpoint.clean = true;
        })?;
        if behind { Ok(()) } else { self.directory.remove_abort(&*self.disk) }
    }
}

fn access(config: &LogConfig) -> Access {
    match (config.read_only, config.write_mode) {
        (true, _) => (OpenAccess::Read, MapAccess::Read),
        (false, WriteMode::Pwrite) => (OpenAccess::Write, MapAccess::Read),
        (false, WriteMode::Mmap) => (OpenAccess::Write, MapAccess::Write),
    }
}
