//! `topics.json`: the topics and their queues.

use super::codec::Codec;
use super::json::{Object, named, put, take, typed};
use super::{DataVersion, Table};
use std::collections::BTreeMap;

/// What RocketMQ knows of a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TopicConfig {
    /// Queues that are read.
    pub read_queue_nums: i32,
    /// Queues that are written.
    pub write_queue_nums: i32,
    /// What is allowed: [`READ`](Self::READ), [`WRITE`](Self::WRITE), 1 to inherit, 8 for priority.
    pub perm: i32,
    /// How messages are filtered, `SINGLE_TAG` as a rule.
    pub topic_filter_type: String,
    /// Bits of RocketMQ's about the topic.
    pub topic_sys_flag: i32,
    /// Whether the topic asks for global order.
    pub order: bool,
    /// RocketMQ 5's attributes.
    pub attributes: BTreeMap<String, String>,
    rest: Object,
}

impl TopicConfig {
    /// Bit of [`perm`](Self::perm): messages may be consumed.
    pub const READ: i32 = 4;
    /// Bit of [`perm`](Self::perm): messages may be put.
    pub const WRITE: i32 = 2;

    /// A topic with so many queues, open to all.
    pub fn new(queues: i32) -> Self {
        Self {
            read_queue_nums: queues,
            write_queue_nums: queues,
            perm: Self::READ | Self::WRITE,
            topic_filter_type: "SINGLE_TAG".to_owned(),
            topic_sys_flag: 0,
            order: false,
            attributes: BTreeMap::new(),
            rest: Object::new(),
        }
    }

    fn decode(mut object: Object) -> Result<Self, String> {
        let unsaid = Self::new(16);
        // The key says it.
        object.remove("topicName");
        Ok(Self {
            read_queue_nums: take(&mut object, "readQueueNums", unsaid.read_queue_nums)?,
            write_queue_nums: take(&mut object, "writeQueueNums", unsaid.write_queue_nums)?,
            perm: take(&mut object, "perm", unsaid.perm)?,
            topic_filter_type: take(&mut object, "topicFilterType", unsaid.topic_filter_type)?,
            topic_sys_flag: take(&mut object, "topicSysFlag", unsaid.topic_sys_flag)?,
            order: take(&mut object, "order", unsaid.order)?,
            attributes: take_attributes(&mut object)?,
            rest: object,
        })
    }

    fn encode(&self, name: &str) -> Object {
        let mut object = self.rest.clone();
        put(&mut object, "topicName", name.to_owned());
        put(&mut object, "readQueueNums", self.read_queue_nums);
        put(&mut object, "writeQueueNums", self.write_queue_nums);
        put(&mut object, "perm", self.perm);
        put(&mut object, "topicFilterType", self.topic_filter_type.clone());
        put(&mut object, "topicSysFlag", self.topic_sys_flag);
        put(&mut object, "order", self.order);
        put_attributes(&mut object, &self.attributes);
        object
    }
}

pub(super) fn take_attributes(object: &mut Object) -> Result<BTreeMap<String, String>, String> {
    let attributes = take(object, "attributes", Object::new())?;
    let text = |(key, value): (String, _)| Ok((key, typed("attributes", value)?));
    attributes.into_iter().map(text).collect()
}

pub(super) fn put_attributes(object: &mut Object, attributes: &BTreeMap<String, String>) {
    let object_of = |(key, value): (&String, &String)| (key.clone(), value.clone().into());
    put(object, "attributes", attributes.iter().map(object_of).collect::<Object>());
}

/// The topics of a broker, `topics.json`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TopicTable {
    topics: BTreeMap<String, TopicConfig>,
    version: DataVersion,
    rest: Object,
}

impl TopicTable {
    /// What is known of a topic.
    pub fn get(&self, topic: &str) -> Option<&TopicConfig> {
        self.topics.get(topic)
    }

    /// The same, to be changed.
    pub fn get_mut(&mut self, topic: &str) -> Option<&mut TopicConfig> {
        self.topics.get_mut(topic)
    }

    /// Adds a topic, or replaces what was known of it.
    pub fn set(&mut self, topic: impl Into<String>, config: TopicConfig) -> Option<TopicConfig> {
        self.topics.insert(topic.into(), config)
    }

