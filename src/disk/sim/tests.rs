//! Each promise, and each betrayal, of the simulated disk.

use super::*;
use crate::disk::{MapAccess, SyncMethod};
use std::thread;
use std::time::Instant;

const ROOT: &str = "/store";
const LOG: &str = "/store/commitlog";
const FILE: &str = "/store/commitlog/00000000000000004096";

fn p(path: &str) -> &Path {
    Path::new(path)
}

/// A disk with the durable directories of a store.
fn disk() -> SimDisk {
    let disk = SimDisk::new(7);
    disk.set_label_root(ROOT);
    for (dir, parent) in [(ROOT, "/"), (LOG, ROOT)] {
        assert!(disk.create_dir(p(dir)).unwrap());
        disk.sync_dir(p(parent)).unwrap();
    }
    disk
}

/// A file of 4 KiB in it, as durable as its name.
fn disk_with_file() -> (SimDisk, Arc<dyn DiskFile>) {
    let disk = disk();
    let file = disk.create(p(FILE), 4096, Allocation::Reserved).unwrap();
    sync(&file).unwrap();
    disk.sync_dir(p(LOG)).unwrap();
    (disk, file)
}

fn sync(file: &Arc<dyn DiskFile>) -> io::Result<()> {
    file.sync(SyncMethod::Fdatasync)
}

fn open(disk: &SimDisk) -> Arc<dyn DiskFile> {
    disk.open(p(FILE), OpenAccess::Write).unwrap()
}

fn byte(file: &Arc<dyn DiskFile>, at: u64) -> u8 {
    let mut buf = [0];
    assert_eq!(file.read_at(&mut buf, at).unwrap(), 1);
    buf[0]
}

fn errno<T>(result: io::Result<T>) -> Option<i32> {
    result.err().expect("an error").raw_os_error()
}

fn is_gone<T>(result: io::Result<T>) -> bool {
    result.is_err_and(|error| SimDisk::is_power_loss(&error))
}

#[test]
fn a_sync_saves_what_was_written_and_a_cut_takes_the_rest() {
    for seed in 0..200 {
        let (disk, file) = disk_with_file();
        file.write_at(&[1; 4096], 0).unwrap();
        sync(&file).unwrap();
        file.write_at(&[2; 1024], 512).unwrap();
        assert_eq!(disk.unsynced_sectors(), 2);
        let disk = disk.cut_power(seed);
        let bytes = disk.bytes(FILE).unwrap();
        assert_eq!(bytes.len(), 4096);
        for (sector, bytes) in bytes.chunks(512).enumerate() {
            let allowed: &[u8] = if matches!(sector, 1 | 2) { &[1, 2] } else { &[1] };
            assert!(bytes.iter().all(|byte| *byte == bytes[0] && allowed.contains(byte)));
        }
        assert_eq!(disk.durable_bytes(FILE).unwrap(), bytes);
        assert_eq!(disk.unsynced_sectors(), 0);
    }
}

#[test]
fn the_survivors_may_be_any_subset() {
    let survivors = |cut: Cut| {
        let (disk, file) = disk_with_file();
        file.write_at(&[9; 4 * 512], 0).unwrap();
        let bytes = disk.cut_power(cut).bytes(FILE).unwrap();
        (0..4).fold(0, |set, sector| set | (u64::from(bytes[sector * 512] == 9) << sector))
    };
    let seen: std::collections::BTreeSet<u64> =
        (0..400).map(|seed| survivors(seed.into())).collect();
    assert_eq!(seen.len(), 16);
    for set in 0..16 {
        assert_eq!(survivors(Cut::seeded(0).sectors(Survival::Subset(set))), set);
    }
    for seed in 0..50 {
        let set = survivors(Cut::seeded(seed).sectors(Survival::Suffix));
        assert!([0b0000, 0b1000, 0b1100, 0b1110, 0b1111].contains(&set));
    }
    assert_eq!(survivors(Cut::losing_all()), 0);
    assert_eq!(survivors(Cut::losing_nothing()), 15);
}

#[test]
fn an_unsynced_length_is_the_old_or_the_new_one() {
    let mut lengths = std::collections::BTreeSet::new();
    for seed in 0..50 {
        let (disk, file) = disk_with_file();
        file.write_at(&[3; 100], 5000).unwrap();
        file.allocate(20_000).unwrap();
        let disk = disk.cut_power(seed);
        let file = open(&disk);
        lengths.insert(file.len());
        if file.len() == 4096 {
            // What lay behind the end must not come back when the file grows over it.
            file.write_at(&[1], 9000).unwrap();
            assert!(disk.bytes(FILE).unwrap()[4096..9000].iter().all(|byte| *byte == 0));
        }
    }
    assert_eq!(lengths.into_iter().collect::<Vec<_>>(), [4096, 20_000]);
}

