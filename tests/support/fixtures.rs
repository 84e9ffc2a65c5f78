//! Stores that RocketMQ wrote.

use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};

/// The cases of every version, each a directory with `store` and `manifest.json`.
pub fn cases() -> Vec<PathBuf> {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/rocketmq");
    let mut cases: Vec<_> = ["4.9.8", "5.3.3"]
        .iter()
        .flat_map(|version| fs::read_dir(fixtures.join(version)).unwrap())
        .map(|entry| entry.unwrap().path())
        .collect();
    cases.sort();
    cases
}

/// What RocketMQ says is in the store of a case.
pub fn manifest(case: &Path) -> Value {
    serde_json::from_slice(&fs::read(case.join("manifest.json")).unwrap()).unwrap()
}
