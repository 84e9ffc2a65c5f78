//! Whoever decides which node is the primary: an operator, or a service that others agree on.
//!
//! With `n` replicas configured and `k` of them needed to confirm, a failover begins a term and fences
//! `n - k + 1` replicas with it. What is confirmed lies on `k + 1` nodes, so one of those fenced has it.
//! The rules:
//!
//! - Only replicas are fenced: a primary that still runs goes on confirming, whatever it has promised.
//! - Where a node stands is what it said when it was fenced, after it had made that durable.
//! - A node does not count if it was switched off after it had vouched for what that takes, as a primary
//!   does under async flush and a replica whose acks mean memory, until it has entered an epoch that has
//!   begun since.
//! - A node with a new disk does not count either, and has forgotten what it promised: it is fenced with
//!   the newest term before it follows anyone.
//! - A primary may be opened again without asking anybody, in its term or in a new one, unless it was
//!   switched off like that: then it asks the replicas for what it lacks, or becomes one.

use super::Simulation;
use super::network::{NODES, Side};
use super::node::{Crash, Opened, Part};
use crate::Store;
use crate::replication::history::History;
use crate::replication::{Ack, Epoch, PrimaryOptions, Role};
use std::time::Duration;

/// What it has decided.
#[derive(Debug, Default)]
pub(super) struct Authority {
    /// The newest term.
    term: u32,
    /// No epoch that anyone has begun is newer.
    newest: Epoch,
    /// The node that was chosen last, and has been opened.
    pub(super) primary: Option<usize>,
    /// Where those stand that are fenced with the newest term, while it is nobody's yet.
    failover: Option<[Option<(Epoch, u64)>; NODES]>,
    /// The newest epoch when a node lost what it had vouched for.
    lost: [Option<Epoch>; NODES],
    /// The epoch of which a primary lost something, and has to say so.
    doubted: [Option<Epoch>; NODES],
    /// It has not run since.
    cut: [bool; NODES],
    /// Those that have a new disk, and have promised nothing yet.
    new: [bool; NODES],
}

impl Simulation {
    /// Whether a power cut may take what a node has vouched for.
    fn is_fragile(&self) -> bool {
        self.nodes.iter().any(|node| node.is_async()) || self.settings.in_memory()
    }

    /// Whether this node can be switched off, now or soon, without more being lost than the policy bears.
    pub(super) fn bears_power_cut(&mut self, node: usize) -> bool {
        !self.is_fragile() || self.bears_loss(node)
    }

    /// Whether this node may lose what it has vouched for: of what is confirmed there are as many copies
    /// beside one as are needed to confirm it.
    pub(super) fn bears_loss(&mut self, node: usize) -> bool {
        (0..NODES).for_each(|node| _ = self.counts_in_failover(node));
        let fragile = self.is_fragile();
        let lost = (0..NODES).filter(|other| {
            let planned = fragile && self.nodes[*other].planned == Some(Crash::PowerCut);
            *other != node && (self.authority.lost[*other].is_some() || planned)
        });
        lost.count() < self.settings.needed
    }

    /// To be told of every power cut.
    pub(super) fn note_power_cut(&mut self, node: usize) {
        if self.nodes[node].fragile {
            self.note_loss(node);
            let settings = &self.settings;
            let waits = settings.ack == Ack::Sync && !settings.mixed && !settings.in_memory();
            if waits && self.nodes[node].was_primary {
                self.authority.doubted[node] = Some(self.nodes[node].reign);
                self.authority.cut[node] = true;
            }
            self.counts.add("power cuts after more was vouched for");
        }
    }

    /// To be told when a node loses what it may have vouched for.
    pub(super) fn note_loss(&mut self, node: usize) {
        self.authority.lost[node] = Some(self.authority.newest);
    }

    /// To be told when a node gets a new disk.
    pub(super) fn note_new_disk(&mut self, node: usize) {
        self.authority.doubted[node] = None;
        self.authority.new[node] = true;
        if let Some(fenced) = &mut self.authority.failover {
            fenced[node] = None;
        }
    }

    pub(super) fn has_lost(&self, node: usize) -> bool {
        self.authority.lost[node].is_some()
    }

    /// Whether a node counts among those fenced.
    fn counts_in_failover(&mut self, node: usize) -> bool {
        let Some(running) = &self.nodes[node].running else { return false };
        // All that comes before an epoch that it has entered is to be safe there, too.
        let last = History::of(&*running.log).last_reign_in(None);
        let last = Some(last).filter(|last| last.start <= running.log.durable());
        let has_come_to = |lost: Epoch| last.is_some_and(|last| last.epoch > lost);
        self.authority.lost[node].take_if(|lost| has_come_to(*lost));
        self.authority.doubted[node].take_if(|own| has_come_to(*own));
        if self.authority.doubted[node].is_some() {
            assert!(running.log.in_doubt(), "{node} vouches for what it has lost");
        }
        running.is_replica() && self.authority.lost[node].is_none()
    }

    /// The primary of now, where it runs and is in office.
    pub(super) fn acting_primary(&self) -> Option<usize> {
        let node = self.authority.primary?;
        self.nodes[node].running.as_ref()?.is_in_office().then_some(node)
    }

