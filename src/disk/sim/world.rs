//! What all handles of a simulated disk share: the tree, the plans against it, and the ledger.

use super::block::PAGE;
use super::cut::{Cut, CutMoment, Dice, Rng};
use super::fault::{CALLS, Fault, Faults, SimCall};
use super::file::{FileState, Inode};
use super::tree::{Dir, Node};
use crate::disk::{FileSystemKind, SyncMethod};
use parking_lot::{Condvar, Mutex, MutexGuard};
use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The error of every call through a handle whose process or machine is gone.
#[derive(Debug)]
pub(super) struct Gone;

impl fmt::Display for Gone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the simulated machine was switched off or its process killed")
    }
}

impl std::error::Error for Gone {}

pub(super) fn gone() -> io::Error {
    io::Error::other(Gone)
}

pub(super) fn os(code: i32) -> io::Error {
    io::Error::from_raw_os_error(code)
}

/// How a life of the machine ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    PowerCut,
    Kill,
}

struct Plan {
    /// Mutating calls up to and including the fatal one.
    left: u64,
    moment: CutMoment,
    end: End,
}

/// What a path means to the ledger and to the tree.
pub(super) struct PathInfo {
    pub(super) path: PathBuf,
    /// The directories on the way, and the last name; no name is the root.
    pub(super) parents: Vec<OsString>,
    pub(super) name: Option<OsString>,
    class: usize,
    pub(super) written_bytes: AtomicU64,
    pub(super) syncs: AtomicU64,
}

impl PathInfo {
    /// The last name, of a path that cannot be the root.
    pub(super) fn name(&self) -> io::Result<&OsString> {
        self.name.as_ref().ok_or_else(|| os(libc::EBUSY))
    }

    /// Whether the directory `above` is on the way to this.
    pub(super) fn is_below(&self, above: &PathInfo) -> bool {
        let rest = self.parents.strip_prefix(above.parents.as_slice());
        rest.and_then(<[_]>::first) == above.name.as_ref() && above.name.is_some()
    }
}

/// All paths that differ only in digits.
struct Class {
    name: String,
    calls: [u64; CALLS],
    cuts: [u64; CALLS],
}

/// What a simulated disk was asked to do so far, over all its lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct SimStats {
    /// `DiskFile::sync` with [`SyncMethod::Fdatasync`].
    pub fdatasyncs: u64,
    /// `DiskFile::sync` with [`SyncMethod::Fsync`].
    pub fsyncs: u64,
    /// `DiskFile::sync` with [`SyncMethod::Msync`].
    pub msyncs: u64,
    /// `Disk::sync_dir`.
    pub dir_syncs: u64,
    /// `DiskFile::write_at`.
    pub writes: u64,
    /// Bytes that `DiskFile::write_at` wrote.
    pub written_bytes: u64,
    /// `DiskFile::read_at`.
    pub reads: u64,
    /// Bytes that `DiskFile::read_at` read.
    pub read_bytes: u64,
    /// Stores through a `RegionWriter`.
    pub stores: u64,
    /// Bytes that those stored.
    pub stored_bytes: u64,
}

impl SimStats {
    /// Syncs of files, by any method.
    pub fn syncs(&self) -> u64 {
        self.fdatasyncs + self.fsyncs + self.msyncs
    }
}

/// How a call is to go.
pub(super) enum Verdict {
    Go,
    /// Have part of the effect, then [`Machine::fall`].
    Middle,
    Fail(Fault),
}

pub(super) struct Machine {
    world: Mutex<World>,
    /// Syncs may go on, or the machine is down.
    released: Condvar,
    pub(super) stores: AtomicU64,
    pub(super) stored_bytes: AtomicU64,
}

