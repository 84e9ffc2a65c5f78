//! Apache RocketMQ itself on the same directories: what the one writes the other reads, whoever is
//! killed in the middle of it. The Java half is in `tests/interop`; `.ci/interop` builds it for each
//! version and runs all this.

#[path = "support/both_readers.rs"]
mod both_readers;
#[allow(dead_code, reason = "its `main` is not called")]
#[path = "../examples/dump.rs"]
mod dump;
#[macro_use]
#[path = "support/java.rs"]
mod java;
#[path = "support/rng.rs"]
mod rng;
#[path = "support/temp.rs"]
mod temp;

use both_readers::{
    Messages, assert_found, assert_same, by_place, config, copy, keys_of, open, place, read,
    real_keys,
};
use duralog::message::{Host, SysFlag};
use duralog::{Error, FlushMode, Message, PutResult, RecoveryMode, Store};
use java::{INDEX_SLOTS, Java, Process, messages};
use rng::Rng;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Tells a copy of this program what to write, and where.
const ROLE: &str = "DURALOG_TEST_ROLE";
/// The status of a process that halted itself as if it had been killed.
const HALTED: i32 = 137;
const PATIENCE: Duration = Duration::from_secs(60);

impl Java {
    /// 4.9 knows no checksum of a whole record.
    fn knows_record_crc(self) -> bool {
        !self.0.starts_with("4.")
    }

    /// Lets it write from four threads and die once `count` messages are stored: by its own hand, or
    /// by ours. What was acknowledged.
    fn write_and_die(self, dir: &Path, seed: u64, count: usize, by_own_hand: bool) -> Vec<Value> {
        let (seed, count_word) = (seed.to_string(), count.to_string());
        let mut args = vec!["1000000", &seed, "--threads", "4"];
        if by_own_hand {
            args.extend(["--kill-after", &count_word]);
            let output = self.output("append", dir, &args);
            assert_eq!(output.status.code(), Some(HALTED), "{output:?}");
            return messages(&output.stdout);
        }
        let mut java = self.command("append", dir, &args);
        let java = java.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("java runs");
        let mut java = Process(java);
        let mut lines = BufReader::new(java.0.stdout.take().expect("piped"));
        let mut said = Vec::new();
        for _ in 0..count {
            lines.read_until(b'\n', &mut said).expect("it prints");
        }
        java.kill();
        lines.read_to_end(&mut said).expect("what it had printed");
        messages(&said)
    }
}

/// Each acknowledged message is where it was said to be, and is what was put.
fn assert_kept(acks: &[Value], found: &Messages) {
    for ack in acks {
        let (place, _) = by_place(vec![ack.clone()]).pop_first().expect("one");
        let message = found.get(&place).unwrap_or_else(|| panic!("lost: {ack}"));
        for (name, value) in ack.as_object().expect("an object") {
            if name == "properties" {
                // The store may have added one.
                for (name, value) in value.as_object().expect("an object") {
                    assert_eq!(message["properties"][name], *value, "{name} of {place:?}");
                }
            } else {
                assert_eq!(message[name], *value, "{name} of {place:?}");
            }
        }
    }
}

/// Sync and async flush in turn.
fn flush_mode(n: u64) -> FlushMode {
    if n.is_multiple_of(2) { FlushMode::sync() } else { FlushMode::async_default() }
}

/// A number in one of RocketMQ's files.
fn number<const N: usize>(bytes: &[u8], at: usize) -> i64 {
    let bytes: [u8; N] = *bytes[at..].first_chunk().expect("long enough");
    bytes.iter().fold(0, |number, byte| number << 8 | i64::from(*byte))
}

/// The files of a directory in the order of their names, which are numbers. One that is empty was being
/// made when RocketMQ died, which begins by opening it.
fn files(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let entries = fs::read_dir(dir).expect("a directory").map(|entry| entry.expect("an entry"));
    let mut files: Vec<_> = entries
        .map(|entry| (entry.file_name().into_string().expect("UTF-8"), entry.path()))
        .map(|(name, path)| (name, fs::read(path).expect("readable")))
        .filter(|(_, bytes)| !bytes.is_empty())
        .collect();
    files.sort();
    files
}

