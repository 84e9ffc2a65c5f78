//! Transactions: messages that appear when, and only when, something else has happened.

mod checker;
mod coordinator;
mod half;
mod ledger;

pub use half::HalfMessageView;

use super::Delivery;
use crate::error::{Error, Result};
use crate::message::{Message, names};
use crate::store::{Acknowledged, Ending, Store};
use crate::worker::{Next, Worker};
use checker::Checker;
use coordinator::{Coordinator, Half};
use parking_lot::Mutex;
use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// RocketMQ's `transactionTimeOut`.
const TIMEOUT: Duration = Duration::from_secs(6);
/// RocketMQ's `transactionCheckInterval`.
const CHECK_INTERVAL: Duration = Duration::from_secs(30);
/// RocketMQ's `transactionCheckMax`.
const CHECK_MAX: u32 = 15;
const MAX_OPEN: usize = 1_000_000;
const GROUP_LEN_MAX: usize = 255;

type Check = dyn Fn(&HalfMessageView) -> TransactionState + Send + Sync;

/// What became of a transaction, as far as the application knows: RocketMQ's `LocalTransactionState`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TransactionState {
    /// It happened: the message is to be delivered.
    Commit,
    /// It did not, and never will: the message is to be forgotten.
    Rollback,
    /// It cannot be said yet: the checker is to be asked later.
    Unknown,
}

/// What became of a message that was sent in a transaction.
#[derive(Debug)]
#[non_exhaustive]
pub enum TransactionOutcome {
    /// The message is in its queue.
    Committed(Acknowledged),
    /// It never will be.
    RolledBack,
    /// Nobody knows yet: the checker will be asked, unless this is committed or rolled back first.
    Open(HalfMessage),
}

/// The numbers of a transactional producer.
#[derive(Debug, Clone, Copy)]
struct Options {
    timeout: Duration,
    check_interval: Duration,
    check_max: u32,
    max_open: usize,
}

/// A transactional producer to be, see [`Store::transactional_producer`].
#[must_use = "nothing happens before `open`"]
pub struct TransactionalProducerBuilder {
    store: Store,
    group: String,
    check: Box<Check>,
    options: Options,
}

impl fmt::Debug for TransactionalProducerBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TransactionalProducerBuilder")
            .field("group", &self.group)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

impl TransactionalProducerBuilder {
    /// How old a half message is before it is checked for the first time; RocketMQ's `transactionTimeOut`. The
    /// default is 6 s. A message with the property `CHECK_IMMUNITY_TIME_IN_SECONDS` has its own.
    pub fn transaction_timeout(mut self, timeout: Duration) -> Self {
        self.options.timeout = timeout;
        self
    }

    /// How long after a check without an answer the next one comes, more than 0; RocketMQ's
    /// `transactionCheckInterval`. The default is 30 s.
    pub fn transaction_check_interval(mut self, interval: Duration) -> Self {
        self.options.check_interval = interval;
        self
    }

    /// After how many checks without an answer a half message is parked, at least 1; RocketMQ's
    /// `transactionCheckMax`. The default is 15.
    pub fn transaction_check_max(mut self, checks: u32) -> Self {
        self.options.check_max = checks;
        self
    }

    /// How many half messages may be open in the store, those of other groups included, before this producer
    /// begins no further ones. Each takes some 250 bytes of memory. The default is 1,000,000.
    pub fn max_open_transactions(mut self, count: usize) -> Self {
        self.options.max_open = count;
        self
    }