pub(super) struct World {
    pub(super) root: Arc<Dir>,
    /// The number of the last change of a name.
    pub(super) changes: u64,
    pub(super) rng: Rng,
    pub(super) generation: u64,
    pub(super) down: Option<End>,
    plan: Option<Plan>,
    pub(super) faults: Faults,
    pub(super) capacity: u64,
    pub(super) used: u64,
    pub(super) read_only: bool,
    pub(super) kind: FileSystemKind,
    pub(super) latency: Duration,
    pub(super) hang: bool,
    pub(super) hanging: usize,
    label_root: Vec<OsString>,
    paths: HashMap<PathBuf, Arc<PathInfo>>,
    classes: Vec<Class>,
    class_ids: HashMap<String, usize>,
    pub(super) call_count: u64,
    pub(super) mutation_count: u64,
    pub(super) stats: SimStats,
}

impl Machine {
    pub(super) fn new(seed: u64) -> Arc<Self> {
        let world = World {
            root: Arc::default(),
            changes: 0,
            rng: Rng::new(seed),
            generation: 1,
            down: None,
            plan: None,
            faults: Faults::default(),
            capacity: 1 << 40,
            used: 0,
            read_only: false,
            kind: FileSystemKind::Local,
            latency: Duration::ZERO,
            hang: false,
            hanging: 0,
            label_root: Vec::new(),
            paths: HashMap::new(),
            classes: Vec::new(),
            class_ids: HashMap::new(),
            call_count: 0,
            mutation_count: 0,
            stats: SimStats::default(),
        };
        Arc::new(Self {
            world: Mutex::new(world),
            released: Condvar::new(),
            stores: AtomicU64::new(0),
            stored_bytes: AtomicU64::new(0),
        })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, World> {
        self.world.lock()
    }

    /// Begins a call: refuses it to the dead, counts it, and asks the plans what becomes of it.
    pub(super) fn enter<'a>(
        &self,
        mut world: MutexGuard<'a, World>,
        generation: u64,
        call: SimCall,
        info: &PathInfo,
    ) -> io::Result<(MutexGuard<'a, World>, Verdict)> {
        world.check_alive(generation)?;
        world.call_count += 1;
        world.classes[info.class].calls[call as usize] += 1;
        let mut verdict = Verdict::Go;
        if call.is_mutating() {
            world.mutation_count += 1;
            if let Some(moment) = world.is_fatal(call, info) {
                if moment == CutMoment::Before {
                    return Err(self.fall(&mut world));
                }
                verdict = Verdict::Middle;
            }
            if world.read_only && call.needs_writable() {
                return Err(self.refused(&mut world, verdict, os(libc::EROFS)));
            }
        }
        if let Some(fault) = world.faults.hit(call, &info.path)
            && matches!(verdict, Verdict::Go)
        {
            verdict = Verdict::Fail(fault);
        }
        Ok((world, verdict))
    }

    /// The error of a call that has no effect; a machine that is to go down with it does.
    fn refused(&self, world: &mut World, verdict: Verdict, error: io::Error) -> io::Error {
        if matches!(verdict, Verdict::Middle) { self.fall(world) } else { error }
    }

    /// A call that a fault keeps from having any effect.
    pub(super) fn call<T>(
        &self,
        generation: u64,
        call: SimCall,
        info: &PathInfo,
        effect: impl FnOnce(&mut World) -> io::Result<T>,
    ) -> io::Result<T> {
        let (mut world, verdict) = self.enter(self.lock(), generation, call, info)?;
        match verdict {
            Verdict::Go => effect(&mut world),
            Verdict::Fail(fault) => Err(fault.error()),
            Verdict::Middle => {
                // Whether it would have succeeded is nothing that anyone lives to hear. A handle that
                // came of it takes the lock when it is dropped.
                let unheard = effect(&mut world);
                let error = self.fall(&mut world);
                drop(world);
                drop(unheard);
                Err(error)
            }
        }
    }

    /// Ends this life of the machine as planned; the error that every caller gets from now on.
    pub(super) fn fall(&self, world: &mut World) -> io::Error {
        let end = world.plan.take().map_or(End::PowerCut, |plan| plan.end);
        self.end(world, end);
        gone()
    }

    /// Ends this life of the machine.
    pub(super) fn end(&self, world: &mut World, end: End) {
        world.down = Some(end);
        world.root.for_each_file(&mut FileState::detach_writers);
        self.released.notify_all();
    }