/// Which messages RocketMQ finds by key once it has recovered a store that was not closed: it keeps the
/// index files that the checkpoint vouches for, and indexes the log anew from the newest file that
/// begins three seconds before the times in the checkpoint.
fn found_after_a_kill(dir: &Path) -> impl Fn(i64) -> bool + use<> {
    let times = fs::read(dir.join("checkpoint")).unwrap_or_else(|_| vec![0; 24]);
    let [commit_log, queues, index] = [0, 8, 16].map(|at| number::<8>(&times, at));
    let kept = files(&dir.join("index")).into_iter().map(|(_, file)| file);
    let kept = kept.filter(|file| number::<8>(file, 8) <= index && number::<4>(file, 36) > 1);
    let kept: Vec<_> = kept.map(|f| (number::<8>(&f, 16), number::<8>(&f, 24))).collect();
    let until = commit_log.min(queues) - 3000;
    let from = files(&dir.join("commitlog")).into_iter().rev().find(|(_, file)| {
        let v6 = number::<4>(file, 36) & 0x10 > 0;
        let stored = number::<8>(file, if v6 { 68 } else { 56 });
        stored > 0 && stored <= until
    });
    let from = from.map_or(0, |(name, _)| name.parse().expect("a number"));
    // The message on the edge of a file may have some of its keys in the other.
    move |offset| offset >= from || kept.iter().any(|(begin, end)| *begin < offset && offset < *end)
}

/// The message that `seed` has as number `n`.
fn message(seed: u64, n: u64) -> Message {
    let mut rng = Rng(seed << 32 | n);
    let topic = rng.pick(&["orders", "payments", "%RETRY%billing"]);
    let size = if rng.one_in(16) { 4000 } else { rng.index(600) };
    let body: Vec<u8> = (0..size).map(|_| rng.next() as u8).collect();
    let mut message = Message::new(topic, body)
        .queue(rng.index(4) as i32)
        .flag(rng.next() as i32)
        .reconsume_times(rng.index(16) as i32)
        .born_at(1_700_000_000_000 + n as i64)
        .born_host(host(&mut rng))
        .store_host(host(&mut rng))
        .key(format!("key-{seed}-{n}"))
        .key(format!("shared-{}", rng.index(5)))
        // Words that Java hashes alike.
        .key(rng.pick(&["Aa", "BB"]))
        .unique_key(format!("{seed:016X}{n:016X}"));
    if rng.one_in(4) {
        message = message.prepared_transaction_offset(rng.next() as i64);
    }
    if rng.one_in(8) {
        message = message.sys_flag(SysFlag(rng.pick(&[0x301, 0x8])));
    }
    if !rng.one_in(4) {
        message = message.tag(rng.pick(&["paid", "late", "grün", "取消"]));
    }
    if rng.one_in(3) {
        message = message.property("note", format!("ä 😀 {}", "x".repeat(rng.index(300))));
    }
    message
}

fn host(rng: &mut Rng) -> Host {
    let port = 1 + rng.index(65_535) as i32;
    let v6: [u8; 16] = std::array::from_fn(|_| rng.next() as u8);
    let v4 = [v6[12], v6[13], v6[14], v6[15]];
    if rng.one_in(3) { Host::new(v6, port) } else { Host::new(v4, port) }
}

/// What an acknowledged message must be, in the words of the Java half.
fn ack(message: &Message, put: &PutResult) -> Value {
    let body = message.body();
    let (body_name, body_value) = if body.len() <= dump::BODY_PRINTED {
        ("bodyHex", dump::hex(body))
    } else {
        ("bodySha256", dump::hex(&dump::sha256(body)))
    };
    let properties: BTreeMap<_, _> = message.properties_ref().iter().collect();
    let mut ack = json!({
        "topic": message.topic(),
        "queueId": message.queue_id(),
        "queueOffset": put.queue_offset,
        "physicalOffset": put.physical_offset,
        "storeTimestamp": put.store_timestamp,
        "flag": message.flag,
        "bornTimestamp": message.born_timestamp,
        "bornHost": message.born_host.map(dump::java_host),
        "storeHost": message.store_host.map(dump::java_host),
        "reconsumeTimes": message.reconsume_times,
        "preparedTransactionOffset": message.prepared_transaction_offset,
        "bodyLength": body.len(),
        "tags": message.tags(),
        "keys": message.keys(),
        "properties": properties,
    });
    ack[body_name] = body_value.into();
    ack
}

