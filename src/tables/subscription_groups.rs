//! `subscriptionGroup.json`: the consumer groups.

use super::codec::Codec;
use super::json::{Object, named, put, take};
use super::topics::{put_attributes, take_attributes};
use super::{DataVersion, Table};
use std::collections::BTreeMap;

/// What RocketMQ knows of a consumer group. [`Default`] is what it assumes of a new one.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SubscriptionGroup {
    /// Whether the group may consume.
    pub consume_enable: bool,
    /// Whether a group without an offset begins at the least one.
    pub consume_from_min_enable: bool,
    /// Whether each consumer may have all messages.
    pub consume_broadcast_enable: bool,
    /// Whether the group consumes in order.
    pub consume_message_orderly: bool,
    /// Queues of the group's retry topic.
    pub retry_queue_nums: i32,
    /// Deliveries after which a message is a dead letter.
    pub retry_max_times: i32,
    /// The broker that the group consumes from.
    pub broker_id: i64,
    /// The broker that the group is sent to when it falls behind.
    pub which_broker_when_consume_slowly: i64,
    /// Whether consumers are told of each other.
    pub notify_consumer_ids_changed_enable: bool,
    /// Bits of RocketMQ's about the group.
    pub group_sys_flag: i32,
    /// Minutes after which a message that is being consumed counts as failed.
    pub consume_timeout_minute: i32,
    /// RocketMQ 5's attributes.
    pub attributes: BTreeMap<String, String>,
    rest: Object,
}

impl Default for SubscriptionGroup {
    fn default() -> Self {
        Self {
            consume_enable: true,
            consume_from_min_enable: true,
            consume_broadcast_enable: true,
            consume_message_orderly: false,
            retry_queue_nums: 1,
            retry_max_times: 16,
            broker_id: 0,
            which_broker_when_consume_slowly: 1,
            notify_consumer_ids_changed_enable: true,
            group_sys_flag: 0,
            consume_timeout_minute: 15,
            attributes: BTreeMap::new(),
            rest: Object::new(),
        }
    }
}

impl SubscriptionGroup {
    fn decode(object: Object) -> Result<Self, String> {
        let unsaid = Self::default();
        let mut rest = object;
        // The key says it.
        rest.remove("groupName");
        let from = &mut rest;
        Ok(Self {
            consume_enable: take(from, "consumeEnable", unsaid.consume_enable)?,
            consume_from_min_enable: take(
                from,
                "consumeFromMinEnable",
                unsaid.consume_from_min_enable,
            )?,
            consume_broadcast_enable: take(
                from,
                "consumeBroadcastEnable",
                unsaid.consume_broadcast_enable,
            )?,
            consume_message_orderly: take(
                from,
                "consumeMessageOrderly",
                unsaid.consume_message_orderly,
            )?,
            retry_queue_nums: take(from, "retryQueueNums", unsaid.retry_queue_nums)?,
            retry_max_times: take(from, "retryMaxTimes", unsaid.retry_max_times)?,
            broker_id: take(from, "brokerId", unsaid.broker_id)?,
            which_broker_when_consume_slowly: take(
                from,
                "whichBrokerWhenConsumeSlowly",
                unsaid.which_broker_when_consume_slowly,
            )?,
            notify_consumer_ids_changed_enable: take(
                from,
                "notifyConsumerIdsChangedEnable",
                unsaid.notify_consumer_ids_changed_enable,
            )?,
            group_sys_flag: take(from, "groupSysFlag", unsaid.group_sys_flag)?,
            consume_timeout_minute: take(
                from,
                "consumeTimeoutMinute",
                unsaid.consume_timeout_minute,
            )?,
            attributes: take_attributes(from)?,
            rest,
        })
    }

    fn encode(&self, name: &str) -> Object {
        let mut object = self.rest.clone();
        let to = &mut object;
        put(to, "groupName", name.to_owned());
        put(to, "consumeEnable", self.consume_enable);
        put(to, "consumeFromMinEnable", self.consume_from_min_enable);
        put(to, "consumeBroadcastEnable", self.consume_broadcast_enable);
        put(to, "consumeMessageOrderly", self.consume_message_orderly);
        put(to, "retryQueueNums", self.retry_queue_nums);
        put(to, "retryMaxTimes", self.retry_max_times);
        put(to, "brokerId", self.broker_id);
        put(to, "whichBrokerWhenConsumeSlowly", self.which_broker_when_consume_slowly);
        put(to, "notifyConsumerIdsChangedEnable", self.notify_consumer_ids_changed_enable);
        put(to, "groupSysFlag", self.group_sys_flag);
        put(to, "consumeTimeoutMinute", self.consume_timeout_minute);
        put_attributes(to, &self.attributes);
        object
    }
}

