//! The queue offsets that the next records get.

use super::queue_entry::QUEUE_OFFSET_MAX;
use super::quick_hash::QuickHash;
use std::collections::HashMap;

/// The next queue offset of each queue; RocketMQ's `topicQueueTable`.
///
/// It lives under the append lock, where offsets are given out, and runs ahead of
/// [`ConsumeQueue::max_offset`](super::ConsumeQueue::max_offset), which moves when a message has been
/// dispatched.
#[derive(Debug, Default)]
pub(super) struct QueueOffsets {
    topics: HashMap<Box<str>, HashMap<i32, u64, QuickHash>, QuickHash>,
    /// Some queue was continued so far out that it may come to its end.
    some_far: bool,
}

/// No queue comes this far by itself.
const FAR: u64 = QUEUE_OFFSET_MAX / 2;

impl QueueOffsets {
    /// Gives out the next offset of a queue, 0 in one not heard of before. Allocates nothing for the
    /// others.
    pub(super) fn take(&mut self, topic: &str, queue_id: i32) -> u64 {
        let known = self.topics.get_mut(topic).and_then(|queues| queues.get_mut(&queue_id));
        if let Some(next) = known {
            *next += 1;
            return *next - 1;
        }
        self.set(topic, queue_id, 1);
        0
    }

    /// Whether a queue can give out `count` offsets more.
    pub(super) fn has_room(&self, topic: &str, queue_id: i32, count: usize) -> bool {
        let next = || self.topics.get(topic)?.get(&queue_id).copied();
        !self.some_far || next().unwrap_or(0).saturating_add(count as u64) <= QUEUE_OFFSET_MAX
    }

    /// Continues a queue at `next`.
    pub(super) fn set(&mut self, topic: &str, queue_id: i32, next: u64) {
        self.some_far |= next > FAR;
        self.topics.entry(topic.into()).or_default().insert(queue_id, next);
    }
}