    pub(super) fn set_hang(&self, hang: bool) {
        self.lock().hang = hang;
        self.released.notify_all();
    }

    /// Spends the time that a sync takes. The lock is free meanwhile.
    pub(super) fn spend_sync<'a>(
        &'a self,
        mut world: MutexGuard<'a, World>,
        generation: u64,
    ) -> io::Result<MutexGuard<'a, World>> {
        let latency = world.latency;
        if !latency.is_zero() {
            MutexGuard::unlocked(&mut world, || std::thread::sleep(latency));
        }
        while world.hang && world.check_alive(generation).is_ok() {
            world.hanging += 1;
            self.released.wait(&mut world);
            world.hanging -= 1;
        }
        world.check_alive(generation)?;
        Ok(world)
    }

    /// Begins the next life; its number.
    pub(super) fn reboot(&self, end: End, cut: Cut) -> u64 {
        let mut world = self.lock();
        let generation = world.generation + 1;
        world.generation = generation;
        (world.down, world.plan) = (None, None);
        match end {
            End::PowerCut => world.root.survive_cut(generation, &mut Dice::new(cut)),
            End::Kill => world.root.for_each_file(&mut |file| file.survive_kill(generation)),
        }
        world.used = world.root.count_links() * PAGE as u64;
        self.released.notify_all();
        generation
    }

    /// A handle of a file is dropped.
    pub(super) fn release(&self, inode: &Inode, generation: u64) {
        let mut world = self.lock();
        let mut state = inode.state();
        // A handle of an earlier life was written off when that life ended.
        if world.generation == generation && state.generation == generation {
            state.handles -= 1;
            world.free_if_gone(&state);
        }
    }

    pub(super) fn stats(&self) -> SimStats {
        let (stores, stored_bytes) = (&self.stores, &self.stored_bytes);
        let stats = self.lock().stats;
        let relaxed = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        SimStats { stores: relaxed(stores), stored_bytes: relaxed(stored_bytes), ..stats }
    }
}

impl World {
    pub(super) fn check_alive(&self, generation: u64) -> io::Result<()> {
        if self.down.is_none() && self.generation == generation { Ok(()) } else { Err(gone()) }
    }

    pub(super) fn arm(&mut self, calls: u64, moment: CutMoment, end: End) {
        assert!(calls > 0, "calls are counted from 1");
        self.plan = Some(Plan { left: calls, moment, end });
    }

    pub(super) fn disarm(&mut self) {
        self.plan = None;
    }

    /// Counts a mutating call against the plan; when the machine goes down, if with this one.
    fn is_fatal(&mut self, call: SimCall, info: &PathInfo) -> Option<CutMoment> {
        let plan = self.plan.as_mut()?;
        plan.left -= 1;
        if plan.left > 0 {
            return None;
        }
        let moment = plan.moment;
        self.classes[info.class].cuts[call as usize] += 1;
        Some(moment)
    }

    pub(super) fn room(&self) -> u64 {
        self.capacity.saturating_sub(self.used)
    }

    /// Pages that can still be allocated.
    pub(super) fn free_pages(&self) -> u64 {
        self.room() / PAGE as u64
    }

    /// Runs `change` on a file and charges the pages that it allocates.
    pub(super) fn charged<T>(
        &mut self,
        state: &mut FileState,
        change: impl FnOnce(&mut FileState) -> T,
    ) -> T {
        let before = state.pages;
        let result = change(state);
        self.used += (state.pages - before) * PAGE as u64;
        result
    }

    pub(super) fn free_if_gone(&mut self, state: &FileState) {
        if state.links == 0 && state.handles == 0 {
            self.used = self.used.saturating_sub(state.pages * PAGE as u64);
        }
    }

    /// Numbers a change of a name.
    pub(super) fn next_change(&mut self) -> u64 {
        self.changes += 1;
        self.changes
    }

    pub(super) fn count_sync(&mut self, method: SyncMethod) {
        match method {
            SyncMethod::Fdatasync => self.stats.fdatasyncs += 1,
            SyncMethod::Fsync => self.stats.fsyncs += 1,
            SyncMethod::Msync => self.stats.msyncs += 1,
        }
    }

