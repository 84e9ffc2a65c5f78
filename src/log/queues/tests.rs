use super::super::consume_queue::tests::{Audit, AuditDisk, TempDir, entry, options};
use super::super::queue_entry::{QueueAppend, TimeBound};
use super::*;
use crate::disk::HostDisk;
use crate::error::{Corruption, InvalidMessage};
use proptest::prelude::*;
use std::collections::BTreeMap;

/// Opens on a disk under supervision; a table that was thrown away is gone for good.
fn open(root: &Path, options: &QueueOptions) -> (Queues, QueueTable) {
    let disk = Arc::new(AuditDisk::default());
    let audit = Arc::clone(&disk.audit);
    let opened = Queues::open(disk, root, options).unwrap();
    assert_eq!(audit.unsynced(root), Vec::<PathBuf>::new());
    opened
}

fn checkpoint(queues: &Queues, dispatched: u64) -> Result<()> {
    queues.checkpoint(dispatched, &mut || Ok(()))
}

fn read_all(queue: &ConsumeQueue) -> Vec<QueueEntry> {
    let mut out = Vec::new();
    queue.read(queue.min_offset(), usize::MAX, &mut out).unwrap();
    out
}

/// Two queues of 23 entries each, checkpointed; the physical offset behind them.
fn filled(root: &Path, options: &QueueOptions) -> u64 {
    let (queues, table) = open(root, options);
    assert_eq!(table, QueueTable { offset: 0, distrusted: None });
    for n in 0..46 {
        let queue = queues.get_or_create("orders", (n % 2) as i32).unwrap();
        assert_eq!(queue.append(n / 2, entry(n)).unwrap(), QueueAppend::New);
    }
    let end = entry(46).physical_offset;
    queues.finish_recovery(false, 0).unwrap();
    checkpoint(&queues, end).unwrap();
    end
}

fn redispatch(queues: &Queues) {
    for n in 0..46 {
        queues.get_or_create("orders", (n % 2) as i32).unwrap().append(n / 2, entry(n)).unwrap();
    }
    queues.finish_recovery(false, 0).unwrap();
}

fn assert_filled(queues: &Queues) {
    for id in 0..2 {
        let queue = queues.get("orders", id).unwrap();
        assert_eq!(read_all(&queue), (0..23).map(|n| entry(n * 2 + id as u64)).collect::<Vec<_>>());
        assert_eq!((queue.min_offset(), queue.max_offset()), (0, 23));
    }
    assert_eq!(queues.topics(), [("orders".to_owned(), vec![0, 1])]);
}

fn file(root: &Path, id: i32, base: u64) -> PathBuf {
    root.join(format!("consumequeue/orders/{id}/{base:020}"))
}

#[test]
fn a_checkpointed_store_opens_without_dispatching_anything() {
    let dir = TempDir::new("reopened");
    let options = options(5, 4, 40);
    let end = filled(&dir.0, &options);
    let disk = Arc::new(AuditDisk::default());
    let audit = Arc::clone(&disk.audit);
    let (queues, table) = Queues::open(disk, &dir.0, &options).unwrap();
    assert_eq!(table, QueueTable { offset: end, distrusted: None });
    queues.finish_recovery(false, 0).unwrap();
    assert_eq!(Audit::count(&audit.opens), 1 + 2, "the table, and a file of each queue");
    assert_eq!(Audit::count(&audit.changes), 0);
    assert_eq!(Audit::count(&audit.open_files), 0);
    assert_filled(&queues);
    // Nothing happened, so there is nothing to save.
    checkpoint(&queues, end).unwrap();
    assert_eq!(Audit::count(&audit.changes), 0);
}

#[test]
fn a_lost_or_damaged_queue_file_means_a_rebuild() {
    type Damage = fn(&Path);
    let damages: [(&str, Damage); 6] = [
        ("lost last file", |root| std::fs::remove_file(file(root, 1, 400)).unwrap()),
        ("lost first file", |root| std::fs::remove_file(file(root, 0, 0)).unwrap()),
        ("short file", |root| {
            std::fs::File::options()
                .write(true)
                .open(file(root, 0, 400))
                .unwrap()
                .set_len(60)
                .unwrap();
        }),
        ("empty file", |root| drop(std::fs::File::create(file(root, 0, 400)).unwrap())),
        ("zeroed file", |root| std::fs::write(file(root, 0, 400), [0; 100]).unwrap()),
        ("another last entry", |root| {
            let mut bytes = std::fs::read(file(root, 0, 400)).unwrap();
            bytes[47] ^= 1;
            std::fs::write(file(root, 0, 400), bytes).unwrap();
        }),
    ];
    for (name, damage) in damages {
        let dir = TempDir::new("damaged");
        let options = options(5, 4, 40);
        let end = filled(&dir.0, &options);
        damage(&dir.0);
        let (queues, table) = open(&dir.0, &options);
        assert_eq!(table.offset, 0, "{name}");
        assert!(table.distrusted.unwrap().contains("orders"), "{name}");
        assert!(queues.is_empty());
        assert!(!dir.0.join("duralog/queues").exists());
        redispatch(&queues);
        assert_filled(&queues);
        checkpoint(&queues, end).unwrap();
        drop(queues);
        let (queues, table) = open(&dir.0, &options);
        assert_eq!(table, QueueTable { offset: end, distrusted: None }, "{name}");
        assert_filled(&queues);
    }
}

