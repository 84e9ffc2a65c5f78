//! A log as it lies in its files, whoever wrote it.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The bytes of a log from its first file on.
pub struct Log {
    pub begin: u64,
    pub bytes: Vec<u8>,
}

impl Log {
    /// What lies in the files of `dir` up to `end`.
    pub fn stored(dir: &Path, end: u64) -> Self {
        let entries = fs::read_dir(dir.join("commitlog")).expect("a directory");
        let mut files: Vec<PathBuf> =
            entries.map(|entry| entry.expect("an entry").path()).collect();
        files.sort();
        let offset = |file: &Path| -> u64 {
            let name = file.file_name().and_then(|name| name.to_str()).expect("UTF-8");
            name.parse().expect("a number")
        };
        let mut log = Self { begin: offset(&files[0]), bytes: Vec::new() };
        for file in files.iter().take_while(|file| offset(file) < end) {
            assert_eq!(offset(file), log.end(), "the files follow on each other");
            log.bytes.extend(fs::read(file).expect("readable"));
        }
        log.bytes.truncate((end - log.begin) as usize);
        assert_eq!(log.end(), end);
        log
    }

    pub fn end(&self) -> u64 {
        self.begin + self.bytes.len() as u64
    }

    pub fn from(&self, begin: u64, end: u64) -> &[u8] {
        &self.bytes[(begin - self.begin) as usize..(end - self.begin) as usize]
    }

    /// Where records begin, the one that fills up a file too, and where the last one ends.
    pub fn boundaries(&self) -> BTreeSet<u64> {
        let mut boundaries = BTreeSet::from([self.begin]);
        let mut at = 0;
        while let Some(size) = self.bytes[at..].first_chunk() {
            let size = u32::from_be_bytes(*size) as usize;
            assert!(size > 0, "no record at {at}");
            at += size;
            boundaries.insert(self.begin + at as u64);
        }
        boundaries
    }

    #[track_caller]
    pub fn assert_same(&self, other: &Self) {
        assert_eq!((self.begin, self.end()), (other.begin, other.end()));
        let differs = self.bytes.iter().zip(&other.bytes).position(|(left, right)| left != right);
        assert_eq!(differs, None);
    }
}
