//! What `examples/dump.rs` prints of stores that RocketMQ wrote, against what RocketMQ says is in them.

#[allow(dead_code, reason = "its `main` is not called")]
#[path = "../examples/dump.rs"]
mod dump;
#[path = "support/fixtures.rs"]
mod fixtures;

use fixtures::{cases, manifest};
use serde_json::Value;

#[test]
fn every_message_is_printed_as_the_manifests_have_it() {
    let mut printed = 0;
    for case in cases() {
        let manifest = manifest(&case);
        let Some(expected) = manifest["messages"].as_array() else { continue };
        let mut out = Vec::new();
        dump::dump(&case.join("store"), &mut out).unwrap();
        let lines: Vec<Value> = str::from_utf8(&out)
            .unwrap()
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(lines, *expected, "{}", case.display());
        printed += lines.len();
    }
    assert!(printed > 2000, "only {printed} messages");
}

#[test]
fn messages_behind_damage_are_not_passed_over_in_silence() {
    let case = cases().into_iter().find(|case| case.ends_with("4.9.8/killed-middle")).unwrap();
    let mut out = Vec::new();
    let error = dump::dump(&case.join("store"), &mut out).unwrap_err();
    assert!(error.to_string().contains("a message follows"), "{error}");
    assert!(out.len() > 1000, "what lies before the damage is printed");
}
