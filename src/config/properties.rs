//! Java's `.properties` format, with the comments after values that people write into it.

use crate::error::{Error, Result};

const BLANKS: [char; 3] = [' ', '\t', '\u{c}'];

/// One key of a file and its value, unescaped and trimmed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// The line it begins on, from 1.
    pub(super) line: usize,
    pub(super) key: String,
    pub(super) value: String,
}

/// What values of a key look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Bool,
    Int,
    Long,
    Double,
    Text,
}

impl Kind {
    /// Whether Java would take `value` for one of this kind. RocketMQ leaves the default where it
    /// does not, and takes any word but `true` for false; both hide a mistake.
    pub(super) fn check(self, field: &'static str, value: &str) -> Result<()> {
        let (valid, allowed) = match self {
            Self::Bool => (flag(value).is_some(), "true or false"),
            Self::Int => (value.parse::<i32>().is_ok(), "an integer of 32 bits"),
            Self::Long => (value.parse::<i64>().is_ok(), "an integer of 64 bits"),
            Self::Double => (value.parse::<f64>().is_ok(), "a number"),
            Self::Text => (true, ""),
        };
        if valid {
            return Ok(());
        }
        Err(Error::Config { field, value: format!("{value:?}"), allowed })
    }
}

pub(super) fn flag(value: &str) -> Option<bool> {
    match value {
        _ if value.eq_ignore_ascii_case("true") => Some(true),
        _ if value.eq_ignore_ascii_case("false") => Some(false),
        _ => None,
    }
}

/// The entries of `text` in their order, a key that comes twice included.
///
/// `#` and `//` begin a comment where white space stands before them, and so does `!` at the beginning
/// of a line; a comment ends with its line, a backslash at its end or not.
pub(super) fn parse(text: &str) -> Result<Vec<Entry>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text).replace("\r\n", "\n");
    let mut lines = text.split(['\n', '\r']).map(|line| line.trim_start_matches(BLANKS));
    let mut entries = Vec::new();
    let mut read = 0;
    while let Some(first) = lines.next() {
        read += 1;
        if first.is_empty() || first.starts_with('!') || is_comment(first) {
            continue;
        }
        let line = read;
        let (part, mut continues) = natural_line(first);
        let mut logical = part.to_owned();
        while continues && let Some(next) = lines.next() {
            read += 1;
            let (part, goes_on) = natural_line(next);
            logical.push_str(part);
            continues = goes_on;
        }
        entries.push(entry(line, &logical)?);
    }
    Ok(entries)
}

fn is_comment(rest: &str) -> bool {
    rest.starts_with('#') || rest.starts_with("//")
}

/// What a line says before its comment, and whether the next one continues it.
fn natural_line(line: &str) -> (&str, bool) {
    let (mut escaped, mut after_blank) = (false, false);
    for (at, c) in line.char_indices() {
        let (before, rest) = line.split_at(at);
        if after_blank && is_comment(rest) {
            return (before, false);
        }
        after_blank = !escaped && BLANKS.contains(&c);
        escaped = !escaped && c == '\\';
    }
    match line.strip_suffix('\\') {
        Some(before) if escaped => (before, true),
        _ => (line, false),
    }
}

fn entry(line: usize, logical: &str) -> Result<Entry> {
    let mut escaped = false;
    let ends_key = |c: char| {
        let ends = !escaped && (matches!(c, '=' | ':') || BLANKS.contains(&c));
        escaped = !escaped && c == '\\';
        ends
    };
    let (key, rest) = logical.split_at(logical.find(ends_key).unwrap_or(logical.len()));
    let rest = rest.trim_start_matches(BLANKS);
    let value = rest.strip_prefix(['=', ':']).unwrap_or(rest);
    let value = unescape(line, value.trim_start_matches(BLANKS))?;
    Ok(Entry { line, key: unescape(line, key)?, value: value.trim().to_owned() })
}

fn unescape(line: usize, text: &str) -> Result<String> {
    if !text.contains('\\') {
        return Ok(text.to_owned());
    }
    // Java's characters are UTF-16: two escapes may make one character.
    let mut units = Vec::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        let plain = match c {
            '\\' => match chars.next() {
                Some('t') => '\t',
                Some('n') => '\n',
                Some('r') => '\r',
                Some('f') => '\u{c}',
                Some('u') => {
                    let digits: String = chars.by_ref().take(4).collect();
                    let is_hex = digits.len() == 4 && digits.chars().all(|c| c.is_ascii_hexdigit());
                    match u16::from_str_radix(&digits, 16) {
                        Ok(unit) if is_hex => units.push(unit),
                        _ => return Err(bad_escape(line, &digits)),
                    }
                    continue;
                }
                Some(other) => other,
                None => continue,
            },
            other => other,
        };
        units.extend(plain.encode_utf16(&mut [0; 2]).iter());
    }
    Ok(String::from_utf16_lossy(&units))
}