#[test]
fn a_damaged_table_means_a_rebuild_and_a_temporary_one_means_nothing() {
    let dir = TempDir::new("table");
    let options = options(5, 4, 40);
    let end = filled(&dir.0, &options);
    let path = dir.0.join("duralog/queues");
    std::fs::write(dir.0.join("duralog/queues.tmp"), "half").unwrap();
    let good = std::fs::read(&path).unwrap();
    for at in 0..good.len() {
        let mut bytes = good.clone();
        bytes[at] ^= 0x40;
        std::fs::write(&path, bytes).unwrap();
        let (queues, table) = open(&dir.0, &options);
        assert!(table.distrusted.is_some() && table.offset == 0 && queues.is_empty());
    }
    for bytes in [&good[..0], &good[..good.len() - 1]] {
        std::fs::write(&path, bytes).unwrap();
        assert!(open(&dir.0, &options).1.distrusted.is_some());
    }
    std::fs::write(&path, &good).unwrap();
    let (queues, table) = open(&dir.0, &options);
    assert_eq!(table, QueueTable { offset: end, distrusted: None });
    queues.get("orders", 0).unwrap().append(23, entry(46)).unwrap();
    checkpoint(&queues, entry(47).physical_offset).unwrap();
    assert!(!dir.0.join("duralog/queues.tmp").exists());
}

#[test]
fn entries_behind_the_checkpoint_do_not_count_after_a_crash() {
    let dir = TempDir::new("behind");
    let options = options(5, 4, 40);
    let end = filled(&dir.0, &options);
    let (queues, _) = open(&dir.0, &options);
    let queue = queues.get("orders", 0).unwrap();
    for at in 23..40 {
        queue.append(at, entry(at * 2)).unwrap();
    }
    // Dispatched ahead of what the log has made durable.
    let limit = entry(60).physical_offset;
    checkpoint(&queues, limit).unwrap();
    drop((queue, queues));
    let (queues, table) = open(&dir.0, &options);
    assert_eq!(table, QueueTable { offset: limit, distrusted: None });
    assert!(limit > end);
    let queue = queues.get("orders", 0).unwrap();
    assert_eq!(queue.max_offset(), 30);
    // The log ended there; other messages come in their place, and nothing stale stays.
    queues.finish_recovery(true, 0).unwrap();
    assert_eq!(std::fs::read_dir(dir.0.join("consumequeue/orders/0")).unwrap().count(), 6);
    for at in 30..33 {
        queue.append(at, entry(1000 + at)).unwrap();
    }
    queue.flush().unwrap();
    let bytes = std::fs::read(file(&dir.0, 0, 600)).unwrap();
    let slots: Vec<_> = bytes.as_chunks().0.iter().map(QueueEntry::decode).collect();
    assert_eq!(slots, [Some(entry(1030)), Some(entry(1031)), Some(entry(1032)), None, None]);
}

#[test]
fn a_queue_that_was_busy_during_the_checkpoint_is_visited_again() {
    let dir = TempDir::new("busy");
    let options = options(5, 4, 40);
    filled(&dir.0, &options);
    let (queues, _) = open(&dir.0, &options);
    let queue = queues.get("orders", 1).unwrap();
    queue.append(23, entry(50)).unwrap();
    for limit in [50, 51] {
        checkpoint(&queues, entry(limit).physical_offset).unwrap();
        let rows = queue_table::decode(&std::fs::read(dir.0.join("duralog/queues")).unwrap())
            .unwrap()
            .rows;
        assert_eq!(rows[1].max, limit - 50 + 23);
    }
}

#[test]
fn after_a_checkpoint_nothing_is_lost_in_a_power_cut() {
    let dir = TempDir::new("durable");
    let disk = Arc::new(AuditDisk::default());
    let audit = Arc::clone(&disk.audit);
    let (queues, _) = Queues::open(disk, &dir.0, &options(3, 2, 40)).unwrap();
    for n in 0..400u64 {
        let queue = queues.get_or_create(["a", "b", "c"][n as usize % 3], n as i32 % 5).unwrap();
        queue.append(queue.max_offset(), entry(n)).unwrap();
        if n % 37 == 0 {
            checkpoint(&queues, entry(n + 1).physical_offset).unwrap();
            assert_eq!(audit.unsynced(&dir.0), Vec::<PathBuf>::new());
        }
    }
    assert_eq!(*audit.lost.lock(), Vec::<PathBuf>::new());
    assert!(Audit::count(&audit.most_open_files) <= 3);
}

