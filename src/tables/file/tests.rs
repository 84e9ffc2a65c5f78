use super::*;
use crate::clock::ManualClock;
use crate::disk::{Cut, CutMoment, Fault, SimCall, SimDisk, SyncFailure};
use crate::tables::{ConsumerOffsets, DelayOffsets, SubscriptionGroups, TopicConfig, TopicTable};
use proptest::prelude::*;
use std::sync::Arc;
use std::time::Duration;

const ROOT: &str = "/store";
const FILE: &str = "/store/config/consumerOffset.json";
const BACKUP: &str = "/store/config/consumerOffset.json.bak";

fn tables(disk: &SimDisk) -> Tables {
    Tables::new_in(ROOT, Environment::on(disk.shared()))
}

fn offsets(offset: i64) -> ConsumerOffsets {
    let mut offsets = ConsumerOffsets::default();
    offsets.set("T", "G", 0, offset).unwrap();
    offsets
}

fn offset(offsets: &ConsumerOffsets) -> Option<i64> {
    offsets.get("T", "G", 0)
}

/// A disk on which `1..=saves` were saved, one after the other.
fn saved(saves: i64) -> SimDisk {
    let disk = SimDisk::new(3);
    let tables = tables(&disk);
    for n in 1..=saves {
        tables.save(&mut offsets(n)).unwrap();
    }
    disk
}

fn load(disk: &SimDisk) -> Loaded<ConsumerOffsets> {
    tables(disk).load().unwrap()
}

fn put(disk: &SimDisk, path: &str, text: impl AsRef<[u8]>) {
    let _ = disk.drop_file(path);
    disk.put_file(path, text.as_ref()).unwrap();
}

#[test]
fn what_is_saved_is_loaded() {
    let disk = SimDisk::new(1);
    let clock = ManualClock::new(1_700_000_000_123);
    let environment = Environment::on(disk.shared()).clock(Arc::new(clock));
    let tables = Tables::new_in(ROOT, environment);
    let mut topics = TopicTable::default();
    topics.set("orders", TopicConfig::new(4));
    let mut groups = SubscriptionGroups::default();
    groups.set("G", Default::default());
    let mut delays = DelayOffsets::default();
    delays.set(3, 20);
    tables.save(&mut topics).unwrap();
    tables.save(&mut groups).unwrap();
    tables.save(&mut delays).unwrap();
    let first = topics.data_version().clone();
    tables.save(&mut topics).unwrap();
    assert_eq!((first.counter, topics.data_version().counter), (1, 2));
    assert_eq!(first.timestamp, 1_700_000_000_123);
    assert_eq!(tables.load().unwrap(), Loaded { table: topics, source: Source::Main });
    assert_eq!(tables.load().unwrap(), Loaded { table: groups, source: Source::Main });
    assert_eq!(tables.load().unwrap(), Loaded { table: delays, source: Source::Main });
    assert_eq!(load(&disk).source, Source::Nothing);
    assert!(
        disk.files().iter().all(|file| file.starts_with("/store/config")),
        "{:?}",
        disk.files()
    );
}

#[test]
fn the_backup_is_the_save_before() {
    let disk = saved(3);
    for (text, why) in [
        (None, Unusable::Missing),
        (Some(""), Unusable::Empty),
        (Some(" \n"), Unusable::Empty),
        (
            Some("{\"offsetTable\":{\"T@G\":{0:1"),
            Unusable::Malformed { offset: 25, what: "EOF while parsing an object".into() },
        ),
        (
            Some("{offsetTable:7}"),
            Unusable::Malformed {
                offset: 0,
                what: "`offsetTable` is a number, not an object".into(),
            },
        ),
    ] {
        match text {
            Some(text) => put(&disk, FILE, text),
            None => disk.drop_file(FILE).unwrap(),
        }
        let loaded = load(&disk);
        assert_eq!((offset(&loaded.table), loaded.source), (Some(2), Source::Backup { why }));
    }
}

