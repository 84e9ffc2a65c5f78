//! What a store makes of files that are damaged, missing, foreign or not a log at all.

#[path = "support/rng.rs"]
mod rng;
#[path = "support/sim.rs"]
mod sim;

use duralog::disk::{Cut, SimDisk, Survival};
use duralog::{
    Acknowledged, Corruption, Error, Message, PutStatus, RecoveryMode, Store, StoreConfig,
    StoreWorker, WriteMode,
};
use rng::Rng;
use sim::*;
use std::path::{Path, PathBuf};

/// Reads the queue to its end or to the first error.
fn read_all(store: &Store) -> (Vec<u64>, u64, Option<Error>) {
    let (mut found, mut skipped, mut at) = (Vec::new(), 0, 0);
    loop {
        match store.get(TOPIC, 0, at, usize::MAX) {
            Ok(fetched) => {
                found.extend(fetched.messages.iter().map(|stored| id_of(&stored.body)));
                skipped += fetched.skipped_damaged;
                if fetched.next_offset <= at {
                    return (found, skipped, None);
                }
                at = fetched.next_offset;
            }
            Err(error) => return (found, skipped, Some(error)),
        }
    }
}

fn without(count: u64, damaged: u64) -> Vec<u64> {
    (0..count).filter(|id| *id != damaged).collect()
}

fn assert_corrupt_at(error: &Error, segment: &str, at: u64) {
    match error {
        Error::Corrupt { path, offset, .. } => {
            assert_eq!((path.as_path(), *offset), (Path::new(segment), at), "{error}");
        }
        other => panic!("not corruption: {other}"),
    }
}

/// Flips a bit in every byte of message `victim`, one after the other, in a store closed cleanly.
fn flip_every_byte(victim: usize, mode: RecoveryMode) {
    let (disk, puts) = filled(5);
    let (from, to) = (puts[victim].physical_offset, puts[victim].end_offset);
    for at in from..to {
        let bit = (at % 8) as u8;
        disk.flip_bit(segment(0), at, bit).expect("the log is there");
        let (found, skipped, error) = match open_stepped(&disk, config().recovery_mode(mode)) {
            Ok(store) => {
                let read = read_all(&store);
                let report = store.verify().expect("the log can be read");
                assert_eq!(report.damage.len(), 1, "byte {at}: {:?}", report.damage);
                assert_corrupt_at(&report.damage[0], &segment(0), from);
                read
            }
            Err(error) => (Vec::new(), 0, Some(error)),
        };
        if mode == RecoveryMode::Salvage {
            assert!(error.is_none(), "byte {at}: {error:?}");
            assert_eq!((found, skipped), (without(5, victim as u64), 1), "byte {at}");
        } else {
            let error = error.unwrap_or_else(|| panic!("byte {at}: the damage went unnoticed"));
            assert_corrupt_at(&error, &segment(0), from);
            assert!(found.is_empty() || found == (0..victim as u64).collect::<Vec<_>>());
        }
        disk.flip_bit(segment(0), at, bit).expect("the log is there");
    }
    let store = open_stepped(&disk, config().recovery_mode(mode)).expect("it is whole again");
    assert_eq!(ids(&store), [0, 1, 2, 3, 4], "the damaged store was changed");
}

#[test]
fn a_flipped_bit_in_durable_data_is_corrupt_in_strict_mode() {
    flip_every_byte(2, RecoveryMode::Strict);
}

#[test]
fn a_flipped_bit_in_durable_data_is_corrupt_when_tails_are_tolerated() {
    flip_every_byte(2, RecoveryMode::TolerateTail);
}

#[test]
fn a_flipped_bit_in_durable_data_is_stepped_over_by_salvage() {
    flip_every_byte(2, RecoveryMode::Salvage);
}

#[test]
fn a_flipped_bit_in_the_last_durable_record_is_no_torn_tail() {
    flip_every_byte(4, RecoveryMode::TolerateTail);
}

#[test]
fn a_flipped_bit_in_the_first_record_is_found() {
    flip_every_byte(0, RecoveryMode::TolerateTail);
}

