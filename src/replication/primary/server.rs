//! The connections of a primary and the threads that serve them.

use super::bells::Bells;
use crate::clock::Clock;
use crate::error::{Error, IoContext, IoOp, Result};
use crate::replication::Epoch;
use crate::replication::events::{Event, host};
use crate::replication::group::SessionId;
use crate::replication::link::{Ended, Link};
use crate::replication::net::{Acceptor, Stream};
use crate::replication::options::{NodeOptions, Protocol};
use crate::replication::session::{Session, SessionError};
use crate::worker::{Alarm, Doorbell, Next, Worker};
use parking_lot::Mutex;
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const ACCEPT_THREAD: &str = "duralog-ha-accept";
const RECEIVE_THREAD: &str = "duralog-ha-recv";
const SEND_THREAD: &str = "duralog-ha-send";
const WATCH_THREAD: &str = "duralog-ha-watch";
/// Connections at a time, and how many of them may be those of peers that have yet to introduce
/// themselves, for each protocol.
const CONNECTIONS_MAX: usize = 256;
const STRANGERS_MAX: usize = 32;
/// How long a peer may take to introduce itself.
const HANDSHAKE_MAX: Duration = Duration::from_secs(5);
/// How long a peer may take to hear why the connection ends.
const FAREWELL_MAX: Duration = Duration::from_secs(1);
/// A listener that fails is tried again after so long.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
/// How long a session may be at its disk before its connection ends without it.
const LEAVE_MAX: Duration = Duration::from_millis(100);
/// How long all threads together may take to end.
const STOP_MAX: Duration = Duration::from_secs(5);

/// Makes the session of a connection that was accepted from an address.
pub(super) type MakeSession = Box<
    dyn Fn(SessionId, Protocol, &str, Instant) -> Result<Box<dyn Session>, SessionError>
        + Send
        + Sync,
>;

/// What is served, and how.
pub(super) struct Service {
    pub(super) node: NodeOptions,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) bells: Arc<Bells>,
    /// How long a sender rests after work, rather than be woken for each put.
    pub(super) rest: Option<Duration>,
    pub(super) make: MakeSession,
    /// The newer epoch that ended this primary's, if there is one.
    pub(super) superseded: Box<dyn Fn() -> Option<Epoch> + Send + Sync>,
    /// The newest one that the observer was told of.
    pub(super) told: AtomicU64,
}

/// A connection that is served.
struct Served {
    link: Arc<Link>,
    workers: [Worker; 2],
    id: SessionId,
    protocol: Protocol,
    /// When its farewell ends, said or not.
    gone_by: Option<Instant>,
}

/// All listeners and connections.
pub(super) struct Server {
    service: Arc<Service>,
    listeners: Mutex<Vec<(Arc<dyn Acceptor>, Worker)>>,
    served: Arc<Mutex<Vec<Served>>>,
    watch: Mutex<Option<Worker>>,
    watch_bell: Doorbell,
    next_id: AtomicU64,
    stopped: AtomicBool,
}

impl Server {
    pub(super) fn start(service: Service) -> Result<Arc<Self>> {
        let service = Arc::new(service);
        let (bell, heard) = Doorbell::new();
        let served: Arc<Mutex<Vec<Served>>> = Arc::default();
        let (watched, told) = (served.clone(), service.clone());
        let watch = Worker::spawn(
            WATCH_THREAD,
            (bell.clone(), heard),
            move || watch_step(&watched, &told),
            |_| {},
        );
        Ok(Arc::new(Self {
            service,
            listeners: Mutex::default(),
            served,
            watch: Mutex::new(Some(watch.at(IoOp::Create, Path::new(WATCH_THREAD))?)),
            watch_bell: bell,
            next_id: AtomicU64::new(1),
            stopped: AtomicBool::new(false),
        }))
    }

