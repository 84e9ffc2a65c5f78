//! What happens to messages that could not be handled.

use super::group::{Group, Mode, dead_letter_topic, retry_topic};
use crate::error::{Error, InvalidMessage, Result};
use crate::log::MessageView;
use crate::message::format::{
    DEAD_LETTER_TOPIC_PREFIX, DELAY_LEVELS_MS, RETRY_TOPIC_PREFIX, TIMER_DELAY_MAX_MS,
};
use crate::message::{Message, RecordRef, SysFlag, names};
use crate::store::Ticket;
use std::collections::BTreeMap;
use std::time::Duration;

/// The level of a message's first retry.
const FIRST_LEVEL: u32 = 3;
/// How long a message that failed holds up its queue, where it does.
const SUSPEND: Duration = Duration::from_secs(1);

/// What a consumer wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Later,
    After(Duration),
    Dead,
}

/// What is done about it.
pub(super) enum Plan {
    /// The message stays where it is and comes again after so long.
    InPlace(Duration),
    /// This is stored, and the message is done with.
    Copy(Message),
}

/// A delay that a message may have.
pub(super) fn checked(delay: Duration) -> Result<Duration> {
    let max = Duration::from_millis(TIMER_DELAY_MAX_MS.unsigned_abs());
    if delay > max {
        let delay_ms = i64::try_from(delay.as_millis()).unwrap_or(i64::MAX);
        let max_ms = TIMER_DELAY_MAX_MS;
        return Err(Error::InvalidMessage(InvalidMessage::DelayTooLong { delay_ms, max_ms }));
    }
    Ok(delay.max(Duration::from_millis(1)))
}

/// The message without what is missed least of its properties, if there is anything to do without.
fn leaner(message: Message) -> Option<Message> {
    // What it takes to come again, to be known, and not to be taken for one that was handled.
    let needed = [
        names::RETRY_TOPIC,
        names::DELAY,
        names::TIMER_DELAY_MS,
        names::WAIT,
        names::UNIQ_KEY,
        names::ORIGIN_MESSAGE_ID,
    ];
    // They say the same once more, to people.
    let spare = [names::DLQ_ORIGIN_MESSAGE_ID, names::DLQ_ORIGIN_TOPIC];
    let last = [names::TAGS, names::KEYS, names::SHARDING_KEY];
    let properties = message.properties_ref();
    let rank = |name: &str| match name {
        name if spare.contains(&name) => 2,
        name if last.contains(&name) => 0,
        _ => 1,
    };
    let others = properties.iter().filter(|(name, _)| !needed.contains(name));
    let (_, _, name) =
        others.map(|(name, value)| (rank(name), value.len(), name.to_owned())).max()?;
    Some(message.without(&[&name]))
}

/// A copy that is a message of its own: not what a transaction has brought about, though what it was made of is.
pub(super) fn copy_of(record: &RecordRef<'_>, topic: impl Into<String>) -> Message {
    let copy = Message::copy_of(record, topic).with_known_body();
    let sys_flag = copy.sys_flag.without(SysFlag::TRANSACTION_MASK);
    copy.sys_flag(sys_flag).without(&[names::TRANSACTION_PREPARED])
}

/// Whether a topic is that of a group's retries.
pub(super) fn is_retry(topic: &str) -> bool {
    topic.starts_with(RETRY_TOPIC_PREFIX)
}

/// Whether a topic is that of a group's dead letters.
pub(in crate::delivery) fn is_dead_letter(topic: &str) -> bool {
    topic.starts_with(DEAD_LETTER_TOPIC_PREFIX)
}

/// The delay of a level of RocketMQ's, the first of which is 1.
fn delay_of(level: u32) -> Duration {
    let last = DELAY_LEVELS_MS.len() - 1;
    let millis = DELAY_LEVELS_MS.get((level.max(1) as usize - 1).min(last));
    Duration::from_millis(millis.map_or(0, |millis| millis.unsigned_abs()))
}

/// The level that delays by exactly so long.
fn level_of(delay: Duration) -> Option<u32> {
    let level = DELAY_LEVELS_MS.iter().position(|millis| delay.as_millis() as i64 == *millis)?;
    u32::try_from(level + 1).ok()
}

/// What is to take the place of messages of a queue, and is not known to be safe: should they be set aside once
/// more, it is waited for, and not made again.
#[derive(Default)]
pub(super) struct Copies {
    laid: BTreeMap<u64, Vec<(Fate, Ticket)>>,
}

impl Copies {
    /// That of a message for which the same was wanted, to be waited for as long as at first.
    pub(super) fn find(&self, offset: u64, fate: Fate) -> Option<Ticket> {
        let laid = self.laid.get(&offset)?;
        laid.iter().find(|(known, _)| *known == fate).map(|(_, ticket)| ticket.again())
    }

