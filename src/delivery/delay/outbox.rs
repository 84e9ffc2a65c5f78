//! Messages that were due and are on their way to where they belong.

use crate::error::Error;
use crate::message::Message;
use crate::replication::Refusal;
use crate::store::{PutStatus, Store, Ticket};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use super::routing::shortened;

/// Messages of one sender on their way at most.
pub(super) const IN_FLIGHT: usize = 256;

/// Why a message could not be put.
pub(super) enum Trouble {
    /// Nothing is put before the store is opened again.
    Ended,
    /// The message cannot be put as things stand; others can.
    OwnFault(Error),
    /// The same put may succeed later.
    Later(Error),
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        match error {
            Error::Latched { .. }
            | Error::Unknown { .. }
            | Error::Retired { .. }
            | Error::Closed
            | Error::ReadOnly
            | Error::Refused(Refusal::NotPrimary) => Self::Ended,
            Error::InvalidMessage(_) | Error::TooLarge { .. } | Error::UnknownTopic { .. } => {
                Self::OwnFault(error)
            }
            other => Self::Later(other),
        }
    }
}

/// The puts of one sender, in the order in which their messages lie in the log. Each is kept until its
/// message is as safe as the store's settings ask, however long that takes: it has its place in the log,
/// and to put it again would be to deliver it twice.
#[derive(Debug)]
pub(super) struct Outbox<K> {
    puts: VecDeque<(K, Ticket)>,
}

impl<K> Default for Outbox<K> {
    fn default() -> Self {
        Self { puts: VecDeque::new() }
    }
}

impl<K> Outbox<K> {
    pub(super) fn is_empty(&self) -> bool {
        self.puts.is_empty()
    }

    pub(super) fn is_full(&self) -> bool {
        self.puts.len() >= IN_FLIGHT
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &K> {
        self.puts.iter().map(|(key, _)| key)
    }

    pub(super) fn last_mut(&mut self) -> Option<&mut K> {
        self.puts.back_mut().map(|(key, _)| key)
    }

    /// Puts a message that is due to where it belongs.
    pub(super) fn send(&mut self, store: &Store, message: Message, key: K) -> Result<(), Trouble> {
        let ticket = match store.try_submit(&message) {
            // It waits in a shorter topic than it belongs to.
            Err(Error::TooLarge { .. }) => store.try_submit(shortened(message)),
            submitted => submitted,
        };
        self.puts.push_back((key, ticket?));
        Ok(())
    }

    /// Puts a message to where it goes on waiting, which needs all that it says.
    pub(super) fn put_off(
        &mut self,
        store: &Store,
        message: &Message,
        key: K,
    ) -> Result<(), Error> {
        self.puts.push_back((key, store.try_submit(message)?));
        Ok(())
    }

    /// Hands those that are safe to `arrived`, in order; whoever sleeps is woken by `waker` when the
    /// next one is.
    pub(super) fn settle(
        &mut self,
        waker: &Waker,
        is_confirmed: impl Fn(u64) -> bool,
        is_durable: impl Fn(u64) -> bool,
        mut arrived: impl FnMut(K),
    ) -> Result<(), Trouble> {
        let mut context = Context::from_waker(waker);
        while let Some((_, ticket)) = self.puts.front_mut() {
            let result = match Pin::new(ticket).poll(&mut context) {
                Poll::Ready(answer) => answer?,
                Poll::Pending => break,
            };
            let late = result.status == PutStatus::ReplicaNotAvailable;
            if result.status != PutStatus::PutOk && !(late && is_confirmed(result.end_offset)) {
                break;
            }
            // What notes that it arrived may become durable at any time.
            if !is_durable(result.end_offset) {
                break;
            }
            if let Some((key, _)) = self.puts.pop_front() {
                arrived(key);
            }
        }
        Ok(())
    }

    /// Lets go of all of them: nobody will hear of them.
    pub(super) fn clear(&mut self) {
        self.puts.clear();
    }

    /// The ticket that was put first.
    pub(super) fn first(&self) -> Option<&Ticket> {
        self.puts.front().map(|(_, ticket)| ticket)
    }
}