    /// Opens the producer. Half messages of its group that an earlier life of the store left open are
    /// checked from now on, those that are old enough at once.
    ///
    /// The first producer of a store reads what is open, from the offsets on that are kept for it.
    ///
    /// # Errors
    /// [`Error::ProducerGroupInUse`] if another producer has the group; [`Error::Config`] and
    /// [`Error::TooLarge`] for a group or number out of range; [`Error::ReadOnly`]; [`Error::Closed`];
    /// [`Error::Refused`] on a replica; [`Error::Io`], also if the thread cannot be started.
    pub fn open(self) -> Result<TransactionalProducer> {
        let Self { store, group, check, options } = self;
        if group.is_empty() || group.chars().any(|c| c.is_control() || matches!(c, '@' | '/')) {
            let (field, value) = ("group", format!("{group:?}"));
            let allowed = "a name without `@`, `/` and control characters";
            return Err(Error::Config { field, value, allowed });
        }
        if group.len() > GROUP_LEN_MAX {
            let (what, len) = ("group", group.len());
            return Err(Error::TooLarge { what, len, max: GROUP_LEN_MAX });
        }
        let positive = [
            ("transaction_check_interval", options.check_interval.is_zero()),
            ("transaction_check_max", options.check_max == 0),
        ];
        for (field, is_zero) in positive {
            if is_zero {
                let allowed = "more than 0";
                return Err(Error::Config { field, value: "0".to_owned(), allowed });
            }
        }
        store.check_takes_puts()?;
        let delivery = Delivery::of(&store)?;
        let coordinator = delivery.transactions.of(&store, &delivery)?;
        let checker = Arc::new(Checker::new(&group, options, check));
        // A store without threads of its own is stepped, and so are the checks.
        let mut worker = match store.is_threaded() {
            true => Some(checker.start(&store, &coordinator)?),
            false => None,
        };
        if let Err(error) = coordinator.register(&store, &checker) {
            if let Some(worker) = &mut worker {
                checker::stop(worker, store.config().log.close_timeout);
            }
            return Err(error);
        }
        let worker = Mutex::new(worker);
        Ok(TransactionalProducer { open: Arc::new(Open { store, coordinator, checker, worker }) })
    }
}

/// Sends messages that are delivered when, and only when, something else has happened.
///
/// It first puts a *half message*, which no consumer sees. Then the application does what the message is
/// about, and commits the half message or rolls it back. If it does neither, because it crashed or forgot, the
/// *checker* is asked what became of it.
///
/// # What is promised
/// A half message whose [`begin`](Self::begin) returned `Ok` ends as one of these, whatever crashes:
/// committed, and the message is in its queue; rolled back, and it never is; or
/// [parked](Transactions::parked), after so many checks without an answer. Never two of them, and committed
/// once: where a crash came between the message and the entry that its half message is done with, the message is
/// looked for before anybody is asked, in the key index or, where that is off, in its queue. A half message that
/// can no longer be read holds up no other one; [`TransactionStats::unreadable`] counts it.
///
/// Everything is kept as RocketMQ keeps it: a broker that takes the directory over finds what is open, and
/// this crate what a broker left.
///
/// # The checker
/// It is asked on a thread of its own, `duralog-check`, about one half message after the other: it may
/// take its time, and a panic in it counts as [`TransactionState::Unknown`]. It must say of one transaction
/// always the same, once that is not `Unknown`. Of the application and the checker, whoever is first decides.
///
/// Cheap to clone; all clones are one producer. When the last one goes, the checker is not asked any more; the
/// drop waits up to `close_timeout` for an answer that it is at. Half messages that are open then stay so until
/// a producer of the group opens.
///
/// # Examples
/// ```
/// use duralog::delivery::{HalfMessageView, TransactionOutcome, TransactionState};
/// use duralog::{Message, Store, StoreConfig};
/// # use std::collections::HashSet;
/// # use std::sync::{Arc, Mutex};
///
/// # let dir = std::env::temp_dir().join(format!("duralog-doc-transaction-{}", std::process::id()));
/// # let store = Store::open(StoreConfig::new(&dir).segment_size(1 << 20))?;
/// # let paid = Arc::new(Mutex::new(HashSet::new()));
/// # let known = paid.clone();
/// // What the application's own database says, also after a crash.
/// let check = move |half: &HalfMessageView| {
///     let id = half.transaction_id().unwrap_or_default();
///     let happened = known.lock().unwrap().contains(id);
///     if happened { TransactionState::Commit } else { TransactionState::Rollback }
/// };
/// let producer = store.transactional_producer("orders-service", check).open()?;
///
/// let half = producer.begin(Message::new("orders", "paid 42"))?; // durable, and seen by nobody
/// paid.lock().unwrap().insert(half.transaction_id().to_owned());
/// half.commit()?;
/// let queue = half.read()?.queue_id(); // whose turn it was
/// assert_eq!(store.get("orders", queue, 0, 32)?.messages[0].body, b"paid 42");
///
/// // The same in one call.
/// let outcome = producer.send(Message::new("orders", "paid 43"), |half| {
///     println!("transaction {}", half.transaction_id());
///     TransactionState::Rollback
/// })?;
/// assert!(matches!(outcome, TransactionOutcome::RolledBack));
/// # drop((producer, half, outcome));
/// # store.close()?;
/// # std::fs::remove_dir_all(&dir).unwrap();
/// # Ok::<(), duralog::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct TransactionalProducer {
    open: Arc<Open>,
}

