//! `consumerOffset.json`: how far each consumer group has come in each queue.

use super::codec::Codec;
use super::json::{Object, from_numbered, named, numbered, put, take};
use super::{DataVersion, Table};
use crate::error::{Error, Result};
use std::collections::BTreeMap;

/// Stands between topic and group in a key.
const SEPARATOR: char = '@';

/// How far a consumer group has come in one queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct QueueProgress<'a> {
    /// The topic.
    pub topic: &'a str,
    /// The consumer group.
    pub group: &'a str,
    /// The queue of the topic.
    pub queue_id: i32,
    /// The queue offset of the next message.
    pub offset: i64,
}

/// Consumption progress, `consumerOffset.json`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ConsumerOffsets {
    /// By `topic@group`, then by queue.
    offsets: BTreeMap<String, BTreeMap<i32, i64>>,
    version: DataVersion,
    rest: Object,
}

fn key(topic: &str, group: &str) -> String {
    format!("{topic}{SEPARATOR}{group}")
}

impl ConsumerOffsets {
    /// The queue offset of the next message that `group` has not consumed.
    pub fn get(&self, topic: &str, group: &str, queue_id: i32) -> Option<i64> {
        self.offsets.get(&key(topic, group))?.get(&queue_id).copied()
    }

    /// Sets it; the one it had before.
    ///
    /// # Errors
    /// [`Error::Config`] for a topic or group with an `@`, which would make it that of others.
    pub fn set(
        &mut self,
        topic: &str,
        group: &str,
        queue_id: i32,
        offset: i64,
    ) -> Result<Option<i64>> {
        for (field, name) in [("topic", topic), ("group", group)] {
            if name.is_empty() || name.contains(SEPARATOR) {
                let allowed = "a name without `@`";
                return Err(Error::Config { field, value: format!("{name:?}"), allowed });
            }
        }
        Ok(self.offsets.entry(key(topic, group)).or_default().insert(queue_id, offset))
    }

    /// Forgets how far a group has come in a topic; whether anything was known.
    pub fn remove(&mut self, topic: &str, group: &str) -> bool {
        self.offsets.remove(&key(topic, group)).is_some()
    }

    /// All that is known, by topic and group.
    pub fn iter(&self) -> impl Iterator<Item = QueueProgress<'_>> {
        self.offsets.iter().flat_map(|(key, queues)| {
            let (topic, group) = key.split_once(SEPARATOR).unwrap_or((key, ""));
            queues.iter().map(move |(&queue_id, &offset)| QueueProgress {
                topic,
                group,
                queue_id,
                offset,
            })
        })
    }
}

impl Codec for ConsumerOffsets {
    const FILE: &'static str = "consumerOffset.json";

    fn decode(mut object: Object) -> Result<Self, String> {
        let table = take(&mut object, "offsetTable", Object::new())?;
        Ok(Self {
            offsets: named("offsets of", table, |queues| numbered("offset", queues))?,
            version: DataVersion::take(&mut object)?,
            rest: object,
        })
    }

    fn encode(&self) -> Object {
        let mut object = self.rest.clone();
        let queues = |(key, queues): (&String, &BTreeMap<i32, i64>)| {
            (key.clone(), from_numbered(queues).into())
        };
        put(&mut object, "offsetTable", self.offsets.iter().map(queues).collect::<Object>());
        self.version.put(&mut object);
        object
    }

    fn data_version_mut(&mut self) -> &mut DataVersion {
        &mut self.version
    }
}

impl Table for ConsumerOffsets {
    fn data_version(&self) -> &DataVersion {
        &self.version
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tables::json::parse;

    #[test]
    fn what_fastjson_writes_is_read() {
        let text = b"{\"offsetTable\":{\"T@G\":{0:12,1:7},\"%RETRY%G@G\":{0:-1}},\"pull\":{1:2}}";
        let mut offsets = ConsumerOffsets::decode(parse(text).unwrap()).unwrap();
        assert_eq!(offsets.get("T", "G", 0), Some(12));
        assert_eq!(offsets.get("T", "G", 1), Some(7));
        assert_eq!(offsets.get("%RETRY%G", "G", 0), Some(-1));
        assert_eq!(offsets.get("T", "H", 0), None);
        assert_eq!(offsets.set("T", "G", 0, 13).unwrap(), Some(12));
        assert_eq!(offsets.set("T", "H", 5, 1).unwrap(), None);
        assert!(offsets.remove("%RETRY%G", "G") && !offsets.remove("%RETRY%G", "G"));
        let all: Vec<_> = offsets.iter().map(|at| (at.group, at.queue_id, at.offset)).collect();
        assert_eq!(all, [("G", 0, 13), ("G", 1, 7), ("H", 5, 1)]);
        let written = offsets.encode();
        assert_eq!(written["pull"]["1"], 2);
        assert_eq!(ConsumerOffsets::decode(written).unwrap(), offsets);
    }

    #[test]
    fn names_that_would_be_taken_for_others_are_refused() {
        let mut offsets = ConsumerOffsets::default();
        for (topic, group, field) in
            [("a@b", "c", "topic"), ("a", "b@c", "group"), ("", "b", "topic"), ("a", "", "group")]
        {
            let error = offsets.set(topic, group, 0, 1).unwrap_err();
            assert!(
                matches!(error, Error::Config { field: found, .. } if found == field),
                "{error}"
            );
        }
        assert_eq!(offsets.iter().count(), 0);
    }

    #[test]
    fn what_is_no_offset_is_said() {
        for (text, what) in [
            (
                "{offsetTable:{a:{b:1}}}",
                "offsets of \"a\": `offset` has the key \"b\", not an integer of 32 bits",
            ),
            (
                "{offsetTable:{a:{1:{}}}}",
                "offsets of \"a\": `offset` is an object, not an integer of 64 bits",
            ),
            ("{offsetTable:{a:7}}", "offsets of \"a\": `a` is a number, not an object"),
        ] {
            let object = parse(text.as_bytes()).unwrap();
            assert_eq!(ConsumerOffsets::decode(object).unwrap_err(), what);
        }
    }
}