#[test]
fn nothing_is_made_up_where_something_was() {
    let disk = saved(2);
    let corrupt = |disk: &SimDisk, file: &str| match tables(disk).load::<ConsumerOffsets>() {
        Err(Error::Corrupt { path, what: Corruption::Json { .. }, .. }) => {
            assert_eq!(path, Path::new(file));
        }
        other => panic!("{other:?}"),
    };
    put(&disk, FILE, "{");
    put(&disk, BACKUP, "[]");
    corrupt(&disk, FILE);
    put(&disk, BACKUP, "");
    corrupt(&disk, FILE);
    disk.drop_file(BACKUP).unwrap();
    corrupt(&disk, FILE);
    put(&disk, BACKUP, "\0\0\0");
    disk.drop_file(FILE).unwrap();
    corrupt(&disk, BACKUP);
    put(&disk, FILE, "");
    corrupt(&disk, BACKUP);
    disk.drop_file(BACKUP).unwrap();
    assert_eq!(load(&disk).source, Source::Nothing);
    let error = Error::Corrupt {
        path: FILE.into(),
        offset: 1,
        what: Corruption::Json { what: "EOF".into() },
    };
    assert!(error.to_string().ends_with("; there is no usable backup, mend the file or remove it"));
}

#[test]
fn a_file_that_cannot_be_read_is_no_reason_to_take_another() {
    let disk = saved(2);
    disk.inject(Fault::on(SimCall::Read).path("consumerOffset.json").errno(5));
    assert!(matches!(tables(&disk).load::<ConsumerOffsets>(), Err(Error::Io { .. })));
    assert_eq!(load(&disk).source, Source::Main);
}

#[test]
fn a_malformed_file_does_not_become_the_backup() {
    let disk = saved(2);
    put(&disk, FILE, "{");
    let mut table = load(&disk).table;
    assert_eq!(offset(&table), Some(1));
    tables(&disk).save(&mut table).unwrap();
    disk.drop_file(FILE).unwrap();
    assert_eq!(offset(&load(&disk).table), Some(1));
}

#[test]
fn a_table_too_large_is_refused_and_not_read() {
    let disk = saved(1);
    let mut topics = TopicTable::default();
    topics.set("x".repeat(FILE_SIZE_MAX as usize), TopicConfig::new(1));
    assert!(matches!(
        tables(&disk).save(&mut topics),
        Err(Error::TooLarge { what: "table", max, .. }) if max as u64 == FILE_SIZE_MAX
    ));
    put(&disk, FILE, vec![b' '; FILE_SIZE_MAX as usize + 1]);
    assert!(matches!(tables(&disk).load::<ConsumerOffsets>(), Err(Error::Corrupt { .. })));
}

#[test]
fn a_full_disk_is_said_and_leaves_everything_as_it_was() {
    let disk = saved(2);
    disk.set_capacity(disk.used());
    match tables(&disk).save(&mut offsets(3)) {
        Err(Error::DiskFull { path, .. }) => assert!(path.starts_with("/store/duralog")),
        other => panic!("{other:?}"),
    }
    assert_eq!(offset(&load(&disk).table), Some(2));
    assert_eq!(disk.files(), [Path::new(FILE), Path::new(BACKUP)]);
    disk.set_capacity(1 << 30);
    tables(&disk).save(&mut offsets(3)).unwrap();
    assert_eq!(offset(&load(&disk).table), Some(3));
}

#[test]
fn a_save_that_failed_can_be_made_again() {
    for call in [SimCall::Create, SimCall::Write, SimCall::Rename, SimCall::SyncDir, SimCall::Open]
    {
        for nth in 1..9 {
            let disk = saved(2);
            let tables = tables(&disk);
            disk.inject(Fault::on(call).nth(nth).errno(5));
            let mut table = offsets(3);
            let saved = tables.save(&mut table);
            disk.clear_faults();
            if let Err(error) = saved {
                assert!(matches!(error, Error::Io { .. }), "{error}");
                assert!(matches!(offset(&load(&disk).table), Some(2 | 3)), "{call:?} {nth}");
                tables.save(&mut table).unwrap();
                assert_eq!(table.data_version().counter, 2);
            }
            assert_eq!(load(&disk), Loaded { table, source: Source::Main }, "{call:?} {nth}");
        }
    }
    let disk = saved(2);
    disk.inject(Fault::sync(SyncFailure::KeepNew));
    assert!(tables(&disk).save(&mut offsets(3)).is_err());
    assert_eq!(offset(&load(&disk.cut_power(Cut::losing_all())).table), Some(2));
}

/// What survives a crash, from nothing to everything.
fn survivals() -> impl Iterator<Item = Cut> {
    (0..12).map(Cut::seeded).chain([Cut::losing_all(), Cut::losing_nothing()])
}