    /// Serves whoever connects to `acceptor` from now on.
    pub(super) fn serve(
        self: &Arc<Self>,
        acceptor: Arc<dyn Acceptor>,
        protocol: Protocol,
    ) -> Result<()> {
        let (server, listening) = (Arc::downgrade(self), acceptor.clone());
        let (clock, patience) =
            (self.service.clock.clone(), self.service.node.housekeeping_interval);
        let step = move || {
            // The server is not held while this waits: whoever drops it joins this thread.
            let accepted = listening.accept(patience);
            let Some(server) = server.upgrade().filter(|server| !server.is_stopped()) else {
                return Next::Idle;
            };
            match accepted {
                Ok(stream) => server.connected(stream, protocol),
                Err(error) => {
                    let (peer, error) = (String::new(), error.into());
                    server.service.node.observer.tell(&Event::Ended { peer, error });
                    return Next::At(clock.now() + ACCEPT_RETRY);
                }
            }
            Next::Now
        };
        let mut listeners = self.listeners.lock();
        if self.is_stopped() {
            // The others were taken away, or are about to be: nobody would take this one.
            return Err(Error::Closed);
        }
        let worker = Worker::spawn(ACCEPT_THREAD, Doorbell::new(), step, |_| {});
        listeners.push((acceptor, worker.at(IoOp::Create, Path::new(ACCEPT_THREAD))?));
        Ok(())
    }

    fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }

    /// Serves one connection. One too many is closed without a word.
    fn connected(&self, stream: Stream, protocol: Protocol) {
        let peer = stream.peer.clone();
        if let Err(error) = self.serve_stream(stream, protocol) {
            self.service.node.observer.tell(&Event::Ended { peer, error });
        }
    }

    fn serve_stream(&self, stream: Stream, protocol: Protocol) -> Result<(), SessionError> {
        let service = &self.service;
        // However fast they come, no more are left behind than can be put away.
        put_away(&self.served, service);
        let mut served = self.served.lock();
        make_room(&served, protocol);
        let refused = match self.is_stopped() {
            true => Some(SessionError::Stopped),
            false => (served.len() >= CONNECTIONS_MAX).then_some(SessionError::Crowded),
        };
        if let Some(error) = refused {
            (stream.hang_up)();
            return Err(error);
        }
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (clock, now) = (service.clock.clone(), service.clock.now());
        let session = (service.make)(id, protocol, &stream.peer, now)?;
        let (bell, heard) = Doorbell::new();
        let alarm = Arc::new(Alarm::default());
        alarm.connect(bell.clone());
        let handshake = match protocol {
            Protocol::Duralog => HANDSHAKE_MAX,
            // A slave of RocketMQ's says nothing before its heartbeat is due.
            Protocol::Rocketmq => service.node.housekeeping_interval,
        };
        let (link, mut reading, mut writing) =
            Link::new(session, clock, stream, alarm.clone(), handshake, service.rest);
        let (sending, receiving) = (link.clone(), link.clone());
        let watch = self.watch_bell.clone();
        let send = move || {
            let next = sending.send_step(&mut writing);
            if sending.is_said() {
                watch.ring();
            }
            next
        };
        let (watch, observer) = (self.watch_bell.clone(), service.node.observer.clone());
        let mut greeted = false;
        let receive = move || {
            let next = receiving.receive_step(&mut reading);
            if receiving.is_over() {
                watch.ring();
            } else if !greeted && receiving.is_introduced() {
                greeted = true;
                observer.tell(&Event::Connected { peer: receiving.peer.clone() });
                if let Some(node) = receiving.node() {
                    observer.tell(&Event::Joined { node });
                }
            }
            next
        };
        let panicked = |link: &Arc<Link>, bell: &Doorbell| {
            let (link, bell) = (link.clone(), bell.clone());
            move |error| {
                link.end(Ended::Error(SessionError::Log(error)));
                link.set_said();
                bell.ring();
            }
        };
        let sender =
            Worker::spawn(SEND_THREAD, (bell, heard), send, panicked(&link, &self.watch_bell))?;
        let receiver = Worker::spawn(
            RECEIVE_THREAD,
            Doorbell::new(),
            receive,
            panicked(&link, &self.watch_bell),
        );
        let receiver = match receiver {
            Ok(receiver) => receiver,
            Err(error) => {
                link.end(Ended::Error(SessionError::Stopped));
                link.hang_up();
                let mut sender = sender;
                let _ = sender.stop(STOP_MAX);
                return Err(error.into());
            }
        };
        service.bells.add(id, alarm);
        let workers = [receiver, sender];
        served.push(Served { link, workers, id, protocol, gone_by: None });
        drop(served);
        self.watch_bell.ring();
        Ok(())
    }

    /// Ends every connection, and joins every thread, but for those that hang.
    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        // All of them together, or each one that hangs would be waited for in turn.
        let clock = &self.service.clock;
        let within = |max| {
            let end = clock.now() + max;
            move || end.saturating_duration_since(clock.now())
        };
        let left = within(STOP_MAX);
        for (acceptor, mut worker) in std::mem::take(&mut *self.listeners.lock()) {
            acceptor.close();
            // Left behind if the acceptor does not hear: it holds nothing.
            let _ = worker.stop(left());
        }
        if let Some(mut watch) = self.watch.lock().take() {
            let _ = watch.stop(left());
        }
        let served = std::mem::take(&mut *self.served.lock());
        let until_said = within(FAREWELL_MAX);
        for one in &served {
            one.link.end_within(Ended::Error(SessionError::Stopped), until_said());
        }
        for one in &served {
            one.link.wait_said(until_said());
        }
        for one in &served {
            one.link.hang_up();
        }
        for one in served {
            one.close(&self.service, left);
        }
    }
}