/// Puts `count` messages from four threads; each is told as soon as it is acknowledged, and all in
/// the end.
fn append(store: &Store, seed: u64, count: u64, acked: impl Fn(&Value) + Sync) -> Vec<Value> {
    let put = |n| {
        let message = message(seed, n);
        let put = store.put(&message).expect("stored");
        assert!(put.ok().is_ok(), "{put:?}");
        let ack = ack(&message, &put);
        acked(&ack);
        ack
    };
    let produce = |thread| (thread..count).step_by(4).map(put).collect::<Vec<_>>();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|thread| scope.spawn(move || produce(thread))).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("no panic")).collect()
    })
}

/// Opens the store, puts `count` messages, and closes it.
fn write(dir: &Path, flush: FlushMode, seed: u64, count: u64) -> Vec<Value> {
    let store = Store::open(config(dir, flush)).expect("the store opens");
    let acks = append(&store, seed, count, |_| {});
    store.close().expect("the store closes");
    acks
}

/// What a copy of this program does that is to be killed; without a role, nothing.
#[test]
fn another_process_writes_what_it_is_told_to() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let words: Vec<_> = role.splitn(3, ' ').collect();
    let [seed, flush, dir] = words[..] else { panic!("{role}") };
    let (seed, flush) = (seed.parse().expect("a number"), flush.parse().expect("a number"));
    let dir = Path::new(dir);
    let acks = OpenOptions::new().append(true).open(acks_of(dir)).expect("the file");
    let store = Store::open(config(dir, flush_mode(flush))).expect("the store opens");
    append(&store, seed, 1_000_000, |ack| {
        let line = format!("{ack}\n");
        (&acks).write_all(line.as_bytes()).expect("written");
    });
}

fn acks_of(dir: &Path) -> PathBuf {
    dir.with_extension("acks")
}

/// Lets a process write, and kills it once `count` messages are acknowledged; all that were.
fn write_and_die(dir: &Path, flush: u64, seed: u64, count: usize) -> Vec<Value> {
    let acks = acks_of(dir);
    File::create(&acks).expect("a file");
    let child = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "another_process_writes_what_it_is_told_to"])
        .env(ROLE, format!("{seed} {flush} {}", dir.display()))
        .stdout(Stdio::null())
        .spawn();
    let mut child = Process(child.expect("a second process"));
    let started = Instant::now();
    loop {
        let said = fs::read(&acks).expect("the file");
        if said.iter().filter(|byte| **byte == b'\n').count() >= count {
            break;
        }
        assert!(started.elapsed() < PATIENCE, "it does not write");
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill();
    messages(&fs::read(&acks).expect("the file"))
}

fn rust_writes_and_java_reads(java: Java) {
    let mut compared = 0;
    for flush in 0..2 {
        let (_temp, dir) = place();
        let acks = write(&dir, flush_mode(flush), 1, 1500);
        let listed = java.list(&dir);
        assert_kept(&acks, &listed);
        assert_eq!(listed.len(), acks.len());
        let (read, report) = read(&dir);
        assert!(!report.unclean && report.cut.is_none(), "{report:?}");
        assert_same(&read, &listed);
        compared += listed.len();
    }
    println!("interop {}: Rust wrote, Java read the same: {compared} messages", java.0);
}

fn java_writes_and_rust_reads(java: Java) {
    let mut compared = 0;
    let mut options = vec!["flushDiskType=ASYNC_FLUSH", "flushDiskType=SYNC_FLUSH"];
    options.extend(java.knows_record_crc().then_some("enabledAppendPropCRC=true"));
    for option in options {
        let (temp, dir) = place();
        let acks = java.run("append", &dir, &["1500", "2", option]);
        // Without the queues everything must be found, too.
        let bare = temp.path().join("bare");
        copy(&dir, &bare);
        fs::remove_dir_all(bare.join("consumequeue")).expect("removed");
        for dir in [dir, bare] {
            let (read, report) = read(&dir);
            assert!(report.foreign && !report.unclean && report.cut.is_none(), "{report:?}");
            assert_kept(&acks, &read);
            assert_eq!(read.len(), acks.len());
            assert_same(&read, &java.list(&dir));
            compared += read.len();
        }
    }
    println!("interop {}: Java wrote, Rust read the same: {compared} messages", java.0);
}

