//! One node: a disk, and most of the time a store on it.

use super::checker::QUEUES;
use crate::clock::ManualClock;
use crate::disk::{CutMoment, SimDisk};
use crate::environment::Threads;
use crate::error::{Error, Result};
use crate::log::MessageView;
use crate::replication::primary::{Inquiry, PrimaryReplicator};
use crate::replication::replica::ReplicaReplicator;
use crate::replication::{
    Ack, Epoch, NodeId, NodeOptions, PrimaryOptions, Refusal, ReplicatedLog, Replicator, Role,
};
use crate::{Environment, FlushMode, Store, StoreConfig, Ticket};
use std::sync::Arc;

/// How a life of a node ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Crash {
    /// The process dies; what it wrote is in the page cache.
    Kill,
    PowerCut,
}

/// What an attempt to open a store came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Opened {
    Runs,
    /// Not as a primary without a word from whoever decides that.
    Refused,
    /// The disk fails or is full: it may work another time.
    Failed,
    /// The machine went down meanwhile.
    Crashed(Crash),
}

/// The store's side of a node.
#[derive(Clone)]
pub(super) enum Part {
    Primary(Arc<PrimaryReplicator>),
    Replica(Arc<ReplicaReplicator>),
    /// A primary that asks its replicas what it has lost, before it is one again.
    Inquirer(Arc<Inquiry>),
}

/// A store that is open.
pub(super) struct Running {
    pub(super) store: Store,
    pub(super) part: Part,
    pub(super) log: Arc<dyn ReplicatedLog>,
    /// A primary whose puts wait for nobody: readers see what may yet be taken back.
    pub(super) shows_all: bool,
    /// Where the log ended when this was opened.
    pub(super) began: u64,
    /// Puts that are not answered yet, by the numbers of their messages.
    pub(super) tickets: Vec<(Vec<usize>, Ticket)>,
    /// What is confirmed was looked at up to here.
    pub(super) observed: u64,
    /// How far a consumer has come in each queue.
    pub(super) consumed: [u64; QUEUES],
}

impl Running {
    pub(super) fn role(&self) -> Role {
        match self.part {
            Part::Primary(_) => Role::Primary,
            Part::Replica(_) | Part::Inquirer(_) => Role::Replica,
        }
    }

    pub(super) fn is_replica(&self) -> bool {
        matches!(self.part, Part::Replica(_))
    }

    pub(super) fn newest_epoch(&self) -> Epoch {
        self.log.epochs().last().map_or(Epoch(0), |last| last.epoch)
    }

    pub(super) fn is_latched(&self) -> bool {
        self.store.health().latched.is_some()
    }

    /// Whether it takes puts, and nobody told it of a newer epoch.
    pub(super) fn is_in_office(&self) -> bool {
        matches!(&self.part, Part::Primary(primary)
            if primary.hub().is_some_and(|hub| hub.superseded().is_none()))
    }
}

/// What somebody read in this process and has not let go, and what it was then.
pub(super) struct KeptView {
    pub(super) opening: u64,
    pub(super) view: MessageView,
    pub(super) was: Vec<u8>,
}

/// A node of the cluster.
pub(super) struct Node {
    pub(super) id: NodeId,
    pub(super) disk: SimDisk,
    pub(super) config: StoreConfig,
    pub(super) running: Option<Running>,
    pub(super) openings: u64,
    /// How a life ends of which the disk knows by itself when it ends.
    pub(super) planned: Option<Crash>,
    /// Something may fail because of the disk.
    pub(super) hurt: bool,
    /// What waits for the disk is seldom done.
    pub(super) slow: bool,
    /// Something is planted in the disk, or it is full.
    pub(super) failing: bool,
    /// It may have vouched for what a power cut takes.
    pub(super) fragile: bool,
    /// It was opened as a primary last.
    pub(super) was_primary: bool,
    /// Its newest epoch as a primary.
    pub(super) reign: Epoch,
    pub(super) views: Vec<KeptView>,
    /// It was open without replication, and showed all that it had.
    pub(super) visited: bool,
    clock: Arc<ManualClock>,
}

impl Node {
    pub(super) fn new(
        number: usize,
        disk: SimDisk,
        config: StoreConfig,
        clock: Arc<ManualClock>,
    ) -> Self {
        Self {
            id: NodeId(number as u64 + 1),
            disk,
            config,
            running: None,
            openings: 0,
            planned: None,
            hurt: false,
            slow: false,
            failing: false,
            fragile: false,
            was_primary: false,
            reign: Epoch(0),
            views: Vec::new(),
            visited: false,
            clock,
        }
    }

    pub(super) fn is_async(&self) -> bool {
        matches!(self.config.flush_mode, FlushMode::Async { .. })
    }

    pub(super) fn open_primary(&mut self, options: PrimaryOptions) -> Opened {
        let (clock, shows_all) = (self.clock.clone(), options.ack == Ack::Async);
        let primary = PrimaryReplicator::new(options, clock, Threads::Stepped);
        let fragile = self.is_async();
        self.was_primary = true;
        let opened = self.open(primary.clone(), Part::Primary(primary), fragile);
        if let Some(running) = &mut self.running {
            running.shows_all = shows_all;
            self.reign = running.newest_epoch();
        }
        opened
    }