/// What the clones of a producer share.
struct Open {
    store: Store,
    coordinator: Arc<Coordinator>,
    checker: Arc<Checker>,
    worker: Mutex<Option<Worker>>,
}

impl fmt::Debug for Open {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.checker.fmt(f)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.coordinator.unregister(&self.checker);
        if let Some(worker) = self.worker.get_mut() {
            checker::stop(worker, self.store.config().log.close_timeout);
        }
    }
}

impl TransactionalProducer {
    /// Puts a half message, and returns when it is as safe as a put that returned `PutOk`, whatever the
    /// message says about waiting. No consumer sees it before it is committed.
    ///
    /// Its queue is chosen now, as a [`Producer`](super::Producer#which-queue) without a selector chooses
    /// one, and its topic is created if it is not known.
    ///
    /// It gets a unique key if it has none, which is the id of the transaction. The message that is delivered in
    /// the end has RocketMQ's properties of a transaction besides its own: `TRAN_MSG`, `PGROUP`,
    /// `__transactionId__`, `REAL_TOPIC` and `REAL_QID`.
    ///
    /// # Errors
    /// As [`Store::put`], and nothing was stored: also [`Error::TopicNotWritable`],
    /// [`InvalidMessage::DelayedTransaction`] for a message that is to be delayed,
    /// [`InvalidMessage::SystemTopic`], and [`Error::TooManyTransactions`]. With [`Error::NotOk`] and
    /// [`Error::Unknown`] it may be stored: then the checker is asked what became of it.
    ///
    /// [`InvalidMessage::DelayedTransaction`]: crate::InvalidMessage::DelayedTransaction
    /// [`InvalidMessage::SystemTopic`]: crate::InvalidMessage::SystemTopic
    pub fn begin(&self, message: Message) -> Result<HalfMessage> {
        let Open { store, coordinator, checker, .. } = &*self.open;
        let (half, message) = coordinator.begin(store, checker, message)?;
        let transaction_id = message.get(names::TRANSACTION_ID).unwrap_or_default().to_owned();
        let (store, coordinator) = (store.clone(), coordinator.clone());
        Ok(HalfMessage { store, coordinator, half, transaction_id })
    }

    /// RocketMQ's `sendMessageInTransaction`: [`begin`](Self::begin)s, runs `local`, and does what it says.
    ///
    /// If `local` panics, the half message stays open, as it does if the process is killed there.
    ///
    /// # Errors
    /// As [`begin`](Self::begin): `local` was not run. As [`HalfMessage::commit`] and
    /// [`HalfMessage::rollback`]: it was, and where nothing was stored for its answer, the checker is asked.
    pub fn send(
        &self,
        message: Message,
        local: impl FnOnce(&HalfMessage) -> TransactionState,
    ) -> Result<TransactionOutcome> {
        let half = self.begin(message)?;
        Ok(match local(&half) {
            TransactionState::Commit => TransactionOutcome::Committed(half.commit()?),
            TransactionState::Rollback => {
                half.rollback()?;
                TransactionOutcome::RolledBack
            }
            TransactionState::Unknown => TransactionOutcome::Open(half),
        })
    }