fn java_dies_and_rust_recovers(java: Java) {
    const KILLS: u64 = 6;
    let (_temp, dir) = place();
    let mut rng = Rng(3);
    let mut acks = Vec::new();
    for kill in 0..KILLS {
        let count = 1 + rng.index(800);
        acks.extend(java.write_and_die(&dir, kill, count, kill.is_multiple_of(2)));
        let (read, report) = read(&dir);
        assert!(report.unclean, "{report:?}");
        assert_kept(&acks, &read);
        assert_same(&read, &java.list(&dir));
    }
    println!("interop {}: Java died {KILLS} times, Rust has all {} acked", java.0, acks.len());
}

fn rust_dies_and_java_recovers(java: Java) {
    const KILLS: u64 = 6;
    let (_temp, dir) = place();
    let mut rng = Rng(4);
    let (mut acks, mut missing) = (Vec::new(), 0);
    for kill in 0..KILLS {
        acks.extend(write_and_die(&dir, kill, kill, 1 + rng.index(800)));
        let must = found_after_a_kill(&dir);
        // Where Java can hold every record against its checksum, it does in turn.
        let strict = java.knows_record_crc() && kill % 3 == 1;
        let option: &[_] = if strict { &["forceVerifyPropCRC=true"] } else { &[] };
        let (listed, keys) = java.list_with_keys(&dir, option);
        missing += assert_found(&keys, &listed, must);
        assert_kept(&acks, &listed);
        assert_same(&read(&dir).0, &listed);
    }
    println!(
        "interop {}: Rust died {KILLS} times, Java has all {} acked; {missing} keys not found",
        java.0,
        acks.len()
    );
}

/// Ten turns on one directory; each way to end is followed by each way to begin.
fn they_take_turns(java: Java) {
    const TURNS: u64 = 10;
    let (temp, dir) = place();
    let (mut acks, mut kills, mut compared, mut missing) = (Vec::new(), 0, 0, 0);
    for turn in 0..TURNS {
        let (javas, dies) = (turn % 2 == 1, [2, 3, 5, 6].contains(&turn));
        let before = acks.len();
        acks.extend(match (javas, dies) {
            (false, false) => write(&dir, flush_mode(turn / 2), turn, 300),
            (false, true) => write_and_die(&dir, turn / 2, turn, 200),
            (true, false) => java.run("append", &dir, &["300", &turn.to_string()]),
            (true, true) => java.write_and_die(&dir, turn, 200, turn == 3),
        });
        assert!(acks.len() >= before + 200, "turn {turn}");
        kills += u64::from(dies);
        // The other one looks at a copy, so that it begins its own turn with what it was left.
        let look = temp.path().join("look");
        copy(&dir, &look);
        let found = match (javas, dies) {
            (true, _) => read(&look).0,
            (false, false) => java.list(&look),
            (false, true) => {
                let must = found_after_a_kill(&look);
                let (listed, keys) = java.list_with_keys(&look, &[]);
                missing += assert_found(&keys, &listed, must);
                listed
            }
        };
        fs::remove_dir_all(look).expect("removed");
        assert_kept(&acks, &found);
        compared += found.len();
    }
    let listed = java.list(&dir);
    assert_kept(&acks, &listed);
    assert_same(&read(&dir).0, &listed);
    compared += listed.len();
    println!(
        "interop {}: {TURNS} turns, {kills} ended by a kill: all {} acked there, {compared} compared, \
         {missing} keys not found by Java after a kill",
        java.0,
        acks.len()
    );
}