    /// Keeps one. Everything before `floor` is done with.
    pub(super) fn keep(&mut self, offset: u64, fate: Fate, copy: Ticket, floor: u64) {
        self.laid = self.laid.split_off(&floor);
        self.laid.entry(offset).or_default().push((fate, copy));
    }

    /// A message is done with.
    pub(super) fn forget(&mut self, offset: u64) {
        self.laid.remove(&offset);
    }
}

impl Group {
    /// What to do about a message that its consumers have failed to handle `failures` times before.
    pub(super) fn plan(&self, view: &MessageView, failures: u32, max: u32, fate: Fate) -> Plan {
        let record = view.record();
        let level = FIRST_LEVEL.saturating_add(failures);
        match (fate, &self.agreement.mode) {
            (Fate::Dead, _) => Plan::Copy(self.dead_letter(&record)),
            // Those are counted here, and set aside when they are to come again.
            (Fate::Later, Mode::Ordered) => Plan::InPlace(SUSPEND),
            (Fate::Later, Mode::Broadcast { .. }) => Plan::InPlace(delay_of(level)),
            (Fate::After(delay), Mode::Ordered | Mode::Broadcast { .. }) => Plan::InPlace(delay),
            _ if failures >= max => Plan::Copy(self.dead_letter(&record)),
            (Fate::Later, _) => Plan::Copy(self.retry(&record, failures).delay_level(level)),
            (Fate::After(delay), _) => {
                let retry = self.retry(&record, failures);
                Plan::Copy(match level_of(delay) {
                    Some(level) => retry.delay_level(level),
                    None => retry.property(names::TIMER_DELAY_MS, delay.as_millis().to_string()),
                })
            }
        }
    }

    /// Whether a topic is that of the group's own retries.
    pub(super) fn is_own_retry(&self, topic: &str) -> bool {
        topic.strip_prefix(RETRY_TOPIC_PREFIX) == Some(&self.name)
    }

    /// Stores what takes a message's place; whoever waits for the ticket knows it to be durable and as safe
    /// as the store's settings ask.
    pub(super) fn lay_copy(&self, copy: Message) -> Result<Ticket> {
        let mut copy = copy;
        loop {
            match self.delivery.lay(&self.store, copy.clone()) {
                // Its properties leave no room for what says where it comes from: the message itself must not
                // get lost for that.
                Err(error @ Error::TooLarge { .. }) => copy = leaner(copy).ok_or(error)?,
                laid => return laid,
            }
        }
    }

    fn retry(&self, record: &RecordRef<'_>, failures: u32) -> Message {
        let times = i32::try_from(failures.saturating_add(1)).unwrap_or(i32::MAX);
        self.copy(record, retry_topic(&self.name)).reconsume_times(times)
    }

    /// What becomes of a message that is never handled.
    pub(super) fn dead_letter(&self, record: &RecordRef<'_>) -> Message {
        let times = i32::try_from(self.retried(record)).unwrap_or(i32::MAX).saturating_add(1);
        let copy = self.copy(record, dead_letter_topic(&self.name)).reconsume_times(times);
        let topic = copy.get(names::RETRY_TOPIC).unwrap_or(record.topic()).to_owned();
        let origin = copy.get(names::ORIGIN_MESSAGE_ID).map(str::to_owned);
        let copy = copy.property(names::DLQ_ORIGIN_TOPIC, topic);
        match origin {
            Some(id) => copy.property(names::DLQ_ORIGIN_MESSAGE_ID, id),
            None => copy,
        }
    }

    /// The message, for one of the group's own topics, with what says where it came from at first.
    fn copy(&self, record: &RecordRef<'_>, topic: String) -> Message {
        // How it was delayed before is done with, and what waits may not pass for a cancellation.
        let gone = [
            names::TIMER_DELETE_UNIQUE_KEY,
            names::DELAY,
            names::TIMER_DELAY_SEC,
            names::TIMER_DELAY_MS,
            names::TIMER_DELIVER_MS,
            names::TIMER_OUT_MS,
        ];
        let mut copy = copy_of(record, topic).without(&gone);
        // What anybody else says of that means nothing.
        let own = self.is_own_retry(record.topic());
        if !own || copy.get(names::RETRY_TOPIC).is_none() {
            copy = copy.property(names::RETRY_TOPIC, record.topic());
        }
        if !own || copy.get(names::ORIGIN_MESSAGE_ID).is_none() {
            copy = copy.property(names::ORIGIN_MESSAGE_ID, record.message_id().to_string());
        }
        copy.wait(false)
    }
}
