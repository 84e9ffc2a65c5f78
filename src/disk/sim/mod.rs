//! A disk in memory that loses what was not synced, and fails on command.
//!
//! [`SimDisk`] is a [`Disk`] for tests of a store, and of services built on one. It keeps for every
//! file what the page cache and what the platter holds, and for every directory the changes of names
//! that no sync has made durable. [`SimDisk::cut_power`] throws away what was not synced, or any part
//! of it; [`SimDisk::kill`] ends the process alone. Everything random follows from seeds, so a failure
//! replays.
//!
//! The fault model: 512-byte sectors are old or new, in any subset, until a sync covers them; lengths
//! likewise; of the changes of one name any first few survive, of different names independently; an
//! `Ok` of a sync is the truth unless a [`Fault`] says otherwise.

mod bits;
mod block;
mod cut;
mod fault;
mod file;
mod handle;
#[cfg(test)]
mod tests;
mod tree;
mod world;

pub use cut::{Cut, CutMoment, Survival};
pub use fault::{Fault, SimCall, SyncFailure};
pub use world::SimStats;

use super::{
    Allocation, DirEntry, Disk, DiskFile, DiskLock, DiskSpace, FileSystemKind, LockError,
    OpenAccess,
};
use block::PAGE;
use file::{FileState, Holder, Inode};
use handle::{SimFile, SimLock};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tree::{Dir, Node};
use world::{End, Gone, Machine, PathInfo, Verdict, World, os};

/// A simulated disk, and one life of the machine that uses it (feature `sim`).
///
/// Clones are handles of the same disk in the same life. [`cut_power`](Self::cut_power),
/// [`kill`](Self::kill) and [`reboot`](Self::reboot) end that life: every call of the [`Disk`] through
/// an old handle, and through files opened by it, then fails with an error that
/// [`is_power_loss`](Self::is_power_loss) knows; regions stay readable but are no file's any more. The
/// handle returned belongs to the next life. Controls, counters and planted faults belong to the disk
/// and outlast its lives.
///
/// Paths may be absolute or not, which makes no difference; only the root exists at first. It cannot grow
/// a file far beyond a region that is still mapped. A power cut may leave a directory that was renamed
/// with both names.
///
/// ```
/// use std::path::Path;
/// # use duralog::disk::{Allocation, Cut, Disk, OpenAccess, SimDisk, SyncMethod};
/// let disk = SimDisk::new(1);
/// let path = Path::new("/journal");
/// let file = disk.create(path, 0, Allocation::Sparse)?;
/// file.write_at(b"kept", 0)?;
/// file.sync(SyncMethod::Fdatasync)?;
/// disk.sync_dir(Path::new("/"))?;
/// file.write_at(b"lost", 512)?;
///
/// let disk = disk.cut_power(Cut::losing_all());
/// assert!(SimDisk::is_power_loss(&file.write_at(b"late", 0).unwrap_err()));
/// let file = disk.open(path, OpenAccess::Read)?;
/// assert_eq!(file.len(), 4);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone)]
pub struct SimDisk {
    machine: Arc<Machine>,
    generation: u64,
}

/// The life of the machine.
impl SimDisk {
    /// An empty disk of 1 TiB. `seed` decides how far a call gets during which the power goes.
    pub fn new(seed: u64) -> Self {
        let machine = Machine::new(seed);
        let generation = machine.lock().generation;
        Self { machine, generation }
    }

    /// This handle as a store wants it.
    pub fn shared(&self) -> Arc<dyn Disk> {
        Arc::new(self.clone())
    }

    /// Whether the error says that the handle's machine was switched off or its process killed.
    pub fn is_power_loss(error: &io::Error) -> bool {
        error.get_ref().is_some_and(|inner| inner.is::<Gone>())
    }

    /// Cuts the power and boots again: what was synced is there, of the rest what `cut` lets survive.
    /// A seed alone is a [`Cut`] too.
    pub fn cut_power(&self, cut: impl Into<Cut>) -> Self {
        self.next_life(End::PowerCut, cut.into())
    }

    /// Kills the process and starts the next one: the page cache stays, as dirty as it was. Once the
    /// power is off this is too late, and the same as [`reboot`](Self::reboot) with seed 0.
    pub fn kill(&self) -> Self {
        let down = self.machine.lock().down;
        self.next_life(down.unwrap_or(End::Kill), Cut::seeded(0))
    }

