//! The thread that keeps a replica connected, and its log in line with the primary's.

use super::replicator::ReplicaReplicator;
use super::session::{Identity, ReplicaSession};
use super::{Event, ReplicaState, Standing};
use crate::config::StoreConfig;
use crate::environment::Environment;
use crate::error::{Error, IoContext, IoOp, Result};
use crate::replication::link::{Ended, Link, Reading};
use crate::replication::options::{Protocol, ReplicaOptions};
use crate::replication::rocketmq::SlaveSession;
use crate::replication::secret::random;
use crate::replication::session::{Change, Order, Session, SessionError};
use crate::replication::{Epoch, ReplicatedLog};
use crate::store::Store;
use crate::worker::{Doorbell, Next, Worker};
use parking_lot::Mutex;
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const RECEIVE_THREAD: &str = "duralog-replica";
const SEND_THREAD: &str = "duralog-acks";
/// How long a connection may take to come about.
const CONNECT_MAX: Duration = Duration::from_secs(5);
const STOP_MAX: Duration = Duration::from_secs(10);

/// What the following thread and the replica's handle share.
struct Shared {
    config: StoreConfig,
    environment: Environment,
    options: ReplicaOptions,
    identity: Identity,
    state: Mutex<State>,
    /// Held while the store is closed and opened again.
    reopening: Mutex<()>,
    /// Held by whoever asks for a promise.
    fencing: Mutex<()>,
    stopped: AtomicBool,
    /// The thread asks the connector, and holds nothing of the store.
    connecting: AtomicBool,
}

struct State {
    store: Store,
    log: Arc<dyn ReplicatedLog>,
    replicator: Arc<ReplicaReplicator>,
    link: Option<Arc<Link>>,
    last_error: Option<SessionError>,
}

/// A connection that is followed.
struct Followed {
    link: Arc<Link>,
    reading: Reading,
    sender: Worker,
    greeted: bool,
}

/// Keeps a replica in line with its primary.
pub(super) struct Follower {
    shared: Arc<Shared>,
    worker: Mutex<Option<Worker>>,
    bell: Doorbell,
}

impl fmt::Debug for Follower {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Follower")
            .field("options", &self.shared.options)
            .field("state", &self.state())
            .finish_non_exhaustive()
    }
}

impl Follower {
    pub(super) fn start(
        config: StoreConfig,
        environment: Environment,
        options: ReplicaOptions,
    ) -> Result<Self> {
        let node = &options.node;
        let identity = Identity {
            cluster: node.cluster,
            node: node.node,
            instance: u64::from_be_bytes(random()?),
            secret: node.secret.clone(),
            heartbeat: node.heartbeat_interval,
        };
        let state = open(&config, &environment)?;
        let shared = Arc::new(Shared {
            config,
            environment,
            options,
            identity,
            state: Mutex::new(state),
            reopening: Mutex::new(()),
            fencing: Mutex::new(()),
            stopped: AtomicBool::new(false),
            connecting: AtomicBool::new(false),
        });
        let (bell, heard) = Doorbell::new();
        let (stepped, told) = (shared.clone(), shared.clone());
        let mut following = Following {
            followed: None,
            pause: shared.options.retry_min,
            since: None,
            ordered: false,
        };
        let worker = Worker::spawn(
            RECEIVE_THREAD,
            (bell.clone(), heard),
            move || following.step(&stepped),
            move |error| {
                let mut state = told.state.lock();
                state.last_error = Some(SessionError::Log(error));
            },
        );
        let worker = Mutex::new(Some(worker.at(IoOp::Create, Path::new(RECEIVE_THREAD))?));
        Ok(Self { shared, worker, bell })
    }

    /// What the store was opened with.
    pub(super) fn settings(&self) -> (StoreConfig, Environment) {
        (self.shared.config.clone(), self.shared.environment.clone())
    }

    pub(super) fn store(&self) -> Store {
        self.shared.settle();
        self.shared.state.lock().store.clone()
    }