#[test]
fn damage_in_a_later_segment_names_that_segment() {
    let (disk, puts) = filled(100);
    let victim = puts.iter().position(|put| put.physical_offset > 16 << 10).expect("a roll") + 1;
    let at = puts[victim].physical_offset;
    disk.flip_bit(segment(16 << 10), at - (16 << 10) + 95, 3).expect("the log is there");
    let store = open(&disk, config());
    let (found, _, error) = read_all(&store);
    assert_eq!(found, (0..victim as u64).collect::<Vec<_>>());
    assert_corrupt_at(&error.expect("damage"), &segment(16 << 10), at - (16 << 10));
    let behind = store.get(TOPIC, 0, victim as u64 + 1, 100).expect("the rest is good");
    assert_eq!(behind.messages.len(), 100 - victim - 1);
    assert_corrupt_at(&store.get_at(at).expect_err("damage"), &segment(16 << 10), at - (16 << 10));
    put(&store, 100);
}

/// Five messages that no sync covered, the third of them damaged at `at` bytes from its beginning.
fn rotten_tail(at: u64) -> (SimDisk, Vec<Acknowledged>, Vec<u8>) {
    let (disk, puts) = unsynced_tail(5);
    disk.flip_bit(segment(0), puts[2].physical_offset + at, 5).expect("the log is there");
    let from = puts[2].physical_offset as usize;
    let bytes = disk.bytes(segment(0)).expect("the log is there");
    let behind = bytes[from..puts[4].end_offset as usize].to_vec();
    (disk, puts, behind)
}

#[test]
fn suspected_rot_is_refused_by_strict_mode() {
    for at in (0..90).step_by(5) {
        let (disk, puts, _) = rotten_tail(at);
        let before = disk.bytes(segment(0)).expect("the log is there");
        let error = try_open(&disk, unsynced().recovery_mode(RecoveryMode::Strict))
            .expect_err("valid records lie behind the damage");
        assert_corrupt_at(&error, &segment(0), puts[2].physical_offset);
        let Error::Corrupt { what: Corruption::SuspectedRot { next_valid }, .. } = error else {
            panic!("{error}")
        };
        assert_eq!(next_valid, puts[3].physical_offset);
        let after = disk.bytes(segment(0)).expect("the log is there");
        assert!(before == after, "a refused store was changed");
        let store = open(&disk, unsynced().recovery_mode(RecoveryMode::Salvage));
        assert_eq!(ids(&store), [0, 1, 3, 4], "and can still be salvaged");
    }
}

#[test]
fn suspected_rot_is_cut_and_copied_when_tails_are_tolerated() {
    for at in (0..90).step_by(5) {
        let (disk, puts, behind) = rotten_tail(at);
        let store = open(&disk, unsynced());
        let cut = store.recovery().cut.clone().expect("a cut is reported");
        assert_eq!(cut.offset, puts[2].physical_offset);
        assert_eq!(cut.bytes, behind.len() as u64);
        let copy = cut.copies.first().expect("a copy of what was cut");
        assert!(copy.starts_with("/store/duralog"), "{}", copy.display());
        let copied = disk.bytes(copy).expect("the copy is there");
        assert!(copied.starts_with(&behind), "the copy is not what was cut");
        assert_eq!(ids(&store), [0, 1]);
        assert_eq!(put(&store, 9), 2);
        store.close().expect("the store is sound");
        drop(store);
        let store = open(&disk, unsynced().recovery_mode(RecoveryMode::Strict));
        assert_eq!(ids(&store), [0, 1, 9]);
        assert!(store.verify().expect("the log can be read").is_ok());
    }
}

#[test]
fn suspected_rot_is_stepped_over_by_salvage() {
    for at in (0..90).step_by(5) {
        let (disk, puts, behind) = rotten_tail(at);
        let store = open(&disk, unsynced().recovery_mode(RecoveryMode::Salvage));
        let salvaged = store.recovery().salvaged.clone();
        assert_eq!(salvaged.len(), 1, "{salvaged:?}");
        let (offset, len) =
            (puts[2].physical_offset, puts[3].physical_offset - puts[2].physical_offset);
        assert_eq!((salvaged[0].offset, salvaged[0].bytes), (offset, len));
        let copied =
            disk.bytes(salvaged[0].copy.as_ref().expect("a copy")).expect("the copy is there");
        assert!(copied.starts_with(&behind[..len as usize]), "the copy is not what was lost");
        assert_eq!(ids(&store), [0, 1, 3, 4]);
        let kept = store.get(TOPIC, 0, 3, 1).expect("the queue can be read");
        assert_eq!(kept.messages[0].physical_offset as u64, puts[3].physical_offset);
        assert_eq!(put(&store, 9), 5, "no queue offset is given twice");
        store.close().expect("the store is sound");
        drop(store);
        let store = open(&disk, unsynced().recovery_mode(RecoveryMode::Strict));
        assert_eq!(ids(&store), [0, 1, 3, 4, 9]);
    }
}

