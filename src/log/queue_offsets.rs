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
    topics: HashMap<Box<str>, Topic, QuickHash>,
    /// Some queue was continued so far out that it may come to its end.
    some_far: bool,
}

/// The next queue offsets of one topic.
#[derive(Debug, Default)]
struct Topic {
    /// Of queues below [`LOW_QUEUES`], which most are: found without a search.
    low: Vec<u64>,
    high: HashMap<i32, u64, QuickHash>,
}

const LOW_QUEUES: usize = 64;

impl Topic {
    fn get(&self, queue_id: i32) -> Option<u64> {
        match low(queue_id) {
            Some(index) => self.low.get(index).copied(),
            None => self.high.get(&queue_id).copied(),
        }
    }

    fn get_mut(&mut self, queue_id: i32) -> Option<&mut u64> {
        match low(queue_id) {
            Some(index) => self.low.get_mut(index),
            None => self.high.get_mut(&queue_id),
        }
    }

    fn set(&mut self, queue_id: i32, next: u64) {
        let Some(index) = low(queue_id) else {
            self.high.insert(queue_id, next);
            return;
        };
        if self.low.len() <= index {
            self.low.resize(index + 1, 0);
        }
        if let Some(place) = self.low.get_mut(index) {
            *place = next;
        }
    }
}

fn low(queue_id: i32) -> Option<usize> {
    usize::try_from(queue_id).ok().filter(|index| *index < LOW_QUEUES)
}

/// No queue comes this far by itself.
const FAR: u64 = QUEUE_OFFSET_MAX / 2;

impl QueueOffsets {
    /// Gives out the next offset of a queue, 0 in one not heard of before. Allocates nothing for the
    /// others.
    pub(super) fn take(&mut self, topic: &str, queue_id: i32) -> u64 {
        let known = self.topics.get_mut(topic).and_then(|topic| topic.get_mut(queue_id));
        if let Some(next) = known {
            *next += 1;
            return *next - 1;
        }
        self.set(topic, queue_id, 1);
        0
    }

    /// Whether a queue can give out `count` offsets more.
    pub(super) fn has_room(&self, topic: &str, queue_id: i32, count: usize) -> bool {
        let next = || self.topics.get(topic)?.get(queue_id);
        !self.some_far || next().unwrap_or(0).saturating_add(count as u64) <= QUEUE_OFFSET_MAX
    }

    /// The offset that the next record of a queue gets.
    pub(super) fn next(&self, topic: &str, queue_id: i32) -> u64 {
        self.topics.get(topic).and_then(|topic| topic.get(queue_id)).unwrap_or(0)
    }

    /// Continues a queue at `next`.
    pub(super) fn set(&mut self, topic: &str, queue_id: i32, next: u64) {
        self.some_far |= next > FAR;
        self.topics.entry(topic.into()).or_default().set(queue_id, next);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_queue_counts_by_itself() {
        let mut offsets = QueueOffsets::default();
        let queues = [0, 1, 63, 64, 65, i32::MAX];
        for round in 0..3 {
            for topic in ["a", "b"] {
                for queue_id in queues {
                    assert_eq!(offsets.take(topic, queue_id), round, "{topic} {queue_id}");
                }
            }
        }
        assert_eq!(offsets.take("a", 62), 0);
        for queue_id in [7, 700] {
            offsets.set("a", queue_id, 1000);
            assert_eq!((offsets.take("a", queue_id), offsets.take("b", queue_id)), (1000, 0));
        }
    }

    #[test]
    fn a_queue_has_room_up_to_its_last_offset() {
        let mut offsets = QueueOffsets::default();
        assert!(offsets.has_room("a", 0, usize::MAX >> 8));
        for queue_id in [0, 100] {
            offsets.set("a", queue_id, QUEUE_OFFSET_MAX - 1);
            assert!(offsets.has_room("a", queue_id, 1) && !offsets.has_room("a", queue_id, 2));
            assert_eq!(offsets.take("a", queue_id), QUEUE_OFFSET_MAX - 1);
            assert!(!offsets.has_room("a", queue_id, 1) && offsets.has_room("a", 1, 1));
        }
    }
}
