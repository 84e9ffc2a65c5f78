//! Apache RocketMQ's own store, run by `tests/interop`; `.ci/interop` builds that for each version.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

/// Small files, so that every run crosses many of them.
pub const SEGMENT_SIZE: u64 = 64 << 10;
pub const QUEUE_FILE_SIZE: u64 = 2000;
pub const INDEX_SLOTS: u32 = 101;
pub const INDEX_ITEMS: u32 = 500;
/// The same for Java, which takes no size from what is there.
const SIZES: [&str; 5] = [
    "mappedFileSizeCommitLog=65536",
    "mappedFileSizeConsumeQueue=2000",
    "maxHashSlotNum=101",
    "maxIndexNum=500",
    // Otherwise no query finds more than 64.
    "maxMsgsNumBatch=100000",
];
/// RocketMQ reaches into the JDK to unmap its files.
const JVM: [&str; 6] = [
    "-Xmx512m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "--add-opens=java.base/java.nio=ALL-UNNAMED",
    "--add-opens=java.base/sun.nio.ch=ALL-UNNAMED",
    "--add-opens=java.base/jdk.internal.ref=ALL-UNNAMED",
];

/// A version of RocketMQ.
#[derive(Clone, Copy)]
pub struct Java(pub &'static str);

impl Java {
    /// The class of `tests/interop`, run.
    pub fn class(self, class: &str) -> Command {
        let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop/target").join(self.0);
        let libraries = fs::read_to_string(built.join("classpath")).expect("built by .ci/interop");
        let classpath = format!("{}:{}", built.join("classes").display(), libraries.trim());
        let mut java = Command::new("java");
        java.args(JVM).args(["-cp", &classpath, class]);
        java
    }

    pub fn command(self, command: &str, dir: &Path, args: &[&str]) -> Command {
        let mut java = self.class("Interop");
        java.arg(command).arg(dir).args(args).args(SIZES).stdin(Stdio::null());
        java
    }

    pub fn output(self, command: &str, dir: &Path, args: &[&str]) -> Output {
        self.command(command, dir, args).output().expect("java runs")
    }

    /// The messages that a command prints which must succeed.
    pub fn run(self, command: &str, dir: &Path, args: &[&str]) -> Vec<Value> {
        let output = self.output(command, dir, args);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{} {command}: {}\n{said}", self.0, output.status);
        messages(&output.stdout)
    }
}

/// Another process, which does not outlive the test.
pub struct Process(pub Child);

impl Process {
    pub fn kill(&mut self) {
        self.0.kill().expect("it can be killed");
        let status = self.0.wait().expect("it ends");
        assert_eq!(status.code(), None, "it ended by itself");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What complete lines of JSON say.
pub fn messages(said: &[u8]) -> Vec<Value> {
    let complete = said.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    let text = str::from_utf8(&said[..complete]).expect("UTF-8");
    text.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
}

/// Makes a test of each of these functions for each version; they take its `Java`.
macro_rules! for_each_version {
    ($($test:ident)*) => {
        for_each_version!(@ v4_9_8 "4.9.8" $($test)*);
        for_each_version!(@ v5_3_3 "5.3.3" $($test)*);
    };
    (@ $module:ident $version:literal $($test:ident)*) => {
        mod $module { $(
            #[test]
            #[ignore = "needs JDK 17 and Maven: .ci/interop"]
            fn $test() {
                super::$test(super::java::Java($version));
            }
        )* }
    };
}
