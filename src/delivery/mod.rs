//! From a producer's call to a consumer's acknowledgement, on a [`Store`].
//!
//! Nothing here touches a file: everything that must survive a crash is a message in one of RocketMQ's
//! topics, or an offset of a consumer group.

mod consumer;
pub mod dedup;
mod delay;
mod observer;
pub mod outbox;
mod producer;
mod transaction;
mod unique_ids;

pub use consumer::{
    Batch, ConsumeFrom, Consumer, ConsumerBuilder, DeadLetters, Handled, Listener, QueueLag,
    Received, Settled,
};
pub use delay::{Cancelled, DelayHandle, DelayStats};
pub use observer::{Event, Verdict, Watch};
pub use producer::{Producer, ProducerBuilder, SendTicket, Sent};
pub use transaction::{
    HalfMessage, HalfMessageView, TransactionOutcome, TransactionState, TransactionStats,
    TransactionalProducer, TransactionalProducerBuilder, Transactions,
};

use crate::error::Result;
use crate::message::Message;
use crate::store::{Acknowledged, Ending, Store, Ticket, Upper};
use crate::worker::{Alarm, Next};
use consumer::Groups;
use observer::Observers;
use parking_lot::Mutex;
use std::any::Any;
use std::sync::Arc;
use unique_ids::UniqueIds;

/// What one store has above it: shared by all its producers and consumers.
pub(crate) struct Delivery {
    alarm: Arc<Alarm>,
    ids: UniqueIds,
    groups: Groups,
    /// Held by whoever moves on in a group's dead letters.
    dead_letters: Mutex<()>,
    observers: Observers,
    delay: delay::Delay,
    transactions: transaction::Slot,
}

impl Delivery {
    fn new(store: &Store) -> Self {
        Self {
            alarm: Arc::default(),
            ids: UniqueIds::new(store.clock(), store.config().log.store_host.ip()),
            groups: Groups::default(),
            dead_letters: Mutex::new(()),
            observers: Observers::default(),
            delay: delay::Delay::default(),
            transactions: transaction::Slot::default(),
        }
    }

    /// That of `store`, and its thread; made with the first producer or consumer.
    pub(crate) fn of(store: &Store) -> Result<Arc<Self>> {
        let upper: Arc<dyn Any + Send + Sync> = store.upper(|| Arc::new(Self::new(store)));
        // Nothing else is ever built upon a store.
        let delivery = Arc::downcast(upper).unwrap_or_else(|_| Arc::new(Self::new(store)));
        store.start_upper()?;
        Ok(delivery)
    }

    /// Puts a message of the store's own making, now or to where it waits until it is due, whatever it says
    /// about waiting for disk and replicas; it is as safe as the store's settings ask.
    fn put(&self, store: &Store, message: Message) -> Result<Acknowledged> {
        store.put_safely(self.routed(store, message)?)
    }

    /// The same, but for the waiting.
    fn lay(&self, store: &Store, message: Message) -> Result<Ticket> {
        store.lay(&self.routed(store, message)?.waiting())
    }

    fn routed(&self, store: &Store, message: Message) -> Result<Message> {
        if delay::asks_to_wait(&message) { store.rerouted(message) } else { Ok(message) }
    }
}

impl Upper for Delivery {
    fn step(&self, store: &Store) -> Next {
        // Each part looks again when the bell rings: who brings work shows it first, then rings.
        let parts = || {
            let told = self.observers.step(store);
            let delayed = self.delay.step(store, &self.alarm);
            told.or_sooner(delayed).or_sooner(self.transactions.step(store))
        };
        match parts() {
            Next::Now => Next::Now,
            _ => {
                let mut next = Next::Idle;
                let slept = self.alarm.sleep_unless(|| {
                    next = parts();
                    next == Next::Now
                });
                slept.or_sooner(next)
            }
        }
    }

    fn alarm(&self) -> &Alarm {
        &self.alarm
    }

    fn end(&self, ending: &Ending<'_>) {
        self.delay.end(ending, &self.alarm);
        self.transactions.end(ending);
    }

    fn let_go(&self) {
        self.delay.let_go();
        self.transactions.let_go();
    }
}