    /// Starts again after [`cut_at`](Self::cut_at) or [`kill_at`](Self::kill_at) took effect; if
    /// neither has, cuts the power.
    pub fn reboot(&self, cut: impl Into<Cut>) -> Self {
        let down = self.machine.lock().down;
        self.next_life(down.unwrap_or(End::PowerCut), cut.into())
    }

    fn next_life(&self, end: End, cut: Cut) -> Self {
        Self { machine: self.machine.clone(), generation: self.machine.reboot(end, cut) }
    }

    /// Cuts the power at the `n`-th mutating call from now; 1 is the next. That call and all later
    /// ones fail until [`reboot`](Self::reboot). Replaces an earlier plan; a plan ends with the life
    /// it was made in.
    pub fn cut_at(&self, n: u64, moment: CutMoment) {
        self.machine.lock().arm(n, moment, End::PowerCut);
    }

    /// As [`cut_at`](Self::cut_at), but only the process dies.
    pub fn kill_at(&self, n: u64, moment: CutMoment) {
        self.machine.lock().arm(n, moment, End::Kill);
    }

    /// Takes back [`cut_at`](Self::cut_at) and [`kill_at`](Self::kill_at).
    pub fn disarm(&self) {
        self.machine.lock().disarm();
    }

    /// Whether a planned cut or kill took effect and no reboot followed.
    pub fn is_down(&self) -> bool {
        self.machine.lock().down.is_some()
    }
}

/// Faults. They belong to the disk: a reboot does not mend it.
impl SimDisk {
    /// Plants a fault.
    pub fn inject(&self, fault: Fault) {
        self.machine.lock().faults.plant(fault);
    }

    /// Takes out all planted faults.
    pub fn clear_faults(&self) {
        self.machine.lock().faults.clear();
    }

    /// How many calls a planted fault hit so far.
    pub fn faults_fired(&self) -> u64 {
        self.machine.lock().faults.fired
    }

    /// From now on syncs of files and directories do not return (true), or go on (false). A sync that
    /// hangs when its machine goes down returns the error of that.
    pub fn hang_syncs(&self, hang: bool) {
        self.machine.set_hang(hang);
    }

    /// How many syncs hang at this moment.
    pub fn hanging_syncs(&self) -> usize {
        self.machine.lock().hanging
    }

    /// Lets every sync of a file or directory sleep this long.
    pub fn set_sync_latency(&self, latency: Duration) {
        self.machine.lock().latency = latency;
    }

    /// Sets the size of the disk in bytes, which may be less than what is used. Blocks are 4 KiB; those
    /// of a removed file are free once its last handle and region are dropped.
    pub fn set_capacity(&self, bytes: u64) {
        self.machine.lock().capacity = bytes;
    }

    /// Bytes of the disk in use.
    pub fn used(&self) -> u64 {
        self.machine.lock().used
    }

    /// Makes the file system read-only, or writable again. Stores to existing mappings, and syncs, are
    /// not refused.
    pub fn set_read_only(&self, read_only: bool) {
        self.machine.lock().read_only = read_only;
    }

    /// Sets what [`Disk::kind`] answers; at first [`FileSystemKind::Local`].
    pub fn set_kind(&self, kind: FileSystemKind) {
        self.machine.lock().kind = kind;
    }

    /// Lets another process hold the lock on `path`, until [`release_lock`](Self::release_lock) or a
    /// power cut.
    pub fn hold_lock(&self, path: impl AsRef<Path>, pid: u32) -> io::Result<()> {
        let path = path.as_ref();
        if self.inode(path).is_err() {
            self.put_file(path, b"lock")?;
        }
        self.inode(path)?.state().holder = Some(Holder::Foreign(pid));
        Ok(())
    }

    /// Releases the lock on `path`, whoever holds it.
    pub fn release_lock(&self, path: impl AsRef<Path>) -> io::Result<()> {
        self.inode(path.as_ref())?.state().holder = None;
        Ok(())
    }
}

/// Looking at, and tampering with, what the disk holds. None of it counts as a disk call.
impl SimDisk {
    /// All files.
    pub fn files(&self) -> Vec<PathBuf> {
        let mut files = Vec::new();
        let world = self.machine.lock();
        world.root.for_each_name(Path::new("/"), &mut |path, _| files.push(path));
        files
    }

    /// The bytes of a file as a process reads them.
    pub fn bytes(&self, path: impl AsRef<Path>) -> io::Result<Vec<u8>> {
        Ok(self.inode(path.as_ref())?.state().bytes())
    }