#[test]
fn a_failed_sync_stops_every_later_checkpoint() {
    let dir = TempDir::new("latched");
    let options = options(5, 4, 40);
    let end = filled(&dir.0, &options);
    let disk = Arc::new(AuditDisk::default());
    let audit = Arc::clone(&disk.audit);
    let (queues, _) = Queues::open(disk, &dir.0, &options).unwrap();
    let queue = queues.get("orders", 0).unwrap();
    queue.append(23, entry(50)).unwrap();
    audit.fail_syncs.store(usize::MAX, Ordering::Relaxed);
    assert!(matches!(checkpoint(&queues, end + 1000), Err(Error::Io { op: IoOp::Sync, .. })));
    audit.fail_syncs.store(0, Ordering::Relaxed);
    assert!(matches!(checkpoint(&queues, end + 1000), Err(Error::Io { op: IoOp::Sync, .. })));
    queue.append(24, entry(51)).unwrap();
    assert_eq!(read_all(&queue).len(), 25);
    drop((queue, queues));
    assert_eq!(open(&dir.0, &options).1.offset, end);
}

#[test]
fn a_sync_that_failed_while_another_queue_needed_a_descriptor_stops_the_checkpoint() {
    let dir = TempDir::new("elsewhere");
    let disk = Arc::new(AuditDisk::default());
    let audit = Arc::clone(&disk.audit);
    let options = QueueOptions { tail_memory: 0, ..options(5, 1, 20) };
    let (queues, _) = Queues::open(disk, &dir.0, &options).unwrap();
    // Visited first, and then in need of the one descriptor, which has unsynced writes.
    queues.get_or_create("first", 0).unwrap().append(0, entry(0)).unwrap();
    let second = queues.get_or_create("second", 0).unwrap();
    second.append(0, entry(1)).unwrap();
    second.append(1, entry(2)).unwrap();
    audit.fail_syncs.store(1, Ordering::Relaxed);
    let told = checkpoint(&queues, entry(3).physical_offset);
    assert!(matches!(told, Err(Error::Io { op: IoOp::Sync, .. })), "{told:?}");
    assert_eq!(Audit::count(&audit.fail_syncs), 0);
    assert!(!dir.0.join("duralog/queues").exists());
}

#[test]
fn a_checkpoint_that_is_told_to_stop_can_be_made_up_for() {
    let dir = TempDir::new("paced");
    let disk = Arc::new(AuditDisk::default());
    let audit = Arc::clone(&disk.audit);
    let (queues, _) = Queues::open(disk, &dir.0, &options(5, 4, 40)).unwrap();
    redispatch(&queues);
    let end = entry(46).physical_offset;
    let mut stopped = 0;
    loop {
        let mut left = stopped;
        let mut pace = || {
            left -= 1;
            if left < 0 { Err(Error::Closed) } else { Ok(()) }
        };
        match queues.checkpoint(end, &mut pace) {
            Err(Error::Closed) => stopped += 1,
            other => break other.unwrap(),
        }
    }
    // An attempt goes on where the one before was stopped, so few of them do.
    assert!(stopped > 2, "{stopped}");
    assert_eq!(audit.unsynced(&dir.0), Vec::<PathBuf>::new());
    drop(queues);
    assert_filled(&open(&dir.0, &options(5, 4, 40)).0);
}

#[test]
fn expired_files_wait_until_the_table_does_not_need_them() {
    let dir = TempDir::new("expired");
    let options = options(5, 4, 40);
    let end = filled(&dir.0, &options);
    let (queues, _) = open(&dir.0, &options);
    let queue = queues.get("orders", 0).unwrap();
    queues.for_each(|queue| queue.correct_min_offset(entry(30).physical_offset)).unwrap();
    assert_eq!(queue.min_offset(), 15);
    assert_eq!(queue.remove_expired().unwrap(), 0);
    checkpoint(&queues, end).unwrap();
    assert_eq!(queue.remove_expired().unwrap(), 3);
    assert_eq!(queue.remove_expired().unwrap(), 0);
    drop((queue, queues));
    let (queues, table) = open(&dir.0, &options);
    assert_eq!(table.distrusted, None);
    let queue = queues.get("orders", 0).unwrap();
    assert_eq!(read_all(&queue), (15..23).map(|n| entry(n * 2)).collect::<Vec<_>>());
    // All of it: the last file stays and remembers where the queue goes on.
    queue.correct_min_offset(u64::MAX >> 1).unwrap();
    checkpoint(&queues, end).unwrap();
    assert_eq!(queue.remove_expired().unwrap(), 1);
    assert_eq!((queue.min_offset(), queue.max_offset()), (23, 23));
    drop((queue, queues));
    let (queues, table) = open(&dir.0, &options);
    assert_eq!(table.distrusted, None);
    let queue = queues.get("orders", 0).unwrap();
    assert_eq!((queue.min_offset(), queue.max_offset()), (23, 23));
    assert_eq!(queue.append(23, entry(80)).unwrap(), QueueAppend::New);
    checkpoint(&queues, end + 10_000).unwrap();
    assert_eq!(read_all(&queue), [entry(80)]);
}