#[test]
fn a_name_is_lost_without_a_directory_sync() {
    let disk = disk();
    let file = disk.create(p(FILE), 0, Allocation::Sparse).unwrap();
    file.write_at(b"synced, yet nameless", 0).unwrap();
    sync(&file).unwrap();
    let disk = disk.cut_power(Cut::losing_all());
    assert_eq!(disk.list(p(LOG)).unwrap(), []);
    assert_eq!(errno(disk.open(p(FILE), OpenAccess::Read)), Some(libc::ENOENT));

    disk.create(p(FILE), 0, Allocation::Sparse).unwrap();
    disk.sync_dir(p(LOG)).unwrap();
    disk.remove(p(FILE)).unwrap();
    let disk = disk.cut_power(Cut::losing_all());
    assert_eq!(disk.list(p(LOG)).unwrap().len(), 1, "an unsynced removal is undone");
    disk.remove(p(FILE)).unwrap();
    disk.sync_dir(p(LOG)).unwrap();
    assert!(disk.cut_power(Cut::losing_all()).files().is_empty());
}

#[test]
fn a_directory_lost_takes_all_below_with_it() {
    let disk = SimDisk::new(0);
    disk.create_dir(p("a")).unwrap();
    disk.create(p("/a/b"), 0, Allocation::Sparse).unwrap();
    disk.sync_dir(p("/a")).unwrap();
    assert!(!disk.create_dir(p("./a")).unwrap(), "absolute or not makes no difference");
    assert_eq!(errno(disk.remove_dir(p("a"))), Some(libc::ENOTEMPTY));
    assert_eq!(errno(disk.create_dir(p("x/y"))), Some(libc::ENOENT));
    assert_eq!(disk.cut_power(Cut::losing_all()).list(p("/")).unwrap(), []);
}

#[test]
fn a_rename_may_leave_either_name_both_or_none() {
    let mut outcomes = std::collections::BTreeSet::new();
    for seed in 0..200 {
        let disk = disk();
        let (new, old) = (p("/store/state.new"), p("/store/state"));
        disk.put_file(old, b"old").unwrap();
        disk.put_file(new, b"new").unwrap();
        disk.rename(new, old).unwrap();
        assert_eq!(disk.bytes(old).unwrap(), b"new");
        let disk = disk.cut_power(seed);
        outcomes.insert((disk.bytes(old).unwrap() == b"new", disk.bytes(new).is_ok()));
        for path in disk.files() {
            disk.open(&path, OpenAccess::Read).unwrap();
        }
    }
    assert_eq!(outcomes.len(), 4);
}

#[test]
fn a_directory_is_renamed_with_all_that_is_in_it() {
    let (disk, file) = disk_with_file();
    let (new, inside) = (p("/moved"), p("/moved/commitlog/00000000000000004096"));
    disk.rename(p(ROOT), p(ROOT)).unwrap();
    assert_eq!(errno(disk.rename(p(ROOT), p("/store/commitlog/x"))), Some(libc::EINVAL));
    assert_eq!(errno(disk.rename(p("/none"), new)), Some(libc::ENOENT));
    disk.put_file("/moved/file", b"x").unwrap();
    assert_eq!(errno(disk.rename(p(ROOT), new)), Some(libc::ENOTEMPTY));
    assert_eq!(errno(disk.rename(p(ROOT), p("/moved/file"))), Some(libc::ENOTDIR));
    assert_eq!(errno(disk.rename(p("/moved/file"), p(ROOT))), Some(libc::EISDIR));
    disk.remove(p("/moved/file")).unwrap();
    disk.sync_dir(new).unwrap();
    disk.rename(p(ROOT), new).unwrap();
    file.write_at(&[3], 0).unwrap();
    assert_eq!((disk.bytes(inside).unwrap()[0], disk.bytes(FILE).is_ok()), (3, false));
    let disk = disk.cut_power(Cut::losing_all());
    assert_eq!((disk.bytes(FILE).unwrap()[0], disk.bytes(inside).is_ok()), (0, false));
    disk.rename(p(ROOT), new).unwrap();
    disk.sync_dir(p("/")).unwrap();
    let disk = disk.cut_power(Cut::losing_all());
    assert!(disk.bytes(inside).is_ok() && disk.bytes(FILE).is_err());
}

#[test]
fn a_hard_link_is_a_second_name_of_the_same_bytes() {
    let (disk, file) = disk_with_file();
    let (link, used) = (p("/store/link"), disk.used());
    disk.hard_link(p(FILE), link).unwrap();
    assert_eq!(errno(disk.hard_link(p(FILE), link)), Some(libc::EEXIST));
    assert_eq!(errno(disk.hard_link(p("/none"), p("/x"))), Some(libc::ENOENT));
    assert_eq!(errno(disk.hard_link(p(LOG), p("/x"))), Some(libc::EISDIR));
    file.write_at(&[3], 0).unwrap();
    assert_eq!((disk.bytes(link).unwrap()[0], disk.unsynced_sectors()), (3, 1));
    sync(&file).unwrap();
    assert!(disk.cut_power(Cut::losing_all()).bytes(link).is_err());

    let (disk, file) = disk_with_file();
    disk.hard_link(p(FILE), link).unwrap();
    disk.sync_dir(p(ROOT)).unwrap();
    drop(file);
    disk.remove(p(FILE)).unwrap();
    disk.sync_dir(p(LOG)).unwrap();
    let disk = disk.cut_power(Cut::losing_all());
    assert_eq!((disk.bytes(link).unwrap().len(), disk.used()), (4096, used));
    disk.remove(link).unwrap();
    assert_eq!(disk.used(), 0);
}

