//! Directories: names as they are, and as the platter may still have them.

use super::cut::{Dice, Rng};
use super::file::{FileState, Inode};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

#[derive(Clone)]
pub(super) enum Node {
    File(Arc<Inode>),
    Dir(Arc<Dir>),
}

/// What a name once stood for, and the number of the change that ended it.
type Past = (u64, Option<Node>);

/// The names of a directory.
#[derive(Default)]
pub(super) struct Names {
    live: BTreeMap<OsString, Node>,
    /// For each name changed since the last sync, what it stood for before each change; the first is
    /// what the platter holds.
    past: BTreeMap<OsString, Vec<Past>>,
}

#[derive(Default)]
pub(super) struct Dir(Mutex<Names>);

fn os(code: i32) -> io::Error {
    io::Error::from_raw_os_error(code)
}

impl Dir {
    pub(super) fn find(self: &Arc<Self>, path: &[OsString]) -> io::Result<Arc<Dir>> {
        let mut dir = self.clone();
        for name in path {
            dir = match dir.get(name) {
                Some(Node::Dir(dir)) => dir,
                Some(Node::File(_)) => return Err(os(libc::ENOTDIR)),
                None => return Err(os(libc::ENOENT)),
            };
        }
        Ok(dir)
    }

    pub(super) fn get(&self, name: &OsStr) -> Option<Node> {
        self.0.lock().live.get(name).cloned()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.lock().live.is_empty()
    }

    /// The names, in order.
    pub(super) fn entries(&self) -> Vec<(OsString, Node)> {
        self.0.lock().live.iter().map(|(name, node)| (name.clone(), node.clone())).collect()
    }

    /// Gives `name` another meaning; durable with the next sync. What it stood for.
    pub(super) fn set(&self, name: &OsStr, node: Option<Node>, change: u64) -> Option<Node> {
        let mut names = self.0.lock();
        let before = match node {
            Some(node) => names.live.insert(name.to_owned(), node),
            None => names.live.remove(name),
        };
        names.past.entry(name.to_owned()).or_default().push((change, before.clone()));
        before
    }

    /// Gives `name` another meaning that is durable at once.
    pub(super) fn set_durable(&self, name: &OsStr, node: Option<Node>) -> Option<Node> {
        let mut names = self.0.lock();
        names.past.remove(name);
        match node {
            Some(node) => names.live.insert(name.to_owned(), node),
            None => names.live.remove(name),
        }
    }

    /// Makes durable what was changed up to `change`.
    pub(super) fn sync(&self, change: u64) {
        self.0.lock().past.retain(|_, past| {
            past.retain(|(ended, _)| *ended > change);
            !past.is_empty()
        });
    }

    /// Makes some of the changes durable, as a sync does that does not come to its end.
    pub(super) fn sync_partly(&self, rng: &mut Rng) {
        self.0.lock().past.retain(|_, past| {
            past.drain(..rng.below(past.len() + 1));
            !past.is_empty()
        });
    }

    /// Makes of every name, here and below, what a power cut makes of it.
    pub(super) fn survive_cut(&self, generation: u64, dice: &mut Dice) {
        let mut names = self.0.lock();
        for (name, mut past) in std::mem::take(&mut names.past) {
            let kept = dice.changes_kept(past.len());
            if kept < past.len() {
                match past.swap_remove(kept).1 {
                    Some(node) => names.live.insert(name, node),
                    None => names.live.remove(&name),
                };
            }
        }
        for node in names.live.values() {
            match node {
                Node::File(file) => file.state().survive_cut(generation, dice),
                Node::Dir(dir) => dir.survive_cut(generation, dice),
            }
        }
    }

    /// Calls `f` on every file that has, or on the platter may still have, a name here or below; more
    /// than once if it has several.
    pub(super) fn for_each_file(&self, f: &mut impl FnMut(&mut FileState)) {
        let names = self.0.lock();
        let past = names.past.values().flatten().filter_map(|(_, node)| node.as_ref());
        for node in names.live.values().chain(past) {
            match node {
                Node::File(file) => f(&mut file.state()),
                Node::Dir(dir) => dir.for_each_file(f),
            }
        }
    }

    /// Calls `f` with the path below this directory on every name of a file.
    pub(super) fn for_each_name(&self, above: &Path, f: &mut impl FnMut(PathBuf, &mut FileState)) {
        for (name, node) in &self.0.lock().live {
            let path = above.join(name);
            match node {
                Node::File(file) => f(path, &mut file.state()),
                Node::Dir(dir) => dir.for_each_name(&path, f),
            }
        }
    }

    /// Counts the names of each file anew; the pages of all of them.
    pub(super) fn count_links(&self) -> u64 {
        self.0
            .lock()
            .live
            .values()
            .map(|node| match node {
                Node::Dir(dir) => dir.count_links(),
                Node::File(file) => {
                    let mut state = file.state();
                    state.links += 1;
                    if state.links == 1 { state.pages } else { 0 }
                }
            })
            .sum()
    }
}