    /// Forgets a topic.
    pub fn remove(&mut self, topic: &str) -> Option<TopicConfig> {
        self.topics.remove(topic)
    }

    /// All topics, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &TopicConfig)> {
        self.topics.iter().map(|(name, config)| (name.as_str(), config))
    }
}

impl Codec for TopicTable {
    const FILE: &'static str = "topics.json";

    fn decode(mut object: Object) -> Result<Self, String> {
        let table = take(&mut object, "topicConfigTable", Object::new())?;
        Ok(Self {
            topics: named("topic", table, TopicConfig::decode)?,
            version: DataVersion::take(&mut object)?,
            rest: object,
        })
    }

    fn encode(&self) -> Object {
        let mut object = self.rest.clone();
        let topic =
            |(name, config): (&String, &TopicConfig)| (name.clone(), config.encode(name).into());
        put(&mut object, "topicConfigTable", self.topics.iter().map(topic).collect::<Object>());
        self.version.put(&mut object);
        object
    }

    fn data_version_mut(&mut self) -> &mut DataVersion {
        &mut self.version
    }
}

impl Table for TopicTable {
    fn data_version(&self) -> &DataVersion {
        &self.version
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tables::json::parse;

    const FIVE: &str = r#"{
        "dataVersion":{"counter":3,"stateVersion":7,"timestamp":1700000000123,"vendor":1},
        "mystery":[1,{"2":null}],
        "topicConfigTable":{
            "orders":{"attributes":{"+message.type":"FIFO"},"order":true,"perm":4,"readQueueNums":8,
                "topicFilterType":"MULTI_TAG","topicName":"orders","topicSysFlag":1,
                "writeQueueNums":4,"zone":"a"},
            "old":{"topicName":"old","attributes":null}
        }}"#;

    #[test]
    fn every_field_is_read_and_what_is_unknown_is_written_back() {
        let object = parse(FIVE.as_bytes()).unwrap();
        let mut table = TopicTable::decode(object.clone()).unwrap();
        let orders = table.get("orders").unwrap();
        assert_eq!((orders.read_queue_nums, orders.write_queue_nums), (8, 4));
        assert_eq!(
            (orders.perm, orders.order, orders.topic_sys_flag),
            (TopicConfig::READ, true, 1)
        );
        assert_eq!(orders.topic_filter_type, "MULTI_TAG");
        assert_eq!(orders.attributes["+message.type"], "FIFO");
        assert_eq!(table.get("old"), Some(&TopicConfig::new(16)));
        assert_eq!((table.version.counter, table.version.state_version), (3, 7));

        let written = table.encode();
        assert_eq!(written["mystery"], object["mystery"]);
        assert_eq!(written["dataVersion"], object["dataVersion"]);
        let topic = |object: &Object, name: &str| object["topicConfigTable"][name].clone();
        assert_eq!(topic(&written, "orders"), topic(&object, "orders"));
        assert_eq!(TopicTable::decode(written).unwrap(), table);

        table.get_mut("orders").unwrap().perm = 6;
        assert_eq!(topic(&table.encode(), "orders")["zone"], "a");
        assert_eq!(table.remove("orders").unwrap().perm, 6);
        assert_eq!(table.set("new", TopicConfig::new(2)), None);
        assert_eq!(table.iter().map(|(name, _)| name).collect::<Vec<_>>(), ["new", "old"]);
    }

    #[test]
    fn what_is_no_topic_is_said() {
        for (text, what) in [
            ("{topicConfigTable:[]}", "`topicConfigTable` is an array, not an object"),
            ("{topicConfigTable:{T:1}}", "topic \"T\": `T` is a number, not an object"),
            (
                "{topicConfigTable:{T:{perm:\"6\"}}}",
                "topic \"T\": `perm` is a string, not an integer of 32 bits",
            ),
            ("{dataVersion:1}", "`dataVersion` is a number, not an object"),
        ] {
            let object = parse(text.as_bytes()).unwrap();
            assert_eq!(TopicTable::decode(object).unwrap_err(), what);
        }
    }
}
