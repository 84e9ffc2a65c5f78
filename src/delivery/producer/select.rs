//! Which queue a message goes to.

use crate::error::{Error, InvalidMessage, Result};
use crate::log::quick_hash::QuickHash;
use crate::message::format::is_system_topic;
use crate::message::{Message, java_string_hash, names};
use crate::store::Store;
use crate::tables::TopicConfig;
use parking_lot::RwLock;
use std::collections::HashMap;
use std::fmt;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

type Select = dyn Fn(&Message, &[i32]) -> i32 + Send + Sync;

/// What an application chooses queues with.
#[derive(Clone)]
pub(in crate::delivery) struct Selector(pub(super) Arc<Select>);

impl fmt::Debug for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Selector")
    }
}

/// What is known of the topics of a store that were sent to.
#[derive(Debug, Default)]
pub(in crate::delivery) struct Routes {
    known: RwLock<HashMap<Box<str>, Arc<Route>, QuickHash>>,
}

/// The queues of a topic.
#[derive(Debug)]
struct Route {
    /// Those that messages are spread over.
    queues: Box<[i32]>,
    /// Those below can be chosen.
    limit: i32,
    /// Whose turn it is; the same one when the topic is looked up again.
    turn: Arc<AtomicU32>,
    /// That of the store's topics when this was read.
    version: u64,
}

impl Routes {
    /// The queues over which the messages of a topic are spread.
    pub(super) fn queues(&self, store: &Store, topic: &str) -> Result<Vec<i32>> {
        Ok(self.route(store, topic)?.queues.to_vec())
    }

    /// Chooses one queue for all of `messages`.
    pub(in crate::delivery) fn aim(
        &self,
        store: &Store,
        messages: &mut [Message],
        selector: Option<&Selector>,
    ) -> Result<()> {
        if let [message] = messages
            && message.chosen_queue().is_none()
            && selector.is_none()
            && let Some(queue) = self.default_queue(store, message)
        {
            message.set_queue(queue);
            return Ok(());
        }
        let first = messages.first().ok_or(Error::InvalidMessage(InvalidMessage::EmptyBatch))?;
        let mut route = self.route(store, first.topic())?;
        if messages.iter().any(|message| message.chosen_queue() >= Some(route.limit)) {
            // Someone may have put to it since, even just now.
            store.queue_ids(first.topic());
            route = self.look_up(store, first.topic())?;
        }
        let mut agreed = None;
        for message in messages.iter() {
            let queue = route.asked_for(message, selector.is_some())?;
            if message.topic() != first.topic()
                || agreed.is_some() && queue.is_some_and(|_| agreed != queue)
            {
                return Err(Error::InvalidMessage(InvalidMessage::MixedBatch));
            }
            agreed = agreed.or(queue);
        }
        let queue = match (agreed, selector) {
            (Some(queue), _) => queue,
            (None, Some(Selector(select))) => route.checked(select(first, &route.queues))?,
            (None, None) => route.next(),
        };
        messages.iter_mut().for_each(|message| message.set_queue(queue));
        Ok(())
    }

    /// By key or by turn, if the topic is known: what most messages take, with one short lock.
    fn default_queue(&self, store: &Store, message: &Message) -> Option<i32> {
        let known = self.known.read();
        let route = known.get(message.topic())?;
        (route.version == store.topics_version()).then(|| match message.get(names::SHARDING_KEY) {
            Some(key) => route.of_key(key),
            None => route.next(),
        })
    }

    fn route(&self, store: &Store, topic: &str) -> Result<Arc<Route>> {
        let version = store.topics_version();
        match self.known.read().get(topic) {
            Some(route) if route.version == version => return Ok(route.clone()),
            _ => {}
        }
        self.look_up(store, topic)
    }

    /// Refuses a message that no queue could be chosen for as things stand, and creates no topic for it.
    pub(in crate::delivery) fn check(store: &Store, message: &Message) -> Result<()> {
        let topic = message.topic();
        check_not_system(topic)?;
        store.check_known(topic)?;
        let new = || TopicConfig::new(store.config().default_topic_queue_nums);
        let config = store.topic(topic)?.unwrap_or_else(new);
        check_writable(topic, &config)?;
        check_below(message.chosen_queue(), limit_of(&config)).map(drop)
    }