    /// The producer group.
    pub fn group(&self) -> &str {
        &self.open.checker.group
    }
}

/// A half message, to be committed or rolled back: once, by whoever comes first, the application or an answer
/// of the checker. Dropping it leaves that to the checker.
#[derive(Clone)]
#[must_use = "dropping a half message leaves it to the checker"]
pub struct HalfMessage {
    store: Store,
    coordinator: Arc<Coordinator>,
    half: Arc<Half>,
    transaction_id: String,
}

impl fmt::Debug for HalfMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HalfMessage")
            .field("transaction_id", &self.transaction_id)
            .finish_non_exhaustive()
    }
}

impl HalfMessage {
    /// The id of the transaction: what the application writes down where the checker will look. That of a
    /// message that another program parked may be empty.
    pub fn transaction_id(&self) -> &str {
        &self.transaction_id
    }

    /// Puts the message, and returns when it is as safe as a put that returned `PutOk`. Asked again, it says
    /// where the message lies.
    ///
    /// # Errors
    /// [`Error::TransactionDecided`] if it was rolled back. [`Error::NotOk`]: it is committed, though not as
    /// safe as asked yet; asking again tells how far it has come. [`Error::Unknown`]: the next life of the store
    /// looks whether it was committed, and asks the checker if not. Otherwise nothing was stored and it is open:
    /// as [`Store::put`], and as [`Store::get`] if the half message cannot be read.
    pub fn commit(&self) -> Result<Acknowledged> {
        self.coordinator.commit(&self.store, &self.half)
    }

    /// Has the message forgotten, and returns when that is as safe as a put that returned `PutOk`.
    ///
    /// # Errors
    /// [`Error::TransactionDecided`] if it was committed. [`Error::NotOk`]: it is rolled back, though not as safe
    /// as asked yet; a crash may bring the checker into it. [`Error::Unknown`]: likewise. Otherwise it is open, as
    /// [`Store::put`].
    pub fn rollback(&self) -> Result<()> {
        self.coordinator.roll_back(&self.store, &self.half)
    }

    /// The message as it is stored.
    ///
    /// # Errors
    /// As [`Store::get`]; [`Error::HalfMessageGone`] if retention deleted it.
    pub fn read(&self) -> Result<HalfMessageView> {
        self.coordinator.read(&self.store, &self.half)
    }
}

/// The transactions of a store, see [`Store::transactions`].
#[derive(Clone)]
pub struct Transactions {
    store: Store,
    coordinator: Arc<Coordinator>,
}

impl fmt::Debug for Transactions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.stats().fmt(f)
    }
}

impl Transactions {
    /// How they stand.
    pub fn stats(&self) -> TransactionStats {
        self.coordinator.stats()
    }

    /// Half messages that were parked after too many checks, the oldest first: somebody has to look what
    /// became of them, and commit them or roll them back. What a RocketMQ broker parked is among them.
    pub fn parked(&self) -> Vec<HalfMessage> {
        let parked = self.coordinator.parked(&self.store).into_iter();
        let handle = |(half, view): (Arc<Half>, Option<HalfMessageView>)| {
            let (store, coordinator) = (self.store.clone(), self.coordinator.clone());
            let id = view.as_ref().and_then(HalfMessageView::transaction_id);
            let transaction_id = id.unwrap_or_default().to_owned();
            HalfMessage { store, coordinator, half, transaction_id }
        };
        parked.map(handle).collect()
    }
}