    pub(super) fn state(&self) -> ReplicaState {
        let state = self.shared.state.lock();
        let (log, link, last_error) =
            (state.log.clone(), state.link.clone(), state.last_error.clone());
        // The log may be at its disk, and that may hang.
        drop(state);
        ReplicaState {
            log_id: log.log_id(),
            following: link.is_some_and(|link| link.is_streaming()),
            durable: log.durable(),
            confirmed: log.confirmed(),
            last_error,
        }
    }

    pub(super) fn standing(&self) -> Result<Standing> {
        self.shared.settle();
        let state = self.shared.state.lock();
        let (store, log) = (state.store.clone(), state.log.clone());
        drop(state);
        standing(&store, &*log)
    }

    pub(super) fn is_fenced(&self) -> bool {
        self.shared.settle();
        let log = self.shared.state.lock().log.clone();
        log.is_fenced()
    }

    pub(super) fn fence(&self, epoch: Epoch) -> Result<Standing> {
        let _alone = self.shared.fencing.lock();
        self.shared.settle();
        let state = self.shared.state.lock();
        let (store, log) = (state.store.clone(), state.log.clone());
        // The disk may hang; whoever asks for the store or the state does not wait for it.
        drop(state);
        log.promise(epoch)?;
        // Who orders a cut from now on is refused, if it is an older primary. An order that was found good
        // before may be under way as long as the disk hangs: then nobody knows what will be here.
        let settled = self.shared.reopening.try_lock_for(self.shared.config.log.close_timeout);
        drop(settled.ok_or(Error::Closed)?);
        // Who connects from now on says so.
        let link = self.shared.state.lock().link.clone();
        if let Some(link) = link {
            // Nothing more is taken, and no more is acknowledged than is here now.
            link.end(Ended::Error(SessionError::Stopped));
        }
        store.flush()?;
        let standing = standing(&store, &*log);
        self.bell.ring();
        standing
    }

    pub(super) fn stop(&self) -> Result<()> {
        self.shared.stopped.store(true, Ordering::SeqCst);
        // Whoever is at it is not waited for: that one waits for a thread which may be the one that is here.
        let Some(mut worker) = self.worker.try_lock() else { return Ok(()) };
        let until = self.shared.now() + self.shared.config.log.close_timeout;
        let left = || until.saturating_duration_since(self.shared.now());
        let stopped = worker.take().map_or(Ok(()), |worker| self.leave(worker, &left));
        // Without the lock, or it would be held for as long as the disk hangs. Also the second time: a thread
        // that hung may have ended since, and others may have the directory then.
        let store = self.shared.state.try_lock_for(left()).map(|state| state.store.clone());
        let hangs = || Error::CloseTimeout { thread: RECEIVE_THREAD.to_owned() };
        let closed = store.ok_or_else(hangs).and_then(|store| store.close());
        stopped.and(closed)
    }

    /// Ends the connection and the thread.
    fn leave(&self, mut worker: Worker, left: &dyn Fn() -> Duration) -> Result<()> {
        // Not while the thread puts another connection in its place.
        let state = self.shared.state.try_lock_for(left()).map(|state| state.link.clone());
        if let Some(Some(link)) = state {
            link.end_within(Ended::Error(SessionError::Stopped), left());
            link.hang_up();
        }
        self.bell.ring();
        // It goes once the system has told it that nobody answers.
        match self.shared.connecting.load(Ordering::SeqCst) {
            true => worker.stop(Duration::ZERO).or(Ok(())),
            false => worker.stop(left()),
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        // Best effort; `close` is how a caller hears of errors.
        let _ = self.stop();
    }
}

fn open(config: &StoreConfig, environment: &Environment) -> Result<State> {
    let replicator = Arc::new(ReplicaReplicator::default());
    let store = Store::open_replicated(config.clone(), environment.clone(), replicator.clone())?;
    let log = replicator.log()?.clone();
    Ok(State { store, log, replicator, link: None, last_error: None })
}

fn standing(store: &Store, log: &dyn ReplicatedLog) -> Result<Standing> {
    let (epoch, end) = store.given();
    let promised = log.promised().max(store.last_reign());
    let latched = store.health().latched;
    let is_retired = latched.is_some_and(|first| matches!(*first, Error::Retired { .. }));
    if !store.is_open() || is_retired {
        // What is here need not be what will be here.
        return Err(Error::Closed);
    }
    Ok(Standing { epoch, end, promised, vouches: !log.in_doubt() })
}

/// What the thread has for itself.
struct Following {
    followed: Option<Followed>,
    /// Before the next attempt, if this one fails.
    pause: Duration,
    /// When the log began to come over this connection, and where it ended then.
    since: Option<(Instant, u64)>,
    /// An order was carried out, and nothing has come of it yet.
    ordered: bool,
}

impl Following {
    fn step(&mut self, shared: &Shared) -> Next {
        let Some(followed) = &mut self.followed else {
            return self.connect(shared);
        };
        let next = followed.link.receive_step(&mut followed.reading);
        if !followed.greeted && followed.link.is_streaming() {
            followed.greeted = true;
            self.since = Some((shared.now(), shared.log_end()));
            self.ordered = false;
            let peer = followed.link.peer.clone();
            shared.tell(&Event::Connected { peer });
        }
        if next == Next::Now {
            return Next::Now;
        }
        self.end(shared)
    }