/// The same messages, also where few are asked for, and where other keys have the same hash.
fn both_find_the_same_by_key(java: Java) {
    const MAX: usize = 7;
    let (mut queries, mut answers, mut collisions) = (0, 0, 0);
    for javas in [false, true] {
        let (_temp, dir) = place();
        if javas {
            java.run("append", &dir, &["1500", "2"]);
        } else {
            write(&dir, FlushMode::sync(), 1, 1500);
        }
        let messages = java.list(&dir);
        let real = keys_of(&messages);
        let colliding = ["Aa", "BB"].map(|key| ("payments", key));
        let absent = [("orders", "none"), ("none", "Aa"), ("orders", "shared-1 shared-2")];
        let asked: Vec<_> =
            colliding.into_iter().chain([("orders", "shared-3")]).chain(absent).collect();
        let words: Vec<_> = asked.iter().flat_map(|(topic, key)| [*topic, *key]).collect();
        for max in [MAX, usize::MAX] {
            let limit = max.min(100_000).to_string();
            let said = java.run("query", &dir, &[&["--max", &limit], &words[..]].concat());
            let store = open(&dir);
            for ((topic, key), answer) in asked.iter().zip(&said) {
                let real = real.get(&((*topic).to_owned(), (*key).to_owned()));
                let real = real.map_or(&[][..], Vec::as_slice);
                let newest = &real[real.len().saturating_sub(max)..];
                let found = store.query(topic, key, max, 0..=i64::MAX).expect("readable");
                let found: Vec<_> = found.iter().map(|m| m.physical_offset() as i64).collect();
                assert_eq!(found, newest, "{topic} {key} {max}");
                // With messages of another key among them, fewer of this one.
                let by_java = answer["offsets"].as_array().expect("an array").len();
                let really = real_keys(vec![answer.clone()], &messages).pop_last().expect("one").1;
                assert!(newest.ends_with(&really), "{topic} {key} {max}: {really:?}");
                assert!(really.len() == newest.len() || by_java == max, "{topic} {key} {max}");
                (queries, answers) = (queries + 1, answers + found.len());
                collisions += by_java - really.len();
            }
            assert_eq!(said.len(), asked.len());
            store.close().expect("the store closes");
        }
    }
    assert!(collisions > 0);
    println!(
        "interop {}: {queries} queries by key, {answers} messages found by both, {collisions} others \
         with the same hash by Java alone",
        java.0
    );
}

/// Both index the same log from its beginning: the files are the same, but for their names.
fn an_index_from_scratch_is_the_same(java: Java) {
    let (temp, dir) = place();
    write(&dir, FlushMode::sync(), 6, 1500);
    let java_dir = temp.path().join("java");
    copy(&dir, &java_dir);
    // What makes the one and the other begin at the beginning.
    for dir in [&dir, &java_dir] {
        fs::remove_dir_all(dir.join("index")).expect("removed");
    }
    fs::remove_file(dir.join("duralog/index")).expect("removed");
    fs::remove_dir_all(java_dir.join("consumequeue")).expect("removed");
    fs::remove_file(java_dir.join("checkpoint")).expect("removed");
    File::create(java_dir.join("abort")).expect("a file");
    java.list(&java_dir);
    open(&dir).close().expect("the store closes");
    let (rust, java_files) = (files(&dir.join("index")), files(&java_dir.join("index")));
    assert_eq!(rust.len(), java_files.len());
    let mut bytes = 0;
    for (n, ((_, mut rust), (_, mut by_java))) in rust.into_iter().zip(java_files).enumerate() {
        if n > 0 {
            // RocketMQ counts the first item's seconds from the end of the file before.
            let at = 40 + 4 * INDEX_SLOTS as usize + 20 + 12;
            assert_eq!(rust[at..at + 4], [0; 4]);
            rust[at..at + 4].fill(0xff);
            by_java[at..at + 4].fill(0xff);
        }
        assert_eq!(rust.len(), by_java.len());
        let differs = rust.iter().zip(&by_java).position(|(rust, java)| rust != java);
        assert_eq!(differs, None, "file {n}");
        bytes += rust.len();
    }
    println!("interop {}: both made the same index, {bytes} bytes", java.0);
}