    /// One decision, or a part of one.
    pub(super) fn decide(&mut self) {
        if self.authority.failover.is_some() {
            let node = self.rng.index(NODES);
            if !self.rng.one_in(3) || !self.promote() {
                self.fence(node);
            }
            return;
        }
        match self.acting_primary() {
            Some(_) if !self.rng.one_in(8) => {}
            _ if self.rng.one_in(2) => drop(self.reinstate()),
            _ => self.begin_failover(),
        }
    }

    fn begin_term(&mut self) -> Epoch {
        self.authority.term += 1;
        self.authority.failover = None;
        Epoch::term(self.authority.term)
    }

    pub(super) fn begin_failover(&mut self) {
        let term = self.begin_term();
        self.authority.failover = Some([None; NODES]);
        self.trace(|_| format!("failover to {term:?}"));
    }

    /// Fences a node, and hears where it stands.
    pub(super) fn fence(&mut self, node: usize) {
        let outstanding = self.authority.failover.is_some_and(|fenced| fenced[node].is_none());
        if !outstanding || !self.counts_in_failover(node) {
            return;
        }
        self.leave_primary(node);
        let term = Epoch::term(self.authority.term);
        let Some(running) = &self.nodes[node].running else { return };
        // It may have been killed when it was about to answer.
        let kept = running.log.promised() == term;
        let promised = if kept { Ok(()) } else { running.log.promise(term) };
        let fenced = promised.and_then(|()| running.store.flush());
        let standing = running.store.given();
        if !self.settle(node) {
            return;
        }
        match fenced {
            Ok(()) => {
                self.counts.add("replicas fenced");
                self.trace(|_| format!("{node} is fenced at {standing:?}"));
                if let Some(fenced) = &mut self.authority.failover {
                    fenced[node] = Some(standing);
                }
            }
            Err(error) => assert!(self.nodes[node].excuses(&error), "not fenced: {error}"),
        }
    }

    /// Makes the node with the most the primary, if enough are fenced; whether it did.
    pub(super) fn promote(&mut self) -> bool {
        let Some(fenced) = self.authority.failover else { return false };
        let standings = fenced.iter().enumerate().filter_map(|(node, one)| Some(((*one)?, node)));
        let standings: Vec<_> = standings.collect();
        if standings.len() < NODES - self.settings.needed {
            return false;
        }
        let Some((_, node)) = standings.iter().max().copied() else { return false };
        if !self.nodes[node].running.as_ref().is_some_and(|running| running.is_replica()) {
            return false;
        }
        self.trace(|_| format!("{node} is promoted of {standings:?}"));
        self.authority.failover = None;
        self.counts.add("failovers");
        let term = Epoch::term(self.authority.term);
        self.stop(node) && self.open_primary(node, Some(term)) == Opened::Runs
    }

    /// Opens the primary of now again, as primary; whether it did.
    pub(super) fn reinstate(&mut self) -> bool {
        let Some(node) = self.authority.primary else { return false };
        if self.nodes[node].running.is_some() {
            return false;
        }
        if self.has_lost(node) {
            let knows = self.nodes[node].is_async() && !self.authority.new[node];
            // One that vouched for nothing has no doubts.
            let doubts = knows && self.settings.ack == Ack::Sync && !self.settings.mixed;
            if doubts && self.rng.one_in(2) {
                // Refused, unless it has everything after all.
                self.open_primary(node, None);
            }
            if self.nodes[node].running.is_none() {
                self.inquire(node);
            }
            return false;
        }
        let mut opened = Opened::Refused;
        if self.rng.one_in(2) {
            opened = self.open_primary(node, None);
        }
        if opened == Opened::Refused {
            let term = self.begin_term();
            opened = self.open_primary(node, Some(term));
        }
        assert_ne!(opened, Opened::Refused, "a primary is refused a term of its own");
        self.counts.add_if(opened == Opened::Runs, "primaries reinstated");
        opened == Opened::Runs
    }

    /// Opens a store as primary, in a term of its own or in the one it was in.
    fn open_primary(&mut self, node: usize, epoch: Option<Epoch>) -> Opened {
        let waits_for_nobody = self.settings.mixed && self.rng.one_in(3);
        let ack = if waits_for_nobody { Ack::Async } else { self.settings.ack };
        let mut options = PrimaryOptions::new(self.settings.options(self.nodes[node].id))
            .ack(ack)
            .min_insync_replicas(self.settings.needed)
            .strict(self.settings.strict);
        options.epoch = epoch;
        options.ack_level = self.settings.level;
        options.max_replica_lag = self.settings.max_lag;
        let opened = self.nodes[node].open_primary(options);
        // Where it crashed meanwhile it may have begun.
        let next = Epoch(self.authority.newest.0 + 1);
        self.authority.newest = epoch.unwrap_or(next).max(next);
        self.trace(|_| format!("{node} is primary in {epoch:?}: {opened:?}"));
        if !self.note_opened(node, opened) {
            return if opened == Opened::Runs { Opened::Failed } else { opened };
        }
        let running = self.nodes[node].running.as_ref().expect("it was opened");
        self.authority.doubted[node] = None;
        if epoch.is_some() || self.authority.primary == Some(node) {
            self.checker.holds_all(&*running.log);
            self.authority.primary = Some(node);
            self.authority.lost[node] = None;
        }
        Opened::Runs
    }