#[test]
fn a_rebuild_clears_away_what_the_log_does_not_tell_of() {
    let dir = TempDir::new("cleared");
    let options = options(5, 4, 40);
    filled(&dir.0, &options);
    std::fs::remove_file(dir.0.join("duralog/queues")).unwrap();
    std::fs::create_dir_all(dir.0.join("consumequeue/empty/3")).unwrap();
    std::fs::create_dir_all(dir.0.join("consumequeue/kept/3")).unwrap();
    std::fs::write(dir.0.join("consumequeue/kept/3/notes"), "mine").unwrap();
    let (queues, table) = open(&dir.0, &options);
    assert_eq!(table, QueueTable { offset: 0, distrusted: None });
    // The log begins at record 24: queue 1 has two records left, queue 0 and its entries expired.
    let log_min = entry(44).physical_offset;
    queues.get_or_create("orders", 1).unwrap().append(22, entry(45)).unwrap();
    queues.finish_recovery(false, log_min).unwrap();
    assert!(!dir.0.join("consumequeue/empty").exists());
    assert!(dir.0.join("consumequeue/kept/3/notes").exists());
    // Entry 22 of queue 0 points to a record that the log no longer tells of: not expired, so gone.
    let queue = queues.get("orders", 0).unwrap();
    assert_eq!((queue.min_offset(), queue.max_offset()), (22, 22));
    let queue = queues.get("orders", 1).unwrap();
    assert_eq!((queue.min_offset(), queue.max_offset()), (22, 23));
    checkpoint(&queues, entry(46).physical_offset).unwrap();
    // Expired entries before the first live one stay as they are: valid, and before the log.
    let bytes = std::fs::read(file(&dir.0, 1, 400)).unwrap();
    let slots: Vec<_> = bytes.as_chunks().0.iter().map(QueueEntry::decode).collect();
    assert_eq!(slots, [Some(entry(41)), Some(entry(43)), Some(entry(45)), None, None]);
    let (_, table) = open(&dir.0, &options);
    assert_eq!(table.distrusted, None);
}

#[test]
fn a_topic_cannot_leave_the_directory() {
    let dir = TempDir::new("escape");
    let (queues, _) = open(&dir.0, &options(5, 4, 40));
    for topic in ["", ".", "..", "a/b", "/", "../x", "a\0"] {
        let refused = queues.get_or_create(topic, 0);
        assert!(matches!(refused, Err(Error::InvalidMessage(_))), "{topic:?}");
    }
    assert!(matches!(queues.get_or_create(&"x".repeat(256), 0), Err(Error::TooLarge { .. })));
    let negative = queues.get_or_create("t", -1);
    assert!(matches!(
        negative,
        Err(Error::InvalidMessage(InvalidMessage::QueueId { queue_id: -1, .. }))
    ));
    let longest = queues.get_or_create(&"x".repeat(255), i32::MAX).unwrap();
    longest.append(0, entry(0)).unwrap();
    queues.get_or_create("...", 0).unwrap().append(0, entry(1)).unwrap();
    checkpoint(&queues, 1000).unwrap();
    assert_eq!(open(&dir.0, &options(5, 4, 40)).1, QueueTable { offset: 1000, distrusted: None });
}

#[test]
fn a_read_only_store_stays_as_it_is() {
    let dir = TempDir::new("read-only");
    let writable = options(5, 4, 40);
    let end = filled(&dir.0, &writable);
    let read_only = QueueOptions { read_only: true, ..writable };
    for damage in [false, true] {
        if damage {
            std::fs::write(dir.0.join("duralog/queues"), "junk").unwrap();
        }
        let disk = Arc::new(AuditDisk::default());
        let audit = Arc::clone(&disk.audit);
        let (queues, table) = Queues::open(disk, &dir.0, &read_only).unwrap();
        assert_eq!(
            (table.distrusted.is_some(), table.offset),
            (damage, if damage { 0 } else { end })
        );
        redispatch(&queues);
        let queue = queues.get_or_create("orders", 0).unwrap();
        for at in 23..300 {
            queue.append(at, entry(at * 2)).unwrap();
        }
        assert_eq!(read_all(&queue), (0..300).map(|n| entry(n * 2)).collect::<Vec<_>>());
        assert!(matches!(checkpoint(&queues, end), Err(Error::ReadOnly)));
        assert_eq!(Audit::count(&audit.changes), 0);
    }
}