#[test]
fn of_one_name_the_first_changes_survive() {
    let mut seen = std::collections::BTreeSet::new();
    for seed in 0..200 {
        let (disk, name) = (disk(), p("/store/x"));
        disk.create(name, 0, Allocation::Sparse).unwrap();
        disk.remove(name).unwrap();
        let file = disk.create(name, 3, Allocation::Sparse).unwrap();
        sync(&file).unwrap();
        let disk = disk.cut_power(seed);
        seen.insert(disk.bytes(name).ok().map(|bytes| bytes.len()));
    }
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), [None, Some(0), Some(3)]);
}

#[test]
fn keep_new_then_ok_then_cut_loses_the_bytes() {
    let (disk, file) = disk_with_file();
    disk.inject(Fault::sync(SyncFailure::KeepNew).path("commitlog"));
    file.write_at(&[5; 1024], 0).unwrap();
    assert_eq!(errno(sync(&file)), Some(libc::EIO));
    assert_eq!((byte(&file, 0), disk.unsynced_sectors()), (5, 0));
    file.write_at(&[6; 10], 0).unwrap();
    sync(&file).unwrap();
    let disk = disk.kill();
    assert_eq!(byte(&open(&disk), 600), 5, "the page cache outlives the process, and lies");
    let disk = disk.cut_power(Cut::losing_nothing());
    let bytes = disk.bytes(FILE).unwrap();
    assert_eq!((bytes[0], bytes[10], bytes[511], bytes[512]), (6, 5, 5, 0));
}

#[test]
fn a_late_failure_answers_ok_first() {
    let (disk, file) = disk_with_file();
    disk.inject(Fault::sync(SyncFailure::Late));
    file.write_at(&[5; 512], 0).unwrap();
    sync(&file).unwrap();
    file.write_at(&[5; 512], 512).unwrap();
    assert_eq!(errno(sync(&file)), Some(libc::EIO));
    sync(&file).unwrap();
    assert_eq!(disk.cut_power(Cut::losing_nothing()).bytes(FILE).unwrap(), [0; 4096]);
}

#[test]
fn a_revert_shows_the_old_bytes_but_never_under_a_reader() {
    let (disk, file) = disk_with_file();
    let region = file.map(MapAccess::Write).unwrap();
    let mut writer = region.writer().unwrap();
    writer.copy_in(0, &[1; 4096]);
    sync(&file).unwrap();
    writer.copy_in(0, &[2; 2048]);
    region.publish(1024);
    disk.inject(Fault::sync(SyncFailure::Revert).errno(libc::ENOSPC));
    assert_eq!(sync(&file).unwrap_err().kind(), io::ErrorKind::StorageFull);
    let seen = |file| [0, 1023, 1024, 2048].map(|at| byte(file, at));
    assert_eq!(region.bytes(0..1024).unwrap(), [2; 1024]);
    assert_eq!(seen(&file), [2, 2, 1, 1]);
    let disk = disk.kill();
    assert_eq!(region.bytes(0..1024).unwrap(), [2; 1024]);
    assert_eq!(seen(&open(&disk)), [1, 1, 1, 1]);
}

#[test]
fn faults_count_filter_and_last() {
    let (disk, file) = disk_with_file();
    disk.inject(Fault::on(SimCall::Read).nth(2).path("commitlog").errno(libc::ENXIO));
    let kind = io::ErrorKind::PermissionDenied;
    disk.inject(
        Fault::on(SimCall::Create).path_where(|path| path.ends_with("x")).kind(kind).forever(),
    );
    disk.inject(Fault::short_write(3));
    disk.inject(Fault::on(SimCall::SyncDir));
    assert_eq!(byte(&file, 0), 0);
    assert_eq!(errno(file.read_at(&mut [0], 0)), Some(libc::ENXIO));
    assert_eq!(byte(&file, 0), 0);
    disk.create(p("/store/y"), 0, Allocation::Sparse).unwrap();
    for _ in 0..2 {
        let failed = disk.create(p("/store/x"), 0, Allocation::Sparse);
        assert_eq!(failed.unwrap_err().kind(), kind);
    }
    assert_eq!(errno(file.write_at(&[8; 8], 0)), Some(libc::EIO));
    assert_eq!(disk.bytes(FILE).unwrap()[..4], [8, 8, 8, 0]);
    assert_eq!(errno(disk.sync_dir(p(ROOT))), Some(libc::EIO));
    assert_eq!(disk.faults_fired(), 5);
    disk.clear_faults();
    disk.create(p("/store/x"), 0, Allocation::Sparse).unwrap();
}