    /// The bytes of a file that survive any power cut, provided its name does.
    pub fn durable_bytes(&self, path: impl AsRef<Path>) -> io::Result<Vec<u8>> {
        Ok(self.inode(path.as_ref())?.state().platter_bytes())
    }

    /// How many sectors a power cut would decide about.
    pub fn unsynced_sectors(&self) -> usize {
        let (mut count, mut seen) = (0, BTreeSet::new());
        let world = self.machine.lock();
        world.root.for_each_name(Path::new("/"), &mut |_, state| {
            // A file with two names is one file.
            if seen.insert(std::ptr::from_mut(state)) {
                count += state.unsynced();
            }
        });
        count
    }

    /// Changes the bytes of a file, in the cache and on the platter alike. Regions of it keep the old
    /// bytes and are detached; so this is for between two lives of a store.
    pub fn edit(
        &self,
        path: impl AsRef<Path>,
        change: impl FnOnce(&mut Vec<u8>),
    ) -> io::Result<()> {
        let inode = self.inode(path.as_ref())?;
        let mut bytes = inode.state().bytes();
        change(&mut bytes);
        let mut world = self.machine.lock();
        let mut state = inode.state();
        let before = state.pages * PAGE as u64;
        state.replace(&bytes)?;
        world.used = world.used.saturating_sub(before) + state.pages * PAGE as u64;
        Ok(())
    }

    /// Flips bit `bit` (0 to 7) of the byte at `offset`.
    pub fn flip_bit(&self, path: impl AsRef<Path>, offset: u64, bit: u8) -> io::Result<()> {
        self.edit(path, |bytes| bytes[offset as usize] ^= 1 << bit)
    }

    /// Cuts a file off at `len`.
    pub fn truncate(&self, path: impl AsRef<Path>, len: u64) -> io::Result<()> {
        self.edit(path, |bytes| bytes.truncate(len as usize))
    }

    /// Removes a file for good.
    pub fn drop_file(&self, path: impl AsRef<Path>) -> io::Result<()> {
        let mut world = self.machine.lock();
        let info = world.info(path.as_ref());
        world.file(&info)?;
        let before = world.parent(&info)?.set_durable(info.name()?, None);
        world.unlink(before);
        Ok(())
    }

    /// Puts a durable file there, with the directories on the way to it; replaces what has the name.
    pub fn put_file(&self, path: impl AsRef<Path>, bytes: &[u8]) -> io::Result<()> {
        let mut world = self.machine.lock();
        let info = world.info(path.as_ref());
        let mut dir = world.root.clone();
        for name in &info.parents {
            dir = match dir.get(name) {
                Some(Node::Dir(dir)) => dir,
                Some(Node::File(_)) => return Err(os(libc::ENOTDIR)),
                None => {
                    let below = Arc::<Dir>::default();
                    dir.set_durable(name, Some(Node::Dir(below.clone())));
                    below
                }
            };
        }
        if let Some(Node::Dir(_)) = dir.get(info.name()?) {
            return Err(os(libc::EISDIR));
        }
        let mut state = FileState::new(0, world.generation)?;
        state.replace(bytes)?;
        state.links = 1;
        world.used += state.pages * PAGE as u64;
        let before = dir.set_durable(info.name()?, Some(Node::File(Inode::new(state, &info))));
        world.unlink(before);
        Ok(())
    }

    fn inode(&self, path: &Path) -> io::Result<Arc<Inode>> {
        let mut world = self.machine.lock();
        let info = world.info(path);
        world.file(&info)
    }
}

/// Counters, over all lives of the disk.
///
/// A label is a call and the class of its path: the path below the label root, each run of digits
/// printed as `#`. For instance `sync commitlog/#`. A file that was renamed goes by its new name from
/// then on, however it was opened.
impl SimDisk {
    /// Makes labels relative to `path`. To be set before the calls that it is about.
    pub fn set_label_root(&self, path: impl AsRef<Path>) {
        self.machine.lock().set_label_root(path.as_ref());
    }

    /// How many calls of each label there were.
    pub fn calls(&self) -> BTreeMap<String, u64> {
        self.machine.lock().calls()
    }

    /// How many planned cuts and kills fell at each label.
    pub fn cuts(&self) -> BTreeMap<String, u64> {
        self.machine.lock().cuts()
    }

    /// The sequence number of the last call: how many there were.
    pub fn call_count(&self) -> u64 {
        self.machine.lock().call_count
    }

    /// How many mutating calls there were, so points for a cut.
    pub fn mutations(&self) -> u64 {
        self.machine.lock().mutation_count
    }

