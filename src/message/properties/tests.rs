use super::*;
use proptest::prelude::*;
use std::collections::HashMap;

/// RocketMQ's `MessageDecoder.string2messageProperties`, line by line.
fn as_rocketmq_decodes(properties: &[u8]) -> HashMap<Vec<u8>, Vec<u8>> {
    let find = |byte, from: usize| {
        properties[from..].iter().position(|&found| found == byte).map(|at| at + from)
    };
    let mut map = HashMap::new();
    let mut index = 0;
    while index < properties.len() {
        let end = find(2, index).unwrap_or(properties.len());
        if end - index >= 3
            && let Some(middle) = find(1, index)
            && middle > index
            && middle < end - 1
        {
            map.insert(properties[index..middle].to_vec(), properties[middle + 1..end].to_vec());
        }
        index = end + 1;
    }
    map
}

#[test]
fn entries_that_rocketmq_skips_are_skipped() {
    let properties =
        PropertiesRef::new(b"a\x01b\x02\x02\x01x\x02name\x02empty\x01\x02c\x01d\x01e\x02f\x01g");
    let entries: Vec<_> = properties.iter().collect();
    assert_eq!(entries, [("a", "b"), ("c", "d\u{1}e"), ("f", "g")]);
    assert_eq!(properties.len(), 3);
    assert_eq!(properties.get("empty"), None);
    assert!(PropertiesRef::new(b"empty\x01\x02").is_empty());
}

#[test]
fn the_last_duplicate_wins() {
    let properties = PropertiesRef::new(b"a\x011\x02b\x012\x02a\x013\x02a\x01\x02");
    assert_eq!(properties.get("a"), Some("3"));
}

#[test]
fn what_is_not_utf8_is_reached_raw_only() {
    let properties = PropertiesRef::new(b"a\x01\xFF\x02b\x012\x02");
    assert_eq!(properties.get("a"), None);
    assert_eq!(properties.get_raw(b"a"), Some(&b"\xFF"[..]));
    assert_eq!(properties.iter().collect::<Vec<_>>(), [("b", "2")]);
    assert_eq!(format!("{properties:?}"), "{\"a\": \"\u{FFFD}\", \"b\": \"2\"}");
}

#[test]
fn set_replaces_in_place_and_leaves_one_entry() {
    let mut properties = Properties::from_bytes(*b"a\x011\x02b\x012\x02a\x013\x02c\x014");
    properties.set("a", "long").unwrap();
    assert_eq!(properties.as_bytes(), b"a\x01long\x02b\x012\x02c\x014");
    properties.set("d", "5").unwrap();
    assert_eq!(properties.as_bytes(), b"a\x01long\x02b\x012\x02c\x014\x02d\x015\x02");
    properties.set("c", "6").unwrap();
    assert_eq!(properties.as_bytes(), b"a\x01long\x02b\x012\x02c\x016\x02d\x015\x02");
}

#[test]
fn set_refuses_what_no_reader_would_find() {
    let mut properties = Properties::new();
    for (name, value) in [("", "x"), ("x", ""), ("a\u{1}", "x"), ("a", "x\u{2}"), ("a\u{2}", "x")] {
        let refused = InvalidMessage::Property { name: name.to_owned() };
        assert_eq!(properties.set(name, value), Err(refused));
    }
    assert_eq!(properties.as_bytes(), b"");
}

#[test]
fn remove_takes_every_entry_even_those_without_a_value() {
    let mut properties = Properties::from_bytes(*b"a\x011\x02b\x012\x02a\x01\x02ab\x01x\x02a\x013");
    assert!(properties.remove("a"));
    assert_eq!(properties.as_bytes(), b"b\x012\x02ab\x01x\x02");
    assert!(!properties.remove("a"));
}

#[test]
fn only_the_word_false_means_not_to_wait() {
    for (value, waits) in [("true", true), ("false", false), ("FALSE", false), ("no", true)] {
        let mut properties = Properties::new();
        properties.set(names::WAIT, value).unwrap();
        assert_eq!(properties.view().waits(), waits, "{value}");
    }
    assert!(PropertiesRef::default().waits());
}

fn property_bytes() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(prop_oneof![Just(1u8), Just(2u8), b'a'..b'd'], 0..40)
}

proptest! {
    #[test]
    fn decodes_as_rocketmq_does(bytes in property_bytes()) {
        let properties = PropertiesRef::new(&bytes);
        let expected = as_rocketmq_decodes(&bytes);
        for (name, value) in &expected {
            prop_assert_eq!(properties.get_raw(name), Some(&value[..]));
        }
        for (name, _) in properties.iter_raw() {
            prop_assert!(expected.contains_key(name));
        }
    }

    #[test]
    fn set_changes_one_name_only(bytes in property_bytes(), name in "[a-c]{1,2}", value in "[a-c]{1,3}") {
        let mut properties = Properties::from_bytes(bytes.clone());
        properties.set(&name, &value).unwrap();
        let mut expected = as_rocketmq_decodes(&bytes);
        expected.insert(name.clone().into_bytes(), value.into_bytes());
        prop_assert_eq!(as_rocketmq_decodes(properties.as_bytes()), expected);
        prop_assert_eq!(properties.iter().filter(|(found, _)| *found == name).count(), 1);
    }

    #[test]
    fn remove_changes_one_name_only(bytes in property_bytes(), name in "[a-c]{1,2}") {
        let mut properties = Properties::from_bytes(bytes.clone());
        properties.remove(&name);
        let mut expected = as_rocketmq_decodes(&bytes);
        expected.remove(name.as_bytes());
        prop_assert_eq!(as_rocketmq_decodes(properties.as_bytes()), expected);
    }
}
