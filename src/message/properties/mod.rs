//! The property string of a message: `name 0x01 value 0x02`, repeated.
//!
//! [`Properties`] is that string, not a map made from it, so order, duplicates and entries that
//! RocketMQ would skip survive being read and written again. Reading follows RocketMQ's decoder:
//! entries end at 0x02, which the last may lack; a name ends at the entry's first 0x01; entries
//! without a name, without a value, or without the 0x01 do not exist; of duplicates the last counts.
//!
//! Nothing makes the bytes UTF-8. Methods that speak `&str` see only what is; the `raw` ones see all.

pub mod names;

use super::format::{NAME_END, VALUE_END};
use crate::error::InvalidMessage;
use std::fmt;
use std::ops::Range;

/// Properties of a message, owned.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Properties {
    bytes: Vec<u8>,
}

/// Properties of a message, borrowed.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct PropertiesRef<'a> {
    bytes: &'a [u8],
}

impl<'a> PropertiesRef<'a> {
    /// Reads a property string. Any bytes will do; what does not parse is skipped.
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    /// The property string.
    pub const fn as_bytes(self) -> &'a [u8] {
        self.bytes
    }

    /// Names and values in order, duplicates included, but for those that are not UTF-8.
    pub fn iter(self) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.iter_raw().filter_map(|(name, value)| {
            Some((str::from_utf8(name).ok()?, str::from_utf8(value).ok()?))
        })
    }

    /// Names and values in order, duplicates included.
    pub fn iter_raw(self) -> impl DoubleEndedIterator<Item = (&'a [u8], &'a [u8])> {
        self.bytes
            .split(|&byte| byte == VALUE_END)
            .filter_map(split_entry)
            .filter(|(name, value)| !name.is_empty() && !value.is_empty())
    }

    /// The value of `name`; `None` also where it is not UTF-8.
    pub fn get(self, name: &str) -> Option<&'a str> {
        self.get_raw(name.as_bytes()).and_then(|value| str::from_utf8(value).ok())
    }

    /// The value of `name`.
    pub fn get_raw(self, name: &[u8]) -> Option<&'a [u8]> {
        self.iter_raw().rev().find(|&(found, _)| found == name).map(|(_, value)| value)
    }

    /// Number of entries that [`iter_raw`](Self::iter_raw) yields. For the length of the string
    /// see [`as_bytes`](Self::as_bytes).
    pub fn len(self) -> usize {
        self.iter_raw().count()
    }

    /// Whether there is no entry.
    pub fn is_empty(self) -> bool {
        self.iter_raw().next().is_none()
    }

    /// A copy of its own.
    pub fn to_owned(self) -> Properties {
        Properties { bytes: self.bytes.to_vec() }
    }

    /// The value of `TAGS`.
    pub fn tags(self) -> Option<&'a str> {
        self.get(names::TAGS)
    }

    /// The value of `KEYS`: keys separated by spaces.
    pub fn keys(self) -> Option<&'a str> {
        self.get(names::KEYS)
    }

    /// The id that the producer gave the message, the value of `UNIQ_KEY`.
    pub fn unique_key(self) -> Option<&'a str> {
        self.get(names::UNIQ_KEY)
    }

    /// Whether a put waits for flush and replication: unless `WAIT` says `false`.
    pub fn waits(self) -> bool {
        !self
            .get_raw(names::WAIT.as_bytes())
            .is_some_and(|wait| wait.eq_ignore_ascii_case(b"false"))
    }

    /// Where the first entry of `name` at or behind `from` lies, one without a value included.
    fn find(self, name: &str, from: usize) -> Option<Range<usize>> {
        let mut start = from;
        for entry in self.bytes.get(from..)?.split_inclusive(|&byte| byte == VALUE_END) {
            let end = start + entry.len();
            if split_entry(entry).is_some_and(|(found, _)| found == name.as_bytes()) {
                return Some(start..end);
            }
            start = end;
        }
        None
    }
}

impl Properties {
    /// No properties.
    pub const fn new() -> Self {
        Self { bytes: Vec::new() }
    }

    /// Takes a property string as it is. Any bytes will do; what does not parse is kept and skipped.
    pub fn from_bytes(bytes: impl Into<Vec<u8>>) -> Self {
        Self { bytes: bytes.into() }
    }

    /// The same, borrowed.
    pub fn view(&self) -> PropertiesRef<'_> {
        PropertiesRef::new(&self.bytes)
    }

    /// The property string.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Names and values in order, duplicates included, but for those that are not UTF-8.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.view().iter()
    }

    /// Names and values in order, duplicates included.
    pub fn iter_raw(&self) -> impl DoubleEndedIterator<Item = (&[u8], &[u8])> {
        self.view().iter_raw()
    }

    /// The value of `name`; `None` also where it is not UTF-8.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.view().get(name)
    }

    /// The value of `name`.
    pub fn get_raw(&self, name: &[u8]) -> Option<&[u8]> {
        self.view().get_raw(name)
    }

    /// Number of entries that [`iter_raw`](Self::iter_raw) yields.
    pub fn len(&self) -> usize {
        self.view().len()
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.view().is_empty()
    }

    /// Gives `name` the value `value`: in the place of its first entry, else behind all others.
    ///
    /// # Errors
    /// [`InvalidMessage::Property`] if either is empty or holds 0x01 or 0x02: no reader would find
    /// the property again. Nothing is changed.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), InvalidMessage> {
        let readable = |text: &str| {
            !text.is_empty() && !text.bytes().any(|byte| byte == NAME_END || byte == VALUE_END)
        };
        if !readable(name) || !readable(value) {
            return Err(InvalidMessage::Property { name: name.to_owned() });
        }
        let entry = [name.as_bytes(), &[NAME_END], value.as_bytes(), &[VALUE_END]];
        let Some(place) = self.view().find(name, 0) else {
            self.terminate();
            self.bytes.reserve(name.len() + value.len() + 2);
            entry.into_iter().for_each(|part| self.bytes.extend_from_slice(part));
            return Ok(());
        };
        let next = place.start + name.len() + value.len() + 2;
        self.bytes.splice(place, entry.into_iter().flatten().copied());
        self.remove_from(name, next);
        Ok(())
    }

    /// Removes every entry of `name`; whether there was one.
    pub fn remove(&mut self, name: &str) -> bool {
        self.remove_from(name, 0)
    }

    fn remove_from(&mut self, name: &str, from: usize) -> bool {
        let mut place = self.view().find(name, from);
        let found = place.is_some();
        while let Some(entry) = place {
            let next = entry.start;
            self.bytes.drain(entry);
            place = self.view().find(name, next);
        }
        found
    }

    /// Appends the entries of `other` behind these, as RocketMQ joins those of a batch to those of
    /// its messages.
    pub(crate) fn append(&mut self, other: PropertiesRef<'_>) {
        if !other.bytes.is_empty() {
            self.terminate();
            self.bytes.extend_from_slice(other.bytes);
        }
    }

    /// Ends the last entry, so that another can follow.
    fn terminate(&mut self) {
        if self.bytes.last().is_some_and(|&last| last != VALUE_END) {
            self.bytes.push(VALUE_END);
        }
    }
}

fn split_entry(entry: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut parts = entry.splitn(2, |&byte| byte == NAME_END);
    Some((parts.next()?, parts.next()?))
}

impl fmt::Debug for PropertiesRef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |(name, value)| (String::from_utf8_lossy(name), String::from_utf8_lossy(value));
        f.debug_map().entries(self.iter_raw().map(text)).finish()
    }
}

impl fmt::Debug for Properties {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.view().fmt(f)
    }
}

#[cfg(test)]
mod tests;