    /// What the disk was asked to do.
    pub fn stats(&self) -> SimStats {
        self.machine.stats()
    }

    /// Bytes that `DiskFile::write_at` wrote to paths containing `part`.
    pub fn written_to(&self, part: &str) -> u64 {
        self.machine.lock().sum(part, |info| &info.written_bytes)
    }

    /// Syncs of files whose paths contain `part`.
    pub fn syncs_of(&self, part: &str) -> u64 {
        self.machine.lock().sum(part, |info| &info.syncs)
    }
}

impl fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimDisk").field("life", &self.generation).finish_non_exhaustive()
    }
}

impl SimDisk {
    /// A call on one path.
    fn call<T>(
        &self,
        call: SimCall,
        path: &Path,
        effect: impl FnOnce(&mut World, &Arc<PathInfo>) -> io::Result<T>,
    ) -> io::Result<T> {
        let info = self.machine.lock().info(path);
        self.machine.call(self.generation, call, &info, |world| effect(world, &info))
    }
}

impl World {
    /// A name of a file is gone.
    fn unlink(&mut self, before: Option<Node>) {
        if let Some(Node::File(inode)) = before {
            let mut state = inode.state();
            state.links -= 1;
            self.free_if_gone(&state);
        }
    }

    /// Gives a new file its first name.
    fn link(&mut self, info: &Arc<PathInfo>, mut state: FileState) -> io::Result<Arc<Inode>> {
        state.links = 1;
        let inode = Inode::new(state, info);
        let change = self.next_change();
        self.parent(info)?.set(info.name()?, Some(Node::File(inode.clone())), change);
        Ok(inode)
    }
}

impl Disk for SimDisk {
    fn create(
        &self,
        path: &Path,
        len: u64,
        allocation: Allocation,
    ) -> io::Result<Arc<dyn DiskFile>> {
        self.call(SimCall::Create, path, |world, info| {
            if world.parent(info)?.get(info.name()?).is_some() {
                return Err(os(libc::EEXIST));
            }
            let mut state = FileState::new(len, self.generation)?;
            if allocation == Allocation::Reserved {
                if len.div_ceil(PAGE as u64) > world.free_pages() {
                    return Err(os(libc::ENOSPC));
                }
                world.charged(&mut state, |state| state.reserve(0..len));
            }
            let inode = world.link(info, state)?;
            Ok(SimFile::open(&self.machine, world, inode, OpenAccess::Write))
        })
    }

    fn open(&self, path: &Path, access: OpenAccess) -> io::Result<Arc<dyn DiskFile>> {
        self.call(SimCall::Open, path, |world, info| {
            let inode = world.file(info)?;
            if access == OpenAccess::Write && world.read_only {
                return Err(os(libc::EROFS));
            }
            inode.set_name(info);
            inode.state().apply_reverts();
            Ok(SimFile::open(&self.machine, world, inode, access))
        })
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let from = self.machine.lock().info(from);
        self.call(SimCall::Rename, to, |world, to| {
            let source = world.parent(&from)?;
            let node = source.get(from.name()?).ok_or_else(|| os(libc::ENOENT))?;
            let target = world.parent(to)?;
            match (&node, target.get(to.name()?)) {
                (Node::File(file), Some(Node::File(other))) if Arc::ptr_eq(&other, file) => {
                    return Ok(());
                }
                (Node::Dir(dir), Some(Node::Dir(other))) if Arc::ptr_eq(&other, dir) => {
                    return Ok(());
                }
                (Node::File(_), Some(Node::Dir(_))) => return Err(os(libc::EISDIR)),
                (Node::Dir(_), Some(Node::File(_))) => return Err(os(libc::ENOTDIR)),
                (Node::Dir(_), Some(Node::Dir(other))) if !other.is_empty() => {
                    return Err(os(libc::ENOTEMPTY));
                }
                (Node::Dir(_), _) if to.is_below(&from) => return Err(os(libc::EINVAL)),
                (Node::File(file), _) => file.set_name(to),
                _ => {}
            }
            let (add, remove) = (world.next_change(), world.next_change());
            let replaced = target.set(to.name()?, Some(node), add);
            source.set(from.name()?, None, remove);
            world.unlink(replaced);
            Ok(())
        })
    }

