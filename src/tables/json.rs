//! JSON as fastjson writes it: keys that are numbers without quotes.

use serde_json::{Map, Value};
use std::borrow::Cow;
use std::collections::BTreeMap;

/// What the braces of a JSON object hold.
pub type Object = Map<String, Value>;

/// Why bytes are no table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Malformed {
    /// Where in the file, as far as that is known.
    pub(super) offset: u64,
    pub(super) what: String,
}

/// The object that `bytes` hold. Nesting is bounded by the parser, at 127 levels.
pub(super) fn parse(bytes: &[u8]) -> Result<Object, Malformed> {
    let text = str::from_utf8(bytes).map_err(|error| Malformed {
        offset: error.valid_up_to() as u64,
        what: "it is not UTF-8".to_owned(),
    })?;
    let (quoted, inserted) = quote_keys(text);
    match serde_json::from_str(&quoted) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(other) => {
            Err(Malformed { offset: 0, what: format!("it is {}, not an object", kind(&other)) })
        }
        Err(error) => {
            let line = quoted.split_inclusive('\n').take(error.line().saturating_sub(1));
            let at = line.map(str::len).sum::<usize>() + error.column().saturating_sub(1);
            let offset = at - inserted.partition_point(|quote| *quote < at);
            let offset = offset.min(bytes.len()) as u64;
            // The parser's own words end in a place in the text with the quotes.
            let what = error.to_string();
            let what = what.split(" at line ").next().unwrap_or_default().to_owned();
            Err(Malformed { offset, what })
        }
    }
}

/// `text` with quotes around every bare word before a colon, and where in the result they stand. In
/// JSON nothing but a key stands there, so the nesting need not be known.
fn quote_keys(text: &str) -> (Cow<'_, str>, Vec<usize>) {
    let (mut out, mut inserted) = (String::new(), Vec::new());
    let mut copied = 0;
    let mut at = 0;
    let bytes = text.as_bytes();
    while let Some(&byte) = bytes.get(at) {
        let rest = bytes.get(at..).unwrap_or_default();
        let len = match byte {
            b'"' => string_len(rest),
            _ if is_bare(byte) => rest.iter().take_while(|byte| is_bare(**byte)).count(),
            _ => 1,
        };
        let end = at + len;
        let mut after = bytes.iter().skip(end).skip_while(|byte| byte.is_ascii_whitespace());
        if is_bare(byte) && after.next() == Some(&b':') {
            out.push_str(text.get(copied..at).unwrap_or_default());
            inserted.push(out.len());
            out.push('"');
            out.push_str(text.get(at..end).unwrap_or_default());
            inserted.push(out.len());
            out.push('"');
            copied = end;
        }
        at = end;
    }
    if inserted.is_empty() {
        return (Cow::Borrowed(text), inserted);
    }
    out.push_str(text.get(copied..).unwrap_or_default());
    (Cow::Owned(out), inserted)
}

fn is_bare(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$' | b'-' | b'+' | b'.')
}

/// Bytes of the string that `rest` begins with, both quotes included.
fn string_len(rest: &[u8]) -> usize {
    let mut escaped = false;
    let closes = |byte: &u8| {
        let closes = !escaped && *byte == b'"';
        escaped = !escaped && *byte == b'\\';
        closes
    };
    rest.iter().skip(1).position(closes).map_or(rest.len(), |at| at + 2)
}

/// What a JSON value is, in words.
pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// A value that a field of a table may have.
pub(super) trait Field: Sized {
    const KIND: &'static str;
    fn read(value: Value) -> Result<Self, Value>;
    fn write(self) -> Value;
}

impl Field for i32 {
    const KIND: &'static str = "an integer of 32 bits";
    fn read(value: Value) -> Result<Self, Value> {
        value.as_i64().and_then(|wide| Self::try_from(wide).ok()).ok_or(value)
    }
    fn write(self) -> Value {
        self.into()
    }
}

impl Field for i64 {
    const KIND: &'static str = "an integer of 64 bits";
    fn read(value: Value) -> Result<Self, Value> {
        value.as_i64().ok_or(value)
    }
    fn write(self) -> Value {
        self.into()
    }
}

impl Field for bool {
    const KIND: &'static str = "true or false";
    fn read(value: Value) -> Result<Self, Value> {
        value.as_bool().ok_or(value)
    }
    fn write(self) -> Value {
        self.into()
    }
}

impl Field for String {
    const KIND: &'static str = "a string";
    fn read(value: Value) -> Result<Self, Value> {
        match value {
            Value::String(text) => Ok(text),
            other => Err(other),
        }
    }
    fn write(self) -> Value {
        self.into()
    }
}

impl Field for Object {
    const KIND: &'static str = "an object";
    fn read(value: Value) -> Result<Self, Value> {
        match value {
            Value::Object(object) => Ok(object),
            other => Err(other),
        }
    }
    fn write(self) -> Value {
        self.into()
    }
}

pub(super) fn typed<T: Field>(name: &str, value: Value) -> Result<T, String> {
    T::read(value).map_err(|other| format!("`{name}` is {}, not {}", kind(&other), T::KIND))
}

/// Takes `name` out of `object`; `default` where it is missing or null, as in Java.
pub(super) fn take<T: Field>(object: &mut Object, name: &str, default: T) -> Result<T, String> {
    match object.remove(name) {
        None | Some(Value::Null) => Ok(default),
        Some(value) => typed(name, value),
    }
}

pub(super) fn put<T: Field>(object: &mut Object, name: &str, value: T) {
    object.insert(name.to_owned(), value.write());
}