#[test]
fn ten_thousand_queues_share_eight_descriptors() {
    const QUEUES: u64 = 10_000;
    let dir = TempDir::new("many");
    let disk = Arc::new(AuditDisk::default());
    let audit = Arc::clone(&disk.audit);
    let options = QueueOptions { tail_memory: 1 << 20, ..options(50, 8, 4096) };
    let (queues, _) = Queues::open(disk, &dir.0, &options).unwrap();
    let topic = |n: u64| format!("topic-{}", n % 100);
    for n in 0..2 * QUEUES {
        let queue = queues.get_or_create(&topic(n), (n % QUEUES) as i32).unwrap();
        queue.append(n / QUEUES, entry(n)).unwrap();
    }
    assert!(queues.tail_bytes() <= (1 << 20) + QUEUES as usize * 512, "{}", queues.tail_bytes());
    let end = entry(2 * QUEUES).physical_offset;
    checkpoint(&queues, end).unwrap();
    checkpoint(&queues, end).unwrap();
    assert_eq!(queues.tail_bytes(), 0);
    assert!(Audit::count(&audit.most_open_files) <= 9, "{}", Audit::count(&audit.most_open_files));
    assert!(queues.open_files() <= 8);
    drop(queues);
    let (queues, table) = open(&dir.0, &options);
    assert_eq!(table, QueueTable { offset: end, distrusted: None });
    assert_eq!(queues.len() as u64, QUEUES);
    for n in (0..QUEUES).step_by(97) {
        let queue = queues.get(&topic(n), n as i32).unwrap();
        assert_eq!(read_all(&queue), [entry(n), entry(n + QUEUES)]);
    }
}

#[test]
fn checkpoints_beside_dispatch_and_readers_lose_nothing() {
    let dir = TempDir::new("beside");
    let options = options(100, 2, 200);
    let (queues, _) = open(&dir.0, &options);
    let dispatched = std::sync::atomic::AtomicU64::new(0);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                checkpoint(&queues, dispatched.load(Ordering::Acquire)).unwrap();
            }
        });
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                for id in 0..7 {
                    let Some(queue) = queues.get("t", id) else { continue };
                    for (at, found) in read_all(&queue).into_iter().enumerate() {
                        assert_eq!(found, entry(at as u64 * 7 + id as u64));
                    }
                }
            }
        });
        for n in 0..21_000 {
            queues.get_or_create("t", (n % 7) as i32).unwrap().append(n / 7, entry(n)).unwrap();
            dispatched.store(entry(n + 1).physical_offset, Ordering::Release);
        }
        done.store(true, Ordering::Relaxed);
    });
    drop(queues);
    let (queues, table) = open(&dir.0, &options);
    assert_eq!(table.distrusted, None);
    let before: u64 =
        (0..21_000).filter(|n| entry(*n).physical_offset < table.offset).count() as u64;
    let total: u64 = queues.snapshot().iter().map(|queue| queue.max_offset()).sum();
    assert_eq!(total, before);
}

#[test]
fn times_are_found_in_a_restored_queue() {
    let dir = TempDir::new("times");
    let options = options(5, 4, 40);
    filled(&dir.0, &options);
    let (queues, _) = open(&dir.0, &options);
    let queue = queues.get("orders", 0).unwrap();
    let time = |entry: QueueEntry| Ok(entry.physical_offset as i64);
    assert_eq!(queue.offset_by_time(1, TimeBound::Lower, &time).unwrap(), 0);
    assert_eq!(queue.offset_by_time(1, TimeBound::Upper, &time).unwrap(), 0);
    assert_eq!(queue.offset_by_time(208, TimeBound::Lower, &time).unwrap(), 2);
    assert_eq!(queue.offset_by_time(208, TimeBound::Upper, &time).unwrap(), 1);
    assert_eq!(queue.offset_by_time(1 << 40, TimeBound::Lower, &time).unwrap(), 23);
    assert_eq!(queue.offset_by_time(1 << 40, TimeBound::Upper, &time).unwrap(), 22);
    let failing = |_| Err(Error::Closed);
    assert!(matches!(queue.offset_by_time(5, TimeBound::Lower, &failing), Err(Error::Closed)));
}

#[test]
fn rot_in_the_middle_is_told_where_it_is_read() {
    let dir = TempDir::new("rot");
    let options = options(5, 4, 40);
    filled(&dir.0, &options);
    std::fs::write(file(&dir.0, 0, 200), [0; 100]).unwrap();
    let (queues, table) = open(&dir.0, &options);
    assert_eq!(table.distrusted, None);
    let queue = queues.get("orders", 0).unwrap();
    let mut out = Vec::new();
    let told = queue.read(7, 10, &mut out);
    assert!(
        matches!(told, Err(Error::Corrupt { offset: 0, what: Corruption::QueueEntry, .. })),
        "{told:?}"
    );
    assert_eq!(out, [entry(14), entry(16), entry(18)]);
}