#[test]
fn a_torn_tail_is_cut_in_every_mode() {
    for mode in modes() {
        let (disk, puts) = unsynced_tail(5);
        let (from, to) = (puts[4].physical_offset as usize + 60, puts[4].end_offset as usize);
        disk.edit(segment(0), |bytes| bytes[from..to].fill(0)).expect("the log is there");
        let store = open(&disk, unsynced().recovery_mode(mode));
        let cut = store.recovery().cut.clone().expect("a cut is reported");
        assert_eq!(cut.offset, puts[4].physical_offset, "{mode:?}");
        assert!(cut.copies.is_empty(), "{mode:?}");
        assert_eq!(ids(&store), [0, 1, 2, 3], "{mode:?}");
        assert_eq!(put(&store, 4), 4);
        assert!(store.verify().expect("the log can be read").is_ok());
    }
}

fn small() -> StoreConfig {
    config().segment_size(4096)
}

/// A cleanly closed store of 100 messages over several segments of 4 KiB.
fn segments() -> (SimDisk, Vec<u64>) {
    let disk = disk();
    let store = open(&disk, small());
    (0..100).for_each(|id| assert_eq!(put(&store, id), id));
    store.close().expect("the store closes");
    let mut bases: Vec<u64> = disk
        .files()
        .iter()
        .filter(|path| path.starts_with("/store/commitlog"))
        .map(|path| path.file_name().and_then(|name| name.to_str()).expect("a name"))
        .map(|name| name.parse().expect("a number"))
        .collect();
    bases.sort();
    assert!(bases.len() > 5);
    (disk, bases)
}

#[test]
fn a_missing_middle_segment_names_its_neighbours() {
    for mode in [RecoveryMode::Strict, RecoveryMode::TolerateTail] {
        let (disk, _) = segments();
        disk.drop_file(segment(8192)).expect("the log is there");
        let error = try_open(&disk, small().recovery_mode(mode)).expect_err("a gap");
        let Error::Corrupt { what: Corruption::Gap { before, after }, .. } = &error else {
            panic!("{error}")
        };
        assert_eq!(before, Path::new(&segment(4096)));
        assert_eq!(after, Path::new(&segment(12288)));
        let text = error.to_string();
        assert!(text.contains(&segment(4096)) && text.contains(&segment(12288)), "{text}");
    }
}

#[test]
fn missing_first_segments_have_expired() {
    for mode in modes() {
        let (disk, _) = segments();
        disk.drop_file(segment(0)).expect("the log is there");
        disk.drop_file(segment(4096)).expect("the log is there");
        let store = open(&disk, small().recovery_mode(mode));
        let first = store.min_offset(TOPIC, 0).expect("the queue is there");
        assert!(first > 0);
        let fetched = store.get(TOPIC, 0, first, 1000).expect("the queue can be read");
        let found: Vec<u64> = fetched.messages.iter().map(|stored| id_of(&stored.body)).collect();
        assert_eq!(found, (first..100).collect::<Vec<_>>());
        assert_eq!(put(&store, 100), 100);
    }
}

#[test]
fn missing_durable_segments_at_the_end_are_not_overlooked() {
    for mode in [RecoveryMode::Strict, RecoveryMode::TolerateTail] {
        let (disk, bases) = segments();
        for base in &bases[3..] {
            disk.drop_file(segment(*base)).expect("the log is there");
        }
        let opened = try_open(&disk, small().recovery_mode(mode));
        assert!(matches!(opened, Err(Error::Corrupt { .. })), "{mode:?}: {opened:?}");
    }
}