/// An object of objects, each decoded; `of` says what they are.
pub(super) fn named<T>(
    of: &str,
    object: Object,
    decode: impl Fn(Object) -> Result<T, String>,
) -> Result<BTreeMap<String, T>, String> {
    let entry = |(name, value): (String, Value)| {
        let decoded = typed(&name, value).and_then(&decode);
        let decoded = decoded.map_err(|what| format!("{of} {name:?}: {what}"))?;
        Ok((name, decoded))
    };
    object.into_iter().map(entry).collect()
}

/// An object whose keys are integers.
pub(super) fn numbered(name: &str, object: Object) -> Result<BTreeMap<i32, i64>, String> {
    let entry = |(key, value): (String, Value)| match key.parse::<i32>() {
        Ok(number) => Ok((number, typed(name, value)?)),
        Err(_) => Err(format!("`{name}` has the key {key:?}, not {}", i32::KIND)),
    };
    object.into_iter().map(entry).collect()
}

pub(super) fn from_numbered(table: &BTreeMap<i32, i64>) -> Object {
    table.iter().map(|(number, value)| (number.to_string(), (*value).into())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn quoted(text: &str) -> String {
        quote_keys(text).0.into_owned()
    }

    #[test]
    fn bare_keys_are_quoted_and_nothing_else_is() {
        assert_eq!(quoted("{1:8,2:11\n\t}"), "{\"1\":8,\"2\":11\n\t}");
        assert_eq!(quoted("{-1 : [2,{ 3\n:4}]}"), "{\"-1\" : [2,{ \"3\"\n:4}]}");
        assert_eq!(quoted("{a_$1:true}"), "{\"a_$1\":true}");
        for text in [r#"{"a:1":"b:2","c\":3":"d\\"}"#, "[1,2.5e-3,true]", "", "1", ":", "\"a"] {
            assert_eq!(quoted(text), text);
        }
        assert_eq!(quoted(r#"{"é\"":{1:"2:3"}}"#), r#"{"é\"":{"1":"2:3"}}"#);
    }

    #[test]
    fn a_mistake_is_found_where_it_stands_in_the_file() {
        for (text, at) in [
            ("{1:8,2:?}", 7),
            ("{\n1:8,\n2:\n\t?}", 11),
            ("{\"a\":1 2}", 7),
            ("{1:2,3:4}x", 9),
            ("?", 0),
            ("{\"a\":01}", 6),
        ] {
            let malformed = parse(text.as_bytes()).unwrap_err();
            assert_eq!(malformed.offset, at, "{text:?}: {malformed:?}");
            assert!(!malformed.what.contains("line"), "{malformed:?}");
        }
        assert_eq!(parse(b"{\"a\":\"\xff\"}").unwrap_err().offset, 6);
        assert_eq!(parse(b"[1]").unwrap_err().what, "it is an array, not an object");
    }

    #[test]
    fn nesting_without_end_is_an_error() {
        for open in ["[", "{1:", "{\"a\":["] {
            let text = format!("{{\"a\":{}", open.repeat(1 << 20));
            let malformed = parse(text.as_bytes()).unwrap_err();
            assert!(malformed.what.contains("recursion"), "{malformed:?}");
        }
    }

    #[test]
    fn what_a_field_is_not_is_said() {
        let mut object = parse(b"{a:1,b:3000000000,c:null,d:1.5,e:{x:1}}").unwrap();
        assert_eq!(take(&mut object, "a", 7), Ok(1));
        assert_eq!(take(&mut object, "c", 7), Ok(7));
        assert_eq!(take(&mut object, "z", true), Ok(true));
        let wrong = take(&mut object, "b", 7).unwrap_err();
        assert_eq!(wrong, "`b` is a number, not an integer of 32 bits");
        assert!(take(&mut object, "d", 7i64).is_err());
        let e = take(&mut object, "e", Object::new()).unwrap();
        assert_eq!(
            numbered("e", e).unwrap_err(),
            "`e` has the key \"x\", not an integer of 32 bits"
        );
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map(any::<String>(), inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    /// As fastjson writes it.
    fn bare(value: &Value, out: &mut String) {
        match value {
            Value::Object(object) => {
                for (n, (key, value)) in object.iter().enumerate() {
                    out.push(if n == 0 { '{' } else { ',' });
                    match key.parse::<i32>().is_ok_and(|number| number.to_string() == *key) {
                        true => out.push_str(key),
                        false => out.push_str(&Value::from(key.as_str()).to_string()),
                    }
                    out.push(':');
                    bare(value, out);
                }
                out.push_str(if object.is_empty() { "{}" } else { "}" });
            }
            Value::Array(array) => {
                for (n, value) in array.iter().enumerate() {
                    out.push(if n == 0 { '[' } else { ',' });
                    bare(value, out);
                }
                out.push_str(if array.is_empty() { "[]" } else { "]" });
            }
            other => out.push_str(&other.to_string()),
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_object_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = parse(&bytes);
        }

        #[test]
        fn any_punctuation_is_an_object_or_an_error(text in r#"[{}\[\],:"\\0-9a-c. \n\té-]{0,64}"#) {
            if let Err(malformed) = parse(text.as_bytes()) {
                prop_assert!(malformed.offset <= text.len() as u64);
            }
        }

        #[test]
        fn json_stays_as_it_is(value in any_json()) {
            for text in [value.to_string(), serde_json::to_string_pretty(&value).unwrap()] {
                prop_assert_eq!(quoted(&text), text);
            }
        }

        #[test]
        fn numbers_for_keys_are_read_with_and_without_quotes(
            numbers in prop::collection::btree_map(any::<i32>(), any_json(), 1..6),
        ) {
            let object: Object = numbers.into_iter().map(|(n, v)| (n.to_string(), v)).collect();
            let mut text = String::new();
            bare(&Value::Object(object.clone()), &mut text);
            prop_assert_eq!(parse(text.as_bytes()).unwrap(), object);
        }
    }
}