#[derive(Debug, Clone)]
enum Op {
    Put {
        topic: usize,
        id: i32,
    },
    Checkpoint {
        back: usize,
    },
    /// The process dies and the store is opened again.
    Kill,
    /// The system dies: the log loses its newest records, those before a checkpoint excepted.
    Crash {
        lost: usize,
    },
    /// Something happens to a queue file while the store is closed.
    Damage {
        file: usize,
        how: u8,
    },
    Retention {
        kept: usize,
    },
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        30 => (0usize..3, 0i32..3).prop_map(|(topic, id)| Op::Put { topic, id }),
        3 => (0usize..5).prop_map(|back| Op::Checkpoint { back }),
        1 => Just(Op::Kill),
        1 => (0usize..30).prop_map(|lost| Op::Crash { lost }),
        1 => (0usize..99, 0u8..3).prop_map(|(file, how)| Op::Damage { file, how }),
        1 => (0usize..40).prop_map(|kept| Op::Retention { kept }),
    ]
}

/// A log in memory, and the queues derived from it.
struct Model {
    dir: TempDir,
    options: QueueOptions,
    queues: Option<Queues>,
    /// Topic, queue id, queue offset, entry, in the order of the log; `first` of them expired.
    log: Vec<(String, i32, u64, QueueEntry)>,
    first: usize,
    /// Records before this are durable.
    durable: usize,
    made: u64,
}

impl Model {
    fn queues(&self) -> &Queues {
        self.queues.as_ref().unwrap()
    }

    fn physical(&self, record: usize) -> u64 {
        self.log
            .get(record)
            .map_or(entry(self.made).physical_offset, |record| record.3.physical_offset)
    }

    fn open(&mut self, cut: bool) {
        self.queues = None;
        let (queues, mut table) = open(&self.dir.0, &self.options);
        if table.offset > self.physical(self.log.len()) {
            queues.reset().unwrap();
            table.offset = 0;
        }
        for (topic, id, offset, entry) in &self.log[self.first..] {
            if entry.physical_offset >= table.offset {
                queues.get_or_create(topic, *id).unwrap().append(*offset, *entry).unwrap();
            }
        }
        let log_min = self.physical(self.first);
        queues.finish_recovery(cut, log_min).unwrap();
        queues.for_each(|queue| queue.correct_min_offset(log_min)).unwrap();
        self.queues = Some(queues);
        self.check();
    }

    fn check(&self) {
        let mut expected = BTreeMap::<_, (u64, Vec<_>)>::new();
        for (topic, id, offset, entry) in &self.log[self.first..] {
            let queue = expected.entry((topic.clone(), *id)).or_insert((*offset, vec![]));
            queue.1.push(*entry);
        }
        for ((topic, id), (min, entries)) in &expected {
            let queue = self.queues().get(topic, *id).unwrap();
            assert_eq!(&read_all(&queue), entries, "{topic} {id}");
            assert_eq!(queue.min_offset(), *min);
            assert_eq!(queue.max_offset(), min + entries.len() as u64);
        }
        let others = |queue: &Arc<ConsumeQueue>| {
            !expected.contains_key(&(queue.topic().to_owned(), queue.queue_id()))
        };
        for queue in self.queues().snapshot().iter().filter(|queue| others(queue)) {
            assert_eq!(queue.min_offset(), queue.max_offset());
        }
    }

