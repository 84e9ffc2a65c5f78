use super::*;
use crate::clock::SystemClock;
use crate::config::LogConfig;
use crate::disk::HostDisk;
use serde_json::Value;
use std::fs;

#[test]
fn names_are_dates() {
    assert_eq!(name_of(0), 19_700_101_000_000_000);
    assert_eq!(name_of(1_700_000_000_123), 20_231_114_221_320_123);
    assert_eq!(name_of(951_782_399_999), 20_000_228_235_959_999);
    assert_eq!(name_of(951_782_400_000), 20_000_229_000_000_000);
    assert_eq!(name_of(4_107_542_399_999), 21_000_228_235_959_999);
    assert_eq!(name_of(4_107_542_400_000), 21_000_301_000_000_000);
    assert_eq!(parse_name("20231114221320123"), Some(20_231_114_221_320_123));
    assert_eq!(parse_name("2023111422132012"), None);
    assert_eq!(parse_name("+0231114221320123"), None);
}

#[test]
fn the_state_round_trips_and_every_flipped_bit_is_noticed() {
    let header = Header { next_item: 7, end_physical: 99, ..Header::default() };
    let geometry = Geometry { slots: 5, items: 20 };
    let saved = Saved { geometry, covered: 123, file: 20_231_114_221_320_123, header };
    let bytes = saved.encode();
    assert_eq!(Saved::decode(&bytes), Some(saved));
    for at in 0..bytes.len() {
        let mut flipped = bytes.clone();
        flipped[at] ^= 4;
        assert_eq!(Saved::decode(&flipped), None, "byte {at}");
    }
}

#[test]
fn a_state_with_more_items_than_there_is_room_for_is_none() {
    let geometry = Geometry { slots: 5, items: 20 };
    let with = |next_item| {
        let header = Header { next_item, ..Header::default() };
        Saved::decode(&Saved { geometry, covered: 0, file: 1, header }.encode()).is_some()
    };
    assert_eq!([with(1), with(20), with(21), with(u32::MAX)], [true, true, false, false]);
}

/// The newest `max` physical offsets as the index has them, sorted: RocketMQ's `queryOffset`.
fn newest(index: &KeyIndex, topic: &str, key: &str, max: usize) -> Vec<u64> {
    let mut found = Vec::new();
    index
        .find(topic, key, (0, i64::MAX), &mut |offset| {
            found.push(offset);
            found.len() < max
        })
        .unwrap();
    found.sort_unstable();
    found
}

#[test]
fn offsets_are_found_as_rocketmq_finds_them_those_of_other_keys_with_the_same_hash_included() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/rocketmq");
    // They are not in the published package.
    if !fixtures.exists() {
        return;
    }
    let cases = ["4.9.8", "5.3.3"].iter().flat_map(|version| {
        fs::read_dir(fixtures.join(version)).unwrap().map(|case| case.unwrap().path())
    });
    let (mut queries, mut colliding, mut full) = (0, 0, 0);
    for case in cases {
        let json = |name: &str| -> Value {
            serde_json::from_slice(&fs::read(case.join(name)).unwrap()).unwrap()
        };
        let manifest = json("manifest.json");
        // After a crash the index is made anew from the log, which no index alone can do.
        if case.join("store/abort").exists() {
            continue;
        }
        // Of the store that lost records behind its clean end, what RocketMQ then finds.
        let manifest = if manifest["sizes"].is_null() { json("recovered.json") } else { manifest };
        let number = |value: &Value| value.as_u64().unwrap();
        let sizes = &manifest["sizes"];
        let options = IndexOptions {
            slots: number(&sizes["maxHashSlotNum"]) as u32,
            items: number(&sizes["maxIndexNum"]) as u32,
            read_only: true,
        };
        let mut config = LogConfig::new(case.join("store"));
        config.read_only = true;
        let disk = HostDisk::shared();
        let directory = Directory::open(&*disk, &config).unwrap();
        let end = number(&manifest["commitLog"]["maxOffset"]);
        let left = Left { unclean: false, min: 0, end };
        let clock = Arc::new(SystemClock);
        let index = KeyIndex::open(disk, clock, &directory, options, left).unwrap();
        for query in manifest["indexQueries"].as_array().unwrap() {
            let text = |name: &str| query[name].as_str().unwrap();
            let max = number(&query["maxNum"]) as usize;
            let offsets = query["physicalOffsets"].as_array().unwrap();
            let offsets: Vec<u64> = offsets.iter().map(number).collect();
            let found = newest(&index, text("topic"), text("key"), max);
            assert_eq!(found, offsets, "{query} of {}", case.display());
            queries += 1;
            colliding += usize::from(offsets.len() > 1);
            full += usize::from(offsets.len() == max);
        }
    }
    assert!(queries > 900 && colliding > 50 && full > 0, "{queries}, {colliding}, {full}");
}
