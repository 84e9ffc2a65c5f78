//! Any bytes as a broker's configuration file and as each of its tables.

#![no_main]

use duralog::disk::SimDisk;
use duralog::tables::{
    ConsumerOffsets, DelayOffsets, SubscriptionGroups, Table, Tables, TopicTable,
};
use duralog::{Environment, StoreConfig};
use libfuzzer_sys::fuzz_target;

/// What is loaded is what is saved.
fn table<T: Table + PartialEq + std::fmt::Debug>(bytes: &[u8], file: &str) {
    let disk = SimDisk::new(1);
    disk.put_file(format!("/store/config/{file}"), bytes).unwrap();
    let tables = Tables::new_in("/store", Environment::on(disk.shared()));
    let Ok(mut loaded) = tables.load::<T>() else { return };
    tables.save(&mut loaded.table).unwrap();
    assert_eq!(tables.load::<T>().unwrap().table, loaded.table);
}

fuzz_target!(|bytes: &[u8]| {
    if let Ok(text) = std::str::from_utf8(bytes) {
        if let Ok(conf) = StoreConfig::new("/store").with_properties(text) {
            assert!(conf.keys.windows(2).all(|two| two[0].line < two[1].line));
        }
    }
    table::<TopicTable>(bytes, "topics.json");
    table::<SubscriptionGroups>(bytes, "subscriptionGroup.json");
    table::<ConsumerOffsets>(bytes, "consumerOffset.json");
    table::<DelayOffsets>(bytes, "delayOffset.json");
});