    fn run(&mut self, op: Op) {
        match op {
            Op::Put { topic, id } => {
                let topic = ["a", "b", "c"][topic].to_owned();
                let queue = self.queues().get_or_create(&topic, id).unwrap();
                let (offset, entry) = (queue.max_offset(), entry(self.made));
                assert_eq!(queue.append(offset, entry).unwrap(), QueueAppend::New);
                self.made += 1;
                self.log.push((topic, id, offset, entry));
            }
            Op::Checkpoint { back } => {
                self.durable = self.durable.max(self.log.len().saturating_sub(back));
                let limit = self.physical(self.durable);
                checkpoint(self.queues(), limit).unwrap();
                self.queues().for_each(|queue| queue.remove_expired().map(drop)).unwrap();
            }
            Op::Kill => self.open(false),
            Op::Crash { lost } => {
                let keep = self.log.len().saturating_sub(lost).max(self.durable).max(self.first);
                self.log.truncate(keep);
                self.durable = keep;
                self.open(true);
            }
            Op::Damage { file, how } => {
                self.queues = None;
                let mut files = Vec::new();
                for topic in HostDisk.list(&self.dir.0.join("consumequeue")).unwrap_or_default() {
                    let topic = self.dir.0.join("consumequeue").join(topic.name);
                    for queue in HostDisk.list(&topic).unwrap() {
                        let queue = topic.join(queue.name);
                        files.extend(
                            HostDisk
                                .list(&queue)
                                .unwrap()
                                .into_iter()
                                .map(|file| queue.join(file.name)),
                        );
                    }
                }
                // Damage in the middle is not noticed at open; only the last file of a queue is hit.
                files = files
                    .iter()
                    .zip(files.iter().skip(1).map(Some).chain([None]))
                    .filter(|(file, next)| next.is_none_or(|next| next.parent() != file.parent()))
                    .map(|(file, _)| file.clone())
                    .collect();
                if let Some(path) = files.get(file % files.len().max(1)) {
                    match how {
                        0 => std::fs::remove_file(path).unwrap(),
                        1 => drop(std::fs::File::create(path).unwrap()),
                        _ => {
                            std::fs::write(path, vec![0; self.options.file_size as usize]).unwrap()
                        }
                    }
                }
                self.open(true);
            }
            Op::Retention { kept } => {
                // The log expires only what the queues have durably.
                let first = self.log.len().saturating_sub(kept).min(self.durable);
                self.first = self.first.max(first);
                let log_min = self.physical(self.first);
                self.queues().for_each(|queue| queue.correct_min_offset(log_min)).unwrap();
            }
        }
        self.check();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn queues_are_what_the_log_says(
        slots in 1u64..5,
        open_files in 1usize..4,
        tail_size in 1usize..100,
        hurried: bool,
        ops in prop::collection::vec(op(), 1..150),
    ) {
        let dir = TempDir::new("log-model");
        let tail_memory = if hurried { 0 } else { 1 << 20 };
        let options = QueueOptions { tail_memory, ..options(slots, open_files, tail_size) };
        let mut model = Model { dir, options, queues: None, log: vec![], first: 0, durable: 0, made: 0 };
        model.open(false);
        for op in ops {
            model.run(op);
        }
    }
}

/// Entries that Java brokers wrote, as the brokers themselves told of them.
#[test]
fn queues_of_rocketmq_are_read_entry_by_entry() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/rocketmq");
    let list = |dir: &Path| {
        HostDisk.list(dir).unwrap_or_default().into_iter().filter(|entry| entry.is_dir)
    };
    let mut queues = 0;
    for version in list(&fixtures) {
        let version = fixtures.join(version.name);
        for case in list(&version) {
            queues += read_fixture(&version.join(case.name));
        }
    }
    assert!(queues > 50 || !fixtures.exists(), "{queues}");
}

/// How many queues that were.
fn read_fixture(fixture: &Path) -> usize {
    let manifest = std::fs::read_to_string(fixture.join("manifest.json")).unwrap();
    let numbers = |text: &str| -> Vec<i64> {
        let parts = text.split(|c: char| !c.is_ascii_digit() && c != '-');
        parts.filter_map(|part| part.parse().ok()).collect()
    };
    // A store that was killed has none.
    let Some((_, queues)) = manifest.split_once("\"consumeQueues\": [") else { return 0 };
    let queues = queues.split_once("\n]").unwrap().0;
    let mut seen = 0;
    for queue in queues.split("\"topic\"").skip(1) {
        let (head, entries) = queue.split_once("\"entries\"").unwrap();
        let topic = head.split('"').nth(1).unwrap();
        let head = numbers(head.split_once("queueId").unwrap().1);
        let [id, min, max] = head[..] else { panic!("{head:?}") };
        let expected: Vec<_> = numbers(entries)
            .chunks_exact(3)
            .map(|e| QueueEntry {
                physical_offset: e[0] as u64,
                size: e[1] as u32,
                tags_code: e[2],
            })
            .collect();
        let dir = fixture.join(format!("store/consumequeue/{topic}/{id}"));
        let options = QueueOptions { read_only: true, ..QueueOptions::default() };
        let queue =
            ConsumeQueue::open(HostDisk::shared(), &dir, topic, id as i32, &options).unwrap();
        assert_eq!(
            (queue.min_offset(), queue.max_offset()),
            (min as u64, max as u64),
            "{}",
            dir.display()
        );
        assert_eq!(read_all(&queue), expected);
        assert_eq!(queue.take_repairs(), []);
        seen += 1;
    }
    seen
}

/// On a disk that loses what was not synced.
#[cfg(feature = "sim")]
mod power {
    use super::*;
    use crate::disk::{Cut, CutMoment, SimDisk};

    const ROOT: &str = "/store";

    struct Dice(u64);

