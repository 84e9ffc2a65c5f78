//! `delayOffset.json`: how far each delay level has been delivered.

use super::codec::Codec;
use super::json::{Object, from_numbered, numbered, put, take};
use super::{DataVersion, Table};
use std::collections::BTreeMap;

/// Delivery progress of delayed messages, `delayOffset.json`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DelayOffsets {
    offsets: BTreeMap<i32, i64>,
    version: DataVersion,
    rest: Object,
}

impl DelayOffsets {
    /// The queue offset of the next message of a level, counted from 1, that is not delivered.
    pub fn get(&self, level: i32) -> Option<i64> {
        self.offsets.get(&level).copied()
    }

    /// Sets it; the one it had before.
    pub fn set(&mut self, level: i32, offset: i64) -> Option<i64> {
        self.offsets.insert(level, offset)
    }

    /// All levels and their offsets.
    pub fn iter(&self) -> impl Iterator<Item = (i32, i64)> {
        self.offsets.iter().map(|(&level, &offset)| (level, offset))
    }
}

impl Codec for DelayOffsets {
    const FILE: &'static str = "delayOffset.json";

    fn decode(mut object: Object) -> Result<Self, String> {
        let name = "offsetTable";
        let table = take(&mut object, name, Object::new())?;
        Ok(Self {
            offsets: numbered(name, table)?,
            version: DataVersion::take(&mut object)?,
            rest: object,
        })
    }

    fn encode(&self) -> Object {
        let mut object = self.rest.clone();
        put(&mut object, "offsetTable", from_numbered(&self.offsets));
        self.version.put(&mut object);
        object
    }

    fn data_version_mut(&mut self) -> &mut DataVersion {
        &mut self.version
    }
}

impl Table for DelayOffsets {
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
        let object = parse(b"{\n\t\"offsetTable\":{1:8,2:11\n\t}\n}").unwrap();
        let mut offsets = DelayOffsets::decode(object).unwrap();
        assert_eq!(offsets.iter().collect::<Vec<_>>(), [(1, 8), (2, 11)]);
        assert_eq!(offsets.set(3, i64::MAX), None);
        assert_eq!(offsets.get(3), Some(i64::MAX));
        assert_eq!(DelayOffsets::decode(offsets.encode()).unwrap(), offsets);
    }
}