    fn hard_link(&self, from: &Path, to: &Path) -> io::Result<()> {
        let from = self.machine.lock().info(from);
        self.call(SimCall::HardLink, to, |world, to| {
            let inode = world.file(&from)?;
            let target = world.parent(to)?;
            if target.get(to.name()?).is_some() {
                return Err(os(libc::EEXIST));
            }
            inode.state().links += 1;
            let change = world.next_change();
            target.set(to.name()?, Some(Node::File(inode)), change);
            Ok(())
        })
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.call(SimCall::Remove, path, |world, info| {
            world.file(info)?;
            let change = world.next_change();
            let before = world.parent(info)?.set(info.name()?, None, change);
            world.unlink(before);
            Ok(())
        })
    }

    fn create_dir(&self, path: &Path) -> io::Result<bool> {
        self.call(SimCall::CreateDir, path, |world, info| {
            let parent = world.parent(info)?;
            let Some(name) = &info.name else { return Ok(false) };
            match parent.get(name) {
                Some(Node::Dir(_)) => return Ok(false),
                Some(Node::File(_)) => return Err(os(libc::EEXIST)),
                None if world.read_only => return Err(os(libc::EROFS)),
                None => {}
            }
            let change = world.next_change();
            parent.set(name, Some(Node::Dir(Arc::default())), change);
            Ok(true)
        })
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.call(SimCall::RemoveDir, path, |world, info| {
            if !world.dir(info)?.is_empty() {
                return Err(os(libc::ENOTEMPTY));
            }
            let change = world.next_change();
            world.parent(info)?.set(info.name()?, None, change);
            Ok(())
        })
    }

    fn list(&self, path: &Path) -> io::Result<Vec<DirEntry>> {
        self.call(SimCall::List, path, |world, info| {
            let entry = |(name, node): (std::ffi::OsString, Node)| {
                let name = name.to_string_lossy().into_owned();
                match node {
                    Node::File(file) => DirEntry { name, len: file.state().len(), is_dir: false },
                    Node::Dir(_) => DirEntry { name, len: 0, is_dir: true },
                }
            };
            let mut entries: Vec<DirEntry> =
                world.dir(info)?.entries().into_iter().map(entry).collect();
            entries.sort_by(|a, b| a.name.cmp(&b.name));
            Ok(entries)
        })
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let mut world = self.machine.lock();
        let info = world.info(path);
        let (mut world, verdict) =
            self.machine.enter(world, self.generation, SimCall::SyncDir, &info)?;
        let dir = world.dir(&info);
        match verdict {
            Verdict::Fail(fault) => return Err(fault.error()),
            Verdict::Middle => {
                if let Ok(dir) = dir {
                    dir.sync_partly(&mut world.rng);
                }
                return Err(self.machine.fall(&mut world));
            }
            Verdict::Go => {}
        }
        world.stats.dir_syncs += 1;
        let (dir, covered) = (dir?, world.changes);
        if world.hang || !world.latency.is_zero() {
            world = self.machine.spend_sync(world, self.generation)?;
        }
        dir.sync(covered);
        drop(world);
        Ok(())
    }

    fn lock(&self, path: &Path) -> Result<DiskLock, LockError> {
        let taken = self.call(SimCall::Lock, path, |world, info| {
            let inode = match world.file(info) {
                Ok(inode) => inode,
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    let state = FileState::new(0, self.generation)?;
                    world.link(info, state)?
                }
                Err(e) => return Err(e),
            };
            let mut state = inode.state();
            match state.holder {
                Some(Holder::Own) => {
                    return Ok(Err(LockError::Held { pid: Some(std::process::id()) }));
                }
                Some(Holder::Foreign(pid)) => return Ok(Err(LockError::Held { pid: Some(pid) })),
                None => {}
            }
            state.make_room(8)?;
            if state.fitting(4, 4, world.free_pages()) < 4 {
                return Err(os(libc::ENOSPC));
            }
            world.charged(&mut state, |state| state.write(4, b" sim"))?;
            state.holder = Some(Holder::Own);
            drop(state);
            let lock: DiskLock =
                Box::new(SimLock::new(self.machine.clone(), self.generation, inode));
            Ok(Ok(lock))
        });
        taken.map_err(LockError::Io)?
    }

    fn space(&self, path: &Path) -> io::Result<DiskSpace> {
        self.call(SimCall::Space, path, |world, _| {
            Ok(DiskSpace { total: world.capacity, available: world.room() })
        })
    }

    fn kind(&self, _path: &Path) -> io::Result<FileSystemKind> {
        let world = self.machine.lock();
        world.check_alive(self.generation)?;
        Ok(world.kind)
    }
}