fn bad_escape(line: usize, digits: &str) -> Error {
    Error::Config {
        field: "an escape",
        value: format!("\\u{digits} in line {line}"),
        allowed: "\\u and four hexadecimal digits",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pairs(text: &str) -> Vec<(String, String)> {
        parse(text).unwrap().into_iter().map(|entry| (entry.key, entry.value)).collect()
    }

    fn only(text: &str) -> (String, String) {
        let mut pairs = pairs(text);
        assert_eq!(pairs.len(), 1, "{text:?}: {pairs:?}");
        pairs.remove(0)
    }

    fn value(text: &str) -> String {
        only(text).1
    }

    #[test]
    fn every_separator_of_java_separates() {
        for text in
            ["k=v", "k = v", " k:v", "k\t:\tv ", "k v", "\u{c}k  v", "k=v\n", "k=v\r", "k=v\r\n"]
        {
            assert_eq!(only(text), ("k".into(), "v".into()), "{text:?}");
        }
        assert_eq!(only("k==v"), ("k".into(), "=v".into()));
        assert_eq!(only("k = :v"), ("k".into(), ":v".into()));
        assert_eq!(only("k"), ("k".into(), String::new()));
        assert_eq!(only(r"a\=b\ c\:d e"), ("a=b c:d".into(), "e".into()));
    }

    #[test]
    fn lines_that_say_nothing_are_skipped() {
        let text = "\u{feff}# a\n\n  ! b=c\n\t#x\n  // storePathRootDir=/tmp\n \u{c}\nk=v";
        assert_eq!(only(text), ("k".into(), "v".into()));
        assert!(pairs("").is_empty());
    }

    #[test]
    fn a_comment_after_a_value_needs_white_space_before_it() {
        assert_eq!(value("flushDiskType = SYNC_FLUSH   // sync"), "SYNC_FLUSH");
        assert_eq!(value("syncFlushTimeout=5000  # ms"), "5000");
        assert_eq!(value("a=5000\t#ms"), "5000");
        assert_eq!(value("a=5000# ms"), "5000# ms");
        assert_eq!(value("a=/a//b"), "/a//b");
        assert_eq!(value("a=http://x:1/#y"), "http://x:1/#y");
        assert_eq!(value("a=//b"), "//b");
        assert_eq!(value("a= // nothing"), "");
        assert_eq!(value(r"a=b\ #c"), "b #c");
        assert_eq!(value("a=b / c ! d"), "b / c ! d");
        assert_eq!(only("a # no value"), ("a".into(), String::new()));
    }

    #[test]
    fn an_odd_number_of_backslashes_continues_a_line() {
        assert_eq!(value("a=b,\\\n   c,\\\r\n\td"), "b,c,d");
        assert_eq!(pairs("a=b\\\\\nc=d"), [("a".into(), r"b\".into()), ("c".into(), "d".into())]);
        assert_eq!(value("a=b\\"), "b");
        assert_eq!(value("a=b\\\n"), "b");
        assert_eq!(value("a=b\\\n#c"), "b#c");
        assert_eq!(pairs("a\\\n=b\\\n\nc=d").len(), 2);
    }

    #[test]
    fn a_comment_does_not_swallow_the_next_line() {
        let text = "a=1 # kept in C:\\\nb=2\n# d:\\\nc=3";
        let expected = [("a", "1"), ("b", "2"), ("c", "3")];
        assert_eq!(pairs(text), expected.map(|(k, v)| (k.to_owned(), v.to_owned())));
    }

    #[test]
    fn escapes_are_undone_and_bad_ones_refused() {
        assert_eq!(value(r"a=\u0041\u00e9\t\q\\x"), "Aé\tq\\x");
        assert_eq!(value(r"a=\ud83d\ude00"), "😀");
        assert_eq!(value(r"a=\ud83d"), "\u{fffd}");
        for text in [r"a=\u12", r"a=\u12g4", r"x=\u+123", r"\u=1"] {
            let error = parse(text).unwrap_err();
            let Error::Config { value, .. } = &error else { panic!("{error}") };
            assert!(value.ends_with("in line 1"), "{error}");
        }
    }

    #[test]
    fn entries_know_the_line_they_begin_on() {
        let lines: Vec<_> = parse("a=1\r\n\r\n#\nb=\\\n 2\rc=3").unwrap();
        assert_eq!(lines.iter().map(|entry| entry.line).collect::<Vec<_>>(), [1, 4, 6]);
    }

    #[test]
    fn values_are_what_java_takes_for_them() {
        for (kind, good, bad) in [
            (Kind::Bool, ["true", "FALSE"], "yes"),
            (Kind::Int, ["-1", "+2147483647"], "2147483648"),
            (Kind::Long, ["0", "9223372036854775807"], "1L"),
            (Kind::Double, ["0.8", "1"], "80%"),
        ] {
            assert!(good.iter().all(|value| kind.check("k", value).is_ok()), "{kind:?}");
            assert!(kind.check("k", bad).is_err() && kind.check("k", "").is_err(), "{kind:?}");
        }
    }

    /// As Java's `Properties.store` writes them.
    fn escape(text: &str, out: &mut String) {
        for unit in text.encode_utf16() {
            match char::from_u32(unit.into()) {
                Some(c) if c.is_ascii_alphanumeric() => out.push(c),
                _ => out.push_str(&format!("\\u{unit:04X}")),
            }
        }
    }

    proptest! {
        #[test]
        fn any_text_is_entries_or_an_error(text in r"(?s)([ak=:#!/\\ \t\n\ru0]|.){0,80}") {
            let lines = text.replace("\r\n", "\n").split(['\n', '\r']).count();
            if let Ok(entries) = parse(&text) {
                prop_assert!(entries.iter().all(|entry| (1..=lines).contains(&entry.line)));
                prop_assert!(entries.windows(2).all(|two| two[0].line < two[1].line));
            }
        }

        #[test]
        fn what_is_escaped_is_read_back(pairs in prop::collection::vec(("\\PC{1,8}", "\\PC{0,8}"), 0..4)) {
            let mut text = String::new();
            for (key, value) in &pairs {
                escape(key, &mut text);
                text.push('=');
                escape(value, &mut text);
                text.push('\n');
            }
            let read = parse(&text).unwrap();
            let read: Vec<_> = read.into_iter().map(|entry| (entry.key, entry.value)).collect();
            let trimmed = pairs.into_iter().map(|(key, value)| (key, value.trim().to_owned()));
            prop_assert_eq!(read, trimmed.collect::<Vec<_>>());
        }
    }
}