    fn look_up(&self, store: &Store, topic: &str) -> Result<Arc<Route>> {
        check_not_system(topic)?;
        // Before a topic is created for what is refused.
        store.check_takes_puts()?;
        // Asked before the topic is: one that changes meanwhile is looked up once more.
        let version = store.topics_version();
        let config = store.require_topic(topic, store.config().default_topic_queue_nums)?;
        check_writable(topic, &config)?;
        let mut known = self.known.write();
        let turn = known.get(topic).map(|route| route.turn.clone()).unwrap_or_else(|| {
            // Not with queue 0: many producers send one message in their life.
            Arc::new(AtomicU32::new(known.hasher().hash_one(topic) as u32))
        });
        let route = Arc::new(Route {
            queues: (0..config.write_queue_nums).collect(),
            limit: limit_of(&config),
            turn,
            version,
        });
        known.insert(topic.into(), route.clone());
        Ok(route)
    }
}

/// Which of `count` queues the messages with a sharding key go to, as by RocketMQ's
/// `SelectMessageQueueByHash`.
pub(in crate::delivery) fn queue_of_key(key: &str, count: i32) -> i32 {
    java_string_hash(key).checked_rem(count).unwrap_or(0).abs()
}

impl Route {
    /// The queue that a message asks for, itself or by its sharding key.
    fn asked_for(&self, message: &Message, has_selector: bool) -> Result<Option<i32>> {
        match check_below(message.chosen_queue(), self.limit)? {
            None if !has_selector => {
                Ok(message.get(names::SHARDING_KEY).map(|key| self.of_key(key)))
            }
            chosen => Ok(chosen),
        }
    }

    fn of_key(&self, key: &str) -> i32 {
        queue_of_key(key, i32::try_from(self.queues.len()).unwrap_or(i32::MAX))
    }

    fn next(&self) -> i32 {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) as usize;
        let index = turn.checked_rem(self.queues.len()).unwrap_or(0);
        self.queues.get(index).copied().unwrap_or(0)
    }

    /// A queue that an application has chosen.
    fn checked(&self, queue_id: i32) -> Result<i32> {
        if self.queues.contains(&queue_id) {
            return Ok(queue_id);
        }
        let limit = i32::try_from(self.queues.len()).unwrap_or(i32::MAX);
        Err(Error::InvalidMessage(InvalidMessage::QueueId { queue_id, limit }))
    }
}

fn check_not_system(topic: &str) -> Result<()> {
    if is_system_topic(topic) {
        return Err(Error::TopicNotWritable { topic: topic.to_owned() });
    }
    Ok(())
}

fn check_writable(topic: &str, config: &TopicConfig) -> Result<()> {
    if config.perm & TopicConfig::WRITE == 0 || config.write_queue_nums < 1 {
        return Err(Error::TopicNotWritable { topic: topic.to_owned() });
    }
    Ok(())
}

/// Queues below can be chosen.
fn limit_of(config: &TopicConfig) -> i32 {
    config.write_queue_nums.max(config.read_queue_nums)
}

fn check_below(chosen: Option<i32>, limit: i32) -> Result<Option<i32>> {
    match chosen {
        Some(queue_id) if queue_id >= limit => {
            Err(Error::InvalidMessage(InvalidMessage::QueueId { queue_id, limit }))
        }
        chosen => Ok(chosen),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn route(count: i32) -> Route {
        let turn = Arc::default();
        Route { queues: (0..count).collect(), limit: count, turn, version: 0 }
    }

    #[test]
    fn keys_go_where_rocketmq_sends_them() {
        // "customer-6".hashCode() is -1581185529 in Java.
        assert_eq!(java_string_hash("customer-6") % 4, -1);
        assert_eq!(route(4).of_key("customer-6"), 1);
        assert_eq!(route(4).of_key(""), 0);
        // The least number, of which Java's absolute value is itself.
        assert_eq!(java_string_hash("polygenelubricants"), i32::MIN);
        assert_eq!(route(7).of_key("polygenelubricants"), 2);
    }

    #[test]
    fn turns_go_on_where_they_wrap() {
        let route = route(3);
        route.turn.store(u32::MAX, Ordering::Relaxed);
        assert_eq!([route.next(), route.next(), route.next()], [0, 0, 1]);
    }

    proptest! {
        #[test]
        fn a_key_stays_in_its_queue_while_the_number_of_queues_does(
            key in ".{0,40}",
            count in 1i32..100,
            turns in 0u32..50,
        ) {
            let route = route(count);
            let queue = route.of_key(&key);
            prop_assert!((0..count).contains(&queue));
            for _ in 0..turns {
                route.next();
            }
            let message = Message::new("orders", "x").sharding_key(if key.is_empty() { "k" } else { &key });
            if let Some(key) = message.get(names::SHARDING_KEY) {
                prop_assert_eq!(route.asked_for(&message, false).unwrap(), Some(route.of_key(key)));
            }
            let again = super::tests::route(count);
            prop_assert_eq!(again.of_key(&key), queue);
        }
    }
}
