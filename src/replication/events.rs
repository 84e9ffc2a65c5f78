//! What happens between nodes, told to whoever asked to hear of it.

use super::{Epoch, NodeId, SessionError};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// Peers whose last trouble is remembered; of more, trouble may be told twice.
const PEERS_MAX: usize = 256;

/// Something that happened between nodes.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Event {
    /// A peer was accepted, or accepted this node.
    Connected {
        /// Its address.
        peer: String,
    },
    /// A connection ended, or did not come about. The same trouble with the same peer, by its address
    /// without the port, is told once until it has been connected.
    Ended {
        /// The peer's address.
        peer: String,
        /// Why.
        error: SessionError,
    },
    /// A replica told this primary of a newer epoch: it takes no puts any more.
    Superseded {
        /// The newer epoch.
        by: Epoch,
    },
    /// The log of this replica was cut, because the primary has other records there.
    Truncated {
        /// Physical offset of the cut.
        to: u64,
    },
    /// The log of this replica was emptied, and begins where the primary's oldest segment does.
    Restarted {
        /// Physical offset of that.
        at: u64,
    },
    /// A replica was accepted.
    Joined {
        /// Who it is.
        node: NodeId,
    },
}

/// Is called with each event, on the thread on which it happened: it must not block. If it panics, that
/// goes to the panic hook and no further: replication goes on, and it is told of the next event.
#[derive(Clone)]
pub struct Observer {
    tell: Arc<dyn Fn(&Event) + Send + Sync>,
    /// What was told of a peer: a bit for each kind of trouble.
    troubles: Arc<Mutex<BTreeMap<String, u16>>>,
}

impl Observer {
    /// Calls `tell`.
    pub fn new(tell: impl Fn(&Event) + Send + Sync + 'static) -> Self {
        Self { tell: Arc::new(tell), troubles: Arc::default() }
    }

    pub(crate) fn tell(&self, event: &Event) {
        match event {
            Event::Ended { peer, error } => {
                let mut troubles = self.troubles.lock();
                let (key, kind) = (host(peer), 1 << error.kind());
                match troubles.get_mut(key) {
                    Some(told) if *told & kind != 0 => return,
                    Some(told) => *told |= kind,
                    None => {
                        if troubles.len() >= PEERS_MAX {
                            troubles.clear();
                        }
                        troubles.insert(key.to_owned(), kind);
                    }
                }
            }
            Event::Connected { peer } => {
                let mut troubles = self.troubles.lock();
                troubles.remove(host(peer));
                // Those with a peer that was not there.
                troubles.remove("");
            }
            _ => {}
        }
        // A stranger's code, on a thread that replication needs: if it panics, that is told by then.
        let _ = catch_unwind(AssertUnwindSafe(|| (self.tell)(event)));
    }
}

/// An address without its port, which is another one each time.
pub(crate) fn host(peer: &str) -> &str {
    peer.rsplit_once(':').map_or(peer, |(host, _)| host)
}

impl Default for Observer {
    fn default() -> Self {
        Self::new(|_| {})
    }
}

impl fmt::Debug for Observer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Observer")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_without_number_take_up_no_more_memory() {
        let observer = Observer::default();
        for n in 0..10 * PEERS_MAX {
            let peer = format!("10.0.{}.{}:1", n / 256, n % 256);
            observer.tell(&Event::Ended { peer, error: SessionError::Secret });
        }
        assert!(observer.troubles.lock().len() <= PEERS_MAX);
    }

    #[test]
    fn an_observer_that_panics_is_told_of_what_comes_next() {
        let told = Arc::new(Mutex::new(0));
        let counted = told.clone();
        let observer = Observer::new(move |_| {
            *counted.lock() += 1;
            panic!("planted");
        });
        observer.tell(&Event::Truncated { to: 0 });
        observer.tell(&Event::Truncated { to: 0 });
        assert_eq!(*told.lock(), 2);
    }

    #[test]
    fn that_nobody_is_there_is_told_once_for_each_outage() {
        let told = Arc::new(Mutex::new(0));
        let counted = told.clone();
        let observer = Observer::new(move |_| *counted.lock() += 1);
        let away = || Event::Ended { peer: String::new(), error: SessionError::Silent };
        observer.tell(&away());
        observer.tell(&away());
        assert_eq!(*told.lock(), 1);
        observer.tell(&Event::Connected { peer: "10.0.0.1:6".to_owned() });
        observer.tell(&away());
        assert_eq!(*told.lock(), 3);
    }

    #[test]
    fn the_same_trouble_with_the_same_host_is_told_once() {
        let told = Arc::new(Mutex::new(0));
        let counted = told.clone();
        let observer = Observer::new(move |_| *counted.lock() += 1);
        let ended = |port: u16, error| Event::Ended { peer: format!("10.0.0.1:{port}"), error };
        observer.tell(&ended(1, SessionError::Secret));
        observer.tell(&ended(2, SessionError::Secret));
        assert_eq!(*told.lock(), 1);
        observer.tell(&ended(3, SessionError::Silent));
        // Whoever gives one trouble after the other is not heard more often for it.
        observer.tell(&ended(4, SessionError::Secret));
        observer.tell(&ended(5, SessionError::Silent));
        assert_eq!(*told.lock(), 2);
        observer.tell(&Event::Connected { peer: "10.0.0.1:6".to_owned() });
        observer.tell(&ended(7, SessionError::Silent));
        assert_eq!(*told.lock(), 4);
    }
}