/// After a kill RocketMQ drops the newest index file, and may not index again all that was in it. Here
/// nothing is lost, and Java finds everything again once the store was closed here.
fn a_key_that_java_forgot_is_found(java: Java) {
    let (temp, dir) = place();
    let put = |store: &Store, n: usize| {
        let message = Message::new("orders", vec![n as u8; 15_000]).key(format!("key-{n}"));
        let put = store.put(&message).expect("stored");
        assert!(put.ok().is_ok(), "{put:?}");
    };
    // Several segments, each some seconds after the other; one index file.
    let store = open(&dir);
    for n in 0..15 {
        put(&store, n);
        if n % 5 == 4 {
            std::thread::sleep(Duration::from_millis(3200));
        }
    }
    store.close().expect("the store closes");
    let store = open(&dir);
    put(&store, 15);
    // Copied while it is open, a store is what a kill leaves.
    let killed = temp.path().join("killed");
    copy(&dir, &killed);
    let must = found_after_a_kill(&killed);
    let (listed, keys) = java.list_with_keys(&killed, &[]);
    let forgotten = assert_found(&keys, &listed, must);
    assert!((1..15).contains(&forgotten), "{forgotten}");
    assert_eq!(listed.len(), 16);
    assert_same(&read(&killed).0, &listed);
    assert_same(&listed, &java.list(&killed));
    println!("interop {}: {forgotten} of 16 keys that Java forgot are found here", java.0);
}

/// What RocketMQ reads of the checkpoint written here: times of messages, none after the last.
fn java_reads_the_checkpoint(java: Java) {
    let (_temp, dir) = place();
    let times = |dir: &Path| {
        let said = java.run("checkpoint", dir, &[]).remove(0);
        ["physic", "logics", "index", "min"].map(|name| said[name].as_i64().expect("a number"))
    };
    for turn in 0..2 {
        write(&dir, flush_mode(turn), turn, 700);
        let [physic, logics, index, min] = times(&dir);
        let messages = java.list(&dir);
        let stored = messages.values().map(|m| m["storeTimestamp"].as_i64().expect("a number"));
        let newest = stored.clone().max().expect("some");
        assert_eq!((physic, logics, min), (newest, newest, newest - 3000));
        assert!(index <= newest && stored.clone().any(|time| time == index), "{index}");
        // Java has closed it in order since, and added nothing.
        let [physic, logics, index_then, _] = times(&dir);
        assert!((0..=newest).contains(&physic) && (0..=newest).contains(&logics));
        assert!((index..=newest).contains(&index_then));
        println!("interop {}: checkpoint {newest}, index {} ms before", java.0, newest - index);
    }
}

fn java_keeps_rust_out(java: Java) {
    let (_temp, dir) = place();
    let mut holder = java.command("hold", &dir, &[]);
    let holder = holder.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
    let mut holder = Process(holder.expect("java runs"));
    let mut line = String::new();
    let mut said = BufReader::new(holder.0.stdout.take().expect("piped"));
    said.read_line(&mut line).expect("it prints");
    assert_eq!(line, "READY\n");
    let refused = Store::open(config(&dir, FlushMode::sync()));
    assert!(matches!(refused, Err(Error::Locked { .. })), "{refused:?}");
    drop(holder.0.stdin.take());
    assert!(holder.0.wait().expect("it ends").success());
    open(&dir).close().expect("the store closes");
    println!("interop {}: Java held the directory, Rust was refused", java.0);
}

fn rust_keeps_java_out(java: Java) {
    let (_temp, dir) = place();
    let store = open(&dir);
    let mut acks = append(&store, 1, 300, |_| {});
    // With a segment made ahead, which Java takes for a remnant: it recovers before it locks.
    let made_ahead = || {
        let names = fs::read_dir(dir.join("commitlog")).expect("a directory");
        let name = |entry: std::io::Result<fs::DirEntry>| entry.expect("an entry").file_name();
        let last: u64 = names.filter_map(|entry| name(entry).to_str()?.parse().ok()).max()?;
        (last > store.stats().watermarks.appended).then_some(last)
    };
    let mut seed = 2;
    while made_ahead().is_none() {
        acks.extend(append(&store, seed, 4, |_| {}));
        seed += 1;
    }
    let refused = java.output("list", &dir, &[]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains("Lock failed"), "{said}");
    acks.extend(append(&store, seed, 500, |_| {}));
    store.close().expect("the store closes");
    let (read, _) = read(&dir);
    assert_kept(&acks, &read);
    assert_eq!(read.len(), acks.len());
    assert_same(&read, &java.list(&dir));
    println!(
        "interop {}: Rust held the directory, Java was refused; all {} acked there",
        java.0,
        acks.len()
    );
}

