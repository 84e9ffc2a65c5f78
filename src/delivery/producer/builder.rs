//! How a producer is set up.

use super::select::Selector;
use super::{Inner, Options, Producer, Target};
use crate::delivery::unique_ids::UniqueIds;
use crate::error::{Error, Result};
use crate::message::{Compression, Message};
use crate::store::{PutStatus, Store};
use std::sync::Arc;
use std::time::Duration;

/// Longest name of a group, in bytes.
const GROUP_LEN_MAX: usize = 255;

/// Sets up a [`Producer`].
///
/// # Examples
/// ```
/// use duralog::{Message, PutStatus, Store, StoreConfig};
/// use std::time::Duration;
///
/// # let dir = std::env::temp_dir().join(format!("duralog-doc-builder-{}", std::process::id()));
/// # let second = dir.join("second");
/// let store = Store::open(StoreConfig::new(dir.join("first")).segment_size(1 << 20))?;
/// let second = Store::open(StoreConfig::new(&second).segment_size(1 << 20))?;
/// let producer = store
///     .producer("orders-service")
///     .send_timeout(Duration::from_secs(1))
///     .retry_another_when_not_ok(second.clone())
///     .queue_selector(|message, queues| queues[message.body().len() % queues.len()])
///     .open()?;
/// store.close()?;
/// let sent = producer.send(Message::new("orders", "paid 42"))?;
/// assert!(sent.fell_back);
/// assert_eq!(second.get("orders", sent.put.queue_id, 0, 1)?.messages.len(), 1);
/// # second.close()?;
/// # std::fs::remove_dir_all(&dir).unwrap();
/// # Ok::<(), duralog::Error>(())
/// ```
#[derive(Debug, Clone)]
#[must_use = "`open` makes the producer"]
pub struct ProducerBuilder {
    store: Store,
    fallback: Option<Store>,
    group: String,
    options: Options,
}

impl ProducerBuilder {
    pub(super) fn new(store: Store, group: String) -> Self {
        let options = Options {
            send_timeout: Duration::from_secs(3),
            retries: 2,
            async_retries: 2,
            pause: Duration::from_millis(100),
            accepted: Vec::new(),
            compression: None,
            compress_over: 4096,
            selector: None,
        };
        Self { store, fallback: None, group, options }
    }

    /// How long a message may take from the call until it is sent or has failed, all attempts together;
    /// RocketMQ's `sendMsgTimeout`. Default 3 s; 1 ms to 1 h.
    pub fn send_timeout(mut self, timeout: Duration) -> Self {
        self.options.send_timeout = timeout;
        self
    }

    /// How many attempts follow the first one of [`send`](Producer::send), in whichever store. Default 2.
    pub fn retry_times_when_send_failed(mut self, times: u32) -> Self {
        self.options.retries = times;
        self
    }

    /// How many attempts follow the first one of [`send_async`](Producer::send_async). Default 2.
    pub fn retry_times_when_send_async_failed(mut self, times: u32) -> Self {
        self.options.async_retries = times;
        self
    }

    /// How long to pause before a store is tried for the second time; twice as long before the next time,
    /// and so on. An attempt for which no time is left is not made. Default 100 ms; 1 ms to 1 h.
    pub fn retry_pause(mut self, pause: Duration) -> Self {
        self.options.pause = pause;
        self
    }

    /// A second store, which takes a message that the first one refuses, fails to store, or has stored
    /// less safely than asked; RocketMQ's `retryAnotherBrokerWhenNotStoreOK`. It counts as a retry.
    ///
    /// Both stores may then hold the message, with the same id. A message with a sharding key may end up
    /// behind later ones.
    pub fn retry_another_when_not_ok(mut self, fallback: Store) -> Self {
        self.fallback = Some(fallback);
        self
    }

    /// Takes `status` for success, beside `PutOk`: the message is stored, and no less safe than that.
    pub fn accept(mut self, status: PutStatus) -> Self {
        self.options.accepted.push(status);
        self
    }

