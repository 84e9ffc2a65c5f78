//! Any text as an SQL92 expression, up to the first zero, and any bytes behind it as the properties of a
//! message.

#![no_main]

use duralog::message::PropertiesRef;
use duralog::{Error, InvalidFilter, SqlFilter};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut parts = bytes.splitn(2, |byte| *byte == 0);
    let Ok(text) = std::str::from_utf8(parts.next().unwrap_or_default()) else { return };
    let properties = PropertiesRef::new(parts.next().unwrap_or_default());
    let filter = match SqlFilter::parse(text) {
        Ok(filter) => filter,
        Err(Error::InvalidFilter(InvalidFilter::Unexpected { at, found, .. })) => {
            assert!(text[at..].starts_with(&found));
            return assert_eq!(found.is_empty(), at == text.len());
        }
        Err(Error::InvalidFilter(_)) => return,
        Err(other) => panic!("{other}"),
    };
    // One parenthesis more may be too much.
    let around = |before: &str, after: &str| {
        let filter = SqlFilter::parse(&format!("{before}({text}\n){after}"));
        filter.map(|filter| filter.passes(properties)).ok()
    };
    let passes = filter.passes(properties);
    if let Some(opposite) = around("NOT ", "") {
        assert!(!(passes && opposite));
        assert_eq!(around("NOT NOT ", ""), Some(passes));
        assert_eq!(around("", " AND TRUE"), Some(passes));
        assert_eq!(around("", " OR FALSE"), Some(passes));
        let is_known = passes || opposite;
        assert_eq!(around("", " OR NULL"), Some(passes));
        assert_eq!(around("NOT ", " AND NULL"), Some(false));
        assert!(!is_known || around("", " OR TRUE") == Some(true));
    }
});