    fn connect(&mut self, shared: &Shared) -> Next {
        if shared.is_stopped() {
            return Next::Idle;
        }
        if let Err(error) = shared.reopen_if_closed() {
            return self.failed(shared, String::new(), error.into());
        }
        match shared.connect() {
            Ok(followed) => {
                self.followed = Some(followed);
                Next::Now
            }
            // Whoever has closed it does not wait for this.
            Err(_) if shared.is_stopped() => Next::Idle,
            Err((peer, error)) => self.failed(shared, peer, error),
        }
    }

    fn failed(&mut self, shared: &Shared, peer: String, error: SessionError) -> Next {
        shared.state.lock().last_error = Some(error.clone());
        shared.tell(&Event::Ended { peer, error });
        self.rest(shared)
    }

    fn rest(&mut self, shared: &Shared) -> Next {
        let pause = self.pause;
        self.pause = (pause * 2).min(shared.options.retry_max);
        Next::At(shared.now() + pause)
    }

    /// Puts the connection away, and does what its end asks for.
    fn end(&mut self, shared: &Shared) -> Next {
        let Some(mut followed) = self.followed.take() else { return Next::Now };
        let link = followed.link;
        if let Some((since, end)) = self.since.take()
            && (shared.log_end() > end || shared.now() >= since + shared.options.retry_max)
        {
            // One that comes to nothing each time, because the disk is full for instance, has its pauses.
            self.pause = shared.options.retry_min;
        }
        link.wait_said(STOP_MAX);
        let ended = link.ended();
        // A thread that hangs in the system holds its link, and nothing of the store.
        link.hang_up();
        let _ = followed.sender.stop(STOP_MAX);
        shared.state.lock().link = None;
        match ended {
            Some(Ended::Order(order)) => match shared.carry_out(order) {
                // A primary that gives one order after the other is not obeyed without a pause.
                Ok(()) if std::mem::replace(&mut self.ordered, true) => self.rest(shared),
                Ok(()) => Next::Now,
                Err(error) => self.failed(shared, link.peer.clone(), error),
            },
            Some(Ended::Error(error)) => self.failed(shared, link.peer.clone(), error),
            None => Next::Now,
        }
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        // It was told to stop before it came to that.
        if let Some(mut followed) = self.followed.take() {
            followed.link.end_within(Ended::Error(SessionError::Stopped), STOP_MAX);
            followed.link.hang_up();
            let _ = followed.sender.stop(STOP_MAX);
        }
    }
}

impl Shared {
    fn now(&self) -> Instant {
        self.environment.clock.now()
    }

    fn log_end(&self) -> u64 {
        let log = self.state.lock().log.clone();
        log.end()
    }

    fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }

    fn tell(&self, event: &Event) {
        self.options.node.observer.tell(event);
    }