    /// Compresses large bodies, where that makes them smaller. Consumers of this crate and of RocketMQ 5
    /// decompress them; who reads the store itself asks [`MessageView::decoded_body`]. RocketMQ 4.9 knows
    /// [`Compression::Zlib`] alone, see [`zlib_only`](crate::StoreConfig::zlib_only). A store still takes only
    /// what it would take as it is: its `max_message_size` counts for the body before it is compressed.
    /// Default: none is compressed.
    ///
    /// [`MessageView::decoded_body`]: crate::MessageView::decoded_body
    pub fn compress(mut self, compression: Compression) -> Self {
        self.options.compression = Some(compression);
        self
    }

    /// Bodies of so many bytes or more are large; RocketMQ's `compressMsgBodyOverHowmuch`. Default 4096.
    pub fn compress_over(mut self, bytes: usize) -> Self {
        self.options.compress_over = bytes;
        self
    }

    /// Chooses the queue of each message that does not say so itself with [`Message::queue`]: one of those
    /// it is given. Asked whenever a message is tried in another store than before, on the thread that sends
    /// it: a panic is the sender's. Default: by sharding key, else one after the other.
    pub fn queue_selector(
        mut self,
        select: impl Fn(&Message, &[i32]) -> i32 + Send + Sync + 'static,
    ) -> Self {
        self.options.selector = Some(Selector(Arc::new(select)));
        self
    }

    /// Makes the producer.
    ///
    /// # Errors
    /// [`Error::Config`] for a value out of range, for a group without a name or with `@`, `/` or control
    /// characters in it, and for a second store that is the first one; [`Error::TooLarge`] for a group of
    /// more than 255 bytes; [`Error::Codec`] for a compression that this build has no feature for, or
    /// that a store does not take, see [`zlib_only`](crate::StoreConfig::zlib_only);
    /// [`Error::ReadOnly`], [`Error::Closed`] and [`Error::Refused`] for a store that takes no messages;
    /// [`Error::Io`] if a thread cannot be started.
    pub fn open(self) -> Result<Producer> {
        let Self { store, fallback, group, options } = self;
        check_group(&group)?;
        check_duration("send_timeout", options.send_timeout)?;
        check_duration("retry_pause", options.pause)?;
        if let Some(compression) = options.compression {
            compression.check()?;
            for store in [Some(&store), fallback.as_ref()].into_iter().flatten() {
                store.check_compression(Some(compression))?;
            }
        }
        if fallback.as_ref().is_some_and(|fallback| fallback.is_same(&store)) {
            let (field, allowed) = ("retry_another_when_not_ok", "another store");
            return Err(Error::Config { field, value: "the same store".to_owned(), allowed });
        }
        let ids = UniqueIds::new(store.clock(), store.config().log.store_host.ip());
        let main = Target::new(store)?;
        let fallback = fallback.map(Target::new).transpose()?;
        Ok(Producer { inner: Arc::new(Inner { group, main, fallback, ids, options }) })
    }
}

fn check_group(group: &str) -> Result<()> {
    let is_plain = |c: char| !c.is_control() && !matches!(c, '@' | '/');
    if group.is_empty() || !group.chars().all(is_plain) {
        let (field, value) = ("group", format!("{group:?}"));
        let allowed = "a name without `@`, `/` and control characters";
        return Err(Error::Config { field, value, allowed });
    }
    if group.len() > GROUP_LEN_MAX {
        return Err(Error::TooLarge { what: "group", len: group.len(), max: GROUP_LEN_MAX });
    }
    Ok(())
}

fn check_duration(field: &'static str, value: Duration) -> Result<()> {
    if (Duration::from_millis(1)..=Duration::from_secs(3600)).contains(&value) {
        return Ok(());
    }
    Err(Error::Config { field, value: format!("{value:?}"), allowed: "1 ms to 1 h" })
}