#[test]
fn salvage_without_the_last_segment_still_knows_which_records_have_checksums() {
    let (disk, bases) = segments();
    let [.., kept, gone] = bases[..] else { panic!("{bases:?}") };
    disk.drop_file(segment(gone)).expect("the log is there");
    // The flag of its first message: covered by nothing but the checksum of the record.
    disk.flip_bit(segment(kept), 19, 0).expect("the log is there");
    let store = open(&disk, small().recovery_mode(RecoveryMode::Salvage));
    let salvaged = &store.recovery().salvaged;
    assert!(matches!(&salvaged[..], [hole] if hole.offset == kept), "{salvaged:?}");
    let found = store.get(TOPIC, 0, 0, 1000).expect("the queue can be read");
    assert!(found.messages.len() > 10);
    assert!(found.messages.iter().all(|message| message.flag == 0), "an altered message");
    store.close().expect("the store closes");

    // What is written now lies where checksums were the rule before, and has none.
    let mut plain = small();
    plain.log.record_crc = false;
    let store = open(&disk, plain.clone());
    put(&store, 1000);
    store.close().expect("the store closes");
    let store = open(&disk, plain);
    assert!(store.verify().expect("the log can be read").is_ok());
}

#[test]
fn a_log_whose_files_are_all_gone_is_not_overlooked() {
    for mode in [RecoveryMode::Strict, RecoveryMode::TolerateTail] {
        let (disk, bases) = segments();
        for base in &bases {
            disk.drop_file(segment(*base)).expect("the log is there");
        }
        let opened = try_open(&disk, small().recovery_mode(mode));
        assert!(matches!(opened, Err(Error::Corrupt { .. })), "{mode:?}: {opened:?}");
    }
}

#[test]
fn a_short_or_empty_segment_in_the_middle_is_corrupt() {
    for len in [0, 1, 100, 4095] {
        for mode in [RecoveryMode::Strict, RecoveryMode::TolerateTail] {
            let (disk, _) = segments();
            disk.truncate(segment(8192), len).expect("the log is there");
            let error = match try_open(&disk, small().recovery_mode(mode)) {
                Ok(store) => read_all(&store).2.expect("damage"),
                Err(error) => error,
            };
            let Error::Corrupt { path, .. } = &error else { panic!("{len}: {error}") };
            assert_eq!(path, Path::new(&segment(8192)), "{len}: {error}");
        }
    }
}

#[test]
fn an_empty_segment_behind_the_end_is_no_damage() {
    for mode in modes() {
        let (disk, bases) = segments();
        let next = bases[bases.len() - 1] + 4096;
        disk.put_file(segment(next), b"").expect("there is room");
        let store = open(&disk, small().recovery_mode(mode));
        assert_eq!(ids(&store), (0..100).collect::<Vec<_>>(), "{mode:?}");
        for id in 100..200 {
            assert_eq!(put(&store, id), id);
        }
        store.close().expect("the store is sound");
        drop(store);
        assert_eq!(ids(&open(&disk, small())), (0..200).collect::<Vec<_>>());
    }
}

#[test]
fn a_short_segment_behind_the_end_is_no_damage_or_named() {
    for len in [1, 100, 4095] {
        for mode in modes() {
            let (disk, bases) = segments();
            let short = segment(bases[bases.len() - 1] + 4096);
            disk.put_file(&short, &vec![0; len]).expect("there is room");
            match try_open(&disk, small().recovery_mode(mode)) {
                Ok(store) => assert_eq!(ids(&store), (0..100).collect::<Vec<_>>()),
                Err(error) => assert_corrupt_at(&error, &short, 0),
            }
        }
    }
}

#[test]
fn foreign_names_in_the_commit_log_are_left_alone() {
    let names = ["readme.txt", ".hidden", "0000", "00000000000000000000.bak", "a/b", "lock"];
    for mode in modes() {
        let (disk, _) = filled(5);
        for name in names {
            disk.put_file(format!("/store/commitlog/{name}"), b"mine").expect("there is room");
        }
        let store = open(&disk, config().recovery_mode(mode));
        assert_eq!(ids(&store), [0, 1, 2, 3, 4]);
        let ignored = &store.recovery().ignored;
        assert!(ignored.iter().any(|name| name == "readme.txt"), "{ignored:?}");
        (5..200).for_each(|id| assert_eq!(put(&store, id), id));
        store.close().expect("the store is sound");
        for name in names {
            let kept = disk.bytes(format!("/store/commitlog/{name}")).expect("still there");
            assert_eq!(kept, b"mine", "{name}");
        }
    }
}

