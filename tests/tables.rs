//! RocketMQ's tables as RocketMQ wrote them.

use duralog::disk::{HostDisk, OpenAccess, SimDisk};
use duralog::tables::{DelayOffsets, Source, Tables};
use duralog::{Environment, Store, StoreConfig};
use std::path::{Path, PathBuf};

const VERSION: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/rocketmq/4.9.8");

fn list(dir: &Path) -> Vec<String> {
    let entries = HostDisk::shared().list(dir).unwrap();
    entries.into_iter().map(|entry| entry.name).collect()
}

/// The stores that RocketMQ left tables in.
fn stores() -> Vec<PathBuf> {
    let version = Path::new(VERSION);
    let stores = list(version).into_iter().map(|case| version.join(case).join("store"));
    stores.filter(|store| store.join("config").is_dir()).collect()
}

#[test]
fn every_table_of_the_fixtures_is_read() {
    let stores = stores();
    assert!(stores.len() > 5, "{stores:?}");
    for store in stores {
        let loaded = Tables::new(&store).load::<DelayOffsets>().unwrap();
        assert_eq!(loaded.source, Source::Main, "{}", store.display());
        let levels: Vec<_> = loaded.table.iter().collect();
        let expected: &[(i32, i64)] = match () {
            () if store.ends_with("delay/store") => &[(1, 8), (2, 11)],
            () if store.ends_with("mixed/store") => &[(1, 8), (2, 2)],
            () => &[],
        };
        assert_eq!(levels, expected, "{}", store.display());
    }
}

#[test]
fn a_table_of_the_fixtures_is_saved_and_its_bytes_become_the_backup() {
    let from = Path::new(VERSION).join("delay/store/config/delayOffset.json");
    let file = HostDisk::shared().open(&from, OpenAccess::Read).unwrap();
    let mut bytes = vec![0; file.len() as usize];
    file.read_at(&mut bytes, 0).unwrap();

    let disk = SimDisk::new(1);
    disk.put_file("/store/config/delayOffset.json", &bytes).unwrap();
    let tables = Tables::new_in("/store", Environment::on(disk.shared()));
    let mut delays = tables.load::<DelayOffsets>().unwrap().table;
    delays.set(2, 12);
    tables.save(&mut delays).unwrap();
    assert_eq!(disk.bytes("/store/config/delayOffset.json.bak").unwrap(), bytes);
    let saved = disk.bytes("/store/config/delayOffset.json").unwrap();
    let saved: serde_json::Value = serde_json::from_slice(&saved).unwrap();
    assert_eq!(saved["offsetTable"], serde_json::json!({"1": 8, "2": 12}));
    assert_eq!(saved["dataVersion"]["counter"], 1);
}

#[test]
fn tables_may_be_saved_before_the_store_is_made_and_while_it_is_open() {
    let disk = SimDisk::new(2);
    let environment = Environment::on(disk.shared());
    let tables = Tables::new_in("/store", environment.clone());
    let mut delays = DelayOffsets::default();
    tables.save(&mut delays).unwrap();
    let config = StoreConfig::new("/store").segment_size(16 << 10);
    let store = Store::open_in(config, environment).unwrap();
    delays.set(1, 1);
    tables.save(&mut delays).unwrap();
    store.close().unwrap();
    assert_eq!(tables.load::<DelayOffsets>().unwrap().table, delays);
}