/// The consumer groups of a broker, `subscriptionGroup.json`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SubscriptionGroups {
    groups: BTreeMap<String, SubscriptionGroup>,
    version: DataVersion,
    rest: Object,
}

impl SubscriptionGroups {
    /// What is known of a group.
    pub fn get(&self, group: &str) -> Option<&SubscriptionGroup> {
        self.groups.get(group)
    }

    /// The same, to be changed.
    pub fn get_mut(&mut self, group: &str) -> Option<&mut SubscriptionGroup> {
        self.groups.get_mut(group)
    }

    /// Adds a group, or replaces what was known of it.
    pub fn set(
        &mut self,
        group: impl Into<String>,
        config: SubscriptionGroup,
    ) -> Option<SubscriptionGroup> {
        self.groups.insert(group.into(), config)
    }

    /// Forgets a group.
    pub fn remove(&mut self, group: &str) -> Option<SubscriptionGroup> {
        self.groups.remove(group)
    }

    /// All groups, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &SubscriptionGroup)> {
        self.groups.iter().map(|(name, config)| (name.as_str(), config))
    }
}

impl Codec for SubscriptionGroups {
    const FILE: &'static str = "subscriptionGroup.json";

    fn decode(mut object: Object) -> Result<Self, String> {
        let table = take(&mut object, "subscriptionGroupTable", Object::new())?;
        Ok(Self {
            groups: named("group", table, SubscriptionGroup::decode)?,
            version: DataVersion::take(&mut object)?,
            rest: object,
        })
    }

    fn encode(&self) -> Object {
        let mut object = self.rest.clone();
        let group = |(name, config): (&String, &SubscriptionGroup)| {
            (name.clone(), config.encode(name).into())
        };
        let table = self.groups.iter().map(group).collect::<Object>();
        put(&mut object, "subscriptionGroupTable", table);
        self.version.put(&mut object);
        object
    }

    fn data_version_mut(&mut self) -> &mut DataVersion {
        &mut self.version
    }
}

impl Table for SubscriptionGroups {
    fn data_version(&self) -> &DataVersion {
        &self.version
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tables::json::parse;

    const FIVE: &str = r#"{
        "dataVersion":{"counter":1,"stateVersion":0,"timestamp":2},
        "forbiddenTable":{"G":{"T":1}},
        "subscriptionGroupTable":{"G":{"attributes":{"a":"b"},"brokerId":1,
            "consumeBroadcastEnable":false,"consumeEnable":false,"consumeFromMinEnable":false,
            "consumeMessageOrderly":true,"consumeTimeoutMinute":5,"groupName":"G",
            "groupRetryPolicy":{"type":"CUSTOMIZED"},"groupSysFlag":2,
            "notifyConsumerIdsChangedEnable":false,"retryMaxTimes":3,"retryQueueNums":2,
            "whichBrokerWhenConsumeSlowly":4},"H":{}}}"#;

    #[test]
    fn every_field_is_read_and_written_back() {
        let object = parse(FIVE.as_bytes()).unwrap();
        let mut table = SubscriptionGroups::decode(object.clone()).unwrap();
        let group = table.get("G").unwrap();
        assert!(!group.consume_enable && !group.consume_from_min_enable);
        assert!(!group.consume_broadcast_enable && group.consume_message_orderly);
        assert!(!group.notify_consumer_ids_changed_enable);
        assert_eq!((group.retry_queue_nums, group.retry_max_times), (2, 3));
        assert_eq!((group.broker_id, group.which_broker_when_consume_slowly), (1, 4));
        assert_eq!((group.group_sys_flag, group.consume_timeout_minute), (2, 5));
        assert_eq!(table.get("H"), Some(&SubscriptionGroup::default()));

        let written = table.encode();
        let table_of = |object: &Object| object["subscriptionGroupTable"]["G"].clone();
        assert_eq!(table_of(&written), table_of(&object));
        assert_eq!(written["forbiddenTable"], object["forbiddenTable"]);

        table.get_mut("H").unwrap().retry_max_times = 1;
        assert_eq!(table.remove("H").unwrap().retry_max_times, 1);
        table.set("I", SubscriptionGroup::default());
        assert_eq!(table.iter().map(|(name, _)| name).collect::<Vec<_>>(), ["G", "I"]);
    }

    #[test]
    fn what_is_no_group_is_said() {
        let object = parse(b"{subscriptionGroupTable:{G:{consumeEnable:1}}}").unwrap();
        let what = "group \"G\": `consumeEnable` is a number, not true or false";
        assert_eq!(SubscriptionGroups::decode(object).unwrap_err(), what);
    }
}