#[test]
fn space_runs_out_and_comes_back() {
    let disk = disk();
    disk.set_capacity(5 * 4096);
    let file = disk.create(p(FILE), 3 * 4096, Allocation::Reserved).unwrap();
    let full = disk.create(p("/store/x"), 3 * 4096, Allocation::Reserved);
    assert_eq!(full.unwrap_err().kind(), io::ErrorKind::StorageFull);
    assert_eq!(disk.list(p(ROOT)).unwrap().len(), 1, "nothing is left behind");
    assert_eq!(file.allocate(6 * 4096).unwrap_err().kind(), io::ErrorKind::StorageFull);
    assert_eq!(disk.space(p("/")).unwrap(), DiskSpace { total: 5 * 4096, available: 2 * 4096 });

    let sparse = disk.create(p("/store/y"), 1 << 20, Allocation::Sparse).unwrap();
    assert_eq!(disk.used(), 3 * 4096);
    sparse.write_at(&[1], 4095).unwrap();
    sparse.write_at(&[1], 0).unwrap();
    assert_eq!(disk.used(), 4 * 4096);
    assert_eq!(sparse.write_at(&[1; 8192], 8192).unwrap_err().kind(), io::ErrorKind::StorageFull);
    file.write_at(&[1; 3 * 4096], 0).unwrap();
    disk.set_capacity(6 * 4096);
    sparse.write_at(&[1], 12288).unwrap();
    assert_eq!(disk.used(), 6 * 4096);

    let region = sparse.map(MapAccess::Read).unwrap();
    drop(sparse);
    disk.remove(p("/store/y")).unwrap();
    assert_eq!(disk.used(), 6 * 4096, "a region keeps the blocks");
    drop(region);
    assert_eq!(disk.used(), 3 * 4096);
    let disk = disk.cut_power(Cut::losing_all());
    assert_eq!(disk.used(), 0);
}

#[test]
fn next_data_skips_holes_and_prewritten_zeros() {
    let disk = disk();
    let file = disk.create(p(FILE), 1 << 20, Allocation::Sparse).unwrap();
    assert_eq!(file.next_data(0).unwrap(), None);
    file.prewrite(0..65536).unwrap();
    assert_eq!((file.next_data(0).unwrap(), disk.used()), (None, 65536));
    file.write_at(&[1; 700], 10_000).unwrap();
    assert_eq!(file.next_data(0).unwrap(), Some(9728));
    assert_eq!(file.next_data(10_001).unwrap(), Some(10_001));
    assert_eq!(file.zero(0..1 << 20).unwrap(), 65536);
    assert!(disk.bytes(FILE).unwrap().iter().all(|byte| *byte == 0));
}

#[test]
#[should_panic(expected = "would be SIGBUS")]
fn a_store_to_a_hole_is_a_sigbus() {
    let disk = disk();
    let file = disk.create(p(FILE), 8192, Allocation::Sparse).unwrap();
    file.write_at(&[1], 0).unwrap();
    let region = file.map(MapAccess::Write).unwrap();
    region.writer().unwrap().copy_in(4090, &[1; 20]);
}