#[test]
fn a_segment_off_the_grid_is_a_typed_error_or_ignored() {
    let (disk, _) = filled(5);
    disk.put_file(segment(5000), b"not a segment").expect("there is room");
    match try_open(&disk, config()) {
        Ok(store) => assert_eq!(ids(&store), [0, 1, 2, 3, 4]),
        Err(error) => assert!(matches!(error, Error::Corrupt { .. }), "{error}"),
    }
}

#[test]
fn foreign_names_among_the_queues_are_left_alone() {
    let names = [
        "readme.txt",
        "orders/readme.txt",
        "orders/x/00000000000000000000",
        "orders/-1/00000000000000000000",
        "orders/0/readme.txt",
        "orders/0/sub/file",
        "no topic!/0/00000000000000000000",
        "empty/0/readme.txt",
    ];
    for mode in modes() {
        let (disk, _) = filled(100);
        for name in names {
            disk.put_file(format!("/store/consumequeue/{name}"), b"mine").expect("there is room");
        }
        let store = open(&disk, config().recovery_mode(mode));
        assert_eq!(ids(&store), (0..100).collect::<Vec<_>>());
        (100..200).for_each(|id| assert_eq!(put(&store, id), id));
        store.close().expect("the store is sound");
        drop(store);
        assert_eq!(ids(&open(&disk, config())), (0..200).collect::<Vec<_>>());
        for name in ["readme.txt", "orders/readme.txt", "orders/0/readme.txt"] {
            let kept = disk.bytes(format!("/store/consumequeue/{name}")).expect("still there");
            assert_eq!(kept, b"mine", "{name}");
        }
    }
}

#[test]
fn foreign_names_beside_the_log_are_left_alone() {
    let (disk, _) = filled(5);
    let names = ["config/topics.json", "index/readme.txt", "duralog/notes", "timerwheel"];
    for name in names {
        disk.put_file(format!("/store/{name}"), b"mine").expect("there is room");
    }
    let store = open(&disk, config());
    assert_eq!(ids(&store), [0, 1, 2, 3, 4]);
    store.close().expect("the store is sound");
    for name in names {
        assert_eq!(disk.bytes(format!("/store/{name}")).expect("still there"), b"mine", "{name}");
    }
}