impl Served {
    /// Whether the peer has yet to introduce itself.
    fn is_stranger(&self) -> bool {
        !self.link.is_over() && !self.link.is_introduced()
    }

    /// When it is to be gone, unless something happens before.
    fn due(&mut self, now: Instant) -> Option<Instant> {
        if self.link.is_over() {
            return Some(*self.gone_by.get_or_insert(now + FAREWELL_MAX));
        }
        self.is_stranger().then_some(self.link.introduced_by)
    }

    /// Ends a connection of which nothing came for too long.
    fn give_up(&self) {
        self.link.end_within(Ended::Error(SessionError::Silent), LEAVE_MAX);
        self.link.hang_up();
    }

    /// Joins the threads of a connection that has ended, as far as there is time left.
    fn close(mut self, service: &Service, left: impl Fn() -> Duration) {
        self.link.hang_up();
        service.bells.remove(self.id);
        for worker in &mut self.workers {
            // A thread that hangs in the system holds its link, and nothing of the store.
            let _ = worker.stop(left());
        }
    }
}

/// Lets whoever has taken longest to introduce itself make room for whoever comes, of those from the
/// host with the most of them: otherwise those who never do would keep out those who do.
fn make_room(served: &[Served], protocol: Protocol) {
    let strangers = served.iter().filter(|one| one.is_stranger() && one.protocol == protocol);
    if strangers.clone().count() < STRANGERS_MAX {
        return;
    }
    let mut hosts: BTreeMap<&str, usize> = BTreeMap::new();
    strangers.clone().for_each(|one| *hosts.entry(host(&one.link.peer)).or_default() += 1);
    let worst = strangers.max_by_key(|one| {
        (hosts.get(host(&one.link.peer)).copied(), Reverse(one.link.introduced_by))
    });
    if let Some(worst) = worst {
        worst.give_up();
    }
}

/// Puts away what has ended, and ends what did not introduce itself, or does not hear the last word.
fn watch_step(served: &Mutex<Vec<Served>>, service: &Service) -> Next {
    put_away(served, service);
    let (now, mut next) = (service.clock.now(), None);
    for one in served.lock().iter_mut() {
        match one.due(now) {
            Some(due) if due <= now => one.give_up(),
            Some(due) => next = Some(next.map_or(due, |next: Instant| next.min(due))),
            None => {}
        }
    }
    next.map_or(Next::Idle, Next::At)
}

/// Puts away what has ended.
fn put_away(served: &Mutex<Vec<Served>>, service: &Service) {
    let gone: Vec<_> = served.lock().extract_if(.., |one| one.link.is_said()).collect();
    for one in gone {
        if let Some(Ended::Error(error)) = one.link.ended() {
            let (peer, observer) = (one.link.peer.clone(), &service.node.observer);
            if let Some(by) = (service.superseded)()
                && service.told.fetch_max(by.0, Ordering::Relaxed) < by.0
            {
                // Whoever hears of it may close the primary: no session is held by now.
                observer.tell(&Event::Superseded { by });
            }
            observer.tell(&Event::Ended { peer, error });
        }
        one.close(service, || STOP_MAX);
    }
}