/// How the transactions of a store stand. Numbers of what happened count since the first use of
/// transactions in this life of the store.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct TransactionStats {
    /// Half messages that are neither committed nor rolled back nor parked.
    pub open: usize,
    /// Those of them whose group has no producer: nobody checks them.
    pub unattended: usize,
    /// Half messages that are parked, and wait for somebody to decide them.
    pub parked: usize,
    /// Half messages that were committed.
    pub committed: u64,
    /// Half messages that were rolled back.
    pub rolled_back: u64,
    /// Answers of checkers.
    pub checks: u64,
    /// Those of them that were panics.
    pub panicked_checks: u64,
    /// Half messages that were parked.
    pub parked_in_all: u64,
    /// Half messages, and entries that half messages are done with, that could not be read or made no sense.
    /// They are passed over: nobody decides such a half message any more.
    pub unreadable: u64,
    /// What went wrong last in the background.
    pub last_error: Option<Error>,
}

impl Store {
    /// A producer of messages that are delivered when, and only when, something else has happened; `check` is
    /// asked about those that its application has left open. [`TransactionalProducer`] has an example.
    pub fn transactional_producer(
        &self,
        group: impl Into<String>,
        check: impl Fn(&HalfMessageView) -> TransactionState + Send + Sync + 'static,
    ) -> TransactionalProducerBuilder {
        let options = Options {
            timeout: TIMEOUT,
            check_interval: CHECK_INTERVAL,
            check_max: CHECK_MAX,
            max_open: MAX_OPEN,
        };
        let (store, group, check) = (self.clone(), group.into(), Box::new(check));
        TransactionalProducerBuilder { store, group, check, options }
    }

    /// How the transactions of this store stand, and those that nobody could decide.
    ///
    /// # Errors
    /// As [`get`](Self::get), where this is the first that asks.
    ///
    /// # Examples
    /// ```
    /// # use duralog::{Store, StoreConfig};
    /// # let dir = std::env::temp_dir().join(format!("duralog-doc-parked-{}", std::process::id()));
    /// # let store = Store::open(StoreConfig::new(&dir).segment_size(1 << 20))?;
    /// let transactions = store.transactions()?;
    /// for half in transactions.parked() {
    ///     println!("{}: {:?}", half.transaction_id(), half.read()?.body());
    ///     half.rollback()?;
    /// }
    /// assert_eq!(transactions.stats().open, 0);
    /// # drop(transactions);
    /// # store.close()?;
    /// # std::fs::remove_dir_all(&dir).unwrap();
    /// # Ok::<(), duralog::Error>(())
    /// ```
    pub fn transactions(&self) -> Result<Transactions> {
        let delivery = Delivery::of(self)?;
        let coordinator = delivery.transactions.of(self, &delivery)?;
        Ok(Transactions { store: self.clone(), coordinator })
    }
}

/// Where the wing keeps them: made when someone first asks.
#[derive(Default)]
pub(super) struct Slot {
    made: OnceLock<Arc<Coordinator>>,
    making: Mutex<()>,
}

impl Slot {
    fn of(&self, store: &Store, delivery: &Arc<Delivery>) -> Result<Arc<Coordinator>> {
        let _making = self.making.lock();
        if let Some(made) = self.made.get() {
            return Ok(made.clone());
        }
        let coordinator = Arc::new(Coordinator::recover(store, delivery)?);
        let coordinator = self.made.get_or_init(|| coordinator).clone();
        delivery.alarm.ring();
        Ok(coordinator)
    }

    pub(super) fn end(&self, ending: &Ending<'_>) {
        if let Some(coordinator) = self.made.get() {
            coordinator.end(ending);
        }
    }

    pub(super) fn let_go(&self) {
        if let Some(coordinator) = self.made.get() {
            coordinator.let_go();
        }
    }

    pub(super) fn step(&self, store: &Store) -> Next {
        self.made.get().map_or(Next::Idle, |coordinator| coordinator.step(store))
    }
}
