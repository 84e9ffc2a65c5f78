//! A primary of another cluster that has the same names for everything: secret, nodes, epochs.
//!
//! A replica that is pointed at it by mistake must keep what it has, whatever the stranger's log looks like
//! by then, and the stranger must go on as if nobody had come.

use super::Simulation;
use super::checker::TOPIC;
use super::network::{Connection, Heard, Side};
use super::node::{Node, Opened, Part};
use crate::clock::Clock;
use crate::disk::SimDisk;
use crate::error::Error;
use crate::replication::primary::PrimarySession;
use crate::replication::replica::ReplicaSession;
use crate::replication::session::SessionError;
use crate::replication::{Ack, Epoch, PrimaryOptions, ReplicatedLog};
use crate::{Message, StoreWorker};

/// More than a greeting takes.
const TURNS: usize = 16;

/// What a replica may not lose by mistake.
fn state(log: &dyn ReplicatedLog) -> impl PartialEq + std::fmt::Debug {
    let marks = [log.min_offset(), log.end(), log.confirmed(), log.promised().0];
    (log.log_id(), log.epochs(), marks)
}

impl Simulation {
    /// Lets a replica that knows of something that is confirmed, now and then, seek its primary where the
    /// stranger is.
    pub(super) fn mistake_primary(&mut self, node: usize) {
        if !self.stranger_rng.one_in(16) {
            return;
        }
        let Some(here) = self.nodes[node].running.as_ref().filter(|one| one.is_replica()) else {
            return;
        };
        let log = here.log.clone();
        if here.is_latched() || log.confirmed() <= log.min_offset() {
            return;
        }
        self.go_on_as_stranger();
        let stranger = self.stranger.as_ref().and_then(|stranger| stranger.running.as_ref());
        let Some(Part::Primary(primary)) = stranger.map(|running| &running.part) else {
            panic!("the stranger runs");
        };
        let hub = primary.hub().expect("it is open").clone();
        let (before, now) = (state(&*log), self.clock.now());
        let at_primary = Box::new(PrimarySession::new(hub.clone(), 1, [1; 16], now));
        let identity = self.identity(node);
        let at_replica = Box::new(ReplicaSession::new(log.clone(), identity, [2; 16], now));
        let mut connection = Connection::new((0, at_primary), (node, at_replica));
        let mut heard = None;
        for side in [Side::Replica, Side::Primary].repeat(TURNS) {
            let said = connection.speak(side, 1, now);
            let most = connection.on_the_way(side.other());
            let ended = said.err().map(|error| (side, error)).or_else(|| {
                match connection.deliver(side.other(), most, now) {
                    Heard::Ended(error) => Some((side.other(), error)),
                    Heard::Order(order) => panic!("{node} is to {order:?} for a stranger"),
                    Heard::Nothing | Heard::Closed => None,
                }
            });
            if let Some((side, error)) = ended {
                connection.end(side, Some(&error));
                if side == Side::Replica {
                    heard.get_or_insert(error);
                }
            }
        }
        assert_eq!(state(&*log), before, "{node} met a stranger");
        let refused = matches!(heard, Some(SessionError::AnotherLog { .. }));
        assert!(refused, "{node} met a stranger: {heard:?}");
        assert_eq!(hub.superseded(), None, "{node} met a stranger");
        self.counts.add("strangers met");
        self.settle(node);
    }

    /// The stranger gets on: its log grows, and forgets what came first.
    fn go_on_as_stranger(&mut self) {
        let mut stranger = match self.stranger.take() {
            Some(stranger) if !self.stranger_rng.one_in(4) => stranger,
            Some(mut stranger) => {
                let closed = stranger.close().map(|(closed, _)| closed);
                closed.expect("it was open").expect("nothing befalls it");
                self.open_stranger(stranger)
            }
            None => {
                let mut settings = self.settings.clone();
                settings.retention = true;
                let (disk, config) = (
                    SimDisk::new(self.stranger_rng.next()),
                    settings.config(&mut self.stranger_rng),
                );
                let node = self.stranger_rng.index(3);
                self.open_stranger(Node::new(node, disk, config, self.clock.clone()))
            }
        };
        let puts = self.stranger_rng.below(40);
        let store = stranger.running.as_mut().map(|running| &running.store).expect("it is open");
        for _ in 0..puts {
            match store.try_submit(Message::new(TOPIC, vec![7; 300])) {
                Ok(_) | Err(Error::SegmentNotReady { .. } | Error::Full) => {}
                Err(error) => panic!("the stranger's put: {error}"),
            }
            for worker in [
                StoreWorker::Upkeep,
                StoreWorker::Flush,
                StoreWorker::Dispatch,
                StoreWorker::Checkpoint,
                StoreWorker::Retention,
            ] {
                store.step(worker);
            }
        }
        self.stranger = Some(stranger);
    }

    /// Opens it like the first primary here, or goes on in its own term.
    fn open_stranger(&mut self, mut stranger: Node) -> Node {
        let mut options = PrimaryOptions::new(self.settings.options(stranger.id)).ack(Ack::Async);
        options.epoch = (stranger.openings == 0).then_some(Epoch::term(1));
        assert_eq!(stranger.open_primary(options), Opened::Runs);
        stranger
    }
}