    /// Opens a primary that lost its tail, to ask `replicas` others for it.
    pub(super) fn open_inquirer(&mut self, options: &NodeOptions, replicas: usize) -> Opened {
        let replica = Arc::new(ReplicaReplicator::default());
        let opened = self.open(replica.clone(), Part::Replica(replica), self.fragile);
        if let Some(running) = &mut self.running {
            let own = (running.log.clone(), running.store.last_reign());
            let inquiry = Inquiry::new(own, options.clone(), replicas, Arc::default());
            running.part = Part::Inquirer(inquiry);
        }
        opened
    }

    /// `vouches`: it acknowledges what is in memory alone.
    pub(super) fn open_replica(&mut self, vouches: bool) -> Opened {
        let replica = Arc::new(ReplicaReplicator::default());
        self.was_primary = false;
        self.open(replica.clone(), Part::Replica(replica), vouches)
    }

    fn open(&mut self, replicator: Arc<dyn Replicator>, part: Part, fragile: bool) -> Opened {
        assert!(self.running.is_none(), "opened twice");
        let environment = self.environment();
        let opened = Store::open_replicated(self.config.clone(), environment, replicator);
        match self.look_at(opened) {
            Ok(store) => {
                let log = match &part {
                    Part::Primary(primary) => primary.hub().expect("it is open").log.clone(),
                    Part::Replica(replica) => replica.log().expect("it is open").clone(),
                    Part::Inquirer(_) => unreachable!("it opens as a replica"),
                };
                self.fragile = fragile;
                let (tickets, observed) = (Vec::new(), log.min_offset());
                let consumed = [0; QUEUES];
                let (shows_all, began) = (false, log.end());
                self.running = Some(Running {
                    store,
                    part,
                    log,
                    shows_all,
                    began,
                    tickets,
                    observed,
                    consumed,
                });
                Opened::Runs
            }
            Err(otherwise) => otherwise,
        }
    }

    /// Opens the store without replication. All that is in the log by then is durable.
    pub(super) fn open_alone(&mut self) -> std::result::Result<Store, Opened> {
        assert!(self.running.is_none(), "opened twice");
        let opened = Store::open_in(self.config.clone(), self.environment());
        let store = self.look_at(opened)?;
        (self.fragile, self.visited) = (false, true);
        Ok(store)
    }

    /// For the next opening.
    fn environment(&mut self) -> Environment {
        self.openings += 1;
        Environment::on(self.disk.shared()).clock(self.clock.clone()).stepped()
    }

    /// The store, if it was opened.
    fn look_at(&mut self, opened: Result<Store>) -> std::result::Result<Store, Opened> {
        if self.disk.is_down() {
            let crash = self.reboot();
            drop(opened);
            return Err(Opened::Crashed(crash));
        }
        let error = match opened {
            Ok(store) => {
                self.hurt = self.failing;
                return Ok(store);
            }
            Err(error) => error,
        };
        if let Error::Refused(Refusal::EpochFell { .. } | Refusal::TailInDoubt) = error {
            return Err(Opened::Refused);
        }
        assert!(self.excuses(&error), "node {} does not open: {error}", self.id.0);
        Err(Opened::Failed)
    }

    /// Whether an error may come of what was done to the disk.
    pub(super) fn excuses(&self, error: &Error) -> bool {
        let of_the_disk = matches!(
            error,
            Error::Io { .. }
                | Error::DiskFull { .. }
                | Error::Latched { .. }
                | Error::Unknown { .. }
        );
        self.hurt && of_the_disk
    }

    /// Lets the disk go down at the `calls`-th call from now.
    pub(super) fn plan(&mut self, crash: Crash, calls: u64, moment: CutMoment) {
        self.planned = Some(crash);
        match crash {
            Crash::Kill => self.disk.kill_at(calls, moment),
            Crash::PowerCut => self.disk.cut_at(calls, moment),
        }
    }

    /// The next life of a machine that went down by itself, or is to go down now.
    fn reboot(&mut self) -> Crash {
        let crash = self.planned.take().expect("a disk goes down as planned");
        self.disk = self.disk.reboot(self.openings);
        self.views.clear();
        crash
    }

    /// Ends this life. What the dead do afterwards reaches no disk.
    pub(super) fn crash(&mut self, crash: Crash, seed: u64) -> Crash {
        let planned = self.planned.take();
        let crash = if self.disk.is_down() { planned.unwrap_or(crash) } else { crash };
        self.disk = match crash {
            Crash::Kill => self.disk.kill(),
            Crash::PowerCut => self.disk.cut_power(seed),
        };
        self.running = None;
        self.views.clear();
        crash
    }

    /// Puts another disk in the place of this one.
    pub(super) fn replace_disk(&mut self, disk: SimDisk) {
        self.disk = disk;
        (self.planned, self.hurt, self.failing, self.fragile) = (None, false, false, false);
        self.visited = false;
    }

    /// Whether what was read before is still what it was.
    pub(super) fn check_views(&self) {
        for KeptView { view, was, .. } in &self.views {
            let at = view.physical_offset();
            assert_eq!(view.body(), was, "a view at {at} became another message");
        }
    }

    /// Closes the store in order; what there is left of it.
    pub(super) fn close(&mut self) -> Option<(Result<()>, Running)> {
        let running = self.running.take()?;
        let closed = running.store.close();
        if closed.is_ok() {
            self.fragile = false;
        }
        Some((closed, running))
    }
}
