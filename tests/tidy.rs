//! The system is asked through one door each: files through the disk, time through the clock, threads
//! through the worker.

use std::fs;
use std::path::{Path, PathBuf};

/// What may stand in some files of `src` alone, tests aside.
const DOORS: [(&str, &[&str]); 6] = [
    ("std::fs", &["disk/"]),
    ("unsafe {", &["disk/"]),
    ("libc::", &["disk/"]),
    ("Instant::now()", &["clock.rs"]),
    ("SystemTime::now()", &["clock.rs"]),
    ("thread::Builder", &["worker.rs"]),
];

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("a directory").flatten() {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|end| end == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn the_system_is_asked_through_its_doors() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    let mut used = [0; DOORS.len()];
    for path in &files {
        let name = path.strip_prefix(&root).expect("below it").to_string_lossy().into_owned();
        if name.ends_with("tests.rs") || name.ends_with("model.rs") {
            continue;
        }
        let text = fs::read_to_string(path).expect("readable");
        // Unit tests stand at the end of a file.
        let code = text.split("\n#[cfg(test)]\nmod").next().expect("there is a first part");
        let code = code.split("\n#[cfg(all(test").next().expect("there is a first part");
        for line in code.lines().filter(|line| !line.trim_start().starts_with("//")) {
            for ((word, doors), used) in DOORS.iter().zip(&mut used) {
                if line.contains(word) {
                    let allowed = doors.iter().any(|door| name.starts_with(door));
                    assert!(allowed, "`{word}` in {name}: {line}");
                    *used += 1;
                }
            }
        }
    }
    assert!(used.iter().all(|count| *count > 0), "nothing was looked at: {used:?}");
}