    /// The directory that holds the path's last name.
    pub(super) fn parent(&self, info: &PathInfo) -> io::Result<Arc<Dir>> {
        self.root.find(&info.parents)
    }

    /// The directory that the path names.
    pub(super) fn dir(&self, info: &PathInfo) -> io::Result<Arc<Dir>> {
        let parent = self.parent(info)?;
        match &info.name {
            None => Ok(parent),
            Some(name) => parent.find(std::slice::from_ref(name)),
        }
    }

    /// The file that the path names.
    pub(super) fn file(&self, info: &PathInfo) -> io::Result<Arc<Inode>> {
        match self.parent(info)?.get(info.name()?) {
            Some(Node::File(file)) => Ok(file),
            Some(Node::Dir(_)) => Err(os(libc::EISDIR)),
            None => Err(os(libc::ENOENT)),
        }
    }

    pub(super) fn set_label_root(&mut self, path: &Path) {
        self.label_root = components(path);
        self.paths.clear();
    }

    /// What is known of a path.
    pub(super) fn info(&mut self, path: &Path) -> Arc<PathInfo> {
        if let Some(info) = self.paths.get(path) {
            return info.clone();
        }
        let mut parents = components(path);
        let class_name =
            class_name(parents.strip_prefix(self.label_root.as_slice()).unwrap_or(&parents));
        let class = match self.class_ids.get(&class_name) {
            Some(class) => *class,
            None => {
                let class = self.classes.len();
                self.classes.push(Class {
                    name: class_name.clone(),
                    calls: [0; CALLS],
                    cuts: [0; CALLS],
                });
                self.class_ids.insert(class_name, class);
                class
            }
        };
        let name = parents.pop();
        let info = Arc::new(PathInfo {
            path: path.to_owned(),
            parents,
            name,
            class,
            written_bytes: AtomicU64::new(0),
            syncs: AtomicU64::new(0),
        });
        self.paths.insert(path.to_owned(), info.clone());
        info
    }

    /// The sum of a counter over all paths that contain `part`.
    pub(super) fn sum(&self, part: &str, counter: impl Fn(&PathInfo) -> &AtomicU64) -> u64 {
        let matching =
            self.paths.values().filter(|info| info.path.to_string_lossy().contains(part));
        matching.map(|info| counter(info).load(Ordering::Relaxed)).sum()
    }

    pub(super) fn calls(&self) -> BTreeMap<String, u64> {
        self.labelled(|class| &class.calls)
    }

    pub(super) fn cuts(&self) -> BTreeMap<String, u64> {
        self.labelled(|class| &class.cuts)
    }

    fn labelled(&self, counters: impl Fn(&Class) -> &[u64; CALLS]) -> BTreeMap<String, u64> {
        let mut labels = BTreeMap::new();
        for class in &self.classes {
            for (call, count) in SimCall::ALL.iter().zip(counters(class)) {
                if *count > 0 {
                    labels.insert(format!("{} {}", call.name(), class.name), *count);
                }
            }
        }
        labels
    }
}

/// The names in a path, `.` and `..` resolved.
fn components(path: &Path) -> Vec<OsString> {
    let mut names = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => names.push(name.to_owned()),
            Component::ParentDir => {
                names.pop();
            }
            Component::Prefix(_) | Component::RootDir | Component::CurDir => {}
        }
    }
    names
}

/// A path as labels print it: each run of digits is a `#`.
fn class_name(names: &[OsString]) -> String {
    let mut class = String::new();
    for name in names {
        if !class.is_empty() {
            class.push('/');
        }
        let mut in_digits = false;
        for letter in name.to_string_lossy().chars() {
            let is_digit = letter.is_ascii_digit();
            if !is_digit {
                class.push(letter);
            } else if !in_digits {
                class.push('#');
            }
            in_digits = is_digit;
        }
    }
    if class.is_empty() {
        class.push('.');
    }
    class
}
