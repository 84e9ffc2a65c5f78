//! Stores that RocketMQ wrote, each as RocketMQ left it and as this crate leaves it after that.

use crate::check::Sample;
use crate::image::{Image, ROOT};
use duralog::{Environment, RecoveryMode, Store, StoreConfig};
use std::fs;
use std::path::{Path, PathBuf};

/// Small ones of every kind: killed, with several segments and one prepared; damaged in the middle;
/// with several index files; with messages that are in no queue. With their slots and items of an index
/// file, and the size of their queue files.
const CASES: [(&str, u32, u32, u64); 4] = [
    ("5.3.3/killed", 500, 2000, 1000),
    ("4.9.8/killed-middle", 500, 2000, 1000),
    ("4.9.8/multikeys", 100, 400, 20_000),
    ("5.3.3/transaction", 500, 2000, 20_000),
];

pub fn samples() -> Vec<Sample> {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/rocketmq");
    let pairs = CASES.map(|(case, slots, items, queue_file_size)| {
        let mut theirs = Image::default();
        collect(&fixtures.join(case).join("store"), String::new(), &mut theirs);
        let mut config = StoreConfig::new(ROOT).consume_queue_file_size(queue_file_size);
        config.queue_checkpoint_bytes = 4096;
        config.max_open_queue_files = 4;
        (config.index_slots, config.index_items) = (slots, items);
        let ours = opened(&config, &theirs);
        [
            Sample::new(config.clone(), theirs.clone(), ours.clone(), true),
            Sample::new(config, ours, theirs, true),
        ]
    });
    pairs.into_iter().flatten().collect()
}

/// What is there when the store has been opened and closed.
fn opened(config: &StoreConfig, theirs: &Image) -> Image {
    let disk = theirs.to_disk();
    let config = config.clone().recovery_mode(RecoveryMode::Salvage);
    let store = Store::open_in(config, Environment::on(disk.shared()).stepped()).expect("a store");
    store.close().expect("closed");
    Image::of(&disk)
}

fn collect(dir: &Path, prefix: String, image: &mut Image) {
    let entries = fs::read_dir(dir).expect("the fixtures of the tests");
    let paths: Vec<PathBuf> = entries.map(|entry| entry.expect("readable").path()).collect();
    for path in paths {
        let name = path.file_name().and_then(|name| name.to_str()).expect("UTF-8");
        let name = format!("{prefix}{name}");
        if path.is_dir() {
            collect(&path, format!("{name}/"), image);
        } else {
            image.0.insert(name, fs::read(path).expect("readable"));
        }
    }
}