    /// Lets a primary ask its replicas for what it lost.
    fn inquire(&mut self, node: usize) {
        let options = self.settings.options(self.nodes[node].id);
        let opened = self.nodes[node].open_inquirer(&options, NODES - self.settings.needed);
        self.note_opened(node, opened);
        self.counts.add("inquiries");
    }

    /// Sees what came of an inquiry.
    pub(super) fn conclude(&mut self, node: usize) {
        let Some(running) = &self.nodes[node].running else { return };
        let Part::Inquirer(inquiry) = &running.part else { return };
        let Ok(outcome) = inquiry.wait(Duration::ZERO) else { return };
        let newest = running.newest_epoch();
        self.trace(|_| format!("{node} has heard enough: {outcome:?}"));
        let stopped = self.close(node);
        if outcome.is_err() || !stopped || self.authority.primary != Some(node) {
            return;
        }
        let opened = self.open_primary(node, Some(Epoch(newest.0 + 1)));
        self.counts.add_if(opened == Opened::Runs, "primaries that got back what they lost");
    }

    /// Restarts a node that is down, as whatever it may be.
    pub(super) fn restart(&mut self, node: usize) {
        let is_primary = self.authority.primary == Some(node);
        if is_primary && self.rng.one_in(2) && self.reinstate() {
            return;
        }
        let was_primary = self.nodes[node].was_primary && !self.has_lost(node);
        if !is_primary && was_primary && self.rng.one_in(2) {
            // It does not know any better.
            let opened = self.open_primary(node, None);
            self.counts.add_if(opened == Opened::Runs, "old primaries back as primaries");
        }
        if self.nodes[node].running.is_none() {
            self.open_replica(node);
        }
    }

    /// Makes a primary that is none any more a replica.
    pub(super) fn demote(&mut self, node: usize) {
        let is_primary = self.authority.primary == Some(node);
        let Some(running) = &self.nodes[node].running else { return };
        if is_primary || running.role() == Role::Replica && running.is_replica() {
            return;
        }
        self.counts.add("old primaries made replicas");
        if self.stop(node) {
            self.open_replica(node);
        }
    }

    /// Ends a store in one of the ways in which that is done; whether nothing came between.
    pub(super) fn stop(&mut self, node: usize) -> bool {
        if self.rng.one_in(2) {
            return self.close(node);
        }
        self.crash(node, Crash::Kill);
        true
    }

    pub(super) fn open_replica(&mut self, node: usize) {
        let opened = self.nodes[node].open_replica(self.settings.in_memory());
        self.note_opened(node, opened);
    }

    /// Fences a node that is new to the cluster; whether it may follow someone.
    pub(super) fn introduce(&mut self, node: usize) -> bool {
        if !self.authority.new[node] {
            return true;
        }
        let term = Epoch::term(self.authority.term);
        let Some(running) = &self.nodes[node].running else { return false };
        let introduced = running.log.promise(term).is_ok() || running.log.promised() >= term;
        if self.settle(node) {
            self.authority.new[node] = !introduced;
        }
        !self.authority.new[node]
    }

    /// A node is opened without replication, and may put something: its epochs need not be known.
    pub(super) fn note_visit(&mut self, node: usize, store: &Store) {
        self.note_recovery(node, store);
        self.authority.newest.0 += 1 << 20;
    }

    fn note_recovery(&mut self, node: usize, store: &Store) {
        let report = store.recovery();
        if std::mem::take(&mut self.authority.cut[node]) && !report.unclean {
            // The power went when all was closed.
            self.authority.doubted[node] = None;
        }
        self.counts.add_if(report.finished_cut.is_some(), "cuts carried out");
    }

    pub(super) fn note_opened(&mut self, node: usize, opened: Opened) -> bool {
        match opened {
            Opened::Runs => {
                let store = self.nodes[node].running.as_ref().map(|one| one.store.clone());
                if let Some(store) = store {
                    self.note_recovery(node, &store);
                }
                self.counts.add("opened");
            }
            Opened::Refused => self.counts.add("refused to be primary"),
            Opened::Failed => self.counts.add("failed to open"),
            Opened::Crashed(crash) => {
                self.counts.add("crashed while it opened");
                if std::mem::take(&mut self.authority.cut[node]) {
                    // Whether all was closed when the power went is not known any more.
                    self.authority.doubted[node] = None;
                }
                if crash == Crash::PowerCut {
                    self.note_power_cut(node);
                }
            }
        }
        opened == Opened::Runs && self.settle(node)
    }

    /// Ends the session with whoever is this replica's primary.
    pub(super) fn leave_primary(&mut self, node: usize) {
        if let Some(at) = self.network.of_replica(node) {
            self.network.connections[at].end(Side::Replica, None);
        }
    }
}