#[test]
fn regions_are_the_page_cache() {
    let (disk, file) = disk_with_file();
    let region = file.map(MapAccess::Write).unwrap();
    let mut writer = region.writer().unwrap();
    writer.copy_in(500, &[1; 100]);
    assert_eq!((byte(&file, 599), disk.unsynced_sectors()), (1, 2));
    file.write_at(&[2; 10], 600).unwrap();
    region.publish(610);
    assert_eq!(region.bytes(598..602).unwrap(), [1, 1, 2, 2]);
    assert_eq!(file.write_at(&[3], 609).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    assert_eq!(file.prewrite(609..4096).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    assert_eq!(open(&disk).write_at(&[3], 609).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    assert_eq!(file.map(MapAccess::Read).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    file.sync(SyncMethod::Msync).unwrap();
    let unmapped = open(&disk).sync(SyncMethod::Msync);
    assert_eq!(unmapped.unwrap_err().kind(), io::ErrorKind::InvalidInput);
    let stats = disk.stats();
    assert_eq!((stats.stores, stats.stored_bytes, stats.msyncs), (1, 100, 1));
}

#[test]
fn old_regions_stay_readable_and_touch_nothing_new() {
    for killed in [false, true] {
        let (disk, file) = disk_with_file();
        let region = file.map(MapAccess::Write).unwrap();
        let mut writer = region.writer().unwrap();
        writer.copy_in(0, &[1; 600]);
        region.publish(600);
        let disk = if killed { disk.kill() } else { disk.cut_power(Cut::losing_all()) };
        writer.copy_in(600, &[1; 600]);
        let file = open(&disk);
        file.write_at(&[7; 512], 1024).unwrap();
        assert_eq!(disk.unsynced_sectors(), if killed { 3 } else { 1 });
        assert_eq!(
            [0, 599, 600, 1024].map(|at| byte(&file, at)),
            if killed { [1, 1, 0, 7] } else { [0, 0, 0, 7] }
        );
        region.publish(1200);
        assert_eq!(region.bytes(0..1200).unwrap(), [1; 1200]);
    }
}

#[test]
fn the_dead_hear_of_it_and_change_nothing() {
    let (old, file) = disk_with_file();
    let lock = old.lock(p("/store/lock")).unwrap();
    let disk = old.kill();
    assert!(
        is_gone(file.write_at(&[1], 0))
            && is_gone(sync(&file))
            && is_gone(file.read_at(&mut [0], 0))
    );
    assert!(
        is_gone(file.map(MapAccess::Read))
            && is_gone(file.allocate(1))
            && is_gone(file.next_data(0))
    );
    assert!(is_gone(file.sync(SyncMethod::Msync)) && is_gone(file.prewrite(0..1)));
    assert!(is_gone(old.open(p(FILE), OpenAccess::Read)) && is_gone(old.remove(p(FILE))));
    assert!(
        is_gone(old.list(p(ROOT))) && is_gone(old.sync_dir(p(ROOT))) && is_gone(old.space(p("/")))
    );
    assert!(
        matches!(old.lock(p("/store/lock")), Err(LockError::Io(e)) if SimDisk::is_power_loss(&e))
    );
    assert!(!SimDisk::is_power_loss(&os(libc::EIO)));
    let held = disk.lock(p("/store/lock")).unwrap();
    drop((lock, file));
    let own = std::process::id();
    let second = disk.lock(p("/store/lock"));
    assert!(matches!(second, Err(LockError::Held { pid: Some(pid) }) if pid == own));
    drop(held);
    disk.lock(p("/store/lock")).unwrap();
}

#[test]
fn a_foreign_lock_is_named_and_outlives_our_process() {
    let disk = disk();
    disk.hold_lock("/store/lock", 42).unwrap();
    let disk = disk.kill();
    assert!(matches!(disk.lock(p("/store/lock")), Err(LockError::Held { pid: Some(42) })));
    let disk = disk.cut_power(0);
    drop(disk.lock(p("/store/lock")).unwrap());
    disk.hold_lock("/store/lock", 43).unwrap();
    disk.release_lock("/store/lock").unwrap();
    disk.lock(p("/store/lock")).unwrap();
}

/// A bit of everything; stops at the first error.
fn script(disk: &SimDisk) -> io::Result<()> {
    let temporary = p("/store/state.tmp");
    disk.create_dir(p(ROOT))?;
    disk.sync_dir(p("/"))?;
    disk.create_dir(p(LOG))?;
    disk.sync_dir(p(ROOT))?;
    drop(disk.lock(p("/store/lock")));
    let file = disk.create(p(FILE), 8192, Allocation::Reserved)?;
    file.prewrite(0..4096)?;
    sync(&file)?;
    disk.sync_dir(p(LOG))?;
    let region = file.map(MapAccess::Write)?;
    let mut writer = region.writer().expect("the first");
    for round in 1..4 {
        writer.copy_in(1000 * u64::from(round), &[round; 1000]);
        file.sync(SyncMethod::Fsync)?;
        let state = disk.create(temporary, 0, Allocation::Sparse)?;
        state.allocate(100)?;
        state.write_at(&[round; 2000], 0)?;
        sync(&state)?;
        disk.rename(temporary, p("/store/state"))?;
        disk.sync_dir(p(ROOT))?;
    }
    disk.remove(p("/store/state"))?;
    disk.create_dir(p("/store/index"))?;
    disk.remove_dir(p("/store/index"))
}

fn image(disk: &SimDisk) -> Vec<(PathBuf, Vec<u8>)> {
    disk.files().into_iter().map(|path| (path.clone(), disk.bytes(&path).unwrap())).collect()
}

#[test]
fn a_planned_cut_falls_at_every_mutating_call() {
    let whole = SimDisk::new(0);
    script(&whole).unwrap();
    for moment in [CutMoment::Before, CutMoment::Middle] {
        let (mut labels, mut seed) = (BTreeMap::new(), 0);
        for n in 1..=whole.mutations() {
            for kill in [false, true] {
                seed += 1;
                let disk = SimDisk::new(seed);
                if kill {
                    disk.kill_at(n, moment)
                } else {
                    disk.cut_at(n, moment)
                }
                assert!(is_gone(script(&disk)) && disk.is_down() && is_gone(disk.list(p("/"))));
                assert_eq!(disk.mutations(), n);
                for (label, cuts) in disk.cuts() {
                    *labels.entry(label).or_insert(0) += cuts;
                }
                let disk = disk.reboot(seed);
                assert!(!disk.is_down());
                if let Ok(state) = disk.bytes("/store/state") {
                    assert_eq!(state, [state[0]; 2000], "synced before it got the name");
                }
                // Nothing is left of the first life that could disturb a second.
                for (path, _) in image(&disk) {
                    disk.remove(&path).unwrap();
                }
                script(&disk).unwrap();
            }
        }
        let mutating = |label: &String| {
            let name = label.split(' ').next();
            SimCall::ALL.iter().any(|call| Some(call.name()) == name && call.is_mutating())
        };
        let mut calls = whole.calls();
        calls.retain(|label, _| mutating(label));
        labels.values_mut().for_each(|cuts| *cuts /= 2);
        assert_eq!(labels, calls, "as many cuts at each label as there are calls");
    }
}

#[test]
fn the_middle_of_a_sync_has_saved_some_sectors() {
    let mut counts = std::collections::BTreeSet::new();
    for seed in 0..50 {
        let disk = SimDisk::new(seed);
        disk.put_file(FILE, &[0; 4096]).unwrap();
        let file = open(&disk);
        file.write_at(&[1; 4096], 0).unwrap();
        disk.cut_at(1, CutMoment::Middle);
        assert!(is_gone(sync(&file)));
        let disk = disk.reboot(Cut::seeded(seed).sectors(Survival::None));
        counts.insert(
            disk.bytes(FILE).unwrap().iter().step_by(512).filter(|byte| **byte == 1).count(),
        );
    }
    assert!(counts.len() > 4, "{counts:?}");
}

#[test]
fn the_middle_of_a_write_has_a_part_of_it() {
    let (disk, file) = disk_with_file();
    disk.kill_at(1, CutMoment::Middle);
    assert!(is_gone(file.write_at(&[1; 4096], 0)));
    let bytes = disk.reboot(0).bytes(FILE).unwrap();
    let part = bytes.iter().filter(|byte| **byte == 1).count();
    assert!(part > 0 && part < 4096 && bytes[..part].iter().all(|byte| *byte == 1));
}

#[test]
fn the_same_seeds_give_the_same_disk() {
    let outcome = |seed| {
        let disk = SimDisk::new(seed);
        disk.cut_at(seed % 40 + 1, CutMoment::Middle);
        let _ = script(&disk);
        image(&disk.reboot(seed))
    };
    let distinct: std::collections::BTreeSet<_> = (0..100).map(outcome).collect();
    assert!(distinct.len() > 30);
    for seed in 0..100 {
        assert_eq!(outcome(seed), outcome(seed));
    }
}

#[test]
fn a_hanging_sync_covers_what_was_written_before_it() {
    let (disk, file) = disk_with_file();
    file.write_at(&[1; 1024], 0).unwrap();
    disk.hang_syncs(true);
    let syncing = thread::spawn({
        let file = file.clone();
        move || sync(&file)
    });
    while disk.hanging_syncs() == 0 {
        thread::yield_now();
    }
    assert_eq!(disk.durable_bytes(FILE).unwrap(), [0; 4096]);
    file.write_at(&[2; 1024], 512).unwrap();
    disk.hang_syncs(false);
    syncing.join().unwrap().unwrap();
    assert_eq!([0, 512, 1024].map(|at| disk.durable_bytes(FILE).unwrap()[at]), [1, 1, 0]);
    assert_eq!(disk.unsynced_sectors(), 2);
    sync(&file).unwrap();
    assert_eq!([0, 512, 1024].map(|at| disk.durable_bytes(FILE).unwrap()[at]), [1, 2, 2]);
}

#[test]
fn what_a_region_of_before_shows_may_be_written_again_as_it_is() {
    let (disk, file) = disk_with_file();
    file.write_at(&[1; 1024], 0).unwrap();
    let region = file.map(MapAccess::Read).unwrap();
    region.publish(1024);
    let refused = |written: io::Result<()>| {
        assert_eq!(written.unwrap_err().kind(), io::ErrorKind::InvalidInput);
    };
    refused(file.write_at(&[1; 1024], 0));
    let again = open(&disk);
    refused(again.write_at(&[2; 1], 1023));
    sync(&again).unwrap();
    assert_eq!(disk.unsynced_sectors(), 0);
    let bytes = [[1; 1024], [3; 1024]].concat();
    again.write_at(&bytes, 0).unwrap();
    assert_eq!((region.bytes(0..1024).unwrap(), disk.unsynced_sectors()), (&[1; 1024][..], 4));
    assert_eq!(disk.bytes(FILE).unwrap()[..2048], bytes);
}

#[test]
fn a_cut_releases_the_hanging() {
    let (disk, file) = disk_with_file();
    file.write_at(&[1; 512], 0).unwrap();
    disk.hang_syncs(true);
    let hanging = [true, false].map(|of_file| {
        let (file, disk) = (file.clone(), disk.clone());
        thread::spawn(move || if of_file { sync(&file) } else { disk.sync_dir(p(LOG)) })
    });
    while disk.hanging_syncs() < 2 {
        thread::yield_now();
    }
    let disk = disk.kill();
    hanging.into_iter().for_each(|sync| assert!(is_gone(sync.join().unwrap())));
    disk.hang_syncs(false);
    assert_eq!((disk.unsynced_sectors(), disk.durable_bytes(FILE).unwrap()[0]), (1, 0));
    sync(&open(&disk)).unwrap();
    assert_eq!(disk.durable_bytes(FILE).unwrap()[0], 1);
}

#[test]
fn latency_is_slept_and_lets_others_work() {
    let (disk, file) = disk_with_file();
    disk.set_sync_latency(Duration::from_millis(20));
    let begin = Instant::now();
    thread::scope(|scope| {
        let slow = [0, 1].map(|at| {
            file.write_at(&[1], at * 1000).unwrap();
            scope.spawn(|| sync(&file))
        });
        slow.into_iter().for_each(|sync| sync.join().unwrap().unwrap());
    });
    assert!(begin.elapsed() >= Duration::from_millis(20));
    assert_eq!(disk.unsynced_sectors(), 0);
    disk.set_sync_latency(Duration::ZERO);
    assert_eq!(
        [0, 1000].map(|at| disk.cut_power(Cut::losing_all()).bytes(FILE).unwrap()[at]),
        [1, 1]
    );
}

#[test]
fn a_read_only_disk_refuses_changes_alone() {
    let (disk, file) = disk_with_file();
    disk.set_read_only(true);
    for refused in [
        file.write_at(&[1], 0),
        file.allocate(9000),
        file.prewrite(0..10),
        disk.remove(p(FILE)),
        disk.rename(p(FILE), p("/store/x")),
        disk.hard_link(p(FILE), p("/store/x")),
        disk.create(p("/store/x"), 0, Allocation::Sparse).map(drop),
        disk.create_dir(p("/store/x")).map(drop),
        disk.open(p(FILE), OpenAccess::Write).map(drop),
    ] {
        assert_eq!(errno(refused), Some(libc::EROFS));
    }
    assert!(matches!(disk.lock(p("/store/lock")), Err(LockError::Io(_))));
    assert!(!disk.create_dir(p(LOG)).unwrap());
    let file = disk.open(p(FILE), OpenAccess::Read).unwrap();
    assert_eq!(byte(&file, 0), 0);
    disk.set_read_only(false);
    assert_eq!(errno(file.write_at(&[1], 0)), Some(libc::EBADF));
    assert_eq!(errno(file.map(MapAccess::Write)), Some(libc::EACCES));
}

#[test]
fn damage_is_in_the_cache_and_on_the_platter() {
    let (disk, _) = disk_with_file();
    disk.flip_bit(FILE, 5, 3).unwrap();
    disk.edit(FILE, |bytes| bytes[4095] = 1).unwrap();
    let disk = disk.cut_power(Cut::losing_all());
    let bytes = disk.bytes(FILE).unwrap();
    assert_eq!((bytes[5], bytes[4095], bytes.len()), (8, 1, 4096));
    disk.truncate(FILE, 6).unwrap();
    assert_eq!(disk.cut_power(Cut::losing_all()).bytes(FILE).unwrap(), [0, 0, 0, 0, 0, 8]);
    let disk = disk.reboot(0);
    disk.drop_file(FILE).unwrap();
    assert_eq!((disk.files().len(), disk.used()), (0, 0));
    disk.put_file("/a/b/c", b"put").unwrap();
    assert_eq!(disk.cut_power(Cut::losing_all()).bytes("a/b/c").unwrap(), b"put");
}

#[test]
fn the_ledger_names_calls_by_class() {
    let (disk, file) = disk_with_file();
    file.write_at(&[1; 10], 0).unwrap();
    disk.open(p("/store/commitlog/00000000000000008192"), OpenAccess::Read).unwrap_err();
    file.sync(SyncMethod::Fsync).unwrap();
    let (calls, stats) = (disk.calls(), disk.stats());
    for (label, count) in [
        ("create_dir .", 1),
        ("create_dir commitlog", 1),
        ("sync_dir commitlog", 1),
        ("create commitlog/#", 1),
        ("open commitlog/#", 1),
        ("sync commitlog/#", 2),
        ("write commitlog/#", 1),
    ] {
        assert_eq!(calls.get(label), Some(&count), "{label} in {calls:?}");
    }
    assert_eq!((stats.fdatasyncs, stats.fsyncs, stats.syncs(), stats.dir_syncs), (1, 1, 2, 3));
    assert_eq!(
        (disk.written_to("commitlog"), disk.written_to("index"), disk.syncs_of("commitlog")),
        (10, 0, 2)
    );
    assert_eq!((disk.call_count(), disk.mutations()), (calls.values().sum(), 9));
}

#[test]
fn an_open_file_goes_by_the_name_that_it_was_given_last() {
    let (disk, old) = disk_with_file();
    let temporary = p("/store/4096.tmp");
    let file = disk.create(temporary, 4096, Allocation::Reserved).unwrap();
    sync(&file).unwrap();
    disk.inject(Fault::sync(SyncFailure::KeepNew).path("commitlog").nth(2));
    disk.inject(Fault::on(SimCall::Write).path(".tmp").forever());
    disk.rename(temporary, p(FILE)).unwrap();
    file.write_at(&[1; 10], 0).unwrap();
    sync(&file).unwrap();
    assert_eq!(errno(sync(&file)), Some(libc::EIO));
    // The file that lost the name keeps it: it has no other.
    old.write_at(&[2; 3], 0).unwrap();
    assert!(format!("{file:?}").contains(FILE), "{file:?}");

    disk.cut_at(1, CutMoment::Before);
    assert!(is_gone(file.write_at(&[1], 0)));
    let calls = disk.calls();
    for (label, count) in [
        ("create #.tmp", 1),
        ("sync #.tmp", 1),
        ("rename commitlog/#", 1),
        // Of the first file too.
        ("sync commitlog/#", 3),
        ("write commitlog/#", 3),
    ] {
        assert_eq!(calls.get(label), Some(&count), "{label} in {calls:?}");
    }
    assert_eq!(disk.cuts(), BTreeMap::from([("write commitlog/#".to_owned(), 1)]));
    assert_eq!((disk.syncs_of(".tmp"), disk.syncs_of("commitlog")), (1, 3));
    assert_eq!((disk.written_to(".tmp"), disk.written_to("commitlog")), (0, 13));
}

#[test]
fn a_rename_that_a_power_cut_undoes_gives_the_old_name_back() {
    let disk = disk();
    let (temporary, path) = (p("/store/state.tmp"), p("/store/state"));
    drop(disk.create(temporary, 0, Allocation::Sparse).unwrap());
    disk.sync_dir(p(ROOT)).unwrap();
    disk.rename(temporary, path).unwrap();
    let disk = disk.cut_power(Cut::losing_all());
    let file = disk.open(temporary, OpenAccess::Write).unwrap();
    file.write_at(&[1; 10], 0).unwrap();
    assert_eq!(disk.calls().get("write state.tmp"), Some(&1));
}

#[test]
fn a_large_segment_costs_what_is_used_of_it() {
    let disk = disk();
    let file = disk.create(p(FILE), 64 << 20, Allocation::Reserved).unwrap();
    let region = file.map(MapAccess::Write).unwrap();
    region.writer().unwrap().copy_in((64 << 20) - 3, b"end");
    sync(&file).unwrap();
    disk.sync_dir(p(LOG)).unwrap();
    let disk = disk.cut_power(Cut::losing_all());
    assert_eq!(disk.used(), 64 << 20);
    let mut end = [0; 3];
    open(&disk).read_at(&mut end, (64 << 20) - 3).unwrap();
    assert_eq!(&end, b"end");
}

/// Readers of published bytes, two writers, a syncing thread and a reboot at once.
#[test]
fn threads_share_a_file() {
    for round in 0..20 {
        let disk = disk();
        let file = disk.create(p(FILE), 1 << 16, Allocation::Reserved).unwrap();
        let region = file.map(MapAccess::Write).unwrap();
        let next = thread::scope(|scope| {
            scope.spawn(|| {
                let mut writer = region.writer().unwrap();
                for at in 0..512 {
                    writer.copy_in(at * 128, &[at as u8; 128]);
                    region.publish((at + 1) * 128);
                }
            });
            scope.spawn(|| while sync(&file).is_ok() {});
            scope.spawn(|| {
                while region.published() < 1 << 16 {
                    let published = region.published();
                    let bytes = region.bytes(0..published).unwrap();
                    assert!(
                        bytes.chunks(128).enumerate().all(|(at, piece)| piece == [at as u8; 128])
                    );
                }
            });
            thread::sleep(Duration::from_micros(50 * round));
            if round % 2 == 0 { disk.kill() } else { disk.cut_power(round) }
        });
        assert_eq!(region.bytes(0..1 << 16).unwrap()[65535], 255);
        next.files();
    }
}

/// Not a check: `cargo test --release -- --ignored --nocapture reboot_cost`.
#[test]
#[ignore = "a measurement"]
fn reboot_cost() {
    let paths: Vec<PathBuf> = (0..10).map(|n| p(LOG).join(format!("{n:020}"))).collect();
    for mapped in [false, true] {
        let mut disk = disk();
        for path in &paths {
            disk.put_file(path, &vec![1; 16 << 10]).unwrap();
        }
        let rounds = 20_000;
        let (mut writing, mut rebooting) = (Duration::ZERO, Duration::ZERO);
        for round in 0..rounds {
            let begin = Instant::now();
            let mut regions = Vec::new();
            for path in &paths {
                let file = disk.open(path, OpenAccess::Write).unwrap();
                if mapped {
                    regions.push(file.map(MapAccess::Write).unwrap());
                }
                file.write_at(&[round as u8; 3000], 5000).unwrap();
                sync(&file).unwrap();
                file.write_at(&[round as u8; 3000], 8000).unwrap();
            }
            let written = Instant::now();
            disk = disk.cut_power(round);
            rebooting += written.elapsed();
            writing += written - begin;
        }
        let each = |time: Duration| time.as_nanos() as u64 / rounds / 1000;
        println!("mapped {mapped}: reboot {} us, 40 calls {} us", each(rebooting), each(writing));
    }
    let begin = Instant::now();
    for seed in 0..2000 {
        let disk = SimDisk::new(seed);
        disk.cut_at(seed % 40 + 1, CutMoment::Middle);
        let _ = script(&disk);
        disk.reboot(seed);
    }
    println!("new disk, half a script, cut, reboot: {} us", begin.elapsed().as_micros() / 2000);
}