    fn connect(&self) -> Result<Followed, (String, SessionError)> {
        let unnamed = |error: SessionError| (String::new(), error);
        let patience = self.options.node.housekeeping_interval;
        self.connecting.store(true, Ordering::SeqCst);
        let connected = match self.is_stopped() {
            true => Err(io::ErrorKind::Interrupted.into()),
            false => self.options.connector.connect(CONNECT_MAX, patience),
        };
        self.connecting.store(false, Ordering::SeqCst);
        let stream = connected.map_err(|source| {
            // However it was not there.
            unnamed(SessionError::Connection { source: Arc::new(source) })
        })?;
        if self.is_stopped() {
            (stream.hang_up)();
            return Err(unnamed(SessionError::Stopped));
        }
        let peer = stream.peer.clone();
        let nonce = random().map_err(|error| unnamed(error.into()))?;
        let clock = self.environment.clock.clone();
        // The next session begins where the last one ended, not where the disk is.
        let store = self.state.lock().store.clone();
        store.flush().map_err(|error| (peer.clone(), error.into()))?;
        let mut state = self.state.lock();
        let (log, identity, now) = (state.log.clone(), self.identity.clone(), clock.now());
        let session: Box<dyn Session> = match self.options.protocol {
            Protocol::Duralog => Box::new(ReplicaSession::new(log, identity, nonce, now)),
            Protocol::Rocketmq => Box::new(SlaveSession::new(log, identity.heartbeat, now)),
        };
        let (bell, heard) = Doorbell::new();
        let alarm = state.replicator.new_alarm(bell.clone());
        let (link, reading, mut writing) =
            Link::new(session, clock, stream, alarm, CONNECT_MAX, None);
        let (sending, panicked) = (link.clone(), link.clone());
        let sender = Worker::spawn(
            SEND_THREAD,
            (bell, heard),
            move || sending.send_step(&mut writing),
            move |error| {
                panicked.end(Ended::Error(SessionError::Log(error)));
                panicked.set_said();
            },
        );
        let sender = sender.map_err(|error| (peer, error.into()))?;
        state.link = Some(link.clone());
        drop(state);
        if self.is_stopped() {
            link.end(Ended::Error(SessionError::Stopped));
            link.hang_up();
        }
        Ok(Followed { link, reading, sender, greeted: false })
    }

    /// Waits for a store that is being opened again, but not for a disk that hangs.
    fn settle(&self) {
        drop(self.reopening.try_lock_for(self.config.log.close_timeout));
    }

    /// Cuts the log, or begins it anew: by order, which the next open carries out.
    fn carry_out(&self, order: Order) -> Result<(), SessionError> {
        let reopening = self.reopening.lock();
        // Without the state, or who asks for it would wait for the disk.
        let log = self.state.lock().log.clone();
        order.give(&*log)?;
        let reopened = self.reopen();
        drop(reopening);
        // Whoever hears of it may ask.
        self.tell(&match order.change {
            Change::Truncate(to) => Event::Truncated { to },
            Change::Restart { at, .. } => Event::Restarted { at },
        });
        Ok(reopened?)
    }

    fn reopen_if_closed(&self) -> Result<()> {
        let _reopening = self.reopening.lock();
        let store = self.state.lock().store.clone();
        let usable = store.is_open() && store.health().latched.is_none();
        if usable { Ok(()) } else { self.reopen() }
    }

    /// Opens the store again, for whoever has `reopening`.
    fn reopen(&self) -> Result<()> {
        let store = self.state.lock().store.clone();
        // It failed, or was ended by the order: what it says to that is known.
        let _ = store.close();
        let opened = open(&self.config, &self.environment)?;
        let mut state = self.state.lock();
        if self.is_stopped() {
            // The disk hung meanwhile, and whoever closes what is there knows nothing of this one.
            drop(state);
            opened.store.close()?;
            return Err(Error::Closed);
        }
        let last_error = state.last_error.take();
        let before = std::mem::replace(&mut *state, State { last_error, ..opened });
        drop(state);
        drop(before);
        Ok(())
    }
}
