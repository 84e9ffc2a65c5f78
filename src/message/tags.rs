//! The tag code of a message: what a queue entry keeps of its tag, so that consumers can filter
//! without reading records.

use super::format::SCHEDULE_TOPIC;
use super::properties::{PropertiesRef, names};

/// Java's `String.hashCode`, by which RocketMQ finds tags and keys.
pub fn java_string_hash(text: &str) -> i32 {
    text.encode_utf16().fold(0, hash_step)
}

/// The same for bytes that may not be UTF-8, replaced as Java replaces them.
fn java_string_hash_lossy(bytes: &[u8]) -> i32 {
    lossy_hash_after(0, bytes)
}

/// The hash of a string that begins with one of hash `before`.
fn lossy_hash_after(before: i32, bytes: &[u8]) -> i32 {
    bytes.utf8_chunks().fold(before, |hash, chunk| {
        let hash = chunk.valid().encode_utf16().fold(hash, hash_step);
        if chunk.invalid().is_empty() {
            hash
        } else {
            hash_step(hash, char::REPLACEMENT_CHARACTER as u16)
        }
    })
}

fn hash_step(hash: i32, unit: u16) -> i32 {
    hash.wrapping_mul(31).wrapping_add(i32::from(unit))
}

/// What the key index files a key under: the absolute value of Java's hash of `topic#key`.
pub(crate) fn index_hash(topic: &str, key: &[u8]) -> u32 {
    let topic = topic.encode_utf16().chain([u16::from(b'#')]).fold(0, hash_step);
    let hash = lossy_hash_after(topic, key);
    // Java's `Math.abs` leaves the least number as it is, and RocketMQ makes that 0.
    hash.checked_abs().unwrap_or(0).cast_unsigned()
}

/// The tag code of a queue entry: the hash of the tag, 0 without one.
///
/// A message waiting in the schedule topic has the time at which it is due instead; level n waits
/// for `delays_ms[n - 1]`, levels past the end wait as long as the last.
pub(crate) fn tags_code(
    topic: &str,
    properties: PropertiesRef<'_>,
    store_timestamp: i64,
    delays_ms: &[i64],
) -> i64 {
    let due = || {
        let level: i32 = properties.get(names::DELAY)?.parse().ok()?;
        let index = usize::try_from(level).ok()?.min(delays_ms.len()).checked_sub(1)?;
        Some(store_timestamp.wrapping_add(*delays_ms.get(index)?))
    };
    let due = if topic == SCHEDULE_TOPIC { due() } else { None };
    due.unwrap_or_else(|| {
        properties.get_raw(names::TAGS.as_bytes()).map_or(0, java_string_hash_lossy).into()
    })
}

#[cfg(test)]
mod tests {
    use super::super::format::DELAY_LEVELS_MS;
    use super::*;

    fn code(topic: &str, properties: &[u8]) -> i64 {
        tags_code(topic, PropertiesRef::new(properties), 1_000_000, &DELAY_LEVELS_MS)
    }

    #[test]
    fn hashes_as_java_does() {
        assert_eq!(java_string_hash(""), 0);
        assert_eq!(java_string_hash("A"), 65);
        assert_eq!(java_string_hash("TagA"), 2_598_919);
        assert_eq!(java_string_hash("order-created"), -392_709_271);
        assert_eq!(java_string_hash("\u{1F680}tag"), 1_280_754_391);
        assert_eq!(java_string_hash("polygenelubricants"), i32::MIN);
    }

    #[test]
    fn keys_are_filed_under_the_hash_of_topic_and_key() {
        assert_eq!(index_hash("T", b"k1"), 2_539_445);
        assert_eq!(
            index_hash("T", "\u{1F680}".as_bytes()),
            java_string_hash("T#\u{1F680}").unsigned_abs()
        );
    }

    #[test]
    fn bytes_that_are_not_utf8_count_as_replacement_characters() {
        assert_eq!(
            java_string_hash_lossy(b"a\xFFb\xF0\x9F"),
            java_string_hash("a\u{FFFD}b\u{FFFD}")
        );
        assert_eq!(java_string_hash_lossy("TagA".as_bytes()), 2_598_919);
    }

    #[test]
    fn tag_codes_are_sign_extended() {
        assert_eq!(code("T", b"TAGS\x01order-created\x02"), -392_709_271);
        assert_eq!(code("T", b"TAGS\x01\x02"), 0);
        assert_eq!(code("T", b""), 0);
    }

    #[test]
    fn delayed_messages_carry_the_time_they_are_due() {
        assert_eq!(code(SCHEDULE_TOPIC, b"DELAY\x011\x02TAGS\x01A\x02"), 1_001_000);
        assert_eq!(code(SCHEDULE_TOPIC, b"DELAY\x0118\x02"), 1_000_000 + 7_200_000);
        assert_eq!(code(SCHEDULE_TOPIC, b"DELAY\x0125\x02"), 1_000_000 + 7_200_000);
    }

    #[test]
    fn elsewhere_and_without_a_level_the_tag_counts() {
        assert_eq!(code("T", b"DELAY\x011\x02TAGS\x01A\x02"), 65);
        for level in ["0", "-1", "soon", "99999999999"] {
            let properties = format!("DELAY\x01{level}\x02TAGS\x01A\x02");
            assert_eq!(code(SCHEDULE_TOPIC, properties.as_bytes()), 65, "{level}");
        }
    }
}