    impl Dice {
        fn below(&mut self, bound: u64) -> u64 {
            self.0 = self
                .0
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) % bound
        }
    }

    /// A log that survives as far as it must, and the queues derived from it on a disk that does not.
    struct Scenario {
        dice: Dice,
        disk: SimDisk,
        options: QueueOptions,
        log: Vec<(&'static str, i32, u64, QueueEntry)>,
        first: usize,
        durable: usize,
        made: u64,
    }

    impl Scenario {
        fn new(seed: u64) -> Self {
            let disk = SimDisk::new(seed);
            disk.create_dir(Path::new(ROOT)).unwrap();
            disk.sync_dir(Path::new("/")).unwrap();
            let mut dice = Dice(seed);
            let tail_memory = if dice.below(2) == 0 { 0 } else { 1 << 20 };
            let slots = [2, 5, 100][dice.below(3) as usize];
            let (open_files, tail_size) =
                (1 + dice.below(3) as usize, 1 + dice.below(100) as usize);
            let options = QueueOptions { tail_memory, ..options(slots, open_files, tail_size) };
            Self { dice, disk, options, log: vec![], first: 0, durable: 0, made: 0 }
        }

        fn physical(&self, record: usize) -> u64 {
            self.log
                .get(record)
                .map_or(entry(self.made).physical_offset, |record| record.3.physical_offset)
        }

        /// Opens and brings the queues up to the log, as a store does.
        fn open(&self) -> Result<Queues> {
            let (queues, table) = Queues::open(self.disk.shared(), Path::new(ROOT), &self.options)?;
            assert!(table.offset <= self.physical(self.durable));
            for (topic, id, offset, entry) in &self.log[self.first..] {
                if entry.physical_offset >= table.offset {
                    queues.get_or_create(topic, *id)?.append(*offset, *entry)?;
                }
            }
            let log_min = self.physical(self.first);
            queues.finish_recovery(true, log_min)?;
            queues.for_each(|queue| queue.correct_min_offset(log_min))?;
            self.check(&queues)?;
            Ok(queues)
        }

        fn check(&self, queues: &Queues) -> Result<()> {
            let mut expected = BTreeMap::<_, (u64, Vec<_>)>::new();
            for (topic, id, offset, entry) in &self.log[self.first..] {
                expected.entry((*topic, *id)).or_insert((*offset, vec![])).1.push(*entry);
            }
            for ((topic, id), (min, entries)) in expected {
                let queue = queues.get(topic, id).unwrap();
                let mut found = Vec::new();
                queue.read(min, usize::MAX, &mut found)?;
                assert_eq!(found, entries, "{topic} {id}");
                assert_eq!(
                    (queue.min_offset(), queue.max_offset()),
                    (min, min + entries.len() as u64)
                );
            }
            Ok(())
        }

        fn step(&mut self, queues: &Queues) -> Result<()> {
            match self.dice.below(20) {
                0 => {
                    self.durable = self.log.len()
                        - self.dice.below(3).min((self.log.len() - self.durable) as u64) as usize;
                    checkpoint(queues, self.physical(self.durable))?;
                    queues.for_each(|queue| queue.remove_expired().map(drop))
                }
                1 => {
                    self.first +=
                        self.dice.below((self.durable - self.first) as u64 / 2 + 1) as usize;
                    let log_min = self.physical(self.first);
                    queues.for_each(|queue| queue.correct_min_offset(log_min))
                }
                2 => self.check(queues),
                _ => {
                    let (topic, id) =
                        (["a", "b"][self.dice.below(2) as usize], self.dice.below(2) as i32);
                    let queue = queues.get_or_create(topic, id)?;
                    let (offset, entry) = (queue.max_offset(), entry(self.made));
                    self.made += 1;
                    self.log.push((topic, id, offset, entry));
                    queue.append(offset, entry).map(drop)
                }
            }
        }

        fn life(&mut self) {
            let kill = self.dice.below(3) == 0;
            let moment =
                if self.dice.below(2) == 0 { CutMoment::Before } else { CutMoment::Middle };
            let calls = 1 + self.dice.below(150);
            if kill {
                self.disk.kill_at(calls, moment)
            } else {
                self.disk.cut_at(calls, moment)
            }
            let lived =
                self.open().and_then(|queues| (0..200).try_for_each(|_| self.step(&queues)));
            if let Err(error) = lived {
                assert!(self.disk.is_down(), "{error}");
            }
        }

        /// The machine starts again; the log may have lost its end.
        fn restart(&mut self) {
            let lost = self.dice.below((self.log.len() - self.durable) as u64 + 1) as usize;
            self.log.truncate(self.log.len() - lost);
            self.disk = self.disk.reboot(Cut::seeded(self.dice.below(1 << 30)));
        }
    }

    #[test]
    fn queues_survive_power_cuts_at_any_call() {
        for seed in 0..150 {
            let mut scenario = Scenario::new(seed);
            for _ in 0..6 {
                scenario.life();
                scenario.restart();
            }
            let queues = scenario.open().unwrap();
            scenario.check(&queues).unwrap();
        }
    }
}