fn a_checksum_that_java_copied_is_no_damage(java: Java) {
    let (_temp, dir) = place();
    let acks = write(&dir, FlushMode::sync(), 5, 100);
    let mut stale = Vec::new();
    for queue_id in ["0", "1", "2"] {
        stale.extend(java.run("reput", &dir, &["orders", queue_id, "1"]));
    }
    let store = Store::open(config(&dir, FlushMode::sync()).recovery_mode(RecoveryMode::Strict));
    store.expect("the store opens").close().expect("the store closes");
    let (read, _) = read(&dir);
    assert_kept(&acks, &read);
    assert_kept(&stale, &read);
    assert_eq!(read.len(), acks.len() + stale.len());
    for message in &stale {
        let (place, _) = by_place(vec![message.clone()]).pop_first().expect("one");
        let (copy, first) = (&read[&place], &read[&(place.0.clone(), place.1, 1)]);
        assert_eq!(copy["properties"]["__CRC32#"], first["properties"]["__CRC32#"]);
        assert_eq!(copy["propertiesHex"], first["propertiesHex"]);
    }
    assert_same(&read, &java.list(&dir));
    println!("interop {}: {} records with a stale checksum read", java.0, stale.len());
}

/// Copies a store that is written to, and lets Java have the copy: what it does there is not to be seen in
/// the store, of which the copy shares files.
fn rust_snapshot_java_reads(java: Java) {
    let (temp, dir) = place();
    let store = Store::open(config(&dir, FlushMode::sync())).expect("the store opens");
    let before = append(&store, 1, 1000, |_| {});
    let copy = temp.path().join("copy");
    let (during, report) = std::thread::scope(|scope| {
        let during = scope.spawn(|| append(&store, 2, 1000, |_| {}));
        let report = store.snapshot(&copy).expect("made");
        (during.join().expect("no panic"), report)
    });
    assert!(report.linked > 2, "{report:?}");
    let listed = java.list(&copy);
    assert_kept(&before, &listed);
    assert_eq!(listed.len() as u64, report.messages);
    let (copied, recovery) = read(&copy);
    assert_eq!((recovery.unclean, recovery.cut), (false, None));
    assert_same(&copied, &listed);

    let appended = java.run("append", &copy, &["300", "3"]);
    let dying = java.write_and_die(&copy, 4, 200, true);
    // After a kill it forgets keys.
    let recovered = java.list_with_keys(&copy, &[]).0;
    for acks in [&before, &appended, &dying] {
        assert_kept(acks, &recovered);
    }
    assert_same(&read(&copy).0, &recovered);
    assert!(store.verify().expect("readable").is_ok());
    store.close().expect("the store closes");
    let (kept, _) = read(&dir);
    assert_kept(&before, &kept);
    assert_kept(&during, &kept);
    assert_eq!(kept.len(), before.len() + during.len());
    assert_same(&kept, &java.list(&dir));
    // What RocketMQ has written can be copied, too.
    let second = temp.path().join("second");
    let store = open(&copy);
    store.snapshot(&second).expect("made");
    store.close().expect("the store closes");
    assert_same(&recovered, &java.list(&second));
    println!(
        "interop {}: {} of a snapshot read, {} after Java wrote and died in it",
        java.0,
        listed.len(),
        recovered.len()
    );
}

for_each_version! {
    rust_writes_and_java_reads
    java_writes_and_rust_reads
    java_dies_and_rust_recovers
    rust_dies_and_java_recovers
    they_take_turns
    both_find_the_same_by_key
    an_index_from_scratch_is_the_same
    a_key_that_java_forgot_is_found
    java_reads_the_checkpoint
    java_keeps_rust_out
    rust_keeps_java_out
    a_checksum_that_java_copied_is_no_damage
    rust_snapshot_java_reads
}