type Damage = (&'static str, fn(&SimDisk, &Path));

const DAMAGES: [Damage; 6] = [
    ("missing", |disk, path| disk.drop_file(path).expect("it is there")),
    ("empty", |disk, path| disk.truncate(path, 0).expect("it is there")),
    ("short", |disk, path| {
        let half = disk.bytes(path).expect("it is there").len() as u64 / 2 + 3;
        disk.truncate(path, half).expect("it is there");
    }),
    ("zeroed", |disk, path| disk.edit(path, |bytes| bytes.fill(0)).expect("it is there")),
    ("garbled", |disk, path| {
        let garble = |bytes: &mut Vec<u8>| bytes.iter_mut().for_each(|byte| *byte ^= 0x5a);
        disk.edit(path, garble).expect("it is there");
    }),
    ("flipped", |disk, path| {
        let middle = disk.bytes(path).expect("it is there").len() as u64 / 2;
        if middle > 0 {
            disk.flip_bit(path, middle, 6).expect("it is there");
        }
    }),
];

fn files_below(disk: &SimDisk, part: &str) -> Vec<PathBuf> {
    let below = Path::new(DIR).join(part);
    let files: Vec<_> = disk.files().into_iter().filter(|path| path.starts_with(&below)).collect();
    assert!(!files.is_empty());
    files
}

#[test]
fn damaged_queue_files_are_rebuilt_from_the_log() {
    let (model, _) = filled(100);
    for path in files_below(&model, "consumequeue") {
        for (what, damage) in DAMAGES {
            let (disk, _) = filled(100);
            damage(&disk, &path);
            // What is wrong may be found at open or at the first read; the next open is whole.
            let store = open(&disk, config());
            let (found, _, error) = read_all(&store);
            let expected: Vec<u64> = (0..100).collect();
            if let Some(error) = error {
                assert!(matches!(error, Error::Corrupt { .. }), "{what}: {error}");
                assert_eq!(found, expected[..found.len()], "{what} {}", path.display());
            } else {
                assert_eq!(found, expected, "{what} {}", path.display());
            }
            assert_eq!(put(&store, 100), 100);
            store.close().expect("the store closes");
            drop(store);
            let store = open(&disk, config());
            let (found, _, error) = read_all(&store);
            assert!(error.is_none(), "{what} {}: {error:?}", path.display());
            assert_eq!(found, (0..=100).collect::<Vec<_>>(), "{what} {}", path.display());
            assert!(store.verify().expect("the log can be read").is_ok());
        }
    }
}

#[test]
fn queues_are_rebuilt_when_all_of_them_are_gone() {
    let (disk, _) = filled(100);
    for path in files_below(&disk, "consumequeue") {
        disk.drop_file(path).expect("it is there");
    }
    let store = open(&disk, config());
    assert_eq!(ids(&store), (0..100).collect::<Vec<_>>());
    assert!(store.recovery().queues_rebuilt.is_some() || store.recovery().redispatched_records > 0);
    assert_eq!(put(&store, 100), 100);
}

#[test]
fn queues_are_not_rebuilt_from_a_record_that_lies_about_its_place() {
    for (victim, offset_byte) in [(0, 21), (0, 27), (7, 26), (7, 27)] {
        let (disk, puts) = filled(20);
        for path in files_below(&disk, "consumequeue") {
            disk.drop_file(path).expect("it is there");
        }
        let at = puts[victim].physical_offset;
        disk.flip_bit(segment(0), at + offset_byte, 5).expect("the log is there");
        for mode in [RecoveryMode::Strict, RecoveryMode::TolerateTail] {
            let error = try_open(&disk, config().recovery_mode(mode)).expect_err("damaged");
            assert_corrupt_at(&error, &segment(0), at);
        }
        let store = open(&disk, config().recovery_mode(RecoveryMode::Salvage));
        let (found, _, error) = read_all(&store);
        assert!(error.is_none(), "{error:?}");
        assert_eq!(found, without(20, victim as u64), "message {victim}, byte {offset_byte}");
        let last = store.get(TOPIC, 0, 19, 1).expect("readable").messages;
        assert_eq!(id_of(&last[0].body), 19, "another message in its place");
        assert_eq!(put(&store, 20), 20);
    }
}

#[test]
fn a_store_of_a_newer_version_is_refused_by_name() {
    let (disk, _) = filled(5);
    let path = Path::new(DIR).join("duralog/format");
    disk.edit(&path, |bytes| *bytes = b"duralog format 12\n".to_vec()).expect("it is there");
    for mode in modes() {
        let error = try_open(&disk, config().recovery_mode(mode)).expect_err("unknown");
        let Error::UnknownFormat { path: named, found } = &error else { panic!("{error}") };
        assert_eq!((named, found.as_str()), (&path, "duralog format 12"));
    }
}

#[test]
fn damaged_state_files_lose_no_message() {
    let (model, _) = filled(100);
    for path in files_below(&model, "duralog") {
        for (what, damage) in DAMAGES {
            for mode in modes() {
                let (disk, _) = filled(100);
                damage(&disk, &path);
                match try_open(&disk, config().recovery_mode(mode)) {
                    Ok(store) => {
                        let expected: Vec<u64> = (0..100).collect();
                        assert_eq!(ids(&store), expected, "{what} {}", path.display());
                        assert_eq!(put(&store, 100), 100);
                    }
                    Err(error) => {
                        let told = matches!(&error, Error::Corrupt { path: named, .. }
                            if *named == path);
                        assert!(told, "{what} {}: {error}", path.display());
                    }
                }
            }
        }
    }
}

/// Bytes that are a log more or less.
fn random_log(rng: &mut Rng, model: &[u8]) -> Vec<u8> {
    let len = [4096, 4096, 8192, rng.index(9000)][rng.index(4)];
    let mut bytes = match rng.index(3) {
        0 => (0..len).map(|_| rng.next() as u8).collect(),
        1 => vec![0; len],
        _ => model[..len.min(model.len())].to_vec(),
    };
    for _ in 0..rng.index(6) {
        if bytes.is_empty() {
            break;
        }
        let at = rng.index(bytes.len());
        let end = (at + 1 + rng.index(200)).min(bytes.len());
        match rng.index(5) {
            0 => bytes[at] ^= 1 << rng.index(8),
            1 => bytes[at..end].fill(0),
            2 => bytes[at..end].iter_mut().for_each(|byte| *byte = rng.next() as u8),
            3 => {
                // A field of four bytes with a value that is often a limit.
                let value = [0u32, 1, 8, 91, 4096, i32::MAX as u32, u32::MAX, 0xCBD4_3194];
                let value = value[rng.index(value.len())].to_be_bytes();
                let room = (bytes.len() - at).min(4);
                bytes[at..at + room].copy_from_slice(&value[..room]);
            }
            _ => {
                let target = rng.index(bytes.len() - (end - at) + 1);
                bytes.copy_within(at..end, target);
            }
        }
    }
    bytes
}

#[test]
fn any_bytes_are_a_log_or_a_typed_error() {
    let (model, _) = filled(30);
    let model = model.bytes(segment(0)).expect("the log is there");
    let (mut opened, mut refused, mut records) = (0, 0, 0);
    for seed in 0..10_000u64 {
        let mut rng = Rng(seed);
        let disk = SimDisk::new(seed);
        disk.put_file(segment(0), &random_log(&mut rng, &model)).expect("there is room");
        if rng.index(8) == 0 {
            disk.put_file(segment(4096), &random_log(&mut rng, &model)).expect("there is room");
        }
        if rng.index(2) == 0 {
            disk.put_file("/store/abort", b"").expect("there is room");
        }
        let mut config = small().recovery_mode(modes()[rng.index(3)]).read_only(rng.index(8) == 0);
        config.log.max_in_flight_bytes = 16 << 10;
        // A queue offset far away takes many blank entries to bridge.
        config.consume_queue_file_size = 6_000_000;
        let store = match open_stepped(&disk, config.clone()) {
            Ok(store) => store,
            Err(Error::Corrupt { .. }) => {
                refused += 1;
                continue;
            }
            Err(other) => panic!("seed {seed}: {other}"),
        };
        opened += 1;
        for (topic, queues) in store.topics() {
            for queue in queues {
                match store.get(&topic, queue, 0, 1000) {
                    Ok(fetched) => records += fetched.messages.len(),
                    Err(error) => assert!(matches!(error, Error::Corrupt { .. }), "{error}"),
                }
            }
        }
        store.verify().unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        if config.log.read_only {
            continue;
        }
        let ticket = loop {
            match store.try_submit(Message::new("new", "message")) {
                Ok(ticket) => break Some(ticket),
                Err(Error::SegmentNotReady { .. }) => store.step(StoreWorker::Upkeep),
                // The size of the file is taken for the size of a segment.
                Err(Error::TooLarge { what: "record", .. }) => break None,
                Err(other) => panic!("seed {seed}: {other}"),
            };
        };
        let Some(ticket) = ticket else { continue };
        store.step(StoreWorker::Flush);
        let put = ticket.try_get().expect("no failure").expect("it was synced");
        assert_eq!(put.status, PutStatus::PutOk, "seed {seed}");
    }
    assert!(opened > 1000 && refused > 100 && records > 1000, "{opened} {refused} {records}");
}

#[test]
fn a_queue_file_that_loses_its_length_holds_dispatch_up_and_says_so() {
    let disk = disk();
    let mut config = config();
    config.max_open_queue_files = 4;
    config.consume_queue_file_size = 20 * 100_000;
    config.queue_checkpoint_bytes = 4096;
    let store = open(&disk, config.clone());
    let put_in = |queue, id| {
        let message = Message::new(TOPIC, body(id)).queue(queue);
        store.put(message).expect("accepted").ok().expect("safe").queue_offset
    };
    for id in 0..300 {
        put_in(0, id);
    }
    // Others push the file out of the cache.
    for (queue, id) in (1..12).flat_map(|queue| (0..220).map(move |id| (queue, id))) {
        put_in(queue, id);
    }
    let file = || {
        let mut files = disk.files().into_iter();
        files.find(|path| path.starts_with(format!("{DIR}/consumequeue/{TOPIC}/0")))
    };
    eventually("the queue has a file", || file().is_some());
    disk.truncate(file().expect("it has"), 4096).expect("there is such a file");
    let last = (300..1000).map(|id| put_in(0, id)).next_back().expect("there are some");
    // It depends on the cache whether the file is opened again.
    eventually("they are found, or somebody is told", || {
        let found = store.get(TOPIC, 0, last, 1).is_ok_and(|found| !found.messages.is_empty());
        found || store.health().queue_error.is_some()
    });
    drop(store);
    let store = open(&disk, config);
    assert_eq!(store.max_offset(TOPIC, 0), Some(last + 1));
}

#[test]
fn an_older_checkpoint_that_says_clean_is_not_believed_beside_an_abort_file() {
    let mut cut = 0;
    for seed in 0..200 {
        let disk = disk();
        open(&disk, unsynced()).close().expect("the store closes");
        let store = open(&disk, unsynced());
        let message = |id: u8| Message::new(TOPIC, vec![id; 700]);
        for id in 1..=3 {
            let result = store.put(message(id)).expect("accepted");
            assert_eq!(result.status, PutStatus::PutOk);
        }
        let disk = {
            let next = disk.cut_power(Cut::seeded(seed).sectors(Survival::Coin));
            drop(store);
            next
        };
        // The newest slot of the checkpoint rots; the other one is from before.
        let path = format!("{DIR}/duralog/checkpoint");
        let bytes = disk.bytes(&path).expect("there is a checkpoint");
        let [first, second] = [8, 512 + 8].map(|at| bytes[at..at + 8].to_vec());
        let newest = if second > first { 512 } else { 0 };
        disk.flip_bit(&path, newest + 20, 0).expect("there is a checkpoint");
        // In place, so that what lies behind stays as it is.
        let mapped = || config().write_mode(WriteMode::Mmap);
        let store = open(&disk, mapped());
        if !all(&store).is_empty() {
            continue;
        }
        cut += u64::from(store.recovery().cut_bytes() > 0);
        store.put(message(9)).expect("accepted").ok().expect("safe");
        let next = disk.kill();
        drop(store);
        let bodies: Vec<_> = all(&open(&next, mapped())).iter().map(|m| m.body[0]).collect();
        assert_eq!(bodies, [9], "what was cut came back, seed {seed}");
    }
    assert!(cut > 0, "nothing was ever left over");
}

#[test]
fn a_copy_that_finds_the_disk_full_leaves_nothing_behind() {
    let (disk, puts) = unsynced_tail(50);
    disk.flip_bit(segment(0), puts[3].physical_offset + 95, 0).expect("there is a log");
    disk.set_capacity(disk.used() + 2 * 4096);
    let copies = |disk: &SimDisk| {
        let files = disk.files().into_iter();
        files.filter(|path| path.to_string_lossy().contains("cut-")).count()
    };
    for _ in 0..3 {
        assert!(matches!(try_open(&disk, config()), Err(Error::DiskFull { .. })));
        assert_eq!(copies(&disk), 0);
    }
    disk.set_capacity(1 << 40);
    let store = open(&disk, config());
    assert_eq!(store.recovery().cut.as_ref().map(|cut| cut.copies.len()), Some(1));
    assert_eq!(copies(&disk), 1);
}

#[test]
fn verifying_reports_what_is_no_queue_entry_and_goes_on() {
    let (disk, _) = filled(6);
    let file = format!("{DIR}/consumequeue/{TOPIC}/0/{:020}", 0);
    // A size below one is no entry's.
    disk.edit(&file, |bytes| bytes[2 * 20 + 8..2 * 20 + 12].fill(0)).expect("there is a queue");
    disk.edit(&file, |bytes| bytes[4 * 20 + 19] ^= 1).expect("there is a queue");
    let report = open(&disk, config()).verify().expect("readable");
    assert_eq!(report.records, 6);
    let offsets = report.damage.iter().map(|error| match error {
        Error::Corrupt { path, offset, what: Corruption::QueueEntry } => {
            assert_eq!(path, Path::new(&file));
            *offset
        }
        other => panic!("{other}"),
    });
    assert_eq!(offsets.collect::<Vec<_>>(), [2 * 20, 4 * 20]);
}