/// Crashes at every call of a save that follows `before`, and shows each outcome to `check`, with
/// what the save said.
fn crash_at_every_call(
    before: impl Fn() -> SimDisk,
    check: impl Fn(&SimDisk, Option<()>, &str),
) -> u64 {
    let mut crashes = 0;
    for kill in [false, true] {
        for moment in [CutMoment::Before, CutMoment::Middle] {
            for cut in survivals() {
                for n in 1.. {
                    let disk = before();
                    match kill {
                        true => disk.kill_at(n, moment),
                        false => disk.cut_at(n, moment),
                    }
                    let saved = tables(&disk).save(&mut offsets(100));
                    let ended = !disk.is_down();
                    let disk = disk.reboot(cut);
                    let label = format!("kill {kill}, {moment:?}, {cut:?}, call {n}");
                    check(&disk, saved.ok(), &label);
                    crashes += 1;
                    if ended {
                        break;
                    }
                    assert!(n < 100, "the save never ends");
                }
            }
        }
    }
    crashes
}

/// The file holds `before` or, once the save answered for certain, the new table; saving goes on; and
/// nothing of ours lies in RocketMQ's folder.
fn whole(before: Option<i64>) -> impl Fn(&SimDisk, Option<()>, &str) {
    move |disk, saved, label| {
        let found = offset(&load(disk).table);
        match saved {
            Some(()) => assert_eq!(found, Some(100), "{label}"),
            None => assert!(found == before || found == Some(100), "{label}: {found:?}"),
        }
        tables(disk).save(&mut offsets(200)).unwrap();
        let disk = disk.cut_power(Cut::losing_all());
        assert_eq!(offset(&load(&disk).table), Some(200), "{label}");
        let ours = disk.files();
        let ours = ours.iter().filter(|file| file.starts_with("/store/config"));
        assert!(ours.clone().all(|file| file == Path::new(FILE) || file == Path::new(BACKUP)));
        disk.drop_file(FILE).unwrap();
        let backup = offset(&load(&disk).table);
        assert!(backup == found || found.is_none(), "{label}: {backup:?}");
    }
}

#[test]
fn a_crash_at_any_call_leaves_the_old_table_or_the_new_one() {
    let crashes = crash_at_every_call(|| saved(3), whole(Some(3)));
    assert!(crashes > 500, "{crashes}");
    crash_at_every_call(|| saved(1), whole(Some(1)));
    crash_at_every_call(|| SimDisk::new(5), whole(None));
}

#[test]
fn a_crash_while_a_malformed_file_is_replaced_leaves_its_backup() {
    let broken = || {
        let disk = saved(3);
        put(&disk, FILE, "{\"offsetTable\":");
        disk
    };
    crash_at_every_call(broken, whole(Some(2)));
}

#[test]
fn directories_of_a_killed_process_become_durable_with_the_first_save() {
    for n in 1..12 {
        let disk = SimDisk::new(9);
        disk.kill_at(n, CutMoment::Middle);
        let _ = tables(&disk).save(&mut offsets(1));
        let disk = disk.kill();
        tables(&disk).save(&mut offsets(2)).unwrap();
        let disk = disk.cut_power(Cut::losing_all());
        assert_eq!(offset(&load(&disk).table), Some(2), "call {n}");
    }
}

proptest! {
    #[test]
    fn a_table_of_any_bytes_is_loaded_and_saved_or_refused(
        text in r#"\{("?(offsetTable|dataVersion|counter|T@G|x|[0-3])"?:|[{},1\[\]"n]|null|-7){0,24}\}"#,
    ) {
        let disk = SimDisk::new(1);
        put(&disk, FILE, &text);
        let tables = tables(&disk);
        if let Ok(Loaded { mut table, source }) = tables.load::<ConsumerOffsets>() {
            prop_assert_eq!(source, Source::Main);
            tables.save(&mut table).unwrap();
            prop_assert_eq!(tables.load().unwrap(), Loaded { table, source: Source::Main });
        }
    }
}

#[test]
fn a_number_that_nobody_here_knows_stays_what_it_is() {
    let disk = SimDisk::new(1);
    put(&disk, FILE, "{\"offsetTable\":{},\"later\":116666666666666666666666}");
    let tables = tables(&disk);
    let mut table = tables.load::<ConsumerOffsets>().unwrap().table;
    tables.save(&mut table).unwrap();
    assert_eq!(tables.load::<ConsumerOffsets>().unwrap().table, table);
}

#[test]
fn saves_of_two_threads_do_not_mix() {
    let disk = SimDisk::new(11);
    disk.set_sync_latency(Duration::from_micros(50));
    let tables = tables(&disk);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let tables = &tables;
            scope.spawn(move || {
                for n in 0..20 {
                    tables.save(&mut offsets(thread * 100 + n)).unwrap();
                }
            });
        }
    });
    assert_eq!(offset(&load(&disk).table).unwrap() % 100, 19);
}
