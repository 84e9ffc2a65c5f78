//! What the simulated disk cannot show: that files of the real one have the blocks they are promised.
//! That syncs reach the system is for `.ci/syscalls` to see.

#[path = "support/sim.rs"]
mod sim;
#[path = "support/temp.rs"]
mod temp;

use duralog::disk::{Allocation, Disk, HostDisk, OpenAccess};
use duralog::{Store, StoreConfig, WriteMode};
use sim::{eventually, put};
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use temp::TempDir;

/// Larger than what is written to a segment before its first use, which has blocks in any case.
const SEGMENT: u64 = 16 << 20;

/// Length of a file, and how much of it has blocks.
fn size(path: &Path) -> (u64, u64) {
    let metadata = fs::metadata(path).expect("it is there");
    (metadata.len(), metadata.blocks() * 512)
}

fn assert_full(path: &Path, len: u64) {
    let (found, blocks) = size(path);
    assert_eq!(found, len, "{}", path.display());
    assert!(blocks >= len, "{}: {blocks} bytes have blocks of {len}", path.display());
}

/// On a file system of blocks, and in memory.
fn dirs() -> [TempDir; 2] {
    [TempDir::new(), TempDir::in_memory()]
}

#[test]
fn a_reserved_file_has_all_its_blocks_and_a_sparse_one_none() {
    for dir in dirs() {
        let (full, sparse) = (dir.path().join("full"), dir.path().join("sparse"));
        HostDisk.create(&full, SEGMENT, Allocation::Reserved).expect("there is room");
        assert_full(&full, SEGMENT);
        HostDisk.create(&sparse, SEGMENT, Allocation::Sparse).expect("there is room");
        let (len, blocks) = size(&sparse);
        assert_eq!(len, SEGMENT);
        assert!(blocks < SEGMENT, "{blocks} bytes of a sparse file have blocks");
    }
}

#[test]
fn a_file_has_a_second_name_and_a_directory_another() {
    for dir in dirs() {
        let path = |name: &str| dir.path().join(name);
        fs::create_dir(path("old")).expect("there is room");
        fs::write(path("old/file"), "1").expect("there is room");
        HostDisk.hard_link(&path("old/file"), &path("link")).expect("the same file system");
        assert!(HostDisk.hard_link(&path("old/file"), &path("link")).is_err());
        assert_eq!(fs::metadata(path("link")).expect("it is there").nlink(), 2);
        fs::create_dir(path("new")).expect("there is room");
        HostDisk.rename(&path("old"), &path("new")).expect("it is empty");
        assert_eq!(fs::read(path("new/file")).expect("it came along"), b"1");
        fs::create_dir(path("old")).expect("there is room");
        assert!(HostDisk.rename(&path("old"), &path("new")).is_err());
    }
}

#[test]
fn allocating_fills_the_holes_of_a_file_and_keeps_what_it_holds() {
    for dir in dirs() {
        let path = dir.path().join("holes");
        let file = File::create(&path).expect("there is room");
        file.set_len(SEGMENT / 2).expect("there is room");
        file.write_all_at(b"kept", SEGMENT / 4).expect("there is room");
        let opened = HostDisk.open(&path, OpenAccess::Write).expect("it is there");
        opened.allocate(SEGMENT).expect("there is room");
        assert_full(&path, SEGMENT);
        let mut kept = [0; 4];
        opened.read_at(&mut kept, SEGMENT / 4).expect("readable");
        assert_eq!(&kept, b"kept");
    }
}

#[test]
fn a_fresh_segment_has_all_its_blocks() {
    for dir in dirs() {
        for mode in [WriteMode::Pwrite, WriteMode::Mmap] {
            let root = dir.path().join(format!("{mode:?}"));
            let config = StoreConfig::new(&root).segment_size(SEGMENT).write_mode(mode);
            let store = Store::open(config).expect("the store opens");
            let segment = |base: u64| root.join(format!("commitlog/{base:020}"));
            assert_full(&segment(0), SEGMENT);
            // Half full, which has the next one made.
            let half = duralog::Message::new("orders", vec![1; 3 << 20]);
            (0..3).for_each(|_| drop(store.put(&half).expect("there is room").ok()));
            eventually("the next segment is there", || segment(SEGMENT).exists());
            assert_full(&segment(SEGMENT), SEGMENT);
            store.close().expect("the store closes");
        }
    }
}

#[test]
fn a_segment_with_holes_has_all_its_blocks_once_it_is_opened() {
    for dir in dirs() {
        let config = || StoreConfig::new(dir.path()).segment_size(SEGMENT);
        let store = Store::open(config()).expect("the store opens");
        put(&store, 0);
        store.close().expect("the store closes");
        drop(store);
        // As a copy may make it.
        let path = dir.path().join("commitlog/00000000000000000000");
        let bytes = fs::read(&path).expect("it is there");
        let used = bytes.iter().rposition(|byte| *byte != 0).expect("a record") + 1;
        fs::remove_file(&path).expect("it is there");
        let file = File::create(&path).expect("there is room");
        file.write_all_at(&bytes[..used], 0).expect("there is room");
        file.set_len(SEGMENT).expect("there is room");
        let store = Store::open(config()).expect("the store opens");
        assert_full(&path, SEGMENT);
        put(&store, 1);
    }
}
